//! A server of an ensemble: what its `Peer` asks for is done here, and what it must know is told.
//!
//! ```text
//! LOOKING                  nobody is served, or clients that want no more than to read
//! an established leader    orders what its own clients and its learners ask for
//! an established learner   passes that on (`forward.rs`), and takes what the leader orders
//! ```
//!
//! **The tree is the log's state.** A leader applies a transaction when it proposes it, a learner
//! when it logs it. It is published once it is committed. So a server that is elected has its whole
//! log applied, and one that loses its role takes nothing back: what it has logged may become
//! history. What a leader has cut from the log is taken back (`roll_back.rs`). What it replaces by a
//! snapshot, or cuts below what is published, is loaded from the disk anew (`Input::Replaced`).
//!
//! **Reading without a leader** (`readonlymode.enabled`) shows what is published, and writes nothing. A
//! server that has lost its leader shows what it knows to be committed. One that has started shows
//! all of its log, for a log does not say how far it was committed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

#[cfg(feature = "mutants")]
use super::Mutant;
use super::deliver::Certainty;
use super::forward::Forward;
use super::quorum_stats::{LeaderReport, QuorumReport, QuorumRole, QuorumStats};
use super::tracker::{Scope, Tracker};
use super::{Output, Pipeline, Restored};
use crate::exchange::{Mode, Serves};
use crate::record::quorum::{FromLeader, FromLearner, LearnerInfo, TouchTable};
use crate::tree::TreeWriter;
use crate::types::{Deadline, Now, ServerId, SessionId, Zxid};
use crate::zab::election::Notification;
use crate::zab::history::{Cache, History};
use crate::zab::leader::{LiveLearner, Span, ToLearner};
use crate::zab::learner::{Kind, ToLeader};
use crate::zab::peer::{self, Peer};
use crate::zab::proposals::Proposal;
use crate::zab::standalone::Standalone;
use crate::zab::vote::PeerState;
use crate::zab::{Durable, LinkId};

use super::SnapshotJob;

/// What comes over the connections between servers.
pub enum LinkInput<'a> {
    /// A vote.
    Notification {
        from: ServerId,
        notification: Notification,
    },
    /// A server was called on its election port, and answered.
    ElectionReached(ServerId),
    /// The same, and nobody answered.
    ElectionRefused(ServerId),
    ElectionClosed(ServerId),
    /// Somebody connected to the quorum port here.
    LearnerConnected(LinkId),
    /// The leader that was called answers over this link.
    LeaderReached {
        link: LinkId,
        server: ServerId,
    },
    LeaderRefused(ServerId),
    /// The leader that was called has not answered in the time that a call may take.
    LeaderSilent(ServerId),
    /// A link of the quorum port is gone.
    Closed(LinkId),
    FromLearner {
        link: LinkId,
        packet: FromLearner<'a>,
    },
    FromLeader {
        link: LinkId,
        packet: FromLeader<'a>,
    },
    /// Bytes of a snapshot, or of what the log had for a learner, have moved over this link.
    Progress(LinkId),
    /// Whether the log has what `ToLink::Look` asked for.
    Looked {
        link: LinkId,
        has_all: bool,
    },
    /// All of a snapshot, or of what the log had, is on its way over this link.
    Streamed(LinkId),
}

/// What is to be done with the connections between servers, in this order.
pub enum ToLink {
    /// Packets as they travel. Links share them.
    Send(LinkId, Arc<[u8]>),
    /// A snapshot's body, behind the SNAP that was sent last.
    Snapshot(LinkId, SnapshotJob),
    /// To see whether the log has all of this, and sends it sooner than a snapshot.
    Look(LinkId, Span),
    /// What the log has of the history (`leader::write_committed`).
    Logged(LinkId, Span),
    Close(LinkId),
    /// To connect to the quorum port of this server.
    Call(ServerId),
    /// To tell these servers what `Pipeline::notification` is when it is written to them.
    Tell(ServerId),
}

/// What a server brings that is one of several.
pub struct MemberStart {
    pub peer: peer::Start,
    /// The configuration as NEWLEADER tells it, and its version.
    pub config: Arc<str>,
    pub config_version: i64,
    /// Of the history that `peer` has.
    pub cache: Cache,
    /// `leaderServes`: whether this server has clients of its own while it leads.
    pub leader_serves: bool,
    /// `readonlymode.enabled`: whether clients may read here while there is no leader.
    pub reads_alone: bool,
    pub local_sessions: LocalSessions,
}

