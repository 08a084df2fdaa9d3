//! How many bytes a value has.
//!
//! Where sizes differ, each znode has one size for good, drawn by its number: so the length of
//! every right reply is known, whoever set the value last.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::keys::Random;

/// The most bytes that a value may have: what servers take in one packet, less the rest of it.
pub const VALUE_BYTES_MAX: usize = 1_000_000;

/// The sizes of values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "Text")]
pub enum Sizes {
    Fixed(usize),
    /// Each size from the least to the most as likely as any other.
    Range {
        least: usize,
        most: usize,
    },
    /// Sizes and their shares.
    Shares(Vec<(usize, u32)>),
}

impl Sizes {
    #[must_use]
    pub fn most(&self) -> usize {
        match self {
            Sizes::Fixed(bytes) => *bytes,
            Sizes::Range { most, .. } => *most,
            Sizes::Shares(shares) => shares.iter().map(|&(bytes, _)| bytes).max().unwrap_or(0),
        }
    }

    /// The size of a znode's value, by its number.
    #[must_use]
    pub fn of(&self, number: u64) -> usize {
        match self {
            Sizes::Fixed(bytes) => *bytes,
            Sizes::Range { least, most } => {
                least + Random::new(number).below((most - least + 1) as u64) as usize
            }
            Sizes::Shares(shares) => {
                let all = shares.iter().map(|&(_, share)| u64::from(share)).sum();
                let mut place = Random::new(number).below(all);
                for &(bytes, share) in shares {
                    match place.checked_sub(share.into()) {
                        Some(rest) => place = rest,
                        None => return bytes,
                    }
                }
                unreachable!("a place below the sum of the shares")
            }
        }
    }
}

impl From<usize> for Sizes {
    fn from(bytes: usize) -> Sizes {
        Sizes::Fixed(bytes)
    }
}

fn bytes(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(bytes) if bytes <= VALUE_BYTES_MAX => Ok(bytes),
        _ => Err(format!("'{text}' is not a number of bytes up to {VALUE_BYTES_MAX}")),
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Sizes, String> {
        if let Some((least, most)) = text.split_once("..") {
            let (least, most) = (bytes(least)?, bytes(most)?);
            if most < least {
                return Err(format!("'{text}' ends below where it begins"));
            }
            return Ok(Sizes::Range { least, most });
        }
        if !text.contains('=') {
            return Ok(Sizes::Fixed(bytes(text)?));
        }
        let share = |part: &str| {
            let (size, share) = part.split_once('=').unwrap_or((part, ""));
            match share.trim().parse() {
                Ok(share @ 1..=1_000_000) => Ok((bytes(size)?, share)),
                _ => Err(format!("the share of {size} bytes is '{share}', not 1 to 1000000")),
            }
        };
        Ok(Sizes::Shares(text.split(',').map(share).collect::<Result<_, _>>()?))
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sizes::Fixed(bytes) => write!(f, "{bytes}"),
            Sizes::Range { least, most } => write!(f, "{least}..{most}"),
            Sizes::Shares(shares) => {
                for (position, (bytes, share)) in shares.iter().enumerate() {
                    let comma = if position == 0 { "" } else { "," };
                    write!(f, "{comma}{bytes}={share}")?;
                }
                Ok(())
            }
        }
    }
}

/// A size as a file may say it: a plain number needs no quotes.
#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Number(usize),
    Text(String),
}

impl TryFrom<Text> for Sizes {
    type Error = String;

    fn try_from(text: Text) -> Result<Sizes, String> {
        match text {
            Text::Number(number) => bytes(&number.to_string()).map(Sizes::Fixed),
            Text::Text(text) => text.parse(),
        }
    }
}

impl From<Sizes> for String {
    fn from(sizes: Sizes) -> String {
        sizes.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_printed() {
        for text in ["0", "100", "10..1000", "5..5", "100=90,4096=10"] {
            assert_eq!(text.parse::<Sizes>().unwrap().to_string(), text);
        }
        for text in ["", "x", "10..", "9..8", "100=0", "100=1,200", "1000001"] {
            assert!(text.parse::<Sizes>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_drawn_as_asked_and_stay() {
        let shares: Sizes = "100=90,4096=10".parse().unwrap();
        let large = (0..10_000).filter(|&number| shares.of(number) == 4096).count();
        assert!((900..1100).contains(&large), "{large}");
        assert_eq!(shares.most(), 4096);
        let range: Sizes = "10..19".parse().unwrap();
        let mut seen = [0; 10];
        for number in 0..10_000 {
            assert_eq!(range.of(number), range.of(number));
            seen[range.of(number) - 10] += 1;
        }
        assert!(seen.iter().all(|&count| (800..1200).contains(&count)), "{seen:?}");
    }
}
