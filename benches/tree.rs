//! The tree as n cores read it while one writes, against the maps that one would take otherwise.
//!
//! A read is what a shard does for getData: the znode is found, its data and its stat are put
//! into a buffer. Readers pause after each 64, as a shard does between its batches; there the
//! tree's move their view. A write is a setData: the tree's gives the znode a new version, brings
//! the digest up to date, and frees what no view can see; the others put the new bytes in the
//! place of the old, and know neither views nor digests.
//!
//! *Hot* is 1000 znodes, which fit into a core's own cache; *cold* is a million, which fit into
//! none.

mod bed;

use std::hint::black_box;
use std::process::Command;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use criterion::{BenchmarkGroup, BenchmarkId, Throughput};
use parking_lot::RwLock;

use bed::{Bencher, CoreTime, FAMILY, Random, VALUE, many};
use ringkeeper::jute::Write as _;
use ringkeeper::jute::record::Record as _;
use ringkeeper::record::data::{Stat, StatPersisted};
use ringkeeper::record::op::code;
use ringkeeper::record::txn::{Txn, TxnHeader};
use ringkeeper::tree::change::Unwatched;
use ringkeeper::tree::{LoadedAcl, Settings, TreeReader, TreeWriter};
use ringkeeper::types::Zxid;

/// A shard's requests between two looks at what was committed, and a commit's transactions.
const BATCH: usize = 64;
const COLD: usize = 1_000_000;
/// Set in the process that measures its own memory.
const MEMORY_OF: &str = "RINGKEEPER_BENCH_MEMORY_OF";

/// One reader's end of a store.
trait Reads: Send {
    /// Puts data and stat into `out`; false where there is no such znode.
    fn read(&mut self, path: &str, out: &mut Vec<u8>) -> bool;
    /// Appends the names of the children.
    fn list(&mut self, parent: &str, out: &mut Vec<u8>) -> usize;
    fn pause(&mut self) {}
}

/// The writer's end.
trait Store: Send {
    fn reader(&mut self) -> Box<dyn Reads>;
    /// Adds a znode, or a parent of some.
    fn add(&mut self, path: &str, data: &[u8]);
    fn set(&mut self, path: &str, data: &[u8]);
    fn commit(&mut self) {}
}

// ---- ours -----------------------------------------------------------------------------------

struct Tree {
    writer: TreeWriter,
    zxid: Zxid,
    /// What the pipeline would tell the shards.
    committed: Arc<AtomicI64>,
}

struct Reader {
    reader: TreeReader,
    committed: Arc<AtomicI64>,
}

impl Tree {
    fn new() -> Tree {
        let writer = TreeWriter::new(Settings::default());
        Tree { writer, zxid: Zxid::ZERO, committed: Arc::default() }
    }
}

impl Store for Tree {
    fn reader(&mut self) -> Box<dyn Reads> {
        let committed = Arc::clone(&self.committed);
        Box::new(Reader { reader: self.writer.reader(), committed })
    }

    fn add(&mut self, path: &str, data: &[u8]) {
        self.writer
            .load_znode(path, Some(data), &LoadedAcl::OPEN, bed::stat())
            .expect("parents come first");
    }

    fn set(&mut self, path: &str, data: &[u8]) {
        self.zxid = self.zxid.next();
        let header =
            TxnHeader { client_id: 1, cxid: 1, zxid: self.zxid.0, time: 5, kind: code::SET_DATA };
        let txn = Txn::SetData { path: path.into(), data: Some(data), version: 1 };
        self.writer.apply(&header, &txn, &mut Unwatched);
        self.writer.settle();
    }

    fn commit(&mut self) {
        self.writer.publish(self.zxid);
        self.committed.store(self.zxid.0, Ordering::Release);
        self.writer.reclaim(50_000);
    }
}

impl Reads for Reader {
    fn read(&mut self, path: &str, out: &mut Vec<u8>) -> bool {
        let Some(znode) = self.reader.get(path) else { return false };
        out.put_buffer(znode.data());
        znode.stat().write(out);
        true
    }

    fn list(&mut self, parent: &str, out: &mut Vec<u8>) -> usize {
        let Some(znode) = self.reader.get(parent) else { return 0 };
        znode.children().map(|name| out.put_text(name)).count()
    }

    fn pause(&mut self) {
        self.reader.advance(Zxid(self.committed.load(Ordering::Acquire)));
    }
}

// ---- the others -----------------------------------------------------------------------------

type Hasher = foldhash::fast::RandomState;

/// A znode as the maps keep it.
struct Plain {
    stat: StatPersisted,
    data: Box<[u8]>,
    children: Vec<Box<str>>,
}

