//! The election port: a hello, then notifications in frames.
//!
//! ```text
//! hello        = long server                          before 3.5, not negative
//!              | long version, long server, int length 1..=2048, addresses
//! version      = -65536, one address (since 3.5) | -65535, several (since 3.6)
//! addresses    = ADDRESS ( "|" ADDRESS )*             either version is read with either number
//! ADDRESS      = host ":" port                        an IPv6 host stands in brackets
//! frame        = int length 1..=524288, notification
//! notification = int state, long leader, long zxid, long election epoch        28 bytes, 3.3
//!                [long peer epoch, int version                                 40 bytes, 3.4
//!                [int length, configuration as text]]                          since 3.5
//! ```
//!
//! The connecting side sends its hello once, before anything else. All else goes both ways.
//!
//! After `QuorumCnxManager.java` (`InitialMessage.parse`, `startConnection`, `receiveConnection`,
//! `RecvWorker`) and `FastLeaderElection.java` (`WorkerReceiver`, `buildMsg`).

use std::fmt;
use std::net::IpAddr;

use crate::jute::frame::{self, TooLong};
use crate::jute::record::{Buffer, Record};
use crate::jute::{Malformed, Reader, Write as _, decode_lossy};
use crate::types::{ServerId, Zxid};

use super::sasl::{self, Sasl};
use super::{Arrivals, StreamError, int_at, long_at};

/// The longest text of addresses in a hello (`InitialMessage.parse`, `maxBuffer`).
pub const ADDRESSES_BYTES_MAX: usize = 2048;

/// The longest frame behind a hello (`QuorumCnxManager.PACKETMAXSIZE`).
pub const FRAME_BYTES_MAX: usize = 512 * 1024;

const ONE_ADDRESS: i64 = -65536;
const SEVERAL_ADDRESSES: i64 = -65535;

/// How a server introduces itself (`QuorumCnxManager.startConnection`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelloForm {
    /// Before 3.5: the server's number alone.
    ServerOnly,
    /// -65536 (`PROTOCOL_VERSION_V1`), since 3.5. The form to send by default: 3.5 closes the
    /// connection on the other one.
    OneAddress,
    /// -65535 (`PROTOCOL_VERSION_V2`), since 3.6. Sent with `multiAddress.enabled` only.
    SeveralAddresses,
}

/// Who has opened a connection, and where it can be reached in return
/// (`QuorumCnxManager.InitialMessage`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub form: HelloForm,
    /// `i64::MAX` once stood for an observer without a number.
    pub server: ServerId,
    /// Its own election addresses, as configured there.
    pub addresses: Vec<ElectionAddress>,
}

/// Where a server takes connections of the election port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElectionAddress {
    /// Without the brackets of an IPv6 address. Not resolved.
    pub host: String,
    pub port: u16,
}

impl ElectionAddress {
    /// Whether it stands for all addresses of the machine, so that nobody can connect to it
    /// (`InitialMessage.isWildcardAddress`, which resolves names too).
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified())
    }

    /// `ConfigUtils.getHostAndPort` and what `InitialMessage.parse` asks of its result.
    fn parse(text: &str) -> Option<ElectionAddress> {
        let (host, port) = match text.strip_prefix('[') {
            Some(bracketed) => bracketed.split_once("]:")?,
            None => text.split_once(':')?,
        };
        let port = port.parse().ok()?;
        (!host.is_empty()).then(|| ElectionAddress { host: host.to_owned(), port })
    }
}

impl fmt::Display for ElectionAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ElectionAddress { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl Hello {
    /// The addresses to connect to. Where there is none, ZooKeeper uses those of its configuration
    /// (`QuorumCnxManager.handleConnection`).
    pub fn reachable(&self) -> impl Iterator<Item = &ElectionAddress> {
        self.addresses.iter().filter(|address| !address.is_wildcard())
    }

