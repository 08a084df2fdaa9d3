//! A learner: from the leader's epoch to its history, and then what it proposes and commits.
//!
//! ```text
//! discovery        acceptedEpoch is stored before ACKEPOCH
//! synchronization  the operation, the history; at NEWLEADER: log, then currentEpoch, then ACK
//! broadcast        a proposal is logged and synced, then acknowledged; it shows when it is committed
//! ```
//!
//! What the leader had not committed when it sent NEWLEADER waits for UPTODATE, and is acknowledged
//! behind the second ACK of the epoch: a leader of Java takes the first ACK that it reads for the
//! one of NEWLEADER (ZOOKEEPER-4685).
//!
//! The history of DIFF and TRUNC goes to the log as it comes, and may end anywhere if this server
//! does. It may hold transactions of epochs above currentEpoch, and Java does not start on a log that
//! ends above it. So currentEpoch rises with the history: before the first transaction of an epoch is
//! logged, all before it is synced, and then currentEpoch becomes that epoch. This says no more than
//! is so, since what comes before the first transaction of an epoch is all that its leader began with.
//! Java logs everything at NEWLEADER and raises currentEpoch once, and a server that ends in between
//! does not start again.
//!
//! A snapshot, and what follows it until NEWLEADER, stands beside what was there before, and takes its
//! place with currentEpoch (`Durable`).
//!
//! While its own disk is behind, a learner takes no more than `received_bytes_max` of what comes: then
//! the link is not read (`Learner::is_full`), and its leader has to wait.
//!
//! A learner joins with `NO_HISTORY`, and is sent a snapshot, where it is not vouched for, or where a
//! leader had it cut its log at a zxid that the log does not have.
//!
//! After `Learner.java` (`registerWithLeader`, `syncWithLeader`), `Follower.java`, `Observer.java`.

use std::collections::VecDeque;

use tracing::info;

use super::history::History;
use super::leader::NO_HISTORY;
use super::mutants::Mutant;
use super::proposals::Proposal;
use super::{Durable, OwnState, Settings};
use crate::record::quorum::{FromLeader, FromLearner, LearnerInfo, PROTOCOL_VERSION};
use crate::record::quorum::{TouchTable, TxnPayload};
use crate::types::{Deadline, Epoch, Now, Zxid};

/// Proposals whose COMMIT, or whose NEWLEADER or UPTODATE, is still on its way cannot be put off, because
/// that comes behind them. They end the join at so many times `received_bytes_max`.
const RECEIVED_TIMES_MAX: usize = 64;

/// What a learner sends its leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToLeader {
    /// FOLLOWERINFO, or OBSERVERINFO.
    Info {
        accepted: Epoch,
    },
    AckEpoch {
        last: Zxid,
        current: Option<Epoch>,
    },
    Ack {
        zxid: Zxid,
    },
    /// The answer to a PING, with the sessions that were heard since the last one.
    Ping {
        zxid: Zxid,
    },
}

