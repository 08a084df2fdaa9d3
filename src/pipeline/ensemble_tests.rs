//! Sessions of three servers and an observer, at the door of their pipelines: the network delivers at once, disks
//! sync at once, and time passes when a test says so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::tests::{ZAB, create, failures, multi, settings};
use super::*;
use crate::ensemble::Ensemble;
use crate::exchange::{ConnectionId, Item, Mode, Reply, Span};
use crate::record::data::AclBytes;
use crate::record::op::CreateMode;
use crate::record::quorum::{FromLeader, FromLearner, QuorumPacket};
use crate::storage::replay::read_payload;
use crate::types::{Epoch, Xid};
use crate::zab::election::{self, Notification};
use crate::zab::history::{Cache, History};
use crate::zab::peer::Start;
use crate::zab::proposals::Proposal;
use crate::zab::voters::Voters;

const SHARD: ShardId = ShardId(0);
const TICK_MS: i64 = ZAB.tick_ms;
const STEP_MS: i64 = 100;
const CACHE: Cache = Cache { count_max: 1_000, bytes_max: 1 << 20 };
const TIMEOUT_MS: i32 = 10_000;

const A: ServerId = ServerId(1);
const B: ServerId = ServerId(2);
const C: ServerId = ServerId(3);
/// Observes.
const D: ServerId = ServerId(4);

/// What came back to a connection.
type Answers = Vec<(ConnectionId, Zxid, Outcome, Vec<u8>)>;

enum Event {
    Told { to: ServerId, from: ServerId, notification: Notification },
    Refused { to: ServerId, server: ServerId },
    Calls { from: ServerId, to: ServerId },
    Bytes { to: ServerId, link: LinkId, bytes: Arc<[u8]> },
    Closed { to: ServerId, link: LinkId },
    Synced { to: ServerId, zxid: Zxid },
    Stored { to: ServerId, durable: Durable },
}

struct Server {
    pipeline: Pipeline,
    serves: Option<Mode>,
    answers: Answers,
    log: Vec<Proposal>,
    accepted: Epoch,
    current: Epoch,
    /// How often it has asked the disk for something.
    writes: usize,
}

#[derive(Clone, Copy)]
struct Link {
    learner: ServerId,
    leader: ServerId,
}

/// Who may read alone, and what becomes of new sessions.
#[derive(Clone, Copy, Default)]
struct Terms {
    reads_alone: bool,
    local_sessions: LocalSessions,
}

struct Trio {
    now: Now,
    terms: Terms,
    servers: BTreeMap<ServerId, Server>,
    links: BTreeMap<LinkId, Link>,
    events: VecDeque<Event>,
    /// It reaches nobody, and nobody reaches it.
    cut_off: BTreeSet<ServerId>,
    link_count: u64,
    connection_count: u32,
    xid: i32,
    /// What learners have told leaders of whom they heard from.
    touched: Vec<(ServerId, SessionId)>,
}

impl Trio {
    /// Servers that have a leader, which is the last of three; and who observes it.
    fn new(terms: Terms) -> Trio {
        let mut trio = Trio {
            now: Now { monotonic_ms: 1_000_000, wall_ms: 1_700_000_000_000 },
            terms,
            servers: BTreeMap::new(),
            links: BTreeMap::new(),
            events: VecDeque::new(),
            cut_off: BTreeSet::new(),
            link_count: 0,
            connection_count: 0,
            xid: 0,
            touched: Vec::new(),
        };
        for id in [C, A, B, D] {
            trio.start(id, Vec::new(), Epoch(0), Epoch(0));
        }
        trio.pass_until("all serve", |trio| {
            trio.servers.values().all(|server| server.serves == Some(Mode::ReadWrite))
        });
        assert!(trio.servers[&C].pipeline.zab.orders(), "the highest id leads");
        // From here on zxids are of its epoch.
        let first = trio.open(C);
        assert_eq!(trio.create(first, "/first", CreateMode::Persistent), Code::Ok);
        trio.close(first);
        trio
    }

    fn start(&mut self, id: ServerId, log: Vec<Proposal>, accepted: Epoch, current: Epoch) {
        let restored = restored(&log, Zxid(i64::MAX));
        let observer = ("server.4", "h:1:2:observer");
        let lines = ["server.1", "server.2", "server.3"].map(|key| (key, "h:1:2"));
        let lines = lines.into_iter().chain([observer]);
        let members = Ensemble::parse(lines, false).unwrap();
        let mut history = History::new(CACHE, Zxid::ZERO);
        log.iter().for_each(|proposal| history.push(proposal.clone()));
        let peer = Start {
            me: id,
            settings: ZAB,
            election: election::Settings::default(),
            voters: Arc::new(Voters::new(Arc::new(members), None)),
            is_observer: id == D,
            accepted,
            current,
            history,
            is_vouched_for: true,
        };
        let start = MemberStart {
            peer,
            config: "version=0".into(),
            config_version: 0,
            cache: CACHE,
            leader_serves: true,
            reads_alone: self.terms.reads_alone,
            local_sessions: self.terms.local_sessions,
        };
        let settings = Settings { server: id, ..settings() };
        let mut pipeline = Pipeline::member(self.now, settings, restored, start);
        let mut out = Output::default();
        pipeline.start(self.now, &mut out);
        let answers = Answers::new();
        let server = Server { pipeline, serves: None, answers, log, accepted, current, writes: 0 };
        self.servers.insert(id, server);
        self.carry_out(id, out);
        self.settle();
    }

