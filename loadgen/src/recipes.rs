//! Locks and queues as clients build them of znodes, each checked to do what it is for.
//!
//! A lock, after ZooKeeper's recipe and Curator's `LockInternals`: an ephemeral sequential znode
//! in a line; whoever is first holds; whoever is not watches the one before, so that a release
//! wakes one and not all. A queue, after kazoo's `Queue`: sequential znodes; whoever takes reads
//! the first and deletes it, and has it if the delete was the one that succeeded; where there is
//! nothing, the children are watched.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ringkeeper::jute::{Reader, Write as _};
use ringkeeper::record::op::{CreateMode, code};
use serde::Serialize;

use crate::client::{Connection, names};
use crate::driver::{Crew, Driven, Plan, Span, drive, split};
use crate::report::Summary;
use crate::scene::{Keeper, Scene, SceneReport, Timing, run_name};
use crate::workload::{
    ANY_LENGTH, Achieved, Asked, Heard, Next, Op, STAT_BYTES, Source, put_new_znode,
};
use crate::{Costs, Fault, NO_NODE, Progress, hold, resolve};

/// Many clients that want few locks.
#[derive(Clone, Debug, Serialize)]
pub struct Locks {
    pub scene: Scene,
    pub locks: usize,
    pub timing: Timing,
}

/// Some clients that put elements into a queue, and others that take them.
#[derive(Clone, Debug, Serialize)]
pub struct Queue {
    pub scene: Scene,
    /// How many of the connections put elements in.
    pub producers: usize,
    /// How many elements may wait to be taken.
    pub backlog: u64,
    pub value_bytes: usize,
    pub timing: Timing,
}

/// What was found wrong, over all threads.
#[derive(Default)]
struct Wrong(Mutex<BTreeMap<String, u64>>);

impl Wrong {
    fn note(&self, what: &str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(what.to_owned()).or_default() += 1;
    }

    fn counts(&self) -> BTreeMap<String, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One thread's connections that want locks.
struct Lockers {
    hands: Vec<Hand>,
    below: String,
    /// Whether somebody holds each lock.
    held: Arc<Vec<AtomicBool>>,
    wrong: Arc<Wrong>,
}

struct Hand {
    lock: usize,
    since_ns: u64,
    /// The name of its place in line, once it has one.
    name: String,
    step: Grip,
}

/// What a connection does next for its lock.
enum Grip {
    TakesPlace,
    Lists,
    /// For the one before it in line.
    Watches(String),
    Waits,
    Releases,
}

impl Lockers {
    fn path_of(&self, hand: &Hand) -> String {
        lock_path(&self.below, hand.lock)
    }
}

fn lock_path(below: &str, lock: usize) -> String {
    format!("{below}/{lock:06}")
}

impl Source for Lockers {
    fn ask(&mut self, connection: usize, due_ns: u64, into: &mut Connection<Asked>) -> Next {
        let path = self.path_of(&self.hands[connection]);
        let hand = &mut self.hands[connection];
        let asked = |op, reply_bytes, tolerated| Asked { op, due_ns, reply_bytes, tolerated };
        match &hand.step {
            Grip::TakesPlace => {
                hand.since_ns = due_ns;
                into.ask(asked(Op::Create, ANY_LENGTH, 0), code::CREATE, |out| {
                    out.put_text(&format!("{path}/lock-"));
                    put_new_znode(out, b"", CreateMode::EphemeralSequential);
                });
            }
            Grip::Lists => {
                into.ask(asked(Op::Children, ANY_LENGTH, 0), code::GET_CHILDREN, |out| {
                    out.put_text(&path);
                    out.put_bool(false);
                })
            }
            Grip::Watches(before) => {
                into.ask(asked(Op::Exists, STAT_BYTES, NO_NODE), code::EXISTS, |out| {
                    out.put_text(&format!("{path}/{before}"));
                    out.put_bool(true);
                });
            }
            Grip::Waits => return Next::Waits,
            Grip::Releases => {
                // Before it leaves, for the next may hold before our reply is here.
                self.held[hand.lock].store(false, Ordering::Release);
                into.ask(asked(Op::Delete, 0, 0), code::DELETE, |out| {
                    out.put_text(&format!("{path}/{}", hand.name));
                    out.put_i32(-1);
                });
            }
        }
        Next::Asked
    }

