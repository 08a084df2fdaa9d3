//! Connections over threads: connect, pace, warm up, measure, close.
//!
//! ```text
//! connect ── go ──── warm-up ────┬──── measured ────┬── drain ── close
//!                              begin               end
//! ```
//!
//! Each thread owns its connections and an epoll set, and shares nothing with the others while
//! it measures. In a closed loop a reply brings the next request, and what is counted is what
//! was answered between begin and end. In an open loop requests are due at fixed moments,
//! whatever the server does; what is counted is what was due between begin and end, and its
//! latency runs from the moment it was due, so that a stall is charged to all it delayed.
//!
//! A connection that is lost is told and stays lost, unless the plan says that it reconnects.

use std::collections::BTreeMap;
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::client::{Arrival, Connection, Lost, Resume};
use crate::ensemble::gaps::Spans;
use crate::keys::Random;
use crate::sys::{self, Interest, Poll, Ready};
use crate::workload::{Achieved, Asked, Heard, Next, Op, Source, multi_error};
use crate::{Fault, make_room_for};

/// How long a server may take to accept a connection and to make its session.
const CONNECT_WITHIN: Duration = Duration::from_secs(60);
/// How many sessions of one thread are being made at once: below the usual accept backlog.
const CONNECTING_MAX: usize = 32;
/// How long what is in flight at the end may take to be answered.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);
/// How long closing the sessions may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);
/// The longest wait of a thread, so that it pings in time and sees the end.
const TURN_MAX: Duration = Duration::from_millis(20);

/// How soon those are asked again that had nothing to ask.
const LATER: Duration = Duration::from_millis(1);
/// How soon a server is tried again that refuses a connection.
const RETRY_AFTER: Duration = Duration::from_millis(20);
/// How much later for each that is away: a thousand clients do not try every 20 ms, either.
const RETRY_AFTER_EACH: Duration = Duration::from_micros(40);
/// How long an attempt to reconnect may take; after one that took longer, twice as long.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(1);
const ATTEMPT_WITHIN_MAX: Duration = Duration::from_secs(16);

/// The longest that an attempt may take: as many as there are servers fit into a session timeout, as
/// with ZooKeeper's clients (`ClientCnxn`, `connectTimeout`).
fn attempt_within_max(session_timeout_ms: i32, servers: usize) -> Duration {
    let timeout = Duration::from_millis(session_timeout_ms.unsigned_abs().into());
    (timeout / servers.max(1) as u32).clamp(ATTEMPT_WITHIN, ATTEMPT_WITHIN_MAX)
}

/// A client that hears nothing for two thirds of its session timeout goes to another server, as
/// ZooKeeper's do (`ClientCnxn`, `readTimeout`). Shorter silences than this are no sign of anything.
const SILENCE_MIN: Duration = Duration::from_millis(100);
/// How often connections are looked at for silence.
const SILENCE_EVERY: Duration = Duration::from_millis(50);

/// When requests are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// As many in flight as allowed, always.
    Closed,
    /// None: sessions are only kept alive.
    Idle,
    /// So many a second over all connections, whatever is answered.
    Open { per_second: f64 },
}

/// How long requests are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Span {
    Timed {
        warmup: Duration,
        duration: Duration,
    },
    /// Until the sources have nothing more to ask.
    UntilDone,
}

/// How the sources' requests are driven.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Connections go to these in turn.
    pub servers: Vec<SocketAddr>,
    /// On which of them, by their places, connections begin; empty: on all. A connection that is
    /// lost may come back on any.
    pub homes: Vec<usize>,
    /// How many requests a connection may have in flight.
    pub depth: usize,
    pub session_timeout_ms: i32,
    pub pace: Pace,
    pub span: Span,
    /// None: a connection that is lost stays lost.
    pub reconnect: Option<Reconnect>,
    /// Once everything is answered, the sessions live on until `Moment::Held` is over.
    pub holds: bool,
    /// Each time this grows, all connections are cut, and come back.
    pub cuts: Option<Arc<AtomicU64>>,
}

impl Plan {
    /// Makes a list of requests on all servers; a connection that is lost stays lost.
    #[must_use]
    pub fn of_list(servers: Vec<SocketAddr>, depth: usize, session_timeout_ms: i32) -> Plan {
        Plan {
            servers,
            homes: Vec::new(),
            depth,
            session_timeout_ms,
            pace: Pace::Closed,
            span: Span::UntilDone,
            reconnect: None,
            holds: false,
            cuts: None,
        }
    }

    /// The place of the server that a connection begins on.
    fn home(&self, connection: usize) -> usize {
        match self.homes.as_slice() {
            [] => connection % self.servers.len(),
            homes => homes[connection % homes.len()],
        }
    }
}

/// Connections that are lost come back, with their session or, once it has expired, a new one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reconnect {
    /// At random moments, this far apart on average, we drop a connection of all.
    pub drop_every: Option<Duration>,
    pub seed: u64,
}

/// A thread's connections, by their numbers over all threads, and what they ask.
pub struct Crew<S> {
    pub connections: Vec<usize>,
    pub source: S,
}

/// Splits connections over threads, as evenly as it goes.
#[must_use]
pub fn split(connections: usize, threads: usize) -> Vec<Vec<usize>> {
    (0..threads.clamp(1, connections.max(1)))
        .map(|thread| (thread..connections).step_by(threads.max(1)).collect())
        .collect()
}

/// What was seen of one operation.
#[derive(Clone, Debug)]
pub struct OpTally {
    /// Nanoseconds of each right reply.
    pub latency_ns: Histogram<u64>,
    pub errors: BTreeMap<i32, u64>,
    /// Replies that said OK and were not of the length that a right one has.
    pub malformed: u64,
}

/// The longest latency that is told apart.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

