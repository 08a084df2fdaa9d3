//! One connection to another server: what is on its way out, and how it is read from.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use super::snapshot::{Body, Piece};
use crate::record::quorum::SNAPSHOT_SIGNATURE;
use crate::shell::ring::{Ring, Token};
use crate::shell::sys;

/// How many chunks go out with one system call.
const GATHERED_MAX: usize = 64;
/// How much is written to one socket in a turn.
const WRITE_BYTES_MAX: usize = 256 << 10;

/// Between a socket and what is said over it: here TLS and SASL will turn bytes into others.
pub(super) struct Wire {
    socket: TcpStream,
}

impl Wire {
    pub(super) fn new(socket: TcpStream) -> Wire {
        Wire { socket }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends what the socket takes of these at this moment.
    pub(super) fn send(&mut self, chunks: &[IoSlice<'_>]) -> io::Result<usize> {
        sys::send_gathered_now(self.socket.as_fd(), chunks)
    }

    /// What bytes that have come say.
    pub(super) fn open<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        bytes
    }

    pub(super) fn shut(&self) {
        sys::shut(self.socket.as_fd(), Shutdown::Both);
    }
}

/// Whether the ring receives for a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    No,
    Yes,
    /// It was told to stop and has not said that it did.
    Stopping,
}

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("the other side has ended it")]
    Ended,
    #[error("{0}")]
    Broken(io::Error),
    #[error("more than {0} bytes wait to be sent")]
    Overflow(usize),
    #[error("a snapshot could not be written to its end")]
    SnapshotLost,
}

/// What waits to be sent.
enum Item {
    Shared(Arc<[u8]>),
    Own(Vec<u8>),
    Snapshot(Body),
}

/// A socket with what is to be sent over it.
pub(super) struct Socket {
    pub(super) token: Token,
    pub(super) remote: SocketAddr,
    pub(super) wire: Wire,
    receiving: Receiving,
    /// It took no more; the ring says when it does.
    pub(super) is_blocked: bool,
    queue: VecDeque<Item>,
    /// How much of the first item is sent.
    sent: usize,
    /// Of the queue, without what snapshots have not written yet.
    queued_bytes: usize,
}

impl Socket {
    pub(super) fn new(token: Token, remote: SocketAddr, socket: TcpStream) -> Socket {
        Socket {
            token,
            remote,
            wire: Wire::new(socket),
            receiving: Receiving::No,
            is_blocked: false,
            queue: VecDeque::new(),
            sent: 0,
            queued_bytes: 0,
        }
    }

    // ---- receiving ------------------------------------------------------------------------------

    /// Has the ring receive for it, or not.
    pub(super) fn receive(&mut self, ring: &mut Ring, wanted: bool) {
        match (self.receiving, wanted) {
            (Receiving::No, true) => {
                ring.receive(self.wire.fd(), self.token);
                self.receiving = Receiving::Yes;
            }
            (Receiving::Yes, false) => {
                ring.stop_receiving(self.token);
                self.receiving = Receiving::Stopping;
            }
            // One that is stopping says when it has, and is then asked again.
            (Receiving::Yes, true) | (Receiving::No, false) | (Receiving::Stopping, _) => {}
        }
    }

    /// The ring receives no more unless it is asked.
    pub(super) fn on_stopped(&mut self) {
        self.receiving = Receiving::No;
    }

    // ---- sending --------------------------------------------------------------------------------

    pub(super) fn push(&mut self, chunk: Arc<[u8]>) {
        self.queued_bytes += chunk.len();
        self.queue.push_back(Item::Shared(chunk));
    }

    pub(super) fn push_snapshot(&mut self, body: Body) {
        self.queue.push_back(Item::Snapshot(body));
    }

    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    pub(super) fn is_all_sent(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether a snapshot is next, and has nothing to send at the moment.
    pub(super) fn awaits_snapshot(&self) -> bool {
        matches!(self.queue.front(), Some(Item::Snapshot(body)) if !body.has_next())
    }

    /// Whether something can be sent now.
    pub(super) fn can_send(&self) -> bool {
        !self.is_blocked && !self.queue.is_empty() && !self.awaits_snapshot()
    }

    /// Sends some of what waits.
    pub(super) fn send(&mut self, ring: &mut Ring) -> Result<(), End> {
        let mut left = WRITE_BYTES_MAX;
        while 0 < left && !self.is_blocked {
            self.take_from_snapshot()?;
            let chunks = self.queue.iter().map_while(|item| match item {
                Item::Shared(chunk) => Some(&**chunk),
                Item::Own(bytes) => Some(bytes.as_slice()),
                Item::Snapshot(_) => None,
            });
            let mut gathered = Vec::with_capacity(GATHERED_MAX.min(self.queue.len()));
            gathered.extend(chunks.take(GATHERED_MAX).map(IoSlice::new));
            let Some(first) = gathered.first_mut() else { return Ok(()) };
            first.advance(self.sent);
            match self.wire.send(&gathered) {
                Ok(count) => {
                    left = left.saturating_sub(count);
                    self.on_sent(count);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => {
                        self.is_blocked = true;
                        ring.await_writable(self.wire.fd(), self.token);
                    }
                    _ => return Err(End::Broken(error)),
                },
            }
        }
        Ok(())
    }

    /// Puts what there is of the snapshot that is next before it.
    fn take_from_snapshot(&mut self) -> Result<(), End> {
        let Some(Item::Snapshot(body)) = self.queue.front() else { return Ok(()) };
        match body.next() {
            None => {}
            Some(Piece::Lost) => return Err(End::SnapshotLost),
            Some(Piece::Bytes(bytes)) => {
                self.queued_bytes += bytes.len();
                self.queue.push_front(Item::Own(bytes));
            }
            Some(Piece::End) => {
                self.queued_bytes += SNAPSHOT_SIGNATURE.len();
                self.queue[0] = Item::Own(SNAPSHOT_SIGNATURE.to_vec());
            }
        }
        Ok(())
    }

    fn on_sent(&mut self, count: usize) {
        self.queued_bytes -= count;
        self.sent += count;
        loop {
            let len = match self.queue.front() {
                Some(Item::Shared(chunk)) => chunk.len(),
                Some(Item::Own(bytes)) => bytes.len(),
                Some(Item::Snapshot(_)) | None => break,
            };
            if self.sent < len {
                break;
            }
            self.sent -= len;
            self.queue.pop_front();
        }
    }
}
