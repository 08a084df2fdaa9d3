//! Many sessions at once: how quickly they are made, resumed and closed.
//!
//! ```text
//! at once:   connect all ── (cut all, reconnect all) × n ── close all      × rounds
//! for long:  each connects, closes, and connects again, until the time is over
//! ```
//!
//! A reconnect cuts the socket, without a word to the server, and resumes the session with its
//! number and password, as clients do whose server has died. Latency runs from the call that
//! opens the socket to the server's answer that the session lives.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ringkeeper::jute::Write as _;
use ringkeeper::record::op::{CreateMode, code};
use serde::Serialize;

use crate::client::{Arrival, Connection, Lost, Resume};
use crate::driver::{Driven, Moment, Tally, split};
use crate::report::{Summary, span};
use crate::scene::{Keeper, Scene, SceneReport, run_name};
use crate::sys::{Interest, Poll, Ready};
use crate::workload::{Mix, Op, put_new_znode};
use crate::{Costs, Fault, Load, Progress, hold, make_room_for, resolve};

/// A storm as a user asks for it.
#[derive(Clone, Debug, Serialize)]
pub struct Storm {
    /// Its connections are the sessions that live at once.
    pub scene: Scene,
    /// How many ephemeral znodes each session makes when it has been made.
    pub ephemerals: usize,
    pub kind: Kind,
    /// How long everything may take.
    #[serde(serialize_with = "crate::report::as_span")]
    pub within: Duration,
    /// So many requests a second of other sessions, whose latency shows what a storm does to
    /// them.
    pub bystanders: Option<f64>,
}

/// How sessions come and go.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// All at once, and all held until the last is there.
    AtOnce { rounds: usize, reconnects: usize },
    /// One after the other on each connection.
    ForLong { duration: Duration },
}

/// How long other sessions are looked at, before the storm and from its beginning.
const BYSTANDING: Duration = Duration::from_secs(2);
const BYSTANDERS: usize = 8;

/// One session, or a place for one.
enum Slot {
    Empty,
    /// Its socket is opened, or its session asked for.
    Connecting {
        connection: Box<Connection<()>>,
        since: Instant,
        op: Op,
    },
    /// It lives, and waits for the replies to so many creates.
    Creating {
        connection: Box<Connection<()>>,
        since: Instant,
    },
    Living {
        connection: Box<Connection<()>>,
    },
    Closing {
        connection: Box<Connection<()>>,
        since: Instant,
    },
}

impl Slot {
    fn connection(&mut self) -> Option<&mut Connection<()>> {
        match self {
            Slot::Empty => None,
            Slot::Connecting { connection, .. }
            | Slot::Creating { connection, .. }
            | Slot::Living { connection }
            | Slot::Closing { connection, .. } => Some(connection),
        }
    }
}

/// One thread's sessions.
struct Slots<'a> {
    storm: &'a Storm,
    servers: &'a [SocketAddr],
    /// Where ephemeral znodes are made.
    path: &'a str,
    numbers: Vec<usize>,
    slots: Vec<Slot>,
    poll: Poll,
    chunk: Vec<u8>,
    tally: Tally,
    /// How many are where the phase wants them.
    arrived: usize,
    done: &'a AtomicU64,
    deadline: Instant,
    /// Until when those that close connect again.
    again_until: Option<Instant>,
}

