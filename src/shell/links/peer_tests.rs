//! Servers that agree over real links: the pure half of Zab, with its log in memory.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

use super::snapshot::snapshot_pipe;
use super::tests::{Host, PATIENCE, ensemble, options};
use super::*;
use crate::jute::Write as _;
use crate::record::quorum::{LearnerInfo, TouchTable};
use crate::record::txn::{Txn, TxnHeader};
use crate::types::{Epoch, Zxid};
use crate::zab::history::{Cache, History};
use crate::zab::leader::{Span, ToLearner, write_committed};
use crate::zab::learner::Kind;
use crate::zab::peer::{Output, Peer, Start};
use crate::zab::proposals::Proposal;
use crate::zab::voters::Voters;
use crate::zab::{Durable, Settings};

const SETTINGS: Settings = Settings {
    tick_ms: 500,
    init_limit: 20,
    sync_limit: 10,
    received_bytes_max: 1 << 20,
    unsynced_bytes_max: 1 << 20,
    counters_from: 0,
    #[cfg(feature = "mutants")]
    mutant: None,
};
/// So few are kept in memory for learners that lack them.
const CACHE: Cache = Cache { count_max: 5, bytes_max: 1 << 20 };

struct Server {
    id: i64,
    host: Host,
    peer: Peer,
    ensemble: Arc<Ensemble>,
    log: Vec<Proposal>,
    committed: Zxid,
    epoch: Option<Epoch>,
    state: PeerState,
    /// The snapshot that comes, and the log that it is.
    loads: Option<(Zxid, Receiver<io::Result<Vec<Proposal>>>)>,
    loaded: bool,
}

impl Server {
    fn start(id: i64, ensemble: &Arc<Ensemble>, log: Vec<Proposal>) -> Server {
        let host = Host::with(id, ensemble, Ring::new().unwrap(), options());
        let mut history = History::new(CACHE, Zxid::ZERO);
        log.iter().for_each(|proposal| history.push(proposal.clone()));
        let epoch = log.last().map_or(Epoch(0), |last| last.zxid.epoch());
        let start = Start {
            me: ServerId(id),
            settings: SETTINGS,
            election: election::Settings::default(),
            voters: Arc::new(Voters::new(Arc::clone(ensemble), None)),
            is_observer: false,
            accepted: epoch,
            current: epoch,
            history,
            is_vouched_for: true,
        };
        let mut out = Output::default();
        let peer = Peer::new(host.now(), start, &mut out);
        let mut server = Server {
            id,
            host,
            peer,
            ensemble: Arc::clone(ensemble),
            log,
            committed: Zxid::ZERO,
            epoch: None,
            state: PeerState::Looking,
            loads: None,
            loaded: false,
        };
        server.carry_out(out);
        server
    }

    fn turn(&mut self) {
        self.host.wait();
        let now = self.host.now();
        loop {
            let Server { peer, host: Host { links, ring, .. }, .. } = self;
            let mut out = Output::default();
            let (mut closed, mut leads) = (None, None);
            let told = links.next_event(now, ring, |event| match event {
                Event::Notified { from, notification } => {
                    peer.on_notification(now, from, notification, &mut out);
                }
                Event::ElectionReached { server } => {
                    peer.on_election_port(now, server, false, &mut out);
                }
                Event::ElectionRefused { server } => {
                    peer.on_election_port(now, server, true, &mut out);
                }
                Event::ElectionGone { server } => peer.on_election_link_closed(server),
                Event::LearnerConnected { link } => peer.on_learner_connected(now, link, &mut out),
                Event::LeaderReached { link, server } => {
                    peer.on_leader_reached(now, server, link, &mut out);
                }
                Event::LeaderSilent { server } => peer.on_leader_silent(now, server, &mut out),
                Event::LeaderRefused { server } => peer.on_leader_refused(now, server, &mut out),
                Event::LinkClosed { link } => closed = Some(link),
                Event::FromLearner { link, packet } => {
                    peer.on_packet_of_learner(now, link, packet, &mut out);
                }
                Event::FromLeader { link, packet } => {
                    peer.on_packet_of_leader(now, link, packet, &mut out);
                    leads = Some(link);
                }
                Event::BodyMoved { link } => peer.on_progress(now, link),
                Event::BodySent { link } => peer.on_streamed(now, link, &mut out),
                Event::SnapshotCame { .. } | Event::SnapshotEnded { .. } => {}
                Event::CannotListen { port, error, .. } => panic!("{port}: {error}"),
            });
            if told.is_none() {
                break;
            }
            if let Some(link) = closed {
                self.peer.on_link_closed(now, link, &mut out);
            }
            if let Some(zxid) = out.load.take() {
                self.load(leads.expect("a leader has said so"), zxid);
            }
            self.carry_out(out);
        }
        if let Some((zxid, log)) = &self.loads
            && let Ok(log) = log.try_recv()
        {
            let (zxid, mut out) = (*zxid, Output::default());
            self.log = log.expect("no link is lost here");
            (self.loads, self.loaded) = (None, true);
            self.peer.on_stored(now, Durable::Snapshot(zxid), &mut out);
            self.carry_out(out);
        }
        let mut out = Output::default();
        self.peer.on_time(now, &mut out);
        self.carry_out(out);
        let Server { peer, host: Host { links, ring, .. }, .. } = self;
        links.flush(ring, || peer.notification());
    }

