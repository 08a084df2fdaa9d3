//! Requests whose answers take more than one turn.
//!
//! ```text
//! getChildren of many   goes through the children at one view, and holds that view
//! multiRead             reads at one view, and holds it once it has to pause
//! setWatches            looks at all paths at one view, and watches them from there on
//! ```
//!
//! An answer's zxid names the state that was read, so what reads in pieces does so from a reader of
//! its own, which stays where the shard's view was when it began. What that shows is kept in memory
//! until the answer is complete. That takes as long as we need to make it, and never as long as the
//! client needs to read it: the answer is made whole, and counted, before any of it is sent.
//!
//! What fits into one turn is done in one. What does not needs a place (`places.rs`), and is begun
//! once it has one.
//!
//! A watch that comes with the request is set when it begins. Events that come to the connection
//! from then on wait behind the answer: they tell of what is newer.

use std::fmt;
use std::mem;

use crate::exchange::ConnectionId;
use crate::jute::record::Record as _;
use crate::jute::{Reader, Write as _, frame};
use crate::record::code::Code;
use crate::record::data::{Stat, perms};
use crate::record::op::code;
use crate::record::proto::{MULTI_END, MultiHeader};
use crate::tree::{Listing, Look, TreeReader};
use crate::types::Zxid;

use super::connection::{Answered, By, Traffic, put_reply_header};
use super::outbox::{Outbox, PIECE_BYTES};
use super::places::Place;
use super::read::{LongData, children_bytes, next_read, put_children, put_data};
use super::set_watches::SetWatches;
use super::turns::REQUEST_STEPS;
use super::{Core, Step};

/// How a request here was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    Now,
    /// The answer is being made.
    Begun,
    /// Not in this turn, or not before there is a place; the request stays as it is.
    NotYet,
}

/// Whether there is more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    Done,
    /// Its share of the turn is used up.
    Pauses,
    /// It takes more than a turn, and goes on once it has a place.
    NeedsPlace,
}

/// A request that is being answered.
pub(super) struct Long {
    xid: i32,
    op: i32,
    received_ms: i64,
    work: Work,
    has_place: bool,
    /// The request's body, where it is still needed.
    body: Vec<u8>,
    /// The frame so far, its length not filled in.
    answer: Outbox,
    /// What has happened since it began.
    events: Outbox,
}

enum Work {
    Children { listing: Listing, stat: Option<Stat> },
    MultiRead(MultiRead),
    SetWatches(SetWatches),
}

/// How far a multiRead has come.
struct MultiRead {
    /// In the request's body.
    offset: usize,
    /// Where it reads from, if that is no longer what the shard reads from.
    reader: Option<TreeReader>,
    /// The children that it is going through.
    listing: Option<Listing>,
}

impl Long {
    fn new(step: &Step<'_>, xid: i32, op: i32, work: Work) -> Long {
        Long {
            xid,
            op,
            received_ms: step.traffic.received_ms(step.now),
            work,
            has_place: false,
            body: Vec::new(),
            answer: Outbox::default(),
            events: Outbox::default(),
        }
    }

    /// The bytes that it holds.
    pub(super) fn held(&self) -> usize {
        let work = match &self.work {
            Work::Children { .. } | Work::MultiRead(_) => 0,
            Work::SetWatches(work) => work.held(),
        };
        self.body.len() + self.answer.len() + self.events.len() + work
    }

    pub(super) fn has_place(&self) -> bool {
        self.has_place
    }

    /// Whether it is decided which state is read.
    fn has_view(&self) -> bool {
        match &self.work {
            Work::Children { .. } => true,
            Work::MultiRead(work) => work.reader.is_some(),
            Work::SetWatches(work) => work.view().is_some(),
        }
    }
}

impl fmt::Debug for Long {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Long").field("op", &self.op).field("held", &self.held()).finish()
    }
}

