//! Sessions that do nothing but live: what each costs the server.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::driver::{Crew, Moment, Pace, Plan, Span, drive, split};
use crate::report::{OwnCost, ServerCost, Summary, span};
use crate::workload::Nothing;
use crate::{Costs, Fault, Progress, resolve};

/// Idle sessions as a user asks for them.
#[derive(Clone, Debug, Serialize)]
pub struct Idle {
    pub servers: Vec<String>,
    pub connections: usize,
    pub threads: usize,
    /// How long they are kept, with pings, once all are there.
    pub hold: Duration,
    pub session_timeout_ms: i32,
}

/// What they cost. The kernel's memory for their sockets is in nobody's resident memory.
#[derive(Clone, Debug, Serialize)]
pub struct IdleReport {
    pub idle: Idle,
    pub sessions_per_second: f64,
    #[serde(flatten)]
    pub summary: Summary,
    pub server: Option<ServerCost>,
    /// Growth of the server's resident memory over the sessions made.
    pub resident_bytes_per_session: Option<f64>,
    pub own: OwnCost,
}

impl IdleReport {
    /// Whether all sessions lived to the end.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.summary.dropped.is_empty()
    }
}

impl Idle {
    pub fn run(&self, pid: Option<u32>, progress: Progress<'_>) -> Result<IdleReport, Fault> {
        if self.connections == 0 || self.session_timeout_ms <= 0 {
            let what = "one connection at least, and a session timeout above zero";
            return Err(Fault::Load(what.to_owned()));
        }
        let plan = Plan {
            pace: Pace::Idle,
            span: Span::Timed { warmup: Duration::ZERO, duration: self.hold },
            ..Plan::of_list(resolve(&self.servers)?, 1, self.session_timeout_ms)
        };
        let crews = split(self.connections, self.threads)
            .into_iter()
            .map(|connections| Crew { connections, source: Nothing })
            .collect();
        let mut costs = Costs::new(pid);
        let since = Instant::now();
        let mut connecting = Duration::ZERO;
        let driven = drive(&plan, crews, &mut |moment| {
            if moment == Moment::Begin {
                connecting = since.elapsed();
            }
            costs.progress(moment, &mut *progress)
        })?;
        let server = costs.server(&driven);
        Ok(IdleReport {
            idle: self.clone(),
            sessions_per_second: self.connections as f64 / connecting.as_secs_f64(),
            summary: Summary::new(&driven.tally, driven.seconds),
            server,
            resident_bytes_per_session: server.map(|server| {
                let grown = server.resident_bytes_end as f64;
                (grown - server.resident_bytes_unconnected as f64) / self.connections as f64
            }),
            own: costs.own(&driven),
        })
    }
}

impl Idle {
    /// The command that does the same again.
    #[must_use]
    pub fn command(&self) -> String {
        let Idle { servers, connections, threads, hold, session_timeout_ms } = self;
        format!(
            "loadgen idle --server {} --connections {connections} --threads {threads} --hold {} \
             --session-timeout {session_timeout_ms}ms",
            servers.join(","),
            span(*hold)
        )
    }
}

impl fmt::Display for IdleReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.idle.command())?;
        writeln!(f, "{:.0} sessions/s while they were made", self.sessions_per_second)?;
        for (reason, count) in &self.summary.dropped {
            writeln!(f, "ERRORS: {count} connections lost: {reason}")?;
        }
        if self.is_clean() {
            writeln!(f, "no connection lost")?;
        }
        if let Some(server) = &self.server {
            writeln!(f, "{server}")?;
        }
        if let Some(bytes) = self.resident_bytes_per_session {
            writeln!(f, "{bytes:.0} bytes of resident memory per session")?;
        }
        writeln!(f, "{}", self.own)
    }
}