    /// Ends a process; what it has logged is durable.
    fn kill(&mut self, id: ServerId) -> Server {
        self.cut_links(id);
        let server = self.servers.remove(&id).expect("it runs");
        for to in self.servers.keys().copied().collect::<Vec<_>>() {
            self.step(to, Input::Link(LinkInput::ElectionClosed(id)));
        }
        self.settle();
        server
    }

    fn restart(&mut self, id: ServerId, server: Server) {
        self.start(id, server.log, server.accepted, server.current);
    }

    fn cut_links(&mut self, id: ServerId) {
        self.links.retain(|&link, Link { learner, leader, .. }| {
            let is_cut = [*learner, *leader].contains(&id);
            if is_cut {
                self.events.extend([*learner, *leader].map(|to| Event::Closed { to, link }));
            }
            !is_cut
        });
    }

    fn reaches(&self, from: ServerId, to: ServerId) -> bool {
        let is_cut = self.cut_off.contains(&from) || self.cut_off.contains(&to);
        self.servers.contains_key(&to) && !is_cut
    }

    // ---- what happens -----------------------------------------------------------------------

    fn step(&mut self, id: ServerId, input: Input<'_>) {
        let Some(server) = self.servers.get_mut(&id) else { return };
        let mut out = Output::default();
        server.pipeline.step(self.now, input, &mut out);
        self.carry_out(id, out);
    }

    fn carry_out(&mut self, id: ServerId, out: Output) {
        let server = self.servers.get_mut(&id).unwrap();
        server.writes += out.appends.len() + out.stores.len() + usize::from(out.snapshot.is_some());
        for append in &out.appends {
            let mut records = &append.records[..];
            while !records.is_empty() {
                let (record, rest) = records.split_at(txnlog::first_record_bytes(records));
                let payload: Arc<[u8]> = txnlog::payload_of(record).into();
                let zxid = Zxid(read_payload(&payload).unwrap().0.zxid);
                server.log.push(Proposal { zxid, payload });
                records = rest;
            }
            self.events.push_back(Event::Synced { to: id, zxid: append.last });
        }
        let stored = out.stores.iter().map(|&durable| Event::Stored { to: id, durable });
        self.events.extend(stored);
        for applied in out.applied {
            for item in &applied.items {
                if let Item::Reply(Reply { connection, zxid, outcome, .. }) = *item {
                    let body = match outcome {
                        Outcome::Answer { body, .. } => applied.body(body).to_vec(),
                        _ => Vec::new(),
                    };
                    server.answers.push((connection, zxid, outcome, body));
                }
            }
        }
        match out.serves {
            Some(Serves::Clients { mode, .. }) => server.serves = Some(mode),
            Some(Serves::Nobody) => server.serves = None,
            None => {}
        }
        assert!(out.loads.is_none(), "nobody is so far behind");
        for to_link in out.to_links {
            match to_link {
                ToLink::Tell(to) if self.reaches(id, to) => {
                    let notification = self.servers[&id].pipeline.notification().unwrap();
                    self.events.push_back(Event::Told { to, from: id, notification });
                }
                ToLink::Tell(server) => {
                    self.events.push_back(Event::Refused { to: id, server });
                }
                ToLink::Call(to) => self.events.push_back(Event::Calls { from: id, to }),
                ToLink::Send(link, bytes) => {
                    if let Some(known) = self.links.get(&link) {
                        let to = if known.learner == id { known.leader } else { known.learner };
                        self.events.push_back(Event::Bytes { to, link, bytes });
                    }
                }
                ToLink::Close(link) => {
                    if let Some(Link { learner, leader, .. }) = self.links.remove(&link) {
                        let to = if learner == id { leader } else { learner };
                        self.events.push_back(Event::Closed { to, link });
                    }
                }
                ToLink::Snapshot(..) | ToLink::Look(..) | ToLink::Logged(..) => {
                    panic!("nobody is so far behind")
                }
            }
        }
    }

