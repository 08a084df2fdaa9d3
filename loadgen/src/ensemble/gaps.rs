//! When writes were acknowledged, and the gaps in that which an event has left.
//!
//! ```text
//! acks     ‖‖‖‖‖‖‖‖‖‖‖‖          ‖‖‖‖‖‖‖‖‖‖‖‖  ‖‖‖‖‖‖‖
//! events              ^ kill       ^ start
//! gaps                 --------                --
//! ```
//!
//! An event is what is done to a server; some time later it returns. A quiet time, without an
//! acknowledged write, belongs to the first event within it, or else to the last event or return
//! before it. The gap of either is the longest quiet time that belongs to it: what a client had to
//! wait for, from the last write acknowledged before to the first one after.

use std::time::Instant;

use serde::Serialize;

/// Moments closer to each other than this are one span: no gap of interest is as short.
const CLOSE_NS: u64 = 1_000_000;

/// Moments in ascending order, those that are close to each other as one span.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans(Vec<(u64, u64)>);

impl Spans {
    /// Adds a moment that is not before any other.
    pub fn note(&mut self, moment_ns: u64) {
        match self.0.last_mut() {
            Some((_, last)) if moment_ns.saturating_sub(*last) < CLOSE_NS => {
                *last = moment_ns.max(*last);
            }
            _ => self.0.push((moment_ns, moment_ns)),
        }
    }

    /// Adds all moments of another.
    pub fn merge(&mut self, other: Spans) {
        if other.0.is_empty() {
            return;
        }
        let mut all = std::mem::take(&mut self.0);
        all.extend(other.0);
        all.sort_unstable();
        for (first, last) in all {
            match self.0.last_mut() {
                Some((_, end)) if first.saturating_sub(*end) < CLOSE_NS => *end = last.max(*end),
                _ => self.0.push((first, last)),
            }
        }
    }

    /// The same moments, counted from another start.
    #[must_use]
    pub fn moved(&self, from: Instant, to: Instant) -> Spans {
        let forth = from.saturating_duration_since(to).as_nanos() as u64;
        let back = to.saturating_duration_since(from).as_nanos() as u64;
        let moved = |moment_ns: u64| (moment_ns + forth).saturating_sub(back);
        Spans(self.0.iter().map(|&(first, last)| (moved(first), moved(last))).collect())
    }

    /// The times between the spans, and the one from the last of them to the end.
    fn quiet(&self, end_ns: u64) -> Vec<Quiet> {
        let between = self.0.windows(2);
        let mut quiet: Vec<_> = between
            .map(|pair| Quiet { from_ns: pair[0].1, to_ns: pair[1].0, is_over: true })
            .collect();
        if let Some(&(_, last)) = self.0.last()
            && CLOSE_NS <= end_ns.saturating_sub(last)
        {
            quiet.push(Quiet { from_ns: last, to_ns: end_ns, is_over: false });
        }
        quiet
    }

    /// The gaps of each event and of its server's return, by the moments of both; these ascend. None
    /// at all: nothing was ever acknowledged.
    #[must_use]
    pub fn gaps(&self, events_ns: &[(u64, u64)], end_ns: u64) -> Option<Vec<(Gap, Gap)>> {
        let moments: Vec<_> = events_ns.iter().flat_map(|&(event, back)| [event, back]).collect();
        debug_assert!(moments.is_sorted());
        self.0.last()?;
        let mut gaps = vec![Gap { ns: 0, is_over: true }; moments.len()];
        for quiet in self.quiet(end_ns) {
            let after = moments.partition_point(|&moment| moment < quiet.from_ns);
            // A return does not bring about what has begun before it.
            let event = after.next_multiple_of(2);
            let is_within = moments.get(event).is_some_and(|&event| event < quiet.to_ns);
            let place = if is_within { Some(event) } else { after.checked_sub(1) };
            let Some(place) = place else { continue };
            let (gap, ns) = (&mut gaps[place], quiet.to_ns - quiet.from_ns);
            if gap.ns < ns {
                *gap = Gap { ns, is_over: quiet.is_over };
            }
        }
        Some(gaps.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }
}

/// A time without an acknowledged write.
#[derive(Clone, Copy, Debug)]
struct Quiet {
    from_ns: u64,
    to_ns: u64,
    /// Whether a write was acknowledged after it.
    is_over: bool,
}

/// The longest time without an acknowledged write that an event has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    pub ns: u64,
    /// Whether a write was acknowledged after it.
    pub is_over: bool,
}

/// Several values of one figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub count: usize,
    pub median: f64,
    pub p90: f64,
    pub max: f64,
}

