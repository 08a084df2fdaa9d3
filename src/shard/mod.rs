//! A session core: what it does with its clients' bytes and with the pipeline's announcements.
//!
//! | file | what is in it |
//! |---|---|
//! | `mod.rs` | `Shard` and its doors |
//! | `connection.rs` | one client: how far it has come, what is under way |
//! | `slots.rs` | the connections, by number and generation |
//! | `buffer.rs` | bytes that came, and a pool of what is empty while connections are idle |
//! | `outbox.rs` | bytes on their way to a client, in pieces |
//! | `turns.rs` | who goes on when; how much all shards together may hold |
//! | `places.rs` | what only a few do at a time, and who waits in line for it |
//! | `connect.rs` | four-letter words, ConnectRequest, ConnectResponse |
//! | `dispatch.rs` | frames to requests; which are answered here, which go on; who waits |
//! | `read.rs` | what is answered from the tree |
//! | `long.rs` | what takes more than a turn to answer |
//! | `watch.rs` | who watches what |
//! | `set_watches.rs` | watches asked for, brought back, looked for and given up |
//! | `service.rs` | whether clients are served, and from which tree |
//! | `applied.rs` | what was committed: fire watches, give answers, move the view |
//! | `throttle.rs` | new connections by token bucket |
//! | `report.rs` | the shard as plain values, for four-letter words and metrics |
//!
//! **Order.** A connection's requests are acted on as they came. Those for the pipeline are
//! handed on at once, one behind the other; a request that is answered here waits, and all behind
//! it with it, until the pipeline has answered those before it. So nothing is ever reordered, and
//! nothing needs to be remembered of a request that waits: its bytes stay where they are.
//!
//! **View.** Requests are answered from the tree as of one zxid, which moves only in
//! `on_applied`, after the watches of all changes up to there have fired and the answers of that
//! batch are written. So a client has an event before it can see what caused it.
//!
//! **Turns.** What is done for one connection before others come is bounded, in bytes of answers and
//! in steps of work. Who has more to ask goes on in a later turn (`on_turn`), and what takes longer
//! to answer is cut into pieces (`long.rs`).
//!
//! **Memory** grows with the bytes that came, never with a length that was announced. What is held
//! for clients that do not read is bounded for each and for all: beyond that, the connection ends
//! that has held much for long (`make_room`), on a shard that holds more than its part.
//!
//! **Silence.** A client is silent if nothing of it has reached our sockets; whether we have read
//! it is our affair. So a tick is told up to when all that had come was read, and what is said of
//! silence is said of the time before. Whoever is not read from is looked after otherwise:
//!
//! | why not | what keeps its session |
//! |---|---|
//! | a stall of this core, of the process or the machine | the tick waits for what came before it |
//! | more events of the ring than a turn takes, no free buffer | the same |
//! | not accepted yet, not looked at yet | the same: it may bring a session back |
//! | it has `output_bytes_max` to read | bytes that it takes (`on_written`), and bytes that arrive (`on_sign_of_life`) |
//! | the pipeline has not answered, and `input_bytes_max` waits | our doing: it counts as heard |
//! | the pipeline takes no requests | the report waits behind the requests, and nobody expires |
//! | the server stops | nothing is reported, and nobody expires |

mod applied;
mod buffer;
mod connect;
mod connection;
mod dispatch;
mod long;
mod outbox;
mod places;
mod read;
mod report;
mod service;
mod set_watches;
mod slots;
mod throttle;
mod turns;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::acl;
use crate::auth::Providers;
use crate::exchange::{ConnectionId, Mode, Requests, ShardId, Touched};
use crate::record::code::Code;
use crate::record::data::{Acl, Id};
use crate::record::op::code;
use crate::tree::TreeReader;
use crate::types::{Deadline, Now, SessionId};

use buffer::Pool;
use connection::{Connection, State, Traffic};
use outbox::{Outbox, Spare};
use places::Places;
use slots::Connections;
use throttle::TokenBucket;
use turns::{Share, Turns};
use watch::Watches;

pub use connection::{Close, Stats};
pub use report::{ConnectionInfo, Counters, Measured};
pub use throttle::{ConnectThrottle, EarlyDrop};
pub use turns::{Allowance, TurnBudget};
pub use watch::WatchPlace;

/// What a shard is told by the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `jute.maxbuffer`, inclusive: the longest frame.
    pub frame_bytes_max: usize,
    pub session_timeout_min_ms: i32,
    pub session_timeout_max_ms: i32,
    pub providers: Arc<Providers>,
    /// `zookeeper.skipACL=yes`.
    pub skip_acl: bool,
    /// A connection without a session by then is closed.
    pub sessionless_timeout_ms: i64,
    /// How much longer than its session's timeout a connection may be silent; and how long a
    /// closed one may take to read what is left for it.
    pub silence_slack_ms: i64,
    /// `zookeeper.globalOutstandingLimit`, this shard's part of it: with so many requests at the
    /// pipeline, a connection that has one there waits.
    pub outstanding_max: usize,
    /// Requests above this count towards `large_requests_bytes_max`; `None`: none does.
    pub large_request_bytes: Option<usize>,
    /// A connection whose large request would exceed this, with those under way, is closed.
    pub large_requests_bytes_max: usize,
    /// `zookeeper.throttled_op_wait_time`: a request that waited longer is refused. `None`: off.
    pub throttled_op_wait_ms: Option<i64>,
    /// `zookeeper.connection_throttle_*`; `None`: off.
    pub connect_throttle: Option<ConnectThrottle>,
    /// A connection whose requests wait is not read from while more than this is unread.
    pub input_bytes_max: usize,
    /// With so much unwritten, a connection's further requests wait.
    pub output_bytes_max: usize,
    /// With so much unwritten in events, one more closes the connection: it does not read.
    pub output_bytes_ceiling: usize,
    /// The longest answer; another is an error.
    pub answer_bytes_max: usize,
    /// What all shards together may hold of answers and events for clients.
    pub answer_bytes: Allowance,
    /// How many paths one connection may watch, and all shards' together.
    pub watches_per_connection_max: usize,
    pub watches: Allowance,
    /// What one connection may have in a turn, and what all may.
    pub connection_turn: TurnBudget,
    pub turn: TurnBudget,
    /// An auth packet that would have a connection's ids take more than this fails.
    pub auth_bytes_max: usize,
    /// Makes the places of paths in tables unpredictable; nothing that can be seen depends on it.
    pub hash_seed: u64,
    /// Whether clients are served from the start: of a standalone server. A member of an ensemble
    /// waits until it is told to (`Shard::on_service`).
    pub serves_at_birth: bool,
}

/// What a step asks of the shell. The shell's to keep and to empty; steps append.
#[derive(Debug)]
pub struct Output {
    /// For the pipeline.
    pub requests: Requests,
    /// Connections to look at (`Shard::outgoing`): there is something to write, or they end.
    pub ready: Vec<ConnectionId>,
    /// The same, for connections that come, end, or are told of an event: there may be thousands at
    /// once, and whoever waits for a reply comes before them. A connection may be in both.
    pub later: Vec<ConnectionId>,
    /// Four-letter words to answer (`Shard::answer_word`).
    pub words: Vec<Word>,
    /// For the pipeline, after each tick.
    pub touched: Option<Touched>,
}

/// A four-letter word that a client asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    pub connection: ConnectionId,
    pub word: [u8; 4],
    /// What follows `stmk`.
    pub mask: Option<i64>,
    /// How clients were served when it was asked; `None`: they were not.
    pub serves: Option<Mode>,
}

impl Output {
    #[must_use]
    pub fn new(shard: ShardId) -> Output {
        Output {
            requests: Requests::new(shard),
            ready: Vec::new(),
            later: Vec::new(),
            words: Vec::new(),
            touched: None,
        }
    }
}

/// What the shell needs to know of a connection to serve it.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// To be written next; `Shard::on_written` says how much of it was. There may be more behind.
    pub bytes: &'a [u8],
    /// Whether to go on reading. While not, `Shard` will name the connection in `Output::ready` or
    /// `later` once it is time, or `on_written` changes it; and the shell looks for signs of life
    /// (`Shard::on_sign_of_life`) before each tick.
    pub wants_read: bool,
    /// Whether the connection ends. After the flush means: write `bytes`, say that no more comes,
    /// and read what still comes until the client is done, so that the last reply arrives.
    pub close: Option<Close>,
}

/// Seeded bugs, each of which the simulator's checkers must catch. Only with the feature
/// `mutants`, which is never on in a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    ReplyBeforeEvent,
    DropEvent,
    DoubleEvent,
    ViewBeforeEvents,
    ReadBeforeView,
    ReadOvertakesWrite,
    EventWithoutAcl,
    /// setWatches tells of nothing that was missed.
    MissedEventForgotten,
    /// A sync is answered from what this shard has seen.
    SyncAnsweredHere,
    /// Whoever has not been read from is taken for silent.
    SilentWhenUnread,
    /// Only what was read is a sign of life.
    SignOfLifeIgnored,
}

impl Mutant {
    pub const ALL: [Mutant; 11] = [
        Mutant::ReplyBeforeEvent,
        Mutant::DropEvent,
        Mutant::DoubleEvent,
        Mutant::ViewBeforeEvents,
        Mutant::ReadBeforeView,
        Mutant::ReadOvertakesWrite,
        Mutant::EventWithoutAcl,
        Mutant::MissedEventForgotten,
        Mutant::SyncAnsweredHere,
        Mutant::SilentWhenUnread,
        Mutant::SignOfLifeIgnored,
    ];
}

/// One session core: a state machine without clocks, sockets or threads.
pub struct Shard {
    id: ShardId,
    connections: Connections,
    core: Core,
    /// Connections that got an answer in this batch. Here to be reused, like the next three.
    answered: Vec<ConnectionId>,
    hit: Vec<u32>,
    hit_before: Vec<u32>,
    event: Vec<u8>,
}

/// All of a shard but its connections, so that one connection and the rest can be had at once.
struct Core {
    settings: Settings,
    /// How clients are served; `None`: nobody is.
    serves: Option<Mode>,
    /// Connections from this slot on may have been served before, and are still to be ended.
    ending_from: Option<u32>,
    /// Of an empty tree while nobody is served.
    tree: TreeReader,
    watches: Watches,
    pool: Pool,
    spare: Spare,
    connect_throttle: Option<TokenBucket>,
    /// Requests that the pipeline has not answered, of all connections.
    outstanding: usize,
    /// Of those, the bytes of the large ones.
    large_bytes: usize,
    /// The ids of who is only an address, and how many connections it has.
    addresses: BTreeMap<IpAddr, (Arc<[Id]>, u32)>,
    /// Connections heard since the last tick, and some that have ended since.
    heard: Vec<ConnectionId>,
    /// Sessions heard since the last tick whose connection is no more.
    heard_last: Vec<(SessionId, i64)>,
    /// Whom to look at when, for being silent too long: each connection once, at its `look`.
    looks: BTreeSet<(Deadline, ConnectionId)>,
    turns: Turns,
    /// What is held for clients, of all connections: answers, made or being made, and events.
    held: usize,
    held_share: Share,
    shortage: Shortage,
    watch_share: Share,
    places: Places,
    /// Connections whose setWatches is watching over several turns: each change is looked for in all
    /// of these.
    setting: Vec<ConnectionId>,
    /// What was made for clients and will not be sent. Giving memory back takes its time: a part of
    /// it goes in each turn.
    discarded: Vec<Vec<u8>>,
    counters: Counters,
    #[cfg(feature = "mutants")]
    mutant: Option<Mutant>,
}

/// Connections were closed because clients do not read what is held for them.
#[derive(Default)]
struct Shortage {
    connections: u64,
    bytes: usize,
    /// Whether there was one since the last tick.
    is_new: bool,
}

impl Shortage {
    fn on_closed(&mut self, bytes: usize) {
        if self.connections == 0 {
            // The same words each time, so that the log can count them.
            tracing::warn!(
                "answers that are not read take too much memory: connections are closed that have \
                 held most for longest"
            );
        }
        self.connections += 1;
        self.bytes += bytes;
        self.is_new = true;
    }

    fn on_tick(&mut self) {
        if !mem::take(&mut self.is_new) && 0 < self.connections {
            let Shortage { connections, bytes, .. } = mem::take(self);
            tracing::info!(
                connections,
                bytes,
                "there is room for answers again; so many were closed"
            );
        }
    }
}

/// One connection in one step, with all that the step may change of it.
struct Step<'a> {
    now: Now,
    id: ConnectionId,
    connection: &'a mut Connection,
    traffic: &'a mut Traffic,
    out: &'a mut Output,
}

/// How much memory is given back in a turn of what will not be sent.
const DISCARDED_PER_TURN_BYTES: usize = 1 << 20;
/// How finely silence is measured.
const LOOK_STEP_MS: i64 = 500;

impl Shard {
    #[must_use]
    pub fn new(id: ShardId, settings: Settings, tree: TreeReader) -> Shard {
        assert!(settings.session_timeout_min_ms <= settings.session_timeout_max_ms);
        assert!(settings.output_bytes_max <= settings.output_bytes_ceiling);
        let serves = settings.serves_at_birth.then_some(Mode::ReadWrite);
        Shard {
            id,
            connections: Connections::default(),
            core: Core {
                serves,
                ending_from: None,
                tree: if serves.is_some() { tree } else { TreeReader::of_nothing() },
                watches: Watches::new(settings.hash_seed),
                pool: Pool::default(),
                spare: Spare::default(),
                connect_throttle: settings
                    .connect_throttle
                    .map(|throttle| TokenBucket::new(throttle, settings.hash_seed)),
                outstanding: 0,
                large_bytes: 0,
                addresses: BTreeMap::new(),
                heard: Vec::new(),
                heard_last: Vec::new(),
                looks: BTreeSet::new(),
                turns: Turns::new(settings.connection_turn, settings.turn),
                held: 0,
                held_share: Share::new(settings.answer_bytes.clone()),
                shortage: Shortage::default(),
                watch_share: Share::new(settings.watches.clone()),
                places: Places::new(),
                setting: Vec::new(),
                discarded: Vec::new(),
                counters: Counters::default(),
                #[cfg(feature = "mutants")]
                mutant: None,
                settings,
            },
            answered: Vec::new(),
            hit: Vec::new(),
            hit_before: Vec::new(),
            event: Vec::new(),
        }
    }

