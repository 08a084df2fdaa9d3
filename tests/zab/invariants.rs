//! The nine properties that the TLA+ models of Zab check (`zookeeper-specifications/`), by the names
//! that they have there. Both simulations of ensembles ask for them at every step: `tests/zab` of the
//! protocol alone, `tests/ensemble` of whole pipelines.
//!
//! | property | what it says |
//! |---|---|
//! | `leadership_1` | no two servers lead in the same epoch at the same time |
//! | `leadership_2` | one epoch has one leader, ever |
//! | `prefix_consistency` | what two servers have delivered begins the same |
//! | `integrity` | what is delivered was broadcast by a leader, byte for byte |
//! | `agreement` | of two servers, one has delivered all that the other has |
//! | `total_order` | who delivers a transaction has delivered what others delivered before it |
//! | `local_primary_order` | one leader's transactions are delivered in its order, and none left out |
//! | `global_primary_order` | those of an earlier leader come before those of a later one |
//! | `primary_integrity` | a leader has all of earlier epochs that anybody had delivered when it began |
//!
//! "Delivered" is what a server counts as committed. What a snapshot stands for is not looked at one
//! by one: it is where the list of that server begins.

use std::collections::BTreeMap;
use std::ops::Bound;

use ringkeeper::types::{Epoch, ServerId, Zxid};
use ringkeeper::zab::proposals::Proposal;

/// What one server has delivered since it started, or since a snapshot replaced what it had.
#[derive(Debug, Default)]
struct Delivered {
    /// All up to here came with a snapshot.
    base: Zxid,
    txns: Vec<Proposal>,
}

impl Delivered {
    fn last(&self) -> Zxid {
        self.txns.last().map_or(self.base, |last| last.zxid)
    }

    fn has(&self, zxid: Zxid, likely: usize) -> bool {
        zxid <= self.base || self.place(zxid, likely).is_some()
    }

