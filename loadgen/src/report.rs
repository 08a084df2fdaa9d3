//! What was measured: latency by operation, throughput by second, costs; as text and as JSON.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::Duration;

use hdrhistogram::Histogram;
use ringkeeper::record::code::Code;
use serde::{Serialize, Serializer};

use crate::Load;
use crate::driver::{Reconnects, Tally};
use crate::keys::Keys;
use crate::limits::Fractions;
use crate::workload::Op;

/// A load and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub load: Load,
    #[serde(flatten)]
    pub summary: Summary,
    pub server: Option<ServerCost>,
    pub own: OwnCost,
    /// What the machine allows, where that was asked for.
    pub fractions: Option<Fractions>,
}

/// What the replies were.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The measured time.
    pub seconds: f64,
    pub ops: Vec<OpSummary>,
    pub total_per_second: f64,
    /// Right replies in each second.
    pub per_second: Vec<u64>,
    /// Connections that were lost for good, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Requests that never had a reply.
    pub unanswered: u64,
    pub events: u64,
    pub reconnects: Reconnects,
}

/// What the replies to one operation were.
#[derive(Clone, Debug, Serialize)]
pub struct OpSummary {
    pub op: Op,
    /// Right replies.
    pub count: u64,
    pub per_second: f64,
    pub latency_us: LatencyUs,
    /// Quantiles, nearer and nearer to 1, and the latency in microseconds at each.
    pub percentiles: Vec<(f64, f64)>,
    /// Errors by name.
    pub errors: BTreeMap<String, u64>,
    /// Replies that said OK and were not of the length that a right one has.
    pub malformed: u64,
}

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LatencyUs {
    pub min: f64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub p9999: f64,
    pub max: f64,
}

impl LatencyUs {
    fn of(histogram: &Histogram<u64>) -> LatencyUs {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        LatencyUs {
            min: histogram.min() as f64 / 1e3,
            mean: histogram.mean() / 1e3,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: histogram.max() as f64 / 1e3,
        }
    }
}

/// Eight quantiles for each nine, as far as there are samples beyond them.
fn percentiles(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    let count = histogram.len() as f64;
    (0..)
        .map(|step| 1.0 - 10f64.powf(f64::from(step) / -8.0))
        .take_while(|quantile| 1.0 <= count * (1.0 - quantile))
        .map(|quantile| (quantile, histogram.value_at_quantile(quantile) as f64 / 1e3))
        .collect()
}

/// What the server used while it was measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ServerCost {
    pub pid: u32,
    pub cpu_seconds: f64,
    /// None where nothing was answered.
    pub cpu_us_per_op: Option<f64>,
    /// Seconds of CPU time in a second.
    pub cores: f64,
    /// Before the first connection.
    pub resident_bytes_unconnected: u64,
    pub resident_bytes_begin: u64,
    pub resident_bytes_end: u64,
    /// The most since the server started.
    pub resident_bytes_peak: u64,
}

/// What loadgen itself used.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct OwnCost {
    pub cpu_seconds: f64,
    pub cpu_us_per_op: Option<f64>,
    pub cores: f64,
}

impl OwnCost {
    /// Whether so many threads were busy nearly all the time.
    #[must_use]
    pub fn is_busy(&self, threads: usize) -> bool {
        0.9 * threads as f64 <= self.cores
    }
}

impl Summary {
    #[must_use]
    pub fn new(tally: &Tally, seconds: f64) -> Summary {
        let ops: Vec<_> = tally
            .ops
            .iter()
            .map(|(&op, tally)| OpSummary {
                op,
                count: tally.latency_ns.len(),
                per_second: tally.latency_ns.len() as f64 / seconds,
                latency_us: LatencyUs::of(&tally.latency_ns),
                percentiles: percentiles(&tally.latency_ns),
                errors: tally.errors.iter().map(|(&err, &count)| (code_name(err), count)).collect(),
                malformed: tally.malformed,
            })
            .collect();
        Summary {
            seconds,
            total_per_second: ops
                .iter()
                .filter(|op| op.op.is_request())
                .map(|op| op.per_second)
                // The sum of none would be a zero below zero.
                .fold(0.0, |sum, per_second| sum + per_second),
            ops,
            per_second: tally.per_second.clone(),
            dropped: tally.dropped.clone(),
            unanswered: tally.unanswered,
            events: tally.events,
            reconnects: tally.reconnects,
        }
    }

