//! The pipeline as its neighbours see it: stories that a script cannot tell, and anything at all
//! that clients may send.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::exchange::ConnectionId;
use crate::exchange::{Item, Reply};
use crate::record::data::{Acl, AclBytes, Id, StatPersisted};
use crate::record::op::CreateMode;
use crate::record::proto::{CreateRequest, MULTI_END, MultiHeader, PathVersion, SetDataRequest};
use crate::storage::replay::{LogReader, Options, Record, Replay, ReplayError};
use crate::storage::snapshot::{SnapshotDigest, SnapshotReader, SnapshotWriter, Trailer};
use crate::storage::watermark::Watermark;
use crate::tree::change::Unwatched;
use crate::tree::ephemerals::Types;
use crate::types::Xid;

const SHARD: ShardId = ShardId(0);
pub(super) const HERE: ConnectionId = ConnectionId { slot: 0, generation: 0 };
const RECORD_BYTES_MAX: usize = 64 << 10;

/// A pipeline, a disk that is always synced, and what both came to.
pub(super) struct Bench {
    now: Now,
    pipeline: Pipeline,
    /// A log as on the disk.
    log: Vec<u8>,
    first: Option<Zxid>,
    xid: i32,
    out: Output,
    ids: Arc<[Id]>,
}

/// What came back to one connection.
type Replies = Vec<(ConnectionId, Zxid, Outcome, Vec<u8>)>;

pub(super) fn settings() -> Settings {
    Settings {
        server: ServerId(1),
        shards: 1,
        tick_ms: 1000,
        providers: Arc::default(),
        skip_acl: false,
        enforce_quota: true,
        reconfig_enabled: false,
        close_session_lists_paths: true,
        record_bytes_max: RECORD_BYTES_MAX,
        answer_bytes_max: 1 << 20,
        listed_per_step: 2,
        tree: tree::Settings { types: Types { extended: true, emulate_353: false }, digest: true },
        roll: RollSettings::default(),
        reaper: ReaperSettings {
            check_interval_ms: 2_000,
            per_minute_max: 60_000,
            never_used_ms_max: 5_000,
        },
        audit: None,
        seed: 1,
        #[cfg(feature = "mutants")]
        mutant: None,
    }
}

pub(super) fn start() -> Now {
    Now { monotonic_ms: 1_000_000, wall_ms: 1_700_000_000_000 }
}

impl Bench {
    pub(super) fn new(settings: Settings) -> Bench {
        let restored = Restore::empty(settings.tree).finish();
        Bench::restored(settings, restored)
    }

    fn restored(settings: Settings, restored: Restored) -> Bench {
        let mut log = Vec::new();
        txnlog::append_header(&mut log);
        let mut pipeline = Pipeline::new(start(), settings, restored);
        let mut out = Output::default();
        pipeline.start(start(), &mut out);
        let ids = Arc::from([Id::new("ip", "127.0.0.1")]);
        let mut bench = Bench { now: start(), pipeline, log, first: None, xid: 0, out, ids };
        bench.sync();
        bench
    }

    fn request(&mut self, connection: ConnectionId, session: SessionId, want: Want, body: &[u8]) {
        self.xid += 1;
        let mut requests = Requests::new(SHARD);
        requests.bodies.extend_from_slice(body);
        requests.requests.push(Request {
            connection,
            session,
            xid: Xid(self.xid),
            want,
            body: crate::exchange::Span::since(0, body.len()),
            ids: Arc::clone(&self.ids),
        });
        self.pipeline.step(self.now, Input::Requests(&requests), &mut self.out);
    }

    /// Makes all durable that was logged, and says what came of it.
    fn sync(&mut self) -> Replies {
        while self.pipeline.has_work() {
            self.pipeline.step(self.now, Input::GoOn, &mut self.out);
        }
        let mut synced = None;
        for append in self.out.appends.drain(..) {
            self.first.get_or_insert(append.first);
            self.log.extend_from_slice(&append.records);
            synced = Some(append.last);
        }
        if let Some(zxid) = synced {
            self.pipeline.step(self.now, Input::Synced(zxid), &mut self.out);
        }
        let mut replies = Vec::new();
        for applied in self.out.applied.drain(..) {
            for item in &applied.items {
                if let Item::Reply(Reply { connection, zxid, outcome, .. }) = *item {
                    let body = match outcome {
                        Outcome::Answer { body, .. } => applied.body(body).to_vec(),
                        _ => Vec::new(),
                    };
                    replies.push((connection, zxid, outcome, body));
                }
            }
        }
        assert_eq!(self.pipeline.broken_invariant(), None);
        replies
    }

    pub(super) fn open(&mut self, connection: ConnectionId) -> SessionId {
        let want = Want::Open { timeout_ms: 4_000, last_zxid_seen: Zxid::ZERO };
        self.request(connection, SessionId(0), want, &[]);
        match self.sync()[..] {
            [(_, _, Outcome::Connected { session, .. }, _)] => session,
            ref other => panic!("connected, not {other:?}"),
        }
    }

    fn ask(&mut self, session: SessionId, want: Want, body: &[u8]) -> (Code, Vec<u8>) {
        self.request(HERE, session, want, body);
        match &self.sync()[..] {
            [(HERE, _, Outcome::Answer { err, .. }, body)] => (*err, body.clone()),
            other => panic!("answered, not {other:?}"),
        }
    }

    fn write(&mut self, session: SessionId, op: i32, body: &[u8]) -> (Code, Vec<u8>) {
        self.ask(session, Want::Write { op }, body)
    }

    pub(super) fn create(
        &mut self,
        session: SessionId,
        path: &str,
        data: &[u8],
        mode: CreateMode,
    ) -> Code {
        self.write(session, code::CREATE, &create(path, data, AclBytes::OPEN, mode as i32)).0
    }

    pub(super) fn close(&mut self, session: SessionId) {
        assert_eq!(self.ask(session, Want::Close, &[]).0, Code::Ok);
    }

    fn pass(&mut self, ms: i64) -> Replies {
        self.now.monotonic_ms += ms;
        self.now.wall_ms += ms;
        let touched = Touched { shard: SHARD, as_of_ms: self.now.monotonic_ms, heard: Vec::new() };
        self.pipeline.step(self.now, Input::Touched(&touched), &mut self.out);
        self.pipeline.step(self.now, Input::Tick, &mut self.out);
        self.sync()
    }

    fn path_exists(&self, path: &str) -> bool {
        self.pipeline.tree().newest(path).is_some()
    }

    fn data(&self, path: &str) -> Option<String> {
        let znode = self.pipeline.tree().newest(path)?;
        Some(String::from_utf8_lossy(znode.data().unwrap_or_default()).into_owned())
    }

    /// A state made of the log alone, or of what it has after a snapshot.
    fn replayed(&self, restore: Restore) -> Restored {
        let restored = self.replayed_until(restore, Zxid(i64::MAX));
        assert_eq!(restored.last, self.pipeline.report().zxid, "all of it is read");
        restored
    }

    /// The same, of the log's transactions up to `last`.
    pub(super) fn replayed_until(&self, restore: Restore, last: Zxid) -> Restored {
        let mut restore = restore;
        let options = Options { from: restore.last(), watermark: None };
        let mut replay = Replay::new(options);
        if let Some(first) = self.first {
            replay
                .log(Path::new("log"), first, &self.log, |record| {
                    if last < record.zxid() {
                        return Ok(());
                    }
                    restore
                        .replay(&record.header, &record.txn, record.digest.as_ref())
                        .map_err(|error| Failed(error.to_string()))
                })
                .unwrap();
        }
        replay.finish().unwrap();
        restore.finish()
    }
}

