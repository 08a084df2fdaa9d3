//! From two directories to a state to go on from: what is read, in which order, and what it means.
//!
//! Everything here is decided without a file: each call of `Files` is one step, which the server
//! does on its disk and the simulator on its own, with a crash between any two. What the records
//! become is a `State`, of which nothing is known here.
//!
//! ```text
//! 1. names          of both directories; a name beyond all history is refused
//! 2. watermarks     the one beside the logs and its copy in dataDir; the newer one counts, and the
//!                   logs have to agree with both
//! 3. a snapshot     the newest that loads and whose name is not contradicted
//! 4. the logs       synced, read past the page cache, and applied from the snapshot on
//! 5. is it all?     the watermark, and every snapshot that was passed over, must be reached
//! 6. the changes    torn tails are copied, then cut; leftovers are removed
//! ```
//!
//! Nothing is made, cut or removed before all has been read and accepted: a start that is refused
//! changes nothing. What was replayed may have been in the page cache only, if it was the process
//! and not the machine that crashed; and a cache may hold what a failed sync has lost. So files are
//! synced first and then read from the disk.
//!
//! **Which snapshot.** One that cannot be read (permissions, a broken disk) is refused: nobody
//! knows what is in it. One that is cut, unfinished or damaged is passed over, with a warning, for
//! an older one, if the logs then lead at least up to the zxid in its name. Where none loads, the
//! logs alone are enough if they go back to the first transaction.
//!
//! **Whether its name is true.** A file's name says which transactions it holds, and a copy of an
//! older file under a newer name would hide all between:
//!
//! | the snapshot named `z` says | believed |
//! |---|---|
//! | that it was finished at or after `z` (last processed zxid, else the digest's zxid) | yes |
//! | that it was finished before `z` | no, unless `z` has the number zero of its epoch: a new leader's |
//! | nothing (digest of zeros, or none), and `z` is not beyond the watermark | yes |
//! | nothing, and a log holds a record at or after `z` | yes; the next record must be `z`+1 or begin an epoch |
//! | nothing, and there is no log, or no watermark | yes: restored from a copy, purged, or ZooKeeper's |
//! | nothing, and it is a member of an ensemble, or has epoch files | yes: sent by a leader, or committed by a quorum, beyond the logs here |
//! | nothing, and `z` is beyond the watermark and beyond every log | no: nothing is in a snapshot that was not logged |
//!
//! Of a snapshot that says nothing and is named within the logs, only digests can contradict the name:
//! those of the records that follow it, where log and server have digests. Without any, a tree that
//! lags looks like one that was written while it changed.
//!
//! **What must be there.** The watermark names a log whose header and name were durable before it
//! was named, and it may be behind what was acknowledged: after a power cut by a little, with
//! `forceSync=no` by all of that log. So that log has to be there even where a snapshot holds all
//! that the watermark knows of.
//!
//! | the log that the watermark names | |
//! |---|---|
//! | is there without a header, or ends before the record that the watermark names | refused |
//! | is absent, and so are all others: a purge leaves the newest | refused |
//! | is absent, and an older one is there: a purge takes the oldest first | refused |
//! | is absent, and the oldest one begins behind the first record that the snapshot lacks | refused |
//! | is absent, and later ones go on from within the snapshot: ZooKeeper has purged it | served |
//!
//! A watermark that names a leader's snapshot instead (`Watermark::of_snapshot`) says that nothing of
//! before counts: that snapshot or a newer one has to load, and logs that begin at or before it are not
//! read.
//!
//! What cannot be told: a directory that is another server's from end to end, and begins later than
//! our watermark, looks like the last line. Of a log that is cut behind the watermark nobody knows
//! how long it was; with `forceSync=no` that is any log that has its header.
//!
//! Where logs had a directory of their own and that one has neither logs nor a watermark, but
//! dataDir has the copy of one, history is missing, too.
//!
//! **Whose logs these are.** A watermark names a record by log, end, zxid and checksum. A log with
//! another record in that place is of another history, and refused, whether anything of it is needed
//! or not. The copy of the watermark is asked as well: another server's directory of logs brings
//! that server's watermark along, and then only the copy is ours.
//!
//! **Nothing is cut away without a copy.** What lies between the last record and the last byte that
//! is not zero goes to `ringkeeper.torn/log.<start>.at.<offset>` in dataLogDir first, durably.

use std::cmp::Reverse;
use std::error::Error;
use std::fmt::Display;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::types::Zxid;

use super::Compression;
use super::compression::Decoder;
use super::epoch::{ACCEPTED_EPOCH_NAME, CURRENT_EPOCH_NAME, EpochError};
use super::journal::{EPOCH_TEMPORARY_NAME, RECEIVED_NAME, TEMPORARY_NAME as LOG_TEMPORARY_NAME};
use super::replay::{self, Claim, Cut, NEXT_STEP, Record, Replay, ReplayError, Replayed};
use super::snapshot::{SnapshotReader, Trailer};
use super::standing::Recent;
use super::watermark::{WATERMARK_NAME, Watermark, WatermarkDamaged, is_of_another_time};
use super::window::{Source, Window};
use super::{FileName, Listing, QUICK_BYTES, SnapshotFile, is_quick_valid};

/// The directory in dataDir and dataLogDir that has ZooKeeper's files.
pub const VERSION_NAME: &str = "version-2";
/// The directory in dataLogDir for what was cut off logs.
pub const TORN_NAME: &str = "ringkeeper.torn";
/// The name of a snapshot before it has one.
pub const SNAPSHOT_TEMPORARY_NAME: &str = "ringkeeper-snapshot.tmp";

/// What files of ours are called before they have a name.
const OUR_TEMPORARIES: [&str; 4] =
    [LOG_TEMPORARY_NAME, SNAPSHOT_TEMPORARY_NAME, EPOCH_TEMPORARY_NAME, RECEIVED_NAME];

/// How much of a snapshot is read at once, and of a torn tail when it is copied.
const STEP_BYTES: usize = 4 << 20;

/// Names with the lengths of their files.
pub type Names = Vec<(String, u64)>;

/// The disk. Each call is one step, done or failed when it returns.
pub trait Files {
    type Error: Error + 'static;

    /// The files in a directory and how long each is; `None` if there is no such directory.
    fn list(&mut self, directory: &Path) -> Result<Option<Names>, Self::Error>;

    /// All of a small file; `None` if there is none.
    fn read(&mut self, path: &Path) -> Result<Option<Vec<u8>>, Self::Error>;

    /// Makes durable what the file holds, its length included.
    fn sync(&mut self, path: &Path) -> Result<(), Self::Error>;

    /// From here on, what is read of a synced file is what is on the disk.
    fn drop_clean_pages(&mut self, path: &Path) -> Result<(), Self::Error>;

    /// Fills `target` from `offset` on, as far as the file reaches, and says how far that was.
    fn read_at(
        &mut self,
        path: &Path,
        offset: u64,
        target: &mut [u8],
    ) -> Result<usize, Self::Error>;

    /// Makes a directory for the owner alone, unless it is there.
    fn make_directory(&mut self, path: &Path) -> Result<(), Self::Error>;

    /// Makes an empty file for the owner alone, or empties the one that is there.
    fn create(&mut self, path: &Path) -> Result<(), Self::Error>;

    fn append(&mut self, path: &Path, bytes: &[u8]) -> Result<(), Self::Error>;

    fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Self::Error>;

    fn set_len(&mut self, path: &Path, len: u64) -> Result<(), Self::Error>;

    fn remove(&mut self, path: &Path) -> Result<(), Self::Error>;

    /// Makes the names in a directory durable.
    fn sync_directory(&mut self, path: &Path) -> Result<(), Self::Error>;

    /// Whether an error of reading says that the disk has lost what it held, rather than that it may
    /// not be read.
    fn is_loss(error: &Self::Error) -> bool;

    /// Hears what an operator may want to know.
    fn tell(&mut self, note: Note<'_>);
}

/// What is restored.
pub trait State: Sized {
    type Settings: Copy;
    type Error: Error;

    /// Before the first transaction.
    fn empty(settings: Self::Settings) -> Self;

    /// What a snapshot holds whose name says `zxid`. It is read to its end.
    fn from_snapshot<R: Read>(
        settings: Self::Settings,
        zxid: Zxid,
        snapshot: &mut SnapshotReader<R>,
    ) -> Result<Self, Self::Error>;

