//! Frames into requests: which are answered here, which go to the pipeline, and which wait.
//!
//! After `ZooKeeperServer.processPacket` and `Request.isValid`; what waits and for how long is in
//! the door of this folder.

use std::mem;

use crate::auth::AuthFailed;
use crate::exchange::Want;
use crate::jute::record::Record as _;
use crate::jute::{Reader, Write as _, first_field, frame};
use crate::record::code::Code;
use crate::record::data::Id;
use crate::record::op::code;
use crate::record::proto::{AuthPacket, RequestHeader, SaslToken};
use crate::tree::PREFETCH_MAX;
use crate::types::{Xid, Zxid};

use super::connect::Opening;
use super::connection::{Answered, Arrived, By, State};
use super::long::Done;
use super::places::Place;
use super::turns::REQUEST_STEPS;
use super::{Close, Core, Mutant, Step};

/// Of a request's header.
const HEADER_BYTES: usize = 4 + 4;

/// Where an opcode leads.
enum Route {
    Pipeline(Want),
    Here,
    /// Not served, whatever it says.
    Refused {
        code: Code,
        zxid: Zxid,
        close: bool,
    },
}

/// Whether a frame was acted on.
#[derive(PartialEq, Eq)]
enum Progress {
    Made,
    /// The frame stays, and what is behind it.
    Waits,
}

impl Core {
    /// Acts on as much of `input` as may be acted on; how many bytes that was.
    pub(super) fn take_in(&mut self, step: &mut Step<'_>, input: &[u8]) -> usize {
        let mut used = 0;
        let mut fetched = 0;
        step.traffic.is_waiting = false;
        loop {
            if step.connection.is_deaf() {
                return input.len();
            }
            let rest = &input[used..];
            if rest.is_empty() {
                return used;
            }
            if step.traffic.long.is_some() {
                self.keep(step, rest.len());
                return used;
            }
            match step.connection.state {
                State::Connecting => match self.on_opening(step, rest) {
                    Opening::Unclear => return used,
                    Opening::Word => continue,
                    Opening::Frame if self.serves.is_none() => {
                        self.end(step, Close::AtOnce);
                        continue;
                    }
                    Opening::Frame => {}
                },
                State::Opening { .. } => return used,
                State::Live { .. } | State::Leaving { .. } | State::Word | State::Closing(_) => {}
            }
            match frame::cut(rest, self.settings.frame_bytes_max) {
                frame::Front::Incomplete { bytes } => {
                    if frame::PREFIX_BYTES < bytes {
                        self.hold_against_limit(step, bytes - frame::PREFIX_BYTES);
                    }
                    if !step.connection.is_closing() {
                        return used;
                    }
                }
                frame::Front::BadLength(_) => self.end(step, Close::AfterFlush),
                frame::Front::Frame { body } => {
                    // A connect request may bring a session back: the next report of who was heard
                    // must not overtake it.
                    let is_connecting = matches!(step.connection.state, State::Connecting);
                    if !is_connecting && self.turns.is_over(&step.traffic.spent) {
                        self.queue(step);
                        self.keep(step, rest.len());
                        return used;
                    }
                    if fetched <= used {
                        fetched = used + self.prefetch(rest);
                    }
                    let unwritten = step.traffic.output.len();
                    self.hold_against_limit(step, body.len());
                    let progress = match step.connection.state {
                        State::Connecting => {
                            self.on_connect(step, body);
                            Progress::Made
                        }
                        State::Live { .. } => self.on_frame(step, body),
                        State::Opening { .. }
                        | State::Leaving { .. }
                        | State::Word
                        | State::Closing(_) => continue,
                    };
                    let bytes = step.traffic.output.len().saturating_sub(unwritten);
                    self.turns.charge(&mut step.traffic.spent, bytes, REQUEST_STEPS);
                    if progress == Progress::Waits {
                        self.keep(step, rest.len());
                        return used;
                    }
                    if step.traffic.long.is_none() {
                        self.stop_waiting(step.traffic);
                    }
                    let count = frame::PREFIX_BYTES + body.len();
                    step.traffic.note_progress(count);
                    used += count;
                }
            }
        }
    }

    /// Leaves so many bytes for later, the first of which are a whole frame or would wait behind
    /// what is being answered.
    fn keep(&self, step: &mut Step<'_>, bytes: usize) {
        let arrived = Arrived { at_ms: step.now.monotonic_ms, bytes };
        step.traffic.arrived.get_or_insert(arrived);
        step.traffic.is_waiting = true;
    }

    /// Has a connection go on in the next turn in which there is room.
    pub(super) fn queue(&mut self, step: &mut Step<'_>) {
        if !mem::replace(&mut step.traffic.is_queued, true) {
            self.turns.queue(step.id, &step.traffic.spent);
        }
    }

