//! Seeded bugs: each must be caught. A checker counts only once it has caught the bug that it is
//! there for.

use ringkeeper::storage::journal;
use ringkeeper::{pipeline, shard};

use crate::damage;
use crate::log::DiskMutant;
use crate::replacement;
use crate::run;
use crate::truncation;
use crate::world::{Mutant, Sight};

/// So many seeds may pass before a mutant is caught.
const SEEDS_MAX: u64 = 1_000;

const PIPELINE: &[pipeline::Mutant] = &[
    pipeline::Mutant::AnswerBeforeSync,
    pipeline::Mutant::MultiAppliedPartly,
    pipeline::Mutant::EphemeralsSurviveClose,
    pipeline::Mutant::SequenceGoesBack,
    pipeline::Mutant::PasswordNotChecked,
    pipeline::Mutant::ExpiresEarly,
    pipeline::Mutant::ExpiresLate,
    pipeline::Mutant::ReportNotAwaited,
    pipeline::Mutant::MovedSessionServed,
    pipeline::Mutant::FutureClientAccepted,
    pipeline::Mutant::WrongErrorCode,
    pipeline::Mutant::StaleStat,
    pipeline::Mutant::RollNotSplit,
];

const DISK: &[DiskMutant] = &[
    DiskMutant::NoDirectorySync,
    DiskMutant::AckBeforeSync,
    DiskMutant::FailedSyncIgnored,
    DiskMutant::LengthFirst,
    DiskMutant::SnapshotNotSynced,
    DiskMutant::PurgeTooMuch,
    DiskMutant::WatermarkIgnored,
    DiskMutant::RecoveryNotSynced,
    DiskMutant::PageCacheTrusted,
    DiskMutant::TailTaken,
];

/// Those that lose what was acknowledged.
const LOSSES: &[Mutant] = &[
    Mutant::Pipeline(pipeline::Mutant::AnswerBeforeSync),
    Mutant::Disk(DiskMutant::NoDirectorySync),
    Mutant::Disk(DiskMutant::AckBeforeSync),
    Mutant::Journal(journal::Mutant::AckBeyondSync),
    Mutant::Disk(DiskMutant::FailedSyncIgnored),
    Mutant::Disk(DiskMutant::RecoveryNotSynced),
    Mutant::Disk(DiskMutant::PageCacheTrusted),
];

#[test]
fn every_mutant_is_caught() {
    let of_pipeline = PIPELINE.iter().copied().map(Mutant::Pipeline);
    let of_shard = shard::Mutant::ALL.into_iter().map(Mutant::Shard);
    let of_disk = DISK.iter().copied().map(Mutant::Disk);
    let of_journal = [journal::Mutant::AckBeyondSync, journal::Mutant::WatermarkLate];
    let of_journal = of_journal.map(Mutant::Journal);
    catch_all(of_pipeline.chain(of_shard).chain(of_disk).chain(of_journal), Sight::Everything);
}

/// Lost acknowledgements are not only seen because the disk is watched: clients notice.
#[test]
fn every_loss_is_noticed_by_clients() {
    catch_all(LOSSES.iter().copied(), Sight::NotTheDisk);
}

/// Those that show only on a disk that has gone bad.
#[test]
fn every_mutant_that_overlooks_damage_is_caught() {
    for mutant in [
        DiskMutant::EvidenceIgnored,
        DiskMutant::AbsentLogIsEmptyHistory,
        DiskMutant::SnapshotNameBelieved,
        DiskMutant::ForeignLogsTaken,
    ] {
        catch_one(mutant, damage::run);
    }
}

/// Those that show only when a crash comes into a truncation.
#[test]
fn every_mutant_of_a_truncation_is_caught() {
    for mutant in [DiskMutant::WatermarkNotTakenBack, DiskMutant::CopyNotTakenBack] {
        catch_one(mutant, truncation::run);
    }
}

/// Those that show only when a crash comes while a leader's snapshot replaces what was there.
#[test]
fn every_mutant_of_a_replacement_is_caught() {
    for mutant in [
        DiskMutant::WatermarkNotTakenBack,
        DiskMutant::CopyNotTakenBack,
        DiskMutant::LaterLogsKept,
        DiskMutant::LogNotCut,
        DiskMutant::NamedTooEarly,
        DiskMutant::SnapshotNotSynced,
    ] {
        catch_one(mutant, replacement::run);
    }
}

fn catch_one(mutant: DiskMutant, run: fn(u64, Option<DiskMutant>) -> Result<(), String>) {
    let caught = (0..SEEDS_MAX).find_map(|seed| run(seed, Some(mutant)).err());
    let why = caught.unwrap_or_else(|| panic!("{mutant:?} is not caught"));
    eprintln!("{mutant:?}: {why}");
}

fn catch_all(mutants: impl Iterator<Item = Mutant>, sight: Sight) {
    let mut survivors = Vec::new();
    for mutant in mutants {
        let failure = |seed| Some((seed, run(seed, Some(mutant), sight).err()?));
        match (0..SEEDS_MAX).find_map(failure) {
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
