//! A shard core's loop: one thread, one ring.
//!
//! ```text
//! sockets ----> Shard::on_bytes ----+--> requests gather --> pipeline, once per turn
//! applied ----> Shard::on_applied --+--> ready connections --> one send(2) each, some per turn
//! ticks ------> Shard::on_tick -----+--> words --> asked of all cores, then answered
//! ```
//!
//! A turn takes some of what the ring and the other cores have for us, hands the pipeline what has
//! gathered and then writes to clients: so the pipeline works while we are in system calls, and
//! what many frames and batches brought to one client leaves in one send. It waits, in the ring,
//! only if nothing is left to do.
//!
//! A turn does a bounded amount of each. Newcomers, and those who are told of an event or leave,
//! may be thousands at once: a few of them are seen to in each turn, fewer while others wait.
//!
//! How a connection ends:
//!
//! ```text
//! at once        the socket is closed, whatever is unread or unwritten
//! after flush    all replies are written, then our end is shut; what the client still sends is
//!                read and dropped until it closes too, for unread bytes would make the kernel reset
//!                the connection and take the last reply with them
//! ```
//!
//! A client that ends its own direction (as netcat does after a four-letter word) is still
//! answered.
//!
//! A tick says who was silent, so it must know what has come; after a stall, that may be much. When
//! one falls due:
//!
//! ```text
//! as of      this moment, or an earlier one if somebody who came before is not looked at yet
//! unread     sockets that are not read from: has more arrived, was something taken since?
//! mark       behind all else that has arrived; what is before it is acted on first
//! Marked     Shard::on_tick, for the time up to "as of"
//! ```

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tracing::debug;

use super::accept::{Accepted, Arrivals, Ticket};
use super::clock::{Clock, Ticks};
use super::counts;
use super::mesh::{FromPipeline, ShardEnd};
use super::ring::{Event, Owner, Received, Ring, RingBell, Token};
use super::sys;
use super::turns::{Waiting, sooner};
use super::words::{Place, ShardReport, Words};
use crate::admin::four_letter::Needs;
use crate::exchange::{ConnectionId, ShardId};
use crate::metrics::Recorder;
use crate::shard::{Close, Counters, Output, Settings, Shard};
use crate::tree::TreeReader;
use crate::types::Now;

/// How many events of the ring are acted on in a turn.
const EVENTS_MAX: usize = 128;
/// How many messages from the pipeline are.
const FROM_PIPELINE_MAX: usize = 64;
/// How many connections are written to; a send costs more than all else of a request.
const WRITES_MAX: usize = 128;
/// How many newcomers are taken, and how many are written to of those that others come before.
/// There are fewer while others wait: what newcomers send stands before what these send later. Yet
/// they have a share of every turn.
const LATER_MAX: usize = 32;
const LATER_MIN: usize = 4;
/// How many sockets that are not read from are looked at in a turn in which a tick is due.
const LOOKS_MAX: usize = 512;
/// How much is written to one connection before others are written to, and what is written in a turn
/// to those that have more than that.
const WRITE_BYTES_MAX: usize = 64 * 1024;
const BULK_WRITE_BYTES_MAX: usize = 128 * 1024;
const BULK_BYTES_MAX: usize = 256 * 1024;
/// What is read at a time where the ring only says that there is something to read.
const READ_BYTES: usize = 64 * 1024;
/// How long a client may take to close after us.
const LINGER_MS: i64 = 1000;
/// How long a stopping server waits for clients to take their replies.
const CLOSE_MS: i64 = 1000;

