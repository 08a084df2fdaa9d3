//! What does: sockets, files, clocks, threads. It decides nothing and knows no protocol.
//!
//! ```text
//! main thread         start, wait, stop                                this file
//! signals             waits for SIGTERM and SIGINT
//! acceptor            takes connections, gives them to shards          accept.rs
//! shard cores         connections                                      shard_core.rs, ring.rs
//! pipeline core       orders, logs, applies                            pipeline_side.rs, pipeline_core.rs, disk.rs
//! core                both of these, on small machines                 pipeline_side.rs, shard_core.rs
//! log-keeper          files made ahead                                 keeper.rs
//! watermark           how far the log is durable                       marks.rs
//! background          snapshots, purging                               background.rs
//! log-writer          lines of the log                                 log_queue.rs
//! observer            what takes opening files to know                 observer.rs
//! ```
//!
//! | file | what is in it |
//! |---|---|
//! | `preflight.rs` | what the kernel must allow before anything starts |
//! | `cores.rs` | which CPU is which core |
//! | `directories.rs` | the data directories: made, checked, locked |
//! | `recover.rs` | files into the state to go on from |
//! | `mesh.rs` | the channels between cores |
//! | `book.rs` | the file of one log: mapped (`map.rs`) or direct (`zeroed.rs`) |
//! | `unbuffered.rs`, `overlapped.rs` | a snapshot's file while it is written: by its thread, or by glommio |
//! | `words.rs` | four-letter words: answers gathered from all cores |
//! | `counts.rs` | a shard's counts into the metrics |
//! | `settings.rs` | what each part is told, out of the configuration |
//! | `turns.rs` | how a core waits between two turns |
//! | `clock.rs` | where `Now` comes from |
//! | `sys.rs` | system calls behind safe faces |
//! | `logging.rs`, `log_queue.rs` | log lines; how they leave |
//! | `process.rs` | other processes, for the control commands |
//!
//! **Stopping** is a sequence: ports; reading; what is in the pipeline, made durable and answered;
//! the log cut to its end; connections; the watermark.

#![allow(
    clippy::disallowed_methods,
    reason = "the shell is where clocks are read and threads wait"
)]

mod accept;
mod background;
#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
mod book;
mod clock;
mod cores;
mod counts;
mod directories;
mod disk;
mod ensemble_side;
mod keeper;
mod links;
mod log_queue;
pub mod logging;
mod map;
mod marks;
mod member;
mod mesh;
mod observer;
mod overlapped;
mod pipeline_core;
mod pipeline_side;
mod preflight;
pub mod process;
mod recover;
mod ring;
#[cfg(test)]
mod scratch;
mod settings;
mod shard_core;
mod sys;
mod turns;
mod unbuffered;
mod words;
mod zeroed;

use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel;
use tracing::{debug, error, info, warn};

use accept::{Acceptor, Admission, Arrivals, BindError};
use background::{Background, Said};
use clock::Clock;
use cores::Layout;
use directories::{Directories, DirectoryError};
use disk::{LogError, LogParts};
use ensemble_side::EnsembleParts;
use keeper::Keeper;
use links::LinksParts;
use marks::Marks;
use mesh::Mesh;
use observer::Observer;
use pipeline_core::{PipelineCommand, PipelineInbox, PipelineParts};
use preflight::Allowed;
use recover::{RecoverError, RecoverOptions, Recovered};
use ring::Ring;
use shard_core::{ShardCommand, ShardParts};
use words::Words;

use crate::admin;
use crate::config::Config;
use crate::exchange::ShardId;
use crate::metrics::{Counter, Metrics, Summary};
use crate::pipeline::{AuditResult, Audited, Pipeline};

/// Why a server ended other than by being asked to; each with the exit code it has in ZooKeeper.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The data directory is missing, or not ours to use.
    #[error("{0}")]
    DataDir(String),
    #[error("{0}")]
    Bind(String),
    #[error("{0}")]
    Admin(String),
    /// The log could not be written, or the snapshot without which no log may begin.
    #[error("{0}")]
    Storage(String),
    #[error("{0}")]
    Other(String),
}