    /// Goes on with a connection that was queued.
    pub(super) fn on_queued(&mut self, step: &mut Step<'_>) {
        step.traffic.is_queued = false;
        self.go_on_long(step);
        self.go_on(step);
    }

    /// Fetches what the next few frames will read, where there are several; how many bytes those
    /// are.
    fn prefetch(&self, input: &[u8]) -> usize {
        let mut bytes = 0;
        let mut paths = [&[][..]; PREFETCH_MAX];
        let mut count = 0;
        while count < PREFETCH_MAX
            && let frame::Front::Frame { body } =
                frame::cut(&input[bytes..], self.settings.frame_bytes_max)
        {
            bytes += frame::PREFIX_BYTES + body.len();
            let path = first_field(body.get(HEADER_BYTES..).unwrap_or_default());
            paths[count] = path;
            count += 1;
        }
        if 1 < count {
            self.tree.prefetch(paths[..count].iter().copied());
        }
        bytes
    }

    /// Ends a connection whose large request is too much, with those under way.
    fn hold_against_limit(&mut self, step: &mut Step<'_>, body_bytes: usize) {
        let is_large = self.settings.large_request_bytes.is_some_and(|limit| limit < body_bytes);
        if is_large && self.settings.large_requests_bytes_max < self.large_bytes + body_bytes {
            self.counters.large_requests_rejected += 1;
            self.end(step, Close::AfterFlush);
        }
    }

    fn on_frame(&mut self, step: &mut Step<'_>, body: &[u8]) -> Progress {
        let mut reader = Reader::with_field_bytes_max(body, usize::MAX);
        let Ok(RequestHeader { xid, op }) = RequestHeader::read(&mut reader) else {
            self.end(step, Close::AfterFlush);
            return Progress::Made;
        };
        if op == code::AUTH {
            self.receive(step);
            self.on_auth(step, xid, reader);
            return Progress::Made;
        }
        let route = self.route(step, op);
        if !self.may_go(step, &route) {
            self.stop_waiting(step.traffic);
            return Progress::Waits;
        }
        if matches!(route, Route::Pipeline(Want::Ephemerals))
            && !self.take_place(step, Place::Ephemerals)
        {
            return Progress::Waits;
        }
        if matches!(route, Route::Here)
            && op != code::SASL
            && self.answer(step, xid, op, &reader) == Done::NotYet
        {
            return Progress::Waits;
        }
        self.receive(step);
        match route {
            Route::Pipeline(want) => {
                let State::Live { session, timeout_ms } = step.connection.state else {
                    unreachable!("only a live connection's frames are looked at")
                };
                self.ask(step, session, Xid(xid), op, want, reader.rest());
                if want == Want::Close {
                    step.connection.state = State::Leaving { session, timeout_ms };
                }
            }
            Route::Here if op == code::SASL => self.on_sasl(step, xid, reader),
            // Answered above.
            Route::Here => {}
            Route::Refused { code, zxid, close } => {
                self.reply(step, xid, op, zxid, code, |_| {});
                if close {
                    self.end(step, Close::AfterFlush);
                }
            }
        }
        Progress::Made
    }

    fn route(&self, step: &Step<'_>, op: i32) -> Route {
        let settings = &self.settings;
        if op != code::SASL && !settings.providers.admits(&step.connection.ids) {
            let code = Code::SessionClosedRequireSaslAuth;
            return Route::Refused { code, zxid: Zxid::ZERO, close: true };
        }
        let route = match op {
            code::CREATE
            | code::CREATE2
            | code::CREATE_CONTAINER
            | code::CREATE_TTL
            | code::DELETE
            | code::SET_DATA
            | code::SET_ACL
            | code::MULTI
            | code::RECONFIG => Route::Pipeline(Want::Write { op }),
            code::SYNC if self.is_mutant(Mutant::SyncAnsweredHere) => Route::Here,
            code::SYNC => Route::Pipeline(Want::Sync),
            code::GET_EPHEMERALS => Route::Pipeline(Want::Ephemerals),
            code::CLOSE_SESSION => Route::Pipeline(Want::Close),
            code::EXISTS
            | code::GET_DATA
            | code::GET_ACL
            | code::GET_CHILDREN
            | code::GET_CHILDREN2
            | code::GET_ALL_CHILDREN_NUMBER
            | code::MULTI_READ
            | code::PING
            | code::CHECK_WATCHES
            | code::REMOVE_WATCHES
            | code::SET_WATCHES
            | code::SET_WATCHES2
            | code::ADD_WATCH
            | code::WHO_AM_I
            | code::SASL => Route::Here,
            // Among them check, which belongs into a multi, and deleteContainer and
            // createSession, which ZooKeeper would take from anybody.
            _ => {
                let code = Code::Unimplemented;
                return Route::Refused { code, zxid: Zxid(-1), close: true };
            }
        };
        if self.is_read_only() && matches!(route, Route::Pipeline(Want::Write { .. } | Want::Sync))
        {
            let zxid = self.tree.view();
            return Route::Refused { code: Code::NotReadOnly, zxid, close: false };
        }
        let waited_ms = step.now.monotonic_ms - step.traffic.received_ms(step.now);
        let is_late = settings.throttled_op_wait_ms.is_some_and(|limit| limit < waited_ms);
        if is_late && op != code::PING && op != code::CLOSE_SESSION {
            return Route::Refused {
                code: Code::ThrottledOp,
                zxid: self.tree.view(),
                close: false,
            };
        }
        route
    }

