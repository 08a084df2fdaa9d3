//! Requests that are answered here, from the tree as of the shard's view.
//!
//! Each looks first and writes then: header and body go straight into the connection's output,
//! with the view as the zxid. The order of the checks, and which paths are looked up as they
//! come, are `FinalRequestProcessor.processRequest`'s.

use std::borrow::Cow;

use crate::acl;
use crate::jute::record::{Record, Text};
use crate::jute::{Reader, Write as _, frame};
use crate::path;
use crate::record::code::Code;
use crate::record::data::{Acl, OPEN_ACL_BYTES, perms};
use crate::record::op::{code, xid as special};
use crate::record::proto::{MultiHeader, PathOnly, PathWatch};
use crate::tree::{LinkedChildren, Znode};
use crate::types::Zxid;

use super::connection::{Answered, By, put_reply_header};
use super::long::Done;
use super::outbox::{Outbox, PIECE_BYTES, Spare};
use super::places::Place;
use super::turns::Fit;
use super::watch::Modes;
use super::{Core, Step};

impl Core {
    /// Answers a request that needs nothing but what is here.
    pub(super) fn answer(
        &mut self,
        step: &mut Step<'_>,
        xid: i32,
        op: i32,
        body: &Reader<'_>,
    ) -> Done {
        let body = &mut body.clone();
        let asked = (xid, op);
        let answered = match op {
            code::PING => {
                // Whatever xid it came with.
                self.put(step, special::PING, |_| {});
                Ok(Done::Now)
            }
            #[cfg(feature = "mutants")]
            code::SYNC => {
                let path = body.rest();
                self.put(step, xid, |out| out.extend_from_slice(path));
                Ok(Done::Now)
            }
            code::EXISTS => self.exists(step, xid, body),
            code::GET_DATA => self.data(step, xid, body),
            code::GET_ACL => self.acl(step, xid, body),
            code::GET_CHILDREN | code::GET_CHILDREN2 => self.children(step, asked, body),
            code::GET_ALL_CHILDREN_NUMBER => self.all_children_number(step, xid, body),
            code::MULTI_READ => self.multi_read(step, asked, body),
            code::WHO_AM_I => Ok(self.who_am_i(step, xid)),
            code::SET_WATCHES => self.set_watches(step, asked, body, false),
            code::SET_WATCHES2 => self.set_watches(step, asked, body, true),
            code::ADD_WATCH => self.add_watch(step, xid, body),
            code::CHECK_WATCHES => self.check_watches(step, xid, body),
            code::REMOVE_WATCHES => self.remove_watches(step, xid, body),
            _ => unreachable!("only what is routed here is answered here"),
        };
        match answered {
            Ok(Done::Now) => {
                let received_ms = step.traffic.received_ms(step.now);
                let zxid = self.tree.view();
                self.note_reply(step, Answered { xid, op, zxid, received_ms, by: By::Shard });
                Done::Now
            }
            Ok(done) => done,
            Err(code) => {
                self.reply(step, xid, op, self.tree.view(), code, |_| {});
                Done::Now
            }
        }
    }

    /// Writes a reply that succeeds.
    pub(super) fn put(&self, step: &mut Step<'_>, xid: i32, body: impl FnOnce(&mut Vec<u8>)) {
        step.traffic.reply(xid, self.tree.view(), Code::Ok, body);
    }

    fn exists(
        &mut self,
        step: &mut Step<'_>,
        xid: i32,
        body: &mut Reader<'_>,
    ) -> Result<Done, Code> {
        let PathWatch { path, watch } = decode(body)?;
        let path = present(path)?;
        if path::has_nul(&path) {
            return Err(Code::BadArguments);
        }
        if watch {
            self.room_to_watch(step.id.slot, &path)?;
        }
        let znode = self.tree.get(&path);
        if let Some(znode) = znode {
            self.check(znode.acl(), perms::READ, &step.connection.ids)?;
        }
        // Also on a znode that is not there: its creation is what is waited for.
        if watch {
            self.watches.add(step.id.slot, &path, Modes::DATA);
        }
        let znode = znode.ok_or(Code::NoNode)?;
        self.put(step, xid, |out| put_stat(&znode, out));
        Ok(Done::Now)
    }

