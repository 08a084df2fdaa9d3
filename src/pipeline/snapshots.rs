//! When the log rolls and a snapshot is taken, and the tree as a snapshot's records.
//!
//! Both happen together, at a random point in the second half of the limits, so that the
//! servers of an ensemble do not snapshot at the same moment (`SyncRequestProcessor`).
//!
//! A snapshot is there to keep a restart short. One that is larger than the log it stands for does
//! not: so it is put off, unless the operator has set how often it is to be, until the log has grown
//! to its size or to the limit of bytes. A tree of a million znodes would else be written whole for
//! every few megabytes of changes. Sizes are those before compression.
//!
//! Unlike ZooKeeper's, our snapshots are not fuzzy: a reader of their own holds the tree still at
//! one committed zxid while writes go on.

use std::io;
use std::sync::Arc;

use crate::jute::Write as _;
use crate::jute::record::Record as _;
use crate::record::data::{Acl, AclBytes};
use crate::record::txn::DIGEST_VERSION;
use crate::storage::snapshot::{NODE_BYTES_MIN, SnapshotDigest, SnapshotWriter, Trailer};
use crate::tree::{TreeReader, TreeWriter};
use crate::types::{SessionId, Zxid};

#[derive(Clone, Copy, Debug)]
pub struct RollSettings {
    /// `zookeeper.snapCount`: transactions between snapshots.
    pub txns: u64,
    /// `zookeeper.snapSizeLimitInKb`, in bytes; 0: no limit.
    pub bytes: u64,
    /// `zookeeper.txnLogSizeLimitInKb`, in bytes: rolls the log alone; 0: no limit.
    pub log_bytes: u64,
    /// Whether a snapshot waits until the log since the last is as large as itself, or `bytes`. The
    /// log rolls without it.
    pub put_off: bool,
}

impl Default for RollSettings {
    fn default() -> RollSettings {
        RollSettings { txns: 100_000, bytes: 4 << 30, log_bytes: 0, put_off: true }
    }
}

#[derive(Debug)]
pub(super) struct Roll {
    settings: RollSettings,
    random: u64,
    /// Since the last roll by count or size.
    txns: u64,
    bytes: u64,
    limit_txns: u64,
    limit_bytes: u64,
    /// Of the log file that is being written.
    log_bytes: u64,
    /// Logged since the last snapshot was asked for.
    snapshot_bytes: u64,
    new_file: bool,
    snapshot: Snapshot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Snapshot {
    Idle,
    Due,
    Running,
}

impl Roll {
    /// The first record of a process opens a file: nobody appends to another's. What was replayed
    /// at its start is in a snapshot that is asked for then.
    pub(super) fn new(settings: RollSettings, seed: u64) -> Roll {
        let mut roll = Roll {
            settings,
            random: seed,
            txns: 0,
            bytes: 0,
            limit_txns: 0,
            limit_bytes: 0,
            log_bytes: 0,
            snapshot_bytes: 0,
            new_file: true,
            snapshot: Snapshot::Idle,
        };
        roll.draw();
        roll
    }

    fn draw(&mut self) {
        let (half_txns, half_bytes) = (self.settings.txns / 2, self.settings.bytes / 2);
        self.limit_txns = half_txns + self.below(half_txns);
        self.limit_bytes = half_bytes + self.below(half_bytes);
        (self.txns, self.bytes) = (0, 0);
    }

    /// A number below `end`, the next of the seed's. SplitMix64.
    fn below(&mut self, end: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).checked_rem(end).unwrap_or(0)
    }

    /// Whether the record to come opens a file.
    pub(super) fn take_new_file(&mut self) -> bool {
        std::mem::take(&mut self.new_file)
    }

    /// The record to come opens a file, whatever was written before.
    pub(super) fn begin_file(&mut self) {
        self.new_file = true;
        self.log_bytes = 0;
    }

    /// A record went into the file that is being written; a snapshot would take `tree_bytes`.
    pub(super) fn on_record(&mut self, bytes: u64, tree_bytes: impl FnOnce() -> u64) {
        self.txns += 1;
        self.bytes += bytes;
        self.log_bytes += bytes;
        self.snapshot_bytes += bytes;
        let by_count = self.txns > self.limit_txns;
        let by_size = self.settings.bytes > 0 && self.bytes > self.limit_bytes;
        if by_count || by_size {
            self.draw();
            self.roll_file();
            if self.is_worth(tree_bytes()) {
                self.ask_for_snapshot();
            }
        } else if self.settings.log_bytes > 0 && self.log_bytes > self.settings.log_bytes {
            self.roll_file();
        }
    }