impl ToLeader {
    /// The packet as it travels. `info` says who this server is, and `touched` which sessions it has
    /// heard from since the last PING.
    #[must_use]
    pub fn packet(self, kind: Kind, info: LearnerInfo, touched: TouchTable<'_>) -> FromLearner<'_> {
        match (self, kind) {
            (ToLeader::Info { accepted }, Kind::Follower) => {
                FromLearner::FollowerInfo { accepted, info }
            }
            (ToLeader::Info { accepted }, Kind::Observer) => {
                FromLearner::ObserverInfo { accepted, info }
            }
            (ToLeader::AckEpoch { last, current }, _) => FromLearner::AckEpoch { last, current },
            (ToLeader::Ack { zxid }, _) => FromLearner::Ack { zxid },
            (ToLeader::Ping { zxid }, _) => FromLearner::Ping { zxid, touched },
        }
    }
}

/// What a step asks for.
#[derive(Debug, Default)]
pub struct Output {
    pub sends: Vec<ToLeader>,
    pub stores: Vec<Durable>,
    /// To be logged here.
    pub appends: Vec<Proposal>,
    /// All up to here is the leader's history, and nobody is served before UPTODATE. It is not
    /// committed for that: the leader may not be established yet.
    pub history: Option<Zxid>,
    /// The snapshot that follows on the link replaces the state: `Durable::Snapshot` says that it
    /// has, and that it is stored.
    pub load: Option<Zxid>,
    /// The leader is established, all that is committed shows, and clients are served.
    pub established: Option<Epoch>,
    /// All up to here is committed.
    pub committed: Option<Zxid>,
    /// The leader is given up.
    pub fault: Option<Fault>,
}

/// Why a learner gives its leader up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("the leader offers epoch {offered}, and {accepted} is accepted here")]
    StaleEpoch { accepted: Epoch, offered: Epoch },
    #[error("the leader speaks protocol version {0:#x}")]
    ProtocolVersion(i32),
    #[error("the leader sent {what} while this learner was in {stage}")]
    OutOfPlace { what: &'static str, stage: &'static str },
    #[error("the leader sent {found} after {last}: there is a gap")]
    Gap { last: Zxid, found: Zxid },
    #[error("the leader committed {found}, and {expected} comes before it")]
    CommitOrder { expected: Zxid, found: Zxid },
    #[error("the leader committed {found}, which it has not proposed")]
    CommitUnproposed { found: Zxid },
    #[error("the leader sent TRUNC to {to}, which the log here does not have")]
    NotInLog { to: Zxid },
    #[error("the leader sent {bytes} bytes that could not be logged yet")]
    TooMuch { bytes: usize },
    #[error("nothing was heard of the leader for {0} ms")]
    Silent(i64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Follower,
    Observer,
}

impl Kind {
    #[must_use]
    pub const fn of(is_observer: bool) -> Kind {
        if is_observer { Kind::Observer } else { Kind::Follower }
    }
}

#[derive(Debug)]
pub struct Learner {
    kind: Kind,
    /// Nothing of the history here is to go on from.
    wants_all: bool,
    settings: Settings,
    accepted: Epoch,
    current: Epoch,
    stage: Stage,
    /// What is committed, once UPTODATE has come; all that is logged, before that.
    history: History,
    /// What is logged, or being logged, after UPTODATE and not committed.
    logged: VecDeque<Proposal>,
    /// What is synced.
    synced: Zxid,
    until: Deadline,
}

#[derive(Debug)]
enum Stage {
    /// FOLLOWERINFO is sent.
    Discovery,
    /// The leader's epoch is being stored.
    Accepting {
        epoch: Epoch,
    },
    Synchronization {
        epoch: Epoch,
        joining: Joining,
    },
    Broadcast {
        /// Logged, and not acknowledged yet.
        unacked: VecDeque<Zxid>,
    },
}

#[derive(Debug)]
struct Joining {
    operation: Operation,
    /// Proposals that are not logged yet.
    received: VecDeque<Proposal>,
    received_bytes: usize,
    /// currentEpoch is being stored, so that transactions of this epoch can be logged.
    rising_to: Option<Epoch>,
    /// The last of them that is committed.
    committed: Zxid,
    new_leader: NewLeader,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Awaited,
    /// It waits until all that is logged is synced: no sync of what was cut may end later.
    Wanted(Durable),
    Underway(Durable),
    /// What had to be stored for it; DIFF needs nothing.
    Done(Option<Durable>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NewLeader {
    Awaited,
    /// Received; the history before it is not synced yet.
    Logging,
    /// currentEpoch is being stored.
    Storing,
    Acked,
}

impl Learner {
    /// The link to the leader is up, who knows how much of what is logged here is committed.
    /// `wants_all`: it is not asked, and has to send a snapshot.
    pub fn new(
        now: Now,
        kind: Kind,
        settings: Settings,
        own: OwnState,
        wants_all: bool,
        out: &mut Output,
    ) -> Learner {
        let OwnState { accepted, current, history, synced } = own;
        out.sends.push(ToLeader::Info { accepted });
        let until = Deadline(now.monotonic_ms + settings.init_ms());
        Learner {
            kind,
            wants_all,
            settings,
            accepted,
            current,
            stage: Stage::Discovery,
            history,
            logged: VecDeque::new(),
            synced,
            until,
        }
    }

    #[must_use]
    pub fn deadline(&self) -> Deadline {
        self.until
    }

    #[must_use]
    pub fn committed(&self) -> Zxid {
        self.history.end()
    }

    /// The last transaction of the log.
    #[must_use]
    pub fn last(&self) -> Zxid {
        self.logged.back().map_or(self.history.end(), |last| last.zxid)
    }

    /// The history as it is when the leader is given up, and what is logged behind it.
    #[must_use]
    pub fn into_history(self) -> (History, Vec<Proposal>) {
        (self.history, self.logged.into())
    }

    /// Whether enough has come that this server's own disk is not ready for.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let Stage::Synchronization { joining, .. } = &self.stage else { return false };
        joining.awaits_disk() && self.settings.received_bytes_max <= joining.received_bytes
    }

    pub fn on_time(&mut self, now: Now, out: &mut Output) {
        if self.is_full() {
            // The leader is not heard because it is not listened to.
            self.on_progress(now);
        } else if self.until.is_due(now) {
            let (init_ms, sync_ms) = (self.settings.init_ms(), self.settings.sync_ms());
            out.fault = Some(Fault::Silent(if self.is_joined() { sync_ms } else { init_ms }));
        }
    }

    /// Whether the state is a snapshot of the leader's, or is to become one, and was not when this
    /// server began to join.
    #[must_use]
    pub fn is_replaced(&self) -> bool {
        let Stage::Synchronization { joining, .. } = &self.stage else { return false };
        let is_early = matches!(joining.new_leader, NewLeader::Awaited | NewLeader::Logging);
        is_early && joining.is_snapshot() && !self.settings.is_mutant(Mutant::SnapshotKept)
    }

    /// Bytes of the leader's snapshot have come.
    pub fn on_progress(&mut self, now: Now) {
        let is_joined = self.is_joined();
        let limit_ms = if is_joined { self.settings.sync_ms() } else { self.settings.init_ms() };
        self.until = Deadline(now.monotonic_ms + limit_ms);
    }

    pub fn on_packet(&mut self, now: Now, packet: FromLeader<'_>, out: &mut Output) {
        self.on_progress(now);
        if let Err(fault) = self.take(now, packet, out) {
            out.fault = Some(fault);
        }
    }

    pub fn on_stored(&mut self, now: Now, stored: Durable, out: &mut Output) {
        self.on_progress(now);
        match (&mut self.stage, stored) {
            (Stage::Accepting { epoch }, Durable::AcceptedEpoch(accepted))
                if *epoch == accepted =>
            {
                self.accepted = accepted;
                self.agree(accepted, Some(self.current), out);
            }
            (Stage::Synchronization { joining, .. }, stored)
                if joining.operation == Operation::Underway(stored) =>
            {
                joining.operation = Operation::Done(Some(stored));
                match stored {
                    Durable::Snapshot(zxid) => {
                        self.history.replace(zxid);
                        self.synced = zxid;
                    }
                    Durable::Truncated(zxid) => {
                        self.history.truncate_after(zxid);
                        self.synced = zxid;
                    }
                    Durable::AcceptedEpoch(_) | Durable::CurrentEpoch(_) => {
                        unreachable!("no operation stores an epoch")
                    }
                }
                self.go_on(now, out);
            }
            (Stage::Synchronization { joining, .. }, Durable::CurrentEpoch(current))
                if joining.rising_to == Some(current) =>
            {
                joining.rising_to = None;
                self.current = current;
                self.go_on(now, out);
            }
            (Stage::Synchronization { epoch, joining }, Durable::CurrentEpoch(current))
                if *epoch == current && joining.new_leader == NewLeader::Storing =>
            {
                self.current = current;
                self.accept_new_leader(now, out);
            }
            _ => {}
        }
    }

    /// All up to here is synced.
    pub fn on_synced(&mut self, now: Now, zxid: Zxid, out: &mut Output) {
        self.synced = zxid.max(self.synced);
        self.go_on(now, out);
        self.acknowledge(out);
    }

    /// Whether NEWLEADER is acknowledged.
    fn is_joined(&self) -> bool {
        match &self.stage {
            Stage::Discovery | Stage::Accepting { .. } => false,
            Stage::Synchronization { joining, .. } => joining.new_leader == NewLeader::Acked,
            Stage::Broadcast { .. } => true,
        }
    }

    fn take(&mut self, now: Now, packet: FromLeader<'_>, out: &mut Output) -> Result<(), Fault> {
        match &mut self.stage {
            Stage::Discovery => match packet {
                FromLeader::LeaderInfo { epoch, protocol_version } => {
                    self.on_leader_info(epoch, protocol_version, out)
                }
                _ => Err(Fault::OutOfPlace { what: "another packet", stage: "discovery" }),
            },
            Stage::Accepting { .. } => {
                Err(Fault::OutOfPlace { what: "a packet", stage: "discovery, before ACKEPOCH" })
            }
            Stage::Synchronization { .. } => self.on_sync_packet(now, packet, out),
            Stage::Broadcast { .. } => self.on_live_packet(packet, out),
        }
    }

    fn on_leader_info(
        &mut self,
        epoch: Epoch,
        protocol_version: i32,
        out: &mut Output,
    ) -> Result<(), Fault> {
        if protocol_version < PROTOCOL_VERSION {
            return Err(Fault::ProtocolVersion(protocol_version));
        }
        if epoch < self.accepted {
            return Err(Fault::StaleEpoch { accepted: self.accepted, offered: epoch });
        }
        if epoch == self.accepted {
            // It was accepted before: this is no agreement to it.
            self.agree(epoch, None, out);
        } else {
            self.stage = Stage::Accepting { epoch };
            out.stores.push(Durable::AcceptedEpoch(epoch));
            if self.settings.is_mutant(Mutant::AckEpochBeforeAccepted) {
                self.agree(epoch, Some(self.current), out);
            }
        }
        Ok(())
    }

    fn agree(&mut self, epoch: Epoch, current: Option<Epoch>, out: &mut Output) {
        let joining = Joining {
            operation: Operation::Awaited,
            received: VecDeque::new(),
            received_bytes: 0,
            rising_to: None,
            committed: Zxid(i64::MIN),
            new_leader: NewLeader::Awaited,
        };
        self.stage = Stage::Synchronization { epoch, joining };
        let last = if self.wants_all { NO_HISTORY } else { self.last() };
        out.sends.push(ToLeader::AckEpoch { last, current });
    }

    fn on_sync_packet(
        &mut self,
        now: Now,
        packet: FromLeader<'_>,
        out: &mut Output,
    ) -> Result<(), Fault> {
        let last = self.last();
        let Stage::Synchronization { epoch, joining } = &mut self.stage else { unreachable!() };
        let stage = "synchronization";
        let receive = |zxid, txn: TxnPayload<'_>, joining: &mut Joining| {
            joining.receive(self.settings, last, zxid, txn)
        };
        match packet {
            FromLeader::Diff { .. } | FromLeader::Trunc { .. } | FromLeader::Snap { .. }
                if joining.operation != Operation::Awaited =>
            {
                return Err(Fault::OutOfPlace { what: "a second operation", stage });
            }
            FromLeader::Diff { .. } | FromLeader::Trunc { .. } if self.wants_all => {
                let what = "what follows a history that this server has not named";
                return Err(Fault::OutOfPlace { what, stage });
            }
            // Its zxid is the leader's, and says nothing of this server (ZOOKEEPER-2355).
            FromLeader::Diff { zxid } => {
                info!(%zxid, "DIFF from the leader");
                joining.operation = Operation::Done(None);
            }
            FromLeader::Trunc { .. } if self.settings.is_mutant(Mutant::TruncSkipped) => {
                joining.operation = Operation::Done(None);
            }
            FromLeader::Trunc { zxid } => {
                info!(%zxid, "TRUNC from the leader");
                let mut to = zxid;
                if self.settings.is_mutant(Mutant::TruncShort) {
                    let beyond = self.history.iter().find(|proposal| zxid < proposal.zxid);
                    to = beyond.map_or(zxid, |proposal| proposal.zxid);
                }
                joining.operation = Operation::Wanted(Durable::Truncated(to));
            }
            FromLeader::Snap { zxid } => {
                info!(%zxid, "SNAP from the leader");
                joining.operation = Operation::Underway(Durable::Snapshot(zxid));
                out.load = Some(zxid);
            }
            FromLeader::Ping { .. } if joining.new_leader == NewLeader::Acked => {}
            _ if joining.operation == Operation::Awaited => {
                return Err(Fault::OutOfPlace { what: "no operation", stage });
            }
            FromLeader::Proposal { zxid, txn } => receive(zxid, txn, joining)?,
            FromLeader::Commit { zxid } => joining.committed = zxid.max(joining.committed),
            FromLeader::Inform { zxid, txn } => {
                receive(zxid, txn, joining)?;
                joining.committed = zxid.max(joining.committed);
            }
            FromLeader::NewLeader { zxid, .. } => {
                if zxid != Zxid::new(*epoch, 0) || joining.new_leader != NewLeader::Awaited {
                    return Err(Fault::OutOfPlace {
                        what: "a NEWLEADER that is not its own",
                        stage,
                    });
                }
                joining.new_leader = NewLeader::Logging;
            }
            FromLeader::UpToDate if joining.new_leader == NewLeader::Acked => {
                return self.serve(out);
            }
            FromLeader::UpToDate => {
                return Err(Fault::OutOfPlace { what: "UPTODATE before the ACK", stage });
            }
            FromLeader::Ping { .. } | FromLeader::Sync | FromLeader::Revalidate { .. } => {}
            FromLeader::LeaderInfo { .. } => {
                return Err(Fault::OutOfPlace { what: "LEADERINFO", stage });
            }
            // Reconfigurations commit as others do; what they activate is the caller's.
            FromLeader::CommitAndActivate { zxid, .. } => {
                joining.committed = zxid.max(joining.committed);
            }
            FromLeader::InformAndActivate { zxid, txn, .. } => {
                receive(zxid, txn, joining)?;
                joining.committed = zxid.max(joining.committed);
            }
        }
        self.log_history(out)?;
        self.join(now, out);
        Ok(())
    }

