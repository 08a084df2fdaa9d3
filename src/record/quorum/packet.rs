//! Packets between a leader and its learners, and where each ends.
//!
//! ```text
//! QuorumPacket = int type, long zxid, buffer data, vector<Id> authinfo
//! Id           = ustring scheme, ustring id
//! ```
//!
//! Nothing tells a packet's length but its fields. After SNAP come a snapshot's body and a
//! signature, neither of them in a packet; then packets again.
//!
//! After `zookeeper.jute` (`quorum.QuorumPacket`), `Leader.java` for the types,
//! `LearnerHandler.packetToString` for their names, and `Learner.syncWithLeader` for SNAP.

use std::fmt;

use crate::jute::frame::TooLong;
use crate::jute::record::{Buffer, Record, Vector};
use crate::jute::{Malformed, Reader, Write as _};
use crate::record::data::{Id, IdText};
use crate::types::Zxid;

use super::sasl::{self, Sasl};
use super::snapshot_scan::SnapshotScan;
use super::{Arrivals, StreamError, int_at, long_at};

/// The types of packets, all that releases 3.5 to 3.9 send (constants of `Leader`). Unless said
/// otherwise a type has been there since 3.4, and its bytes are the same in every release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum PacketKind {
    /// A learner passes a client's request on (`Learner.request`).
    Request = 1,
    /// To participants: log this (`Leader.propose`).
    Proposal = 2,
    /// A learner has logged and synced (`SendAckRequestProcessor`), or has taken over the history
    /// (`Learner.syncWithLeader`).
    Ack = 3,
    /// To participants: this is decided (`Leader.commit`).
    Commit = 4,
    /// From the leader twice a tick (`LearnerHandler.ping`), and each time an answer with the
    /// sessions that the learner has heard from (`Learner.ping`).
    Ping = 5,
    /// A session has moved to this learner (`Learner.validateSession`), and the answer
    /// (`Leader.revalidateSession`).
    Revalidate = 6,
    /// Answers a forwarded sync (`Leader.sendSync`).
    Sync = 7,
    /// To observers: apply this (`Leader.inform`). Since 3.3.
    Inform = 8,
    /// COMMIT of a reconfiguration (`Leader.commitAndActivate`). Since 3.5.
    CommitAndActivate = 9,
    /// The end of the history (`LearnerHandler.run`). Since 3.5 with a configuration.
    NewLeader = 10,
    /// A participant's first packet (`Learner.registerWithLeader`).
    FollowerInfo = 11,
    /// Clients may be served (`LearnerHandler.run`).
    UpToDate = 12,
    /// What is missing follows (`LearnerHandler.syncFollower`).
    Diff = 13,
    /// The end of the log is to be cut off (`LearnerHandler.syncFollower`).
    Trunc = 14,
    /// A snapshot follows (`LearnerHandler.run`).
    Snap = 15,
    /// An observer's first packet (`Learner.registerWithLeader`).
    ObserverInfo = 16,
    /// The epoch that the leader proposes (`LearnerHandler.run`).
    LeaderInfo = 17,
    /// The learner agrees to the epoch (`Learner.registerWithLeader`).
    AckEpoch = 18,
    /// INFORM of a reconfiguration (`Leader.informAndActivate`). Since 3.5.
    InformAndActivate = 19,
}

impl PacketKind {
    #[must_use]
    pub const fn from_number(number: i32) -> Option<PacketKind> {
        Some(match number {
            1 => PacketKind::Request,
            2 => PacketKind::Proposal,
            3 => PacketKind::Ack,
            4 => PacketKind::Commit,
            5 => PacketKind::Ping,
            6 => PacketKind::Revalidate,
            7 => PacketKind::Sync,
            8 => PacketKind::Inform,
            9 => PacketKind::CommitAndActivate,
            10 => PacketKind::NewLeader,
            11 => PacketKind::FollowerInfo,
            12 => PacketKind::UpToDate,
            13 => PacketKind::Diff,
            14 => PacketKind::Trunc,
            15 => PacketKind::Snap,
            16 => PacketKind::ObserverInfo,
            17 => PacketKind::LeaderInfo,
            18 => PacketKind::AckEpoch,
            19 => PacketKind::InformAndActivate,
            _ => return None,
        })
    }

    #[must_use]
    pub const fn number(self) -> i32 {
        self as i32
    }
}

