//! One connection of a ZooKeeper client, over the server's own records.
//!
//! Requests gather in a buffer and leave in one write; what a read returned is cut into frames
//! in place, and only an unfinished tail is kept. A server answers a session in order, so the
//! requests in flight are a queue, and a reply whose xid is not the oldest one's ends the run:
//! nothing measured of such a server means anything.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use ringkeeper::jute::frame::{self, Front};
use ringkeeper::jute::record::Record;
use ringkeeper::jute::{Malformed, Reader, Write as _};
use ringkeeper::record::data::AclBytes;
use ringkeeper::record::op::{code, xid};
use ringkeeper::record::proto::{
    ConnectRequest, ConnectResponse, ReplyHeader, RequestHeader, SetWatches,
};

use crate::sys;

/// What a read takes at once, at least.
const CHUNK_BYTES: usize = 64 * 1024;
/// The longest reply we accept: a listing of a million children is about 20 MB.
const REPLY_BYTES_MAX: usize = 256 << 20;

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    #[error("closed by the server")]
    Closed,
    #[error("session refused by the server")]
    Refused,
    #[error("nothing heard from the server for two thirds of the session timeout")]
    Silent,
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The server broke the protocol.
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
}

/// What a server sent. `T` is what was handed in with the request.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival<'a, T> {
    /// The session is established.
    Connected,
    Reply {
        tag: T,
        zxid: i64,
        /// 0, or the number of an error.
        err: i32,
        body: &'a [u8],
    },
    /// A watch event, as its record's bytes.
    Event {
        zxid: i64,
        body: &'a [u8],
    },
    Pong,
    /// Watches are set again, or not: 0, or the number of an error.
    WatchesSet {
        err: i32,
    },
    /// The session is closed, as asked.
    Ended,
}

/// What a connection goes on from; all zero for a client that has seen nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    /// 0: a new session is asked for.
    session: i64,
    password: [u8; 16],
    /// The last zxid seen, which a server that serves us has reached.
    zxid: i64,
    /// The last xid asked with. Servers tell a session's requests apart by it.
    xid: i32,
}

impl Resume {
    #[must_use]
    pub fn has_session(self) -> bool {
        self.session != 0
    }

    /// The same with a new session, for one that has expired.
    #[must_use]
    pub fn without_session(self) -> Resume {
        Resume { session: 0, password: [0; 16], ..self }
    }
}

/// The xid of our closeSession. Requests count from 1.
const XID_CLOSE: i32 = 0;

/// A connection and its session.
pub struct Connection<T> {
    socket: TcpStream,
    /// The server's answer to our `ConnectRequest`, once it is here.
    greeting: Option<ConnectResponse>,
    output: Vec<u8>,
    /// How much of `output` has been written.
    written: usize,
    /// The front of a frame whose rest is yet to come.
    tail: Vec<u8>,
    in_flight: VecDeque<(i32, T)>,
    xid: i32,
    from: Resume,
    /// The last that a reply has told.
    zxid: i64,
}

impl<T> AsRawFd for Connection<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl<T> Connection<T> {
    /// Connects and asks for a new session; the request leaves with the first `flush`.
    pub fn open(
        server: SocketAddr,
        session_timeout_ms: i32,
        within: Duration,
    ) -> Result<Connection<T>, Lost> {
        let socket = TcpStream::connect_timeout(&server, within)?;
        Connection::over(socket, session_timeout_ms, None)
    }

    /// Begins to connect, without waiting, and asks for a new session, or for one that lives
    /// already. The socket becomes writable, or readable with an error.
    pub fn begin(
        server: SocketAddr,
        session_timeout_ms: i32,
        resume: Option<Resume>,
    ) -> Result<Connection<T>, Lost> {
        Connection::over(sys::connect_nonblocking(server)?, session_timeout_ms, resume)
    }

    fn over(
        socket: TcpStream,
        session_timeout_ms: i32,
        resume: Option<Resume>,
    ) -> Result<Connection<T>, Lost> {
        socket.set_nodelay(true)?;
        let from = resume.unwrap_or_default();
        let mut output = Vec::new();
        frame::write(&mut output, |out| {
            ConnectRequest {
                protocol_version: 0,
                last_zxid_seen: from.zxid,
                timeout_ms: session_timeout_ms,
                session: from.session,
                password: Some(&from.password),
                read_only: Some(false),
            }
            .write(out);
        });
        Ok(Connection {
            socket,
            greeting: None,
            output,
            written: 0,
            tail: Vec::new(),
            in_flight: VecDeque::new(),
            xid: from.xid,
            from,
            zxid: from.zxid,
        })
    }

