//! One log file being written: what the back ends differ in.
//!
//! | | mapped (`map.rs`) | direct (`zeroed.rs`) |
//! |---|---|---|
//! | a record is appended | to the file, through its map | to memory |
//! | a round | fdatasync | a write past the page cache that returns when it is durable |
//! | room ahead | allocated | zeroed |
//! | without room | grows, at once | a round of its own makes it |
//! | after a SIGKILL the file has | what was appended | what was durable or on its way |

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::disk::LogError;
use super::map::Map;
use super::sys;
use super::zeroed::{self, CHUNK_BYTES, ZeroedFile};
use crate::storage::blocks::{Blocks, Extent};
use crate::storage::segment::Segment;

/// How a log's bytes reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BackEnd {
    /// Stored into a mapped file, and synced.
    Mapped,
    /// Written past the page cache, durable when written.
    Direct,
}

/// How far ahead of a direct log zeros are written.
const ZEROED_BYTES: u64 = 16 << 20;
/// How much of it before the log has its name: a start waits for this. Never less at a time.
const ZEROED_FIRST_BYTES: u64 = CHUNK_BYTES as u64;

pub(crate) enum Book {
    Mapped {
        segment: Segment<Map>,
        /// Set once it is not to grow any more. Locked while it grows.
        has_ended: Arc<Mutex<bool>>,
    },
    Direct {
        blocks: Blocks,
        file: Arc<ZeroedFile>,
    },
}

/// Room to be made in a log, by whoever may wait for the disk.
pub(crate) enum Growth {
    Mapped { file: Arc<File>, len: u64, has_ended: Arc<Mutex<bool>> },
    Direct { file: Arc<ZeroedFile>, len: u64, ready: u64 },
}

impl Book {
    /// Makes a log of `step_bytes`, its header durable.
    pub(crate) fn create(
        back_end: BackEnd,
        path: &Path,
        step_bytes: u64,
    ) -> Result<Book, LogError> {
        let space = |source| LogError::Space { path: path.to_path_buf(), source };
        let sync = |source| LogError::Sync { path: path.to_path_buf(), source };
        match back_end {
            BackEnd::Mapped => {
                let map = Map::create(path, step_bytes).map_err(space)?;
                let file = Arc::clone(map.file());
                let segment = Segment::create(map);
                file.sync_all().map_err(sync)?;
                Ok(Book::Mapped { segment, has_ended: Arc::default() })
            }
            BackEnd::Direct => {
                let ready = step_bytes.min(ZEROED_FIRST_BYTES);
                let file = ZeroedFile::create(path, step_bytes, ready).map_err(space)?;
                let mut blocks = Blocks::create();
                let header = blocks.take();
                write(file.file(), &header).map_err(space)?;
                blocks.give_back(header);
                file.file().sync_all().map_err(sync)?;
                Ok(Book::Direct { blocks, file: Arc::new(file) })
            }
        }
    }

    pub(crate) fn back_end(&self) -> BackEnd {
        match self {
            Book::Mapped { .. } => BackEnd::Mapped,
            Book::Direct { .. } => BackEnd::Direct,
        }
    }

    /// The offset after the last record.
    pub(crate) fn end(&self) -> u64 {
        match self {
            Book::Mapped { segment, .. } => segment.end() as u64,
            Book::Direct { blocks, .. } => blocks.end(),
        }
    }

    /// Up to where it can be written to.
    pub(crate) fn room_end(&self) -> u64 {
        match self {
            Book::Mapped { segment, .. } => segment.bytes().len() as u64,
            Book::Direct { file, .. } => file.ready(),
        }
    }

    /// What a round syncs or writes. A store through the map dirties the inode's pages, and fdatasync
    /// on any descriptor of the inode writes them: measured by the kernel's count of dirty pages.
    pub(crate) fn file(&self) -> &Arc<File> {
        match self {
            Book::Mapped { segment, .. } => segment.storage().file(),
            Book::Direct { file, .. } => file.file(),
        }
    }

