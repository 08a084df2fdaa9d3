//! The pipeline and what is around it, between two waits.
//!
//! ```text
//! requests from shards --+                     +--> appends  --> log: rounds, one at a time
//! commands --------------+--> Pipeline::step --+--> applied  --> every shard
//! ticks -----------------+        ^            +--> snapshot --> background
//!                                 |
//!               synced <----------+------------------- a round is over
//! ```
//!
//! A step runs to its end. Who waits, and for what, is in `pipeline_side.rs`.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crossbeam::channel;
use crossbeam::queue::SegQueue;
use crossbeam::utils::CachePadded;

use super::background::Job;
use super::clock::Clock;
use super::counts;
use super::disk::{Done, Ended, Log, LogError, LogParts, Round};
use super::logging::audit;
use super::mesh::{Bell, FromShard, PipelineEnd};
use super::whole_ms;
use crate::metrics::{Counter, Recorder, Summary};
use crate::pipeline::{Input, Output, Pipeline};
use crate::types::Now;

/// How many batches are taken before the log and the timers have their turn.
const TAKE_MAX: usize = 64;

/// What the pipeline core is told, from any thread.
pub(crate) enum PipelineCommand {
    /// A snapshot was written, or could not be.
    SnapshotEnded,
    /// A question to the state, between two steps.
    Ask(Box<dyn FnOnce(&mut Pipeline) + Send>),
    /// Have a snapshot taken.
    Snapshot,
    /// No shard will send any more: make all durable, hand out what it leads to, and end.
    Finish,
}

/// Tells the pipeline core things.
#[derive(Clone)]
pub(crate) struct PipelineInbox {
    commands: Arc<SegQueue<PipelineCommand>>,
    bell: Arc<CachePadded<Bell>>,
}

impl PipelineInbox {
    pub(crate) fn new(bell: Arc<CachePadded<Bell>>) -> PipelineInbox {
        PipelineInbox { commands: Arc::default(), bell }
    }

    pub(crate) fn tell(&self, command: PipelineCommand) {
        self.commands.push(command);
        self.bell.ring();
    }
}

/// What a pipeline core is made of.
pub(crate) struct PipelineParts<C> {
    pub(crate) pipeline: Pipeline,
    pub(crate) log: LogParts,
    pub(crate) end: PipelineEnd<C>,
    pub(crate) inbox: PipelineInbox,
    pub(crate) jobs: channel::Sender<Job>,
    pub(crate) clock: Clock,
    pub(crate) tick: Duration,
    pub(crate) recorder: Recorder,
}

/// A pipeline and what is around it.
pub(crate) struct Core<C> {
    state: State<C>,
    inbox: PipelineInbox,
    clock: Clock,
    finishing: bool,
    /// Why it cannot go on: nothing is done any more.
    fault: Option<LogError>,
}

struct State<C> {
    pipeline: Pipeline,
    log: Log,
    end: PipelineEnd<C>,
    jobs: channel::Sender<Job>,
    out: Output,
    recorder: Recorder,
}

impl<C> Core<C> {
    pub(crate) fn start(parts: PipelineParts<C>) -> Core<C> {
        let PipelineParts { pipeline, log, end, inbox, jobs, clock, recorder, tick: _ } = parts;
        let (log, out) = (Log::open(log), Output::default());
        let mut core = Core {
            state: State { pipeline, log, end, jobs, out, recorder },
            inbox,
            clock,
            finishing: false,
            fault: None,
        };
        core.guard(|state, now| {
            let State { pipeline, out, .. } = state;
            pipeline.start(now, out);
            state.act()
        });
        core
    }

    /// Runs one step and notes what stops us. After that nothing is done any more.
    fn guard(&mut self, step: impl FnOnce(&mut State<C>, Now) -> Result<(), LogError>) {
        if self.fault.is_some() {
            return;
        }
        if let Err(fault) = step(&mut self.state, self.clock.now()) {
            self.fault = Some(fault);
            self.inbox.bell.ring();
        }
    }

    /// Ready when there is something for `turn` to take, or the core may end, or `also` says so.
    pub(crate) fn poll_work(
        &self,
        cx: &mut Context<'_>,
        mut also: impl FnMut() -> bool,
    ) -> Poll<()> {
        let may_end = || self.fault.is_some() || (self.finishing && self.state.log.is_idle());
        let has_command = || !self.inbox.commands.is_empty();
        // While it is congested, room rings.
        let goes_on = || self.goes_on();
        self.state.end.poll_work(cx, || has_command() || may_end() || goes_on() || also())
    }

    /// How the core ends, once it does.
    pub(crate) fn outcome(&mut self) -> Option<Result<(), LogError>> {
        if let Some(fault) = self.fault.take() {
            return Some(Err(fault));
        }
        self.has_finished().then(|| self.state.log.seal())
    }

    /// Whether all that was to be done is done.
    fn has_finished(&self) -> bool {
        let State { log, end, pipeline, .. } = &self.state;
        self.finishing && log.is_idle() && end.is_empty() && !pipeline.has_work()
    }

