//! Links: the connections to other servers, on the core of the pipeline. Bytes only: who keeps an
//! election connection, what is sent again and what a packet means is decided in `zab`.
//!
//! ```text
//! election port   accepted or called: a hello, then notifications both ways
//!                 which of two connections stays, and what is sent: zab::election_links
//! quorum port     accepted: a learner's; called: the leader's; packets both ways
//!                 SNAP is followed by a snapshot's body, which goes by the core (snapshot.rs);
//!                 so does what a leader's log has for a learner
//! ```
//!
//! | file | what is in it |
//! |---|---|
//! | `socket.rs` | one connection: what waits to be sent, how it is read from |
//! | `outside.rs` | threads that take connections, resolve names and call |
//! | `snapshot.rs` | snapshots on their way to and from threads that may wait |
//!
//! A turn of the core:
//!
//! ```text
//! on_event    for each event of the ring that is of a link
//! next_event  for each thing that has come of it, as many as the core likes; it acts on each
//! flush       sends what was asked for meanwhile
//! ```
//!
//! **Strangers cost nothing.** Whoever connects to the election port is cut off unless it says who
//! it is in time (`zab::election_links`); to the quorum port, unless a whole FOLLOWERINFO or
//! OBSERVERINFO comes in time, and before that it is known to nobody but here. Of both there are only
//! so many at once: the oldest goes for a new one. What they may send is short until they are known.
//!
//! **A slow reader slows nobody.** What waits for a link is shared with the others that wait for the
//! same, and bounded: beyond it the link is closed, and said to be lost.

mod outside;
#[cfg(test)]
mod peer_tests;
pub(crate) mod snapshot;
mod socket;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use crossbeam::utils::CachePadded;
use tracing::{debug, info, warn};

use crate::ensemble::{Ensemble, PeerAddress};
use crate::jute::Reader;
use crate::jute::record::Record as _;
use crate::record::quorum::{
    ElectionAddress, ElectionPiece, ElectionStream, FRAME_BYTES_MAX, FromLeader, FromLearner,
    HANDSHAKE_FIELD_BYTES_MAX, Hello, HelloForm, NOTIFICATION_VERSION, Notification, PacketError,
    PacketKind, PacketPiece, PacketSender, PacketStream, QuorumPacket, SNAPSHOT_SIGNATURE,
    ServerState,
};
use crate::types::{Deadline, Now, ServerId};
use crate::zab::LinkId;
use crate::zab::election;
use crate::zab::election_links::{self, Ask, CallFailure, ElectionLinks};
use crate::zab::vote::{PeerState, Round, Vote};

use super::mesh::Bell;
use super::ring::{self, Owner, Received, Ring, Token};
use super::sys;
use outside::{Caller, Come, Outside, Place, Port};
use snapshot::{Body, SnapshotInlet, WriteBody};
use socket::{BodyNews, End, Socket};

/// Connections of the quorum port that have not said who they are, at most.
const NEWCOMERS_MAX: usize = 64;
/// Addresses of servers outside the configuration that are remembered, at most.
const NAMED_MAX: usize = 1024;
/// The longest notification of a server outside the configuration.
const STRANGER_FRAME_BYTES_MAX: usize = 64 << 10;
/// What may have come over a link and not be acted on before it is not read from any more.
const UNHEARD_BYTES_MAX: usize = 256 << 10;
/// What is read at a time where the ring only says that there is something to read.
const READ_BYTES: usize = 64 << 10;
/// How often something is said of strangers, at most.
const SAY_EVERY_MS: i64 = 10_000;

/// What links are told by the configuration.
#[derive(Clone, Debug)]
pub(crate) struct LinkOptions {
    /// `quorumListenOnAllIPs`.
    pub(crate) listen_on_all: bool,
    /// `electionPortBindRetry`: how often it is tried to listen; `None`: for ever.
    pub(crate) bind_tries: Option<u32>,
    /// `cnxTimeout`: how long a call of an election port may take.
    pub(crate) election_call: Duration,
    /// How long a call of a leader may take.
    pub(crate) leader_call: Duration,
    /// How long a connection that is taken may be silent at its start.
    pub(crate) hello_ms_max: i64,
    /// `tcpKeepAlive`.
    pub(crate) keep_alive: bool,
    /// `multiAddress.enabled`: the hello names all addresses of this server.
    pub(crate) multi_address: bool,
    /// The longest field of a packet.
    pub(crate) field_bytes_max: usize,
    /// What may wait for one link. Beyond it the link is closed.
    pub(crate) queue_bytes_max: usize,
}

/// What links are made of.
pub(crate) struct LinksParts {
    pub(crate) me: ServerId,
    pub(crate) ensemble: Arc<Ensemble>,
    pub(crate) options: LinkOptions,
    /// Rings the core that has the links.
    pub(crate) bell: Arc<CachePadded<Bell>>,
    /// Whether the ring of that core is `is_buffered`.
    pub(crate) is_buffered: bool,
}