    /// `likely`: where it is in the list of another server.
    fn place(&self, zxid: Zxid, likely: usize) -> Option<usize> {
        if self.txns.get(likely).is_some_and(|txn| txn.zxid == zxid) {
            return Some(likely);
        }
        self.txns.binary_search_by_key(&zxid, |txn| txn.zxid).ok()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Invariants {
    /// Who leads now, and in which epoch: it has sent NEWLEADER, or serves.
    leading: BTreeMap<ServerId, Epoch>,
    leaders: BTreeMap<Epoch, ServerId>,
    /// What leaders have proposed.
    broadcast: BTreeMap<Zxid, (ServerId, Proposal)>,
    /// The one history: what was delivered anywhere, and what was delivered next after each zxid.
    history: BTreeMap<Zxid, Proposal>,
    next: BTreeMap<Zxid, Zxid>,
    servers: BTreeMap<ServerId, Delivered>,
}

impl Invariants {
    /// A server has started, or a snapshot has replaced what it had: it has delivered all up to
    /// `base`, and more once it says so.
    pub(crate) fn on_begins(&mut self, server: ServerId, base: Zxid) {
        self.servers.insert(server, Delivered { base, txns: Vec::new() });
    }

    /// A server sends NEWLEADER, or is established as a leader.
    pub(crate) fn on_leads(&mut self, server: ServerId, epoch: Epoch) {
        self.leading.insert(server, epoch);
        self.leadership_1(server, epoch);
        self.leadership_2(server, epoch);
    }

    /// A leader begins to serve, with this history up to `end`.
    pub(crate) fn on_broadcasts(
        &self,
        server: ServerId,
        epoch: Epoch,
        base: Zxid,
        log: &[Proposal],
    ) {
        for other in self.servers.values() {
            self.primary_integrity(server, epoch, other, base, log);
        }
    }

    /// A server ends, or gives its role up.
    pub(crate) fn on_ended(&mut self, server: ServerId) {
        self.leading.remove(&server);
    }

    /// A leader proposes.
    pub(crate) fn on_proposed(&mut self, server: ServerId, proposal: &Proposal) {
        let (zxid, epoch) = (proposal.zxid, proposal.zxid.epoch());
        assert_eq!(self.leaders.get(&epoch), Some(&server), "{server} proposes {zxid}");
        let before = self.broadcast.insert(zxid, (server, proposal.clone()));
        assert!(before.is_none(), "{zxid} is given out twice");
    }

    /// A server delivers the next transactions.
    pub(crate) fn on_delivered(&mut self, server: ServerId, txns: &[Proposal]) {
        for txn in txns {
            let own = self.servers.get(&server).expect("a server that has begun");
            let before = own.last();
            self.integrity(server, txn);
            self.local_primary_order(server, own, txn);
            self.global_primary_order(server, own, txn);
            for (other, theirs) in self.servers.iter().filter(|(other, _)| **other != server) {
                self.agreement(server, own, txn, *other, theirs);
                self.total_order(server, own, txn, *other, theirs);
            }
            self.prefix_consistency(server, before, txn);
            self.servers.get_mut(&server).expect("just looked at").txns.push(txn.clone());
        }
    }

    /// What follows `after` in the one history, up to `end`.
    pub(crate) fn history(&self, after: Zxid, end: Zxid) -> impl Iterator<Item = &Proposal> {
        let bounds = (Bound::Excluded(after), Bound::Included(end.max(after)));
        self.history.range(bounds).map(|(_, txn)| txn)
    }

    // ---- the properties ---------------------------------------------------------------------

    fn leadership_1(&self, server: ServerId, epoch: Epoch) {
        let is_another = |(other, its): &(&ServerId, &Epoch)| **other != server && **its == epoch;
        let another = self.leading.iter().find(is_another);
        assert!(another.is_none(), "Leadership1: {server} and {another:?} lead in epoch {epoch}");
    }

    fn leadership_2(&mut self, server: ServerId, epoch: Epoch) {
        let leader = *self.leaders.entry(epoch).or_insert(server);
        assert_eq!(leader, server, "Leadership2: epoch {epoch} has two leaders");
    }

    fn prefix_consistency(&mut self, server: ServerId, before: Zxid, txn: &Proposal) {
        let zxid = txn.zxid;
        let known = self.history.entry(zxid).or_insert_with(|| txn.clone());
        assert_eq!(known, txn, "PrefixConsistency: {server} has another {zxid}");
        let next = *self.next.entry(before).or_insert(zxid);
        assert_eq!(next, zxid, "PrefixConsistency: {server} has another history after {before}");
    }

    fn integrity(&self, server: ServerId, txn: &Proposal) {
        let zxid = txn.zxid;
        match self.broadcast.get(&zxid) {
            Some((_, broadcast)) => {
                assert_eq!(broadcast, txn, "Integrity: {server} has another {zxid}");
            }
            None => panic!("Integrity: {server} has {zxid}, which nobody has proposed"),
        }
    }

    #[expect(clippy::unused_self, reason = "as the others")]
    fn agreement(
        &self,
        server: ServerId,
        own: &Delivered,
        txn: &Proposal,
        other: ServerId,
        theirs: &Delivered,
    ) {
        let (zxid, last) = (txn.zxid, theirs.last());
        // A snapshot may stand for the beginning of an epoch, which is no transaction.
        let is_begin = last.counter() == 0 && last < zxid;
        let count = own.txns.len();
        let has_last = || own.has(last, theirs.txns.len().saturating_sub(1));
        let is_so = theirs.has(zxid, count) || last == zxid || is_begin || has_last();
        assert!(is_so, "Agreement: {server} has {zxid} without {last}, {other} the reverse");
    }

    #[expect(clippy::unused_self, reason = "as the others")]
    fn total_order(
        &self,
        server: ServerId,
        own: &Delivered,
        txn: &Proposal,
        other: ServerId,
        theirs: &Delivered,
    ) {
        let before = own.last();
        let Some(place) = theirs.place(txn.zxid, own.txns.len()) else { return };
        let has_before = before <= theirs.base
            || theirs.place(before, place.wrapping_sub(1)).is_some_and(|its| its < place)
            || before.counter() == 0;
        let zxid = txn.zxid;
        assert!(has_before, "TotalOrder: {server} has {before} before {zxid}, {other} has not");
    }

    fn local_primary_order(&self, server: ServerId, own: &Delivered, txn: &Proposal) {
        let zxid = txn.zxid;
        let epoch = Zxid::new(zxid.epoch(), 0)..zxid;
        let Some((&before, _)) = self.broadcast.range(epoch).next_back() else { return };
        let has_before = own.has(before, own.txns.len().wrapping_sub(1));
        assert!(has_before, "LocalPrimaryOrder: {server} has {zxid} without {before}");
    }

    #[expect(clippy::unused_self, reason = "as the others")]
    fn global_primary_order(&self, server: ServerId, own: &Delivered, txn: &Proposal) {
        let (last, zxid) = (own.last(), txn.zxid);
        assert!(last < zxid, "{server} delivers {zxid} after {last}");
        assert!(
            last.epoch() <= zxid.epoch(),
            "GlobalPrimaryOrder: {server} has {zxid} after {last} of a later epoch"
        );
    }

    #[expect(clippy::unused_self, reason = "as the others")]
    fn primary_integrity(
        &self,
        leader: ServerId,
        epoch: Epoch,
        other: &Delivered,
        base: Zxid,
        log: &[Proposal],
    ) {
        for txn in other.txns.iter().rev().filter(|txn| txn.zxid.epoch() < epoch) {
            let place = log.binary_search_by_key(&txn.zxid, |own| own.zxid);
            let has_it = txn.zxid <= base || place.is_ok_and(|place| log[place] == *txn);
            assert!(has_it, "PrimaryIntegrity: {leader} leads {epoch} without {}", txn.zxid);
        }
    }
}