    fn data(&mut self, step: &mut Step<'_>, xid: i32, body: &mut Reader<'_>) -> Result<Done, Code> {
        let PathWatch { path, watch } = decode(body)?;
        let path = present(path)?;
        if watch {
            self.room_to_watch(step.id.slot, &path)?;
        }
        let znode = self.tree.get(&path).ok_or(Code::NoNode)?;
        self.check(znode.acl(), perms::READ, &step.connection.ids)?;
        self.may_answer(znode.data().map_or(0, <[u8]>::len))?;
        match LongData::of(&znode) {
            Some(long) => Core::put_long(step, xid, self.tree.view(), &long, &mut self.spare),
            None => self.put(step, xid, |out| put_data(&znode, out)),
        }
        if watch {
            self.watches.add(step.id.slot, &path, Modes::DATA);
        }
        Ok(Done::Now)
    }

    /// Writes a reply with data that is long.
    fn put_long(step: &mut Step<'_>, xid: i32, view: Zxid, long: &LongData<'_>, spare: &mut Spare) {
        let mut header = Vec::new();
        put_reply_header(&mut header, xid, view, Code::Ok);
        let bytes = header.len() + long.bytes();
        let prefix = frame::prefix(bytes).expect("an answer within `answer_bytes_max` is a frame");
        let output = &mut step.traffic.output;
        output.append_long(&prefix, spare);
        output.append_long(&header, spare);
        long.put(output, spare);
        step.traffic.reply_bytes = bytes;
    }

    /// getChildren, and with the stat behind them getChildren2.
    fn children(
        &mut self,
        step: &mut Step<'_>,
        asked: (i32, i32),
        body: &mut Reader<'_>,
    ) -> Result<Done, Code> {
        let PathWatch { path, watch } = decode(body)?;
        let path = present(path)?;
        if watch {
            self.room_to_watch(step.id.slot, &path)?;
        }
        let znode = self.readable(step, &path)?;
        let (xid, op) = asked;
        let stat = (op == code::GET_CHILDREN2).then(|| znode.stat());
        let count = znode.child_count();
        let linked = znode.linked_children();
        let bytes = children_bytes(linked);
        let done = match self.turns.fit(&step.traffic.spent, bytes, linked.count) {
            Fit::Now if self.may_answer(bytes).is_ok() => {
                self.put(step, xid, |out| {
                    put_children(&znode, out);
                    if let Some(stat) = &stat {
                        stat.write(out);
                    }
                });
                self.turns.charge(&mut step.traffic.spent, 0, linked.count);
                Done::Now
            }
            Fit::Once => {
                self.queue(step);
                Done::NotYet
            }
            Fit::Now | Fit::Long if self.take_place(step, Place::Long) => Done::Begun,
            Fit::Now | Fit::Long => Done::NotYet,
        };
        if watch && done != Done::NotYet {
            self.watches.add(step.id.slot, &path, Modes::CHILD);
        }
        if done == Done::Begun {
            self.begin_listing(step, asked, &path, stat, count);
        }
        Ok(done)
    }

    fn acl(&self, step: &mut Step<'_>, xid: i32, body: &mut Reader<'_>) -> Result<Done, Code> {
        let PathOnly { path } = decode(body)?;
        let path = present(path)?;
        let znode = self.tree.get(&path).ok_or(Code::NoNode)?;
        let ids = &step.connection.ids;
        self.check(znode.acl(), perms::READ | perms::ADMIN, ids)?;
        let acl = match znode.acl() {
            None => None,
            Some(acl) if self.permits(Some(acl), perms::ADMIN, ids) => Some(Cow::Borrowed(&**acl)),
            Some(acl) => Some(Cow::Owned(acl::masked(acl))),
        };
        self.put(step, xid, |out| {
            match acl {
                None => out.extend_from_slice(OPEN_ACL_BYTES),
                Some(acl) => put_acl(&acl, out),
            }
            put_stat(&znode, out);
        });
        Ok(Done::Now)
    }

    fn all_children_number(
        &self,
        step: &mut Step<'_>,
        xid: i32,
        body: &mut Reader<'_>,
    ) -> Result<Done, Code> {
        let PathOnly { path } = decode(body)?;
        let znode = self.readable(step, &present(path)?)?;
        let count = i32::try_from(znode.descendant_count()).unwrap_or(i32::MAX);
        self.put(step, xid, |out| out.put_i32(count));
        Ok(Done::Now)
    }

