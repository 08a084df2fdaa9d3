//! The watermark's files: stored into a mapped page after every sync, and made durable a few times a
//! second by threads that do nothing else.
//!
//! ```text
//! core     --note-->  cached slots, through the map      survives the process
//! keeper   --store->  durable slots, durable writes      at most WATERMARK_EVERY later, on the disk
//! ```
//!
//! Each file has a keeper, a thread with one deadline and no other work: neither load nor the growth
//! of a log delays it. What it cannot store it tries again after as long. What a process has left in
//! cached slots alone, because it was killed, the next one makes durable first.
//! Where logs have a directory of their own, the data directory has a copy of the file: so it is known
//! there that there were logs, and where history ended. Only its keeper writes its durable slots, and
//! a truncation does: the data directory may be full or slow, or its disk may hang, and then neither
//! an acknowledgement nor the file beside the logs waits for it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{self, RecvTimeoutError};
use parking_lot::{Condvar, Mutex};
use tracing::warn;

use super::directories::sync_directory;
use super::map::Map;
use crate::storage::watermark::{
    DurableSlots, WATERMARK_FILE_BYTES, Watermark, cached_offset, is_of_another_time,
};

/// How far the durable watermark may lag behind what is synced, besides the time that storing it
/// takes.
const WATERMARK_EVERY: Duration = Duration::from_millis(100);

/// A handle on the files and the keepers; these end when it is dropped.
pub(crate) struct Marks {
    /// The cached slots: of the file beside the logs, and of copies that can be mapped.
    cached: Mutex<Vec<Cached>>,
    /// Of the file beside the logs, which comes first, and of its copy.
    keepers: Vec<Arc<Keeper>>,
    stop: Mutex<Option<channel::Sender<()>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// The newest sequence that was found.
    found: u64,
}

/// One file, and what its thread has to store there.
struct Keeper {
    /// The durable slots. A roll waits for those beside the logs, and never for the copy's.
    file: Mutex<SlotFile>,
    /// The newest watermark that is not in a durable slot of this file.
    noted: Mutex<Option<(u64, Watermark)>>,
    news: Condvar,
    stopping: AtomicBool,
    has_warned: AtomicBool,
}

/// How the cached slots are stored into.
enum Cached {
    Map(Map),
    /// Where the file cannot be mapped: a system call for each sync.
    File {
        file: File,
        has_warned: bool,
    },
}

struct SlotFile {
    path: PathBuf,
    /// Each write is durable when it ends (`O_DSYNC`), and takes only its own page to the disk. A sync of
    /// the file would take the cached slots along, and the next store into one would be a page fault
    /// that has the kernel write the inode: 14 us at p99.9 instead of 1 us.
    file: File,
    slots: DurableSlots,
    /// The newest sequence in its durable slots.
    newest: u64,
}

impl Marks {
    /// Opens the file beside the logs, which comes first, and its copy, and starts the thread.
    pub(crate) fn start(paths: &[PathBuf]) -> io::Result<Marks> {
        let (beside_logs, mut found) = SlotFile::open(&paths[0])?;
        let mut cached = vec![Cached::open(&beside_logs)?];
        let mut files = vec![beside_logs];
        for path in &paths[1..] {
            let opened = SlotFile::open_copy(path).and_then(|(file, newest)| {
                let map = Map::open(path, WATERMARK_FILE_BYTES as u64)?;
                Ok((file, newest, map))
            });
            match opened {
                Ok((file, newest, map)) => {
                    cached.push(Cached::Map(map));
                    let sequence = |of: Option<(u64, Watermark)>| of.map(|(sequence, _)| sequence);
                    if sequence(found) < sequence(newest) {
                        found = newest;
                    }
                    files.push(file);
                }
                Err(error) => {
                    let path = path.display();
                    warn!(%path, %error, "no copy of the watermark: missing logs may go unnoticed");
                }
            }
        }
        let keepers: Vec<Arc<Keeper>> =
            files.into_iter().map(|file| Arc::new(Keeper::new(file, found))).collect();
        let (stop, stopped) = channel::bounded(1);
        let threads = keepers.iter().map(|keeper| {
            let (keeper, stopped) = (Arc::clone(keeper), stopped.clone());
            thread::Builder::new().name("watermark".to_owned()).spawn(move || keeper.run(&stopped))
        });
        let threads = threads.collect::<io::Result<Vec<_>>>()?;
        let found = found.map_or(0, |(sequence, _)| sequence);
        Ok(Marks {
            cached: Mutex::new(cached),
            keepers,
            stop: Mutex::new(Some(stop)),
            threads: Mutex::new(threads),
            found,
        })
    }