/// What has come.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// A server told its vote.
    Notified {
        from: ServerId,
        notification: election::Notification,
    },
    /// The election port of a server answered a call.
    ElectionReached {
        server: ServerId,
    },
    /// Nobody listens on the election port of a server.
    ElectionRefused {
        server: ServerId,
    },
    /// The election connection with a server is over.
    ElectionGone {
        server: ServerId,
    },
    /// A learner has said who it is; that packet is the next event of the link.
    LearnerConnected {
        link: LinkId,
    },
    /// The call of a leader was answered.
    LeaderReached {
        link: LinkId,
        server: ServerId,
    },
    /// Nobody answered it for as long as a call may take.
    LeaderSilent {
        server: ServerId,
    },
    /// It came to nothing.
    LeaderRefused {
        server: ServerId,
    },
    /// A link of the quorum port is over, and nobody asked for that.
    LinkClosed {
        link: LinkId,
    },
    FromLearner {
        link: LinkId,
        packet: FromLearner<'a>,
    },
    /// Behind `FromLeader::Snap` nothing comes until `receive_snapshot`.
    FromLeader {
        link: LinkId,
        packet: FromLeader<'a>,
    },
    /// So many bytes of a snapshot have come.
    #[cfg_attr(not(test), expect(dead_code, reason = "whoever loads it sees them come"))]
    SnapshotCame {
        link: LinkId,
        bytes: usize,
    },
    /// All of it has.
    #[cfg_attr(not(test), expect(dead_code, reason = "whoever loads it sees its end"))]
    SnapshotEnded {
        link: LinkId,
    },
    /// Bytes of `send_snapshot` or `send_logged` have been handed to the kernel.
    BodyMoved {
        link: LinkId,
    },
    /// All of them have, but for the last few.
    BodySent {
        link: LinkId,
    },
    /// Nobody can connect to this server there, and it is not tried any more.
    CannotListen {
        host: String,
        port: u16,
        error: io::Error,
    },
}

/// An event that borrows nothing.
type News = Event<'static>;

/// What a link is for.
enum Role {
    Election {
        link: election_links::ElectionLinkId,
        stream: ElectionStream,
        /// A notification is on its way out.
        is_telling: bool,
    },
    Quorum {
        link: LinkId,
        stream: PacketStream,
        from: Other,
    },
}

/// Who is at the other end of the quorum port.
enum Other {
    /// It has not said who it is.
    Newcomer,
    /// `first` is its first packet, until that is told.
    Learner {
        first: Option<Vec<u8>>,
    },
    Leader {
        snapshot: Incoming,
    },
}

/// What is known of a snapshot that comes.
enum Incoming {
    None,
    /// SNAP was told, and nobody has said where the body goes.
    Announced,
    Coming(SnapshotInlet),
}

struct Link {
    socket: Socket,
    role: Role,
    /// It is in `Links::heard`.
    is_heard: bool,
    /// It is in `Links::to_send`.
    is_to_send: bool,
    /// No more will come, and this is why.
    end: Option<End>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    link: Option<Link>,
}

pub(crate) struct Links {
    me: ServerId,
    ensemble: Arc<Ensemble>,
    options: LinkOptions,
    election: ElectionLinks,
    outside: Outside,
    bell: Arc<CachePadded<Bell>>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_election: BTreeMap<election_links::ElectionLinkId, u32>,
    by_link: BTreeMap<LinkId, u32>,
    next_link: u64,
    /// The last call of a leader, until it is answered.
    calling: Option<(u64, ServerId)>,
    calls: u64,
    /// What `election` asks for.
    asks: Vec<Ask>,
    /// Whom the newest notification is to be written to.
    tells: Vec<election_links::ElectionLinkId>,
    /// Where servers outside the configuration said that they can be reached.
    named: BTreeMap<ServerId, Vec<Place>>,
    news: VecDeque<News>,
    /// Something has come over these, or they are over.
    heard: VecDeque<u32>,
    /// They wait for whoever reads a snapshot, or until nothing is held.
    parked: Vec<u32>,
    /// What would be logged here is not taken for now.
    is_held: bool,
    to_send: VecDeque<u32>,
    /// They wait for whoever writes a snapshot, or what the log has.
    bodies: Vec<u32>,
    /// Of the quorum port, in the order in which they came: until when they must have spoken.
    newcomers: VecDeque<(Deadline, Token)>,
    /// Over, until the ring has taken what was asked of it for them.
    closed: Vec<Socket>,
    buffer: Box<[u8]>,
    strangers: Fold,
}

impl Links {
    /// Starts to listen, and to keep connections.
    pub(crate) fn start(parts: LinksParts) -> io::Result<Links> {
        let LinksParts { me, ensemble, options, bell, is_buffered } = parts;
        let outside = Outside::new(Arc::clone(&bell), options.keep_alive)?;
        let links = Links {
            me,
            election: ElectionLinks::new(me, options.hello_ms_max),
            outside,
            bell,
            ensemble,
            options,
            slots: Vec::new(),
            free: Vec::new(),
            by_election: BTreeMap::new(),
            by_link: BTreeMap::new(),
            next_link: 0,
            calling: None,
            calls: 0,
            asks: Vec::new(),
            tells: Vec::new(),
            named: BTreeMap::new(),
            news: VecDeque::new(),
            heard: VecDeque::new(),
            parked: Vec::new(),
            is_held: false,
            to_send: VecDeque::new(),
            bodies: Vec::new(),
            newcomers: VecDeque::new(),
            closed: Vec::new(),
            buffer: vec![0; if is_buffered { 0 } else { READ_BYTES }].into_boxed_slice(),
            strangers: Fold::default(),
        };
        links.listen()?;
        Ok(links)
    }

