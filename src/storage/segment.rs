//! One log file as a slice of bytes: a map of the file in the server, a `Vec` in tests.
//!
//! A process can be killed between any two stores, and what it had stored by then stays in the
//! page cache. ZooKeeper takes a length of zero for the end of the log but a wrong checksum for
//! damage, so a record's length is stored last, and a batch's lengths in order: any kill leaves
//! a log of whole records that both of us open.
//!
//! ```text
//! 1. of every record: checksum, payload, end mark      the first length still reads zero
//! 2. record by record: length                          each publishes one more
//! ```
//!
//! Only the compiler could undo that order. An interrupted thread has done all its stores up to
//! one instruction and none after, and whoever opens the file later sees those in the page cache,
//! so no fence of the processor is needed and a compiler fence is enough. After a power loss
//! pages are missing in any pattern; that is for `replay.rs` and the watermark.
//!
//! A segment is never reopened for appending: a process appends only to files it has created, as
//! ZooKeeper does.

use std::ops::Range;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::types::Zxid;

use super::replay::LogReader;
use super::txnlog::{self, HEADER_BYTES, LENGTH_OFFSET, PAYLOAD_OFFSET};

/// A batch that does not fit: the log must grow or roll first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{needed} bytes do not fit into the {room} that are left in the log")]
pub struct Full {
    pub needed: usize,
    pub room: usize,
}

/// One log file, being written.
#[derive(Debug)]
pub struct Segment<B> {
    bytes: B,
    /// Where the next record goes. All bytes from here on are zero.
    end: usize,
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Segment<B> {
    /// Begins a log in `bytes`, all of which must be zero: a leftover behind the last record could
    /// pass for one.
    ///
    /// # Panics
    /// If `bytes` cannot hold a header, or its first page is not zero.
    pub fn create(mut bytes: B) -> Segment<B> {
        let first_page = &bytes.as_ref()[..bytes.as_ref().len().min(4096)];
        assert!(first_page.iter().all(|&byte| byte == 0), "a fresh log is all zero");
        let mut header = Vec::with_capacity(HEADER_BYTES);
        txnlog::append_header(&mut header);
        bytes.as_mut()[..HEADER_BYTES].copy_from_slice(&header);
        Segment { bytes, end: HEADER_BYTES }
    }

    /// How many bytes of records still fit.
    #[must_use]
    pub fn room(&self) -> usize {
        self.bytes.as_ref().len() - self.end
    }

    /// The offset after the last record: what a watermark names once it is synced.
    #[must_use]
    pub fn end(&self) -> usize {
        self.end
    }

    /// Appends the records in `framed` (as `txnlog::append_record` made them), all or none.
    ///
    /// # Panics
    /// If `framed` is not a sequence of whole records.
    pub fn append(&mut self, framed: &[u8]) -> Result<(), Full> {
        if self.room() < framed.len() {
            return Err(Full { needed: framed.len(), room: self.room() });
        }
        let target = &mut self.bytes.as_mut()[self.end..self.end + framed.len()];
        each_store(framed, |piece| {
            target[piece.clone()].copy_from_slice(&framed[piece]);
            compiler_fence(Ordering::SeqCst);
        });
        self.end += framed.len();
        Ok(())
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// The whole of what was handed in.
    #[must_use]
    pub fn storage(&self) -> &B {
        &self.bytes
    }

    /// The same, to grow it.
    pub fn storage_mut(&mut self) -> &mut B {
        &mut self.bytes
    }

    /// Replaces the slice by a longer one of the same file, as after growing it.
    ///
    /// # Panics
    /// If it is shorter than what has been written.
    pub fn remap(&mut self, bytes: B) {
        assert!(self.end <= bytes.as_ref().len(), "a log never shrinks below its end");
        self.bytes = bytes;
    }
}

/// The stores that append `framed`, in their order, as ranges of its bytes: of every record all but
/// its length, then the lengths, first to last.
///
/// # Panics
/// If `framed` is not a sequence of whole records.
pub fn each_store(framed: &[u8], mut store: impl FnMut(Range<usize>)) {
    for record in records(framed) {
        store(record.start..record.start + LENGTH_OFFSET);
        store(record.start + PAYLOAD_OFFSET..record.end);
    }
    for record in records(framed) {
        store(record.start + LENGTH_OFFSET..record.start + PAYLOAD_OFFSET);
    }
}

/// Where each record of `framed` is.
pub fn records(framed: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = framed.get(start..).filter(|rest| !rest.is_empty())?;
        let record = start..start + txnlog::first_record_bytes(rest);
        start = record.end;
        Some(record)
    })
}

