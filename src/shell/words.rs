//! Four-letter words: what an answer needs is gathered from all cores, and `admin` makes the text.
//!
//! Each core is sent a question and answers it between two steps, as plain values. So an answer is
//! no single moment of the whole server, and no core waits for another. What takes opening files is
//! asked of a thread that may wait for them (`observer.rs`).
//!
//! What may be many (connections, watches, ephemerals) is asked for in parts, one after the other, and
//! made into text on a thread of its own, one answer at a time: a core gives a part away in less than
//! a millisecond, and what an answer takes in memory it takes once.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc;
use std::task::{Poll, Waker};
use std::thread;

use futures_lite::future::block_on;
use parking_lot::Mutex;
use tracing::{debug, info, warn};

use super::clock::Clock;
use super::mesh::Commander;
use super::observer::{Facts, Observer, Wanted};
use super::pipeline_core::{PipelineCommand, PipelineInbox};
use super::shard_core::ShardCommand;
use super::sys;
use crate::admin::four_letter::{self, Effect, Needs, Whitelist, Word};
use crate::admin::{
    Configuration, Connection, ConnectionLatency, ConnectionSession, Ephemerals, Gauges, Interest,
    Mode, Serving, Session, State, Watches, Zone,
};
use crate::exchange::ShardId;
use crate::metrics::Metrics;
use crate::pipeline::{Pipeline, Report};
use crate::record::op::code;
use crate::shard::{ConnectionInfo, Shard};
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

/// How many connections, watched paths or ephemerals a core is asked for at a time.
const PART_MAX: usize = 512;
/// The thread that makes long answers gives way to those that serve clients.
const NICENESS: i32 = 10;
/// An answer is handed over in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;

/// Where a part of a shard's report begins.
#[derive(Clone, Copy, Default)]
pub(crate) struct Place {
    connection: u32,
    watch: usize,
}

/// What one shard says of itself, or a part of it.
#[derive(Default)]
pub(crate) struct ShardReport {
    connections: Vec<Connection>,
    watches: Vec<Listed>,
    connection_count: u64,
    watch_count: u64,
    outstanding: u64,
    /// Where the next part begins; `None` where this is the last.
    next: Option<Place>,
}

/// What the pipeline says of itself, or a part of it.
struct PipelineReport {
    report: Report,
    sessions: Vec<Session>,
    ephemerals: Vec<Listed>,
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
pub(crate) struct Aside(Mutex<Option<mpsc::Sender<Job>>>);

type Job = Box<dyn FnOnce() + Send>;

impl Aside {
    /// Does `job` after those before it.
    fn run(&self, job: Job) -> io::Result<()> {
        let mut jobs = self.0.lock();
        let sender = match &*jobs {
            Some(sender) => sender,
            None => {
                let (sender, receiver) = mpsc::channel::<Job>();
                let work = move || {
                    if let Err(error) = sys::give_way(NICENESS) {
                        debug!(%error, "answers are made beside clients on equal terms");
                    }
                    receiver.into_iter().for_each(|job| job());
                };
                thread::Builder::new().name("words".to_owned()).spawn(work)?;
                jobs.insert(sender)
            }
        };
        sender.send(job).map_err(|_| io::Error::other("the thread has ended"))
    }
}

impl Words {
    /// The answer to a word, whatever four bytes it is.
    pub(crate) async fn answer(
        self: Arc<Self>,
        bytes: [u8; 4],
        mask: Option<i64>,
        remote: SocketAddr,
    ) -> Vec<Vec<u8>> {
        let Some(word) = Word::parse(bytes) else { return Vec::new() };
        info!(target: "ringkeeper::shell::words", "Processing {word} command from /{remote}");
        if !self.whitelist.allows(word) {
            return vec![four_letter::refusal(word).into_bytes()];
        }
        match word.effect(true) {
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
            }
            Effect::SetTraceMask => {
                if let Some(mask) = mask {
                    self.trace_mask.store(mask, Ordering::Relaxed);
                }
            }
        }
        let needs = word.needs();
        if !(needs.connections || needs.sessions || needs.ephemerals || needs.watches) {
            return vec![four_letter::answer(word, &self.state(needs).await).into_bytes()];
        }
        let given = Gathered::of(1);
        let (words, give) = (Arc::clone(&self), given.clone());
        let job = move || give.give(words.answer_in_pieces(word));
        if let Err(error) = self.aside.run(Box::new(job)) {
            warn!(%error, "no thread for the answer to {word}");
            return Vec::new();
        }
        given.all().await.pop().unwrap_or_default()
    }

