//! Clients that ask for much, take nothing, or come in crowds.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::time::Duration;

use ringkeeper::jute::Write as _;
use ringkeeper::record::op::EventType;

use crate::PATIENCE;
use crate::client::{Client, now};
use crate::server::{Folder, Server, Setup, not_run, succeeds, until};

const MEGABYTE: usize = 1_000_000;

fn connect(server: &Server) -> Client {
    Client::connect(server.address, now() + PATIENCE).unwrap()
}

/// Has this process open as many files as it ever may.
fn raise_open_files() {
    let pid = std::process::id().to_string();
    let hard = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = hard.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default();
    if let Some(hard) = line.split_whitespace().nth(4) {
        succeeds(&["prlimit", "--pid", &pid, &format!("--nofile={hard}:{hard}")]);
    }
}

/// `count` connections that say nothing yet; fewer, said why, where descriptors do not last.
fn crowd(address: SocketAddr, count: usize, test: &str) -> Vec<TcpStream> {
    raise_open_files();
    let mut crowd = Vec::new();
    while crowd.len() < count {
        match TcpStream::connect(address) {
            Ok(stream) => crowd.push(stream),
            Err(error) => {
                not_run(test, &format!("{error} after {} connections", crowd.len()));
                break;
            }
        }
    }
    crowd
}

/// How clients are read from depends on the kernel; older ones leave a manner of their own.
fn in_both_manners(test: impl Fn(&str)) {
    test("-Dringkeeper.ring=auto");
    test("-Dringkeeper.ring=plain");
}

#[test]
fn who_asks_and_never_reads_costs_little_and_stops_nobody() {
    in_both_manners(who_asks_and_never_reads_costs_little_and_stops_nobody_by);
}

fn who_asks_and_never_reads_costs_little_and_stops_nobody_by(flag: &str) {
    const SLOW: usize = 4;
    let folder = Folder::new("slow");
    let server = Setup::new(&[]).flag(flag).start(&folder);
    let mut other = connect(&server);
    other.create("/big", &vec![7; MEGABYTE]);
    other.create("/small", b"1");
    assert!(other.replies(2).unwrap().iter().all(|reply| reply.header.err == 0));
    let before = server.memory_kib("VmRSS");
    let mut slow: Vec<Client> = (0..SLOW).map(|_| connect(&server)).collect();
    for client in &mut slow {
        for _ in 0..1000 {
            client.get("/big");
        }
        client.flush().unwrap();
    }
    for round in 0..200 {
        other.set("/small", format!("{round}").as_bytes());
        other.get("/small");
        let replies = other.replies(2).unwrap();
        assert_eq!(replies[1].data().0, format!("{round}").as_bytes());
    }
    let grown = server.memory_kib("VmHWM").saturating_sub(before);
    assert!(grown < 12 * 1024 * SLOW as u64, "{SLOW} slow readers cost {grown} KiB");
    // They get what they asked for, once they take it.
    for client in &mut slow {
        for xid in 1..10 {
            let reply = client.reply().unwrap();
            assert_eq!(reply.header.xid, xid);
            assert_eq!(reply.data().0.len(), MEGABYTE);
        }
    }
    drop(slow);
    other.get("/small");
    other.answer();
}

#[test]
fn frames_that_are_announced_and_never_sent_cost_little_and_end() {
    const COUNT: usize = 2000;
    let folder = Folder::new("announced");
    let server = Server::start(&folder, &["nio.sessionlessCnxnTimeout=4000"]);
    let mut client = connect(&server);
    client.create("/a", b"");
    client.answer();
    let before = server.memory_kib("VmRSS");
    let mut crowd = crowd(server.address, COUNT, "2,000 announced frames");
    let mut start = Vec::new();
    start.put_i32(MEGABYTE as i32);
    start.extend_from_slice(&[0; 100]);
    for stream in &mut crowd {
        stream.write_all(&start).unwrap();
    }
    // All of it has been read when who came last is answered.
    let mut last = connect(&server);
    last.get("/a");
    last.answer();
    let grown = server.memory_kib("VmHWM").saturating_sub(before);
    assert!(grown < 12 * crowd.len() as u64, "{} of them cost {grown} KiB", crowd.len());
    for stream in &mut crowd {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        match stream.read_to_end(&mut Vec::new()) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("not closed after its time: {other:?}"),
        }
    }
    last.get("/a");
    last.answer();
}

