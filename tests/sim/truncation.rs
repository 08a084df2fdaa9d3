//! A truncation as a leader asks for one, with a crash at each of its steps.
//!
//! Whatever the crash leaves is served: a prefix of the history before, with all that was to stay. A
//! truncation that has ended has taken the rest, and what is logged then is what is found.

use std::time::Duration;

use ringkeeper::storage::history::find_truncation;
use ringkeeper::storage::journal::{self, Append, BackEnd};
use ringkeeper::storage::snapshot::Trailer;
use ringkeeper::storage::{Compression, snapshot_name};
use ringkeeper::tree;
use ringkeeper::types::Zxid;

use crate::check::Marks;
use crate::damage::{put, record, snapshot};
use crate::disk::{Disk, DiskError};
use crate::log::{DiskMutant, Layout, LogWriter};
use crate::recovery::{Failure, look, recover};
use crate::rng::Rng;

const SEEDS: u64 = 40;
/// More than a truncation takes.
const STEPS_MAX: u64 = 200;

pub(crate) struct Stage {
    pub(crate) rng: Rng,
    pub(crate) disk: Disk,
    pub(crate) layout: Layout,
    settings: journal::Settings,
    pub(crate) mutant: Option<DiskMutant>,
}

/// A znode's data say which transaction it was, and on which branch of history.
pub(crate) fn append(new_file: bool, first: i64, last: i64, branch: u8) -> Append {
    let data = |zxid: i64| [&zxid.to_be_bytes()[..], &[branch; 40]].concat();
    let records = (first..=last).flat_map(|zxid| record(zxid, &data(zxid))).collect();
    Append { new_file, first: Zxid(first), last: Zxid(last), records }
}

impl Stage {
    pub(crate) fn new(seed: u64, mutant: Option<DiskMutant>) -> Stage {
        let mut rng = Rng::new(seed);
        let layout = if rng.coin() { Layout::Apart } else { Layout::Together };
        let settings = journal::Settings {
            back_end: if rng.coin() { BackEnd::Direct } else { BackEnd::Mapped },
            step_bytes: 4096,
            force_sync: true,
            shaping: None,
            waits_for_answered: false,
        };
        Stage { rng, disk: Disk::default(), layout, settings, mutant }
    }

    pub(crate) fn writer(&mut self, last: i64) -> Result<LogWriter, DiskError> {
        LogWriter::new(&mut self.disk, self.settings, self.layout, Zxid(last), self.mutant)
    }

    /// Runs rounds until nothing is under way.
    pub(crate) fn settle(&mut self, writer: &mut LogWriter) -> Result<(), DiskError> {
        while writer.begin_round(Duration::ZERO) {
            while writer.advance(Duration::ZERO, &mut self.disk, &mut Marks::new())?.is_none() {}
        }
        assert!(writer.is_idle());
        Ok(())
    }

    pub(crate) fn log(&mut self, writer: &mut LogWriter, append: Append) -> Result<(), DiskError> {
        writer.append(Duration::ZERO, &mut self.disk, append)?;
        self.settle(writer)
    }

    /// Some logs and snapshots; says where they end.
    pub(crate) fn live(&mut self) -> (LogWriter, i64) {
        let mut last = 0;
        put(&mut self.disk, "version-2/snapshot.0", &snapshot(0, Trailer::default()));
        let mut writer = self.writer(0).expect("nothing breaks yet");
        for _ in 0..self.rng.between(1, 4) {
            let first = last + 1;
            last += self.rng.between(1, 12);
            self.log(&mut writer, append(true, first, last, 1)).expect("nothing breaks yet");
            if self.rng.coin() {
                let zxid = self.rng.between(first, last);
                let name = snapshot_name(Zxid(zxid), Compression::None);
                let trailer = Trailer { digest: None, last_processed: Some(Zxid(zxid)) };
                put(&mut self.disk, &format!("version-2/{name}"), &snapshot(zxid, trailer));
            }
            if self.rng.coin() {
                writer.keep(Duration::ZERO, &mut self.disk).expect("nothing breaks yet");
            }
        }
        (writer, last)
    }

