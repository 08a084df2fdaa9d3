//! Links over loopback: each host a ring and links, all on one thread.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use super::snapshot::{SnapshotOutlet, snapshot_pipe};
use super::*;
use crate::config::Endpoint;
use crate::jute::Write as _;
use crate::record::quorum::{AuthInfo, LearnerInfo, Request};
use crate::record::txn::TxnHeader;
use crate::shell::accept;
use crate::shell::clock::Clock;
use crate::types::{Epoch, SessionId, Zxid};
use crate::zab::leader::write_committed;
use crate::zab::vote::NOBODY;

#[path = "../../../tests/support/ports.rs"]
mod ports;

pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// What a host has seen, with nothing borrowed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Notified(i64, PeerState),
    ElectionReached(i64),
    ElectionRefused(i64),
    ElectionGone(i64),
    LearnerConnected(LinkId),
    LeaderReached(LinkId, i64),
    LeaderRefused(i64),
    LeaderSilent(i64),
    LinkClosed(LinkId),
    FromLearner(LinkId, String),
    FromLeader(LinkId, String),
    SnapshotEnded(LinkId),
    BodySent(LinkId),
    CannotListen(u16),
}

pub(super) struct Host {
    pub(super) ring: Ring,
    pub(super) links: Links,
    pub(super) bell: Arc<CachePadded<Bell>>,
    clock: Clock,
    /// How far the host's time is ahead.
    ahead_ms: i64,
    seen: Vec<Seen>,
    snapshot_bytes: usize,
    newest: election::Notification,
}

pub(super) fn options() -> LinkOptions {
    LinkOptions {
        listen_on_all: false,
        bind_tries: Some(50),
        election_call: Duration::from_secs(5),
        leader_call: Duration::from_secs(5),
        hello_ms_max: 60_000,
        keep_alive: true,
        multi_address: true,
        field_bytes_max: 1 << 20,
        queue_bytes_max: 8 << 20,
    }
}

impl Host {
    fn start(id: i64, ensemble: &Arc<Ensemble>, ring: Ring) -> Host {
        Host::with(id, ensemble, ring, options())
    }

    pub(super) fn with(
        id: i64,
        ensemble: &Arc<Ensemble>,
        ring: Ring,
        options: LinkOptions,
    ) -> Host {
        let bell: Arc<CachePadded<Bell>> = Arc::default();
        let links = Links::start(LinksParts {
            me: ServerId(id),
            ensemble: Arc::clone(ensemble),
            options,
            bell: Arc::clone(&bell),
            is_buffered: ring.is_buffered(),
        });
        let vote = Vote { leader: NOBODY, zxid: Zxid(7), peer_epoch: 0, round: Round(1) };
        Host {
            ring,
            links: links.unwrap(),
            bell,
            clock: Clock::start(),
            ahead_ms: 0,
            seen: Vec::new(),
            snapshot_bytes: 0,
            newest: election::Notification { state: PeerState::Looking, vote },
        }
    }

    pub(super) fn now(&self) -> Now {
        let now = self.clock.now();
        Now { monotonic_ms: now.monotonic_ms + self.ahead_ms, ..now }
    }

    /// Waits for a moment, and takes in what the ring has.
    pub(super) fn wait(&mut self) {
        let waker = Waker::from(self.ring.bell());
        let mut cx = Context::from_waker(&waker);
        let polled = self.bell.poll_work(&mut cx, || self.links.has_work());
        let wait = if polled == Poll::Pending { Duration::from_millis(1) } else { Duration::ZERO };
        self.ring.enter(Some(wait)).unwrap();
        self.bell.wake_up();
        for _ in 0..64 {
            let Some(event) = self.ring.next() else { break };
            self.links.on_event(event, &mut self.ring);
        }
        self.links.on_time(self.now());
    }

