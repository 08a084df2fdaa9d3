//! What was promised, held against what happened.
//!
//! | promise | here |
//! |---|---|
//! | P1 what was seen survives | `on_released`, `on_recovered`, `compare_logs` |
//! | P2 writes are linearizable | `on_record`, `on_reply` |
//! | P3 a session's requests keep their order | `on_record`, `Client::on_frame` |
//! | P4 a multi is all or nothing | `Model::multi`, by every read after it |
//! | P5 a session never goes back | `Client::on_frame` |
//! | P6 a read shows the state at its reply's zxid | `Checker::check_read` |
//! | P8 watches | `Watcher` |
//! | P9 sessions and ephemerals; none ends while its client is heard in a socket | `on_record`, `on_connected`, `on_refused` |
//!
//! The checker is told of every transaction when the server asks for it to be logged, and makes
//! its own of it (`model.rs`). What a crash takes is taken from here too, if nobody has seen it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ringkeeper::jute::Reader;
use ringkeeper::jute::Write as _;
use ringkeeper::jute::record::Record as _;
use ringkeeper::pipeline::password;
use ringkeeper::record::data::{Acl, Stat, perms};
use ringkeeper::record::op::code;
use ringkeeper::record::proto::{GetAclResponse, MultiHeader};
use ringkeeper::record::txn::{DIGEST_VERSION, Txn, TxnDigest, TxnHeader};
use ringkeeper::tree::TreeReader;
use ringkeeper::types::{Now, SessionId};

use crate::disk::Disk;
use crate::model::{Answer, Change, ChangeKind, Model, Znode, err, permits};
use crate::op::{Op, WatchLists, Who};

/// What does not hold, in words.
pub(crate) type Verdict<T = ()> = Result<T, String>;

macro_rules! require {
    ($holds:expr, $($text:tt)+) => {
        if !$holds {
            return Err(format!($($text)+));
        }
    };
}
pub(crate) use require;

/// What has happened at least once.
pub(crate) type Marks = BTreeSet<&'static str>;

/// A request a client has sent and no reply has come for.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) xid: i32,
    pub(crate) op: Op,
    pub(crate) sent_us: i64,
    /// The last write that anyone had been told of when this was sent.
    pub(crate) acked_then: i64,
}

/// A reply's header and body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received<'a> {
    pub(crate) zxid: i64,
    pub(crate) err: i32,
    pub(crate) body: &'a [u8],
}

/// When a session was heard of.
#[derive(Clone, Copy, Debug)]
struct Heard {
    last_ms: i64,
    /// When it was heard again after a silence for which it could have been expired.
    late_ms: Option<i64>,
}

/// How long a shard may stall, and some time on the way.
const REPORT_MS_MAX: i64 = 2_500;

pub(crate) struct Checker {
    pub(crate) model: Model,
    pub(crate) marks: Marks,
    /// The log's records as they were framed.
    records: BTreeMap<i64, Vec<u8>>,
    /// What clients have sent and no record has answered.
    requests: BTreeMap<(i64, i32), (Op, Who)>,
    answers: BTreeMap<(i64, i32), Answer>,
    last_cxid: BTreeMap<i64, i32>,
    /// When a server last heard of a session, on its own clock.
    heard: BTreeMap<i64, Heard>,
    /// The timeouts that clients have agreed on when they came back to this server.
    timeouts_ms: BTreeMap<i64, i32>,
    /// When the pipeline was told that a session lives.
    touched_ms: BTreeMap<i64, i64>,
    server_began_ms: i64,
    /// Until when a shard has stalled: nobody is expired meanwhile.
    stalled_until_ms: i64,
    tick_ms: i64,
    digests: bool,
    /// What the pipeline has handed out: committed, and seen or about to be.
    pub(crate) released: i64,
    /// The last zxid that any client has seen.
    pub(crate) seen: i64,
    /// The last write that any client was told of.
    pub(crate) acked: i64,
    pub(crate) replies: u64,
}

impl Checker {
    pub(crate) fn new(extended_types: bool, digests: bool) -> Checker {
        Checker {
            model: Model::new(extended_types),
            marks: Marks::new(),
            records: BTreeMap::new(),
            requests: BTreeMap::new(),
            answers: BTreeMap::new(),
            last_cxid: BTreeMap::new(),
            heard: BTreeMap::new(),
            timeouts_ms: BTreeMap::new(),
            touched_ms: BTreeMap::new(),
            server_began_ms: 0,
            stalled_until_ms: i64::MIN,
            tick_ms: 0,
            digests,
            released: 0,
            seen: 0,
            acked: 0,
            replies: 0,
        }
    }

    // ---- the server's side ------------------------------------------------------------------

    /// A server has begun: every session has its whole timeout again.
    pub(crate) fn on_server_began(&mut self, now: Now, extended_types: bool, tick_ms: i64) {
        self.server_began_ms = now.monotonic_ms;
        self.tick_ms = tick_ms;
        self.heard.clear();
        self.timeouts_ms.clear();
        self.touched_ms.clear();
        self.stalled_until_ms = i64::MIN;
        self.model.extended_types = extended_types;
    }

