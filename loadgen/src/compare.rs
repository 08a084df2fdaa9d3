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
use crate::report::{OwnCost, Report, ServerCost, Summary, median, span};
use crate::scene::{Scene, SceneReport};
use crate::side::{Directories, Home, Running, Side};
use crate::start_time::{StartTime, Starts};
use crate::storm::Storm;
use crate::watch::Watch;
use crate::{Fault, Load, Progress, hold, sys};

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
    /// None of a start, which answers one request.
    #[serde(skip)]
    pub summary: Option<Summary>,
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
        let summary = Some(summary.clone());
        Outcome { side: String::new(), summary, is_clean, figures, report }
    }

    fn of_starts(starts: &Starts) -> Outcome {
        let report = serde_json::to_value(starts).expect("a report has only text keys");
        let cpu_ms: Vec<_> = starts.cpu_seconds.iter().map(|seconds| seconds * 1e3).collect();
        let mib = |&bytes: &u64| bytes as f64 / f64::from(1 << 20);
        let resident_mib: Vec<_> = starts.resident_bytes.iter().map(mib).collect();
        let none = Outcome {
            side: String::new(),
            summary: None,
            is_clean: true,
            figures: Vec::new(),
            report,
        };
        none.with("first reply ms", Some(starts.median_ms))
            .with("first reply: server CPU ms", Some(median(&cpu_ms)))
            .with("first reply: server resident MiB", Some(median(&resident_mib)))
            .with("from the signal to the end ms", Some(median(&starts.end_ms)))
    }

    /// The one figure that is told while pairs are run.
    fn gist(&self) -> String {
        match (&self.summary, self.figures.first()) {
            (Some(summary), _) => format!("{:.0}/s", summary.total_per_second),
            (None, Some((name, value))) => format!("{name} {value:.1}"),
            (None, None) => String::new(),
        }
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
pub(crate) fn figures_of(summary: &Summary) -> Vec<(String, f64)> {
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

/// What is compared.
pub enum Subject {
    /// What is done on a server that runs.
    Trial(Box<dyn Trial>),
    /// The start itself: without data, or with what `Compare::prepare` has left.
    Start(StartTime),
}

impl Subject {
    fn command(&self) -> String {
        match self {
            Subject::Trial(trial) => trial.command(),
            Subject::Start(StartTime { server: _, runs, within, command: _ }) => {
                format!("loadgen start-time --runs {runs} --within {}", span(*within))
            }
        }
    }
}

/// A comparison as a user asks for it.
pub struct Compare {
    pub subject: Subject,
    /// What is done, unmeasured, on a server whose data is fresh.
    pub prepare: Option<Box<dyn Trial>>,
    pub a: Side,
    pub b: Side,
    pub pairs: usize,
    /// How long each server has the load before the first pair, unmeasured; a start is made once,
    /// unless this is zero.
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
    /// a over b, of each pair, in ascending order. Nothing over nothing is equal.
    fn ratios(&self) -> Vec<f64> {
        let ratio = |(a, b): (&f64, &f64)| if a == b { 1.0 } else { a / b };
        let mut ratios: Vec<_> = self.a.iter().zip(&self.b).map(ratio).collect();
        ratios.sort_unstable_by(f64::total_cmp);
        ratios
    }
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// What was done on each.
    pub command: String,
    /// What was done before.
    pub prepare: Option<String>,
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
        self.check()?;
        let mut directories = Directories::below(&self.directory);
        let sides = [&self.a, &self.b];
        let mut stages: [Option<Stage>; 2] = [None, None];
        let mut is_in_memory = false;
        if !self.restart {
            for (side, stage) in sides.into_iter().zip(&mut stages) {
                *stage = Some(self.begin(side, &mut directories, said)?);
            }
        }
        let mut figures: BTreeMap<String, Ratio> = BTreeMap::new();
        let mut reports = Vec::new();
        for pair in 1..=self.pairs {
            for (is_b, (side, stage)) in sides.into_iter().zip(&mut stages).enumerate() {
                let mut anew = None;
                let stage = match stage {
                    Some(stage) => stage,
                    None => anew.insert(self.begin(side, &mut directories, said)?),
                };
                is_in_memory |= stage.is_ours() && self.is_in_memory();
                let outcome = match (&self.subject, stage) {
                    (Subject::Trial(trial), Stage::Runs(running)) => {
                        trial.run_on(running.server.clone(), running.pid, &mut |_, _| {})?
                    }
                    (Subject::Start(start_time), Stage::Rests(home)) => {
                        Outcome::of_starts(&starts(start_time, side, home, &mut directories)?)
                    }
                    (Subject::Trial(_), Stage::Rests(_)) | (Subject::Start(_), Stage::Runs(_)) => {
                        unreachable!("a stage is set for its subject")
                    }
                };
                let outcome = Outcome { side: side.name.clone(), ..outcome };
                said(&format!("pair {pair}, {}: {}", side.name, outcome.gist()));
                for (name, value) in &outcome.figures {
                    let ratio = figures.entry(name.clone()).or_default();
                    let values = if is_b == 0 { &mut ratio.a } else { &mut ratio.b };
                    values.push(*value);
                }
                reports.push(outcome);
            }
        }
        drop(stages);
        let limits = self.limits.as_ref().map(Limits::run).transpose()?;
        Ok(Comparison {
            command: self.subject.command(),
            prepare: self.prepare.map(|prepare| prepare.command()),
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

    fn check(&self) -> Result<(), Fault> {
        hold(&[(0 < self.pairs, "one pair at least")])?;
        match &self.subject {
            Subject::Trial(trial) => hold(&[(
                !trial.needs_fresh_data() || self.pairs == 1 || self.restart,
                "this cannot be done twice on the same data: --restart, or one pair",
            )]),
            Subject::Start(_) => {
                hold(&[(
                    self.limits.is_none(),
                    "no --limits with start-time: they are of a load",
                )])?;
                [&self.a, &self.b].into_iter().try_for_each(Side::is_ours_to_start)
            }
        }
    }

    /// Has a side ready for its first run: prepared, and the same done unmeasured.
    fn begin(
        &self,
        side: &Side,
        directories: &mut Directories,
        said: &mut dyn FnMut(&str),
    ) -> Result<Stage, Fault> {
        let rehearses = !self.rehearsal.is_zero();
        let rehearsal = || format!("{}: rehearsal", side.name);
        match &self.subject {
            Subject::Trial(trial) => {
                let running = side.run(directories, said)?;
                self.prepare(side, &running, said)?;
                if rehearses {
                    said(&rehearsal());
                    trial.rehearse_on(running.server.clone(), self.rehearsal)?;
                }
                Ok(Stage::Runs(running))
            }
            Subject::Start(start_time) => {
                let mut home = None;
                if self.prepare.is_some() {
                    let running = side.run(directories, said)?;
                    self.prepare(side, &running, said)?;
                    home = running.end();
                }
                if rehearses {
                    said(&rehearsal());
                    let once = StartTime { runs: 1, ..start_time.clone() };
                    starts(&once, side, &mut home, directories)?;
                }
                Ok(Stage::Rests(home))
            }
        }
    }

    fn prepare(
        &self,
        side: &Side,
        running: &Running,
        said: &mut dyn FnMut(&str),
    ) -> Result<(), Fault> {
        let Some(prepare) = &self.prepare else { return Ok(()) };
        let command = prepare.command();
        said(&format!("{}: {command}", side.name));
        let outcome = prepare.run_on(running.server.clone(), running.pid, &mut |_, _| {})?;
        if outcome.is_clean {
            return Ok(());
        }
        let summary = outcome.summary.map(|summary| summary.to_string()).unwrap_or_default();
        let what = format!("{}: {command} was not clean:\n{}", side.name, summary.trim_end());
        Err(Fault::SetUp { what })
    }

    fn is_in_memory(&self) -> bool {
        // A directory that cannot be looked at is none that is known to be in memory.
        sys::is_in_memory(&self.directory).unwrap_or(false)
    }
}

/// A side between two runs.
enum Stage {
    Runs(Running),
    /// It is started for each run: in this home, or each time in a fresh one.
    Rests(Option<Home>),
}

impl Stage {
    fn is_ours(&self) -> bool {
        match self {
            Stage::Runs(running) => running.is_ours(),
            Stage::Rests(_) => true,
        }
    }
}

/// Starts a side as often as asked.
fn starts(
    start_time: &StartTime,
    side: &Side,
    home: &mut Option<Home>,
    directories: &mut Directories,
) -> Result<Starts, Fault> {
    let mut fresh = None;
    start_time.starts(|| {
        let home = match home {
            Some(home) => home,
            // The one before goes, whose server has ended.
            None => fresh.insert(side.home(directories)?),
        };
        side.start(home, start_time.within)
    })
}

/// A figure with as many digits as it takes to tell it from others of its size.
fn figure(value: f64) -> String {
    if value.abs() < 10.0 { format!("{value:.3}") } else { format!("{value:.1}") }
}

/// A table of figures of both sides.
pub(crate) fn write_ratios(
    f: &mut fmt::Formatter<'_>,
    figures: &BTreeMap<String, Ratio>,
) -> fmt::Result {
    let width = figures.keys().map(|name| name.chars().count() + 1).max().unwrap_or(0).max(36);
    let (a, b, spread) = ("a", "b", "spread of a/b");
    writeln!(f, "{:<width$}{a:>12}{b:>12}{:>9}  {spread}", "", "a/b")?;
    for (name, ratio) in figures {
        let ratios = ratio.ratios();
        let (Some(least), Some(most)) = (ratios.first(), ratios.last()) else { continue };
        writeln!(
            f,
            "{name:<width$}{:>12}{:>12}{:>9.3}  {least:.3} to {most:.3}",
            figure(median(&ratio.a)),
            figure(median(&ratio.b)),
            median(&ratios),
        )?;
    }
    Ok(())
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Comparison { command, a, b, pairs, .. } = self;
        writeln!(f, "{pairs} pairs of: {command}")?;
        if let Some(prepare) = &self.prepare {
            writeln!(f, "after: {prepare}")?;
        }
        let place = |side: &Side| {
            let cpus: Vec<_> = side.cpus.iter().map(ToString::to_string).collect();
            let cpus =
                if cpus.is_empty() { String::new() } else { format!(" on CPU {}", cpus.join(",")) };
            let server = side.server.as_ref().map(|at| format!(" at {at}")).unwrap_or_default();
            format!("{}{server}{cpus}", side.name)
        };
        writeln!(f, "a: {}; b: {}; medians", place(a), place(b))?;
        write_ratios(f, &self.figures)?;
        if self.is_in_memory {
            writeln!(f, "the servers kept their data in memory: nothing was synced to a disk")?;
        }
        if let Some(limits) = &self.limits {
            write!(f, "{limits}")?;
            let of_echo = |is_b: usize| {
                let outcomes = self.reports.iter().skip(is_b).step_by(2);
                let summaries = outcomes.filter_map(|outcome| outcome.summary.as_ref());
                let rates: Vec<_> = summaries.map(|summary| summary.total_per_second).collect();
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
            writeln!(f, "not clean, {}:", outcome.side)?;
            if let Some(summary) = &outcome.summary {
                write!(f, "{summary}")?;
            }
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
    fn small_figures_have_more_digits() {
        let texts = [0.0, 0.0421, -1.5, 10.0, 12_345.67].map(figure);
        assert_eq!(texts, ["0.000", "0.042", "-1.500", "10.0", "12345.7"]);
    }

    #[test]
    fn ratios_are_taken_within_pairs() {
        let ratio = Ratio { a: vec![10.0, 40.0, 90.0], b: vec![5.0, 10.0, 30.0] };
        assert_eq!(ratio.ratios(), [2.0, 3.0, 4.0]);
        let none = Ratio { a: vec![0.0, 2.0], b: vec![0.0, 1.0] };
        assert_eq!(none.ratios(), [1.0, 2.0]);
    }
}