    /// What resumes this session over another connection, once it is established.
    #[must_use]
    pub fn resume(&self) -> Option<Resume> {
        let greeting = self.greeting.as_ref()?;
        let ConnectResponse { session, password, .. } = *greeting;
        Some(Resume { session, password, zxid: self.zxid, xid: self.xid })
    }

    pub fn set_nonblocking(&self) -> Result<(), Lost> {
        Ok(self.socket.set_nonblocking(true)?)
    }

    #[must_use]
    pub fn greeting(&self) -> Option<&ConnectResponse> {
        self.greeting.as_ref()
    }

    /// How many requests wait for their reply.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// What was handed in with the requests that wait for their reply, oldest first.
    pub fn unanswered(&self) -> impl Iterator<Item = &T> {
        self.in_flight.iter().map(|(_, tag)| tag)
    }

    /// Puts a request into the buffer. `body` appends its record.
    pub fn ask(&mut self, tag: T, op: i32, body: impl FnOnce(&mut Vec<u8>)) {
        self.xid = if self.xid == i32::MAX { 1 } else { self.xid + 1 };
        self.put(self.xid, op, body);
        self.in_flight.push_back((self.xid, tag));
    }

    /// Puts a ping into the buffer, which keeps the session alive.
    pub fn ping(&mut self) {
        self.put(xid::PING, code::PING, |_| {});
    }

    /// Puts a request into the buffer that sets watches again, as clients do that have come back.
    pub fn set_watches(&mut self, record: &SetWatches<'_>) {
        self.put(xid::SET_WATCHES, code::SET_WATCHES, |out| record.write(out));
    }

    /// The last zxid that a reply has told.
    #[must_use]
    pub fn zxid(&self) -> i64 {
        self.zxid
    }

    /// Puts the request that ends the session into the buffer.
    pub fn close(&mut self) {
        self.put(XID_CLOSE, code::CLOSE_SESSION, |_| {});
    }

    fn put(&mut self, xid: i32, op: i32, body: impl FnOnce(&mut Vec<u8>)) {
        frame::write(&mut self.output, |out| {
            RequestHeader { xid, op }.write(out);
            body(out);
        });
    }