impl Traffic {
    /// Appends an event: behind the answer that is being made, if there is one. There it is our
    /// doing that the client has not read it, and it counts as part of the answer.
    pub(super) fn append_event(&mut self, event: &[u8]) {
        match &mut self.long {
            Some(long) if long.has_view() => {
                long.events.append(|out| out.extend_from_slice(event));
            }
            Some(_) | None => self.output.append_event(event),
        }
    }
}

impl Core {
    /// Begins to answer by the children of `path`, which are many, in a place that was taken.
    pub(super) fn begin_listing(
        &mut self,
        step: &mut Step<'_>,
        (xid, op): (i32, i32),
        path: &str,
        stat: Option<Stat>,
        count: usize,
    ) {
        let listing = self.tree.listing(path).expect("a znode that was just seen");
        let zxid = listing.view();
        let mut long = Long::new(step, xid, op, Work::Children { listing, stat });
        long.has_place = true;
        put_start(&mut long.answer, xid, zxid);
        long.answer.append(|out| out.put_count(Some(count)));
        self.go_on_with(step, long);
    }

    /// Reads in one request, all of one state: each succeeds or fails for itself.
    pub(super) fn multi_read(
        &mut self,
        step: &mut Step<'_>,
        (xid, op): (i32, i32),
        body: &mut Reader<'_>,
    ) -> Result<Done, Code> {
        // All of it has to be readable before any of it is answered.
        let mut ahead = body.clone();
        let mut count = 0;
        while next_read(&mut ahead)?.is_some() {
            count += 1;
        }
        self.turns.charge(&mut step.traffic.spent, 0, count / 4);
        let work = MultiRead { offset: 0, reader: None, listing: None };
        let mut long = Long::new(step, xid, op, Work::MultiRead(work));
        long.body = body.rest().to_vec();
        self.go_on_with(step, long);
        Ok(Done::Begun)
    }

    /// setWatches and setWatches2: what happened since the zxid that the client saw last is told
    /// at once, before the reply; what did not is watched for.
    pub(super) fn set_watches(
        &mut self,
        step: &mut Step<'_>,
        (xid, op): (i32, i32),
        body: &mut Reader<'_>,
        with_persistent: bool,
    ) -> Result<Done, Code> {
        let work = SetWatches::new(body.rest(), with_persistent)?;
        let mut long = Long::new(step, xid, op, Work::SetWatches(work));
        long.body = body.rest().to_vec();
        self.go_on_with(step, long);
        Ok(Done::Begun)
    }

    /// Goes on with what is being answered, as far as the turn allows.
    pub(super) fn go_on_long(&mut self, step: &mut Step<'_>) {
        let Some(mut long) = step.traffic.long.take() else { return };
        if step.traffic.wait.is_some() {
            long.has_place = self.take_place(step, Place::Long);
            if !long.has_place {
                step.traffic.long = Some(long);
                return;
            }
        }
        self.go_on_with(step, *long);
    }

    fn go_on_with(&mut self, step: &mut Step<'_>, mut long: Long) {
        let was_fresh = self.turns.is_fresh(&step.traffic.spent);
        let Long { xid, work, body, answer, has_place, .. } = &mut long;
        let (zxid, result) = match work {
            Work::Children { listing, stat } => {
                (listing.view(), self.list(step, listing, stat.as_ref(), answer))
            }
            Work::MultiRead(work) => {
                if answer.is_empty() {
                    put_start(answer, *xid, self.tree.view());
                }
                let mut result = self.read_some(step, body, work, answer);
                if result == Ok(Pace::Pauses) && work.reader.is_none() {
                    // What began in the rest of a turn may fit into a whole one.
                    *has_place = *has_place || was_fresh && self.take_place(step, Place::Long);
                    if *has_place {
                        work.reader = Some(self.tree.fork());
                    } else {
                        // Then it is read again, with the rest and as of then.
                        *work = MultiRead { offset: 0, reader: None, listing: None };
                        self.discard(answer);
                        result = Ok(if was_fresh { Pace::NeedsPlace } else { Pace::Pauses });
                    }
                }
                (work.reader.as_ref().unwrap_or(&self.tree).view(), result)
            }
            Work::SetWatches(work) => {
                let mut result = self.set_some_watches(step, body, work, *has_place);
                if result == Ok(Pace::NeedsPlace) && self.take_place(step, Place::Long) {
                    *has_place = true;
                    result = self.set_some_watches(step, body, work, true);
                }
                let zxid = work.view().unwrap_or(self.tree.view());
                if result == Ok(Pace::Done) {
                    put_start(answer, *xid, zxid);
                }
                (zxid, result)
            }
        };
        match result {
            Ok(Pace::Pauses) => {
                step.traffic.long = Some(Box::new(long));
                self.queue(step);
            }
            // It waits in line, and goes on when it has come to the front.
            Ok(Pace::NeedsPlace) => step.traffic.long = Some(Box::new(long)),
            Ok(Pace::Done) => self.finish(step, long, zxid),
            Err(code) => self.fail(step, long, zxid, code),
        }
    }

