//! ZooKeeper's files as bytes: logs, snapshots, epochs, and what is kept beside them.
//!
//! Bytes in, bytes out: nothing here opens a file or knows the tree. Whoever does the reading and
//! writing owes what the rules below rest on.
//!
//! | file | here | what it is for |
//! |---|---|---|
//! | `txnlog.rs` | `append_txn`, `append_record`, `padded_bytes` | the log's bytes |
//! | `journal.rs` | `Journal` | the log being written: what is done, and in which order |
//! | `gathering.rs` | `Gathering` | when it waits for more records before it syncs |
//! | `segment.rs` | `Segment`, `each_store`, `cut_after` | one log as a map, lengths last; truncation |
//! | `blocks.rs` | `Blocks`, `Extent` | one log as whole blocks |
//! | `watermark.rs` | `Watermark` | how far the log is durable |
//! | `recovery.rs` | `recover`, `Files`, `State` | a restart: what is read, in which order, and what it means |
//! | `standing.rs` | `recover_member`, `Standing` | the same of a member of an ensemble: what it may say of itself |
//! | `history.rs` | `find_truncation`, `find_replacement`, `read_logged` | what a leader and a learner ask of the files |
//! | `window.rs` | `Window`, `Source` | a file read piece by piece |
//! | `replay.rs` | `Replay`, `replay`, `LogReader` | logs back into transactions; torn or damaged |
//! | `snapshot.rs` | `SnapshotWriter`, `BodyWriter`, `SnapshotReader` | a snapshot, written and read in chunks |
//! | `compression.rs` | `Encoder`, `Decoder` | gzip and snappy around a snapshot |
//! | `epoch.rs` | `decode_epoch`, `encode_epoch` | acceptedEpoch and currentEpoch |
//! | this one | `Listing`, `FileName`, `is_quick_valid` | names; what is needed; what may go |
//!
//! A restart is `recovery.rs`, from the names in a directory to its changes.
//!
//! What the writer of the files owes:
//!
//! - A log's header, its directory entry and a watermark that names it are durable before its
//!   first record is appended; its first record has the zxid that its name says.
//! - A log is synced before the next one is created.
//! - The watermark is stored after the sync it tells of, never before, and need not be synced
//!   except as above. It is told the end of each epoch (`Watermark::end_epoch`).
//! - Truncation moves the watermark back (`Watermark::truncate`), durably, before it cuts. A snapshot
//!   that replaces everything is named by the watermark (`Watermark::of_snapshot`), durably, once
//!   nothing newer is left beside it.

pub mod blocks;
pub mod compression;
#[cfg(test)]
mod damage;
pub mod epoch;
pub mod gathering;
pub mod history;
pub mod journal;
#[cfg(test)]
mod memory;
pub mod recovery;
pub mod replay;
pub mod segment;
pub mod snapshot;
pub mod standing;
pub mod txnlog;
pub mod watermark;
pub mod window;

use crate::types::{Epoch, Zxid};

/// No file of a server goes beyond: there is an epoch for each election and 2^32 transactions to
/// each, and in the last epoch there would soon be no number for the next.
pub const ZXID_MAX: Zxid = Zxid::new(Epoch(0x7fff_fffe), u32::MAX);

/// At most this much of a log is not durable at any moment: the log writer hands the disk no more
/// than this at a time, and stores no record into a mapped log while this much of it is not synced.
///
/// So a crash tears only what lies within this distance of the last sync. Of what is broken behind
/// the watermark, a whole record that begins farther behind proves that the break was durable once,
/// and is damage.
pub const UNSYNCED_BYTES_MAX: u64 = 1 << 20;

/// How a snapshot is compressed: by its name when reading, by a setting when writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    #[default]
    None,
    Gzip,
    /// The stream format of snappy-java, not the official framing.
    Snappy,
}

impl Compression {
    /// What a snapshot's name ends with.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Compression::None => "",
            Compression::Gzip => ".gz",
            Compression::Snappy => ".snappy",
        }
    }
}