    /// Writes what has gathered. `false`: the socket took no more, wait until it is writable.
    pub fn flush(&mut self) -> Result<bool, Lost> {
        while self.written < self.output.len() {
            match self.socket.write(&self.output[self.written..]) {
                Ok(0) => return Err(Lost::Closed),
                Ok(count) => self.written += count,
                Err(error) if is_not_yet(&error) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.output.clear();
        self.written = 0;
        Ok(true)
    }

    /// Reads once into `chunk`, behind the tail of the last time. Cut what is returned with
    /// `take`, then give the rest to `keep`.
    pub fn receive<'a>(&mut self, chunk: &'a mut Vec<u8>) -> Result<&'a [u8], Lost> {
        let kept = self.tail.len();
        let wanted = match frame::cut(&self.tail, REPLY_BYTES_MAX) {
            Front::Incomplete { bytes } => bytes.max(kept + CHUNK_BYTES),
            Front::Frame { .. } | Front::BadLength(_) => kept + CHUNK_BYTES,
        };
        if chunk.len() < wanted {
            chunk.resize(wanted, 0);
        }
        chunk[..kept].copy_from_slice(&self.tail);
        self.tail.clear();
        loop {
            match self.socket.read(&mut chunk[kept..]) {
                Ok(0) => return Err(Lost::Closed),
                Ok(count) => return Ok(&chunk[..kept + count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(&chunk[..kept]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Cuts the next frame from the front of `input` and says what it is.
    pub fn take<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Arrival<'a, T>>, Lost> {
        let body = match frame::cut(input, REPLY_BYTES_MAX) {
            Front::Frame { body } => body,
            Front::Incomplete { .. } => return Ok(None),
            Front::BadLength(length) => {
                return Err(Lost::Protocol(format!("a frame of {length} bytes")));
            }
        };
        *input = &input[frame::PREFIX_BYTES + body.len()..];
        let mut reader = Reader::new(body);
        let broken = |error| Lost::Protocol(format!("{error} in a frame of {} bytes", body.len()));
        if self.greeting.is_none() {
            let greeting = ConnectResponse::read(&mut reader).map_err(broken)?;
            if greeting.timeout_ms <= 0 {
                return Err(Lost::Refused);
            }
            if self.from.has_session() && greeting.session != self.from.session {
                let (asked, given) = (self.from.session, greeting.session);
                return Err(Lost::Protocol(format!("session {asked:#x} resumed as {given:#x}")));
            }
            self.greeting = Some(greeting);
            return Ok(Some(Arrival::Connected));
        }
        let header = ReplyHeader::read(&mut reader).map_err(broken)?;
        Ok(Some(match header.xid {
            xid::PING => Arrival::Pong,
            xid::SET_WATCHES => Arrival::WatchesSet { err: header.err },
            XID_CLOSE => Arrival::Ended,
            xid::NOTIFICATION => Arrival::Event { zxid: header.zxid, body: reader.rest() },
            found => match self.in_flight.pop_front() {
                Some((expected, tag)) if expected == found => {
                    self.zxid = self.zxid.max(header.zxid);
                    Arrival::Reply { tag, zxid: header.zxid, err: header.err, body: reader.rest() }
                }
                Some((expected, _)) => {
                    return Err(Lost::Protocol(format!(
                        "a reply to xid {found} where xid {expected} is next"
                    )));
                }
                None => {
                    return Err(Lost::Protocol(format!(
                        "a reply to xid {found} where nothing was asked"
                    )));
                }
            },
        }))
    }

    /// Keeps what `take` left, for the next `receive`.
    pub fn keep(&mut self, rest: &[u8]) {
        debug_assert!(self.tail.is_empty(), "receive has taken the last tail");
        self.tail.extend_from_slice(rest);
    }
}

/// Whether a socket takes no more for now, or is not connected yet.
fn is_not_yet(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected)
}

/// The names in the reply to a request for children.
pub fn names(body: &[u8]) -> Result<Vec<String>, Malformed> {
    let mut reader = Reader::new(body);
    let count = reader.count()?.unwrap_or(0);
    let name = |_| Ok(reader.text()?.unwrap_or_default().into_owned());
    (0..count).map(name).collect()
}

/// A client that waits for each reply, for what is not measured.
pub struct Session {
    connection: Connection<()>,
    chunk: Vec<u8>,
    rest: Vec<u8>,
}

/// A reply's error number, or its body.
pub type Answer = Result<Vec<u8>, i32>;

impl Session {
    /// Connects and waits for the session. `within` bounds every wait of this session.
    pub fn connect(
        server: SocketAddr,
        session_timeout_ms: i32,
        within: Duration,
    ) -> Result<Session, Lost> {
        let connection = Connection::open(server, session_timeout_ms, within)?;
        connection.socket.set_read_timeout(Some(within))?;
        let mut session = Session { connection, chunk: Vec::new(), rest: Vec::new() };
        session.connection.flush()?;
        session.wait()?;
        Ok(session)
    }

    /// Creates a persistent, empty znode, and every one above it that does not exist.
    pub fn create_all(&mut self, path: &str) -> Result<Result<(), i32>, Lost> {
        const NODE_EXISTS: i32 = -110;
        let ends = path.match_indices('/').map(|(end, _)| end).skip(1).chain([path.len()]);
        for end in ends.filter(|&end| 1 < end) {
            let answer = self.call(code::CREATE, |out| {
                out.put_text(&path[..end]);
                out.put_buffer(Some(b""));
                AclBytes::OPEN.write(out);
                out.put_i32(0);
            })?;
            match answer {
                Ok(_) | Err(NODE_EXISTS) => {}
                Err(err) => return Ok(Err(err)),
            }
        }
        Ok(Ok(()))
    }

    /// The names of a znode's children.
    pub fn children(&mut self, path: &str) -> Result<Result<Vec<String>, i32>, Lost> {
        let answer = self.call(code::GET_CHILDREN, |out| {
            out.put_text(path);
            out.put_bool(false);
        })?;
        Ok(match answer {
            Ok(body) => Ok(names(&body).map_err(|error| Lost::Protocol(error.to_string()))?),
            Err(err) => Err(err),
        })
    }

    /// Has this session's server catch up with the leader.
    pub fn sync(&mut self, path: &str) -> Result<Answer, Lost> {
        self.call(code::SYNC, |out| out.put_text(path))
    }

    /// A znode's data and stat.
    pub fn data(&mut self, path: &str) -> Result<Answer, Lost> {
        self.call(code::GET_DATA, |out| {
            out.put_text(path);
            out.put_bool(false);
        })
    }

    pub fn delete(&mut self, path: &str) -> Result<Answer, Lost> {
        self.call(code::DELETE, |out| {
            out.put_text(path);
            out.put_i32(-1);
        })
    }

    fn call(&mut self, op: i32, body: impl FnOnce(&mut Vec<u8>)) -> Result<Answer, Lost> {
        self.connection.ask((), op, body);
        self.connection.flush()?;
        Ok(self.wait()?.expect("a reply, for one was asked for"))
    }

    /// Waits for the next reply, or for the session to be established (`None`).
    fn wait(&mut self) -> Result<Option<Answer>, Lost> {
        loop {
            let had = self.rest.len();
            self.connection.keep(&self.rest);
            self.rest.clear();
            let mut input = self.connection.receive(&mut self.chunk)?;
            if input.len() == had {
                return Err(Lost::Io(io::ErrorKind::TimedOut.into()));
            }
            let mut found = None;
            while found.is_none()
                && let Some(arrival) = self.connection.take(&mut input)?
            {
                found = match arrival {
                    Arrival::Connected => Some(None),
                    Arrival::Reply { err: 0, body, .. } => Some(Some(Ok(body.to_vec()))),
                    Arrival::Reply { err, .. } => Some(Some(Err(err))),
                    Arrival::Event { .. } | Arrival::Pong | Arrival::WatchesSet { .. } => None,
                    Arrival::Ended => return Err(Lost::Closed),
                };
            }
            self.rest.extend_from_slice(input);
            if let Some(found) = found {
                return Ok(found);
            }
        }
    }

    /// Ends the session. Best effort: a server that is gone has ended it too.
    pub fn close(mut self) {
        self.connection.close();
        if self.connection.flush().is_ok() {
            let _ = self.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const WITHIN: Duration = Duration::from_secs(10);

    /// A connection to a server that has sent these bytes.
    fn scripted(bytes: &[u8]) -> Connection<&'static str> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connection = Connection::open(listener.local_addr().unwrap(), 10_000, WITHIN).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.write_all(bytes).unwrap();
        connection
    }

    fn greeting() -> Vec<u8> {
        let mut bytes = Vec::new();
        frame::write(&mut bytes, |out| {
            ConnectResponse {
                timeout_ms: 10_000,
                session: 7,
                password: [1; 16],
                read_only: Some(false),
            }
            .write(out);
        });
        bytes
    }

    fn reply(bytes: &mut Vec<u8>, xid: i32, err: i32, body: &[u8]) {
        frame::write(bytes, |out| {
            ReplyHeader { xid, zxid: 1, err }.write(out);
            out.extend_from_slice(body);
        });
    }

    #[test]
    fn replies_are_matched_in_order_and_pings_stand_aside() {
        let mut bytes = greeting();
        reply(&mut bytes, 1, 0, b"one");
        reply(&mut bytes, xid::PING, 0, b"");
        reply(&mut bytes, xid::NOTIFICATION, 0, b"event");
        reply(&mut bytes, 2, -101, b"");
        let whole = bytes.len();
        reply(&mut bytes, 3, 0, b"three");
        bytes.truncate(whole + 5);
        let mut connection = scripted(&bytes);
        connection.ask("first", code::EXISTS, |_| {});
        connection.ask("second", code::EXISTS, |_| {});
        let mut chunk = Vec::new();
        let mut arrived = Vec::new();
        while arrived.len() < 5 || connection.tail.len() < 5 {
            let mut input = connection.receive(&mut chunk).unwrap();
            while let Some(arrival) = connection.take(&mut input).unwrap() {
                arrived.push(format!("{arrival:?}"));
            }
            connection.keep(input);
        }
        assert_eq!(
            arrived,
            [
                "Connected",
                "Reply { tag: \"first\", zxid: 1, err: 0, body: [111, 110, 101] }",
                "Pong",
                "Event { zxid: 1, body: [101, 118, 101, 110, 116] }",
                "Reply { tag: \"second\", zxid: 1, err: -101, body: [] }",
            ]
        );
        assert_eq!(connection.tail.len(), 5);
        assert_eq!(connection.in_flight(), 0);
    }

    fn first_error(bytes: &[u8]) -> Lost {
        let mut connection = scripted(bytes);
        connection.ask("first", code::EXISTS, |_| {});
        let mut chunk = Vec::new();
        loop {
            let mut input = connection.receive(&mut chunk).unwrap();
            loop {
                match connection.take(&mut input) {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(error) => return error,
                }
            }
            connection.keep(input);
        }
    }

    #[test]
    fn a_reply_out_of_order_or_a_broken_frame_is_the_servers_fault() {
        let mut bytes = greeting();
        reply(&mut bytes, 2, 0, b"");
        assert_eq!(
            first_error(&bytes).to_string(),
            "the server broke the protocol: a reply to xid 2 where xid 1 is next"
        );
        let mut bytes = greeting();
        reply(&mut bytes, 1, 0, b"");
        reply(&mut bytes, 2, 0, b"");
        assert!(matches!(first_error(&bytes), Lost::Protocol(_)));
        let mut bytes = greeting();
        bytes.extend_from_slice(&(-3i32).to_be_bytes());
        assert!(matches!(first_error(&bytes), Lost::Protocol(_)));
        let mut bytes = Vec::new();
        frame::write(&mut bytes, |out| ConnectResponse::refusal(Some(false)).write(out));
        assert!(matches!(first_error(&bytes), Lost::Refused));
    }
}
