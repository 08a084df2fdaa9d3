//! The end of one log file as whole blocks, for a disk that is written to directly.
//!
//! Writes past the page cache are of whole blocks, and a log's records end anywhere. So the last
//! block is written again with every batch that adds to it: the same bytes, and more behind them.
//!
//! ```text
//! on disk    |########|########|####....|........        all behind the end is zero
//! extent                       |########|######..|       the next write: begins with that block
//! on disk    |########|########|########|######..|
//! ```
//!
//! A write that a crash tears leaves some of its blocks as they were: the first with what it had,
//! the others zero. So nothing that was durable is lost, and what is behind it reads as a torn
//! tail (`replay.rs`). Only one extent may be on its way at a time: of two that share a block the
//! older might come last. An extent is no longer than `UNSYNCED_BYTES_MAX`, so that a restart knows
//! how far behind the last sync a crash can have torn the log.

use std::collections::VecDeque;

use bytemuck::{Pod, Zeroable};

use super::{UNSYNCED_BYTES_MAX, txnlog};

/// What disks write at once, and where such writes begin.
pub const BLOCK_BYTES: usize = 4096;
/// The longest extent.
const EXTENT_BLOCKS_MAX: usize = UNSYNCED_BYTES_MAX as usize / BLOCK_BYTES;

/// Bytes that begin where direct writes may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(4096))]
pub struct Block([u8; BLOCK_BYTES]);

impl Block {
    pub const ZERO: Block = Block([0; BLOCK_BYTES]);
}

/// Blocks that go to one place of a file, together.
#[derive(Debug)]
#[must_use = "what is taken must be written"]
pub struct Extent {
    /// Where in the file; a multiple of `BLOCK_BYTES`.
    offset: u64,
    blocks: Vec<Block>,
    /// Up to here the log is durable once this is written.
    end: u64,
}

impl Extent {
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.blocks)
    }

    /// Up to here the log is durable once this is written: the end of what was appended, or of the
    /// extent.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }
}

/// One log file, being written: what of it is not on the disk yet.
#[derive(Debug)]
pub struct Blocks {
    /// Where in the file the first chunk begins; a multiple of `BLOCK_BYTES`.
    start: u64,
    /// What makes the next extents, one each: the block in which the last record ends that was
    /// taken, and all behind it. Zero from `end` on.
    chunks: VecDeque<Vec<Block>>,
    /// Where in the file the last chunk ends.
    chunks_end: u64,
    /// Where in the file the next record goes.
    end: u64,
    /// Up to where it was taken.
    taken: u64,
    /// Whether an extent is on its way.
    is_writing: bool,
    /// The memory of an extent that was written.
    spare: Vec<Block>,
}

impl Blocks {
    /// Begins a log. Its header is the first thing to be written.
    #[must_use]
    pub fn create() -> Blocks {
        let mut header = Vec::with_capacity(txnlog::HEADER_BYTES);
        txnlog::append_header(&mut header);
        let mut blocks = Blocks {
            start: 0,
            chunks: VecDeque::new(),
            chunks_end: 0,
            end: 0,
            taken: 0,
            is_writing: false,
            spare: Vec::new(),
        };
        blocks.append(&header);
        blocks
    }

    /// The offset after the last record: what a watermark names once it is synced.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Whether all that was appended was taken, and given back.
    #[must_use]
    pub fn is_written(&self) -> bool {
        self.taken == self.end && !self.is_writing
    }

    /// How long the file must be for the next extent.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.start + bytes_of(self.chunks.front().map_or(0, Vec::len))
    }

    /// Appends whole records (as `txnlog::append_record` made them).
    pub fn append(&mut self, mut framed: &[u8]) {
        while !framed.is_empty() {
            let used = usize::try_from(self.end % bytes_of(1)).expect("less than a block");
            if self.chunks_end == self.end {
                self.add_block(Block::ZERO);
            }
            let chunk = self.chunks.back_mut().expect("one that has room");
            let block = chunk.last_mut().expect("a chunk has a block");
            let (now, later) = framed.split_at(framed.len().min(BLOCK_BYTES - used));
            block.0[used..used + now.len()].copy_from_slice(now);
            self.end += now.len() as u64;
            framed = later;
        }
    }

    fn add_block(&mut self, block: Block) {
        match self.chunks.back_mut().filter(|chunk| chunk.len() < EXTENT_BLOCKS_MAX) {
            Some(chunk) => chunk.push(block),
            None => {
                let mut chunk = std::mem::take(&mut self.spare);
                chunk.push(block);
                self.chunks.push_back(chunk);
            }
        }
        self.chunks_end += bytes_of(1);
    }

    /// Takes what is to be written next. It must be, and be given back, before the next is taken.
    ///
    /// # Panics
    /// If there is nothing new to be written, or the last extent was not given back.
    pub fn take(&mut self) -> Extent {
        assert!(self.taken < self.end, "nothing was appended since");
        assert!(!self.is_writing, "of two extents that share a block the older might come last");
        let blocks = self.chunks.pop_front().expect("what was appended is in a chunk");
        let offset = self.start;
        self.start += bytes_of(blocks.len());
        (self.taken, self.is_writing) = (self.end.min(self.start), true);
        if self.end < self.start {
            let last = *blocks.last().expect("a chunk has a block");
            self.start -= bytes_of(1);
            self.chunks_end = self.start;
            self.add_block(last);
        }
        Extent { offset, blocks, end: self.taken }
    }

    /// An extent was written: its memory can be used again.
    pub fn give_back(&mut self, extent: Extent) {
        assert!(self.is_writing);
        self.is_writing = false;
        if self.spare.capacity() < extent.blocks.capacity() {
            self.spare = extent.blocks;
            self.spare.clear();
        }
    }
}

