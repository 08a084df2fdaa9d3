//! What a client has written, and what of it was acknowledged: the record that every start is
//! judged by.
//!
//! One connection writes at a time, so the order of sending is the order of zxids, and the tree
//! after any zxid is known: also after one that was sent and never answered.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use ringkeeper::jute::record::Record as _;
use ringkeeper::record::op::code;
use ringkeeper::record::proto::PathVersion;

use crate::PATIENCE;
use crate::client::{Client, now, word};
use crate::random::Random;

/// What one write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Create,
    /// The znode is of the session with this number.
    CreateEphemeral(i64),
    Set,
    Delete,
}

/// One write, with all that is needed to know the tree after it.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) act: Act,
    pub(crate) path: String,
    /// What its data is made from.
    pub(crate) seed: u64,
    pub(crate) bytes: usize,
    /// What the server answered, or what it must have given if it got so far.
    pub(crate) zxid: i64,
    pub(crate) is_acknowledged: bool,
}

/// A znode as the writes leave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Znode {
    pub(crate) seed: u64,
    pub(crate) bytes: usize,
    pub(crate) created: i64,
    pub(crate) modified: i64,
    pub(crate) version: i32,
    pub(crate) owner: i64,
}

/// All writes, in the order of sending.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) writes: Vec<Write>,
}

/// The data that belongs to a seed.
pub(crate) fn value(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut value = Vec::with_capacity(bytes + 8);
    while value.len() < bytes {
        value.extend_from_slice(&random.next().to_be_bytes());
    }
    value.truncate(bytes);
    value
}

impl History {
    /// The last zxid that a client was told.
    pub(crate) fn acknowledged(&self) -> i64 {
        self.writes.iter().filter(|write| write.is_acknowledged).map(|w| w.zxid).max().unwrap_or(0)
    }

    /// The last zxid that a write may have got.
    pub(crate) fn sent(&self) -> i64 {
        self.writes.last().map_or(0, |write| write.zxid)
    }

    /// The tree after `zxid`.
    pub(crate) fn tree_at(&self, zxid: i64) -> BTreeMap<&str, Znode> {
        let mut tree = BTreeMap::new();
        for write in self.writes.iter().filter(|write| write.zxid <= zxid) {
            let &Write { act, seed, bytes, zxid, .. } = write;
            let owner = if let Act::CreateEphemeral(owner) = act { owner } else { 0 };
            match act {
                Act::Create | Act::CreateEphemeral(_) => {
                    let (created, modified, version) = (zxid, zxid, 0);
                    let znode = Znode { seed, bytes, created, modified, version, owner };
                    tree.insert(write.path.as_str(), znode);
                }
                Act::Set => {
                    let znode = tree.get_mut(write.path.as_str()).expect("it was created before");
                    let version = znode.version + 1;
                    *znode = Znode { seed, bytes, modified: zxid, version, ..*znode };
                }
                Act::Delete => {
                    tree.remove(write.path.as_str()).expect("it was created before");
                }
            }
        }
        tree
    }

    /// After a restart whose last zxid is `zxid`: what was sent and is not there never will be,
    /// and what is there was seen and has to stay.
    pub(crate) fn settle(&mut self, zxid: i64) {
        self.writes.retain(|write| write.zxid <= zxid);
        self.writes.iter_mut().for_each(|write| write.is_acknowledged = true);
    }

    pub(crate) fn save(&self, path: &Path) {
        let mut text = String::new();
        for Write { act, path, seed, bytes, zxid, is_acknowledged } in &self.writes {
            let (name, owner) = match act {
                Act::Create => ("create", 0),
                Act::CreateEphemeral(owner) => ("ephemeral", *owner),
                Act::Set => ("set", 0),
                Act::Delete => ("delete", 0),
            };
            let _ = writeln!(text, "{name} {path} {owner} {seed} {bytes} {zxid} {is_acknowledged}");
        }
        fs::write(path, text).expect("the folder can be written");
    }

