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

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crossbeam::channel;
use crossbeam::queue::SegQueue;
use crossbeam::utils::CachePadded;

use super::background::Job;
use super::clock::Clock;
use super::counts;
use super::disk::{Done, Ended, Log, LogError, LogParts, Round};
use super::ensemble_side::{EnsembleParts, EnsembleSide, Found, input_of};
use super::logging::audit;
use super::mesh::{Bell, FromShard, PipelineEnd};
use super::ring::{self, Ring};
use super::whole_ms;
use crate::exchange::{Mode, Serves};
use crate::metrics::{Counter, Recorder, Summary};
use crate::pipeline::{Input, LinkInput, Output, Pipeline};
use crate::types::Now;

/// How many batches are taken before the log and the timers have their turn.
const TAKE_MAX: usize = 64;
/// How much that has come over links is.
const LINK_EVENTS_MAX: usize = 256;

/// What the pipeline core is told, from any thread.
pub(crate) enum PipelineCommand {
    /// A snapshot was written, or could not be.
    SnapshotEnded,
    /// A question to the state, between two steps.
    Ask(Box<dyn FnOnce(&mut Pipeline) + Send>),
    /// Have a snapshot taken.
    Snapshot,
    /// What a thread that may wait has found or done for a server of an ensemble.
    Found(Found),
    /// This server cannot go on.
    Fail(String),
    /// No shard will send any more: make all durable, hand out what it leads to, and end.
    Finish,
}

/// Tells the pipeline core things.
#[derive(Clone)]
pub(crate) struct PipelineInbox {
    commands: Arc<SegQueue<PipelineCommand>>,
    /// The core has ended.
    is_closed: Arc<AtomicBool>,
    bell: Arc<CachePadded<Bell>>,
}

impl PipelineInbox {
    pub(crate) fn new(bell: Arc<CachePadded<Bell>>) -> PipelineInbox {
        PipelineInbox { commands: Arc::default(), is_closed: Arc::default(), bell }
    }

    pub(crate) fn found(&self, found: Found) {
        self.tell(PipelineCommand::Found(found));
    }

    pub(crate) fn fail(&self, reason: String) {
        self.tell(PipelineCommand::Fail(reason));
    }

    pub(crate) fn bell(&self) -> Arc<CachePadded<Bell>> {
        Arc::clone(&self.bell)
    }

    pub(crate) fn tell(&self, command: PipelineCommand) {
        self.commands.push(command);
        self.bell.ring();
        if self.is_closed.load(Ordering::SeqCst) {
            self.clear();
        }
    }

    /// The core has ended. What it was told and has not taken, and what it is told from now on, is
    /// dropped: who waits for an answer sees that there will be none.
    fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        self.clear();
    }

    fn clear(&self) {
        while self.commands.pop().is_some() {}
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
    /// Of a server of an ensemble.
    pub(crate) ensemble: Option<EnsembleParts>,
}

/// A pipeline and what is around it.
pub(crate) struct Core<C> {
    state: State<C>,
    inbox: PipelineInbox,
    clock: Clock,
    finishing: bool,
    /// The pipeline knows that it is about to end.
    is_told_to_stop: bool,
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
    ensemble: Option<EnsembleSide>,
}

impl<C> Core<C> {
    pub(crate) fn start(parts: PipelineParts<C>, ring: &Ring) -> io::Result<Core<C>> {
        let PipelineParts { pipeline, log, end, inbox, jobs, clock, recorder, tick: _, ensemble } =
            parts;
        let (mut log, out) = (Log::open(log), Output::default());
        let start = |parts| EnsembleSide::start(parts, inbox.clone(), jobs.clone(), &mut log, ring);
        let ensemble = ensemble.map(start).transpose()?;
        let mut core = Core {
            state: State { pipeline, log, end, jobs, out, recorder, ensemble },
            inbox,
            clock,
            finishing: false,
            is_told_to_stop: false,
            fault: None,
        };
        core.guard(|state, now| {
            let State { pipeline, out, .. } = state;
            pipeline.start(now, out);
            state.act()
        });
        Ok(core)
    }

    /// An event of the ring that is of a link.
    pub(crate) fn on_ring_event(&mut self, event: ring::Event, ring: &mut Ring) {
        if let Some(ensemble) = &mut self.state.ensemble {
            ensemble.links.on_event(event, ring);
        }
    }

    /// Acts on what has come over links, and sends what is to be sent.
    pub(crate) fn take_from_links(&mut self, now: Now, ring: &mut Ring) {
        if self.state.ensemble.is_none() {
            return;
        }
        for _ in 0..LINK_EVENTS_MAX {
            if self.fault.is_some() {
                return;
            }
            let State { pipeline, out, ensemble, .. } = &mut self.state;
            let Some(side) = ensemble else { return };
            side.links.hold(pipeline.is_full());
            let told = side.links.next_event(now, ring, |event| {
                if let Some(input) = input_of(event) {
                    pipeline.step(now, Input::Link(input), out);
                }
            });
            if told.is_none() {
                break;
            }
            self.guard(|state, _| state.act());
        }
        self.on_due(now);
        let State { pipeline, ensemble, .. } = &mut self.state;
        if let Some(side) = ensemble {
            side.links.hold(pipeline.is_full());
            side.flush(ring, || pipeline.notification().expect("a member has a vote"));
        }
        if self.may_end() {
            // At once: the others go on without this server while its log is made durable.
            self.stop_links();
        }
    }

