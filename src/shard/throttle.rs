//! How fast new connections may come: a bucket of tokens that fills with time.
//!
//! After `BlueThrottle`, without its random early drops (`connection_throttle_freeze_time` is -1
//! unless set, which turns them off).

use crate::types::Now;

/// `zookeeper.connection_throttle_tokens`, `_fill_time` and `_fill_count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectThrottle {
    pub tokens_max: i64,
    /// The bucket is looked at once more than this has passed.
    pub fill_time_ms: i64,
    /// How many tokens each `fill_time_ms` brings.
    pub fill_count: i64,
}

#[derive(Debug)]
pub(super) struct TokenBucket {
    settings: ConnectThrottle,
    tokens: i64,
    filled_ms: Option<i64>,
}

impl TokenBucket {
    pub(super) fn new(settings: ConnectThrottle) -> TokenBucket {
        TokenBucket { settings, tokens: settings.tokens_max, filled_ms: None }
    }

    /// Takes a token, if there is one.
    pub(super) fn take(&mut self, now: Now) -> bool {
        let ConnectThrottle { tokens_max, fill_time_ms, fill_count } = self.settings;
        let filled_ms = *self.filled_ms.get_or_insert(now.monotonic_ms);
        let passed_ms = now.monotonic_ms - filled_ms;
        if fill_time_ms < passed_ms {
            let refill = passed_ms.saturating_mul(fill_count) / fill_time_ms.max(1);
            self.tokens = self.tokens.saturating_add(refill).min(tokens_max);
            self.filled_ms = Some(now.monotonic_ms);
        }
        let has_one = 0 < self.tokens;
        self.tokens -= i64::from(has_one);
        has_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_bucket_refuses_until_time_has_filled_it() {
        let settings = ConnectThrottle { tokens_max: 2, fill_time_ms: 10, fill_count: 1 };
        let mut bucket = TokenBucket::new(settings);
        let mut taken_at = |monotonic_ms| bucket.take(Now { monotonic_ms, wall_ms: 0 });
        assert!(taken_at(0) && taken_at(0));
        assert!(!taken_at(10));
        assert!(taken_at(20) && taken_at(20) && !taken_at(20));
        assert!(taken_at(100_000) && taken_at(100_000) && !taken_at(100_000));
    }
}