/// Where to cut a log so that it ends with the last transaction up to `zxid`: the end of that
/// record, or of the header if there is none. `None` if what is before the cut cannot be trusted:
/// the log does not read up to there.
///
/// ZooKeeper's own truncation keeps one transaction more when `zxid` is not in the log
/// (`FileTxnLog.truncate`); that is a bug, and not repeated.
#[must_use]
pub fn cut_after(log: &[u8], zxid: Zxid) -> Option<usize> {
    let mut reader = LogReader::new(log)?;
    let mut cut = HEADER_BYTES;
    for record in &mut reader {
        if zxid < record.zxid() {
            return Some(cut);
        }
        cut = record.end();
    }
    reader.stop().is_some_and(|stop| stop.cause.is_end()).then_some(cut)
}

#[cfg(test)]
mod tests {
    use super::super::damage::{empty_log, history};
    use super::*;

    fn zxids(log: &[u8]) -> Vec<i64> {
        let reader = LogReader::new(log).unwrap();
        reader.map(|record| record.header.zxid).collect()
    }

    fn framed(zxids: std::ops::RangeInclusive<i64>) -> Vec<u8> {
        history(zxids)[HEADER_BYTES..].to_vec()
    }

    #[test]
    fn a_segment_holds_the_bytes_of_a_log() {
        let mut segment = Segment::create(vec![0; 4096]);
        segment.append(&framed(1..=1)).unwrap();
        segment.append(&framed(2..=5)).unwrap();
        let whole = history(1..=5);
        assert_eq!(segment.end(), whole.len());
        assert_eq!(segment.bytes()[..whole.len()], whole);
        assert!(segment.bytes()[whole.len()..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_batch_that_does_not_fit_changes_nothing() {
        let mut segment = Segment::create(vec![0; 512]);
        segment.append(&framed(1..=2)).unwrap();
        let (before, end) = (segment.bytes().to_vec(), segment.end());
        let batch = framed(3..=30);
        let full = Full { needed: batch.len(), room: 512 - end };
        assert_eq!(segment.append(&batch), Err(full));
        assert_eq!((segment.bytes(), segment.end()), (&before[..], end));
        let mut longer = before;
        longer.resize(4096, 0);
        segment.remap(longer);
        segment.append(&batch).unwrap();
        assert_eq!(zxids(segment.bytes()), Vec::from_iter(1..=30));
    }

    #[test]
    fn a_record_is_not_there_until_its_length_is() {
        let batch = framed(1..=3);
        let mut log = empty_log();
        log.resize(HEADER_BYTES + batch.len(), 0);
        let mut published = 0;
        each_store(&batch, |piece| {
            published += i64::from(piece.len() == PAYLOAD_OFFSET - LENGTH_OFFSET);
            log[HEADER_BYTES..][piece.clone()].copy_from_slice(&batch[piece]);
            assert_eq!(zxids(&log), Vec::from_iter(1..=published));
        });
        assert_eq!(published, 3);
        assert_eq!(log[HEADER_BYTES..], batch);
    }

    #[test]
    fn a_log_is_cut_after_the_last_transaction_that_stays() {
        // 1, 2, 5, 6: as after a change of epoch.
        let log = [history(1..=2), framed(5..=6), vec![0; 100]].concat();
        let kept = |zxid| {
            let cut = cut_after(&log, Zxid(zxid)).unwrap();
            zxids(&log[..cut])
        };
        assert!(kept(0).is_empty());
        assert_eq!(kept(2), [1, 2]);
        assert_eq!(kept(3), [1, 2]);
        assert_eq!(kept(6), [1, 2, 5, 6]);
        assert_eq!(kept(9), [1, 2, 5, 6]);
    }

    #[test]
    fn a_log_that_breaks_off_before_the_cut_has_none() {
        let mut log = history(1..=5);
        let end = log.len();
        log[end - 1] = 0;
        assert!(cut_after(&log, Zxid(3)).is_some());
        assert_eq!(cut_after(&log, Zxid(4)), None);
        assert_eq!(cut_after(b"ZKSN", Zxid(4)), None);
    }
}