    fn answer_in_pieces(&self, word: Word) -> Vec<Vec<u8>> {
        let text = four_letter::answer(word, &block_on(self.state(word.needs())));
        let text = match self.answer_bytes_max {
            most if most < text.len() => format!(
                "The answer to {word} takes {} bytes, and ringkeeper.connection.answerBytesMax is {most}.\n",
                text.len()
            ),
            _ => text,
        };
        text.as_bytes().chunks(PIECE_BYTES).map(<[u8]>::to_vec).collect()
    }

    async fn state(&self, needs: Needs) -> State {
        let mut shards = Vec::new();
        for shard in self.shards.shards() {
            shards.push(self.ask_shard(shard, needs).await);
        }
        let now = self.clock.now();
        let pipeline = self.ask_pipeline(needs, now).await;
        let from_observer = Gathered::of(1);
        let (found, wanted) = (from_observer.clone(), wanted(needs));
        self.observer.ask(wanted, move |facts| found.give(facts));
        let facts = from_observer.all().await.pop().unwrap_or_default();
        let serving = pipeline.map(|pipeline| self.serving(now, shards, pipeline, &facts));
        State {
            version: self.version.clone(),
            environment: facts.environment,
            trace_mask: self.trace_mask.load(Ordering::Relaxed),
            serving,
        }
    }

    /// All that a shard says of itself, part by part.
    async fn ask_shard(&self, shard: ShardId, needs: Needs) -> ShardReport {
        let mut all = ShardReport::default();
        let mut place = Some(Place::default());
        while let Some(from) = place {
            let given = Gathered::of(1);
            let gives = given.clone();
            let give = Box::new(move |report| gives.give(report));
            self.shards.tell(shard, ShardCommand::Report { needs, from, give });
            let Some(mut part) = given.all().await.pop() else { break };
            place = part.next;
            all.connections.append(&mut part.connections);
            all.watches.append(&mut part.watches);
            all = ShardReport { connections: all.connections, watches: all.watches, ..part };
        }
        all
    }

    /// All that the pipeline says of itself, part by part.
    async fn ask_pipeline(&self, needs: Needs, now: Now) -> Option<PipelineReport> {
        let mut all: Option<PipelineReport> = None;
        loop {
            let given = Gathered::of(1);
            let gives = given.clone();
            let (is_first, behind) = match &all {
                None => (true, None),
                Some(all) => (false, all.ephemerals.last().and_then(Listed::last)),
            };
            self.pipeline.tell(PipelineCommand::Ask(Box::new(move |pipeline| {
                let needs = Needs { sessions: needs.sessions && is_first, ..needs };
                gives.give(PipelineReport::of(pipeline, needs, now, behind));
            })));
            let mut part: PipelineReport = given.all().await.pop()?;
            let count = part.ephemerals.iter().map(|listed| listed.ends.len()).sum::<usize>();
            let is_last = count < PART_MAX;
            match &mut all {
                None => all = Some(part),
                Some(all) => all.ephemerals.append(&mut part.ephemerals),
            }
            if is_last {
                return all;
            }
        }
    }

