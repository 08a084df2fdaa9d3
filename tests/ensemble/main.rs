//! Whole ensembles of what a server's pipeline core runs: `Pipeline` with its Zab, its tree and its
//! sessions. A network that delays, cuts and heals, disks that forget what was not synced, clients
//! that move from server to server; all drawn from a seed.
//!
//! `SEEDS=10000` runs as many seeds; `SEED=17` runs one, `TRACE=1` prints its events.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "what does not hold ends the test")]

mod check;
mod clients;
mod disk;
#[cfg(feature = "mutants")]
mod mutants;
#[path = "../sim/rng.rs"]
#[allow(dead_code, reason = "shared with the simulation of single servers")]
mod rng;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

const SEEDS_DEFAULT: u64 = 200;
/// What must have happened at least once in so many seeds.
const SEEDS_FOR_MARKS: u64 = 100;

#[test]
fn promises_hold_under_faults() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(SEEDS_DEFAULT),
    };
    let count = seeds.end - seeds.start;
    let mut marks: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in seeds {
        let run = catch_unwind(AssertUnwindSafe(|| world::run(seed)));
        let Ok(reached) = run else { panic!("SEED={seed} failed") };
        for mark in reached {
            *marks.entry(mark).or_default() += 1;
        }
    }
    println!("{count} seeds; reached in: {marks:?}");
    if SEEDS_FOR_MARKS <= count {
        for mark in check::MARKS {
            assert!(marks.contains_key(mark), "no seed has reached {mark:?}");
        }
    }
}

/// The same seed, the same run.
#[test]
fn a_run_is_its_seed() {
    for seed in [3, 11] {
        assert_eq!(world::run_with_digest(seed).1, world::run_with_digest(seed).1, "SEED={seed}");
    }
}
