//! How far the log is known to be durable: what tells damage from a torn tail.
//!
//! A crash leaves broken bytes behind the last sync, and they may be dropped; broken bytes before
//! it are damage, and dropping them would take back what was acknowledged. The log's own format
//! has no place for the border, so it is kept beside it, outside of `version-2`, whose names
//! ZooKeeper reads.
//!
//! ```text
//! file = slot at 0, slot at 4096, zero elsewhere                           8192 bytes
//! slot = "RKMARK" 0 1, u64 sequence, i64 sealed since, i64 log, u64 offset, i64 zxid, u32 CRC-32
//! ```
//!
//! Sequence `n` goes to slot `n % 2`, and the newest slot that is whole counts: a torn write
//! leaves the one before, which is a lower bound too. A watermark is never ahead of what is
//! durable, and being behind costs only precision.

use crate::types::Zxid;

/// The file's name, beside `version-2` in the directory for logs.
pub const WATERMARK_NAME: &str = "ringkeeper.watermark";
/// How long the file is.
pub const WATERMARK_FILE_BYTES: usize = 2 * SLOT_DISTANCE;
/// How much of a slot is written.
pub const SLOT_BYTES: usize = 52;

/// A page apart, so that no torn page spoils both.
const SLOT_DISTANCE: usize = 4096;
const MAGIC: [u8; 8] = *b"RKMARK\0\x01";
const CHECKED_BYTES: usize = SLOT_BYTES - 4;

/// Everything up to here is on stable storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermark {
    /// Logs that begin at or after this and before `log` were sealed by us: cut to end with their
    /// last record, and synced, before their successor was created.
    pub sealed_since: Zxid,
    /// The log being written: the zxid in its name.
    pub log: Zxid,
    /// The end of its last synced record.
    pub offset: u64,
    /// That record's zxid, or the last one before this log if it has no synced record yet.
    pub zxid: Zxid,
}

/// A file that holds something, and no whole slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither slot of the watermark is whole")]
pub struct WatermarkDamaged;

impl Watermark {
    /// The slot's bytes for the `sequence`th write, and the offset in the file where they go.
    #[must_use]
    pub fn encode(&self, sequence: u64) -> (u64, [u8; SLOT_BYTES]) {
        let mut slot = [0; SLOT_BYTES];
        let fields = [
            MAGIC,
            sequence.to_be_bytes(),
            self.sealed_since.0.to_be_bytes(),
            self.log.0.to_be_bytes(),
            self.offset.to_be_bytes(),
            self.zxid.0.to_be_bytes(),
        ];
        for (place, field) in slot.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field);
        }
        let checksum = crc32fast::hash(&slot[..CHECKED_BYTES]);
        slot[CHECKED_BYTES..].copy_from_slice(&checksum.to_be_bytes());
        ((sequence % 2) * SLOT_DISTANCE as u64, slot)
    }

    /// The newest whole slot of a file, with its sequence: the next write takes the one after.
    /// `None` from a file that was never written: absent, short or all zero.
    pub fn decode(file: &[u8]) -> Result<Option<(u64, Watermark)>, WatermarkDamaged> {
        let slot = |index: u64| {
            let start = index as usize * SLOT_DISTANCE;
            let slot = file.get(start..start + SLOT_BYTES)?;
            Watermark::decode_slot(slot).filter(|(sequence, _)| sequence % 2 == index)
        };
        let newest = [slot(0), slot(1)].into_iter().flatten().max_by_key(|(sequence, _)| *sequence);
        match newest {
            Some(newest) => Ok(Some(newest)),
            None if file.iter().all(|&byte| byte == 0) => Ok(None),
            None => Err(WatermarkDamaged),
        }
    }

    fn decode_slot(slot: &[u8]) -> Option<(u64, Watermark)> {
        let (checked, checksum) = slot.split_at(CHECKED_BYTES);
        if checksum != crc32fast::hash(checked).to_be_bytes() {
            return None;
        }
        let mut fields = [[0; 8]; CHECKED_BYTES / 8];
        for (field, bytes) in fields.iter_mut().zip(checked.chunks_exact(8)) {
            field.copy_from_slice(bytes);
        }
        let [magic, sequence, sealed_since, log, offset, zxid] = fields;
        let watermark = Watermark {
            sealed_since: Zxid(i64::from_be_bytes(sealed_since)),
            log: Zxid(i64::from_be_bytes(log)),
            offset: u64::from_be_bytes(offset),
            zxid: Zxid(i64::from_be_bytes(zxid)),
        };
        (magic == MAGIC).then_some((u64::from_be_bytes(sequence), watermark))
    }
}