#[test]
fn thousands_that_come_and_go_leave_nothing_behind() {
    in_both_manners(thousands_that_come_and_go_leave_nothing_behind_by);
}

fn thousands_that_come_and_go_leave_nothing_behind_by(flag: &str) {
    let folder = Folder::new("come-and-go");
    let server = Setup::new(&[]).flag(flag).start(&folder);
    let mut client = connect(&server);
    client.create("/a", b"");
    client.answer();
    let (files, before) = (server.open_files(), server.memory_kib("VmRSS"));
    for round in 0..5000 {
        let mut stream = TcpStream::connect(server.address).unwrap();
        if round % 3 == 0 {
            stream.write_all(&[0, 0, 0, 45, 0]).unwrap();
        }
    }
    // Two are the next log's, which may have been made since.
    let complaint = || format!("{} files are open, {files} were", server.open_files());
    until(PATIENCE, complaint, || server.open_files() <= files + 2);
    client.get("/a");
    client.answer();
    let grown = server.memory_kib("VmRSS").saturating_sub(before);
    assert!(grown < 16 << 10, "they left {grown} KiB behind");
}

#[test]
fn who_finds_no_descriptor_left_waits_and_harms_nobody() {
    let test = "a server with 256 descriptors";
    if !succeeds(&["prlimit", "--nofile=256:256", "/bin/true"]) {
        return not_run(test, "there is no prlimit (util-linux)");
    }
    let folder = Folder::new("descriptors");
    // Logs and snapshots are begun all the time: these need descriptors, too.
    let server = Setup::new(&["snapCount=20", "preAllocSize=64"])
        .under(&["prlimit", "--nofile=256:256"])
        .start(&folder);
    let mut client = connect(&server);
    // The kernel takes some more than the server does, and then none.
    let mut crowd = Vec::new();
    let complaint = || format!("it never said that it waits: {}", server.said());
    until(PATIENCE, complaint, || {
        if crowd.len() < 400 {
            crowd.extend(TcpStream::connect_timeout(&server.address, Duration::from_millis(100)));
        }
        server.said().contains("no connection can be accepted")
    });
    for number in 0..200 {
        client.create(&format!("/{number}"), b"");
        client.answer();
    }
    assert!(server.said().matches("Creating new log file").count() > 3, "{}", server.said());
    let (began, used, said) = (now(), server.cpu_ms(), server.said().len());
    until(PATIENCE, || "a second does not pass".to_owned(), || 1000 <= began.elapsed().as_millis());
    let used = server.cpu_ms() - used;
    assert!(used < 300, "waiting for descriptors took {used} ms of CPU in a second");
    let said = server.said().len() - said;
    assert!(said < 2000, "waiting for descriptors took {said} bytes of log in a second");
    drop(crowd);
    let mut next = connect(&server);
    next.get("/199");
    next.answer();
    client.get("/0");
    client.answer();
    assert_eq!(server.terminate(PATIENCE).code(), Some(0));
}

#[test]
fn a_listing_of_twenty_thousand_and_values_of_a_megabyte_are_served() {
    const CHILDREN: usize = 20_000;
    let folder = Folder::new("large");
    let server = Server::start(&folder, &[]);
    let mut client = connect(&server);
    client.create("/many", b"");
    client.answer();
    for first in (0..CHILDREN).step_by(1000) {
        for number in first..first + 1000 {
            client.create(&format!("/many/child-{number:06}"), b"");
        }
        assert!(client.replies(1000).unwrap().iter().all(|reply| reply.header.err == 0));
    }
    client.children("/many");
    let mut names = client.answer().names();
    names.sort();
    assert_eq!(names.len(), CHILDREN);
    assert!(names.iter().enumerate().all(|(n, name)| *name == format!("child-{n:06}")));
    for number in 0..20 {
        client.create(&format!("/big-{number}"), &vec![number; MEGABYTE]);
    }
    assert!(client.replies(20).unwrap().iter().all(|reply| reply.header.err == 0));
    assert_eq!(server.terminate(PATIENCE).code(), Some(0));
    let server = Server::start(&folder, &[]);
    let mut client = connect(&server);
    for number in 0..20 {
        client.get(&format!("/big-{number}"));
        assert_eq!(client.answer().data().0, vec![number; MEGABYTE]);
    }
    // One byte more than a packet may have ends the connection, and only that.
    client.create("/too-big", &vec![0; 0xf_ffff]);
    assert!(client.replies(1).is_err(), "a packet beyond jute.maxbuffer is not answered");
    let mut client = connect(&server);
    client.children("/many");
    assert_eq!(client.answer().names().len(), CHILDREN);
}

