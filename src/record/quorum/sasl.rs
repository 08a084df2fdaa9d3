//! Packets of a SASL exchange between servers.
//!
//! ```text
//! QuorumAuthPacket = long magic 0x5f2435013501edcc, int status, buffer token
//! ```
//!
//! The connecting side is the SASL client and begins. A server that does not require SASL looks
//! whether the magic comes next, and goes on without an exchange if it does not.
//!
//! After `auth/QuorumAuth.java` and `SaslQuorumAuthServer.authenticate`. The magic is positive,
//! though the Java constant is written with a minus: the literal behind it is negative itself.

use crate::jute::Write as _;
use crate::jute::record::Buffer;

use super::{Arrivals, StreamError, int_at};

/// `QuorumAuth.QUORUM_AUTH_MAGIC_NUMBER`.
pub const QUORUM_AUTH_MAGIC: i64 = 0x5f24_3501_3501_edcc;

/// The longest token that is read. ZooKeeper allows twice `jute.maxbuffer`, to strangers too. Tokens
/// of DIGEST-MD5 have hundreds of bytes, those of Kerberos some thousands.
pub const TOKEN_BYTES_MAX: usize = 64 << 10;

const TOKEN_AT: usize = 16;

/// How far an exchange has come (`QuorumAuth.Status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum AuthStatus {
    InProgress = 0,
    Success = 1,
    Error = -1,
}

impl AuthStatus {
    #[must_use]
    pub const fn from_number(number: i32) -> Option<AuthStatus> {
        Some(match number {
            0 => AuthStatus::InProgress,
            1 => AuthStatus::Success,
            -1 => AuthStatus::Error,
            _ => return None,
        })
    }
}

/// One step of an exchange (`zookeeper.jute`, `quorum.QuorumAuthPacket`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuorumAuthPacket<'a> {
    pub status: AuthStatus,
    pub token: Buffer<'a>,
}

impl QuorumAuthPacket<'_> {
    pub fn write(&self, out: &mut Vec<u8>) {
        out.put_i64(QUORUM_AUTH_MAGIC);
        out.put_i32(self.status as i32);
        out.put_buffer(self.token);
    }
}

/// What is next on a connection where a SASL packet may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sasl<'a> {
    Packet(QuorumAuthPacket<'a>),
    /// Something else, which `next` reads. Nothing was taken.
    Other,
    /// It takes more bytes to know.
    Incomplete,
}

/// Takes a SASL packet from the front, if there is one.
pub(super) fn take(arrivals: &mut Arrivals) -> Result<Sasl<'_>, StreamError> {
    let front = arrivals.front();
    let magic = QUORUM_AUTH_MAGIC.to_be_bytes();
    let seen = front.len().min(magic.len());
    if front[..seen] != magic[..seen] {
        return Ok(Sasl::Other);
    }
    let (Some(status), Some(length)) = (int_at(front, 8), int_at(front, 12)) else {
        return Ok(Sasl::Incomplete);
    };
    let status =
        AuthStatus::from_number(status).ok_or_else(|| arrivals.malformed(8, "SASL status"))?;
    if length == -1 {
        arrivals.take(TOKEN_AT);
        return Ok(Sasl::Packet(QuorumAuthPacket { status, token: None }));
    }
    let token_bytes = match usize::try_from(length) {
        Ok(bytes) if bytes <= TOKEN_BYTES_MAX => bytes,
        _ => {
            let (what, offset) = ("SASL token", arrivals.offset() + 12);
            return Err(StreamError::Length { what, offset, length, min: 0, max: TOKEN_BYTES_MAX });
        }
    };
    if front.len() < TOKEN_AT + token_bytes {
        return Ok(Sasl::Incomplete);
    }
    let token = &arrivals.take(TOKEN_AT + token_bytes)[TOKEN_AT..];
    Ok(Sasl::Packet(QuorumAuthPacket { status, token: Some(token) }))
}
