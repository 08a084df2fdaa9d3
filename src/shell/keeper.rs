//! What the log needs done ahead of time, and elsewhere: a thread that may wait for the disk.
//!
//! It makes the next log file before it is asked for, and has the current one grow before it is full.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crossbeam::channel;
use parking_lot::{Mutex, MutexGuard};
use tracing::warn;

use super::book::{self, Book, Room};
use super::disk::LogError;
use crate::storage::journal::{BackEnd, Growth, TEMPORARY_NAME};

/// A log that only lacks a name. Its header is durable.
struct Prepared {
    path: PathBuf,
    book: Book,
}

enum Job {
    Stop,
    Make,
    Grow(Room, Growth),
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
    /// Whether growing was asked for and has not ended.
    growing: AtomicBool,
}

/// The next log, made and not yet named. The thread makes no other meanwhile: under the temporary
/// name it would take this one for a leftover.
pub(crate) struct Made<'a> {
    prepared: MutexGuard<'a, Option<Prepared>>,
}

impl Keeper {
    /// Makes the first log file and starts the thread.
    pub(crate) fn start(
        directory: &Path,
        step_bytes: u64,
        back_end: BackEnd,
    ) -> Result<Keeper, LogError> {
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

    /// The back end that the file system allows.
    pub(crate) fn back_end(&self) -> BackEnd {
        self.shared.back_end
    }

    /// The file made ahead, or one made now.
    pub(crate) fn make(&self) -> Result<Made<'_>, LogError> {
        let mut prepared = self.shared.prepared.lock();
        if prepared.is_none() {
            *prepared = Some(self.shared.prepare()?);
        }
        Ok(Made { prepared })
    }

    /// Has the next file made.
    pub(crate) fn make_ahead(&self) {
        self.ask(Job::Make);
    }

    /// Has a log that is soon full made longer.
    pub(crate) fn grow_ahead(&self, room: Room, growth: Growth) {
        self.shared.growing.store(true, Ordering::Release);
        self.ask(Job::Grow(room, growth));
    }

    /// Whether growing was asked for and has not ended.
    pub(crate) fn is_growing(&self) -> bool {
        self.shared.growing.load(Ordering::Acquire)
    }

    fn ask(&self, job: Job) {
        // Nobody takes it once the server stops, and nobody needs it then.
        let _ = self.jobs.send(job);
    }

    /// Removes the file made ahead, and ends the thread.
    pub(crate) fn stop(&self) {
        self.ask(Job::Stop);
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
        if let Some(prepared) = self.shared.prepared.lock().take() {
            let _ = fs::remove_file(&prepared.path);
        }
    }
}

impl Made<'_> {
    /// Gives the file its name.
    pub(crate) fn name(mut self, path: &Path) -> Result<Book, LogError> {
        let Prepared { path: temporary, book } = self.prepared.take().expect("it was made");
        fs::rename(&temporary, path)
            .map_err(|source| LogError::Begin { path: path.to_path_buf(), source })?;
        Ok(book)
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
        while let Ok(job) = inbox.recv() {
            match job {
                Job::Make => self.prepare_next(),
                Job::Grow(room, growth) => {
                    let grown = room.grow(growth);
                    // Once: it is asked for again with every batch.
                    if let Err(error) = &grown
                        && !fails_to_grow
                    {
                        let path = self.directory.display();
                        warn!(%path, %error, "the transaction log cannot grow ahead of need");
                    }
                    fails_to_grow = grown.is_err();
                    self.growing.store(false, Ordering::Release);
                }
                Job::Stop => return,
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::shell::scratch::Scratch;

    const BACK_ENDS: [BackEnd; 2] = [BackEnd::Mapped, BackEnd::Direct];

    fn keeper(scratch: &Scratch, step_bytes: u64, back_end: BackEnd) -> Keeper {
        Keeper::start(scratch.path(), step_bytes, back_end).unwrap()
    }

    #[test]
    fn logs_that_follow_each_other_at_once_are_files_of_their_own() {
        for back_end in BACK_ENDS {
            let scratch = Scratch::new("keeper");
            let keeper = keeper(&scratch, 4096, back_end);
            let mut begun = Vec::new();
            for number in 0..300 {
                let path = scratch.path().join(format!("log.{number}"));
                let book = keeper.make().unwrap().name(&path).unwrap();
                let inode = book.file().metadata().unwrap().ino();
                begun.push((path, book, inode));
                keeper.make_ahead();
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
            assert!(Keeper::start(scratch.path(), 1 << 50, back_end).is_err());
            assert!(!scratch.path().join(TEMPORARY_NAME).exists());
        }
    }

    #[test]
    fn a_sealed_log_is_not_made_longer_again() {
        for back_end in BACK_ENDS {
            let scratch = Scratch::new("keeper-sealed");
            let keeper = keeper(&scratch, 4096, back_end);
            let book = keeper.make().unwrap().name(&scratch.path().join("log.1")).unwrap();
            let room = book.maker();
            let file = book.into_file();
            file.set_len(40).unwrap();
            room.grow(Growth { len: 1 << 20, ready: 1 << 20 }).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 40);
        }
    }
}
