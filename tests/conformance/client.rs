//! A client that has no opinions: it sends the bytes it is given and keeps what comes back, in
//! the order in which it came.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::trial::Stop;
use crate::wire::{In, Malformed, Out, Request, framed, hex};

/// How long an answer may take before it counts as missing. Long, because the machine may be
/// busy; nothing waits for it unless a case fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A socket that speaks frames.
pub(crate) struct Wire {
    stream: TcpStream,
}

/// What a read of the socket found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    Frame(Vec<u8>),
    Closed,
}

impl Wire {
    pub(crate) fn open(address: SocketAddr) -> Result<Wire, Stop> {
        // Not `connect_timeout`, which fails where the server has accepted and closed already.
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Wire { stream })
    }

    /// Sends bytes as they are. A server may have closed already: then the read will say so.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        match self.stream.write_all(bytes) {
            Err(e) if is_close(&e) => Ok(()),
            other => Ok(other?),
        }
    }

    /// The next frame, or the end of the stream, before `deadline`.
    pub(crate) fn receive(&mut self, deadline: Instant) -> Result<Incoming, Stop> {
        let mut length = [0; 4];
        if self.fill(&mut length, deadline)? < 4 {
            return Ok(Incoming::Closed);
        }
        let length = i32::from_be_bytes(length);
        let length = usize::try_from(length)
            .map_err(|_| Stop::new(format!("the server announced a frame of {length} bytes")))?;
        let mut payload = vec![0; length];
        if self.fill(&mut payload, deadline)? < length {
            return Err(Stop::new(format!("the stream ended inside a frame of {length} bytes")));
        }
        Ok(Incoming::Frame(payload))
    }

    /// Everything up to the end of the stream, unframed.
    pub(crate) fn drain(&mut self) -> Result<Vec<u8>, Stop> {
        let deadline = Instant::now() + PATIENCE;
        let (mut all, mut chunk) = (Vec::new(), [0; 4096]);
        loop {
            match self.read(&mut chunk, deadline)? {
                0 => return Ok(all),
                n => all.extend_from_slice(&chunk[..n]),
            }
        }
    }

    /// Goes away without a word.
    pub(crate) fn drop_connection(&self) -> Result<(), Stop> {
        Ok(self.stream.shutdown(Shutdown::Both)?)
    }

    /// How many bytes could be had before the stream ended.
    fn fill(&mut self, bytes: &mut [u8], deadline: Instant) -> Result<usize, Stop> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.read(&mut bytes[filled..], deadline)? {
                0 => break,
                n => filled += n,
            }
        }
        Ok(filled)
    }

    fn read(&mut self, bytes: &mut [u8], deadline: Instant) -> Result<usize, Stop> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match self.stream.read(bytes) {
            Ok(n) => Ok(n),
            Err(e) if is_close(&e) => Ok(0),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(Stop::new("nothing came from the server before the deadline"))
            }
            Err(e) => Err(e.into()),
        }
    }
}

/// A reset is a close too: it is what a close with unread input looks like from here.
fn is_close(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionAborted
    )
}

/// ConnectRequest, with room for everything that can be wrong with one.
#[derive(Clone, Debug)]
pub(crate) struct Connect {
    pub(crate) protocol: i32,
    pub(crate) last_zxid: i64,
    pub(crate) timeout_ms: i32,
    pub(crate) session: i64,
    pub(crate) password: Option<Vec<u8>>,
    /// Absent in what clients before 3.4, and some libraries today, send.
    pub(crate) read_only: Option<u8>,
    pub(crate) trailing: Vec<u8>,
}

impl Default for Connect {
    fn default() -> Connect {
        Connect {
            protocol: 0,
            last_zxid: 0,
            timeout_ms: 10_000,
            session: 0,
            password: Some(vec![0; 16]),
            read_only: Some(0),
            trailing: Vec::new(),
        }
    }
}

impl Connect {
    pub(crate) fn timeout(timeout_ms: i32) -> Connect {
        Connect { timeout_ms, ..Connect::default() }
    }

    pub(crate) fn session(session: i64, password: &[u8]) -> Connect {
        Connect { session, password: Some(password.to_vec()), ..Connect::default() }
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        let out = Out::new()
            .int(self.protocol)
            .long(self.last_zxid)
            .int(self.timeout_ms)
            .long(self.session);
        let out = match &self.password {
            Some(password) => out.buffer(password),
            None => out.null(),
        };
        let out = match self.read_only {
            Some(byte) => out.byte(byte),
            None => out,
        };
        framed(&out.bytes(&self.trailing).done())
    }
}

/// ConnectResponse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Connected {
    pub(crate) protocol: i32,
    pub(crate) timeout_ms: i32,
    pub(crate) session: i64,
    pub(crate) password: Vec<u8>,
    pub(crate) read_only: Option<u8>,
}

impl Connected {
    pub(crate) fn read(frame: &[u8]) -> Result<Connected, Malformed> {
        let mut input = In::new(frame);
        let connected = Connected {
            protocol: input.int()?,
            timeout_ms: input.int()?,
            session: input.long()?,
            password: input.buffer()?.ok_or_else(|| Malformed("a null password".into()))?,
            read_only: if input.left() > 0 { Some(input.byte()?) } else { None },
        };
        match input.left() {
            0 => Ok(connected),
            left => Err(Malformed(format!("{left} bytes behind a ConnectResponse"))),
        }
    }

