//! A data directory's records into a running state.
//!
//! The shell reads files; this takes what is in them: a snapshot, then every transaction after
//! it. The simulator restarts its servers with the same.
//!
//! Digests are held against what was logged. ZooKeeper's snapshots are fuzzy: such a one shows
//! some transactions beyond the zxid in its name, so nothing can be compared until its own
//! digest's zxid has been replayed, where both must be equal. Its ACLs are older than its znodes:
//! a znode may have one that is not there, and gets it from the log (ZOOKEEPER-4846).

use std::collections::{BTreeMap, HashMap};
use std::io::Read;

use tracing::warn;

use crate::record::data::{Acl, AclBytes};
use crate::record::txn::{DIGEST_VERSION, Txn, TxnDigest, TxnHeader};
use crate::storage::recovery::State;
use crate::storage::replay::Record;
use crate::storage::snapshot::{Item, SnapshotDigest, SnapshotError, SnapshotReader};
use crate::tree::change::Unwatched;
use crate::tree::{self, LoadedAcl, OPEN_ACL_NUMBER, TreeWriter};
use crate::types::{HighestSessions, SessionId, Zxid};

/// Why what was read is not a state to go on from.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("snapshot {zxid}: znode {path:?} comes before its parent, or twice")]
    Orphan { zxid: Zxid, path: String },
    #[error("{0}; ringkeeper.digestMismatch=warn serves what there is all the same")]
    Digest(Mismatch),
}

/// A tree that is not the one that was written about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the tree after {zxid} has digest {found:#x}, but {expected:#x} was written: the data is \
     damaged, or was written by a server that applied it differently"
)]
pub struct Mismatch {
    pub zxid: Zxid,
    pub expected: u64,
    pub found: u64,
}

/// What comes of a digest that differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnMismatch {
    #[default]
    Refuse,
    /// It is counted, and no more. ZooKeeper does so always (`DataTree.compareDigest`).
    Count,
}

/// A state to go on from.
pub struct Restored {
    pub tree: TreeWriter,
    pub sessions: BTreeMap<SessionId, i32>,
    /// Of all sessions that were read of, whether they live or not.
    pub highest_sessions: HighestSessions,
    /// The last transaction.
    pub last: Zxid,
    /// Transactions replayed since the snapshot.
    pub replayed: u64,
    /// Digests that differ, in a tree with paths beyond ASCII: Java digests these by the
    /// character set that its process happened to have, so it is an alarm and no proof.
    pub doubtful_digests: u64,
    /// Other digests that differ, and the first of them.
    pub mismatches: u64,
    pub first_mismatch: Option<Mismatch>,
}

/// What to compare digests with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Off,
    /// Once this has been replayed: what the fuzzy snapshot says of that moment.
    Waiting(SnapshotDigest),
    On,
}

/// A state in the making.
pub struct Restore {
    tree: TreeWriter,
    sessions: BTreeMap<SessionId, i32>,
    highest_sessions: HighestSessions,
    last: Zxid,
    replayed: u64,
    comparison: Comparison,
    beyond_ascii: bool,
    doubtful_digests: u64,
    on_mismatch: OnMismatch,
    mismatches: u64,
    first_mismatch: Option<Mismatch>,
    /// Znodes whose ACL the snapshot did not have.
    closed: Vec<String>,
}

impl Restore {
    /// Begins with no snapshot: the tree as ZooKeeper makes it.
    #[must_use]
    pub fn empty(settings: tree::Settings) -> Restore {
        Restore {
            tree: TreeWriter::new(settings),
            sessions: BTreeMap::new(),
            highest_sessions: HighestSessions::default(),
            last: Zxid::ZERO,
            replayed: 0,
            comparison: if settings.digest { Comparison::On } else { Comparison::Off },
            beyond_ascii: false,
            doubtful_digests: 0,
            on_mismatch: OnMismatch::Refuse,
            mismatches: 0,
            first_mismatch: None,
            closed: Vec::new(),
        }
    }

    /// The same, with something else to do about digests that differ.
    #[must_use]
    pub fn on_mismatch(self, on_mismatch: OnMismatch) -> Restore {
        Restore { on_mismatch, ..self }
    }

