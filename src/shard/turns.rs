//! Who goes on when, and how much there may be of what all connections have in common.
//!
//! **Turns.** A core goes round: it takes what has come, acts on it, writes. In one turn a connection
//! is given so many bytes of answers and so many steps of work, and all connections of a shard
//! together so many; whoever has more to ask is queued, and goes on in a later turn. Those that have
//! had nothing in this turn come before those that have had their share.
//!
//! **Allowances.** What must be bounded for the whole server is counted by each shard alone. A shard has
//! a part of its own, and leases more from what is left, in large units: most never do.
//!
//! Of answers, each shard gets its fair part (all of it by the number of shards) even if others have
//! leased what is left. Then the allowance is overdrawn, and the shards that hold more than their
//! fair part see that at their next turn or tick, and end connections until it is not.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};

use crate::exchange::ConnectionId;

/// How much is done in one turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnBudget {
    /// Of answers.
    pub bytes: usize,
    /// A child listed, a path looked up, a watch set or forgotten are one each; a request is
    /// `REQUEST_STEPS`.
    pub steps: usize,
}

/// What decoding a request, looking up its path and encoding its answer take, beside a child that
/// is listed.
pub(super) const REQUEST_STEPS: usize = 2;

const STEPS_AT_ONCE_MAX: usize = 64;

/// What has been done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    /// The turn that it was in.
    turn: u64,
    bytes: usize,
    steps: usize,
}

/// The turn that a shard is in.
#[derive(Debug)]
pub(super) struct Turns {
    number: u64,
    spent: Spent,
    /// What one connection may spend, and what all may.
    each: TurnBudget,
    all: TurnBudget,
    /// Waiting for a turn in which there is room: connections that have had nothing when they came
    /// in here, and those that have had their share.
    fresh: VecDeque<ConnectionId>,
    unfinished: VecDeque<ConnectionId>,
    /// Whoever is served now has waited for it.
    serves_queue: bool,
}

/// Whether something is done at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// It fits into what is left of this turn.
    Now,
    /// It fits into a turn of which nothing is spent.
    Once,
    /// It takes several turns.
    Long,
}

impl Turns {
    pub(super) fn new(each: TurnBudget, all: TurnBudget) -> Turns {
        Turns {
            number: 1,
            spent: Spent::default(),
            each,
            all,
            fresh: VecDeque::new(),
            unfinished: VecDeque::new(),
            serves_queue: false,
        }
    }

    /// Whether somebody waits for the next turn.
    pub(super) fn has_queue(&self) -> bool {
        !(self.fresh.is_empty() && self.unfinished.is_empty())
    }

    pub(super) fn begin(&mut self) {
        self.number += 1;
        self.spent = Spent::default();
    }

    /// Work that was done for a connection.
    pub(super) fn charge(&mut self, connection: &mut Spent, bytes: usize, steps: usize) {
        if connection.turn != self.number {
            *connection = Spent { turn: self.number, ..Spent::default() };
        }
        for spent in [connection, &mut self.spent] {
            spent.bytes += bytes;
            spent.steps += steps;
        }
    }

    /// Whether a connection has to wait for the next turn.
    pub(super) fn is_over(&self, connection: &Spent) -> bool {
        if connection.turn == self.number {
            Turns::is_used_up(connection, self.each) || self.is_all_used_up()
        } else {
            // Whoever has waited is not put off again before anything was done.
            self.is_all_used_up() && !self.serves_queue
        }
    }

    /// Whether a connection has had nothing of this turn.
    pub(super) fn is_fresh(&self, connection: &Spent) -> bool {
        connection.turn != self.number || (connection.bytes, connection.steps) == (0, 0)
    }

    /// Whether a connection may do so much without a pause.
    pub(super) fn fit(&self, connection: &Spent, bytes: usize, steps: usize) -> Fit {
        let fits = |spent_bytes: usize, spent_steps: usize| {
            let steps_left = self.each.steps.saturating_sub(spent_steps);
            bytes <= self.each.bytes.saturating_sub(spent_bytes)
                && steps <= steps_left.max(self.steps_at_once())
        };
        if self.is_fresh(connection) {
            if fits(0, 0) { Fit::Now } else { Fit::Long }
        } else if fits(connection.bytes, connection.steps) {
            Fit::Now
        } else if fits(0, 0) {
            Fit::Once
        } else {
            Fit::Long
        }
    }