fn bytes_of(blocks: usize) -> u64 {
    (blocks * BLOCK_BYTES) as u64
}

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::damage::history;
    use super::super::log_name;
    use super::super::replay::{Options, replay};
    use super::super::segment::Segment;
    use super::super::txnlog::HEADER_BYTES;
    use super::super::watermark::Watermark;
    use super::*;
    use crate::types::Zxid;

    /// What a torn write leaves at least: a disk's own unit.
    const SECTOR_BYTES: usize = 512;

    fn framed(zxids: RangeInclusive<i64>) -> Vec<u8> {
        history(zxids)[HEADER_BYTES..].to_vec()
    }

    /// The sectors of an extent that `survives` says reach the disk.
    fn write(disk: &mut [u8], extent: &Extent, mut survives: impl FnMut(usize) -> bool) {
        let start = usize::try_from(extent.offset()).unwrap();
        for (index, sector) in extent.bytes().chunks(SECTOR_BYTES).enumerate() {
            if survives(index) {
                disk[start + index * SECTOR_BYTES..][..SECTOR_BYTES].copy_from_slice(sector);
            }
        }
    }

    /// The transactions that a restart finds.
    fn replayed(disk: &[u8], watermark: Watermark) -> Vec<i64> {
        let options = Options { from: Zxid::ZERO, watermark: Some(watermark) };
        let mut zxids = Vec::new();
        let logs = [(log_name(Zxid(1)), Zxid(1), disk)];
        replay(logs, options, |record| zxids.push(record.zxid().0)).unwrap();
        zxids
    }

    #[test]
    fn an_extent_begins_where_direct_writes_may() {
        let mut blocks = Blocks::create();
        for zxid in 1..200 {
            blocks.append(&framed(zxid..=zxid));
            let extent = blocks.take();
            assert_eq!(extent.offset() % bytes_of(1), 0);
            assert_eq!(extent.bytes().len() % BLOCK_BYTES, 0);
            assert_eq!(extent.bytes().as_ptr().addr() % BLOCK_BYTES, 0);
            blocks.give_back(extent);
        }
    }

    #[test]
    fn a_log_that_ends_with_a_block_goes_on_with_the_next() {
        let mut blocks = Blocks::create();
        blocks.append(&[1; BLOCK_BYTES - HEADER_BYTES]);
        let extent = blocks.take();
        assert_eq!((extent.offset(), extent.bytes().len()), (0, BLOCK_BYTES));
        blocks.give_back(extent);
        assert_eq!(blocks.file_bytes(), bytes_of(1));
        blocks.append(&[2]);
        assert_eq!((blocks.end(), blocks.file_bytes()), (bytes_of(1) + 1, bytes_of(2)));
        let extent = blocks.take();
        assert_eq!((extent.offset(), &extent.bytes()[..2]), (bytes_of(1), &[2, 0][..]));
    }

    #[test]
    fn what_is_longer_than_an_extent_is_written_in_several() {
        let record = framed(1..=1);
        let batch = record.repeat(3 * UNSYNCED_BYTES_MAX as usize / record.len());
        let mut blocks = Blocks::create();
        blocks.append(&batch);
        let mut disk = vec![0; HEADER_BYTES + batch.len() + BLOCK_BYTES];
        let mut ends = Vec::new();
        while !blocks.is_written() {
            let extent = blocks.take();
            assert!(extent.bytes().len() as u64 <= UNSYNCED_BYTES_MAX);
            write(&mut disk, &extent, |_| true);
            ends.push(extent.end());
            blocks.give_back(extent);
        }
        assert_eq!(ends, [1 << 20, 2 << 20, blocks.end()]);
        assert_eq!(disk[HEADER_BYTES..][..batch.len()], batch);
        let before = blocks.end();
        blocks.append(&record);
        let extent = blocks.take();
        assert_eq!(extent.offset(), before / bytes_of(1) * bytes_of(1));
        assert_eq!(extent.end(), blocks.end());
    }

    proptest! {
        /// However records come in batches and batches in writes, the file is the one that a map
        /// would have; and a write that a crash tears takes nothing of what was durable before.
        #[test]
        fn a_log_has_the_bytes_of_a_mapped_one_and_a_torn_write_costs_only_its_own(
            batches in vec((1_i64..60, any::<bool>(), any::<u64>()), 1..20),
        ) {
            let mut blocks = Blocks::create();
            let mut segment = Segment::create(vec![0; 256 << 10]);
            let mut disk = vec![0; 256 << 10];
            // A log has a durable header before it has a name.
            let header = blocks.take();
            write(&mut disk, &header, |_| true);
            blocks.give_back(header);
            let (mut next, mut watermark) = (1, Watermark::new(Zxid(1), Zxid(0)));
            for (index, &(count, is_written, torn)) in batches.iter().enumerate() {
                let batch = framed(next..=next + count - 1);
                blocks.append(&batch);
                segment.append(&batch).unwrap();
                next += count;
                if !is_written && index + 1 < batches.len() {
                    continue;
                }
                let extent = blocks.take();
                let mut image = disk.clone();
                write(&mut image, &extent, |sector| torn >> (sector % 64) & 1 == 1);
                let found = replayed(&image, watermark);
                prop_assert!(found.iter().copied().eq(1..=found.len() as i64), "a hole: {found:?}");
                prop_assert!(watermark.zxid.0 <= found.len() as i64);
                write(&mut disk, &extent, |_| true);
                blocks.give_back(extent);
                prop_assert_eq!(blocks.end(), segment.end() as u64);
                prop_assert_eq!(&disk[..], segment.bytes());
                (watermark.offset, watermark.zxid) = (blocks.end(), Zxid(next - 1));
                prop_assert!(replayed(&disk, watermark).into_iter().eq(1..next));
            }
        }
    }
}
