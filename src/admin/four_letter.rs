//! The four-letter words: a client sends four bytes instead of a handshake, and is sent a text.
//!
//! ```text
//! connection = word                    4 bytes, the first of the connection
//!            / "stmk" mask             8 bytes more, a big-endian long
//! answer     = text, then the connection is closed
//! ```
//!
//! What the shell does with four bytes that it has read:
//!
//! 1. `Word::parse`: none means that they are a length, and a bad one;
//! 2. `Whitelist::allows`; otherwise `refusal` is the answer;
//! 3. `effect`, which is done before the answer is made, so that the answer tells of it;
//! 4. `needs`: the parts of the state to gather, and of its lists;
//! 5. `answer`.
//!
//! Some answers end without a newline, as ZooKeeper's do. After `command/*.java`,
//! `FourLetterCommands`, `ServerCnxn.dumpConnectionInfo`, `SessionTrackerImpl.dumpSessions`,
//! `ExpiryQueue.dump`, `WatchManager.dumpWatches` and `MetricsProvider.dump`.

use std::fmt::{self, Display, Write as _};

use super::lists::{Lists, Text};
use super::{
    Connection, DoubleText, Gauges, LeaderGauges, LearnerKind, Mode, ProposalBytes, QuorumGauges,
    RemoteText, Serving, State,
};
use crate::metrics::{Counter, Reading, Summary};

/// A word that ZooKeeper knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    Conf,
    Cons,
    Crst,
    Dirs,
    Dump,
    Envi,
    Gtmk,
    Hash,
    Isro,
    Mntr,
    Ruok,
    Srst,
    Srvr,
    Stat,
    Stmk,
    Wchc,
    Wchp,
    Wchs,
    /// What telnet sends at an interrupt. Known, allowed, and answered with nothing.
    TelnetInterrupt,
}

impl Word {
    const ALL: [(&'static [u8; 4], Word); 19] = [
        (b"conf", Word::Conf),
        (b"cons", Word::Cons),
        (b"crst", Word::Crst),
        (b"dirs", Word::Dirs),
        (b"dump", Word::Dump),
        (b"envi", Word::Envi),
        (b"gtmk", Word::Gtmk),
        (b"hash", Word::Hash),
        (b"isro", Word::Isro),
        (b"mntr", Word::Mntr),
        (b"ruok", Word::Ruok),
        (b"srst", Word::Srst),
        (b"srvr", Word::Srvr),
        (b"stat", Word::Stat),
        (b"stmk", Word::Stmk),
        (b"wchc", Word::Wchc),
        (b"wchp", Word::Wchp),
        (b"wchs", Word::Wchs),
        (b"\xff\xf4\xff\xfd", Word::TelnetInterrupt),
    ];

    #[must_use]
    pub fn parse(bytes: [u8; 4]) -> Option<Word> {
        Word::ALL.iter().find(|(name, _)| **name == bytes).map(|&(_, word)| word)
    }

    /// How many bytes belong to the word after its four.
    #[must_use]
    pub const fn argument_bytes(self) -> usize {
        if matches!(self, Word::Stmk) { 8 } else { 0 }
    }

    /// What is to happen before the answer is made.
    #[must_use]
    pub const fn effect(self, is_serving: bool) -> Effect {
        match self {
            Word::Crst if is_serving => Effect::ResetConnections,
            Word::Srst if is_serving => Effect::ResetServer,
            Word::Stmk => Effect::SetTraceMask,
            Word::Crst
            | Word::Srst
            | Word::Conf
            | Word::Cons
            | Word::Dirs
            | Word::Dump
            | Word::Envi
            | Word::Gtmk
            | Word::Hash
            | Word::Isro
            | Word::Mntr
            | Word::Ruok
            | Word::Srvr
            | Word::Stat
            | Word::Wchc
            | Word::Wchp
            | Word::Wchs
            | Word::TelnetInterrupt => Effect::None,
        }
    }

    /// The parts of `State` that the answer looks at, beyond those that cost nothing: version, trace
    /// mask, mode, zxid, configuration and zone.
    #[must_use]
    pub const fn needs(self) -> Needs {
        const NOTHING: Needs = Needs {
            measures: false,
            connections: false,
            sessions: false,
            ephemerals: false,
            watches: false,
            sizes: false,
            digests: false,
            environment: false,
        };
        match self {
            Word::Srvr | Word::Mntr => Needs { measures: true, ..NOTHING },
            Word::Stat => Needs { measures: true, connections: true, ..NOTHING },
            Word::Cons => Needs { connections: true, ..NOTHING },
            Word::Dump => Needs { connections: true, sessions: true, ephemerals: true, ..NOTHING },
            Word::Wchc | Word::Wchp | Word::Wchs => Needs { watches: true, ..NOTHING },
            Word::Conf | Word::Dirs => Needs { sizes: true, ..NOTHING },
            Word::Hash => Needs { digests: true, ..NOTHING },
            Word::Envi => Needs { environment: true, ..NOTHING },
            Word::Crst
            | Word::Gtmk
            | Word::Isro
            | Word::Ruok
            | Word::Srst
            | Word::Stmk
            | Word::TelnetInterrupt => NOTHING,
        }
    }
}

impl Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Word::ALL.iter().find(|(_, word)| word == self) {
            Some((_, Word::TelnetInterrupt)) | None => f.write_str("telnet close"),
            Some((name, _)) => f.write_str(&String::from_utf8_lossy(*name)),
        }
    }
}

/// What a word changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    None,
    /// Every connection's own counts and latencies start over.
    ResetConnections,
    /// `Metrics::reset`.
    ResetServer,
    /// To the eight bytes that follow the word, big-endian.
    SetTraceMask,
}

/// Which parts of `State` and of its lists an answer is made from. The others may be left empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// `gauges` and `readings`.
    pub measures: bool,
    /// These four are lists.
    pub connections: bool,
    pub sessions: bool,
    pub ephemerals: bool,
    pub watches: bool,
    pub sizes: bool,
    pub digests: bool,
    pub environment: bool,
}

impl Needs {
    /// Whether the answer lists anything.
    #[must_use]
    pub const fn lists(self) -> bool {
        self.connections || self.sessions || self.ephemerals || self.watches
    }

    #[must_use]
    pub const fn without_lists(self) -> Needs {
        Needs { connections: false, sessions: false, ephemerals: false, watches: false, ..self }
    }
}

/// Which words are answered (`4lw.commands.whitelist`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whitelist {
    words: Vec<Word>,
}