    /// A change at `path` is about to be told: see `set_watches_at`.
    pub(super) fn on_change_while_setting(&mut self, step: &mut Step<'_>, path: &str) {
        let Some(mut long) = step.traffic.long.take() else { return };
        let Long { work, body, .. } = &mut *long;
        if let Work::SetWatches(work) = work {
            self.set_watches_at(step, body, work, path);
        }
        step.traffic.long = Some(long);
    }

    /// Lists children until the turn is over.
    fn list(
        &mut self,
        step: &mut Step<'_>,
        listing: &mut Listing,
        stat: Option<&Stat>,
        answer: &mut Outbox,
    ) -> Result<Pace, Code> {
        while !self.turns.is_over(&step.traffic.spent) {
            if self.list_some(step, listing, answer)? == Pace::Done {
                if let Some(stat) = stat {
                    answer.append(|out| stat.write(out));
                }
                return Ok(Pace::Done);
            }
        }
        Ok(Pace::Pauses)
    }

    /// Lists as many children as are looked at before the budget is.
    fn list_some(
        &mut self,
        step: &mut Step<'_>,
        listing: &mut Listing,
        answer: &mut Outbox,
    ) -> Result<Pace, Code> {
        let before = answer.len();
        let mut pace = Pace::Pauses;
        let mut looks = 0;
        while looks < self.turns.steps_at_once() && answer.len() - before < PIECE_BYTES {
            looks += 1;
            match listing.look() {
                Look::Child(name) => {
                    self.may_grow(answer, name.len())?;
                    answer.append(|out| out.put_text(name));
                }
                Look::Passed => {}
                Look::End => {
                    pace = Pace::Done;
                    break;
                }
            }
        }
        let bytes = answer.len() - before;
        self.turns.charge(&mut step.traffic.spent, bytes, looks);
        Ok(pace)
    }

    /// Does some of a multiRead's operations.
    fn read_some(
        &mut self,
        step: &mut Step<'_>,
        body: &[u8],
        work: &mut MultiRead,
        answer: &mut Outbox,
    ) -> Result<Pace, Code> {
        while !self.turns.is_over(&step.traffic.spent) {
            if let Some(listing) = &mut work.listing {
                if self.list_some(step, listing, answer)? == Pace::Done {
                    work.listing = None;
                }
                continue;
            }
            let before = answer.len();
            let mut rest = Reader::with_field_bytes_max(&body[work.offset..], usize::MAX);
            let Some((kind, path)) = next_read(&mut rest)? else {
                answer.append(|out| MULTI_END.write(out));
                return Ok(Pace::Done);
            };
            work.offset += rest.offset();
            let tree = work.reader.as_ref().unwrap_or(&self.tree);
            let znode = tree.get(&path).ok_or(Code::NoNode).and_then(|znode| {
                self.check(znode.acl(), perms::READ, &step.connection.ids).map(|()| znode)
            });
            match znode {
                Ok(znode) => {
                    self.may_grow(answer, znode.data().map_or(0, <[u8]>::len))?;
                    answer.append(|out| MultiHeader { kind, done: false, err: 0 }.write(out));
                    let linked = znode.linked_children();
                    let bytes = children_bytes(linked);
                    if kind == code::GET_DATA {
                        match LongData::of(&znode) {
                            Some(long) => long.put(answer, &mut self.spare),
                            None => answer.append(|out| put_data(&znode, out)),
                        }
                    } else if linked.count <= self.turns.steps_at_once()
                        && bytes <= PIECE_BYTES
                        && self.may_grow(answer, bytes).is_ok()
                    {
                        answer.append(|out| put_children(&znode, out));
                        self.turns.charge(&mut step.traffic.spent, 0, linked.count);
                    } else {
                        answer.append(|out| out.put_count(Some(znode.child_count())));
                        work.listing = tree.listing(&path);
                    }
                }
                Err(code) => answer.append(|out| {
                    let err = code.number();
                    MultiHeader { kind: code::ERROR, done: false, err }.write(out);
                    out.put_i32(err);
                }),
            }
            self.may_grow(answer, 0)?;
            let bytes = answer.len() - before;
            self.turns.charge(&mut step.traffic.spent, bytes, REQUEST_STEPS);
        }
        Ok(Pace::Pauses)
    }

