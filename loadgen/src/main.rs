//! The command line: arguments in, reports out.
//!
//! Exit status: 0, or 1 where a request failed or a connection was lost (unless
//! `--allow-errors`), or 2 where there is no report.

use std::fmt;
use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde::{Deserialize, Deserializer, Serialize};

use loadgen::compare::{Compare, Subject, Trial};
use loadgen::ensemble::schedule::{Event, Schedule};
use loadgen::ensemble::servers::{Kind, Makeup};
use loadgen::ensemble::{Ensemble, On, Subject as OnEnsemble};
use loadgen::fill::Fill;
use loadgen::idle::Idle;
use loadgen::keys::Keys;
use loadgen::limits::{Fractions, Limits};
use loadgen::plot::{Plots, page};
use loadgen::recipes::{Locks, Queue};
use loadgen::report::parse_span;
use loadgen::scene::{Scene, SceneReport, Timing};
use loadgen::side::{Side, Way, all_cpus};
use loadgen::sizes::Sizes;
use loadgen::start_time::StartTime;
use loadgen::storm::{Kind as StormKind, Storm};
use loadgen::sys;
use loadgen::verify::{Verify, usual_mix};
use loadgen::watch::Watch;
use loadgen::workload::{Mix, Op};
use loadgen::{Fault, Load, Progress};

/// Measures any server that speaks the ZooKeeper client protocol.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make requests for a while and report latency, throughput and costs
    Run {
        #[arg(long, short, value_delimiter = ',', default_value = "127.0.0.1:2181")]
        /// HOST:PORT of a server; connections go to several in turn
        server: Vec<String>,
        #[command(flatten)]
        load: LoadArguments,
        /// Report the CPU time and memory of this process, the server
        #[arg(long)]
        pid: Option<u32>,
        /// Measure what the machine allows right after, and report fractions of it
        #[arg(long)]
        limits: bool,
        #[command(flatten)]
        limits_of: LimitsArguments,
        #[command(flatten)]
        output: OutputArguments,
    },
    /// Report what the machine allows: an echo of frames of the same sizes by a bare io_uring loop,
    /// the loopback's round trip, and the disk's sync by batch size; and what loadgen can drive
    Limits {
        #[command(flatten)]
        load: LoadArguments,
        #[command(flatten)]
        limits: LimitsArguments,
        #[command(flatten)]
        output: OutputArguments,
    },
    /// Make requests for a while and check every reply against what ZooKeeper promises
    ///
    /// The mix, where none is given, has some of everything. A connection that is lost comes back,
    /// with its session or, once that has expired, a new one: a server may be killed and started
    /// again meanwhile. A write without a reply may have been done or not, and nothing else may be
    /// missing or new.
    Verify {
        #[arg(long, short, value_delimiter = ',', default_value = "127.0.0.1:2181")]
        /// HOST:PORT of a server; connections go to several in turn
        server: Vec<String>,
        #[command(flatten)]
        load: LoadArguments,
        /// Drop a connection at random moments, so long apart on average: 200ms
        #[arg(long, value_name = "SPAN", value_parser = parse_span)]
        drop_every: Option<Duration>,
        /// Make no read after a sync: Apache ZooKeeper's are not always fresh
        #[arg(long)]
        no_sync: bool,
        /// Report the CPU time and memory of this process, the server
        #[arg(long)]
        pid: Option<u32>,
        #[command(flatten)]
        output: OutputArguments,
    },
    /// Create many znodes as quickly as the server takes them, and report what they cost
    Fill(FillArguments),
    /// Open sessions that do nothing but ping, and report what each costs
    Idle(IdleArguments),
    /// Write znodes that many sessions watch, and report the time until the last event is there
    Watch(WatchArguments),
    /// Let sessions contend for locks, as clients build them, and check that one holds at a time
    Lock(LockArguments),
    /// Put elements into a queue, as clients build it, and take each of them once
    Queue(QueueArguments),
    /// Make many sessions at once, cut and resume them, close them, and report how quickly
    Storm(StormArguments),
    /// Start a server and report the time until it first answers a read; then end it
    ///
    /// Behind `compare`, which starts the servers by its own flags, it takes no command.
    #[command(alias = "first-reply")]
    StartTime {
        /// HOST:PORT where it will listen
        #[arg(long, short, default_value = "127.0.0.1:2181")]
        server: String,
        /// How many times
        #[arg(long, default_value_t = 1)]
        runs: usize,
        /// How long it may take
        #[arg(long, default_value = "5m", value_parser = parse_span)]
        within: Duration,
        #[command(flatten)]
        output: OutputArguments,
        /// The program and its arguments; a script ends in `exec`, for costs go by its pid
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Run the same on two servers in alternating pairs, and report the ratios
    ///
    /// loadgen starts the servers itself, or takes what runs. The flags of `run` say what is run,
    /// or another command of loadgen after `--`. `-- start-time` compares the starts themselves:
    /// each with an empty data directory, or with one that `--prepare` has filled once.
    Compare(Box<CompareArguments>),
    /// Start an ensemble of servers, make a load on it, and report gaps in writes and each server's
    /// figures
    ///
    /// The servers run on this machine, of either kind or mixed, and end with the load. Meanwhile some
    /// of them may be killed, stopped or paused by a schedule; clients that lose their connection
    /// come back on another server with their session. The load is that of `run`, or of `verify`,
    /// behind `--`, without --server. With --versus all is done on two ensembles in alternating
    /// pairs, each time on new ones.
    Ensemble(Box<EnsembleArguments>),
}

