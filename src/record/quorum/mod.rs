//! `org.apache.zookeeper.server.quorum`: what the servers of an ensemble send each other.
//!
//! ```text
//! election port   one hello from whoever opened the connection, then frames both ways:
//!                 int length 1..=524288, notification                   (election.rs)
//! quorum port     packets both ways, one after the other, no frames     (packet.rs)
//!                 what each type of packet says                         (message.rs)
//!                 after SNAP: a snapshot's body, ustring "BenWasHere"   (snapshot_scan.rs)
//! with SASL       QuorumAuthPackets: on the election port behind the hello,
//!                 on the quorum port before the first packet            (sasl.rs)
//! ```
//!
//! Bytes in, bytes out; what is sent when is decided elsewhere. `ElectionStream` and `PacketStream`
//! take the bytes of a connection in any pieces. Their memory grows with the bytes that came, never
//! with an announced length. Their errors are final: the connection is of no use then.
//!
//! The content of a frame or packet is read in a second step, because ZooKeeper keeps the connection
//! where it drops a notification, or ignores a packet, that it does not understand.

mod election;
mod message;
mod packet;
mod sasl;
mod snapshot_scan;

pub use election::{
    ADDRESSES_BYTES_MAX, ElectionAddress, ElectionPiece, ElectionStream, FRAME_BYTES_MAX, Hello,
    HelloForm, NOTIFICATION_VERSION, Notification, ServerState,
};
pub use message::{
    FromLeader, FromLearner, LearnerInfo, PROTOCOL_VERSION, PacketError, Request, TouchTable,
    TxnPayload,
};
pub use packet::{
    AuthInfo, HANDSHAKE_FIELD_BYTES_MAX, PACKET_HEAD_BYTES, PACKET_TAIL, PacketKind, PacketPiece,
    PacketSender, PacketStream, QuorumPacket, SNAPSHOT_SIGNATURE, packet_head,
};
pub use sasl::{AuthStatus, QUORUM_AUTH_MAGIC, QuorumAuthPacket, Sasl, TOKEN_BYTES_MAX};
pub use snapshot_scan::SnapshotScan;

/// Bytes after which a connection is of no use. Offsets count from the connection's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    #[error("{what} at byte {offset} announces {length}; {min} to {max} is allowed")]
    Length { what: &'static str, offset: u64, length: i32, min: usize, max: usize },
    #[error("malformed {what} at byte {offset}")]
    Malformed { what: &'static str, offset: u64 },
}

/// Bytes of a connection that have come and are not taken yet.
#[derive(Debug, Default)]
struct Arrivals {
    bytes: Vec<u8>,
    /// How many of `bytes`, from their front, are taken.
    taken: usize,
    /// How many bytes of the connection came before `bytes`.
    offset: u64,
}

/// What is kept of the memory of an empty `Arrivals`.
const IDLE_BYTES_MAX: usize = 64 << 10;

impl Arrivals {
    fn push(&mut self, bytes: &[u8]) {
        // Moves at most as many bytes as are given up, so a byte is moved once on average.
        if self.bytes.len() <= 2 * self.taken {
            self.bytes.drain(..self.taken);
            self.offset += self.taken as u64;
            self.taken = 0;
            if self.bytes.is_empty() {
                self.bytes.shrink_to(IDLE_BYTES_MAX);
            }
        }
        self.bytes.extend_from_slice(bytes);
    }

    fn front(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// Where the front is in the connection.
    fn offset(&self) -> u64 {
        self.offset + self.taken as u64
    }

    /// Takes bytes from the front. They stay readable until the next `push`.
    fn take(&mut self, count: usize) -> &[u8] {
        let start = self.taken;
        self.taken += count;
        &self.bytes[start..self.taken]
    }

    fn malformed(&self, at: usize, what: &'static str) -> StreamError {
        StreamError::Malformed { what, offset: self.offset() + at as u64 }
    }
}

/// The int at the front of `bytes`, if it is whole.
fn int_at(bytes: &[u8], at: usize) -> Option<i32> {
    bytes.get(at..)?.first_chunk().map(|chunk| i32::from_be_bytes(*chunk))
}

/// The same of a long.
fn long_at(bytes: &[u8], at: usize) -> Option<i64> {
    bytes.get(at..)?.first_chunk().map(|chunk| i64::from_be_bytes(*chunk))
}

#[cfg(test)]
mod tests;
