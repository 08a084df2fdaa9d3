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

use super::directories::sync_directory;
use super::disk::LogError;
use super::map::Map;
use super::sys;
use crate::storage::segment::Segment;
use crate::storage::watermark::{WATERMARK_FILE_BYTES, Watermark, WatermarkDamaged};

/// The name of a log before it has one; ZooKeeper does not look at it, and a start removes it.
pub(crate) const TEMPORARY_NAME: &str = "ringkeeper-log.tmp";

/// How far the watermark may lag behind what is synced.
const WATERMARK_EVERY: Duration = Duration::from_secs(1);

/// A log that only lacks a name. Its header is durable.
struct Prepared {
    path: PathBuf,
    segment: Segment<Map>,
    /// The same file, for the ring.
    file: File,
}

enum Job {
    Stop,
    Prepare,
    Grow { file: Arc<File>, len: u64 },
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
    ) -> Result<Keeper, LogError> {
        let begin = |source| LogError::Begin { path: watermark.to_path_buf(), source };
        let shared = Arc::new(Shared {
            directory: directory.to_path_buf(),
            step_bytes,
            prepared: Mutex::default(),
            noted: Mutex::default(),
            watermark: Mutex::new(WatermarkFile::open(watermark).map_err(begin)?),
            growing: AtomicBool::new(false),
        });
        *shared.prepared.lock() = Some(shared.prepare()?);
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
    pub(crate) fn begin(&self, path: &Path) -> Result<(Segment<Map>, File), LogError> {
        // Locked until it has its name: under the one it has before, the thread would take it for
        // a leftover where the next is to be made.
        let mut prepared = self.shared.prepared.lock();
        let Prepared { path: temporary, segment, file } = match prepared.take() {
            Some(prepared) => prepared,
            None => self.shared.prepare()?,
        };
        fs::rename(&temporary, path)
            .map_err(|source| LogError::Begin { path: path.to_path_buf(), source })?;
        Ok((segment, file))
    }

    /// Has the next file made.
    pub(crate) fn prepare_ahead(&self) {
        self.ask(Job::Prepare);
    }

    /// Has a log that is soon full made longer, if that is not under way already.
    pub(crate) fn grow_ahead(&self, file: Arc<File>, len: u64) {
        if !self.shared.growing.swap(true, Ordering::Relaxed) {
            self.ask(Job::Grow { file, len });
        }
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
        loop {
            match inbox.recv_timeout(WATERMARK_EVERY) {
                Ok(Job::Prepare) => self.prepare_next(),
                Ok(Job::Grow { file, len }) => {
                    if let Err(error) = self.grow(&file, len) {
                        let path = self.directory.display();
                        warn!(%path, %error, "the transaction log cannot grow ahead of need");
                    }
                    self.growing.store(false, Ordering::Relaxed);
                }
                Err(RecvTimeoutError::Timeout) => self.store_noted(),
                Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn grow(&self, file: &File, len: u64) -> io::Result<()> {
        // A log that was sealed meanwhile is shorter than it was, and stays so.
        let is_sealed = file.metadata()?.len() + self.step_bytes < len;
        if is_sealed { Ok(()) } else { sys::allocate(file, len) }
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

    /// A file with room for a step, its header durable.
    fn prepare(&self) -> Result<Prepared, LogError> {
        let path = self.directory.join(TEMPORARY_NAME);
        let made = self.make(&path);
        if made.is_err() {
            // It may have taken what little room there is.
            let _ = fs::remove_file(&path);
        }
        made
    }

    fn make(&self, path: &Path) -> Result<Prepared, LogError> {
        let path = path.to_path_buf();
        let space = |source| LogError::Space { path: path.clone(), source };
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(space(error)),
            Ok(()) | Err(_) => {}
        }
        let map = Map::create(&path, self.step_bytes).map_err(space)?;
        let file = map.file().try_clone().map_err(space)?;
        let segment = Segment::create(map);
        file.sync_all().map_err(|source| LogError::Sync { path: path.clone(), source })?;
        Ok(Prepared { path, segment, file })
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

/// The side file with two slots.
struct WatermarkFile {
    file: File,
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
        if is_new {
            file.sync_all()?;
            sync_directory(path.parent().unwrap_or(Path::new(".")))?;
        }
        Ok(WatermarkFile { file, sequence })
    }

    fn store(&mut self, watermark: Watermark) -> io::Result<()> {
        let (offset, slot) = watermark.encode(self.sequence);
        self.file.write_all_at(&slot, offset)?;
        self.file.sync_data()?;
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

    fn keeper(scratch: &Scratch, step_bytes: u64) -> Keeper {
        Keeper::start(scratch.path(), &scratch.path().join("watermark"), step_bytes).unwrap()
    }

    #[test]
    fn logs_that_follow_each_other_at_once_are_files_of_their_own() {
        let scratch = Scratch::new("keeper");
        let keeper = keeper(&scratch, 4096);
        let mut begun = Vec::new();
        for number in 0..300 {
            let path = scratch.path().join(format!("log.{number}"));
            let (segment, file) = keeper.begin(&path).unwrap();
            begun.push((path, segment, file.metadata().unwrap().ino()));
            keeper.prepare_ahead();
        }
        let inodes: BTreeSet<u64> = begun.iter().map(|(_, _, inode)| *inode).collect();
        assert_eq!(inodes.len(), begun.len(), "two logs share a file");
        for (path, segment, inode) in begun {
            assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
            assert_eq!(&segment.bytes()[..4], b"ZKLG", "{}", path.display());
        }
    }

    #[test]
    fn what_cannot_be_made_leaves_nothing_behind() {
        let scratch = Scratch::new("keeper-full");
        let watermark = scratch.path().join("watermark");
        assert!(Keeper::start(scratch.path(), &watermark, 1 << 50).is_err());
        assert!(!scratch.path().join(TEMPORARY_NAME).exists());
    }

    #[test]
    fn a_sealed_log_is_not_made_longer_again() {
        let scratch = Scratch::new("keeper-sealed");
        let keeper = keeper(&scratch, 4096);
        let (_, file) = keeper.begin(&scratch.path().join("log.1")).unwrap();
        keeper.shared.grow(&file, 8192).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 8192);
        file.set_len(100).unwrap();
        keeper.shared.grow(&file, 12_288).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 100);
    }
}