impl Plain {
    fn new(data: &[u8]) -> Plain {
        Plain { stat: bed::stat(), data: data.into(), children: Vec::new() }
    }

    fn put(&self, out: &mut Vec<u8>) {
        let stat = &self.stat;
        let num_children = self.children.len() as i32;
        out.put_buffer(Some(&self.data));
        Stat {
            czxid: stat.czxid,
            mzxid: stat.mzxid,
            ctime: stat.ctime,
            mtime: stat.mtime,
            version: stat.version,
            cversion: stat.cversion.wrapping_mul(2).wrapping_sub(num_children),
            aversion: stat.aversion,
            ephemeral_owner: stat.ephemeral_owner,
            data_length: self.data.len() as i32,
            num_children,
            pzxid: stat.pzxid,
        }
        .write(out);
    }

    fn list(&self, out: &mut Vec<u8>) -> usize {
        self.children.iter().map(|name| out.put_text(name)).count()
    }

    fn set(&mut self, data: &[u8]) {
        self.data = data.into();
        self.stat.version += 1;
        self.stat.mzxid += 1;
    }
}

/// The text before the last slash and the one after it.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').expect("paths have slashes")
}

/// 256 hash maps with a lock each.
#[derive(Clone)]
struct Sharded(Arc<[Shard]>, Hasher);

type Shard = RwLock<std::collections::HashMap<Box<str>, Plain, Hasher>>;

impl Sharded {
    fn new() -> Sharded {
        let hasher = Hasher::default();
        let map = || RwLock::new(std::collections::HashMap::with_hasher(hasher.clone()));
        Sharded((0..256).map(|_| map()).collect(), hasher)
    }

    fn shard(&self, path: &str) -> &Shard {
        use std::hash::BuildHasher as _;
        // Other bits than those that the maps take.
        &self.0[(self.1.hash_one(path) >> 32) as usize % 256]
    }
}

impl Store for Sharded {
    fn reader(&mut self) -> Box<dyn Reads> {
        Box::new(self.clone())
    }

    fn add(&mut self, path: &str, data: &[u8]) {
        let (parent, name) = split(path);
        if let Some(parent) = self.shard(parent).write().get_mut(parent) {
            parent.children.push(name.into());
        }
        self.shard(path).write().insert(path.into(), Plain::new(data));
    }

    fn set(&mut self, path: &str, data: &[u8]) {
        self.shard(path).write().get_mut(path).expect("it was added").set(data);
    }
}

impl Reads for Sharded {
    fn read(&mut self, path: &str, out: &mut Vec<u8>) -> bool {
        self.shard(path).read().get(path).map(|znode| znode.put(out)).is_some()
    }

    fn list(&mut self, parent: &str, out: &mut Vec<u8>) -> usize {
        self.shard(parent).read().get(parent).map_or(0, |znode| znode.list(out))
    }
}

#[derive(Clone)]
struct Dash(Arc<dashmap::DashMap<Box<str>, Plain, Hasher>>);

impl Dash {
    fn new() -> Dash {
        Dash(Arc::new(dashmap::DashMap::with_hasher(Hasher::default())))
    }
}

impl Store for Dash {
    fn reader(&mut self) -> Box<dyn Reads> {
        Box::new(self.clone())
    }

    fn add(&mut self, path: &str, data: &[u8]) {
        let (parent, name) = split(path);
        if let Some(mut parent) = self.0.get_mut(parent) {
            parent.children.push(name.into());
        }
        self.0.insert(path.into(), Plain::new(data));
    }

    fn set(&mut self, path: &str, data: &[u8]) {
        self.0.get_mut(path).expect("it was added").set(data);
    }
}

impl Reads for Dash {
    fn read(&mut self, path: &str, out: &mut Vec<u8>) -> bool {
        self.0.get(path).map(|znode| znode.put(out)).is_some()
    }

    fn list(&mut self, parent: &str, out: &mut Vec<u8>) -> usize {
        self.0.get(parent).map_or(0, |znode| znode.list(out))
    }
}

/// A map without locks: what changes is replaced. Children are in a lock of their own, or each
/// create would copy them all.
#[derive(Clone)]
struct Papaya(Arc<papaya::HashMap<Box<str>, Replaced, Hasher>>);

struct Replaced {
    znode: Plain,
    children: Arc<RwLock<Vec<Box<str>>>>,
}

impl Papaya {
    fn new() -> Papaya {
        Papaya(Arc::new(papaya::HashMap::with_hasher(Hasher::default())))
    }
}

