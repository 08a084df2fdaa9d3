//! Who is taken for dead, and who is not: slow readers, and stalls of the server.

use std::time::{Duration, Instant};

use crate::PATIENCE;
use crate::client::{Client, now};
use crate::server::{Folder, Server, Setup, until};

const MEGABYTE: usize = 1_000_000;
/// The longest that a server with `TICK` grants.
const TIMEOUT: Duration = Duration::from_millis(2000);
const TICK: &str = "tickTime=100";

fn connect(server: &Server) -> Client {
    let client = Client::connect(server.address, now() + PATIENCE).unwrap();
    assert_eq!(client.session.timeout_ms, TIMEOUT.as_millis() as i32);
    client
}

fn ephemeral(client: &mut Client, path: &str) {
    client.create_as(path, b"", 1);
    client.answer();
}

/// What is there below the root, whichever shard the client is at.
fn names(client: &mut Client) -> Vec<String> {
    client.sync("/");
    client.children("/");
    let replies = client.replies(2).unwrap();
    replies[1].names()
}

/// Does something again and again, until a moment.
fn keep_on(end: Instant, mut act: impl FnMut()) {
    until(
        PATIENCE,
        || "time does not pass".to_owned(),
        || {
            act();
            std::thread::park_timeout(Duration::from_millis(50));
            end <= now()
        },
    );
}

/// Which layouts there are, and how sockets are read from.
fn in_every_manner(test: impl Fn(&[&str])) {
    test(&["-Dringkeeper.ring=auto"]);
    test(&["-Dringkeeper.ring=plain"]);
    test(&["-Dringkeeper.shards=3"]);
    test(&["-Dringkeeper.shards=2", "-Dringkeeper.ring=plain"]);
}

fn start(folder: &Folder, flags: &[&str]) -> Server {
    flags.iter().fold(Setup::new(&[TICK]), |setup, flag| setup.flag(flag)).start(folder)
}

#[test]
fn whoever_reads_slowly_or_only_says_that_it_lives_keeps_its_session() {
    in_every_manner(|flags| {
        let folder = Folder::new("slow-reader");
        let server = start(&folder, flags);
        let mut other = connect(&server);
        other.create("/big", &vec![7; MEGABYTE]);
        other.answer();
        let [mut pings, mut reads, mut dead] = [(); 3].map(|()| connect(&server));
        let all = [(&mut pings, "/pings"), (&mut reads, "/reads"), (&mut dead, "/dead")];
        for (client, path) in all {
            ephemeral(client, path);
            // More than the kernel takes for it.
            for _ in 0..60 {
                client.get("/big");
            }
            client.flush().unwrap();
        }
        let began = now();
        let (mut taken, mut died) = (0, None);
        keep_on(began + 4 * TIMEOUT, || {
            pings.ping();
            pings.flush().unwrap();
            // 640 kB a second.
            taken += reads.take(32 << 10);
            let names = names(&mut other);
            for name in ["pings", "reads"] {
                assert!(names.iter().any(|found| found == name), "{name} is gone: {flags:?}");
            }
            if !names.iter().any(|found| found == "dead") {
                died.get_or_insert_with(|| began.elapsed());
            }
        });
        let died = died.expect("whoever gives no sign of life is expired");
        assert!(TIMEOUT <= died && died < 2 * TIMEOUT, "after {died:?}");
        assert!(taken < 40 * MEGABYTE, "it was to be slow");
        for client in [&mut pings, &mut reads] {
            for _ in 0..60 {
                let mut reply = client.reply().unwrap();
                while reply.header.xid < 0 {
                    reply = client.reply().unwrap();
                }
                assert_eq!(reply.data().0.len(), MEGABYTE);
            }
        }
    });
}

/// What waits in the sockets, or at the port, counts before anybody is expired.
#[test]
fn a_stall_of_the_server_expires_nobody_who_is_heard_after_it() {
    const CLIENTS: usize = 200;
    in_every_manner(|flags| {
        let folder = Folder::new("stall");
        let server = start(&folder, flags);
        let mut clients: Vec<Client> = Vec::new();
        while clients.len() < CLIENTS {
            let mut client = connect(&server);
            ephemeral(&mut client, &format!("/e{}", clients.len()));
            clients.push(client);
            if clients.len().is_multiple_of(20) {
                clients.iter_mut().for_each(Client::say_alive);
            }
        }
        let mut silent = connect(&server);
        ephemeral(&mut silent, "/silent");
        clients.iter_mut().for_each(Client::say_alive);
        server.pause();
        let began = now();
        let mut returned = false;
        keep_on(began + 2 * TIMEOUT, || {
            let returns = !returned && TIMEOUT * 2 / 3 < began.elapsed();
            for (number, client) in clients.iter_mut().enumerate() {
                let leaves = number % 2 == 1;
                if leaves && returns {
                    // As client libraries do: no answer, so another connection.
                    *client = Client::begin(server.address, Some(client.session)).unwrap();
                } else if !leaves {
                    client.ping();
                    client.flush().unwrap();
                }
            }
            returned |= returns;
        });
        assert!(returned);
        server.resume();
        for (number, client) in clients.iter_mut().enumerate() {
            if number % 2 == 1 {
                let id = client.session.session;
                client.finish().unwrap();
                assert_eq!(client.session.session, id, "session {number} is gone: {flags:?}");
            }
        }
        let resumed = now();
        keep_on(resumed + 2 * TIMEOUT, || clients.iter_mut().for_each(Client::say_alive));
        let names = names(&mut connect(&server));
        let lost: Vec<usize> = (0..CLIENTS)
            .filter(|number| !names.iter().any(|name| *name == format!("e{number}")))
            .collect();
        assert!(lost.is_empty(), "{} of {CLIENTS} are gone: {lost:?}, {flags:?}", lost.len());
        assert!(!names.iter().any(|name| name == "silent"), "it has said nothing");
    });
}

#[test]
fn a_place_under_the_limit_is_free_once_its_client_has_gone() {
    in_every_manner(|flags| {
        const ROUNDS: usize = 30;
        let folder = Folder::new("place");
        let setup = Setup::new(&["maxClientCnxns=1"]);
        let server = flags.iter().fold(setup, |setup, flag| setup.flag(flag)).start(&folder);
        let mut client = Client::connect(server.address, now() + PATIENCE).unwrap();
        let mut took = Vec::new();
        for round in 0..ROUNDS {
            if round % 2 == 0 {
                client.close_session();
                client.answer();
            }
            drop(client);
            let gone = now();
            client = Client::connect(server.address, gone + PATIENCE).unwrap();
            took.push(gone.elapsed());
        }
        took.sort_unstable();
        // Half of them are closed from our side first, which is noticed at once.
        let slow = took[ROUNDS * 3 / 4];
        assert!(slow < Duration::from_millis(200), "{flags:?}: {took:?}");
    });
}
