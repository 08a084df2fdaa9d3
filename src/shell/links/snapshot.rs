//! Snapshots on their way between a link and a thread that may wait: out of a tree into a link, and
//! out of a link into a tree.
//!
//! ```text
//! out   body --write--> BodyWriter --chunks, a few at a time--> Body --> link
//! in    link --> SnapshotInlet --bytes, up to a bound--> SnapshotOutlet --read--> whoever loads it
//! ```
//!
//! The thread waits where the link is slower than it, and the link where the thread is: then its
//! socket is not read from. Neither makes the core wait.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::thread;

use crossbeam::channel::{self, Receiver, Sender};
use crossbeam::utils::CachePadded;
use parking_lot::{Condvar, Mutex};
use tracing::debug;

use crate::shell::mesh::Bell;

/// What is handed to a link at a time, and how many of these wait for it.
const CHUNK_BYTES: usize = 128 << 10;
const CHUNKS_MAX: usize = 8;

/// Writes a snapshot's body, without what is before and behind it in a file.
pub(crate) type WriteBody = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send>;

/// What comes of a body.
pub(super) enum Piece {
    Bytes(Vec<u8>),
    End,
    /// It could not be written to its end.
    Lost,
}

/// A body that a thread writes.
pub(super) struct Body {
    pieces: Receiver<Piece>,
}

impl Body {
    pub(super) fn start(write: WriteBody, bell: Arc<CachePadded<Bell>>) -> io::Result<Body> {
        let (sender, pieces) = channel::bounded(CHUNKS_MAX);
        thread::Builder::new().name("snapshot-out".to_owned()).spawn(move || {
            let mut writer = BodyWriter { chunk: Vec::new(), sender, bell };
            let last = match write(&mut writer).and_then(|()| writer.flush()) {
                Ok(()) => Piece::End,
                Err(error) => {
                    debug!(%error, "a snapshot for a learner ends unwritten");
                    Piece::Lost
                }
            };
            // Nobody hears it where the link is gone.
            let _ = writer.sender.send(last);
            writer.bell.ring();
        })?;
        Ok(Body { pieces })
    }

    /// What there is at the moment. It rings when there is more.
    pub(super) fn next(&self) -> Option<Piece> {
        self.pieces.try_recv().ok()
    }

    /// Whether `next` has something.
    pub(super) fn has_next(&self) -> bool {
        !self.pieces.is_empty()
    }
}

struct BodyWriter {
    chunk: Vec<u8>,
    sender: Sender<Piece>,
    bell: Arc<CachePadded<Bell>>,
}

impl Write for BodyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..count]);
        if self.chunk.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_BYTES));
        self.sender.send(Piece::Bytes(chunk)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.bell.ring();
        Ok(())
    }
}

/// A way for a snapshot's body from a link to a thread. About `bytes_max` wait in it; `bell` rings
/// the link's core when there is room again.
pub(crate) fn snapshot_pipe(
    bytes_max: usize,
    bell: Arc<CachePadded<Bell>>,
) -> (SnapshotInlet, SnapshotOutlet) {
    let pipe = Arc::new(Pipe { bytes_max, held: Mutex::default(), changed: Condvar::new(), bell });
    (SnapshotInlet { pipe: Arc::clone(&pipe) }, SnapshotOutlet { pipe })
}

struct Pipe {
    bytes_max: usize,
    held: Mutex<Held>,
    changed: Condvar,
    bell: Arc<CachePadded<Bell>>,
}

#[derive(Default)]
struct Held {
    chunks: VecDeque<Vec<u8>>,
    /// How much of the first chunk is read.
    read: usize,
    bytes: usize,
    /// More than `bytes_max` came, and it is not half read yet.
    is_full: bool,
    end: Option<End>,
    is_unread: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Whole,
    Lost,
}

/// The link's end. Dropped before `end`, it tells the reader that the rest will not come.
pub(crate) struct SnapshotInlet {
    pipe: Arc<Pipe>,
}

impl SnapshotInlet {
    /// Whether no more should be put in.
    pub(super) fn is_full(&self) -> bool {
        self.pipe.held.lock().is_full
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        let mut held = self.pipe.held.lock();
        if held.is_unread {
            return;
        }
        held.bytes += bytes.len();
        held.is_full |= self.pipe.bytes_max <= held.bytes;
        held.chunks.push_back(bytes.to_vec());
        self.pipe.changed.notify_one();
    }

    /// The body is whole.
    pub(super) fn end(self) {
        self.pipe.held.lock().end = Some(End::Whole);
    }
}

impl Drop for SnapshotInlet {
    fn drop(&mut self) {
        self.pipe.held.lock().end.get_or_insert(End::Lost);
        self.pipe.changed.notify_one();
    }
}

/// The reader's end: it waits for bytes, ends where the body does, and fails where the link did.
pub(crate) struct SnapshotOutlet {
    pipe: Arc<Pipe>,
}

impl Read for SnapshotOutlet {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut held = self.pipe.held.lock();
        loop {
            let Held { chunks, read, .. } = &mut *held;
            if let Some(chunk) = chunks.front() {
                let left = &chunk[*read..];
                let count = left.len().min(buffer.len());
                buffer[..count].copy_from_slice(&left[..count]);
                *read += count;
                if *read == chunk.len() {
                    chunks.pop_front();
                    *read = 0;
                }
                held.bytes -= count;
                if held.is_full && held.bytes <= self.pipe.bytes_max / 2 {
                    held.is_full = false;
                    drop(held);
                    self.pipe.bell.ring();
                }
                return Ok(count);
            }
            match held.end {
                Some(End::Whole) => return Ok(0),
                Some(End::Lost) => {
                    let text = "the link to the leader ended before the snapshot did";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
                }
                None => self.pipe.changed.wait(&mut held),
            }
        }
    }
}

impl Drop for SnapshotOutlet {
    fn drop(&mut self) {
        {
            let mut held = self.pipe.held.lock();
            *held = Held { end: held.end, is_unread: true, ..Held::default() };
        }
        self.pipe.bell.ring();
    }
}