    /// Begins with a whole snapshot; `zxid` is the one in its name.
    pub fn from_snapshot<R: Read>(
        settings: tree::Settings,
        zxid: Zxid,
        snapshot: &mut SnapshotReader<R>,
    ) -> Result<Restore, RestoreError> {
        Restore::from_snapshot_with(settings, OnMismatch::Refuse, zxid, snapshot)
    }

    /// The same: its own digest may differ already.
    pub fn from_snapshot_with<R: Read>(
        settings: tree::Settings,
        on_mismatch: OnMismatch,
        zxid: Zxid,
        snapshot: &mut SnapshotReader<R>,
    ) -> Result<Restore, RestoreError> {
        let mut tree = TreeWriter::without_reserved(settings);
        let mut sessions = BTreeMap::new();
        let mut highest_sessions = HighestSessions::default();
        let mut acls: HashMap<i64, LoadedAcl> = HashMap::new();
        let nobody = tree.load_acl(&nobody());
        let mut closed = Vec::new();
        let mut beyond_ascii = false;
        while let Some(item) = snapshot.next()? {
            match item {
                Item::Session { id, timeout_ms } => {
                    highest_sessions.note(id);
                    sessions.insert(id, timeout_ms);
                }
                Item::Acl { id, acl } => {
                    acls.insert(id, tree.load_acl(&owned(acl)));
                }
                Item::Node { path, data, acl_id, stat } => {
                    beyond_ascii |= !path.is_ascii();
                    let acl = match acl_id {
                        OPEN_ACL_NUMBER => &LoadedAcl::OPEN,
                        number => acls.get(&number).unwrap_or_else(|| {
                            closed.push(path.clone().into_owned());
                            &nobody
                        }),
                    };
                    tree.load_znode(&path, data, acl, stat)
                        .ok_or_else(|| RestoreError::Orphan { zxid, path: path.into_owned() })?;
                }
            }
        }
        drop((acls, nobody));
        tree.finish_loading();
        tree.publish(zxid);
        let digest = snapshot.trailer().and_then(|trailer| trailer.digest);
        let comparison = match digest.filter(|digest| digest.version == DIGEST_VERSION) {
            _ if !settings.digest => Comparison::Off,
            // ZooKeeper writes zeros where no transaction has been applied yet.
            Some(digest) if digest.zxid == Zxid::ZERO => Comparison::On,
            Some(digest) if zxid <= digest.zxid => Comparison::Waiting(digest),
            _ => Comparison::On,
        };
        let mut restore = Restore {
            tree,
            sessions,
            highest_sessions,
            last: zxid,
            replayed: 0,
            comparison,
            beyond_ascii,
            doubtful_digests: 0,
            on_mismatch,
            mismatches: 0,
            first_mismatch: None,
            closed,
        };
        restore.compare(None)?;
        Ok(restore)
    }

    /// Applies the next transaction of the log.
    pub fn replay(
        &mut self,
        header: &TxnHeader,
        txn: &Txn<'_>,
        digest: Option<&TxnDigest>,
    ) -> Result<(), RestoreError> {
        self.beyond_ascii |= creates_beyond_ascii(txn);
        let session = SessionId(header.client_id);
        self.highest_sessions.note(session);
        match txn {
            Txn::CreateSession { timeout_ms } => {
                self.sessions.insert(session, *timeout_ms);
            }
            Txn::CloseSession { .. } => {
                self.sessions.remove(&session);
            }
            _ => {}
        }
        self.tree.apply(header, txn, &mut Unwatched);
        self.last = Zxid(header.zxid);
        self.replayed += 1;
        self.tree.settle();
        self.tree.publish(self.last);
        self.tree.reclaim(usize::MAX);
        self.compare(digest)
    }

    fn compare(&mut self, logged: Option<&TxnDigest>) -> Result<(), RestoreError> {
        let expected = match self.comparison {
            Comparison::Off => return Ok(()),
            Comparison::Waiting(snapshot) if self.last < snapshot.zxid => return Ok(()),
            Comparison::Waiting(snapshot) => {
                self.comparison = Comparison::On;
                // A snapshot whose digest lies between two records of a log says nothing.
                (self.last == snapshot.zxid).then_some(snapshot.digest)
            }
            Comparison::On => logged
                .filter(|digest| digest.version == DIGEST_VERSION)
                .map(|digest| digest.tree_digest),
        };
        let (Some(expected), found) = (expected, self.tree.digest()) else { return Ok(()) };
        let expected = expected as u64;
        if expected == found {
            return Ok(());
        }
        if self.beyond_ascii {
            self.doubtful_digests += 1;
            return Ok(());
        }
        let mismatch = Mismatch { zxid: self.last, expected, found };
        match self.on_mismatch {
            OnMismatch::Refuse => Err(RestoreError::Digest(mismatch)),
            OnMismatch::Count => {
                self.mismatches += 1;
                self.first_mismatch.get_or_insert(mismatch);
                Ok(())
            }
        }
    }