    /// What an expired session, an unknown one and a wrong password are told.
    pub(crate) fn refusal() -> Connected {
        Connected {
            protocol: 0,
            timeout_ms: 0,
            session: 0,
            password: vec![0; 16],
            read_only: Some(0),
        }
    }
}

/// A reply to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) xid: i32,
    pub(crate) zxid: i64,
    pub(crate) err: i32,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    fn read(frame: &[u8]) -> Result<Reply, Malformed> {
        let mut input = In::new(frame);
        let (xid, zxid, err) = (input.int()?, input.long()?, input.int()?);
        Ok(Reply { xid, zxid, err, body: frame[16..].to_vec() })
    }

    pub(crate) fn input(&self) -> In<'_> {
        In::new(&self.body)
    }
}

/// A watch event and the zxid of its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) zxid: i64,
    pub(crate) kind: i32,
    pub(crate) state: i32,
    pub(crate) path: String,
}

/// Event types.
pub(crate) const CREATED: i32 = 1;
pub(crate) const DELETED: i32 = 2;
pub(crate) const CHANGED: i32 = 3;
pub(crate) const CHILDREN: i32 = 4;

/// What a client of an established session can get from its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Reply(Reply),
    Event(Event),
    Closed,
}

/// A session on a connection.
pub(crate) struct Client {
    pub(crate) wire: Wire,
    pub(crate) session: i64,
    pub(crate) password: Vec<u8>,
    pub(crate) timeout_ms: i32,
    address: SocketAddr,
    xid: i32,
    /// Events in the order of arrival that no case has asked for yet.
    events: Vec<Event>,
}

impl Client {
    /// A session established with `connect`, which must not be refused.
    pub(crate) fn connect(address: SocketAddr, connect: &Connect) -> Result<Client, Stop> {
        let mut wire = Wire::open(address)?;
        wire.send(&connect.frame())?;
        let connected = match wire.receive(Instant::now() + PATIENCE)? {
            Incoming::Frame(frame) => Connected::read(&frame)?,
            Incoming::Closed => return Err(Stop::new("the server closed instead of connecting")),
        };
        if connected.timeout_ms <= 0 {
            return Err(Stop::new(format!("the session was refused: {connected:?}")));
        }
        Ok(Client {
            wire,
            session: connected.session,
            password: connected.password,
            timeout_ms: connected.timeout_ms,
            address,
            xid: 0,
            events: Vec::new(),
        })
    }

    /// The same session on a new connection.
    pub(crate) fn reconnect(&self) -> Result<Client, Stop> {
        Client::connect(self.address, &Connect::session(self.session, &self.password))
    }

    pub(crate) fn send(&mut self, request: &Request) -> Result<i32, Stop> {
        self.xid += 1;
        self.send_as(self.xid, request)?;
        Ok(self.xid)
    }

    pub(crate) fn send_as(&mut self, xid: i32, request: &Request) -> Result<(), Stop> {
        self.wire.send(&request.frame(xid))
    }

    /// The next message of any kind.
    pub(crate) fn message(&mut self, deadline: Instant) -> Result<Message, Stop> {
        let frame = match self.wire.receive(deadline)? {
            Incoming::Frame(frame) => frame,
            Incoming::Closed => return Ok(Message::Closed),
        };
        let reply = Reply::read(&frame)?;
        if reply.xid != -1 {
            return Ok(Message::Reply(reply));
        }
        let mut input = reply.input();
        let event = Event {
            zxid: reply.zxid,
            kind: input.int()?,
            state: input.int()?,
            path: input.string()?,
        };
        match input.left() {
            0 => Ok(Message::Event(event)),
            _ => Err(Stop::new(format!("more than an event: {}", hex(&frame)))),
        }
    }

    /// The next reply; events before it are kept.
    pub(crate) fn reply(&mut self) -> Result<Reply, Stop> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.message(deadline)? {
                Message::Reply(reply) => return Ok(reply),
                Message::Event(event) => self.events.push(event),
                Message::Closed => {
                    return Err(Stop::new("the server closed instead of answering"));
                }
            }
        }
    }

    /// Sends a request and waits for the next reply.
    pub(crate) fn call(&mut self, request: &Request) -> Result<Reply, Stop> {
        self.send(request)?;
        self.reply()
    }

    /// The events that came before the last reply and were not taken yet.
    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Waits for the next event.
    pub(crate) fn event(&mut self, patience: Duration) -> Result<Event, Stop> {
        if !self.events.is_empty() {
            return Ok(self.events.remove(0));
        }
        match self.message(Instant::now() + patience)? {
            Message::Event(event) => Ok(event),
            other => Err(Stop::new(format!("an event was due, {other:?} came"))),
        }
    }

    /// The replies up to the end of the stream.
    pub(crate) fn replies_until_close(&mut self) -> Result<Vec<Reply>, Stop> {
        let deadline = Instant::now() + PATIENCE;
        let mut replies = Vec::new();
        loop {
            match self.message(deadline)? {
                Message::Reply(reply) => replies.push(reply),
                Message::Event(event) => self.events.push(event),
                Message::Closed => return Ok(replies),
            }
        }
    }
}