#[derive(Args)]
struct EnsembleArguments {
    /// The servers that vote, 1 to 7 with observers: ringkeeper or java, by comma
    #[arg(long, value_delimiter = ',', default_value = "ringkeeper,ringkeeper,ringkeeper")]
    servers: Vec<Kind>,
    /// The servers that observe
    #[arg(long, value_delimiter = ',')]
    observers: Vec<Kind>,
    /// Do the same on other servers: java,java,java
    #[arg(long, value_name = "SERVERS", value_delimiter = ',')]
    versus: Vec<Kind>,
    /// The observers of these [default: as many of the kind of their first]
    #[arg(long, value_name = "SERVERS", value_delimiter = ',', requires = "versus")]
    versus_observers: Vec<Kind>,
    /// How many pairs of runs, with --versus
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// The program ringkeeper [default: the one where loadgen is]
    #[arg(long, value_name = "PROGRAM")]
    ringkeeper: Option<PathBuf>,
    /// Where Apache ZooKeeper is: its distribution's directory, one of jars, or a class path
    #[arg(long, value_name = "DIRECTORY")]
    jars: Option<String>,
    /// Flags for java
    #[arg(long, default_value = "-Xmx2g", allow_hyphen_values = true)]
    java_flags: String,
    /// A line for each server's configuration: tickTime=500; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    config: Vec<String>,
    /// An empty directory where the servers' data and logs go, and stay [default: a temporary one]
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "versus")]
    folder: Option<PathBuf>,
    /// The first of the servers' ports, three for each [default: any that are free]
    #[arg(long, value_name = "PORT")]
    first_port: Option<u16>,
    /// Where connections begin: all, leader, follower (one of them), followers, observer, observers
    #[arg(long, default_value = "all")]
    on: On,
    /// What happens, one after the other: kill, stop or pause a leader, follower or observer, as in
    /// kill-leader,stop-follower
    #[arg(long, value_delimiter = ',')]
    event: Vec<Event>,
    /// How far events are apart; the first comes after half of this
    #[arg(long, value_name = "SPAN", default_value = "10s", value_parser = parse_span)]
    every: Duration,
    /// How long a server is down or paused
    #[arg(long, value_name = "SPAN", default_value = "2s", value_parser = parse_span)]
    down: Duration,
    /// Create so many znodes of 100 bytes before
    #[arg(long, value_name = "ZNODES", default_value_t = 0)]
    preload: u64,
    /// Hold so many sessions more, whose connections are all cut when something happens to the leader
    #[arg(long, value_name = "SESSIONS", default_value_t = 0)]
    reconnect_storm: usize,
    /// Make so many sets a second beside the load
    #[arg(long, value_name = "RATE")]
    beside: Option<f64>,
    /// Where those begin
    #[arg(long, value_name = "WHERE", default_value = "leader")]
    beside_on: On,
    /// Measure the load first without observers, events, sessions and sets beside, and report ratios
    #[arg(long)]
    baseline: bool,
    /// Make no load: say where the servers are, and wait to be interrupted
    #[arg(long, conflicts_with_all = ["versus", "event", "baseline", "command"])]
    wait: bool,
    #[command(flatten)]
    output: OutputArguments,
    /// The load: -- run --op set --connections 64, or -- verify, without --server [default: run
    /// --op set]
    #[arg(last = true)]
    command: Vec<String>,
}

#[derive(Args)]
struct FillArguments {
    /// HOST:PORT of a server; connections go to several in turn
    #[arg(long, short, value_delimiter = ',', default_value = "127.0.0.1:2181")]
    server: Vec<String>,
    #[arg(long, default_value_t = 1_000_000)]
    znodes: u64,
    /// Bytes of each value: 100, 10..1000, or by shares 100=90,4096=10
    #[arg(long, default_value = "100")]
    value_size: Sizes,
    /// Characters of each path
    #[arg(long, default_value_t = 33)]
    path_length: usize,
    /// Children of each parent
    #[arg(long, default_value_t = 1000)]
    fan_out: u64,
    /// Levels of parents between the root and the znodes
    #[arg(long, default_value_t = 1)]
    levels: u32,
    /// Creates in one multi; 1 is plain creates
    #[arg(long, default_value_t = 1)]
    multi: u64,
    #[arg(long, short, default_value_t = 16)]
    connections: usize,
    /// Requests in flight per connection
    #[arg(long, short, default_value_t = 64)]
    depth: usize,
    /// Threads of loadgen
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// The znode below which all are created
    #[arg(long, default_value = "/fill")]
    root: String,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Report the CPU time and memory of this process, the server
    #[arg(long)]
    pid: Option<u32>,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Args)]
struct IdleArguments {
    /// HOST:PORT of a server; connections go to several in turn
    #[arg(long, short, value_delimiter = ',', default_value = "127.0.0.1:2181")]
    server: Vec<String>,
    #[arg(long, short, default_value_t = 10_000)]
    connections: usize,
    /// Threads of loadgen
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// How long to keep them once all are there
    #[arg(long, default_value = "10s", value_parser = parse_span)]
    hold: Duration,
    #[arg(long, default_value = "30s", value_parser = parse_session_timeout)]
    session_timeout: i32,
    /// Report the CPU time and memory of this process, the server
    #[arg(long)]
    pid: Option<u32>,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Args)]
struct WatchArguments {
    #[command(flatten)]
    scene: SceneArguments,
    /// How many znodes are watched
    #[arg(long, default_value_t = 1)]
    znodes: u64,
    /// How many of them each session watches [default: all]
    #[arg(long)]
    each: Option<u64>,
    /// How many times all are written; 0 only places the watches, and reports their memory
    #[arg(long, default_value_t = 10)]
    rounds: u64,
    /// Bytes of each value
    #[arg(long, default_value_t = 100)]
    value_size: usize,
    /// Requests in flight per connection while watches are placed and znodes written
    #[arg(long, short, default_value_t = 64)]
    depth: usize,
    /// How long all rounds may take
    #[arg(long, default_value = "2m", value_parser = parse_span)]
    within: Duration,
    #[arg(long, default_value = "/loadgen-watch")]
    /// The znode below which all this happens
    root: String,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Args)]
struct LockArguments {
    #[command(flatten)]
    scene: SceneArguments,
    /// For how many locks they contend
    #[arg(long, default_value_t = 1)]
    locks: usize,
    #[command(flatten)]
    timing: TimingArguments,
    #[arg(long, default_value = "/loadgen-recipes")]
    /// The znode below which all this happens
    root: String,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Args)]
