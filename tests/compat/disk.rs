//! Logs and snapshots.

use std::io::{Read, Write};
use std::path::Path;

use ringkeeper::record::data::{AclBytes, StatPersisted};
use ringkeeper::record::txn::{CreateKind, Txn, TxnDigest};
use ringkeeper::storage::compression::{Decoder, Encoder};
use ringkeeper::storage::replay::{LogReader, Options, Replayed, replay};
use ringkeeper::storage::snapshot::{
    Item, SnapshotDigest, SnapshotError, SnapshotReader, SnapshotWriter, Trailer,
};
use ringkeeper::storage::{
    Compression, FileName, Listing, QUICK_BYTES, SnapshotFile, is_quick_valid, txnlog,
};
use ringkeeper::types::{SessionId, Zxid};

const TINY_LOG: &[u8] = include_bytes!("fixtures/disk/tiny-log.1");
const ALLTYPES_LOG: &[u8] = include_bytes!("fixtures/disk/alltypes-log.1");
const TINY_SNAPSHOT_0: &[u8] = include_bytes!("fixtures/disk/tiny-snapshot.0");
const TINY_SNAPSHOT_3: &[u8] = include_bytes!("fixtures/disk/tiny-snapshot.3");
const ALLTYPES_SNAPSHOT: &[u8] = include_bytes!("fixtures/disk/alltypes-snapshot.15");
const ALLTYPES_SNAPSHOT_GZ: &[u8] = include_bytes!("fixtures/disk/alltypes-snapshot.15.gz");
const ALLTYPES_SNAPSHOT_SNAPPY: &[u8] = include_bytes!("fixtures/disk/alltypes-snapshot.15.snappy");
const MASTER_SNAPSHOT: &[u8] = include_bytes!("fixtures/disk/master-snapshot.19");

/// Reads a log and writes what was read: header, each record from its decoded parts, padding by
/// ZooKeeper's rule for `preAllocSize=8`.
fn rewritten(log: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    txnlog::append_header(&mut out);
    let mut padded = out.len() as u64;
    let mut reader = LogReader::new(log).unwrap();
    for record in &mut reader {
        padded = txnlog::padded_bytes(out.len() as u64, padded, 8 << 10);
        txnlog::append_txn(&mut out, &record.header, &record.txn, record.digest.as_ref());
    }
    assert!(reader.stop().unwrap().cause.is_end());
    out.resize(padded as usize, 0);
    out
}

#[test]
fn logs_are_read_and_reproduced() {
    assert!(rewritten(TINY_LOG) == TINY_LOG);
    assert!(rewritten(ALLTYPES_LOG) == ALLTYPES_LOG);
}

#[test]
fn logs_replay_from_any_snapshot() {
    for (log, last) in [(TINY_LOG, 3), (ALLTYPES_LOG, 21)] {
        for from in 0..=last {
            let options = Options { from: Zxid(from), watermark: None };
            let mut zxids = Vec::new();
            let replayed = replay([("log.1", Zxid(1), log)], options, |record| {
                zxids.push(record.header.zxid);
            });
            let txns = (last - from) as u64;
            let Replayed { last: reached, txns: count, cuts, torn, .. } = replayed.unwrap();
            assert_eq!((reached, count), (Zxid(last), txns));
            assert!(cuts.is_empty() && torn.is_empty());
            assert_eq!(zxids, Vec::from_iter(from + 1..=last));
        }
    }
}

#[test]
fn the_tiny_log_tells_its_story() {
    let txns: Vec<_> = LogReader::new(TINY_LOG)
        .unwrap()
        .map(|record| (record.offset, record.header.client_id, record.txn, record.digest.unwrap()))
        .collect();
    let session = 0x100_000c_b3f6_0000;
    let digest = |tree_digest| TxnDigest { version: 2, tree_digest };
    let create = Txn::Create {
        kind: CreateKind::Node { create2: false, ephemeral: false },
        path: "/hello".into(),
        data: Some(b"world"),
        acl: AclBytes::OPEN,
        parent_cversion: 1,
    };
    let expected = [
        (0x10, session, Txn::CreateSession { timeout_ms: 10_000 }, digest(0x51c6_d660)),
        (0x4d, session, create, digest(0x1_2bf1_d488)),
        (0xb9, session, Txn::CloseSession { paths: Some(Vec::new()) }, digest(0x1_2bf1_d488)),
    ];
    assert_eq!(txns, expected);
}

/// A snapshot held in memory: what it says, with nothing left out.
#[derive(Debug, Default, PartialEq, Eq)]
struct Snapshot {
    sessions: Vec<(SessionId, i32)>,
    acls: Vec<(i64, Vec<u8>)>,
    nodes: Vec<(String, Option<Vec<u8>>, i64, StatPersisted)>,
    trailer: Trailer,
}

fn read(source: impl Read) -> Result<Snapshot, SnapshotError> {
    let mut snapshot = Snapshot::default();
    let mut reader = SnapshotReader::new(Path::new("snapshot.0"), source);
    while let Some(item) = reader.next()? {
        match item {
            Item::Session { id, timeout_ms } => snapshot.sessions.push((id, timeout_ms)),
            Item::Acl { id, acl } => snapshot.acls.push((id, acl.as_bytes().to_vec())),
            Item::Node { path, data, acl_id, stat } => {
                let data = data.map(<[u8]>::to_vec);
                snapshot.nodes.push((path.into_owned(), data, acl_id, stat));
            }
        }
    }
    snapshot.trailer = reader.trailer().unwrap();
    Ok(snapshot)
}

