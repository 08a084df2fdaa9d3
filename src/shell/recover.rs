//! Recovery on real files: the steps of `storage::recovery`, done, and its notes, logged.
//!
//! Everything is read with ordinary reads. A page of a map that cannot be read is a SIGBUS; a read
//! is an error that names the file. Reads go past the page cache where the file system knows such
//! reads; elsewhere the kernel is told to forget the pages first.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::directories::{Directories, DirectoryError, names, sync_directory};
use super::sys;
use super::zeroed::is_unsupported;
use crate::pipeline::{
    ALL_PUBLISHED, OnMismatch, Restore, RestoreError, RestoreSettings, Restored,
};
use crate::storage::blocks::BLOCK_BYTES;
use crate::storage::recovery::{self, Files, Note, Options, RecoveryError};
use crate::storage::standing::{Recent, Standing, recover_member};
use crate::storage::watermark::Watermark;
use crate::storage::{self, Listing, QUICK_BYTES, SnapshotFile};
use crate::tree;
use crate::types::Zxid;
use crate::zab::history::Cache;

/// How a directory is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecoverOptions {
    pub(crate) tree: tree::Settings,
    /// Whether logs without any snapshot may be served.
    pub(crate) trust_empty: bool,
    /// What comes of a tree whose digest is not the one that was written.
    pub(crate) on_mismatch: OnMismatch,
    /// Whether a log of this process goes on in these directories: nothing in them is changed then.
    pub(crate) is_live: bool,
    /// What else counts for a member of an ensemble; `None` for a server by itself.
    pub(crate) member: Option<MemberOptions>,
}

/// How a member of an ensemble reads its directories.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemberOptions {
    /// Whether a directory without any database is one with an empty database.
    pub(crate) autocreate: bool,
    /// The last transactions are kept for learners that lack a few, and are not published yet: so many.
    pub(crate) cache: Cache,
}

/// A directory that cannot be served. Nothing in it has been changed.
pub(crate) type RecoverError = RecoveryError<io::Error, RestoreError>;

/// What a directory came to.
pub(crate) struct Recovered {
    pub(crate) state: Restored,
    /// The snapshot it was loaded from.
    pub(crate) snapshot: Option<Zxid>,
    pub(crate) watermark: Option<Watermark>,
    /// The last transactions, with their payloads: of a member of an ensemble.
    pub(crate) recent: Recent,
    /// What a member of an ensemble may say of itself; `None` of a server by itself.
    pub(crate) standing: Option<Standing>,
    /// How long reading the snapshot took, and the logs after it.
    pub(crate) snapshot_took: Duration,
    pub(crate) replay_took: Duration,
}

/// Reads the newest snapshot that can be believed, and all transactions after it.
pub(crate) fn recover(
    directories: &Directories,
    options: RecoverOptions,
) -> Result<Recovered, RecoverError> {
    let began = Instant::now();
    let mut files = Disk::new();
    let RecoverOptions { tree, trust_empty, on_mismatch, is_live, member } = options;
    let options = Options {
        data_dir: directories.data_dir(),
        data_log_dir: directories.data_log_dir(),
        settings: RestoreSettings {
            tree,
            on_mismatch,
            unpublished_max: member.map_or(ALL_PUBLISHED, |member| member.cache),
        },
        trust_empty,
        is_live,
        is_member: member.is_some(),
        recent_max: member.map_or(0, |member| member.cache.count_max),
        #[cfg(feature = "mutants")]
        mutant: None,
    };
    let (recovered, standing) = match member {
        Some(MemberOptions { autocreate, .. }) => {
            let (recovered, standing) =
                recover_member::<_, Restore>(&mut files, &options, autocreate)?;
            (recovered, Some(standing))
        }
        None => (recovery::recover::<_, Restore>(&mut files, &options)?, None),
    };
    let recovery::Recovered { state, snapshot, watermark, replayed, recent } = recovered;
    let (snapshot_took, replay_took) = (files.loaded - began, files.loaded.elapsed());
    let mut state = state.finish();
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
    Ok(Recovered { state, snapshot, watermark, recent, standing, snapshot_took, replay_took })
}