    fn on_reply(&mut self, heard: &Heard<'_>, asked: &Asked, achieved: &mut Vec<Achieved>) {
        let hand = &mut self.hands[heard.connection];
        hand.step = match (asked.op, heard.err) {
            (Op::Create, 0) => {
                let path = Reader::new(heard.body).text().ok().flatten().unwrap_or_default();
                hand.name = path.rsplit('/').next().unwrap_or_default().to_owned();
                Grip::Lists
            }
            (Op::Children, 0) => {
                let found = names(heard.body).unwrap_or_default();
                let before = found.iter().filter(|name| **name < hand.name).max();
                match before {
                    _ if !found.contains(&hand.name) => {
                        self.wrong.note("a place in line is gone while its session lives");
                        Grip::TakesPlace
                    }
                    Some(before) => Grip::Watches(before.clone()),
                    None => {
                        if self.held[hand.lock].swap(true, Ordering::AcqRel) {
                            self.wrong.note("two hold one lock");
                        }
                        achieved.push(Achieved { op: Op::Lock, since_ns: hand.since_ns });
                        Grip::Releases
                    }
                }
            }
            (Op::Exists, 0) => Grip::Waits,
            (Op::Exists, NO_NODE) => Grip::Lists,
            // Released, or an error, which is counted: from the start again.
            _ => Grip::TakesPlace,
        };
    }

    fn on_event(&mut self, heard: &Heard<'_>, _achieved: &mut Vec<Achieved>) {
        let hand = &mut self.hands[heard.connection];
        match hand.step {
            Grip::Waits => hand.step = Grip::Lists,
            // A watch is placed only by whoever then waits for it.
            _ => self.wrong.note("an event that nobody waits for"),
        }
    }
}

impl Locks {
    #[must_use]
    pub fn command(&self) -> String {
        let Locks { scene, locks, timing } = self;
        format!("loadgen lock {scene} --locks {locks} {timing}")
    }