/// Whether new sessions are known to their server alone (`localSessionsEnabled`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LocalSessions {
    #[default]
    Off,
    /// They cannot own ephemerals.
    Fixed,
    /// One that is to own an ephemeral becomes global first (`localSessionsUpgradingEnabled`).
    Upgraded,
}

/// How this server agrees with others on one order.
pub(super) enum Agreement {
    Alone(Standalone),
    Member(Box<Member>),
}

/// What an established server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// It is not established.
    None,
    /// The same, for so long that clients may read.
    Reads,
    Leads,
    Learns,
}

/// Whether this server goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    No,
    /// Nothing new is taken. What was asked here is answered, until then at the latest.
    Until(Deadline),
    /// The links are to be closed, and nothing is logged any more.
    Left,
}
/// For so long at least a server looks for a leader before clients may read, and for a tick.
const READS_AFTER_MS_MIN: i64 = 2_000;

pub(super) struct Member {
    peer: Peer,
    cache: Cache,
    leader_serves: bool,
    /// How long this server looks for a leader before clients may read; `None`: they never may.
    reads_after_ms: Option<i64>,
    reads_from: Option<Deadline>,
    local_sessions: LocalSessions,
    /// The leader's snapshot is on its way here.
    is_loading: bool,
    /// It is not wanted any more.
    is_dropped: bool,
    /// The log is being cut.
    is_changing: bool,
    leaving: Leaving,
    /// It has had no leader since it started, or took its leader's snapshot.
    is_fresh: bool,
    /// What the peer has asked for and has not got yet.
    asked: peer::Output,
    role: Role,
    kind: Kind,
    info: LearnerInfo,
    config: Arc<str>,
    /// The last transaction of the log and the tree.
    pub(super) proposed: Zxid,
    /// What shows.
    committed: Zxid,
    /// To the leader.
    leader_link: Option<LinkId>,
    pub(super) forward: Forward,
    /// Learners' syncs: each is answered once all up to here is committed.
    syncs: VecDeque<(Zxid, LinkId)>,
    /// Sessions that were heard from since the last PING, and their timeouts.
    heard: BTreeMap<SessionId, i32>,
    pub(super) certainty: Certainty,
    /// When its tree has last differed from a leader's and it wanted everything anew.
    pub(super) distrusted_ms: Option<i64>,
    pub(super) stats: QuorumStats,
}

impl Agreement {
    /// The last transaction of the tree.
    pub(super) fn proposed(&self) -> Zxid {
        match self {
            Agreement::Alone(alone) => alone.proposed(),
            Agreement::Member(member) => member.proposed,
        }
    }

    pub(super) fn committed(&self) -> Zxid {
        match self {
            Agreement::Alone(alone) => alone.committed(),
            Agreement::Member(member) => member.committed,
        }
    }

    /// Whether this server orders transactions.
    pub(super) fn orders(&self) -> bool {
        match self {
            Agreement::Alone(_) => true,
            Agreement::Member(member) => member.role == Role::Leads,
        }
    }

    /// Up to when every learner that serves has said which sessions it has heard of.
    pub(super) fn told_until_ms(&self) -> i64 {
        match self {
            Agreement::Alone(_) => i64::MAX,
            Agreement::Member(member) => {
                let told = member.peer.learners().map(|learner| learner.told_ms);
                told.min().unwrap_or(i64::MAX)
            }
        }
    }

    /// Whether what clients want goes to a leader.
    pub(super) fn forwards(&self) -> bool {
        matches!(self, Agreement::Member(member) if member.role == Role::Learns)
    }

    /// Whether clients may read what is here, and there is no leader.
    pub(super) fn reads(&self) -> bool {
        matches!(self, Agreement::Member(member) if member.role == Role::Reads)
    }

    pub(super) fn local_sessions(&self) -> LocalSessions {
        match self {
            Agreement::Alone(_) => LocalSessions::Off,
            Agreement::Member(member) => member.local_sessions,
        }
    }

    pub(super) fn member(&mut self) -> Option<&mut Member> {
        match self {
            Agreement::Alone(_) => None,
            Agreement::Member(member) => Some(member),
        }
    }

    /// How many clients wait for a leader's answer.
    pub(super) fn forwarded(&self) -> usize {
        match self {
            Agreement::Alone(_) => 0,
            Agreement::Member(member) => member.forward.count(),
        }
    }

    pub(super) fn is_member(&self) -> bool {
        matches!(self, Agreement::Member(_))
    }

    /// Whether clients may write here.
    pub(super) fn serves(&self) -> bool {
        self.orders() || self.forwards()
    }

