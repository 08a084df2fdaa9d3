//! Who decides: the participants of the ensemble's configuration, and how many of them it takes.
//!
//! While a reconfiguration is under way there are two configurations: the committed one, and the
//! one that a leader has proposed (*last seen*). What is decided then needs a quorum of each, so
//! that it holds whichever of the two comes to be (`QuorumPeer.getLastSeenQuorumVerifier`,
//! `SyncedLearnerTracker`).

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::ensemble::Ensemble;
use crate::types::ServerId;

#[derive(Clone, Debug)]
pub struct Voters {
    committed: Arc<Ensemble>,
    /// Only where its version is above that of the committed one.
    last_seen: Option<Arc<Ensemble>>,
}

impl Voters {
    #[must_use]
    pub fn new(committed: Arc<Ensemble>, last_seen: Option<Arc<Ensemble>>) -> Voters {
        let last_seen = last_seen.filter(|last_seen| committed.version < last_seen.version);
        Voters { committed, last_seen }
    }

    #[must_use]
    pub fn committed(&self) -> &Arc<Ensemble> {
        &self.committed
    }

    /// The committed configuration, then the one that may follow it.
    fn configurations(&self) -> impl Iterator<Item = &Ensemble> {
        std::iter::once(&*self.committed).chain(self.last_seen.as_deref())
    }

    /// Whether a server votes in any of the configurations.
    #[must_use]
    pub fn contains(&self, server: ServerId) -> bool {
        self.configurations().any(|ensemble| ensemble.is_participant(server))
    }

    /// Whether a server is in any of the configurations, in whatever role.
    #[must_use]
    pub fn knows(&self, server: ServerId) -> bool {
        self.configurations().any(|ensemble| ensemble.members.contains_key(&server))
    }

    /// Every server that votes in any of the configurations, in the order of their numbers.
    #[must_use]
    pub fn all(&self) -> BTreeSet<ServerId> {
        self.configurations().flat_map(Ensemble::participants).collect()
    }

    /// Whether these servers together decide. Who does not vote in a configuration does not count
    /// in it.
    #[must_use]
    pub fn is_quorum(&self, servers: &BTreeSet<ServerId>) -> bool {
        self.configurations().all(|ensemble| ensemble.is_quorum(servers))
    }

    /// Whether a server may be voted for: a member of a hierarchical quorum that weighs nothing may
    /// not (`FastLeaderElection.totalOrderPredicate`, which asks the committed configuration).
    #[must_use]
    pub fn may_lead(&self, server: ServerId) -> bool {
        self.committed.weight(server) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ensemble(version: i64, ids: &[i64]) -> Arc<Ensemble> {
        let keys: Vec<_> = ids.iter().map(|id| format!("server.{id}")).collect();
        let lines = keys.iter().map(|key| (key.as_str(), "h:1:2"));
        Arc::new(Ensemble { version, ..Ensemble::parse(lines, false).unwrap() })
    }

    fn ids(ids: &[i64]) -> BTreeSet<ServerId> {
        ids.iter().copied().map(ServerId).collect()
    }

    #[test]
    fn both_configurations_have_to_agree_while_there_are_two() {
        let voters = Voters::new(ensemble(1, &[1, 2, 3]), Some(ensemble(2, &[3, 4, 5])));
        assert_eq!(voters.all(), ids(&[1, 2, 3, 4, 5]));
        assert!(!voters.is_quorum(&ids(&[1, 2])) && !voters.is_quorum(&ids(&[4, 5])));
        assert!(voters.is_quorum(&ids(&[1, 3, 4])));
        let settled = Voters::new(ensemble(2, &[1, 2, 3]), Some(ensemble(2, &[3, 4, 5])));
        assert!(settled.is_quorum(&ids(&[1, 2])) && !settled.contains(ServerId(4)));
    }

    #[test]
    fn who_weighs_nothing_is_not_voted_for() {
        let lines =
            [("server.1", "h:1:2"), ("server.2", "h:1:2"), ("group.1", "1:2"), ("weight.2", "0")];
        let ensemble = Ensemble::parse(lines, false).unwrap();
        let voters = Voters::new(Arc::new(ensemble), None);
        assert!(voters.may_lead(ServerId(1)) && !voters.may_lead(ServerId(2)));
        // A majority asks for no weights, not even of servers that it does not know.
        assert!(Voters::new(self::ensemble(0, &[1]), None).may_lead(ServerId(7)));
    }
}
