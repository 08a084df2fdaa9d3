//! The log writer: records appended, one sync for all that gathered while the last one ran.
//!
//! ```text
//! pipeline --append--> map of log.N          a store; nothing is promised
//!          --round---> fdatasync             through io_uring; meanwhile the next records gather
//!          <-done----- synced up to zxid     what may be acknowledged
//! ```
//!
//! A roll is a round too. The old log is synced and cut to end with its last record; then a file
//! made ahead gets its name, the directory is synced, and the watermark names it; only then its
//! first record is stored (`storage/mod.rs` says why). What is appended meanwhile waits in memory;
//! the only thread that waits is one for this.
//!
//! The first sync that fails is the last: the kernel has dropped what it could not write and would
//! say nothing the next time. The error goes up and ends the process, and nothing after it is
//! acknowledged.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use glommio::io::BufferedFile;
use tracing::{info, warn};

use super::directories::sync_directory;
use super::keeper::Keeper;
use super::map::Map;
use super::{sys, whole_ms};
use crate::metrics::{Counter, Recorder, Summary};
use crate::pipeline::Append;
use crate::storage;
use crate::storage::segment::Segment;
use crate::storage::watermark::Watermark;
use crate::types::Zxid;

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
}

/// How the log is written.
#[derive(Clone, Debug)]
pub(crate) struct LogOptions {
    /// `version-2` of dataLogDir.
    pub(crate) directory: PathBuf,
    /// How much is allocated at a time.
    pub(crate) step_bytes: u64,
    /// False: nothing is synced (`forceSync=no`), and a crash of the machine may lose what was
    /// acknowledged.
    pub(crate) force_sync: bool,
    /// A slower sync is worth a warning.
    pub(crate) sync_warning: Duration,
}

/// A log as the pipeline core sees it: the seam between back ends.
pub(crate) trait Log {
    /// Work that takes its time and leaves the log alone. Who runs it depends on the core.
    type Round;
    /// What one round has done.
    type Done;

    /// Takes records; `round` makes them durable. What is in `append` may be taken out of it.
    fn append(&mut self, append: &mut Append) -> Result<(), LogError>;

    /// What has to be done next so that all that was appended becomes durable. One round is under
    /// way at a time.
    fn round(&mut self) -> Option<Self::Round>;

    /// Whether a round is under way.
    fn in_round(&self) -> bool;

    /// Whether all that was appended is durable and no round is under way.
    fn is_idle(&self) -> bool;

    /// Ends the log, idle as it is: nothing more will come.
    fn seal(&mut self) -> Result<(), LogError>;

    /// A round is over. Everything up to the zxid that is returned is durable.
    fn on_round(&mut self, done: Self::Done) -> Result<Option<Zxid>, LogError>;
}

/// A round that an executor can run.
pub(crate) trait Round {
    type Done;
    fn run(self) -> impl Future<Output = Result<Self::Done, LogError>>;
}

/// A log's file as whoever syncs it wants to have it.
pub(crate) trait Handle: Clone {
    fn adopt(file: File) -> Self;
}

/// For a ring of ours.
impl Handle for Arc<File> {
    fn adopt(file: File) -> Arc<File> {
        Arc::new(file)
    }
}

/// For the executor that this is called on.
impl Handle for Rc<BufferedFile> {
    fn adopt(file: File) -> Rc<BufferedFile> {
        Rc::new(sys::adopt_file(file))
    }
}

/// The log being written.
struct Current<H> {
    path: PathBuf,
    start: Zxid,
    segment: Segment<Map>,
    /// The same file, to be synced.
    sync: H,
    /// The last zxid stored in it.
    last: Zxid,
}

/// What a log is opened with, on the core that it belongs to.
pub(crate) struct LogParts {
    pub(crate) options: LogOptions,
    pub(crate) keeper: Arc<Keeper>,
    /// The log goes on after this.
    pub(crate) last: Zxid,
    /// The watermark so far.
    pub(crate) mark: Option<Watermark>,
    pub(crate) recorder: Recorder,
}