    /// Applies the next transaction.
    fn replay(&mut self, record: &Record<'_>) -> Result<(), Self::Error>;

    /// The last transaction so far.
    fn last(&self) -> Zxid;

    /// Whether it can be served as it is, now that all was read: the last that is asked before
    /// anything is changed.
    fn accept(&self) -> Result<(), Self::Error>;

    /// Whether it is the state after the last transaction, and shows nothing of what came later.
    fn is_settled(&self) -> bool {
        true
    }
}

/// What to go by.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a, T> {
    pub data_dir: &'a Path,
    /// Where it is another directory than `data_dir`.
    pub data_log_dir: Option<&'a Path>,
    pub settings: T,
    /// Whether logs without any snapshot may be served.
    pub trust_empty: bool,
    /// Whether a log of this process goes on in these directories, or is about to: nothing in them is
    /// changed then. What is half made is being made.
    pub is_live: bool,
    /// Whether the server is a member of an ensemble: a quorum may commit what is not synced here yet,
    /// so a snapshot may be ahead of the log.
    pub is_member: bool,
    /// How many of the last transactions are handed out for learners that lack a few.
    pub recent_max: usize,
    #[cfg(feature = "mutants")]
    pub mutant: Option<Mutant>,
}

/// Seeded bugs, which the simulation's checkers must catch.
#[cfg(feature = "mutants")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// What is behind the watermark is torn, whatever follows it.
    EvidenceIgnored,
    /// A log that is not there had nothing in it.
    AbsentLogIsEmptyHistory,
    /// A snapshot holds what its name says.
    SnapshotNameBelieved,
    /// Logs are of this history whatever a watermark says of their records.
    ForeignLogsTaken,
}

/// What an operator may want to know.
#[derive(Clone, Copy)]
pub enum Note<'a> {
    Reading {
        snapshot: &'a Path,
    },
    /// A snapshot is not used, and why; an older one or the logs must do.
    PassedOver {
        snapshot: &'a Path,
        why: &'a str,
    },
    /// The snapshot to begin with is in memory, or there is none.
    Loaded {
        zxid: Option<Zxid>,
    },
    /// No snapshot loads, and the logs go back to the first transaction.
    Rebuilding {
        first_log: &'a Path,
    },
    /// Of an earlier log, which history went on from.
    TornBefore {
        cut: &'a Cut,
    },
    /// A torn tail was cut off; where it was copied to, unless it was all zeros.
    Torn {
        cut: &'a Cut,
        copy: Option<&'a Path>,
    },
    Removed {
        leftover: &'a Path,
    },
    NotRemoved {
        leftover: &'a Path,
        error: &'a dyn Display,
    },
    /// A member of an ensemble has lost something, or may have.
    NotVouchedFor {
        why: &'a str,
    },
}

/// Directories that cannot be served. Nothing in them has been changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError<E: Error + 'static, S: Error> {
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        source: E,
        /// Rather than a directory.
        is_file: bool,
    },
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
    #[error(
        "{}: none of the {count} snapshots in it can be loaded, and {}; the newest: {newest}; \
         {NEXT_STEP}", path.display(), Logs(*first_log)
    )]
    NoneLoads { path: PathBuf, count: usize, newest: String, first_log: Option<Zxid> },
    #[error(
        "{}: cannot be used ({why}), and without it history ends at zxid {last}, before the {zxid} \
         in its name; {NEXT_STEP}", path.display()
    )]
    Unreached { path: PathBuf, why: String, zxid: Zxid, last: Zxid },
    #[error("{}: {damage}; remove it to go by the logs alone", path.display())]
    Watermark { path: PathBuf, damage: WatermarkDamaged },
    #[error(
        "{}: not there, but it was begun after zxid {before}, and history went up to zxid {last} at \
         least ({}); is dataLogDir ({}) the right one, and mounted? {NEXT_STEP}; if a snapshot is \
         known to hold all of that log, remove {}",
        path.display(), by.display(), data_log_dir.display(), by.display()
    )]
    LogMissing { path: PathBuf, before: Zxid, last: Zxid, by: PathBuf, data_log_dir: PathBuf },
    #[error(
        "{}: no logs and no {WATERMARK_NAME}, but history went up to zxid {last} at least, with its \
         logs apart from {} ({}); is dataLogDir the right one, and mounted? {NEXT_STEP}; if the \
         logs are not needed any more, remove {}",
        data_log_dir.display(), data_dir.display(), by.display(), by.display()
    )]
    LogsMissing { data_log_dir: PathBuf, data_dir: PathBuf, last: Zxid, by: PathBuf },
    #[error(
        "{}: it cannot be used, and history up to zxid {zxid} was in it alone; {NEXT_STEP}",
        path.display()
    )]
    SnapshotMissing { path: PathBuf, zxid: Zxid },
    #[error("{}: {error}", path.display())]
    Epoch { path: PathBuf, error: EpochError },
    #[error(
        "{}: the accepted epoch, {accepted}, is less than the current epoch, {current}: what this \
         server has promised is forgotten; restore the file", path.display()
    )]
    Promise { path: PathBuf, accepted: i64, current: i64 },
    #[error("{}: the snapshot that the leader has sent cannot be used: {why}", path.display())]
    Received { path: PathBuf, why: String },
    #[error(transparent)]
    Replay(#[from] ReplayError),
    #[error("{}: {error}", path.display())]
    State { path: PathBuf, error: S },
    #[error("{}: {error} (the record at byte {offset})", path.display())]
    Transaction { path: PathBuf, offset: u64, error: S },
    #[error("{}: {error}", data_dir.display())]
    NotAccepted { data_dir: PathBuf, error: S },
    #[error(
        "{}: a torn tail has to be cut off at byte {offset}, and the copy {} that is kept of it \
         cannot be written: {source}; nothing has been changed", log.display(), copy.display()
    )]
    Copy { log: PathBuf, offset: u64, copy: PathBuf, source: E },
}

/// How an error says what the logs can do.
struct Logs(Option<Zxid>);

impl Display for Logs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(first) => write!(f, "the logs go back to zxid {first} only"),
            None => write!(f, "there are no logs"),
        }
    }
}

/// What a directory came to.
#[derive(Debug)]
pub struct Recovered<S> {
    pub state: S,
    /// The snapshot it was loaded from.
    pub snapshot: Option<Zxid>,
    pub watermark: Option<Watermark>,
    pub replayed: Replayed,
    /// The last transactions, as many as were asked for.
    pub recent: Recent,
}

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Places {
    pub(super) data_dir: PathBuf,
    pub(super) data_log_dir: PathBuf,
    are_apart: bool,
    pub(super) snapshots: PathBuf,
    pub(super) logs: PathBuf,
    torn: PathBuf,
}

impl Places {
    /// `data_log_dir` where it is another directory than `data_dir`.
    #[must_use]
    pub fn new(data_dir: &Path, data_log_dir: Option<&Path>) -> Places {
        let are_apart = data_log_dir.is_some();
        let data_log_dir = data_log_dir.unwrap_or(data_dir);
        Places {
            data_dir: data_dir.to_path_buf(),
            data_log_dir: data_log_dir.to_path_buf(),
            are_apart,
            snapshots: data_dir.join(VERSION_NAME),
            logs: data_log_dir.join(VERSION_NAME),
            torn: data_log_dir.join(TORN_NAME),
        }
    }

    /// All names in both directories, or in the one.
    pub(super) fn list<F: Files>(&self, files: &mut F) -> Result<Names, (PathBuf, F::Error)> {
        let mut names = Vec::new();
        let directories = [&self.snapshots, &self.logs];
        for directory in &directories[..1 + usize::from(self.are_apart)] {
            let listed = files.list(directory);
            let listed = listed.map_err(|source| (directory.to_path_buf(), source))?;
            names.extend(listed.unwrap_or_default());
        }
        Ok(names)
    }

    fn of(&self, name: &str) -> PathBuf {
        match FileName::parse(name) {
            Some(FileName::Log(_)) => self.logs.join(name),
            _ => self.snapshots.join(name),
        }
    }
}

/// What recovery ends with when it fails.
pub(super) type Failure<F, S> = RecoveryError<<F as Files>::Error, <S as State>::Error>;

/// Reads the newest snapshot that can be believed, and all transactions after it.
pub fn recover<F: Files, S: State>(
    files: &mut F,
    options: &Options<'_, S::Settings>,
) -> Result<Recovered<S>, Failure<F, S>> {
    read(files, options)?.accept(files, options)
}

/// What was read, before anything is changed.
pub(super) struct Reading<S> {
    pub(super) recovered: Recovered<S>,
    pub(super) listing: Listing,
    places: Places,
}

impl<S: State> Reading<S> {
    /// Puts the directories in order.
    pub(super) fn accept<F: Files>(
        self,
        files: &mut F,
        options: &Options<'_, S::Settings>,
    ) -> Result<Recovered<S>, Failure<F, S>> {
        let Reading { recovered, listing, places } = self;
        let Recovered { replayed, watermark, .. } = &recovered;
        replayed.torn.iter().for_each(|cut| files.tell(Note::TornBefore { cut }));
        if !options.is_live {
            change(files, &places, &listing, replayed, watermark.map(|watermark| watermark.log))?;
        }
        Ok(recovered)
    }
}

