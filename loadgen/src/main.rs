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

use loadgen::compare::{Compare, Side};
use loadgen::fill::Fill;
use loadgen::idle::Idle;
use loadgen::report::parse_span;
use loadgen::start_time::StartTime;
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
    /// Create many znodes as quickly as the server takes them, and report what they cost
    Fill {
        /// HOST:PORT of a server; connections go to several in turn
        #[arg(long, short, value_delimiter = ',', default_value = "127.0.0.1:2181")]
        server: Vec<String>,
        #[arg(long, default_value_t = 1_000_000)]
        znodes: u64,
        /// Bytes of each value
        #[arg(long, default_value_t = 100)]
        value_size: usize,
        /// Characters of each path
        #[arg(long, default_value_t = 33)]
        path_length: usize,
        /// Children of each parent
        #[arg(long, default_value_t = 1000)]
        fan_out: u64,
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
    },
    /// Open sessions that do nothing but ping, and report what each costs
    Idle {
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
    },
    /// Start a server and report the time until it first answers a read; then end it
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
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Make the same load on two servers in alternating pairs, and report the ratios
    Compare(CompareArguments),
}

#[derive(Args)]
struct CompareArguments {
    /// HOST:PORT of the one server
    #[arg(long)]
    a: String,
    #[arg(long, default_value = "a")]
    a_name: String,
    /// Its process, if it runs already
    #[arg(long)]
    a_pid: Option<u32>,
    /// The line of shell that starts it, if it does not; a script ends in `exec`
    #[arg(long, conflicts_with = "a_pid")]
    a_start: Option<String>,
    /// HOST:PORT of the other server
    #[arg(long)]
    b: String,
    #[arg(long, default_value = "b")]
    b_name: String,
    /// Its process, if it runs already
    #[arg(long)]
    b_pid: Option<u32>,
    /// The line of shell that starts it, if it does not; a script ends in `exec`
    #[arg(long, conflicts_with = "b_pid")]
    b_start: Option<String>,
    /// How many pairs of loads
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// How long each server has the load before the first pair, unmeasured
    #[arg(long, default_value = "10s", value_parser = parse_span)]
    rehearsal: Duration,
    /// Start the servers anew for each load, not once
    #[arg(long)]
    restart: bool,
    #[command(flatten)]
    load: LoadArguments,
    #[command(flatten)]
    output: OutputArguments,
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
    #[arg(long, default_value = "30s", value_parser = parse_session_timeout)]
    session_timeout: i32,
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

fn parse_session_timeout(text: &str) -> Result<i32, String> {
    let ms = parse_span(text)?.as_millis();
    i32::try_from(ms).map_err(|_| format!("'{text}' is above 24 days"))
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
            session_timeout_ms: self.session_timeout,
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
    let (output, is_clean) = match command {
        Command::Run { server, load, pid, output } => {
            let report = load.load(server)?.run(pid, &mut output.progress())?;
            output.print(&report)?;
            (output, report.summary.is_clean())
        }
        Command::Fill {
            server: servers,
            znodes,
            value_size: value_bytes,
            path_length,
            fan_out,
            multi,
            connections,
            depth,
            threads,
            root,
            seed,
            pid,
            output,
        } => {
            let fill = Fill {
                servers,
                znodes,
                value_bytes,
                path_length,
                fan_out,
                multi,
                connections,
                depth,
                threads,
                root,
                seed,
            };
            let report = fill.run(pid, &mut output.progress())?;
            output.print(&report)?;
            (output, report.summary.is_clean())
        }
        Command::Idle { server, connections, threads, hold, session_timeout, pid, output } => {
            let session_timeout_ms = session_timeout;
            let idle = Idle { servers: server, connections, threads, hold, session_timeout_ms };
            let report = idle.run(pid, &mut output.progress())?;
            output.print(&report)?;
            (output, report.is_clean())
        }
        Command::StartTime { server, runs, within, output, command } => {
            output.print(&StartTime { server, runs, within, command }.run()?)?;
            (output, true)
        }
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

impl CompareArguments {
    fn compare(self) -> Result<(Compare, OutputArguments), Fault> {
        if self.a_name == self.b_name {
            return Err(Fault::Load("the two servers need names of their own".to_owned()));
        }
        let compare = Compare {
            load: self.load.load(vec![self.a.clone()])?,
            a: Side { name: self.a_name, server: self.a, pid: self.a_pid, start: self.a_start },
            b: Side { name: self.b_name, server: self.b, pid: self.b_pid, start: self.b_start },
            pairs: self.pairs,
            rehearsal: self.rehearsal,
            restart: self.restart,
        };
        Ok((compare, self.output))
    }
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
                value_bytes: 6,
                znodes: 7,
                fan_out: 8,
                keys: Keys::Sequential,
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
            assert_eq!(read.load(server).unwrap(), load);
        }
    }

    #[test]
    fn the_flags_agree_with_each_other() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }
}