    #[cfg(feature = "mutants")]
    pub fn set_mutant(&mut self, mutant: Option<Mutant>) {
        self.core.mutant = mutant;
    }

    /// A client has come.
    pub fn on_accept(&mut self, now: Now, remote: SocketAddr) -> ConnectionId {
        let (ids, count) = self
            .core
            .addresses
            .entry(remote.ip())
            .or_insert_with(|| (self.core.settings.providers.at_accept(remote.ip()).into(), 0));
        *count += 1;
        self.core.counters.connections_accepted += 1;
        let connection = Connection::new(remote, Arc::clone(ids), now);
        let id = self.connections.insert(Box::new(connection));
        let connection = self.connections.find(id).expect("inserted");
        self.core.look_again(now, id, connection);
        id
    }

    /// Bytes of a client have come. They are used here and now: the caller may reuse the buffer.
    pub fn on_bytes(&mut self, now: Now, id: ConnectionId, bytes: &[u8], out: &mut Output) {
        self.core.counters.bytes_received += bytes.len() as u64;
        self.door(now, id, out, |core, step| {
            core.hear(step);
            if step.connection.is_deaf() {
                return;
            }
            if step.traffic.input.is_empty() {
                let used = core.take_in(step, bytes);
                step.traffic.input.tail().extend_from_slice(&bytes[used..]);
            } else {
                step.traffic.input.tail().extend_from_slice(bytes);
                // What waits goes on when what it waits for has happened.
                if !step.traffic.is_waiting {
                    core.go_on(step);
                }
            }
        });
    }

    /// The first `count` bytes of `outgoing` have been written.
    pub fn on_written(&mut self, now: Now, id: ConnectionId, count: usize, out: &mut Output) {
        self.core.counters.bytes_sent += count as u64;
        self.door(now, id, out, |core, step| {
            let was_read = wants_read(&core.settings, &step.connection.state, step.traffic);
            let traffic = &mut step.traffic;
            traffic.note_read(now, count);
            traffic.output.use_up(count, &mut core.spare);
            // Whoever waits for answers goes on with them.
            let has_room = traffic.output.len() < core.settings.output_bytes_max;
            if traffic.is_waiting && has_room && traffic.unanswered.is_empty() {
                core.queue(step);
            }
            // It was not read from, and has taken some of what it had to take: it lives.
            if 0 < count && !was_read {
                core.hear(step);
            }
        });
    }

    /// A client that is not read from lives: bytes of it have arrived in its socket since the last
    /// look there, or it has taken some of what was written to it.
    pub fn on_sign_of_life(&mut self, now: Now, id: ConnectionId, out: &mut Output) {
        self.door(now, id, out, |core, step| {
            if !core.is_mutant(Mutant::SignOfLifeIgnored) {
                core.hear(step);
            }
        });
    }

    /// A turn of the core ends, and the next begins: whoever could not go on may now.
    pub fn on_turn(&mut self, now: Now, out: &mut Output) {
        self.core.turns.begin();
        // Others may need what we hold beyond our part.
        self.make_room(now, out);
        if !self.has_work() {
            return;
        }
        let (fresh, unfinished) = self.core.turns.open_queue();
        for _ in 0..fresh {
            if self.core.turns.is_all_used_up() {
                break;
            }
            let Some(id) = self.core.turns.next_fresh() else { break };
            self.door(now, id, out, |core, step| core.on_queued(step));
        }
        for served in 0..unfinished {
            // One at least, however many there are that have had nothing.
            if 0 < served && self.core.turns.is_all_used_up() {
                break;
            }
            let Some(id) = self.core.turns.next_unfinished() else { break };
            self.door(now, id, out, |core, step| core.on_queued(step));
        }
        self.core.turns.close_queue();
        self.end_some(now, out);
        self.core.free_some();
        if let Some(slot) = self.core.watches.forget_some(self.core.settings.connection_turn.steps)
        {
            self.connections.release(slot);
        }
    }

    /// Whether there is something to do in the next turn, whatever else comes.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.core.turns.has_queue()
            || self.core.ending_from.is_some()
            || self.core.watches.has_leaving()
            || !self.core.discarded.is_empty()
    }

    /// A client will send no more. Whoever asked a four-letter word may still read the answer.
    pub fn on_end_of_input(&mut self, now: Now, id: ConnectionId, out: &mut Output) {
        self.door(now, id, out, |core, step| {
            if step.connection.state != State::Word {
                core.end(step, Close::AfterFlush);
            }
        });
    }

    /// The connection is gone: it broke, or the shell has closed it.
    pub fn on_closed(&mut self, now: Now, id: ConnectionId) {
        let Some(connection) = self.connections.find(id) else { return };
        let mut traffic = connection.traffic.take().unwrap_or_else(|| self.core.pool.take());
        let held = traffic.held();
        self.core.detach(id, connection, &mut traffic);
        self.core.discard(&mut traffic.output);
        self.core.count_held(now, held, &mut traffic);
        self.core.held_share.covers_fairly(self.core.held);
        self.core.pool.give_back(traffic);
        self.core.looks.remove(&(connection.look, id));
        let address = connection.remote.ip();
        if let Some((_, count)) = self.core.addresses.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.core.addresses.remove(&address);
            }
        }
        self.connections.remove(id, self.core.watches.is_leaving(id.slot));
    }

    /// Often enough for silence to be noticed and sessions to be kept alive: at least every half
    /// tickTime.
    ///
    /// All that had reached the sockets by `read_until_ms` has been through `on_bytes`, and of
    /// connections that are not read from, `on_sign_of_life` was told. About what came later nothing
    /// is known, so nobody is taken for silent for it.
    pub fn on_tick(&mut self, now: Now, read_until_ms: i64, out: &mut Output) {
        let is_careless = self.core.is_mutant(Mutant::SilentWhenUnread);
        let read_until_ms = if is_careless { now.monotonic_ms } else { read_until_ms };
        let mut heard = mem::take(&mut self.core.heard_last);
        let mut still_heard = Vec::new();
        for id in self.core.heard.drain(..) {
            let Some(connection) = self.connections.find(id) else { continue };
            if !mem::take(&mut connection.is_heard) {
                continue;
            }
            let settings = &self.core.settings;
            let traffic = connection.traffic.as_deref();
            let is_kept_waiting = traffic.is_some_and(|t| connection.is_kept_waiting(t, settings));
            if is_kept_waiting {
                // It may be saying that it lives; that it is not heard is our doing.
                connection.heard_ms = now.monotonic_ms;
            }
            match connection.session() {
                Some((session, _)) => heard.push((session, connection.heard_ms)),
                // It is reported once it has one.
                None if matches!(connection.state, State::Opening { .. }) => {}
                None => continue,
            }
            if is_kept_waiting || connection.session().is_none() {
                connection.is_heard = true;
                still_heard.push(id);
            }
        }
        self.core.heard.append(&mut still_heard);
        self.close_the_silent(now, read_until_ms, out);
        self.make_room(now, out);
        self.core.shortage.on_tick();
        // What was watched and is not any more, others may watch.
        self.core.watch_share.covers(self.core.watches.pairs());
        // A report that the shell has not passed on yet goes with this one.
        let mut touched = Touched { shard: self.id, as_of_ms: read_until_ms, heard };
        if let Some(earlier) = out.touched.take() {
            touched.heard.splice(..0, earlier.heard);
        }
        out.touched = Some(touched);
        self.check_if_small();
    }

    /// The answer to a four-letter word, in pieces.
    pub fn answer_word(
        &mut self,
        now: Now,
        id: ConnectionId,
        text: Vec<Vec<u8>>,
        out: &mut Output,
    ) {
        self.door(now, id, out, |core, step| {
            if step.connection.state == State::Word {
                step.traffic.output.append_pieces(text);
                core.counters.packets_sent += 1;
                core.end(step, Close::AfterFlush);
            }
        });
    }

    /// What is to be done about a connection; `None` where it is no more.
    pub fn outgoing(&mut self, id: ConnectionId) -> Option<Outgoing<'_>> {
        let settings = &self.core.settings;
        let connection = self.connections.find(id)?;
        (connection.is_ready, connection.is_later) = (false, false);
        let close = match connection.state {
            State::Closing(close) => Some(close),
            State::Connecting
            | State::Opening { .. }
            | State::Live { .. }
            | State::Leaving { .. }
            | State::Word => None,
        };
        let Some(traffic) = connection.traffic.as_deref() else {
            return Some(Outgoing { bytes: &[], wants_read: true, close });
        };
        let wants_read = wants_read(settings, &connection.state, traffic);
        Some(Outgoing { bytes: traffic.output.front(), wants_read, close })
    }

    /// Whether to go on reading from a connection: what `outgoing` would say of it.
    #[must_use]
    pub fn wants_read(&mut self, id: ConnectionId) -> bool {
        self.connections.find(id).is_some_and(|connection| {
            let traffic = connection.traffic.as_deref();
            traffic.is_none_or(|t| wants_read(&self.core.settings, &connection.state, t))
        })
    }

    /// Runs a step that is all that happens.
    fn door(
        &mut self,
        now: Now,
        id: ConnectionId,
        out: &mut Output,
        run: impl FnOnce(&mut Core, &mut Step<'_>),
    ) {
        self.step(now, id, out, run);
        debug_assert_eq!(self.broken_promise(id), None);
    }

    /// Runs a step of one connection and tidies up after it.
    fn step(
        &mut self,
        now: Now,
        id: ConnectionId,
        out: &mut Output,
        run: impl FnOnce(&mut Core, &mut Step<'_>),
    ) {
        self.bare_step(now, id, out, run);
        self.make_room(now, out);
    }

    /// Ends connections until what is held for all is within its bound: those first that have held
    /// most for longest, by the product of both. Whoever takes what it asked for holds it shortly.
    fn make_room(&mut self, now: Now, out: &mut Output) {
        if self.core.held_share.covers_fairly(self.core.held) {
            return;
        }
        let weight = |connection: &Connection| {
            let traffic = connection.traffic.as_deref()?;
            let ms = now.monotonic_ms.saturating_sub(traffic.unread_since_ms).max(0);
            // A moment is given to everybody.
            Some(traffic.held() as u128 * (ms as u128 + 100)).filter(|weight| 0 < *weight)
        };
        let all = self.connections.iter();
        let mut weighed: Vec<_> = all.filter_map(|(id, of)| Some((weight(of)?, id))).collect();
        weighed.sort_unstable_by(|one, other| other.cmp(one));
        let before = self.core.held;
        for (_, id) in weighed {
            if self.core.held + self.core.held_share.room() <= before
                && self.core.held_share.covers_fairly(self.core.held)
            {
                return;
            }
            self.core.counters.unread_connections_closed += 1;
            let held = self.core.held;
            self.bare_step(now, id, out, |core, step| core.end(step, Close::AtOnce));
            self.core.shortage.on_closed(held.saturating_sub(self.core.held));
        }
    }

    fn bare_step(
        &mut self,
        now: Now,
        id: ConnectionId,
        out: &mut Output,
        run: impl FnOnce(&mut Core, &mut Step<'_>),
    ) {
        let Some(connection) = self.connections.find(id) else { return };
        let core = &mut self.core;
        let mut traffic = connection.traffic.take().unwrap_or_else(|| core.pool.take());
        let is_opening = matches!(connection.state, State::Opening { .. });
        // Those who watch over us ask in crowds too, and want to be answered.
        let was_word = connection.state == State::Word;
        let held = traffic.held();
        let has_lost_service = core.has_lost_service(connection);
        let mut step = Step { now, id, connection, traffic: &mut traffic, out };
        if has_lost_service {
            core.end(&mut step, Close::AfterFlush);
        } else {
            run(core, &mut step);
        }
        core.count_held(now, held, &mut traffic);
        let has_output = !traffic.output.is_empty();
        if (connection.is_closing() && !was_word) || (is_opening && has_output) {
            connection.announce_later(id, out);
        } else if connection.is_closing() || has_output {
            connection.announce(id, out);
        }
        if traffic.is_empty() {
            core.pool.give_back(traffic);
        } else {
            connection.traffic = Some(traffic);
        }
    }

    /// Closes connections that were silent for longer than they may be.
    fn close_the_silent(&mut self, now: Now, read_until_ms: i64, out: &mut Output) {
        let until = Now { monotonic_ms: read_until_ms, ..now };
        while let Some(&(at, id)) = self.core.looks.first()
            && at.is_due(until)
        {
            self.core.looks.pop_first();
            let Some(connection) = self.connections.find(id) else { continue };
            // Whoever waits for its session waits for us.
            let may_end = !matches!(connection.state, State::Opening { .. });
            if may_end && self.core.silence_deadline(connection).is_due(until) {
                self.core.counters.on_silent(connection.state);
                self.step(now, id, out, |core, step| {
                    core.end(step, Close::AtOnce);
                    // One that had ended already, and that the shell has not closed yet.
                    step.connection.heard_ms = now.monotonic_ms;
                    core.look_again(now, id, step.connection);
                });
            } else {
                self.core.look_again(now, id, connection);
            }
        }
    }

    /// In debug builds, looks for a broken invariant where that takes a moment.
    fn check_if_small(&self) {
        if cfg!(debug_assertions) && self.core.watches.pairs() + self.connections.len() < 20_000 {
            assert_eq!(self.broken_invariant(), None);
        }
    }

    /// What does not hold of one connection, by name.
    fn broken_promise(&mut self, id: ConnectionId) -> Option<&'static str> {
        let connection = self.connections.find(id)?;
        let traffic = connection.traffic.as_deref()?;
        self.core.broken_promise(connection, traffic)
    }

    /// The invariant that does not hold, by name. Walks everything.
    #[must_use]
    pub fn broken_invariant(&self) -> Option<&'static str> {
        let (mut outstanding, mut large_bytes, mut heard, mut held) = (0, 0, 0, 0);
        for (id, connection) in self.connections.iter() {
            let traffic = connection.traffic.as_deref();
            for unanswered in traffic.iter().flat_map(|traffic| &traffic.unanswered) {
                outstanding += 1;
                large_bytes += unanswered.large_bytes as usize;
            }
            if !self.core.looks.contains(&(connection.look, id)) {
                return Some("every connection is looked at");
            }
            if let Some(traffic) = traffic {
                held += traffic.held();
                if traffic.is_empty() {
                    return Some("an idle connection holds no buffers");
                }
                if let Some(broken) = self.core.broken_promise(connection, traffic) {
                    return Some(broken);
                }
            }
            heard += usize::from(connection.is_heard);
        }
        if self.core.heard.len() < heard {
            return Some("who was heard is reported");
        }
        if outstanding != self.core.outstanding || large_bytes != self.core.large_bytes {
            return Some("unanswered requests are counted");
        }
        if held != self.core.held {
            return Some("what is held for clients is counted");
        }
        if self.core.looks.len() != self.connections.len() {
            return Some("nobody is looked at who is gone");
        }
        if let Some(broken) = self.core.places.broken_invariant(self.connections.iter()) {
            return Some(broken);
        }
        self.core.watches.broken_invariant()
    }
}

