//! Ends under load: by SIGKILL while snapshots are taken and logs roll, and by SIGTERM.

use std::fs;
use std::time::Duration;

use ringkeeper::pipeline::SnapshotJob;
use ringkeeper::storage::snapshot::SnapshotWriter;
use ringkeeper::storage::{self, Compression};
use ringkeeper::tree::{self, TreeWriter};
use ringkeeper::types::Zxid;

use crate::client::{Client, now};
use crate::server::{Folder, Server, Setup};
use crate::{PATIENCE, Random};

fn connect(server: &Server) -> Client {
    Client::connect(server.address, now() + PATIENCE).unwrap()
}

/// Sets `/n<i>` for `i` below `count` again and again, each time to a larger number, until the
/// connection breaks. `values` has what was acknowledged last, `next` what was sent.
fn set_until_broken(client: &mut Client, values: &mut [u64], next: &mut u64) {
    const DEPTH: usize = 128;
    let mut in_flight = std::collections::VecDeque::new();
    loop {
        while in_flight.len() < DEPTH {
            let number = usize::try_from(*next).unwrap() % values.len();
            client.set(&format!("/n{number}"), format!("{next:020}").as_bytes());
            in_flight.push_back((number, *next));
            *next += 1;
        }
        if client.flush().is_err() {
            // What the server had written before may still be there to read.
            while let Ok(reply) = client.reply() {
                let (number, value) = in_flight.pop_front().unwrap();
                assert_eq!(reply.header.err, 0);
                values[number] = value;
            }
            return;
        }
        let Ok(reply) = client.reply() else { return };
        assert_eq!(reply.header.err, 0, "a write was refused");
        let (number, value) = in_flight.pop_front().unwrap();
        values[number] = value;
    }
}

fn check(client: &mut Client, values: &[u64]) {
    for (number, &least) in values.iter().enumerate() {
        client.get(&format!("/n{number}"));
        let text = String::from_utf8(client.answer().data().0).unwrap();
        let found: u64 = text.parse().unwrap();
        assert!(least <= found, "/n{number} went back from {least} to {found}");
    }
}

fn create(client: &mut Client, count: usize) {
    for first in (0..count).step_by(500) {
        for number in first..count.min(first + 500) {
            client.create(&format!("/n{number}"), format!("{:020}", 0).as_bytes());
        }
        let replies = client.replies(count.min(first + 500) - first).unwrap();
        assert!(replies.iter().all(|reply| reply.header.err == 0));
    }
}

/// How the log can be written: by either back end, on the shard's core and on one of its own.
const MANNERS: [[&str; 2]; 4] = [
    ["-Dringkeeper.txnLog.backEnd=direct", "-Dringkeeper.shards=1"],
    ["-Dringkeeper.txnLog.backEnd=mapped", "-Dringkeeper.shards=1"],
    ["-Dringkeeper.txnLog.backEnd=direct", "-Dringkeeper.shards=2"],
    ["-Dringkeeper.txnLog.backEnd=mapped", "-Dringkeeper.shards=2"],
];

fn setup(settings: &[&str], manner: [&str; 2]) -> Setup {
    manner.into_iter().fold(Setup::new(settings), Setup::flag)
}

/// Each start goes on with what the one before, of another manner, has left.
#[test]
fn sigkill_during_snapshots_and_rolls_of_a_larger_tree_loses_nothing() {
    const ZNODES: usize = 5000;
    let seed = u64::from(std::process::id()) << 20;
    println!("SEED={seed}");
    let mut random = Random(seed);
    let folder = Folder::new("heavy");
    // Snapshots of 5,000 znodes overlap with the next logs; few are kept.
    let settings = ["snapCount=200", "preAllocSize=64", "autopurge.purgeInterval=30ms"];
    let server = Server::start(&folder, &settings);
    create(&mut connect(&server), ZNODES);
    server.kill();
    let mut values = vec![0; ZNODES];
    let mut next = 1;
    for round in 0..16 {
        let server = setup(&settings, MANNERS[round % MANNERS.len()]).start(&folder);
        let mut client = connect(&server);
        check(&mut client, &values);
        let killer = server.kill_after(Duration::from_micros(20_000 + random.below(300_000)));
        set_until_broken(&mut client, &mut values, &mut next);
        killer.join().expect("the killer ends");
    }
    let server = Server::start(&folder, &[]);
    check(&mut connect(&server), &values);
    assert!(1000 < next, "the load hardly wrote anything");
}

/// A directory whose history has almost come to the last zxid of an epoch.
fn near_the_end_of_an_epoch(folder: &Folder, before: i64) {
    let mut tree = TreeWriter::new(tree::Settings::default());
    let job = SnapshotJob {
        zxid: Zxid(i64::from(u32::MAX) - before),
        digest: Some(tree.digest()),
        sessions: Vec::new(),
        acls: tree.acl_lists(),
        reader: tree.reader(),
    };
    let bytes = job.write(SnapshotWriter::new(Vec::new()), true).unwrap();
    fs::create_dir_all(folder.version()).unwrap();
    let name = storage::snapshot_name(job.zxid, Compression::None);
    fs::write(folder.version().join(name), bytes).unwrap();
}

/// The low half of the zxid runs over in the middle of a batch, with either back end; what was
/// acknowledged on both sides of it is there after kills, and the server goes on.
#[test]
fn an_epoch_that_runs_over_under_load_loses_nothing() {
    const ZNODES: usize = 200;
    for (round, manner) in MANNERS.into_iter().enumerate() {
        let folder = Folder::new("roll");
        near_the_end_of_an_epoch(&folder, 50 + 40 * round as i64);
        let server = setup(&[], manner).start(&folder);
        create(&mut connect(&server), ZNODES);
        server.kill();
        for _ in 0..2 {
            let server = setup(&[], manner).start(&folder);
            let mut client = connect(&server);
            check(&mut client, &[0; ZNODES]);
            client.create(&format!("/more-{}", client.session.session), b"");
            assert!(1 << 32 < client.answer().header.zxid);
            server.kill();
        }
    }
}

#[test]
fn sigterm_under_load_keeps_all_that_was_answered() {
    const ZNODES: usize = 500;
    let folder = Folder::new("sigterm-load");
    let mut values = vec![0; ZNODES];
    let mut next = 1;
    for (round, manner) in MANNERS.into_iter().enumerate() {
        let server = setup(&["snapCount=500"], manner).start(&folder);
        let mut client = connect(&server);
        if round == 0 {
            create(&mut client, ZNODES);
        }
        check(&mut client, &values);
        let before = next;
        let status = std::thread::scope(|scope| {
            let load = scope.spawn(|| set_until_broken(&mut client, &mut values, &mut next));
            // Under way for certain once it has said what it does with them.
            let logged = || server.said().contains("Creating new log file");
            crate::server::until(PATIENCE, || server.said(), logged);
            let status = server.terminate(PATIENCE);
            load.join().unwrap();
            status
        });
        assert_eq!(status.code(), Some(0), "round {round}");
        assert!(before < next);
    }
    let server = Server::start(&folder, &[]);
    check(&mut connect(&server), &values);
}