/// Reads all, and refuses what a server by itself must not serve.
pub(super) fn read<F: Files, S: State>(
    files: &mut F,
    options: &Options<'_, S::Settings>,
) -> Result<Reading<S>, Failure<F, S>> {
    let places = Places::new(options.data_dir, options.data_log_dir);
    let names = list(files, &places)?;
    let listing = Listing::new(names.iter().cloned());
    if let Some(name) = listing.impossible() {
        return Err(RecoveryError::Name { path: places.of(name) });
    }
    let found = read_watermarks(files, &places)?;
    check_logs_are_there::<F, S>(&places, &listing, options, &found)?;
    let watermark = found.newest.as_ref().map(|(_, watermark)| *watermark);
    let is_member = options.is_member
        || names
            .iter()
            .any(|(name, _)| [ACCEPTED_EPOCH_NAME, CURRENT_EPOCH_NAME].contains(&name.as_str()));
    let Base { mut state, snapshot, passed } =
        load::<F, S>(files, &places, &listing, watermark.filter(|_| !is_member), options)?;
    files.tell(Note::Loaded { zxid: snapshot });
    let from = state.last();
    let replaced = watermark.and_then(|watermark| watermark.snapshot());
    if let Some(zxid) = replaced.filter(|zxid| from < *zxid) {
        let path = places.snapshots.join(super::snapshot_name(zxid, Compression::None));
        return Err(RecoveryError::SnapshotMissing { path, zxid });
    }
    let claims = found.claims();
    for claim in &claims {
        check_log_is_there::<F, S>(&places, &listing, options, claim, from)?;
    }
    let mut replay = Replay::new(replay::Options { from, watermark });
    if options.is_member {
        replay.expect_snapshot_ahead();
    }
    let mut recent = Recent { after: from, ..Recent::default() };
    #[cfg(feature = "mutants")]
    if options.mutant == Some(Mutant::EvidenceIgnored) {
        replay.ignore_evidence();
    }
    if !takes_foreign_logs(options) {
        check_needless_logs::<F, S>(files, &places, &listing, &claims, from)?;
        claims.into_iter().for_each(|claim| replay.hold_against(claim));
    }
    for snapshot in passed.iter().filter(|passed| !passed.is_misnamed) {
        replay.expect(snapshot.zxid);
    }
    for log in listing.logs_after(from) {
        // It was there before a leader's snapshot replaced all that there was.
        if Some(log.start) <= replaced {
            continue;
        }
        let path = places.logs.join(&log.name);
        read_from_disk(files, &path).map_err(|source| io_error(&path, source))?;
        let mut source = FileSource { files, path: &path, len: whole(log.bytes) };
        let failed = |source| io_error(&path, source);
        replay.read(&path, log.start, &mut source, failed, |record| {
            state.replay(record).map_err(|error| {
                let (path, offset) = (path.clone(), record.offset as u64);
                RecoveryError::Transaction { path, offset, error }
            })?;
            if 0 < options.recent_max {
                recent.push(record.zxid(), record.payload, options.recent_max);
            }
            Ok(())
        })?;
    }
    let replayed = replay.finish()?;
    let unreached =
        passed.into_iter().find(|passed| !passed.is_misnamed && replayed.last < passed.zxid);
    if let Some(PassedOver { path, zxid, why, .. }) = unreached {
        return Err(RecoveryError::Unreached { path, why, zxid, last: replayed.last });
    }
    let data_dir = &places.data_dir;
    state
        .accept()
        .map_err(|error| RecoveryError::NotAccepted { data_dir: data_dir.clone(), error })?;
    let recovered = Recovered { state, snapshot, watermark, replayed, recent };
    Ok(Reading { recovered, listing, places })
}

/// Loads the snapshot that was received from a leader, before it replaces anything. `zxid` is what the
/// leader says.
pub fn load_received<F: Files, S: State>(
    files: &mut F,
    places: &Places,
    settings: S::Settings,
    zxid: Zxid,
) -> Result<S, Failure<F, S>> {
    let path = places.snapshots.join(RECEIVED_NAME);
    let names = list(files, places)?;
    let found = names.into_iter().find(|(name, _)| name == RECEIVED_NAME);
    let (name, bytes) = found.unwrap_or_default();
    let file = SnapshotFile { name, zxid, compression: Compression::None, bytes };
    let unusable = |why| RecoveryError::Received { path: path.clone(), why };
    let (state, _) = load_one::<F, S>(files, &path, &file, settings)?.map_err(unusable)?;
    state.accept().map_err(|error| unusable(error.to_string()))?;
    Ok(state)
}

/// Of a file.
pub(super) fn io_error<E: Error + 'static, S: Error>(
    path: &Path,
    source: E,
) -> RecoveryError<E, S> {
    RecoveryError::Io { path: path.to_path_buf(), source, is_file: true }
}

fn directory_error<E: Error + 'static, S: Error>(path: &Path, source: E) -> RecoveryError<E, S> {
    RecoveryError::Io { path: path.to_path_buf(), source, is_file: false }
}

pub(super) fn whole(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a file's length fits the memory's addresses")
}

/// All names in both directories, or in the one.
fn list<F: Files, E: Error>(
    files: &mut F,
    places: &Places,
) -> Result<Names, RecoveryError<F::Error, E>> {
    places.list(files).map_err(|(path, source)| directory_error(&path, source))
}

/// What the watermark and its copy say.
struct Watermarks {
    /// The newer one, and the file it is from.
    newest: Option<(PathBuf, Watermark)>,
    /// The other one.
    older: Option<(PathBuf, Watermark)>,
    /// Whether the one beside the logs says anything.
    is_beside_logs: bool,
}

impl Watermarks {
    /// What the logs have to agree with. The older one says less, or a truncation has just begun: it
    /// takes both back before anything else.
    fn claims(&self) -> Vec<Claim> {
        let found = self.newest.iter().chain(&self.older);
        found.map(|(by, watermark)| Claim { by: by.clone(), watermark: *watermark }).collect()
    }
}

fn read_watermarks<F: Files, E: Error>(
    files: &mut F,
    places: &Places,
) -> Result<Watermarks, RecoveryError<F::Error, E>> {
    let mut found: Vec<(u64, bool, PathBuf, Watermark)> = Vec::new();
    let directories = [&places.data_log_dir, &places.data_dir];
    for directory in &directories[..1 + usize::from(places.are_apart)] {
        let path = directory.join(WATERMARK_NAME);
        let bytes = files.read(&path).map_err(|source| io_error(&path, source))?;
        let is_copy = *directory != &places.data_log_dir;
        let bytes = bytes.filter(|bytes| !(is_copy && is_of_another_time(bytes.len() as u64)));
        let decoded = Watermark::decode(&bytes.unwrap_or_default())
            .map_err(|damage| RecoveryError::Watermark { path: path.clone(), damage })?;
        let Some((sequence, watermark)) = decoded else { continue };
        found.push((sequence, is_copy, path, watermark));
    }
    let is_beside_logs = found.iter().any(|(_, is_copy, ..)| !is_copy);
    // With equal sequences the one beside the logs comes first.
    found.sort_by_key(|(sequence, is_copy, ..)| (Reverse(*sequence), *is_copy));
    let mut found = found.into_iter().map(|(_, _, path, watermark)| (path, watermark));
    let (newest, older) = (found.next(), found.next());
    Ok(Watermarks { newest, older, is_beside_logs })
}

/// Refuses a directory for logs that has nothing of what was in it.
fn check_logs_are_there<F: Files, S: State>(
    places: &Places,
    listing: &Listing,
    options: &Options<'_, S::Settings>,
    found: &Watermarks,
) -> Result<(), Failure<F, S>> {
    match &found.newest {
        Some((by, watermark))
            if places.are_apart
                && !found.is_beside_logs
                && listing.logs().is_empty()
                && !takes_absent_for_empty(options) =>
        {
            Err(RecoveryError::LogsMissing {
                data_log_dir: places.data_log_dir.clone(),
                data_dir: places.data_dir.clone(),
                last: watermark.zxid,
                by: by.clone(),
            })
        }
        _ => Ok(()),
    }
}

/// Refuses a history without the log that a watermark names, unless it looks purged: a purge leaves a
/// log that begins within the oldest snapshot that stays, and all later ones.
fn check_log_is_there<F: Files, S: State>(
    places: &Places,
    listing: &Listing,
    options: &Options<'_, S::Settings>,
    claim: &Claim,
    from: Zxid,
) -> Result<(), Failure<F, S>> {
    let Watermark { log, zxid, .. } = claim.watermark;
    if claim.watermark.snapshot().is_some() {
        return Ok(());
    }
    let is_there = listing.logs().iter().any(|file| file.start == log);
    let oldest = listing.logs().first().map(|file| file.start);
    let looks_purged = oldest.is_some_and(|oldest| log < oldest && oldest <= from.next());
    if is_there || looks_purged || takes_absent_for_empty(options) {
        return Ok(());
    }
    Err(RecoveryError::LogMissing {
        path: places.logs.join(super::log_name(log)),
        before: Zxid(log.0 - 1),
        last: zxid,
        by: claim.by.clone(),
        data_log_dir: places.data_log_dir.clone(),
    })
}

