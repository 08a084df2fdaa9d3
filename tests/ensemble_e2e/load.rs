//! Checked load: writers that go from server to server with their sessions and note what was
//! acknowledged, and the check that all of it is there, once, on every server.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ringkeeper::record::data::Stat;
use ringkeeper::record::proto::ConnectResponse;

use crate::PATIENCE;
use crate::client::{Client, Reply, Terms, now};
use crate::ensemble::{Ensemble, Id};
use crate::random::Random;
use crate::server::until;

/// After so long without an answer a writer goes to another server.
const ANSWER_PATIENCE: Duration = Duration::from_secs(3);
const EPHEMERAL: i32 = 1;
const SEQUENTIAL: i32 = 2;

/// When writes are acknowledged, by anybody.
struct Acks {
    count: u64,
    last: Instant,
    longest: Duration,
}

struct Shared {
    addresses: Vec<SocketAddr>,
    is_over: AtomicBool,
    acks: Mutex<Acks>,
}

/// What one writer knows.
#[derive(Default)]
struct Record {
    /// Acknowledged creates: path and data.
    created: BTreeMap<String, Vec<u8>>,
    /// Creates that were sent and not answered.
    doubtful: BTreeSet<String>,
    /// Acknowledged sequential creates: path and data.
    numbered: BTreeMap<String, Vec<u8>>,
    /// Of its counter: what was sent, and how many sets and which number were acknowledged.
    counter: Counter,
    /// It is there as long as the session.
    ephemeral: String,
    moves: u64,
    lost_sessions: u64,
}

#[derive(Default)]
struct Counter {
    path: String,
    sent: u64,
    acknowledged: u64,
    newest: u64,
    version: i32,
}

pub(crate) struct Load {
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<Record>>,
}

/// All that the writers know.
pub(crate) struct Written {
    records: Vec<Record>,
}

impl Load {
    /// Starts writers, which begin on all servers in turn.
    pub(crate) fn start(ensemble: &Ensemble, random: &mut Random, writers: usize) -> Load {
        let mut client = ensemble.client(ensemble.wait_leader());
        for path in ["/load", "/seq", "/counter", "/eph"] {
            client.create(path, b"");
            let reply = client.replies(1).unwrap().remove(0);
            assert!([0, -110].contains(&reply.header.err), "{path}: {}", reply.header.err);
        }
        let acks = Acks { count: 0, last: now(), longest: Duration::ZERO };
        let shared = Arc::new(Shared {
            addresses: ensemble.addresses(),
            is_over: AtomicBool::new(false),
            acks: Mutex::new(acks),
        });
        // One ensemble may have several loads, one after the other.
        let load = random.next() % 0x1_0000;
        let writers = (0..writers).map(|number| {
            let shared = Arc::clone(&shared);
            let random = Random::new(random.next());
            let name = format!("{load:04x}.{number}");
            let at = number % shared.addresses.len();
            thread::spawn(move || Writer::new(shared, random, name, at).run())
        });
        let load = Load { writers: writers.collect(), shared: Arc::clone(&shared) };
        load.wait_writes(20);
        load
    }

    fn acknowledged(&self) -> u64 {
        self.shared.acks.lock().unwrap().count
    }

    /// Waits until so many more writes are acknowledged.
    pub(crate) fn wait_writes(&self, count: u64) {
        let goal = self.acknowledged() + count;
        until(
            PATIENCE,
            || format!("{} writes are acknowledged, and not {goal}", self.acknowledged()),
            || {
                let has_fault = self.writers.iter().any(JoinHandle::is_finished);
                assert!(!has_fault, "a writer has found a fault: see above");
                goal <= self.acknowledged()
            },
        );
    }

    /// Measures gaps from here on.
    pub(crate) fn mark(&self) {
        let mut acks = self.shared.acks.lock().unwrap();
        (acks.last, acks.longest) = (now(), Duration::ZERO);
    }

    /// The longest time without an acknowledged write since `mark`; some more come first.
    pub(crate) fn gap(&self) -> Duration {
        self.wait_writes(50);
        self.shared.acks.lock().unwrap().longest
    }

    /// Ends the writers, each after its last answer.
    pub(crate) fn finish(mut self) -> Written {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let writers = std::mem::take(&mut self.writers).into_iter();
        let records = writers.map(|writer| writer.join().expect("a writer ends"));
        Written { records: records.collect() }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
    }
}

/// What a request was.
enum Sent {
    Create { path: String, data: Vec<u8> },
    Numbered { data: Vec<u8> },
    Set { number: u64 },
}

struct Writer {
    shared: Arc<Shared>,
    random: Random,
    name: String,
    at: usize,
    session: Option<ConnectResponse>,
    last_zxid: i64,
    next: u64,
    in_flight: VecDeque<Sent>,
    record: Record,
}