#[derive(Debug)]
struct Failed(#[expect(dead_code, reason = "for the message")] String);

impl From<ReplayError> for Failed {
    fn from(error: ReplayError) -> Failed {
        Failed(error.to_string())
    }
}

pub(super) fn create(path: &str, data: &[u8], acl: AclBytes<'_>, flags: i32) -> Vec<u8> {
    let mut body = Vec::new();
    CreateRequest { path: Some(path.into()), data: Some(data), acl, flags }.write(&mut body);
    body
}

fn set_data(path: &str, data: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    SetDataRequest { path: Some(path.into()), data: Some(data), version: -1 }.write(&mut body);
    body
}

pub(super) fn multi(operations: &[(i32, Vec<u8>)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (kind, operation) in operations {
        MultiHeader { kind: *kind, done: false, err: -1 }.write(&mut body);
        body.extend_from_slice(operation);
    }
    MULTI_END.write(&mut body);
    body
}

/// How many of a multi's operations failed, and the first of their codes.
pub(super) fn failures(mut body: &[u8]) -> Vec<i32> {
    let mut reader = Reader::new(body);
    let mut errors = Vec::new();
    while let Ok(MultiHeader { kind: code::ERROR, done: false, err }) =
        MultiHeader::read(&mut reader)
    {
        reader.i32().unwrap();
        errors.push(err);
        body = reader.rest();
    }
    let _ = body;
    errors
}

/// A server whose history has come to `last`, with the tree that each begins with.
fn after(last: Zxid) -> Bench {
    let mut restored = Restore::empty(settings().tree).finish();
    restored.last = last;
    Bench::restored(settings(), restored)
}

/// What servers of an ensemble agree by, in these tests.
pub(super) const ZAB: crate::zab::Settings = crate::zab::Settings {
    tick_ms: 1_000,
    init_limit: 10,
    sync_limit: 5,
    received_bytes_max: 1 << 20,
    unsynced_bytes_max: 1 << 20,
    counters_from: 0,
    #[cfg(feature = "mutants")]
    mutant: None,
};

/// The only server of an ensemble, which leads.
fn leading_alone() -> Bench {
    use crate::ensemble::Ensemble;
    use crate::zab::history::{Cache, History};
    use crate::zab::{election, peer, voters::Voters};

    let lines = [("server.1", "127.0.0.1:2888:3888"), ("server.2", "127.0.0.1:2889:3889:observer")];
    let ensemble = Ensemble::parse(lines, false).unwrap();
    let cache = Cache { count_max: 10, bytes_max: 1 << 20 };
    let member = MemberStart {
        peer: peer::Start {
            me: ServerId(1),
            settings: ZAB,
            election: election::Settings::default(),
            voters: Arc::new(Voters::new(Arc::new(ensemble), None)),
            is_observer: false,
            accepted: crate::types::Epoch(0),
            current: crate::types::Epoch(0),
            history: History::new(cache, Zxid::ZERO),
            is_vouched_for: true,
        },
        cache,
        leader_serves: true,
        reads_alone: false,
        local_sessions: LocalSessions::Off,
        config: "version=0".into(),
        config_version: 0,
    };
    let restored = Restore::empty(settings().tree).finish();
    let mut log = Vec::new();
    txnlog::append_header(&mut log);
    let mut bench = Bench {
        now: start(),
        pipeline: Pipeline::member(start(), settings(), restored, member),
        log,
        first: None,
        xid: 0,
        out: Output::default(),
        ids: Arc::from([Id::new("ip", "127.0.0.1")]),
    };
    bench.pipeline.start(bench.now, &mut bench.out);
    while bench.out.serves.is_none() {
        for stored in std::mem::take(&mut bench.out.stores) {
            bench.pipeline.step(bench.now, Input::Stored(stored), &mut bench.out);
        }
        bench.sync();
        if bench.out.stores.is_empty() && bench.out.serves.is_none() {
            let due = bench.pipeline.deadline().expect("it is not established");
            bench.now.monotonic_ms = due.0.max(bench.now.monotonic_ms);
            bench.pipeline.step(bench.now, Input::Time, &mut bench.out);
        }
    }
    bench
}

#[test]
fn a_member_that_is_to_end_answers_what_it_was_asked_and_takes_nothing_more() {
    let mut bench = leading_alone();
    let session = bench.open(HERE);
    let create = |path| create(path, b"", AclBytes::OPEN, 0);
    bench.request(HERE, session, Want::Write { op: code::CREATE }, &create("/before"));
    bench.pipeline.step(bench.now, Input::Stop, &mut bench.out);
    assert!(!bench.pipeline.may_end(), "a client waits for its answer");
    assert!(matches!(bench.sync()[..], [(HERE, _, Outcome::Answer { err: Code::Ok, .. }, _)]));
    assert!(bench.pipeline.may_end());
    // The session's time is over, and nothing is logged for it.
    assert!(bench.pass(60_000).is_empty());
    assert!(bench.out.appends.is_empty());
}

#[test]
fn a_member_that_is_to_end_waits_half_a_tick_for_what_nobody_agrees_to() {
    let mut bench = leading_alone();
    let session = bench.open(HERE);
    let body = create("/before", b"", AclBytes::OPEN, 0);
    bench.request(HERE, session, Want::Write { op: code::CREATE }, &body);
    bench.pipeline.step(bench.now, Input::Stop, &mut bench.out);
    let due = bench.pipeline.deadline().expect("it does not wait for ever");
    assert!(due.0 <= bench.now.monotonic_ms + settings().tick_ms / 2);
    bench.now.monotonic_ms = due.0;
    bench.pipeline.step(bench.now, Input::Time, &mut bench.out);
    assert!(bench.pipeline.may_end());
}

#[test]
fn a_server_alone_may_end_whenever_its_log_is_durable() {
    let mut bench = after(Zxid::ZERO);
    bench.pipeline.step(bench.now, Input::Stop, &mut bench.out);
    assert!(bench.pipeline.may_end());
}

/// After the last zxid of an epoch comes zero of the next, wherever in a batch. Records of two
/// epochs are never one append: the log notes where each epoch ended.
#[test]
fn a_batch_may_run_over_the_end_of_an_epoch() {
    let end = Zxid(i64::from(u32::MAX));
    for before in 0..6 {
        let begin = Zxid(end.0 - 1 - before);
        let mut bench = after(begin);
        let session = bench.open(HERE);
        let mut requests = Requests::new(SHARD);
        for n in 0..4 {
            let body = create(&format!("/n{n}"), b"x", AclBytes::OPEN, 0);
            let start = requests.bodies.len();
            requests.bodies.extend_from_slice(&body);
            requests.requests.push(Request {
                connection: HERE,
                session,
                xid: Xid(n),
                want: Want::Write { op: code::CREATE },
                body: crate::exchange::Span::since(start, requests.bodies.len()),
                ids: Arc::clone(&bench.ids),
            });
        }
        bench.pipeline.step(bench.now, Input::Requests(&requests), &mut bench.out);
        let opened = begin.next();
        let (mut next, mut new_files) = (opened.next(), 0);
        for append in &bench.out.appends {
            assert_eq!(append.first, next, "no gap");
            assert!(append.first <= append.last);
            assert_eq!(append.first.epoch(), append.last.epoch(), "one epoch");
            new_files += usize::from(append.new_file);
            next = append.last.next();
        }
        assert_eq!((next, new_files), (Zxid(begin.0 + 6), 0));
        let rolls = opened < end && end.0 < begin.0 + 5;
        assert_eq!(bench.out.appends.len(), 1 + usize::from(rolls));
        assert_eq!(bench.sync().len(), 4);

        // What a start makes of it, by what the log's writer has noted of the epoch's end.
        let mut watermark = Watermark::new(opened, bench.pipeline.report().zxid);
        watermark.offset = bench.log.len() as u64;
        if end < watermark.zxid {
            watermark.end_epoch(end);
        }
        let mut restored = Restore::empty(settings().tree).finish();
        let mut replayed = 0;
        let options = Options { from: begin, watermark: Some(watermark) };
        let mut replay = Replay::new(options);
        replay
            .log(Path::new("log"), opened, &bench.log, |record| {
                restored.tree.apply(&record.header, &record.txn, &mut Unwatched);
                restored.tree.settle();
                replayed += 1;
                Ok::<(), ReplayError>(())
            })
            .unwrap();
        assert_eq!(replay.finish().unwrap().last, Zxid(begin.0 + 5));
        assert_eq!(replayed, 5);
        assert_eq!(restored.tree.digest(), bench.pipeline.tree().digest());
    }
}

#[test]
fn a_commit_frees_no_less_than_it_brings_and_not_much_more() {
    for replaced in [0, 1, 100, 10_000, 20_000, 1_000_000] {
        let freed = reclaimed_by_commit(replaced);
        assert!(replaced + RECLAIM_PER_COMMIT <= freed);
        assert!(freed <= 2 * replaced + RECLAIM_PER_COMMIT);
        assert!(freed <= replaced.max(RECLAIM_PER_TICK) + RECLAIM_PER_COMMIT);
    }
}

type Content = BTreeMap<String, (Option<Vec<u8>>, StatPersisted, Option<Vec<Acl>>)>;

fn content(reader: &TreeReader) -> Content {
    reader
        .walk()
        .map(|znode| {
            assert_eq!(znode.children().count(), znode.child_count(), "{}", znode.path());
            let acl = znode.acl().map(|acl| acl.to_vec());
            let data = znode.data().map(<[u8]>::to_vec);
            (znode.path().to_owned(), (data, znode.stat_persisted(), acl))
        })
        .collect()
}

const QUOTA: &str = "/zookeeper/quota/q";

fn with_quota(bench: &mut Bench, session: SessionId, limits: &[u8]) {
    for (path, data) in [
        ("/q", &b""[..]),
        (QUOTA, b""),
        ("/zookeeper/quota/q/zookeeper_limits", limits),
        ("/zookeeper/quota/q/zookeeper_stats", b""),
    ] {
        assert_eq!(bench.create(session, path, data, CreateMode::Persistent), Code::Ok);
    }
}

const STATS: &str = "/zookeeper/quota/q/zookeeper_stats";

/// The counts are in a znode that clients may write to.
#[test]
fn counts_that_a_client_made_up_are_counted_again() {
    let mut bench = Bench::new(settings());
    let session = bench.open(HERE);
    with_quota(&mut bench, session, b"count=-1,bytes=-1");
    let most = i64::MAX;
    for (n, made_up) in [
        format!("count={most},bytes={most}"),
        format!("count=0,bytes={most}"),
        format!("count={},bytes=0", i64::MIN),
        "rubbish".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        assert_eq!(
            bench.write(session, code::SET_DATA, &set_data(STATS, made_up.as_bytes())).0,
            Code::Ok
        );
        let path = format!("/q/{n}");
        assert_eq!(bench.create(session, &path, b"12", CreateMode::Persistent), Code::Ok);
        let counted = format!("count={},bytes={}", n + 2, 2 * (n + 1));
        assert_eq!(bench.data(STATS), Some(counted), "after {made_up}");
    }
}

/// What a session owns may be more than a record can list.
#[test]
fn the_end_of_a_session_can_be_read_again_however_much_it_owned() {
    let mut bench = Bench::new(settings());
    let session = bench.open(HERE);
    let name = "x".repeat(200);
    for n in 0..RECORD_BYTES_MAX / 200 {
        assert_eq!(
            bench.create(session, &format!("/{name}{n}"), b"", CreateMode::Ephemeral),
            Code::Ok
        );
    }
    bench.ask(session, Want::Close, &[]);
    let restored = bench.replayed(Restore::empty(settings().tree));
    assert_eq!(restored.tree.znode_count(), 4);
    assert_eq!(restored.tree.digest(), bench.pipeline.tree().digest());
}

/// A few bytes of `auth` stand for all the ids of a connection.
#[test]
fn what_could_not_be_read_again_is_not_written() {
    let mut bench = Bench::new(settings());
    let session = bench.open(HERE);
    bench.ids = (0..100).map(|n| Id::new("digest", format!("user{n}:hash"))).collect();
    let auths = |count: i32| {
        let mut acl = Vec::new();
        acl.put_count(Some(count as usize));
        for perms in 0..count {
            Acl::new(perms, "auth", "").write(&mut acl);
        }
        acl
    };
    let many = auths(60);
    let many = AclBytes::from_bytes(&many).unwrap();
    let body = create("/a", b"", many, 0);
    assert_eq!(bench.write(session, code::CREATE, &body).0, Code::InvalidAcl);
    let mut acl_body = Vec::new();
    acl_body.put_text("/");
    many.write(&mut acl_body);
    acl_body.put_i32(-1);
    assert_eq!(bench.write(session, code::SET_ACL, &acl_body).0, Code::InvalidAcl);
    // Each fits, all together do not.
    let some = auths(10);
    let some = AclBytes::from_bytes(&some).unwrap();
    let parts: Vec<_> =
        (0..9).map(|n| (code::CREATE, create(&format!("/{n}"), b"", some, 0))).collect();
    let (code, body) = bench.write(session, code::MULTI, &multi(&parts));
    assert_eq!(code, Code::Ok);
    let failing = failures(&body);
    assert_eq!(failing.len(), 9);
    assert!(failing.contains(&Code::BadArguments.number()), "{failing:?}");
    assert!(!bench.path_exists("/0"));
    let restored = bench.replayed(Restore::empty(settings().tree));
    assert_eq!(restored.tree.digest(), bench.pipeline.tree().digest());
}

/// A failed multi's record is as long as what it tried.
#[test]
fn a_failed_multi_can_be_read_again_however_long_it_was() {
    let mut bench = Bench::new(settings());
    let session = bench.open(HERE);
    let data = vec![b'x'; 20_000];
    let mut parts: Vec<_> = (0..3)
        .map(|n| (code::CREATE, create(&format!("/{n}"), &data, AclBytes::OPEN, 0)))
        .collect();
    let mut missing = Vec::new();
    PathVersion { path: Some("/nope".into()), version: -1 }.write(&mut missing);
    parts.extend((0..4_000).map(|_| (code::CHECK, missing.clone())));
    let (_, body) = bench.write(session, code::MULTI, &multi(&parts));
    let failing = failures(&body);
    assert_eq!(failing[..5], [0, 0, 0, Code::NoNode.number(), Code::RuntimeInconsistency.number()]);
    let restored = bench.replayed(Restore::empty(settings().tree));
    assert_eq!(restored.tree.digest(), bench.pipeline.tree().digest());
    assert_eq!(restored.tree.znode_count(), 4);
}

/// `jute.maxbuffer` may be raised; the frame was held against it already.
/// No conformance case: the session has to end while the request is in the server, which only a
/// flood of other requests brings about. ZooKeeper 3.8.0, held up so, answers these like this.
#[test]
fn a_multi_of_a_session_that_is_over_fails_in_its_first_operation() {
    let mut bench = Bench::new(settings());
    let (other, session) = (bench.open(HERE), bench.open(HERE));
    bench.request(HERE, session, Want::Close, &[]);
    let before = bench.sync().last().map(|(_, zxid, ..)| *zxid);
    let operations: Vec<_> =
        ["/a", "/b", "/c"].map(|path| (code::CREATE, create(path, b"", AclBytes::OPEN, 0))).into();
    for (count, errors) in [(0, &[][..]), (1, &[-112]), (3, &[-112, -2, -2])] {
        let body = multi(&operations[..count]);
        let (code, body) = bench.write(session, code::MULTI, &body);
        assert_eq!((code, &failures(&body)[..]), (Code::Ok, errors));
        assert!(body.ends_with(&[0xff, 0xff, 0xff, 0xff, 1, 0xff, 0xff, 0xff, 0xff]));
    }
    let (code, body) = bench.write(session, code::MULTI, &multi(&operations)[..20]);
    assert_eq!((code, &body[..]), (Code::MarshallingError, &[][..]));
    let one = &operations[0].1;
    assert_eq!(bench.write(session, code::CREATE, one), (Code::SessionExpired, Vec::new()));
    assert!(!bench.path_exists("/a"));
    assert_eq!(before, Some(bench.pipeline.report().zxid), "nothing of it is history");
    assert_eq!(bench.write(other, code::MULTI, &multi(&operations)).0, Code::Ok);
}

#[test]
fn data_is_as_long_as_a_frame_may_be() {
    let record_bytes_max = 8 << 20;
    let mut bench = Bench::new(Settings { record_bytes_max, ..settings() });
    let session = bench.open(HERE);
    let data = vec![b'x'; crate::jute::FIELD_BYTES_MAX + 1];
    assert_eq!(bench.create(session, "/a", &data, CreateMode::Persistent), Code::Ok);
    let parts = [(code::SET_DATA, set_data("/a", &data))];
    assert!(failures(&bench.write(session, code::MULTI, &multi(&parts)).1).is_empty());
    let id = "u".repeat(crate::jute::FIELD_BYTES_MAX) + ":hash";
    let mut acl = Vec::new();
    Some(vec![Acl::new(31, "digest", id)]).write(&mut acl);
    let body = create("/b", b"", AclBytes::from_bytes(&acl).unwrap(), 0);
    assert_eq!(bench.write(session, code::CREATE, &body).0, Code::Ok);
    let restored = bench.replayed(Restore::empty(settings().tree));
    assert_eq!(restored.tree.newest("/a").unwrap().stat().version, 1);
    assert_eq!(restored.tree.newest("/b").unwrap().acl().unwrap().len(), 1);
}

/// What comes late over a connection that the session has left is not done.
#[test]
fn a_session_writes_over_its_newest_connection_only() {
    let mut bench = Bench::new(settings());
    let session = bench.open(HERE);
    let there = ConnectionId { slot: 1, generation: 0 };
    let password = password(session);
    let want = Want::Resume { timeout_ms: 4_000, last_zxid_seen: Zxid::ZERO, password };
    bench.request(there, session, want, &[]);
    let write = Want::Write { op: code::CREATE };
    bench.request(HERE, session, write, &create("/late", b"", AclBytes::OPEN, 0));
    bench.request(there, session, write, &create("/new", b"", AclBytes::OPEN, 0));
    let outcomes: Vec<_> =
        bench.sync().into_iter().map(|(to, _, outcome, _)| (to, outcome)).collect();
    assert!(
        matches!(
            outcomes[..],
            [
                (HERE, Outcome::Ended),
                (_, Outcome::Connected { .. }),
                (HERE, Outcome::Dropped),
                (_, Outcome::Answer { err: Code::Ok, .. })
            ]
        ),
        "{outcomes:?}"
    );
    assert_eq!((bench.path_exists("/late"), bench.path_exists("/new")), (false, true));
}

#[test]
fn a_prefix_of_ephemerals_is_text() {
    let mut bench = Bench::new(settings());
    let session = bench.open(HERE);
    for path in ["/big", "/big e", "/small"] {
        assert_eq!(bench.create(session, path, b"", CreateMode::Ephemeral), Code::Ok);
    }
    let mut ephemerals = |prefix: &str| {
        let mut body = Vec::new();
        body.put_text(prefix);
        let (_, body) = bench.ask(session, Want::Ephemerals, &body);
        Reader::new(&body).count().unwrap()
    };
    for (prefix, count) in
        [("/bi", 2), ("/big ", 1), (" /big", 0), ("/", 3), (" / ", 3), ("", 3), ("  ", 3)]
    {
        assert_eq!(ephemerals(prefix), Some(count), "{prefix:?}");
    }
}

#[test]
fn ephemerals_are_listed_in_pieces_as_they_are_when_the_last_is_found() {
    let mut bench = Bench::new(settings());
    let session = bench.open(HERE);
    let there = ConnectionId { slot: 1, generation: 0 };
    let other = bench.open(there);
    let path = |number: usize| format!("/own-{number:02}");
    for number in 0..20 {
        assert_eq!(bench.create(session, &path(number), b"", CreateMode::Ephemeral), Code::Ok);
    }
    let mut body = Vec::new();
    body.put_text("/own-");
    bench.request(HERE, session, Want::Ephemerals, &body);
    bench.pipeline.step(bench.now, Input::GoOn, &mut bench.out);
    // Four are found. Others delete some of these and of the rest.
    let delete = |number: usize| {
        let mut body = Vec::new();
        PathVersion { path: Some(path(number).into()), version: -1 }.write(&mut body);
        body
    };
    let write = |op| Want::Write { op };
    for number in [1, 3, 3, 4, 19] {
        bench.request(there, other, write(code::DELETE), &delete(number));
    }
    // This fails, and nothing of it is done.
    let mut multi = Vec::new();
    for number in [0, 3] {
        MultiHeader { kind: code::DELETE, done: false, err: -1 }.write(&mut multi);
        multi.extend_from_slice(&delete(number));
    }
    MULTI_END.write(&mut multi);
    bench.request(there, other, write(code::MULTI), &multi);
    assert!(bench.pipeline.has_work(), "others are served meanwhile");
    let replies = bench.sync();
    let (to, zxid, outcome, body) = replies.last().unwrap();
    assert_eq!((*to, *zxid), (HERE, bench.pipeline.report().zxid));
    assert!(matches!(outcome, Outcome::Answer { err: Code::Ok, .. }), "{outcome:?}");
    let mut reader = Reader::new(body);
    let count = reader.count().unwrap();
    let listed: Vec<String> =
        (0..count.unwrap()).map(|_| reader.text().unwrap().unwrap().into_owned()).collect();
    let expected: Vec<String> =
        (0..19).filter(|number| ![1, 3, 4].contains(number)).map(path).collect();
    assert_eq!(listed, expected);
    assert!(reader.rest().is_empty());
}

#[test]
fn who_is_listed_for_may_leave_meanwhile() {
    let mut bench = Bench::new(settings());
    let session = bench.open(HERE);
    for number in 0..20 {
        let path = format!("/own-{number:02}");
        assert_eq!(bench.create(session, &path, b"", CreateMode::Ephemeral), Code::Ok);
    }
    let mut body = Vec::new();
    body.put_text("/");
    bench.request(HERE, session, Want::Ephemerals, &body);
    let there = ConnectionId { slot: 1, generation: 0 };
    let password = password(session);
    let want = Want::Resume { timeout_ms: 4_000, last_zxid_seen: Zxid::ZERO, password };
    bench.request(there, session, want, &[]);
    bench.request(there, session, Want::Ephemerals, &body);
    let outcomes: Vec<_> =
        bench.sync().into_iter().map(|(to, _, outcome, body)| (to, outcome, body.len())).collect();
    assert!(
        matches!(
            outcomes[..],
            [
                (HERE, Outcome::Ended, _),
                (_, Outcome::Connected { .. }, _),
                (HERE, Outcome::Dropped, _),
                (_, Outcome::Answer { err: Code::Ok, .. }, 224)
            ]
        ),
        "{outcomes:?}"
    );
    bench.request(there, session, Want::Ephemerals, &body);
    bench.request(there, session, Want::Close, &[]);
    let outcomes = bench.sync();
    let expired = outcomes.last().unwrap();
    assert!(
        matches!(expired, (_, _, Outcome::Answer { err: Code::SessionExpired, .. }, _)),
        "{expired:?}"
    );
    assert!(!bench.pipeline.has_work());
}

/// Between looking and deleting a znode may have been written to.
#[test]
fn a_znode_with_a_ttl_lives_on_if_it_is_written_to() {
    let settings = Settings {
        // One per tick.
        reaper: ReaperSettings { per_minute_max: 1, ..settings().reaper },
        ..settings()
    };
    let mut bench = Bench::new(settings);
    let session = bench.open(HERE);
    for path in ["/a", "/b"] {
        let mut body = create(path, b"", AclBytes::OPEN, CreateMode::PersistentWithTtl as i32);
        body.put_i64(500);
        assert_eq!(bench.write(session, code::CREATE_TTL, &body).0, Code::Ok);
    }
    bench.pass(2_000);
    assert_eq!((bench.path_exists("/a"), bench.path_exists("/b")), (false, true));
    assert_eq!(bench.write(session, code::SET_DATA, &set_data("/b", b"new")).0, Code::Ok);
    bench.pass(400);
    assert!(bench.path_exists("/b"), "its data is younger than its TTL");
    bench.pass(2_000);
    assert!(!bench.path_exists("/b"));
}

/// A snapshot may say anything about time.
/// Its client may still come back, and must not find somebody else's session.
#[test]
fn the_id_of_a_session_that_is_over_is_not_given_out_again_by_a_clock_set_back() {
    let mut bench = Bench::new(settings());
    let session = bench.open(HERE);
    bench.request(HERE, session, Want::Close, &[]);
    bench.sync();
    let restored = bench.replayed(Restore::empty(settings().tree));
    assert!(restored.sessions.is_empty());
    let mut again = Bench::restored(settings(), restored);
    // The same time as before: the ids of that time are gone.
    assert!(session < again.open(HERE));
}

/// 3.5.3 marked them as no later server does.
#[test]
fn znodes_with_a_ttl_of_353_outlive_the_start_and_go_when_their_time_is_over() {
    let mut out = SnapshotWriter::new(Vec::new());
    out.sessions(std::iter::empty()).unwrap();
    out.acls(std::iter::empty()).unwrap();
    let owner = i64::MIN | 3_000;
    let stat =
        StatPersisted { mtime: start().wall_ms, ephemeral_owner: owner, ..Default::default() };
    for (path, stat) in [("", &StatPersisted::default()), ("/old", &stat)] {
        out.node(path, Some(b""), tree::OPEN_ACL_NUMBER, stat).unwrap();
    }
    let snapshot = out.finish(Trailer::default()).unwrap();
    for emulate_353 in [true, false] {
        let mut settings = settings();
        settings.tree.types.emulate_353 = emulate_353;
        settings.tree.digest = false;
        let mut reader = SnapshotReader::new(Path::new("snapshot.5"), &*snapshot);
        let restore = Restore::from_snapshot(settings.tree, Zxid(5), &mut reader).unwrap();
        let mut bench = Bench::restored(settings, restore.finish());
        // Else it is an ephemeral of a session that nobody knows.
        assert_eq!(bench.path_exists("/old"), emulate_353);
        bench.pass(2_000);
        bench.pass(1_000);
        assert_eq!(bench.path_exists("/old"), emulate_353, "its time is not over yet");
        bench.pass(2_000);
        bench.pass(1_000);
        assert!(!bench.path_exists("/old"));
    }
}

#[test]
fn ttls_and_exceeded_quotas_are_counted_whether_in_a_multi_or_not() {
    let mut bench = Bench::new(settings());
    let session = bench.open(HERE);
    with_quota(&mut bench, session, b"count=-1,bytes=-1=;byteHardLimit=3;countHardLimit=-1");
    let ttl = |path: &str| {
        let mut body = create(path, b"", AclBytes::OPEN, CreateMode::PersistentWithTtl as i32);
        body.put_i64(3_000);
        body
    };
    bench.write(session, code::CREATE_TTL, &ttl("/t1"));
    bench.write(session, code::CREATE_TTL, &ttl("/t1"));
    let too_much = || (code::SET_DATA, set_data("/q", b"1234"));
    bench.write(session, code::MULTI, &multi(&[(code::CREATE_TTL, ttl("/t2"))]));
    bench.write(session, code::MULTI, &multi(&[(code::CREATE_TTL, ttl("/t3")), too_much()]));
    bench.write(session, code::SET_DATA, &too_much().1);
    let exceeded = BTreeMap::from([("q".to_owned(), 2)]);
    let counted = bench.pipeline.take_counts();
    let expected = Counts { ttl_created: 2, quota_exceeded: exceeded, ..Counts::default() };
    assert_eq!(counted, expected);
    for _ in 0..6 {
        bench.pass(1_000);
    }
    assert_eq!(bench.pipeline.take_counts(), Counts { ttl_deleted: 2, ..Counts::default() });
}

/// The lines are those that ZooKeeper wrote for the same requests.
#[test]
fn changes_are_audited_once_they_are_committed() {
    let mut bench = Bench::new(Settings { audit: Some("root".into()), ..settings() });
    bench.ids = [Id::new("ip", "127.0.0.1"), Id::new("digest", "user1:hash")].into();
    let session = bench.open(HERE);
    bench.create(session, "/a", b"", CreateMode::Persistent);
    bench.create(session, "/a", b"", CreateMode::Persistent);
    bench.create(session, "/a/seq-", b"", CreateMode::EphemeralSequential);
    bench.write(session, code::SET_DATA, &set_data("/nope\t\n", b"x"));
    let mut body = Vec::new();
    body.put_text("/a");
    Some(vec![Acl::new(1, "world", "anyone"), Acl::new(31, "auth", "x")]).write(&mut body);
    body.put_i32(-1);
    bench.write(session, code::SET_ACL, &body);
    let two = |second: &str| {
        let create = |path: &str| (code::CREATE, create(path, b"", AclBytes::OPEN, 0));
        multi(&[create("/m1"), create(second)])
    };
    bench.write(session, code::MULTI, &two("/m1/x/y"));
    bench.write(session, code::MULTI, &two("/m2"));
    let audited = std::mem::take(&mut bench.out.audited);
    let who = format!("session={session}\tuser=127.0.0.1,user1\tip=127.0.0.1\toperation=");
    let expected = [
        (AuditResult::Success, "create\tznode=/a\tznode_type=persistent\tresult=success"),
        (AuditResult::Failure, "create\tznode=/a\tznode_type=persistent\tresult=failure"),
        (
            AuditResult::Success,
            "create\tznode=/a/seq-0000000000\tznode_type=ephemeral_sequential\tresult=success",
        ),
        (AuditResult::Failure, "setData\tznode=/nope\\t\\n\tresult=failure"),
        (AuditResult::Success, "setAcl\tznode=/a\tacl=world:anyone:r,auth:x:cdrwa\tresult=success"),
        (AuditResult::Failure, "multiOperation\tresult=failure"),
        (AuditResult::Success, "create\tznode=/m1\tznode_type=persistent\tresult=success"),
        (AuditResult::Success, "create\tznode=/m2\tznode_type=persistent\tresult=success"),
    ];
    let expected = expected.map(|(result, line)| Audited { result, line: format!("{who}{line}") });
    assert_eq!(audited, expected);
    // Asked for and not committed: nothing is said yet.
    bench.request(HERE, session, Want::Close, &[]);
    assert_eq!(bench.out.audited, []);
    bench.sync();
    let line = format!(
        "session={session}\tuser=root\toperation=ephemeralZNodeDeletionOnSessionCloseOrExpire\t\
         znode=/a/seq-0000000000\tresult=success"
    );
    assert_eq!(bench.out.audited, [Audited { result: AuditResult::Success, line }]);
}

#[test]
fn containers_of_any_age_are_looked_at() {
    let mut out = SnapshotWriter::new(Vec::new());
    out.sessions(std::iter::empty()).unwrap();
    out.acls(std::iter::empty()).unwrap();
    out.node("", Some(b""), -1, &StatPersisted::default()).unwrap();
    for (path, mtime) in [("/old", i64::MIN), ("/young", i64::MAX)] {
        let stat = StatPersisted { mtime, ephemeral_owner: i64::MIN, ..StatPersisted::default() };
        out.node(path, None, -1, &stat).unwrap();
    }
    let bytes = out.finish(Default::default()).unwrap();
    let mut reader = SnapshotReader::new(Path::new("snapshot.5"), &*bytes);
    let restored = Restore::from_snapshot(settings().tree, Zxid(5), &mut reader).unwrap().finish();
    let mut bench = Bench::restored(settings(), restored);
    bench.pass(2_000);
    assert_eq!((bench.path_exists("/old"), bench.path_exists("/young")), (false, true));
}

#[test]
fn a_reconfig_is_read_before_it_is_refused() {
    let mut bench = Bench::new(settings());
    let session = bench.open(HERE);
    let mut body = Vec::new();
    ReconfigRequest {
        joining_servers: None,
        leaving_servers: None,
        new_members: None,
        cur_config_id: -1,
    }
    .write(&mut body);
    assert_eq!(bench.write(session, code::RECONFIG, &body).0, Code::ReconfigDisabled);
    assert_eq!(bench.write(session, code::RECONFIG, &body[..5]).0, Code::MarshallingError);
}

/// Sessions that are gone leave nothing behind, and their end is in the log.
#[test]
fn orphaned_ephemerals_are_closed_at_the_start() {
    let mut bench = Bench::new(settings());
    let session = bench.open(HERE);
    assert_eq!(bench.create(session, "/e", b"", CreateMode::Ephemeral), Code::Ok);
    let mut restored = bench.replayed(Restore::empty(settings().tree));
    restored.sessions.clear();
    let last = restored.last;
    let again = Bench::restored(settings(), restored);
    assert!(!again.path_exists("/e"));
    assert_eq!(again.first, Some(last.next()), "by a transaction like any other");
}

// ---------------------------------------------------------------------------------------------

/// One thing that happens.
#[derive(Clone, Debug)]
enum Happens {
    Write {
        op: i32,
        body: Vec<u8>,
    },
    Ask {
        ephemerals: bool,
        body: Vec<u8>,
    },
    Open,
    Close,
    Pass(i64),
    /// Whether the disk keeps up from here on.
    Disk(bool),
    Snapshot,
}

/// A few paths over and over, so that they come and go, and any odd one.
fn paths() -> impl Strategy<Value = &'static str> {
    let usual = vec!["/a", "/a/b", "/a/b/c", "/q", "/q/x", "/q/x/y", "/c", "/c/x"];
    let odd = vec![
        "/a/",
        "/e/x",
        "/t",
        "/",
        "",
        "a",
        "a/b",
        "//",
        "/.",
        "/a/../b",
        "/\u{e9}",
        "/\u{0}",
        "/\u{e000}",
        "/a/\u{1f600}",
        "/zookeeper",
        "/zookeeper/config",
        "/zookeeper/quota",
        "/zookeeper/quota/zookeeper_limits",
        "/zookeeper/quota/zookeeper_stats",
        "/zookeeper/zookeeper_limits",
        QUOTA,
        "/zookeeper/quota/q/zookeeper_limits",
        STATS,
        "/zookeeper/quota/q/x",
        "/zookeeper/quota/q/x/zookeeper_limits",
        "/zookeeper/quota/q/x/zookeeper_stats",
        "/zookeeper/quota/zookeeper",
        "/zookeeper/quota/zookeeper/zookeeper_limits",
        "/zookeeper/quota/zookeeper/zookeeper_stats",
    ];
    prop_oneof![3 => prop::sample::select(usual), 1 => prop::sample::select(odd)]
}

fn data() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop_oneof![
        1 => Just(None),
        4 => proptest::collection::vec(any::<u8>(), 0..20).prop_map(Some),
        2 => tracks().prop_map(Some),
    ]
}

