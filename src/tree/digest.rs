//! ZooKeeper's digest of a tree: the sum, modulo 2^64, of a CRC-32 per znode.
//!
//! ```text
//! znode = CRC-32 of path, data (if not null), czxid, mzxid, pzxid, ctime, mtime (longs),
//!         version, cversion, aversion (ints), ephemeralOwner (long)
//! ```
//!
//! `pzxid` stands third, unlike in `StatPersisted`. Znodes below `/zookeeper/` do not count;
//! `/zookeeper` and the root (as the empty path) do. After `DigestCalculator`.

use crate::record::data::StatPersisted;

/// Whether a znode of this path counts.
#[must_use]
pub fn counts(path: &str) -> bool {
    !path.starts_with("/zookeeper/")
}

/// The part of a znode's digest that a change of its stat leaves alone.
#[must_use]
pub fn prefix(path: &str, data: Option<&[u8]>) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(path.as_bytes());
    crc.update(data.unwrap_or_default());
    crc.finalize()
}

/// A znode's digest, from its `prefix`.
#[must_use]
pub fn znode(prefix: u32, stat: &StatPersisted) -> u32 {
    let mut bytes = [0; 60];
    let (longs, rest) = bytes.split_at_mut(40);
    let five = [stat.czxid, stat.mzxid, stat.pzxid, stat.ctime, stat.mtime];
    for (place, value) in longs.chunks_exact_mut(8).zip(five) {
        place.copy_from_slice(&value.to_be_bytes());
    }
    let (ints, owner) = rest.split_at_mut(12);
    let three = [stat.version, stat.cversion, stat.aversion];
    for (place, value) in ints.chunks_exact_mut(4).zip(three) {
        place.copy_from_slice(&value.to_be_bytes());
    }
    owner.copy_from_slice(&stat.ephemeral_owner.to_be_bytes());
    // The length of what went before does not matter to `update`, only to combining.
    let mut crc = crc32fast::Hasher::new_with_initial(prefix);
    crc.update(&bytes);
    crc.finalize()
}
