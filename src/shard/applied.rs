//! What the pipeline announced: fire watches, give answers, move the view, let go what waited.
//!
//! The one place where the order between connections and history is kept:
//!
//! ```text
//! for each item, as it comes:  a change: its watches fire      a reply: it is written
//! then                         the view moves
//! then                         what waited for an answer goes on, and reads the new view
//! ```
//!
//! Triggers after `DataTree.createNode`, `deleteNode` and `setData`; who is told after
//! `WatchManager.triggerWatch` and `NIOServerCnxn.process`.

use std::mem;
use std::sync::Arc;

use crate::exchange::{Applied, Change, ChangeKind, ConnectionId, Item, Outcome, Reply};
use crate::path;
use crate::record::data::{Acl, perms};
use crate::record::op::{EventType, code};
use crate::types::{Now, Zxid};

use super::connection::{Answered, By, Unanswered};
use super::places::Place;
use super::set_watches::put_event;
use super::{Close, Core, Mutant, Output, Shard, Step};

impl Shard {
    /// The pipeline's next batch. It is seen whole or not at all.
    pub fn on_applied(&mut self, now: Now, applied: &Applied, out: &mut Output) {
        if self.core.serves.is_none() {
            // Nobody waits for any of it, and the next tree is read as of a later batch.
            return;
        }
        if self.core.is_mutant(Mutant::ReplyBeforeEvent) {
            self.give_answers(now, applied, out);
            self.fire_all(now, applied, out);
            self.core.tree.advance(applied.zxid);
            self.let_go(now, out);
        } else if self.core.is_mutant(Mutant::ViewBeforeEvents) {
            self.give_answers(now, applied, out);
            self.core.tree.advance(applied.zxid);
            self.let_go(now, out);
            self.fire_all(now, applied, out);
        } else {
            for item in &applied.items {
                match item {
                    Item::Change(change) => self.fire(now, applied, change, out),
                    Item::Reply(reply) => self.settle(now, applied, reply, out),
                }
            }
            if self.core.is_mutant(Mutant::ReadBeforeView) {
                self.let_go(now, out);
            }
            self.core.tree.advance(applied.zxid);
            self.let_go(now, out);
        }
        self.check_if_small();
    }

    fn fire_all(&mut self, now: Now, applied: &Applied, out: &mut Output) {
        for item in &applied.items {
            if let Item::Change(change) = item {
                self.fire(now, applied, change, out);
            }
        }
    }

    fn give_answers(&mut self, now: Now, applied: &Applied, out: &mut Output) {
        for item in &applied.items {
            if let Item::Reply(reply) = item {
                self.settle(now, applied, reply, out);
            }
        }
    }

    /// Tells everyone who watches of one change.
    fn fire(&mut self, now: Now, applied: &Applied, change: &Change, out: &mut Output) {
        let path = applied.path(change.path);
        if !self.core.setting.is_empty() {
            for id in self.core.setting.clone() {
                self.bare_step(now, id, out, |core, step| {
                    core.on_change_while_setting(step, path);
                });
            }
        }
        if self.core.watches.len() == 0 {
            return;
        }
        let (zxid, acl, parent_acl) = (change.zxid, &change.acl, &change.parent_acl);
        let mut hit = mem::take(&mut self.hit);
        let mut told = mem::take(&mut self.hit_before);
        match change.kind {
            ChangeKind::Created => {
                self.core.watches.trigger_data(path, &mut hit);
                self.notify(now, &hit, acl, zxid, EventType::NodeCreated, path, out);
            }
            ChangeKind::Deleted => {
                self.core.watches.trigger_data(path, &mut told);
                self.notify(now, &told, acl, zxid, EventType::NodeDeleted, path, out);
                self.core.watches.trigger_child(path, &mut hit);
                // Whoever the data table named is not told twice, ...
                hit.retain(|connection| told.binary_search(connection).is_err());
                self.notify(now, &hit, acl, zxid, EventType::NodeDeleted, path, out);
            }
            ChangeKind::DataChanged => {
                self.core.watches.trigger_data(path, &mut hit);
                self.notify(now, &hit, acl, zxid, EventType::NodeDataChanged, path, out);
            }
        }
        if change.kind != ChangeKind::DataChanged
            && let Some(parent) = path::parent(path)
        {
            // ... but the parent's children are another matter.
            self.core.watches.trigger_child(parent, &mut hit);
            let event = EventType::NodeChildrenChanged;
            self.notify(now, &hit, parent_acl, zxid, event, parent, out);
        }
        (self.hit, self.hit_before) = (hit, told);
    }

