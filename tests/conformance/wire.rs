//! Jute and the client records, written once more and on purpose: the table is an independent
//! witness, so nothing here comes from the library it is to judge.
//!
//! ```text
//! message  := i32 length, payload
//! request  := i32 xid, i32 type, record
//! reply    := i32 xid, i64 zxid, i32 err, record when err is 0
//! buffer, string := i32 length (-1 is null), bytes       vector := i32 count (-1 is null), items
//! ```
//!
//! A [`Request`] can be built wrong as easily as right: [`Out`] writes whatever it is told.

use std::fmt::Write as _;

pub(crate) mod op {
    pub(crate) const CREATE: i32 = 1;
    pub(crate) const DELETE: i32 = 2;
    pub(crate) const EXISTS: i32 = 3;
    pub(crate) const GET_DATA: i32 = 4;
    pub(crate) const SET_DATA: i32 = 5;
    pub(crate) const GET_ACL: i32 = 6;
    pub(crate) const SET_ACL: i32 = 7;
    pub(crate) const GET_CHILDREN: i32 = 8;
    pub(crate) const SYNC: i32 = 9;
    pub(crate) const PING: i32 = 11;
    pub(crate) const GET_CHILDREN2: i32 = 12;
    pub(crate) const CHECK: i32 = 13;
    pub(crate) const MULTI: i32 = 14;
    pub(crate) const CREATE2: i32 = 15;
    pub(crate) const RECONFIG: i32 = 16;
    pub(crate) const CHECK_WATCHES: i32 = 17;
    pub(crate) const REMOVE_WATCHES: i32 = 18;
    pub(crate) const CREATE_CONTAINER: i32 = 19;
    pub(crate) const DELETE_CONTAINER: i32 = 20;
    pub(crate) const CREATE_TTL: i32 = 21;
    pub(crate) const MULTI_READ: i32 = 22;
    pub(crate) const AUTH: i32 = 100;
    pub(crate) const SET_WATCHES: i32 = 101;
    pub(crate) const SASL: i32 = 102;
    pub(crate) const GET_EPHEMERALS: i32 = 103;
    pub(crate) const GET_ALL_CHILDREN_NUMBER: i32 = 104;
    pub(crate) const SET_WATCHES2: i32 = 105;
    pub(crate) const ADD_WATCH: i32 = 106;
    pub(crate) const WHO_AM_I: i32 = 107;
    pub(crate) const CREATE_SESSION: i32 = -10;
    pub(crate) const CLOSE_SESSION: i32 = -11;
}

pub(crate) mod err {
    pub(crate) const OK: i32 = 0;
    pub(crate) const RUNTIME_INCONSISTENCY: i32 = -2;
    pub(crate) const MARSHALLING: i32 = -5;
    pub(crate) const UNIMPLEMENTED: i32 = -6;
    pub(crate) const BAD_ARGUMENTS: i32 = -8;
    pub(crate) const NO_NODE: i32 = -101;
    pub(crate) const NO_AUTH: i32 = -102;
    pub(crate) const BAD_VERSION: i32 = -103;
    pub(crate) const NO_CHILDREN_FOR_EPHEMERALS: i32 = -108;
    pub(crate) const NODE_EXISTS: i32 = -110;
    pub(crate) const NOT_EMPTY: i32 = -111;
    pub(crate) const SESSION_EXPIRED: i32 = -112;
    pub(crate) const INVALID_ACL: i32 = -114;
    pub(crate) const AUTH_FAILED: i32 = -115;
    pub(crate) const NO_WATCHER: i32 = -121;
    pub(crate) const RECONFIG_DISABLED: i32 = -123;
    pub(crate) const AUTH_REQUIRED: i32 = -124;
    pub(crate) const QUOTA_EXCEEDED: i32 = -125;
}

/// Create flags, an enumeration.
pub(crate) mod flags {
    pub(crate) const PERSISTENT: i32 = 0;
    pub(crate) const EPHEMERAL: i32 = 1;
    pub(crate) const SEQUENTIAL: i32 = 2;
    pub(crate) const EPHEMERAL_SEQUENTIAL: i32 = 3;
    pub(crate) const CONTAINER: i32 = 4;
    pub(crate) const TTL: i32 = 5;
    pub(crate) const SEQUENTIAL_TTL: i32 = 6;
}

/// Permission bits of an ACL entry.
pub(crate) mod perms {
    pub(crate) const READ: i32 = 1;
    pub(crate) const WRITE: i32 = 2;
    pub(crate) const CREATE: i32 = 4;
    pub(crate) const DELETE: i32 = 8;
    pub(crate) const ADMIN: i32 = 16;
    pub(crate) const ALL: i32 = 31;
}