/// The back end that stores into a mapped file.
pub(crate) struct MappedLog<H> {
    options: Arc<LogOptions>,
    keeper: Arc<Keeper>,
    current: Option<Current<H>>,
    /// Appends that cannot be stored before the roll that the first of them asks for is done.
    waiting: VecDeque<Append>,
    stored: Zxid,
    synced: Zxid,
    /// What the newest round made durable; `None` before the first log of a directory.
    mark: Option<Watermark>,
    /// Ends of epochs that are stored and not yet in the watermark.
    epoch_ends: VecDeque<Zxid>,
    in_round: bool,
    /// What no round has begun to make durable yet.
    queue: Queue,
    recorder: Recorder,
}

/// Records that wait for a round, as metrics tell of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Queue {
    count: u64,
    /// When the first of them came.
    since: Option<Instant>,
}

impl Queue {
    fn add(&mut self, append: &Append) {
        let count = append.last.0 - append.first.0 + 1;
        self.count += u64::try_from(count).unwrap_or(0);
        self.since.get_or_insert_with(Instant::now);
    }
}

impl<H: Handle> MappedLog<H> {
    /// Its first append opens a new file.
    pub(crate) fn open(parts: LogParts) -> MappedLog<H> {
        let LogParts { options, keeper, last, mark, recorder } = parts;
        MappedLog {
            options: Arc::new(options),
            keeper,
            current: None,
            waiting: VecDeque::new(),
            stored: last,
            synced: last,
            mark,
            epoch_ends: VecDeque::new(),
            in_round: false,
            queue: Queue::default(),
            recorder,
        }
    }

    /// Tells of a round, after `SyncRequestProcessor`, once for all requests of it.
    fn measure(&self, queue: Queue, waited: Duration, took: Duration) {
        let (waited_ms, took_ms) = (whole_ms(waited), whole_ms(took));
        let recorder = &self.recorder;
        recorder.add(Counter::SyncProcessorRequestQueued, queue.count);
        for (summary, value) in [
            (Summary::SyncProcessorBatchSize, queue.count),
            (Summary::SyncProcessorQueueSize, queue.count),
            (Summary::SyncProcessTime, took_ms),
            (Summary::SyncProcessorQueueTimeMs, waited_ms),
            (Summary::SyncProcessorQueueFlushTimeMs, took_ms),
            (Summary::SyncProcessorQueueAndFlushTimeMs, whole_ms(waited + took)),
        ] {
            recorder.record(summary, value);
        }
    }

    fn store(&mut self, append: &Append) -> Result<(), LogError> {
        let current = self.current.as_mut().expect("records are stored into an open log");
        assert!(current.last < append.first && append.first <= append.last, "zxids ascend");
        assert!(append.first.epoch() == append.last.epoch(), "an append is of one epoch");
        if Zxid::ZERO < current.last && current.last.epoch() < append.first.epoch() {
            self.epoch_ends.push_back(current.last);
        }
        if let Err(full) = current.segment.append(&append.records) {
            grow(current, &self.options, full.needed)?;
            let appended = current.segment.append(&append.records);
            assert_eq!(appended, Ok(()), "a log that has grown has the room that was asked for");
        }
        current.last = append.last;
        self.stored = append.last;
        let size = current.segment.bytes().len();
        // Ahead of need, and elsewhere: the file system may take its time.
        if current.segment.room() < size.min(to_usize(self.options.step_bytes)) / 4 {
            let map = current.segment.storage();
            self.keeper.grow_ahead(Arc::clone(map.file()), map.len() + self.options.step_bytes);
        }
        Ok(())
    }
}

impl<H: Handle> Log for MappedLog<H> {
    type Round = MappedRound<H>;
    type Done = Done;

    fn append(&mut self, append: &mut Append) -> Result<(), LogError> {
        self.queue.add(append);
        let must_wait = append.new_file || !self.waiting.is_empty();
        if must_wait {
            assert!(append.new_file || self.current.is_some() || !self.waiting.is_empty());
            self.waiting.push_back(std::mem::take(append));
            return Ok(());
        }
        self.store(append)
    }

