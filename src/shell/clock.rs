//! Where `Now` comes from: the only place that reads a clock for a step.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

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
}

fn whole_ms(ms: u128) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}
