//! The whole pure write path on one core: what `Pipeline::step` takes for a batch of requests,
//! from their bytes to the log's records and, once those are durable, to the shards' batch.
//!
//! The throughput is in transactions per core-second, with the disk, the network and the other
//! cores left out: the most that one pipeline core can do. A shard's view follows each commit,
//! so that versions are freed as they are in a server. The sizes are how many requests come at
//! once.

mod bed;

use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Throughput, criterion_group, criterion_main};

use bed::{Bencher, CoreTime, FAMILY, NOW, Random, VALUE};
use ringkeeper::exchange::{
    Applied, ConnectionId, Item, Outcome, Reply, Request, Requests, ShardId, Span, Want,
};
use ringkeeper::jute::record::Record as _;
use ringkeeper::pipeline::{
    Input, Output, Pipeline, ReaperSettings, Restore, RollSettings, Settings,
};
use ringkeeper::record::code::Code;
use ringkeeper::record::data::{AclBytes, Id};
use ringkeeper::record::op::code;
use ringkeeper::record::proto::{
    CreateRequest, MULTI_END, MultiHeader, PathVersion, SetDataRequest,
};
use ringkeeper::tree::{self, TreeReader};
use ringkeeper::types::{ServerId, SessionId, Xid, Zxid};

const SHARD: ShardId = ShardId(0);
const HERE: ConnectionId = ConnectionId { slot: 0, generation: 0 };
const BATCHES: [usize; 4] = [1, 16, 64, 1024];
/// Znodes that come and go in each round.
const CREATED: usize = 1024;
/// Operations in a multi.
const OPERATIONS: usize = 10;

/// A pipeline, and what stands in for the disk and for a shard.
struct Bed {
    pipeline: Pipeline,
    reader: TreeReader,
    session: SessionId,
    ids: Arc<[Id]>,
    out: Output,
    replies: usize,
}

impl Bed {
    /// With `znodes` of 100 bytes in families of 1000.
    fn new(znodes: usize) -> Bed {
        let settings = Settings {
            server: ServerId(1),
            shards: 1,
            tick_ms: 2000,
            providers: Arc::default(),
            skip_acl: false,
            enforce_quota: false,
            reconfig_enabled: false,
            close_session_lists_paths: true,
            record_bytes_max: 2 << 20,
            answer_bytes_max: 64 << 20,
            listed_per_step: 512,
            tree: tree::Settings::default(),
            roll: RollSettings { txns: u64::MAX / 4, bytes: 0, log_bytes: 0, put_off: false },
            reaper: ReaperSettings {
                check_interval_ms: 60_000,
                per_minute_max: 10_000,
                never_used_ms_max: 0,
            },
            seed: 1,
            audit: None,
            #[cfg(feature = "mutants")]
            mutant: None,
        };
        let restored = Restore::empty(settings.tree).finish();
        let mut pipeline = Pipeline::new(NOW, settings, restored);
        let reader = pipeline.reader();
        let mut bed = Bed {
            pipeline,
            reader,
            session: SessionId(0),
            ids: Arc::from([Id::new("ip", "127.0.0.1")]),
            out: Output::default(),
            replies: 0,
        };
        bed.pipeline.start(NOW, &mut bed.out);
        let mut open = Requests::new(SHARD);
        let want = Want::Open { timeout_ms: 30_000, last_zxid_seen: Zxid::ZERO };
        bed.put(&mut open, want, |_| ());
        bed.commit(&open);
        let sessions: Vec<_> = bed.pipeline.sessions().collect();
        bed.session = sessions[0].session;
        bed.fill(znodes);
        bed
    }

    fn fill(&mut self, znodes: usize) {
        let mut requests = Requests::new(SHARD);
        self.put_create(&mut requests, "/service");
        for at in 0..znodes {
            if at.is_multiple_of(FAMILY) {
                self.put_create(&mut requests, &bed::parent_path(at / FAMILY));
            }
            self.put_create(&mut requests, &bed::path(at));
        }
        self.commit(&requests);
        // Freed in pieces, step by step: not while anything is timed.
        let mut waiting = usize::MAX;
        while self.pipeline.tree().waiting_to_be_freed() < waiting {
            waiting = self.pipeline.tree().waiting_to_be_freed();
            self.pipeline.step(NOW, Input::Tick, &mut self.out);
        }
        assert_eq!(self.pipeline.report().znodes, znodes + znodes.div_ceil(FAMILY) + 1 + 4);
    }