fn write<W: Write>(snapshot: &Snapshot, out: W) -> W {
    let mut writer = SnapshotWriter::new(out);
    writer.sessions(snapshot.sessions.iter().copied()).unwrap();
    let acls = snapshot.acls.iter().map(|(id, acl)| (*id, AclBytes::from_bytes(acl).unwrap()));
    writer.acls(acls.collect::<Vec<_>>().into_iter()).unwrap();
    for (path, data, acl_id, stat) in &snapshot.nodes {
        writer.node(path, data.as_deref(), *acl_id, stat).unwrap();
    }
    writer.finish(snapshot.trailer).unwrap()
}

#[test]
fn snapshots_are_read_and_reproduced() {
    for bytes in [TINY_SNAPSHOT_0, TINY_SNAPSHOT_3, ALLTYPES_SNAPSHOT, MASTER_SNAPSHOT] {
        assert!(write(&read(bytes).unwrap(), Vec::new()) == bytes);
    }
}

#[test]
fn the_tiny_snapshot_tells_its_story() {
    let snapshot = read(TINY_SNAPSHOT_3).unwrap();
    assert_eq!(snapshot.sessions, []);
    assert_eq!(snapshot.acls.len(), 2);
    assert!(AclBytes::from_bytes(&snapshot.acls[1].1).unwrap().is_open());
    let paths: Vec<_> = snapshot.nodes.iter().map(|(path, ..)| path.as_str()).collect();
    assert_eq!(paths, ["", "/hello", "/zookeeper", "/zookeeper/config", "/zookeeper/quota"]);
    let time = 0x1a1_f921_d0ca;
    let stat = StatPersisted {
        czxid: 2,
        mzxid: 2,
        ctime: time,
        mtime: time,
        pzxid: 2,
        ..StatPersisted::default()
    };
    assert_eq!(snapshot.nodes[1], ("/hello".into(), Some(b"world".to_vec()), 2, stat));
    let digest = SnapshotDigest { zxid: Zxid(3), version: 2, digest: 0x1_2bf1_d488 };
    assert_eq!(snapshot.trailer, Trailer { digest: Some(digest), last_processed: None });
}

#[test]
fn the_newest_release_also_says_what_was_processed_last() {
    let trailer = read(MASTER_SNAPSHOT).unwrap().trailer;
    assert!(trailer.digest.is_some());
    assert_eq!(trailer.last_processed, Some(Zxid(0x19)));
}

#[test]
fn compressed_snapshots_hold_what_the_plain_one_does() {
    let plain = read(ALLTYPES_SNAPSHOT).unwrap();
    for (compression, bytes) in
        [(Compression::Gzip, ALLTYPES_SNAPSHOT_GZ), (Compression::Snappy, ALLTYPES_SNAPSHOT_SNAPPY)]
    {
        let snapshot = read(Decoder::new(bytes, compression)).unwrap();
        // No transaction had been applied since the server that wrote them was started.
        let digest = Some(SnapshotDigest { zxid: Zxid::ZERO, version: 2, digest: 0 });
        assert_eq!(snapshot.trailer, Trailer { digest, last_processed: None });
        assert_eq!(Snapshot { trailer: plain.trailer, ..snapshot }, plain);
    }
}

#[test]
fn what_we_compress_we_can_read() {
    let plain = read(ALLTYPES_SNAPSHOT).unwrap();
    for compression in [Compression::None, Compression::Gzip, Compression::Snappy] {
        let bytes = write(&plain, Encoder::new(Vec::new(), compression)).finish().unwrap();
        let file = SnapshotFile {
            name: String::new(),
            zxid: Zxid(0x15),
            compression,
            bytes: bytes.len() as u64,
        };
        assert!(is_quick_valid(&file, &bytes[..QUICK_BYTES], &bytes[bytes.len() - QUICK_BYTES..]));
        assert_eq!(read(Decoder::new(&*bytes, compression)).unwrap(), plain);
    }
    let ours = write(&plain, Encoder::new(Vec::new(), Compression::Snappy)).finish().unwrap();
    assert_eq!(ours[..16], ALLTYPES_SNAPSHOT_SNAPPY[..16]);
}

#[test]
fn the_fixtures_pass_the_quick_check_under_their_names() {
    for (name, bytes) in [
        ("snapshot.0", TINY_SNAPSHOT_0),
        ("snapshot.15", ALLTYPES_SNAPSHOT),
        ("snapshot.15.gz", ALLTYPES_SNAPSHOT_GZ),
        ("snapshot.15.snappy", ALLTYPES_SNAPSHOT_SNAPPY),
        ("snapshot.19", MASTER_SNAPSHOT),
    ] {
        assert!(matches!(FileName::parse(name), Some(FileName::Snapshot(..))));
        let listing = Listing::new([(name.to_owned(), bytes.len() as u64)]);
        let [file] = listing.snapshots() else { panic!("{name} is one snapshot") };
        assert!(is_quick_valid(file, &bytes[..QUICK_BYTES], &bytes[bytes.len() - QUICK_BYTES..]));
    }
}