    /// A transaction that was applied and logged here goes to the others.
    pub(super) fn propose(&mut self, now: Now, zxid: Zxid, payload: &[u8]) {
        if let Agreement::Member(member) = self {
            let proposal = Proposal { zxid, payload: payload.into() };
            member.stats.on_proposed(now, zxid, payload.len());
            member.call(|peer, asked| peer.propose(now, proposal, asked));
        }
    }

    /// A transaction of a leader is in the tree and the log.
    pub(super) fn took(&mut self, zxid: Zxid) {
        if let Agreement::Member(member) = self {
            member.proposed = zxid;
        }
    }

    pub(super) fn on_synced(&mut self, now: Now, zxid: Zxid) {
        match self {
            Agreement::Alone(alone) => {
                alone.on_synced(zxid);
            }
            Agreement::Member(member) => {
                member.call(|peer, asked| peer.on_synced(now, zxid, asked));
            }
        }
    }
}

impl Member {
    pub(super) fn new(now: Now, start: MemberStart, certainty: Certainty) -> Member {
        let MemberStart { peer, config, config_version, cache, leader_serves, .. } = start;
        let grace_ms = READS_AFTER_MS_MIN.max(peer.settings.tick_ms);
        let reads_after_ms = start.reads_alone.then_some(grace_ms);
        let kind = Kind::of(peer.is_observer);
        let info = LearnerInfo::new(peer.me, config_version);
        let mut asked = peer::Output::default();
        let peer = Peer::new(now, peer, &mut asked);
        Member {
            peer,
            cache,
            leader_serves,
            reads_after_ms,
            reads_from: reads_after_ms.map(|after_ms| Deadline(now.monotonic_ms + after_ms)),
            local_sessions: start.local_sessions,
            is_loading: false,
            is_dropped: false,
            is_changing: false,
            leaving: Leaving::No,
            is_fresh: true,
            asked,
            role: Role::None,
            kind,
            info,
            config,
            proposed: Zxid::ZERO,
            committed: Zxid::ZERO,
            leader_link: None,
            forward: Forward::default(),
            syncs: VecDeque::new(),
            heard: BTreeMap::new(),
            certainty,
            distrusted_ms: None,
            stats: QuorumStats::new(now),
        }
    }

    /// Takes a tree that nobody reads yet, which ends at `last`: writes into it what the ensemble is.
    pub(super) fn take_tree(&mut self, now: Now, tree: &mut TreeWriter, last: Zxid) {
        let version = self.info.config_version.unwrap_or_default();
        tree.set_config(&self.config, version, now.wall_ms);
        // What is not published may still be cut.
        (self.proposed, self.committed) = (last, tree.published());
        self.is_fresh = true;
    }

    /// What comes after `zxid` is no more in the log and the tree.
    pub(super) fn rolled_back_to(&mut self, zxid: Zxid) {
        (self.proposed, self.committed) = (zxid, self.committed.min(zxid));
    }

    #[cfg(test)]
    pub(super) fn set_local_sessions(&mut self, local_sessions: LocalSessions) {
        self.local_sessions = local_sessions;
    }

    fn report(&self, now: Now) -> QuorumReport {
        let (peer, stats) = (&self.peer, &self.stats);
        let bounds = (self.proposed, self.committed);
        let report = |learner: LiveLearner| {
            let is_voter = peer.voters().contains(learner.server);
            stats.learner_report(now, learner, is_voter, bounds)
        };
        let role = match (self.role, self.kind) {
            (Role::None | Role::Reads, _) => QuorumRole::Looking,
            (Role::Leads, _) => QuorumRole::Leader(LeaderReport {
                leading_ms: stats.established_ms(now),
                learner_count: peer.learner_count(),
                learners: peer.learners().map(report).collect(),
                pending_syncs: self.syncs.len(),
                proposal_sizes: stats.proposal_sizes(),
            }),
            (Role::Learns, Kind::Follower) => QuorumRole::Follower,
            (Role::Learns, Kind::Observer) => QuorumRole::Observer { leader: peer.followed() },
        };
        QuorumReport { role, voter_count: peer.voters().committed().participants().count() }
    }

    /// Sessions that clients of this server have spoken for.
    pub(super) fn heard(&mut self, sessions: impl Iterator<Item = SessionId>, tracker: &Tracker) {
        if self.role == Role::Learns {
            let global = sessions.filter(|session| tracker.scope(*session) == Some(Scope::Global));
            let known = global.filter_map(|session| Some((session, tracker.timeout_ms(session)?)));
            self.heard.extend(known);
        }
    }

