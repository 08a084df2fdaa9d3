//! Zab: how servers agree on one order of transactions.
//!
//! A transaction is bytes and a zxid here; what a znode is, this floor does not know.
//!
//! ```text
//! committed <= synced by a quorum <= proposed
//! ```

pub mod election;
pub mod election_links;
pub mod history;
pub mod leader;
pub mod learner;
pub mod peer;
pub mod proposals;
pub mod standalone;
pub mod sync_plan;
pub mod vote;
pub mod voters;

use crate::types::{Epoch, Zxid};

/// A connection of the quorum port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// What is asked for and awaited, beside the log's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durable {
    AcceptedEpoch(Epoch),
    CurrentEpoch(Epoch),
    /// What is logged behind this zxid is cut, and so is every snapshot that goes beyond it.
    /// `Peer::on_truncated` says where the log ends then.
    Truncated(Zxid),
    /// The state is the leader's snapshot, which ends at this zxid, and nothing else.
    Snapshot(Zxid),
}

/// What a server has when it takes a role.
#[derive(Debug)]
pub struct Own {
    pub accepted: Epoch,
    pub current: Epoch,
    /// All that is logged.
    pub history: history::History,
    /// What of it is synced.
    pub synced: Zxid,
}

/// How long servers wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub tick_ms: i64,
    /// In ticks.
    pub init_limit: i64,
    pub sync_limit: i64,
}

impl Settings {
    #[must_use]
    pub fn init_ms(&self) -> i64 {
        self.tick_ms * self.init_limit
    }

    #[must_use]
    pub fn sync_ms(&self) -> i64 {
        self.tick_ms * self.sync_limit
    }
}
