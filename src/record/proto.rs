//! `org.apache.zookeeper.proto`: what clients send and are sent.

use crate::jute::record::{Buffer, Record, Text, Vector, record};
use crate::jute::{Malformed, Reader, Write as _};

use super::data::{AclBytes, AclText, Stat};

record! {
    /// Before every request's body.
    #[derive(Copy)]
    pub struct RequestHeader { xid: i32, op: i32 }

    /// Before every reply's body. `zxid` is the place in history the reply speaks of.
    #[derive(Copy)]
    pub struct ReplyHeader { xid: i32, zxid: i64, err: i32 }

    /// create, create2 and createContainer. `acl` stays in its bytes.
    pub struct CreateRequest<'a> {
        path: Text<'a>,
        data: Buffer<'a>,
        acl: AclBytes<'a>,
        flags: i32,
    }

    pub struct CreateTtlRequest<'a> {
        path: Text<'a>,
        data: Buffer<'a>,
        acl: AclBytes<'a>,
        flags: i32,
        /// Milliseconds.
        ttl: i64,
    }

    pub struct CreateResponse<'a> { path: Text<'a> }
    pub struct Create2Response<'a> { path: Text<'a>, stat: Stat }

    /// delete and check: a path and the version it must have (-1: any).
    pub struct PathVersion<'a> { path: Text<'a>, version: i32 }

    /// exists, getData, getChildren and getChildren2.
    pub struct PathWatch<'a> { path: Text<'a>, watch: bool }

    /// getACL, sync, getAllChildrenNumber and getEphemerals.
    pub struct PathOnly<'a> { path: Text<'a> }

    pub struct SetDataRequest<'a> { path: Text<'a>, data: Buffer<'a>, version: i32 }

    pub struct SetAclRequest<'a> { path: Text<'a>, acl: AclBytes<'a>, version: i32 }

    pub struct GetDataResponse<'a> { data: Buffer<'a>, stat: Stat }

    pub struct GetAclResponse<'a> { acl: Vector<AclText<'a>>, stat: Stat }

    pub struct ReconfigRequest<'a> {
        joining_servers: Text<'a>,
        leaving_servers: Text<'a>,
        new_members: Text<'a>,
        cur_config_id: i64,
    }

    /// checkWatches and removeWatches: `kind` is a `WatcherType`.
    pub struct PathWatcherType<'a> { path: Text<'a>, kind: i32 }

    /// `mode` is an `AddWatchMode`.
    pub struct AddWatchRequest<'a> { path: Text<'a>, mode: i32 }

    pub struct SetWatches<'a> {
        relative_zxid: i64,
        data_watches: Vector<Text<'a>>,
        exist_watches: Vector<Text<'a>>,
        child_watches: Vector<Text<'a>>,
    }

    pub struct SetWatches2<'a> {
        relative_zxid: i64,
        data_watches: Vector<Text<'a>>,
        exist_watches: Vector<Text<'a>>,
        child_watches: Vector<Text<'a>>,
        persistent_watches: Vector<Text<'a>>,
        persistent_recursive_watches: Vector<Text<'a>>,
    }

    pub struct AuthPacket<'a> { kind: i32, scheme: Text<'a>, auth: Buffer<'a> }

    pub struct SaslToken<'a> { token: Buffer<'a> }

    pub struct ClientInfo<'a> { auth_scheme: Text<'a>, user: Text<'a> }

    pub struct WhoAmIResponse<'a> { client_info: Vector<ClientInfo<'a>> }

    /// One sub-operation of a multi, or its end (`done`).
    #[derive(Copy)]
    pub struct MultiHeader { kind: i32, done: bool, err: i32 }

    pub struct WatcherEvent<'a> { kind: i32, state: i32, path: Text<'a> }
}

/// The end of a multi's operations, and of its results.
pub const MULTI_END: MultiHeader = MultiHeader { kind: -1, done: true, err: -1 };

/// The first frame of a client. It has no header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectRequest<'a> {
    pub protocol_version: i32,
    pub last_zxid_seen: i64,
    pub timeout_ms: i32,
    /// 0 asks for a new session.
    pub session: i64,
    pub password: Buffer<'a>,
    /// `None`: an older client that knows nothing of read-only servers and must be answered
    /// without this field.
    pub read_only: Option<bool>,
}

impl<'a> Record<'a> for ConnectRequest<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(ConnectRequest {
            protocol_version: reader.i32()?,
            last_zxid_seen: reader.i64()?,
            timeout_ms: reader.i32()?,
            session: reader.i64()?,
            password: reader.buffer()?,
            read_only: if reader.is_empty() { None } else { Some(reader.bool()?) },
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.put_i32(self.protocol_version);
        out.put_i64(self.last_zxid_seen);
        out.put_i32(self.timeout_ms);
        out.put_i64(self.session);
        out.put_buffer(self.password);
        if let Some(read_only) = self.read_only {
            out.put_bool(read_only);
        }
    }
}

/// The answer to `ConnectRequest`. A timeout of 0 says that the session is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectResponse {
    pub timeout_ms: i32,
    pub session: i64,
    pub password: [u8; 16],
    /// Present only where the request had the field.
    pub read_only: Option<bool>,
}

impl ConnectResponse {
    #[must_use]
    pub const fn refusal(read_only: Option<bool>) -> ConnectResponse {
        ConnectResponse { timeout_ms: 0, session: 0, password: [0; 16], read_only }
    }
}

impl Record<'_> for ConnectResponse {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        reader.i32()?;
        let timeout_ms = reader.i32()?;
        let session = reader.i64()?;
        let password = reader.buffer()?.and_then(|bytes| bytes.try_into().ok());
        Ok(ConnectResponse {
            timeout_ms,
            session,
            password: password.ok_or_else(|| reader.malformed("password of 16 bytes"))?,
            read_only: if reader.is_empty() { None } else { Some(reader.bool()?) },
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.put_i32(0);
        out.put_i32(self.timeout_ms);
        out.put_i64(self.session);
        out.put_buffer(Some(&self.password));
        if let Some(read_only) = self.read_only {
            out.put_bool(read_only);
        }
    }
}
