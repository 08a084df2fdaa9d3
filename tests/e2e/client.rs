//! A client as simple as can be: blocking, over the library's own records.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ringkeeper::jute::frame::{self, Front};
use ringkeeper::jute::record::Record;
use ringkeeper::jute::{Reader, Write as _};
use ringkeeper::record::data::{AclBytes, Stat};
use ringkeeper::record::op::code;
use ringkeeper::record::proto::{
    ConnectRequest, ConnectResponse, CreateRequest, GetDataResponse, PathWatch, ReplyHeader,
    RequestHeader, SetDataRequest,
};

pub(crate) struct Client {
    stream: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
    next_xid: i32,
    pub(crate) session: ConnectResponse,
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
            match Client::try_connect(address) {
                Ok(client) => return Ok(client),
                Err(error) if deadline < now() => return Err(error),
                Err(_) => std::thread::yield_now(),
            }
        }
    }

    fn try_connect(address: SocketAddr) -> io::Result<Client> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut client = Client {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            next_xid: 1,
            session: ConnectResponse::refusal(None),
        };
        let connect = ConnectRequest {
            protocol_version: 0,
            last_zxid_seen: 0,
            timeout_ms: 30_000,
            session: 0,
            password: Some(&[0; 16]),
            read_only: Some(false),
        };
        frame::write(&mut client.output, |out| connect.write(out));
        client.flush()?;
        let body = client.frame()?;
        client.session =
            ConnectResponse::read(&mut Reader::new(&body)).map_err(io::Error::other)?;
        Ok(client)
    }

    /// Queues a request; `flush` sends.
    fn request(&mut self, op: i32, body: impl FnOnce(&mut Vec<u8>)) -> i32 {
        let xid = self.next_xid;
        self.next_xid += 1;
        frame::write(&mut self.output, |out| {
            RequestHeader { xid, op }.write(out);
            body(out);
        });
        xid
    }

    pub(crate) fn create(&mut self, path: &str, data: &[u8]) -> i32 {
        let create = CreateRequest {
            path: Some(path.into()),
            data: Some(data),
            acl: AclBytes::OPEN,
            flags: 0,
        };
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
            let mut chunk = [0; 16 << 10];
            match self.stream.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.input.extend_from_slice(&chunk[..count]),
            }
        }
    }
}

impl Reply {
    pub(crate) fn data(&self) -> (Vec<u8>, Stat) {
        let response = GetDataResponse::read(&mut Reader::new(&self.body));
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
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut out = Vec::new();
    out.put_i32(i32::from_be_bytes(*word));
    stream.write_all(&out)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
