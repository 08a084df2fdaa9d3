//! Servers that are killed, stopped and paused under load.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::PATIENCE;
use crate::client::Client;
use crate::disks::{Damage, damage};
use crate::ensemble::{Ensemble, Id, Plan};
use crate::load::{Load, check_equal};
use crate::random::Random;
use crate::server::until;

/// All but one.
fn others(ensemble: &Ensemble, without: Id) -> Vec<Id> {
    ensemble.ids().into_iter().filter(|&id| id != without).collect()
}

#[test]
fn killed_servers_lose_nothing_that_was_acknowledged() {
    let mut random = Random::of_test("kills");
    let plan = Plan { settings: vec!["snapCount=500", "preAllocSize=64"], ..Plan::of(3) };
    let mut ensemble = Ensemble::started("kills", &plan);
    let load = Load::start(&ensemble, &mut random, 6);
    for round in 1..=3 {
        load.wait_writes(50 + random.below(300) as u64);
        let leader = ensemble.wait_leader();
        load.mark();
        ensemble.kill(leader);
        println!("kills: round {round}: leader {leader}, {:?} without a write", load.gap());
        let next = ensemble.wait_leader_among(&others(&ensemble, leader));
        assert_ne!(next, leader);
        load.wait_writes(random.below(300) as u64);
        ensemble.start(leader);
        ensemble.wait_all();
    }
    load.wait_writes(100);
    let leader = ensemble.wait_leader();
    let follower = others(&ensemble, leader)[random.below(2)];
    load.mark();
    ensemble.kill(follower);
    println!("kills: follower {follower}, {:?} without a write", load.gap());
    load.wait_writes(100);
    ensemble.start(follower);
    ensemble.wait_all();

    load.wait_writes(100);
    for id in ensemble.ids() {
        ensemble.kill(id);
    }
    load.mark();
    for id in ensemble.ids() {
        ensemble.start(id);
    }
    println!("kills: all three at once, {:?} without a write", load.gap());
    let written = load.finish();
    written.check(&ensemble);
    assert_eq!(written.lost_sessions(), 0);
}

#[test]
fn a_leader_that_is_stopped_as_planned_hands_over() {
    let mut random = Random::of_test("handover");
    let mut ensemble = Ensemble::started("handover", &Plan::of(3));
    let load = Load::start(&ensemble, &mut random, 6);
    for round in 1..=3 {
        load.wait_writes(100);
        let leader = ensemble.wait_leader();
        let others = others(&ensemble, leader);
        let said: Vec<usize> = others.iter().map(|&id| ensemble.server(id).said().len()).collect();
        load.mark();
        let status = ensemble.terminate(leader);
        println!("handover: round {round}: leader {leader}, {:?} without a write", load.gap());
        assert_eq!(status.code(), Some(0));
        for (&id, before) in others.iter().zip(said) {
            let said = ensemble.server(id).said().split_off(before);
            // It has seen the connection end. Of lines that repeat, one is written.
            let has_waited = said.contains("nothing was heard of the leader");
            assert!(!has_waited, "server {id} waited for a timeout: {said}");
        }
        ensemble.start(leader);
        ensemble.wait_all();
    }
    let written = load.finish();
    written.check(&ensemble);
    assert_eq!(written.lost_sessions(), 0);
}

#[test]
fn a_server_that_is_stopped_as_planned_ends_whatever_the_others_do() {
    let mut ensemble = Ensemble::started("stops", &Plan { observers: 1, ..Plan::of(3) });
    for role in ["LEADING", "FOLLOWING", "OBSERVING"] {
        let is_so = |&id: &Id| ensemble.state(id) == Some(role);
        let id = ensemble.ids().into_iter().find(is_so).expect("each role is there");
        let is_over = AtomicBool::new(false);
        let others = others(&ensemble, id).into_iter();
        let floods: Vec<_> =
            others.flat_map(|id| (0..8).map(move |_| id)).map(|id| ensemble.client(id)).collect();
        thread::scope(|scope| {
            for (number, mut client) in floods.into_iter().enumerate() {
                let is_over = &is_over;
                // So much is on its way at any time that no log is ever idle. Those who lose their
                // server are not missed.
                scope.spawn(move || {
                    let path = format!("/{role}-{number}");
                    client.create(&path, b"");
                    let ask = |client: &mut Client, count| {
                        for _ in 0..count {
                            client.set(&path, &[b'x'; 100]);
                        }
                    };
                    ask(&mut client, 100);
                    while !is_over.load(Ordering::Relaxed) {
                        ask(&mut client, 20);
                        if client.flush().and_then(|()| client.replies(20)).is_err() {
                            return;
                        }
                    }
                });
            }
            let goal = ensemble.zxid(id).unwrap() + 5_000;
            let has_come = || ensemble.zxid(id).is_some_and(|zxid| goal < zxid);
            until(PATIENCE, || "no flood".to_owned(), has_come);
            let server = ensemble.members.get_mut(&id).unwrap().server.take().unwrap();
            server.ask_to_stop();
            let (status, said) = server.wait(PATIENCE);
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(status.code(), Some(0), "{role}");
            assert!(!said.contains("does not answer"), "{role}: {said}");
        });
        ensemble.start(id);
        ensemble.wait_all();
    }
}

