//! A file written once, from its beginning to its end, past the page cache.
//!
//! A snapshot of a large tree is read at the next start and not before. Through the page cache it
//! costs a copy of every byte, drives out pages that someone reads, and reaches the disk in one
//! piece at its sync, ahead of the log's writes.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::zeroed::{CHUNK_BLOCKS, is_unsupported};
use crate::storage::blocks::{BLOCK_BYTES, Block};

#[derive(Debug)]
pub(crate) struct UnbufferedFile {
    file: File,
    /// How much of the file is written; a multiple of `BLOCK_BYTES`.
    written: u64,
    chunk: Vec<Block>,
    /// Bytes of `chunk` that are to be written.
    filled: usize,
}

impl UnbufferedFile {
    /// Makes the file, or empties it. Where the file system knows no direct writes, the same goes
    /// through the page cache.
    pub(crate) fn create(path: &Path) -> io::Result<UnbufferedFile> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let direct = options.clone().custom_flags(libc::O_DIRECT).open(path).and_then(|file| {
            file.write_all_at(bytemuck::bytes_of(&Block::ZERO), 0)?;
            Ok(file)
        });
        let file = match direct {
            Err(error) if is_unsupported(&error) => options.open(path),
            direct => direct,
        }?;
        let chunk = vec![Block::ZERO; CHUNK_BLOCKS];
        Ok(UnbufferedFile { file, written: 0, chunk, filled: 0 })
    }

    /// Writes what is left and cuts the file to its length. It is not synced yet.
    pub(crate) fn finish(mut self) -> io::Result<File> {
        let len = self.written + self.filled as u64;
        let end = self.filled.next_multiple_of(BLOCK_BYTES);
        let chunk: &mut [u8] = bytemuck::cast_slice_mut(&mut self.chunk);
        chunk[self.filled..end].fill(0);
        self.file.write_all_at(&chunk[..end], self.written)?;
        self.file.set_len(len)?;
        Ok(self.file)
    }
}

impl Write for UnbufferedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk: &mut [u8] = bytemuck::cast_slice_mut(&mut self.chunk);
        if self.filled == chunk.len() {
            self.file.write_all_at(chunk, self.written)?;
            self.written += chunk.len() as u64;
            self.filled = 0;
        }
        let taken = bytes.len().min(chunk.len() - self.filled);
        chunk[self.filled..][..taken].copy_from_slice(&bytes[..taken]);
        self.filled += taken;
        Ok(taken)
    }

    /// Nothing is passed on before a chunk is full, or the file finished.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::scratch::Scratch;

    #[test]
    fn what_is_written_is_the_file() {
        let scratch = Scratch::new("unbuffered");
        let path = scratch.path().join("file");
        let chunk = CHUNK_BLOCKS * BLOCK_BYTES;
        let bytes: Vec<u8> = (0..3 * chunk).map(|n| (n % 251) as u8).collect();
        for len in [0, 1, BLOCK_BYTES, chunk - 1, chunk, chunk + 1, 3 * chunk] {
            for step in [1000, chunk, bytes.len()] {
                let mut file = UnbufferedFile::create(&path).unwrap();
                for part in bytes[..len].chunks(step) {
                    file.write_all(part).unwrap();
                }
                file.finish().unwrap();
                assert!(std::fs::read(&path).unwrap() == bytes[..len], "{len} bytes by {step}");
            }
        }
    }
}
