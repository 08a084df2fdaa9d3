//! What the machine allows in the same minute: to be read beside any figure of a server.
//!
//! - an echo of as many frames of the same sizes, over the same connections (`echo`);
//! - the round trip of one such pair of frames over the loopback, by two plain threads;
//! - one frame to each of as many connections, as an event is told to all who watch: the least that
//!   a server with one sending thread takes, if its clients do nothing but read;
//! - the sync of a file where the server keeps its log, by the bytes written before it.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringkeeper::record::op::code;
use serde::Serialize;

use crate::driver::{Crew, Pace, Plan, Span, drive, split};
use crate::echo::Echo;
use crate::report::{OwnCost, Report, Summary};
use crate::sys;
use crate::workload::{Op, Shape, Workload};
use crate::{Costs, Fault, Load, make_room_for};

/// What is to be found out.
#[derive(Clone, Debug, Serialize)]
pub struct Limits {
    /// The load whose frames, connections and threads count.
    pub load: Load,
    /// Where the server keeps its log; none: no sync is measured.
    pub directory: Option<PathBuf>,
    /// Where the echo runs, as a server would; none: wherever.
    pub server_cpus: Vec<usize>,
    /// How long the echo is driven, and the round trip repeated.
    #[serde(serialize_with = "crate::report::as_span")]
    pub duration: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct LimitsReport {
    pub limits: Limits,
    pub echo: EchoLimit,
    pub round_trip: RoundTrip,
    pub fan_out: FanOut,
    pub syncs: Vec<SyncLimit>,
    /// Whether the directory is kept in memory, where syncs cost nothing.
    pub is_in_memory: bool,
}

/// The load on a server that does nothing.
#[derive(Clone, Debug, Serialize)]
pub struct EchoLimit {
    #[serde(flatten)]
    pub summary: Summary,
    /// The echo's own CPU time for each request.
    pub echo_cpu_us_per_op: f64,
    /// Loadgen's, and the requests a second that its threads have CPU time for.
    pub own_cpu_us_per_op: f64,
    pub own_per_second_max: f64,
}

/// One request and one reply, with nothing else on their way.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RoundTrip {
    pub request_bytes: usize,
    pub reply_bytes: usize,
    pub p50_us: f64,
    pub p99_us: f64,
}

/// One frame to each connection, one send after the other, and as many reads.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct FanOut {
    pub connections: usize,
    pub frame_bytes: usize,
    /// How often all of them were sent to.
    pub rounds: u64,
    /// From the first send of a round until its last frame is read.
    pub p50_ms: f64,
    /// That over the connections.
    pub us_per_frame: f64,
}

/// A write of so many bytes into a file that has its blocks, and its sync (`fdatasync`).
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SyncLimit {
    pub batch_bytes: usize,
    pub samples: u64,
    pub p50_us: f64,
    pub p99_us: f64,
}

const BATCHES_BYTES: [usize; 7] = [512, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20];
/// The file that is written round and round.
const SYNC_FILE_BYTES: usize = 64 << 20;
/// How long each size of batch is tried, and how often at most.
const SYNC_SPAN: Duration = Duration::from_millis(500);
const SYNC_SAMPLES_MAX: usize = 2000;

impl Limits {
    pub fn run(&self) -> Result<LimitsReport, Fault> {
        self.load.check()?;
        let shape = Shape { checks_lengths: false, ..self.load.shape(0) };
        let echo = self.echo(&shape)?;
        let fault = |source| Fault::Process { what: "the round trip".to_owned(), source };
        let round_trip = self.round_trip(&shape).map_err(fault)?;
        let fan_out = self.fan_out(&shape)?;
        let (mut syncs, mut is_in_memory) = (Vec::new(), false);
        if let Some(directory) = &self.directory {
            let fault = |source| Fault::Process { what: directory.display().to_string(), source };
            syncs = sync_curve(directory).map_err(fault)?;
            is_in_memory = sys::is_in_memory(directory).map_err(fault)?;
        }
        Ok(LimitsReport { limits: self.clone(), echo, round_trip, fan_out, syncs, is_in_memory })
    }