impl Store for Papaya {
    fn reader(&mut self) -> Box<dyn Reads> {
        Box::new(self.clone())
    }

    fn add(&mut self, path: &str, data: &[u8]) {
        let (parent, name) = split(path);
        let map = self.0.pin();
        if let Some(parent) = map.get(parent) {
            parent.children.write().push(name.into());
        }
        map.insert(path.into(), Replaced { znode: Plain::new(data), children: Arc::default() });
    }

    fn set(&mut self, path: &str, data: &[u8]) {
        let map = self.0.pin();
        let before = map.get(path).expect("it was added");
        let stat = StatPersisted { version: before.znode.stat.version + 1, ..before.znode.stat };
        let znode = Plain { stat, data: data.into(), children: Vec::new() };
        let children = Arc::clone(&before.children);
        map.insert(path.into(), Replaced { znode, children });
    }
}

impl Reads for Papaya {
    fn read(&mut self, path: &str, out: &mut Vec<u8>) -> bool {
        self.0.pin().get(path).map(|found| found.znode.put(out)).is_some()
    }

    fn list(&mut self, parent: &str, out: &mut Vec<u8>) -> usize {
        self.0
            .pin()
            .get(parent)
            .map_or(0, |found| found.children.read().iter().map(|name| out.put_text(name)).count())
    }
}

// ---- benches --------------------------------------------------------------------------------

const NAMES: [&str; 4] = ["tree", "256 RwLock HashMaps", "dashmap", "papaya"];

fn new(name: &str) -> Box<dyn Store> {
    match name {
        "tree" => Box::new(Tree::new()),
        "256 RwLock HashMaps" => Box::new(Sharded::new()),
        "dashmap" => Box::new(Dash::new()),
        "papaya" => Box::new(Papaya::new()),
        _ => panic!("{name}: one of {NAMES:?}"),
    }
}

fn filled(name: &str, znodes: usize) -> Box<dyn Store> {
    let mut store = new(name);
    fill_into(&mut *store, znodes);
    check(&mut *store, znodes);
    store
}

fn fill_into(store: &mut dyn Store, znodes: usize) {
    store.add("/service", b"");
    for at in 0..znodes {
        if at.is_multiple_of(FAMILY) {
            store.add(&bed::parent_path(at / FAMILY), b"");
        }
        store.add(&bed::path(at), &VALUE);
    }
}

/// Every store must answer alike, or their times say nothing.
fn check(store: &mut dyn Store, znodes: usize) {
    let mut reader = store.reader();
    let mut out = Vec::new();
    for at in (0..znodes).step_by(znodes.div_ceil(100)) {
        out.clear();
        assert!(reader.read(&bed::path(at), &mut out));
        assert_eq!((out.len(), &out[4..104]), (4 + 100 + 68, &VALUE[..]));
    }
    assert!(!reader.read(&bed::path(znodes), &mut out));
    out.clear();
    assert_eq!(reader.list(&bed::parent_path(0), &mut out), FAMILY);
    assert_eq!(out.len(), FAMILY * (4 + "member-0000000000".len()));
    store.set(&bed::path(0), &[1; 100]);
    store.commit();
    reader.pause();
    out.clear();
    assert!(reader.read(&bed::path(0), &mut out));
    assert_eq!(out[4..104], [1; 100]);
    store.set(&bed::path(0), &VALUE);
    store.commit();
}

/// The paths to ask for, in a random order that is not computed while the clock runs.
fn asked(among: usize) -> Vec<String> {
    let mut random = Random::new();
    (0..many(1 << 18)).map(|_| bed::path(random.below(among))).collect()
}

struct Round<'p> {
    paths: &'p [String],
    next: usize,
}

impl<'p> Round<'p> {
    fn new(paths: &'p [String], start: usize) -> Round<'p> {
        Round { paths, next: start % paths.len() }
    }

    fn path(&mut self) -> &'p str {
        let path = &self.paths[self.next];
        self.next = if self.next + 1 == self.paths.len() { 0 } else { self.next + 1 };
        path
    }
}

