//! A leader: from the epoch that it proposes to the transactions that it commits.
//!
//! ```text
//! discovery        a quorum says which epochs it has accepted; the next one is stored, then told
//! agreement        a quorum accepts it, and none of it knows more than this server
//! synchronization  currentEpoch is stored; each learner is brought to this server's history, and
//!                  a quorum has it durably
//! broadcast        proposals are logged, acknowledged, committed in order
//! ```
//!
//! A stage that is not over within `initLimit` ends the leadership, and so does a tick at which no
//! quorum has been heard for `syncLimit`. A leader whose own log has stood still for `syncLimit` gives
//! up too, if a quorum of others is here to go on: they commit without this server's disk, and what it
//! cannot store gathers in its memory. ZooKeeper's leader goes on until its memory is full.
//!
//! A learner that joins has `initLimit` from the last thing that moved on its link, as a timeout of
//! a Java socket counts: each packet, and the bytes of its snapshot (`Leader::on_progress`). While
//! it waits for this leader, it has no limit of its own.
//!
//! What a learner lacks and the memory of this server does not have is read from its log, and like a
//! snapshot it goes out at the pace at which the learner takes it. Meanwhile the learner is sent nothing
//! that is live: whatever is committed by the time it has taken all that is read from the log in turn,
//! until little is left (`Leader::go_on`). So a learner that takes long to load a snapshot, or that is
//! far behind, has this server hold nothing for it, however much is written.
//!
//! Order of what a learner is sent: the operation, the history that is committed, NEWLEADER, what is
//! proposed and not committed, and everything live from there on. Java sends uncommitted proposals
//! before NEWLEADER; when their COMMIT then comes behind it, followers of 3.8.0 fail.
//!
//! After `Leader.java`, `LearnerHandler.java`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tracing::{info, warn};

use super::history::History;
use super::mutants::Mutant;
use super::proposals::{Proposal, Proposals};
use super::sync_plan::{Plan, plan};
use super::voters::Voters;
use super::{Durable, LinkId, OwnState, Settings};
use crate::jute::record::Buffer;
use crate::record::quorum::{FromLeader, FromLearner, LearnerInfo, PROTOCOL_VERSION, TxnPayload};
use crate::types::{Deadline, Epoch, Now, ServerId, Zxid};

/// The last epoch there can be: a zxid is a signed number.
const EPOCH_MAX: Epoch = Epoch(0x7fff_ffff);
/// Connections that have not said whose they are, at most. The oldest is closed for a new one.
const STRANGERS_MAX: usize = 64;
/// Learners outside the configuration, at most: observers need not be in it.
const OUTSIDERS_MAX: usize = 1024;

/// What a learner that has no history to go on from says instead of its last zxid. A leader sends it
/// SNAP, and does not count it among those that agree to its epoch (`Leader.waitForEpochAck`).
pub const NO_HISTORY: Zxid = Zxid(-1);

/// What a leader sends a learner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToLearner {
    LeaderInfo {
        epoch: Epoch,
    },
    Diff {
        zxid: Zxid,
    },
    Trunc {
        zxid: Zxid,
    },
    /// A snapshot of this server's history follows, all of it: it ends at `zxid`.
    Snap {
        zxid: Zxid,
    },
    /// What this server's log has after one zxid and up to another, each transaction as a PROPOSAL and
    /// its COMMIT (`write_committed`). `Leader::on_streamed` says that all of it, or all of a snapshot,
    /// is on its way.
    Logged(Span),
    NewLeader {
        epoch: Epoch,
    },
    UpToDate,
    Proposal(Proposal),
    Commit {
        zxid: Zxid,
    },
    Inform(Proposal),
    Ping {
        zxid: Zxid,
    },
}

/// A part of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// It begins behind this one.
    pub after: Zxid,
    /// The last one of it.
    pub through: Zxid,
}

/// Writes a transaction of a log as a learner that joins is sent it: PROPOSAL, COMMIT.
///
/// # Panics
/// If the payload does not begin with a transaction's header.
pub fn write_committed(zxid: Zxid, payload: &[u8], out: &mut Vec<u8>) {
    let txn = TxnPayload::from_bytes(payload).expect("a record begins with a header");
    FromLeader::Proposal { zxid, txn }.write(out);
    FromLeader::Commit { zxid }.write(out);
}

impl ToLearner {
    /// The packet as it travels; `None` for what is read from the log. `config` is the last configuration
    /// that the leader has seen, as text, for NEWLEADER.
    ///
    /// # Panics
    /// If a proposal's payload does not begin with a transaction's header.
    #[must_use]
    pub fn packet<'a>(&'a self, config: Buffer<'a>) -> Option<FromLeader<'a>> {
        let txn = |proposal: &'a Proposal| {
            TxnPayload::from_bytes(&proposal.payload).expect("a proposal begins with a header")
        };
        Some(match self {
            ToLearner::Logged(_) => return None,
            ToLearner::LeaderInfo { epoch } => {
                FromLeader::LeaderInfo { epoch: *epoch, protocol_version: PROTOCOL_VERSION }
            }
            ToLearner::Diff { zxid } => FromLeader::Diff { zxid: *zxid },
            ToLearner::Trunc { zxid } => FromLeader::Trunc { zxid: *zxid },
            ToLearner::Snap { zxid } => FromLeader::Snap { zxid: *zxid },
            ToLearner::NewLeader { epoch } => {
                FromLeader::NewLeader { zxid: Zxid::new(*epoch, 0), config }
            }
            ToLearner::UpToDate => FromLeader::UpToDate,
            ToLearner::Proposal(proposal) => {
                FromLeader::Proposal { zxid: proposal.zxid, txn: txn(proposal) }
            }
            ToLearner::Commit { zxid } => FromLeader::Commit { zxid: *zxid },
            ToLearner::Inform(proposal) => {
                FromLeader::Inform { zxid: proposal.zxid, txn: txn(proposal) }
            }
            ToLearner::Ping { zxid } => FromLeader::Ping { zxid: *zxid },
        })
    }
}

