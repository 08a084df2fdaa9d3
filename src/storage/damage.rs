//! What damage does: every bit of a small log and a small snapshot flipped, every block of them
//! zeroed, and both cut at every byte. What comes out is refused, with a message, or is a prefix
//! of what was written that lacks nothing below the watermark. Never a hole, never a panic.

use std::ops::{Range, RangeInclusive};
use std::path::Path;

use proptest::prelude::*;

use crate::record::data::{AclBytes, StatPersisted};
use crate::record::op::code;
use crate::record::txn::{CreateKind, Txn, TxnDigest, TxnHeader};
use crate::types::{Epoch, SessionId, Zxid};

use super::compression::{Decoder, Encoder};
use super::replay::{LogReader, Options, ReplayError, Replayed, replay};
use super::snapshot::{
    OPEN_ACL_ID, SnapshotDigest, SnapshotError, SnapshotReader, SnapshotWriter, Trailer,
};
use super::txnlog::{self, HEADER_BYTES};
use super::watermark::{self, WATERMARK_FILE_BYTES, Watermark};
use super::{Compression, Listing, log_name};

/// A log's header, and nothing else.
pub(super) fn empty_log() -> Vec<u8> {
    let mut log = Vec::new();
    txnlog::append_header(&mut log);
    log
}

/// A log of these transactions, one of each kind in turn, without padding.
pub(super) fn history(zxids: RangeInclusive<i64>) -> Vec<u8> {
    let mut log = empty_log();
    for zxid in zxids {
        let path = format!("/znode-{zxid}").into();
        let txn = match zxid % 5 {
            0 => Txn::Error { err: -101 },
            1 => Txn::CreateSession { timeout_ms: 30_000 },
            2 => Txn::Create {
                kind: CreateKind::Node { create2: false, ephemeral: false },
                path,
                data: Some(b"data\0\0\0\0\0\0\0\0\0\0\0\0B"),
                acl: AclBytes::OPEN,
                parent_cversion: zxid as i32,
            },
            3 => Txn::SetData { path, data: None, version: 1 },
            _ => Txn::Multi(vec![Txn::Delete { path }, Txn::Error { err: 0 }]),
        };
        let header = TxnHeader { client_id: 0x1_0000, cxid: 1, zxid, time: 7, kind: txn.kind() };
        let digest = TxnDigest {
            version: 2,
            tree_digest: zxid.wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64),
        };
        let digest = (txn.kind() != code::ERROR).then_some(&digest);
        txnlog::append_txn(&mut log, &header, &txn, digest);
    }
    log
}

/// The end of the record of each zxid.
fn ends(log: &[u8]) -> Vec<usize> {
    let mut end = HEADER_BYTES;
    let mut ends = Vec::new();
    while end < log.len() {
        end += txnlog::first_record_bytes(&log[end..]);
        ends.push(end);
    }
    ends
}

fn watermark(log: i64, offset: usize, zxid: i64) -> Watermark {
    Watermark { offset: offset as u64, ..Watermark::new(Zxid(log), Zxid(zxid)) }
}

fn options(watermark: Option<Watermark>) -> Options {
    Options { from: Zxid::ZERO, watermark }
}

/// Replays and returns the zxids; every payload must be the one that `written` has there.
fn replayed(
    written: &[(i64, Vec<u8>)],
    logs: &[(i64, Vec<u8>)],
    options: Options,
) -> Result<(Vec<i64>, Replayed), ReplayError> {
    let mut zxids = Vec::new();
    let named = logs.iter().map(|(start, log)| (log_name(Zxid(*start)), Zxid(*start), &log[..]));
    let replayed = replay(named, options, |record| {
        let is_written = written.iter().any(|(_, log)| {
            let there = log.get(record.offset..).and_then(|log| log.get(12..));
            there.is_some_and(|log| log.starts_with(record.payload))
        });
        assert!(is_written, "{record:?} was never written");
        zxids.push(record.header.zxid);
    })?;
    Ok((zxids, replayed))
}