    /// A shard does nothing until then.
    pub(crate) fn on_stall(&mut self, until_ms: i64) {
        self.stalled_until_ms = self.stalled_until_ms.max(until_ms);
    }

    /// The pipeline takes a request to bring a session back.
    pub(crate) fn on_resume(
        &mut self,
        now: Now,
        session: i64,
        timeout_ms: i32,
        last_zxid_seen: i64,
        claimed: &[u8; 16],
    ) {
        let is_good = *claimed == password(SessionId(session)) && last_zxid_seen <= self.released;
        if is_good && self.model.sessions().contains_key(&session) {
            self.timeouts_ms.insert(session, timeout_ms);
            self.on_touch(now.monotonic_ms, session);
            self.on_heard(now, session);
        }
    }

    /// How long a session may be silent.
    fn timeout_ms(&self, session: i64) -> Option<i32> {
        let logged = self.model.sessions().get(&session)?;
        Some(self.timeouts_ms.get(&session).copied().unwrap_or(*logged))
    }

    /// The pipeline hears of a session, whether its client has sent bytes or comes back or is not
    /// read from for the server's sake.
    pub(crate) fn on_touch(&mut self, heard_ms: i64, session: i64) {
        let touched_ms = self.touched_ms.entry(session).or_insert(heard_ms);
        *touched_ms = heard_ms.max(*touched_ms);
    }

    /// Bytes of this session's client have reached a socket of the server, read or not; or it has
    /// taken some of what was written to it, while it is not read from.
    pub(crate) fn on_heard(&mut self, now: Now, session: i64) {
        let Some(timeout_ms) = self.timeout_ms(session) else { return };
        let (last_ms, began_ms) = (now.monotonic_ms, self.server_began_ms);
        let new = Heard { last_ms: began_ms, late_ms: None };
        let heard = self.heard.entry(session).or_insert(new);
        if i64::from(timeout_ms) <= last_ms - heard.last_ms {
            heard.late_ms = Some(last_ms);
        }
        heard.last_ms = last_ms;
    }

    /// Records on their way into the log.
    pub(crate) fn on_append(&mut self, now: Now, records: &[u8]) -> Verdict {
        let mut rest = records;
        while !rest.is_empty() {
            let length = u32::from_be_bytes(rest[8..12].try_into().unwrap()) as usize;
            let (record, after) = rest.split_at(12 + length + 1);
            self.on_record(now, record)?;
            rest = after;
        }
        Ok(())
    }

    fn on_record(&mut self, now: Now, framed: &[u8]) -> Verdict {
        let payload = &framed[12..framed.len() - 1];
        let mut reader = Reader::new(payload);
        let header = TxnHeader::read(&mut reader).map_err(|e| format!("P1: unreadable: {e}"))?;
        let txn =
            Txn::read(header.kind, &mut reader).map_err(|e| format!("P1: unreadable: {e}"))?;
        let (zxid, session) = (header.zxid, header.client_id);
        let describe = |text: String| format!("zxid {zxid:#x} of {session:#x}: {text}");
        require!(zxid == self.model.last + 1, "P2: zxid {zxid:#x} follows {:#x}", self.model.last);
        if zxid & 0xffff_ffff == 0 {
            self.marks.insert("epoch rolled");
        }
        require!(header.time == now.wall_ms, "P2: the txn's time is not the clock's");
        let request = self.requests.remove(&(session, header.cxid));
        if request.is_some() {
            let last = self.last_cxid.insert(session, header.cxid);
            require!(
                last < Some(header.cxid),
                "P3: {}",
                describe(format!("request {} comes after {last:?}", header.cxid))
            );
            require!(
                self.model.sessions().contains_key(&session),
                "P9a: {}",
                describe("a write of a session that is over".to_owned())
            );
        }
        match (&txn, request) {
            (Txn::CreateSession { timeout_ms }, None) => {
                let (before, _) = self.model.session_span(session);
                require!(
                    before.is_none(),
                    "P9f: {}",
                    describe("the id was given before".to_owned())
                );
                self.model.open_session(zxid, session, *timeout_ms);
                self.on_touch(now.monotonic_ms, session);
            }
            (Txn::CloseSession { paths }, request) => {
                if request.is_none() {
                    self.check_expiry(now, session).map_err(describe)?;
                } else {
                    require!(
                        matches!(request, Some((Op::Close, _))),
                        "P9: {}",
                        describe("closed by a request that is none".to_owned())
                    );
                }
                let listed: Option<Vec<&str>> =
                    paths.as_ref().map(|paths| paths.iter().map(|path| &**path).collect());
                let closed = self.model.close_session(zxid, session, listed.as_deref());
                if !self.model.changes_of(zxid).is_empty() {
                    self.marks.insert("ephemerals deleted with their session");
                }
                closed.map_err(|text| format!("P9b: {}", describe(text)))?;
                if header.cxid != 0 {
                    let answer = Answer { zxid, err: 0, body: Vec::new() };
                    self.answers.insert((session, header.cxid), answer);
                }
            }
            (Txn::DeleteContainer { path }, None) => {
                let mark = self.model.reap(&header, path);
                self.marks.insert(mark.map_err(|text| format!("P6: {}", describe(text)))?);
            }
            (_, None) => {
                return Err(format!("P2: {}", describe(format!("nobody asked for {txn:?}"))));
            }
            (_, Some((op, who))) => {
                let answer = self.model.write(&header, who, &op, &txn);
                let answer = answer.map_err(|text| format!("P2: {}", describe(text)))?;
                self.mark_write(&op, &txn, &answer);
                self.answers.insert((session, header.cxid), answer);
            }
        }
        self.check_digest(&header, &mut reader)
            .map_err(|text| format!("P6: {}", describe(text)))?;
        self.records.insert(zxid, framed.to_vec());
        Ok(())
    }