#[test]
fn a_leader_that_is_paused_is_replaced_and_comes_back_as_follower() {
    let mut random = Random::of_test("pauses");
    let mut ensemble = Ensemble::started("pauses", &Plan::of(3));
    let load = Load::start(&ensemble, &mut random, 6);

    let leader = ensemble.wait_leader();
    let follower = others(&ensemble, leader)[random.below(2)];
    load.mark();
    ensemble.pause(follower);
    let gap = load.gap();
    println!("pauses: follower {follower}, {gap:?} without a write");
    load.wait_writes(200);
    ensemble.resume(follower);
    ensemble.wait_all();

    let leader = ensemble.wait_leader();
    load.mark();
    ensemble.pause(leader);
    let next = ensemble.wait_leader_among(&others(&ensemble, leader));
    println!("pauses: leader {leader}, {:?} without a write; {next} leads", load.gap());
    load.wait_writes(200);
    ensemble.resume(leader);
    ensemble.wait_state(leader, "FOLLOWING");
    ensemble.wait_serving(&[leader]);
    assert_eq!(ensemble.wait_leader(), next);
    let written = load.finish();
    written.check(&ensemble);
    assert_eq!(written.lost_sessions(), 0);
}

/// How a leader that has logged what nobody acknowledged goes.
#[derive(Clone, Copy, Debug)]
enum Going {
    /// Its followers were paused: what it sent waits in their sockets.
    Killed,
    Paused,
    /// What it sent is lost on the way.
    LostAndKilled,
    LostAndAlive,
}

/// Whether it is back before the next leader has ordered anything. If so, it is told to cut its log
/// (TRUNC) and takes back in memory what it had alone; later, it is sent a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coming {
    Early,
    Late,
}

#[test]
fn what_a_lost_leader_alone_had_logged_becomes_history_everywhere_or_nowhere() {
    for (going, coming) in [
        (Going::Killed, Coming::Late),
        (Going::Paused, Coming::Late),
        (Going::LostAndKilled, Coming::Early),
        (Going::LostAndKilled, Coming::Late),
        (Going::LostAndAlive, Coming::Early),
        (Going::LostAndAlive, Coming::Late),
    ] {
        let mut ensemble = Ensemble::started("tail", &Plan { proxies: true, ..Plan::of(3) });
        let leader = ensemble.wait_leader();
        let others = others(&ensemble, leader);
        let is_lost = matches!(going, Going::LostAndKilled | Going::LostAndAlive);
        let mut client = ensemble.client(leader);
        client.create("/before", b"");
        client.answer();
        for &id in &others {
            if is_lost {
                ensemble.proxies.as_ref().unwrap().cut(leader, id);
            } else {
                ensemble.pause(id);
            }
        }
        for number in 0..50 {
            client.create(&format!("/alone-{number}"), b"");
        }
        client.flush().unwrap();
        let logs = ensemble.members[&leader].data.join("version-2");
        let is_logged = || {
            let names = fs::read_dir(&logs).unwrap().map(|entry| entry.unwrap().path());
            let mut logs = names.filter(|path| path.to_string_lossy().contains("log."));
            logs.any(|path| {
                let bytes = fs::read(path).unwrap_or_default();
                bytes.windows(9).any(|window| window == b"/alone-49")
            })
        };
        until(PATIENCE, || "the leader does not log".to_owned(), is_logged);
        match going {
            Going::Killed | Going::LostAndKilled => ensemble.kill(leader),
            Going::Paused => ensemble.pause(leader),
            Going::LostAndAlive => {}
        }
        for &id in &others {
            if is_lost {
                ensemble.proxies.as_ref().unwrap().sever(leader, id);
            } else {
                ensemble.resume(id);
            }
        }
        ensemble.wait_leader_among(&others);
        let write = |ensemble: &Ensemble| {
            let mut other = ensemble.client(others[0]);
            other.create("/after", b"");
            other.answer();
        };
        if coming == Coming::Late {
            write(&ensemble);
        }
        match going {
            Going::Killed => ensemble.start(leader),
            Going::Paused => ensemble.resume(leader),
            Going::LostAndKilled | Going::LostAndAlive => {
                ensemble.proxies.as_ref().unwrap().heal();
                if !matches!(going, Going::LostAndAlive) {
                    ensemble.start(leader);
                }
            }
        }
        ensemble.wait_state(leader, "FOLLOWING");
        ensemble.wait_all();
        if coming == Coming::Early {
            let said = ensemble.server(leader).said();
            assert!(said.contains("TRUNC: 50 transactions are taken back"), "{said}");
            write(&ensemble);
            // It follows what is written from there on.
            let last = ensemble.zxid(ensemble.wait_leader());
            until(PATIENCE, || "it is behind".to_owned(), || last <= ensemble.zxid(leader));
        }
        let tree = check_equal(&ensemble, &ensemble.ids());
        assert!(tree.contains_key("/before") && tree.contains_key("/after"));
        let mut answered = 0;
        while let Ok(reply) = client.reply() {
            assert_eq!(reply.header.err, 0);
            assert!(tree.contains_key(&crate::load::path_of(&reply)), "it was acknowledged");
            answered += 1;
        }
        let left = tree.keys().filter(|path| path.starts_with("/alone-")).count();
        println!(
            "tail: {going:?}, {coming:?}: {left} of 50 became history, {answered} were acknowledged"
        );
        assert!(!is_lost || (left, answered) == (0, 0), "nobody else knew of it");
    }
}

