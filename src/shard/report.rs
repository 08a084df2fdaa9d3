//! The shard as plain values: what four-letter words and metrics are made of.

use std::net::SocketAddr;
use std::ops::Range;

use crate::exchange::ConnectionId;
use crate::metrics::Tally;
use crate::record::op::{EventType, code};
use crate::types::{SessionId, Zxid};

use super::Shard;
use super::connection::{Answered, By, State, Stats};
use super::watch::WatchPlace;

/// One connection, as `cons` shows it.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    pub connection: ConnectionId,
    pub remote: SocketAddr,
    /// The session and its timeout in milliseconds.
    pub session: Option<(SessionId, i32)>,
    /// Requests that are not answered yet.
    pub queued: usize,
    /// Whether it is read from, and whether there is something to write.
    pub reads: bool,
    pub writes: bool,
    pub stats: Stats,
}

/// Values that were measured: how many, their sum, the least and the greatest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    pub count: u64,
    pub sum: u64,
    /// `None` before the first.
    pub min: Option<u64>,
    pub max: u64,
}

impl Measured {
    pub(super) fn add(&mut self, value: u64) {
        self.count += 1;
        self.sum += value;
        self.min = Some(self.min.map_or(value, |min| min.min(value)));
        self.max = self.max.max(value);
    }
}

/// How many opcodes are counted: those of requests, and the two below 0 behind them.
const OPS: usize = code::WHO_AM_I as usize + 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ops([u64; OPS]);

impl Default for Ops {
    fn default() -> Ops {
        Ops([0; OPS])
    }
}

fn place_of(op: i32) -> Option<usize> {
    match op {
        code::CREATE_SESSION => Some(OPS - 2),
        code::CLOSE_SESSION => Some(OPS - 1),
        _ => usize::try_from(op).ok().filter(|&place| place < OPS - 2),
    }
}

/// What a shard has done since it began, or since `reset_counters`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub packets_received: u64,
    pub packets_sent: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    /// Watch events, which are among the packets sent.
    pub events: u64,
    ops: Ops,
    /// Milliseconds that requests took which were answered here, and which went to the pipeline.
    pub read_latency_ms: Measured,
    pub update_latency_ms: Measured,
    /// The same, by how often each came.
    pub read_latencies: Tally,
    pub update_latencies: Tally,
    /// Bytes of replies, their length's four not counted.
    pub response_bytes: Measured,
    pub last_response_bytes: u64,
    /// Bytes of events.
    pub watch_bytes: u64,
    /// How many watches a change of a kind found.
    pub created_watches: Measured,
    pub deleted_watches: Measured,
    pub changed_watches: Measured,
    pub children_watches: Measured,
    pub connections_accepted: u64,
    pub latency_min_ms: Option<u32>,
    pub latency_max_ms: u32,
    pub latency_sum_ms: u64,
    pub latency_count: u64,
    pub auth_failed: u64,
    pub large_requests_rejected: u64,
    pub connections_throttled: u64,
    /// Tokens that were missing each time somebody wanted to connect.
    pub connection_token_deficit: Measured,
    pub throttled_ops: u64,
    pub sessionless_connections_expired: u64,
    pub silent_connections_closed: u64,
    pub unread_connections_closed: u64,
}

impl Counters {
    /// How many requests with this opcode were answered.
    #[must_use]
    pub fn op_count(&self, op: i32) -> u64 {
        place_of(op).map_or(0, |place| self.ops.0[place])
    }

    pub(super) fn on_reply(&mut self, answered: &Answered, latency_ms: u32, bytes: usize) {
        self.packets_sent += 1;
        if let Some(place) = place_of(answered.op) {
            self.ops.0[place] += 1;
        }
        let (measured, tally) = match answered.by {
            By::Shard => (&mut self.read_latency_ms, &mut self.read_latencies),
            By::Pipeline => (&mut self.update_latency_ms, &mut self.update_latencies),
        };
        measured.add(u64::from(latency_ms));
        tally.add(u64::from(latency_ms));
        self.response_bytes.add(bytes as u64);
        self.last_response_bytes = bytes as u64;
        self.latency_min_ms = Some(self.latency_min_ms.map_or(latency_ms, |m| m.min(latency_ms)));
        self.latency_max_ms = self.latency_max_ms.max(latency_ms);
        self.latency_sum_ms += u64::from(latency_ms);
        self.latency_count += 1;
    }

    /// A change found this many watches.
    pub(super) fn on_event(&mut self, event: EventType, watches: usize) {
        let measured = match event {
            EventType::NodeCreated => &mut self.created_watches,
            EventType::NodeDeleted => &mut self.deleted_watches,
            EventType::NodeDataChanged => &mut self.changed_watches,
            EventType::NodeChildrenChanged => &mut self.children_watches,
        };
        measured.add(watches as u64);
    }

    pub(super) fn on_silent(&mut self, state: State) {
        match state {
            State::Connecting | State::Word => self.sessionless_connections_expired += 1,
            State::Opening { .. }
            | State::Live { .. }
            | State::Leaving { .. }
            | State::Closing(_) => self.silent_connections_closed += 1,
        }
    }
}

impl Shard {
    /// The connections in these slots.
    pub fn connections(&self, slots: Range<u32>) -> impl Iterator<Item = ConnectionInfo> {
        self.connections.iter_in(slots).map(|(connection, of)| {
            let traffic = of.traffic.as_deref();
            ConnectionInfo {
                connection,
                remote: of.remote,
                session: of.session(),
                queued: traffic.map_or(0, |traffic| traffic.unanswered.len()),
                reads: matches!(
                    of.state,
                    State::Connecting | State::Opening { .. } | State::Live { .. }
                ),
                writes: traffic.is_some_and(|traffic| !traffic.output.is_empty()),
                stats: of.stats,
            }
        })
    }

    /// How many slots there are for connections, whether they are used or not.
    #[must_use]
    pub fn slot_count(&self) -> u32 {
        self.connections.slot_count()
    }

    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.connections.len()
    }

    /// Requests that the pipeline has not answered.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.core.outstanding
    }

    /// The zxid whose state this shard answers from.
    #[must_use]
    pub fn view(&self) -> Zxid {
        self.core.tree.view()
    }

    /// Pairs of path and connection in both tables: `zk_watch_count`.
    #[must_use]
    pub fn watch_count(&self) -> usize {
        self.core.watches.len()
    }

    /// Who watches what, of the data table (`wchp`; child watches are not shown): takes so many steps
    /// from a place on, and shows `see` paths with sessions that watch them, one with very many in
    /// parts. Says where to go on, if that was not all; what is watched meanwhile may be among the rest
    /// or not.
    pub fn watches(
        &self,
        from: WatchPlace,
        steps: usize,
        mut see: impl FnMut(&str, &mut dyn Iterator<Item = SessionId>),
    ) -> Option<WatchPlace> {
        self.core.watches.data_watches(from, steps, |path, connections| {
            let sessions = connections.iter().filter_map(|&slot| self.connections.session_at(slot));
            see(path, &mut { sessions });
        })
    }

    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.core.counters
    }

    /// `srst`.
    pub fn reset_counters(&mut self) {
        self.core.counters = Counters::default();
    }

    /// `crst`.
    pub fn reset_connection_stats(&mut self) {
        self.connections.for_each(|connection| connection.stats.reset());
    }
}