/// What a shard core is told, from any thread.
pub(crate) enum ShardCommand {
    Accepted(Accepted),
    /// What the state is, between two steps.
    Report {
        needs: Needs,
        /// Where the part of its lists begins that is asked for, if one is.
        from: Option<Place>,
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
    pub(crate) arrivals: Arc<Arrivals>,
    pub(crate) clock: Clock,
    pub(crate) tick: Duration,
    pub(crate) words: Arc<Words>,
    pub(crate) recorder: Recorder,
    /// How long to look for work before waiting for it.
    pub(crate) spin: Duration,
    /// Makes the ring, on the thread that it is for.
    pub(crate) ring: fn() -> io::Result<Ring>,
}

/// What runs on the same thread as a shard, and with its ring.
pub(crate) trait Beside {
    /// Ready when it has something to do.
    fn poll_work(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Whoever has something for it need not ring.
    fn wake_up(&mut self);

    /// When time alone gives it something to do, on the monotonic clock.
    fn due_ms(&self) -> i64;

    /// How much longer a sync is put off. `None`: none is. Zero: the wait is over.
    fn sync_delay(&self) -> Option<Duration>;

    /// Something has happened on the ring that is not the shard's.
    fn on_event(&mut self, now: Now, event: Event, ring: &mut Ring);

    /// Does what there is to do; the shard has just sent it what has gathered.
    fn take_turn(&mut self, now: Now, ring: &mut Ring) -> io::Result<()>;
}

/// Nothing runs beside the shard.
impl Beside for () {
    fn poll_work(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn wake_up(&mut self) {}

    fn due_ms(&self) -> i64 {
        i64::MAX
    }

    fn sync_delay(&self) -> Option<Duration> {
        None
    }

    fn on_event(&mut self, _: Now, event: Event, _: &mut Ring) {
        unreachable!("nobody has asked for {event:?}");
    }

    fn take_turn(&mut self, _: Now, _: &mut Ring) -> io::Result<()> {
        Ok(())
    }
}

/// Runs a shard until it is told to close. Fails where the ring does.
pub(crate) fn run(parts: ShardParts, ring: Ring, beside: &mut impl Beside) -> io::Result<()> {
    let mut core = ShardCore::new(parts, ring);
    let result = core.take_turns(beside);
    core.end.leave();
    result
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// The server stops: nothing more is read.
    Quiescing,
    /// All is written out and closed, until this moment of the monotonic clock at the latest.
    Closing {
        until_ms: i64,
    },
}

/// Whether the ring receives for a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    No,
    Yes,
    /// It was told to stop and has not said that it did.
    Stopping,
    /// The client has ended its direction.
    Over,
}

/// One client's socket.
struct Socket {
    id: ConnectionId,
    remote: SocketAddr,
    stream: TcpStream,
    receiving: Receiving,
    /// It took no more; the ring says when it does.
    is_blocked: bool,
    /// In `ShardCore::later`.
    is_later: bool,
    /// In `ShardCore::bulk`.
    is_bulk: bool,
    /// The client is gone, which is seen to later.
    is_broken: bool,
    /// How many bytes were written to it.
    written: u64,
    /// In `ShardCore::unread`, with what was seen at the last look.
    unread: Option<Look>,
    ticket: Ticket,
}

/// What can be seen of a socket that is not read from.
#[derive(Clone, Copy, Debug)]
struct Look {
    /// Bytes that wait in it.
    arrived: u64,
    /// Bytes that the client has acknowledged.
    taken: u64,
}

impl Look {
    fn at(socket: &Socket) -> Look {
        let fd = socket.stream.as_fd();
        let untaken = sys::untaken_bytes(fd).unwrap_or(socket.written);
        Look {
            arrived: sys::unread_bytes(fd).unwrap_or(0),
            taken: socket.written.saturating_sub(untaken),
        }
    }

    /// Whether the client has done something since.
    fn has_grown_since(self, before: Look) -> bool {
        before.arrived < self.arrived || before.taken < self.taken
    }
}

/// A tick that is due, and waits for what has come before it.
#[derive(Clone, Copy, Debug)]
struct DueTick {
    /// What came later is not its affair.
    as_of_ms: i64,
    /// How many of `ShardCore::unread` are still to be looked at.
    looks_left: usize,
    is_marked: bool,
}

/// How serving a client ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The client is gone, or is to be cut off.
    Gone,
    /// Everything is written, and the client may not know yet that we are done.
    Flushed,
}

/// The answer to a four-letter word, gathered from all cores.
type Answer = Pin<Box<dyn Future<Output = Vec<Vec<u8>>>>>;

/// Whose answers have come further.
struct AnswerNews {
    of: Mutex<Vec<ConnectionId>>,
    has_some: AtomicBool,
    bell: Arc<RingBell>,
}

impl AnswerNews {
    fn tell(&self, connection: ConnectionId) {
        self.of.lock().push(connection);
        self.has_some.store(true, Ordering::Release);
    }