    /// A learner's sync is answered once all that was proposed by now is committed.
    pub(super) fn sync(&mut self, link: LinkId) {
        self.syncs.push_back((self.proposed, link));
    }

    /// Whether somebody here waits for what others have to agree to.
    fn owes_answers(&self) -> bool {
        match self.role {
            Role::None | Role::Reads => false,
            Role::Leads => self.committed < self.proposed,
            Role::Learns => self.forward.count() != 0,
        }
    }

    /// A packet to the leader.
    pub(super) fn send_to_leader(&mut self, packet: FromLearner<'_>, out: &mut Output) {
        if let Some(link) = self.leader_link {
            let mut bytes = Vec::new();
            packet.write(&mut bytes);
            out.to_links.push(ToLink::Send(link, bytes.into()));
        }
    }

    fn call(&mut self, step: impl FnOnce(&mut Peer, &mut peer::Output)) {
        step(&mut self.peer, &mut self.asked);
    }
}

impl Pipeline {
    /// What this server does for its ensemble; `None` for one that is alone.
    #[must_use]
    pub fn quorum_report(&self, now: Now) -> Option<QuorumReport> {
        match &self.zab {
            Agreement::Alone(_) => None,
            Agreement::Member(member) => Some(member.report(now)),
        }
    }

    /// Forgets how long proposals have been so far (`srst`).
    pub fn reset_proposal_sizes(&mut self) {
        if let Agreement::Member(member) = &mut self.zab {
            member.stats.reset_proposal_sizes();
        }
    }

    /// The vote of this server, as it stands.
    #[must_use]
    pub fn notification(&self) -> Option<Notification> {
        match &self.zab {
            Agreement::Alone(_) => None,
            Agreement::Member(member) => Some(member.peer.notification()),
        }
    }

    /// When time alone gives this server something to do, beside ticks.
    #[must_use]
    pub fn deadline(&self) -> Option<Deadline> {
        match &self.zab {
            Agreement::Alone(_) => None,
            Agreement::Member(member) => {
                let leaving = match member.leaving {
                    Leaving::Until(until) => Some(until),
                    Leaving::No | Leaving::Left => None,
                };
                let others = leaving.into_iter().chain(member.reads_from);
                member.peer.deadline().into_iter().chain(others).min()
            }
        }
    }

    /// The server is about to end, and no client of its own asks for anything any more. What they
    /// have asked is answered, for as long as half a tick; then this server is no member any more.
    /// Others would keep its log busy for ever.
    pub(super) fn on_stop(&mut self, now: Now) {
        let until = Deadline(now.monotonic_ms + self.settings.tick_ms / 2);
        if let Agreement::Member(member) = &mut self.zab
            && member.leaving == Leaving::No
        {
            member.leaving = Leaving::Until(until);
        }
    }

    /// Whether this server takes nothing new, for it is about to end.
    pub(super) fn is_leaving(&self) -> bool {
        matches!(&self.zab, Agreement::Member(member) if member.leaving != Leaving::No)
    }

    pub(super) fn has_left(&self) -> bool {
        matches!(&self.zab, Agreement::Member(member) if member.leaving == Leaving::Left)
    }

    /// Whether nothing comes from here any more that is to be logged or sent, once `Input::Stop` has
    /// been told: the links may be closed.
    #[must_use]
    pub fn may_end(&self) -> bool {
        !self.zab.is_member() || self.has_left()
    }

    /// Leaves if nobody here waits for an answer, or it has taken long enough.
    pub(super) fn leave_if_done(&mut self, now: Now) {
        let is_listing = !self.listings.is_empty();
        if let Agreement::Member(member) = &mut self.zab
            && let Leaving::Until(until) = member.leaving
            && (until.is_due(now) || !(member.owes_answers() || is_listing))
        {
            member.leaving = Leaving::Left;
        }
    }

