//! `zoo.cfg` and its dynamic file: settings to a [`Config`].
//!
//! Settings are looked for and judged as the table in `knobs.rs` says. What is wrong is found in
//! ZooKeeper's order, and said in its words where it has some, for there are people and scripts
//! that look for them.
//!
//! After `QuorumPeerConfig` (`parseProperties`, `setupQuorumPeerConfig`, `checkValidity`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::knobs::{self, About, Knob, PREFIX, Reader, Status, Value};
use super::properties::Properties;
use super::{
    Admin, Auth, Compression, Config, ConfigError, ConnectThrottle, Connections, Control,
    DigestAlgorithm, DigestMismatch, Endpoint, EnsembleConfig, FourLetterWords, LogFormat, Logging,
    Origin, Pin, Runtime, SessionWeights, SnapshotBackEnd, Snapshots, Surroundings, Throttle,
    TurnBudget, TxnLog, TxnLogBackEnd, Znodes,
};
use crate::ensemble::{Ensemble, HostPort, Role};
use crate::types::ServerId;

/// Why a setting is refused, yet without the file it stands in.
type Reason = String;

pub(super) fn parse_file(
    path: &Path,
    system: &BTreeMap<String, String>,
    world: &dyn Surroundings,
) -> Result<Config, ConfigError> {
    let fail = |reason| ConfigError { origin: path.display().to_string(), reason };
    let text = match world.read(path) {
        Ok(Some(text)) => text,
        Ok(None) => return Err(fail(format!("{} file is missing", path.display()))),
        Err(error) => return Err(fail(format!("{} ({error})", path.display()))),
    };
    let settings = Properties::parse(&text).map_err(|error| fail(error.to_string()))?;
    parse_settings(Origin::File(path.to_owned()), settings, system, world)
}

pub(super) fn parse_settings(
    origin: Origin,
    settings: Properties,
    system: &BTreeMap<String, String>,
    world: &dyn Surroundings,
) -> Result<Config, ConfigError> {
    let name = match &origin {
        Origin::File(path) => path.display().to_string(),
        Origin::Arguments => "the arguments".to_owned(),
        Origin::Embedded => "the embedded default".to_owned(),
    };
    let mut parser =
        Parser { file: settings, system, world, warnings: Vec::new(), refusals: Vec::new() };
    if let Origin::File(path) = &origin {
        parser.warn_of_relative(path);
    }
    parser.config(origin).map_err(|fault| ConfigError {
        origin: fault.file.map_or(name, |path| path.display().to_string()),
        reason: fault.reason,
    })
}

/// How to log, whatever else is wrong.
pub(super) fn logging(settings: &Properties, system: &BTreeMap<String, String>) -> Logging {
    let read = |knob: &Knob<&'static str>| {
        text(settings, system, &knob.about)
            .and_then(|text| knob.parse(text).ok())
            .unwrap_or_else(|| knob.default.read())
    };
    let number = |knob: &Knob<i64>| {
        text(settings, system, &knob.about)
            .and_then(|text| knob.parse(text).ok())
            .unwrap_or(knob.default)
    };
    Logging {
        format: match read(&knobs::LOG_FORMAT).as_str() {
            "json" => LogFormat::Json,
            _ => LogFormat::Text,
        },
        levels: read(&knobs::LOG_LEVEL),
        queue_bytes: length(number(&knobs::LOG_QUEUE_BYTES)),
        audit_queue_bytes: length(number(&knobs::AUDIT_QUEUE_BYTES)),
        fold_seconds: number(&knobs::LOG_FOLD).unsigned_abs(),
    }
}

/// How long the control commands wait, whatever else is wrong.
pub(super) fn control(settings: &Properties, system: &BTreeMap<String, String>) -> Control {
    let read = |knob: &Knob<i64>| {
        let given = text(settings, system, &knob.about).and_then(|text| knob.parse(text).ok());
        natural(given.unwrap_or(knob.default))
    };
    Control {
        start_ms: read(&knobs::START_TIMEOUT),
        stop_ms: read(&knobs::STOP_TIMEOUT),
        status_ms: read(&knobs::STATUS_TIMEOUT),
    }
}

/// The text of a setting, from where it is to be looked for.
fn text<'a>(
    file: &'a Properties,
    system: &'a BTreeMap<String, String>,
    about: &About,
) -> Option<&'a str> {
    let in_file = || {
        let value = |key: &str| file.value(key);
        match about.reader {
            Reader::File => value(about.key),
            // The name that works in ZooKeeper wins over the one in its documentation.
            _ => value(about.key)
                .or_else(|| about.alias.and_then(value))
                .or_else(|| value(&format!("{PREFIX}{}", about.key))),
        }
    };
    let in_system =
        || about.properties().iter().find_map(|name| system.get(name)).map(String::as_str);
    match about.reader {
        Reader::File => in_file(),
        Reader::Property | Reader::PrefixedOrBare => in_file().or_else(in_system),
        Reader::Bare | Reader::Ours => in_system().or_else(in_file),
    }
}

/// A reason, and the file if it is another than the one that is parsed.
struct Fault {
    file: Option<PathBuf>,
    reason: Reason,
}

impl From<Reason> for Fault {
    fn from(reason: Reason) -> Fault {
        Fault { file: None, reason }
    }
}

impl From<&str> for Fault {
    fn from(reason: &str) -> Fault {
        Fault { file: None, reason: reason.to_owned() }
    }
}

struct Parser<'a> {
    file: Properties,
    /// `-D`, and the environment of our own settings.
    system: &'a BTreeMap<String, String>,
    world: &'a dyn Surroundings,
    warnings: Vec<String>,
    refusals: Vec<String>,
}

