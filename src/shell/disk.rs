//! The log writer: records appended, one sync for all that gathered while the last one ran.
//!
//! ```text
//! pipeline --append--> log.N                 to its book; nothing is promised
//!          --round---> sync or write         through io_uring; meanwhile the next records gather
//!          <-done----- synced up to zxid     what may be acknowledged
//! ```
//!
//! How bytes get from the book to the disk is the back end's (`book.rs`).
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

use glommio::io::{BufferedFile, DmaFile, OpenOptions};
use tracing::{info, warn};

use super::book::{BackEnd, Book, Growth};
use super::directories::sync_directory;
use super::gathering::{Answered, Gathering, Shaping};
use super::keeper::Keeper;
use super::{sys, whole_ms};
use crate::metrics::{Counter, Recorder, Summary};
use crate::pipeline::Append;
use crate::storage;
use crate::storage::blocks::{BLOCK_BYTES, Extent};
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
    pub(crate) back_end: BackEnd,
    /// How much is allocated at a time.
    pub(crate) step_bytes: u64,
    /// False: nothing is synced (`forceSync=no`), and a crash of the machine may lose what was
    /// acknowledged.
    pub(crate) force_sync: bool,
    /// A slower sync is worth a warning.
    pub(crate) sync_warning: Duration,
    /// How writes gather, where an operator wants them to.
    pub(crate) shaping: Option<Shaping>,
}

/// A log as the pipeline core sees it.
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

    /// For how long a round is better put off, if there is something for one. Once that is over,
    /// nothing, until the round begins.
    fn gathers(&self) -> Option<Duration>;

    /// Whether a round is under way.
    fn in_round(&self) -> bool;

    /// Whether all that was appended is durable and no round is under way.
    fn is_idle(&self) -> bool;

    /// No round is put off any more.
    fn hurry(&mut self);

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

/// What an executor copies for one write; a larger extent takes several.
const DMA_BYTES_MAX: usize = 1 << 20;

/// A log's file as an executor makes it durable.
#[derive(Clone)]
pub(crate) enum ExecutorFile {
    Synced(Rc<BufferedFile>),
    Written(Rc<DmaFile>),
}

impl ExecutorFile {
    /// Another handle on the file of `book`, for the executor that this is called on.
    async fn open(path: &Path, book: &Book) -> io::Result<ExecutorFile> {
        Ok(match book.back_end() {
            BackEnd::Mapped => {
                ExecutorFile::Synced(Rc::new(sys::adopt_file(book.file().try_clone()?)))
            }
            BackEnd::Direct => {
                let mut options = OpenOptions::new();
                options.read(true).write(true).custom_flags(libc::O_DSYNC);
                ExecutorFile::Written(Rc::new(options.dma_open(path).await?))
            }
        })
    }

    /// Makes a log durable: all of it, or the bytes of `extent`.
    async fn make_durable(&self, extent: Option<&Extent>) -> io::Result<()> {
        match (self, extent) {
            (ExecutorFile::Synced(file), None) => Ok(file.fdatasync().await?),
            (ExecutorFile::Written(file), Some(extent)) => {
                let mut offset = extent.offset();
                let mut left = extent.bytes();
                while !left.is_empty() {
                    let mut buffer = file.alloc_dma_buffer(left.len().min(DMA_BYTES_MAX));
                    let len = buffer.len();
                    buffer.as_bytes_mut().copy_from_slice(&left[..len]);
                    // Part of it is written where the disk has no more room, and the rest is then
                    // an error.
                    let written = file.write_at(buffer, offset).await? / BLOCK_BYTES * BLOCK_BYTES;
                    if written == 0 {
                        return Err(io::ErrorKind::WriteZero.into());
                    }
                    left = &left[written..];
                    offset += written as u64;
                }
                Ok(())
            }
            _ => unreachable!("a back end has handles of its own kind"),
        }
    }
}

/// The log being written.
struct Current<H> {
    path: PathBuf,
    start: Zxid,
    book: Book,
    /// The same file, as rounds want it.
    handle: H,
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

/// The log: group commit over a book of either back end. `H` is a file as rounds want to have it.
pub(crate) struct GroupLog<H> {
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
    gathering: Gathering,
    /// What is stored and no round has begun to make durable yet.
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

impl<H: Clone> GroupLog<H> {
    /// With a moment's wait for those who were just answered, unless the operator wants another.
    pub(crate) fn gathering(mut self) -> GroupLog<H> {
        if let Gathering::Nothing = self.gathering {
            self.gathering = Gathering::Answered(Answered::default());
        }
        self
    }