    fn echo(&self, shape: &Shape) -> Result<EchoLimit, Fault> {
        let load = &self.load;
        let reply_bytes = |(op, code)| (code, mean_reply_bytes(shape, op));
        let codes = [
            (Op::Get, code::GET_DATA),
            (Op::Exists, code::EXISTS),
            (Op::Children, code::GET_CHILDREN2),
            (Op::Set, code::SET_DATA),
            (Op::Create, code::CREATE),
            (Op::Multi, code::MULTI),
        ];
        let echo = Echo::start(codes.map(reply_bytes).to_vec(), &self.server_cpus)?;
        let crews = split(load.connections, load.threads)
            .into_iter()
            .map(|connections| Crew { source: Workload::new(shape, &connections), connections })
            .collect();
        let warmup = self.duration / 4;
        let plan = Plan {
            // As quickly as it goes, whatever the load's own rate.
            pace: Pace::Closed,
            span: Span::Timed { warmup, duration: self.duration },
            ..Plan::of_list(vec![echo.address()], load.depth, load.session_timeout_ms)
        };
        let mut costs = Costs::new(None);
        let driven = drive(&plan, crews, &mut |moment| costs.progress(moment, &mut |_, _| {}))?;
        let OwnCost { cpu_us_per_op, .. } = costs.own(&driven);
        let summary = Summary::new(&driven.tally, driven.seconds);
        let echo_cpu = echo.end()?;
        // The echo is ours, and its warm-up costs as much as the rest for each request.
        let share = driven.seconds / (driven.seconds + warmup.as_secs_f64());
        let count: u64 = summary.ops.iter().map(|op| op.count).sum();
        let echo_cpu_us_per_op = echo_cpu.as_secs_f64() * 1e6 * share / count.max(1) as f64;
        let own_cpu_us_per_op = (cpu_us_per_op.unwrap_or(0.0) - echo_cpu_us_per_op).max(0.0);
        Ok(EchoLimit {
            summary,
            echo_cpu_us_per_op,
            own_cpu_us_per_op,
            own_per_second_max: load.threads as f64 * 1e6 / own_cpu_us_per_op.max(1e-3),
        })
    }

    /// Frames as long as those of the load's first operation.
    fn round_trip(&self, shape: &Shape) -> io::Result<RoundTrip> {
        const HEADERS_BYTES: usize = 20;
        let op = self.load.mix.ops().next().unwrap_or(Op::Get);
        let path_bytes = 4 + shape.paths.path_length();
        let request_bytes = HEADERS_BYTES
            + path_bytes
            + match op {
                Op::Set | Op::Create | Op::Ephemeral => mean_value_bytes(shape),
                Op::Multi => shape.multi_size * (path_bytes + mean_value_bytes(shape)),
                _ => 0,
            };
        let reply_bytes = HEADERS_BYTES + mean_reply_bytes(shape, op);
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut client = TcpStream::connect(listener.local_addr()?)?;
        client.set_nodelay(true)?;
        let (mut server, _) = listener.accept()?;
        server.set_nodelay(true)?;
        let cpus = self.server_cpus.clone();
        let echo = thread::spawn(move || -> io::Result<()> {
            sys::stay_on(&cpus)?;
            let (mut request, reply) = (vec![0; request_bytes], vec![0; reply_bytes]);
            while server.read_exact(&mut request).is_ok() {
                server.write_all(&reply)?;
            }
            Ok(())
        });
        let (request, mut reply) = (vec![0; request_bytes], vec![0; reply_bytes]);
        let mut latency_ns = histogram();
        let begin = Instant::now();
        while begin.elapsed() < self.duration / 2 {
            let since = Instant::now();
            client.write_all(&request)?;
            client.read_exact(&mut reply)?;
            latency_ns.saturating_record(since.elapsed().as_nanos() as u64);
        }
        drop(client);
        echo.join().expect("a thread that panics ends the process")?;
        let (p50_us, p99_us) = (at(&latency_ns, 0.5), at(&latency_ns, 0.99));
        Ok(RoundTrip { request_bytes, reply_bytes, p50_us, p99_us })
    }

