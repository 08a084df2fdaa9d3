//! The pure half of Zab over plain sockets, with its log in memory: all that a server of an ensemble
//! says to others, and no znodes.
//!
//! One thread owns the peer. It is told of everything by events; reading from a socket, and
//! connecting, have threads of their own.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ringkeeper::ensemble::Ensemble;
use ringkeeper::jute::Reader;
use ringkeeper::jute::record::Record as _;
use ringkeeper::record::data::AclBytes;
use ringkeeper::record::op::code;
use ringkeeper::record::proto::CreateRequest;
use ringkeeper::record::quorum::{
    ElectionAddress, ElectionPiece, ElectionStream, FromLeader, FromLearner, Hello, HelloForm,
    LearnerInfo, NOTIFICATION_VERSION, Notification, PacketPiece, PacketSender, PacketStream,
    Request, ServerState, TouchTable,
};
use ringkeeper::record::txn::{CreateKind, Txn, TxnHeader};
use ringkeeper::types::{Epoch, Now, ServerId, Zxid};
use ringkeeper::zab::election::{self, Notification as Said};
use ringkeeper::zab::election_links::{self, Ask, ElectionLinks};
use ringkeeper::zab::history::{Cache, History};
use ringkeeper::zab::leader::{Span, ToLearner, write_committed};
use ringkeeper::zab::learner::{Kind, ToLeader};
use ringkeeper::zab::peer::{self, Output, Peer};
use ringkeeper::zab::proposals::Proposal;
use ringkeeper::zab::vote::{PeerState, Round, Vote};
use ringkeeper::zab::voters::Voters;
use ringkeeper::zab::{Durable, LinkId, Settings};

const FIELD_BYTES_MAX: usize = 1 << 21;

pub(crate) const SETTINGS: Settings = Settings {
    tick_ms: 500,
    init_limit: 20,
    sync_limit: 10,
    received_bytes_max: 1 << 24,
    unsynced_bytes_max: 1 << 26,
    counters_from: 0,
    #[cfg(feature = "mutants")]
    mutant: None,
};
const CACHE: Cache = Cache { count_max: 500, bytes_max: 1 << 24 };

/// What outlives the process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) accepted: Epoch,
    pub(crate) current: Epoch,
    /// Where a snapshot ends that the log follows.
    pub(crate) snapshot: Zxid,
    pub(crate) log: Vec<Proposal>,
}

impl Disk {
    pub(crate) fn last(&self) -> Zxid {
        self.log.last().map_or(self.snapshot, |last| last.zxid)
    }
}

/// What others may see of a server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) state: Option<PeerState>,
    pub(crate) leader: i64,
    pub(crate) epoch: Option<Epoch>,
    pub(crate) committed: Zxid,
    pub(crate) disk: Disk,
    /// Operations by which learners were, or this server was, synchronized.
    pub(crate) operations: Vec<&'static str>,
    pub(crate) ended: Vec<String>,
}

enum Event {
    ElectionAccepted(TcpStream),
    QuorumAccepted(TcpStream),
    Called { link: election_links::ElectionLinkId, socket: Result<TcpStream, bool> },
    LeaderCalled(ServerId, Option<TcpStream>),
    Election { link: election_links::ElectionLinkId, bytes: Vec<u8> },
    Quorum { link: LinkId, bytes: Vec<u8> },
    Stored(Durable),
    Synced(Zxid),
    Looked(LinkId),
    Streamed(LinkId),
    Stop,
}

pub(crate) struct Server {
    events: Sender<Event>,
    seen: Arc<(Mutex<Seen>, Condvar)>,
    thread: Option<thread::JoinHandle<()>>,
    ports: [u16; 2],
}

/// What a server is started with.
pub(crate) struct Start<'a> {
    pub(crate) id: i64,
    pub(crate) ensemble: &'a Ensemble,
    pub(crate) is_observer: bool,
    pub(crate) disk: Disk,
    /// The listeners of its two ports.
    pub(crate) quorum: TcpListener,
    pub(crate) election: TcpListener,
}

