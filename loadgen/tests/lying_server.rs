//! `loadgen verify` is able to fail: a small ZooKeeper of one lock, which is honest, or tells one
//! kind of lie. Some lies show only to a client that has lost its connection.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "sessions expire by the clock; what fails here fails the test"
)]

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use loadgen::Load;
use loadgen::driver::Reconnects;
use loadgen::scene::{Scene, SceneReport};
use loadgen::verify::{Verdict, Verify, usual_mix};
use loadgen::watch::Watch;
use loadgen::workload::Op;
use ringkeeper::jute::frame;
use ringkeeper::jute::record::Record as _;
use ringkeeper::jute::{Reader, Write as _};
use ringkeeper::record::data::{AclBytes, Stat};
use ringkeeper::record::op::{CreateMode, EventType, STATE_SYNC_CONNECTED, code, xid};
use ringkeeper::record::proto::{
    ConnectRequest, ConnectResponse, MULTI_END, MultiHeader, PathVersion, ReplyHeader,
    RequestHeader, SetDataRequest, SetWatches, WatcherEvent,
};

const NODE_EXISTS: i32 = -110;
const NO_NODE: i32 = -101;
const BAD_VERSION: i32 = -103;
const SESSION_EXPIRED: i32 = -112;
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
    /// Shows a session that comes back what was there when it came last.
    ReturnsToOldState,
    /// Tells a session that comes back older zxids than it has seen.
    ReturnsToOldZxids,
    /// Undoes an acknowledged set when a session comes back.
    UndoesSets,
    /// Undoes an acknowledged create when its session comes back.
    UndoesCreates,
    /// Deletes the ephemeral znodes of a session that comes back.
    DropsEphemerals,
    /// Ends a session that comes back in time.
    ForgetsSessions,
    /// Does twice what it has not answered.
    Repeats,
    /// Does by half a multi that it has not answered.
    HalvesUnanswered,
    /// Answers a read after a sync with what was there before the last set.
    StaleAfterSync,
    /// Gives a write the zxid of one that it has acknowledged to another session.
    ZxidsTwice,
    /// Neither sets watches again nor tells of what was missed.
    ForgetsWatches,
    /// Tells of what was missed twice.
    RepeatsMissed,
    /// Tells of watches that are set again though nothing was missed.
    InventsMissed,
    /// Keeps the ephemeral znodes of a session that has ended.
    KeepsEphemerals,
    /// Lists no ephemeral znode in the end where the second of two servers listens.
    SecondHidesEphemerals,
    /// Shows old data in the end where the second of two servers listens.
    SecondIsOld,
}

/// How an honest server treats connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Keeps,
    /// Hangs up now and then instead of an answer, and does what it was asked at once, much later
    /// or never.
    HangsUp,
    /// The same, and lets a session that comes back wait until it has expired.
    Expires,
    /// Answers nothing more now and then, and keeps the connection.
    FallsSilent,
}

const SESSION_TIMEOUT: Duration = Duration::from_secs(30);
/// So short that a session expires while its client waits to try again.
const SHORT_SESSION_TIMEOUT: Duration = Duration::from_millis(5);
/// Long enough to come back, for whoever hears nothing for two thirds of it.
const SILENT_SESSION_TIMEOUT: Duration = Duration::from_millis(600);

#[derive(Clone, Default)]
struct Znode {
    value: Vec<u8>,
    version: i32,
    czxid: i64,
    mzxid: i64,
    /// 0: it is persistent.
    owner: i64,
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
            ephemeral_owner: self.owner,
            data_length: self.value.len() as i32,
            num_children: 0,
            pzxid: self.czxid,
        }
    }
}

/// A session, which outlives its connections.
struct Session {
    heard: Instant,
    /// How often it has tried to come back.
    attempts: u32,
    /// What was there when it came last.
    old: BTreeMap<String, Znode>,
}

/// One connection.
struct Client {
    number: usize,
    session: i64,
    /// Where it has come in, of two places.
    door: usize,
    /// Whether its last request was a sync.
    has_synced: bool,
    /// So many of its reads are of what was there when its session came last.
    old_reads: usize,
    /// So many of its replies have an older zxid.
    old_zxids: usize,
}