#[test]
fn who_is_answered_and_does_not_close_still_counts() {
    // A little less than the server waits for the client to close.
    const LINGER: Duration = Duration::from_millis(900);
    let folder = Folder::new("lingering");
    let server = Server::start(&folder, &["maxClientCnxns=1", "4lw.commands.whitelist=ruok"]);
    // All that a server says to a word.
    let talk = || -> std::io::Result<(TcpStream, String)> {
        let mut stream = TcpStream::connect(server.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"ruok")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok((stream, answer))
    };
    until(
        PATIENCE,
        || "two connections were never quicker than the server's patience".to_owned(),
        || {
            let began = now();
            let Ok((open, answer)) = talk() else { return false };
            if answer != "imok" {
                return false;
            }
            let second = talk();
            let is_in_time = began.elapsed() < LINGER;
            if is_in_time {
                let served = second.is_ok_and(|(_, answer)| answer == "imok");
                assert!(!served, "a second connection of one address is served");
            }
            drop(open);
            is_in_time
        },
    );
}

#[test]
fn the_limit_by_address_is_exact_in_a_burst() {
    const LIMIT: usize = 10;
    const BURST: usize = 60;
    let folder = Folder::new("burst");
    let server = Server::start(&folder, &[&format!("maxClientCnxns={LIMIT}")]);
    drop(connect(&server));
    let mut kept = Vec::new();
    // Whoever has just left may still be counted for a moment.
    until(
        PATIENCE,
        || "its place was not given back".to_owned(),
        || {
            kept.extend(Client::try_connect(server.address, None));
            kept.len() == LIMIT
        },
    );
    kept.clear();
    for round in 0..3 {
        let mut served = Vec::new();
        until(
            PATIENCE,
            || format!("round {round}: never {LIMIT} served"),
            || {
                let (barrier, address) = (Barrier::new(BURST), server.address);
                served.clear();
                std::thread::scope(|scope| {
                    let connect = || {
                        barrier.wait();
                        Client::try_connect(address, None).ok()
                    };
                    let burst: Vec<_> = (0..BURST).map(|_| scope.spawn(connect)).collect();
                    served.extend(burst.into_iter().filter_map(|one| one.join().unwrap()));
                });
                assert!(served.len() <= LIMIT, "{} were served", served.len());
                // Fewer, while places of the round before were being given back.
                served.len() == LIMIT
            },
        );
    }
}

#[test]
fn a_crowd_is_told_of_what_was_written_before_the_server_stops() {
    // Of which a turn of a core sees to a part.
    const WATCHERS: usize = 500;
    let folder = Folder::new("told");
    let server = Server::start(&folder, &[]);
    let mut writer = connect(&server);
    writer.create("/hot", b"");
    assert_eq!(writer.answer().header.err, 0);
    let mut watchers: Vec<Client> = (0..WATCHERS).map(|_| connect(&server)).collect();
    for watcher in &mut watchers {
        watcher.watch("/hot");
        assert_eq!(watcher.answer().header.err, 0);
    }
    writer.set("/hot", b"new");
    assert_eq!(writer.answer().header.err, 0);
    server.ask_to_stop();
    let changed = Some((EventType::NodeDataChanged as i32, "/hot".into()));
    for watcher in &mut watchers {
        assert_eq!(watcher.reply().unwrap().event(), changed);
        assert!(watcher.reply().is_err(), "and then it is closed");
    }
    assert!(server.terminate(PATIENCE).success());
}