impl Core {
    fn permits(&self, acl: Option<&Arc<[Acl]>>, perm: i32, ids: &[Id]) -> bool {
        let Some(acl) = acl else { return true };
        self.settings.skip_acl || acl::permits(acl, perm, ids, &self.settings.providers)
    }

    fn check(&self, acl: Option<&Arc<[Acl]>>, perm: i32, ids: &[Id]) -> Result<(), Code> {
        if self.permits(acl, perm, ids) { Ok(()) } else { Err(Code::NoAuth) }
    }

    /// Notes that a client lives. Before it has a session, this does not count: it has to be
    /// quick then.
    fn hear(&mut self, step: &mut Step<'_>) {
        match step.connection.state {
            State::Connecting | State::Word | State::Closing(_) => {}
            State::Opening { .. } | State::Live { .. } | State::Leaving { .. } => {
                step.connection.heard_ms = step.now.monotonic_ms;
                if !step.connection.is_heard {
                    step.connection.is_heard = true;
                    self.heard.push(step.id);
                }
            }
        }
    }

    /// Notes what a connection holds, that held so much before.
    fn count_held(&mut self, now: Now, before: usize, traffic: &mut Traffic) {
        let after = traffic.held();
        self.held = self.held + after - before;
        if before == 0 {
            traffic.unread_since_ms = now.monotonic_ms;
        }
    }

    /// Empties what will not be sent.
    fn discard(&mut self, outbox: &mut Outbox) {
        if DISCARDED_PER_TURN_BYTES < outbox.capacity() {
            self.discarded.extend(mem::take(outbox).into_pieces());
        } else {
            outbox.clear();
        }
    }

    /// Gives back some of the memory of what was discarded.
    fn free_some(&mut self) {
        let mut bytes = 0;
        while bytes < DISCARDED_PER_TURN_BYTES
            && let Some(piece) = self.discarded.pop()
        {
            bytes += piece.capacity();
        }
    }

    /// Acts on what is left in a connection's input.
    fn go_on(&mut self, step: &mut Step<'_>) {
        let mut input = mem::take(&mut step.traffic.input);
        let used = self.take_in(step, input.bytes());
        input.use_up(used);
        step.traffic.input = input;
    }

    /// The connection ends from our side: nothing more of it is acted on.
    fn end(&mut self, step: &mut Step<'_>, close: Close) {
        let close = match step.connection.state {
            State::Closing(Close::AtOnce) => return,
            State::Closing(Close::AfterFlush) if close == Close::AfterFlush => return,
            State::Closing(_)
            | State::Connecting
            | State::Opening { .. }
            | State::Live { .. }
            | State::Leaving { .. }
            | State::Word => close,
        };
        self.detach(step.id, step.connection, step.traffic);
        if close == Close::AtOnce {
            self.discard(&mut step.traffic.output);
        }
        step.connection.state = State::Closing(close);
        step.connection.heard_ms = step.now.monotonic_ms;
        self.look_again(step.now, step.id, step.connection);
    }

    /// Lets go of all that hangs on a connection: requests, watches, its session.
    fn detach(&mut self, id: ConnectionId, connection: &mut Connection, traffic: &mut Traffic) {
        self.outstanding -= traffic.unanswered.len();
        for (before, unanswered) in traffic.unanswered.drain(..).enumerate() {
            self.large_bytes -= unanswered.large_bytes as usize;
            if unanswered.op == code::GET_EPHEMERALS {
                self.leave_ephemerals_behind(id, before + 1);
            }
        }
        self.stop_waiting(traffic);
        self.forget_long(id, traffic);
        traffic.input.clear();
        traffic.is_waiting = false;
        traffic.arrived = None;
        self.watches.forget(id.slot);
        if connection.is_heard {
            connection.is_heard = false;
            if let Some((session, _)) = connection.session() {
                self.heard_last.push((session, connection.heard_ms));
            }
        }
    }

    fn silence_deadline(&self, connection: &Connection) -> Deadline {
        let settings = &self.settings;
        let patience_ms = match connection.state {
            State::Connecting | State::Word => settings.sessionless_timeout_ms,
            State::Opening { timeout_ms, .. }
            | State::Live { timeout_ms, .. }
            | State::Leaving { timeout_ms, .. } => {
                i64::from(timeout_ms) + settings.silence_slack_ms
            }
            State::Closing(_) => settings.silence_slack_ms,
        };
        Deadline(connection.heard_ms.saturating_add(patience_ms))
    }

    /// Makes sure that somebody looks when this connection has been silent for too long.
    fn look_again(&mut self, now: Now, id: ConnectionId, connection: &mut Connection) {
        let at = self.silence_deadline(connection).0.max(now.monotonic_ms + 1);
        let at = Deadline(at.saturating_add(LOOK_STEP_MS) / LOOK_STEP_MS * LOOK_STEP_MS);
        self.looks.remove(&(connection.look, id));
        connection.look = at;
        self.looks.insert((at, id));
    }

    /// What is promised of one connection and does not hold, by name.
    fn broken_promise(&self, connection: &Connection, traffic: &Traffic) -> Option<&'static str> {
        if connection.is_closing() && !(traffic.input.is_empty() && traffic.unanswered.is_empty()) {
            return Some("nothing is awaited of a connection that ends");
        }
        if traffic.is_waiting
            && traffic.unanswered.is_empty()
            && traffic.output.len() < self.settings.output_bytes_max
            && !traffic.is_queued
        {
            return Some("who waits, waits for something");
        }
        if traffic.long.is_some() && !traffic.is_queued {
            return Some("what is being answered goes on");
        }
        if traffic.is_waiting && traffic.input.is_empty() {
            return Some("what waits is there");
        }
        None
    }

    #[cfg(feature = "mutants")]
    fn is_mutant(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    #[cfg(not(feature = "mutants"))]
    #[expect(clippy::unused_self, reason = "the same call with and without mutants")]
    fn is_mutant(&self, _: Mutant) -> bool {
        false
    }
}

impl Connection {
    /// Whether it is for our sake alone that it is not read from: all that it has to read is
    /// written, or nearly.
    fn is_kept_waiting(&self, traffic: &Traffic, settings: &Settings) -> bool {
        !wants_read(settings, &self.state, traffic)
            && traffic.output.len() < settings.output_bytes_max
    }

    /// The shell has to look at it.
    fn announce(&mut self, id: ConnectionId, out: &mut Output) {
        if !mem::replace(&mut self.is_ready, true) {
            out.ready.push(id);
        }
    }

    /// The shell has to look at it, and others come first.
    fn announce_later(&mut self, id: ConnectionId, out: &mut Output) {
        if !self.is_ready && !mem::replace(&mut self.is_later, true) {
            out.later.push(id);
        }
    }
}