impl Client {
    fn new(number: usize, session: i64, door: usize) -> Client {
        Client { number, session, door, has_synced: false, old_reads: 0, old_zxids: 0 }
    }
}

/// A request that nobody waits for.
struct Late {
    session: i64,
    request: Vec<u8>,
    /// After so many requests of others it is done.
    due: u64,
    is_repeated: bool,
}

/// The tree, and who watches.
struct World {
    lie: Lie,
    manner: Manner,
    znodes: BTreeMap<String, Znode>,
    zxid: i64,
    sessions: BTreeMap<i64, Session>,
    sessions_made: i64,
    watches: Vec<(String, usize)>,
    clients: BTreeMap<usize, TcpStream>,
    clients_greeted: usize,
    requests: u64,
    writes: u64,
    creates: u64,
    hang_ups: u64,
    /// At each place one comes before the load, and others after it, when somebody looks at what has
    /// come of it.
    syncs: usize,
    doors: usize,
    late: VecDeque<Late>,
    /// How often there was an occasion to lie.
    occasions: u64,
}

impl World {
    fn timeout(&self) -> Duration {
        match self.manner {
            Manner::Keeps | Manner::HangsUp => SESSION_TIMEOUT,
            Manner::Expires => SHORT_SESSION_TIMEOUT,
            Manner::FallsSilent => SILENT_SESSION_TIMEOUT,
        }
    }

    /// Whether the load runs.
    fn is_loaded(&self) -> bool {
        self.syncs == self.doors
    }

    /// Whether the load has ended.
    fn is_over(&self) -> bool {
        self.doors < self.syncs
    }

    /// The session that a client asks for, or none if it has expired. None at all: not from here.
    fn greet(&mut self, request: &ConnectRequest<'_>) -> Option<Option<i64>> {
        if self.zxid < request.last_zxid_seen {
            return None;
        }
        let now = Instant::now();
        if request.session == 0 {
            self.sessions_made += 1;
            let session = Session { heard: now, attempts: 0, old: self.znodes.clone() };
            self.sessions.insert(self.sessions_made, session);
            return Some(Some(self.sessions_made));
        }
        assert_eq!(request.password, Some(&password(request.session)[..]));
        let (timeout, forgets) = (self.timeout(), self.lies(Lie::ForgetsSessions));
        let Some(session) = self.sessions.get_mut(&request.session) else { return Some(None) };
        session.attempts += 1;
        if timeout < now - session.heard || forgets {
            self.end(request.session);
            return Some(None);
        }
        if self.manner == Manner::Expires && session.attempts % 8 < 4 {
            return None;
        }
        session.heard = now;
        Some(Some(request.session))
    }

    /// Ends a session, and its ephemeral znodes with it.
    fn end(&mut self, session: i64) {
        self.sessions.remove(&session);
        let before = self.znodes.len();
        self.znodes.retain(|_, znode| znode.owner != session);
        self.zxid += i64::from(self.znodes.len() < before);
    }

    /// What becomes of a session that comes back, where that is a lie.
    fn lie_to_returned(&mut self, client: &mut Client) {
        if self.lies(Lie::ReturnsToOldState) {
            client.old_reads = 20;
        }
        if self.lies(Lie::ReturnsToOldZxids) {
            client.old_zxids = 5;
        }
        if self.lies(Lie::UndoesSets) {
            let newest = self.znodes.values_mut().filter(|znode| znode.before.is_some());
            if let Some(znode) = newest.max_by_key(|znode| znode.mzxid)
                && let Some(before) = znode.before.take()
            {
                *znode = *before;
            }
        }
        let created = |(path, znode): (&String, &Znode)| {
            (path.starts_with("/loadgen/created/") && path.matches('/').count() == 5)
                .then(|| (znode.czxid, path.clone()))
        };
        if self.lies(Lie::UndoesCreates)
            && let Some((_, path)) = self.znodes.iter().filter_map(created).max()
        {
            self.znodes.remove(&path);
        }
        if self.lies(Lie::DropsEphemerals) {
            self.znodes.retain(|_, znode| znode.owner != client.session);
        }
    }

