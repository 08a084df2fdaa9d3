//! Which znode is next, and where randomness comes from.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A small generator of random numbers (splitmix64): the same seed, the same run.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    #[must_use]
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`. The bias is below 2^-32 for any bound that fits 32 bits.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A number from 0 to below 1.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next_u64() as u8).collect()
    }
}

/// Which znode is next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Keys {
    /// Each as likely as any other.
    #[default]
    Uniform,
    /// One after the other, round and round; each thread starts at a place of its own.
    Sequential,
    /// The k-th most wanted is asked for 1/k^exponent as often as the most wanted; those are
    /// spread over the parents.
    Zipfian { exponent: f64 },
}

/// The exponent that YCSB has made usual.
const ZIPFIAN_EXPONENT: f64 = 0.99;

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Keys::Uniform => f.write_str("uniform"),
            Keys::Sequential => f.write_str("sequential"),
            Keys::Zipfian { exponent } => write!(f, "zipfian:{exponent}"),
        }
    }
}

impl FromStr for Keys {
    type Err = String;

    fn from_str(text: &str) -> Result<Keys, String> {
        match text.split_once(':').unwrap_or((text, "")) {
            ("uniform", "") => Ok(Keys::Uniform),
            ("sequential", "") => Ok(Keys::Sequential),
            ("zipfian", "") => Ok(Keys::Zipfian { exponent: ZIPFIAN_EXPONENT }),
            ("zipfian", exponent) => match exponent.parse() {
                Ok(exponent) if 0.0 < exponent && exponent < 1.0 => Ok(Keys::Zipfian { exponent }),
                _ => Err(format!("the exponent '{exponent}' is not above 0 and below 1")),
            },
            _ => Err(format!("'{text}' is not one of uniform, sequential, zipfian, zipfian:0.8")),
        }
    }
}

impl TryFrom<String> for Keys {
    type Error = String;

    fn try_from(text: String) -> Result<Keys, String> {
        text.parse()
    }
}

impl From<Keys> for String {
    fn from(keys: Keys) -> String {
        keys.to_string()
    }
}

/// Draws the numbers of znodes.
#[derive(Clone, Debug)]
pub struct Chooser {
    znodes: u64,
    way: Way,
}

#[derive(Clone, Debug)]
enum Way {
    Uniform,
    Sequential { last: u64 },
    Zipfian(Zipfian),
}

impl Chooser {
    #[must_use]
    pub fn new(keys: Keys, znodes: u64, random: &mut Random) -> Chooser {
        let way = match keys {
            Keys::Uniform => Way::Uniform,
            Keys::Sequential => Way::Sequential { last: random.below(znodes) },
            Keys::Zipfian { exponent } => Way::Zipfian(Zipfian::new(znodes, exponent)),
        };
        Chooser { znodes, way }
    }

    pub fn next(&mut self, random: &mut Random) -> u64 {
        match &mut self.way {
            Way::Uniform => random.below(self.znodes),
            Way::Sequential { last } => {
                *last = (*last + 1) % self.znodes;
                *last
            }
            Way::Zipfian(zipfian) => spread(zipfian.rank(random.unit()), self.znodes),
        }
    }
}

/// Puts neighbouring ranks far apart, each number of `0..count` once.
fn spread(rank: u64, count: u64) -> u64 {
    // A prime, so that it shares no factor with any count but its own multiples.
    const STEP: u64 = 2_654_435_761;
    if count.is_multiple_of(STEP) {
        return rank;
    }
    ((u128::from(rank) * u128::from(STEP)) % u128::from(count)) as u64
}

/// Ranks by Zipf's law, drawn in constant time after one sum over all of them. After Gray and
/// others, "Quickly Generating Billion-Record Synthetic Databases", SIGMOD 1994, section 3.2.
#[derive(Clone, Debug)]
struct Zipfian {
    count: f64,
    /// The sum of 1/k^exponent over all ranks.
    sum: f64,
    /// The same over the first two.
    sum_of_two: f64,
    alpha: f64,
    eta: f64,
}

impl Zipfian {
    fn new(count: u64, exponent: f64) -> Zipfian {
        let sum: f64 = (1..=count).map(|rank| (rank as f64).powf(-exponent)).sum();
        let sum_of_two = 1.0 + 0.5f64.powf(exponent);
        let count = count as f64;
        Zipfian {
            count,
            sum,
            sum_of_two,
            alpha: 1.0 / (1.0 - exponent),
            eta: (1.0 - (2.0 / count).powf(1.0 - exponent)) / (1.0 - sum_of_two / sum),
        }
    }

    /// The rank, from 0, for a random number from 0 to below 1.
    fn rank(&self, unit: f64) -> u64 {
        let place = unit * self.sum;
        let rank = if place < 1.0 || self.count < 2.0 {
            0.0
        } else if place < self.sum_of_two {
            1.0
        } else {
            self.count * (self.eta * unit - self.eta + 1.0).powf(self.alpha)
        };
        (rank as u64).min(self.count as u64 - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_stay_below_their_bound_and_reach_all_of_it() {
        let mut random = Random::new(1);
        let mut seen = [0; 7];
        for _ in 0..7000 {
            seen[random.below(7) as usize] += 1;
        }
        assert!(seen.iter().all(|&count| (800..1200).contains(&count)), "{seen:?}");
    }

    #[test]
    fn keys_are_read_as_they_are_printed() {
        for text in ["uniform", "sequential", "zipfian:0.8"] {
            assert_eq!(text.parse::<Keys>().unwrap().to_string(), text);
        }
        assert_eq!("zipfian".parse::<Keys>().unwrap().to_string(), "zipfian:0.99");
        for text in ["", "zipf", "zipfian:1", "zipfian:x", "zipfian:-1", "uniform:2"] {
            assert!(text.parse::<Keys>().is_err(), "{text}");
        }
    }

    #[test]
    fn zipfian_ranks_are_as_frequent_as_zipf_says() {
        const DRAWS: u64 = 200_000;
        let (znodes, exponent) = (1000, 0.99);
        let mut random = Random::new(7);
        let mut chooser = Chooser::new(Keys::Zipfian { exponent }, znodes, &mut random);
        let mut seen = vec![0u64; znodes as usize];
        for _ in 0..DRAWS {
            seen[chooser.next(&mut random) as usize] += 1;
        }
        let sum: f64 = (1..=znodes).map(|rank| (rank as f64).powf(-exponent)).sum();
        for rank in [1, 2, 10, 100] {
            let expected = DRAWS as f64 / sum / (rank as f64).powf(exponent);
            // Neighbours are taken together, for single ranks are rare.
            let window = (rank / 5).max(1);
            let counted: u64 =
                (rank..rank + window).map(|rank| seen[spread(rank - 1, znodes) as usize]).sum();
            let mean = counted as f64 / window as f64;
            assert!((0.7..1.3).contains(&(mean / expected)), "rank {rank}: {mean} of {expected}");
        }
        assert!(0 < *seen.iter().min().unwrap());
    }

    #[test]
    fn few_znodes_are_enough_for_zipf() {
        for znodes in 1..4 {
            let mut random = Random::new(1);
            let mut chooser = Chooser::new(Keys::Zipfian { exponent: 0.5 }, znodes, &mut random);
            let mut seen = vec![false; znodes as usize];
            for _ in 0..1000 {
                seen[chooser.next(&mut random) as usize] = true;
            }
            assert!(seen.iter().all(|&seen| seen), "{znodes}: {seen:?}");
        }
    }

    #[test]
    fn spreading_ranks_takes_each_number_once() {
        let mut spread: Vec<_> = (0..1000).map(|rank| spread(rank, 1000)).collect();
        assert!(100 < spread[0].abs_diff(spread[1]));
        spread.sort_unstable();
        assert_eq!(spread, (0..1000).collect::<Vec<_>>());
    }
}
