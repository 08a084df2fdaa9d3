//! Both kinds of core on one thread: for machines with one or two CPUs.
//!
//! A hop between cores costs what waking a thread costs, which on a small machine, shared with the
//! kernel's own threads and often with clients, is more than what there is to do at either end. Here
//! requests and outcomes still travel through the mesh, but nobody sleeps at its other end, and the
//! shard's ring is also what syncs the log.
//!
//! ```text
//! ring ──► shard ──► pipeline ──► log ──► ring: sync or write
//!            ▲           │
//!            └───────────┘ once it is synced
//! ```

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::queue::SegQueue;

use super::clock::Ticks;
use super::disk::{self, Begun, GroupLog, LogError, LogRound, Sync};
use super::pipeline_core::{Core, PipelineParts};
use super::ring::Ring;
use super::shard_core::{self, Beside, ShardCommand, ShardParts};
use crate::storage::blocks::Extent;
use crate::types::Now;

/// Runs both until the shard is told to close. `finished` is told how the pipeline ended; the
/// shard goes on after that.
pub(crate) fn run(
    shard: ShardParts,
    pipeline: PipelineParts<ShardCommand>,
    ring: Ring,
    finished: impl FnOnce(Result<(), LogError>) + 'static,
) -> io::Result<()> {
    let ticks = Ticks::start(pipeline.clock.now(), pipeline.tick);
    let mut beside = PipelineBeside {
        core: Some(Core::start(pipeline, GroupLog::open)),
        finished: Some(Box::new(finished)),
        syncing: None,
        waited: Arc::default(),
        ticks,
    };
    shard_core::run(shard, ring, &mut beside)
}

type RingLog = GroupLog<Arc<File>>;

/// Told how the pipeline ended.
type Finished = Box<dyn FnOnce(Result<(), LogError>)>;

struct PipelineBeside {
    /// `None` once it has ended.
    core: Option<Core<RingLog, ShardCommand>>,
    finished: Option<Finished>,
    /// The sync that the ring is at, and when it began.
    syncing: Option<(Sync<Arc<File>>, Instant)>,
    /// What came of a round that waited, from the thread that it ran on.
    waited: Arc<SegQueue<Result<Option<Begun>, LogError>>>,
    ticks: Ticks,
}

impl Beside for PipelineBeside {
    fn poll_work(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.core {
            Some(core) => core.poll_work(cx, || !self.waited.is_empty()),
            None => Poll::Pending,
        }
    }

    fn wake_up(&mut self) {
        if let Some(core) = &self.core {
            core.wake_up();
        }
    }

    fn due_ms(&self) -> i64 {
        if self.core.is_some() { self.ticks.due_ms() } else { i64::MAX }
    }

    fn held(&self) -> Option<Duration> {
        self.core.as_ref()?.held()
    }

    fn on_durable(&mut self, written: Option<Extent>, result: io::Result<()>) {
        let (mut sync, began) = self.syncing.take().expect("a sync ends that has begun");
        sync.extent = written;
        if let Some(core) = &self.core {
            core.on_round(sync.end(began, result));
        }
    }

    fn take_turn(&mut self, now: Now, ring: &mut Ring) -> io::Result<()> {
        let Some(core) = &self.core else { return Ok(()) };
        while let Some(waited) = self.waited.pop() {
            core.on_round(waited.map(disk::waited));
        }
        if self.ticks.take(now) {
            core.on_tick();
        }
        core.turn();
        self.begin_round(ring)?;
        if let Some(core) = &self.core
            && let Some(outcome) = core.outcome()
        {
            core.leave();
            self.core = None;
            if let Some(finished) = self.finished.take() {
                finished(outcome);
            }
        }
        Ok(())
    }
}

impl PipelineBeside {
    /// Has what was logged made durable.
    fn begin_round(&mut self, ring: &mut Ring) -> io::Result<()> {
        let Some(core) = &self.core else { return Ok(()) };
        while let Some(round) = core.next_round() {
            match round {
                LogRound::Sync(mut sync) if sync.is_forced() => {
                    match sync.extent.take() {
                        Some(extent) => ring.write(Arc::clone(&sync.handle), extent),
                        None => ring.sync(sync.handle.as_fd()),
                    }
                    self.syncing = Some((sync, Instant::now()));
                    // At once: clients are written to while it runs.
                    return ring.enter(None);
                }
                LogRound::Sync(sync) => core.on_round(sync.end(Instant::now(), Ok(()))),
                LogRound::Wait(waiting) => {
                    let path = waiting.path();
                    let (waited, bell) = (Arc::clone(&self.waited), core.bell());
                    let run = move || {
                        waited.push(waiting.run());
                        bell.ring();
                    };
                    let thread = thread::Builder::new().name("log-round".to_owned());
                    if let Err(source) = thread.spawn(run) {
                        core.on_round(Err(LogError::Begin { path, source }));
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