/// Real files.
pub(super) struct Disk {
    /// The file that is being read.
    open: Option<Open>,
    /// When the snapshot was in memory.
    loaded: Instant,
}

struct Open {
    path: PathBuf,
    file: File,
    /// Read past the page cache.
    is_direct: bool,
}

impl Open {
    fn direct(path: &Path) -> io::Result<Open> {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?;
        Ok(Open { path: path.to_path_buf(), file, is_direct: true })
    }

    fn buffered(path: &Path) -> io::Result<Open> {
        let file = File::open(path)?;
        sys::drop_clean_pages(&file)?;
        Ok(Open { path: path.to_path_buf(), file, is_direct: false })
    }

    fn read_at(&self, offset: u64, target: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < target.len() {
            match self.file.read_at(&mut target[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            // Within a block only the end of the file ends a read.
            if self.is_direct && !filled.is_multiple_of(BLOCK_BYTES) {
                break;
            }
        }
        Ok(filled)
    }
}

impl Disk {
    pub(super) fn new() -> Disk {
        Disk { open: None, loaded: Instant::now() }
    }

    fn open(&mut self, path: &Path) -> io::Result<&Open> {
        let open = match self.open.take().filter(|open| open.path == path) {
            Some(open) => open,
            None => match Open::direct(path) {
                Err(error) if is_unsupported(&error) => Open::buffered(path)?,
                open => open?,
            },
        };
        Ok(self.open.insert(open))
    }
}

impl Files for Disk {
    type Error = io::Error;

    fn list(&mut self, directory: &Path) -> io::Result<Option<Vec<(String, u64)>>> {
        // Where a name is a link, what counts is the file that it leads to.
        let followed = |(name, len): (String, u64)| match fs::metadata(directory.join(&name)) {
            Ok(metadata) => (name, metadata.len()),
            // Reading it will say what is wrong.
            Err(_) => (name, len),
        };
        match names(directory) {
            Ok(names) => Ok(Some(names.into_iter().map(followed).collect())),
            Err(DirectoryError::Read { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                Ok(None)
            }
            Err(DirectoryError::Read { source, .. }) => Err(source),
            Err(error) => Err(io::Error::other(error.to_string())),
        }
    }

    fn read(&mut self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        match fs::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn sync(&mut self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn drop_clean_pages(&mut self, path: &Path) -> io::Result<()> {
        self.open = None;
        let is_direct = self.open(path)?.is_direct;
        debug!(path = %path.display(), is_direct, "read from the disk, not from the page cache");
        Ok(())
    }

    fn read_at(&mut self, path: &Path, offset: u64, target: &mut [u8]) -> io::Result<usize> {
        match self.open(path)?.read_at(offset, target) {
            // It can be opened for such reads, and does not know them.
            Err(error) if is_unsupported(&error) => {
                let open = Open::buffered(path)?;
                self.open.insert(open).read_at(offset, target)
            }
            read => read,
        }
    }

    fn make_directory(&mut self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn create(&mut self, path: &Path) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).open(path).map(drop)
    }

    fn append(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new().append(true).open(path)?.write_all(bytes)
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn set_len(&mut self, path: &Path, len: u64) -> io::Result<()> {
        OpenOptions::new().write(true).open(path)?.set_len(len)
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    fn sync_directory(&mut self, path: &Path) -> io::Result<()> {
        sync_directory(if path.as_os_str().is_empty() { Path::new(".") } else { path })
    }

    fn is_loss(error: &io::Error) -> bool {
        // Broken blocks, a file system that notices damage, and a copy that says so.
        [libc::EIO, libc::EUCLEAN, libc::EBADMSG].map(Some).contains(&error.raw_os_error())
    }

    fn tell(&mut self, note: Note<'_>) {
        match note {
            Note::Reading { snapshot } => info!(
                target: "ringkeeper::shell::recover", "Reading snapshot {}", snapshot.display()
            ),
            Note::PassedOver { snapshot, why } => warn!(
                path = %snapshot.display(), why,
                "a snapshot is passed over: an older one or the logs must lead up to it"
            ),
            Note::Loaded { .. } => self.loaded = Instant::now(),
            Note::Rebuilding { first_log } => warn!(
                path = %first_log.display(),
                "no snapshot can be used; the logs go back to the first transaction, and the tree \
                 is made of them alone"
            ),
            Note::TornBefore { cut } => info!(
                path = %cut.path.display(), offset = cut.offset, after = %cut.after,
                cause = %cut.cause, "an earlier log ends with a torn record"
            ),
            Note::Torn { cut, copy: None } => info!(
                path = %cut.path.display(), offset = cut.offset, cause = %cut.cause,
                "a log ends without a record, and is cut"
            ),
            Note::Torn { cut, copy: Some(copy) } => {
                let whole = cut.whole.map_or_else(
                    || "none".to_owned(),
                    |(first, last)| format!("{}..{}", first.zxid, last.zxid),
                );
                warn!(
                    path = %cut.path.display(), offset = cut.offset, after = %cut.after,
                    bytes = cut.end - cut.offset, cause = %cut.cause, whole_records = whole,
                    copy = %copy.display(),
                    "what follows the last whole record was cut off the log, and a copy is kept: it \
                     lies behind the last sync that was recorded"
                );
            }
            Note::NotVouchedFor { why } => warn!(
                why,
                "this server has lost something that it may have acknowledged, or cannot tell: it \
                 neither votes nor leads until a leader's snapshot has replaced its data; nothing has \
                 been changed"
            ),
            Note::Removed { leftover } => {
                debug!(path = %leftover.display(), "a leftover is removed")
            }
            Note::NotRemoved { leftover, error } => {
                warn!(path = %leftover.display(), %error, "a leftover cannot be removed");
            }
        }
    }
}

/// What is in both directories, or in the one.
pub(crate) fn list(directories: &Directories) -> Result<Listing, DirectoryError> {
    let mut files = names(directories.snapshots())?;
    if directories.are_apart() {
        files.extend(names(directories.logs())?);
    }
    Ok(Listing::new(files))
}

/// Whether a snapshot's ends look whole. One that cannot be read is none to count on.
pub(crate) fn is_quick_valid(directory: &Path, file: &SnapshotFile) -> bool {
    let path = directory.join(&file.name);
    let ends = || -> io::Result<(Vec<u8>, Vec<u8>)> {
        let mut source = File::open(&path)?;
        let (mut head, mut tail) = (Vec::new(), Vec::new());
        io::Read::by_ref(&mut source).take(QUICK_BYTES as u64).read_to_end(&mut head)?;
        source.seek(SeekFrom::Start(file.bytes.saturating_sub(QUICK_BYTES as u64)))?;
        source.take(QUICK_BYTES as u64).read_to_end(&mut tail)?;
        Ok((head, tail))
    };
    match ends() {
        Ok((head, tail)) => {
            let is_valid = storage::is_quick_valid(file, &head, &tail);
            if !is_valid {
                warn!(path = %path.display(), "an unfinished or cut snapshot does not count");
            }
            is_valid
        }
        Err(error) => {
            warn!(path = %path.display(), %error, "a snapshot cannot be read");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::data::AclBytes;
    use crate::record::txn::{CreateKind, DIGEST_VERSION, Txn, TxnDigest, TxnHeader};
    use crate::shell::background::{SnapshotBackEnd, SnapshotOptions, write_snapshot};
    use crate::shell::scratch::Scratch;
    use crate::storage::journal::TEMPORARY_NAME as LOG_TEMPORARY_NAME;
    use crate::storage::recovery::SNAPSHOT_TEMPORARY_NAME;
    use crate::storage::replay::ReplayError;
    use crate::storage::{Compression, txnlog};
    use crate::tree::ephemerals;
    use crate::types::SessionId;

    const OPTIONS: RecoverOptions = RecoverOptions {
        tree: tree::Settings {
            types: ephemerals::Types { extended: false, emulate_353: false },
            digest: false,
        },
        trust_empty: false,
        on_mismatch: OnMismatch::Refuse,
        is_live: false,
        member: None,
    };

    const SNAPSHOTS: SnapshotOptions = SnapshotOptions {
        back_end: SnapshotBackEnd::Direct,
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
        let directories =
            Directories::open(scratch.path(), scratch.path(), true).unwrap().made().unwrap();
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
    fn files_that_are_links_are_as_long_as_what_they_lead_to() {
        let scratch = Scratch::new("recover-links");
        let directories = begun(&scratch);
        for (name, bytes) in [
            ("snapshot.0", fs::read(directories.snapshots().join("snapshot.0")).unwrap()),
            ("log.1", log(1..=50)),
        ] {
            let (elsewhere, path) = (scratch.path().join(name), directories.logs().join(name));
            fs::write(&elsewhere, bytes).unwrap();
            let _ = fs::remove_file(&path);
            std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        }
        assert_eq!(recover(&directories, OPTIONS).unwrap().state.last, Zxid(50));
        fs::remove_file(scratch.path().join("snapshot.0")).unwrap();
        let refused = recover(&directories, OPTIONS).err().unwrap().to_string();
        assert!(refused.contains("version-2/snapshot.0: No such file"), "{refused}");
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
        let directories =
            Directories::open(scratch.path(), scratch.path(), true).unwrap().made().unwrap();
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
        let names = [LOG_TEMPORARY_NAME, SNAPSHOT_TEMPORARY_NAME, "snapshot.7.tmp"];
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

    /// The tree's digest as a server with digests would log it after each of these transactions.
    fn digested(txns: &[Txn<'_>], logs_digest: impl Fn(i64) -> bool) -> Vec<u8> {
        let settings = tree::Settings { digest: true, ..OPTIONS.tree };
        let mut tree = tree::TreeWriter::new(settings);
        let mut bytes = Vec::new();
        txnlog::append_header(&mut bytes);
        for (zxid, txn) in (1..).zip(txns) {
            let header = TxnHeader { client_id: 1, cxid: 2, zxid, time: 3, kind: txn.kind() };
            tree.apply(&header, txn, &mut tree::change::Unwatched);
            tree.settle();
            let digest = TxnDigest { version: DIGEST_VERSION, tree_digest: tree.digest() as i64 };
            let digest = logs_digest(zxid).then_some(&digest);
            txnlog::append_txn(&mut bytes, &header, txn, digest);
        }
        bytes
    }

    /// `digest.enabled` may change from one start to the next, and so may what the log holds.
    #[test]
    fn digests_may_be_switched_off_and_on_again() {
        let set = |version| Txn::SetData { path: "/".into(), data: Some(b"x"), version };
        let txns: Vec<_> = (1..=6).map(set).collect();
        for digest in [false, true] {
            let scratch = Scratch::new("recover-digests");
            let directories = begun(&scratch);
            let log = digested(&txns, |zxid| zxid <= 2 || 4 < zxid);
            fs::write(directories.logs().join("log.1"), log).unwrap();
            let tree = tree::Settings { digest, ..OPTIONS.tree };
            let state = recover(&directories, RecoverOptions { tree, ..OPTIONS }).unwrap().state;
            assert_eq!((state.last, state.mismatches), (Zxid(6), 0));
            write_snapshot(directories.snapshots(), SNAPSHOTS, &job(state), None).unwrap();
            for digest in [false, true] {
                let tree = tree::Settings { digest, ..OPTIONS.tree };
                let recovered = recover(&directories, RecoverOptions { tree, ..OPTIONS }).unwrap();
                assert_eq!(recovered.snapshot, Some(Zxid(6)));
            }
        }
    }

    #[test]
    fn znodes_with_a_ttl_are_not_lost_with_a_setting() {
        let types = |extended, emulate_353| ephemerals::Types { extended, emulate_353 };
        let of_353 = ephemerals::CONTAINER_OWNER | 60_000;
        let ttl = Txn::Create {
            kind: CreateKind::Ttl(60_000),
            path: "/ttl".into(),
            data: None,
            acl: AclBytes::OPEN,
            parent_cversion: 1,
        };
        let ephemeral = Txn::Create {
            kind: CreateKind::Node { create2: false, ephemeral: true },
            path: "/ttl".into(),
            data: None,
            acl: AclBytes::OPEN,
            parent_cversion: 1,
        };
        for (txn, client_id, accepted) in [
            (&ttl, 1, [types(true, false), types(true, true)].as_slice()),
            (&ephemeral, of_353, &[types(true, true)]),
            // Of a session that is over, and goes.
            (&ephemeral, 1, &[types(false, false), types(true, false), types(true, true)]),
        ] {
            let scratch = Scratch::new("recover-ttl");
            let directories = begun(&scratch);
            let mut bytes = Vec::new();
            txnlog::append_header(&mut bytes);
            let header = TxnHeader { client_id, cxid: 2, zxid: 1, time: 3, kind: txn.kind() };
            txnlog::append_txn(&mut bytes, &header, txn, None);
            let path = directories.logs().join("log.1");
            fs::write(&path, &bytes).unwrap();
            for types in [types(false, false), types(true, false), types(true, true)] {
                let tree = tree::Settings { types, ..OPTIONS.tree };
                match recover(&directories, RecoverOptions { tree, ..OPTIONS }) {
                    Ok(recovered) => {
                        assert!(accepted.contains(&types), "{types:?}");
                        assert!(recovered.state.tree.newest("/ttl").is_some());
                    }
                    Err(error) => {
                        assert!(!accepted.contains(&types), "{error}");
                        let error = error.to_string();
                        assert!(error.contains("1 znodes, such as \"/ttl\""), "{error}");
                        assert!(error.contains("zookeeper.extendedTypesEnabled=true"), "{error}");
                    }
                }
                assert_eq!(fs::read(&path).unwrap(), bytes);
            }
        }
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

    #[test]
    fn a_member_is_not_vouched_for_where_a_server_by_itself_does_not_start() {
        let scratch = Scratch::new("recover-member");
        let directories = begun(&scratch);
        let path = directories.logs().join("log.1");
        fs::write(&path, log(1..=5)).unwrap();
        let member = Some(MemberOptions {
            autocreate: true,
            cache: Cache { count_max: 2, bytes_max: 1 << 20 },
        });
        let as_member = RecoverOptions { member, ..OPTIONS };
        let Recovered { state, recent, standing, .. } = recover(&directories, as_member).unwrap();
        assert_eq!((state.last, standing.unwrap().doubt), (Zxid(5), None));
        let zxids: Vec<_> = recent.txns.iter().map(|(zxid, _)| zxid.0).collect();
        assert_eq!((recent.after, zxids), (Zxid(3), vec![4, 5]));
        let mut damaged = log(1..=5);
        let third = log(1..=2).len() + 30;
        damaged[third] ^= 1;
        fs::write(&path, &damaged).unwrap();
        assert!(recover(&directories, OPTIONS).is_err());
        let Recovered { state, standing, .. } = recover(&directories, as_member).unwrap();
        let doubt = standing.unwrap().doubt.expect("a record is damaged");
        assert!(doubt.contains("log.1"), "{doubt}");
        assert_eq!(state.last, Zxid::ZERO);
        assert_eq!(fs::read(&path).unwrap(), damaged);
    }
}