impl fmt::Display for PacketKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PacketKind::Request => "REQUEST",
            PacketKind::Proposal => "PROPOSAL",
            PacketKind::Ack => "ACK",
            PacketKind::Commit => "COMMIT",
            PacketKind::Ping => "PING",
            PacketKind::Revalidate => "REVALIDATE",
            PacketKind::Sync => "SYNC",
            PacketKind::Inform => "INFORM",
            PacketKind::CommitAndActivate => "COMMITANDACTIVATE",
            PacketKind::NewLeader => "NEWLEADER",
            PacketKind::FollowerInfo => "FOLLOWERINFO",
            PacketKind::UpToDate => "UPTODATE",
            PacketKind::Diff => "DIFF",
            PacketKind::Trunc => "TRUNC",
            PacketKind::Snap => "SNAP",
            PacketKind::ObserverInfo => "OBSERVERINFO",
            PacketKind::LeaderInfo => "LEADERINFO",
            PacketKind::AckEpoch => "ACKEPOCH",
            PacketKind::InformAndActivate => "INFORMANDACTIVATE",
        })
    }
}

/// A packet as it travels (`zookeeper.jute`, `quorum.QuorumPacket`). `FromLearner` and `FromLeader`
/// say what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuorumPacket<'a> {
    /// A `PacketKind`, or a number that no release sends.
    pub kind: i32,
    pub zxid: Zxid,
    pub data: Buffer<'a>,
    /// Whose request it is; null on all but REQUEST.
    pub authinfo: AuthInfo<'a>,
}

impl<'a> Record<'a> for QuorumPacket<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(QuorumPacket {
            kind: reader.i32()?,
            zxid: Zxid(reader.i64()?),
            data: reader.buffer()?,
            authinfo: AuthInfo::read(reader)?,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.put_i32(self.kind);
        out.put_i64(self.zxid.0);
        out.put_buffer(self.data);
        self.authinfo.write(out);
    }
}

/// Type and zxid, as a log line has them.
impl fmt::Display for QuorumPacket<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PacketKind::from_number(self.kind) {
            Some(kind) => write!(f, "{kind} {}", self.zxid),
            None => write!(f, "type {} {}", self.kind, self.zxid),
        }
    }
}

/// What comes before a packet's data.
pub const PACKET_HEAD_BYTES: usize = 16;

/// What comes after a packet's data where there is no authinfo, which is null then.
pub const PACKET_TAIL: [u8; 4] = (-1_i32).to_be_bytes();

/// The head of a packet whose data is not null and has `data_bytes`. Between this and
/// `PACKET_TAIL` the bytes of a log record are a PROPOSAL's or an INFORM's data, so a transaction
/// is encoded once for the log and all learners.
pub fn packet_head(
    kind: PacketKind,
    zxid: Zxid,
    data_bytes: usize,
) -> Result<[u8; PACKET_HEAD_BYTES], TooLong> {
    let mut head = [0; PACKET_HEAD_BYTES];
    head[..4].copy_from_slice(&kind.number().to_be_bytes());
    head[4..12].copy_from_slice(&zxid.0.to_be_bytes());
    head[12..].copy_from_slice(&i32::try_from(data_bytes).map_err(|_| TooLong)?.to_be_bytes());
    Ok(head)
}

/// The identities of a request's client, left in their bytes: a vector, or null. An observer
/// master passes them on as they are (`ObserverMaster`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthInfo<'a>(&'a [u8]);

impl<'a> AuthInfo<'a> {
    pub const NULL: AuthInfo<'static> = AuthInfo(&PACKET_TAIL);

    /// Bytes that hold one vector of identities and nothing else.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<AuthInfo<'a>, Malformed> {
        let mut reader = Reader::with_field_bytes_max(bytes, bytes.len());
        let authinfo = AuthInfo::read(&mut reader)?;
        if reader.is_empty() { Ok(authinfo) } else { Err(reader.malformed("end of authinfo")) }
    }

    #[must_use]
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    #[must_use]
    pub fn is_null(self) -> bool {
        self.0 == PACKET_TAIL
    }

    /// The identities; `None` is a null vector.
    #[must_use]
    pub fn decode(self) -> Option<Vec<IdText<'a>>> {
        let mut reader = Reader::with_field_bytes_max(self.0, self.0.len());
        <Vector<IdText<'a>> as Record<'a>>::read(&mut reader).expect("read once already")
    }

    /// Writes a vector of identities, which `from_bytes` takes.
    pub fn write_ids<'i>(ids: impl ExactSizeIterator<Item = &'i Id>, out: &mut Vec<u8>) {
        out.put_count(Some(ids.len()));
        for Id { scheme, id } in ids {
            out.put_text(scheme);
            out.put_text(id);
        }
    }
}

impl<'a> Record<'a> for AuthInfo<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let start = reader.offset();
        for _ in 0..reader.count()?.unwrap_or(0) {
            reader.buffer()?;
            reader.buffer()?;
        }
        Ok(AuthInfo(reader.between(start, reader.offset())))
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.0);
    }
}

/// The longest field until a learner and its leader know each other. The longest of a handshake
/// that ZooKeeper sends is a LearnerInfo of 20 bytes; later releases may add to it.
pub const HANDSHAKE_FIELD_BYTES_MAX: usize = 1024;

