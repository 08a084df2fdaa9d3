//! One client's socket: the task that waits for it.
//!
//! The task reads into the shard's one buffer and hands the bytes in; all frames in them are
//! acted on, and their replies leave in one send, before anything else is read. It writes only
//! where the loop's own attempt found the socket full.
//!
//! How a connection ends:
//!
//! ```text
//! at once        the socket is closed, whatever is unread or unwritten
//! after flush    all replies are written, then our end is shut; what the client still sends is
//!                read and dropped until it closes too, for unread bytes would make the kernel reset
//!                the connection and take the last reply with them
//! ```
//!
//! A client that ends its own direction (as netcat does after a four-letter word) is still
//! answered.

use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_lite::future::or;
use futures_lite::io::{AsyncRead as _, AsyncWrite as _};
use glommio::timer::Timer;
use tracing::debug;

use super::shard_core::{ShardCore, Socket};
use crate::shard::Close;

/// How often a task reads or writes before others have their turn.
const TURNS_MAX: usize = 8;
/// How long a client may take to close after us.
const LINGER: Duration = Duration::from_secs(1);

/// How serving a client ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The client is gone, or is to be cut off.
    Gone,
    /// Everything is written, and the client may not know yet that we are done.
    Flushed,
}

/// Serves one client until either side ends it.
pub(crate) async fn serve(core: Rc<ShardCore>, socket: Rc<Socket>) {
    let mut is_half_closed = false;
    let ended = poll_fn(|cx| serve_turn(&core, &socket, &mut is_half_closed, cx)).await;
    debug!(remote = %socket.remote, ?ended, "a connection has ended");
    core.on_closed(socket.id);
    if ended == Ended::Flushed && !is_half_closed {
        socket.shut(Shutdown::Write);
        // Boxed: every connection's task would be larger for what few need, and last.
        Box::pin(linger(&core, &socket)).await;
    }
    // The ring holds the socket for as long as it watches it, so dropping ours tells the client
    // nothing until the ring has let go; this does, and ends the watching too.
    socket.shut(Shutdown::Both);
}

/// Waits until the client has closed too, or has had its time.
async fn linger(core: &Rc<ShardCore>, socket: &Socket) {
    let patience = async {
        Timer::new(LINGER).await;
    };
    or(drain(core, socket), patience).await;
}

/// As much as can be done now.
fn serve_turn(
    core: &Rc<ShardCore>,
    socket: &Socket,
    is_half_closed: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<Ended> {
    // The loop wakes us through this when there is something new to look at.
    socket.waker.borrow_mut().get_or_insert_with(|| cx.waker().clone());
    socket.is_paused.set(false);
    for _ in 0..TURNS_MAX {
        let mut shard = core.shard();
        let Some(outgoing) = shard.outgoing(socket.id) else { return Poll::Ready(Ended::Gone) };
        let close = core.close_of(outgoing.close);
        let has_output = !outgoing.bytes.is_empty();
        match close {
            Some(Close::AtOnce) => return Poll::Ready(Ended::Gone),
            Some(Close::AfterFlush) if !has_output => return Poll::Ready(Ended::Flushed),
            Some(Close::AfterFlush) | None => {}
        }
        if has_output {
            let written = Pin::new(&mut *socket.stream.borrow_mut()).poll_write(cx, outgoing.bytes);
            drop(shard);
            match written {
                Poll::Ready(Ok(count)) => {
                    socket.is_blocked.set(false);
                    core.step(|shard, now, out| shard.on_written(now, socket.id, count, out));
                    continue;
                }
                Poll::Ready(Err(error)) => {
                    debug!(remote = %socket.remote, %error, "a client cannot be written to");
                    return Poll::Ready(Ended::Gone);
                }
                Poll::Pending => socket.is_blocked.set(true),
            }
            if close.is_some() {
                return Poll::Pending;
            }
        } else {
            drop(shard);
        }
        let wants_read = core.shard().outgoing(socket.id).is_some_and(|out| out.wants_read);
        if *is_half_closed || !wants_read || !core.is_serving() {
            socket.is_paused.set(!*is_half_closed);
            return Poll::Pending;
        }
        let mut buffer = core.buffer();
        let read = Pin::new(&mut *socket.stream.borrow_mut()).poll_read(cx, &mut buffer);
        match read {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(0)) => {
                *is_half_closed = true;
                drop(buffer);
                core.step(|shard, now, out| shard.on_end_of_input(now, socket.id, out));
            }
            Poll::Ready(Ok(count)) => {
                let bytes = &buffer[..count];
                core.step(|shard, now, out| shard.on_bytes(now, socket.id, bytes, out));
            }
            Poll::Ready(Err(error)) => {
                debug!(remote = %socket.remote, %error, "a client cannot be read from");
                return Poll::Ready(Ended::Gone);
            }
        }
    }
    core.defer(cx.waker().clone());
    Poll::Pending
}

/// Reads and drops what the client still sends, until it ends.
async fn drain(core: &Rc<ShardCore>, socket: &Socket) {
    let read_some = |cx: &mut Context<'_>| -> Poll<io::Result<usize>> {
        let mut buffer = core.buffer();
        Pin::new(&mut *socket.stream.borrow_mut()).poll_read(cx, &mut buffer)
    };
    while let Ok(1..) = poll_fn(read_some).await {}
}
