//! What has gone wrong in ZooKeeper, played again among several servers: each test is one story without
//! chance, and all that `cluster.rs` asserts at every step holds in it.
//!
//! # Where each scenario is
//!
//! The 30 of `quorum-protocol.md` 19.2, and ZooKeeper's numbers. "Random" is a simulation with faults
//! from a seed; `learner/`, `leader/` and `door/` are scripts at the door of one server.
//!
//! | | shown by |
//! |---|---|
//! | S1 4643, S4 4785 | `an_epoch_never_comes_before_its_history`, `learner/join`; random |
//! | S2 4646, 3023 | `what_a_follower_said_it_has_survives_the_loss_of_power_at_any_step`; random |
//! | S3 4685, S5 4394 | `learner/proposals_before_newleader`; random |
//! | S6 3911 | `what_a_new_leader_has_shown_survives_the_loss_of_everybody_else` |
//! | S7 4925 | `who_was_away_twice_gets_all_from_who_was_away_once`, `learner/gaps` |
//! | S8 3104 | `leader/synchronization` (NEWLEADER before what is proposed), `learner/snapshot`; random (fuzzy snapshots) |
//! | S9 2845, 1154, 1156 | `what_a_lost_leader_alone_had_is_cut_once_history_went_on`, `what_a_lost_leader_alone_had_becomes_history_if_it_leads_again` |
//! | S10 4882 | a failed write ends the process: `tests/e2e/crashes.rs`, `full_disk.rs`; a start is from the disk alone |
//! | S11 1549 | `tests/sim/truncation.rs` (snapshots above the cut go); random, `tests/ensemble` (own snapshots and TRUNC) |
//! | S12 | `learner/truncated`; random (TRUNC refused) |
//! | S13 1489, 3701 | `tests/sim/truncation.rs`, a crash at each step |
//! | S14 3642, 2872 | `learner/snapshot_lost`; random; `storage/standing.rs` (a crash between snapshot and epoch) |
//! | S15 2418, 2846 | `storage/history.rs` (a hole is not passed over), `leader/synchronization` |
//! | S16 2355 | `door/diff_zxid` |
//! | S17 335, 1282, 1291, 2307, 4269 | `an_epoch_never_comes_before_its_history`, `learner/epochs`, `storage/standing.rs`, `storage/epoch.rs` |
//! | S18 1192, 1343, 2959 | `door/abandoned`, `leader/refused`, `leader/observers` |
//! | S19 1277 | `an_epoch_ends_at_its_last_number`, `door/last_number`; random |
//! | S20 1732, 1805, 1818, 975, 480 | `zab/election.rs`, `who_comes_late_follows_at_once`; random elections |
//! | S21 1419, 1514, 3537, 3109 | `election.rs`, `zab/election_links.rs` |
//! | S22 reconfiguration | none yet: there is no reconfiguration |
//! | S23 1208, 1367, 2926, 1294 | random, `tests/ensemble` (P9); `tests/scenario/session` |
//! | S24 1624, 2213, 2623, 1448, 4219 | `tests/scenario/prep`, `tests/conformance`, `learner/repeated_zxid` |
//! | S25 1863, 3472, 2024 | random, `tests/ensemble` (P3, P7), and its mutants |
//! | S26 87, 1521 | `leader/limits`; `tests/ensemble_e2e/disks.rs` |
//! | S27 3127 and kin | `pipeline/tests.rs` (fuzzy snapshots), `tests/sim` |
//! | S28 2325, 3056, 3644, 261, 2332 | `storage/recovery.rs`, `storage/standing.rs`, `tests/damage` |
//! | S29 | `tests/sim` (what recovery reads past the page cache) |
//! | S30 3526, 4541, 4882 | Java's own, open: not ours |
//!
//! The first 22 of the catalogue in `reliability.md`: 1 and 2 are S1 and S2; 3 S5; 4 S14; 5 S7; 6 and 7
//! S9; 8 S15; 9 S19; 10 `overlapping_majorities_have_one_leader_that_commits`; 11
//! `a_leader_that_is_heard_by_nobody_or_hears_nobody_steps_down`; 12
//! `a_leader_that_was_paused_commits_nothing_more`; 13 `tests/ensemble/scenarios.rs`; 14, 15
//! `tests/ensemble` (restarts in order, power cuts of all), `tests/ensemble_e2e`; 16
//! `observers_never_lead_or_commit`; 17 none yet; 18 `tests/compat/quorum.rs`,
//! `tests/ensemble_e2e/strangers.rs`; 19 `shell/links`; 20 S20; 21 `tests/ensemble_e2e`; 22
//! `tests/interop`.

