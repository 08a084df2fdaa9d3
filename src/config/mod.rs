//! What a run is told: one typed [`Config`], however it was told.
//!
//! ```text
//! zoo.cfg          properties.rs   text to keys and values
//! PORT DATADIR  -> zoo_cfg.rs      keys and values to a Config, by the table of
//! nothing at all   knobs.rs        every tunable with its default
//! -Dname=value
//! ```
//!
//! Nothing here opens a file or asks a name server: what the parser needs of the world it asks of
//! the [`Surroundings`] it is given. What it has to say besides the result it returns as text:
//! warnings, to be logged once there is a log, and refusals, which are settings that are right and
//! that this version cannot serve.

pub mod knobs;
pub mod properties;
pub mod zoo_cfg;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use self::properties::Properties;
use crate::ensemble::{Ensemble, Role};
use crate::types::ServerId;

/// Everything a server is told before it starts.
#[derive(Clone, Debug)]
pub struct Config {
    pub origin: Origin,
    /// From `dataDir/myid`, where there is one.
    pub server_id: Option<ServerId>,
    /// Without `version-2`.
    pub data_dir: PathBuf,
    /// Without `version-2`; the same as `data_dir` unless set.
    pub data_log_dir: PathBuf,
    /// The plain client port; `None` where only others are asked for.
    pub listener: Option<Endpoint>,
    pub secure_listener: Option<Endpoint>,
    pub tick_time_ms: i64,
    pub min_session_timeout_ms: i64,
    pub max_session_timeout_ms: i64,
    pub connections: Connections,
    pub four_letter_words: FourLetterWords,
    pub txn_log: TxnLog,
    pub snapshots: Snapshots,
    pub znodes: Znodes,
    pub auth: Auth,
    pub throttle: Throttle,
    pub admin: Admin,
    pub runtime: Runtime,
    pub logging: Logging,
    /// Whether changes are written to the log with who made them.
    pub audit: bool,
    /// `None` for a standalone server.
    pub ensemble: Option<EnsembleConfig>,
    /// Every setting that was given, by the key it has in a file. See [`Config::shown_settings`].
    pub settings: BTreeMap<String, String>,
    /// What is to be logged as a warning.
    pub warnings: Vec<String>,
    /// Why this version cannot serve this configuration, though it is a right one.
    pub refusals: Vec<String>,
}

/// Where a configuration came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    File(PathBuf),
    /// `PORT DATADIR [TICKTIME [MAXCNXNS]]`
    Arguments,
    /// No arguments at all.
    Embedded,
}

/// Where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `None`: every address, of both families.
    pub address: Option<IpAddr>,
    pub port: u16,
}

/// What one connection may do, and how many there may be. Absent limits are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connections {
    pub max_per_address: Option<usize>,
    pub max: Option<usize>,
    /// What to ask of `listen`; `None` leaves it to the shell.
    pub listen_backlog: Option<u32>,
    pub tcp_keep_alive: bool,
    /// How long one may live without asking for a session.
    pub sessionless_timeout_ms: i64,
    /// The longest packet, `jute.maxbuffer`.
    pub packet_bytes_max: usize,
    /// How much longer a record that a server wrote may be.
    pub packet_bytes_extra: usize,
    /// Unread beyond this while requests wait, a connection is not read from.
    pub input_bytes_max: usize,
    /// Unwritten beyond this, requests wait.
    pub output_bytes_max: usize,
    /// Events unwritten beyond this, another ends the connection.
    pub output_bytes_ceiling: usize,
    /// The longest answer.
    pub answer_bytes_max: usize,
    /// What is unwritten of all connections.
    pub answers_bytes_max: usize,
    /// Watches of one connection, and of all.
    pub watches_per_connection_max: usize,
    pub watches_max: usize,
    /// What a connection, and what all of a core, are given in one turn.
    pub connection_turn: TurnBudget,
    pub turn: TurnBudget,
    /// What the ids may take that a connection gathers.
    pub auth_bytes_max: usize,
}

/// How much is done for clients in one turn of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnBudget {
    /// Of answers.
    pub bytes: usize,
    pub steps: usize,
}