    /// Its first append opens a new file.
    pub(crate) fn open(parts: LogParts) -> GroupLog<H> {
        let LogParts { options, keeper, last, mark, recorder } = parts;
        let syncs = options.force_sync || options.back_end == BackEnd::Mapped;
        assert!(syncs, "a direct log that is not synced is not written either");
        GroupLog {
            keeper,
            current: None,
            waiting: VecDeque::new(),
            stored: last,
            synced: last,
            mark,
            epoch_ends: VecDeque::new(),
            in_round: false,
            gathering: Gathering::new(options.shaping),
            queue: Queue::default(),
            recorder,
            options: Arc::new(options),
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
        let space = |source| LogError::Space { path: current.path.clone(), source };
        current.book.append(&append.records, self.options.step_bytes).map_err(space)?;
        self.queue.add(append);
        current.last = append.last;
        self.stored = append.last;
        // Ahead of need, and elsewhere: the file system may take its time.
        if let Some(growth) = current.book.growth_ahead(self.options.step_bytes) {
            self.keeper.grow_ahead(growth);
        }
        Ok(())
    }

    /// Whether a roll has to wait until all that was stored is durable. A mapped log is synced by
    /// the roll itself.
    fn must_write_first(&self) -> bool {
        let is_direct = |log: &Current<H>| log.book.back_end() == BackEnd::Direct;
        self.stored != self.synced && self.current.as_ref().is_some_and(is_direct)
    }
}

impl<H: Clone> Log for GroupLog<H> {
    type Round = LogRound<H>;
    type Done = Done<H>;

    fn append(&mut self, append: &mut Append) -> Result<(), LogError> {
        self.gathering.on_append();
        let must_wait = append.new_file || !self.waiting.is_empty();
        if must_wait {
            assert!(append.new_file || self.current.is_some() || !self.waiting.is_empty());
            self.waiting.push_back(std::mem::take(append));
            return Ok(());
        }
        self.store(append)
    }

    fn round(&mut self) -> Option<LogRound<H>> {
        assert!(!self.in_round, "one round at a time");
        let options = Arc::clone(&self.options);
        if let Some(next) = self.waiting.front().filter(|_| !self.must_write_first()) {
            let before = self.mark.unwrap_or_else(|| Watermark::new(next.first, self.stored));
            let watermark = Watermark {
                epoch_ends: before.epoch_ends,
                ..Watermark::new(next.first, self.stored)
            };
            self.in_round = true;
            self.gathering.on_interruption();
            let through = self.stored;
            let old =
                self.current.take().map(|current| Old { path: current.path, book: current.book });
            let keeper = Arc::clone(&self.keeper);
            let roll = Roll { old, watermark, options, keeper };
            return Some(LogRound::Wait(Waiting::Roll { roll, through }));
        }
        if self.stored == self.synced || self.gathers().is_some_and(|left| !left.is_zero()) {
            return None;
        }
        let current = self.current.as_mut().expect("what was stored is in an open log");
        self.in_round = true;
        if let Some(growth) = current.book.growth_now(options.step_bytes) {
            let path = current.path.clone();
            return Some(LogRound::Wait(Waiting::Grow { growth, path }));
        }
        self.gathering.on_begin(self.queue.count);
        Some(LogRound::Sync(Sync {
            handle: current.handle.clone(),
            extent: current.book.take(),
            through: self.stored,
            offset: current.book.end(),
            options,
            log: current.start,
            queue: std::mem::take(&mut self.queue),
        }))
    }

    fn gathers(&self) -> Option<Duration> {
        let has_some = !self.in_round && self.stored != self.synced;
        has_some.then(|| self.gathering.left(self.queue.count)).flatten()
    }

    fn in_round(&self) -> bool {
        self.in_round
    }

    fn is_idle(&self) -> bool {
        !self.in_round && self.waiting.is_empty() && self.stored == self.synced
    }

    fn hurry(&mut self) {
        self.gathering = Gathering::Nothing;
    }