use std::collections::BTreeSet;

use ringkeeper::types::{Epoch, ServerId, Zxid};
use ringkeeper::zab::vote::PeerState;

use crate::cluster::{SETTINGS, World, end_of};

const A: ServerId = ServerId(3);
const B: ServerId = ServerId(2);
const C: ServerId = ServerId(1);
/// Everything that waits for something waits for so long at most.
const PATIENCE_MS: i64 = 30_000;
/// More than a join asks of a disk.
const STEPS_MAX: usize = 12;

/// Three servers of which the first two serve, and have committed something.
fn two_of_three() -> World {
    let mut world = World::quiet(3, 0);
    start(&mut world, &[A, B]);
    assert_eq!(serve(&mut world, &[A, B]), A);
    write(&mut world, 2);
    world
}

fn start(world: &mut World, servers: &[ServerId]) {
    for id in servers {
        if !world.running.contains_key(id) {
            world.start(*id);
        }
    }
}

fn go_on(world: &mut World, ms: i64) {
    (0..ms).for_each(|_| world.tick());
}

fn go_on_until(world: &mut World, what: &str, is_so: impl Fn(&World) -> bool) {
    for _ in 0..PATIENCE_MS {
        if is_so(world) {
            return;
        }
        world.tick();
    }
    panic!("never: {what}");
}

fn leader(world: &World) -> Option<ServerId> {
    let leads = |id: &&ServerId| {
        let server = &world.running[id];
        server.peer.state() == PeerState::Leading && server.epoch.is_some()
    };
    world.running.keys().find(leads).copied()
}

fn is_served_by(world: &World, servers: &[ServerId]) -> bool {
    let epochs: BTreeSet<Option<Epoch>> =
        servers.iter().map(|id| world.running.get(id).and_then(|server| server.epoch)).collect();
    epochs.len() == 1 && epochs.first().is_some_and(Option::is_some)
}

/// Goes on until all of these serve in one epoch, and says who leads.
fn serve(world: &mut World, servers: &[ServerId]) -> ServerId {
    let leads = |world: &World, id: ServerId| {
        let state = world.running.get(&id).map(|server| server.peer.state());
        state == Some(PeerState::Leading)
    };
    go_on_until(world, "they serve", |world| {
        is_served_by(world, servers) && servers.iter().any(|id| leads(world, *id))
    });
    servers.iter().copied().find(|id| leads(world, *id)).expect("one of them leads")
}

/// Writes so many, and waits until they are committed everywhere.
fn write(world: &mut World, count: usize) {
    for _ in 0..count {
        let before = world.committed.len();
        world.propose();
        go_on_until(world, "it is committed", |world| before < world.committed.len());
    }
    go_on_until(world, "all have it", |world| {
        world
            .running
            .values()
            .all(|server| server.epoch.is_none() || server.committed == world.committed.len())
    });
}

fn committed(world: &World) -> Zxid {
    end_of(&world.committed)
}

/// Cuts a server off from all others, both ways.
fn cut_off(world: &mut World, id: ServerId) {
    for other in world.disks.keys().copied().filter(|other| *other != id).collect::<Vec<_>>() {
        world.cuts.extend([(id, other), (other, id)]);
    }
}