    fn turn(&mut self) {
        self.wait();
        for _ in 0..64 {
            let now = self.now();
            let mut bytes_come = 0;
            let seen = self.links.next_event(now, &mut self.ring, |event| match event {
                Event::Notified { from, notification } => {
                    Some(Seen::Notified(from.0, notification.state))
                }
                Event::ElectionReached { server } => Some(Seen::ElectionReached(server.0)),
                Event::ElectionRefused { server } => Some(Seen::ElectionRefused(server.0)),
                Event::ElectionGone { server } => Some(Seen::ElectionGone(server.0)),
                Event::LearnerConnected { link } => Some(Seen::LearnerConnected(link)),
                Event::LeaderReached { link, server } => Some(Seen::LeaderReached(link, server.0)),
                Event::LeaderRefused { server } => Some(Seen::LeaderRefused(server.0)),
                Event::LeaderSilent { server } => Some(Seen::LeaderSilent(server.0)),
                Event::LinkClosed { link } => Some(Seen::LinkClosed(link)),
                Event::FromLearner { link, packet } => Some(Seen::FromLearner(link, name(&packet))),
                Event::FromLeader { link, packet } => Some(Seen::FromLeader(link, name(&packet))),
                Event::SnapshotCame { bytes, .. } => {
                    bytes_come = bytes;
                    None
                }
                Event::SnapshotEnded { link } => Some(Seen::SnapshotEnded(link)),
                Event::BodyMoved { .. } => None,
                Event::BodySent { link } => Some(Seen::BodySent(link)),
                Event::CannotListen { port, .. } => Some(Seen::CannotListen(port)),
            });
            let Some(seen) = seen else { break };
            self.snapshot_bytes += bytes_come;
            self.seen.extend(seen);
        }
        let newest = self.newest;
        self.links.flush(&mut self.ring, || newest);
    }

    fn saw(&self, seen: &Seen) -> bool {
        self.seen.contains(seen)
    }

    fn tell(&mut self, server: i64) {
        self.links.tell(&BTreeSet::from([ServerId(server)]));
    }

    /// The link that was told of last.
    fn link(&self) -> Option<LinkId> {
        self.seen.iter().rev().find_map(|seen| match seen {
            Seen::LearnerConnected(link) | Seen::LeaderReached(link, _) => Some(*link),
            _ => None,
        })
    }

    fn send(&mut self, packet: &FromLeader<'_>) {
        let mut bytes = Vec::new();
        packet.write(&mut bytes);
        self.links.send(self.link().unwrap(), bytes.into());
    }
}

/// The name of a packet's variant.
fn name(packet: &impl std::fmt::Debug) -> String {
    format!("{packet:?}").split([' ', '(']).next().unwrap().to_owned()
}

/// Turns hosts until something is so.
fn until(hosts: &mut [Host], what: &str, mut is_so: impl FnMut(&mut [Host]) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so(hosts) {
        let seen: Vec<_> = hosts.iter().map(|host| &host.seen).collect();
        assert!(Instant::now() < deadline, "never: {what}; seen: {seen:?}");
        hosts.iter_mut().for_each(Host::turn);
    }
}

/// Servers from 1 on, each with two ports that nobody has.
pub(super) fn ensemble(count: i64) -> Arc<Ensemble> {
    let lines = (0..count).map(|_| format!("127.0.0.1:{}:{}", port(), port()));
    of_lines(&lines.collect::<Vec<_>>())
}

fn of_lines(lines: &[String]) -> Arc<Ensemble> {
    let keys: Vec<String> = (1..=lines.len()).map(|id| format!("server.{id}")).collect();
    let lines = keys.iter().map(String::as_str).zip(lines.iter().map(String::as_str));
    Arc::new(Ensemble::parse(lines, true).unwrap())
}

fn port() -> u16 {
    ports::listen().local_addr().unwrap().port()
}

fn with_each_ring(test: impl Fn(fn() -> Ring)) {
    test(|| Ring::new().unwrap());
    test(|| Ring::plain().unwrap());
}

fn addresses(ensemble: &Ensemble, id: i64) -> [(Ipv4Addr, u16); 2] {
    let address = &ensemble.members[&ServerId(id)].addresses[0];
    [address.election_port, address.quorum_port].map(|port| (Ipv4Addr::LOCALHOST, port))
}

