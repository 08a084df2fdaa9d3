//! How a core waits between two turns: it looks for work for a while, then sleeps in its ring.

use std::io;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::ring::Ring;

/// One wait of a core.
pub(crate) struct Waiting {
    /// How long to look for work before sleeping.
    spin: Duration,
    began: Option<Instant>,
}

impl Waiting {
    pub(crate) fn new(spin: Duration) -> Waiting {
        Waiting { spin, began: None }
    }

    /// Enters the ring once. `polled` says whether there is work already, and `left` how long until
    /// time alone brings some; `None`: it has. True: the wait is over. False: look for work again.
    pub(crate) fn enter(
        &mut self,
        ring: &mut Ring,
        polled: Poll<()>,
        left: impl FnOnce() -> Option<Duration>,
    ) -> io::Result<bool> {
        if polled.is_ready() {
            ring.enter(None)?;
            return Ok(true);
        }
        let must_spin = !self.spin.is_zero()
            && self.began.get_or_insert_with(Instant::now).elapsed() < self.spin;
        let left = left();
        ring.enter(left.filter(|_| !must_spin))?;
        if !must_spin || left.is_none() || ring.has_next() {
            return Ok(true);
        }
        std::hint::spin_loop();
        Ok(false)
    }
}

/// How long to wait, where something is due in `left` and a sync is put off for `sync_delay`; `None`
/// where there is to be no waiting.
pub(crate) fn sooner(left: Option<Duration>, sync_delay: Option<Duration>) -> Option<Duration> {
    let left = left?;
    let delay = sync_delay.unwrap_or(left);
    (!delay.is_zero()).then_some(left.min(delay))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_that_is_put_off_ends_the_wait() {
        let ms = Duration::from_millis;
        assert_eq!(sooner(Some(ms(9)), None), Some(ms(9)));
        assert_eq!(sooner(Some(ms(9)), Some(ms(1))), Some(ms(1)));
        assert_eq!(sooner(Some(ms(1)), Some(ms(9))), Some(ms(1)));
        // Over: it has its turn at once.
        assert_eq!(sooner(Some(ms(9)), Some(ms(0))), None);
        assert_eq!(sooner(None, Some(ms(9))), None);
    }
}