    /// What time alone brings.
    fn on_due(&mut self, now: Now) {
        if let Some(side) = &mut self.state.ensemble
            && side.links.deadline().is_some_and(|at| at.is_due(now))
        {
            side.links.on_time(now);
        }
        if self.state.pipeline.deadline().is_some_and(|at| at.is_due(now)) {
            self.guard(|state, now| {
                let State { pipeline, out, .. } = state;
                pipeline.step(now, Input::Time, out);
                state.act()
            });
        }
    }

    /// When time alone gives it something to do, besides ticks, on the monotonic clock.
    pub(crate) fn due_ms(&self) -> Option<i64> {
        let links = self.state.ensemble.as_ref().and_then(|side| side.links.deadline());
        self.state.pipeline.deadline().into_iter().chain(links).map(|at| at.0).min()
    }

    /// The links are over.
    pub(crate) fn stop_links(&mut self) {
        if let Some(side) = self.state.ensemble.take() {
            side.links.stop();
        }
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
        let may_end = || self.fault.is_some() || (self.may_end() && self.state.log.is_idle());
        let has_command = || !self.inbox.commands.is_empty();
        // While it is congested, room rings.
        let goes_on = || {
            self.goes_on() || self.state.ensemble.as_ref().is_some_and(|side| side.links.has_work())
        };
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
        self.may_end() && log.is_idle() && end.is_empty() && !pipeline.has_work()
    }

    /// Whether nothing will be logged any more.
    fn may_end(&self) -> bool {
        self.is_told_to_stop && self.state.pipeline.may_end()
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
            self.state.end.hold(self.state.pipeline.is_full_for_clients());
            if self.state.end.takes_none() {
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
        // Once all that shards have sent is taken.
        if self.finishing && !self.is_told_to_stop && self.state.end.is_empty() {
            self.is_told_to_stop = true;
            self.guard(|state, now| {
                let State { pipeline, out, .. } = state;
                pipeline.step(now, Input::Stop, out);
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
            PipelineCommand::Found(found) => self.on_found(found),
            PipelineCommand::Fail(reason) => {
                self.fault.get_or_insert(LogError::Reload(reason));
            }
            PipelineCommand::Finish => {
                self.state.log.hurry();
                self.finishing = true;
            }
        }
    }

    fn on_found(&mut self, found: Found) {
        let input = match found {
            Found::Change { change, done } => {
                if let Some(side) = &mut self.state.ensemble {
                    side.change(change, done);
                }
                return;
            }
            Found::State { restored, stored } => Input::Replaced(restored, stored),
            Found::NoSuchZxid(zxid) => Input::TruncateRefused(zxid),
            Found::SnapshotLost => Input::SnapshotLost,
            Found::Looked { link, has_all } => Input::Link(LinkInput::Looked { link, has_all }),
        };
        self.guard(|state, now| {
            let State { pipeline, out, .. } = state;
            pipeline.step(now, input, out);
            state.act()
        });
    }

    /// What has to be done next to make durable what was logged. One round is under way at a time,
    /// and none once the core cannot go on.
    pub(crate) fn next_round(&mut self) -> Option<Round> {
        if self.state.log.in_round() {
            return None;
        }
        let State { log, ensemble, .. } = &mut self.state;
        if let Some(side) = ensemble {
            side.begin_change(log);
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
            if let Some(zxid) = synced {
                let State { pipeline, out, recorder, .. } = state;
                let began = Instant::now();
                pipeline.step(now, Input::Synced(zxid), out);
                recorder.record(Summary::CommitProcessTime, whole_ms(began.elapsed()));
            }
            for stored in stored {
                let State { pipeline, out, ensemble, .. } = state;
                let durable = ensemble.as_mut().and_then(|side| side.on_stored(&stored));
                if let Some(durable) = durable {
                    pipeline.step(now, Input::Stored(durable), out);
                }
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
        self.inbox.close();
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
            // A server without a leader changes no files.
            let has_leader = matches!(&serves, Serves::Clients { mode: Mode::ReadWrite, .. });
            if let (true, Some(side)) = (has_leader, &self.ensemble) {
                side.remove_replaced();
            }
            self.end.serve(serves);
        }
        for tree in self.out.dropped.drain(..) {
            let _ = self.jobs.send(Job::Drop(Box::new(tree)));
        }
        if let Some(side) = &mut self.ensemble {
            side.ask(self.out.to_links.drain(..));
            for durable in self.out.stores.drain(..) {
                side.store(&mut self.log, durable);
            }
            if let Some(to) = self.out.reload.take() {
                side.reload(to);
            }
            if let Some((link, zxid)) = self.out.loads.take() {
                side.load(link, zxid);
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_a_core_that_has_ended_learns_that_no_answer_comes() {
        let inbox = PipelineInbox::new(Arc::default());
        let ask = || {
            let (done, wait) = channel::bounded::<()>(1);
            inbox.tell(PipelineCommand::Ask(Box::new(move |_| {
                let _ = done.send(());
            })));
            wait
        };
        let before = ask();
        assert_eq!(before.try_recv(), Err(channel::TryRecvError::Empty));
        inbox.close();
        for wait in [before, ask()] {
            assert_eq!(wait.try_recv(), Err(channel::TryRecvError::Disconnected));
        }
    }
}
