//! The real binary on loopback: started, killed, restarted, stopped.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test says what it does, and ends where something does not hold"
)]

mod client;
mod cores;
mod crashes;
mod ensemble;
mod fairness;
mod files;
mod floods;
mod full_disk;
mod limits;
mod logs;
#[path = "../support/ports.rs"]
mod ports;
mod server;
mod silence;
mod words;

use std::collections::BTreeMap;
use std::time::Duration;

use client::{Client, now, word};
use ringkeeper::record::code::Code;
use server::{Folder, Server, Setup};

/// How long anything may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// SplitMix64: the instants of the kills, different in each run and printed if it fails.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// What was acknowledged: by path, the least that must be there.
#[derive(Default)]
struct Acknowledged {
    created: Vec<String>,
    counters: BTreeMap<String, u64>,
}

const COUNTERS: u64 = 8;
const DEPTH: u64 = 64;

/// Writes, pipelined, until the connection breaks. Notes each acknowledgement as it arrives.
fn write_until_killed(client: &mut Client, cycle: u64, acknowledged: &mut Acknowledged) {
    let mut sent = 0_u64;
    let mut got = 0_u64;
    let mut in_flight = std::collections::VecDeque::new();
    loop {
        while sent < got + DEPTH {
            let path = if sent.is_multiple_of(2) {
                let path = format!("/c/{cycle}-{sent}");
                client.create(&path, path.as_bytes());
                path
            } else {
                let path = format!("/n{}", sent % COUNTERS);
                client.set(&path, format!("{cycle:010}{sent:010}").as_bytes());
                path
            };
            in_flight.push_back((sent, path));
            sent += 1;
        }
        if client.flush().is_err() {
            return;
        }
        for _ in 0..DEPTH / 2 {
            let Ok(reply) = client.reply() else { return };
            assert_eq!(reply.header.err, 0, "a write was refused");
            let (number, path) = in_flight.pop_front().unwrap();
            got += 1;
            if number.is_multiple_of(2) {
                acknowledged.created.push(path);
            } else {
                acknowledged.counters.insert(path, cycle * 10_000_000_000 + number);
            }
        }
    }
}

/// Whether all that was acknowledged is there.
fn check(client: &mut Client, acknowledged: &Acknowledged, from: usize) {
    for chunk in acknowledged.created[from..].chunks(500) {
        for path in chunk {
            client.get(path);
        }
        for (path, reply) in chunk.iter().zip(client.replies(chunk.len()).unwrap()) {
            assert_eq!(reply.header.err, 0, "{path} was acknowledged and is gone");
            assert_eq!(reply.data().0, path.as_bytes());
        }
    }
    for (path, least) in &acknowledged.counters {
        client.get(path);
        let (data, _) = client.replies(1).unwrap()[0].data();
        let text = String::from_utf8(data).unwrap();
        let found = text[..10].parse::<u64>().unwrap() * 10_000_000_000
            + text[10..].parse::<u64>().unwrap();
        assert!(*least <= found, "{path} went back from {least} to {found}");
    }
}

/// `CYCLES=n` for more than the hundred of CI.
#[test]
fn sigkill_at_any_instant_loses_nothing_that_was_acknowledged() {
    let cycles = std::env::var("CYCLES").map_or(100, |cycles| cycles.parse().unwrap());
    let seed = std::env::var("SEED").map_or_else(
        |_| u64::from(std::process::id()) << 20,
        |seed| seed.parse().expect("SEED is a number"),
    );
    println!("SEED={seed} CYCLES={cycles}");
    let mut random = Random(seed);
    let folder = Folder::new("sigkill");
    let mut acknowledged = Acknowledged::default();
    for cycle in 0..cycles {
        // Small limits, so that logs roll and snapshots are taken in most cycles.
        let server = Server::start(&folder, &["snapCount=400", "preAllocSize=64"]);
        let mut client = Client::connect(server.address, now() + PATIENCE).unwrap();
        if cycle == 0 {
            client.create("/c", b"");
            (0..COUNTERS).for_each(|n| {
                client.create(&format!("/n{n}"), b"00000000000000000000");
            });
            client.replies(COUNTERS as usize + 1).unwrap();
        }
        let recent = acknowledged.created.len().saturating_sub(2_000);
        check(&mut client, &acknowledged, recent);
        let delay = Duration::from_micros(500 + random.below(80_000));
        let killer = server.kill_after(delay);
        write_until_killed(&mut client, cycle, &mut acknowledged);
        killer.join().expect("the killer ends");
    }
    let server = Server::start(&folder, &[]);
    let mut client = Client::connect(server.address, now() + PATIENCE).unwrap();
    check(&mut client, &acknowledged, 0);
    let count = acknowledged.created.len();
    println!("{cycles} kills, {count} acknowledged creates, none lost");
    assert!(count as u64 > cycles, "the load hardly wrote anything");
}

