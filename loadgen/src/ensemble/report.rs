//! What a load on an ensemble has shown, as text and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Ensemble;
use super::conductor::{Conducted, Happened, Look};
use super::gaps::Spread;
use super::schedule::{Event, Whom};
use super::servers::{Kind, Makeup, Mode, Used};
use crate::Ran;
use crate::compare::{Ratio, figures_of, write_ratios};
use crate::driver::{Reconnects, Return, Tally};
use crate::report::{Report, Summary, mib};
use crate::verify::Verdict;

/// The load's own report.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Told {
    Load(Box<Report>),
    Verify(Box<Verdict>),
}

impl Told {
    #[must_use]
    pub fn summary(&self) -> &Summary {
        match self {
            Told::Load(report) => &report.summary,
            Told::Verify(verdict) => &verdict.summary,
        }
    }

    fn is_clean(&self) -> bool {
        match self {
            Told::Load(report) => report.summary.is_clean(),
            Told::Verify(verdict) => verdict.is_clean(),
        }
    }
}

/// What was seen while the load ran.
pub(super) struct Measured {
    pub(super) ran: Ran<Told>,
    pub(super) conducted: Conducted,
    pub(super) storm: Option<Ran<()>>,
    pub(super) beside: Option<Ran<()>>,
}

/// An ensemble, what was done with it, and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct EnsembleReport {
    /// The command that does the same again.
    pub command: String,
    pub makeup: Makeup,
    pub preload: u64,
    /// Whether the servers kept their data in memory, where syncs cost nothing.
    pub is_in_memory: bool,
    /// The same without observers, schedule, sessions and writers beside.
    pub baseline: Option<Part>,
    #[serde(flatten)]
    pub part: Part,
    /// What is compared, by name and unit.
    pub figures: BTreeMap<String, f64>,
}

/// One load, and what it was to the servers.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    pub told: Told,
    pub servers: Vec<ServerReport>,
    pub rounds: Vec<Round>,
    /// How many were planned: fewer come where servers take long to be back.
    pub rounds_planned: usize,
    /// By event and figure.
    pub spreads: BTreeMap<String, Spread>,
    /// Of the sessions that were cut and reconnected.
    pub storm: Option<Storm>,
    /// What the writers beside were answered.
    pub beside: Option<Summary>,
    /// CPU time of all servers over all operations.
    pub cpu_us_per_op: Option<f64>,
    pub leader_cpu_us_per_op: Option<f64>,
}

/// One server while the load ran.
#[derive(Clone, Debug, Serialize)]
pub struct ServerReport {
    pub id: usize,
    pub kind: Kind,
    pub mode_begin: Option<Mode>,
    pub mode_end: Option<Mode>,
    /// What its own clients were answered.
    #[serde(flatten)]
    pub summary: Summary,
    /// The same of its writers beside.
    pub beside: Option<Summary>,
    /// Of both together.
    pub all_per_second: f64,
    pub cpu_seconds: f64,
    /// Seconds of CPU time in a second.
    pub cores: f64,
    /// Over what its own clients were answered.
    pub cpu_us_per_op: Option<f64>,
    pub resident_bytes: u64,
    pub resident_peak_bytes: u64,
}

/// One event.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    pub event: Event,
    pub server: usize,
    /// Since the begin of the load.
    pub at_s: f64,
    /// The longest time without an acknowledged write. None: no write was ever acknowledged.
    pub gap_ms: Option<f64>,
    /// False where no write was acknowledged any more.
    pub is_gap_over: bool,
    /// The same when the server came back.
    pub return_gap_ms: Option<f64>,
    /// From the request to end to the end.
    pub end_ms: Option<f64>,
    /// From the start of the process, or its going on, until it leads, follows or observes.
    pub rejoin_ms: f64,
    pub mode_then: Mode,
    /// Connections of the load that were lost, and the time from the event until all were back.
    pub lost: usize,
    pub clients_back_ms: Option<f64>,
    /// The time from the event until all sessions were back that were cut then.
    pub sessions_back_ms: Option<f64>,
}

/// Sessions that were cut and reconnected.
#[derive(Clone, Debug, Serialize)]
pub struct Storm {
    pub sessions: usize,
    pub reconnects: Reconnects,
    /// Those that never came back.
    pub gone: u64,
}