/// Holds against the watermarks what they name in logs that the snapshot makes needless, which are not
/// read otherwise: after ZooKeeper has gone on in logs of its own.
fn check_needless_logs<F: Files, S: State>(
    files: &mut F,
    places: &Places,
    listing: &Listing,
    claims: &[Claim],
    from: Zxid,
) -> Result<(), Failure<F, S>> {
    let needed = listing.logs_after(from).len();
    let needless = &listing.logs()[..listing.logs().len() - needed];
    for claim in claims {
        let named = needless.iter().find(|log| log.start == claim.watermark.log);
        let Some(log) = named else { continue };
        let path = places.logs.join(&log.name);
        let failed = |source| io_error(&path, source);
        read_from_disk(files, &path).map_err(failed)?;
        let mut source = FileSource { files, path: &path, len: whole(log.bytes) };
        claim.check(&path, &mut source).map_err(failed)??;
    }
    Ok(())
}

#[cfg(feature = "mutants")]
fn takes_absent_for_empty<T>(options: &Options<'_, T>) -> bool {
    options.mutant == Some(Mutant::AbsentLogIsEmptyHistory)
}

#[cfg(not(feature = "mutants"))]
fn takes_absent_for_empty<T>(_: &Options<'_, T>) -> bool {
    false
}

#[cfg(feature = "mutants")]
fn takes_foreign_logs<T>(options: &Options<'_, T>) -> bool {
    options.mutant == Some(Mutant::ForeignLogsTaken)
}

#[cfg(not(feature = "mutants"))]
fn takes_foreign_logs<T>(_: &Options<'_, T>) -> bool {
    false
}

#[cfg(feature = "mutants")]
fn believes_names<T>(options: &Options<'_, T>) -> bool {
    options.mutant == Some(Mutant::SnapshotNameBelieved)
}

#[cfg(not(feature = "mutants"))]
fn believes_names<T>(_: &Options<'_, T>) -> bool {
    false
}

// ---- reading --------------------------------------------------------------------------------

/// Has the file read from the disk from here on, with all that the page cache had of it.
pub(super) fn read_from_disk<F: Files>(files: &mut F, path: &Path) -> Result<(), F::Error> {
    files.sync(path)?;
    files.drop_clean_pages(path)
}

/// A file of the disk.
pub(super) struct FileSource<'f, F> {
    pub(super) files: &'f mut F,
    pub(super) path: &'f Path,
    pub(super) len: usize,
}

impl<F: Files> Source for FileSource<'_, F> {
    type Error = F::Error;

    fn len(&self) -> usize {
        self.len
    }

    fn read_at(&mut self, offset: usize, target: &mut [u8]) -> Result<usize, F::Error> {
        self.files.read_at(self.path, offset as u64, target)
    }
}

/// A file of the disk from its beginning to its end.
struct Stream<'f, F: Files> {
    source: FileSource<'f, F>,
    window: Window,
    offset: usize,
    /// Why the disk did not give it. A decoder's own errors are not here.
    failed: Option<F::Error>,
}

impl<F: Files> Read for Stream<'_, F> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let Stream { source, window, offset, failed } = self;
        match window.view(source, *offset, 1) {
            Ok(bytes) => {
                let count = bytes.len().min(target.len());
                target[..count].copy_from_slice(&bytes[..count]);
                *offset += count;
                Ok(count)
            }
            Err(error) => {
                let text = error.to_string();
                *failed = Some(error);
                Err(io::Error::other(text))
            }
        }
    }
}

// ---- the snapshot ---------------------------------------------------------------------------

/// What replay begins with.
struct Base<S> {
    state: S,
    snapshot: Option<Zxid>,
    passed: Vec<PassedOver>,
}

/// A snapshot that is not used.
struct PassedOver {
    path: PathBuf,
    zxid: Zxid,
    why: String,
    /// It is sound, and its name is not.
    is_misnamed: bool,
}

/// The newest snapshot that loads and can be believed. Each is begun from scratch: nothing of one
/// that failed is left. `watermark` is what a name may not be beyond, if anything.
fn load<F: Files, S: State>(
    files: &mut F,
    places: &Places,
    listing: &Listing,
    watermark: Option<Watermark>,
    options: &Options<'_, S::Settings>,
) -> Result<Base<S>, Failure<F, S>> {
    let mut passed: Vec<PassedOver> = Vec::new();
    for file in listing.snapshots() {
        let path = places.snapshots.join(&file.name);
        let (why, is_misnamed) = match load_one::<F, S>(files, &path, file, options.settings)? {
            Ok((state, trailer)) => {
                match doubt(files, places, listing, watermark, file, trailer)? {
                    Some(why) if !believes_names(options) => (why, true),
                    _ => return Ok(Base { state, snapshot: Some(file.zxid), passed }),
                }
            }
            Err(why) => (why, false),
        };
        files.tell(Note::PassedOver { snapshot: &path, why: &why });
        passed.push(PassedOver { path, zxid: file.zxid, why, is_misnamed });
    }
    let first_log = listing.logs().first();
    match (&passed[..], first_log) {
        ([], Some(first)) if !options.trust_empty => {
            return Err(RecoveryError::NoSnapshot {
                path: places.logs.clone(),
                first: first.start,
            });
        }
        ([], _) => {}
        (_, Some(first)) if begins_history(first.start, &passed) => {
            let first_log = &places.logs.join(&first.name);
            files.tell(Note::Rebuilding { first_log });
        }
        ([newest, ..], _) => {
            return Err(RecoveryError::NoneLoads {
                path: places.snapshots.clone(),
                count: passed.len(),
                newest: format!("{}: {}", newest.path.display(), newest.why),
                first_log: first_log.map(|first| first.start),
            });
        }
    }
    Ok(Base { state: S::empty(options.settings), snapshot: None, passed })
}

/// Whether the log that begins with `start` has the first transaction of all. An ensemble's first
/// epoch is not zero, and that nothing came before it shows by a snapshot of the very beginning.
fn begins_history(start: Zxid, snapshots: &[PassedOver]) -> bool {
    let is_from_zero = snapshots.iter().any(|snapshot| snapshot.zxid == Zxid::ZERO);
    start == Zxid::ZERO.next() || start.counter() == 1 && is_from_zero
}

/// Loads a snapshot, or says why it cannot be used. A disk that does not give it is an error.
fn load_one<F: Files, S: State>(
    files: &mut F,
    path: &Path,
    file: &SnapshotFile,
    settings: S::Settings,
) -> Result<Result<(S, Trailer), String>, Failure<F, S>> {
    let failed = |source| io_error(path, source);
    read_from_disk(files, path).map_err(failed)?;
    let mut source = FileSource { files, path, len: whole(file.bytes) };
    let mut window = Window::new(STEP_BYTES);
    let head = window.view(&mut source, 0, QUICK_BYTES).map_err(failed)?;
    let head = head[..head.len().min(QUICK_BYTES)].to_vec();
    let tail = source.len().saturating_sub(QUICK_BYTES);
    let tail = window.view(&mut source, tail, QUICK_BYTES).map_err(failed)?.to_vec();
    if !is_quick_valid(file, &head, &tail) {
        return Ok(Err("unfinished, or cut".to_owned()));
    }
    source.files.tell(Note::Reading { snapshot: path });
    let mut stream = Stream { source, window, offset: 0, failed: None };
    let decoder = Decoder::new(&mut stream, file.compression);
    let mut snapshot = SnapshotReader::new(path, decoder);
    let loaded = S::from_snapshot(settings, file.zxid, &mut snapshot);
    let trailer = snapshot.trailer().unwrap_or_default();
    drop(snapshot);
    match (loaded, stream.failed) {
        (_, Some(source)) => Err(failed(source)),
        (Ok(state), None) => Ok(Ok((state, trailer))),
        (Err(error), None) => Ok(Err(error.to_string())),
    }
}

/// Why the zxid in a snapshot's name is not that of what it holds, if something says so.
fn doubt<F: Files, E: Error>(
    files: &mut F,
    places: &Places,
    listing: &Listing,
    watermark: Option<Watermark>,
    file: &SnapshotFile,
    trailer: Trailer,
) -> Result<Option<String>, RecoveryError<F::Error, E>> {
    let named = file.zxid;
    // A digest of zeros: nothing was applied since the tree was loaded.
    let of_digest = trailer.digest.map(|digest| digest.zxid).filter(|zxid| *zxid != Zxid::ZERO);
    match trailer.last_processed.or(of_digest) {
        Some(finished) if named <= finished => return Ok(None),
        Some(finished) if named.counter() != 0 => {
            return Ok(Some(format!(
                "its name says zxid {named}, but it was finished at zxid {finished}: it is a copy \
                 of another snapshot under a wrong name"
            )));
        }
        _ => {}
    }
    let Some(watermark) = watermark.filter(|watermark| watermark.zxid < named) else {
        return Ok(None);
    };
    let mut last = None;
    for log in listing.logs().iter().rev() {
        if named <= log.start {
            return Ok(None);
        }
        let path = places.logs.join(&log.name);
        let failed = |source| io_error(&path, source);
        read_from_disk(files, &path).map_err(failed)?;
        let mut source = FileSource { files, path: &path, len: whole(log.bytes) };
        last = replay::last_record(&mut source).map_err(failed)?;
        if last.is_some() {
            break;
        }
    }
    Ok(last.filter(|last| *last < named).map(|last| {
        format!(
            "its name says zxid {named}, but the logs end at zxid {last} and were synced up to \
             zxid {}: nothing is in a snapshot that was not logged",
            watermark.zxid
        )
    }))
}

