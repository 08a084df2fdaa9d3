//! The same on two servers in alternating pairs. Absolute figures drift on a shared machine;
//! ratios within a pair hold.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::fill::Fill;
use crate::idle::Idle;
use crate::limits::{Limits, LimitsReport};
use crate::recipes::{Locks, Queue};
use crate::report::{OwnCost, Report, ServerCost, Summary, median};
use crate::scene::{Scene, SceneReport};
use crate::side::{Directories, Running, Side};
use crate::storm::Storm;
use crate::watch::Watch;
use crate::{Fault, Load, Progress, sys};

/// What can be done on one server and then on another.
pub trait Trial {
    /// The command that does it.
    fn command(&self) -> String;

    fn run_on(
        &self,
        server: String,
        pid: Option<u32>,
        progress: Progress<'_>,
    ) -> Result<Outcome, Fault>;

    /// The same unmeasured, for so long if that can be said.
    fn rehearse_on(&self, server: String, _span: Duration) -> Result<(), Fault> {
        self.run_on(server, None, &mut |_, _| {}).map(drop)
    }

    /// Whether it cannot be done twice on the same data.
    fn needs_fresh_data(&self) -> bool {
        false
    }
}

/// What came of it on one server.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Which side, by its name.
    pub side: String,
    #[serde(skip)]
    pub summary: Summary,
    pub is_clean: bool,
    #[serde(skip)]
    pub figures: Vec<(String, f64)>,
    /// Its own report.
    pub report: Value,
}

impl Outcome {
    fn new<R: Serialize>(report: &R, summary: &Summary, is_clean: bool) -> Outcome {
        let report = serde_json::to_value(report).expect("a report has only text keys");
        let figures = figures_of(summary);
        Outcome { side: String::new(), summary: summary.clone(), is_clean, figures, report }
    }

    fn with_costs(mut self, server: Option<&ServerCost>, own: &OwnCost) -> Outcome {
        if let Some(server) = server {
            let us = server.cpu_us_per_op;
            self.figures.extend(us.map(|us| ("server CPU µs per operation".to_owned(), us)));
            let mib = server.resident_bytes_end as f64 / f64::from(1 << 20);
            self.figures.push(("server resident MiB".to_owned(), mib));
        }
        let us = own.cpu_us_per_op;
        self.figures.extend(us.map(|us| ("loadgen CPU µs per operation".to_owned(), us)));
        self
    }

    fn with(mut self, name: &str, value: Option<f64>) -> Outcome {
        self.figures.extend(value.map(|value| (name.to_owned(), value)));
        self
    }
}

/// A summary's figures by name. The names sort as they are to be read.
fn figures_of(summary: &Summary) -> Vec<(String, f64)> {
    let mut figures = Vec::new();
    for op in &summary.ops {
        let name = op.op.name();
        figures.push((format!("{name} per s"), op.per_second));
        figures.push((format!("{name} µs p50"), op.latency_us.p50));
        figures.push((format!("{name} µs p99"), op.latency_us.p99));
        figures.push((format!("{name} µs p99.9"), op.latency_us.p999));
    }
    figures
}

impl Trial for Load {
    fn command(&self) -> String {
        self.to_string()
    }

    fn run_on(
        &self,
        server: String,
        pid: Option<u32>,
        progress: Progress<'_>,
    ) -> Result<Outcome, Fault> {
        let load = Load { servers: vec![server], ..self.clone() };
        let report: Report = load.run(pid, progress)?;
        let outcome = Outcome::new(&report, &report.summary, report.summary.is_clean());
        Ok(outcome.with_costs(report.server.as_ref(), &report.own))
    }

    fn rehearse_on(&self, server: String, span: Duration) -> Result<(), Fault> {
        let load =
            Load { servers: vec![server], warmup: Duration::ZERO, duration: span, ..self.clone() };
        load.run(None, &mut |_, _| {}).map(drop)
    }
}

impl Trial for Fill {
    fn command(&self) -> String {
        Fill::command(self)
    }

    fn run_on(
        &self,
        server: String,
        pid: Option<u32>,
        progress: Progress<'_>,
    ) -> Result<Outcome, Fault> {
        let report = Fill { servers: vec![server], ..self.clone() }.run(pid, progress)?;
        Ok(Outcome::new(&report, &report.summary, report.summary.is_clean())
            .with_costs(report.server.as_ref(), &report.own)
            .with("znodes per s", Some(report.znodes_per_second))
            .with("resident bytes per znode", report.resident_bytes_per_znode))
    }