    fn take(&self) -> Vec<ConnectionId> {
        if self.has_some.swap(false, Ordering::Acquire) {
            std::mem::take(&mut self.of.lock())
        } else {
            Vec::new()
        }
    }
}

/// Rings the core when one answer has come further.
struct AnswerBell {
    connection: ConnectionId,
    news: Arc<AnswerNews>,
}

impl Wake for AnswerBell {
    fn wake(self: Arc<Self>) {
        self.news.tell(self.connection);
        self.news.bell.wake_by_ref();
    }
}

struct ShardCore {
    shard: Shard,
    /// What steps ask for.
    out: Output,
    ring: Ring,
    /// By slot.
    sockets: Vec<Option<Socket>>,
    open: usize,
    /// Written out and shut, waiting for their clients to close. They count until they have.
    lingering: HashMap<ConnectionId, Socket>,
    /// Until when, in order.
    patience: VecDeque<(i64, ConnectionId)>,
    /// Accepted, nothing read from them.
    newcomers: VecDeque<Accepted>,
    /// Not read from; some are read from again, or gone. Turned round by looking at them.
    unread: VecDeque<ConnectionId>,
    /// Closed once the ring has taken what was asked of it for them.
    closed: Vec<(TcpStream, Ticket)>,
    phase: Phase,
    /// Told once the pipeline has all that clients have asked.
    quiesced: Option<Box<dyn FnOnce() + Send>>,
    /// Answers to four-letter words, until they are given or their connections are gone.
    asked: HashMap<ConnectionId, Answer>,
    answers: Arc<AnswerNews>,
    buffer: Box<[u8]>,
    end: ShardEnd<ShardCommand>,
    arrivals: Arc<Arrivals>,
    clock: Clock,
    ticks: Ticks,
    due_tick: Option<DueTick>,
    /// The kernel had all that was asked when this turn began.
    is_handed_in: bool,
    words: Arc<Words>,
    recorder: Recorder,
    /// What of the shard's counters is in the metrics.
    published: Counters,
    spin: Duration,
    /// To be written to.
    ready: VecDeque<ConnectionId>,
    /// To be written to, or to end, after others.
    later: VecDeque<ConnectionId>,
    /// To be written to: much, a part of it in each turn, after all who have little.
    bulk: VecDeque<ConnectionId>,
}

impl ShardCore {
    fn new(parts: ShardParts, ring: Ring) -> ShardCore {
        let ShardParts {
            id,
            settings,
            reader,
            end,
            arrivals,
            clock,
            tick,
            words,
            recorder,
            spin,
            ring: _,
        } = parts;
        let read_bytes = if ring.is_buffered() { 0 } else { READ_BYTES };
        ShardCore {
            shard: Shard::new(id, settings, reader),
            out: Output::new(id),
            sockets: Vec::new(),
            open: 0,
            lingering: HashMap::new(),
            patience: VecDeque::new(),
            newcomers: VecDeque::new(),
            unread: VecDeque::new(),
            closed: Vec::new(),
            phase: Phase::Serving,
            quiesced: None,
            asked: HashMap::new(),
            answers: Arc::new(AnswerNews {
                of: Mutex::default(),
                has_some: AtomicBool::new(false),
                bell: ring.bell(),
            }),
            buffer: vec![0; read_bytes].into_boxed_slice(),
            ring,
            end,
            arrivals,
            clock,
            ticks: Ticks::start(clock.now(), tick),
            due_tick: None,
            is_handed_in: false,
            words,
            recorder,
            published: Counters::default(),
            spin,
            ready: VecDeque::new(),
            later: VecDeque::new(),
            bulk: VecDeque::new(),
        }
    }

