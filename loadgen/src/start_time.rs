//! The time from the start of a server's process to its first answer to a read.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::process::{Start, Started, Usage};
use crate::report::{median, mib};
use crate::{Fault, resolve};

/// What to start, and where it will listen.
#[derive(Clone, Debug, Serialize)]
pub struct StartTime {
    pub server: String,
    pub runs: usize,
    pub within: Duration,
    /// The program and its arguments.
    pub command: Vec<String>,
}

/// What each start took.
#[derive(Clone, Debug, Serialize)]
pub struct StartTimeReport {
    pub start_time: StartTime,
    pub first_reply_ms: Vec<f64>,
    pub median_ms: f64,
    /// From the request to end until the process had ended.
    pub end_ms: Vec<f64>,
    /// The server's, when it had first answered.
    pub cpu_seconds: Vec<f64>,
    pub resident_bytes: Vec<u64>,
}

impl StartTime {
    pub fn run(&self) -> Result<StartTimeReport, Fault> {
        let Some((program, args)) = self.command.split_first() else {
            return Err(Fault::Load("a command is needed".to_owned()));
        };
        let server = resolve(std::slice::from_ref(&self.server))?[0];
        let mut report = StartTimeReport {
            start_time: self.clone(),
            first_reply_ms: Vec::new(),
            median_ms: 0.0,
            end_ms: Vec::new(),
            cpu_seconds: Vec::new(),
            resident_bytes: Vec::new(),
        };
        for _ in 0..self.runs.max(1) {
            let mut started = Started::start(server, Start::plain(program, args))?;
            let first_reply = started.first_reply(self.within)?;
            let usage = Usage::of(started.pid())?;
            report.first_reply_ms.push(first_reply.as_secs_f64() * 1e3);
            report.cpu_seconds.push(usage.cpu_seconds);
            report.resident_bytes.push(usage.resident_bytes);
            report.end_ms.push(started.end().as_secs_f64() * 1e3);
        }
        report.median_ms = median(&report.first_reply_ms);
        Ok(report)
    }
}

impl fmt::Display for StartTimeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StartTime { server, runs, within: _, command } = &self.start_time;
        writeln!(f, "loadgen start-time --server {server} --runs {runs} -- {}", command.join(" "))?;
        writeln!(
            f,
            "{:>16}{:>12}{:>16}{:>12}",
            "first reply ms", "CPU s", "resident MiB", "end ms"
        )?;
        for run in 0..self.first_reply_ms.len() {
            writeln!(
                f,
                "{:>16.1}{:>12.2}{:>16}{:>12.1}",
                self.first_reply_ms[run],
                self.cpu_seconds[run],
                mib(self.resident_bytes[run]),
                self.end_ms[run]
            )?;
        }
        writeln!(f, "median {:.1} ms", self.median_ms)
    }
}
