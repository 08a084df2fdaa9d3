//! Seeded bugs: each must be caught. A checker counts only once it has caught the bug that it is
//! there for.

use ringkeeper::{pipeline, shard};

use crate::log::DiskMutant;
use crate::run;
use crate::world::Mutant;

/// So many seeds may pass before a mutant is caught.
const SEEDS_MAX: u64 = 300;

/// Every mutant, and one of the promises that it must be seen to break.
const MUTANTS: &[Mutant] = &[
    Mutant::Pipeline(pipeline::Mutant::AnswerBeforeSync),
    Mutant::Pipeline(pipeline::Mutant::MultiAppliedPartly),
    Mutant::Pipeline(pipeline::Mutant::EphemeralsSurviveClose),
    Mutant::Pipeline(pipeline::Mutant::SequenceGoesBack),
    Mutant::Pipeline(pipeline::Mutant::PasswordNotChecked),
    Mutant::Pipeline(pipeline::Mutant::ExpiresEarly),
    Mutant::Pipeline(pipeline::Mutant::ExpiresLate),
    Mutant::Pipeline(pipeline::Mutant::ReportNotAwaited),
    Mutant::Pipeline(pipeline::Mutant::MovedSessionServed),
    Mutant::Pipeline(pipeline::Mutant::FutureClientAccepted),
    Mutant::Pipeline(pipeline::Mutant::WrongErrorCode),
    Mutant::Shard(shard::Mutant::ReplyBeforeEvent),
    Mutant::Shard(shard::Mutant::DropEvent),
    Mutant::Shard(shard::Mutant::DoubleEvent),
    Mutant::Shard(shard::Mutant::ViewBeforeEvents),
    Mutant::Shard(shard::Mutant::ReadBeforeView),
    Mutant::Shard(shard::Mutant::ReadOvertakesWrite),
    Mutant::Shard(shard::Mutant::EventWithoutAcl),
    Mutant::Disk(DiskMutant::NoDirectorySync),
    Mutant::Disk(DiskMutant::AckBeforeSync),
    Mutant::Disk(DiskMutant::AckBeyondSync),
    Mutant::Disk(DiskMutant::FailedSyncIgnored),
    Mutant::Disk(DiskMutant::LengthFirst),
    Mutant::Disk(DiskMutant::SnapshotNotSynced),
    Mutant::Disk(DiskMutant::PurgeTooMuch),
    Mutant::Disk(DiskMutant::WatermarkIgnored),
    Mutant::Disk(DiskMutant::RecoveryNotSynced),
    Mutant::Disk(DiskMutant::PageCacheTrusted),
    Mutant::Disk(DiskMutant::TailTaken),
];

#[test]
fn every_mutant_is_caught() {
    let mut survivors = Vec::new();
    for &mutant in MUTANTS {
        let caught = (0..SEEDS_MAX).find_map(|seed| Some((seed, run(seed, Some(mutant)).err()?)));
        match caught {
            Some((seed, text)) => {
                let line = text.lines().next().unwrap_or_default();
                let line: String = line.chars().take(150).collect();
                eprintln!("{mutant:?}: seed {seed}: {line}");
            }
            None => survivors.push(mutant),
        }
    }
    assert!(survivors.is_empty(), "not caught in {SEEDS_MAX} seeds: {survivors:?}");
}