    /// Writes the hello. It must be sent in one piece: ZooKeeper reads the addresses with one read
    /// and closes the connection if some are missing. Fails if the addresses are too long.
    ///
    /// # Panics
    /// Without an address, unless the form has none: receivers would close the connection.
    pub fn write(&self, out: &mut Vec<u8>) -> Result<(), TooLong> {
        let version = match self.form {
            HelloForm::ServerOnly => {
                out.put_i64(self.server.0);
                return Ok(());
            }
            HelloForm::OneAddress => ONE_ADDRESS,
            HelloForm::SeveralAddresses => SEVERAL_ADDRESSES,
        };
        assert!(!self.addresses.is_empty(), "a server has an election address");
        let texts: Vec<String> = self.addresses.iter().map(ElectionAddress::to_string).collect();
        let text = texts.join("|");
        if ADDRESSES_BYTES_MAX < text.len() {
            return Err(TooLong);
        }
        out.put_i64(version);
        out.put_i64(self.server.0);
        out.put_text(&text);
        Ok(())
    }

    /// The hello at the front, with its length, once it is whole.
    fn cut(arrivals: &Arrivals) -> Result<Option<(Hello, usize)>, StreamError> {
        let front = arrivals.front();
        let Some(first) = long_at(front, 0) else { return Ok(None) };
        let form = match first {
            ONE_ADDRESS => HelloForm::OneAddress,
            SEVERAL_ADDRESSES => HelloForm::SeveralAddresses,
            0.. => {
                let (form, server) = (HelloForm::ServerOnly, ServerId(first));
                return Ok(Some((Hello { form, server, addresses: Vec::new() }, 8)));
            }
            _ => return Err(arrivals.malformed(0, "version of a hello")),
        };
        let (Some(server), Some(length)) = (long_at(front, 8), int_at(front, 16)) else {
            return Ok(None);
        };
        let (min, max) = (1, ADDRESSES_BYTES_MAX);
        let text_bytes = match usize::try_from(length) {
            Ok(bytes) if (min..=max).contains(&bytes) => bytes,
            _ => {
                let (what, offset) = ("addresses of a hello", arrivals.offset() + 16);
                return Err(StreamError::Length { what, offset, length, min, max });
            }
        };
        let Some(text) = front.get(20..20 + text_bytes) else { return Ok(None) };
        let text = decode_lossy(text);
        // Java's split: empty parts at the end vanish.
        let text = text.trim_end_matches('|');
        let mut addresses = Vec::new();
        for part in text.split('|').filter(|_| !text.is_empty()) {
            let address = ElectionAddress::parse(part)
                .ok_or_else(|| arrivals.malformed(20, "address of a hello"))?;
            addresses.push(address);
        }
        Ok(Some((Hello { form, server: ServerId(server), addresses }, 20 + text_bytes)))
    }
}

/// What a server is doing (`QuorumPeer.ServerState`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerState {
    Looking,
    Following,
    Leading,
    Observing,
    /// A number that no release sends. ZooKeeper answers such a notification if its sender is not
    /// a voter, and drops it otherwise.
    Unknown(i32),
}

impl ServerState {
    #[must_use]
    pub const fn from_number(number: i32) -> ServerState {
        match number {
            0 => ServerState::Looking,
            1 => ServerState::Following,
            2 => ServerState::Leading,
            3 => ServerState::Observing,
            _ => ServerState::Unknown(number),
        }
    }

    #[must_use]
    pub const fn number(self) -> i32 {
        match self {
            ServerState::Looking => 0,
            ServerState::Following => 1,
            ServerState::Leading => 2,
            ServerState::Observing => 3,
            ServerState::Unknown(number) => number,
        }
    }
}

impl fmt::Display for ServerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerState::Looking => f.write_str("LOOKING"),
            ServerState::Following => f.write_str("FOLLOWING"),
            ServerState::Leading => f.write_str("LEADING"),
            ServerState::Observing => f.write_str("OBSERVING"),
            ServerState::Unknown(number) => write!(f, "state {number}"),
        }
    }
}