    fn put(&self, requests: &mut Requests, want: Want, body: impl FnOnce(&mut Vec<u8>)) {
        let start = requests.bodies.len();
        body(&mut requests.bodies);
        requests.requests.push(Request {
            connection: HERE,
            session: self.session,
            xid: Xid(7),
            want,
            body: Span::since(start, requests.bodies.len()),
            ids: Arc::clone(&self.ids),
        });
    }

    fn put_create(&self, requests: &mut Requests, path: &str) {
        let request = create(path);
        self.put(requests, Want::Write { op: code::CREATE }, |out| request.write(out));
    }

    fn put_delete(&self, requests: &mut Requests, path: &str) {
        let request = PathVersion { path: Some(path.into()), version: -1 };
        self.put(requests, Want::Write { op: code::DELETE }, |out| request.write(out));
    }

    fn put_set(&self, requests: &mut Requests, path: &str) {
        let request = set(path);
        self.put(requests, Want::Write { op: code::SET_DATA }, |out| request.write(out));
    }

    fn put_multi(&self, requests: &mut Requests, paths: &[String]) {
        self.put(requests, Want::Write { op: code::MULTI }, |out| {
            for path in paths {
                MultiHeader { kind: code::SET_DATA, done: false, err: -1 }.write(out);
                set(path).write(out);
            }
            MULTI_END.write(out);
        });
    }

    /// One batch of requests all the way: ordered, logged, "synced", handed to the shard.
    fn commit(&mut self, requests: &Requests) {
        self.replies = 0;
        self.pipeline.step(NOW, Input::Requests(requests), &mut self.out);
        self.sync();
        for applied in self.out.applied.drain(..) {
            self.reader.advance(applied.zxid);
            self.replies += answered(&applied);
        }
        assert_eq!(self.replies, requests.requests.len());
    }

    /// Says that what was logged is durable.
    fn sync(&mut self) {
        let mut appends = std::mem::take(&mut self.out.appends);
        let mut last = None;
        for append in appends.drain(..) {
            last = Some(append.last);
            self.out.give_back(append.records);
        }
        self.out.appends = appends;
        let last = last.expect("a write is logged, and an error is");
        self.pipeline.step(NOW, Input::Synced(last), &mut self.out);
    }
}

/// How many requests went well, at a cost that a shard's own reading of the batch has too.
fn answered(applied: &Applied) -> usize {
    let is_good = |item: &&Item| {
        matches!(
            item,
            Item::Reply(Reply {
                outcome: Outcome::Answer { err: Code::Ok, .. } | Outcome::Connected { .. },
                ..
            })
        )
    };
    applied.items.iter().filter(is_good).count()
}

fn create(path: &str) -> CreateRequest<'_> {
    CreateRequest { path: Some(path.into()), data: Some(&VALUE), acl: AclBytes::OPEN, flags: 0 }
}

fn set(path: &str) -> SetDataRequest<'_> {
    SetDataRequest { path: Some(path.into()), data: Some(&VALUE), version: -1 }
}

/// Batches of `batch` requests each, on random znodes: enough of them to come back to a znode
/// only after as long as a server would.
fn batches(znodes: usize, batch: usize, put: impl Fn(&mut Requests, &mut Random)) -> Vec<Requests> {
    let mut random = Random::new();
    let count = (2 * znodes.min(20_000)).div_ceil(batch).max(2);
    let batch_of = |_| {
        let mut requests = Requests::new(SHARD);
        (0..batch).for_each(|_| put(&mut requests, &mut random));
        requests
    };
    (0..count).map(batch_of).collect()
}

fn set_data(c: &mut Bencher) {
    for znodes in [1000, bed::many(1_000_000)] {
        // Made by the first bench that is not filtered out.
        let mut made = None;
        let mut group = bed::group(c, &format!("pipeline/setData 100 bytes, {znodes} znodes"));
        for batch in BATCHES {
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(BenchmarkId::from_parameter(batch), |b| {
                let bed = made.get_or_insert_with(|| Bed::new(znodes));
                let batches = batches(znodes, batch, |requests, random| {
                    bed.put_set(requests, &bed::path(random.below(znodes)));
                });
                let mut round = batches.iter().cycle();
                b.iter(|| bed.commit(round.next().expect("it goes round")));
            });
        }
    }
}

