//! What each part is told, out of the configuration.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::accept::AcceptOptions;
use super::background::{SnapshotBackEnd, SnapshotOptions};
use super::cores::Wishes;
use super::directories::Directories;
use super::disk::LogOptions;
use super::links::LinkOptions;
use super::recover::{MemberOptions, RecoverOptions};
use super::ring::Ring;
use crate::admin::four_letter::Whitelist;
use crate::admin::{Configuration, QuorumConfiguration};
use crate::auth::{self, DigestSettings, Providers, UnknownScheme, digest};
use crate::config::{
    self, Config, DigestAlgorithm, DigestMismatch, Endpoint, EnsembleConfig, FourLetterWords, Pin,
    SessionWeights, TxnLog, TxnLogBackEnd,
};
use crate::ensemble::{HostPort, Role};
use crate::pipeline;
use crate::shard::{self, ConnectThrottle, EarlyDrop};
use crate::storage;
use crate::storage::gathering::Shaping;
use crate::storage::journal::{self, BackEnd};
use crate::storage::standing::{Recent, Standing};
use crate::tree::{self, ephemerals};
use crate::types::{ServerId, Zxid};
use crate::zab::history::{Cache, History};
use crate::zab::proposals::Proposal;
use crate::zab::voters::Voters;
use crate::zab::{self, election, peer};

/// When this was built, as ZooKeeper shows it.
pub(crate) const BUILT_ON: &str = env!("RINGKEEPER_BUILT_ON");

/// The least by which a log grows. ZooKeeper lets logs grow record by record where
/// `preAllocSize` is zero; a mapped one cannot.
const LOG_STEP_BYTES_MIN: u64 = 64 << 10;
/// Steps are whole pages.
const PAGE_BYTES: u64 = 4096;
/// Ticks are at least so often, so that silence and expiry are noticed in time.
const TICK_MS_MAX: i64 = 500;

pub(crate) fn cores(config: &Config) -> Wishes {
    let pinned = match config.runtime.pin {
        Pin::Auto => None,
        Pin::Always => Some(true),
        Pin::Never => Some(false),
    };
    Wishes { shards: config.runtime.shards, pinned }
}

/// The ring that a shard core makes for itself.
pub(crate) fn ring(config: &Config) -> fn() -> io::Result<Ring> {
    if config.runtime.is_ring_plain { Ring::plain } else { Ring::new }
}

pub(crate) fn spin(config: &Config) -> Duration {
    Duration::from_micros(u64::from(config.runtime.spin_us))
}

/// At least twice per tickTime.
pub(crate) fn tick(config: &Config) -> Duration {
    milliseconds((config.tick_time_ms / 2).clamp(1, TICK_MS_MAX))
}