struct QueueArguments {
    #[command(flatten)]
    scene: SceneArguments,
    /// How many of the connections put elements in [default: half]
    #[arg(long)]
    producers: Option<usize>,
    /// How many elements may wait to be taken
    #[arg(long, default_value_t = 100)]
    backlog: u64,
    /// Bytes of each element, 8 at least
    #[arg(long, default_value_t = 100)]
    value_size: usize,
    #[command(flatten)]
    timing: TimingArguments,
    #[arg(long, default_value = "/loadgen-recipes")]
    /// The znode below which all this happens
    root: String,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Args)]
struct StormArguments {
    #[command(flatten)]
    scene: SceneArguments,
    /// Ephemeral znodes that each new session makes
    #[arg(long, default_value_t = 0)]
    ephemerals: usize,
    /// How often all sessions are made and closed
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// How often in a round all connections are cut and the sessions resumed
    #[arg(long, default_value_t = 1)]
    reconnects: usize,
    /// Instead of rounds: each connection makes and closes sessions for so long
    #[arg(long, value_parser = parse_span, conflicts_with_all = ["rounds", "reconnects"])]
    duration: Option<Duration>,
    /// How long everything may take
    #[arg(long, default_value = "2m", value_parser = parse_span)]
    within: Duration,
    /// Requests a second of other sessions, to see what the storm does to them
    #[arg(long)]
    bystanders: Option<f64>,
    #[arg(long, default_value = "/loadgen-storm")]
    /// The znode below which all this happens
    root: String,
    #[command(flatten)]
    output: OutputArguments,
}

impl FillArguments {
    fn fill(self) -> Fill {
        Fill {
            servers: self.server,
            znodes: self.znodes,
            value_bytes: self.value_size,
            path_length: self.path_length,
            fan_out: self.fan_out,
            levels: self.levels,
            multi: self.multi,
            connections: self.connections,
            depth: self.depth,
            threads: self.threads,
            root: self.root,
            seed: self.seed,
        }
    }
}

impl IdleArguments {
    fn idle(self) -> Idle {
        Idle {
            servers: self.server,
            connections: self.connections,
            threads: self.threads,
            hold: self.hold,
            session_timeout_ms: self.session_timeout,
        }
    }
}

impl WatchArguments {
    fn watch(self) -> Watch {
        Watch {
            scene: self.scene.scene(self.root),
            znodes: self.znodes,
            each: self.each.unwrap_or(self.znodes),
            rounds: self.rounds,
            value_bytes: self.value_size,
            depth: self.depth,
            within: self.within,
        }
    }
}

impl LockArguments {
    fn locks(self) -> Locks {
        let timing = self.timing.into();
        Locks { scene: self.scene.scene(self.root), locks: self.locks, timing }
    }
}

impl QueueArguments {
    fn queue(self) -> Queue {
        Queue {
            producers: self.producers.unwrap_or(self.scene.connections / 2),
            scene: self.scene.scene(self.root),
            backlog: self.backlog,
            value_bytes: self.value_size,
            timing: self.timing.into(),
        }
    }
}

impl StormArguments {
    fn storm(self) -> Storm {
        let kind = match self.duration {
            Some(duration) => StormKind::ForLong { duration },
            None => StormKind::AtOnce { rounds: self.rounds, reconnects: self.reconnects },
        };
        Storm {
            scene: self.scene.scene(self.root),
            ephemerals: self.ephemerals,
            kind,
            within: self.within,
            bystanders: self.bystanders,
        }
    }
}

#[derive(Args)]
struct CompareArguments {
    /// HOST:PORT of the one server; not needed for one that loadgen starts itself
    #[arg(long)]
    a: Option<String>,
    #[arg(long, default_value = "a")]
    a_name: String,
    /// Its process, if it runs already
    #[arg(long)]
    a_pid: Option<u32>,
    /// The line of shell that starts it; a script ends in `exec`
    #[arg(long, conflicts_with = "a_pid")]
    a_start: Option<String>,
    /// Start ringkeeper, this program
    #[arg(long, value_name = "PROGRAM", conflicts_with_all = ["a_pid", "a_start"])]
    a_ringkeeper: Option<PathBuf>,
    /// Start Apache ZooKeeper, by java: its distribution's directory, or a class path of jars
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["a_pid", "a_start", "a_ringkeeper"])]
    a_zookeeper: Option<String>,
    /// Keep it on these CPUs, if loadgen starts it: 0 or 0,1
    #[arg(long, value_delimiter = ',')]
    a_cpus: Vec<usize>,
    /// A line for its configuration, if loadgen writes it: snapCount=1000000; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    a_config: Vec<String>,
    /// HOST:PORT of the other server; not needed for one that loadgen starts itself
    #[arg(long)]
    b: Option<String>,
    #[arg(long, default_value = "b")]
    b_name: String,
    /// Its process, if it runs already
    #[arg(long)]
    b_pid: Option<u32>,
    /// The line of shell that starts it; a script ends in `exec`
    #[arg(long, conflicts_with = "b_pid")]
    b_start: Option<String>,
    /// Start ringkeeper, this program
    #[arg(long, value_name = "PROGRAM", conflicts_with_all = ["b_pid", "b_start"])]
    b_ringkeeper: Option<PathBuf>,
    /// Start Apache ZooKeeper, by java: its distribution's directory, or a class path of jars
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["b_pid", "b_start", "b_ringkeeper"])]
    b_zookeeper: Option<String>,
    /// Keep it on these CPUs, if loadgen starts it: 0 or 0,1
    #[arg(long, value_delimiter = ',')]
    b_cpus: Vec<usize>,
    /// A line for its configuration, if loadgen writes it: snapCount=1000000; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    b_config: Vec<String>,
    /// How many pairs of runs
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// How long each server has the load once it is started, unmeasured; start-time is done once
    #[arg(long, default_value = "10s", value_parser = parse_span)]
    rehearsal: Duration,
    /// Start the servers anew for each run, with fresh data, not once
    #[arg(long)]
    restart: bool,
    /// A command of loadgen for each server whose data is fresh, unmeasured and without --server:
    /// "fill --znodes 1000000 --multi 100"
    #[arg(long, value_name = "COMMAND")]
    prepare: Option<String>,
    /// Where servers that loadgen starts keep their data, each in a fresh directory
    /// [default: the directory for temporary files]
    #[arg(long, value_name = "DIRECTORY")]
    data_directory: Option<PathBuf>,
    /// Flags of java, where loadgen starts Apache ZooKeeper
    #[arg(long, default_value = "-Xmx2g", allow_hyphen_values = true)]
    java_flags: String,
    /// Measure what the machine allows at the end, and report fractions of it
    #[arg(long)]
    limits: bool,
    #[command(flatten)]
    limits_of: LimitsArguments,
    #[command(flatten)]
    load: LoadArguments,
    #[command(flatten)]
    output: OutputArguments,
    /// What to run on both instead of a load: -- watch --connections 1000, without --server
    #[arg(last = true)]
    command: Vec<String>,
}

