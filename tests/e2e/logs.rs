//! A log that nobody reads, and one that says the same again and again.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::PATIENCE;
use crate::client::{Client, now, word};
use crate::server::{Folder, Server, Setup, until};

/// All that comes out of a pipe, until its other ends are closed.
fn read_all(mut pipe: io::PipeReader) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    })
}

/// The numbers that stand before `words` in lines of the log.
fn counts_before(log: &str, words: &str) -> Vec<u64> {
    let count = |line: &str| line.split_once(words)?.0.rsplit(' ').next()?.parse().ok();
    log.lines().filter_map(count).collect()
}

/// Comes while there is no place, and is turned away.
fn is_refused(address: SocketAddr) {
    let mut stream = match TcpStream::connect(address) {
        // It is cut off before we know that we are there.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return,
        stream => stream.unwrap(),
    };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // It may be cut off before that is said.
    let _ = stream.write_all(b"ruok");
    match stream.read(&mut [0; 4]) {
        Ok(0) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        other => panic!("a connection beyond the limit is answered: {other:?}"),
    }
}

#[test]
fn a_log_that_nobody_reads_stops_nobody_and_says_later_what_is_missing() {
    const WORDS: usize = 5000;
    const REFUSED: usize = 300;
    for flags in [&[][..], &["-Dringkeeper.shards=2"]] {
        let folder = Folder::new("stuck-log");
        let (reader, writer) = io::pipe().unwrap();
        let setup = Setup::new(&[
            "maxClientCnxns=2",
            "4lw.commands.whitelist=ruok,srvr",
            "ringkeeper.log.queueBytes=65536",
            "audit.enable=true",
        ]);
        let setup = flags.iter().fold(setup, |setup, flag| setup.flag(flag));
        let server = setup.start_into(&folder, writer);
        let mut client = Client::connect(server.address, now() + PATIENCE).unwrap();
        client.create("/a", b"1");
        client.answer();
        let (mut slowest, mut sets) = (Duration::ZERO, 0);
        for number in 0..WORDS {
            // There is a place for one more, and whoever had it may hold it for a moment.
            let complaint = || format!("word {number} is not answered");
            until(PATIENCE, complaint, || {
                word(server.address, b"ruok").is_ok_and(|answer| answer == "imok")
            });
            if number.is_multiple_of(50) {
                let began = now();
                client.set("/a", b"2");
                client.answer();
                slowest = slowest.max(began.elapsed());
                sets += 1;
            }
        }
        assert!(slowest < Duration::from_secs(5), "a write took {slowest:?}");
        let mut second = Client::connect(server.address, now() + PATIENCE).unwrap();
        for _ in 0..REFUSED {
            is_refused(server.address);
        }
        second.get("/a");
        second.answer();
        let said = read_all(reader);
        server.ask_to_stop();
        assert_eq!(server.wait(PATIENCE).0.code(), Some(0));
        let said = said.join().unwrap();
        let words = said.matches("Processing ruok command").count() as u64;
        let missing: u64 = counts_before(&said, " lines of the log are missing here").iter().sum();
        assert!(0 < missing && WORDS as u64 <= words + missing, "{words} and {missing} of {WORDS}");
        assert!(said.matches("Too many connections from").count() <= 40, "not folded");
        // Those have a room of their own.
        assert_eq!(said.matches("operation=setData\tznode=/a").count(), sets);
        assert!(!said.contains("audit lines are missing"));
        let last = said.lines().last().unwrap();
        assert!(last.contains("Exiting JVM with code 0"), "the last line is {last}");
    }
}

#[test]
fn a_stuck_log_keeps_no_process_that_ends() {
    let folder = Folder::new("stuck-end");
    let (_reader, writer) = io::pipe().unwrap();
    let setup = Setup::new(&["4lw.commands.whitelist=ruok"]);
    let server = setup.start_into(&folder, writer.try_clone().unwrap());
    drop(Client::connect(server.address, now() + PATIENCE).unwrap());
    // More than a pipe holds.
    for _ in 0..2000 {
        assert_eq!(word(server.address, b"ruok").unwrap(), "imok");
    }
    // Into the same pipe: these have something to say on standard error.
    let second = setup.start_into(&folder, writer.try_clone().unwrap());
    assert_eq!(second.wait(PATIENCE).0.code(), Some(3), "the directory is another's");
    let wrong = Setup::new(&["tickTime=wrong"]).start_into(&folder, writer);
    assert_eq!(wrong.wait(PATIENCE).0.code(), Some(2));
    assert_eq!(server.terminate(PATIENCE).code(), Some(0));
}

#[test]
fn refused_connections_are_counted_instead_of_logged_each() {
    const REFUSED: u64 = 1000;
    let folder = Folder::new("folded");
    let server = Server::start(&folder, &["maxClientCnxns=1", "ringkeeper.log.foldSeconds=1"]);
    let _client = Client::connect(server.address, now() + PATIENCE).unwrap();
    for _ in 0..REFUSED {
        is_refused(server.address);
    }
    let line = "Too many connections from /127.0.0.1 - max is 1";
    let complaint = || format!("they are not all counted: {}", server.said());
    until(PATIENCE, complaint, || {
        let said = server.said();
        let lines = said.matches(line).count() as u64;
        let repeated: Vec<u64> = said
            .lines()
            .filter_map(|of| of.split_once(&format!("{line} ("))?.1.split(' ').next()?.parse().ok())
            .collect();
        lines - repeated.len() as u64 + repeated.iter().sum::<u64>() == REFUSED
    });
    let said = server.said();
    assert!(said.matches(line).count() < 60, "{said}");
    assert!(said.contains("more in the last 1 s)"), "{said}");
}