impl OpTally {
    fn new() -> OpTally {
        let latency_ns = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3);
        OpTally {
            latency_ns: latency_ns.expect("bounds that a histogram can have"),
            errors: BTreeMap::new(),
            malformed: 0,
        }
    }
}

/// What a thread, and then all of them, have seen.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub ops: BTreeMap<Op, OpTally>,
    /// Right replies in each second since begin.
    pub per_second: Vec<u64>,
    /// Connections that were lost, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Requests that never had a reply, those that never left included.
    pub unanswered: u64,
    /// Watch events.
    pub events: u64,
    pub reconnects: Reconnects,
    /// When writes were acknowledged, in nanoseconds since the start of the run.
    pub acks: Spans,
    /// Connections that were lost and have come back.
    pub returns: Vec<Return>,
}

/// A connection that was lost and has come back, in nanoseconds since the start of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Return {
    pub lost_ns: u64,
    pub back_ns: u64,
    /// Whether its session had expired, and it has a new one.
    pub is_anew: bool,
}

/// What became of connections that may come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reconnects {
    /// Connections that we dropped.
    pub dropped: u64,
    /// Others that were lost.
    pub lost: u64,
    /// Connections that came back with their session.
    pub resumed: u64,
    /// Those of them that came back on another server.
    pub moved: u64,
    /// Sessions that had expired.
    pub expired: u64,
    /// Requests whose reply was lost with the connection.
    pub unanswered: u64,
}

impl Tally {
    /// Counts a right reply.
    pub(crate) fn record(&mut self, op: Op, latency: Duration) {
        let op = self.ops.entry(op).or_insert_with(OpTally::new);
        op.latency_ns.saturating_record(nanos(latency));
    }

    pub(crate) fn refuse(&mut self, op: Op, err: i32) {
        let op = self.ops.entry(op).or_insert_with(OpTally::new);
        *op.errors.entry(err).or_default() += 1;
    }

    pub(crate) fn merge(&mut self, other: Tally) {
        for (op, theirs) in other.ops {
            let ours = self.ops.entry(op).or_insert_with(OpTally::new);
            ours.latency_ns.add(&theirs.latency_ns).expect("histograms of the same bounds");
            ours.malformed += theirs.malformed;
            for (err, count) in theirs.errors {
                *ours.errors.entry(err).or_default() += count;
            }
        }
        if self.per_second.len() < other.per_second.len() {
            self.per_second.resize(other.per_second.len(), 0);
        }
        for (ours, theirs) in self.per_second.iter_mut().zip(other.per_second) {
            *ours += theirs;
        }
        for (reason, count) in other.dropped {
            *self.dropped.entry(reason).or_default() += count;
        }
        self.unanswered += other.unanswered;
        self.events += other.events;
        self.reconnects.dropped += other.reconnects.dropped;
        self.reconnects.lost += other.reconnects.lost;
        self.reconnects.resumed += other.reconnects.resumed;
        self.reconnects.moved += other.reconnects.moved;
        self.reconnects.expired += other.reconnects.expired;
        self.reconnects.unanswered += other.reconnects.unanswered;
        self.acks.merge(other.acks);
        self.returns.extend(other.returns);
    }
}

/// The moments of a run at which a caller may want to look at the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Unconnected,
    Begin,
    /// A second has passed; so many replies in it, over all threads.
    Second {
        elapsed: Duration,
        replies: u64,
    },
    End,
    /// Everything is answered, and the sessions live until this is over. Only if the plan holds.
    Held,
}

/// How a run went.
pub struct Driven<S> {
    pub tally: Tally,
    /// The same by the server that the connection was on.
    pub by_server: Vec<Tally>,
    /// The moment that all times count from.
    pub start: Instant,
    /// Between begin and end.
    pub seconds: f64,
    pub sources: Vec<S>,
}

impl<S> Driven<S> {
    /// The sources, and all else.
    pub fn without_sources(self) -> (Vec<S>, Driven<()>) {
        let Driven { tally, by_server, start, seconds, sources } = self;
        (sources, Driven { tally, by_server, start, seconds, sources: Vec::new() })
    }
}

/// Runs all crews, each on a thread of its own, and calls `at` at each moment.
pub fn drive<S: Source>(
    plan: &Plan,
    crews: Vec<Crew<S>>,
    at: &mut dyn FnMut(Moment) -> Result<(), Fault>,
) -> Result<Driven<S>, Fault> {
    let connections: usize = crews.iter().map(|crew| crew.connections.len()).sum();
    make_room_for(connections, 32)?;
    at(Moment::Unconnected)?;
    let threads = crews.len();
    let replies = AtomicU64::new(0);
    thread::scope(|scope| {
        let (to_main, from_threads) = mpsc::channel();
        let mut gates = Vec::new();
        let mut handles = Vec::new();
        for (number, crew) in crews.into_iter().enumerate() {
            let (open_gate, gate) = mpsc::channel();
            let (to_main, replies) = (to_main.clone(), &replies);
            gates.push(open_gate);
            handles.push(scope.spawn(move || {
                let share = Share { thread: number, threads };
                let ran = Worker::connect(plan, share, crew, replies)
                    .and_then(|worker| worker.run(&to_main, &gate));
                if ran.is_err() {
                    // Main may have given up already, and needs no word then.
                    let _ = to_main.send(Word::Failed);
                }
                ran
            }));
        }
        let conducted = conduct(plan, threads, &from_threads, gates, &replies, at);
        let mut by_server = vec![Tally::default(); plan.servers.len()];
        let mut sources = Vec::new();
        let mut failed = None;
        for handle in handles {
            match handle.join().expect("a thread that panics ends the process") {
                Ok((theirs, source)) => {
                    for (ours, theirs) in by_server.iter_mut().zip(theirs) {
                        ours.merge(theirs);
                    }
                    sources.push(source);
                }
                Err(Fault::GivenUp) => {}
                Err(fault) => failed = Some(fault),
            }
        }
        if let Some(fault) = failed {
            return Err(fault);
        }
        let (start, seconds) = conducted?;
        let mut tally = Tally::default();
        for theirs in &by_server {
            tally.merge(theirs.clone());
        }
        Ok(Driven { tally, by_server, start, seconds, sources })
    })
}

