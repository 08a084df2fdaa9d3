//! What clients see of an ensemble in which nothing goes wrong; and of one without a quorum.

use std::io::{Read as _, Write as _};

use crate::PATIENCE;
use crate::client::{Client, Terms, word};
use crate::ensemble::{Ensemble, Plan};
use crate::load::{Load, check_equal};
use crate::random::Random;
use crate::server::{Folder, Setup, until};

const EPHEMERAL: i32 = 1;

fn read(client: &mut Client, path: &str) -> Option<Vec<u8>> {
    client.sync("/");
    client.answer();
    client.get(path);
    let reply = client.replies(1).unwrap().remove(0);
    (reply.header.err == 0).then(|| reply.data().0)
}

#[test]
fn three_servers_serve_and_a_session_goes_from_one_to_another() {
    let ensemble = Ensemble::started("three", &Plan::of(3));
    let ids = ensemble.ids();
    let mut clients: Vec<Client> = ids.iter().map(|&id| ensemble.client(id)).collect();
    let sessions: std::collections::BTreeSet<i64> =
        clients.iter().map(|client| client.session.session).collect();
    assert_eq!(sessions.len(), 3, "no session id is given out twice");

    // What is written through any server is read through every other after a sync.
    for (place, id) in ids.iter().enumerate() {
        let path = format!("/by-{id}");
        clients[place].create(&path, path.as_bytes());
        clients[place].answer();
        for client in &mut clients {
            assert_eq!(read(client, &path), Some(path.clone().into_bytes()));
        }
    }

    // A watch on one server sees what is done through another.
    clients[0].watch("/by-2");
    clients[0].answer();
    clients[2].set("/by-2", b"new");
    clients[2].answer();
    let event = clients[0].reply().unwrap().event();
    assert_eq!(event, Some((3, "/by-2".to_owned())));

    // A session takes its ephemerals along, and its watches are set where it goes.
    clients[0].create_as("/eph", b"mine", EPHEMERAL);
    let created = clients[0].answer().header.zxid;
    let session = clients[0].session;
    for id in [2, 3, 1, 3] {
        let mut moved = ensemble.moved(id, session, created);
        assert_eq!(read(&mut moved, "/eph"), Some(b"mine".to_vec()));
        moved.watch("/moved");
        moved.replies(1).unwrap();
        clients[1].create("/moved", b"");
        clients[1].answer();
        assert_eq!(moved.reply().unwrap().event(), Some((1, "/moved".to_owned())));
        moved.request(ringkeeper::record::op::code::DELETE, |out| {
            use ringkeeper::jute::record::Record as _;
            let path = Some("/moved".into());
            ringkeeper::record::proto::PathVersion { path, version: -1 }.write(out);
        });
        moved.answer();
        clients[0] = moved;
    }
    // It ends on the server that it went to, and its ephemeral is gone everywhere.
    clients[0].close_session();
    clients[0].answer();
    for client in &mut clients[1..] {
        assert_eq!(read(client, "/eph"), None);
    }
    check_equal(&ensemble, &ids);
}

#[test]
fn an_observer_serves_and_forwards_and_is_not_missed() {
    let mut random = Random::of_test("observer");
    let plan = Plan { observers: 1, ..Plan::of(3) };
    let mut ensemble = Ensemble::started("observer", &plan);
    assert_eq!(ensemble.state(4), Some("OBSERVING"));
    let mut client = ensemble.client(4);
    client.create("/through", b"4");
    client.answer();
    let mut other = ensemble.client(1);
    assert_eq!(read(&mut other, "/through"), Some(b"4".to_vec()));
    drop((client, other));

    let load = Load::start(&ensemble, &mut random, 4);
    load.mark();
    ensemble.kill(4);
    println!("observer: killed: {:?} without an acknowledged write", load.gap());
    load.wait_writes(200);
    ensemble.start(4);
    ensemble.wait_serving(&[4]);
    load.wait_writes(200);
    // With one of three voters away it still counts for nothing.
    let leader = ensemble.wait_leader();
    let follower = (1..=3).find(|&id| id != leader).unwrap();
    ensemble.kill(follower);
    load.wait_writes(200);
    ensemble.kill(4);
    load.wait_writes(200);
    ensemble.start(4);
    ensemble.start(follower);
    load.finish().check(&ensemble);
}