/// How long `reads` take on as many cores as there are `readers`, while a writer writes on one of
/// its own or none does: the time of the slowest.
fn together(
    store: &mut dyn Store,
    paths: &[String],
    readers: usize,
    writes: bool,
    reads: u64,
) -> Duration {
    let each = reads.div_ceil(readers as u64);
    let ends: Vec<_> = (0..readers).map(|_| store.reader()).collect();
    let (start, done) = (Barrier::new(readers + usize::from(writes)), AtomicUsize::new(0));
    let (start, done) = (&start, &done);
    thread::scope(|scope| {
        let threads: Vec<_> = ends
            .into_iter()
            .enumerate()
            .map(|(at, mut end)| {
                scope.spawn(move || {
                    let mut round = Round::new(paths, at * 7919);
                    let mut out = Vec::with_capacity(1024);
                    start.wait();
                    let began = CoreTime::now();
                    for read in 0..each {
                        out.clear();
                        assert!(end.read(round.path(), &mut out));
                        black_box(&out);
                        if read % BATCH as u64 == 0 {
                            end.pause();
                        }
                    }
                    let time = CoreTime::now() - began;
                    done.fetch_add(1, Ordering::Relaxed);
                    time
                })
            })
            .collect();
        if writes {
            start.wait();
            let mut round = Round::new(paths, 104_729);
            while done.load(Ordering::Relaxed) < readers {
                for _ in 0..BATCH {
                    store.set(round.path(), &VALUE);
                }
                store.commit();
            }
        }
        let times = threads.into_iter().map(|thread| thread.join().expect("a reader reads"));
        times.max().expect("there are readers")
    })
}

/// A store that is filled by the first bench that is not filtered out.
struct Lazy {
    name: &'static str,
    znodes: usize,
    store: Option<Box<dyn Store>>,
}

impl Lazy {
    fn new(name: &'static str, znodes: usize) -> Lazy {
        Lazy { name, znodes, store: None }
    }

    fn get(&mut self) -> &mut dyn Store {
        &mut **self.store.get_or_insert_with(|| filled(self.name, self.znodes))
    }
}

fn reads(group: &mut BenchmarkGroup<'_, CoreTime>, store: &mut Lazy, paths: &[String]) {
    let cores = thread::available_parallelism().map_or(2, usize::from).max(2);
    let name = store.name;
    group.throughput(Throughput::Elements(1));
    group.bench_function(format!("{name}/1 reader"), |b| {
        let mut reader = store.get().reader();
        let (mut round, mut out) = (Round::new(paths, 0), Vec::with_capacity(1024));
        b.iter(|| {
            out.clear();
            assert!(reader.read(round.path(), &mut out));
            black_box(&out);
        });
    });
    for (readers, writes) in [(cores, false), (cores - 1, true)] {
        let beside = if writes { ", 1 writer flat out" } else { "" };
        let plural = if readers == 1 { "" } else { "s" };
        group.bench_function(format!("{name}/{readers} reader{plural}{beside}"), |b| {
            b.iter_custom(|reads| together(store.get(), paths, readers, writes, reads));
        });
    }
}

fn hot(c: &mut Bencher) {
    let paths = asked(FAMILY);
    for name in NAMES {
        let mut store = Lazy::new(name, FAMILY);
        reads(&mut bed::group(c, "tree/get, 1000 znodes"), &mut store, &paths);
    }
}

fn cold(c: &mut Bencher) {
    let znodes = many(COLD);
    let paths = asked(znodes);
    for name in NAMES {
        let mut store = Lazy::new(name, znodes);
        reads(&mut bed::group(c, "tree/get, 1000000 znodes"), &mut store, &paths);
        writes(&mut bed::group(c, "tree/set, 1000000 znodes"), &mut store, &paths);
    }
}

/// Freeing the versions of one znode that is changed all the time, while snapshots follow closely
/// on each other: each holds back what came before it, and below the newest of them lie as many
/// versions as above. What a version costs must not depend on how many there are.
fn chains(c: &mut Bencher) {
    let mut group = bed::group(c, "tree/free a version of a chain");
    for length in [100, 1_000, many(10_000), many(100_000)] {
        group.throughput(Throughput::Elements(length as u64));
        group.bench_function(BenchmarkId::from_parameter(length), |b| {
            let mut tree = Tree::new();
            tree.add("/often", &VALUE);
            b.iter_custom(|rounds| {
                let mut time = Duration::ZERO;
                for _ in 0..rounds {
                    let set = |tree: &mut Tree| {
                        (0..length).for_each(|_| {
                            tree.set("/often", &VALUE);
                            tree.writer.publish(tree.zxid);
                        });
                    };
                    let lower = tree.writer.reader();
                    set(&mut tree);
                    let upper = tree.writer.reader();
                    set(&mut tree);
                    drop(lower);
                    let start = CoreTime::now();
                    tree.writer.reclaim(usize::MAX);
                    time += CoreTime::now() - start;
                    drop(upper);
                    tree.writer.reclaim(usize::MAX);
                }
                time
            });
        });
    }
}