/// What a thread tells the one that conducts.
enum Word {
    Connected,
    /// It asks nothing more and has all replies.
    Drained,
    Failed,
}

/// Lets the threads go once all are connected, keeps the time, and returns the moment of the start
/// and the measured seconds.
fn conduct(
    plan: &Plan,
    threads: usize,
    words: &Receiver<Word>,
    gates: Vec<Sender<Instant>>,
    replies: &AtomicU64,
    at: &mut dyn FnMut(Moment) -> Result<(), Fault>,
) -> Result<(Instant, f64), Fault> {
    for _ in 0..threads {
        // Dropping the gates is how the others hear that one could not connect.
        let Ok(Word::Connected) = words.recv() else { return Err(Fault::GivenUp) };
    }
    let (warmup, duration) = match plan.span {
        Span::Timed { warmup, duration } => (warmup, Some(duration)),
        Span::UntilDone => (Duration::ZERO, None),
    };
    let mut drained = 0;
    if warmup.is_zero() {
        at(Moment::Begin)?;
    }
    let start = Instant::now();
    for gate in &gates {
        // A thread that has ended says so with its result.
        let _ = gate.send(start);
    }
    let mut wait_until = |moment: Instant| -> bool {
        while drained < threads {
            match words.recv_timeout(moment.saturating_duration_since(Instant::now())) {
                Ok(Word::Drained | Word::Failed) => drained += 1,
                Ok(Word::Connected) | Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => return true,
            }
        }
        true
    };
    if !warmup.is_zero() {
        wait_until(start + warmup);
        at(Moment::Begin)?;
    }
    let begin = start + warmup;
    let mut seen = replies.load(Ordering::Relaxed);
    for second in 1.. {
        let tick = begin + Duration::from_secs(second);
        let end = duration.map(|duration| begin + duration);
        let all_drained = wait_until(end.map_or(tick, |end| end.min(tick)));
        if all_drained || end.is_some_and(|end| end <= tick) {
            break;
        }
        let now = replies.load(Ordering::Relaxed);
        at(Moment::Second { elapsed: begin.elapsed(), replies: now - seen })?;
        seen = now;
    }
    let seconds = begin.elapsed().as_secs_f64();
    at(Moment::End)?;
    if plan.holds {
        while !wait_until(Instant::now() + DRAIN_WITHIN) {}
        at(Moment::Held)?;
    }
    // Dropping the gates lets the threads close their sessions.
    drop(gates);
    Ok((start, duration.map_or(seconds, |duration| duration.as_secs_f64())))
}

/// Which of how many threads this is.
#[derive(Clone, Copy)]
struct Share {
    thread: usize,
    threads: usize,
}

/// One thread's connections while they run.
struct Worker<'a, S> {
    plan: &'a Plan,
    source: S,
    poll: Poll,
    /// By token; `None` once lost.
    lines: Vec<Option<Line>>,
    /// By token: those that were lost and are to come back.
    away: BTreeMap<usize, Away>,
    /// How many are not lost, or are to come back.
    live: usize,
    chunk: Vec<u8>,
    /// Those with new requests in this turn.
    touched: Vec<usize>,
    /// Those that had nothing to ask yet.
    later: Vec<usize>,
    achieved: Vec<Achieved>,
    phase: Phase,
    clock: Clock,
    dues: Dues,
    pings: Pings,
    drops: Drops,
    /// How often all connections have been cut.
    cuts_seen: u64,
    /// When connections are looked at for silence.
    next_silence_ns: u64,
    /// What was seen, by the server that it was seen on.
    tallies: Vec<Tally>,
    replies: &'a AtomicU64,
}

/// A connection, and what epoll waits for on it.
struct Line {
    /// Which of the plan's servers it goes to.
    place: usize,
    connection: Connection<Asked>,
    interest: Interest,
    /// Whether it is to be asked again though nothing is heard on it.
    is_later: bool,
    heard_ns: u64,
}

impl Line {
    /// Whether another request may be put into it.
    fn has_room(&self, depth: usize) -> bool {
        self.connection.greeting().is_some() && self.connection.in_flight() < depth
    }
}

/// A connection on its way back. An attempt that is under way has its line.
struct Away {
    resume: Resume,
    /// How long the lost session was to live.
    timeout_ms: i32,
    /// When it was lost, and on which server.
    lost_ns: u64,
    lost_place: usize,
    is_anew: bool,
    /// Which server is tried next.
    place: usize,
    /// When that is, and an attempt under way is given up.
    next_ns: u64,
    /// How long the next attempt may take.
    within: Duration,
}

