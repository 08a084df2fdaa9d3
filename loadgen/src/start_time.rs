//! The time from the start of a server's process to its first answer to a read.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::process::{Start, Started, Usage};
use crate::report::{median, mib};
use crate::{Fault, hold, resolve};

/// What to start, and where it will listen.
#[derive(Clone, Debug, Serialize)]
pub struct StartTime {
    pub server: String,
    pub runs: usize,
    pub within: Duration,
    /// The program and its arguments.
    pub command: Vec<String>,
}

/// The starts of a command, and what each took.
#[derive(Clone, Debug, Serialize)]
pub struct StartTimeReport {
    pub start_time: StartTime,
    #[serde(flatten)]
    pub starts: Starts,
}

/// What each start took.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Starts {
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
            return Err(Fault::Load("start-time needs the server's command after --".to_owned()));
        };
        let server = resolve(std::slice::from_ref(&self.server))?[0];
        let starts = self.starts(|| {
            let mut started = Started::start(server, Start::plain(program, args))?;
            let first_reply = started.first_reply(self.within)?;
            Ok((started, first_reply))
        })?;
        Ok(StartTimeReport { start_time: self.clone(), starts })
    }

    /// As many runs of a server that `start` starts; it returns the time to the first answer.
    pub fn starts(
        &self,
        mut start: impl FnMut() -> Result<(Started, Duration), Fault>,
    ) -> Result<Starts, Fault> {
        hold(&[(0 < self.runs, "one run at least")])?;
        let mut starts = Starts::default();
        for _ in 0..self.runs {
            let (started, first_reply) = start()?;
            let usage = Usage::of(started.pid())?;
            starts.first_reply_ms.push(first_reply.as_secs_f64() * 1e3);
            starts.cpu_seconds.push(usage.cpu_seconds);
            starts.resident_bytes.push(usage.resident_bytes);
            starts.end_ms.push(started.end().as_secs_f64() * 1e3);
        }
        starts.median_ms = median(&starts.first_reply_ms);
        Ok(starts)
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
        let Starts { first_reply_ms, median_ms, end_ms, cpu_seconds, resident_bytes } =
            &self.starts;
        for run in 0..first_reply_ms.len() {
            writeln!(
                f,
                "{:>16.1}{:>12.2}{:>16}{:>12.1}",
                first_reply_ms[run],
                cpu_seconds[run],
                mib(resident_bytes[run]),
                end_ms[run]
            )?;
        }
        writeln!(f, "median {median_ms:.1} ms")
    }
}
