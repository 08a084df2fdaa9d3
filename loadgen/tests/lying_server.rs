//! `loadgen verify` is able to fail: a small ZooKeeper of one lock, which is honest, or tells one
//! kind of lie.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use loadgen::Load;
use loadgen::scene::{Scene, SceneReport};
use loadgen::verify::{Verdict, usual_mix};
use loadgen::watch::Watch;
use loadgen::workload::Op;
use ringkeeper::jute::frame;
use ringkeeper::jute::record::Record as _;
use ringkeeper::jute::{Reader, Write as _};
use ringkeeper::record::data::{AclBytes, Stat};
use ringkeeper::record::op::{EventType, STATE_SYNC_CONNECTED, code, xid};
use ringkeeper::record::proto::{
    ConnectResponse, MULTI_END, MultiHeader, PathVersion, ReplyHeader, RequestHeader,
    SetDataRequest, WatcherEvent,
};

const NODE_EXISTS: i32 = -110;
const NO_NODE: i32 = -101;
const BAD_VERSION: i32 = -103;
const RUNTIME_INCONSISTENCY: i32 = -2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    None,
    /// Shows what a znode was before its last set.
    ReadsBack,
    SkipsVersions,
    /// Acknowledges a create that does not happen.
    LosesCreates,
    LosesDeletes,
    /// Acknowledges a set that does not happen.
    LosesSets,
    LosesEvents,
    DoublesEvents,
    /// Acknowledges a multi of which only the first half happens.
    HalvesMultis,
    /// Keeps what a multi did before it failed.
    KeepsFailedMultis,
    /// Shows a reply's zxid as an older one.
    ZxidsFall,
    ListsLess,
    /// Answers with another znode's value.
    Mistakes,
}

#[derive(Clone, Default)]
struct Znode {
    value: Vec<u8>,
    version: i32,
    czxid: i64,
    mzxid: i64,
    before: Option<Box<Znode>>,
}

impl Znode {
    fn stat(&self) -> Stat {
        Stat {
            czxid: self.czxid,
            mzxid: self.mzxid,
            ctime: 0,
            mtime: 0,
            version: self.version,
            cversion: 0,
            aversion: 0,
            ephemeral_owner: 0,
            data_length: self.value.len() as i32,
            num_children: 0,
            pzxid: self.czxid,
        }
    }
}

/// The tree, and who watches.
struct World {
    lie: Lie,
    znodes: BTreeMap<String, Znode>,
    zxid: i64,
    watches: Vec<(String, usize)>,
    clients: Vec<TcpStream>,
    /// How often there was an occasion to lie.
    occasions: u64,
}

impl World {
    /// Whether now is the time for this lie: often enough, and not in the set-up.
    fn lies(&mut self, lie: Lie) -> bool {
        self.occasions += u64::from(self.lie == lie);
        self.lie == lie && self.occasions.is_multiple_of(7)
    }

    fn set(&mut self, request: &SetDataRequest<'_>) -> Result<Stat, i32> {
        let path = request.path.as_deref().unwrap_or_default();
        let skips = self.lies(Lie::SkipsVersions);
        let loses = self.lies(Lie::LosesSets);
        let zxid = self.zxid;
        let znode = self.znodes.get_mut(path).ok_or(NO_NODE)?;
        if request.version != -1 && request.version != znode.version {
            return Err(BAD_VERSION);
        }
        let mut set = Znode {
            value: request.data.unwrap_or_default().to_vec(),
            version: znode.version + 1 + i32::from(skips),
            mzxid: zxid,
            ..znode.clone()
        };
        set.before = Some(Box::new(Znode { before: None, ..znode.clone() }));
        let stat = set.stat();
        if !loses {
            *znode = set;
            self.fire(path);
        }
        Ok(stat)
    }

