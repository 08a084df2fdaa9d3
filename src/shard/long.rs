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
//! A watch that comes with the request is set when it begins. Events that come to the connection
//! meanwhile wait behind the answer: they tell of what is newer.

use std::fmt;

use crate::exchange::ConnectionId;
use crate::jute::record::Record as _;
use crate::jute::{Reader, Write as _, frame};
use crate::record::code::Code;
use crate::record::data::{Stat, perms};
use crate::record::op::code;
use crate::record::proto::{MULTI_END, MultiHeader};
use crate::tree::{Listing, TreeReader};
use crate::types::Zxid;

use super::connection::{Answered, By, Traffic, put_reply_header};
use super::outbox::Outbox;
use super::read::{next_read, put_children, put_data};
use super::set_watches::SetWatches;
use super::turns::REQUEST_STEPS;
use super::{Core, Step};

/// How many listings of a shard are under way at once, at most: each holds a view and an answer.
const LISTINGS_MAX: usize = 8;

/// How a request here was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    Now,
    /// The answer is being made.
    Begun,
    /// Too many others are being made; the request stays as it is.
    NotYet,
}

/// Whether there is more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    Done,
    /// Its share of the turn is used up.
    Pauses,
}

/// A request that is being answered.
pub(super) struct Long {
    xid: i32,
    op: i32,
    received_ms: i64,
    work: Work,
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
            body: Vec::new(),
            answer: Outbox::default(),
            events: Outbox::default(),
        }
    }

    /// The bytes that it holds.
    pub(super) fn held(&self) -> usize {
        self.body.len() + self.answer.len() + self.events.len()
    }
}

impl fmt::Debug for Long {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Long").field("op", &self.op).field("held", &self.held()).finish()
    }
}

impl Traffic {
    /// Where an event goes: behind the answer that is being made, if there is one.
    pub(super) fn events(&mut self) -> &mut Outbox {
        match &mut self.long {
            Some(long) => &mut long.events,
            None => &mut self.output,
        }
    }
}

impl Core {
    /// Begins to answer by the children of `path`, which are many.
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
        put_start(&mut long.answer, xid, zxid);
        long.answer.append(|out| out.put_count(Some(count)));
        self.listings += 1;
        self.go_on_with(step, long);
    }

    /// Whether so many children are listed at once, over several turns, or not before others are.
    pub(super) fn lists_later(&self, step: &Step<'_>, count: usize) -> Done {
        let left = self.turns.steps_left(&step.traffic.spent);
        if count <= left.max(self.turns.steps_at_once()) {
            Done::Now
        } else if self.listings < LISTINGS_MAX {
            Done::Begun
        } else {
            Done::NotYet
        }
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
        put_start(&mut long.answer, xid, self.tree.view());
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
        if let Some(long) = step.traffic.long.take() {
            self.go_on_with(step, *long);
        }
    }

    fn go_on_with(&mut self, step: &mut Step<'_>, mut long: Long) {
        let Long { xid, work, body, answer, .. } = &mut long;
        let (zxid, result) = match work {
            Work::Children { listing, stat } => {
                (listing.view(), self.list(step, listing, stat.as_ref(), answer))
            }
            Work::MultiRead(work) => {
                let result = self.read_some(step, body, work, answer);
                if result == Ok(Pace::Pauses) && work.reader.is_none() {
                    work.reader = Some(self.tree.fork());
                }
                (work.reader.as_ref().unwrap_or(&self.tree).view(), result)
            }
            Work::SetWatches(work) => {
                let result = self.set_some_watches(step, body, work);
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

    /// Lists as many children as are listed before the budget is looked at.
    fn list_some(
        &mut self,
        step: &mut Step<'_>,
        listing: &mut Listing,
        answer: &mut Outbox,
    ) -> Result<Pace, Code> {
        let before = answer.len();
        let mut pace = Pace::Pauses;
        let steps = self.turns.steps_at_once();
        for _ in 0..steps {
            let Some(name) = listing.next_name() else {
                pace = Pace::Done;
                break;
            };
            answer.append(|out| out.put_text(name));
        }
        let bytes = answer.len() - before;
        self.turns.charge(&mut step.traffic.spent, bytes, steps);
        self.may_grow(answer, 0)?;
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
                    if kind == code::GET_DATA {
                        answer.append(|out| put_data(&znode, out));
                    } else if znode.child_count() <= self.turns.steps_at_once() {
                        answer.append(|out| put_children(&znode, out));
                        self.turns.charge(&mut step.traffic.spent, 0, znode.child_count());
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
        self.let_go_of(step.id, &long);
        step.traffic.reply_bytes = bytes;
        step.traffic.output.append_all(long.answer);
        step.traffic.output.append_all(long.events);
        let Long { xid, op, received_ms, .. } = long;
        self.note_reply(step, Answered { xid, op, zxid, received_ms, by: By::Shard });
    }

    fn fail(&mut self, step: &mut Step<'_>, mut long: Long, zxid: Zxid, code: Code) {
        self.let_go_of(step.id, &long);
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
            self.let_go_of(id, &long);
            self.discard(&mut long.answer);
            self.discard(&mut long.events);
        }
    }

    fn let_go_of(&mut self, id: ConnectionId, long: &Long) {
        match long.work {
            Work::Children { .. } => self.listings -= 1,
            Work::MultiRead(_) => {}
            Work::SetWatches(_) => self.setting.retain(|setting| *setting != id),
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
