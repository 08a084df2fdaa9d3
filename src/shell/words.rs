//! Four-letter words: what an answer needs is gathered from all cores, and `admin` makes the text.
//!
//! Each core is sent a question and answers it between two steps, as plain values. So an answer is
//! no single moment of the whole server, and no core waits for another. What takes opening files is
//! asked of a thread that may wait for them (`observer.rs`).
//!
//! What may be many (connections, sessions, watches, ephemerals) is asked for in parts, one after the
//! other, and made into text on a thread of its own, one answer at a time: a core gives a part away in
//! less than a millisecond, and what an answer takes in memory it takes once. An answer that turns out
//! longer than any may be is given up for a line that says so, and one that nobody waits for any more
//! is given up as well.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Poll, Waker};
use std::thread;

use futures_lite::future::block_on;
use parking_lot::{Condvar, Mutex};
use tracing::{debug, info, warn};

use super::clock::Clock;
use super::mesh::Commander;
use super::observer::{Facts, Observer, Wanted};
use super::pipeline_core::{PipelineCommand, PipelineInbox};
use super::shard_core::ShardCommand;
use super::sys;
use crate::admin::four_letter::{self, Effect, Needs, Whitelist, Word};
use crate::admin::lists::Lists;
use crate::admin::{
    Configuration, Connection, ConnectionLatency, ConnectionSession, Gauges, Interest,
    LeaderGauges, LearnerGauges, LearnerKind, Mode, ProposalBytes, QuorumGauges, Serving, Session,
    State, Zone,
};
use crate::exchange::{self, ShardId};
use crate::metrics::Metrics;
use crate::pipeline::{LearnerReport, Pipeline, QuorumReport, QuorumRole, Report, SessionInfo};
use crate::record::op::code;
use crate::shard::{self, ConnectionInfo, Shard, WatchPlace};
use crate::types::{Now, SessionId};

/// All that answers are made from, or the way to it.
pub(crate) struct Words {
    pub(crate) whitelist: Whitelist,
    pub(crate) shards: Commander<ShardCommand>,
    pub(crate) pipeline: PipelineInbox,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Clock,
    pub(crate) observer: Observer,
    pub(crate) configuration: Configuration,
    pub(crate) version: String,
    pub(crate) trace_mask: AtomicI64,
    /// The longest answer.
    pub(crate) answer_bytes_max: usize,
    pub(crate) aside: Aside,
}

/// How many lines a core is asked for at a time, and about how many bytes of paths.
const PART_LINES: usize = 512;
const PART_BYTES: usize = 64 << 10;
/// The thread that makes long answers gives way to those that serve clients.
const NICENESS: i32 = 10;

/// Where a part of a shard's lists begins.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// The first slot.
    connection: u32,
    /// `None` behind the last.
    watch: Option<WatchPlace>,
}

impl Place {
    const FIRST: Place = Place { connection: 0, watch: Some(WatchPlace::FIRST) };
}

/// What one shard says of itself, and a part of what it lists.
#[derive(Default)]
pub(crate) struct ShardReport {
    connection_count: u64,
    watch_count: u64,
    outstanding: u64,
    connections: Vec<Connection>,
    watches: Listed,
    /// Where the next part begins; `None` where this is the last.
    next: Option<Place>,
}

/// Where a part of the pipeline's lists begins.
#[derive(Clone)]
enum PipelinePlace {
    /// With the session behind this one: the first without.
    Session(Option<(i64, SessionId)>),
    /// The same, of those that only this server knows.
    LocalSession(Option<(i64, SessionId)>),
    /// With the ephemeral behind this one.
    Ephemeral(Option<(SessionId, String)>),
}

/// A part of what the pipeline lists.
struct PipelineReport {
    sessions: Vec<Session>,
    ephemerals: Listed,
    next: Option<PipelinePlace>,
}

/// Paths and whose they are. In few pieces of memory: what one thread allocates and another frees
/// is work for the first one's allocator, behind a lock.
#[derive(Default)]
struct Listed {
    paths: String,
    /// Where each path ends, and where its sessions do.
    ends: Vec<(usize, usize)>,
    sessions: Vec<SessionId>,
}

