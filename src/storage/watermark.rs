//! How far the log is known to be durable: what tells damage from a torn tail.
//!
//! A crash leaves broken bytes behind the last sync, and they may be dropped; broken bytes before
//! it are damage, and dropping them would take back what was acknowledged. The log's own format
//! has no place for the border, so it is kept beside it, outside of `version-2`, whose names
//! ZooKeeper reads.
//!
//! ```text
//! file = two durable slots at 0 and 4096, two cached slots at 8192 and 12288, zero elsewhere
//!                                                                         16384 bytes
//! slot = "RKMARK" 0 1, u64 sequence, i64 log, u64 offset, i64 zxid, i64 epoch ends[8], u32 CRC-32,
//!        u32 checksum of the record of `zxid`, u32 CRC-32 of all before
//! ```
//!
//! The checksum says which record of this zxid it was: with it, the log of another server is told
//! from ours even where its records are as long. A slot without it counts all the same: it was not
//! known, an earlier version has written the slot, or a crash came between.
//!
//! The log stores into the cached slots after every sync, through a map of the file. That costs no
//! system call, and the kernel keeps it when the process is killed: after a kill the watermark
//! covers everything that was acknowledged. They are stored into while the disk gets them, which may
//! tear them. So the durable slots are written and synced a few times a second, and a power cut takes
//! the watermark back by no more than that.
//!
//! Each kind has two slots, used in turn, so that a store that is torn leaves the one before. The
//! whole slot with the highest sequence counts, whichever kind it is of. A watermark is never ahead
//! of what is durable; being behind costs only precision.

use crate::types::Zxid;

use super::txnlog::HEADER_BYTES;

/// The file's name, beside `version-2` in the directory for logs.
pub const WATERMARK_NAME: &str = "ringkeeper.watermark";
/// How long the file is.
pub const WATERMARK_FILE_BYTES: usize = SLOTS * SLOT_DISTANCE;
/// How long it was before there were copies of it.
pub const WITHOUT_COPY_BYTES: usize = CACHED * SLOT_DISTANCE;
/// Whether a file in the data directory is no copy: one of this length was left there by a version
/// that kept none, when logs lay there.
#[must_use]
pub fn is_of_another_time(bytes: u64) -> bool {
    bytes == WITHOUT_COPY_BYTES as u64
}

/// How much of a slot is written.
pub const SLOT_BYTES: usize = PLAIN_BYTES + 8;
/// How much of it counts without the record's checksum.
const PLAIN_BYTES: usize = CHECKED_BYTES + 4;

const FIELDS: usize = 5 + EPOCH_ENDS;
/// How many epochs back a missing end is noticed. A snapshot that is newer makes it moot.
const EPOCH_ENDS: usize = 8;
const SLOTS: usize = 4;
/// The first cached slot; the durable ones come before.
const CACHED: usize = 2;
/// A page apart, so that no torn page spoils two.
const SLOT_DISTANCE: usize = 4096;
const MAGIC: [u8; 8] = *b"RKMARK\0\x01";
const CHECKED_BYTES: usize = 8 * FIELDS;

/// The offset in the watermark of a log that is not synced at all (`forceSync=no`): a crash may tear it
/// anywhere, and no bound says how far.
pub const UNBOUNDED: u64 = 0;

/// Everything up to here is on stable storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermark {
    /// The log being written: the zxid in its name. Zero: none was begun since a leader's snapshot has
    /// replaced all that there was.
    pub log: Zxid,
    /// The end of its last synced record.
    pub offset: u64,
    /// That record's zxid, or the last one before this log if it has no synced record yet.
    pub zxid: Zxid,
    /// The checksum of that record, where it is known.
    pub checksum: Option<u32>,
    /// The last zxid of each of the epochs before, newest first, and zero where there was none.
    /// Within an epoch a missing transaction leaves a gap; at its end only this tells.
    pub epoch_ends: [Zxid; EPOCH_ENDS],
}

/// A file that holds something, and no whole slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no slot of the watermark is whole")]
pub struct WatermarkDamaged;

impl Watermark {
    /// The watermark of a log that has no synced record yet, after the transaction `zxid`.
    #[must_use]
    pub fn new(log: Zxid, zxid: Zxid) -> Watermark {
        let epoch_ends = [Zxid::ZERO; EPOCH_ENDS];
        Watermark { log, offset: HEADER_BYTES as u64, zxid, checksum: None, epoch_ends }
    }

    /// The watermark of a leader's snapshot that has replaced all that there was: `zxid` is in it, and
    /// no log has been begun since. What logs of before hold counts no more.
    #[must_use]
    pub fn of_snapshot(zxid: Zxid) -> Watermark {
        Watermark { offset: UNBOUNDED, ..Watermark::new(Zxid::ZERO, zxid) }
    }

    /// The snapshot that has replaced all that there was, if no log has been begun since.
    #[must_use]
    pub fn snapshot(&self) -> Option<Zxid> {
        (self.log == Zxid::ZERO).then_some(self.zxid)
    }