impl RunError {
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            RunError::DataDir(_) => 3,
            RunError::Admin(_) => 4,
            RunError::Storage(_) => 10,
            RunError::Bind(_) | RunError::Other(_) => 1,
        }
    }

    fn other(error: impl std::fmt::Display) -> RunError {
        RunError::Other(error.to_string())
    }
}

impl From<DirectoryError> for RunError {
    fn from(error: DirectoryError) -> RunError {
        RunError::DataDir(error.to_string())
    }
}

impl From<BindError> for RunError {
    fn from(error: BindError) -> RunError {
        RunError::Bind(error.to_string())
    }
}

impl From<LogError> for RunError {
    fn from(error: LogError) -> RunError {
        RunError::Storage(error.to_string())
    }
}

impl From<RecoverError> for RunError {
    fn from(error: RecoverError) -> RunError {
        RunError::other(error)
    }
}

/// What the other threads tell the main one.
enum Event {
    /// A core cannot go on: the process ends at once, and nothing more is acknowledged.
    Failed(RunError),
    Signal(i32),
    /// All that clients of a shard have asked is at the pipeline.
    Quiesced,
    /// All that was logged is durable and handed out.
    Finished,
    /// A shard has closed its connections.
    Closed,
}

/// How long each stage of stopping may take. What is not done by then is cut short; nothing that
/// was acknowledged depends on it.
const STOP_STAGE: Duration = Duration::from_secs(10);

/// Runs a server until it is asked to end.
pub fn run(config: Config) -> Result<(), RunError> {
    end_on_panic();
    let clock = Clock::start();
    let allowed = preflight::check().map_err(RunError::other)?;
    // Before the first thread, so that all of them inherit it.
    sys::block_stop_signals().map_err(RunError::other)?;
    sys::catch_bus_errors().map_err(RunError::other)?;
    let (events, inbox) = channel::unbounded();
    let audit = |operation, result| {
        if config.audit {
            logging::audit(&Audited::of_server(&settings::server_user(), operation, result));
        }
    };
    let begin = || {
        let directories = Directories::open(
            &config.data_dir,
            &config.data_log_dir,
            config.snapshots.create_directories,
        )?;
        let recovered = recover::recover(&directories, settings::recover(&config))?;
        Server::start(&config, allowed, clock, directories, recovered, &events)
    };
    let mut server = begin().inspect_err(|_| audit("serverStart", AuditResult::Failure))?;
    audit("serverStart", AuditResult::Success);
    wait_for_signals(&events)?;
    let stopped = server.serve(&inbox);
    audit("serverStop", AuditResult::Invoked);
    // Once more would be too late: a core that is stuck must not keep the process.
    stopped.inspect_err(|fault| error!(%fault, "stopping at once"))
}

/// Makes the data directories new and empty, whatever was in them. Not while a server runs there.
pub fn begin_anew(data_dir: &Path, data_log_dir: &Path) -> Result<(), RunError> {
    Ok(directories::begin_anew(data_dir, data_log_dir)?)
}

/// Whether this process may make and remove files in a directory.
pub fn may_write(directory: &Path) -> io::Result<()> {
    if !directory.metadata()?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    sys::may_write(directory)
}

/// A bug on one core ends the process, not the core: a server with a dead core would go on
/// looking alive.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        logging::report_panic(panic);
        std::process::abort();
    }));
}

/// All threads of a server that runs.
struct Server {
    acceptor: Acceptor,
    shards: mesh::Commander<ShardCommand>,
    pipeline: PipelineInbox,
    background: Background,
    keeper: Arc<Keeper>,
    marks: Arc<Marks>,
    threads: Vec<JoinHandle<()>>,
    events: channel::Sender<Event>,
}

