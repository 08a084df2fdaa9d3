//! The pipeline: what the pinned core runs. Everything that orders writes.
//!
//! | file | what is in it |
//! |---|---|
//! | `mod.rs` | `Pipeline`: `step`, what the pinned core runs |
//! | `prep.rs` | a request into a transaction, or an error |
//! | `prep_multi.rs` | all or nothing |
//! | `commit.rs` | what waits for its commit: answers and changes, in order |
//! | `sessions.rs` | sessions open, come back, speak and end |
//! | `member.rs` | a server of an ensemble: what Zab asks for is done |
//! | `deliver.rs` | what a leader has ordered is applied |
//! | `forward.rs` | what clients of a learner want, on its way to the leader |
//! | `learners.rs` | the same, where it comes in |
//! | `listing.rs` | getEphemerals, in pieces |
//! | `tracker.rs` | who is alive: timeouts and expiry |
//! | `password.rs` | session passwords, as `java.util.Random` makes them |
//! | `reaper.rs` | empty containers and dead TTL znodes |
//! | `snapshots.rs` | when the log rolls and a snapshot is taken; the tree as its records |
//! | `audit.rs` | who changed what, for the audit log |
//! | `counts.rs` | what metrics tell of |
//! | `quorum_stats.rs` | the same of a server of an ensemble, and what it shows of its role |
//! | `restore.rs` | a data directory's records into a running state |
//! | `roll_back.rs` | what a leader has cut is taken back |
//!
//! A write is one pass: checked against the newest state, applied to the tree (seen by nobody),
//! encoded into the log, its answer and its changes put behind those before. `Input::Synced`
//! commits: what is covered is published and handed to the shards. There is no second copy of
//! "what the tree will be": the tree itself is that, and views keep it from readers.

mod audit;
mod commit;
mod counts;
mod deliver;
#[cfg(test)]
mod ensemble_tests;
mod forward;
mod learners;
mod listing;
mod member;
mod password;
mod prep;
mod prep_multi;
mod quorum_stats;
mod reaper;
mod restore;
mod roll_back;
mod sessions;
mod snapshots;
#[cfg(test)]
mod tests;
mod tracker;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use audit::Audit;
pub use audit::{AuditResult, Audited};
use commit::Gathered;
pub use counts::Counts;
use listing::Listing;
use member::{Agreement, Member};
pub use member::{LinkInput, LocalSessions, MemberStart, ToLink};
pub use password::{is_password, password};
use prep::{Create, Prep, Scratch, decode};
pub use quorum_stats::{
    LeaderReport, LearnerReport, ProposalSizes, QuorumCounts, QuorumReport, QuorumRole,
};
use reaper::Reaper;
pub use reaper::Settings as ReaperSettings;
use restore::Unpublished;
pub use restore::{
    ALL_PUBLISHED, Impossible, Mismatch, OnMismatch, Restore, RestoreError, RestoreSettings,
    Restored,
};
use snapshots::Roll;
pub use snapshots::{RollSettings, SnapshotJob};
pub use tracker::SessionInfo;
use tracker::{Client, Owner as SessionOwner, Scope, Tracker};

use crate::auth::Providers;
use crate::exchange::{Applied, Outcome, Request, Requests, Serves, ShardId, Touched, Want};
use crate::jute::Write as _;
use crate::jute::record::Record as _;
use crate::jute::{Reader, first_field};
use crate::record::code::Code;
use crate::record::data::{Id, Stat};
use crate::record::op::code;
use crate::record::proto::{Create2Response, PathOnly, ReconfigRequest};
use crate::record::txn::{CreateKind, DIGEST_VERSION, Txn, TxnDigest, TxnHeader};
pub use crate::storage::journal::Append;
use crate::storage::txnlog;
use crate::tree::ephemerals::Owner;
use crate::tree::{self, PREFETCH_MAX, TreeReader, TreeWriter};
use crate::types::{Now, ServerId, SessionId, Zxid};
use crate::zab::standalone::Standalone;
use crate::zab::{Durable, LinkId};

/// What a pipeline is told at birth.
#[derive(Clone, Debug)]
pub struct Settings {
    /// In the top byte of session ids; a standalone server is 1 there.
    pub server: ServerId,
    pub shards: usize,
    pub tick_ms: i64,
    pub providers: Arc<Providers>,
    /// `zookeeper.skipACL=yes`.
    pub skip_acl: bool,
    pub enforce_quota: bool,
    pub reconfig_enabled: bool,
    /// `zookeeper.closeSessionTxn.enabled`: a closeSession lists what it deletes.
    pub close_session_lists_paths: bool,
    /// A longer record could not be read again, by ZooKeeper or by us: `jute.maxbuffer` and what
    /// may come on top.
    pub record_bytes_max: usize,
    /// The longest answer; what would be longer is an error.
    pub answer_bytes_max: usize,
    /// How many ephemerals are listed before others have their turn.
    pub listed_per_step: usize,
    pub tree: tree::Settings,
    pub roll: RollSettings,
    pub reaper: ReaperSettings,
    /// `zookeeper.audit.enable`: changes are audited, those of the server's own under this name.
    pub audit: Option<Arc<str>>,
    /// For what is random (when logs roll): the same seed, the same run.
    pub seed: u64,
    #[cfg(feature = "mutants")]
    pub mutant: Option<Mutant>,
}

