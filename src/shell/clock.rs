//! Where `Now` comes from: the only place that reads a clock for a step.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::types::Now;

/// One per process, copied to every core, so that all cores count from the same moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock { start: Instant::now() }
    }

    /// The time, read once for a whole step.
    pub(crate) fn now(&self) -> Now {
        // A wall clock before 1970 is a broken one; zero is as good as any other answer.
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            monotonic_ms: whole_ms(self.start.elapsed().as_millis()),
            wall_ms: whole_ms(wall.as_millis()),
        }
    }

    /// How long until a moment of the monotonic clock; `None` once it has come.
    pub(crate) fn until_ms(&self, due_ms: i64) -> Option<Duration> {
        let left = due_ms.saturating_sub(self.now().monotonic_ms);
        u64::try_from(left).ok().filter(|left| 0 < *left).map(Duration::from_millis)
    }
}

/// What falls due again and again, on the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticks {
    every_ms: i64,
    due_ms: i64,
}

impl Ticks {
    /// The first falls due once `every` has passed.
    pub(crate) fn start(now: Now, every: Duration) -> Ticks {
        let every_ms = whole_ms(every.as_millis()).max(1);
        Ticks { every_ms, due_ms: now.monotonic_ms.saturating_add(every_ms) }
    }

    /// When the next one falls due.
    pub(crate) fn due_ms(&self) -> i64 {
        self.due_ms
    }

    /// Whether one has fallen due; the next does so a while from now.
    pub(crate) fn take(&mut self, now: Now) -> bool {
        let is_due = self.due_ms <= now.monotonic_ms;
        if is_due {
            self.due_ms = now.monotonic_ms.saturating_add(self.every_ms);
        }
        is_due
    }
}

fn whole_ms(ms: u128) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}