/// What ends a snapshot's body on the wire: the ustring `BenWasHere`.
pub const SNAPSHOT_SIGNATURE: &[u8] = b"\0\0\0\x0aBenWasHere";

/// Who sends the packets of a stream. Only a leader sends SNAP, and a body behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketSender {
    /// Or an observer master.
    Leader,
    Learner,
}

/// Cuts what comes from a leader, or from a learner, into its pieces.
///
/// ZooKeeper reads fields off a stream (`BinaryInputArchive`) and closes the connection where a
/// length is out of bounds. The same lengths are refused here, with one more: ZooKeeper bounds each
/// identity of a packet and not their number, here all identities of a packet together are bounded
/// like one field.
#[derive(Debug)]
pub struct PacketStream {
    arrivals: Arrivals,
    sender: PacketSender,
    field_bytes_max: usize,
    stage: Stage,
}

/// A part of the stream that `PacketStream::next` has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketPiece<'a> {
    Packet(QuorumPacket<'a>),
    /// More of the body that follows a SNAP; never empty. Only its end is looked for: its content is
    /// not checked, and its fields may have any length.
    Snapshot(&'a [u8]),
    /// The body has ended, and its signature is right.
    SnapshotEnd,
}

/// What is next in the stream.
#[derive(Debug)]
enum Stage {
    Packet(Measure),
    /// A body that began at byte `start`.
    Snapshot {
        scan: SnapshotScan,
        start: u64,
    },
    Signature,
    Failed(StreamError),
}

/// How much of the packet at the front has been looked at: a packet that comes byte by byte is
/// not read again from its start with each of them.
#[derive(Clone, Copy, Debug, Default)]
struct Measure {
    /// Where the field that is next begins, in bytes from the packet's start.
    bytes: usize,
    field: Field,
}

#[derive(Clone, Copy, Debug, Default)]
enum Field {
    /// Type, zxid and the data's length.
    #[default]
    Head,
    /// The data is before `bytes`; the count of identities is next.
    Count,
    /// So many schemes and ids are still to come.
    Texts { left: u64, data_end: usize },
}

/// A part of the stream that is whole.
enum Cut {
    Packet { bytes: usize, data_end: usize },
    Snapshot { bytes: usize },
    SnapshotEnd,
}

impl PacketStream {
    /// A connection's packets, from its first byte, or from behind a SASL exchange. No field may be
    /// longer than `field_bytes_max`, nor all identities of a packet together: `jute.maxbuffer` and
    /// `jute.maxbuffer.extrasize`, or less during the handshake.
    #[must_use]
    pub fn new(sender: PacketSender, field_bytes_max: usize) -> PacketStream {
        let stage = Stage::Packet(Measure::default());
        PacketStream { arrivals: Arrivals::default(), sender, field_bytes_max, stage }
    }

    /// Another bound for what was not looked at yet.
    pub fn set_field_bytes_max(&mut self, field_bytes_max: usize) {
        self.field_bytes_max = field_bytes_max;
    }

    /// Adds what has come. With `next` called until it gives `None` in between, no more is held
    /// than one packet and what is added.
    pub fn push(&mut self, bytes: &[u8]) {
        self.arrivals.push(bytes);
    }

    /// Where the next piece begins, in bytes from the first.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.arrivals.offset()
    }

    /// How many bytes wait for the rest of their piece.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.arrivals.front().len()
    }

    /// The type of the packet that is next, once its first bytes have come; `None` inside a snapshot.
    #[must_use]
    pub fn next_kind(&self) -> Option<PacketKind> {
        match &self.stage {
            Stage::Packet(_) => int_at(self.arrivals.front(), 0).and_then(PacketKind::from_number),
            Stage::Snapshot { .. } | Stage::Signature | Stage::Failed(_) => None,
        }
    }

    /// The next piece, once it is whole; `None` until then. An error is final.
    #[expect(clippy::should_implement_trait, reason = "a piece borrows from the stream")]
    pub fn next(&mut self) -> Result<Option<PacketPiece<'_>>, StreamError> {
        let cut = self.cut().inspect_err(|error| self.stage = Stage::Failed(*error))?;
        Ok(match cut {
            None => None,
            Some(Cut::Snapshot { bytes }) => Some(PacketPiece::Snapshot(self.arrivals.take(bytes))),
            Some(Cut::SnapshotEnd) => {
                self.arrivals.take(SNAPSHOT_SIGNATURE.len());
                Some(PacketPiece::SnapshotEnd)
            }
            Some(Cut::Packet { bytes, data_end }) => {
                let packet = self.arrivals.take(bytes);
                let whole = "a measured packet has its head";
                Some(PacketPiece::Packet(QuorumPacket {
                    kind: int_at(packet, 0).expect(whole),
                    zxid: Zxid(long_at(packet, 4).expect(whole)),
                    data: (int_at(packet, 12).expect(whole) != -1)
                        .then(|| &packet[PACKET_HEAD_BYTES..data_end]),
                    authinfo: AuthInfo(&packet[data_end..]),
                }))
            }
        })
    }

    /// A SASL packet, where an exchange is expected or allowed. Only between packets.
    pub fn sasl(&mut self) -> Result<Sasl<'_>, StreamError> {
        match self.stage {
            Stage::Failed(error) => Err(error),
            Stage::Packet(_) => {
                // What was taken for the head of a packet may be taken as SASL.
                self.stage = Stage::Packet(Measure::default());
                sasl::take(&mut self.arrivals)
                    .inspect_err(|error| self.stage = Stage::Failed(*error))
            }
            Stage::Snapshot { .. } | Stage::Signature => Ok(Sasl::Other),
        }
    }

    fn cut(&mut self) -> Result<Option<Cut>, StreamError> {
        let front = self.arrivals.front();
        match &mut self.stage {
            Stage::Failed(error) => Err(*error),
            Stage::Packet(measure) => {
                let whole = measure.advance(&self.arrivals, self.field_bytes_max)?;
                let Some(data_end) = whole else { return Ok(None) };
                let bytes = measure.bytes;
                let is_snap = int_at(front, 0) == Some(PacketKind::Snap.number());
                self.stage = match self.sender {
                    PacketSender::Leader if is_snap => Stage::Snapshot {
                        scan: SnapshotScan::default(),
                        start: self.arrivals.offset() + bytes as u64,
                    },
                    PacketSender::Leader | PacketSender::Learner => {
                        Stage::Packet(Measure::default())
                    }
                };
                Ok(Some(Cut::Packet { bytes, data_end }))
            }
            Stage::Snapshot { scan, start } => {
                let bytes = scan.advance(front).map_err(|Malformed { offset, what }| {
                    StreamError::Malformed { what, offset: *start + offset as u64 }
                })?;
                if scan.is_done() {
                    self.stage = Stage::Signature;
                }
                // A body ends with a field, so there is at least one byte where it is done.
                Ok((bytes != 0).then_some(Cut::Snapshot { bytes }))
            }
            Stage::Signature => {
                let seen = front.len().min(SNAPSHOT_SIGNATURE.len());
                if front[..seen] != SNAPSHOT_SIGNATURE[..seen] {
                    return Err(self.arrivals.malformed(0, "signature of a snapshot"));
                }
                if seen < SNAPSHOT_SIGNATURE.len() {
                    return Ok(None);
                }
                self.stage = Stage::Packet(Measure::default());
                Ok(Some(Cut::SnapshotEnd))
            }
        }
    }
}