/// What may stand in a znode with limits or counts.
fn tracks() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(vec![
        "count=1,bytes=30",
        "count=-1,bytes=-1=;byteHardLimit=20;countHardLimit=4",
        "count=9223372036854775807,bytes=9223372036854775807",
        "count=-9223372036854775808,bytes=0",
        "=,;=",
        "countHardLimit=x",
    ])
    .prop_map(|text| text.as_bytes().to_vec())
}

fn acls() -> impl Strategy<Value = Vec<u8>> {
    let list = |acls: &[(i32, &str, &str)]| {
        let acls: Vec<Acl> =
            acls.iter().map(|(perms, scheme, id)| Acl::new(*perms, *scheme, *id)).collect();
        let mut bytes = Vec::new();
        Some(acls).write(&mut bytes);
        bytes
    };
    let mut null = Vec::new();
    null.put_count(None);
    let mut null_id = Vec::new();
    null_id.put_count(Some(1));
    null_id.put_i32(31);
    null_id.put_text("world");
    null_id.put_buffer(None);
    prop_oneof![
        8 => Just(list(&[(31, "world", "anyone")])),
        2 => prop::sample::select(vec![
            list(&[(1, "world", "anyone")]),
            list(&[(31, "auth", "")]),
            list(&[(i32::MAX, "ip", "127.0.0.0/8"), (0, "world", "anyone")]),
            list(&[(27, "digest", "a:b"), (27, "digest", "a:b")]),
        ]),
        1 => prop::sample::select(vec![
            list(&[]), null, null_id, list(&[(1, "nosuch", "x")]), list(&[(1, "world", "x")]),
        ]),
    ]
}

