//! The log on its files: does what the journal orders (`storage/journal.rs`), and decides nothing.
//!
//! ```text
//! pipeline --append--> journal --orders--> map, watermark, keeper         at once
//!                              --round---> sync or write                  through the core's ring
//!                                          steps, one after the other     on a thread that may wait
//!          <--synced-- journal <---------- the round has ended
//! ```
//!
//! The first round that fails ends the process.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::book::{Book, Room};
use super::directories::sync_directory;
use super::keeper::Keeper;
use super::marks::Marks;
use super::ring::Ring;
use super::whole_ms;
use crate::metrics::{Counter, Recorder, Summary};
use crate::storage::blocks::Extent;
use crate::storage::epoch::encode_epoch;
use crate::storage::journal::{
    self, Append, Batch, EPOCH_TEMPORARY_NAME, EpochFile, Journal, Order, RECEIVED_NAME,
    Replacement, Round as Due, SET_ASIDE_PREFIX, Step, Storing, Truncation,
};
use crate::storage::watermark::Watermark;
use crate::storage::{self, Compression};
use crate::types::{Epoch, Zxid};

/// The log cannot go on. The process ends with code 10.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("{}: no room for the transaction log: {source}", path.display())]
    Space { path: PathBuf, source: io::Error },
    #[error(
        "{}: the transaction log could not be synced: {source}; what is not synced is not \
         acknowledged, and a restart reads what the disk has", path.display()
    )]
    Sync { path: PathBuf, source: io::Error },
    #[error("{}: the transaction log could not be begun: {source}", path.display())]
    Begin { path: PathBuf, source: io::Error },
    #[error("{}: could not be changed durably: {source}", path.display())]
    Store { path: PathBuf, source: io::Error },
    /// What the log was changed to cannot be loaded.
    #[error("the data directory cannot be loaded after the leader had it changed: {0}")]
    Reload(String),
}

/// How the log is written.
#[derive(Clone, Debug)]
pub(crate) struct LogOptions {
    /// `version-2` of dataLogDir.
    pub(crate) directory: PathBuf,
    /// `version-2` of dataDir, where snapshots and epoch files are.
    pub(crate) snapshots: PathBuf,
    pub(crate) journal: journal::Settings,
    /// A slower sync is worth a warning.
    pub(crate) sync_warning: Duration,
}

/// What is durable, now that a round is over.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    /// All records up to this one, if that is news.
    pub(crate) synced: Option<Zxid>,
    /// What was asked for besides records.
    pub(crate) stored: Vec<Storing>,
}

/// The file of the current log.
struct Current {
    path: PathBuf,
    book: Book,
}

/// What a log is opened with, on the core that it belongs to.
pub(crate) struct LogParts {
    pub(crate) options: LogOptions,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) marks: Arc<Marks>,
    /// The log goes on after this.
    pub(crate) last: Zxid,
    /// The watermark so far.
    pub(crate) mark: Option<Watermark>,
    pub(crate) recorder: Recorder,
}

/// The log of one server.
pub(crate) struct Log {
    options: Arc<LogOptions>,
    keeper: Arc<Keeper>,
    marks: Arc<Marks>,
    journal: Journal,
    current: Option<Current>,
    /// From when the journal's time counts.
    origin: Instant,
    recorder: Recorder,
}

