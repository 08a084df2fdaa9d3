//! What damage does: every bit of a small log and a small snapshot flipped, every block of them
//! zeroed, and both cut at every byte. What comes out is refused, with a message, or is a prefix
//! of what was written that lacks nothing below the watermark. Never a hole, never a panic.

use std::ops::{Range, RangeInclusive};
use std::path::Path;

use proptest::prelude::*;

use crate::jute::FIELD_BYTES_MAX;
use crate::record::data::{AclBytes, StatPersisted};
use crate::record::op::code;
use crate::record::txn::{CreateKind, Txn, TxnDigest, TxnHeader};
use crate::types::{Epoch, SessionId, Zxid};

use super::compression::{Decoder, Encoder};
use super::replay::{Options, ReplayError, Replayed, replay};
use super::snapshot::{
    Item, OPEN_ACL_ID, SnapshotDigest, SnapshotError, SnapshotReader, SnapshotWriter, Trailer,
};
use super::txnlog::{self, HEADER_BYTES};
use super::watermark::{WATERMARK_FILE_BYTES, Watermark};
use super::{Compression, Listing, log_name};

/// A log of these transactions, one of each kind in turn, without padding.
pub(super) fn history(zxids: RangeInclusive<i64>) -> Vec<u8> {
    let mut log = Vec::new();
    txnlog::append_header(&mut log);
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
    Options { from: Zxid::ZERO, watermark, payload_bytes_max: FIELD_BYTES_MAX }
}

/// Replays and returns the zxids; every payload must be the one that was written.
fn replayed(
    logs: &[(i64, Vec<u8>)],
    options: Options,
) -> Result<(Vec<i64>, Replayed), ReplayError> {
    let mut zxids = Vec::new();
    let logs = logs.iter().map(|(start, log)| (log_name(Zxid(*start)), Zxid(*start), &log[..]));
    let replayed = replay(logs, options, |record| {
        let zxid = record.header.zxid;
        let expected = history(zxid..=zxid);
        assert_eq!(&expected[HEADER_BYTES + 12..expected.len() - 1], record.payload);
        zxids.push(zxid);
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
        each(block.clone(), &image);
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
    for synced in [0, 1, 13, 20] {
        let offset = if synced == 0 { HEADER_BYTES } else { ends[synced - 1] };
        damaged(&log, |at, image| {
            let verdict = replayed(
                &[(1, image.to_vec())],
                options(Some(watermark(1, offset, synced as i64))),
            );
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
    damaged(&log, |at, image| {
        let verdict = replayed(&[(1, image.to_vec())], options(None));
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
    assert_eq!(replayed(&logs, options(Some(synced))).unwrap().0, whole);
    for (index, (start, log)) in logs.iter().enumerate() {
        let mut damaged_logs = logs.clone();
        damaged(log, |at, image| {
            damaged_logs[index].1 = image.to_vec();
            let verdict = replayed(&damaged_logs, options(Some(synced)));
            let left = prefix_or_refusal(verdict, &whole, whole.len());
            let is_harmless = image.len() == log.len() && (4..HEADER_BYTES).contains(&at.start);
            assert!(left.is_none() || is_harmless, "damage in log {start:x} at {at:?} is not seen");
        });
        damaged_logs.remove(index);
        let verdict = replayed(&damaged_logs, options(Some(synced)));
        assert_eq!(prefix_or_refusal(verdict, &whole, whole.len()), None, "without log {start:x}");
    }
}