    /// Whether a request has no answer, but the end of its connection. It may be done now or later.
    fn hangs_up(&mut self, client: &Client, op: i32, request: &[u8]) -> bool {
        self.requests += 1;
        let writes = matches!(op, code::SET_DATA | code::MULTI)
            || matches!(op, code::CREATE | code::DELETE if of_the_load(request));
        self.writes += u64::from(writes);
        // Only some multis are lied about, and a lie is told only if it is read in time.
        let is_occasion = self.lie == Lie::HalvesUnanswered && op == code::MULTI;
        let apart = if is_occasion { 2 } else { 17 };
        let is_time = writes && self.is_loaded() && self.writes.is_multiple_of(apart);
        if matches!(self.manner, Manner::Keeps | Manner::FallsSilent) || !is_time {
            return false;
        }
        self.hang_ups += 1;
        let is_repeated = self.lie == Lie::Repeats;
        let session = client.session;
        let due = match self.hang_ups % 3 {
            0 => return true,
            1 => self.requests,
            _ => self.requests + 30,
        };
        self.late.push_back(Late { session, request: request.to_vec(), due, is_repeated });
        true
    }

    /// Whether a connection has no answer from here on.
    fn falls_silent(&mut self, op: i32, request: &[u8]) -> bool {
        let of_the_load =
            matches!(op, code::CREATE | code::DELETE if of_the_load(request)) && self.is_loaded();
        self.creates += u64::from(of_the_load);
        self.manner == Manner::FallsSilent && of_the_load && self.creates.is_multiple_of(15)
    }

