//! What may be slow and must not be in anyone's way: snapshots and purging, on a thread that is
//! pinned nowhere.
//!
//! A snapshot is written under a name that ZooKeeper does not look at, synced, renamed, and its
//! directory synced. A snapshot of the same zxid that was loaded, or written by us, stays as it is.
//! One that is there but did not load is replaced: its ends may look whole, and it must not pass
//! for one of the few that a purge keeps.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{self, RecvTimeoutError};
use tracing::{error, info, warn};

use super::directories::{Directories, sync_directory};
use super::recover::{is_quick_valid, list};
use crate::metrics::{Counter, Recorder, Summary};
use crate::pipeline::SnapshotJob;
use crate::storage::compression::Encoder;
use crate::storage::snapshot::SnapshotWriter;
use crate::storage::{self, Compression, Keep};
use crate::types::Zxid;

/// The name of a snapshot before it has one; ZooKeeper does not look at it, and a start removes it.
pub(crate) const TEMPORARY_NAME: &str = "ringkeeper-snapshot.tmp";

/// How snapshots are written and kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SnapshotOptions {
    pub(crate) compression: Compression,
    /// Whether they end with the zxid they hold, as ZooKeeper 3.9 writes them.
    pub(crate) with_zxid: bool,
    /// How many a purge leaves.
    pub(crate) retain: usize,
    /// `None`: nothing is purged.
    pub(crate) purge_every: Option<Duration>,
}

/// A snapshot that could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotWriteError {
    /// A full disk, say: the server can go on without.
    #[error("{}: the snapshot could not be written: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    /// What the kernel could not write it has dropped; the disk is not to be trusted any more.
    #[error("{}: the snapshot could not be synced: {source}", path.display())]
    Sync { path: PathBuf, source: io::Error },
}

/// What the thread is told.
pub(crate) enum Job {
    Snapshot(SnapshotJob),
    Stop,
}

/// A handle on the thread.
pub(crate) struct Background {
    jobs: channel::Sender<Job>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Starts the thread. `ended` hears of every snapshot that is written or has failed.
    pub(crate) fn start(
        directories: Arc<Directories>,
        options: SnapshotOptions,
        loaded: Option<Zxid>,
        recorder: Recorder,
        ended: impl FnMut(Result<(), SnapshotWriteError>) + Send + 'static,
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
            .spawn(move || worker.run(&inbox, ended))?;
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
    fn run(
        mut self,
        inbox: &channel::Receiver<Job>,
        mut ended: impl FnMut(Result<(), SnapshotWriteError>),
    ) {
        let mut next_purge = self.options.purge_every.map(|_| Instant::now());
        while !self.stopping.load(Ordering::Relaxed) {
            let received = match next_purge {
                Some(at) => inbox.recv_deadline(at),
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(Job::Snapshot(job)) => {
                    let written = self.snapshot(&job);
                    // Its view holds back what may be freed.
                    drop(job);
                    if let Err(error) = &written
                        && !self.stopping.load(Ordering::Relaxed)
                    {
                        error!(%error, "no snapshot");
                        self.recorder.add(Counter::SnapshotErrorCount, 1);
                    }
                    ended(written);
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.purge();
                    next_purge = self.options.purge_every.map(|every| Instant::now() + every);
                }
                Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn snapshot(&mut self, job: &SnapshotJob) -> Result<(), SnapshotWriteError> {
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
        info!(target: "ringkeeper::shell::background", "Purge task completed.");
    }
}

/// Writes a snapshot, durably. One of the same name is replaced, all at once.
pub(crate) fn write_snapshot(
    directory: &Path,
    options: SnapshotOptions,
    job: &SnapshotJob,
    stopping: Option<&AtomicBool>,
) -> Result<(), SnapshotWriteError> {
    let began = Instant::now();
    let path = directory.join(storage::snapshot_name(job.zxid, options.compression));
    let temporary = directory.join(TEMPORARY_NAME);
    info!(
        target: "ringkeeper::shell::background",
        "Snapshotting: {} to {}", job.zxid, path.display()
    );
    let failed = |source| SnapshotWriteError::Write { path: path.clone(), source };
    let file = write_file(&temporary, options, job, stopping).map_err(|source| {
        let _ = fs::remove_file(&temporary);
        failed(source)
    })?;
    file.sync_all()
        .and_then(|()| fs::rename(&temporary, &path))
        .and_then(|()| sync_directory(directory))
        .map_err(|source| SnapshotWriteError::Sync { path: path.clone(), source })?;
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
    let mut create = OpenOptions::new();
    let file = create.write(true).create(true).truncate(true).mode(0o600).open(temporary)?;
    let out = Interruptible { out: BufWriter::with_capacity(1 << 20, file), stopping };
    let writer = SnapshotWriter::new(Encoder::new(out, options.compression));
    let mut out = job.write(writer, options.with_zxid)?.finish()?.out;
    out.flush()?;
    out.into_inner().map_err(io::IntoInnerError::into_error)
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