    /// Whether every request had a right reply, and there was one at least.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.dropped.is_empty()
            && self.unanswered == 0
            && self.ops.iter().any(|op| 0 < op.count)
            && self.ops.iter().all(|op| op.errors.is_empty() && op.malformed == 0)
    }
}

/// An error's name and number.
#[must_use]
pub fn code_name(err: i32) -> String {
    const CODES: [Code; 24] = [
        Code::Ok,
        Code::RuntimeInconsistency,
        Code::MarshallingError,
        Code::Unimplemented,
        Code::BadArguments,
        Code::NewConfigNoQuorum,
        Code::ReconfigInProgress,
        Code::NoNode,
        Code::NoAuth,
        Code::BadVersion,
        Code::NoChildrenForEphemerals,
        Code::NodeExists,
        Code::NotEmpty,
        Code::SessionExpired,
        Code::InvalidAcl,
        Code::AuthFailed,
        Code::SessionMoved,
        Code::NotReadOnly,
        Code::EphemeralOnLocalSession,
        Code::NoWatcher,
        Code::ReconfigDisabled,
        Code::SessionClosedRequireSaslAuth,
        Code::QuotaExceeded,
        Code::ThrottledOp,
    ];
    match CODES.iter().find(|code| code.number() == err) {
        Some(code) => code.to_string(),
        None => format!("error {err}"),
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<9}{:>11}{:>12}", "op", "count", "per s")?;
        for column in ["mean", "p50", "p90", "p99", "p99.9", "p99.99", "max µs"] {
            write!(f, "{column:>10}")?;
        }
        writeln!(f)?;
        for op in &self.ops {
            write!(f, "{:<9}{:>11}{:>12.1}", op.op.name(), op.count, op.per_second)?;
            let LatencyUs { min: _, mean, p50, p90, p99, p999, p9999, max } = op.latency_us;
            for value in [mean, p50, p90, p99, p999, p9999, max] {
                write!(f, "{value:>10.1}")?;
            }
            writeln!(f)?;
        }
        let requests = || self.ops.iter().filter(|op| op.op.is_request());
        if 1 < requests().count() {
            let count: u64 = requests().map(|op| op.count).sum();
            writeln!(f, "{:<9}{count:>11}{:>12.1}", "all", self.total_per_second)?;
        }
        for op in &self.ops {
            for (name, count) in &op.errors {
                writeln!(f, "ERRORS: {count} of {}: {name}", op.op.name())?;
            }
            if 0 < op.malformed {
                writeln!(f, "ERRORS: {} of {}: odd length of reply", op.malformed, op.op.name())?;
            }
        }
        for (reason, count) in &self.dropped {
            writeln!(f, "ERRORS: {count} connections lost: {reason}")?;
        }
        if 0 < self.unanswered {
            writeln!(f, "ERRORS: {} requests unanswered", self.unanswered)?;
        }
        if self.is_clean() {
            let is_calm = self.reconnects == Reconnects::default();
            let lost = if is_calm { "no connection lost" } else { "every connection came back" };
            writeln!(f, "no errors, {lost}")?;
        }
        Ok(())
    }
}

impl fmt::Display for ServerCost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "server {}: {:.2} cores", self.pid, self.cores)?;
        if let Some(us) = self.cpu_us_per_op {
            write!(f, ", {us:.2} µs of CPU per operation")?;
        }
        write!(
            f,
            ", {} MiB resident (before {}, peak {})",
            mib(self.resident_bytes_end),
            mib(self.resident_bytes_unconnected),
            mib(self.resident_bytes_peak)
        )
    }
}