    fn take_turns(&mut self, beside: &mut impl Beside) -> io::Result<()> {
        let waker = Waker::from(self.ring.bell());
        loop {
            self.await_work(&mut Context::from_waker(&waker), beside)?;
            self.is_handed_in = self.ring.is_handed_in();
            self.let_go();
            let now = self.clock.now();
            let mut events = 0;
            while events < EVENTS_MAX
                && let Some(event) = self.ring.next()
            {
                if let Some(event) = self.on_event(now, event) {
                    beside.on_event(now, event, &mut self.ring);
                }
                events += 1;
            }
            for _ in 0..FROM_PIPELINE_MAX {
                let Some(item) = self.end.next() else { break };
                self.on_pipeline(now, item);
            }
            self.on_time(now);
            while let Some(command) = self.end.next_command() {
                self.on_command(now, command);
            }
            self.prepare_tick(now);
            self.shard.on_turn(now, &mut self.out);
            self.take_newcomers(now, events);
            self.give_answers(now);
            self.send_requests();
            beside.take_turn(now, &mut self.ring)?;
            self.write_out(now);
            self.send_requests();
            self.let_go();
            if let Phase::Closing { until_ms } = self.phase
                && (self.open == 0 && self.lingering.is_empty() || until_ms <= now.monotonic_ms)
            {
                return Ok(());
            }
        }
    }

    /// Waits until there is something to do.
    fn await_work(&mut self, cx: &mut Context<'_>, beside: &mut impl Beside) -> io::Result<()> {
        let mut waiting = Waiting::new(self.spin);
        loop {
            // These are there already, or end a wait in the ring by themselves; for room we are
            // rung, so that it is looked for again once we can be.
            let has_more = self.ring.has_next()
                || !(self.ready.is_empty() && self.later.is_empty() && self.newcomers.is_empty())
                || !self.closed.is_empty()
                || self.due_tick.is_some_and(|tick| !tick.is_marked)
                || !self.bulk.is_empty()
                || self.shard.has_work()
                || self.answers.has_some.load(Ordering::Acquire);
            let has_batch = !self.out.requests.is_empty();
            let finds_room = || has_batch && self.end.has_room();
            // Both, so that both may be rung.
            let polled =
                match (self.end.poll_work(cx, || has_more || finds_room()), beside.poll_work(cx)) {
                    (Poll::Pending, Poll::Pending) => Poll::Pending,
                    _ => Poll::Ready(()),
                };
            let due_ms = self.due_ms().min(beside.due_ms());
            let clock = self.clock;
            let left = || sooner(clock.until_ms(due_ms), beside.sync_delay());
            if waiting.enter(&mut self.ring, polled, left)? {
                break;
            }
        }
        // Others need not ring before we wait again.
        self.end.wake_up();
        beside.wake_up();
        Ok(())
    }

    /// When time alone asks for something, on the monotonic clock.
    fn due_ms(&self) -> i64 {
        let mut next_ms = self.ticks.due_ms();
        if let Some(&(until_ms, _)) = self.patience.front() {
            next_ms = next_ms.min(until_ms);
        }
        if let Phase::Closing { until_ms } = self.phase {
            next_ms = next_ms.min(until_ms);
        }
        next_ms
    }

    /// Closes what has ended, once the ring holds what was asked of it for these. Before, their
    /// numbers might come to be those of others.
    fn let_go(&mut self) {
        if !self.closed.is_empty() && self.ring.is_handed_in() {
            self.closed.clear();
        }
    }

    /// Begins what is due. Before it is known who was given to us by now.
    fn on_time(&mut self, now: Now) {
        // A server that stops does not read, so it does not know who is silent either.
        if self.phase == Phase::Serving && self.due_tick.is_none() && self.ticks.take(now) {
            let as_of_ms = now.monotonic_ms.min(self.arrivals.given_until_ms());
            let looks_left = self.unread.len();
            self.due_tick = Some(DueTick { as_of_ms, looks_left, is_marked: false });
        }
        while let Some(&(until_ms, id)) = self.patience.front()
            && until_ms <= now.monotonic_ms
        {
            self.patience.pop_front();
            self.stop_lingering(id);
        }
    }