impl Slots<'_> {
    fn open(&mut self, place: usize, resume: Option<Resume>) {
        let server = self.servers[self.numbers[place] % self.servers.len()];
        let op = if resume.is_some() { Op::Reconnect } else { Op::Connect };
        let since = Instant::now();
        let opened = Connection::begin(server, self.storm.scene.session_timeout_ms, resume)
            .map(Box::new)
            .and_then(|connection| {
                self.poll.add(&*connection, place, Interest::ReadWrite)?;
                Ok(connection)
            });
        match opened {
            Ok(connection) => self.slots[place] = Slot::Connecting { connection, since, op },
            Err(lost) => self.lose(place, &lost),
        }
    }

    fn lose(&mut self, place: usize, lost: &Lost) {
        *self.tally.dropped.entry(lost.to_string()).or_default() += 1;
        let lost = std::mem::replace(&mut self.slots[place], Slot::Empty);
        // One that lived was where it was wanted, and counts already.
        if !matches!(lost, Slot::Living { .. }) {
            self.arrived += 1;
        }
    }

    fn on_ready(&mut self, ready: Ready) {
        let place = ready.token;
        if let Err(lost) = self.hear(ready) {
            match (&self.slots[place], &lost) {
                // Some servers hang up without a word when a session is closed.
                (Slot::Closing { .. }, Lost::Closed) => self.on_closed(place),
                _ => self.lose(place, &lost),
            }
        }
    }

    fn hear(&mut self, ready: Ready) -> Result<(), Lost> {
        let place = ready.token;
        let mut chunk = std::mem::take(&mut self.chunk);
        let heard = self.hear_into(place, ready, &mut chunk);
        self.chunk = chunk;
        heard
    }

    fn hear_into(&mut self, place: usize, ready: Ready, chunk: &mut Vec<u8>) -> Result<(), Lost> {
        let Some(connection) = self.slots[place].connection() else { return Ok(()) };
        if ready.writable {
            let wants = if connection.flush()? { Interest::Read } else { Interest::ReadWrite };
            self.poll.change(&*connection, place, wants)?;
        }
        if !ready.readable {
            return Ok(());
        }
        let Some(connection) = self.slots[place].connection() else { return Ok(()) };
        let mut input = connection.receive(chunk)?;
        loop {
            let Some(connection) = self.slots[place].connection() else { return Ok(()) };
            let Some(arrival) = connection.take(&mut input)? else {
                connection.keep(input);
                return Ok(());
            };
            match arrival {
                Arrival::Connected => self.on_connected(place)?,
                Arrival::Reply { err, .. } => self.on_reply(place, err)?,
                Arrival::Ended => {
                    self.on_closed(place);
                    return Ok(());
                }
                Arrival::Event { .. } | Arrival::Pong | Arrival::WatchesSet { .. } => {}
            }
        }
    }

    fn on_connected(&mut self, place: usize) -> Result<(), Lost> {
        let slot = std::mem::replace(&mut self.slots[place], Slot::Empty);
        let Slot::Connecting { mut connection, since, op } = slot else { return Ok(()) };
        self.note(op, since);
        if op == Op::Reconnect || self.storm.ephemerals == 0 {
            return self.on_living(place, connection);
        }
        for number in 0..self.storm.ephemerals {
            connection.ask((), code::CREATE, |out| {
                out.put_text(&format!("{}/{:06}-{number}", self.path, self.numbers[place]));
                put_new_znode(out, b"", CreateMode::EphemeralSequential);
            });
        }
        connection.flush()?;
        self.slots[place] = Slot::Creating { connection, since: Instant::now() };
        Ok(())
    }

    fn on_reply(&mut self, place: usize, err: i32) -> Result<(), Lost> {
        let slot = std::mem::replace(&mut self.slots[place], Slot::Empty);
        let Slot::Creating { connection, since } = slot else { return Ok(()) };
        match err {
            0 => self.note(Op::Ephemeral, since),
            err => self.tally.refuse(Op::Ephemeral, err),
        }
        if connection.in_flight() == 0 {
            return self.on_living(place, connection);
        }
        self.slots[place] = Slot::Creating { connection, since };
        Ok(())
    }

    fn on_living(&mut self, place: usize, connection: Box<Connection<()>>) -> Result<(), Lost> {
        self.slots[place] = Slot::Living { connection };
        if self.again_until.is_some() {
            return self.close(place);
        }
        self.arrived += 1;
        Ok(())
    }

    fn close(&mut self, place: usize) -> Result<(), Lost> {
        let slot = std::mem::replace(&mut self.slots[place], Slot::Empty);
        let Slot::Living { mut connection } = slot else { return Ok(()) };
        connection.close();
        let is_flushed = connection.flush();
        self.slots[place] = Slot::Closing { connection, since: Instant::now() };
        is_flushed.map(drop)
    }

    fn on_closed(&mut self, place: usize) {
        let slot = std::mem::replace(&mut self.slots[place], Slot::Empty);
        if let Slot::Closing { since, .. } = slot {
            self.note(Op::Close, since);
        }
        match self.again_until {
            Some(until) if Instant::now() < until => self.open(place, None),
            _ => self.arrived += 1,
        }
    }

    fn note(&mut self, op: Op, since: Instant) {
        self.tally.record(op, since.elapsed());
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    /// Goes on until all have come where they are wanted.
    fn until_all_arrived(&mut self) -> Result<(), Fault> {
        while self.arrived < self.slots.len() && Instant::now() < self.deadline {
            self.poll.wait(Duration::from_millis(20)).map_err(Fault::Poll)?;
            let mut position = 0;
            while let Some(ready) = self.poll.ready(position) {
                position += 1;
                self.on_ready(ready);
            }
        }
        self.tally.unanswered += (self.slots.len() - self.arrived) as u64;
        Ok(())
    }

    /// Moves every session on, and waits for the last.
    fn phase(&mut self, step: Step) -> Result<(), Fault> {
        self.arrived = 0;
        for place in 0..self.slots.len() {
            match step {
                Step::Connect => self.open(place, None),
                Step::Reconnect => {
                    let resume = self.slots[place].connection().and_then(|it| it.resume());
                    // The socket is cut here; the session lives on.
                    self.slots[place] = Slot::Empty;
                    match resume {
                        Some(resume) => self.open(place, Some(resume)),
                        None => self.arrived += 1,
                    }
                }
                Step::Close => match &self.slots[place] {
                    Slot::Living { .. } => {
                        if let Err(lost) = self.close(place) {
                            self.lose(place, &lost);
                        }
                    }
                    _ => self.arrived += 1,
                },
            }
        }
        self.until_all_arrived()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Connect,
    Reconnect,
    Close,
}

impl Storm {
    #[must_use]
    pub fn command(&self) -> String {
        let Storm { scene, ephemerals, kind, within, bystanders } = self;
        let kind = match kind {
            Kind::AtOnce { rounds, reconnects } => {
                format!("--rounds {rounds} --reconnects {reconnects}")
            }
            Kind::ForLong { duration } => format!("--duration {}", span(*duration)),
        };
        let bystanders = bystanders.map(|rate| format!(" --bystanders {rate}")).unwrap_or_default();
        let within = span(*within);
        format!(
            "loadgen storm {scene} --ephemerals {ephemerals} {kind} --within {within}{bystanders}"
        )
    }

    pub fn run(&self, pid: Option<u32>, progress: Progress<'_>) -> Result<SceneReport, Fault> {
        self.scene.check()?;
        hold(&[
            (!matches!(self.kind, Kind::AtOnce { rounds: 0, .. }), "one round at least"),
            (self.bystanders.is_none_or(|rate| 0.0 < rate), "a rate above zero"),
        ])?;
        let servers = resolve(&self.scene.servers)?;
        let connections = self.scene.connections;
        make_room_for(connections, 64)?;
        let path = format!("{}/{}", self.scene.root, run_name());
        let mut keeper = Keeper::on(&servers)?;
        keeper.create(&path)?;
        keeper.close();
        let mut figures = BTreeMap::new();
        if self.bystanders.is_some() {
            self.bystand("before the storm", &mut figures)?;
        }
        let mut costs = Costs::new(pid);
        costs.progress(Moment::Unconnected, progress)?;
        costs.progress(Moment::Begin, progress)?;
        let since = Instant::now();
        let (tally, phases) = thread::scope(|scope| {
            let bystanding = self.bystanders.map(|_| {
                scope.spawn(|| {
                    let mut figures = BTreeMap::new();
                    self.bystand("in the storm", &mut figures).map(|()| figures)
                })
            });
            let stormed = self.storm(&servers, &path, progress);
            if let Some(bystanding) = bystanding {
                let theirs = bystanding.join().expect("a thread that panics ends the process")?;
                figures.extend(theirs);
            }
            stormed
        })?;
        let seconds = since.elapsed().as_secs_f64();
        costs.progress(Moment::End, progress)?;
        for (step, seconds) in &phases {
            let name = match step {
                Step::Connect => "connect",
                Step::Reconnect => "reconnect",
                Step::Close => "close",
            };
            figures.insert(format!("{name}: ms until the last"), seconds * 1e3);
            figures.insert(format!("{name}: sessions per s"), connections as f64 / seconds);
        }
        let mut keeper = Keeper::on(&servers)?;
        keeper.delete(&path)?;
        keeper.close();
        let driven = Driven {
            tally,
            by_server: Vec::new(),
            start: since,
            seconds,
            sources: Vec::<()>::new(),
        };
        Ok(SceneReport {
            command: self.command(),
            summary: Summary::new(&driven.tally, seconds),
            figures,
            violations: BTreeMap::new(),
            server: costs.server(&driven),
            own: costs.own(&driven),
        })
    }

    /// All threads through all phases; the seconds of each kind of phase, the median of rounds.
    fn storm(
        &self,
        servers: &[SocketAddr],
        path: &str,
        progress: Progress<'_>,
    ) -> Result<(Tally, BTreeMap<Step, f64>), Fault> {
        let steps: Vec<Step> = match self.kind {
            Kind::AtOnce { rounds, reconnects } => {
                let round =
                    [vec![Step::Connect], vec![Step::Reconnect; reconnects], vec![Step::Close]];
                vec![round.concat(); rounds].concat()
            }
            Kind::ForLong { .. } => vec![Step::Connect],
        };
        let parts = split(self.scene.connections, self.scene.threads);
        let barrier = Barrier::new(parts.len());
        let done = AtomicU64::new(0);
        let lengths = Mutex::new(BTreeMap::<Step, Vec<f64>>::new());
        let deadline = Instant::now() + self.within;
        thread::scope(|scope| {
            let mut handles = Vec::new();
            for numbers in parts {
                let (barrier, done, lengths, steps) = (&barrier, &done, &lengths, &steps);
                handles.push(scope.spawn(move || {
                    let poll = Poll::new().map_err(Fault::Poll);
                    let mut slots = poll.map(|poll| Slots {
                        storm: self,
                        servers,
                        path,
                        slots: numbers.iter().map(|_| Slot::Empty).collect(),
                        numbers,
                        poll,
                        chunk: Vec::new(),
                        tally: Tally::default(),
                        arrived: 0,
                        done,
                        deadline,
                        again_until: match self.kind {
                            Kind::AtOnce { .. } => None,
                            Kind::ForLong { duration } => Some(Instant::now() + duration),
                        },
                    });
                    let mut outcome = Ok(());
                    for &step in steps {
                        barrier.wait();
                        let since = Instant::now();
                        if let (Ok(slots), Ok(())) = (&mut slots, &outcome) {
                            outcome = slots.phase(step);
                        }
                        if barrier.wait().is_leader() {
                            let mut lengths =
                                lengths.lock().unwrap_or_else(PoisonError::into_inner);
                            lengths.entry(step).or_default().push(since.elapsed().as_secs_f64());
                        }
                    }
                    outcome.and(slots.map(|slots| slots.tally))
                }));
            }
            let since = Instant::now();
            let (mut told, mut seen) = (0, 0);
            while handles.iter().any(|handle| !handle.is_finished()) {
                thread::park_timeout(Duration::from_millis(20));
                if told < since.elapsed().as_secs() {
                    told = since.elapsed().as_secs();
                    let now = done.load(Ordering::Relaxed);
                    progress(since.elapsed(), now - seen);
                    seen = now;
                }
            }
            let mut tally = Tally::default();
            for handle in handles {
                tally.merge(handle.join().expect("a thread that panics ends the process")?);
            }
            // All threads have ended; nobody else holds it.
            let lengths = lengths.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let phases = match self.kind {
                // All phases are one, of no length of its own.
                Kind::ForLong { .. } => BTreeMap::new(),
                Kind::AtOnce { .. } => lengths
                    .into_iter()
                    .map(|(step, lengths)| (step, crate::report::median(&lengths)))
                    .collect(),
            };
            Ok((tally, phases))
        })
    }

    /// What other sessions see for a while.
    fn bystand(&self, when: &str, figures: &mut BTreeMap<String, f64>) -> Result<(), Fault> {
        let load = Load {
            servers: self.scene.servers.clone(),
            mix: "get=80,set=20".parse::<Mix>().map_err(Fault::Load)?,
            connections: BYSTANDERS,
            rate: self.bystanders,
            warmup: Duration::ZERO,
            duration: BYSTANDING,
            root: format!("{}/bystanders", self.scene.root),
            ..Load::default()
        };
        let report = load.run(None, &mut |_, _| {})?;
        for op in &report.summary.ops {
            let name = format!("bystanders' {} p99 µs {when}", op.op.name());
            figures.insert(name, op.latency_us.p99);
        }
        Ok(())
    }
}