    /// The disk has come further.
    fn go_on(&mut self, now: Now, out: &mut Output) {
        if let Err(fault) = self.log_history(out) {
            out.fault = Some(fault);
        }
        self.join(now, out);
    }

    /// Logs what the leader has committed, once the operation is over and until NEWLEADER has been
    /// acknowledged. What comes then waits for UPTODATE.
    fn log_history(&mut self, out: &mut Output) -> Result<(), Fault> {
        let Stage::Synchronization { joining, .. } = &mut self.stage else { return Ok(()) };
        let is_history = matches!(joining.new_leader, NewLeader::Awaited | NewLeader::Logging);
        if !matches!(joining.operation, Operation::Done(_)) || !is_history {
            return Ok(());
        }
        while let Some(found) = joining.next_of_history() {
            let end = self.history.end();
            let is_new = end < found;
            let is_raised = self.settings.is_mutant(Mutant::EpochNotRaised)
                || found.epoch() <= self.current
                || joining.is_snapshot();
            if is_new && !is_raised {
                if joining.rising_to.is_none() && end <= self.synced {
                    joining.rising_to = Some(found.epoch());
                    out.stores.push(Durable::CurrentEpoch(found.epoch()));
                }
                break;
            }
            let proposal = joining.take_first();
            // A snapshot may show it already.
            if is_new {
                follows(self.settings, end, found)?;
                out.appends.push(proposal.clone());
                out.history = Some(found);
                self.history.push(proposal);
            }
        }
        Ok(())
    }