/// A body as a client may send it: whole, mostly; or of any bytes.
fn operation() -> impl Strategy<Value = (i32, Vec<u8>)> {
    let creates = prop::sample::select(vec![
        code::CREATE,
        code::CREATE,
        code::CREATE2,
        code::CREATE_CONTAINER,
        code::CREATE_TTL,
    ]);
    let create = (
        creates,
        paths(),
        data(),
        acls(),
        -1..8,
        prop_oneof![Just(-1), Just(500), Just(0), any::<i64>()],
    )
        .prop_map(|(op, path, data, acl, flags, ttl)| {
            let acl = AclBytes::from_bytes(&acl).unwrap();
            // A create of TTL is rarely asked for without one.
            let flags = if op == code::CREATE_TTL && flags < 4 { 5 } else { flags };
            let mut body = Vec::new();
            CreateRequest { path: Some(path.into()), data: data.as_deref(), acl, flags }
                .write(&mut body);
            if op == code::CREATE_TTL {
                body.put_i64(ttl);
            }
            (op, body)
        });
    let version = || prop_oneof![4 => Just(-1), 1 => -2..3, 1 => any::<i32>()];
    let set = (paths(), data(), version()).prop_map(|(path, data, version)| {
        let mut body = Vec::new();
        SetDataRequest { path: Some(path.into()), data: data.as_deref(), version }.write(&mut body);
        (code::SET_DATA, body)
    });
    let path_version =
        (prop::sample::select(vec![code::DELETE, code::DELETE, code::CHECK]), paths(), version())
            .prop_map(|(op, path, version)| {
                let mut body = Vec::new();
                PathVersion { path: Some(path.into()), version }.write(&mut body);
                (op, body)
            });
    let set_acl = (paths(), acls(), version()).prop_map(|(path, acl, version)| {
        let mut body = Vec::new();
        body.put_text(path);
        body.extend_from_slice(&acl);
        body.put_i32(version);
        (code::SET_ACL, body)
    });
    let any_op = prop::sample::select(vec![
        code::CREATE,
        code::DELETE,
        code::SET_DATA,
        code::SET_ACL,
        code::CHECK,
        code::MULTI,
        code::CREATE2,
        code::RECONFIG,
        code::CREATE_CONTAINER,
        code::DELETE_CONTAINER,
        code::CREATE_TTL,
        code::ERROR,
    ]);
    // What the server counts on, and clients may write to.
    let meddle =
        data().prop_map(|data| (code::SET_DATA, set_data(STATS, &data.unwrap_or_default())));
    let rubbish = (any_op, proptest::collection::vec(any::<u8>(), 0..60));
    prop_oneof![8 => create, 4 => set, 4 => path_version, 2 => set_acl, 2 => meddle, 1 => rubbish]
}

