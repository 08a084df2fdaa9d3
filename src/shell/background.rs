//! What may be slow and must not be in anyone's way: snapshots and purging, on a thread that is
//! pinned nowhere.
//!
//! A snapshot is written under a name that ZooKeeper does not look at, synced, renamed, and its
//! directory synced. A snapshot of the same zxid that was loaded, or written by us, stays as it is.
//! One that is there but did not load is replaced: its ends may look whole, and it must not pass
//! for one of the few that a purge keeps.
//!
//! A snapshot that cannot be written ends nothing. What has been acknowledged is in the log, and
//! logs go only once a snapshot that is sound makes them superfluous: without one, a restart takes
//! longer. So what there is of it goes, an operator hears of it, and it is tried again after a
//! while, of the state as it is then. A sync that failed says no more: what the kernel has dropped
//! was this file's, and whether the log's disk can be trusted is for the log's own syncs to say.
//! ZooKeeper ends with code 10 here (`SnapshotErrorException`).

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{self, RecvTimeoutError};
use tracing::{info, warn};

use super::directories::{Directories, DirectoryError, names, sync_directory};
use super::overlapped::OverlappedFile;
use super::recover::{is_quick_valid, list};
use super::sys;
use super::unbuffered::UnbufferedFile;
use crate::metrics::{Counter, Recorder, Summary};
use crate::pipeline::SnapshotJob;
use crate::storage::compression::Encoder;
use crate::storage::recovery::{TORN_NAME, needless_copies};
use crate::storage::snapshot::SnapshotWriter;
use crate::storage::{self, Compression, Keep};
use crate::types::Zxid;

/// The name of a snapshot before it has one; ZooKeeper does not look at it, and a start removes it.
pub(crate) use crate::storage::recovery::SNAPSHOT_TEMPORARY_NAME as TEMPORARY_NAME;

/// Where CPUs are short, clients come first. Not by more: what a snapshot shows is kept in memory
/// until it is written.
const NICENESS: i32 = 5;

/// How snapshots are written and kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SnapshotOptions {
    pub(crate) back_end: SnapshotBackEnd,
    pub(crate) compression: Compression,
    /// Whether they end with the zxid they hold, as ZooKeeper 3.9 writes them.
    pub(crate) with_zxid: bool,
    /// How many a purge leaves.
    pub(crate) retain: usize,
    /// `None`: nothing is purged.
    pub(crate) purge_every: Option<Duration>,
    /// How long after one that failed the next is asked for.
    pub(crate) retry_after: Duration,
}

/// Who writes a snapshot's file past the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SnapshotBackEnd {
    /// The thread that encodes it, in turns.
    Direct,
    /// An executor of glommio, while the thread encodes the next chunk.
    Glommio,
}

/// A snapshot that could not be written. Nothing is left of it but, where only its directory's
/// sync failed, the whole file under its name.
#[derive(Debug, thiserror::Error)]
#[error("{}: the snapshot could not be {failed}: {source}", path.display())]
pub(crate) struct SnapshotError {
    path: PathBuf,
    failed: Stage,
    source: io::Error,
}

/// How far a snapshot had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Written,
    Synced,
    Renamed,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Written => "written",
            Stage::Synced => "synced",
            Stage::Renamed => "given its name",
        })
    }
}

/// What the thread has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// A snapshot is written, or has failed.
    Ended,
    /// One that failed is to be tried again.
    Again,
}

/// What the thread is told.
pub(crate) enum Job {
    Snapshot(SnapshotJob),
    /// Something that changes which snapshots and logs there are.
    Change(Box<dyn FnOnce() + Send>),
    /// Drops what takes its time to drop.
    Drop(Box<dyn Send>),
    Stop,
}

/// A handle on the thread.
pub(crate) struct Background {
    jobs: channel::Sender<Job>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Starts the thread. `say` hears of every snapshot that is written or has failed.
    pub(crate) fn start(
        directories: Arc<Directories>,
        options: SnapshotOptions,
        loaded: Option<Zxid>,
        recorder: Recorder,
        say: impl FnMut(Said) + Send + 'static,
    ) -> io::Result<Background> {
        let (jobs, inbox) = channel::unbounded();
        let stopping = Arc::new(AtomicBool::new(false));
        let worker = Worker {
            directories,
            options,
            sound: loaded,
            recorder,
            stopping: Arc::clone(&stopping),
        };
        let thread = thread::Builder::new()
            .name("background".to_owned())
            .spawn(move || worker.run(&inbox, say))?;
        Ok(Background { jobs, stopping, thread: Some(thread) })
    }

    /// Something to hand jobs in with.
    pub(crate) fn jobs(&self) -> channel::Sender<Job> {
        self.jobs.clone()
    }

