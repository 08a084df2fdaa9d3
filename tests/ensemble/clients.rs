//! A client: one session, a few requests on their way, and another server when one is gone.

use std::collections::VecDeque;
use std::sync::Arc;

use ringkeeper::exchange::{ConnectionId, Outcome, Request, Requests, Span, Want};
use ringkeeper::jute::Write as _;
use ringkeeper::jute::record::Record as _;
use ringkeeper::record::code::Code;
use ringkeeper::record::data::{Acl, AclBytes, Id};
use ringkeeper::record::op::code;
use ringkeeper::record::proto::SetDataRequest;
use ringkeeper::record::proto::{CreateRequest, MULTI_END, MultiHeader, PathOnly, PathVersion};
use ringkeeper::types::{ServerId, SessionId, Xid, Zxid};

use crate::rng::Rng;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It has no connection.
    Away,
    /// It waits for a session, or for its session.
    Connecting,
    Connected,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) xid: Xid,
    pub(crate) op: i32,
}

pub(crate) struct Client {
    number: usize,
    pub(crate) state: State,
    /// The server, one life of it, and the connection.
    pub(crate) at: Option<((ServerId, u32), ConnectionId)>,
    pub(crate) session: SessionId,
    pub(crate) password: [u8; 16],
    timeout_ms: i32,
    last_zxid: Zxid,
    xid: i32,
    /// It counts its requests anew with each connection, as kazoo does.
    pub(crate) counts_anew: bool,
    made: u64,
    pub(crate) asked: VecDeque<Asked>,
    ids: Arc<[Id]>,
}

impl Client {
    pub(crate) fn new(number: usize, rng: &mut Rng) -> Client {
        Client {
            number,
            state: State::Away,
            at: None,
            session: SessionId(0),
            password: [0; 16],
            timeout_ms: *rng.pick(&[1_500, 4_000, 20_000]),
            last_zxid: Zxid::ZERO,
            xid: 0,
            counts_anew: rng.chance(300),
            made: 0,
            asked: VecDeque::new(),
            ids: Arc::from([Id::new("ip", "127.0.0.1")]),
        }
    }

    fn request(&self, xid: i32, want: Want, body: Vec<u8>) -> Requests {
        let (_, connection) = self.at.unwrap();
        let mut requests = Requests::new(ringkeeper::exchange::ShardId(0));
        let body_span = Span::since(0, body.len());
        requests.bodies = body;
        requests.requests.push(Request {
            connection,
            session: self.session,
            xid: Xid(xid),
            want,
            body: body_span,
            ids: Arc::clone(&self.ids),
        });
        requests
    }

    /// Asks for a session, or for its own.
    pub(crate) fn connect(&mut self, at: (ServerId, u32), connection: ConnectionId) -> Requests {
        (self.at, self.state) = (Some((at, connection)), State::Connecting);
        if self.counts_anew {
            self.xid = 0;
        }
        let (timeout_ms, last_zxid_seen) = (self.timeout_ms, self.last_zxid);
        let want = match self.session {
            SessionId(0) => Want::Open { timeout_ms, last_zxid_seen },
            _ => Want::Resume { timeout_ms, last_zxid_seen, password: self.password },
        };
        self.request(0, want, Vec::new())
    }

    /// Whether a shard would pass on more: behind a getEphemerals it waits for the answer.
    pub(crate) fn may_ask(&self) -> bool {
        self.asked.back().is_none_or(|asked| asked.op != code::GET_EPHEMERALS)
    }

    pub(crate) fn lose_connection(&mut self) {
        (self.at, self.state) = (None, State::Away);
        self.asked.clear();
    }

    pub(crate) fn forget_session(&mut self) {
        self.session = SessionId(0);
        self.lose_connection();
    }

