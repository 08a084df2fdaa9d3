//! What the log needs done ahead of time, and elsewhere: a thread that may wait for the disk.
//!
//! It makes the next log file before it is asked for, has the current one grow before it is full,
//! and stores the watermark about once a second.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{self, RecvTimeoutError};
use parking_lot::Mutex;
use tracing::warn;

use super::book::{self, BackEnd, Book, Growth};
use super::directories::sync_directory;
use super::disk::LogError;
use crate::storage::watermark::{DurableSlots, WATERMARK_FILE_BYTES, Watermark, WatermarkDamaged};

/// The name of a log before it has one; ZooKeeper does not look at it, and a start removes it.
pub(crate) const TEMPORARY_NAME: &str = "ringkeeper-log.tmp";

/// How far the watermark may lag behind what is synced.
const WATERMARK_EVERY: Duration = Duration::from_secs(1);

/// A log that only lacks a name. Its header is durable.
struct Prepared {
    path: PathBuf,
    book: Book,
}

enum Job {
    Stop,
    Prepare,
    Grow(Growth),
}

/// A handle on the thread; the thread ends when it is dropped.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    jobs: channel::Sender<Job>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    directory: PathBuf,
    step_bytes: u64,
    back_end: BackEnd,
    prepared: Mutex<Option<Prepared>>,
    /// The newest watermark, not yet stored.
    noted: Mutex<Option<Watermark>>,
    watermark: Mutex<WatermarkFile>,
    growing: AtomicBool,
}