    fn fire(&mut self, path: &str) {
        let (fired, kept): (Vec<_>, Vec<_>) =
            self.watches.drain(..).partition(|(watched, _)| watched == path);
        self.watches = kept;
        for (_, client) in fired {
            let times = match () {
                () if self.lies(Lie::LosesEvents) => 0,
                () if self.lies(Lie::DoublesEvents) => 2,
                () => 1,
            };
            let mut out = Vec::new();
            frame::write(&mut out, |out| {
                ReplyHeader { xid: xid::NOTIFICATION, zxid: -1, err: 0 }.write(out);
                WatcherEvent {
                    kind: EventType::NodeDataChanged as i32,
                    state: STATE_SYNC_CONNECTED,
                    path: Some(path.into()),
                }
                .write(out);
            });
            for _ in 0..times {
                // A client that has gone needs no event.
                let _ = self.clients[client].write_all(&out);
            }
        }
    }

    fn multi(&mut self, reader: &mut Reader<'_>) -> Vec<u8> {
        let before = self.znodes.clone();
        let halves = self.lies(Lie::HalvesMultis);
        let (mut results, mut body) = (Vec::new(), Vec::new());
        loop {
            let header = MultiHeader::read(reader).unwrap();
            if header.done {
                break;
            }
            match header.kind {
                code::SET_DATA => results.push(self.set(&SetDataRequest::read(reader).unwrap())),
                code::CHECK => {
                    let check = PathVersion::read(reader).unwrap();
                    assert_eq!(check.version, i32::MAX);
                    results.push(Err(BAD_VERSION));
                }
                other => panic!("op {other} in a multi"),
            }
            if halves && results.len() == 1 {
                let half = self.znodes.clone();
                results.extend(std::iter::from_fn(|| {
                    let header = MultiHeader::read(reader).unwrap();
                    (header.kind == code::SET_DATA)
                        .then(|| self.set(&SetDataRequest::read(reader).unwrap()))
                }));
                self.znodes = half;
                break;
            }
        }
        let failed = results.iter().position(Result::is_err);
        if failed.is_some() && !self.lies(Lie::KeepsFailedMultis) {
            self.znodes = before;
        }
        for (position, result) in results.iter().enumerate() {
            match (result, failed) {
                (Ok(stat), None) => {
                    MultiHeader { kind: code::SET_DATA, done: false, err: 0 }.write(&mut body);
                    stat.write(&mut body);
                }
                (_, failed) => {
                    let err = match failed {
                        Some(failed) if position < failed => 0,
                        Some(failed) if position == failed => BAD_VERSION,
                        _ => RUNTIME_INCONSISTENCY,
                    };
                    MultiHeader { kind: code::ERROR, done: false, err }.write(&mut body);
                    body.put_i32(err);
                }
            }
        }
        MULTI_END.write(&mut body);
        body
    }

    fn answer(&mut self, client: usize, op: i32, reader: &mut Reader<'_>) -> Result<Vec<u8>, i32> {
        let mut body = Vec::new();
        if matches!(op, code::CREATE | code::DELETE | code::SET_DATA | code::MULTI) {
            self.zxid += 1;
        }
        let path = match op {
            code::MULTI | code::SET_DATA | code::PING | code::CLOSE_SESSION => String::new(),
            _ => reader.text().unwrap().unwrap().into_owned(),
        };
        match op {
            code::CREATE => {
                let value = reader.buffer().unwrap().unwrap_or_default().to_vec();
                AclBytes::read(reader).unwrap();
                let zxid = self.zxid;
                if self.znodes.contains_key(&path) {
                    return Err(NODE_EXISTS);
                }
                if !self.loses(&path) {
                    let znode = Znode { value, czxid: zxid, mzxid: zxid, ..Znode::default() };
                    self.znodes.insert(path.clone(), znode);
                }
                body.put_text(&path);
            }
            code::DELETE => {
                if !self.znodes.contains_key(&path) {
                    return Err(NO_NODE);
                }
                if !self.lies(Lie::LosesDeletes) {
                    self.znodes.remove(&path);
                }
            }
            code::GET_DATA => {
                let watches = reader.bool().unwrap();
                let (back, mistakes) = (self.lies(Lie::ReadsBack), self.lies(Lie::Mistakes));
                let mut znode = self.znodes.get(&path).ok_or(NO_NODE)?.clone();
                if back && let Some(before) = znode.before.take() {
                    znode = *before;
                }
                let other = self.znodes.iter().rev().find(|(other, it)| {
                    **other != path && it.value.len() == znode.value.len() && it.version != 0
                });
                if mistakes && let Some((_, other)) = other {
                    znode.value.clone_from(&other.value);
                }
                if watches && !self.watches.contains(&(path.clone(), client)) {
                    self.watches.push((path, client));
                }
                body.put_buffer(Some(&znode.value));
                znode.stat().write(&mut body);
            }
            code::EXISTS => self.znodes.get(&path).ok_or(NO_NODE)?.stat().write(&mut body),
            code::GET_CHILDREN => {
                let below = format!("{path}/");
                let names = self.znodes.keys().filter_map(|path| path.strip_prefix(&below));
                let mut names: Vec<_> =
                    names.filter(|name| !name.contains('/')).map(str::to_owned).collect();
                if self.lies(Lie::ListsLess) {
                    names.pop();
                }
                body.put_count(Some(names.len()));
                for name in names {
                    body.put_text(&name);
                }
            }
            code::SET_DATA => self.set(&SetDataRequest::read(reader).unwrap())?.write(&mut body),
            code::MULTI => body = self.multi(reader),
            code::SYNC => body.put_text(&path),
            code::PING | code::CLOSE_SESSION => {}
            other => panic!("op {other}"),
        }
        Ok(body)
    }

