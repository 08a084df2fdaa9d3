//! A shard core's loop.
//!
//! ```text
//! sockets ----> Shard::on_bytes ----+--> requests gather --> pipeline, once per turn
//! applied ----> Shard::on_applied --+--> ready connections --> one send(2) each, at once
//! ticks ------> Shard::on_tick -----+--> words --> asked of all cores, then answered
//! ```
//!
//! One task per connection waits for its socket (`client.rs`); one task here takes what other
//! cores send; one ticks. After every step the connections that it made ready are written to
//! directly, without a detour through their tasks: a task is only woken where the socket takes no
//! more, or the connection ends. Requests for the pipeline leave at the end of the executor's turn,
//! so that what many sockets brought travels in one batch.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use glommio::net::TcpStream;
use glommio::timer::Timer;

use super::accept::{Accepted, Ticket};
use super::client;
use super::clock::Clock;
use super::counts;
use super::mesh::ShardEnd;
use super::pulse::{self, Breath};
use super::sys;
use super::words::{ShardReport, Words};
use crate::admin::four_letter::Needs;
use crate::exchange::{ConnectionId, ShardId};
use crate::metrics::Recorder;
use crate::shard::{Close, Counters, Output, Settings, Shard};
use crate::tree::TreeReader;
use crate::types::Now;

/// How much is read from a socket at a time, into the one buffer that all sockets share.
const READ_BYTES: usize = 64 * 1024;
/// How many batches from the pipeline are acted on before sockets have their turn.
const APPLIED_MAX: usize = 64;

/// What a shard core is told, from any thread.
pub(crate) enum ShardCommand {
    Accepted(Accepted),
    /// What the state is, between two steps.
    Report {
        needs: Needs,
        give: Box<dyn FnOnce(ShardReport) + Send>,
    },
    /// `crst`: connections count from zero.
    ResetConnections,
    /// `srst`: the shard counts from zero; what it has counted so far is in the metrics by then.
    ResetCounters(Box<dyn FnOnce() + Send>),
    /// Read no more from clients, and hand on what they have asked.
    Quiesce(Box<dyn FnOnce() + Send>),
    /// Act on what the pipeline has sent, write all replies, close all connections, end.
    Close,
}

/// What a shard core is made of.
pub(crate) struct ShardParts {
    pub(crate) id: ShardId,
    pub(crate) settings: Settings,
    pub(crate) reader: TreeReader,
    pub(crate) end: ShardEnd<ShardCommand>,
    pub(crate) clock: Clock,
    pub(crate) tick: Duration,
    pub(crate) words: Arc<Words>,
    pub(crate) recorder: Recorder,
}

/// Runs a shard until it is told to close.
pub(crate) async fn run(parts: ShardParts) {
    let ShardParts { id, settings, reader, end, clock, tick, words, recorder } = parts;
    let core = Rc::new(ShardCore {
        shard: RefCell::new(Shard::new(id, settings, reader)),
        out: RefCell::new(Output::new(id)),
        ready: RefCell::default(),
        sockets: RefCell::default(),
        buffer: RefCell::new(vec![0; READ_BYTES].into_boxed_slice()),
        phase: Cell::new(Phase::Serving),
        has_requests: Cell::new(false),
        deferred: RefCell::default(),
        steps: Cell::new(0),
        quiesced: RefCell::new(None),
        end,
        clock,
        words,
        recorder,
        published: Cell::default(),
    });
    let ticker = glommio::spawn_local(Rc::clone(&core).tick(tick));
    let counted = Rc::clone(&core);
    let pulse = glommio::spawn_local(pulse::pulse(move || counted.steps.get()));
    core.take_turns().await;
    core.close_all().await;
    ticker.cancel().await;
    pulse.cancel().await;
    core.end.leave();
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// The server stops: nothing more is read.
    Quiescing,
    Closing,
}

pub(crate) struct ShardCore {
    shard: RefCell<Shard>,
    /// What steps ask for.
    out: RefCell<Output>,
    /// Taken out of `out` while it is worked through; here to be reused.
    ready: RefCell<Vec<ConnectionId>>,
    /// By slot.
    sockets: RefCell<Vec<Option<Rc<Socket>>>>,
    buffer: RefCell<Box<[u8]>>,
    phase: Cell<Phase>,
    /// Whether there is a batch for the pipeline.
    has_requests: Cell<bool>,
    /// Tasks that go on once sockets have been looked at.
    deferred: RefCell<Vec<Waker>>,
    /// Counts steps.
    steps: Cell<u64>,
    /// Told once the pipeline has all that clients have asked.
    quiesced: RefCell<Option<Box<dyn FnOnce() + Send>>>,
    end: ShardEnd<ShardCommand>,
    clock: Clock,
    words: Arc<Words>,
    recorder: Recorder,
    /// What of the shard's counters is in the metrics.
    published: Cell<Counters>,
}