impl Listed {
    fn push(&mut self, path: &str, sessions: impl Iterator<Item = SessionId>) {
        self.paths.push_str(path);
        self.sessions.extend(sessions);
        self.ends.push((self.paths.len(), self.sessions.len()));
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = (&str, &[SessionId])> {
        (0..self.ends.len()).map(|at| {
            let (path, session) = at.checked_sub(1).map_or((0, 0), |before| self.ends[before]);
            let (path_end, session_end) = self.ends[at];
            (&self.paths[path..path_end], &self.sessions[session..session_end])
        })
    }

    /// The last path with the last of its sessions.
    fn last(&self) -> Option<(SessionId, String)> {
        let (path, sessions) = self.iter().next_back()?;
        Some((*sessions.last()?, path.to_owned()))
    }
}

/// A thread for answers that take long to make, begun with the first of them.
#[derive(Default)]
pub(crate) struct Aside(Arc<Jobs>);

#[derive(Default)]
struct Jobs {
    waiting: Mutex<Waiting>,
    came: Condvar,
}

#[derive(Default)]
struct Waiting {
    has_thread: bool,
    jobs: VecDeque<Job>,
    /// With so many, those are looked for that nobody waits for.
    many: usize,
}

/// Fewer jobs than this are not worth looking through.
const JOBS_FEW: usize = 64;

/// An answer that is to be made, while somebody waits for it.
struct Job {
    word: Word,
    asker: Asker,
    make: Box<dyn FnOnce() + Send>,
}

impl Aside {
    /// Does `make` after those before it, unless its asker is gone by then.
    fn run(
        &self,
        word: Word,
        asker: Asker,
        make: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let mut waiting = self.0.waiting.lock();
        if !waiting.has_thread {
            let jobs = Arc::clone(&self.0);
            thread::Builder::new().name("words".to_owned()).spawn(move || jobs.work())?;
            waiting.has_thread = true;
        }
        if waiting.many.max(JOBS_FEW) <= waiting.jobs.len() {
            waiting.jobs.retain(|job| job.asker.waits());
            waiting.many = 2 * waiting.jobs.len();
        }
        waiting.jobs.push_back(Job { word, asker, make: Box::new(make) });
        self.0.came.notify_one();
        Ok(())
    }
}

impl Jobs {
    fn work(&self) {
        if let Err(error) = sys::give_way(NICENESS) {
            debug!(%error, "answers are made beside clients on equal terms");
        }
        loop {
            let mut waiting = self.waiting.lock();
            let job = loop {
                match waiting.jobs.pop_front() {
                    Some(job) => break job,
                    None => self.came.wait(&mut waiting),
                }
            };
            drop(waiting);
            if job.asker.waits() {
                (job.make)();
            } else {
                say_nobody_waits(job.word);
            }
        }
    }
}

fn say_nobody_waits(word: Word) {
    info!(target: "ringkeeper::shell::words", "nobody waits for the answer to {word} any more");
}

/// Whether an answer is still waited for.
#[derive(Clone)]
struct Asker(Weak<dyn Send + Sync>);

impl Asker {
    fn waits(&self) -> bool {
        0 < self.0.strong_count()
    }
}

/// Why an answer is not made.
#[derive(Debug, PartialEq, Eq)]
enum GivenUp {
    TooLong,
    NobodyWaits,
}

impl Words {
    /// The answer to a word, whatever four bytes it is.
    pub(crate) async fn answer(
        self: Arc<Self>,
        asked: shard::Word,
        remote: SocketAddr,
    ) -> Vec<Vec<u8>> {
        let shard::Word { connection: _, word: bytes, mask, serves } = asked;
        let Some(word) = Word::parse(bytes) else { return Vec::new() };
        info!(target: "ringkeeper::shell::words", "Processing {word} command from /{remote}");
        if !self.whitelist.allows(word) {
            return vec![four_letter::refusal(word).into_bytes()];
        }
        match word.effect(serves.is_some()) {
            Effect::None => {}
            Effect::ResetConnections => {
                for shard in self.shards.shards() {
                    self.shards.tell(shard, ShardCommand::ResetConnections);
                }
            }
            Effect::ResetServer => {
                let done = Gathered::of(self.shards.shards().count());
                for shard in self.shards.shards() {
                    let done = done.clone();
                    let reset = ShardCommand::ResetCounters(Box::new(move || done.give(())));
                    self.shards.tell(shard, reset);
                }
                done.all().await;
                self.metrics.reset();
                self.ask_pipeline(Pipeline::reset_proposal_sizes).await;
            }
            Effect::SetTraceMask => {
                if let Some(mask) = mask {
                    self.trace_mask.store(mask, Ordering::Relaxed);
                }
            }
        }
        let Some(served) = serves else {
            let state = self.state_of_none(word.needs()).await;
            return four_letter::answer(word, &state, Lists::new(word)).into_pieces();
        };
        let needs = word.needs();
        if !needs.lists() {
            let state = self.state(needs, served).await;
            return four_letter::answer(word, &state, Lists::new(word)).into_pieces();
        }
        // As long as this future waits for it, the asker does.
        let given: Gathered<Vec<Vec<u8>>> = Gathered::of(1);
        let (words, gives, asker) = (Arc::clone(&self), Arc::downgrade(&given.0), given.asker());
        let still = asker.clone();
        let make = move || {
            let text = words.long_answer(word, served, &still);
            if let Some(given) = gives.upgrade() {
                Gathered(given).give(text);
            }
        };
        if let Err(error) = self.aside.run(word, asker, make) {
            warn!(%error, "no thread for the answer to {word}");
            return Vec::new();
        }
        given.all().await.pop().unwrap_or_default()
    }