impl Writer {
    fn new(shared: Arc<Shared>, random: Random, name: String, at: usize) -> Writer {
        let counter = Counter { path: format!("/counter/{name}"), ..Counter::default() };
        let record = Record { counter, ..Record::default() };
        let (session, last_zxid, next, in_flight) = (None, 0, 0, VecDeque::new());
        Writer { shared, random, name, at, session, last_zxid, next, in_flight, record }
    }

    fn run(mut self) -> Record {
        while !self.is_over() {
            if let Ok(mut client) = self.connect() {
                // Whatever ends the connection, the answers that are not here are in doubt.
                let _ = self.write(&mut client);
                for sent in std::mem::take(&mut self.in_flight) {
                    if let Sent::Create { path, .. } = sent {
                        self.record.doubtful.insert(path);
                    }
                }
            }
            self.at = (self.at + 1 + self.random.below(2)) % self.shared.addresses.len();
            // The CPU is the servers'.
            thread::park_timeout(Duration::from_millis(5));
        }
        self.record
    }

    fn is_over(&self) -> bool {
        self.shared.is_over.load(Ordering::Relaxed)
    }

    fn connect(&mut self) -> io::Result<Client> {
        let terms = Terms {
            timeout_ms: 40_000,
            patience: ANSWER_PATIENCE,
            last_zxid_seen: self.last_zxid,
            ..Terms::default()
        };
        let mut client = Client::begin_as(self.shared.addresses[self.at], self.session, terms)?;
        client.finish()?;
        if client.session.timeout_ms == 0 {
            self.record.lost_sessions += 1;
            self.session = None;
            return Err(io::Error::other("the session is over"));
        }
        if let Some(session) = self.session {
            assert_eq!(client.session.session, session.session, "the session goes on");
            self.record.moves += 1;
        } else {
            let path = format!("/eph/{}-{:x}", self.name, client.session.session);
            self.session = Some(client.session);
            self.record.ephemeral.clear();
            client.create_as(&path, b"", EPHEMERAL);
            let reply = client.replies(1)?.remove(0);
            assert_eq!(reply.header.err, 0, "{path}");
            self.record.ephemeral = path;
        }
        if self.record.counter.sent == 0 {
            client.create(&self.record.counter.path, b"0");
            let reply = client.replies(1)?.remove(0);
            assert!([0, -110].contains(&reply.header.err));
        }
        Ok(client)
    }

    fn write(&mut self, client: &mut Client) -> io::Result<()> {
        while !self.is_over() {
            for _ in 0..=self.random.below(4) {
                self.send(client);
            }
            client.flush()?;
            while !self.in_flight.is_empty() {
                let reply = client.reply()?;
                self.on_reply(&reply);
            }
            // The CPU is the servers'.
            thread::park_timeout(Duration::from_millis(1));
        }
        Ok(())
    }

    fn send(&mut self, client: &mut Client) {
        let number = self.next;
        self.next += 1;
        let data = format!("{}-{number}", self.name).into_bytes();
        let sent = match self.random.below(3) {
            0 => {
                let path = format!("/load/{}-{number}", self.name);
                client.create(&path, &data);
                Sent::Create { path, data }
            }
            1 => {
                client.create_as("/seq/s-", &data, SEQUENTIAL);
                Sent::Numbered { data }
            }
            _ => {
                client.set(&self.record.counter.path, number.to_string().as_bytes());
                self.record.counter.sent += 1;
                Sent::Set { number }
            }
        };
        self.in_flight.push_back(sent);
    }

    fn on_reply(&mut self, reply: &Reply) {
        assert_eq!(reply.header.err, 0, "a write of {} was refused", self.name);
        let zxid = reply.header.zxid;
        assert!(self.last_zxid < zxid, "{} got {zxid:#x} after {:#x}", self.name, self.last_zxid);
        self.last_zxid = zxid;
        match self.in_flight.pop_front().expect("an answer belongs to a request") {
            Sent::Create { path, data } => {
                assert_eq!(path_of(reply), path);
                self.record.created.insert(path, data);
            }
            Sent::Numbered { data } => {
                self.record.numbered.insert(path_of(reply), data);
            }
            Sent::Set { number } => {
                let counter = &mut self.record.counter;
                counter.acknowledged += 1;
                counter.newest = number;
                let version = version_of(reply);
                assert!(counter.version < version, "{}: version {version}", counter.path);
                counter.version = version;
            }
        }
        let mut acks = self.shared.acks.lock().unwrap();
        let now = now();
        acks.count += 1;
        acks.longest = acks.longest.max(now - acks.last);
        acks.last = now;
    }
}