fn milliseconds(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

fn tree(config: &Config) -> tree::Settings {
    tree::Settings {
        types: ephemerals::Types {
            extended: config.znodes.extended_types,
            emulate_353: config.znodes.emulate_353,
        },
        digest: config.snapshots.digest,
    }
}

pub(crate) fn recover(config: &Config) -> RecoverOptions {
    RecoverOptions {
        tree: tree(config),
        trust_empty: config.snapshots.trust_empty,
        on_mismatch: match config.snapshots.digest_mismatch {
            DigestMismatch::Refuse => pipeline::OnMismatch::Refuse,
            DigestMismatch::Warn => pipeline::OnMismatch::Count,
        },
        is_live: false,
        member: config.ensemble.as_ref().map(|ensemble| MemberOptions {
            autocreate: config.snapshots.create_database,
            cache: cache(ensemble),
        }),
    }
}

/// The longest record that is written: ZooKeeper could not read a longer one.
fn record_bytes_max(config: &Config) -> usize {
    config.connections.packet_bytes_max + config.connections.packet_bytes_extra
}

/// `shares_core`: the pipeline runs on one core with the only shard.
pub(crate) fn log(config: &Config, directories: &Directories, shares_core: bool) -> LogOptions {
    let step = config.txn_log.preallocate_bytes.max(LOG_STEP_BYTES_MIN);
    let TxnLog { flush_delay_ms, poll_ms, batch_max, .. } = config.txn_log;
    LogOptions {
        directory: directories.logs().to_path_buf(),
        snapshots: directories.snapshots().to_path_buf(),
        journal: journal::Settings {
            back_end: match config.txn_log.back_end {
                TxnLogBackEnd::Direct if config.txn_log.force_sync => BackEnd::Direct,
                TxnLogBackEnd::Direct | TxnLogBackEnd::Mapped => BackEnd::Mapped,
            },
            step_bytes: step.next_multiple_of(PAGE_BYTES),
            force_sync: config.txn_log.force_sync,
            shaping: (0 < flush_delay_ms).then(|| Shaping {
                delay: milliseconds(flush_delay_ms),
                poll: milliseconds(poll_ms),
                batch_max: batch_max as u64,
            }),
            waits_for_answered: shares_core,
        },
        sync_warning: milliseconds(config.txn_log.sync_warning_ms),
    }
}

pub(crate) fn snapshots(config: &Config) -> SnapshotOptions {
    SnapshotOptions {
        back_end: match config.snapshots.back_end {
            config::SnapshotBackEnd::Direct => SnapshotBackEnd::Direct,
            config::SnapshotBackEnd::Glommio => SnapshotBackEnd::Glommio,
        },
        compression: match config.snapshots.compression {
            config::Compression::None => storage::Compression::None,
            config::Compression::Gzip => storage::Compression::Gzip,
            config::Compression::Snappy => storage::Compression::Snappy,
        },
        with_zxid: config.snapshots.last_zxid,
        retain: config.snapshots.retain,
        purge_every: config.snapshots.purge_interval_ms.map(milliseconds),
        retry_after: milliseconds(config.snapshots.retry_ms),
    }
}

pub(crate) fn accept(config: &Config) -> AcceptOptions {
    AcceptOptions {
        max_per_address: config.connections.max_per_address,
        max: config.connections.max,
        keep_alive: config.connections.tcp_keep_alive,
    }
}

pub(crate) fn providers(config: &Config) -> Result<Providers, UnknownScheme> {
    let algorithm = match config.auth.digest_algorithm {
        DigestAlgorithm::Sha1 => digest::Algorithm::Sha1,
        DigestAlgorithm::Sha224 => digest::Algorithm::Sha224,
        DigestAlgorithm::Sha256 => digest::Algorithm::Sha256,
        DigestAlgorithm::Sha384 => digest::Algorithm::Sha384,
        DigestAlgorithm::Sha512 => digest::Algorithm::Sha512,
    };
    let super_digest = config.auth.super_digest.clone();
    Providers::new(auth::Settings {
        digest: config.auth.digest.then_some(DigestSettings { algorithm, super_digest }),
        enforced_schemes: config.auth.enforced_schemes.iter().cloned().collect(),
        ..auth::Settings::default()
    })
}

/// How many ephemerals are listed before other requests have their turn: less than a millisecond.
const LISTED_PER_STEP: usize = 512;

/// In the top byte of session ids; a standalone server is 1 there.
pub(crate) fn server_id(config: &Config) -> ServerId {
    match (&config.ensemble, config.server_id) {
        (Some(_), Some(id)) => id,
        _ => ServerId(1),
    }
}

fn cache(ensemble: &EnsembleConfig) -> Cache {
    Cache { count_max: ensemble.commit_log_count, bytes_max: ensemble.commit_log_bytes_max }
}

/// What one server of an ensemble brings: what is on its disk ends at `last`.
pub(crate) fn member(
    config: &Config,
    ensemble: &EnsembleConfig,
    standing: &Standing,
    recent: Recent,
    last: Zxid,
) -> pipeline::MemberStart {
    let members = Arc::new(ensemble.members.clone());
    let current = standing.current.unwrap_or(last.epoch());
    let cache = cache(ensemble);
    // What a snapshot shows that is ahead of the log is no history of this log.
    let is_whole = recent.txns.back().is_some_and(|(zxid, _)| *zxid == last);
    let after = if is_whole { recent.after } else { last };
    let mut history = History::new(cache, after);
    for (zxid, payload) in recent.txns.into_iter().filter(|(zxid, _)| after < *zxid) {
        history.push(Proposal { zxid, payload: payload.into() });
    }
    pipeline::MemberStart {
        cache,
        leader_serves: ensemble.leader_serves,
        reads_alone: ensemble.reads_alone,
        local_sessions: match (ensemble.local_sessions, ensemble.local_sessions_upgrading) {
            (false, _) => pipeline::LocalSessions::Off,
            (true, false) => pipeline::LocalSessions::Fixed,
            (true, true) => pipeline::LocalSessions::Upgraded,
        },
        config: members.to_string().into(),
        config_version: members.version,
        peer: peer::Start {
            me: server_id(config),
            settings: zab::Settings {
                tick_ms: config.tick_time_ms,
                init_limit: ensemble.init_limit_ticks,
                sync_limit: ensemble.sync_limit_ticks,
                received_bytes_max: ensemble.received_bytes_max,
                unsynced_bytes_max: ensemble.unsynced_bytes_max,
                counters_from: 0,
                #[cfg(feature = "mutants")]
                mutant: None,
            },
            election: election::Settings {
                interval_ms_min: ensemble.notification_ms_min,
                interval_ms_max: ensemble.notification_ms_max,
                ..election::Settings::default()
            },
            voters: Arc::new(Voters::new(members, None)),
            is_observer: ensemble.role == Role::Observer,
            accepted: standing.accepted.unwrap_or(current),
            current,
            history,
            is_vouched_for: standing.doubt.is_none(),
        },
    }
}

/// How servers connect to each other.
pub(crate) fn links(config: &Config, ensemble: &EnsembleConfig) -> LinkOptions {
    let tick_ms = config.tick_time_ms;
    LinkOptions {
        listen_on_all: ensemble.quorum_listen_on_all_ips,
        bind_tries: ensemble.bind_tries,
        election_call: milliseconds(ensemble.connect_timeout_ms),
        leader_call: milliseconds(tick_ms * ensemble.connect_limit_ticks),
        hello_ms_max: ensemble.hello_timeout_ms,
        keep_alive: ensemble.tcp_keep_alive,
        multi_address: ensemble.multi_address,
        field_bytes_max: record_bytes_max(config),
        queue_bytes_max: ensemble.link_queue_bytes_max,
    }
}

pub(crate) fn pipeline(
    config: &Config,
    shards: usize,
    providers: Arc<Providers>,
) -> pipeline::Settings {
    pipeline::Settings {
        server: server_id(config),
        shards,
        tick_ms: config.tick_time_ms,
        providers,
        skip_acl: config.auth.skip_acl,
        enforce_quota: config.znodes.enforce_quota,
        reconfig_enabled: config.auth.reconfig,
        close_session_lists_paths: config.znodes.close_session_txn,
        record_bytes_max: record_bytes_max(config),
        answer_bytes_max: answer_bytes_max(config),
        listed_per_step: LISTED_PER_STEP,
        tree: tree(config),
        roll: pipeline::RollSettings {
            txns: config.snapshots.txns,
            bytes: config.snapshots.log_bytes.unwrap_or(0),
            log_bytes: config.txn_log.file_bytes_max.unwrap_or(0),
            put_off: config.snapshots.put_off,
        },
        reaper: pipeline::ReaperSettings {
            check_interval_ms: config.znodes.container_check_interval_ms,
            per_minute_max: i64::from(config.znodes.container_removals_per_minute),
            never_used_ms_max: config.znodes.container_never_used_ms.unwrap_or(0),
        },
        audit: config.audit.then(|| server_user().into()),
        seed: random(),
        #[cfg(feature = "mutants")]
        mutant: None,
    }
}

/// Who this process is, for the audit log.
pub(crate) fn server_user() -> String {
    let variable = |name| std::env::var(name).ok().filter(|user| !user.is_empty());
    variable("USER").or_else(|| variable("LOGNAME")).unwrap_or_else(|| "zookeeper".to_owned())
}

/// A number that nobody can foresee; std seeds its hashers with such.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// What all shards share, and each is told.
#[derive(Clone)]
pub(crate) struct Allowances {
    answer_bytes: shard::Allowance,
    watches: shard::Allowance,
}

/// What a shard leases at a time.
const ANSWERS_UNIT_BYTES: usize = 1 << 20;
const WATCHES_UNIT: usize = 1 << 10;

pub(crate) fn allowances(config: &Config, shards: usize) -> Allowances {
    let connections = &config.connections;
    let bytes = connections.answers_bytes_max.max(answer_bytes_max(config));
    Allowances {
        answer_bytes: shard::Allowance::new(bytes, shards, ANSWERS_UNIT_BYTES),
        watches: shard::Allowance::new(connections.watches_max, shards, WATCHES_UNIT),
    }
}

/// What a packet may bring can be read again; and a multi of many small operations, which is done by
/// then, is answered by up to four times its bytes.
pub(crate) fn answer_bytes_max(config: &Config) -> usize {
    let by_packets = config.connections.packet_bytes_max.saturating_mul(4);
    config.connections.answer_bytes_max.max(by_packets).min(FRAME_BYTES_MAX)
}

/// A frame's length is a signed number of 32 bits; some of it is for headers.
const FRAME_BYTES_MAX: usize = (i32::MAX as usize) - (1 << 16);

fn turn_budget(of: config::TurnBudget) -> shard::TurnBudget {
    shard::TurnBudget { bytes: of.bytes, steps: of.steps }
}

pub(crate) fn shard(
    config: &Config,
    shards: usize,
    providers: Arc<Providers>,
    allowances: Allowances,
) -> shard::Settings {
    let throttle = &config.throttle;
    let opens_locally = config.ensemble.as_ref().is_some_and(|ensemble| ensemble.local_sessions);
    let connect_throttle =
        throttle.connect.as_ref().map(|of| connect_throttle(of, shards, opens_locally));
    shard::Settings {
        frame_bytes_max: config.connections.packet_bytes_max,
        session_timeout_min_ms: to_i32(config.min_session_timeout_ms),
        session_timeout_max_ms: to_i32(config.max_session_timeout_ms),
        providers,
        skip_acl: config.auth.skip_acl,
        sessionless_timeout_ms: config.connections.sessionless_timeout_ms,
        silence_slack_ms: config.tick_time_ms,
        outstanding_max: (throttle.outstanding_max / shards).max(1),
        large_request_bytes: throttle.large_request_bytes,
        large_requests_bytes_max: usize::try_from(throttle.large_requests_bytes_max)
            .unwrap_or(usize::MAX),
        throttled_op_wait_ms: throttle.op_wait_ms,
        connect_throttle,
        input_bytes_max: config.connections.input_bytes_max,
        output_bytes_max: config.connections.output_bytes_max,
        output_bytes_ceiling: config.connections.output_bytes_ceiling,
        answer_bytes_max: answer_bytes_max(config),
        answer_bytes: allowances.answer_bytes,
        watches_per_connection_max: config.connections.watches_per_connection_max,
        watches: allowances.watches,
        connection_turn: turn_budget(config.connections.connection_turn),
        turn: turn_budget(config.connections.turn),
        auth_bytes_max: config.connections.auth_bytes_max,
        hash_seed: random(),
        serves_at_birth: config.ensemble.is_none(),
    }
}

/// A shard's part: connections are spread over all of them evenly.
fn connect_throttle(
    of: &config::ConnectThrottle,
    shards: usize,
    opens_locally: bool,
) -> ConnectThrottle {
    let shards = i64::try_from(shards.max(1)).unwrap_or(i64::MAX);
    let early_drop = of.freeze_time_ms.map(|freeze_time_ms| EarlyDrop {
        freeze_time_ms,
        increase: of.drop_increase,
        decrease: of.drop_decrease,
        decrease_ratio: of.decrease_ratio,
    });
    let of_new = |weights: SessionWeights| match opens_locally {
        true => weights.local,
        false => weights.global,
    };
    let for_new = of.weights.map_or(1, |weights| i64::from(of_new(weights)));
    ConnectThrottle {
        // Else nobody would ever come in.
        tokens_max: (i64::from(of.tokens) / shards).max(for_new),
        fill_time_ms: of.fill_time_ms.saturating_mul(shards),
        fill_count: i64::from(of.fill_count),
        for_new,
        for_renewed: of.weights.map_or(1, |weights| i64::from(weights.renewed)),
        early_drop,
    }
}

fn to_i32(ms: i64) -> i32 {
    i32::try_from(ms).unwrap_or(if ms < 0 { 0 } else { i32::MAX })
}

pub(crate) fn whitelist(config: &Config) -> Whitelist {
    match &config.four_letter_words {
        FourLetterWords::All => Whitelist::parse(Some("*"), false),
        FourLetterWords::Only(words) => {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            Whitelist::parse(Some(&words.join(",")), false)
        }
    }
}

/// What `conf` shows.
pub(crate) fn shown(config: &Config, directories: &Directories) -> Configuration {
    let absolute = |path: &Path| {
        std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf()).display().to_string()
    };
    let limit = config.connections.max_per_address.unwrap_or(0);
    Configuration {
        client_port: config.listener.map(|endpoint| endpoint.port),
        secure_client_port: config.secure_listener.map(|endpoint| endpoint.port),
        data_dir: absolute(directories.snapshots()),
        data_log_dir: absolute(directories.logs()),
        tick_time_ms: config.tick_time_ms,
        max_client_cnxns: i64::try_from(limit).unwrap_or(i64::MAX),
        min_session_timeout_ms: config.min_session_timeout_ms,
        max_session_timeout_ms: config.max_session_timeout_ms,
        client_port_listen_backlog: config.connections.listen_backlog.map_or(-1, i64::from),
        server_id: config.server_id.map_or(0, |server| server.0),
        quorum: config.ensemble.as_ref().map(|ensemble| shown_quorum(config, ensemble)),
    }
}