    fn seal(&mut self) -> Result<(), LogError> {
        assert!(self.is_idle(), "a log is sealed when all of it is durable");
        let Some(current) = self.current.take() else { return Ok(()) };
        self.keeper.seal(&current.path, current.book)
    }

    fn on_round(&mut self, done: Done<H>) -> Result<Option<Zxid>, LogError> {
        assert!(self.in_round, "a round ends that has begun");
        self.in_round = false;
        match done {
            Done::Synced { through, log, offset, queue, waited, took, extent } => {
                self.measure(queue, waited, took);
                self.gathering.on_synced(queue.count, self.queue.count, took);
                if let (Some(current), Some(extent)) = (&mut self.current, extent) {
                    current.book.give_back(extent);
                }
                if self.options.force_sync {
                    self.recorder.record(Summary::FsyncTime, whole_ms(took));
                    if self.options.sync_warning <= took {
                        self.recorder.add(Counter::FsyncThresholdExceedCount, 1);
                        let size = self.current.as_ref().map(|log| log.book.end());
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
            Done::Grown => Ok(None),
            Done::Rolled(Rolled { through, path, watermark, book }, handle) => {
                let start = watermark.log;
                self.mark = Some(watermark);
                info!(target: "ringkeeper::shell::disk", "Creating new log file: {}",
                    path.file_name().unwrap_or_default().display());
                self.current = Some(Current { path, start, book, handle, last: through });
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
                // The log in use comes first.
                self.keeper.prepare_ahead();
                Ok(news.then_some(through))
            }
        }
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
pub(crate) enum LogRound<H> {
    Sync(Sync<H>),
    Wait(Waiting),
}

/// What one round has done.
pub(crate) enum Done<H> {
    Synced {
        through: Zxid,
        log: Zxid,
        offset: u64,
        queue: Queue,
        /// From when the first of the queue came until the sync began.
        waited: Duration,
        took: Duration,
        /// What was written, to be used again.
        extent: Option<Extent>,
    },
    Rolled(Rolled, H),
    Grown,
}

/// A log that was begun.
pub(crate) struct Rolled {
    through: Zxid,
    path: PathBuf,
    watermark: Watermark,
    book: Book,
}

/// Makes the log being written durable: as it is on the disk, or with what is to be written.
pub(crate) struct Sync<H> {
    pub(crate) handle: H,
    /// What is to be written, from a back end that writes.
    pub(crate) extent: Option<Extent>,
    options: Arc<LogOptions>,
    log: Zxid,
    through: Zxid,
    offset: u64,
    queue: Queue,
}

/// The log before, to be sealed.
struct Old {
    path: PathBuf,
    book: Book,
}

/// From one log to the next. Nothing in here may wait on an executor: it is all done elsewhere.
pub(crate) struct Roll {
    old: Option<Old>,
    watermark: Watermark,
    options: Arc<LogOptions>,
    keeper: Arc<Keeper>,
}

/// A round that waits for the disk several times: for a thread of its own.
pub(crate) enum Waiting {
    Roll {
        roll: Roll,
        through: Zxid,
    },
    /// A log outran those who make room in it.
    Grow {
        growth: Growth,
        path: PathBuf,
    },
}

/// What came of it.
pub(crate) enum Waited {
    Rolled(Box<Rolled>),
    Grown,
}

impl Waiting {
    pub(crate) fn run(self) -> Result<Waited, LogError> {
        match self {
            Waiting::Roll { roll, through } => {
                roll.run(through).map(|rolled| Waited::Rolled(Box::new(rolled)))
            }
            Waiting::Grow { growth, path } => match growth.run() {
                Ok(()) => Ok(Waited::Grown),
                Err(source) => Err(LogError::Space { path, source }),
            },
        }
    }

    /// The log that it is about.
    pub(crate) fn path(&self) -> PathBuf {
        match self {
            Waiting::Roll { roll, .. } => roll.path(),
            Waiting::Grow { path, .. } => path.clone(),
        }
    }
}

impl Waited {
    /// For a ring of ours, which takes a file as it is.
    pub(crate) fn end(self) -> Done<Arc<File>> {
        match self {
            Waited::Rolled(rolled) => {
                let file = Arc::clone(rolled.book.file());
                Done::Rolled(*rolled, file)
            }
            Waited::Grown => Done::Grown,
        }
    }
}

impl Round for LogRound<ExecutorFile> {
    type Done = Done<ExecutorFile>;

    async fn run(self) -> Result<Done<ExecutorFile>, LogError> {
        let waiting = match self {
            LogRound::Sync(sync) => {
                let began = Instant::now();
                let result = if sync.is_forced() {
                    sync.handle.make_durable(sync.extent.as_ref()).await
                } else {
                    Ok(())
                };
                return sync.end(began, result);
            }
            LogRound::Wait(waiting) => waiting,
        };
        match glommio::executor().spawn_blocking(move || waiting.run()).await? {
            Waited::Rolled(rolled) => {
                let opened = ExecutorFile::open(&rolled.path, &rolled.book).await;
                let path = rolled.path.clone();
                let handle = opened.map_err(|source| LogError::Begin { path, source })?;
                Ok(Done::Rolled(*rolled, handle))
            }
            Waited::Grown => Ok(Done::Grown),
        }
    }
}

impl<H> Sync<H> {
    /// Whether it is to be synced at all.
    pub(crate) fn is_forced(&self) -> bool {
        self.options.force_sync
    }

    /// It began then and has ended, and this came of it.
    pub(crate) fn end(self, began: Instant, result: io::Result<()>) -> Result<Done<H>, LogError> {
        let Sync { log, through, offset, queue, extent, .. } = self;
        result.map_err(|source| LogError::Sync {
            path: self.options.directory.join(storage::log_name(log)),
            source,
        })?;
        let waited = queue.since.map_or(Duration::ZERO, |since| began - since);
        Ok(Done::Synced { through, log, offset, queue, waited, took: began.elapsed(), extent })
    }
}

impl Roll {
    /// The log that it begins.
    fn path(&self) -> PathBuf {
        self.options.directory.join(storage::log_name(self.watermark.log))
    }

    /// In this order; each step is durable before the next.
    fn run(self, through: Zxid) -> Result<Rolled, LogError> {
        let path = self.path();
        let Roll { old, watermark, options, keeper } = self;
        if let Some(Old { path, book }) = old {
            keeper.seal(&path, book)?;
        }
        let book = keeper.begin(&path)?;
        sync_directory(&options.directory)
            .and_then(|()| keeper.store_watermark(watermark))
            .map_err(|source| LogError::Begin { path: path.clone(), source })?;
        Ok(Rolled { through, path, watermark, book })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::OsString;
    use std::fs;

    use glommio::LocalExecutorBuilder;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::metrics::Metrics;
    use crate::record::txn::{Txn, TxnHeader};
    use crate::shell::keeper::TEMPORARY_NAME;
    use crate::shell::scratch::Scratch;
    use crate::storage::replay::{Options, Replayed, replay};
    use crate::storage::txnlog;

    fn options(scratch: &Scratch, back_end: BackEnd) -> LogOptions {
        LogOptions {
            back_end,
            directory: scratch.path().join("version-2"),
            step_bytes: 64 * 1024,
            force_sync: true,
            sync_warning: Duration::from_secs(10),
            shaping: None,
        }
    }

    type Executors = GroupLog<ExecutorFile>;

    fn open(scratch: &Scratch, options: LogOptions, last: Zxid) -> Executors {
        fs::create_dir_all(&options.directory).unwrap();
        let watermark = scratch.path().join("ringkeeper.watermark");
        let keeper =
            Keeper::start(&options.directory, &watermark, options.step_bytes, options.back_end);
        let keeper = keeper.unwrap();
        let recorder = Metrics::new(1).1.remove(0);
        let keeper = Arc::new(keeper);
        GroupLog::open(LogParts { options, keeper, last, mark: None, recorder })
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
    fn with_each<F: Future<Output = ()> + 'static>(
        name: &str,
        test: impl FnOnce(Scratch, BackEnd) -> F + Copy + Send + 'static,
    ) {
        for back_end in [BackEnd::Mapped, BackEnd::Direct] {
            let scratch = Scratch::new(&format!("{name}-{back_end:?}"));
            let test = move || test(scratch, back_end);
            let executor = LocalExecutorBuilder::default().io_memory(64 << 10).spawn(test);
            executor.unwrap().join().unwrap();
        }
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
        with_each("log", |scratch, back_end| async move {
            let mut log = open(&scratch, options(&scratch, back_end), Zxid(0));
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
    }

    #[test]
    fn appends_during_a_roll_wait_and_keep_their_order() {
        with_each("log-roll", |scratch, back_end| async move {
            let mut log = open(&scratch, options(&scratch, back_end), Zxid(0));
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
        with_each("log-group", |scratch, back_end| async move {
            let mut log = open(&scratch, options(&scratch, back_end), Zxid(0));
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
        with_each("log-measured", |scratch, back_end| async move {
            let mut log = open(&scratch, options(&scratch, back_end), Zxid(0));
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
        with_each("log-sync", |scratch, back_end| async move {
            let mut log = open(&scratch, options(&scratch, back_end), Zxid(0));
            log.append(&mut append(true, 1..=1, 10)).unwrap();
            settle(&mut log).await;
            // A file that takes no sync or write: the kernel refuses, as a broken disk would.
            log.current.as_mut().unwrap().handle = match back_end {
                BackEnd::Mapped => {
                    let broken = File::open("/dev/null").unwrap();
                    ExecutorFile::Synced(Rc::new(sys::adopt_file(broken)))
                }
                BackEnd::Direct => {
                    let path = scratch.path().join("version-2/log.1");
                    ExecutorFile::Written(Rc::new(DmaFile::open(path).await.unwrap()))
                }
            };
            log.append(&mut append(false, 2..=2, 10)).unwrap();
            let failed = log.round().unwrap().run().await;
            let Err(error @ LogError::Sync { .. }) = failed else { panic!("it was not synced") };
            assert!(error.to_string().contains("version-2/log.1"), "{error}");
            assert!(!log.is_idle());
        });
    }

    #[test]
    fn a_log_that_cannot_grow_says_so() {
        with_each("log-full", |scratch, back_end| async move {
            let mut log = open(&scratch, options(&scratch, back_end), Zxid(0));
            log.append(&mut append(true, 1..=1, 10)).unwrap();
            settle(&mut log).await;
            log.options =
                Arc::new(LogOptions { step_bytes: 1 << 50, ..options(&scratch, back_end) });
            let error = match log.append(&mut append(false, 2..=2, 3_000_000)) {
                Ok(()) => log.round().unwrap().run().await.err().expect("there is no such disk"),
                Err(error) => error,
            };
            assert!(matches!(error, LogError::Space { .. }), "{error}");
            assert_eq!(replayed(&scratch).0, [1]);
        });
    }

    /// One append: what it asks for, and whether all is made durable after it.
    #[derive(Clone, Copy, Debug)]
    struct Step {
        new_file: bool,
        count: i64,
        extra: usize,
        settles: bool,
    }

    /// The log files that `steps` lead to, by name.
    fn written(back_end: BackEnd, steps: Vec<Step>) -> BTreeMap<OsString, Vec<u8>> {
        let executor =
            LocalExecutorBuilder::default().io_memory(64 << 10).spawn(move || async move {
                let scratch = Scratch::new(&format!("log-{back_end:?}"));
                let mut log = open(&scratch, options(&scratch, back_end), Zxid(0));
                let mut next = 1;
                for (index, step) in steps.into_iter().enumerate() {
                    let new_file = step.new_file || index == 0;
                    let mut records = append(new_file, next..=next + step.count - 1, step.extra);
                    log.append(&mut records).unwrap();
                    next += step.count;
                    if step.settles {
                        settle(&mut log).await;
                    }
                }
                settle(&mut log).await;
                assert!(replayed(&scratch).0.into_iter().eq(1..next));
                log.seal().unwrap();
                let files = fs::read_dir(scratch.path().join("version-2")).unwrap();
                let files = files.map(|entry| entry.unwrap());
                let files = files.map(|file| (file.file_name(), fs::read(file.path()).unwrap()));
                files.filter(|(name, _)| name != TEMPORARY_NAME).collect()
            });
        executor.unwrap().join().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn both_back_ends_write_the_same_files(
            steps in vec(
                (prop::bool::weighted(0.1), 1_i64..40, 0_usize..20_000, any::<bool>()).prop_map(
                    |(new_file, count, extra, settles)| Step { new_file, count, extra, settles },
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
