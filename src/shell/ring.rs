//! A core's ring: bytes of many sockets in, and one place to wait for everything.
//!
//! ```text
//! receive        one request per socket that stays; each arrival takes one of the ring's buffers
//! await_writable a socket that took no more says when it does again
//! sync, write    of the log, on the core that has the pipeline
//! bell           another thread has something for us
//! mark           is told behind all that the sockets have had by then
//! enter          the only system call of the loop: hands in what is asked, runs what has come,
//!                waits if told to
//! ```
//!
//! Sending is not in here: `send(2)` on a socket that has room costs the same as through the ring,
//! and needs no buffer to stay in place.
//!
//! A ring belongs to the thread that made it, and the kernel does our work only inside `enter`
//! (`IORING_SETUP_DEFER_TASKRUN`), so no arrival interrupts a step. That takes Linux 6.1. Where the
//! kernel has less, down to 5.13, the *plain* manner asks for readiness instead and the shard
//! reads the socket itself.
//!
//! ```text
//! user_data   request: 4 bits   owner: 4 bits   slot: 24 bits   generation: 32 bits
//! ```
//!
//! Owner, slot and generation are the `Token` of a socket: several parts of a core share its ring,
//! and each numbers its own sockets.

#![expect(unsafe_code, reason = "requests and buffers shared with the kernel")]

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::mem;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::task::Wake;
use std::time::Duration;

use io_uring::types::{BufRingEntry, Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use memmap2::{MmapMut, MmapRaw};

use crate::exchange::ConnectionId;
use crate::storage::blocks::{BLOCK_BYTES, Extent};

/// How many requests may be handed in with one call, and how many completions the ring holds. More
/// requests go in with more calls; more completions wait in the kernel, and cost it memory.
#[derive(Clone, Copy)]
struct Size {
    entries: u32,
    completions: u32,
}

const SIZE: Size = Size { entries: 1024, completions: 4096 };
/// For who may lock 64 KiB only, as in many containers: some kernels count rings as locked memory.
const SMALL: Size = Size { entries: 64, completions: 512 };
/// How many buffers arrivals are written to, and how long each is. A socket that has more than one
/// buffer's worth takes several; if none is left, it waits until some are given back.
const BUFFERS: u16 = 512;
const BUFFER_BYTES: usize = 4096;
/// The only group of buffers.
const GROUP: u16 = 0;

const _: () = assert!(BUFFERS.is_power_of_two(), "the kernel masks its place in the ring");

/// What the kernel may write to next, and what was written. Raw maps: no reference may reach what
/// the kernel reads or writes meanwhile.
struct Buffers {
    /// The ring of free buffers: entries, the tail in the first one's spare field.
    entries: MmapRaw,
    bytes: MmapRaw,
    tail: u16,
}

impl Buffers {
    fn new() -> io::Result<Buffers> {
        // Anonymous maps start at a page, as the kernel asks, and cost memory only where touched.
        let entries = MmapMut::map_anon(usize::from(BUFFERS) * size_of::<BufRingEntry>())?;
        let bytes = MmapMut::map_anon(usize::from(BUFFERS) * BUFFER_BYTES)?;
        let mut buffers = Buffers { entries: entries.into(), bytes: bytes.into(), tail: 0 };
        for index in 0..BUFFERS {
            buffers.put(index);
        }
        buffers.publish();
        Ok(buffers)
    }

    /// A buffer is free again; the kernel knows after `publish`.
    fn put(&mut self, index: u16) {
        let address = self.start_of(index) as u64;
        let place = usize::from(self.tail & (BUFFERS - 1));
        // SAFETY: `place` is below the number of entries that the map has room for, all of which
        // were zeroed by the kernel, which is a valid entry. The kernel reads none at or behind
        // the tail that it has been told, and this one is there.
        let entry = unsafe { &mut *self.entries.as_mut_ptr().cast::<BufRingEntry>().add(place) };
        entry.set_addr(address);
        entry.set_len(u32::try_from(BUFFER_BYTES).expect("a small constant"));
        entry.set_bid(index);
        self.tail = self.tail.wrapping_add(1);
    }

    fn start_of(&self, index: u16) -> *mut u8 {
        assert!(index < BUFFERS);
        // SAFETY: the map has room for as many buffers, one behind the other.
        unsafe { self.bytes.as_mut_ptr().add(usize::from(index) * BUFFER_BYTES) }
    }

    fn bytes(&self, filled: &Filled) -> &[u8] {
        assert!(filled.len <= BUFFER_BYTES);
        // SAFETY: these bytes are in the map, and the kernel writes to a buffer no more until it is
        // `put`, which takes us mutably.
        unsafe { slice::from_raw_parts(self.start_of(filled.index), filled.len) }
    }

    /// Tells the kernel what is free.
    fn publish(&mut self) {
        // SAFETY: the map begins with an entry, page-aligned, and its spare field is the tail: 16
        // bits that nobody else here writes and the kernel reads. `put` leaves that field alone.
        let tail = unsafe {
            let tail = BufRingEntry::tail(self.entries.as_mut_ptr().cast());
            AtomicU16::from_ptr(tail.cast_mut())
        };
        // Pairs with the kernel's acquiring read: the entries are written before.
        tail.store(self.tail, Ordering::Release);
    }
}

/// Bytes that have come, in a buffer that is ours until it is given back.
#[derive(Debug)]
#[must_use = "the kernel runs out of buffers that are not given back"]
pub(crate) struct Filled {
    index: u16,
    len: usize,
}

/// What has happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// Somebody has rung, or something of no consequence has ended.
    Bell,
    /// What had arrived when `mark` was called has been told.
    Marked,
    Received {
        socket: Token,
        what: Received,
        /// More will come without being asked for.
        goes_on: bool,
    },
    /// The socket has room again, or is broken.
    Writable { socket: Token },
    /// The file is synced, or the extent written, or neither ever will be.
    Durable { written: Option<Extent>, result: io::Result<()> },
}