/// Connects as soon as somebody listens.
fn connect(address: (Ipv4Addr, u16)) -> TcpStream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect(address) {
            Ok(socket) => {
                socket.set_nonblocking(true).unwrap();
                return socket;
            }
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        thread::yield_now();
    }
}

/// Whether the other side has ended a connection.
fn is_over(socket: &mut TcpStream) -> bool {
    match socket.read(&mut [0; 4096]) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}

fn info(server: i64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let info = LearnerInfo::new(ServerId(server), 0);
    FromLearner::FollowerInfo { accepted: Epoch(1), info }.write(&mut bytes);
    bytes
}

/// A leader, server 1, and a learner that is server 2, linked.
fn linked(ring: fn() -> Ring) -> [Host; 2] {
    let ensemble = ensemble(2);
    let mut hosts = [1, 2].map(|id| Host::start(id, &ensemble, ring()));
    until(&mut hosts, "a call is answered", |hosts| {
        if hosts[1].links.calling.is_none() && hosts[1].link().is_none() {
            hosts[1].links.call(ServerId(1));
        }
        hosts[1].link().is_some()
    });
    let link = hosts[1].link().unwrap();
    hosts[1].links.send(link, info(2).into());
    until(&mut hosts, "the learner is known", |hosts| hosts[0].link().is_some());
    hosts
}

#[test]
fn the_larger_server_opens_the_connection_and_both_tell_over_it() {
    with_each_ring(|ring| {
        let ensemble = ensemble(2);
        let mut hosts = [1, 2].map(|id| Host::start(id, &ensemble, ring()));
        hosts[1].newest.state = PeerState::Leading;
        until(&mut hosts, "both have heard", |hosts| {
            // A call that is refused is for the next notification to try again.
            for (host, other) in [(0, 2), (1, 1)] {
                if !hosts[host].links.is_connected(ServerId(other)) {
                    hosts[host].tell(other);
                }
            }
            hosts[0].saw(&Seen::Notified(2, PeerState::Leading))
                && hosts[1].saw(&Seen::Notified(1, PeerState::Looking))
        });
        let remote = |host: &Host| {
            let open = host.links.slots.iter().filter_map(|slot| slot.link.as_ref());
            open.map(|link| link.socket.remote.port()).collect::<Vec<_>>()
        };
        let [(_, election), _] = addresses(&ensemble, 1);
        until(&mut hosts, "one connection is left", |hosts| {
            remote(&hosts[0]).len() == 1 && remote(&hosts[1]) == [election]
        });
        assert!(hosts[1].saw(&Seen::ElectionReached(1)));

        // The newest is told again over a new connection.
        hosts[0].seen.clear();
        let [one, two] = hosts;
        two.links.stop();
        let mut hosts = vec![one];
        until(&mut hosts, "it is gone", |hosts| hosts[0].saw(&Seen::ElectionGone(2)));
        hosts[0].newest.state = PeerState::Following;
        hosts.push(Host::start(2, &ensemble, ring()));
        until(&mut hosts, "it is told again", |hosts| {
            if !hosts[1].links.is_connected(ServerId(1)) {
                hosts[1].tell(1);
            }
            hosts[1].saw(&Seen::Notified(1, PeerState::Following))
        });
    });
}

