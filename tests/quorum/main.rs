//! The pure half of Zab against servers of Apache ZooKeeper: it follows, observes and leads them.
//!
//! `ZOOKEEPER_JARS` names the folder of another release than Debian's. Without any, nothing can be
//! shown, and the output says so.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "it waits for real processes, and what does not hold ends the test"
)]

mod client;
mod java;
#[path = "../support/ports.rs"]
mod ports;
mod server;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringkeeper::ensemble::Ensemble;
use ringkeeper::types::Zxid;
use ringkeeper::zab::vote::PeerState;

use client::Client;
use java::Java;
use server::{Disk, Server, Start};

/// Ports and lines of an ensemble of three voters, and a fourth server that observes.
struct Bench {
    classpath: String,
    folder: PathBuf,
    lines: String,
    ensemble: Ensemble,
    /// Quorum and election port of each server, held so that nobody takes them.
    ports: Vec<[u16; 2]>,
    client_ports: Vec<u16>,
}

impl Bench {
    fn new(name: &str) -> Option<Bench> {
        let Some(classpath) = java::classpath() else {
            println!("NOT RUN: no ZooKeeper in /usr/share/java, nor in ZOOKEEPER_JARS");
            return None;
        };
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("quorum").join(name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let port = || ports::listen().local_addr().unwrap().port();
        let ports: Vec<[u16; 2]> = (0..4).map(|_| [port(), port()]).collect();
        let client_ports = (0..4).map(|_| port()).collect();
        let lines: Vec<(String, String)> = ports
            .iter()
            .enumerate()
            .map(|(place, [quorum, election])| {
                let role = if place == 3 { "observer" } else { "participant" };
                let id = place + 1;
                (format!("server.{id}"), format!("127.0.0.1:{quorum}:{election}:{role}"))
            })
            .collect();
        let ensemble = lines.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let ensemble = Ensemble::parse(ensemble, false).unwrap();
        let lines = lines.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
        Some(Bench { classpath, folder, lines, ensemble, ports, client_ports })
    }

    fn java(&self, id: i64) -> Java {
        let port = self.client_ports[id as usize - 1];
        Java::start(&self.classpath, &self.folder, id, port, &self.lines)
    }

    fn ours(&self, id: i64, disk: Disk) -> Server {
        // One that has just ended may still hold its ports.
        let listen = |port| {
            let deadline = Instant::now() + Duration::from_secs(10);
            loop {
                match TcpListener::bind(("127.0.0.1", port)) {
                    Ok(listener) => return listener,
                    Err(error) => assert!(Instant::now() < deadline, "{port}: {error}"),
                }
                std::thread::yield_now();
            }
        };
        let [quorum, election] = self.ports[id as usize - 1].map(listen);
        Server::start(Start {
            id,
            ensemble: &self.ensemble,
            is_observer: id == 4,
            disk,
            quorum,
            election,
        })
    }
}

#[test]
fn a_leader_of_java_is_followed_and_observed() {
    let Some(bench) = Bench::new("follow") else { return };
    let java = bench.java(2);
    // Java needs it for its quorum: what is committed, it has acknowledged.
    let follower = bench.ours(1, Disk::default());
    follower.wait("following", |seen| seen.epoch.is_some());
    java.wait_for_mode("leader");
    let mut client = Client::connect(java.client_port);
    let created = Zxid(client.create("/a", "1"));
    let seen = follower.wait("a commit", |seen| created <= seen.committed);
    assert_eq!((seen.state, seen.leader), (Some(PeerState::Following), 2));
    assert!(seen.disk.log.iter().any(|proposal| proposal.zxid == created));

    // An observer comes late, and hears of what is committed.
    let observer = bench.ours(4, Disk::default());
    let created = Zxid(client.create("/b", "2"));
    let seen = observer.wait("a commit", |seen| created <= seen.committed);
    assert_eq!((seen.state, seen.leader), (Some(PeerState::Observing), 2));
}

#[test]
fn a_follower_of_java_comes_back_by_diff_and_a_new_one_by_snap() {
    let Some(bench) = Bench::new("rejoin") else { return };
    let (one, other) = (bench.java(2), bench.java(3));
    let follower = bench.ours(1, Disk::default());
    follower.wait("following", |seen| seen.epoch.is_some());
    // Both have a role: they are a quorum also without ours, which is about to go.
    one.wait_for_mode("");
    other.wait_for_mode("");
    let mut client = Client::connect(one.client_port);
    let before = Zxid(client.create("/before", "1"));
    follower.wait("a commit", |seen| before <= seen.committed);
    let disk = follower.stop();
    let last = (1..=20).map(|n| Zxid(client.create(&format!("/while{n}"), "1"))).last().unwrap();

    let follower = bench.ours(1, disk);
    let seen = follower.wait("what it had missed", |seen| last <= seen.committed);
    assert_eq!(seen.operations, ["DIFF"]);
    follower.stop();
    let follower = bench.ours(1, Disk::default());
    let seen = follower.wait("the history", |seen| last <= seen.committed);
    assert_eq!(seen.operations, ["SNAP"]);

    drop((one, other));
}

/// More than `commitLogCount`, 500: the leader has the rest in its log alone.
const MANY: i64 = 700;

#[test]
fn who_has_missed_much_gets_it_from_the_log_of_a_leader_of_java() {
    let Some(bench) = Bench::new("much-of-java") else { return };
    let (one, other) = (bench.java(2), bench.java(3));
    let follower = bench.ours(1, Disk::default());
    follower.wait("following", |seen| seen.epoch.is_some());
    one.wait_for_mode("");
    other.wait_for_mode("");
    let mut client = Client::connect(one.client_port);
    let before = Zxid(client.create("/before", "1"));
    follower.wait("a commit", |seen| before <= seen.committed);
    let disk = follower.stop();
    let last = (1..=MANY).map(|n| Zxid(client.create(&format!("/while{n}"), "1"))).last().unwrap();
    let follower = bench.ours(1, disk);
    let seen = follower.wait("what it had missed", |seen| last <= seen.committed);
    assert_eq!(seen.operations, ["DIFF"]);
    let missed = seen.disk.log.iter().filter(|proposal| before < proposal.zxid).count();
    assert!(MANY as usize <= missed, "it got {missed}");
    drop((one, other));
}

#[test]
fn a_server_of_java_that_has_missed_much_gets_it_from_the_log_of_ours() {
    let Some(bench) = Bench::new("much-of-ours") else { return };
    let leader = bench.ours(3, Disk::default());
    let (one, other) = (bench.java(1), bench.java(2));
    leader.wait("leading", |seen| seen.epoch.is_some());
    one.wait_for_mode("follower");
    other.wait_for_mode("follower");
    let mut writer = Client::connect(one.client_port);
    writer.create("/before", "1");
    Client::connect(other.client_port).sync();
    drop(other);
    let last = (1..=MANY).map(|n| Zxid(writer.create(&format!("/while{n}"), "1"))).last().unwrap();
    leader.wait("the commits", |seen| last <= seen.committed);
    let other = bench.java(2);
    other.wait_for_mode("follower");
    let mut reader = Client::connect(other.client_port);
    reader.sync();
    for path in ["/while1", "/while100", &format!("/while{MANY}")] {
        assert_eq!(reader.data(path), "1");
    }
    let seen = leader.wait("the commits", |seen| last <= seen.committed);
    assert_eq!(seen.operations[2..], ["log asked for", "DIFF sent"]);
    // It is one of them.
    drop(one);
    let created = Zxid(reader.create("/after", "1"));
    leader.wait("the commit", |seen| created <= seen.committed);
}

#[test]
fn servers_of_java_follow_ours() {
    let Some(bench) = Bench::new("lead") else { return };
    let leader = bench.ours(3, Disk::default());
    let (one, other) = (bench.java(1), bench.java(2));
    let seen = leader.wait("leading", |seen| seen.epoch.is_some());
    assert_eq!((seen.state, seen.leader), (Some(PeerState::Leading), 3));
    one.wait_for_mode("follower");
    other.wait_for_mode("follower");

    // A client of one follower writes, one of the other reads it.
    let mut writer = Client::connect(one.client_port);
    let mut reader = Client::connect(other.client_port);
    let created = Zxid(writer.create("/ours", "led by it"));
    reader.sync();
    assert_eq!(reader.data("/ours"), "led by it");
    leader.wait("the commit", |seen| created <= seen.committed);

    // A follower that was away gets what it lacks.
    drop(other);
    let created = Zxid(writer.create("/while", "it was away"));
    let other = bench.java(2);
    other.wait_for_mode("follower");
    let mut reader = Client::connect(other.client_port);
    reader.sync();
    assert_eq!(reader.data("/while"), "it was away");
    let seen = leader.wait("the commit", |seen| created <= seen.committed);
    assert_eq!(seen.operations, ["DIFF sent"; 3]);

    // An observer of Java.
    let observer = bench.java(4);
    observer.wait_for_mode("observer");
    let mut reader = Client::connect(observer.client_port);
    let created = writer.create("/observed", "by Java");
    reader.sync();
    assert_eq!(reader.data("/observed"), "by Java");
    assert!(0 < created);

    // The leader ends, and Java goes on with all that was committed; then it comes back, and follows.
    let disk = leader.stop();
    other.wait_for_mode("leader");
    let mut client = Client::connect(other.client_port);
    assert_eq!(client.data("/observed"), "by Java");
    let created = Zxid(client.create("/after", "it was gone"));
    let follower = bench.ours(3, disk);
    let seen = follower.wait("the history", |seen| created <= seen.committed);
    assert_eq!((seen.state, seen.leader), (Some(PeerState::Following), 2));
}
