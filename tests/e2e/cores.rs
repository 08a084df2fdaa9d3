//! How many cores there are shows to nobody.

use std::collections::BTreeSet;
use std::time::Duration;

use ringkeeper::record::op::EventType;

use crate::PATIENCE;
use crate::client::{Client, now, word};
use crate::server::Folder;
use crate::server::{Server, Setup, not_run, own_status, succeeds, until};

fn connect(server: &Server) -> Client {
    Client::connect(server.address, now() + PATIENCE).unwrap()
}

/// The first of the CPUs that we may use, where a process can be kept to some.
fn first_cpu(test: &str) -> Option<String> {
    let allowed = own_status("Cpus_allowed_list");
    let first: String = allowed.chars().take_while(char::is_ascii_digit).collect();
    if !succeeds(&["taskset", "--cpu-list", &first, "/bin/true"]) {
        not_run(test, "taskset (util-linux) cannot keep a process to one CPU");
        return None;
    }
    Some(first)
}

/// Writes by some are seen by all, with watches, whatever shard they are on.
fn clients_see_each_other(server: &Server, count: usize) {
    let mut clients: Vec<Client> = (0..count).map(|_| connect(server)).collect();
    clients[0].create("/shared", b"");
    clients[0].answer();
    for writer in 0..count {
        for client in &mut clients {
            client.sync("/shared");
            client.watch("/shared");
            let replies = client.replies(2).unwrap();
            assert!(replies.iter().all(|reply| reply.header.err == 0));
        }
        let text = format!("by {writer}");
        clients[writer].set("/shared", text.as_bytes());
        clients[writer].flush().unwrap();
        for (index, client) in clients.iter_mut().enumerate() {
            if index == writer {
                // Its own event comes before the reply that speaks of what caused it.
                let event = client.reply().unwrap().event();
                assert_eq!(event, Some((EventType::NodeDataChanged as i32, "/shared".into())));
                assert_eq!(client.reply().unwrap().header.err, 0);
                continue;
            }
            // Nothing newer may be read before the event is there.
            let event = client.reply().unwrap().event();
            assert_eq!(event, Some((EventType::NodeDataChanged as i32, "/shared".into())));
            client.get("/shared");
            assert_eq!(client.answer().data().0, text.as_bytes());
        }
    }
    let paths: BTreeSet<String> = (0..count).map(|index| format!("e{index}")).collect();
    for (client, path) in clients.iter_mut().zip(&paths) {
        client.create_as(&format!("/shared/{path}"), b"", 1);
        client.answer();
    }
    let mut last = clients.pop().unwrap();
    last.children("/shared");
    assert_eq!(last.answer().names().into_iter().collect::<BTreeSet<_>>(), paths);
    // A session that ends takes its ephemerals with it, and those who watch them hear of it.
    last.watch("/shared/e0");
    last.answer();
    clients[0].close_session();
    clients[0].answer();
    let event = last.reply().unwrap().event();
    assert_eq!(event, Some((EventType::NodeDeleted as i32, "/shared/e0".into())));
}

#[test]
fn one_cpu_serves_reads_writes_watches_and_stops() {
    let Some(cpu) = first_cpu("a server on one CPU") else { return };
    let folder = Folder::new("one-cpu");
    let server = Setup::new(&[]).under(&["taskset", "--cpu-list", &cpu]).start(&folder);
    clients_see_each_other(&server, 3);
    assert!(server.said().contains("cores shards=1"), "{}", server.said());
    assert!(word(server.address, b"srvr").unwrap().contains("Mode: standalone"));
    let mut client = connect(&server);
    for number in 0..500 {
        client.create(&format!("/{number}"), b"");
    }
    assert!(client.replies(500).unwrap().iter().all(|reply| reply.header.err == 0));
    assert_eq!(server.terminate(PATIENCE).code(), Some(0));
    let server = Setup::new(&[]).under(&["taskset", "--cpu-list", &cpu]).start(&folder);
    let mut client = connect(&server);
    client.get("/499");
    client.answer();
}

#[test]
fn four_shards_are_one_server() {
    let folder = Folder::new("four-shards");
    let setup = Setup::new(&[]).flag("-Dringkeeper.shards=4");
    let server = setup.start(&folder);
    // Connections go to the shard with the fewest, so eight of them are on all four.
    clients_see_each_other(&server, 8);
    assert!(server.said().contains("shards=4"), "{}", server.said());
    assert_eq!(server.terminate(PATIENCE).code(), Some(0));
    let folder = Folder::new("four-plain-shards");
    let server = setup.flag("-Dringkeeper.ring=plain").start(&folder);
    clients_see_each_other(&server, 8);
    assert_eq!(server.terminate(PATIENCE).code(), Some(0));
}

