//! Seeded bugs: each must be caught. A checker counts only once it has caught the bug that it is
//! there for.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ringkeeper::pipeline::Mutant;

use crate::world;

/// So many seeds may pass before a mutant is caught.
const SEEDS_MAX: u64 = 2_000;

/// `SyncNotAwaited` shows on observers alone, and no more than once in ten thousand seeds: it is a
/// story of its own (`a_sync_on_an_observer_waits_for_what_was_proposed_before` in the pipeline).
const ALL: &[Mutant] = &[
    Mutant::AnswerBeforeSync,
    Mutant::EphemeralsSurviveClose,
    Mutant::ShownWhenLogged,
    Mutant::AnsweredOutOfOrder,
    Mutant::OwnerNotChecked,
    Mutant::CutStaysInTree,
    Mutant::RollBackKeepsDigest,
    Mutant::RollBackForgetsOwner,
    Mutant::RollBackForgetsSessions,
];

#[test]
fn every_mutant_is_caught() {
    let mut missed = Vec::new();
    for &mutant in ALL {
        let is_caught = |seed| {
            catch_unwind(AssertUnwindSafe(|| world::run_mutant(seed, Some(mutant)))).is_err()
        };
        match (0..SEEDS_MAX).find(|&seed| is_caught(seed)) {
            Some(seed) => println!("{mutant:?}: caught by seed {seed}"),
            None => missed.push(mutant),
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

/// A leader whose tree becomes another one than it says: its followers notice, want everything anew,
/// and in the end all have the same.
#[test]
fn a_tree_that_differs_is_noticed_and_replaced() {
    let noticed: u64 = (0..60)
        .map(|seed| {
            let (marks, _) = world::run_mutant(seed, Some(Mutant::SequenceGoesBack));
            u64::from(marks.contains("a server distrusts its data"))
        })
        .sum();
    assert!(20 < noticed, "noticed in {noticed} of 60 seeds");
}