#[test]
fn a_server_without_a_quorum_serves_nobody() {
    let mut ensemble = Ensemble::new("alone", &Plan::of(3));
    let refuses = |ensemble: &Ensemble, id| {
        let mut stream = std::net::TcpStream::connect(ensemble.address(id))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"srvr")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        std::io::Result::Ok(answer.contains("not currently serving requests"))
    };
    ensemble.start(1);
    until(PATIENCE, || ensemble.tell(), || refuses(&ensemble, 1).unwrap_or(false));
    assert!(Client::try_connect(ensemble.address(1), None).is_err(), "it serves alone");
    ensemble.start(2);
    ensemble.wait_serving(&[1, 2]);
    let mut client = ensemble.client(1);
    client.create("/a", b"1");
    client.answer();
    // The other one is gone: whoever is left lets its clients go, and serves nobody.
    ensemble.kill(2);
    assert!(client.reply().is_err(), "the connection is closed");
    until(PATIENCE, || ensemble.tell(), || refuses(&ensemble, 1).unwrap_or(false));
    assert!(Client::try_connect(ensemble.address(1), None).is_err(), "it serves alone");
    ensemble.start(3);
    ensemble.wait_serving(&[1, 3]);
    assert_eq!(read(&mut ensemble.client(3), "/a"), Some(b"1".to_vec()));
}

#[test]
fn a_server_without_a_quorum_is_read_by_who_asks_for_no_more() {
    let plan = Plan { settings: vec!["readonlymode.enabled=true"], ..Plan::of(3) };
    let mut ensemble = Ensemble::started("read-only", &plan);
    let leader = ensemble.wait_leader();
    let left = (1..=3).find(|&id| id != leader).unwrap();
    let lost: Vec<_> = ensemble.ids().into_iter().filter(|&id| id != left).collect();
    let mut client = ensemble.client(left);
    client.create("/a", b"1");
    let zxid = client.answer().header.zxid;
    let session = client.session;
    lost.iter().for_each(|&id| ensemble.kill(id));
    let is_read_only = |ensemble: &Ensemble| {
        let answer = word(ensemble.address(left), b"srvr").unwrap_or_default();
        answer.contains("READ-ONLY mode; serving only read-only clients\n")
            && answer.contains("\nMode: read-only\n")
    };
    until(PATIENCE, || ensemble.tell(), || is_read_only(&ensemble));
    assert!(client.reply().is_err(), "the connection is closed");
    assert_eq!(word(ensemble.address(left), b"isro").unwrap(), "ro");

    let connect = |ensemble: &Ensemble, session, read_only| {
        let terms = Terms { read_only, last_zxid_seen: zxid, ..Terms::default() };
        let mut client = Client::begin_as(ensemble.address(left), session, terms)?;
        client.finish().map(|()| client)
    };
    assert!(connect(&ensemble, None, false).is_err(), "it would write");
    // Whether this session lives, nobody knows here.
    assert!(connect(&ensemble, Some(session), true).is_err(), "it is the ensemble's");
    let mut reader = connect(&ensemble, None, true).unwrap();
    assert_eq!((reader.session.session >> 56, reader.session.read_only), (left as i64, Some(true)));
    reader.get("/a");
    let reply = reader.replies(1).unwrap().remove(0);
    assert_eq!((reply.data().0, reply.header.zxid), (b"1".to_vec(), zxid));
    for refused in [
        (|client: &mut Client| client.create("/b", b"")) as fn(&mut Client) -> i32,
        |client| client.set("/a", b"2"),
        |client| client.sync("/"),
    ] {
        refused(&mut reader);
        let header = reader.replies(1).unwrap().remove(0).header;
        assert_eq!((header.err, header.zxid), (-119, zxid));
    }

    // A leader is back: who was there to read is let go, and what was before goes on.
    ensemble.start(lost[0]);
    assert!(reader.reply().is_err(), "the connection is closed");
    ensemble.wait_leader_among(&[left, lost[0]]);
    ensemble.wait_serving(&[left]);
    until(PATIENCE, || ensemble.tell(), || !is_read_only(&ensemble));
    let mut back = ensemble.moved(left, session, zxid);
    back.create_as("/mine", b"", EPHEMERAL);
    back.answer();
    assert_eq!(read(&mut back, "/b"), None);
    let gone = connect(&ensemble, Some(reader.session), false).unwrap();
    assert_eq!(gone.session.timeout_ms, 0, "it was never the ensemble's");
    ensemble.start(lost[1]);
    ensemble.wait_all();
    check_equal(&ensemble, &ensemble.ids());
}