    fn long_answer(&self, word: Word, served: exchange::Mode, asker: &Asker) -> Vec<Vec<u8>> {
        let mut lists = Lists::new(word);
        let most = self.answer_bytes_max;
        match block_on(self.list(word.needs(), asker, &mut lists)) {
            Ok(()) => {
                let needs = word.needs().without_lists();
                four_letter::answer(word, &block_on(self.state(needs, served)), lists).into_pieces()
            }
            Err(GivenUp::TooLong) => vec![
                format!(
                    "The answer to {word} is longer than the {most} bytes of \
                     ringkeeper.connection.answerBytesMax.\n"
                )
                .into_bytes(),
            ],
            Err(GivenUp::NobodyWaits) => {
                say_nobody_waits(word);
                Vec::new()
            }
        }
    }

    /// Gathers all that is to be listed, part by part.
    async fn list(&self, needs: Needs, asker: &Asker, lists: &mut Lists) -> Result<(), GivenUp> {
        let go_on = |lists: &Lists| match () {
            () if self.answer_bytes_max < lists.bytes() => Err(GivenUp::TooLong),
            () if !asker.waits() => Err(GivenUp::NobodyWaits),
            () => Ok(()),
        };
        for shard in self.shards.shards() {
            let mut place = Some(Place::FIRST);
            while let Some(from) = place {
                let part = self.ask_shard(shard, needs, Some(from)).await;
                part.connections.iter().for_each(|connection| lists.connection(connection));
                part.watches.iter().for_each(|(path, sessions)| lists.watched(path, sessions));
                go_on(lists)?;
                place = part.next;
            }
        }
        let now = self.clock.now();
        let mut place = PipelinePlace::first(needs);
        while let Some(from) = place {
            let ask = move |pipeline: &mut Pipeline| PipelineReport::of(pipeline, needs, now, from);
            let Some(part) = self.ask_pipeline(ask).await else { break };
            part.sessions.iter().for_each(|session| lists.session(session));
            for (path, sessions) in part.ephemerals.iter() {
                sessions.iter().for_each(|&session| lists.ephemeral(session, path));
            }
            go_on(lists)?;
            place = part.next;
        }
        Ok(())
    }

    /// What there is while no clients are served: nothing of them, nor of a tree.
    async fn state_of_none(&self, needs: Needs) -> State {
        let wanted = Wanted { environment: needs.environment, ..Wanted::default() };
        self.state_around(None, self.facts(wanted).await)
    }