impl Whitelist {
    /// From the setting: words by commas, `*` for all. `srvr` is always allowed, and `isro` where
    /// clients may look for a server that takes writes. Names that are no words are harmless.
    #[must_use]
    pub fn parse(setting: Option<&str>, read_only_mode_enabled: bool) -> Whitelist {
        let mut words = vec![Word::Srvr];
        if read_only_mode_enabled {
            words.push(Word::Isro);
        }
        for item in setting.unwrap_or_default().split(',').map(str::trim) {
            if item == "*" {
                words.extend(Word::ALL.iter().map(|&(_, word)| word));
                break;
            }
            words.extend(item.as_bytes().try_into().ok().and_then(Word::parse));
        }
        Whitelist { words }
    }

    #[must_use]
    pub fn allows(&self, word: Word) -> bool {
        word == Word::TelnetInterrupt || self.words.contains(&word)
    }
}

/// The answer to a word that is not allowed.
#[must_use]
pub fn refusal(word: Word) -> String {
    format!("{word} is not executed because it is not in the whitelist.\n")
}

const NOT_SERVING: &str = "This ZooKeeper instance is not currently serving requests";

/// The answer to a word that is allowed. `lists` has all that it needs to list.
#[must_use]
pub fn answer(word: Word, state: &State, lists: Lists) -> Text {
    let mut out = Text::default();
    write_answer(&mut out, word, state, lists).expect("writing to memory succeeds");
    out
}

fn write_answer(out: &mut Text, word: Word, state: &State, lists: Lists) -> fmt::Result {
    let serving = state.serving.as_ref().ok_or(NOT_SERVING);
    match (word, serving) {
        (Word::TelnetInterrupt, _) => Ok(()),
        (Word::Ruok, _) => write!(out, "imok"),
        (Word::Gtmk | Word::Stmk, _) => write!(out, "{}", state.trace_mask),
        (Word::Envi, _) => write_environment(out, state),
        (Word::Isro, Err(_)) => write!(out, "null"),
        (Word::Hash, Err(message)) => write!(out, "{message}"),
        (_, Err(message)) => writeln!(out, "{message}"),
        (Word::Isro, Ok(serving)) => {
            write!(out, "{}", if serving.mode == Mode::ReadOnly { "ro" } else { "rw" })
        }
        (Word::Conf, Ok(serving)) => write_configuration(out, serving),
        (Word::Cons, Ok(_)) => {
            out.append(lists.into_lines());
            writeln!(out)
        }
        (Word::Crst, Ok(_)) => writeln!(out, "Connection stats reset."),
        (Word::Srst, Ok(_)) => writeln!(out, "Server stats reset."),
        (Word::Dirs, Ok(serving)) => {
            writeln!(out, "datadir_size: {}", serving.sizes.data_dir_bytes)?;
            writeln!(out, "logdir_size: {}", serving.sizes.data_log_dir_bytes)
        }
        (Word::Dump, Ok(serving)) => {
            let has_local = serving.gauges.local_sessions.is_some();
            lists.write_dump(out, &serving.zone, serving.mode, has_local)
        }
        (Word::Hash, Ok(serving)) => serving
            .digests
            .iter()
            .try_for_each(|(zxid, digest)| writeln!(out, "{:x}: {digest}", zxid.0)),
        (Word::Mntr, Ok(serving)) => write_monitor(out, &state.version, serving),
        (Word::Srvr, Ok(serving)) => {
            write_heading(out, &state.version, serving)?;
            write_statistics(out, serving)
        }
        (Word::Stat, Ok(serving)) => {
            write_heading(out, &state.version, serving)?;
            writeln!(out, "Clients:")?;
            out.append(lists.into_lines());
            writeln!(out)?;
            write_statistics(out, serving)
        }
        (Word::Wchc, Ok(_)) => lists.write_by_session(out),
        (Word::Wchp, Ok(_)) => lists.write_by_path(out),
        (Word::Wchs, Ok(_)) => lists.write_summary(out),
    }
}

fn write_environment(out: &mut Text, state: &State) -> fmt::Result {
    writeln!(out, "Environment:")?;
    writeln!(out, "zookeeper.version={}", state.version)?;
    state.environment.iter().try_for_each(|(key, value)| writeln!(out, "{key}={value}"))
}

fn write_heading(out: &mut Text, version: &str, serving: &Serving) -> fmt::Result {
    writeln!(out, "Zookeeper version: {version}")?;
    if serving.mode == Mode::ReadOnly {
        writeln!(out, "READ-ONLY mode; serving only read-only clients")?;
    }
    Ok(())
}

fn write_statistics(out: &mut Text, serving: &Serving) -> fmt::Result {
    let Serving { gauges, readings, .. } = serving;
    let latency = readings.summary(Summary::RequestLatency);
    let average = DoubleText(latency.average());
    writeln!(out, "Latency min/avg/max: {}/{average}/{}", latency.min, latency.max)?;
    writeln!(out, "Received: {}", readings.counter(Counter::PacketsReceived))?;
    writeln!(out, "Sent: {}", readings.counter(Counter::PacketsSent))?;
    writeln!(out, "Connections: {}", gauges.connections)?;
    writeln!(out, "Outstanding: {}", gauges.outstanding_requests)?;
    writeln!(out, "Zxid: {}", serving.zxid)?;
    writeln!(out, "Mode: {}", serving.mode)?;
    writeln!(out, "Node count: {}", gauges.znodes)?;
    if let Some(leader) = leader_of(gauges) {
        let [last, min, max] = proposal_bytes(leader);
        writeln!(out, "Proposal sizes last/min/max: {last}/{min}/{max}")?;
    }
    Ok(())
}

fn leader_of(gauges: &Gauges) -> Option<&LeaderGauges> {
    gauges.quorum.as_ref()?.leader.as_ref()
}

/// The last, the least and the greatest; all -1 before the first proposal.
fn proposal_bytes(leader: &LeaderGauges) -> [i64; 3] {
    leader.proposal_bytes.map_or([-1; 3], |ProposalBytes { last, min, max }| {
        [last, min, max].map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX))
    })
}

/// A port without a listener is -1.
fn port_number(port: Option<u16>) -> i32 {
    port.map_or(-1, i32::from)
}

