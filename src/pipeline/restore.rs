//! A data directory's records into a running state.
//!
//! The shell reads files; this takes what is in them: a snapshot, then every transaction after
//! it. The simulator restarts its servers with the same.
//!
//! Digests are held against what was logged. ZooKeeper's snapshots are fuzzy: such a one shows
//! some transactions beyond the zxid in its name, so nothing can be compared until its own
//! digest's zxid has been replayed, where both must be equal.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;

use crate::jute::Reader;
use crate::jute::record::Record as _;
use crate::record::data::{Acl, AclBytes};
use crate::record::txn::{DIGEST_VERSION, Txn, TxnDigest, TxnHeader};
use crate::storage::snapshot::{Item, SnapshotDigest, SnapshotError, SnapshotReader};
use crate::tree::change::Unwatched;
use crate::tree::{self, LoadedAcl, OPEN_ACL_NUMBER, TreeWriter};
use crate::types::{SessionId, Zxid};

/// Why what was read is not a state to go on from.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("snapshot {zxid}: znode {path:?} comes before its parent, or twice")]
    Orphan { zxid: Zxid, path: String },
    #[error("snapshot {zxid}: znode {path:?} has ACL {number}, which is not in the snapshot")]
    UnknownAcl { zxid: Zxid, path: String, number: i64 },
    #[error(
        "the tree after {zxid} has digest {found:#x}, but {expected:#x} was written: the data is \
         damaged, or was written by a server that applied it differently"
    )]
    Digest { zxid: Zxid, expected: u64, found: u64 },
}

/// A state to go on from.
pub struct Restored {
    pub tree: TreeWriter,
    pub sessions: BTreeMap<SessionId, i32>,
    /// The last transaction.
    pub last: Zxid,
    /// Transactions replayed since the snapshot.
    pub replayed: u64,
    /// Digests that differ, in a tree with paths beyond ASCII: Java digests these by the
    /// character set that its process happened to have, so it is an alarm and no proof.
    pub doubtful_digests: u64,
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
    last: Zxid,
    replayed: u64,
    comparison: Comparison,
    beyond_ascii: bool,
    doubtful_digests: u64,
}

impl Restore {
    /// Begins with no snapshot: the tree as ZooKeeper makes it.
    #[must_use]
    pub fn empty(settings: tree::Settings) -> Restore {
        Restore {
            tree: TreeWriter::new(settings),
            sessions: BTreeMap::new(),
            last: Zxid::ZERO,
            replayed: 0,
            comparison: if settings.digest { Comparison::On } else { Comparison::Off },
            beyond_ascii: false,
            doubtful_digests: 0,
        }
    }

    /// Begins with a whole snapshot; `zxid` is the one in its name.
    pub fn from_snapshot<R: Read>(
        settings: tree::Settings,
        zxid: Zxid,
        snapshot: &mut SnapshotReader<R>,
    ) -> Result<Restore, RestoreError> {
        let mut tree = TreeWriter::without_reserved(settings);
        let mut sessions = BTreeMap::new();
        let mut acls: HashMap<i64, LoadedAcl> = HashMap::new();
        let mut beyond_ascii = false;
        while let Some(item) = snapshot.next()? {
            match item {
                Item::Session { id, timeout_ms } => {
                    sessions.insert(id, timeout_ms);
                }
                Item::Acl { id, acl } => {
                    acls.insert(id, tree.load_acl(id, owned(acl)));
                }
                Item::Node { path, data, acl_id, stat } => {
                    beyond_ascii |= !path.is_ascii();
                    let acl = match acl_id {
                        OPEN_ACL_NUMBER => &LoadedAcl::OPEN,
                        number => acls.get(&number).ok_or_else(|| RestoreError::UnknownAcl {
                            zxid,
                            path: path.clone().into_owned(),
                            number,
                        })?,
                    };
                    tree.load_znode(&path, data, acl, stat)
                        .ok_or_else(|| RestoreError::Orphan { zxid, path: path.into_owned() })?;
                }
            }
        }
        drop(acls);
        tree.finish_loading();
        tree.publish(zxid);
        let digest = snapshot.trailer().and_then(|trailer| trailer.digest);
        let comparison = match digest.filter(|digest| digest.version == DIGEST_VERSION) {
            _ if !settings.digest => Comparison::Off,
            Some(digest) if zxid <= digest.zxid => Comparison::Waiting(digest),
            _ => Comparison::On,
        };
        let mut restore = Restore {
            tree,
            sessions,
            last: zxid,
            replayed: 0,
            comparison,
            beyond_ascii,
            doubtful_digests: 0,
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
        if let Txn::Create { path, .. } = txn {
            self.beyond_ascii |= !path.is_ascii();
        }
        let session = SessionId(header.client_id);
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
        self.tree.settle(self.last);
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
        Err(RestoreError::Digest { zxid: self.last, expected, found })
    }

    /// The last transaction so far.
    #[must_use]
    pub fn last(&self) -> Zxid {
        self.last
    }

    #[must_use]
    pub fn finish(self) -> Restored {
        Restored {
            tree: self.tree,
            sessions: self.sessions,
            last: self.last,
            replayed: self.replayed,
            doubtful_digests: self.doubtful_digests,
        }
    }
}

fn owned(acl: AclBytes<'_>) -> Vec<Acl> {
    let mut reader = Reader::new(acl.as_bytes());
    Option::<Vec<Acl>>::read(&mut reader).ok().flatten().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::replay::{Options, Replay, ReplayError};
    use crate::tree::ephemerals::Types;
    use std::path::Path;

    /// TTL znodes were on where the fixtures were made.
    const SETTINGS: tree::Settings =
        tree::Settings { types: Types { extended: true, emulate_353: false }, digest: true };

    fn replayed(log: &[u8]) -> Restored {
        let mut restore = Restore::empty(SETTINGS);
        let options = Options {
            from: Zxid::ZERO,
            watermark: None,
            payload_bytes_max: crate::jute::FIELD_BYTES_MAX,
        };
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
        let log = include_bytes!("../../tests/compat/fixtures/alltypes-log.1");
        let snapshot = include_bytes!("../../tests/compat/fixtures/alltypes-snapshot.15");
        let mut by_log = replayed(log);
        let mut by_snapshot = loaded("snapshot.15", 0x15, snapshot);
        assert_eq!((by_log.last, by_log.replayed), (Zxid(0x15), 0x15));
        assert_eq!(by_log.tree.digest(), by_snapshot.tree.digest());
        assert_eq!(content(&mut by_log), content(&mut by_snapshot));
        assert_eq!(by_log.sessions, by_snapshot.sessions);
    }

    #[test]
    fn the_smallest_log_gives_the_digest_that_was_logged() {
        let restored = replayed(include_bytes!("../../tests/compat/fixtures/tiny-log.1"));
        assert_eq!(restored.tree.digest(), 0x1_2bf1_d488);
        assert_eq!(restored.tree.znode_count(), 5);
        assert!(restored.sessions.is_empty());
        let empty = TreeWriter::new(SETTINGS);
        assert_eq!(empty.digest(), 0x51c6_d660);
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
        assert!(matches!(refused, Err(RestoreError::Digest { expected: 1, .. })));
    }
}