// ---- the changes ----------------------------------------------------------------------------

/// Puts the directory in order, once all of it is accepted.
fn change<F: Files, E: Error>(
    files: &mut F,
    places: &Places,
    listing: &Listing,
    replayed: &Replayed,
    written: Option<Zxid>,
) -> Result<(), RecoveryError<F::Error, E>> {
    let copies = keep_copies(files, places, &replayed.cuts)?;
    for (cut, copy) in replayed.cuts.iter().zip(&copies) {
        let failed = |source| io_error(&cut.path, source);
        if cut.offset == 0 {
            files.remove(&cut.path).map_err(failed)?;
        } else {
            // The new length is needed to read what is left: no later log may follow the rest.
            files.set_len(&cut.path, cut.offset).map_err(failed)?;
            files.sync(&cut.path).map_err(failed)?;
        }
        files.tell(Note::Torn { cut, copy: copy.as_deref() });
    }
    if let Some(written) = written {
        cut_zeros(files, places, listing, replayed, written)?;
    }
    let failed = |source| directory_error(&places.logs, source);
    // At the very first start it is not made yet.
    if files.list(&places.logs).map_err(failed)?.is_some() {
        files.sync_directory(&places.logs).map_err(failed)?;
    }
    remove_leftovers(files, places)
}

/// Copies what will be cut off, durably. Where that fails, nothing is left of it.
fn keep_copies<F: Files, E: Error>(
    files: &mut F,
    places: &Places,
    cuts: &[Cut],
) -> Result<Vec<Option<PathBuf>>, RecoveryError<F::Error, E>> {
    let (mut copies, mut made) = (Vec::new(), Vec::new());
    let taken = files.list(&places.torn).map_err(|source| directory_error(&places.torn, source))?;
    let taken = taken.unwrap_or_default();
    for cut in cuts {
        if cut.end <= cut.offset {
            copies.push(None);
            continue;
        }
        // A copy that has its name is whole, and stays. A start that crashed between copy and cut has
        // left the same bytes under this name; other bytes are of an earlier cut.
        let mut name = format!("log.{:x}.at.{}", cut.log.0, cut.offset);
        let bytes = cut.end - cut.offset;
        let mut is_kept = false;
        while let Some((_, len)) = taken.iter().find(|(taken, _)| *taken == name) {
            let copy = places.torn.join(&name);
            let same =
                *len == bytes && is_copy(files, cut, &copy).map_err(|e| io_error(&copy, e))?;
            if same {
                is_kept = true;
                break;
            }
            name.push_str(".again");
        }
        let copy = places.torn.join(name);
        if !is_kept {
            if let Err(source) = keep_copy(files, places, cut, &copy) {
                for made in made.iter().chain([&temporary(&copy)]) {
                    // Best done, and not needed: no name here means anything to a server.
                    let _ = files.remove(made);
                }
                let (log, offset) = (cut.path.clone(), cut.offset);
                return Err(RecoveryError::Copy { log, offset, copy, source });
            }
            made.push(copy.clone());
        }
        copies.push(Some(copy));
    }
    Ok(copies)
}

fn temporary(copy: &Path) -> PathBuf {
    copy.with_file_name("copy.tmp")
}

/// Whether a file of the length of what is cut holds the same bytes.
fn is_copy<F: Files>(files: &mut F, cut: &Cut, copy: &Path) -> Result<bool, F::Error> {
    let (mut of_log, mut of_copy) = (Window::new(STEP_BYTES), Window::new(STEP_BYTES));
    read_from_disk(files, copy)?;
    let (start, end) = (whole(cut.offset), whole(cut.end));
    let mut at = start;
    while at < end {
        let mut log = FileSource { files, path: &cut.path, len: end };
        let expected = of_log.view(&mut log, at, 1)?;
        let mut copied = FileSource { files, path: copy, len: end - start };
        let found = of_copy.view(&mut copied, at - start, 1)?;
        let count = expected.len().min(found.len());
        if count == 0 || expected[..count] != found[..count] {
            return Ok(false);
        }
        at += count;
    }
    Ok(true)
}

fn keep_copy<F: Files>(
    files: &mut F,
    places: &Places,
    cut: &Cut,
    copy: &Path,
) -> Result<(), F::Error> {
    let temporary = temporary(copy);
    files.make_directory(&places.torn)?;
    files.sync_directory(&places.data_log_dir)?;
    files.create(&temporary)?;
    let mut piece = Window::new(STEP_BYTES);
    let mut at = whole(cut.offset);
    while at < whole(cut.end) {
        let mut source = FileSource { files, path: &cut.path, len: whole(cut.end) };
        let bytes = piece.view(&mut source, at, 1)?;
        if bytes.is_empty() {
            break;
        }
        files.append(&temporary, bytes)?;
        at += bytes.len();
    }
    files.sync(&temporary)?;
    files.rename(&temporary, copy)?;
    files.sync_directory(&places.torn)
}

/// Drops what was allocated behind the last record of the log that was being written. A write that a
/// process had begun when it was killed may still be on its way to there, and history will go on
/// elsewhere: to cut the file waits for it and takes it back.
///
/// Such a write is only ever to the log that the watermark names: a roll begins when the last write has
/// ended, and the next one comes after the watermark names the new log. Any other log keeps its zeros:
/// nothing is on its way to it, and it may be ZooKeeper's.
fn cut_zeros<F: Files, E: Error>(
    files: &mut F,
    places: &Places,
    listing: &Listing,
    replayed: &Replayed,
    written: Zxid,
) -> Result<(), RecoveryError<F::Error, E>> {
    let Some((path, end)) = &replayed.end else { return Ok(()) };
    let is_cut = replayed.cuts.iter().any(|cut| cut.path == *path);
    let log = listing.logs().iter().find(|log| log.start == written);
    let log = log.filter(|log| places.logs.join(&log.name) == *path);
    if is_cut || log.is_none_or(|log| log.bytes <= *end) {
        return Ok(());
    }
    let failed = |source| io_error(path, source);
    files.set_len(path, *end).map_err(failed)?;
    files.sync(path).map_err(failed)
}

/// What a crash has left half made. Only what a server of ours or ZooKeeper writes as a log or a
/// snapshot: `currentEpoch.tmp` means something to ZooKeeper.
fn remove_leftovers<F: Files, E: Error>(
    files: &mut F,
    places: &Places,
) -> Result<(), RecoveryError<F::Error, E>> {
    let directories = [&places.snapshots, &places.logs];
    for directory in &directories[..1 + usize::from(places.are_apart)] {
        let listed = files.list(directory).map_err(|source| directory_error(directory, source))?;
        for (name, _) in listed.unwrap_or_default() {
            let is_half = name.ends_with(".tmp")
                && (name.starts_with("log.") || name.starts_with("snapshot."));
            if is_half || OUR_TEMPORARIES.contains(&name.as_str()) {
                let leftover = &directory.join(&name);
                match files.remove(leftover) {
                    Ok(()) => files.tell(Note::Removed { leftover }),
                    Err(error) => files.tell(Note::NotRemoved { leftover, error: &error }),
                }
            }
        }
    }
    Ok(())
}

/// The copies of torn tails whose logs are gone: those of logs before the oldest that is left.
pub fn needless_copies<'a>(
    copies: impl IntoIterator<Item = &'a str>,
    logs: &Listing,
) -> Vec<&'a str> {
    let oldest = logs.logs().first().map(|log| log.start);
    let is_needless = |name: &&str| matches!(FileName::parse(name), Some(FileName::Log(start)) if Some(start) < oldest);
    copies.into_iter().filter(is_needless).collect()
}

#[cfg(test)]
mod tests {
    use super::super::damage::{empty_log, history};
    use super::super::memory::*;
    use super::super::txnlog;
    use super::super::watermark::WATERMARK_FILE_BYTES;
    use super::*;
    use crate::record::txn::{Txn, TxnHeader};

    #[test]
    fn a_state_is_a_snapshot_and_what_was_logged_after_it() {
        assert_eq!(Memory::default().served(), (0, -1));
        let mut memory = Memory::with(&[
            ("snapshot.0", snapshot(0)),
            ("snapshot.3", snapshot(3)),
            ("log.1", history(1..=4)),
            ("log.5", history(5..=7)),
            (WATERMARK_NAME, marked(5, 7)),
        ]);
        assert_eq!(memory.served(), (7, 3));
        for compression in [Compression::Gzip, Compression::Snappy] {
            let bytes = snapshot_as(compression, 3, finished(3));
            let name = format!("snapshot.3{}", compression.suffix());
            let mut memory = Memory::with(&[(&name, bytes), ("log.1", history(1..=4))]);
            assert_eq!(memory.served(), (4, 3));
        }
    }

