//! One server, its disk, its clients and time, in one thread.
//!
//! What happens is a queue of events, each at its moment; whatever takes time (bytes on their way,
//! batches between cores, a sync) is an event in the future. The server's parts are those of
//! production: `Shard`, `Pipeline`, `storage`, `Restore`. First there are faults; then there are
//! none, everything must come to rest, and what is left must be what the model says.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ringkeeper::auth::Providers;
use ringkeeper::exchange::{Applied, ConnectionId, Requests, ShardId, Touched, Want};
use ringkeeper::jute::FIELD_BYTES_MAX;
use ringkeeper::pipeline::{self, Input, Pipeline, SnapshotJob};
use ringkeeper::shard::{self, Allowance, Close, Shard, TurnBudget};
use ringkeeper::storage::compression::Encoder;
use ringkeeper::storage::snapshot::SnapshotWriter;
use ringkeeper::storage::{self, Compression, Keep, Listing, SnapshotFile};
use ringkeeper::tree::{self, TreeWriter, ephemerals};
use ringkeeper::types::{Now, ServerId, Zxid};

use crate::check::{Checker, Marks, Verdict, read_as_zookeeper, require};
use crate::clients::{Client, Wish};
use crate::disk::{Disk, DiskError, FileId, Syncing};
use crate::log::{DIRECTORY, DiskMutant, LogWriter};
use crate::network::{LinkId, Network};
use crate::plan::{Fault, Plan};
use crate::recovery::{Failure, is_quick_valid, recover};
use crate::rng::Rng;

const TEMPORARY_SNAPSHOT: &str = "ringkeeper-snapshot.tmp";
/// How much of a snapshot is written in one event.
const SNAPSHOT_CHUNK_BYTES: usize = 3_000;
/// Everything that was under way has arrived by then.
const RESTART_US_MIN: i64 = 50_000;
/// After the last fault, all is at rest within this.
const REST_US_MAX: i64 = 60_000_000;
const SILENCE_SLACK_MS: i64 = 1_000;
const WALL_BEGAN_MS: i64 = 1_700_000_000_000;

/// A seeded bug in the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    #[cfg(feature = "mutants")]
    Pipeline(pipeline::Mutant),
    #[cfg(feature = "mutants")]
    Shard(shard::Mutant),
    #[cfg(feature = "mutants")]
    Journal(storage::journal::Mutant),
    #[cfg_attr(not(feature = "mutants"), expect(dead_code, reason = "for mutants only"))]
    Disk(DiskMutant),
}

/// What the checkers may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    /// Also whether the disk has what is handed out, at that moment, and what its files hold.
    Everything,
    /// What clients are told, and what a server recovers.
    NotTheDisk,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crash {
    Kill,
    PowerLoss,
}

/// What is due at some moment. What concerns a server concerns one life of it.
#[derive(Clone, Copy, Debug)]
enum Event {
    ClientWakes(usize),
    /// Bytes reach the server's socket.
    Arrives(LinkId),
    /// The server reads them.
    ToServer(LinkId),
    ToClient(LinkId),
    ShardSends {
        life: u64,
        shard: usize,
    },
    /// A shard gets round to whom others came before.
    ShardWritesLater {
        life: u64,
        shard: usize,
    },
    /// A shard goes on with what it could not do in one turn.
    ShardTurn {
        life: u64,
        shard: usize,
    },
    PipelineTakes {
        life: u64,
        shard: usize,
    },
    ShardTakes {
        life: u64,
        shard: usize,
    },
    ShardTick {
        life: u64,
        shard: usize,
    },
    PipelineGoesOn {
        life: u64,
    },
    PipelineTick {
        life: u64,
    },
    LogStep {
        life: u64,
    },
    /// A round that was put off.
    RoundIsDue {
        life: u64,
    },
    SnapshotStep {
        life: u64,
    },
    KeeperWakes {
        life: u64,
    },
    Purge {
        life: u64,
    },
    WriteBack,
    Fault,
    Restart,
    SpaceIsBack,
    DiskIsFast,
}

/// What a shard has sent to the pipeline.
enum FromShard {
    Requests(Requests),
    Touched(Touched),
}

struct ShardCore {
    shard: Shard,
    out: shard::Output,
    to_pipeline: VecDeque<FromShard>,
    to_shard: VecDeque<Arc<Applied>>,
    sends: bool,
    writes_later: bool,
    takes_turn: bool,
    stalled_until_us: i64,
    /// A tick is due, for the time up to then.
    due_tick_ms: Option<i64>,
}

/// A snapshot being written.
enum Saving {
    Asked(SnapshotJob),
    Writing { file: FileId, bytes: Vec<u8>, at: usize, name: String, zxid: Zxid },
    Syncing { syncing: Option<Syncing>, name: String, zxid: Zxid },
    Named { zxid: Zxid },
}

struct Server {
    pipeline: Pipeline,
    out: pipeline::Output,
    shards: Vec<ShardCore>,
    log: LogWriter,
    saving: Option<Saving>,
    /// The pipeline has more to do, and will.
    goes_on: bool,
    /// The newest snapshot that was loaded or written.
    sound: Option<Zxid>,
}

pub(crate) struct World {
    plan: Plan,
    mutant: Option<Mutant>,
    sight: Sight,
    rng: Rng,
    now_us: i64,
    wall_offset_ms: i64,
    monotonic_offset_ms: i64,
    queue: BTreeMap<(i64, u64), Event>,
    sequence: u64,
    disk: Disk,
    server: Option<Server>,
    /// Which life of the server this is.
    life: u64,
    network: Network,
    clients: Vec<Client>,
    client_links: Vec<Option<LinkId>>,
    pub(crate) checker: Checker,
    extended_types: bool,
    /// How the fuse's crash will come.
    fuse: Crash,
    slow_disk: bool,
    /// Nothing is read from clients any more, and what was read comes to its end.
    is_stopping: bool,
    healed: bool,
    snapshot_damaged: bool,
    /// The disk has lost something that recovery has not put in order yet.
    disk_has_lost: bool,
    crashes_in_recovery: u64,
    trace: u64,
    is_traced: bool,
    events: u64,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub(crate) struct Summary {
    pub(crate) marks: Marks,
    pub(crate) trace: u64,
    pub(crate) events: u64,
    pub(crate) replies: u64,
    pub(crate) transactions: u64,
    pub(crate) lives: u64,
    pub(crate) virtual_ms: u64,
}

impl World {
    pub(crate) fn new(seed: u64, mutant: Option<Mutant>, sight: Sight) -> World {
        let mut rng = Rng::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x5eed);
        let plan = Plan::draw(&mut rng);
        let clients = (0..plan.clients)
            .map(|_| Client::new(rng.fork(), plan.timeouts_ms, plan.requests, plan.think_us))
            .collect();
        World {
            mutant,
            sight,
            now_us: 0,
            wall_offset_ms: 0,
            monotonic_offset_ms: rng.between(0, 1 << 40),
            queue: BTreeMap::new(),
            sequence: 0,
            disk: Disk::default(),
            server: None,
            life: 0,
            network: Network::default(),
            clients,
            client_links: vec![None; plan.clients],
            checker: Checker::new(plan.extended_types, plan.digests),
            extended_types: plan.extended_types,
            fuse: Crash::Kill,
            slow_disk: false,
            is_stopping: false,
            healed: false,
            snapshot_damaged: false,
            disk_has_lost: false,
            crashes_in_recovery: 0,
            trace: 0xcbf2_9ce4_8422_2325,
            is_traced: std::env::var_os("TRACE").is_some(),
            events: 0,
            rng,
            plan,
        }
    }

    pub(crate) fn describe(&self) -> String {
        format!("{:?}", self.plan)
    }

    pub(crate) fn now_us(&self) -> i64 {
        self.now_us
    }