    /// The last transaction so far.
    #[must_use]
    pub fn last(&self) -> Zxid {
        self.last
    }

    #[must_use]
    pub fn finish(self) -> Restored {
        if let Comparison::Waiting(SnapshotDigest { zxid, .. }) = self.comparison {
            warn!(%zxid, last = %self.last, "the snapshot shows more than the log has");
        }
        for path in &self.closed {
            if self
                .tree
                .newest(path)
                .and_then(|znode| znode.acl())
                .is_some_and(|acl| **acl == nobody())
            {
                warn!(path, "neither snapshot nor log has this znode's ACL: only super may use it");
            }
        }
        let mut highest_sessions = self.highest_sessions;
        self.tree.owning_sessions().for_each(|session| highest_sessions.note(session));
        Restored {
            tree: self.tree,
            sessions: self.sessions,
            highest_sessions,
            last: self.last,
            replayed: self.replayed,
            doubtful_digests: self.doubtful_digests,
            mismatches: self.mismatches,
            first_mismatch: self.first_mismatch,
        }
    }
}

/// What a directory's records are restored with.
#[derive(Clone, Copy, Debug)]
pub struct RestoreSettings {
    pub tree: tree::Settings,
    pub on_mismatch: OnMismatch,
}

impl State for Restore {
    type Settings = RestoreSettings;
    type Error = RestoreError;

    fn empty(settings: RestoreSettings) -> Restore {
        Restore::empty(settings.tree).on_mismatch(settings.on_mismatch)
    }

    fn from_snapshot<R: Read>(
        settings: RestoreSettings,
        zxid: Zxid,
        snapshot: &mut SnapshotReader<R>,
    ) -> Result<Restore, RestoreError> {
        Restore::from_snapshot_with(settings.tree, settings.on_mismatch, zxid, snapshot)
    }

    fn replay(&mut self, record: &Record<'_>) -> Result<(), RestoreError> {
        Restore::replay(self, &record.header, &record.txn, record.digest.as_ref())
    }

    fn last(&self) -> Zxid {
        Restore::last(self)
    }
}

/// Stands for an ACL that is not known (yet).
fn nobody() -> [Acl; 1] {
    [Acl::new(0, "world", "anyone")]
}

fn creates_beyond_ascii(txn: &Txn<'_>) -> bool {
    match txn {
        Txn::Create { path, .. } => !path.is_ascii(),
        Txn::Multi(txns) => txns.iter().any(creates_beyond_ascii),
        _ => false,
    }
}