    /// Sees to it that all that has come is known to the tick that is due.
    fn prepare_tick(&mut self, now: Now) {
        let Some(mut tick) = self.due_tick.take() else { return };
        if let Some(newcomer) = self.newcomers.front() {
            // It may bring a session back.
            tick.as_of_ms = tick.as_of_ms.min(newcomer.came_after_ms);
        }
        for _ in 0..tick.looks_left.min(LOOKS_MAX) {
            tick.looks_left -= 1;
            let Some(id) = self.unread.pop_front() else { break };
            self.look_at_unread(now, id);
        }
        // Those whom the ring has been asked for since have had their turn since.
        if tick.looks_left == 0 && self.is_handed_in && !tick.is_marked {
            tick.is_marked = self.ring.mark();
        }
        self.due_tick = Some(tick);
    }

    /// Looks whether somebody lives who is not read from.
    fn look_at_unread(&mut self, now: Now, id: ConnectionId) {
        let Some(socket) = slot_of(&mut self.sockets, id) else { return };
        let Some(before) = socket.unread else { return };
        let look = Look::at(socket);
        // One that the ring receives for again may have had something in between.
        socket.unread = (socket.receiving != Receiving::Yes).then_some(look);
        if socket.unread.is_some() {
            self.unread.push_back(id);
        }
        if look.has_grown_since(before) {
            self.shard.on_sign_of_life(now, id, &mut self.out);
        }
    }

    /// All that had come when the tick was marked has been acted on.
    fn on_marked(&mut self, now: Now) {
        let tick = self.due_tick.take().expect("a mark is for a tick");
        if self.phase == Phase::Serving {
            self.shard.on_tick(now, tick.as_of_ms, &mut self.out);
        }
    }

    /// Acts on an event of the ring, or returns one that is not the shard's.
    fn on_event(&mut self, now: Now, event: Event) -> Option<Event> {
        match event {
            Event::Bell => {}
            Event::Marked => self.on_marked(now),
            Event::Writable { socket } if socket.owner == Owner::Client => {
                let id = connection(socket);
                if let Some(socket) = self.socket(id) {
                    socket.is_blocked = false;
                    self.out.ready.push(id);
                }
            }
            Event::Received { socket, what, goes_on } if socket.owner == Owner::Client => {
                self.on_received(now, connection(socket), what, goes_on);
            }
            Event::Durable { .. } | Event::Writable { .. } | Event::Received { .. } => {
                return Some(event);
            }
        }
        None
    }

    fn on_received(&mut self, now: Now, id: ConnectionId, what: Received, goes_on: bool) {
        let is_serving = self.phase == Phase::Serving;
        let what = match what {
            Received::Bytes(filled) => {
                if self.socket(id).is_some() && is_serving {
                    let bytes = self.ring.bytes(&filled);
                    self.shard.on_bytes(now, id, bytes, &mut self.out);
                }
                self.ring.give_back(filled);
                None
            }
            Received::Readable => self.read(now, id),
            what => Some(what),
        };
        let Some(socket) = self.socket(id) else {
            return self.on_received_late(id, what.as_ref(), goes_on);
        };
        if !goes_on {
            socket.receiving = Receiving::No;
        }
        match what {
            None | Some(Received::Nothing) => {}
            Some(Received::NoBuffer) => {
                // It is asked for again, behind others; a tick may come in between.
                if sys::unread_bytes(socket.stream.as_fd()).is_ok_and(|bytes| 0 < bytes) {
                    self.shard.on_sign_of_life(now, id, &mut self.out);
                }
            }
            Some(Received::End) => {
                socket.receiving = Receiving::Over;
                self.shard.on_end_of_input(now, id, &mut self.out);
            }
            Some(Received::Failed(error)) => {
                debug!(remote = %socket.remote, %error, "a client cannot be read from");
                socket.is_broken = true;
                return self.out.later.push(id);
            }
            Some(Received::Bytes(_) | Received::Readable) => unreachable!("acted on above"),
        }
        self.receive_as_wanted(id);
    }

    /// What comes for a socket that is no connection any more.
    fn on_received_late(&mut self, id: ConnectionId, what: Option<&Received>, goes_on: bool) {
        match what {
            Some(Received::End | Received::Failed(_)) => self.stop_lingering(id),
            Some(Received::Nothing | Received::NoBuffer) | None => {
                if !goes_on && let Some(socket) = self.lingering.get(&id) {
                    self.ring.receive(socket.stream.as_fd(), id);
                }
            }
            Some(Received::Bytes(_) | Received::Readable) => unreachable!("acted on before"),
        }
    }