    /// Faults first, then none; and what is left is what has to be left.
    pub(crate) fn run(&mut self) -> Verdict<Summary> {
        self.begin_history();
        self.boot(None)?;
        for client in 0..self.clients.len() {
            self.after(0, 20_000, Event::ClientWakes(client));
        }
        self.after(0, 10_000, Event::WriteBack);
        self.after(0, 2 * self.plan.fault_us, Event::Fault);
        self.run_until(self.plan.faulty_us)?;
        self.heal();
        self.run_to_rest("clients come to rest", |world| {
            world.clients.iter().all(Client::is_at_rest)
        })?;
        self.run_to_rest("sessions that nobody keeps expire", |world| {
            let kept: BTreeSet<i64> =
                world.clients.iter().filter_map(|client| Some(client.session()?.id)).collect();
            world.checker.model.sessions().keys().all(|session| kept.contains(session))
        })?;
        self.run_to_rest("everything is durable, handed out and delivered", |world| {
            world.is_idle()
        })?;
        self.check_at_rest()?;
        Ok(Summary {
            marks: mem::take(&mut self.checker.marks),
            trace: self.trace,
            events: self.events,
            replies: self.checker.replies,
            transactions: (self.checker.model.last - self.plan.begins_at) as u64,
            lives: self.life,
            virtual_ms: (self.now_us / 1000) as u64,
        })
    }

    // ---- time -------------------------------------------------------------------------------

    fn now(&self) -> Now {
        let ms = self.now_us / 1000;
        Now {
            monotonic_ms: ms + self.monotonic_offset_ms,
            wall_ms: WALL_BEGAN_MS + ms + self.wall_offset_ms,
        }
    }

    fn after(&mut self, first_us: i64, last_us: i64, event: Event) {
        let at = self.now_us + self.rng.between(first_us, last_us.max(first_us));
        self.at(at, event);
    }

    fn at(&mut self, at_us: i64, event: Event) {
        self.sequence += 1;
        self.queue.insert((at_us, self.sequence), event);
    }

    fn run_until(&mut self, end_us: i64) -> Verdict {
        while let Some((&(at, _), _)) = self.queue.first_key_value()
            && at < end_us
        {
            self.run_next()?;
        }
        Ok(())
    }

    fn run_to_rest(&mut self, what: &str, is_so: impl Fn(&World) -> bool) -> Verdict {
        let deadline = self.now_us + REST_US_MAX;
        while !is_so(self) {
            require!(
                self.now_us < deadline,
                "P13: not so after a long time: {what}; {:?}",
                self.clients.iter().map(Client::describe).collect::<Vec<_>>()
            );
            self.run_next()?;
        }
        Ok(())
    }

    fn run_next(&mut self) -> Verdict {
        let ((at, _), event) = self.queue.pop_first().expect("clocks tick on");
        self.now_us = self.now_us.max(at);
        self.events += 1;
        self.note(self.now_us as u64);
        if self.is_traced {
            eprintln!("{:>10} {event:?}", self.now_us);
        }
        self.on_event(event)
    }

    /// Takes something into the fingerprint of the run.
    fn note(&mut self, value: u64) {
        self.trace = (self.trace ^ value).wrapping_mul(0x0100_0000_01b3);
    }

    fn on_event(&mut self, event: Event) -> Verdict {
        let life = match event {
            Event::ShardSends { life, .. }
            | Event::ShardWritesLater { life, .. }
            | Event::ShardTurn { life, .. }
            | Event::PipelineTakes { life, .. }
            | Event::ShardTakes { life, .. }
            | Event::ShardTick { life, .. }
            | Event::PipelineTick { life }
            | Event::PipelineGoesOn { life }
            | Event::LogStep { life }
            | Event::RoundIsDue { life }
            | Event::SnapshotStep { life }
            | Event::KeeperWakes { life }
            | Event::Purge { life } => life,
            _ => self.life,
        };
        if life != self.life {
            return Ok(());
        }
        if let Some(until_us) = self.stalled_until(event) {
            self.at(until_us, event);
            return Ok(());
        }
        match event {
            Event::ClientWakes(client) => self.on_client_wakes(client),
            Event::Arrives(link) => {
                self.on_arrives(link);
                Ok(())
            }
            Event::ToServer(link) => self.on_to_server(link),
            Event::ToClient(link) => self.on_to_client(link),
            Event::ShardSends { shard, .. } => self.on_shard_sends(shard),
            Event::ShardWritesLater { shard, .. } => self.on_shard_writes_later(shard),
            Event::ShardTurn { shard, .. } => self.on_shard_turn(shard),
            Event::PipelineTakes { shard, .. } => self.on_pipeline_takes(shard),
            Event::ShardTakes { shard, .. } => self.on_shard_takes(shard),
            Event::ShardTick { shard, .. } => self.on_shard_tick(shard),
            Event::PipelineGoesOn { .. } => {
                if let Some(server) = &mut self.server {
                    server.goes_on = false;
                }
                self.checker.marks.insert("an answer made in pieces");
                self.step(Input::GoOn)
            }
            Event::PipelineTick { .. } => {
                self.after_tick(Event::PipelineTick { life });
                self.step(Input::Tick)?;
                self.stop_if_done()
            }
            Event::LogStep { .. } => self.on_log_step(),
            Event::RoundIsDue { .. } => {
                self.begin_round();
                Ok(())
            }
            Event::SnapshotStep { .. } => self.on_snapshot_step(),
            Event::KeeperWakes { .. } => self.on_keeper_wakes(),
            Event::Purge { .. } => self.on_purge(),
            Event::WriteBack => {
                self.disk.write_back_some(&mut self.rng);
                self.after(1, 2 * self.plan.write_back_us, Event::WriteBack);
                Ok(())
            }
            Event::Fault => self.on_fault(),
            Event::Restart => self.on_restart(),
            Event::SpaceIsBack => {
                self.disk.is_full = false;
                Ok(())
            }
            Event::DiskIsFast => {
                self.slow_disk = false;
                Ok(())
            }
        }
    }

    /// A shard that does nothing leaves everything where it is.
    fn stalled_until(&mut self, event: Event) -> Option<i64> {
        let shard = match event {
            Event::ShardSends { shard, .. }
            | Event::ShardWritesLater { shard, .. }
            | Event::ShardTurn { shard, .. }
            | Event::ShardTakes { shard, .. }
            | Event::ShardTick { shard, .. } => shard,
            Event::ToServer(link) => self.network.find(link)?.shard,
            _ => return None,
        };
        let until_us = self.server.as_ref()?.shards[shard].stalled_until_us;
        (self.now_us < until_us).then_some(until_us)
    }

    fn after_tick(&mut self, event: Event) {
        let half_us = self.plan.tick_ms * 500;
        self.after(half_us * 9 / 10, half_us, event);
    }

    // ---- clients and their streams ----------------------------------------------------------

    fn on_client_wakes(&mut self, client: usize) -> Verdict {
        let wish = self.clients[client].wake(self.now_us, &mut self.checker, self.healed);
        match wish {
            Wish::Nothing => {}
            Wish::Send => self.send(client),
            Wish::Connect => self.connect(client),
            Wish::Leave => self.leave(client),
        }
        let pause_us = self.clients[client].pause_us();
        self.after(pause_us, pause_us, Event::ClientWakes(client));
        Ok(())
    }

    fn connect(&mut self, client: usize) {
        let now = self.now();
        if self.is_stopping {
            return;
        }
        let Some(server) = &mut self.server else { return };
        let shard = self.rng.index(server.shards.len());
        let core = &mut server.shards[shard];
        let remote = SocketAddr::from((Ipv4Addr::new(10, 0, 0, client as u8), 40_000));
        let connection = core.shard.on_accept(now, remote);
        let link = self.network.connect(client, shard, connection);
        self.client_links[client] = Some(link);
        let first = &mut self.clients[client];
        first.on_link(self.now_us, self.healed);
        let bytes = first.outbox.len() as u64;
        let resumes = first.resumes().map(|session| (session, bytes));
        self.network.find(link).expect("just made").resumes = resumes;
        self.send(client);
    }