    /// Lets all happen that follows from what has happened.
    fn settle(&mut self) {
        while let Some(event) = self.events.pop_front() {
            match event {
                Event::Told { to, from, notification } if self.reaches(from, to) => {
                    let told = LinkInput::Notification { from, notification };
                    self.step(to, Input::Link(told));
                }
                Event::Told { .. } => {}
                Event::Refused { to, server } => {
                    self.step(to, Input::Link(LinkInput::ElectionRefused(server)));
                }
                Event::Calls { from, to } => self.connect(from, to),
                Event::Bytes { to, link, bytes } => self.receive(to, link, &bytes),
                Event::Closed { to, link } => {
                    self.step(to, Input::Link(LinkInput::Closed(link)));
                }
                Event::Synced { to, zxid } => self.step(to, Input::Synced(zxid)),
                Event::Stored { to, durable } => self.store(to, durable),
            }
        }
    }

    fn store(&mut self, id: ServerId, durable: Durable) {
        let Some(server) = self.servers.get_mut(&id) else { return };
        match durable {
            Durable::AcceptedEpoch(epoch) => server.accepted = epoch,
            Durable::CurrentEpoch(epoch) => server.current = epoch,
            Durable::Truncated(zxid) => {
                server.log.retain(|proposal| proposal.zxid <= zxid);
                let replaced = Box::new(restored(&server.log, zxid));
                self.step(id, Input::Replaced(replaced, durable));
                return;
            }
            Durable::Snapshot(_) => unreachable!("nobody is so far behind"),
        }
        self.step(id, Input::Stored(durable));
    }

    fn connect(&mut self, learner: ServerId, leader: ServerId) {
        if !self.reaches(learner, leader) {
            self.step(learner, Input::Link(LinkInput::LeaderRefused(leader)));
            return;
        }
        self.link_count += 1;
        let link = LinkId(self.link_count);
        self.links.insert(link, Link { learner, leader });
        self.step(leader, Input::Link(LinkInput::LearnerConnected(link)));
        self.step(learner, Input::Link(LinkInput::LeaderReached { link, server: leader }));
    }

    fn receive(&mut self, to: ServerId, link: LinkId, bytes: &[u8]) {
        let Some(known) = self.links.get(&link) else { return };
        let is_learner = known.learner == to;
        // Each of what is sent is one packet.
        let mut reader = whole(bytes);
        let packet = QuorumPacket::read(&mut reader).unwrap();
        assert!(reader.is_empty());
        let input = if is_learner {
            LinkInput::FromLeader { link, packet: FromLeader::read(&packet).unwrap() }
        } else {
            let packet = FromLearner::read(&packet).unwrap();
            if let FromLearner::Ping { touched, .. } = packet {
                let learner = known.learner;
                self.touched.extend(touched.sessions().map(|(session, _)| (learner, session)));
            }
            LinkInput::FromLearner { link, packet }
        };
        self.step(to, Input::Link(input));
    }

    /// Time passes, and clients of these connections speak.
    fn pass(&mut self, ms: i64, speaking: &[(ServerId, SessionId)]) {
        let until_ms = self.now.monotonic_ms + ms;
        while self.now.monotonic_ms < until_ms {
            self.now.monotonic_ms += STEP_MS;
            self.now.wall_ms += STEP_MS;
            for id in self.ids() {
                let server = self.servers.get(&id).expect("none ends meanwhile");
                if server.pipeline.deadline().is_some_and(|at| at.is_due(self.now)) {
                    self.step(id, Input::Time);
                }
                let as_of_ms = self.now.monotonic_ms;
                let spoke = speaking.iter().filter(|(server, _)| *server == id);
                let heard = spoke.map(|(_, session)| (*session, as_of_ms)).collect();
                let touched = Touched { shard: SHARD, as_of_ms, heard };
                self.step(id, Input::Touched(&touched));
                self.step(id, Input::Tick);
                self.settle();
            }
        }
    }

    fn pass_until(&mut self, what: &str, holds: impl Fn(&Trio) -> bool) {
        let end_ms = self.now.monotonic_ms + 60_000;
        while !holds(self) {
            assert!(self.now.monotonic_ms < end_ms, "never: {what}");
            self.pass(STEP_MS, &[]);
        }
    }

    // ---- clients ----------------------------------------------------------------------------

    fn ids(&self) -> Vec<ServerId> {
        self.servers.keys().copied().collect()
    }

    fn ask(
        &mut self,
        at: ServerId,
        connection: ConnectionId,
        session: SessionId,
        want: Want,
        body: &[u8],
    ) -> Answers {
        self.xid += 1;
        let mut requests = Requests::new(SHARD);
        requests.bodies.extend_from_slice(body);
        requests.requests.push(Request {
            connection,
            session,
            xid: Xid(self.xid),
            want,
            body: Span::since(0, body.len()),
            ids: Arc::from([]),
        });
        self.step(at, Input::Requests(&requests));
        self.settle();
        self.answers(at)
    }