/// What a step asks for. Each link gets its own in order.
#[derive(Debug, Default)]
pub struct Output {
    pub sends: Vec<(LinkId, ToLearner)>,
    /// To see whether the log has all of this for a learner, and sends it sooner than a snapshot:
    /// `Leader::on_looked` answers.
    pub looks: Vec<(LinkId, Span)>,
    /// Links to close, and why.
    pub closes: Vec<(LinkId, Fault)>,
    pub stores: Vec<Durable>,
    /// To be logged here.
    pub appends: Vec<Proposal>,
    /// The leader is established: all that is logged here is committed, and clients are served.
    pub established: Option<Epoch>,
    /// All up to here is committed.
    pub committed: Option<Zxid>,
    /// The leadership is over.
    pub ended: Option<End>,
}

/// Why a leader gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum End {
    #[error("no quorum within initLimit: it was in {0}")]
    InitLimit(&'static str),
    #[error("no quorum has been heard for syncLimit")]
    QuorumLost,
    #[error("the last zxid of the epoch is used up")]
    EpochUsedUp,
    #[error("nothing was synced here for {0} ms, and others can lead")]
    LogStuck(i64),
}

/// Why a learner is let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("{0} does not belong here")]
    OutOfPlace(&'static str),
    #[error("protocol version {0:?} is older than ZooKeeper 3.4's")]
    ProtocolVersion(Option<i32>),
    #[error("its number is not told")]
    NoNumber,
    #[error("it has this server's own number")]
    OwnNumber,
    #[error("its configuration has version {theirs:#x}, ours has {ours:#x}")]
    Configuration { theirs: i64, ours: i64 },
    #[error("it knows more than this server: epoch {epoch}, zxid {last}")]
    Ahead { epoch: Epoch, last: Zxid },
    #[error("nothing was heard of it for {0} ms")]
    Silent(i64),
    #[error("it has not acknowledged {0} for syncLimit")]
    Stuck(Zxid),
    #[error("it has accepted epoch {0}, which no leader here has proposed")]
    Epoch(Epoch),
    #[error("server {0} has connected anew")]
    Replaced(ServerId),
    #[error("too many others are connected that have said as little")]
    Crowded,
}

/// A learner that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveLearner {
    pub link: LinkId,
    pub server: ServerId,
    pub is_observer: bool,
    /// The last zxid that it acknowledged. An observer acknowledges the start of the epoch, and by
    /// its answer to a PING what was committed when that was sent.
    pub acked: Zxid,
    /// When it has last said which sessions it has heard of: it answers PINGs with them.
    pub told_ms: i64,
}

#[derive(Debug)]
pub struct Leader {
    me: ServerId,
    settings: Settings,
    voters: Arc<Voters>,
    /// This server's acceptedEpoch and currentEpoch when it was elected.
    accepted: Epoch,
    current: Epoch,
    stage: Stage,
    seats: BTreeMap<LinkId, Seat>,
    /// What is committed, or will be once this leader is established.
    history: History,
    proposals: Proposals,
    /// The zxid that was given out last.
    proposed: Zxid,
    /// What is synced here.
    synced: Zxid,
    /// Since when the log has synced nothing of what it has; `None`: all that was proposed is synced.
    unsynced_since_ms: Option<i64>,
    next_ping: Deadline,
    next_check: Deadline,
}

#[derive(Debug)]
enum Stage {
    Discovery {
        until: Deadline,
        /// One above every acceptedEpoch so far.
        epoch: Epoch,
        /// Voters that have said theirs.
        connecting: BTreeSet<ServerId>,
        /// The epoch is chosen, and being stored.
        is_chosen: bool,
    },
    Agreement {
        until: Deadline,
        epoch: Epoch,
        acked: BTreeSet<ServerId>,
        is_agreed: bool,
    },
    Synchronization {
        until: Deadline,
        epoch: Epoch,
        acked: BTreeSet<ServerId>,
    },
    Broadcast {
        epoch: Epoch,
    },
}

