//! One client's connection: how far it has come, what of it is unread, unwritten, unanswered.
//!
//! ```text
//! Connecting ── ConnectRequest ──► Opening ── Connected ──► Live ── closeSession ──► Leaving
//!     │ four letters                  │ Refused              │ a fault, Dropped        │ answered
//!     ▼                               ▼                      ▼                         ▼
//!   Word ─────────── answered ────► Closing: what is in `output` is written, then it ends
//! ```
//!
//! Most connections are idle, so what only a busy one needs is apart (`Traffic`) and goes back to
//! the shard's pool as soon as it is empty.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::jute::Write as _;
use crate::jute::frame;
use crate::record::code::Code;
use crate::record::data::Id;
use crate::types::{Deadline, Now, SessionId, Xid, Zxid};

use super::buffer::Buffer;
use super::long::Long;
use super::outbox::Outbox;
use super::places::Wait;
use super::turns::Spent;

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) remote: SocketAddr,
    /// Who it is. Most are nobody but their address, and share it with others from there.
    pub(super) ids: Arc<[Id]>,
    pub(super) state: State,
    /// `None` while nothing is under way.
    pub(super) traffic: Option<Box<Traffic>>,
    /// When bytes last came, on the monotonic clock.
    pub(super) heard_ms: i64,
    /// When the shard next looks whether this connection is silent.
    pub(super) look: Deadline,
    /// Among those that the next `Touched` reports.
    pub(super) is_heard: bool,
    /// In `Output::ready` and not looked at since.
    pub(super) is_ready: bool,
    /// The same of `Output::later`.
    pub(super) is_later: bool,
    pub(super) stats: Stats,
}

/// How far a connection has come; each stage holds only what that stage knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The first frame has not come, or not whole.
    Connecting,
    /// The pipeline was asked for a session. What follows is kept and not looked at.
    Opening { timeout_ms: i32, read_only: Option<bool> },
    /// Serving.
    Live { session: SessionId, timeout_ms: i32 },
    /// closeSession is on its way: what follows it has no reply.
    Leaving { session: SessionId, timeout_ms: i32 },
    /// A four-letter word waits for the shell's answer. What follows it is ignored.
    Word,
    /// What is in `output` is written first, or is not.
    Closing(Close),
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    AfterFlush,
    AtOnce,
}

/// What is under way.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// Bytes that came and could not be acted on yet: part of a frame, or frames that wait.
    pub(super) input: Buffer,
    /// Replies and events that are not written yet.
    pub(super) output: Outbox,
    /// What the pipeline has not answered yet, in order.
    pub(super) unanswered: VecDeque<Unanswered>,
    /// Of the last reply, its length's four not counted.
    pub(super) reply_bytes: usize,
    /// The request that is being answered over several turns. What follows it waits.
    pub(super) long: Option<Box<Long>>,
    /// The first frame of `input` is whole and cannot be acted on yet.
    pub(super) is_waiting: bool,
    /// Goes on in the next turn in which there is room, or once it has a place.
    pub(super) is_queued: bool,
    /// For a place, if it waits for one.
    pub(super) wait: Option<Wait>,
    /// What was done for it in the turn that it was last served in.
    pub(super) spent: Spent,
    /// Since about when there is something that the client has not read.
    pub(super) unread_since_ms: i64,
    /// `None` where it came in this step.
    pub(super) arrived: Option<Arrived>,
}

/// When the front of `input` came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived {
    pub(super) at_ms: i64,
    /// How many bytes of `input`, from its front, had come by then.
    pub(super) bytes: usize,
}

/// A request that is with the pipeline.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unanswered {
    pub(super) xid: Xid,
    pub(super) op: i32,
    pub(super) received_ms: i64,
    /// What it counts towards `Settings::large_requests_bytes_max`.
    pub(super) large_bytes: u32,
}

impl Connection {
    pub(super) fn new(remote: SocketAddr, ids: Arc<[Id]>, now: Now) -> Connection {
        Connection {
            remote,
            ids,
            state: State::Connecting,
            traffic: None,
            heard_ms: now.monotonic_ms,
            look: Deadline(0),
            is_heard: false,
            is_ready: false,
            is_later: false,
            stats: Stats::new(now),
        }
    }

    pub(super) fn session(&self) -> Option<(SessionId, i32)> {
        match self.state {
            State::Live { session, timeout_ms } | State::Leaving { session, timeout_ms } => {
                Some((session, timeout_ms))
            }
            State::Connecting | State::Opening { .. } | State::Word | State::Closing(_) => None,
        }
    }

    /// What comes from here on is thrown away.
    pub(super) fn is_deaf(&self) -> bool {
        match self.state {
            State::Leaving { .. } | State::Word | State::Closing(_) => true,
            State::Connecting | State::Opening { .. } | State::Live { .. } => false,
        }
    }

    pub(super) fn is_closing(&self) -> bool {
        matches!(self.state, State::Closing(_))
    }
}