    fn serving(
        &self,
        now: Now,
        shards: Vec<ShardReport>,
        pipeline: PipelineReport,
        facts: &Facts,
    ) -> Serving {
        let PipelineReport { report, sessions, ephemerals } = pipeline;
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
            uptime_ms: u64::try_from(now.monotonic_ms).unwrap_or(0),
            open_files: facts.open_files,
            open_files_max: sys::open_files_limit().map_or(0, |limit| limit.soft),
            ..Gauges::default()
        };
        let mut connections = Vec::new();
        let mut watched = BTreeMap::<SessionId, Vec<String>>::new();
        for shard in shards {
            connections.extend(shard.connections);
            for (path, sessions) in shard.watches.iter().flat_map(Listed::iter) {
                for session in sessions {
                    watched.entry(*session).or_default().push(path.to_owned());
                }
            }
        }
        let watches =
            watched.into_iter().map(|(session, paths)| Watches { session, paths }).collect();
        let mut owned = Vec::<Ephemerals>::new();
        for (path, sessions) in ephemerals.iter().flat_map(Listed::iter) {
            for &session in sessions {
                match owned.last_mut() {
                    Some(last) if last.session == session => last.paths.push(path.to_owned()),
                    _ => owned.push(Ephemerals { session, paths: vec![path.to_owned()] }),
                }
            }
        }
        Serving {
            mode: Mode::Standalone,
            zxid: report.zxid,
            gauges,
            readings: self.metrics.read(),
            configuration: self.configuration.clone(),
            zone: zone(now),
            connections,
            sessions,
            ephemerals: owned,
            watches,
            sizes: facts.sizes,
            digests: Vec::new(),
        }
    }
}

/// What no core knows of it.
fn wanted(needs: Needs) -> Wanted {
    Wanted { open_files: needs.measures, sizes: needs.sizes, environment: needs.environment }
}

impl ShardReport {
    /// The part that begins at `from`.
    pub(crate) fn of(shard: &Shard, needs: Needs, from: Place, now: Now) -> ShardReport {
        let (mut connections, mut next_connection) = (Vec::new(), None);
        if needs.connections && from.connection != Place::BEHIND.connection {
            let mut all = shard.connections(from.connection);
            connections.extend(all.by_ref().take(PART_MAX).map(|info| connection(&info, now)));
            next_connection = all.next().map(|info| info.connection.slot);
        }
        let (mut watches, mut next_watch) = (Vec::new(), None);
        if needs.watches && from.watch != Place::BEHIND.watch {
            let mut listed = Listed::default();
            let see = |path: &str, sessions: &mut dyn Iterator<Item = SessionId>| {
                listed.push(path, sessions);
            };
            next_watch = shard.watches(from.watch, PART_MAX, see);
            watches.push(listed);
        }
        let is_last = next_connection.is_none() && next_watch.is_none();
        let next = Place {
            connection: next_connection.unwrap_or(Place::BEHIND.connection),
            watch: next_watch.unwrap_or(Place::BEHIND.watch),
        };
        ShardReport {
            connections,
            watches,
            connection_count: shard.connection_count() as u64,
            watch_count: shard.watch_count() as u64,
            outstanding: shard.outstanding() as u64,
            next: (!is_last).then_some(next),
        }
    }
}

impl Place {
    /// Behind the last of either.
    const BEHIND: Place = Place { connection: u32::MAX, watch: usize::MAX };
}

impl PipelineReport {
    /// Of the ephemerals, those behind this one.
    fn of(
        pipeline: &mut Pipeline,
        needs: Needs,
        now: Now,
        behind: Option<(SessionId, String)>,
    ) -> PipelineReport {
        let to_wall = |at_ms: i64| at_ms - now.monotonic_ms + now.wall_ms;
        let sessions = if needs.sessions {
            pipeline
                .sessions()
                .map(|info| Session { id: info.session, expires_at_ms: to_wall(info.deadline_ms) })
                .collect()
        } else {
            Vec::new()
        };
        let ephemerals = if needs.ephemerals {
            let behind = behind.as_ref().map(|(session, path)| (*session, path.as_str()));
            let mut listed = Listed::default();
            for (session, path) in pipeline.ephemerals_after(behind).take(PART_MAX) {
                listed.push(path, std::iter::once(session));
            }
            vec![listed]
        } else {
            Vec::new()
        };
        PipelineReport { report: pipeline.report(), sessions, ephemerals }
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
}