/// As `timeout` and service managers do it, which signal a process and its group.
#[test]
fn a_signal_that_comes_twice_is_one() {
    let folder = Folder::new("signals");
    for _ in 0..5 {
        let server = Server::start(&folder, &[]);
        drop(Client::connect(server.address, now() + PATIENCE).unwrap());
        server.ask_to_stop();
        server.ask_to_stop();
        assert_eq!(server.terminate(PATIENCE).code(), Some(0));
    }
}

#[test]
fn sigterm_ends_orderly_with_all_that_was_answered_on_the_disk() {
    let folder = Folder::new("sigterm");
    let server = Server::start(&folder, &[]);
    let mut client = Client::connect(server.address, now() + PATIENCE).unwrap();
    client.create("/a", b"1");
    assert_eq!(client.replies(1).unwrap()[0].header.err, 0);
    let status = server.terminate(PATIENCE);
    assert_eq!(status.code(), Some(0));
    assert!(client.reply().is_err(), "the connection is closed");
    let server = Server::start(&folder, &[]);
    let mut client = Client::connect(server.address, now() + PATIENCE).unwrap();
    client.get("/a");
    assert_eq!(client.replies(1).unwrap()[0].data().0, b"1");
}

#[test]
fn who_changed_what_is_audited_where_that_is_asked_for() {
    let folder = Folder::new("audit");
    let server = Server::start(&folder, &["audit.enable=true"]);
    let mut client = Client::connect(server.address, now() + PATIENCE).unwrap();
    for _ in 0..2 {
        client.create("/a", b"1");
        client.replies(1).unwrap();
    }
    server.ask_to_stop();
    let (status, said) = server.wait(PATIENCE);
    assert_eq!(status.code(), Some(0), "{said}");
    let create = "user=127.0.0.1\tip=127.0.0.1\toperation=create\tznode=/a\tznode_type=persistent";
    for line in [
        "operation=serverStart\tresult=success",
        &format!("{create}\tresult=success"),
        &format!("{create}\tresult=failure"),
        "operation=serverStop\tresult=invoked",
    ] {
        assert_eq!(said.matches(line).count(), 1, "{line} in {said}");
    }
}

#[test]
fn a_second_server_on_the_same_directory_refuses() {
    let folder = Folder::new("second");
    let first = Server::start(&folder, &[]);
    Client::connect(first.address, now() + PATIENCE).unwrap();
    let second = Server::start(&folder, &[]);
    let (status, output) = second.wait(PATIENCE);
    assert!(!status.success());
    assert!(output.contains("another"), "no reason given: {output}");
    let answer = word(first.address, b"srvr").unwrap();
    assert!(answer.contains("Mode: standalone"), "the first goes on: {answer}");
}

#[test]
fn a_second_server_refuses_although_the_lock_file_was_removed() {
    let folder = Folder::new("unlocked");
    let logs = folder.path().join("logs");
    let setting = format!("dataLogDir={}", logs.display());
    let first = Server::start(&folder, &[&setting]);
    let mut client = Client::connect(first.address, now() + PATIENCE).unwrap();
    let data = folder.path().join("data");
    for directory in [&data, &logs] {
        std::fs::remove_file(directory.join("ringkeeper.lock")).unwrap();
    }
    // On both directories, and on either of them with another one beside.
    let [other_data, other_logs] =
        ["other-data", "other-logs"].map(|name| folder.path().join(name));
    for (data, logs) in [(&data, &logs), (&data, &other_logs), (&other_data, &logs)] {
        let setting = format!("dataLogDir={}", logs.display());
        let second = Setup::new(&[&setting]).data(data).start(&folder);
        let (status, output) = second.wait(PATIENCE);
        assert_eq!(status.code(), Some(3), "{output}");
        let holder = format!("by process {}", first.pid());
        assert!(
            output.contains("another server is running") && output.contains(&holder),
            "{output}"
        );
    }
    client.create("/goes-on", b"");
    client.answer();
}

#[test]
fn a_client_and_its_ephemerals_outlive_a_crash_until_the_session_ends() {
    let folder = Folder::new("session");
    let server = Server::start(&folder, &["tickTime=200"]);
    let mut client = Client::connect(server.address, now() + PATIENCE).unwrap();
    client.create("/stays", b"");
    client.replies(1).unwrap();
    let xid = client.get("/nowhere");
    let reply = &client.replies(1).unwrap()[0];
    assert_eq!((reply.header.xid, reply.header.err), (xid, Code::NoNode.number()));
    server.kill();
    let server = Server::start(&folder, &["tickTime=200"]);
    let mut again = Client::connect(server.address, now() + PATIENCE).unwrap();
    assert_ne!(client.session.session, again.session.session, "ids are not given out twice");
    again.get("/stays");
    assert_eq!(again.replies(1).unwrap()[0].header.err, 0);
}
