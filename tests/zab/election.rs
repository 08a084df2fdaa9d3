//! Elections over a network with faults: once it is whole again, every server finds the one leader.
//!
//! What follows an election is only as much as it needs here: a leader that a quorum follows is
//! established after a while and raises the epoch, one that nobody follows gives up, and whoever
//! follows a server that does not lead looks for another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ringkeeper::ensemble::Ensemble;
use ringkeeper::types::{Epoch, Now, ServerId, Zxid};
use ringkeeper::zab::election::{Election, Notification, Output, Settings, Standing};
use ringkeeper::zab::election_links::{Ask, ElectionLinkId, ElectionLinks};
use ringkeeper::zab::vote::PeerState;
use ringkeeper::zab::voters::Voters;

use crate::for_each_seed;
use crate::rng::Rng;

/// How long a server waits for those that should follow it, or for the one that it follows.
const PATIENCE_MS: i64 = 2000;
const FAULTS_END_MS: i64 = 30_000;
/// From the end of the faults until everybody has found the leader: the notifications of servers
/// that waited for long may come this late.
const CALM_MS_MAX: i64 = 70_000;

/// One end of a connection: a server, which of its lives, and its own number of the connection.
type End = (ServerId, u32, ElectionLinkId);

enum Event {
    /// A call reaches a server, or its place.
    Arrives {
        from: End,
        to: ServerId,
    },
    /// The caller learns that its call was answered.
    Answered {
        at: End,
    },
    Failed {
        at: End,
        is_refused: bool,
    },
    Hello {
        at: End,
        server: ServerId,
    },
    Told {
        at: End,
        notification: Notification,
    },
    Closed {
        at: End,
    },
}

struct Server {
    election: Election,
    links: ElectionLinks,
    /// Since when it is without what its state needs.
    alone_since_ms: Option<i64>,
    /// Of the leader that is established, where one is.
    epoch: Option<Epoch>,
}