    /// What there is but lists, where clients are served.
    async fn state(&self, needs: Needs, served: exchange::Mode) -> State {
        let mut shards = Vec::new();
        for shard in self.shards.shards() {
            shards.push(self.ask_shard(shard, needs, None).await);
        }
        let now = self.clock.now();
        let ask = move |pipeline: &mut Pipeline| (pipeline.report(), pipeline.quorum_report(now));
        let pipeline = self.ask_pipeline(ask).await;
        let facts = self.facts(wanted(needs)).await;
        let serving = pipeline.and_then(|(report, quorum)| {
            // Meanwhile it may have lost its role.
            let mode = mode_of(served, quorum.as_ref())?;
            let mut serving = self.serving(now, mode, &shards, &report, &facts);
            serving.gauges.quorum =
                quorum.filter(|_| mode != Mode::ReadOnly).map(|quorum| quorum_gauges(&quorum));
            Some(serving)
        });
        self.state_around(serving, facts)
    }

    async fn facts(&self, wanted: Wanted) -> Facts {
        let from_observer = Gathered::of(1);
        let found = from_observer.clone();
        self.observer.ask(wanted, move |facts| found.give(facts));
        from_observer.all().await.pop().unwrap_or_default()
    }

    fn state_around(&self, serving: Option<Serving>, facts: Facts) -> State {
        State {
            version: self.version.clone(),
            environment: facts.environment,
            trace_mask: self.trace_mask.load(Ordering::Relaxed),
            serving,
        }
    }

    /// What a shard says of itself, with the part of its lists that begins at `from`.
    async fn ask_shard(&self, shard: ShardId, needs: Needs, from: Option<Place>) -> ShardReport {
        let given = Gathered::of(1);
        let gives = given.clone();
        let give = Box::new(move |report| gives.give(report));
        self.shards.tell(shard, ShardCommand::Report { needs, from, give });
        given.all().await.pop().unwrap_or_default()
    }

    /// The pipeline's answer to a question.
    async fn ask_pipeline<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut Pipeline) -> T + Send + 'static,
    ) -> Option<T> {
        let given = Gathered::of(1);
        let gives = given.clone();
        let ask = move |pipeline: &mut Pipeline| gives.give(ask(pipeline));
        self.pipeline.tell(PipelineCommand::Ask(Box::new(ask)));
        given.all().await.pop()
    }

    fn serving(
        &self,
        now: Now,
        mode: Mode,
        shards: &[ShardReport],
        report: &Report,
        facts: &Facts,
    ) -> Serving {
        let sum = |of: fn(&ShardReport) -> u64| shards.iter().map(of).sum::<u64>();
        let gauges = Gauges {
            connections: sum(|shard| shard.connection_count),
            outstanding_requests: sum(|shard| shard.outstanding),
            watches: sum(|shard| shard.watch_count),
            // ZooKeeper keeps the root under two names, "" and "/", and counts both.
            znodes: report.znodes as u64 + 1,
            ephemerals: report.ephemerals as u64,
            data_bytes: u64::try_from(report.data_bytes).unwrap_or(0) + "/".len() as u64,
            global_sessions: report.sessions as u64,
            local_sessions: report.local_sessions.map(|count| count as u64),
            uptime_ms: u64::try_from(now.monotonic_ms).unwrap_or(0),
            open_files: facts.open_files,
            open_files_max: sys::open_files_limit().map_or(0, |limit| limit.soft),
            ..Gauges::default()
        };
        Serving {
            mode,
            zxid: report.zxid,
            gauges,
            readings: self.metrics.read(),
            configuration: self.configuration.clone(),
            zone: zone(now),
            sizes: facts.sizes,
            digests: Vec::new(),
        }
    }
}

