//! A file written once, from its beginning to its end, past the page cache, by an executor of glommio:
//! the disk takes full chunks while the thread fills the next one.
//!
//! ```text
//! write --> chunk --full--> at most IN_FLIGHT_MAX writes in the executor's ring --> disk
//! ```
//!
//! The executor runs on the thread that writes, inside `write` and `finish` only. Between them the
//! kernel goes on with the writes that it was handed. It lives as long as the file does: its rings and
//! its memory are there while a snapshot is written.
//!
//! glommio panics, which ends the server, where /sys shows a disk in a way that it does not expect.
//! `unbuffered.rs`, the default, asks the kernel for nothing but writes.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::rc::Rc;

use glommio::io::{DmaBuffer, DmaFile};
use glommio::{LocalExecutor, LocalExecutorBuilder, Placement, Task};

use crate::storage::blocks::BLOCK_BYTES;

const CHUNK_BYTES: usize = 1 << 20;
/// How many chunks the disk may have at once. A sync of the log may have to wait for them.
const IN_FLIGHT_MAX: usize = 2;
/// Room for the chunks in flight, for the one that is filled, and for the allocator's own records.
const IO_MEMORY_BYTES: usize = (IN_FLIGHT_MAX + 2) * CHUNK_BYTES;
/// More entries than there are writes in flight, and the timers of the executor.
const RING_DEPTH: usize = 16;
const _: () = assert!(IN_FLIGHT_MAX < RING_DEPTH && CHUNK_BYTES.is_multiple_of(BLOCK_BYTES));

pub(crate) struct OverlappedFile {
    /// The same file, for all that does not go past the page cache.
    file: File,
    executor: LocalExecutor,
    /// `None` once it is closed.
    dma: Option<Rc<DmaFile>>,
    /// How much of the file was handed to the executor.
    handed: u64,
    chunk: DmaBuffer,
    /// Bytes of `chunk` that are to be written.
    filled: usize,
    in_flight: VecDeque<Task<io::Result<Written>>>,
}

/// A chunk and how much of it the kernel has written: all, unless the disk is nearly full.
struct Written {
    bytes: Rc<DmaBuffer>,
    offset: u64,
    written: usize,
}

impl OverlappedFile {
    /// Makes the file, or empties it. An error may mean that there is too little lockable memory for an
    /// executor, or that the file system knows no direct writes.
    pub(crate) fn create(path: &Path) -> io::Result<OverlappedFile> {
        let executor = LocalExecutorBuilder::new(Placement::Unbound)
            .name("background")
            .io_memory(IO_MEMORY_BYTES)
            .ring_depth(RING_DEPTH)
            .make()?;
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
        // Only for writing: glommio then does not poll the disk for completions.
        let dma = executor.run(async {
            let opened = glommio::io::OpenOptions::new().write(true).dma_open(path).await;
            if opened.is_err() {
                // What it did open is closed with the next round of the ring.
                glommio::executor().yield_task_queue_now().await;
            }
            opened
        })?;
        let chunk = dma.alloc_dma_buffer(CHUNK_BYTES);
        let (dma, in_flight) = (Some(Rc::new(dma)), VecDeque::new());
        let mut file =
            OverlappedFile { file, executor, dma, handed: 0, chunk, filled: 0, in_flight };
        // Some file systems refuse direct writes only when they come.
        file.chunk.as_bytes_mut()[..BLOCK_BYTES].fill(0);
        file.filled = BLOCK_BYTES;
        file.hand_over()?;
        file.wait_for(0)?;
        file.handed = 0;
        Ok(file)
    }

    /// Writes what is left and cuts the file to its length. It is not synced yet.
    pub(crate) fn finish(mut self) -> io::Result<File> {
        let len = self.handed + self.filled as u64;
        self.hand_over()?;
        self.wait_for(0)?;
        self.close()?;
        self.file.set_len(len)?;
        self.file.try_clone()
    }