    fn truncate(&mut self, writer: &mut LogWriter, to: i64) -> Result<(), DiskError> {
        let found = look(&mut self.disk, self.layout, self.mutant, |files, places| {
            find_truncation(files, places, Zxid(to))
        });
        let truncation = found?.expect("there is a snapshot of the beginning");
        assert_eq!(truncation.zxid, Zxid(to), "what stays was logged");
        writer.truncate(truncation);
        self.settle(writer)
    }

    pub(crate) fn crash(&mut self, loses_power: bool) {
        if loses_power {
            self.disk.lose_power(&mut self.rng);
        } else {
            self.disk.kill(&mut self.rng);
        }
    }

    /// What a start finds: the last transaction, and its branch of history.
    fn recover(&mut self) -> Result<(i64, u8), String> {
        let (settings, mut marks) = (tree::Settings::default(), Marks::new());
        match recover(&mut self.disk, self.layout, settings, self.mutant, &mut marks) {
            Ok(mut recovered) => {
                let last = recovered.state.last.0;
                let reader = recovered.state.tree.reader();
                let found = reader.get("/a").ok_or("the znode is gone")?;
                let data = found.data().ok_or("the data are gone")?;
                let zxid = data.first_chunk().map(|zxid| i64::from_be_bytes(*zxid));
                if zxid != Some(last) {
                    return Err(format!("served up to {last:#x} with the data of {zxid:x?}"));
                }
                // A snapshot has no more than the zxid.
                Ok((last, data.get(8).copied().unwrap_or(0)))
            }
            Err(Failure::Refused(why)) => Err(format!("refused: {why}")),
            Err(other) => Err(format!("{other:?}")),
        }
    }
}

/// Truncates with a crash after so many steps of the disk. Says whether it came to its end before.
fn attempt(seed: u64, steps: u64, mutant: Option<DiskMutant>) -> Result<bool, String> {
    let mut stage = Stage::new(seed, mutant);
    let (mut writer, last) = stage.live();
    let to = stage.rng.between(1, last);
    let loses_power = stage.rng.coin();
    let place = |what: &str| format!("{what}, to {to:#x} of {last:#x}, {steps} steps");
    stage.disk.light_fuse(steps);
    let has_ended = match stage.truncate(&mut writer, to) {
        Ok(()) => true,
        Err(DiskError::Crashed) => false,
        Err(error) => return Err(place(&format!("{error:?}"))),
    };
    stage.disk.put_out_fuse();
    drop(writer);
    stage.crash(loses_power);
    let (found, _) = stage.recover().map_err(|why| place(&why))?;
    let latest = if has_ended { to } else { last };
    if !(to..=latest).contains(&found) {
        return Err(place(&format!("{found:#x} is left")));
    }
    // The leader asks again, and history goes on.
    let broken = |error: DiskError| place(&format!("{error:?} without a fault"));
    let mut writer = stage.writer(found).map_err(broken)?;
    stage.truncate(&mut writer, to).map_err(broken)?;
    stage.log(&mut writer, append(true, to + 1, to + 3, 2)).map_err(broken)?;
    drop(writer);
    stage.crash(loses_power);
    match stage.recover().map_err(|why| place(&why))? {
        (found, 2) if found == to + 3 => Ok(has_ended),
        found => Err(place(&format!("went on to {:#x}, and found is {found:x?}", to + 3))),
    }
}

pub(crate) fn run(seed: u64, mutant: Option<DiskMutant>) -> Result<(), String> {
    for steps in 0..STEPS_MAX {
        if attempt(seed, steps, mutant)? {
            return Ok(());
        }
    }
    Err(format!("it does not end within {STEPS_MAX} steps"))
}

#[test]
fn a_truncation_may_crash_at_every_step() {
    for seed in 0..SEEDS {
        run(seed, None).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}
