//! The same load with every reply checked, so that speed is never bought with wrong answers.
//!
//! Every value says who wrote it, and with what others. While the load runs, each session is
//! held to what ZooKeeper promises a session; afterwards, what all sessions were told is put
//! together and held against what is there.
//!
//! | checked | where |
//! |---|---|
//! | replies in the order of requests | `client`, which gives the connection up |
//! | zxids of a session never fall, and a write's is new | each reply |
//! | a session never sees a znode older than it has: its own writes, and what it has read | each reply |
//! | a read that shows one znode of a multi is followed by none that misses another | each reply |
//! | a multi that cannot succeed changes nothing | each value read |
//! | children are exactly those that the session has made | each listing |
//! | a watch's event comes before newer data | each read, and a last one of each watched znode |
//! | a version has one zxid and one writer, whoever looks | reads of all sessions together |
//! | versions grow by one with each acknowledged set, in the order of zxids | afterwards |
//! | what was acknowledged is there, and nothing else | afterwards |
//!
//! Histories are kept in memory: about 100 bytes for each write and each version that was read.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ringkeeper::jute::record::Record as _;
use ringkeeper::jute::{Reader, Write as _};
use ringkeeper::record::data::Stat;
use ringkeeper::record::op::{CreateMode, EventType, code};
use ringkeeper::record::proto::{GetDataResponse, MULTI_END, MultiHeader, WatcherEvent};
use serde::Serialize;

use crate::client::{Connection, names};
use crate::driver::{Crew, Pace, Plan, Span, drive, split};
use crate::keys::{Chooser, Random};
use crate::paths::{NAME_DIGITS, Paths};
use crate::report::{OwnCost, ServerCost, Summary, code_name};
use crate::sizes::Sizes;
use crate::workload::{
    ANY_LENGTH, Achieved, Asked, Heard, Mix, Next, Op, Shape, Source, created_parent, put_created,
    put_new_znode,
};
use crate::{Costs, Fault, LIST_TIMEOUT_MS, Load, Progress, connect, resolve};

/// What is asked where nothing else is: some of everything.
pub const USUAL_MIX: &str = "get=40,exists=5,children=5,set=20,create=10,delete=8,multi=12";

/// How long the last replies may take once all has been asked.
const END_WITHIN: Duration = Duration::from_secs(15);
/// The most violations that are told in full.
const EXAMPLES_MAX: usize = 20;
/// What a connection creates beyond this many it deletes first, so that listings stay short.
const CREATED_MAX: u64 = 100;
/// One get in so many places a watch.
const WATCH_EVERY: u64 = 4;
/// One multi in so many is made to fail.
const DOOMED_EVERY: u64 = 4;
const BAD_VERSION: i32 = -103;

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
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
    /// Versions that sets and multis were acknowledged with.
    pub versions_written: u64,
    /// Different versions that reads have shown.
    pub versions_read: u64,
    /// Created, not deleted, and looked for at the end.
    pub created: u64,
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

/// The least that a session may see of a znode.
#[derive(Clone, Copy, Debug, Default)]
struct Floor {
    version: i32,
    mzxid: i64,
}

/// What one session has been told.
struct Told {
    /// Its number over all threads.
    number: usize,
    asked: VecDeque<What>,
    zxid: i64,
    serial: u32,
    floors: HashMap<u64, Floor>,
    /// The znodes watched, and the mzxid that each had.
    watches: HashMap<u64, i64>,
    /// The znodes it has made: `first..next`.
    first: u64,
    next: u64,
    end: End,
}

/// How a session comes to its end.
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
const ODD: &str = "a reply is what its request asks for";

