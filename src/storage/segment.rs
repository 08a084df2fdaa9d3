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
        let mut at = 0;
        while at < framed.len() {
            let after = at + txnlog::first_record_bytes(&framed[at..]);
            let (length, payload) = (at + LENGTH_OFFSET, at + PAYLOAD_OFFSET);
            target[at..length].copy_from_slice(&framed[at..length]);
            target[payload..after].copy_from_slice(&framed[payload..after]);
            at = after;
        }
        let mut at = 0;
        while at < framed.len() {
            compiler_fence(Ordering::SeqCst);
            let (length, payload) = (at + LENGTH_OFFSET, at + PAYLOAD_OFFSET);
            target[length..payload].copy_from_slice(&framed[length..payload]);
            at += txnlog::first_record_bytes(&framed[at..]);
        }
        compiler_fence(Ordering::SeqCst);
        self.end += framed.len();
        Ok(())
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// The whole of what was handed in, to sync, grow or close it.
    pub fn storage(&mut self) -> &mut B {
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

/// Where to cut a log so that it ends with the last transaction up to `zxid`: the end of that
/// record, or of the header if there is none. `None` if what is before the cut cannot be trusted:
/// the log does not read up to there.
///
/// ZooKeeper's own truncation keeps one transaction more when `zxid` is not in the log
/// (`FileTxnLog.truncate`); that is a bug, and not repeated.
#[must_use]
pub fn cut_after(log: &[u8], zxid: Zxid, record_bytes_max: usize) -> Option<usize> {
    let mut reader = LogReader::new(log, record_bytes_max)?;
    let mut cut = HEADER_BYTES;
    for record in &mut reader {
        if zxid < record.zxid() {
            return Some(cut);
        }
        cut = record.end();
    }
    reader.stop().is_some_and(|stop| stop.cause.is_end()).then_some(cut)
}
