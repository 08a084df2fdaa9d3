//! What the pipeline does that metrics tell of and nothing else shows.

use std::collections::BTreeMap;

use super::quorum_stats::QuorumCounts;

/// Since it was last asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Transactions of a leader that led to another tree here than there.
    pub digest_mismatches: u64,
    pub ttl_created: u64,
    /// By the reaper, when their time was over.
    pub ttl_deleted: u64,
    /// By namespace, which is the first name of a path. Only those with a quota are in here, which
    /// is fewer than there are znodes.
    pub quota_exceeded: BTreeMap<String, u64>,
    pub quorum: QuorumCounts,
}

impl Counts {
    pub(super) fn exceeded(&mut self, path: &str) {
        let namespace = path.split('/').nth(1).unwrap_or_default();
        match self.quota_exceeded.get_mut(namespace) {
            Some(count) => *count += 1,
            None => {
                self.quota_exceeded.insert(namespace.to_owned(), 1);
            }
        }
    }
}
