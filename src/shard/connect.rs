//! How a connection begins: with a four-letter word, or with a ConnectRequest.
//!
//! The session itself is the pipeline's: here the timeout is negotiated, and the answer is put
//! into bytes. A read-only server lets in only clients that accept one. Whether the client has seen
//! more than this server is decided there too, for a shard's view may be behind that of the shard
//! where the client was before.
//!
//! After `NIOServerCnxn.checkFourLetterWord` and `ZooKeeperServer.processConnectRequest`.

use crate::exchange::{Request, Span, Want};
use crate::jute::record::Record as _;
use crate::jute::{Reader, frame};
use crate::record::op::code;
use crate::record::proto::{ConnectRequest, ConnectResponse};
use crate::types::{SessionId, Xid, Zxid};

use super::connection::{Answered, By, State, Unanswered};
use super::throttle::Newcomer;
use super::{Close, Core, Step, Word};

/// What a connection may say instead of beginning a session.
pub(super) const WORDS: [&[u8; 4]; 18] = [
    b"conf", b"cons", b"crst", b"dirs", b"dump", b"envi", b"gtmk", b"hash", b"isro", b"mntr",
    b"ruok", b"srst", b"srvr", b"stat", b"stmk", b"wchc", b"wchp", b"wchs",
];
/// What a telnet sends when it is interrupted.
const TELNET_CLOSE: [u8; 4] = [0xff, 0xf4, 0xff, 0xfd];
/// Followed by a mask of 8 bytes.
const SET_TRACE_MASK: [u8; 4] = *b"stmk";

/// What the first bytes of a connection are.
pub(super) enum Opening {
    /// Too few to say.
    Unclear,
    /// The length of a frame.
    Frame,
    /// Dealt with.
    Word,
}

impl Core {
    /// Looks for a four-letter word at the very beginning.
    pub(super) fn on_opening(&mut self, step: &mut Step<'_>, input: &[u8]) -> Opening {
        let Some((word, rest)) = input.split_first_chunk::<4>() else { return Opening::Unclear };
        if *word == TELNET_CLOSE {
            self.end(step, Close::AtOnce);
            return Opening::Word;
        }
        if !WORDS.contains(&word) {
            return Opening::Frame;
        }
        let mask = match rest.first_chunk() {
            _ if *word != SET_TRACE_MASK => None,
            Some(mask) => Some(i64::from_be_bytes(*mask)),
            None => return Opening::Unclear,
        };
        step.connection.state = State::Word;
        step.connection.stats.received += 1;
        self.counters.packets_received += 1;
        let serves = self.serves;
        step.out.words.push(Word { connection: step.id, word: *word, mask, serves });
        Opening::Word
    }

    /// The first frame.
    pub(super) fn on_connect(&mut self, step: &mut Step<'_>, body: &[u8]) {
        step.connection.stats.received += 1;
        self.counters.packets_received += 1;
        let mut reader = Reader::with_field_bytes_max(body, usize::MAX);
        let Ok(request) = ConnectRequest::read(&mut reader) else {
            return self.end(step, Close::AtOnce);
        };
        if let Some(throttle) = &mut self.connect_throttle {
            let is_new = request.session == 0;
            let newcomer = if is_new { Newcomer::New } else { Newcomer::Renewed };
            let is_admitted = throttle.admits(step.now, newcomer);
            self.counters.connection_token_deficit.add(throttle.deficit());
            if !is_admitted {
                self.counters.connections_throttled += 1;
                return self.end(step, Close::AtOnce);
            }
        }
        if self.is_read_only() && request.read_only != Some(true) {
            return self.end(step, Close::AtOnce);
        }
        let settings = &self.settings;
        let timeout_ms = request
            .timeout_ms
            .clamp(settings.session_timeout_min_ms, settings.session_timeout_max_ms);
        let last_zxid_seen = Zxid(request.last_zxid_seen);
        let read_only = request.read_only;
        step.connection.state = State::Opening { timeout_ms, read_only };
        step.connection.heard_ms = step.now.monotonic_ms;
        self.look_again(step.now, step.id, step.connection);
        let want = if request.session == 0 {
            Want::Open { timeout_ms, last_zxid_seen }
        } else {
            match request.password.and_then(|password| password.try_into().ok()) {
                Some(password) => Want::Resume { timeout_ms, last_zxid_seen, password },
                // Only sixteen bytes can be right.
                None => return self.refuse(step, read_only),
            }
        };
        let session = SessionId(request.session);
        self.ask(step, session, Xid(0), code::CREATE_SESSION, want, &[]);
    }

    /// Hands a request on.
    pub(super) fn ask(
        &mut self,
        step: &mut Step<'_>,
        session: SessionId,
        xid: Xid,
        op: i32,
        want: Want,
        body: &[u8],
    ) {
        let requests = &mut step.out.requests;
        let start = requests.bodies.len();
        requests.bodies.extend_from_slice(body);
        requests.requests.push(Request {
            connection: step.id,
            session,
            xid,
            want,
            body: Span::since(start, requests.bodies.len()),
            ids: step.connection.ids.clone(),
        });
        let is_large = self.settings.large_request_bytes.is_some_and(|limit| limit < body.len());
        let large_bytes = if is_large { u32::try_from(body.len()).unwrap_or(u32::MAX) } else { 0 };
        let received_ms = step.traffic.received_ms(step.now);
        step.traffic.unanswered.push_back(Unanswered { xid, op, received_ms, large_bytes });
        self.outstanding += 1;
        self.large_bytes += large_bytes as usize;
    }

    /// The pipeline has opened the session, or found it alive.
    pub(super) fn on_connected(
        &mut self,
        step: &mut Step<'_>,
        asked: Unanswered,
        zxid: Zxid,
        (session, timeout_ms, password): (SessionId, i32, [u8; 16]),
    ) {
        let State::Opening { read_only, .. } = step.connection.state else {
            unreachable!("a session is opened for a connection that asked for one")
        };
        step.connection.state = State::Live { session, timeout_ms };
        self.look_again(step.now, step.id, step.connection);
        let read_only = read_only.map(|_| self.is_read_only());
        let session = session.0;
        self.put_response(step, ConnectResponse { timeout_ms, session, password, read_only });
        let Unanswered { xid: Xid(xid), op, received_ms, large_bytes: _ } = asked;
        self.note_reply(step, Answered { xid, op, zxid, received_ms, by: By::Pipeline });
    }

    /// There is no such session, or not with this password.
    pub(super) fn on_refused(&mut self, step: &mut Step<'_>) {
        let State::Opening { read_only, .. } = step.connection.state else {
            unreachable!("a session is refused to a connection that asked for one")
        };
        self.refuse(step, read_only);
    }

    fn refuse(&mut self, step: &mut Step<'_>, read_only: Option<bool>) {
        let read_only = read_only.map(|_| self.is_read_only());
        self.put_response(step, ConnectResponse::refusal(read_only));
        step.connection.stats.sent += 1;
        self.counters.packets_sent += 1;
        self.end(step, Close::AfterFlush);
    }

    fn put_response(&self, step: &mut Step<'_>, response: ConnectResponse) {
        let write = |out: &mut Vec<u8>| frame::try_write(out, |out| response.write(out));
        step.traffic.reply_bytes = step.traffic.output.append(write).unwrap_or(0);
    }
}
