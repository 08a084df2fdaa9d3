//! io_uring behind a safe face: the ring owns buffer and socket of each operation until it is
//! complete, and gives them back with the completion.
#![expect(unsafe_code, reason = "the kernel writes into buffers; the ring owns them meanwhile")]

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, squeue, types};

const ENTRIES: u32 = 4096;

/// A ring, and all that the kernel may touch.
pub struct Ring {
    ring: IoUring,
    /// By the number that the kernel has for it.
    held: Vec<Option<Held>>,
    free: Vec<usize>,
}

/// One operation in the kernel's hands.
struct Held {
    token: u64,
    what: What,
}

enum What {
    Accept(Arc<TcpListener>),
    Receive { socket: Arc<TcpStream>, buffer: Vec<u8> },
    Send { socket: Arc<TcpStream>, buffer: Vec<u8> },
}

impl What {
    fn descriptor(&self) -> RawFd {
        match self {
            What::Accept(listener) => listener.as_raw_fd(),
            What::Receive { socket, .. } | What::Send { socket, .. } => socket.as_raw_fd(),
        }
    }
}

/// A completion, with the token that the operation was begun with.
#[derive(Debug)]
pub enum Done {
    Accepted {
        token: u64,
        result: io::Result<TcpStream>,
    },
    /// So many bytes more are in the buffer; 0 where the other side has closed.
    Received {
        token: u64,
        result: io::Result<usize>,
        buffer: Vec<u8>,
    },
    /// So many bytes from the asked place on have left.
    Sent {
        token: u64,
        result: io::Result<usize>,
        buffer: Vec<u8>,
    },
}

impl Ring {
    pub fn new() -> io::Result<Ring> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(ENTRIES)
            // Kernels before 6.1 know neither.
            .or_else(|_| IoUring::new(ENTRIES))?;
        Ok(Ring { ring, held: Vec::new(), free: Vec::new() })
    }

    pub fn accept(&mut self, token: u64, listener: Arc<TcpListener>) -> io::Result<()> {
        let descriptor = types::Fd(listener.as_raw_fd());
        let entry =
            opcode::Accept::new(descriptor, std::ptr::null_mut(), std::ptr::null_mut()).build();
        self.begin(Held { token, what: What::Accept(listener) }, entry)
    }

    /// Receives behind the first `filled` bytes of the buffer.
    pub fn receive(
        &mut self,
        token: u64,
        socket: Arc<TcpStream>,
        mut buffer: Vec<u8>,
        filled: usize,
    ) -> io::Result<()> {
        let room = &mut buffer[filled..];
        let bytes = u32::try_from(room.len()).map_err(io::Error::other)?;
        let descriptor = types::Fd(socket.as_raw_fd());
        let entry = opcode::Recv::new(descriptor, room.as_mut_ptr(), bytes).build();
        self.begin(Held { token, what: What::Receive { socket, buffer } }, entry)
    }

    /// Sends the buffer from `start` on.
    pub fn send(
        &mut self,
        token: u64,
        socket: Arc<TcpStream>,
        buffer: Vec<u8>,
        start: usize,
    ) -> io::Result<()> {
        let rest = &buffer[start..];
        let bytes = u32::try_from(rest.len()).map_err(io::Error::other)?;
        let descriptor = types::Fd(socket.as_raw_fd());
        let entry = opcode::Send::new(descriptor, rest.as_ptr(), bytes).build();
        self.begin(Held { token, what: What::Send { socket, buffer } }, entry)
    }

    fn begin(&mut self, held: Held, entry: squeue::Entry) -> io::Result<()> {
        if self.ring.submission().is_full() {
            self.ring.submit()?;
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.held.push(None);
            self.held.len() - 1
        });
        self.held[place] = Some(held);
        let entry = entry.user_data(place as u64);
        // SAFETY: what the entry points to is a heap buffer in `self.held[place]`, which moves
        // with its `Vec` and is neither resized nor dropped before the completion that takes it
        // out, or before `Drop` has seen every completion. The socket is kept open alike.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|_| {
            // The kernel has never seen it.
            self.held[place] = None;
            self.free.push(place);
            io::Error::other("the submission queue is full")
        })
    }

    /// Submits what was begun, waits for one completion at least, and appends what is there.
    pub fn wait(&mut self, done: &mut Vec<Done>) -> io::Result<()> {
        match self.ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
        let Ring { ring, held, free } = self;
        for completion in ring.completion() {
            let place = completion.user_data() as usize;
            let Some(Held { token, what }) = held[place].take() else { continue };
            free.push(place);
            let result = match completion.result() {
                failed if failed < 0 => Err(io::Error::from_raw_os_error(-failed)),
                count => Ok(count),
            };
            done.push(match what {
                What::Accept(_) => {
                    let result = result.map(|descriptor| {
                        // SAFETY: the kernel has just made this descriptor for us alone.
                        unsafe { OwnedFd::from_raw_fd(descriptor) }.into()
                    });
                    Done::Accepted { token, result }
                }
                What::Receive { buffer, .. } => {
                    Done::Received { token, result: result.map(|count| count as usize), buffer }
                }
                What::Send { buffer, .. } => {
                    Done::Sent { token, result: result.map(|count| count as usize), buffer }
                }
            });
        }
        Ok(())
    }
}

impl Drop for Ring {
    /// Cuts every socket that an operation waits for, and waits for all operations: only then
    /// does the kernel leave the buffers alone.
    fn drop(&mut self) {
        for held in self.held.iter().flatten() {
            // SAFETY: takes no pointer; the descriptor is open, for `held` keeps it.
            unsafe { libc::shutdown(held.what.descriptor(), libc::SHUT_RDWR) };
        }
        let mut done = Vec::new();
        while self.held.iter().any(Option::is_some) {
            if self.wait(&mut done).is_err() {
                // What the kernel may still write to must not be freed.
                std::mem::forget(std::mem::take(&mut self.held));
            }
        }
    }
}