    /// Notes that `zxid` was the last of its epoch: the next transaction in the log is of a later
    /// one.
    pub fn end_epoch(&mut self, zxid: Zxid) {
        self.epoch_ends.rotate_right(1);
        self.epoch_ends[0] = zxid;
    }

    /// Forgets what comes after `zxid`, which ends at `offset` in `log`: before truncating there.
    pub fn truncate(&mut self, log: Zxid, offset: u64, zxid: Zxid) {
        (self.log, self.offset, self.zxid, self.checksum) = (log, offset, zxid, None);
        self.epoch_ends.iter_mut().filter(|end| zxid < **end).for_each(|end| *end = Zxid::ZERO);
    }

    /// The end of an epoch that history skips by going from `last` to `next`.
    #[must_use]
    pub fn skipped_end(&self, last: Zxid, next: Zxid) -> Option<Zxid> {
        self.epoch_ends.iter().copied().find(|end| last < *end && *end < next)
    }

    /// The bytes of a slot. `sequence` is higher than that of every slot stored before.
    #[must_use]
    pub fn encode(&self, sequence: u64) -> [u8; SLOT_BYTES] {
        let mut slot = [0; SLOT_BYTES];
        let zxids = [self.zxid].into_iter().chain(self.epoch_ends);
        let fields = [MAGIC, sequence.to_be_bytes(), self.log.0.to_be_bytes()].into_iter();
        let fields = fields.chain([self.offset.to_be_bytes()]);
        let fields = fields.chain(zxids.map(|zxid| zxid.0.to_be_bytes()));
        for (place, field) in slot.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field);
        }
        let crc = crc32fast::hash(&slot[..CHECKED_BYTES]);
        slot[CHECKED_BYTES..PLAIN_BYTES].copy_from_slice(&crc.to_be_bytes());
        if let Some(checksum) = self.checksum {
            let end = PLAIN_BYTES + 4;
            slot[PLAIN_BYTES..end].copy_from_slice(&checksum.to_be_bytes());
            let crc = crc32fast::hash(&slot[..end]);
            slot[end..].copy_from_slice(&crc.to_be_bytes());
        }
        slot
    }

    /// The newest whole slot of a file, with its sequence. `None` from a file that was never
    /// written: absent, short or zero where durable slots are.
    pub fn decode(file: &[u8]) -> Result<Option<(u64, Watermark)>, WatermarkDamaged> {
        let slots = (0..SLOTS).filter_map(|index| slot_at(file, index));
        match slots.max_by_key(|(sequence, _)| *sequence) {
            Some(newest) => Ok(Some(newest)),
            // Nothing was ever durable here: a copy that a power cut found before it had its first
            // durable slot, and in the middle of a cached one.
            None if file.iter().take(CACHED * SLOT_DISTANCE).all(|&byte| byte == 0) => Ok(None),
            None => Err(WatermarkDamaged),
        }
    }

    fn decode_slot(slot: &[u8]) -> Option<(u64, Watermark)> {
        let (checked, crc) = slot.get(..PLAIN_BYTES)?.split_at(CHECKED_BYTES);
        if crc != crc32fast::hash(checked).to_be_bytes() {
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
            checksum: decode_checksum(slot),
            epoch_ends: epoch_ends.map(|end| Zxid(i64::from_be_bytes(end))),
        };
        (magic == MAGIC).then_some((u64::from_be_bytes(sequence), watermark))
    }
}

/// The checksum behind a slot that is whole, if it is of that slot.
fn decode_checksum(slot: &[u8]) -> Option<u32> {
    let (checked, crc) = slot.get(..SLOT_BYTES)?.split_at(PLAIN_BYTES + 4);
    let checksum = checked.last_chunk().expect("four bytes behind a slot");
    (crc == crc32fast::hash(checked).to_be_bytes()).then(|| u32::from_be_bytes(*checksum))
}

fn slot_at(file: &[u8], index: usize) -> Option<(u64, Watermark)> {
    let slot = file.get(index * SLOT_DISTANCE..)?;
    Watermark::decode_slot(&slot[..slot.len().min(SLOT_BYTES)])
}

/// The offset of the cached slot that takes this sequence.
#[must_use]
pub fn cached_offset(sequence: u64) -> u64 {
    slot_offset(CACHED + usize::from(!sequence.is_multiple_of(2)))
}

fn slot_offset(index: usize) -> u64 {
    (index * SLOT_DISTANCE) as u64
}

/// Which of the durable slots the next store goes to: the one that is older or not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DurableSlots {
    next: usize,
}

impl DurableSlots {
    /// Goes on with a file that holds these bytes.
    #[must_use]
    pub fn of(file: &[u8]) -> DurableSlots {
        let [first, second] =
            [0, 1].map(|index| slot_at(file, index).map(|(sequence, _)| sequence));
        DurableSlots { next: usize::from(second < first) }
    }