#[test]
fn a_session_goes_on_at_another_shard_and_its_old_connection_ends() {
    let folder = Folder::new("resume");
    let setup = Setup::new(&[]).flag("-Dringkeeper.shards=4");
    let server = setup.start(&folder);
    let mut first = connect(&server);
    first.create_as("/mine", b"", 1);
    first.answer();
    let session = first.session;
    // The next shards in turn, whichever it was that the first is on.
    for round in 0..5 {
        let mut next = Client::try_connect(server.address, Some(session)).unwrap();
        assert_eq!(next.session.session, session.session, "round {round}: it was not resumed");
        assert!(first.reply().is_err(), "round {round}: the old connection is still open");
        next.get("/mine");
        next.answer();
        first = next;
    }
    // Sessions outlive the server, too.
    server.kill();
    let server = setup.start(&folder);
    let mut client = connect(&server);
    let mut again = Client::try_connect(server.address, Some(session)).unwrap();
    assert_eq!(again.session.session, session.session, "a restart ended the session");
    client.watch("/mine");
    client.answer();
    again.close_session();
    again.answer();
    let event = client.reply().unwrap().event();
    assert_eq!(event, Some((EventType::NodeDeleted as i32, "/mine".into())));
    let mut wrong = session;
    wrong.password[0] ^= 1;
    let refused = Client::try_connect(server.address, Some(wrong)).unwrap();
    assert_eq!(refused.session.session, 0, "a wrong password is refused");
}

/// A server that has nothing to do does nothing.
#[test]
fn an_idle_server_leaves_the_cpu_alone() {
    let folder = Folder::new("idle");
    let server = Setup::new(&[]).flag("-Dringkeeper.shards=4").start(&folder);
    let mut client = connect(&server);
    client.create("/a", b"");
    client.answer();
    let (began, before) = (now(), server.cpu_ms());
    until(PATIENCE, || "a second does not pass".to_owned(), || 1000 <= began.elapsed().as_millis());
    let used = server.cpu_ms() - before;
    assert!(used < 200, "five idle cores used {used} ms of CPU in a second");
    // And no thread is stuck: all answer.
    assert!(word(server.address, b"srvr").unwrap().contains("Node count"));
}

/// flushDelay and what belongs to it, on one core and on several.
#[test]
fn writes_gather_for_as_long_as_the_operator_wants() {
    let first = first_cpu("flushDelay on one core");
    let kept = first.as_deref().map(|first| ["taskset", "--cpu-list", first]);
    for cores in [None, Some("-Dringkeeper.shards=2")] {
        let start = |folder: &Folder, ms: u64, more: Option<&str>| {
            let gather = format!("-Dzookeeper.flushDelay={ms}");
            let poll = format!("-Dzookeeper.maxWriteQueuePollTime={ms}");
            let flags = [Some(&*gather), Some(&*poll), cores, more].into_iter().flatten();
            let setup = flags.fold(Setup::new(&[]), Setup::flag);
            match &kept {
                Some(kept) if cores.is_none() => setup.under(kept).start(folder),
                _ => setup.start(folder),
            }
        };
        let folder = Folder::new("flush-delay");
        let server = start(&folder, 150, None);
        let mut client = connect(&server);
        let began = now();
        for count in 0..4 {
            client.create(&format!("/n{count}"), b"");
            assert_eq!(client.answer().header.err, 0);
        }
        // Each after the sync before it; the session's own was over right before we were told.
        let took = now() - began;
        assert!(Duration::from_millis(3 * 150) < took, "{took:?}");
        drop(server);

        // Whoever comes first has nobody to wait for; of the next two one waits for the other.
        let folder = Folder::new("batch-size");
        let server = start(&folder, 60_000, Some("-Dzookeeper.maxBatchSize=2"));
        let mut client = connect(&server);
        client.create("/a", b"");
        client.create("/b", b"");
        let replies = client.replies(2).unwrap();
        assert!(replies.iter().all(|reply| reply.header.err == 0));

        // A server that stops waits for nothing, and loses nothing.
        client.create("/c", b"");
        client.flush().unwrap();
        let srvr = || word(server.address, b"srvr").unwrap();
        until(PATIENCE, srvr, || srvr().contains("Outstanding: 1\n"));
        server.ask_to_stop();
        assert_eq!(client.reply().unwrap().header.err, 0, "the write is answered");
        assert!(server.terminate(PATIENCE).success());
        let server = Setup::new(&[]).start(&folder);
        let mut client = connect(&server);
        client.get("/c");
        assert_eq!(client.answer().header.err, 0);
    }
}