    /// Frames as long as the event that a znode of the load has changed.
    fn fan_out(&self, shape: &Shape) -> Result<FanOut, Fault> {
        /// The length's four bytes, the reply header, type and state.
        const EVENT_HEADERS_BYTES: usize = 28;
        let connections = self.load.connections;
        // Both ends are ours.
        make_room_for(2 * connections, 64)?;
        let frame_bytes = EVENT_HEADERS_BYTES + 4 + shape.paths.path_length();
        let fault = |source| Fault::Process { what: "the fan-out".to_owned(), source };
        let pairs = || -> io::Result<_> {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let address = listener.local_addr()?;
            let mut pairs = (Vec::new(), Vec::new());
            for _ in 0..connections {
                pairs.1.push(TcpStream::connect(address)?);
                let (server, _) = listener.accept()?;
                server.set_nodelay(true)?;
                pairs.0.push(server);
            }
            Ok(pairs)
        };
        let (mut servers, mut clients) = pairs().map_err(fault)?;
        let cpus = &self.server_cpus;
        let mut took_ns = histogram();
        thread::scope(|scope| -> io::Result<()> {
            let (go, rounds) = mpsc::channel::<()>();
            let sender = scope.spawn(move || -> io::Result<()> {
                sys::stay_on(cpus)?;
                let frame = vec![0; frame_bytes];
                for () in rounds {
                    for server in &mut servers {
                        server.write_all(&frame)?;
                    }
                }
                Ok(())
            });
            let mut frame = vec![0; frame_bytes];
            let begin = Instant::now();
            while took_ns.is_empty() || begin.elapsed() < self.duration / 2 {
                let since = Instant::now();
                if go.send(()).is_err() {
                    break;
                }
                for client in &mut clients {
                    client.read_exact(&mut frame)?;
                }
                took_ns.saturating_record(since.elapsed().as_nanos() as u64);
            }
            drop(go);
            sender.join().expect("a thread that panics ends the process")
        })
        .map_err(fault)?;
        let p50_us = at(&took_ns, 0.5);
        Ok(FanOut {
            connections,
            frame_bytes,
            rounds: took_ns.len(),
            p50_ms: p50_us / 1e3,
            us_per_frame: p50_us / connections as f64,
        })
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("bounds that a histogram can have")
}

fn at(latency_ns: &Histogram<u64>, quantile: f64) -> f64 {
    latency_ns.value_at_quantile(quantile) as f64 / 1e3
}

/// Means over the first znodes, which are as good as any.
const MEAN_OF: u64 = 1000;

fn mean_value_bytes(shape: &Shape) -> usize {
    let count = shape.znodes.min(MEAN_OF);
    (0..count).map(|znode| shape.sizes.of(znode)).sum::<usize>() / count as usize
}

fn mean_reply_bytes(shape: &Shape, op: Op) -> usize {
    let count = shape.znodes.min(MEAN_OF);
    (0..count).map(|znode| shape.reply_bytes(op, znode)).sum::<usize>() / count as usize
}

/// What a sync takes after a write of each size.
fn sync_curve(directory: &Path) -> io::Result<Vec<SyncLimit>> {
    let path = directory.join(format!("loadgen-sync-{}", std::process::id()));
    let curve = File::create(&path).and_then(|file| {
        // Blocks are there beforehand, as in a log that is preallocated.
        let zeros = vec![0; 1 << 20];
        for megabyte in 0..SYNC_FILE_BYTES / zeros.len() {
            file.write_all_at(&zeros, (megabyte * zeros.len()) as u64)?;
        }
        file.sync_all()?;
        BATCHES_BYTES.iter().map(|&batch_bytes| sync_limit(&file, batch_bytes)).collect()
    });
    let removed = fs::remove_file(&path);
    let curve = curve?;
    removed.map(|()| curve)
}

fn sync_limit(file: &File, batch_bytes: usize) -> io::Result<SyncLimit> {
    let batch = vec![b'x'; batch_bytes];
    let mut latency_ns = histogram();
    let begin = Instant::now();
    for sample in 0..SYNC_SAMPLES_MAX {
        if SYNC_SPAN <= begin.elapsed() {
            break;
        }
        let since = Instant::now();
        file.write_all_at(&batch, (sample * batch_bytes % SYNC_FILE_BYTES) as u64)?;
        file.sync_data()?;
        latency_ns.saturating_record(since.elapsed().as_nanos() as u64);
    }
    Ok(SyncLimit {
        batch_bytes,
        samples: latency_ns.len(),
        p50_us: at(&latency_ns, 0.5),
        p99_us: at(&latency_ns, 0.99),
    })
}

/// Figures of a report over what the machine allows.
#[derive(Clone, Debug, Serialize)]
pub struct Fractions {
    /// Requests a second over those of the echo.
    pub of_echo: f64,
    /// The first operation's median latency over the bare round trip.
    pub of_round_trip: f64,
    /// For a first operation that writes: over the round trip and one sync of its bytes.
    pub of_round_trip_and_sync: Option<f64>,
    pub limits: LimitsReport,
}

impl Fractions {
    #[must_use]
    pub fn new(report: &Report, limits: LimitsReport) -> Fractions {
        let first = report.load.mix.ops().next();
        let p50_us = report
            .summary
            .ops
            .iter()
            .find(|op| Some(op.op) == first)
            .map_or(f64::NAN, |op| op.latency_us.p50);
        let round_trip_us = limits.round_trip.p50_us;
        let writes = first.is_some_and(|op| !matches!(op, Op::Get | Op::Exists | Op::Children));
        let bytes = limits.round_trip.request_bytes;
        let sync = limits.syncs.iter().find(|sync| bytes <= sync.batch_bytes);
        let sync = sync.filter(|_| writes);
        Fractions {
            of_echo: report.summary.total_per_second / limits.echo.summary.total_per_second,
            of_round_trip: p50_us / round_trip_us,
            of_round_trip_and_sync: sync.map(|sync| p50_us / (round_trip_us + sync.p50_us)),
            limits,
        }
    }
}

impl fmt::Display for Fractions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.limits)?;
        write!(
            f,
            "measured: {:.3} of the echo's requests a second; p50 is {:.2} times the round trip",
            self.of_echo, self.of_round_trip
        )?;
        if let Some(times) = self.of_round_trip_and_sync {
            write!(f, ", {times:.2} times the round trip and one sync")?;
        }
        writeln!(f)
    }
}

