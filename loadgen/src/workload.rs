//! What is asked: operations and their mix, and the requests' bytes.
//!
//! The znodes that are read and set are where `paths` says. What is created and deleted is below
//! `/loadgen/created/RUN/00017/0000000042`: of one run, by connection, counted up.

use std::fmt;
use std::str::FromStr;

use ringkeeper::jute::record::Record as _;
use ringkeeper::jute::{Reader, Write as _};
use ringkeeper::record::data::AclBytes;
use ringkeeper::record::op::{CreateMode, code};
use ringkeeper::record::proto::{MULTI_END, MultiHeader};
use serde::{Deserialize, Serialize};

use crate::NO_NODE;
use crate::client::Connection;
use crate::keys::{Chooser, Keys, Random};
use crate::paths::{NAME_DIGITS, Paths, put_digits};
use crate::sizes::Sizes;

/// The bytes of a `Stat` in a reply.
pub const STAT_BYTES: usize = 68;
/// The bytes of the header before each result of a multi, and after the last.
const MULTI_HEADER_BYTES: usize = 9;

/// What is measured: requests, and what several of them, or an event, achieve. Reports go by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    Get,
    Exists,
    Children,
    Set,
    Create,
    /// A create of an ephemeral znode.
    Ephemeral,
    Delete,
    Multi,
    /// A client's `sync`, which brings its server up to date.
    Sync,
    /// A watch that is placed.
    Watch,
    /// From a write to a watch event of it.
    Event,
    /// From the first write of a round to the last event.
    Last,
    /// From the wish for a lock to its holding.
    Lock,
    /// From the wish for an element of a queue to its having.
    Take,
    /// From the first packet to a session.
    Connect,
    /// The same for a session that lives already.
    Reconnect,
    /// From the request to end a session to its end.
    Close,
}

impl Op {
    /// What a mix is made of.
    pub const OF_A_MIX: [Op; 8] = [
        Op::Get,
        Op::Exists,
        Op::Children,
        Op::Set,
        Op::Create,
        Op::Ephemeral,
        Op::Delete,
        Op::Multi,
    ];

    /// Whether it is a request, not what several achieve together.
    #[must_use]
    pub const fn is_request(self) -> bool {
        !matches!(self, Op::Event | Op::Last | Op::Lock | Op::Take)
    }

    /// Whether its reply acknowledges a write.
    #[must_use]
    pub const fn is_write(self) -> bool {
        matches!(self, Op::Set | Op::Create | Op::Ephemeral | Op::Delete | Op::Multi)
    }

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Op::Get => "get",
            Op::Exists => "exists",
            Op::Children => "children",
            Op::Set => "set",
            Op::Create => "create",
            Op::Ephemeral => "ephemeral",
            Op::Delete => "delete",
            Op::Multi => "multi",
            Op::Sync => "sync",
            Op::Watch => "watch",
            Op::Event => "event",
            Op::Last => "last",
            Op::Lock => "lock",
            Op::Take => "take",
            Op::Connect => "connect",
            Op::Reconnect => "reconnect",
            Op::Close => "close",
        }
    }
}

/// Operations and their shares: `get=80,set=20`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Mix(Vec<(Op, u32)>);

impl Mix {
    #[must_use]
    pub fn only(op: Op) -> Mix {
        Mix(vec![(op, 1)])
    }

    pub fn ops(&self) -> impl Iterator<Item = Op> {
        self.0.iter().map(|&(op, _)| op)
    }

    /// One of its operations, by their shares.
    pub fn draw(&self, random: &mut Random) -> Op {
        self.at(random.below(u64::from(self.shares())) as u32)
    }

    fn shares(&self) -> u32 {
        self.0.iter().map(|&(_, share)| share).sum()
    }

    /// The operation at a place in `0..shares`.
    fn at(&self, mut place: u32) -> Op {
        for &(op, share) in &self.0 {
            match place.checked_sub(share) {
                Some(rest) => place = rest,
                None => return op,
            }
        }
        unreachable!("a place below the sum of the shares")
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Mix, String> {
        let mut mix: Vec<(Op, u32)> = Vec::new();
        for part in text.split(',') {
            let (name, share) = part.split_once('=').unwrap_or((part, "1"));
            let (name, share) = (name.trim(), share.trim());
            let op = Op::OF_A_MIX.into_iter().find(|&op| op.name() == name).ok_or_else(|| {
                let names: Vec<_> = Op::OF_A_MIX.into_iter().map(Op::name).collect();
                format!("'{name}' is not one of {}", names.join(", "))
            })?;
            let share = match share.parse() {
                Ok(share @ 1..=1_000_000) => share,
                _ => return Err(format!("the share of {name} is '{share}', not 1 to 1000000")),
            };
            if mix.iter().any(|&(other, _)| other == op) {
                return Err(format!("{name} is named twice"));
            }
            mix.push((op, share));
        }
        Ok(Mix(mix))
    }
}

impl TryFrom<String> for Mix {
    type Error = String;

