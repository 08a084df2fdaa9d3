//! Where the znodes of a run are.
//!
//! ```text
//! /loadgen/000003/0000000312             a znode: below a parent for every `fan_out` of them,
//!          parent znode                  its number over all in its name
//! /loadgen/000000/000003/0000000312      the same with two levels of parents
//! ```
//!
//! A parent's number is that of its children over `fan_out`, on every level. Paths of one kind
//! are of one length, so that the length of every right reply is known.

use ringkeeper::jute::Write as _;

/// The digits of a parent's number.
const PARENT_DIGITS: usize = 6;
/// The digits of a znode's name where no path length is asked for.
pub const NAME_DIGITS: usize = 10;
/// The most levels of parents.
pub const LEVELS_MAX: u32 = 16;

/// Where the znodes of a run are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    root: String,
    fan_out: u64,
    /// Of parents.
    levels: u32,
    name_digits: usize,
}

impl Paths {
    #[must_use]
    pub fn new(root: &str, fan_out: u64, levels: u32) -> Paths {
        Paths { root: root.to_owned(), fan_out, levels, name_digits: NAME_DIGITS }
    }

    /// Paths of exactly `path_length` characters, if that leaves room for the names of `znodes`.
    pub fn with_length(self, path_length: usize, znodes: u64) -> Result<Paths, String> {
        let shortest = self.parent_length(1) + 1 + znodes.to_string().len();
        if path_length < shortest {
            return Err(format!(
                "a path of {path_length} characters is too short for {znodes} znodes below {}: \
                 {shortest} at least",
                self.root
            ));
        }
        let name_digits = path_length - self.parent_length(1) - 1;
        Ok(Paths { name_digits, ..self })
    }

    #[must_use]
    pub fn levels(&self) -> u32 {
        self.levels
    }

    #[must_use]
    pub fn name_digits(&self) -> usize {
        self.name_digits
    }

    #[must_use]
    pub fn path_length(&self) -> usize {
        self.parent_length(1) + 1 + self.name_digits
    }

    /// The length of the path of a parent on a level; level 1 is that of the znodes' own.
    #[must_use]
    pub fn parent_length(&self, level: u32) -> usize {
        self.root.len() + (1 + PARENT_DIGITS) * (self.levels + 1 - level) as usize
    }

    /// The number of the parent of a znode.
    #[must_use]
    pub fn parent_of(&self, znode: u64) -> u64 {
        znode / self.fan_out
    }

    /// How many parents `znodes` have on a level.
    #[must_use]
    pub fn parents(&self, znodes: u64, level: u32) -> u64 {
        (0..level).fold(znodes, |count, _| count.div_ceil(self.fan_out))
    }

    /// How many of `znodes` a parent of level 1 has.
    #[must_use]
    pub fn children(&self, znodes: u64, parent: u64) -> u64 {
        znodes.saturating_sub(parent * self.fan_out).min(self.fan_out)
    }

    pub fn put_znode(&self, out: &mut Vec<u8>, index: u64) {
        out.put_count(Some(self.path_length()));
        self.put_parent_bytes(out, index / self.fan_out, 1);
        out.push(b'/');
        put_digits(out, index, self.name_digits);
    }

    /// The path of a znode.
    #[must_use]
    pub fn znode(&self, index: u64) -> String {
        let mut bytes = Vec::new();
        self.put_znode(&mut bytes, index);
        String::from_utf8_lossy(&bytes[4..]).into_owned()
    }

    pub fn put_parent(&self, out: &mut Vec<u8>, parent: u64, level: u32) {
        out.put_count(Some(self.parent_length(level)));
        self.put_parent_bytes(out, parent, level);
    }

    fn put_parent_bytes(&self, out: &mut Vec<u8>, parent: u64, level: u32) {
        out.extend_from_slice(self.root.as_bytes());
        for above in (0..=self.levels - level).rev() {
            out.push(b'/');
            put_digits(out, parent / self.fan_out.saturating_pow(above), PARENT_DIGITS);
        }
    }
}

/// A number of exactly `width` digits.
pub fn put_digits(out: &mut Vec<u8>, mut number: u64, width: usize) {
    let start = out.len();
    out.resize(start + width, b'0');
    for digit in out[start..].iter_mut().rev() {
        if number == 0 {
            break;
        }
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    assert_eq!(number, 0, "a name holds its number");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_as_long_as_they_say() {
        let mut out = Vec::new();
        let paths = Paths::new("/fill", 1000, 1).with_length(33, 1_000_000).unwrap();
        paths.put_znode(&mut out, 999_999);
        assert_eq!(&out[4..], b"/fill/000999/00000000000000999999");
        assert_eq!(out[..4], 33i32.to_be_bytes());
        assert_eq!(paths.parents(1_000_000, 1), 1000);
        assert_eq!(paths.parents(1_000_001, 1), 1001);
        assert!(Paths::new("/fill", 1000, 1).with_length(15, 1_000_000).is_err());
    }

    #[test]
    fn parents_stand_below_their_parents() {
        let paths = Paths::new("/r", 10, 3);
        let mut out = Vec::new();
        paths.put_znode(&mut out, 4321);
        assert_eq!(&out[4..], b"/r/000004/000043/000432/0000004321");
        assert_eq!(out[..4], 34i32.to_be_bytes());
        out.clear();
        paths.put_parent(&mut out, 43, 2);
        assert_eq!(&out[4..], b"/r/000004/000043");
        assert_eq!(paths.parent_length(2), 16);
        assert_eq!([1, 2, 3].map(|level| paths.parents(4322, level)), [433, 44, 5]);
        assert_eq!([0, 432, 433].map(|parent| paths.children(4322, parent)), [10, 2, 0]);
    }
}