    /// The newest sequence in the files before anything was stored.
    pub(crate) fn found(&self) -> u64 {
        self.found
    }

    /// Stores a watermark into a cached slot, at once, and soon into a durable one.
    pub(crate) fn note(&self, sequence: u64, watermark: Watermark) {
        let slot = watermark.encode(sequence);
        let offset = cached_offset(sequence);
        for cached in &mut *self.cached.lock() {
            cached.store(offset, &slot);
        }
        for keeper in &self.keepers {
            keeper.note(sequence, watermark);
        }
    }

    /// Stores a watermark into a durable slot of the file beside the logs, now, and soon into the copy.
    pub(crate) fn store(&self, sequence: u64, watermark: Watermark) -> io::Result<()> {
        self.keepers[0].file.lock().store(sequence, watermark)?;
        for copy in &self.keepers[1..] {
            copy.note(sequence, watermark);
        }
        Ok(())
    }

    /// Stores a watermark that says less than those before into durable slots, now, of the copy as well:
    /// nothing may say more than a truncation leaves.
    pub(crate) fn take_back(&self, sequence: u64, watermark: Watermark) -> io::Result<()> {
        let mut keepers = self.keepers.iter().rev();
        keepers.try_for_each(|keeper| keeper.file.lock().store(sequence, watermark))
    }

    /// Stores what is left to store, and ends the keepers.
    pub(crate) fn stop(&self) {
        *self.stop.lock() = None;
        for keeper in &self.keepers {
            keeper.stopping.store(true, Ordering::Relaxed);
            // The thread looks at the flag with this locked, and cannot miss the notice.
            let _noted = keeper.noted.lock();
            keeper.news.notify_one();
        }
        for thread in self.threads.lock().drain(..) {
            let _ = thread.join();
        }
        for keeper in &self.keepers {
            keeper.store_noted();
        }
    }
}

impl Drop for Marks {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Keeper {
    fn new(file: SlotFile, found: Option<(u64, Watermark)>) -> Keeper {
        let noted = found.filter(|(sequence, _)| file.newest < *sequence);
        Keeper {
            file: Mutex::new(file),
            noted: Mutex::new(noted),
            news: Condvar::new(),
            stopping: AtomicBool::new(false),
            has_warned: AtomicBool::new(false),
        }
    }

    fn note(&self, sequence: u64, watermark: Watermark) {
        let mut noted = self.noted.lock();
        if noted.is_none_or(|(newest, _)| newest < sequence) {
            *noted = Some((sequence, watermark));
            self.news.notify_one();
        }
    }

