//! The command line: arguments in, reports out.
//!
//! Exit status: 0, or 1 where a request failed or a connection was lost (unless
//! `--allow-errors`), or 2 where there is no report.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a report goes to the terminal")]

use std::fmt;
use std::fs;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use loadgen::report::parse_span;
use loadgen::workload::{Keys, Mix};
use loadgen::{Fault, Load};

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
        #[command(flatten)]
        output: OutputArguments,
    },
}

/// The flags that make a `Load`.
#[derive(Args, Clone)]
struct LoadArguments {
    /// What to ask: get, exists, children, set, create, delete, multi, or mixed (with --mix)
    #[arg(long, default_value = "get", conflicts_with = "mix")]
    op: String,
    /// Several, by shares: get=80,set=20
    #[arg(long)]
    mix: Option<Mix>,
    #[arg(long, short, default_value_t = 64)]
    connections: usize,
    /// Requests in flight per connection
    #[arg(long, short, default_value_t = 16)]
    depth: usize,
    /// Threads of loadgen
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Bytes of each value
    #[arg(long, default_value_t = 100)]
    value_size: usize,
    /// How many znodes are read and set
    #[arg(long, default_value_t = 1000)]
    znodes: u64,
    /// Children of each parent of these
    #[arg(long, default_value_t = 100)]
    fan_out: u64,
    /// Which znode is next: uniform or sequential
    #[arg(long, default_value = "uniform", value_parser = parse_keys)]
    keys: Keys,
    /// How many znodes a multi sets
    #[arg(long, default_value_t = 4)]
    multi_size: usize,
    /// How long to measure: 10s, 500ms, 2m
    #[arg(long, default_value = "10s", value_parser = parse_span)]
    duration: Duration,
    /// How long to make the load before
    #[arg(long, default_value = "2s", value_parser = parse_span)]
    warmup: Duration,
    /// Open loop: so many requests a second, latency counted from the moment each was due
    #[arg(long)]
    rate: Option<f64>,
    #[arg(long, default_value = "30s", value_parser = parse_span)]
    session_timeout: Duration,
    /// The znode below which all this happens
    #[arg(long, default_value = "/loadgen")]
    root: String,
    /// The same seed makes the same requests
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Leave what was created
    #[arg(long)]
    keep: bool,
}

#[derive(Args, Clone)]
struct OutputArguments {
    /// Write the report there as JSON; `-` is standard output, without the text
    #[arg(long)]
    json: Option<PathBuf>,
    /// Exit with 0 even if requests failed or connections were lost
    #[arg(long)]
    allow_errors: bool,
    /// No progress lines
    #[arg(long, short)]
    quiet: bool,
}

fn parse_keys(text: &str) -> Result<Keys, String> {
    match text {
        "uniform" => Ok(Keys::Uniform),
        "sequential" => Ok(Keys::Sequential),
        other => Err(format!("'{other}' is not one of uniform, sequential")),
    }
}

impl LoadArguments {
    fn load(self, servers: Vec<String>) -> Result<Load, Fault> {
        let mix = match (self.mix, self.op.as_str()) {
            (Some(mix), _) => mix,
            (None, "mixed") => return Err(Fault::Load("--op mixed needs its --mix".to_owned())),
            (None, op) => op.parse().map_err(Fault::Load)?,
        };
        Ok(Load {
            servers,
            mix,
            connections: self.connections,
            depth: self.depth,
            threads: self.threads,
            value_bytes: self.value_size,
            znodes: self.znodes,
            fan_out: self.fan_out,
            keys: self.keys,
            multi_size: self.multi_size,
            warmup: self.warmup,
            duration: self.duration,
            rate: self.rate,
            session_timeout_ms: i32::try_from(self.session_timeout.as_millis())
                .map_err(|_| Fault::Load("a session timeout of 24 days at most".to_owned()))?,
            root: self.root,
            seed: self.seed,
            keep: self.keep,
        })
    }
}

impl OutputArguments {
    /// Prints a report in the forms asked for.
    fn print<R: Serialize + fmt::Display>(&self, report: &R) -> Result<(), Fault> {
        let Some(path) = &self.json else {
            print!("{report}");
            return Ok(());
        };
        let json = serde_json::to_string_pretty(report).expect("a report has only text keys");
        if path.as_os_str() == "-" {
            println!("{json}");
            return Ok(());
        }
        print!("{report}");
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
    match command {
        Command::Run { server, load, pid, output } => {
            let report = load.load(server)?.run(pid, &mut output.progress())?;
            output.print(&report)?;
            Ok(output.exit(report.summary.is_clean()))
        }
    }
}
