//! A load generator for any server that speaks the ZooKeeper client protocol: a `Load` in, a
//! `Report` out.
//!
//! From the ground up: `sys` (epoll), `client` (one connection), `keys`, `paths` and `sizes`
//! (which znode, where it is, how large it is), `workload` (what is asked), `driver` (connections
//! over threads, pace, time), `process` (what a server costs), `report` (what was measured), and
//! the runs that are more than one load: `fill`, `idle`, `start_time`, `compare`, `ensemble`.
#![allow(clippy::disallowed_methods, reason = "measuring time is what this program is for")]

pub mod client;
pub mod compare;
pub mod driver;
pub mod echo;
pub mod ensemble;
pub mod fill;
pub mod idle;
pub mod keys;
pub mod limits;
pub mod paths;
pub mod plot;
pub mod process;
pub mod recipes;
pub mod report;
pub mod ring;
pub mod scene;
pub mod side;
pub mod sizes;
pub mod start_time;
pub mod storm;
pub mod sys;
pub mod verify;
pub mod watch;
pub mod workload;

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::process::ExitStatus;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use client::{Lost, Session};
use driver::{Crew, Driven, Moment, Pace, Plan, Reconnect, Span, drive, split};
use keys::Keys;
use paths::{LEVELS_MAX, Paths};
use process::Usage;
use report::{OwnCost, Report, ServerCost, Summary, code_name};
use sizes::Sizes;
use workload::{Created, Deletes, Listed, Mix, Op, Shape, Task, Workload, created_parent};

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("no address for {0}: give HOST:PORT")]
    Address(String),
    #[error("{0}")]
    Load(String),
    #[error("{server}: {source}")]
    Connect { server: SocketAddr, source: Lost },
    #[error("{sessions} sessions were not made within {within:?}")]
    NoSession { sessions: usize, within: Duration },
    #[error(
        "{connections} connections need more open files than the {allowed} allowed (ulimit -n)"
    )]
    OpenFiles { connections: usize, allowed: u64 },
    #[error("limit on open files: {0}")]
    Open(io::Error),
    #[error("epoll: {0}")]
    Poll(io::Error),
    #[error("{what}: {source}")]
    Process { what: String, source: io::Error },
    #[error("'{command}' ended before it answered: {status}")]
    EndedEarly { command: String, status: ExitStatus },
    #[error("{server}: something listens there already")]
    InUse { server: SocketAddr },
    #[error("{server}: no answer within {within:?}")]
    NoAnswer { server: SocketAddr, within: Duration },
    #[error("setting up: {what}")]
    SetUp { what: String },
    #[error("setting up: {requests} requests unanswered: {reason}")]
    Unanswered { requests: u64, reason: String },
    #[error("interrupted")]
    Interrupted,
    /// Another thread has the reason.
    #[error("given up")]
    GivenUp,
}

/// A load, as a user asks for it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Load {
    /// `HOST:PORT`; connections go to them in turn.
    pub servers: Vec<String>,
    pub mix: Mix,
    pub connections: usize,
    /// Requests in flight per connection.
    pub depth: usize,
    pub threads: usize,
    pub value_bytes: Sizes,
    pub znodes: u64,
    /// Children per parent.
    pub fan_out: u64,
    /// Of parents.
    pub levels: u32,
    pub keys: Keys,
    /// How many znodes a multi sets.
    pub multi_size: usize,
    #[serde(serialize_with = "report::as_span")]
    pub warmup: Duration,
    #[serde(serialize_with = "report::as_span")]
    pub duration: Duration,
    /// Requests a second over all connections; none: a closed loop.
    pub rate: Option<f64>,
    pub session_timeout_ms: i32,
    /// The znode below which all this happens.
    pub root: String,
    pub seed: u64,
    /// Leave what was created.
    pub keep: bool,
}

impl Default for Load {
    fn default() -> Load {
        Load {
            servers: vec!["127.0.0.1:2181".to_owned()],
            mix: Mix::only(Op::Get),
            connections: 64,
            depth: 16,
            threads: 1,
            value_bytes: Sizes::Fixed(100),
            znodes: 1000,
            fan_out: 100,
            levels: 1,
            keys: Keys::Uniform,
            multi_size: 4,
            warmup: Duration::from_secs(2),
            duration: Duration::from_secs(10),
            rate: None,
            session_timeout_ms: 30_000,
            root: "/loadgen".to_owned(),
            seed: 1,
            keep: false,
        }
    }
}

/// A progress line, once a second: the time since begin, and the replies in this second.
pub type Progress<'a> = &'a mut dyn FnMut(Duration, u64);

/// What is done at the moments of a run.
pub type At<'a> = &'a mut dyn FnMut(Moment) -> Result<(), Fault>;