/// Seeded bugs, for proving the simulation's checkers. Never in a release.
#[cfg(feature = "mutants")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Answers go out when the log is asked to append, not when it is durable.
    AnswerBeforeSync,
    /// A multi that fails keeps what its first operations did.
    MultiAppliedPartly,
    /// Closing a session leaves its ephemerals.
    EphemeralsSurviveClose,
    /// A parent's count of creates goes back by one with each delete.
    SequenceGoesBack,
    /// A session comes back whatever its password.
    PasswordNotChecked,
    /// Sessions expire two ticks early.
    ExpiresEarly,
    /// Sessions expire long after their time.
    ExpiresLate,
    /// Sessions expire before all shards have said whom they heard until then.
    ReportNotAwaited,
    /// A session that has come back elsewhere is still served where it was before.
    MovedSessionServed,
    /// A client that has seen more than this server is let in.
    FutureClientAccepted,
    /// The wrong code for a delete that finds children.
    WrongErrorCode,
    /// A setData is answered with the version before.
    StaleStat,
    /// A batch that runs over the end of an epoch is one append.
    RollNotSplit,
    /// A learner shows what it has logged, committed or not.
    ShownWhenLogged,
    /// A learner answers a request when its transaction comes, whatever the session asked before.
    AnsweredOutOfOrder,
    /// A leader answers a learner's sync at once.
    SyncNotAwaited,
    /// A leader takes requests for a session from whichever learner sends them.
    OwnerNotChecked,
    /// What a leader has had cut is gone from the log and not from the tree.
    CutStaysInTree,
    /// What is taken back stays in the tree's digest.
    RollBackKeepsDigest,
    /// An ephemeral whose delete is taken back is nobody's.
    RollBackForgetsOwner,
    /// A session whose beginning is taken back stays, and one whose end is taken back is over.
    RollBackForgetsSessions,
    /// A learner does not compare its tree with the leader's.
    DigestNotCompared,
}

/// All that can happen to the pipeline. What is not listed cannot sway it.
pub enum Input<'a> {
    Requests(&'a Requests),
    Touched(&'a Touched),
    /// The local log is durable up to and including this zxid.
    Synced(Zxid),
    /// A snapshot that `Output::snapshot` asked for was written, or failed.
    SnapshotEnded,
    /// An operator asks for a snapshot.
    SnapshotAsked,
    /// At least every half tickTime.
    Tick,
    /// For as long as `Pipeline::has_work`: goes on with what takes long.
    GoOn,
    /// What `Pipeline::deadline` said has come.
    Time,
    /// The server is about to end, and its shards ask for nothing any more: see `may_end`.
    Stop,
    /// Of the connections between servers.
    Link(LinkInput<'a>),
    /// An epoch or a truncation that `Output::stores` asked for is durable.
    Stored(Durable),
    /// A snapshot that was asked for is durable, or a truncation that asked for a reload. This is what
    /// the disk has now.
    Replaced(Box<Restored>, Durable),
    /// The log has no such transaction: nothing was cut.
    TruncateRefused(Zxid),
    /// The snapshot that was to replace the state did not come whole: the state is what it was.
    SnapshotLost,
}

/// Who asks for a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    Client(Client),
    /// A learner, for a client of its own: the transaction is the answer.
    Learner(LinkId),
}

/// What a step asks of the shell. The shell may do these in any order, as long as the log and
/// each shard get their own in order.
#[derive(Default)]
pub struct Output {
    /// To be appended, then synced; `Input::Synced` says when. One sync may cover many.
    pub appends: Vec<Append>,
    /// To be handed to every shard, in order.
    pub applied: Vec<Arc<Applied>>,
    /// To be handed to every shard, behind `applied`.
    pub serves: Option<Serves>,
    /// For the connections between servers, in order.
    pub to_links: Vec<ToLink>,
    /// To be made durable, in order, once all appends before are: `Input::Stored`.
    pub stores: Vec<Durable>,
    /// The truncation to this zxid, which is durable, is below what is published: the state is to be
    /// loaded from the disk anew. `Input::Replaced` brings it.
    pub reload: Option<Zxid>,
    /// A snapshot follows on the link to the leader, which is to replace the state: it ends at this
    /// zxid. `Input::Replaced` says that it has.
    pub loads: Option<(LinkId, Zxid)>,
    /// Trees that are not used any more: to be dropped where that may take its time.
    pub dropped: Vec<TreeWriter>,
    /// To be written in the background.
    pub snapshot: Option<SnapshotJob>,
    /// Lines for the audit log.
    pub audited: Vec<Audited>,
    /// Memory for the next records.
    spare: Vec<u8>,
}

impl Output {
    /// Takes the memory of records that have been stored, to be used again.
    pub fn give_back(&mut self, mut records: Vec<u8>) {
        if self.spare.capacity() < records.capacity() && records.capacity() <= SPARE_BYTES_MAX {
            records.clear();
            self.spare = records;
        }
    }

    /// Where the next record goes. Records of another epoch than those before are an append of
    /// their own, in the same file: the log notes where each epoch ended. One standalone server
    /// comes to the next epoch when the counter runs over. `splits` is false for a seeded bug alone.
    fn records(&mut self, zxid: Zxid, new_file: bool, splits: bool) -> &mut Vec<u8> {
        let begins_epoch = |before: &Append| splits && before.last.epoch() != zxid.epoch();
        if new_file || self.appends.last().is_none_or(begins_epoch) {
            let records = std::mem::take(&mut self.spare);
            self.appends.push(Append { new_file, first: zxid, records, ..Append::default() });
        }
        let append = self.appends.last_mut().expect("one was pushed if there was none");
        append.last = zxid;
        &mut append.records
    }
}

/// What the pipeline knows, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    pub zxid: Zxid,
    pub znodes: usize,
    pub ephemerals: usize,
    pub data_bytes: i64,
    pub sessions: usize,
    /// Those that this server alone knows; `None` where it has none of these.
    pub local_sessions: Option<usize>,
    /// Requests that wait for their commit.
    pub outstanding: usize,
}

