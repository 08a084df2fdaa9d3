//! The whole pure read path on one core: bytes of pipelined requests in, bytes of replies out.
//!
//! The throughput is in reads per core-second, without the system calls that bring and take the
//! bytes: the most that one session core can do. In each round every connection sends its
//! requests in one piece, as one `recv` returns them, and its replies are taken in one piece, as
//! one `send` takes them. Names say connections × requests in flight.
//!
//! Watches: what it takes to set one, and to fire 100,000 of them.

mod bed;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use criterion::{Throughput, criterion_group, criterion_main};

use bed::{Bencher, CoreTime, FAMILY, NOW, Random, VALUE};
use ringkeeper::exchange::{
    Applied, Change, ChangeKind, ConnectionId, Item, Outcome, Reply, ShardId, Span, Want,
};
use ringkeeper::jute::record::Record as _;
use ringkeeper::jute::{Reader, Write as _, frame};
use ringkeeper::record::code::Code;
use ringkeeper::record::op::{EventType, STATE_SYNC_CONNECTED, code};
use ringkeeper::record::proto::{
    ConnectRequest, GetDataResponse, PathWatch, ReplyHeader, RequestHeader, WatcherEvent,
};
use ringkeeper::shard::{Allowance, Output, Settings, Shard, TurnBudget};
use ringkeeper::tree::{self, LoadedAcl, TreeWriter};
use ringkeeper::types::{SessionId, Zxid};

const SHARD: ShardId = ShardId(0);
const STAT_BYTES: usize = 68;
const REPLY_HEADER_BYTES: usize = 4 + 16;

/// A shard with clients, and what stands in for the pipeline and for the sockets.
struct Bed {
    shard: Shard,
    out: Output,
    writer: TreeWriter,
    zxid: Zxid,
    clients: Vec<ConnectionId>,
}

impl Bed {
    /// With `znodes` of 100 bytes in families of 1000.
    fn new(clients: usize, znodes: usize) -> Bed {
        let mut writer = TreeWriter::new(tree::Settings::default());
        let mut load = |path: &str| {
            writer.load_znode(path, Some(&VALUE), &LoadedAcl::OPEN, bed::stat()).expect("a parent");
        };
        load("/service");
        load("/service/ten");
        for at in 0..10 {
            load(&format!("/service/ten/member-{at:010}"));
        }
        for at in 0..znodes {
            if at.is_multiple_of(FAMILY) {
                load(&bed::parent_path(at / FAMILY));
            }
            load(&bed::path(at));
        }
        let settings = Settings {
            frame_bytes_max: 0xf_ffff,
            session_timeout_min_ms: 4_000,
            session_timeout_max_ms: 40_000,
            providers: Arc::default(),
            skip_acl: false,
            sessionless_timeout_ms: 10_000,
            silence_slack_ms: 2_000,
            outstanding_max: 1 << 20,
            answer_bytes_max: 64 << 20,
            answer_bytes: Allowance::new(1 << 30, 1, 1 << 20),
            watches_per_connection_max: usize::MAX,
            watches: Allowance::new(1 << 30, 1, 1 << 10),
            connection_turn: TurnBudget { bytes: usize::MAX, steps: usize::MAX },
            turn: TurnBudget { bytes: usize::MAX, steps: usize::MAX },
            auth_bytes_max: 1 << 16,
            large_request_bytes: None,
            large_requests_bytes_max: usize::MAX,
            throttled_op_wait_ms: None,
            connect_throttle: None,
            input_bytes_max: 1 << 20,
            output_bytes_max: 4 << 20,
            output_bytes_ceiling: 64 << 20,
            hash_seed: 0x5eed,
            serves_at_birth: true,
        };
        let shard = Shard::new(SHARD, settings, writer.reader());
        let (zxid, out) = (Zxid::ZERO, Output::new(SHARD));
        let mut bed = Bed { shard, out, writer, zxid, clients: Vec::new() };
        bed.connect(clients);
        bed
    }

