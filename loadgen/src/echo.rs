//! A server that does nothing but answer: one thread, one ring, one receive and one send for
//! each batch of requests, and replies of the length that the load expects.
//!
//! What it reaches is what the machine allows to any server for frames of these sizes; and since
//! it needs less than any, what loadgen drives it with is what loadgen can drive.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ringkeeper::jute::Reader;
use ringkeeper::jute::frame::{self, Front};
use ringkeeper::jute::record::Record as _;
use ringkeeper::record::op::code;
use ringkeeper::record::proto::{ConnectRequest, ConnectResponse, ReplyHeader, RequestHeader};

use crate::Fault;
use crate::ring::{Done, Ring};
use crate::sys;

const INPUT_BYTES: usize = 64 * 1024;
const REQUEST_BYTES_MAX: usize = 16 << 20;

/// An echo that runs. It ends when this is dropped.
pub struct Echo {
    address: SocketAddr,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<Duration>>>,
}

impl Echo {
    /// Starts it on some of the CPUs (none: wherever). `reply_bytes` is the length of the body of
    /// the reply to each operation by its code.
    pub fn start(reply_bytes: Vec<(i32, usize)>, cpus: &[usize]) -> Result<Echo, Fault> {
        let fault = |source| Fault::Process { what: "the echo over io_uring".to_owned(), source };
        let listener = TcpListener::bind("127.0.0.1:0").map_err(fault)?;
        let address = listener.local_addr().map_err(fault)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let (is_over_too, cpus) = (Arc::clone(&is_over), cpus.to_vec());
        // Here, so that a machine without io_uring is told apart at once.
        drop(Ring::new().map_err(fault)?);
        let thread = thread::spawn(move || {
            sys::stay_on(&cpus)?;
            serve(listener, &reply_bytes, &is_over_too)?;
            Ok(sys::thread_cpu())
        });
        Ok(Echo { address, is_over, thread: Some(thread) })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it, and says how much CPU time it took.
    pub fn end(mut self) -> Result<Duration, Fault> {
        self.end_now()
            .map_err(|source| Fault::Process { what: "the echo over io_uring".to_owned(), source })
    }

    fn end_now(&mut self) -> io::Result<Duration> {
        let Some(thread) = self.thread.take() else { return Ok(Duration::ZERO) };
        self.is_over.store(true, Ordering::Release);
        // It looks when somebody connects. If nobody can, it has ended by itself.
        drop(TcpStream::connect(self.address));
        thread.join().expect("a thread that panics ends the process")
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // Whoever wants to know how it went has called `end`.
        let _ = self.end_now();
    }
}

/// One client.
struct Line {
    socket: Arc<TcpStream>,
    is_greeted: bool,
    /// How much of the input waits for the rest of its frame.
    filled: usize,
    /// The buffer that is not in the kernel's hands: one of the two always is.
    spare: Vec<u8>,
    /// How much of the output has left.
    sent: usize,
}

const ACCEPT: u64 = u64::MAX;

fn serve(
    listener: TcpListener,
    reply_bytes: &[(i32, usize)],
    is_over: &AtomicBool,
) -> io::Result<()> {
    let listener = Arc::new(listener);
    let mut ring = Ring::new()?;
    ring.accept(ACCEPT, Arc::clone(&listener))?;
    let mut lines: Vec<Option<Line>> = Vec::new();
    let mut done = Vec::new();
    loop {
        ring.wait(&mut done)?;
        for done in done.drain(..) {
            match done {
                Done::Accepted { result, .. } => {
                    if is_over.load(Ordering::Acquire) {
                        return Ok(());
                    }
                    let socket = result?;
                    socket.set_nodelay(true)?;
                    let socket = Arc::new(socket);
                    let input = vec![0; INPUT_BYTES];
                    ring.receive(lines.len() as u64, Arc::clone(&socket), input, 0)?;
                    let spare = Vec::with_capacity(INPUT_BYTES);
                    let line = Line { socket, is_greeted: false, filled: 0, spare, sent: 0 };
                    lines.push(Some(line));
                    ring.accept(ACCEPT, Arc::clone(&listener))?;
                }
                Done::Received { token, result: Ok(count @ 1..), buffer } => {
                    let Some(line) = &mut lines[token as usize] else { continue };
                    line.filled += count;
                    let mut output = std::mem::take(&mut line.spare);
                    output.clear();
                    let input = line.answer(buffer, &mut output, reply_bytes)?;
                    let socket = Arc::clone(&line.socket);
                    if output.is_empty() {
                        line.spare = output;
                        ring.receive(token, socket, input, line.filled)?;
                    } else {
                        line.spare = input;
                        line.sent = 0;
                        ring.send(token, socket, output, 0)?;
                    }
                }
                Done::Sent { token, result: Ok(count), buffer } => {
                    let Some(line) = &mut lines[token as usize] else { continue };
                    line.sent += count;
                    let socket = Arc::clone(&line.socket);
                    if line.sent < buffer.len() {
                        ring.send(token, socket, buffer, line.sent)?;
                    } else {
                        let input = std::mem::replace(&mut line.spare, buffer);
                        ring.receive(token, socket, input, line.filled)?;
                    }
                }
                // A client that has gone.
                Done::Received { token, .. } | Done::Sent { token, .. } => {
                    lines[token as usize] = None;
                }
            }
        }
    }
}

impl Line {
    /// Answers the whole frames of the input, and gives it back with the rest at its front.
    fn answer(
        &mut self,
        mut buffer: Vec<u8>,
        output: &mut Vec<u8>,
        reply_bytes: &[(i32, usize)],
    ) -> io::Result<Vec<u8>> {
        let odd = |_| io::Error::other("a request that cannot be read");
        let mut at = 0;
        loop {
            let body = match frame::cut(&buffer[at..self.filled], REQUEST_BYTES_MAX) {
                Front::Frame { body } => body,
                Front::Incomplete { bytes } => {
                    let needed = bytes.max(INPUT_BYTES);
                    buffer.copy_within(at..self.filled, 0);
                    self.filled -= at;
                    if buffer.len() < needed {
                        buffer.resize(needed, 0);
                    }
                    return Ok(buffer);
                }
                Front::BadLength(length) => {
                    return Err(io::Error::other(format!("a request of {length} bytes")));
                }
            };
            at += frame::PREFIX_BYTES + body.len();
            let mut reader = Reader::new(body);
            if !self.is_greeted {
                self.is_greeted = true;
                let asked = ConnectRequest::read(&mut reader).map_err(odd)?;
                frame::write(output, |out| {
                    ConnectResponse {
                        timeout_ms: asked.timeout_ms,
                        session: 1,
                        password: [0; 16],
                        read_only: Some(false),
                    }
                    .write(out);
                });
                continue;
            }
            let RequestHeader { xid, op } = RequestHeader::read(&mut reader).map_err(odd)?;
            let bytes = match op {
                code::PING | code::CLOSE_SESSION => 0,
                op => reply_bytes.iter().find(|&&(code, _)| code == op).map_or(0, |&(_, n)| n),
            };
            frame::write(output, |out| {
                ReplyHeader { xid, zxid: 1, err: 0 }.write(out);
                out.resize(out.len() + bytes, 0);
            });
        }
    }
}
