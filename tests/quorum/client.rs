//! A client that knows as much as these tests need.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use ringkeeper::jute::{Reader, Write as _};
use ringkeeper::record::op::code;

pub(crate) struct Client {
    socket: TcpStream,
    xid: i32,
}

impl Client {
    pub(crate) fn connect(port: u16) -> Client {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut client = Client { socket, xid: 0 };
        let mut connect = Vec::new();
        connect.put_i32(0);
        connect.put_i64(0);
        connect.put_i32(30_000);
        connect.put_i64(0);
        connect.put_buffer(Some(&[0; 16]));
        client.send(&connect);
        let answer = client.receive();
        let timeout_ms = Reader::new(&answer[4..]).i32().unwrap();
        assert!(0 < timeout_ms, "no session");
        client
    }

    fn send(&mut self, body: &[u8]) {
        let mut frame = (body.len() as i32).to_be_bytes().to_vec();
        frame.extend_from_slice(body);
        self.socket.write_all(&frame).unwrap();
    }

    fn receive(&mut self) -> Vec<u8> {
        let mut prefix = [0; 4];
        self.socket.read_exact(&mut prefix).unwrap();
        let mut body = vec![0; i32::from_be_bytes(prefix) as usize];
        self.socket.read_exact(&mut body).unwrap();
        body
    }

    /// The zxid and the error of the answer, and what follows.
    fn ask(&mut self, op: i32, body: &[u8]) -> (i64, i32, Vec<u8>) {
        self.xid += 1;
        let mut request = Vec::new();
        request.put_i32(self.xid);
        request.put_i32(op);
        request.extend_from_slice(body);
        self.send(&request);
        let answer = self.receive();
        let mut reader = Reader::new(&answer);
        assert_eq!(reader.i32().unwrap(), self.xid);
        (reader.i64().unwrap(), reader.i32().unwrap(), reader.rest().to_vec())
    }

    /// Creates a znode and says which zxid it has.
    pub(crate) fn create(&mut self, path: &str, data: &str) -> i64 {
        let mut body = Vec::new();
        body.put_text(path);
        body.put_buffer(Some(data.as_bytes()));
        body.put_count(Some(1));
        body.put_i32(31);
        body.put_text("world");
        body.put_text("anyone");
        body.put_i32(0);
        let (zxid, error, _) = self.ask(code::CREATE, &body);
        assert_eq!(error, 0, "create {path}");
        zxid
    }

    pub(crate) fn sync(&mut self) {
        let mut body = Vec::new();
        body.put_text("/");
        let (_, error, _) = self.ask(code::SYNC, &body);
        assert_eq!(error, 0);
    }

    pub(crate) fn data(&mut self, path: &str) -> String {
        let mut body = Vec::new();
        body.put_text(path);
        body.put_bool(false);
        let (_, error, answer) = self.ask(code::GET_DATA, &body);
        assert_eq!(error, 0, "getData {path}");
        let data = Reader::new(&answer).buffer().unwrap().unwrap().to_vec();
        String::from_utf8(data).unwrap()
    }
}
