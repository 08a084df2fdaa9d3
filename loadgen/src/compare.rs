//! The same load against two servers in alternating pairs. Absolute figures drift on a shared
//! machine; ratios within a pair hold.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::process::Started;
use crate::report::{Report, median};
use crate::{Fault, Load, resolve};

/// One of the two servers.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    pub name: String,
    /// Where it listens.
    pub server: String,
    /// The process, if it runs already and its costs are wanted.
    pub pid: Option<u32>,
    /// The line of shell that starts it, if it does not run yet. Its data directory is up to it.
    pub start: Option<String>,
}

/// A comparison as a user asks for it.
#[derive(Clone, Debug, Serialize)]
pub struct Compare {
    /// Its servers are those of the sides.
    pub load: Load,
    pub a: Side,
    pub b: Side,
    pub pairs: usize,
    /// How long each server has the load before the first pair, unmeasured.
    pub rehearsal: Duration,
    /// Start the servers anew for each load, not once.
    pub restart: bool,
}

/// How long a server may take to start.
const START_WITHIN: Duration = Duration::from_secs(120);

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
    pub compare: Compare,
    /// By the figure's name.
    pub figures: BTreeMap<String, Ratio>,
    /// All single reports: a, b, a, b, …
    pub reports: Vec<Report>,
}

impl Comparison {
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.reports.iter().all(|report| report.summary.is_clean())
    }
}

impl Compare {
    /// Runs all pairs. `said` is told what is done.
    pub fn run(&self, said: &mut dyn FnMut(&str)) -> Result<Comparison, Fault> {
        self.load.check()?;
        if self.pairs == 0 {
            return Err(Fault::Load("one pair at least".to_owned()));
        }
        let sides = [&self.a, &self.b];
        let mut running = [None, None];
        if !self.restart {
            for (side, running) in sides.into_iter().zip(&mut running) {
                *running = side.started(said)?;
                if !self.rehearsal.is_zero() {
                    said(&format!("{}: rehearsal", side.name));
                    self.one(side, running.as_ref(), Duration::ZERO, self.rehearsal)?;
                }
            }
        }
        let mut figures: BTreeMap<String, Ratio> = BTreeMap::new();
        let mut reports = Vec::new();
        for pair in 1..=self.pairs {
            for (side, running) in sides.into_iter().zip(&running) {
                let anew = if self.restart { side.started(said)? } else { None };
                let process = anew.as_ref().or(running.as_ref());
                let report = self.one(side, process, self.load.warmup, self.load.duration)?;
                let per_second = report.summary.total_per_second;
                said(&format!("pair {pair}, {}: {per_second:.0}/s", side.name));
                for (name, value) in figures_of(&report) {
                    let ratio = figures.entry(name).or_default();
                    let values = if side.name == self.a.name { &mut ratio.a } else { &mut ratio.b };
                    values.push(value);
                }
                reports.push(report);
            }
        }
        Ok(Comparison { compare: self.clone(), figures, reports })
    }

    fn one(
        &self,
        side: &Side,
        running: Option<&Started>,
        warmup: Duration,
        duration: Duration,
    ) -> Result<Report, Fault> {
        let servers = vec![side.server.clone()];
        let load = Load { servers, warmup, duration, ..self.load.clone() };
        load.run(running.map(Started::pid).or(side.pid), &mut |_, _| {})
    }
}

impl Side {
    /// The process, if it is ours to start, once it answers.
    fn started(&self, said: &mut dyn FnMut(&str)) -> Result<Option<Started>, Fault> {
        let Some(line) = &self.start else { return Ok(None) };
        let server = resolve(std::slice::from_ref(&self.server))?[0];
        let mut started = Started::start_line(server, line)?;
        let took = started.first_reply(START_WITHIN)?;
        said(&format!("{}: started in {:.0} ms", self.name, took.as_secs_f64() * 1e3));
        Ok(Some(started))
    }
}

/// A report's figures by name. The names sort as they are to be read.
fn figures_of(report: &Report) -> Vec<(String, f64)> {
    let mut figures = Vec::new();
    for op in &report.summary.ops {
        let name = op.op.name();
        figures.push((format!("{name} per s"), op.per_second));
        figures.push((format!("{name} µs p50"), op.latency_us.p50));
        figures.push((format!("{name} µs p99"), op.latency_us.p99));
        figures.push((format!("{name} µs p99.9"), op.latency_us.p999));
    }
    if let Some(server) = &report.server {
        let us = server.cpu_us_per_op;
        figures.extend(us.map(|us| ("server CPU µs per operation".to_owned(), us)));
        let mib = server.resident_bytes_end as f64 / f64::from(1 << 20);
        figures.push(("server resident MiB".to_owned(), mib));
    }
    figures
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Compare { load, a, b, pairs, .. } = &self.compare;
        let ours = Load { servers: vec![a.server.clone()], ..load.clone() };
        writeln!(f, "{pairs} pairs of: {ours}")?;
        writeln!(f, "a: {} at {}; b: {} at {}; medians", a.name, a.server, b.name, b.server)?;
        let (a, b, spread) = ("a", "b", "spread of a/b");
        writeln!(f, "{:<28}{a:>12}{b:>12}{:>9}  {spread}", "", "a/b")?;
        for (name, ratio) in &self.figures {
            let ratios = ratio.ratios();
            let (Some(least), Some(most)) = (ratios.first(), ratios.last()) else { continue };
            writeln!(
                f,
                "{name:<28}{:>12.1}{:>12.1}{:>9.3}  {least:.3} to {most:.3}",
                median(&ratio.a),
                median(&ratio.b),
                median(&ratios),
            )?;
        }
        let unclean = self.reports.iter().filter(|report| !report.summary.is_clean());
        for report in unclean {
            write!(f, "not clean, {}:\n{}", report.load.servers.join(","), report.summary)?;
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