    /// Gives one event to all of `hit` who may read what it is about.
    #[expect(clippy::too_many_arguments, reason = "an event has this many parts")]
    fn notify(
        &mut self,
        now: Now,
        hit: &[u32],
        acl: &Option<Arc<[Acl]>>,
        zxid: Zxid,
        event: EventType,
        path: &str,
        out: &mut Output,
    ) {
        let mut bytes = mem::take(&mut self.event);
        bytes.clear();
        if !hit.is_empty() {
            put_event(&mut bytes, zxid, event, path);
            self.core.counters.on_event(event, hit.len());
        }
        let dropped = usize::from(self.core.is_mutant(Mutant::DropEvent));
        for &slot in hit.iter().skip(dropped) {
            // Whoever is gone had so many watches that they are still being forgotten.
            let Some((id, connection)) = self.connections.at(slot) else { continue };
            if connection.is_closing() {
                continue;
            }
            let core = &mut self.core;
            if !core.permits(acl.as_ref(), perms::READ, &connection.ids)
                && !core.is_mutant(Mutant::EventWithoutAcl)
            {
                continue;
            }
            let mut traffic = connection.traffic.take().unwrap_or_else(|| core.pool.take());
            let held = traffic.held();
            traffic.append_event(&bytes);
            if core.is_mutant(Mutant::DoubleEvent) {
                traffic.append_event(&bytes);
            }
            connection.stats.sent += 1;
            core.counters.packets_sent += 1;
            core.counters.events += 1;
            core.counters.watch_bytes += bytes.len() as u64;
            if core.settings.output_bytes_ceiling < traffic.output.event_bytes() {
                core.counters.unread_connections_closed += 1;
                let mut step = Step { now, id, connection, traffic: &mut traffic, out };
                core.end(&mut step, Close::AtOnce);
            }
            core.count_held(now, held, &mut traffic);
            connection.announce_later(id, out);
            if traffic.is_empty() {
                core.pool.give_back(traffic);
            } else {
                connection.traffic = Some(traffic);
            }
        }
        self.event = bytes;
        self.make_room(now, out);
    }

    /// What became of a request. Whoever has left in the meantime is not missed.
    fn settle(&mut self, now: Now, applied: &Applied, reply: &Reply, out: &mut Output) {
        if reply.shard != self.id {
            return;
        }
        let id = reply.connection;
        let (mut goes_on, mut is_late) = (false, reply.outcome != Outcome::Ended);
        self.step(now, id, out, |core, step| {
            if step.connection.is_closing() {
                return;
            }
            is_late = reply.outcome == Outcome::Dropped;
            match reply.outcome {
                Outcome::Answer { xid, err, body, close } => {
                    let asked = core.answered(step);
                    assert_eq!(asked.xid, xid, "requests are answered in their order");
                    let body = applied.body(body);
                    step.traffic.reply(xid.0, reply.zxid, err, |out| out.extend_from_slice(body));
                    let answered = Answered {
                        xid: xid.0,
                        op: asked.op,
                        zxid: reply.zxid,
                        received_ms: asked.received_ms,
                        by: By::Pipeline,
                    };
                    core.note_reply(step, answered);
                    // A closeSession ends the connection also where the session was gone.
                    if close || asked.op == code::CLOSE_SESSION {
                        core.end(step, Close::AfterFlush);
                    }
                }
                Outcome::Connected { session, timeout_ms, password } => {
                    let asked = core.answered(step);
                    core.on_connected(step, asked, reply.zxid, (session, timeout_ms, password));
                }
                Outcome::Refused => {
                    core.answered(step);
                    core.on_refused(step);
                }
                Outcome::Dropped | Outcome::Ended => core.end(step, Close::AfterFlush),
            }
            goes_on = !step.connection.is_closing();
        });
        if goes_on {
            self.answered.push(id);
        }
        if is_late {
            self.core.on_late_reply(id);
        }
    }

    /// Goes on with connections that got an answer.
    fn let_go(&mut self, now: Now, out: &mut Output) {
        let mut answered: Vec<ConnectionId> = mem::take(&mut self.answered);
        answered.sort_unstable();
        answered.dedup();
        for id in answered.drain(..) {
            let connection = self.connections.find(id);
            let traffic = connection.and_then(|connection| connection.traffic.as_deref());
            if traffic.is_some_and(|traffic| !traffic.input.is_empty()) {
                self.step(now, id, out, |core, step| core.go_on(step));
            }
        }
        self.answered = answered;
    }
}

impl Core {
    /// The oldest of a connection's requests is with the pipeline no more.
    fn answered(&mut self, step: &mut Step<'_>) -> Unanswered {
        let answered = step.traffic.unanswered.pop_front().expect("an answer has its request");
        self.outstanding -= 1;
        self.large_bytes -= answered.large_bytes as usize;
        if answered.op == code::GET_EPHEMERALS {
            self.give_back_place(Place::Ephemerals);
        }
        answered
    }
}
