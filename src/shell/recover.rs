//! From a data directory to a state to go on from.
//!
//! This reads files and hands their bytes on: what they mean is decided by `storage` (torn or
//! damaged) and by `pipeline` (what the tree becomes). Everything is read with ordinary reads. A
//! page of a map that cannot be read is a SIGBUS; a read is an error that names the file.
//!
//! What was replayed may have been in the page cache only, if it was the process and not the
//! machine that crashed. So logs are synced before anything that they hold is served.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use super::directories::{Directories, DirectoryError, names, sync_directory};
use super::marks;
use crate::pipeline::{OnMismatch, Restore, RestoreError, Restored};
use crate::storage::compression::Decoder;
use crate::storage::journal::TEMPORARY_NAME;
use crate::storage::replay::{Cut, Options, Replay, ReplayError};
use crate::storage::snapshot::SnapshotReader;
use crate::storage::watermark::{Watermark, WatermarkDamaged};
use crate::storage::{self, Listing, QUICK_BYTES, SnapshotFile};
use crate::tree;
use crate::types::Zxid;

/// How a directory is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecoverOptions {
    pub(crate) tree: tree::Settings,
    /// Whether logs without any snapshot may be served.
    pub(crate) trust_empty: bool,
    /// What comes of a tree whose digest is not the one that was written.
    pub(crate) on_mismatch: OnMismatch,
    /// The longest field of a record, `jute.maxbuffer` and what servers may add.
    pub(crate) field_bytes_max: usize,
}

/// A directory that cannot be served. Nothing in it has been changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{}: the name says a zxid that no history comes to, so no server has written it; move it \
         away", path.display()
    )]
    Name { path: PathBuf },
    #[error(
        "No snapshot found, but there are log entries. Something is broken! ({} has logs from {first} on; \
         zookeeper.snapshot.trust.empty=true serves what they hold)", path.display()
    )]
    NoSnapshot { path: PathBuf, first: Zxid },
    #[error("{}: none of the {count} snapshots in it can be loaded; the newest: {newest}", path.display())]
    NoneLoads { path: PathBuf, count: usize, newest: Box<RecoverError> },
    #[error("{}: {damage}; remove it to go by the logs alone", path.display())]
    Watermark { path: PathBuf, damage: WatermarkDamaged },
    #[error(transparent)]
    Replay(#[from] ReplayError),
    #[error("{}: {error}", path.display())]
    Restore { path: PathBuf, error: RestoreError },
}

/// What a directory came to.
pub(crate) struct Recovered {
    pub(crate) state: Restored,
    /// The snapshot it was loaded from.
    pub(crate) snapshot: Option<Zxid>,
    pub(crate) watermark: Option<Watermark>,
    /// How long reading the snapshot took, and the logs after it.
    pub(crate) snapshot_took: Duration,
    pub(crate) replay_took: Duration,
}

/// Reads the newest snapshot that loads, and all transactions after it.
pub(crate) fn recover(
    directories: &Directories,
    options: RecoverOptions,
) -> Result<Recovered, RecoverError> {
    let began = Instant::now();
    let listing = list(directories)?;
    if let Some(name) = listing.impossible() {
        let directory = match name.starts_with("log.") {
            true => directories.logs(),
            false => directories.snapshots(),
        };
        return Err(RecoverError::Name { path: directory.join(name) });
    }
    let (mut restore, snapshot) = load(directories, &listing, options)?;
    let loaded = Instant::now();
    let from = restore.last();
    let watermark = read_watermark(directories.watermark())?;
    let mut replay =
        Replay::new(Options { from, watermark, payload_bytes_max: options.field_bytes_max });
    let logs = listing.logs_after(from);
    for log in logs {
        let path = directories.logs().join(&log.name);
        let bytes = fs::read(&path).map_err(|source| io_error(&path, source))?;
        replay.log(&path, log.start, &bytes, |record| {
            restore
                .replay(&record.header, &record.txn, record.digest.as_ref())
                .map_err(|error| RecoverError::Restore { path: path.clone(), error })
        })?;
    }
    let replayed = replay.finish()?;
    for torn in &replayed.torn {
        let Cut { path, offset, cause } = torn;
        info!(path = %path.display(), offset, %cause, "an earlier log ends with a torn record");
    }
    for cut in &replayed.cuts {
        make_cut(cut)?;
    }
    if let Some((path, offset)) = replayed.end.as_ref().filter(|_| watermark.is_some()) {
        cut_zeros(path, *offset).map_err(|source| io_error(path, source))?;
    }
    for log in logs {
        let path = directories.logs().join(&log.name);
        match File::open(&path) {
            Ok(file) => file.sync_all().map_err(|source| io_error(&path, source))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(io_error(&path, source)),
        }
    }
    sync_directory(directories.logs()).map_err(|source| io_error(directories.logs(), source))?;
    remove_leftovers(directories);
    let (snapshot_took, replay_took) = (loaded - began, loaded.elapsed());
    let mut state = restore.finish();
    state.highest_sessions.note_all(&replayed.sessions_before);
    if 0 < state.doubtful_digests {
        warn!(
            count = state.doubtful_digests,
            "digests of the tree differ from those in the log; there are paths beyond ASCII, which \
             servers in Java digest by the character set of their process"
        );
    }
    if let Some(first) = state.first_mismatch {
        warn!(
            count = state.mismatches, %first,
            "served all the same, by ringkeeper.digestMismatch=warn"
        );
    }
    info!(
        target: "ringkeeper::shell::recover",
        "Snapshot loaded in {} ms, highest zxid is {}, digest is {}; {} transactions replayed in {} ms",
        snapshot_took.as_millis(), state.last, state.tree.digest(), state.replayed,
        replay_took.as_millis(),
    );
    Ok(Recovered { state, snapshot, watermark, snapshot_took, replay_took })
}