    /// Elsewhere, for what is there already cannot be created; and few, for memory counts.
    fn rehearse_on(&self, server: String, _span: Duration) -> Result<(), Fault> {
        const REHEARSAL_ZNODES: u64 = 10_000;
        let fill = Fill {
            servers: vec![server],
            root: "/r".to_owned(),
            znodes: self.znodes.min(REHEARSAL_ZNODES),
            ..self.clone()
        };
        fill.run(None, &mut |_, _| {}).map(drop)
    }

    fn needs_fresh_data(&self) -> bool {
        true
    }
}

impl Trial for Idle {
    fn command(&self) -> String {
        Idle::command(self)
    }

    fn run_on(
        &self,
        server: String,
        pid: Option<u32>,
        progress: Progress<'_>,
    ) -> Result<Outcome, Fault> {
        let report = Idle { servers: vec![server], ..self.clone() }.run(pid, progress)?;
        Ok(Outcome::new(&report, &report.summary, report.is_clean())
            .with_costs(report.server.as_ref(), &report.own)
            .with("sessions per s", Some(report.sessions_per_second))
            .with("resident bytes per session", report.resident_bytes_per_session))
    }
}

impl SceneReport {
    fn outcome(&self) -> Outcome {
        let mut outcome = Outcome::new(self, &self.summary, self.is_clean())
            .with_costs(self.server.as_ref(), &self.own);
        outcome.figures.extend(self.figures.iter().map(|(name, &value)| (name.clone(), value)));
        outcome
    }
}

impl Scene {
    fn on(&self, server: String) -> Scene {
        Scene { servers: vec![server], ..self.clone() }
    }
}

/// The same for all that have a scene.
macro_rules! trial_of_a_scene {
    ($name:ident) => {
        impl Trial for $name {
            fn command(&self) -> String {
                $name::command(self)
            }

            fn run_on(
                &self,
                server: String,
                pid: Option<u32>,
                progress: Progress<'_>,
            ) -> Result<Outcome, Fault> {
                let on = $name { scene: self.scene.on(server), ..self.clone() };
                Ok(on.run(pid, progress)?.outcome())
            }
        }
    };
}

trial_of_a_scene!(Watch);
trial_of_a_scene!(Locks);
trial_of_a_scene!(Queue);
trial_of_a_scene!(Storm);

/// A comparison as a user asks for it.
pub struct Compare {
    pub trial: Box<dyn Trial>,
    pub a: Side,
    pub b: Side,
    pub pairs: usize,
    /// How long each server has the load before the first pair, unmeasured.
    pub rehearsal: Duration,
    /// Start the servers anew for each run, with fresh data, not once.
    pub restart: bool,
    /// Where servers that are started here keep their data.
    pub directory: PathBuf,
    /// What the machine allows is measured at the end.
    pub limits: Option<Limits>,
}

/// A figure of both sides.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Ratio {
    /// Of each pair, in order.
    pub a: Vec<f64>,
    pub b: Vec<f64>,
}

impl Ratio {
    /// a over b, of each pair, in ascending order.
    fn ratios(&self) -> Vec<f64> {
        let mut ratios: Vec<_> = self.a.iter().zip(&self.b).map(|(a, b)| a / b).collect();
        ratios.sort_unstable_by(f64::total_cmp);
        ratios
    }
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// What was done on each.
    pub command: String,
    pub a: Side,
    pub b: Side,
    pub pairs: usize,
    #[serde(serialize_with = "crate::report::as_span")]
    pub rehearsal: Duration,
    pub restart: bool,
    /// Whether the servers started here kept their data in memory, where syncs cost nothing.
    pub is_in_memory: bool,
    /// By the figure's name.
    pub figures: BTreeMap<String, Ratio>,
    /// All single runs: a, b, a, b, …
    pub reports: Vec<Outcome>,
    pub limits: Option<LimitsReport>,
}

impl Comparison {
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.reports.iter().all(|outcome| outcome.is_clean)
    }
}