/// One learner, as its leader sees it.
#[derive(Debug)]
struct Seat {
    stage: SeatStage,
    server: ServerId,
    is_observer: bool,
    heard_ms: i64,
    /// When it has last answered a PING.
    told_ms: i64,
    /// Until it must have said something, or more of its snapshot must have moved, before it has
    /// acknowledged NEWLEADER.
    until: Deadline,
    acked: Zxid,
    /// Proposals that it has yet to acknowledge, and when they were sent: the oldest that is
    /// watched, and the newest.
    oldest: Option<(Zxid, i64)>,
    newest: Option<(Zxid, i64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SeatStage {
    /// Connected.
    Hello,
    /// It has said which epoch it accepted.
    Discovery,
    /// It was told the epoch.
    Told,
    /// It has accepted; its log ends there.
    Agreed { last: Zxid },
    /// The log is looked at, whether it has what this learner lacks.
    Looking(Streamed),
    /// A snapshot, or a part of the log, is on its way to it.
    Streaming(Streamed),
    /// All before this was sent, and the log does not have more that is synced.
    Waiting(Streamed),
    /// It is sent all that is live.
    Syncing,
    /// It has this server's history.
    Synced,
    /// It serves.
    Live,
}

/// How far a learner will be once it has what is read for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Streamed {
    span: Span,
    /// `History::pushed_bytes` when that was chosen.
    pushed_bytes: u64,
}

impl Leader {
    /// An election has decided for this server.
    pub fn new(
        now: Now,
        me: ServerId,
        settings: Settings,
        voters: Arc<Voters>,
        own: OwnState,
        out: &mut Output,
    ) -> Leader {
        let OwnState { accepted, current, history, synced } = own;
        let until = Deadline(now.monotonic_ms + settings.init_ms());
        let mut leader = Leader {
            me,
            settings,
            voters,
            accepted,
            current,
            stage: Stage::Discovery {
                until,
                epoch: next_epoch(settings, accepted),
                connecting: BTreeSet::from([me]),
                is_chosen: false,
            },
            seats: BTreeMap::new(),
            proposed: history.end(),
            history,
            proposals: Proposals::default(),
            synced,
            unsynced_since_ms: None,
            next_ping: Deadline(now.monotonic_ms + settings.tick_ms / 2),
            next_check: Deadline(now.monotonic_ms + settings.tick_ms),
        };
        leader.choose_epoch(out);
        leader
    }

    /// What this server's history is, when it no longer leads.
    #[must_use]
    pub fn into_history(self) -> (History, Vec<Proposal>) {
        (self.history, self.proposals.outstanding().cloned().collect())
    }

    /// The learners that serve.
    pub fn learners(&self) -> impl Iterator<Item = LiveLearner> {
        self.seats.iter().filter(|(_, seat)| seat.stage == SeatStage::Live).map(|(link, seat)| {
            let &Seat { server, is_observer, acked, told_ms, .. } = seat;
            LiveLearner { link: *link, server, is_observer, acked, told_ms }
        })
    }

    /// Whether a learner serves.
    #[must_use]
    pub fn is_live(&self, link: LinkId) -> bool {
        self.seats.get(&link).is_some_and(|seat| seat.stage == SeatStage::Live)
    }

    /// Its learners' connections.
    pub fn links(&self) -> impl Iterator<Item = LinkId> {
        self.seats.keys().copied()
    }

    #[must_use]
    pub fn deadline(&self) -> Deadline {
        let seats = self.seats.values().map(|seat| self.seat_deadline(seat));
        let next = match &self.stage {
            Stage::Discovery { until, .. }
            | Stage::Agreement { until, .. }
            | Stage::Synchronization { until, .. } => *until,
            Stage::Broadcast { .. } => self.next_check,
        };
        seats.chain([next, self.next_ping]).min().expect("there are two at least")
    }