/// The same with something wrong: cut, or with bytes changed.
fn mutated(body: Vec<u8>, damage: &[(prop::sample::Index, Option<u8>)]) -> Vec<u8> {
    let mut body = body;
    for (at, byte) in damage {
        if body.is_empty() {
            break;
        }
        let at = at.index(body.len());
        match byte {
            Some(byte) => body[at] = *byte,
            None => body.truncate(at),
        }
    }
    body
}

/// A state must be one that a snapshot can be made of, which leads to it again.
fn comes_back(restored: Restored) {
    let mut bench = Bench::restored(settings(), restored);
    // What is orphaned has been closed by now.
    let job = bench.pipeline.snapshot_job();
    let bytes = job.write(SnapshotWriter::new(Vec::new()), true).unwrap();
    let mut reader = SnapshotReader::new(Path::new("snapshot"), &*bytes);
    let again = Restore::from_snapshot(settings().tree, job.zxid, &mut reader).unwrap();
    let mut again = again.finish();
    again.tree.publish(again.last);
    assert_eq!(
        uncounted(content(&again.tree.reader())),
        uncounted(content(&bench.pipeline.reader()))
    );
    assert_eq!(again.tree.digest(), bench.pipeline.tree().digest());
    assert_eq!(again.sessions, bench.pipeline.sessions);
    assert_eq!(again.tree.ephemeral_count(), bench.pipeline.tree().ephemeral_count());
}