impl Traffic {
    pub(super) fn is_empty(&self) -> bool {
        self.input.is_empty()
            && self.output.is_empty()
            && self.unanswered.is_empty()
            && self.long.is_none()
    }

    /// What is held in memory for the client: answers that are made or being made, and events.
    pub(super) fn held(&self) -> usize {
        self.output.len() + self.long.as_ref().map_or(0, |long| long.held())
    }

    /// The client has read `count` bytes of what is held for it: what is left came later. It is taken
    /// to have come evenly.
    pub(super) fn note_read(&mut self, now: Now, count: usize) {
        let unread_ms = now.monotonic_ms.saturating_sub(self.unread_since_ms);
        if 0 < unread_ms {
            let later_ms = unread_ms.saturating_mul(count as i64) / self.held().max(1) as i64;
            self.unread_since_ms += later_ms;
        }
    }

    /// `count` bytes of the input were acted on.
    pub(super) fn note_progress(&mut self, count: usize) {
        self.arrived = self.arrived.and_then(|arrived| {
            let bytes = arrived.bytes.checked_sub(count).filter(|&bytes| bytes > 0)?;
            Some(Arrived { bytes, ..arrived })
        });
    }

    /// When the front of the input came, as far as is known.
    pub(super) fn received_ms(&self, now: Now) -> i64 {
        self.arrived.map_or(now.monotonic_ms, |arrived| arrived.at_ms)
    }

    /// Writes a reply; `body` appends what follows the header.
    pub(super) fn reply(
        &mut self,
        xid: i32,
        zxid: Zxid,
        code: Code,
        body: impl FnOnce(&mut Vec<u8>),
    ) {
        self.reply_bytes = self.output.append(|out| {
            let written = frame::try_write(out, |out| {
                put_reply_header(out, xid, zxid, code);
                body(out);
            });
            let too_long = |_| {
                let error = Code::MarshallingError;
                frame::try_write(out, |out| put_reply_header(out, xid, zxid, error))
            };
            written.or_else(too_long).unwrap_or(0)
        });
    }
}

pub(super) fn put_reply_header(out: &mut Vec<u8>, xid: i32, zxid: Zxid, code: Code) {
    out.put_i32(xid);
    out.put_i64(zxid.0);
    out.put_i32(code.number());
}

/// What `cons` shows of a connection. Latencies are in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    pub received: u64,
    pub sent: u64,
    /// Milliseconds since 1970.
    pub established_wall_ms: i64,
    /// The opcode of the last request; `None` before the first.
    pub last_op: Option<i32>,
    /// -1 before the first reply.
    pub last_cxid: i32,
    pub last_zxid: Zxid,
    /// On the monotonic clock; 0 before the first reply.
    pub last_response_ms: i64,
    pub last_latency_ms: u32,
    /// `None` before the first reply.
    pub latency_min_ms: Option<u32>,
    pub latency_max_ms: u32,
    pub latency_sum_ms: u64,
    pub latency_count: u64,
}

impl Stats {
    fn new(now: Now) -> Stats {
        Stats {
            received: 0,
            sent: 0,
            established_wall_ms: now.wall_ms,
            last_op: None,
            last_cxid: -1,
            last_zxid: Zxid(-1),
            last_response_ms: 0,
            last_latency_ms: 0,
            latency_min_ms: None,
            latency_max_ms: 0,
            latency_sum_ms: 0,
            latency_count: 0,
        }
    }

    /// `crst`.
    pub(super) fn reset(&mut self) {
        let established_wall_ms = self.established_wall_ms;
        *self = Stats::new(Now { monotonic_ms: 0, wall_ms: established_wall_ms });
    }

    /// A request was answered.
    pub(super) fn on_reply(&mut self, now: Now, answered: &Answered) {
        let latency_ms = answered.latency_ms(now);
        self.sent += 1;
        self.last_op = Some(answered.op);
        self.last_cxid = answered.xid;
        self.last_zxid = answered.zxid;
        self.last_response_ms = now.monotonic_ms;
        self.last_latency_ms = latency_ms;
        self.latency_min_ms = Some(self.latency_min_ms.map_or(latency_ms, |m| m.min(latency_ms)));
        self.latency_max_ms = self.latency_max_ms.max(latency_ms);
        self.latency_sum_ms += u64::from(latency_ms);
        self.latency_count += 1;
    }
}

/// A request whose reply is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answered {
    pub(super) xid: i32,
    pub(super) op: i32,
    pub(super) zxid: Zxid,
    pub(super) received_ms: i64,
    pub(super) by: By,
}

/// Who answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    Shard,
    Pipeline,
}

impl Answered {
    pub(super) fn latency_ms(&self, now: Now) -> u32 {
        let latency_ms = now.monotonic_ms.saturating_sub(self.received_ms).max(0);
        u32::try_from(latency_ms).unwrap_or(u32::MAX)
    }
}

// What an idle connection costs here; a slot, its place among the watches and its deadline are
// 40 bytes more.
const _: () = assert!(size_of::<Connection>() <= 192);
