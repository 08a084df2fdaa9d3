//! When the log syncs what it has, and when it waits a moment for more.
//!
//! The next batch gathers while the last one is synced, and usually nothing else is waited for.
//! There are two exceptions: an operator may want fewer syncs (`flushDelay`), and where only a few
//! clients write, those that were just answered are about to write again.
//!
//! Time is an input: `now` counts from a moment of the caller's choice and never goes back.

use std::time::Duration;

/// How writes gather as an operator wants it, after `SyncRequestProcessor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shaping {
    /// `flushDelay`: the next sync begins so long after the end of the last one, ...
    pub delay: Duration,
    /// `maxWriteQueuePollTime`: ... or once nothing has come for so long, ...
    pub poll: Duration,
    /// `maxBatchSize`: ... or once there are so many.
    pub batch_max: u64,
}

/// What the log waits for.
#[derive(Clone, Copy, Debug)]
pub enum Gathering {
    Nothing,
    Shaped { shaping: Shaping, synced: Option<Duration>, came: Option<Duration> },
    Answered(Answered),
}

impl Gathering {
    #[must_use]
    pub fn new(shaping: Option<Shaping>) -> Gathering {
        shaping.map_or(Gathering::Nothing, |shaping| Gathering::Shaped {
            shaping,
            synced: None,
            came: None,
        })
    }

    /// Records have come.
    pub fn on_append(&mut self, now: Duration) {
        if let Gathering::Shaped { came, .. } = self {
            *came = Some(now);
        }
    }

    /// A sync begins, with `queued` records.
    pub fn on_begin(&mut self, queued: u64) {
        if let Gathering::Answered(answered) = self {
            answered.on_begin(queued);
        }
    }

    /// A sync of `answered` records that took so long is over, and `queued` wait already.
    pub fn on_synced(&mut self, now: Duration, answered: u64, queued: u64, took: Duration) {
        match self {
            Gathering::Nothing => {}
            Gathering::Shaped { synced, .. } => *synced = Some(now),
            Gathering::Answered(just) => just.on_synced(now, answered, queued, took),
        }
    }

    /// Something else than a sync has come between.
    pub fn on_interruption(&mut self) {
        if let Gathering::Answered(answered) = self {
            answered.expected = None;
        }
    }

    /// How much longer to gather before the next sync, with `queued` records there. `None`: nothing
    /// to wait for. Zero: the wait is over.
    #[must_use]
    pub fn left(&self, now: Duration, queued: u64) -> Option<Duration> {
        match self {
            Gathering::Nothing => None,
            Gathering::Shaped { shaping, synced, came } => {
                Some(shaping.left(now, *synced, *came, queued))
            }
            Gathering::Answered(answered) => answered.left(now, queued),
        }
    }
}

impl Shaping {
    /// How long is left where the last sync was over at `synced` and the last record came at `came`.
    fn left(
        &self,
        now: Duration,
        synced: Option<Duration>,
        came: Option<Duration>,
        queued: u64,
    ) -> Duration {
        let Some((synced, came)) = synced.zip(came).filter(|_| queued < self.batch_max) else {
            return Duration::ZERO;
        };
        let due = (synced + self.delay).min(came + self.poll);
        due.saturating_sub(now)
    }
}

/// Waits a moment for those who were just answered, where only a few write.
///
/// Each of them asks again as soon as it is answered. A sync that begins before that leaves them
/// behind, so that each waits for most of that sync and for the whole of the next. So the next sync
/// waits for as many records as were answered and are there, for as long as the last one took.
/// Clients that do not come back so soon are noticed, and not waited for again for a while.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answered {
    /// How many records are expected, and until when.
    expected: Option<(u64, Duration)>,
    /// How often in a row they did not come.
    misses: u32,
    /// For how many syncs there will be no waiting.
    pause: u32,
}

/// With more records than this, what the others ask takes as long as a sync.
const ANSWERED_MAX: u64 = 16;
const WAIT_MAX: Duration = Duration::from_micros(300);
/// The longest pause is of two to the power of this many syncs.
const MISSES_MAX: u32 = 8;

impl Answered {
    fn on_synced(&mut self, now: Duration, answered: u64, queued: u64, took: Duration) {
        let count = answered + queued;
        self.expected = None;
        if !(2..=ANSWERED_MAX).contains(&count) {
            return;
        }
        if 0 < self.pause {
            self.pause -= 1;
            return;
        }
        self.expected = Some((count, now + took.min(WAIT_MAX)));
    }

    fn left(&self, now: Duration, queued: u64) -> Option<Duration> {
        let (_, until) = self.expected.filter(|(count, _)| queued < *count)?;
        Some(until.saturating_sub(now))
    }

    fn on_begin(&mut self, queued: u64) {
        if let Some((count, _)) = self.expected.take() {
            self.misses = if queued < count { (self.misses + 1).min(MISSES_MAX) } else { 0 };
            self.pause = (1 << self.misses) - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_that_is_wanted_ends_by_time_by_silence_and_by_count() {
        let ms = Duration::from_millis;
        let shaping = Shaping { delay: ms(30), poll: ms(10), batch_max: 5 };
        let synced = Duration::from_secs(5);
        let left = |at, came, queued| {
            shaping.left(synced + ms(at), Some(synced), Some(synced + ms(came)), queued)
        };
        assert_eq!(left(4, 2, 1), ms(8), "since the last one came");
        assert_eq!(left(26, 25, 4), ms(4), "since the last sync");
        assert_eq!(left(26, 25, 5), ms(0), "there are enough");
        assert_eq!((left(12, 2, 1), left(31, 30, 1)), (ms(0), ms(0)));
        // Before the first sync there is nothing to wait for.
        assert_eq!(shaping.left(synced, None, Some(synced), 1), ms(0));
        let mut gathering = Gathering::new(Some(shaping));
        gathering.on_append(ms(1));
        assert_eq!(gathering.left(ms(1), 1), Some(ms(0)));
        gathering.on_synced(ms(2), 1, 0, ms(1));
        gathering.on_append(ms(3));
        assert_eq!(gathering.left(ms(4), 1), Some(ms(9)));
        assert_eq!(gathering.left(ms(4), 5), Some(ms(0)));
        assert_eq!(Gathering::new(None).left(ms(4), 1), None);
    }

    #[test]
    fn those_who_were_just_answered_are_waited_for() {
        let began = Duration::from_secs(5);
        let us = Duration::from_micros;
        let mut just = Answered::default();
        let waits = |just: &mut Answered, answered, queued| {
            just.on_synced(began, answered, queued, us(100));
            just.left(began, queued)
        };
        assert_eq!(waits(&mut just, 3, 1), Some(us(100)));
        assert_eq!(just.left(began + us(40), 3), Some(us(60)));
        assert_eq!(just.left(began + us(40), 4), None);
        assert_eq!(just.left(began + us(100), 3), Some(Duration::ZERO));
        just.on_begin(4);
        // Nobody else is there, or too many are.
        assert_eq!(waits(&mut just, 1, 0), None);
        assert_eq!(waits(&mut just, ANSWERED_MAX, 1), None);
        // Those who do not come are not waited for the next time, and not for longer and longer.
        for pause in [1, 3, 7] {
            assert_eq!(waits(&mut just, 2, 0), Some(us(100)));
            just.on_begin(1);
            for _ in 0..pause {
                assert_eq!(waits(&mut just, 2, 0), None);
                just.on_begin(1);
            }
        }
        assert_eq!(waits(&mut just, 2, 0), Some(us(100)));
        just.on_begin(2);
        assert_eq!(waits(&mut just, 2, 0), Some(us(100)));
    }
}