impl Part {
    fn new(ensemble: &Ensemble, measured: Measured) -> Part {
        let Measured { ran, conducted, storm, beside } = measured;
        let seen = |ran: &Ran<()>| Seen { tally: ran.tally.clone(), start: ran.start };
        let of_load = Seen { tally: ran.tally.clone(), start: ran.start };
        let (of_storm, of_beside) = (storm.as_ref().map(seen), beside.as_ref().map(seen));
        let rounds = rounds(&of_load, &conducted, of_storm.as_ref(), of_beside.as_ref());
        let spreads = spreads(&rounds);
        let seconds = ran.seconds;
        let begin = conducted.looks[0].clone();
        let end = conducted.looks[1].clone();
        let mut servers = Vec::new();
        let kinds = ensemble.makeup.voters.iter().chain(&ensemble.makeup.observers);
        for (place, &kind) in kinds.enumerate() {
            let Some(seen) = ran.by_server.get(place) else { continue };
            let summary = Summary::new(seen, seconds);
            let beside = beside.as_ref().and_then(|beside| {
                Some(Summary::new(beside.by_server.get(place)?, beside.seconds))
            });
            let all_per_second = per_second(&summary, beside.as_ref());
            let used = |look: &Option<Look>| {
                look.as_ref().and_then(|look| look.used.get(place).copied()).unwrap_or_default()
            };
            let mode = |look: &Option<Look>| look.as_ref().and_then(|look| look.modes[place]);
            let (before, after): (Used, Used) = (used(&begin), used(&end));
            let cpu_seconds = after.cpu_seconds - before.cpu_seconds;
            servers.push(ServerReport {
                id: place + 1,
                kind,
                mode_begin: mode(&begin),
                mode_end: mode(&end),
                summary,
                beside,
                all_per_second,
                cpu_seconds,
                cores: cpu_seconds / seconds,
                cpu_us_per_op: per_op_us(cpu_seconds / seconds, all_per_second),
                resident_bytes: after.resident_bytes,
                resident_peak_bytes: after.resident_peak_bytes,
            });
        }
        let beside = beside.map(|beside| Summary::new(&beside.tally, beside.seconds));
        let all_per_second = per_second(ran.report.summary(), beside.as_ref());
        let cores: f64 = servers.iter().map(|server| server.cores).sum();
        let leader = servers.iter().find(|server| server.mode_begin == Some(Mode::Leader));
        Part {
            leader_cpu_us_per_op: leader
                .filter(|_| rounds.is_empty())
                .and_then(|leader| per_op_us(leader.cores, all_per_second)),
            cpu_us_per_op: per_op_us(cores, all_per_second),
            told: ran.report,
            servers,
            rounds,
            rounds_planned: ensemble.schedule.as_ref().map_or(0, |schedule| {
                let lasts = ensemble.subject.lasts();
                let planned = |&done: &usize| schedule.next(done, Duration::ZERO, lasts).is_some();
                (0..).take_while(planned).count()
            }),
            spreads,
            storm: storm.map(|storm| Storm {
                sessions: ensemble.storm,
                reconnects: storm.tally.reconnects,
                gone: storm.tally.dropped.values().sum(),
            }),
            beside,
        }
    }

    fn is_clean(&self) -> bool {
        self.told.is_clean()
            && self.beside.as_ref().is_none_or(Summary::is_clean)
            && self.storm.as_ref().is_none_or(|storm| storm.gone == 0)
            && self.rounds.iter().all(|round| round.is_gap_over)
    }

    /// What is compared.
    fn figures(&self) -> BTreeMap<String, f64> {
        let mut figures: BTreeMap<_, _> = figures_of(self.told.summary()).into_iter().collect();
        let mut add = |name: &str, value: Option<f64>| {
            figures.extend(value.map(|value| (name.to_owned(), value)));
        };
        add("servers' CPU µs per operation", self.cpu_us_per_op);
        add("leader's CPU µs per operation", self.leader_cpu_us_per_op);
        let resident: Vec<_> = self
            .servers
            .iter()
            .map(|server| server.resident_bytes as f64 / f64::from(1 << 20))
            .collect();
        add("resident MiB of a server", Some(crate::report::median(&resident)));
        for (name, spread) in &self.spreads {
            add(&format!("{name}, median"), Some(spread.median));
            add(&format!("{name}, max"), Some(spread.max));
        }
        let Reconnects { lost, moved, expired, .. } = self.told.summary().reconnects;
        if !self.rounds.is_empty() {
            add("connections lost", Some(lost as f64));
            add("sessions moved", Some(moved as f64));
            add("sessions expired", Some(expired as f64));
        }
        if let Some(storm) = &self.storm {
            add("cut sessions expired", Some(storm.reconnects.expired as f64));
        }
        for (name, value) in self.beside.iter().flat_map(figures_of) {
            add(&format!("beside: {name}"), Some(value));
        }
        figures
    }
}

