//! The bytes of a transaction log: its header and its records.
//!
//! ```text
//! file    = header record* padding
//! header  = int magic "ZKLG", int version 2, long dbid 0                        16 bytes
//! record  = long checksum, int length, byte payload[length], byte 0x42 'B'
//! payload = TxnHeader body [TxnDigest]                                     (record/txn.rs)
//! padding = zero bytes to the end of the file
//! ```
//!
//! The checksum is Adler-32 over the payload alone, in eight bytes (`FileTxnLog.append`; the
//! comment on that class says otherwise). Length and end mark are under no checksum, and a length
//! of zero is the end of the log: so every rule about damage is in `replay.rs`, and the order in
//! which these bytes may reach a mapped file is in `segment.rs`.
//!
//! After `FileTxnLog.java` and `FilePadding.java`.

use crate::jute::record::Record as _;
use crate::record::persistence::{FORMAT_VERSION, FileHeader, LOG_DBID, LOG_MAGIC};
use crate::record::txn::{Txn, TxnDigest, TxnHeader};

/// What stands before the first record.
pub const HEADER_BYTES: usize = 16;
/// Where in a record its length is.
pub const LENGTH_OFFSET: usize = 8;
/// Where in a record its payload begins.
pub const PAYLOAD_OFFSET: usize = 12;
/// What a record takes beyond its payload.
pub const FRAMING_BYTES: usize = PAYLOAD_OFFSET + 1;
/// The byte after every payload.
pub const END_MARK: u8 = b'B';
/// A payload is at least its header.
pub const PAYLOAD_BYTES_MIN: usize = 32;
/// The shortest record there can be.
pub const RECORD_BYTES_MIN: usize = PAYLOAD_BYTES_MIN + FRAMING_BYTES;

/// Appends the header of a log file.
pub fn append_header(out: &mut Vec<u8>) {
    FileHeader { magic: LOG_MAGIC, version: FORMAT_VERSION, dbid: LOG_DBID }.write(out);
}

/// Appends one record around what `write_payload` appends. Needs nothing but room in `out`.
pub fn append_record(out: &mut Vec<u8>, write_payload: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; PAYLOAD_OFFSET]);
    write_payload(out);
    let payload = &out[start + PAYLOAD_OFFSET..];
    assert!(PAYLOAD_BYTES_MIN <= payload.len(), "a payload begins with a header");
    let length = i32::try_from(payload.len()).expect("a payload stays below 2 GiB");
    let checksum = checksum(payload);
    out[start..start + LENGTH_OFFSET].copy_from_slice(&checksum.to_be_bytes());
    out[start + LENGTH_OFFSET..start + PAYLOAD_OFFSET].copy_from_slice(&length.to_be_bytes());
    out.push(END_MARK);
}

/// Appends the record of one transaction.
pub fn append_txn(
    out: &mut Vec<u8>,
    header: &TxnHeader,
    txn: &Txn<'_>,
    digest: Option<&TxnDigest>,
) {
    debug_assert_eq!(header.kind, txn.kind(), "a header names its body's kind");
    append_record(out, |out| {
        header.write(out);
        txn.write(out);
        if let Some(digest) = digest {
            digest.write(out);
        }
    });
}

/// Adler-32, as the eight bytes of a record or a snapshot's seal hold it.
#[must_use]
pub fn checksum(payload: &[u8]) -> u64 {
    u64::from(simd_adler32::adler32(&payload))
}

/// The payload of one whole record.
#[must_use]
pub fn payload_of(record: &[u8]) -> &[u8] {
    &record[PAYLOAD_OFFSET..record.len() - 1]
}

/// The checksum of the record that `framed` begins with: Adler-32 fills four of its eight bytes.
///
/// # Panics
/// If `framed` ends before it.
#[must_use]
pub fn first_record_checksum(framed: &[u8]) -> u32 {
    let checksum = framed.get(4..LENGTH_OFFSET).expect("a record begins with its checksum");
    u32::from_be_bytes(checksum.try_into().expect("four bytes"))
}

/// The length of the first record in `framed`, which must hold whole records of ours.
///
/// # Panics
/// If it does not: such bytes never came out of `append_record`.
#[must_use]
pub fn first_record_bytes(framed: &[u8]) -> usize {
    let length = framed.get(LENGTH_OFFSET..PAYLOAD_OFFSET).expect("a record has a length");
    let length = u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
    let bytes = length + FRAMING_BYTES;
    assert_eq!(framed.get(bytes - 1), Some(&END_MARK), "a record ends with its mark");
    bytes
}

/// How long the file must be before a record is appended at `position`, by ZooKeeper's rule: the
/// file grows when less than a page is left, and then to a multiple of `preallocate_bytes` (or by
/// as much, from its first 16 bytes). Zero never grows it (`FilePadding.calculateFileSizeWithPadding`).
#[must_use]
pub fn padded_bytes(position: u64, size: u64, preallocate_bytes: u64) -> u64 {
    const PAGE_BYTES: u64 = 4096;
    if preallocate_bytes == 0 || position + PAGE_BYTES < size {
        size
    } else if size < position {
        let grown = position + preallocate_bytes;
        grown - grown % preallocate_bytes
    } else {
        size + preallocate_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::op::code;

    #[test]
    fn a_record_is_checksum_length_payload_and_mark() {
        let header =
            TxnHeader { client_id: 1, cxid: 2, zxid: 3, time: 4, kind: code::CREATE_SESSION };
        let mut out = Vec::new();
        append_header(&mut out);
        append_txn(&mut out, &header, &Txn::CreateSession { timeout_ms: 5 }, None);
        assert_eq!(&out[..HEADER_BYTES], b"ZKLG\0\0\0\x02\0\0\0\0\0\0\0\0");
        let record = &out[HEADER_BYTES..];
        assert_eq!(record.len(), 36 + FRAMING_BYTES);
        assert_eq!(record[..8], checksum(&record[12..48]).to_be_bytes());
        assert_eq!(record[8..12], [0, 0, 0, 36]);
        assert_eq!(record[48], END_MARK);
        assert_eq!(first_record_bytes(record), record.len());
    }

    #[test]
    fn a_fresh_default_file_is_16_bytes_and_64_mib_long() {
        let preallocate = 64 << 20;
        assert_eq!(padded_bytes(16, 16, preallocate), 16 + preallocate);
        assert_eq!(padded_bytes(5000, 16 + preallocate, preallocate), 16 + preallocate);
        assert_eq!(padded_bytes(preallocate, 16 + preallocate, preallocate), 16 + 2 * preallocate);
        assert_eq!(padded_bytes(3 * preallocate + 5, 16, preallocate), 4 * preallocate);
        assert_eq!(padded_bytes(16, 16, 0), 16);
    }
}