impl Server {
    fn start(
        config: &Config,
        allowed: Allowed,
        clock: Clock,
        directories: Directories,
        recovered: Recovered,
        events: &channel::Sender<Event>,
    ) -> Result<Server, RunError> {
        let layout = if allowed.many_rings {
            Layout::of_this_machine(settings::cores(config)).map_err(RunError::other)?
        } else {
            Layout::one_core()
        };
        let shards = layout.shards.len();
        info!(
            shards,
            is_shared = layout.shared,
            pipeline_cpu = layout.pipeline,
            shard_cpus = ?layout.shards.iter().flatten().collect::<Vec<_>>(),
            "cores"
        );
        let mut listeners = Vec::new();
        if let Some(endpoint) = config.listener {
            listeners.push(accept::listen(endpoint, config.connections.listen_backlog)?);
        }
        if config.secure_listener.is_some() {
            warn!("secureClientPort is set, and this version does not serve TLS");
        }
        let listeners: Arc<[TcpListener]> = listeners.into();
        let arrivals = Arrivals::new(clock, &listeners);
        let Recovered { state, snapshot, watermark, recent, standing, snapshot_took, replay_took } =
            recovered;
        let is_doubted = standing.as_ref().is_some_and(|standing| standing.doubt.is_some());
        let (last, replayed) = (state.last, state.replayed);
        let mismatches = state.mismatches + state.doubtful_digests;
        let providers = Arc::new(settings::providers(config).map_err(RunError::other)?);
        let pipeline_settings = settings::pipeline(config, shards, Arc::clone(&providers));
        let mut pipeline = match (&config.ensemble, &standing) {
            (Some(ensemble), Some(standing)) => {
                let start = settings::member(config, ensemble, standing, recent, last);
                Pipeline::member(clock.now(), pipeline_settings, state, start)
            }
            _ => Pipeline::new(clock.now(), pipeline_settings, state),
        };
        let snapshots = settings::snapshots(config);
        // Nothing refuses the start any more.
        let directories = &Arc::new(directories.made()?);
        // ZooKeeper opens no directory with a log and without a snapshot. A member that has lost its
        // history must not write that it has an empty one.
        let mut sound = snapshot.or(Some(last));
        if snapshot.is_none() && !is_doubted {
            let job = pipeline.snapshot_job();
            background::write_snapshot(directories.snapshots(), snapshots, &job, None)
                .map_err(|error| RunError::Storage(error.to_string()))?;
            sound = Some(job.zxid);
        }
        // It has said what it was for: the database is there.
        if !is_doubted && let Err(error) = member::remove_initialize(directories) {
            warn!(%error, "the file initialize is not removed");
        }
        let log_options = settings::log(config, directories, layout.shared);
        let keeper = Arc::new(Keeper::start(
            directories.logs(),
            log_options.journal.step_bytes,
            log_options.journal.back_end,
        )?);
        let marks = Marks::start(&directories.watermarks());
        let marks = Arc::new(marks.map_err(|source| {
            let path = directories.watermark().to_path_buf();
            RunError::from(LogError::Begin { path, source })
        })?);
        let mesh = Mesh::new(shards);
        let inbox = PipelineInbox::new(mesh.pipeline_bell());
        let admission = Admission::new(settings::accept(config), shards);
        // One recorder for each thread that counts: the shards, and these.
        let (metrics, mut recorders) = Metrics::new(shards + 4);
        let [for_pipeline, for_log, for_snapshots, for_acceptor] =
            [(); 4].map(|()| recorders.pop().expect("as many as were asked for"));
        for_log.record(Summary::StartupSnapLoadTime, whole_ms(snapshot_took));
        for_log.record(Summary::StartupTxnsLoadTime, whole_ms(replay_took));
        for_log.record(Summary::StartupTxnsLoaded, replayed);
        for_log.add(Counter::DigestMismatchesCount, mismatches);
        for_log.record(Summary::DbInitTime, whole_ms(snapshot_took + replay_took));
        let background =
            Background::start(Arc::clone(directories), snapshots, sound, for_snapshots, {
                let inbox = inbox.clone();
                move |said| {
                    inbox.tell(match said {
                        Said::Ended => PipelineCommand::SnapshotEnded,
                        Said::Again => PipelineCommand::Snapshot,
                    });
                }
            })
            .map_err(RunError::other)?;
        let words = Arc::new(Words {
            whitelist: settings::whitelist(config),
            shards: mesh.commander(),
            pipeline: inbox.clone(),
            metrics,
            clock,
            observer: Observer::start(Arc::clone(directories)).map_err(RunError::other)?,
            configuration: settings::shown(config, directories),
            version: admin::version(settings::BUILT_ON),
            trace_mask: AtomicI64::new(admin::TRACE_MASK_DEFAULT),
            answer_bytes_max: settings::answer_bytes_max(config),
            aside: words::Aside::default(),
        });
        let tick = settings::tick(config);
        let allowances = settings::allowances(config, shards);
        let mut parts: Vec<ShardParts> = Vec::new();
        for (index, recorder) in recorders.into_iter().enumerate() {
            let id = ShardId(u16::try_from(index).expect("there are fewer shards than 65536"));
            parts.push(ShardParts {
                id,
                settings: settings::shard(
                    config,
                    shards,
                    Arc::clone(&providers),
                    allowances.clone(),
                ),
                reader: pipeline.reader(),
                end: mesh.shard_end(id),
                arrivals: Arc::clone(&arrivals),
                clock,
                tick,
                words: Arc::clone(&words),
                recorder,
                spin: settings::spin(config),
                ring: settings::ring(config),
            });
        }
        if 0 < replayed && config.ensemble.is_none() {
            // The next start need not replay them again. ZooKeeper takes one at every start.
            inbox.tell(PipelineCommand::Snapshot);
        }
        let ensemble = config.ensemble.as_ref().map(|ensemble| EnsembleParts {
            links: LinksParts {
                me: settings::server_id(config),
                ensemble: Arc::new(ensemble.members.clone()),
                options: settings::links(config, ensemble),
                bell: inbox.bell(),
                is_buffered: false,
            },
            directories: Arc::clone(directories),
            recover: RecoverOptions { is_live: true, ..settings::recover(config) },
            snapshot_size_factor: ensemble.snapshot_size_factor,
            derived: standing.map_or(Vec::new(), |standing| standing.derived),
        });
        let pipeline_parts = PipelineParts {
            ensemble,
            pipeline,
            log: LogParts {
                options: log_options,
                keeper: Arc::clone(&keeper),
                marks: Arc::clone(&marks),
                last,
                mark: watermark,
                recorder: for_log,
            },
            end: mesh.pipeline_end(),
            inbox: inbox.clone(),
            jobs: background.jobs(),
            clock,
            tick,
            recorder: for_pipeline,
        };
        let threads = start_cores(&layout, parts, pipeline_parts, events)?;
        // Clients come in when all cores are there to serve them.
        let acceptor = Acceptor::start(listeners, arrivals, admission, for_acceptor, {
            let shards = mesh.commander();
            move |shard, accepted| shards.tell(shard, ShardCommand::Accepted(accepted))
        })
        .map_err(RunError::other)?;
        info!(
            target: "ringkeeper::shell",
            "PrepRequestProcessor (sid:0) started, reconfigEnabled={}", config.auth.reconfig
        );
        let (shards, events) = (mesh.commander(), events.clone());
        let pipeline = inbox;
        Ok(Server { acceptor, shards, pipeline, background, keeper, marks, threads, events })
    }

