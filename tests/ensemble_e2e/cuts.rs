//! Connections between servers that are cut, one way or both, under load.

use crate::ensemble::{Ensemble, Id, Plan};
use crate::load::Load;
use crate::random::Random;

/// What one server sends, what it is sent, or both, is held back.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    Out,
    In,
    Both,
}

pub(crate) const ALL: [Cut; 3] = [Cut::Out, Cut::In, Cut::Both];

pub(crate) fn cut(ensemble: &Ensemble, id: Id, cut: Cut) {
    let proxies = ensemble.proxies.as_ref().unwrap();
    for other in ensemble.ids().into_iter().filter(|&other| other != id) {
        if matches!(cut, Cut::Out | Cut::Both) {
            proxies.cut(id, other);
        }
        if matches!(cut, Cut::In | Cut::Both) {
            proxies.cut(other, id);
        }
    }
}

fn heal(ensemble: &Ensemble) {
    ensemble.proxies.as_ref().unwrap().heal();
}

#[test]
fn a_follower_that_is_cut_off_stops_nobody_and_comes_back() {
    let mut random = Random::of_test("cut-follower");
    let ensemble = Ensemble::started("cut-follower", &Plan { proxies: true, ..Plan::of(3) });
    let load = Load::start(&ensemble, &mut random, 6);
    for how in ALL {
        let leader = ensemble.wait_leader();
        let followers: Vec<Id> = ensemble.ids().into_iter().filter(|&id| id != leader).collect();
        let follower = followers[random.below(2)];
        load.mark();
        cut(&ensemble, follower, how);
        // It lets its clients go: it has no leader.
        crate::server::until(
            crate::PATIENCE,
            || format!("server {follower} serves: {}", ensemble.tell()),
            || !ensemble.serves(follower),
        );
        load.wait_writes(200);
        println!("cut-follower: {how:?} of follower {follower}, {:?} without a write", load.gap());
        heal(&ensemble);
        ensemble.wait_all();
    }
    let written = load.finish();
    written.check(&ensemble);
    assert_eq!(written.lost_sessions(), 0);
}

#[test]
fn a_leader_that_is_cut_off_is_replaced() {
    let mut random = Random::of_test("cut-leader");
    let ensemble = Ensemble::started("cut-leader", &Plan { proxies: true, ..Plan::of(3) });
    let load = Load::start(&ensemble, &mut random, 6);
    for how in ALL {
        let leader = ensemble.wait_leader();
        let others: Vec<Id> = ensemble.ids().into_iter().filter(|&id| id != leader).collect();
        load.mark();
        cut(&ensemble, leader, how);
        let next = ensemble.wait_leader_among(&others);
        // The old one does not go on believing.
        crate::server::until(
            crate::PATIENCE,
            || format!("server {leader} serves: {}", ensemble.tell()),
            || !ensemble.serves(leader),
        );
        load.wait_writes(100);
        println!(
            "cut-leader: {how:?} of leader {leader}, {:?} without a write; {next} leads",
            load.gap()
        );
        heal(&ensemble);
        ensemble.wait_all();
    }
    let written = load.finish();
    written.check(&ensemble);
    assert_eq!(written.lost_sessions(), 0);
}

#[test]
fn two_followers_that_cannot_reach_each_other_stop_nobody() {
    let mut random = Random::of_test("cut-between");
    let ensemble = Ensemble::started("cut-between", &Plan { proxies: true, ..Plan::of(3) });
    let load = Load::start(&ensemble, &mut random, 6);
    let leader = ensemble.wait_leader();
    let followers: Vec<Id> = ensemble.ids().into_iter().filter(|&id| id != leader).collect();
    let proxies = ensemble.proxies.as_ref().unwrap();
    proxies.cut(followers[0], followers[1]);
    proxies.cut(followers[1], followers[0]);
    load.mark();
    load.wait_writes(300);
    println!("cut-between: {:?} without a write", load.gap());
    assert_eq!(ensemble.wait_leader(), leader);
    ensemble.wait_all();
    heal(&ensemble);
    load.finish().check(&ensemble);
}