impl Parser<'_> {
    fn config(mut self, origin: Origin) -> Result<Config, Fault> {
        self.check_strict_keys()?;
        self.check_quorum_sasl()?;

        let data_dir = self.directory(&knobs::DATA_DIR)?.ok_or("dataDir is not set")?;
        let data_log_dir = self.directory(&knobs::DATA_LOG_DIR)?;
        let data_log_dir = data_log_dir.unwrap_or_else(|| data_dir.clone());
        let listener = self.endpoint(&knobs::CLIENT_PORT, &knobs::CLIENT_PORT_ADDRESS)?;
        let secure_listener =
            self.endpoint(&knobs::SECURE_CLIENT_PORT, &knobs::SECURE_CLIENT_PORT_ADDRESS)?;
        if secure_listener.is_some() {
            self.check_ssl_auth_provider()?;
        }

        let tick_time_ms = self.read(&knobs::TICK_TIME)?;
        // -1 stands for the default, which is counted in ticks.
        let timeout = |given: i64, ticks: i64| match given {
            -1 => (ticks * tick_time_ms).min(i64::from(i32::MAX)),
            _ => given,
        };
        let min_session_timeout_ms = timeout(self.read(&knobs::MIN_SESSION_TIMEOUT)?, 2);
        let max_session_timeout_ms = timeout(self.read(&knobs::MAX_SESSION_TIMEOUT)?, 20);
        if max_session_timeout_ms < min_session_timeout_ms {
            return Err("minSessionTimeout must not be larger than maxSessionTimeout".into());
        }
        self.check_metrics_provider()?;

        let Membership { server_id, ensemble, listener } = self.membership(&data_dir, listener)?;
        let config = Config {
            origin,
            server_id,
            data_dir,
            data_log_dir,
            listener,
            secure_listener,
            tick_time_ms,
            min_session_timeout_ms,
            max_session_timeout_ms,
            connections: self.connections()?,
            four_letter_words: self.four_letter_words()?,
            txn_log: self.txn_log()?,
            snapshots: self.snapshots()?,
            znodes: self.znodes()?,
            auth: self.auth()?,
            throttle: self.throttle()?,
            admin: self.admin()?,
            runtime: self.runtime()?,
            logging: self.logging(),
            audit: self.read(&knobs::AUDIT_ENABLE)?,
            ensemble,
            settings: self.settings(),
            warnings: Vec::new(),
            refusals: Vec::new(),
        };
        self.refuse_what_is_not_served(&config)?;
        self.warn_of_what_has_no_effect(config.admin.enabled);
        Ok(Config { warnings: self.warnings, refusals: self.refusals, ..config })
    }

    /// Every key that ZooKeeper's own parser reads, and every one of ours, holds what it can hold.
    fn check_strict_keys(&self) -> Result<(), Reason> {
        for (key, setting) in self.file.iter() {
            let value = setting.value.as_str();
            let is_line_of_ensemble =
                ["server.", "group", "weight"].iter().any(|start| key.starts_with(start));
            if is_line_of_ensemble && self.file.value("dynamicConfigFile").is_some() {
                return Err(format!("parameter: {key} must be in a separate dynamic config file"));
            }
            let Some(knob) = knobs::find(key).filter(|knob| is_strict(knob.about())) else {
                continue;
            };
            // Zero ticks are no ticks, whichever way they are written.
            if key == knobs::TICK_TIME.about.key && value.parse() == Ok(0) {
                return Err("tickTime is not set".to_owned());
            }
            knob.check(value).map_err(|reason| match setting.line {
                0 => format!("{reason} ({key})"),
                line => format!("{reason} ({key}, line {line})"),
            })?;
        }
        let own_names = self.system.iter().filter_map(|(name, value)| {
            let knob = knobs::find(name).filter(|knob| knob.about().reader == Reader::Ours)?;
            Some((name, knob.check(value).err()?))
        });
        if let Some((name, reason)) = own_names.into_iter().next() {
            return Err(format!("{reason} (-D{name})"));
        }
        if let Some(role) = self.file.value(knobs::PEER_TYPE.about.key) {
            role.parse::<Role>().map_err(|error| error.to_string())?;
        }
        match self.file.value(knobs::ELECTION_ALG.about.key).map(str::parse::<i64>) {
            None | Some(Ok(3)) => Ok(()),
            Some(_) => Err("Invalid electionAlg value. Only 3 is supported.".to_owned()),
        }
    }

    fn check_quorum_sasl(&mut self) -> Result<(), Reason> {
        let enabled = self.read(&knobs::QUORUM_SASL)?;
        let server = self.read(&knobs::QUORUM_SASL_SERVER)?;
        let learner = self.read(&knobs::QUORUM_SASL_LEARNER)?;
        let [enable_key, server_key, learner_key] =
            [&knobs::QUORUM_SASL, &knobs::QUORUM_SASL_SERVER, &knobs::QUORUM_SASL_LEARNER]
                .map(|knob| knob.about.key);
        let missing = match (enabled, learner, server) {
            (false, _, true) => Some((enable_key, server_key)),
            (false, true, _) => Some((enable_key, learner_key)),
            (true, false, true) => Some((learner_key, server_key)),
            _ => None,
        };
        match missing {
            Some((needed, wanted)) => {
                Err(format!("{needed} is disabled, so cannot enable {wanted}"))
            }
            None => Ok(()),
        }
    }

    fn directory(&mut self, knob: &Knob<Option<&'static str>>) -> Result<Option<PathBuf>, Reason> {
        // An empty name would be the root directory in Java.
        let path = self.read(knob)?.filter(|path| !path.is_empty()).map(PathBuf::from);
        if let Some(path) = &path {
            self.warn_of_relative(path);
        }
        Ok(path)
    }

    fn warn_of_relative(&mut self, path: &Path) {
        if !path.is_absolute() && !path.starts_with(".") {
            let path = path.display();
            self.warnings
                .push(format!("{path} is relative. Prepend ./ to indicate that you're sure!"));
        }
    }

    fn endpoint(
        &mut self,
        port: &Knob<Option<i64>>,
        address: &Knob<Option<&'static str>>,
    ) -> Result<Option<Endpoint>, Reason> {
        let host = self.read(address)?;
        let number = self.read(port)?.filter(|&port| port != 0);
        match (number, host) {
            (None, None) => Ok(None),
            (None, Some(_)) => {
                let (address, port) = (address.about.key, port.about.key);
                Err(format!("{address} is set but {port} is not set"))
            }
            (Some(port), host) => Ok(Some(self.resolved(host.as_deref(), port_number(port))?)),
        }
    }

    fn resolved(&self, host: Option<&str>, port: u16) -> Result<Endpoint, Reason> {
        let address = match host {
            None => None,
            // InetAddress.getByName takes no name for the loopback address.
            Some("") => Some(std::net::Ipv4Addr::LOCALHOST.into()),
            Some(host) => {
                let address =
                    self.world.resolve(host).map_err(|error| format!("{host}: {error}"))?;
                (!address.is_unspecified()).then_some(address)
            }
        };
        Ok(Endpoint { address, port })
    }

    /// The scheme that is to read certificates has to be there. QuorumPeerConfig.configureSSLAuth
    /// adds the one for x509 itself.
    fn check_ssl_auth_provider(&self) -> Result<(), Reason> {
        let value = |key: &str| {
            let property = format!("{PREFIX}{key}");
            self.file.value(key).or_else(|| self.system.get(&property).map(String::as_str))
        };
        match value("ssl.authProvider") {
            Some(scheme)
                if scheme != "x509" && value(&format!("authProvider.{scheme}")).is_none() =>
            {
                Err(format!(
                    "No auth provider configured for the SSL authentication scheme '{scheme}'."
                ))
            }
            _ => Ok(()),
        }
    }

    fn check_metrics_provider(&mut self) -> Result<(), Reason> {
        let class = self.read(&knobs::METRICS_PROVIDER)?;
        match class.as_str() {
            "org.apache.zookeeper.metrics.impl.DefaultMetricsProvider"
            | "org.apache.zookeeper.metrics.impl.NullMetricsProvider" => Ok(()),
            "org.apache.zookeeper.metrics.prometheus.PrometheusMetricsProvider" => {
                self.warnings.push(format!(
                    "metricsProvider.className={class} is not supported yet: metrics are \
                     answered to mntr only"
                ));
                Ok(())
            }
            _ => Err(format!("metrics provider class was not found: {class}")),
        }
    }

    /// Who is in the ensemble and who of them we are, in the order of
    /// QuorumPeerConfig.setupQuorumPeerConfig.
    fn membership(
        &mut self,
        data_dir: &Path,
        listener: Option<Endpoint>,
    ) -> Result<Membership, Fault> {
        let dynamic_file = self.read(&knobs::DYNAMIC_CONFIG_FILE)?.map(PathBuf::from);
        match dynamic_file {
            None => Ok(self.membership_of(None, data_dir, listener)?),
            Some(path) => self
                .membership_of(Some(&path), data_dir, listener)
                .map_err(|reason| Fault { file: Some(path), reason }),
        }
    }

    fn membership_of(
        &mut self,
        dynamic_file: Option<&Path>,
        data_dir: &Path,
        mut listener: Option<Endpoint>,
    ) -> Result<Membership, Reason> {
        let multi_address = self.read(&knobs::MULTI_ADDRESS)?
            || self
                .system
                .get("zookeeper.multiAddress.enabled")
                .is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let parse = |lines: &Properties| {
            let lines = lines.iter().map(|(key, setting)| (key, setting.value.as_str()));
            Ensemble::parse(lines, multi_address).map_err(|error| error.to_string())
        };
        let ensemble = match dynamic_file {
            None => parse(&self.file)?,
            Some(path) => parse(&self.dynamic_lines(path)?)?,
        };
        let is_distributed = self.is_distributed(&ensemble)?;
        let server_id = self.my_id(data_dir)?;
        if let Some(id) = server_id
            && let Some(client) = ensemble.members.get(&id).and_then(|own| own.client.as_ref())
        {
            listener = Some(self.reconciled(id, listener, client)?);
        }
        if !is_distributed {
            return Ok(Membership { server_id, ensemble: None, listener });
        }

        let init_limit_ticks = self.read(&knobs::INIT_LIMIT)?;
        if init_limit_ticks == 0 {
            return Err("initLimit is not set".to_owned());
        }
        let sync_limit_ticks = self.read(&knobs::SYNC_LIMIT)?;
        if sync_limit_ticks == 0 {
            return Err("syncLimit is not set".to_owned());
        }
        let id = server_id.ok_or("myid file is missing")?;
        let connect_limit_ticks = match self.read(&knobs::CONNECT_LIMIT)? {
            0 => init_limit_ticks.min(sync_limit_ticks),
            ticks => ticks,
        };
        let config = EnsembleConfig {
            role: self.role(id, &ensemble)?,
            members: ensemble,
            init_limit_ticks,
            sync_limit_ticks,
            connect_limit_ticks,
            dynamic_file: dynamic_file.map(Path::to_owned),
            // Java takes its defaults for what is no time or number of tries.
            connect_timeout_ms: match self.read(&knobs::CNX_TIMEOUT)? {
                ..=0 => knobs::CNX_TIMEOUT.default,
                timeout_ms => timeout_ms,
            },
            hello_timeout_ms: match self.read(&knobs::QUORUM_CNXN_TIMEOUT)? {
                ..=0 => self.read(&knobs::TICK_TIME)?.saturating_mul(sync_limit_ticks),
                timeout_ms => timeout_ms,
            },
            bind_tries: match self.read(&knobs::ELECTION_PORT_BIND_RETRY)? {
                0 => None,
                ..0 => u32::try_from(knobs::ELECTION_PORT_BIND_RETRY.default).ok(),
                tries => Some(u32::try_from(tries).unwrap_or(u32::MAX)),
            },
            tcp_keep_alive: self.read(&knobs::TCP_KEEP_ALIVE)?,
            link_queue_bytes_max: length(self.read(&knobs::LINK_QUEUE_BYTES_MAX)?),
            unsynced_bytes_max: length(self.read(&knobs::UNSYNCED_BYTES_MAX)?),
            received_bytes_max: length(self.read(&knobs::RECEIVED_BYTES_MAX)?),
            commit_log_bytes_max: length(self.read(&knobs::COMMITTED_LOG_BYTES_MAX)?),
            // As `LearnerHandler` reads it: a part of a snapshot cannot be more than all of it.
            snapshot_size_factor: match self.read(&knobs::SNAPSHOT_SIZE_FACTOR)? {
                factor if 1.0 < factor => knobs::SNAPSHOT_SIZE_FACTOR.default,
                factor => factor,
            },
            notification_ms_min: self.read(&knobs::MIN_NOTIFICATION)?,
            notification_ms_max: self.read(&knobs::MAX_NOTIFICATION)?,
            commit_log_count: length(self.read(&knobs::COMMIT_LOG_COUNT)?),
            multi_address: self.read(&knobs::MULTI_ADDRESS)?,
            leader_serves: self.read(&knobs::LEADER_SERVES)?,
            quorum_listen_on_all_ips: self.read(&knobs::QUORUM_LISTEN_ON_ALL_IPS)?,
            observer_sync: match self.text(&knobs::OBSERVER_SYNC_ENABLED.about) {
                Some(_) => self.read(&knobs::OBSERVER_SYNC_ENABLED)?,
                None => self.read(&knobs::SYNC_ENABLED)?,
            },
            observer_master_port: u16::try_from(self.read(&knobs::OBSERVER_MASTER_PORT)?)
                .ok()
                .filter(|&port| port != 0),
            reads_alone: self.read(&knobs::READ_ONLY_MODE)?,
            local_sessions: self.read(&knobs::LOCAL_SESSIONS)?,
            local_sessions_upgrading: self.read(&knobs::LOCAL_SESSIONS_UPGRADING)?,
        };
        Ok(Membership { server_id, ensemble: Some(config), listener })
    }

    fn dynamic_lines(&self, path: &Path) -> Result<Properties, Reason> {
        let text = match self.world.read(path) {
            Ok(Some(text)) => text,
            Ok(None) => return Err(format!("{} (No such file or directory)", path.display())),
            Err(error) => return Err(format!("{} ({error})", path.display())),
        };
        let lines = Properties::parse(&text).map_err(|error| error.to_string())?;
        if lines.value("version").is_some() {
            return Err("dynamic file shouldn't have version inside".to_owned());
        }
        let belongs =
            |key: &str| ["server.", "group", "weight"].iter().any(|start| key.starts_with(start));
        if let Some((key, _)) = lines.iter().find(|(key, _)| !belongs(key)) {
            return Err(format!("Unrecognised parameter: {key}"));
        }
        Ok(lines)
    }

    fn is_distributed(&mut self, ensemble: &Ensemble) -> Result<bool, Reason> {
        let may_stand_alone = self.read(&knobs::STANDALONE_ENABLED)?;
        let participants = ensemble.participants().count();
        let has_observers = ensemble.observers().next().is_some();
        match participants {
            0 if !may_stand_alone => {
                Err("standaloneEnabled = false then number of participants should be >0".to_owned())
            }
            0 if has_observers => {
                Err("Observers w/o participants is an invalid configuration".to_owned())
            }
            0 => Ok(false),
            1 if may_stand_alone => {
                self.warnings
                    .push("Invalid configuration, only one server specified (ignoring)".to_owned());
                if has_observers {
                    return Err("Observers w/o quorum is an invalid configuration".to_owned());
                }
                Ok(false)
            }
            1 | 2 => {
                self.warnings.push(
                    "No server failure will be tolerated. You need at least 3 servers.".to_owned(),
                );
                Ok(true)
            }
            count => {
                if count.is_multiple_of(2) {
                    self.warnings.push(
                        "Non-optimal configuration, consider an odd number of servers.".to_owned(),
                    );
                }
                Ok(true)
            }
        }
    }

    fn my_id(&self, data_dir: &Path) -> Result<Option<ServerId>, Reason> {
        let path = data_dir.join("myid");
        let text = match self.world.read(&path) {
            Ok(Some(text)) => text,
            Ok(None) => return Ok(None),
            Err(error) => return Err(format!("{} ({error})", path.display())),
        };
        let text = String::from_utf8_lossy(&text);
        // An empty file has no first line, and Java prints that as null. Blanks around the number
        // are taken here, for they mean nothing else.
        let Some(line) = text.lines().next() else {
            return Err("serverid null is not a number".to_owned());
        };
        match line.trim().parse() {
            Ok(id) => Ok(Some(ServerId(id))),
            Err(_) => Err(format!("serverid {line} is not a number")),
        }
    }

    /// The client address of our own line of the ensemble, which the file may not contradict.
    fn reconciled(
        &self,
        id: ServerId,
        listener: Option<Endpoint>,
        client: &HostPort,
    ) -> Result<Endpoint, Reason> {
        let own = if client.is_wildcard() {
            Endpoint { address: None, port: client.port }
        } else {
            self.resolved(Some(&client.host), client.port)?
        };
        match listener {
            Some(given)
                if given.port != own.port
                    || (given.address.is_some() && given.address != own.address) =>
            {
                let host = given.address.map_or("0.0.0.0".to_owned(), |ip| ip.to_string());
                Err(format!(
                    "client address for this server (id = {id}) in static config file is \
                     {host}:{} is different from client address found in dynamic file: {client}",
                    given.port
                ))
            }
            _ => Ok(own),
        }
    }

    /// The role in the server's own line; `peerType` only has to agree.
    fn role(&mut self, id: ServerId, ensemble: &Ensemble) -> Result<Role, Reason> {
        let given = match self.read(&knobs::PEER_TYPE)? {
            Some(role) => {
                role.parse().map_err(|error: crate::ensemble::EnsembleError| error.to_string())?
            }
            None => Role::Participant,
        };
        let Some(member) = ensemble.members.get(&id) else {
            return Ok(given);
        };
        if member.role != given {
            let role = member.role;
            self.warnings.push(format!(
                "Peer type from servers list ({role}) doesn't match peerType ({given}). \
                 Defaulting to servers list."
            ));
        }
        Ok(member.role)
    }

    fn connections(&mut self) -> Result<Connections, Reason> {
        if self.text(&knobs::MAX_CNXNS.about).is_none() {
            self.warnings.push("maxCnxns is not configured, using default value 0.".to_owned());
        }
        let factory = self.read(&knobs::SERVER_CNXN_FACTORY)?;
        let known = ["NIOServerCnxnFactory", "NettyServerCnxnFactory"];
        if !known.iter().any(|name| factory.ends_with(name)) {
            self.warnings.push(format!("serverCnxnFactory={factory} is not known and ignored"));
        }
        let packet_bytes_max = length(self.read(&knobs::JUTE_MAXBUFFER)?);
        let packet_bytes_extra = match self.read(&knobs::JUTE_MAXBUFFER_EXTRASIZE)? {
            -1 => packet_bytes_max,
            extra => length(extra),
        };
        let output_bytes_max = length(self.read(&knobs::OUTPUT_BYTES_MAX)?);
        let output_bytes_ceiling = length(self.read(&knobs::OUTPUT_BYTES_CEILING)?);
        if output_bytes_ceiling < output_bytes_max {
            let [ceiling, max] = [&knobs::OUTPUT_BYTES_CEILING, &knobs::OUTPUT_BYTES_MAX];
            let (ceiling, max) = (ceiling.about.key, max.about.key);
            return Err(format!("{ceiling} must not be smaller than {max}"));
        }
        Ok(Connections {
            max_per_address: positive(self.read(&knobs::MAX_CLIENT_CNXNS)?).map(length),
            max: positive(self.read(&knobs::MAX_CNXNS)?).map(length),
            listen_backlog: positive(self.read(&knobs::CLIENT_PORT_LISTEN_BACKLOG)?).map(count),
            tcp_keep_alive: self.read(&knobs::CLIENT_TCP_KEEP_ALIVE)?,
            sessionless_timeout_ms: self.read(&knobs::SESSIONLESS_CNXN_TIMEOUT)?,
            packet_bytes_max,
            // BinaryInputArchive raises less to this.
            packet_bytes_extra: packet_bytes_extra.max(1024),
            input_bytes_max: length(self.read(&knobs::INPUT_BYTES_MAX)?),
            output_bytes_max,
            output_bytes_ceiling,
            answer_bytes_max: length(self.read(&knobs::ANSWER_BYTES_MAX)?),
            answers_bytes_max: length(self.read(&knobs::ANSWERS_BYTES_MAX)?),
            watches_per_connection_max: length(self.read(&knobs::CONNECTION_WATCHES_MAX)?),
            watches_max: length(self.read(&knobs::WATCHES_MAX)?),
            connection_turn: TurnBudget {
                bytes: length(self.read(&knobs::CONNECTION_TURN_BYTES)?),
                steps: length(self.read(&knobs::CONNECTION_TURN_STEPS)?),
            },
            turn: TurnBudget {
                bytes: length(self.read(&knobs::TURN_BYTES)?),
                steps: length(self.read(&knobs::TURN_STEPS)?),
            },
            auth_bytes_max: length(self.read(&knobs::AUTH_BYTES_MAX)?),
        })
    }

    fn four_letter_words(&mut self) -> Result<FourLetterWords, Reason> {
        let list = self.read(&knobs::FOUR_LETTER_WORDS)?;
        let words = list.split(',').map(str::trim).filter(|word| !word.is_empty());
        let mut words: BTreeSet<String> = words.map(str::to_owned).collect();
        if words.contains("*") {
            return Ok(FourLetterWords::All);
        }
        words.insert("srvr".to_owned());
        // FourLetterCommands compares with the word as it stands.
        if self.text(&knobs::READ_ONLY_MODE.about) == Some("true") {
            words.insert("isro".to_owned());
        }
        Ok(FourLetterWords::Only(words))
    }

    fn txn_log(&mut self) -> Result<TxnLog, Reason> {
        let flush_delay_ms = self.read(&knobs::FLUSH_DELAY)?;
        Ok(TxnLog {
            back_end: match self.read(&knobs::TXN_LOG_BACK_END)?.as_str() {
                "direct" => TxnLogBackEnd::Direct,
                "mapped" => TxnLogBackEnd::Mapped,
                other => unreachable!("{other} is not in the table"),
            },
            force_sync: self.read(&knobs::FORCE_SYNC)?,
            sync_warning_ms: self.read(&knobs::FSYNC_WARNING_THRESHOLD)?,
            preallocate_bytes: kib(self.read(&knobs::PRE_ALLOC_SIZE)?),
            file_bytes_max: positive(self.read(&knobs::TXN_LOG_SIZE_LIMIT)?).map(kib),
            flush_delay_ms,
            poll_ms: match self.read(&knobs::MAX_WRITE_QUEUE_POLL_TIME)? {
                -1 => flush_delay_ms / 3,
                poll_ms => poll_ms,
            },
            batch_max: length(self.read(&knobs::MAX_BATCH_SIZE)?),
        })
    }

    fn snapshots(&mut self) -> Result<Snapshots, Reason> {
        let given = self.read(&knobs::SNAP_RETAIN_COUNT)?;
        let least = knobs::SNAP_RETAIN_COUNT.default;
        if given < least {
            self.warnings
                .push(format!("Invalid autopurge.snapRetainCount: {given}. Defaulting to {least}"));
        }
        Ok(Snapshots {
            back_end: match self.read(&knobs::SNAPSHOT_BACK_END)?.as_str() {
                "direct" => SnapshotBackEnd::Direct,
                "glommio" => SnapshotBackEnd::Glommio,
                other => unreachable!("{other} is not in the table"),
            },
            txns: natural(self.read(&knobs::SNAP_COUNT)?),
            log_bytes: positive(self.read(&knobs::SNAP_SIZE_LIMIT)?).map(kib),
            put_off: [&knobs::SNAP_COUNT.about, &knobs::SNAP_SIZE_LIMIT.about]
                .iter()
                .all(|limit| self.text(limit).is_none()),
            compression: match self.read(&knobs::SNAPSHOT_COMPRESSION)?.as_str() {
                "gz" => Compression::Gzip,
                "snappy" => Compression::Snappy,
                _ => Compression::None,
            },
            trust_empty: self.read(&knobs::SNAPSHOT_TRUST_EMPTY)?,
            last_zxid: self.read(&knobs::SERIALIZE_LAST_PROCESSED_ZXID)?,
            digest: self.read(&knobs::DIGEST_ENABLED)?,
            digest_mismatch: match self.read(&knobs::DIGEST_MISMATCH)?.as_str() {
                "warn" => DigestMismatch::Warn,
                _ => DigestMismatch::Refuse,
            },
            retain: length(given.max(least)),
            purge_interval_ms: purge_interval_ms(&self.read(&knobs::PURGE_INTERVAL)?)?,
            retry_ms: self.read(&knobs::SNAPSHOT_RETRY)?,
            create_directories: self.read(&knobs::DATADIR_AUTOCREATE)?,
            create_database: self.read(&knobs::DB_AUTOCREATE)?,
        })
    }

    fn znodes(&mut self) -> Result<Znodes, Reason> {
        Ok(Znodes {
            extended_types: self.read(&knobs::EXTENDED_TYPES)?,
            emulate_353: self.read(&knobs::EMULATE_353_TTL)?,
            container_check_interval_ms: self.read(&knobs::CONTAINER_CHECK_INTERVAL)?,
            container_removals_per_minute: count(self.read(&knobs::CONTAINER_MAX_PER_MINUTE)?),
            container_never_used_ms: positive(self.read(&knobs::CONTAINER_MAX_NEVER_USED)?),
            enforce_quota: self.read(&knobs::ENFORCE_QUOTA)?,
            close_session_txn: self.read(&knobs::CLOSE_SESSION_TXN)?,
        })
    }

    fn auth(&mut self) -> Result<Auth, Reason> {
        let algorithm = self.read(&knobs::DIGEST_ALGORITHM)?;
        let digest_algorithm = digest_algorithm(&algorithm).unwrap_or_else(|| {
            self.refusals.push(format!(
                "DigestAuthenticationProvider.digestAlg={algorithm}: not a known hash"
            ));
            DigestAlgorithm::Sha1
        });
        let enforced = self.read(&knobs::ENFORCE_AUTH)?;
        let schemes = self.read(&knobs::ENFORCE_AUTH_SCHEMES)?;
        let schemes = schemes.split(',').map(str::trim).filter(|scheme| !scheme.is_empty());
        let mut enforced_schemes: BTreeSet<String> = schemes.map(str::to_owned).collect();
        if enforced {
            self.refuse_schemes(&enforced_schemes);
        } else {
            enforced_schemes.clear();
        }
        Ok(Auth {
            skip_acl: self.read(&knobs::SKIP_ACL)?,
            digest: self.read(&knobs::DIGEST_AUTH)?,
            super_digest: self.read(&knobs::SUPER_DIGEST)?.filter(|digest| !digest.is_empty()),
            digest_algorithm,
            enforced_schemes,
            reconfig: self.read(&knobs::RECONFIG_ENABLED)?,
        })
    }

    /// ZooKeeper does not start either when it cannot enforce what it is told to.
    fn refuse_schemes(&mut self, schemes: &BTreeSet<String>) {
        if schemes.is_empty() {
            self.refusals.push(
                "enforce.auth.enabled is true, yet enforce.auth.schemes names \
                                no scheme"
                    .to_owned(),
            );
        }
        for scheme in schemes {
            match scheme.as_str() {
                "digest" | "ip" => {}
                _ => self.refusals.push(format!(
                    "enforce.auth.schemes: the scheme {scheme} is not supported by this version"
                )),
            }
        }
    }

    fn throttle(&mut self) -> Result<Throttle, Reason> {
        Ok(Throttle {
            outstanding_max: length(self.read(&knobs::GLOBAL_OUTSTANDING_LIMIT)?),
            requests_max: positive(self.read(&knobs::REQUEST_THROTTLE_LIMIT)?).map(length),
            stall_ms: self.read(&knobs::REQUEST_THROTTLE_STALL_TIME)?,
            drop_stale: self.read(&knobs::REQUEST_THROTTLE_DROP_STALE)?,
            stale_by_latency: self.read(&knobs::REQUEST_STALE_LATENCY)?,
            stale_by_connection: self.read(&knobs::REQUEST_STALE_CONNECTION)?,
            op_wait_ms: positive(self.read(&knobs::THROTTLED_OP_WAIT_TIME)?),
            connect: self.connect_throttle()?,
            large_request_bytes: positive(self.read(&knobs::LARGE_REQUEST_THRESHOLD)?).map(length),
            large_requests_bytes_max: natural(self.read(&knobs::LARGE_REQUEST_MAX_BYTES)?),
        })
    }

    fn connect_throttle(&mut self) -> Result<Option<ConnectThrottle>, Reason> {
        let Some(tokens) = positive(self.read(&knobs::CONNECTION_THROTTLE_TOKENS)?) else {
            return Ok(None);
        };
        let freeze_time_ms = self.read(&knobs::CONNECTION_THROTTLE_FREEZE_TIME)?;
        let weights = SessionWeights {
            global: count(self.read(&knobs::CONNECTION_THROTTLE_GLOBAL_WEIGHT)?),
            local: count(self.read(&knobs::CONNECTION_THROTTLE_LOCAL_WEIGHT)?),
            renewed: count(self.read(&knobs::CONNECTION_THROTTLE_RENEW_WEIGHT)?),
        };
        let is_weighed = self.read(&knobs::CONNECTION_THROTTLE_WEIGHT_ENABLED)?;
        // BlueThrottle measures the bucket in sessions of the heaviest kind where they are weighed.
        let scale = if is_weighed { weights.global } else { 1 };
        Ok(Some(ConnectThrottle {
            tokens: count(tokens).saturating_mul(scale),
            fill_time_ms: self.read(&knobs::CONNECTION_THROTTLE_FILL_TIME)?,
            fill_count: count(self.read(&knobs::CONNECTION_THROTTLE_FILL_COUNT)?)
                .saturating_mul(scale),
            freeze_time_ms: (0 <= freeze_time_ms).then_some(freeze_time_ms),
            drop_increase: self.read(&knobs::CONNECTION_THROTTLE_DROP_INCREASE)?,
            drop_decrease: self.read(&knobs::CONNECTION_THROTTLE_DROP_DECREASE)?,
            decrease_ratio: self.read(&knobs::CONNECTION_THROTTLE_DECREASE_RATIO)?,
            weights: is_weighed.then_some(weights),
        }))
    }

    fn admin(&mut self) -> Result<Admin, Reason> {
        Ok(Admin {
            enabled: self.read(&knobs::ADMIN_ENABLE)?,
            address: self.read(&knobs::ADMIN_ADDRESS)?,
            port: port_number(self.read(&knobs::ADMIN_PORT)?),
            command_url: self.read(&knobs::ADMIN_URL)?,
        })
    }

    fn runtime(&mut self) -> Result<Runtime, Reason> {
        Ok(Runtime {
            shards: positive(self.read(&knobs::SHARDS)?).map(length),
            pin: match self.read(&knobs::PIN)?.as_str() {
                "true" => Pin::Always,
                "false" => Pin::Never,
                _ => Pin::Auto,
            },
            spin_us: count(self.read(&knobs::SPIN)?),
            is_ring_plain: self.read(&knobs::RING)? == "plain",
        })
    }

    /// The same of an ensemble: what goes between its servers unprotected against the operator's will
    /// is worse than no server, and so is one that observers wait for in vain.
    fn refuse_of_an_ensemble(&mut self) -> Result<(), Reason> {
        for (knob, what) in [
            (&knobs::SSL_QUORUM, "TLS between servers is"),
            (&knobs::PORT_UNIFICATION, "TLS between servers is"),
            (&knobs::QUORUM_SASL, "SASL between servers is"),
        ] {
            if self.read(knob)? {
                let key = knob.about.key;
                self.refusals.push(format!("{key}: {what} not supported by this version"));
            }
        }
        if 0 < self.read(&knobs::OBSERVER_MASTER_PORT)? {
            self.refusals.push(
                "observerMasterPort: observers of followers are not supported by this version"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// Right configurations that this version cannot serve. To start without what they ask for
    /// (a closed port, a check of who one is) would be worse than not to start.
    fn refuse_what_is_not_served(&mut self, config: &Config) -> Result<(), Reason> {
        let mut refuse = |reason: String| self.refusals.push(reason);
        if config.secure_listener.is_some() {
            refuse("secureClientPort: TLS is not supported by this version".to_owned());
        }
        if let Some(id) = config.server_id
            && config.znodes.extended_types
            && 254 < id.0
        {
            refuse(
                "extendedTypesEnabled is true but Server ID is too large. Cannot be larger \
                    than 254"
                    .to_owned(),
            );
        }
        match (&config.ensemble, config.server_id) {
            (Some(ensemble), Some(id)) if !ensemble.members.members.contains_key(&id) => {
                refuse(format!("My id {id} not in the peer list"));
            }
            (Some(_), _) => self.refuse_of_an_ensemble()?,
            (None, _) if config.listener.is_none() && config.secure_listener.is_none() => {
                refuse("clientPort is not set: no client could reach this server".to_owned());
            }
            (None, _) => {}
        }
        for (knob, what) in
            [(&knobs::CLIENT_PORT_UNIFICATION, "TLS is"), (&knobs::SESSION_REQUIRE_SASL, "SASL is")]
        {
            if self.read(knob)? {
                let key = knob.about.key;
                self.refusals.push(format!("{key}: {what} not supported by this version"));
            }
        }
        if self.text(&knobs::SASL_CONFIG.about).is_some() {
            let key = knobs::SASL_CONFIG.about.key;
            self.refusals.push(format!("{key}: SASL is not supported by this version"));
        }
        for (key, class) in &config.settings {
            if !knobs::AUTH_PROVIDERS.about.is_named(key) {
                continue;
            }
            match class.rsplit('.').next().unwrap_or_default() {
                "DigestAuthenticationProvider" | "IPAuthenticationProvider" => {}
                "SASLAuthenticationProvider" => self
                    .refusals
                    .push(format!("{key}={class}: SASL is not supported by this version")),
                "X509AuthenticationProvider" | "EnsembleAuthenticationProvider" => self
                    .warnings
                    .push(format!("{key}={class} is not supported yet and has no effect")),
                _ => self.warnings.push(format!("Problems loading {class} ({key})")),
            }
        }
        Ok(())
    }

    /// One line for each way to have no effect, so that a long file of them does not hide what
    /// matters.
    fn warn_of_what_has_no_effect(&mut self, admin_enabled: bool) {
        let (mut unknown, mut jvm_only, mut not_yet) = (Vec::new(), Vec::new(), Vec::new());
        let (mut prefixed, mut extension) = (Vec::new(), Vec::new());
        for (key, setting) in self.file.iter() {
            let stripped = key.strip_prefix(PREFIX);
            let Some(knob) = knobs::find(stripped.unwrap_or(key)) else {
                unknown.push(key);
                continue;
            };
            let about = knob.about();
            if stripped.is_some() {
                prefixed.push(key);
            } else if about.reader == Reader::Bare {
                extension.push(key);
            }
            match about.status {
                Status::Honoured | Status::Ensemble => {}
                Status::JvmOnly => jvm_only.push(key),
                Status::NotYet => {
                    let is_default = setting.value.eq_ignore_ascii_case(&knob.default_text());
                    let is_moot = about.key.starts_with("admin.") && !admin_enabled;
                    if !is_default && !is_moot {
                        not_yet.push(key);
                    }
                }
            }
        }
        let own = self.system.keys().filter_map(|name| Some((name, name.strip_prefix(PREFIX)?)));
        for (name, key) in own {
            match knobs::find(key).map(|knob| knob.about().status) {
                None => unknown.push(name),
                Some(Status::NotYet) if admin_enabled || !key.starts_with("admin.") => {
                    not_yet.push(name);
                }
                // Start scripts set several of the Java machine's on every start.
                Some(_) => {}
            }
        }
        for (keys, what) in [
            (unknown, "Unknown settings, without effect (a mistyped name?)"),
            (not_yet, "Settings that are not supported yet and have no effect"),
            (jvm_only, "Settings of the Java machine, without effect"),
            (prefixed, "Settings written with the prefix zookeeper., taken without it"),
            (extension, "Settings that ZooKeeper takes by -D only, taken from the file"),
        ] {
            if !keys.is_empty() {
                self.warnings.push(format!("{what}: {}", keys.join(", ")));
            }
        }
    }

    /// All that was set, by the key it has in a file.
    fn settings(&self) -> BTreeMap<String, String> {
        let system = self.system.iter().filter_map(|(name, value)| {
            let key = match name.strip_prefix(PREFIX) {
                Some(key) => key,
                None => knobs::find(name).map(|_| name.as_str())?,
            };
            Some((key, value))
        });
        let mut settings: BTreeMap<String, String> = BTreeMap::new();
        for (key, value) in system {
            settings.insert(key.to_owned(), value.clone());
        }
        for (key, setting) in self.file.iter() {
            let counts = match knobs::find(key).map(|knob| knob.about().reader) {
                Some(Reader::Bare | Reader::Ours) => !settings.contains_key(key),
                _ => true,
            };
            if counts {
                settings.insert(key.to_owned(), setting.value.clone());
            }
        }
        settings
    }

    fn read<T: Value>(&mut self, knob: &Knob<T>) -> Result<T::Read, Reason> {
        let Some(text) = self.text(&knob.about) else {
            return Ok(knob.default.read());
        };
        match knob.parse(text) {
            Ok(value) => Ok(value),
            Err(bad) if is_strict(&knob.about) => Err(bad.reason),
            Err(bad) => {
                let warning = format!("{}={text}: {}", knob.about.key, bad.reason);
                // Some are read twice.
                if !self.warnings.contains(&warning) {
                    self.warnings.push(warning);
                }
                Ok(bad.instead)
            }
        }
    }

    fn text(&self, about: &About) -> Option<&str> {
        text(&self.file, self.system, about)
    }

    fn logging(&self) -> Logging {
        logging(&self.file, self.system)
    }
}

struct Membership {
    server_id: Option<ServerId>,
    ensemble: Option<EnsembleConfig>,
    listener: Option<Endpoint>,
}

fn is_strict(about: &About) -> bool {
    matches!(about.reader, Reader::File | Reader::Ours)
}

/// Hours, or a number with its unit. `None` is never.
fn purge_interval_ms(text: &str) -> Result<Option<i64>, Reason> {
    const HOUR_MS: i64 = 60 * 60 * 1000;
    let lower = text.to_lowercase();
    let units = [("ms", 1), ("s", 1000), ("m", 60 * 1000), ("h", HOUR_MS), ("d", 24 * HOUR_MS)];
    let suffixed = units.iter().find_map(|&(unit, ms)| Some((lower.strip_suffix(unit)?, ms)));
    let is_number = lower.ends_with(|c: char| c.is_ascii_digit());
    let (digits, unit_ms) = match suffixed {
        Some(found) => found,
        None if is_number || lower.is_empty() => (lower.as_str(), HOUR_MS),
        None => return Err(format!("Illegal time interval suffix: {text}")),
    };
    let number: i64 = digits
        .parse()
        .map_err(|_| format!("For input string: \"{digits}\" (autopurge.purgeInterval)"))?;
    let interval_ms = number
        .checked_mul(unit_ms)
        .ok_or_else(|| format!("autopurge.purgeInterval is too long: {text}"))?;
    Ok(positive(interval_ms))
}

/// By the names that Java's `MessageDigest` knows.
fn digest_algorithm(name: &str) -> Option<DigestAlgorithm> {
    match name.to_uppercase().as_str() {
        "SHA1" | "SHA-1" | "SHA" => Some(DigestAlgorithm::Sha1),
        "SHA-224" | "SHA224" => Some(DigestAlgorithm::Sha224),
        "SHA-256" | "SHA256" => Some(DigestAlgorithm::Sha256),
        "SHA-384" | "SHA384" => Some(DigestAlgorithm::Sha384),
        "SHA-512" | "SHA512" => Some(DigestAlgorithm::Sha512),
        _ => None,
    }
}

/// Absent is what is not above zero, as in most of ZooKeeper's limits.
fn positive(number: i64) -> Option<i64> {
    (0 < number).then_some(number)
}

fn natural(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn length(number: i64) -> usize {
    usize::try_from(number).unwrap_or(0)
}

fn count(number: i64) -> u32 {
    u32::try_from(number.max(0)).unwrap_or(u32::MAX)
}

fn kib(number: i64) -> u64 {
    natural(number).saturating_mul(1024)
}

fn port_number(number: i64) -> u16 {
    u16::try_from(number).expect("the table holds ports to 0 to 65535")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io;
    use std::net::IpAddr;

    /// A world of a few files in memory, and of hosts that are addresses.
    #[derive(Default)]
    struct World {
        files: BTreeMap<PathBuf, Vec<u8>>,
        system: BTreeMap<String, String>,
    }

    impl Surroundings for World {
        fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
            Ok(self.files.get(path).cloned())
        }

        fn resolve(&self, host: &str) -> io::Result<IpAddr> {
            host.parse().map_err(|_| io::Error::other("unknown host"))
        }
    }

    impl World {
        fn with(zoo_cfg: &str) -> World {
            World::default().file("/zoo.cfg", zoo_cfg)
        }

        fn file(mut self, path: &str, text: &str) -> World {
            self.files.insert(path.into(), text.as_bytes().to_vec());
            self
        }

        fn property(mut self, name: &str, value: &str) -> World {
            self.system.insert(name.to_owned(), value.to_owned());
            self
        }

        fn parse(&self) -> Result<Config, String> {
            Config::from_file(Path::new("/zoo.cfg"), &self.system, self)
                .map_err(|error| error.to_string())
        }
    }

    fn config(settings: &str) -> Config {
        World::with(&format!("dataDir=/d\nclientPort=2181\n{settings}")).parse().unwrap()
    }

    fn refused(settings: &str) -> String {
        World::with(&format!("dataDir=/d\nclientPort=2181\n{settings}")).parse().unwrap_err()
    }

    #[test]
    fn a_minimal_file_has_zookeepers_defaults() {
        let config = config("");
        assert_eq!(config.listener, Some(Endpoint { address: None, port: 2181 }));
        assert_eq!(config.data_log_dir, Path::new("/d"));
        assert_eq!(config.tick_time_ms, 3000);
        assert_eq!((config.min_session_timeout_ms, config.max_session_timeout_ms), (6000, 60_000));
        assert_eq!(config.connections.max_per_address, Some(60));
        assert_eq!(config.connections.packet_bytes_max, 0xf_ffff);
        assert_eq!(config.txn_log.preallocate_bytes, 64 << 20);
        assert_eq!((config.snapshots.txns, config.snapshots.log_bytes), (100_000, Some(4 << 30)));
        assert_eq!(config.snapshots.purge_interval_ms, None);
        assert_eq!(config.four_letter_words, FourLetterWords::Only(["srvr".to_owned()].into()));
        assert!(config.txn_log.force_sync && !config.auth.skip_acl && !config.admin.enabled);
        assert_eq!(config.refusals, [""; 0]);
        assert_eq!(config.warnings, ["maxCnxns is not configured, using default value 0."]);
    }

    #[test]
    fn arguments_and_nothing_at_all_configure_a_server_too() {
        let world = World::default();
        let arguments = ["2182", "/d", "500"].map(str::to_owned);
        let config = Config::from_arguments(&arguments, &world.system, &world).unwrap();
        assert_eq!(config.listener, Some(Endpoint { address: None, port: 2182 }));
        assert_eq!((config.tick_time_ms, config.connections.max_per_address), (500, None));
        let arguments = ["2182", "/d", "500", "7"].map(str::to_owned);
        let config = Config::from_arguments(&arguments, &world.system, &world).unwrap();
        assert_eq!(config.connections.max_per_address, Some(7));
        let bad = ["port", "/d"].map(str::to_owned);
        assert!(Config::from_arguments(&bad, &world.system, &world).is_err());

        let embedded = Config::embedded(&world.system, &world).unwrap();
        assert_eq!(embedded.data_dir, Path::new("./ringkeeper-data"));
        assert_eq!(embedded.tick_time_ms, 2000);
    }

    #[test]
    fn a_bad_value_is_fatal_in_a_file_key_and_the_default_in_a_property() {
        assert_eq!(
            refused("maxClientCnxns=abc"),
            "Error processing /zoo.cfg: For input string: \"abc\" (maxClientCnxns, line 3)"
        );
        assert!(refused("tickTime=0x10").contains("For input string: \"0x10\""));
        assert!(refused("tickTime=99999999999").contains("For input string"));
        assert!(refused("ringkeeper.shards=many").contains("For input string"));
        let config = config("snapCount=abc\nglobalOutstandingLimit=0x20\nmaxCnxns=010");
        assert_eq!(config.snapshots.txns, 100_000);
        assert_eq!(config.throttle.outstanding_max, 32);
        assert_eq!(config.connections.max, Some(8));
        assert_eq!(config.warnings, ["snapCount=abc: For input string: \"abc\""]);
    }

    #[test]
    fn properties_out_of_range_are_brought_into_it() {
        let config = config("snapCount=1\nmaxCnxns=-5\npreAllocSize=0");
        assert_eq!(config.snapshots.txns, 2);
        assert_eq!(config.connections.max, None);
        assert_eq!(config.txn_log.preallocate_bytes, 0);
        assert_eq!(config.warnings.len(), 2);
    }

    #[test]
    fn yes_and_no_are_the_only_words_of_three_flags() {
        for (word, skips) in [("yes", true), ("true", false), ("YES", false), ("no", false)] {
            assert_eq!(config(&format!("skipACL={word}")).auth.skip_acl, skips, "{word}");
        }
        for (word, syncs) in [("no", false), ("false", true), ("No", true), ("yes", true)] {
            assert_eq!(config(&format!("forceSync={word}")).txn_log.force_sync, syncs, "{word}");
        }
        let warnings = config("skipACL=true\nforceSync=false").warnings.join("\n");
        assert!(warnings.contains("skipACL is on for exactly 'yes', so 'true' leaves it off"));
        assert!(warnings.contains("forceSync is off for exactly 'no', so 'false' leaves it on"));
        let other = config("digest.enabled=yes\nclientTcpKeepAlive=TRUE");
        assert!(!other.snapshots.digest && other.connections.tcp_keep_alive);
    }

    #[test]
    fn the_file_wins_over_d_except_for_bare_names_and_ours() {
        let settings = "dataDir=/d\nclientPort=1\nsnapCount=7\njute.maxbuffer=4096\n\
                        ringkeeper.spinMicros=5";
        let config = World::with(settings)
            .property("zookeeper.snapCount", "9")
            .property("zookeeper.maxCnxns", "3")
            .property("jute.maxbuffer", "8192")
            .property("ringkeeper.spinMicros", "6")
            .parse()
            .unwrap();
        assert_eq!((config.snapshots.txns, config.connections.max), (7, Some(3)));
        assert_eq!((config.connections.packet_bytes_max, config.runtime.spin_us), (8192, 6));
        assert_eq!(config.settings["snapCount"], "7");
        assert_eq!(config.settings["jute.maxbuffer"], "8192");
    }

    #[test]
    fn a_documented_name_is_taken_where_the_effective_one_is_absent() {
        assert_eq!(config("requestThrottleLimit=5").throttle.requests_max, Some(5));
        let both = config("requestThrottleLimit=5\nrequest_throttle_max_requests=6");
        assert_eq!(both.throttle.requests_max, Some(6));
        let prefixed = config("zookeeper.snapCount=50");
        assert_eq!(prefixed.snapshots.txns, 50);
        assert!(prefixed.warnings.iter().any(|warning| warning.contains("zookeeper.snapCount")));
    }

    #[test]
    fn what_has_no_effect_is_said_in_one_line_of_each_kind() {
        let warnings = config(
            "tikTime=5\nsnapcount=7\nnio.numWorkerThreads=4\nadmin.serverPort=9\n\
             ssl.keyStore.location=/k\nznode.container.maxPerMinute=5\naudit.enable=false",
        )
        .warnings;
        assert_eq!(
            warnings[1..],
            [
                "Unknown settings, without effect (a mistyped name?): snapcount, tikTime",
                "Settings that are not supported yet and have no effect: ssl.keyStore.location",
                "Settings of the Java machine, without effect: nio.numWorkerThreads",
                "Settings that ZooKeeper takes by -D only, taken from the file: \
                 znode.container.maxPerMinute",
            ]
        );
    }

    #[test]
    fn purge_intervals_are_hours_unless_they_say_otherwise() {
        const HOUR_MS: i64 = 3_600_000;
        for (text, expected) in [
            ("0", None),
            ("-1", None),
            ("24", Some(24 * HOUR_MS)),
            ("500ms", Some(500)),
            ("90S", Some(90_000)),
            ("5m", Some(300_000)),
            ("2H", Some(2 * HOUR_MS)),
            ("1d", Some(24 * HOUR_MS)),
        ] {
            let settings = format!("autopurge.purgeInterval={text}");
            assert_eq!(config(&settings).snapshots.purge_interval_ms, expected, "{text}");
        }
        for text in ["1x", "", "h", "1.5h", "9223372036854775807d"] {
            refused(&format!("autopurge.purgeInterval={text}"));
        }
    }

    #[test]
    fn the_whitelist_always_has_srvr_and_isro_in_read_only_mode() {
        let words = |settings: &str| match config(settings).four_letter_words {
            FourLetterWords::All => vec!["*".to_owned()],
            FourLetterWords::Only(words) => words.into_iter().collect(),
        };
        assert_eq!(words("4lw.commands.whitelist=stat, ruok,,"), ["ruok", "srvr", "stat"]);
        assert_eq!(words("4lw.commands.whitelist=stat, *"), ["*"]);
        assert_eq!(words("readonlymode.enabled=true"), ["isro", "srvr"]);
        assert_eq!(words("readonlymode.enabled=TRUE"), ["srvr"]);
    }

    const THREE: &str =
        "initLimit=5\nsyncLimit=2\nserver.1=a:1:2\nserver.2=b:1:2\nserver.3=c:1:2\n";

    #[test]
    fn a_right_ensemble_is_understood() {
        let world =
            World::with(&format!("dataDir=/d\nclientPort=1\n{THREE}")).file("/d/myid", " 3 \n");
        let config = world.parse().unwrap();
        let ensemble = config.ensemble.unwrap();
        assert_eq!((config.server_id, ensemble.role), (Some(ServerId(3)), Role::Participant));
        assert_eq!((ensemble.connect_limit_ticks, ensemble.members.members.len()), (2, 3));
        assert!(config.refusals.is_empty());
    }

    #[test]
    fn links_between_servers_are_told_what_java_is() {
        let ensemble = |settings: &str| {
            let world = World::with(&format!("dataDir=/d\nclientPort=1\n{settings}\n{THREE}"));
            world.file("/d/myid", "3").parse().unwrap().ensemble.unwrap()
        };
        let default = ensemble("");
        let read =
            |of: &EnsembleConfig| (of.connect_timeout_ms, of.hello_timeout_ms, of.bind_tries);
        assert_eq!(read(&default), (5000, 2 * 3000, Some(3)));
        assert_eq!((default.tcp_keep_alive, default.link_queue_bytes_max), (false, 256 << 20));
        let wrong = "cnxTimeout=0\nelectionPortBindRetry=-1";
        assert_eq!(ensemble(wrong), default);
        assert_eq!(ensemble("electionPortBindRetry=0").bind_tries, None);
        let told = ensemble(
            "tickTime=1000\ncnxTimeout=70\nquorumCnxnTimeoutMs=80\nelectionPortBindRetry=9\n\
             tcpKeepAlive=true\nringkeeper.link.queueBytesMax=1048576",
        );
        assert_eq!(read(&told), (70, 80, Some(9)));
        assert_eq!((told.tcp_keep_alive, told.link_queue_bytes_max), (true, 1 << 20));
    }

    #[test]
    fn what_servers_hold_for_each_other_is_bounded_as_told() {
        let ensemble = |settings: &str| {
            let world = World::with(&format!("dataDir=/d\nclientPort=1\n{settings}\n{THREE}"));
            world.file("/d/myid", "3").parse().unwrap().ensemble.unwrap()
        };
        let read = |of: &EnsembleConfig| {
            (of.unsynced_bytes_max, of.received_bytes_max, of.commit_log_bytes_max)
        };
        let default = ensemble("");
        assert_eq!(read(&default), (64 << 20, 16 << 20, 64 << 20));
        assert_eq!(default.snapshot_size_factor, 0.33);
        let told = ensemble(
            "ringkeeper.txnLog.unsyncedBytesMax=5000\nringkeeper.learner.receivedBytesMax=6000\n\
             ringkeeper.commitLogBytesMax=0\nsnapshotSizeFactor=-1",
        );
        assert_eq!(read(&told), (5000, 6000, 0));
        assert_eq!(told.snapshot_size_factor, -1.0);
        assert_eq!(ensemble("snapshotSizeFactor=1.5").snapshot_size_factor, 0.33);
    }

    #[test]
    fn the_client_address_of_our_own_line_has_to_agree_with_the_file() {
        let own_line = |clients: &str, line: &str| {
            let servers = THREE.replace("c:1:2", &format!("c:1:2;{line}"));
            World::with(&format!("dataDir=/d\n{clients}\n{servers}"))
                .file("/d/myid", "3")
                .parse()
                .map(|config| config.listener)
        };
        let loopback = Some(IpAddr::from([127, 0, 0, 1]));
        for (clients, line, address) in [
            ("", "2181", None),
            ("", "127.0.0.1:2181", loopback),
            ("clientPort=2181", "127.0.0.1:2181", loopback),
            ("clientPort=2181\nclientPortAddress=127.0.0.1", "127.0.0.1:2181", loopback),
        ] {
            let listener = own_line(clients, line).unwrap();
            assert_eq!(listener, Some(Endpoint { address, port: 2181 }), "{clients} {line}");
        }
        for (clients, line) in [
            ("clientPort=2182", "2181"),
            ("clientPort=2181\nclientPortAddress=127.0.0.1", "2181"),
            ("clientPort=2181\nclientPortAddress=127.0.0.1", "127.0.0.2:2181"),
        ] {
            let error = own_line(clients, line).unwrap_err();
            assert!(error.contains("is different from client address found in dynamic"), "{error}");
        }
    }

    #[test]
    fn one_server_alone_runs_standalone() {
        let config = config("server.1=a:1:2;2181\nstandaloneEnabled=true");
        assert!(config.ensemble.is_none() && config.refusals.is_empty());
    }

    #[test]
    fn servers_may_stand_in_a_file_of_their_own() {
        let world = World::with("dataDir=/d\ndynamicConfigFile=/dyn\ninitLimit=5\nsyncLimit=2")
            .file("/d/myid", "1")
            .file("/dyn", "server.1=a:1:2;2181\nserver.2=b:1:2;2181");
        let config = world.parse().unwrap();
        assert_eq!(config.ensemble.unwrap().members.members.len(), 2);
        assert_eq!(config.listener.unwrap().port, 2181);
        let broken = world.file("/dyn", "server.1=a:1").parse().unwrap_err();
        assert!(
            broken.starts_with("Error processing /dyn: a:1 does not have the form"),
            "{broken}"
        );
    }

    #[test]
    fn what_a_connection_may_hold_is_set_and_in_order() {
        let defaults = config("").connections;
        assert_eq!(defaults.input_bytes_max, 128 << 10);
        assert_eq!((defaults.output_bytes_max, defaults.output_bytes_ceiling), (1 << 20, 64 << 20));
        assert_eq!((defaults.answer_bytes_max, defaults.answers_bytes_max), (256 << 20, 1 << 30));
        assert_eq!(defaults.connection_turn, TurnBudget { bytes: 64 << 10, steps: 512 });
        assert_eq!(defaults.turn, TurnBudget { bytes: 512 << 10, steps: 8192 });
        let prefix = "ringkeeper.connection";
        let set = |max, ceiling| {
            format!(
                "{prefix}.inputBytesMax=5000\n{prefix}.outputBytesMax={max}\n\
                 {prefix}.outputBytesCeiling={ceiling}"
            )
        };
        let connections = config(&set(6000, 6000)).connections;
        assert_eq!(connections.input_bytes_max, 5000);
        assert_eq!((connections.output_bytes_max, connections.output_bytes_ceiling), (6000, 6000));
        let refused = refused(&set(6001, 6000));
        assert!(refused.contains("outputBytesCeiling must not be smaller"), "{refused}");
        assert_eq!(config("ringkeeper.snapshot.retryMs=5").snapshots.retry_ms, 5);
        let back_end = |settings| config(settings).snapshots.back_end;
        assert_eq!(back_end(""), SnapshotBackEnd::Direct);
        assert_eq!(back_end("ringkeeper.snapshot.backEnd=glommio"), SnapshotBackEnd::Glommio);
    }

    #[test]
    fn a_digest_that_differs_is_refused_unless_a_word_says_otherwise() {
        let of = |settings| config(settings).snapshots.digest_mismatch;
        assert_eq!(of(""), DigestMismatch::Refuse);
        assert_eq!(of("ringkeeper.digestMismatch=warn"), DigestMismatch::Warn);
        assert!(refused("ringkeeper.digestMismatch=ignore").contains("one of refuse, warn"));
    }

    #[test]
    fn what_would_weaken_a_server_is_refused_not_ignored() {
        for (settings, key) in [
            ("secureClientPort=2281", "secureClientPort"),
            ("client.portUnification=true", "client.portUnification"),
            ("java.security.auth.login.config=/jaas", "java.security.auth.login.config"),
            (
                "authProvider.1=org.apache.zookeeper.server.auth.SASLAuthenticationProvider",
                "authProvider.1",
            ),
            ("sessionRequireClientSASLAuth=true", "sessionRequireClientSASLAuth"),
            ("enforce.auth.enabled=true", "enforce.auth.schemes"),
            ("enforce.auth.enabled=true\nenforce.auth.schemes=x509", "enforce.auth.schemes"),
            ("DigestAuthenticationProvider.digestAlg=ROT13", "digestAlg"),
        ] {
            let refusals = config(settings).refusals;
            assert!(refusals.len() == 1 && refusals[0].contains(key), "{settings}: {refusals:?}");
        }
        let enforced = config("enforce.auth.enabled=true\nenforce.auth.schemes=digest, ip");
        assert_eq!(enforced.auth.enforced_schemes.len(), 2);
        assert_eq!(enforced.refusals, [""; 0]);
    }

    #[test]
    fn both_of_zookeepers_socket_factories_mean_our_server() {
        let factory = |name: &str| {
            let class = format!("serverCnxnFactory=org.apache.zookeeper.server.{name}");
            config(&class).warnings.len() - 1
        };
        assert_eq!((factory("NettyServerCnxnFactory"), factory("NIOServerCnxnFactory")), (0, 0));
        assert_eq!(factory("OtherFactory"), 1);
    }

    #[test]
    fn passwords_are_not_shown() {
        let config = config("ssl.keyStore.password=secret\nssl.keyStore.location=/k");
        let shown: BTreeMap<&str, &str> = config.shown_settings().collect();
        assert_eq!(shown["ssl.keyStore.password"], "***");
        assert_eq!(shown["ssl.keyStore.location"], "/k");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_configuration_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut world = World::default();
            world.files.insert("/zoo.cfg".into(), bytes);
            let _ = world.parse();
        }

        /// Every key with a value that is nearly one.
        #[test]
        fn any_value_of_any_key_is_a_configuration_or_refused(
            place in 0..knobs::ALL.len(),
            value in "(-?[0-9]{0,20}|[a-z:;|*.0-9-]{0,20}|true|-1|2147483647|-9223372036854775808)",
        ) {
            let key = knobs::ALL[place].about().key.replace('*', "1");
            let text = format!("dataDir=/d\nclientPort=2181\n{key}={value}");
            let _ = World::with(&text).file("/d/myid", "1").parse();
            let _ = World::with("dataDir=/d").property(&format!("zookeeper.{key}"), &value).parse();
        }
    }
}
