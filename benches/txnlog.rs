//! The transaction log in memory: records made, stored into a segment, and read back.
//!
//! A write pays for *encode* and *append*; a restart for *read*, and for *replay*, which is the
//! same with the tree built from it. The disk is left out: it is `loadgen limits`' matter.

mod bed;

use std::hint::black_box;
use std::path::Path;

use criterion::{BenchmarkId, Throughput, criterion_group, criterion_main};

use bed::{Bencher, FAMILY, VALUE};
use ringkeeper::pipeline::{Restore, Restored};
use ringkeeper::record::code::Code;
use ringkeeper::record::data::AclBytes;
use ringkeeper::record::txn::{CreateKind, DIGEST_VERSION, Txn, TxnDigest, TxnHeader};
use ringkeeper::storage::replay::{LogReader, Options, Replay, ReplayError};
use ringkeeper::storage::segment::Segment;
use ringkeeper::storage::txnlog::{self, HEADER_BYTES};
use ringkeeper::tree::change::Unwatched;
use ringkeeper::tree::{self, TreeWriter};
use ringkeeper::types::Zxid;

const DIGEST: TxnDigest = TxnDigest { version: DIGEST_VERSION, tree_digest: 0x1234_5678 };

fn header(zxid: i64, kind: i32) -> TxnHeader {
    TxnHeader { client_id: 0x100_0000_0001, cxid: 1, zxid, time: 1_700_000_000_000, kind }
}

fn set(path: &str) -> Txn<'_> {
    Txn::SetData { path: path.into(), data: Some(&VALUE), version: 1 }
}

fn create(path: &str) -> Txn<'_> {
    Txn::Create {
        kind: CreateKind::Node { create2: false, ephemeral: false },
        path: path.into(),
        data: Some(&VALUE),
        acl: AclBytes::OPEN,
        parent_cversion: -1,
    }
}

/// The records of `count` transactions from zxid 1 on.
fn records<'a>(count: usize, txn: impl Fn(usize) -> Txn<'a>) -> Vec<u8> {
    let mut out = Vec::new();
    for at in 0..count {
        let txn = txn(at);
        txnlog::append_txn(&mut out, &header(at as i64 + 1, txn.kind()), &txn, Some(&DIGEST));
    }
    out
}

fn log(records: &[u8]) -> Vec<u8> {
    let mut log = Vec::new();
    txnlog::append_header(&mut log);
    log.extend_from_slice(records);
    log
}

fn encode(c: &mut Bencher) {
    let path = bed::path(42);
    let multi = Txn::Multi((0..10).map(|_| set(&path)).collect());
    let txns = [
        ("setData 100 bytes", set(&path)),
        ("create 100 bytes", create(&path)),
        ("delete", Txn::Delete { path: path.as_str().into() }),
        ("multi of 10 setData", multi),
    ];
    let mut group = bed::group(c, "txnlog/encode");
    for (name, txn) in &txns {
        let header = header(1, txn.kind());
        let mut out = Vec::new();
        txnlog::append_txn(&mut out, &header, txn, Some(&DIGEST));
        let read = LogReader::new(&log(&out)).and_then(|mut log| {
            log.next().map(|record| record.header.kind == txn.kind() && record.txn == *txn)
        });
        assert_eq!(read, Some(true), "{name}: what was written is read");
        group.throughput(Throughput::Bytes(out.len() as u64));
        group.bench_function(*name, |b| {
            b.iter(|| {
                out.clear();
                txnlog::append_txn(&mut out, black_box(&header), txn, Some(&DIGEST));
                black_box(&out);
            });
        });
    }
}