/// What a load and the writers beside were answered in a second.
fn per_second(load: &Summary, beside: Option<&Summary>) -> f64 {
    load.total_per_second + beside.map_or(0.0, |beside| beside.total_per_second)
}

fn per_op_us(cores: f64, per_second: f64) -> Option<f64> {
    (0.0 < per_second).then(|| cores * 1e6 / per_second)
}

/// What some connections have seen, by their own clock.
struct Seen {
    tally: Tally,
    start: Instant,
}

impl Seen {
    fn ns(&self, moment: Instant) -> u64 {
        let since = moment.saturating_duration_since(self.start);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Those that were lost from one moment to another, and have come back.
    fn returns(&self, from: Instant, to: Option<Instant>) -> Vec<Return> {
        let (from, to) = (self.ns(from), to.map_or(u64::MAX, |to| self.ns(to)));
        let lost = self.tally.returns.iter().filter(|it| from <= it.lost_ns && it.lost_ns < to);
        lost.copied().collect()
    }

    /// The time from a moment until the last of them was back.
    fn back_ms(&self, from: Instant, returns: &[Return]) -> Option<f64> {
        let last = returns.iter().map(|it| it.back_ns).max()?;
        Some(ms(last.saturating_sub(self.ns(from))))
    }
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// What each event has been to the clients.
fn rounds(
    of_load: &Seen,
    conducted: &Conducted,
    storm: Option<&Seen>,
    beside: Option<&Seen>,
) -> Vec<Round> {
    let mut acks = of_load.tally.acks.clone();
    if let Some(beside) = beside {
        // Its clock began earlier or later; acknowledged is acknowledged.
        acks.merge(beside.tally.acks.moved(beside.start, of_load.start));
    }
    let happened = &conducted.happened;
    let both = |it: &Happened| (of_load.ns(it.at), of_load.ns(it.again));
    let events: Vec<_> = happened.iter().map(both).collect();
    let end = conducted.end.map_or(0, |end| of_load.ns(end));
    let gaps = acks.gaps(&events, end);
    let round = |(number, it): (usize, &Happened)| {
        let own = gaps.as_ref().map(|gaps| gaps[number]);
        let (gap, return_gap) = (own.map(|own| own.0), own.map(|own| own.1));
        let next = happened.get(number + 1).map(|next| next.at);
        let returns = of_load.returns(it.at, next);
        Round {
            event: it.event,
            server: it.id,
            at_s: conducted.begin.map_or(0.0, |begin| (it.at - begin).as_secs_f64()),
            gap_ms: gap.map(|gap| ms(gap.ns)),
            is_gap_over: own.is_some_and(|(gap, on_return)| gap.is_over && on_return.is_over),
            return_gap_ms: return_gap.map(|gap| ms(gap.ns)),
            end_ms: it.ended_in.map(|span| span.as_secs_f64() * 1e3),
            rejoin_ms: (it.back - it.again).as_secs_f64() * 1e3,
            mode_then: it.mode,
            lost: returns.len(),
            clients_back_ms: of_load.back_ms(it.at, &returns),
            sessions_back_ms: storm
                .filter(|_| it.event.whom == Whom::Leader)
                .and_then(|storm| storm.back_ms(it.at, &storm.returns(it.at, next))),
        }
    };
    happened.iter().enumerate().map(round).collect()
}

/// Median, p90 and most of each figure of each event.
fn spreads(rounds: &[Round]) -> BTreeMap<String, Spread> {
    let mut values: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for round in rounds {
        let mut add = |name: &str, value: Option<f64>| {
            let value = value.into_iter();
            values.entry(format!("{}: {name}", round.event)).or_default().extend(value);
        };
        add("gap in writes ms", round.gap_ms.filter(|_| round.is_gap_over));
        add("gap in writes on return ms", round.return_gap_ms.filter(|_| round.is_gap_over));
        add("end ms", round.end_ms);
        add("rejoin ms", Some(round.rejoin_ms));
        add("clients back ms", round.clients_back_ms);
        add("cut sessions back ms", round.sessions_back_ms);
    }
    values.into_iter().filter_map(|(name, values)| Some((name, Spread::of(&values)?))).collect()
}

impl EnsembleReport {
    pub(super) fn new(
        ensemble: &Ensemble,
        measured: Measured,
        baseline: Option<Measured>,
        is_in_memory: bool,
    ) -> EnsembleReport {
        let part = Part::new(ensemble, measured);
        let baseline = baseline.map(|baseline| Part::new(&ensemble.alone(), baseline));
        let mut figures = part.figures();
        if let Some(baseline) = &baseline {
            figures.extend(over_baseline(ensemble, &part, baseline));
        }
        EnsembleReport {
            command: ensemble.to_string(),
            makeup: ensemble.makeup.clone(),
            preload: ensemble.preload,
            is_in_memory,
            baseline,
            part,
            figures,
        }
    }

    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.part.is_clean() && self.baseline.as_ref().is_none_or(Part::is_clean)
    }

    #[must_use]
    pub fn summary(&self) -> &Summary {
        self.part.told.summary()
    }
}

/// What has become more or less since the baseline.
fn over_baseline(ensemble: &Ensemble, part: &Part, baseline: &Part) -> Vec<(String, f64)> {
    let mut figures = Vec::new();
    for op in &part.told.summary().ops {
        let mut before = baseline.told.summary().ops.iter();
        let Some(before) = before.find(|before| before.op == op.op) else { continue };
        let name = op.op.name();
        figures.push((format!("{name} per s over baseline"), op.per_second / before.per_second));
        let p99 = op.latency_us.p99 / before.latency_us.p99;
        figures.push((format!("{name} p99 over baseline"), p99));
    }
    let observers = ensemble.makeup.observers.len();
    if let (Some(with), Some(without)) = (part.leader_cpu_us_per_op, baseline.leader_cpu_us_per_op)
        && 0 < observers
    {
        let each = (with - without) / observers as f64;
        figures.push(("leader's CPU µs per operation for each observer".to_owned(), each));
    }
    figures
}

impl fmt::Display for Ensemble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ensemble { makeup, subject, on, schedule, preload, storm, beside, beside_on, baseline } =
            self;
        let Makeup { voters, observers, ringkeeper, jars, java_flags, config, folder, first_port } =
            makeup;
        write!(f, "loadgen ensemble --servers {}", Makeup::names(voters))?;
        if !observers.is_empty() {
            write!(f, " --observers {}", Makeup::names(observers))?;
        }
        let has = |kind| voters.iter().chain(observers).any(|&it| it == kind);
        if has(Kind::Ringkeeper) {
            write!(f, " --ringkeeper {}", ringkeeper.display())?;
        }
        if let Some(jars) = jars
            && has(Kind::Java)
        {
            write!(f, " --jars {jars} --java-flags '{java_flags}'")?;
        }
        for line in config {
            write!(f, " --config {line}")?;
        }
        if let Some(folder) = folder {
            write!(f, " --folder {}", folder.display())?;
        }
        if let Some(port) = first_port {
            write!(f, " --first-port {port}")?;
        }
        write!(f, " --on {on}")?;
        if let Some(schedule) = schedule {
            write!(f, " {schedule}")?;
        }
        if 0 < *preload {
            write!(f, " --preload {preload}")?;
        }
        if 0 < *storm {
            write!(f, " --reconnect-storm {storm}")?;
        }
        if let Some(rate) = beside {
            write!(f, " --beside {rate} --beside-on {beside_on}")?;
        }
        if *baseline {
            f.write_str(" --baseline")?;
        }
        let own = match subject {
            super::Subject::Load(load) => load.to_string(),
            super::Subject::Verify(verify) => verify.command(),
        };
        // Where the servers are is not for the load to say.
        let words = own.strip_prefix("loadgen ").unwrap_or(&own);
        let place = format!("--server {} ", subject.load().servers.join(","));
        write!(f, " -- {}", words.replacen(&place, "", 1))
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.told {
            Told::Load(report) => write!(f, "{report}")?,
            Told::Verify(verdict) => write!(f, "{verdict}")?,
        }
        if let Some(beside) = &self.beside {
            write!(f, "beside:\n{beside}")?;
        }
        writeln!(
            f,
            "{:<26}{:>10}{:>10}{:>10}{:>8}{:>10}{:>10}{:>7}{:>7}{:>9}",
            "server",
            "per s",
            "p50 µs",
            "p99 µs",
            "CPU s",
            "µs per op",
            "MiB",
            "lost",
            "moved",
            "expired"
        )?;
        for server in &self.servers {
            write!(f, "{server}")?;
        }
        if let Some(us) = self.cpu_us_per_op {
            write!(f, "{us:.2} µs of CPU per operation, of all servers")?;
            match self.leader_cpu_us_per_op {
                Some(us) => writeln!(f, "; {us:.2} of the leader")?,
                None => writeln!(f)?,
            }
        }
        for round in &self.rounds {
            write!(f, "{round}")?;
        }
        if self.rounds.len() < self.rounds_planned {
            let (done, planned) = (self.rounds.len(), self.rounds_planned);
            writeln!(f, "{done} of {planned} events: servers took long to be back")?;
        }
        if !self.spreads.is_empty() {
            let Reconnects { lost, resumed, moved, expired, unanswered, .. } =
                self.told.summary().reconnects;
            writeln!(
                f,
                "{lost} connections lost with {unanswered} requests: {resumed} times the session \
                 went on, {moved} of these on another server; {expired} sessions expired"
            )?;
            writeln!(f, "{:<44}{:>8}{:>10}{:>10}{:>10}", "", "rounds", "median", "p90", "max")?;
        }
        for (name, Spread { count, median, p90, max }) in &self.spreads {
            writeln!(f, "{name:<44}{count:>8}{median:>10.1}{p90:>10.1}{max:>10.1}")?;
        }
        if let Some(Storm { sessions, reconnects, gone }) = &self.storm {
            writeln!(
                f,
                "{sessions} sessions cut: {} times one went on, {} expired, {gone} did not come back",
                reconnects.resumed, reconnects.expired
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for ServerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = |mode: Option<Mode>| mode.map_or("away".to_owned(), |mode| mode.to_string());
        let mut name = format!("{} {} {}", self.id, self.kind, mode(self.mode_begin));
        if self.mode_end != self.mode_begin {
            name.push_str(&format!(" > {}", mode(self.mode_end)));
        }
        let us = self.cpu_us_per_op.map_or("-".to_owned(), |us| format!("{us:.2}"));
        // Of its most frequent operation.
        let ops = self.summary.ops.iter().max_by_key(|op| op.count);
        let ops = ops.or(self.beside.iter().flat_map(|beside| &beside.ops).next());
        let latency = ops.map(|op| op.latency_us).unwrap_or_default();
        let Reconnects { lost, moved, expired, .. } = self.summary.reconnects;
        writeln!(
            f,
            "{name:<26}{:>10.0}{:>10.1}{:>10.1}{:>8.2}{us:>10}{:>10}{lost:>7}{moved:>7}{expired:>9}",
            self.all_per_second,
            latency.p50,
            latency.p99,
            self.cpu_seconds,
            mib(self.resident_bytes),
        )
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:6.1} s  {}, server {}: ", self.at_s, self.event, self.server)?;
        match self.gap_ms {
            Some(ms) => write!(f, "no write for {ms:.1} ms")?,
            None => f.write_str("no write at all")?,
        }
        if !self.is_gap_over {
            f.write_str(", and none after that")?;
        }
        if let Some(ms) = self.end_ms {
            write!(f, "; ended in {ms:.0} ms")?;
        }
        write!(f, "; back in {:.0} ms: {}", self.rejoin_ms, self.mode_then)?;
        if let Some(ms) = self.clients_back_ms {
            write!(f, "; {} connections back after {ms:.0} ms", self.lost)?;
        }
        if let Some(ms) = self.sessions_back_ms {
            write!(f, "; cut sessions after {ms:.0} ms")?;
        }
        writeln!(f)
    }
}