    fn mark_write(&mut self, op: &Op, txn: &Txn<'_>, answer: &Answer) {
        let mark = match (op, txn) {
            (Op::Multi(ops), Txn::Multi(txns)) if !ops.is_empty() => {
                match txns.iter().any(|txn| matches!(txn, Txn::Error { .. })) {
                    true => "multi failed",
                    false => "multi succeeded",
                }
            }
            (Op::Create(create), _) if answer.err == 0 && matches!(create.flags, 2 | 3) => {
                "sequential created"
            }
            _ if answer.err == err::NO_AUTH => "write refused by an ACL",
            _ => return,
        };
        self.marks.insert(mark);
    }

    fn check_digest(&self, header: &TxnHeader, rest: &mut Reader<'_>) -> Verdict {
        if !self.digests || header.kind == code::ERROR {
            return Ok(());
        }
        let digest = TxnDigest::read(rest).map_err(|e| format!("no digest: {e}"))?;
        let (found, expected) = (digest.tree_digest as u64, self.model.digest());
        require!(
            digest.version == DIGEST_VERSION && found == expected,
            "the tree's digest is {found:#x}, which had to be {expected:#x}"
        );
        Ok(())
    }

    /// Whether the server may end this session.
    fn check_expiry(&mut self, now: Now, session: i64) -> Verdict {
        // Sessions are in the log and in every snapshot, so no znode here loses its owner. A znode
        // with a TTL would seem to, were it served without the setting for TTLs.
        let Some(timeout_ms) = self.timeout_ms(session) else {
            return Err(format!("session {session:#x} is closed, and there is none"));
        };
        let new = Heard { last_ms: self.server_began_ms, late_ms: None };
        let Heard { last_ms, late_ms } = self.heard.get(&session).copied().unwrap_or(new);
        let silent_ms = now.monotonic_ms - last_ms;
        require!(
            i64::from(timeout_ms) <= silent_ms || self.was_late(now, late_ms),
            "P9d: expired after {silent_ms} ms of silence, its timeout is {timeout_ms} ms"
        );
        let touched_ms = self.touched_ms.get(&session).copied().unwrap_or(last_ms).max(last_ms);
        let silent_ms = now.monotonic_ms - touched_ms;
        let could_ms = now.monotonic_ms - self.stalled_until_ms.max(i64::MIN / 2);
        require!(
            silent_ms <= i64::from(timeout_ms) + 2 * self.tick_ms || could_ms <= 2 * self.tick_ms,
            "P9e: expired after {silent_ms} ms of silence only, its timeout is {timeout_ms} ms"
        );
        self.marks.insert("session expired");
        Ok(())
    }

    /// Whether what was heard at `late_ms` may have come too late to count.
    fn was_late(&self, now: Now, late_ms: Option<i64>) -> bool {
        let patience_ms = 3 * self.tick_ms + REPORT_MS_MAX;
        late_ms.is_some_and(|late_ms| now.monotonic_ms - late_ms <= patience_ms)
    }

    /// Whether a shard may close a session's connection for being silent.
    pub(crate) fn check_silence(&self, now: Now, session: i64, slack_ms: i64) -> Verdict {
        let Some(timeout_ms) = self.timeout_ms(session) else { return Ok(()) };
        let Some(heard) = self.heard.get(&session) else { return Ok(()) };
        let silent_ms = now.monotonic_ms - heard.last_ms;
        require!(
            i64::from(timeout_ms) + slack_ms <= silent_ms || self.was_late(now, heard.late_ms),
            "P9h: closed after {silent_ms} ms of silence, the session's timeout is {timeout_ms} ms"
        );
        Ok(())
    }

