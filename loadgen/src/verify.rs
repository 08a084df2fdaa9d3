//! The same load with every reply checked, so that speed is never bought with wrong answers.
//!
//! Every value says who wrote it, and with what others. While the load runs, each client is
//! held to what ZooKeeper promises a session; afterwards, what all clients were told is put
//! together and held against what is there.
//!
//! A client that loses its connection goes on over another: with its session, or with a new one
//! once that has expired, and in both cases with the last zxid it has seen, so that it is never
//! shown less. What it had asked and not heard is of unknown outcome: each of these writes may be
//! done once, at any time, or never.
//!
//! | checked | where |
//! |---|---|
//! | replies in the order of requests | `client`, which gives the connection up |
//! | zxids of a session never fall, and a write's is new | each reply, over reconnects |
//! | a write's zxid is above that of any write acknowledged, to whomever, before it was asked | each reply |
//! | what is read after a `sync` is as new as any write acknowledged, to whomever, before that | each sync |
//! | a session never sees a znode older than it has: its own writes, and what it has read | each reply, over reconnects |
//! | a read that shows one znode of a multi is followed by none that misses another | each reply, and afterwards |
//! | a multi that cannot succeed changes nothing | each value read |
//! | children are exactly those that the session has made; of unknown outcomes, once it shows | each listing, over reconnects |
//! | a session lives for its timeout | each reconnect |
//! | a watch's event comes before newer data, and once | each read, and a last one of each watched znode; over reconnects, where clients set their watches again |
//! | ephemeral znodes are there while their session lives, and gone once its end is confirmed | afterwards, on every server |
//! | a version has one zxid and one writer, whoever looks | reads of all sessions together |
//! | versions grow by one with each acknowledged set, in the order of zxids | afterwards |
//! | a write of unknown outcome is done once at most | afterwards |
//! | what was acknowledged or read is there, and nothing else | afterwards, on every server |
//!
//! Of Apache ZooKeeper a read after a `sync` is not always fresh: its leader answers the `sync` of its
//! own clients at once, also before it has itself applied what a follower has acknowledged already, or
//! once it was deposed and does not know it. So that can be left out.
//!
//! Histories are kept in memory: 100 to 200 bytes for each write and each version that was read.

mod audit;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt;
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use audit::Audit;
use ringkeeper::jute::record::Record as _;
use ringkeeper::jute::{Reader, Write as _};
use ringkeeper::record::data::Stat;
use ringkeeper::record::op::{CreateMode, EventType, code};
use ringkeeper::record::proto::{
    GetDataResponse, MULTI_END, MultiHeader, SetWatches, WatcherEvent,
};
use serde::Serialize;

use crate::client::{Connection, Lost, names};
use crate::driver::{Crew, Moment, Plan, Reconnect, Reconnects, drive, split};
use crate::keys::{Chooser, Random};
use crate::paths::{NAME_DIGITS, Paths};
use crate::report::{OwnCost, ServerCost, Summary, code_name, span};
use crate::sizes::Sizes;
use crate::workload::{
    ANY_LENGTH, Achieved, Asked, Heard, Mix, Next, Op, Shape, Source, created_parent, put_created,
    put_new_znode,
};
use crate::{
    At, Costs, Fault, LIST_TIMEOUT_MS, Load, Progress, Ran, Stage, connect, hold, passes_seconds,
    resolve,
};

/// What is asked where nothing else is: some of everything.
pub const USUAL_MIX: &str =
    "get=40,exists=5,children=5,set=20,create=7,ephemeral=3,delete=8,multi=12";

/// How long the last replies may take once all has been asked.
const END_WITHIN: Duration = Duration::from_secs(15);
/// How long a server that has gone may take to be there for the last look.
const BACK_WITHIN: Duration = Duration::from_secs(60);
const TRY_EVERY: Duration = Duration::from_millis(50);
/// The most violations that are told in full.
const EXAMPLES_MAX: usize = 20;
/// What a connection creates beyond this many it deletes first, so that listings stay short.
const CREATED_MAX: u64 = 100;
/// One get in so many places a watch.
const WATCH_EVERY: u64 = 4;
/// One get in so many comes after a `sync`.
const SYNC_EVERY: u64 = 8;
/// The most watches that one request sets again.
const SET_WATCHES_MAX: usize = 1000;
/// One multi in so many is made to fail.
const DOOMED_EVERY: u64 = 4;
const BAD_VERSION: i32 = -103;

/// A load to be checked.
#[derive(Clone, Debug)]
pub struct Verify {
    pub load: Load,
    /// At random moments, this far apart on average, a connection is dropped.
    pub drop_every: Option<Duration>,
    /// Whether some reads come after a `sync`.
    pub has_syncs: bool,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// The command that does the same again.
    pub command: String,
    pub load: Load,
    #[serde(flatten)]
    pub summary: Summary,
    pub server: Option<ServerCost>,
    pub own: OwnCost,
    pub checked: Checked,
    /// How often each promise was broken.
    pub violations: BTreeMap<String, u64>,
    /// The first of them in full.
    pub examples: Vec<String>,
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Checked {
    pub replies: u64,
    pub events: u64,
    /// Reads that came after a `sync`.
    pub syncs: u64,
    /// Watches that were set again over another connection.
    pub watches_again: u64,
    /// Servers that were looked at in the end.
    pub servers: usize,
    /// Versions that sets and multis were acknowledged with.
    pub versions_written: u64,
    /// Different versions that reads have shown.
    pub versions_read: u64,
    /// Created, not deleted, and looked for at the end.
    pub created: u64,
    /// Writes that had no reply when their connection was lost.
    pub unknown: u64,
    /// Sets and multis of these that were seen to be done.
    pub unknown_done: u64,
}

impl Verdict {
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty() && self.summary.is_clean()
    }
}