/// Whether there is room for what a client sends and for the replies to it.
fn wants_read(settings: &Settings, state: &State, traffic: &Traffic) -> bool {
    let has_room = traffic.output.len() < settings.output_bytes_max;
    let is_stopped = traffic.is_waiting || matches!(state, State::Opening { .. });
    has_room && (!is_stopped || traffic.input.len() < settings.input_bytes_max)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::places::{LONG_MAX, Place};
    use super::*;
    use crate::auth;
    use crate::exchange::{Applied, Change, ChangeKind, Item, Outcome, Reply, Service, Span, Want};
    use crate::jute::record::Record as _;
    use crate::jute::{Reader, Write as _, frame};
    use crate::record::data::{AclBytes, StatPersisted};
    use crate::record::proto::{ConnectRequest, MULTI_END, MultiHeader, RequestHeader};
    use crate::record::txn::{CreateKind, Txn, TxnHeader};
    use crate::tree::change::Unwatched;
    use crate::tree::{self, LoadedAcl, TreeWriter};
    use crate::types::Zxid;

    const SHARD: ShardId = ShardId(3);

    fn settings() -> Settings {
        Settings {
            frame_bytes_max: 0xf_ffff,
            session_timeout_min_ms: 2_000,
            session_timeout_max_ms: 20_000,
            providers: Arc::new(Providers::default()),
            skip_acl: false,
            sessionless_timeout_ms: 10_000,
            silence_slack_ms: 5_000,
            outstanding_max: 1000,
            large_request_bytes: None,
            large_requests_bytes_max: usize::MAX,
            throttled_op_wait_ms: None,
            connect_throttle: None,
            input_bytes_max: 1000,
            output_bytes_max: 1000,
            output_bytes_ceiling: 2000,
            answer_bytes_max: 1 << 20,
            answer_bytes: Allowance::new(1 << 30, 1, 1 << 20),
            watches_per_connection_max: 1 << 20,
            watches: Allowance::new(1 << 20, 1, 64),
            connection_turn: TurnBudget { bytes: 1000, steps: 500 },
            turn: TurnBudget { bytes: usize::MAX, steps: usize::MAX },
            auth_bytes_max: 1000,
            hash_seed: 0,
            serves_at_birth: true,
        }
    }

    /// A shard, and a pipeline that agrees to everything and is asked when the test wants.
    struct Bench {
        now: Now,
        shard: Shard,
        out: Output,
        writer: TreeWriter,
        zxid: Zxid,
        sessions: i64,
    }

    impl Bench {
        fn new(settings: Settings) -> Bench {
            let mut writer = TreeWriter::new(tree::Settings::default());
            let shard = Shard::new(SHARD, settings, writer.reader());
            let now = Now { monotonic_ms: 1000, wall_ms: 0 };
            let out = Output::new(SHARD);
            Bench { now, shard, out, writer, zxid: Zxid::ZERO, sessions: 0 }
        }

        fn accept(&mut self) -> ConnectionId {
            self.shard.on_accept(self.now, SocketAddr::from((Ipv4Addr::LOCALHOST, 1)))
        }

        fn send(&mut self, id: ConnectionId, bytes: &[u8]) {
            self.shard.on_bytes(self.now, id, bytes, &mut self.out);
        }

        fn connect(&mut self) -> ConnectionId {
            let id = self.accept();
            self.send(id, &connect_request());
            self.agree();
            id
        }

        /// A batch of `items`, one zxid on.
        fn apply(&mut self, items: Vec<Item>, paths: String) {
            self.zxid = self.zxid.next();
            self.writer.publish(self.zxid);
            let applied = Applied { zxid: self.zxid, items, paths, bodies: Vec::new() };
            self.shard.on_applied(self.now, &applied, &mut self.out);
        }

        /// The pipeline does all that it was asked.
        fn agree(&mut self) {
            let requests = mem::take(&mut self.out.requests.requests);
            let mut items = Vec::new();
            for request in requests {
                let outcome = match request.want {
                    Want::Open { timeout_ms, .. } | Want::Resume { timeout_ms, .. } => {
                        self.sessions += 1;
                        let session = SessionId(self.sessions);
                        Outcome::Connected { session, timeout_ms, password: [0; 16] }
                    }
                    want => Outcome::Answer {
                        xid: request.xid,
                        err: Code::Ok,
                        body: Span::default(),
                        close: want == Want::Close,
                    },
                };
                let connection = request.connection;
                let zxid = self.zxid.next();
                items.push(Item::Reply(Reply { shard: SHARD, connection, zxid, outcome }));
            }
            self.apply(items, String::new());
        }

        fn change(&mut self, path: &str) {
            let path_at = Span::since(0, path.len());
            let change = Change {
                kind: ChangeKind::DataChanged,
                zxid: self.zxid.next(),
                path: path_at,
                acl: None,
                parent_acl: None,
            };
            self.apply(vec![Item::Change(change)], path.to_owned());
        }

        /// Takes what there is to be written: how many frames.
        fn read(&mut self, id: ConnectionId) -> usize {
            let mut bytes = Vec::new();
            loop {
                bytes.append(&mut self.read_bytes(id));
                if !self.shard.has_work() {
                    break;
                }
                self.shard.on_turn(self.now, &mut self.out);
            }
            let (mut rest, mut frames) = (&bytes[..], 0);
            while let frame::Front::Frame { body } = frame::cut(rest, usize::MAX) {
                rest = &rest[frame::PREFIX_BYTES + body.len()..];
                frames += 1;
            }
            assert!(rest.is_empty(), "whole frames are written");
            frames
        }

        /// Takes what there is to be written now.
        fn read_bytes(&mut self, id: ConnectionId) -> Vec<u8> {
            let mut bytes = Vec::new();
            while let Some(outgoing) = self.shard.outgoing(id)
                && !outgoing.bytes.is_empty()
            {
                let count = outgoing.bytes.len();
                bytes.extend_from_slice(outgoing.bytes);
                self.shard.on_written(self.now, id, count, &mut self.out);
            }
            bytes
        }

        fn close_of(&mut self, id: ConnectionId) -> Option<Close> {
            self.shard.outgoing(id).and_then(|outgoing| outgoing.close)
        }

        fn tick(&mut self, ms: i64) {
            self.now.monotonic_ms += ms;
            self.shard.on_tick(self.now, self.now.monotonic_ms, &mut self.out);
        }

        /// After a stall: what came since `read_until_ms` is not read yet.
        fn tick_late(&mut self, ms: i64, read_until_ms: i64) {
            self.now.monotonic_ms += ms;
            self.shard.on_tick(self.now, read_until_ms, &mut self.out);
        }
    }

    fn connect_request() -> Vec<u8> {
        connect_as(Some(false))
    }

    fn request(op: i32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame::write(&mut bytes, |out| {
            RequestHeader { xid: 1, op }.write(out);
            out.extend_from_slice(body);
        });
        bytes
    }

    fn read_with_watch(path: &str) -> Vec<u8> {
        let mut body = Vec::new();
        body.put_text(path);
        body.put_bool(true);
        request(code::EXISTS, &body)
    }

    #[test]
    fn an_idle_connection_holds_no_buffers() {
        let mut bench = Bench::new(settings());
        let id = bench.connect();
        bench.send(id, &request(code::PING, &[]));
        assert_eq!(bench.read(id), 2);
        assert!(bench.shard.connections.find(id).unwrap().traffic.is_none());
    }

    #[test]
    fn memory_grows_by_what_came_and_not_by_what_was_announced() {
        let mut bench = Bench::new(settings());
        let id = bench.connect();
        bench.read(id);
        bench.send(id, &[0, 0x0f, 0xff, 0xff, 1, 2, 3]);
        let traffic = bench.shard.connections.find(id).unwrap().traffic.as_mut().unwrap();
        assert!(traffic.input.tail().capacity() < 1000);
        assert!(bench.shard.outgoing(id).unwrap().wants_read);
    }

    #[test]
    fn who_waits_is_not_read_from_beyond_a_bound() {
        let mut bench = Bench::new(settings());
        let id = bench.connect();
        bench.read(id);
        bench.send(id, &request(code::SYNC, &[]));
        for _ in 0..100 {
            assert!(bench.shard.outgoing(id).unwrap().wants_read);
            bench.send(id, &request(code::PING, &[]));
            if !bench.shard.outgoing(id).unwrap().wants_read {
                break;
            }
        }
        assert!(!bench.shard.outgoing(id).unwrap().wants_read);
        bench.out.ready.clear();
        bench.agree();
        assert_eq!(bench.out.ready, [id], "the shell hears that there are replies");
        assert!(bench.read(id) > 80);
        assert!(bench.shard.outgoing(id).unwrap().wants_read);
    }

    #[test]
    fn who_waits_for_a_reply_comes_before_who_is_told_of_an_event() {
        let mut bench = Bench::new(settings());
        let (told, asks) = (bench.accept(), bench.accept());
        bench.send(told, &connect_request());
        bench.send(asks, &connect_request());
        bench.agree();
        assert_eq!((&bench.out.ready[..], &bench.out.later[..]), (&[][..], &[told, asks][..]));
        assert_eq!((bench.read(told), bench.read(asks)), (1, 1));
        bench.send(told, &read_with_watch("/hot"));
        bench.send(asks, &read_with_watch("/hot"));
        assert_eq!((bench.read(told), bench.read(asks)), (1, 1));
        (bench.out.ready, bench.out.later) = (Vec::new(), Vec::new());
        bench.change("/hot");
        bench.send(asks, &request(code::PING, &[]));
        assert_eq!((&bench.out.ready[..], &bench.out.later[..]), (&[asks][..], &[told, asks][..]));
        assert_eq!((bench.read(asks), bench.read(told)), (2, 1), "the event and the reply leave");
        (bench.out.ready, bench.out.later) = (Vec::new(), Vec::new());
        bench.send(told, &request(code::CLOSE_SESSION, &[]));
        bench.agree();
        assert_eq!((&bench.out.ready[..], &bench.out.later[..]), (&[][..], &[told][..]));
    }

    #[test]
    fn a_hundred_thousand_watchers_hear_of_one_write() {
        let mut bench = Bench::new(settings());
        let watch = read_with_watch("/hot");
        let ids: Vec<ConnectionId> = (0..100_000).map(|_| bench.accept()).collect();
        for &id in &ids {
            bench.send(id, &connect_request());
        }
        bench.agree();
        for &id in &ids {
            bench.send(id, &watch);
        }
        assert_eq!(bench.shard.watch_count(), ids.len());
        for &id in &ids {
            assert_eq!(bench.read(id), 2);
        }
        (bench.out.ready, bench.out.later) = (Vec::new(), Vec::new());
        bench.change("/hot");
        assert_eq!((bench.out.later.len(), bench.shard.watch_count()), (ids.len(), 0));
        assert!(bench.out.ready.is_empty());
        for &id in &ids {
            assert_eq!(bench.read(id), 1);
        }
    }

    #[test]
    fn whoever_does_not_read_its_events_is_closed() {
        let mut bench = Bench::new(settings());
        let id = bench.connect();
        let mut body = Vec::new();
        body.put_text("/w");
        body.put_i32(0);
        bench.send(id, &request(code::ADD_WATCH, &body));
        for _ in 0..100 {
            bench.change("/w");
        }
        assert_eq!(bench.close_of(id), Some(Close::AtOnce));
        assert_eq!(bench.shard.watch_count(), 0);
        bench.shard.on_closed(bench.now, id);
        assert!(bench.shard.outgoing(id).is_none());
    }

    #[test]
    fn with_too_much_outstanding_a_connection_waits_but_none_starves() {
        let mut bench = Bench::new(Settings { outstanding_max: 3, ..settings() });
        let ids = [bench.connect(), bench.connect()];
        for _ in 0..5 {
            bench.send(ids[0], &request(code::SYNC, &[]));
        }
        assert_eq!(bench.shard.outstanding(), 3);
        bench.send(ids[1], &request(code::SYNC, &[]));
        assert_eq!(bench.shard.outstanding(), 4);
        bench.agree();
        assert_eq!(bench.shard.outstanding(), 2);
        bench.agree();
        assert_eq!((bench.read(ids[0]), bench.read(ids[1])), (6, 2));
    }

    #[test]
    fn large_requests_are_bounded_together() {
        let limits =
            Settings { large_request_bytes: Some(50), large_requests_bytes_max: 120, ..settings() };
        let mut bench = Bench::new(limits);
        let ids = [bench.connect(), bench.connect(), bench.connect()];
        bench.send(ids[0], &request(code::SYNC, &[0; 60]));
        bench.send(ids[1], &request(code::SYNC, &[0; 40]));
        bench.send(ids[2], &request(code::SYNC, &[0; 60])[..20]);
        assert_eq!(bench.close_of(ids[0]), None);
        assert_eq!(bench.close_of(ids[2]), Some(Close::AfterFlush));
        bench.agree();
        bench.send(ids[1], &request(code::SYNC, &[0; 60]));
        assert_eq!((bench.close_of(ids[0]), bench.close_of(ids[1])), (None, None));
    }

    #[test]
    fn what_waited_too_long_is_refused_in_its_place() {
        let mut bench = Bench::new(Settings { throttled_op_wait_ms: Some(100), ..settings() });
        let id = bench.connect();
        bench.read(id);
        bench.send(id, &request(code::SYNC, &[]));
        bench.send(id, &[read_with_watch("/"), request(code::PING, &[])].concat());
        bench.now.monotonic_ms += 101;
        bench.agree();
        let bytes = bench.shard.outgoing(id).unwrap().bytes;
        let errors: Vec<&[u8]> = bytes.chunks(20).map(|reply| &reply[16..]).collect();
        assert_eq!(errors, [[0, 0, 0, 0], (-127i32).to_be_bytes(), [0, 0, 0, 0]]);
        assert_eq!(bench.shard.watch_count(), 0);
    }

    #[test]
    fn new_connections_are_throttled() {
        let connect_throttle = Some(ConnectThrottle {
            tokens_max: 1,
            fill_time_ms: 1000,
            fill_count: 1,
            for_new: 1,
            for_renewed: 1,
            early_drop: None,
        });
        let mut bench = Bench::new(Settings { connect_throttle, ..settings() });
        let ids = [bench.connect(), bench.connect()];
        assert_eq!(ids.map(|id| bench.close_of(id)), [None, Some(Close::AtOnce)]);
        assert_eq!(bench.shard.counters().connections_throttled, 1);
    }

    #[test]
    fn a_connection_is_as_many_as_it_has_room_for() {
        let mut bench = Bench::new(Settings { auth_bytes_max: 1000, ..settings() });
        let id = bench.connect();
        bench.read(id);
        let as_user = |number: usize| {
            let mut auth = Vec::new();
            auth.put_i32(0);
            auth.put_text("digest");
            auth.put_text(&format!("user{number:03}:pw"));
            request(code::AUTH, &auth)
        };
        let mut known = 0;
        while bench.shard.outgoing(id).unwrap().close.is_none() {
            bench.send(id, &as_user(known));
            // The same once more is no more.
            bench.send(id, &as_user(known));
            known += 1;
            assert!(known < 100, "there is no end of ids");
        }
        assert!(2 < known, "a few are welcome");
        // The last is told that it failed.
        assert_eq!(bench.read(id), 2 * (known - 1) + 1);
        assert_eq!(bench.shard.counters().auth_failed, 1);
        let ids = &bench.shard.connections.find(id).unwrap().ids;
        assert_eq!(ids.len(), known, "its address and all users but the last");
        bench.shard.on_closed(bench.now, id);
    }

    #[test]
    fn enforced_authentication_refuses_even_pings_and_closes() {
        let enforced_schemes = vec!["digest".to_owned()];
        let auth = auth::Settings { enforced_schemes, ..auth::Settings::default() };
        let providers = Arc::new(Providers::new(auth).unwrap());
        let mut bench = Bench::new(Settings { providers, ..settings() });
        for op in [code::PING, code::CLOSE_SESSION, 77] {
            let id = bench.connect();
            bench.read(id);
            bench.send(id, &request(op, &[]));
            let bytes = bench.shard.outgoing(id).unwrap().bytes;
            assert_eq!(bytes[8..], [[0; 4], [0; 4], (-124i32).to_be_bytes()].concat());
            assert_eq!(bench.close_of(id), Some(Close::AfterFlush));
        }
        let id = bench.connect();
        bench.read(id);
        let mut auth = Vec::new();
        auth.put_i32(0);
        auth.put_text("digest");
        auth.put_text("a:b");
        bench.send(id, &[request(code::AUTH, &auth), request(code::PING, &[])].concat());
        assert_eq!((bench.read(id), bench.close_of(id)), (2, None));
    }

    #[test]
    fn sessions_are_reported_as_heard_also_when_their_connection_went() {
        let mut bench = Bench::new(settings());
        let ids = [bench.connect(), bench.connect(), bench.connect()];
        bench.tick(100);
        bench.out.touched = None;
        bench.now.monotonic_ms += 10;
        bench.send(ids[0], &request(code::PING, &[]));
        bench.send(ids[2], &request(code::PING, &[]));
        bench.shard.on_closed(bench.now, ids[2]);
        bench.tick(90);
        let touched = bench.out.touched.as_ref().unwrap();
        assert_eq!(touched.as_of_ms, 1200);
        assert_eq!(touched.heard, [(SessionId(3), 1110), (SessionId(1), 1110)]);
    }

    #[test]
    fn whoever_is_not_read_from_for_our_sake_counts_as_heard() {
        let mut bench = Bench::new(settings());
        let id = bench.connect();
        bench.send(id, &request(code::SYNC, &[]));
        for _ in 0..100 {
            bench.send(id, &request(code::PING, &[]));
        }
        for _ in 0..10 {
            bench.tick(2_000);
            let touched = bench.out.touched.take().unwrap();
            assert_eq!(touched.heard, [(SessionId(1), bench.now.monotonic_ms)]);
        }
        bench.agree();
        bench.tick(2_000);
        bench.out.touched = None;
        bench.tick(2_000);
        assert_eq!(bench.out.touched.take().unwrap().heard, []);
    }

    #[test]
    fn after_a_stall_nobody_is_silent_who_has_not_been_read() {
        let mut bench = Bench::new(settings());
        let (nobody, live) = (bench.accept(), bench.connect());
        bench.tick(500);
        let read_until_ms = bench.now.monotonic_ms;
        bench.tick_late(60_000, read_until_ms);
        assert_eq!(bench.out.touched.take().unwrap().as_of_ms, read_until_ms);
        assert_eq!((bench.close_of(nobody), bench.close_of(live)), (None, None));
        bench.send(live, &request(code::PING, &[]));
        bench.tick(1);
        let touched = bench.out.touched.take().unwrap();
        assert_eq!(touched.heard, [(SessionId(1), bench.now.monotonic_ms - 1)]);
        assert_eq!(bench.close_of(nobody), Some(Close::AtOnce), "it has said nothing");
        assert_eq!(bench.close_of(live), None);
    }

    #[test]
    fn a_slow_reader_lives_as_long_as_it_gives_a_sign() {
        let mut bench = Bench::new(settings());
        let id = bench.connect();
        while bench.shard.wants_read(id) {
            bench.send(id, &request(code::PING, &[]));
        }
        bench.tick(2_000);
        bench.out.touched = None;
        for _ in 0..10 {
            bench.shard.on_sign_of_life(bench.now, id, &mut bench.out);
            let heard_ms = bench.now.monotonic_ms;
            bench.tick(2_000);
            assert_eq!(bench.out.touched.take().unwrap().heard, [(SessionId(1), heard_ms)]);
        }
        // It takes nothing more, and says nothing.
        for _ in 0..4 {
            assert_eq!(bench.close_of(id), None);
            bench.tick(2_000);
            assert_eq!(bench.out.touched.take().unwrap().heard, []);
        }
        bench.tick(2_000);
        assert_eq!(bench.close_of(id), Some(Close::AtOnce));
    }

    #[test]
    fn who_is_waiting_for_its_session_is_not_silent() {
        let mut bench = Bench::new(settings());
        let id = bench.accept();
        bench.send(id, &connect_request());
        for _ in 0..20 {
            bench.send(id, &request(code::PING, &[]));
            bench.tick(2_000);
            assert_eq!(bench.close_of(id), None);
            assert_eq!(bench.out.touched.take().unwrap().heard, []);
        }
        bench.agree();
        bench.tick(10);
        // When it has sent the last ping.
        let heard_ms = bench.now.monotonic_ms - 2_010;
        assert_eq!(bench.out.touched.take().unwrap().heard, [(SessionId(1), heard_ms)]);
    }

    fn connect_as(read_only: Option<bool>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let request = ConnectRequest {
            protocol_version: 0,
            last_zxid_seen: 0,
            timeout_ms: 4000,
            session: 0,
            password: None,
            read_only,
        };
        frame::write(&mut bytes, |out| request.write(out));
        bytes
    }

    /// A tree with this znode, published up to this zxid.
    fn tree_with(path: &str, zxid: Zxid) -> TreeWriter {
        let mut writer = TreeWriter::new(tree::Settings::default());
        let stat = StatPersisted::default();
        writer.load_znode(path, Some(b"here"), &LoadedAcl::OPEN, stat).unwrap();
        writer.publish(zxid);
        writer
    }

    impl Bench {
        fn serve_nobody(&mut self) {
            self.shard.on_service(self.now, Service::Nobody, &mut self.out);
        }

        /// From another tree.
        fn serve(&mut self, mode: Mode, writer: TreeWriter, zxid: Zxid) {
            (self.writer, self.zxid) = (writer, zxid);
            let service = Service::Clients { mode, reader: self.writer.reader() };
            self.shard.on_service(self.now, service, &mut self.out);
        }

        /// The errors of the replies that there are to be written, in order.
        fn errors(&mut self, id: ConnectionId) -> Vec<i32> {
            let bytes = self.read_bytes(id);
            let (mut rest, mut errors) = (&bytes[..], Vec::new());
            while let frame::Front::Frame { body } = frame::cut(rest, usize::MAX) {
                rest = &rest[frame::PREFIX_BYTES + body.len()..];
                errors.push(i32::from_be_bytes(body[12..16].try_into().unwrap()));
            }
            errors
        }
    }

    #[test]
    fn who_is_served_no_more_is_closed_and_only_some_in_a_turn() {
        let mut bench = Bench::new(settings());
        let ids: Vec<ConnectionId> = (0..1_000).map(|_| bench.connect()).collect();
        for &id in &ids {
            bench.read(id);
            bench.send(id, &read_with_watch("/hot"));
            bench.read(id);
            bench.send(id, &request(code::SYNC, &[]));
        }
        // It asked, and has not been told yet what its session is.
        let opening = bench.accept();
        bench.send(opening, &connect_request());
        let asks_word = bench.accept();
        bench.send(asks_word, b"srvr");
        (bench.out.ready, bench.out.later) = (Vec::new(), Vec::new());
        bench.serve_nobody();
        assert!(bench.out.requests.is_empty(), "nobody waits for what was not sent on yet");
        let mut ended = 0;
        while bench.shard.has_work() {
            bench.shard.on_turn(bench.now, &mut bench.out);
            assert!(bench.out.later.len() - ended <= 256, "too many in one turn");
            ended = bench.out.later.len();
        }
        assert_eq!((ended, bench.out.ready.len()), (1_001, 0), "those who ask words come first");
        for id in ids.into_iter().chain([opening]) {
            assert!(bench.read_bytes(id).is_empty());
            assert_eq!(bench.close_of(id), Some(Close::AfterFlush));
            bench.shard.on_closed(bench.now, id);
        }
        assert_eq!(bench.shard.watch_count(), 0);
        assert_eq!(bench.shard.outstanding(), 0);
        assert_eq!(bench.close_of(asks_word), None);
        assert_eq!(bench.out.words[0].serves, Some(Mode::ReadWrite));
        assert_eq!(bench.shard.broken_invariant(), None);
    }

    #[test]
    fn who_is_served_no_more_is_not_acted_for_before_its_end() {
        let mut bench = Bench::new(with_small_turns());
        bench.load_many("/many", 1000);
        let ids = bench.crowd(3);
        bench.send(ids[1], &[request(code::SYNC, &[]), request(code::PING, &[])].concat());
        // Its answer takes several turns.
        bench.send(ids[2], &on_path(code::GET_CHILDREN, "/many", false));
        assert_eq!(bench.shard.core.places.free(Place::Long), LONG_MAX - 1);
        bench.serve_nobody();
        bench.send(ids[0], &request(code::SYNC, &[]));
        bench.send(ids[0], &request(code::PING, &[]));
        assert_eq!(bench.close_of(ids[0]), Some(Close::AfterFlush));
        // What was asked is answered too late.
        bench.agree();
        for id in ids {
            assert_eq!((bench.read(id), bench.close_of(id)), (0, Some(Close::AfterFlush)));
        }
        assert!(bench.out.requests.is_empty());
        assert_eq!(bench.shard.core.places.free(Place::Long), LONG_MAX);
    }

    #[test]
    fn while_nobody_is_served_newcomers_are_closed_and_words_are_answered() {
        let mut bench = Bench::new(Settings { serves_at_birth: false, ..settings() });
        let (client, asks) = (bench.accept(), bench.accept());
        bench.send(client, &connect_request()[..4]);
        assert_eq!(bench.close_of(client), Some(Close::AtOnce));
        assert!(bench.read_bytes(client).is_empty());
        bench.send(asks, b"ruok");
        let word = bench.out.words.pop().unwrap();
        assert_eq!((word.connection, word.serves), (asks, None));
        bench.shard.answer_word(bench.now, asks, vec![b"imok".to_vec()], &mut bench.out);
        assert_eq!(bench.read_bytes(asks), b"imok");
        assert!(bench.out.requests.is_empty());
        // It keeps nothing of the tree, and batches are not for it.
        assert!(bench.shard.core.tree.get("/zookeeper").is_none());
        bench.change("/hot");
        assert_eq!(bench.shard.view(), Zxid::ZERO);
    }

    #[test]
    fn clients_are_served_again_from_another_tree() {
        let mut bench = Bench::new(settings());
        let before = bench.connect();
        bench.read(before);
        let prefix = |path: &str| {
            let mut body = Vec::new();
            body.put_text(path);
            body
        };
        // The pipeline is never going to answer this.
        bench.send(before, &request(code::GET_EPHEMERALS, &prefix("/")));
        bench.send(before, &read_with_watch("/new"));
        let asked = mem::take(&mut bench.out.requests.requests);
        bench.serve_nobody();
        bench.serve(Mode::ReadWrite, tree_with("/new", Zxid(700)), Zxid(700));
        assert_eq!(bench.shard.view(), Zxid(700));
        assert_eq!(bench.close_of(before), Some(Close::AfterFlush));
        assert_eq!(bench.shard.watch_count(), 0);
        let id = bench.connect();
        bench.read(id);
        bench.send(id, &read_with_watch("/new"));
        assert_eq!(bench.errors(id), [0], "it is there");
        bench.send(id, &request(code::GET_EPHEMERALS, &prefix("/")));
        assert_eq!(bench.out.requests.requests.len(), 1, "its place is free");
        // An answer from before comes all the same.
        bench.out.requests.requests.splice(..0, asked);
        bench.agree();
        assert_eq!(bench.errors(id), [0]);
        bench.change("/new");
        assert_eq!(bench.read(id), 1);
        assert_eq!(bench.shard.view(), bench.zxid);
        assert_eq!(bench.shard.broken_invariant(), None);
    }

    #[test]
    fn another_service_ends_the_one_before() {
        let mut bench = Bench::new(settings());
        let before = bench.connect();
        bench.serve(Mode::ReadOnly, tree_with("/new", Zxid(7)), Zxid(7));
        assert_eq!(bench.close_of(before), Some(Close::AfterFlush));
    }

    #[test]
    fn a_read_only_server_is_for_clients_that_accept_one_and_takes_no_writes() {
        let mut bench = Bench::new(settings());
        bench.serve_nobody();
        bench.serve(Mode::ReadOnly, tree_with("/new", Zxid(7)), Zxid(7));
        for read_only in [None, Some(false)] {
            let id = bench.accept();
            bench.send(id, &connect_as(read_only));
            assert_eq!((bench.read_bytes(id), bench.close_of(id)), (vec![], Some(Close::AtOnce)));
        }
        assert!(bench.out.requests.is_empty());
        let id = bench.accept();
        bench.send(id, &connect_as(Some(true)));
        bench.agree();
        let response = bench.read_bytes(id);
        assert_eq!((response.len(), response.last()), (41, Some(&1)));
        let not_read_only = [
            code::CREATE,
            code::CREATE2,
            code::CREATE_CONTAINER,
            code::CREATE_TTL,
            code::DELETE,
            code::SET_DATA,
            code::SET_ACL,
            code::MULTI,
            code::RECONFIG,
            code::SYNC,
        ];
        for op in not_read_only {
            // In its place.
            let both = [read_with_watch("/new"), request(op, &[]), request(code::PING, &[])];
            bench.send(id, &both.concat());
            assert_eq!(bench.errors(id), [0, -119, 0], "opcode {op}");
        }
        assert!(bench.out.requests.is_empty());
        let asks = bench.accept();
        bench.send(asks, b"isro");
        assert_eq!(bench.out.words[0].serves, Some(Mode::ReadOnly));
        // A session is closed where it was opened: by the pipeline.
        bench.send(id, &request(code::CLOSE_SESSION, &[]));
        bench.agree();
        assert_eq!((bench.errors(id), bench.close_of(id)), (vec![0], Some(Close::AfterFlush)));
        let refused = bench.accept();
        bench.send(refused, &connect_as(Some(true)));
        let request = bench.out.requests.requests.pop().unwrap();
        let outcome = Outcome::Refused;
        let (connection, zxid) = (request.connection, bench.zxid);
        let reply = Reply { shard: SHARD, connection, zxid, outcome };
        bench.apply(vec![Item::Reply(reply)], String::new());
        let response = bench.read_bytes(refused);
        assert_eq!((response.len(), response.last()), (41, Some(&1)));
    }

    #[test]
    fn silence_ends_connections_in_its_time() {
        let mut bench = Bench::new(settings());
        let (nobody, live) = (bench.accept(), bench.connect());
        bench.tick(8_000);
        bench.send(nobody, &[0]);
        assert_eq!((bench.close_of(nobody), bench.close_of(live)), (None, None));
        bench.tick(2_600);
        assert_eq!(bench.close_of(nobody), Some(Close::AtOnce));
        assert_eq!(bench.close_of(live), Some(Close::AtOnce));
        assert_eq!(bench.shard.counters().sessionless_connections_expired, 1);
    }

    impl Bench {
        /// A znode that was there before anything else.
        fn load(&mut self, path: &str, data: &[u8]) {
            let stat = StatPersisted::default();
            self.writer.load_znode(path, Some(data), &LoadedAcl::OPEN, stat).unwrap();
        }

        /// A transaction, and what the shard is told of it.
        fn commit(&mut self, txn: &Txn<'_>, kind: ChangeKind, path: &str) {
            let zxid = self.zxid.next();
            let header = TxnHeader { client_id: 1, cxid: 0, zxid: zxid.0, time: 0, kind: 0 };
            assert_eq!(self.writer.apply(&header, txn, &mut Unwatched), Code::Ok);
            self.writer.settle();
            let path_at = Span::since(0, path.len());
            let change = Change { kind, zxid, path: path_at, acl: None, parent_acl: None };
            self.apply(vec![Item::Change(change)], path.to_owned());
        }

        fn create(&mut self, path: &str) {
            let txn = Txn::Create {
                kind: CreateKind::Node { create2: false, ephemeral: false },
                path: path.into(),
                data: None,
                acl: AclBytes::OPEN,
                parent_cversion: -1,
            };
            self.commit(&txn, ChangeKind::Created, path);
        }

        fn turn(&mut self) {
            self.shard.on_turn(self.now, &mut self.out);
            assert_eq!(self.shard.broken_invariant(), None);
        }

        /// Whole turns until nothing is left to do: what came for `id`, by frames.
        fn frames(&mut self, id: ConnectionId) -> Vec<Vec<u8>> {
            let mut bytes = self.read_bytes(id);
            while self.shard.has_work() {
                self.turn();
                bytes.append(&mut self.read_bytes(id));
            }
            let (mut rest, mut frames) = (&bytes[..], Vec::new());
            while let frame::Front::Frame { body } = frame::cut(rest, usize::MAX) {
                rest = &rest[frame::PREFIX_BYTES + body.len()..];
                frames.push(body.to_vec());
            }
            frames
        }
    }

    fn on_path(op: i32, path: &str, watch: bool) -> Vec<u8> {
        let mut body = Vec::new();
        body.put_text(path);
        body.put_bool(watch);
        request(op, &body)
    }

    /// The xid, the zxid and the error of a reply.
    fn header(frame: &[u8]) -> (i32, i64, i32) {
        let mut reader = Reader::new(frame);
        (reader.i32().unwrap(), reader.i64().unwrap(), reader.i32().unwrap())
    }

    fn names(frame: &[u8]) -> Vec<String> {
        let mut reader = Reader::new(&frame[16..]);
        let count = reader.count().unwrap().unwrap();
        (0..count).map(|_| reader.text().unwrap().unwrap().into_owned()).collect()
    }

    /// So little that tests see the turns.
    fn with_small_turns() -> Settings {
        Settings {
            connection_turn: TurnBudget { bytes: 10_000, steps: 64 },
            output_bytes_max: 1 << 20,
            output_bytes_ceiling: 1 << 20,
            input_bytes_max: 1 << 20,
            ..settings()
        }
    }

    #[test]
    fn a_connection_has_its_share_of_a_turn_and_others_do_not_wait_for_the_rest() {
        let mut bench = Bench::new(with_small_turns());
        bench.load("/big", &[7; 5000]);
        let (busy, other) = (bench.connect(), bench.connect());
        bench.read(busy);
        bench.read(other);
        bench.send(busy, &on_path(code::GET_DATA, "/big", false).repeat(100));
        let (mut bytes, mut turns) = (0, 0);
        loop {
            let taken = bench.read_bytes(busy).len();
            assert!(taken < 10_000 + 5_100, "{taken} bytes in one turn");
            bytes += taken;
            bench.send(other, &request(code::PING, &[]));
            assert_eq!(bench.read_bytes(other).len(), 20);
            if !bench.shard.has_work() {
                break;
            }
            bench.turn();
            turns += 1;
        }
        assert_eq!((bytes / 100, turns), (4 + 16 + 4 + 5000 + 68, 49));
    }

    #[test]
    fn small_requests_are_counted_in_steps() {
        let mut bench = Bench::new(with_small_turns());
        let id = bench.connect();
        bench.read(id);
        bench.send(id, &request(code::PING, &[]).repeat(100));
        assert_eq!(bench.read_bytes(id).len(), 32 * 20);
        bench.turn();
        assert_eq!(bench.read_bytes(id).len(), 32 * 20);
        assert_eq!(bench.read(id), 36);
    }

    #[test]
    fn all_connections_together_have_so_much_of_a_turn_and_each_comes_to_its_own() {
        let turn = TurnBudget { bytes: 20_000, steps: usize::MAX };
        let mut bench = Bench::new(Settings { turn, ..with_small_turns() });
        bench.load("/big", &[7; 5000]);
        let ids: Vec<ConnectionId> = (0..20).map(|_| bench.connect()).collect();
        ids.iter().for_each(|&id| assert_eq!(bench.read(id), 1));
        for &id in &ids {
            bench.send(id, &on_path(code::GET_DATA, "/big", false).repeat(8));
        }
        let mut taken = vec![0; ids.len()];
        while bench.shard.has_work() {
            let before: usize = taken.iter().sum();
            for (taken, &id) in taken.iter_mut().zip(&ids) {
                *taken += bench.read_bytes(id).len() / 5000;
            }
            let all = taken.iter().sum::<usize>() - before;
            assert!(all <= 6, "{all} answers in one turn");
            let (least, most) = (taken.iter().min().unwrap(), taken.iter().max().unwrap());
            assert!(most - least <= 4, "{most} for one and {least} for another");
            bench.turn();
        }
        for (taken, &id) in taken.iter_mut().zip(&ids) {
            *taken += bench.read_bytes(id).len() / 5000;
        }
        assert_eq!(taken, [8; 20]);
    }

    #[test]
    fn many_children_are_listed_over_turns_as_of_one_view() {
        let mut bench = Bench::new(with_small_turns());
        bench.load("/many", b"");
        (0..1000).for_each(|number| bench.load(&format!("/many/{number}"), b""));
        let (id, other) = (bench.connect(), bench.connect());
        bench.read(id);
        bench.read(other);
        let began = bench.shard.view();
        let ask = on_path(code::GET_CHILDREN2, "/many", true);
        bench.send(id, &[ask, on_path(code::EXISTS, "/many/new", false)].concat());
        for number in 0..5 {
            assert!(bench.read_bytes(id).is_empty(), "nothing of it is sent before it is whole");
            bench.send(other, &request(code::PING, &[]));
            assert_eq!(bench.read_bytes(other).len(), 20);
            bench.turn();
            if number == 2 {
                bench.create("/many/new");
            }
        }
        let frames = bench.frames(id);
        assert_eq!(frames.len(), 3, "the answer, the event, and what was asked behind");
        assert_eq!(header(&frames[0]), (1, began.0, 0));
        let mut listed = names(&frames[0]);
        listed.sort();
        let mut expected: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
        expected.sort();
        assert_eq!(listed, expected);
        let children = &frames[0][frames[0].len() - 12..];
        assert_eq!(children[..4], 1000_i32.to_be_bytes(), "the stat is of the same view");
        assert_eq!(header(&frames[1]), (-1, bench.zxid.0, 0));
        assert_eq!(
            header(&frames[2]),
            (1, bench.zxid.0, 0),
            "what comes later reads what is newer"
        );
        assert_eq!(bench.shard.core.places.free(Place::Long), LONG_MAX);
    }

    #[test]
    fn what_is_listed_is_let_go_with_its_connection() {
        let mut bench = Bench::new(with_small_turns());
        bench.load("/many", b"");
        (0..1000).for_each(|number| bench.load(&format!("/many/{number}"), b""));
        for _ in 0..3 * 8 {
            let id = bench.connect();
            bench.read(id);
            bench.send(id, &on_path(code::GET_CHILDREN, "/many", false));
            bench.turn();
            bench.shard.on_closed(bench.now, id);
        }
        assert_eq!(bench.shard.core.places.free(Place::Long), LONG_MAX);
        assert_eq!(bench.shard.core.held, 0);
        assert_eq!(bench.shard.broken_invariant(), None);
    }

    #[test]
    fn more_listings_than_are_made_at_once_wait_and_are_all_made() {
        let mut bench = Bench::new(with_small_turns());
        bench.load("/many", b"");
        (0..500).for_each(|number| bench.load(&format!("/many/{number}"), b""));
        let ids: Vec<ConnectionId> = (0..20).map(|_| bench.connect()).collect();
        for &id in &ids {
            bench.read(id);
            bench.send(id, &on_path(code::GET_CHILDREN, "/many", false));
        }
        while bench.shard.has_work() {
            bench.turn();
        }
        for &id in &ids {
            assert_eq!(names(&bench.frames(id)[0]).len(), 500);
        }
    }

    fn multi_read(asks: &[(i32, &str)]) -> Vec<u8> {
        let mut body = Vec::new();
        for &(kind, path) in asks {
            MultiHeader { kind, done: false, err: -1 }.write(&mut body);
            body.put_text(path);
            body.put_bool(false);
        }
        MULTI_END.write(&mut body);
        request(code::MULTI_READ, &body)
    }

    #[test]
    fn a_multi_read_over_turns_reads_one_view() {
        let mut bench = Bench::new(with_small_turns());
        bench.load("/many", b"");
        (0..300).for_each(|number| bench.load(&format!("/many/{number}"), b""));
        let id = bench.connect();
        bench.read(id);
        let began = bench.shard.view();
        let asks = [(code::GET_CHILDREN, "/many"), (code::GET_DATA, "/late")].repeat(10);
        bench.send(id, &multi_read(&asks));
        bench.turn();
        bench.create("/late");
        let frames = bench.frames(id);
        assert_eq!(frames.len(), 1);
        assert_eq!(header(&frames[0]), (1, began.0, 0));
        let mut reader = Reader::new(&frames[0][16..]);
        for _ in 0..10 {
            assert_eq!(MultiHeader::read(&mut reader).unwrap().kind, code::GET_CHILDREN);
            let count = reader.count().unwrap().unwrap();
            (0..count).for_each(|_| assert!(reader.text().unwrap().is_some()));
            assert_eq!(count, 300);
            assert_eq!(MultiHeader::read(&mut reader).unwrap().kind, code::ERROR);
            assert_eq!(reader.i32().unwrap(), Code::NoNode.number());
        }
        assert!(MultiHeader::read(&mut reader).unwrap().done && reader.is_empty());
    }

    #[test]
    fn an_answer_that_would_be_too_long_is_an_error() {
        let mut bench = Bench::new(Settings { answer_bytes_max: 20_000, ..with_small_turns() });
        bench.load("/big", &[7; 5000]);
        bench.load("/many", b"");
        (0..3000).for_each(|number| bench.load(&format!("/many/{number:06}"), b""));
        let id = bench.connect();
        bench.read(id);
        bench.send(id, &multi_read(&[(code::GET_DATA, "/big"); 3]));
        bench.send(id, &multi_read(&[(code::GET_DATA, "/big"); 1000]));
        bench.send(id, &on_path(code::GET_CHILDREN, "/many", false));
        bench.send(id, &request(code::PING, &[]));
        let frames = bench.frames(id);
        let errors: Vec<i32> = frames.iter().map(|frame| header(frame).2).collect();
        assert_eq!(errors, [0, -5, -5, 0]);
        assert_eq!(bench.close_of(id), None);
        assert_eq!(bench.shard.core.places.free(Place::Long), LONG_MAX);
        assert_eq!(bench.shard.core.held, 0);
    }

    #[test]
    fn what_is_held_for_all_is_bounded_and_who_reads_is_spared() {
        let most = 100_000;
        let answer_bytes = Allowance::new(most, 1, 1000);
        let mut bench = Bench::new(Settings { answer_bytes, ..with_small_turns() });
        bench.load("/big", &[7; 5000]);
        let reader = bench.connect();
        let idle: Vec<ConnectionId> = (0..20).map(|_| bench.connect()).collect();
        bench.read(reader);
        for round in 0..20 {
            bench.now.monotonic_ms += 10;
            for &id in &idle[..=round] {
                bench.send(id, &on_path(code::GET_DATA, "/big", false));
            }
            bench.send(reader, &on_path(code::GET_DATA, "/big", false).repeat(4));
            while bench.shard.has_work() {
                bench.turn();
                assert!(bench.shard.core.held <= most, "{} are held", bench.shard.core.held);
            }
            assert_eq!(bench.read(reader), 4);
        }
        assert_eq!(bench.close_of(reader), None);
        let closed = idle.iter().filter(|&&id| bench.close_of(id) == Some(Close::AtOnce)).count();
        assert!((2..20).contains(&closed), "{closed} of 20 were closed");
        assert_eq!(bench.shard.counters().unread_connections_closed, closed as u64);
    }

    #[test]
    fn an_event_behind_a_large_answer_waits_for_it() {
        let limits =
            Settings { output_bytes_max: 1000, output_bytes_ceiling: 2000, ..with_small_turns() };
        let mut bench = Bench::new(limits);
        bench.load("/big", &[7; 5000]);
        let id = bench.connect();
        bench.read(id);
        bench.send(id, &on_path(code::GET_DATA, "/big", true));
        bench.change("/big");
        assert_eq!(bench.close_of(id), None);
        let frames = bench.frames(id);
        assert_eq!(frames.iter().map(|frame| header(frame).0).collect::<Vec<_>>(), [1, -1]);
    }

    #[test]
    fn watches_are_bounded_for_one_and_for_all() {
        let watches = Allowance::new(4, 1, 1);
        let limits = Settings { watches_per_connection_max: 3, watches, ..with_small_turns() };
        let mut bench = Bench::new(limits);
        bench.load("/a", b"");
        let ids = [bench.connect(), bench.connect()];
        ids.iter().for_each(|&id| assert_eq!(bench.read(id), 1));
        for path in ["/1", "/2", "/3", "/4", "/3"] {
            bench.send(ids[0], &on_path(code::EXISTS, path, true));
        }
        let errors = |frames: Vec<Vec<u8>>| -> Vec<i32> {
            frames.iter().map(|frame| header(frame).2).collect()
        };
        assert_eq!(errors(bench.frames(ids[0])), [-101, -101, -101, -125, -101]);
        for op in [code::GET_DATA, code::GET_DATA, code::GET_CHILDREN, code::EXISTS] {
            bench.send(ids[1], &on_path(op, "/a", true));
        }
        bench.send(ids[1], &on_path(code::GET_DATA, "/", true));
        assert_eq!(errors(bench.frames(ids[1])), [0, 0, 0, 0, -125]);
        assert_eq!(bench.close_of(ids[1]), None);
        // Clients do not look at this reply: it ends the connection, or they would wait in vain.
        let mut body = Vec::new();
        body.put_i64(0);
        body.put_count(Some(0));
        body.put_count(Some(1));
        body.put_text("/5");
        body.put_count(Some(0));
        bench.send(ids[1], &request(code::SET_WATCHES, &body));
        assert_eq!(errors(bench.frames(ids[1])), [-125]);
        assert_eq!(bench.close_of(ids[1]), Some(Close::AfterFlush));
        assert_eq!(bench.shard.broken_invariant(), None);
    }

    #[test]
    fn watches_are_brought_back_over_turns_and_none_is_missed() {
        let mut bench = Bench::new(with_small_turns());
        (0..200).for_each(|number| bench.load(&format!("/{number}"), b""));
        let id = bench.connect();
        bench.read(id);
        let mut body = Vec::new();
        body.put_i64(bench.zxid.0);
        body.put_count(Some(200));
        (0..200).for_each(|number| body.put_text(&format!("/{number}")));
        body.put_count(Some(0));
        body.put_count(Some(0));
        bench.send(id, &request(code::SET_WATCHES, &body));
        let mut changed = 0;
        while bench.shard.has_work() {
            bench.turn();
            // Some are watched by now, and some are not looked at yet.
            for number in [changed, 199 - changed] {
                let path = format!("/{number}");
                let txn = Txn::SetData { path: path.as_str().into(), data: None, version: 1 };
                bench.commit(&txn, ChangeKind::DataChanged, &path);
            }
            changed += 1;
        }
        assert!(4 < changed, "{changed} turns");
        let told = bench.frames(id).iter().filter(|frame| header(frame).0 == -1).count();
        assert_eq!((told, bench.shard.watch_count()), (2 * changed, 200 - 2 * changed));
    }

    #[test]
    fn who_had_many_watches_is_forgotten_over_turns_and_its_number_waits() {
        let mut bench = Bench::new(with_small_turns());
        let id = bench.connect();
        bench.read(id);
        for number in 0..2000 {
            bench.send(id, &read_with_watch(&format!("/{number}")));
            bench.read(id);
        }
        bench.shard.on_closed(bench.now, id);
        assert!(1000 < bench.shard.watch_count());
        bench.change("/1999");
        let next = bench.connect();
        assert_ne!(next.slot, id.slot);
        assert_eq!((bench.read(next), bench.shard.connection_count()), (1, 1));
        while bench.shard.has_work() {
            bench.turn();
        }
        assert_eq!(bench.shard.watch_count(), 0);
        assert_eq!(bench.accept().slot, id.slot);
        assert_eq!(bench.shard.broken_invariant(), None);
    }

    #[test]
    fn nothing_stays_of_those_who_came_and_went() {
        let mut bench = Bench::new(settings());
        for round in 0..1000 {
            let id = if round % 2 == 0 { bench.accept() } else { bench.connect() };
            bench.now.monotonic_ms += 1;
            bench.shard.on_closed(bench.now, id);
        }
        bench.tick(1);
        let Core { looks, heard, heard_last, addresses, .. } = &bench.shard.core;
        assert_eq!((looks.len(), heard.len(), heard_last.len(), addresses.len()), (0, 0, 0, 0));
    }

    #[test]
    fn one_get_ephemerals_at_a_time_is_with_the_pipeline() {
        let mut bench = Bench::new(with_small_turns());
        let ids = [bench.connect(), bench.connect()];
        ids.iter().for_each(|&id| assert_eq!(bench.read(id), 1));
        for &id in &ids {
            bench.send(id, &request(code::GET_EPHEMERALS, &[0; 4]).repeat(3));
        }
        for _ in 0..6 {
            bench.turn();
            assert_eq!(bench.out.requests.requests.len(), 1);
            bench.agree();
        }
        assert_eq!(ids.map(|id| bench.read(id)), [3, 3]);
        assert!(!bench.shard.has_work());
    }

    impl Bench {
        /// A znode with so many children.
        fn load_many(&mut self, path: &str, children: usize) {
            self.load(path, b"");
            (0..children).for_each(|number| self.load(&format!("{path}/{number}"), b""));
        }

        /// So many connections that have read all they got.
        fn crowd(&mut self, count: usize) -> Vec<ConnectionId> {
            let ids: Vec<ConnectionId> = (0..count).map(|_| self.connect()).collect();
            ids.iter().for_each(|&id| assert_eq!(self.read(id), 1));
            ids
        }

        /// So many bytes are written.
        fn write(&mut self, id: ConnectionId, bytes: usize) {
            let mut left = bytes;
            while 0 < left {
                let count = self.shard.outgoing(id).unwrap().bytes.len().min(left);
                assert!(0 < count, "there is as much to write");
                self.shard.on_written(self.now, id, count, &mut self.out);
                left -= count;
            }
        }

        /// How many connections are looked at in the next turn.
        fn queued(&mut self) -> usize {
            let (fresh, unfinished) = self.shard.core.turns.open_queue();
            self.shard.core.turns.close_queue();
            fresh + unfinished
        }

        /// Whole turns until nothing is left to do: who is answered, in order. In none of them more
        /// connections are looked at than have places.
        fn answered_in_turn(&mut self, ids: &[ConnectionId]) -> Vec<ConnectionId> {
            let mut answered = Vec::new();
            while self.shard.has_work() {
                assert!(self.queued() <= LONG_MAX, "{} are looked at", self.queued());
                self.turn();
                for &id in ids {
                    if !self.read_bytes(id).is_empty() && !answered.contains(&id) {
                        answered.push(id);
                    }
                }
            }
            answered
        }
    }

    fn set_watches(paths: impl Iterator<Item = String>, seen: Zxid) -> Vec<u8> {
        let paths: Vec<String> = paths.collect();
        let mut body = Vec::new();
        body.put_i64(seen.0);
        body.put_count(Some(paths.len()));
        paths.iter().for_each(|path| body.put_text(path));
        body.put_count(Some(0));
        body.put_count(Some(0));
        request(code::SET_WATCHES, &body)
    }

    #[test]
    fn who_waits_for_a_place_is_not_looked_at_before_and_comes_in_its_order() {
        let mut bench = Bench::new(with_small_turns());
        bench.load_many("/many", 6000);
        let ids = bench.crowd(60);
        for (number, &id) in ids.iter().enumerate() {
            if number % 2 == 0 {
                bench.send(id, &on_path(code::GET_CHILDREN, "/many", false));
            } else {
                // It finds out that it is long.
                bench.send(id, &multi_read(&[(code::GET_CHILDREN, "/many")]));
                bench.turn();
                bench.turn();
            }
        }
        assert!(ids.iter().all(|&id| bench.read_bytes(id).is_empty()));
        let answered = bench.answered_in_turn(&ids);
        assert_eq!(answered.len(), ids.len());
        for (number, id) in answered.iter().enumerate() {
            let place = ids.iter().position(|of| of == id).unwrap();
            assert!(place.abs_diff(number) < LONG_MAX, "the {place}th is answered as {number}th");
        }
        assert_eq!(bench.shard.core.places.free(Place::Long), LONG_MAX);
    }

    #[test]
    fn only_a_few_bring_many_watches_back_at_once_and_the_others_wait_in_line() {
        let mut bench = Bench::new(with_small_turns());
        let ids = bench.crowd(40);
        for &id in &ids {
            bench.send(id, &set_watches((0..200).map(|path| format!("/{path}")), bench.zxid));
        }
        // All have read what they are asked.
        (0..4).for_each(|_| bench.turn());
        assert_eq!(bench.shard.core.setting.len(), LONG_MAX);
        let answered = bench.answered_in_turn(&ids);
        assert_eq!(answered.len(), ids.len());
        assert_eq!(bench.shard.core.places.free(Place::Long), LONG_MAX);
        // None of the paths is there, and each of them is told so.
        assert_eq!((bench.shard.core.setting.len(), bench.shard.watch_count()), (0, 0));
    }

    #[test]
    fn no_place_is_lost_with_who_waits_for_it() {
        let mut bench = Bench::new(with_small_turns());
        bench.load_many("/many", 500);
        let ids = bench.crowd(LONG_MAX + 4);
        for &id in &ids {
            bench.send(id, &on_path(code::GET_CHILDREN, "/many", false));
        }
        let (holding, waiting) = ids.split_at(LONG_MAX);
        // One of those that wait; then one that has, so that its place goes to the next, who ends
        // before its turn.
        for id in [waiting[0], holding[0], waiting[1]] {
            bench.shard.on_closed(bench.now, id);
            assert_eq!(bench.shard.broken_invariant(), None);
        }
        bench.turn();
        let is_made = |bench: &mut Bench, id| {
            bench.shard.connections.find(id).unwrap().traffic.as_ref().unwrap().long.is_some()
        };
        assert!(is_made(&mut bench, waiting[2]) && !is_made(&mut bench, waiting[3]));
        while bench.shard.has_work() {
            bench.turn();
        }
        for &id in holding[1..].iter().chain(&waiting[2..]) {
            assert_eq!(names(&bench.frames(id)[0]).len(), 500);
        }
        assert_eq!(bench.shard.core.places.free(Place::Long), LONG_MAX);
    }

    #[test]
    fn a_place_that_is_not_needed_any_more_goes_to_the_next() {
        let mut bench = Bench::new(with_small_turns());
        bench.load_many("/many", 500);
        bench.load_many("/other", 65);
        let ids = bench.crowd(LONG_MAX + 2);
        for &id in &ids[..LONG_MAX] {
            bench.send(id, &on_path(code::GET_CHILDREN, "/many", false));
        }
        bench.send(ids[LONG_MAX], &on_path(code::GET_CHILDREN, "/other", false).repeat(2));
        bench.send(ids[LONG_MAX + 1], &on_path(code::GET_CHILDREN, "/many", false));
        bench.commit(&Txn::Delete { path: "/other".into() }, ChangeKind::Deleted, "/other");
        while bench.shard.has_work() {
            bench.turn();
        }
        let frames = bench.frames(ids[LONG_MAX]);
        let errors: Vec<i32> = frames.iter().map(|frame| header(frame).2).collect();
        assert_eq!(errors, [Code::NoNode.number(); 2]);
        assert_eq!(names(&bench.frames(ids[LONG_MAX + 1])[0]).len(), 500);
        assert_eq!(bench.shard.core.places.free(Place::Long), LONG_MAX);
    }

    #[test]
    fn what_fits_into_one_turn_waits_for_no_place() {
        let mut bench = Bench::new(with_small_turns());
        bench.load_many("/many", 5000);
        bench.load_many("/few", 60);
        let ids = bench.crowd(LONG_MAX + 3);
        for &id in &ids[..LONG_MAX] {
            bench.send(id, &on_path(code::GET_CHILDREN, "/many", false));
        }
        assert_eq!(bench.shard.core.places.free(Place::Long), 0);
        let few = [
            on_path(code::GET_CHILDREN, "/few", false),
            multi_read(&[(code::GET_DATA, "/few"); 25]),
            set_watches((0..60).map(|path| format!("/few/{path}")), bench.zxid),
        ];
        for (&id, ask) in ids[LONG_MAX..].iter().zip(&few) {
            // The first time there is less left of the turn than it takes.
            bench.send(id, &request(code::PING, &[]).repeat(10));
            bench.send(id, &ask.repeat(3));
            let mut frames = 0;
            for _ in 0..8 {
                let bytes = bench.read_bytes(id);
                let mut rest = &bytes[..];
                while let frame::Front::Frame { body } = frame::cut(rest, usize::MAX) {
                    rest = &rest[frame::PREFIX_BYTES + body.len()..];
                    frames += 1;
                }
                bench.turn();
            }
            assert_eq!(frames, 13);
            assert_eq!(bench.shard.core.places.free(Place::Long), 0);
        }
    }

    #[test]
    fn an_event_overtakes_what_waits_to_be_begun() {
        let mut bench = Bench::new(with_small_turns());
        bench.load_many("/many", 500);
        let ids = bench.crowd(LONG_MAX + 1);
        let id = ids[LONG_MAX];
        for &id in &ids[..LONG_MAX] {
            bench.send(id, &on_path(code::GET_CHILDREN, "/many", false));
        }
        bench.send(id, &on_path(code::EXISTS, "/many/1", true));
        assert_eq!(bench.read(id), 1);
        for &id in &ids[..LONG_MAX] {
            bench.send(id, &on_path(code::GET_CHILDREN, "/many", false));
        }
        bench.send(id, &multi_read(&[(code::GET_CHILDREN, "/many")]));
        (0..4).for_each(|_| bench.turn());
        assert!(bench.shard.connections.find(id).unwrap().traffic.as_ref().unwrap().long.is_some());
        let txn = Txn::Delete { path: "/many/1".into() };
        bench.commit(&txn, ChangeKind::Deleted, "/many/1");
        let frames = bench.frames(id);
        assert_eq!(frames.iter().map(|frame| header(frame).0).collect::<Vec<_>>(), [-1, 1]);
        assert_eq!(header(&frames[1]).1, bench.zxid.0, "it is read as of when it begins");
        let mut reader = Reader::new(&frames[1][16..]);
        MultiHeader::read(&mut reader).unwrap();
        assert_eq!(reader.count().unwrap(), Some(499));
    }

    #[test]
    fn an_answer_that_nobody_waits_for_is_waited_for_before_the_next_get_ephemerals() {
        let mut bench = Bench::new(with_small_turns());
        let ids = bench.crowd(3);
        let ask = request(code::GET_EPHEMERALS, &[0; 4]);
        bench.send(ids[0], &[request(code::SYNC, &[]), ask.clone()].concat());
        bench.send(ids[1], &ask);
        bench.shard.on_closed(bench.now, ids[0]);
        bench.send(ids[2], &ask);
        bench.turn();
        assert_eq!(bench.out.requests.requests.len(), 2, "those of the one that has gone");
        // The first answer is not that of getEphemerals.
        let later = bench.out.requests.requests.split_off(1);
        bench.agree();
        assert!(!bench.shard.has_work());
        bench.out.requests.requests.extend(later);
        for id in [ids[1], ids[2]] {
            bench.agree();
            bench.turn();
            assert_eq!(bench.out.requests.requests.len(), 1);
            assert_eq!(bench.out.requests.requests[0].connection, id);
        }
        // It is dropped, as the answer to what it asks.
        let reply = Reply {
            shard: SHARD,
            connection: ids[2],
            zxid: bench.zxid.next(),
            outcome: Outcome::Dropped,
        };
        bench.out.requests.requests.clear();
        bench.apply(vec![Item::Reply(reply)], String::new());
        assert_eq!(bench.shard.core.places.free(Place::Ephemerals), 1);
        assert_eq!(bench.shard.broken_invariant(), None);
    }

    /// A reply to getData, made as small ones are.
    fn data_reply(bench: &Bench, path: &str) -> Vec<u8> {
        let znode = bench.shard.core.tree.get(path).unwrap();
        let mut reply = Vec::new();
        frame::write(&mut reply, |out| {
            connection::put_reply_header(out, 1, bench.shard.view(), Code::Ok);
            read::put_data(&znode, out);
        });
        reply
    }

    #[test]
    fn a_large_value_is_answered_like_a_small_one_in_pieces_that_are_used_again() {
        let mut bench = Bench::new(with_small_turns());
        let id = bench.crowd(1)[0];
        let most = outbox::PIECE_BYTES;
        for (number, bytes) in [1, most - 1, most, most + 1, 3 * most, 300_000].iter().enumerate() {
            let path = format!("/{number}");
            let data: Vec<u8> = (0..*bytes).map(|at| (at * 31 % 251) as u8).collect();
            bench.load(&path, &data);
            let expected = [data_reply(&bench, "/zookeeper"), data_reply(&bench, &path)].concat();
            bench.send(id, &on_path(code::GET_DATA, "/zookeeper", false));
            bench.send(id, &on_path(code::GET_DATA, &path, false));
            bench.turn();
            assert!(bench.shard.outgoing(id).unwrap().bytes.len() < 2 * most);
            assert!(bench.read_bytes(id) == expected, "of {bytes} bytes");
            let asks = [(code::GET_DATA, &*path), (code::GET_DATA, "/zookeeper")];
            bench.send(id, &multi_read(&asks));
            (0..5).for_each(|_| bench.turn());
            let mut expected = Vec::new();
            frame::write(&mut expected, |out| {
                connection::put_reply_header(out, 1, bench.shard.view(), Code::Ok);
                for (kind, path) in asks {
                    MultiHeader { kind, done: false, err: 0 }.write(out);
                    read::put_data(&bench.shard.core.tree.get(path).unwrap(), out);
                }
                MULTI_END.write(out);
            });
            assert!(bench.read_bytes(id) == expected, "of {bytes} bytes in a multiRead");
        }
        assert_eq!(bench.shard.core.held, 0);
        assert_eq!(bench.shard.broken_invariant(), None);
    }

    #[test]
    fn the_end_of_a_session_is_no_answer_to_a_get_ephemerals() {
        for has_gone_before in [true, false] {
            let mut bench = Bench::new(with_small_turns());
            let ids = bench.crowd(2);
            let ask = request(code::GET_EPHEMERALS, &[0; 4]);
            bench.send(ids[0], &ask);
            bench.send(ids[1], &ask);
            let asked = mem::take(&mut bench.out.requests.requests);
            assert_eq!(asked.len(), 1);
            if has_gone_before {
                bench.shard.on_closed(bench.now, ids[0]);
            }
            let (connection, zxid) = (ids[0], bench.zxid.next());
            let reply = Reply { shard: SHARD, connection, zxid, outcome: Outcome::Ended };
            bench.apply(vec![Item::Reply(reply)], String::new());
            bench.turn();
            assert!(bench.out.requests.is_empty(), "the pipeline still makes the answer");
            bench.out.requests.requests = asked;
            bench.agree();
            bench.turn();
            assert_eq!(bench.out.requests.requests[0].connection, ids[1]);
            assert_eq!(bench.shard.broken_invariant(), None);
        }
    }

    #[test]
    fn children_that_are_gone_count_as_long_as_they_are_gone_through() {
        let mut bench = Bench::new(with_small_turns());
        bench.load_many("/few", 3);
        let pinned = bench.writer.reader();
        for number in 0..1000 {
            let path = format!("/few/gone-{number}");
            bench.create(&path);
            let txn = Txn::Delete { path: path.as_str().into() };
            bench.commit(&txn, ChangeKind::Deleted, &path);
            bench.writer.reclaim(usize::MAX);
        }
        let ids = bench.crowd(2);
        bench.send(ids[0], &on_path(code::GET_CHILDREN, "/few", false));
        bench.send(ids[1], &multi_read(&[(code::GET_CHILDREN, "/few")]));
        for _ in 0..1000 / 64 - 1 {
            ids.iter().for_each(|&id| assert!(bench.read_bytes(id).is_empty()));
            bench.turn();
        }
        assert_eq!(names(&bench.frames(ids[0])[0]).len(), 3);
        assert_eq!(bench.frames(ids[1]).len(), 1);
        drop(pinned);
        for number in 0..3 {
            let path = format!("/few/{number}");
            let txn = Txn::Delete { path: path.as_str().into() };
            bench.commit(&txn, ChangeKind::Deleted, &path);
        }
        bench.writer.reclaim(usize::MAX);
        bench.send(ids[0], &on_path(code::GET_CHILDREN, "/few", false));
        assert_eq!(bench.read_bytes(ids[0]).len(), 4 + 16 + 4, "at once");
    }

    #[test]
    fn long_names_are_asked_for_before_they_are_written() {
        let most = 300_000;
        let mut bench = Bench::new(Settings { answer_bytes_max: most, ..with_small_turns() });
        for (parent, children) in [("/fits", 25), ("/not", 60)] {
            bench.load(parent, b"");
            for number in 0..children {
                bench.load(&format!("{parent}/{number:010000}"), b"");
            }
        }
        let id = bench.crowd(1)[0];
        for path in ["/fits", "/not"] {
            bench.send(id, &on_path(code::GET_CHILDREN, path, false));
            bench.send(id, &multi_read(&[(code::GET_CHILDREN, path)]));
        }
        let (mut bytes, mut before, mut turns) = (Vec::new(), 0, 0);
        while bench.shard.has_work() {
            bench.turn();
            let held = bench.shard.core.held;
            assert!(held <= most + 1000, "{held} bytes are held");
            assert!(held <= before + outbox::PIECE_BYTES + 21_000, "{held} after {before}");
            bytes.append(&mut bench.read_bytes(id));
            before = bench.shard.core.held;
            turns += 1;
        }
        assert!(8 < turns, "{turns} turns");
        let (mut rest, mut frames) = (&bytes[..], Vec::new());
        while let frame::Front::Frame { body } = frame::cut(rest, usize::MAX) {
            rest = &rest[frame::PREFIX_BYTES + body.len()..];
            frames.push((header(body).2, body.len() / 10_000));
        }
        assert_eq!(frames, [(0, 25), (0, 25), (-5, 0), (-5, 0)]);
    }

    #[test]
    fn what_a_set_watches_takes_is_counted() {
        let mut bench = Bench::new(with_small_turns());
        let id = bench.crowd(1)[0];
        bench.send(id, &set_watches((0..3000).map(|_| String::new()), bench.zxid));
        let mut most = 0;
        while bench.shard.has_work() {
            bench.turn();
            most = most.max(bench.shard.core.held);
        }
        // The request itself has 12 thousand bytes.
        assert!(3000 * 16 < most, "{most} bytes are held");
        assert_eq!((bench.frames(id).len(), bench.shard.watch_count()), (1, 1));
        assert_eq!(bench.shard.core.held, 0);
    }

    #[test]
    fn events_behind_an_answer_that_is_being_made_are_not_taken_for_unread() {
        let limits = Settings { output_bytes_ceiling: 2000, ..with_small_turns() };
        let limits = Settings { output_bytes_max: 1000, ..limits };
        let mut bench = Bench::new(limits);
        bench.load_many("/many", 1000);
        let id = bench.crowd(1)[0];
        let mut body = Vec::new();
        body.put_text("/many/1");
        body.put_i32(0);
        bench.send(id, &request(code::ADD_WATCH, &body));
        assert_eq!(bench.read(id), 1);
        bench.send(id, &on_path(code::GET_CHILDREN, "/many", false));
        (0..100).for_each(|_| bench.change("/many/1"));
        assert_eq!(bench.close_of(id), None);
        while bench.shard.has_work() {
            bench.turn();
        }
        // It has not had the time to read them.
        bench.change("/many/1");
        assert_eq!(bench.close_of(id), None);
        assert_eq!(bench.frames(id).len(), 1 + 100 + 1);
        (0..100).for_each(|_| bench.change("/many/1"));
        assert_eq!(bench.close_of(id), Some(Close::AtOnce));
    }

    #[test]
    fn events_that_were_read_are_not_counted_though_there_always_is_more_to_read() {
        let limits = Settings { output_bytes_ceiling: 4000, ..with_small_turns() };
        let mut bench = Bench::new(Settings { output_bytes_max: 4000, ..limits });
        bench.load("/big", &[7; 200_000]);
        let id = bench.crowd(1)[0];
        let mut body = Vec::new();
        body.put_text("/w");
        body.put_i32(0);
        bench.send(id, &request(code::ADD_WATCH, &body));
        for _ in 0..5000 {
            bench.change("/w");
            bench.send(id, &request(code::PING, &[]));
            // All but a few bytes.
            bench.write(id, bench.shard.core.held - 3);
        }
        bench.send(id, &on_path(code::GET_DATA, "/big", false));
        bench.change("/w");
        assert_eq!(bench.close_of(id), None);
    }

    #[test]
    fn who_hoards_makes_room_and_not_who_is_on_the_shard_that_needs_it() {
        let answer_bytes = Allowance::new(200_000, 2, 1000);
        let settings = Settings { answer_bytes, ..with_small_turns() };
        let (mut hoards, mut needs) = (Bench::new(settings.clone()), Bench::new(settings));
        for bench in [&mut hoards, &mut needs] {
            bench.load("/big", &[7; 5000]);
        }
        let (idle, asks) = (hoards.crowd(30), needs.crowd(15));
        for &id in &idle {
            hoards.send(id, &on_path(code::GET_DATA, "/big", false));
        }
        assert!(150_000 < hoards.shard.core.held);
        for &id in &asks {
            needs.send(id, &on_path(code::GET_DATA, "/big", false));
        }
        assert!(asks.iter().all(|&id| needs.close_of(id).is_none()), "it has less than its part");
        hoards.turn();
        assert!(hoards.shard.core.held + needs.shard.core.held <= 200_000);
        let left = idle.iter().filter(|&&id| hoards.close_of(id).is_none()).count();
        assert!((20..26).contains(&left), "{left} of 30 are left");
        let closed = hoards.shard.counters().unread_connections_closed;
        assert_eq!((hoards.shard.core.shortage.connections, 30 - left as u64), (closed, closed));
        hoards.tick(500);
        hoards.tick(500);
        assert_eq!(hoards.shard.core.shortage.connections, 0, "the shortage is over");
    }

    #[test]
    fn a_slow_reader_is_spared_before_one_that_does_not_read() {
        let answer_bytes = Allowance::new(100_000, 1, 1000);
        let mut bench = Bench::new(Settings { answer_bytes, ..with_small_turns() });
        bench.load("/big", &[7; 5000]);
        let ids = bench.crowd(10);
        let slow = ids[0];
        bench.send(slow, &on_path(code::GET_DATA, "/big", false).repeat(4));
        for &id in &ids[1..] {
            for _ in 0..10 {
                bench.now.monotonic_ms += 100;
                bench.send(slow, &on_path(code::GET_DATA, "/big", false));
                bench.turn();
                bench.write(slow, 5090);
                let held = bench.shard.connections.find(slow).unwrap().traffic.as_ref().unwrap();
                assert!(15_000 < held.held(), "it is always behind");
            }
            bench.send(id, &on_path(code::GET_DATA, "/big", false).repeat(3));
            while bench.shard.has_work() {
                bench.turn();
            }
        }
        assert_eq!(bench.close_of(slow), None);
        assert!(ids.iter().any(|&id| bench.close_of(id) == Some(Close::AtOnce)));
    }

    #[test]
    fn what_is_not_watched_any_more_others_may_watch() {
        let watches = Allowance::new(1000, 2, 10);
        let settings = Settings { watches, ..with_small_turns() };
        let (mut one, mut other) = (Bench::new(settings.clone()), Bench::new(settings));
        let (watcher, next) = (one.crowd(1)[0], other.crowd(1)[0]);
        for number in 0..870 {
            one.send(watcher, &read_with_watch(&format!("/{number}")));
            one.read(watcher);
        }
        one.shard.on_closed(one.now, watcher);
        while one.shard.has_work() {
            one.turn();
        }
        one.tick(1);
        for number in 0..500 {
            other.send(next, &read_with_watch(&format!("/{number}")));
            assert_eq!(header(&other.frames(next)[0]).2, Code::NoNode.number());
        }
    }

    fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
        let op = prop_oneof![0..25i32, 98..110i32, Just(-11), Just(-10), any::<i32>()];
        let text = prop_oneof![
            Just(vec![0, 0, 0, 1, b'/']),
            Just(vec![0, 0, 0, 6, b'd', b'i', b'g', b'e', b's', b't']),
            Just(vec![0xff; 4]),
            prop::collection::vec(any::<u8>(), 0..12),
            Just(vec![0, 0, 0, 0]),
            Just(vec![0, 0, 0, 1]),
        ];
        let body = prop::collection::vec(text, 0..6).prop_map(|parts| parts.concat());
        prop_oneof![
            6 => (op, body).prop_map(|(op, body)| request(op, &body)),
            1 => prop::collection::vec(any::<u8>(), 0..40),
            1 => Just(connect_request()),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Whatever comes, in whatever pieces, no invariant breaks and nothing is kept for ever.
        #[test]
        fn no_bytes_break_a_shard(
            steps in prop::collection::vec((0..10u8, 0..3usize, any_bytes(), 1..50usize), 0..60),
        ) {
            let mut bench = Bench::new(settings());
            let mut ids: Vec<ConnectionId> = (0..3).map(|_| bench.connect()).collect();
            for (step, who, bytes, size) in steps {
                let id = ids[who];
                match step {
                    0..=3 => bytes.chunks(size).for_each(|piece| bench.send(id, piece)),
                    4 => bench.agree(),
                    5 => bench.change("/"),
                    6 => {
                        let left = bench.shard.outgoing(id).map_or(0, |left| left.bytes.len());
                        let count = left.min(size);
                        bench.shard.on_written(bench.now, id, count, &mut bench.out);
                    }
                    7 => bench.tick(size as i64 * 20),
                    8 => bench.shard.on_turn(bench.now, &mut bench.out),
                    _ => {
                        bench.shard.on_closed(bench.now, id);
                        ids[who] = if size % 2 == 0 { bench.accept() } else { bench.connect() };
                    }
                }
                prop_assert_eq!(bench.shard.broken_invariant(), None);
            }
            for id in ids {
                bench.shard.on_closed(bench.now, id);
            }
            bench.agree();
            while bench.shard.has_work() {
                bench.shard.on_turn(bench.now, &mut bench.out);
            }
            let left = (bench.shard.connection_count(), bench.shard.watch_count());
            prop_assert_eq!(left, (0, 0));
            prop_assert_eq!(bench.shard.outstanding(), 0);
            prop_assert_eq!(bench.shard.broken_invariant(), None);
        }
    }
}
