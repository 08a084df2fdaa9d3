//! One connection to another server: what is on its way out, and how it is read from.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use super::snapshot::{Body, Piece};
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
    #[error("a snapshot or the log could not be read to its end")]
    BodyLost,
}

/// What waits to be sent.
enum Item {
    Shared(Arc<[u8]>),
    Own(Vec<u8>),
    /// What a thread writes, and what comes behind it.
    Body(Body, &'static [u8]),
}

/// What was sent of bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BodyNews {
    pub(super) has_moved: bool,
    /// One is on its way to its end.
    pub(super) has_ended: bool,
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
    /// Of the queue, without what bodies have not written yet.
    queued_bytes: usize,
    body_news: BodyNews,
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
            body_news: BodyNews::default(),
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

    pub(super) fn push_body(&mut self, body: Body, tail: &'static [u8]) {
        self.queue.push_back(Item::Body(body, tail));
    }

    /// What was sent of bodies since this was last asked.
    pub(super) fn take_body_news(&mut self) -> BodyNews {
        std::mem::take(&mut self.body_news)
    }

    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    pub(super) fn is_all_sent(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether a body is next, and has nothing to send at the moment.
    pub(super) fn awaits_body(&self) -> bool {
        matches!(self.queue.front(), Some(Item::Body(body, _)) if !body.has_next())
    }

    /// Whether something can be sent now.
    pub(super) fn can_send(&self) -> bool {
        !self.is_blocked && !self.queue.is_empty() && !self.awaits_body()
    }

    /// Sends some of what waits.
    pub(super) fn send(&mut self, ring: &mut Ring) -> Result<(), End> {
        let mut left = WRITE_BYTES_MAX;
        while 0 < left && !self.is_blocked {
            self.take_from_body()?;
            let chunks = self.queue.iter().map_while(|item| match item {
                Item::Shared(chunk) => Some(&**chunk),
                Item::Own(bytes) => Some(bytes.as_slice()),
                Item::Body(..) => None,
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

    /// Puts what there is of the body that is next before it.
    fn take_from_body(&mut self) -> Result<(), End> {
        while let Some(Item::Body(body, tail)) = self.queue.front() {
            match body.next() {
                None => break,
                Some(Piece::Lost) => return Err(End::BodyLost),
                Some(Piece::Bytes(bytes)) => {
                    self.body_news.has_moved = true;
                    self.queued_bytes += bytes.len();
                    self.queue.push_front(Item::Own(bytes));
                }
                Some(Piece::End) if tail.is_empty() => {
                    self.body_news.has_ended = true;
                    self.queue.pop_front();
                }
                Some(Piece::End) => {
                    self.body_news.has_ended = true;
                    self.queued_bytes += tail.len();
                    self.queue[0] = Item::Own(tail.to_vec());
                }
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
                Some(Item::Body(..)) | None => break,
            };
            if self.sent < len {
                break;
            }
            self.sent -= len;
            self.queue.pop_front();
        }
    }
}
