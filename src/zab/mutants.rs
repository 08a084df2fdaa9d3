//! Seeded bugs, each of which the simulation of whole ensembles must catch. Only with the feature
//! `mutants`, which is never on in a release.

use super::Settings;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A follower acknowledges a proposal when it is logged, not when it is synced.
    AckBeforeSync,
    /// currentEpoch is stored before the history that it stands for is synced.
    EpochBeforeHistory,
    /// NEWLEADER is acknowledged before currentEpoch is stored.
    NewLeaderBeforeEpoch,
    /// Transactions of a later epoch are logged under the old currentEpoch.
    EpochNotRaised,
    /// ACKEPOCH goes out before acceptedEpoch is stored.
    AckEpochBeforeAccepted,
    /// TRUNC cuts nothing, and the learner goes on.
    TruncSkipped,
    /// A snapshot is kept although NEWLEADER has not come.
    SnapshotKept,
    /// What a follower acknowledged counts after its connection has ended.
    GoneCounted,
    /// A leader counts itself for a proposal that it has not synced.
    OwnAckBeforeSync,
    /// A leader is established before a quorum has its history.
    EstablishedEarly,
    /// A server that has lost its history votes, and may lead.
    LossVotes,
    /// A server that has lost its history names what is left of it.
    LossHidden,
    /// An election begins before the disk has done what the last role asked for.
    ElectionNotAwaited,
    /// A leader goes on whose own log stands still.
    StuckLeads,
    /// TRUNC leaves one transaction too many.
    TruncShort,
    /// A leader leaves one transaction out of the history that it sends.
    DiffWithHole,
    /// A commit takes one acknowledgement less than a quorum.
    CommitOneShort,
    /// An observer counts for the quorum that has a leader's history.
    ObserverCounted,
    /// A leader takes the last epoch that was accepted, and not the next.
    EpochReused,
    /// A leader that hears no quorum goes on.
    QuorumLossIgnored,
}

impl Mutant {
    pub const ALL: [Mutant; 20] = [
        Mutant::AckBeforeSync,
        Mutant::EpochBeforeHistory,
        Mutant::NewLeaderBeforeEpoch,
        Mutant::EpochNotRaised,
        Mutant::AckEpochBeforeAccepted,
        Mutant::SnapshotKept,
        Mutant::OwnAckBeforeSync,
        Mutant::EstablishedEarly,
        Mutant::LossVotes,
        Mutant::TruncSkipped,
        Mutant::ElectionNotAwaited,
        Mutant::GoneCounted,
        Mutant::LossHidden,
        Mutant::StuckLeads,
        Mutant::TruncShort,
        Mutant::DiffWithHole,
        Mutant::CommitOneShort,
        Mutant::ObserverCounted,
        Mutant::EpochReused,
        Mutant::QuorumLossIgnored,
    ];
}

impl Settings {
    #[cfg(feature = "mutants")]
    pub(super) fn is_mutant(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    #[cfg(not(feature = "mutants"))]
    #[expect(clippy::unused_self, reason = "the same call with and without mutants")]
    pub(super) fn is_mutant(&self, _: Mutant) -> bool {
        false
    }
}