    fn load(&mut self, link: LinkId, zxid: Zxid) {
        let (inlet, mut outlet) = snapshot_pipe(1 << 16, Arc::clone(&self.host.bell));
        let (told, log) = channel();
        let bell = Arc::clone(&self.host.bell);
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let read = outlet.read_to_end(&mut bytes);
            let _ = told.send(read.map(|_| log_of(&bytes)));
            bell.ring();
        });
        self.host.links.receive_snapshot(link, inlet);
        self.loads = Some((zxid, log));
    }

    fn carry_out(&mut self, out: Output) {
        let now = self.host.now();
        self.host.links.tell(&out.tell);
        if let Some(server) = out.call {
            self.host.links.call(server);
        }
        let mut next = Output::default();
        for proposal in out.appends {
            let zxid = proposal.zxid;
            self.log.push(proposal);
            self.peer.on_synced(now, zxid, &mut next);
        }
        for store in out.stores {
            match store {
                Durable::Truncated(zxid) => {
                    self.log.retain(|proposal| proposal.zxid <= zxid);
                    self.peer.on_stored(now, store, &mut next);
                }
                store => self.peer.on_stored(now, store, &mut next),
            }
        }
        for (link, packet) in out.to_leader {
            let (mut bytes, info) = (Vec::new(), LearnerInfo::new(ServerId(self.id), 0));
            packet.packet(Kind::Follower, info, TouchTable::EMPTY).write(&mut bytes);
            self.host.links.send(link, bytes.into());
        }
        let config = self.ensemble.to_string();
        for (link, _) in out.looks {
            self.peer.on_looked(now, link, true, &mut next);
        }
        for (link, packet) in out.to_learners {
            if let ToLearner::Logged(span) = packet {
                let log = self.log.clone();
                let write = move |out: &mut dyn io::Write| write_logged(&log, span, out);
                self.host.links.send_logged(link, Box::new(write));
                continue;
            }
            let mut bytes = Vec::new();
            packet.packet(Some(config.as_bytes())).unwrap().write(&mut bytes);
            self.host.links.send(link, bytes.into());
            if let ToLearner::Snap { .. } = packet {
                let log = self.log.clone();
                self.host.links.send_snapshot(link, Box::new(move |out| write_log(&log, out)));
            }
        }
        for link in out.closes {
            self.host.links.close(link, &mut self.host.ring);
        }
        self.state = out.state.unwrap_or(self.state);
        self.committed = out.committed.unwrap_or(self.committed);
        if out.ended.is_some() {
            self.epoch = None;
        }
        self.epoch = out.established.or(self.epoch);
        if format!("{next:?}") != format!("{:?}", Output::default()) {
            self.carry_out(next);
        }
    }

    fn propose(&mut self, number: i32) -> Zxid {
        let (now, mut out) = (self.host.now(), Output::default());
        let zxid = self.peer.next_zxid(now, &mut out).expect("it leads");
        let txn = Txn::Error { err: number };
        let header =
            TxnHeader { client_id: 1, cxid: number, zxid: zxid.0, time: 1, kind: txn.kind() };
        let mut payload = Vec::new();
        header.write(&mut payload);
        txn.write(&mut payload);
        self.peer.propose(now, Proposal { zxid, payload: payload.into() }, &mut out);
        self.carry_out(out);
        zxid
    }
}