impl Log {
    /// Its first append opens a new file.
    pub(crate) fn open(parts: LogParts) -> Log {
        let LogParts { options, keeper, marks, last, mark, recorder } = parts;
        let settings = journal::Settings { back_end: keeper.back_end(), ..options.journal };
        // A watermark that was not in a file yet has no sequence, and the next has one.
        let mark = mark.map(|mark| (marks.found(), mark));
        Log {
            journal: Journal::new(settings, last, mark),
            keeper,
            marks,
            current: None,
            origin: Instant::now(),
            recorder,
            options: Arc::new(options),
        }
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Tells the journal of room that was made elsewhere.
    fn see_room(&mut self) -> Result<(), LogError> {
        let now = self.now();
        // The room comes before its maker says that it has ended.
        if !self.keeper.is_growing() {
            self.journal.on_grown_ahead();
        }
        if let Some(Current { book, path, .. }) = &mut self.current {
            let room = book.room();
            let room = room.map_err(|source| LogError::Space { path: path.clone(), source })?;
            self.journal.on_room(now, room);
        }
        Ok(())
    }

    /// Does what the journal orders. Says what is durable, and returns memory.
    fn obey(&mut self) -> (Ended, Vec<u8>) {
        let (mut ended, mut spare) = (Ended::default(), Vec::new());
        while let Some(order) = self.journal.next_order() {
            match order {
                Order::Store(records) => {
                    let current = self.current.as_mut().expect("records are for an open log");
                    current.book.store(&records);
                    spare = records;
                }
                Order::Spare(memory) => spare = memory,
                Order::Note { sequence, watermark } => self.marks.note(sequence, watermark),
                Order::Synced { through, batch } => {
                    self.measure(batch);
                    ended.synced = Some(through);
                }
                Order::GrowAhead(growth) => {
                    if let Some(current) = &self.current {
                        self.keeper.grow_ahead(current.book.maker(), growth);
                    }
                }
                Order::MakeAhead => self.keeper.make_ahead(),
                Order::Stored(storing) => ended.stored.push(storing),
            }
        }
        (ended, spare)
    }

    /// Tells of a round, after `SyncRequestProcessor`, once for all requests of it.
    fn measure(&self, batch: Batch) {
        let Batch { count, waited, took } = batch;
        let (waited_ms, took_ms) = (whole_ms(waited), whole_ms(took));
        let recorder = &self.recorder;
        recorder.add(Counter::SyncProcessorRequestQueued, count);
        for (summary, value) in [
            (Summary::SyncProcessorBatchSize, count),
            (Summary::SyncProcessorQueueSize, count),
            (Summary::SyncProcessTime, took_ms),
            (Summary::SyncProcessorQueueTimeMs, waited_ms),
            (Summary::SyncProcessorQueueFlushTimeMs, took_ms),
            (Summary::SyncProcessorQueueAndFlushTimeMs, whole_ms(waited + took)),
        ] {
            recorder.record(summary, value);
        }
    }

    fn measure_sync(&self, took: Duration) {
        if !self.options.journal.force_sync {
            return;
        }
        self.recorder.record(Summary::FsyncTime, whole_ms(took));
        if self.options.sync_warning <= took {
            self.recorder.add(Counter::FsyncThresholdExceedCount, 1);
            warn_of_slow_sync(took, self.journal.end());
        }
    }

    /// These steps, with the files that they are about.
    fn waiting(&mut self, steps: Vec<Step>) -> Waiting {
        let is_cut = steps.iter().any(|step| matches!(step, Step::Cut { .. }));
        // A log that is cut is not written any more.
        let (old, room) = match &self.current {
            Some(_) if is_cut => (self.current.take(), None),
            Some(current) => (None, Some((current.path.clone(), current.book.maker()))),
            None => (None, None),
        };
        Waiting {
            steps,
            old: old.map(|current| (current.path, current.book)),
            room,
            directory: self.options.directory.clone(),
            snapshots: self.options.snapshots.clone(),
            keeper: Arc::clone(&self.keeper),
            marks: Arc::clone(&self.marks),
        }
    }

    /// Takes records; `round` makes them durable. Returns memory to be used again.
    pub(crate) fn append(&mut self, append: Append) -> Result<Vec<u8>, LogError> {
        self.see_room()?;
        self.journal.append(self.now(), append);
        let (ended, spare) = self.obey();
        assert_eq!(ended, Ended::default(), "only a round makes anything durable");
        Ok(spare)
    }

    /// The next round to begin so that everything appended becomes durable. One round is under way
    /// at a time.
    pub(crate) fn round(&mut self) -> Result<Option<Round>, LogError> {
        self.see_room()?;
        let (ended, _) = self.obey();
        assert_eq!(ended, Ended::default(), "only a round makes anything durable");
        let Some(due) = self.journal.next_round(self.now()) else { return Ok(None) };
        let extent = match due {
            Due::Steps(steps) => return Ok(Some(Round::Wait(self.waiting(steps)))),
            Due::Sync => None,
            Due::Write(extent) => Some(extent),
        };
        let current = self.current.as_ref().expect("what was stored is in an open log");
        Ok(Some(Round::Sync(Sync {
            file: Arc::clone(current.book.file()),
            path: current.path.clone(),
            extent,
            is_forced: self.options.journal.force_sync,
        })))
    }

    /// How much longer a round is put off to gather more records. `None`: no round is put off.
    pub(crate) fn gathers(&self) -> Option<Duration> {
        self.journal.gathers(self.now())
    }

    /// Whether a round is under way.
    pub(crate) fn in_round(&self) -> bool {
        self.journal.in_round()
    }

    /// Whether all that was appended is durable and no round is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.journal.is_idle()
    }