#[derive(Debug)]
pub(crate) enum Received {
    Bytes(Filled),
    /// The plain manner: read it.
    Readable,
    /// The client will send no more.
    End,
    /// No bytes and nothing wrong: the request was taken back.
    Nothing,
    /// No buffer was free. There may be bytes.
    NoBuffer,
    Failed(io::Error),
}

/// What a request was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Request {
    Bell,
    Receive,
    Writable,
    Cancel,
    Sync,
    Write,
    Mark,
}

const REQUESTS: [Request; 7] = [
    Request::Bell,
    Request::Receive,
    Request::Writable,
    Request::Cancel,
    Request::Sync,
    Request::Write,
    Request::Mark,
];

/// Which part of a core a request is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Owner {
    /// The core itself: its bell, its mark, its log.
    Core,
    /// A shard's connection to a client.
    Client,
    /// A connection to another server.
    Link,
}

const OWNERS: [Owner; 3] = [Owner::Core, Owner::Client, Owner::Link];

/// A socket on a ring. A slot is used again, with another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Token {
    pub(crate) owner: Owner,
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl Token {
    const CORE: Token = Token { owner: Owner::Core, slot: 0, generation: 0 };
}

impl From<ConnectionId> for Token {
    fn from(ConnectionId { slot, generation }: ConnectionId) -> Token {
        Token { owner: Owner::Client, slot, generation }
    }
}

/// More sockets than a core can have descriptors for.
const SLOTS_MAX: u32 = 1 << 24;

fn user_data(request: Request, token: Token) -> u64 {
    assert!(token.slot < SLOTS_MAX, "a core has fewer than {SLOTS_MAX} sockets");
    (request as u64) << 60
        | (token.owner as u64) << 56
        | u64::from(token.slot) << 32
        | u64::from(token.generation)
}