#[test]
fn a_local_session_is_its_servers_until_it_owns_something() {
    let plan = Plan {
        settings: vec![
            "localSessionsEnabled=true",
            "localSessionsUpgradingEnabled=true",
            "4lw.commands.whitelist=mntr",
        ],
        observers: 1,
        ..Plan::of(3)
    };
    let mut ensemble = Ensemble::started("local", &plan);
    let leader = ensemble.wait_leader();
    let follower = (1..=3).find(|&id| id != leader).unwrap();
    let own = |ensemble: &Ensemble, id| {
        let said = word(ensemble.address(id), b"mntr").unwrap();
        ["zk_global_sessions\t", "zk_local_sessions\t"].map(|name| {
            let line = said.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().parse::<usize>().unwrap()
        })
    };
    for (at, other) in [(follower, leader), (leader, 4), (4, follower)] {
        let mut client = ensemble.client(at);
        assert_eq!(own(&ensemble, at), [0, 1]);
        let path = format!("/of-{at}");
        client.create(&path, b"");
        let zxid = client.answer().header.zxid;
        let thief = Client::try_connect(ensemble.address(other), Some(client.session)).unwrap();
        assert_eq!(thief.session.timeout_ms, 0, "it is unknown elsewhere");
        let mine = format!("/mine-{at}");
        client.create_as(&mine, b"", EPHEMERAL);
        // The session's own transaction comes before.
        assert_eq!(client.answer().header.zxid, zxid + 2);
        assert_eq!(own(&ensemble, at), [1, 0]);
        let mut moved = ensemble.moved(other, client.session, zxid + 2);
        assert!(read(&mut moved, &mine).is_some());
        moved.close_session();
        moved.answer();
        let mut reader = ensemble.client(at);
        assert_eq!(read(&mut reader, &mine), None);
        reader.close_session();
        reader.answer();
        assert_eq!(own(&ensemble, at), [0, 0]);
    }
    // Its server goes on with it under another leader, and takes it along when it ends.
    let client = ensemble.client(follower);
    ensemble.kill(leader);
    let left: Vec<_> = (1..=3).filter(|&id| id != leader).collect();
    ensemble.wait_leader_among(&left);
    ensemble.wait_serving(&[follower]);
    let again = ensemble.moved(follower, client.session, 0);
    ensemble.kill(follower);
    ensemble.start(follower);
    ensemble.wait_serving(&[follower]);
    let gone = Client::try_connect(ensemble.address(follower), Some(again.session)).unwrap();
    assert_eq!(gone.session.timeout_ms, 0);
}

#[test]
fn servers_without_their_limits_are_refused_with_the_error_of_zookeeper() {
    let folder = Folder::new("limits");
    std::fs::create_dir_all(folder.path().join("data")).unwrap();
    std::fs::write(folder.path().join("data/myid"), "1\n").unwrap();
    let servers = ["server.1=127.0.0.1:1:2", "server.2=127.0.0.1:3:4", "server.3=127.0.0.1:5:6"];
    for (given, error) in [
        (&["tickTime=2000"][..], "initLimit is not set"),
        (&["initLimit=10"], "syncLimit is not set"),
    ] {
        let settings: Vec<&str> = servers.iter().chain(given).copied().collect();
        let (status, said) = Setup::new(&settings).start(&folder).wait(PATIENCE);
        assert_eq!(status.code(), Some(2), "{said}");
        assert!(said.contains(error), "{said}");
    }
}