fn heal(world: &mut World) {
    world.cuts.clear();
    for id in world.disks.keys().copied().collect::<Vec<_>>() {
        world.reset(id);
    }
}

/// C is down while A and B commit. Then it joins A alone, and its disk stops after any number of
/// things; then it loses its power or only its leader, A dies, and B and C are left.
#[test]
fn an_epoch_never_comes_before_its_history() {
    for steps in 0..STEPS_MAX {
        for loses_power in [true, false] {
            let mut world = two_of_three();
            let before = committed(&world);
            world.stop(B);
            world.held.insert(C, steps);
            world.start(C);
            go_on(&mut world, 600);
            if loses_power {
                world.power_off(C);
            } else {
                world.reset(C);
            }
            world.stop(A);
            world.held.clear();
            start(&mut world, &[B, C]);
            serve(&mut world, &[B, C]);
            assert!(before <= committed(&world));
            let log = &world.running[&C].log;
            assert!(log.iter().any(|txn| txn.zxid == before), "{steps}: {before} is lost");
        }
    }
}

/// B and C join A with a long history to catch up on, lose their power at any step, and A is gone.
#[test]
fn what_a_follower_said_it_has_survives_the_loss_of_power_at_any_step() {
    for steps in 0..STEPS_MAX {
        let mut world = World::quiet(3, 0);
        start(&mut world, &[A, B, C]);
        serve(&mut world, &[A, B, C]);
        world.held.extend([(B, 0), (C, 0)]);
        (0..5).for_each(|_| world.propose());
        go_on(&mut world, 50);
        // Only A has them. It leads again, and brings both to them.
        world.power_off(B);
        world.power_off(C);
        world.held = [(B, steps), (C, steps)].into();
        start(&mut world, &[B, C]);
        go_on(&mut world, 3_000);
        let before = committed(&world);
        world.power_off(B);
        world.power_off(C);
        world.stop(A);
        world.held.clear();
        start(&mut world, &[B, C]);
        serve(&mut world, &[B, C]);
        assert!(before <= committed(&world), "{steps}");
    }
}

/// A has logged something alone; B and C come back, are brought to it, and A serves: it shows. Then
/// both lose their power, and A is gone for good.
#[test]
fn what_a_new_leader_has_shown_survives_the_loss_of_everybody_else() {
    let mut world = two_of_three();
    world.held.insert(B, 0);
    let before = committed(&world);
    world.propose();
    go_on(&mut world, 50);
    assert_eq!(committed(&world), before);
    world.power_off(B);
    world.held.clear();
    go_on_until(&mut world, "A gives up", |world| leader(world).is_none());
    start(&mut world, &[B, C]);
    assert_eq!(serve(&mut world, &[A, B, C]), A);
    let shown = committed(&world);
    assert!(before < shown);
    world.power_off(B);
    world.power_off(C);
    world.stop(A);
    start(&mut world, &[B, C]);
    serve(&mut world, &[B, C]);
    assert!(world.running[&B].log.iter().any(|txn| txn.zxid == shown));
}

#[test]
fn who_was_away_twice_gets_all_from_who_was_away_once() {
    let [one, two, three, four, five] = [1, 2, 3, 4, 5].map(ServerId);
    // By what the leader has in memory, or by a snapshot.
    for history_max in [500, 12] {
        let mut world = World::quiet(5, 0);
        world.history_max = history_max;
        start(&mut world, &[one, two, three, four, five]);
        let leader = serve(&mut world, &[one, two, three, four, five]);
        assert_eq!(leader, five);
        world.stop(two);
        write(&mut world, 10);
        world.stop(four);
        write(&mut world, 10);
        world.start(four);
        serve(&mut world, &[one, three, four, five]);
        write(&mut world, 1);
        world.stop(five);
        assert_eq!(serve(&mut world, &[one, three, four]), four);
        world.start(two);
        serve(&mut world, &[one, two, three, four]);
        write(&mut world, 1);
        assert_eq!(world.running[&two].log, world.committed);
    }
}

