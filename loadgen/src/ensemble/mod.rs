//! A load on an ensemble of servers that we start, while some of them are killed, stopped or
//! paused: how long no write is acknowledged, how soon a server is back, what becomes of sessions,
//! and what each server costs.
//!
//! ```text
//! start all ── preload ── (baseline) ── load + schedule + sessions + writers beside ── end all
//! ```
//!
//! `servers` are the processes, `schedule` says when what happens to them and `conductor` makes it
//! happen, `gaps` finds the gaps in acknowledged writes, and `report` puts all together.

mod conductor;
pub mod gaps;
pub mod report;
pub mod schedule;
pub mod servers;

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::client::Connection;
use crate::driver::{Crew, Moment, Pace, Plan, Reconnect, drive, split};
use crate::fill::Fill;
use crate::sizes::Sizes;
use crate::verify::Verify;
use crate::workload::{Achieved, Asked, Heard, Mix, Next, Nothing, Op, Source, Workload};
use crate::{Fault, Load, Progress, Ran, Stage, hold, resolve, sys};
use conductor::{Conductor, Word};
use report::{EnsembleReport, Measured, Told, Versus};
use schedule::{Schedule, Whom};
use servers::{Makeup, Mode, Servers};

/// How long the servers may take to be at one zxid after they were filled.
const EQUAL_WITHIN: Duration = Duration::from_secs(120);
/// Creates in one request, requests in flight and connections while they are filled.
const PRELOAD_MULTI: u64 = 100;
const PRELOAD_DEPTH: usize = 4;
const PRELOAD_CONNECTIONS: usize = 8;
const PRELOAD_ROOT: &str = "/preload";
const BESIDE_CONNECTIONS: usize = 8;

/// An ensemble and what is done with it, as a user asks for it.
#[derive(Clone, Debug)]
pub struct Ensemble {
    pub makeup: Makeup,
    pub subject: Subject,
    pub on: On,
    pub schedule: Option<Schedule>,
    /// How many znodes are there before the load.
    pub preload: u64,
    /// How many sessions, beside those of the load, are cut and reconnect when something happens to
    /// the leader.
    pub storm: usize,
    /// So many sets a second are made beside the load.
    pub beside: Option<f64>,
    pub beside_on: On,
    /// Whether the load is measured first without observers, schedule, sessions and writers.
    pub baseline: bool,
}

/// The load.
#[derive(Clone, Debug)]
pub enum Subject {
    Load(Load),
    Verify(Verify),
}

/// On which servers connections begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum On {
    All,
    Leader,
    /// On one of them.
    Follower,
    Followers,
    /// On one of them.
    Observer,
    Observers,
}

const ON: [(&str, On); 6] = [
    ("all", On::All),
    ("leader", On::Leader),
    ("follower", On::Follower),
    ("followers", On::Followers),
    ("observer", On::Observer),
    ("observers", On::Observers),
];

impl On {
    /// What those servers are, and whether all of them are meant. None: whatever they are.
    fn mode(self) -> Option<(Mode, bool)> {
        match self {
            On::All => None,
            On::Leader => Some((Mode::Leader, true)),
            On::Follower => Some((Mode::Follower, false)),
            On::Followers => Some((Mode::Follower, true)),
            On::Observer => Some((Mode::Observer, false)),
            On::Observers => Some((Mode::Observer, true)),
        }
    }

    fn is_of(self, mode: Mode) -> bool {
        self.mode().is_some_and(|(own, _)| own == mode)
    }
}

impl FromStr for On {
    type Err = String;

    fn from_str(text: &str) -> Result<On, String> {
        let found = ON.into_iter().find(|(name, _)| *name == text);
        let names = ON.map(|(name, _)| name).join(", ");
        found.map(|(_, on)| on).ok_or_else(|| format!("'{text}' is not one of {names}"))
    }
}