    pub fn run(&self, pid: Option<u32>, progress: Progress<'_>) -> Result<SceneReport, Fault> {
        self.scene.check()?;
        hold(&[(0 < self.locks && self.locks <= 999_999, "1 to 999999 locks")])?;
        let servers = resolve(&self.scene.servers)?;
        let below = format!("{}/locks/{}", self.scene.root, run_name());
        let mut keeper = Keeper::on(&servers)?;
        let paths: Vec<_> = (0..self.locks).map(|lock| lock_path(&below, lock)).collect();
        for path in &paths {
            keeper.create(path)?;
        }
        keeper.close();
        let held = Arc::new((0..self.locks).map(|_| AtomicBool::new(false)).collect());
        let wrong = Arc::new(Wrong::default());
        let hand = |&number: &usize| Hand {
            lock: number % self.locks,
            since_ns: 0,
            name: String::new(),
            step: Grip::TakesPlace,
        };
        let crews = split(self.scene.connections, self.scene.threads)
            .into_iter()
            .map(|connections| {
                let source = Lockers {
                    hands: connections.iter().map(hand).collect(),
                    below: below.clone(),
                    held: Arc::clone(&held),
                    wrong: Arc::clone(&wrong),
                };
                Crew { connections, source }
            })
            .collect();
        let mut costs = Costs::new(pid);
        let plan = plan(&self.scene, servers.clone(), self.timing);
        let driven = drive(&plan, crews, &mut |moment| costs.progress(moment, progress))?;
        let mut keeper = Keeper::on(&servers)?;
        for path in paths.iter().chain([&below]) {
            keeper.delete(path)?;
        }
        keeper.close();
        Ok(report(self.command(), &costs, &driven, wrong.counts(), BTreeMap::new()))
    }
}

fn plan(scene: &Scene, servers: Vec<std::net::SocketAddr>, timing: Timing) -> Plan {
    let Timing { warmup, duration } = timing;
    Plan {
        span: Span::Timed { warmup, duration },
        ..Plan::of_list(servers, 1, scene.session_timeout_ms)
    }
}

fn report<S>(
    command: String,
    costs: &Costs,
    driven: &Driven<S>,
    violations: BTreeMap<String, u64>,
    figures: BTreeMap<String, f64>,
) -> SceneReport {
    SceneReport {
        command,
        summary: Summary::new(&driven.tally, driven.seconds),
        figures,
        violations,
        server: costs.server(driven),
        own: costs.own(driven),
    }
}

/// One thread's connections at a queue.
struct Hall {
    ends: Vec<End>,
    path: String,
    value_bytes: usize,
    backlog: u64,
    desk: Arc<Desk>,
}

/// What all threads know of the queue.
#[derive(Default)]
struct Desk {
    /// Elements asked to be put in, those known to be in, and those taken.
    asked: AtomicU64,
    offered: AtomicU64,
    taken: AtomicU64,
    /// Which elements were taken.
    had: Mutex<HashSet<u64>>,
    wrong: Wrong,
}

/// A connection at one of the queue's ends.
enum End {
    In { number: u64, serial: u64 },
    Out { since_ns: u64, names: VecDeque<String>, element: u64, step: Reach },
}

/// What a connection does next to take an element.
#[derive(Clone, Copy)]
enum Reach {
    Lists,
    ListsAndWatches,
    Waits,
    Reads,
    Deletes,
}

impl Source for Hall {
    fn ask(&mut self, connection: usize, due_ns: u64, into: &mut Connection<Asked>) -> Next {
        let asked = |op, reply_bytes, tolerated| Asked { op, due_ns, reply_bytes, tolerated };
        let path = &self.path;
        match &mut self.ends[connection] {
            End::In { number, serial } => {
                let taken = self.desk.taken.load(Ordering::Relaxed);
                if taken + self.backlog <= self.desk.asked.load(Ordering::Relaxed) {
                    return Next::Later;
                }
                self.desk.asked.fetch_add(1, Ordering::Relaxed);
                *serial += 1;
                let mut value = (*number << 40 | *serial).to_be_bytes().to_vec();
                value.resize(self.value_bytes.max(8), 0);
                into.ask(asked(Op::Create, ANY_LENGTH, 0), code::CREATE, |out| {
                    out.put_text(&format!("{path}/entry-"));
                    put_new_znode(out, &value, CreateMode::PersistentSequential);
                });
            }
            End::Out { since_ns, names, step, .. } => {
                if *since_ns == 0 {
                    *since_ns = due_ns;
                }
                match (*step, names.front()) {
                    (Reach::Waits, _) => return Next::Waits,
                    (Reach::Reads, Some(name)) => {
                        into.ask(asked(Op::Get, ANY_LENGTH, NO_NODE), code::GET_DATA, |out| {
                            out.put_text(&format!("{path}/{name}"));
                            out.put_bool(false);
                        });
                    }
                    (Reach::Deletes, Some(name)) => {
                        into.ask(asked(Op::Delete, 0, NO_NODE), code::DELETE, |out| {
                            out.put_text(&format!("{path}/{name}"));
                            out.put_i32(-1);
                        });
                    }
                    (Reach::Lists | Reach::ListsAndWatches, _)
                    | (Reach::Reads | Reach::Deletes, None) => {
                        let watches = matches!(step, Reach::ListsAndWatches);
                        let op = asked(Op::Children, ANY_LENGTH, 0);
                        into.ask(op, code::GET_CHILDREN, |out| {
                            out.put_text(path);
                            out.put_bool(watches);
                        });
                    }
                }
            }
        }
        Next::Asked
    }