/// Who takes part in what is not one load.
#[derive(Args, Clone)]
struct SceneArguments {
    /// HOST:PORT of a server; connections go to several in turn
    #[arg(long, short, value_delimiter = ',', default_value = "127.0.0.1:2181")]
    server: Vec<String>,
    /// How many sessions
    #[arg(long, short, default_value_t = 16)]
    connections: usize,
    /// Threads of loadgen
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// The session timeout asked for
    #[arg(long, default_value = "30s", value_parser = parse_session_timeout)]
    session_timeout: i32,
    /// Report the CPU time and memory of this process, the server
    #[arg(long)]
    pid: Option<u32>,
}

impl SceneArguments {
    fn scene(self, root: String) -> Scene {
        Scene {
            servers: self.server,
            connections: self.connections,
            threads: self.threads,
            session_timeout_ms: self.session_timeout,
            root,
        }
    }
}

/// How the machine's limits are found.
#[derive(Args, Clone)]
struct LimitsArguments {
    /// The directory whose disk is synced: where the server keeps its log [default: no sync]
    #[arg(long)]
    sync_directory: Option<PathBuf>,
    /// Keep the echo on these CPUs, as the server is: 0 or 0,1
    #[arg(long, value_delimiter = ',')]
    server_cpus: Vec<usize>,
    /// Keep loadgen on these CPUs
    #[arg(long, value_delimiter = ',')]
    client_cpus: Vec<usize>,
    /// How long each limit is measured
    #[arg(long, default_value = "2s", value_parser = parse_span)]
    limits_duration: Duration,
}

impl LimitsArguments {
    /// Before any thread is started, for those inherit it.
    fn stay_on_client_cpus(&self) -> Result<(), Fault> {
        let what = || format!("CPUs {:?}", self.client_cpus);
        sys::stay_on(&self.client_cpus).map_err(|source| Fault::Process { what: what(), source })
    }

    fn limits(self, load: Load) -> Limits {
        Limits {
            load,
            directory: self.sync_directory,
            server_cpus: self.server_cpus,
            duration: self.limits_duration,
        }
    }
}

#[derive(Args, Clone)]
struct TimingArguments {
    /// How long to measure: 10s, 500ms, 2m
    #[arg(long, default_value = "10s", value_parser = parse_span)]
    duration: Duration,
    /// How long to do the same before
    #[arg(long, default_value = "2s", value_parser = parse_span)]
    warmup: Duration,
}

impl From<TimingArguments> for Timing {
    fn from(arguments: TimingArguments) -> Timing {
        Timing { warmup: arguments.warmup, duration: arguments.duration }
    }
}

/// The flags that make a `Load`. A file may hold the same by the same names.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
struct LoadArguments {
    /// A TOML file of these flags by their names (op = "set", znodes = 5000); flags go before it
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    workload: Option<PathBuf>,
    /// What to ask: get, exists, children, set, create, ephemeral, delete, multi, or mixed (with
    /// --mix) [default: get]
    #[arg(long, conflicts_with = "mix")]
    op: Option<String>,
    /// Several, by shares: get=80,set=20
    #[arg(long)]
    mix: Option<Mix>,
    /// How many connections, each with a session [default: 64]
    #[arg(long, short)]
    connections: Option<usize>,
    /// Requests in flight per connection [default: 16]
    #[arg(long, short)]
    depth: Option<usize>,
    /// Threads of loadgen [default: 1]
    #[arg(long)]
    threads: Option<usize>,
    /// Bytes of each value: 100, 10..1000, or by shares 100=90,4096=10 [default: 100]
    #[arg(long)]
    value_size: Option<Sizes>,
    /// How many znodes are read and set [default: 1000]
    #[arg(long)]
    znodes: Option<u64>,
    /// Children of each parent of these [default: 100]
    #[arg(long)]
    fan_out: Option<u64>,
    /// Levels of parents between the root and these [default: 1]
    #[arg(long)]
    levels: Option<u32>,
    /// Which znode is next: uniform, sequential, zipfian, zipfian:0.8 [default: uniform]
    #[arg(long)]
    keys: Option<Keys>,
    /// How many znodes a multi sets [default: 4]
    #[arg(long)]
    multi_size: Option<usize>,
    /// How long to measure: 10s, 500ms, 2m [default: 10s]
    #[arg(long, value_parser = parse_span)]
    #[serde(deserialize_with = "span_of_file")]
    duration: Option<Duration>,
    /// How long to make the load before [default: 2s]
    #[arg(long, value_parser = parse_span)]
    #[serde(deserialize_with = "span_of_file")]
    warmup: Option<Duration>,
    /// Open loop: so many requests a second, latency counted from the moment each was due
    #[arg(long)]
    rate: Option<f64>,
    /// The session timeout asked for [default: 30s]
    #[arg(long, value_parser = parse_span)]
    #[serde(deserialize_with = "span_of_file")]
    session_timeout: Option<Duration>,
    /// The znode below which all this happens [default: /loadgen]
    #[arg(long)]
    root: Option<String>,
    /// The same seed makes the same requests [default: 1]
    #[arg(long)]
    seed: Option<u64>,
    /// Leave what was created
    #[arg(long)]
    keep: bool,
}