impl fmt::Display for OwnCost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "loadgen: {:.2} cores", self.cores)?;
        match self.cpu_us_per_op {
            Some(us) => write!(f, ", {us:.2} µs of CPU per operation"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.load)?;
        write!(f, "{}", self.summary)?;
        if let Some(server) = &self.server {
            writeln!(f, "{server}")?;
        }
        writeln!(f, "{}", self.own)?;
        if self.own.is_busy(self.load.threads) {
            writeln!(
                f,
                "loadgen's {} threads had little time to spare: more --threads may show more",
                self.load.threads
            )?;
        }
        match &self.fractions {
            Some(fractions) => write!(f, "{fractions}"),
            None => Ok(()),
        }
    }
}

pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / (1 << 20) as f64)
}

/// The command that makes the same load again.
impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // All fields, so that a new one is not forgotten here.
        let Load {
            servers,
            mix,
            connections,
            depth,
            threads,
            value_bytes,
            znodes,
            fan_out,
            levels,
            keys,
            multi_size,
            warmup,
            duration,
            rate,
            session_timeout_ms,
            root,
            seed,
            keep,
        } = self;
        let mut line = format!(
            "loadgen run --server {} --mix {mix} --connections {connections} --depth {depth} \
             --threads {threads} --value-size {value_bytes} --znodes {znodes} --fan-out {fan_out}",
            servers.join(",")
        );
        if *levels != 1 {
            write!(line, " --levels {levels}")?;
        }
        if *keys != Keys::Uniform {
            write!(line, " --keys {keys}")?;
        }
        if mix.ops().any(|op| op == Op::Multi) {
            write!(line, " --multi-size {multi_size}")?;
        }
        write!(line, " --warmup {} --duration {}", span(*warmup), span(*duration))?;
        if let Some(rate) = rate {
            write!(line, " --rate {rate}")?;
        }
        write!(line, " --session-timeout {session_timeout_ms}ms --root {root} --seed {seed}")?;
        if *keep {
            line.push_str(" --keep");
        }
        f.write_str(&line)
    }
}

/// The middle value, or the mean of the two in the middle; 0 of none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        count if count.is_multiple_of(2) => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
        count => sorted[count / 2],
    }
}

/// A span of time as `--duration` takes it.
#[must_use]
pub fn span(duration: Duration) -> String {
    match duration.as_micros() {
        micros if micros.is_multiple_of(1_000_000) => format!("{}s", micros / 1_000_000),
        micros if micros.is_multiple_of(1000) => format!("{}ms", micros / 1000),
        micros => format!("{micros}us"),
    }
}

/// For reports: a span as it is read and printed.
pub fn as_span<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&span(*duration))
}

/// Reads `10s`, `500ms`, `250us`, `2m`; a bare number is seconds.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1.0,
        "us" => 1e-6,
        "ms" => 1e-3,
        "m" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("unit '{other}' is not one of us, ms, s, m, h")),
    };
    let number: f64 = digits.parse().map_err(|_| format!("'{text}' is not a span such as 10s"))?;
    Duration::try_from_secs_f64(number * unit).map_err(|error| format!("'{text}': {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_read_as_it_is_printed() {
        for text in ["10s", "500ms", "250us", "0s"] {
            assert_eq!(span(parse_span(text).unwrap()), text);
        }
        assert_eq!(parse_span("2m").unwrap(), Duration::from_secs(120));
        assert_eq!(parse_span("1.5").unwrap(), Duration::from_millis(1500));
        for text in ["", "s", "10 s", "-1s", "10d", "1e400s"] {
            assert!(parse_span(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn errors_have_names() {
        assert_eq!(code_name(-110), "NodeExists (-110)");
        assert_eq!(code_name(-4), "error -4");
    }

    #[test]
    fn nothing_answered_is_not_clean() {
        assert!(!Summary::new(&Tally::default(), 1.0).is_clean());
    }
}