fn write_logged(log: &[Proposal], span: Span, out: &mut dyn io::Write) -> io::Result<()> {
    let mut bytes = Vec::new();
    for proposal in log.iter().filter(|p| span.after < p.zxid && p.zxid <= span.through) {
        write_committed(proposal.zxid, &proposal.payload, &mut bytes);
    }
    out.write_all(&bytes)
}

/// A log as a snapshot's body: a znode for each of its proposals.
fn write_log(log: &[Proposal], out: &mut dyn io::Write) -> io::Result<()> {
    let mut bytes = Vec::new();
    bytes.put_i32(0);
    bytes.put_i32(0);
    for proposal in log {
        bytes.put_text(&format!("/{}", proposal.zxid.0));
        bytes.put_buffer(Some(&proposal.payload));
        bytes.extend([0; 68]);
    }
    bytes.put_text("/");
    out.write_all(&bytes)
}

fn log_of(body: &[u8]) -> Vec<Proposal> {
    let mut reader = Reader::new(&body[8..]);
    let mut log = Vec::new();
    loop {
        let path = String::from_utf8(reader.buffer().unwrap().unwrap().to_vec()).unwrap();
        if path == "/" {
            return log;
        }
        let zxid = Zxid(path[1..].parse().unwrap());
        log.push(Proposal { zxid, payload: reader.buffer().unwrap().unwrap().into() });
        for _ in 0..17 {
            reader.i32().unwrap();
        }
    }
}

fn until(servers: &mut [Server], what: &str, is_so: impl Fn(&[Server]) -> bool) {
    let deadline = Instant::now() + 2 * PATIENCE;
    while !is_so(servers) {
        let seen = servers.iter().map(|server| (server.id, server.state, server.epoch));
        assert!(Instant::now() < deadline, "never: {what}; {:?}", seen.collect::<Vec<_>>());
        servers.iter_mut().for_each(Server::turn);
    }
}

fn leader(servers: &[Server]) -> Option<usize> {
    servers.iter().position(|server| server.state == PeerState::Leading && server.epoch.is_some())
}

#[test]
fn three_servers_elect_commit_lose_their_leader_and_take_it_back() {
    let ensemble = ensemble(3);
    let mut servers: Vec<Server> =
        (1..=3).map(|id| Server::start(id, &ensemble, Vec::new())).collect();
    until(&mut servers, "all are led", |servers| {
        leader(servers).is_some() && servers.iter().all(|server| server.epoch.is_some())
    });
    let first = leader(&servers).unwrap();
    let last = (1..=10).map(|number| servers[first].propose(number)).last().unwrap();
    until(&mut servers, "all have committed", |servers| {
        servers.iter().all(|server| server.committed == last)
    });

    // The leader ends; the others go on without it.
    let gone = servers.remove(first);
    let (id, log) = (gone.id, gone.log.clone());
    gone.host.links.stop();
    until(&mut servers, "another leads", |servers| {
        leader(servers).is_some() && servers.iter().all(|server| server.epoch.is_some())
    });
    let second = leader(&servers).unwrap();
    assert!(last.epoch() < servers[second].epoch.unwrap());
    let last = (11..=30).map(|number| servers[second].propose(number)).last().unwrap();
    until(&mut servers, "both have committed", |servers| {
        servers.iter().all(|server| server.committed == last)
    });

    // It lacks more than is kept in memory, and the leader's log has it.
    servers.push(Server::start(id, &ensemble, log));
    until(&mut servers, "it is led", |servers| servers[2].epoch.is_some());
    assert_eq!((servers[2].state, servers[2].loaded), (PeerState::Following, false));
    let second = leader(&servers).unwrap();
    let last = servers[second].propose(31);
    until(&mut servers, "all have committed", |servers| {
        servers.iter().all(|server| server.committed == last)
    });
    let logs: Vec<_> = servers.iter().map(|server| &server.log).collect();
    assert!(logs[0].len() == 31 && logs[0] == logs[1] && logs[1] == logs[2]);
}
