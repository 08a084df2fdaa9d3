//! Who is alive: sessions, their timeouts, and the buckets in which they expire.
//!
//! A deadline is rounded up to the next tick after it, so that sessions expire in whole buckets:
//! a silent one lives at least its timeout and less than a tick longer.
//!
//! ```text
//! deadline = ((heard + timeout) / tick + 1) * tick
//! ```
//!
//! Shards say once per tick whom they heard. A bucket is let go only when every shard has
//! reported since, so that a shard that stalls costs nobody the session. No shard decides that
//! a session is dead.
//!
//! A *global* session is everybody's: its leader alone ends it, and a learner knows of it what the
//! log says. A *local* one is known to the server that its client is on, which ends it by itself; no
//! log says anything of it. After `SessionTrackerImpl`, `ExpiryQueue`, `UpgradeableSessionTracker`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

use crate::exchange::{ConnectionId, ShardId};
use crate::types::{HighestSessions, Now, ServerId, SessionId, Zxid};
use crate::zab::LinkId;

/// What of a session's id is not its server's number.
const ID_MASK: i64 = (1 << 56) - 1;

/// A client of this server.
pub(super) type Client = (ShardId, ConnectionId);

/// Through whom a session speaks, or spoke last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// It has not been heard of since this server took its role.
    Nobody,
    Client(Client),
    /// The learner over this link, where this server leads.
    Learner(LinkId),
}

impl Owner {
    /// Its connection, where that is to this server.
    pub(super) fn client(self) -> Option<Client> {
        match self {
            Owner::Client(client) => Some(client),
            Owner::Nobody | Owner::Learner(_) => None,
        }
    }
}

/// Who knows a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Every server: a transaction has opened it, or is about to.
    Global,
    /// This server.
    Local,
}

/// A session as long as it may do anything.
#[derive(Clone, Copy, Debug)]
struct Session {
    scope: Scope,
    timeout_ms: i32,
    /// The end of its bucket, on the monotonic clock.
    deadline_ms: i64,
    owner: Owner,
}

/// What the tracker says of a session, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    pub session: SessionId,
    pub timeout_ms: i32,
    pub deadline_ms: i64,
}

/// Sessions by when they expire.
#[derive(Debug, Default)]
struct Buckets {
    by_deadline: BTreeMap<i64, BTreeSet<SessionId>>,
    count: usize,
}

impl Buckets {
    fn enter(&mut self, session: SessionId, deadline_ms: i64) {
        self.by_deadline.entry(deadline_ms).or_default().insert(session);
        self.count += 1;
    }

    fn leave(&mut self, session: SessionId, deadline_ms: i64) {
        let bucket = self.by_deadline.get_mut(&deadline_ms);
        let bucket = bucket.expect("every session is in a bucket");
        bucket.remove(&session);
        if bucket.is_empty() {
            self.by_deadline.remove(&deadline_ms);
        }
        self.count -= 1;
    }
}

#[derive(Debug)]
pub(super) struct Tracker {
    tick_ms: i64,
    sessions: HashMap<SessionId, Session, foldhash::fast::FixedState>,
    global: Buckets,
    local: Buckets,
    next: SessionId,
    /// By shard: all that it heard up to here is known.
    reported_ms: Vec<i64>,
}

impl Tracker {
    /// With the sessions that the disk knows: each begins with its full timeout. `last` is the
    /// last transaction on the disk, `highest` the highest id found there, of any session.
    #[must_use]
    pub(super) fn new(
        now: Now,
        tick_ms: i64,
        server: ServerId,
        shards: usize,
        last: Zxid,
        highest: &HighestSessions,
        known: impl IntoIterator<Item = (SessionId, i32)>,
    ) -> Tracker {
        assert!(tick_ms > 0);
        let first = SessionId(first_session(now, server));
        let mut tracker = Tracker {
            tick_ms,
            sessions: HashMap::default(),
            global: Buckets::default(),
            local: Buckets::default(),
            next: highest
                .of_server_of(first)
                .map_or(first, |highest| first.max(after(highest, last))),
            reported_ms: vec![now.monotonic_ms; shards],
        };
        for (session, timeout_ms) in known {
            tracker.insert(now, session, timeout_ms, Scope::Global, Owner::Nobody);
        }
        tracker
    }