    /// The epoch, once it serves.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        match &self.stage {
            Stage::Broadcast { epoch } => Some(*epoch),
            _ => None,
        }
    }

    #[must_use]
    pub fn committed(&self) -> Zxid {
        self.history.end()
    }

    /// A zxid for the next transaction. There is none once the counter is used up: the leadership
    /// ends, and the next one counts anew (ZOOKEEPER-1277).
    pub fn next_zxid(&mut self, out: &mut Output) -> Option<Zxid> {
        assert!(self.epoch().is_some(), "only an established leader proposes");
        let next = self.proposed.next();
        if next.counter() == u32::MAX {
            out.ended = Some(End::EpochUsedUp);
            return None;
        }
        Some(next)
    }

    /// Sends a transaction to be logged everywhere. Its zxid is the one that was given out.
    pub fn propose(&mut self, now: Now, proposal: Proposal, out: &mut Output) {
        assert_eq!(proposal.zxid, self.proposed.next(), "zxids are given out one by one");
        self.proposed = proposal.zxid;
        self.unsynced_since_ms.get_or_insert(now.monotonic_ms);
        for (link, seat) in &mut self.seats {
            if seat.is_attached() && !seat.is_observer {
                seat.on_sent(now, proposal.zxid);
                out.sends.push((*link, ToLearner::Proposal(proposal.clone())));
            }
        }
        out.appends.push(proposal.clone());
        let zxid = proposal.zxid;
        self.proposals.propose(proposal, &self.voters);
        if self.settings.is_mutant(Mutant::OwnAckBeforeSync) {
            self.proposals.on_ack(self.me, zxid);
        }
        self.commit(out);
    }

    /// All up to here is synced in this server's log.
    pub fn on_synced(&mut self, now: Now, zxid: Zxid, out: &mut Output) {
        self.synced = zxid.max(self.synced);
        self.unsynced_since_ms =
            self.unsynced_since_ms.map(|_| now.monotonic_ms).filter(|_| zxid < self.proposed);
        self.proposals.on_ack(self.me, zxid);
        self.agree(out);
        self.establish(now, out);
        self.commit(out);
        let waits = |(link, seat): (&LinkId, &Seat)| match seat.stage {
            SeatStage::Waiting(sent) => Some((*link, sent)),
            _ => None,
        };
        for (link, sent) in self.seats.iter().filter_map(waits).collect::<Vec<_>>() {
            self.go_on(now, link, sent, out);
        }
    }

    pub fn on_stored(&mut self, now: Now, stored: Durable, out: &mut Output) {
        let until = Deadline(now.monotonic_ms + self.settings.init_ms());
        match (&self.stage, stored) {
            (Stage::Discovery { epoch, is_chosen: true, .. }, Durable::AcceptedEpoch(stored))
                if *epoch == stored =>
            {
                let (epoch, acked) = (stored, BTreeSet::from([self.me]));
                self.accepted = epoch;
                self.stage = Stage::Agreement { until, epoch, acked, is_agreed: false };
                for (link, seat) in &mut self.seats {
                    if seat.stage == SeatStage::Discovery {
                        (seat.stage, seat.until) = (SeatStage::Told, until);
                        out.sends.push((*link, ToLearner::LeaderInfo { epoch }));
                    }
                }
                self.agree(out);
            }
            (Stage::Agreement { epoch, is_agreed: true, .. }, Durable::CurrentEpoch(stored))
                if *epoch == stored =>
            {
                let (epoch, acked) = (stored, BTreeSet::new());
                self.current = epoch;
                self.stage = Stage::Synchronization { until, epoch, acked };
                let agreed: Vec<_> = self
                    .seats
                    .iter()
                    .filter_map(|(link, seat)| match seat.stage {
                        SeatStage::Agreed { last } => Some((*link, last)),
                        _ => None,
                    })
                    .collect();
                for (link, last) in agreed {
                    self.synchronize(now, link, last, out);
                }
                self.establish(now, out);
            }
            _ => {}
        }
    }

    /// A learner connected.
    pub fn on_connected(&mut self, now: Now, link: LinkId, out: &mut Output) {
        let silent = self.seats.iter().filter(|(_, seat)| seat.stage == SeatStage::Hello);
        if STRANGERS_MAX <= silent.clone().count()
            && let Some((&oldest, _)) = silent.min_by_key(|(_, seat)| seat.until)
        {
            self.let_go(oldest, Fault::Crowded, out);
        }
        let until = Deadline(now.monotonic_ms + self.settings.init_ms());
        let seat = Seat {
            stage: SeatStage::Hello,
            server: ServerId::default(),
            is_observer: true,
            heard_ms: now.monotonic_ms,
            told_ms: now.monotonic_ms,
            until,
            acked: Zxid::ZERO,
            oldest: None,
            newest: None,
        };
        self.seats.insert(link, seat);
    }

    pub fn on_closed(&mut self, link: LinkId) {
        if let Some(seat) = self.seats.remove(&link)
            && !seat.is_observer
            && !self.settings.is_mutant(Mutant::GoneCounted)
        {
            self.proposals.on_gone(seat.server);
        }
    }

    /// Bytes of a learner's snapshot, or of what the log has for it, have moved.
    pub fn on_progress(&mut self, now: Now, link: LinkId) {
        let init = Deadline(now.monotonic_ms + self.settings.init_ms());
        let Some(seat) = self.seats.get_mut(&link) else { return };
        seat.until = init;
        // Who waits for a quorum waits for the snapshots that it takes.
        if let Stage::Synchronization { until, .. } = &mut self.stage
            && !seat.is_observer
        {
            *until = init;
        }
    }

    pub fn on_packet(&mut self, now: Now, link: LinkId, packet: FromLearner<'_>, out: &mut Output) {
        let Some(seat) = self.seats.get_mut(&link) else { return };
        seat.heard_ms = now.monotonic_ms;
        seat.until = Deadline(now.monotonic_ms + self.settings.init_ms());
        let result = match (seat.stage, packet) {
            (SeatStage::Hello, FromLearner::FollowerInfo { accepted, info }) => {
                self.on_learner_info(link, accepted, info, false, out)
            }
            (SeatStage::Hello, FromLearner::ObserverInfo { accepted, info }) => {
                self.on_learner_info(link, accepted, info, true, out)
            }
            (SeatStage::Told, FromLearner::AckEpoch { last, current }) => {
                self.on_ack_epoch(now, link, last, current, out)
            }
            (_, FromLearner::Ack { zxid }) if seat.is_attached() => {
                self.on_ack(now, link, zxid, out);
                Ok(())
            }
            (SeatStage::Live, FromLearner::Ping { zxid, .. }) => {
                seat.told_ms = now.monotonic_ms;
                if seat.is_observer {
                    seat.acked = zxid.min(self.proposed).max(seat.acked);
                }
                Ok(())
            }
            (SeatStage::Hello | SeatStage::Told, _) => Err(Fault::OutOfPlace("this packet")),
            // An established learner's other packets are not this module's.
            _ => Ok(()),
        };
        if let Err(fault) = result {
            self.let_go(link, fault, out);
        }
    }

    pub fn on_time(&mut self, now: Now, out: &mut Output) {
        if self.next_ping.is_due(now) {
            self.next_ping = Deadline(now.monotonic_ms + self.settings.tick_ms / 2);
            let ping = ToLearner::Ping { zxid: self.proposed };
            let attached = self.seats.iter().filter(|(_, seat)| seat.is_attached());
            out.sends.extend(attached.map(|(link, _)| (*link, ping.clone())));
        }
        let late: Vec<_> =
            self.seats.iter().filter(|(_, seat)| self.seat_deadline(seat).is_due(now)).collect();
        let late: Vec<_> = late.iter().map(|(link, seat)| (**link, self.fault_of(seat))).collect();
        for (link, fault) in late {
            self.let_go(link, fault, out);
        }
        match &self.stage {
            Stage::Discovery { until, .. } if until.is_due(now) => {
                out.ended = Some(End::InitLimit("discovery"));
            }
            Stage::Agreement { until, .. } if until.is_due(now) => {
                out.ended = Some(End::InitLimit("the agreement on its epoch"));
            }
            Stage::Synchronization { until, .. } if until.is_due(now) => {
                out.ended = Some(End::InitLimit("synchronization"));
            }
            Stage::Broadcast { .. } if self.next_check.is_due(now) => {
                self.next_check = Deadline(now.monotonic_ms + self.settings.tick_ms);
                // Who was silent for too long was just let go; who still joins has longer.
                let joined = self.seats.values().filter(|seat| seat.is_synchronized_with());
                let voters = joined.filter(|seat| !seat.is_observer).map(|seat| seat.server);
                let heard: BTreeSet<ServerId> = voters.chain([self.me]).collect();
                let goes_on = self.settings.is_mutant(Mutant::QuorumLossIgnored);
                if !self.voters.is_quorum(&heard) && !goes_on {
                    out.ended = Some(End::QuorumLost);
                } else if self.is_stuck(now) && self.is_dispensable() {
                    out.ended = Some(End::LogStuck(self.settings.sync_ms()));
                }
            }
            _ => {}
        }
    }

    /// Whether the log has synced nothing of what it has for syncLimit.
    fn is_stuck(&self, now: Now) -> bool {
        let since = self.unsynced_since_ms;
        since.is_some_and(|since_ms| since_ms + self.settings.sync_ms() <= now.monotonic_ms)
            && !self.settings.is_mutant(Mutant::StuckLeads)
    }

    /// Whether a quorum of others has the history, and one of them can lead it.
    fn is_dispensable(&self) -> bool {
        let has_history = |seat: &&Seat| matches!(seat.stage, SeatStage::Synced | SeatStage::Live);
        let voters = self.seats.values().filter(has_history).filter(|seat| !seat.is_observer);
        let others: BTreeSet<ServerId> =
            voters.map(|seat| seat.server).filter(|server| *server != self.me).collect();
        self.voters.is_quorum(&others) && others.iter().any(|server| self.voters.may_lead(*server))
    }

    fn on_learner_info(
        &mut self,
        link: LinkId,
        accepted: Epoch,
        info: LearnerInfo,
        is_observer: bool,
        out: &mut Output,
    ) -> Result<(), Fault> {
        if info.protocol_version.is_none_or(|version| version < PROTOCOL_VERSION) {
            return Err(Fault::ProtocolVersion(info.protocol_version));
        }
        let server = info.server.ok_or(Fault::NoNumber)?;
        if server == self.me {
            return Err(Fault::OwnNumber);
        }
        let ours = self.voters.committed().version;
        if let Some(theirs) = info.config_version.filter(|theirs| ours < *theirs) {
            return Err(Fault::Configuration { theirs, ours });
        }
        // A stranger's word does not use up the epochs.
        let is_ours = self.voters.knows(server);
        let outsiders = self
            .seats
            .values()
            .filter(|seat| seat.stage != SeatStage::Hello && !self.voters.knows(seat.server));
        if !is_ours && OUTSIDERS_MAX <= outsiders.count() {
            return Err(Fault::Crowded);
        }
        if EPOCH_MAX <= accepted || (!is_ours && self.candidate() < accepted) {
            return Err(Fault::Epoch(accepted));
        }
        // What it acknowledged over another connection, it may have to cut over this one.
        let is_its = |(other, seat): (&LinkId, &Seat)| {
            (*other != link && seat.stage != SeatStage::Hello && seat.server == server)
                .then_some(*other)
        };
        for older in self.seats.iter().filter_map(is_its).collect::<Vec<_>>() {
            self.let_go(older, Fault::Replaced(server), out);
        }
        let seat = self.seats.get_mut(&link).expect("its packet was just looked at");
        (seat.server, seat.is_observer) = (server, is_observer);
        seat.stage = SeatStage::Discovery;
        match &mut self.stage {
            Stage::Discovery { epoch, connecting, is_chosen: false, .. } => {
                // Observers raise the epoch, and count for no quorum (ZOOKEEPER-2959).
                if is_ours {
                    *epoch = next_epoch(self.settings, accepted).max(*epoch);
                }
                if !is_observer && self.voters.contains(server) {
                    connecting.insert(server);
                }
                self.choose_epoch(out);
            }
            Stage::Discovery { .. } => {}
            Stage::Agreement { epoch, .. }
            | Stage::Synchronization { epoch, .. }
            | Stage::Broadcast { epoch } => {
                seat.stage = SeatStage::Told;
                out.sends.push((link, ToLearner::LeaderInfo { epoch: *epoch }));
            }
        }
        Ok(())
    }

    /// The epoch that is proposed, as far as it is known.
    fn candidate(&self) -> Epoch {
        match &self.stage {
            Stage::Discovery { epoch, .. }
            | Stage::Agreement { epoch, .. }
            | Stage::Synchronization { epoch, .. }
            | Stage::Broadcast { epoch } => *epoch,
        }
    }

    /// Freezes the epoch once a quorum has said what it accepted.
    fn choose_epoch(&mut self, out: &mut Output) {
        if let Stage::Discovery { epoch, connecting, is_chosen, .. } = &mut self.stage
            && !*is_chosen
            && self.voters.is_quorum(connecting)
        {
            *is_chosen = true;
            out.stores.push(Durable::AcceptedEpoch(*epoch));
        }
    }

    fn on_ack_epoch(
        &mut self,
        now: Now,
        link: LinkId,
        last: Zxid,
        current: Option<Epoch>,
        out: &mut Output,
    ) -> Result<(), Fault> {
        let seat = self.seats.get_mut(&link).expect("its packet was just looked at");
        seat.stage = SeatStage::Agreed { last };
        let (server, is_observer) = (seat.server, seat.is_observer);
        match &mut self.stage {
            Stage::Agreement { acked, is_agreed: false, .. } => {
                if let Some(epoch) = current {
                    if (self.current, self.history.end()) < (epoch, last) {
                        return Err(Fault::Ahead { epoch, last });
                    }
                    // Who has lost what it had is no witness of what is committed.
                    if !is_observer && last != NO_HISTORY {
                        acked.insert(server);
                    }
                    self.agree(out);
                }
            }
            Stage::Synchronization { .. } | Stage::Broadcast { .. } => {
                self.synchronize(now, link, last, out);
            }
            Stage::Discovery { .. } | Stage::Agreement { .. } => {}
        }
        Ok(())
    }

    /// A quorum has accepted the epoch: this server's history is the one to go on from, once it is
    /// synced. A currentEpoch without its history would win the next election with less.
    fn agree(&mut self, out: &mut Output) {
        if let Stage::Agreement { epoch, acked, is_agreed, .. } = &mut self.stage
            && !*is_agreed
            && self.history.end() <= self.synced
            && self.voters.is_quorum(acked)
        {
            *is_agreed = true;
            out.stores.push(Durable::CurrentEpoch(*epoch));
        }
    }

    /// Brings a learner to the committed history, and then attaches it to what comes.
    fn synchronize(&mut self, now: Now, link: LinkId, last: Zxid, out: &mut Output) {
        let (base, end) = (self.history.base(), self.history.end());
        let server = self.seats.get(&link).expect("a learner that was just seen").server;
        info!(%server, peer_last = %last, min_committed = %base, max_committed = %end, "synchronizing");
        match plan(last, &self.history) {
            Plan::Diff { after } => {
                info!(%server, zxid = %end, "sending DIFF");
                out.sends.push((link, ToLearner::Diff { zxid: end }));
                self.attach(now, link, after, out);
            }
            Plan::Trunc { to } => {
                info!(%server, zxid = %to, "sending TRUNC");
                out.sends.push((link, ToLearner::Trunc { zxid: to }));
                self.attach(now, link, to, out);
            }
            Plan::Log { after } => {
                let looking = self.streamed(after);
                out.looks.push((link, looking.span));
                self.set_stage(now, link, SeatStage::Looking(looking));
            }
            Plan::Snap => self.send_snapshot(now, link, out),
        }
    }

    /// What was committed by now and is in the log after this zxid.
    fn streamed(&self, after: Zxid) -> Streamed {
        let through = self.history.end().min(self.synced);
        Streamed { span: Span { after, through }, pushed_bytes: self.history.pushed_bytes() }
    }

    fn set_stage(&mut self, now: Now, link: LinkId, stage: SeatStage) {
        let seat = self.seats.get_mut(&link).expect("a learner that is synchronized");
        seat.stage = stage;
        seat.until = Deadline(now.monotonic_ms + self.settings.init_ms());
    }

    fn send_snapshot(&mut self, now: Now, link: LinkId, out: &mut Output) {
        let (end, pushed_bytes) = (self.history.end(), self.history.pushed_bytes());
        let server = self.seats.get(&link).expect("a learner that is synchronized").server;
        info!(%server, zxid = %end, "sending SNAP");
        out.sends.push((link, ToLearner::Snap { zxid: end }));
        let span = Span { after: end, through: end };
        self.set_stage(now, link, SeatStage::Streaming(Streamed { span, pushed_bytes }));
    }

    /// Whether the log has what was asked for a learner.
    pub fn on_looked(&mut self, now: Now, link: LinkId, has_all: bool, out: &mut Output) {
        let seat = self.seats.get(&link);
        let Some(&Seat { stage: SeatStage::Looking(found), server, .. }) = seat else { return };
        self.on_progress(now, link);
        if !has_all {
            return self.send_snapshot(now, link, out);
        }
        let zxid = self.history.end();
        info!(%server, %zxid, after = %found.span.after, "sending DIFF from the log");
        out.sends.push((link, ToLearner::Diff { zxid }));
        out.sends.push((link, ToLearner::Logged(found.span)));
        self.set_stage(now, link, SeatStage::Streaming(found));
    }

    /// All that was read for a learner, from the log or of a snapshot, is on its way.
    pub fn on_streamed(&mut self, now: Now, link: LinkId, out: &mut Output) {
        if let Some(&Seat { stage: SeatStage::Streaming(sent), .. }) = self.seats.get(&link) {
            self.on_progress(now, link);
            self.go_on(now, link, sent, out);
        }
    }

    /// Attaches a learner that was sent all before `sent`, if little has come since or all of that is in
    /// memory. Otherwise, sends it that much from the log first.
    fn go_on(&mut self, now: Now, link: LinkId, sent: Streamed, out: &mut Output) {
        let after = sent.span.through;
        if self.history.base() <= after {
            return self.attach(now, link, after, out);
        }
        let next = self.streamed(after);
        if next.span.through <= after {
            return self.set_stage(now, link, SeatStage::Waiting(sent));
        }
        out.sends.push((link, ToLearner::Logged(next.span)));
        let missed_bytes = self.history.pushed_bytes() - sent.pushed_bytes;
        // The rest goes on while a learner's bound is half full, and waits behind this.
        let is_near = missed_bytes <= (self.settings.received_bytes_max / 2) as u64;
        match is_near && self.history.base() <= next.span.through {
            true => self.attach(now, link, next.span.through, out),
            false => self.set_stage(now, link, SeatStage::Streaming(next)),
        }
    }

    /// Sends a learner what is committed after `after`, which is in memory, NEWLEADER, and from now on
    /// what is live.
    fn attach(&mut self, now: Now, link: LinkId, after: Zxid, out: &mut Output) {
        let (Stage::Synchronization { epoch, .. } | Stage::Broadcast { epoch }) = self.stage else {
            unreachable!("nobody is synchronized before the epoch is agreed on");
        };
        assert!(self.history.base() <= after, "what it is sent has no gap");
        let mut send = |packet| out.sends.push((link, packet));
        let has_hole = self.settings.is_mutant(Mutant::DiffWithHole);
        let missing = self.history.iter().filter(|proposal| after < proposal.zxid);
        for (place, proposal) in missing.enumerate() {
            if has_hole && place == 1 {
                continue;
            }
            send(ToLearner::Proposal(proposal.clone()));
            send(ToLearner::Commit { zxid: proposal.zxid });
        }
        send(ToLearner::NewLeader { epoch });
        self.set_stage(now, link, SeatStage::Syncing);
        let seat = self.seats.get_mut(&link).expect("a learner that is synchronized");
        if !seat.is_observer {
            for proposal in self.proposals.outstanding() {
                seat.on_sent(now, proposal.zxid);
                out.sends.push((link, ToLearner::Proposal(proposal.clone())));
            }
        }
    }

    fn on_ack(&mut self, now: Now, link: LinkId, zxid: Zxid, out: &mut Output) {
        let Some(seat) = self.seats.get_mut(&link) else { return };
        let (server, is_observer) = (seat.server, seat.is_observer);
        if zxid.counter() == 0 {
            // Of NEWLEADER the first time, of UPTODATE the second.
            let is_this = match &self.stage {
                Stage::Synchronization { epoch, .. } | Stage::Broadcast { epoch } => {
                    Zxid::new(*epoch, 0) == zxid
                }
                Stage::Discovery { .. } | Stage::Agreement { .. } => false,
            };
            if !is_this || seat.stage != SeatStage::Syncing {
                return;
            }
            seat.stage = SeatStage::Synced;
            seat.acked = zxid.max(seat.acked);
            if let Stage::Synchronization { acked, .. } = &mut self.stage {
                if !is_observer {
                    acked.insert(server);
                } else if self.settings.is_mutant(Mutant::ObserverCounted) {
                    let another = self.voters.all().into_iter().find(|id| !acked.contains(id));
                    acked.extend(another);
                }
                self.establish(now, out);
            } else {
                seat.serve(now);
                out.sends.push((link, ToLearner::UpToDate));
            }
            return;
        }
        // Of what was never proposed: no word of a correct server, and it would count for all that
        // is proposed later.
        if self.proposed < zxid {
            return;
        }
        seat.on_acked(zxid);
        if !is_observer {
            self.proposals.on_ack(server, zxid);
            if self.settings.is_mutant(Mutant::CommitOneShort) {
                let others = self.voters.all();
                let another = others.into_iter().find(|id| ![server, self.me].contains(id));
                another.into_iter().for_each(|id| self.proposals.on_ack(id, zxid));
            }
            self.commit(out);
        }
    }

    /// Begins to serve once a quorum has this server's history, and it has it itself, durably.
    fn establish(&mut self, now: Now, out: &mut Output) {
        let Stage::Synchronization { epoch, acked, .. } = &mut self.stage else { return };
        let epoch = *epoch;
        if self.history.end() <= self.synced {
            acked.insert(self.me);
        }
        let is_early = self.settings.is_mutant(Mutant::EstablishedEarly);
        if !self.voters.is_quorum(acked) && !is_early {
            return;
        }
        self.stage = Stage::Broadcast { epoch };
        self.proposed = Zxid::new(epoch, self.settings.counters_from);
        self.next_check = Deadline(now.monotonic_ms + self.settings.tick_ms);
        out.established = Some(epoch);
        out.committed = Some(self.history.end());
        for (link, seat) in &mut self.seats {
            if seat.stage == SeatStage::Synced {
                seat.serve(now);
                out.sends.push((*link, ToLearner::UpToDate));
            }
        }
    }

    fn commit(&mut self, out: &mut Output) {
        while let Some(proposal) = self.proposals.next_committed() {
            let zxid = proposal.zxid;
            for (link, seat) in self.seats.iter().filter(|(_, seat)| seat.is_attached()) {
                let packet = match seat.is_observer {
                    true => ToLearner::Inform(proposal.clone()),
                    false => ToLearner::Commit { zxid },
                };
                out.sends.push((*link, packet));
            }
            self.history.push(proposal);
            out.committed = Some(zxid);
        }
    }

    fn let_go(&mut self, link: LinkId, fault: Fault, out: &mut Output) {
        if let Some(seat) = self.seats.get(&link)
            && seat.stage != SeatStage::Hello
        {
            warn!(server = %seat.server, "a learner is let go: {fault}");
        }
        self.on_closed(link);
        out.closes.push((link, fault));
    }

    /// When a learner that stays as silent as it is will be let go.
    fn seat_deadline(&self, seat: &Seat) -> Deadline {
        let sync_ms = self.settings.sync_ms();
        match seat.stage {
            SeatStage::Live => {
                let stuck_ms = seat.oldest.map_or(i64::MAX, |(_, sent_ms)| sent_ms + sync_ms);
                Deadline((seat.heard_ms + sync_ms).min(stuck_ms))
            }
            SeatStage::Hello
            | SeatStage::Told
            | SeatStage::Looking(_)
            | SeatStage::Streaming(_)
            | SeatStage::Waiting(_)
            | SeatStage::Syncing => seat.until,
            // It waits for this leader, whose own stages have an end.
            SeatStage::Discovery | SeatStage::Agreed { .. } | SeatStage::Synced => {
                Deadline(i64::MAX)
            }
        }
    }

    fn fault_of(&self, seat: &Seat) -> Fault {
        match seat.oldest {
            _ if seat.stage != SeatStage::Live => Fault::Silent(self.settings.init_ms()),
            Some((zxid, sent_ms)) if sent_ms < seat.heard_ms => Fault::Stuck(zxid),
            _ => Fault::Silent(self.settings.sync_ms()),
        }
    }
}