    /// Reads what the ring says is there. `None` if it was bytes, and they are acted on.
    fn read(&mut self, now: Now, id: ConnectionId) -> Option<Received> {
        let is_serving = self.phase == Phase::Serving;
        let slot = id.slot as usize;
        let socket = self.sockets.get(slot).and_then(Option::as_ref).filter(|s| s.id == id);
        let is_connection = socket.is_some();
        let socket = socket.or_else(|| self.lingering.get(&id))?;
        match sys::receive_now(socket.stream.as_fd(), &mut self.buffer) {
            Ok(0) => Some(Received::End),
            Ok(count) => {
                if is_connection && is_serving {
                    self.shard.on_bytes(now, id, &self.buffer[..count], &mut self.out);
                }
                None
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Some(Received::Nothing),
                _ => Some(Received::Failed(error)),
            },
        }
    }

    /// Has the ring receive for a connection, or not, as the shard wants it.
    fn receive_as_wanted(&mut self, id: ConnectionId) {
        let wants_read = self.phase == Phase::Serving && self.shard.wants_read(id);
        let Some(socket) = slot_of(&mut self.sockets, id) else { return };
        match (socket.receiving, wants_read) {
            (Receiving::No, true) => {
                self.ring.receive(socket.stream.as_fd(), id);
                socket.receiving = Receiving::Yes;
                if let Some(look) = &mut socket.unread {
                    // What arrived until now is read now.
                    look.arrived = 0;
                }
            }
            (Receiving::Yes, false) => {
                self.ring.stop_receiving(id);
                socket.receiving = Receiving::Stopping;
                note_unread(socket, &mut self.unread);
            }
            (Receiving::No, false) => note_unread(socket, &mut self.unread),
            // One that is stopping says when it has, and is then asked again.
            (Receiving::Yes, true) => {}
            (Receiving::Stopping | Receiving::Over, _) => {}
        }
    }

    fn on_pipeline(&mut self, now: Now, item: FromPipeline) {
        match item {
            FromPipeline::Applied(applied) => {
                self.shard.on_applied(now, &applied, &mut self.out);
            }
            FromPipeline::Serves(service) => {
                self.shard.on_service(now, *service, &mut self.out);
            }
        }
    }

    fn on_command(&mut self, now: Now, command: ShardCommand) {
        match command {
            ShardCommand::Accepted(accepted) => self.newcomers.push_back(accepted),
            ShardCommand::Report { needs, from, give } => give(self.report(now, needs, from)),
            ShardCommand::ResetConnections => self.shard.reset_connection_stats(),
            ShardCommand::ResetCounters(done) => {
                self.publish_counters(now);
                self.shard.reset_counters();
                self.published = Counters::default();
                done();
            }
            ShardCommand::Quiesce(done) => {
                self.phase = Phase::Quiescing;
                self.quiesced = Some(done);
            }
            ShardCommand::Close => {
                self.phase = Phase::Closing { until_ms: now.monotonic_ms + CLOSE_MS };
                while let Some(item) = self.end.next() {
                    self.on_pipeline(now, item);
                }
                let open = self.sockets.iter().flatten().map(|socket| socket.id);
                self.out.ready.extend(open);
            }
        }
    }

    /// Begins to serve some of those who have come, in a turn with so many events.
    fn take_newcomers(&mut self, now: Now, events: usize) {
        if self.phase != Phase::Serving {
            self.newcomers.clear();
        }
        let is_behind = self.ring.is_behind() || !self.later.is_empty();
        let most = if is_behind { LATER_MIN } else { LATER_MAX };
        for _ in 0..most.max(events / 4) {
            let Some(accepted) = self.newcomers.pop_front() else { break };
            self.on_accepted(now, accepted);
        }
    }