    /// The id of a session to come.
    pub(super) fn next(&mut self) -> SessionId {
        let session = self.next;
        self.next = SessionId(session.0 + 1);
        session
    }

    /// Another state replaces the one that was tracked before: what it cannot know goes on, which is
    /// the local sessions and the ids that were given out.
    pub(super) fn take_over(&mut self, before: Tracker) {
        self.next = self.next.max(before.next);
        for session in before.local.by_deadline.into_values().flatten() {
            if let Some(&known) = before.sessions.get(&session)
                && !self.is_alive(session)
            {
                self.local.enter(session, known.deadline_ms);
                self.sessions.insert(session, known);
            }
        }
    }

    /// A session is there, whole timeout and all, whether it was known or not.
    pub(super) fn insert(
        &mut self,
        now: Now,
        session: SessionId,
        timeout_ms: i32,
        scope: Scope,
        owner: Owner,
    ) {
        let deadline_ms = self.deadline(now.monotonic_ms, timeout_ms);
        let known = Session { scope, timeout_ms, deadline_ms, owner };
        if let Some(previous) = self.sessions.insert(session, known) {
            self.buckets_of(previous.scope).leave(session, previous.deadline_ms);
        }
        self.buckets_of(scope).enter(session, deadline_ms);
    }

    fn buckets_of(&mut self, scope: Scope) -> &mut Buckets {
        match scope {
            Scope::Global => &mut self.global,
            Scope::Local => &mut self.local,
        }
    }

    #[must_use]
    pub(super) fn is_alive(&self, session: SessionId) -> bool {
        self.sessions.contains_key(&session)
    }

    /// `None` where there is no such session.
    #[must_use]
    pub(super) fn owner(&self, session: SessionId) -> Option<Owner> {
        self.sessions.get(&session).map(|known| known.owner)
    }

    /// `None` where there is no such session.
    #[must_use]
    pub(super) fn scope(&self, session: SessionId) -> Option<Scope> {
        self.sessions.get(&session).map(|known| known.scope)
    }

    #[must_use]
    pub(super) fn is_local(&self, session: SessionId) -> bool {
        self.scope(session) == Some(Scope::Local)
    }

    /// A session that is known is known to others as well from now on, or no longer.
    pub(super) fn set_scope(&mut self, session: SessionId, scope: Scope) {
        let Some(known) = self.sessions.get_mut(&session) else { return };
        let deadline_ms = known.deadline_ms;
        let before = std::mem::replace(&mut known.scope, scope);
        self.buckets_of(before).leave(session, deadline_ms);
        self.buckets_of(scope).enter(session, deadline_ms);
    }

    /// A session that is known speaks through another from now on.
    pub(super) fn set_owner(&mut self, session: SessionId, owner: Owner) {
        if let Some(known) = self.sessions.get_mut(&session) {
            known.owner = owner;
        }
    }

    /// A session is back, through another. Says through whom it spoke before; `None` where there is
    /// no such session.
    pub(super) fn resume(
        &mut self,
        now: Now,
        session: SessionId,
        timeout_ms: i32,
        owner: Owner,
    ) -> Option<Owner> {
        let before = *self.sessions.get(&session)?;
        self.insert(now, session, timeout_ms, before.scope, owner);
        Some(before.owner)
    }

    /// This server takes a role in which it tells who is alive: every session has its whole timeout
    /// again, and speaks through nobody yet.
    pub(super) fn restart(&mut self, now: Now) {
        self.reported_ms.fill(now.monotonic_ms);
        let known: Vec<(SessionId, Session)> = self.sessions.drain().collect();
        (self.global, self.local) = Default::default();
        for (session, Session { timeout_ms, scope, .. }) in known {
            self.insert(now, session, timeout_ms, scope, Owner::Nobody);
        }
    }