impl Spread {
    /// None of no value.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Spread> {
        let mut sorted = values.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let count = sorted.len();
        // The least value that nine in ten do not exceed.
        let p90 = *sorted.get((count * 9).div_ceil(10).checked_sub(1)?)?;
        let max = *sorted.last()?;
        Some(Spread { count, median: crate::report::median(&sorted), p90, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn spans(moments_ms: &[u64]) -> Spans {
        let mut spans = Spans::default();
        moments_ms.iter().for_each(|moment| spans.note(moment * MS));
        spans
    }

    /// The gaps of events and returns, in milliseconds, all of which are over.
    fn gaps_ms(spans: &Spans, events_ms: &[(u64, u64)], end_ms: u64) -> Vec<(u64, u64)> {
        let events = events_ms.iter().map(|&(event, back)| (event * MS, back * MS));
        let gaps = spans.gaps(&events.collect::<Vec<_>>(), end_ms * MS).unwrap();
        assert!(gaps.iter().all(|(gap, on_return)| gap.is_over && on_return.is_over));
        gaps.into_iter().map(|(gap, on_return)| (gap.ns / MS, on_return.ns / MS)).collect()
    }

    #[test]
    fn moments_that_are_close_are_one_span() {
        let mut spans = Spans::default();
        for moment in [10, 10 + CLOSE_NS - 1, 10 + 3 * CLOSE_NS, 10 + 4 * CLOSE_NS] {
            spans.note(moment);
        }
        let (third, fourth) = (10 + 3 * CLOSE_NS, 10 + 4 * CLOSE_NS);
        assert_eq!(spans.0, [(10, 10 + CLOSE_NS - 1), (third, third), (fourth, fourth)]);
    }

    #[test]
    fn what_one_thread_acknowledges_fills_the_gap_of_another() {
        let mut one = spans(&[0, 10, 40, 50]);
        one.merge(spans(&[20, 30]));
        assert_eq!(one, spans(&[0, 10, 20, 30, 40, 50]));
        one.merge(Spans::default());
        let mut none = Spans::default();
        none.merge(one.clone());
        assert_eq!(none, one);
        let mut long = Spans(vec![(0, 100 * MS)]);
        long.merge(spans(&[50, 100, 101]));
        assert_eq!(long.0, [(0, 100 * MS), (101 * MS, 101 * MS)]);
    }

    #[test]
    fn an_event_has_the_longest_quiet_time_from_the_last_write_before_it_on() {
        // A write was still acknowledged, and then none for 90 ms.
        let acks = spans(&[0, 10, 20, 28, 32, 122, 130, 170]);
        assert_eq!(gaps_ms(&acks, &[(30, 125)], 170), [(90, 40)]);
        // From the last write before the event, not from the event.
        assert_eq!(gaps_ms(&acks, &[(100, 125)], 170), [(90, 40)]);
    }

    #[test]
    fn a_quiet_time_belongs_to_the_first_event_within_it() {
        let acks = spans(&[0, 10, 110, 120, 160, 170]);
        // Started again at 50, while nobody leads: that is the gap of the kill.
        assert_eq!(gaps_ms(&acks, &[(20, 50)], 170), [(100, 40)]);
        // The same where a write of before was still acknowledged after the kill.
        assert_eq!(gaps_ms(&acks, &[(9, 50)], 170), [(100, 40)]);
        assert_eq!(gaps_ms(&acks, &[(9, 50), (115, 165)], 170), [(100, 0), (40, 0)]);
    }

    #[test]
    fn what_is_before_all_events_is_no_gap() {
        let acks = spans(&[0, 500, 501, 502]);
        assert_eq!(gaps_ms(&acks, &[(501, 502)], 502), [(1, 0)]);
        assert_eq!(gaps_ms(&acks, &[], 502), []);
    }

    #[test]
    fn a_gap_that_lasts_to_the_end_is_not_over() {
        let (events, end) = ([(5 * MS, 500 * MS)], 1000 * MS);
        let gaps = spans(&[0, 10]).gaps(&events, end).unwrap();
        let (none, open) = (Gap { ns: 0, is_over: true }, Gap { ns: 990 * MS, is_over: false });
        assert_eq!(gaps, [(open, none)]);
        assert_eq!(Spans::default().gaps(&events, end), None);
    }

    #[test]
    fn nine_in_ten_values_are_not_above_the_p90() {
        let spread = Spread::of(&[9.0, 1.0, 3.0]).unwrap();
        assert_eq!(spread, Spread { count: 3, median: 3.0, p90: 9.0, max: 9.0 });
        let ten: Vec<_> = (1..=10).map(f64::from).collect();
        let spread = Spread::of(&ten).unwrap();
        assert_eq!(spread, Spread { count: 10, median: 5.5, p90: 9.0, max: 10.0 });
        assert_eq!(Spread::of(&[]), None);
    }
}