    fn on_accepted(&mut self, now: Now, accepted: Accepted) {
        let Accepted { socket: stream, remote, ticket, came_after_ms: _ } = accepted;
        let id = self.shard.on_accept(now, remote);
        let slot = id.slot as usize;
        if self.sockets.len() <= slot {
            self.sockets.resize_with(slot + 1, || None);
        }
        self.ring.receive(stream.as_fd(), id);
        let socket = Socket {
            id,
            remote,
            stream,
            receiving: Receiving::Yes,
            is_blocked: false,
            is_later: false,
            is_bulk: false,
            is_broken: false,
            written: 0,
            unread: None,
            ticket,
        };
        let before = self.sockets[slot].replace(socket);
        assert!(before.is_none(), "a slot is given out again once it is free");
        self.open += 1;
    }

    fn socket(&mut self, id: ConnectionId) -> Option<&mut Socket> {
        slot_of(&mut self.sockets, id)
    }

    /// Writes to connections that have something to write, and ends those that end.
    fn write_out(&mut self, now: Now) {
        self.queue_up();
        let mut written = 0;
        while written < WRITES_MAX
            && let Some(id) = self.ready.pop_front()
        {
            self.write(now, id, WRITE_BYTES_MAX);
            written += 1;
        }
        let later = if self.ring.is_behind() { LATER_MIN } else { LATER_MAX };
        // Never less than their share, or under a load without end events would come ever later.
        for _ in 0..later.max(written / 2) {
            let Some(id) = self.later.pop_front() else { break };
            if let Some(socket) = self.socket(id) {
                socket.is_later = false;
                self.write(now, id, WRITE_BYTES_MAX);
            }
        }
        let mut bulk = 0;
        for _ in 0..self.bulk.len() {
            if BULK_BYTES_MAX <= bulk {
                break;
            }
            let Some(id) = self.bulk.pop_front() else { break };
            if let Some(socket) = self.socket(id) {
                socket.is_bulk = false;
                bulk += self.write(now, id, BULK_WRITE_BYTES_MAX);
            }
        }
        // Writing to a connection may free it to act on more, which may make it ready again.
        self.queue_up();
        for word in std::mem::take(&mut self.out.words) {
            let Some(socket) = self.socket(word.connection) else { continue };
            let remote = socket.remote;
            let answer = Arc::clone(&self.words).answer(word, remote);
            self.asked.insert(word.connection, Box::pin(answer));
            // It has yet to be begun.
            self.answers.tell(word.connection);
        }
    }

    /// Takes over whom the shard's steps named.
    fn queue_up(&mut self) {
        self.ready.extend(self.out.ready.drain(..));
        for id in self.out.later.drain(..) {
            // One may have been written to, with those that are ready, and be named again.
            if let Some(socket) = slot_of(&mut self.sockets, id)
                && !std::mem::replace(&mut socket.is_later, true)
            {
                self.later.push_back(id);
            }
        }
    }

    /// Writes what a connection has for its client, as far as the socket takes it, and so many bytes
    /// at most: how many it was. The rest is for later turns.
    fn write(&mut self, now: Now, id: ConnectionId, most: usize) -> usize {
        let mut written = 0;
        loop {
            let Some(socket) = slot_of(&mut self.sockets, id) else { return written };
            let Some(outgoing) = self.shard.outgoing(id).filter(|_| !socket.is_broken) else {
                self.finish(now, id, Ended::Gone);
                return written;
            };
            let close = match self.phase {
                Phase::Closing { .. } => outgoing.close.or(Some(Close::AfterFlush)),
                Phase::Serving | Phase::Quiescing => outgoing.close,
            };
            let ended = match close {
                Some(Close::AtOnce) => Some(Ended::Gone),
                Some(Close::AfterFlush) if outgoing.bytes.is_empty() => Some(Ended::Flushed),
                Some(Close::AfterFlush) | None => None,
            };
            if let Some(ended) = ended {
                self.finish(now, id, ended);
                return written;
            }
            // Whoever is in `bulk` already is written to from there.
            if outgoing.bytes.is_empty() || socket.is_blocked || socket.is_bulk {
                self.receive_as_wanted(id);
                return written;
            }
            let Some(left) = most.checked_sub(written).filter(|left| 0 < *left) else {
                socket.is_bulk = true;
                self.bulk.push_back(id);
                self.receive_as_wanted(id);
                return written;
            };
            let bytes = &outgoing.bytes[..outgoing.bytes.len().min(left)];
            match sys::send_now(socket.stream.as_fd(), bytes) {
                Ok(count) => {
                    written += count;
                    socket.written += count as u64;
                    self.shard.on_written(now, id, count, &mut self.out);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => {
                        socket.is_blocked = true;
                        self.ring.await_writable(socket.stream.as_fd(), id);
                    }
                    _ => {
                        debug!(remote = %socket.remote, %error, "a client cannot be written to");
                        self.finish(now, id, Ended::Gone);
                        return written;
                    }
                },
            }
        }
    }