/// Holds a verdict against the rule: a refusal that names a log, or a prefix of `whole` with all
/// of the first `needed`. Returns how long the prefix is.
fn prefix_or_refusal(
    verdict: Result<(Vec<i64>, Replayed), ReplayError>,
    whole: &[i64],
    needed: usize,
) -> Option<usize> {
    match verdict {
        Ok((zxids, replayed)) => {
            assert!(whole.starts_with(&zxids), "a hole: {zxids:x?}");
            assert!(needed <= zxids.len(), "{needed} were synced, {} are left", zxids.len());
            assert_eq!(replayed.last.0, zxids.last().copied().unwrap_or(0));
            Some(zxids.len())
        }
        Err(error) => {
            assert!(error.to_string().contains("log."), "{error}");
            None
        }
    }
}

/// Each image of `bytes` with one bit flipped, one block of 512 bytes zeroed, or its end cut off.
fn damaged(bytes: &[u8], mut each: impl FnMut(Range<usize>, &[u8])) {
    let mut image = bytes.to_vec();
    for bit in 0..8 * bytes.len() {
        image[bit / 8] ^= 1 << (bit % 8);
        each(bit / 8..bit / 8 + 1, &image);
        image[bit / 8] ^= 1 << (bit % 8);
    }
    for start in (0..bytes.len()).step_by(512) {
        let block = start..bytes.len().min(start + 512);
        image[block.clone()].fill(0);
        if image != bytes {
            each(block.clone(), &image);
        }
        image[block.clone()].copy_from_slice(&bytes[block]);
    }
    for length in 0..bytes.len() {
        each(length..bytes.len(), &bytes[..length]);
    }
}

#[test]
fn a_log_loses_nothing_below_the_watermark() {
    let whole = Vec::from_iter(1..=20);
    let mut log = history(1..=20);
    let ends = ends(&log);
    log.resize(log.len() + 600, 0);
    let written = [(1, log.clone())];
    for synced in [0, 1, 13, 20] {
        let offset = if synced == 0 { HEADER_BYTES } else { ends[synced - 1] };
        damaged(&log, |at, image| {
            let options = options(Some(watermark(1, offset, synced as i64)));
            let verdict = replayed(&written, &[(1, image.to_vec())], options);
            let left = prefix_or_refusal(verdict, &whole, synced);
            let before = ends.iter().take_while(|&&end| end <= at.start).count();
            if at == (at.start..at.start + 1) && (4..HEADER_BYTES).contains(&at.start) {
                assert_eq!(left, Some(20), "version and dbid say nothing");
            } else if at.start < offset && 0 < synced {
                assert_eq!(left, None, "damage at {at:?} is not seen");
            } else if HEADER_BYTES <= at.start {
                assert_eq!(left, Some(before), "what is torn at {at:?} can be dropped");
            }
        });
    }
}

#[test]
fn without_a_watermark_only_the_last_transaction_can_be_taken_for_torn() {
    let whole = Vec::from_iter(1..=20);
    let mut log = history(1..=20);
    log.resize(log.len() + 600, 0);
    let written = [(1, log.clone())];
    damaged(&log, |at, image| {
        let verdict = replayed(&written, &[(1, image.to_vec())], options(None));
        let is_flip = image.len() == log.len() && at.len() == 1;
        prefix_or_refusal(verdict, &whole, if is_flip { 19 } else { 0 });
    });
}

#[test]
fn in_a_row_of_logs_damage_is_never_a_hole() {
    let epoch = |epoch, counter| Zxid::new(Epoch(epoch), counter).0;
    let (third, last) = (epoch(1, 1), epoch(1, 6));
    let ranges = [1..=6, 7..=12, third..=last];
    let whole: Vec<i64> = ranges.iter().cloned().flatten().collect();
    let logs: Vec<(i64, Vec<u8>)> =
        ranges.into_iter().map(|zxids| (*zxids.start(), history(zxids))).collect();
    let mut synced = watermark(third, logs[2].1.len(), last);
    synced.end_epoch(Zxid(12));
    assert_eq!(replayed(&logs, &logs, options(Some(synced))).unwrap().0, whole);
    for (index, (start, log)) in logs.iter().enumerate() {
        let mut damaged_logs = logs.clone();
        damaged(log, |at, image| {
            damaged_logs[index].1 = image.to_vec();
            let verdict = replayed(&logs, &damaged_logs, options(Some(synced)));
            let left = prefix_or_refusal(verdict, &whole, whole.len());
            let is_harmless = image.len() == log.len() && (4..HEADER_BYTES).contains(&at.start);
            assert!(left.is_none() || is_harmless, "damage in log {start:x} at {at:?} is not seen");
        });
        damaged_logs.remove(index);
        let verdict = replayed(&logs, &damaged_logs, options(Some(synced)));
        assert_eq!(prefix_or_refusal(verdict, &whole, whole.len()), None, "without log {start:x}");
    }
}