    /// Whether the pipeline has more to do of what it has taken, and room for it.
    fn goes_on(&self) -> bool {
        self.state.pipeline.has_work() && !self.state.end.is_congested()
    }

    /// Takes what has been sent, as far as there is room for what follows from it.
    pub(crate) fn turn(&mut self) {
        while let Some(command) = self.inbox.commands.pop() {
            self.on_command(command);
        }
        self.state.end.pass_on();
        for _ in 0..TAKE_MAX {
            if self.state.end.is_congested() {
                break;
            }
            let Some(item) = self.state.end.take() else { break };
            self.guard(|state, now| {
                let State { pipeline, out, recorder, .. } = state;
                match &item {
                    FromShard::Requests(batch) => {
                        let began = Instant::now();
                        pipeline.step(now, Input::Requests(batch), out);
                        let count = batch.requests.len() as u64;
                        recorder.add(Counter::PrepProcessorRequestQueued, count);
                        recorder.record(Summary::PrepProcessorQueueSize, count);
                        recorder.record(Summary::PrepProcessTime, whole_ms(began.elapsed()));
                    }
                    FromShard::Touched(touched) => pipeline.step(now, Input::Touched(touched), out),
                }
                state.act()
            });
            if let FromShard::Requests(batch) = item {
                self.state.end.give_back(batch);
            }
        }
        if self.goes_on() {
            self.guard(|state, now| {
                let State { pipeline, out, .. } = state;
                pipeline.step(now, Input::GoOn, out);
                state.act()
            });
        }
    }

    fn on_command(&mut self, command: PipelineCommand) {
        match command {
            PipelineCommand::SnapshotEnded => self.guard(|state, now| {
                let State { pipeline, out, .. } = state;
                pipeline.step(now, Input::SnapshotEnded, out);
                state.act()
            }),
            PipelineCommand::Ask(question) => question(&mut self.state.pipeline),
            PipelineCommand::Snapshot => self.guard(|state, now| {
                let State { pipeline, out, .. } = state;
                pipeline.step(now, Input::SnapshotAsked, out);
                state.act()
            }),
            PipelineCommand::Finish => {
                self.state.log.hurry();
                self.finishing = true;
            }
        }
    }

    /// What has to be done next to make durable what was logged. One round is under way at a time,
    /// and none once the core cannot go on.
    pub(crate) fn next_round(&mut self) -> Option<Round> {
        if self.state.log.in_round() {
            return None;
        }
        let mut next = None;
        self.guard(|state, _| {
            next = state.log.round()?;
            Ok(())
        });
        next
    }

    /// How much longer the log gathers records before the next sync. `None`: nothing to wait for.
    /// Zero: the wait is over.
    pub(crate) fn sync_delay(&self) -> Option<Duration> {
        self.state.log.gathers()
    }

    /// A round is over, or has failed.
    pub(crate) fn on_round(&mut self, done: Result<Done, LogError>) {
        self.guard(|state, now| {
            let Ended { synced, stored } = state.log.on_round(done?)?;
            assert!(stored.is_empty(), "a single server asks for nothing but records");
            if let Some(zxid) = synced {
                let State { pipeline, out, recorder, .. } = state;
                let began = Instant::now();
                pipeline.step(now, Input::Synced(zxid), out);
                recorder.record(Summary::CommitProcessTime, whole_ms(began.elapsed()));
            }
            state.act()
        });
        if self.finishing {
            self.inbox.bell.ring();
        }
    }

    pub(crate) fn on_tick(&mut self) {
        self.guard(|state, now| {
            let State { pipeline, out, recorder, .. } = state;
            pipeline.step(now, Input::Tick, out);
            counts::publish_pipeline(recorder, &pipeline.take_counts());
            state.act()
        });
    }

    /// Nobody who sends need ring: the core is awake.
    pub(crate) fn wake_up(&self) {
        self.inbox.bell.wake_up();
    }

    /// Rings this core, from any thread.
    pub(crate) fn bell(&self) -> Arc<CachePadded<Bell>> {
        Arc::clone(&self.inbox.bell)
    }

    /// The core is about to end.
    pub(crate) fn leave(&self) {
        self.state.end.leave();
    }
}

impl<C> State<C> {
    /// Does what the last step asked for, each destination in order.
    fn act(&mut self) -> Result<(), LogError> {
        let mut appends = std::mem::take(&mut self.out.appends);
        for append in appends.drain(..) {
            let memory = self.log.append(append)?;
            self.out.give_back(memory);
        }
        self.out.appends = appends;
        for applied in self.out.applied.drain(..) {
            self.end.publish(&applied);
        }
        if let Some(serves) = self.out.serves.take() {
            self.end.serve(serves);
        }
        for audited in self.out.audited.drain(..) {
            audit(&audited);
        }
        if let Some(job) = self.out.snapshot.take() {
            // Once the background thread has ended, so do we.
            let _ = self.jobs.send(Job::Snapshot(job));
        }
        Ok(())
    }
}
