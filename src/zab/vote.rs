//! A vote: who should lead, and with which history.
//!
//! The best history wins: the highest epoch, then the highest zxid, then the highest number of the
//! server (`FastLeaderElection.totalOrderPredicate`). A round of election is numbered; a vote counts
//! in its own round alone.

use crate::types::{Epoch, ServerId, Zxid};

/// Whom a server votes for that may not be voted for itself.
pub const NOBODY: ServerId = ServerId(i64::MIN);

/// The number of a round of election: `electionEpoch` in a notification. It is known in memory
/// alone, and begins at zero in every process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Round(pub i64);

/// `Vote.java`, without the state of the server that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    pub leader: ServerId,
    /// The last transaction in the log of the server that is voted for.
    pub zxid: Zxid,
    /// Its currentEpoch; once it leads, the epoch that it leads. `i64::MIN` from observers.
    pub peer_epoch: i64,
    pub round: Round,
}

impl Vote {
    /// A server's vote for itself.
    #[must_use]
    pub fn for_itself(server: ServerId, zxid: Zxid, epoch: Epoch) -> Vote {
        Vote { leader: server, zxid, peer_epoch: i64::from(epoch.0), round: Round::default() }
    }

    /// The vote of an observer, which is for nobody.
    pub const OF_OBSERVER: Vote =
        Vote { leader: NOBODY, zxid: Zxid(i64::MIN), peer_epoch: i64::MIN, round: Round(0) };

    /// Whether this is for a better leader than `other` is, whatever their rounds are. Whether the
    /// leader may be voted for at all is for the caller to know.
    #[must_use]
    pub fn beats(&self, other: &Vote) -> bool {
        let key = |vote: &Vote| (vote.peer_epoch, vote.zxid, vote.leader);
        key(other) < key(self)
    }
}

/// What a server does, as it tells the others (`QuorumPeer.ServerState`, in the order of the wire).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerState {
    /// It takes part in an election.
    Looking,
    Following,
    Leading,
    Observing,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_decides_then_the_zxid_then_the_number() {
        let vote = |leader, zxid, peer_epoch| Vote {
            leader: ServerId(leader),
            zxid: Zxid(zxid),
            peer_epoch,
            round: Round(leader),
        };
        let ascending =
            [Vote::OF_OBSERVER, vote(9, 9, 0), vote(1, 2, 1), vote(2, 2, 1), vote(1, 3, 1)];
        for (place, lower) in ascending.iter().enumerate() {
            assert!(!lower.beats(lower));
            for higher in &ascending[place + 1..] {
                assert!(higher.beats(lower) && !lower.beats(higher), "{higher:?} {lower:?}");
            }
        }
    }
}