impl Compare {
    /// Runs all pairs. `said` is told what is done.
    pub fn run(self, said: &mut dyn FnMut(&str)) -> Result<Comparison, Fault> {
        if self.pairs == 0 {
            return Err(Fault::Load("one pair at least".to_owned()));
        }
        if self.trial.needs_fresh_data() && 1 < self.pairs && !self.restart {
            let what = "this cannot be done twice on the same data: --restart, or one pair";
            return Err(Fault::Load(what.to_owned()));
        }
        let mut directories = Directories::below(&self.directory);
        let sides = [&self.a, &self.b];
        let mut running: [Option<Running>; 2] = [None, None];
        let mut is_in_memory = false;
        if !self.restart {
            for (side, running) in sides.into_iter().zip(&mut running) {
                *running = Some(self.begin(side, &mut directories, said)?);
            }
        }
        let mut figures: BTreeMap<String, Ratio> = BTreeMap::new();
        let mut reports = Vec::new();
        for pair in 1..=self.pairs {
            for (is_b, (side, running)) in sides.into_iter().zip(&running).enumerate() {
                let anew = match running {
                    Some(_) => None,
                    None => Some(self.begin(side, &mut directories, said)?),
                };
                let process = anew.as_ref().or(running.as_ref()).expect("one of the two runs");
                is_in_memory |= process.is_ours() && self.is_in_memory();
                let server = process.server.clone();
                let outcome = self.trial.run_on(server, process.pid, &mut |_, _| {})?;
                let outcome = Outcome { side: side.name.clone(), ..outcome };
                let per_second = outcome.summary.total_per_second;
                said(&format!("pair {pair}, {}: {per_second:.0}/s", side.name));
                for (name, value) in &outcome.figures {
                    let ratio = figures.entry(name.clone()).or_default();
                    let values = if is_b == 0 { &mut ratio.a } else { &mut ratio.b };
                    values.push(*value);
                }
                reports.push(outcome);
            }
        }
        drop(running);
        let limits = self.limits.as_ref().map(Limits::run).transpose()?;
        Ok(Comparison {
            command: self.trial.command(),
            a: self.a,
            b: self.b,
            pairs: self.pairs,
            rehearsal: self.rehearsal,
            restart: self.restart,
            is_in_memory,
            figures,
            reports,
            limits,
        })
    }

    /// Starts a side, and has it do the same unmeasured.
    fn begin(
        &self,
        side: &Side,
        directories: &mut Directories,
        said: &mut dyn FnMut(&str),
    ) -> Result<Running, Fault> {
        let running = side.run(directories, said)?;
        if !self.rehearsal.is_zero() {
            said(&format!("{}: rehearsal", side.name));
            self.trial.rehearse_on(running.server.clone(), self.rehearsal)?;
        }
        Ok(running)
    }

    fn is_in_memory(&self) -> bool {
        // A directory that cannot be looked at is none that is known to be in memory.
        sys::is_in_memory(&self.directory).unwrap_or(false)
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Comparison { command, a, b, pairs, .. } = self;
        writeln!(f, "{pairs} pairs of: {command}")?;
        let place = |side: &Side| {
            let cpus: Vec<_> = side.cpus.iter().map(ToString::to_string).collect();
            let cpus =
                if cpus.is_empty() { String::new() } else { format!(" on CPU {}", cpus.join(",")) };
            let server = side.server.as_ref().map(|at| format!(" at {at}")).unwrap_or_default();
            format!("{}{server}{cpus}", side.name)
        };
        writeln!(f, "a: {}; b: {}; medians", place(a), place(b))?;
        let (a, b, spread) = ("a", "b", "spread of a/b");
        writeln!(f, "{:<36}{a:>12}{b:>12}{:>9}  {spread}", "", "a/b")?;
        for (name, ratio) in &self.figures {
            let ratios = ratio.ratios();
            let (Some(least), Some(most)) = (ratios.first(), ratios.last()) else { continue };
            writeln!(
                f,
                "{name:<36}{:>12.1}{:>12.1}{:>9.3}  {least:.3} to {most:.3}",
                median(&ratio.a),
                median(&ratio.b),
                median(&ratios),
            )?;
        }
        if self.is_in_memory {
            writeln!(f, "the servers kept their data in memory: nothing was synced to a disk")?;
        }
        if let Some(limits) = &self.limits {
            write!(f, "{limits}")?;
            let of_echo = |is_b: usize| {
                let rates = self.reports.iter().skip(is_b).step_by(2);
                let rates: Vec<_> = rates.map(|outcome| outcome.summary.total_per_second).collect();
                median(&rates) / limits.echo.summary.total_per_second
            };
            writeln!(
                f,
                "requests a second over those of the echo: a {:.3}, b {:.3}",
                of_echo(0),
                of_echo(1)
            )?;
        }
        for outcome in self.reports.iter().filter(|outcome| !outcome.is_clean) {
            write!(f, "not clean, {}:\n{}", outcome.side, outcome.summary)?;
            if let Some(violations) = outcome.report.get("violations") {
                writeln!(f, "{violations}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_pairs() {
        let ratio = Ratio { a: vec![10.0, 40.0, 90.0], b: vec![5.0, 10.0, 30.0] };
        assert_eq!(ratio.ratios(), [2.0, 3.0, 4.0]);
    }
}