    /// Whether a request may be acted on, or has to wait for what the pipeline or the client has
    /// not done yet.
    fn may_go(&self, step: &Step<'_>, route: &Route) -> bool {
        if self.settings.output_bytes_max <= step.traffic.output.len() {
            return false;
        }
        match route {
            // What comes behind a getEphemerals must not overtake it while it is listed.
            Route::Pipeline(_) => {
                let last = step.traffic.unanswered.back();
                last.is_none()
                    || last.is_some_and(|last| last.op != code::GET_EPHEMERALS)
                        && self.outstanding < self.settings.outstanding_max
            }
            Route::Here | Route::Refused { .. } => {
                step.traffic.unanswered.is_empty() || self.is_mutant(Mutant::ReadOvertakesWrite)
            }
        }
    }

    /// An auth packet is acted on when it comes, also before what waits for the pipeline.
    fn on_auth(&mut self, step: &mut Step<'_>, xid: i32, mut reader: Reader<'_>) {
        let Ok(AuthPacket { kind: _, scheme, auth }) = AuthPacket::read(&mut reader) else {
            return self.end(step, Close::AfterFlush);
        };
        let remote = step.connection.remote.ip();
        match self.settings.providers.authenticate(scheme.as_deref(), auth, remote) {
            Ok(mut added) => {
                let ids = &step.connection.ids;
                added.retain(|id| !ids.contains(id));
                let bytes: usize = ids.iter().chain(&added).map(bytes_of).sum();
                if !added.is_empty() && self.settings.auth_bytes_max < bytes {
                    // Each request and each check of an ACL goes through all of them.
                    return self.fail_auth(step, xid);
                }
                if !added.is_empty() {
                    step.connection.ids = ids.iter().cloned().chain(added).collect();
                }
                self.reply(step, xid, code::AUTH, Zxid::ZERO, Code::Ok, |_| {});
            }
            Err(AuthFailed::WrongEnsemble(_)) => self.end(step, Close::AfterFlush),
            Err(AuthFailed::Scheme(_) | AuthFailed::NoData(_) | AuthFailed::Sasl) => {
                self.fail_auth(step, xid);
            }
        }
    }

    fn fail_auth(&mut self, step: &mut Step<'_>, xid: i32) {
        self.counters.auth_failed += 1;
        self.reply(step, xid, code::AUTH, Zxid::ZERO, Code::AuthFailed, |_| {});
        self.end(step, Close::AfterFlush);
    }

    /// There is no SASL mechanism here: every token is answered by none, as ZooKeeper does
    /// without one.
    fn on_sasl(&mut self, step: &mut Step<'_>, xid: i32, mut reader: Reader<'_>) {
        match SaslToken::read(&mut reader) {
            Ok(SaslToken { token: Some(_) }) => {
                self.reply(step, xid, code::SASL, Zxid::ZERO, Code::Ok, |out| out.put_buffer(None));
            }
            Ok(SaslToken { token: None }) | Err(_) => self.end(step, Close::AfterFlush),
        }
    }

    fn receive(&mut self, step: &mut Step<'_>) {
        step.connection.stats.received += 1;
        self.counters.packets_received += 1;
    }

    /// Answers a request here; `body` appends what follows the header.
    pub(super) fn reply(
        &mut self,
        step: &mut Step<'_>,
        xid: i32,
        op: i32,
        zxid: Zxid,
        code: Code,
        body: impl FnOnce(&mut Vec<u8>),
    ) {
        step.traffic.reply(xid, zxid, code, body);
        let received_ms = step.traffic.received_ms(step.now);
        self.note_reply(step, Answered { xid, op, zxid, received_ms, by: By::Shard });
    }

    pub(super) fn note_reply(&mut self, step: &mut Step<'_>, answered: Answered) {
        step.connection.stats.on_reply(step.now, &answered);
        self.counters.on_reply(&answered, answered.latency_ms(step.now), step.traffic.reply_bytes);
    }
}

/// What an id takes: two texts, and where they are.
fn bytes_of(id: &Id) -> usize {
    size_of::<Id>() + id.scheme.len() + id.id.len()
}