pub struct Pipeline {
    settings: Settings,
    tree: TreeWriter,
    tracker: Tracker,
    zab: Agreement,
    gathered: Gathered,
    /// Sessions as of the last commit, for snapshots.
    sessions: BTreeMap<SessionId, i32>,
    roll: Roll,
    reaper: Reaper,
    scratch: Scratch,
    counts: Counts,
    audit: Option<Audit>,
    /// Answers that take more than a step.
    listings: VecDeque<Listing>,
    has_paths_beyond_ascii: bool,
}

impl Pipeline {
    /// Goes on alone from what was on the disk.
    #[must_use]
    pub fn new(now: Now, settings: Settings, restored: Restored) -> Pipeline {
        let last = restored.last;
        Pipeline::with(now, settings, restored, Agreement::Alone(Standalone::new(last)))
    }

    /// Goes on as a server of an ensemble, which serves nobody until it has a leader.
    #[must_use]
    pub fn member(
        now: Now,
        settings: Settings,
        restored: Restored,
        start: MemberStart,
    ) -> Pipeline {
        let certainty = deliver::Certainty::of(&restored);
        let member = Member::new(now, start, certainty);
        Pipeline::with(now, settings, restored, Agreement::Member(Box::new(member)))
    }

    fn with(now: Now, settings: Settings, restored: Restored, mut zab: Agreement) -> Pipeline {
        let Restored { mut tree, mut sessions, highest_sessions, last, beyond_ascii, .. } =
            restored;
        match &mut zab {
            Agreement::Alone(_) => tree.publish(last),
            Agreement::Member(member) => member.take_tree(now, &mut tree, last),
        }
        tree.seal(last);
        #[cfg(feature = "mutants")]
        tree.set_mutant(match settings.mutant {
            Some(Mutant::RollBackKeepsDigest) => Some(tree::Mutant::DigestKept),
            Some(Mutant::RollBackForgetsOwner) => Some(tree::Mutant::OwnerForgotten),
            _ => None,
        });
        let known = sessions.iter().map(|(&session, &timeout_ms)| (session, timeout_ms));
        let Settings { tick_ms, server, shards, .. } = settings;
        let tracker = Tracker::new(now, tick_ms, server, shards, last, &highest_sessions, known);
        let published = tree.published();
        let (shown, hidden): (Vec<_>, Vec<_>) =
            restored.unpublished.into_iter().partition(|txn| txn.zxid <= published);
        let digest = shown.last().map_or(restored.published_digest, |txn| txn.digest);
        let mut gathered = Gathered::new(published, digest, settings.answer_bytes_max);
        for Unpublished { zxid, digest, session, .. } in &hidden {
            gathered.found(*zxid, *digest, session.map(|change| (change.session, change.after)));
        }
        for change in hidden.iter().rev().filter_map(|txn| txn.session) {
            match change.before {
                Some(timeout_ms) => sessions.insert(change.session, timeout_ms),
                None => sessions.remove(&change.session),
            };
        }
        Pipeline {
            tracker,
            zab,
            gathered,
            roll: Roll::new(settings.roll, settings.seed),
            reaper: Reaper::new(now, settings.reaper),
            scratch: Scratch::default(),
            counts: Counts::default(),
            audit: settings.audit.clone().map(Audit::new),
            listings: VecDeque::new(),
            has_paths_beyond_ascii: beyond_ascii,
            sessions,
            tree,
            settings,
        }
    }

    /// Another state, and nobody who waits. Returns the tree that was.
    fn replace(&mut self, now: Now, restored: Restored) -> TreeWriter {
        let alone = Agreement::Alone(Standalone::new(restored.last));
        let zab = std::mem::replace(&mut self.zab, alone);
        let replaced = Pipeline::with(now, self.settings.clone(), restored, zab);
        let old = std::mem::replace(self, replaced);
        self.counts = old.counts;
        self.tracker.take_over(old.tracker);
        self.roll = old.roll;
        // The log goes on in a file of its own.
        self.roll.begin_file();
        old.tree
    }

    /// A reader at the committed state, for a shard or a snapshot.
    pub fn reader(&mut self) -> TreeReader {
        self.tree.reader()
    }

    /// What was counted since this was last called.
    pub fn take_counts(&mut self) -> Counts {
        let mut counts = std::mem::take(&mut self.counts);
        if let Some(member) = self.zab.member() {
            counts.quorum = member.stats.take_counts();
        }
        counts
    }

    /// Before anything else happens.
    pub fn start(&mut self, now: Now, out: &mut Output) {
        if !self.zab.is_member() {
            self.close_orphans(now, out);
        }
        self.seal(out);
        self.do_what_is_asked(now, out);
    }