    /// Once NEWLEADER has come and the history is synced, the epoch is this server's.
    fn join(&mut self, now: Now, out: &mut Output) {
        let Stage::Synchronization { epoch, joining } = &mut self.stage else { return };
        if let Operation::Wanted(durable) = joining.operation
            && self.history.end() <= self.synced
        {
            joining.operation = Operation::Underway(durable);
            out.stores.push(durable);
        }
        let is_logged = matches!(joining.operation, Operation::Done(_))
            && joining.next_of_history().is_none()
            && (self.history.end() <= self.synced
                || self.settings.is_mutant(Mutant::EpochBeforeHistory));
        if joining.new_leader != NewLeader::Logging || !is_logged {
            return;
        }
        if self.current == *epoch && !joining.is_snapshot() {
            self.accept_new_leader(now, out);
        } else {
            joining.new_leader = NewLeader::Storing;
            out.stores.push(Durable::CurrentEpoch(*epoch));
            if self.settings.is_mutant(Mutant::NewLeaderBeforeEpoch) {
                self.accept_new_leader(now, out);
            }
        }
    }

    /// All of the leader's history is here, and so is its epoch.
    fn accept_new_leader(&mut self, now: Now, out: &mut Output) {
        let Stage::Synchronization { epoch, joining } = &mut self.stage else { return };
        joining.new_leader = NewLeader::Acked;
        out.sends.push(ToLeader::Ack { zxid: Zxid::new(*epoch, 0) });
        self.on_progress(now);
    }

