//! What waits for its commit: answers and changes, in the order of history.
//!
//! Every step's share is sealed into one batch with the zxid that it ends at. Batches go out in
//! order, each once all its transactions are committed. An answer without a transaction of its
//! own (a sync, a session that comes back) waits with those before it, which is all that its
//! place in the order asks for.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::exchange::{
    Applied, Change, ChangeKind, ConnectionId, Item, Outcome, Reply, ShardId, Span,
};
use crate::record::code::Code;
use crate::record::data::Acl;
use crate::tree::change::Changes;
use crate::types::{SessionId, Xid, Zxid};

/// Batches that are kept for use again, at most.
const SPARE_MAX: usize = 64;
/// Buffers beyond this are given back rather than kept.
const SPARE_BYTES_MAX: usize = 1 << 20;

struct Sealed {
    batch: Arc<Applied>,
    /// The tree's digest after it.
    digest: u64,
    sessions: Vec<SessionChange>,
}

/// A session opens, with its timeout, or closes.
#[derive(Clone, Copy, Debug)]
pub(super) struct SessionChange {
    zxid: Zxid,
    pub(super) session: SessionId,
    pub(super) timeout_ms: Option<i32>,
}

pub(super) struct Gathered {
    /// The batch that the current step adds to.
    open: Applied,
    sessions: Vec<SessionChange>,
    sealed: VecDeque<Sealed>,
    /// Handed out, to be used again once no shard holds them.
    lent: VecDeque<Arc<Applied>>,
    /// What the last batch that went out ended at, and the digest there.
    released: (Zxid, u64),
    outstanding: usize,
    /// The longest body of an answer; a longer one is an error.
    answer_bytes_max: usize,
}

/// How far a batch has come.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    items: usize,
    paths: usize,
    bodies: usize,
}

impl Gathered {
    pub(super) fn new(zxid: Zxid, digest: u64, answer_bytes_max: usize) -> Gathered {
        Gathered {
            open: Applied::default(),
            sessions: Vec::new(),
            sealed: VecDeque::new(),
            lent: VecDeque::new(),
            released: (zxid, digest),
            outstanding: 0,
            answer_bytes_max,
        }
    }

    pub(super) fn mark(&self) -> Mark {
        Mark {
            items: self.open.items.len(),
            paths: self.open.paths.len(),
            bodies: self.open.bodies.len(),
        }
    }

    pub(super) fn truncate(&mut self, mark: Mark) {
        self.open.items.truncate(mark.items);
        self.open.paths.truncate(mark.paths);
        self.open.bodies.truncate(mark.bodies);
    }