    #[test]
    fn a_newest_log_that_is_absent_or_emptied_is_missed_wherever_the_watermark_stands() {
        let whole = Memory::with(&[
            ("snapshot.0", snapshot(0)),
            ("log.1", history(1..=4)),
            ("log.5", history(5..=7)),
            // Nothing of the newest log was synced when this was.
            (WATERMARK_NAME, marked(5, 4)),
        ]);
        assert_eq!(whole.clone().served().0, 7);
        let mut absent = whole.clone();
        absent.files.remove(&Memory::path("log.5"));
        let refused = absent.refused();
        assert!(refused.starts_with("/logs/version-2/log.5: not there"), "{refused}");
        assert!(refused.contains("/logs/ringkeeper.watermark"), "{refused}");
        for emptied in [Vec::new(), b"ZKL".to_vec(), vec![0; 70_000]] {
            let mut memory = whole.clone();
            memory.files.insert(Memory::path("log.5"), emptied);
            let refused = memory.refused();
            assert!(refused.starts_with("/logs/version-2/log.5: damaged at byte 0"), "{refused}");
        }
        // A log that was begun and has no record is one.
        let mut begun = whole.clone();
        begun.files.insert(Memory::path("log.5"), empty_log());
        assert_eq!(begun.served().0, 4);
    }

    /// With `forceSync=no`, or after a power cut, a log has more than the watermark knows of.
    #[test]
    fn a_snapshot_within_a_log_does_not_stand_for_the_rest_of_it() {
        let unsynced = Watermark {
            offset: super::super::watermark::UNBOUNDED,
            ..Watermark::new(Zxid(5), Zxid(4))
        };
        for known in [marked(5, 4), marked(5, 6), mark(1, unsynced)] {
            let mut whole = Memory::with(&[
                ("snapshot.0", snapshot(0)),
                ("snapshot.6", snapshot(6)),
                ("log.1", history(1..=4)),
                ("log.5", history(5..=9)),
                (WATERMARK_NAME, known),
            ]);
            assert_eq!(whole.clone().served(), (9, 6));
            for emptied in [Vec::new(), b"ZKL".to_vec(), vec![0; 70_000]] {
                whole.files.insert(Memory::path("log.5"), emptied);
                let refused = whole.refused();
                let damaged = "/logs/version-2/log.5: damaged at byte 0";
                assert!(refused.starts_with(damaged), "{refused}");
            }
            whole.files.remove(&Memory::path("log.5"));
            for _ in ["with an older log", "with none"] {
                let refused = whole.refused();
                assert!(refused.starts_with("/logs/version-2/log.5: not there"), "{refused}");
                whole.files.remove(&Memory::path("log.1"));
            }
        }
    }