/// What a name in `version-2` stands for, read as ZooKeeper reads it (`Util.getZxidFromName`):
/// split at dots, the second part in hex, further parts not looked at but for the compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileName {
    Log(Zxid),
    Snapshot(Zxid, Compression),
}

impl FileName {
    #[must_use]
    pub fn parse(name: &str) -> Option<FileName> {
        // What follows the last dot counts only if it is not empty, as in Java's `split`.
        let mut parts = name.trim_end_matches('.').split('.');
        let kind = parts.next()?;
        let zxid = i64::from_str_radix(parts.next()?, 16).ok().filter(|zxid| 0 <= *zxid);
        match (kind, zxid) {
            ("log", Some(zxid)) => Some(FileName::Log(Zxid(zxid))),
            ("snapshot", Some(zxid)) => {
                let compression = match parts.next_back() {
                    Some(last) if last.eq_ignore_ascii_case("gz") => Compression::Gzip,
                    Some(last) if last.eq_ignore_ascii_case("snappy") => Compression::Snappy,
                    _ => Compression::None,
                };
                Some(FileName::Snapshot(Zxid(zxid), compression))
            }
            _ => None,
        }
    }
}

/// The name of the log whose first transaction is `zxid`.
#[must_use]
pub fn log_name(zxid: Zxid) -> String {
    format!("log.{:x}", zxid.0)
}

/// The name of the snapshot of the state after `zxid`.
#[must_use]
pub fn snapshot_name(zxid: Zxid, compression: Compression) -> String {
    format!("snapshot.{:x}{}", zxid.0, compression.suffix())
}

/// One log of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    pub name: String,
    /// Its first transaction.
    pub start: Zxid,
    pub bytes: u64,
}

/// One snapshot of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    pub name: String,
    pub zxid: Zxid,
    pub compression: Compression,
    pub bytes: u64,
}

/// What a data directory holds. Logs and snapshots may lie in two directories; their names tell
/// which.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Oldest first.
    logs: Vec<LogFile>,
    /// Newest first.
    snapshots: Vec<SnapshotFile>,
    /// Began as logs or snapshots and are not used: leftovers of a write (`.tmp`), copies of a log
    /// that is there, and names without a zxid.
    unused: Vec<String>,
}

impl Listing {
    /// From the names in `version-2`, with their sizes.
    #[must_use]
    pub fn new(files: impl IntoIterator<Item = (String, u64)>) -> Listing {
        let mut listing = Listing::default();
        for (name, bytes) in files {
            match FileName::parse(&name) {
                _ if is_leftover(&name) => listing.unused.push(name),
                Some(FileName::Log(start)) => listing.logs.push(LogFile { name, start, bytes }),
                Some(FileName::Snapshot(zxid, compression)) => {
                    listing.snapshots.push(SnapshotFile { name, zxid, compression, bytes });
                }
                None if name.starts_with("log.") || name.starts_with("snapshot.") => {
                    listing.unused.push(name);
                }
                None => {}
            }
        }
        // Of two logs with one start, say `log.5` and `log.5.fixed`, the plain name comes first.
        listing.logs.sort_by(|a, b| (a.start, &a.name).cmp(&(b.start, &b.name)));
        listing.logs.dedup_by(|copy, kept| {
            let is_copy = copy.start == kept.start;
            if is_copy {
                listing.unused.push(std::mem::take(&mut copy.name));
            }
            is_copy
        });
        listing.snapshots.sort_by(|a, b| (b.zxid, &a.name).cmp(&(a.zxid, &b.name)));
        listing.unused.sort();
        listing
    }

    /// All logs, oldest first.
    #[must_use]
    pub fn logs(&self) -> &[LogFile] {
        &self.logs
    }

    /// The snapshots a server looks at when it starts: newest first, at most 100.
    #[must_use]
    pub fn snapshots(&self) -> &[SnapshotFile] {
        &self.snapshots[..self.snapshots.len().min(100)]
    }