    fn answers(&mut self, at: ServerId) -> Answers {
        std::mem::take(&mut self.servers.get_mut(&at).unwrap().answers)
    }

    fn connection(&mut self) -> ConnectionId {
        self.connection_count += 1;
        ConnectionId { slot: self.connection_count, generation: 0 }
    }

    /// A new session.
    fn open(&mut self, at: ServerId) -> Speaks {
        // Of connections that sessions have left.
        self.answers(at);
        let connection = self.connection();
        let want = Want::Open { timeout_ms: TIMEOUT_MS, last_zxid_seen: Zxid::ZERO };
        match self.ask(at, connection, SessionId(0), want, &[])[..] {
            [(_, _, Outcome::Connected { session, .. }, _)] => Speaks { at, connection, session },
            ref other => panic!("connected, not {other:?}"),
        }
    }

    /// What becomes of a session that comes to a server.
    fn resume(&mut self, at: ServerId, session: SessionId, seen: Zxid) -> (Speaks, Outcome) {
        let connection = self.connection();
        let password = password(session);
        let timeout_ms = TIMEOUT_MS;
        let want = Want::Resume { timeout_ms, last_zxid_seen: seen, password };
        let answers = self.ask(at, connection, session, want, &[]);
        let answer = answers.iter().find(|(to, ..)| *to == connection).expect("an answer");
        (Speaks { at, connection, session }, answer.2)
    }

    fn write(&mut self, who: Speaks, op: i32, body: &[u8]) -> (Code, Zxid, Vec<u8>) {
        match &self.ask(who.at, who.connection, who.session, Want::Write { op }, body)[..] {
            [(_, zxid, Outcome::Answer { err, .. }, body)] => (*err, *zxid, body.clone()),
            other => panic!("answered, not {other:?}"),
        }
    }

    fn create(&mut self, who: Speaks, path: &str, mode: CreateMode) -> Code {
        self.write(who, code::CREATE, &create(path, b"", AclBytes::OPEN, mode as i32)).0
    }

    fn close(&mut self, who: Speaks) -> Outcome {
        self.answers(who.at);
        match self.ask(who.at, who.connection, who.session, Want::Close, &[])[..] {
            [(_, _, outcome, _)] => outcome,
            ref other => panic!("closed, not {other:?}"),
        }
    }

    fn pipeline(&mut self, at: ServerId) -> &mut Pipeline {
        &mut self.servers.get_mut(&at).unwrap().pipeline
    }

    /// How many sessions a server knows: those of all, and its own.
    fn sessions(&self, at: ServerId) -> (usize, Option<usize>) {
        let report = self.servers[&at].pipeline.report();
        (report.sessions, report.local_sessions)
    }

    fn zxid(&self, at: ServerId) -> Zxid {
        self.servers[&at].pipeline.report().zxid
    }

    fn has(&mut self, at: ServerId, path: &str) -> bool {
        self.pipeline(at).reader().get(path).is_some()
    }
}

/// A client of a server.
#[derive(Clone, Copy, Debug)]
struct Speaks {
    at: ServerId,
    connection: ConnectionId,
    session: SessionId,
}

/// What a log makes of an empty state, up to a transaction.
fn restored(log: &[Proposal], through: Zxid) -> Restored {
    let mut restore = Restore::empty(settings().tree);
    for proposal in log.iter().filter(|proposal| proposal.zxid <= through) {
        let (header, txn, digest) = read_payload(&proposal.payload).unwrap();
        restore.replay(&header, &txn, digest.as_ref()).unwrap();
    }
    restore.finish()
}

// ---- reading without a leader ---------------------------------------------------------------

const READS_ALONE: Terms = Terms { reads_alone: true, local_sessions: LocalSessions::Off };
const SIX: [u8; 4] = [0; 4];

