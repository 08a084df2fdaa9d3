//! A client as simple as can be: blocking, over the library's own records.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ringkeeper::jute::frame::{self, Front};
use ringkeeper::jute::record::Record;
use ringkeeper::jute::{Reader, Write as _};
use ringkeeper::record::data::{AclBytes, Stat};
use ringkeeper::record::op::code;
use ringkeeper::record::op::xid;
use ringkeeper::record::proto::{
    ConnectRequest, ConnectResponse, CreateRequest, GetDataResponse, PathOnly, PathWatch,
    ReplyHeader, RequestHeader, SetDataRequest, WatcherEvent,
};

pub(crate) struct Client {
    stream: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
    next_xid: i32,
    pub(crate) session: ConnectResponse,
}

/// How a client connects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// Of its session.
    pub(crate) timeout_ms: i32,
    /// How long an answer may take.
    pub(crate) patience: Duration,
    /// The newest transaction that it knows of.
    pub(crate) last_zxid_seen: i64,
    /// Whether a server will do that only reads.
    pub(crate) read_only: bool,
}

impl Default for Terms {
    fn default() -> Terms {
        Terms {
            timeout_ms: 30_000,
            patience: Duration::from_secs(30),
            last_zxid_seen: 0,
            read_only: false,
        }
    }
}

/// A reply's header and body.
pub(crate) struct Reply {
    pub(crate) header: ReplyHeader,
    pub(crate) body: Vec<u8>,
}

impl Client {
    /// Connects, waiting for the server to listen until the deadline.
    pub(crate) fn connect(address: SocketAddr, deadline: Instant) -> io::Result<Client> {
        loop {
            match Client::try_connect(address, None) {
                Ok(client) => return Ok(client),
                Err(error) if deadline < now() => return Err(error),
                // Between two tries the CPU is the server's: there may be only one.
                Err(_) => std::thread::park_timeout(Duration::from_millis(1)),
            }
        }
    }

    /// Connects once, with the session of another connection if there is one to go on with.
    pub(crate) fn try_connect(
        address: SocketAddr,
        session: Option<ConnectResponse>,
    ) -> io::Result<Client> {
        let mut client = Client::begin(address, session)?;
        client.finish()?;
        Ok(client)
    }

    /// Connects and asks for a session, which `finish` waits for.
    pub(crate) fn begin(
        address: SocketAddr,
        session: Option<ConnectResponse>,
    ) -> io::Result<Client> {
        Client::begin_as(address, session, Terms::default())
    }

    pub(crate) fn begin_as(
        address: SocketAddr,
        session: Option<ConnectResponse>,
        terms: Terms,
    ) -> io::Result<Client> {
        let Terms { timeout_ms, patience, last_zxid_seen, read_only } = terms;
        let stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        let session = session.unwrap_or(ConnectResponse::refusal(None));
        let mut client =
            Client { stream, input: Vec::new(), output: Vec::new(), next_xid: 1, session };
        let connect = ConnectRequest {
            protocol_version: 0,
            last_zxid_seen,
            timeout_ms,
            session: session.session,
            password: Some(&session.password),
            read_only: Some(read_only),
        };
        frame::write(&mut client.output, |out| connect.write(out));
        client.flush()?;
        Ok(client)
    }

    pub(crate) fn finish(&mut self) -> io::Result<()> {
        let body = self.frame()?;
        self.session = ConnectResponse::read(&mut Reader::new(&body)).map_err(io::Error::other)?;
        Ok(())
    }

    /// Queues a request; `flush` sends.
    pub(crate) fn request(&mut self, op: i32, body: impl FnOnce(&mut Vec<u8>)) -> i32 {
        let xid = self.next_xid;
        self.next_xid += 1;
        frame::write(&mut self.output, |out| {
            RequestHeader { xid, op }.write(out);
            body(out);
        });
        xid
    }

    pub(crate) fn create(&mut self, path: &str, data: &[u8]) -> i32 {
        self.create_as(path, data, 0)
    }

    /// With the flags of a `CreateMode`: 1 is ephemeral.
    pub(crate) fn create_as(&mut self, path: &str, data: &[u8], flags: i32) -> i32 {
        let create =
            CreateRequest { path: Some(path.into()), data: Some(data), acl: AclBytes::OPEN, flags };
        self.request(code::CREATE, |out| create.write(out))
    }

    pub(crate) fn set(&mut self, path: &str, data: &[u8]) -> i32 {
        let set = SetDataRequest { path: Some(path.into()), data: Some(data), version: -1 };
        self.request(code::SET_DATA, |out| set.write(out))
    }

