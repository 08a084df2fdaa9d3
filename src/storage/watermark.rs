//! How far the log is known to be durable: what tells damage from a torn tail.
//!
//! A crash leaves broken bytes behind the last sync, and they may be dropped; broken bytes before
//! it are damage, and dropping them would take back what was acknowledged. The log's own format
//! has no place for the border, so it is kept beside it, outside of `version-2`, whose names
//! ZooKeeper reads.
//!
//! ```text
//! file = slot at 0, slot at 4096, zero elsewhere                           8192 bytes
//! slot = "RKMARK" 0 1, u64 sequence, i64 log, u64 offset, i64 zxid, i64 epoch ends[8], u32 CRC-32
//! ```
//!
//! Sequence `n` goes to slot `n % 2`, and the newest slot that is whole counts: a torn write
//! leaves the one before, which is a lower bound too. A watermark is never ahead of what is
//! durable, and being behind costs only precision.

use crate::types::Zxid;

use super::txnlog::HEADER_BYTES;

/// The file's name, beside `version-2` in the directory for logs.
pub const WATERMARK_NAME: &str = "ringkeeper.watermark";
/// How long the file is.
pub const WATERMARK_FILE_BYTES: usize = 2 * SLOT_DISTANCE;
/// How much of a slot is written.
pub const SLOT_BYTES: usize = 8 * FIELDS + 4;

const FIELDS: usize = 5 + EPOCH_ENDS;
/// How many epochs back a missing end is noticed. A snapshot that is newer makes it moot.
const EPOCH_ENDS: usize = 8;
/// A page apart, so that no torn page spoils both.
const SLOT_DISTANCE: usize = 4096;
const MAGIC: [u8; 8] = *b"RKMARK\0\x01";
const CHECKED_BYTES: usize = SLOT_BYTES - 4;

/// Everything up to here is on stable storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermark {
    /// The log being written: the zxid in its name.
    pub log: Zxid,
    /// The end of its last synced record.
    pub offset: u64,
    /// That record's zxid, or the last one before this log if it has no synced record yet.
    pub zxid: Zxid,
    /// The last zxid of each of the epochs before, newest first, and zero where there was none.
    /// Within an epoch a missing transaction leaves a gap; at its end only this tells.
    pub epoch_ends: [Zxid; EPOCH_ENDS],
}

/// A file that holds something, and no whole slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither slot of the watermark is whole")]
pub struct WatermarkDamaged;

impl Watermark {
    /// The watermark of a log that has no synced record yet, after the transaction `zxid`.
    #[must_use]
    pub fn new(log: Zxid, zxid: Zxid) -> Watermark {
        let epoch_ends = [Zxid::ZERO; EPOCH_ENDS];
        Watermark { log, offset: HEADER_BYTES as u64, zxid, epoch_ends }
    }

    /// Notes that `zxid` was the last of its epoch: the next transaction in the log is of a later
    /// one.
    pub fn end_epoch(&mut self, zxid: Zxid) {
        self.epoch_ends.rotate_right(1);
        self.epoch_ends[0] = zxid;
    }

    /// Forgets what comes after `zxid`, which ends at `offset` in `log`: before truncating there.
    pub fn truncate(&mut self, log: Zxid, offset: u64, zxid: Zxid) {
        (self.log, self.offset, self.zxid) = (log, offset, zxid);
        self.epoch_ends.iter_mut().filter(|end| zxid < **end).for_each(|end| *end = Zxid::ZERO);
    }

    /// The end of an epoch that history skips by going from `last` to `next`.
    #[must_use]
    pub fn skipped_end(&self, last: Zxid, next: Zxid) -> Option<Zxid> {
        self.epoch_ends.iter().copied().find(|end| last < *end && *end < next)
    }

    /// The slot's bytes for the `sequence`th write, and the offset in the file where they go.
    #[must_use]
    pub fn encode(&self, sequence: u64) -> (u64, [u8; SLOT_BYTES]) {
        let mut slot = [0; SLOT_BYTES];
        let zxids = [self.zxid].into_iter().chain(self.epoch_ends);
        let fields = [MAGIC, sequence.to_be_bytes(), self.log.0.to_be_bytes()].into_iter();
        let fields = fields.chain([self.offset.to_be_bytes()]);
        let fields = fields.chain(zxids.map(|zxid| zxid.0.to_be_bytes()));
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
        let mut fields = [[0; 8]; FIELDS];
        for (field, bytes) in fields.iter_mut().zip(checked.chunks_exact(8)) {
            field.copy_from_slice(bytes);
        }
        let [magic, sequence, log, offset, zxid, epoch_ends @ ..] = fields;
        let watermark = Watermark {
            log: Zxid(i64::from_be_bytes(log)),
            offset: u64::from_be_bytes(offset),
            zxid: Zxid(i64::from_be_bytes(zxid)),
            epoch_ends: epoch_ends.map(|end| Zxid(i64::from_be_bytes(end))),
        };
        (magic == MAGIC).then_some((u64::from_be_bytes(sequence), watermark))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watermark(zxid: i64) -> Watermark {
        let mut watermark = Watermark::new(Zxid(5), Zxid(zxid));
        watermark.offset = 100 * zxid as u64;
        watermark.end_epoch(Zxid(3));
        watermark
    }

    fn store(file: &mut [u8], sequence: u64) {
        let (offset, slot) = watermark(sequence as i64).encode(sequence);
        file[offset as usize..][..SLOT_BYTES].copy_from_slice(&slot);
    }

    #[test]
    fn the_newest_whole_slot_counts() {
        let mut file = vec![0; WATERMARK_FILE_BYTES];
        assert_eq!(Watermark::decode(&[]), Ok(None));
        assert_eq!(Watermark::decode(&file), Ok(None));
        for sequence in 1..6 {
            store(&mut file, sequence);
            let newest = Some((sequence, watermark(sequence as i64)));
            assert_eq!(Watermark::decode(&file), Ok(newest));
        }
    }

    #[test]
    fn a_torn_or_damaged_slot_leaves_the_one_before() {
        let mut file = vec![0; WATERMARK_FILE_BYTES];
        store(&mut file, 6);
        let before = file.clone();
        store(&mut file, 7);
        for torn in 0..SLOT_BYTES {
            let mut image = file.clone();
            image[SLOT_DISTANCE + torn..].copy_from_slice(&before[SLOT_DISTANCE + torn..]);
            let expected = Some((6, watermark(6)));
            assert_eq!(Watermark::decode(&image), Ok(expected), "torn at {torn}");
            for bit in 0..8 {
                let mut image = file.clone();
                image[SLOT_DISTANCE + torn] ^= 1 << bit;
                assert_eq!(Watermark::decode(&image), Ok(expected), "bit {bit} of {torn}");
            }
        }
        file[0] = 0;
        file[SLOT_DISTANCE] = 0;
        assert_eq!(Watermark::decode(&file), Err(WatermarkDamaged));
        assert_eq!(Watermark::decode(&file[..60]), Err(WatermarkDamaged));
    }

    #[test]
    fn truncation_forgets_the_ends_it_cuts_off() {
        let mut watermark = watermark(9);
        watermark.end_epoch(Zxid(7));
        assert_eq!(watermark.skipped_end(Zxid(6), Zxid(8)), Some(Zxid(7)));
        assert_eq!(watermark.skipped_end(Zxid(7), Zxid(8)), None);
        watermark.truncate(Zxid(2), 400, Zxid(4));
        assert_eq!(watermark.skipped_end(Zxid(4), Zxid(8)), None);
        assert_eq!(watermark.skipped_end(Zxid(1), Zxid(8)), Some(Zxid(3)));
    }
}
