//! What packets say: those of a learner, and those of a leader.
//!
//! ```text
//! type               by       zxid                  data
//! REQUEST            learner  -1                    long session, int cxid, int op, body; authinfo
//! PROPOSAL           leader   of the transaction    payload of a log record
//! ACK                learner  what is logged        null
//! COMMIT             leader   what is decided       null
//! PING               leader   last proposed         null
//! PING               learner  the leader's          { long session, int timeout in ms }*, not null
//! REVALIDATE         learner  -1                    long session, int timeout in ms
//! REVALIDATE         leader   the learner's         long session, bool valid
//! SYNC               leader   0                     null
//! INFORM             leader   of the transaction    payload of a log record
//! COMMITANDACTIVATE  leader   what is decided       long designated leader
//! NEWLEADER          leader   epoch << 32           configuration as text; null to learners of 3.3
//! FOLLOWERINFO       learner  accepted epoch << 32  LearnerInfo
//! UPTODATE           leader   -1                    null
//! DIFF TRUNC SNAP    leader   see FromLeader        null
//! OBSERVERINFO       learner  accepted epoch << 32  LearnerInfo
//! LEADERINFO         leader   new epoch << 32       int protocol version
//! ACKEPOCH           learner  last logged           int current epoch; -1 if the epoch was accepted
//! INFORMANDACTIVATE  leader   of the transaction    long designated leader, payload
//! ```
//!
//! Reading is as strict as ZooKeeper's: packets for which it closes the connection are `Malformed`,
//! and data that it ignores is ignored. Only two checks are ours: an epoch is not negative, and a
//! transaction has the zxid of its packet (a learner of ZooKeeper fails later on such a packet).
//! Whether a packet is expected is not known here.
//!
//! After `Leader.java`, `LearnerHandler.java`, `Learner.java`, `Follower.java`, `Observer.java`.
//! 3.5 to 3.9 write the same bytes. They differ in when they send an ACK (see `FromLearner::Ack`)
//! and in the transactions inside PROPOSAL and INFORM: TxnDigest and the list of a closeSession
//! since 3.6, create2 as a sub-operation of a multi since 3.9.

use crate::jute::record::{Buffer, Record as _};
use crate::jute::{Malformed, Reader, Write as _};
use crate::record::txn::TxnHeader;
use crate::types::{Epoch, ServerId, SessionId, Zxid};

use super::packet::{AuthInfo, PACKET_HEAD_BYTES, PacketKind, QuorumPacket};

/// The version of Zab that every release since 3.4 speaks, and the only one here.
pub const PROTOCOL_VERSION: i32 = 0x1_0000;

/// A packet that says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// ZooKeeper logs and ignores these once learner and leader know each other.
    #[error("a packet of unknown type {kind}")]
    Unknown { kind: i32 },
    /// The same, of a type that the other side sends.
    #[error("{kind} does not come from this side")]
    OtherSide { kind: PacketKind },
    /// ZooKeeper closes the connection. The offset counts from the start of the packet.
    #[error("{kind}: malformed {what} at byte {offset} of the packet")]
    Malformed { kind: PacketKind, what: &'static str, offset: usize },
}

/// What a learner says of itself (`zookeeper.jute`, `quorum.LearnerInfo`).
///
/// `LearnerHandler.run` takes as much as there is: nothing, the server's number (8 bytes, up to
/// 3.3), number and protocol version (12 bytes, 3.4), or all (20 bytes, since 3.5). It ignores
/// bytes behind that. A field that is not whole counts as absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LearnerInfo {
    /// `None`: ZooKeeper assigns a negative number.
    pub server: Option<ServerId>,
    /// `None` counts as 1, which is before `PROTOCOL_VERSION`: such a learner is sent no
    /// LEADERINFO and sends no ACKEPOCH.
    pub protocol_version: Option<i32>,
    /// The version of the learner's configuration. A leader refuses a higher one than its own.
    pub config_version: Option<i64>,
}

