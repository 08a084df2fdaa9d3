//! One write, many watchers: the time until the last event is there.
//!
//! ```text
//! place all watches ── write each znode once ── the last event ── the next round
//! ```
//!
//! The first connection writes, the others watch. A round begins only when all watches are
//! placed, and ends when all events are there; what is asked between rounds disturbs none.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringkeeper::jute::record::Record as _;
use ringkeeper::jute::{Reader, Write as _};
use ringkeeper::record::op::code;
use ringkeeper::record::proto::WatcherEvent;
use serde::Serialize;

use crate::client::Connection;
use crate::driver::{Crew, Plan, drive, split};
use crate::keys::Random;
use crate::paths::Paths;
use crate::report::Summary;
use crate::scene::{Scene, SceneReport};
use crate::workload::{
    ANY_LENGTH, Achieved, Asked, Heard, Next, Op, STAT_BYTES, Source, put_value_and_version,
};
use crate::{Costs, Fault, Load, Progress, hold, resolve};

/// Watches as a user asks for them.
#[derive(Clone, Debug, Serialize)]
pub struct Watch {
    /// Its connections are the watchers; one more writes.
    pub scene: Scene,
    pub znodes: u64,
    /// How many of the znodes each watcher watches.
    pub each: u64,
    /// How many times all of them are written; 0 only places the watches.
    pub rounds: u64,
    pub value_bytes: usize,
    /// Requests in flight per connection while watches are placed and znodes written.
    pub depth: usize,
    /// How long all rounds may take.
    #[serde(serialize_with = "crate::report::as_span")]
    pub within: Duration,
}

const FAN_OUT: u64 = 1000;

/// What the threads have in common.
struct Round {
    /// How many rounds are over.
    over: AtomicU64,
    /// Watches placed in this round, and events heard.
    placed: AtomicU64,
    heard: AtomicU64,
    /// When the first znode was written in this round, and each of them.
    since_ns: AtomicU64,
    written_ns: Vec<AtomicU64>,
    /// How many watches and events make a round.
    watches: u64,
    rounds: u64,
}

impl Round {
    fn is_placed(&self) -> bool {
        self.placed.load(Ordering::Acquire) == self.watches
    }

    fn is_done(&self) -> bool {
        let rounds_over = self.over.load(Ordering::Acquire);
        if self.rounds == 0 { self.is_placed() } else { self.rounds <= rounds_over }
    }
}

/// One thread's connections.
struct Watchers {
    round: Arc<Round>,
    paths: Paths,
    znodes: u64,
    each: u64,
    value: Vec<u8>,
    roles: Vec<Role>,
    /// How many rounds were over when the connections were asked last.
    seen_over: u64,
    /// Whether all watches were placed then.
    seen_placed: bool,
    deadline: Instant,
}

/// What a connection is for; `done` counts what it has asked in its round.
enum Role {
    Writes { round: u64, done: u64 },
    Watches { first: u64, round: u64, done: u64 },
}

impl Source for Watchers {
    fn ask(&mut self, connection: usize, due_ns: u64, into: &mut Connection<Asked>) -> Next {
        if self.round.is_done() {
            return Next::Done;
        }
        let over = self.round.over.load(Ordering::Acquire);
        let (op, code, znode, reply_bytes) = match &mut self.roles[connection] {
            Role::Writes { round, done } => {
                if *round < over {
                    (*round, *done) = (over, 0);
                }
                if *done == self.znodes || !self.round.is_placed() {
                    return Next::Waits;
                }
                if *done == 0 {
                    self.round.since_ns.store(due_ns, Ordering::Release);
                }
                self.round.written_ns[*done as usize].store(due_ns, Ordering::Release);
                *done += 1;
                (Op::Set, code::SET_DATA, *done - 1, STAT_BYTES)
            }
            Role::Watches { first, round, done } => {
                if *round < over {
                    (*round, *done) = (over, 0);
                }
                if *done == self.each {
                    return Next::Waits;
                }
                *done += 1;
                (Op::Watch, code::GET_DATA, (*first + *done - 1) % self.znodes, ANY_LENGTH)
            }
        };
        let asked = Asked { op, due_ns, reply_bytes, tolerated: 0 };
        into.ask(asked, code, |out| {
            self.paths.put_znode(out, znode);
            match op {
                Op::Set => put_value_and_version(out, &self.value),
                _ => out.put_bool(true),
            }
        });
        Next::Asked
    }