#[derive(Args, Clone)]
struct OutputArguments {
    /// Write the report there as JSON; `-` is standard output, without the text
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the report there as a page with plots of latency and throughput
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Exit with 0 even if requests failed or connections were lost
    #[arg(long)]
    allow_errors: bool,
    /// No progress lines
    #[arg(long, short)]
    quiet: bool,
}

fn parse_session_timeout(text: &str) -> Result<i32, String> {
    session_timeout_ms(parse_span(text)?)
}

fn session_timeout_ms(span: Duration) -> Result<i32, String> {
    i32::try_from(span.as_millis()).map_err(|_| format!("{span:?} is above 24 days"))
}

fn span_of_file<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_span(&text).map(Some).map_err(serde::de::Error::custom)
}

/// Writes to standard output. A reader that has seen enough is no fault.
fn say(text: &str) -> Result<(), Fault> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
            Err(Fault::Process { what: "standard output".to_owned(), source })
        }
        _ => Ok(()),
    }
}

impl LoadArguments {
    /// What the file says, or nothing.
    fn of_file(&self) -> Result<LoadArguments, Fault> {
        let Some(path) = &self.workload else { return Ok(LoadArguments::default()) };
        let text = fs::read_to_string(path)
            .map_err(|source| Fault::Process { what: path.display().to_string(), source })?;
        toml::from_str(&text).map_err(|error| {
            Fault::Load(format!("{}: {}", path.display(), error.to_string().trim()))
        })
    }

    /// The load: flags before the file, the file before what is usual.
    fn load(self, servers: Vec<String>, usual_mix: Mix) -> Result<Load, Fault> {
        let file = self.of_file()?;
        let usual = Load::default();
        let mix = |arguments: &LoadArguments| match (&arguments.mix, arguments.op.as_deref()) {
            (Some(_), Some(op)) if op != "mixed" => {
                Err(Fault::Load("one of op and mix, not both".to_owned()))
            }
            (Some(mix), _) => Ok(Some(mix.clone())),
            (None, Some("mixed")) => Err(Fault::Load("op 'mixed' needs its mix".to_owned())),
            (None, Some(op)) => Ok(Some(op.parse().map_err(Fault::Load)?)),
            (None, None) => Ok(None),
        };
        let session_timeout_ms = match self.session_timeout.or(file.session_timeout) {
            Some(span) => session_timeout_ms(span).map_err(Fault::Load)?,
            None => usual.session_timeout_ms,
        };
        Ok(Load {
            servers,
            mix: mix(&self)?.or(mix(&file)?).unwrap_or(usual_mix),
            connections: self.connections.or(file.connections).unwrap_or(usual.connections),
            depth: self.depth.or(file.depth).unwrap_or(usual.depth),
            threads: self.threads.or(file.threads).unwrap_or(usual.threads),
            value_bytes: self.value_size.or(file.value_size).unwrap_or(usual.value_bytes),
            znodes: self.znodes.or(file.znodes).unwrap_or(usual.znodes),
            fan_out: self.fan_out.or(file.fan_out).unwrap_or(usual.fan_out),
            levels: self.levels.or(file.levels).unwrap_or(usual.levels),
            keys: self.keys.or(file.keys).unwrap_or(usual.keys),
            multi_size: self.multi_size.or(file.multi_size).unwrap_or(usual.multi_size),
            warmup: self.warmup.or(file.warmup).unwrap_or(usual.warmup),
            duration: self.duration.or(file.duration).unwrap_or(usual.duration),
            rate: self.rate.or(file.rate),
            session_timeout_ms,
            root: self.root.or(file.root).unwrap_or(usual.root),
            seed: self.seed.or(file.seed).unwrap_or(usual.seed),
            keep: self.keep || file.keep,
        })
    }
}

impl OutputArguments {
    /// Prints a report in the forms asked for.
    fn print<R: Serialize + fmt::Display + Plots>(&self, report: &R) -> Result<(), Fault> {
        if let Some(path) = &self.html {
            fs::write(path, page(&report.to_string(), &report.plots()))
                .map_err(|source| Fault::Process { what: path.display().to_string(), source })?;
        }
        let Some(path) = &self.json else { return say(&report.to_string()) };
        let json = serde_json::to_string_pretty(report).expect("a report has only text keys");
        if path.as_os_str() == "-" {
            return say(&(json + "\n"));
        }
        say(&report.to_string())?;
        fs::write(path, json + "\n")
            .map_err(|source| Fault::Process { what: path.display().to_string(), source })
    }

    /// 0, or 1 if the run was not clean and that matters.
    fn exit(&self, is_clean: bool) -> ExitCode {
        if is_clean || self.allow_errors { ExitCode::SUCCESS } else { ExitCode::from(1) }
    }