    /// Creates of the load itself are the ones lost, never those of the set-up.
    fn loses(&mut self, path: &str) -> bool {
        path.starts_with("/loadgen/created/")
            && path.matches('/').count() == 5
            && self.lies(Lie::LosesCreates)
    }
}

fn serve(mut client: TcpStream, world: &Mutex<World>) -> Option<()> {
    client.set_nodelay(true).ok()?;
    frame_of(&mut client)?;
    let greeting = ConnectResponse {
        timeout_ms: 30_000,
        session: 1,
        password: [0; 16],
        read_only: Some(false),
    };
    let mut out = Vec::new();
    frame::write(&mut out, |out| greeting.write(out));
    let number = {
        let mut world = world.lock().unwrap();
        world.clients.push(client.try_clone().ok()?);
        world.clients.len() - 1
    };
    client.write_all(&out).ok()?;
    loop {
        let request = frame_of(&mut client)?;
        let mut reader = Reader::new(&request);
        let RequestHeader { xid, op } = RequestHeader::read(&mut reader).unwrap();
        // Replies leave under the lock, so that events stand where they belong.
        let mut world = world.lock().unwrap();
        let answer = world.answer(number, op, &mut reader);
        let back = if world.lies(Lie::ZxidsFall) { 50 } else { 0 };
        let err = answer.as_ref().err().copied().unwrap_or(0);
        let header = ReplyHeader { xid, zxid: world.zxid - back, err };
        out.clear();
        frame::write(&mut out, |out| {
            header.write(out);
            out.extend_from_slice(&answer.unwrap_or_default());
        });
        client.write_all(&out).ok()?;
    }
}

fn frame_of(client: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    client.read_exact(&mut length).ok()?;
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    client.read_exact(&mut body).ok()?;
    Some(body)
}

/// Starts a server, and says where it listens.
fn server(lie: Lie) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap().to_string();
    let world = Arc::new(Mutex::new(World {
        lie,
        znodes: BTreeMap::new(),
        zxid: 0,
        watches: Vec::new(),
        clients: Vec::new(),
        occasions: 0,
    }));
    thread::spawn(move || {
        for client in listener.incoming() {
            let world = Arc::clone(&world);
            thread::spawn(move || serve(client.unwrap(), &world));
        }
    });
    server
}

fn verdict(lie: Lie) -> Verdict {
    let load = Load {
        servers: vec![server(lie)],
        mix: usual_mix(),
        connections: 3,
        depth: 4,
        threads: 2,
        znodes: 9,
        fan_out: 4,
        warmup: Duration::ZERO,
        duration: Duration::from_millis(400),
        ..Load::default()
    };
    load.verify(None, &mut |_, _| {}).unwrap()
}