    /// How many small steps are taken before the budget is looked at.
    pub(super) fn steps_at_once(&self) -> usize {
        (self.each.steps / 16).clamp(1, STEPS_AT_ONCE_MAX)
    }

    pub(super) fn is_all_used_up(&self) -> bool {
        Turns::is_used_up(&self.spent, self.all)
    }

    fn is_used_up(spent: &Spent, budget: TurnBudget) -> bool {
        budget.bytes <= spent.bytes || budget.steps <= spent.steps
    }

    pub(super) fn queue(&mut self, id: ConnectionId, connection: &Spent) {
        let is_fresh = connection.turn != self.number;
        if is_fresh { &mut self.fresh } else { &mut self.unfinished }.push_back(id);
    }

    /// Queues a connection that has waited for something else.
    pub(super) fn wake(&mut self, id: ConnectionId) {
        self.unfinished.push_back(id);
    }

    /// Begins to serve those who wait; says how many there are, fresh ones first.
    pub(super) fn open_queue(&mut self) -> (usize, usize) {
        self.serves_queue = true;
        (self.fresh.len(), self.unfinished.len())
    }

    pub(super) fn next_fresh(&mut self) -> Option<ConnectionId> {
        self.fresh.pop_front()
    }

    pub(super) fn next_unfinished(&mut self) -> Option<ConnectionId> {
        self.unfinished.pop_front()
    }

    pub(super) fn close_queue(&mut self) {
        self.serves_queue = false;
    }
}

/// How much of something all shards together may hold.
#[derive(Clone, Debug)]
pub struct Allowance {
    /// Below zero while it is overdrawn.
    left: Arc<AtomicIsize>,
    /// What each shard may hold without a lease, and with leases whatever the others hold.
    own: usize,
    fair: usize,
    /// What is leased at a time.
    unit: usize,
}

impl Allowance {
    /// A quarter is divided among the shards at once, so that none depends on the others for the
    /// little that most need.
    #[must_use]
    pub fn new(total: usize, shards: usize, unit: usize) -> Allowance {
        let shards = shards.max(1);
        let own = total / 4 / shards;
        let left = isize::try_from(total - own * shards).unwrap_or(isize::MAX);
        let left = Arc::new(AtomicIsize::new(left));
        Allowance { left, own, fair: total / shards, unit: unit.max(1) }
    }

    fn is_overdrawn(&self) -> bool {
        self.left.load(Ordering::Relaxed) < 0
    }
}

/// One shard's part of an allowance.
#[derive(Debug)]
pub(super) struct Share {
    allowance: Allowance,
    leased: usize,
}

impl Share {
    pub(super) fn new(allowance: Allowance) -> Share {
        Share { allowance, leased: 0 }
    }

    /// Whether the shard may hold so much, having leased what it takes.
    pub(super) fn covers(&mut self, held: usize) -> bool {
        let may_hold = self.allowance.own + self.leased;
        if held <= may_hold {
            self.give_back_spare(held);
            return true;
        }
        let wanted = (held - may_hold).next_multiple_of(self.allowance.unit);
        self.lease(wanted) || self.lease(held - may_hold)
    }

    /// The same where each shard gets its fair part, and who holds more makes room for that.
    pub(super) fn covers_fairly(&mut self, held: usize) -> bool {
        if self.allowance.is_overdrawn() {
            self.give_back_spare(held);
        }
        if self.allowance.fair < held {
            return !self.allowance.is_overdrawn() && self.covers(held);
        }
        if !self.covers(held) {
            let missing = held - (self.allowance.own + self.leased);
            self.leased += missing;
            self.allowance.left.fetch_sub(missing.cast_signed(), Ordering::Relaxed);
        }
        true
    }