fn io_error(path: &Path, source: io::Error) -> RecoverError {
    RecoverError::Io { path: path.to_path_buf(), source }
}

/// What is in both directories, or in the one.
pub(crate) fn list(directories: &Directories) -> Result<Listing, DirectoryError> {
    let mut files = names(directories.snapshots())?;
    if directories.are_apart() {
        files.extend(names(directories.logs())?);
    }
    Ok(Listing::new(files))
}

/// The newest snapshot that loads. Each is begun from scratch: nothing of one that failed is left.
fn load(
    directories: &Directories,
    listing: &Listing,
    options: RecoverOptions,
) -> Result<(Restore, Option<Zxid>), RecoverError> {
    let directory = directories.snapshots();
    let mut newest = None;
    let mut count = 0;
    for file in listing.snapshots().iter().filter(|file| is_quick_valid(directory, file)) {
        count += 1;
        match load_one(directory, file, options) {
            Ok(restore) => return Ok((restore, Some(file.zxid))),
            Err(error) => {
                error!(%error, "a snapshot cannot be loaded; an older one is tried");
                newest.get_or_insert(error);
            }
        }
    }
    if let Some(newest) = newest {
        let (path, newest) = (directory.to_path_buf(), Box::new(newest));
        return Err(RecoverError::NoneLoads { path, count, newest });
    }
    match listing.logs().first() {
        Some(first) if !options.trust_empty => Err(RecoverError::NoSnapshot {
            path: directories.logs().to_path_buf(),
            first: first.start,
        }),
        _ => Ok((Restore::empty(options.tree).on_mismatch(options.on_mismatch), None)),
    }
}

fn load_one(
    directory: &Path,
    file: &SnapshotFile,
    options: RecoverOptions,
) -> Result<Restore, RecoverError> {
    let path = directory.join(&file.name);
    info!(target: "ringkeeper::shell::recover", "Reading snapshot {}", path.display());
    let source = File::open(&path).map_err(|source| io_error(&path, source))?;
    let source = Decoder::new(BufReader::with_capacity(1 << 20, source), file.compression);
    let mut reader = SnapshotReader::with_field_bytes_max(&path, source, options.field_bytes_max);
    let RecoverOptions { tree, on_mismatch, .. } = options;
    Restore::from_snapshot_with(tree, on_mismatch, file.zxid, &mut reader)
        .map_err(|error| RecoverError::Restore { path, error })
}

/// Whether a snapshot's ends look whole. One that cannot be read is none to load or to count on.
pub(crate) fn is_quick_valid(directory: &Path, file: &SnapshotFile) -> bool {
    let path = directory.join(&file.name);
    let ends = || -> io::Result<(Vec<u8>, Vec<u8>)> {
        let mut source = File::open(&path)?;
        let (mut head, mut tail) = (Vec::new(), Vec::new());
        source.by_ref().take(QUICK_BYTES as u64).read_to_end(&mut head)?;
        source.seek(SeekFrom::Start(file.bytes.saturating_sub(QUICK_BYTES as u64)))?;
        source.take(QUICK_BYTES as u64).read_to_end(&mut tail)?;
        Ok((head, tail))
    };
    match ends() {
        Ok((head, tail)) => {
            let is_valid = storage::is_quick_valid(file, &head, &tail);
            if !is_valid {
                warn!(path = %path.display(), "an unfinished or cut snapshot is left aside");
            }
            is_valid
        }
        Err(error) => {
            warn!(path = %path.display(), %error, "a snapshot cannot be read");
            false
        }
    }
}