impl LearnerInfo {
    /// What a server says that speaks the protocol of today.
    #[must_use]
    pub const fn new(server: ServerId, config_version: i64) -> LearnerInfo {
        LearnerInfo {
            server: Some(server),
            protocol_version: Some(PROTOCOL_VERSION),
            config_version: Some(config_version),
        }
    }

    /// Any bytes are one.
    #[must_use]
    pub fn from_data(data: Buffer<'_>) -> LearnerInfo {
        let mut reader = Reader::new(data.unwrap_or_default());
        let server = reader.i64().ok().map(ServerId);
        let protocol_version = server.and_then(|_| reader.i32().ok());
        let config_version = protocol_version.and_then(|_| reader.i64().ok());
        LearnerInfo { server, protocol_version, config_version }
    }

    fn write(self, out: &mut Vec<u8>) {
        let Some(server) = self.server else { return };
        out.put_i64(server.0);
        let Some(protocol_version) = self.protocol_version else { return };
        out.put_i32(protocol_version);
        let Some(config_version) = self.config_version else { return };
        out.put_i64(config_version);
    }
}

/// The sessions that a learner has heard from since its last ping, left in their bytes
/// (`Learner.ping` writes them, `LearnerHandler.run` reads them).
///
/// Every learner reports a new session once, whichever server its client is connected to: a session
/// enters the table when its creation is applied (`LearnerSessionTracker.commitSession`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TouchTable<'a>(&'a [u8]);

const TOUCH_BYTES: usize = 12;

impl<'a> TouchTable<'a> {
    pub const EMPTY: TouchTable<'static> = TouchTable(&[]);

    /// The entries one after the other.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<TouchTable<'a>, Malformed> {
        if bytes.len().is_multiple_of(TOUCH_BYTES) {
            Ok(TouchTable(bytes))
        } else {
            let offset = bytes.len() - bytes.len() % TOUCH_BYTES;
            Err(Malformed { offset, what: "touched session" })
        }
    }

    #[must_use]
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// Each session with its timeout in milliseconds.
    pub fn sessions(self) -> impl ExactSizeIterator<Item = (SessionId, i32)> + use<'a> {
        self.0.chunks_exact(TOUCH_BYTES).map(|entry| {
            let mut reader = Reader::new(entry);
            let session = SessionId(reader.i64().expect("an entry is whole"));
            (session, reader.i32().expect("an entry is whole"))
        })
    }

    /// Adds an entry to the bytes of a table.
    pub fn write_entry(session: SessionId, timeout_ms: i32, out: &mut Vec<u8>) {
        out.put_i64(session.0);
        out.put_i32(timeout_ms);
    }
}

/// The payload of a log record: a header, a body, and most often a digest. Byte for byte what the
/// leader's log holds, also where something here is not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxnPayload<'a>(&'a [u8]);

impl<'a> TxnPayload<'a> {
    /// Bytes that begin with a whole header.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<TxnPayload<'a>, Malformed> {
        let header = TxnHeader::read(&mut Reader::new(bytes));
        header.map(|_| TxnPayload(bytes))
    }

    #[must_use]
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    #[must_use]
    pub fn header(self) -> TxnHeader {
        TxnHeader::read(&mut Reader::new(self.0)).expect("begins with a header")
    }
}

/// A client's request that a learner passes on to its leader (`Learner.request`).
///
/// The answer is a transaction with the same session and cxid, also where the request fails. Only
/// sync is answered by SYNC, and a request that changes nothing (getData) not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    pub session: SessionId,
    /// The client's xid; 0 for createSession.
    pub cxid: i32,
    /// `record::op::code`.
    pub op: i32,
    /// The client's request behind its header. createSession: int timeout in ms. closeSession:
    /// nothing.
    pub body: &'a [u8],
    /// Null for createSession.
    pub identities: AuthInfo<'a>,
}