    /// The only door: one input in, its consequences appended to `out`.
    pub fn step(&mut self, now: Now, input: Input<'_>, out: &mut Output) {
        if self.has_left() {
            return;
        }
        match input {
            Input::Requests(requests) => self.on_requests(now, requests, out),
            Input::Touched(touched) => self.on_touched(now, touched, out),
            Input::Synced(zxid) => self.on_synced(now, zxid, out),
            Input::SnapshotEnded => self.roll.on_snapshot_ended(),
            Input::SnapshotAsked => self.roll.ask_for_snapshot(),
            Input::Tick => self.on_tick(now, out),
            Input::GoOn => self.on_go_on(out),
            Input::Time => self.on_time(now, out),
            Input::Stop => self.on_stop(now),
            Input::Link(input) => self.on_link(now, input, out),
            Input::Stored(stored) => self.on_stored(now, stored, out),
            Input::TruncateRefused(zxid) => self.on_truncate_refused(now, zxid, out),
            Input::SnapshotLost => self.on_snapshot_lost(now, out),
            Input::Replaced(restored, stored) => self.on_replaced(now, *restored, stored, out),
        }
        self.do_what_is_asked(now, out);
        self.snapshot_if_due(out);
        self.leave_if_done(now);
        debug_assert_eq!(self.broken_invariant(), None);
    }

    fn on_requests(&mut self, now: Now, requests: &Requests, out: &mut Output) {
        for batch in requests.requests.chunks(PREFETCH_MAX) {
            if 1 < batch.len() {
                self.tree.prefetch(batch.iter().map(|request| first_field(requests.body(request))));
            }
            for request in batch {
                self.on_request(now, requests.shard, request, requests.body(request), out);
            }
        }
        self.seal(out);
    }

    fn on_request(
        &mut self,
        now: Now,
        shard: ShardId,
        request: &Request,
        body: &[u8],
        out: &mut Output,
    ) {
        let client = (shard, request.connection);
        let (orders, forwards) = (self.zab.orders(), self.zab.forwards());
        let reads = self.zab.reads();
        // Whoever asks a server without a leader is being told so by its shard.
        if !(forwards || reads || orders && self.has_zxid(now)) {
            return;
        }
        match request.want {
            Want::Open { timeout_ms, last_zxid_seen } => {
                self.on_open(now, client, timeout_ms, last_zxid_seen, out);
            }
            Want::Resume { timeout_ms, last_zxid_seen, password } => {
                let session = request.session;
                self.on_resume(now, client, session, timeout_ms, last_zxid_seen, &password, out);
            }
            _ => match self.tracker.owner(request.session) {
                None => self.on_request_of_nobody(client, request, body),
                // Late, over a connection that the session has left: a write from there must not
                // take effect among those that come over the new one.
                Some(owner)
                    if owner != SessionOwner::Client(client) && !self.serves_moved_sessions() =>
                {
                    self.gathered.reply(client, self.place(), Outcome::Dropped);
                }
                Some(_) if self.closes_here(request) => self.close_local(client, request),
                Some(_) if reads => {
                    // The shard refuses what is more than reading.
                    if request.want == Want::Ephemerals {
                        self.on_ephemerals(client, request, body);
                    }
                }
                Some(_) if forwards => {
                    self.upgrade_for(now, client, request, body, out);
                    self.forward(client, request, body, out);
                }
                Some(_) => {
                    if self.upgrade_for(now, client, request, body, out) && !self.has_zxid(now) {
                        return;
                    }
                    self.on_session_request(now, Asker::Client(client), request, body, out);
                }
            },
        }
    }

    /// A session that is over asks for something. It is not logged.
    fn on_request_of_nobody(&mut self, client: Client, request: &Request, body: &[u8]) {
        let answer = match request.want {
            Want::Write { op: code::MULTI } => prep_multi::of_nobody(body),
            _ => (Code::SessionExpired, Vec::new()),
        };
        let (err, body) = answer;
        if self.zab.forwards() {
            self.answer_here(client, request, forward::Answered::Body(err, body));
        } else {
            let (xid, zxid) = (request.xid, self.place());
            self.gathered.answer(client, xid, zxid, err, |out| out.extend_from_slice(&body));
        }
    }

    #[cfg(feature = "mutants")]
    fn serves_moved_sessions(&self) -> bool {
        self.settings.mutant == Some(Mutant::MovedSessionServed)
    }

    #[cfg(not(feature = "mutants"))]
    #[expect(clippy::unused_self, reason = "the same call with and without mutants")]
    fn serves_moved_sessions(&self) -> bool {
        false
    }

    #[cfg(feature = "mutants")]
    fn splits_rolls(&self) -> bool {
        self.settings.mutant != Some(Mutant::RollNotSplit)
    }

    #[cfg(not(feature = "mutants"))]
    #[expect(clippy::unused_self, reason = "the same call with and without mutants")]
    fn splits_rolls(&self) -> bool {
        true
    }