    /// The newest sequence in the durable slots of a file that holds these bytes.
    #[must_use]
    pub fn newest(file: &[u8]) -> u64 {
        let sequences = (0..CACHED).filter_map(|index| slot_at(file, index));
        sequences.map(|(sequence, _)| sequence).max().unwrap_or(0)
    }

    /// The offset of the slot to be written.
    #[must_use]
    pub fn offset(&self) -> u64 {
        slot_offset(self.next)
    }

    /// The slot is written and synced: the next store goes to the other one. After a store that
    /// failed it goes to the same one again.
    pub fn on_synced(&mut self) {
        self.next = 1 - self.next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watermark(zxid: i64) -> Watermark {
        let mut watermark = Watermark::new(Zxid(5), Zxid(zxid));
        watermark.offset = 100 * zxid as u64;
        watermark.checksum = Some(7 * zxid as u32);
        watermark.end_epoch(Zxid(3));
        watermark
    }

    fn store(file: &mut [u8], offset: u64, sequence: u64) {
        let slot = watermark(sequence as i64).encode(sequence);
        file[offset as usize..][..SLOT_BYTES].copy_from_slice(&slot);
    }

    #[test]
    fn the_newest_whole_slot_counts() {
        let mut file = vec![0; WATERMARK_FILE_BYTES];
        assert_eq!(Watermark::decode(&[]), Ok(None));
        assert_eq!(Watermark::decode(&file), Ok(None));
        for sequence in 1..10 {
            let mut durable = DurableSlots::of(&file);
            let before = durable;
            let offset = match sequence % 3 {
                0 => durable.offset(),
                _ => cached_offset(sequence),
            };
            store(&mut file, offset, sequence);
            if sequence % 3 == 0 {
                durable.on_synced();
                assert_ne!(durable, before);
            }
            assert_eq!(DurableSlots::of(&file), durable, "after {sequence}");
            let newest = Some((sequence, watermark(sequence as i64)));
            assert_eq!(Watermark::decode(&file), Ok(newest));
        }
    }

    #[test]
    fn a_torn_or_damaged_slot_leaves_the_one_before() {
        for [older, newer] in [[0, SLOT_DISTANCE], [2 * SLOT_DISTANCE, 3 * SLOT_DISTANCE]] {
            let mut file = vec![0; WATERMARK_FILE_BYTES];
            store(&mut file, older as u64, 6);
            let before = file.clone();
            store(&mut file, newer as u64, 7);
            for torn in 0..SLOT_BYTES {
                let mut image = file.clone();
                image[newer + torn..].copy_from_slice(&before[newer + torn..]);
                // Without its checksum a slot still counts.
                let plain = Watermark { checksum: None, ..watermark(7) };
                let is_plain = PLAIN_BYTES <= torn;
                let expected = Some(if is_plain { (7, plain) } else { (6, watermark(6)) });
                assert_eq!(Watermark::decode(&image), Ok(expected), "torn at {torn}");
                for bit in 0..8 {
                    let mut image = file.clone();
                    image[newer + torn] ^= 1 << bit;
                    assert_eq!(Watermark::decode(&image), Ok(expected), "bit {bit} of {torn}");
                }
            }
            file[older] = 0;
            file[newer] = 0;
            let neither = if older == 0 { Err(WatermarkDamaged) } else { Ok(None) };
            assert_eq!(Watermark::decode(&file), neither);
            assert_eq!(Watermark::decode(&file[..older + 60]), neither);
        }
    }

    /// An earlier version writes and reads slots without the checksum of a record.
    #[test]
    fn a_slot_of_an_earlier_version_is_one_without_a_checksum() {
        let mut file = vec![0; WATERMARK_FILE_BYTES];
        store(&mut file, 0, 7);
        file[..PLAIN_BYTES].copy_from_slice(&watermark(8).encode(8)[..PLAIN_BYTES]);
        let plain = Watermark { checksum: None, ..watermark(8) };
        assert_eq!(Watermark::decode(&file), Ok(Some((8, plain))));
        assert_eq!(Watermark::decode(&file[..PLAIN_BYTES]), Ok(Some((8, plain))));
        file[..SLOT_BYTES].copy_from_slice(&plain.encode(9));
        assert_eq!(Watermark::decode(&file), Ok(Some((9, plain))));
    }

    #[test]
    fn torn_cached_slots_leave_the_durable_ones() {
        let mut file = vec![0; WATERMARK_FILE_BYTES];
        let durable = DurableSlots::of(&file);
        store(&mut file, durable.offset(), 5);
        for sequence in [6, 7] {
            store(&mut file, cached_offset(sequence), sequence);
            file[cached_offset(sequence) as usize + 50] ^= 4;
        }
        assert_eq!(Watermark::decode(&file), Ok(Some((5, watermark(5)))));
        // Before there was a durable one, they say nothing; a damaged one is damage.
        file[..CACHED * SLOT_DISTANCE].fill(0);
        assert_eq!(Watermark::decode(&file), Ok(None));
        file[SLOT_DISTANCE] = 1;
        assert_eq!(Watermark::decode(&file), Err(WatermarkDamaged));
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
