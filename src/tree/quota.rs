//! `/zookeeper/quota`: limits on subtrees, and their running counts.
//!
//! A quota on `/a/b` is two znodes, `/zookeeper/quota/a/b/zookeeper_limits` and
//! `…/zookeeper_stats`, both with the text of a `StatsTrack`. Each create, delete and setData
//! below (or on) `/a/b` counts in the stats of the deepest quota above it, and in no other.

use std::collections::BTreeSet;
use std::fmt;

pub const QUOTA_ROOT: &str = "/zookeeper/quota";
pub const LIMITS_NAME: &str = "zookeeper_limits";
pub const STATS_NAME: &str = "zookeeper_stats";

/// Counts or limits: `count=3,bytes=20` and, where there are more, `=;key=value` for each.
/// -1 is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatsTrack {
    pub count: i64,
    pub bytes: i64,
    pub count_hard_limit: i64,
    pub byte_hard_limit: i64,
}

impl StatsTrack {
    /// Reads what it can: a piece that is not `key=number` says nothing. The data is a client's.
    #[must_use]
    pub fn parse(text: &[u8]) -> StatsTrack {
        let mut track =
            StatsTrack { count: -1, bytes: -1, count_hard_limit: -1, byte_hard_limit: -1 };
        for piece in String::from_utf8_lossy(text).split([',', ';']) {
            let mut halves = piece.split('=');
            let (Some(key), Some(value)) = (halves.next(), halves.next()) else { continue };
            let Ok(value) = value.parse() else { continue };
            match key {
                "count" => track.count = value,
                "bytes" => track.bytes = value,
                "countHardLimit" => track.count_hard_limit = value,
                "byteHardLimit" => track.byte_hard_limit = value,
                _ => {}
            }
        }
        track
    }
}

impl fmt::Display for StatsTrack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "count={},bytes={}", self.count, self.bytes)?;
        let hard =
            [("byteHardLimit", self.byte_hard_limit), ("countHardLimit", self.count_hard_limit)];
        for (at, (key, value)) in hard.iter().filter(|(_, value)| *value != -1).enumerate() {
            // The odd `=` keeps parsers from before 3.7 working.
            write!(f, "{}{key}={value}", if at == 0 { "=;" } else { ";" })?;
        }
        Ok(())
    }
}

/// The subtree that a limits znode of this path is about; `None` where it is about none: quotas
/// on the root do not exist.
#[must_use]
pub fn subtree_of_limits(path: &str) -> Option<&str> {
    subtree(path, LIMITS_NAME)
}

/// The same for a stats znode.
#[must_use]
pub fn subtree_of_stats(path: &str) -> Option<&str> {
    subtree(path, STATS_NAME)
}

fn subtree<'p>(path: &'p str, name: &str) -> Option<&'p str> {
    let subtree = path.strip_prefix(QUOTA_ROOT)?.strip_suffix(name)?.strip_suffix('/')?;
    subtree.starts_with('/').then_some(subtree)
}

/// Where the counts of a subtree are kept.
#[must_use]
pub fn stats_path(subtree: &str) -> String {
    format!("{QUOTA_ROOT}{subtree}/{STATS_NAME}")
}

/// Where its limits are.
#[must_use]
pub fn limits_path(subtree: &str) -> String {
    format!("{QUOTA_ROOT}{subtree}/{LIMITS_NAME}")
}

/// The subtrees with a quota.
#[derive(Default)]
pub(super) struct Quotas {
    subtrees: BTreeSet<Box<str>>,
}

impl Quotas {
    pub(super) fn insert(&mut self, subtree: &str) {
        self.subtrees.insert(subtree.into());
    }

    pub(super) fn remove(&mut self, subtree: &str) {
        self.subtrees.remove(subtree);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.subtrees.iter().map(AsRef::as_ref)
    }

    /// The deepest subtree with a quota that `path` is in.
    pub(super) fn deepest(&self, path: &str) -> Option<&str> {
        if self.subtrees.is_empty() {
            return None;
        }
        let mut prefix = path;
        while !prefix.is_empty() {
            if let Some(subtree) = self.subtrees.get(prefix) {
                return Some(subtree);
            }
            prefix = &prefix[..prefix.rfind('/')?];
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tracks_are_read_leniently_and_written_as_zookeeper_does() {
        let track = StatsTrack::parse(b"count=3,bytes=20=;byteHardLimit=20;countHardLimit=3");
        assert_eq!((track.count, track.bytes), (3, 20));
        assert_eq!(track.to_string(), "count=3,bytes=20=;byteHardLimit=20;countHardLimit=3");
        for rubbish in [&b""[..], b"=;=,", b"count=x", b"\xff\xfe=1"] {
            assert_eq!(StatsTrack::parse(rubbish).to_string(), "count=-1,bytes=-1");
        }
    }

    #[test]
    fn the_deepest_quota_counts_by_whole_names() {
        let mut quotas = Quotas::default();
        quotas.insert("/q");
        quotas.insert("/q/r");
        assert_eq!(quotas.deepest("/q/r/s"), Some("/q/r"));
        assert_eq!(quotas.deepest("/q/rs"), Some("/q"));
        assert_eq!(quotas.deepest("/q2"), None);
        assert_eq!(quotas.deepest("/q"), Some("/q"));
        assert_eq!(subtree_of_limits("/zookeeper/quota/zookeeper_limits"), None);
        assert_eq!(subtree_of_limits("/zookeeper/zookeeper_limits"), None);
        assert_eq!(subtree_of_limits("/zookeeper/quota/q/zookeeper_limits"), Some("/q"));
    }
}