fn write_configuration(out: &mut Text, serving: &Serving) -> fmt::Result {
    let Serving { configuration, sizes, .. } = serving;
    writeln!(out, "clientPort={}", port_number(configuration.client_port))?;
    writeln!(out, "secureClientPort={}", port_number(configuration.secure_client_port))?;
    writeln!(out, "dataDir={}", configuration.data_dir)?;
    writeln!(out, "dataDirSize={}", sizes.data_dir_bytes)?;
    writeln!(out, "dataLogDir={}", configuration.data_log_dir)?;
    writeln!(out, "dataLogSize={}", sizes.data_log_dir_bytes)?;
    writeln!(out, "tickTime={}", configuration.tick_time_ms)?;
    writeln!(out, "maxClientCnxns={}", configuration.max_client_cnxns)?;
    writeln!(out, "minSessionTimeout={}", configuration.min_session_timeout_ms)?;
    writeln!(out, "maxSessionTimeout={}", configuration.max_session_timeout_ms)?;
    writeln!(out, "clientPortListenBacklog={}", configuration.client_port_listen_backlog)?;
    writeln!(out, "serverId={}", configuration.server_id)?;
    let Some(quorum) = &configuration.quorum else { return Ok(()) };
    let ports = |ports: &[u16]| ports.iter().map(u16::to_string).collect::<Vec<_>>().join("|");
    writeln!(out, "initLimit={}", quorum.init_limit_ticks)?;
    writeln!(out, "syncLimit={}", quorum.sync_limit_ticks)?;
    writeln!(out, "electionAlg=3")?;
    writeln!(out, "electionPort={}", ports(&quorum.election_ports))?;
    writeln!(out, "quorumPort={}", ports(&quorum.quorum_ports))?;
    writeln!(out, "peerType={}", i32::from(quorum.is_observer))?;
    if serving.mode != Mode::ReadOnly {
        write!(out, "membership: \n{}", quorum.membership)?;
    }
    Ok(())
}

/// The part of a connection's line that all of them have, without its closing bracket.
pub(super) fn write_connection(out: &mut Text, connection: &Connection) -> fmt::Result {
    let Connection { remote, interest, outstanding, received, sent, .. } = connection;
    let (remote, interest) = (RemoteText(*remote), *interest as u8);
    write!(out, " {remote}[{interest:x}](queued={outstanding},recved={received},sent={sent}")
}

pub(super) fn write_connection_in_full(out: &mut Text, connection: &Connection) -> fmt::Result {
    write_connection(out, connection)?;
    if let Some(session) = &connection.session {
        write!(out, ",sid={},lop={}", session.id, session.last_operation)?;
        write!(out, ",est={},to={}", session.established_at_ms, session.timeout_ms)?;
        if let Some(cxid) = session.last_cxid {
            write!(out, ",lcxid={cxid:#x}")?;
        }
        write!(out, ",lzxid={:#x}", session.last_zxid.map_or(-1, |zxid| zxid.0))?;
        let latency = session.latency;
        write!(out, ",lresp={},llat={}", session.last_response_at_ms, latency.last)?;
        write!(out, ",minlat={},avglat={},maxlat={}", latency.min, latency.average, latency.max)?;
    }
    writeln!(out, ")")
}

fn write_monitor(out: &mut Text, version: &str, serving: &Serving) -> fmt::Result {
    let Serving { gauges, readings, .. } = serving;
    write_value(out, "version", version)?;
    write_value(out, "server_state", serving.mode)?;
    if let Some(quorum) = &gauges.quorum {
        write_quorum(out, serving.mode, quorum)?;
    }

    write_value(out, "ephemerals_count", gauges.ephemerals)?;
    write_value(out, "num_alive_connections", gauges.connections)?;
    write_value(out, "outstanding_requests", gauges.outstanding_requests)?;
    write_value(out, "znode_count", gauges.znodes)?;
    write_value(out, "watch_count", gauges.watches)?;
    write_value(out, "approximate_data_size", gauges.data_bytes)?;
    write_value(out, "global_sessions", gauges.global_sessions)?;
    write_value(out, "local_sessions", gauges.local_sessions.unwrap_or(0))?;
    write_value(out, "uptime", gauges.uptime_ms)?;
    write_value(out, "open_file_descriptor_count", gauges.open_files)?;
    write_value(out, "max_file_descriptor_count", gauges.open_files_max)?;
    write_value(out, "connection_drop_probability", DoubleText(gauges.drop_probability))?;
    write_value(out, "outstanding_tls_handshake", gauges.outstanding_tls_handshakes)?;
    for counter in [
        Counter::PacketsReceived,
        Counter::PacketsSent,
        Counter::AuthFailedCount,
        Counter::NonMtlsRemoteConnCount,
        Counter::NonMtlsLocalConnCount,
    ] {
        write_value(out, counter.name(), readings.counter(counter))?;
    }
    let latency = readings.summary(Summary::RequestLatency);
    write_value(out, "avg_latency", DoubleText(latency.average()))?;
    write_value(out, "min_latency", latency.min)?;
    write_value(out, "max_latency", latency.max)?;
    let sizes = readings.summary(Summary::ClientResponseSize);
    match readings.last_response_bytes() {
        Some(last) => write_response_sizes(out, last, sizes.min, sizes.max)?,
        None => write_response_sizes(out, -1, -1, -1)?,
    }
    for quota in &gauges.quotas {
        let namespace = &quota.namespace;
        for (name, value) in [
            ("quota_count_limit_per_namespace", quota.count_limit),
            ("quota_bytes_limit_per_namespace", quota.bytes_limit),
            ("quota_count_usage_per_namespace", quota.count_usage),
            ("quota_bytes_usage_per_namespace", quota.bytes_usage),
        ] {
            write_value(out, format_args!("{namespace}_{name}"), value)?;
        }
    }

    for &counter in Counter::registered() {
        write_value(out, counter.name(), readings.counter(counter))?;
    }
    for ((counter, key), value) in &readings.keyed_counters {
        write_value(out, format_args!("{key}_{}", counter.name()), value)?;
    }
    for &summary in Summary::registered() {
        write_reading(out, summary.name(), readings.summary(summary), summary.is_advanced())?;
    }
    for ((summary, key), reading) in &readings.keyed_summaries {
        let name = format_args!("{key}_{}", summary.name());
        write_reading(out, name, reading, summary.is_advanced())?;
    }
    Ok(())
}