    fn on_session_request(
        &mut self,
        now: Now,
        asker: Asker,
        request: &Request,
        body: &[u8],
        out: &mut Output,
    ) {
        match (request.want, asker) {
            (Want::Open { .. } | Want::Resume { .. }, _) => {
                unreachable!("these are no session's yet")
            }
            (Want::Sync, Asker::Client(client)) => match PathOnly::read(&mut whole(body)) {
                Ok(path) => {
                    let (xid, zxid) = (request.xid, self.zab.proposed());
                    self.gathered.answer(client, xid, zxid, Code::Ok, |out| path.write(out));
                }
                Err(_) => self.malformed(client, request),
            },
            (Want::Ephemerals, Asker::Client(client)) => self.on_ephemerals(client, request, body),
            (Want::Sync | Want::Ephemerals, Asker::Learner(_)) => {
                unreachable!("a learner's syncs have a queue of their own")
            }
            (Want::Close, _) => self.on_close(now, asker, request, out),
            (Want::Write { op: code::MULTI }, _) => self.on_multi(now, asker, request, body, out),
            (Want::Write { op }, _) => self.on_write(now, asker, request, op, body, out),
        }
    }

    fn on_tick(&mut self, now: Now, out: &mut Output) {
        if self.is_leaving() {
            return;
        }
        self.expire(now, out);
        if self.zab.orders() {
            for path in self.reaper.due(now, &self.tree) {
                self.reap(now, &path, out);
            }
        }
        self.seal(out);
        self.tree.reclaim(RECLAIM_PER_TICK);
    }

    fn reap(&mut self, now: Now, path: &str, out: &mut Output) {
        if !self.has_zxid(now) {
            return;
        }
        let prep = self.prep(&[], None);
        // It may have got a child since it was looked at.
        let Ok(txn) = prep.delete_container(path) else { return };
        let is_ttl =
            self.tree.newest(path).is_some_and(|znode| matches!(znode.owner(), Owner::Ttl(_)));
        self.counts.ttl_deleted += u64::from(is_ttl);
        let header = self.header(now, SessionId(0), 0, txn.kind());
        self.tree.apply(&header, &txn, &mut self.gathered.changes(Zxid(header.zxid)));
        self.log(now, &header, true, |out| txn.write(out), out);
    }

    fn on_ephemerals(&mut self, from: Client, request: &Request, body: &[u8]) {
        let Ok(PathOnly { path: prefix }) = PathOnly::read(&mut whole(body)) else {
            self.malformed(from, request);
            return;
        };
        // Blank as Java trims; a prefix that is not blank counts with its blanks.
        let prefix = prefix.as_deref().unwrap_or_default();
        let is_all = matches!(prefix.trim_matches(|c| c <= ' '), "" | "/");
        let prefix = if is_all { "" } else { prefix };
        let mut listing = Listing::new(from, request.session, request.xid, prefix);
        if !self.list_more(&mut listing) {
            self.tree.note_disowned_by(request.session);
            self.listings.push_back(listing);
        }
    }