/// The epoch that a leader proposes where this one was accepted.
fn next_epoch(settings: Settings, accepted: Epoch) -> Epoch {
    let is_reused = settings.is_mutant(Mutant::EpochReused);
    Epoch(if is_reused { accepted.0.max(1) } else { accepted.0 + 1 })
}

impl Seat {
    /// Whether it is being brought to this server's history, or has it.
    fn is_synchronized_with(&self) -> bool {
        match self.stage {
            SeatStage::Hello
            | SeatStage::Discovery
            | SeatStage::Told
            | SeatStage::Agreed { .. } => false,
            SeatStage::Looking(_) | SeatStage::Streaming(_) | SeatStage::Waiting(_) => true,
            SeatStage::Syncing | SeatStage::Synced | SeatStage::Live => true,
        }
    }

    /// Whether it is sent what is live.
    fn is_attached(&self) -> bool {
        matches!(self.stage, SeatStage::Syncing | SeatStage::Synced | SeatStage::Live)
    }

    fn on_sent(&mut self, now: Now, zxid: Zxid) {
        let sent = Some((zxid, now.monotonic_ms));
        *if self.oldest.is_none() { &mut self.oldest } else { &mut self.newest } = sent;
    }

    /// It is told to serve, and has `syncLimit` for everything from here on: what it was sent before,
    /// it could not acknowledge.
    fn serve(&mut self, now: Now) {
        self.stage = SeatStage::Live;
        (self.heard_ms, self.told_ms) = (now.monotonic_ms, now.monotonic_ms);
        for (_, sent_ms) in [&mut self.oldest, &mut self.newest].into_iter().flatten() {
            *sent_ms = now.monotonic_ms;
        }
    }

    fn on_acked(&mut self, acked: Zxid) {
        self.acked = acked.max(self.acked);
        for _ in 0..2 {
            if self.oldest.is_some_and(|(zxid, _)| zxid <= acked) {
                self.oldest = self.newest.take();
            }
        }
    }
}