impl Server {
    pub(crate) fn start(start: Start<'_>) -> Server {
        let (events, inbox) = channel();
        let seen = Arc::new((Mutex::new(Seen::default()), Condvar::new()));
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let ports = [port(&start.quorum), port(&start.election)];
        accept(start.quorum, events.clone(), Event::QuorumAccepted);
        accept(start.election, events.clone(), Event::ElectionAccepted);
        let (to_self, shared) = (events.clone(), Arc::clone(&seen));
        let ensemble = Arc::new(start.ensemble.clone());
        let (id, is_observer, disk) = (ServerId(start.id), start.is_observer, start.disk);
        let thread = thread::spawn(move || {
            Core::new(id, ensemble, is_observer, disk, to_self, shared).run(&inbox);
        });
        Server { events, seen, thread: Some(thread), ports }
    }

    /// Waits until what is seen of the server is so.
    pub(crate) fn wait(&self, what: &str, is_so: impl Fn(&Seen) -> bool) -> Seen {
        let (seen, changed) = &*self.seen;
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut seen = seen.lock().unwrap();
        while !is_so(&seen) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "never seen: {what}; last: {seen:?}");
            seen = changed.wait_timeout(seen, left).unwrap().0;
        }
        seen.clone()
    }

    /// Ends it; what it has logged is on its disk.
    pub(crate) fn stop(mut self) -> Disk {
        self.events.send(Event::Stop).unwrap();
        self.thread.take().unwrap().join().unwrap();
        // Whoever waits for a connection gets one, and finds nobody to hand it to.
        for port in self.ports {
            let _ = connect(port);
        }
        self.seen.0.lock().unwrap().disk.clone()
    }
}

fn accept(listener: TcpListener, events: Sender<Event>, event: fn(TcpStream) -> Event) {
    thread::spawn(move || {
        for socket in listener.incoming() {
            let Ok(socket) = socket else { return };
            if events.send(event(socket)).is_err() {
                return;
            }
        }
    });
}

/// Hands in what comes; nothing at all stands for the end.
fn read(
    socket: &TcpStream,
    events: Sender<Event>,
    event: impl Fn(Vec<u8>) -> Event + Send + 'static,
) {
    let mut socket = socket.try_clone().unwrap();
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = socket.read(&mut buffer).unwrap_or(0);
            if events.send(event(buffer[..count].to_vec())).is_err() || count == 0 {
                return;
            }
        }
    });
}

struct ElectionSocket {
    socket: TcpStream,
    stream: ElectionStream,
}

struct QuorumSocket {
    socket: TcpStream,
    /// Who is at the other end.
    sender: PacketSender,
    stream: PacketStream,
}

struct Core {
    me: ServerId,
    ensemble: Arc<Ensemble>,
    is_observer: bool,
    started: Instant,
    peer: Peer,
    links: ElectionLinks,
    election: BTreeMap<election_links::ElectionLinkId, ElectionSocket>,
    quorum: BTreeMap<LinkId, QuorumSocket>,
    /// Addresses that servers named in their hellos.
    addresses: BTreeMap<ServerId, ElectionAddress>,
    next_link: u64,
    /// The snapshot that is coming.
    loads: Option<Zxid>,
    /// What a start would find while a snapshot stands beside it.
    before: Option<Disk>,
    /// Children created so far: the cversion of the root.
    created: i32,
    events: Sender<Event>,
    shared: Arc<(Mutex<Seen>, Condvar)>,
    seen: Seen,
    /// Syncs that learners have asked for, by the proposal that they wait for.
    syncs: VecDeque<(Zxid, LinkId)>,
}

impl Core {
    fn new(
        me: ServerId,
        ensemble: Arc<Ensemble>,
        is_observer: bool,
        disk: Disk,
        events: Sender<Event>,
        shared: Arc<(Mutex<Seen>, Condvar)>,
    ) -> Core {
        let mut history = History::new(CACHE, disk.snapshot);
        disk.log.iter().for_each(|proposal| history.push(proposal.clone()));
        let (now, mut out) = (Now::default(), Output::default());
        let start = peer::Start {
            me,
            settings: SETTINGS,
            election: election::Settings::default(),
            voters: Arc::new(Voters::new(Arc::clone(&ensemble), None)),
            is_observer,
            accepted: disk.accepted,
            current: disk.current,
            history,
            is_vouched_for: true,
        };
        let peer = Peer::new(now, start, &mut out);
        let mut core = Core {
            me,
            ensemble,
            is_observer,
            started: Instant::now(),
            peer,
            links: ElectionLinks::new(me, 5000),
            election: BTreeMap::new(),
            quorum: BTreeMap::new(),
            addresses: BTreeMap::new(),
            next_link: 0,
            loads: None,
            before: None,
            created: 0,
            events,
            shared,
            seen: Seen { disk, ..Seen::default() },
            syncs: VecDeque::new(),
        };
        core.carry_out(out);
        core
    }