impl fmt::Display for EnsembleReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.command)?;
        if let Some(baseline) = &self.baseline {
            write!(f, "baseline:\n{baseline}\nthen:\n")?;
        }
        write!(f, "{}", self.part)?;
        for (name, value) in self
            .figures
            .iter()
            .filter(|(name, _)| name.contains("baseline") || name.contains("for each"))
        {
            writeln!(f, "{name}: {value:.3}")?;
        }
        if self.is_in_memory {
            writeln!(f, "the servers kept their data in memory: nothing was synced to a disk")?;
        }
        Ok(())
    }
}

/// The same on two ensembles, in alternating pairs.
#[derive(Clone, Debug, Serialize)]
pub struct Versus {
    /// What was done on the first.
    pub command: String,
    pub a: Makeup,
    pub b: Makeup,
    /// By the figure's name.
    pub figures: BTreeMap<String, Ratio>,
    /// All single runs: a, b, a, b, …
    pub reports: Vec<EnsembleReport>,
}

impl Versus {
    pub(super) fn new(ensemble: &Ensemble, other: &Makeup, reports: Vec<EnsembleReport>) -> Versus {
        let mut figures: BTreeMap<String, Ratio> = BTreeMap::new();
        for pair in reports.chunks_exact(2) {
            // What only one of a pair has cannot be compared.
            for (name, &a) in &pair[0].figures {
                let Some(&b) = pair[1].figures.get(name) else { continue };
                let ratio = figures.entry(name.clone()).or_default();
                ratio.a.push(a);
                ratio.b.push(b);
            }
        }
        let (command, a, b) = (ensemble.to_string(), ensemble.makeup.clone(), other.clone());
        Versus { command, a, b, figures, reports }
    }

    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.reports.iter().all(EnsembleReport::is_clean)
    }
}