    /// These are the sessions of the ensemble that live, and each has its whole timeout. Nobody speaks
    /// for them here yet. Those of this server alone are in no history.
    pub(super) fn replace(&mut self, now: Now, known: impl IntoIterator<Item = (SessionId, i32)>) {
        let own = self.sessions.drain().filter(|(_, session)| session.scope == Scope::Local);
        let own: Vec<(SessionId, i32)> =
            own.map(|(session, known)| (session, known.timeout_ms)).collect();
        (self.global, self.local) = Default::default();
        for (session, timeout_ms) in known {
            self.insert(now, session, timeout_ms, Scope::Global, Owner::Nobody);
        }
        for (session, timeout_ms) in own {
            self.insert(now, session, timeout_ms, Scope::Local, Owner::Nobody);
        }
    }

    /// The sessions that this server alone knows are over, for all of them at once.
    pub(super) fn forget_local(&mut self) {
        self.local = Buckets::default();
        self.sessions.retain(|_, known| known.scope == Scope::Global);
    }

    /// How long a session may be silent.
    #[must_use]
    pub(super) fn timeout_ms(&self, session: SessionId) -> Option<i32> {
        self.sessions.get(&session).map(|known| known.timeout_ms)
    }

    /// The session was heard from at `heard_ms`.
    pub(super) fn touch(&mut self, session: SessionId, heard_ms: i64) {
        let Some(known) = self.sessions.get(&session).copied() else { return };
        let deadline_ms = self.deadline(heard_ms, known.timeout_ms);
        if known.deadline_ms < deadline_ms {
            let buckets = self.buckets_of(known.scope);
            buckets.leave(session, known.deadline_ms);
            buckets.enter(session, deadline_ms);
            self.sessions.insert(session, Session { deadline_ms, ..known });
        }
    }

    /// The same, told by a learner, with the timeout that the session has there.
    pub(super) fn touch_for(&mut self, session: SessionId, heard_ms: i64, timeout_ms: i32) {
        if let Some(known) = self.sessions.get_mut(&session) {
            known.timeout_ms = timeout_ms;
            self.touch(session, heard_ms);
        }
    }

    /// All that a shard heard up to `as_of_ms` has been told by `touch`.
    pub(super) fn on_report(&mut self, shard: ShardId, as_of_ms: i64) {
        if let Some(reported) = self.reported_ms.get_mut(usize::from(shard.0)) {
            *reported = as_of_ms.max(*reported);
        }
    }

    /// The session is over. Says through whom it spoke.
    pub(super) fn close(&mut self, session: SessionId) -> Option<Owner> {
        let closed = self.sessions.remove(&session)?;
        self.buckets_of(closed.scope).leave(session, closed.deadline_ms);
        Some(closed.owner)
    }

    /// The sessions of this scope whose time has come, in the order of their ids within a bucket. They
    /// are still known; `close` ends them. `told_until_ms`: learners have said up to here whom they
    /// heard.
    #[must_use]
    pub(super) fn due(&self, now: Now, scope: Scope, told_until_ms: i64) -> Vec<SessionId> {
        let heard_until = self.reported_ms.iter().copied().min().unwrap_or(i64::MAX);
        let until = now.monotonic_ms.min(heard_until).min(told_until_ms);
        let due = self.buckets(scope).by_deadline.range(..=until);
        due.flat_map(|(_, sessions)| sessions).copied().collect()
    }

    fn buckets(&self, scope: Scope) -> &Buckets {
        match scope {
            Scope::Global => &self.global,
            Scope::Local => &self.local,
        }
    }

    fn deadline(&self, heard_ms: i64, timeout_ms: i32) -> i64 {
        ((heard_ms + i64::from(timeout_ms)) / self.tick_ms + 1) * self.tick_ms
    }

    #[must_use]
    pub(super) fn count(&self, scope: Scope) -> usize {
        self.buckets(scope).count
    }