/// The version of every notification since 3.5 (`Notification.CURRENTVERSION`).
pub const NOTIFICATION_VERSION: i32 = 2;

/// The vote of a server (`FastLeaderElection.Notification`, `ToSend`). It does not say which
/// server: the connection does.
///
/// A server that is not a voter sends `i64::MIN` as `leader`; an observer also as `zxid` and
/// `peer_epoch`. That is its first notification of a round: once it has adopted a vote, it sends
/// that vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notification<'a> {
    pub state: ServerState,
    pub leader: ServerId,
    /// The last zxid in the log of `leader` at the time of the vote.
    pub zxid: Zxid,
    /// The sender's round.
    pub election_epoch: i64,
    /// The current epoch of `leader` at the time of the vote; once it leads, the epoch it leads.
    pub peer_epoch: i64,
    /// 0 in messages of 28 or 40 bytes: ZooKeeper ignores the version that is in the longer one.
    pub version: i32,
    /// The sender's configuration as text, from version 2 on (3.5). ZooKeeper uses the vote also
    /// where it cannot read the configuration.
    pub config: Buffer<'a>,
}

/// Before 3.4. Longer messages have at least the peer epoch and a version. The 36 bytes of 3.4.0
/// to 3.4.5 are dropped by every release since.
const SHORT_BYTES: usize = 28;
/// 3.4.6 and later: the version is there and ignored.
const UNVERSIONED_BYTES: usize = 40;

impl<'a> Record<'a> for Notification<'a> {
    /// Takes all that is left, because the fields depend on the length. ZooKeeper drops a malformed
    /// notification and keeps the connection (`FastLeaderElection.WorkerReceiver`).
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let bytes = reader.rest().len();
        let state = ServerState::from_number(reader.i32()?);
        let leader = ServerId(reader.i64()?);
        let zxid = Zxid(reader.i64()?);
        let election_epoch = reader.i64()?;
        let mut notification = Notification {
            state,
            leader,
            zxid,
            election_epoch,
            peer_epoch: zxid.0 >> 32,
            version: 0,
            config: None,
        };
        if bytes == SHORT_BYTES {
            return Ok(notification);
        }
        notification.peer_epoch = reader.i64()?;
        let version = reader.i32()?;
        if bytes == UNVERSIONED_BYTES {
            return Ok(notification);
        }
        notification.version = version;
        if 1 < version {
            let offset = reader.offset();
            let config = reader.buffer()?;
            // -1 is a null buffer in Jute, and a wrong length here.
            let what = "length of a configuration";
            notification.config = Some(config.ok_or(Malformed { offset, what })?);
        }
        reader.take(reader.rest().len(), "rest of a notification")?;
        Ok(notification)
    }

    /// Below version 2: 40 bytes, as 3.4 sends them. From version 2 on a configuration is written,
    /// an empty one for `None`.
    fn write(&self, out: &mut Vec<u8>) {
        out.put_i32(self.state.number());
        out.put_i64(self.leader.0);
        out.put_i64(self.zxid.0);
        out.put_i64(self.election_epoch);
        out.put_i64(self.peer_epoch);
        out.put_i32(self.version);
        if 1 < self.version {
            out.put_buffer(Some(self.config.unwrap_or_default()));
        }
    }
}

impl Notification<'_> {
    /// Writes the frame of a notification.
    pub fn write_frame(&self, out: &mut Vec<u8>) -> Result<(), TooLong> {
        let start = out.len();
        let length = frame::try_write(out, |out| self.write(out))?;
        if FRAME_BYTES_MAX < length {
            out.truncate(start);
            return Err(TooLong);
        }
        Ok(())
    }
}

