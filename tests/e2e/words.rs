//! Four-letter words over real sockets.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use ringkeeper::jute::Write as _;
use ringkeeper::record::op::code;

use crate::PATIENCE;
use crate::client::{Client, now, word};
use crate::server::{Folder, Server, Setup, not_run, until};

fn talk(address: SocketAddr, pieces: &[&[u8]], half_close: bool) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for (index, piece) in pieces.iter().enumerate() {
        if 0 < index {
            // The piece before has arrived on its own once the server has answered something else.
            assert!(!word(address, b"srvr").unwrap().is_empty());
        }
        stream.write_all(piece).unwrap();
    }
    if half_close {
        stream.shutdown(Shutdown::Write).unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the answer ends with the connection, no reset");
    answer
}

fn serving(folder: &Folder) -> Server {
    let server = Server::start(folder, &["4lw.commands.whitelist=*"]);
    drop(Client::connect(server.address, now() + PATIENCE).unwrap());
    server
}

#[test]
fn who_says_no_more_after_a_word_is_answered() {
    let folder = Folder::new("words");
    let server = serving(&folder);
    for _ in 0..50 {
        assert_eq!(talk(server.address, &[b"ruok"], true), "imok");
        assert_eq!(talk(server.address, &[b"ruok\r\n"], true), "imok");
        assert!(talk(server.address, &[b"mntr"], true).contains("zk_znode_count"));
        assert!(talk(server.address, &[b"srvr with more words"], true).contains("Mode: "));
    }
    assert_eq!(talk(server.address, &[b"ru", b"ok"], true), "imok");
    assert_eq!(talk(server.address, &[b"RUOK"], true), "");
    assert_eq!(talk(server.address, &[b"ru"], true), "");
}

/// What `mntr` says of a name.
fn monitored(server: &Server, name: &str) -> u64 {
    let text = talk(server.address, &[b"mntr"], true);
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('\t'));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
}

#[test]
fn requests_and_their_syncs_are_counted() {
    let folder = Folder::new("measured");
    let server = serving(&folder);
    let mut client = Client::connect(server.address, now() + PATIENCE).unwrap();
    let before = monitored(&server, "zk_sync_processor_request_queued");
    for number in 0..10 {
        client.create(&format!("/n{number}"), b"x");
        assert_eq!(client.replies(1).unwrap()[0].header.err, 0);
    }
    assert_eq!(monitored(&server, "zk_sync_processor_request_queued"), before + 10);
    assert!(monitored(&server, "zk_prep_processor_request_queued") >= 10);
    for name in ["sync_processor_batch_size", "prep_process_time", "commit_process_time"] {
        assert!(monitored(&server, &format!("zk_cnt_{name}")) >= 10, "{name}");
    }
    // Ten writes one after the other: no two share a round.
    assert_eq!(monitored(&server, "zk_min_sync_processor_batch_size"), 1);
    assert!(monitored(&server, "zk_cnt_updatelatency") >= 10);
}

#[test]
fn a_fresh_server_counts_as_zookeeper_does() {
    let folder = Folder::new("counts");
    let server = serving(&folder);
    assert_eq!(monitored(&server, "zk_znode_count"), 5);
    assert_eq!(monitored(&server, "zk_approximate_data_size"), 44);
    assert_eq!(znodes(server.address), 5);
    // An answered word is a packet sent, the answer to the reset itself included.
    talk(server.address, &[b"srst"], true);
    assert!(talk(server.address, &[b"srvr"], true).contains("Sent: 1\n"));
    assert_eq!(monitored(&server, "zk_packets_sent"), 2);
}

#[test]
fn the_trace_mask_may_come_in_pieces() {
    let folder = Folder::new("stmk");
    let server = serving(&folder);
    let mask = 0x0102_i64.to_be_bytes();
    assert_eq!(talk(server.address, &[b"stmk", &mask], false), "258");
    assert_eq!(talk(server.address, &[b"gtmk"], true), "258");
    let mask = 0x7_i64.to_be_bytes();
    let pieces: [&[u8]; 3] = [b"st", &[b"mk".as_slice(), &mask[..5]].concat(), &mask[5..]];
    assert_eq!(talk(server.address, &pieces, true), "7");
    assert_eq!(talk(server.address, &[b"gtmk"], true), "7");
}

fn znodes(address: SocketAddr) -> u32 {
    let answer = word(address, b"srvr").unwrap();
    let count = answer.lines().find_map(|line| line.strip_prefix("Node count: "));
    count.expect("srvr counts znodes").parse().unwrap()
}