/// The whitelist. `srvr` is always on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FourLetterWords {
    All,
    Only(BTreeSet<String>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnLog {
    pub back_end: TxnLogBackEnd,
    /// Whether a write is synced before it is answered.
    pub force_sync: bool,
    pub sync_warning_ms: i64,
    pub preallocate_bytes: u64,
    /// A new file is begun at this size.
    pub file_bytes_max: Option<u64>,
    pub flush_delay_ms: i64,
    pub poll_ms: i64,
    pub batch_max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxnLogBackEnd {
    Direct,
    Mapped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotBackEnd {
    Direct,
    Glommio,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshots {
    pub back_end: SnapshotBackEnd,
    /// One is taken between half of this and this many transactions.
    pub txns: u64,
    pub log_bytes: Option<u64>,
    /// Whether one that is larger than the log since the last may wait. Not where either limit
    /// was set.
    pub put_off: bool,
    pub compression: Compression,
    /// Whether a log without any snapshot may be served.
    pub trust_empty: bool,
    /// Whether they end with the zxid they hold.
    pub last_zxid: bool,
    /// Whether the digest of the tree is kept, written and checked.
    pub digest: bool,
    /// What a start makes of a digest that differs.
    pub digest_mismatch: DigestMismatch,
    /// How many purging leaves.
    pub retain: usize,
    pub purge_interval_ms: Option<i64>,
    /// After one that could not be written.
    pub retry_ms: i64,
    /// Whether missing directories are made.
    pub create_directories: bool,
    /// Whether an empty database may be begun without being told so.
    pub create_database: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Snappy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DigestMismatch {
    Refuse,
    Warn,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Znodes {
    /// Whether time to live is allowed.
    pub extended_types: bool,
    /// Whether those that 3.5.3 wrote are known for what they are.
    pub emulate_353: bool,
    pub container_check_interval_ms: i64,
    pub container_removals_per_minute: u32,
    pub container_never_used_ms: Option<i64>,
    pub enforce_quota: bool,
    /// Whether closeSession is logged with the znodes it removes.
    pub close_session_txn: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    pub skip_acl: bool,
    pub digest: bool,
    /// `user:hash` of the one who may do everything.
    pub super_digest: Option<String>,
    pub digest_algorithm: DigestAlgorithm,
    /// The schemes of which a connection must have used one; empty: none need be.
    pub enforced_schemes: BTreeSet<String>,
    pub reconfig: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DigestAlgorithm {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// How much may be under way. Absent limits are none.
#[derive(Clone, Debug, PartialEq)]
pub struct Throttle {
    pub outstanding_max: usize,
    pub requests_max: Option<usize>,
    pub stall_ms: i64,
    pub drop_stale: bool,
    pub stale_by_latency: bool,
    pub stale_by_connection: bool,
    pub op_wait_ms: Option<i64>,
    pub connect: Option<ConnectThrottle>,
    /// Longer requests count as large.
    pub large_request_bytes: Option<usize>,
    /// Of large requests together.
    pub large_requests_bytes_max: u64,
}

/// A bucket of tokens that sessions take as they begin, after `BlueThrottle`.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectThrottle {
    pub tokens: u32,
    pub fill_time_ms: i64,
    pub fill_count: u32,
    /// How often the probability to refuse is adapted; `None`: never refuse at random.
    pub freeze_time_ms: Option<i64>,
    pub drop_increase: f64,
    pub drop_decrease: f64,
    pub decrease_ratio: f64,
    /// What a session takes; one token each where they are not weighed.
    pub weights: Option<SessionWeights>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionWeights {
    pub global: u32,
    pub local: u32,
    pub renewed: u32,
}

/// The HTTP server for administration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    pub enabled: bool,
    pub address: String,
    pub port: u16,
    pub command_url: String,
}

/// How the server uses the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// Cores that serve clients; `None`: as many as there are CPUs for.
    pub shards: Option<usize>,
    pub pin: Pin,
    pub spin_us: u32,
    /// Clients are read from by readiness, as on kernels before 6.1.
    pub is_ring_plain: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    Auto,
    Always,
    Never,
}

/// How long the control commands wait. They have to work beside a file that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    pub start_ms: u64,
    pub stop_ms: u64,
    pub status_ms: u64,
}

impl Control {
    #[must_use]
    pub fn of(settings: &Properties, system: &BTreeMap<String, String>) -> Control {
        zoo_cfg::control(settings, system)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    pub format: LogFormat,
    /// A level, or levels by module.
    pub levels: String,
    /// How much may wait to be written.
    pub queue_bytes: usize,
    /// The same for audit lines.
    pub audit_queue_bytes: usize,
    /// For how long warnings that say the same are counted instead of logged; zero: each is logged.
    pub fold_seconds: u64,
}

impl Logging {
    /// For what has to be said when there is no [`Config`].
    #[must_use]
    pub fn of(settings: &Properties, system: &BTreeMap<String, String>) -> Logging {
        zoo_cfg::logging(settings, system)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// What a member of an ensemble is told besides.
#[derive(Clone, Debug, PartialEq)]
pub struct EnsembleConfig {
    pub members: Ensemble,
    pub init_limit_ticks: i64,
    pub sync_limit_ticks: i64,
    pub connect_limit_ticks: i64,
    pub role: Role,
    pub dynamic_file: Option<PathBuf>,
    /// `cnxTimeout`.
    pub connect_timeout_ms: i64,
    /// How long a connection that another server has opened may be silent at its start.
    pub hello_timeout_ms: i64,
    pub tcp_keep_alive: bool,
    /// What may wait to be sent to one server.
    pub link_queue_bytes_max: usize,
    /// What may be appended to the log and not synced.
    pub unsynced_bytes_max: usize,
    /// What a learner takes of its leader while its own disk is behind.
    pub received_bytes_max: usize,
    /// What is kept in memory of the committed log.
    pub commit_log_bytes_max: usize,
    /// `snapshotSizeFactor`.
    pub snapshot_size_factor: f64,
    /// `electionPortBindRetry`; `None`: for ever.
    pub bind_tries: Option<u32>,
    /// Between two notifications of one round of an election.
    pub notification_ms_min: i64,
    pub notification_ms_max: i64,
    /// How many transactions are kept in memory for learners that lack them.
    pub commit_log_count: usize,
    pub multi_address: bool,
    /// Whether a leader has clients of its own.
    pub leader_serves: bool,
    pub quorum_listen_on_all_ips: bool,
    pub observer_sync: bool,
    pub observer_master_port: Option<u16>,
    /// `readonlymode.enabled`: whether clients may read while there is no leader.
    pub reads_alone: bool,
    pub local_sessions: bool,
    pub local_sessions_upgrading: bool,
}

/// A configuration that cannot be: the process ends with code 2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Error processing {origin}: {reason}")]
pub struct ConfigError {
    /// The file, or the words `the arguments`.
    pub origin: String,
    pub reason: String,
}

/// What the parser asks of the world.
pub trait Surroundings {
    /// The bytes of a file; `None` if there is no such file.
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>>;
    /// The first address of a host, which may be an address itself.
    fn resolve(&self, host: &str) -> io::Result<IpAddr>;
}

impl Config {
    /// The file that ZooKeeper's own server takes as its only argument.
    pub fn from_file(
        path: &Path,
        system: &BTreeMap<String, String>,
        world: &dyn Surroundings,
    ) -> Result<Config, ConfigError> {
        zoo_cfg::parse_file(path, system, world)
    }

    /// `PORT DATADIR [TICKTIME [MAXCNXNS]]`. There is no limit of connections unless it is given,
    /// other than from a file (ServerConfig.parse).
    pub fn from_arguments(
        arguments: &[String],
        system: &BTreeMap<String, String>,
        world: &dyn Surroundings,
    ) -> Result<Config, ConfigError> {
        let keys = [&knobs::CLIENT_PORT.about, &knobs::DATA_DIR.about, &knobs::TICK_TIME.about];
        let keys = keys.map(|about| about.key);
        let limit = knobs::MAX_CLIENT_CNXNS.about.key;
        let given = keys.into_iter().chain([limit]).zip(arguments.iter().map(String::as_str));
        let settings = [(limit, "0")].into_iter().chain(given).collect();
        zoo_cfg::parse_settings(Origin::Arguments, settings, system, world)
    }

    /// What `ringkeeper` alone runs.
    pub fn embedded(
        system: &BTreeMap<String, String>,
        world: &dyn Surroundings,
    ) -> Result<Config, ConfigError> {
        let settings = EMBEDDED.into_iter().collect();
        zoo_cfg::parse_settings(Origin::Embedded, settings, system, world)
    }

    /// What was set, fit to be shown: without passwords.
    pub fn shown_settings(&self) -> impl Iterator<Item = (&str, &str)> {
        self.settings.iter().map(|(key, value)| {
            let shown = if is_secret(key) { SECRET } else { value.as_str() };
            (key.as_str(), shown)
        })
    }
}

/// The settings of a server that was told nothing. No limit of connections by address: there is
/// one user, on this machine.
pub const EMBEDDED: [(&str, &str); 4] = [
    ("clientPort", "2181"),
    ("dataDir", "./ringkeeper-data"),
    ("tickTime", "2000"),
    ("maxClientCnxns", "0"),
];

/// What is shown instead of a secret.
pub const SECRET: &str = "***";

/// Whether the value of this key must not be shown.
#[must_use]
pub fn is_secret(key: &str) -> bool {
    key.to_ascii_lowercase().ends_with("password")
}
