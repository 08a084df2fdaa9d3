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
use super::replay::{Stop, each_record};
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