    fn try_from(text: String) -> Result<Mix, String> {
        text.parse()
    }
}

impl From<Mix> for String {
    fn from(mix: Mix) -> String {
        mix.to_string()
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (op, share)) in self.0.iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            write!(f, "{comma}{}={share}", op.name())?;
        }
        Ok(())
    }
}

/// What is remembered of a request until its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    pub op: Op,
    /// When it was due, in nanoseconds since the start of the run.
    pub due_ns: u64,
    /// The length of the body that a right reply has, or `ANY_LENGTH`.
    pub reply_bytes: usize,
    /// The one error that is as right as a reply; 0: none is.
    pub tolerated: i32,
}

impl Asked {
    /// Whether the body of a reply that says OK is a right one, as far as lengths tell.
    #[must_use]
    pub fn is_answered_by(&self, body: &[u8]) -> bool {
        let is_refused = || self.op == Op::Multi && multi_error(body).is_some();
        body.len() == self.reply_bytes || (self.reply_bytes == ANY_LENGTH && !is_refused())
    }
}

/// The length of a reply that may be any.
pub const ANY_LENGTH: usize = usize::MAX;

/// What came of a wish to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Asked,
    /// This connection has nothing to ask until it hears something.
    Waits,
    /// This connection has nothing to ask yet; what it waits for happens elsewhere.
    Later,
    /// Nothing more is asked by any connection of this thread.
    Done,
}

/// A reply or an event, as a source hears it.
#[derive(Clone, Copy, Debug)]
pub struct Heard<'a> {
    /// The connection, by its place in the thread.
    pub connection: usize,
    pub now_ns: u64,
    pub zxid: i64,
    pub err: i32,
    pub body: &'a [u8],
}

/// What a reply or an event has completed, beyond the request itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Achieved {
    pub op: Op,
    pub since_ns: u64,
}

/// Where one thread's requests come from.
pub trait Source: Send {
    /// Puts the next request of a connection into its buffer.
    fn ask(&mut self, connection: usize, due_ns: u64, into: &mut Connection<Asked>) -> Next;

