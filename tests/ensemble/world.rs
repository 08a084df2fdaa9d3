//! Servers, disks, the network between them, and time, in one thread.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use ringkeeper::ensemble::Ensemble;
use ringkeeper::exchange::{Applied, ConnectionId, Item, Requests, Serves, ShardId, Touched, Want};
use ringkeeper::pipeline::{
    ALL_PUBLISHED, Input, LinkInput, LocalSessions, MemberStart, OnMismatch, Output, Pipeline,
    ReaperSettings, RollSettings, Settings, SnapshotJob, ToLink,
};
use ringkeeper::record::code::Code;
use ringkeeper::record::op::code;
use ringkeeper::record::quorum::{
    FromLeader, FromLearner, PacketPiece, PacketSender, PacketStream,
};
use ringkeeper::storage::replay::read_payload;
use ringkeeper::storage::snapshot::SnapshotWriter;
use ringkeeper::storage::txnlog;
use ringkeeper::tree;
use ringkeeper::types::{Now, ServerId, Xid, Zxid};
use ringkeeper::zab::election::{self, Notification};
use ringkeeper::zab::history::Cache;
use ringkeeper::zab::leader::{Span, write_committed};
use ringkeeper::zab::peer::Start;
use ringkeeper::zab::proposals::Proposal;
use ringkeeper::zab::voters::Voters;
use ringkeeper::zab::{self, Durable, LinkId};

use crate::check::History;
use crate::clients::{Client, State};
use crate::disk::{Disk, Job};
use crate::rng::Rng;

const ZAB: zab::Settings = zab::Settings {
    tick_ms: 200,
    init_limit: 10,
    sync_limit: 5,
    received_bytes_max: 1 << 20,
    unsynced_bytes_max: 1 << 20,
    counters_from: 0,
    #[cfg(feature = "mutants")]
    mutant: None,
};
const TICK_MS: i64 = 200;
const FAULTS_END_MS: i64 = 15_000;
/// After the last fault, all is at rest within this.
const CALM_MS_MAX: i64 = 60_000;
const RECORD_BYTES_MAX: usize = 64 << 10;
const SHARD: ShardId = ShardId(0);
/// One life of a server.
type Life = (ServerId, u32);

#[derive(Debug)]
enum Event {
    Tick(Life),
    Time(Life),
    Told {
        to: Life,
        from: ServerId,
        notification: Notification,
    },
    ElectionRefused {
        to: Life,
        server: ServerId,
    },
    /// A call of the quorum port arrives.
    Calls {
        from: Life,
        to: ServerId,
    },
    Reached {
        link: LinkId,
    },
    CallFailed {
        to: Life,
        server: ServerId,
    },
    Bytes {
        link: LinkId,
        side: usize,
        bytes: Arc<[u8]>,
    },
    /// A snapshot's body, as a file.
    Snapshot {
        link: LinkId,
        zxid: Zxid,
        file: Arc<[u8]>,
    },
    SnapshotLost(Life),
    /// A leader has looked for a part of the history in its log.
    Looked {
        link: LinkId,
        span: Span,
    },
    /// A leader has handed over all of a snapshot, or of what its log has.
    Streamed {
        link: LinkId,
    },
    Closed {
        link: LinkId,
        side: usize,
    },
    /// The first so many jobs of a disk are done.
    Done {
        at: Life,
        count: usize,
    },
    ClientWakes(usize),
    /// A client's bytes arrive.
    Asked {
        to: Life,
        requests: Requests,
    },
    Fault,
    Starts(ServerId),
}

struct Server {
    pipeline: Pipeline,
    jobs: VecDeque<Job>,
    is_busy: bool,
    /// The log with what is on its way: the state that the server has.
    log: Vec<Proposal>,
    shown: Zxid,
    serves: bool,
    /// A leader's snapshot is expected on the link to it.
    loads: Option<(LinkId, Zxid)>,
    next_connection: u32,
    /// Whose connections are open.
    connections: BTreeMap<u32, usize>,
    due_ms: Option<i64>,
}

/// A connection of the quorum port; of its two sides, the learner's is the first.
struct Link {
    sides: [Life; 2],
    is_open: [bool; 2],
    streams: [PacketStream; 2],
    /// A cut has swallowed something: nothing passes any more.
    is_broken: bool,
    arrives_ms: [i64; 2],
}

const LEARNER: usize = 0;
const LEADER: usize = 1;

struct World {
    rng: Rng,
    now: Now,
    is_traced: bool,
    voters: Arc<Voters>,
    observers: BTreeSet<ServerId>,
    disks: BTreeMap<ServerId, Disk>,
    running: BTreeMap<ServerId, Server>,
    lives: BTreeMap<ServerId, u32>,
    links: BTreeMap<LinkId, Link>,
    clients: Vec<Client>,
    events: BTreeMap<(i64, u64), Event>,
    made: u64,
    told_ms: BTreeMap<(ServerId, ServerId), i64>,
    client_ms: BTreeMap<usize, i64>,
    cuts: BTreeSet<(ServerId, ServerId)>,
    delay_ms_max: i64,
    sync_ms_max: i64,
    history_max: usize,
    history: History,
    digest: DefaultHasher,
    is_calm: bool,
    /// The last zxid that any client was answered with.
    answered: Zxid,
    /// Of each client's sync: what any client had been answered with before it was asked.
    before_sync: BTreeMap<(usize, Xid), Zxid>,
    #[cfg(feature = "mutants")]
    mutant: Option<ringkeeper::pipeline::Mutant>,
}

