//! What clients do, and what they are told.
//!
//! A client speaks the raw protocol: it connects, asks up to its depth of requests ahead, brings
//! its watches back after a reconnect, falls silent, leaves, comes with a wrong password or from
//! a future that the server has not seen. It expects replies in the order of its requests, and
//! shows everything that arrives to the checker.

use std::collections::{BTreeSet, VecDeque};

use ringkeeper::jute::Reader;
use ringkeeper::jute::frame;
use ringkeeper::jute::record::Record as _;
use ringkeeper::record::op::{code, xid as special};
use ringkeeper::record::proto::{ConnectRequest, ConnectResponse, ReplyHeader, WatcherEvent};

use crate::check::{Checker, Event, Pending, Received, Verdict, Watcher, require};
use crate::model::Model;
use crate::op::{AclKind, Create, Op, WatchLists, Who};
use crate::rng::Rng;

/// What a client knows of its session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
    pub(crate) id: i64,
    password: [u8; 16],
    pub(crate) timeout_ms: i32,
}

/// How a client comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    New,
    Resume,
    WrongPassword,
    /// With a zxid that no server has seen.
    Ahead,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Away,
    Connecting(Attempt),
    /// Waiting for the answer to an auth packet.
    Authenticating,
    Live,
    /// closeSession is sent.
    Leaving,
}

/// The watches that a client library would bring back.
#[derive(Clone, Debug, Default)]
struct Known {
    data: BTreeSet<String>,
    exist: BTreeSet<String>,
    child: BTreeSet<String>,
    persistent: BTreeSet<String>,
    recursive: BTreeSet<String>,
}

/// What a client wants of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Nothing,
    /// What is in `outbox` is to be sent.
    Send,
    Connect,
    /// Cut the connection, without a word.
    Leave,
}

pub(crate) struct Client {
    rng: Rng,
    who: Who,
    depth: usize,
    think_us: i64,
    timeouts_ms: (i32, i32),
    /// What it asks for on this connection.
    timeout_ms: i32,
    session: Option<Session>,
    phase: Phase,
    since_us: i64,
    sent_us: i64,
    silent_until_us: i64,
    /// How many requests it still wants to make.
    pub(crate) left: u32,
    next_xid: i32,
    pending: VecDeque<Pending>,
    input: Vec<u8>,
    pub(crate) outbox: Vec<u8>,
    /// The zxid of the last reply: what it says when it comes back.
    last_zxid: i64,
    known: Known,
    watcher: Watcher,
    /// Events that a setWatches has brought before its reply.
    immediate: Vec<(i32, String)>,
    audited: bool,
}

/// Where most of what happens, happens.
const PATHS: [&str; 16] = [
    "/a",
    "/b",
    "/a/x",
    "/a/y",
    "/b/x",
    "/a/x/1",
    "/a/x/2",
    "/q",
    "/q/n-",
    "/q/",
    "/e",
    "/e/x",
    "/box",
    "/box/1",
    "/secret",
    "/secret/s",
];
const ODD_PATHS: [&str; 8] =
    ["/zookeeper", "/zookeeper/config", "/", "/none/x", "/a//b", "/a/", "nopath", "/a/./x"];
/// Above so many znodes, clients delete more than they create.
const ZNODES_MAX: usize = 60;

impl Client {
    pub(crate) fn new(
        mut rng: Rng,
        timeouts_ms: (i32, i32),
        requests: u32,
        think_us: i64,
    ) -> Client {
        let who = if rng.chance(350) { Who::Alice } else { Who::Nobody };
        Client {
            who,
            depth: rng.mostly_small(1, 16) as usize,
            think_us: rng.between(think_us / 4, think_us),
            timeouts_ms,
            timeout_ms: 0,
            session: None,
            phase: Phase::Away,
            since_us: 0,
            sent_us: 0,
            silent_until_us: 0,
            left: requests,
            next_xid: 1,
            pending: VecDeque::new(),
            input: Vec::new(),
            outbox: Vec::new(),
            last_zxid: 0,
            known: Known::default(),
            watcher: Watcher::new(who),
            immediate: Vec::new(),
            audited: false,
            rng,
        }
    }