/// Into a segment in memory, which is begun again when it is full.
fn append(c: &mut Bencher) {
    const SEGMENT_BYTES: usize = 4 << 20;
    let path = bed::path(42);
    let mut group = bed::group(c, "txnlog/append setData 100 bytes to a segment");
    for batch in [1, 16, 64, 1024] {
        let records = records(batch, |_| set(&path));
        let mut segment = Segment::create(vec![0; SEGMENT_BYTES]);
        segment.append(&records).expect("an empty segment has room");
        let found = LogReader::new(segment.bytes()).map(Iterator::count);
        assert_eq!(found, Some(batch));
        group.throughput(Throughput::Bytes(records.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(batch), |b| {
            b.iter(|| {
                if segment.append(black_box(&records)).is_err() {
                    let mut bytes = std::mem::take(segment.storage_mut());
                    bytes[..HEADER_BYTES].fill(0);
                    // Only the first page has to look fresh; what is behind is written over.
                    bytes[..4096].fill(0);
                    segment = Segment::create(bytes);
                }
            });
        });
    }
}

/// 100,000 records, one after the other: framing and checksums held, bodies decoded.
fn read(c: &mut Bencher) {
    let count = bed::many(100_000);
    let paths: Vec<String> = (0..count).map(bed::path).collect();
    let mut group = bed::group(c, "txnlog/read 100000");
    group.sample_size(10);
    for (name, of) in [("setData", set as fn(&str) -> Txn<'_>), ("create", create)] {
        let log = log(&records(count, |at| of(&paths[at])));
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                let reader = LogReader::new(black_box(&log)).expect("a log");
                assert_eq!(reader.inspect(|record| _ = black_box(record)).count(), count);
            });
        });
    }
}

#[derive(Debug)]
struct Failed(#[expect(dead_code, reason = "for the message")] String);

impl From<ReplayError> for Failed {
    fn from(error: ReplayError) -> Failed {
        Failed(error.to_string())
    }
}

fn replayed(log: &[u8]) -> Restored {
    let mut restore = Restore::empty(tree::Settings::default());
    let options = Options { from: Zxid::ZERO, watermark: None };
    Replay::new(options)
        .log(Path::new("log.1"), Zxid(1), log, |record| {
            restore
                .replay(&record.header, &record.txn, record.digest.as_ref())
                .map_err(|error| Failed(error.to_string()))
        })
        .expect("it replays");
    restore.finish()
}

/// A log of these transactions with the digests that a server would have written.
fn digested<'a>(txns: impl Iterator<Item = Txn<'a>>) -> Vec<u8> {
    let mut tree = TreeWriter::new(tree::Settings::default());
    let mut log = log(&[]);
    for (zxid, txn) in (1..).zip(txns) {
        let header = header(zxid, txn.kind());
        assert_eq!(tree.apply(&header, &txn, &mut Unwatched), Code::Ok);
        tree.settle();
        let digest = TxnDigest { version: DIGEST_VERSION, tree_digest: tree.digest() as i64 };
        txnlog::append_txn(&mut log, &header, &txn, Some(&digest));
    }
    log
}

/// What a restart does with the log of a day: a tree out of its creates, and sets on top.
fn replay(c: &mut Bencher) {
    let count = bed::many(100_000);
    let mut paths = vec!["/service".to_owned()];
    for at in 0..count {
        if at.is_multiple_of(FAMILY) {
            paths.push(bed::parent_path(at / FAMILY));
        }
        paths.push(bed::path(at));
    }
    let creates = || paths.iter().map(|path| create(path));
    let sets = || paths.iter().map(|path| set(path));
    let mut group = bed::group(c, "txnlog/replay into a tree");
    group.sample_size(10);
    for (name, log, txns) in [
        ("100000 creates", digested(creates()), paths.len()),
        ("100000 creates, 100000 sets", digested(creates().chain(sets())), 2 * paths.len()),
    ] {
        let restored = replayed(&log);
        assert_eq!(restored.last, Zxid(txns as i64));
        assert_eq!(restored.tree.znode_count(), paths.len() + 4);
        group.throughput(Throughput::Elements(txns as u64));
        group.bench_function(name, |b| b.iter_with_large_drop(|| replayed(black_box(&log))));
    }
}

criterion_group! {
    name = benches;
    config = bed::criterion();
    targets = encode, append, read, replay
}
criterion_main!(benches);
