//! What a member of an ensemble asks the files of: where to cut the log, what a leader's snapshot
//! replaces, and what a learner lacks.
//!
//! Nothing is changed here; `journal.rs` orders the changes. Like recovery, this reads from the disk
//! and not from the page cache. It takes its time: it is for a thread that may wait, and while a
//! truncation or a replacement is looked for, the log is at rest and no snapshot is written.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::types::Zxid;

use super::journal::{LogCut, Replacement, Truncation};
use super::recovery::{FileSource, Files, Places, read_from_disk, whole};
use super::replay::{Stop, each_record, each_record_from};
use super::snapshot_name;
use super::window::{Source as _, Window};
use super::{Compression, Listing, LogFile, QUICK_BYTES, SnapshotFile, is_quick_valid};

/// A file or a directory that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct HistoryError<E: Error + 'static> {
    pub path: PathBuf,
    pub source: E,
}

fn failed<E: Error + 'static>(path: &Path) -> impl FnOnce(E) -> HistoryError<E> {
    move |source| HistoryError { path: path.to_path_buf(), source }
}

fn list<F: Files>(files: &mut F, places: &Places) -> Result<Listing, HistoryError<F::Error>> {
    let names = places.list(files);
    let names = names.map_err(|(path, source)| HistoryError { path, source })?;
    Ok(Listing::new(names))
}

/// How to take back what comes after `zxid`. History then ends at the last transaction up to there,
/// which is another one if there is no such transaction. `None`: there is no snapshot from which to
/// get there, or the log is damaged before, and only a leader's snapshot helps.
pub fn find_truncation<F: Files>(
    files: &mut F,
    places: &Places,
    zxid: Zxid,
) -> Result<Option<Truncation>, HistoryError<F::Error>> {
    let listing = list(files, places)?;
    let mut base = None;
    for snapshot in listing.snapshots.iter().filter(|snapshot| snapshot.zxid <= zxid) {
        if looks_whole(files, places, snapshot)? {
            base = Some(snapshot.zxid);
            break;
        }
    }
    let Some(base) = base else { return Ok(None) };
    let later_snapshots = listing.snapshots.iter().filter(|snapshot| zxid < snapshot.zxid);
    let mut truncation = Truncation {
        zxid: base,
        cut: None,
        later_logs: Vec::new(),
        later_snapshots: later_snapshots.map(|snapshot| snapshot.name.clone()).collect(),
    };
    for log in listing.logs.iter().rev() {
        let found = match zxid < log.start {
            true => End::default(),
            false => end_up_to(files, places, log, zxid)?,
        };
        match found {
            End { is_damaged: true, .. } => return Ok(None),
            End { last: Some(last), offset, .. } if base <= last => {
                let (name, log) = (log.name.clone(), log.start);
                truncation.cut = Some(LogCut { name, log, offset });
                truncation.zxid = last;
            }
            // All that stays of it is in the snapshot.
            End { last: Some(_), goes_beyond: false, .. } => {}
            _ => {
                truncation.later_logs.insert(0, log.name.clone());
                continue;
            }
        }
        break;
    }
    Ok(Some(truncation))
}

/// What a leader's snapshot that ends with `zxid` replaces.
pub fn find_replacement<F: Files>(
    files: &mut F,
    places: &Places,
    zxid: Zxid,
) -> Result<Replacement, HistoryError<F::Error>> {
    let listing = list(files, places)?;
    let (later_logs, earlier_logs): (Vec<_>, Vec<_>) =
        listing.logs.iter().partition(|log| zxid < log.start);
    let mut cut = None;
    if let Some(log) = earlier_logs.last() {
        let end = match end_up_to(files, places, log, zxid) {
            Err(HistoryError { source, .. }) if F::is_loss(&source) => End::default(),
            end => end?,
        };
        if end.goes_beyond {
            cut = Some(LogCut { name: log.name.clone(), log: log.start, offset: end.offset });
        }
    }
    let own_name = snapshot_name(zxid, Compression::None);
    let (later_snapshots, earlier_snapshots): (Vec<_>, Vec<_>) =
        listing.snapshots.iter().partition(|snapshot| zxid < snapshot.zxid);
    let names = |logs: Vec<&LogFile>| logs.iter().map(|log| log.name.clone()).collect();
    let snapshots = |files: Vec<&SnapshotFile>| {
        let names = files.iter().map(|snapshot| snapshot.name.clone());
        names.filter(|name| *name != own_name).collect()
    };
    Ok(Replacement {
        zxid,
        cut,
        later_logs: names(later_logs),
        later_snapshots: snapshots(later_snapshots),
        earlier_logs: names(earlier_logs),
        earlier_snapshots: snapshots(earlier_snapshots),
    })
}

