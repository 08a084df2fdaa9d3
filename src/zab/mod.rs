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
pub mod mutants;
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

/// What is asked of the disk and awaited, beside the log's records.
///
/// The disk does what it is asked for in the order in which it is asked, appended records among it,
/// and answers in that order. Each answer says that the thing survives a power loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durable {
    /// The file `acceptedEpoch`.
    AcceptedEpoch(Epoch),
    /// The file `currentEpoch`. If a snapshot was stored since the last one, that snapshot and what
    /// was appended after it take the place of what was on the disk before, in one step: a start
    /// finds the old epoch with the old state, or the new epoch with the new state. From here on, a
    /// server that was not vouched for (`peer::Start::is_vouched_for`) is.
    CurrentEpoch(Epoch),
    /// The log ends exactly at this zxid, and no snapshot goes beyond it. A disk whose log does not
    /// have this zxid changes nothing and answers by `Peer::on_truncate_refused`.
    Truncated(Zxid),
    /// The leader's snapshot, which ends at this zxid. It is on the disk beside what was there, and
    /// what is appended from now on follows it. Until `CurrentEpoch`, a start finds what was there
    /// before: part of a snapshot, or a snapshot without the transactions that make it whole, is no
    /// state to vote with, and Java does not start on a zxid above currentEpoch.
    Snapshot(Zxid),
}

/// What a server has stored when it takes a role.
#[derive(Debug)]
pub struct OwnState {
    pub accepted: Epoch,
    pub current: Epoch,
    /// All that is logged.
    pub history: history::History,
    /// What of it is synced.
    pub synced: Zxid,
}

/// How long servers wait for each other, and for how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub tick_ms: i64,
    /// In ticks.
    pub init_limit: i64,
    pub sync_limit: i64,
    /// How much a learner takes of what its leader sends while its own disk is behind: while a
    /// snapshot is loaded, and until the history is synced. Beyond it, the link is not read.
    pub received_bytes_max: usize,
    /// How much may be appended and not synced. Beyond it, nothing is taken that is to be logged.
    pub unsynced_bytes_max: usize,
    /// A new epoch's first transaction has the number after this one: zero, but where the last number
    /// of an epoch is tried (`testingonly.initialZxid` in ZooKeeper).
    pub counters_from: u32,
    #[cfg(feature = "mutants")]
    pub mutant: Option<mutants::Mutant>,
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