#[test]
fn what_a_lost_leader_alone_had_is_cut_once_history_went_on() {
    let mut world = two_of_three();
    world.start(C);
    serve(&mut world, &[A, B, C]);
    cut_off(&mut world, A);
    world.propose();
    let alone = end_of(&world.running[&A].log);
    assert_eq!(serve(&mut world, &[B, C]), B);
    write(&mut world, 2);
    go_on_until(&mut world, "A gives up", |world| world.running[&A].epoch.is_none());
    heal(&mut world);
    serve(&mut world, &[A, B, C]);
    write(&mut world, 1);
    assert_eq!(world.running[&A].log, world.committed);
    assert!(world.committed.iter().all(|txn| txn.zxid != alone));
    assert!(world.marks.contains("log truncated") || world.marks.contains("SNAP"));
}

#[test]
fn what_a_lost_leader_alone_had_becomes_history_if_it_leads_again() {
    let mut world = two_of_three();
    world.start(C);
    serve(&mut world, &[A, B, C]);
    cut_off(&mut world, A);
    cut_off(&mut world, B);
    world.propose();
    let alone = end_of(&world.running[&A].log);
    go_on_until(&mut world, "A gives up", |world| world.running[&A].epoch.is_none());
    heal(&mut world);
    assert_eq!(serve(&mut world, &[A, B, C]), A);
    write(&mut world, 1);
    for id in [A, B, C] {
        assert!(world.running[&id].log.iter().any(|txn| txn.zxid == alone), "{id}");
    }
}

#[test]
fn an_epoch_ends_at_its_last_number() {
    let mut world = World::quiet(3, 0);
    world.settings.counters_from = u32::MAX - 4;
    start(&mut world, &[A, B, C]);
    serve(&mut world, &[A, B, C]);
    for _ in 0..10 {
        let before = world.committed.len();
        go_on_until(&mut world, "somebody leads", |world| is_served_by(world, &[A, B, C]));
        world.propose();
        go_on(&mut world, 20);
        let is_written = before < world.committed.len();
        assert!(is_written || world.marks.contains("an epoch is used up"));
    }
    let numbers = world.committed.iter().map(|txn| txn.zxid.counter());
    let numbers: BTreeSet<u32> = numbers.collect();
    assert_eq!(numbers, (u32::MAX - 3..u32::MAX).collect());
    let epochs: BTreeSet<Epoch> = world.committed.iter().map(|txn| txn.zxid.epoch()).collect();
    assert!(2 < epochs.len());
}

#[test]
fn who_comes_late_follows_at_once() {
    let mut world = two_of_three();
    // Members of an ensemble differ in the round and the zxid that they tell of their leader.
    world.stop(B);
    go_on_until(&mut world, "A gives up", |world| leader(world).is_none());
    world.start(B);
    serve(&mut world, &[A, B]);
    let began_ms = world.now.monotonic_ms;
    world.start(C);
    serve(&mut world, &[A, B, C]);
    assert!(world.now.monotonic_ms < began_ms + 1_000);
}

/// Two servers of five each see another majority; then one server is the bridge between two halves.
#[test]
fn overlapping_majorities_have_one_leader_that_commits() {
    let all = [1, 2, 3, 4, 5].map(ServerId);
    let mut world = World::quiet(5, 0);
    start(&mut world, &all);
    serve(&mut world, &all);
    let near = |one: i64, other: i64| [1, 4].contains(&(one - other).abs());
    let in_one_half = |one: i64, other: i64| one == 3 || other == 3 || (one < 3) == (other < 3);
    for is_reached in [&near as &dyn Fn(i64, i64) -> bool, &in_one_half] {
        for one in all {
            for other in all.into_iter().filter(|other| *other != one) {
                if !is_reached(one.0, other.0) {
                    world.cuts.insert((one, other));
                }
            }
        }
        // At every step, no two of them lead in one epoch or commit another history.
        for _ in 0..60 {
            world.propose();
            go_on(&mut world, 1_000);
        }
        heal(&mut world);
        serve(&mut world, &all);
        write(&mut world, 1);
    }
}