    fn round(&mut self) -> Option<MappedRound<H>> {
        assert!(!self.in_round, "one round at a time");
        let options = Arc::clone(&self.options);
        if let Some(next) = self.waiting.front() {
            let before = self.mark.unwrap_or_else(|| Watermark::new(next.first, self.stored));
            let watermark = Watermark {
                epoch_ends: before.epoch_ends,
                ..Watermark::new(next.first, self.stored)
            };
            self.in_round = true;
            let through = self.stored;
            let old = self.current.take().map(|current| Old {
                end: current.segment.end() as u64,
                path: current.path,
                file: unmapped(current.segment),
            });
            let keeper = Arc::clone(&self.keeper);
            let roll = Roll { old, watermark, options, keeper };
            return Some(MappedRound::Roll { roll, through });
        }
        if self.stored == self.synced {
            return None;
        }
        let current = self.current.as_ref().expect("what was stored is in an open log");
        self.in_round = true;
        Some(MappedRound::Sync(Sync {
            file: current.sync.clone(),
            through: self.stored,
            offset: current.segment.end() as u64,
            options,
            log: current.start,
            queue: std::mem::take(&mut self.queue),
        }))
    }

    fn in_round(&self) -> bool {
        self.in_round
    }

    fn is_idle(&self) -> bool {
        !self.in_round && self.waiting.is_empty() && self.stored == self.synced
    }

    fn seal(&mut self) -> Result<(), LogError> {
        assert!(self.is_idle(), "a log is sealed when all of it is durable");
        let Some(current) = self.current.take() else { return Ok(()) };
        let (path, end) = (current.path, current.segment.end() as u64);
        let file = unmapped(current.segment);
        seal(&path, &file, end)
    }