    /// What the client has to say goes on its way.
    fn send(&mut self, client: usize) {
        let bytes = mem::take(&mut self.clients[client].outbox);
        let Some(id) = self.client_links[client] else { return };
        let Some(link) = self.network.find(id) else { return };
        if !link.dead && !link.server_gone && !link.to_server.ended {
            link.to_server.bytes.extend_from_slice(&bytes);
            self.schedule_to_server(id);
        }
    }

    /// The client goes without a word.
    fn leave(&mut self, client: usize) {
        let Some(id) = self.client_links[client].take() else { return };
        self.clients[client].on_end(&mut self.checker);
        let Some(link) = self.network.find(id) else { return };
        link.client_gone = true;
        link.to_client.bytes.clear();
        if self.rng.coin() {
            link.to_server.break_off(&mut self.rng);
        } else {
            link.to_server.ended = true;
        }
        self.schedule_to_server(id);
        self.network.forget_if_gone(id);
    }

    /// What is under way goes on, and what has arrived is read.
    fn schedule_to_server(&mut self, id: LinkId) {
        let Some(link) = self.network.find(id) else { return };
        if link.server_gone {
            return;
        }
        let (is_paused, is_dead) = (link.to_server.paused, link.dead);
        let stream = &mut link.to_server;
        let has_news = stream.arrived < stream.bytes.len();
        let travels = has_news && !is_dead && !mem::replace(&mut stream.travels, true);
        let has_more = 0 < stream.arrived || (stream.ended && !has_news && !is_dead);
        let reads = has_more && !is_paused && !mem::replace(&mut stream.scheduled, true);
        let is_end = reads && stream.arrived == 0;
        if travels {
            self.after(50, self.plan.network_us, Event::Arrives(id));
        }
        if is_end {
            self.after(50, self.plan.network_us, Event::ToServer(id));
        } else if reads {
            self.after(0, 100, Event::ToServer(id));
        }
    }

    fn schedule_to_client(&mut self, id: LinkId) {
        let Some(link) = self.network.find(id) else { return };
        let stream = &mut link.to_client;
        let has_news = !stream.bytes.is_empty() || stream.ended;
        if has_news && !stream.scheduled && !link.dead && !link.client_gone {
            stream.scheduled = true;
            // Whatever a server has sent arrives before the next one begins.
            self.after(50, self.plan.network_us.min(RESTART_US_MIN / 4), Event::ToClient(id));
        }
    }

    /// Bytes are in the server's socket, whatever the server is doing.
    fn on_arrives(&mut self, id: LinkId) {
        let (now, now_us) = (self.now(), self.now_us);
        let Some(link) = self.network.find(id) else { return };
        link.to_server.travels = false;
        if link.server_gone || link.dead {
            return;
        }
        link.to_server.arrive(now_us, &mut self.rng);
        // A client that went on elsewhere is heard of there.
        if !link.client_gone {
            let arrived = link.to_server.arrived_ever;
            let asked = link.resumes.filter(|(_, bytes)| *bytes <= arrived);
            let session = link.session.or(asked.map(|(session, _)| session));
            let (shard, connection) = (link.shard, link.connection);
            let core = self.server.as_mut().map(|server| &mut server.shards[shard]);
            let is_ending = core.is_none_or(|core| {
                core.shard.outgoing(connection).is_none_or(|it| it.close.is_some())
            });
            if let Some(session) = session.filter(|_| !is_ending && !self.is_stopping) {
                self.checker.on_heard(now, session);
            }
        }
        self.schedule_to_server(id);
    }

    fn on_to_server(&mut self, id: LinkId) -> Verdict {
        let now = self.now();
        let Some(link) = self.network.find(id) else { return Ok(()) };
        link.to_server.scheduled = false;
        let Some(server) = &mut self.server else { return Ok(()) };
        if link.server_gone || link.to_server.paused || self.is_stopping {
            return Ok(());
        }
        let (shard, connection) = (link.shard, link.connection);
        let core = &mut server.shards[shard];
        if link.to_server.arrived == 0 {
            if link.dead || !link.to_server.bytes.is_empty() {
                return Ok(());
            }
            if link.to_server.ended && self.rng.coin() {
                core.shard.on_end_of_input(now, connection, &mut core.out);
                self.after_shard(shard)?;
            } else if link.to_server.ended {
                link.server_gone = true;
                core.shard.on_closed(now, connection);
                self.network.forget_if_gone(id);
            }
            return Ok(());
        }
        let piece = link.to_server.read_piece(&mut self.rng);
        // A connection that ends speaks for nobody; it is looked at below in any case.
        let is_ending = core.shard.outgoing(connection).is_none_or(|it| it.close.is_some());
        if let Some(session) = link.session.filter(|_| !is_ending) {
            self.checker.on_heard(now, session);
        }
        core.shard.on_bytes(now, connection, &piece, &mut core.out);
        self.after_shard(shard)?;
        self.pump(shard, connection);
        self.schedule_to_server(id);
        Ok(())
    }