/// What this server is to its clients. `None`: it serves none.
fn mode_of(served: exchange::Mode, quorum: Option<&QuorumReport>) -> Option<Mode> {
    match (served, quorum.map(|quorum| &quorum.role)) {
        (exchange::Mode::ReadOnly, _) => Some(Mode::ReadOnly),
        (exchange::Mode::ReadWrite, None) => Some(Mode::Standalone),
        (exchange::Mode::ReadWrite, Some(QuorumRole::Looking)) => None,
        (exchange::Mode::ReadWrite, Some(QuorumRole::Leader(_))) => Some(Mode::Leader),
        (exchange::Mode::ReadWrite, Some(QuorumRole::Follower)) => Some(Mode::Follower),
        (exchange::Mode::ReadWrite, Some(QuorumRole::Observer { .. })) => Some(Mode::Observer),
    }
}

fn quorum_gauges(quorum: &QuorumReport) -> QuorumGauges {
    let whole = |ms: i64| u64::try_from(ms).unwrap_or(0);
    let learner = |learner: &LearnerReport| LearnerGauges {
        server: learner.server,
        kind: match (learner.is_observer, learner.is_voter) {
            (true, _) => LearnerKind::Observer,
            (false, true) => LearnerKind::Follower,
            (false, false) => LearnerKind::NonVotingFollower,
        },
        lag_txns: learner.lag_txns,
        lag_ms: whole(learner.lag_ms),
    };
    let mut gauges = QuorumGauges {
        voters: quorum.voter_count as u64,
        observer_master: None,
        synced_observers: 0,
        leader: None,
    };
    match &quorum.role {
        QuorumRole::Looking | QuorumRole::Follower => {}
        QuorumRole::Observer { leader } => gauges.observer_master = *leader,
        QuorumRole::Leader(leader) => {
            let observers = leader.learners.iter().filter(|learner| learner.is_observer);
            gauges.synced_observers = observers.count() as u64;
            gauges.leader = Some(LeaderGauges {
                uptime_ms: whole(leader.leading_ms),
                connected: leader.learner_count as u64,
                learners: leader.learners.iter().map(learner).collect(),
                pending_syncs: leader.pending_syncs as u64,
                proposal_bytes: leader.proposal_sizes.map(|sizes| ProposalBytes {
                    last: sizes.last as u64,
                    min: sizes.min as u64,
                    max: sizes.max as u64,
                }),
            });
        }
    }
    gauges
}

/// What no core knows of it.
fn wanted(needs: Needs) -> Wanted {
    Wanted { open_files: needs.measures, sizes: needs.sizes, environment: needs.environment }
}

impl ShardReport {
    /// With the part of the lists that begins at `from`.
    pub(crate) fn of(shard: &Shard, needs: Needs, from: Option<Place>, now: Now) -> ShardReport {
        let mut report = ShardReport {
            connection_count: shard.connection_count() as u64,
            watch_count: shard.watch_count() as u64,
            outstanding: shard.outstanding() as u64,
            ..ShardReport::default()
        };
        let Some(from) = from else { return report };
        let mut next = Place { watch: None, ..from };
        if needs.connections {
            next.connection = from.connection.saturating_add(PART_LINES as u32);
            let part = shard.connections(from.connection..next.connection);
            report.connections.extend(part.map(|info| connection(&info, now)));
        }
        if needs.watches
            && let Some(place) = from.watch
        {
            let see = |path: &str, sessions: &mut dyn Iterator<Item = SessionId>| {
                report.watches.push(path, sessions);
            };
            next.watch = shard.watches(place, PART_LINES, see);
        }
        let is_last =
            next.watch.is_none() && !(needs.connections && next.connection < shard.slot_count());
        report.next = (!is_last).then_some(next);
        report
    }
}

impl PipelinePlace {
    /// Where the lists begin, if any are needed.
    fn first(needs: Needs) -> Option<PipelinePlace> {
        match needs {
            Needs { sessions: true, .. } => Some(PipelinePlace::Session(None)),
            Needs { ephemerals: true, .. } => Some(PipelinePlace::Ephemeral(None)),
            _ => None,
        }
    }
}

impl PipelineReport {
    /// Takes some of these; the place of the last one.
    fn push_sessions(
        &mut self,
        infos: impl Iterator<Item = SessionInfo>,
        now: Now,
        is_local: bool,
    ) -> Option<(i64, SessionId)> {
        let mut last = None;
        for info in infos.take(PART_LINES) {
            last = Some((info.deadline_ms, info.session));
            let expires_at_ms = info.deadline_ms - now.monotonic_ms + now.wall_ms;
            let (id, timeout_ms) = (info.session, i64::from(info.timeout_ms));
            self.sessions.push(Session { id, timeout_ms, expires_at_ms, is_local });
        }
        last
    }