/// The path that a reply of create tells.
pub(crate) fn path_of(reply: &Reply) -> String {
    let mut reader = ringkeeper::jute::Reader::new(&reply.body);
    reader.text().unwrap().unwrap().to_string()
}

fn version_of(reply: &Reply) -> i32 {
    use ringkeeper::jute::record::Record as _;
    Stat::read(&mut ringkeeper::jute::Reader::new(&reply.body)).unwrap().version
}

/// What a server has of each znode.
pub(crate) type Tree = BTreeMap<String, (Vec<u8>, Stat)>;

/// Reads all znodes but ZooKeeper's own, after a sync.
pub(crate) fn read_tree(ensemble: &Ensemble, id: Id) -> Tree {
    let mut client = ensemble.client(id);
    client.sync("/");
    client.answer();
    let mut tree = Tree::new();
    let mut ahead: Vec<String> = vec!["/".to_owned()];
    while let Some(parent) = ahead.pop() {
        client.children(&parent);
        let names = client.answer().names();
        let join = |name: &String| format!("{}/{name}", parent.trim_end_matches('/'));
        let paths: Vec<String> =
            names.iter().map(join).filter(|path| path != "/zookeeper").collect();
        for chunk in paths.chunks(500) {
            chunk.iter().for_each(|path| {
                client.get(path);
            });
            for (path, reply) in chunk.iter().zip(client.replies(chunk.len()).unwrap()) {
                assert_eq!(reply.header.err, 0, "{path} was listed");
                let (data, stat) = reply.data();
                if stat.num_children != 0 {
                    ahead.push(path.clone());
                }
                tree.insert(path.clone(), (data, stat));
            }
        }
    }
    client.close_session();
    client.answer();
    tree
}

/// All servers have the same tree, and come to the same zxid.
pub(crate) fn check_equal(ensemble: &Ensemble, ids: &[Id]) -> Tree {
    let tree = read_tree(ensemble, ids[0]);
    for &id in &ids[1..] {
        let other = read_tree(ensemble, id);
        let different =
            tree.keys().chain(other.keys()).find(|&path| tree.get(path) != other.get(path));
        if let Some(path) = different {
            panic!(
                "{path} is {:?} on server {}, and {:?} on server {id}",
                tree.get(path),
                ids[0],
                other.get(path)
            );
        }
    }
    until(
        PATIENCE,
        || format!("the servers' zxids differ: {}", ensemble.tell()),
        || {
            let zxids: BTreeSet<Option<i64>> = ids.iter().map(|&id| ensemble.zxid(id)).collect();
            zxids.len() == 1 && !zxids.contains(&None)
        },
    );
    tree
}

impl Written {
    pub(crate) fn lost_sessions(&self) -> u64 {
        self.records.iter().map(|record| record.lost_sessions).sum()
    }

    /// All servers have all that was acknowledged, and nothing twice.
    pub(crate) fn check(&self, ensemble: &Ensemble) {
        ensemble.wait_all();
        let tree = check_equal(ensemble, &ensemble.ids());
        let mut numbered: BTreeMap<&str, &[u8]> = BTreeMap::new();
        for record in &self.records {
            for (path, data) in record.created.iter().chain(&record.numbered) {
                let found = tree.get(path).map(|(data, _)| data);
                assert_eq!(found, Some(data), "{path} was acknowledged");
            }
            for (path, data) in &record.numbered {
                let before = numbered.insert(path, data);
                assert_eq!(before, None, "{path} was given out twice");
            }
            let Counter { path, sent, acknowledged, newest, .. } = &record.counter;
            if 0 < *acknowledged {
                let (data, stat) = &tree[path];
                let found: u64 = std::str::from_utf8(data).unwrap().parse().unwrap();
                assert!(*newest <= found, "{path} is {found}, and {newest} was acknowledged");
                let version = stat.version as u64;
                assert!(*acknowledged <= version && version <= *sent, "{path}: version {version}");
            }
            if !record.ephemeral.is_empty() {
                assert!(tree.contains_key(&record.ephemeral), "{} is gone", record.ephemeral);
            }
        }
        // What is there was asked for, and was done once.
        let mut done = BTreeSet::new();
        for (path, (data, _)) in &tree {
            if path.starts_with("/seq/") {
                assert!(done.insert(data), "{path} was done twice");
            }
        }
        let sum = |of: fn(&Record) -> u64| self.records.iter().map(of).sum::<u64>();
        let acknowledged = sum(|record| {
            record.created.len() as u64 + record.numbered.len() as u64 + record.counter.acknowledged
        });
        println!(
            "  {acknowledged} writes acknowledged and there, {} creates in doubt, {} connections \
             moved, {} sessions lost",
            sum(|record| record.doubtful.len() as u64),
            sum(|record| record.moves),
            sum(|record| record.lost_sessions)
        );
    }
}