/// What a log is replayed on.
#[derive(Clone, Copy, Debug)]
enum Begin {
    Empty,
    /// The same, and the operator wants whatever comes of it.
    Doubtful,
    /// A snapshot that does not say which transactions it shows already.
    Fuzzy,
}

impl Begin {
    fn restore(self) -> Restore {
        match self {
            Begin::Empty => Restore::empty(settings().tree),
            Begin::Doubtful => Restore::empty(settings().tree).on_mismatch(OnMismatch::Count),
            Begin::Fuzzy => {
                let job = Bench::new(settings()).pipeline.snapshot_job();
                let job = SnapshotJob { digest: None, ..job };
                let bytes = job.write(SnapshotWriter::new(Vec::new()), false).unwrap();
                let mut reader = SnapshotReader::new(Path::new("snapshot"), &*bytes);
                Restore::from_snapshot(settings().tree, job.zxid, &mut reader).unwrap()
            }
        }
    }
}

/// Where an ephemeral znode shows early, the log still has children of the one before it.
#[test]
fn what_is_created_below_an_ephemeral_that_shows_early_is_not_there() {
    let create = |ephemeral, path: &'static str| Txn::Create {
        kind: CreateKind::Node { create2: false, ephemeral },
        path: path.into(),
        data: None,
        acl: AclBytes::OPEN,
        parent_cversion: -1,
    };
    for begin in [Begin::Fuzzy, Begin::Doubtful] {
        let mut restore = begin.restore();
        for txn in [create(true, "/q"), create(false, "/q/x")] {
            let zxid = restore.last().next().0;
            let header = TxnHeader { client_id: 1, cxid: 0, zxid, time: 1, kind: txn.kind() };
            restore.replay(&header, &txn, None).unwrap();
        }
        let restored = restore.finish();
        assert!(restored.tree.newest("/q").is_some() && restored.tree.newest("/q/x").is_none());
        comes_back(restored);
    }
}

