//! How fast sessions may begin: a bucket of tokens that fills with time, and refusals at random
//! before it is empty for good.
//!
//! Each client that connects takes tokens, more for a new session than for one that is renewed
//! where these are weighed; without enough of them it is refused. With early drops, the probability
//! to be refused anyway rises while the bucket is found empty and falls while it is found full
//! enough, looked at every so often: clients that come back again and again are thinned out, where
//! an empty bucket alone would let in whoever happens to come first.
//!
//! After `BlueThrottle`, which follows the BLUE algorithm for queues.

use crate::types::Now;

/// `zookeeper.connection_throttle_*`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConnectThrottle {
    pub tokens_max: i64,
    /// The bucket is looked at once more than this has passed.
    pub fill_time_ms: i64,
    /// How many tokens each `fill_time_ms` brings.
    pub fill_count: i64,
    /// What a session takes.
    pub for_new: i64,
    pub for_renewed: i64,
    /// `None`: `connection_throttle_freeze_time` is -1.
    pub early_drop: Option<EarlyDrop>,
}

/// How the probability to be refused at random changes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EarlyDrop {
    /// Once more than this has passed.
    pub freeze_time_ms: i64,
    /// By so much when the bucket is empty.
    pub increase: f64,
    /// By so much when no more than `decrease_ratio` of the tokens are missing.
    pub decrease: f64,
    pub decrease_ratio: f64,
}

/// Who wants to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Newcomer {
    New,
    Renewed,
}

#[derive(Debug)]
pub(super) struct TokenBucket {
    settings: ConnectThrottle,
    tokens: i64,
    /// `None` before the first look.
    filled_ms: Option<i64>,
    frozen_ms: i64,
    drop_probability: f64,
    random: u64,
}

impl TokenBucket {
    pub(super) fn new(settings: ConnectThrottle, seed: u64) -> TokenBucket {
        TokenBucket {
            settings,
            tokens: settings.tokens_max,
            filled_ms: None,
            frozen_ms: 0,
            drop_probability: 0.0,
            random: seed,
        }
    }

    /// Lets somebody in, if there are tokens enough and chance is with them.
    pub(super) fn admits(&mut self, now: Now, newcomer: Newcomer) -> bool {
        let ConnectThrottle { tokens_max, fill_time_ms, fill_count, .. } = self.settings;
        let filled_ms = match self.filled_ms {
            Some(filled_ms) => filled_ms,
            None => {
                self.frozen_ms = now.monotonic_ms;
                *self.filled_ms.insert(now.monotonic_ms)
            }
        };
        let passed_ms = now.monotonic_ms - filled_ms;
        if fill_time_ms < passed_ms {
            let refill = passed_ms.saturating_mul(fill_count) / fill_time_ms.max(1);
            self.tokens = self.tokens.saturating_add(refill).min(tokens_max);
            self.filled_ms = Some(now.monotonic_ms);
        }
        if let Some(early_drop) = self.settings.early_drop {
            self.adapt(now, early_drop);
            if self.chance() < self.drop_probability {
                return false;
            }
        }
        let needed = match newcomer {
            Newcomer::New => self.settings.for_new,
            Newcomer::Renewed => self.settings.for_renewed,
        };
        let has_enough = needed <= self.tokens;
        if has_enough {
            self.tokens -= needed;
        }
        has_enough
    }

    /// Tokens that are missing.
    pub(super) fn deficit(&self) -> u64 {
        u64::try_from(self.settings.tokens_max - self.tokens).unwrap_or(0)
    }

    fn adapt(&mut self, now: Now, early_drop: EarlyDrop) {
        if now.monotonic_ms - self.frozen_ms <= early_drop.freeze_time_ms {
            return;
        }
        self.frozen_ms = now.monotonic_ms;
        let tokens_max = self.settings.tokens_max;
        let missing = tokens_max - self.tokens;
        let few = (tokens_max as f64 * early_drop.decrease_ratio).round() as i64;
        let probability = self.drop_probability;
        if missing == tokens_max {
            self.drop_probability = (probability + early_drop.increase).min(1.0);
        } else if missing <= few {
            self.drop_probability = (probability - early_drop.decrease).max(0.0);
        }
    }

    /// At least 0 and below 1. SplitMix64.
    fn chance(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: ConnectThrottle = ConnectThrottle {
        tokens_max: 2,
        fill_time_ms: 10,
        fill_count: 1,
        for_new: 1,
        for_renewed: 1,
        early_drop: None,
    };

    fn at(monotonic_ms: i64) -> Now {
        Now { monotonic_ms, wall_ms: 0 }
    }

    #[test]
    fn an_empty_bucket_refuses_until_time_has_filled_it() {
        let mut bucket = TokenBucket::new(PLAIN, 0);
        let mut taken_at = |ms| bucket.admits(at(ms), Newcomer::New);
        assert!(taken_at(0) && taken_at(0));
        assert!(!taken_at(10));
        assert!(taken_at(20) && taken_at(20) && !taken_at(20));
        assert!(taken_at(100_000) && taken_at(100_000) && !taken_at(100_000));
        assert_eq!(bucket.deficit(), 2);
    }

    #[test]
    fn a_new_session_takes_more_than_a_renewed_one_where_they_are_weighed() {
        let weighed = ConnectThrottle { tokens_max: 7, for_new: 3, for_renewed: 2, ..PLAIN };
        let mut bucket = TokenBucket::new(weighed, 0);
        assert!(bucket.admits(at(0), Newcomer::Renewed));
        assert!(bucket.admits(at(0), Newcomer::New));
        assert_eq!(bucket.deficit(), 5);
        assert!(!bucket.admits(at(0), Newcomer::New));
        assert!(bucket.admits(at(0), Newcomer::Renewed));
        assert!(!bucket.admits(at(0), Newcomer::Renewed));
    }

    #[test]
    fn an_empty_bucket_makes_refusals_at_random_likelier_and_a_full_one_less_so() {
        let early_drop =
            EarlyDrop { freeze_time_ms: 100, increase: 0.5, decrease: 0.25, decrease_ratio: 0.5 };
        let tokens_max = 1000;
        let settings =
            ConnectThrottle { tokens_max, fill_count: 0, early_drop: Some(early_drop), ..PLAIN };
        let mut bucket = TokenBucket::new(settings, 7);
        let admitted = |bucket: &mut TokenBucket, ms, count| {
            (0..count).filter(|_| bucket.admits(at(ms), Newcomer::New)).count()
        };
        assert_eq!(admitted(&mut bucket, 0, 2000), 1000);
        // It is looked at once in a while, not with everybody who comes.
        admitted(&mut bucket, 100, 10);
        assert_eq!(bucket.drop_probability, 0.0);
        admitted(&mut bucket, 101, 10);
        assert_eq!(bucket.drop_probability, 0.5);
        bucket.tokens = 600;
        let half = admitted(&mut bucket, 150, 100);
        assert!((20..80).contains(&half), "{half} of 100");
        // 500 of 1000 tokens are few enough to be missing.
        bucket.tokens = 499;
        bucket.adapt(at(202), early_drop);
        assert_eq!(bucket.drop_probability, 0.5);
        bucket.tokens = 500;
        bucket.adapt(at(303), early_drop);
        assert_eq!(bucket.drop_probability, 0.25);
        bucket.tokens = 0;
        bucket.adapt(at(404), early_drop);
        bucket.adapt(at(505), early_drop);
        assert_eq!(bucket.drop_probability, 1.0);
        bucket.tokens = tokens_max;
        assert_eq!(admitted(&mut bucket, 505, 100), 0);
    }
}