fn asked(user_data: u64) -> (Request, Token) {
    let request = REQUESTS[(user_data >> 60) as usize];
    let owner = OWNERS[(user_data >> 56 & 0xf) as usize];
    let slot = u32::try_from(user_data >> 32 & u64::from(SLOTS_MAX - 1)).expect("24 bits");
    let generation = u32::try_from(user_data & u64::from(u32::MAX)).expect("32 bits");
    (request, Token { owner, slot, generation })
}

/// Rings a core that may be waiting in `Ring::enter`, from any thread.
pub(crate) struct RingBell {
    event: OwnedFd,
}

impl Wake for RingBell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let one = 1_u64.to_ne_bytes();
        // It fails only where 2^64 - 1 rings have been counted: nobody takes them off, as the ring
        // is told of each.
        // SAFETY: eight bytes are read from `one`, which outlives the call.
        let _ = unsafe { libc::write(self.event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
}

/// How arrivals are taken.
enum Manner {
    /// The kernel writes them into our buffers.
    Buffered(Buffers),
    /// The kernel says that there are some.
    Plain,
}

/// An extent on its way to a file.
struct Writing {
    file: Arc<File>,
    extent: Extent,
    /// So much of it is there.
    written: usize,
}

impl Writing {
    fn left(&self) -> &[u8] {
        &self.extent.bytes()[self.written..]
    }
}

/// How far a mark has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MarkStage {
    /// The kernel does not watch for it yet.
    Unwatched,
    Watched,
    /// It is behind what has arrived, and `next` will come to it.
    Set,
}

/// What one request writes at most; its length is 32 bits wide.
const WRITE_BYTES_MAX: usize = 1 << 30;

pub(crate) struct Ring {
    ring: IoUring,
    manner: Manner,
    bell: Arc<RingBell>,
    is_bell_watched: bool,
    mark: OwnedFd,
    mark_stage: MarkStage,
    /// Why the ring is of no use any more.
    fault: Option<io::Error>,
    /// What the kernel reads from at the moment.
    writing: Option<Writing>,
    /// The kernel takes requests from the thread that made the ring, and from no other.
    _of_one_thread: PhantomData<*const ()>,
}

impl Ring {
    /// A ring for the thread that calls, in the best manner that the kernel offers.
    pub(crate) fn new() -> io::Result<Ring> {
        match Ring::buffered() {
            // What a kernel does not know it calls invalid.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ring::plain(),
            ring => ring,
        }
    }

    /// As large as may be.
    fn sized(make: impl Fn(Size) -> io::Result<Ring>) -> io::Result<Ring> {
        match make(SIZE) {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => make(SMALL),
            ring => ring,
        }
    }

    /// Linux 6.1 and later.
    pub(crate) fn buffered() -> io::Result<Ring> {
        Ring::sized(Ring::buffered_of)
    }

