//! The file of one log while it is written: mapped (`map.rs`), or written past the page cache
//! (`zeroed.rs`). What is stored in it and when is the journal's (`storage/journal.rs`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::disk::LogError;
use super::map::Map;
use super::sys;
use super::zeroed::{self, ZeroedFile};
use crate::storage::blocks::Blocks;
use crate::storage::journal::{BackEnd, Growth, MAKING, Making, first_room};
use crate::storage::segment::Segment;

pub(crate) enum Book {
    Mapped { segment: Segment<Map>, allocated: Arc<Allocated> },
    Direct(Arc<ZeroedFile>),
}

/// How far the file of a mapped log is allocated. It grows on one thread while another stores into
/// what was there.
pub(crate) struct Allocated {
    file: Arc<File>,
    len: AtomicU64,
    /// Set once the file is cut and must not grow. Locked while it grows.
    has_ended: Mutex<bool>,
}

/// Makes room in a log, on a thread that may wait for the disk.
#[derive(Clone)]
pub(crate) enum Room {
    Mapped(Arc<Allocated>),
    Direct(Arc<ZeroedFile>),
}

impl Book {
    /// Makes a log with its first room and a durable header, in the journal's order.
    pub(crate) fn create(
        back_end: BackEnd,
        path: &Path,
        step_bytes: u64,
    ) -> Result<Book, LogError> {
        let space = |source| LogError::Space { path: path.to_path_buf(), source };
        let sync = |source| LogError::Sync { path: path.to_path_buf(), source };
        let Growth { len, ready } = first_room(back_end, step_bytes);
        let mut made = None;
        for making in MAKING {
            match (making, back_end) {
                (Making::Create, BackEnd::Mapped) => {
                    let map = Map::create(path, len).map_err(space)?;
                    let file = Arc::clone(map.file());
                    let (len, has_ended) = (AtomicU64::new(len), Mutex::new(false));
                    let allocated = Arc::new(Allocated { file, len, has_ended });
                    // Storing the header into the map is part of making the segment.
                    made = Some(Book::Mapped { segment: Segment::create(map), allocated });
                }
                (Making::Create, BackEnd::Direct) => {
                    let file = ZeroedFile::create(path, len, ready).map_err(space)?;
                    made = Some(Book::Direct(Arc::new(file)));
                }
                (Making::Header, BackEnd::Mapped) => {}
                (Making::Header, BackEnd::Direct) => {
                    let header = Blocks::create().take();
                    let file = made.as_ref().map(Book::file).expect("it was created");
                    file.write_all_at(header.bytes(), header.offset()).map_err(space)?;
                }
                (Making::Sync, _) => {
                    let file = made.as_ref().map(Book::file).expect("it was created");
                    file.sync_all().map_err(sync)?;
                }
            }
        }
        Ok(made.expect("it was created"))
    }

    /// What a round syncs or writes to. A store through the map dirties the inode's pages, and
    /// fdatasync on any descriptor of the inode writes them: measured by the kernel's count of dirty
    /// pages.
    pub(crate) fn file(&self) -> &Arc<File> {
        match self {
            Book::Mapped { segment, .. } => segment.storage().file(),
            Book::Direct(file) => file.file(),
        }
    }

    /// Appends whole records to a mapped log, which has the room for them.
    pub(crate) fn store(&mut self, framed: &[u8]) {
        let Book::Mapped { segment, .. } = self else { unreachable!("stores are into a map") };
        let stored = segment.append(framed);
        assert_eq!(stored, Ok(()), "the journal stores where there is room");
    }

    /// Up to where the file can be written to by now: what was allocated elsewhere is mapped.
    pub(crate) fn room(&mut self) -> io::Result<u64> {
        match self {
            Book::Mapped { segment, allocated } => {
                let len = allocated.len.load(Ordering::Acquire);
                let map = segment.storage_mut();
                if map.len() < len {
                    map.grow(len)?;
                }
                Ok(len)
            }
            Book::Direct(file) => Ok(file.ready()),
        }
    }

    /// What makes more room, elsewhere.
    pub(crate) fn maker(&self) -> Room {
        match self {
            Book::Mapped { allocated, .. } => Room::Mapped(Arc::clone(allocated)),
            Book::Direct(file) => Room::Direct(Arc::clone(file)),
        }
    }

    /// Nothing more will be stored, and no room be made: the file may be cut.
    pub(crate) fn into_file(self) -> Arc<File> {
        match self {
            Book::Mapped { allocated, segment } => {
                drop(segment);
                *allocated.has_ended.lock() = true;
                Arc::clone(&allocated.file)
            }
            Book::Direct(file) => file.end(),
        }
    }
}

impl Room {
    /// Makes the room, unless the log has ended.
    pub(crate) fn grow(&self, growth: Growth) -> io::Result<()> {
        match self {
            Room::Mapped(allocated) => {
                let has_ended = allocated.has_ended.lock();
                if *has_ended || growth.len <= allocated.len.load(Ordering::Relaxed) {
                    return Ok(());
                }
                sys::allocate(&allocated.file, growth.len)?;
                allocated.len.store(growth.len, Ordering::Release);
                Ok(())
            }
            Room::Direct(file) => file.grow(growth.len, growth.ready),
        }
    }
}

/// Whether a log could not be made because the file system cannot be written to directly.
pub(crate) fn is_unsupported(error: &LogError) -> bool {
    matches!(error, LogError::Space { source, .. } if zeroed::is_unsupported(source))
}