    /// The pipeline hands out what is committed up to here. `is_durable` says whether a record
    /// would survive a power loss at this moment.
    pub(crate) fn on_released(
        &mut self,
        zxid: i64,
        mut is_durable: impl FnMut(i64) -> Result<(), String>,
    ) -> Verdict {
        require!(zxid <= self.model.last, "P1: {zxid:#x} is handed out, and was never logged");
        for record in self.released + 1..=zxid {
            is_durable(record)
                .map_err(|why| format!("P1: {record:#x} is handed out and not durable: {why}"))?;
        }
        self.released = self.released.max(zxid);
        Ok(())
    }

    /// A server has come back with a history up to `last`.
    pub(crate) fn on_recovered(
        &mut self,
        last: i64,
        sessions: &BTreeMap<SessionId, i32>,
        reader: &TreeReader,
    ) -> Verdict {
        let seen = self.seen;
        require!(seen <= last, "P1: recovered up to {last:#x}, clients have seen {seen:#x}");
        require!(last <= self.model.last, "P1: recovered {last:#x}, which was never logged");
        if last < self.model.last {
            self.marks.insert("unseen transactions lost in a crash");
        }
        if seen < last {
            self.marks.insert("unseen transactions found after a crash");
        }
        if 1 << 32 <= last {
            self.marks.insert("recovered after the epoch rolled");
        }
        self.model.truncate_after(last);
        self.records.split_off(&(last + 1));
        self.requests.clear();
        self.answers.retain(|_, answer| answer.zxid <= last);
        self.released = last;
        self.compare_sessions(sessions)?;
        self.compare_tree(reader)
    }

    fn compare_sessions(&self, sessions: &BTreeMap<SessionId, i32>) -> Verdict {
        let found: BTreeMap<i64, i32> = sessions.iter().map(|(id, &ms)| (id.0, ms)).collect();
        let expected = self.model.sessions();
        require!(found == *expected, "P9: sessions {found:x?} had to be {expected:x?}");
        Ok(())
    }

    /// Holds a whole tree against the model's newest state.
    pub(crate) fn compare_tree(&self, reader: &TreeReader) -> Verdict {
        let mut count = 0;
        for znode in reader.walk() {
            let path = if znode.path().is_empty() { "/" } else { znode.path() };
            let expected = self.model.node(path);
            let open = || vec![Acl::new(perms::ALL, "world", "anyone")];
            let found = Znode {
                stat: znode.stat_persisted(),
                data: znode.data().map(<[u8]>::to_vec),
                acl: znode.acl().map_or_else(open, |acl| acl.to_vec()),
                children: znode.children().map(str::to_owned).collect(),
            };
            require!(
                expected == Some(&found),
                "P6: at {:#x} {path} is {found:x?}, which had to be {expected:x?}",
                self.model.last
            );
            count += 1;
        }
        let expected = self.model.nodes().len();
        require!(count == expected, "P6: there are {count} znodes, which had to be {expected}");
        Ok(())
    }

    /// Holds what the logs say, read by rules of our own, against what was asked for.
    pub(crate) fn compare_logs(&self, disk: &Disk, directory: &str, last: i64) -> Verdict {
        let mut logs: Vec<(i64, String)> = disk
            .list(directory)
            .into_iter()
            .filter_map(|(name, _)| {
                let start = i64::from_str_radix(name.strip_prefix("log.")?, 16).ok()?;
                Some((start, format!("{directory}/{name}")))
            })
            .collect();
        logs.sort();
        let mut previous = None;
        for (_, name) in &logs {
            let file = disk.find(name).unwrap();
            let bytes = disk.read(file);
            for (zxid, range) in read_as_zookeeper(bytes).map_err(|e| format!("P1: {name}: {e}"))? {
                if previous.is_some_and(|previous| zxid <= previous) {
                    return Err(format!("P1: {name}: {zxid:#x} follows {previous:x?}"));
                }
                require!(
                    self.records.get(&zxid).is_some_and(|of| *of == bytes[range.clone()]),
                    "P1: {name}: {zxid:#x} is not what was logged"
                );
                require!(
                    disk.is_durable(file, range) && disk.is_name_durable(name, file),
                    "P1: {name}: {zxid:#x} is served after a restart and not durable"
                );
                previous = Some(zxid);
            }
        }
        require!(
            previous.is_none_or(|previous| previous <= last),
            "P1: the logs go on to {previous:x?}, recovered was {last:#x}"
        );
        Ok(())
    }

    // ---- the clients' side ------------------------------------------------------------------

    pub(crate) fn on_request(&mut self, session: i64, who: Who, xid: i32, op: &Op) {
        if op.is_write() {
            self.requests.insert((session, xid), (op.clone(), who));
        }
    }

    /// What a client sees must have been committed.
    pub(crate) fn on_seen(&mut self, zxid: i64) -> Verdict {
        require!(zxid <= self.released, "P6: {zxid:#x} is seen, committed is {:#x}", self.released);
        self.seen = self.seen.max(zxid);
        Ok(())
    }