#[test]
fn words_are_answered_under_load() {
    let folder = Folder::new("words-load");
    let server = serving(&folder);
    let address = server.address;
    let before = znodes(address);
    std::thread::scope(|scope| {
        let load = scope.spawn(move || {
            let mut client = Client::connect(address, now() + PATIENCE).unwrap();
            for round in 0..20 {
                for number in 0..100 {
                    client.create(&format!("/{round}-{number}"), b"value");
                }
                let replies = client.replies(100).unwrap();
                assert!(replies.iter().all(|reply| reply.header.err == 0));
            }
        });
        let words = [b"stat", b"mntr", b"cons", b"dump", b"wchs", b"envi", b"dirs", b"conf"];
        for &name in &words {
            scope.spawn(move || {
                for _ in 0..10 {
                    assert!(!talk(address, &[name], true).is_empty());
                }
            });
        }
        load.join().unwrap();
    });
    assert_eq!(znodes(address), before + 2000);
}

/// Watches so many paths of more than a hundred bytes.
fn watch_many(client: &mut Client, count: usize) {
    const AT_ONCE: usize = 5_000;
    for first in (0..count).step_by(AT_ONCE) {
        let numbers = first..count.min(first + AT_ONCE);
        client.request(code::SET_WATCHES, |out| {
            out.put_i64(i64::MAX);
            out.put_count(Some(0));
            out.put_count(Some(numbers.len()));
            numbers.for_each(|number| out.put_text(&format!("/{number:06}{}", "x".repeat(110))));
            out.put_count(Some(0));
        });
        client.answer();
    }
}

#[test]
fn an_answer_longer_than_any_may_be_is_a_line_that_says_so() {
    const WATCHES: usize = 60_000;
    let folder = Folder::new("words-long");
    let settings = ["4lw.commands.whitelist=*", "ringkeeper.connection.answerBytesMax=4194304"];
    let server = Server::start(&folder, &settings);
    let mut client = Client::connect(server.address, now() + PATIENCE).unwrap();
    watch_many(&mut client, WATCHES);
    for name in ["wchp", "wchc"] {
        let text = talk(server.address, &[name.as_bytes()], true);
        let line = "is longer than the 4194304 bytes of ringkeeper.connection.answerBytesMax.\n";
        assert_eq!(text, format!("The answer to {name} {line}"));
    }
    // What is short is counted all the same.
    let text = talk(server.address, &[b"wchs"], true);
    let counted = format!("1 connections watching {WATCHES} paths\nTotal watches:{WATCHES}\n");
    assert_eq!(text, counted);
}

#[test]
fn the_answer_to_a_word_is_not_made_for_who_is_gone() {
    const ASKERS: usize = 40;
    let folder = Folder::new("words-gone");
    let server = serving(&folder);
    let mut client = Client::connect(server.address, now() + PATIENCE).unwrap();
    watch_many(&mut client, 60_000);
    let heard = || server.said().matches("Processing wchp").count();
    let deadline = now() + PATIENCE;
    let mut asked = 0;
    // Whether some of them go before they are answered is up to the scheduler: until some have.
    while !server.said().contains("nobody waits for the answer to wchp any more") {
        assert!(now() < deadline, "all {asked} are answered");
        let askers: Vec<TcpStream> = (0..ASKERS)
            .map(|_| {
                let mut stream = TcpStream::connect(server.address).unwrap();
                stream.write_all(b"wchp").unwrap();
                // So that its end is not only that of its own direction.
                rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
                stream
            })
            .collect();
        asked += ASKERS;
        until(PATIENCE, || format!("{} are heard", heard()), || heard() == asked);
        drop(askers);
        // It comes behind those.
        assert!(!talk(server.address, &[b"wchs"], true).is_empty());
    }
    assert_eq!(talk(server.address, &[b"wchp"], true).matches("xxx\n").count(), 60_000);
}

/// A core that opens files waits for whatever they are on.
#[test]
fn no_core_reads_files_to_answer_a_word() {
    const ROUNDS: u64 = 50;
    for flags in [&[][..], &["-Dringkeeper.shards=2"]] {
        let folder = Folder::new("words-files");
        let setup = Setup::new(&["4lw.commands.whitelist=*"]);
        let server = flags.iter().fold(setup, |setup, flag| setup.flag(flag)).start(&folder);
        drop(Client::connect(server.address, now() + PATIENCE).unwrap());
        let Some(before) = server.reads_of_cores() else {
            return not_run("who reads files", "the kernel does not count reads by thread");
        };
        for name in [b"mntr", b"srvr", b"envi", b"dirs", b"conf", b"stat"] {
            for _ in 0..ROUNDS {
                assert!(!talk(server.address, &[name], true).is_empty());
            }
        }
        let reads = server.reads_of_cores().unwrap() - before;
        // Some are the loop's own, a few a second.
        assert!(reads < ROUNDS, "{reads} reads by cores for {} words", 6 * ROUNDS);
    }
}