/// Makes progress lines of the moments of a run.
fn passes_seconds(progress: Progress<'_>) -> impl FnMut(Moment) -> Result<(), Fault> {
    |moment| {
        if let Moment::Second { elapsed, replies } = moment {
            progress(elapsed, replies);
        }
        Ok(())
    }
}

/// How a load takes servers that come and go.
#[derive(Clone, Debug, Default)]
pub struct Stage {
    /// On which of the servers, by their places, connections begin; empty: on all.
    pub homes: Vec<usize>,
    /// Whether connections that are lost come back, with their sessions.
    pub reconnects: bool,
}

/// What came of a run, and what its connections saw of each server.
pub struct Ran<R> {
    pub report: R,
    pub seconds: f64,
    pub tally: driver::Tally,
    pub by_server: Vec<driver::Tally>,
    /// The moment that the tallies' times count from.
    pub start: Instant,
}

impl<R> Ran<R> {
    fn new<S>(report: R, driven: Driven<S>) -> Ran<R> {
        let Driven { tally, by_server, start, seconds, sources: _ } = driven;
        Ran { report, seconds, tally, by_server, start }
    }

    fn map<T>(self, told: impl FnOnce(R) -> T) -> Ran<T> {
        let Ran { report, seconds, tally, by_server, start } = self;
        Ran { report: told(report), seconds, tally, by_server, start }
    }
}

impl Load {
    /// What is wrong with it, if anything.
    pub fn check(&self) -> Result<(), Fault> {
        let claims = [
            (!self.servers.is_empty(), "a server is needed"),
            (0 < self.connections, "one connection at least"),
            (self.connections <= 99_999, "99999 connections at most"),
            (0 < self.depth, "one request in flight at least"),
            (0 < self.threads, "one thread at least"),
            (0 < self.znodes, "one znode at least"),
            (0 < self.fan_out, "one child per parent at least"),
            ((1..=LEVELS_MAX).contains(&self.levels), "1 to 16 levels of parents"),
            (self.znodes <= 999_999 * self.fan_out, "999999 parents at most: more --fan-out"),
            (0 < self.multi_size, "one operation per multi at least"),
            (!self.duration.is_zero(), "a duration above zero"),
            (self.rate.is_none_or(|rate| 0.0 < rate && rate.is_finite()), "a rate above zero"),
            (0 < self.session_timeout_ms, "a session timeout above zero"),
            (
                self.root.starts_with('/') && 1 < self.root.len() && !self.root.ends_with('/'),
                "the root is a path such as /loadgen, and not / itself",
            ),
        ];
        hold(&claims)
    }

    /// Makes the load, and looks at the server process if its pid is given.
    pub fn run(&self, pid: Option<u32>, progress: Progress<'_>) -> Result<Report, Fault> {
        Ok(self.run_on(&Stage::default(), pid, &mut passes_seconds(progress))?.report)
    }

    /// The same where servers come and go.
    pub fn run_on(
        &self,
        stage: &Stage,
        pid: Option<u32>,
        at: At<'_>,
    ) -> Result<Ran<Report>, Fault> {
        self.check()?;
        let servers = resolve(&self.servers)?;
        let run = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let shape = self.shape(run);
        let creates =
            self.mix.ops().any(|op| matches!(op, Op::Create | Op::Ephemeral | Op::Delete));
        let mut costs = Costs::new(pid);
        costs.look_unconnected()?;
        self.set_up(&servers, &shape, creates)?;
        let crews = split(self.connections, self.threads)
            .into_iter()
            .map(|connections| Crew { source: Workload::new(&shape, &connections), connections })
            .collect();
        let plan = Plan {
            homes: stage.homes.clone(),
            pace: self.rate.map_or(Pace::Closed, |per_second| Pace::Open { per_second }),
            span: Span::Timed { warmup: self.warmup, duration: self.duration },
            reconnect: stage.reconnects.then_some(Reconnect { drop_every: None, seed: self.seed }),
            ..Plan::of_list(servers.clone(), self.depth, self.session_timeout_ms)
        };
        let driven = drive(&plan, crews, &mut |moment| {
            costs.look_at(moment)?;
            at(moment)
        })?;
        if creates && !self.keep {
            let created = driven.sources.iter().flat_map(Workload::created).copied().collect();
            self.clean_up(&servers, shape.created_below, created)?;
        }
        let report = Report {
            load: self.clone(),
            summary: Summary::new(&driven.tally, driven.seconds),
            server: costs.server(&driven),
            own: costs.own(&driven),
            fractions: None,
        };
        Ok(Ran::new(report, driven))
    }