    /// Takes the changes of the transaction `zxid`.
    pub(super) fn changes(&mut self, zxid: Zxid) -> impl Changes + '_ {
        Watched { open: &mut self.open, zxid }
    }

    pub(super) fn body(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Span {
        let start = self.open.bodies.len();
        write(&mut self.open.bodies);
        Span::since(start, self.open.bodies.len())
    }

    pub(super) fn answer(
        &mut self,
        (shard, connection): (ShardId, ConnectionId),
        xid: Xid,
        zxid: Zxid,
        err: Code,
        body: impl FnOnce(&mut Vec<u8>),
    ) {
        let (mut body, mut err) = (self.body(body), err);
        if self.answer_bytes_max < body.range().len() {
            self.open.bodies.truncate(body.start);
            (body, err) = (Span::since(body.start, body.start), Code::MarshallingError);
        }
        self.reply((shard, connection), zxid, Outcome::Answer { xid, err, body, close: false });
    }

    pub(super) fn reply(
        &mut self,
        (shard, connection): (ShardId, ConnectionId),
        zxid: Zxid,
        outcome: Outcome,
    ) {
        self.open.items.push(Item::Reply(Reply { shard, connection, zxid, outcome }));
        self.outstanding += 1;
    }

    pub(super) fn session_opened(&mut self, zxid: Zxid, session: SessionId, timeout_ms: i32) {
        self.sessions.push(SessionChange { zxid, session, timeout_ms: Some(timeout_ms) });
    }

    pub(super) fn session_closed(&mut self, zxid: Zxid, session: SessionId) {
        self.sessions.push(SessionChange { zxid, session, timeout_ms: None });
    }

    /// How sessions change up to `zxid` by what has not gone out.
    pub(super) fn sessions_until(&self, zxid: Zxid) -> impl Iterator<Item = SessionChange> {
        let sealed = self.sealed.iter().flat_map(|sealed| &sealed.sessions);
        let all = sealed.chain(&self.sessions).copied();
        all.take_while(move |change| change.zxid <= zxid)
    }

    /// Ends the open batch at `zxid`, where the tree has `digest`.
    pub(super) fn seal(&mut self, zxid: Zxid, digest: u64) {
        let last = self.sealed.back().map_or(self.released.0, |sealed| sealed.batch.zxid);
        assert!(last <= zxid, "history goes forward");
        if self.open.items.is_empty() && last == zxid {
            return;
        }
        let next = self.spare();
        let mut batch = std::mem::replace(&mut self.open, next);
        batch.zxid = zxid;
        let sessions = std::mem::take(&mut self.sessions);
        self.sealed.push_back(Sealed { batch: Arc::new(batch), digest, sessions });
    }

    /// Hands out the replies of a server without a leader, which wait for no commit: nothing else is
    /// in the open batch. `shown` is what its clients see.
    pub(super) fn hand_out(&mut self, shown: Zxid, out: &mut Vec<Arc<Applied>>) {
        if self.open.items.is_empty() {
            return;
        }
        let next = self.spare();
        let mut batch = std::mem::replace(&mut self.open, next);
        batch.zxid = shown;
        self.outstanding -= batch.items.len();
        out.push(Arc::new(batch));
    }

    /// Nobody is there who is told what has changed up to `zxid`: it becomes one batch that only says how
    /// far history has come.
    pub(super) fn forget_changes_until(&mut self, zxid: Zxid) {
        let count = self.sealed.iter().take_while(|sealed| sealed.batch.zxid <= zxid).count();
        let mut forgotten = self.sealed.drain(..count);
        let Some(mut merged) = forgotten.next() else { return };
        let (mut zxid, mut replies) = (merged.batch.zxid, merged.batch.replies());
        for sealed in forgotten {
            (zxid, merged.digest) = (sealed.batch.zxid, sealed.digest);
            replies += sealed.batch.replies();
            merged.sessions.extend(sealed.sessions);
        }
        self.outstanding -= replies;
        merged.batch = Arc::new(Applied { zxid, ..Applied::default() });
        self.sealed.push_front(merged);
    }

    /// A transaction that was in the log at the start, after which the tree has `digest`.
    pub(super) fn found(
        &mut self,
        zxid: Zxid,
        digest: u64,
        session: Option<(SessionId, Option<i32>)>,
    ) {
        let change =
            session.map(|(session, timeout_ms)| SessionChange { zxid, session, timeout_ms });
        self.sessions.extend(change);
        self.seal(zxid, digest);
    }

    /// All after `zxid` is taken back, where the tree has `digest`. Nothing of it has gone out, and
    /// who waits for it gets no answer. Says how many transactions that is.
    pub(super) fn forget_after(&mut self, zxid: Zxid, digest: u64) -> u64 {
        assert!(self.released.0 <= zxid, "what has gone out is not taken back");
        assert!(self.open.items.is_empty() && self.sessions.is_empty(), "all is sealed");
        let mut forgotten = 0;
        while let Some(mut last) = self.sealed.pop_back_if(|last| zxid < last.batch.zxid) {
            let before = self.sealed.back().map_or(self.released.0, |sealed| sealed.batch.zxid);
            forgotten += txns_between(before.max(zxid), last.batch.zxid);
            let batch = Arc::get_mut(&mut last.batch).expect("it has not gone out");
            self.outstanding -= batch.replies();
            if zxid <= before {
                continue;
            }
            // The batch of a step that goes beyond.
            batch.items.retain(|item| match item {
                Item::Change(change) => change.zxid <= zxid,
                Item::Reply(reply) => reply.zxid <= zxid,
            });
            batch.zxid = zxid;
            self.outstanding += batch.replies();
            last.sessions.retain(|change| change.zxid <= zxid);
            self.sealed.push_back(Sealed { digest, ..last });
        }
        forgotten
    }

    /// An empty batch, if possible one that all shards are done with.
    fn spare(&mut self) -> Applied {
        while let Some(lent) = self.lent.pop_front() {
            match Arc::try_unwrap(lent) {
                Ok(mut batch) if batch.bodies.capacity() <= SPARE_BYTES_MAX => {
                    batch.clear();
                    return batch;
                }
                Ok(_) => {}
                Err(lent) => {
                    self.lent.push_front(lent);
                    break;
                }
            }
        }
        Applied::default()
    }

    /// Hands out what is committed. Says where the last batch ends, if there was any.
    pub(super) fn release(
        &mut self,
        committed: Zxid,
        out: &mut Vec<Arc<Applied>>,
        mut session: impl FnMut(SessionId, Option<i32>),
    ) -> Option<Zxid> {
        let mut released = None;
        while let Some(sealed) = self.sealed.front()
            && sealed.batch.zxid <= committed
        {
            let Some(Sealed { batch, digest, sessions }) = self.sealed.pop_front() else { break };
            for change in sessions {
                session(change.session, change.timeout_ms);
            }
            self.outstanding -= batch.replies();
            self.released = (batch.zxid, digest);
            released = Some(batch.zxid);
            if self.lent.len() < SPARE_MAX {
                self.lent.push_back(Arc::clone(&batch));
            }
            out.push(batch);
        }
        released
    }

    /// Where the last batch that went out ended, and the tree's digest there.
    pub(super) fn released(&self) -> (Zxid, u64) {
        self.released
    }

    /// Replies that wait.
    pub(super) fn outstanding(&self) -> usize {
        self.outstanding
    }
}