    /// Has the executor write the chunk, and waits until few enough are in flight.
    fn hand_over(&mut self) -> io::Result<()> {
        let dma = self.dma.as_ref().expect("it is closed last");
        let mut bytes = std::mem::replace(&mut self.chunk, dma.alloc_dma_buffer(CHUNK_BYTES));
        let end = self.filled.next_multiple_of(BLOCK_BYTES);
        bytes.as_bytes_mut()[self.filled..end].fill(0);
        bytes.trim_to_size(end);
        let offset = self.handed;
        self.handed += end as u64;
        self.filled = 0;
        let writing = write_chunk(Rc::clone(dma), bytes, offset);
        let in_flight = &mut self.in_flight;
        self.executor.run(async {
            in_flight.push_back(glommio::spawn_local(writing));
            // The first lets the task begin; after the second the ring has gone to the kernel.
            glommio::executor().yield_now().await;
            glommio::executor().yield_task_queue_now().await;
        });
        self.wait_for(IN_FLIGHT_MAX)
    }

    fn wait_for(&mut self, in_flight_max: usize) -> io::Result<()> {
        while in_flight_max < self.in_flight.len() {
            let oldest = self.in_flight.pop_front().expect("there are some");
            let Written { bytes, offset, written } = self.executor.run(oldest)?;
            self.file.write_all_at(&bytes.as_bytes()[written..], offset + written as u64)?;
        }
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        let Some(dma) = self.dma.take() else { return Ok(()) };
        self.executor.run(dma.close_rc())?;
        Ok(())
    }
}

async fn write_chunk(dma: Rc<DmaFile>, bytes: DmaBuffer, offset: u64) -> io::Result<Written> {
    let bytes = Rc::new(bytes);
    let written = dma.write_rc_at(Rc::clone(&bytes), offset).await?;
    Ok(Written { bytes, offset, written })
}

impl Write for OverlappedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.filled == CHUNK_BYTES {
            self.hand_over()?;
        }
        let taken = bytes.len().min(CHUNK_BYTES - self.filled);
        self.chunk.as_bytes_mut()[self.filled..][..taken].copy_from_slice(&bytes[..taken]);
        self.filled += taken;
        Ok(taken)
    }

    /// Nothing is passed on before a chunk is full, or the file finished.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for OverlappedFile {
    /// The writes in flight are over and the file is closed before the executor goes: it would forget
    /// the descriptor.
    fn drop(&mut self) {
        while !self.in_flight.is_empty() {
            let _ = self.wait_for(0);
        }
        let _ = self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::scratch::Scratch;

    fn created(path: &Path) -> Option<OverlappedFile> {
        OverlappedFile::create(path).inspect_err(|error| eprintln!("NOT RUN: {error}")).ok()
    }

    #[test]
    fn what_is_written_is_the_file() {
        let scratch = Scratch::new("overlapped");
        let path = scratch.path().join("file");
        let bytes: Vec<u8> = (0..5 * CHUNK_BYTES).map(|n| (n % 251) as u8).collect();
        let lens = [0, 1, BLOCK_BYTES, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, bytes.len()];
        for len in lens {
            for step in [1000, CHUNK_BYTES, bytes.len()] {
                let Some(mut file) = created(&path) else { return };
                for part in bytes[..len].chunks(step) {
                    file.write_all(part).unwrap();
                }
                file.finish().unwrap();
                assert!(std::fs::read(&path).unwrap() == bytes[..len], "{len} bytes by {step}");
            }
        }
    }

    fn descriptors_of(path: &Path) -> usize {
        let open = std::fs::read_dir("/proc/self/fd").unwrap();
        let open = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        open.filter(|target| target == path).count()
    }

    #[test]
    fn no_descriptor_is_left_of_a_file() {
        let scratch = Scratch::new("overlapped-closed");
        let path = scratch.path().join("file");
        for is_finished in [false, true] {
            let Some(mut file) = created(&path) else { return };
            file.write_all(&vec![1; 3 * CHUNK_BYTES]).unwrap();
            if is_finished {
                file.finish().unwrap();
            } else {
                drop(file);
            }
            assert_eq!(descriptors_of(&path), 0, "finished: {is_finished}");
        }
    }
}