/// Whatever one half does the other undoes, and only one is timed.
fn create_and_delete(c: &mut Bencher) {
    let znodes = 1000;
    let mut bed = Bed::new(znodes);
    // Fresh znodes, spread over fresh parents by tens.
    let mut parents = Requests::new(SHARD);
    for parent in 0..CREATED.div_ceil(10) {
        bed.put_create(&mut parents, &format!("/service/fresh-{parent}"));
    }
    bed.commit(&parents);
    for (name, times_create) in [("create", true), ("delete", false)] {
        let mut group = bed::group(c, &format!("pipeline/{name} 100 bytes"));
        for batch in BATCHES {
            // Several batches are timed together: asking for the time takes as long as a write.
            let both: Vec<_> = (0..CREATED / batch)
                .map(|part| {
                    let (mut creates, mut deletes) = (Requests::new(SHARD), Requests::new(SHARD));
                    for at in part * batch..(part + 1) * batch {
                        let path = format!("/service/fresh-{}/member-{at:010}", at / 10);
                        bed.put_create(&mut creates, &path);
                        bed.put_delete(&mut deletes, &path);
                    }
                    (creates, deletes)
                })
                .collect();
            group.throughput(Throughput::Elements(CREATED as u64));
            group.bench_function(BenchmarkId::from_parameter(batch), |b| {
                b.iter_custom(|rounds| {
                    let mut time = Duration::ZERO;
                    for _ in 0..rounds {
                        let start = CoreTime::now();
                        both.iter().for_each(|(creates, _)| bed.commit(creates));
                        let middle = CoreTime::now();
                        both.iter().for_each(|(_, deletes)| bed.commit(deletes));
                        let end = CoreTime::now();
                        time += if times_create { middle - start } else { end - middle };
                    }
                    time
                });
            });
        }
    }
}

/// Creates of znodes that stay, so that the tree grows under them.
fn create_growing(c: &mut Bencher) {
    let mut group = bed::group(c, "pipeline/create 100 bytes, the tree grows");
    let batch = 64;
    group.throughput(Throughput::Elements(batch as u64));
    group.bench_function(BenchmarkId::from_parameter(batch), |b| {
        b.iter_custom(|rounds| {
            let mut bed = Bed::new(0);
            let mut time = Duration::ZERO;
            let mut paths = (0..).flat_map(|at: usize| {
                let parent = at.is_multiple_of(FAMILY).then(|| bed::parent_path(at / FAMILY));
                parent.into_iter().chain([bed::path(at)])
            });
            for _ in 0..rounds {
                let mut requests = Requests::new(SHARD);
                paths.by_ref().take(batch).for_each(|path| bed.put_create(&mut requests, &path));
                let start = CoreTime::now();
                bed.commit(&requests);
                time += CoreTime::now() - start;
            }
            time
        });
    });
}

fn multi(c: &mut Bencher) {
    let znodes = 1000;
    let mut bed = Bed::new(znodes);
    let mut group = bed::group(c, "pipeline/multi of 10 setData, per operation");
    for batch in BATCHES {
        let batches = batches(znodes, batch, |requests, random| {
            let paths: Vec<_> = (0..OPERATIONS).map(|_| bed::path(random.below(znodes))).collect();
            bed.put_multi(requests, &paths);
        });
        let mut round = batches.iter().cycle();
        group.throughput(Throughput::Elements((batch * OPERATIONS) as u64));
        group.bench_function(BenchmarkId::from_parameter(batch), |b| {
            b.iter(|| bed.commit(round.next().expect("it goes round")));
        });
    }
}

/// A request that fails its checks is a transaction too, and a record in the log.
fn refused(c: &mut Bencher) {
    let mut bed = Bed::new(1000);
    let mut group = bed::group(c, "pipeline/setData of no znode");
    let batch = 64;
    let mut requests = Requests::new(SHARD);
    for at in 0..batch {
        bed.put_set(&mut requests, &format!("/service/none-{at}"));
    }
    group.throughput(Throughput::Elements(batch as u64));
    group.bench_function(BenchmarkId::from_parameter(batch), |b| {
        b.iter(|| {
            bed.pipeline.step(NOW, Input::Requests(&requests), &mut bed.out);
            bed.sync();
            for applied in bed.out.applied.drain(..) {
                assert_eq!((applied.items.len(), answered(&applied)), (batch, 0));
                bed.reader.advance(applied.zxid);
            }
        });
    });
}

criterion_group! {
    name = benches;
    config = bed::criterion();
    targets = set_data, create_and_delete, create_growing, multi, refused
}
criterion_main!(benches);