    /// The part that begins at `from`.
    fn of(pipeline: &Pipeline, needs: Needs, now: Now, from: PipelinePlace) -> PipelineReport {
        let mut part =
            PipelineReport { sessions: Vec::new(), ephemerals: Listed::default(), next: None };
        match from {
            PipelinePlace::Session(behind) => {
                let last = part.push_sessions(pipeline.sessions_after(behind), now, false);
                part.next = match last {
                    Some(_) => Some(PipelinePlace::Session(last)),
                    None => Some(PipelinePlace::LocalSession(None)),
                };
            }
            PipelinePlace::LocalSession(behind) => {
                let last = part.push_sessions(pipeline.local_sessions_after(behind), now, true);
                part.next = match last {
                    Some(_) => Some(PipelinePlace::LocalSession(last)),
                    None => needs.ephemerals.then_some(PipelinePlace::Ephemeral(None)),
                };
            }
            PipelinePlace::Ephemeral(behind) => {
                let behind = behind.as_ref().map(|(session, path)| (*session, path.as_str()));
                for (session, path) in pipeline.ephemerals_after(behind).take(PART_LINES) {
                    part.ephemerals.push(path, std::iter::once(session));
                    if PART_BYTES <= part.ephemerals.paths.len() {
                        break;
                    }
                }
                part.next = part.ephemerals.last().map(|last| PipelinePlace::Ephemeral(Some(last)));
            }
        }
        part
    }
}

fn connection(info: &ConnectionInfo, now: Now) -> Connection {
    let stats = &info.stats;
    let interest = match (info.reads, info.writes) {
        (false, false) => Interest::Nothing,
        (true, false) => Interest::Read,
        (false, true) => Interest::Write,
        (true, true) => Interest::Both,
    };
    let average = stats.latency_sum_ms.checked_div(stats.latency_count).unwrap_or(0);
    let session = info.session.map(|(id, timeout_ms)| ConnectionSession {
        id,
        last_operation: stats.last_op.map_or("NA", operation_name),
        established_at_ms: stats.established_wall_ms,
        timeout_ms: i64::from(timeout_ms),
        last_cxid: (0 <= stats.last_cxid).then_some(i64::from(stats.last_cxid)),
        last_zxid: (0 <= stats.last_zxid.0).then_some(stats.last_zxid),
        last_response_at_ms: stats.last_response_ms,
        latency: ConnectionLatency {
            last: u64::from(stats.last_latency_ms),
            min: u64::from(stats.latency_min_ms.unwrap_or(0)),
            average,
            max: u64::from(stats.latency_max_ms),
        },
    });
    let patience_ms = info.session.map_or(0, |(_, timeout_ms)| i64::from(timeout_ms));
    Connection {
        remote: info.remote,
        interest,
        outstanding: info.queued as u64,
        received: stats.received,
        sent: stats.sent,
        expires_at_ms: now.wall_ms + patience_ms,
        session,
    }
}

/// As `Request.op2String` names it, the first letters of it where `cons` shows only these.
fn operation_name(op: i32) -> &'static str {
    match op {
        code::CREATE | code::CREATE2 | code::CREATE_CONTAINER | code::CREATE_TTL => "CREA",
        code::DELETE | code::DELETE_CONTAINER => "DELE",
        code::EXISTS => "EXIS",
        code::GET_DATA => "GETD",
        code::SET_DATA => "SETD",
        code::GET_ACL => "GETA",
        code::SET_ACL => "SETA",
        code::GET_CHILDREN | code::GET_CHILDREN2 => "GETC",
        code::GET_ALL_CHILDREN_NUMBER => "GETACN",
        code::GET_EPHEMERALS => "GETE",
        code::SYNC => "SYNC",
        code::PING => "PING",
        code::CHECK => "CHEC",
        code::MULTI => "MULT",
        code::MULTI_READ => "MLTR",
        code::RECONFIG => "RECO",
        code::CHECK_WATCHES => "CHKW",
        code::REMOVE_WATCHES => "REMW",
        code::SET_WATCHES => "SETW",
        code::SET_WATCHES2 => "STW2",
        code::ADD_WATCH => "ADDW",
        code::WHO_AM_I => "HOMI",
        code::CREATE_SESSION => "SESS",
        code::CLOSE_SESSION => "CLOS",
        _ => "NA",
    }
}

