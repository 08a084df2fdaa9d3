//! What is asked: operations and their mix, which znode, and the requests' bytes.
//!
//! ```text
//! /loadgen/000003/0000000312           the znodes that are read and set: a parent for every
//!          parent znode                 `fan_out` of them, the index over all in the name
//! /loadgen/created/RUN/00017/0000000042   what connection 17 of one run has created
//! ```
//!
//! Paths of one kind are of one length, so that the length of every right reply is known.

use std::fmt;
use std::str::FromStr;

use ringkeeper::jute::record::Record as _;
use ringkeeper::jute::{Reader, Write as _};
use ringkeeper::record::data::AclBytes;
use ringkeeper::record::op::code;
use ringkeeper::record::proto::{MULTI_END, MultiHeader};
use serde::{Deserialize, Serialize};

use crate::client::Connection;

/// The bytes of a `Stat` in a reply.
const STAT_BYTES: usize = 68;
/// The bytes of the header before each result of a multi, and after the last.
const MULTI_HEADER_BYTES: usize = 9;

/// What a request does. Reports go by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    Get,
    Exists,
    Children,
    Set,
    Create,
    Delete,
    Multi,
}

impl Op {
    pub const ALL: [Op; 7] =
        [Op::Get, Op::Exists, Op::Children, Op::Set, Op::Create, Op::Delete, Op::Multi];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Op::Get => "get",
            Op::Exists => "exists",
            Op::Children => "children",
            Op::Set => "set",
            Op::Create => "create",
            Op::Delete => "delete",
            Op::Multi => "multi",
        }
    }

    const fn code(self) -> i32 {
        match self {
            Op::Get => code::GET_DATA,
            Op::Exists => code::EXISTS,
            Op::Children => code::GET_CHILDREN2,
            Op::Set => code::SET_DATA,
            Op::Create => code::CREATE,
            Op::Delete => code::DELETE,
            Op::Multi => code::MULTI,
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
            let op = Op::ALL.into_iter().find(|&op| op.name() == name).ok_or_else(|| {
                let names: Vec<_> = Op::ALL.into_iter().map(Op::name).collect();
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

/// Which znode is next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keys {
    /// Each as likely as any other.
    #[default]
    Uniform,
    /// One after the other, round and round; each thread starts at a place of its own.
    Sequential,
}

/// A small generator of random numbers (splitmix64): the same seed, the same run.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    #[must_use]
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`. The bias is below 2^-32 for any bound that fits 32 bits.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next_u64() as u8).collect()
    }
}

/// The digits of a parent's number.
const PARENT_DIGITS: usize = 6;
/// The digits of a znode's name where no path length is asked for.
const NAME_DIGITS: usize = 10;

/// Where the znodes of a run are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    root: String,
    fan_out: u64,
    name_digits: usize,
}

impl Paths {
    #[must_use]
    pub fn new(root: &str, fan_out: u64) -> Paths {
        Paths { root: root.to_owned(), fan_out, name_digits: NAME_DIGITS }
    }

    /// Paths of exactly `path_length` characters, if that leaves room for the names of `znodes`.
    pub fn with_length(
        root: &str,
        fan_out: u64,
        path_length: usize,
        znodes: u64,
    ) -> Result<Paths, String> {
        let shortest = root.len() + 1 + PARENT_DIGITS + 1 + znodes.to_string().len();
        if path_length < shortest {
            return Err(format!(
                "a path of {path_length} characters is too short for {znodes} znodes below \
                 {root}: {shortest} at least"
            ));
        }
        let name_digits = path_length - root.len() - 2 - PARENT_DIGITS;
        Ok(Paths { root: root.to_owned(), fan_out, name_digits })
    }

    #[must_use]
    pub fn path_length(&self) -> usize {
        self.parent_length() + 1 + self.name_digits
    }

    fn parent_length(&self) -> usize {
        self.root.len() + 1 + PARENT_DIGITS
    }

    /// How many parents `znodes` have.
    #[must_use]
    pub fn parents(&self, znodes: u64) -> u64 {
        znodes.div_ceil(self.fan_out)
    }

    fn put_znode(&self, out: &mut Vec<u8>, index: u64) {
        out.put_count(Some(self.path_length()));
        self.put_parent_bytes(out, index / self.fan_out);
        out.push(b'/');
        put_digits(out, index, self.name_digits);
    }

    fn put_parent(&self, out: &mut Vec<u8>, parent: u64) {
        out.put_count(Some(self.parent_length()));
        self.put_parent_bytes(out, parent);
    }

    fn put_parent_bytes(&self, out: &mut Vec<u8>, parent: u64) {
        out.extend_from_slice(self.root.as_bytes());
        out.push(b'/');
        put_digits(out, parent, PARENT_DIGITS);
    }
}

fn put_digits(out: &mut Vec<u8>, mut number: u64, width: usize) {
    let start = out.len();
    out.resize(start + width, b'0');
    for digit in out[start..].iter_mut().rev() {
        if number == 0 {
            break;
        }
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    assert_eq!(number, 0, "a name holds its number");
}

/// What is remembered of a request until its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    pub op: Op,
    /// When it was due, in nanoseconds since the start of the run.
    pub due_ns: u64,
    /// The length of the body that a right reply has.
    pub reply_bytes: usize,
}

/// Where one thread's requests come from.
pub trait Source: Send {
    /// Puts the next request of a connection into its buffer. `false`: it has no more.
    fn ask(&mut self, connection: usize, due_ns: u64, into: &mut Connection<Asked>) -> bool;
}

/// The endless workload of a run, one per thread.
pub struct Workload {
    mix: Mix,
    shares: u32,
    keys: Keys,
    znodes: u64,
    paths: Paths,
    /// The number of children of the last parent, which may be fewer.
    last_parent_children: u64,
    value: Vec<u8>,
    multi_size: usize,
    random: Random,
    turn: u64,
    created_below: String,
    created: Vec<Created>,
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
    pub value_bytes: usize,
    /// How many znodes a multi sets.
    pub multi_size: usize,
    pub seed: u64,
    /// The znode below which the connections have a parent each for what they create.
    pub created_below: String,
}

impl Workload {
    /// The workload of a thread whose connections have the given numbers.
    #[must_use]
    pub fn new(shape: &Shape, connections: &[usize]) -> Workload {
        let parents = shape.paths.parents(shape.znodes);
        let thread = connections.first().copied().unwrap_or(0) as u64;
        let mut random = Random::new(shape.seed ^ thread.wrapping_mul(0xd6e8_feb8_6659_fd93));
        Workload {
            mix: shape.mix.clone(),
            shares: shape.mix.shares(),
            keys: shape.keys,
            znodes: shape.znodes,
            paths: shape.paths.clone(),
            last_parent_children: shape.znodes - (parents - 1) * shape.paths.fan_out,
            value: random.bytes(shape.value_bytes),
            multi_size: shape.multi_size,
            turn: random.below(shape.znodes),
            random,
            created_below: shape.created_below.clone(),
            created: connections
                .iter()
                .map(|&connection| Created { connection, ..Created::default() })
                .collect(),
        }
    }

    /// What is left of what was created.
    #[must_use]
    pub fn created(&self) -> &[Created] {
        &self.created
    }

    fn index(&mut self) -> u64 {
        match self.keys {
            Keys::Uniform => self.random.below(self.znodes),
            Keys::Sequential => {
                self.turn = (self.turn + 1) % self.znodes;
                self.turn
            }
        }
    }
}

impl Source for Workload {
    fn ask(&mut self, connection: usize, due_ns: u64, into: &mut Connection<Asked>) -> bool {
        let place = self.random.below(u64::from(self.shares)) as u32;
        let op = match self.mix.at(place) {
            // Where nothing is left to delete, something is created, and reported as such.
            Op::Delete if self.created[connection].first == self.created[connection].next => {
                Op::Create
            }
            op => op,
        };
        let index = match op {
            Op::Create | Op::Delete => {
                let created = &mut self.created[connection];
                let name = if op == Op::Create { &mut created.next } else { &mut created.first };
                *name += 1;
                *name - 1
            }
            Op::Get | Op::Exists | Op::Children | Op::Set | Op::Multi => self.index(),
        };
        let parent = index / self.paths.fan_out;
        let reply_bytes = match op {
            Op::Get => 4 + self.value.len() + STAT_BYTES,
            Op::Exists | Op::Set => STAT_BYTES,
            Op::Create => 4 + created_path_length(&self.created_below),
            Op::Delete => 0,
            Op::Multi => self.multi_size * (MULTI_HEADER_BYTES + STAT_BYTES) + MULTI_HEADER_BYTES,
            Op::Children => {
                let last = parent + 1 == self.paths.parents(self.znodes);
                let children = if last { self.last_parent_children } else { self.paths.fan_out };
                4 + children as usize * (4 + self.paths.name_digits) + STAT_BYTES
            }
        };
        let asked = Asked { op, due_ns, reply_bytes };
        let created = self.created[connection];
        into.ask(asked, op.code(), |out| match op {
            Op::Get | Op::Exists => {
                self.paths.put_znode(out, index);
                out.put_bool(false);
            }
            Op::Children => {
                self.paths.put_parent(out, parent);
                out.put_bool(false);
            }
            Op::Set => {
                self.paths.put_znode(out, index);
                put_value_and_version(out, &self.value);
            }
            Op::Create => {
                put_created(out, &self.created_below, created.connection, index);
                put_new_znode(out, &self.value);
            }
            Op::Delete => {
                put_created(out, &self.created_below, created.connection, index);
                out.put_i32(-1);
            }
            Op::Multi => {
                // Neighbours, so that no znode is in it twice unless there are too few.
                for index in (0..self.multi_size as u64).map(|step| (index + step) % self.znodes) {
                    MultiHeader { kind: code::SET_DATA, done: false, err: -1 }.write(out);
                    self.paths.put_znode(out, index);
                    put_value_and_version(out, &self.value);
                }
                MULTI_END.write(out);
            }
        });
        true
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

fn put_created(out: &mut Vec<u8>, below: &str, connection: usize, index: u64) {
    out.put_count(Some(created_path_length(below)));
    out.extend_from_slice(below.as_bytes());
    out.push(b'/');
    put_digits(out, connection as u64, CONNECTION_DIGITS);
    out.push(b'/');
    put_digits(out, index, NAME_DIGITS);
}

fn put_new_znode(out: &mut Vec<u8>, value: &[u8]) {
    out.put_buffer(Some(value));
    AclBytes::OPEN.write(out);
    out.put_i32(0);
}

fn put_value_and_version(out: &mut Vec<u8>, value: &[u8]) {
    out.put_buffer(Some(value));
    out.put_i32(-1);
}

/// What a `Listed` source does with each index of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Creates the parents of that number.
    Parents,
    /// Creates the znodes, so many in one request; 1 is a plain create.
    Znodes { multi: u64 },
    /// Sets the znodes' data.
    Values,
}

/// Does something once for each index of a range: set-up and filling.
pub struct Listed {
    task: Task,
    paths: Paths,
    value: Vec<u8>,
    next: u64,
    end: u64,
}

impl Listed {
    #[must_use]
    pub fn new(task: Task, paths: &Paths, value: &[u8], first: u64, end: u64) -> Listed {
        let (paths, value) = (paths.clone(), value.to_owned());
        Listed { task, paths, value, next: first, end }
    }
}

impl Source for Listed {
    fn ask(&mut self, _connection: usize, due_ns: u64, into: &mut Connection<Asked>) -> bool {
        if self.next == self.end {
            return false;
        }
        let index = self.next;
        let (op, count, reply_bytes) = match &self.task {
            Task::Parents => (Op::Create, 1, 4 + self.paths.parent_length()),
            Task::Znodes { multi: 1 } => (Op::Create, 1, 4 + self.paths.path_length()),
            Task::Znodes { multi } => {
                let count = (*multi).min(self.end - index);
                let each = MULTI_HEADER_BYTES + 4 + self.paths.path_length();
                (Op::Multi, count, count as usize * each + MULTI_HEADER_BYTES)
            }
            Task::Values => (Op::Set, 1, STAT_BYTES),
        };
        self.next += count;
        into.ask(Asked { op, due_ns, reply_bytes }, op.code(), |out| match &self.task {
            Task::Parents => {
                self.paths.put_parent(out, index);
                put_new_znode(out, b"");
            }
            Task::Znodes { multi: 1 } => {
                self.paths.put_znode(out, index);
                put_new_znode(out, &self.value);
            }
            Task::Znodes { .. } => {
                for index in index..index + count {
                    MultiHeader { kind: code::CREATE, done: false, err: -1 }.write(out);
                    self.paths.put_znode(out, index);
                    put_new_znode(out, &self.value);
                }
                MULTI_END.write(out);
            }
            Task::Values => {
                self.paths.put_znode(out, index);
                put_value_and_version(out, &self.value);
            }
        });
        true
    }
}

/// Deletes what runs have created.
pub struct Deletes {
    pub created_below: String,
    pub created: Vec<Created>,
}

impl Source for Deletes {
    fn ask(&mut self, _connection: usize, due_ns: u64, into: &mut Connection<Asked>) -> bool {
        while self.created.last().is_some_and(|created| created.first == created.next) {
            self.created.pop();
        }
        let Some(created) = self.created.last_mut() else { return false };
        let index = created.first;
        created.first += 1;
        let connection = created.connection;
        into.ask(Asked { op: Op::Delete, due_ns, reply_bytes: 0 }, code::DELETE, |out| {
            put_created(out, &self.created_below, connection, index);
            out.put_i32(-1);
        });
        true
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
    fn ask(&mut self, _connection: usize, _due_ns: u64, _into: &mut Connection<Asked>) -> bool {
        false
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
    fn random_numbers_stay_below_their_bound_and_reach_all_of_it() {
        let mut random = Random::new(1);
        let mut seen = [0; 7];
        for _ in 0..7000 {
            seen[random.below(7) as usize] += 1;
        }
        assert!(seen.iter().all(|&count| (800..1200).contains(&count)), "{seen:?}");
    }

    #[test]
    fn paths_are_as_long_as_they_say() {
        let mut out = Vec::new();
        let paths = Paths::with_length("/fill", 1000, 33, 1_000_000).unwrap();
        paths.put_znode(&mut out, 999_999);
        assert_eq!(&out[4..], b"/fill/000999/00000000000000999999");
        assert_eq!(out[..4], 33i32.to_be_bytes());
        assert_eq!(paths.parents(1_000_000), 1000);
        assert_eq!(paths.parents(1_000_001), 1001);
        assert!(Paths::with_length("/fill", 1000, 15, 1_000_000).is_err());
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