#[test]
fn a_server_without_a_leader_is_read_after_two_seconds_and_writes_nothing() {
    let mut trio = Trio::new(READS_ALONE);
    let writer = trio.open(A);
    assert_eq!(trio.create(writer, "/a", CreateMode::Persistent), Code::Ok);
    let zxid = trio.zxid(A);
    trio.kill(B);
    trio.kill(C);
    trio.pass_until("it has lost its leader", |trio| trio.servers[&A].serves.is_none());
    trio.pass(1_900, &[]);
    assert_eq!(trio.servers[&A].serves, None, "a leader may still be found");
    trio.pass(200, &[]);
    assert_eq!(trio.servers[&A].serves, Some(Mode::ReadOnly));
    trio.answers(A);
    let writes = trio.servers[&A].writes;

    let (known, reader) = (trio.sessions(A).0, trio.open(A));
    assert_eq!(reader.session.0 >> 56, A.0);
    assert!(trio.has(A, "/a"));
    assert_eq!(trio.sessions(A), (known, Some(1)));
    let listed = trio.ask(A, reader.connection, reader.session, Want::Ephemerals, &SIX);
    assert!(
        matches!(listed[..], [(_, at, Outcome::Answer { err: Code::Ok, .. }, _)] if at == zxid)
    );
    // It comes back over another connection, and the one before ends.
    let (again, outcome) = trio.resume(A, reader.session, zxid);
    assert!(matches!(outcome, Outcome::Connected { .. }), "{outcome:?}");
    // Who has seen more looks for another server, and so does a session of the ensemble: nobody
    // knows here whether it lives.
    for (session, seen) in [
        (reader.session, Zxid(zxid.0 + 1)),
        (writer.session, zxid),
        (SessionId(2 << 56 | 7), Zxid::ZERO),
    ] {
        assert_eq!(trio.resume(A, session, seen).1, Outcome::Dropped, "{session}");
    }
    assert!(matches!(trio.close(again), Outcome::Answer { err: Code::Ok, close: true, .. }));
    assert_eq!(trio.resume(A, again.session, zxid).1, Outcome::Dropped);

    // Who is silent expires.
    let silent = trio.open(A);
    trio.pass(i64::from(TIMEOUT_MS) + TICK_MS, &[]);
    assert!(matches!(trio.answers(A)[..], [(to, _, Outcome::Ended, _)] if to == silent.connection));
    assert_eq!((trio.zxid(A), trio.servers[&A].writes), (zxid, writes));
}

#[test]
fn who_has_come_to_read_leaves_when_there_is_a_leader() {
    let mut trio = Trio::new(READS_ALONE);
    let writer = trio.open(A);
    let (lost, leader) = (trio.kill(B), trio.kill(C));
    trio.pass_until("it is read", |trio| trio.servers[&A].serves == Some(Mode::ReadOnly));
    let reader = trio.open(A);
    trio.restart(B, lost);
    // As soon as it has found one.
    trio.pass_until("it is not read", |trio| trio.servers[&A].serves != Some(Mode::ReadOnly));
    trio.restart(C, leader);
    trio.pass_until("it serves", |trio| trio.servers[&A].serves == Some(Mode::ReadWrite));
    assert_eq!(trio.sessions(A), (1, None));
    assert_eq!(trio.resume(A, reader.session, Zxid::ZERO).1, Outcome::Refused);
    let (writer, outcome) = trio.resume(A, writer.session, Zxid::ZERO);
    assert!(matches!(outcome, Outcome::Connected { .. }), "{outcome:?}");
    assert_eq!(trio.create(writer, "/a", CreateMode::Ephemeral), Code::Ok);
}

#[test]
fn what_may_be_taken_back_is_not_read() {
    let mut trio = Trio::new(READS_ALONE);
    let writer = trio.open(C);
    assert_eq!(trio.create(writer, "/committed", CreateMode::Persistent), Code::Ok);
    let zxid = trio.zxid(C);
    // What it proposes now, nobody hears.
    trio.cut_off.insert(C);
    trio.cut_links(C);
    trio.events.clear();
    let body = create("/proposed", b"", AclBytes::OPEN, 0);
    let want = Want::Write { op: code::CREATE };
    assert!(trio.ask(C, writer.connection, writer.session, want, &body).is_empty());
    assert!(trio.pipeline(C).tree().newest("/proposed").is_some());
    trio.pass_until("it is read", |trio| trio.servers[&C].serves == Some(Mode::ReadOnly));
    let reader = trio.open(C);
    assert!(trio.has(C, "/committed") && !trio.has(C, "/proposed"));
    let listed = trio.ask(C, reader.connection, reader.session, Want::Ephemerals, &SIX);
    assert!(matches!(listed[..], [(_, at, Outcome::Answer { .. }, _)] if at == zxid), "{listed:?}");
    // And it is taken back.
    trio.cut_off.clear();
    trio.pass_until("it serves", |trio| trio.servers[&C].serves == Some(Mode::ReadWrite));
    assert!(trio.pipeline(C).tree().newest("/proposed").is_none());
    assert_eq!(trio.sessions(C).1, None);
}

#[test]
fn nobody_reads_where_it_is_not_asked_for() {
    let mut trio = Trio::new(Terms::default());
    trio.kill(B);
    trio.kill(C);
    trio.pass(20_000, &[]);
    assert_eq!(trio.servers[&A].serves, None);
}

// ---- what servers of Java would do otherwise -------------------------------------------------