    /// Connected, with nothing left to do or to wait for.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.phase == Phase::Live && self.left == 0 && self.pending.is_empty() && self.audited
    }

    pub(crate) fn describe(&self) -> String {
        format!("{:?}, {} left, {:?}, {:x?}", self.phase, self.left, self.pending, self.session)
    }

    pub(crate) fn session(&self) -> Option<Session> {
        self.session
    }

    /// The session that it is trying to have back.
    pub(crate) fn resumes(&self) -> Option<i64> {
        let is_so = self.phase == Phase::Connecting(Attempt::Resume);
        self.session.filter(|_| is_so).map(|session| session.id)
    }

    /// All of its events have come.
    pub(crate) fn check_at_rest(&mut self, checker: &mut Checker) -> Verdict {
        self.watcher.at_rest(checker.released, &checker.model, &mut checker.marks)
    }

    /// How long until the next `wake`.
    pub(crate) fn pause_us(&mut self) -> i64 {
        match self.phase {
            Phase::Away => self.rng.between(1_000, 300_000),
            _ if self.left == 0 => self.rng.between(20_000, 100_000),
            _ => self.rng.between(0, 2 * self.think_us),
        }
    }

    /// No more faults: finish what is left, and look at everything once more.
    pub(crate) fn settle_down(&mut self) {
        self.left = 0;
        self.silent_until_us = 0;
    }

    /// The client's turn.
    pub(crate) fn wake(&mut self, now_us: i64, checker: &mut Checker, healed: bool) -> Wish {
        let session_timeout_us =
            self.session.map_or(2_000_000, |of| i64::from(of.timeout_ms) * 1000);
        match self.phase {
            Phase::Away => {
                if now_us < self.silent_until_us {
                    return Wish::Nothing;
                }
                Wish::Connect
            }
            Phase::Connecting(_) | Phase::Authenticating | Phase::Leaving => {
                let waited_us = now_us - self.since_us;
                if session_timeout_us.max(2_000_000) < waited_us {
                    Wish::Leave
                } else {
                    Wish::Nothing
                }
            }
            Phase::Live => {
                if now_us < self.silent_until_us {
                    return Wish::Nothing;
                }
                let oldest_us = self.pending.front().map_or(now_us, |pending| pending.sent_us);
                if session_timeout_us < now_us - oldest_us && !healed {
                    return Wish::Leave;
                }
                if healed {
                    self.audit(now_us, checker);
                } else if let Some(wish) = self.misbehave(now_us, checker, session_timeout_us) {
                    return wish;
                }
                while self.left > 0 && self.pending.len() < self.depth {
                    let op = self.draw_op(&checker.model);
                    self.left -= 1;
                    self.ask(now_us, op, checker);
                }
                if session_timeout_us / 3 < now_us - self.sent_us {
                    self.ask(now_us, Op::Ping, checker);
                }
                if self.outbox.is_empty() { Wish::Nothing } else { Wish::Send }
            }
        }
    }

    fn misbehave(
        &mut self,
        now_us: i64,
        checker: &mut Checker,
        session_timeout_us: i64,
    ) -> Option<Wish> {
        match self.rng.below(2_000) {
            0..4 => {
                // Long enough to be expired, or nearly.
                self.silent_until_us = now_us + self.rng.between(0, 2 * session_timeout_us);
                Some(Wish::Nothing)
            }
            22..26 => {
                // Back at the last moment.
                let margin_us = self.rng.between(0, session_timeout_us / 6);
                self.silent_until_us = now_us + session_timeout_us - margin_us;
                Some(Wish::Nothing)
            }
            4..10 => Some(Wish::Leave),
            10..13 => {
                // Its session is left to itself.
                self.forget_session();
                Some(Wish::Leave)
            }
            13..16 => {
                self.silent_until_us = now_us + self.rng.between(0, 2 * session_timeout_us);
                Some(Wish::Leave)
            }
            16..22 => {
                self.ask(now_us, Op::Close, checker);
                if self.rng.coin() {
                    // What stands behind it is never answered.
                    Op::Ping.frame(special::PING, &mut self.outbox);
                }
                self.phase = Phase::Leaving;
                self.since_us = now_us;
                Some(Wish::Send)
            }
            _ => None,
        }
    }

    /// One last look.
    fn audit(&mut self, now_us: i64, checker: &mut Checker) {
        if std::mem::replace(&mut self.audited, true) {
            return;
        }
        self.ask(now_us, Op::Sync { path: "/".to_owned() }, checker);
        self.ask(now_us, Op::AllChildren { path: "/".to_owned() }, checker);
        self.ask(now_us, Op::Ephemerals { prefix: "/".to_owned() }, checker);
        let paths: Vec<String> = checker.model.nodes().keys().cloned().collect();
        for path in paths {
            self.ask(now_us, Op::GetChildren2 { path: path.clone(), watch: false }, checker);
            self.ask(now_us, Op::GetData { path, watch: false }, checker);
        }
    }

    fn forget_session(&mut self) {
        self.session = None;
        self.known = Known::default();
        self.last_zxid = 0;
        self.next_xid = 1;
    }

    // ---- connecting -------------------------------------------------------------------------

    /// A connection is made: the first frame.
    pub(crate) fn on_link(&mut self, now_us: i64, healed: bool) {
        assert_eq!(self.phase, Phase::Away, "one connection at a time");
        let attempt = match (self.session, self.rng.below(100)) {
            (None, 0..4) if !healed => Attempt::Ahead,
            (None, _) => Attempt::New,
            (Some(_), 0..6) if !healed => Attempt::WrongPassword,
            (Some(_), 6..10) if !healed => Attempt::Ahead,
            (Some(_), _) => Attempt::Resume,
        };
        self.phase = Phase::Connecting(attempt);
        let (first, last) = self.timeouts_ms;
        self.timeout_ms = self.rng.between(first.into(), last.into()) as i32;
        (self.since_us, self.sent_us) = (now_us, now_us);
        let (session, mut password) = self.session.map_or((0, [0; 16]), |of| (of.id, of.password));
        let mut last_zxid_seen = self.last_zxid;
        match attempt {
            Attempt::New | Attempt::Resume => {}
            Attempt::WrongPassword => password[self.rng.index(16)] ^= 1,
            // Beyond any zxid that a run comes to.
            Attempt::Ahead => last_zxid_seen += 1 << 40,
        }
        let request = ConnectRequest {
            protocol_version: 0,
            last_zxid_seen,
            timeout_ms: self.timeout_ms,
            session,
            password: Some(&password),
            read_only: self.rng.coin().then_some(false),
        };
        frame::write(&mut self.outbox, |out| request.write(out));
    }

    /// The connection has ended, whoever ended it.
    pub(crate) fn on_end(&mut self, checker: &mut Checker) {
        match self.phase {
            Phase::Connecting(Attempt::Ahead) => {
                checker.marks.insert("client from the future turned away");
            }
            Phase::Live if !self.pending.is_empty() => {
                checker.marks.insert("connection lost with requests under way");
            }
            _ => {}
        }
        self.phase = Phase::Away;
        self.pending.clear();
        self.input.clear();
        self.outbox.clear();
        self.immediate.clear();
        self.watcher = Watcher::new(self.who);
        self.audited = false;
    }

    fn on_connect_response(
        &mut self,
        now_us: i64,
        attempt: Attempt,
        body: &[u8],
        checker: &mut Checker,
    ) -> Verdict {
        let response = ConnectResponse::read(&mut Reader::new(body)).map_err(|e| e.to_string())?;
        let ConnectResponse { timeout_ms, session, password, .. } = response;
        if timeout_ms == 0 {
            match attempt {
                Attempt::Resume => {
                    let own = self.session.expect("one resumes what one has");
                    checker.on_refused(own.id)?;
                    checker.marks.insert("session refused after its end");
                    self.forget_session();
                }
                Attempt::WrongPassword => {
                    checker.marks.insert("wrong password refused");
                }
                Attempt::New | Attempt::Ahead => {
                    return Err(format!("P9: {attempt:?} is refused"));
                }
            }
            // The server ends the connection.
            return Ok(());
        }
        match attempt {
            Attempt::WrongPassword => {
                return Err(format!("P9g: {session:#x} let in with a wrong password"));
            }
            Attempt::Ahead => {
                return Err(format!("P5: {session:#x} let in, and has seen what nobody has"));
            }
            Attempt::New => {
                checker.on_connected(session, &password, timeout_ms, true)?;
                self.session = Some(Session { id: session, password, timeout_ms });
            }
            Attempt::Resume => {
                let own = self.session.as_mut().expect("one resumes what one has");
                require!(own.id == session, "P9: {:#x} came back as {session:#x}", own.id);
                let asked = self.timeout_ms;
                require!(timeout_ms == asked, "P9: {asked} ms were asked for, {timeout_ms} given");
                own.timeout_ms = timeout_ms;
                checker.on_connected(session, &password, timeout_ms, false)?;
                checker.marks.insert("session resumed");
            }
        }
        self.sent_us = now_us;
        if self.who == Who::Alice {
            self.phase = Phase::Authenticating;
            Op::Auth.frame(special::AUTH, &mut self.outbox);
        } else {
            self.go_live(now_us, checker);
        }
        Ok(())
    }

    fn go_live(&mut self, now_us: i64, checker: &mut Checker) {
        self.phase = Phase::Live;
        self.since_us = now_us;
        let known = std::mem::take(&mut self.known);
        if known.is_empty() || self.rng.chance(150) {
            return;
        }
        let all = |paths: &BTreeSet<String>| paths.iter().cloned().collect();
        let lists = WatchLists {
            relative: self.last_zxid,
            data: all(&known.data),
            exist: all(&known.exist),
            child: all(&known.child),
            persistent: all(&known.persistent),
            recursive: all(&known.recursive),
        };
        self.known = known;
        self.ask(now_us, Op::SetWatches(lists), checker);
    }

    // ---- requests and replies ---------------------------------------------------------------

    fn ask(&mut self, now_us: i64, op: Op, checker: &mut Checker) {
        let session = self.session.expect("a live connection has a session").id;
        let xid = match op {
            Op::Ping => special::PING,
            Op::SetWatches(_) => special::SET_WATCHES,
            _ => {
                self.next_xid += 1;
                self.next_xid - 1
            }
        };
        op.frame(xid, &mut self.outbox);
        checker.on_request(session, self.who, xid, &op);
        self.sent_us = now_us;
        let acked_then = checker.acked;
        self.pending.push_back(Pending { xid, op, sent_us: now_us, acked_then });
    }

    /// Bytes have come.
    pub(crate) fn on_bytes(&mut self, now_us: i64, bytes: &[u8], checker: &mut Checker) -> Verdict {
        self.input.extend_from_slice(bytes);
        let input = std::mem::take(&mut self.input);
        let mut rest = &input[..];
        loop {
            match frame::cut(rest, 1 << 22) {
                frame::Front::Frame { body } => {
                    rest = &rest[frame::PREFIX_BYTES + body.len()..];
                    self.on_frame(now_us, body, checker)?;
                }
                frame::Front::Incomplete { .. } => break,
                frame::Front::BadLength(length) => {
                    return Err(format!("a frame of {length} bytes"));
                }
            }
        }
        self.input = rest.to_vec();
        Ok(())
    }

    fn on_frame(&mut self, now_us: i64, body: &[u8], checker: &mut Checker) -> Verdict {
        if let Phase::Connecting(attempt) = self.phase {
            return self.on_connect_response(now_us, attempt, body, checker);
        }
        let mut reader = Reader::new(body);
        let header = ReplyHeader::read(&mut reader).map_err(|e| e.to_string())?;
        let ReplyHeader { xid, zxid, err } = header;
        if xid == special::NOTIFICATION {
            return self.on_event(zxid, &mut reader, checker);
        }
        if xid == special::AUTH {
            require!(self.phase == Phase::Authenticating && err == 0, "auth answered {err}");
            self.go_live(now_us, checker);
            return Ok(());
        }
        let session = self.session.expect("a live connection has a session").id;
        let front = self.pending.front();
        require!(
            front.is_some_and(|front| front.xid == xid),
            "P3: reply {xid} to {session:#x}, which had to be to {front:?}"
        );
        let pending = self.pending.pop_front().expect("just looked at");
        require!(
            self.last_zxid <= zxid,
            "P5: reply of {zxid:#x} to {session:#x} ({:?}) after one of {:#x}",
            pending.op,
            self.last_zxid
        );
        self.last_zxid = zxid;
        checker.on_reply(
            session,
            self.who,
            &pending,
            Received { zxid, err, body: reader.rest() },
        )?;
        let (model, marks) = (&checker.model, &mut checker.marks);
        let found = self.watcher.on_zxid(zxid, model, marks);
        found.map_err(|text| format!("{text} ({session:#x}, reply {xid} to {:?})", pending.op))?;
        if let Op::SetWatches(lists) = &pending.op {
            let immediate = std::mem::take(&mut self.immediate);
            if !immediate.is_empty() {
                marks.insert("missed event told by setWatches");
            }
            self.watcher.on_set_watches(lists, zxid, &immediate, model)?;
        } else {
            require!(self.immediate.is_empty(), "P8d: events of now without setWatches");
            self.watcher.on_done(&pending.op, err)?;
            self.known.on_done(&pending.op, err);
        }
        if matches!(pending.op, Op::Close) && err == 0 {
            checker.marks.insert("session closed");
            self.forget_session();
        }
        Ok(())
    }

    fn on_event(&mut self, zxid: i64, reader: &mut Reader<'_>, checker: &mut Checker) -> Verdict {
        let event = WatcherEvent::read(reader).map_err(|e| e.to_string())?;
        let (kind, path) = (event.kind, event.path.unwrap_or_default().into_owned());
        require!(event.state == 3, "P8e: state {}", event.state);
        self.known.on_event(kind, &path);
        if zxid == -1 {
            let is_asked =
                matches!(self.pending.front(), Some(Pending { op: Op::SetWatches(_), .. }));
            require!(is_asked, "P8d: an event of now without setWatches: {kind} {path}");
            self.immediate.push((kind, path));
            return Ok(());
        }
        checker.on_seen(zxid)?;
        let event = Event { zxid, kind, path };
        let (model, marks) = (&checker.model, &mut checker.marks);
        self.watcher.on_event(&event, checker.released, model, marks)
    }

    // ---- what to ask ------------------------------------------------------------------------

    fn draw_op(&mut self, model: &Model) -> Op {
        let watch = self.rng.chance(400);
        match self.rng.below(100) {
            0..36 => self.draw_write(model),
            36..44 => {
                let count = self.rng.mostly_small(0, 6);
                let multi = (0..count).map(|_| match self.rng.below(10) {
                    0 | 1 => self.draw_check(model),
                    _ => self.draw_write(model),
                });
                Op::Multi(multi.filter(|op| !matches!(op, Op::SetAcl { .. })).collect())
            }
            44..52 => Op::Exists { path: self.draw_path(model), watch },
            52..64 => Op::GetData { path: self.draw_path(model), watch },
            64..67 => Op::GetChildren { path: self.draw_path(model), watch },
            67..75 => Op::GetChildren2 { path: self.draw_path(model), watch },
            75..77 => Op::GetAcl { path: self.draw_path(model) },
            77..79 => Op::AllChildren { path: self.draw_path(model) },
            79..82 => {
                let count = self.rng.between(0, 4);
                let reads = (0..count).map(|_| (self.draw_path(model), self.rng.coin()));
                Op::MultiRead(reads.collect())
            }
            82..88 => Op::AddWatch { path: self.draw_path(model), recursive: self.rng.coin() },
            88..91 => {
                let (path, kind) = (self.draw_path(model), self.rng.between(1, 5) as i32);
                Op::RemoveWatches { path, kind }
            }
            91..93 => {
                let (path, kind) = (self.draw_path(model), self.rng.between(1, 5) as i32);
                Op::CheckWatches { path, kind }
            }
            93..96 => Op::Sync { path: self.draw_path(model) },
            96..98 => {
                let prefix = *self.rng.pick(&["/", "", "/e", "/a"]);
                Op::Ephemerals { prefix: prefix.to_owned() }
            }
            _ => Op::Ping,
        }
    }

    fn draw_write(&mut self, model: &Model) -> Op {
        let creates = if model.nodes().len() < ZNODES_MAX { 45 } else { 20 };
        match self.rng.below(100) {
            drawn if drawn < creates => Op::Create(self.draw_create(model)),
            drawn if drawn < 65 => {
                let path = self.draw_existing(model);
                Op::Delete { version: self.draw_version(model, &path, |stat| stat.version), path }
            }
            65..92 => {
                let path = self.draw_path(model);
                let version = self.draw_version(model, &path, |stat| stat.version);
                Op::SetData { path, data: self.draw_data(), version }
            }
            _ => {
                let path = self.draw_path(model);
                let version = self.draw_version(model, &path, |stat| stat.aversion);
                let acl = *self.rng.pick(&[
                    AclKind::Open,
                    AclKind::Open,
                    AclKind::ReadOnly,
                    AclKind::Private,
                    AclKind::Empty,
                ]);
                // Nobody may ever take these away again from those who are nobody.
                let is_shared = matches!(path.as_str(), "/" | "/a" | "/b" | "/q" | "/e");
                let acl = if is_shared { AclKind::Open } else { acl };
                Op::SetAcl { path, acl, acl_bytes: acl.bytes(), version }
            }
        }
    }

    fn draw_check(&mut self, model: &Model) -> Op {
        let path = self.draw_existing(model);
        let version = self.draw_version(model, &path, |stat| stat.version);
        Op::Check { path, version }
    }

    fn draw_create(&mut self, model: &Model) -> Create {
        let path = match self.rng.below(10) {
            0..6 => self.draw_path(model),
            _ => {
                let parent = self.draw_existing(model);
                let name = *self.rng.pick(&["x", "y", "n-", "", "leaf"]);
                let is_deep = parent.matches('/').count() > 4;
                let parent = if is_deep || parent == "/" { "" } else { &parent };
                format!("{parent}/{name}")
            }
        };
        let plain = *self.rng.pick(&[code::CREATE, code::CREATE, code::CREATE2]);
        let (op, flags, ttl) = match self.rng.below(100) {
            _ if path.ends_with("n-") || path.ends_with('/') => (plain, 2 + self.rng.below(2), -1),
            0..50 => (plain, 0, -1),
            50..75 => (plain, 1, -1),
            75..82 => (plain, 2, -1),
            82..88 => (plain, 3, -1),
            88..94 => (code::CREATE_CONTAINER, 4, -1),
            _ => (code::CREATE_TTL, 5 + self.rng.below(2), self.rng.between(1, 4_000)),
        };
        let acl = match self.rng.below(100) {
            _ if path.starts_with("/secret") => AclKind::Private,
            0..5 => AclKind::Private,
            5..9 => AclKind::ReadOnly,
            9 => AclKind::Empty,
            _ => AclKind::Open,
        };
        let is_shared = matches!(path.as_str(), "/a" | "/b" | "/q" | "/e");
        let acl = if is_shared { AclKind::Open } else { acl };
        let data = self.draw_data();
        Create { op, path, data, acl, acl_bytes: acl.bytes(), flags: flags as i32, ttl }
    }

    fn draw_data(&mut self) -> Option<Vec<u8>> {
        let length = match self.rng.below(100) {
            0..4 => return None,
            4..8 => 0,
            // Over several pages.
            8..12 => self.rng.between(2_000, 14_000),
            _ => self.rng.mostly_small(1, 300),
        };
        let mut data = vec![0; length as usize];
        self.rng.fill(&mut data);
        Some(data)
    }

    fn draw_version(
        &mut self,
        model: &Model,
        path: &str,
        of: impl Fn(&ringkeeper::record::data::StatPersisted) -> i32,
    ) -> i32 {
        match self.rng.below(10) {
            0..6 => -1,
            6..9 => model.node(path).map_or(0, |node| of(&node.stat)),
            _ => self.rng.between(0, 5) as i32,
        }
    }

    fn draw_path(&mut self, model: &Model) -> String {
        match self.rng.below(100) {
            0..70 => (*self.rng.pick(&PATHS)).to_owned(),
            70..96 => self.draw_existing(model),
            _ => (*self.rng.pick(&ODD_PATHS)).to_owned(),
        }
    }

    fn draw_existing(&mut self, model: &Model) -> String {
        let count = model.nodes().len();
        let path = model.nodes().keys().nth(self.rng.index(count)).expect("below the count");
        match path.starts_with("/zookeeper") {
            true => (*self.rng.pick(&PATHS)).to_owned(),
            false => path.clone(),
        }
    }
}

