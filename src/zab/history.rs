//! The last transactions of the history, kept in memory for learners that lack a few
//! (`ZKDatabase.committedLog`).
//!
//! There is no gap inside an epoch: what a learner is sent from here is all that there is.

use std::collections::VecDeque;

use super::proposals::Proposal;
use crate::types::Zxid;

#[derive(Debug)]
pub struct History {
    proposals: VecDeque<Proposal>,
    /// `zookeeper.commitLogCount`.
    count_max: usize,
    /// What comes before the first transaction in memory; where the history ends if there is none.
    base: Zxid,
    /// Where the history ends: at the last transaction, or at the start of an epoch that a snapshot
    /// of a leader stood for.
    end: Zxid,
}

impl History {
    /// Begins with what is on the disk up to `end`, and none of it in memory.
    #[must_use]
    pub fn new(count_max: usize, end: Zxid) -> History {
        History { proposals: VecDeque::new(), count_max: count_max.max(1), base: end, end }
    }

    #[must_use]
    pub fn end(&self) -> Zxid {
        self.end
    }

    /// Everything after this one is in memory.
    #[must_use]
    pub fn base(&self) -> Zxid {
        self.base
    }

    /// The next transaction of the history.
    pub fn push(&mut self, proposal: Proposal) {
        let zxid = proposal.zxid;
        assert!(self.end < zxid, "history goes on");
        let follows = zxid == self.end.next() || self.end.epoch() < zxid.epoch();
        assert!(follows, "history has no gap: {zxid} after {}", self.end);
        self.end = zxid;
        self.proposals.push_back(proposal);
        if self.count_max < self.proposals.len()
            && let Some(first) = self.proposals.pop_front()
        {
            self.base = first.zxid;
        }
    }

    /// What comes after `zxid` is no history.
    pub fn truncate_after(&mut self, zxid: Zxid) {
        while self.proposals.back().is_some_and(|last| zxid < last.zxid) {
            self.proposals.pop_back();
        }
        self.end = self.end.min(zxid);
        self.base = self.base.min(zxid);
    }

    /// All is replaced by a snapshot that ends at `zxid`.
    pub fn replace(&mut self, zxid: Zxid) {
        self.proposals.clear();
        (self.base, self.end) = (zxid, zxid);
    }

    /// The transactions in memory, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Proposal> {
        self.proposals.iter()
    }
}