/// A leader of 3.9 proposes its error under the zxid before it, and commits nothing from then on.
#[test]
fn what_cannot_be_read_is_not_passed_on_and_stops_nobody() {
    let mut trio = Trio::new(Terms::default());
    for (at, path) in [(A, "/a"), (C, "/c")] {
        let writer = trio.open(at);
        let before = trio.zxid(C);
        for op in [
            code::CREATE,
            code::CREATE2,
            code::CREATE_TTL,
            code::CREATE_CONTAINER,
            code::DELETE,
            code::SET_DATA,
            code::SET_ACL,
            code::MULTI,
            code::RECONFIG,
        ] {
            assert_eq!(trio.write(writer, op, &[0xff]).0, Code::MarshallingError, "{op}");
        }
        assert_eq!(trio.zxid(C), before, "the leader of another kind would repeat a zxid");
        assert_eq!(trio.create(writer, path, CreateMode::Persistent), Code::Ok);
        assert!([A, B, C].into_iter().all(|id| trio.has(id, path)));
    }
    for server in trio.servers.values() {
        assert!(server.log.windows(2).all(|pair| pair[0].zxid < pair[1].zxid));
    }
}

/// An observer hears of what is proposed only once it is committed: the leader has to wait for it.
#[test]
fn a_sync_on_an_observer_waits_for_what_was_proposed_before() {
    let mut trio = Trio::new(Terms::default());
    let (writer, reader) = (trio.open(C), trio.open(D));
    // What followers are sent is lost.
    let links = trio.links.clone();
    trio.links.retain(|_, link| link.learner == D);
    let body = create("/a", b"", AclBytes::OPEN, 0);
    let want = Want::Write { op: code::CREATE };
    assert!(trio.ask(C, writer.connection, writer.session, want, &body).is_empty());
    let body = &[0, 0, 0, 1, b'/'];
    let early = trio.ask(D, reader.connection, reader.session, Want::Sync, body);
    assert!(early.is_empty(), "{early:?}");
    // Followers acknowledge it after all.
    let zxid = trio.servers[&C].log.last().unwrap().zxid;
    let acks = links.iter().filter(|(_, link)| link.learner != D).map(|(link, _)| *link);
    for link in acks.collect::<Vec<_>>() {
        let ack = LinkInput::FromLearner { link, packet: FromLearner::Ack { zxid } };
        trio.step(C, Input::Link(ack));
    }
    trio.settle();
    let synced = trio.answers(D);
    assert!(
        matches!(synced[..], [(_, at, Outcome::Answer { err: Code::Ok, .. }, _)] if at == zxid)
    );
}

/// A leader of 3.8 proposes it, and its own followers leave it.
#[test]
fn a_check_that_is_proposed_alone_changes_nothing() {
    let mut trio = Trio::new(Terms::default());
    let writer = trio.open(A);
    assert_eq!(trio.create(writer, "/a", CreateMode::Persistent), Code::Ok);
    let (now, mut out) = (trio.now, Output::default());
    let pipeline = trio.pipeline(C);
    let txn = Txn::Check { path: "/a".into(), version: 7 };
    let header = pipeline.header(now, writer.session, 77, txn.kind());
    pipeline.log(now, &header, true, |out| txn.write(out), &mut out);
    pipeline.do_what_is_asked(now, &mut out);
    trio.carry_out(C, out);
    trio.settle();
    for id in [A, B, C] {
        assert_eq!(trio.servers[&id].log.last().unwrap().zxid, Zxid(header.zxid), "{id}");
        assert_eq!(trio.servers[&id].serves, Some(Mode::ReadWrite), "{id}");
    }
    assert_eq!(trio.create(writer, "/b", CreateMode::Persistent), Code::Ok);
}

#[test]
fn a_new_session_is_reported_by_every_learner_once_and_then_by_its_own() {
    let mut trio = Trio::new(Terms::default());
    let client = trio.open(A);
    let told = |trio: &mut Trio| -> BTreeSet<ServerId> {
        let touched = std::mem::take(&mut trio.touched).into_iter();
        touched.filter(|(_, session)| *session == client.session).map(|(by, _)| by).collect()
    };
    trio.pass(TICK_MS, &[]);
    assert_eq!(told(&mut trio), BTreeSet::from([A, B, D]));
    trio.pass(2 * TICK_MS, &[(A, client.session)]);
    assert_eq!(told(&mut trio), BTreeSet::from([A]));
    // Who says nothing is in no table, and expires.
    trio.answers(A);
    trio.pass(i64::from(TIMEOUT_MS) + 3 * TICK_MS, &[]);
    let answers = trio.answers(A);
    assert!(matches!(answers[..], [(to, _, Outcome::Ended, _)] if to == client.connection));
    assert_eq!(trio.sessions(B).0, 0);
}

// ---- local sessions -------------------------------------------------------------------------

const FIXED: Terms = Terms { reads_alone: false, local_sessions: LocalSessions::Fixed };
const UPGRADED: Terms = Terms { reads_alone: false, local_sessions: LocalSessions::Upgraded };
const ALL: [ServerId; 4] = [A, B, C, D];