    /// What the threads have in common. `run` is a number that no other run has.
    fn shape(&self, run: u128) -> Shape {
        Shape {
            mix: self.mix.clone(),
            keys: self.keys,
            znodes: self.znodes,
            paths: Paths::new(&self.root, self.fan_out, self.levels),
            sizes: self.value_bytes.clone(),
            multi_size: self.multi_size,
            seed: self.seed,
            created_below: format!("{}/created/{run:x}", self.root),
            checks_lengths: true,
        }
    }

    /// Creates the znodes that are read and set, with values of the right size.
    fn set_up(&self, servers: &[SocketAddr], shape: &Shape, creates: bool) -> Result<(), Fault> {
        create_root(servers[0], &self.root)?;
        if creates {
            let server = servers[0];
            let mut session = connect(server)?;
            for connection in 0..self.connections {
                let path = created_parent(&shape.created_below, connection);
                let made = session.create_all(&path);
                accept(made.map_err(|source| Fault::Connect { server, source })?, &path)?;
            }
            session.close();
        }
        let list = |task, end| {
            let crew = |range| Listed::new(task, &shape.paths, &shape.sizes, self.seed, range);
            run_list(servers, ranges(end, self.threads).into_iter().map(crew).collect())
        };
        // The topmost first, for those below need them.
        for level in (1..=self.levels).rev() {
            let parents = shape.paths.parents(self.znodes, level);
            list(Task::Parents { level }, parents)?.tolerating(&[NODE_EXISTS])?;
        }
        let there = list(Task::Znodes { multi: 1 }, self.znodes)?.tolerating(&[NODE_EXISTS])?;
        if there {
            list(Task::Values, self.znodes)?.tolerating(&[])?;
        }
        Ok(())
    }

    /// Deletes what the run has created.
    fn clean_up(
        &self,
        servers: &[SocketAddr],
        created_below: String,
        created: Vec<Created>,
    ) -> Result<(), Fault> {
        let deletes = Deletes { created_below: created_below.clone(), created };
        // What was asked for and not answered may be there or not.
        run_list(servers, vec![deletes])?.tolerating(&[NO_NODE])?;
        let server = servers[0];
        let mut session = connect(server)?;
        let parents = (0..self.connections).map(|number| created_parent(&created_below, number));
        for path in parents.chain([created_below.clone()]) {
            // One that is left, because something in it is, does no harm to the next run.
            let deleted = session.delete(&path);
            let _ = deleted.map_err(|source| Fault::Connect { server, source })?;
        }
        session.close();
        Ok(())
    }
}

/// The first of the claims that does not hold, as what is wrong with a load.
fn hold(claims: &[(bool, &str)]) -> Result<(), Fault> {
    match claims.iter().find(|(holds, _)| !holds) {
        Some((_, claim)) => Err(Fault::Load((*claim).to_owned())),
        None => Ok(()),
    }
}

/// Has this process open as many files as it may; an error where these are too few for so many
/// connections and `others`.
fn make_room_for(connections: usize, others: u64) -> Result<(), Fault> {
    let allowed = sys::raise_open_files().map_err(Fault::Open)?;
    if allowed < connections as u64 + others {
        return Err(Fault::OpenFiles { connections, allowed });
    }
    Ok(())
}

const NODE_EXISTS: i32 = -110;
const NO_NODE: i32 = -101;

/// How the connections are driven that set up and clean up.
const LIST_CONNECTIONS: usize = 16;
const LIST_DEPTH: usize = 32;
const LIST_TIMEOUT_MS: i32 = 30_000;
const SESSION_WITHIN: Duration = Duration::from_secs(30);

/// What came of a list of requests.
struct Listing {
    tally: driver::Tally,
}

impl Listing {
    /// Whether one of these errors came up; any other, or a request without an answer, is a
    /// fault.
    fn tolerating(self, tolerated: &[i32]) -> Result<bool, Fault> {
        let mut any = false;
        for (op, tally) in &self.tally.ops {
            if 0 < tally.malformed {
                let what = format!("{} {} replies of odd length", tally.malformed, op.name());
                return Err(Fault::SetUp { what });
            }
            for (err, count) in &tally.errors {
                if !tolerated.contains(err) {
                    let what = format!("{count} {}s: {}", op.name(), code_name(*err));
                    return Err(Fault::SetUp { what });
                }
                any = true;
            }
        }
        match (self.tally.unanswered, self.tally.dropped.first_key_value()) {
            (0, None) => Ok(any),
            (unanswered, dropped) => {
                let reason = dropped.map_or("no answer in time", |(reason, _)| reason).to_owned();
                Err(Fault::Unanswered { requests: unanswered, reason })
            }
        }
    }
}