impl std::fmt::Display for On {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = ON.into_iter().find(|(_, on)| on == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

impl Subject {
    fn load(&self) -> &Load {
        match self {
            Subject::Load(load) => load,
            Subject::Verify(verify) => &verify.load,
        }
    }

    /// How long it runs once it has begun; a check has no warm-up of its own.
    fn lasts(&self) -> Duration {
        match self {
            Subject::Load(load) => load.duration,
            Subject::Verify(verify) => verify.load.warmup + verify.load.duration,
        }
    }

    /// The same on these servers. What it creates stays, for the servers' data goes.
    fn on(&self, servers: &[String]) -> Subject {
        let on = |load: &Load| Load { servers: servers.to_vec(), keep: true, ..load.clone() };
        match self {
            Subject::Load(load) => Subject::Load(on(load)),
            Subject::Verify(verify) => {
                Subject::Verify(Verify { load: on(&verify.load), ..verify.clone() })
            }
        }
    }

    fn run(
        &self,
        stage: &Stage,
        at: &mut dyn FnMut(Moment) -> Result<(), Fault>,
    ) -> Result<Ran<Told>, Fault> {
        Ok(match self {
            Subject::Load(load) => load.run_on(stage, None, at)?.map(|it| Told::Load(Box::new(it))),
            Subject::Verify(verify) => {
                verify.run_on(stage, None, at)?.map(|it| Told::Verify(Box::new(it)))
            }
        })
    }
}

impl Ensemble {
    /// What is wrong with it, if anything.
    pub fn check(&self) -> Result<(), Fault> {
        self.makeup.check()?;
        self.subject.load().check()?;
        if let Some(schedule) = &self.schedule {
            schedule.check(self.subject.lasts())?;
        }
        let events = self.schedule.iter().flat_map(|schedule| &schedule.events);
        let mut befalls_leader = events.clone().filter(|event| event.whom == Whom::Leader);
        let mut befalls_observer = events.filter(|event| event.whom == Whom::Observer);
        let has_observer = !self.makeup.observers.is_empty();
        let on = |mode| [self.on, self.beside_on].into_iter().any(|on| on.is_of(mode));
        let needs_observer = on(Mode::Observer) || befalls_observer.next().is_some();
        hold(&[
            (
                self.storm == 0 || befalls_leader.next().is_some(),
                "sessions reconnect when something happens to the leader: --event kill-leader",
            ),
            (has_observer || !needs_observer, "an observer is needed: --observers"),
            (1 < self.makeup.voters.len() || !on(Mode::Follower), "a follower needs two that vote"),
            (
                self.schedule.is_none() || 2 < self.makeup.voters.len(),
                "no write is done while one of fewer than three that vote is down",
            ),
            (
                !self.baseline || !self.on.is_of(Mode::Observer),
                "without observers there is no load on them: --baseline",
            ),
            (self.beside.is_none_or(|rate| 0.0 < rate && rate.is_finite()), "a rate above zero"),
        ])
    }

    /// Starts the servers, makes the load, and ends them. `said` is told what is done.
    pub fn run(
        &self,
        said: &mut dyn FnMut(&str),
        progress: Progress<'_>,
    ) -> Result<EnsembleReport, Fault> {
        self.check()?;
        let mut servers = Servers::new(&self.makeup)?;
        let is_in_memory = sys::is_in_memory(servers.folder()).unwrap_or(false);
        servers.start_all(!self.baseline)?;
        self.fill(&mut servers, said)?;
        let baseline = match self.baseline {
            true => {
                said("baseline");
                let measured = self.alone().measure(&mut servers, said, progress)?;
                servers.start_all(true)?;
                Some(measured)
            }
            false => None,
        };
        let measured = self.measure(&mut servers, said, progress)?;
        servers.end();
        Ok(EnsembleReport::new(self, measured, baseline, is_in_memory))
    }

    /// The same without all that may happen beside the load.
    fn alone(&self) -> Ensemble {
        Ensemble { schedule: None, storm: 0, beside: None, baseline: false, ..self.clone() }
    }

    /// The same on these servers and on others, alternating.
    pub fn run_versus(
        &self,
        other: &Makeup,
        pairs: usize,
        said: &mut dyn FnMut(&str),
        progress: Progress<'_>,
    ) -> Result<Versus, Fault> {
        hold(&[(0 < pairs, "one pair at least")])?;
        let other = Ensemble { makeup: other.clone(), ..self.clone() };
        self.check()?;
        other.check()?;
        let mut reports = Vec::new();
        for pair in 1..=pairs {
            for side in [self, &other] {
                said(&format!("pair {pair}: {}", Makeup::names(&side.makeup.voters)));
                reports.push(side.run(said, progress)?);
            }
        }
        Ok(Versus::new(self, &other.makeup, reports))
    }

    /// Starts the servers and says where they are, until we are interrupted.
    pub fn wait(&self, said: &mut dyn FnMut(&str)) -> Result<(), Fault> {
        let mut servers = Servers::new(&self.makeup)?;
        servers.start_all(true)?;
        self.fill(&mut servers, said)?;
        for server in servers.iter() {
            let place = server.place;
            let mode = server.mode().map(|mode| mode.to_string()).unwrap_or_default();
            let pid = server.pid().unwrap_or(0);
            said(&format!(
                "server {} ({}): {}, {mode}, process {pid}",
                place.id, place.kind, place.client
            ));
        }
        said(&format!("data in {}; interrupt ends them", servers.folder().display()));
        loop {
            match servers::pause() {
                Err(Fault::Interrupted) => break,
                other => other?,
            }
            servers.none_has_ended()?;
        }
        servers.end();
        Ok(())
    }

    fn fill(&self, servers: &mut Servers, said: &mut dyn FnMut(&str)) -> Result<(), Fault> {
        if self.preload == 0 {
            return Ok(());
        }
        said(&format!("{} znodes are created", self.preload));
        let fill = Fill {
            servers: servers.running().map(|server| server.place.client.to_string()).collect(),
            znodes: self.preload,
            value_bytes: Sizes::Fixed(100),
            path_length: 33,
            fan_out: 1000,
            levels: 1,
            multi: PRELOAD_MULTI,
            connections: PRELOAD_CONNECTIONS,
            depth: PRELOAD_DEPTH,
            threads: 1,
            root: PRELOAD_ROOT.to_owned(),
            seed: 1,
        };
        let report = fill.run(None, &mut |_, _| {})?;
        if !report.summary.is_clean() {
            let what = format!("{} was not clean:\n{}", fill.command(), report.summary);
            return Err(Fault::SetUp { what });
        }
        servers.wait_equal(EQUAL_WITHIN)
    }

    /// The places of those that connections begin on, among those that run.
    fn homes(servers: &Servers, on: On) -> Result<Vec<usize>, Fault> {
        let Some((mode, is_all)) = on.mode() else { return Ok(Vec::new()) };
        let places = servers.running().enumerate();
        let homes: Vec<_> = places
            .filter(|(_, server)| server.mode() == Some(mode))
            .map(|(place, _)| place)
            .take(if is_all { usize::MAX } else { 1 })
            .collect();
        match homes.is_empty() {
            true => Err(Fault::SetUp { what: format!("the ensemble has no {mode}") }),
            false => Ok(homes),
        }
    }

    /// Makes the load once, with all that is to happen meanwhile.
    fn measure(
        &self,
        servers: &mut Servers,
        said: &mut dyn FnMut(&str),
        progress: Progress<'_>,
    ) -> Result<Measured, Fault> {
        servers.wait_all(servers::SERVE_WITHIN)?;
        let addresses: Vec<_> =
            servers.running().map(|server| server.place.client.to_string()).collect();
        let subject = self.subject.on(&addresses);
        let stage = Stage { homes: Ensemble::homes(servers, self.on)?, reconnects: true };
        let beside_homes = Ensemble::homes(servers, self.beside_on)?;
        let cuts = Arc::new(AtomicU64::new(0));
        let is_over = Arc::new(AtomicBool::new(false));
        thread::scope(|scope| {
            let storm = match self.storm {
                0 => None,
                sessions => {
                    let (ready, wait) = mpsc::channel();
                    let (addresses, cuts, is_over) = (&addresses, &cuts, &is_over);
                    let handle = scope.spawn(move || {
                        hold_sessions(
                            sessions,
                            addresses,
                            subject_timeout(self),
                            cuts,
                            is_over,
                            &ready,
                        )
                    });
                    // An end without a word has its reason with the thread.
                    let _ = wait.recv();
                    Some(handle)
                }
            };
            let beside = self.beside.map(|rate| {
                let (addresses, is_over) = (&addresses, &is_over);
                scope.spawn(move || {
                    write_beside(rate, addresses, beside_homes, self.subject.load(), is_over)
                })
            });
            let (to_conductor, words) = mpsc::channel();
            let main =
                scope.spawn(move || subject.run(&stage, &mut |moment| tell(&to_conductor, moment)));
            let conductor = Conductor::new(servers, words, Arc::clone(&cuts), said, progress);
            let conducted = conductor.conduct(self.schedule.as_ref(), self.subject.lasts());
            let ran = main.join().expect("a thread that panics ends the process");
            is_over.store(true, Ordering::Relaxed);
            let join = |handle: thread::ScopedJoinHandle<'_, Result<Ran<()>, Fault>>| {
                handle.join().expect("a thread that panics ends the process")
            };
            let storm = storm.map(join).transpose();
            let beside = beside.map(join).transpose();
            // The load's own fault says more than that its servers were left alone.
            let ran = match (ran, &conducted) {
                (Err(Fault::GivenUp), Err(_)) | (Ok(_), Err(_)) => None,
                (ran, _) => Some(ran?),
            };
            let conducted = conducted?;
            let ran = ran.expect("a load that was conducted to its end has run");
            Ok(Measured { ran, conducted, storm: storm?, beside: beside? })
        })
    }
}

fn subject_timeout(ensemble: &Ensemble) -> i32 {
    ensemble.subject.load().session_timeout_ms
}

/// Passes a moment of the load on to the thread that has the servers.
fn tell(to_conductor: &Sender<Word>, moment: Moment) -> Result<(), Fault> {
    let gone = |_| Fault::GivenUp;
    match moment {
        Moment::Unconnected => Ok(()),
        Moment::Begin => to_conductor.send(Word::Begin(Instant::now())).map_err(gone),
        Moment::Second { elapsed, replies } => {
            to_conductor.send(Word::Second { elapsed, replies }).map_err(gone)
        }
        Moment::End => to_conductor.send(Word::End(Instant::now())).map_err(gone),
        Moment::Held => {
            let (done, wait) = mpsc::channel();
            to_conductor.send(Word::Held(done)).map_err(gone)?;
            wait.recv().map_err(|_| Fault::GivenUp)
        }
    }
}

/// A source that asks until it is told that all is over.
struct Until<S> {
    source: S,
    is_over: Arc<AtomicBool>,
}

impl<S: Source> Source for Until<S> {
    fn ask(&mut self, connection: usize, due_ns: u64, into: &mut Connection<Asked>) -> Next {
        self.source.ask(connection, due_ns, into)
    }