/// One thread's load.
struct Checking {
    shape: Shape,
    chooser: Chooser,
    random: Random,
    base: Arc<Vec<Floor>>,
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
                What::Create { name: told.next - 1 }
            }
            Op::Delete => {
                told.first += 1;
                What::Delete { name: told.first - 1 }
            }
            _ => What::Get { znode, watches: self.random.below(WATCH_EVERY) == 0 },
        };
        let op = if matches!(what, What::Get { .. }) { Op::Get } else { op };
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
        told.asked.push_back(what);
        let number = told.number;
        let asked = Asked { op, due_ns, reply_bytes: ANY_LENGTH, tolerated: 0 };
        let put_set = |out: &mut Vec<u8>, mark: Mark| {
            paths.put_znode(out, mark.znode);
            mark.write(out, value_bytes(sizes, mark.znode));
            out.put_i32(-1);
        };
        match what {
            What::Get { znode, watches } => into.ask(asked, code::GET_DATA, |out| {
                paths.put_znode(out, znode);
                out.put_bool(watches);
            }),
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

    fn on_get(&mut self, heard: &Heard<'_>, znode: u64, watches: bool) -> Result<(), &'static str> {
        let reply = GetDataResponse::read(&mut Reader::new(heard.body))
            .map_err(|_| "a get's reply cannot be read")?;
        let (value, stat) = (reply.data.unwrap_or_default(), reply.stat);
        if stat.data_length as usize != value.len() {
            return Err("a get's stat tells another length than its value has");
        }
        self.see(heard.connection, znode, &stat, heard.zxid, true);
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
        self.checked.versions_written += 1;
        self.written.push(Written { znode: mark.znode, version, mzxid, mark });
    }

    fn on_children(
        &mut self,
        heard: &Heard<'_>,
        first: u64,
        next: u64,
    ) -> Result<(), &'static str> {
        let mut found = names(heard.body).map_err(|_| "a listing cannot be read")?;
        found.sort_unstable();
        let expected = (first..next).map(name);
        if !expected.eq(found.iter().cloned()) {
            let number = self.told[heard.connection].number;
            self.violations.note(LISTED, || {
                format!(
                    "connection {number} has made {first} to {next} and sees {} of them, {:?} to \
                     {:?}",
                    found.len(),
                    found.first(),
                    found.last()
                )
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
            What::Get { znode, watches } => self.on_get(heard, znode, watches),
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
            End::NotYet => self.next_what(connection),
            End::LastReads(watched) => match watched.pop() {
                Some(znode) => (Op::Get, What::Get { znode, watches: false }),
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

    fn on_reply(&mut self, heard: &Heard<'_>, _asked: &Asked, _achieved: &mut Vec<Achieved>) {
        self.checked.replies += 1;
        let told = &mut self.told[heard.connection];
        let (number, before) = (told.number, told.zxid);
        let what = told.asked.pop_front().expect("what was asked is remembered until its reply");
        let writes =
            !matches!(what, What::Get { .. } | What::Exists { .. } | What::Children { .. });
        if heard.zxid < before || (writes && heard.err == 0 && heard.zxid == before) {
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
    fn of(server: std::net::SocketAddr, shape: &Shape) -> Result<Survey, Fault> {
        let plan = Plan {
            servers: vec![server],
            depth: 256,
            session_timeout_ms: LIST_TIMEOUT_MS,
            pace: Pace::Closed,
            span: Span::UntilDone,
        };
        let source = Survey {
            paths: shape.paths.clone(),
            next: 0,
            end: shape.znodes,
            seen: Vec::new(),
            odd: 0,
        };
        let driven = drive(&plan, vec![Crew { connections: vec![0], source }], &mut |_| Ok(()))?;
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

impl Load {
    /// Makes the load with every reply checked. Its rate is not kept: the loop is closed.
    pub fn verify(&self, pid: Option<u32>, progress: Progress<'_>) -> Result<Verdict, Fault> {
        self.check()?;
        if self.rate.is_some() {
            return Err(Fault::Load(
                "verify asks as quickly as it is answered: no rate".to_owned(),
            ));
        }
        let servers = resolve(&self.servers)?;
        let run = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let shape = Shape { checks_lengths: false, ..self.shape(run) };
        let mut costs = Costs::new(pid);
        costs.look_unconnected()?;
        self.set_up(&servers, &shape, true)?;
        let base = Survey::of(servers[0], &shape)?;
        let base = Arc::new(base.seen.into_iter().map(|(floor, _)| floor).collect::<Vec<_>>());
        let span = self.warmup + self.duration;
        let crews = split(self.connections, self.threads)
            .into_iter()
            .map(|connections| {
                let source = Checking::new(&shape, &connections, &base, span);
                Crew { connections, source }
            })
            .collect();
        let plan = Plan {
            servers: servers.clone(),
            depth: self.depth,
            session_timeout_ms: self.session_timeout_ms,
            pace: Pace::Closed,
            span: Span::UntilDone,
        };
        let driven = drive(&plan, crews, &mut |moment| costs.progress(moment, progress))?;
        let (server, own) = (costs.server(&driven), costs.own(&driven));
        let summary = Summary::new(&driven.tally, driven.seconds);
        let mut audit = Audit::of(&servers, &shape, &base, driven.sources)?;
        audit.look_for_created(&servers, &shape)?;
        audit.hold_versions_against(&Survey::of(servers[0], &shape)?);
        if !self.keep {
            let created = audit.created();
            self.clean_up(&servers, shape.created_below, created)?;
        }
        Ok(Verdict {
            load: self.clone(),
            summary,
            server,
            own,
            checked: audit.checked,
            violations: audit.violations.counts,
            examples: audit.violations.examples,
        })
    }
}

impl Checking {
    fn new(
        shape: &Shape,
        connections: &[usize],
        base: &Arc<Vec<Floor>>,
        span: Duration,
    ) -> Checking {
        let thread = connections.first().copied().unwrap_or(0) as u64;
        let mut random = Random::new(shape.seed ^ thread.wrapping_mul(0xd6e8_feb8_6659_fd93));
        Checking {
            shape: shape.clone(),
            chooser: Chooser::new(shape.keys, shape.znodes, &mut random),
            random,
            base: Arc::clone(base),
            told: connections
                .iter()
                .map(|&number| Told {
                    number,
                    asked: VecDeque::new(),
                    zxid: 0,
                    serial: 0,
                    floors: HashMap::new(),
                    watches: HashMap::new(),
                    first: 0,
                    next: 0,
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

/// All that was told, put together.
struct Audit {
    base: Arc<Vec<Floor>>,
    /// By znode and version.
    written: BTreeMap<(u64, i32), Written>,
    /// How many sets of a znode were acknowledged.
    acknowledged: HashMap<u64, i64>,
    read: BTreeMap<(u64, i32), ReadAs>,
    /// How many sets of a znode may or may not have happened.
    unknown: HashMap<u64, u64>,
    sessions: Vec<Made>,
    violations: Violations,
    checked: Checked,
}

/// What a session has made: `first..next` for certain, but what is unknown.
struct Made {
    number: usize,
    first: u64,
    next: u64,
    unknown: Vec<u64>,
}

impl Audit {
    fn of(
        servers: &[std::net::SocketAddr],
        shape: &Shape,
        base: &Arc<Vec<Floor>>,
        sources: Vec<Checking>,
    ) -> Result<Audit, Fault> {
        let server = servers[0];
        // Another server than the one that acknowledged may be behind it.
        let mut session = connect(server)?;
        let synced = session.sync("/").map_err(|source| Fault::Connect { server, source })?;
        session.close();
        synced.map_err(|err| Fault::SetUp { what: format!("sync: {}", code_name(err)) })?;
        let mut audit = Audit {
            base: Arc::clone(base),
            written: BTreeMap::new(),
            acknowledged: HashMap::new(),
            read: BTreeMap::new(),
            unknown: HashMap::new(),
            sessions: Vec::new(),
            violations: Violations::default(),
            checked: Checked::default(),
        };
        let mut reads = Vec::new();
        for source in sources {
            audit.violations.merge(source.violations);
            audit.checked.replies += source.checked.replies;
            audit.checked.events += source.checked.events;
            audit.checked.versions_written += source.checked.versions_written;
            for told in source.told {
                audit.take_session(&told, shape.znodes);
            }
            for written in source.written {
                audit.take_written(written);
            }
            reads.push(source.read);
        }
        // Once all writes are known, of whatever thread.
        for read in reads {
            let mut read: Vec<_> = read.into_iter().collect();
            read.sort_unstable_by_key(|&(key, _)| key);
            for (key, seen) in read {
                audit.take_read(key, seen);
            }
        }
        audit.checked.versions_read = audit.read.len() as u64;
        Ok(audit)
    }

    fn take_session(&mut self, told: &Told, znodes: u64) {
        let mut unknown = Vec::new();
        for what in &told.asked {
            match *what {
                What::Create { name } | What::Delete { name } => unknown.push(name),
                What::Set { mark } | What::Multi { mark } => {
                    for znode in Checking::group(mark, znodes) {
                        *self.unknown.entry(znode).or_default() += 1;
                    }
                }
                What::Get { .. } | What::Exists { .. } | What::Children { .. } => {}
            }
        }
        let Told { number, first, next, .. } = *told;
        self.sessions.push(Made { number, first, next, unknown });
    }

    fn take_written(&mut self, written: Written) {
        let Written { znode, version, .. } = written;
        *self.acknowledged.entry(znode).or_default() += 1;
        if let Some(other) = self.written.insert((znode, version), written) {
            self.violations.note(STEPS, || {
                format!("two sets of znode {znode} have version {version}: {other:?}, {written:?}")
            });
        }
    }

    fn take_read(&mut self, (znode, version): (u64, i32), seen: ReadAs) {
        let known = *self.read.entry((znode, version)).or_insert(seen);
        if let Some(difference) = known.differs(seen) {
            self.violations.note(TWO_FACES, || format!("znode {znode}: {difference}"));
        }
        let Some(written) = self.written.get(&(znode, version)) else { return };
        let as_written = ReadAs { mzxid: written.mzxid, mark: Some(written.mark) };
        if let Some(difference) = as_written.differs(seen) {
            self.violations.note(TWO_FACES, || format!("znode {znode}, as written: {difference}"));
        }
    }

    /// Lists what each session has created.
    fn look_for_created(
        &mut self,
        servers: &[std::net::SocketAddr],
        shape: &Shape,
    ) -> Result<(), Fault> {
        let server = servers[0];
        let mut session = connect(server)?;
        for made in &self.sessions {
            // Ephemeral znodes have gone with their session; a mix of both kinds is not told
            // apart here.
            if shape.mix.ops().any(|op| op == Op::Ephemeral) {
                continue;
            }
            let path = created_parent(&shape.created_below, made.number);
            let found =
                session.children(&path).map_err(|source| Fault::Connect { server, source })?;
            let found = match found {
                Ok(found) => found,
                Err(err) => {
                    self.violations.note(LOST, || format!("{path}: {}", code_name(err)));
                    continue;
                }
            };
            let certain = |number: &u64| !made.unknown.contains(number);
            let expected: Vec<_> = (made.first..made.next).filter(certain).map(name).collect();
            self.checked.created += expected.len() as u64;
            for lost in expected.iter().filter(|name| !found.contains(name)) {
                self.violations
                    .note(LOST, || format!("{path}/{lost} was created, and is not there"));
            }
            let unknown: Vec<_> = made.unknown.iter().copied().map(name).collect();
            let is_known = |name: &&String| !expected.contains(name) && !unknown.contains(name);
            for extra in found.iter().filter(is_known) {
                self.violations.note(LISTED, || format!("{path}/{extra} is there, and should not"));
            }
        }
        session.close();
        Ok(())
    }

    /// Each znode's versions, from what it had before to what it has.
    fn hold_versions_against(&mut self, survey: &Survey) {
        let mut zxids: BTreeMap<i64, (u32, u32)> = BTreeMap::new();
        for (znode, (last, mark)) in survey.seen.iter().enumerate() {
            let base = self.base[znode];
            let znode = znode as u64;
            let unknown = self.unknown.get(&znode).copied().unwrap_or(0);
            let versions = self.written.range((znode, i32::MIN)..=(znode, i32::MAX));
            let written: Vec<_> = versions.map(|(_, written)| *written).collect();
            let steps = i64::from(last.version) - i64::from(base.version);
            let known = self.acknowledged.get(&znode).copied().unwrap_or(0);
            if steps < known || known + (unknown as i64) < steps {
                self.violations.note(if steps < known { LOST } else { STEPS }, || {
                    format!(
                        "znode {znode} went from version {} to {} by {known} acknowledged sets \
                         and up to {unknown} others",
                        base.version, last.version
                    )
                });
            }
            let mut before = base;
            for one in &written {
                let is_step = unknown != 0 || one.version == before.version + 1;
                if one.mzxid <= before.mzxid || !is_step {
                    self.violations
                        .note(STEPS, || format!("znode {znode}: after {before:?} comes {one:?}"));
                }
                before = Floor { version: one.version, mzxid: one.mzxid };
                let writer = (one.mark.writer, one.mark.serial);
                let first = *zxids.entry(one.mzxid).or_insert(writer);
                if first != writer {
                    self.violations.note(NOT_NEW, || {
                        format!("zxid {:#x} is that of {first:?} and {writer:?}", one.mzxid)
                    });
                }
            }
            if let Some(newest) = written.last()
                && newest.version == last.version
                && (newest.mzxid != last.mzxid || mark.is_none_or(|mark| mark != newest.mark))
            {
                self.violations.note(LOST, || {
                    format!("znode {znode} was last set as {newest:?} and is {last:?}, {mark:?}")
                });
            }
        }
        let foreign = self.read.iter().filter(|&(&(znode, version), _)| {
            self.base[znode as usize].version < version
                && !self.written.contains_key(&(znode, version))
                && !self.unknown.contains_key(&znode)
        });
        for (&(znode, version), seen) in foreign {
            self.violations.note(FOREIGN, || {
                format!("znode {znode} was read at version {version} ({seen:?}) that nobody wrote")
            });
        }
    }

    fn created(&self) -> Vec<crate::workload::Created> {
        let created = |made: &Made| crate::workload::Created {
            connection: made.number,
            first: made.unknown.iter().copied().min().unwrap_or(made.first).min(made.first),
            next: made.next,
        };
        self.sessions.iter().map(created).collect()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let command = self.load.to_string();
        writeln!(f, "{}", command.replacen("loadgen run", "loadgen verify", 1))?;
        write!(f, "{}", self.summary)?;
        if let Some(server) = &self.server {
            writeln!(f, "{server}")?;
        }
        writeln!(f, "{}", self.own)?;
        let Checked { replies, events, versions_written, versions_read, created } = self.checked;
        writeln!(
            f,
            "checked: {replies} replies, {events} events, {versions_written} versions written, \
             {versions_read} read, {created} znodes created and not deleted"
        )?;
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
