//! The command line: one table of commands, and the ways to start a server that ZooKeeper has.
//!
//! ```text
//! ringkeeper                                        the embedded default
//! ringkeeper CONFIGFILE                             as QuorumPeerMain
//! ringkeeper PORT DATADIR [TICKTIME [MAXCNXNS]]     as ZooKeeperServerMain
//! ringkeeper [--config DIR] COMMAND [zoo.cfg]       as zkServer.sh
//! ```
//!
//! `-Dname=value` may stand anywhere. The environment counts too: `SERVER_JVMFLAGS`, then
//! `JVMFLAGS`, of which we take the `-D` words, then the variable of each setting of ours; the
//! command line wins over them all.
//!
//! A start that fails says one line on standard error, the cause in the log, and ends with the
//! code ZooKeeper ends with: there are unit files and scripts that go by these.

mod control;
mod initialize;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::net::{IpAddr, TcpListener, ToSocketAddrs as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tracing::{error, info, warn};

use crate::config::knobs;
use crate::config::properties::Properties;
use crate::config::{Config, ConfigError, Endpoint, Logging, Origin, Surroundings};
use crate::shell::{self, RunError, logging};

/// A word that is a command, and not the name of a file.
struct Command {
    name: &'static str,
    arguments: &'static str,
    doc: &'static str,
    run: fn(&Invocation) -> u8,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "start",
        arguments: "[zoo.cfg]",
        doc: "start a server in the background, and return once it answers",
        run: control::start,
    },
    Command {
        name: "start-foreground",
        arguments: "[zoo.cfg]",
        doc: "run a server here, its log on standard output",
        run: control::start_foreground,
    },
    Command {
        name: "stop",
        arguments: "[zoo.cfg]",
        doc: "end that server, and return once it has",
        run: control::stop,
    },
    Command {
        name: "restart",
        arguments: "[zoo.cfg]",
        doc: "stop, then start",
        run: control::restart,
    },
    Command {
        name: "status",
        arguments: "[zoo.cfg]",
        doc: "say which mode the server of this machine is in",
        run: control::status,
    },
    Command {
        name: "initialize",
        arguments: "[--configfile=FILE] [--myid=N] [--force]",
        doc: "make the data directories ready; --force empties them",
        run: initialize::initialize,
    },
    Command { name: "version", arguments: "", doc: "say the version", run: control::version },
    Command {
        name: "print-cmd",
        arguments: "[zoo.cfg]",
        doc: "say the command line that start would run",
        run: control::print_cmd,
    },
    Command {
        name: "knobs",
        arguments: "",
        doc: "explain every setting",
        run: |_| {
            say(&knobs::documentation());
            0
        },
    },
    Command {
        name: "help",
        arguments: "",
        doc: "this text",
        run: |_| {
            say(&help());
            0
        },
    },
];

/// The command line and the environment, taken apart.
struct Invocation {
    /// What was given by `-D`, the environment included.
    system: BTreeMap<String, String>,
    /// The words like `-Dname=value` of the command line itself, to be handed on.
    flags: Vec<String>,
    /// `--config DIR`
    config_dir: Option<PathBuf>,
    /// What is left. Without the command, where there is one.
    words: Vec<String>,
    /// Words that mean something to a Java machine only.
    jvm_only: Vec<String>,
}

pub fn main() -> ExitCode {
    let arguments = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    let mut invocation = match Invocation::parse(arguments, &|name| std::env::var(name).ok()) {
        Ok(invocation) => invocation,
        Err(complaint) => {
            complain(&complaint);
            return ExitCode::from(2);
        }
    };
    let name = match invocation.words.first().map(String::as_str) {
        Some("-h" | "-help" | "--help") => Some("help"),
        Some("-V" | "--version") => Some("version"),
        word => word,
    };
    let command = name.and_then(|name| COMMANDS.iter().find(|command| command.name == name));
    let code = match command {
        Some(command) => {
            invocation.words.remove(0);
            (command.run)(&invocation)
        }
        // What zkServer.sh does with a word it does not know: --config is of its command line.
        None if invocation.config_dir.is_some() => control::usage(),
        None => serve_words(&invocation),
    };
    // The last line says why.
    logging::drain();
    ExitCode::from(code)
}