    /// `None` where none was saved.
    pub(crate) fn load(path: &Path) -> Option<History> {
        let text = fs::read_to_string(path).ok()?;
        let writes = text.lines().map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let act = match words[0] {
                "create" => Act::Create,
                "ephemeral" => Act::CreateEphemeral(words[2].parse().unwrap()),
                "set" => Act::Set,
                "delete" => Act::Delete,
                other => panic!("{other:?} is no act"),
            };
            Write {
                act,
                path: words[1].to_owned(),
                seed: words[3].parse().unwrap(),
                bytes: words[4].parse().unwrap(),
                zxid: words[5].parse().unwrap(),
                is_acknowledged: words[6] == "true",
            }
        });
        Some(History { writes: writes.collect() })
    }
}

/// How long the values of a load are, drawn evenly.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes(pub(crate) usize, pub(crate) usize);

const SET_ZNODES: u64 = 16;
/// How many writes are on their way at a time.
const DEPTH: usize = 256;

/// A client that writes and keeps the record.
pub(crate) struct Writer<'a> {
    client: Client,
    pub(crate) history: &'a mut History,
    random: Random,
    pub(crate) sizes: Sizes,
    /// Places in the history of what was sent and not yet answered.
    in_flight: VecDeque<usize>,
    /// Created by the load and not yet deleted.
    living: VecDeque<String>,
    next: u64,
    /// Acknowledged bytes of data.
    pub(crate) acknowledged_bytes: u64,
    /// Is called at each acknowledgement with its place in the history.
    pub(crate) on_acknowledged: Option<&'a mut dyn FnMut(usize)>,
}