impl Known {
    fn is_empty(&self) -> bool {
        let all = [&self.data, &self.exist, &self.child, &self.persistent, &self.recursive];
        all.iter().all(|paths| paths.is_empty())
    }

    fn on_done(&mut self, op: &Op, err: i32) {
        match op {
            Op::Exists { path, watch: true } if err == 0 => {
                self.data.insert(path.clone());
            }
            Op::Exists { path, watch: true } if err == crate::model::err::NO_NODE => {
                self.exist.insert(path.clone());
            }
            Op::GetData { path, watch: true } if err == 0 => {
                self.data.insert(path.clone());
            }
            Op::GetChildren { path, watch: true } | Op::GetChildren2 { path, watch: true }
                if err == 0 =>
            {
                self.child.insert(path.clone());
            }
            Op::AddWatch { path, recursive } => {
                let paths = if *recursive { &mut self.recursive } else { &mut self.persistent };
                paths.insert(path.clone());
            }
            Op::RemoveWatches { path, kind } if err == 0 => {
                let is_of = |of: i32| *kind == of || *kind == 3;
                if is_of(1) {
                    self.child.remove(path);
                }
                if is_of(2) {
                    self.data.remove(path);
                    self.exist.remove(path);
                }
                if is_of(4) {
                    self.persistent.remove(path);
                }
                if is_of(5) {
                    self.recursive.remove(path);
                }
            }
            _ => {}
        }
    }

    fn on_event(&mut self, kind: i32, path: &str) {
        if kind != 4 {
            self.data.remove(path);
            self.exist.remove(path);
        }
        if matches!(kind, 2 | 4) {
            self.child.remove(path);
        }
    }
}