/// What a learner lacks, and which logs are read for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wanted {
    /// The learner has this one and all before it.
    pub after: Zxid,
    /// The last one that it is to get from the logs, committed and synced.
    pub through: Zxid,
    /// How much may be handed over, as a part of the newest snapshot: beyond that, the snapshot is the
    /// shorter way. Zero: whatever there is. Negative: nothing (`zookeeper.snapshotSizeFactor`, which
    /// ZooKeeper holds against the length of all logs but the first).
    pub size_factor: f64,
}

/// Where a record ends, and so where the next one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The zxid in the log's name.
    log: Zxid,
    offset: usize,
}

/// So much is sooner handed over than a snapshot is loaded, however small that is.
const LOGGED_BYTES_MIN: u64 = 1 << 20;

/// Hands over what a learner lacks, each transaction with the payload of its record. False: the logs do
/// not have all of it without a gap, or it is too much; what was handed over by then is of no use. So
/// it is asked twice: whether all is there, and then for it. `each` may end it early.
///
/// A server that took in a snapshot has no log of what that holds, and ZooKeeper would not notice
/// (ZOOKEEPER-2846): here every transaction must follow the one before.
pub fn read_logged<F: Files>(
    files: &mut F,
    places: &Places,
    wanted: Wanted,
    each: impl FnMut(Zxid, &[u8]) -> ControlFlow<()>,
) -> Result<bool, HistoryError<F::Error>> {
    read_logged_from(files, places, wanted, &mut None, each)
}

