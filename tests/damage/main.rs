//! Data directories that something has happened to: kills under load, damage, power cuts.
//!
//! | file | what it is |
//! |---|---|
//! | `load.rs` | what a client has written, and the tree after any of it |
//! | `image.rs` | directories as crashes and ends leave them |
//! | `damage.rs` | what is done to a copy of one |
//! | `verdict.rs` | a start on it: served whole, a prefix, refused, or a finding |
//! | `matrix.rs` | all of these by all of those |
//! | `examples.rs` | what was once lost, each as it was seen |
//! | `disk.rs`, `power.rs` | a disk that can be had as it was at any instant; power cuts |

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test says what it does, and ends where something does not hold"
)]

#[allow(dead_code, reason = "shared with other tests")]
#[path = "../e2e/client.rs"]
mod client;
mod damage;
mod disk;
mod examples;
mod image;
mod load;
mod matrix;
#[path = "../support/ports.rs"]
mod ports;
mod power;
mod random;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "../e2e/server.rs"]
mod server;
mod verdict;

use std::time::Duration;

/// How long anything may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(30);
