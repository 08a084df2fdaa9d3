//! The last transactions of the history, kept in memory for learners that lack a few
//! (`ZKDatabase.committedLog`).
//!
//! There is no gap inside an epoch: what a learner is sent from here is all that there is.

use std::collections::VecDeque;

use super::proposals::Proposal;
use crate::types::Zxid;

/// How much of the history is kept in memory, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// `zookeeper.commitLogCount`.
    pub count_max: usize,
    /// Payloads, all together. ZooKeeper has no such bound: 500 transactions of a megabyte each are
    /// half a gigabyte there.
    pub bytes_max: usize,
}

#[derive(Debug)]
pub struct History {
    proposals: VecDeque<Proposal>,
    cache: Cache,
    /// Payloads in memory.
    bytes: usize,
    /// Payloads that were ever pushed.
    pushed_bytes: u64,
    /// What comes before the first transaction in memory; where the history ends if there is none.
    base: Zxid,
    /// Where the history ends: at the last transaction, or at the start of an epoch that a snapshot
    /// of a leader stood for.
    end: Zxid,
}

impl History {
    /// Begins with what is on the disk up to `end`, and none of it in memory.
    #[must_use]
    pub fn new(cache: Cache, end: Zxid) -> History {
        History { proposals: VecDeque::new(), cache, bytes: 0, pushed_bytes: 0, base: end, end }
    }

    /// Moves the history elsewhere, and leaves an empty one in its place.
    pub(super) fn take(&mut self) -> History {
        let empty = History::new(self.cache, Zxid::ZERO);
        std::mem::replace(self, empty)
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

    /// How much was pushed so far: the difference of two moments is what came between.
    #[must_use]
    pub fn pushed_bytes(&self) -> u64 {
        self.pushed_bytes
    }

    /// The next transaction of the history.
    pub fn push(&mut self, proposal: Proposal) {
        let zxid = proposal.zxid;
        assert!(self.end < zxid, "history goes on");
        let follows = zxid == self.end.next() || self.end.epoch() < zxid.epoch();
        assert!(follows, "history has no gap: {zxid} after {}", self.end);
        self.end = zxid;
        self.bytes += proposal.payload.len();
        self.pushed_bytes += proposal.payload.len() as u64;
        self.proposals.push_back(proposal);
        while self.cache.count_max < self.proposals.len() || self.cache.bytes_max < self.bytes {
            let first = self.proposals.pop_front().expect("something is too much");
            self.bytes -= first.payload.len();
            self.base = first.zxid;
        }
    }

    /// What comes after `zxid` is no history.
    pub fn truncate_after(&mut self, zxid: Zxid) {
        while let Some(last) = self.proposals.pop_back_if(|last| zxid < last.zxid) {
            self.bytes -= last.payload.len();
        }
        self.end = self.end.min(zxid);
        self.base = self.base.min(zxid);
    }

    /// All is replaced by a snapshot that ends at `zxid`.
    pub fn replace(&mut self, zxid: Zxid) {
        self.proposals.clear();
        self.bytes = 0;
        (self.base, self.end) = (zxid, zxid);
    }

    /// The transactions in memory, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Proposal> {
        self.proposals.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Epoch;

    fn proposal(counter: u32, bytes: usize) -> Proposal {
        Proposal { zxid: Zxid::new(Epoch(1), counter), payload: vec![0; bytes].into() }
    }

    #[test]
    fn what_is_kept_is_bounded_in_number_and_in_bytes() {
        let mut history = History::new(Cache { count_max: 3, bytes_max: 100 }, Zxid::ZERO);
        (1..=4).for_each(|counter| history.push(proposal(counter, 10)));
        assert_eq!((history.base(), history.iter().count()), (Zxid::new(Epoch(1), 1), 3));
        history.push(proposal(5, 90));
        assert_eq!((history.base(), history.iter().count()), (Zxid::new(Epoch(1), 3), 2));
        // One that is too large alone is history all the same, and not in memory.
        history.push(proposal(6, 101));
        assert_eq!((history.base(), history.end()), (history.end(), Zxid::new(Epoch(1), 6)));
        // What is cut makes room.
        history.push(proposal(7, 60));
        history.push(proposal(8, 40));
        history.truncate_after(Zxid::new(Epoch(1), 7));
        history.push(proposal(8, 40));
        assert_eq!(history.iter().count(), 2);
        history.replace(Zxid::new(Epoch(1), 9));
        history.push(proposal(10, 100));
        assert_eq!(history.iter().count(), 1);
    }
}