/// A small tree with every kind of block around it.
fn snapshot(compression: Compression, trailer: Trailer, values: &[Vec<u8>]) -> Vec<u8> {
    let mut writer = SnapshotWriter::new(Encoder::new(Vec::new(), compression));
    writer.sessions([(SessionId(0x1_0000), 30_000), (SessionId(-1), 4_000)].into_iter()).unwrap();
    writer.acls([(1, AclBytes::OPEN)].into_iter()).unwrap();
    let stat = StatPersisted { czxid: 1, mzxid: 2, version: 3, ..StatPersisted::default() };
    writer.node("", Some(b""), OPEN_ACL_ID, &stat).unwrap();
    writer.node("/null", None, 1, &stat).unwrap();
    for (index, value) in values.iter().enumerate() {
        writer.node(&format!("/value-{index}"), Some(value), OPEN_ACL_ID, &stat).unwrap();
    }
    writer.finish(trailer).unwrap().finish().unwrap()
}

/// All that a snapshot holds, as text, and what follows it.
fn read(bytes: &[u8], compression: Compression) -> Result<(Vec<String>, Trailer), SnapshotError> {
    let mut items = Vec::new();
    let source = Decoder::new(bytes, compression);
    let mut reader = SnapshotReader::new(Path::new("snapshot.5"), source);
    while let Some(item) = reader.next()? {
        items.push(format!("{item:?}"));
    }
    let trailer = reader.trailer().expect("a snapshot that was read has its trailer");
    assert!(matches!(reader.next(), Ok(None)));
    Ok((items, trailer))
}

fn trailers() -> [Trailer; 5] {
    let digest = Some(SnapshotDigest { zxid: Zxid(9), version: 2, digest: -7 });
    let hex = Some(SnapshotDigest { zxid: Zxid(9), version: 1, digest: -7 });
    let last_processed = Some(Zxid(10));
    [
        Trailer { digest: None, last_processed: None },
        Trailer { digest, last_processed: None },
        Trailer { digest: None, last_processed },
        Trailer { digest, last_processed },
        Trailer { digest: hex, last_processed },
    ]
}

#[test]
fn a_snapshot_is_read_as_it_was_written_or_refused() {
    let values = [b"first".to_vec(), vec![0; 700]];
    for trailer in trailers() {
        let bytes = snapshot(Compression::None, trailer, &values);
        let (whole, read_trailer) = read(&bytes, Compression::None).unwrap();
        assert_eq!((whole.len(), read_trailer), (7, trailer));
        damaged(&bytes, |at, image| match read(image, Compression::None) {
            Err(error) => assert!(error.to_string().starts_with("snapshot.5: "), "{error}"),
            Ok((items, found)) => {
                assert!(image.len() < bytes.len(), "damage at {at:?} is not seen");
                assert_eq!(items, whole);
                // Cut right after a seal: what an earlier release would have written.
                let lost_last = Trailer { last_processed: None, ..trailer };
                assert!([lost_last, Trailer::default()].contains(&found), "{found:?}");
            }
        });
    }
}

#[test]
fn a_compressed_snapshot_is_read_as_it_was_written_or_refused() {
    let values = [b"first".to_vec(), b"abcdefgh".repeat(40)];
    for compression in [Compression::Gzip, Compression::Snappy] {
        let bytes = snapshot(compression, trailers()[3], &values);
        let whole = read(&bytes, compression).unwrap();
        damaged(&bytes, |at, image| match read(image, compression) {
            Err(error) => assert!(error.to_string().starts_with("snapshot.5: "), "{error}"),
            Ok(found) => assert_eq!(found, whole, "damage at {at:?}"),
        });
    }
}