    /// No round is put off any more.
    pub(crate) fn hurry(&mut self) {
        self.journal.hurry();
    }

    /// Ends the log, idle as it is: nothing more will come.
    pub(crate) fn seal(&mut self) -> Result<(), LogError> {
        let steps = self.journal.seal();
        self.waiting(steps).run().map(drop)
    }

    /// Stores an epoch once all that was appended so far is durable.
    pub(crate) fn store_epoch(&mut self, file: EpochFile, epoch: Epoch) {
        self.journal.store_epoch(file, epoch);
    }

    /// Takes back what comes after a transaction, of an idle log. Nothing may be appended before that
    /// has ended, and the next append opens a new file.
    pub(crate) fn truncate(&mut self, truncation: Truncation) {
        self.journal.truncate(truncation);
    }

    /// Replaces all that there is by a snapshot that was received. The same holds as of a truncation.
    pub(crate) fn replace(&mut self, replacement: Replacement) {
        self.journal.replace(replacement);
    }

    /// A round is over.
    pub(crate) fn on_round(&mut self, done: Done) -> Result<Ended, LogError> {
        let written = match done {
            Done::Synced { took, extent } => {
                self.measure_sync(took);
                extent
            }
            Done::Grown => {
                self.see_room()?;
                None
            }
            Done::Rolled(Begun { path, book }) => {
                info!(target: "ringkeeper::shell::disk", "Creating new log file: {}",
                    path.file_name().unwrap_or_default().display());
                self.current = Some(Current { path, book });
                None
            }
        };
        self.journal.on_round(self.now(), written);
        Ok(self.obey().0)
    }
}

fn warn_of_slow_sync(took: Duration, size: u64) {
    // The text is ZooKeeper's, missing blank included: scripts look for it.
    warn!(
        target: "ringkeeper::shell::disk",
        "fsync-ing the write ahead log in {} took {}ms which will adversely effect operation \
         latency.File size is {size} bytes. See the ZooKeeper troubleshooting guide",
        std::thread::current().name().unwrap_or("pipeline"),
        took.as_millis(),
    );
}

/// What one round does.
pub(crate) enum Round {
    Sync(Sync),
    Wait(Waiting),
}

/// What one round has done.
pub(crate) enum Done {
    Synced {
        took: Duration,
        /// What was written, to be used again.
        extent: Option<Extent>,
    },
    Rolled(Begun),
    Grown,
}

/// A log that was begun.
pub(crate) struct Begun {
    path: PathBuf,
    book: Book,
}

/// Makes the log being written durable: as it is on the disk, or with what is to be written.
pub(crate) struct Sync {
    file: Arc<File>,
    path: PathBuf,
    /// What is to be written, from a back end that writes.
    extent: Option<Extent>,
    is_forced: bool,
}