    /// UPTODATE: what was left of the history shows, and what is proposed is logged.
    fn serve(&mut self, out: &mut Output) -> Result<(), Fault> {
        let Stage::Synchronization { epoch, joining } = &mut self.stage else { unreachable!() };
        let epoch = *epoch;
        let (received, committed) = (std::mem::take(&mut joining.received), joining.committed);
        let end = self.history.end();
        let received: Vec<Proposal> =
            received.into_iter().filter(|proposal| end < proposal.zxid).collect();
        let mut last = end;
        for proposal in &received {
            follows(self.settings, last, proposal.zxid)?;
            last = proposal.zxid;
        }
        out.sends.push(ToLeader::Ack { zxid: Zxid::new(epoch, 0) });
        out.established = Some(epoch);
        out.committed = Some(end);
        self.stage = Stage::Broadcast { unacked: VecDeque::new() };
        received.into_iter().for_each(|proposal| self.log(proposal, out));
        while self.logged.front().is_some_and(|first| first.zxid <= committed) {
            self.commit(out);
        }
        Ok(())
    }

    fn on_live_packet(&mut self, packet: FromLeader<'_>, out: &mut Output) -> Result<(), Fault> {
        match (packet, self.kind) {
            (FromLeader::Proposal { zxid, txn }, Kind::Follower) => {
                self.on_proposal(zxid, txn, out)
            }
            (
                FromLeader::Commit { zxid } | FromLeader::CommitAndActivate { zxid, .. },
                Kind::Follower,
            ) => self.on_commit(zxid, out),
            (
                FromLeader::Inform { zxid, txn } | FromLeader::InformAndActivate { zxid, txn, .. },
                Kind::Observer,
            ) => {
                self.on_proposal(zxid, txn, out)?;
                self.on_commit(zxid, out)
            }
            (FromLeader::Ping { zxid }, _) => {
                out.sends.push(ToLeader::Ping { zxid });
                Ok(())
            }
            // As ZooKeeper, which ignores what it does not expect here.
            _ => Ok(()),
        }
    }