    fn connect(&mut self, clients: usize) {
        let mut hello = Vec::new();
        let request = ConnectRequest {
            protocol_version: 0,
            last_zxid_seen: 0,
            timeout_ms: 10_000,
            session: 0,
            password: None,
            read_only: Some(false),
        };
        frame::write(&mut hello, |out| request.write(out));
        for _ in 0..clients {
            let id = self.shard.on_accept(NOW, SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
            self.shard.on_bytes(NOW, id, &hello, &mut self.out);
            self.clients.push(id);
        }
        let zxid = self.zxid.next();
        let connected = self.out.requests.requests.iter().zip(1..).map(|(request, session)| {
            assert!(matches!(request.want, Want::Open { .. }));
            let session = SessionId(session);
            let outcome = Outcome::Connected { session, timeout_ms: 10_000, password: [0; 16] };
            Item::Reply(Reply { shard: SHARD, connection: request.connection, zxid, outcome })
        });
        let items = connected.collect();
        self.out.requests.clear();
        self.apply(Applied { items, ..Applied::default() });
        assert_eq!(self.drain(|_| ()), clients);
    }

    /// What the pipeline would say next.
    fn apply(&mut self, applied: Applied) {
        self.zxid = self.zxid.next();
        self.writer.publish(self.zxid);
        let applied = Applied { zxid: self.zxid, ..applied };
        self.shard.on_applied(NOW, &applied, &mut self.out);
    }

    /// Takes all that is to be written; from how many connections.
    fn drain(&mut self, mut see: impl FnMut(&[u8])) -> usize {
        let mut ready = std::mem::take(&mut self.out.ready);
        ready.append(&mut self.out.later);
        let count = ready.len();
        for id in ready.drain(..) {
            loop {
                let outgoing = self.shard.outgoing(id).expect("it is connected");
                assert!(outgoing.close.is_none());
                if outgoing.bytes.is_empty() {
                    break;
                }
                see(outgoing.bytes);
                let bytes = outgoing.bytes.len();
                self.shard.on_written(NOW, id, bytes, &mut self.out);
            }
        }
        self.shard.on_turn(NOW, &mut self.out);
        if self.out.ready.is_empty() {
            self.out.ready = ready;
        }
        count
    }

    /// Every client sends its bytes, and takes the replies; how many bytes these were.
    fn round(&mut self, input: &[Vec<u8>]) -> usize {
        for (id, input) in self.clients.iter().zip(input) {
            self.shard.on_bytes(NOW, *id, input, &mut self.out);
        }
        let mut bytes = 0;
        self.drain(|output| bytes += output.len());
        bytes
    }
}

/// One request on a path.
fn request(out: &mut Vec<u8>, op: i32, path: &str, watch: bool) {
    frame::write(out, |out| {
        RequestHeader { xid: 7, op }.write(out);
        PathWatch { path: Some(path.into()), watch }.write(out);
    });
}

/// What each client sends: `depth` requests on random znodes.
fn input(clients: usize, depth: usize, mut one: impl FnMut(&mut Vec<u8>)) -> Vec<Vec<u8>> {
    let of_client = |_| {
        let mut bytes = Vec::new();
        (0..depth).for_each(|_| one(&mut bytes));
        bytes
    };
    (0..clients).map(of_client).collect()
}

/// Frames of a connection's output, without their lengths.
fn frames(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    while let frame::Front::Frame { body } = frame::cut(bytes, usize::MAX) {
        bytes = &bytes[frame::PREFIX_BYTES + body.len()..];
        frames.push(body);
    }
    assert!(bytes.is_empty(), "whole frames are written");
    frames
}

fn reads(c: &mut Bencher, name: &str, op: i32, reply_bytes: usize, path: impl Fn(usize) -> String) {
    let mut group = bed::group(c, name);
    for (clients, depth) in [(1, 1), (64, 1), (64, 16), (64, 64), (1000, 1)] {
        let expected = clients * depth * reply_bytes;
        group.throughput(Throughput::Elements((clients * depth) as u64));
        let mut made = None;
        group.bench_function(format!("{clients} x {depth}"), |b| {
            let (bed, input) = made.get_or_insert_with(|| {
                let mut random = Random::new();
                let one = |out: &mut Vec<u8>| request(out, op, &path(random.below(1000)), false);
                (Bed::new(clients, 1000), input(clients, depth, one))
            });
            b.iter(|| assert_eq!(bed.round(input), expected));
        });
    }
}

fn get_data(c: &mut Bencher) {
    let mut bed = Bed::new(1, 1000);
    let input = input(1, 1, |out| request(out, code::GET_DATA, &bed::path(42), false));
    bed.shard.on_bytes(NOW, bed.clients[0], &input[0], &mut bed.out);
    bed.drain(|bytes| {
        let mut reader = Reader::new(frames(bytes)[0]);
        let header = ReplyHeader::read(&mut reader).expect("a header");
        let reply = GetDataResponse::read(&mut reader).expect("a reply");
        assert_eq!((header.xid, header.err, reply.data), (7, 0, Some(&VALUE[..])));
        assert!(reader.is_empty());
    });
    let bytes = REPLY_HEADER_BYTES + 4 + 100 + STAT_BYTES;
    reads(c, "shard/getData 100 bytes", code::GET_DATA, bytes, bed::path);
}

fn exists(c: &mut Bencher) {
    let bytes = REPLY_HEADER_BYTES + STAT_BYTES;
    reads(c, "shard/exists", code::EXISTS, bytes, bed::path);
}

fn no_node(c: &mut Bencher) {
    let bytes = REPLY_HEADER_BYTES;
    reads(c, "shard/exists of no znode", code::EXISTS, bytes, |at| format!("/none/{at}"));
}

fn children(c: &mut Bencher) {
    let bytes = REPLY_HEADER_BYTES + 4 + 10 * (4 + "member-0000000000".len());
    let path = |_| "/service/ten".to_owned();
    reads(c, "shard/getChildren, 10 of them", code::GET_CHILDREN, bytes, path);
}

/// Reads over a tree that no cache holds.
fn cold(c: &mut Bencher) {
    let znodes = bed::many(1_000_000);
    let (clients, depth) = (64, 16);
    let mut group = bed::group(c, "shard/getData 100 bytes, 1000000 znodes");
    group.throughput(Throughput::Elements((clients * depth) as u64));
    let expected = clients * depth * (REPLY_HEADER_BYTES + 4 + 100 + STAT_BYTES);
    let mut made = None;
    group.bench_function(format!("{clients} x {depth}"), |b| {
        let (bed, inputs) = made.get_or_insert_with(|| {
            let mut random = Random::new();
            let of_round = |_| {
                input(clients, depth, |out| {
                    request(out, code::GET_DATA, &bed::path(random.below(znodes)), false);
                })
            };
            let rounds = bed::many(1 << 18) / (clients * depth);
            let inputs: Vec<_> = (0..rounds).map(of_round).collect();
            (Bed::new(clients, znodes), inputs)
        });
        let mut inputs = inputs.iter().cycle();
        b.iter(|| assert_eq!(bed.round(inputs.next().expect("it goes round")), expected));
    });
}

/// A connection is silent for most of its life; a ping is what it costs then.
fn ping(c: &mut Bencher) {
    let mut bed = Bed::new(1000, 1);
    let input = input(1000, 1, |out| {
        frame::write(out, |out| RequestHeader { xid: -2, op: code::PING }.write(out))
    });
    let expected = 1000 * REPLY_HEADER_BYTES;
    let mut group = bed::group(c, "shard/ping");
    group.throughput(Throughput::Elements(1000));
    group.bench_function("1000 x 1", |b| {
        b.iter(|| assert_eq!(bed.round(&input), expected));
    });
}

/// Writes on their way through a shard: a request is handed on, its answer written.
fn writes(c: &mut Bencher) {
    let (clients, depth) = (64, 16);
    let mut group = bed::group(c, "shard/setData 100 bytes, there and back");
    group.throughput(Throughput::Elements((clients * depth) as u64));
    let expected = clients * depth * (REPLY_HEADER_BYTES + STAT_BYTES);
    group.bench_function(format!("{clients} x {depth}"), |b| {
        let mut bed = Bed::new(clients, 1000);
        let mut random = Random::new();
        let input = input(clients, depth, |out| {
            frame::write(out, |out| {
                RequestHeader { xid: 7, op: code::SET_DATA }.write(out);
                out.put_text(&bed::path(random.below(1000)));
                out.put_buffer(Some(&VALUE));
                out.put_i32(-1);
            });
        });
        let mut applied = Applied { bodies: vec![0; STAT_BYTES], ..Applied::default() };
        b.iter_custom(|rounds| {
            let mut time = Duration::ZERO;
            for _ in 0..rounds {
                let start = CoreTime::now();
                for (id, input) in bed.clients.iter().zip(&input) {
                    bed.shard.on_bytes(NOW, *id, input, &mut bed.out);
                }
                time += CoreTime::now() - start;
                bed.zxid = bed.zxid.next();
                bed.writer.publish(bed.zxid);
                applied.zxid = bed.zxid;
                applied.items.clear();
                applied.items.extend(bed.out.requests.requests.iter().map(|request| {
                    let body = Span::since(0, STAT_BYTES);
                    let (connection, xid) = (request.connection, request.xid);
                    let outcome = Outcome::Answer { xid, err: Code::Ok, body, close: false };
                    Item::Reply(Reply { shard: SHARD, connection, zxid: bed.zxid, outcome })
                }));
                assert_eq!(applied.items.len(), clients * depth);
                bed.out.requests.clear();
                let start = CoreTime::now();
                bed.shard.on_applied(NOW, &applied, &mut bed.out);
                let mut bytes = 0;
                bed.drain(|output| bytes += output.len());
                time += CoreTime::now() - start;
                assert_eq!(bytes, expected);
            }
            time
        });
    });
}

/// A change of each path's data, in one batch.
fn changes(paths: &[String]) -> Applied {
    let mut applied = Applied::default();
    for path in paths {
        let start = applied.paths.len();
        applied.paths.push_str(path);
        applied.items.push(Item::Change(Change {
            kind: ChangeKind::DataChanged,
            zxid: Zxid(1),
            path: Span::since(start, applied.paths.len()),
            acl: None,
            parent_acl: None,
        }));
    }
    applied
}

/// Clients that ask to be told, and the changes that tell them.
struct Watched {
    bed: Bed,
    paths: Vec<String>,
    asks: Vec<Vec<u8>>,
    event_bytes: usize,
}

impl Watched {
    /// Every client watches every path.
    fn new(clients: usize, paths: usize) -> Watched {
        let paths: Vec<String> = (0..paths).map(bed::path).collect();
        let (mut asks, mut events) = (Vec::new(), Vec::new());
        for path in &paths {
            request(&mut asks, code::GET_DATA, path, true);
            frame::write(&mut events, |out| {
                ReplyHeader { xid: -1, zxid: 1, err: 0 }.write(out);
                let kind = EventType::NodeDataChanged as i32;
                let path = Some(path.as_str().into());
                WatcherEvent { kind, state: STATE_SYNC_CONNECTED, path }.write(out);
            });
        }
        let event_bytes = clients * events.len();
        Watched { bed: Bed::new(clients, 10_000), paths, asks: vec![asks; clients], event_bytes }
    }