/// Who wrote a value: the front of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    /// The number of the connection, and of its write.
    writer: u32,
    serial: u32,
    znode: u64,
    /// The first znode of the multi, and how many it sets; 1 of a plain set.
    first: u64,
    count: u32,
    /// Whether the multi cannot succeed.
    is_doomed: bool,
}

const MARK_BYTES: usize = 32;

impl Mark {
    fn write(self, out: &mut Vec<u8>, bytes: usize) {
        let start = out.len() + 4;
        out.put_count(Some(bytes));
        out.extend_from_slice(&self.writer.to_be_bytes());
        out.extend_from_slice(&self.serial.to_be_bytes());
        out.extend_from_slice(&self.znode.to_be_bytes());
        out.extend_from_slice(&self.first.to_be_bytes());
        out.extend_from_slice(&self.count.to_be_bytes());
        out.extend_from_slice(&u32::from(self.is_doomed).to_be_bytes());
        debug_assert_eq!(out.len(), start + MARK_BYTES);
        out.resize(start + bytes, self.serial as u8);
    }

    fn read(value: &[u8]) -> Option<Mark> {
        let (front, rest) = value.split_at_checked(MARK_BYTES)?;
        let word = |at: usize| front[at..at + 4].try_into().ok().map(u32::from_be_bytes);
        let long = |at: usize| front[at..at + 8].try_into().ok().map(u64::from_be_bytes);
        let mark = Mark {
            writer: word(0)?,
            serial: word(4)?,
            znode: long(8)?,
            first: long(16)?,
            count: word(24)?,
            is_doomed: word(28)? != 0,
        };
        rest.iter().all(|&byte| byte == mark.serial as u8).then_some(mark)
    }
}

/// How long the value of a znode is: as asked, and long enough for its mark.
fn value_bytes(sizes: &Sizes, znode: u64) -> usize {
    sizes.of(znode).max(MARK_BYTES)
}

/// What a connection waits for the reply to.
#[derive(Clone, Copy, Debug)]
enum What {
    Get {
        znode: u64,
        watches: bool,
        /// What it must not be older than, after a `sync`.
        fresh: Option<Fresh>,
    },
    Sync {
        znode: u64,
    },
    Exists {
        znode: u64,
    },
    /// Of the connection's own parent, with what it has made by then.
    Children {
        first: u64,
        next: u64,
    },
    Set {
        mark: Mark,
    },
    Create {
        name: u64,
    },
    Delete {
        name: u64,
    },
    Multi {
        mark: Mark,
    },
}

impl What {
    fn writes(self) -> bool {
        match self {
            What::Get { .. } | What::Sync { .. } | What::Exists { .. } | What::Children { .. } => {
                false
            }
            What::Set { .. } | What::Create { .. } | What::Delete { .. } | What::Multi { .. } => {
                true
            }
        }
    }
}

/// What was acknowledged to anybody at one moment.
#[derive(Clone, Copy, Debug)]
struct Fresh {
    /// The newest zxid of all writes, and of those of one znode.
    zxid: i64,
    mzxid: i64,
}

/// What was acknowledged to anybody so far.
struct Newest {
    zxid: AtomicI64,
    /// Of each znode.
    mzxids: Vec<AtomicI64>,
}

impl Newest {
    fn of(znodes: u64) -> Newest {
        let mzxids = (0..znodes).map(|_| AtomicI64::new(0)).collect();
        Newest { zxid: AtomicI64::new(0), mzxids }
    }

    fn fresh(&self, znode: u64) -> Fresh {
        let mzxid = self.mzxids[znode as usize].load(Ordering::SeqCst);
        Fresh { zxid: self.zxid.load(Ordering::SeqCst), mzxid }
    }
}

/// The least that a session may see of a znode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Floor {
    version: i32,
    mzxid: i64,
}

/// What one client has been told, in one session or several.
struct Told {
    /// Its number over all threads.
    number: usize,
    /// What waits for its reply, with the newest zxid that was acknowledged when it was asked.
    asked: VecDeque<(What, i64)>,
    /// What is read next, after a `sync`.
    to_read: Option<(u64, Fresh)>,
    zxid: i64,
    /// When it asked the newest of what has a reply: the server has heard of it since.
    heard_ns: u64,
    serial: u32,
    floors: HashMap<u64, Floor>,
    /// The znodes watched, and the mzxid that each had.
    watches: HashMap<u64, i64>,
    /// The znodes it has made: `first..next`, but those of unknown outcome.
    first: u64,
    next: u64,
    /// Which of those that it has not deleted are ephemeral, and of the session that it has now.
    ephemerals: BTreeSet<u64>,
    /// Whether the end of its session was confirmed.
    is_closed: bool,
    /// What it has asked to create or delete, and no reply has told of.
    fates: BTreeMap<u64, Fate>,
    /// Sets and multis that no reply has told of.
    unknown: Vec<Mark>,
    /// How many writes no reply has told of.
    unknown_writes: u64,
    end: End,
}

/// What may be true of a znode whose create or delete has an unknown outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is created later or never.
    MayCome,
    /// The same, and deleted after that or not.
    MayComeAndGo,
    /// It is there, and deleted later or never.
    MayGo,
    There,
    Gone,
}

impl Fate {
    /// What is true after a look. None: that cannot be.
    fn on_look(self, is_there: bool) -> Option<Fate> {
        match (self, is_there) {
            (Fate::MayCome, true) => Some(Fate::There),
            (Fate::MayComeAndGo, true) => Some(Fate::MayGo),
            (Fate::MayGo, false) => Some(Fate::Gone),
            (Fate::There, false) | (Fate::Gone, true) => None,
            (Fate::MayCome | Fate::MayComeAndGo | Fate::Gone, false)
            | (Fate::MayGo | Fate::There, true) => Some(self),
        }
    }