    /// On the election port; and on the quorum port, where this server may lead.
    fn listen(&self) -> io::Result<()> {
        let Some(own) = self.ensemble.members.get(&self.me) else { return Ok(()) };
        let LinkOptions { listen_on_all, bind_tries, .. } = self.options;
        let mut ports = BTreeSet::new();
        for address in &own.addresses {
            for port in [Port::Election, Port::Quorum] {
                let place = place_of(address, port);
                let is_needed = port == Port::Election || self.ensemble.is_participant(self.me);
                // One socket on all addresses is enough for each port.
                if is_needed && (!listen_on_all || ports.insert(place.port)) {
                    self.outside.listen(port, place, listen_on_all, bind_tries)?;
                }
            }
        }
        Ok(())
    }

    // ---- waiting --------------------------------------------------------------------------------

    /// Whether there is anything to do without an event of the ring.
    pub(crate) fn has_work(&self) -> bool {
        !(self.news.is_empty()
            && self.heard.is_empty()
            && self.to_send.is_empty()
            && self.tells.is_empty()
            && self.asks.is_empty()
            && self.closed.is_empty()
            && self.outside.is_empty())
            || self.parked.iter().any(|&slot| self.can_go_on(slot))
            || self.bodies.iter().any(|&slot| self.can_send(slot))
    }

    /// When `on_time` has something to do.
    pub(crate) fn deadline(&self) -> Option<Deadline> {
        let newcomer = self.newcomers.front().map(|(deadline, _)| *deadline);
        newcomer.into_iter().chain(self.election.deadline()).min()
    }

    pub(crate) fn on_time(&mut self, now: Now) {
        self.election.on_time(now, &mut self.asks);
        while let Some((deadline, token)) = self.newcomers.front().copied()
            && (deadline.is_due(now) || !self.is_newcomer(token))
        {
            self.newcomers.pop_front();
            if self.is_newcomer(token) {
                self.cut_off(now, token.slot, &"it does not say who it is");
            }
        }
    }

    // ---- what is asked for ----------------------------------------------------------------------

    /// Has these servers told the newest notification, which `flush` is given.
    pub(crate) fn tell(&mut self, servers: &BTreeSet<ServerId>) {
        for &server in servers {
            self.election.tell(server, &mut self.asks);
        }
    }

    /// Whether there is an election connection with a server.
    #[cfg(test)]
    fn is_connected(&self, server: ServerId) -> bool {
        self.election.is_connected(server)
    }

    /// Connects to the quorum port of a server. An earlier call is forgotten.
    pub(crate) fn call(&mut self, server: ServerId) {
        self.calls += 1;
        self.calling = Some((self.calls, server));
        let places = self.configured(server, Port::Quorum);
        self.outside.call(Caller::Leader(self.calls), places, self.options.leader_call);
    }

    /// Sends bytes of whole packets over a link, behind all that it was given before. Nothing where
    /// the link is over.
    pub(crate) fn send(&mut self, link: LinkId, bytes: Arc<[u8]>) {
        let Some(&slot) = self.by_link.get(&link) else { return };
        let queue_bytes_max = self.options.queue_bytes_max;
        let socket = &mut self.link_mut(slot).socket;
        if queue_bytes_max < socket.queued_bytes() + bytes.len() {
            let end = End::Overflow(socket.queued_bytes());
            return self.lose(slot, &end);
        }
        socket.push(bytes);
        self.want_to_send(slot);
    }

    /// Sends a snapshot's body, which a thread writes, and its signature. What is sent later comes
    /// behind it.
    pub(crate) fn send_snapshot(&mut self, link: LinkId, write: WriteBody) {
        self.send_body(link, SNAPSHOT_SIGNATURE, write);
    }

    /// Sends packets that a thread writes. What is sent later comes behind them.
    pub(crate) fn send_logged(&mut self, link: LinkId, write: WriteBody) {
        self.send_body(link, &[], write);
    }

    fn send_body(&mut self, link: LinkId, tail: &'static [u8], write: WriteBody) {
        let Some(&slot) = self.by_link.get(&link) else { return };
        match Body::start(write, Arc::clone(&self.bell)) {
            Ok(body) => {
                self.link_mut(slot).socket.push_body(body, tail);
                self.want_to_send(slot);
            }
            Err(error) => self.lose(slot, &End::Broken(error)),
        }
    }

    /// Where the body goes that follows SNAP.
    pub(crate) fn receive_snapshot(&mut self, link: LinkId, inlet: SnapshotInlet) {
        let Some(&slot) = self.by_link.get(&link) else { return };
        if let Role::Quorum { from: Other::Leader { snapshot }, .. } = &mut self.link_mut(slot).role
        {
            *snapshot = Incoming::Coming(inlet);
        }
        self.hear(slot);
    }

    /// Has what would be logged here wait in its links, or not.
    pub(crate) fn hold(&mut self, is_held: bool) {
        self.is_held = is_held;
    }

    /// Ends a link, with no event for it.
    pub(crate) fn close(&mut self, link: LinkId, ring: &mut Ring) {
        if let Some(&slot) = self.by_link.get(&link) {
            // What is sent before the end may still arrive.
            let _ = self.link_mut(slot).socket.send(ring);
            self.take_out(slot);
        }
    }

    /// Ends all.
    pub(crate) fn stop(mut self) {
        for slot in 0..self.slots.len() {
            if self.slots[slot].link.is_some() {
                self.take_out(u32::try_from(slot).expect("there are fewer slots than 2^24"));
            }
        }
        self.outside.stop();
    }

    // ---- the ring -------------------------------------------------------------------------------