struct World {
    rng: Rng,
    now: Now,
    is_traced: bool,
    voters: Voters,
    observers: BTreeSet<ServerId>,
    /// What is on each server's disk.
    disks: BTreeMap<ServerId, (Epoch, Zxid)>,
    running: BTreeMap<ServerId, Server>,
    /// How often each server has been started.
    lives: BTreeMap<ServerId, u32>,
    /// By time, then by order of making.
    events: BTreeMap<(i64, u64), Event>,
    made: u64,
    /// The other end of each connection.
    pairs: BTreeMap<End, End>,
    /// When the last byte on its way to an end arrives.
    arrived_ms: BTreeMap<End, i64>,
    /// Nothing passes between these two, in either direction.
    cuts: BTreeSet<(ServerId, ServerId)>,
    delay_ms_max: i64,
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = Rng::new(seed);
        let count = *rng.pick(&[1, 2, 3, 3, 3, 4, 5, 5, 7]);
        let observer_count = rng.between(0, 2);
        let keys: Vec<String> = (1..=count).map(|id| format!("server.{id}")).collect();
        let ensemble =
            Ensemble::parse(keys.iter().map(|key| (key.as_str(), "h:1:2")), false).unwrap();
        let all = 1..=count + observer_count;
        let disks = all.map(|id| {
            let epoch = Epoch(rng.below(3) as u32);
            (ServerId(id), (epoch, Zxid::new(epoch, rng.below(3) as u32)))
        });
        let disks = disks.collect();
        World {
            now: Now { monotonic_ms: 1000, wall_ms: 0 },
            is_traced: std::env::var("TRACE").is_ok(),
            voters: Voters::new(Arc::new(ensemble), None),
            observers: (count + 1..=count + observer_count).map(ServerId).collect(),
            disks,
            running: BTreeMap::new(),
            lives: BTreeMap::new(),
            events: BTreeMap::new(),
            made: 0,
            pairs: BTreeMap::new(),
            arrived_ms: BTreeMap::new(),
            cuts: BTreeSet::new(),
            delay_ms_max: *rng.pick(&[1, 5, 50, 300]),
            rng,
        }
    }

    fn trace(&self, text: impl FnOnce() -> String) {
        if self.is_traced {
            println!("{:>6} {}", self.now.monotonic_ms, text());
        }
    }

    fn standing(&self, id: ServerId) -> Standing {
        let (epoch, zxid) = self.disks[&id];
        match self.observers.contains(&id) {
            true => Standing::Observer,
            false => Standing::Participant { zxid, epoch },
        }
    }

    fn start(&mut self, id: ServerId) {
        self.trace(|| format!("{id} starts"));
        let mut out = Output::default();
        let (voters, standing) = (self.voters.clone(), self.standing(id));
        let settings = Settings::default();
        let election = Election::new(self.now, id, settings, voters, standing, &mut out);
        let links = ElectionLinks::new(id, 4000);
        let server = Server { election, links, alone_since_ms: None, epoch: None };
        self.running.insert(id, server);
        *self.lives.entry(id).or_default() += 1;
        self.carry_out(id, out);
    }

    fn end(&self, id: ServerId, link: ElectionLinkId) -> End {
        (id, self.lives[&id], link)
    }

    /// The server at an end, if it still runs.
    fn at(&mut self, (id, life, _): End) -> Option<&mut Server> {
        let lives = self.lives[&id] == life;
        self.running.get_mut(&id).filter(|_| lives)
    }

    fn stop(&mut self, id: ServerId) {
        self.trace(|| format!("{id} stops"));
        self.running.remove(&id);
        let ends: Vec<End> = self.pairs.keys().copied().filter(|end| end.0 == id).collect();
        ends.into_iter().for_each(|end| self.close(end));
    }

    fn is_cut(&self, one: ServerId, other: ServerId) -> bool {
        self.cuts.contains(&(one.min(other), one.max(other)))
    }

    fn later(&mut self, event: Event) {
        let at_ms = self.now.monotonic_ms + self.rng.between(0, self.delay_ms_max);
        self.made += 1;
        self.events.insert((at_ms, self.made), event);
    }

    /// Bytes of one connection arrive in order.
    fn later_at(&mut self, end: End, event: Event) {
        let at_ms = self.now.monotonic_ms + self.rng.between(0, self.delay_ms_max);
        let last_ms = self.arrived_ms.entry(end).or_default();
        *last_ms = at_ms.max(*last_ms);
        self.made += 1;
        self.events.insert((*last_ms, self.made), event);
    }

    fn close(&mut self, end: End) {
        if let Some(other) = self.pairs.remove(&end) {
            self.pairs.remove(&other);
            if !self.is_cut(end.0, other.0) {
                self.later_at(other, Event::Closed { at: other });
            }
        }
    }

    fn carry_out(&mut self, id: ServerId, out: Output) {
        let mut asks = Vec::new();
        let server = self.running.get_mut(&id).unwrap();
        for to in out.tell {
            server.links.tell(to, &mut asks);
        }
        let state = server.election.state();
        if let Some(decision) = out.decision {
            assert_eq!(decision.state, state);
            assert_eq!(decision.leader == id, state == PeerState::Leading);
            server.alone_since_ms = Some(self.now.monotonic_ms);
            self.trace(|| format!("{id} {state:?} {}", decision.leader));
        }
        self.ask(id, asks);
    }

    fn ask(&mut self, id: ServerId, asks: Vec<Ask>) {
        for ask in asks {
            match ask {
                Ask::Call { link, server } => {
                    self.later(Event::Arrives { from: self.end(id, link), to: server });
                }
                Ask::Close { link } => self.close(self.end(id, link)),
                Ask::Tell { link, .. } => {
                    let notification = self.running[&id].election.notification();
                    let end = self.end(id, link);
                    match self.pairs.get(&end) {
                        Some(&at) if !self.is_cut(id, at.0) => {
                            self.later_at(at, Event::Told { at, notification });
                        }
                        // On its way for ever, or until TCP gives up.
                        Some(_) => {}
                        // The other end is long gone: bytes to it are answered by a reset.
                        None => self.later_at(end, Event::Closed { at: end }),
                    }
                    let mut asks = Vec::new();
                    self.running.get_mut(&id).unwrap().links.on_sent(link, &mut asks);
                    self.ask(id, asks);
                }
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        let (now, mut out, mut asks) = (self.now, Output::default(), Vec::new());
        let id = match event {
            Event::Arrives { from, to } => {
                let is_cut = self.is_cut(from.0, to);
                let Some(callee) = self.running.get_mut(&to).filter(|_| !is_cut) else {
                    return self.later(Event::Failed { at: from, is_refused: !is_cut });
                };
                let link = callee.links.on_accepted(now, &mut asks);
                let at = self.end(to, link);
                self.pairs.extend([(at, from), (from, at)]);
                self.later_at(from, Event::Answered { at: from });
                to
            }
            Event::Answered { at } => {
                let Some(server) = self.at(at) else { return self.close(at) };
                let called = server.links.on_connected(at.2, &mut asks);
                let called = called.expect("a call that was made");
                server.election.on_reached(called);
                if let Some(&other) = self.pairs.get(&at)
                    && !self.is_cut(at.0, other.0)
                {
                    self.later_at(other, Event::Hello { at: other, server: at.0 });
                }
                at.0
            }
            Event::Failed { at, is_refused } => {
                let Some(server) = self.at(at) else { return };
                if let Some(called) = server.links.on_call_failed(at.2)
                    && is_refused
                {
                    server.election.on_refused(now, called, &mut out);
                }
                at.0
            }
            Event::Hello { at, server } => {
                let is_known = self.voters.contains(server);
                let Some(callee) = self.at(at) else { return self.close(at) };
                callee.links.on_hello(at.2, server, is_known, &mut asks);
                at.0
            }
            Event::Told { at, notification } => {
                let Some(server) = self.at(at) else { return self.close(at) };
                let Some(from) = server.links.server_of(at.2) else { return };
                server.election.on_notification(now, from, notification, &mut out);
                at.0
            }
            Event::Closed { at } => {
                let Some(server) = self.at(at) else { return };
                if let Some(gone) = server.links.on_closed(at.2, &mut asks) {
                    server.election.on_gone(gone);
                }
                at.0
            }
        };
        self.carry_out(id, out);
        self.ask(id, asks);
    }

    /// Who follows a leader, itself among them, and reaches it.
    fn followers_of(&self, leader: ServerId) -> BTreeSet<ServerId> {
        let follows = |(id, server): (&ServerId, &Server)| {
            let said = server.election.notification();
            let is_its = said.state != PeerState::Looking && said.vote.leader == leader;
            (is_its && !self.is_cut(*id, leader)).then_some(*id)
        };
        self.running.iter().filter_map(follows).collect()
    }

    /// What follows an election.
    fn lead_and_follow(&mut self) {
        let ids: Vec<ServerId> = self.running.keys().copied().collect();
        for id in ids {
            let said = self.running[&id].election.notification();
            if said.state == PeerState::Looking {
                continue;
            }
            let leader = said.vote.leader;
            let leads = self.running.get(&leader).is_some_and(|server| {
                server.election.state() == PeerState::Leading && !self.is_cut(id, leader)
            });
            let is_led = leads && self.voters.is_quorum(&self.followers_of(leader));
            let is_established = is_led && (id == leader || self.running[&leader].epoch.is_some());
            // The leader gave this term up meanwhile, and closed its connections.
            let is_deposed = is_established
                && self.running[&id].epoch.is_some()
                && self.running[&id].epoch != self.running[&leader].epoch;
            let server = self.running.get_mut(&id).unwrap();
            let mut out = Output::default();
            if is_established && !is_deposed {
                server.alone_since_ms = None;
                if server.epoch.is_none() {
                    let (epoch, zxid) = self.disks[&leader];
                    let is_new = id == leader;
                    let epoch = if is_new { Epoch(epoch.0 + 1) } else { epoch };
                    server.epoch = Some(epoch);
                    self.disks.insert(id, (epoch, zxid));
                    server.election.on_established(epoch, &mut out);
                    self.trace(|| format!("{id} established with {leader}, epoch {epoch}"));
                }
            } else {
                let since_ms = *server.alone_since_ms.get_or_insert(self.now.monotonic_ms);
                if is_deposed || PATIENCE_MS < self.now.monotonic_ms - since_ms {
                    self.trace(|| format!("{id} gives {leader} up"));
                    let standing = self.standing(id);
                    let server = self.running.get_mut(&id).unwrap();
                    (server.alone_since_ms, server.epoch) = (None, None);
                    server.election.look(self.now, standing, &mut out);
                }
            }
            self.carry_out(id, out);
        }
    }

    /// Goes on by a millisecond.
    fn tick(&mut self) {
        self.now.monotonic_ms += 1;
        while let Some(first) = self.events.first_entry()
            && first.key().0 <= self.now.monotonic_ms
        {
            let event = first.remove();
            self.on_event(event);
        }
        let ids: Vec<ServerId> = self.running.keys().copied().collect();
        for id in ids {
            let server = self.running.get_mut(&id).unwrap();
            let (mut out, mut asks) = (Output::default(), Vec::new());
            if server.election.deadline().is_some_and(|end| end.is_due(self.now)) {
                server.election.on_time(self.now, &mut out);
            }
            if server.links.deadline().is_some_and(|end| end.is_due(self.now)) {
                server.links.on_time(self.now, &mut asks);
            }
            self.carry_out(id, out);
            self.ask(id, asks);
        }
        if self.now.monotonic_ms % 10 == 0 {
            self.lead_and_follow();
        }
    }

    fn fault(&mut self) {
        let ids: Vec<ServerId> = self.disks.keys().copied().collect();
        let (one, other) = (*self.rng.pick(&ids), *self.rng.pick(&ids));
        match self.rng.below(5) {
            0 | 1 if self.running.contains_key(&one) => self.stop(one),
            0 | 1 => self.start(one),
            2 if one != other => {
                self.trace(|| format!("cut {one} {other}"));
                self.cuts.insert((one.min(other), one.max(other)));
                // Some connections notice, and some are half open from then on.
                if self.rng.coin() {
                    self.reset_all();
                }
            }
            3 => {
                self.trace(|| "healed".to_owned());
                self.cuts.clear();
            }
            _ => self.reset_all(),
        }
    }

    /// Some connections are reset; all that a cut has swallowed bytes of are, at the latest when it
    /// heals.
    fn reset_all(&mut self) {
        let ends: Vec<End> = self.pairs.keys().copied().collect();
        for end in ends {
            if let Some(&other) = self.pairs.get(&end)
                && (self.is_cut(end.0, other.0) || self.rng.chance(200))
            {
                self.pairs.remove(&end);
                self.pairs.remove(&other);
                self.later_at(end, Event::Closed { at: end });
                self.later_at(other, Event::Closed { at: other });
            }
        }
    }

    /// The leader that every running server has found, if they have.
    fn agreed(&self) -> Option<ServerId> {
        let leaders: BTreeSet<ServerId> = self
            .running
            .values()
            .map(|server| server.election.notification().vote.leader)
            .collect();
        let leader = leaders.first().copied().filter(|_| leaders.len() == 1)?;
        self.running.values().all(|server| server.epoch.is_some()).then_some(leader)
    }

    fn run_until_agreed(&mut self, ms_max: i64) -> ServerId {
        let end_ms = self.now.monotonic_ms + ms_max;
        loop {
            self.tick();
            if let Some(leader) = self.agreed() {
                return leader;
            }
            if end_ms <= self.now.monotonic_ms {
                for (id, server) in &self.running {
                    self.trace(|| format!("{id}: {:?} {:?}", server.election, server.links));
                }
                panic!("no leader that all have found");
            }
        }
    }
}

#[test]
fn the_best_of_those_that_start_together_leads() {
    for_each_seed(|seed| {
        let mut world = World::new(seed);
        world.delay_ms_max = world.delay_ms_max.min(50);
        let ids: Vec<ServerId> = world.disks.keys().copied().collect();
        let voters = ids.iter().filter(|id| world.voters.contains(**id));
        let best = *voters.max_by_key(|id| (world.disks[id], **id)).unwrap();
        ids.iter().for_each(|id| world.start(*id));
        assert_eq!(world.run_until_agreed(3000), best);
    });
}

/// As tutorials tell it: the third of five leads, for nobody led when it came.
#[test]
fn servers_that_start_one_after_the_other_follow_the_first_that_makes_a_quorum() {
    for_each_seed(|seed| {
        let mut world = World::new(seed);
        world.delay_ms_max = 5;
        world.observers.clear();
        let count = world.voters.all().len() as i64;
        let quorum = ServerId(count / 2 + 1);
        for id in 1..=count {
            let id = ServerId(id);
            world.disks.insert(id, (Epoch(0), Zxid::ZERO));
            world.start(id);
            if quorum <= id {
                assert_eq!(world.run_until_agreed(3000), quorum);
            }
            (0..100).for_each(|_| world.tick());
            assert_eq!(world.agreed().is_some(), quorum <= id);
        }
    });
}

#[test]
fn everybody_finds_the_leader_once_the_faults_are_over() {
    for_each_seed(|seed| {
        let mut world = World::new(seed);
        let ids: Vec<ServerId> = world.disks.keys().copied().collect();
        ids.iter().for_each(|id| world.start(*id));
        let fault_per_mille = *world.rng.pick(&[1, 2, 5]);
        while world.now.monotonic_ms < FAULTS_END_MS {
            if world.rng.chance(fault_per_mille) {
                world.fault();
            }
            world.tick();
        }
        world.reset_all();
        world.cuts.clear();
        // Less than a quorum may be gone for good.
        let gone = world.voters.all().into_iter().filter(|_| world.rng.chance(300));
        let mut left = world.voters.all();
        for id in gone.collect::<Vec<_>>() {
            left.remove(&id);
            if !world.voters.is_quorum(&left) {
                left.insert(id);
            }
        }
        for id in ids {
            let is_left = left.contains(&id) || world.observers.contains(&id);
            match (is_left, world.running.contains_key(&id)) {
                (true, false) => world.start(id),
                (false, true) => world.stop(id),
                _ => {}
            }
        }
        world.trace(|| format!("calm: {left:?}"));
        world.run_until_agreed(CALM_MS_MAX);
    });
}