impl Invocation {
    fn parse(
        arguments: impl Iterator<Item = String>,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Invocation, String> {
        let mut invocation = Invocation {
            system: BTreeMap::new(),
            flags: Vec::new(),
            config_dir: None,
            words: Vec::new(),
            jvm_only: Vec::new(),
        };
        for variable in ["SERVER_JVMFLAGS", "JVMFLAGS"] {
            for word in shell_words(&environment(variable).unwrap_or_default()) {
                if !invocation.define(&word) {
                    invocation.jvm_only.push(word);
                }
            }
        }
        for about in knobs::ALL.iter().map(|knob| knob.about()) {
            if let Some(value) = about.environment().and_then(|name| environment(&name)) {
                invocation.system.insert(about.key.to_owned(), value);
            }
        }
        let mut arguments = arguments.peekable();
        while let Some(word) = arguments.next() {
            if invocation.define(&word) {
                invocation.flags.push(word);
            } else if is_for_a_java_machine(&word) {
                invocation.jvm_only.push(word);
            } else if word == "--config" {
                let directory = arguments.next().ok_or("--config needs a directory")?;
                invocation.config_dir = Some(directory.into());
            } else {
                invocation.words.push(word);
            }
        }
        Ok(invocation)
    }

    /// Takes `-Dname=value`, or `-Dname` for an empty value, and says whether it was one.
    fn define(&mut self, word: &str) -> bool {
        let Some(definition) = word.strip_prefix("-D") else {
            return false;
        };
        let (name, value) = definition.split_once('=').unwrap_or((definition, ""));
        self.system.insert(name.to_owned(), value.to_owned());
        true
    }
}

fn is_for_a_java_machine(word: &str) -> bool {
    ["-X", "-javaagent:", "-agentlib:", "-agentpath:", "-server"]
        .iter()
        .any(|start| word.starts_with(start))
}

/// Words as a shell cuts them: at blanks, unless they are quoted.
fn shell_words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut is_word) = (Vec::new(), String::new(), false);
    let mut quote = None;
    for c in text.chars() {
        match quote {
            Some(end) if c == end => quote = None,
            Some(_) => word.push(c),
            None if c == '"' || c == '\'' => (quote, is_word) = (Some(c), true),
            None if c.is_whitespace() => {
                if is_word {
                    words.push(std::mem::take(&mut word));
                }
                is_word = false;
            }
            None => {
                word.push(c);
                is_word = true;
            }
        }
    }
    if is_word {
        words.push(word);
    }
    words
}

/// `ringkeeper` without a command.
fn serve_words(invocation: &Invocation) -> u8 {
    match &invocation.words[..] {
        [] => serve(invocation, Told::Nothing),
        [file] => serve(invocation, Told::File(file.into())),
        [_, _] | [_, _, _] | [_, _, _, _] => serve(invocation, Told::Arguments),
        words => {
            log_by_system(&invocation.system);
            bad_arguments(&format!("Invalid number of arguments:[{}]", words.join(", ")))
        }
    }
}

/// How a server is told its configuration.
enum Told {
    File(PathBuf),
    Arguments,
    Nothing,
}

/// Runs a server until it is asked to end, and says the exit code.
fn serve(invocation: &Invocation, told: Told) -> u8 {
    let system = &invocation.system;
    let config = match &told {
        Told::File(path) => Config::from_file(path, system, &World),
        Told::Arguments => Config::from_arguments(&invocation.words, system, &World),
        Told::Nothing => Config::embedded(system, &World),
    };
    let config = match config {
        Ok(config) => config,
        Err(error) => {
            log_by_system(system);
            return match told {
                Told::Arguments => bad_arguments(&error.reason),
                Told::File(_) | Told::Nothing => bad_config(&error),
            };
        }
    };
    let shown_id = config.server_id.filter(|_| config.ensemble.is_some());
    if let Err(warning) = logging::start(&config.logging, shown_id) {
        warn!("{warning}");
    }
    introduce(&config, &invocation.jvm_only);
    let outcome = start_and_run(config);
    let code = match &outcome {
        Ok(()) => 0,
        Err(error) => error.exit_code(),
    };
    match outcome {
        Ok(()) => {}
        Err(RunError::DataDir(cause)) => {
            error!(cause, "Unable to access datadir, exiting abnormally");
            logging::complain("Unable to access datadir, exiting abnormally");
        }
        Err(RunError::Admin(cause)) => {
            error!(cause, "Unable to start AdminServer, exiting abnormally");
            logging::complain("Unable to start AdminServer, exiting abnormally");
        }
        Err(RunError::Storage(cause)) => {
            error!(cause, "Severe unrecoverable error, exiting");
        }
        Err(RunError::Bind(cause) | RunError::Other(cause)) => {
            error!(cause, "Unexpected exception, exiting abnormally");
        }
    }
    exiting(code)
}