impl<'a> Writer<'a> {
    /// Connects, and makes the znodes that the load is below of, if they are not there.
    pub(crate) fn new(
        address: SocketAddr,
        history: &'a mut History,
        seed: u64,
        sizes: Sizes,
    ) -> Writer<'a> {
        let client = Client::connect(address, now() + PATIENCE).expect("the server serves");
        let next = history.writes.len() as u64;
        let tree = history.tree_at(i64::MAX);
        let living = tree.keys().filter(|path| path.starts_with("/c/"));
        let living = living.map(|path| (*path).to_owned()).collect();
        let is_new = !tree.contains_key("/c");
        let mut writer = Writer {
            client,
            history,
            random: Random::new(seed),
            sizes,
            in_flight: VecDeque::new(),
            living,
            next,
            acknowledged_bytes: 0,
            on_acknowledged: None,
        };
        if is_new {
            writer.send(Act::Create, "/c".to_owned(), 0);
            for number in 0..SET_ZNODES {
                writer.send(Act::Create, format!("/n{number}"), 20);
            }
            writer.finish();
        }
        writer
    }

    /// The number of the session that it writes in.
    pub(crate) fn session(&self) -> i64 {
        self.client.session.session
    }

    /// Queues one write.
    pub(crate) fn send(&mut self, act: Act, path: String, bytes: usize) {
        let seed = self.next;
        self.next += 1;
        let data = value(seed, bytes);
        match act {
            Act::Create => self.client.create(&path, &data),
            Act::CreateEphemeral(_) => self.client.create_as(&path, &data, 1),
            Act::Set => self.client.set(&path, &data),
            Act::Delete => {
                let delete = PathVersion { path: Some(path.as_str().into()), version: -1 };
                self.client.request(code::DELETE, |out| delete.write(out))
            }
        };
        let zxid = self.history.writes.last().map_or(0, |write| write.zxid) + 1;
        self.in_flight.push_back(self.history.writes.len());
        let is_acknowledged = false;
        self.history.writes.push(Write { act, path, seed, bytes, zxid, is_acknowledged });
    }

    /// Queues one write of the load: creates, sets and deletes.
    fn send_any(&mut self) {
        let Sizes(least, most) = self.sizes;
        let bytes = least + self.random.below((most - least + 1) as u64) as usize;
        match self.random.below(10) {
            0..6 => {
                let path = format!("/c/{}", self.next);
                self.living.push_back(path.clone());
                self.send(Act::Create, path, bytes);
            }
            6..9 => {
                let path = format!("/n{}", self.random.below(SET_ZNODES));
                self.send(Act::Set, path, bytes);
            }
            _ => match self.living.pop_front() {
                Some(path) => self.send(Act::Delete, path, 0),
                None => self.send(Act::Set, "/n0".to_owned(), bytes),
            },
        }
    }

    /// Takes the next answer. `None` once the connection is broken.
    fn take(&mut self) -> Option<()> {
        let reply = self.client.reply().ok()?;
        let place = self.in_flight.pop_front().expect("an answer belongs to a request");
        assert_eq!(reply.header.err, 0, "a write was refused");
        let write = &mut self.history.writes[place];
        let moved = reply.header.zxid - write.zxid;
        (write.zxid, write.is_acknowledged) = (reply.header.zxid, true);
        self.acknowledged_bytes += write.bytes as u64;
        // Sessions get zxids, too: what is on its way comes that much later.
        assert!(0 <= moved, "zxids ascend in the order of sending");
        if moved != 0 {
            for later in &mut self.history.writes[place + 1..] {
                later.zxid += moved;
            }
        }
        if let Some(note) = &mut self.on_acknowledged {
            note(place);
        }
        Some(())
    }

    /// Writes until `goal` says that it is enough, with as much as can be on its way. False: the
    /// connection broke before.
    pub(crate) fn load(&mut self, mut is_enough: impl FnMut(&Writer<'_>) -> bool) -> bool {
        while !is_enough(self) {
            while self.in_flight.len() < DEPTH {
                self.send_any();
            }
            if self.client.flush().is_err() {
                self.drain();
                return false;
            }
            for _ in 0..DEPTH / 4 {
                if self.take().is_none() {
                    return false;
                }
            }
        }
        true
    }

    /// Fills the pipeline and leaves it full.
    pub(crate) fn fill(&mut self) {
        while self.in_flight.len() < DEPTH {
            self.send_any();
        }
        let _ = self.client.flush();
    }

    /// Takes what the server has answered before it ended.
    pub(crate) fn drain(&mut self) {
        while self.take().is_some() {}
    }

    /// Takes all answers; the server lives.
    pub(crate) fn finish(&mut self) {
        self.client.flush().expect("the server takes requests");
        while !self.in_flight.is_empty() {
            self.take().expect("the server answers");
        }
    }

    /// Creates as fast as it goes.
    pub(crate) fn create_many(&mut self, count: usize, bytes: usize) {
        let end = self.next + count as u64;
        while self.next < end {
            while self.next < end && self.in_flight.len() < DEPTH {
                self.send(Act::Create, format!("/c/{}", self.next), bytes);
            }
            self.client.flush().expect("the server takes requests");
            for _ in 0..self.in_flight.len().min(DEPTH / 4) {
                self.take().expect("the server answers");
            }
        }
        self.finish();
    }

    /// Creates and waits for each answer, no more than `count`.
    pub(crate) fn create_few(&mut self, count: usize, bytes: usize) {
        for _ in 0..count {
            let path = format!("/c/{}", self.next);
            self.living.push_back(path.clone());
            self.send(Act::Create, path, bytes);
            self.finish();
        }
    }
}

impl Writer<'_> {
    /// Closes the session, which takes its ephemerals with it.
    pub(crate) fn close(mut self) {
        let owner = Act::CreateEphemeral(self.session());
        self.client.close_session();
        let zxid = self.client.answer().header.zxid;
        let owned = self.history.writes.iter().filter(|write| write.act == owner);
        let gone: Vec<String> = owned.map(|write| write.path.clone()).collect();
        for path in gone {
            let (act, seed, bytes, is_acknowledged) = (Act::Delete, 0, 0, true);
            self.history.writes.push(Write { act, path, seed, bytes, zxid, is_acknowledged });
        }
    }
}

/// The last zxid that a server says it has, if it serves.
pub(crate) fn served_zxid(address: SocketAddr) -> Option<i64> {
    let answer = word(address, b"srvr").ok()?;
    let line = answer.lines().find_map(|line| line.strip_prefix("Zxid: 0x"))?;
    i64::from_str_radix(line, 16).ok()
}