    /// Waits until there is a reason to stop, and stops.
    fn serve(&mut self, inbox: &channel::Receiver<Event>) -> Result<(), RunError> {
        loop {
            match inbox.recv().map_err(RunError::other)? {
                Event::Quiesced | Event::Finished | Event::Closed => {}
                Event::Failed(fault) => return Err(fault),
                Event::Signal(signal) => {
                    info!(signal, "stopping");
                    break;
                }
            }
        }
        self.stop(inbox)
    }

    fn stop(&mut self, inbox: &channel::Receiver<Event>) -> Result<(), RunError> {
        self.acceptor.stop();
        let count = self.shards.shards().count();
        for shard in self.shards.shards() {
            let events = self.events.clone();
            let done = Box::new(move || drop(events.send(Event::Quiesced)));
            self.shards.tell(shard, ShardCommand::Quiesce(done));
        }
        await_events(inbox, count, |event| matches!(event, Event::Quiesced))?;
        self.pipeline.tell(PipelineCommand::Finish);
        await_events(inbox, 1, |event| matches!(event, Event::Finished))?;
        for shard in self.shards.shards() {
            self.shards.tell(shard, ShardCommand::Close);
        }
        await_events(inbox, count, |event| matches!(event, Event::Closed))?;
        self.background.stop();
        self.keeper.stop();
        self.marks.stop();
        // Not joined: the end of the process ends one that is stuck.
        self.threads.clear();
        info!("stopped");
        Ok(())
    }
}