/// What a server of an ensemble shows besides, and how far a leader's learners are. ZooKeeper does not
/// show the latter.
fn write_quorum(out: &mut Text, mode: Mode, quorum: &QuorumGauges) -> fmt::Result {
    let state = match mode {
        Mode::Leader => "leading - broadcast",
        Mode::Follower => "following - broadcast",
        Mode::Observer => "observing - broadcast",
        Mode::Standalone | Mode::ReadOnly => "looking",
    };
    write_value(out, "peer_state", state)?;
    write_value(out, "quorum_size", quorum.voters)?;
    if let Some(master) = quorum.observer_master {
        write_value(out, "observer_master_id", master)?;
    }
    if mode != Mode::Observer {
        write_value(out, "synced_observers", quorum.synced_observers)?;
    }
    let Some(leader) = &quorum.leader else { return Ok(()) };
    let count = |kind| leader.learners.iter().filter(|learner| learner.kind == kind).count();
    let [last, min, max] = proposal_bytes(leader);
    write_value(out, "leader_uptime", leader.uptime_ms)?;
    write_value(out, "learners", leader.connected)?;
    write_value(
        out,
        "synced_followers",
        count(LearnerKind::Follower) + count(LearnerKind::NonVotingFollower),
    )?;
    write_value(out, "synced_non_voting_followers", count(LearnerKind::NonVotingFollower))?;
    write_value(out, "pending_syncs", leader.pending_syncs)?;
    write_value(out, "last_proposal_size", last)?;
    write_value(out, "min_proposal_size", min)?;
    write_value(out, "max_proposal_size", max)?;
    for learner in &leader.learners {
        let server = learner.server;
        write_value(out, format_args!("{server}_learner_lag_txns"), learner.lag_txns)?;
        write_value(out, format_args!("{server}_learner_lag_ms"), learner.lag_ms)?;
    }
    Ok(())
}

fn write_value(out: &mut Text, name: impl Display, value: impl Display) -> fmt::Result {
    writeln!(out, "zk_{name}\t{value}")
}

fn write_response_sizes(
    out: &mut Text,
    last: impl Display,
    min: impl Display,
    max: impl Display,
) -> fmt::Result {
    write_value(out, "last_client_response_size", last)?;
    write_value(out, "min_client_response_size", min)?;
    write_value(out, "max_client_response_size", max)
}