#[test]
fn a_snapshot_larger_than_a_chunk_comes_through_whole() {
    let values: Vec<Vec<u8>> = (0..9).map(|size| vec![size; 150_000 * usize::from(size)]).collect();
    for compression in [Compression::None, Compression::Gzip, Compression::Snappy] {
        let bytes = snapshot(compression, trailers()[3], &values);
        let (items, trailer) = read(&bytes, compression).unwrap();
        assert_eq!((items.len(), trailer), (5 + values.len(), trailers()[3]));
        for (item, value) in items[5..].iter().zip(&values) {
            assert!(item.contains(&format!("{:?}", Some(value))));
        }
    }
}

fn any_txn() -> impl Strategy<Value = (TxnHeader, Txn<'static>, Option<TxnDigest>)> {
    let path = "(/[a-z\u{e4}\u{1f600}]{1,8}){1,3}";
    let data = prop_oneof![
        Just(None),
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(|data| Some(&*data.leak())),
    ];
    let leaf = prop_oneof![
        (path, data.clone(), any::<i32>(), any::<bool>(), any::<bool>()).prop_map(
            |(path, data, parent_cversion, create2, ephemeral)| Txn::Create {
                kind: CreateKind::Node { create2, ephemeral },
                path: path.into(),
                data,
                acl: AclBytes::OPEN,
                parent_cversion,
            }
        ),
        (path, any::<i64>()).prop_map(|(path, ttl)| Txn::Create {
            kind: CreateKind::Ttl(ttl),
            path: path.into(),
            data: None,
            acl: AclBytes::OPEN,
            parent_cversion: 1,
        }),
        path.prop_map(|path| Txn::Delete { path: path.into() }),
        (path, data, any::<i32>()).prop_map(|(path, data, version)| Txn::SetData {
            path: path.into(),
            data,
            version
        }),
        (path, any::<i32>()).prop_map(|(path, version)| Txn::SetAcl {
            path: path.into(),
            acl: AclBytes::OPEN,
            version
        }),
        (path, any::<i32>()).prop_map(|(path, version)| Txn::Check { path: path.into(), version }),
        any::<i32>().prop_map(|err| Txn::Error { err }),
    ];
    let txn = prop_oneof![
        4 => leaf.clone(),
        1 => proptest::collection::vec(leaf, 0..4).prop_map(Txn::Multi),
        1 => any::<i32>().prop_map(|timeout_ms| Txn::CreateSession { timeout_ms }),
        1 => proptest::collection::vec(path, 0..3).prop_map(|paths| Txn::CloseSession {
            paths: Some(paths.into_iter().map(Into::into).collect())
        }),
    ];
    let digest = proptest::option::of(any::<i64>());
    (any::<i64>(), any::<i32>(), any::<i64>(), txn, digest).prop_map(
        |(client_id, cxid, time, txn, digest)| {
            let header = TxnHeader { client_id, cxid, zxid: 0, time, kind: txn.kind() };
            let digest = digest.map(|tree_digest| TxnDigest { version: 2, tree_digest });
            (header, txn, digest)
        },
    )
}

/// Bytes as a broken disk or a foreign file may hold: noise, alone or in a real file.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(0), Just(0xff), Just(b'B'), 0..4_u8, any::<u8>()];
    proptest::collection::vec(byte, 0..600)
}

/// `bytes` with `noise` written over it or inserted at `at`, and cut.
fn spoiled(mut bytes: Vec<u8>, noise: &[u8], at: usize, insert: bool) -> Vec<u8> {
    let at = at % (bytes.len() + 1);
    let end = if insert { at } else { bytes.len().min(at + noise.len()) };
    bytes.splice(at..end, noise.iter().copied());
    bytes
}