impl fmt::Display for LimitsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Load { connections, depth, threads, .. } = &self.limits.load;
        let EchoLimit { summary, echo_cpu_us_per_op, own_cpu_us_per_op, own_per_second_max } =
            &self.echo;
        let servers = self.limits.load.servers.join(",");
        let asked = format!("loadgen run --server {servers}");
        writeln!(f, "{}", self.limits.load.to_string().replacen(&asked, "loadgen limits", 1))?;
        let p50_us = summary.ops.first().map_or(0.0, |op| op.latency_us.p50);
        writeln!(
            f,
            "echo over io_uring, {connections} connections x {depth} in flight: {:.0}/s, p50 \
             {p50_us:.1} µs, {echo_cpu_us_per_op:.2} µs of CPU per request",
            summary.total_per_second
        )?;
        let threads_text = if *threads == 1 { "one thread drives" } else { "its threads drive" };
        writeln!(
            f,
            "loadgen: {own_cpu_us_per_op:.2} µs of CPU per request, so that {threads_text} \
             {own_per_second_max:.0}/s at most"
        )?;
        let RoundTrip { request_bytes, reply_bytes, p50_us, p99_us } = self.round_trip;
        writeln!(
            f,
            "loopback round trip of {request_bytes} and {reply_bytes} bytes: p50 {p50_us:.1} µs, \
             p99 {p99_us:.1} µs"
        )?;
        let FanOut { connections, frame_bytes, rounds, p50_ms, us_per_frame } = self.fan_out;
        writeln!(
            f,
            "one frame of {frame_bytes} bytes to each of {connections} connections: {p50_ms:.1} ms \
             until the last, {us_per_frame:.2} µs each ({rounds} times)"
        )?;
        for SyncLimit { batch_bytes, samples, p50_us, p99_us } in &self.syncs {
            writeln!(
                f,
                "write and sync of {batch_bytes} bytes: p50 {p50_us:.1} µs, p99 {p99_us:.1} µs \
                 ({samples} times)"
            )?;
        }
        if self.is_in_memory {
            writeln!(f, "the directory is kept in memory: its syncs say nothing of a disk")?;
        }
        Ok(())
    }
}