#[test]
fn packets_come_in_order_and_a_link_that_is_closed_is_said_to_be() {
    with_each_ring(|ring| {
        let mut hosts = linked(ring);
        let [leader, learner] = [0, 1].map(|host: usize| hosts[host].link().unwrap());
        let chunk: Arc<[u8]> = {
            let mut bytes = Vec::new();
            FromLeader::Commit { zxid: Zxid(1) }.write(&mut bytes);
            bytes.into()
        };
        hosts[0].send(&FromLeader::LeaderInfo { epoch: Epoch(2), protocol_version: 0x10000 });
        for _ in 0..1000 {
            hosts[0].links.send(leader, Arc::clone(&chunk));
        }
        hosts[0].send(&FromLeader::UpToDate);
        let end = Seen::FromLeader(learner, "UpToDate".to_owned());
        until(&mut hosts, "all has come", |hosts| hosts[1].saw(&end));
        let is_packet = |seen: &&Seen| matches!(seen, Seen::FromLeader(..));
        let packets: Vec<_> = hosts[1].seen.iter().filter(is_packet).collect();
        assert_eq!(packets[0], &Seen::FromLeader(learner, "LeaderInfo".to_owned()));
        let commit = Seen::FromLeader(learner, "Commit".to_owned());
        assert!(packets[1..1001].iter().all(|seen| **seen == commit));
        assert_eq!(packets[1001..], [&end]);
        let first =
            [Seen::LearnerConnected(leader), Seen::FromLearner(leader, "FollowerInfo".to_owned())];
        until(&mut hosts, "its first packet", |hosts| hosts[0].seen.ends_with(&first));

        let ring = &mut hosts[0].ring;
        hosts[0].links.close(leader, ring);
        until(&mut hosts, "the end", |hosts| hosts[1].saw(&Seen::LinkClosed(learner)));
        assert!(!hosts[0].saw(&Seen::LinkClosed(leader)), "whoever closes it knows");
        // What is for nobody is for nobody.
        hosts[0].links.send(leader, chunk);
    });
}

/// A body with so many znodes of a mebibyte.
fn write_body(count: usize, out: &mut dyn io::Write) -> io::Result<()> {
    let mut bytes = Vec::new();
    bytes.put_i32(0);
    bytes.put_i32(0);
    out.write_all(&bytes)?;
    for number in 0..count {
        let mut bytes = Vec::new();
        bytes.put_text(&format!("/{number}"));
        bytes.put_buffer(Some(&vec![number as u8; 1 << 20]));
        bytes.extend([0; 68]);
        out.write_all(&bytes)?;
    }
    let mut bytes = Vec::new();
    bytes.put_text("/");
    out.write_all(&bytes)
}

const BODY_MIB: usize = 50;

/// Reads a snapshot on a thread that begins once it is told to.
fn reader(mut outlet: SnapshotOutlet) -> (thread::JoinHandle<io::Result<Vec<u8>>>, impl FnOnce()) {
    let (go, told) = std::sync::mpsc::channel();
    let thread = thread::spawn(move || {
        told.recv().unwrap();
        let mut all = Vec::new();
        outlet.read_to_end(&mut all)?;
        Ok(all)
    });
    (thread, move || go.send(()).unwrap())
}

#[test]
fn a_snapshot_goes_by_both_cores_in_pieces_and_what_follows_it_stays_behind() {
    with_each_ring(|ring| {
        let mut hosts = linked(ring);
        let [leader, learner] = [0, 1].map(|host: usize| hosts[host].link().unwrap());
        hosts[0].send(&FromLeader::Snap { zxid: Zxid(9) });
        hosts[0].links.send_snapshot(leader, Box::new(|out| write_body(BODY_MIB, out)));
        hosts[0].send(&FromLeader::UpToDate);
        let snap = Seen::FromLeader(learner, "Snap".to_owned());
        until(&mut hosts, "SNAP", |hosts| hosts[1].saw(&snap));
        let (inlet, outlet) = snapshot_pipe(1 << 20, Arc::clone(&hosts[1].bell));
        let (reader, go) = reader(outlet);
        hosts[1].links.receive_snapshot(learner, inlet);
        until(&mut hosts, "the pipe is full", |hosts| !hosts[1].links.parked.is_empty());
        // Until somebody reads it, no more comes than there is room for.
        for _ in 0..200 {
            hosts.iter_mut().for_each(Host::turn);
        }
        let slot = hosts[1].links.by_link[&learner];
        let held = hosts[1].links.link_mut(slot).unheard_bytes();
        assert!(hosts[1].snapshot_bytes < 4 << 20 && held < 4 << 20, "{held}");
        let slot = hosts[0].links.by_link[&leader];
        assert!(hosts[0].links.link_mut(slot).socket.queued_bytes() < 1 << 20);
        assert!(!hosts[0].saw(&Seen::BodySent(leader)), "the rest is not on its way");

        go();
        let ended = Seen::SnapshotEnded(learner);
        until(&mut hosts, "its end", |hosts| hosts[1].saw(&ended));
        let found = reader.join().unwrap().unwrap();
        let mut expected = Vec::new();
        write_body(BODY_MIB, &mut expected).unwrap();
        assert!(found == expected, "{} {}", found.len(), expected.len());
        assert_eq!(hosts[1].snapshot_bytes, expected.len());
        let next = Seen::FromLeader(learner, "UpToDate".to_owned());
        until(&mut hosts, "what follows", |hosts| hosts[1].saw(&next));
        assert!(hosts[1].seen.ends_with(&[ended, next]));
        assert!(hosts[0].saw(&Seen::BodySent(leader)));
    });
}