/// Where a client is, on a follower, the leader and an observer, and another server.
const PLACES: [(ServerId, ServerId); 5] = [(A, B), (A, C), (C, A), (D, C), (D, A)];

fn is_connected(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Connected { .. })
}

#[test]
fn a_local_session_is_no_transaction_and_known_to_its_server_alone() {
    for terms in [FIXED, UPGRADED] {
        let mut trio = Trio::new(terms);
        for (at, other) in PLACES {
            let zxid = trio.zxid(C);
            let client = trio.open(at);
            assert_eq!(client.session.0 >> 56, at.0);
            assert_eq!(ALL.map(|id| trio.zxid(id)), [zxid; 4]);
            let known = ALL.map(|id| trio.sessions(id));
            assert_eq!(known, ALL.map(|id| (0, Some(usize::from(id == at)))));
            // It writes, but for ephemerals, with zxids of its writes alone.
            let path = format!("/{}-{}", at.0, other.0);
            assert_eq!(trio.create(client, &path, CreateMode::Persistent), Code::Ok);
            assert_eq!(trio.create(client, &path, CreateMode::Persistent), Code::NodeExists);
            assert_eq!(trio.zxid(C), Zxid(zxid.0 + 2));
            assert_eq!(trio.resume(other, client.session, zxid).1, Outcome::Refused);
            let (again, outcome) = trio.resume(at, client.session, zxid);
            assert!(is_connected(outcome), "{outcome:?}");
            assert_eq!(trio.create(again, &path, CreateMode::Persistent), Code::NodeExists);
            let zxid = trio.zxid(C);
            assert!(matches!(
                trio.close(again),
                Outcome::Answer { err: Code::Ok, close: true, .. }
            ));
            assert_eq!(trio.resume(at, client.session, zxid).1, Outcome::Refused);
            assert_eq!(ALL.map(|id| trio.zxid(id)), [zxid; 4]);
            assert_eq!(trio.sessions(at), (0, Some(0)));
        }
    }
}

#[test]
fn a_local_session_expires_by_its_server() {
    let mut trio = Trio::new(UPGRADED);
    let zxid = trio.zxid(C);
    let clients = [A, C, D].map(|at| trio.open(at));
    let speaking = clients.map(|client| (client.at, client.session));
    trio.pass(3 * i64::from(TIMEOUT_MS), &speaking);
    assert_eq!([A, C, D].map(|at| trio.sessions(at)), [(0, Some(1)); 3]);
    trio.pass(i64::from(TIMEOUT_MS) - 1, &[]);
    assert_eq!([A, C, D].map(|at| trio.sessions(at)), [(0, Some(1)); 3]);
    trio.pass(TICK_MS + STEP_MS, &[]);
    for client in clients {
        let ended = trio.answers(client.at);
        assert!(matches!(ended[..], [(to, _, Outcome::Ended, _)] if to == client.connection));
        assert_eq!(trio.sessions(client.at), (0, Some(0)));
    }
    assert_eq!(ALL.map(|id| trio.zxid(id)), [zxid; 4]);
}

#[test]
fn an_ephemeral_opens_a_local_session_for_all_first() {
    let mut trio = Trio::new(UPGRADED);
    for (at, other) in PLACES {
        let (zxid, client) = (trio.zxid(C), trio.open(at));
        let path = format!("/{}-{}", at.0, other.0);
        let answer = trio.write(
            client,
            code::CREATE2,
            &create(&path, b"", AclBytes::OPEN, CreateMode::Ephemeral as i32),
        );
        // The session's own transaction comes before.
        assert_eq!((answer.0, answer.1), (Code::Ok, Zxid(zxid.0 + 2)));
        assert_eq!(ALL.map(|id| trio.sessions(id)), [(1, Some(0)); 4]);
        let owned =
            |trio: &mut Trio, id| trio.pipeline(id).tree().ephemerals_of(client.session).count();
        assert_eq!(ALL.map(|id| owned(&mut trio, id)), [1; 4]);
        // It is opened once.
        let sequential = CreateMode::EphemeralSequential;
        assert_eq!(trio.create(client, &path, sequential), Code::Ok);
        assert_eq!(trio.zxid(C), Zxid(zxid.0 + 3));
        let (moved, outcome) = trio.resume(other, client.session, trio.zxid(C));
        assert!(is_connected(outcome), "{outcome:?}");
        assert!(matches!(trio.close(moved), Outcome::Answer { err: Code::Ok, close: true, .. }));
        assert_eq!(ALL.map(|id| (owned(&mut trio, id), trio.sessions(id))), [(0, (0, Some(0))); 4]);
    }
}