    fn on_reply(&mut self, _heard: &Heard<'_>, asked: &Asked, _achieved: &mut Vec<Achieved>) {
        if asked.op == Op::Watch {
            self.round.placed.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn on_event(&mut self, heard: &Heard<'_>, achieved: &mut Vec<Achieved>) {
        let event = WatcherEvent::read(&mut Reader::new(heard.body));
        let znode = event.ok().and_then(|event| {
            let path = event.path?;
            path.rsplit_once('/')?.1.parse::<usize>().ok()
        });
        // One that is of no znode of ours is missing in the round, which then never ends.
        let Some(written_ns) = znode.and_then(|znode| self.round.written_ns.get(znode)) else {
            return;
        };
        let since_ns = written_ns.load(Ordering::Acquire);
        achieved.push(Achieved { op: Op::Event, since_ns });
        if self.round.heard.fetch_add(1, Ordering::AcqRel) + 1 == self.round.watches {
            let since_ns = self.round.since_ns.load(Ordering::Acquire);
            achieved.push(Achieved { op: Op::Last, since_ns });
            // Nobody looks at these before the round is counted as over.
            self.round.heard.store(0, Ordering::Release);
            self.round.placed.store(0, Ordering::Release);
            self.round.over.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn wakes(&mut self) -> bool {
        let over = self.round.over.load(Ordering::Acquire);
        let is_placed = self.round.is_placed();
        let wakes = over != self.seen_over || is_placed && !self.seen_placed;
        (self.seen_over, self.seen_placed) = (over, is_placed);
        wakes
    }

    fn is_done(&self) -> bool {
        self.round.is_done() || self.deadline <= Instant::now()
    }
}

impl Watch {
    #[must_use]
    pub fn command(&self) -> String {
        let Watch { scene, znodes, each, rounds, value_bytes, depth, within } = self;
        let within = crate::report::span(*within);
        format!(
            "loadgen watch {scene} --znodes {znodes} --each {each} --rounds {rounds} --value-size \
             {value_bytes} --depth {depth} --within {within}"
        )
    }

    pub fn run(&self, pid: Option<u32>, progress: Progress<'_>) -> Result<SceneReport, Fault> {
        self.scene.check()?;
        hold(&[
            (0 < self.znodes, "one znode at least"),
            (self.znodes < 999_999 * FAN_OUT, "too many znodes"),
            ((1..=self.znodes).contains(&self.each), "each watches one znode to all of them"),
            (0 < self.depth, "one request in flight at least"),
        ])?;
        let servers = resolve(&self.scene.servers)?;
        let load = Load {
            servers: self.scene.servers.clone(),
            znodes: self.znodes,
            fan_out: FAN_OUT,
            value_bytes: self.value_bytes.into(),
            root: self.scene.root.clone(),
            threads: self.scene.threads,
            ..Load::default()
        };
        let shape = load.shape(0);
        load.set_up(&servers, &shape, false)?;
        let watchers = self.scene.connections as u64;
        let round = Arc::new(Round {
            over: AtomicU64::new(0),
            placed: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            since_ns: AtomicU64::new(0),
            written_ns: (0..self.znodes).map(|_| AtomicU64::new(0)).collect(),
            watches: watchers * self.each,
            rounds: self.rounds,
        });
        let deadline = Instant::now() + self.within;
        let crews = split(self.scene.connections + 1, self.scene.threads)
            .into_iter()
            .map(|connections| {
                let role = |&number: &usize| match (number as u64).checked_sub(1) {
                    None => Role::Writes { round: 0, done: 0 },
                    Some(watcher) => {
                        let first = watcher * self.each % self.znodes;
                        Role::Watches { first, round: 0, done: 0 }
                    }
                };
                let source = Watchers {
                    round: Arc::clone(&round),
                    paths: shape.paths.clone(),
                    znodes: self.znodes,
                    each: self.each,
                    value: Random::new(1).bytes(self.value_bytes),
                    roles: connections.iter().map(role).collect(),
                    seen_over: 0,
                    seen_placed: false,
                    deadline,
                };
                Crew { connections, source }
            })
            .collect();
        let plan = Plan::of_list(servers, self.depth, self.scene.session_timeout_ms);
        let mut costs = Costs::new(pid);
        let driven = drive(&plan, crews, &mut |moment| costs.progress(moment, progress))?;
        let server = costs.server(&driven);
        let mut figures = BTreeMap::new();
        if let Some(last) = driven.tally.ops.get(&Op::Last) {
            let median_ms = last.latency_ns.value_at_quantile(0.5) as f64 / 1e6;
            figures.insert("median ms until the last event".to_owned(), median_ms);
            let per_second = round.watches as f64 / (median_ms / 1e3);
            figures.insert("events per s within a round".to_owned(), per_second);
        }
        if let (Some(server), 0) = (server, self.rounds) {
            let grown = server.resident_bytes_end as f64 - server.resident_bytes_begin as f64;
            let name = "bytes of resident memory per watch".to_owned();
            figures.insert(name, grown / round.watches as f64);
        }
        let mut violations = BTreeMap::new();
        if !round.is_done() {
            let over = round.over.load(Ordering::Acquire);
            let what = format!(
                "{} watches and {} events of {} in round {} after {:?}",
                round.placed.load(Ordering::Acquire),
                round.heard.load(Ordering::Acquire),
                round.watches,
                over + 1,
                self.within
            );
            violations.insert(what, 1);
        }
        Ok(SceneReport {
            command: self.command(),
            summary: Summary::new(&driven.tally, driven.seconds),
            figures,
            violations,
            server,
            own: costs.own(&driven),
        })
    }
}