    /// Whether an answer may become so much longer than it is.
    pub(super) fn may_grow(&self, answer: &Outbox, bytes: usize) -> Result<(), Code> {
        self.may_answer(answer.len() + bytes)
    }

    /// Whether an answer may have so many bytes.
    pub(super) fn may_answer(&self, bytes: usize) -> Result<(), Code> {
        let most = self.settings.answer_bytes_max;
        if bytes <= most { Ok(()) } else { Err(Code::MarshallingError) }
    }

    fn finish(&mut self, step: &mut Step<'_>, mut long: Long, zxid: Zxid) {
        let bytes = long.answer.len() - frame::PREFIX_BYTES;
        let Ok(prefix) = frame::prefix(bytes) else {
            return self.fail(step, long, zxid, Code::MarshallingError);
        };
        if let Some(first) = long.answer.first_bytes() {
            first[..frame::PREFIX_BYTES].copy_from_slice(&prefix);
        }
        self.let_go_of(step.id, &mut long);
        step.traffic.reply_bytes = bytes;
        step.traffic.output.append_all(long.answer);
        step.traffic.output.append_all(long.events);
        let Long { xid, op, received_ms, .. } = long;
        self.note_reply(step, Answered { xid, op, zxid, received_ms, by: By::Shard });
    }

    fn fail(&mut self, step: &mut Step<'_>, mut long: Long, zxid: Zxid, code: Code) {
        self.let_go_of(step.id, &mut long);
        self.discard(&mut long.answer);
        let Long { xid, op, received_ms, .. } = long;
        step.traffic.reply(xid, zxid, code, |_| {});
        step.traffic.output.append_all(long.events);
        self.note_reply(step, Answered { xid, op, zxid, received_ms, by: By::Shard });
        if matches!(long.work, Work::SetWatches(_)) && code != Code::MarshallingError {
            // Clients do not look at this reply, and would rely on watches that are not there.
            self.end(step, super::Close::AfterFlush);
        }
    }

    /// What is being answered is not waited for any more.
    pub(super) fn forget_long(&mut self, id: ConnectionId, traffic: &mut Traffic) {
        if let Some(mut long) = traffic.long.take() {
            self.let_go_of(id, &mut long);
            self.discard(&mut long.answer);
            self.discard(&mut long.events);
        }
    }

    fn let_go_of(&mut self, id: ConnectionId, long: &mut Long) {
        if mem::take(&mut long.has_place) {
            self.give_back_place(Place::Long);
        }
        if matches!(long.work, Work::SetWatches(_)) {
            self.setting.retain(|setting| *setting != id);
        }
    }
}

/// The beginning of an answer: room for its length, and its header.
fn put_start(answer: &mut Outbox, xid: i32, zxid: Zxid) {
    answer.append(|out| {
        out.extend_from_slice(&[0; frame::PREFIX_BYTES]);
        put_reply_header(out, xid, zxid, Code::Ok);
    });
}