impl fmt::Display for Versus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} pairs of: {}", self.reports.len() / 2, self.command)?;
        let names = |makeup: &Makeup| {
            let mut names = Makeup::names(&makeup.voters);
            if !makeup.observers.is_empty() {
                names.push_str(&format!(" observed by {}", Makeup::names(&makeup.observers)));
            }
            names
        };
        writeln!(f, "a: {}; b: {}; medians", names(&self.a), names(&self.b))?;
        write_ratios(f, &self.figures)?;
        for report in self.reports.iter().filter(|report| !report.is_clean()) {
            writeln!(f, "not clean:\n{report}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn seen(start: Instant, acks_ms: &[u64], returns_ms: &[(u64, u64)]) -> Seen {
        let mut tally = Tally::default();
        acks_ms.iter().for_each(|ack| tally.acks.note(ack * MS));
        tally.returns = returns_ms
            .iter()
            .map(|(lost, back)| Return { lost_ns: lost * MS, back_ns: back * MS, is_anew: false })
            .collect();
        Seen { tally, start }
    }

    fn happened(begin: Instant, event: &str, at_ms: u64, again_ms: u64, back_ms: u64) -> Happened {
        let moment = |ms| begin + Duration::from_millis(ms);
        Happened {
            event: event.parse().unwrap(),
            id: 2,
            at: moment(at_ms),
            ended_in: None,
            again: moment(again_ms),
            back: moment(back_ms),
            mode: Mode::Follower,
        }
    }

    #[test]
    fn what_clients_saw_belongs_to_the_event_before_it() {
        let start = Instant::now();
        let begin = start + Duration::from_millis(100);
        let later = start + Duration::from_millis(50);
        // By the clock of the load: events at 200 and 600, returns at 300 and 700.
        let conducted = Conducted {
            happened: vec![
                happened(begin, "kill-leader", 100, 200, 230),
                happened(begin, "kill-follower", 500, 600, 690),
            ],
            begin: Some(begin),
            end: Some(start + Duration::from_millis(1000)),
            looks: [None, None],
        };
        let of_load =
            seen(start, &[190, 280, 400, 500, 590, 620, 690, 720, 999], &[(201, 270), (610, 640)]);
        // By a clock that began 50 ms later, somebody else wrote at 260 and 800.
        let beside = seen(later, &[210, 750], &[]);
        let storm = seen(later, &[], &[(151, 400), (152, 450), (570, 580)]);
        let rounds = rounds(&of_load, &conducted, Some(&storm), Some(&beside));
        let [killed, other] = rounds.as_slice() else { panic!("{rounds:?}") };
        assert_eq!((killed.at_s, killed.rejoin_ms), (0.1, 30.0));
        assert_eq!((killed.gap_ms, killed.return_gap_ms), (Some(120.0), Some(100.0)));
        assert_eq!((killed.lost, killed.clients_back_ms), (1, Some(70.0)));
        assert_eq!(killed.sessions_back_ms, Some(300.0));
        assert_eq!((other.gap_ms, other.return_gap_ms), (Some(70.0), Some(199.0)));
        assert_eq!((other.lost, other.clients_back_ms), (1, Some(40.0)));
        assert_eq!((other.rejoin_ms, other.sessions_back_ms), (90.0, None));
        assert!(killed.is_gap_over && other.is_gap_over);
        let spreads = spreads(&rounds);
        assert_eq!(spreads["kill-leader: gap in writes ms"].median, 120.0);
        assert_eq!(spreads["kill-follower: rejoin ms"].max, 90.0);
        assert!(!spreads.contains_key("kill-follower: cut sessions back ms"));
    }
}