/// More than `commitLogCount`: what a leader has in memory.
const MANY: u64 = 1_500;

/// The line by which a leader says that it sends something to a server.
fn sent(ensemble: &Ensemble, what: &str, to: Id) -> bool {
    ensemble.ids().iter().any(|&id| {
        let said = ensemble.members[&id].server.as_ref().map(|server| server.said());
        let is_it = |line: &str| line.contains(what) && line.contains(&format!("server={to} "));
        said.is_some_and(|said| said.lines().any(is_it))
    })
}

#[test]
fn who_has_missed_much_gets_it_from_the_leaders_log() {
    let mut random = Random::of_test("missed");
    let plan = Plan { observers: 1, ..Plan::of(3) };
    let mut ensemble = Ensemble::started("missed", &plan);
    let load = Load::start(&ensemble, &mut random, 6);
    let leader = ensemble.wait_leader();
    for away in [others(&ensemble, leader)[0], 4] {
        ensemble.kill(away);
        load.wait_writes(MANY);
        ensemble.start(away);
        ensemble.wait_all();
        assert!(sent(&ensemble, "sending DIFF from the log", away), "{}", ensemble.tell());
        assert!(!sent(&ensemble, "sending SNAP", away), "{}", ensemble.tell());
    }
    let written = load.finish();
    written.check(&ensemble);
    assert_eq!(written.lost_sessions(), 0);
}

/// What a server that joins takes before it can log it is bounded, and ends no join.
#[test]
fn an_emptied_server_joins_whatever_is_written_meanwhile() {
    let mut random = Random::of_test("joins");
    let settings = vec!["ringkeeper.learner.receivedBytesMax=4096"];
    let plan = Plan { settings, ..Plan::of(3) };
    let mut ensemble = Ensemble::started("joins", &plan);
    let load = Load::start(&ensemble, &mut random, 6);
    load.wait_writes(MANY);
    for round in 1..=3 {
        let leader = ensemble.wait_leader();
        let emptied = others(&ensemble, leader)[random.below(2)];
        ensemble.kill(emptied);
        damage(&ensemble.members[&emptied].data, Damage::Cleared, &mut random);
        load.mark();
        ensemble.start(emptied);
        ensemble.wait_all();
        println!("joins: round {round}: {:?} without a write", load.gap());
        assert!(sent(&ensemble, "sending SNAP", emptied), "{}", ensemble.tell());
        let said = ensemble.server(emptied).said();
        let joins = said.lines().filter(|line| line.contains("SNAP from the leader")).count();
        assert_eq!(joins, 1, "{said}");
    }
    let written = load.finish();
    written.check(&ensemble);
    assert_eq!(written.lost_sessions(), 0);
}