/// What a learner sends its leader, or an observer its observer master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromLearner<'a> {
    /// The first packet of a participant.
    FollowerInfo {
        accepted: Epoch,
        info: LearnerInfo,
    },
    /// The first packet of an observer.
    ObserverInfo {
        accepted: Epoch,
        info: LearnerInfo,
    },
    /// The answer to LEADERINFO. `last` is the last zxid of the learner's log, -1 where its data is
    /// unexpectedly gone. `current` is `None` (-1 in the packet) where the learner had accepted the
    /// epoch before: the leader must not count it as another agreement.
    AckEpoch {
        last: Zxid,
        current: Option<Epoch>,
    },
    /// This transaction is logged and synced. With a counter of zero: the answer to NEWLEADER, and
    /// once more to UPTODATE. 3.8 also acknowledges transactions of the history, possibly before
    /// its answer to NEWLEADER; 3.9 never does. An observer answers only NEWLEADER and UPTODATE.
    Ack {
        zxid: Zxid,
    },
    /// The answer to a ping, with the ping's zxid.
    Ping {
        zxid: Zxid,
        touched: TouchTable<'a>,
    },
    /// A client has connected to this learner with an existing session. The answer has the same
    /// `zxid`, which is -1.
    Revalidate {
        zxid: Zxid,
        session: SessionId,
        timeout_ms: i32,
    },
    Request(Request<'a>),
}