/// Anything that a record could say.
fn any_txn(depth: u32) -> BoxedStrategy<Txn<'static>> {
    let path = || {
        let odd = prop::sample::select(vec!["/x/", "/a/", "/e/x", "//", "/a/..", "/a\u{7f}"]);
        prop_oneof![8 => paths(), 1 => odd].prop_map(std::borrow::Cow::from)
    };
    let kind = prop_oneof![
        4 => any::<bool>()
            .prop_map(|ephemeral| CreateKind::Node { create2: false, ephemeral }),
        1 => Just(CreateKind::Container),
        2 => prop_oneof![Just(5), Just(-1), any::<i64>()].prop_map(CreateKind::Ttl),
    ];
    let number = || prop_oneof![4 => -2..4, 1 => any::<i32>()];
    let create = (kind, path(), number()).prop_map(|(kind, path, parent_cversion)| Txn::Create {
        kind,
        path,
        data: Some(b"x"),
        acl: AclBytes::OPEN,
        parent_cversion,
    });
    let set = (path(), number()).prop_map(|(path, version)| Txn::SetData {
        path,
        data: Some(b"y"),
        version,
    });
    let set_acl = (path(), number()).prop_map(|(path, version)| Txn::SetAcl {
        path,
        acl: AclBytes::OPEN,
        version,
    });
    let close = prop::option::of(proptest::collection::vec(path(), 0..3));
    let single = prop_oneof![
        8 => create,
        3 => path().prop_map(|path| Txn::Delete { path }),
        1 => path().prop_map(|path| Txn::DeleteContainer { path }),
        3 => set,
        1 => set_acl,
        1 => (path(), number()).prop_map(|(path, version)| Txn::Check { path, version }),
        1 => any::<i32>().prop_map(|err| Txn::Error { err }),
        1 => any::<i32>().prop_map(|timeout_ms| Txn::CreateSession { timeout_ms }),
        1 => close.prop_map(|paths| Txn::CloseSession { paths }),
        1 => (path(), number())
            .prop_map(|(path, version)| Txn::Reconfig { path, data: Some(b"z"), version }),
    ];
    if depth == 0 {
        return single.boxed();
    }
    let multi = proptest::collection::vec(any_txn(depth - 1), 0..4).prop_map(Txn::Multi);
    prop_oneof![8 => single, 2 => multi].boxed()
}

fn happenings() -> impl Strategy<Value = Vec<Happens>> {
    let byte = prop_oneof![3 => any::<u8>().prop_map(Some), 1 => Just(None)];
    let damage = proptest::collection::vec((any::<prop::sample::Index>(), byte), 0..3);
    let damage = prop_oneof![5 => Just(Vec::new()), 1 => damage];
    let single = (operation(), damage.clone())
        .prop_map(|((op, body), damage)| Happens::Write { op, body: mutated(body, &damage) });
    let several =
        (proptest::collection::vec(operation(), 0..6), damage).prop_map(|(parts, damage)| {
            let parts: Vec<_> = parts.into_iter().filter(|(op, _)| *op != code::SET_ACL).collect();
            Happens::Write { op: code::MULTI, body: mutated(multi(&parts), &damage) }
        });
    let asks = (any::<bool>(), paths()).prop_map(|(ephemerals, path)| {
        let mut body = Vec::new();
        body.put_text(path);
        Happens::Ask { ephemerals, body }
    });
    let one = prop_oneof![
        20 => single,
        10 => several,
        2 => asks,
        1 => Just(Happens::Open),
        1 => Just(Happens::Close),
        2 => (0_i64..6_000).prop_map(Happens::Pass),
        2 => any::<bool>().prop_map(Happens::Disk),
        1 => Just(Happens::Snapshot),
    ];
    proptest::collection::vec(one, 1..100)
}

/// Counts are made afresh when a snapshot is loaded; clients may have meddled with them.
fn uncounted(content: Content) -> Content {
    let is_count = |path: &str| path.ends_with(tree::quota::STATS_NAME);
    content.into_iter().filter(|(path, _)| !is_count(path)).collect()
}

