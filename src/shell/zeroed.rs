//! A log file that is written past the page cache, and zeros ahead of what is written.
//!
//! A block that was only allocated is marked as unwritten by the file system, and the first write
//! to it costs a commit of the journal. So zeros are written ahead, by whoever may wait for the
//! disk; a write to a block that has been written once costs the disk's own time and nothing else.
//!
//! ```text
//! |records|zeros, written|allocated                |
//!         end            ready                     length of the file
//! ```
//!
//! Files are not recycled from purged logs: what an old file holds behind the end of the new log
//! would read as its records, so it would have to be zeroed all the same.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::sys;
use crate::storage::blocks::{BLOCK_BYTES, Block};

/// How much is written at once of what nobody waits for. What somebody does wait for may have to
/// wait for one of these.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;
pub(crate) const CHUNK_BLOCKS: usize = CHUNK_BYTES / BLOCK_BYTES;

#[derive(Debug)]
pub(crate) struct ZeroedFile {
    /// What is written here is durable when the write is done.
    file: Arc<File>,
    /// Up to here blocks have been written, with zeros or records.
    ready: AtomicU64,
    /// The same file for writing zeros, which need not be durable one by one. Locked by the one
    /// who does; gone once the log has ended.
    zeroing: Mutex<Option<File>>,
}

impl ZeroedFile {
    /// Makes a file of which `len` bytes are allocated and the first `ready` can be written to. An
    /// error of kind `InvalidInput` or `Unsupported` says that the file system knows no such files.
    pub(crate) fn create(path: &Path, len: u64, ready: u64) -> io::Result<ZeroedFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600).custom_flags(libc::O_DIRECT);
        let zeroing = options.create_new(true).open(path)?;
        sys::allocate(&zeroing, len)?;
        let file = options.create_new(false).custom_flags(libc::O_DIRECT | libc::O_DSYNC);
        let file = Arc::new(file.open(path)?);
        let zeroing = Mutex::new(Some(zeroing));
        let zeroed = ZeroedFile { file, ready: AtomicU64::new(0), zeroing };
        zeroed.grow(len, ready)?;
        Ok(zeroed)
    }

    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Up to where it can be written to.
    pub(crate) fn ready(&self) -> u64 {
        self.ready.load(Ordering::Acquire)
    }

    /// Has it ready to `ready`, where it is not yet, and allocated to `len` once what is allocated
    /// is used up; unless it has ended. Two may ask at once: neither waits for more than it needs.
    pub(crate) fn grow(&self, len: u64, ready: u64) -> io::Result<()> {
        assert!(ready <= len && ready.is_multiple_of(BLOCK_BYTES as u64));
        let zeros = vec![Block::ZERO; CHUNK_BLOCKS];
        let zeros: &[u8] = bytemuck::cast_slice(&zeros);
        loop {
            let zeroing = self.zeroing.lock();
            let offset = self.ready();
            let Some(zeroing) = zeroing.as_ref().filter(|_| offset < ready) else { return Ok(()) };
            let mut allocated = zeroing.metadata()?.len();
            if allocated <= offset {
                sys::allocate(zeroing, len)?;
                allocated = len;
            }
            let left = usize::try_from(ready.min(allocated) - offset).unwrap_or(usize::MAX);
            let chunk = &zeros[..left.min(zeros.len())];
            zeroing.write_all_at(chunk, offset)?;
            // Not durable, and need not be: a block that was never written reads as zero too. That
            // it was written is made durable with the first record in it, for which O_DSYNC stands.
            self.ready.store(offset + chunk.len() as u64, Ordering::Release);
        }
    }

    /// Nothing will be written any more: it may be cut, and will not grow again.
    pub(crate) fn end(&self) -> Arc<File> {
        *self.zeroing.lock() = None;
        Arc::clone(&self.file)
    }
}

/// Whether this says that a file system cannot be written to past the page cache.
pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::scratch::Scratch;

    const BLOCK: u64 = BLOCK_BYTES as u64;

    #[test]
    fn what_is_ready_is_zero_and_grows() {
        let scratch = Scratch::new("zeroed");
        let path = scratch.path().join("log");
        let zeroed = match ZeroedFile::create(&path, 64 * BLOCK, 3 * BLOCK) {
            Err(error) if is_unsupported(&error) => {
                return eprintln!("NOT RUN: no direct writes here: {error}");
            }
            zeroed => zeroed.unwrap(),
        };
        assert_eq!(zeroed.ready(), 3 * BLOCK);
        let ones = bytemuck::cast_slice::<u64, u8>(&[0x0101_0101_0101_0101; BLOCK_BYTES / 8]);
        let mut aligned = vec![Block::ZERO];
        bytemuck::cast_slice_mut::<Block, u8>(&mut aligned).copy_from_slice(ones);
        zeroed.file().write_all_at(bytemuck::cast_slice(&aligned), BLOCK).unwrap();
        zeroed.grow(64 * BLOCK, 2 * BLOCK).unwrap();
        assert_eq!(zeroed.ready(), 3 * BLOCK);
        zeroed.grow(200 * BLOCK, 150 * BLOCK).unwrap();
        assert_eq!(zeroed.ready(), 150 * BLOCK);
        let file = zeroed.end();
        zeroed.grow(300 * BLOCK, 300 * BLOCK).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, 200 * BLOCK);
        file.set_len(100).unwrap();
        assert_eq!(bytes.iter().filter(|&&byte| byte == 1).count(), BLOCK_BYTES);
        assert!(bytes[BLOCK_BYTES..][..BLOCK_BYTES].iter().all(|&byte| byte == 1));
    }

    #[test]
    fn more_than_the_disk_holds_is_an_error() {
        let scratch = Scratch::new("zeroed-full");
        let error = ZeroedFile::create(&scratch.path().join("log"), 1 << 50, BLOCK).unwrap_err();
        if is_unsupported(&error) {
            return eprintln!("NOT RUN: no direct writes here: {error}");
        }
        assert!(matches!(error.raw_os_error(), Some(libc::EFBIG | libc::ENOSPC)), "{error}");
    }
}
