//! Says what this host is and which of its settings hold a ringkeeper server back.
//!
//! Exit status: 0, or 1 where something would keep a server from starting or from being durable,
//! or 2 where the question could not be answered.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a report goes to the terminal")]

mod advice;
mod host;
mod probe;
mod sys;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde::Serialize;

use advice::{Finding, Weight, findings};
use host::Host;
use probe::SyncLatency;

/// Says what this host is and which of its settings fit or hinder a server.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// The data directory, or where it will be: says what is below it and how fast it syncs
    #[arg(long, short)]
    directory: Option<PathBuf>,
    /// How long the sync latency is measured at most, in seconds; 0 leaves it out
    #[arg(long, default_value_t = 2.0, value_parser = parse_seconds)]
    probe_seconds: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=60.0).contains(&seconds) => Ok(seconds),
        _ => Err(format!("'{text}' is not a number of seconds from 0 to 60")),
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{}: not in /proc/self/mountinfo", path.display())]
    Unmounted { path: PathBuf },
}

#[derive(Serialize)]
struct Report {
    host: Host,
    /// By the log's back end and the bytes written before each sync; empty where it was not
    /// measured.
    sync: Vec<SyncLatency>,
    findings: Vec<Finding>,
}

fn main() -> ExitCode {
    match report(&Arguments::parse()) {
        Ok(code) => code,
        Err(fault) => {
            eprintln!("tuning: {fault}");
            ExitCode::from(2)
        }
    }
}

fn report(arguments: &Arguments) -> Result<ExitCode, Fault> {
    let host = Host::inspect(arguments.directory.as_deref())?;
    let sync = match &arguments.directory {
        Some(directory) if 0.0 < arguments.probe_seconds => {
            probe::sync_latency(directory, Duration::from_secs_f64(arguments.probe_seconds))?
        }
        _ => Vec::new(),
    };
    let findings = findings(&host, &sync);
    let hinders = findings.iter().any(|finding| finding.weight == Weight::Problem);
    let report = Report { host, sync, findings };
    if arguments.json {
        let json = serde_json::to_string_pretty(&report).expect("a report has only text keys");
        println!("{json}");
    } else {
        for finding in &report.findings {
            println!("{finding}");
        }
        if report.host.disk.is_none() {
            println!("\nWith --directory DATADIR: what is below it, and how fast it syncs.");
        }
    }
    Ok(if hinders { ExitCode::from(1) } else { ExitCode::SUCCESS })
}
