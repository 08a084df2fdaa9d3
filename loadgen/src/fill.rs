//! A tree of many znodes, made as quickly as the server takes it, and what it costs to hold.

use std::fmt;

use serde::Serialize;

use crate::driver::{Crew, Plan, drive, split};
use crate::paths::{LEVELS_MAX, Paths};
use crate::report::{OwnCost, ServerCost, Summary};
use crate::sizes::Sizes;
use crate::workload::{Listed, Op, Task};
use crate::{Costs, Fault, LIST_TIMEOUT_MS, NODE_EXISTS, Progress, create_root, ranges, resolve};

/// A tree as a user asks for it.
#[derive(Clone, Debug, Serialize)]
pub struct Fill {
    pub servers: Vec<String>,
    pub znodes: u64,
    pub value_bytes: Sizes,
    /// Characters of each path.
    pub path_length: usize,
    /// Children per parent.
    pub fan_out: u64,
    /// Of parents.
    pub levels: u32,
    /// Creates in one multi; 1 is plain creates.
    pub multi: u64,
    pub connections: usize,
    pub depth: usize,
    pub threads: usize,
    pub root: String,
    pub seed: u64,
}

/// What it took.
#[derive(Clone, Debug, Serialize)]
pub struct FillReport {
    pub fill: Fill,
    #[serde(flatten)]
    pub summary: Summary,
    pub znodes_per_second: f64,
    pub server: Option<ServerCost>,
    /// Growth of the server's resident memory over the znodes made.
    pub resident_bytes_per_znode: Option<f64>,
    pub own: OwnCost,
}

impl Fill {
    fn paths(&self) -> Result<Paths, Fault> {
        let claims = [
            (0 < self.znodes, "one znode at least"),
            (0 < self.fan_out, "one child per parent at least"),
            ((1..=LEVELS_MAX).contains(&self.levels), "1 to 16 levels of parents"),
            (self.znodes <= 999_999 * self.fan_out, "999999 parents at most: more --fan-out"),
            (0 < self.multi && self.multi <= 10_000, "1 to 10000 creates per multi"),
            (0 < self.connections, "one connection at least"),
            (0 < self.depth, "one request in flight at least"),
            (self.root.starts_with('/') && 1 < self.root.len(), "the root is a path"),
        ];
        if let Some((_, claim)) = claims.iter().find(|(holds, _)| !holds) {
            return Err(Fault::Load((*claim).to_owned()));
        }
        Paths::new(&self.root, self.fan_out, self.levels)
            .with_length(self.path_length, self.znodes)
            .map_err(Fault::Load)
    }

    pub fn run(&self, pid: Option<u32>, progress: Progress<'_>) -> Result<FillReport, Fault> {
        let paths = self.paths()?;
        let servers = resolve(&self.servers)?;
        let plan = Plan::of_list(servers.clone(), self.depth, LIST_TIMEOUT_MS);
        let crews = |task, end| -> Vec<Crew<Listed>> {
            let connections = split(self.connections, self.threads);
            ranges(end, connections.len())
                .into_iter()
                .zip(connections)
                .map(|(range, connections)| {
                    let source = Listed::new(task, &paths, &self.value_bytes, self.seed, range);
                    Crew { connections, source }
                })
                .collect()
        };
        let mut costs = Costs::new(pid);
        costs.look_unconnected()?;
        create_root(servers[0], &self.root)?;
        for level in (1..=self.levels).rev() {
            let task = Task::Parents { level };
            let parents =
                drive(&plan, crews(task, paths.parents(self.znodes, level)), &mut |_| Ok(()));
            crate::Listing { tally: parents?.tally }.tolerating(&[NODE_EXISTS])?;
        }
        let task = Task::Znodes { multi: self.multi };
        let driven = drive(&plan, crews(task, self.znodes), &mut |moment| {
            costs.progress(moment, &mut *progress)
        })?;
        let summary = Summary::new(&driven.tally, driven.seconds);
        let requests: u64 = summary.ops.iter().map(|op| op.count).sum();
        let is_multi = summary.ops.iter().any(|op| op.op == Op::Multi);
        // Only the last multi of a thread may hold fewer; without an error the sum is known.
        let znodes = if summary.is_clean() {
            self.znodes
        } else if is_multi {
            requests * self.multi
        } else {
            requests
        };
        let server = costs.server(&driven);
        Ok(FillReport {
            fill: self.clone(),
            znodes_per_second: znodes as f64 / driven.seconds,
            resident_bytes_per_znode: server.filter(|_| 0 < znodes).map(|server| {
                let grown = server.resident_bytes_end as f64;
                (grown - server.resident_bytes_unconnected as f64) / znodes as f64
            }),
            server,
            own: costs.own(&driven),
            summary,
        })
    }
}

impl Fill {
    /// The command that does the same again.
    #[must_use]
    pub fn command(&self) -> String {
        let Fill {
            servers,
            znodes,
            value_bytes,
            path_length,
            fan_out,
            levels,
            multi,
            connections,
            depth,
            threads,
            root,
            seed,
        } = self;
        format!(
            "loadgen fill --server {} --znodes {znodes} --value-size {value_bytes} --path-length \
             {path_length} --fan-out {fan_out} --levels {levels} --multi {multi} \
             --connections {connections} --depth {depth} --threads {threads} --root {root} \
             --seed {seed}",
            servers.join(",")
        )
    }
}

impl fmt::Display for FillReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.fill.command())?;
        write!(f, "{}", self.summary)?;
        writeln!(f, "{:.1} s, {:.0} znodes/s", self.summary.seconds, self.znodes_per_second)?;
        if let Some(server) = &self.server {
            writeln!(f, "{server}")?;
        }
        if let Some(bytes) = self.resident_bytes_per_znode {
            writeln!(f, "{bytes:.0} bytes of resident memory per znode")?;
        }
        writeln!(f, "{}", self.own)
    }
}