    fn on_proposal(
        &mut self,
        zxid: Zxid,
        txn: TxnPayload<'_>,
        out: &mut Output,
    ) -> Result<(), Fault> {
        let last = self.last();
        if zxid == last || zxid.counter() == 0 {
            // A leader of 3.9 proposes the error of a request that it cannot read under the zxid
            // before it, and waits for the ACK. Before its first proposal that is NEWLEADER's.
            if let Stage::Broadcast { unacked } = &mut self.stage
                && self.kind == Kind::Follower
            {
                unacked.push_back(zxid);
                self.acknowledge(out);
            }
            return Ok(());
        }
        follows(self.settings, last, zxid)?;
        self.log(Proposal { zxid, payload: txn.as_bytes().into() }, out);
        Ok(())
    }

    fn log(&mut self, proposal: Proposal, out: &mut Output) {
        if let Stage::Broadcast { unacked } = &mut self.stage
            && self.kind == Kind::Follower
        {
            unacked.push_back(proposal.zxid);
        }
        out.appends.push(proposal.clone());
        self.logged.push_back(proposal);
        if self.settings.is_mutant(Mutant::AckBeforeSync) {
            self.acknowledge(out);
        }
    }

    fn on_commit(&mut self, zxid: Zxid, out: &mut Output) -> Result<(), Fault> {
        let expected = self.logged.front().map(|first| first.zxid);
        match expected {
            Some(expected) if expected == zxid => {
                self.commit(out);
                Ok(())
            }
            // A COMMIT of what is committed already may still be on its way when the leader
            // answers UPTODATE.
            _ if zxid <= self.history.end() => Ok(()),
            Some(expected) => Err(Fault::CommitOrder { expected, found: zxid }),
            None => Err(Fault::CommitUnproposed { found: zxid }),
        }
    }

