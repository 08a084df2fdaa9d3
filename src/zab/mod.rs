//! Zab: how servers agree on one order of transactions.
//!
//! A transaction is bytes and a zxid here; what a znode is, this floor does not know.
//!
//! ```text
//! committed <= synced by a quorum <= proposed
//! ```

pub mod election;
pub mod election_links;
pub mod standalone;
pub mod vote;
pub mod voters;