    /// An event of the ring that is of a link.
    pub(crate) fn on_event(&mut self, event: ring::Event, ring: &mut Ring) {
        match event {
            ring::Event::Received { socket, what, goes_on } => {
                self.on_received(socket, what, goes_on, ring);
            }
            ring::Event::Writable { socket } => {
                if self.is_open(socket) {
                    self.link_mut(socket.slot).socket.is_blocked = false;
                    self.want_to_send(socket.slot);
                }
            }
            ring::Event::Bell | ring::Event::Marked | ring::Event::Durable { .. } => {}
        }
    }

    fn on_received(&mut self, token: Token, what: Received, goes_on: bool, ring: &mut Ring) {
        if !self.is_open(token) {
            if let Received::Bytes(filled) = what {
                ring.give_back(filled);
            }
            return;
        }
        let link = self.slots[token.slot as usize].link.as_mut().expect("a link that is open");
        let end = match what {
            Received::Bytes(filled) => {
                link.take_in(ring.bytes(&filled));
                ring.give_back(filled);
                None
            }
            Received::Readable => match sys::receive_now(link.socket.wire.fd(), &mut self.buffer) {
                Ok(0) => Some(End::Ended),
                Ok(count) => {
                    link.take_in(&self.buffer[..count]);
                    None
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => None,
                    _ => Some(End::Broken(error)),
                },
            },
            Received::End => Some(End::Ended),
            Received::Failed(error) => Some(End::Broken(error)),
            Received::Nothing | Received::NoBuffer => None,
        };
        link.end = link.end.take().or(end);
        if !goes_on {
            link.socket.on_stopped();
        }
        self.hear(token.slot);
        self.receive_as_wanted(token.slot, ring);
    }

    /// Has the ring receive for a link, unless enough has come that is not acted on.
    fn receive_as_wanted(&mut self, slot: u32, ring: &mut Ring) {
        let is_parked = self.parked.contains(&slot);
        let link = self.link_mut(slot);
        let is_behind = link.is_heard && UNHEARD_BYTES_MAX <= link.unheard_bytes();
        let wanted = link.end.is_none() && !is_parked && !is_behind;
        link.socket.receive(ring, wanted);
    }

    // ---- what has come --------------------------------------------------------------------------