#[test]
fn a_leader_that_is_heard_by_nobody_or_hears_nobody_steps_down() {
    for hears in [true, false] {
        let mut world = two_of_three();
        world.start(C);
        serve(&mut world, &[A, B, C]);
        for other in [B, C] {
            world.cuts.insert(if hears { (A, other) } else { (other, A) });
        }
        let before = world.running[&A].committed;
        let began_ms = world.now.monotonic_ms;
        world.propose();
        go_on_until(&mut world, "A gives up", |world| world.running[&A].epoch.is_none());
        let limit_ms = SETTINGS.sync_ms() + 2 * SETTINGS.tick_ms;
        assert!(world.now.monotonic_ms <= began_ms + limit_ms, "hears: {hears}");
        assert_eq!(world.running[&A].committed, before, "hears: {hears}");
        serve(&mut world, &[B, C]);
        write(&mut world, 1);
    }
}

#[test]
fn one_deaf_follower_stops_nobody() {
    let mut world = two_of_three();
    world.start(C);
    serve(&mut world, &[A, B, C]);
    world.cuts.extend([(A, C), (B, C)]);
    for _ in 0..50 {
        let before = world.committed.len();
        world.propose();
        go_on(&mut world, 100);
        assert!(before < world.committed.len());
    }
    assert!(is_served_by(&world, &[A, B]));
}

#[test]
fn a_leader_that_was_paused_commits_nothing_more() {
    let mut world = two_of_three();
    world.start(C);
    serve(&mut world, &[A, B, C]);
    world.propose();
    let last = end_of(&world.running[&A].log);
    let until_ms = world.now.monotonic_ms + SETTINGS.sync_ms() * 3 / 2;
    world.stalls.insert(A, until_ms);
    let before = world.running[&A].committed;
    assert_eq!(serve(&mut world, &[B, C]), B);
    write(&mut world, 1);
    // What had come for it while it was paused may commit what it had proposed before.
    go_on_until(&mut world, "A goes on", |world| !world.stalls.contains_key(&A));
    world.propose();
    go_on_until(&mut world, "A gives up", |world| world.running[&A].epoch.is_none());
    assert!(world.running[&A].committed <= before + 1);
    serve(&mut world, &[A, B, C]);
    write(&mut world, 1);
    let is_after = |zxid: Zxid| last < zxid && zxid.epoch() == last.epoch();
    assert!(world.committed.iter().all(|txn| !is_after(txn.zxid)));
}

#[test]
fn observers_never_lead_or_commit() {
    let mut world = World::quiet(3, 2);
    let observers = [4, 5].map(ServerId);
    start(&mut world, &[A, B, C]);
    start(&mut world, &observers);
    serve(&mut world, &[A, B, C]);
    write(&mut world, 3);
    world.stop(B);
    world.stop(C);
    // All that is left is A and what does not count.
    world.propose();
    go_on(&mut world, 2 * SETTINGS.sync_ms());
    let before = world.committed.len();
    go_on(&mut world, 2 * SETTINGS.init_ms());
    assert_eq!(world.committed.len(), before);
    assert!(world.running.values().all(|server| server.epoch.is_none()));
    start(&mut world, &[B, C]);
    let all = [A, B, C, observers[0], observers[1]];
    assert!(!observers.contains(&serve(&mut world, &all)));
    write(&mut world, 1);
    for id in observers {
        assert_eq!(world.running[&id].log, world.committed);
    }
}