    fn on_reply(&mut self, heard: &Heard<'_>, asked: &Asked, achieved: &mut Vec<Achieved>) {
        self.source.on_reply(heard, asked, achieved);
    }

    fn on_lost(&mut self, connection: usize) {
        self.source.on_lost(connection);
    }

    fn is_done(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

/// Sessions that only live, until all is over. `ready` is told when all are there.
fn hold_sessions(
    sessions: usize,
    addresses: &[String],
    session_timeout_ms: i32,
    cuts: &Arc<AtomicU64>,
    is_over: &Arc<AtomicBool>,
    ready: &Sender<()>,
) -> Result<Ran<()>, Fault> {
    let plan = Plan {
        pace: Pace::Idle,
        reconnect: Some(Reconnect { drop_every: None, seed: 1 }),
        cuts: Some(Arc::clone(cuts)),
        ..Plan::of_list(resolve(addresses)?, 1, session_timeout_ms)
    };
    let crew = |connections| Crew {
        connections,
        source: Until { source: Nothing, is_over: Arc::clone(is_over) },
    };
    let crews = split(sessions, 1).into_iter().map(crew).collect();
    let driven = drive(&plan, crews, &mut |moment| {
        if moment == Moment::Begin {
            // Nobody waits any more once the run has failed.
            let _ = ready.send(());
        }
        Ok(())
    })?;
    Ok(Ran::new((), driven))
}

/// Sets at a fixed rate, until all is over.
fn write_beside(
    rate: f64,
    addresses: &[String],
    homes: Vec<usize>,
    main: &Load,
    is_over: &Arc<AtomicBool>,
) -> Result<Ran<()>, Fault> {
    let load = Load {
        mix: Mix::only(Op::Set),
        connections: BESIDE_CONNECTIONS,
        servers: addresses.to_vec(),
        root: format!("{}-beside", main.root),
        ..Load::default()
    };
    let servers = resolve(addresses)?;
    let shape = load.shape(1);
    load.set_up(&servers, &shape, false)?;
    let connections: Vec<_> = (0..BESIDE_CONNECTIONS).collect();
    let source = Workload::new(&shape, &connections);
    let plan = Plan {
        homes,
        pace: Pace::Open { per_second: rate },
        reconnect: Some(Reconnect { drop_every: None, seed: 1 }),
        ..Plan::of_list(servers, load.depth, main.session_timeout_ms)
    };
    let source = Until { source, is_over: Arc::clone(is_over) };
    let driven = drive(&plan, vec![Crew { connections, source }], &mut |_| Ok(()))?;
    Ok(Ran::new((), driven))
}
