//! The pipeline core's loop.
//!
//! ```text
//! requests from shards --+                     +--> appends  --> log: rounds, one at a time
//! commands --------------+--> Pipeline::step --+--> applied  --> every shard
//! ticks -----------------+        ^            +--> snapshot --> background
//!                                 |
//!               synced <----------+------------------- a round is over
//! ```
//!
//! Three tasks on one executor: one takes what others send, one runs the log's rounds, one ticks.
//! A step runs to its end; the tasks meet only between steps. On small machines there is no
//! executor, and `one_core.rs` does the same in a loop.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crossbeam::channel;
use crossbeam::queue::SegQueue;
use crossbeam::utils::CachePadded;
use futures_lite::future::poll_fn;
use glommio::timer::Timer;

use super::background::Job;
use super::clock::Clock;
use super::counts;
use super::disk::{ExecutorFile, GroupLog, Log, LogError, LogParts, Round};
use super::logging::audit;
use super::mesh::{Bell, FromShard, PipelineEnd};
use super::pulse::{self, Breath};
use super::whole_ms;
use crate::metrics::{Counter, Recorder, Summary};
use crate::pipeline::{Input, Output, Pipeline};

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

/// Runs the pipeline until it has finished, or cannot go on: then nothing more is acknowledged.
pub(crate) async fn run<C: 'static>(parts: PipelineParts<C>) -> Result<(), LogError> {
    let tick = parts.tick;
    let core: Rc<Core<GroupLog<ExecutorFile>, C>> = Rc::new(Core::start(parts, GroupLog::open));
    let syncer = glommio::spawn_local(Rc::clone(&core).sync());
    let ticker = glommio::spawn_local(Rc::clone(&core).tick(tick));
    let counted = Rc::clone(&core);
    let pulse = glommio::spawn_local(pulse::pulse(move || counted.steps.get()));
    let result = core.take_turns().await;
    core.ended.set(true);
    core.leave();
    if result.is_ok() {
        // The executor would leave them lying about, with all that they hold.
        core.wake_syncer();
        syncer.await;
        ticker.cancel().await;
        pulse.cancel().await;
    }
    result
}

/// A pipeline and what is around it.
pub(crate) struct Core<L, C> {
    state: RefCell<State<L, C>>,
    inbox: PipelineInbox,
    clock: Clock,
    /// Wakes the task that runs the log's rounds.
    syncer: RefCell<Option<Waker>>,
    finishing: Cell<bool>,
    fault: RefCell<Option<LogError>>,
    ended: Cell<bool>,
    /// Counts steps.
    steps: Cell<u64>,
}

struct State<L, C> {
    pipeline: Pipeline,
    log: L,
    end: PipelineEnd<C>,
    jobs: channel::Sender<Job>,
    out: Output,
    recorder: Recorder,
}

impl<L: Log, C> Core<L, C> {
    pub(crate) fn start(
        parts: PipelineParts<C>,
        open_log: impl FnOnce(LogParts) -> L,
    ) -> Core<L, C> {
        let PipelineParts { pipeline, log, end, inbox, jobs, clock, recorder, tick: _ } = parts;
        let log = open_log(log);
        let core = Core {
            state: RefCell::new(State {
                pipeline,
                log,
                end,
                jobs,
                out: Output::default(),
                recorder,
            }),
            inbox,
            clock,
            syncer: RefCell::new(None),
            finishing: Cell::new(false),
            fault: RefCell::new(None),
            ended: Cell::new(false),
            steps: Cell::new(0),
        };
        core.guard(|state, now| {
            let State { pipeline, out, .. } = state;
            pipeline.start(now, out);
            state.act()
        });
        core
    }

    /// Runs one step and notes what stops us. After that nothing is done any more.
    fn guard(
        &self,
        step: impl FnOnce(&mut State<L, C>, crate::types::Now) -> Result<(), LogError>,
    ) {
        if self.fault.borrow().is_some() {
            return;
        }
        self.steps.set(self.steps.get() + 1);
        let result = step(&mut self.state.borrow_mut(), self.clock.now());
        if let Err(fault) = result {
            *self.fault.borrow_mut() = Some(fault);
            self.inbox.bell.ring();
        }
    }

    /// Ready when there is something for `turn` to take, or the core may end, or `also` says so.
    pub(crate) fn poll_work(
        &self,
        cx: &mut Context<'_>,
        mut also: impl FnMut() -> bool,
    ) -> Poll<()> {
        let may_end = || {
            self.fault.borrow().is_some()
                || (self.finishing.get() && self.state.borrow().log.is_idle())
        };
        let has_command = || !self.inbox.commands.is_empty();
        // While it is congested, room rings.
        let goes_on = || {
            let state = self.state.borrow();
            state.pipeline.has_work() && !state.end.is_congested()
        };
        self.state.borrow().end.poll_work(cx, || has_command() || may_end() || goes_on() || also())
    }

