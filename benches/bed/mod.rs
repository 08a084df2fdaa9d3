//! What the benches share: a clock, paths, values, and a generator that gives the same run every
//! time.

#![allow(dead_code, reason = "each bench takes what it needs")]

use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BenchmarkGroup, Criterion};
use rustix::time::{ClockId, clock_gettime};

use ringkeeper::record::data::StatPersisted;
use ringkeeper::types::Now;

pub(crate) const VALUE: [u8; 100] = [0x5a; 100];
pub(crate) const NOW: Now = Now { monotonic_ms: 1_000_000, wall_ms: 1_700_000_000_000 };
/// Children of each parent.
pub(crate) const FAMILY: usize = 1000;

/// Time that this thread has had of a core. What else runs on the machine takes its share of the
/// caches and of the memory from us, but none of this.
pub(crate) struct CoreTime;

impl CoreTime {
    /// Since the thread began.
    pub(crate) fn now() -> Duration {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::try_from(time).expect("a thread's time is not negative")
    }
}

impl Measurement for CoreTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        CoreTime::now()
    }

    fn end(&self, start: Duration) -> Duration {
        CoreTime::now() - start
    }

    fn add(&self, one: &Duration, other: &Duration) -> Duration {
        *one + *other
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        const WALL: &WallTime = &WallTime;
        WALL.formatter()
    }
}

pub(crate) type Bencher = Criterion<CoreTime>;

pub(crate) fn criterion() -> Bencher {
    Criterion::default().with_measurement(CoreTime)
}

/// `cargo bench -- --test` only asks whether the benches run.
pub(crate) fn is_test() -> bool {
    std::env::args().any(|argument| argument == "--test")
}

/// As many as are asked for, or few where nothing is timed.
pub(crate) fn many(count: usize) -> usize {
    if is_test() { count.min(10_000) } else { count }
}

/// A group whose benches take about a second each: there are many, and the machine's drift over
/// minutes is larger than what longer runs would win.
pub(crate) fn group<'c, M: Measurement>(
    c: &'c mut Criterion<M>,
    name: &str,
) -> BenchmarkGroup<'c, M> {
    let mut group = c.benchmark_group(name);
    group.sample_size(20);
    group.warm_up_time(Duration::from_millis(300));
    group.measurement_time(Duration::from_secs(1));
    group
}

pub(crate) fn parent_path(parent: usize) -> String {
    format!("/service/{parent:06}")
}

/// 33 characters, with `FAMILY` znodes below each parent.
pub(crate) fn path(at: usize) -> String {
    format!("/service/{:06}/member-{at:010}", at / FAMILY)
}

pub(crate) fn stat() -> StatPersisted {
    StatPersisted { czxid: 1, mzxid: 2, ctime: 3, mtime: 4, pzxid: 1, ..StatPersisted::default() }
}

/// Marsaglia's xorshift.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new() -> Random {
        Random(0x9e37_79b9_7f4a_7c15)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}
