//! Ensembles of real processes on loopback: started, killed, stopped, cut off and damaged, under
//! checked load.
//!
//! | file | what is in it |
//! |---|---|
//! | `ensemble.rs` | the processes of an ensemble, and what they say of themselves |
//! | `proxy.rs` | a proxy for each connection between two servers, which can be cut |
//! | `namespaces.rs` | servers in network namespaces of their own, and cables that can be pulled |
//! | `load.rs` | writers that note what was acknowledged, and the check of it |
//! | `chaos.rs` | faults on top of each other |
//! | the others | the tests |
//!
//! All random choices come from `SEED`, which each test prints.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test says what it does, and ends where something does not hold"
)]

mod chaos;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "../e2e/client.rs"]
mod client;
mod crashes;
mod cuts;
mod disks;
mod ensemble;
mod load;
mod namespaces;
#[path = "../support/ports.rs"]
mod ports;
mod proxy;
mod random;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "../e2e/server.rs"]
mod server;
mod serving;
mod starts;
mod strangers;

use std::time::Duration;

/// How long anything may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(60);
