//! Rounds of faults drawn from the seed, under load: kills, stops, pauses, cuts and damaged disks, on
//! top of each other. `ROUNDS=n` for more than the one of CI.
//!
//! A round goes through spells. In each a few faults come one on top of the other. Then all of them
//! are mended, and the ensemble must get going again, with everybody. What was acknowledged in any of
//! it must be there in the end.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::PATIENCE;
use crate::client::now;
use crate::cuts;
use crate::disks;
use crate::ensemble::{Ensemble, Id, Plan};
use crate::load::Load;
use crate::random::Random;
use crate::server::until;

const ROUND: Duration = Duration::from_secs(40);

/// What is wrong just now.
#[derive(Default)]
struct Wrong {
    down: BTreeSet<Id>,
    paused: BTreeSet<Id>,
    is_cut: bool,
}

struct Round {
    random: Random,
    ensemble: Ensemble,
    voters: usize,
    wrong: Wrong,
}

impl Round {
    /// Any server, the leader more often than others.
    fn pick(&mut self) -> Id {
        let ids = self.ensemble.ids();
        let up: Vec<Id> = ids.into_iter().filter(|id| self.is_up(*id)).collect();
        if up.is_empty() {
            return 1;
        }
        let leader = if self.random.below(2) == 0 { self.ensemble.leader_among(&up) } else { None };
        leader.unwrap_or_else(|| up[self.random.below(up.len())])
    }

    fn is_up(&self, id: Id) -> bool {
        !self.wrong.down.contains(&id) && !self.wrong.paused.contains(&id)
    }

    /// Lets things go on for up to so long: how long is part of what is tried.
    fn linger(&mut self, longest_ms: usize) {
        let time = Duration::from_millis(self.random.below(longest_ms) as u64);
        let (_keep, never) = std::sync::mpsc::channel::<()>();
        let _ = never.recv_timeout(time);
    }

    /// One fault more.
    fn fault(&mut self) -> String {
        let id = self.pick();
        if !self.is_up(id) {
            return "nobody is up".to_owned();
        }
        match self.random.below(10) {
            0 | 1 => {
                self.ensemble.kill(id);
                self.wrong.down.insert(id);
                format!("{id} is killed")
            }
            2 => {
                self.ensemble.kill(id);
                self.ensemble.start(id);
                format!("{id} is killed and started")
            }
            // Before it is up, a signal just ends it.
            3 if !self.ensemble.answers(id) => format!("{id} is not up yet"),
            3 => {
                assert_eq!(self.ensemble.terminate(id).code(), Some(0));
                self.ensemble.start(id);
                format!("{id} is stopped as planned and started")
            }
            4 => {
                self.ensemble.pause(id);
                self.wrong.paused.insert(id);
                format!("{id} is paused")
            }
            5 => {
                let how = cuts::ALL[self.random.below(3)];
                cuts::cut(&self.ensemble, id, how);
                self.wrong.is_cut = true;
                format!("{id} is cut off: {how:?}")
            }
            6 | 7 => {
                let ids = self.ensemble.ids();
                let other = ids[self.random.below(ids.len())];
                if other == id {
                    return "nobody is cut off from itself".to_owned();
                }
                let proxies = self.ensemble.proxies.as_ref().unwrap();
                self.wrong.is_cut = true;
                if self.random.below(2) == 0 {
                    proxies.sever(id, other);
                    format!("{id} and {other} are severed")
                } else {
                    proxies.cut(id, other);
                    format!("from {id} to {other} nothing comes")
                }
            }
            8 => {
                if let Some(&paused) = self.wrong.paused.iter().next() {
                    self.wrong.paused.remove(&paused);
                    self.ensemble.resume(paused);
                    return format!("{paused} goes on");
                }
                if let Some(&down) = self.wrong.down.iter().next() {
                    self.wrong.down.remove(&down);
                    self.ensemble.start(down);
                    return format!("{down} is started");
                }
                "nothing is mended".to_owned()
            }
            _ => {
                let up: Vec<Id> =
                    self.ensemble.ids().into_iter().filter(|id| self.is_up(*id)).collect();
                for &id in &up {
                    self.ensemble.kill(id);
                }
                for &id in &up {
                    self.ensemble.start(id);
                }
                format!("{up:?} are killed at once and started")
            }
        }
    }

    fn mend(&mut self) {
        let wrong = std::mem::take(&mut self.wrong);
        if wrong.is_cut {
            self.ensemble.proxies.as_ref().unwrap().heal();
        }
        for id in wrong.paused {
            self.ensemble.resume(id);
        }
        for id in wrong.down {
            self.ensemble.start(id);
        }
        self.ensemble.wait_all();
    }

    /// One member loses something while it is down and all others are well.
    fn damage(&mut self, load: &Load) -> String {
        let id = self.pick();
        self.ensemble.kill(id);
        self.linger(500);
        let what = disks::ALL[self.random.below(disks::ALL.len())];
        let data = &self.ensemble.members[&id].data;
        let done = disks::damage(data, what, &mut self.random);
        self.ensemble.start(id);
        self.ensemble.wait_serving(&[id]);
        load.wait_writes(20);
        format!("{id} came back from {done}")
    }

    /// One after the other is stopped as planned and started.
    fn roll(&mut self) {
        for id in self.ensemble.ids() {
            assert_eq!(self.ensemble.terminate(id).code(), Some(0));
            self.ensemble.start(id);
            self.ensemble.wait_serving(&[id]);
        }
    }

    fn run(mut self, number: u64) {
        let begun = now();
        let load = Load::start(&self.ensemble, &mut self.random, 6);
        while now() - begun < ROUND {
            let tell = |what: &str| println!("{:6.2} s: {what}", (now() - begun).as_secs_f64());
            match self.random.below(6) {
                0 => tell(&self.damage(&load)),
                1 => {
                    self.roll();
                    tell("all were restarted one after the other");
                }
                _ => {
                    for _ in 0..=self.random.below(5) {
                        tell(&self.fault());
                        let longest_ms = if self.random.below(4) == 0 { 4_000 } else { 400 };
                        self.linger(longest_ms);
                    }
                }
            }
            let begun = now();
            self.mend();
            load.wait_writes(100);
            tell(&format!("all is well again after {:.2} s", (now() - begun).as_secs_f64()));
        }
        println!("round {number}, of {} voters:", self.voters);
        let written = load.finish();
        written.check(&self.ensemble);
        until(
            PATIENCE,
            || self.ensemble.tell(),
            || self.ensemble.leader_among(&self.ensemble.ids()).is_some(),
        );
    }
}

#[test]
fn no_faults_on_top_of_each_other_lose_anything() {
    let mut random = Random::of_test("chaos");
    let rounds = std::env::var("ROUNDS").map_or(1, |rounds| rounds.parse().unwrap());
    for number in 1..=rounds {
        let voters = [3, 3, 5][random.below(3)];
        let plan = Plan {
            observers: random.below(2),
            proxies: true,
            settings: [vec!["snapCount=400", "preAllocSize=64"], vec![]][random.below(2)].clone(),
            ..Plan::of(voters)
        };
        let ensemble = Ensemble::started("chaos", &plan);
        let round_random = Random::new(random.next());
        Round { random: round_random, ensemble, voters, wrong: Wrong::default() }.run(number);
    }
}