/// Logs what the server is about to be, in the words that people and scripts wait for.
fn introduce(config: &Config, jvm_only: &[String]) {
    match &config.origin {
        Origin::File(path) => info!("Reading configuration from: {}", path.display()),
        Origin::Arguments => info!("running on PORT and DATADIR of the command line"),
        Origin::Embedded => info!(
            "no configuration was given: running on the embedded default, clientPort 2181, \
             dataDir ./ringkeeper-data, tickTime 2000 (ringkeeper help shows other ways)"
        ),
    }
    match config.listener {
        Some(Endpoint { address, port }) => {
            let host = address.map_or("0.0.0.0".to_owned(), |address| address.to_string());
            info!("clientPortAddress is {host}:{port}");
        }
        None => info!("clientPort is not set"),
    }
    let snapshots = &config.snapshots;
    info!("autopurge.snapRetainCount set to {}", snapshots.retain);
    info!("autopurge.purgeInterval set to {}", interval_text(snapshots.purge_interval_ms));
    for warning in &config.warnings {
        warn!("{warning}");
    }
    if !jvm_only.is_empty() {
        warn!("Options of the Java machine, without effect: {}", jvm_only.join(" "));
    }
    if config.ensemble.is_none() && matches!(config.origin, Origin::File(_)) {
        warn!("Either no config or no quorum defined in config, running in standalone mode");
    }
}

/// In the largest unit that is exact, as DatadirCleanupManager logs it since 3.10.
fn interval_text(interval_ms: Option<i64>) -> String {
    let Some(interval_ms) = interval_ms else {
        return "0".to_owned();
    };
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
    let exact = units.into_iter().find(|&(_, unit_ms)| interval_ms % unit_ms == 0);
    let (unit, unit_ms) = exact.unwrap_or(("ms", 1));
    format!("{}{unit}", interval_ms / unit_ms)
}

fn start_and_run(config: Config) -> Result<(), RunError> {
    if !config.refusals.is_empty() {
        return Err(RunError::Other(config.refusals.join("; ")));
    }
    // ZooKeeper calls the directory of the log the data directory, and that of snapshots, where
    // it is another one, the snap directory (FileTxnSnapLog).
    check_directory(&config.data_log_dir, "data", config.snapshots.create_directories)?;
    check_directory(&config.data_dir, "snap", config.snapshots.create_directories)?;
    try_admin_port(&config)?;
    shell::run(config)
}

/// Makes sure that `version-2` is ours to write, or to make. Nothing is made or written for that: the
/// start may yet be refused.
fn check_directory(parent: &Path, what: &str, create: bool) -> Result<(), RunError> {
    let directory = parent.join("version-2");
    let shown = directory.display();
    if directory.is_dir() {
        return shell::may_write(&directory).map_err(|error| {
            RunError::DataDir(format!("Cannot write to {what} directory {shown}: {error}"))
        });
    }
    if !create {
        return Err(RunError::DataDir(format!(
            "Missing {what} directory {shown}, automatic data directory creation is disabled \
             (zookeeper.datadir.autocreate is false). Please create this directory manually."
        )));
    }
    let there = directory.ancestors().find(|path| path.exists());
    there.map_or(Ok(()), shell::may_write).map_err(|error| {
        RunError::DataDir(format!("Unable to create {what} directory {shown}: {error}"))
    })
}

/// With all above it that is missing. What clients store is nobody else's to read.
fn create_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// The HTTP server is not there yet. That its port is taken is an error all the same: who enables
/// it relies on what answers there.
fn try_admin_port(config: &Config) -> Result<(), RunError> {
    let admin = &config.admin;
    if !admin.enabled {
        return Ok(());
    }
    let tried = TcpListener::bind((admin.address.as_str(), admin.port));
    tried.map(drop).map_err(|error| {
        RunError::Admin(format!(
            "Problem starting AdminServer on address {}, port {} and command URL {}: {error}",
            admin.address, admin.port, admin.command_url
        ))
    })
}

/// Starts the log when there is no configuration to say how.
fn log_by_system(system: &BTreeMap<String, String>) {
    if let Err(warning) = logging::start(&Logging::of(&Properties::default(), system), None) {
        warn!("{warning}");
    }
}