/// What a leader sends its learners, or an observer master its observers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromLeader<'a> {
    /// The epoch that the leader proposes. ZooKeeper sends `PROTOCOL_VERSION` and accepts any.
    LeaderInfo { epoch: Epoch, protocol_version: i32 },
    /// The learner keeps its history; what it lacks follows as PROPOSAL and COMMIT. `zxid` is the
    /// last that the leader has committed, or the learner's own; learners do not use it.
    Diff { zxid: Zxid },
    /// The learner cuts off its log behind `zxid`, which it may not have.
    Trunc { zxid: Zxid },
    /// The learner replaces all it has by the snapshot that follows. The snapshot holds everything
    /// up to `zxid`, and maybe effects of transactions behind it.
    Snap { zxid: Zxid },
    /// All history of older epochs has been sent. `config` is the last configuration that the
    /// leader has seen, as text. Learners of ZooKeeper accept null and empty.
    NewLeader { zxid: Zxid, config: Buffer<'a> },
    /// The learner may serve clients.
    UpToDate,
    /// A transaction to log. To participants, and to observers as part of their history. A leader
    /// of 3.9.3 that is sent a malformed request proposes the zxid before once more.
    Proposal { zxid: Zxid, txn: TxnPayload<'a> },
    /// The proposal with this zxid is decided.
    Commit { zxid: Zxid },
    /// The same of a reconfiguration, with the server that leads from then on.
    CommitAndActivate { zxid: Zxid, designated: ServerId },
    /// To observers: a transaction that is decided.
    Inform { zxid: Zxid, txn: TxnPayload<'a> },
    /// The same of a reconfiguration, with the server that leads from then on.
    InformAndActivate { zxid: Zxid, designated: ServerId, txn: TxnPayload<'a> },
    /// `zxid` is the last that was proposed, so an observer sees it ahead of its last INFORM.
    Ping { zxid: Zxid },
    /// Whether a session may go on at the learner that asked.
    Revalidate { zxid: Zxid, session: SessionId, valid: bool },
    /// Answers the oldest sync that this learner has asked for.
    Sync,
}

/// Where a packet has its zxid, and the length of its data.
const ZXID_AT: usize = 4;
const LENGTH_AT: usize = 12;

/// A packet's data, and what to say where it is wrong.
struct Data<'a> {
    kind: PacketKind,
    reader: Reader<'a>,
}

impl<'a> Data<'a> {
    /// Of a packet whose data must not be null.
    fn of(kind: PacketKind, packet: &QuorumPacket<'a>) -> Result<Data<'a>, PacketError> {
        match packet.data {
            Some(data) => Ok(Data { kind, reader: Reader::new(data) }),
            None => Err(PacketError::Malformed { kind, what: "data (null)", offset: LENGTH_AT }),
        }
    }

    fn field<T>(
        &mut self,
        read: impl FnOnce(&mut Reader<'a>) -> Result<T, Malformed>,
    ) -> Result<T, PacketError> {
        let read = read(&mut self.reader);
        read.map_err(|Malformed { offset, what }| self.malformed(offset, what))
    }

    /// `offset` counts from the start of the data.
    fn malformed(&self, offset: usize, what: &'static str) -> PacketError {
        PacketError::Malformed { kind: self.kind, what, offset: PACKET_HEAD_BYTES + offset }
    }

    fn session(&mut self) -> Result<SessionId, PacketError> {
        self.field(Reader::i64).map(SessionId)
    }

    /// All that is left, which must be the transaction of `zxid`.
    fn txn(&mut self, zxid: Zxid) -> Result<TxnPayload<'a>, PacketError> {
        let start = self.reader.offset();
        let txn = TxnPayload::from_bytes(self.reader.rest())
            .map_err(|Malformed { offset, what }| self.malformed(start + offset, what))?;
        if txn.header().zxid == zxid.0 {
            Ok(txn)
        } else {
            // Behind client id and cxid.
            Err(self.malformed(start + 12, "zxid of the transaction (the packet has another)"))
        }
    }
}

/// The epoch of a zxid that names its start. No server has a negative epoch; without its sign it
/// would be a very high one.
fn epoch_of(kind: PacketKind, zxid: Zxid) -> Result<Epoch, PacketError> {
    if 0 <= zxid.0 {
        Ok(zxid.epoch())
    } else {
        Err(PacketError::Malformed { kind, what: "zxid (negative epoch)", offset: ZXID_AT })
    }
}

fn kind_of(packet: &QuorumPacket<'_>) -> Result<PacketKind, PacketError> {
    PacketKind::from_number(packet.kind).ok_or(PacketError::Unknown { kind: packet.kind })
}

/// Writes a packet without data.
fn write_bare(kind: PacketKind, zxid: Zxid, out: &mut Vec<u8>) {
    QuorumPacket { kind: kind.number(), zxid, data: None, authinfo: AuthInfo::NULL }.write(out);
}

/// Writes a packet whose data `data` appends, and which has no identities.
fn write_with(kind: PacketKind, zxid: Zxid, out: &mut Vec<u8>, data: impl FnOnce(&mut Vec<u8>)) {
    write_up_to_authinfo(kind, zxid, out, data);
    AuthInfo::NULL.write(out);
}

fn write_up_to_authinfo(
    kind: PacketKind,
    zxid: Zxid,
    out: &mut Vec<u8>,
    data: impl FnOnce(&mut Vec<u8>),
) {
    out.put_i32(kind.number());
    out.put_i64(zxid.0);
    let start = out.len();
    out.put_i32(0);
    data(out);
    let length = i32::try_from(out.len() - start - 4).expect("a packet below 2 GiB");
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

impl<'a> FromLearner<'a> {
    /// Reads a packet that a learner has sent.
    pub fn read(packet: &QuorumPacket<'a>) -> Result<FromLearner<'a>, PacketError> {
        let kind = kind_of(packet)?;
        let zxid = packet.zxid;
        Ok(match kind {
            PacketKind::FollowerInfo | PacketKind::ObserverInfo => {
                let accepted = epoch_of(kind, zxid)?;
                let info = LearnerInfo::from_data(packet.data);
                if kind == PacketKind::FollowerInfo {
                    FromLearner::FollowerInfo { accepted, info }
                } else {
                    FromLearner::ObserverInfo { accepted, info }
                }
            }
            PacketKind::AckEpoch => {
                let mut data = Data::of(kind, packet)?;
                let current = match data.field(Reader::i32)? {
                    -1 => None,
                    epoch => match u32::try_from(epoch) {
                        Ok(epoch) => Some(Epoch(epoch)),
                        Err(_) => return Err(data.malformed(0, "epoch (negative)")),
                    },
                };
                FromLearner::AckEpoch { last: zxid, current }
            }
            PacketKind::Ack => FromLearner::Ack { zxid },
            PacketKind::Ping => {
                let mut data = Data::of(kind, packet)?;
                let touched = data.field(|reader| TouchTable::from_bytes(reader.rest()))?;
                FromLearner::Ping { zxid, touched }
            }
            PacketKind::Revalidate => {
                let mut data = Data::of(kind, packet)?;
                let (session, timeout_ms) = (data.session()?, data.field(Reader::i32)?);
                FromLearner::Revalidate { zxid, session, timeout_ms }
            }
            PacketKind::Request => {
                let mut data = Data::of(kind, packet)?;
                FromLearner::Request(Request {
                    session: data.session()?,
                    cxid: data.field(Reader::i32)?,
                    op: data.field(Reader::i32)?,
                    body: data.reader.rest(),
                    identities: packet.authinfo,
                })
            }
            PacketKind::Proposal
            | PacketKind::Commit
            | PacketKind::Sync
            | PacketKind::Inform
            | PacketKind::CommitAndActivate
            | PacketKind::NewLeader
            | PacketKind::UpToDate
            | PacketKind::Diff
            | PacketKind::Trunc
            | PacketKind::Snap
            | PacketKind::LeaderInfo
            | PacketKind::InformAndActivate => return Err(PacketError::OtherSide { kind }),
        })
    }

    pub fn write(&self, out: &mut Vec<u8>) {
        match *self {
            FromLearner::FollowerInfo { accepted, info } => {
                write_info(PacketKind::FollowerInfo, accepted, info, out);
            }
            FromLearner::ObserverInfo { accepted, info } => {
                write_info(PacketKind::ObserverInfo, accepted, info, out);
            }
            FromLearner::AckEpoch { last, current } => {
                write_with(PacketKind::AckEpoch, last, out, |out| {
                    out.put_i32(current.map_or(-1, |epoch| epoch.0 as i32));
                });
            }
            FromLearner::Ack { zxid } => write_bare(PacketKind::Ack, zxid, out),
            FromLearner::Ping { zxid, touched } => {
                write_with(PacketKind::Ping, zxid, out, |out| out.extend_from_slice(touched.0));
            }
            FromLearner::Revalidate { zxid, session, timeout_ms } => {
                write_with(PacketKind::Revalidate, zxid, out, |out| {
                    out.put_i64(session.0);
                    out.put_i32(timeout_ms);
                });
            }
            FromLearner::Request(Request { session, cxid, op, body, identities }) => {
                write_up_to_authinfo(PacketKind::Request, Zxid(-1), out, |out| {
                    out.put_i64(session.0);
                    out.put_i32(cxid);
                    out.put_i32(op);
                    out.extend_from_slice(body);
                });
                identities.write(out);
            }
        }
    }
}

fn write_info(kind: PacketKind, accepted: Epoch, info: LearnerInfo, out: &mut Vec<u8>) {
    write_with(kind, Zxid::new(accepted, 0), out, |out| info.write(out));
}

impl<'a> FromLeader<'a> {
    /// Reads a packet that a leader has sent.
    pub fn read(packet: &QuorumPacket<'a>) -> Result<FromLeader<'a>, PacketError> {
        let kind = kind_of(packet)?;
        let zxid = packet.zxid;
        Ok(match kind {
            PacketKind::LeaderInfo => FromLeader::LeaderInfo {
                epoch: epoch_of(kind, zxid)?,
                protocol_version: Data::of(kind, packet)?.field(Reader::i32)?,
            },
            PacketKind::Diff => FromLeader::Diff { zxid },
            PacketKind::Trunc => FromLeader::Trunc { zxid },
            PacketKind::Snap => FromLeader::Snap { zxid },
            PacketKind::NewLeader => FromLeader::NewLeader { zxid, config: packet.data },
            PacketKind::UpToDate => FromLeader::UpToDate,
            PacketKind::Proposal => {
                FromLeader::Proposal { zxid, txn: Data::of(kind, packet)?.txn(zxid)? }
            }
            PacketKind::Commit => FromLeader::Commit { zxid },
            PacketKind::CommitAndActivate => {
                let designated = ServerId(Data::of(kind, packet)?.field(Reader::i64)?);
                FromLeader::CommitAndActivate { zxid, designated }
            }
            PacketKind::Inform => {
                FromLeader::Inform { zxid, txn: Data::of(kind, packet)?.txn(zxid)? }
            }
            PacketKind::InformAndActivate => {
                let mut data = Data::of(kind, packet)?;
                let designated = ServerId(data.field(Reader::i64)?);
                FromLeader::InformAndActivate { zxid, designated, txn: data.txn(zxid)? }
            }
            PacketKind::Ping => FromLeader::Ping { zxid },
            PacketKind::Revalidate => {
                let mut data = Data::of(kind, packet)?;
                let (session, valid) = (data.session()?, data.field(Reader::bool)?);
                FromLeader::Revalidate { zxid, session, valid }
            }
            PacketKind::Sync => FromLeader::Sync,
            PacketKind::Request
            | PacketKind::Ack
            | PacketKind::FollowerInfo
            | PacketKind::ObserverInfo
            | PacketKind::AckEpoch => return Err(PacketError::OtherSide { kind }),
        })
    }

    pub fn write(&self, out: &mut Vec<u8>) {
        match *self {
            FromLeader::LeaderInfo { epoch, protocol_version } => {
                write_with(PacketKind::LeaderInfo, Zxid::new(epoch, 0), out, |out| {
                    out.put_i32(protocol_version);
                });
            }
            FromLeader::Diff { zxid } => write_bare(PacketKind::Diff, zxid, out),
            FromLeader::Trunc { zxid } => write_bare(PacketKind::Trunc, zxid, out),
            FromLeader::Snap { zxid } => write_bare(PacketKind::Snap, zxid, out),
            FromLeader::NewLeader { zxid, config } => {
                let kind = PacketKind::NewLeader.number();
                QuorumPacket { kind, zxid, data: config, authinfo: AuthInfo::NULL }.write(out);
            }
            FromLeader::UpToDate => write_bare(PacketKind::UpToDate, Zxid(-1), out),
            FromLeader::Proposal { zxid, txn } => {
                write_txn(PacketKind::Proposal, zxid, None, txn, out);
            }
            FromLeader::Commit { zxid } => write_bare(PacketKind::Commit, zxid, out),
            FromLeader::CommitAndActivate { zxid, designated } => {
                write_with(PacketKind::CommitAndActivate, zxid, out, |out| {
                    out.put_i64(designated.0);
                });
            }
            FromLeader::Inform { zxid, txn } => {
                write_txn(PacketKind::Inform, zxid, None, txn, out);
            }
            FromLeader::InformAndActivate { zxid, designated, txn } => {
                write_txn(PacketKind::InformAndActivate, zxid, Some(designated), txn, out);
            }
            FromLeader::Ping { zxid } => write_bare(PacketKind::Ping, zxid, out),
            FromLeader::Revalidate { zxid, session, valid } => {
                write_with(PacketKind::Revalidate, zxid, out, |out| {
                    out.put_i64(session.0);
                    out.put_bool(valid);
                });
            }
            FromLeader::Sync => write_bare(PacketKind::Sync, Zxid::ZERO, out),
        }
    }
}

fn write_txn(
    kind: PacketKind,
    zxid: Zxid,
    designated: Option<ServerId>,
    txn: TxnPayload<'_>,
    out: &mut Vec<u8>,
) {
    write_with(kind, zxid, out, |out| {
        if let Some(designated) = designated {
            out.put_i64(designated.0);
        }
        out.extend_from_slice(txn.0);
    });
}