impl Measure {
    /// Looks at what has come since. `Some` once the packet is whole: where its data ends;
    /// `bytes` is then the packet's length.
    fn advance(
        &mut self,
        arrivals: &Arrivals,
        field_bytes_max: usize,
    ) -> Result<Option<usize>, StreamError> {
        let front = arrivals.front();
        let length = |at: usize, max: usize, what| match int_at(front, at) {
            None => Ok(None),
            Some(-1) => Ok(Some(0)),
            Some(length) => match usize::try_from(length) {
                Ok(bytes) if bytes <= max => Ok(Some(bytes)),
                _ => {
                    let offset = arrivals.offset() + at as u64;
                    Err(StreamError::Length { what, offset, length, min: 0, max })
                }
            },
        };
        loop {
            match &mut self.field {
                Field::Head => {
                    let found = length(12, field_bytes_max, "data of a packet")?;
                    let Some(data_bytes) = found else { return Ok(None) };
                    self.bytes = PACKET_HEAD_BYTES + data_bytes;
                    self.field = Field::Count;
                }
                Field::Count => {
                    let Some(count) = int_at(front, self.bytes) else { return Ok(None) };
                    // -1 is null; Java's index is done at once with other negative counts.
                    let count = u64::try_from(count).unwrap_or(0);
                    let data_end = self.bytes;
                    self.bytes += 4;
                    self.field = Field::Texts { left: 2 * count, data_end };
                }
                Field::Texts { left: 0, data_end } => {
                    return Ok((self.bytes <= front.len()).then_some(*data_end));
                }
                Field::Texts { left, data_end } => {
                    let room = field_bytes_max.saturating_sub(self.bytes - *data_end);
                    let found = length(self.bytes, room, "identity of a packet")?;
                    let Some(text_bytes) = found else { return Ok(None) };
                    self.bytes += 4 + text_bytes;
                    *left -= 1;
                }
            }
        }
    }
}