    /// What is true once it may be deleted.
    fn on_doubt(self) -> Fate {
        match self {
            Fate::MayCome | Fate::MayComeAndGo => Fate::MayComeAndGo,
            Fate::There | Fate::MayGo => Fate::MayGo,
            Fate::Gone => Fate::Gone,
        }
    }
}

impl Told {
    /// Takes note of what was asked and will have no reply.
    fn give_up_asked(&mut self) {
        self.to_read = None;
        for (what, _) in self.asked.drain(..) {
            self.unknown_writes += u64::from(what.writes());
            match what {
                What::Create { name } => {
                    self.fates.insert(name, Fate::MayCome);
                }
                What::Delete { name } => {
                    let fate = self.fates.get(&name).map_or(Fate::MayGo, |fate| fate.on_doubt());
                    self.fates.insert(name, fate);
                }
                What::Set { mark } | What::Multi { mark } => self.unknown.push(mark),
                What::Get { .. }
                | What::Sync { .. }
                | What::Exists { .. }
                | What::Children { .. } => {}
            }
        }
    }

    /// The znodes `first..next` that are there for certain.
    fn certain(&self, first: u64, next: u64) -> impl Iterator<Item = u64> {
        (first..next).filter(|name| !self.fates.contains_key(name))
    }

    /// What is wrong with a listing of what it has made when that was `first..next`.
    fn look(&mut self, first: u64, next: u64, found: &HashSet<String>) -> Option<String> {
        let mut certain = 0;
        for number in self.certain(first, next) {
            certain += 1;
            if !found.contains(&name(number)) {
                return Some(format!("{number} was created, and is not there"));
            }
        }
        for (&number, fate) in &mut self.fates {
            let is_there = found.contains(&name(number));
            certain += usize::from(is_there);
            match fate.on_look(is_there) {
                Some(next) => *fate = next,
                None => return Some(format!("{number} is {fate:?}, and then it is not")),
            }
        }
        (certain != found.len()).then(|| format!("{} are there, not {certain}", found.len()))
    }
}

/// How a client comes to its end.
enum End {
    NotYet,
    /// These watched znodes are read once more.
    LastReads(Vec<u64>),
    Ended,
}

/// A write that was acknowledged.
#[derive(Clone, Copy, Debug)]
struct Written {
    znode: u64,
    version: i32,
    mzxid: i64,
    mark: Mark,
}

/// A version of a znode, as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ReadAs {
    mzxid: i64,
    /// None where only its stat was asked for, and of what was there before.
    mark: Option<Mark>,
}

/// Broken promises.
#[derive(Clone, Debug, Default)]
struct Violations {
    counts: BTreeMap<String, u64>,
    examples: Vec<String>,
}

impl Violations {
    fn note(&mut self, promise: &str, detail: impl FnOnce() -> String) {
        *self.counts.entry(promise.to_owned()).or_default() += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(format!("{promise}: {}", detail()));
        }
    }

    fn merge(&mut self, other: Violations) {
        for (promise, count) in other.counts {
            *self.counts.entry(promise).or_default() += count;
        }
        let room = EXAMPLES_MAX.saturating_sub(self.examples.len());
        self.examples.extend(other.examples.into_iter().take(room));
    }
}

const FELL: &str = "zxids of a session never fall";
const NOT_NEW: &str = "a write has a zxid of its own";
const OLDER: &str = "a session never sees a znode older than it has";
const HALF: &str = "a multi is seen whole or not at all";
const DOOMED: &str = "a multi that fails changes nothing";
const TWO_FACES: &str = "a version has one zxid and one writer";
const FOREIGN: &str = "a value is what was written there";
const LATE: &str = "a watch's event comes before newer data";
const UNASKED: &str = "an event belongs to a watch";
const LISTED: &str = "children are what was created and not deleted";
const STEPS: &str = "versions grow by one with each set";
const LOST: &str = "what was acknowledged stays";
const ONCE: &str = "a write is done once at most";
const OVERTAKEN: &str = "a write comes after all that was acknowledged before it was asked";
const STALE: &str = "what is read after a sync is as new as what was acknowledged before it";
const ENDED: &str = "ephemeral znodes go with their session, on every server";
const UNEQUAL: &str = "all servers are equal in the end";
const FORGOTTEN: &str = "a session lives for its timeout";
const ODD: &str = "a reply is what its request asks for";

/// One thread's load.
struct Checking {
    shape: Shape,
    chooser: Chooser,
    random: Random,
    base: Arc<Vec<Floor>>,
    newest: Arc<Newest>,
    has_syncs: bool,
    told: Vec<Told>,
    written: Vec<Written>,
    read: HashMap<(u64, i32), ReadAs>,
    violations: Violations,
    checked: Checked,
    end_ns: u64,
    /// When to give up on connections that were lost.
    deadline: Instant,
    /// How many of this thread's connections have asked all.
    ended: usize,
}

impl Checking {
    fn znodes(&self) -> u64 {
        self.shape.znodes
    }

    /// The znodes that a multi with this mark sets.
    fn group(mark: Mark, znodes: u64) -> impl Iterator<Item = u64> {
        (0..u64::from(mark.count)).map(move |step| (mark.first + step) % znodes)
    }