fn bad_config(error: &ConfigError) -> u8 {
    error!(cause = %error, "Invalid config, exiting abnormally");
    logging::complain("Invalid config, exiting abnormally");
    exiting(2)
}

fn bad_arguments(cause: &str) -> u8 {
    error!(cause, "Invalid arguments, exiting abnormally");
    logging::complain("Usage: ZooKeeperServerMain configfile | port datadir [ticktime] [maxcnxns]");
    exiting(2)
}

/// The last line of every log; log watchers know it by these words.
fn exiting(code: u8) -> u8 {
    logging::settle();
    match code {
        0 => info!("Exiting JVM with code {code}"),
        _ => error!("Exiting JVM with code {code}"),
    }
    code
}

fn help() -> String {
    let mut text = String::from(
        "ringkeeper                                     a server on the embedded default:\n\
         \x20                                              clientPort 2181, dataDir ./ringkeeper-data\n\
         ringkeeper CONFIGFILE                          a server as zoo.cfg says\n\
         ringkeeper PORT DATADIR [TICKTIME [MAXCNXNS]]  a server without a file\n\
         ringkeeper [--config DIR] COMMAND              one of:\n\n",
    );
    for Command { name, arguments, doc, .. } in COMMANDS {
        let call = format!("{name} {arguments}");
        let gap = if call.len() <= 28 { "" } else { "\n                              " };
        text.push_str(&format!("  {call:<28}{gap} {doc}\n"));
    }
    text.push_str("\n-Dname=value sets a property, before or after any of these.\n");
    text
}

/// The machine, as far as a configuration asks for it.
struct World;

impl Surroundings for World {
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        match fs::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn resolve(&self, host: &str) -> io::Result<IpAddr> {
        let addresses: Vec<IpAddr> =
            (host, 0).to_socket_addrs()?.map(|address| address.ip()).collect();
        // Java prefers the older family.
        let first = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
        first.copied().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }
}

/// Writes to standard output. That nobody reads it is no reason to fail.
fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Writes a line to standard error.
fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str, environment: &[(&str, &str)]) -> Invocation {
        let variable = |name: &str| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, v)| (*v).to_owned())
        };
        Invocation::parse(line.split_whitespace().map(str::to_owned), &variable).unwrap()
    }

    #[test]
    fn definitions_may_stand_anywhere_and_the_last_wins() {
        let invocation = parse("-Da=1 start -Db -Da=2 zoo.cfg -Xmx1g", &[]);
        assert_eq!(invocation.words, ["start", "zoo.cfg"]);
        assert_eq!((&*invocation.system["a"], &*invocation.system["b"]), ("2", ""));
        assert_eq!(invocation.flags, ["-Da=1", "-Db", "-Da=2"]);
        assert_eq!(invocation.jvm_only, ["-Xmx1g"]);
    }

    #[test]
    fn the_environment_defines_less_strongly_than_the_command_line() {
        let environment = [
            ("SERVER_JVMFLAGS", "-Xmx1g -Da=server -Db=server"),
            ("JVMFLAGS", "-Da=all '-Dc=x y' -Dringkeeper.pin=true"),
            ("RINGKEEPER_PIN", "false"),
            ("RINGKEEPER_SHARDS", "3"),
        ];
        let invocation = parse("-Dringkeeper.shards=2", &environment);
        let value = |name: &str| invocation.system[name].as_str();
        assert_eq!((value("a"), value("b"), value("c")), ("all", "server", "x y"));
        assert_eq!((value("ringkeeper.pin"), value("ringkeeper.shards")), ("false", "2"));
        assert_eq!(invocation.jvm_only, ["-Xmx1g"]);
    }

    #[test]
    fn words_are_cut_as_a_shell_cuts_them() {
        assert_eq!(shell_words("  a \"b c\"d '' 'e\"' "), ["a", "b cd", "", "e\""]);
        assert_eq!(shell_words("\"open end"), ["open end"]);
        assert!(shell_words(" \t").is_empty());
    }

    #[test]
    fn intervals_are_shown_in_the_largest_exact_unit() {
        for (interval_ms, text) in [
            (None, "0"),
            (Some(3_600_000), "1h"),
            (Some(86_400_000), "1d"),
            (Some(90_000), "90s"),
            (Some(1500), "1500ms"),
        ] {
            assert_eq!(interval_text(interval_ms), text);
        }
    }

    #[test]
    fn help_names_every_command() {
        let help = help();
        assert!(COMMANDS.iter().all(|command| help.contains(command.name)));
    }
}