/// A transaction of so many bytes.
fn payload(zxid: i64, bytes: usize) -> Vec<u8> {
    let mut payload = Vec::new();
    TxnHeader { client_id: 1, cxid: 0, zxid, time: 0, kind: -11 }.write(&mut payload);
    payload.resize(bytes, 0);
    payload
}

#[test]
fn packets_that_a_thread_writes_go_before_those_that_are_sent_later() {
    with_each_ring(|ring| {
        let mut hosts = linked(ring);
        let [leader, learner] = [0, 1].map(|host: usize| hosts[host].link().unwrap());
        let write = |out: &mut dyn io::Write| {
            let mut packets = Vec::new();
            (1..=1_000)
                .for_each(|zxid| write_committed(Zxid(zxid), &payload(zxid, 400), &mut packets));
            out.write_all(&packets)
        };
        hosts[0].send(&FromLeader::Diff { zxid: Zxid(1_000) });
        hosts[0].links.send_logged(leader, Box::new(write));
        hosts[0].send(&FromLeader::UpToDate);
        let last = Seen::FromLeader(learner, "UpToDate".to_owned());
        until(&mut hosts, "what follows", |hosts| hosts[1].saw(&last));
        let is_packet = |name: &str| {
            let packet = Seen::FromLeader(learner, name.to_owned());
            hosts[1].seen.iter().filter(|seen| **seen == packet).count()
        };
        assert_eq!((is_packet("Proposal"), is_packet("Commit")), (1_000, 1_000));
        assert_eq!(hosts[1].seen.last(), Some(&last));
        assert!(hosts[0].saw(&Seen::BodySent(leader)));
    });
}

#[test]
fn what_would_be_logged_waits_in_its_link_while_that_is_held() {
    with_each_ring(|ring| {
        let mut hosts = linked(ring);
        let [leader, learner] = [0, 1].map(|host: usize| hosts[host].link().unwrap());
        hosts.iter_mut().for_each(|host| host.links.hold(true));
        let mut packets = Vec::new();
        FromLeader::Ping { zxid: Zxid(1) }.write(&mut packets);
        (1..=8)
            .for_each(|zxid| write_committed(Zxid(zxid), &payload(zxid, 1_000_000), &mut packets));
        hosts[0].links.send(leader, packets.into());
        let mut packets = Vec::new();
        FromLearner::Ack { zxid: Zxid(1) }.write(&mut packets);
        let request = Request {
            session: SessionId(1),
            cxid: 1,
            op: 1,
            body: &[],
            identities: AuthInfo::NULL,
        };
        FromLearner::Request(request).write(&mut packets);
        FromLearner::Ack { zxid: Zxid(2) }.write(&mut packets);
        hosts[1].links.send(learner, packets.into());
        let of_leader = |name: &str| Seen::FromLeader(learner, name.to_owned());
        let of_learner = |name: &str| Seen::FromLearner(leader, name.to_owned());
        until(&mut hosts, "what is not logged", |hosts| {
            hosts[1].saw(&of_leader("Ping")) && hosts[0].saw(&of_learner("Ack"))
        });
        for _ in 0..200 {
            hosts.iter_mut().for_each(Host::turn);
        }
        assert!(!hosts[1].saw(&of_leader("Proposal")) && !hosts[0].saw(&of_learner("Request")));
        let slot = hosts[1].links.by_link[&learner];
        assert!(hosts[1].links.link_mut(slot).unheard_bytes() < 2 << 20, "it is not read");
        hosts.iter_mut().for_each(|host| host.links.hold(false));
        until(&mut hosts, "what is logged", |hosts| {
            let commits = hosts[1].seen.iter().filter(|seen| **seen == of_leader("Commit"));
            commits.count() == 8
        });
        assert!(hosts[0].seen.ends_with(&[of_learner("Request"), of_learner("Ack")]));
    });
}