#[test]
fn an_honest_server_keeps_every_promise() {
    let verdict = verdict(Lie::None);
    assert!(verdict.is_clean(), "{verdict}");
    let checked = verdict.checked;
    let counts = [checked.events, checked.versions_written, checked.versions_read];
    assert!(counts.iter().all(|&count| 10 < count) && 0 < checked.created, "{verdict}");
}

#[track_caller]
fn assert_caught(lie: Lie, promises: &[&str]) {
    let verdict = verdict(lie);
    assert!(!verdict.is_clean());
    for promise in promises {
        assert!(verdict.violations.contains_key(*promise), "{lie:?}: {verdict}");
    }
}

#[test]
fn reads_of_old_data_are_caught() {
    assert_caught(Lie::ReadsBack, &["a session never sees a znode older than it has"]);
}

#[test]
fn versions_that_are_skipped_are_caught() {
    assert_caught(Lie::SkipsVersions, &["versions grow by one with each set"]);
}

#[test]
fn creates_that_are_lost_are_caught() {
    assert_caught(Lie::LosesCreates, &["children are what was created and not deleted"]);
}

#[test]
fn deletes_that_are_lost_are_caught() {
    assert_caught(Lie::LosesDeletes, &["children are what was created and not deleted"]);
}

#[test]
fn sets_that_are_lost_are_caught() {
    assert_caught(
        Lie::LosesSets,
        &["versions grow by one with each set", "what was acknowledged stays"],
    );
}

#[test]
fn events_that_are_lost_are_caught() {
    assert_caught(Lie::LosesEvents, &["a watch's event comes before newer data"]);
}

#[test]
fn events_that_nobody_asked_for_are_caught() {
    assert_caught(Lie::DoublesEvents, &["an event belongs to a watch"]);
}

#[test]
fn multis_done_by_half_are_caught() {
    assert_caught(Lie::HalvesMultis, &["what was acknowledged stays"]);
}

#[test]
fn multis_that_fail_and_leave_something_are_caught() {
    assert_caught(Lie::KeepsFailedMultis, &["a multi that fails changes nothing"]);
}

#[test]
fn zxids_that_fall_are_caught() {
    assert_caught(Lie::ZxidsFall, &["zxids of a session never fall"]);
}

#[test]
fn listings_that_miss_something_are_caught() {
    assert_caught(Lie::ListsLess, &["children are what was created and not deleted"]);
}

#[test]
fn values_of_another_znode_are_caught() {
    assert_caught(Lie::Mistakes, &["a value is what was written there"]);
}

fn watch(lie: Lie, rounds: u64, within: Duration) -> SceneReport {
    let scene = Scene {
        servers: vec![server(lie)],
        connections: 7,
        threads: 2,
        session_timeout_ms: 30_000,
        root: "/watched".to_owned(),
    };
    let watch = Watch { scene, znodes: 3, each: 2, rounds, value_bytes: 10, depth: 4, within };
    watch.run(None, &mut |_, _| {}).unwrap()
}

#[test]
fn every_watch_of_every_round_has_its_event() {
    let report = watch(Lie::None, 5, Duration::from_secs(60));
    assert!(report.is_clean(), "{report}");
    let count = |op| {
        let found = report.summary.ops.iter().find(|summary| summary.op == op);
        found.map_or(0, |summary| summary.count)
    };
    assert_eq!((count(Op::Watch), count(Op::Event)), (70, 70), "{report}");
    assert_eq!((count(Op::Set), count(Op::Last)), (15, 5), "{report}");
}

#[test]
fn a_watch_without_its_event_is_told() {
    let report = watch(Lie::LosesEvents, 5, Duration::from_millis(500));
    assert!(!report.is_clean());
    let told = report.violations.keys().next().unwrap();
    assert!(told.starts_with("14 watches and 1"), "{told}");
}

#[test]
fn watches_can_be_placed_alone() {
    let report = watch(Lie::None, 0, Duration::from_secs(60));
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.summary.ops.len(), 1, "{report}");
    assert_eq!(report.summary.ops[0].count, 14, "{report}");
}