    /// Gives up a snapshot under way and ends the thread.
    pub(crate) fn stop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        let _ = self.jobs.send(Job::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    directories: Arc<Directories>,
    options: SnapshotOptions,
    /// The newest snapshot that was loaded, or written and synced.
    sound: Option<Zxid>,
    recorder: Recorder,
    stopping: Arc<AtomicBool>,
}

impl Worker {
    fn run(mut self, inbox: &channel::Receiver<Job>, mut say: impl FnMut(Said)) {
        if let Err(error) = sys::give_way(NICENESS) {
            warn!(%error, "snapshots compete with clients for the CPU");
        }
        let mut next_purge = self.options.purge_every.map(|_| Instant::now());
        let mut retry = None;
        while !self.stopping.load(Ordering::Relaxed) {
            let received = match next_purge.into_iter().chain(retry).min() {
                Some(at) => inbox.recv_deadline(at),
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(Job::Snapshot(job)) => {
                    let written = self.snapshot(&job);
                    // Its view holds back what may be freed.
                    drop(job);
                    retry = None;
                    if let Err(error) = &written
                        && !self.stopping.load(Ordering::Relaxed)
                    {
                        warn!(
                            %error, retry_ms = self.options.retry_after.as_millis(),
                            "no snapshot; the logs that it would have replaced stay"
                        );
                        self.recorder.add(Counter::SnapshotErrorCount, 1);
                        retry = Some(Instant::now() + self.options.retry_after);
                    }
                    say(Said::Ended);
                }
                Ok(Job::Change(change)) => {
                    change();
                    // What was known to load may be gone.
                    self.sound = None;
                }
                Ok(Job::Drop(it)) => drop(it),
                Err(RecvTimeoutError::Timeout) => {
                    let now = Instant::now();
                    if retry.is_some_and(|at| at <= now) {
                        retry = None;
                        say(Said::Again);
                    }
                    if next_purge.is_some_and(|at| at <= now) {
                        self.purge();
                        next_purge = self.options.purge_every.map(|every| Instant::now() + every);
                    }
                }
                Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn snapshot(&mut self, job: &SnapshotJob) -> Result<(), SnapshotError> {
        if self.sound == Some(job.zxid) {
            // It is there, and known to load; any other of this zxid is replaced.
            return Ok(());
        }
        let began = Instant::now();
        let stopping = Some(&*self.stopping);
        let written = write_snapshot(self.directories.snapshots(), self.options, job, stopping);
        if written.is_ok() {
            let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.recorder.record(Summary::SnapshotTime, took_ms);
            self.sound = self.sound.max(Some(job.zxid));
        }
        written
    }

    /// Deletes what neither the newest few snapshots nor recovery need.
    fn purge(&self) {
        info!(target: "ringkeeper::shell::background", "Purge task started.");
        let listing = match list(&self.directories) {
            Ok(listing) => listing,
            Err(error) => {
                warn!(%error, "nothing is purged");
                return;
            }
        };
        let snapshots = self.directories.snapshots();
        let keep = Keep { loads: self.sound, committed: None };
        let valid = |file: &storage::SnapshotFile| is_quick_valid(snapshots, file);
        let mut names = listing.purgeable(self.options.retain, valid, keep);
        // Snapshots first: whenever this is cut short, none is left without the logs it needs.
        names.sort_by_key(|name| name.starts_with("log."));
        for name in names {
            let directory = match name.starts_with("log.") {
                true => self.directories.logs(),
                false => snapshots,
            };
            let path = directory.join(name);
            info!(target: "ringkeeper::shell::background", "Removing file: {}", path.display());
            if let Err(error) = fs::remove_file(&path) {
                warn!(path = %path.display(), %error, "not removed");
            }
        }
        self.purge_copies();
        info!(target: "ringkeeper::shell::background", "Purge task completed.");
    }

    /// Deletes the copies of torn tails whose logs are gone.
    fn purge_copies(&self) {
        let Some(data_log_dir) = self.directories.logs().parent() else { return };
        let torn = data_log_dir.join(TORN_NAME);
        let copies = match names(&torn) {
            Ok(copies) => copies,
            Err(DirectoryError::Read { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                return;
            }
            Err(error) => return warn!(%error, "no copies of torn tails are purged"),
        };
        let Ok(listing) = list(&self.directories) else { return };
        for name in needless_copies(copies.iter().map(|(name, _)| name.as_str()), &listing) {
            let path = torn.join(name);
            info!(target: "ringkeeper::shell::background", "Removing file: {}", path.display());
            if let Err(error) = fs::remove_file(&path) {
                warn!(path = %path.display(), %error, "not removed");
            }
        }
    }
}

/// Writes a snapshot, durably. One of the same name is replaced, all at once.
pub(crate) fn write_snapshot(
    directory: &Path,
    options: SnapshotOptions,
    job: &SnapshotJob,
    stopping: Option<&AtomicBool>,
) -> Result<(), SnapshotError> {
    let began = Instant::now();
    let path = directory.join(storage::snapshot_name(job.zxid, options.compression));
    let temporary = directory.join(TEMPORARY_NAME);
    info!(
        target: "ringkeeper::shell::background",
        "Snapshotting: {} to {}", job.zxid, path.display()
    );
    let failed = |failed| {
        let path = path.clone();
        move |source| SnapshotError { path, failed, source }
    };
    let renamed = write_file(&temporary, options, job, stopping)
        .map_err(failed(Stage::Written))
        .and_then(|file| file.sync_all().map_err(failed(Stage::Synced)))
        .and_then(|()| fs::rename(&temporary, &path).map_err(failed(Stage::Renamed)));
    if renamed.is_err() {
        // What is half made would take the room that the log may need.
        let _ = fs::remove_file(&temporary);
    }
    renamed?;
    sync_directory(directory).map_err(failed(Stage::Synced))?;
    info!(
        target: "ringkeeper::shell::background",
        "Snapshot taken in {} ms", began.elapsed().as_millis()
    );
    Ok(())
}

fn write_file(
    temporary: &Path,
    options: SnapshotOptions,
    job: &SnapshotJob,
    stopping: Option<&AtomicBool>,
) -> io::Result<File> {
    let overlapped = match options.back_end {
        SnapshotBackEnd::Direct => None,
        SnapshotBackEnd::Glommio => OverlappedFile::create(temporary)
            .inspect_err(|error| info!(%error, "this snapshot is written without glommio"))
            .ok(),
    };
    match overlapped {
        Some(out) => encode(out, options, job, stopping)?.finish(),
        None => encode(UnbufferedFile::create(temporary)?, options, job, stopping)?.finish(),
    }
}

fn encode<W: Write>(
    out: W,
    options: SnapshotOptions,
    job: &SnapshotJob,
    stopping: Option<&AtomicBool>,
) -> io::Result<W> {
    let out = Interruptible { out, stopping };
    let writer = SnapshotWriter::new(Encoder::new(out, options.compression));
    Ok(job.write(writer, options.with_zxid)?.finish()?.out)
}

/// Fails once the server stops: a snapshot of a large tree takes longer than anyone waits.
struct Interruptible<'a, W> {
    out: W,
    stopping: Option<&'a AtomicBool>,
}

impl<W: Write> Write for Interruptible<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.stopping.is_some_and(|stopping| stopping.load(Ordering::Relaxed)) {
            return Err(io::Error::other("the server stops"));
        }
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::metrics::Metrics;
    use crate::pipeline::{Restore, Restored};
    use crate::record::data::Acl;
    use crate::shell::scratch::Scratch;
    use crate::tree::{self, ephemerals};

    const PATIENCE: Duration = Duration::from_secs(30);
    const BACK_ENDS: [SnapshotBackEnd; 2] = [SnapshotBackEnd::Direct, SnapshotBackEnd::Glommio];

    fn options(retry_after: Duration) -> SnapshotOptions {
        SnapshotOptions {
            back_end: SnapshotBackEnd::Direct,
            compression: Compression::None,
            with_zxid: true,
            retain: 3,
            purge_every: None,
            retry_after,
        }
    }

    /// A snapshot of an empty tree.
    fn job() -> SnapshotJob {
        let settings = tree::Settings { types: ephemerals::Types::default(), digest: true };
        let mut restored: Restored = Restore::empty(settings).finish();
        restored.tree.publish(restored.last);
        SnapshotJob {
            zxid: restored.last,
            digest: None,
            sessions: Vec::new(),
            acls: restored.tree.acl_lists(),
            reader: restored.tree.reader(),
        }
    }

    /// A background thread on directories of its own, and what it says.
    fn begun(
        scratch: &Scratch,
        retry_after: Duration,
    ) -> (Arc<Directories>, Background, channel::Receiver<Said>) {
        let directories =
            Directories::open(scratch.path(), scratch.path(), true).unwrap().made().unwrap();
        let directories = Arc::new(directories);
        let recorder = Metrics::new(1).1.remove(0);
        let (say, said) = channel::unbounded();
        let background =
            Background::start(Arc::clone(&directories), options(retry_after), None, recorder, {
                move |what| say.send(what).unwrap_or_default()
            })
            .unwrap();
        (directories, background, said)
    }

    fn fail(directories: &Directories, back_end: SnapshotBackEnd) -> SnapshotError {
        let options = SnapshotOptions { back_end, ..options(PATIENCE) };
        write_snapshot(directories.snapshots(), options, &job(), None).unwrap_err()
    }

    #[test]
    fn nothing_is_left_of_a_snapshot_that_cannot_be_written_or_named() {
        for back_end in BACK_ENDS {
            nothing_is_left(back_end);
        }
    }

    fn nothing_is_left(back_end: SnapshotBackEnd) {
        let scratch = Scratch::new("background-fails");
        let directories =
            Directories::open(scratch.path(), scratch.path(), true).unwrap().made().unwrap();
        let fail = |directories: &Directories| fail(directories, back_end);
        let temporary = directories.snapshots().join(TEMPORARY_NAME);
        // What it takes to be its file has no length.
        symlink("/dev/null", &temporary).unwrap();
        assert_eq!(fail(&directories).failed, Stage::Written);
        assert!(temporary.symlink_metadata().is_err());
        // Where it would go is a directory.
        let path = directories.snapshots().join("snapshot.0");
        fs::create_dir(&path).unwrap();
        let error = fail(&directories);
        assert_eq!(error.failed, Stage::Renamed);
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        assert!(temporary.symlink_metadata().is_err());
    }

    /// A snapshot of many chunks, compressed or not.
    fn large_job() -> SnapshotJob {
        let acls: Arc<[Acl]> = vec![Acl::new(31, "digest", "a".repeat(50)); 20].into();
        SnapshotJob { acls: (0..2000).map(|number| (number, Arc::clone(&acls))).collect(), ..job() }
    }

    #[test]
    fn both_back_ends_write_the_same_file() {
        let scratch = Scratch::new("background-same");
        let job = large_job();
        for compression in [Compression::None, Compression::Gzip, Compression::Snappy] {
            let written = BACK_ENDS.map(|back_end| {
                let options = SnapshotOptions { back_end, compression, ..options(PATIENCE) };
                write_snapshot(scratch.path(), options, &job, None).unwrap();
                fs::read(scratch.path().join(storage::snapshot_name(job.zxid, compression)))
                    .unwrap()
            });
            assert!(written[0] == written[1], "{compression:?}");
        }
    }

    #[test]
    fn a_snapshot_under_way_ends_when_the_server_stops() {
        for back_end in BACK_ENDS {
            let scratch = Scratch::new("background-stops");
            let options = SnapshotOptions { back_end, ..options(PATIENCE) };
            let stopping = AtomicBool::new(true);
            let error = write_snapshot(scratch.path(), options, &large_job(), Some(&stopping));
            assert!(error.unwrap_err().to_string().contains("the server stops"));
            assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_copy_of_a_torn_tail_goes_with_its_log() {
        let scratch = Scratch::new("background-copies");
        let directories =
            Directories::open(scratch.path(), scratch.path(), true).unwrap().made().unwrap();
        let torn = scratch.path().join(TORN_NAME);
        fs::create_dir(&torn).unwrap();
        for name in ["log.1.at.40", "log.9.at.40"] {
            fs::write(torn.join(name), b"x").unwrap();
        }
        let options = SnapshotOptions { retain: 1, ..options(PATIENCE) };
        write_snapshot(directories.snapshots(), options, &job(), None).unwrap();
        for name in ["log.1", "log.9", "snapshot.9"] {
            fs::write(directories.logs().join(name), b"").unwrap();
        }
        let first = directories.snapshots().join("snapshot.0");
        fs::copy(&first, directories.snapshots().join("snapshot.9")).unwrap();
        let worker = Worker {
            directories: Arc::new(directories),
            options,
            sound: Some(Zxid(9)),
            recorder: Metrics::new(1).1.remove(0),
            stopping: Arc::default(),
        };
        worker.purge();
        assert!(!worker.directories.logs().join("log.1").exists());
        assert!(!torn.join("log.1.at.40").exists());
        assert!(torn.join("log.9.at.40").exists());
    }

    #[test]
    fn a_snapshot_that_failed_is_asked_for_again_and_then_written() {
        let scratch = Scratch::new("background-again");
        let (directories, mut background, said) = begun(&scratch, Duration::from_millis(1));
        let path = directories.snapshots().join("snapshot.0");
        fs::create_dir(&path).unwrap();
        background.jobs().send(Job::Snapshot(job())).unwrap();
        assert_eq!(said.recv_timeout(PATIENCE), Ok(Said::Ended));
        assert_eq!(said.recv_timeout(PATIENCE), Ok(Said::Again));
        fs::remove_dir(&path).unwrap();
        background.jobs().send(Job::Snapshot(job())).unwrap();
        assert_eq!(said.recv_timeout(PATIENCE), Ok(Said::Ended));
        assert!(path.is_file());
        background.stop();
        assert!(said.try_recv().is_err(), "what was written is not asked for again");
    }
}