    /// Whether something takes more than a step, and `Input::GoOn` is wanted.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.listings.is_empty() && !self.has_left()
    }

    /// A piece more of each answer that is being made.
    fn on_go_on(&mut self, out: &mut Output) {
        for _ in 0..self.listings.len() {
            let Some(mut listing) = self.listings.pop_front() else { break };
            let (from, session) = (listing.from, listing.session);
            match self.tracker.owner(session) {
                None => {
                    let (xid, zxid) = (listing.xid, self.place());
                    self.gathered.answer(from, xid, zxid, Code::SessionExpired, |_| ());
                }
                Some(owner)
                    if owner != SessionOwner::Client(from) && !self.serves_moved_sessions() =>
                {
                    self.gathered.reply(from, self.place(), Outcome::Dropped);
                }
                Some(_) => {
                    for path in self.tree.take_disowned_by(session) {
                        // A multi that failed may have taken it back.
                        if !self.tree.owns(session, &path) {
                            listing.remove(&path);
                        }
                    }
                    if !self.list_more(&mut listing) {
                        self.listings.push_back(listing);
                        continue;
                    }
                }
            }
            if self.listings.iter().all(|other| other.session != session) {
                self.tree.forget_disowned_by(session);
            }
        }
        self.seal(out);
    }

    /// Lists some more, and answers if that was all.
    fn list_more(&mut self, listing: &mut Listing) -> bool {
        let (from, xid, zxid) = (listing.from, listing.xid, self.place());
        let has_more = listing.go_on(&self.tree, self.settings.listed_per_step);
        if self.settings.answer_bytes_max < listing.bytes() {
            self.gathered.answer(from, xid, zxid, Code::MarshallingError, |_| ());
            return true;
        }
        if !has_more {
            self.gathered.answer(from, xid, zxid, Code::Ok, |out| listing.write(out));
        }
        !has_more
    }

    // ---- writes -----------------------------------------------------------------------------

    fn prep<'p>(&'p self, ids: &'p [Id], refuses_ephemerals: Option<Code>) -> Prep<'p> {
        Prep { settings: &self.settings, tree: &self.tree, ids, refuses_ephemerals }
    }

    fn on_write(
        &mut self,
        now: Now,
        asker: Asker,
        request: &Request,
        op: i32,
        body: &[u8],
        out: &mut Output,
    ) {
        let refuses_ephemerals = self.refuses_ephemerals(asker, request.session);
        let mut scratch = std::mem::take(&mut self.scratch);
        let prep = self.prep(&request.ids, refuses_ephemerals);
        let request_body = body;
        // What a client of a learner does is in the learner's audit log.
        let is_own = matches!(asker, Asker::Client(_));
        let audited =
            self.audit.as_ref().filter(|_| is_own).and_then(|_| audit::asked(op, request_body));
        let mut body = whole(body);
        let txn = match op {
            code::CREATE | code::CREATE2 | code::CREATE_CONTAINER | code::CREATE_TTL => {
                Create::read(op, &mut body).and_then(|create| prep.create(create, &mut scratch))
            }
            code::DELETE => decode(&mut body).and_then(|delete| prep.delete(delete)),
            code::SET_DATA => decode(&mut body).and_then(|set| prep.set_data(set)),
            code::SET_ACL => decode(&mut body).and_then(|set| prep.set_acl(set, &mut scratch)),
            code::RECONFIG => decode::<ReconfigRequest<'_>>(&mut body).and_then(|_| {
                // A standalone server has no ensemble to change.
                let is_enabled = self.settings.reconfig_enabled;
                Err(if is_enabled { Code::Unimplemented } else { Code::ReconfigDisabled })
            }),
            _ => Err(Code::Unimplemented),
        };
        let txn = txn.and_then(|txn| prep.fits(0, txn));
        #[cfg(feature = "mutants")]
        let txn = match (self.settings.mutant, txn) {
            (Some(Mutant::WrongErrorCode), Err(Code::NotEmpty)) => Err(Code::BadVersion),
            (_, txn) => txn,
        };
        match txn {
            Ok(txn) => {
                let is_ttl = matches!(txn, Txn::Create { kind: CreateKind::Ttl(_), .. });
                self.counts.ttl_created += u64::from(is_ttl);
                let header = self.header(now, request.session, request.xid.0, txn.kind());
                let audited = audited.map(|entry| entry.done(&txn));
                self.audit(Zxid(header.zxid), request, audited, AuditResult::Success);
                self.tree.apply(&header, &txn, &mut self.gathered.changes(Zxid(header.zxid)));
                #[cfg(feature = "mutants")]
                self.corrupt_sequence(&header, &txn);
                self.log(now, &header, true, |out| txn.write(out), out);
                if let Asker::Client(client) = asker {
                    let zxid = Zxid(header.zxid);
                    self.gathered.answer(client, request.xid, zxid, Code::Ok, |out| {
                        write_result(out, op, &txn, &self.tree);
                        #[cfg(feature = "mutants")]
                        if self.settings.mutant == Some(Mutant::StaleStat) && op == code::SET_DATA {
                            set_back_version(out);
                        }
                    });
                }
            }
            Err(Code::MarshallingError) => self.malformed_of(now, asker, request, out),
            Err(err) => {
                // Whatever has a quota begins with its path.
                if err == Code::QuotaExceeded
                    && let Ok(PathOnly { path: Some(path) }) =
                        PathOnly::read(&mut whole(request_body))
                {
                    self.counts.exceeded(&path);
                }
                self.refuse(now, asker, request, err, out);
                self.audit(self.zab.proposed(), request, audited, AuditResult::Failure);
            }
        }
        self.scratch = scratch;
    }

    fn audit(
        &mut self,
        zxid: Zxid,
        request: &Request,
        entries: impl IntoIterator<Item = audit::Entry>,
        result: AuditResult,
    ) {
        if let Some(audit) = &mut self.audit {
            for entry in entries {
                audit.request(zxid, request, &self.settings.providers, &entry, result);
            }
        }
    }

    #[cfg(feature = "mutants")]
    fn corrupt_sequence(&mut self, header: &TxnHeader, txn: &Txn<'_>) {
        if self.settings.mutant == Some(Mutant::SequenceGoesBack)
            && let Txn::Delete { path } = txn
        {
            self.tree.set_back_cversion(Zxid(header.zxid), path);
        }
    }

    /// A request that fails its checks is a transaction too: an error, with a zxid of its own.
    fn refuse(&mut self, now: Now, asker: Asker, request: &Request, err: Code, out: &mut Output) {
        let header = self.header(now, request.session, request.xid.0, code::ERROR);
        self.log(now, &header, false, |out| out.put_i32(err.number()), out);
        if let Asker::Client(client) = asker {
            self.gathered.answer(client, request.xid, Zxid(header.zxid), err, |_| ());
        }
    }

    /// A body that cannot be read is nobody's but this client's: nothing to order or to log.
    fn malformed(&mut self, client: Client, request: &Request) {
        let zxid = self.place();
        self.gathered.answer(client, request.xid, zxid, Code::MarshallingError, |_| ());
    }

    /// A learner cannot answer its client without a transaction.
    fn malformed_of(&mut self, now: Now, asker: Asker, request: &Request, out: &mut Output) {
        match asker {
            Asker::Client(client) => self.malformed(client, request),
            Asker::Learner(_) => self.refuse(now, asker, request, Code::MarshallingError, out),
        }
    }

    fn header(&mut self, now: Now, session: SessionId, cxid: i32, kind: i32) -> TxnHeader {
        let zxid = self.next_zxid(now).0;
        TxnHeader { client_id: session.0, cxid, zxid, time: now.wall_ms, kind }
    }

    /// Writes the record of a transaction that the tree has taken, and lets it stand.
    fn log(
        &mut self,
        now: Now,
        header: &TxnHeader,
        digested: bool,
        body: impl FnOnce(&mut Vec<u8>),
        out: &mut Output,
    ) {
        let zxid = Zxid(header.zxid);
        let records = out.records(zxid, self.roll.take_new_file(), self.splits_rolls());
        let start = records.len();
        txnlog::append_record(records, |payload| {
            header.write(payload);
            body(payload);
            if digested && self.settings.tree.digest {
                let tree_digest = self.tree.digest() as i64;
                TxnDigest { version: DIGEST_VERSION, tree_digest }.write(payload);
            }
        });
        let bytes = records.len() - start;
        if self.zab.is_member() {
            let payload = txnlog::payload_of(&records[start..]);
            self.zab.propose(now, zxid, payload);
            // A learner may be sent a snapshot of any committed state.
            self.tree.seal(zxid);
        }
        let irregular = self.tree.take_irregular();
        assert_eq!(irregular, None, "a record that no start would read again");
        self.logged(bytes);
    }

    /// The same of a transaction that a leader has ordered.
    fn log_payload(&mut self, payload: &[u8], zxid: Zxid, out: &mut Output) {
        let records = out.records(zxid, self.roll.take_new_file(), true);
        let start = records.len();
        txnlog::append_record(records, |record| record.extend_from_slice(payload));
        let bytes = records.len() - start;
        self.zab.took(zxid);
        self.logged(bytes);
    }

    fn logged(&mut self, bytes: usize) {
        self.roll.on_record(bytes as u64, || snapshots::expected_bytes(&self.tree));
        self.tree.settle();
    }

    // ---- commit -----------------------------------------------------------------------------

    /// Ends a step: what it gathered waits for its commit, or goes out at once if there is
    /// nothing to wait for.
    fn seal(&mut self, out: &mut Output) {
        if self.zab.reads() {
            self.gathered.hand_out(self.tree.published(), &mut out.applied);
            return;
        }
        self.seal_open();
        let committed = self.zab.committed();
        #[cfg(feature = "mutants")]
        let committed = match self.settings.mutant {
            Some(Mutant::AnswerBeforeSync) => self.zab.proposed(),
            Some(Mutant::ShownWhenLogged) if self.zab.forwards() => self.zab.proposed(),
            _ => committed,
        };
        self.release(committed, out);
    }

    /// What clients see ends here.
    fn shown(&self) -> Zxid {
        if self.zab.reads() { self.tree.published() } else { self.zab.committed() }
    }

    /// Where in history an answer has its place that is no transaction's.
    fn place(&self) -> Zxid {
        if self.zab.reads() { self.tree.published() } else { self.zab.proposed() }
    }

    fn seal_open(&mut self) {
        self.gathered.seal(self.zab.proposed(), self.tree.digest());
        self.tree.seal(self.zab.proposed());
    }

    fn on_synced(&mut self, now: Now, zxid: Zxid, out: &mut Output) {
        self.zab.on_synced(now, zxid);
        self.do_what_is_asked(now, out);
        self.release(self.zab.committed(), out);
        let replaced = self.tree.take_replaced();
        self.tree.reclaim(reclaimed_by_commit(replaced));
    }

    fn release(&mut self, committed: Zxid, out: &mut Output) {
        let sessions = &mut self.sessions;
        let released = self.gathered.release(committed, &mut out.applied, |session, timeout_ms| {
            match timeout_ms {
                Some(timeout_ms) => sessions.insert(session, timeout_ms),
                None => sessions.remove(&session),
            };
        });
        if let Some(zxid) = released {
            self.tree.publish(zxid.max(self.tree.published()));
        }
        if let Some(audit) = &mut self.audit {
            audit.release(committed, &mut out.audited);
        }
    }

    fn snapshot_if_due(&mut self, out: &mut Output) {
        // What a fuzzy snapshot of a leader shows too early has no place in one of ours.
        // Nor has a snapshot of what is being cut or replaced.
        let may_be_taken = self.is_certain() && !self.is_changing();
        if out.snapshot.is_none() && may_be_taken && self.roll.take_snapshot_due() {
            out.snapshot = Some(self.snapshot_job());
        }
    }

    /// A snapshot of what is published.
    pub fn snapshot_job(&mut self) -> SnapshotJob {
        let (zxid, (released, digest)) = (self.tree.published(), self.gathered.released());
        let sessions = self.sessions_at(zxid);
        SnapshotJob {
            zxid,
            // In the middle of what one step has done, it is not known.
            digest: (self.settings.tree.digest && zxid == released).then_some(digest),
            sessions: sessions.into_iter().collect(),
            acls: self.tree.acl_lists(),
            reader: self.tree.reader(),
        }
    }

    /// The sessions that live after `zxid`, which has not gone out, or went out last.
    fn sessions_at(&self, zxid: Zxid) -> BTreeMap<SessionId, i32> {
        let mut sessions = self.sessions.clone();
        for change in self.gathered.sessions_until(zxid) {
            match change.timeout_ms {
                Some(timeout_ms) => sessions.insert(change.session, timeout_ms),
                None => sessions.remove(&change.session),
            };
        }
        sessions
    }

    /// A snapshot for a learner of what is history up to `zxid`.
    fn snapshot_job_at(&mut self, zxid: Zxid) -> SnapshotJob {
        self.tree.publish(zxid.max(self.tree.published()));
        let job = self.snapshot_job();
        SnapshotJob { zxid, ..job }
    }

    // ---- reports ----------------------------------------------------------------------------

    #[must_use]
    pub fn report(&self) -> Report {
        Report {
            zxid: self.shown(),
            znodes: self.tree.znode_count(),
            ephemerals: self.tree.ephemeral_count(),
            data_bytes: self.tree.data_bytes(),
            sessions: self.tracker.count(Scope::Global),
            local_sessions: (self.zab.reads() || self.zab.local_sessions() != LocalSessions::Off)
                .then(|| self.tracker.count(Scope::Local)),
            outstanding: self.gathered.outstanding() + self.zab.forwarded(),
        }
    }

    /// All live sessions that every server knows, soonest to expire first.
    pub fn sessions(&self) -> impl Iterator<Item = SessionInfo> + '_ {
        self.sessions_after(None)
    }

    /// The same, of those that come after a place in this order. One that is heard from meanwhile
    /// may come again.
    pub fn sessions_after(
        &self,
        place: Option<(i64, SessionId)>,
    ) -> impl Iterator<Item = SessionInfo> + '_ {
        self.tracker.sessions_after(Scope::Global, place)
    }

    /// The same, of those that this server alone knows.
    pub fn local_sessions_after(
        &self,
        place: Option<(i64, SessionId)>,
    ) -> impl Iterator<Item = SessionInfo> + '_ {
        self.tracker.sessions_after(Scope::Local, place)
    }

    /// All ephemerals, by session and path, that come after a place in this order; from the
    /// beginning with `None`.
    pub fn ephemerals_after<'p>(
        &'p self,
        place: Option<(SessionId, &'p str)>,
    ) -> impl Iterator<Item = (SessionId, &'p str)> {
        let (session, path) = place.unwrap_or((SessionId(i64::MIN), ""));
        self.tree.ephemerals_after(session, path)
    }

    /// The state of all committed and proposed transactions, for checkers.
    #[must_use]
    pub fn tree(&self) -> &TreeWriter {
        &self.tree
    }

    /// What does not hold, by name.
    #[must_use]
    pub fn broken_invariant(&self) -> Option<&'static str> {
        if self.zab.proposed() < self.zab.committed() {
            return Some("committed <= proposed");
        }
        if self.tree.mark() != 0 {
            return Some("no transaction is left open");
        }
        #[cfg(feature = "mutants")]
        if let Some(Mutant::AnswerBeforeSync | Mutant::ShownWhenLogged) = self.settings.mutant {
            return None;
        }
        if self.zab.serves() && self.tree.published() > self.zab.committed() {
            return Some("only what is committed is published");
        }
        self.tracker.broken_invariant()
    }
}