    fn on_round(&mut self, done: Done) -> Result<Option<Zxid>, LogError> {
        assert!(self.in_round, "a round ends that has begun");
        self.in_round = false;
        match done {
            Done::Synced { through, log, offset, queue, waited, took } => {
                self.measure(queue, waited, took);
                if self.options.force_sync {
                    self.recorder.record(Summary::FsyncTime, whole_ms(took));
                    if self.options.sync_warning <= took {
                        self.recorder.add(Counter::FsyncThresholdExceedCount, 1);
                        let size = self.current.as_ref().map(|log| log.segment.bytes().len());
                        warn_of_slow_sync(took, size.unwrap_or(0));
                    }
                }
                assert!(self.synced < through && through <= self.stored);
                self.synced = through;
                let mut mark = self.mark.expect("set when the log was begun");
                (mark.log, mark.offset, mark.zxid) = (log, offset, through);
                while let Some(end) = self.epoch_ends.pop_front_if(|end| *end <= through) {
                    mark.end_epoch(end);
                }
                self.mark = Some(mark);
                self.keeper.note(mark);
                Ok(Some(through))
            }
            Done::Rolled { through, path, watermark, segment, file } => {
                let start = watermark.log;
                self.mark = Some(watermark);
                info!(target: "ringkeeper::shell::disk", "Creating new log file: {}",
                    path.file_name().unwrap_or_default().display());
                let sync = H::adopt(file);
                self.current = Some(Current { path, start, segment, sync, last: through });
                self.keeper.prepare_ahead();
                let news = self.synced < through;
                self.synced = self.synced.max(through);
                // The first of those that waited asked for this log, the next may ask for another.
                while let Some(mut append) = self.waiting.pop_front() {
                    if append.new_file && append.first != start {
                        self.waiting.push_front(append);
                        break;
                    }
                    append.new_file = false;
                    self.store(&append)?;
                }
                Ok(news.then_some(through))
            }
        }
    }
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// The log by at least `needed` bytes, in whole steps.
fn grow<H>(current: &mut Current<H>, options: &LogOptions, needed: usize) -> Result<(), LogError> {
    let step = options.step_bytes;
    let end = current.segment.end() + needed;
    let map = current.segment.storage();
    let missing = (end as u64).saturating_sub(map.len());
    let len = map.len() + missing.div_ceil(step).max(1) * step;
    map.grow(len).map_err(|source| LogError::Space { path: current.path.clone(), source })
}

fn warn_of_slow_sync(took: Duration, size: usize) {
    // The text is ZooKeeper's, missing blank included: scripts look for it.
    warn!(
        target: "ringkeeper::shell::disk",
        "fsync-ing the write ahead log in {} took {}ms which will adversely effect operation \
         latency.File size is {size} bytes. See the ZooKeeper troubleshooting guide",
        std::thread::current().name().unwrap_or("pipeline"),
        took.as_millis(),
    );
}

/// The file of a log, its map gone: it may be cut now.
fn unmapped(mut segment: Segment<Map>) -> Arc<File> {
    Arc::clone(segment.storage().file())
}

/// Cuts a log to end with its last record, durably.
fn seal(path: &Path, file: &File, end: u64) -> Result<(), LogError> {
    // The new length is needed to read the records back, so fdatasync covers it.
    file.set_len(end)
        .and_then(|()| file.sync_data())
        .map_err(|source| LogError::Sync { path: path.to_path_buf(), source })
}

/// What one round does.
pub(crate) enum MappedRound<H> {
    Sync(Sync<H>),
    Roll { roll: Roll, through: Zxid },
}

/// What one round has done.
pub(crate) enum Done {
    Synced {
        through: Zxid,
        log: Zxid,
        offset: u64,
        queue: Queue,
        /// From when the first of the queue came until the sync began.
        waited: Duration,
        took: Duration,
    },
    Rolled {
        through: Zxid,
        path: PathBuf,
        watermark: Watermark,
        segment: Segment<Map>,
        file: File,
    },
}

/// One fdatasync of the log being written.
pub(crate) struct Sync<H> {
    pub(crate) file: H,
    options: Arc<LogOptions>,
    log: Zxid,
    through: Zxid,
    offset: u64,
    queue: Queue,
}

/// The log before, to be sealed.
struct Old {
    path: PathBuf,
    file: Arc<File>,
    end: u64,
}

/// From one log to the next. Nothing in here may wait on an executor: it is all done elsewhere.
pub(crate) struct Roll {
    old: Option<Old>,
    watermark: Watermark,
    options: Arc<LogOptions>,
    keeper: Arc<Keeper>,
}

impl Round for MappedRound<Rc<BufferedFile>> {
    type Done = Done;

    async fn run(self) -> Result<Done, LogError> {
        match self {
            MappedRound::Sync(sync) => sync.run().await,
            MappedRound::Roll { roll, through } => {
                glommio::executor().spawn_blocking(move || roll.run(through)).await
            }
        }
    }
}

// A store through the map dirties the inode's pages, and fdatasync on any descriptor of the inode
// writes them: measured by the kernel's count of dirty pages.
impl<H> Sync<H> {
    /// Whether it is to be synced at all.
    pub(crate) fn is_forced(&self) -> bool {
        self.options.force_sync
    }

    /// It began then and has ended, and this came of it.
    pub(crate) fn end(&self, began: Instant, result: io::Result<()>) -> Result<Done, LogError> {
        let Sync { log, through, offset, queue, .. } = *self;
        result.map_err(|source| LogError::Sync {
            path: self.options.directory.join(storage::log_name(log)),
            source,
        })?;
        let waited = queue.since.map_or(Duration::ZERO, |since| began - since);
        Ok(Done::Synced { through, log, offset, queue, waited, took: began.elapsed() })
    }
}

impl Sync<Rc<BufferedFile>> {
    async fn run(self) -> Result<Done, LogError> {
        let began = Instant::now();
        let synced = if self.is_forced() { self.file.fdatasync().await } else { Ok(()) };
        self.end(began, synced.map_err(io::Error::from))
    }
}

impl Roll {
    /// The log that it begins.
    pub(crate) fn path(&self) -> PathBuf {
        self.options.directory.join(storage::log_name(self.watermark.log))
    }