    /// A reply. What it completes is added to `achieved`.
    fn on_reply(&mut self, _heard: &Heard<'_>, _asked: &Asked, _achieved: &mut Vec<Achieved>) {}

    fn on_event(&mut self, _heard: &Heard<'_>, _achieved: &mut Vec<Achieved>) {}

    /// A connection was lost, and is to come back. Nobody knows what came of its requests that
    /// have no reply.
    fn on_lost(&mut self, _connection: usize) {}

    /// The session of a lost connection, which was to live for so long, has expired: it comes back
    /// with a new one.
    fn on_expired(&mut self, _connection: usize, _now_ns: u64, _timeout_ms: i32) {}

    /// A connection that was lost is back, and nothing has been asked on it yet.
    fn on_return(&mut self, _connection: usize, _into: &mut Connection<Asked>) {}

    /// The server has confirmed the end of a connection's session.
    fn on_closed(&mut self, _connection: usize) {}

    /// Whether the connections that wait are to be asked again, for something has happened
    /// elsewhere.
    fn wakes(&mut self) -> bool {
        false
    }

    /// Whether all is over though this thread's connections may still wait for something.
    fn is_done(&self) -> bool {
        false
    }
}

/// The endless workload of a run, one per thread.
pub struct Workload {
    mix: Mix,
    shares: u32,
    chooser: Chooser,
    znodes: u64,
    paths: Paths,
    sizes: Sizes,
    /// The longest value; every other is its front.
    value: Vec<u8>,
    multi_size: usize,
    checks_lengths: bool,
    random: Random,
    created_below: String,
    created: Vec<Created>,
    /// By connection: whether what it has asked to create may not be there, for a reply was lost.
    is_in_doubt: Vec<bool>,
}

/// What one connection has created and not deleted: names `first..next`. A session's requests
/// are done in order, so what was asked to be created can be asked to be deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Created {
    /// The number of the connection over all threads.
    pub connection: usize,
    pub first: u64,
    pub next: u64,
}

/// What all threads of a run have in common.
#[derive(Clone, Debug)]
pub struct Shape {
    pub mix: Mix,
    pub keys: Keys,
    pub znodes: u64,
    pub paths: Paths,
    pub sizes: Sizes,
    /// How many znodes a multi sets.
    pub multi_size: usize,
    pub seed: u64,
    /// The znode below which the connections have a parent each for what they create.
    pub created_below: String,
    /// Whether a reply of another length than a right one's is counted as such.
    pub checks_lengths: bool,
}

impl Shape {
    /// The length of the body of a right reply to an operation on a znode, or on its parent.
    #[must_use]
    pub fn reply_bytes(&self, op: Op, index: u64) -> usize {
        reply_bytes(op, index, self.znodes, &self.paths, &self.sizes, self.multi_size)
            .unwrap_or_else(|| created_reply_bytes(op, &self.created_below))
    }
}

/// The length of a right reply to what is asked of the znodes that are read and set.
fn reply_bytes(
    op: Op,
    index: u64,
    znodes: u64,
    paths: &Paths,
    sizes: &Sizes,
    multi_size: usize,
) -> Option<usize> {
    match op {
        Op::Get => Some(4 + sizes.of(index) + STAT_BYTES),
        Op::Exists | Op::Set => Some(STAT_BYTES),
        Op::Multi => Some(multi_size * (MULTI_HEADER_BYTES + STAT_BYTES) + MULTI_HEADER_BYTES),
        Op::Children => {
            let children = paths.children(znodes, paths.parent_of(index));
            Some(4 + children as usize * (4 + paths.name_digits()) + STAT_BYTES)
        }
        _ => None,
    }
}

/// The length of a right reply to what is asked of the connections' own znodes.
fn created_reply_bytes(op: Op, created_below: &str) -> usize {
    match op {
        Op::Create | Op::Ephemeral => 4 + created_path_length(created_below),
        _ => 0,
    }
}

impl Workload {
    /// The workload of a thread whose connections have the given numbers.
    #[must_use]
    pub fn new(shape: &Shape, connections: &[usize]) -> Workload {
        let thread = connections.first().copied().unwrap_or(0) as u64;
        let mut random = Random::new(shape.seed ^ thread.wrapping_mul(0xd6e8_feb8_6659_fd93));
        Workload {
            mix: shape.mix.clone(),
            shares: shape.mix.shares(),
            chooser: Chooser::new(shape.keys, shape.znodes, &mut random),
            znodes: shape.znodes,
            paths: shape.paths.clone(),
            sizes: shape.sizes.clone(),
            value: random.bytes(shape.sizes.most()),
            multi_size: shape.multi_size,
            checks_lengths: shape.checks_lengths,
            random,
            created_below: shape.created_below.clone(),
            created: connections
                .iter()
                .map(|&connection| Created { connection, ..Created::default() })
                .collect(),
            is_in_doubt: vec![false; connections.len()],
        }
    }

