//! The shard as plain values: what four-letter words and metrics are made of.

use std::net::SocketAddr;

use crate::exchange::ConnectionId;
use crate::types::{SessionId, Zxid};

use super::Shard;
use super::connection::{State, Stats};

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

/// A path and the sessions that watch it in the data table (`wchp`); child watches are not shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchInfo<'a> {
    pub path: &'a str,
    pub sessions: Vec<SessionId>,
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
    pub latency_min_ms: Option<u32>,
    pub latency_max_ms: u32,
    pub latency_sum_ms: u64,
    pub latency_count: u64,
    pub auth_failed: u64,
    pub large_requests_rejected: u64,
    pub connections_throttled: u64,
    pub throttled_ops: u64,
    pub sessionless_connections_expired: u64,
    pub silent_connections_closed: u64,
    pub unread_connections_closed: u64,
}

impl Counters {
    pub(super) fn on_reply(&mut self, latency_ms: u32) {
        self.packets_sent += 1;
        self.latency_min_ms = Some(self.latency_min_ms.map_or(latency_ms, |m| m.min(latency_ms)));
        self.latency_max_ms = self.latency_max_ms.max(latency_ms);
        self.latency_sum_ms += u64::from(latency_ms);
        self.latency_count += 1;
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
    /// Every connection, by slot.
    pub fn connections(&self) -> impl Iterator<Item = ConnectionInfo> {
        self.connections.iter().map(|(connection, of)| {
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

    /// Who watches what, of the data table. Walks everything.
    pub fn watches(&self) -> impl Iterator<Item = WatchInfo<'_>> {
        self.core.watches.data_watches().map(|(path, connections)| {
            let session = |slot| self.connections.session_at(slot);
            WatchInfo { path, sessions: connections.into_iter().filter_map(session).collect() }
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