    /// Appends whole records.
    pub(crate) fn append(&mut self, framed: &[u8], step_bytes: u64) -> io::Result<()> {
        match self {
            Book::Mapped { segment, .. } => {
                if let Err(full) = segment.append(framed) {
                    let end = (segment.end() + full.needed) as u64;
                    let map = segment.storage_mut();
                    let missing = end.saturating_sub(map.len());
                    map.grow(map.len() + missing.div_ceil(step_bytes).max(1) * step_bytes)?;
                    let appended = segment.append(framed);
                    assert_eq!(appended, Ok(()), "a log that has grown has the room asked for");
                }
            }
            Book::Direct { blocks, .. } => blocks.append(framed),
        }
        Ok(())
    }

    /// Room that will soon be needed, if it is not there.
    pub(crate) fn growth_ahead(&self, step_bytes: u64) -> Option<Growth> {
        let (len, end) = (self.room_end(), self.end());
        match self {
            Book::Mapped { has_ended, .. } => {
                let is_short = len.saturating_sub(end) < step_bytes / 4;
                let (file, len) = (Arc::clone(self.file()), len + step_bytes);
                let has_ended = Arc::clone(has_ended);
                is_short.then_some(Growth::Mapped { file, len, has_ended })
            }
            Book::Direct { file, .. } => {
                let ahead = ZEROED_BYTES.min(step_bytes).max(ZEROED_FIRST_BYTES);
                let is_short = len.saturating_sub(end) < ahead / 2;
                let ready = (end + ahead).next_multiple_of(ZEROED_FIRST_BYTES);
                is_short.then(|| growth_to(file, ready, step_bytes))
            }
        }
    }

    /// Room that the next round needs and that is not there. A mapped log has it.
    pub(crate) fn growth_now(&self, step_bytes: u64) -> Option<Growth> {
        match self {
            Book::Direct { blocks, file } if file.ready() < blocks.file_bytes() => {
                Some(growth_to(file, blocks.file_bytes(), step_bytes))
            }
            _ => None,
        }
    }

    /// What a round has to write; nothing where it only syncs.
    pub(crate) fn take(&mut self) -> Option<Extent> {
        match self {
            Book::Mapped { .. } => None,
            Book::Direct { blocks, .. } => Some(blocks.take()),
        }
    }

    /// Nothing more will be appended: the file may be cut.
    pub(crate) fn into_file(self) -> Arc<File> {
        match self {
            Book::Mapped { segment, has_ended } => {
                *has_ended.lock() = true;
                Arc::clone(segment.storage().file())
            }
            Book::Direct { blocks, file } => {
                assert!(blocks.is_written(), "a log ends behind its last record");
                file.end()
            }
        }
    }

    /// What was taken is written.
    pub(crate) fn give_back(&mut self, extent: Extent) {
        if let Book::Direct { blocks, .. } = self {
            blocks.give_back(extent);
        }
    }
}

impl Growth {
    /// Makes the room, unless the log has ended.
    pub(crate) fn run(&self) -> io::Result<()> {
        match self {
            Growth::Mapped { file, len, has_ended } => {
                let has_ended = has_ended.lock();
                if *has_ended { Ok(()) } else { sys::allocate(file, *len) }
            }
            Growth::Direct { file, len, ready } => file.grow(*len, *ready),
        }
    }
}

fn growth_to(file: &Arc<ZeroedFile>, ready: u64, step_bytes: u64) -> Growth {
    let (file, len) = (Arc::clone(file), ready.next_multiple_of(step_bytes));
    Growth::Direct { file, len, ready }
}

/// Writes an extent, waiting for the disk.
pub(crate) fn write(file: &File, extent: &Extent) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, extent.bytes(), extent.offset())
}

/// Whether a log could not be made because the file system cannot be written to directly.
pub(crate) fn is_unsupported(error: &LogError) -> bool {
    matches!(error, LogError::Space { source, .. } if zeroed::is_unsupported(source))
}