/// A round of steps that wait for the disk: for a thread of its own.
pub(crate) struct Waiting {
    steps: Vec<Step>,
    /// The log that is cut. Its map goes where it is no harm to wait for whoever makes room in it.
    old: Option<(PathBuf, Book)>,
    /// The log that grows.
    room: Option<(PathBuf, Room)>,
    directory: PathBuf,
    snapshots: PathBuf,
    keeper: Arc<Keeper>,
    marks: Arc<Marks>,
}

impl Waiting {
    /// Does the steps, in their order.
    pub(crate) fn run(self) -> Result<Done, LogError> {
        let Waiting { steps, old, room, directory, snapshots, keeper, marks } = self;
        let (mut made, mut begun) = (None, None);
        let old = old.map(|(path, book)| (path, book.into_file()));
        let begin = |source| LogError::Begin { path: directory.clone(), source };
        for step in steps {
            match step {
                Step::Grow(growth) => {
                    let (path, room) = room.as_ref().expect("there is a log to grow");
                    let space = |source| LogError::Space { path: path.clone(), source };
                    room.grow(growth).map_err(space)?;
                }
                Step::Cut { len } => {
                    let (path, file) = old.as_ref().expect("there is a log to cut");
                    let sync = |source| LogError::Sync { path: path.clone(), source };
                    file.set_len(len).map_err(sync)?;
                }
                Step::SyncCut => {
                    let (path, file) = old.as_ref().expect("there is a log to sync");
                    let sync = |source| LogError::Sync { path: path.clone(), source };
                    // The new length is needed to read the records back, so fdatasync covers it.
                    file.sync_data().map_err(sync)?;
                }
                Step::Make => made = Some(keeper.make()?),
                Step::Name { start } => {
                    let path = directory.join(storage::log_name(start));
                    let book = made.take().expect("it was made before").name(&path)?;
                    begun = Some(Begun { path, book });
                }
                Step::SyncDirectory => sync_directory(&directory).map_err(begin)?,
                Step::StoreWatermark { sequence, watermark } => {
                    marks.store(sequence, watermark).map_err(begin)?;
                }
                Step::TakeBackWatermark { sequence, watermark } => {
                    marks.take_back(sequence, watermark).map_err(begin)?;
                }
                Step::RemoveSnapshot { name } => remove(&snapshots.join(name))?,
                Step::RemoveLog { name } => remove(&directory.join(name))?,
                Step::CutLog { name, len } => {
                    let path = directory.join(name);
                    let cut = || {
                        let file = fs::OpenOptions::new().write(true).open(&path)?;
                        file.set_len(len)?;
                        file.sync_all()
                    };
                    cut().map_err(|source| LogError::Store { path: path.clone(), source })?;
                }
                Step::NameSnapshot { zxid } => {
                    let name = storage::snapshot_name(zxid, Compression::None);
                    rename(&snapshots.join(RECEIVED_NAME), &snapshots.join(name))?;
                }
                Step::SetAsideSnapshot { name } => set_aside(&snapshots, &name)?,
                Step::SetAsideLog { name } => set_aside(&directory, &name)?,
                Step::WriteEpoch { epoch, .. } => {
                    let path = snapshots.join(EPOCH_TEMPORARY_NAME);
                    let write = || {
                        let mut options = fs::OpenOptions::new();
                        let options = options.write(true).create(true).truncate(true).mode(0o600);
                        let mut file = options.open(&path)?;
                        file.write_all(encode_epoch(Some(epoch)).as_bytes())?;
                        file.sync_all()
                    };
                    write().map_err(|source| LogError::Store { path: path.clone(), source })?;
                }
                Step::NameEpoch { file } => {
                    rename(&snapshots.join(EPOCH_TEMPORARY_NAME), &snapshots.join(file.name()))?;
                }
                Step::SyncSnapshots => sync_directory(&snapshots).map_err(|source| {
                    let path = snapshots.clone();
                    LogError::Store { path, source }
                })?,
            }
        }
        Ok(begun.map_or(Done::Grown, Done::Rolled))
    }

    /// What an error of starting these steps is about.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.clone()
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), LogError> {
    let failed = |source| LogError::Store { path: to.to_path_buf(), source };
    fs::rename(from, to).map_err(failed)
}