/// Cuts what comes on an election connection into its pieces.
#[derive(Debug)]
pub struct ElectionStream {
    arrivals: Arrivals,
    frame_bytes_max: usize,
    stage: Stage,
}

/// A part of the stream that `ElectionStream::next` has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ElectionPiece<'a> {
    /// First, and only from who has opened the connection.
    Hello(Hello),
    /// What a frame holds: bytes for `Notification`.
    Frame(&'a [u8]),
}

#[derive(Debug)]
enum Stage {
    Hello,
    Frames,
    Failed(StreamError),
}

/// A part that is whole.
enum Cut {
    Hello(Hello),
    Frame { body_bytes: usize },
}

impl ElectionStream {
    /// Of a connection that another server has opened: a hello comes first.
    #[must_use]
    pub fn accepted() -> ElectionStream {
        ElectionStream::at(Stage::Hello)
    }

    /// Of a connection that we have opened: the hello is ours.
    #[must_use]
    pub fn opened() -> ElectionStream {
        ElectionStream::at(Stage::Frames)
    }

    fn at(stage: Stage) -> ElectionStream {
        let arrivals = Arrivals::default();
        ElectionStream { arrivals, frame_bytes_max: FRAME_BYTES_MAX, stage }
    }

    /// Another bound than `FRAME_BYTES_MAX` for what is not taken yet. A notification has 44 bytes
    /// and a configuration, so servers that are not in ours need not be allowed as much.
    pub fn set_frame_bytes_max(&mut self, frame_bytes_max: usize) {
        self.frame_bytes_max = frame_bytes_max;
    }

    /// Adds what has come. With `next` called until it gives `None` in between, no more is held
    /// than one frame and what is added.
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

    /// The next piece, once it is whole; `None` until then. An error is final.
    #[expect(clippy::should_implement_trait, reason = "a piece borrows from the stream")]
    pub fn next(&mut self) -> Result<Option<ElectionPiece<'_>>, StreamError> {
        let cut = self.cut().inspect_err(|error| self.stage = Stage::Failed(*error))?;
        Ok(cut.map(|cut| match cut {
            Cut::Hello(hello) => ElectionPiece::Hello(hello),
            Cut::Frame { body_bytes } => {
                let frame = self.arrivals.take(frame::PREFIX_BYTES + body_bytes);
                ElectionPiece::Frame(&frame[frame::PREFIX_BYTES..])
            }
        }))
    }

    /// A SASL packet, where an exchange is expected or allowed. Only behind the hello.
    pub fn sasl(&mut self) -> Result<Sasl<'_>, StreamError> {
        match self.stage {
            Stage::Failed(error) => Err(error),
            Stage::Hello => Ok(Sasl::Other),
            Stage::Frames => sasl::take(&mut self.arrivals)
                .inspect_err(|error| self.stage = Stage::Failed(*error)),
        }
    }

    fn cut(&mut self) -> Result<Option<Cut>, StreamError> {
        match self.stage {
            Stage::Failed(error) => Err(error),
            Stage::Hello => {
                let Some((hello, bytes)) = Hello::cut(&self.arrivals)? else { return Ok(None) };
                self.arrivals.take(bytes);
                self.stage = Stage::Frames;
                Ok(Some(Cut::Hello(hello)))
            }
            Stage::Frames => match frame::cut(self.arrivals.front(), self.frame_bytes_max) {
                frame::Front::Incomplete { .. } => Ok(None),
                frame::Front::Frame { body } if !body.is_empty() => {
                    Ok(Some(Cut::Frame { body_bytes: body.len() }))
                }
                frame::Front::Frame { .. } => Err(self.bad_length(0)),
                frame::Front::BadLength(length) => Err(self.bad_length(length)),
            },
        }
    }

    fn bad_length(&self, length: i32) -> StreamError {
        let (what, offset) = ("frame", self.arrivals.offset());
        StreamError::Length { what, offset, length, min: 1, max: self.frame_bytes_max }
    }
}