    pub(crate) fn get(&mut self, path: &str) -> i32 {
        let get = PathWatch { path: Some(path.into()), watch: false };
        self.request(code::GET_DATA, |out| get.write(out))
    }

    /// exists, with a watch.
    pub(crate) fn watch(&mut self, path: &str) -> i32 {
        let watch = PathWatch { path: Some(path.into()), watch: true };
        self.request(code::EXISTS, |out| watch.write(out))
    }

    pub(crate) fn children(&mut self, path: &str) -> i32 {
        let children = PathWatch { path: Some(path.into()), watch: false };
        self.request(code::GET_CHILDREN, |out| children.write(out))
    }

    pub(crate) fn sync(&mut self, path: &str) -> i32 {
        let sync = PathOnly { path: Some(path.into()) };
        self.request(code::SYNC, |out| sync.write(out))
    }

    pub(crate) fn ping(&mut self) {
        frame::write(&mut self.output, |out| {
            RequestHeader { xid: xid::PING, op: code::PING }.write(out);
        });
    }

    /// A ping and all answers to pings so far.
    pub(crate) fn say_alive(&mut self) {
        self.ping();
        self.flush().expect("the connection is open");
        loop {
            let reply = self.reply().expect("the server answers");
            assert_eq!(reply.header.xid, xid::PING);
            if self.input.is_empty() {
                return;
            }
        }
    }

    /// Takes up to so many bytes that have come, and says how many.
    pub(crate) fn take(&mut self, bytes: usize) -> usize {
        let mut chunk = vec![0; bytes];
        let count = self.stream.read(&mut chunk).expect("the connection is open");
        self.input.extend_from_slice(&chunk[..count]);
        count
    }

    pub(crate) fn close_session(&mut self) -> i32 {
        self.request(code::CLOSE_SESSION, |_| {})
    }

    /// Sends what is queued, and reads the one reply, which must be no error.
    pub(crate) fn answer(&mut self) -> Reply {
        let reply = self.replies(1).expect("the server answers").remove(0);
        assert_eq!(reply.header.err, 0, "refused");
        reply
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.output)?;
        self.output.clear();
        Ok(())
    }

    /// The next reply.
    pub(crate) fn reply(&mut self) -> io::Result<Reply> {
        let body = self.frame()?;
        let mut reader = Reader::new(&body);
        let header = ReplyHeader::read(&mut reader).map_err(io::Error::other)?;
        Ok(Reply { header, body: reader.rest().to_vec() })
    }

    /// Sends what is queued, and reads one reply for each of `count` requests.
    pub(crate) fn replies(&mut self, count: usize) -> io::Result<Vec<Reply>> {
        self.flush()?;
        (0..count).map(|_| self.reply()).collect()
    }

    fn frame(&mut self) -> io::Result<Vec<u8>> {
        loop {
            match frame::cut(&self.input, i32::MAX as usize) {
                Front::Frame { body } => {
                    let body = body.to_vec();
                    self.input.drain(..body.len() + frame::PREFIX_BYTES);
                    return Ok(body);
                }
                Front::Incomplete { .. } => {}
                Front::BadLength(length) => {
                    return Err(io::Error::other(format!("a frame of {length} bytes")));
                }
            }
            let mut chunk = [0; 128 << 10];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.input.extend_from_slice(&chunk[..count]),
                // With a timeout, a read that is disturbed is not begun again by the kernel.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Reply {
    /// Kind and path of a watch event; `None` if this is a reply.
    pub(crate) fn event(&self) -> Option<(i32, String)> {
        if self.header.xid != xid::NOTIFICATION {
            return None;
        }
        let event = WatcherEvent::read(&mut Reader::new(&self.body)).expect("an event");
        Some((event.kind, event.path.expect("an event has a path").to_string()))
    }

    /// The names in a reply of getChildren.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut reader = Reader::new(&self.body);
        let count = reader.i32().expect("a count");
        let name = |_| reader.text().expect("a name").expect("names are there").to_string();
        (0..count).map(name).collect()
    }

    pub(crate) fn data(&self) -> (Vec<u8>, Stat) {
        // As long as the server has it, whatever a client would take.
        let mut reader = Reader::with_field_bytes_max(&self.body, self.body.len());
        let response = GetDataResponse::read(&mut reader);
        let GetDataResponse { data, stat } = response.expect("a reply of getData");
        (data.unwrap_or_default().to_vec(), stat)
    }
}

#[expect(clippy::disallowed_methods, reason = "a deadline of a test is in real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// One four-letter word's answer.
pub(crate) fn word(address: SocketAddr, word: &[u8; 4]) -> io::Result<String> {
    let patience = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut out = Vec::new();
    out.put_i32(i32::from_be_bytes(*word));
    stream.write_all(&out)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