    /// Tells the next thing that has come.
    pub(crate) fn next_event<R>(
        &mut self,
        now: Now,
        ring: &mut Ring,
        tell: impl FnOnce(Event<'_>) -> R,
    ) -> Option<R> {
        loop {
            self.obey();
            if let Some(news) = self.news.pop_front() {
                return Some(tell(news));
            }
            if let Some(come) = self.outside.next() {
                self.on_come(now, come, ring);
                continue;
            }
            self.unpark();
            let slot = self.heard.pop_front()?;
            let link = self.slots[slot as usize].link.as_mut().expect("what was heard is open");
            link.is_heard = false;
            let heard = match &mut link.role {
                Role::Election { link, stream, .. } => match stream.next() {
                    Ok(None) => Heard::Nothing,
                    Ok(Some(ElectionPiece::Hello(hello))) => Heard::Hello(*link, hello),
                    Ok(Some(ElectionPiece::Frame(frame))) => {
                        match (self.election.server_of(*link), notification(frame)) {
                            (Some(from), Some(notification)) => {
                                self.hear(slot);
                                return Some(tell(Event::Notified { from, notification }));
                            }
                            _ => Heard::More,
                        }
                    }
                    Err(error) => Heard::Garbage(error.to_string()),
                },
                Role::Quorum { link, stream, from: Other::Leader { snapshot } } => {
                    let link = *link;
                    match snapshot {
                        Incoming::Announced => Heard::Wait,
                        Incoming::Coming(inlet) if inlet.is_full() => Heard::Wait,
                        _ if self.is_held && is_to_log(stream) => Heard::Wait,
                        _ => match stream.next() {
                            Ok(None) => Heard::Nothing,
                            Ok(Some(PacketPiece::Packet(packet))) => {
                                match FromLeader::read(&packet) {
                                    Ok(packet) => {
                                        if let FromLeader::Snap { .. } = packet {
                                            *snapshot = Incoming::Announced;
                                        }
                                        let told = tell(Event::FromLeader { link, packet });
                                        self.hear(slot);
                                        return Some(told);
                                    }
                                    Err(error) => Heard::of(&error),
                                }
                            }
                            Ok(Some(PacketPiece::Snapshot(bytes))) => {
                                let Incoming::Coming(inlet) = snapshot else {
                                    unreachable!("a body is waited for with a way for it");
                                };
                                inlet.put(bytes);
                                let bytes = bytes.len();
                                self.hear(slot);
                                return Some(tell(Event::SnapshotCame { link, bytes }));
                            }
                            Ok(Some(PacketPiece::SnapshotEnd)) => {
                                if let Incoming::Coming(inlet) =
                                    std::mem::replace(snapshot, Incoming::None)
                                {
                                    inlet.end();
                                }
                                self.hear(slot);
                                return Some(tell(Event::SnapshotEnded { link }));
                            }
                            Err(error) => Heard::Garbage(error.to_string()),
                        },
                    }
                }
                Role::Quorum { stream, .. } if self.is_held && is_to_log(stream) => Heard::Wait,
                Role::Quorum { link, stream, from } => {
                    let link = *link;
                    let first = match from {
                        Other::Learner { first } => first.take(),
                        Other::Newcomer | Other::Leader { .. } => None,
                    };
                    let packet = match &first {
                        Some(bytes) => {
                            let mut reader = Reader::new(bytes);
                            Ok(Some(QuorumPacket::read(&mut reader).expect("read once already")))
                        }
                        None => stream.next().map(|piece| match piece {
                            Some(PacketPiece::Packet(packet)) => Some(packet),
                            Some(PacketPiece::Snapshot(_) | PacketPiece::SnapshotEnd) => {
                                unreachable!("only a leader sends a snapshot")
                            }
                            None => None,
                        }),
                    };
                    match packet {
                        Ok(None) => Heard::Nothing,
                        Ok(Some(packet)) => match (FromLearner::read(&packet), &mut *from) {
                            (Ok(info), Other::Newcomer) if is_info(&info) => {
                                let mut bytes = Vec::new();
                                packet.write(&mut bytes);
                                *from = Other::Learner { first: Some(bytes) };
                                self.hear(slot);
                                return Some(tell(Event::LearnerConnected { link }));
                            }
                            (_, Other::Newcomer) => {
                                Heard::Garbage(format!("{packet} as the first packet"))
                            }
                            (Ok(packet), _) => {
                                let told = tell(Event::FromLearner { link, packet });
                                if let FromLearner::AckEpoch { .. } = packet {
                                    stream.set_field_bytes_max(self.options.field_bytes_max);
                                }
                                self.hear(slot);
                                return Some(told);
                            }
                            (Err(error), _) => Heard::of(&error),
                        },
                        Err(error) => Heard::Garbage(error.to_string()),
                    }
                }
            };
            self.on_heard(now, slot, heard, ring);
        }
    }

    fn on_heard(&mut self, now: Now, slot: u32, heard: Heard, ring: &mut Ring) {
        match heard {
            Heard::More => self.hear(slot),
            Heard::Wait => {
                self.parked.push(slot);
                self.receive_as_wanted(slot, ring);
            }
            Heard::Garbage(what) => self.cut_off(now, slot, &what),
            Heard::Nothing => match self.link_mut(slot).end.take() {
                Some(end) => self.lose(slot, &end),
                None => self.receive_as_wanted(slot, ring),
            },
            Heard::Hello(link, hello) => {
                self.hear(slot);
                self.on_hello(slot, link, &hello);
            }
        }
    }

    fn on_hello(&mut self, slot: u32, link: election_links::ElectionLinkId, hello: &Hello) {
        let server = hello.server;
        let is_known = self.ensemble.members.contains_key(&server);
        let Role::Election { stream, .. } = &mut self.link_mut(slot).role else {
            unreachable!("a hello comes over the election port");
        };
        if !is_known {
            stream.set_frame_bytes_max(STRANGER_FRAME_BYTES_MAX);
            let named = hello
                .reachable()
                .map(|ElectionAddress { host, port }| Place { host: host.clone(), port: *port });
            self.named.insert(server, named.collect());
            if NAMED_MAX < self.named.len() {
                self.named.pop_last();
            }
        }
        self.election.on_hello(link, server, is_known, &mut self.asks);
    }

    /// Looks again at those that wait for whoever reads a snapshot.
    fn unpark(&mut self) {
        let mut at = 0;
        while at < self.parked.len() {
            let slot = self.parked[at];
            if self.can_go_on(slot) {
                self.parked.swap_remove(at);
                self.hear(slot);
            } else {
                at += 1;
            }
        }
    }

    /// Whether what a parked link waits for has come.
    fn can_go_on(&self, slot: u32) -> bool {
        let link = self.slots[slot as usize].link.as_ref().expect("one that waits is open");
        match &link.role {
            Role::Quorum { from: Other::Leader { snapshot: Incoming::Coming(inlet) }, .. } => {
                !inlet.is_full()
            }
            Role::Quorum { from: Other::Leader { snapshot: Incoming::Announced }, .. } => false,
            Role::Quorum { .. } => !self.is_held,
            Role::Election { .. } => unreachable!("no vote waits"),
        }
    }

    fn on_come(&mut self, now: Now, come: Come, ring: &mut Ring) {
        match come {
            Come::Accepted { port: Port::Election, socket, remote } => {
                let link = self.election.on_accepted(now, &mut self.asks);
                let stream = ElectionStream::accepted();
                self.adopt_election(link, stream, socket, remote, ring);
            }
            Come::Accepted { port: Port::Quorum, socket, remote } => {
                let (_, token) = self.adopt_quorum(Other::Newcomer, socket, remote, ring);
                let deadline = Deadline(now.monotonic_ms + self.options.hello_ms_max);
                self.newcomers.push_back((deadline, token));
                if NEWCOMERS_MAX < self.newcomers.len() {
                    self.bound_newcomers(now);
                }
            }
            Come::Called { caller: Caller::Election(link), result } => {
                self.on_election_called(link, result, ring);
            }
            Come::Called { caller: Caller::Leader(call), result } => {
                let Some((_, server)) = self.calling.take_if(|(last, _)| *last == call) else {
                    return;
                };
                let reached = result.and_then(|socket| {
                    let remote = socket.peer_addr().map_err(|_| CallFailure::Unreachable)?;
                    let from = Other::Leader { snapshot: Incoming::None };
                    Ok(self.adopt_quorum(from, socket, remote, ring).0)
                });
                self.news.push_back(match reached {
                    Ok(link) => Event::LeaderReached { link, server },
                    Err(CallFailure::Silent) => Event::LeaderSilent { server },
                    Err(_) => Event::LeaderRefused { server },
                });
            }
            Come::CannotListen { place: Place { host, port }, error } => {
                self.news.push_back(Event::CannotListen { host, port, error });
            }
        }
    }

    fn on_election_called(
        &mut self,
        link: election_links::ElectionLinkId,
        result: Result<TcpStream, CallFailure>,
        ring: &mut Ring,
    ) {
        let said = result.and_then(|mut socket| {
            let remote = socket.peer_addr().map_err(|_| CallFailure::Unreachable)?;
            // In one piece, and there is room for it: nothing was sent before.
            io::Write::write_all(&mut socket, &self.hello())
                .map_err(|_| CallFailure::Unreachable)?;
            Ok((socket, remote))
        });
        match said {
            Ok((socket, remote)) => {
                self.adopt_election(link, ElectionStream::opened(), socket, remote, ring);
                match self.election.on_connected(link, &mut self.asks) {
                    Some(server) => self.news.push_back(Event::ElectionReached { server }),
                    None => self.close_election(link),
                }
            }
            Err(failure) => {
                if let Some(server) = self.election.on_call_failed(link)
                    && failure == CallFailure::Refused
                {
                    self.news.push_back(Event::ElectionRefused { server });
                }
            }
        }
    }

    fn hello(&self) -> Vec<u8> {
        let own = self.ensemble.members.get(&self.me).map_or(&[][..], |own| &own.addresses);
        let named = own.iter().map(|address| ElectionAddress {
            host: address.host.clone(),
            port: address.election_port,
        });
        let mut addresses: Vec<ElectionAddress> = named.collect();
        let form = match (self.options.multi_address, addresses.is_empty()) {
            (_, true) => HelloForm::ServerOnly,
            (true, false) => HelloForm::SeveralAddresses,
            (false, false) => HelloForm::OneAddress,
        };
        if form == HelloForm::OneAddress {
            addresses.truncate(1);
        }
        let mut bytes = Vec::new();
        let hello = Hello { form, server: self.me, addresses };
        if hello.write(&mut bytes).is_err() {
            warn!("the addresses of this server are too long to be told");
            let hello = Hello { form: HelloForm::ServerOnly, addresses: Vec::new(), ..hello };
            hello.write(&mut bytes).expect("there is no text in it");
        }
        bytes
    }

    /// Does what `election` asks for.
    fn obey(&mut self) {
        for ask in std::mem::take(&mut self.asks) {
            match ask {
                Ask::Call { link, server } => {
                    let configured = self.configured(server, Port::Election);
                    let places = match self.named.get(&server) {
                        Some(named) if configured.is_empty() => named.clone(),
                        _ => configured,
                    };
                    let timeout = self.options.election_call;
                    self.outside.call(Caller::Election(link), places, timeout);
                }
                Ask::Tell { link, server: _ } => self.tells.push(link),
                Ask::Close { link } => self.close_election(link),
            }
        }
    }

    fn close_election(&mut self, link: election_links::ElectionLinkId) {
        if let Some(&slot) = self.by_election.get(&link) {
            self.take_out(slot);
        }
    }

    /// Where the configuration says that a server is.
    fn configured(&self, server: ServerId, port: Port) -> Vec<Place> {
        let member = self.ensemble.members.get(&server);
        let addresses = member.into_iter().flat_map(|member| &member.addresses);
        addresses.map(|address| place_of(address, port)).collect()
    }

    // ---- sending --------------------------------------------------------------------------------

    /// Sends what waits, some of it for each link. `newest` is what is told now.
    pub(crate) fn flush(
        &mut self,
        ring: &mut Ring,
        newest: impl FnOnce() -> election::Notification,
    ) {
        self.let_go(ring);
        self.obey();
        if !self.tells.is_empty() {
            let frame = self.frame(newest());
            for link in std::mem::take(&mut self.tells) {
                let Some(&slot) = self.by_election.get(&link) else { continue };
                let own = self.link_mut(slot);
                if let Role::Election { is_telling, .. } = &mut own.role {
                    *is_telling = true;
                }
                own.socket.push(Arc::clone(&frame));
                self.want_to_send(slot);
            }
        }
        let mut at = 0;
        while at < self.bodies.len() {
            let slot = self.bodies[at];
            if self.can_send(slot) {
                self.bodies.swap_remove(at);
                self.want_to_send(slot);
            } else {
                at += 1;
            }
        }
        for _ in 0..self.to_send.len() {
            let Some(slot) = self.to_send.pop_front() else { break };
            self.send_some(slot, ring);
        }
        self.obey();
    }

    fn send_some(&mut self, slot: u32, ring: &mut Ring) {
        let link = self.link_mut(slot);
        link.is_to_send = false;
        if let Err(end) = link.socket.send(ring) {
            return self.lose(slot, &end);
        }
        if let Role::Quorum { link: id, .. } = link.role {
            let BodyNews { has_moved, has_ended } = link.socket.take_body_news();
            self.news.extend(has_moved.then_some(Event::BodyMoved { link: id }));
            self.news.extend(has_ended.then_some(Event::BodySent { link: id }));
        }
        let link = self.link_mut(slot);
        if link.socket.is_all_sent()
            && let Role::Election { link, is_telling: is_telling @ true, .. } = &mut link.role
        {
            *is_telling = false;
            let link = *link;
            self.election.on_sent(link, &mut self.asks);
        }
        self.want_to_send(slot);
    }

    fn frame(&self, newest: election::Notification) -> Arc<[u8]> {
        let election::Notification { state, vote } = newest;
        let text = self.ensemble.to_string();
        let mut said = Notification {
            state: match state {
                PeerState::Looking => ServerState::Looking,
                PeerState::Following => ServerState::Following,
                PeerState::Leading => ServerState::Leading,
                PeerState::Observing => ServerState::Observing,
            },
            leader: vote.leader,
            zxid: vote.zxid,
            election_epoch: vote.round.0,
            peer_epoch: vote.peer_epoch,
            version: NOTIFICATION_VERSION,
            config: Some(text.as_bytes()),
        };
        let mut bytes = Vec::new();
        if said.write_frame(&mut bytes).is_err() {
            warn!(
                bytes = text.len(),
                bytes_max = FRAME_BYTES_MAX,
                "the ensemble is too long to tell"
            );
            said.config = None;
            said.write_frame(&mut bytes).expect("a notification without a text is short");
        }
        bytes.into()
    }

    // ---- slots ----------------------------------------------------------------------------------

    fn adopt_election(
        &mut self,
        link: election_links::ElectionLinkId,
        stream: ElectionStream,
        socket: TcpStream,
        remote: SocketAddr,
        ring: &mut Ring,
    ) {
        let role = Role::Election { link, stream, is_telling: false };
        let token = self.adopt(role, socket, remote, ring);
        self.by_election.insert(link, token.slot);
    }

    fn adopt_quorum(
        &mut self,
        from: Other,
        socket: TcpStream,
        remote: SocketAddr,
        ring: &mut Ring,
    ) -> (LinkId, Token) {
        let (sender, field_bytes_max) = match from {
            Other::Leader { .. } => (PacketSender::Leader, self.options.field_bytes_max),
            Other::Newcomer | Other::Learner { .. } => {
                (PacketSender::Learner, HANDSHAKE_FIELD_BYTES_MAX)
            }
        };
        self.next_link += 1;
        let link = LinkId(self.next_link);
        let stream = PacketStream::new(sender, field_bytes_max);
        let token = self.adopt(Role::Quorum { link, stream, from }, socket, remote, ring);
        self.by_link.insert(link, token.slot);
        (link, token)
    }

    fn adopt(
        &mut self,
        role: Role,
        socket: TcpStream,
        remote: SocketAddr,
        ring: &mut Ring,
    ) -> Token {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).expect("there are fewer slots than 2^24")
        });
        let place = &mut self.slots[slot as usize];
        let token = Token { owner: Owner::Link, slot, generation: place.generation };
        let mut socket = Socket::new(token, remote, socket);
        socket.receive(ring, true);
        place.link = Some(Link { socket, role, is_heard: false, is_to_send: false, end: None });
        token
    }

    fn link_mut(&mut self, slot: u32) -> &mut Link {
        self.slots[slot as usize].link.as_mut().expect("a slot in a list has a link")
    }

    fn is_open(&self, token: Token) -> bool {
        let slot = self.slots.get(token.slot as usize);
        slot.is_some_and(|slot| slot.generation == token.generation && slot.link.is_some())
    }

    fn is_newcomer(&self, token: Token) -> bool {
        self.is_open(token)
            && self.slots[token.slot as usize]
                .link
                .as_ref()
                .is_some_and(|link| matches!(link.role, Role::Quorum { from: Other::Newcomer, .. }))
    }

    /// Cuts off the oldest of those who have not spoken, if there are too many.
    fn bound_newcomers(&mut self, now: Now) {
        let newcomers = std::mem::take(&mut self.newcomers);
        self.newcomers =
            newcomers.into_iter().filter(|(_, token)| self.is_newcomer(*token)).collect();
        if NEWCOMERS_MAX < self.newcomers.len()
            && let Some((_, token)) = self.newcomers.pop_front()
        {
            self.cut_off(now, token.slot, &"too many connect and do not say who they are");
        }
    }

    /// There may be something to tell of a link.
    fn hear(&mut self, slot: u32) {
        if self.parked.contains(&slot) {
            return;
        }
        let link = self.link_mut(slot);
        if !std::mem::replace(&mut link.is_heard, true) {
            self.heard.push_back(slot);
        }
    }

    fn can_send(&self, slot: u32) -> bool {
        let link = self.slots[slot as usize].link.as_ref().expect("a slot in a list has a link");
        link.socket.can_send()
    }

    /// There may be something to send over a link.
    fn want_to_send(&mut self, slot: u32) {
        let link = self.link_mut(slot);
        if link.socket.awaits_body() {
            if !self.bodies.contains(&slot) {
                self.bodies.push(slot);
            }
        } else if link.socket.can_send() && !std::mem::replace(&mut link.is_to_send, true) {
            self.to_send.push_back(slot);
        }
    }

    /// A connection is of no use: what came over it cannot be, or did not come.
    fn cut_off(&mut self, now: Now, slot: u32, why: &dyn std::fmt::Display) {
        let link = self.link_mut(slot);
        let remote = link.socket.remote;
        let is_stranger = match link.role {
            Role::Election { link, .. } => self.election.server_of(link).is_none(),
            Role::Quorum { ref from, .. } => matches!(from, Other::Newcomer),
        };
        match is_stranger {
            true => self.strangers.warn(now, remote, why),
            false => warn!(%remote, "a server is cut off: {why}"),
        }
        self.end(slot);
    }

    /// A connection is over, and not by us.
    fn lose(&mut self, slot: u32, end: &End) {
        let remote = self.link_mut(slot).socket.remote;
        match end {
            End::Ended | End::Broken(_) => debug!(%remote, "a link is over: {end}"),
            End::Overflow(_) | End::BodyLost => warn!(%remote, "a link is closed: {end}"),
        }
        self.end(slot);
    }

    fn end(&mut self, slot: u32) {
        let news = match self.take_out(slot) {
            Role::Election { link, .. } => {
                let server = self.election.on_closed(link, &mut self.asks);
                server.map(|server| Event::ElectionGone { server })
            }
            // Nobody has heard of it.
            Role::Quorum { from: Other::Newcomer, .. } => None,
            Role::Quorum { link, .. } => Some(Event::LinkClosed { link }),
        };
        self.news.extend(news);
    }

    /// Takes a link out of its slot and closes it. The ring holds a socket for as long as it watches
    /// it, so dropping ours would tell the other side nothing; this does, and ends the watching too.
    fn take_out(&mut self, slot: u32) -> Role {
        let place = &mut self.slots[slot as usize];
        let Link { socket, role, is_heard, is_to_send, .. } =
            place.link.take().expect("a slot in a list has a link");
        place.generation = place.generation.wrapping_add(1);
        self.free.push(slot);
        match &role {
            Role::Election { link, .. } => self.by_election.remove(link),
            Role::Quorum { link, .. } => self.by_link.remove(link),
        };
        if is_heard {
            self.heard.retain(|other| *other != slot);
        }
        if is_to_send {
            self.to_send.retain(|other| *other != slot);
        }
        self.parked.retain(|other| *other != slot);
        self.bodies.retain(|other| *other != slot);
        socket.wire.shut();
        self.closed.push(socket);
        role
    }

    /// Closes what is over, once the ring holds what was asked of it for these. Before, their numbers
    /// might come to be those of others.
    fn let_go(&mut self, ring: &mut Ring) {
        if !self.closed.is_empty() && ring.is_handed_in() {
            self.closed.clear();
        }
    }
}