    /// A new session: it is in the log, and others have other ids.
    pub(crate) fn on_connected(
        &mut self,
        session: i64,
        shown: &[u8; 16],
        timeout_ms: i32,
        is_new: bool,
    ) -> Verdict {
        require!(*shown == password(SessionId(session)), "P9: {session:#x} has a strange password");
        let (began, _) = self.model.session_span(session);
        let began = began.ok_or_else(|| format!("P9: session {session:#x} is in no log"))?;
        self.on_seen(began)?;
        if is_new {
            self.acked = self.acked.max(began);
            let logged = self.model.sessions().get(&session).copied();
            require!(
                logged.is_none_or(|logged| logged == timeout_ms),
                "P9: session {session:#x} has timeout {timeout_ms}, logged was {logged:?}"
            );
        }
        Ok(())
    }

    /// A session is refused to its own client: it has to be over.
    pub(crate) fn on_refused(&mut self, session: i64) -> Verdict {
        let (_, ended) = self.model.session_span(session);
        let ended = ended.ok_or_else(|| format!("P9: {session:#x} is refused and not over"))?;
        self.on_seen(ended)
    }

    /// A reply to what is not answered by a connection's watches alone.
    pub(crate) fn on_reply(
        &mut self,
        session: i64,
        who: Who,
        pending: &Pending,
        received: Received<'_>,
    ) -> Verdict {
        self.replies += 1;
        let Received { zxid, err, body } = received;
        let Pending { xid, op, acked_then, .. } = pending;
        let describe = || format!("reply {xid} to {session:#x} at {zxid:#x}, {op:?}");
        self.on_seen(zxid).map_err(|text| format!("{text}: {}", describe()))?;
        if op.is_write() {
            let Some(answer) = self.answers.remove(&(session, *xid)) else {
                let (_, ended) = self.model.session_span(session);
                require!(
                    err == err::SESSION_EXPIRED && ended.is_some_and(|ended| ended <= zxid),
                    "P2: {}: {err} without a transaction",
                    describe()
                );
                return Ok(());
            };
            let found = Answer { zxid, err, body: body.to_vec() };
            require!(answer == found, "P2: {}: {found:x?} had to be {answer:x?}", describe());
            require!(
                *acked_then < zxid,
                "P2: {}: others had seen {acked_then:#x} before it was sent",
                describe()
            );
            self.acked = self.acked.max(zxid);
            return Ok(());
        }
        self.check_read(session, who, pending, received)
            .map_err(|text| format!("P6: {}: {text}", describe()))
    }