/// The same. `place` is where the learner's last transaction ends, where that is known, so that the log
/// is not read up to there; and then where the last one ends that was handed over.
pub fn read_logged_from<F: Files>(
    files: &mut F,
    places: &Places,
    wanted: Wanted,
    place: &mut Option<Place>,
    mut each: impl FnMut(Zxid, &[u8]) -> ControlFlow<()>,
) -> Result<bool, HistoryError<F::Error>> {
    let Wanted { after, through, size_factor } = wanted;
    let listing = list(files, places)?;
    if size_factor < 0.0 {
        return Ok(false);
    }
    let mut bytes_left = bytes_max(files, places, &listing, size_factor)?;
    let (mut last, mut is_whole) = (None, true);
    for log in listing.logs_after(after) {
        if last == Some(through) || !is_whole {
            break;
        }
        let path = &places.logs.join(&log.name);
        // It may be the one being written. What is read of it is on the disk.
        files.drop_clean_pages(path).map_err(failed(path))?;
        let mut source = FileSource { files, path, len: whole(log.bytes) };
        let begin = match place.filter(|place| place.log == log.start) {
            Some(place) => {
                last = last.or(Some(after));
                place.offset
            }
            None => super::txnlog::HEADER_BYTES,
        };
        let stop = each_record_from(&mut source, begin, |record| {
            let zxid = record.zxid();
            if zxid <= after || Some(zxid) == last {
                last = Some(zxid);
                return ControlFlow::Continue(());
            }
            let left = bytes_left.checked_sub(record.payload.len() as u64);
            is_whole = zxid <= through && follows(last, after, zxid) && left.is_some();
            if !is_whole {
                return ControlFlow::Break(());
            }
            (last, bytes_left) = (Some(zxid), left.unwrap_or(0));
            *place = Some(Place { log: log.start, offset: record.end() });
            each(zxid, record.payload)?;
            if zxid == through { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let has_stopped = stop.map_err(failed(path))?.is_none();
        if has_stopped && last != Some(through) {
            // Asked to, or by a gap.
            return Ok(is_whole);
        }
    }
    Ok(is_whole && last == Some(through))
}

/// Whether a transaction is the one after those that were read, or after the learner's last.
fn follows(last: Option<Zxid>, after: Zxid, zxid: Zxid) -> bool {
    let begins_epoch = |before: Zxid| before.epoch() < zxid.epoch() && zxid.counter() == 1;
    match last {
        Some(last) if after <= last => zxid == last.next() || begins_epoch(last),
        // Whether the learner's last is the end of its epoch is not known here.
        _ => zxid == after.next(),
    }
}

/// How much may be handed over instead of a snapshot.
fn bytes_max<F: Files>(
    files: &mut F,
    places: &Places,
    listing: &Listing,
    size_factor: f64,
) -> Result<u64, HistoryError<F::Error>> {
    if size_factor == 0.0 {
        return Ok(u64::MAX);
    }
    for snapshot in listing.snapshots() {
        if looks_whole(files, places, snapshot)? {
            return Ok(LOGGED_BYTES_MIN.max((snapshot.bytes as f64 * size_factor) as u64));
        }
    }
    Ok(u64::MAX)
}

fn looks_whole<F: Files>(
    files: &mut F,
    places: &Places,
    snapshot: &SnapshotFile,
) -> Result<bool, HistoryError<F::Error>> {
    let path = &places.snapshots.join(&snapshot.name);
    read_from_disk(files, path).map_err(failed(path))?;
    let mut source = FileSource { files, path, len: whole(snapshot.bytes) };
    let mut window = Window::new(super::blocks::BLOCK_BYTES);
    let head = window.view(&mut source, 0, QUICK_BYTES).map_err(failed(path))?;
    let head = head[..head.len().min(QUICK_BYTES)].to_vec();
    let tail = source.len().saturating_sub(QUICK_BYTES);
    let tail = window.view(&mut source, tail, QUICK_BYTES).map_err(failed(path))?;
    Ok(is_quick_valid(snapshot, &head, tail))
}

/// Where the records of a log end that are up to some zxid.
#[derive(Debug, Default)]
struct End {
    /// The last of them.
    last: Option<Zxid>,
    offset: u64,
    goes_beyond: bool,
    /// What comes before the zxid cannot be read.
    is_damaged: bool,
}

fn end_up_to<F: Files>(
    files: &mut F,
    places: &Places,
    log: &LogFile,
    zxid: Zxid,
) -> Result<End, HistoryError<F::Error>> {
    let path = &places.logs.join(&log.name);
    read_from_disk(files, path).map_err(failed(path))?;
    let mut source = FileSource { files, path, len: whole(log.bytes) };
    let mut end = End { offset: super::txnlog::HEADER_BYTES as u64, ..End::default() };
    let stop = each_record(&mut source, |record| {
        if zxid < record.zxid() {
            return ControlFlow::Break(());
        }
        (end.last, end.offset) = (Some(record.zxid()), record.end() as u64);
        ControlFlow::Continue(())
    });
    match stop.map_err(failed(path))? {
        None => end.goes_beyond = true,
        Some(Stop { offset: 0, .. }) => {}
        Some(Stop { cause, .. }) => end.is_damaged = !cause.is_end(),
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::super::damage::{empty_log, history};
    use super::super::memory::*;
    use super::*;

    fn places() -> Places {
        Places::new(Path::new("/data"), Some(Path::new("/logs")))
    }

    fn truncation(memory: &mut Memory, zxid: i64) -> Option<Truncation> {
        find_truncation(memory, &places(), Zxid(zxid)).unwrap()
    }

    fn cut(log: i64, through: i64) -> Option<LogCut> {
        let offset = history(log..=through).len() as u64;
        Some(LogCut { name: super::super::log_name(Zxid(log)), log: Zxid(log), offset })
    }

    #[test]
    fn a_truncation_ends_with_the_last_transaction_up_to_there() {
        let padded = [history(1..=4), vec![0; 9_000]].concat();
        let later = epoch(1, 1);
        let mut memory = Memory::with(&[
            ("snapshot.0", snapshot(0)),
            ("snapshot.6", snapshot(6)),
            ("log.1", padded),
            ("log.5", history(5..=8)),
            ("log.9", empty_log()),
            ("log.100000001", history(later..=epoch(1, 4))),
        ]);
        for (zxid, end, kept, logs, snapshots) in [
            (3, 3, cut(1, 3), 3, 1),
            (4, 4, cut(1, 4), 3, 1),
            (5, 5, cut(5, 5), 2, 1),
            (7, 7, cut(5, 7), 2, 0),
            // There is no such transaction: the epoch ends before.
            (0x77, 8, cut(5, 8), 2, 0),
            (epoch(1, 2), epoch(1, 2), cut(later, epoch(1, 2)), 0, 0),
            // Back to the beginning.
            (0, 0, None, 4, 1),
        ] {
            let found = truncation(&mut memory, zxid).unwrap();
            assert_eq!((found.zxid.0, &found.cut), (end, &kept), "to {zxid:x}");
            assert_eq!(found.later_logs.len(), logs, "to {zxid:x}: {found:?}");
            assert_eq!(found.later_snapshots.len(), snapshots, "to {zxid:x}: {found:?}");
            assert!(found.later_logs.is_sorted_by_key(|name| name.len()));
        }
    }

    #[test]
    fn a_snapshot_ends_what_is_in_no_log() {
        // Joined by a leader's snapshot, or ahead of its own log.
        let mut memory = Memory::with(&[
            ("snapshot.9", snapshot(9)),
            ("log.1", history(1..=4)),
            ("log.c", history(12..=14)),
        ]);
        for zxid in [9, 10, 11] {
            let found = truncation(&mut memory, zxid).unwrap();
            assert_eq!((found.zxid, found.cut), (Zxid(9), None));
            assert_eq!(found.later_logs, ["log.c"]);
        }
        assert_eq!(truncation(&mut memory, 13).unwrap().cut, cut(12, 13));
        // Without one, only the leader's helps.
        assert_eq!(truncation(&mut memory, 8), None);
        let mut unfinished = Memory::with(&[("snapshot.1", half(snapshot(1)))]);
        assert_eq!(truncation(&mut unfinished, 8), None);
    }

    #[test]
    fn what_cannot_be_read_is_not_cut() {
        let mut log = history(1..=6);
        let at = history(1..=3).len() + 40;
        log[at] ^= 1;
        let mut memory = Memory::with(&[("snapshot.0", snapshot(0)), ("log.1", log)]);
        assert_eq!(truncation(&mut memory, 5), None);
        assert_eq!(truncation(&mut memory, 2).unwrap().cut, cut(1, 2));
    }

    #[test]
    fn a_replacement_names_all_that_is_there() {
        let mut memory = Memory::with(&[
            ("snapshot.0", snapshot(0)),
            ("snapshot.5", snapshot(5)),
            ("snapshot.5.gz", snapshot(5)),
            ("snapshot.7", snapshot(7)),
            ("snapshot.8", snapshot(8)),
            ("log.1", history(1..=3)),
            ("log.4", history(4..=6)),
            ("log.7", history(7..=8)),
        ]);
        let found = find_replacement(&mut memory, &places(), Zxid(5)).unwrap();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let expected = Replacement {
            zxid: Zxid(5),
            cut: cut(4, 5),
            later_logs: names(&["log.7"]),
            later_snapshots: names(&["snapshot.8", "snapshot.7"]),
            earlier_logs: names(&["log.1", "log.4"]),
            earlier_snapshots: names(&["snapshot.5.gz", "snapshot.0"]),
        };
        assert_eq!(found, expected);
        // What the disk has lost is replaced as well.
        memory.broken.insert(Memory::path("log.4"));
        assert_eq!(find_replacement(&mut memory, &places(), Zxid(5)).unwrap().cut, None);
        let found = find_replacement(&mut memory, &places(), Zxid(99)).unwrap();
        assert_eq!((found.cut, found.later_logs.len(), found.earlier_logs.len()), (None, 0, 3));
    }

    fn logged(memory: &mut Memory, after: i64, through: i64, size_factor: f64) -> Option<Vec<i64>> {
        // Nothing of a log that is being written is synced for this.
        memory.synced.extend(memory.files.keys().cloned());
        let wanted = Wanted { after: Zxid(after), through: Zxid(through), size_factor };
        let mut zxids = Vec::new();
        let is_whole = read_logged(memory, &places(), wanted, |zxid, payload| {
            assert!(!payload.is_empty());
            zxids.push(zxid.0);
            ControlFlow::Continue(())
        });
        is_whole.unwrap().then_some(zxids)
    }

    #[test]
    fn a_learner_gets_what_the_logs_have_without_a_gap_or_nothing() {
        let (first, last) = (epoch(1, 1), epoch(1, 2));
        let mut memory = Memory::with(&[
            ("snapshot.0", snapshot(0)),
            ("log.3", history(3..=5)),
            ("log.6", [history(6..=8), vec![0; 9_000]].concat()),
            ("log.100000001", history(first..=last)),
        ]);
        let mut of = |after, through| logged(&mut memory, after, through, 0.0);
        assert_eq!(of(3, 7), Some(vec![4, 5, 6, 7]));
        assert_eq!(of(2, 4), Some(vec![3, 4]), "it is the next");
        assert_eq!(of(5, 6), Some(vec![6]));
        assert_eq!(of(7, last), Some(vec![8, first, last]));
        assert_eq!(of(8, first), Some(vec![first]));
        // Where an epoch ends, only its last transaction tells.
        assert_eq!(of(9, last), None);
        assert_eq!(of(1, 4), None, "it lacks one before");
        assert_eq!(of(4, 9), None, "it ends before");
        assert_eq!(of(4, epoch(1, 9)), None);
    }

    #[test]
    fn the_logs_are_read_on_from_where_it_was_ended() {
        let mut memory = Memory::with(&[
            ("snapshot.0", snapshot(0)),
            ("log.1", history(1..=5)),
            ("log.6", history(6..=9)),
        ]);
        memory.synced.extend(memory.files.keys().cloned());
        let mut place = None;
        let mut read = |memory: &mut Memory, after, through| {
            let wanted = Wanted { after: Zxid(after), through: Zxid(through), size_factor: 0.0 };
            let mut zxids = Vec::new();
            let each = |zxid: Zxid, _: &[u8]| {
                zxids.push(zxid.0);
                ControlFlow::Continue(())
            };
            let has_all = read_logged_from(memory, &places(), wanted, &mut place, each).unwrap();
            has_all.then_some(zxids)
        };
        assert_eq!(read(&mut memory, 1, 3), Some(vec![2, 3]));
        // What comes before is not looked at again.
        let log = memory.files.get_mut(&Memory::path("log.1")).unwrap();
        log[40] ^= 1;
        assert_eq!(read(&mut memory, 3, 5), Some(vec![4, 5]));
        assert_eq!(read(&mut memory, 5, 7), Some(vec![6, 7]));
        assert_eq!(read(&mut memory, 7, 9), Some(vec![8, 9]));
        // A place that is another transaction's end is none of this one's.
        assert_eq!(read(&mut memory, 7, 9), None);
    }

    #[test]
    fn a_hole_that_a_snapshot_has_left_is_not_passed_over() {
        let mut memory = Memory::with(&[
            ("snapshot.9", snapshot(9)),
            ("log.1", history(1..=4)),
            ("log.a", history(10..=12)),
        ]);
        assert_eq!(logged(&mut memory, 2, 11, 0.0), None);
        assert_eq!(logged(&mut memory, 9, 11, 0.0), Some(vec![10, 11]));
    }

    #[test]
    fn what_is_more_than_a_snapshot_is_worth_is_not_handed_over() {
        let last = 40_000;
        let mut memory = Memory::with(&[
            ("snapshot.0", snapshot(0)),
            ("log.1", history(1..=5)),
            ("log.6", history(6..=last)),
        ]);
        assert!(LOGGED_BYTES_MIN < memory.files[&Memory::path("log.6")].len() as u64);
        assert_eq!(logged(&mut memory, 3, last, 0.33), None);
        assert_eq!(logged(&mut memory, 3, last, -1.0), None);
        // However small a snapshot is, it has to be loaded.
        assert_eq!(logged(&mut memory, 3, 700, 0.33), Some((4..=700).collect()));
        assert_eq!(logged(&mut memory, last - 2, last, 0.33), Some(vec![last - 1, last]));
        for size_factor in [1e9, 0.0] {
            assert_eq!(logged(&mut memory, 3, last, size_factor), Some((4..=last).collect()));
        }
    }
}