/// Runs a seed and says which marks it has reached.
pub(crate) fn run(seed: u64) -> BTreeSet<&'static str> {
    run_with_digest(seed).0
}

pub(crate) fn run_with_digest(seed: u64) -> (BTreeSet<&'static str>, u64) {
    go_through(World::new(seed))
}

/// The same with a seeded bug in every server.
#[cfg(feature = "mutants")]
pub(crate) fn run_mutant(
    seed: u64,
    mutant: Option<ringkeeper::pipeline::Mutant>,
) -> (BTreeSet<&'static str>, u64) {
    go_through(World { mutant, ..World::new(seed) })
}

fn go_through(mut world: World) -> (BTreeSet<&'static str>, u64) {
    world.begin();
    world.go_on_until(|world| FAULTS_END_MS <= world.now.monotonic_ms);
    world.calm_down();
    let end_ms = world.now.monotonic_ms + CALM_MS_MAX;
    world.go_on_until(|world| {
        end_ms <= world.now.monotonic_ms || (world.is_at_rest() && world.clients_are_away())
    });
    world.judge_rest();
    (std::mem::take(&mut world.history.marks), world.digest.finish())
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = Rng::new(seed);
        let count = *rng.pick(&[1, 2, 3, 3, 3, 3, 3, 5]);
        let observer_count = *rng.pick(&[0, 0, 1]);
        let member = |id| {
            let value = if id <= count { "h:1:2" } else { "h:1:2:observer" };
            (format!("server.{id}"), value)
        };
        let lines: Vec<_> = (1..=count + observer_count).map(member).collect();
        let lines = lines.iter().map(|(key, value)| (key.as_str(), *value));
        let ensemble = Ensemble::parse(lines, false).unwrap();
        let client_count = rng.between(1, 5) as usize;
        World {
            now: Now { monotonic_ms: 0, wall_ms: 1_700_000_000_000 },
            is_traced: std::env::var("TRACE").is_ok(),
            voters: Arc::new(Voters::new(Arc::new(ensemble), None)),
            observers: (count + 1..=count + observer_count).map(ServerId).collect(),
            disks: (1..=count + observer_count).map(|id| (ServerId(id), Disk::default())).collect(),
            running: BTreeMap::new(),
            lives: BTreeMap::new(),
            links: BTreeMap::new(),
            clients: (0..client_count).map(|number| Client::new(number, &mut rng)).collect(),
            events: BTreeMap::new(),
            made: 0,
            told_ms: BTreeMap::new(),
            client_ms: BTreeMap::new(),
            cuts: BTreeSet::new(),
            delay_ms_max: *rng.pick(&[1, 5, 50]),
            sync_ms_max: *rng.pick(&[1, 10, 100]),
            history_max: *rng.pick(&[1, 5, 500]),
            history: History::default(),
            digest: DefaultHasher::new(),
            is_calm: false,
            answered: Zxid::ZERO,
            before_sync: BTreeMap::new(),
            #[cfg(feature = "mutants")]
            mutant: None,
            rng,
        }
    }

    fn trace(&self, text: impl FnOnce() -> String) {
        if self.is_traced {
            println!("{:>6} {}", self.now.monotonic_ms, text());
        }
    }

    fn at_ms(&mut self, at_ms: i64, event: Event) {
        self.made += 1;
        self.events.insert((at_ms, self.made), event);
    }

    fn after_ms(&mut self, most_ms: i64) -> i64 {
        self.now.monotonic_ms + self.rng.between(0, most_ms)
    }

    fn in_order(&mut self, after_ms: i64) -> i64 {
        after_ms.max(self.after_ms(self.delay_ms_max))
    }

    fn is_cut(&self, one: ServerId, other: ServerId) -> bool {
        self.cuts.contains(&(one.min(other), one.max(other)))
    }

    fn life(&self, id: ServerId) -> Life {
        (id, self.lives.get(&id).copied().unwrap_or(0))
    }

    fn is_alive(&self, (id, life): Life) -> bool {
        self.running.contains_key(&id) && self.lives.get(&id) == Some(&life)
    }

    fn begin(&mut self) {
        for id in self.disks.keys().copied().collect::<Vec<_>>() {
            let at_ms = self.rng.mostly_small(0, 3_000);
            self.at_ms(at_ms, Event::Starts(id));
        }
        for client in 0..self.clients.len() {
            let at_ms = self.rng.between(0, 2_000);
            self.at_ms(at_ms, Event::ClientWakes(client));
        }
        let at_ms = self.rng.between(500, 4_000);
        self.at_ms(at_ms, Event::Fault);
    }

    fn go_on_until(&mut self, is_over: impl Fn(&World) -> bool) {
        while !is_over(self) {
            let Some(((at_ms, _), event)) = self.events.pop_first() else { return };
            self.now.wall_ms += at_ms - self.now.monotonic_ms;
            self.now.monotonic_ms = at_ms;
            (at_ms, std::mem::discriminant(&event)).hash(&mut self.digest);
            self.happen(event);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick(at) => {
                if self.is_alive(at) {
                    self.tick(at.0);
                }
            }
            Event::Time(at) => {
                if self.is_alive(at) {
                    self.running.get_mut(&at.0).unwrap().due_ms = None;
                    self.step(at.0, Input::Time);
                }
            }
            Event::Told { to, from, notification } => {
                if self.is_alive(to) {
                    let input = LinkInput::Notification { from, notification };
                    self.step(to.0, Input::Link(input));
                }
            }
            Event::ElectionRefused { to, server } => {
                if self.is_alive(to) {
                    self.step(to.0, Input::Link(LinkInput::ElectionRefused(server)));
                }
            }
            Event::Calls { from, to } => self.connect_learner(from, to),
            Event::Reached { link } => {
                let [learner, leader] = self.links[&link].sides;
                if self.is_alive(learner) && self.links[&link].is_open[LEARNER] {
                    let input = LinkInput::LeaderReached { link, server: leader.0 };
                    self.step(learner.0, Input::Link(input));
                }
            }
            Event::CallFailed { to, server } => {
                if self.is_alive(to) {
                    self.step(to.0, Input::Link(LinkInput::LeaderRefused(server)));
                }
            }
            Event::Bytes { link, side, bytes } => self.on_bytes(link, side, &bytes),
            Event::Snapshot { link, zxid, file } => self.on_snapshot(link, zxid, file),
            Event::SnapshotLost(at) => {
                if self.is_alive(at) {
                    self.step(at.0, Input::SnapshotLost);
                }
            }
            Event::Looked { link, span: Span { after, .. } } => {
                let at = self.links[&link].sides[LEADER];
                if self.is_alive(at) {
                    let disk = &self.disks[&at.0];
                    let has_all = disk.log.iter().any(|proposal| proposal.zxid == after)
                        || disk.snapshot.as_ref().is_some_and(|(zxid, _)| *zxid == after);
                    let input = LinkInput::Looked { link, has_all };
                    self.step(at.0, Input::Link(input));
                }
            }
            Event::Streamed { link } => {
                let at = self.links[&link].sides[LEADER];
                if self.is_alive(at) {
                    self.step(at.0, Input::Link(LinkInput::Streamed(link)));
                }
            }
            Event::Closed { link, side } => self.on_closed(link, side),
            Event::Done { at, count } => {
                if self.is_alive(at) {
                    self.on_done(at.0, count);
                }
            }
            Event::ClientWakes(client) => self.on_client_wakes(client),
            Event::Asked { to, requests } => {
                // Also over a connection that the client has given up meanwhile.
                let slot = requests.requests[0].connection.slot;
                let is_open =
                    |server: &Server| server.serves && server.connections.contains_key(&slot);
                if self.is_alive(to) && is_open(&self.running[&to.0]) {
                    self.step(to.0, Input::Requests(&requests));
                }
            }
            Event::Fault => self.fault(),
            Event::Starts(id) => self.start(id),
        }
    }

    // ---- servers ----------------------------------------------------------------------------

    fn settings(&self, id: ServerId) -> Settings {
        Settings {
            server: id,
            shards: 1,
            tick_ms: TICK_MS,
            providers: Arc::default(),
            skip_acl: false,
            enforce_quota: false,
            reconfig_enabled: false,
            close_session_lists_paths: true,
            record_bytes_max: RECORD_BYTES_MAX,
            answer_bytes_max: 1 << 20,
            listed_per_step: 2,
            tree: tree::Settings::default(),
            roll: RollSettings::default(),
            reaper: ReaperSettings {
                check_interval_ms: 2_000,
                per_minute_max: 60_000,
                never_used_ms_max: 5_000,
            },
            audit: None,
            seed: 1,
            #[cfg(feature = "mutants")]
            mutant: self.mutant,
        }
    }

    /// A leader with a seeded bug writes digests that are not those of its tree.
    fn on_mismatch(&self) -> OnMismatch {
        #[cfg(feature = "mutants")]
        if self.mutant == Some(ringkeeper::pipeline::Mutant::SequenceGoesBack) {
            return OnMismatch::Count;
        }
        OnMismatch::Refuse
    }

    /// What is kept in memory of the history, and not published at a start.
    fn cache(&self) -> Cache {
        Cache { count_max: self.history_max, bytes_max: 1 << 20 }
    }

    fn start(&mut self, id: ServerId) {
        if self.running.contains_key(&id) {
            return;
        }
        let disk = &self.disks[&id];
        let base = disk.snapshot.as_ref().map_or(Zxid::ZERO, |(zxid, _)| *zxid);
        let cached = disk.log.len().saturating_sub(self.history_max);
        let before = disk.log[..cached].last().map_or(base, |last| last.zxid);
        let cache = self.cache();
        let mut history = zab::history::History::new(cache, before);
        disk.log[cached..].iter().for_each(|proposal| history.push(proposal.clone()));
        let restored = disk.restore(self.on_mismatch(), cache);
        let (last, log) = (restored.last, disk.log.clone());
        let start = MemberStart {
            peer: Start {
                me: id,
                settings: ZAB,
                election: election::Settings::default(),
                voters: Arc::clone(&self.voters),
                is_observer: self.observers.contains(&id),
                accepted: disk.accepted,
                current: disk.current,
                history,
                is_vouched_for: true,
            },
            cache,
            leader_serves: true,
            reads_alone: false,
            local_sessions: LocalSessions::Off,
            config: "version=0".into(),
            config_version: 0,
        };
        *self.lives.entry(id).or_default() += 1;
        self.trace(|| format!("{id} starts at {last}"));
        let pipeline = Pipeline::member(self.now, self.settings(id), restored, start);
        let shown = pipeline.tree().published();
        let server = Server {
            pipeline,
            jobs: VecDeque::new(),
            is_busy: false,
            log,
            shown,
            serves: false,
            loads: None,
            next_connection: 0,
            connections: BTreeMap::new(),
            due_ms: None,
        };
        self.running.insert(id, server);
        let mut out = Output::default();
        self.running.get_mut(&id).unwrap().pipeline.start(self.now, &mut out);
        self.carry_out(id, out);
        let at = self.life(id);
        self.at_ms(self.now.monotonic_ms + TICK_MS / 2, Event::Tick(at));
    }

    /// Ends a process or its machine.
    fn stop(&mut self, id: ServerId) {
        let Some(server) = self.running.remove(&id) else { return };
        self.trace(|| format!("{id} stops"));
        let kept = self.rng.index(server.jobs.len() + 1);
        self.disks.get_mut(&id).unwrap().take_some(server.jobs, kept);
        let life = self.life(id);
        for link in self.links.keys().copied().collect::<Vec<_>>() {
            for side in [LEARNER, LEADER] {
                if self.links[&link].sides[side] == life {
                    self.close(link, side);
                }
            }
        }
        for (_, client) in server.connections {
            self.lose(client, life);
        }
    }

    fn lose(&mut self, client: usize, at: Life) {
        let client = &mut self.clients[client];
        if client.at.is_some_and(|(its, _)| its == at) {
            client.lose_connection();
        }
    }

    fn step(&mut self, id: ServerId, input: Input<'_>) {
        let mut out = Output::default();
        self.running.get_mut(&id).unwrap().pipeline.step(self.now, input, &mut out);
        self.carry_out(id, out);
    }

    fn tick(&mut self, id: ServerId) {
        let server = &self.running[&id];
        let life = self.life(id);
        let heard = server
            .connections
            .values()
            .map(|client| &self.clients[*client])
            .filter(|client| client.state == State::Connected)
            .filter(|client| client.at.is_some_and(|(at, _)| at == life))
            .map(|client| (client.session, self.now.monotonic_ms))
            .collect();
        let touched = Touched { shard: SHARD, as_of_ms: self.now.monotonic_ms, heard };
        self.step(id, Input::Touched(&touched));
        if self.is_alive(life) {
            self.step(id, Input::Tick);
            self.at_ms(self.now.monotonic_ms + TICK_MS / 2, Event::Tick(life));
        }
    }

    fn carry_out(&mut self, id: ServerId, out: Output) {
        let life = self.life(id);
        let server = self.running.get_mut(&id).unwrap();
        if 0 < server.pipeline.take_counts().digest_mismatches {
            self.history.mark("a server distrusts its data");
        }
        for append in out.appends {
            let mut records = &append.records[..];
            while !records.is_empty() {
                let bytes = txnlog::first_record_bytes(records);
                let (record, rest) = records.split_at(bytes);
                let payload: Arc<[u8]> = txnlog::payload_of(record).into();
                let zxid = Zxid(read_payload(&payload).unwrap().0.zxid);
                let proposal = Proposal { zxid, payload };
                server.log.push(proposal.clone());
                server.jobs.push_back(Job::Append(proposal));
                records = rest;
            }
        }
        server.jobs.extend(out.stores.into_iter().map(Job::Store));
        server.loads = out.loads.or(server.loads);
        self.work(id);
        for batch in out.applied {
            self.show(id, &batch);
        }
        match out.serves {
            Some(Serves::Clients { .. }) => {
                self.trace(|| format!("{id} serves"));
                self.running.get_mut(&id).unwrap().serves = true;
                let state = self.running[&id].pipeline.notification().unwrap().state;
                self.history.mark(match state {
                    zab::vote::PeerState::Leading => "a leader serves",
                    zab::vote::PeerState::Observing => "an observer serves",
                    _ => "a follower serves",
                });
            }
            Some(Serves::Nobody) => {
                self.trace(|| format!("{id} serves nobody"));
                let server = self.running.get_mut(&id).unwrap();
                server.serves = false;
                for (_, client) in std::mem::take(&mut server.connections) {
                    self.lose(client, life);
                }
            }
            None => {}
        }
        for to_link in out.to_links {
            self.carry_out_link(id, to_link);
        }
        let due_ms = self.running[&id].pipeline.deadline().map(|at| at.0);
        let server = self.running.get_mut(&id).unwrap();
        if let Some(due_ms) = due_ms
            && server.due_ms.is_none_or(|known| due_ms < known)
        {
            server.due_ms = Some(due_ms);
            self.at_ms(due_ms.max(self.now.monotonic_ms), Event::Time(life));
        }
    }

    fn carry_out_link(&mut self, id: ServerId, to_link: ToLink) {
        let life = self.life(id);
        match to_link {
            ToLink::Tell(to) => {
                if self.is_cut(id, to) {
                } else if self.running.contains_key(&to) {
                    let notification = self.running[&id].pipeline.notification().unwrap();
                    let last_ms = self.told_ms.get(&(id, to)).copied().unwrap_or(0);
                    let at_ms = self.in_order(last_ms);
                    self.told_ms.insert((id, to), at_ms);
                    let to = self.life(to);
                    self.at_ms(at_ms, Event::Told { to, from: id, notification });
                } else {
                    let at_ms = self.in_order(0);
                    self.at_ms(at_ms, Event::ElectionRefused { to: life, server: to });
                }
            }
            ToLink::Call(server) => {
                let at_ms = self.in_order(0);
                self.at_ms(at_ms, Event::Calls { from: life, to: server });
            }
            ToLink::Send(link, bytes) => {
                let side = self.side_of(link, life);
                self.send(link, 1 - side, |side| Event::Bytes { link, side, bytes });
            }
            ToLink::Snapshot(link, job) => {
                let (zxid, file) = (job.zxid, file_of(&job));
                self.send(link, LEARNER, |_| Event::Snapshot { link, zxid, file });
                let at_ms = self.in_order(0);
                self.at_ms(at_ms, Event::Streamed { link });
            }
            ToLink::Look(link, span) => {
                let at_ms = self.in_order(0);
                self.at_ms(at_ms, Event::Looked { link, span });
            }
            ToLink::Logged(link, Span { after, through }) => {
                self.history.mark("DIFF from the log");
                let log = self.disks[&id].log.iter();
                let logged = log.filter(|p| after < p.zxid && p.zxid <= through);
                let (mut bytes, mut last) = (Vec::new(), after);
                for proposal in logged {
                    write_committed(proposal.zxid, &proposal.payload, &mut bytes);
                    last = proposal.zxid;
                }
                assert_eq!(last, through, "{id} sends what is committed and synced");
                let bytes: Arc<[u8]> = bytes.into();
                self.send(link, LEARNER, |side| Event::Bytes { link, side, bytes });
                let at_ms = self.in_order(0);
                self.at_ms(at_ms, Event::Streamed { link });
            }
            ToLink::Close(link) => {
                if self.links.contains_key(&link) {
                    let side = self.side_of(link, life);
                    self.close(link, side);
                    self.lose_snapshot(id, link);
                }
            }
        }
    }

    // ---- links ------------------------------------------------------------------------------

    fn side_of(&self, link: LinkId, life: Life) -> usize {
        if self.links[&link].sides[LEARNER] == life { LEARNER } else { LEADER }
    }

    fn connect_learner(&mut self, from: Life, to: ServerId) {
        if !self.is_alive(from) {
            return;
        }
        let leader = self.life(to);
        if self.is_cut(from.0, to) || !self.running.contains_key(&to) || from.0 == to {
            let at_ms = self.in_order(0);
            self.at_ms(at_ms, Event::CallFailed { to: from, server: to });
            return;
        }
        let link = LinkId(self.links.len() as u64 + 1);
        let stream = |sender| PacketStream::new(sender, 1 << 20);
        let known = Link {
            sides: [from, leader],
            is_open: [true; 2],
            streams: [stream(PacketSender::Leader), stream(PacketSender::Learner)],
            is_broken: false,
            arrives_ms: [0; 2],
        };
        self.links.insert(link, known);
        let at_ms = self.in_order(0);
        self.links.get_mut(&link).unwrap().arrives_ms = [at_ms; 2];
        self.at_ms(at_ms, Event::Reached { link });
        self.step(to, Input::Link(LinkInput::LearnerConnected(link)));
    }

    fn send(&mut self, link: LinkId, side: usize, event: impl FnOnce(usize) -> Event) {
        let Some(known) = self.links.get(&link) else { return };
        let [learner, leader] = known.sides;
        if known.is_broken || self.is_cut(learner.0, leader.0) {
            self.links.get_mut(&link).unwrap().is_broken = true;
            return;
        }
        let arrives_ms = known.arrives_ms[side];
        let at_ms = self.in_order(arrives_ms);
        self.links.get_mut(&link).unwrap().arrives_ms[side] = at_ms;
        self.at_ms(at_ms, event(side));
    }

    /// One side closes a link. A broken one keeps the other from knowing.
    fn close(&mut self, link: LinkId, side: usize) {
        let known = self.links.get_mut(&link).unwrap();
        if std::mem::replace(&mut known.is_open[side], false) {
            self.send(link, 1 - side, |side| Event::Closed { link, side });
        }
    }

    fn is_received(&self, link: LinkId, side: usize) -> bool {
        let known = &self.links[&link];
        known.is_open[side] && self.is_alive(known.sides[side])
    }

    fn on_closed(&mut self, link: LinkId, side: usize) {
        if self.is_received(link, side) {
            let at = self.links[&link].sides[side];
            self.links.get_mut(&link).unwrap().is_open[side] = false;
            self.lose_snapshot(at.0, link);
            self.step(at.0, Input::Link(LinkInput::Closed(link)));
        }
    }

    fn on_bytes(&mut self, link: LinkId, side: usize, bytes: &[u8]) {
        if !self.is_received(link, side) {
            return;
        }
        let at = self.links[&link].sides[side];
        // A packet may close this very link.
        let mut stream = std::mem::replace(
            &mut self.links.get_mut(&link).unwrap().streams[side],
            PacketStream::new(PacketSender::Leader, 0),
        );
        stream.push(bytes);
        let mut follows_snapshot = false;
        while let Some(piece) = stream.next().unwrap() {
            let PacketPiece::Packet(packet) = piece else { panic!("a body comes as a file") };
            if !self.is_received(link, side) {
                return;
            }
            if side == LEARNER {
                let packet = FromLeader::read(&packet).unwrap();
                self.trace(|| format!("{} gets {packet:?}", at.0));
                match packet {
                    FromLeader::Diff { .. } => self.history.mark("DIFF"),
                    FromLeader::Trunc { .. } => self.history.mark("TRUNC"),
                    FromLeader::Snap { .. } => {
                        self.history.mark("SNAP");
                        follows_snapshot = true;
                    }
                    _ => {}
                }
                self.step(at.0, Input::Link(LinkInput::FromLeader { link, packet }));
            } else {
                let packet = FromLearner::read(&packet).unwrap();
                self.step(at.0, Input::Link(LinkInput::FromLearner { link, packet }));
            }
        }
        if follows_snapshot {
            stream = PacketStream::new(PacketSender::Leader, 1 << 20);
        }
        self.links.get_mut(&link).unwrap().streams[side] = stream;
    }

    fn on_snapshot(&mut self, link: LinkId, zxid: Zxid, file: Arc<[u8]>) {
        if !self.is_received(link, LEARNER) {
            return;
        }
        let at = self.links[&link].sides[LEARNER];
        let server = self.running.get_mut(&at.0).unwrap();
        if server.loads.take_if(|loads| *loads == (link, zxid)).is_some() {
            server.jobs.push_back(Job::Replace(zxid, file));
            self.work(at.0);
        }
    }

    /// A link is over, and a snapshot was to come over it.
    fn lose_snapshot(&mut self, id: ServerId, link: LinkId) {
        let server = self.running.get_mut(&id).unwrap();
        if server.loads.take_if(|(from, _)| *from == link).is_some() {
            self.history.mark("a snapshot does not come whole");
            let life = self.life(id);
            self.at_ms(self.now.monotonic_ms, Event::SnapshotLost(life));
        }
    }

    // ---- disks ------------------------------------------------------------------------------

    fn work(&mut self, id: ServerId) {
        let at = self.life(id);
        let sync_ms = self.rng.between(0, self.sync_ms_max);
        let server = self.running.get_mut(&id).unwrap();
        if server.is_busy || server.jobs.is_empty() {
            return;
        }
        server.is_busy = true;
        let is_append = |job: &Job| matches!(job, Job::Append(_));
        let count = server.jobs.iter().take_while(|job| is_append(job)).count().max(1);
        let at_ms = self.now.monotonic_ms + sync_ms;
        self.at_ms(at_ms, Event::Done { at, count });
    }

    fn on_done(&mut self, id: ServerId, count: usize) {
        let (server, disk) = (self.running.get_mut(&id).unwrap(), self.disks.get_mut(&id).unwrap());
        server.is_busy = false;
        let jobs: Vec<Job> = server.jobs.drain(..count).collect();
        let last = jobs.last().cloned().unwrap();
        jobs.into_iter().for_each(|job| disk.take(job));
        match last {
            Job::Append(proposal) => self.step(id, Input::Synced(proposal.zxid)),
            Job::Store(Durable::Truncated(to)) if self.disks[&id].end() != to => {
                self.step(id, Input::TruncateRefused(to));
            }
            Job::Store(Durable::Truncated(to)) => self.on_truncated(id, to),
            Job::Store(stored) => self.step(id, Input::Stored(stored)),
            Job::Replace(zxid, _) => self.reload(id, Durable::Snapshot(zxid)),
        }
        self.work(id);
    }

    /// The log is cut. The state is what a start would find, whichever way it came there.
    fn on_truncated(&mut self, id: ServerId, to: Zxid) {
        let server = self.running.get_mut(&id).unwrap();
        server.log.retain(|proposal| proposal.zxid <= to);
        let mut out = Output::default();
        server.pipeline.step(self.now, Input::Stored(Durable::Truncated(to)), &mut out);
        if out.reload.take().is_some() {
            self.history.mark("TRUNC by reload");
            self.carry_out(id, out);
            self.reload(id, Durable::Truncated(to));
            return;
        }
        self.history.mark("TRUNC in memory");
        let state = |pipeline: &Pipeline| {
            let tree = pipeline.tree();
            // Each member writes its configuration itself.
            let config = tree.newest(tree::CONFIG_PATH).unwrap().data().unwrap().len() as i64;
            let bytes = tree.data_bytes() - config;
            let counts = (tree.znode_count(), tree.ephemeral_count(), bytes);
            let mut sessions: Vec<_> = pipeline.sessions().map(|of| of.session).collect();
            sessions.sort();
            let owned: Vec<_> =
                tree.owning_sessions().map(|of| (of, tree.ephemerals_of(of).count())).collect();
            (tree.digest(), counts, sessions, owned)
        };
        let found = state(&server.pipeline);
        let restored = self.disks[&id].restore(self.on_mismatch(), ALL_PUBLISHED);
        // What the leader has sent behind it may have been applied in the same step.
        let is_comparable = restored.mismatches == 0 && out.appends.is_empty();
        let expected = state(&Pipeline::new(self.now, self.settings(id), restored));
        assert!(
            !is_comparable || found == expected,
            "{id} rolls back to {to}: {found:?} {expected:?}"
        );
        self.carry_out(id, out);
    }

    fn reload(&mut self, id: ServerId, stored: Durable) {
        let disk = &self.disks[&id];
        let restored = disk.restore(self.on_mismatch(), self.cache());
        let (log, shown) = (disk.log.clone(), restored.tree.published());
        let server = self.running.get_mut(&id).unwrap();
        (server.log, server.shown) = (log, shown);
        self.step(id, Input::Replaced(Box::new(restored), stored));
    }

    // ---- what clients see -------------------------------------------------------------------

    /// A server hands its shard what is committed.
    fn show(&mut self, id: ServerId, batch: &Applied) {
        let life = self.life(id);
        let server = self.running.get_mut(&id).unwrap();
        let (from, to) = (server.shown, batch.zxid);
        server.shown = to;
        let committed: Vec<Proposal> = server
            .log
            .iter()
            .filter(|proposal| from < proposal.zxid && proposal.zxid <= to)
            .cloned()
            .collect();
        for proposal in &committed {
            self.history.committed(id, proposal.zxid, &proposal.payload);
        }
        if let Some(last) = committed.last() {
            self.require_on_quorum(id, last.zxid);
        }
        for item in &batch.items {
            let Item::Reply(reply) = item else { continue };
            let server = &self.running[&id];
            let Some(&client) = server.connections.get(&reply.connection.slot) else { continue };
            let is_its = self.clients[client].at == Some((life, reply.connection));
            if !is_its {
                continue;
            }
            let session = self.clients[client].session;
            let was = self.clients[client].state;
            let answered = self.clients[client].on_outcome(reply.zxid, reply.outcome);
            if self.clients[client].counts_anew {
                self.history.counted_anew.insert(self.clients[client].session.0);
            }
            let is_follower = self.running[&id].pipeline.notification().unwrap().state
                != zab::vote::PeerState::Leading;
            match (&self.clients[client].state, was) {
                (State::Connected, State::Connecting) if session.0 != 0 => {
                    self.history.mark("a session moved");
                }
                (State::Away, State::Connecting) if session.0 != 0 => {
                    self.history.mark("a session was refused");
                }
                _ => {}
            }
            let Some((asked, err)) = answered else { continue };
            self.answered = self.answered.max(reply.zxid);
            if asked.op == code::SYNC
                && err == Code::Ok
                && let Some(before) = self.before_sync.remove(&(client, asked.xid))
            {
                assert!(before <= to, "a sync shows {to}, and {before} was answered before it");
            }
            let is_write = asked.op != code::SYNC && asked.op != code::GET_EPHEMERALS;
            let is_local = matches!(err, Code::SessionExpired | Code::MarshallingError);
            if is_write && !is_local {
                let record = self.history.record(reply.zxid);
                let record = record.unwrap_or_else(|| panic!("{} is committed", reply.zxid));
                let (header, txn, _) = read_payload(record).unwrap();
                assert_eq!(
                    (header.client_id, header.cxid),
                    (session.0, asked.xid.0),
                    "the transaction at {} is the client's: {txn:?}",
                    reply.zxid
                );
            }
            if is_follower {
                self.history.mark(match (asked.op, err) {
                    (code::SYNC, _) => "a sync through a follower",
                    (code::MULTI, _) => "a multi through a follower",
                    (code::CLOSE_SESSION, _) => "a session was closed through a follower",
                    (code::GET_EPHEMERALS, _) => "ephemerals of a follower",
                    (_, Code::Ok) => "a write through a follower",
                    _ => "a failed write through a follower",
                });
            }
        }
        for proposal in &committed {
            let (header, ..) = read_payload(&proposal.payload).unwrap();
            if header.kind == code::CLOSE_SESSION && header.cxid == 0 {
                self.history.mark("a session expired");
            }
        }
    }

    /// What is shown is on the disks of a quorum.
    fn require_on_quorum(&self, id: ServerId, zxid: Zxid) {
        let have: BTreeSet<ServerId> = self
            .disks
            .iter()
            .filter(|(_, disk)| {
                let base = disk.snapshot.as_ref().map_or(Zxid::ZERO, |(zxid, _)| *zxid);
                zxid <= base || disk.log.iter().any(|proposal| proposal.zxid == zxid)
            })
            .map(|(server, _)| *server)
            .collect();
        assert!(
            self.voters.is_quorum(&have),
            "{id} shows {zxid}, which only {have:?} have on their disks"
        );
    }

    fn on_client_wakes(&mut self, client: usize) {
        let think_ms = self.rng.mostly_small(1, 400);
        let at_ms = self.now.monotonic_ms + think_ms;
        if self.is_calm && FAULTS_END_MS + 20_000 < self.now.monotonic_ms {
            // Enough is asked.
            return;
        }
        self.at_ms(at_ms, Event::ClientWakes(client));
        match self.clients[client].state {
            State::Away => {
                let servers: Vec<ServerId> = self.disks.keys().copied().collect();
                let id = *self.rng.pick(&servers);
                if self.running.get(&id).is_none_or(|server| !server.serves) {
                    return;
                }
                let life = self.life(id);
                let server = self.running.get_mut(&id).unwrap();
                server.next_connection += 1;
                let slot = server.next_connection;
                server.connections.insert(slot, client);
                let connection = ConnectionId { slot, generation: 0 };
                let requests = self.clients[client].connect(life, connection);
                self.ask(client, life, requests);
            }
            State::Connecting if self.rng.chance(50) => self.clients[client].lose_connection(),
            State::Connecting => {}
            State::Connected if self.rng.chance(30) => self.clients[client].lose_connection(),
            State::Connected => {
                for _ in 0..self.rng.mostly_small(1, 6) {
                    if !self.clients[client].may_ask() {
                        break;
                    }
                    let Some((life, _)) = self.clients[client].at else { break };
                    let mut rng = self.rng.fork();
                    let requests = self.clients[client].ask(&mut rng);
                    let asked = &requests.requests[0];
                    if asked.want == Want::Sync {
                        self.before_sync.insert((client, asked.xid), self.answered);
                    }
                    let is_close = requests.requests[0].want == Want::Close;
                    self.ask(client, life, requests);
                    if is_close {
                        break;
                    }
                }
                // What is on its way arrives all the same.
                if self.rng.chance(60) {
                    self.clients[client].lose_connection();
                }
            }
        }
    }

    fn ask(&mut self, client: usize, to: Life, requests: Requests) {
        let after_ms = self.client_ms.get(&client).copied().unwrap_or(0);
        let at_ms = self.in_order(after_ms);
        self.client_ms.insert(client, at_ms);
        self.at_ms(at_ms, Event::Asked { to, requests });
    }

    // ---- faults -----------------------------------------------------------------------------

    fn fault(&mut self) {
        if self.is_calm {
            return;
        }
        let at_ms = self.now.monotonic_ms + self.rng.between(100, 3_000);
        self.at_ms(at_ms, Event::Fault);
        let servers: Vec<ServerId> = self.disks.keys().copied().collect();
        let id = *self.rng.pick(&servers);
        match self.rng.below(6) {
            0 | 1 => {
                self.history.mark("a power cut");
                self.stop(id);
                let at_ms = self.now.monotonic_ms + self.rng.mostly_small(50, 4_000);
                self.at_ms(at_ms, Event::Starts(id));
            }
            2 => {
                let other = *self.rng.pick(&servers);
                if other != id {
                    self.history.mark("a partition");
                    self.trace(|| format!("cut between {id} and {other}"));
                    self.cuts.insert((id.min(other), id.max(other)));
                }
            }
            3 => {
                self.history.mark("a partition");
                self.trace(|| format!("{id} is cut off"));
                for &other in servers.iter().filter(|other| **other != id) {
                    self.cuts.insert((id.min(other), id.max(other)));
                }
            }
            4 => self.heal(),
            _ => {
                for id in servers {
                    self.stop(id);
                    let at_ms = self.now.monotonic_ms + self.rng.mostly_small(50, 2_000);
                    self.at_ms(at_ms, Event::Starts(id));
                }
            }
        }
    }

    fn heal(&mut self) {
        self.cuts.clear();
    }

    fn calm_down(&mut self) {
        self.trace(|| "calm".to_owned());
        self.is_calm = true;
        self.heal();
        for id in self.disks.keys().copied().collect::<Vec<_>>() {
            if !self.running.contains_key(&id) {
                self.at_ms(self.now.monotonic_ms, Event::Starts(id));
            }
        }
    }

    fn is_at_rest(&self) -> bool {
        let last = self.history.last();
        self.running.len() == self.disks.len()
            && self
                .running
                .values()
                .all(|server| server.serves && server.shown == last && server.jobs.is_empty())
    }

    fn clients_are_away(&self) -> bool {
        FAULTS_END_MS + 25_000 < self.now.monotonic_ms
    }

    fn judge_rest(&mut self) {
        let last = self.history.last();
        for (id, server) in &self.running {
            let report = server.pipeline.report();
            assert!(server.serves, "{id} serves nobody");
            assert_eq!(server.shown, last, "{id} is behind");
            assert_eq!(report.zxid, last, "{id} is behind");
        }
        assert_eq!(self.running.len(), self.disks.len(), "a server is gone");
        let mut digests = self.running.values().map(|server| server.pipeline.tree().digest());
        let first = digests.next().unwrap();
        // A leader with a seeded bug in its tree goes on making another tree than it says.
        let may_differ = self.on_mismatch() == OnMismatch::Count;
        assert!(may_differ || digests.all(|digest| digest == first), "trees differ");
        let sessions = |server: &Server| {
            let mut sessions: Vec<_> =
                server.pipeline.sessions().map(|of| (of.session, of.timeout_ms)).collect();
            sessions.sort();
            sessions
        };
        let mut all = self.running.values().map(|server| {
            sessions(server).into_iter().map(|(session, _)| session).collect::<Vec<_>>()
        });
        let first = all.next().unwrap();
        assert!(all.all(|sessions| sessions == first), "sessions differ");
        for (id, disk) in &self.disks {
            let base = disk.snapshot.as_ref().map_or(Zxid::ZERO, |(zxid, _)| *zxid);
            let log = disk.log.iter().map(|proposal| (proposal.zxid, &proposal.payload[..]));
            self.history.is_whole(base, last, log).unwrap_or_else(|lost| panic!("{id}: {lost}"));
            assert_eq!(disk.end(), last, "{id} has more than is committed");
        }
    }
}

/// A snapshot as a file.
fn file_of(job: &SnapshotJob) -> Arc<[u8]> {
    job.write(SnapshotWriter::new(Vec::new()), false).unwrap().into()
}