    fn buffered_of(size: Size) -> io::Result<Ring> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(size.completions)
            .build(size.entries)?;
        let buffers = Buffers::new()?;
        let address = buffers.entries.as_mut_ptr() as u64;
        // SAFETY: the entries stay mapped for as long as the ring lives: `Ring` drops its ring
        // first, and the kernel unregisters what a closed ring had.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(address, BUFFERS, GROUP, 0)?;
        }
        Ring::with(ring, Manner::Buffered(buffers))
    }

    /// Linux 5.13 and later.
    pub(crate) fn plain() -> io::Result<Ring> {
        Ring::sized(Ring::plain_of)
    }

    fn plain_of(size: Size) -> io::Result<Ring> {
        let ring = IoUring::builder().setup_cqsize(size.completions).build(size.entries)?;
        Ring::with(ring, Manner::Plain)
    }

    fn with(ring: IoUring, manner: Manner) -> io::Result<Ring> {
        let bell = Arc::new(RingBell { event: event()? });
        Ok(Ring {
            ring,
            manner,
            bell,
            is_bell_watched: false,
            mark: event()?,
            mark_stage: MarkStage::Unwatched,
            fault: None,
            writing: None,
            _of_one_thread: PhantomData,
        })
    }

    /// Whether the kernel writes arrivals into our buffers.
    pub(crate) fn is_buffered(&self) -> bool {
        matches!(self.manner, Manner::Buffered(_))
    }

    /// What ends a wait in `enter`.
    pub(crate) fn bell(&self) -> Arc<RingBell> {
        Arc::clone(&self.bell)
    }

    /// Has all that comes over a socket told, until it ends, fails or is stopped.
    ///
    /// The socket must stay open until all `is_handed_in`; after that the kernel holds it.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>, token: impl Into<Token>) {
        let fd = Fd(socket.as_raw_fd());
        let entry = match self.manner {
            Manner::Buffered(_) => opcode::RecvMulti::new(fd, GROUP).build(),
            Manner::Plain => opcode::PollAdd::new(fd, poll_bits(libc::POLLIN)).build(),
        };
        self.push(entry.user_data(user_data(Request::Receive, token.into())));
    }

    /// Takes `receive` back. It ends with one more event, unless it has ended already.
    pub(crate) fn stop_receiving(&mut self, token: impl Into<Token>) {
        let token = token.into();
        let entry = opcode::AsyncCancel::new(user_data(Request::Receive, token)).build();
        self.push(entry.user_data(user_data(Request::Cancel, token)));
    }

    /// Has it told once when the socket has room. It must stay open until all `is_handed_in`.
    pub(crate) fn await_writable(&mut self, socket: BorrowedFd<'_>, token: impl Into<Token>) {
        let fd = Fd(socket.as_raw_fd());
        let entry = opcode::PollAdd::new(fd, poll_bits(libc::POLLOUT)).build();
        self.push(entry.user_data(user_data(Request::Writable, token.into())));
    }

    /// Has a file's data made durable, beginning now. The file must stay open until that is told.
    pub(crate) fn sync(&mut self, file: BorrowedFd<'_>) {
        let fd = Fd(file.as_raw_fd());
        let entry = opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build();
        self.push(entry.user_data(user_data(Request::Sync, Token::CORE)));
    }

    /// Writes an extent to where it goes in a file. One is on its way at a time.
    pub(crate) fn write(&mut self, file: Arc<File>, extent: Extent) {
        assert!(self.writing.is_none(), "one write at a time");
        self.push_write(Writing { file, extent, written: 0 });
    }

    fn push_write(&mut self, writing: Writing) {
        let left = writing.left();
        let len = u32::try_from(left.len().min(WRITE_BYTES_MAX)).expect("it fits");
        let entry = opcode::Write::new(Fd(writing.file.as_raw_fd()), left.as_ptr(), len)
            .offset(writing.extent.offset() + writing.written as u64)
            .build();
        // Before it is handed in: the bytes stay in place as long as this holds them.
        self.writing = Some(writing);
        self.push(entry.user_data(user_data(Request::Write, Token::CORE)));
    }

    /// Has `Event::Marked` told behind everything that sockets which are received for have had by
    /// now: of each that has bytes, `Event::Received` comes before. The kernel tells arrivals in
    /// their order, and the mark arrives like they do.
    ///
    /// False if it cannot be done before the next `enter`, or one is under way.
    pub(crate) fn mark(&mut self) -> bool {
        if self.mark_stage != MarkStage::Watched {
            return false;
        }
        let one = 1_u64.to_ne_bytes();
        // SAFETY: eight bytes are read from `one`, which outlives the call.
        let written = unsafe { libc::write(self.mark.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        if written == 8 {
            self.mark_stage = MarkStage::Set;
        }
        written == 8
    }

    fn on_mark(&mut self) -> Event {
        let mut count = [0; 8];
        // SAFETY: eight bytes are written to `count`, which outlives the call.
        let _ =
            unsafe { libc::read(self.mark.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        let was_set = self.mark_stage == MarkStage::Set;
        self.mark_stage = MarkStage::Unwatched;
        if was_set { Event::Marked } else { Event::Bell }
    }

    fn push(&mut self, entry: squeue::Entry) {
        loop {
            // SAFETY: the only entry that refers to memory of ours is a write's, and `writing`
            // holds that until the kernel has told its end, or for good. Receives take registered
            // buffers, the others none.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            // Full: hand in what there is.
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if is_passing(&error) => drop(self.enter(None)),
                Err(error) => {
                    // The next `enter` tells.
                    self.fault = Some(error);
                    return;
                }
            }
        }
    }

    /// Hands in what was asked and gathers what has happened, waiting for that at most so long.
    pub(crate) fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        if !self.is_bell_watched {
            self.is_bell_watched = true;
            let event = Fd(self.bell.event.as_raw_fd());
            let entry = opcode::PollAdd::new(event, poll_bits(libc::POLLIN)).multi(true).build();
            self.push(entry.user_data(user_data(Request::Bell, Token::CORE)));
        }
        if self.mark_stage == MarkStage::Unwatched {
            self.mark_stage = MarkStage::Watched;
            let entry = opcode::PollAdd::new(Fd(self.mark.as_raw_fd()), poll_bits(libc::POLLIN));
            self.push(entry.build().user_data(user_data(Request::Mark, Token::CORE)));
        }
        if let Manner::Buffered(buffers) = &mut self.manner {
            buffers.publish();
        }
        let submission = self.ring.submission();
        let has_work = !submission.is_empty() || submission.taskrun() || submission.cq_overflow();
        drop(submission);
        let entered = match wait {
            None if self.is_buffered() && !has_work => return Ok(()),
            None => self.ring.submit(),
            Some(wait) => {
                let wait = Timespec::from(wait);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&wait))
            }
        };
        match entered {
            Ok(_) => Ok(()),
            Err(error) if is_passing(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether the kernel has all that was asked. `enter` leaves it some where memory is short.
    pub(crate) fn is_handed_in(&mut self) -> bool {
        self.ring.submission().is_empty()
    }

    /// Whether something has happened that `next` has not told.
    pub(crate) fn has_next(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Whether there is more to act on, told by now or still in the kernel, which hands over a few
    /// arrivals at a time. They come in their order: nobody's can be taken before another's.
    pub(crate) fn is_behind(&mut self) -> bool {
        self.has_next() || self.ring.submission().taskrun()
    }

    /// What has happened next.
    pub(crate) fn next(&mut self) -> Option<Event> {
        let completion = self.ring.completion().next()?;
        let goes_on = cqueue::more(completion.flags());
        let (request, socket) = asked(completion.user_data());
        Some(match request {
            Request::Bell => {
                self.is_bell_watched &= goes_on;
                Event::Bell
            }
            Request::Mark => self.on_mark(),
            Request::Cancel => Event::Bell,
            Request::Writable => Event::Writable { socket },
            Request::Sync => {
                Event::Durable { written: None, result: outcome(&completion).map(|_| ()) }
            }
            Request::Write => return Some(self.on_write(outcome(&completion))),
            Request::Receive => {
                Event::Received { socket, what: self.received(&completion), goes_on }
            }
        })
    }

    fn on_write(&mut self, outcome: io::Result<usize>) -> Event {
        let mut writing = self.writing.take().expect("a write ends that has begun");
        let result = match outcome {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => {
                let before = writing.written;
                writing.written += bytes;
                if writing.left().is_empty() {
                    Ok(())
                } else {
                    // As where the disk is full, which the rest is then told. Whole blocks again.
                    writing.written -= writing.written % BLOCK_BYTES;
                    if before < writing.written {
                        self.push_write(writing);
                        return Event::Bell;
                    }
                    Err(io::ErrorKind::WriteZero.into())
                }
            }
            Err(error) if is_passing(&error) => {
                self.push_write(writing);
                return Event::Bell;
            }
            Err(error) => Err(error),
        };
        Event::Durable { written: Some(writing.extent), result }
    }

    fn received(&self, completion: &cqueue::Entry) -> Received {
        match (completion.result(), &self.manner) {
            (failed @ ..0, _) => match -failed {
                libc::ECANCELED | libc::EINTR | libc::EAGAIN => Received::Nothing,
                libc::ENOBUFS => Received::NoBuffer,
                errno => Received::Failed(io::Error::from_raw_os_error(errno)),
            },
            (_, Manner::Plain) => Received::Readable,
            (0, Manner::Buffered(_)) => Received::End,
            (len, Manner::Buffered(_)) => {
                let index = cqueue::buffer_select(completion.flags())
                    .expect("bytes that were received are in a buffer");
                let len = usize::try_from(len).expect("not negative");
                assert!(index < BUFFERS && len <= BUFFER_BYTES);
                Received::Bytes(Filled { index, len })
            }
        }
    }

    /// The bytes of a buffer.
    pub(crate) fn bytes(&self, filled: &Filled) -> &[u8] {
        let Manner::Buffered(buffers) = &self.manner else {
            unreachable!("only buffers are filled");
        };
        buffers.bytes(filled)
    }

    /// The bytes are used: the kernel may have the buffer again.
    pub(crate) fn give_back(&mut self, filled: Filled) {
        if let Manner::Buffered(buffers) = &mut self.manner {
            buffers.put(filled.index);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel may still read from it, and would write to the log whatever were there next.
        mem::forget(self.writing.take());
    }
}

/// A descriptor that becomes readable when eight bytes are written to it.
fn event() -> io::Result<OwnedFd> {
    // SAFETY: two numbers in, a descriptor or -1 out.
    let event = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if event == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(event) })
}

/// What a request that counts bytes has come to.
fn outcome(completion: &cqueue::Entry) -> io::Result<usize> {
    usize::try_from(completion.result())
        .map_err(|_| io::Error::from_raw_os_error(-completion.result()))
}

/// Time is up; a signal; completions to be taken first; no memory at this moment.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN))
}

fn poll_bits(events: libc::c_short) -> u32 {
    u32::from(events.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::FileExt as _;
    use std::thread;
    use std::time::Instant;

    use super::*;
    use crate::storage::blocks::Blocks;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn id(slot: u32) -> Token {
        Token { owner: Owner::Client, slot, generation: 7 }
    }

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    fn rings() -> impl Iterator<Item = Ring> {
        let buffered = [Ring::buffered_of(SIZE), Ring::buffered_of(SMALL)];
        if let Err(error) = &buffered[0] {
            eprintln!("NOT RUN in the buffered manner: {error}");
        }
        buffered
            .into_iter()
            .flatten()
            .chain([SIZE, SMALL].map(|size| Ring::plain_of(size).unwrap()))
    }

    /// Enters until `done` says so of an event that is none of the bell's.
    fn until(ring: &mut Ring, mut done: impl FnMut(&mut Ring, Event) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "nothing has happened");
            ring.enter(Some(PATIENCE)).unwrap();
            while let Some(event) = ring.next() {
                if !matches!(event, Event::Bell) && done(ring, event) {
                    return;
                }
            }
        }
    }

    /// Receives `count` bytes of connection 1, in whatever manner.
    fn take(ring: &mut Ring, socket: &TcpStream, count: usize) -> Vec<u8> {
        let mut taken = Vec::new();
        until(ring, |ring, event| {
            let Event::Received { socket: of, what, goes_on } = event else { panic!("{event:?}") };
            assert_eq!(of, id(1));
            match what {
                Received::Bytes(filled) => {
                    taken.extend_from_slice(ring.bytes(&filled));
                    ring.give_back(filled);
                }
                Received::Readable => {
                    let mut buffer = [0; 5000];
                    let read = { socket }.read(&mut buffer).unwrap();
                    taken.extend_from_slice(&buffer[..read]);
                }
                Received::Nothing | Received::NoBuffer => {}
                Received::End | Received::Failed(_) => panic!("{what:?}"),
            }
            if !goes_on {
                ring.receive(socket.as_fd(), id(1));
            }
            taken.len() == count
        });
        taken
    }

    #[test]
    fn more_than_all_buffers_hold_comes_in_order() {
        for mut ring in rings() {
            let (mut client, server) = pair();
            let sent: Vec<u8> = (0..3 * usize::from(BUFFERS) * BUFFER_BYTES)
                .map(|at| u8::try_from(at * 31 % 251).unwrap())
                .collect();
            let expected = sent.clone();
            let writer = thread::spawn(move || {
                client.write_all(&sent).unwrap();
                client
            });
            ring.receive(server.as_fd(), id(1));
            assert!(take(&mut ring, &server, expected.len()) == expected);
            drop(writer.join().unwrap());
        }
    }

    #[test]
    fn the_end_of_what_a_client_sends_is_told() {
        for mut ring in rings() {
            let (client, server) = pair();
            ring.receive(server.as_fd(), id(1));
            client.shutdown(Shutdown::Write).unwrap();
            until(&mut ring, |_, event| match event {
                Event::Received { what: Received::End, goes_on, .. } => !goes_on,
                Event::Received { what: Received::Readable, .. } => {
                    { &server }.read(&mut [0]).unwrap() == 0
                }
                event => panic!("{event:?}"),
            });
        }
    }

    #[test]
    fn a_receive_that_is_stopped_ends_and_loses_nothing() {
        for mut ring in rings() {
            let (mut client, server) = pair();
            ring.receive(server.as_fd(), id(1));
            assert!(!ring.is_handed_in());
            ring.enter(None).unwrap();
            assert!(ring.is_handed_in());
            ring.stop_receiving(id(1));
            until(&mut ring, |_, event| {
                matches!(event, Event::Received { what: Received::Nothing, goes_on: false, .. })
            });
            client.write_all(b"after").unwrap();
            ring.receive(server.as_fd(), id(1));
            assert_eq!(take(&mut ring, &server, 5), b"after");
        }
    }

    /// As after a stall: much has come, of many, to each of whom a turn gives little.
    #[test]
    fn a_mark_is_told_behind_what_has_arrived() {
        const SOCKETS: u32 = 300;
        for mut ring in rings() {
            let pairs: Vec<_> = (0..SOCKETS).map(|_| pair()).collect();
            for ((_, server), slot) in pairs.iter().zip(0..) {
                ring.receive(server.as_fd(), id(slot));
            }
            for round in 0..10 {
                ring.enter(None).unwrap();
                // More than there are buffers for.
                for (client, _) in pairs.iter().skip(round) {
                    { client }.write_all(&[7; 3 * BUFFER_BYTES]).unwrap();
                }
                assert!(ring.mark(), "it is watched for");
                assert!(!ring.mark(), "one at a time");
                let mut heard = vec![false; SOCKETS as usize];
                until(&mut ring, |ring, event| {
                    let Event::Received { socket: of, what, goes_on } = event else {
                        return matches!(event, Event::Marked);
                    };
                    let (_, server) = &pairs[of.slot as usize];
                    match what {
                        Received::Bytes(filled) => ring.give_back(filled),
                        Received::Readable => {
                            let mut buffer = [0; BUFFER_BYTES];
                            let count = super::super::sys::receive_now(server.as_fd(), &mut buffer);
                            assert_ne!(count.unwrap(), 0);
                        }
                        Received::NoBuffer => {
                            assert_ne!(super::super::sys::unread_bytes(server.as_fd()).unwrap(), 0);
                        }
                        Received::Nothing | Received::End | Received::Failed(_) => {
                            panic!("{what:?}")
                        }
                    }
                    heard[of.slot as usize] = true;
                    if !goes_on {
                        ring.receive(server.as_fd(), of);
                    }
                    false
                });
                let missed = heard.iter().skip(round).filter(|heard| !**heard).count();
                assert_eq!(missed, 0, "in round {round}");
            }
        }
    }

    #[test]
    fn a_socket_that_was_full_is_told_writable() {
        for mut ring in rings() {
            let (mut client, server) = pair();
            let chunk = vec![0; 1 << 20];
            let mut sent = 0;
            while let Ok(count) = super::super::sys::send_now(server.as_fd(), &chunk) {
                sent += count;
            }
            ring.await_writable(server.as_fd(), id(1));
            ring.enter(None).unwrap();
            assert!(!ring.has_next() || matches!(ring.next(), Some(Event::Bell)));
            let reader = thread::spawn(move || {
                let mut left = sent;
                let mut buffer = vec![0; 1 << 20];
                while 0 < left {
                    left -= client.read(&mut buffer).unwrap();
                }
                client
            });
            until(
                &mut ring,
                |_, event| matches!(event, Event::Writable { socket: of } if of == id(1)),
            );
            drop(reader.join().unwrap());
        }
    }

    #[test]
    fn the_bell_ends_a_wait_every_time() {
        for mut ring in rings() {
            let bell = ring.bell();
            ring.enter(None).unwrap();
            for _ in 0..100 {
                let bell = Arc::clone(&bell);
                let ringer = thread::spawn(move || bell.wake());
                let began = Instant::now();
                loop {
                    ring.enter(Some(PATIENCE)).unwrap();
                    if ring.next().is_some() {
                        break;
                    }
                }
                assert!(began.elapsed() < PATIENCE);
                ringer.join().unwrap();
            }
        }
    }

    #[test]
    fn more_requests_than_the_ring_has_entries_go_in() {
        for mut ring in rings() {
            let (_client, server) = pair();
            let count = SIZE.entries + 100;
            for slot in 0..count {
                ring.await_writable(server.as_fd(), id(slot));
            }
            let mut seen = 0;
            until(&mut ring, |_, event| {
                assert!(matches!(event, Event::Writable { .. }));
                seen += 1;
                seen == count
            });
        }
    }

    #[test]
    fn a_file_is_synced_or_the_error_told() {
        for mut ring in rings() {
            let file = tempfile();
            ring.sync(file.as_fd());
            until(&mut ring, |_, event| {
                matches!(event, Event::Durable { written: None, result: Ok(()) })
            });
            let (reader, _writer) = io::pipe().unwrap();
            ring.sync(reader.as_fd());
            until(&mut ring, |_, event| match event {
                Event::Durable { result: Err(error), .. } => {
                    error.raw_os_error() == Some(libc::EINVAL)
                }
                event => panic!("{event:?}"),
            });
        }
    }

    #[test]
    fn an_extent_is_written_or_the_error_told() {
        for mut ring in rings() {
            let file = Arc::new(tempfile());
            let mut blocks = Blocks::create();
            blocks.append(&[7; 3 * BLOCK_BYTES]);
            let extent = blocks.take();
            let expected = extent.bytes().to_vec();
            ring.write(Arc::clone(&file), extent);
            until(&mut ring, |_, event| {
                let Event::Durable { written: Some(extent), result: Ok(()) } = event else {
                    panic!("{event:?}");
                };
                blocks.give_back(extent);
                true
            });
            let mut found = vec![0; expected.len() + 1];
            assert_eq!(file.read_at(&mut found, 0).unwrap(), expected.len());
            assert_eq!(found[..expected.len()], expected);
            let full = File::options().write(true).open("/dev/full").unwrap();
            blocks.append(b"more");
            ring.write(Arc::new(full), blocks.take());
            until(&mut ring, |_, event| match event {
                Event::Durable { written: Some(_), result: Err(error) } => {
                    error.raw_os_error() == Some(libc::ENOSPC)
                }
                event => panic!("{event:?}"),
            });
        }
    }

    fn tempfile() -> File {
        let scratch = crate::shell::scratch::Scratch::new("ring");
        let path = scratch.path().join("file");
        let options = File::options().read(true).write(true).create_new(true).open(path);
        let mut file = options.unwrap();
        file.write_all(b"something").unwrap();
        // It stays for as long as it is open.
        file
    }

    #[test]
    fn what_was_asked_comes_back() {
        for request in REQUESTS {
            for owner in OWNERS {
                let token = Token { owner, slot: SLOTS_MAX - 1, generation: u32::MAX };
                assert_eq!(asked(user_data(request, token)), (request, token));
            }
        }
    }
}