    fn next_what(&mut self, connection: usize) -> (Op, What) {
        let op = self.shape.mix.draw(&mut self.random);
        let told = &mut self.told[connection];
        // What is unknown is left alone: no reply to a delete of it would be wrong.
        while told.fates.contains_key(&told.first) {
            told.first += 1;
        }
        let op = match op {
            Op::Delete if told.first == told.next => Op::Create,
            Op::Create | Op::Ephemeral if CREATED_MAX <= told.next - told.first => Op::Delete,
            op => op,
        };
        let znode = self.chooser.next(&mut self.random);
        let mut mark = || {
            told.serial += 1;
            Mark {
                writer: told.number as u32,
                serial: told.serial,
                znode,
                first: znode,
                count: 1,
                is_doomed: false,
            }
        };
        let what = match op {
            Op::Exists => What::Exists { znode },
            Op::Set => What::Set { mark: mark() },
            Op::Multi => {
                let count = (self.shape.multi_size as u64).min(self.shape.znodes) as u32;
                let is_doomed = self.random.below(DOOMED_EVERY) == 0;
                What::Multi { mark: Mark { count, is_doomed, ..mark() } }
            }
            Op::Children => What::Children { first: told.first, next: told.next },
            Op::Create | Op::Ephemeral => {
                told.next += 1;
                if op == Op::Ephemeral {
                    told.ephemerals.insert(told.next - 1);
                }
                What::Create { name: told.next - 1 }
            }
            Op::Delete => {
                told.first += 1;
                told.ephemerals.remove(&(told.first - 1));
                What::Delete { name: told.first - 1 }
            }
            _ if self.has_syncs && self.random.below(SYNC_EVERY) == 0 => {
                told.to_read = Some((znode, self.newest.fresh(znode)));
                What::Sync { znode }
            }
            _ => {
                let watches = self.random.below(WATCH_EVERY) == 0;
                What::Get { znode, watches, fresh: None }
            }
        };
        let op = match what {
            What::Get { .. } => Op::Get,
            What::Sync { .. } => Op::Sync,
            _ => op,
        };
        (op, what)
    }

    fn put(
        &mut self,
        connection: usize,
        due_ns: u64,
        (op, what): (Op, What),
        into: &mut Connection<Asked>,
    ) {
        let Shape { paths, sizes, created_below, znodes, .. } = &self.shape;
        let told = &mut self.told[connection];
        told.asked.push_back((what, self.newest.zxid.load(Ordering::SeqCst)));
        let number = told.number;
        let asked = Asked { op, due_ns, reply_bytes: ANY_LENGTH, tolerated: 0 };
        let put_set = |out: &mut Vec<u8>, mark: Mark| {
            paths.put_znode(out, mark.znode);
            mark.write(out, value_bytes(sizes, mark.znode));
            out.put_i32(-1);
        };
        match what {
            What::Get { znode, watches, .. } => into.ask(asked, code::GET_DATA, |out| {
                paths.put_znode(out, znode);
                out.put_bool(watches);
            }),
            What::Sync { znode } => {
                into.ask(asked, code::SYNC, |out| paths.put_znode(out, znode));
            }
            What::Exists { znode } => into.ask(asked, code::EXISTS, |out| {
                paths.put_znode(out, znode);
                out.put_bool(false);
            }),
            What::Children { .. } => into.ask(asked, code::GET_CHILDREN, |out| {
                out.put_text(&created_parent(created_below, number));
                out.put_bool(false);
            }),
            What::Set { mark } => into.ask(asked, code::SET_DATA, |out| put_set(out, mark)),
            What::Create { name } => into.ask(asked, code::CREATE, |out| {
                put_created(out, created_below, number, name);
                let is_ephemeral = op == Op::Ephemeral;
                let mode =
                    if is_ephemeral { CreateMode::Ephemeral } else { CreateMode::Persistent };
                put_new_znode(out, b"", mode);
            }),
            What::Delete { name } => into.ask(asked, code::DELETE, |out| {
                put_created(out, created_below, number, name);
                out.put_i32(-1);
            }),
            What::Multi { mark } => {
                // No right reply to one that must fail has this length.
                let reply_bytes = if mark.is_doomed { 1 } else { ANY_LENGTH };
                let tolerated = if mark.is_doomed { BAD_VERSION } else { 0 };
                into.ask(Asked { reply_bytes, tolerated, ..asked }, code::MULTI, |out| {
                    for znode in Checking::group(mark, *znodes) {
                        MultiHeader { kind: code::SET_DATA, done: false, err: -1 }.write(out);
                        put_set(out, Mark { znode, ..mark });
                    }
                    if mark.is_doomed {
                        MultiHeader { kind: code::CHECK, done: false, err: -1 }.write(out);
                        out.put_text(&created_parent(created_below, number));
                        out.put_i32(i32::MAX);
                    }
                    MULTI_END.write(out);
                });
            }
        }
    }

    /// Holds a stat that a session was shown against all it has seen.
    fn see(&mut self, connection: usize, znode: u64, stat: &Stat, zxid: i64, is_read: bool) {
        let told = &mut self.told[connection];
        let number = told.number;
        let floor = told.floors.entry(znode).or_insert(self.base[znode as usize]);
        let (version, mzxid) = (stat.version, stat.mzxid);
        if version < floor.version || mzxid < floor.mzxid {
            let Floor { version: least, mzxid: since } = *floor;
            let promise = if floor.version <= version { HALF } else { OLDER };
            self.violations.note(promise, || {
                format!(
                    "connection {number} sees znode {znode} at version {version} of zxid \
                     {mzxid:#x}, and has seen version {least} or zxid {since:#x}"
                )
            });
        }
        floor.version = floor.version.max(version);
        floor.mzxid = floor.mzxid.max(mzxid);
        if zxid < mzxid {
            self.violations.note(FELL, || {
                format!("connection {number} reads zxid {mzxid:#x} in a reply of {zxid:#x}")
            });
        }
        if is_read
            && let Some(&watched) = told.watches.get(&znode)
            && watched < mzxid
        {
            told.watches.remove(&znode);
            self.violations.note(LATE, || {
                format!(
                    "connection {number} watches znode {znode} since zxid {watched:#x}, reads \
                     zxid {mzxid:#x}, and has heard nothing"
                )
            });
        }
    }

    fn remember(&mut self, znode: u64, version: i32, seen: ReadAs) {
        let known = self.read.entry((znode, version)).or_insert(seen);
        if let Some(difference) = known.differs(seen) {
            self.violations.note(TWO_FACES, || format!("znode {znode}: {difference}"));
        }
        known.mark = known.mark.or(seen.mark);
    }