    #[test]
    fn a_log_that_is_absent_was_purged_or_is_missed() {
        let mark = (WATERMARK_NAME, marked(5, 7));
        let with = |names: &[(&'static str, Vec<u8>)]| {
            Memory::with(&[names, std::slice::from_ref(&mark)].concat())
        };
        let snapshot_9 = ("snapshot.9", snapshot(9));
        // ZooKeeper has gone on in log.8, and purged what came before.
        assert_eq!(with(&[snapshot_9.clone(), ("log.8", history(8..=12))]).served(), (12, 9));
        let at_once = ("log.a", history(10..=12));
        assert_eq!(with(&[snapshot_9.clone(), at_once]).served(), (12, 9));
        for logs in [
            vec![],
            vec![("log.1", history(1..=4))],
            vec![("log.1", history(1..=4)), ("log.8", history(8..=12))],
            // A purge would have left the log before.
            vec![("log.200000001", history(epoch(2, 1)..=epoch(2, 3)))],
        ] {
            let refused = with(&[&[snapshot_9.clone()][..], &logs[..]].concat()).refused();
            assert!(refused.starts_with("/logs/version-2/log.5: not there"), "{refused}");
            assert!(refused.ends_with("remove /logs/ringkeeper.watermark"), "{refused}");
        }
    }

    /// Another server's records, as long as ours.
    fn foreign(zxids: std::ops::RangeInclusive<i64>) -> Vec<u8> {
        let mut log = empty_log();
        for record in replay::LogReader::new(&history(zxids)).unwrap() {
            let header = TxnHeader { time: 8, ..record.header };
            txnlog::append_txn(&mut log, &header, &record.txn, record.digest.as_ref());
        }
        log
    }

    /// With the checksum of the last record, as servers store it.
    fn marked_exactly(sequence: u64, log: i64, zxid: i64, written: &[u8]) -> Vec<u8> {
        let last = replay::LogReader::new(written).unwrap();
        let last = last.filter(|record| record.zxid() <= Zxid(zxid)).last().unwrap();
        let checksum = Some(txnlog::first_record_checksum(&written[last.offset..]));
        let offset = last.end() as u64;
        mark(sequence, Watermark { offset, checksum, ..Watermark::new(Zxid(log), Zxid(zxid)) })
    }

    #[test]
    fn another_servers_whole_history_is_refused_though_it_goes_beyond_the_watermark() {
        let mark = |sequence| marked_exactly(sequence, 1, 7, &history(1..=7));
        let whole = [("snapshot.0", snapshot(0)), (WATERMARK_NAME, mark(1))];
        let with = |files: &[(&'static str, Vec<u8>)]| Memory::with(&[&whole[..], files].concat());
        assert_eq!(with(&[("log.1", history(1..=30))]).served().0, 30);
        let is_foreign = |mut memory: Memory, by: &str| {
            let refused = memory.refused();
            let start = format!("/logs/version-2/log.1: of another history than {by}");
            assert!(refused.starts_with(&start), "{refused}");
        };
        let beside = "/logs/ringkeeper.watermark";
        is_foreign(with(&[("log.1", foreign(1..=30))]), beside);
        // With snapshots of its own, so that the log is not needed for anything.
        let later = [
            ("log.1", foreign(1..=20)),
            ("log.15", foreign(21..=30)),
            ("snapshot.19", snapshot(25)),
        ];
        is_foreign(with(&later), beside);
        // In a log that ends before what was synced to ours.
        let later =
            [("log.1", foreign(1..=4)), ("log.5", foreign(5..=30)), ("snapshot.19", snapshot(25))];
        let refused = with(&later).refused();
        assert!(refused.starts_with("/logs/version-2/log.1: ends at byte"), "{refused}");
        assert!(refused.ends_with(&format!("remove {beside}")), "{refused}");
        // With its own watermark, and only the copy in dataDir is of our history.
        let theirs = (WATERMARK_NAME, marked_exactly(900, 1, 30, &foreign(1..=30)));
        let copy = ("/data/ringkeeper.watermark", mark(1));
        let mounted = [("snapshot.0", snapshot(0)), ("log.1", foreign(1..=30)), theirs, copy];
        is_foreign(Memory::with(&mounted), "/data/ringkeeper.watermark");
        // A log that the copy names and that is not there.
        let mut memory = Memory::with(&mounted);
        let elsewhere = marked_exactly(1, 5, 7, &history(5..=7));
        memory.files.insert("/data/ringkeeper.watermark".into(), elsewhere);
        assert!(memory.refused().starts_with("/logs/version-2/log.5: not there"));
    }

    /// Nothing is taken away before both watermarks are back.
    #[test]
    fn a_truncation_that_a_crash_has_ended_between_two_watermarks_is_no_contradiction() {
        let marked = |sequence, zxid| marked_exactly(sequence, 1, zxid, &history(1..=9));
        for (copy, beside) in [((6, 5), (5, 9)), ((5, 9), (6, 5))] {
            let mut memory = Memory::with(&[
                ("snapshot.0", snapshot(0)),
                ("log.1", history(1..=9)),
                ("/data/ringkeeper.watermark", marked(copy.0, copy.1)),
                (WATERMARK_NAME, marked(beside.0, beside.1)),
            ]);
            assert_eq!(memory.served().0, 9);
        }
    }

    #[test]
    fn a_directory_for_logs_that_is_missing_or_empty_is_refused_with_both_paths() {
        let copy = ("/data/ringkeeper.watermark", marked(1, 7));
        let whole = [("snapshot.0", snapshot(0)), ("log.1", history(1..=7)), copy.clone()];
        let mut memory = Memory::with(&whole);
        memory.files.insert("/logs/ringkeeper.watermark".into(), marked(1, 7));
        assert_eq!(memory.clone().served().0, 7);
        let mut empty = Memory::with(&[("snapshot.0", snapshot(0)), copy.clone()]);
        let refused = empty.refused();
        assert!(refused.starts_with("/logs: no logs"), "{refused}");
        assert!(refused.contains("up to zxid 0x7 at least"), "{refused}");
        assert!(refused.contains("/data"), "{refused}");
        // Even where a snapshot has all that the watermark knows of: it may lag.
        empty.files.insert(Memory::path("snapshot.7"), snapshot(7));
        assert!(empty.refused().starts_with("/logs: no logs"));
        // Without a directory of their own any more, or all of it gone.
        for left in [vec![("snapshot.0", snapshot(0)), copy.clone()], vec![copy.clone()]] {
            let mut one = Memory::with(&left);
            one.is_one_directory = true;
            let refused = one.refused();
            assert!(refused.starts_with("/data/version-2/log.1: not there"), "{refused}");
            assert!(refused.contains("dataLogDir (/data)"), "{refused}");
        }
        // A copy that was never written says nothing: the very first start.
        let zeros = ("/data/ringkeeper.watermark", vec![0; WATERMARK_FILE_BYTES]);
        assert_eq!(Memory::with(&[zeros]).served().0, 0);
    }

    #[test]
    fn of_a_watermark_and_its_copy_the_newer_one_counts() {
        let watermark =
            |zxid, offset: u64| Watermark { offset, ..Watermark::new(Zxid(1), Zxid(zxid)) };
        let [four, seven] = [4, 7].map(|last| history(1..=last).len() as u64);
        for (beside, copy) in [(5, 6), (6, 5)] {
            let mut memory = Memory::with(&[
                ("snapshot.0", snapshot(0)),
                ("log.1", history(1..=4)),
                ("/logs/ringkeeper.watermark", mark(beside, watermark(4, four))),
                ("/data/ringkeeper.watermark", mark(copy, watermark(7, seven))),
            ]);
            // An older one never says more: a truncation takes both back first.
            assert!(memory.refused().contains("synced up to byte"));
        }
        // One that says less has nothing to add.
        for (beside, copy) in [(5, 6), (6, 5)] {
            let mut memory = Memory::with(&[
                ("snapshot.0", snapshot(0)),
                ("log.1", history(1..=7)),
                ("/logs/ringkeeper.watermark", mark(beside, watermark(7, seven))),
                ("/data/ringkeeper.watermark", mark(copy, watermark(4, four))),
            ]);
            assert_eq!(memory.served().0, 7);
        }
        // Left by a version that kept no copies: it is of another time.
        let mut old = mark(6, watermark(7, seven));
        old.truncate(super::super::watermark::WITHOUT_COPY_BYTES);
        let mut memory = Memory::with(&[
            ("snapshot.0", snapshot(0)),
            ("log.1", history(1..=4)),
            ("/logs/ringkeeper.watermark", mark(5, watermark(4, four))),
            ("/data/ringkeeper.watermark", old),
        ]);
        assert_eq!(memory.served().0, 4);
        let mut memory = Memory::with(&[("/data/ringkeeper.watermark", vec![1; 100])]);
        assert!(memory.refused().starts_with("/data/ringkeeper.watermark: "));
    }

    #[test]
    fn what_zookeeper_has_done_since_is_believed() {
        // It has gone on in logs of its own, taken a snapshot and purged what came before.
        let mut memory = Memory::with(&[
            ("snapshot.9", snapshot_as(Compression::None, 9, digested(0))),
            ("log.8", history(8..=12)),
            (WATERMARK_NAME, marked(1, 7)),
        ]);
        assert_eq!(memory.served(), (12, 9));
        let mut memory = Memory::with(&[
            ("snapshot.0", snapshot(0)),
            ("log.1", history(1..=7)),
            ("log.8", history(8..=12)),
            (WATERMARK_NAME, marked(1, 7)),
        ]);
        assert_eq!(memory.served(), (12, 0));
        // Restored from a copy: nothing but a snapshot.
        assert_eq!(Memory::with(&[("snapshot.9", silent(9))]).served(), (9, 9));
        // It has purged the log before, and the snapshot's own is the oldest.
        let mut memory = Memory::with(&[
            ("snapshot.a", silent(10)),
            ("snapshot.6", silent(6)),
            ("log.5", history(5..=10)),
        ]);
        assert_eq!(memory.served(), (10, 10));
    }

    #[test]
    fn a_file_that_the_disk_does_not_give_is_refused_by_name() {
        let files = [
            ("snapshot.0", snapshot(0)),
            ("snapshot.3", snapshot(3)),
            ("log.1", history(1..=4)),
            ("log.5", history(5..=7)),
        ];
        for name in ["snapshot.3", "log.1", "log.5"] {
            let mut memory = Memory::with(&files);
            memory.unreadable.insert(Memory::path(name));
            let refused = memory.refused();
            let path = Memory::path(name);
            assert!(refused.starts_with(&path.display().to_string()), "{refused}");
            assert!(refused.ends_with("permission denied"), "{refused}");
        }
        // It is not looked at.
        let mut memory = Memory::with(&files);
        memory.unreadable.insert(Memory::path("snapshot.0"));
        assert_eq!(memory.served(), (7, 3));
    }

    #[test]
    fn a_snapshot_that_does_not_load_gives_way_to_an_older_one_if_the_logs_reach_it() {
        for spoil in [damaged, half, |_| Vec::new()] {
            let files = [("snapshot.0", snapshot(0)), ("snapshot.5", spoil(snapshot(5)))];
            let with_logs =
                |logs: &[(&'static str, Vec<u8>)]| Memory::with(&[&files[..], logs].concat());
            let mut memory = with_logs(&[("log.1", history(1..=5))]);
            assert_eq!(memory.served(), (5, 0));
            let passed = "passed over /data/version-2/snapshot.5: ";
            assert!(memory.notes.iter().any(|note| note.starts_with(passed)), "{:?}", memory.notes);
            for logs in [&[][..], &[("log.1", history(1..=4))]] {
                let refused = with_logs(logs).refused();
                assert!(
                    refused.starts_with("/data/version-2/snapshot.5: cannot be used"),
                    "{refused}"
                );
            }
            // Its logs were purged.
            let refused = with_logs(&[("log.4", history(4..=7))]).refused();
            assert!(refused.contains("does not go on from zxid 0x0"), "{refused}");
        }
    }

    #[test]
    fn an_epoch_that_begins_behind_a_snapshot_that_does_not_load_is_a_gap() {
        let later = epoch(2, 1);
        let mut memory = Memory::with(&[
            ("snapshot.100000032", snapshot(epoch(1, 50))),
            ("snapshot.100000064", half(snapshot(epoch(1, 100)))),
            ("log.200000001", history(later..=later + 3)),
        ]);
        let refused = memory.refused();
        assert!(refused.contains("does not go on from zxid 0x100000032"), "{refused}");
    }

    #[test]
    fn without_any_snapshot_that_loads_the_logs_must_be_complete() {
        let bad = ("snapshot.5", damaged(snapshot(5)));
        let mut memory = Memory::with(&[bad.clone(), ("log.1", history(1..=7))]);
        assert_eq!(memory.served(), (7, -1));
        assert!(memory.notes.contains(&"rebuilding from /logs/version-2/log.1".to_owned()));
        let refused = Memory::with(&[bad.clone(), ("log.1", history(1..=4))]).refused();
        assert!(refused.starts_with("/data/version-2/snapshot.5: cannot be used"), "{refused}");
        let refused = Memory::with(&[bad.clone(), ("log.4", history(4..=7))]).refused();
        assert!(refused.contains("none of the 1 snapshots"), "{refused}");
        assert!(refused.contains("the logs go back to zxid 0x4 only"), "{refused}");
        let refused = Memory::with(&[bad]).refused();
        assert!(refused.contains("there are no logs"), "{refused}");
        // In an ensemble the first epoch is not zero.
        let first = epoch(1, 1);
        let logs = ("log.100000001", history(first..=first + 5));
        let newer = ("snapshot.100000003", damaged(snapshot(first + 2)));
        let mut memory =
            Memory::with(&[("snapshot.0", damaged(snapshot(0))), newer.clone(), logs.clone()]);
        assert_eq!(memory.served().0, first + 5);
        let refused = Memory::with(&[newer, logs]).refused();
        assert!(refused.contains("the logs go back to zxid 0x100000001 only"), "{refused}");
    }

    #[test]
    fn logs_without_any_snapshot_are_served_only_when_trusted_and_whole() {
        let mut memory = Memory::with(&[("log.1", history(1..=2))]);
        assert!(memory.refused().starts_with("No snapshot found, but there are log entries. "));
        memory.trusts_empty = true;
        assert_eq!(memory.served(), (2, -1));
        let mut memory = Memory::with(&[("log.4", history(4..=5))]);
        memory.trusts_empty = true;
        assert!(memory.refused().contains("does not go on from zxid 0x0"));
        // Trust says nothing about what was synced.
        let mut memory = Memory::with(&[(WATERMARK_NAME, marked(1, 7))]);
        memory.trusts_empty = true;
        assert!(memory.refused().contains("log.1: not there"));
    }

    #[test]
    fn a_snapshot_under_the_name_of_a_newer_one_is_not_believed() {
        let sound = ("snapshot.3", snapshot(3));
        let log = ("log.1", history(1..=9));
        for trailer in [finished(2), digested(2)] {
            let copy = snapshot_as(Compression::None, 2, trailer);
            for name in ["snapshot.fffff", "snapshot.9", "snapshot.5"] {
                let copy = (name, copy.clone());
                let mut memory = Memory::with(&[sound.clone(), copy.clone(), log.clone()]);
                assert_eq!(memory.served(), (9, 3));
                let passed = memory.notes.iter().find(|note| note.starts_with("passed over"));
                assert!(passed.unwrap().contains("it was finished at zxid 0x2"), "{passed:?}");
                // With no other: the logs alone, or not at all.
                assert_eq!(Memory::with(&[copy.clone(), log.clone()]).served(), (9, -1));
                let refused = Memory::with(&[copy]).refused();
                assert!(refused.contains(name), "{refused}");
            }
        }
    }

    #[test]
    fn a_snapshot_that_says_nothing_is_not_believed_beyond_all_that_was_logged() {
        let copy = ("snapshot.fffff", silent(2));
        let log = ("log.1", history(1..=9));
        let files =
            [("snapshot.3", silent(3)), copy.clone(), log.clone(), (WATERMARK_NAME, marked(1, 9))];
        let mut memory = Memory::with(&files);
        assert_eq!(memory.served(), (9, 3));
        let passed = memory.notes.iter().find(|note| note.starts_with("passed over")).unwrap();
        assert!(passed.contains("the logs end at zxid 0x9"), "{passed}");
        // A header alone is no log that goes further.
        memory.files.insert(Memory::path("log.a"), empty_log());
        assert_eq!(memory.served(), (9, 3));
        // A member of an ensemble may have been sent it by a leader.
        for name in ["currentEpoch", "acceptedEpoch"] {
            let mut memory = Memory::with(&files);
            memory.files.insert(Memory::path(name), b"0".to_vec());
            assert_eq!(memory.served(), (0xfffff, 2));
        }
        // Not ours, or not contradicted.
        assert_eq!(Memory::with(&[copy.clone(), log.clone()]).served(), (0xfffff, 2));
        let mut memory =
            Memory::with(&[("snapshot.b", silent(11)), (WATERMARK_NAME, marked(1, 9))]);
        memory.files.insert(Memory::path("log.1"), history(1..=12));
        assert_eq!(memory.served(), (12, 11));
        // The watermark lags: the log tells.
        let files = [("snapshot.9", silent(9)), log, (WATERMARK_NAME, marked(1, 7))];
        assert_eq!(Memory::with(&files).served(), (9, 9));
    }

    #[test]
    fn what_zookeeper_writes_into_snapshots_is_no_contradiction() {
        let log = ("log.1", history(1..=9));
        let mark = (WATERMARK_NAME, marked(1, 9));
        // Fuzzy ones were finished later; a tree as it was loaded has a digest of zeros.
        for trailer in [digested(0), digested(5), digested(8), finished(5), finished(8)] {
            let bytes = snapshot_as(Compression::None, 5, trailer);
            let mut memory = Memory::with(&[("snapshot.5", bytes), log.clone(), mark.clone()]);
            assert_eq!(memory.served(), (9, 5), "{trailer:?}");
        }
        // Of no transaction at all.
        for trailer in [digested(0), finished(0), SILENT] {
            let bytes = snapshot_as(Compression::None, 0, trailer);
            assert_eq!(Memory::with(&[("snapshot.0", bytes), log.clone()]).served(), (9, 0));
        }
        // A new leader's has the number zero of its epoch, and the digest of the epoch before.
        let first = epoch(2, 1);
        let mut memory = Memory::with(&[
            ("snapshot.200000000", snapshot_as(Compression::None, 9, digested(9))),
            ("log.200000001", history(first..=first + 2)),
            ("currentEpoch", b"2".to_vec()),
        ]);
        assert_eq!(memory.served(), (first + 2, 9));
        // Sent by a leader, beyond the logs here.
        let beyond = ("snapshot.64", snapshot_as(Compression::None, 100, digested(0)));
        let mut memory = Memory::with(&[beyond, log, ("currentEpoch", b"0".to_vec()), mark]);
        assert_eq!(memory.served(), (100, 100));
    }

    #[test]
    fn a_torn_tail_is_copied_durably_and_then_cut() {
        let (whole, mut torn) = (history(1..=3), history(1..=5));
        torn[whole.len() + 20] ^= 1;
        let tail = torn[whole.len()..].to_vec();
        torn.resize(100_000, 0);
        let mut memory = Memory::with(&[
            ("snapshot.0", snapshot(0)),
            ("log.1", torn.clone()),
            (WATERMARK_NAME, marked(1, 3)),
            ("log.9.tmp", vec![1]),
            ("ringkeeper-snapshot.tmp", vec![1]),
            (EPOCH_TEMPORARY_NAME, vec![1]),
            ("currentEpoch.tmp", vec![1]),
        ]);
        let before = memory.clone();
        assert_eq!(memory.served().0, 3);
        let copy = format!("/logs/ringkeeper.torn/log.1.at.{}", whole.len());
        let log = "/logs/version-2/log.1";
        assert_eq!(memory.files[Path::new(&copy)], tail);
        assert_eq!(memory.files[Path::new(log)], whole);
        let expected = [
            "make /logs/ringkeeper.torn".to_owned(),
            "sync names in /logs".to_owned(),
            "create /logs/ringkeeper.torn/copy.tmp".to_owned(),
            "append /logs/ringkeeper.torn/copy.tmp".to_owned(),
            "sync /logs/ringkeeper.torn/copy.tmp".to_owned(),
            format!("rename {copy}"),
            "sync names in /logs/ringkeeper.torn".to_owned(),
            format!("cut {log}"),
            format!("sync {log}"),
            "sync names in /logs/version-2".to_owned(),
            format!("remove /data/version-2/{EPOCH_TEMPORARY_NAME}"),
            "remove /data/version-2/ringkeeper-snapshot.tmp".to_owned(),
            "remove /logs/version-2/log.9.tmp".to_owned(),
        ];
        assert_eq!(memory.steps, expected);
        // Once more: nothing is left to be done.
        memory.steps.clear();
        assert_eq!(memory.served().0, 3);
        assert_eq!(memory.steps, ["sync names in /logs/version-2"]);
        // Had a crash come between copy and cut, the copy would be made again; what is another
        // log's stays.
        memory.files.insert(log.into(), torn);
        assert_eq!(memory.served().0, 3);
        memory.files.insert(log.into(), [&whole[..], &tail[..48]].concat());
        assert_eq!(memory.served().0, 3);
        assert_eq!(memory.files[Path::new(&copy)], tail);
        assert_eq!(memory.files[Path::new(&format!("{copy}.again"))], tail[..48]);
        // No room for the copy: nothing is cut.
        let mut full = Memory { is_full: true, ..before };
        let refused = full.refused();
        assert!(refused.starts_with(log), "{refused}");
        assert!(refused.contains(&copy), "{refused}");
    }

    #[test]
    fn zeros_are_cut_without_a_copy_and_only_behind_a_log_of_ours() {
        let whole = history(1..=3);
        let padded = [&whole[..], &[0; 5_000]].concat();
        for (is_ours, left) in [(true, &whole), (false, &padded)] {
            let mut memory =
                Memory::with(&[("snapshot.0", snapshot(0)), ("log.1", padded.clone())]);
            if is_ours {
                memory.files.insert(Memory::path(WATERMARK_NAME), marked(1, 3));
            }
            assert_eq!(memory.served().0, 3);
            assert_eq!(memory.files[&Memory::path("log.1")], *left);
            assert!(memory.files.keys().all(|path| !path.starts_with("/logs/ringkeeper.torn")));
        }
        // ZooKeeper has gone on since.
        let theirs = [&history(4..=6)[..], &[0; 5_000]].concat();
        let mut memory = Memory::with(&[
            ("snapshot.0", snapshot(0)),
            ("log.1", padded.clone()),
            ("log.4", theirs.clone()),
            (WATERMARK_NAME, marked(1, 3)),
        ]);
        assert_eq!(memory.served().0, 6);
        assert_eq!(memory.files[&Memory::path("log.4")], theirs);
    }

    #[test]
    fn a_record_is_read_however_long_it_is() {
        let data = vec![7; 9 << 20];
        let mut log = history(1..=3);
        for zxid in 4..=5 {
            let txn = Txn::SetData { path: "/a".into(), data: Some(&data), version: 1 };
            let header = TxnHeader { client_id: 0, cxid: 0, zxid, time: 0, kind: txn.kind() };
            txnlog::append_txn(&mut log, &header, &txn, None);
        }
        let mut memory = Memory::with(&[("snapshot.0", snapshot(0)), ("log.1", log)]);
        assert_eq!(memory.served().0, 5);
        assert_eq!(memory.steps, ["sync names in /logs/version-2"]);
    }

    #[test]
    fn a_copy_goes_with_the_last_log_that_it_could_go_with() {
        let logs = Listing::new([("log.5".to_owned(), 1), ("log.9".to_owned(), 1)]);
        let copies = ["log.1.at.700", "log.4.at.16", "log.5.at.16", "log.9.at.1", "copy.tmp", "x"];
        assert_eq!(needless_copies(copies, &logs), ["log.1.at.700", "log.4.at.16"]);
        assert!(needless_copies(copies, &Listing::default()).is_empty());
    }
}
