//! The pipeline's side of a core: what it does on a ring, alone or beside a shard.
//!
//! With three or more CPUs it has a core of its own. With one or two it is beside the only shard, on
//! the shard's ring: a hop between cores costs what waking a thread costs, which on a small machine,
//! shared with the kernel's own threads and often with clients, is more than what there is to do at
//! either end. There requests and outcomes still travel through the mesh, but nobody sleeps at its
//! other end.
//!
//! ```text
//! ring ──► shard ──► pipeline ──► log ──► ring: sync or write
//!            ▲           │
//!            └───────────┘ once it is synced
//! ```

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::queue::SegQueue;

use super::clock::{Clock, Ticks};
use super::disk::{Done, LogError, Round, Sync};
use super::pipeline_core::{Core, PipelineParts};
use super::ring::{Event, Received, Ring};
use super::shard_core::{self, Beside, ShardCommand, ShardParts};
use super::turns::{Waiting, sooner};
use crate::types::Now;

/// How many events of the ring are acted on in a turn.
const EVENTS_MAX: usize = 128;

/// Runs a pipeline on a core of its own until it has finished, or cannot go on: then nothing more is
/// acknowledged.
pub(crate) fn run(
    parts: PipelineParts<ShardCommand>,
    mut ring: Ring,
    spin: Duration,
) -> io::Result<Result<(), LogError>> {
    let clock = parts.clock;
    let (told, outcome) = crossbeam::channel::bounded(1);
    let mut side = PipelineSide::start(parts, &ring, move |outcome| drop(told.send(outcome)))?;
    let waker = Waker::from(ring.bell());
    loop {
        await_work(&mut side, &mut ring, clock, spin, &mut Context::from_waker(&waker))?;
        let now = clock.now();
        for _ in 0..EVENTS_MAX {
            let Some(event) = ring.next() else { break };
            side.on_event(now, event, &mut ring);
        }
        side.take_turn(now, &mut ring)?;
        if let Ok(outcome) = outcome.try_recv() {
            return Ok(outcome);
        }
    }
}

fn await_work(
    side: &mut PipelineSide,
    ring: &mut Ring,
    clock: Clock,
    spin: Duration,
    cx: &mut Context<'_>,
) -> io::Result<()> {
    let mut waiting = Waiting::new(spin);
    loop {
        let polled = if ring.has_next() { Poll::Ready(()) } else { side.poll_work(cx) };
        let left = || sooner(clock.until_ms(side.due_ms()), side.sync_delay());
        if waiting.enter(ring, polled, left)? {
            break;
        }
    }
    side.wake_up();
    Ok(())
}

/// Runs a shard and the pipeline until the shard is told to close. `finished` is told how the
/// pipeline ended; the shard goes on after that.
pub(crate) fn run_beside(
    shard: ShardParts,
    pipeline: PipelineParts<ShardCommand>,
    ring: Ring,
    finished: impl FnOnce(Result<(), LogError>) + 'static,
) -> io::Result<()> {
    let mut side = PipelineSide::start(pipeline, &ring, finished)?;
    shard_core::run(shard, ring, &mut side)
}

/// What comes over a link when nobody is there any more.
fn give_back(event: Event, ring: &mut Ring) {
    if let Event::Received { what: Received::Bytes(filled), .. } = event {
        ring.give_back(filled);
    }
}

/// Told how the pipeline ended.
type Finished = Box<dyn FnOnce(Result<(), LogError>)>;

struct PipelineSide {
    /// `None` once it has ended.
    core: Option<Core<ShardCommand>>,
    finished: Option<Finished>,
    /// The sync that the ring is at, and when it began.
    syncing: Option<(Sync, Instant)>,
    /// What came of a round that waited, from the thread that it ran on.
    waited: Arc<SegQueue<Result<Done, LogError>>>,
    ticks: Ticks,
}

impl Beside for PipelineSide {
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
        let Some(core) = &self.core else { return i64::MAX };
        core.due_ms().map_or(self.ticks.due_ms(), |at| at.min(self.ticks.due_ms()))
    }

    fn sync_delay(&self) -> Option<Duration> {
        self.core.as_ref()?.sync_delay()
    }

    fn on_event(&mut self, _now: Now, event: Event, ring: &mut Ring) {
        match event {
            Event::Durable { written, result } => {
                let (sync, began) = self.syncing.take().expect("a sync ends that has begun");
                if let Some(core) = &mut self.core {
                    core.on_round(sync.end(began, written, result));
                }
            }
            Event::Bell | Event::Marked => {}
            Event::Received { .. } | Event::Writable { .. } => match &mut self.core {
                Some(core) => core.on_ring_event(event, ring),
                None => give_back(event, ring),
            },
        }
    }

    fn take_turn(&mut self, now: Now, ring: &mut Ring) -> io::Result<()> {
        let Some(core) = &mut self.core else { return Ok(()) };
        while let Some(waited) = self.waited.pop() {
            core.on_round(waited);
        }
        if self.ticks.take(now) {
            core.on_tick();
        }
        core.turn();
        core.take_from_links(now, ring);
        self.begin_round(ring)?;
        if let Some(core) = &mut self.core
            && let Some(outcome) = core.outcome()
        {
            core.leave();
            core.stop_links();
            self.core = None;
            if let Some(finished) = self.finished.take() {
                finished(outcome);
            }
        }
        Ok(())
    }
}

impl PipelineSide {
    fn start(
        parts: PipelineParts<ShardCommand>,
        ring: &Ring,
        finished: impl FnOnce(Result<(), LogError>) + 'static,
    ) -> io::Result<PipelineSide> {
        Ok(PipelineSide {
            ticks: Ticks::start(parts.clock.now(), parts.tick),
            core: Some(Core::start(parts, ring)?),
            finished: Some(Box::new(finished)),
            syncing: None,
            waited: Arc::default(),
        })
    }

    /// Has what was logged made durable.
    fn begin_round(&mut self, ring: &mut Ring) -> io::Result<()> {
        let Some(core) = &mut self.core else { return Ok(()) };
        while let Some(round) = core.next_round() {
            match round {
                Round::Sync(mut sync) => {
                    let began = Instant::now();
                    if sync.begin(ring) {
                        self.syncing = Some((sync, began));
                        // At once: clients are written to while it runs.
                        return ring.enter(None);
                    }
                    core.on_round(sync.end(began, None, Ok(())));
                }
                Round::Wait(waiting) => {
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