    /// In this order; each step is durable before the next.
    pub(crate) fn run(self, through: Zxid) -> Result<Done, LogError> {
        let path = self.path();
        let Roll { old, watermark, options, keeper } = self;
        if let Some(Old { path, file, end }) = old {
            seal(&path, &file, end)?;
        }
        let (segment, file) = keeper.begin(&path)?;
        sync_directory(&options.directory)
            .and_then(|()| keeper.store_watermark(watermark))
            .map_err(|source| LogError::Begin { path: path.clone(), source })?;
        Ok(Done::Rolled { through, path, watermark, segment, file })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use glommio::LocalExecutorBuilder;

    use super::*;
    use crate::metrics::Metrics;
    use crate::record::txn::{Txn, TxnHeader};
    use crate::shell::scratch::Scratch;
    use crate::storage::replay::{Options, Replayed, replay};
    use crate::storage::txnlog;

    fn options(scratch: &Scratch) -> LogOptions {
        LogOptions {
            directory: scratch.path().join("version-2"),
            step_bytes: 64 * 1024,
            force_sync: true,
            sync_warning: Duration::from_secs(10),
        }
    }

    type Executors = MappedLog<Rc<BufferedFile>>;

    fn open(scratch: &Scratch, options: LogOptions, last: Zxid) -> Executors {
        fs::create_dir_all(&options.directory).unwrap();
        let watermark = scratch.path().join("ringkeeper.watermark");
        let keeper = Keeper::start(&options.directory, &watermark, options.step_bytes).unwrap();
        let recorder = Metrics::new(1).1.remove(0);
        let keeper = Arc::new(keeper);
        MappedLog::open(LogParts { options, keeper, last, mark: None, recorder })
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

    fn on_executor<F: Future<Output = ()> + 'static>(test: impl FnOnce() -> F + Send + 'static) {
        LocalExecutorBuilder::default().io_memory(64 << 10).spawn(test).unwrap().join().unwrap();
    }

    /// Runs rounds until all is durable, and says what became so, round by round.
    async fn settle(log: &mut Executors) -> Vec<Zxid> {
        let mut synced = Vec::new();
        while let Some(round) = log.round() {
            let done = round.run().await.unwrap();
            synced.extend(log.on_round(done).unwrap());
        }
        assert!(log.is_idle());
        synced
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
        let options = Options { from: Zxid(0), watermark, payload_bytes_max: 4 << 20 };
        let mut zxids = Vec::new();
        let logs = logs.iter().map(|(start, bytes, path)| (path, *start, bytes.as_slice()));
        let replayed = replay(logs, options, |record| zxids.push(record.zxid().0)).unwrap();
        (zxids, replayed)
    }

    #[test]
    fn what_is_synced_is_found_again_after_a_roll_and_growth() {
        let scratch = Scratch::new("log");
        let path = scratch.path().to_path_buf();
        on_executor(move || async move {
            let scratch = scratch;
            let mut log = open(&scratch, options(&scratch), Zxid(0));
            log.append(&mut append(true, 1..=3, 100)).unwrap();
            assert_eq!(settle(&mut log).await, [Zxid(3)]);
            log.append(&mut append(false, 4..=4, 200_000)).unwrap();
            log.append(&mut append(false, 5..=5, 10)).unwrap();
            assert_eq!(settle(&mut log).await, [Zxid(5)]);
            log.append(&mut append(true, 6..=9, 10)).unwrap();
            assert_eq!(settle(&mut log).await, [Zxid(9)]);
            // As a SIGKILL leaves it: nothing is sealed, the map is simply gone.
            let (zxids, replayed) = replayed(&scratch);
            assert_eq!(zxids, (1..=9).collect::<Vec<_>>());
            assert!(replayed.cuts.is_empty() && replayed.torn.is_empty());
            log.seal().unwrap();
            let sealed = fs::read(scratch.path().join("version-2/log.6")).unwrap();
            assert_eq!(sealed.last(), Some(&b'B'));
            assert_eq!(self::replayed(&scratch).0, zxids);
        });
        assert!(!path.exists());
    }

    #[test]
    fn appends_during_a_roll_wait_and_keep_their_order() {
        let scratch = Scratch::new("log-roll");
        on_executor(move || async move {
            let scratch = scratch;
            let mut log = open(&scratch, options(&scratch), Zxid(0));
            log.append(&mut append(true, 1..=1, 10)).unwrap();
            let round = log.round().unwrap();
            log.append(&mut append(false, 2..=2, 10)).unwrap();
            log.append(&mut append(true, 3..=3, 10)).unwrap();
            log.append(&mut append(false, 4..=4, 10)).unwrap();
            let done = round.run().await.unwrap();
            assert_eq!(log.on_round(done).unwrap(), None);
            // The next roll seals what the first log got.
            assert_eq!(settle(&mut log).await, [Zxid(2), Zxid(4)]);
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
        let scratch = Scratch::new("log-group");
        on_executor(move || async move {
            let scratch = scratch;
            let mut log = open(&scratch, options(&scratch), Zxid(0));
            log.append(&mut append(true, 1..=1, 10)).unwrap();
            settle(&mut log).await;
            log.append(&mut append(false, 2..=2, 10)).unwrap();
            let round = log.round().unwrap();
            for zxid in 3..=20 {
                log.append(&mut append(false, zxid..=zxid, 10)).unwrap();
            }
            let done = round.run().await.unwrap();
            assert_eq!(log.on_round(done).unwrap(), Some(Zxid(2)));
            assert_eq!(settle(&mut log).await, [Zxid(20)]);
        });
    }

    #[test]
    fn a_round_is_measured_once_with_all_that_it_made_durable() {
        let scratch = Scratch::new("log-measured");
        on_executor(move || async move {
            let scratch = scratch;
            let mut log = open(&scratch, options(&scratch), Zxid(0));
            let (metrics, mut recorders) = Metrics::new(1);
            log.recorder = recorders.remove(0);
            log.append(&mut append(true, 1..=3, 10)).unwrap();
            log.append(&mut append(false, 4..=5, 10)).unwrap();
            settle(&mut log).await;
            log.append(&mut append(false, 6..=6, 10)).unwrap();
            settle(&mut log).await;
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
        let scratch = Scratch::new("log-sync");
        on_executor(move || async move {
            let scratch = scratch;
            let mut log = open(&scratch, options(&scratch), Zxid(0));
            log.append(&mut append(true, 1..=1, 10)).unwrap();
            settle(&mut log).await;
            // A file that cannot be synced: the kernel refuses, as a broken disk would.
            let broken = File::open("/dev/null").unwrap();
            log.current.as_mut().unwrap().sync = Rc::new(sys::adopt_file(broken));
            log.append(&mut append(false, 2..=2, 10)).unwrap();
            let failed = log.round().unwrap().run().await;
            let Err(error @ LogError::Sync { .. }) = failed else { panic!("it was not synced") };
            assert!(error.to_string().contains("version-2/log.1"), "{error}");
            assert!(!log.is_idle());
        });
    }

    #[test]
    fn a_log_that_cannot_grow_says_so() {
        let scratch = Scratch::new("log-full");
        on_executor(move || async move {
            let scratch = scratch;
            let mut log = open(&scratch, options(&scratch), Zxid(0));
            log.append(&mut append(true, 1..=1, 10)).unwrap();
            settle(&mut log).await;
            log.options = Arc::new(LogOptions { step_bytes: 1 << 50, ..options(&scratch) });
            let error = log.append(&mut append(false, 2..=2, 100_000)).unwrap_err();
            assert!(matches!(error, LogError::Space { .. }), "{error}");
            assert_eq!(replayed(&scratch).0, [1]);
        });
    }
}