impl Link {
    /// Bytes have come.
    fn take_in(&mut self, bytes: &[u8]) {
        let bytes = self.socket.wire.open(bytes);
        match &mut self.role {
            Role::Election { stream, .. } => stream.push(bytes),
            Role::Quorum { stream, .. } => stream.push(bytes),
        }
    }

    fn unheard_bytes(&self) -> usize {
        match &self.role {
            Role::Election { stream, .. } => stream.held_bytes(),
            Role::Quorum { stream, .. } => stream.held_bytes(),
        }
    }
}

/// What was found where a link was looked at.
enum Heard {
    /// Nothing that is whole.
    Nothing,
    /// Something that says nothing. There may be more.
    More,
    /// Something for which there is no room at the moment.
    Wait,
    Hello(election_links::ElectionLinkId, Hello),
    Garbage(String),
}

impl Heard {
    /// ZooKeeper ignores a packet of a type that it does not know, and closes the connection on one
    /// that it cannot read.
    fn of(error: &PacketError) -> Heard {
        match error {
            PacketError::Unknown { .. } | PacketError::OtherSide { .. } => {
                info!(%error, "ignored");
                Heard::More
            }
            PacketError::Malformed { .. } => Heard::Garbage(error.to_string()),
        }
    }
}

/// Whether what comes next over a link is a proposal of a leader, or a request of a learner.
fn is_to_log(stream: &PacketStream) -> bool {
    use PacketKind::{Inform, InformAndActivate, Proposal, Request};
    let kind = stream.next_kind();
    kind.is_some_and(|kind| matches!(kind, Proposal | Inform | InformAndActivate | Request))
}