    /// All watches set and fired: how long both take.
    fn round(&mut self) -> (Duration, Duration) {
        let changes = changes(&self.paths);
        let start = CoreTime::now();
        self.bed.round(&self.asks);
        let set = CoreTime::now();
        self.bed.apply(changes);
        let mut bytes = 0;
        self.bed.drain(|output| bytes += output.len());
        let fired = CoreTime::now();
        assert_eq!(bytes, self.event_bytes);
        (set - start, fired - set)
    }
}

fn watches(c: &mut Bencher) {
    let watches = bed::many(100_000);
    for (name, clients, paths) in [
        ("one znode, 100000 watchers", watches, 1),
        ("100 znodes, 1000 watchers of each", watches / 100, 100),
        ("10000 znodes, 10 watchers of each", 10, watches / 10),
    ] {
        let mut made = None;
        for (what, is_firing) in [("fired", true), ("set, with getData", false)] {
            let mut group = bed::group(c, &format!("shard/watches {what}"));
            group.sample_size(10);
            group.throughput(Throughput::Elements(watches as u64));
            group.bench_function(name, |b| {
                let watched = made.get_or_insert_with(|| Watched::new(clients, paths));
                let mut one = || {
                    let (set, fired) = watched.round();
                    if is_firing { fired } else { set }
                };
                b.iter_custom(|rounds| (0..rounds).map(|_| one()).sum());
            });
        }
    }
}

/// What every write costs a shard where nobody, or somebody else, watches.
fn unwatched(c: &mut Bencher) {
    let mut group = bed::group(c, "shard/1000 changes that nobody watches");
    group.throughput(Throughput::Elements(1000));
    let paths: Vec<String> = (0..1000).map(bed::path).collect();
    for (name, watched) in [("no watches", None), ("watches of others", Some(1000..11_000))] {
        let mut bed = Bed::new(1, 11_000);
        let mut asks = vec![Vec::new()];
        for at in watched.into_iter().flatten() {
            request(&mut asks[0], code::GET_DATA, &bed::path(at), true);
        }
        bed.round(&asks);
        // All is written; what is named here was named while it was.
        bed.out.ready.clear();
        bed.out.later.clear();
        let mut changes = changes(&paths);
        group.bench_function(name, |b| {
            b.iter(|| {
                bed.zxid = bed.zxid.next();
                bed.writer.publish(bed.zxid);
                changes.zxid = bed.zxid;
                bed.shard.on_applied(NOW, &changes, &mut bed.out);
                assert!(bed.out.ready.is_empty() && bed.out.later.is_empty());
            });
        });
    }
}

criterion_group! {
    name = benches;
    config = bed::criterion();
    targets = get_data, exists, no_node, children, cold, ping, writes, watches, unwatched
}
criterion_main!(benches);