    /// Does what is due of what nobody waits for; all of it, if somebody wants to be up to date.
    fn catch_up(&mut self, with_all: bool) {
        while let Some(late) = self.late.pop_front_if(|late| with_all || late.due <= self.requests)
        {
            let mut client = Client::new(usize::MAX, late.session, 0);
            let mut reader = Reader::new(&late.request);
            let RequestHeader { op, .. } = RequestHeader::read(&mut reader).unwrap();
            // Nobody hears whether it succeeds.
            let _ = self.answer(&mut client, op, &mut reader);
            if late.is_repeated {
                let due = self.requests + 30;
                self.late.push_back(Late { due, is_repeated: false, ..late });
            }
        }
    }

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
            self.tell(path, client, times);
        }
    }

    /// Sends a client an event of a znode.
    fn tell(&mut self, path: &str, client: usize, times: usize) {
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
            let _ = self.clients.get_mut(&client).map(|client| client.write_all(&out));
        }
    }

    fn multi(&mut self, reader: &mut Reader<'_>, is_late: bool) -> Vec<u8> {
        let before = self.znodes.clone();
        let halves = self.lies(Lie::HalvesMultis) || (is_late && self.lie == Lie::HalvesUnanswered);
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

    fn answer(
        &mut self,
        client: &mut Client,
        op: i32,
        reader: &mut Reader<'_>,
    ) -> Result<Vec<u8>, i32> {
        let mut body = Vec::new();
        if matches!(op, code::CREATE | code::DELETE | code::SET_DATA | code::MULTI) {
            self.zxid += 1;
        }
        let has_synced = std::mem::replace(&mut client.has_synced, op == code::SYNC);
        let path = match op {
            code::MULTI | code::SET_DATA | code::PING | code::CLOSE_SESSION | code::SET_WATCHES => {
                String::new()
            }
            _ => reader.text().unwrap().unwrap().into_owned(),
        };
        match op {
            code::CREATE => {
                let value = reader.buffer().unwrap().unwrap_or_default().to_vec();
                AclBytes::read(reader).unwrap();
                let is_ephemeral = reader.i32().unwrap() == CreateMode::Ephemeral as i32;
                if is_ephemeral && !self.sessions.contains_key(&client.session) {
                    return Err(SESSION_EXPIRED);
                }
                let owner = if is_ephemeral { client.session } else { 0 };
                let zxid = self.zxid;
                if self.znodes.contains_key(&path) {
                    return Err(NODE_EXISTS);
                }
                if !self.loses(&path) {
                    let znode =
                        Znode { value, czxid: zxid, mzxid: zxid, owner, ..Znode::default() };
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
                if client.old_reads != 0 {
                    client.old_reads -= 1;
                    let old = &self.sessions[&client.session].old;
                    znode = old.get(&path).cloned().unwrap_or(znode);
                }
                let is_old = back
                    || (has_synced && self.lies(Lie::StaleAfterSync))
                    || (self.is_over() && client.door == 1 && self.lie == Lie::SecondIsOld);
                if is_old && let Some(before) = znode.before.take() {
                    znode = *before;
                }
                let other = self.znodes.iter().rev().find(|(other, it)| {
                    **other != path && it.value.len() == znode.value.len() && it.version != 0
                });
                if mistakes && let Some((_, other)) = other {
                    znode.value.clone_from(&other.value);
                }
                if watches && !self.watches.contains(&(path.clone(), client.number)) {
                    self.watches.push((path, client.number));
                }
                body.put_buffer(Some(&znode.value));
                znode.stat().write(&mut body);
            }
            code::EXISTS => self.znodes.get(&path).ok_or(NO_NODE)?.stat().write(&mut body),
            code::GET_CHILDREN => {
                let below = format!("{path}/");
                let hides =
                    self.lie == Lie::SecondHidesEphemerals && self.is_over() && client.door == 1;
                let shown = self.znodes.iter().filter(|(_, znode)| !hides || znode.owner == 0);
                let names = shown.filter_map(|(path, _)| path.strip_prefix(&below));
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
            code::MULTI => body = self.multi(reader, client.number == usize::MAX),
            code::SYNC => {
                if path == "/" {
                    self.catch_up(true);
                    self.syncs += 1;
                }
                body.put_text(&path);
            }
            code::SET_WATCHES => self.set_watches(client, &SetWatches::read(reader).unwrap()),
            code::CLOSE_SESSION => {
                let keeps = self.lie == Lie::KeepsEphemerals;
                let kept: Vec<_> = self
                    .znodes
                    .iter()
                    .filter(|(_, znode)| keeps && znode.owner == client.session)
                    .map(|(path, znode)| (path.clone(), znode.clone()))
                    .collect();
                self.end(client.session);
                self.znodes.extend(kept);
            }
            code::PING => {}
            other => panic!("op {other}"),
        }
        Ok(body)
    }

    /// Tells a client that has come back of what it has missed, and watches the rest for it.
    fn set_watches(&mut self, client: &Client, request: &SetWatches<'_>) {
        if self.lie == Lie::ForgetsWatches {
            return;
        }
        for path in request.data_watches.iter().flatten().flatten() {
            let mzxid = self.znodes.get(&**path).map_or(i64::MAX, |znode| znode.mzxid);
            match (self.lie, request.relative_zxid < mzxid) {
                (Lie::RepeatsMissed, true) => self.tell(path, client.number, 2),
                (Lie::InventsMissed, false) => self.tell(path, client.number, 2),
                (_, true) => self.tell(path, client.number, 1),
                (_, false) => self.watches.push((path.to_string(), client.number)),
            }
        }
    }

    /// Creates of the load itself are the ones lost, never those of the set-up.
    fn loses(&mut self, path: &str) -> bool {
        path.starts_with("/loadgen/created/")
            && path.matches('/').count() == 5
            && self.lies(Lie::LosesCreates)
    }
}

fn serve(mut client: TcpStream, door: usize, world: &Mutex<World>) -> Option<()> {
    client.set_nodelay(true).ok()?;
    let request = frame_of(&mut client)?;
    let request = ConnectRequest::read(&mut Reader::new(&request)).unwrap();
    let mut out = Vec::new();
    let mut here = {
        let mut world = world.lock().unwrap();
        let Some(session) = world.greet(&request)? else {
            frame::write(&mut out, |out| ConnectResponse::refusal(Some(false)).write(out));
            client.write_all(&out).ok()?;
            return None;
        };
        let timeout_ms = world.timeout().as_millis() as i32;
        let password = password(session);
        frame::write(&mut out, |out| {
            ConnectResponse { timeout_ms, session, password, read_only: Some(false) }.write(out);
        });
        world.clients_greeted += 1;
        let number = world.clients_greeted;
        world.clients.insert(number, client.try_clone().ok()?);
        let mut here = Client::new(number, session, door);
        if request.session != 0 {
            world.lie_to_returned(&mut here);
        }
        let now = world.znodes.clone();
        if here.old_reads == 0
            && let Some(session) = world.sessions.get_mut(&session)
        {
            session.old = now;
        }
        here
    };
    client.write_all(&out).ok()?;
    serve_session(&mut client, &mut here, world);
    // A client that has gone watches nothing.
    let mut world = world.lock().unwrap();
    world.clients.remove(&here.number);
    world.watches.retain(|&(_, client)| client != here.number);
    None
}

fn serve_session(client: &mut TcpStream, here: &mut Client, world: &Mutex<World>) -> Option<()> {
    let mut out = Vec::new();
    loop {
        let request = frame_of(client)?;
        let mut reader = Reader::new(&request);
        let RequestHeader { xid, op } = RequestHeader::read(&mut reader).unwrap();
        // Replies leave under the lock, so that events stand where they belong.
        let mut world = world.lock().unwrap();
        // One that has come back elsewhere is served there, and one that has expired nowhere.
        world.sessions.get_mut(&here.session)?.heard = Instant::now();
        world.catch_up(false);
        if world.hangs_up(here, op, &request) {
            return None;
        }
        if world.falls_silent(op, &request) {
            drop(world);
            // Until the client has enough of it.
            while frame_of(client).is_some() {}
            return None;
        }
        let answer = world.answer(here, op, &mut reader);
        let falls = world.lies(Lie::ZxidsFall) || 0 < here.old_zxids;
        here.old_zxids = here.old_zxids.saturating_sub(1);
        let back = if falls { 50 } else { 0 };
        let err = answer.as_ref().err().copied().unwrap_or(0);
        let header = ReplyHeader { xid, zxid: world.zxid - back, err };
        let writes = matches!(op, code::SET_DATA | code::MULTI);
        if writes && world.is_loaded() && world.lies(Lie::ZxidsTwice) {
            // The next write has the zxid that this one has now.
            world.zxid -= 1;
        }
        out.clear();
        frame::write(&mut out, |out| {
            header.write(out);
            out.extend_from_slice(&answer.unwrap_or_default());
        });
        client.write_all(&out).ok()?;
    }
}

fn password(session: i64) -> [u8; 16] {
    [session as u8 ^ 0x5a; 16]
}

/// Whether a create or delete is of the load itself, not of its set-up.
fn of_the_load(request: &[u8]) -> bool {
    let mut reader = Reader::new(request);
    RequestHeader::read(&mut reader).unwrap();
    let path = reader.text().unwrap().unwrap();
    path.starts_with("/loadgen/created/") && path.matches('/').count() == 5
}

fn frame_of(client: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    client.read_exact(&mut length).ok()?;
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    client.read_exact(&mut body).ok()?;
    Some(body)
}

/// Starts a server, and says where it listens.
fn server(lie: Lie, manner: Manner) -> String {
    servers(lie, manner, 1).remove(0)
}

/// Starts a server that listens at several places, as several servers do that are one.
fn servers(lie: Lie, manner: Manner, doors: usize) -> Vec<String> {
    let world = Arc::new(Mutex::new(World {
        lie,
        manner,
        znodes: BTreeMap::new(),
        zxid: 0,
        sessions: BTreeMap::new(),
        sessions_made: 0,
        watches: Vec::new(),
        clients: BTreeMap::new(),
        clients_greeted: 0,
        requests: 0,
        writes: 0,
        creates: 0,
        hang_ups: 0,
        syncs: 0,
        doors,
        late: VecDeque::new(),
        occasions: 0,
    }));
    let serve_at = |door| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap().to_string();
        let world = Arc::clone(&world);
        thread::spawn(move || {
            for client in listener.incoming() {
                let world = Arc::clone(&world);
                thread::spawn(move || serve(client.unwrap(), door, &world));
            }
        });
        server
    };
    (0..doors).map(serve_at).collect()
}

fn verdict(lie: Lie) -> Verdict {
    verdict_of(server(lie, Manner::Keeps), None)
}

fn verdict_of(server: String, drop_every: Option<Duration>) -> Verdict {
    verdict_over(vec![server], drop_every)
}

fn verdict_over(servers: Vec<String>, drop_every: Option<Duration>) -> Verdict {
    let load = Load {
        servers,
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
    Verify { load, drop_every, has_syncs: true }.run(None, &mut |_, _| {}).unwrap()
}

#[test]
fn an_honest_server_keeps_every_promise() {
    let verdict = verdict(Lie::None);
    assert!(verdict.is_clean(), "{verdict}");
    let checked = verdict.checked;
    let counts = [checked.events, checked.versions_written, checked.versions_read];
    assert!(counts.iter().all(|&count| 10 < count) && 0 < checked.created, "{verdict}");
}

/// Often enough for each lie to have its occasions.
const DROP_EVERY: Duration = Duration::from_millis(4);

#[test]
fn connections_that_are_dropped_come_back_with_their_sessions() {
    let verdict = verdict_of(server(Lie::None, Manner::Keeps), Some(DROP_EVERY));
    assert!(verdict.is_clean(), "{verdict}");
    let Reconnects { dropped, lost, resumed, expired, .. } = verdict.summary.reconnects;
    assert!(10 < dropped, "{verdict}");
    assert_eq!((lost, resumed, expired), (0, dropped, 0), "{verdict}");
}

#[test]
fn what_has_no_reply_may_be_done_at_once_or_later_or_never() {
    let verdict = verdict_of(server(Lie::None, Manner::HangsUp), Some(DROP_EVERY));
    assert!(verdict.is_clean(), "{verdict}");
    let Reconnects { dropped, lost, resumed, expired, .. } = verdict.summary.reconnects;
    assert!(10 < dropped && 10 < lost, "{verdict}");
    assert_eq!((resumed, expired), (dropped + lost, 0), "{verdict}");
    let checked = verdict.checked;
    assert!(0 < checked.unknown_done && checked.unknown_done < checked.unknown, "{verdict}");
}

#[test]
fn sessions_that_expire_make_way_for_new_ones() {
    let verdict = verdict_of(server(Lie::None, Manner::Expires), Some(DROP_EVERY));
    assert!(verdict.is_clean(), "{verdict}");
    assert!(0 < verdict.summary.reconnects.expired, "{verdict}");
}

#[test]
fn a_server_that_is_not_there_is_told_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap().to_string();
    drop(listener);
    let verify = Verify {
        load: Load { servers: vec![server], ..Load::default() },
        drop_every: None,
        has_syncs: true,
    };
    let error = verify.run(None, &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("refused"), "{error}");
}

#[test]
fn drops_without_time_between_them_are_refused() {
    let verify =
        Verify { load: Load::default(), drop_every: Some(Duration::ZERO), has_syncs: true };
    let error = verify.run(None, &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("some time apart"), "{error}");
}

/// Lies that show only over reconnects: without them, the same server is clean.
#[track_caller]
fn assert_caught_over_reconnects(lie: Lie, manner: Manner, promise: &str) {
    let calm = verdict(lie);
    assert!(calm.is_clean(), "{lie:?}: {calm}");
    let verdict = verdict_of(server(lie, manner), Some(DROP_EVERY));
    assert!(!verdict.is_clean());
    assert!(verdict.violations.contains_key(promise), "{lie:?}: {verdict}");
}

#[test]
fn old_state_after_a_reconnect_is_caught() {
    let promise = "a session never sees a znode older than it has";
    assert_caught_over_reconnects(Lie::ReturnsToOldState, Manner::Keeps, promise);
}

#[test]
fn old_zxids_after_a_reconnect_are_caught() {
    let promise = "zxids of a session never fall";
    assert_caught_over_reconnects(Lie::ReturnsToOldZxids, Manner::Keeps, promise);
}

#[test]
fn sets_that_are_undone_at_a_reconnect_are_caught() {
    let promise = "versions grow by one with each set";
    assert_caught_over_reconnects(Lie::UndoesSets, Manner::Keeps, promise);
}

#[test]
fn creates_that_are_undone_at_a_reconnect_are_caught() {
    let promise = "children are what was created and not deleted";
    assert_caught_over_reconnects(Lie::UndoesCreates, Manner::Keeps, promise);
}

#[test]
fn ephemerals_that_do_not_outlive_a_connection_are_caught() {
    let promise = "children are what was created and not deleted";
    assert_caught_over_reconnects(Lie::DropsEphemerals, Manner::Keeps, promise);
}

#[test]
fn sessions_that_do_not_outlive_a_connection_are_caught() {
    let promise = "a session lives for its timeout";
    assert_caught_over_reconnects(Lie::ForgetsSessions, Manner::Keeps, promise);
}

#[test]
fn writes_that_are_done_twice_are_caught() {
    let promise = "a write is done once at most";
    assert_caught_over_reconnects(Lie::Repeats, Manner::HangsUp, promise);
}

#[test]
fn watches_that_do_not_outlive_a_connection_are_caught() {
    let promise = "a watch's event comes before newer data";
    assert_caught_over_reconnects(Lie::ForgetsWatches, Manner::Keeps, promise);
}

#[test]
fn missed_events_that_are_told_twice_are_caught() {
    let promise = "an event belongs to a watch";
    assert_caught_over_reconnects(Lie::RepeatsMissed, Manner::Keeps, promise);
}

#[test]
fn events_of_watches_set_again_that_are_told_twice_are_caught() {
    let promise = "an event belongs to a watch";
    assert_caught_over_reconnects(Lie::InventsMissed, Manner::Keeps, promise);
}

#[test]
fn sessions_move_between_servers_and_keep_every_promise() {
    let verdict = verdict_over(servers(Lie::None, Manner::HangsUp, 2), Some(DROP_EVERY));
    assert!(verdict.is_clean(), "{verdict}");
    let Reconnects { resumed, moved, .. } = verdict.summary.reconnects;
    assert!(10 < moved && moved <= resumed, "{verdict}");
    let checked = verdict.checked;
    assert!(0 < checked.watches_again && 0 < checked.syncs, "{verdict}");
    assert_eq!(checked.servers, 2);
}

#[test]
fn clients_leave_a_server_that_says_nothing_more() {
    let verdict = verdict_over(servers(Lie::None, Manner::FallsSilent, 2), None);
    assert!(verdict.is_clean(), "{verdict}");
    let Reconnects { dropped, lost, resumed, .. } = verdict.summary.reconnects;
    assert!(dropped == 0 && 0 < lost && 0 < resumed, "{verdict}");
}

#[track_caller]
fn assert_caught_on_the_second_server(lie: Lie, promise: &str) {
    let alone = verdict(lie);
    assert!(alone.is_clean(), "{lie:?}: {alone}");
    let verdict = verdict_over(servers(lie, Manner::Keeps, 2), None);
    assert!(verdict.violations.contains_key(promise), "{lie:?}: {verdict}");
}

#[test]
fn a_server_that_lacks_what_another_has_is_caught() {
    let promise = "children are what was created and not deleted";
    assert_caught_on_the_second_server(Lie::SecondHidesEphemerals, promise);
    assert_caught_on_the_second_server(Lie::SecondIsOld, "all servers are equal in the end");
}

#[test]
fn multis_without_a_reply_that_are_done_by_half_are_caught() {
    let promise = "a multi is seen whole or not at all";
    assert_caught_over_reconnects(Lie::HalvesUnanswered, Manner::HangsUp, promise);
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
fn reads_after_a_sync_that_are_old_are_caught() {
    let promise = "what is read after a sync is as new as what was acknowledged before it";
    assert_caught(Lie::StaleAfterSync, &[promise]);
}

#[test]
fn zxids_that_are_given_twice_are_caught() {
    let promise = "a write comes after all that was acknowledged before it was asked";
    assert_caught(Lie::ZxidsTwice, &[promise]);
}

#[test]
fn ephemerals_that_outlive_their_session_are_caught() {
    assert_caught(
        Lie::KeepsEphemerals,
        &["ephemeral znodes go with their session, on every server"],
    );
}

#[test]
fn values_of_another_znode_are_caught() {
    assert_caught(Lie::Mistakes, &["a value is what was written there"]);
}

fn watch(lie: Lie, rounds: u64, within: Duration) -> SceneReport {
    let scene = Scene {
        servers: vec![server(lie, Manner::Keeps)],
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