    /// How the core ends, once it does.
    pub(crate) fn outcome(&self) -> Option<Result<(), LogError>> {
        if let Some(fault) = self.fault.borrow_mut().take() {
            return Some(Err(fault));
        }
        self.has_finished().then(|| self.state.borrow_mut().log.seal())
    }

    /// Whether all that was to be done is done.
    fn has_finished(&self) -> bool {
        let state = self.state.borrow();
        self.finishing.get()
            && state.log.is_idle()
            && state.end.is_empty()
            && !state.pipeline.has_work()
    }

    /// Takes what has been sent, as far as there is room for what follows from it.
    pub(crate) fn turn(&self) {
        while let Some(command) = self.inbox.commands.pop() {
            self.on_command(command);
        }
        self.state.borrow_mut().end.pass_on();
        for _ in 0..TAKE_MAX {
            let mut state = self.state.borrow_mut();
            if state.end.is_congested() {
                break;
            }
            let Some(item) = state.end.take() else { break };
            drop(state);
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
                self.state.borrow_mut().end.give_back(batch);
            }
        }
        let state = self.state.borrow();
        let goes_on = state.pipeline.has_work() && !state.end.is_congested();
        drop(state);
        if goes_on {
            self.guard(|state, now| {
                let State { pipeline, out, .. } = state;
                pipeline.step(now, Input::GoOn, out);
                state.act()
            });
        }
        self.wake_syncer();
    }

    fn on_command(&self, command: PipelineCommand) {
        match command {
            PipelineCommand::SnapshotEnded => self.guard(|state, now| {
                let State { pipeline, out, .. } = state;
                pipeline.step(now, Input::SnapshotEnded, out);
                state.act()
            }),
            PipelineCommand::Ask(question) => question(&mut self.state.borrow_mut().pipeline),
            PipelineCommand::Snapshot => self.guard(|state, now| {
                let State { pipeline, out, .. } = state;
                pipeline.step(now, Input::SnapshotAsked, out);
                state.act()
            }),
            PipelineCommand::Finish => {
                self.state.borrow_mut().log.hurry();
                self.finishing.set(true);
            }
        }
    }

    /// What has to be done next to make durable what was logged. One round is under way at a time,
    /// and none once the core cannot go on.
    pub(crate) fn next_round(&self) -> Option<L::Round> {
        if self.state.borrow().log.in_round() {
            return None;
        }
        let mut next = None;
        self.guard(|state, _| {
            next = state.log.round()?;
            Ok(())
        });
        next
    }

    /// For how long the log puts a round off.
    pub(crate) fn held(&self) -> Option<Duration> {
        self.state.borrow().log.gathers()
    }

    /// A round is over, or has failed.
    pub(crate) fn on_round(&self, done: Result<L::Done, LogError>) {
        self.guard(|state, now| {
            if let Some(zxid) = state.log.on_round(done?)? {
                let State { pipeline, out, recorder, .. } = state;
                let began = Instant::now();
                pipeline.step(now, Input::Synced(zxid), out);
                recorder.record(Summary::CommitProcessTime, whole_ms(began.elapsed()));
            }
            state.act()
        });
        if self.finishing.get() {
            self.inbox.bell.ring();
        }
    }

    pub(crate) fn on_tick(&self) {
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
        self.state.borrow().end.leave();
    }

    fn wake_syncer(&self) {
        if let Some(waker) = self.syncer.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// On an executor.
impl<L: Log<Round: Round<Done = L::Done>>, C> Core<L, C> {
    async fn take_turns(&self) -> Result<(), LogError> {
        let mut breath = Breath::default();
        loop {
            breath.wait(|cx| self.poll_work(cx, || false)).await;
            self.turn();
            if let Some(outcome) = self.outcome() {
                return outcome;
            }
            breath.take().await;
        }
    }

    /// Runs the log's rounds, one after the other.
    async fn sync(self: Rc<Self>) {
        loop {
            let mut held: Option<Timer> = None;
            let round = poll_fn(|cx| {
                loop {
                    if self.ended.get() || self.fault.borrow().is_some() {
                        return Poll::Ready(None);
                    }
                    if let Some(round) = self.next_round() {
                        return Poll::Ready(Some(round));
                    }
                    *self.syncer.borrow_mut() = Some(cx.waker().clone());
                    let Some(left) = self.held() else { return Poll::Pending };
                    let timer = held.get_or_insert_with(|| Timer::new(left));
                    if Pin::new(timer).poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    held = None;
                }
            });
            let Some(round) = round.await else { return };
            self.on_round(round.run().await);
        }
    }

    async fn tick(self: Rc<Self>, every: Duration) {
        while !self.ended.get() {
            Timer::new(every).await;
            self.on_tick();
            self.wake_syncer();
        }
    }
}

impl<L: Log, C> State<L, C> {
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