    /// Some request.
    pub(crate) fn ask(&mut self, rng: &mut Rng) -> Requests {
        self.xid += 1;
        let xid = self.xid;
        let own = format!("/own-{}", self.number);
        let (op, want, body) = match rng.below(20) {
            0..=5 => {
                self.made += 1;
                let path = format!("/n-{}-{}", self.number, self.made);
                write(code::CREATE, create(&path, 0))
            }
            6 => write(code::CREATE2, create("/same", 0)),
            7 => {
                self.made += 1;
                let path = format!("/e-{}-{}", self.number, self.made);
                write(code::CREATE, create(&path, 1))
            }
            8 => write(code::CREATE2, create("/s-", 2)),
            9 => write(code::CREATE, create(&own, 0)),
            10..=12 => {
                let body = bytes(&SetDataRequest {
                    path: Some(own.into()),
                    data: Some(b"changed"),
                    version: -1,
                });
                write(code::SET_DATA, body)
            }
            13 => {
                let path = format!("/n-{}-{}", self.number, self.made);
                write(code::DELETE, bytes(&PathVersion { path: Some(path.into()), version: -1 }))
            }
            14 | 15 => {
                let mut body = Vec::new();
                let part = |kind, done| MultiHeader { kind, done, err: -1 };
                part(code::CREATE2, false).write(&mut body);
                self.made += 1;
                let path = format!("/n-{}-{}", self.number, self.made);
                body.extend(create(&path, 0));
                part(code::SET_DATA, false).write(&mut body);
                let path = if rng.coin() { path } else { "/missing".to_owned() };
                let data = Some(&b"multi"[..]);
                SetDataRequest { path: Some(path.into()), data, version: 0 }.write(&mut body);
                MULTI_END.write(&mut body);
                write(code::MULTI, body)
            }
            16 => (code::SYNC, Want::Sync, bytes(&PathOnly { path: Some("/".into()) })),
            17 => write(code::CREATE, b"malformed".to_vec()),
            18 if rng.chance(200) => (code::CLOSE_SESSION, Want::Close, Vec::new()),
            _ => {
                let body = bytes(&PathOnly { path: Some("/".into()) });
                (code::GET_EPHEMERALS, Want::Ephemerals, body)
            }
        };
        self.asked.push_back(Asked { xid: Xid(xid), op });
        self.request(xid, want, body)
    }

    /// An answer, or what became of the connection. Says what was answered.
    pub(crate) fn on_outcome(&mut self, zxid: Zxid, outcome: Outcome) -> Option<(Asked, Code)> {
        match outcome {
            Outcome::Connected { session, password, .. } => {
                assert_eq!(self.state, State::Connecting, "it is connected once");
                assert!(
                    self.session == SessionId(0) || self.session == session,
                    "a client has the session that it asked for"
                );
                (self.session, self.password, self.state) = (session, password, State::Connected);
                self.see(zxid);
                None
            }
            Outcome::Refused => {
                assert_eq!(self.state, State::Connecting, "who is connected is not refused");
                self.forget_session();
                None
            }
            Outcome::Dropped | Outcome::Ended => {
                self.lose_connection();
                None
            }
            Outcome::Answer { xid, err, close, .. } => {
                let asked = self.asked.pop_front().expect("an answer is to a request");
                assert_eq!(asked.xid, xid, "answers come in the order of requests");
                self.see(zxid);
                if close || err == Code::SessionExpired {
                    self.forget_session();
                }
                Some((asked, err))
            }
        }
    }

    /// History goes forward for a client, wherever it is connected.
    fn see(&mut self, zxid: Zxid) {
        assert!(self.last_zxid <= zxid, "{zxid} after {}", self.last_zxid);
        self.last_zxid = zxid;
    }
}

fn write(op: i32, body: Vec<u8>) -> (i32, Want, Vec<u8>) {
    (op, Want::Write { op }, body)
}

fn bytes<'a>(record: &impl ringkeeper::jute::record::Record<'a>) -> Vec<u8> {
    let mut bytes = Vec::new();
    record.write(&mut bytes);
    bytes
}

fn create(path: &str, flags: i32) -> Vec<u8> {
    let mut acl = Vec::new();
    acl.put_count(Some(1));
    Acl::new(31, "world", "anyone").write(&mut acl);
    let acl = AclBytes::from_bytes(&acl).unwrap();
    bytes(&CreateRequest { path: Some(path.into()), data: Some(b"data"), acl, flags })
}