fn read_watermark(path: &Path) -> Result<Option<Watermark>, RecoverError> {
    let found = marks::read_watermark(path).map_err(|source| io_error(path, source))?;
    let found =
        found.map_err(|damage| RecoverError::Watermark { path: path.to_path_buf(), damage })?;
    Ok(found.map(|(_, watermark)| watermark))
}

/// Drops a torn tail, durably: the next log must not follow bytes that are no record.
fn make_cut(cut: &Cut) -> Result<(), RecoverError> {
    let Cut { path, offset, cause } = cut;
    info!(
        path = %path.display(), offset, %cause,
        "the log ends with a torn record, as a crash leaves it; cut: it was never acknowledged"
    );
    let done = if *offset == 0 { fs::remove_file(path) } else { cut_to(path, *offset) };
    done.map_err(|source| io_error(path, source))
}

/// Drops what was allocated behind the last record. A write that a process had begun when it was
/// killed may still be on its way to there, and history will go on elsewhere: to cut the file waits
/// for it and takes it back.
fn cut_zeros(path: &Path, end: u64) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if end < metadata.len() => cut_to(path, end),
        Ok(_) => Ok(()),
        // It had no header, and was removed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn cut_to(path: &Path, len: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(len)?;
    file.sync_all()
}

/// What a crash has left half made. Only what a server of ours or ZooKeeper writes as a log or a
/// snapshot: `currentEpoch.tmp` means something to ZooKeeper.
fn remove_leftovers(directories: &Directories) {
    let of_ours = [TEMPORARY_NAME, super::background::TEMPORARY_NAME];
    for directory in [directories.snapshots(), directories.logs()] {
        let Ok(names) = names(directory) else { continue };
        for (name, _) in names {
            let is_half = name.ends_with(".tmp")
                && (name.starts_with("log.") || name.starts_with("snapshot."));
            if (is_half || of_ours.contains(&name.as_str()))
                && let Err(error) = fs::remove_file(directory.join(&name))
                && error.kind() != io::ErrorKind::NotFound
            {
                warn!(name, %error, "a leftover cannot be removed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::txn::{DIGEST_VERSION, Txn, TxnDigest, TxnHeader};
    use crate::shell::background::{SnapshotOptions, write_snapshot};
    use crate::shell::scratch::Scratch;
    use crate::storage::{Compression, txnlog};
    use crate::types::SessionId;

    const OPTIONS: RecoverOptions = RecoverOptions {
        tree: tree::Settings {
            types: tree::ephemerals::Types { extended: false, emulate_353: false },
            digest: false,
        },
        trust_empty: false,
        on_mismatch: OnMismatch::Refuse,
        field_bytes_max: 1 << 20,
    };

    const SNAPSHOTS: SnapshotOptions = SnapshotOptions {
        compression: Compression::None,
        with_zxid: true,
        retain: 3,
        purge_every: None,
        retry_after: Duration::ZERO,
    };

    fn set_data(out: &mut Vec<u8>, zxid: i64) {
        let data = zxid.to_be_bytes();
        let txn = Txn::SetData { path: "/".into(), data: Some(&data), version: 1 };
        let header = TxnHeader { client_id: 1, cxid: 2, zxid, time: 3, kind: txn.kind() };
        txnlog::append_txn(out, &header, &txn, None);
    }

    fn log(zxids: std::ops::RangeInclusive<i64>) -> Vec<u8> {
        let mut bytes = Vec::new();
        txnlog::append_header(&mut bytes);
        zxids.for_each(|zxid| set_data(&mut bytes, zxid));
        bytes
    }

    /// Directories with a snapshot of an empty tree.
    fn begun(scratch: &Scratch) -> Directories {
        let directories = Directories::open(scratch.path(), scratch.path(), true).unwrap();
        let job = job(Restore::empty(OPTIONS.tree).finish());
        write_snapshot(directories.snapshots(), SNAPSHOTS, &job, None).unwrap();
        directories
    }

    fn job(mut restored: Restored) -> crate::pipeline::SnapshotJob {
        restored.tree.publish(restored.last);
        crate::pipeline::SnapshotJob {
            zxid: restored.last,
            digest: None,
            sessions: Vec::new(),
            acls: restored.tree.acl_lists(),
            reader: restored.tree.reader(),
        }
    }

    #[test]
    fn what_lies_behind_the_last_record_is_cut() {
        let scratch = Scratch::new("recover-zeros");
        let path = scratch.path().join("log.1");
        fs::write(&path, [7; 100]).unwrap();
        cut_zeros(&path, 40).unwrap();
        assert_eq!(fs::read(&path).unwrap(), [7; 40]);
        // Nothing to cut, or nothing there.
        cut_zeros(&path, 40).unwrap();
        fs::remove_file(&path).unwrap();
        cut_zeros(&path, 0).unwrap();
    }

    #[test]
    fn a_torn_tail_is_cut_once_and_what_is_before_it_stays() {
        let scratch = Scratch::new("recover-torn");
        let directories = begun(&scratch);
        let path = directories.logs().join("log.1");
        let whole = log(1..=3);
        let mut torn = log(1..=4);
        torn.truncate(whole.len() + 20);
        torn.resize(64 << 10, 0);
        fs::write(&path, torn).unwrap();
        for _ in 0..2 {
            let recovered = recover(&directories, OPTIONS).unwrap();
            assert_eq!((recovered.state.last, recovered.state.replayed), (Zxid(3), 3));
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn a_snapshot_that_does_not_load_gives_way_to_the_one_before() {
        let scratch = Scratch::new("recover-older");
        let directories = begun(&scratch);
        fs::write(directories.logs().join("log.1"), log(1..=5)).unwrap();
        let state = recover(&directories, OPTIONS).unwrap().state;
        write_snapshot(directories.snapshots(), SNAPSHOTS, &job(state), None).unwrap();
        assert_eq!(recover(&directories, OPTIONS).unwrap().snapshot, Some(Zxid(5)));
        let newest = directories.snapshots().join("snapshot.5");
        let mut bytes = fs::read(&newest).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&newest, bytes).unwrap();
        let recovered = recover(&directories, OPTIONS).unwrap();
        assert_eq!((recovered.snapshot, recovered.state.last), (Some(Zxid(0)), Zxid(5)));
    }

    #[test]
    fn a_snapshot_that_did_not_load_is_replaced() {
        let scratch = Scratch::new("recover-replace");
        let directories = begun(&scratch);
        let path = directories.snapshots().join("snapshot.0");
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 1;
        fs::write(&path, bad).unwrap();
        assert!(recover(&directories, OPTIONS).is_err());
        let job = job(Restore::empty(OPTIONS.tree).finish());
        write_snapshot(directories.snapshots(), SNAPSHOTS, &job, None).unwrap();
        assert_eq!(fs::read(&path).unwrap(), good);
        assert_eq!(recover(&directories, OPTIONS).unwrap().snapshot, Some(Zxid(0)));
    }

    #[test]
    fn logs_without_a_snapshot_are_refused_unless_trusted() {
        let scratch = Scratch::new("recover-none");
        let directories = Directories::open(scratch.path(), scratch.path(), true).unwrap();
        fs::write(directories.logs().join("log.1"), log(1..=2)).unwrap();
        let refused = recover(&directories, OPTIONS).err().unwrap().to_string();
        assert!(refused.starts_with("No snapshot found, but there are log entries. "), "{refused}");
        let trusting = RecoverOptions { trust_empty: true, ..OPTIONS };
        assert_eq!(recover(&directories, trusting).unwrap().state.last, Zxid(2));
    }

    #[test]
    fn leftovers_of_ours_go_and_what_zookeeper_needs_stays() {
        let scratch = Scratch::new("recover-left");
        let directories = begun(&scratch);
        let names = [TEMPORARY_NAME, super::super::background::TEMPORARY_NAME, "snapshot.7.tmp"];
        for name in names.into_iter().chain(["currentEpoch.tmp", "acceptedEpoch"]) {
            fs::write(directories.logs().join(name), b"1").unwrap();
        }
        recover(&directories, OPTIONS).unwrap();
        assert!(names.iter().all(|name| !directories.logs().join(name).exists()));
        assert!(directories.logs().join("currentEpoch.tmp").exists());
        assert!(directories.logs().join("acceptedEpoch").exists());
    }

    /// The snapshot has no session, and no transaction follows it.
    #[test]
    fn sessions_that_are_over_are_known_from_the_log_before_the_snapshot() {
        let scratch = Scratch::new("recover-over");
        let directories = begun(&scratch);
        fs::write(directories.logs().join("log.1"), log(1..=5)).unwrap();
        let state = recover(&directories, OPTIONS).unwrap().state;
        write_snapshot(directories.snapshots(), SNAPSHOTS, &job(state), None).unwrap();
        let recovered = recover(&directories, OPTIONS).unwrap();
        assert_eq!((recovered.snapshot, recovered.state.replayed), (Some(Zxid(5)), 0));
        let highest = recovered.state.highest_sessions.of_server_of(SessionId(0));
        assert_eq!(highest, Some(SessionId(1)));
    }

    #[test]
    fn names_beyond_all_history_are_refused_and_those_that_say_none_passed_over() {
        let scratch = Scratch::new("recover-names");
        let directories = begun(&scratch);
        let first = fs::read(directories.snapshots().join("snapshot.0")).unwrap();
        for name in [
            "snapshot.7fffffffffffffff",
            "snapshot.7fffffff00000000.gz",
            "log.7fffffffffffffff",
            "log.7ffffffffffffffe",
        ] {
            let path = directories.logs().join(name);
            fs::write(&path, &first).unwrap();
            let refused = recover(&directories, OPTIONS).err().unwrap().to_string();
            assert!(refused.starts_with(&path.display().to_string()), "{refused}");
            fs::remove_file(path).unwrap();
        }
        for name in [
            "log.ffffffffffffffff",
            "log.8000000000000000",
            "log.-1",
            "log.",
            "log.1.tmp.",
            "snapshot.-7fffffffffffffff",
            "snapshot.8000000000000000",
            "snapshot.ffffffffffffffffffffffffffffffff",
            "snapshot.\u{ff11}",
        ] {
            fs::write(directories.logs().join(name), &first).unwrap();
        }
        fs::write(directories.logs().join("log.1"), log(1..=2)).unwrap();
        let state = recover(&directories, OPTIONS).unwrap().state;
        assert_eq!((state.last, state.replayed), (Zxid(2), 2));
    }

    #[test]
    fn a_tree_with_another_digest_is_refused_unless_an_operator_wants_it() {
        let scratch = Scratch::new("recover-digest");
        let directories = begun(&scratch);
        let mut bytes = Vec::new();
        txnlog::append_header(&mut bytes);
        for zxid in 1..=3 {
            let txn = Txn::SetData { path: "/".into(), data: Some(b"x"), version: 1 };
            let header = TxnHeader { client_id: 1, cxid: 2, zxid, time: 3, kind: txn.kind() };
            let digest = TxnDigest { version: DIGEST_VERSION, tree_digest: 5 };
            txnlog::append_txn(&mut bytes, &header, &txn, Some(&digest));
        }
        fs::write(directories.logs().join("log.1"), bytes).unwrap();
        let tree = tree::Settings { digest: true, ..OPTIONS.tree };
        let checking = RecoverOptions { tree, ..OPTIONS };
        let refused = recover(&directories, checking).err().unwrap().to_string();
        assert!(refused.contains("log.1: the tree after 0x1 has digest"), "{refused}");
        assert!(refused.contains("ringkeeper.digestMismatch=warn"), "{refused}");
        let counting = RecoverOptions { on_mismatch: OnMismatch::Count, ..checking };
        let state = recover(&directories, counting).unwrap().state;
        assert_eq!((state.last, state.mismatches), (Zxid(3), 3));
        assert_eq!(state.first_mismatch.map(|first| first.zxid), Some(Zxid(1)));
        assert_eq!(recover(&directories, OPTIONS).unwrap().state.mismatches, 0);
    }

    #[test]
    fn a_log_that_jumps_beyond_all_history_is_refused() {
        let scratch = Scratch::new("recover-jump");
        let directories = begun(&scratch);
        let mut bytes = log(1..=2);
        set_data(&mut bytes, 0x7fff_ffff << 32 | 1);
        fs::write(directories.logs().join("log.1"), bytes).unwrap();
        let refused = recover(&directories, OPTIONS).err().unwrap();
        assert!(matches!(refused, RecoverError::Replay(ReplayError::Gap { .. })), "{refused}");
    }

    #[test]
    fn a_hole_between_logs_is_refused() {
        let scratch = Scratch::new("recover-hole");
        let directories = begun(&scratch);
        fs::write(directories.logs().join("log.1"), log(1..=3)).unwrap();
        fs::write(directories.logs().join("log.5"), log(5..=6)).unwrap();
        let refused = recover(&directories, OPTIONS).err().unwrap();
        assert!(matches!(refused, RecoverError::Replay(ReplayError::Gap { .. })), "{refused}");
        assert_eq!(fs::read(directories.logs().join("log.1")).unwrap(), log(1..=3));
    }
}