#[test]
fn a_snapshot_that_ends_early_is_lost_at_both_ends() {
    with_each_ring(|ring| {
        let mut hosts = linked(ring);
        let [leader, learner] = [0, 1].map(|host: usize| hosts[host].link().unwrap());
        hosts[0].send(&FromLeader::Snap { zxid: Zxid(9) });
        let write = |out: &mut dyn io::Write| {
            write_body(3, &mut *out)?;
            Err(io::Error::other("the tree is gone"))
        };
        // Without the end of a body that it could be taken for.
        let write = move |out: &mut dyn io::Write| {
            let mut bytes = Vec::new();
            let outcome = write(&mut bytes);
            out.write_all(&bytes[..bytes.len() - 1])?;
            outcome
        };
        hosts[0].links.send_snapshot(leader, Box::new(write));
        let snap = Seen::FromLeader(learner, "Snap".to_owned());
        until(&mut hosts, "SNAP", |hosts| hosts[1].saw(&snap));
        let (inlet, outlet) = snapshot_pipe(1 << 20, Arc::clone(&hosts[1].bell));
        let (reader, go) = reader(outlet);
        hosts[1].links.receive_snapshot(learner, inlet);
        go();
        until(&mut hosts, "the end", |hosts| {
            hosts[0].saw(&Seen::LinkClosed(leader)) && hosts[1].saw(&Seen::LinkClosed(learner))
        });
        assert!(reader.join().unwrap().is_err());
        assert!(!hosts[1].saw(&Seen::SnapshotEnded(learner)));
    });
}

#[test]
fn a_reader_that_has_gone_holds_nothing_up() {
    with_each_ring(|ring| {
        let mut hosts = linked(ring);
        let [leader, learner] = [0, 1].map(|host: usize| hosts[host].link().unwrap());
        hosts[0].send(&FromLeader::Snap { zxid: Zxid(9) });
        hosts[0].links.send_snapshot(leader, Box::new(|out| write_body(5, out)));
        let snap = Seen::FromLeader(learner, "Snap".to_owned());
        until(&mut hosts, "SNAP", |hosts| hosts[1].saw(&snap));
        let (inlet, outlet) = snapshot_pipe(1 << 20, Arc::clone(&hosts[1].bell));
        hosts[1].links.receive_snapshot(learner, inlet);
        until(&mut hosts, "the pipe is full", |hosts| !hosts[1].links.parked.is_empty());
        drop(outlet);
        until(&mut hosts, "its end", |hosts| hosts[1].saw(&Seen::SnapshotEnded(learner)));
    });
}

#[test]
fn a_learner_that_does_not_read_is_lost_and_slows_no_other() {
    with_each_ring(|ring| {
        let mut hosts = linked(ring);
        let [leader, learner] = [0, 1].map(|host: usize| hosts[host].link().unwrap());
        let [_, quorum] = addresses(&hosts[0].links.ensemble, 1);
        let mut stuck = connect(quorum);
        stuck.write_all(&info(3)).unwrap();
        until(&mut hosts, "it is known", |hosts| hosts[0].link() != Some(leader));
        let other = hosts[0].link().unwrap();
        let mut bytes = Vec::new();
        let config = vec![b'x'; 1 << 19];
        FromLeader::NewLeader { zxid: Zxid(1 << 32), config: Some(&config) }.write(&mut bytes);
        let chunk: Arc<[u8]> = bytes.into();
        let packet = Seen::FromLeader(learner, "NewLeader".to_owned());
        let mut sent = 0;
        until(&mut hosts, "it is lost", |hosts| {
            let came = hosts[1].seen.iter().filter(|seen| **seen == packet).count();
            // The other takes what it is sent, at its own pace.
            if came == sent {
                hosts[0].links.send(leader, Arc::clone(&chunk));
                hosts[0].links.send(other, Arc::clone(&chunk));
                sent += 1;
            }
            hosts[0].saw(&Seen::LinkClosed(other))
        });
        assert!(8 << 20 <= sent * chunk.len(), "not before its queue is full");
        assert!(!hosts[0].saw(&Seen::LinkClosed(leader)));
        until(&mut hosts, "the rest has come", |hosts| {
            hosts[1].seen.iter().filter(|seen| **seen == packet).count() == sent
        });
    });
}