    fn who_am_i(&self, step: &mut Step<'_>, xid: i32) -> Done {
        let view = self.tree.view();
        let ids = &step.connection.ids;
        step.traffic.reply(xid, view, Code::Ok, |out| {
            out.put_count(Some(ids.len()));
            for id in &**ids {
                out.put_text(&id.scheme);
                out.put_text(self.settings.providers.user_name(id));
            }
        });
        Done::Now
    }

    /// Whether there is room for a watch more, unless this one is there.
    pub(super) fn room_to_watch(&mut self, slot: u32, path: &str) -> Result<(), Code> {
        let has_room = self.watches.count_of(slot) < self.settings.watches_per_connection_max
            && self.watch_share.covers(self.watches.pairs() + 1);
        if has_room || !self.watches.modes(slot, path).is_empty() {
            Ok(())
        } else {
            Err(Code::QuotaExceeded)
        }
    }

    /// The znode, if it is there and may be read.
    fn readable(&self, step: &Step<'_>, path: &str) -> Result<Znode<'_>, Code> {
        let znode = self.tree.get(path).ok_or(Code::NoNode)?;
        self.check(znode.acl(), perms::READ, &step.connection.ids)?;
        Ok(znode)
    }
}

/// The body of a request; what cannot be read, the client is told.
pub(super) fn decode<'a, R: Record<'a>>(body: &mut Reader<'a>) -> Result<R, Code> {
    R::read(body).map_err(|_| Code::MarshallingError)
}

/// A path that must not be null.
pub(super) fn present(path: Text<'_>) -> Result<Cow<'_, str>, Code> {
    path.ok_or(Code::MarshallingError)
}

/// The next of a multiRead's operations; `None` at their end.
pub(super) fn next_read<'a>(body: &mut Reader<'a>) -> Result<Option<(i32, Cow<'a, str>)>, Code> {
    let MultiHeader { kind, done, err: _ } = decode(body)?;
    if done {
        return Ok(None);
    }
    if kind != code::GET_DATA && kind != code::GET_CHILDREN {
        return Err(Code::MarshallingError);
    }
    // Whether they ask for a watch does not matter: none is set.
    let PathWatch { path, watch: _ } = decode(body)?;
    Ok(Some((kind, present(path)?)))
}

fn put_stat(znode: &Znode<'_>, out: &mut Vec<u8>) {
    znode.stat().write(out);
}

/// Data and stat of a znode whose data is long: it goes into pieces that are used again.
pub(super) struct LongData<'t> {
    count: Vec<u8>,
    data: &'t [u8],
    stat: Vec<u8>,
}

impl<'t> LongData<'t> {
    /// `None` where the data is not long.
    pub(super) fn of(znode: &Znode<'t>) -> Option<LongData<'t>> {
        let data = znode.data().filter(|data| PIECE_BYTES <= data.len())?;
        let (mut count, mut stat) = (Vec::new(), Vec::new());
        count.put_count(Some(data.len()));
        put_stat(znode, &mut stat);
        Some(LongData { count, data, stat })
    }

    fn bytes(&self) -> usize {
        self.count.len() + self.data.len() + self.stat.len()
    }

    /// Writes what `put_data` would.
    pub(super) fn put(&self, output: &mut Outbox, spare: &mut Spare) {
        for part in [&self.count, self.data, &self.stat] {
            output.append_long(part, spare);
        }
    }
}

pub(super) fn put_data(znode: &Znode<'_>, out: &mut Vec<u8>) {
    out.put_buffer(znode.data());
    put_stat(znode, out);
}

/// What listing children may take of an answer: no more than this.
pub(super) fn children_bytes(linked: LinkedChildren) -> usize {
    linked.count * size_of::<i32>() + linked.name_bytes
}

pub(super) fn put_children(znode: &Znode<'_>, out: &mut Vec<u8>) {
    out.put_count(Some(znode.child_count()));
    let mut count = 0;
    for name in znode.children() {
        out.put_text(name);
        count += 1;
    }
    assert_eq!(count, znode.child_count(), "a znode has as many children as it counts");
}

fn put_acl(acl: &[Acl], out: &mut Vec<u8>) {
    out.put_count(Some(acl.len()));
    for entry in acl {
        entry.write(out);
    }
}
