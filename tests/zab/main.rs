//! The parts of Zab, each among several servers: a network that delays, cuts and heals, servers
//! that end and come back, all drawn from a seed.
//!
//! `SEEDS=10000` runs as many seeds; `SEED=17` runs one, `TRACE=1` prints its events.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "what does not hold ends the test")]

mod cluster;
mod cuts;
mod door;
mod election;
mod history;
#[allow(dead_code, reason = "shared with the simulation of whole pipelines")]
mod invariants;
mod marks;
#[path = "../sim/rng.rs"]
#[allow(dead_code, reason = "shared with the simulation of whole servers")]
mod rng;
#[path = "../support/script.rs"]
mod script;

use std::panic::{AssertUnwindSafe, catch_unwind};

const SEEDS_DEFAULT: u64 = 300;

/// Runs a test for each seed and says which failed.
fn for_each_seed(run: impl Fn(u64)) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(SEEDS_DEFAULT),
    };
    for seed in seeds {
        if catch_unwind(AssertUnwindSafe(|| run(seed))).is_err() {
            panic!("SEED={seed} failed");
        }
    }
}