fn is_info(packet: &FromLearner<'_>) -> bool {
    matches!(packet, FromLearner::FollowerInfo { .. } | FromLearner::ObserverInfo { .. })
}

fn place_of(address: &PeerAddress, port: Port) -> Place {
    let number = match port {
        Port::Election => address.election_port,
        Port::Quorum => address.quorum_port,
    };
    Place { host: address.host.clone(), port: number }
}

/// What a frame of the election port says; `None` where ZooKeeper drops it.
fn notification(frame: &[u8]) -> Option<election::Notification> {
    let said = Notification::read(&mut Reader::new(frame)).ok()?;
    let state = match said.state {
        ServerState::Looking => PeerState::Looking,
        ServerState::Following => PeerState::Following,
        ServerState::Leading => PeerState::Leading,
        // One that this version does not know is no vote either, and is answered.
        ServerState::Observing | ServerState::Unknown(_) => PeerState::Observing,
    };
    let vote = Vote {
        leader: said.leader,
        zxid: said.zxid,
        peer_epoch: said.peer_epoch,
        round: Round(said.election_epoch),
    };
    Some(election::Notification { state, vote })
}

/// Lines about strangers, of whom there may be as many as they like.
#[derive(Default)]
struct Fold {
    said_ms: Option<i64>,
    unsaid: u64,
}

impl Fold {
    fn warn(&mut self, now: Now, remote: SocketAddr, why: &dyn std::fmt::Display) {
        debug!(%remote, "a stranger is cut off: {why}");
        if self.said_ms.is_some_and(|said_ms| now.monotonic_ms < said_ms + SAY_EVERY_MS) {
            self.unsaid += 1;
            return;
        }
        let others = std::mem::take(&mut self.unsaid);
        warn!(%remote, others, "a connection to a port for servers is cut off: {why}");
        self.said_ms = Some(now.monotonic_ms);
    }
}