fn shown_quorum(config: &Config, ensemble: &EnsembleConfig) -> QuorumConfiguration {
    let mut members = ensemble.members.clone();
    let own = members.members.get_mut(&server_id(config));
    // What its line does not say, `clientPort` does (`QuorumPeerConfig.setupClientPort`).
    if let (Some(own), Some(Endpoint { address, port })) = (own, config.listener) {
        let host = address.map_or_else(|| "0.0.0.0".to_owned(), |address| address.to_string());
        own.client.get_or_insert(HostPort { host, port });
    }
    let own = members.members.get(&server_id(config));
    let addresses = own.map_or(&[][..], |own| &own.addresses);
    QuorumConfiguration {
        init_limit_ticks: ensemble.init_limit_ticks,
        sync_limit_ticks: ensemble.sync_limit_ticks,
        election_ports: addresses.iter().map(|address| address.election_port).collect(),
        quorum_ports: addresses.iter().map(|address| address.quorum_port).collect(),
        is_observer: ensemble.role == Role::Observer,
        membership: members.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_share_the_tokens_of_connections() {
        let config = config::ConnectThrottle {
            tokens: 30,
            fill_time_ms: 10,
            fill_count: 3,
            freeze_time_ms: Some(50),
            drop_increase: 0.02,
            drop_decrease: 0.002,
            decrease_ratio: 0.1,
            weights: Some(SessionWeights { global: 3, local: 1, renewed: 2 }),
        };
        let of = |shards| connect_throttle(&config, shards, false);
        let four = of(4);
        assert_eq!((four.tokens_max, four.fill_time_ms, four.fill_count), (7, 40, 3));
        assert_eq!((four.for_new, four.for_renewed), (3, 2));
        assert_eq!(four.early_drop.map(|drop| drop.freeze_time_ms), Some(50));
        assert_eq!(connect_throttle(&config, 4, true).for_new, 1);
        // Room for one at least.
        assert_eq!(of(100).tokens_max, 3);
        let plain = config::ConnectThrottle { weights: None, freeze_time_ms: None, ..config };
        let plain = connect_throttle(&plain, 1, false);
        assert_eq!((plain.tokens_max, plain.for_new, plain.for_renewed), (30, 1, 1));
        assert_eq!(plain.early_drop, None);
    }
}