#[test]
fn a_multi_with_an_ephemeral_opens_a_local_session_for_all() {
    let mut trio = Trio::new(UPGRADED);
    for at in [A, C, D] {
        let (zxid, client) = (trio.zxid(C), trio.open(at));
        let made = |name, mode| {
            let path = format!("/{name}-{}", at.0);
            (code::CREATE, create(&path, b"", AclBytes::OPEN, mode as i32))
        };
        let plain = [made("plain", CreateMode::Persistent)];
        assert_eq!(trio.write(client, code::MULTI, &multi(&plain)).0, Code::Ok);
        assert_eq!(trio.sessions(at), (0, Some(1)));
        let both = [made("a", CreateMode::Persistent), made("b", CreateMode::Ephemeral)];
        let (err, at_zxid, _) = trio.write(client, code::MULTI, &multi(&both));
        assert_eq!((err, at_zxid, trio.sessions(at)), (Code::Ok, Zxid(zxid.0 + 3), (1, Some(0))));
        trio.close(client);
    }
}

/// What 3.8.0 and 3.9.3 answer: a follower's multi has the leader's error in it.
#[test]
fn a_local_session_that_may_not_be_upgraded_owns_nothing() {
    let mut trio = Trio::new(FIXED);
    for (at, within) in [(A, -112), (C, -120), (D, -112)] {
        let client = trio.open(at);
        for mode in [CreateMode::Ephemeral, CreateMode::EphemeralSequential] {
            assert_eq!(trio.create(client, "/mine", mode), Code::EphemeralOnLocalSession);
        }
        let made = |mode| (code::CREATE, create("/m", b"", AclBytes::OPEN, mode as i32));
        let both = [made(CreateMode::Persistent), made(CreateMode::Ephemeral)];
        let (err, _, results) = trio.write(client, code::MULTI, &multi(&both));
        assert_eq!((err, failures(&results)), (Code::Ok, vec![0, within]));
        let path = format!("/plain-{}", at.0);
        assert_eq!(trio.create(client, &path, CreateMode::Persistent), Code::Ok);
        assert_eq!(trio.sessions(at), (0, Some(1)));
    }
}

#[test]
fn a_leader_without_local_sessions_knows_none_of_others() {
    let mut trio = Trio::new(Terms::default());
    if let Agreement::Member(member) = &mut trio.pipeline(A).zab {
        member.set_local_sessions(LocalSessions::Upgraded);
    }
    let client = trio.open(A);
    assert_eq!(trio.create(client, "/a", CreateMode::Persistent), Code::SessionExpired);
    assert_eq!(trio.create(client, "/a", CreateMode::Ephemeral), Code::Ok);
    assert_eq!(trio.create(client, "/b", CreateMode::Persistent), Code::Ok);
}

#[test]
fn a_session_whose_upgrade_is_lost_with_the_leader_is_local_again() {
    let mut trio = Trio::new(UPGRADED);
    let client = trio.open(A);
    // The leader never hears of it.
    let links: Vec<LinkId> =
        trio.links.iter().filter(|(_, link)| link.learner == A).map(|(link, _)| *link).collect();
    let known: Vec<Link> = links.iter().filter_map(|link| trio.links.remove(link)).collect();
    let body = create("/mine", b"", AclBytes::OPEN, CreateMode::Ephemeral as i32);
    let want = Want::Write { op: code::CREATE };
    assert!(trio.ask(A, client.connection, client.session, want, &body).is_empty());
    assert_eq!(trio.sessions(A), (1, Some(0)));
    for (&link, Link { learner, leader }) in links.iter().zip(known) {
        trio.events.extend([learner, leader].map(|to| Event::Closed { to, link }));
    }
    trio.settle();
    trio.pass_until("it serves again", |trio| trio.servers[&A].pipeline.zab.forwards());
    assert_eq!(trio.sessions(A), (0, Some(1)));
    // The connection that it had is gone with the leader.
    let (client, outcome) = trio.resume(A, client.session, Zxid::ZERO);
    assert!(is_connected(outcome), "{outcome:?}");
    assert_eq!(trio.create(client, "/mine", CreateMode::Ephemeral), Code::Ok);
    assert_eq!(ALL.map(|id| trio.sessions(id)), [(1, Some(0)); 4]);
}

#[test]
fn a_local_session_outlives_an_election() {
    let mut trio = Trio::new(UPGRADED);
    let (client, lost) = (trio.open(A), trio.open(C));
    trio.kill(C);
    trio.pass_until("another leads", |trio| trio.servers[&B].pipeline.zab.orders());
    trio.pass_until("it serves", |trio| trio.servers[&A].serves == Some(Mode::ReadWrite));
    let (client, outcome) = trio.resume(A, client.session, Zxid::ZERO);
    assert!(is_connected(outcome), "{outcome:?}");
    assert_eq!(trio.create(client, "/mine", CreateMode::Ephemeral), Code::Ok);
    assert_eq!(trio.resume(A, lost.session, Zxid::ZERO).1, Outcome::Refused);
}