impl Keeper {
    /// Opens the watermark, makes the first log file and starts the thread.
    pub(crate) fn start(
        directory: &Path,
        watermark: &Path,
        step_bytes: u64,
        back_end: BackEnd,
    ) -> Result<Keeper, LogError> {
        let begin = |source| LogError::Begin { path: watermark.to_path_buf(), source };
        let (back_end, prepared) = match prepare(directory, step_bytes, back_end) {
            Err(error) if back_end == BackEnd::Direct && book::is_unsupported(&error) => {
                let prepared = prepare(directory, step_bytes, BackEnd::Mapped)?;
                warn!(
                    path = %directory.display(), %error,
                    "the file system knows no writes past the page cache: logs are mapped"
                );
                (BackEnd::Mapped, prepared)
            }
            prepared => (back_end, prepared?),
        };
        let shared = Arc::new(Shared {
            directory: directory.to_path_buf(),
            step_bytes,
            back_end,
            prepared: Mutex::new(Some(prepared)),
            noted: Mutex::default(),
            watermark: Mutex::new(WatermarkFile::open(watermark).map_err(begin)?),
            growing: AtomicBool::new(false),
        });
        let (jobs, inbox) = channel::unbounded();
        let thread = thread::Builder::new()
            .name("log-keeper".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.run(&inbox)
            })
            .map_err(|source| LogError::Begin { path: directory.to_path_buf(), source })?;
        Ok(Keeper { shared, jobs, thread: Mutex::new(Some(thread)) })
    }

    /// Gives the file made ahead, or one made now, its name.
    pub(crate) fn begin(&self, path: &Path) -> Result<Book, LogError> {
        // Locked until it has its name: under the one it has before, the thread would take it for
        // a leftover where the next is to be made.
        let mut prepared = self.shared.prepared.lock();
        let Prepared { path: temporary, book } = match prepared.take() {
            Some(prepared) => prepared,
            None => self.shared.prepare()?,
        };
        fs::rename(&temporary, path)
            .map_err(|source| LogError::Begin { path: path.to_path_buf(), source })?;
        Ok(book)
    }

    /// Has the next file made.
    pub(crate) fn prepare_ahead(&self) {
        self.ask(Job::Prepare);
    }

    /// Has a log that is soon full made longer, if that is not under way already.
    pub(crate) fn grow_ahead(&self, growth: Growth) {
        if !self.shared.growing.swap(true, Ordering::Relaxed) {
            self.ask(Job::Grow(growth));
        }
    }

    /// Cuts a log to end with its last record, durably. It does not grow again.
    pub(crate) fn seal(&self, path: &Path, book: Book) -> Result<(), LogError> {
        let end = book.end();
        let file = book.into_file();
        // The new length is needed to read the records back, so fdatasync covers it.
        file.set_len(end)
            .and_then(|()| file.sync_data())
            .map_err(|source| LogError::Sync { path: path.to_path_buf(), source })
    }

    /// Remembers how far the log is durable; it is stored within a second.
    pub(crate) fn note(&self, watermark: Watermark) {
        *self.shared.noted.lock() = Some(watermark);
    }

    /// Stores a watermark now, durably.
    pub(crate) fn store_watermark(&self, watermark: Watermark) -> io::Result<()> {
        // Taken first, so that an older note cannot overtake it.
        let mut file = self.shared.watermark.lock();
        *self.shared.noted.lock() = None;
        file.store(watermark)
    }

    fn ask(&self, job: Job) {
        // Nobody takes it once the server stops, and nobody needs it then.
        let _ = self.jobs.send(job);
    }

    /// Stores what is left to store, removes the file made ahead, and ends the thread.
    pub(crate) fn stop(&self) {
        self.ask(Job::Stop);
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
        self.shared.store_noted();
        if let Some(prepared) = self.shared.prepared.lock().take() {
            let _ = fs::remove_file(&prepared.path);
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn run(&self, inbox: &channel::Receiver<Job>) {
        let mut fails_to_grow = false;
        loop {
            match inbox.recv_timeout(WATERMARK_EVERY) {
                Ok(Job::Prepare) => self.prepare_next(),
                Ok(Job::Grow(growth)) => {
                    let grown = growth.run();
                    // Once: it is asked for again with every batch.
                    if let Err(error) = &grown
                        && !fails_to_grow
                    {
                        let path = self.directory.display();
                        warn!(%path, %error, "the transaction log cannot grow ahead of need");
                    }
                    fails_to_grow = grown.is_err();
                    self.growing.store(false, Ordering::Relaxed);
                }
                Err(RecvTimeoutError::Timeout) => self.store_noted(),
                Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn prepare_next(&self) {
        let mut prepared = self.prepared.lock();
        if prepared.is_some() {
            return;
        }
        match self.prepare() {
            Ok(next) => *prepared = Some(next),
            // Tried again when it is needed, and an error then.
            Err(error) => warn!(%error, "the next transaction log cannot be made ahead of need"),
        }
    }

    fn prepare(&self) -> Result<Prepared, LogError> {
        prepare(&self.directory, self.step_bytes, self.back_end)
    }

    fn store_noted(&self) {
        let mut file = self.watermark.lock();
        let Some(watermark) = self.noted.lock().take() else { return };
        if let Err(error) = file.store(watermark) {
            // It only lags, and recovery is less precise. A disk that cannot take it will not
            // take the log either, and that is the log's to say.
            warn!(%error, "the watermark cannot be stored");
        }
    }
}

/// A file with room for a step, its header durable.
fn prepare(directory: &Path, step_bytes: u64, back_end: BackEnd) -> Result<Prepared, LogError> {
    let path = directory.join(TEMPORARY_NAME);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(LogError::Space { path, source });
        }
        Ok(()) | Err(_) => {}
    }
    match Book::create(back_end, &path, step_bytes) {
        Ok(book) => Ok(Prepared { path, book }),
        Err(error) => {
            // It may have taken what little room there is.
            let _ = fs::remove_file(&path);
            Err(error)
        }
    }
}

/// The side file with two slots.
struct WatermarkFile {
    file: File,
    slots: DurableSlots,
    sequence: u64,
}

impl WatermarkFile {
    fn open(path: &Path) -> io::Result<WatermarkFile> {
        let is_new = !path.exists();
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).mode(0o600).truncate(false);
        let file = file.open(path)?;
        let sequence = match read_watermark(path)? {
            Ok(found) => found.map_or(0, |(sequence, _)| sequence + 1),
            Err(damaged) => return Err(io::Error::new(io::ErrorKind::InvalidData, damaged)),
        };
        file.set_len(WATERMARK_FILE_BYTES as u64)?;
        let slots = DurableSlots::of(&fs::read(path)?);
        if is_new {
            file.sync_all()?;
            sync_directory(path.parent().unwrap_or(Path::new(".")))?;
        }
        Ok(WatermarkFile { file, slots, sequence })
    }

    fn store(&mut self, watermark: Watermark) -> io::Result<()> {
        let slot = watermark.encode(self.sequence);
        self.file.write_all_at(&slot, self.slots.offset())?;
        self.file.sync_data()?;
        self.slots.on_synced();
        self.sequence += 1;
        Ok(())
    }
}

/// What the side file says; an absent file says nothing.
pub(crate) fn read_watermark(
    path: &Path,
) -> io::Result<Result<Option<(u64, Watermark)>, WatermarkDamaged>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Watermark::decode(&bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Ok(None)),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::shell::scratch::Scratch;

    const BACK_ENDS: [BackEnd; 2] = [BackEnd::Mapped, BackEnd::Direct];

    fn keeper(scratch: &Scratch, step_bytes: u64, back_end: BackEnd) -> Keeper {
        let watermark = scratch.path().join("watermark");
        Keeper::start(scratch.path(), &watermark, step_bytes, back_end).unwrap()
    }

    #[test]
    fn logs_that_follow_each_other_at_once_are_files_of_their_own() {
        for back_end in BACK_ENDS {
            let scratch = Scratch::new("keeper");
            let keeper = keeper(&scratch, 4096, back_end);
            let mut begun = Vec::new();
            for number in 0..300 {
                let path = scratch.path().join(format!("log.{number}"));
                let book = keeper.begin(&path).unwrap();
                let inode = book.file().metadata().unwrap().ino();
                begun.push((path, book, inode));
                keeper.prepare_ahead();
            }
            let inodes: BTreeSet<u64> = begun.iter().map(|(_, _, inode)| *inode).collect();
            assert_eq!(inodes.len(), begun.len(), "two logs share a file");
            for (path, _, inode) in begun {
                assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
                assert_eq!(&fs::read(&path).unwrap()[..4], b"ZKLG", "{}", path.display());
            }
        }
    }

    #[test]
    fn what_cannot_be_made_leaves_nothing_behind() {
        for back_end in BACK_ENDS {
            let scratch = Scratch::new("keeper-full");
            let watermark = scratch.path().join("watermark");
            assert!(Keeper::start(scratch.path(), &watermark, 1 << 50, back_end).is_err());
            assert!(!scratch.path().join(TEMPORARY_NAME).exists());
        }
    }

    #[test]
    fn a_sealed_log_is_not_made_longer_again() {
        for back_end in BACK_ENDS {
            let scratch = Scratch::new("keeper-sealed");
            let keeper = keeper(&scratch, 4096, back_end);
            let book = keeper.begin(&scratch.path().join("log.1")).unwrap();
            let growth = book.growth_ahead(1 << 20).expect("a small log is short of room");
            let file = Arc::clone(book.file());
            let end = book.end();
            keeper.seal(&scratch.path().join("log.1"), book).unwrap();
            growth.run().unwrap();
            assert_eq!(file.metadata().unwrap().len(), end);
        }
    }
}