/// Renames a file so that nobody reads it. One that is gone was purged meanwhile.
fn set_aside(directory: &Path, name: &str) -> Result<(), LogError> {
    match rename(&directory.join(name), &directory.join(format!("{SET_ASIDE_PREFIX}{name}"))) {
        Err(LogError::Store { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed,
    }
}

/// Removes a file. One that is gone already was removed before a crash.
fn remove(path: &Path) -> Result<(), LogError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(LogError::Store { path: path.to_path_buf(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Sync {
    /// Has the ring do it, which says so with `Event::Durable`. False: there is nothing to wait for.
    pub(crate) fn begin(&mut self, ring: &mut Ring) -> bool {
        if !self.is_forced {
            return false;
        }
        match self.extent.take() {
            Some(extent) => ring.write(Arc::clone(&self.file), extent),
            None => ring.sync(self.file.as_fd()),
        }
        true
    }

    /// It began then and has ended, and this came of it.
    pub(crate) fn end(
        self,
        began: Instant,
        written: Option<Extent>,
        result: io::Result<()>,
    ) -> Result<Done, LogError> {
        result.map_err(|source| LogError::Sync { path: self.path, source })?;
        Ok(Done::Synced { took: began.elapsed(), extent: written.or(self.extent) })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::OsString;
    use std::fs;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::metrics::Metrics;
    use crate::record::txn::{Txn, TxnHeader};
    use crate::shell::ring::{Event, Ring};
    use crate::shell::scratch::Scratch;
    use crate::storage::journal::{BackEnd, Growth, LogCut, TEMPORARY_NAME};
    use crate::storage::replay::{Options, Replayed, replay};
    use crate::storage::segment::cut_after;
    use crate::storage::txnlog;

    fn options(scratch: &Scratch, back_end: BackEnd) -> LogOptions {
        LogOptions {
            directory: scratch.path().join("version-2"),
            snapshots: scratch.path().join("version-2"),
            journal: journal::Settings {
                back_end,
                step_bytes: 64 * 1024,
                force_sync: true,
                shaping: None,
                waits_for_answered: false,
            },
            sync_warning: Duration::from_secs(10),
        }
    }

    fn open(scratch: &Scratch, options: LogOptions, last: Zxid) -> Log {
        fs::create_dir_all(&options.directory).unwrap();
        let journal::Settings { step_bytes, back_end, .. } = options.journal;
        let keeper = Arc::new(Keeper::start(&options.directory, step_bytes, back_end).unwrap());
        let marks = Marks::start(&[scratch.path().join("ringkeeper.watermark")]).unwrap();
        let recorder = Metrics::new(1).1.remove(0);
        let marks = Arc::new(marks);
        Log::open(LogParts { options, keeper, marks, last, mark: None, recorder })
    }

    /// A record of `zxid` with `extra` bytes of data.
    fn record(zxid: i64, extra: usize) -> Vec<u8> {
        let data = vec![7; extra];
        let txn = Txn::SetData { path: "/a".into(), data: Some(&data), version: 1 };
        let header = TxnHeader { client_id: 1, cxid: 2, zxid, time: 3, kind: txn.kind() };
        let mut framed = Vec::new();
        txnlog::append_txn(&mut framed, &header, &txn, None);
        framed
    }

    fn append(new_file: bool, zxids: std::ops::RangeInclusive<i64>, extra: usize) -> Append {
        Append {
            new_file,
            first: Zxid(*zxids.start()),
            last: Zxid(*zxids.end()),
            records: zxids.flat_map(|zxid| record(zxid, extra)).collect(),
        }
    }

    /// Runs a test once with each back end, in a directory of its own.
    fn with_each(name: &str, test: impl Fn(Scratch, BackEnd)) {
        for back_end in [BackEnd::Mapped, BackEnd::Direct] {
            test(Scratch::new(&format!("{name}-{back_end:?}")), back_end);
        }
    }

    /// Runs a round to its end, as a core does.
    fn run(round: Round) -> Result<Done, LogError> {
        let mut sync = match round {
            Round::Sync(sync) => sync,
            Round::Wait(waiting) => return waiting.run(),
        };
        let (mut ring, began) = (Ring::new().unwrap(), Instant::now());
        sync.begin(&mut ring);
        loop {
            ring.enter(Some(Duration::from_secs(10))).unwrap();
            while let Some(event) = ring.next() {
                if let Event::Durable { written, result } = event {
                    return sync.end(began, written, result);
                }
            }
        }
    }

    /// Runs rounds until all is durable, and says what became so, round by round.
    fn settle(log: &mut Log) -> Vec<Zxid> {
        let mut synced = Vec::new();
        while let Some(round) = log.round().unwrap() {
            synced.extend(log.on_round(run(round).unwrap()).unwrap().synced);
        }
        assert!(log.is_idle());
        synced
    }

    /// The same of what is stored besides records.
    fn stored(log: &mut Log) -> Vec<Storing> {
        let mut stored = Vec::new();
        while let Some(round) = log.round().unwrap() {
            let done = run(round).unwrap();
            stored.extend(log.on_round(done).unwrap().stored);
        }
        assert!(log.is_idle());
        stored
    }

    /// What a restart would find, by the rules of `storage`.
    fn replayed(scratch: &Scratch) -> (Vec<i64>, Replayed) {
        let directory = scratch.path().join("version-2");
        let mut logs: Vec<_> = fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter_map(|path| {
                let name = path.file_name()?.to_str()?.strip_prefix("log.")?;
                let start = Zxid(i64::from_str_radix(name, 16).ok()?);
                Some((start, fs::read(&path).unwrap(), path))
            })
            .collect();
        logs.sort();
        let slots = fs::read(scratch.path().join("ringkeeper.watermark")).unwrap();
        let watermark = Watermark::decode(&slots).unwrap().map(|(_, watermark)| watermark);
        let options = Options { from: Zxid(0), watermark };
        let mut zxids = Vec::new();
        let logs = logs.iter().map(|(start, bytes, path)| (path, *start, bytes.as_slice()));
        let replayed = replay(logs, options, |record| zxids.push(record.zxid().0)).unwrap();
        (zxids, replayed)
    }

    #[test]
    fn what_is_synced_is_found_again_after_a_roll_and_growth() {
        with_each("log", |scratch, back_end| {
            let mut log = open(&scratch, options(&scratch, back_end), Zxid(0));
            log.append(append(true, 1..=3, 100)).unwrap();
            assert_eq!(settle(&mut log), [Zxid(3)]);
            log.append(append(false, 4..=4, 200_000)).unwrap();
            log.append(append(false, 5..=5, 10)).unwrap();
            assert_eq!(settle(&mut log), [Zxid(5)]);
            log.append(append(true, 6..=9, 10)).unwrap();
            assert_eq!(settle(&mut log), [Zxid(9)]);
            // As a SIGKILL leaves it: nothing is sealed, the map is simply gone.
            let (zxids, replayed) = replayed(&scratch);
            assert_eq!(zxids, (1..=9).collect::<Vec<_>>());
            assert!(replayed.cuts.is_empty() && replayed.torn.is_empty());
            log.seal().unwrap();
            let sealed = fs::read(scratch.path().join("version-2/log.6")).unwrap();
            assert_eq!(sealed.last(), Some(&b'B'));
            assert_eq!(self::replayed(&scratch).0, zxids);
        });
    }

    #[test]
    fn appends_during_a_roll_wait_and_keep_their_order() {
        with_each("log-roll", |scratch, back_end| {
            let mut log = open(&scratch, options(&scratch, back_end), Zxid(0));
            log.append(append(true, 1..=1, 10)).unwrap();
            let round = log.round().unwrap().unwrap();
            log.append(append(false, 2..=2, 10)).unwrap();
            log.append(append(true, 3..=3, 10)).unwrap();
            log.append(append(false, 4..=4, 10)).unwrap();
            let done = run(round).unwrap();
            assert_eq!(log.on_round(done).unwrap().synced, None);
            // The next roll seals what the first log got.
            assert_eq!(settle(&mut log), [Zxid(2), Zxid(4)]);
            assert_eq!(replayed(&scratch).0, [1, 2, 3, 4]);
            let mut names: Vec<_> = fs::read_dir(scratch.path().join("version-2"))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name.starts_with("log."))
                .collect();
            names.sort();
            assert_eq!(names, ["log.1", "log.3"]);
        });
    }

    #[test]
    fn records_that_gather_during_a_sync_share_the_next_one() {
        with_each("log-group", |scratch, back_end| {
            let mut log = open(&scratch, options(&scratch, back_end), Zxid(0));
            log.append(append(true, 1..=1, 10)).unwrap();
            settle(&mut log);
            log.append(append(false, 2..=2, 10)).unwrap();
            let round = log.round().unwrap().unwrap();
            for zxid in 3..=20 {
                log.append(append(false, zxid..=zxid, 10)).unwrap();
            }
            let done = run(round).unwrap();
            assert_eq!(log.on_round(done).unwrap().synced, Some(Zxid(2)));
            assert_eq!(settle(&mut log), [Zxid(20)]);
        });
    }

    #[test]
    fn a_round_is_measured_once_with_all_that_it_made_durable() {
        with_each("log-measured", |scratch, back_end| {
            let mut log = open(&scratch, options(&scratch, back_end), Zxid(0));
            let (metrics, mut recorders) = Metrics::new(1);
            log.recorder = recorders.remove(0);
            log.append(append(true, 1..=3, 10)).unwrap();
            log.append(append(false, 4..=5, 10)).unwrap();
            settle(&mut log);
            log.append(append(false, 6..=6, 10)).unwrap();
            settle(&mut log);
            let readings = metrics.read();
            assert_eq!(readings.counter(Counter::SyncProcessorRequestQueued), 6);
            let batch = readings.summary(Summary::SyncProcessorBatchSize);
            assert_eq!((batch.count, batch.sum, batch.min, batch.max), (2, 6, 1, 5));
            let [queue, flush, both] = [
                Summary::SyncProcessorQueueTimeMs,
                Summary::SyncProcessorQueueFlushTimeMs,
                Summary::SyncProcessorQueueAndFlushTimeMs,
            ]
            .map(|summary| readings.summary(summary).clone());
            assert_eq!((queue.count, flush.count, both.count), (2, 2, 2));
            assert!(queue.sum + flush.sum <= both.sum);
        });
    }

    #[test]
    fn a_sync_that_fails_acknowledges_nothing() {
        with_each("log-sync", |scratch, back_end| {
            let mut log = open(&scratch, options(&scratch, back_end), Zxid(0));
            log.append(append(true, 1..=1, 10)).unwrap();
            settle(&mut log);
            // A file that takes no sync or write: the kernel refuses, as a broken disk would.
            log.append(append(false, 2..=2, 10)).unwrap();
            let Some(Round::Sync(mut sync)) = log.round().unwrap() else {
                panic!("a log that is open is synced or written");
            };
            sync.file = Arc::new(match back_end {
                BackEnd::Mapped => File::open("/dev/null").unwrap(),
                BackEnd::Direct => File::open(scratch.path().join("version-2/log.1")).unwrap(),
            });
            let failed = run(Round::Sync(sync));
            let Err(error @ LogError::Sync { .. }) = failed else { panic!("it was not synced") };
            assert!(error.to_string().contains("version-2/log.1"), "{error}");
            assert!(!log.is_idle());
        });
    }

    #[test]
    fn a_log_that_cannot_grow_says_so() {
        with_each("log-full", |scratch, back_end| {
            let mut log = open(&scratch, options(&scratch, back_end), Zxid(0));
            log.append(append(true, 1..=1, 10)).unwrap();
            settle(&mut log);
            let growth = Growth { len: 1 << 50, ready: 1 << 50 };
            let error = log.waiting(vec![Step::Grow(growth)]).run().err().expect("no such disk");
            assert!(matches!(error, LogError::Space { .. }), "{error}");
            assert_eq!(replayed(&scratch).0, [1]);
        });
    }

    #[test]
    fn what_is_truncated_is_gone_and_an_epoch_is_in_its_file() {
        with_each("log-truncate", |scratch, back_end| {
            let directory = scratch.path().join("version-2");
            let mut log = open(&scratch, options(&scratch, back_end), Zxid(0));
            for (first, last) in [(1, 3), (4, 6), (7, 9)] {
                log.append(append(true, first..=last, 10)).unwrap();
                settle(&mut log);
            }
            fs::write(directory.join("snapshot.8"), b"beyond").unwrap();
            let bytes = fs::read(directory.join("log.4")).unwrap();
            let offset = cut_after(&bytes, Zxid(5)).unwrap() as u64;
            log.truncate(Truncation {
                zxid: Zxid(5),
                cut: Some(LogCut { name: "log.4".to_owned(), log: Zxid(4), offset }),
                later_logs: vec!["log.7".to_owned()],
                later_snapshots: vec!["snapshot.8".to_owned()],
            });
            log.store_epoch(EpochFile::Current, Epoch(7));
            let stored = stored(&mut log);
            assert_eq!(stored.iter().map(Storing::end).collect::<Vec<_>>(), [Some(Zxid(5)), None]);
            assert_eq!(replayed(&scratch).0, [1, 2, 3, 4, 5]);
            assert!(!directory.join("snapshot.8").exists());
            assert_eq!(fs::read(directory.join("currentEpoch")).unwrap(), b"7");
            log.append(append(true, 6..=6, 20)).unwrap();
            assert_eq!(settle(&mut log), [Zxid(6)]);
            assert_eq!(replayed(&scratch).0, [1, 2, 3, 4, 5, 6]);
        });
    }

    /// One append: what it asks for, and whether all is made durable after it.
    #[derive(Clone, Copy, Debug)]
    struct Written {
        new_file: bool,
        count: i64,
        extra: usize,
        settles: bool,
    }

    /// The log files that `steps` lead to, by name.
    fn written(back_end: BackEnd, steps: Vec<Written>) -> BTreeMap<OsString, Vec<u8>> {
        let scratch = Scratch::new(&format!("log-{back_end:?}"));
        let mut log = open(&scratch, options(&scratch, back_end), Zxid(0));
        let mut next = 1;
        for (index, step) in steps.into_iter().enumerate() {
            let new_file = step.new_file || index == 0;
            let records = append(new_file, next..=next + step.count - 1, step.extra);
            log.append(records).unwrap();
            next += step.count;
            if step.settles {
                settle(&mut log);
            }
        }
        settle(&mut log);
        assert!(replayed(&scratch).0.into_iter().eq(1..next));
        log.seal().unwrap();
        let files = fs::read_dir(scratch.path().join("version-2")).unwrap();
        let files = files.map(|entry| entry.unwrap());
        let files = files.map(|file| (file.file_name(), fs::read(file.path()).unwrap()));
        files.filter(|(name, _)| name != TEMPORARY_NAME).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn both_back_ends_write_the_same_files(
            steps in vec(
                (prop::bool::weighted(0.1), 1_i64..40, 0_usize..20_000, any::<bool>()).prop_map(
                    |(new_file, count, extra, settles)| Written { new_file, count, extra, settles },
                ),
                1..20,
            ),
        ) {
            let mapped = written(BackEnd::Mapped, steps.clone());
            let direct = written(BackEnd::Direct, steps);
            prop_assert!(mapped.keys().eq(direct.keys()), "{:?} {:?}", mapped.keys(), direct.keys());
            for (name, bytes) in &mapped {
                let other = &direct[name];
                let differs = bytes.iter().zip(other).position(|(one, two)| one != two);
                prop_assert_eq!((bytes.len(), None), (other.len(), differs), "{:?}", name);
            }
        }
    }
}