/// Of a znode that is not there.
const NO_STAT: Stat = Stat {
    czxid: 0,
    mzxid: 0,
    ctime: 0,
    mtime: 0,
    version: 0,
    cversion: 0,
    aversion: 0,
    ephemeral_owner: 0,
    data_length: 0,
    num_children: 0,
    pzxid: 0,
};

/// Records beyond this are not kept for their memory.
const SPARE_BYTES_MAX: usize = 4 << 20;

/// How much is freed after a commit, at most, that brought nothing to be freed.
const RECLAIM_PER_COMMIT: usize = 500;
/// The same after a tick, where there may be no commits: about a millisecond.
const RECLAIM_PER_TICK: usize = 20_000;

/// How many pieces are freed after a commit by which so many came to be freed: twice as many, so
/// that what a long snapshot held back drains while the next commit waits for microseconds. One
/// transaction may bring a hundred thousand: then only as many, so that what waits never grows.
fn reclaimed_by_commit(replaced: usize) -> usize {
    RECLAIM_PER_COMMIT + (2 * replaced).min(RECLAIM_PER_TICK.max(replaced))
}

/// Reads a request's body. How long its fields may be is said by how long it is.
fn whole(body: &[u8]) -> Reader<'_> {
    Reader::with_field_bytes_max(body, body.len())
}

