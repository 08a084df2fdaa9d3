//! Four-letter words: what an answer needs is gathered from all cores, and `admin` makes the text.
//!
//! Each core is sent a question and answers it between two steps, as plain values. So an answer is
//! no single moment of the whole server, and no core waits for another. What takes opening files is
//! asked of a thread that may wait for them (`observer.rs`).

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Poll, Waker};

use parking_lot::Mutex;
use tracing::info;

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
use crate::metrics::Metrics;
use crate::pipeline::{Pipeline, Report};
use crate::record::op::code;
use crate::shard::{ConnectionInfo, Shard};
use crate::types::Now;

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
}

/// What one shard says of itself.
pub(crate) struct ShardReport {
    connections: Vec<Connection>,
    watches: Vec<Watches>,
    connection_count: u64,
    watch_count: u64,
    outstanding: u64,
}

/// What the pipeline says of itself.
struct PipelineReport {
    report: Report,
    sessions: Vec<Session>,
    ephemerals: Vec<Ephemerals>,
}

impl Words {
    /// The answer to a word, whatever four bytes it is.
    pub(crate) async fn answer(
        self: Arc<Self>,
        bytes: [u8; 4],
        mask: Option<i64>,
        remote: SocketAddr,
    ) -> String {
        let Some(word) = Word::parse(bytes) else { return String::new() };
        info!(target: "ringkeeper::shell::words", "Processing {word} command from /{remote}");
        if !self.whitelist.allows(word) {
            return four_letter::refusal(word);
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
        let state = self.state(word.needs()).await;
        four_letter::answer(word, &state)
    }

    async fn state(&self, needs: Needs) -> State {
        let from_shards = Gathered::of(self.shards.shards().count());
        for shard in self.shards.shards() {
            let reports = from_shards.clone();
            let give = Box::new(move |report| reports.give(report));
            self.shards.tell(shard, ShardCommand::Report { needs, give });
        }
        let from_pipeline = Gathered::of(1);
        let (reports, now) = (from_pipeline.clone(), self.clock.now());
        self.pipeline.tell(PipelineCommand::Ask(Box::new(move |pipeline| {
            reports.give(PipelineReport::of(pipeline, needs, now));
        })));
        let from_observer = Gathered::of(1);
        let (found, wanted) = (from_observer.clone(), wanted(needs));
        self.observer.ask(wanted, move |facts| found.give(facts));
        let shards: Vec<ShardReport> = from_shards.all().await;
        let pipelines: Vec<PipelineReport> = from_pipeline.all().await;
        let facts = from_observer.all().await.pop().unwrap_or_default();
        let serving = pipelines
            .into_iter()
            .next()
            .map(|pipeline| self.serving(now, shards, pipeline, &facts));
        State {
            version: self.version.clone(),
            environment: facts.environment,
            trace_mask: self.trace_mask.load(Ordering::Relaxed),
            serving,
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
        let (mut connections, mut watches) = (Vec::new(), Vec::new());
        for shard in shards {
            connections.extend(shard.connections);
            watches.extend(shard.watches);
        }
        watches.sort_by_key(|watches: &Watches| watches.session);
        Serving {
            mode: Mode::Standalone,
            zxid: report.zxid,
            gauges,
            readings: self.metrics.read(),
            configuration: self.configuration.clone(),
            zone: zone(now),
            connections,
            sessions,
            ephemerals,
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
    pub(crate) fn of(shard: &Shard, needs: Needs, now: Now) -> ShardReport {
        let connections = if needs.connections {
            shard.connections().map(|info| connection(&info, now)).collect()
        } else {
            Vec::new()
        };
        let mut watches: Vec<Watches> = Vec::new();
        if needs.watches {
            let mut by_session = std::collections::BTreeMap::<_, Vec<String>>::new();
            for watch in shard.watches() {
                for session in watch.sessions {
                    by_session.entry(session).or_default().push(watch.path.to_owned());
                }
            }
            watches
                .extend(by_session.into_iter().map(|(session, paths)| Watches { session, paths }));
        }
        ShardReport {
            connections,
            watches,
            connection_count: shard.connection_count() as u64,
            watch_count: shard.watch_count() as u64,
            outstanding: shard.outstanding() as u64,
        }
    }
}

impl PipelineReport {
    fn of(pipeline: &mut Pipeline, needs: Needs, now: Now) -> PipelineReport {
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
            pipeline
                .ephemerals()
                .map(|(session, paths)| Ephemerals {
                    session,
                    paths: paths.into_iter().map(str::to_owned).collect(),
                })
                .collect()
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

    use futures_lite::future::block_on;

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