/// How many transactions there are after one and up to another. Batches end where epochs do.
fn txns_between(from: Zxid, to: Zxid) -> u64 {
    let start = if from.epoch() == to.epoch() { from.counter() } else { 0 };
    u64::from(to.counter() - start)
}

struct Watched<'g> {
    open: &'g mut Applied,
    zxid: Zxid,
}

impl Changes for Watched<'_> {
    fn change(
        &mut self,
        kind: ChangeKind,
        path: &str,
        acl: Option<&Arc<[Acl]>>,
        parent_acl: Option<&Arc<[Acl]>>,
    ) {
        let start = self.open.paths.len();
        self.open.paths.push_str(path);
        self.open.items.push(Item::Change(Change {
            kind,
            zxid: self.zxid,
            path: Span::since(start, self.open.paths.len()),
            acl: acl.cloned(),
            parent_acl: parent_acl.cloned(),
        }));
    }
}

impl Applied {
    fn replies(&self) -> usize {
        self.items.iter().filter(|item| matches!(item, Item::Reply(_))).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_is_told_is_held_as_one_batch_whose_sessions_stay() {
        let mut gathered = Gathered::new(Zxid(0), 0, 100);
        for zxid in 1..=1_000 {
            gathered.changes(Zxid(zxid)).change(ChangeKind::DataChanged, "/a", None, None);
            if zxid % 100 == 0 {
                gathered.session_opened(Zxid(zxid), SessionId(zxid), 5_000);
            }
            let connection = ConnectionId { slot: 1, generation: 0 };
            gathered.reply((ShardId(0), connection), Zxid(zxid), Outcome::Dropped);
            gathered.seal(Zxid(zxid), zxid as u64);
        }
        gathered.forget_changes_until(Zxid(998));
        assert_eq!((gathered.sealed.len(), gathered.outstanding()), (3, 2));
        let (mut out, mut sessions) = (Vec::new(), 0);
        assert_eq!(gathered.release(Zxid(997), &mut out, |_, _| sessions += 1), None);
        let released = gathered.release(Zxid(999), &mut out, |_, _| sessions += 1);
        assert_eq!(
            (released, sessions, gathered.released()),
            (Some(Zxid(999)), 9, (Zxid(999), 999))
        );
        let seen: Vec<_> = out.iter().map(|batch| (batch.zxid, batch.items.len())).collect();
        assert_eq!(seen, [(Zxid(998), 0), (Zxid(999), 2)]);
    }

    const CLIENT: (ShardId, ConnectionId) = (ShardId(0), ConnectionId { slot: 0, generation: 0 });

    /// A leader's step orders several transactions, of which some may become history.
    fn step(gathered: &mut Gathered, zxids: std::ops::RangeInclusive<i64>) {
        for zxid in zxids.clone().map(Zxid) {
            gathered.changes(zxid).change(ChangeKind::Created, "/a", None, None);
            gathered.session_opened(zxid, SessionId(zxid.0), 1_000);
            gathered.reply(CLIENT, zxid, Outcome::Ended);
        }
        gathered.seal(Zxid(*zxids.end()), *zxids.end() as u64);
    }

    #[test]
    fn a_step_is_forgotten_from_any_of_its_transactions_on() {
        for to in 1..=9 {
            let mut gathered = Gathered::new(Zxid(1), 1, 100);
            for zxids in [2..=3, 4..=7, 8..=8, 9..=9] {
                step(&mut gathered, zxids);
            }
            assert_eq!(gathered.forget_after(Zxid(to), 77), 9 - to as u64, "{to}");
            assert_eq!(gathered.outstanding() as i64, to - 1);
            let sessions: Vec<i64> =
                gathered.sessions_until(Zxid(100)).map(|change| change.session.0).collect();
            assert_eq!(sessions, Vec::from_iter(2..=to));
            let (mut out, mut items) = (Vec::new(), 0);
            gathered.release(Zxid(100), &mut out, |_, _| ());
            for batch in &out {
                items += batch.items.len() as i64;
                assert!(batch.zxid <= Zxid(to));
            }
            assert_eq!((gathered.released().0, items), (Zxid(to), 2 * (to - 1)));
            let digest = if [1, 3, 7, 8, 9].contains(&to) { to as u64 } else { 77 };
            assert_eq!(gathered.released().1, digest);
            step(&mut gathered, to + 1..=to + 2);
            gathered.release(Zxid(100), &mut out, |_, _| ());
            assert_eq!(gathered.outstanding(), 0);
        }
    }

    #[test]
    fn transactions_of_two_epochs_are_counted() {
        let zxid = |epoch, counter| Zxid::new(crate::types::Epoch(epoch), counter);
        assert_eq!(txns_between(zxid(1, 4), zxid(1, 9)), 5);
        assert_eq!(txns_between(zxid(1, 9), zxid(2, 3)), 3);
    }
}