    /// The sessions, soonest to expire first and by their ids in a bucket, that come after a place in
    /// this order. One that is heard from meanwhile moves to a later place, and may come again.
    pub(super) fn sessions_after(
        &self,
        scope: Scope,
        place: Option<(i64, SessionId)>,
    ) -> impl Iterator<Item = SessionInfo> + '_ {
        let buckets = &self.buckets(scope).by_deadline;
        let (deadline_ms, session) = place.unwrap_or((i64::MIN, SessionId(i64::MIN)));
        let of_this = buckets.get(&deadline_ms).into_iter();
        let rest = of_this
            .flat_map(move |bucket| bucket.range((Bound::Excluded(session), Bound::Unbounded)))
            .map(move |&session| (deadline_ms, session));
        let later = buckets.range((Bound::Excluded(deadline_ms), Bound::Unbounded));
        let later = later.flat_map(|(&deadline_ms, bucket)| {
            bucket.iter().map(move |&session| (deadline_ms, session))
        });
        rest.chain(later).map(|(deadline_ms, session)| SessionInfo {
            session,
            timeout_ms: self.sessions[&session].timeout_ms,
            deadline_ms,
        })
    }

    /// What does not hold, by name.
    #[must_use]
    pub(super) fn broken_invariant(&self) -> Option<&'static str> {
        let counted = [&self.global, &self.local].iter().all(|buckets| {
            buckets.count == buckets.by_deadline.values().map(BTreeSet::len).sum::<usize>()
        });
        let is_whole = counted && self.global.count + self.local.count == self.sessions.len();
        (!is_whole).then_some("each session is in one bucket")
    }
}

/// Sessions whose ids are on the disk no more are counted by the zxid, up to this many, and then from
/// zero again: after 256 epochs. In the clock's time these ids are 4.6 hours at most.
const FORGOTTEN_SESSIONS_MAX: i64 = 1 << 40;

/// The first id that is beyond all that were given out, by what is on the disk.
///
/// The clock may have been set back since the highest that is known there was given out, and
/// since others whose sessions are over, but whose clients may still come back. Each took a
/// transaction, so none is as far from that one as there are transactions. The very last id of
/// all was not given out: nobody has had that many. (A local session takes none, but its id is known to
/// this server alone, and as long as it lives.)
fn after(highest: SessionId, last: Zxid) -> SessionId {
    if highest.0 & ID_MASK == ID_MASK {
        return SessionId(highest.0 & !ID_MASK);
    }
    // Not the counter of `last`: it begins again with each epoch. What is counted here must grow with
    // every transaction, or a later life would give the ids of an earlier one.
    let forgotten = last.0.max(0) % FORGOTTEN_SESSIONS_MAX;
    let beyond = highest.0.saturating_add(1 + forgotten);
    SessionId(beyond.min(highest.0 | ID_MASK))
}