    /// A read shows the state at exactly its reply's zxid.
    fn check_read(
        &mut self,
        session: i64,
        who: Who,
        pending: &Pending,
        received: Received<'_>,
    ) -> Verdict {
        let Received { zxid, err, body } = received;
        let mut reader = Reader::new(body);
        let readable = |model: &Model, path: &str| match model.at(path, zxid) {
            None => Err(err::NO_NODE),
            Some(node) => permits(&node.acl, perms::READ, who).map(|()| node.clone()),
        };
        let expect = |expected: Result<Vec<u8>, i32>| {
            let (code, bytes) = match expected {
                Ok(bytes) => (0, bytes),
                Err(code) => (code, Vec::new()),
            };
            require!(
                err == code && body == bytes,
                "answered {err} {body:x?}, which had to be {code} {bytes:x?}"
            );
            Ok(())
        };
        match &pending.op {
            Op::Exists { path, .. } => {
                expect(readable(&self.model, path).map(|node| self.stat_bytes(&node)))
            }
            Op::GetData { path, .. } => expect(readable(&self.model, path).map(|node| {
                let mut bytes = Vec::new();
                bytes.put_buffer(node.data.as_deref());
                bytes.extend(self.stat_bytes(&node));
                bytes
            })),
            Op::GetChildren { path, .. } | Op::GetChildren2 { path, .. } => {
                let node = match readable(&self.model, path) {
                    Ok(node) => node,
                    Err(code) => {
                        if code == err::NO_AUTH {
                            self.marks.insert("read refused by an ACL");
                        }
                        return expect(Err(code));
                    }
                };
                require!(err == 0, "answered {err}");
                let names = read_texts(&mut reader)?;
                let children: Vec<&str> = node.children.iter().map(String::as_str).collect();
                require!(names == children, "children {names:?} had to be {children:?}");
                let stat = match &pending.op {
                    Op::GetChildren2 { .. } => self.stat_bytes(&node),
                    _ => Vec::new(),
                };
                require!(reader.rest() == stat, "stat {:x?} had to be {stat:x?}", reader.rest());
                Ok(())
            }
            Op::GetAcl { path } => {
                let Some(node) = self.model.at(path, zxid) else {
                    return expect(Err(err::NO_NODE));
                };
                if permits(&node.acl, perms::READ | perms::ADMIN, who).is_err() {
                    return expect(Err(err::NO_AUTH));
                }
                require!(err == 0, "answered {err}");
                let found = GetAclResponse::read(&mut reader).map_err(|e| e.to_string())?;
                let is_admin = permits(&node.acl, perms::ADMIN, who).is_ok();
                let shown = |entry: &Acl| {
                    let id = match entry.id.scheme.as_str() {
                        "digest" if !is_admin => "alice:x".to_owned(),
                        _ => entry.id.id.clone(),
                    };
                    (entry.perms, entry.id.scheme.clone(), id)
                };
                let expected: Vec<_> = node.acl.iter().map(shown).collect();
                let found_list: Vec<_> = (found.acl.iter().flatten())
                    .map(|entry| {
                        let text = |text: &Option<std::borrow::Cow<'_, str>>| {
                            text.as_deref().unwrap_or("null").to_owned()
                        };
                        (entry.perms, text(&entry.id.scheme), text(&entry.id.id))
                    })
                    .collect();
                require!(found_list == expected, "ACL {found_list:?} had to be {expected:?}");
                require!(found.stat == self.model.stat(node), "stat {:x?}", found.stat);
                Ok(())
            }
            Op::AllChildren { path } => {
                let prefix = if path == "/" { "/".to_owned() } else { format!("{path}/") };
                let below = |of: &str| of != path && of.starts_with(&prefix);
                expect(readable(&self.model, path).map(|_| {
                    let count = self.model.all_at(zxid).filter(|(of, _)| below(of)).count();
                    (count as i32).to_be_bytes().to_vec()
                }))
            }
            Op::MultiRead(reads) => {
                require!(err == 0, "answered {err}");
                for (path, children) in reads {
                    let node = readable(&self.model, path);
                    let header = MultiHeader::read(&mut reader).map_err(|e| e.to_string())?;
                    let code = node.as_ref().err().copied().unwrap_or(0);
                    require!(header.err == code && !header.done, "{path}: {header:?}");
                    let Ok(node) = node else {
                        let repeated = reader.i32().map_err(|e| e.to_string())?;
                        require!(repeated == code, "{path}: {code} and {repeated}");
                        continue;
                    };
                    if *children {
                        let names = read_texts(&mut reader)?;
                        require!(
                            names.iter().eq(node.children.iter()),
                            "{path}: children {names:?} had to be {:?}",
                            node.children
                        );
                    } else {
                        let data = reader.buffer().map_err(|e| e.to_string())?;
                        require!(data == node.data.as_deref(), "{path}: data {data:x?}");
                        let stat = Stat::read(&mut reader).map_err(|e| e.to_string())?;
                        require!(stat == self.model.stat(&node), "{path}: stat {stat:x?}");
                    }
                }
                let end = MultiHeader::read(&mut reader).map_err(|e| e.to_string())?;
                require!(end.done && reader.is_empty(), "no end: {end:?}");
                Ok(())
            }
            Op::Ephemerals { prefix } => {
                require!(err == 0, "answered {err}");
                let names = read_texts(&mut reader)?;
                let owned = |node: &Znode| self.model.session_of(node) == Some(session);
                let prefix = if prefix == "/" { "" } else { prefix };
                let expected: Vec<&str> = (self.model.all_at(zxid))
                    .filter(|(path, node)| owned(node) && path.starts_with(prefix))
                    .map(|(path, _)| path)
                    .collect();
                require!(names == expected, "ephemerals {names:?} had to be {expected:?}");
                Ok(())
            }
            Op::Sync { path } => {
                let acked_then = pending.acked_then;
                require!(
                    acked_then <= zxid,
                    "P7: others had seen {acked_then:#x} before it was sent"
                );
                let mut echo = Vec::new();
                echo.put_text(path);
                expect(Ok(echo))
            }
            Op::AddWatch { .. } => expect(Ok(0i32.to_be_bytes().to_vec())),
            Op::Ping | Op::SetWatches(_) => expect(Ok(Vec::new())),
            // Which of the two is the watcher's to say.
            Op::CheckWatches { .. } | Op::RemoveWatches { .. } => {
                require!(matches!(err, 0 | err::NO_WATCHER) && body.is_empty(), "answered {err}");
                Ok(())
            }
            Op::Create(_)
            | Op::Delete { .. }
            | Op::SetData { .. }
            | Op::SetAcl { .. }
            | Op::Check { .. }
            | Op::Multi(_)
            | Op::Close
            | Op::Auth => unreachable!("not a read"),
        }
    }

    fn stat_bytes(&self, node: &Znode) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.model.stat(node).write(&mut bytes);
        bytes
    }
}

/// A vector of texts, in the order of the texts.
fn read_texts(reader: &mut Reader<'_>) -> Verdict<Vec<String>> {
    let count = reader.count().map_err(|e| e.to_string())?.unwrap_or(0);
    let mut texts = Vec::new();
    for _ in 0..count {
        let text = reader.text().map_err(|e| e.to_string())?.unwrap_or_default();
        texts.push(text.into_owned());
    }
    texts.sort();
    Ok(texts)
}