    /// A log or a snapshot whose name says a zxid that no history comes to: a mishap, or made to
    /// be one. It would count as the newest, and nothing could be written after it.
    #[must_use]
    pub fn impossible(&self) -> Option<&str> {
        let logs = self.logs.iter().map(|file| (file.start, &file.name));
        let snapshots = self.snapshots.iter().map(|file| (file.zxid, &file.name));
        let mut beyond = logs.chain(snapshots).filter(|(zxid, _)| ZXID_MAX < *zxid);
        beyond.next().map(|(_, name)| name.as_str())
    }

    /// Leftovers of writes that a crash has broken off: to be removed at the start.
    pub fn leftovers(&self) -> impl Iterator<Item = &str> {
        self.unused.iter().map(String::as_str).filter(|name| is_leftover(name))
    }

    /// The logs that hold the transactions after `zxid`: the last that begins at or before the one
    /// after it, and all later. Logs do not overlap, so nothing before can matter.
    #[must_use]
    pub fn logs_after(&self, zxid: Zxid) -> &[LogFile] {
        let later = self.logs.partition_point(|log| log.start.0 <= zxid.0.saturating_add(1));
        &self.logs[later.saturating_sub(1)..]
    }

    /// What may be deleted so that the newest `retain` snapshots that are `valid` can still be
    /// loaded and brought up to date, and all of `keep` too. Never a `.tmp`.
    ///
    /// ZooKeeper keeps by the quick check alone (`PurgeTxnLog`); `keep` says what more must stay.
    #[must_use]
    pub fn purgeable(
        &self,
        retain: usize,
        valid: impl Fn(&SnapshotFile) -> bool,
        keep: Keep,
    ) -> Vec<&str> {
        let retained = self.snapshots.iter().filter(|file| valid(file)).take(retain.max(1));
        let Some(base) = retained.map(|file| file.zxid).last() else { return Vec::new() };
        let truncatable = keep.committed.and_then(|committed| {
            self.snapshots.iter().find(|file| file.zxid <= committed && valid(file))
        });
        let base = [keep.loads, truncatable.map(|file| file.zxid)]
            .into_iter()
            .flatten()
            .fold(base, Zxid::min);
        let first_log = self.logs.iter().rfind(|log| log.start <= base).map(|log| log.start);
        let first_log = first_log.unwrap_or(base);
        let logs = self.logs.iter().filter(|log| log.start < first_log).map(|log| &log.name);
        let snapshots = self.snapshots.iter().filter(|file| file.zxid < base);
        // What is being written now looks like what a crash has left: only a start can tell.
        let unused = self.unused.iter().filter(|name| match FileName::parse(name) {
            _ if is_leftover(name) => false,
            Some(FileName::Log(zxid)) => zxid < first_log,
            Some(FileName::Snapshot(zxid, _)) => zxid < base,
            None => true,
        });
        logs.chain(snapshots.map(|file| &file.name)).chain(unused).map(String::as_str).collect()
    }
}

/// What a purge must leave beyond the newest few snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// The newest snapshot that was loaded, or that was written and synced: the quick check may
    /// pass damaged ones, and this one is sound.
    pub loads: Option<Zxid>,
    /// The last transaction that a quorum committed: the newest snapshot up to there stays, so
    /// that what comes after can be truncated. `None` standalone.
    pub committed: Option<Zxid>,
}

fn is_leftover(name: &str) -> bool {
    name.ends_with(".tmp")
}

/// A name that must not be in this directory when logs and snapshots have one each: ZooKeeper does
/// not start then.
#[must_use]
pub fn is_misplaced(name: &str, in_log_directory: bool) -> bool {
    name.starts_with(if in_log_directory { "snapshot." } else { "log." })
}

/// How many bytes of a snapshot's head and tail `is_quick_valid` looks at.
pub const QUICK_BYTES: usize = 8;