/// A seeded bug: the stat at the end of `out` shows one version less.
#[cfg(feature = "mutants")]
fn set_back_version(out: &mut [u8]) {
    const STAT_BYTES: usize = 68;
    const VERSION_OFFSET: usize = 32;
    let start = out.len() - STAT_BYTES + VERSION_OFFSET;
    let version = &mut out[start..start + 4];
    let shown = i32::from_be_bytes((&*version).try_into().expect("four bytes"));
    version.copy_from_slice(&(shown - 1).to_be_bytes());
}

/// The body of a successful write's reply.
fn write_result(out: &mut Vec<u8>, op: i32, txn: &Txn<'_>, tree: &TreeWriter) {
    // A tree that a fuzzy snapshot of a leader has made may lack what was deleted later.
    let stat = |path: &str| tree.newest(path).map_or(NO_STAT, |znode| znode.stat());
    match txn {
        Txn::Create { path, kind, .. } => {
            let path_only =
                op == code::CREATE && matches!(kind, CreateKind::Node { create2: false, .. });
            if path_only {
                out.put_text(path);
            } else {
                let stat: Stat = stat(path);
                Create2Response { path: Some(path.as_ref().into()), stat }.write(out);
            }
        }
        Txn::SetData { path, .. } | Txn::SetAcl { path, .. } => stat(path).write(out),
        Txn::CreateSession { .. }
        | Txn::CloseSession { .. }
        | Txn::Error { .. }
        | Txn::Delete { .. }
        | Txn::DeleteContainer { .. }
        | Txn::Reconfig { .. }
        | Txn::Check { .. }
        | Txn::Multi(_) => {}
    }
}