/// Where the records of a log are, by the rules of ZooKeeper's reader: a record that is not whole
/// is the end of the log, but one with a wrong checksum keeps ZooKeeper from starting.
pub(crate) fn read_as_zookeeper(log: &[u8]) -> Verdict<Vec<(i64, std::ops::Range<usize>)>> {
    let mut records = Vec::new();
    if log.len() < 16 {
        return Ok(records);
    }
    require!(log.starts_with(b"ZKLG"), "no magic");
    let mut at = 16;
    while let Some(framing) = log.get(at..at + 12) {
        let checksum = u64::from_be_bytes(framing[..8].try_into().unwrap());
        let length = i32::from_be_bytes(framing[8..].try_into().unwrap());
        if length == 0 {
            break;
        }
        require!((0..1 << 20).contains(&length), "length {length} at {at}");
        let end = at + 12 + length as usize + 1;
        let Some(payload) = log.get(at + 12..end - 1) else { break };
        if log.get(end - 1) != Some(&b'B') {
            break;
        }
        let found = u64::from(simd_adler32::adler32(&payload));
        require!(found == checksum, "checksum {checksum:#x} at {at}, computed {found:#x}");
        let zxid = i64::from_be_bytes(payload[12..20].try_into().unwrap());
        records.push((zxid, at..end));
        at = end;
    }
    Ok(records)
}

// ---------------------------------------------------------------------------------------------

/// What a connection watches at one path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Modes {
    data: bool,
    child: bool,
    persistent: bool,
    recursive: bool,
}

/// An event that must come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) zxid: i64,
    pub(crate) kind: i32,
    pub(crate) path: String,
}

const CREATED: i32 = 1;
const DELETED: i32 = 2;
const DATA_CHANGED: i32 = 3;
const CHILDREN_CHANGED: i32 = 4;

/// One connection's watches as they have to be, and which events they must bring.
///
/// Runs through history behind the connection: when a reply of some zxid comes, all events up to
/// there must have come before it; an event that comes must be the next there is.
#[derive(Debug)]
pub(crate) struct Watcher {
    who: Who,
    modes: BTreeMap<String, Modes>,
    /// How far history was gone through.
    cursor: i64,
    expected: VecDeque<Event>,
}

impl Watcher {
    pub(crate) fn new(who: Who) -> Watcher {
        Watcher { who, modes: BTreeMap::new(), cursor: 0, expected: VecDeque::new() }
    }

    fn advance(&mut self, zxid: i64, model: &Model, marks: &mut Marks) {
        while self.cursor < zxid {
            self.cursor += 1;
            if self.modes.is_empty() {
                continue;
            }
            for change in model.changes_of(self.cursor) {
                self.on_change(self.cursor, change, marks);
            }
        }
    }

    fn on_change(&mut self, zxid: i64, change: &Change, marks: &mut Marks) {
        let Change { kind, path, readers, parent_readers } = change;
        match kind {
            ChangeKind::Created => {
                if self.trigger_data(path, marks) {
                    self.expect(zxid, CREATED, path, readers, marks);
                }
            }
            ChangeKind::Deleted => {
                let told = self.trigger_data(path, marks);
                let by_child = self.trigger_child(path);
                if told || by_child {
                    self.expect(zxid, DELETED, path, readers, marks);
                }
            }
            ChangeKind::DataChanged => {
                if self.trigger_data(path, marks) {
                    self.expect(zxid, DATA_CHANGED, path, readers, marks);
                }
                return;
            }
        }
        let parent = match path.rfind('/') {
            Some(0) | None => "/",
            Some(slash) => &path[..slash],
        };
        if self.trigger_child(parent) {
            self.expect(zxid, CHILDREN_CHANGED, parent, parent_readers, marks);
        }
    }

    fn expect(&mut self, zxid: i64, kind: i32, path: &str, readers: &[Acl], marks: &mut Marks) {
        if permits(readers, perms::READ, self.who).is_ok() {
            self.expected.push_back(Event { zxid, kind, path: path.to_owned() });
        } else {
            marks.insert("event withheld by an ACL");
        }
    }

    fn trigger_data(&mut self, path: &str, marks: &mut Marks) -> bool {
        let at = self.modes.get(path).copied().unwrap_or_default();
        if at.data {
            self.update(path, |modes| modes.data = false);
        }
        let is_above =
            |of: &str| of == "/" || path.strip_prefix(of).is_some_and(|rest| rest.starts_with('/'));
        let from_above = self.modes.iter().any(|(of, modes)| modes.recursive && is_above(of));
        if from_above {
            marks.insert("recursive watch fired");
        }
        at.data || at.persistent || at.recursive || from_above
    }

    fn trigger_child(&mut self, path: &str) -> bool {
        let at = self.modes.get(path).copied().unwrap_or_default();
        if at.child {
            self.update(path, |modes| modes.child = false);
        }
        at.child || at.persistent
    }

    fn update(&mut self, path: &str, change: impl FnOnce(&mut Modes)) {
        let modes = self.modes.entry(path.to_owned()).or_default();
        change(modes);
        if *modes == Modes::default() {
            self.modes.remove(path);
        }
    }