    fn now(&self) -> Now {
        let monotonic_ms = self.started.elapsed().as_millis() as i64;
        Now { monotonic_ms, wall_ms: 1_700_000_000_000 + monotonic_ms }
    }

    fn run(mut self, inbox: &Receiver<Event>) {
        loop {
            let now = self.now();
            let deadlines = self.peer.deadline().into_iter().chain(self.links.deadline());
            let wait_ms = deadlines.map(|end| end.0 - now.monotonic_ms).min().unwrap_or(1000);
            let wait = Duration::from_millis(wait_ms.clamp(0, 1000) as u64);
            let (mut out, mut asks) = (Output::default(), Vec::new());
            match inbox.recv_timeout(wait) {
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(event) => self.on_event(event, &mut out, &mut asks),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = self.now();
            self.carry_out(out);
            self.ask(asks);
            let (mut out, mut asks) = (Output::default(), Vec::new());
            self.peer.on_time(now, &mut out);
            self.links.on_time(now, &mut asks);
            self.carry_out(out);
            self.ask(asks);
            *self.shared.0.lock().unwrap() = self.seen.clone();
            self.shared.1.notify_all();
        }
        if let Some(before) = self.before.take() {
            self.seen.disk = before;
            *self.shared.0.lock().unwrap() = self.seen.clone();
        }
        for socket in self.election.values().map(|link| &link.socket) {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
        for socket in self.quorum.values().map(|link| &link.socket) {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }

    fn on_event(&mut self, event: Event, out: &mut Output, asks: &mut Vec<Ask>) {
        let now = self.now();
        match event {
            Event::ElectionAccepted(socket) => {
                let link = self.links.on_accepted(now, asks);
                self.add_election(link, socket, ElectionStream::accepted());
            }
            Event::QuorumAccepted(socket) => {
                let link = self.add_quorum(socket, PacketSender::Learner);
                self.peer.on_learner_connected(now, link, out);
            }
            Event::Called { link, socket: Ok(mut socket) } => {
                let mut hello = Vec::new();
                let own = &self.ensemble.members[&self.me].addresses[0];
                let address = ElectionAddress { host: own.host.clone(), port: own.election_port };
                let form = HelloForm::OneAddress;
                let said = Hello { form, server: self.me, addresses: vec![address] };
                said.write(&mut hello).unwrap();
                let _ = socket.write_all(&hello);
                self.add_election(link, socket, ElectionStream::opened());
                if let Some(server) = self.links.on_connected(link, asks) {
                    self.peer.on_election_port(now, server, false, out);
                }
            }
            Event::Called { link, socket: Err(is_refused) } => {
                if let Some(server) = self.links.on_call_failed(link)
                    && is_refused
                {
                    self.peer.on_election_port(now, server, true, out);
                }
            }
            Event::LeaderCalled(leader, Some(socket)) => {
                let link = self.add_quorum(socket, PacketSender::Leader);
                self.peer.on_leader_reached(now, leader, link, out);
            }
            Event::LeaderCalled(leader, None) => self.peer.on_leader_refused(now, leader, out),
            Event::Election { link, bytes } => self.on_election_bytes(link, &bytes, out, asks),
            Event::Quorum { link, bytes } => self.on_quorum_bytes(link, &bytes, out),
            Event::Stored(stored) => self.peer.on_stored(now, stored, out),
            Event::Synced(zxid) => self.peer.on_synced(now, zxid, out),
            Event::Looked(link) => self.peer.on_looked(now, link, true, out),
            Event::Streamed(link) => self.peer.on_streamed(now, link, out),
            Event::Stop => unreachable!("it ends the loop"),
        }
    }

    fn add_election(
        &mut self,
        link: election_links::ElectionLinkId,
        socket: TcpStream,
        stream: ElectionStream,
    ) {
        socket.set_nodelay(true).unwrap();
        read(&socket, self.events.clone(), move |bytes| Event::Election { link, bytes });
        self.election.insert(link, ElectionSocket { socket, stream });
    }

    fn add_quorum(&mut self, socket: TcpStream, sender: PacketSender) -> LinkId {
        socket.set_nodelay(true).unwrap();
        self.next_link += 1;
        let link = LinkId(self.next_link);
        read(&socket, self.events.clone(), move |bytes| Event::Quorum { link, bytes });
        let stream = PacketStream::new(sender, FIELD_BYTES_MAX);
        self.quorum.insert(link, QuorumSocket { socket, sender, stream });
        link
    }

    fn on_election_bytes(
        &mut self,
        link: election_links::ElectionLinkId,
        bytes: &[u8],
        out: &mut Output,
        asks: &mut Vec<Ask>,
    ) {
        let now = self.now();
        let Some(mut own) = self.election.remove(&link) else { return };
        if bytes.is_empty() {
            if let Some(server) = self.links.on_closed(link, asks) {
                self.peer.on_election_link_closed(server);
            }
            return;
        }
        own.stream.push(bytes);
        loop {
            match own.stream.next() {
                Ok(None) => break,
                Ok(Some(ElectionPiece::Hello(hello))) => {
                    if let Some(address) = hello.reachable().next() {
                        self.addresses.insert(hello.server, address.clone());
                    }
                    let is_known = self.ensemble.members.contains_key(&hello.server);
                    self.links.on_hello(link, hello.server, is_known, asks);
                }
                Ok(Some(ElectionPiece::Frame(frame))) => {
                    let Some(from) = self.links.server_of(link) else { continue };
                    let Ok(said) = Notification::read(&mut Reader::new(frame)) else { continue };
                    let state = match said.state {
                        ServerState::Looking => PeerState::Looking,
                        ServerState::Following => PeerState::Following,
                        ServerState::Leading => PeerState::Leading,
                        ServerState::Observing => PeerState::Observing,
                        ServerState::Unknown(_) => continue,
                    };
                    let vote = Vote {
                        leader: said.leader,
                        zxid: said.zxid,
                        peer_epoch: said.peer_epoch,
                        round: Round(said.election_epoch),
                    };
                    self.peer.on_notification(now, from, Said { state, vote }, out);
                }
                Err(error) => panic!("election port: {error}"),
            }
        }
        self.election.insert(link, own);
    }

    fn on_quorum_bytes(&mut self, link: LinkId, bytes: &[u8], out: &mut Output) {
        let now = self.now();
        let Some(mut own) = self.quorum.remove(&link) else { return };
        if bytes.is_empty() {
            self.peer.on_link_closed(now, link, out);
            return;
        }
        // A learner may be early: it is there before this server leads.
        let is_leader = matches!(own.sender, PacketSender::Leader);
        own.stream.push(bytes);
        // A packet may close this very link.
        while let Some(piece) = own.stream.next().unwrap_or_else(|error| panic!("{error}")) {
            match piece {
                PacketPiece::Snapshot(_) => {}
                PacketPiece::SnapshotEnd => {
                    let zxid = self.loads.take().expect("a snapshot was announced");
                    self.before = Some(self.seen.disk.clone());
                    self.seen.disk.snapshot = zxid;
                    self.seen.disk.log.clear();
                    self.peer.on_stored(now, Durable::Snapshot(zxid), out);
                }
                PacketPiece::Packet(packet) if is_leader => {
                    let packet = FromLeader::read(&packet).unwrap();
                    match packet {
                        FromLeader::Diff { .. } => self.seen.operations.push("DIFF"),
                        FromLeader::Trunc { .. } => self.seen.operations.push("TRUNC"),
                        FromLeader::Snap { .. } => self.seen.operations.push("SNAP"),
                        _ => {}
                    }
                    self.peer.on_packet_of_leader(now, link, packet, out);
                    self.loads = out.load.or(self.loads);
                }
                PacketPiece::Packet(packet) => {
                    let packet = FromLearner::read(&packet).unwrap();
                    self.peer.on_packet_of_learner(now, link, packet, out);
                    match packet {
                        FromLearner::Request(request) => {
                            self.on_request(&mut own.socket, link, request, out);
                        }
                        FromLearner::Revalidate { zxid, session, .. } => {
                            let mut answer = Vec::new();
                            FromLeader::Revalidate { zxid, session, valid: true }
                                .write(&mut answer);
                            let _ = own.socket.write_all(&answer);
                        }
                        _ => {}
                    }
                }
            }
        }
        self.quorum.insert(link, own);
    }

    /// Makes a transaction of what a learner's client asks for: sessions and creates are made, and
    /// all else is an error.
    fn on_request(
        &mut self,
        socket: &mut TcpStream,
        link: LinkId,
        request: Request<'_>,
        out: &mut Output,
    ) {
        let now = self.now();
        if request.op == code::SYNC {
            let upto = self.seen.disk.last();
            if upto <= self.seen.committed {
                let mut answer = Vec::new();
                FromLeader::Sync.write(&mut answer);
                let _ = socket.write_all(&answer);
            } else {
                self.syncs.push_back((upto, link));
            }
            return;
        }
        let Some(zxid) = self.peer.next_zxid(now, out) else { return };
        let mut body = Reader::new(request.body);
        let txn = match request.op {
            code::CREATE_SESSION => {
                Txn::CreateSession { timeout_ms: body.i32().expect("a timeout") }
            }
            code::CLOSE_SESSION => Txn::CloseSession { paths: Some(Vec::new()) },
            code::CREATE => {
                let create = CreateRequest::read(&mut body).expect("a create");
                self.created += 1;
                let ephemeral = create.flags == 1;
                Txn::Create {
                    kind: CreateKind::Node { create2: false, ephemeral },
                    path: create.path.expect("a path").to_string().into(),
                    data: create.data,
                    acl: AclBytes::OPEN,
                    parent_cversion: self.created,
                }
            }
            _ => Txn::Error { err: -6 },
        };
        let header = TxnHeader {
            client_id: request.session.0,
            cxid: request.cxid,
            zxid: zxid.0,
            time: now.wall_ms,
            kind: txn.kind(),
        };
        let mut payload = Vec::new();
        header.write(&mut payload);
        txn.write(&mut payload);
        self.peer.propose(now, Proposal { zxid, payload: payload.into() }, out);
    }

    /// Goes back to what a start would find.
    fn drop_snapshot(&mut self) {
        self.loads = None;
        self.seen.disk = self.before.take().unwrap_or_else(|| self.seen.disk.clone());
        let (history, mut out) = (History::new(CACHE, self.seen.disk.last()), Output::default());
        self.peer.on_snapshot_lost(self.now(), history, &mut out);
        self.carry_out(out);
    }

    fn carry_out(&mut self, out: Output) {
        let mut asks = Vec::new();
        for server in &out.tell {
            self.links.tell(*server, &mut asks);
        }
        self.ask(asks);
        if let Some(server) = out.call {
            let address = &self.ensemble.members[&server].addresses[0];
            let (port, events) = (address.quorum_port, self.events.clone());
            thread::spawn(move || {
                let _ = events.send(Event::LeaderCalled(server, connect(port).ok()));
            });
        }
        for proposal in out.appends {
            let zxid = proposal.zxid;
            self.seen.disk.log.push(proposal);
            self.events.send(Event::Synced(zxid)).unwrap();
        }
        for store in out.stores {
            match store {
                Durable::AcceptedEpoch(epoch) => self.seen.disk.accepted = epoch,
                Durable::CurrentEpoch(epoch) => {
                    self.seen.disk.current = epoch;
                    self.before = None;
                }
                Durable::Truncated(zxid) => {
                    let disk = &mut self.seen.disk;
                    let has_it = disk.log.iter().any(|proposal| proposal.zxid == zxid);
                    if zxid != disk.snapshot && !has_it {
                        let mut out = Output::default();
                        self.peer.on_truncate_refused(self.now(), zxid, &mut out);
                        self.carry_out(out);
                        continue;
                    }
                    disk.log.retain(|proposal| proposal.zxid <= zxid);
                }
                Durable::Snapshot(_) => unreachable!("it comes over the link"),
            }
            self.events.send(Event::Stored(store)).unwrap();
        }
        for (link, packet) in out.to_leader {
            let mut bytes = Vec::new();
            self.write_to_leader(packet, &mut bytes);
            self.write(link, &bytes);
        }
        for (link, span) in out.looks {
            self.seen.operations.push("log asked for");
            assert!(self.seen.disk.snapshot <= span.after, "the log has all after its snapshot");
            self.events.send(Event::Looked(link)).unwrap();
        }
        for (link, packet) in out.to_learners {
            let mut bytes = Vec::new();
            self.write_to_learner(&packet, &mut bytes);
            self.write(link, &bytes);
            if let ToLearner::Logged(_) = packet {
                self.events.send(Event::Streamed(link)).unwrap();
            }
        }
        for link in out.closes {
            if let Some(own) = self.quorum.remove(&link) {
                let _ = own.socket.shutdown(std::net::Shutdown::Both);
            }
        }
        if out.drop_snapshot {
            self.drop_snapshot();
        }
        if let Some(ended) = out.ended {
            self.seen.ended.push(ended.to_string());
            self.seen.epoch = None;
        }
        if let Some(state) = out.state {
            self.seen.state = Some(state);
            self.seen.leader = self.peer.notification().vote.leader.0;
        }
        self.seen.committed = out.committed.unwrap_or(self.seen.committed);
        self.seen.epoch = out.established.or(self.seen.epoch);
        while let Some((_, link)) =
            self.syncs.pop_front_if(|(zxid, _)| *zxid <= self.seen.committed)
        {
            let mut bytes = Vec::new();
            FromLeader::Sync.write(&mut bytes);
            self.write(link, &bytes);
        }
    }

    fn write(&mut self, link: LinkId, bytes: &[u8]) {
        if let Some(own) = self.quorum.get_mut(&link) {
            let _ = own.socket.write_all(bytes);
        }
    }

    fn write_to_leader(&self, packet: ToLeader, bytes: &mut Vec<u8>) {
        let info = LearnerInfo::new(self.me, self.ensemble.version);
        packet.packet(Kind::of(self.is_observer), info, TouchTable::EMPTY).write(bytes);
    }

    fn write_to_learner(&mut self, packet: &ToLearner, bytes: &mut Vec<u8>) {
        match packet {
            ToLearner::Diff { .. } => self.seen.operations.push("DIFF sent"),
            ToLearner::Trunc { .. } => self.seen.operations.push("TRUNC sent"),
            ToLearner::Snap { .. } => panic!("there is no state here to send"),
            ToLearner::Logged(Span { after, through }) => {
                let log = self.seen.disk.log.iter();
                for proposal in log.filter(|p| *after < p.zxid && p.zxid <= *through) {
                    write_committed(proposal.zxid, &proposal.payload, bytes);
                }
                return;
            }
            _ => {}
        }
        packet.packet(Some(self.ensemble.to_string().as_bytes())).unwrap().write(bytes);
    }

    fn ask(&mut self, asks: Vec<Ask>) {
        for ask in asks {
            match ask {
                Ask::Call { link, server } => {
                    let configured =
                        self.ensemble.members.get(&server).map(|m| m.addresses[0].election_port);
                    let named = self.addresses.get(&server).map(|address| address.port);
                    let Some(port) = named.or(configured) else { continue };
                    let events = self.events.clone();
                    thread::spawn(move || {
                        let socket = connect(port)
                            .map_err(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
                        let _ = events.send(Event::Called { link, socket });
                    });
                }
                Ask::Tell { link, .. } => {
                    let Said { state, vote } = self.peer.notification();
                    let state = match state {
                        PeerState::Looking => ServerState::Looking,
                        PeerState::Following => ServerState::Following,
                        PeerState::Leading => ServerState::Leading,
                        PeerState::Observing => ServerState::Observing,
                    };
                    let config = self.ensemble.to_string();
                    let said = Notification {
                        state,
                        leader: vote.leader,
                        zxid: vote.zxid,
                        election_epoch: vote.round.0,
                        peer_epoch: vote.peer_epoch,
                        version: NOTIFICATION_VERSION,
                        config: Some(config.as_bytes()),
                    };
                    let mut bytes = Vec::new();
                    said.write_frame(&mut bytes).unwrap();
                    if let Some(own) = self.election.get_mut(&link) {
                        let _ = own.socket.write_all(&bytes);
                    }
                    let mut more = Vec::new();
                    self.links.on_sent(link, &mut more);
                    self.ask(more);
                }
                Ask::Close { link } => {
                    if let Some(own) = self.election.remove(&link) {
                        let _ = own.socket.shutdown(std::net::Shutdown::Both);
                    }
                }
            }
        }
    }
}

fn connect(port: u16) -> std::io::Result<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, Duration::from_secs(5))
}