    /// Whether so much is on its way to the disk that nothing should be taken that is to be logged: of
    /// a leader its proposals, of learners their requests.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(&self.zab, Agreement::Member(member) if member.peer.is_full())
    }

    /// The same of what this server's own clients ask for.
    #[must_use]
    pub fn is_full_for_clients(&self) -> bool {
        self.zab.orders() && self.is_full()
    }

    /// Whether a transaction can be ordered here. A leader whose epoch has no zxid left ends.
    pub(super) fn has_zxid(&mut self, now: Now) -> bool {
        match &mut self.zab {
            Agreement::Alone(_) => true,
            Agreement::Member(member) if member.role == Role::Leads => {
                member.peer.next_zxid(now, &mut member.asked).is_some()
            }
            Agreement::Member(_) => false,
        }
    }

    /// The next transaction's zxid: `has_zxid` was asked before.
    pub(super) fn next_zxid(&mut self, now: Now) -> Zxid {
        match &mut self.zab {
            Agreement::Alone(alone) => alone.propose(),
            Agreement::Member(member) => {
                let next = member.peer.next_zxid(now, &mut member.asked);
                member.proposed = next.expect("who orders has a zxid");
                member.proposed
            }
        }
    }

    pub(super) fn on_link(&mut self, now: Now, input: LinkInput<'_>, out: &mut Output) {
        let Agreement::Member(member) = &mut self.zab else { return };
        match input {
            LinkInput::Notification { from, notification } => {
                member.call(|peer, asked| peer.on_notification(now, from, notification, asked));
            }
            LinkInput::ElectionReached(server) => {
                member.call(|peer, asked| peer.on_election_port(now, server, false, asked));
            }
            LinkInput::ElectionRefused(server) => {
                member.call(|peer, asked| peer.on_election_port(now, server, true, asked));
            }
            LinkInput::ElectionClosed(server) => member.peer.on_election_link_closed(server),
            LinkInput::LearnerConnected(link) => {
                member.call(|peer, asked| peer.on_learner_connected(now, link, asked));
            }
            LinkInput::LeaderReached { link, server } => {
                member.call(|peer, asked| peer.on_leader_reached(now, server, link, asked));
            }
            LinkInput::LeaderRefused(server) => {
                member.call(|peer, asked| peer.on_leader_refused(now, server, asked));
            }
            LinkInput::LeaderSilent(server) => {
                member.call(|peer, asked| peer.on_leader_silent(now, server, asked));
            }
            LinkInput::Closed(link) => {
                member.call(|peer, asked| peer.on_link_closed(now, link, asked));
            }
            LinkInput::FromLearner { link, packet } => {
                member.call(|peer, asked| peer.on_packet_of_learner(now, link, packet, asked));
                // Whoever is not a learner that serves has no clients to ask for.
                if member.peer.is_live(link) && member.leaving == Leaving::No {
                    self.on_learner_packet(now, link, packet, out);
                }
            }
            LinkInput::FromLeader { link, packet } => {
                if member.leader_link == Some(link) {
                    member.stats.on_packet_of_leader(now, &packet, member.role == Role::Learns);
                }
                member.call(|peer, asked| peer.on_packet_of_leader(now, link, packet, asked));
                if member.leader_link == Some(link) {
                    if let FromLeader::Ping { zxid } = packet {
                        member.certainty.on_proposed_by_leader(zxid);
                    }
                    self.on_leader_packet(now, packet);
                }
            }
            LinkInput::Progress(link) => member.peer.on_progress(now, link),
            LinkInput::Looked { link, has_all } => {
                member.call(|peer, asked| peer.on_looked(now, link, has_all, asked));
            }
            LinkInput::Streamed(link) => {
                member.call(|peer, asked| peer.on_streamed(now, link, asked));
            }
        }
        self.seal(out);
    }

    /// Time has passed.
    pub(super) fn on_time(&mut self, now: Now, out: &mut Output) {
        if let Agreement::Member(member) = &mut self.zab {
            member.call(|peer, asked| peer.on_time(now, asked));
            self.read_alone(now, out);
            self.seal(out);
        }
    }

    /// Lets clients read, once there has been no leader for long enough.
    /// After `QuorumPeer.run` (`roZkMgr`).
    fn read_alone(&mut self, now: Now, out: &mut Output) {
        let is_changing = self.is_changing();
        let Agreement::Member(member) = &mut self.zab else { return };
        let Some(after_ms) = member.reads_after_ms else { return };
        if !member.reads_from.is_some_and(|from| from.is_due(now)) {
            return;
        }
        if is_changing || !member.peer.may_be_read() {
            member.reads_from = Some(Deadline(now.monotonic_ms + after_ms));
            return;
        }
        (member.role, member.reads_from) = (Role::Reads, None);
        if member.is_fresh {
            // A log does not say how far it was committed.
            self.commit(now, self.zab.proposed(), out);
        }
        tracing::info!(zxid = %self.tree.published(), "Read-only server started");
        self.tracker.restart(now);
        self.open_to_clients(Mode::ReadOnly, out);
    }

    pub(super) fn on_stored(&mut self, now: Now, stored: Durable, out: &mut Output) {
        if let Durable::Truncated(zxid) = stored
            && !self.take_back(now, zxid, out)
        {
            return;
        }
        if let Agreement::Member(member) = &mut self.zab {
            member.call(|peer, asked| peer.on_stored(now, stored, asked));
            self.seal(out);
        }
    }

    /// The log ends at `zxid`, as a leader wanted it to. False: the state has to be loaded from the
    /// disk anew before anything else is done.
    fn take_back(&mut self, now: Now, zxid: Zxid, out: &mut Output) -> bool {
        #[cfg(feature = "mutants")]
        if self.is_mutant(Mutant::CutStaysInTree) {
            return true;
        }
        if !self.can_roll_back_to(zxid) {
            let published = self.tree.published();
            tracing::info!(
                %zxid, %published,
                "TRUNC: the log ends before what was shown here, and is loaded from the disk anew"
            );
            out.reload = Some(zxid);
            return false;
        }
        let began = self.zab.proposed();
        let count = self.roll_back_to(now, zxid);
        tracing::info!(%zxid, from = %began, "TRUNC: {count} transactions are taken back");
        if let Agreement::Member(member) = &mut self.zab {
            member.is_changing = false;
        }
        true
    }

    /// The disk has another state, which a leader wanted it to have: it is the state from here on.
    pub(super) fn on_replaced(
        &mut self,
        now: Now,
        restored: Restored,
        stored: Durable,
        out: &mut Output,
    ) {
        let last = restored.last;
        let certainty = Certainty::of(&restored);
        out.dropped.push(self.replace(now, restored));
        if let Agreement::Member(member) = &mut self.zab {
            member.certainty = certainty;
            (member.is_loading, member.is_changing) = (false, false);
            if let Durable::Snapshot(_) = stored {
                // What a leader sends has no digest, and may show what comes after it: one of our
                // own follows as soon as the tree is certain.
                self.roll.ask_for_snapshot();
            }
            let is_dropped = std::mem::take(&mut member.is_dropped);
            let history = History::new(member.cache, last);
            member.call(|peer, asked| match stored {
                Durable::Snapshot(_) if is_dropped => peer.on_snapshot_lost(now, history, asked),
                stored => peer.on_stored(now, stored, asked),
            });
        }
        self.seal(out);
    }

    pub(super) fn on_truncate_refused(&mut self, now: Now, zxid: Zxid, out: &mut Output) {
        if let Agreement::Member(member) = &mut self.zab {
            member.is_changing = false;
            member.call(|peer, asked| peer.on_truncate_refused(now, zxid, asked));
            self.seal(out);
        }
    }

    pub(super) fn on_snapshot_lost(&mut self, now: Now, out: &mut Output) {
        if let Agreement::Member(member) = &mut self.zab {
            (member.is_loading, member.is_dropped) = (false, false);
            let history = History::new(member.cache, member.proposed);
            member.call(|peer, asked| peer.on_snapshot_lost(now, history, asked));
            self.seal(out);
        }
    }

    /// Does what the peer has asked for. Whatever steps in here ends with this.
    pub(super) fn do_what_is_asked(&mut self, now: Now, out: &mut Output) {
        while let Some(asked) = self.take_asked() {
            // What cannot be applied is not committed here either, nor served.
            let mut is_applied = true;
            for proposal in &asked.appends {
                if self.zab.proposed() < proposal.zxid
                    && let Err(fault) = self.deliver(now, proposal, out)
                {
                    tracing::error!(%fault, "this server's data is not the leader's");
                    self.distrust(now);
                    is_applied = false;
                    break;
                }
            }
            if let Some(zxid) = asked.history.filter(|_| is_applied) {
                self.forget_states_before(zxid);
            }
            if let Some(member) = self.zab.member() {
                let cuts = |store: &Durable| matches!(store, Durable::Truncated(_));
                member.is_changing |= asked.stores.iter().any(cuts);
            }
            out.stores.extend(asked.stores);
            let link = self.zab.member().and_then(|member| member.leader_link);
            out.loads = link.zip(asked.load).or(out.loads);
            if let Some(member) = self.zab.member() {
                member.is_loading |= asked.load.is_some();
            }
            if asked.drop_snapshot {
                self.drop_snapshot(now);
            }
            self.send_to_learners(&asked.to_learners, out);
            out.to_links.extend(asked.looks.iter().map(|&(link, span)| ToLink::Look(link, span)));
            self.send_what_peer_says(&asked.to_leader, out);
            if let Some(committed) = asked.committed.filter(|_| is_applied) {
                self.commit(now, committed, out);
            }
            if asked.ended.is_none() {
                self.note_state(now, asked.state, out);
            }
            if is_applied && asked.established.is_some() {
                self.serve(now, out);
            }
            for link in asked.closes {
                out.to_links.push(ToLink::Close(link));
            }
            out.to_links.extend(asked.tell.into_iter().map(ToLink::Tell));
            out.to_links.extend(asked.call.map(ToLink::Call));
            if let Some(ended) = asked.ended {
                tracing::warn!("{ended}");
                self.stop_serving(out);
                self.note_state(now, Some(PeerState::Looking), out);
                let decided = asked.state.filter(|state| *state != PeerState::Looking);
                self.note_state(now, decided, out);
            }
            if let Some(why) = asked.retried {
                tracing::warn!("the leader is called again: {why}");
            }
        }
        self.answer_syncs(out);
    }

    /// Nobody will read a state before this one, or be told what led to it: a server that takes over a
    /// long history would hold all of that until it serves. Where it has to cut some of it after all,
    /// its whole state is loaded anew.
    fn forget_states_before(&mut self, zxid: Zxid) {
        self.gathered.forget_changes_until(zxid);
        self.tree.publish(zxid.max(self.tree.published()));
    }

    /// Whether the files of the disk are being changed by a leader's TRUNC or SNAP.
    pub(super) fn is_changing(&self) -> bool {
        matches!(&self.zab, Agreement::Member(member) if member.is_changing || member.is_loading)
    }

    /// Whether the tree is certainly the one that others have at its zxid.
    pub(super) fn is_certain(&self) -> bool {
        match &self.zab {
            Agreement::Alone(_) => true,
            // Without digests nothing tells, and a start is told by nothing either.
            Agreement::Member(_) if !self.settings.tree.digest => true,
            Agreement::Member(member) => member.certainty.holds_after(member.proposed),
        }
    }

    /// A leader's snapshot is not wanted. What has replaced the state already is the state, and
    /// what is still on its way becomes it, or does not come whole.
    fn drop_snapshot(&mut self, now: Now) {
        let Agreement::Member(member) = &mut self.zab else { return };
        if member.is_loading {
            member.is_dropped = true;
        } else {
            let history = History::new(member.cache, member.proposed);
            member.call(|peer, asked| peer.on_snapshot_lost(now, history, asked));
        }
    }

    /// What is here is not to be built on.
    fn distrust(&mut self, now: Now) {
        let Agreement::Member(member) = &mut self.zab else { return };
        member.distrusted_ms = Some(now.monotonic_ms);
        let history = History::new(member.cache, member.proposed);
        member.call(|peer, asked| peer.on_distrusted(now, history, asked));
    }

    fn take_asked(&mut self) -> Option<peer::Output> {
        let Agreement::Member(member) = &mut self.zab else { return None };
        let asked = std::mem::take(&mut member.asked);
        (!asked.is_empty()).then_some(asked)
    }

    #[cfg(feature = "mutants")]
    fn is_mutant(&self, mutant: Mutant) -> bool {
        self.settings.mutant == Some(mutant)
    }

    fn note_state(&mut self, now: Now, state: Option<PeerState>, out: &mut Output) {
        let (Agreement::Member(member), Some(state)) = (&mut self.zab, state) else { return };
        member.stats.on_state(now, state);
        member.reads_from = match state {
            PeerState::Looking => {
                member.reads_after_ms.map(|after_ms| Deadline(now.monotonic_ms + after_ms))
            }
            PeerState::Following | PeerState::Leading | PeerState::Observing => None,
        };
        if member.role == Role::Reads {
            self.stop_serving(out);
        }
    }

    fn commit(&mut self, now: Now, committed: Zxid, out: &mut Output) {
        let Agreement::Member(member) = &mut self.zab else { return };
        let before = member.committed;
        member.committed = committed.max(before);
        let committed = member.committed;
        if member.role == Role::Leads {
            member.stats.on_committed(now, before, committed);
        }
        self.release(committed, out);
    }

    /// Whether a learner's sync waits.
    pub(super) fn awaits_syncs(&self) -> bool {
        #[cfg(feature = "mutants")]
        if self.is_mutant(Mutant::SyncNotAwaited) {
            return false;
        }
        true
    }

    /// Answers learners' syncs for which there is nothing to wait.
    pub(super) fn answer_syncs(&mut self, out: &mut Output) {
        let Agreement::Member(member) = &mut self.zab else { return };
        let committed = member.committed;
        while let Some((_, link)) = member.syncs.pop_front_if(|(zxid, _)| *zxid <= committed) {
            send(link, FromLeader::Sync, out);
        }
    }

    /// The role is established: all that is committed shows, and clients are served.
    fn serve(&mut self, now: Now, out: &mut Output) {
        let Agreement::Member(member) = &mut self.zab else { return };
        let leads = member.peer.leader().is_some();
        let has_clients = !leads || member.leader_serves;
        member.role = if leads { Role::Leads } else { Role::Learns };
        member.stats.on_established(now);
        member.is_fresh = false;
        if leads {
            self.commit(now, self.zab.proposed(), out);
        }
        self.tracker.restart(now);
        if has_clients {
            self.open_to_clients(Mode::ReadWrite, out);
        }
        if leads {
            self.close_orphans(now, out);
            self.seal_open();
        }
    }

    fn open_to_clients(&mut self, mode: Mode, out: &mut Output) {
        let readers = (0..self.settings.shards).map(|_| self.tree.reader()).collect();
        out.serves = Some(Serves::Clients { mode, readers });
    }

    fn stop_serving(&mut self, out: &mut Output) {
        let Agreement::Member(member) = &mut self.zab else { return };
        if member.role != Role::None {
            out.serves = Some(Serves::Nobody);
        }
        if member.local_sessions == LocalSessions::Off {
            // Those of who came to read.
            self.tracker.forget_local();
        }
        member.role = Role::None;
        member.leader_link = None;
        for session in member.forward.clear() {
            // A leader that has its transaction, or gets it, says so.
            self.tracker.set_scope(session, Scope::Local);
        }
        member.syncs.clear();
        member.heard.clear();
        for listing in self.listings.drain(..) {
            self.tree.forget_disowned_by(listing.session);
        }
    }

    fn send_to_learners(&mut self, sends: &[(LinkId, ToLearner)], out: &mut Output) {
        let mut last: Option<(&ToLearner, Arc<[u8]>)> = None;
        for (link, packet) in sends {
            if let Agreement::Member(member) = &mut self.zab {
                member.stats.on_sent_to_learner(packet);
            }
            if let ToLearner::Logged(span) = packet {
                out.to_links.push(ToLink::Logged(*link, *span));
                continue;
            }
            // One packet for many learners is encoded once.
            let bytes = match &last {
                Some((before, bytes)) if is_same(before, packet) => Arc::clone(bytes),
                _ => {
                    let Agreement::Member(member) = &self.zab else { return };
                    let mut bytes = Vec::new();
                    let config = Some(member.config.as_bytes());
                    packet.packet(config).expect("it is a packet").write(&mut bytes);
                    bytes.into()
                }
            };
            last = Some((packet, Arc::clone(&bytes)));
            out.to_links.push(ToLink::Send(*link, bytes));
            if let ToLearner::Snap { zxid } = packet {
                let job = self.snapshot_job_at(*zxid);
                out.to_links.push(ToLink::Snapshot(*link, job));
            }
        }
    }

    fn send_what_peer_says(&mut self, sends: &[(LinkId, ToLeader)], out: &mut Output) {
        let Agreement::Member(member) = &mut self.zab else { return };
        for (link, packet) in sends {
            member.leader_link = Some(*link);
            let mut touched = Vec::new();
            if let ToLeader::Ping { .. } = packet {
                for (session, timeout_ms) in std::mem::take(&mut member.heard) {
                    TouchTable::write_entry(session, timeout_ms, &mut touched);
                }
            }
            let touched = TouchTable::from_bytes(&touched).expect("just written");
            let mut bytes = Vec::new();
            packet.packet(member.kind, member.info, touched).write(&mut bytes);
            out.to_links.push(ToLink::Send(*link, bytes.into()));
        }
    }
}

/// To one learner.
pub(super) fn send(link: LinkId, packet: FromLeader<'_>, out: &mut Output) {
    let mut bytes = Vec::new();
    packet.write(&mut bytes);
    out.to_links.push(ToLink::Send(link, bytes.into()));
}

/// Whether two packets are the same bytes: those of a transaction are told by its zxid.
fn is_same(one: &ToLearner, other: &ToLearner) -> bool {
    match (one, other) {
        (ToLearner::Proposal(one), ToLearner::Proposal(other))
        | (ToLearner::Inform(one), ToLearner::Inform(other)) => one.zxid == other.zxid,
        (one, other) => one == other,
    }
}