/// Whether a snapshot is worth loading, judged by its ends: a crash while it was written leaves
/// one that is not. `head` and `tail` are its first and last `QUICK_BYTES` bytes, or all it has.
/// Damage in between is found by loading it (`SnapStream.isValidSnapshot`).
#[must_use]
pub fn is_quick_valid(file: &SnapshotFile, head: &[u8], tail: &[u8]) -> bool {
    match file.compression {
        Compression::None => 10 <= file.bytes && tail.ends_with(b"\0\0\0\x01/"),
        Compression::Gzip => head.starts_with(&[0x1f, 0x8b]),
        Compression::Snappy => head.starts_with(b"\x82SNAPPY\0"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: &[&str]) -> Listing {
        Listing::new(names.iter().map(|name| ((*name).to_owned(), 100)))
    }

    fn names<'a>(files: impl IntoIterator<Item = &'a LogFile>) -> Vec<&'a str> {
        files.into_iter().map(|file| file.name.as_str()).collect()
    }

    #[test]
    fn names_are_read_as_zookeeper_reads_them() {
        let snapshot = |zxid, compression| Some(FileName::Snapshot(Zxid(zxid), compression));
        assert_eq!(FileName::parse("log.1f"), Some(FileName::Log(Zxid(0x1f))));
        assert_eq!(FileName::parse("log.1F.fixed"), Some(FileName::Log(Zxid(0x1f))));
        assert_eq!(FileName::parse("log.1."), Some(FileName::Log(Zxid(1))));
        assert_eq!(FileName::parse("snapshot.0"), snapshot(0, Compression::None));
        assert_eq!(FileName::parse("snapshot.a.gz"), snapshot(10, Compression::Gzip));
        assert_eq!(FileName::parse("snapshot.a.x.SNAPPY"), snapshot(10, Compression::Snappy));
        assert_eq!(FileName::parse("snapshot.a.gz.x"), snapshot(10, Compression::None));
        for name in [
            "log",
            "log.",
            "log..1",
            "log.x",
            "log.0x1",
            "logs.1",
            "log.-1",
            "Log.1",
            "",
            "log.10000000000000000",
            "log.ffffffffffffffff",
            "snapshot.gz",
            "currentEpoch",
        ] {
            assert_eq!(FileName::parse(name), None, "{name}");
        }
        assert_eq!(log_name(Zxid(0x2_0000_000a)), "log.20000000a");
        assert_eq!(snapshot_name(Zxid(0x15), Compression::Snappy), "snapshot.15.snappy");
    }

    #[test]
    fn a_directory_is_its_logs_and_snapshots_in_order() {
        let listing = listing(&[
            "log.a",
            "log.1",
            "snapshot.0",
            "snapshot.9",
            "snapshot.10.gz",
            "acceptedEpoch",
            "snapshot.20.tmp",
            "log.1.fixed",
            "log.foo",
        ]);
        assert_eq!(names(listing.logs()), ["log.1", "log.a"]);
        let zxids: Vec<_> = listing.snapshots().iter().map(|file| file.zxid.0).collect();
        assert_eq!(zxids, [0x10, 9, 0]);
        assert_eq!(listing.leftovers().collect::<Vec<_>>(), ["snapshot.20.tmp"]);
        assert_eq!(listing.unused, ["log.1.fixed", "log.foo", "snapshot.20.tmp"]);
    }

    #[test]
    fn replay_begins_with_the_log_that_holds_the_next_transaction() {
        let listing = listing(&["log.1", "log.5", "log.100000001"]);
        for (zxid, needed) in [(0, 3), (3, 3), (4, 2), (5, 2), (0xffff_ffff, 2), (0x1_0000_0000, 1)]
        {
            assert_eq!(listing.logs_after(Zxid(zxid)).len(), needed, "after {zxid:x}");
        }
        assert_eq!(listing.logs_after(Zxid(i64::MAX)).len(), 1);
        assert_eq!(self::listing(&["log.5"]).logs_after(Zxid(1)).len(), 1);
        assert_eq!(self::listing(&[]).logs_after(Zxid(1)).len(), 0);
    }

    #[test]
    fn a_purge_leaves_the_newest_valid_snapshots_and_their_logs() {
        let listing = listing(&[
            "log.1",
            "log.5",
            "log.9",
            "log.d",
            "snapshot.4",
            "snapshot.8",
            "snapshot.c",
            "snapshot.f",
            "log.x",
            // Perhaps being written.
            "snapshot.3.tmp",
            "ringkeeper-log.tmp",
        ]);
        let purge = |retain, invalid: &[i64], keep| {
            let mut names = listing.purgeable(retain, |file| !invalid.contains(&file.zxid.0), keep);
            names.sort_unstable();
            names
        };
        let keep = Keep::default();
        assert_eq!(
            purge(1, &[], keep),
            ["log.1", "log.5", "log.9", "log.x", "snapshot.4", "snapshot.8", "snapshot.c"]
        );
        assert_eq!(purge(3, &[], keep), ["log.1", "log.x", "snapshot.4"]);
        assert_eq!(purge(4, &[], keep), ["log.x"]);
        // Invalid ones do not count (ZOOKEEPER-3231), and with none that is valid nothing goes.
        assert_eq!(purge(2, &[0xf, 0xc, 8], keep), ["log.x"]);
        assert_eq!(purge(3, &[4, 8, 0xc, 0xf], keep), [""; 0]);
        let loads = Keep { loads: Some(Zxid(8)), ..keep };
        assert_eq!(purge(1, &[], loads), ["log.1", "log.x", "snapshot.4"]);
        let committed = Keep { committed: Some(Zxid(0xe)), ..keep };
        assert_eq!(purge(1, &[], committed).last(), Some(&"snapshot.8"));
        let committed = Keep { committed: Some(Zxid(0xf)), ..keep };
        assert_eq!(purge(1, &[], committed), purge(1, &[], keep));
    }

    #[test]
    fn a_log_between_base_and_its_start_is_kept() {
        let listing = listing(&["log.1", "log.5", "snapshot.5", "snapshot.7"]);
        assert_eq!(listing.purgeable(2, |_| true, Keep::default()), ["log.1"]);
        assert_eq!(listing.purgeable(1, |_| true, Keep::default()), ["log.1", "snapshot.5"]);
    }

    #[test]
    fn a_snapshot_that_a_crash_has_cut_fails_the_quick_check() {
        let file = |name: &str, bytes| {
            Listing::new([(name.to_owned(), bytes)]).snapshots().first().cloned().unwrap()
        };
        assert!(is_quick_valid(&file("snapshot.1", 10), b"ZKSN\0\0\0\x02", b"\0\0\0\0\0\x01/"));
        assert!(!is_quick_valid(&file("snapshot.1", 9), b"ZKSN", b"\0\0\0\x01/"));
        assert!(!is_quick_valid(&file("snapshot.1", 900), b"ZKSN\0\0\0\x02", b"\0\0\0\x01\0"));
        assert!(is_quick_valid(&file("snapshot.1.gz", 2), &[0x1f, 0x8b], &[]));
        assert!(!is_quick_valid(&file("snapshot.1.gz", 0), &[], &[]));
        assert!(is_quick_valid(&file("snapshot.1.snappy", 8), b"\x82SNAPPY\0", &[]));
        assert!(!is_quick_valid(&file("snapshot.1.snappy", 7), b"\x82SNAPPY", &[]));
    }

    #[test]
    fn logs_and_snapshots_keep_to_their_directories() {
        assert!(is_misplaced("snapshot.5", true));
        assert!(is_misplaced("log.5", false));
        assert!(!is_misplaced("log.5", true));
        assert!(!is_misplaced("currentEpoch", false));
    }
}