    /// What is left of what was created.
    #[must_use]
    pub fn created(&self) -> &[Created] {
        &self.created
    }
}

impl Source for Workload {
    fn ask(&mut self, connection: usize, due_ns: u64, into: &mut Connection<Asked>) -> Next {
        let place = self.random.below(u64::from(self.shares)) as u32;
        let op = match self.mix.at(place) {
            // Where nothing is left to delete, something is created, and reported as such.
            Op::Delete if self.created[connection].first == self.created[connection].next => {
                if self.mix.ops().any(|op| op == Op::Ephemeral) {
                    Op::Ephemeral
                } else {
                    Op::Create
                }
            }
            op => op,
        };
        let created = &mut self.created[connection];
        let owner = created.connection;
        let index = match op {
            Op::Create | Op::Ephemeral => {
                created.next += 1;
                created.next - 1
            }
            Op::Delete => {
                created.first += 1;
                created.first - 1
            }
            _ => self.chooser.next(&mut self.random),
        };
        let Workload { znodes, paths, sizes, multi_size, created_below, .. } = &*self;
        let reply_bytes = if self.checks_lengths {
            reply_bytes(op, index, *znodes, paths, sizes, *multi_size)
                .unwrap_or_else(|| created_reply_bytes(op, created_below))
        } else {
            ANY_LENGTH
        };
        let is_in_doubt = op == Op::Delete && self.is_in_doubt[connection];
        let tolerated = if is_in_doubt { NO_NODE } else { 0 };
        let asked = Asked { op, due_ns, reply_bytes, tolerated };
        let value = |index| &self.value[..sizes.of(index)];
        match op {
            Op::Get | Op::Exists => {
                let code = if op == Op::Get { code::GET_DATA } else { code::EXISTS };
                into.ask(asked, code, |out| {
                    paths.put_znode(out, index);
                    out.put_bool(false);
                });
            }
            Op::Children => into.ask(asked, code::GET_CHILDREN2, |out| {
                paths.put_parent(out, paths.parent_of(index), 1);
                out.put_bool(false);
            }),
            Op::Set => into.ask(asked, code::SET_DATA, |out| {
                paths.put_znode(out, index);
                put_value_and_version(out, value(index));
            }),
            Op::Create | Op::Ephemeral => into.ask(asked, code::CREATE, |out| {
                put_created(out, created_below, owner, index);
                let is_ephemeral = op == Op::Ephemeral;
                let mode =
                    if is_ephemeral { CreateMode::Ephemeral } else { CreateMode::Persistent };
                put_new_znode(out, value(index), mode);
            }),
            Op::Delete => into.ask(asked, code::DELETE, |out| {
                put_created(out, created_below, owner, index);
                out.put_i32(-1);
            }),
            Op::Multi => into.ask(asked, code::MULTI, |out| {
                // Neighbours, so that no znode is in it twice unless there are too few.
                for index in (0..*multi_size as u64).map(|step| (index + step) % znodes) {
                    MultiHeader { kind: code::SET_DATA, done: false, err: -1 }.write(out);
                    paths.put_znode(out, index);
                    put_value_and_version(out, value(index));
                }
                MULTI_END.write(out);
            }),
            Op::Sync
            | Op::Watch
            | Op::Event
            | Op::Last
            | Op::Lock
            | Op::Take
            | Op::Connect
            | Op::Reconnect
            | Op::Close => unreachable!("a mix holds requests alone"),
        }
        Next::Asked
    }

    fn on_lost(&mut self, connection: usize) {
        self.is_in_doubt[connection] = true;
    }
}

const CONNECTION_DIGITS: usize = 5;

/// The parent of what a connection creates.
#[must_use]
pub fn created_parent(below: &str, connection: usize) -> String {
    format!("{below}/{connection:0CONNECTION_DIGITS$}")
}

fn created_path_length(below: &str) -> usize {
    below.len() + 1 + CONNECTION_DIGITS + 1 + NAME_DIGITS
}

pub fn put_created(out: &mut Vec<u8>, below: &str, connection: usize, index: u64) {
    out.put_count(Some(created_path_length(below)));
    out.extend_from_slice(below.as_bytes());
    out.push(b'/');
    put_digits(out, connection as u64, CONNECTION_DIGITS);
    out.push(b'/');
    put_digits(out, index, NAME_DIGITS);
}

/// What follows the path in a create.
pub fn put_new_znode(out: &mut Vec<u8>, value: &[u8], mode: CreateMode) {
    out.put_buffer(Some(value));
    AclBytes::OPEN.write(out);
    out.put_i32(mode as i32);
}

/// What follows the path in a set of any version.
pub fn put_value_and_version(out: &mut Vec<u8>, value: &[u8]) {
    out.put_buffer(Some(value));
    out.put_i32(-1);
}

/// What a `Listed` source does with each index of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Creates the parents of that number on a level.
    Parents { level: u32 },
    /// Creates the znodes, so many in one request; 1 is a plain create.
    Znodes { multi: u64 },
    /// Sets the znodes' data.
    Values,
}

/// Does something once for each index of a range: set-up and filling.
pub struct Listed {
    task: Task,
    paths: Paths,
    sizes: Sizes,
    /// The longest value; every other is its front.
    value: Vec<u8>,
    next: u64,
    end: u64,
}

impl Listed {
    #[must_use]
    pub fn new(
        task: Task,
        paths: &Paths,
        sizes: &Sizes,
        seed: u64,
        (first, end): (u64, u64),
    ) -> Listed {
        let value = Random::new(seed).bytes(sizes.most());
        Listed { task, paths: paths.clone(), sizes: sizes.clone(), value, next: first, end }
    }
}