/// A snapshot as ZooKeeper takes it while transactions go on: sessions and ACLs as they are at the
/// start, then one znode after the other, each as it is when its turn comes. `between` says how
/// many transactions are applied after each.
fn fuzzy_snapshot(records: &[Record<'_>], from: usize, between: &[usize]) -> (Zxid, Vec<u8>) {
    let mut tree = TreeWriter::new(settings().tree);
    let mut sessions = BTreeMap::new();
    let mut records = records.iter();
    let apply = |tree: &mut TreeWriter, record: &Record<'_>| {
        let zxid = record.zxid();
        tree.apply(&record.header, &record.txn, &mut Unwatched);
        tree.settle();
        tree.publish(zxid);
    };
    for record in records.by_ref().take(from) {
        let session = SessionId(record.header.client_id);
        match record.txn {
            Txn::CreateSession { timeout_ms } => drop(sessions.insert(session, timeout_ms)),
            Txn::CloseSession { .. } => drop(sessions.remove(&session)),
            _ => {}
        }
        apply(&mut tree, record);
    }
    let zxid = tree.published();
    let mut out = SnapshotWriter::new(Vec::new());
    out.sessions(sessions.into_iter()).unwrap();
    let acls: Vec<(i64, Vec<u8>)> = tree
        .acl_lists()
        .iter()
        .map(|(number, list)| {
            let mut bytes = Vec::new();
            Some(list.to_vec()).write(&mut bytes);
            (*number, bytes)
        })
        .collect();
    out.acls(acls.iter().map(|(number, list)| (*number, AclBytes::from_bytes(list).unwrap())))
        .unwrap();
    let mut pending = vec![String::new()];
    let mut between = between.iter().cycle();
    while let Some(path) = pending.pop() {
        if let Some(znode) = tree.reader().get(&path) {
            out.node(&path, znode.data(), znode.acl_number(), &znode.stat_persisted()).unwrap();
            pending.extend(znode.children().map(|name| format!("{path}/{name}")));
        }
        for record in records.by_ref().take(*between.next().unwrap()) {
            apply(&mut tree, record);
        }
    }
    let digest = tree.digest() as i64;
    let digest = SnapshotDigest { zxid: tree.published(), version: DIGEST_VERSION, digest };
    let last_processed = Some(digest.zxid);
    (zxid, out.finish(Trailer { digest: Some(digest), last_processed }).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever a log says: a start refuses it by name, or comes to a state that it can write down
    /// and come to again.
    #[test]
    fn a_log_of_anything_is_refused_or_leads_to_a_state_that_comes_back(
        txns in proptest::collection::vec((any_txn(2), 0_i64..4), 1..40),
        begin in prop::sample::select(vec![Begin::Empty, Begin::Doubtful, Begin::Fuzzy]),
    ) {
        let mut restore = begin.restore();
        for (txn, session) in txns {
            let zxid = restore.last().next();
            let header =
                TxnHeader { client_id: session, cxid: 0, zxid: zxid.0, time: 1, kind: txn.kind() };
            if let Err(error) = restore.replay(&header, &txn, None) {
                let named = format!("transaction {zxid} ");
                prop_assert!(error.to_string().starts_with(&named), "{}", error);
                return Ok(());
            }
        }
        comes_back(restore.finish());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever clients send: nobody panics, what fails leaves nothing behind, and the log leads
    /// to the same state, also from a snapshot on.
    #[test]
    fn anything_may_be_sent(
        happenings in happenings(),
        fuzzy_from in any::<prop::sample::Index>(),
        fuzzy_between in proptest::collection::vec(0_usize..4, 1..8),
        damaged in any::<prop::sample::Index>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bench = Bench::new(settings());
        bench.ids = Arc::from([Id::new("ip", "127.0.0.1"), Id::new("digest", "a:b")]);
        let mut session = bench.open(HERE);
        with_quota(&mut bench, session, b"count=-1,bytes=-1=;countHardLimit=9");
        let mut keeps_up = true;
        let mut snapshot: Option<(Zxid, Vec<u8>)> = None;
        for happens in happenings {
            match happens {
                Happens::Write { op, body } => {
                    if keeps_up {
                        bench.sync();
                    }
                    let before = keeps_up.then(|| content(&bench.pipeline.reader()));
                    let counted = bench.pipeline.report();
                    bench.request(HERE, session, Want::Write { op }, &body);
                    let Some(before) = before else { continue };
                    for (_, _, outcome, body) in bench.sync() {
                        let Outcome::Answer { err, .. } = outcome else { continue };
                        let failed = err != Code::Ok || (op == code::MULTI && !failures(&body).is_empty());
                        if failed {
                            let after = bench.pipeline.report();
                            prop_assert_eq!(&content(&bench.pipeline.reader()), &before);
                            prop_assert_eq!(Report { zxid: after.zxid, ..counted }, after);
                        }
                    }
                }
                Happens::Ask { ephemerals, body } => {
                    let want = if ephemerals { Want::Ephemerals } else { Want::Sync };
                    bench.request(HERE, session, want, &body);
                }
                Happens::Open => {
                    bench.sync();
                    session = bench.open(HERE);
                }
                Happens::Close => bench.request(HERE, session, Want::Close, &[]),
                Happens::Pass(ms) => drop(bench.pass(ms)),
                Happens::Disk(up) => keeps_up = up,
                Happens::Snapshot => {
                    let job = bench.pipeline.snapshot_job();
                    let bytes = job.write(SnapshotWriter::new(Vec::new()), true).unwrap();
                    snapshot = Some((job.zxid, bytes));
                }
            }
            prop_assert_eq!(bench.pipeline.broken_invariant(), None);
        }
        bench.sync();
        let (here, digest) = (content(&bench.pipeline.reader()), bench.pipeline.tree().digest());
        let mut replayed = bench.replayed(Restore::empty(settings().tree));
        replayed.tree.publish(replayed.last);
        prop_assert_eq!(&content(&replayed.tree.reader()), &here);
        prop_assert_eq!(replayed.tree.digest(), digest);
        prop_assert_eq!(&replayed.sessions, &bench.pipeline.sessions);
        prop_assert_eq!(replayed.tree.znode_count(), bench.pipeline.tree().znode_count());
        prop_assert_eq!(replayed.tree.ephemeral_count(), bench.pipeline.tree().ephemeral_count());
        prop_assert_eq!(replayed.tree.data_bytes(), bench.pipeline.tree().data_bytes());
        if let Some((zxid, bytes)) = snapshot {
            let mut reader = SnapshotReader::new(Path::new("snapshot"), &*bytes);
            let restore = Restore::from_snapshot(settings().tree, zxid, &mut reader).unwrap();
            let mut replayed = bench.replayed(restore);
            prop_assert_eq!(replayed.tree.digest(), digest);
            prop_assert_eq!(&replayed.sessions, &bench.pipeline.sessions);
            prop_assert_eq!(uncounted(content(&replayed.tree.reader())), uncounted(here.clone()));
        }
        let records: Vec<_> =
            LogReader::new(&bench.log).expect("it has a header").collect();
        let from = fuzzy_from.index(records.len());
        let (zxid, bytes) = fuzzy_snapshot(&records, from, &fuzzy_between);
        let mut reader = SnapshotReader::new(Path::new("snapshot"), &*bytes);
        let restore = Restore::from_snapshot(settings().tree, zxid, &mut reader).unwrap();
        let mut replayed = bench.replayed(restore);
        prop_assert_eq!(replayed.tree.digest(), digest);
        prop_assert_eq!(&replayed.sessions, &bench.pipeline.sessions);
        prop_assert_eq!(uncounted(content(&replayed.tree.reader())), uncounted(here));
        // One record that says something else: refused, or a state that comes back.
        let damaged = damaged.index(records.len());
        let mut payload = records[damaged].payload.to_vec();
        for (at, byte) in &damage {
            // Behind the header, whose zxid makes gaps.
            let body = 32.min(payload.len() - 1);
            let at = body + at.index(payload.len() - body);
            payload[at] = *byte;
        }
        let mut reader = whole(&payload);
        let header = TxnHeader::read(&mut reader).unwrap();
        if let Ok(txn) = Txn::read(header.kind, &mut reader) {
            let mut restore = Restore::empty(settings().tree);
            let is_taken = records.iter().enumerate().all(|(at, record)| {
                let txn = if at == damaged { &txn } else { &record.txn };
                restore.replay(&record.header, txn, None).is_ok()
            });
            if is_taken {
                comes_back(restore.finish());
            }
        }
        bench.pass(0);
        prop_assert_eq!(bench.pipeline.tree().waiting_to_be_freed(), 0);
    }
}