#[test]
fn garbage_and_silence_are_cut_off_and_nobody_hears_of_them() {
    with_each_ring(|ring| {
        let ensemble = ensemble(2);
        let mut hosts = [Host::start(1, &ensemble, ring())];
        let [election, quorum] = addresses(&ensemble, 1);
        let mut whole = Vec::new();
        FromLearner::Ack { zxid: Zxid(1) }.write(&mut whole);
        // A length that nobody has, and one that is too long for who is not known.
        let lengths = [vec![0xff; 64], [&[0; 12][..], &(1_i32 << 20).to_be_bytes()].concat()];
        for (address, bytes) in [
            (election, b"GET / HTTP/1.1\r\nHost: here\r\n\r\n".to_vec()),
            (election, (-65536_i64).to_be_bytes().into_iter().chain([0xff; 32]).collect()),
            (quorum, b"GET / HTTP/1.1\r\nHost: here\r\n\r\n".to_vec()),
            (quorum, lengths[0].clone()),
            (quorum, lengths[1].clone()),
            // Well formed, and not what a learner says first.
            (quorum, whole),
        ] {
            let mut stranger = connect(address);
            // It may be cut off while it is still talking.
            let _ = stranger.write_all(&bytes);
            until(&mut hosts, "it is cut off", |_| is_over(&mut stranger));
        }
        // Those who say nothing have their time.
        let mut silent = [election, quorum].map(connect);
        until(&mut hosts, "they are there", |hosts| {
            hosts[0].links.newcomers.len() == 1 && hosts[0].links.by_election.len() == 1
        });
        assert!(!silent.iter_mut().any(is_over));
        hosts[0].ahead_ms += 61_000;
        until(&mut hosts, "they are cut off", |_| silent.iter_mut().all(is_over));
        // A crowd costs no more than its bound.
        let mut crowd = Vec::new();
        for _ in 0..NEWCOMERS_MAX + 2 {
            crowd.extend([election, quorum].map(connect));
            hosts[0].turn();
        }
        until(&mut hosts, "the oldest go", |_| crowd[..4].iter_mut().all(is_over));
        assert!(!crowd[4..].iter_mut().any(is_over));
        // The first letters of HTTP are the number of a server, whose notification is too long.
        let http = i64::from_be_bytes(*b"GET / HT");
        hosts[0].seen.retain(|seen| *seen != Seen::ElectionGone(http));
        assert_eq!(hosts[0].seen, [], "nobody hears of them");
        // Their places are used again.
        assert!(hosts[0].links.slots.len() <= 2 * NEWCOMERS_MAX + 8);
    });
}

#[test]
fn a_state_that_no_release_has_is_heard_and_is_no_vote() {
    let mut frame = Vec::new();
    Notification {
        state: ServerState::Unknown(9),
        leader: ServerId(i64::MIN),
        zxid: Zxid(i64::MIN),
        election_epoch: 1,
        peer_epoch: i64::MIN,
        version: 0,
        config: None,
    }
    .write(&mut frame);
    let heard = notification(&frame).expect("one without a vote is answered whatever it does");
    assert_eq!(heard.state, PeerState::Observing);
}