impl Away {
    fn new(resume: Resume, timeout_ms: i32, lost_place: usize, now_ns: u64) -> Away {
        Away {
            resume,
            timeout_ms,
            lost_ns: now_ns,
            lost_place,
            is_anew: false,
            place: lost_place,
            next_ns: now_ns,
            within: ATTEMPT_WITHIN,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// So many have their session.
    Connecting {
        greeted: usize,
    },
    Asking,
    /// What is in flight is waited for until then.
    Draining {
        until_ns: u64,
    },
    Closing,
}

/// The moments of a run, in nanoseconds since its start.
#[derive(Clone, Copy)]
struct Clock {
    start: Instant,
    begin_ns: u64,
    /// No request is due from here on.
    end_ns: u64,
}

impl Clock {
    fn now_ns(&self) -> u64 {
        nanos(self.start.elapsed())
    }

    fn is_measured(&self, moment_ns: u64) -> bool {
        (self.begin_ns..self.end_ns).contains(&moment_ns)
    }
}

/// An error once somebody has asked us to end.
fn not_interrupted() -> Result<(), Fault> {
    if sys::is_interrupted() { Err(Fault::Interrupted) } else { Ok(()) }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The moments at which an open loop's requests are due; none in the other loops.
#[derive(Clone, Copy)]
struct Dues {
    /// The one that is due next, counted over this thread's own.
    next: u64,
    /// Nanoseconds between two of this thread.
    period_ns: Option<f64>,
    offset_ns: f64,
    /// The connection whose turn it is.
    turn: usize,
}

impl Dues {
    fn of(pace: Pace, share: Share) -> Dues {
        let between_ns = match pace {
            Pace::Closed | Pace::Idle => None,
            Pace::Open { per_second } => Some(1e9 / per_second),
        };
        Dues {
            next: 0,
            period_ns: between_ns.map(|between_ns| between_ns * share.threads as f64),
            offset_ns: between_ns.unwrap_or(0.0) * share.thread as f64,
            turn: 0,
        }
    }

    /// When the next request is due.
    fn next_ns(&self) -> Option<u64> {
        self.period_ns.map(|period_ns| (self.offset_ns + self.next as f64 * period_ns) as u64)
    }

    /// How many are due in the measured time and have not been made.
    fn left(&self, clock: &Clock) -> u64 {
        let Some(period_ns) = self.period_ns else { return 0 };
        if clock.end_ns == u64::MAX {
            return 0;
        }
        let before = |moment_ns: u64| {
            ((moment_ns as f64 - self.offset_ns) / period_ns).ceil().max(0.0) as u64
        };
        before(clock.end_ns).saturating_sub(before(clock.begin_ns).max(self.next))
    }
}

/// Pings go round over all connections, evenly, so that each is pinged once in `every`.
#[derive(Clone, Copy)]
struct Pings {
    since: Instant,
    every: Duration,
    sent: u64,
}

impl Pings {
    /// A third of the session timeout, so that one may be lost.
    fn new(timeout_ms: i32) -> Pings {
        let every = Duration::from_millis(timeout_ms.max(3).unsigned_abs().into()) / 3;
        Pings { since: Instant::now(), every, sent: 0 }
    }
}

/// The moments at which we drop connections, of one thread.
struct Drops {
    /// None: never.
    every_ns: Option<f64>,
    next_ns: u64,
    random: Random,
}

impl Drops {
    fn of(reconnect: Option<Reconnect>, share: Share) -> Drops {
        let every = reconnect.and_then(|reconnect| reconnect.drop_every);
        let seed = reconnect.map_or(0, |reconnect| reconnect.seed);
        let mut drops = Drops {
            every_ns: every.map(|every| every.as_nanos() as f64 * share.threads as f64),
            next_ns: u64::MAX,
            random: Random::new(seed ^ (share.thread as u64).wrapping_mul(0xa076_1d64_78bd_642f)),
        };
        drops.set_after(0);
        drops
    }

    /// Moments that know nothing of each other lie exponentially apart.
    fn set_after(&mut self, now_ns: u64) {
        if let Some(every_ns) = self.every_ns {
            let apart_ns = -(1.0 - self.random.unit()).ln() * every_ns;
            self.next_ns = now_ns.saturating_add(apart_ns as u64);
        }
    }
}

impl<'a, S: Source> Worker<'a, S> {
    /// Opens the connections and waits for all their sessions.
    fn connect(
        plan: &'a Plan,
        share: Share,
        crew: Crew<S>,
        replies: &'a AtomicU64,
    ) -> Result<Worker<'a, S>, Fault> {
        let mut worker = Worker {
            plan,
            source: crew.source,
            poll: Poll::new().map_err(Fault::Poll)?,
            lines: Vec::with_capacity(crew.connections.len()),
            away: BTreeMap::new(),
            live: 0,
            chunk: Vec::new(),
            touched: Vec::new(),
            later: Vec::new(),
            achieved: Vec::new(),
            phase: Phase::Connecting { greeted: 0 },
            clock: Clock { start: Instant::now(), begin_ns: 0, end_ns: u64::MAX },
            dues: Dues::of(plan.pace, share),
            pings: Pings::new(plan.session_timeout_ms),
            drops: Drops::of(plan.reconnect, share),
            cuts_seen: plan.cuts.as_ref().map_or(0, |cuts| cuts.load(Ordering::Relaxed)),
            next_silence_ns: 0,
            tallies: vec![Tally::default(); plan.servers.len()],
            replies,
        };
        let all = crew.connections.len();
        for number in crew.connections {
            worker.open(plan.home(number))?;
            worker.wait_for_sessions((worker.live + 1).saturating_sub(CONNECTING_MAX))?;
        }
        worker.wait_for_sessions(all)?;
        worker.pings = Pings::new(worker.shortest_timeout_ms());
        worker.phase = Phase::Asking;
        Ok(worker)
    }

    fn open(&mut self, place: usize) -> Result<(), Fault> {
        let server = self.plan.servers[place];
        let opened = Connection::open(server, self.plan.session_timeout_ms, CONNECT_WITHIN)
            .and_then(|mut connection| {
                connection.set_nonblocking()?;
                connection.flush()?;
                Ok(connection)
            });
        let connection = match opened {
            Ok(connection) => connection,
            Err(_) if self.plan.reconnect.is_some() => {
                self.away.insert(self.lines.len(), Away::new(Resume::default(), 0, place, 0));
                self.lines.push(None);
                self.live += 1;
                return Ok(());
            }
            Err(source) => return Err(Fault::Connect { server, source }),
        };
        let interest = Interest::Read;
        self.poll.add(&connection, self.lines.len(), interest).map_err(Fault::Poll)?;
        let heard_ns = self.clock.now_ns();
        self.lines.push(Some(Line { place, connection, interest, is_later: false, heard_ns }));
        self.live += 1;
        Ok(())
    }

    /// Waits until so many connections have their session.
    fn wait_for_sessions(&mut self, count: usize) -> Result<(), Fault> {
        let since = Instant::now();
        while let Phase::Connecting { greeted } = self.phase
            && greeted < count
        {
            self.reconnect_due(self.clock.now_ns());
            self.turn(TURN_MAX)?;
            if CONNECT_WITHIN <= since.elapsed() {
                let (sessions, within) = (count - greeted, CONNECT_WITHIN);
                return Err(Fault::NoSession { sessions, within });
            }
        }
        Ok(())
    }

    fn shortest_timeout_ms(&self) -> i32 {
        let greetings = self.lines.iter().flatten().filter_map(|line| line.connection.greeting());
        greetings.map(|greeting| greeting.timeout_ms).min().unwrap_or(i32::MAX)
    }

    fn run(
        mut self,
        to_main: &Sender<Word>,
        gate: &Receiver<Instant>,
    ) -> Result<(Vec<Tally>, S), Fault> {
        // Main outlives its threads; were it gone, the gate would say so.
        let _ = to_main.send(Word::Connected);
        let start = loop {
            match gate.try_recv() {
                Ok(start) => break start,
                Err(TryRecvError::Empty) => self.turn(Duration::from_millis(1))?,
                Err(TryRecvError::Disconnected) => return Err(Fault::GivenUp),
            }
            not_interrupted()?;
        };
        let (begin_ns, end_ns) = match self.plan.span {
            Span::Timed { warmup, duration } => (nanos(warmup), nanos(warmup + duration)),
            Span::UntilDone => (0, u64::MAX),
        };
        self.clock = Clock { start, begin_ns, end_ns };
        for away in self.away.values_mut() {
            // Its time was by another clock.
            (away.next_ns, away.lost_ns) = (0, 0);
        }
        for line in self.lines.iter_mut().flatten() {
            line.heard_ns = self.clock.now_ns();
        }
        if self.plan.pace == Pace::Closed {
            self.ask_first()?;
        }
        while 0 < self.live {
            not_interrupted()?;
            let now_ns = self.clock.now_ns();
            if self.phase == Phase::Asking && (end_ns <= now_ns || self.source.is_done()) {
                self.drain();
            }
            self.drop_due(now_ns);
            self.cut_due();
            self.reconnect_due(now_ns);
            self.ask_later()?;
            self.ask_due(now_ns)?;
            if matches!(self.phase, Phase::Draining { .. }) && self.is_quiet() {
                break;
            }
            self.turn(self.patience(now_ns))?;
            // Looked at after the turn, so that what has arrived is read, however late we are.
            if let Phase::Draining { until_ns } = self.phase
                && until_ns <= now_ns
            {
                break;
            }
        }
        self.give_up_those_away();
        self.tallies[0].unanswered += self.dues.left(&self.clock);
        for line in self.lines.iter().flatten() {
            self.tallies[line.place].unanswered +=
                unanswered(&line.connection, self.plan.pace, &self.clock);
        }
        let _ = to_main.send(Word::Drained);
        while self.plan.holds && gate.try_recv() == Err(TryRecvError::Empty) {
            not_interrupted()?;
            self.reconnect_due(self.clock.now_ns());
            self.turn(TURN_MAX)?;
        }
        self.close()?;
        Ok((self.tallies, self.source))
    }

    /// In a closed loop: fills all connections. From then on each reply brings a request.
    fn ask_first(&mut self) -> Result<(), Fault> {
        for token in 0..self.lines.len() {
            self.fill(token, self.clock.now_ns());
            self.flush_or_lose(token)?;
        }
        Ok(())
    }

    /// Asks those again that had nothing to ask when they were asked last.
    fn ask_later(&mut self) -> Result<(), Fault> {
        let now_ns = self.clock.now_ns();
        if self.phase == Phase::Asking && self.source.wakes() {
            for token in 0..self.lines.len() {
                self.fill(token, now_ns);
                self.flush_or_lose(token)?;
            }
        }
        let waiting = mem::take(&mut self.later);
        for token in waiting {
            if let Some(line) = &mut self.lines[token] {
                line.is_later = false;
            }
            self.fill(token, now_ns);
            self.flush_or_lose(token)?;
        }
        Ok(())
    }

    /// In a closed loop: puts requests into a connection's buffer until it has no more room.
    fn fill(&mut self, token: usize, now_ns: u64) {
        let Some(line) = &mut self.lines[token] else { return };
        while self.phase == Phase::Asking
            && self.plan.pace == Pace::Closed
            && now_ns < self.clock.end_ns
            && line.has_room(self.plan.depth)
        {
            match self.source.ask(token, now_ns, &mut line.connection) {
                Next::Asked => {}
                Next::Waits => break,
                Next::Later => {
                    if !mem::replace(&mut line.is_later, true) {
                        self.later.push(token);
                    }
                    break;
                }
                Next::Done => {
                    self.phase = Phase::Draining { until_ns: now_ns + nanos(DRAIN_WITHIN) };
                }
            }
        }
    }

    /// In an open loop: makes the requests that are due, as far as the connections have room.
    fn ask_due(&mut self, now_ns: u64) -> Result<(), Fault> {
        let mut touched = mem::take(&mut self.touched);
        while let Some(due_ns) = self.dues.next_ns()
            && due_ns <= now_ns
            && due_ns < self.clock.end_ns
        {
            let (count, depth) = (self.lines.len(), self.plan.depth);
            let has_room = |line: &Line| line.has_room(depth);
            let next = (0..count)
                .map(|step| (self.dues.turn + step) % count)
                .find(|&token| self.lines[token].as_ref().is_some_and(has_room));
            let Some(token) = next else { break };
            if let Some(line) = &mut self.lines[token] {
                self.source.ask(token, due_ns, &mut line.connection);
            }
            self.dues.next += 1;
            self.dues.turn = (token + 1) % count;
            touched.push(token);
        }
        // One that was touched twice has nothing left to flush the second time.
        for token in touched.drain(..) {
            self.flush_or_lose(token)?;
        }
        self.touched = touched;
        Ok(())
    }

    /// How long to wait for the sockets.
    fn patience(&self, now_ns: u64) -> Duration {
        let end_ns = match self.phase {
            Phase::Asking => self.clock.end_ns,
            Phase::Connecting { .. } | Phase::Draining { .. } | Phase::Closing => u64::MAX,
        };
        let due_ns = match self.dues.next_ns() {
            // What is due already waits for room, which a reply brings.
            Some(due_ns) if now_ns < due_ns => due_ns,
            _ => u64::MAX,
        };
        let turn_max = if self.later.is_empty() { TURN_MAX } else { LATER };
        Duration::from_nanos(end_ns.min(due_ns).saturating_sub(now_ns)).min(turn_max)
    }

    /// Nothing is asked any more for its own sake.
    fn drain(&mut self) {
        let until_ns = self.clock.now_ns() + nanos(DRAIN_WITHIN);
        self.phase = Phase::Draining { until_ns };
    }

    /// Nothing is in flight or on its way back, and nothing due is left to make.
    fn is_quiet(&self) -> bool {
        self.dues.left(&self.clock) == 0
            && self.away.is_empty()
            && self.lines.iter().flatten().all(|line| line.connection.in_flight() == 0)
    }

    /// Waits for the sockets and does what they are ready for, then pings.
    fn turn(&mut self, timeout: Duration) -> Result<(), Fault> {
        self.poll.wait(timeout).map_err(Fault::Poll)?;
        let mut position = 0;
        while let Some(ready) = self.poll.ready(position) {
            position += 1;
            if let Err(lost) = self.on_ready(ready) {
                self.on_lost(ready.token, lost)?;
            }
        }
        self.lose_silent()?;
        self.ping_due()
    }

    /// Leaves servers that say nothing any more, if connections may come back.
    fn lose_silent(&mut self) -> Result<(), Fault> {
        let now_ns = self.clock.now_ns();
        if self.plan.reconnect.is_none() || now_ns < self.next_silence_ns {
            return Ok(());
        }
        self.next_silence_ns = now_ns + nanos(SILENCE_EVERY);
        for token in 0..self.lines.len() {
            let Some(line) = &self.lines[token] else { continue };
            let Some(greeting) = line.connection.greeting() else { continue };
            let timeout = Duration::from_millis(greeting.timeout_ms.unsigned_abs().into());
            let silence_ns = nanos((timeout * 2 / 3).max(SILENCE_MIN));
            if silence_ns <= now_ns.saturating_sub(line.heard_ns) {
                self.on_lost(token, Lost::Silent)?;
            }
        }
        Ok(())
    }

    fn on_ready(&mut self, ready: Ready) -> Result<(), Lost> {
        let Some(line) = &mut self.lines[ready.token] else { return Ok(()) };
        if ready.readable {
            let mut input = line.connection.receive(&mut self.chunk)?;
            let now_ns = self.clock.now_ns();
            line.heard_ns = now_ns;
            let tally = &mut self.tallies[line.place];
            let mut replies = 0;
            while let Some(arrival) = line.connection.take(&mut input)? {
                let connection = ready.token;
                match arrival {
                    Arrival::Connected => {
                        if let Phase::Connecting { greeted } = &mut self.phase {
                            *greeted += 1;
                        }
                        if let Some(away) = self.away.remove(&connection) {
                            if away.resume.has_session() {
                                tally.reconnects.resumed += 1;
                                tally.reconnects.moved += u64::from(away.lost_place != line.place);
                            }
                            let Away { lost_ns, is_anew, .. } = away;
                            tally.returns.push(Return { lost_ns, back_ns: now_ns, is_anew });
                            self.source.on_return(connection, &mut line.connection);
                        }
                    }
                    Arrival::Reply { tag, zxid, err, body } => {
                        replies += 1;
                        tally.note(self.plan.pace, &self.clock, now_ns, &tag, err, body);
                        let heard = Heard { connection, now_ns, zxid, err, body };
                        self.source.on_reply(&heard, &tag, &mut self.achieved);
                    }
                    Arrival::Event { zxid, body } => {
                        tally.events += 1;
                        let heard = Heard { connection, now_ns, zxid, err: 0, body };
                        self.source.on_event(&heard, &mut self.achieved);
                    }
                    Arrival::Pong | Arrival::WatchesSet { err: 0 } => {}
                    Arrival::WatchesSet { err } => {
                        let what = format!("watches cannot be set again: error {err}");
                        return Err(Lost::Protocol(what));
                    }
                    Arrival::Ended => {
                        self.source.on_closed(connection);
                        return Err(Lost::Closed);
                    }
                }
                for achieved in self.achieved.drain(..) {
                    tally.achieve(&self.clock, now_ns, achieved);
                }
            }
            line.connection.keep(input);
            self.replies.fetch_add(replies, Ordering::Relaxed);
            self.fill(ready.token, now_ns);
        }
        self.flush(ready.token)
    }

    fn flush(&mut self, token: usize) -> Result<(), Lost> {
        let Some(line) = &mut self.lines[token] else { return Ok(()) };
        let interest = if line.connection.flush()? { Interest::Read } else { Interest::ReadWrite };
        if interest != line.interest {
            self.poll.change(&line.connection, token, interest)?;
            line.interest = interest;
        }
        Ok(())
    }

    fn flush_or_lose(&mut self, token: usize) -> Result<(), Fault> {
        self.flush(token).or_else(|lost| self.on_lost(token, lost))
    }

    fn on_lost(&mut self, token: usize, lost: Lost) -> Result<(), Fault> {
        // Its socket closes with it, which takes it out of the epoll set.
        let Some(line) = self.lines[token].take() else { return Ok(()) };
        // A server that breaks the protocol is not asked again.
        let is_final = self.phase == Phase::Closing || matches!(lost, Lost::Protocol(_));
        if self.plan.reconnect.is_some() && !is_final {
            if self.away.contains_key(&token) {
                self.on_failed_attempt(token, line.place, &lost);
            } else {
                self.tallies[line.place].reconnects.lost += 1;
                self.set_out(token, &line);
            }
            return Ok(());
        }
        self.away.remove(&token);
        self.live -= 1;
        match self.phase {
            Phase::Connecting { .. } => {
                let server = self.plan.servers[line.place];
                return Err(Fault::Connect { server, source: lost });
            }
            Phase::Asking | Phase::Draining { .. } => {
                let tally = &mut self.tallies[line.place];
                *tally.dropped.entry(lost.to_string()).or_default() += 1;
                tally.unanswered += unanswered(&line.connection, self.plan.pace, &self.clock);
            }
            Phase::Closing => {}
        }
        Ok(())
    }

    /// Has a lost connection come back, from another server if there is one.
    fn set_out(&mut self, token: usize, line: &Line) {
        let timeout_ms = line.connection.greeting().map(|greeting| greeting.timeout_ms);
        if let Phase::Connecting { greeted } = &mut self.phase
            && timeout_ms.is_some()
        {
            *greeted -= 1;
        }
        self.source.on_lost(token);
        self.tallies[line.place].reconnects.unanswered += line.connection.in_flight() as u64;
        // One that was never greeted asks for its first session again.
        let resume = line.connection.resume().unwrap_or_default();
        let (timeout_ms, now_ns) = (timeout_ms.unwrap_or(0), self.clock.now_ns());
        let mut away = Away::new(resume, timeout_ms, line.place, now_ns);
        away.place = place_after(line.place, token, self.plan.servers.len());
        self.away.insert(token, away);
    }

    fn on_failed_attempt(&mut self, token: usize, place: usize, lost: &Lost) {
        let all_away = u32::try_from(self.away.len()).unwrap_or(u32::MAX);
        let Some(away) = self.away.get_mut(&token) else { return };
        let now_ns = self.clock.now_ns();
        away.next_ns = now_ns + nanos(RETRY_AFTER.max(RETRY_AFTER_EACH * all_away));
        if matches!(lost, Lost::Refused) && away.resume.has_session() {
            away.resume = away.resume.without_session();
            away.is_anew = true;
            self.tallies[place].reconnects.expired += 1;
            self.source.on_expired(token, now_ns, away.timeout_ms);
        }
    }

    /// Makes an attempt for each that is away and whose time it is.
    fn reconnect_due(&mut self, now_ns: u64) {
        let within_max = attempt_within_max(self.plan.session_timeout_ms, self.plan.servers.len());
        for (&token, away) in &mut self.away {
            if now_ns < away.next_ns {
                continue;
            }
            let place = away.place % self.plan.servers.len();
            away.place = place + 1;
            let begun = Connection::begin(
                self.plan.servers[place],
                self.plan.session_timeout_ms,
                Some(away.resume),
            )
            .and_then(|connection| {
                let interest = Interest::ReadWrite;
                self.poll.add(&connection, token, interest)?;
                Ok(Line { place, connection, interest, is_later: false, heard_ns: now_ns })
            });
            let within = if begun.is_ok() { away.within } else { RETRY_AFTER };
            away.next_ns = now_ns + nanos(within);
            if mem::replace(&mut self.lines[token], begun.ok()).is_some() {
                // The attempt before has had no answer in its time.
                away.within = (away.within * 2).min(within_max);
            }
        }
    }

    /// Drops a connection, if it is time for that.
    fn drop_due(&mut self, now_ns: u64) {
        if self.phase != Phase::Asking || now_ns < self.drops.next_ns {
            return;
        }
        self.drops.set_after(now_ns);
        let is_here =
            |token: &usize| self.lines[*token].is_some() && !self.away.contains_key(token);
        let here: Vec<_> = (0..self.lines.len()).filter(is_here).collect();
        if here.is_empty() {
            return;
        }
        let token = here[self.drops.random.below(here.len() as u64) as usize];
        self.drop_line(token);
    }

    /// Cuts a connection, which is to come back.
    fn drop_line(&mut self, token: usize) {
        if let Some(line) = self.lines[token].take() {
            self.tallies[line.place].reconnects.dropped += 1;
            self.set_out(token, &line);
        }
    }

    /// Cuts all connections, if the plan says so.
    fn cut_due(&mut self) {
        let Some(cuts) = &self.plan.cuts else { return };
        let cuts = cuts.load(Ordering::Relaxed);
        if mem::replace(&mut self.cuts_seen, cuts) == cuts || self.phase != Phase::Asking {
            return;
        }
        for token in 0..self.lines.len() {
            if !self.away.contains_key(&token) {
                self.drop_line(token);
            }
        }
    }

    /// What has not come back stays lost.
    fn give_up_those_away(&mut self) {
        for (token, away) in mem::take(&mut self.away) {
            self.lines[token] = None;
            self.live -= 1;
            *self.tallies[away.lost_place]
                .dropped
                .entry("did not come back".to_owned())
                .or_default() += 1;
        }
    }

    /// Pings the connections whose turn it is and that have nothing in flight.
    fn ping_due(&mut self) -> Result<(), Fault> {
        let count = self.lines.len() as u64;
        let rounds = self.pings.since.elapsed().as_secs_f64() / self.pings.every.as_secs_f64();
        let due = (rounds * count as f64) as u64;
        // Whoever was away for long pings each once, not once for every round missed.
        self.pings.sent = self.pings.sent.max(due.saturating_sub(count));
        while self.pings.sent < due {
            let token = (self.pings.sent % count) as usize;
            self.pings.sent += 1;
            if let Some(line) = &mut self.lines[token]
                && line.connection.greeting().is_some()
                && line.connection.in_flight() == 0
            {
                line.connection.ping();
                self.flush_or_lose(token)?;
            }
        }
        Ok(())
    }

    /// Ends the sessions, so that none is left for the server to expire.
    fn close(&mut self) -> Result<(), Fault> {
        self.phase = Phase::Closing;
        for token in 0..self.lines.len() {
            if let Some(line) = &mut self.lines[token] {
                line.connection.close();
            }
            self.flush_or_lose(token)?;
        }
        let since = Instant::now();
        while 0 < self.live && since.elapsed() < CLOSE_WITHIN {
            self.turn(TURN_MAX)?;
        }
        Ok(())
    }
}

/// Where a connection goes that a server has lost: to another if there is one, and not all to the
/// same.
fn place_after(lost: usize, token: usize, servers: usize) -> usize {
    lost + 1 + token % servers.saturating_sub(1).max(1)
}

/// The requests of the measured time that a connection has no reply to.
fn unanswered(connection: &Connection<Asked>, pace: Pace, clock: &Clock) -> u64 {
    let is_owed = |asked: &&Asked| match pace {
        Pace::Open { .. } => clock.is_measured(asked.due_ns),
        Pace::Closed | Pace::Idle => true,
    };
    connection.unanswered().filter(is_owed).count() as u64
}

impl Tally {
    /// Counts a reply, if it belongs to the measured time.
    fn note(
        &mut self,
        pace: Pace,
        clock: &Clock,
        now_ns: u64,
        asked: &Asked,
        err: i32,
        body: &[u8],
    ) {
        if err == 0 && asked.op.is_write() && asked.is_answered_by(body) {
            self.acks.note(now_ns);
        }
        let is_measured = match pace {
            Pace::Open { .. } => clock.is_measured(asked.due_ns),
            Pace::Closed | Pace::Idle => clock.is_measured(now_ns),
        };
        if !is_measured {
            return;
        }
        let op = self.ops.entry(asked.op).or_insert_with(OpTally::new);
        if err != 0 && err != asked.tolerated {
            *op.errors.entry(err).or_default() += 1;
        } else if err != 0 || asked.is_answered_by(body) {
            op.latency_ns.saturating_record(now_ns.saturating_sub(asked.due_ns));
            if clock.is_measured(now_ns) {
                let second = ((now_ns - clock.begin_ns) / 1_000_000_000) as usize;
                if self.per_second.len() <= second {
                    self.per_second.resize(second + 1, 0);
                }
                self.per_second[second] += 1;
            }
        } else if asked.op == Op::Multi
            && let Some(err) = multi_error(body)
        {
            if err == asked.tolerated {
                op.latency_ns.saturating_record(now_ns.saturating_sub(asked.due_ns));
            } else {
                *op.errors.entry(err).or_default() += 1;
            }
        } else {
            op.malformed += 1;
        }
    }

    /// Counts what requests or events have achieved together.
    fn achieve(&mut self, clock: &Clock, now_ns: u64, achieved: Achieved) {
        if clock.is_measured(now_ns) {
            let op = self.ops.entry(achieved.op).or_insert_with(OpTally::new);
            op.latency_ns.saturating_record(now_ns.saturating_sub(achieved.since_ns));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_split_evenly_and_each_once() {
        let split = split(10, 4);
        assert_eq!(split.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 2, 2]);
        let mut all = split.concat();
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
        assert_eq!(super::split(2, 8).len(), 2);
    }

    #[test]
    fn those_that_a_server_has_lost_spread_over_all_others() {
        for (servers, lost) in (2..=7).flat_map(|servers| (0..servers).map(move |it| (servers, it)))
        {
            let places = (0..servers).map(|token| place_after(lost, token, servers) % servers);
            let places: std::collections::BTreeSet<_> = places.collect();
            let others: Vec<_> = (0..servers).filter(|&place| place != lost).collect();
            assert_eq!(places.into_iter().collect::<Vec<_>>(), others);
        }
    }

    #[test]
    fn an_attempt_takes_no_more_than_its_share_of_the_session_timeout() {
        let seconds = Duration::from_secs;
        assert_eq!(attempt_within_max(30_000, 3), seconds(10));
        assert_eq!(attempt_within_max(30_000, 1), ATTEMPT_WITHIN_MAX);
        assert_eq!(attempt_within_max(4000, 7), ATTEMPT_WITHIN);
    }

    #[test]
    fn connections_begin_on_their_homes_in_turn() {
        let place = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let plan = Plan::of_list(vec![place(1), place(2), place(3)], 1, 1000);
        assert_eq!((0..4).map(|it| plan.home(it)).collect::<Vec<_>>(), [0, 1, 2, 0]);
        let plan = Plan { homes: vec![2, 0], ..plan };
        assert_eq!((0..4).map(|it| plan.home(it)).collect::<Vec<_>>(), [2, 0, 2, 0]);
    }

    #[test]
    fn two_threads_make_the_rate_together_and_in_turn() {
        let dues =
            |thread| Dues::of(Pace::Open { per_second: 1000.0 }, Share { thread, threads: 2 });
        assert_eq!((dues(0).next_ns(), dues(1).next_ns()), (Some(0), Some(1_000_000)));
        let clock = Clock { start: Instant::now(), begin_ns: 2_000_000, end_ns: 10_000_000 };
        // 2, 4, 6, 8 ms and 3, 5, 7, 9 ms.
        assert_eq!((dues(0).left(&clock), dues(1).left(&clock)), (4, 4));
        let mut late = dues(0);
        late.next = 4;
        assert_eq!(late.next_ns(), Some(8_000_000));
        assert_eq!(late.left(&clock), 1);
        late.next = 5;
        assert_eq!(late.left(&clock), 0);
        assert_eq!(Dues::of(Pace::Closed, Share { thread: 0, threads: 1 }).left(&clock), 0);
    }
}