    /// A reply has come: nothing that was to come before it may be missing.
    pub(crate) fn on_zxid(&mut self, zxid: i64, model: &Model, marks: &mut Marks) -> Verdict {
        if self.modes.is_empty() && self.expected.is_empty() {
            self.cursor = zxid;
        }
        require!(
            self.cursor <= zxid,
            "P8a: a reply of {zxid:#x} comes after an event of {:#x}",
            self.cursor
        );
        self.advance(zxid, model, marks);
        match self.expected.front() {
            Some(event) => Err(format!("P8: {event:x?} is missing before a reply of {zxid:#x}")),
            None => Ok(()),
        }
    }

    /// An event has come: it has to be the next.
    pub(crate) fn on_event(
        &mut self,
        event: &Event,
        committed: i64,
        model: &Model,
        marks: &mut Marks,
    ) -> Verdict {
        while self.expected.is_empty() && self.cursor < committed {
            self.advance(self.cursor + 1, model, marks);
        }
        let expected = self.expected.pop_front();
        require!(
            expected.as_ref() == Some(event),
            "P8: {event:x?} comes, which had to be {expected:x?}"
        );
        Ok(())
    }

    /// What a successful request does to the watches, at the zxid gone through last.
    pub(crate) fn on_done(&mut self, op: &Op, err: i32) -> Verdict {
        match op {
            Op::Exists { path, watch: true } if err == 0 || err == err::NO_NODE => {
                self.update(path, |modes| modes.data = true);
            }
            Op::GetData { path, watch: true } if err == 0 => {
                self.update(path, |modes| modes.data = true);
            }
            Op::GetChildren { path, watch: true } | Op::GetChildren2 { path, watch: true }
                if err == 0 =>
            {
                self.update(path, |modes| modes.child = true);
            }
            Op::AddWatch { path, recursive: true } => {
                self.update(path, |modes| modes.recursive = true);
            }
            Op::AddWatch { path, recursive: false } => {
                self.update(path, |modes| modes.persistent = true);
            }
            Op::CheckWatches { path, kind } | Op::RemoveWatches { path, kind } => {
                let at = self.modes.get(path).copied().unwrap_or_default();
                let is_there = match kind {
                    1 => at.child,
                    2 => at.data,
                    3 => at != Modes::default(),
                    4 => at.persistent,
                    _ => at.recursive,
                };
                require!(is_there == (err == 0), "P8: {op:?} is answered {err}, there is {at:?}");
                if is_there && matches!(op, Op::RemoveWatches { .. }) {
                    self.update(path, |modes| match kind {
                        1 => modes.child = false,
                        2 => modes.data = false,
                        3 => *modes = Modes::default(),
                        4 => modes.persistent = false,
                        _ => modes.recursive = false,
                    });
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Watches are brought back at `zxid`: these events had to come at once, and the rest is
    /// watched.
    pub(crate) fn on_set_watches(
        &mut self,
        lists: &WatchLists,
        zxid: i64,
        found: &[(i32, String)],
        model: &Model,
    ) -> Verdict {
        let mut expected = Vec::new();
        let mut tell = |kind, path: &String| expected.push((kind, path.clone()));
        for path in &lists.data {
            match model.at(path, zxid) {
                None => tell(DELETED, path),
                Some(node) if lists.relative < node.stat.mzxid => tell(DATA_CHANGED, path),
                Some(_) => self.update(path, |modes| modes.data = true),
            }
        }
        for path in &lists.exist {
            match model.at(path, zxid) {
                Some(_) => tell(CREATED, path),
                None => self.update(path, |modes| modes.data = true),
            }
        }
        for path in &lists.child {
            match model.at(path, zxid) {
                None => tell(DELETED, path),
                Some(node) if lists.relative < node.stat.pzxid => tell(CHILDREN_CHANGED, path),
                Some(_) => self.update(path, |modes| modes.child = true),
            }
        }
        for path in &lists.persistent {
            self.update(path, |modes| modes.persistent = true);
        }
        for path in &lists.recursive {
            self.update(path, |modes| modes.recursive = true);
        }
        // In the order of the lists, but for paths that change while the lists are gone through over
        // several turns: what was missed of those is told before the change.
        let (mut in_order, mut found_in_order) = (expected.clone(), found.to_vec());
        in_order.sort();
        found_in_order.sort();
        require!(
            found_in_order == in_order,
            "P8g: {lists:?} at {zxid:#x} brings {found:?}, which had to be {expected:?}"
        );
        Ok(())
    }

    /// At rest, everything has come.
    pub(crate) fn at_rest(&mut self, committed: i64, model: &Model, marks: &mut Marks) -> Verdict {
        self.advance(committed, model, marks);
        let missing = &self.expected;
        require!(missing.is_empty(), "P8b: {missing:x?} never came");
        Ok(())
    }
}