impl Source for Listed {
    fn ask(&mut self, _connection: usize, due_ns: u64, into: &mut Connection<Asked>) -> Next {
        if self.next == self.end {
            return Next::Done;
        }
        let index = self.next;
        let paths = &self.paths;
        let (op, code, count, reply_bytes) = match &self.task {
            Task::Parents { level } => {
                (Op::Create, code::CREATE, 1, 4 + paths.parent_length(*level))
            }
            Task::Znodes { multi: 1 } => (Op::Create, code::CREATE, 1, 4 + paths.path_length()),
            Task::Znodes { multi } => {
                let count = (*multi).min(self.end - index);
                let each = MULTI_HEADER_BYTES + 4 + paths.path_length();
                (Op::Multi, code::MULTI, count, count as usize * each + MULTI_HEADER_BYTES)
            }
            Task::Values => (Op::Set, code::SET_DATA, 1, STAT_BYTES),
        };
        self.next += count;
        let value = |index| &self.value[..self.sizes.of(index)];
        let asked = Asked { op, due_ns, reply_bytes, tolerated: 0 };
        into.ask(asked, code, |out| match &self.task {
            Task::Parents { level } => {
                paths.put_parent(out, index, *level);
                put_new_znode(out, b"", CreateMode::Persistent);
            }
            Task::Znodes { multi: 1 } => {
                paths.put_znode(out, index);
                put_new_znode(out, value(index), CreateMode::Persistent);
            }
            Task::Znodes { .. } => {
                for index in index..index + count {
                    MultiHeader { kind: code::CREATE, done: false, err: -1 }.write(out);
                    paths.put_znode(out, index);
                    put_new_znode(out, value(index), CreateMode::Persistent);
                }
                MULTI_END.write(out);
            }
            Task::Values => {
                paths.put_znode(out, index);
                put_value_and_version(out, value(index));
            }
        });
        Next::Asked
    }
}

/// Deletes what runs have created.
pub struct Deletes {
    pub created_below: String,
    pub created: Vec<Created>,
}

impl Source for Deletes {
    fn ask(&mut self, _connection: usize, due_ns: u64, into: &mut Connection<Asked>) -> Next {
        while self.created.last().is_some_and(|created| created.first == created.next) {
            self.created.pop();
        }
        let Some(created) = self.created.last_mut() else { return Next::Done };
        let index = created.first;
        created.first += 1;
        let connection = created.connection;
        let asked = Asked { op: Op::Delete, due_ns, reply_bytes: 0, tolerated: 0 };
        into.ask(asked, code::DELETE, |out| {
            put_created(out, &self.created_below, connection, index);
            out.put_i32(-1);
        });
        Next::Asked
    }
}

/// The error of a multi that was refused, out of its results: the reply's header says 0 then.
#[must_use]
pub fn multi_error(body: &[u8]) -> Option<i32> {
    let mut reader = Reader::new(body);
    loop {
        let header = MultiHeader::read(&mut reader).ok()?;
        if header.done || header.kind != code::ERROR {
            return None;
        }
        // What stands before the one that failed has 0.
        match reader.i32().ok()? {
            0 => {}
            err => return Some(err),
        }
    }
}

/// Connections that only live: the driver pings them.
pub struct Nothing;

impl Source for Nothing {
    fn ask(&mut self, _connection: usize, _due_ns: u64, _into: &mut Connection<Asked>) -> Next {
        Next::Waits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_is_read_as_it_is_printed() {
        for text in ["get=80,set=20", "create=1", "get=1,exists=2,children=3,set=4,delete=5"] {
            assert_eq!(text.parse::<Mix>().unwrap().to_string(), text);
        }
        assert_eq!("get".parse::<Mix>().unwrap(), Mix::only(Op::Get));
        for text in ["", "get=0", "get=x", "put=1", "get=1,get=2", "get=-1"] {
            assert!(text.parse::<Mix>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_mix_is_drawn_by_its_shares() {
        let mix: Mix = "get=80,set=20".parse().unwrap();
        let gets = (0..mix.shares()).filter(|&place| mix.at(place) == Op::Get).count();
        assert_eq!((gets, mix.shares()), (80, 100));
    }

    #[test]
    fn a_refused_multi_says_why() {
        let mut body = Vec::new();
        for err in [0, -110, -2] {
            MultiHeader { kind: code::ERROR, done: false, err }.write(&mut body);
            body.put_i32(err);
        }
        MULTI_END.write(&mut body);
        assert_eq!(multi_error(&body), Some(-110));
        let mut body = Vec::new();
        MultiHeader { kind: code::DELETE, done: false, err: 0 }.write(&mut body);
        MULTI_END.write(&mut body);
        assert_eq!(multi_error(&body), None);
        assert_eq!(multi_error(b""), None);
    }
}