/// Runs lists of requests to their end, each on a thread of its own.
fn run_list<S: workload::Source>(
    servers: &[SocketAddr],
    sources: Vec<S>,
) -> Result<Listing, Fault> {
    let crews = split(LIST_CONNECTIONS.max(sources.len()), sources.len())
        .into_iter()
        .zip(sources)
        .map(|(connections, source)| Crew { connections, source })
        .collect();
    let plan = Plan::of_list(servers.to_vec(), LIST_DEPTH, LIST_TIMEOUT_MS);
    let driven = drive(&plan, crews, &mut |_| Ok(()))?;
    Ok(Listing { tally: driven.tally })
}

/// `0..count` in so many ranges of about one length.
fn ranges(count: u64, parts: usize) -> Vec<(u64, u64)> {
    let parts = parts as u64;
    (0..parts).map(|part| (count * part / parts, count * (part + 1) / parts)).collect()
}

fn connect(server: SocketAddr) -> Result<Session, Fault> {
    Session::connect(server, LIST_TIMEOUT_MS, SESSION_WITHIN)
        .map_err(|source| Fault::Connect { server, source })
}

fn create_root(server: SocketAddr, root: &str) -> Result<(), Fault> {
    let mut session = connect(server)?;
    let made = session.create_all(root).map_err(|source| Fault::Connect { server, source })?;
    session.close();
    accept(made, root)
}

fn accept(made: Result<(), i32>, path: &str) -> Result<(), Fault> {
    made.map_err(|err| Fault::SetUp { what: format!("create {path}: {}", code_name(err)) })
}

/// The addresses of `HOST:PORT`s.
pub fn resolve(servers: &[String]) -> Result<Vec<SocketAddr>, Fault> {
    servers
        .iter()
        .map(|server| {
            let mut found = server.to_socket_addrs().ok().into_iter().flatten();
            found.next().ok_or_else(|| Fault::Address(server.clone()))
        })
        .collect()
}

/// What the server and we had used up at each moment of a run.
pub(crate) struct Costs {
    pid: Option<u32>,
    server: [Usage; 3],
    own: [Usage; 3],
    is_seen: [bool; 3],
}

impl Costs {
    pub(crate) fn new(pid: Option<u32>) -> Costs {
        Costs { pid, server: Default::default(), own: Default::default(), is_seen: [false; 3] }
    }

    /// Looks before the run's own first moment, for one that begins with a set-up.
    pub(crate) fn look_unconnected(&mut self) -> Result<(), Fault> {
        self.look(0)
    }

    /// Looks at each moment that counts, and passes the seconds on.
    pub(crate) fn progress(
        &mut self,
        moment: Moment,
        progress: &mut dyn FnMut(Duration, u64),
    ) -> Result<(), Fault> {
        self.look_at(moment)?;
        passes_seconds(progress)(moment)
    }

    fn look_at(&mut self, moment: Moment) -> Result<(), Fault> {
        match moment {
            Moment::Unconnected if self.is_seen[0] => Ok(()),
            Moment::Unconnected => self.look(0),
            Moment::Begin => self.look(1),
            Moment::End => self.look(2),
            Moment::Second { .. } | Moment::Held => Ok(()),
        }
    }

    fn look(&mut self, place: usize) -> Result<(), Fault> {
        self.is_seen[place] = true;
        self.own[place] = Usage::of_self()?;
        if let Some(pid) = self.pid {
            self.server[place] = Usage::of(pid)?;
        }
        Ok(())
    }

    pub(crate) fn server<S>(&self, driven: &Driven<S>) -> Option<ServerCost> {
        let [unconnected, begin, end] = self.server;
        self.pid.map(|pid| ServerCost {
            pid,
            cpu_seconds: end.cpu_seconds - begin.cpu_seconds,
            cpu_us_per_op: per_op_us(begin, end, driven),
            cores: (end.cpu_seconds - begin.cpu_seconds) / driven.seconds,
            resident_bytes_unconnected: unconnected.resident_bytes,
            resident_bytes_begin: begin.resident_bytes,
            resident_bytes_end: end.resident_bytes,
            resident_bytes_peak: end.resident_peak_bytes,
        })
    }

    pub(crate) fn own<S>(&self, driven: &Driven<S>) -> OwnCost {
        let [_, begin, end] = self.own;
        OwnCost {
            cpu_seconds: end.cpu_seconds - begin.cpu_seconds,
            cpu_us_per_op: per_op_us(begin, end, driven),
            cores: (end.cpu_seconds - begin.cpu_seconds) / driven.seconds,
        }
    }
}

fn per_op_us<S>(begin: Usage, end: Usage, driven: &Driven<S>) -> Option<f64> {
    let requests = driven.tally.ops.iter().filter(|(op, _)| op.is_request());
    let count: u64 = requests.map(|(_, tally)| tally.latency_ns.len()).sum();
    (0 < count).then(|| (end.cpu_seconds - begin.cpu_seconds) * 1e6 / count as f64)
}
