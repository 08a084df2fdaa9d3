//! What the runs have in common that are neither one load nor one figure: watches, storms,
//! recipes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::client::Session;
use crate::report::{OwnCost, ServerCost, Summary, code_name, span};
use crate::{Fault, accept, connect};

/// Who takes part, and where.
#[derive(Clone, Debug, Serialize)]
pub struct Scene {
    /// `HOST:PORT`; connections go to them in turn.
    pub servers: Vec<String>,
    pub connections: usize,
    pub threads: usize,
    pub session_timeout_ms: i32,
    /// The znode below which all this happens.
    pub root: String,
}

impl Scene {
    pub fn check(&self) -> Result<(), Fault> {
        let claims = [
            (!self.servers.is_empty(), "a server is needed"),
            (0 < self.connections, "one connection at least"),
            (0 < self.threads, "one thread at least"),
            (0 < self.session_timeout_ms, "a session timeout above zero"),
            (
                self.root.starts_with('/') && 1 < self.root.len() && !self.root.ends_with('/'),
                "the root is a path such as /loadgen, and not / itself",
            ),
        ];
        crate::hold(&claims)
    }
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Scene { servers, connections, threads, session_timeout_ms, root } = self;
        write!(
            f,
            "--server {} --connections {connections} --threads {threads} --session-timeout \
             {session_timeout_ms}ms --root {root}",
            servers.join(",")
        )
    }
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct SceneReport {
    /// The command that does the same again.
    pub command: String,
    #[serde(flatten)]
    pub summary: Summary,
    /// What else there is to say, by name and unit.
    pub figures: BTreeMap<String, f64>,
    /// What was found wrong, and how often.
    pub violations: BTreeMap<String, u64>,
    pub server: Option<ServerCost>,
    pub own: OwnCost,
}

impl SceneReport {
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty() && self.summary.is_clean()
    }
}

impl fmt::Display for SceneReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.command)?;
        write!(f, "{}", self.summary)?;
        for (violation, count) in &self.violations {
            writeln!(f, "WRONG {count} times: {violation}")?;
        }
        for (name, value) in &self.figures {
            writeln!(f, "{name}: {value:.1}")?;
        }
        if let Some(server) = &self.server {
            writeln!(f, "{server}")?;
        }
        writeln!(f, "{}", self.own)
    }
}

/// How long something is done, after how long a warm-up.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Timing {
    #[serde(serialize_with = "crate::report::as_span")]
    pub warmup: Duration,
    #[serde(serialize_with = "crate::report::as_span")]
    pub duration: Duration,
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--warmup {} --duration {}", span(self.warmup), span(self.duration))
    }
}

/// A name that no other run has.
pub(crate) fn run_name() -> String {
    format!("{:x}", SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos())
}

/// A client for what is not measured, on the first of the servers.
pub(crate) struct Keeper {
    server: SocketAddr,
    session: Session,
}

impl Keeper {
    pub(crate) fn on(servers: &[SocketAddr]) -> Result<Keeper, Fault> {
        Ok(Keeper { server: servers[0], session: connect(servers[0])? })
    }

    pub(crate) fn create(&mut self, path: &str) -> Result<(), Fault> {
        let made = self.session.create_all(path);
        accept(made.map_err(|source| Fault::Connect { server: self.server, source })?, path)
    }

    pub(crate) fn children(&mut self, path: &str) -> Result<Vec<String>, Fault> {
        let found = self.session.children(path);
        found
            .map_err(|source| Fault::Connect { server: self.server, source })?
            .map_err(|err| Fault::SetUp { what: format!("children {path}: {}", code_name(err)) })
    }

    /// Deletes a znode, or leaves it if something is in it: that does no harm to the next run.
    pub(crate) fn delete(&mut self, path: &str) -> Result<(), Fault> {
        let deleted = self.session.delete(path);
        deleted
            .map_err(|source| Fault::Connect { server: self.server, source })?
            .map(drop)
            .or(Ok(()))
    }

    pub(crate) fn close(self) {
        self.session.close();
    }
}