    fn run(&self, stopped: &channel::Receiver<()>) {
        loop {
            {
                let mut noted = self.noted.lock();
                while noted.is_none() {
                    if self.stopping.load(Ordering::Relaxed) {
                        return;
                    }
                    self.news.wait(&mut noted);
                }
            }
            self.store_noted();
            match stopped.recv_timeout(WATERMARK_EVERY) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn store_noted(&self) {
        let Some((sequence, watermark)) = self.noted.lock().take() else { return };
        let mut file = self.file.lock();
        let stored = file.store(sequence, watermark);
        let has_warned = self.has_warned.swap(stored.is_err(), Ordering::Relaxed);
        if let Err(error) = stored {
            if !has_warned {
                // It only lags, and after a power cut recovery is less precise. A disk that cannot
                // take it will not take the log either, and that is an error of the log.
                let path = file.path.display();
                warn!(%path, %error, "the watermark cannot be stored durably");
            }
            // Tried again, unless there is a newer one by now.
            self.noted.lock().get_or_insert((sequence, watermark));
        }
    }
}

impl Cached {
    fn open(of: &SlotFile) -> io::Result<Cached> {
        Ok(match Map::open(&of.path, WATERMARK_FILE_BYTES as u64) {
            Ok(map) => Cached::Map(map),
            Err(error) => {
                let path = of.path.display();
                warn!(%path, %error, "the watermark cannot be mapped: each sync costs a write");
                let file = OpenOptions::new().write(true).open(&of.path)?;
                Cached::File { file, has_warned: false }
            }
        })
    }

    fn store(&mut self, offset: u64, slot: &[u8]) {
        match self {
            Cached::Map(map) => {
                let offset = usize::try_from(offset).expect("a small file");
                map.as_mut()[offset..offset + slot.len()].copy_from_slice(slot);
            }
            Cached::File { file, has_warned } => {
                let stored = file.write_all_at(slot, offset);
                if let Err(error) = &stored
                    && !*has_warned
                {
                    warn!(%error, "the watermark cannot be stored");
                }
                *has_warned = stored.is_err();
            }
        }
    }
}

impl SlotFile {
    /// The file, made if it is missing, and the newest watermark in it.
    fn open(path: &Path) -> io::Result<(SlotFile, Option<(u64, Watermark)>)> {
        let is_new = !path.exists();
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).mode(0o600).truncate(false);
        let file = options.custom_flags(libc::O_DSYNC).open(path)?;
        let bytes = fs::read(path)?;
        let found = Watermark::decode(&bytes)
            .map_err(|damaged| io::Error::new(io::ErrorKind::InvalidData, damaged))?;
        file.set_len(WATERMARK_FILE_BYTES as u64)?;
        let (slots, newest) = (DurableSlots::of(&bytes), DurableSlots::newest(&bytes));
        if is_new {
            file.sync_all()?;
            sync_directory(path.parent().unwrap_or(Path::new(".")))?;
        }
        Ok((SlotFile { path: path.to_path_buf(), file, slots, newest }, found))
    }

    /// The same of a copy.
    fn open_copy(path: &Path) -> io::Result<(SlotFile, Option<(u64, Watermark)>)> {
        if fs::metadata(path).is_ok_and(|found| is_of_another_time(found.len())) {
            OpenOptions::new().write(true).truncate(true).open(path)?;
        }
        SlotFile::open(path)
    }

    /// Stores a watermark durably, unless a newer one is there.
    fn store(&mut self, sequence: u64, watermark: Watermark) -> io::Result<()> {
        if sequence <= self.newest {
            return Ok(());
        }
        self.file.write_all_at(&watermark.encode(sequence), self.slots.offset())?;
        self.slots.on_synced();
        self.newest = sequence;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::shell::scratch::Scratch;
    use crate::types::Zxid;

    fn newest(path: &Path) -> Option<u64> {
        Watermark::decode(&fs::read(path).unwrap()).unwrap().map(|(sequence, _)| sequence)
    }

    fn durable(path: &Path) -> Option<u64> {
        let bytes = fs::read(path).unwrap();
        let durable = &bytes[..usize::try_from(cached_offset(0)).unwrap()];
        Watermark::decode(durable).unwrap().map(|(sequence, _)| sequence)
    }

    fn await_that(what: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !what() {
            assert!(Instant::now() < deadline, "it does not come to that");
            thread::yield_now();
        }
    }

    #[test]
    fn a_note_is_in_the_file_at_once_and_durable_soon() {
        let scratch = Scratch::new("marks");
        let paths = ["marks", "copy"].map(|name| scratch.path().join(name));
        let marks = Marks::start(&paths).unwrap();
        assert_eq!(marks.found(), 0);
        for sequence in 1..=50 {
            marks.note(sequence, Watermark::new(Zxid(1), Zxid(sequence.cast_signed())));
            assert!(paths.iter().all(|path| newest(path) == Some(sequence)));
        }
        await_that(|| paths.iter().all(|path| durable(path) == Some(50)));
        marks.store(51, Watermark::new(Zxid(1), Zxid(51))).unwrap();
        // Older than what is stored: it changes nothing.
        marks.store(7, Watermark::new(Zxid(1), Zxid(7))).unwrap();
        assert_eq!(durable(&paths[0]), Some(51));
        await_that(|| durable(&paths[1]) == Some(51));
        drop(marks);
        assert_eq!(Marks::start(&paths).unwrap().found(), 51);
    }

    /// As a kill leaves them: the newest watermark is in a cached slot of one file alone.
    #[test]
    fn durable_slots_that_lag_are_brought_up_to_date_at_the_start() {
        let scratch = Scratch::new("marks-lag");
        let paths = ["marks", "copy"].map(|name| scratch.path().join(name));
        for cached_in in 0..2 {
            let sequence = 10 + cached_in as u64;
            let mut bytes = vec![0; WATERMARK_FILE_BYTES];
            for (of, path) in paths.iter().enumerate() {
                if of == cached_in {
                    let slot = Watermark::new(Zxid(1), Zxid(7)).encode(sequence);
                    let at = usize::try_from(cached_offset(sequence)).unwrap();
                    bytes[at..at + slot.len()].copy_from_slice(&slot);
                }
                fs::write(path, &bytes).unwrap();
                bytes.fill(0);
            }
            let marks = Marks::start(&paths).unwrap();
            assert_eq!(marks.found(), sequence);
            await_that(|| paths.iter().all(|path| durable(path) == Some(sequence)));
        }
    }

    /// A version that kept no copies left it there, when logs lay there.
    #[test]
    fn a_copy_that_is_of_another_time_says_nothing() {
        let scratch = Scratch::new("marks-old");
        let paths = ["marks", "copy"].map(|name| scratch.path().join(name));
        let mut old = vec![0; crate::storage::watermark::WITHOUT_COPY_BYTES];
        let slot = Watermark::new(Zxid(1), Zxid(900)).encode(900);
        old[..slot.len()].copy_from_slice(&slot);
        fs::write(&paths[1], old).unwrap();
        let marks = Marks::start(&paths).unwrap();
        assert_eq!(marks.found(), 0);
        marks.store(1, Watermark::new(Zxid(1), Zxid(0))).unwrap();
        await_that(|| paths.iter().all(|path| durable(path) == Some(1)));
    }

    /// A roll waits for the file beside the logs, and for nothing else.
    #[test]
    fn nobody_waits_for_the_directory_of_the_copy() {
        let scratch = Scratch::new("marks-slow");
        let paths = ["marks", "copy"].map(|name| scratch.path().join(name));
        let marks = Marks::start(&paths).unwrap();
        let hangs = marks.keepers[1].file.lock();
        marks.note(1, Watermark::new(Zxid(1), Zxid(1)));
        await_that(|| durable(&paths[0]) == Some(1));
        // The copy's keeper waits for its disk now, or will.
        marks.store(2, Watermark::new(Zxid(2), Zxid(1))).unwrap();
        assert_eq!((durable(&paths[0]), durable(&paths[1])), (Some(2), None));
        for sequence in 3..6 {
            marks.note(sequence, Watermark::new(Zxid(2), Zxid(1)));
            await_that(|| durable(&paths[0]) == Some(sequence));
        }
        assert_eq!(durable(&paths[1]), None);
        drop(hangs);
        await_that(|| durable(&paths[1]) == Some(5));
    }

    #[test]
    fn a_durable_store_that_fails_is_tried_again() {
        let scratch = Scratch::new("marks-again");
        let path = scratch.path().join("marks");
        let marks = Marks::start(std::slice::from_ref(&path)).unwrap();
        // A file that cannot be written to, as a disk that is full for a while.
        let broken = File::open(&path).unwrap();
        let working = std::mem::replace(&mut marks.keepers[0].file.lock().file, broken);
        marks.note(1, Watermark::new(Zxid(1), Zxid(2)));
        await_that(|| marks.keepers[0].has_warned.load(Ordering::Relaxed));
        assert_eq!(durable(&path), None);
        marks.keepers[0].file.lock().file = working;
        await_that(|| durable(&path) == Some(1));
    }

    #[test]
    fn what_is_taken_back_is_durable_in_the_copy_as_well() {
        let scratch = Scratch::new("marks-back");
        let paths = ["marks", "copy"].map(|name| scratch.path().join(name));
        let marks = Marks::start(&paths).unwrap();
        marks.note(5, Watermark::new(Zxid(1), Zxid(9)));
        marks.take_back(6, Watermark::new(Zxid(1), Zxid(4))).unwrap();
        assert!(paths.iter().all(|path| durable(path) == Some(6)));
        marks.keepers[1].file.lock().file = File::open(&paths[1]).unwrap();
        assert!(marks.take_back(7, Watermark::new(Zxid(1), Zxid(3))).is_err());
    }

    #[test]
    fn a_stop_stores_what_was_noted() {
        let scratch = Scratch::new("marks-stop");
        let path = scratch.path().join("marks");
        let marks = Marks::start(std::slice::from_ref(&path)).unwrap();
        for sequence in 1..=3 {
            marks.note(sequence, Watermark::new(Zxid(1), Zxid(2)));
        }
        marks.stop();
        assert_eq!(durable(&path), Some(3));
    }

    #[test]
    fn a_copy_that_cannot_be_made_stops_nobody() {
        let scratch = Scratch::new("marks-no-copy");
        let paths = [scratch.path().join("marks"), scratch.path().join("missing/copy")];
        let marks = Marks::start(&paths).unwrap();
        marks.store(1, Watermark::new(Zxid(1), Zxid(0))).unwrap();
        marks.note(2, Watermark::new(Zxid(1), Zxid(2)));
        marks.stop();
        assert_eq!(durable(&paths[0]), Some(2));
    }

    #[test]
    fn a_damaged_file_is_refused_and_left_as_it_is() {
        let scratch = Scratch::new("marks-damaged");
        let path = scratch.path().join("marks");
        fs::write(&path, b"RKMARK, but nothing that is one").unwrap();
        assert!(Marks::start(std::slice::from_ref(&path)).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"RKMARK, but nothing that is one");
    }
}