fn zone(now: Now) -> Zone {
    sys::local_zone(now.wall_ms.div_euclid(1000)).map_or_else(Zone::utc, |(offset_s, name)| {
        // Zones without letters of their own are called by their offset here, and by GMT in Java.
        let abbreviation = match name.strip_prefix(['+', '-']) {
            Some(_) => format!(
                "GMT{}{:02}:{:02}",
                &name[..1],
                offset_s.abs() / 3600,
                offset_s.abs() / 60 % 60
            ),
            None => name,
        };
        Zone { offset_s, abbreviation }
    })
}

/// Answers of several cores, until all are there.
struct Gathered<T>(Arc<Mutex<Gathering<T>>>);

struct Gathering<T> {
    wanted: usize,
    parts: Vec<T>,
    waker: Option<Waker>,
}

impl<T> Clone for Gathered<T> {
    fn clone(&self) -> Gathered<T> {
        Gathered(Arc::clone(&self.0))
    }
}

impl<T> Gathered<T> {
    fn of(wanted: usize) -> Gathered<T> {
        Gathered(Arc::new(Mutex::new(Gathering { wanted, parts: Vec::new(), waker: None })))
    }

    /// What does not keep it waiting, and tells whether it waits.
    fn asker(&self) -> Asker
    where
        T: Send + 'static,
    {
        let gathering: Arc<dyn Send + Sync> = self.0.clone();
        Asker(Arc::downgrade(&gathering))
    }

    fn give(&self, part: T) {
        let mut gathering = self.0.lock();
        gathering.parts.push(part);
        if gathering.parts.len() == gathering.wanted
            && let Some(waker) = gathering.waker.take()
        {
            waker.wake();
        }
    }

    async fn all(&self) -> Vec<T> {
        poll_fn(|cx| {
            let mut gathering = self.0.lock();
            if gathering.wanted <= gathering.parts.len() {
                return Poll::Ready(std::mem::take(&mut gathering.parts));
            }
            gathering.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn answers_are_gathered_until_the_last_one() {
        let gathered = Gathered::of(3);
        for part in 0..3 {
            let gathered = gathered.clone();
            thread::spawn(move || gathered.give(part));
        }
        let mut parts = block_on(gathered.all());
        parts.sort_unstable();
        assert_eq!(parts, [0, 1, 2]);
    }

    #[test]
    fn what_nobody_waits_for_is_not_made() {
        let (aside, made) = (Aside::default(), Gathered::of(2));
        let (began, go_on) = (Gathered::of(1), Gathered::of(1));
        let askers: Vec<Gathered<()>> = (0..3).map(|_| Gathered::of(1)).collect();
        let (begins, waits) = (began.clone(), go_on.clone());
        let first = move || {
            begins.give(());
            block_on(waits.all());
        };
        aside.run(Word::Wchp, askers[0].asker(), first).unwrap();
        block_on(began.all());
        for (number, asker) in askers.iter().enumerate() {
            let made = made.clone();
            aside.run(Word::Wchp, asker.asker(), move || made.give(number)).unwrap();
        }
        let mut askers = askers;
        drop(askers.remove(1));
        // Very many whose askers come and go are not kept.
        for _ in 0..10_000 {
            let gone: Gathered<()> = Gathered::of(1);
            aside.run(Word::Wchp, gone.asker(), || panic!("nobody waits for this")).unwrap();
        }
        assert!(aside.0.waiting.lock().jobs.len() <= JOBS_FEW);
        go_on.give(());
        assert_eq!(block_on(made.all()), [0, 2], "in order");
    }
}