/// An ACL entry as (perms, scheme, id).
pub(crate) type Acl<'a> = (i32, &'a str, &'a str);

pub(crate) const OPEN_ACL: &[Acl<'static>] = &[(perms::ALL, "world", "anyone")];

/// A record under construction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Out(Vec<u8>);

impl Out {
    pub(crate) fn new() -> Out {
        Out::default()
    }

    pub(crate) fn int(mut self, value: i32) -> Out {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(crate) fn long(mut self, value: i64) -> Out {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// A bool, or what stands where one belongs.
    pub(crate) fn byte(mut self, value: u8) -> Out {
        self.0.push(value);
        self
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Out {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn buffer(self, bytes: &[u8]) -> Out {
        self.int(i32::try_from(bytes.len()).expect("a test's buffer is short")).bytes(bytes)
    }

    pub(crate) fn string(self, text: &str) -> Out {
        self.buffer(text.as_bytes())
    }

    /// A buffer, string or vector of length -1.
    pub(crate) fn null(self) -> Out {
        self.int(-1)
    }

    pub(crate) fn strings(self, items: &[&str]) -> Out {
        let count = i32::try_from(items.len()).expect("a test's vector is short");
        items.iter().fold(self.int(count), |out, item| out.string(item))
    }

    pub(crate) fn acl(self, acl: &[Acl<'_>]) -> Out {
        let count = i32::try_from(acl.len()).expect("a test's acl is short");
        acl.iter().fold(self.int(count), |out, (perms, scheme, id)| {
            out.int(*perms).string(scheme).string(id)
        })
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0
    }
}

/// `payload` with its length in front.
pub(crate) fn framed(payload: &[u8]) -> Vec<u8> {
    Out::new().buffer(payload).done()
}

/// What a client asks: an op code and the bytes behind the header, right or wrong.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) op: i32,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn new(op: i32, body: Out) -> Request {
        Request { op, body: body.done() }
    }

    pub(crate) fn frame(&self, xid: i32) -> Vec<u8> {
        framed(&Out::new().int(xid).int(self.op).bytes(&self.body).done())
    }
}

/// CreateRequest under any op code that takes one.
pub(crate) fn create_as(op: i32, path: &str, data: &[u8], acl: &[Acl<'_>], flags: i32) -> Request {
    Request::new(op, Out::new().string(path).buffer(data).acl(acl).int(flags))
}

/// A plain create with an open ACL and empty data.
pub(crate) fn create(path: &str, flags: i32) -> Request {
    create_as(op::CREATE, path, b"", OPEN_ACL, flags)
}

pub(crate) fn create2(path: &str, flags: i32) -> Request {
    create_as(op::CREATE2, path, b"", OPEN_ACL, flags)
}

pub(crate) fn create_data(path: &str, data: &[u8]) -> Request {
    create_as(op::CREATE, path, data, OPEN_ACL, flags::PERSISTENT)
}

pub(crate) fn create_acl(path: &str, acl: &[Acl<'_>]) -> Request {
    create_as(op::CREATE, path, b"", acl, flags::PERSISTENT)
}

pub(crate) fn create_container(path: &str, flags: i32) -> Request {
    create_as(op::CREATE_CONTAINER, path, b"", OPEN_ACL, flags)
}

pub(crate) fn create_ttl(path: &str, flags: i32, ttl_ms: i64) -> Request {
    let body = Out::new().string(path).buffer(b"").acl(OPEN_ACL).int(flags).long(ttl_ms);
    Request::new(op::CREATE_TTL, body)
}

pub(crate) fn delete(path: &str, version: i32) -> Request {
    Request::new(op::DELETE, Out::new().string(path).int(version))
}

pub(crate) fn set_data(path: &str, data: &[u8], version: i32) -> Request {
    Request::new(op::SET_DATA, Out::new().string(path).buffer(data).int(version))
}

pub(crate) fn set_acl(path: &str, acl: &[Acl<'_>], version: i32) -> Request {
    Request::new(op::SET_ACL, Out::new().string(path).acl(acl).int(version))
}

pub(crate) fn check(path: &str, version: i32) -> Request {
    Request::new(op::CHECK, Out::new().string(path).int(version))
}

pub(crate) fn exists(path: &str, watch: bool) -> Request {
    Request::new(op::EXISTS, Out::new().string(path).byte(watch.into()))
}

pub(crate) fn get_data(path: &str, watch: bool) -> Request {
    Request::new(op::GET_DATA, Out::new().string(path).byte(watch.into()))
}

pub(crate) fn get_children(path: &str, watch: bool) -> Request {
    Request::new(op::GET_CHILDREN, Out::new().string(path).byte(watch.into()))
}

pub(crate) fn get_children2(path: &str, watch: bool) -> Request {
    Request::new(op::GET_CHILDREN2, Out::new().string(path).byte(watch.into()))
}

pub(crate) fn get_acl(path: &str) -> Request {
    Request::new(op::GET_ACL, Out::new().string(path))
}

pub(crate) fn get_ephemerals(prefix: &str) -> Request {
    Request::new(op::GET_EPHEMERALS, Out::new().string(prefix))
}

pub(crate) fn get_all_children_number(path: &str) -> Request {
    Request::new(op::GET_ALL_CHILDREN_NUMBER, Out::new().string(path))
}

pub(crate) fn sync(path: &str) -> Request {
    Request::new(op::SYNC, Out::new().string(path))
}

pub(crate) fn ping() -> Request {
    Request::new(op::PING, Out::new())
}

pub(crate) fn close_session() -> Request {
    Request::new(op::CLOSE_SESSION, Out::new())
}

pub(crate) fn who_am_i() -> Request {
    Request::new(op::WHO_AM_I, Out::new())
}

pub(crate) fn auth(scheme: &str, data: &[u8]) -> Request {
    Request::new(op::AUTH, Out::new().int(0).string(scheme).buffer(data))
}

pub(crate) fn sasl(token: &[u8]) -> Request {
    Request::new(op::SASL, Out::new().buffer(token))
}

pub(crate) fn reconfig(joining: &str, leaving: &str, members: &str, config: i64) -> Request {
    let body = Out::new().string(joining).string(leaving).string(members).long(config);
    Request::new(op::RECONFIG, body)
}

/// addWatch modes: 0 persistent, 1 persistent recursive.
pub(crate) fn add_watch(path: &str, mode: i32) -> Request {
    Request::new(op::ADD_WATCH, Out::new().string(path).int(mode))
}

/// Watch types: 1 children, 2 data, 3 any, 4 persistent, 5 persistent recursive.
pub(crate) fn remove_watches(path: &str, kind: i32) -> Request {
    Request::new(op::REMOVE_WATCHES, Out::new().string(path).int(kind))
}

pub(crate) fn check_watches(path: &str, kind: i32) -> Request {
    Request::new(op::CHECK_WATCHES, Out::new().string(path).int(kind))
}

pub(crate) fn set_watches(zxid: i64, data: &[&str], exist: &[&str], child: &[&str]) -> Request {
    let body = Out::new().long(zxid).strings(data).strings(exist).strings(child);
    Request::new(op::SET_WATCHES, body)
}

/// MultiHeader in front of a sub-operation.
pub(crate) fn multi_header(out: Out, kind: i32) -> Out {
    out.int(kind).byte(0).int(-1)
}

/// MultiHeader at the end.
pub(crate) fn multi_end(out: Out) -> Out {
    out.int(-1).byte(1).int(-1)
}

fn multi_as(op: i32, subs: &[Request]) -> Request {
    let body = subs.iter().fold(Out::new(), |out, sub| multi_header(out, sub.op).bytes(&sub.body));
    Request::new(op, multi_end(body))
}

pub(crate) fn multi(subs: &[Request]) -> Request {
    multi_as(op::MULTI, subs)
}

pub(crate) fn multi_read(subs: &[Request]) -> Request {
    multi_as(op::MULTI_READ, subs)
}

/// The stat of a znode as a client sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) czxid: i64,
    pub(crate) mzxid: i64,
    pub(crate) ctime: i64,
    pub(crate) mtime: i64,
    pub(crate) version: i32,
    pub(crate) cversion: i32,
    pub(crate) aversion: i32,
    pub(crate) ephemeral_owner: i64,
    pub(crate) data_length: i32,
    pub(crate) num_children: i32,
    pub(crate) pzxid: i64,
}

/// One result inside a multi or multiRead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: i32,
    pub(crate) err: i32,
    pub(crate) path: Option<String>,
    pub(crate) stat: Option<Stat>,
    pub(crate) data: Option<Vec<u8>>,
    pub(crate) children: Option<Vec<String>>,
}

/// Why bytes from the server could not be read as the record they should be.
#[derive(Debug)]
pub(crate) struct Malformed(pub(crate) String);

/// A record being read.
pub(crate) struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> In<'a> {
        In(bytes)
    }

    pub(crate) fn left(&self) -> usize {
        self.0.len()
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        if self.0.len() < count {
            return Err(Malformed(format!("{count} bytes wanted, {} left", self.0.len())));
        }
        let (head, tail) = self.0.split_at(count);
        self.0 = tail;
        Ok(head)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn int(&mut self) -> Result<i32, Malformed> {
        Ok(i32::from_be_bytes(self.take(4)?.try_into().expect("four bytes were taken")))
    }

    pub(crate) fn long(&mut self) -> Result<i64, Malformed> {
        Ok(i64::from_be_bytes(self.take(8)?.try_into().expect("eight bytes were taken")))
    }

    pub(crate) fn buffer(&mut self) -> Result<Option<Vec<u8>>, Malformed> {
        match self.int()? {
            -1 => Ok(None),
            length => {
                let length = usize::try_from(length)
                    .map_err(|_| Malformed(format!("a buffer of length {length}")))?;
                Ok(Some(self.take(length)?.to_vec()))
            }
        }
    }

    pub(crate) fn string(&mut self) -> Result<String, Malformed> {
        let bytes = self.buffer()?.ok_or_else(|| Malformed("a null string".into()))?;
        String::from_utf8(bytes).map_err(|e| Malformed(format!("text: {e}")))
    }

    pub(crate) fn strings(&mut self) -> Result<Vec<String>, Malformed> {
        let count = self.int()?;
        (0..count).map(|_| self.string()).collect()
    }

    /// The entries of an ACL, as (perms, scheme, id).
    pub(crate) fn acl(&mut self) -> Result<Vec<(i32, String, String)>, Malformed> {
        let count = self.int()?;
        (0..count).map(|_| Ok((self.int()?, self.string()?, self.string()?))).collect()
    }

    pub(crate) fn stat(&mut self) -> Result<Stat, Malformed> {
        Ok(Stat {
            czxid: self.long()?,
            mzxid: self.long()?,
            ctime: self.long()?,
            mtime: self.long()?,
            version: self.int()?,
            cversion: self.int()?,
            aversion: self.int()?,
            ephemeral_owner: self.long()?,
            data_length: self.int()?,
            num_children: self.int()?,
            pzxid: self.long()?,
        })
    }

    /// The results of a multi or multiRead, to their end and nothing behind it.
    pub(crate) fn multi(&mut self) -> Result<Vec<Entry>, Malformed> {
        let mut entries = Vec::new();
        loop {
            let (kind, done, err) = (self.int()?, self.byte()?, self.int()?);
            if done != 0 {
                if (kind, done, err, self.left()) != (-1, 1, -1, 0) {
                    return Err(Malformed(format!(
                        "a multi ends with ({kind}, {done}, {err}) and {} bytes",
                        self.left()
                    )));
                }
                return Ok(entries);
            }
            let mut entry = Entry { kind, err, ..Entry::default() };
            match kind {
                -1 => {
                    let again = self.int()?;
                    if again != err {
                        return Err(Malformed(format!(
                            "error {err} in the header, {again} behind"
                        )));
                    }
                }
                op::CREATE => entry.path = Some(self.string()?),
                op::CREATE2 => {
                    entry.path = Some(self.string()?);
                    entry.stat = Some(self.stat()?);
                }
                op::SET_DATA => entry.stat = Some(self.stat()?),
                op::DELETE | op::CHECK => {}
                op::GET_DATA => {
                    entry.data = self.buffer()?;
                    entry.stat = Some(self.stat()?);
                }
                op::GET_CHILDREN => entry.children = Some(self.strings()?),
                other => return Err(Malformed(format!("a result of type {other}"))),
            }
            entries.push(entry);
        }
    }
}

/// The password of a session: four draws of `java.util.Random` seeded with the id, little-endian.
pub(crate) fn session_password(id: i64) -> [u8; 16] {
    const MASK: u64 = (1 << 48) - 1;
    const MULTIPLIER: u64 = 0x5_DEEC_E66D;
    let mut state = ((id.cast_unsigned() ^ 0xB341_5C00) ^ MULTIPLIER) & MASK;
    let mut password = [0; 16];
    for word in password.chunks_exact_mut(4) {
        state = state.wrapping_mul(MULTIPLIER).wrapping_add(0xB) & MASK;
        let drawn = u32::try_from(state >> 16).expect("48 bits less 16");
        word.copy_from_slice(&drawn.to_le_bytes());
    }
    password
}

/// Bytes as a reader of captures likes them: groups of four.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 9 / 4);
    for (i, byte) in bytes.iter().enumerate().take(512) {
        if i > 0 && i % 4 == 0 {
            text.push(' ');
        }
        write!(text, "{byte:02x}").expect("writing to a String succeeds");
    }
    if bytes.len() > 512 {
        write!(text, " … ({} bytes)", bytes.len()).expect("writing to a String succeeds");
    }
    text
}
