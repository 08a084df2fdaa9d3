//! An ensemble of one: what is synced here is committed.

use crate::types::Zxid;

/// Proposes and commits alone.
#[derive(Debug)]
pub struct Standalone {
    proposed: Zxid,
    committed: Zxid,
}

impl Standalone {
    /// Begins where the history on the disk ends.
    #[must_use]
    pub fn new(last: Zxid) -> Standalone {
        Standalone { proposed: last, committed: last }
    }

    /// The zxid for the next transaction.
    pub fn propose(&mut self) -> Zxid {
        self.proposed = self.proposed.next();
        self.proposed
    }

    #[must_use]
    pub fn proposed(&self) -> Zxid {
        self.proposed
    }

    #[must_use]
    pub fn committed(&self) -> Zxid {
        self.committed
    }

    /// The log is durable up to `zxid`. Says up to where that commits.
    pub fn on_synced(&mut self, zxid: Zxid) -> Zxid {
        assert!(zxid <= self.proposed, "only what was proposed can be logged");
        self.committed = self.committed.max(zxid);
        self.committed
    }
}