/// One client's socket, shared between its task and the loop.
pub(crate) struct Socket {
    pub(crate) id: ConnectionId,
    pub(crate) remote: SocketAddr,
    pub(crate) stream: RefCell<TcpStream>,
    /// The socket took no more: its task waits until it does.
    pub(crate) is_blocked: Cell<bool>,
    /// Its task does not read, because the shard did not want it to.
    pub(crate) is_paused: Cell<bool>,
    /// The task.
    pub(crate) waker: RefCell<Option<Waker>>,
    _ticket: Ticket,
}

impl Socket {
    /// Ends one or both directions.
    pub(crate) fn shut(&self, how: Shutdown) {
        sys::shut(sys::socket_of(&self.stream.borrow()), how);
    }

    /// Has the task look again.
    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

impl ShardCore {
    async fn take_turns(self: &Rc<Self>) {
        let mut breath = Breath::default();
        while self.phase.get() != Phase::Closing {
            let has_more = || {
                !self.deferred.borrow().is_empty()
                    || (self.has_requests.get() && self.end.has_room())
            };
            breath.wait(|cx| self.end.poll_work(cx, has_more)).await;
            for _ in 0..APPLIED_MAX {
                let Some(applied) = self.end.next_applied() else { break };
                self.step(|shard, now, out| shard.on_applied(now, &applied, out));
            }
            while let Some(command) = self.end.next_command() {
                self.on_command(command);
            }
            self.send_requests();
            if self.deferred.borrow().is_empty() {
                breath.take().await;
            } else {
                pulse::look_at_kernel().await;
                for waker in self.deferred.borrow_mut().drain(..) {
                    waker.wake();
                }
            }
        }
    }

    fn on_command(self: &Rc<Self>, command: ShardCommand) {
        match command {
            ShardCommand::Accepted(accepted) => self.on_accepted(accepted),
            ShardCommand::Report { needs, give } => give(self.report(needs)),
            ShardCommand::ResetConnections => self.shard.borrow_mut().reset_connection_stats(),
            ShardCommand::ResetCounters(done) => {
                self.publish_counters();
                self.shard.borrow_mut().reset_counters();
                self.published.set(Counters::default());
                done();
            }
            ShardCommand::Quiesce(done) => {
                self.phase.set(Phase::Quiescing);
                *self.quiesced.borrow_mut() = Some(done);
            }
            ShardCommand::Close => self.phase.set(Phase::Closing),
        }
    }

    fn on_accepted(self: &Rc<Self>, accepted: Accepted) {
        if self.phase.get() != Phase::Serving {
            return;
        }
        let Accepted { socket, remote, ticket } = accepted;
        let id = self.shard.borrow_mut().on_accept(self.clock.now(), remote);
        let socket = Rc::new(Socket {
            id,
            remote,
            stream: RefCell::new(sys::adopt_stream(socket)),
            is_blocked: Cell::new(false),
            is_paused: Cell::new(false),
            waker: RefCell::new(None),
            _ticket: ticket,
        });
        let mut sockets = self.sockets.borrow_mut();
        let slot = id.slot as usize;
        if sockets.len() <= slot {
            sockets.resize(slot + 1, None);
        }
        sockets[slot] = Some(Rc::clone(&socket));
        glommio::spawn_local(client::serve(Rc::clone(self), socket)).detach();
    }

    /// Whether clients may be read from.
    pub(crate) fn is_serving(&self) -> bool {
        self.phase.get() == Phase::Serving
    }

    pub(crate) fn shard(&self) -> std::cell::RefMut<'_, Shard> {
        self.shard.borrow_mut()
    }