/// The first id that a server gives out: its number in the top byte, 40 bits of time, and 16
/// bits for the sessions of one millisecond. ZooKeeper takes the monotonic clock, which may
/// begin again after a reboot; we take the wall clock.
fn first_session(now: Now, server: ServerId) -> i64 {
    let time = ((now.wall_ms << 24) as u64 >> 8) as i64;
    match time | server.0 << 56 {
        // Would be the mark of a container.
        i64::MIN => i64::MIN + 1,
        id => id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: ShardId = ShardId(0);
    const HERE: Owner = Owner::Client((SHARD, ConnectionId { slot: 0, generation: 0 }));

    fn open(tracker: &mut Tracker, now: Now, timeout_ms: i32) -> SessionId {
        let session = tracker.next();
        tracker.insert(now, session, timeout_ms, Scope::Global, HERE);
        session
    }

    fn at(monotonic_ms: i64) -> Now {
        Now { monotonic_ms, wall_ms: 1_800_000_000_000 }
    }

    fn tracker() -> Tracker {
        Tracker::new(at(0), 1_000, ServerId(1), 1, Zxid(7), &HighestSessions::default(), [])
    }

    #[test]
    fn a_silent_session_expires_within_a_tick_after_its_timeout() {
        let mut tracker = tracker();
        let session = open(&mut tracker, at(500), 4_000);
        tracker.on_report(SHARD, 4_999);
        assert_eq!(tracker.due(at(4_999), Scope::Global, i64::MAX), []);
        // What its shard heard at 5,000 is not known yet.
        assert_eq!(tracker.due(at(5_000), Scope::Global, i64::MAX), []);
        tracker.on_report(SHARD, 5_000);
        // A learner has not said whom it has heard until then.
        assert_eq!(tracker.due(at(5_000), Scope::Global, 4_999), []);
        assert_eq!(tracker.due(at(5_000), Scope::Global, i64::MAX), [session]);
        assert_eq!(tracker.close(session), Some(HERE));
        assert!(!tracker.is_alive(session));
        assert_eq!(tracker.broken_invariant(), None);
    }

    #[test]
    fn nobody_expires_while_a_shard_is_behind_with_its_report() {
        let mut tracker = tracker();
        let session = open(&mut tracker, at(0), 2_000);
        tracker.on_report(SHARD, 1_000);
        assert_eq!(tracker.due(at(60_000), Scope::Global, i64::MAX), []);
        tracker.touch(session, 59_000);
        tracker.on_report(SHARD, 60_000);
        assert_eq!(tracker.due(at(60_000), Scope::Global, i64::MAX), []);
    }

    #[test]
    fn sessions_are_listed_in_parts_of_any_size() {
        let mut tracker = tracker();
        for number in 0..50 {
            open(&mut tracker, at(0), 4_000 + number % 4 * 1_500);
        }
        let whole: Vec<SessionInfo> = tracker.sessions_after(Scope::Global, None).collect();
        assert_eq!(whole.len(), 50);
        assert!(whole.is_sorted_by_key(|of| (of.deadline_ms, of.session)));
        for most in 1..60 {
            let (mut parts, mut place) = (Vec::new(), None);
            loop {
                let part: Vec<SessionInfo> =
                    tracker.sessions_after(Scope::Global, place).take(most).collect();
                let Some(last) = part.last() else { break };
                place = Some((last.deadline_ms, last.session));
                parts.extend(part);
            }
            assert_eq!(parts, whole, "parts of {most}");
        }
    }

    /// The counter begins again with each epoch, and ids must not be given out twice.
    #[test]
    fn ids_keep_their_distance_when_the_epoch_has_rolled() {
        let highest = SessionId(1 << 56 | 1 << 40);
        let distance = |last: Zxid| after(highest, last).0 - highest.0;
        assert_eq!(distance(Zxid::ZERO), 1);
        assert_eq!(distance(Zxid(7)), 8);
        let ends = [i64::from(u32::MAX), 1 << 32, (1 << 32) + 5, 7 << 32, (255 << 32) + 9];
        for (earlier, later) in ends.iter().zip(&ends[1..]) {
            let given = later - earlier;
            assert!(distance(Zxid(*earlier)) + given <= distance(Zxid(*later)), "{later:#x}");
        }
        assert!(distance(Zxid(i64::MAX)) <= FORGOTTEN_SESSIONS_MAX);
    }

    #[test]
    fn ids_go_on_after_those_on_the_disk() {
        let fresh = tracker().next();
        assert_eq!(fresh.0 >> 56, 1);
        let first_after = |server: ServerId, on_disk: &[SessionId]| {
            let mut highest = HighestSessions::default();
            on_disk.iter().for_each(|session| highest.note(*session));
            Tracker::new(at(0), 1_000, server, 1, Zxid(7), &highest, []).next()
        };
        let later = SessionId(fresh.0 + 1_000_000);
        let earlier = SessionId(fresh.0 - 1_000_000);
        assert_eq!(first_after(ServerId(1), &[later, earlier]), SessionId(later.0 + 1 + 7));
        assert_eq!(first_after(ServerId(1), &[earlier]), fresh);
        let of_another = SessionId(2 << 56 | (later.0 & ID_MASK));
        assert_eq!(first_after(ServerId(1), &[of_another]), fresh);
        for server in [ServerId(1), ServerId(127)] {
            let last = SessionId(server.0 << 56 | ID_MASK);
            assert_eq!(first_after(server, &[last]).0 >> 56, server.0);
        }
    }
}