    fn on_get(
        &mut self,
        heard: &Heard<'_>,
        znode: u64,
        watches: bool,
        fresh: Option<Fresh>,
    ) -> Result<(), &'static str> {
        let reply = GetDataResponse::read(&mut Reader::new(heard.body))
            .map_err(|_| "a get's reply cannot be read")?;
        let (value, stat) = (reply.data.unwrap_or_default(), reply.stat);
        if stat.data_length as usize != value.len() {
            return Err("a get's stat tells another length than its value has");
        }
        self.see(heard.connection, znode, &stat, heard.zxid, true);
        if let Some(Fresh { zxid, mzxid }) = fresh {
            self.checked.syncs += 1;
            if heard.zxid < zxid || stat.mzxid < mzxid {
                let number = self.told[heard.connection].number;
                self.violations.note(STALE, || {
                    format!(
                        "connection {number} reads znode {znode} of zxid {:#x} in a reply of {:#x}, \
                         and {mzxid:#x} and {zxid:#x} were acknowledged before its sync",
                        stat.mzxid, heard.zxid
                    )
                });
            }
        }
        if watches {
            self.told[heard.connection].watches.entry(znode).or_insert(stat.mzxid);
        }
        let is_ours = self.base[znode as usize].version < stat.version;
        let mark = if is_ours { Mark::read(value) } else { None };
        self.remember(znode, stat.version, ReadAs { mzxid: stat.mzxid, mark });
        if !is_ours {
            return Ok(());
        }
        let right_bytes = value_bytes(&self.shape.sizes, znode);
        match mark {
            Some(mark) if mark.is_doomed => {
                self.violations.note(DOOMED, || {
                    format!(
                        "znode {znode} has the value of write {} of connection {}, which \
                             cannot have succeeded",
                        mark.serial, mark.writer
                    )
                });
            }
            Some(mark) if mark.znode == znode && value.len() == right_bytes => {
                // Whoever sees one of a multi's znodes must see the others, too.
                let (znodes, mzxid) = (self.znodes(), stat.mzxid);
                for other in Checking::group(mark, znodes) {
                    let base = self.base[other as usize];
                    let told = &mut self.told[heard.connection];
                    let floor = told.floors.entry(other).or_insert(base);
                    floor.mzxid = floor.mzxid.max(mzxid);
                }
            }
            mark => self
                .violations
                .note(FOREIGN, || format!("znode {znode} has {} bytes, of {mark:?}", value.len())),
        }
        Ok(())
    }

    /// Takes note of an acknowledged set, plain or of a multi.
    fn on_written(&mut self, heard: &Heard<'_>, stat: &Stat, mark: Mark) {
        if stat.mzxid != heard.zxid {
            let (mzxid, zxid) = (stat.mzxid, heard.zxid);
            self.violations.note(NOT_NEW, || {
                format!("the set of znode {} has zxid {mzxid:#x} in reply {zxid:#x}", mark.znode)
            });
        }
        self.see(heard.connection, mark.znode, stat, heard.zxid, false);
        let Stat { version, mzxid, .. } = *stat;
        self.newest.mzxids[mark.znode as usize].fetch_max(mzxid, Ordering::SeqCst);
        self.checked.versions_written += 1;
        self.written.push(Written { znode: mark.znode, version, mzxid, mark });
    }

    fn on_children(
        &mut self,
        heard: &Heard<'_>,
        first: u64,
        next: u64,
    ) -> Result<(), &'static str> {
        let found = names(heard.body).map_err(|_| "a listing cannot be read")?;
        let told = &mut self.told[heard.connection];
        if let Some(wrong) = told.look(first, next, &found.into_iter().collect()) {
            let number = told.number;
            self.violations.note(LISTED, || {
                format!("connection {number} has made {first} to {next}, and sees: {wrong}")
            });
        }
        Ok(())
    }

    fn on_multi(&mut self, heard: &Heard<'_>, mark: Mark) -> Result<(), &'static str> {
        let mut reader = Reader::new(heard.body);
        for znode in Checking::group(mark, self.znodes()) {
            let header =
                MultiHeader::read(&mut reader).map_err(|_| "a multi's reply ends early")?;
            if header.kind == code::ERROR {
                // Counted by its error, if it was not to be expected.
                return Ok(());
            }
            if mark.is_doomed {
                self.violations.note(DOOMED, || {
                    format!("multi {} of connection {} succeeds", mark.serial, mark.writer)
                });
                return Ok(());
            }
            if header.kind != code::SET_DATA {
                return Err("a multi's result is not that of a set");
            }
            let stat = Stat::read(&mut reader).map_err(|_| "a multi's stat cannot be read")?;
            self.on_written(heard, &stat, Mark { znode, ..mark });
        }
        Ok(())
    }

    fn check(&mut self, heard: &Heard<'_>, what: What) -> Result<(), &'static str> {
        let stat = || Stat::read(&mut Reader::new(heard.body)).map_err(|_| "no stat in a reply");
        match what {
            What::Get { znode, watches, fresh } => self.on_get(heard, znode, watches, fresh),
            What::Sync { znode } => {
                let mut path = Vec::new();
                self.shape.paths.put_znode(&mut path, znode);
                if path == heard.body { Ok(()) } else { Err("a sync's reply tells another path") }
            }
            What::Exists { znode } => {
                let stat = stat()?;
                self.see(heard.connection, znode, &stat, heard.zxid, true);
                let seen = ReadAs { mzxid: stat.mzxid, mark: None };
                self.remember(znode, stat.version, seen);
                Ok(())
            }
            What::Set { mark } => {
                let stat = stat()?;
                self.on_written(heard, &stat, mark);
                Ok(())
            }
            What::Multi { mark } => self.on_multi(heard, mark),
            What::Children { first, next } => self.on_children(heard, first, next),
            What::Create { name } => {
                let mut path = Vec::new();
                let number = self.told[heard.connection].number;
                put_created(&mut path, &self.shape.created_below, number, name);
                if path == heard.body { Ok(()) } else { Err("a create's reply tells another path") }
            }
            What::Delete { .. } if heard.body.is_empty() => Ok(()),
            What::Delete { .. } => Err("a delete's reply has a body"),
        }
    }
}

/// The name of what a connection creates.
fn name(number: u64) -> String {
    format!("{number:0NAME_DIGITS$}")
}

impl ReadAs {
    /// In what two looks at one version differ.
    fn differs(self, other: ReadAs) -> Option<String> {
        if self.mzxid != other.mzxid {
            return Some(format!("a version of zxid {:#x} and of {:#x}", self.mzxid, other.mzxid));
        }
        match (self.mark, other.mark) {
            (Some(one), Some(another)) if one != another => {
                Some(format!("a version of {one:?} and of {another:?}"))
            }
            _ => None,
        }
    }
}

impl Source for Checking {
    fn ask(&mut self, connection: usize, due_ns: u64, into: &mut Connection<Asked>) -> Next {
        let told = &mut self.told[connection];
        if matches!(told.end, End::NotYet) && self.end_ns <= due_ns {
            let mut watched: Vec<_> = told.watches.keys().copied().collect();
            watched.sort_unstable();
            told.end = End::LastReads(watched);
        }
        let what = match &mut told.end {
            End::NotYet => match told.to_read.take() {
                Some((znode, fresh)) => {
                    (Op::Get, What::Get { znode, watches: false, fresh: Some(fresh) })
                }
                None => self.next_what(connection),
            },
            End::LastReads(watched) => match watched.pop() {
                Some(znode) => (Op::Get, What::Get { znode, watches: false, fresh: None }),
                None => {
                    told.end = End::Ended;
                    self.ended += 1;
                    return if self.ended == self.told.len() { Next::Done } else { Next::Waits };
                }
            },
            End::Ended => return Next::Waits,
        };
        self.put(connection, due_ns, what, into);
        Next::Asked
    }

    fn on_lost(&mut self, connection: usize) {
        self.told[connection].give_up_asked();
    }

    fn on_expired(&mut self, connection: usize, now_ns: u64, timeout_ms: i32) {
        let told = &mut self.told[connection];
        // They go with the session, and so do its watches.
        told.watches.clear();
        for number in mem::take(&mut told.ephemerals) {
            let fate = told.fates.get(&number).map_or(Fate::MayGo, |fate| fate.on_doubt());
            told.fates.insert(number, fate);
        }
        let lived_ms = now_ns.saturating_sub(told.heard_ns) / 1_000_000;
        // A follower that dies takes with it whom it has heard of in the last half of a tick, and
        // no timeout is below two ticks.
        if lived_ms < u64::from(timeout_ms.unsigned_abs()) * 3 / 4 {
            let number = told.number;
            self.violations.note(FORGOTTEN, || {
                format!(
                    "the session of connection {number} has expired {lived_ms} ms after the \
                     server has heard of it, and was to live for {timeout_ms} ms"
                )
            });
        }
    }

    fn on_return(&mut self, connection: usize, into: &mut Connection<Asked>) {
        let mut watched: Vec<_> = self.told[connection].watches.keys().copied().collect();
        watched.sort_unstable();
        self.checked.watches_again += watched.len() as u64;
        for znodes in watched.chunks(SET_WATCHES_MAX) {
            let path = |&znode: &u64| Some(self.shape.paths.znode(znode).into());
            let request = SetWatches {
                relative_zxid: into.zxid(),
                data_watches: Some(znodes.iter().map(path).collect()),
                exist_watches: Some(Vec::new()),
                child_watches: Some(Vec::new()),
            };
            into.set_watches(&request);
        }
    }

    fn on_closed(&mut self, connection: usize) {
        self.told[connection].is_closed = true;
    }

    fn on_reply(&mut self, heard: &Heard<'_>, asked: &Asked, _achieved: &mut Vec<Achieved>) {
        self.checked.replies += 1;
        let told = &mut self.told[heard.connection];
        told.heard_ns = asked.due_ns;
        let (number, before) = (told.number, told.zxid);
        let (what, after) =
            told.asked.pop_front().expect("what was asked is remembered until its reply");
        if what.writes() && heard.err == 0 {
            if heard.zxid <= after {
                self.violations.note(OVERTAKEN, || {
                    format!(
                        "connection {number} has {what:?} at {:#x} after {after:#x}",
                        heard.zxid
                    )
                });
            }
            self.newest.zxid.fetch_max(heard.zxid, Ordering::SeqCst);
        }
        if heard.zxid < before || (what.writes() && heard.err == 0 && heard.zxid == before) {
            let promise = if heard.zxid < before { FELL } else { NOT_NEW };
            self.violations.note(promise, || {
                format!("connection {number} has {what:?} at {:#x} after {before:#x}", heard.zxid)
            });
        }
        told.zxid = before.max(heard.zxid);
        if heard.err == 0
            && let Err(odd) = self.check(heard, what)
        {
            self.violations.note(ODD, || format!("connection {number}, {what:?}: {odd}"));
        }
    }

    fn on_event(&mut self, heard: &Heard<'_>, _achieved: &mut Vec<Achieved>) {
        self.checked.events += 1;
        let told = &mut self.told[heard.connection];
        let event = WatcherEvent::read(&mut Reader::new(heard.body));
        let znode = event.as_ref().ok().and_then(|event| {
            let path = event.path.as_deref()?;
            path.rsplit_once('/')?.1.parse::<u64>().ok()
        });
        let is_expected = event.is_ok_and(|event| event.kind == EventType::NodeDataChanged as i32)
            && znode.is_some_and(|znode| told.watches.remove(&znode).is_some());
        if !is_expected {
            let number = told.number;
            self.violations.note(UNASKED, || format!("connection {number}, znode {znode:?}"));
        }
    }

    fn is_done(&self) -> bool {
        self.ended == self.told.len() || self.deadline <= Instant::now()
    }
}

/// Reads all znodes once.
struct Survey {
    paths: Paths,
    next: u64,
    end: u64,
    seen: Vec<(Floor, Option<Mark>)>,
    odd: u64,
}

impl Survey {
    fn of(server: SocketAddr, shape: &Shape) -> Result<Survey, Fault> {
        let plan = Plan::of_list(vec![server], 256, LIST_TIMEOUT_MS);
        let source = Survey {
            paths: shape.paths.clone(),
            next: 0,
            end: shape.znodes,
            seen: Vec::new(),
            odd: 0,
        };
        let driven = drive(&plan, vec![Crew { connections: vec![0], source }], &mut |_| Ok(()))?;
        if let Some((reason, _)) = driven.tally.dropped.first_key_value() {
            let (requests, reason) = (driven.tally.unanswered, reason.clone());
            return Err(Fault::Unanswered { requests, reason });
        }
        let survey = driven.sources.into_iter().next().expect("the source of the one thread");
        if survey.odd != 0 || survey.seen.len() as u64 != shape.znodes {
            let what = format!(
                "{} of {} znodes could be read",
                survey.seen.len() as u64 - survey.odd,
                shape.znodes
            );
            return Err(Fault::SetUp { what });
        }
        Ok(survey)
    }
}

impl Source for Survey {
    fn ask(&mut self, _connection: usize, due_ns: u64, into: &mut Connection<Asked>) -> Next {
        if self.next == self.end {
            return Next::Done;
        }
        let asked = Asked { op: Op::Get, due_ns, reply_bytes: ANY_LENGTH, tolerated: 0 };
        into.ask(asked, code::GET_DATA, |out| {
            self.paths.put_znode(out, self.next);
            out.put_bool(false);
        });
        self.next += 1;
        Next::Asked
    }

    fn on_reply(&mut self, heard: &Heard<'_>, _asked: &Asked, _achieved: &mut Vec<Achieved>) {
        let reply = GetDataResponse::read(&mut Reader::new(heard.body));
        let seen = match (heard.err, reply) {
            (0, Ok(reply)) => {
                let floor = Floor { version: reply.stat.version, mzxid: reply.stat.mzxid };
                (floor, Mark::read(reply.data.unwrap_or_default()))
            }
            _ => {
                self.odd += 1;
                (Floor::default(), None)
            }
        };
        self.seen.push(seen);
    }
}

/// Does something for which the server has to be there; again, if it goes meanwhile.
fn persist<T>(mut attempt: impl FnMut() -> Result<T, Fault>) -> Result<T, Fault> {
    let since = Instant::now();
    loop {
        match attempt() {
            Err(
                Fault::Connect { source: Lost::Closed | Lost::Io(_), .. }
                | Fault::Unanswered { .. }
                | Fault::NoSession { .. },
            ) if since.elapsed() < BACK_WITHIN => thread::sleep(TRY_EVERY),
            done => return done,
        }
    }
}

impl Verify {
    #[must_use]
    pub fn command(&self) -> String {
        let command = self.load.to_string().replacen("loadgen run", "loadgen verify", 1);
        let every = self.drop_every.map(|every| format!(" --drop-every {}", span(every)));
        let no_sync = if self.has_syncs { "" } else { " --no-sync" };
        format!("{command}{}{no_sync}", every.unwrap_or_default())
    }

    /// Makes the load with every reply checked. Its rate is not kept: the loop is closed.
    pub fn run(&self, pid: Option<u32>, progress: Progress<'_>) -> Result<Verdict, Fault> {
        Ok(self.run_on(&Stage::default(), pid, &mut passes_seconds(progress))?.report)
    }

    /// The same where servers come and go.
    pub fn run_on(
        &self,
        stage: &Stage,
        pid: Option<u32>,
        at: At<'_>,
    ) -> Result<Ran<Verdict>, Fault> {
        let Verify { load, drop_every, has_syncs } = self;
        load.check()?;
        hold(&[
            (load.rate.is_none(), "verify asks as quickly as it is answered: no rate"),
            (
                drop_every.is_none_or(|every| !every.is_zero()),
                "connections are dropped some time apart, not 0s",
            ),
        ])?;
        let servers = resolve(&load.servers)?;
        // From here on the servers are known to be some that can go and come back.
        servers.iter().try_for_each(|&server| catch_up(server))?;
        let run = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let shape = Shape { checks_lengths: false, ..load.shape(run) };
        let mut costs = Costs::new(pid);
        costs.look_unconnected()?;
        persist(|| load.set_up(&servers, &shape, true))?;
        let base = persist(|| Survey::of(servers[0], &shape))?;
        let base = Arc::new(base.seen.into_iter().map(|(floor, _)| floor).collect::<Vec<_>>());
        let newest = Arc::new(Newest::of(load.znodes));
        let span = load.warmup + load.duration;
        let crews = split(load.connections, load.threads)
            .into_iter()
            .map(|connections| {
                let source =
                    Checking::new(&shape, &connections, (&base, &newest), *has_syncs, span);
                Crew { connections, source }
            })
            .collect();
        let plan = Plan {
            homes: stage.homes.clone(),
            reconnect: Some(Reconnect { drop_every: *drop_every, seed: load.seed }),
            holds: true,
            ..Plan::of_list(servers.clone(), load.depth, load.session_timeout_ms)
        };
        let look_everywhere = || {
            let look = |&server: &SocketAddr| {
                persist(|| {
                    catch_up(server)?;
                    audit::list_created(server, &shape, load.connections)
                })
            };
            servers.iter().map(look).collect::<Result<Vec<_>, Fault>>()
        };
        // While all sessions live, with their ephemeral znodes.
        let mut living = Vec::new();
        let driven = drive(&plan, crews, &mut |moment| {
            costs.look_at(moment)?;
            at(moment)?;
            if moment == Moment::Held {
                living = look_everywhere()?;
            }
            Ok(())
        })?;
        let (server, own) = (costs.server(&driven), costs.own(&driven));
        let summary = Summary::new(&driven.tally, driven.seconds);
        let (sources, driven) = driven.without_sources();
        let mut audit = Audit::of(&shape, &base, sources);
        for (server, listings) in servers.iter().zip(&living) {
            audit.look_for_living(*server, listings);
        }
        for (server, listings) in servers.iter().zip(&look_everywhere()?) {
            audit.look_for_created(*server, listings);
        }
        let surveys = servers.iter().map(|&server| persist(|| Survey::of(server, &shape)));
        let surveys = surveys.collect::<Result<Vec<_>, Fault>>()?;
        audit.hold_equal(&servers, &surveys);
        audit.hold_versions_against(&surveys[0]);
        audit.checked.servers = servers.len();
        if !load.keep {
            let below = || shape.created_below.clone();
            persist(|| load.clean_up(&servers, below(), audit.created()))?;
        }
        let verdict = Verdict {
            command: self.command(),
            load: load.clone(),
            summary,
            server,
            own,
            checked: audit.checked,
            violations: audit.violations.counts,
            examples: audit.violations.examples,
        };
        Ok(Ran::new(verdict, driven))
    }
}

impl Checking {
    fn new(
        shape: &Shape,
        connections: &[usize],
        (base, newest): (&Arc<Vec<Floor>>, &Arc<Newest>),
        has_syncs: bool,
        span: Duration,
    ) -> Checking {
        let thread = connections.first().copied().unwrap_or(0) as u64;
        let mut random = Random::new(shape.seed ^ thread.wrapping_mul(0xd6e8_feb8_6659_fd93));
        Checking {
            shape: shape.clone(),
            chooser: Chooser::new(shape.keys, shape.znodes, &mut random),
            random,
            base: Arc::clone(base),
            newest: Arc::clone(newest),
            has_syncs,
            told: connections
                .iter()
                .map(|&number| Told {
                    number,
                    asked: VecDeque::new(),
                    to_read: None,
                    zxid: 0,
                    heard_ns: 0,
                    serial: 0,
                    floors: HashMap::new(),
                    watches: HashMap::new(),
                    first: 0,
                    next: 0,
                    ephemerals: BTreeSet::new(),
                    is_closed: false,
                    fates: BTreeMap::new(),
                    unknown: Vec::new(),
                    unknown_writes: 0,
                    end: End::NotYet,
                })
                .collect(),
            written: Vec::new(),
            read: HashMap::new(),
            violations: Violations::default(),
            checked: Checked::default(),
            end_ns: span.as_nanos() as u64,
            deadline: Instant::now() + span + END_WITHIN,
            ended: 0,
        }
    }
}

/// Has a server catch up with what another has acknowledged.
fn catch_up(server: SocketAddr) -> Result<(), Fault> {
    let mut session = connect(server)?;
    let synced = session.sync("/").map_err(|source| Fault::Connect { server, source })?;
    session.close();
    synced.map(drop).map_err(|err| Fault::SetUp { what: format!("sync: {}", code_name(err)) })
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.command)?;
        write!(f, "{}", self.summary)?;
        if let Some(server) = &self.server {
            writeln!(f, "{server}")?;
        }
        writeln!(f, "{}", self.own)?;
        let Checked {
            replies,
            events,
            syncs,
            watches_again,
            servers,
            versions_written,
            versions_read,
            created,
            unknown,
            unknown_done,
        } = self.checked;
        writeln!(
            f,
            "checked: {replies} replies, {events} events, {syncs} reads after a sync, \
             {versions_written} versions written, {versions_read} read, {created} znodes created and \
             not deleted, on {servers} servers; {watches_again} watches set again"
        )?;
        let Reconnects { dropped, lost, resumed, moved, expired, .. } = self.summary.reconnects;
        if 0 < dropped + lost {
            writeln!(
                f,
                "{dropped} connections dropped and {lost} lost: {resumed} times the session went \
                 on, {moved} of these on another server, {expired} times it had expired; {unknown} writes of unknown outcome, \
                 {unknown_done} sets of these seen to be done"
            )?;
        }
        for (promise, count) in &self.violations {
            writeln!(f, "VIOLATED {count} times: {promise}")?;
        }
        for example in &self.examples {
            writeln!(f, "  {example}")?;
        }
        if self.violations.is_empty() {
            writeln!(f, "every promise kept")?;
        }
        Ok(())
    }
}

/// The mix where none is asked for.
#[must_use]
pub fn usual_mix() -> Mix {
    USUAL_MIX.parse().expect("a mix that can be read")
}

#[cfg(test)]
mod tests {
    use ringkeeper::record::proto::SetDataRequest;

    use super::*;

    #[test]
    fn a_mark_is_read_as_it_is_written() {
        let mark = Mark { writer: 1, serial: 300, znode: 2, first: 9, count: 4, is_doomed: true };
        for bytes in [MARK_BYTES, 100] {
            let mut out = Vec::new();
            mark.write(&mut out, bytes);
            assert_eq!(out.len(), 4 + bytes);
            assert_eq!(Mark::read(&out[4..]), Some(mark));
            assert_eq!(Mark::read(&out[5..]), None);
        }
        let mut set = Vec::new();
        Paths::new("/r", 10, 1).put_znode(&mut set, 2);
        mark.write(&mut set, 40);
        set.put_i32(-1);
        let read = SetDataRequest::read(&mut Reader::new(&set)).unwrap();
        assert_eq!(Mark::read(read.data.unwrap()), Some(mark));
    }

    #[test]
    fn the_usual_mix_can_be_read() {
        assert_eq!(usual_mix().to_string(), USUAL_MIX);
    }
}