    /// The buffer that all sockets read into; what is in it is used before anyone else reads.
    pub(crate) fn buffer(&self) -> std::cell::RefMut<'_, Box<[u8]>> {
        self.buffer.borrow_mut()
    }

    /// Has a task go on once other sockets have been looked at.
    pub(crate) fn defer(&self, waker: Waker) {
        self.deferred.borrow_mut().push(waker);
        self.end.wake();
    }

    /// Runs one step and does what it asks for.
    pub(crate) fn step(self: &Rc<Self>, step: impl FnOnce(&mut Shard, Now, &mut Output)) {
        self.steps.set(self.steps.get() + 1);
        step(&mut self.shard.borrow_mut(), self.clock.now(), &mut self.out.borrow_mut());
        self.act();
    }

    fn act(self: &Rc<Self>) {
        // Writing to a connection may free it to act on more, which may make it ready again.
        let mut ready = self.ready.take();
        loop {
            std::mem::swap(&mut ready, &mut self.out.borrow_mut().ready);
            if ready.is_empty() {
                break;
            }
            for id in ready.drain(..) {
                self.look_at(id);
            }
        }
        *self.ready.borrow_mut() = ready;
        // A spawned task runs at once up to its first await: nothing is borrowed here.
        let words = std::mem::take(&mut self.out.borrow_mut().words);
        for word in words {
            let Some(remote) = self.socket(word.connection).map(|socket| socket.remote) else {
                continue;
            };
            let answer = Arc::clone(&self.words).answer(word.word, word.mask, remote);
            let core = Rc::clone(self);
            glommio::spawn_local(async move {
                let text = answer.await;
                core.step(|shard, now, out| shard.answer_word(now, word.connection, &text, out));
            })
            .detach();
        }
        let has_requests = !self.out.borrow().requests.is_empty();
        if has_requests && !self.has_requests.replace(true) {
            self.end.wake();
        }
    }

    /// Writes what a connection has for its client, as far as the socket takes it, and has the
    /// connection's task see to the rest.
    fn look_at(&self, id: ConnectionId) {
        let Some(socket) = self.socket(id) else { return };
        loop {
            let mut shard = self.shard.borrow_mut();
            let Some(outgoing) = shard.outgoing(id) else { return };
            if outgoing.bytes.is_empty() || socket.is_blocked.get() {
                // Ending and going on with reading are the task's.
                if outgoing.close.is_some() || (socket.is_paused.get() && outgoing.wants_read) {
                    socket.wake();
                }
                return;
            }
            let sent = sys::send_now(sys::socket_of(&socket.stream.borrow()), outgoing.bytes);
            match sent {
                Ok(count) => {
                    shard.on_written(self.clock.now(), id, count, &mut self.out.borrow_mut());
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Full, or broken: the task finds out which by trying the same.
                Err(_) => {
                    socket.is_blocked.set(true);
                    return socket.wake();
                }
            }
        }
    }

    fn socket(&self, id: ConnectionId) -> Option<Rc<Socket>> {
        let sockets = self.sockets.borrow();
        let socket = sockets.get(id.slot as usize)?.as_ref()?;
        (socket.id == id).then(|| Rc::clone(socket))
    }

    /// A connection is over for the shard.
    pub(crate) fn on_closed(self: &Rc<Self>, id: ConnectionId) {
        if let Some(slot) = self.sockets.borrow_mut().get_mut(id.slot as usize)
            && slot.as_ref().is_some_and(|socket| socket.id == id)
        {
            *slot = None;
        }
        self.step(|shard, now, _| shard.on_closed(now, id));
    }

    /// Hands what has gathered to the pipeline.
    fn send_requests(&self) {
        let mut out = self.out.borrow_mut();
        let sent = self.end.send_requests(&mut out.requests);
        self.has_requests.set(!sent);
        if sent && out.touched.is_some() {
            self.end.send_touched(&mut out.touched);
        }
        if sent
            && self.phase.get() != Phase::Serving
            && let Some(done) = self.quiesced.borrow_mut().take()
        {
            done();
        }
    }

    /// Brings the metrics up to what the shard has counted.
    fn publish_counters(&self) {
        let counters = *self.shard.borrow().counters();
        let before = self.published.replace(counters);
        counts::publish(&self.recorder, &counters, &before, self.clock.now());
    }

    fn report(&self, needs: Needs) -> ShardReport {
        if needs.measures {
            self.publish_counters();
        }
        ShardReport::of(&self.shard.borrow(), needs, self.clock.now())
    }

    async fn tick(self: Rc<Self>, every: Duration) {
        loop {
            Timer::new(every).await;
            self.step(|shard, now, out| shard.on_tick(now, out));
            self.send_requests();
        }
    }

    /// Writes out and closes every connection, for a while.
    async fn close_all(self: &Rc<Self>) {
        while let Some(applied) = self.end.next_applied() {
            self.step(|shard, now, out| shard.on_applied(now, &applied, out));
        }
        let sockets: Vec<Rc<Socket>> = self.sockets.borrow().iter().flatten().cloned().collect();
        for socket in &sockets {
            socket.wake();
        }
        drop(sockets);
        let deadline = self.clock.now().monotonic_ms + CLOSE_MS;
        while self.sockets.borrow().iter().any(Option::is_some)
            && self.clock.now().monotonic_ms < deadline
        {
            Timer::new(Duration::from_millis(5)).await;
        }
    }

    /// How a connection ends, if it does: by its own, or because the server stops.
    pub(crate) fn close_of(&self, own: Option<Close>) -> Option<Close> {
        match self.phase.get() {
            Phase::Closing => own.or(Some(Close::AfterFlush)),
            Phase::Serving | Phase::Quiescing => own,
        }
    }
}

/// How long a stopping server waits for clients to take their replies.
const CLOSE_MS: i64 = 1000;