#[test]
fn a_leader_whose_port_does_not_answer_is_silent_and_not_refused() {
    let address = Some(Ipv4Addr::LOCALHOST.into());
    let port_of_leader = port();
    let full = accept::listen(Endpoint { address, port: port_of_leader }, Some(1)).unwrap();
    let patience = Duration::from_millis(100);
    let place = full.local_addr().unwrap();
    // What waits to be accepted fills its queue, and then no call is answered.
    let waiting: Vec<_> =
        (0..20).map_while(|_| TcpStream::connect_timeout(&place, patience).ok()).collect();
    assert!(waiting.len() < 20, "the queue is not full");
    let lines = [
        format!("127.0.0.1:{}:{}", port(), port()),
        format!("127.0.0.1:{port_of_leader}:{}", port()),
    ];
    let options = LinkOptions { leader_call: patience, ..options() };
    let mut hosts = [Host::with(1, &of_lines(&lines), Ring::new().unwrap(), options)];
    hosts[0].links.call(ServerId(2));
    until(&mut hosts, "it is silent", |hosts| hosts[0].saw(&Seen::LeaderSilent(2)));
    assert!(!hosts[0].saw(&Seen::LeaderRefused(2)));
}

#[test]
fn a_server_that_is_not_there_is_refused_and_another_address_of_it_is_tried() {
    let (dead, live) = (port(), ports::listen());
    let live_port = live.local_addr().unwrap().port();
    let lines = [
        format!("127.0.0.1:{}:{}", port(), port()),
        format!("127.0.0.1:{dead}:{}", port()),
        format!("127.0.0.1:{dead}:{}|127.0.0.2:{live_port}:{}", port(), port()),
        format!("no.such.host.invalid:{}:{}", port(), port()),
    ];
    let live_on_two = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), live_port)).unwrap();
    let ensemble = of_lines(&lines);
    let mut hosts = [Host::start(1, &ensemble, Ring::new().unwrap())];
    hosts[0].links.call(ServerId(2));
    hosts[0].tell(2);
    until(&mut hosts, "it is refused", |hosts| {
        hosts[0].saw(&Seen::LeaderRefused(2)) && hosts[0].saw(&Seen::ElectionRefused(2))
    });
    hosts[0].links.call(ServerId(4));
    until(&mut hosts, "nobody has the name", |hosts| hosts[0].saw(&Seen::LeaderRefused(4)));
    hosts[0].links.call(ServerId(9));
    until(&mut hosts, "it is in no configuration", |hosts| hosts[0].saw(&Seen::LeaderRefused(9)));
    // An answer to an earlier call is not one to the last.
    hosts[0].links.call(ServerId(2));
    hosts[0].links.call(ServerId(3));
    until(&mut hosts, "the other address answers", |hosts| hosts[0].link().is_some());
    let reached = Seen::LeaderReached(hosts[0].link().unwrap(), 3);
    assert_eq!(hosts[0].seen.last(), Some(&reached));
    let refused = hosts[0].seen.iter().filter(|seen| **seen == Seen::LeaderRefused(2));
    assert_eq!(refused.count(), 1);
    drop((live, live_on_two));
}

#[test]
fn a_port_that_another_has_is_tried_again_and_then_given_up() {
    let ensemble = ensemble(1);
    let [election, quorum] = addresses(&ensemble, 1);
    let taken = TcpListener::bind(election).unwrap();
    let began = Instant::now();
    let twice = LinkOptions { bind_tries: Some(2), ..options() };
    let mut hosts = [Host::with(1, &ensemble, Ring::new().unwrap(), twice)];
    until(&mut hosts, "it is given up", |hosts| hosts[0].saw(&Seen::CannotListen(election.1)));
    assert!(Duration::from_secs(1) <= began.elapsed(), "not at once");
    // The other port is another matter.
    drop(connect(quorum));
    drop(taken);
}

#[test]
fn a_server_listens_on_its_own_address_or_on_all() {
    let ensemble = ensemble(1);
    let [election, quorum] = addresses(&ensemble, 1);
    let elsewhere = Ipv4Addr::new(127, 0, 0, 3);
    let own = Host::start(1, &ensemble, Ring::new().unwrap());
    for (address, port) in [election, quorum] {
        drop(connect((address, port)));
        assert!(TcpStream::connect((elsewhere, port)).is_err());
    }
    own.links.stop();
    let all = LinkOptions { listen_on_all: true, ..options() };
    let _host = Host::with(1, &ensemble, Ring::new().unwrap(), all);
    for (_, port) in [election, quorum] {
        drop(connect((elsewhere, port)));
    }
}