    /// A connection is over for the shard.
    fn finish(&mut self, now: Now, id: ConnectionId, ended: Ended) {
        let Some(socket) = self
            .sockets
            .get_mut(id.slot as usize)
            .and_then(|slot| slot.take_if(|socket| socket.id == id))
        else {
            return;
        };
        self.open -= 1;
        debug!(remote = %socket.remote, ?ended, "a connection has ended");
        self.shard.on_closed(now, id);
        // Whoever asked a word and is gone need not be answered.
        self.asked.remove(&id);
        if ended == Ended::Gone || socket.receiving == Receiving::Over {
            return self.close(socket);
        }
        sys::shut(socket.stream.as_fd(), Shutdown::Write);
        if socket.receiving == Receiving::No {
            self.ring.receive(socket.stream.as_fd(), id);
        }
        self.lingering.insert(id, socket);
        self.patience.push_back((now.monotonic_ms + LINGER_MS, id));
    }

    fn stop_lingering(&mut self, id: ConnectionId) {
        if let Some(socket) = self.lingering.remove(&id) {
            self.close(socket);
        }
    }

    /// The ring holds a socket for as long as it watches it, so dropping ours would tell the client
    /// nothing; this does, and ends the watching too.
    fn close(&mut self, socket: Socket) {
        let Socket { stream, mut ticket, .. } = socket;
        // At once: its client may be back already, and others wait for the place.
        ticket.leave();
        sys::shut(stream.as_fd(), Shutdown::Both);
        self.closed.push((stream, ticket));
    }

    /// Hands what has gathered to the pipeline.
    fn send_requests(&mut self) {
        if !self.end.send_requests(&mut self.out.requests) {
            return;
        }
        if self.out.touched.is_some() {
            self.end.send_touched(&mut self.out.touched);
        }
        if self.phase != Phase::Serving
            && let Some(done) = self.quiesced.take()
        {
            done();
        }
    }

    /// Takes answers to four-letter words as far as they have come.
    fn give_answers(&mut self, now: Now) {
        for connection in self.answers.take() {
            let Some(answer) = self.asked.get_mut(&connection) else { continue };
            let news = Arc::clone(&self.answers);
            let waker = Waker::from(Arc::new(AnswerBell { connection, news }));
            if let Poll::Ready(text) = answer.as_mut().poll(&mut Context::from_waker(&waker)) {
                self.asked.remove(&connection);
                self.shard.answer_word(now, connection, text, &mut self.out);
            }
        }
    }

    /// Brings the metrics up to what the shard has counted.
    fn publish_counters(&mut self, now: Now) {
        let counters = *self.shard.counters();
        counts::publish(&self.recorder, &counters, &self.published, now);
        self.published = counters;
    }

    fn report(&mut self, now: Now, needs: Needs, from: Option<Place>) -> ShardReport {
        if needs.measures {
            self.publish_counters(now);
        }
        ShardReport::of(&self.shard, needs, from, now)
    }
}

fn connection(Token { slot, generation, .. }: Token) -> ConnectionId {
    ConnectionId { slot, generation }
}

fn slot_of(sockets: &mut [Option<Socket>], id: ConnectionId) -> Option<&mut Socket> {
    sockets.get_mut(id.slot as usize)?.as_mut().filter(|socket| socket.id == id)
}

/// A socket is not read from: from now on it is looked at. What waits in it already was never heard.
fn note_unread(socket: &mut Socket, unread: &mut VecDeque<ConnectionId>) {
    if socket.unread.is_none() {
        socket.unread = Some(Look { arrived: 0, ..Look::at(socket) });
        unread.push_back(socket.id);
    }
}