    fn on_to_client(&mut self, id: LinkId) -> Verdict {
        let Some(link) = self.network.find(id) else { return Ok(()) };
        link.to_client.scheduled = false;
        if link.client_gone || link.dead {
            return Ok(());
        }
        let client = link.client;
        if link.to_client.bytes.is_empty() {
            if link.to_client.ended {
                link.client_gone = true;
                link.to_server.ended = true;
                self.client_links[client] = None;
                self.clients[client].on_end(&mut self.checker);
                self.schedule_to_server(id);
                self.network.forget_if_gone(id);
            }
            return Ok(());
        }
        let piece = link.to_client.take_piece(&mut self.rng);
        let server_gone = link.server_gone;
        let (shard, connection) = (link.shard, link.connection);
        let core = self.server.as_mut().map(|server| &mut server.shards[shard]);
        // A connection that ends speaks for nobody.
        let is_ending = core
            .is_none_or(|core| core.shard.outgoing(connection).is_none_or(|it| it.close.is_some()));
        let is_watched = link.look.is_some() && !server_gone && !is_ending;
        if let Some(session) = link.session.filter(|_| is_watched) {
            // It is not read from: that it takes something counts.
            self.checker.on_heard(self.now(), session);
        }
        if server_gone && self.server.is_none() {
            self.checker.marks.insert("reply arrived after the crash");
        }
        let fingerprint = piece
            .iter()
            .fold(0, |hash: u64, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        self.note(fingerprint);
        self.clients[client].on_bytes(self.now_us, &piece, &mut self.checker)?;
        self.send(client);
        self.schedule_to_client(id);
        if !server_gone {
            self.pump(shard, connection);
            self.after_shard(shard)?;
        }
        Ok(())
    }

    /// Writes what a connection has to say, as far as its client takes it, and ends it once it
    /// has to.
    fn pump(&mut self, shard: usize, connection: ConnectionId) {
        let now = self.now();
        let Some(id) = self.network.of_connection(shard, connection) else { return };
        loop {
            let Some(server) = &mut self.server else { return };
            let core = &mut server.shards[shard];
            let Some(outgoing) = core.shard.outgoing(connection) else { return };
            let link = self.network.find(id).expect("just found");
            let room = self.plan.window_bytes.saturating_sub(link.to_client.bytes.len());
            let mut count = outgoing.bytes.len().min(room);
            if count < outgoing.bytes.len() {
                self.checker.marks.insert("client slow to read");
            } else if 1 < count && self.rng.chance(100) {
                count = self.rng.between(1, count as i64) as usize;
            }
            let is_all = count == outgoing.bytes.len();
            let (close, wants_read) = (outgoing.close, outgoing.wants_read);
            link.to_server.paused = !wants_read;
            if !wants_read {
                self.checker.marks.insert("connection not read from");
                // What waits there already was never heard.
                let heard = link.to_server.arrived_ever - link.to_server.arrived as u64;
                link.look.get_or_insert((heard, link.to_client.taken_ever));
            }
            link.send_to_client(&outgoing.bytes[..count]);
            if 0 < count {
                core.shard.on_written(now, connection, count, &mut core.out);
            }
            let ends = match close {
                Some(Close::AtOnce) => {
                    link.to_client.break_off(&mut self.rng);
                    true
                }
                Some(Close::AfterFlush) => is_all,
                None => false,
            };
            if ends {
                link.to_client.ended = true;
                link.server_gone = true;
                link.to_server.clear();
                core.shard.on_closed(now, connection);
            }
            self.schedule_to_client(id);
            if ends {
                self.network.forget_if_gone(id);
                return;
            }
            if count == 0 {
                self.schedule_to_server(id);
                return;
            }
        }
    }

    // ---- shards and the pipeline ------------------------------------------------------------

    /// Does what a shard's last step asked for.
    fn after_shard(&mut self, shard: usize) -> Verdict {
        loop {
            let Some(server) = &mut self.server else { return Ok(()) };
            let core = &mut server.shards[shard];
            require!(core.out.words.is_empty(), "a four-letter word that nobody asked");
            let ready = mem::take(&mut core.out.ready);
            if ready.is_empty() {
                break;
            }
            for connection in ready {
                self.pump(shard, connection);
            }
        }
        let life = self.life;
        let Some(server) = &mut self.server else { return Ok(()) };
        let core = &mut server.shards[shard];
        let sends = !core.out.requests.is_empty() && !mem::replace(&mut core.sends, true);
        let writes_later =
            !core.out.later.is_empty() && !mem::replace(&mut core.writes_later, true);
        let takes_turn = core.shard.has_work() && !mem::replace(&mut core.takes_turn, true);
        if sends {
            self.after(0, self.plan.mesh_us, Event::ShardSends { life, shard });
        }
        if takes_turn {
            self.checker.marks.insert("work left for the next turn");
            self.after(0, self.plan.mesh_us, Event::ShardTurn { life, shard });
        }
        if writes_later {
            self.after(0, self.plan.mesh_us, Event::ShardWritesLater { life, shard });
        }
        Ok(())
    }

    fn on_shard_writes_later(&mut self, shard: usize) -> Verdict {
        let core = &mut self.server.as_mut().expect("a life has a server").shards[shard];
        core.writes_later = false;
        for connection in mem::take(&mut core.out.later) {
            self.pump(shard, connection);
        }
        self.after_shard(shard)
    }

    fn on_shard_turn(&mut self, shard: usize) -> Verdict {
        let now = self.now();
        let core = &mut self.server.as_mut().expect("a life has a server").shards[shard];
        core.takes_turn = false;
        core.shard.on_turn(now, &mut core.out);
        self.after_shard(shard)
    }

    fn on_shard_sends(&mut self, shard: usize) -> Verdict {
        let core = &mut self.server.as_mut().expect("a life has a server").shards[shard];
        core.sends = false;
        if core.out.requests.is_empty() {
            // They went before a report.
            return Ok(());
        }
        let empty = Requests::new(ShardId(shard as u16));
        let requests = mem::replace(&mut core.out.requests, empty);
        core.to_pipeline.push_back(FromShard::Requests(requests));
        let life = self.life;
        self.after(0, self.plan.mesh_us, Event::PipelineTakes { life, shard });
        Ok(())
    }

    /// A tick waits for what has arrived before it, or speaks of the time before that.
    fn on_shard_tick(&mut self, shard: usize) -> Verdict {
        let (life, now) = (self.life, self.now());
        if self.is_stopping {
            // Nothing is read any more, so nobody can be known to be silent.
            self.after_tick(Event::ShardTick { life, shard });
            return Ok(());
        }
        let links = self.network.of_shard(shard);
        let mut unread_us = None;
        for &id in &links {
            let stream = &self.network.find(id).expect("just listed").to_server;
            if 0 < stream.arrived && !stream.paused {
                let since_us = stream.arrived_us;
                unread_us = Some(unread_us.map_or(since_us, |us: i64| us.min(since_us)));
            }
        }
        let core = &mut self.server.as_mut().expect("a life has a server").shards[shard];
        let due_ms = core.due_tick_ms.get_or_insert(now.monotonic_ms);
        let as_of_ms = match unread_us {
            Some(_) if self.rng.coin() => {
                self.after(1, 100, Event::ShardTick { life, shard });
                return Ok(());
            }
            Some(since_us) => (since_us / 1000 + self.monotonic_offset_ms - 1).min(*due_ms),
            None => *due_ms,
        };
        if as_of_ms + self.plan.tick_ms / 2 < now.monotonic_ms {
            self.checker.marks.insert("tick of a time before what is unread");
        }
        core.due_tick_ms = None;
        let mut watched = Vec::new();
        for id in links {
            let link = self.network.find(id).expect("just listed");
            let look = (link.to_server.arrived_ever, link.to_client.taken_ever);
            if link.look.is_some_and(|before| before != look) {
                self.checker.marks.insert("sign of life of a connection not read from");
                core.shard.on_sign_of_life(now, link.connection, &mut core.out);
            }
            link.look = link.look.and(link.to_server.paused.then_some(look));
            let is_open = core.shard.outgoing(link.connection).is_some_and(|it| it.close.is_none());
            if let Some(session) = link.session.filter(|_| is_open && !link.client_gone) {
                watched.push((link.connection, session));
            }
        }
        core.shard.on_tick(now, as_of_ms, &mut core.out);
        for (connection, session) in watched {
            if core.shard.outgoing(connection).is_some_and(|it| it.close.is_some()) {
                self.checker.check_silence(now, session, SILENCE_SLACK_MS)?;
            }
        }
        // A report goes behind the requests that were read before it: they may bring back whom it
        // does not name.
        self.on_shard_sends(shard)?;
        let core = &mut self.server.as_mut().expect("a life has a server").shards[shard];
        if let Some(touched) = core.out.touched.take() {
            core.to_pipeline.push_back(FromShard::Touched(touched));
            self.after(0, self.plan.mesh_us, Event::PipelineTakes { life, shard });
        }
        self.after_tick(Event::ShardTick { life, shard });
        self.after_shard(shard)
    }

    fn on_pipeline_takes(&mut self, shard: usize) -> Verdict {
        let now = self.now();
        let core = &mut self.server.as_mut().expect("a life has a server").shards[shard];
        match core.to_pipeline.pop_front().expect("one event for each") {
            FromShard::Requests(requests) => {
                for request in &requests.requests {
                    if let Want::Resume { timeout_ms, last_zxid_seen, password } = request.want {
                        let (session, seen) = (request.session.0, last_zxid_seen.0);
                        self.checker.on_resume(now, session, timeout_ms, seen, &password);
                    }
                }
                self.step(Input::Requests(&requests))
            }
            FromShard::Touched(touched) => {
                for &(session, heard_ms) in &touched.heard {
                    self.checker.on_touch(heard_ms, session.0);
                }
                self.step(Input::Touched(&touched))
            }
        }
    }

    fn on_shard_takes(&mut self, shard: usize) -> Verdict {
        let now = self.now();
        let core = &mut self.server.as_mut().expect("a life has a server").shards[shard];
        let applied = core.to_shard.pop_front().expect("one event for each");
        core.shard.on_applied(now, &applied, &mut core.out);
        self.after_shard(shard)
    }

    fn step(&mut self, input: Input<'_>) -> Verdict {
        let now = self.now();
        let Some(Server { pipeline, out, .. }) = &mut self.server else { return Ok(()) };
        pipeline.step(now, input, out);
        self.act()
    }

    /// Does what the pipeline's last step asked for.
    fn act(&mut self) -> Verdict {
        let now = self.now();
        let log_now = self.log_now();
        let (life, mesh_us) = (self.life, self.plan.mesh_us);
        let Some(server) = &mut self.server else { return Ok(()) };
        let appends = mem::take(&mut server.out.appends);
        let applied = mem::take(&mut server.out.applied);
        for append in appends {
            self.checker.on_append(now, &append.records)?;
            if let Err(error) = server.log.append(log_now, &mut self.disk, append) {
                return self.on_disk_error(error);
            }
        }
        for batch in applied {
            let (log, disk, sight) = (&server.log, &self.disk, self.sight);
            self.checker.on_released(batch.zxid.0, |zxid| match sight {
                Sight::Everything => is_durable(log, disk, zxid),
                Sight::NotTheDisk => Ok(()),
            })?;
            for (shard, core) in server.shards.iter_mut().enumerate() {
                core.to_shard.push_back(Arc::clone(&batch));
                let at = self.now_us + self.rng.between(0, mesh_us);
                self.sequence += 1;
                self.queue.insert((at, self.sequence), Event::ShardTakes { life, shard });
            }
        }
        let goes_on = server.pipeline.has_work() && !mem::replace(&mut server.goes_on, true);
        if let Some(job) = server.out.snapshot.take() {
            server.saving = Some(Saving::Asked(job));
            self.after(0, 100_000, Event::SnapshotStep { life });
        }
        if goes_on {
            self.after(0, mesh_us, Event::PipelineGoesOn { life });
        }
        self.begin_round();
        Ok(())
    }

    fn begin_round(&mut self) {
        let (life, now) = (self.life, self.log_now());
        let Some(server) = &mut self.server else { return };
        if server.log.begin_round(now) {
            self.after_disk(Event::LogStep { life });
        } else if let Some(left) = server.log.gathers(now) {
            self.checker.marks.insert("sync put off for more records");
            let left_us = left.as_micros() as i64;
            self.after(left_us, left_us, Event::RoundIsDue { life });
        }
    }

    /// The time as the log counts it.
    fn log_now(&self) -> Duration {
        Duration::from_micros(self.now_us.cast_unsigned())
    }

    fn after_disk(&mut self, event: Event) {
        let slow_us = if self.slow_disk { 1_500_000 } else { self.plan.sync_us };
        self.after(10, slow_us, event);
    }

    // ---- the disk ---------------------------------------------------------------------------

    fn on_log_step(&mut self) -> Verdict {
        let (life, now) = (self.life, self.log_now());
        let server = self.server.as_mut().expect("a life has a server");
        match server.log.advance(now, &mut self.disk, &mut self.checker.marks) {
            Ok(None) => {
                self.after_disk(Event::LogStep { life });
                Ok(())
            }
            Ok(Some(Some(zxid))) => self.step(Input::Synced(zxid)),
            Ok(Some(None)) => {
                self.begin_round();
                Ok(())
            }
            Err(error) => self.on_disk_error(error),
        }
    }

    fn on_keeper_wakes(&mut self) -> Verdict {
        let (life, now) = (self.life, self.log_now());
        self.after(100_000, 1_000_000, Event::KeeperWakes { life });
        let server = self.server.as_mut().expect("a life has a server");
        if let Err(error) = server.log.keep(now, &mut self.disk) {
            return self.on_disk_error(error);
        }
        // Records may have waited for the room.
        self.begin_round();
        // Now and then an operator wants a snapshot.
        if self.rng.chance(100) { self.step(Input::SnapshotAsked) } else { Ok(()) }
    }

    fn on_snapshot_step(&mut self) -> Verdict {
        let life = self.life;
        match self.save_some() {
            Ok(true) => {
                self.after_disk(Event::SnapshotStep { life });
                Ok(())
            }
            Ok(false) => self.step(Input::SnapshotEnded),
            Err(DiskError::Full) => {
                self.checker.marks.insert("no room for a snapshot");
                let temporary = snapshot_path(TEMPORARY_SNAPSHOT);
                if self.disk.find(&temporary).is_some()
                    && let Err(error) = self.disk.unlink(&temporary)
                {
                    return self.on_disk_error(error);
                }
                self.step(Input::SnapshotEnded)
            }
            Err(error) => self.on_disk_error(error),
        }
    }

    /// The next piece of work for a snapshot; false once there is none.
    fn save_some(&mut self) -> Result<bool, DiskError> {
        let mutant = self.disk_mutant();
        let server = self.server.as_mut().expect("a life has a server");
        let disk = &mut self.disk;
        let temporary = snapshot_path(TEMPORARY_SNAPSHOT);
        let next = match server.saving.take().expect("a snapshot is under way") {
            Saving::Asked(job) => {
                if job.zxid < server.pipeline.tree().published() {
                    self.checker.marks.insert("snapshot under writes");
                }
                let name = storage::snapshot_name(job.zxid, self.plan.compression);
                if is_there(disk, &name) {
                    return Ok(false);
                }
                let bytes = snapshot_bytes(&job, self.plan.compression, self.plan.with_zxid);
                let file = disk.create(&temporary)?;
                Saving::Writing { file, bytes, at: 0, name, zxid: job.zxid }
            }
            Saving::Writing { file, bytes, at, name, zxid } if at < bytes.len() => {
                let end = bytes.len().min(at + SNAPSHOT_CHUNK_BYTES);
                disk.write_new(file, at, &bytes[at..end])?;
                Saving::Writing { file, bytes, at: end, name, zxid }
            }
            Saving::Writing { file, name, zxid, .. } => {
                let syncing = match mutant {
                    Some(DiskMutant::SnapshotNotSynced) => None,
                    _ => Some(disk.begin_sync(file)?),
                };
                Saving::Syncing { syncing, name, zxid }
            }
            Saving::Syncing { syncing, name, zxid } => {
                if let Some(syncing) = syncing {
                    disk.end_sync(syncing)?;
                }
                disk.rename(&temporary, &snapshot_path(&name))?;
                Saving::Named { zxid }
            }
            Saving::Named { zxid } => {
                disk.sync_directory(DIRECTORY)?;
                self.checker.marks.insert("snapshot taken");
                server.sound = server.sound.max(Some(zxid));
                return Ok(false);
            }
        };
        server.saving = Some(next);
        Ok(true)
    }

    fn on_purge(&mut self) -> Verdict {
        let life = self.life;
        let Some(every_us) = self.plan.purge_us else { return Ok(()) };
        self.after(every_us, every_us, Event::Purge { life });
        let server = self.server.as_mut().expect("a life has a server");
        let listing = Listing::new(self.plan.layout.list(&self.disk));
        let keep = Keep { loads: server.sound, committed: None };
        let valid = |file: &SnapshotFile| is_quick_valid(&self.disk, file);
        let names = listing.purgeable(self.plan.retain, valid, keep);
        let mut names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        if self.disk_mutant() == Some(DiskMutant::PurgeTooMuch) {
            let logs = listing.logs().iter().rev().skip(1);
            names = logs.map(|log| log.name.clone()).collect();
        }
        for name in names {
            if let Err(error) = self.disk.unlink(&self.plan.layout.path_of(&name)) {
                return self.on_disk_error(error);
            }
            self.checker.marks.insert("file purged");
        }
        Ok(())
    }

    fn disk_mutant(&self) -> Option<DiskMutant> {
        match self.mutant {
            Some(Mutant::Disk(mutant)) => Some(mutant),
            _ => None,
        }
    }

    /// What the disk could not do ends the server, one way or the other.
    fn on_disk_error(&mut self, error: DiskError) -> Verdict {
        match error {
            DiskError::Crashed => self.crash(self.fuse),
            DiskError::Full => {
                self.checker.marks.insert("no room for the log");
                self.crash(Crash::Kill)
            }
            DiskError::Io => {
                self.checker.marks.insert("stopped by a sync that failed");
                self.disk_has_lost = true;
                self.crash(Crash::Kill)
            }
        }
    }

    // ---- faults -----------------------------------------------------------------------------

    fn on_fault(&mut self) -> Verdict {
        if self.healed {
            return Ok(());
        }
        self.after(0, 2 * self.plan.fault_us, Event::Fault);
        if self.plan.faults.is_empty() {
            return Ok(());
        }
        match *self.rng.pick(&self.plan.faults) {
            Fault::Stop => {
                self.is_stopping = true;
                if let Some(server) = &mut self.server {
                    server.log.hurry();
                }
                self.begin_round();
            }
            Fault::Kill => return self.crash(Crash::Kill),
            Fault::PowerLoss => return self.crash(Crash::PowerLoss),
            Fault::KillAtStep => self.light_fuse(Crash::Kill),
            Fault::PowerLossAtStep => self.light_fuse(Crash::PowerLoss),
            Fault::Cut => self.cut_one(false),
            Fault::HalfOpen => self.cut_one(true),
            Fault::SyncError => self.disk.fail_next_sync = true,
            Fault::Full => {
                self.disk.is_full = true;
                self.after(10_000, 2_000_000, Event::SpaceIsBack);
            }
            Fault::SlowDisk => {
                self.slow_disk = true;
                self.after(10_000, 3_000_000, Event::DiskIsFast);
            }
            Fault::Stall => {
                let until_us = self.now_us + self.rng.between(10_000, 2_000_000);
                if let Some(server) = &mut self.server {
                    let shard = self.rng.index(server.shards.len());
                    if self.rng.coin() {
                        server.shards[shard].stalled_until_us = until_us;
                    } else {
                        // The whole process.
                        server.shards.iter_mut().for_each(|core| core.stalled_until_us = until_us);
                    }
                    self.checker.on_stall(until_us / 1000 + self.monotonic_offset_ms);
                }
            }
            Fault::WallJump => {
                let jump_ms = self.rng.between(-3_600_000, 3_600_000);
                self.wall_offset_ms += jump_ms;
                if jump_ms < 0 {
                    self.checker.marks.insert("wall clock set back");
                }
            }
            // These come with a crash.
            Fault::CrashInRecovery | Fault::DamagedSnapshot | Fault::TypesSwitched => {}
        }
        Ok(())
    }

    fn light_fuse(&mut self, crash: Crash) {
        self.fuse = crash;
        let steps = self.rng.mostly_small(0, 200) as u64;
        self.disk.light_fuse(steps);
    }

    fn cut_one(&mut self, silently: bool) {
        let ids = self.network.ids();
        if ids.is_empty() {
            return;
        }
        let id = *self.rng.pick(&ids);
        let link = self.network.find(id).expect("just listed");
        if silently {
            link.dead = true;
            self.checker.marks.insert("connection half open");
        } else {
            link.to_server.break_off(&mut self.rng);
            link.to_client.break_off(&mut self.rng);
            self.schedule_to_server(id);
            self.schedule_to_client(id);
        }
    }

    /// Ends in order, once nothing is under way.
    fn stop_if_done(&mut self) -> Verdict {
        if !self.is_stopping || !self.is_idle() {
            return Ok(());
        }
        let server = self.server.as_mut().expect("it is stopping");
        if let Err(error) = server.log.seal(&mut self.disk) {
            return self.on_disk_error(error);
        }
        self.checker.marks.insert("stopped in order");
        self.crash(Crash::Kill)
    }

    /// The server ends here.
    fn crash(&mut self, crash: Crash) -> Verdict {
        let Some(server) = self.server.take() else { return Ok(()) };
        self.life += 1;
        self.is_stopping = false;
        self.end_links();
        let had_lost = self.disk_has_lost;
        self.crash_disk(crash)?;
        if !had_lost && self.rng.chance(300) {
            self.harm_a_copy(crash, &server.log)?;
        }
        self.after(RESTART_US_MIN, 800_000, Event::Restart);
        Ok(())
    }

    /// What was acknowledged before a crash goes bad: one bit of a record, or its log as a whole. After
    /// a kill the watermark knows how far the log was synced, so that is never taken for a torn tail.
    /// After a power loss it may be behind, but it knows which log was written.
    fn harm_a_copy(&mut self, crash: Crash, log: &LogWriter) -> Verdict {
        let released = self.checker.released;
        let zxid = released - self.rng.mostly_small(0, 30);
        let Some((place, Some(file))) = log.place(zxid) else { return Ok(()) };
        let mut copy = self.disk.clone();
        copy.put_out_fuse();
        (copy.is_full, copy.fail_next_sync) = (false, false);
        if copy.find(&place.name) != Some(file) {
            return Ok(());
        }
        let broken = |error: DiskError| format!("{error:?} without a fault");
        copy.sync(file).map_err(broken)?;
        let harms: &[&str] = match crash {
            Crash::Kill => &["a bit flipped", "emptied", "gone"],
            Crash::PowerLoss => &["emptied", "gone"],
        };
        let harm = *self.rng.pick(harms);
        match harm {
            "a bit flipped" => {
                let at = place.start + self.rng.index(place.end - place.start);
                copy.flip(file, at, 1 << self.rng.below(8));
            }
            "emptied" => {
                copy.set_len(file, 0).and_then(|()| copy.sync(file)).map_err(broken)?;
            }
            _ => {
                let gone = copy.unlink(&place.name);
                gone.and_then(|()| copy.sync_directory(self.plan.layout.logs())).map_err(broken)?;
            }
        }
        let (settings, mutant) = (self.tree_settings(), self.disk_mutant());
        match recover(&mut copy, self.plan.layout, settings, mutant, &mut Marks::new()) {
            Err(Failure::Refused(_)) => {
                self.checker.marks.insert(match crash {
                    Crash::Kill => "damage after a kill refused",
                    Crash::PowerLoss => "log missed after a power loss",
                });
                Ok(())
            }
            Err(Failure::Setting) => Ok(()),
            Err(Failure::Disk(error)) => Err(broken(error)),
            Ok(recovered) => {
                let last = recovered.state.last.0;
                require!(
                    released <= last,
                    "P12: up to {released:#x} was acknowledged, {} is {harm} at {zxid:#x}, and {last:#x} is \
                     served",
                    place.name
                );
                Ok(())
            }
        }
    }

    fn crash_disk(&mut self, crash: Crash) -> Verdict {
        match crash {
            Crash::Kill => {
                self.disk.kill(&mut self.rng);
                self.check_zookeeper_opens()
            }
            Crash::PowerLoss => {
                let (torn, lost) = (self.disk.torn_pages, self.disk.lost_names);
                self.disk.lose_power(&mut self.rng);
                self.disk_has_lost = true;
                if torn < self.disk.torn_pages {
                    self.checker.marks.insert("page torn by a power loss");
                }
                if lost < self.disk.lost_names {
                    self.checker.marks.insert("name lost in a power loss");
                }
                self.monotonic_offset_ms = self.rng.between(0, 1 << 40);
                Ok(())
            }
        }
    }

    fn end_links(&mut self) {
        for id in self.network.ids() {
            let link = self.network.find(id).expect("just listed");
            if !link.server_gone {
                link.server_gone = true;
                link.to_server.clear();
                link.to_client.break_off(&mut self.rng);
            }
            self.schedule_to_client(id);
            self.network.forget_if_gone(id);
        }
    }

    /// What a kill leaves, ZooKeeper must be able to open.
    fn check_zookeeper_opens(&self) -> Verdict {
        if self.sight == Sight::NotTheDisk || self.disk_has_lost {
            return Ok(());
        }
        let layout = self.plan.layout;
        for (name, _) in self.disk.list(layout.logs()) {
            if name.starts_with("log.") {
                let bytes = self.disk.read_name(&layout.path_of(&name)).expect("just listed");
                read_as_zookeeper(bytes).map_err(|why| {
                    format!("P1: ZooKeeper could not open {name} after a kill: {why}")
                })?;
            }
        }
        Ok(())
    }

    fn on_restart(&mut self) -> Verdict {
        if self.server.is_some() {
            return Ok(());
        }
        if !self.healed {
            if self.plan.has(Fault::DamagedSnapshot) && self.rng.chance(300) {
                self.damage_a_snapshot();
            }
            if self.plan.has(Fault::TypesSwitched) && self.rng.chance(300) {
                self.extended_types = !self.extended_types;
            }
            if self.plan.has(Fault::CrashInRecovery) && self.rng.chance(600) {
                self.fuse = if self.rng.coin() { Crash::Kill } else { Crash::PowerLoss };
                let steps = self.rng.mostly_small(0, 30) as u64;
                self.disk.light_fuse(steps);
            }
        }
        let fuse = self.fuse;
        self.boot(Some(fuse))
    }

    /// One bit of the newest snapshot, if an older one can take its place.
    fn damage_a_snapshot(&mut self) {
        let listing = Listing::new(self.disk.list(DIRECTORY));
        let valid = |file: &&SnapshotFile| is_quick_valid(&self.disk, file);
        let names: Vec<String> =
            listing.snapshots().iter().filter(valid).map(|file| file.name.clone()).collect();
        let may = self.plan.retain > 1 && names.len() > 1 && !self.snapshot_damaged;
        if may {
            self.snapshot_damaged = true;
            let file = self.disk.find(&snapshot_path(&names[0])).expect("just listed");
            self.disk.flip_a_bit(file, &mut self.rng);
        }
    }

    // ---- beginning --------------------------------------------------------------------------

    /// Recovers and begins to serve; a crash on the way leads to the next attempt.
    fn boot(&mut self, fuse: Option<Crash>) -> Verdict {
        match self.try_boot() {
            Ok(()) => {
                self.crashes_in_recovery = 0;
                self.disk_has_lost = false;
                // A fuse that was meant for recovery and is still burning goes on burning.
                Ok(())
            }
            Err(Failure::Refused(why)) => Err(format!("P1: the server refuses to start: {why}")),
            Err(Failure::Setting) if self.extended_types => {
                Err("P1: the server misses a setting that it has".to_owned())
            }
            Err(Failure::Setting) => {
                self.checker.marks.insert("start without TTLs refused");
                self.extended_types = true;
                self.boot(fuse)
            }
            Err(Failure::Disk(error)) => {
                self.server = None;
                self.life += 1;
                self.crashes_in_recovery += 1;
                self.checker.marks.insert(match self.crashes_in_recovery {
                    1 => "crash in recovery",
                    _ => "crash in the recovery from a crash in recovery",
                });
                self.disk_has_lost |= error == DiskError::Io;
                let crash = match error {
                    DiskError::Crashed => fuse.unwrap_or(Crash::Kill),
                    DiskError::Full | DiskError::Io => Crash::Kill,
                };
                self.crash_disk(crash)?;
                self.after(RESTART_US_MIN, 300_000, Event::Restart);
                Ok(())
            }
        }
    }

    fn tree_settings(&self) -> tree::Settings {
        tree::Settings {
            types: ephemerals::Types { extended: self.extended_types, emulate_353: false },
            digest: self.plan.digests,
        }
    }

    /// Where history does not begin with the first zxid, there is a snapshot of what came before.
    fn begin_history(&mut self) {
        let zxid = self.plan.begins_at;
        if zxid == 0 {
            return;
        }
        let mut tree = TreeWriter::new(self.tree_settings());
        let job = SnapshotJob {
            zxid: Zxid(zxid),
            digest: self.plan.digests.then(|| tree.digest()),
            sessions: Vec::new(),
            acls: tree.acl_lists(),
            reader: tree.reader(),
        };
        self.save_at_once(&job).expect("the disk is not broken yet");
        self.checker.model.begin_at(zxid);
    }

    fn try_boot(&mut self) -> Result<(), Failure> {
        let refused = Failure::Refused;
        let (now, mutant) = (self.now(), self.disk_mutant());
        let settings = self.tree_settings();
        let layout = self.plan.layout;
        let marks = &mut self.checker.marks;
        let mut recovered = recover(&mut self.disk, layout, settings, mutant, marks)?;
        let last = recovered.state.last;
        self.checker.on_server_began(now, self.extended_types, self.plan.tick_ms);
        let reader = recovered.state.tree.reader();
        self.checker.on_recovered(last.0, &recovered.state.sessions, &reader).map_err(refused)?;
        drop(reader);
        if self.sight == Sight::Everything {
            self.checker.compare_logs(&self.disk, layout.logs(), last.0).map_err(refused)?;
        }
        self.recover_again(settings, last)?;

        let providers = Arc::new(Providers::default());
        let server_settings = pipeline::Settings {
            server: ServerId(1),
            shards: self.plan.shards,
            tick_ms: self.plan.tick_ms,
            providers: Arc::clone(&providers),
            skip_acl: false,
            enforce_quota: false,
            reconfig_enabled: false,
            close_session_lists_paths: self.plan.lists_paths,
            record_bytes_max: FIELD_BYTES_MAX,
            answer_bytes_max: 1 << 22,
            listed_per_step: 2,
            tree: settings,
            roll: self.plan.roll,
            reaper: self.plan.reaper,
            audit: None,
            seed: self.rng.next(),
            #[cfg(feature = "mutants")]
            mutant: match self.mutant {
                Some(Mutant::Pipeline(mutant)) => Some(mutant),
                _ => None,
            },
        };
        let mut pipeline = Pipeline::new(now, server_settings, recovered.state);
        let mut sound = recovered.snapshot;
        if sound.is_none() {
            let job = pipeline.snapshot_job();
            self.save_at_once(&job)?;
            sound = Some(job.zxid);
        }
        #[cfg_attr(not(feature = "mutants"), expect(unused_mut, reason = "for mutants only"))]
        let mut log = LogWriter::new(&mut self.disk, self.plan.journal, layout, last, mutant)?;
        #[cfg(feature = "mutants")]
        if let Some(Mutant::Journal(mutant)) = self.mutant {
            log.set_mutant(Some(mutant));
        }
        let shards = (0..self.plan.shards)
            .map(|shard| self.new_shard(shard, &providers, &mut pipeline))
            .collect();
        let out = pipeline::Output::default();
        self.server =
            Some(Server { pipeline, out, shards, log, saving: None, goes_on: false, sound });
        let life = self.life;
        for shard in 0..self.plan.shards {
            self.after_tick(Event::ShardTick { life, shard });
        }
        self.after_tick(Event::PipelineTick { life });
        self.after(100_000, 1_000_000, Event::KeeperWakes { life });
        if let Some(every_us) = self.plan.purge_us {
            self.after(0, every_us, Event::Purge { life });
        }
        let Some(Server { pipeline, out, .. }) = &mut self.server else {
            unreachable!("just made")
        };
        pipeline.start(now, out);
        self.act().map_err(refused)
    }

    fn new_shard(&mut self, id: usize, providers: &Arc<Providers>, of: &mut Pipeline) -> ShardCore {
        let id = ShardId(id as u16);
        let settings = shard::Settings {
            frame_bytes_max: 1 << 20,
            session_timeout_min_ms: (2 * self.plan.tick_ms) as i32,
            session_timeout_max_ms: (20 * self.plan.tick_ms) as i32,
            providers: Arc::clone(providers),
            skip_acl: false,
            sessionless_timeout_ms: 5_000,
            silence_slack_ms: SILENCE_SLACK_MS,
            outstanding_max: self.plan.outstanding_max,
            large_request_bytes: None,
            large_requests_bytes_max: usize::MAX,
            throttled_op_wait_ms: None,
            connect_throttle: None,
            input_bytes_max: self.plan.input_bytes_max,
            output_bytes_max: self.plan.output_bytes_max,
            output_bytes_ceiling: 1 << 22,
            answer_bytes_max: 1 << 22,
            answer_bytes: Allowance::new(1 << 28, 1, 1 << 20),
            watches_per_connection_max: 1 << 16,
            watches: Allowance::new(1 << 20, 1, 1 << 10),
            connection_turn: self.plan.turn,
            turn: TurnBudget { bytes: 2 * self.plan.turn.bytes, steps: 2 * self.plan.turn.steps },
            auth_bytes_max: 1 << 16,
            hash_seed: self.rng.next(),
            serves_at_birth: true,
        };
        #[cfg_attr(not(feature = "mutants"), expect(unused_mut, reason = "for mutants only"))]
        let mut shard = Shard::new(id, settings, of.reader());
        #[cfg(feature = "mutants")]
        if let Some(Mutant::Shard(mutant)) = self.mutant {
            shard.set_mutant(Some(mutant));
        }
        ShardCore {
            shard,
            out: shard::Output::new(id),
            to_pipeline: VecDeque::new(),
            to_shard: VecDeque::new(),
            sends: false,
            writes_later: false,
            takes_turn: false,
            stalled_until_us: 0,
            due_tick_ms: None,
        }
    }

    /// Recovering what was recovered changes nothing.
    fn recover_again(&self, settings: tree::Settings, last: Zxid) -> Result<(), Failure> {
        let mut copy = self.disk.clone();
        copy.put_out_fuse();
        copy.fail_next_sync = false;
        let again = recover(&mut copy, self.plan.layout, settings, None, &mut Marks::new())?;
        if again.state.last != last || again.cuts != 0 {
            let (found, cuts) = (again.state.last, again.cuts);
            let text = format!("recovered once up to {last}, twice up to {found} with {cuts} cuts");
            return Err(Failure::Refused(text));
        }
        Ok(())
    }

    /// A snapshot before anything is served.
    fn save_at_once(&mut self, job: &SnapshotJob) -> Result<(), DiskError> {
        let disk = &mut self.disk;
        let temporary = snapshot_path(TEMPORARY_SNAPSHOT);
        let bytes = snapshot_bytes(job, self.plan.compression, self.plan.with_zxid);
        let file = disk.create(&temporary)?;
        disk.write_new(file, 0, &bytes)?;
        disk.sync(file)?;
        let name = storage::snapshot_name(job.zxid, self.plan.compression);
        disk.rename(&temporary, &snapshot_path(&name))?;
        disk.sync_directory(DIRECTORY)
    }

    // ---- the end ----------------------------------------------------------------------------

    fn heal(&mut self) {
        self.healed = true;
        self.disk.put_out_fuse();
        self.disk.is_full = false;
        self.disk.fail_next_sync = false;
        self.slow_disk = false;
        self.plan.window_bytes = 1 << 20;
        if let Some(server) = &mut self.server {
            server.shards.iter_mut().for_each(|core| core.stalled_until_us = 0);
        } else {
            self.after(RESTART_US_MIN, 2 * RESTART_US_MIN, Event::Restart);
        }
        for id in self.network.ids() {
            let link = self.network.find(id).expect("just listed");
            if mem::take(&mut link.dead) {
                link.to_server.ended = true;
                link.to_client.ended = true;
                self.schedule_to_server(id);
                self.schedule_to_client(id);
            }
        }
        self.clients.iter_mut().for_each(Client::settle_down);
    }

    fn is_idle(&self) -> bool {
        self.server.as_ref().is_some_and(|server| {
            let is_idle = |core: &ShardCore| {
                core.to_shard.is_empty()
                    && core.to_pipeline.is_empty()
                    && !core.writes_later
                    && !core.takes_turn
            };
            server.log.is_idle()
                && server.shards.iter().all(is_idle)
                && self.network.is_idle()
                && self.checker.released == self.checker.model.last
        })
    }

    /// Everything is at rest: the same tree everywhere, no event missing, nobody's ephemerals; and
    /// the same once more from the disk.
    fn check_at_rest(&mut self) -> Verdict {
        for client in &mut self.clients {
            client.check_at_rest(&mut self.checker)?;
        }
        let server = self.server.as_mut().expect("nothing ends it any more");
        let last = Zxid(self.checker.model.last);
        for core in &server.shards {
            require!(core.shard.view() == last, "P6: a shard stays at {}", core.shard.view());
            if let Some(broken) = core.shard.broken_invariant() {
                return Err(format!("a shard's invariant is broken: {broken}"));
            }
        }
        self.checker.compare_tree(&server.pipeline.reader())?;
        let (found, expected) = (server.pipeline.tree().digest(), self.checker.model.digest());
        require!(
            !self.plan.digests || found == expected,
            "P9: the digest at rest is {found:#x}, which had to be {expected:#x}"
        );
        let tracked: BTreeSet<i64> = server.pipeline.sessions().map(|of| of.session.0).collect();
        let logged: BTreeSet<i64> = self.checker.model.sessions().keys().copied().collect();
        require!(tracked == logged, "P9: sessions {tracked:x?} live, logged are {logged:x?}");
        for (path, node) in self.checker.model.nodes() {
            let owner = self.checker.model.session_of(node);
            require!(
                owner.is_none_or(|owner| logged.contains(&owner)),
                "P9c: {path} belongs to {owner:x?}, which is over"
            );
        }
        self.server = None;
        self.life += 1;
        self.end_links();
        let crash = if self.rng.coin() { Crash::Kill } else { Crash::PowerLoss };
        self.crash_disk(crash)?;
        self.boot(None)?;
        require!(
            self.checker.model.last >= last.0 && self.server.is_some(),
            "P1: recovered once more up to {:#x}, there was {last}",
            self.checker.model.last
        );
        Ok(())
    }
}

fn is_durable(log: &LogWriter, disk: &Disk, zxid: i64) -> Verdict {
    let (place, file) = log.place(zxid).ok_or("it waits to be stored")?;
    let file = file.ok_or("its log has no name yet")?;
    // A snapshot has taken its place.
    if disk.find(&place.name) != Some(file) {
        return Ok(());
    }
    require!(disk.is_name_durable(&place.name, file), "{} is no durable name", place.name);
    require!(
        disk.is_durable(file, place.start..place.end),
        "bytes {} to {} of {}",
        place.start,
        place.end,
        place.name
    );
    Ok(())
}

fn snapshot_path(name: &str) -> String {
    format!("{DIRECTORY}/{name}")
}

fn is_there(disk: &Disk, name: &str) -> bool {
    let Some(bytes) = disk.read_name(&snapshot_path(name)) else { return false };
    let listing = Listing::new([(name.to_owned(), bytes.len() as u64)]);
    listing.snapshots().iter().any(|file| is_quick_valid(disk, file))
}

fn snapshot_bytes(job: &SnapshotJob, compression: Compression, with_zxid: bool) -> Vec<u8> {
    let writer = SnapshotWriter::new(Encoder::new(Vec::new(), compression));
    let out = job.write(writer, with_zxid).and_then(Encoder::finish);
    out.expect("memory takes everything")
}
