//! From the simulated disk to a state to go on from: the order of the server's own recovery, and
//! the same pure parts.

use std::io::Cursor;
use std::path::Path;

use ringkeeper::jute::FIELD_BYTES_MAX;
use ringkeeper::pipeline::{Restore, RestoreError, Restored};
use ringkeeper::storage::compression::Decoder;
use ringkeeper::storage::replay::{Options, Replay, ReplayError};
use ringkeeper::storage::snapshot::SnapshotReader;
use ringkeeper::storage::watermark::Watermark;
use ringkeeper::storage::{self, Listing, QUICK_BYTES, SnapshotFile};
use ringkeeper::tree;
use ringkeeper::types::Zxid;

use crate::check::Marks;
use crate::disk::{Disk, DiskError};
use crate::log::{DIRECTORY, DiskMutant, WATERMARK};

/// Why there is nothing to go on from.
#[derive(Debug)]
pub(crate) enum Failure {
    Disk(DiskError),
    /// The directory is refused, which must never happen here: nothing is damaged beyond what a
    /// crash leaves.
    Refused(String),
}

impl From<DiskError> for Failure {
    fn from(error: DiskError) -> Failure {
        Failure::Disk(error)
    }
}

impl From<ReplayError> for Failure {
    fn from(error: ReplayError) -> Failure {
        Failure::Refused(error.to_string())
    }
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Failure {
        Failure::Refused(error.to_string())
    }
}

pub(crate) struct Recovered {
    pub(crate) state: Restored,
    pub(crate) snapshot: Option<Zxid>,
    /// Torn tails that were cut off.
    pub(crate) cuts: usize,
}

pub(crate) fn recover(
    disk: &mut Disk,
    settings: tree::Settings,
    mutant: Option<DiskMutant>,
    marks: &mut Marks,
) -> Result<Recovered, Failure> {
    let listing = Listing::new(disk.list(DIRECTORY));
    let (mut restore, snapshot) = load(disk, &listing, settings, marks)?;
    let from = restore.last();
    let logs = listing.logs_after(from);
    // What only the page cache has is on the disk before anything of it counts; and what a failed
    // sync has lost is not taken from the cache.
    for log in logs {
        let file = disk.find(&path_of(&log.name)).expect("listed");
        if mutant != Some(DiskMutant::RecoveryNotSynced) {
            disk.sync(file)?;
        }
        if mutant != Some(DiskMutant::PageCacheTrusted) {
            disk.drop_clean_pages(file);
        }
    }
    let watermark = match disk.read_name(WATERMARK).map(Watermark::decode) {
        Some(Ok(Some((_, watermark)))) if mutant != Some(DiskMutant::WatermarkIgnored) => {
            Some(watermark)
        }
        Some(Err(damaged)) => return Err(Failure::Refused(damaged.to_string())),
        _ => None,
    };
    let mut replay = Replay::new(Options { from, watermark, payload_bytes_max: FIELD_BYTES_MAX });
    for log in logs {
        let path = path_of(&log.name);
        let bytes = disk.read_name(&path).expect("listed").to_vec();
        replay.log(Path::new(&path), log.start, &bytes, |record| {
            restore
                .replay(&record.header, &record.txn, record.digest.as_ref())
                .map_err(Failure::from)
        })?;
    }
    let replayed = replay.finish()?;
    for cut in &replayed.cuts {
        let name = text(&cut.path);
        if cut.offset == 0 {
            disk.unlink(&name)?;
        } else {
            let file = disk.find(&name).expect("read before");
            if mutant != Some(DiskMutant::TailTaken) {
                disk.set_len(file, cut.offset as usize)?;
            }
            disk.sync(file)?;
            marks.insert("torn tail cut");
        }
    }
    if let Some((path, offset)) = replayed.end.filter(|_| watermark.is_some())
        && let (path, offset) = (text(&path), offset as usize)
        && let Some(file) = disk.find(&path)
        && offset < disk.read_name(&path).map_or(0, <[u8]>::len)
        && mutant != Some(DiskMutant::TailTaken)
    {
        disk.set_len(file, offset)?;
        disk.sync(file)?;
    }
    if mutant != Some(DiskMutant::RecoveryNotSynced) {
        disk.sync_directory(DIRECTORY)?;
    }
    for (name, _) in disk.list(DIRECTORY) {
        if name.ends_with(".tmp") {
            disk.unlink(&path_of(&name))?;
            marks.insert("leftover removed");
        }
    }
    let cuts = replayed.cuts.len();
    Ok(Recovered { state: restore.finish(), snapshot, cuts })
}

fn load(
    disk: &Disk,
    listing: &Listing,
    settings: tree::Settings,
    marks: &mut Marks,
) -> Result<(Restore, Option<Zxid>), Failure> {
    let mut newest = None;
    for file in listing.snapshots().iter().filter(|file| is_quick_valid(disk, file)) {
        let path = path_of(&file.name);
        let bytes = disk.read_name(&path).expect("listed").to_vec();
        let source = Decoder::new(Cursor::new(bytes), file.compression);
        let mut reader = SnapshotReader::new(Path::new(&path), source);
        match Restore::from_snapshot(settings, file.zxid, &mut reader) {
            Ok(restore) => {
                if newest.is_some() {
                    marks.insert("recovered from an older snapshot");
                }
                return Ok((restore, Some(file.zxid)));
            }
            Err(error) => {
                newest.get_or_insert(error);
            }
        }
    }
    if let Some(newest) = newest {
        return Err(Failure::Refused(format!("no snapshot loads: {newest}")));
    }
    if let Some(first) = listing.logs().first() {
        return Err(Failure::Refused(format!("no snapshot, and logs from {}", first.start)));
    }
    Ok((Restore::empty(settings), None))
}

pub(crate) fn is_quick_valid(disk: &Disk, file: &SnapshotFile) -> bool {
    let bytes = disk.read_name(&path_of(&file.name)).unwrap_or_default();
    let head = &bytes[..bytes.len().min(QUICK_BYTES)];
    let tail = &bytes[bytes.len().saturating_sub(QUICK_BYTES)..];
    storage::is_quick_valid(file, head, tail)
}

pub(crate) fn path_of(name: &str) -> String {
    format!("{DIRECTORY}/{name}")
}

fn text(path: &Path) -> String {
    path.to_str().expect("made from a text").to_owned()
}