fn whole_ms(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

/// Waits for `count` events of a kind, for as long as a stage of stopping may take.
fn await_events(
    inbox: &channel::Receiver<Event>,
    count: usize,
    is_awaited: impl Fn(&Event) -> bool,
) -> Result<(), RunError> {
    let deadline = Instant::now() + STOP_STAGE;
    let mut seen = 0;
    while seen < count {
        match inbox.recv_deadline(deadline) {
            Ok(event) if is_awaited(&event) => seen += 1,
            Ok(Event::Failed(fault)) => return Err(fault),
            Ok(Event::Signal(_)) => {}
            Ok(Event::Quiesced | Event::Finished | Event::Closed) => {}
            Err(_) => {
                warn!("a core does not answer; stopping without it");
                return Ok(());
            }
        }
    }
    Ok(())
}

/// One thread per core. All of them run when this returns, or none is of use.
fn start_cores(
    layout: &Layout,
    shards: Vec<ShardParts>,
    pipeline: PipelineParts<ShardCommand>,
    events: &channel::Sender<Event>,
) -> Result<Vec<JoinHandle<()>>, RunError> {
    if layout.shared {
        let mut shards = shards;
        let shard = shards.pop().expect("there is a shard");
        assert!(shards.is_empty(), "more shards than one have threads of their own");
        return Ok(vec![start_one_core(layout.pipeline, shard, pipeline, events.clone())?]);
    }
    let first = shards.first().expect("there is a shard");
    let (spin, ring) = (first.spin, first.ring);
    let mut threads = vec![start_pipeline(layout.pipeline, spin, ring, pipeline, events.clone())?];
    for (parts, &cpu) in shards.into_iter().zip(&layout.shards) {
        threads.push(start_shard(cpu, parts, events.clone())?);
    }
    Ok(threads)
}

fn start_pipeline(
    cpu: Option<usize>,
    spin: Duration,
    make_ring: fn() -> io::Result<Ring>,
    parts: PipelineParts<ShardCommand>,
    events: channel::Sender<Event>,
) -> Result<JoinHandle<()>, RunError> {
    start_core("pipeline".to_owned(), move |started| {
        let ring = match ring_here(cpu, make_ring) {
            Ok(ring) => ring,
            Err(error) => return started(Err(error)),
        };
        started(Ok(()));
        let _ = events.send(match pipeline_side::run(parts, ring, spin) {
            Ok(outcome) => pipeline_ended(outcome),
            Err(error) => ring_failed("pipeline", &error),
        });
    })
}

fn pipeline_ended(outcome: Result<(), LogError>) -> Event {
    match outcome {
        Ok(()) => Event::Finished,
        Err(fault) => Event::Failed(fault.into()),
    }
}

fn shard_ended(name: &str, outcome: io::Result<()>) -> Event {
    match outcome {
        Ok(()) => Event::Closed,
        Err(error) => ring_failed(name, &error),
    }
}

fn ring_failed(name: &str, error: &io::Error) -> Event {
    Event::Failed(RunError::Other(format!("{name}: its ring: {error}")))
}

/// A ring for this thread, which stays on one CPU if one is named.
fn ring_here(cpu: Option<usize>, make: fn() -> io::Result<Ring>) -> Result<Ring, String> {
    let ring = cpu.map_or(Ok(()), sys::pin_to).and_then(|()| make());
    let ring = ring.map_err(|error| match error.raw_os_error() {
        Some(libc::ENOMEM) => format!(
            "{error}: its ring may count as locked memory, of which all processes of a user have \
             so much together (`ulimit -l`)"
        ),
        _ => error.to_string(),
    })?;
    debug!(is_buffered = ring.is_buffered(), "ring");
    Ok(ring)
}

/// The only shard and the pipeline on one thread.
fn start_one_core(
    cpu: Option<usize>,
    shard: ShardParts,
    pipeline: PipelineParts<ShardCommand>,
    events: channel::Sender<Event>,
) -> Result<JoinHandle<()>, RunError> {
    start_core("core".to_owned(), move |started| {
        let ring = match ring_here(cpu, shard.ring) {
            Ok(ring) => ring,
            Err(error) => return started(Err(error)),
        };
        started(Ok(()));
        let finished = {
            let events = events.clone();
            move |outcome| drop(events.send(pipeline_ended(outcome)))
        };
        let outcome = pipeline_side::run_beside(shard, pipeline, ring, finished);
        let _ = events.send(shard_ended("core", outcome));
    })
}

fn start_shard(
    cpu: Option<usize>,
    parts: ShardParts,
    events: channel::Sender<Event>,
) -> Result<JoinHandle<()>, RunError> {
    let name = format!("shard-{}", parts.id.0);
    start_core(name.clone(), move |started| {
        let ring = match ring_here(cpu, parts.ring) {
            Ok(ring) => ring,
            Err(error) => return started(Err(error)),
        };
        started(Ok(()));
        let _ = events.send(shard_ended(&name, shard_core::run(parts, ring, &mut ())));
    })
}

/// How a core says that it runs, or why it does not.
type Started = Box<dyn FnOnce(Result<(), String>)>;

/// Starts a core's thread and waits until it runs or has failed.
fn start_core(
    name: String,
    main: impl FnOnce(Started) + Send + 'static,
) -> Result<JoinHandle<()>, RunError> {
    let cannot = |error: &dyn std::fmt::Display| {
        RunError::Other(format!("the thread {name} cannot start: {error}"))
    };
    let (told, hear) = channel::bounded(1);
    let started = move |result| drop(told.send(result));
    let thread = thread::Builder::new()
        .name(name.clone())
        .spawn(move || main(Box::new(started)))
        .map_err(|error| cannot(&error))?;
    match hear.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(cannot(&error)),
        Err(_) => Err(cannot(&"its thread has ended")),
    }
}

/// For so long after the first signal, more of them mean no more than the first: `timeout`, shells
/// and service managers signal a process and its group, so that it hears of it twice.
const SIGNAL_ECHO: Duration = Duration::from_secs(3);

/// The first signal stops the server in order, a later one at once.
fn wait_for_signals(events: &channel::Sender<Event>) -> Result<(), RunError> {
    let events = events.clone();
    let wait = move || -> io::Result<()> {
        let first = sys::wait_stop_signal()?;
        let _ = events.send(Event::Signal(first));
        let echo_until = Instant::now() + SIGNAL_ECHO;
        loop {
            let signal = sys::wait_stop_signal()?;
            if echo_until <= Instant::now() {
                warn!(signal, "stopping at once; what was acknowledged is durable");
                logging::drain();
                sys::exit_at_once(128 + signal);
            }
        }
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if let Err(error) = wait() {
                error!(%error, "signals cannot be waited for");
            }
        })
        .map_err(RunError::other)?;
    Ok(())
}