fn write_reading(
    out: &mut Text,
    name: impl Display,
    reading: &Reading,
    is_advanced: bool,
) -> fmt::Result {
    write_value(out, format_args!("avg_{name}"), DoubleText(reading.average()))?;
    write_value(out, format_args!("min_{name}"), reading.min)?;
    write_value(out, format_args!("max_{name}"), reading.max)?;
    write_value(out, format_args!("cnt_{name}"), reading.count)?;
    write_value(out, format_args!("sum_{name}"), reading.sum)?;
    if is_advanced {
        for (percentile, thousandths) in [("p50", 500), ("p95", 950), ("p99", 990), ("p999", 999)] {
            let value = reading.percentile(thousandths);
            write_value(out, format_args!("{percentile}_{name}"), value)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::admin::{
        Configuration, ConnectionLatency, ConnectionSession, Interest, LearnerGauges,
        QuorumConfiguration, Session, Sizes, TRACE_MASK_DEFAULT, Zone,
    };
    use crate::metrics::{KeyedSummary, Metrics, Recorder};
    use crate::types::{ServerId, SessionId, Zxid};

    /// A capture of ZooKeeper's own answer: `samples/README.md` says how it was made.
    fn sample(name: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin/samples").join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn connection(port: u16, received: u64, sent: u64, expires_at_s: i64) -> Connection {
        Connection {
            remote: ([127, 0, 0, 1], port).into(),
            interest: Interest::Read,
            outstanding: 0,
            received,
            sent,
            expires_at_ms: expires_at_s * 1000,
            session: None,
        }
    }

    fn asking(port: u16, expires_at_s: i64) -> Connection {
        Connection { interest: Interest::Nothing, ..connection(port, 1, 0, expires_at_s) }
    }

    fn latency(last: u64, min: u64, average: u64, max: u64) -> ConnectionLatency {
        ConnectionLatency { last, min, average, max }
    }

    /// What one of the two captured servers was in, all through its capture.
    fn captured(release: &str) -> State {
        let envi = sample(&format!("{release}/envi.txt"));
        let mut environment = envi.lines().skip(1).map(|line| {
            let (key, value) = line.split_once('=').unwrap();
            (key.to_owned(), value.to_owned())
        });
        let (_, version) = environment.next().unwrap();
        let configuration = Configuration {
            client_port: Some(21810),
            secure_client_port: None,
            data_dir: "/var/zk/sa/data/version-2".to_owned(),
            data_log_dir: "/var/zk/sa/data/version-2".to_owned(),
            tick_time_ms: 2000,
            max_client_cnxns: 60,
            min_session_timeout_ms: 4000,
            max_session_timeout_ms: 40_000,
            client_port_listen_backlog: -1,
            server_id: 0,
            quorum: None,
        };
        let gauges = Gauges { connections: 3, znodes: 11, ..Gauges::default() };
        State {
            version,
            environment: environment.collect(),
            trace_mask: TRACE_MASK_DEFAULT,
            serving: Some(Serving {
                mode: Mode::Standalone,
                zxid: Zxid(0xd),
                gauges,
                readings: Metrics::new(1).0.read(),
                configuration,
                zone: Zone::utc(),
                sizes: Sizes::default(),
                digests: Vec::new(),
            }),
        }
    }

    /// The answer with these lists.
    fn listing(word: Word, state: &State, list: impl FnOnce(&mut Lists)) -> String {
        let mut lists = Lists::new(word);
        list(&mut lists);
        super::answer(word, state, lists).to_string()
    }

    /// The answer of a word that lists nothing, or where there is nothing to list.
    fn answer(word: Word, state: &State) -> String {
        listing(word, state, |_| ())
    }

    fn connected<const N: usize>(connections: [Connection; N]) -> impl FnOnce(&mut Lists) {
        move |lists| connections.iter().for_each(|connection| lists.connection(connection))
    }

    fn with(mut state: State, change: impl FnOnce(&mut Serving)) -> State {
        change(state.serving.as_mut().unwrap());
        state
    }

    /// Records as many values as a summary had, with their least, greatest and sum.
    fn spread(record: &mut dyn FnMut(u64), count: u64, min: u64, max: u64, sum: u64) {
        let mut rest = sum;
        for left in (0..count).rev() {
            let value = match left {
                0 => rest,
                _ if left == count - 1 => max,
                _ => (rest / (left + 1)).clamp(min, max),
            };
            // The last takes what remains; the least must come, so it comes as early as it can.
            let value = if left == count.saturating_sub(2) && 0 < left { min } else { value };
            record(value);
            rest -= value;
        }
    }

    fn measured(received: u64, sent: u64, latencies: &[u64]) -> crate::metrics::Readings {
        let (metrics, recorders) = Metrics::new(1);
        recorders[0].add(Counter::PacketsReceived, received);
        recorders[0].add(Counter::PacketsSent, sent);
        for &latency in latencies {
            recorders[0].record(Summary::RequestLatency, latency);
        }
        metrics.read()
    }

    // The two clients of the 3.8.0 capture.
    const A: SessionId = SessionId(0x0100_000b_753f_0000);
    const B: SessionId = SessionId(0x0100_000b_753f_0001);

    fn session(id: SessionId, operation: &'static str) -> ConnectionSession {
        ConnectionSession {
            id,
            last_operation: operation,
            established_at_ms: 0,
            timeout_ms: 0,
            last_cxid: None,
            last_zxid: None,
            last_response_at_ms: 0,
            latency: ConnectionLatency::default(),
        }
    }

    fn established(id: SessionId) -> ConnectionSession {
        let (established_at_ms, timeout_ms) = match id {
            A => (1_795_181_016_643, 10_000),
            _ => (1_795_181_016_655, 20_000),
        };
        ConnectionSession { established_at_ms, timeout_ms, ..session(id, "NA") }
    }

    fn client_a() -> Connection {
        let session = ConnectionSession {
            last_operation: "SETD",
            last_cxid: Some(0xd),
            last_zxid: Some(Zxid(0xd)),
            last_response_at_ms: 751_469,
            latency: latency(1, 0, 1, 6),
            ..established(A)
        };
        Connection { session: Some(session), ..connection(56458, 14, 15, 1_795_181_035) }
    }

    fn client_b() -> Connection {
        let session = ConnectionSession {
            last_operation: "GETC",
            last_cxid: Some(3),
            last_zxid: Some(Zxid(8)),
            last_response_at_ms: 751_457,
            latency: latency(0, 0, 0, 1),
            ..established(B)
        };
        Connection { session: Some(session), ..connection(56464, 4, 4, 1_795_181_045) }
    }

    fn fresh(client: Connection, id: SessionId) -> Connection {
        Connection { received: 0, sent: 0, session: Some(established(id)), ..client }
    }

    #[test]
    fn server_and_connections_answer_as_captured() {
        let latencies = [0, 6, 1, 1, 1, 1, 1, 0, 0];
        let srvr = with(captured("3.8.0"), |s| s.readings = measured(30, 31, &latencies));
        assert_eq!(answer(Word::Srvr, &srvr), sample("3.8.0/srvr.txt"));
        let srst = with(captured("3.8.0"), |s| s.readings = measured(1, 1, &[]));
        assert_eq!(answer(Word::Srvr, &srst), sample("3.8.0/srvr-after-srst.txt"));

        let state = with(captured("3.8.0"), |s| s.readings = measured(31, 32, &latencies));
        let stat = connected([asking(56556, 0), client_b(), client_a()]);
        assert_eq!(listing(Word::Stat, &state, stat), sample("3.8.0/stat.txt"));
        let cons = connected([asking(56490, 0), client_b(), client_a()]);
        assert_eq!(listing(Word::Cons, &state, cons), sample("3.8.0/cons.txt"));
        let crst = connected([fresh(client_b(), B), asking(56606, 0), fresh(client_a(), A)]);
        assert_eq!(listing(Word::Cons, &state, crst), sample("3.8.0/cons-after-crst.txt"));
    }

    #[test]
    fn newer_releases_answer_the_same() {
        let latencies = [0, 15, 3, 2, 2, 1, 1, 0, 0];
        let srvr = with(captured("3.10-SNAPSHOT"), |s| s.readings = measured(30, 31, &latencies));
        assert_eq!(answer(Word::Srvr, &srvr), sample("3.10-SNAPSHOT/srvr.txt"));
        let (id_a, id_b) = (SessionId(0x0100_000b_7cfe_0000), SessionId(0x0100_000b_7cfe_0001));
        let a = ConnectionSession {
            established_at_ms: 1_795_181_018_527,
            timeout_ms: 10_000,
            last_cxid: Some(0xd),
            last_zxid: Some(Zxid(0xd)),
            last_response_at_ms: 753_393,
            latency: latency(2, 0, 3, 15),
            ..session(id_a, "SETD")
        };
        let a = Connection { session: Some(a), ..connection(56716, 14, 15, 1_795_181_035) };
        let b = ConnectionSession {
            established_at_ms: 1_795_181_018_558,
            timeout_ms: 20_000,
            last_cxid: Some(3),
            last_zxid: Some(Zxid(8)),
            last_response_at_ms: 753_376,
            latency: latency(1, 0, 1, 2),
            ..session(id_b, "GETC")
        };
        let b = Connection { session: Some(b), ..connection(56720, 4, 4, 1_795_181_045) };
        let state = with(captured("3.10-SNAPSHOT"), |s| s.readings = measured(31, 32, &latencies));
        let cons = connected([a.clone(), asking(56746, 0), b.clone()]);
        assert_eq!(listing(Word::Cons, &state, cons), sample("3.10-SNAPSHOT/cons.txt"));
        assert_eq!(answer(Word::Envi, &state), sample("3.10-SNAPSHOT/envi.txt"));
        let stat = connected([a.clone(), asking(56808, 0), b.clone()]);
        assert_eq!(listing(Word::Stat, &state, stat), sample("3.10-SNAPSHOT/stat.txt"));
        let dump = |lists: &mut Lists| {
            lists.session(&Session {
                id: id_a,
                timeout_ms: 10_000,
                expires_at_ms: 1_795_181_029_000,
                is_local: false,
            });
            lists.session(&Session {
                id: id_b,
                timeout_ms: 20_000,
                expires_at_ms: 1_795_181_039_000,
                is_local: false,
            });
            lists.ephemeral(id_b, "/app/ephB");
            lists.ephemeral(id_a, "/app/eph-1");
            lists.ephemeral(id_a, "/app/eph-2");
            connected([b, asking(56754, 1_795_181_035), a])(lists);
        };
        assert_eq!(listing(Word::Dump, &state, dump), sample("3.10-SNAPSHOT/dump.txt"));
    }

    #[test]
    fn sessions_ephemerals_and_watches_answer_as_captured() {
        let state = captured("3.8.0");
        let dump = |lists: &mut Lists| {
            lists.session(&Session {
                id: B,
                timeout_ms: 20_000,
                expires_at_ms: 1_795_181_037_000,
                is_local: false,
            });
            lists.session(&Session {
                id: A,
                timeout_ms: 10_000,
                expires_at_ms: 1_795_181_027_000,
                is_local: false,
            });
            lists.ephemeral(A, "/app/eph-1");
            lists.ephemeral(A, "/app/eph-2");
            lists.ephemeral(B, "/app/ephB");
            connected([client_a(), asking(56498, 1_795_181_035), client_b()])(lists);
        };
        assert_eq!(listing(Word::Dump, &state, dump), sample("3.8.0/dump.txt"));

        let watches = |lists: &mut Lists| {
            lists.watched("/app", &[B, A]);
            lists.watched("/nothere", &[A]);
        };
        assert_eq!(listing(Word::Wchc, &state, watches), sample("3.8.0/wchc.txt"));
        assert_eq!(listing(Word::Wchp, &state, watches), sample("3.8.0/wchp.txt"));
        assert_eq!(listing(Word::Wchs, &state, watches), sample("3.8.0/wchs.txt"));
    }

    #[test]
    fn configuration_environment_and_sizes_answer_as_captured() {
        let state = with(captured("3.8.0"), |s| {
            s.configuration.data_dir = "/var/zk/sa-3.8.0/data/version-2".to_owned();
            s.configuration.data_log_dir = s.configuration.data_dir.clone();
            s.sizes = Sizes { data_dir_bytes: 67_109_337, data_log_dir_bytes: 67_109_337 };
        });
        assert_eq!(answer(Word::Conf, &state), sample("3.8.0/conf.txt"));
        assert_eq!(answer(Word::Dirs, &state), sample("3.8.0/dirs.txt"));
        assert_eq!(answer(Word::Envi, &state), sample("3.8.0/envi.txt"));
    }

    #[test]
    fn short_answers_are_as_captured() {
        let mut state = captured("3.8.0");
        for (word, file) in [
            (Word::Crst, "crst"),
            (Word::Gtmk, "gtmk"),
            (Word::Hash, "hash"),
            (Word::Isro, "isro"),
            (Word::Ruok, "ruok"),
            (Word::Srst, "srst"),
        ] {
            assert_eq!(answer(word, &state), sample(&format!("3.8.0/{file}.txt")));
        }
        state.trace_mask = 18;
        assert_eq!(answer(Word::Stmk, &state), sample("3.8.0/stmk.txt"));
        assert_eq!(answer(Word::Gtmk, &state), sample("3.8.0/gtmk-after-stmk.txt"));
        assert_eq!(answer(Word::TelnetInterrupt, &state), "");
        let read_only = with(state, |s| s.mode = Mode::ReadOnly);
        assert_eq!(answer(Word::Isro, &read_only), "ro");
        assert!(
            answer(Word::Srvr, &read_only).contains("\nREAD-ONLY mode; serving only read-only")
        );
    }

    /// As a ZooKeeper 3.8.0 with 301 transactions answered.
    #[test]
    fn digests_are_a_line_each() {
        let state = with(captured("3.8.0"), |s| {
            s.digests = vec![(Zxid(0x80), 271_544_737_754), (Zxid(0x100), 542_247_612_594)];
        });
        assert_eq!(answer(Word::Hash, &state), "80: 271544737754\n100: 542247612594\n");
    }

    /// The state and the measures that a captured `mntr` shows.
    fn monitored(release: &str) -> State {
        with(captured(release), |s| {
            measure(s, &sample(&format!("{release}/mntr.txt")), 9);
        })
    }

    /// Takes what a captured `mntr` shows of a server that had answered so many requests.
    fn measure(serving: &mut Serving, text: &str, answered: u64) {
        let values: BTreeMap<&str, &str> = text
            .lines()
            .map(|line| line.strip_prefix("zk_").unwrap().split_once('\t').unwrap())
            .collect();
        // -1 before anything was measured.
        let number = |name: &str| values.get(name).map_or(0, |value| value.parse().unwrap_or(0));
        let spread_as = |name: &str, record: &mut dyn FnMut(u64)| {
            let of = |part: &str| number(&format!("{part}_{name}"));
            spread(record, of("cnt"), of("min"), of("max"), of("sum"));
        };
        let (metrics, mut recorders) = Metrics::new(2);
        let recorder: &mut Recorder = &mut recorders[1];
        for &counter in Counter::ALL {
            recorder.add(counter, number(counter.name()));
        }
        for &summary in Summary::registered() {
            spread_as(summary.name(), &mut |value| recorder.record(summary, value));
        }
        for &summary in KeyedSummary::ALL {
            let key_of = |name: &&'_ str| -> Option<String> {
                let name = name.strip_prefix("cnt_")?.strip_suffix(summary.name())?;
                Some(name.strip_suffix('_')?.to_owned())
            };
            for key in values.keys().filter_map(key_of) {
                let name = format!("{key}_{}", summary.name());
                spread_as(&name, &mut |value| recorder.record_keyed(summary, &key, value));
            }
        }
        let latencies_ms = values["avg_latency"].parse::<f64>().unwrap() * answered as f64;
        let (min, max) = (number("min_latency"), number("max_latency"));
        spread(
            &mut |value| recorder.record(Summary::RequestLatency, value),
            answered,
            min,
            max,
            latencies_ms.round() as u64,
        );
        if values["last_client_response_size"] != "-1" {
            for part in ["min", "max", "last"] {
                recorder.record_response(number(&format!("{part}_client_response_size")), 1);
            }
        }
        serving.readings = metrics.read();
        serving.gauges = Gauges {
            connections: number("num_alive_connections"),
            outstanding_requests: number("outstanding_requests"),
            znodes: number("znode_count"),
            ephemerals: number("ephemerals_count"),
            watches: number("watch_count"),
            data_bytes: number("approximate_data_size"),
            global_sessions: number("global_sessions"),
            local_sessions: Some(number("local_sessions")).filter(|&count| 0 < count),
            uptime_ms: number("uptime"),
            open_files: number("open_file_descriptor_count"),
            open_files_max: number("max_file_descriptor_count"),
            drop_probability: 0.0,
            outstanding_tls_handshakes: number("outstanding_tls_handshake"),
            quotas: Vec::new(),
            quorum: values.contains_key("quorum_size").then(|| QuorumGauges {
                voters: number("quorum_size"),
                observer_master: values
                    .contains_key("observer_master_id")
                    .then(|| ServerId(number("observer_master_id") as i64)),
                synced_observers: number("synced_observers"),
                leader: values.contains_key("leader_uptime").then(|| LeaderGauges {
                    uptime_ms: number("leader_uptime"),
                    connected: number("learners"),
                    learners: (1..=number("synced_followers")).map(follower).collect(),
                    pending_syncs: number("pending_syncs"),
                    proposal_bytes: Some(ProposalBytes {
                        last: number("last_proposal_size"),
                        min: number("min_proposal_size"),
                        max: number("max_proposal_size"),
                    }),
                }),
            }),
        };
    }

    fn follower(server: u64) -> LearnerGauges {
        LearnerGauges {
            server: ServerId(server as i64),
            kind: LearnerKind::Follower,
            lag_txns: 10 * server,
            lag_ms: server,
        }
    }

    /// A server of the captured ensemble of three voters and an observer, with its `mntr`, and how
    /// many requests it had answered by then.
    fn captured_member(role: &str) -> State {
        let (mode, server, answered) = match role {
            "leader" => (Mode::Leader, 3, 12),
            "follower" => (Mode::Follower, 1, 12),
            "observer" => (Mode::Observer, 4, 12),
            _ => (Mode::ReadOnly, 1, 0),
        };
        let (home, size) = match mode {
            Mode::ReadOnly => ("/var/zk/ens-3.10/s1/data/version-2".to_owned(), 722),
            _ => (format!("/var/zk/ens-3.10/s{server}/data/version-2"), 67_109_602),
        };
        let lines = (1..=4).map(|id| {
            let role = if id == 4 { "observer" } else { "participant" };
            format!("server.{id}=127.0.1.{id}:22888:23888:{role};127.0.1.{id}:21811\n")
        });
        with(captured("3.10-SNAPSHOT"), |s| {
            measure(s, &sample(&format!("3.10-SNAPSHOT/{role}/mntr.txt")), answered);
            s.mode = mode;
            s.zxid = Zxid(if mode == Mode::ReadOnly { 0 } else { 0x1_0000_0017 });
            s.sizes = Sizes { data_dir_bytes: size, data_log_dir_bytes: size };
            s.configuration.client_port = Some(21811);
            (s.configuration.data_dir, s.configuration.data_log_dir) = (home.clone(), home);
            s.configuration.server_id = server;
            s.configuration.quorum = Some(QuorumConfiguration {
                init_limit_ticks: 10,
                sync_limit_ticks: 5,
                election_ports: vec![23888],
                quorum_ports: vec![22888],
                is_observer: mode == Mode::Observer,
                membership: lines.collect::<String>() + "version=0",
            });
        })
    }

    /// What a captured answer has after a name and a colon.
    fn number_after(text: &str, name: &str) -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.unwrap().parse().unwrap()
    }

    #[test]
    fn servers_of_an_ensemble_answer_as_captured() {
        for role in ["leader", "follower", "observer", "readonly"] {
            let state = captured_member(role);
            let captured = |word| sample(&format!("3.10-SNAPSHOT/{role}/{word}.txt"));
            // The counts have gone on from one word to the next.
            let counted = |text: &str| {
                with(state.clone(), |s| {
                    let recorded = |name| number_after(text, name);
                    let (metrics, recorders) = Metrics::new(1);
                    recorders[0].add(Counter::PacketsReceived, recorded("Received"));
                    recorders[0].add(Counter::PacketsSent, recorded("Sent"));
                    let latency = s.readings.summary(Summary::RequestLatency).clone();
                    let mut record = |value| recorders[0].record(Summary::RequestLatency, value);
                    let (min, max) = (latency.min, latency.max);
                    spread(&mut record, latency.count, min, max, latency.sum);
                    s.readings = metrics.read();
                })
            };
            let srvr = captured("srvr");
            assert_eq!(answer(Word::Srvr, &counted(&srvr)), srvr, "{role}");
            let stat = captured("stat");
            let clients = stat.lines().filter(|line| line.starts_with(' '));
            let shown = listing(Word::Stat, &counted(&stat), |_| ());
            let without_clients =
                clients.fold(stat.clone(), |stat, line| stat.replace(&format!("{line}\n"), ""));
            assert_eq!(shown, without_clients, "{role}");
            assert_eq!(answer(Word::Conf, &state), captured("conf"), "{role}");
            assert_eq!(answer(Word::Isro, &state), captured("isro"), "{role}");
        }
    }

    #[test]
    fn a_leader_shows_the_sizes_of_its_proposals_since_they_were_reset() {
        let state = with(captured_member("leader"), |s| {
            s.readings = measured(1, 1, &[]);
            let quorum = s.gauges.quorum.as_mut().unwrap();
            quorum.leader.as_mut().unwrap().proposal_bytes = None;
        });
        assert_eq!(answer(Word::Srvr, &state), sample("3.10-SNAPSHOT/leader/srvr-after-srst.txt"));
        assert!(answer(Word::Mntr, &state).contains("zk_min_proposal_size\t-1\n"));
    }

    /// Java keeps sessions without an order, and shows when connections expired that it has none of.
    #[test]
    fn who_leads_dumps_when_sessions_expire_and_others_their_timeouts() {
        let ids = [0x0300_000e_762e_0000, 0x0100_000e_7623_0000, 0x0400_000e_7dc2_0000];
        let ids = ids.map(SessionId);
        for role in ["leader", "follower", "observer", "readonly"] {
            let dump = listing(Word::Dump, &captured_member(role), |lists| {
                if role == "readonly" {
                    return;
                }
                for id in ids {
                    let expires_at_ms = 1_795_181_230_000;
                    lists.session(&Session {
                        id,
                        timeout_ms: 15_000,
                        expires_at_ms,
                        is_local: false,
                    });
                }
                lists.ephemeral(ids[0], "/app/eph-leader");
                lists.ephemeral(ids[2], "/app/eph-observer");
                lists.ephemeral(ids[1], "/app/eph-follower");
            });
            let before_connections = |text: &str| -> Vec<String> {
                let (sessions, _) = text.split_once("Connections dump:\n").unwrap();
                let mut lines: Vec<_> = sessions.lines().map(str::to_owned).collect();
                if role == "leader" {
                    lines[3..6].sort();
                }
                lines
            };
            let captured = sample(&format!("3.10-SNAPSHOT/{role}/dump.txt"));
            assert_eq!(before_connections(&dump), before_connections(&captured), "{role}");
        }
    }

    /// High percentiles depend on values that a capture does not show; and how far learners are,
    /// ZooKeeper does not show.
    #[test]
    fn monitoring_shows_of_each_role_what_was_captured() {
        for role in ["leader", "follower", "observer", "readonly"] {
            let shown = answer(Word::Mntr, &captured_member(role));
            let captured = sample(&format!("3.10-SNAPSHOT/{role}/mntr.txt"));
            let lines = |text| -> BTreeSet<String> {
                let lines = but_medians(text).into_iter();
                lines.filter(|line| !line.starts_with("zk_p95_")).map(str::to_owned).collect()
            };
            let (shown_lines, captured_lines) = (lines(&shown), lines(&captured));
            let ours: Vec<_> = shown_lines.difference(&captured_lines).collect();
            let lags: &[&str] = match role {
                "leader" => &[
                    "zk_1_learner_lag_ms\t1",
                    "zk_1_learner_lag_txns\t10",
                    "zk_2_learner_lag_ms\t2",
                    "zk_2_learner_lag_txns\t20",
                ],
                _ => &[],
            };
            assert_eq!(ours, lags, "{role}");
            let missing: Vec<_> = captured_lines.difference(&shown_lines).collect();
            assert_eq!(missing, Vec::<&String>::new(), "{role}");
        }
    }

    /// Medians depend on every value, which a capture does not show.
    fn but_medians(text: &str) -> BTreeSet<&str> {
        text.lines().filter(|line| !line.starts_with("zk_p50_")).collect()
    }

    #[test]
    fn monitoring_shows_all_that_was_captured_and_nothing_else() {
        let (shown, captured) =
            (answer(Word::Mntr, &monitored("3.10-SNAPSHOT")), sample("3.10-SNAPSHOT/mntr.txt"));
        let (shown_lines, captured_lines) = (but_medians(&shown), but_medians(&captured));
        assert_eq!(
            shown_lines.symmetric_difference(&captured_lines).collect::<Vec<_>>(),
            Vec::<&&str>::new()
        );
        assert_eq!(shown.lines().count(), captured.lines().count());
        let heads = |text: &str| text.lines().take(2).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(heads(&shown), heads(&captured));
    }

    #[test]
    fn monitoring_shows_all_that_older_releases_show() {
        let (shown, captured) = (answer(Word::Mntr, &monitored("3.8.0")), sample("3.8.0/mntr.txt"));
        let shown_lines = but_medians(&shown);
        let missing: Vec<&str> =
            but_medians(&captured).into_iter().filter(|line| !shown_lines.contains(line)).collect();
        assert_eq!(missing, Vec::<&str>::new());
    }

    #[test]
    fn a_young_server_shows_zeros() {
        let text = answer(Word::Mntr, &captured("3.8.0"));
        for line in [
            "zk_avg_latency\t0.0",
            "zk_last_client_response_size\t-1",
            "zk_min_client_response_size\t-1",
            "zk_max_client_response_size\t-1",
            "zk_op_count_create\t0",
            "zk_p999_readlatency\t0",
            "zk_avg_fsynctime\t0.0",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line}");
        }
    }

    #[test]
    fn not_serving_answers_are_as_captured() {
        let state = State { serving: None, ..captured("3.10-SNAPSHOT") };
        let words = Word::ALL.iter().map(|&(_, word)| word);
        for word in words.filter(|word| !matches!(word, Word::TelnetInterrupt | Word::Stmk)) {
            let expected = match word {
                Word::Envi => "3.10-SNAPSHOT/envi.txt".to_owned(),
                _ => format!("not-serving/{word}.txt"),
            };
            assert_eq!(answer(word, &state), sample(&expected), "{word}");
            assert_eq!(word.effect(false), Effect::None);
        }
    }

    /// Each line of the capture is `word: b'answer'`, with every word and the default setting.
    #[test]
    fn refusals_are_as_captured() {
        let whitelist = Whitelist::parse(None, false);
        let lines = sample("not-whitelisted.txt");
        for line in lines.lines() {
            let (name, text) = line.split_once(": b'").unwrap();
            let word = Word::parse(name.as_bytes().try_into().unwrap()).unwrap();
            assert_eq!(whitelist.allows(word), word == Word::Srvr);
            if word != Word::Srvr {
                assert_eq!(refusal(word), text.strip_suffix("\\n'").unwrap().to_owned() + "\n");
            }
        }
        assert_eq!(lines.lines().count(), Word::ALL.len() - 1);
    }

    #[test]
    fn a_whitelist_is_words_by_commas() {
        let allowed = |setting, read_only| {
            let whitelist = Whitelist::parse(setting, read_only);
            let words = Word::ALL.iter().map(|&(_, word)| word);
            words.filter(|&word| whitelist.allows(word)).map(|w| w.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(allowed(Some(""), false), ["srvr", "telnet close"]);
        assert_eq!(allowed(Some(""), true), ["isro", "srvr", "telnet close"]);
        let some = allowed(Some(" ruok, ,stat,RUOK,bogus,mntrx ,"), false);
        assert_eq!(some, ["ruok", "srvr", "stat", "telnet close"]);
        assert_eq!(allowed(Some("ruok, * ,"), false).len(), Word::ALL.len());
    }

    #[test]
    fn words_are_case_sensitive_and_few() {
        assert_eq!(Word::parse(*b"ruok"), Some(Word::Ruok));
        assert_eq!(Word::parse(*b"RUOK"), None);
        assert_eq!(Word::parse(*b"abcd"), None);
        assert_eq!(Word::parse(*b"\xff\xf4\xff\xfd"), Some(Word::TelnetInterrupt));
        assert_eq!(Word::ALL.map(|(_, word)| word.argument_bytes()).iter().sum::<usize>(), 8);
    }

    /// The shell leaves out what a word does not need, so no answer may depend on that.
    #[test]
    fn an_answer_needs_no_more_than_it_says() {
        let full = with(monitored("3.10-SNAPSHOT"), |s| {
            s.sizes = Sizes { data_dir_bytes: 1, data_log_dir_bytes: 2 };
            s.digests = vec![(Zxid(0x80), 1)];
        });
        type IsNeeded = fn(Needs) -> bool;
        type Clear = fn(&mut Serving);
        let state_parts: [(IsNeeded, Clear); 3] = [
            (
                |needs| needs.measures,
                |s| {
                    s.gauges = Gauges::default();
                    s.readings = Metrics::new(0).0.read();
                },
            ),
            (|needs| needs.sizes, |s| s.sizes = Sizes::default()),
            (|needs| needs.digests, |s| s.digests.clear()),
        ];
        type List = fn(&mut Lists);
        let listed: [(IsNeeded, List); 4] = [
            (|needs| needs.connections, |l| connected([client_a(), asking(56498, 1)])(l)),
            (
                |needs| needs.sessions,
                |l| l.session(&Session { id: A, timeout_ms: 1, expires_at_ms: 1, is_local: false }),
            ),
            (|needs| needs.ephemerals, |l| l.ephemeral(A, "/e")),
            (|needs| needs.watches, |l| l.watched("/w", &[A])),
        ];
        let mut unneeded = Vec::new();
        for &(_, word) in &Word::ALL {
            let all = |l: &mut Lists| listed.iter().for_each(|(_, list)| list(l));
            let whole = listing(word, &full, all);
            for (index, (is_needed, clear)) in state_parts.into_iter().enumerate() {
                let is_same = listing(word, &with(full.clone(), clear), all) == whole;
                if is_same == is_needed(word.needs()) {
                    unneeded.push((word, "state", index));
                }
            }
            for (index, (is_needed, _)) in listed.into_iter().enumerate() {
                let is_same = listing(word, &full, |l| {
                    let others = listed.iter().enumerate().filter(|(other, _)| *other != index);
                    others.for_each(|(_, (_, list))| list(l));
                }) == whole;
                if is_same == is_needed(word.needs()) {
                    unneeded.push((word, "lists", index));
                }
            }
        }
        assert_eq!(unneeded, []);
    }
}