    /// Whether a restart would be shorter for a snapshot.
    fn is_worth(&self, tree_bytes: u64) -> bool {
        let by_size = self.settings.bytes > 0 && self.snapshot_bytes > self.settings.bytes;
        !self.settings.put_off || by_size || self.snapshot_bytes >= tree_bytes
    }

    fn roll_file(&mut self) {
        self.new_file = true;
        self.log_bytes = 0;
    }

    /// One at a time: while one is being written, the next is left out.
    pub(super) fn ask_for_snapshot(&mut self) {
        if self.snapshot == Snapshot::Idle {
            self.snapshot = Snapshot::Due;
        }
    }

    pub(super) fn take_snapshot_due(&mut self) -> bool {
        let is_due = self.snapshot == Snapshot::Due;
        if is_due {
            self.snapshot = Snapshot::Running;
            self.snapshot_bytes = 0;
        }
        is_due
    }

    pub(super) fn on_snapshot_ended(&mut self) {
        self.snapshot = Snapshot::Idle;
    }
}

/// About how long a snapshot of the tree would be.
pub(super) fn expected_bytes(tree: &TreeWriter) -> u64 {
    let znodes = tree.znode_count() as u64 * NODE_BYTES_MIN as u64;
    znodes.saturating_add_signed(tree.data_bytes())
}

/// A snapshot to be written: the committed state at `zxid`, held still by a reader of its own.
pub struct SnapshotJob {
    pub zxid: Zxid,
    /// The tree's digest at `zxid`; `None` where digests are off.
    pub digest: Option<u64>,
    pub sessions: Vec<(SessionId, i32)>,
    pub acls: Vec<(i64, Arc<[Acl]>)>,
    pub reader: TreeReader,
}

impl SnapshotJob {
    /// Writes all of it. `with_zxid`: also the last block, which servers before 3.9 do not write.
    pub fn write<W: io::Write>(&self, out: SnapshotWriter<W>, with_zxid: bool) -> io::Result<W> {
        let mut out = out;
        self.write_state(&mut out)?;
        let digest = self.digest.map(|digest| SnapshotDigest {
            zxid: self.zxid,
            version: DIGEST_VERSION,
            digest: digest as i64,
        });
        out.finish(Trailer { digest, last_processed: with_zxid.then_some(self.zxid) })
    }

    /// Writes it as a leader sends it: without header, digest and seals.
    pub fn write_body<W: io::Write>(&self, out: W) -> io::Result<()> {
        let mut out = SnapshotWriter::body(out);
        self.write_state(&mut out)?;
        out.finish_body()
    }

    fn write_state<W: io::Write>(&self, out: &mut SnapshotWriter<W>) -> io::Result<()> {
        out.sessions(self.sessions.iter().copied())?;
        let lists: Vec<(i64, Vec<u8>)> =
            self.acls.iter().map(|(number, list)| (*number, encoded(list))).collect();
        out.acls(
            lists
                .iter()
                .map(|(number, list)| (*number, AclBytes::from_bytes(list).expect("just encoded"))),
        )?;
        for znode in self.reader.walk() {
            out.node(znode.path(), znode.data(), znode.acl_number(), &znode.stat_persisted())?;
        }
        Ok(())
    }
}

fn encoded(list: &[Acl]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_count(Some(list.len()));
    for acl in list {
        acl.write(&mut bytes);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_rolls_in_the_second_half_of_the_limit() {
        for seed in 0..100 {
            let settings = RollSettings { txns: 100, bytes: 0, log_bytes: 0, put_off: false };
            let mut roll = Roll::new(settings, seed);
            assert!(roll.take_new_file());
            let records = (1..).find(|_| {
                roll.on_record(1_000_000, || u64::MAX);
                roll.take_new_file()
            });
            let records = records.unwrap();
            assert!((51..=100).contains(&records), "rolled after {records}");
            assert!(roll.take_snapshot_due());
            assert!(!roll.take_snapshot_due());
        }
    }

    #[test]
    fn a_snapshot_waits_for_a_log_of_its_size() {
        let settings = RollSettings { txns: 10, bytes: 5_000, log_bytes: 0, put_off: true };
        let mut roll = Roll::new(settings, 1);
        let mut until_due = |tree_bytes| {
            let records = (1..).find(|_| {
                roll.on_record(10, || tree_bytes);
                roll.take_snapshot_due()
            });
            roll.on_snapshot_ended();
            records.unwrap()
        };
        for _ in 0..20 {
            assert!((1..=10).contains(&until_due(0)));
            let records = until_due(1_000);
            assert!((100..=110).contains(&records), "after {records}");
            // However large the tree: no more than the limit is replayed.
            let records = until_due(u64::MAX);
            assert!((501..=511).contains(&records), "after {records}");
        }
    }
}