proptest! {
    #[test]
    fn transactions_round_trip(txns in proptest::collection::vec(any_txn(), 0..20)) {
        let mut log = empty_log();
        let mut expected = Vec::new();
        for (zxid, (header, txn, digest)) in (1..).zip(txns) {
            let header = TxnHeader { zxid, ..header };
            txnlog::append_txn(&mut log, &header, &txn, digest.as_ref());
            expected.push((header, txn, digest));
        }
        let mut found = Vec::new();
        let reader = LogReader::new(&log).unwrap();
        for record in reader {
            // Owned by the log, and compared by value.
            found.push(format!("{:?}", (record.header, record.txn, record.digest)));
        }
        let expected: Vec<_> = expected.iter().map(|record| format!("{record:?}")).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn a_prefix_of_a_log_is_a_prefix_of_history(
        last in 0..40_i64, cut in any::<prop::sample::Index>(), padding in 0..3000_usize,
    ) {
        let mut log = history(1..=last);
        let ends = ends(&log);
        log.truncate(cut.index(log.len() + 1));
        let whole = ends.iter().filter(|&&end| end <= log.len()).count() as i64;
        log.resize(log.len() + padding, 0);
        let (mut zxids, logs) = (Vec::new(), [("log.1", Zxid(1), &log[..])]);
        let replayed = replay(logs, options(None), |record| zxids.push(record.header.zxid));
        prop_assert_eq!(zxids, Vec::from_iter(1..=whole));
        prop_assert_eq!(replayed.unwrap().last, Zxid(whole));
    }

    #[test]
    fn noise_in_a_log_is_a_verdict(
        noise in noise(), at in any::<usize>(), insert in any::<bool>(), real in any::<bool>(),
        synced in proptest::option::of((0..3000_usize, 0..25_i64)), from in 0..30_i64,
    ) {
        let log = if real { history(1..=20) } else { empty_log() };
        let log = spoiled(log, &noise, at, insert);
        let watermark = synced.map(|(offset, zxid)| watermark(1, offset, zxid));
        let options = Options { from: Zxid(from), ..options(watermark) };
        let mut last = from;
        let replayed = replay([("log.1", Zxid(1), &log[..])], options, |record| {
            assert_eq!(record.header.zxid, last + 1);
            last += 1;
        });
        if let Ok(replayed) = replayed {
            prop_assert_eq!(replayed.last, Zxid(last));
            prop_assert!(synced.is_none_or(|(_, zxid)| zxid <= last));
        }
    }

    #[test]
    fn noise_in_a_snapshot_is_a_verdict(
        noise in noise(), at in any::<usize>(), insert in any::<bool>(), real in any::<bool>(),
        compression in prop_oneof![
            Just(Compression::None), Just(Compression::Gzip), Just(Compression::Snappy)
        ],
    ) {
        let whole = snapshot(compression, trailers()[3], &[b"value".to_vec(), vec![7; 300]]);
        let start = if real { whole.clone() } else { whole[..16].to_vec() };
        let bytes = spoiled(start, &noise, at, insert);
        if let Ok(found) = read(&bytes, compression) {
            prop_assert_eq!(found, read(&whole, compression).unwrap());
        }
    }

    #[test]
    fn noise_in_a_watermark_is_a_verdict(noise in noise(), at in any::<usize>()) {
        let mut file = vec![0; WATERMARK_FILE_BYTES];
        for sequence in [6, 7] {
            let slot = watermark(1, 16, sequence).encode(sequence as u64);
            let offset = watermark::cached_offset(sequence as u64) as usize;
            file[offset..][..slot.len()].copy_from_slice(&slot);
        }
        let file = spoiled(file, &noise, at, false);
        if let Ok(Some((sequence, found))) = Watermark::decode(&file) {
            prop_assert_eq!(found, watermark(1, 16, sequence as i64));
        }
    }

    #[test]
    fn any_name_has_a_verdict(name in "(log|snapshot|x)?\\.?[0-9a-fA-F.+-]{0,20}(\\.gz|\\.tmp)?") {
        let listing = Listing::new([(name.clone(), 5)]);
        let kept = listing.logs().len() + listing.snapshots().len();
        prop_assert!(kept <= 1);
        if let Some(zxid) = listing.logs().first().map(|log| log.start) {
            prop_assert!(name.starts_with("log."));
            prop_assert!(Zxid::ZERO <= zxid);
        }
    }
}