    /// Writes a line a second, for someone who watches.
    fn progress(&self) -> impl FnMut(Duration, u64) + use<> {
        let is_watched = !self.quiet && io::stderr().is_terminal();
        move |elapsed, replies| {
            if is_watched {
                eprintln!("{:4.0} s {replies:>10}/s", elapsed.as_secs_f64());
            }
        }
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(fault) => {
            eprintln!("loadgen: {fault}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> Result<ExitCode, Fault> {
    let (output, is_clean) = match command {
        Command::Run { server, load, pid, limits, limits_of, output } => {
            limits_of.stay_on_client_cpus()?;
            let load = load.load(server, Mix::only(Op::Get))?;
            let mut report = load.run(pid, &mut output.progress())?;
            if limits {
                let limits = limits_of.limits(load).run()?;
                report.fractions = Some(Fractions::new(&report, limits));
            }
            output.print(&report)?;
            (output, report.summary.is_clean())
        }
        Command::Limits { load, limits, output } => {
            limits.stay_on_client_cpus()?;
            let load = load.load(vec!["unused:0".to_owned()], Mix::only(Op::Get))?;
            output.print(&limits.limits(load).run()?)?;
            (output, true)
        }
        Command::Verify { server, load, drop_every, no_sync, pid, output } => {
            let load = load.load(server, usual_mix())?;
            let verify = Verify { load, drop_every, has_syncs: !no_sync };
            let verdict = verify.run(pid, &mut output.progress())?;
            output.print(&verdict)?;
            (output, verdict.is_clean())
        }
        Command::Fill(fill) => {
            let (pid, output) = (fill.pid, fill.output.clone());
            let report = fill.fill().run(pid, &mut output.progress())?;
            output.print(&report)?;
            (output, report.summary.is_clean())
        }
        Command::Idle(idle) => {
            let (pid, output) = (idle.pid, idle.output.clone());
            let report = idle.idle().run(pid, &mut output.progress())?;
            output.print(&report)?;
            (output, report.is_clean())
        }
        Command::Watch(watch) => {
            let (pid, output) = (watch.scene.pid, watch.output.clone());
            play(output, |progress| watch.watch().run(pid, progress))?
        }
        Command::Lock(lock) => {
            let (pid, output) = (lock.scene.pid, lock.output.clone());
            play(output, |progress| lock.locks().run(pid, progress))?
        }
        Command::Queue(queue) => {
            let (pid, output) = (queue.scene.pid, queue.output.clone());
            play(output, |progress| queue.queue().run(pid, progress))?
        }
        Command::Storm(storm) => {
            let (pid, output) = (storm.scene.pid, storm.output.clone());
            play(output, |progress| storm.storm().run(pid, progress))?
        }
        Command::StartTime { server, runs, within, output, command } => {
            output.print(&StartTime { server, runs, within, command }.run()?)?;
            (output, true)
        }
        Command::Ensemble(arguments) => return arguments.run(),
        Command::Compare(arguments) => {
            let (compare, output) = arguments.compare()?;
            let quiet = output.quiet;
            let comparison = compare.run(&mut |line| {
                if !quiet {
                    eprintln!("{line}");
                }
            })?;
            output.print(&comparison)?;
            (output, comparison.is_clean())
        }
    };
    Ok(output.exit(is_clean))
}

impl EnsembleArguments {
    fn run(self: Box<Self>) -> Result<ExitCode, Fault> {
        let (output, wait, pairs) = (self.output.clone(), self.wait, self.pairs);
        let (ensemble, other) = self.ensembles()?;
        let open = |source| Fault::Process { what: "signals".to_owned(), source };
        sys::catch_interrupts().map_err(open)?;
        let quiet = output.quiet;
        let mut said = |line: &str| {
            if !quiet || wait {
                eprintln!("{line}");
            }
        };
        let mut progress = output.progress();
        if wait {
            ensemble.wait(&mut said)?;
            return Ok(ExitCode::SUCCESS);
        }
        let is_clean = match other {
            Some(other) => {
                let versus = ensemble.run_versus(&other, pairs, &mut said, &mut progress)?;
                output.print(&versus)?;
                versus.is_clean()
            }
            None => {
                let report = ensemble.run(&mut said, &mut progress)?;
                output.print(&report)?;
                report.is_clean()
            }
        };
        Ok(output.exit(is_clean))
    }

    /// The ensemble, and the servers that it is compared with.
    fn ensembles(self) -> Result<(Ensemble, Option<Makeup>), Fault> {
        let words = if self.command.is_empty() {
            ["run", "--op", "set"].map(str::to_owned).to_vec()
        } else {
            self.command
        };
        let unnamed = vec!["ENSEMBLE".to_owned()];
        let subject = match command(&words)? {
            Command::Run { load, .. } => OnEnsemble::Load(load.load(unnamed, Mix::only(Op::Get))?),
            Command::Verify { load, drop_every, no_sync, .. } => {
                let load = load.load(unnamed, usual_mix())?;
                OnEnsemble::Verify(Verify { load, drop_every, has_syncs: !no_sync })
            }
            _ => return Err(Fault::Load("wanted is run or verify behind --".to_owned())),
        };
        let ringkeeper = match self.ringkeeper {
            Some(program) => program,
            None => std::env::current_exe()
                .map_err(|source| Fault::Process { what: "loadgen".to_owned(), source })?
                .with_file_name("ringkeeper"),
        };
        let makeup = Makeup {
            voters: self.servers,
            observers: self.observers,
            ringkeeper,
            jars: self.jars,
            java_flags: self.java_flags,
            config: self.config,
            folder: self.folder,
            first_port: self.first_port,
        };
        let other = self.versus.first().map(|&first| Makeup {
            observers: match self.versus_observers.as_slice() {
                [] => vec![first; makeup.observers.len()],
                observers => observers.to_vec(),
            },
            voters: self.versus.clone(),
            ..makeup.clone()
        });
        let (every, down) = (self.every, self.down);
        let schedule =
            (!self.event.is_empty()).then_some(Schedule { events: self.event, every, down });
        let ensemble = Ensemble {
            makeup,
            subject,
            on: self.on,
            schedule,
            preload: self.preload,
            storm: self.reconnect_storm,
            beside: self.beside,
            beside_on: self.beside_on,
            baseline: self.baseline,
        };
        Ok((ensemble, other))
    }
}

impl CompareArguments {
    fn compare(self) -> Result<(Compare, OutputArguments), Fault> {
        if self.a_name == self.b_name {
            return Err(Fault::Load("the two servers need names of their own".to_owned()));
        }
        self.limits_of.stay_on_client_cpus()?;
        let load = self.load.load(vec!["SERVER".to_owned()], Mix::only(Op::Get))?;
        let subject = match self.command.as_slice() {
            [] => Subject::Trial(Box::new(load.clone())),
            words => subject(words)?,
        };
        let prepare = self.prepare.as_deref().map(preparation).transpose()?;
        let directory = self.data_directory.unwrap_or_else(std::env::temp_dir);
        let limits = self.limits.then(|| {
            let mut limits = self.limits_of.clone().limits(load);
            limits.directory.get_or_insert_with(|| directory.clone());
            limits
        });
        let java_flags = self.java_flags;
        let way = |pid, line, program, class_path| match (line, program, class_path) {
            (Some(line), _, _) => Way::Line(line),
            (_, Some(program), _) => Way::Ringkeeper { program },
            (_, _, Some(class_path)) => {
                Way::ZooKeeper { class_path, java_flags: java_flags.clone() }
            }
            (None, None, None) => Way::Runs { pid },
        };
        let is_kept = !self.limits_of.client_cpus.is_empty();
        let cpus = |cpus: Vec<usize>| match cpus.is_empty() && is_kept {
            true => all_cpus(),
            false => cpus,
        };
        let compare = Compare {
            subject,
            prepare,
            a: Side {
                name: self.a_name,
                server: self.a,
                way: way(self.a_pid, self.a_start, self.a_ringkeeper, self.a_zookeeper),
                cpus: cpus(self.a_cpus),
                config: self.a_config,
            },
            b: Side {
                name: self.b_name,
                server: self.b,
                way: way(self.b_pid, self.b_start, self.b_ringkeeper, self.b_zookeeper),
                cpus: cpus(self.b_cpus),
                config: self.b_config,
            },
            pairs: self.pairs,
            rehearsal: self.rehearsal,
            restart: self.restart,
            directory,
            limits,
        };
        Ok((compare, self.output))
    }
}

/// Runs a scene and reports it.
fn play(
    output: OutputArguments,
    run: impl FnOnce(Progress<'_>) -> Result<SceneReport, Fault>,
) -> Result<(OutputArguments, bool), Fault> {
    let report = run(&mut output.progress())?;
    output.print(&report)?;
    Ok((output, report.is_clean()))
}

/// Another command of loadgen, to be compared.
fn subject(words: &[String]) -> Result<Subject, Fault> {
    Ok(match command(words)? {
        Command::StartTime { command, .. } if !command.is_empty() => {
            let what = "the flags of compare start the servers: start-time without a command";
            return Err(Fault::Load(what.to_owned()));
        }
        Command::StartTime { server, runs, within, output: _, command } => {
            Subject::Start(StartTime { server, runs, within, command })
        }
        command => Subject::Trial(trial(command, "start-time or one of")?),
    })
}

/// What is done before something else is compared.
fn preparation(line: &str) -> Result<Box<dyn Trial>, Fault> {
    let words: Vec<_> = line.split_ascii_whitespace().map(str::to_owned).collect();
    command(&words)
        .and_then(|command| trial(command, "one of"))
        .map_err(|fault| Fault::Load(format!("--prepare '{line}': {fault}")))
}

fn command(words: &[String]) -> Result<Command, Fault> {
    let name = "loadgen".to_owned();
    let arguments = Arguments::try_parse_from(std::iter::once(&name).chain(words));
    Ok(arguments.map_err(|error| Fault::Load(error.to_string()))?.command)
}

/// What a command does, to be done on a server that runs. `wanted` begins the list of what it can
/// be.
fn trial(command: Command, wanted: &str) -> Result<Box<dyn Trial>, Fault> {
    Ok(match command {
        Command::Run { server, load, .. } => Box::new(load.load(server, Mix::only(Op::Get))?),
        Command::Fill(fill) => Box::new(fill.fill()),
        Command::Idle(idle) => Box::new(idle.idle()),
        Command::Watch(watch) => Box::new(watch.watch()),
        Command::Lock(lock) => Box::new(lock.locks()),
        Command::Queue(queue) => Box::new(queue.queue()),
        Command::Storm(storm) => Box::new(storm.storm()),
        Command::Limits { .. }
        | Command::Verify { .. }
        | Command::StartTime { .. }
        | Command::Ensemble(_)
        | Command::Compare(_) => {
            let what = format!("wanted is {wanted} run, fill, idle, watch, lock, queue, storm");
            return Err(Fault::Load(what));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_that_is_printed_is_the_load_again() {
        let loads = [
            Load::default(),
            Load {
                servers: vec!["a:1".to_owned(), "b:2".to_owned()],
                mix: "get=80,multi=20".parse().unwrap(),
                connections: 3,
                depth: 4,
                threads: 5,
                value_bytes: "6..9".parse().unwrap(),
                znodes: 7,
                fan_out: 8,
                levels: 2,
                keys: Keys::Zipfian { exponent: 0.5 },
                multi_size: 9,
                warmup: Duration::from_millis(1500),
                duration: Duration::from_secs(90),
                rate: Some(1234.5),
                session_timeout_ms: 10,
                root: "/other".to_owned(),
                seed: 11,
                keep: true,
            },
        ];
        for load in loads {
            let line = load.to_string();
            let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
            let Command::Run { server, load: read, .. } = arguments.command else {
                panic!("{line} is not a run");
            };
            assert_eq!(read.load(server, Mix::only(Op::Get)).unwrap(), load);
        }
    }

    #[test]
    fn a_file_says_what_the_flags_do_not() {
        let path = std::env::temp_dir().join(format!("loadgen-{}.toml", std::process::id()));
        let load = |text: &str, flags: &str| {
            fs::write(&path, text).unwrap();
            let line = format!("loadgen run --workload {} {flags}", path.display());
            let arguments = Arguments::try_parse_from(line.split_ascii_whitespace()).unwrap();
            let Command::Run { server, load, .. } = arguments.command else {
                panic!("{line} is not a run");
            };
            load.load(server, Mix::only(Op::Get))
        };
        let text = "mix = \"get=1,set=2\"\nvalue-size = 7\nduration = \"3s\"\nkeep = true\n\
                    keys = \"zipfian\"\nsession-timeout = \"5s\"\nrate = 10.0\n";
        let of_file = load(text, "--connections 3").unwrap();
        let expected = Load {
            mix: "get=1,set=2".parse().unwrap(),
            value_bytes: Sizes::Fixed(7),
            duration: Duration::from_secs(3),
            keep: true,
            keys: Keys::Zipfian { exponent: 0.99 },
            session_timeout_ms: 5000,
            rate: Some(10.0),
            connections: 3,
            ..Load::default()
        };
        assert_eq!(of_file, expected);
        let flags = load(text, "--op delete --value-size 8 --duration 4s").unwrap();
        assert_eq!(flags.mix, "delete".parse().unwrap());
        assert_eq!((flags.value_bytes, flags.duration), (Sizes::Fixed(8), Duration::from_secs(4)));
        for wrong in ["depht = 3", "keys = \"zipf\"", "duration = 3", "op = \"get\"\nmix = \"set\""]
        {
            let error = load(wrong, "").unwrap_err().to_string();
            assert!(!error.is_empty(), "{wrong}");
        }
        fs::remove_file(&path).unwrap();
    }

    fn comparison(line: &str) -> Result<Compare, String> {
        let words = line.split_ascii_whitespace().map(str::to_owned);
        // Several words in one, as a shell makes them of quotes.
        let words = words.map(|word| word.replace('_', " "));
        let arguments = Arguments::try_parse_from(words).map_err(|error| error.to_string())?;
        let Command::Compare(arguments) = arguments.command else { panic!("{line}") };
        arguments.compare().map(|(compare, _)| compare).map_err(|fault| fault.to_string())
    }

    #[test]
    fn start_times_are_compared_with_and_without_data() {
        let servers = "loadgen compare --a-ringkeeper a --b-ringkeeper b";
        let empty = comparison(&format!("{servers} -- start-time --runs 3")).unwrap();
        assert!(matches!(&empty.subject, Subject::Start(start_time) if start_time.runs == 3));
        assert!(empty.prepare.is_none());
        let filled = format!("{servers} --prepare fill_--znodes_5 -- start-time");
        let filled = comparison(&filled).unwrap();
        assert!(filled.prepare.unwrap().command().contains("--znodes 5"));
        for (flags, reason) in [
            ("-- start-time -- server", "without a command"),
            ("-- verify", "wanted is start-time or one of run"),
            ("--prepare start-time -- start-time", "--prepare 'start-time': wanted is one of run"),
            ("--prepare fill_--znodes_x", "invalid value"),
        ] {
            let error = comparison(&format!("{servers} {flags}")).err().unwrap();
            assert!(error.contains(reason), "{error}");
        }
    }

    fn ensemble(line: &str) -> Result<Ensemble, String> {
        let words = line.split_ascii_whitespace();
        let arguments = Arguments::try_parse_from(words).map_err(|error| error.to_string())?;
        let Command::Ensemble(arguments) = arguments.command else { panic!("{line}") };
        let (ensemble, _) = arguments.ensembles().map_err(|fault| fault.to_string())?;
        ensemble.check().map_err(|fault| fault.to_string())?;
        Ok(ensemble)
    }

    /// Programs that are there and are not started.
    const OF_ENSEMBLE: &str = "loadgen ensemble --ringkeeper /bin/true";

    #[test]
    fn the_ensemble_that_is_printed_is_the_ensemble_again() {
        for flags in [
            "",
            "--servers ringkeeper,ringkeeper,ringkeeper,ringkeeper,ringkeeper --on followers \
             --config tickTime=500 --config snapCount=7 --first-port 21000",
            "--event kill-leader,pause-follower --every 5s --down 300ms --reconnect-storm 9 \
             --preload 70 --beside 50 --beside-on follower -- verify --drop-every 40ms --no-sync",
            "--observers ringkeeper --baseline --on leader -- run --op get --connections 3",
        ] {
            let line = ensemble(&format!("{OF_ENSEMBLE} {flags}")).unwrap().to_string();
            assert_eq!(ensemble(&line).unwrap().to_string(), line);
        }
    }

    #[test]
    fn an_ensemble_that_cannot_be_is_refused_with_the_reason() {
        for (flags, reason) in [
            ("--servers ringkeeper,other", "'other' is no kind of server: ringkeeper or java"),
            ("--servers java", "--jars"),
            ("--servers java --jars /nowhere", "no such directory"),
            ("--event kill-king", "as in kill-leader"),
            ("--event kill-leader --every 20s", "--every is not longer than the load lasts"),
            ("--event kill-leader --every 2s --down 2s", "--down is shorter than --every"),
            ("--event kill-leader --servers ringkeeper,ringkeeper", "fewer than three"),
            ("--event kill-observer", "an observer is needed"),
            ("--on observers", "an observer is needed"),
            ("--on everyone", "is not one of all, leader"),
            ("--on follower --servers ringkeeper", "a follower needs two"),
            ("--reconnect-storm 5 --event kill-follower", "happens to the leader"),
            ("--folder /proc", "/proc: not empty"),
            ("-- fill", "wanted is run or verify"),
            ("-- run --connections 0", "one connection at least"),
        ] {
            let error = ensemble(&format!("{OF_ENSEMBLE} {flags}")).err().unwrap();
            assert!(error.contains(reason), "{flags}: {error}");
        }
    }

    #[test]
    fn servers_are_compared_with_as_many_observers_of_the_other_kind() {
        let line = format!("{OF_ENSEMBLE} --observers ringkeeper,ringkeeper --versus java,java");
        let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
        let Command::Ensemble(arguments) = arguments.command else { panic!("{line}") };
        let other = arguments.ensembles().unwrap().1.unwrap();
        assert_eq!((other.voters, other.observers), (vec![Kind::Java; 2], vec![Kind::Java; 2]));
    }

    #[test]
    fn the_flags_agree_with_each_other() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }
}