fn owned(acl: AclBytes<'_>) -> Vec<Acl> {
    acl.decode().unwrap_or_default().into_iter().map(Acl::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jute::record::Record as _;
    use crate::storage::replay::{Options, Replay, ReplayError};
    use crate::storage::snapshot::{SnapshotWriter, Trailer};
    use crate::tree::ephemerals::Types;
    use std::path::Path;

    /// TTL znodes were on where the fixtures were made.
    const SETTINGS: tree::Settings =
        tree::Settings { types: Types { extended: true, emulate_353: false }, digest: true };

    fn replayed(log: &[u8]) -> Restored {
        let mut restore = Restore::empty(SETTINGS);
        let options = Options { from: Zxid::ZERO, watermark: None };
        #[derive(Debug)]
        struct Failed(#[expect(dead_code, reason = "for the message")] String);
        impl From<ReplayError> for Failed {
            fn from(error: ReplayError) -> Failed {
                Failed(error.to_string())
            }
        }
        Replay::new(options)
            .log(Path::new("log.1"), Zxid(1), log, |record| {
                restore
                    .replay(&record.header, &record.txn, record.digest.as_ref())
                    .map_err(|error| Failed(error.to_string()))
            })
            .unwrap();
        restore.finish()
    }

    fn loaded(name: &str, zxid: i64, bytes: &[u8]) -> Restored {
        let mut reader = SnapshotReader::new(Path::new(name), bytes);
        Restore::from_snapshot(SETTINGS, Zxid(zxid), &mut reader).unwrap().finish()
    }

    type Content = Vec<(String, Option<Vec<u8>>, crate::record::data::StatPersisted, Vec<Acl>)>;

    fn content(restored: &mut Restored) -> Content {
        let reader = restored.tree.reader();
        let mut content: Vec<_> = reader
            .walk()
            .map(|znode| {
                let acl = znode.acl().map(|acl| acl.to_vec()).unwrap_or_default();
                let data = znode.data().map(<[u8]>::to_vec);
                (znode.path().to_owned(), data, znode.stat_persisted(), acl)
            })
            .collect();
        content.sort_by(|a, b| a.0.cmp(&b.0));
        content
    }

    #[test]
    fn zookeepers_log_of_every_type_gives_zookeepers_tree() {
        let log = include_bytes!("../../tests/compat/fixtures/disk/alltypes-log.1");
        let snapshot = include_bytes!("../../tests/compat/fixtures/disk/alltypes-snapshot.15");
        let mut by_log = replayed(log);
        let mut by_snapshot = loaded("snapshot.15", 0x15, snapshot);
        assert_eq!((by_log.last, by_log.replayed), (Zxid(0x15), 0x15));
        assert_eq!(by_log.tree.digest(), by_snapshot.tree.digest());
        assert_eq!(content(&mut by_log), content(&mut by_snapshot));
        assert_eq!(by_log.sessions, by_snapshot.sessions);
    }

    #[test]
    fn the_smallest_log_gives_the_digest_that_was_logged() {
        let restored = replayed(include_bytes!("../../tests/compat/fixtures/disk/tiny-log.1"));
        assert_eq!(restored.tree.digest(), 0x1_2bf1_d488);
        assert_eq!(restored.tree.znode_count(), 5);
        assert!(restored.sessions.is_empty());
        let empty = TreeWriter::new(SETTINGS);
        assert_eq!(empty.digest(), 0x51c6_d660);
    }

    /// ZooKeeper stamps a snapshot that it takes before any transaction with zeros for a digest.
    #[test]
    fn zookeepers_first_snapshot_loads() {
        let first = include_bytes!("../../tests/compat/fixtures/disk/tiny-snapshot.0");
        assert_eq!(loaded("snapshot.0", 0, first).tree.digest(), 0x51c6_d660);
    }

    /// ZooKeeper writes the ACLs first: those of znodes that come while it writes are missing.
    #[test]
    fn the_log_has_the_acls_that_a_fuzzy_snapshot_lacks() {
        let mut out = SnapshotWriter::new(Vec::new());
        out.sessions(std::iter::empty()).unwrap();
        out.acls(std::iter::empty()).unwrap();
        let stat = crate::record::data::StatPersisted { czxid: 6, ..Default::default() };
        out.node("", Some(b""), OPEN_ACL_NUMBER, &Default::default()).unwrap();
        out.node("/a", None, 7, &stat).unwrap();
        out.node("/b", None, 8, &stat).unwrap();
        let bytes = out.finish(Trailer::default()).unwrap();
        let mut reader = SnapshotReader::new(Path::new("snapshot.5"), &*bytes);
        let mut restore = Restore::from_snapshot(SETTINGS, Zxid(5), &mut reader).unwrap();
        let acl = [Acl::new(1, "digest", "a:b")];
        let mut encoded = Vec::new();
        Some(acl.to_vec()).write(&mut encoded);
        let kind = crate::record::txn::CreateKind::Node { create2: false, ephemeral: false };
        let txn = Txn::Create {
            kind,
            path: "/a".into(),
            data: None,
            acl: AclBytes::from_bytes(&encoded).unwrap(),
            parent_cversion: 1,
        };
        let header = TxnHeader { client_id: 1, cxid: 0, zxid: 6, time: 0, kind: txn.kind() };
        restore.replay(&header, &txn, None).unwrap();
        let restored = restore.finish();
        assert_eq!(**restored.tree.newest("/a").unwrap().acl().unwrap(), acl);
        assert_eq!(**restored.tree.newest("/b").unwrap().acl().unwrap(), nobody());
    }

    /// The numbers of lists are each server's own, and a snapshot may have any.
    #[test]
    fn acl_numbers_of_a_snapshot_are_not_kept() {
        let mut tree = TreeWriter::new(SETTINGS);
        let (one, other) = ([Acl::new(1, "ip", "::1")], [Acl::new(2, "ip", "::1")]);
        let same = [tree.load_acl(&one), tree.load_acl(&one), tree.load_acl(&other)];
        let numbers: Vec<i64> = tree.acl_lists().into_iter().map(|(number, _)| number).collect();
        assert_eq!(numbers, [1, 2, 3]);
        drop(same);
    }

    /// A snapshot with a root and nothing else, of the state after 5 by its name.
    fn stamped(zxid: i64, digest: u64) -> Result<Restore, RestoreError> {
        let mut out = SnapshotWriter::new(Vec::new());
        out.sessions([(SessionId(7), 4_000)].into_iter()).unwrap();
        out.acls(std::iter::empty()).unwrap();
        out.node("", Some(b""), OPEN_ACL_NUMBER, &Default::default()).unwrap();
        let digest = digest as i64;
        let digest = SnapshotDigest { zxid: Zxid(zxid), version: DIGEST_VERSION, digest };
        let bytes = out.finish(Trailer { digest: Some(digest), last_processed: None }).unwrap();
        let mut reader = SnapshotReader::new(Path::new("snapshot.5"), &*bytes);
        Restore::from_snapshot(SETTINGS, Zxid(5), &mut reader)
    }

    const OPENED: Txn<'_> = Txn::CreateSession { timeout_ms: 2_000 };
    const CLOSED: Txn<'_> = Txn::CloseSession { paths: None };

    /// Whether the next transaction, of session 9, is taken with this digest.
    fn takes(restore: &mut Restore, txn: &Txn<'_>, digest: u64) -> bool {
        let zxid = restore.last().next().0;
        let header = TxnHeader { client_id: 9, cxid: 0, zxid, time: 0, kind: txn.kind() };
        let digest = TxnDigest { version: DIGEST_VERSION, tree_digest: digest as i64 };
        restore.replay(&header, txn, Some(&digest)).is_ok()
    }

    /// The digest of a tree with nothing but what is always there.
    const RIGHT: u64 = 0x51c6_d660;

    #[test]
    fn a_fuzzy_snapshots_digest_counts_when_its_zxid_is_reached() {
        // At once where it is of the very state of the name; never where it is of before.
        assert!(stamped(5, RIGHT).is_ok());
        assert!(stamped(5, 1).is_err());
        assert!(stamped(4, 1).is_ok());
        // Until then the log's own digests are of states that the snapshot does not show.
        let mut restore = stamped(7, RIGHT).unwrap();
        assert!(takes(&mut restore, &OPENED, 1));
        assert!(takes(&mut restore, &OPENED, 1), "the snapshot's is the one that counts");
        assert!(!takes(&mut restore, &OPENED, 1), "after that each record's does");
        let mut restore = stamped(6, 1).unwrap();
        assert!(!takes(&mut restore, &OPENED, RIGHT));
    }

    #[test]
    fn sessions_are_those_of_the_snapshot_and_then_of_the_log() {
        let mut restore = stamped(4, 0).unwrap();
        assert!(takes(&mut restore, &OPENED, RIGHT));
        assert_eq!(restore.sessions, [(SessionId(7), 4_000), (SessionId(9), 2_000)].into());
        assert!(takes(&mut restore, &CLOSED, RIGHT));
        assert_eq!(restore.finish().sessions, [(SessionId(7), 4_000)].into());
    }

    #[test]
    fn a_digest_that_differs_is_refused() {
        let mut restore = Restore::empty(SETTINGS);
        let header = TxnHeader {
            client_id: 1,
            cxid: 0,
            zxid: 1,
            time: 0,
            kind: crate::record::op::code::ERROR,
        };
        let digest = TxnDigest { version: DIGEST_VERSION, tree_digest: 1 };
        let refused = restore.replay(&header, &Txn::Error { err: -101 }, Some(&digest));
        assert!(matches!(refused, Err(RestoreError::Digest(Mismatch { expected: 1, .. }))));
    }
}