/// How many znodes lie below one: the same whether there are a thousand or a million.
fn descendants(c: &mut Bencher) {
    let mut group = bed::group(c, "tree/count all below");
    for znodes in [FAMILY, many(COLD)] {
        let mut tree = Tree::new();
        tree.add("/service", b"");
        for at in 0..znodes {
            if at.is_multiple_of(FAMILY) {
                tree.add(&bed::parent_path(at / FAMILY), b"");
            }
            tree.add(&bed::path(at), b"");
        }
        let reader = tree.writer.reader();
        let below = (znodes + znodes.div_ceil(FAMILY)) as u64;
        group.bench_function(BenchmarkId::from_parameter(znodes), |b| {
            b.iter(|| {
                let znode = reader.get(black_box("/service")).expect("it was added");
                assert_eq!(znode.descendant_count(), below);
            });
        });
    }
}

/// Sets, committed by 64, with one reader that follows.
fn writes(group: &mut BenchmarkGroup<'_, CoreTime>, store: &mut Lazy, paths: &[String]) {
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function(store.name, |b| {
        let store = store.get();
        let mut reader = store.reader();
        let mut round = Round::new(paths, 0);
        b.iter(|| {
            for _ in 0..BATCH {
                store.set(round.path(), &VALUE);
            }
            store.commit();
            reader.pause();
        });
    });
}

fn listing(c: &mut Bencher) {
    for name in NAMES {
        let mut group = bed::group(c, "tree/list 1000 children");
        group.throughput(Throughput::Elements(FAMILY as u64));
        let mut store = filled(name, FAMILY);
        let mut reader = store.reader();
        let (parent, mut out) = (bed::parent_path(0), Vec::new());
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                assert_eq!(reader.list(black_box(&parent), &mut out), FAMILY);
            });
        });
    }
}

/// What a leader has had cut from the log is taken back: setData of as many znodes, in a small tree
/// and in a large one.
fn roll_back(c: &mut Bencher) {
    const TXNS: usize = 500;
    for znodes in [FAMILY, many(COLD)] {
        let mut group = bed::group(c, "tree/take back");
        group.throughput(Throughput::Elements(TXNS as u64));
        let mut tree = Tree::new();
        fill_into(&mut tree, znodes);
        let (began, digest, mut random) = (tree.zxid, tree.writer.digest(), Random::new());
        group.bench_function(BenchmarkId::from_parameter(znodes), |b| {
            b.iter_custom(|rounds| {
                let mut took = Duration::ZERO;
                for _ in 0..rounds {
                    for _ in 0..TXNS {
                        tree.set(&bed::path(random.below(znodes)), &[1; 100]);
                        tree.writer.seal(tree.zxid);
                    }
                    let start = CoreTime::now();
                    tree.writer.roll_back_to(began);
                    took += CoreTime::now() - start;
                    assert_eq!(tree.writer.digest(), digest);
                    tree.zxid = began;
                    tree.writer.reclaim(usize::MAX);
                }
                took
            });
        });
    }
}

/// What it takes to fill one; and, printed, what it then keeps.
fn fill(c: &mut Bencher) {
    let znodes = many(100_000);
    let mut group = bed::group(c, "tree/fill");
    group.sample_size(10);
    group.throughput(Throughput::Elements(znodes as u64));
    for name in NAMES {
        let mut memory = None;
        group.bench_function(name, |b| {
            memory.get_or_insert_with(|| print_memory(name));
            b.iter_with_large_drop(|| filled(name, znodes));
        });
    }
}

/// Memory is measured in a process that has done nothing else.
fn print_memory(name: &str) {
    let program = std::env::current_exe().expect("this program has a path");
    let output = Command::new(program)
        .env(MEMORY_OF, format!("{name}={}", many(COLD)))
        .output()
        .expect("this program can be run again");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    eprintln!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
}

fn say_memory(name: &str, znodes: usize) {
    let before = resident_bytes();
    let store = filled(name, znodes);
    let bytes = resident_bytes() - before;
    eprintln!("{} bytes per znode of 33 + 100, at {znodes}", bytes / znodes);
    drop(store);
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("this is Linux");
    let pages = statm.split(' ').nth(1).expect("statm has a second number");
    pages.parse::<usize>().expect("it is a number") * 4096
}

fn main() {
    if let Ok(of) = std::env::var(MEMORY_OF) {
        let (name, znodes) = of.split_once('=').expect("a name and a number");
        return say_memory(name, znodes.parse().expect("a number"));
    }
    let mut criterion = bed::criterion().configure_from_args();
    for bench in [hot, cold, listing, chains, descendants, roll_back, fill] {
        bench(&mut criterion);
    }
    criterion.final_summary();
}