    fn on_reply(&mut self, heard: &Heard<'_>, asked: &Asked, achieved: &mut Vec<Achieved>) {
        let desk = &self.desk;
        let End::Out { since_ns, names: line, element, step } = &mut self.ends[heard.connection]
        else {
            if heard.err == 0 {
                desk.offered.fetch_add(1, Ordering::Relaxed);
            }
            return;
        };
        *step = match (asked.op, heard.err) {
            (Op::Children, 0) => {
                let mut found = names(heard.body).unwrap_or_default();
                found.sort_unstable();
                *line = found.into();
                match (line.is_empty(), &step) {
                    (false, _) => Reach::Reads,
                    (true, Reach::ListsAndWatches) => Reach::Waits,
                    (true, _) => Reach::ListsAndWatches,
                }
            }
            (Op::Get, 0) => {
                let value = Reader::new(heard.body).buffer().ok().flatten().unwrap_or_default();
                let front = value.first_chunk().map(|front| u64::from_be_bytes(*front));
                *element = front.unwrap_or_else(|| {
                    desk.wrong.note("an element has lost its value");
                    0
                });
                Reach::Deletes
            }
            (Op::Delete, 0) => {
                let mut had = desk.had.lock().unwrap_or_else(PoisonError::into_inner);
                if !had.insert(*element) {
                    desk.wrong.note("an element is taken twice");
                }
                desk.taken.fetch_add(1, Ordering::Relaxed);
                achieved.push(Achieved { op: Op::Take, since_ns: *since_ns });
                *since_ns = 0;
                line.pop_front();
                if line.is_empty() { Reach::Lists } else { Reach::Reads }
            }
            // Another was quicker; or an error, which is counted.
            _ => {
                line.pop_front();
                if line.is_empty() { Reach::Lists } else { Reach::Reads }
            }
        };
    }

    fn on_event(&mut self, heard: &Heard<'_>, _achieved: &mut Vec<Achieved>) {
        // One who has found something after placing a watch hears of it later, and needs it not.
        if let End::Out { step: step @ Reach::Waits, .. } = &mut self.ends[heard.connection] {
            *step = Reach::Lists;
        }
    }
}

impl Queue {
    #[must_use]
    pub fn command(&self) -> String {
        let Queue { scene, producers, backlog, value_bytes, timing } = self;
        format!(
            "loadgen queue {scene} --producers {producers} --backlog {backlog} --value-size \
             {value_bytes} {timing}"
        )
    }

    pub fn run(&self, pid: Option<u32>, progress: Progress<'_>) -> Result<SceneReport, Fault> {
        self.scene.check()?;
        hold(&[
            (0 < self.producers, "one producer at least"),
            (self.producers < self.scene.connections, "a connection that takes is needed"),
            (0 < self.backlog, "a backlog of one at least"),
        ])?;
        let servers = resolve(&self.scene.servers)?;
        let path = format!("{}/queues/{}", self.scene.root, run_name());
        let mut keeper = Keeper::on(&servers)?;
        keeper.create(&path)?;
        keeper.close();
        let desk = Arc::new(Desk::default());
        let end = |&number: &usize| {
            if number < self.producers {
                End::In { number: number as u64, serial: 0 }
            } else {
                let names = VecDeque::new();
                End::Out { since_ns: 0, names, element: 0, step: Reach::Lists }
            }
        };
        let crews = split(self.scene.connections, self.scene.threads)
            .into_iter()
            .map(|connections| {
                let source = Hall {
                    ends: connections.iter().map(end).collect(),
                    path: path.clone(),
                    value_bytes: self.value_bytes,
                    backlog: self.backlog,
                    desk: Arc::clone(&desk),
                };
                Crew { connections, source }
            })
            .collect();
        let mut costs = Costs::new(pid);
        let plan = plan(&self.scene, servers.clone(), self.timing);
        let driven = drive(&plan, crews, &mut |moment| costs.progress(moment, progress))?;
        let mut keeper = Keeper::on(&servers)?;
        let left = keeper.children(&path)?;
        let (offered, taken) =
            (desk.offered.load(Ordering::Relaxed), desk.taken.load(Ordering::Relaxed));
        if driven.tally.unanswered == 0 && offered != taken + left.len() as u64 {
            let left = left.len();
            desk.wrong.note(&format!("{offered} elements put in, {taken} taken, {left} left"));
        }
        for name in &left {
            keeper.delete(&format!("{path}/{name}"))?;
        }
        keeper.delete(&path)?;
        keeper.close();
        let figures = BTreeMap::from([("elements left at the end".to_owned(), left.len() as f64)]);
        Ok(report(self.command(), &costs, &driven, desk.wrong.counts(), figures))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: &[&str]) -> Vec<u8> {
        let mut body = Vec::new();
        body.put_count(Some(names.len()));
        for name in names {
            body.put_text(name);
        }
        body
    }