    /// How much room is made at once, so that not for every answer somebody is looked for whose
    /// connection ends.
    pub(super) fn room(&self) -> usize {
        self.allowance.unit.min(self.allowance.fair / 64)
    }

    fn lease(&mut self, wanted: usize) -> bool {
        let take = |left: isize| {
            let wanted = isize::try_from(wanted).ok()?;
            (wanted <= left).then(|| left - wanted)
        };
        let left = &self.allowance.left;
        let is_leased = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok();
        if is_leased {
            self.leased += wanted;
        }
        is_leased
    }

    /// Gives back what is leased and not held. Two units are kept if others are not short of them, so
    /// that what comes and goes does not go through here.
    fn give_back_spare(&mut self, held: usize) {
        let spare = (self.allowance.own + self.leased).saturating_sub(held).min(self.leased);
        let units = if self.allowance.is_overdrawn() { 0 } else { 2 };
        if 2 * units * self.allowance.unit < spare {
            self.give_back(spare - units * self.allowance.unit);
        }
    }

    fn give_back(&mut self, count: usize) {
        self.leased -= count;
        self.allowance.left.fetch_add(count.cast_signed(), Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back(self.leased);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_share_an_allowance_and_none_is_left_without_its_own() {
        let allowance = Allowance::new(1000, 2, 50);
        let (mut one, mut other) = (Share::new(allowance.clone()), Share::new(allowance.clone()));
        assert!(one.covers(125 + 750));
        assert!(!one.covers(125 + 751));
        assert!(other.covers(125) && !other.covers(126));
        // What is no longer held goes back, but for two units.
        assert!(one.covers(0));
        assert!(other.covers(125 + 650) && !other.covers(125 + 651));
        drop((one, other));
        assert_eq!(allowance.left.load(Ordering::Relaxed), 750);
    }

    #[test]
    fn a_shard_has_its_fair_part_and_who_holds_more_sees_that_it_is_owed() {
        let allowance = Allowance::new(1000, 2, 50);
        let (mut one, mut other) = (Share::new(allowance.clone()), Share::new(allowance.clone()));
        assert!(one.covers_fairly(125 + 750) && !one.covers_fairly(1000));
        assert!(one.covers_fairly(125 + 750));
        assert!(other.covers_fairly(500) && !other.covers_fairly(501));
        // 375 are owed by the one, whatever it holds above its fair part.
        assert!(!one.covers_fairly(600));
        // What it gives back is enough for a bit more than that.
        assert!(one.covers_fairly(500) && other.covers_fairly(500));
        assert!(!other.covers_fairly(501));
        assert!(one.covers_fairly(100) && other.covers_fairly(501));
        drop((one, other));
        assert_eq!(allowance.left.load(Ordering::Relaxed), 750);
    }

    #[test]
    fn a_turn_is_over_for_who_had_a_share_and_for_all_when_all_had_theirs() {
        let each = TurnBudget { bytes: 100, steps: 10 };
        let all = TurnBudget { bytes: 250, steps: 100 };
        let mut turns = Turns::new(each, all);
        let mut spent = [Spent::default(); 4];
        turns.charge(&mut spent[0], 99, 9);
        assert!(!turns.is_over(&spent[0]));
        turns.charge(&mut spent[0], 0, 1);
        assert!(turns.is_over(&spent[0]) && !turns.is_over(&spent[1]));
        turns.charge(&mut spent[1], 151, 1);
        assert!(turns.is_over(&spent[2]), "there is nothing left for anybody");
        let id = |slot| ConnectionId { slot, generation: 0 };
        turns.queue(id(0), &spent[0]);
        turns.queue(id(2), &spent[2]);
        turns.begin();
        assert_eq!(turns.open_queue(), (1, 1));
        assert_eq!((turns.next_fresh(), turns.next_unfinished()), (Some(id(2)), Some(id(0))));
        turns.charge(&mut spent[2], 250, 1);
        assert!(!turns.is_over(&spent[0]), "who waited gets something");
        turns.close_queue();
        assert!(turns.is_over(&spent[3]));
    }
}