    fn commit(&mut self, out: &mut Output) {
        let proposal = self.logged.pop_front().expect("what is committed is logged");
        out.committed = Some(proposal.zxid);
        self.history.push(proposal);
    }

    /// ACKs go out one by one: a leader of Java counts each zxid for itself.
    fn acknowledge(&mut self, out: &mut Output) {
        let Stage::Broadcast { unacked } = &mut self.stage else { return };
        let early = self.settings.is_mutant(Mutant::AckBeforeSync);
        while let Some(zxid) = unacked.pop_front_if(|zxid| early || *zxid <= self.synced) {
            out.sends.push(ToLeader::Ack { zxid });
        }
    }
}

impl Joining {
    /// Whether the leader sends its snapshot.
    fn is_snapshot(&self) -> bool {
        let snapshot = |durable| matches!(durable, Durable::Snapshot(_));
        match self.operation {
            Operation::Wanted(durable) | Operation::Underway(durable) => snapshot(durable),
            Operation::Done(durable) => durable.is_some_and(snapshot),
            Operation::Awaited => false,
        }
    }

    /// Whether what was received waits for the disk, and not for what the leader sends next.
    fn awaits_disk(&self) -> bool {
        matches!(self.operation, Operation::Wanted(_) | Operation::Underway(_))
            || matches!(self.new_leader, NewLeader::Logging | NewLeader::Storing)
            || (self.new_leader == NewLeader::Awaited && self.next_of_history().is_some())
    }

    fn receive(
        &mut self,
        settings: Settings,
        logged: Zxid,
        zxid: Zxid,
        txn: TxnPayload<'_>,
    ) -> Result<(), Fault> {
        // The first one is free: what a snapshot shows already may come again.
        if let Some(last) = self.received.back() {
            if last.zxid == zxid {
                return Ok(());
            }
            follows(settings, last.zxid, zxid)?;
        } else if matches!(self.operation, Operation::Done(_)) && logged < zxid {
            follows(settings, logged, zxid)?;
        }
        self.received_bytes += txn.as_bytes().len();
        let bytes_max = settings.received_bytes_max.saturating_mul(RECEIVED_TIMES_MAX);
        if bytes_max < self.received_bytes {
            return Err(Fault::TooMuch { bytes: self.received_bytes });
        }
        self.received.push_back(Proposal { zxid, payload: txn.as_bytes().into() });
        Ok(())
    }

    /// The first of what is received, if it is committed.
    fn next_of_history(&self) -> Option<Zxid> {
        let first = self.received.front().map(|first| first.zxid);
        first.filter(|first| *first <= self.committed)
    }

    fn take_first(&mut self) -> Proposal {
        let first = self.received.pop_front().expect("there is a first one");
        self.received_bytes -= first.payload.len();
        first
    }
}

/// A leader leaves nothing out, and begins each epoch at its beginning (ZOOKEEPER-4925).
fn follows(settings: Settings, last: Zxid, found: Zxid) -> Result<(), Fault> {
    let is_next = last.0.checked_add(1) == Some(found.0);
    if is_next || (last.epoch() < found.epoch() && found.counter() <= settings.counters_from + 1) {
        Ok(())
    } else {
        Err(Fault::Gap { last, found })
    }
}