    fn lockers(connections: usize) -> Lockers {
        let hand = |name: usize| Hand {
            lock: 0,
            since_ns: 5,
            name: format!("lock-{name:010}"),
            step: Grip::Lists,
        };
        Lockers {
            hands: (0..connections).map(hand).collect(),
            below: "/locks".to_owned(),
            held: Arc::new(vec![AtomicBool::new(false)]),
            wrong: Arc::new(Wrong::default()),
        }
    }

    fn lists(lockers: &mut Lockers, connection: usize, names: &[&str]) -> Vec<Achieved> {
        let asked = Asked { op: Op::Children, due_ns: 0, reply_bytes: ANY_LENGTH, tolerated: 0 };
        let (body, mut achieved) = (listing(names), Vec::new());
        let heard = Heard { connection, now_ns: 9, zxid: 1, err: 0, body: &body };
        lockers.on_reply(&heard, &asked, &mut achieved);
        achieved
    }

    const LINE: [&str; 2] = ["lock-0000000000", "lock-0000000001"];

    #[test]
    fn who_is_first_holds_and_who_is_not_watches_the_one_before() {
        let mut lockers = lockers(2);
        assert_eq!(lists(&mut lockers, 1, &LINE), []);
        assert!(matches!(&lockers.hands[1].step, Grip::Watches(before) if before == LINE[0]));
        let held = [Achieved { op: Op::Lock, since_ns: 5 }];
        assert_eq!(lists(&mut lockers, 0, &LINE), held);
        assert!(lockers.wrong.counts().is_empty());
    }

    #[test]
    fn a_server_that_lets_two_hold_a_lock_is_found_out() {
        let mut lockers = lockers(2);
        lists(&mut lockers, 0, &LINE);
        // The one before is still there, and not shown.
        lists(&mut lockers, 1, &LINE[1..]);
        assert_eq!(lockers.wrong.counts(), BTreeMap::from([("two hold one lock".to_owned(), 1)]));
        // Nor is a place in line to be lost.
        lists(&mut lockers, 1, &LINE[..1]);
        assert_eq!(lockers.wrong.counts().len(), 2);
    }

    #[test]
    fn a_server_that_gives_an_element_twice_is_found_out() {
        let end = || End::Out {
            since_ns: 1,
            names: VecDeque::from(["entry-1".to_owned()]),
            element: 7,
            step: Reach::Deletes,
        };
        let desk = Arc::new(Desk::default());
        let path = "/queue".to_owned();
        let mut hall = Hall {
            ends: vec![end(), end()],
            path,
            value_bytes: 8,
            backlog: 1,
            desk: Arc::clone(&desk),
        };
        let asked = Asked { op: Op::Delete, due_ns: 0, reply_bytes: 0, tolerated: NO_NODE };
        let mut achieved = Vec::new();
        for connection in 0..2 {
            let heard = Heard { connection, now_ns: 9, zxid: 1, err: 0, body: &[] };
            hall.on_reply(&heard, &asked, &mut achieved);
        }
        assert_eq!(achieved, [Achieved { op: Op::Take, since_ns: 1 }; 2]);
        let twice = BTreeMap::from([("an element is taken twice".to_owned(), 1)]);
        assert_eq!(desk.wrong.counts(), twice);
    }
}
