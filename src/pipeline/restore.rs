//! A data directory's records into a running state.
//!
//! The shell reads files; this takes what is in them: a snapshot, then every transaction after
//! it. The simulator restarts its servers with the same.
//!
//! Digests are held against what was logged. ZooKeeper's snapshots are fuzzy: such a one shows
//! some transactions beyond the zxid in its name, so nothing can be compared until its own
//! digest's zxid has been replayed, where both must be equal. Its ACLs are older than its znodes:
//! a znode may have one that is not there, and gets it from the log (ZOOKEEPER-4846).
//!
//! Replay takes what a server can have written, and refuses the rest by name: a tree made of
//! anything else could not be written again, or would be nobody's. What can be seen from a record
//! alone must hold always. Whether it fits the tree is asked where the tree is certainly the one
//! that the writer had; in the window of a fuzzy snapshot, a create of a znode that exists and a
//! delete of one that does not are how it has to be.
//!
//! A member of an ensemble does not publish the last transactions of its log: a leader may have them
//! cut, and then they are taken back in memory (`roll_back.rs`). Once it serves, all is published.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::Read;

use tracing::warn;

use crate::path::{self, BadPath};
use crate::record::data::{Acl, AclBytes};
use crate::record::txn::{CreateKind, DIGEST_VERSION, Txn, TxnDigest, TxnHeader};
use crate::storage::recovery::State;
use crate::storage::replay::Record;
use crate::storage::snapshot::{Item, SnapshotDigest, SnapshotError, SnapshotReader};
use crate::tree::change::Unwatched;
use crate::tree::ephemerals::{CONTAINER_OWNER, TTL_MS_MAX, missing_for_ttl};
use crate::tree::{self, Irregular, LoadedAcl, Misplaced, OPEN_ACL_NUMBER, TreeWriter};
use crate::types::{HighestSessions, SessionId, Zxid};
use crate::zab::history::Cache;

/// Why what was read is not a state to go on from.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("snapshot {zxid}: znode {path:?} {misplaced}; no server writes that")]
    Misplaced { zxid: Zxid, path: String, misplaced: Misplaced },
    #[error("snapshot {zxid}: a znode has the path {path:?}: {bad}; no server writes that")]
    SnapshotPath { zxid: Zxid, path: String, bad: BadPath },
    /// Whatever the tree is.
    #[error("transaction {zxid} {impossible}; no server writes that")]
    Impossible { zxid: Zxid, impossible: Impossible },
    /// To the tree that the writer had.
    #[error(
        "transaction {zxid} {irregular}; no server writes that, so transactions before it are \
         missing or not those that were written; {ALL_THE_SAME}"
    )]
    Irregular { zxid: Zxid, irregular: Irregular },
    #[error("{0}; {ALL_THE_SAME}")]
    Digest(Mismatch),
    #[error(
        "{count} znodes, such as {path:?}, have a time to live, and without {setting} they would be \
         taken for ephemerals of sessions that are over, and deleted: set it; nothing has been changed"
    )]
    Ttl { path: String, count: usize, setting: &'static str },
}

/// The way out for who would rather have a doubtful tree than none.
const ALL_THE_SAME: &str = "ringkeeper.digestMismatch=warn serves what there is all the same";

/// What no server writes, whatever its tree is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    #[error("is about the path {path:?}: {bad}")]
    Path { path: String, bad: BadPath },
    #[error("creates the root")]
    Root,
    #[error("creates {path:?} with a TTL of {ttl} ms")]
    Ttl { path: String, ttl: i64 },
    #[error("creates the ephemeral znode {path:?} of no session")]
    OfNoSession { path: String },
    #[error("has a part of type {kind}, which a multi cannot have")]
    Part { kind: i32 },
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

/// A transaction that is applied and not published.
#[derive(Clone, Copy, Debug)]
pub struct Unpublished {
    pub zxid: Zxid,
    /// The tree's, after it.
    pub digest: u64,
    pub session: Option<SessionChange>,
    /// What it brought to be kept in memory.
    bytes: usize,
}

/// A session's timeout before and after a transaction; `None` where it is not there.
#[derive(Clone, Copy, Debug)]
pub struct SessionChange {
    pub session: SessionId,
    pub before: Option<i32>,
    pub after: Option<i32>,
}

/// A state to go on from.
pub struct Restored {
    pub tree: TreeWriter,
    /// After the last transaction.
    pub sessions: BTreeMap<SessionId, i32>,
    /// The last transactions, where they are not published, and the digest before them.
    pub unpublished: VecDeque<Unpublished>,
    pub published_digest: u64,
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
    /// From the transaction after this one on, the tree is certainly the one that the writer of the
    /// log had; `None`: it may be so already, and cannot be told.
    pub certain_after: Option<Zxid>,
    /// Whether there are paths whose digest depends on the process that writes it.
    pub beyond_ascii: bool,
}

/// What to compare digests with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Off,
    /// Once this has been replayed: what the fuzzy snapshot says of that moment.
    Waiting(SnapshotDigest),
    On,
}

/// From where on the tree is the one that the writer of the log had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Window {
    /// After this transaction: what came before may show already.
    Until(Zxid),
    /// It cannot be told.
    Unknown,
}

impl Window {
    /// Of a snapshot of this name.
    fn of(zxid: Zxid, digest: Option<SnapshotDigest>) -> Window {
        match digest.map(|digest| digest.zxid) {
            // What was applied last when it was finished; zero where nothing had been since the
            // start (`DataTree.serializeZxidDigest`).
            Some(Zxid::ZERO) => Window::Until(zxid),
            Some(finished) if zxid <= finished => Window::Until(finished),
            Some(_) | None => Window::Unknown,
        }
    }
}

/// A state in the making.
pub struct Restore {
    tree: TreeWriter,
    sessions: BTreeMap<SessionId, i32>,
    highest_sessions: HighestSessions,
    last: Zxid,
    replayed: u64,
    comparison: Comparison,
    window: Window,
    /// So much is not published.
    unpublished_max: Cache,
    unpublished: VecDeque<Unpublished>,
    unpublished_bytes: usize,
    published_digest: u64,
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
        let tree = TreeWriter::new(settings);
        Restore {
            unpublished_max: ALL_PUBLISHED,
            unpublished: VecDeque::new(),
            unpublished_bytes: 0,
            published_digest: tree.digest(),
            tree,
            sessions: BTreeMap::new(),
            highest_sessions: HighestSessions::default(),
            last: Zxid::ZERO,
            replayed: 0,
            comparison: if settings.digest { Comparison::On } else { Comparison::Off },
            window: Window::Until(Zxid::ZERO),
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

    /// The same, of a member of an ensemble: so many of the last transactions are not published.
    #[must_use]
    pub fn unpublished(mut self, unpublished_max: Cache) -> Restore {
        // What is published is counted for itself.
        self.tree.seal(self.last);
        Restore { unpublished_max, ..self }
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
                    // The root's path is empty here.
                    if !path.is_empty()
                        && let Err(bad) = path::validate_stored(&path)
                    {
                        let path = path.into_owned();
                        return Err(RestoreError::SnapshotPath { zxid, path, bad });
                    }
                    if let Err(misplaced) = tree.load_znode(&path, data, acl, stat) {
                        let path = path.into_owned();
                        return Err(RestoreError::Misplaced { zxid, path, misplaced });
                    }
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
            unpublished_max: ALL_PUBLISHED,
            unpublished: VecDeque::new(),
            unpublished_bytes: 0,
            published_digest: tree.digest(),
            tree,
            sessions,
            highest_sessions,
            last: zxid,
            replayed: 0,
            comparison,
            window: Window::of(zxid, digest),
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
        let zxid = Zxid(header.zxid);
        possible(header, txn)
            .map_err(|impossible| RestoreError::Impossible { zxid, impossible })?;
        self.beyond_ascii |= creates_beyond_ascii(txn);
        let session = SessionId(header.client_id);
        self.highest_sessions.note(session);
        let change = |before, after| Some(SessionChange { session, before, after });
        let session = match txn {
            Txn::CreateSession { timeout_ms } => {
                change(self.sessions.insert(session, *timeout_ms), Some(*timeout_ms))
            }
            Txn::CloseSession { .. } => change(self.sessions.remove(&session), None),
            _ => None,
        };
        self.tree.apply(header, txn, &mut Unwatched);
        let irregular = self.tree.take_irregular();
        if let Some(irregular) = irregular.filter(|_| self.is_writers_tree(zxid)) {
            return Err(RestoreError::Irregular { zxid, irregular });
        }
        self.last = zxid;
        self.replayed += 1;
        self.tree.settle();
        self.publish_all_but_the_last(session, data_bytes(txn));
        self.tree.reclaim(usize::MAX);
        self.compare(digest)
    }

    /// The transaction that was just applied may be one that is not published yet.
    fn publish_all_but_the_last(&mut self, session: Option<SessionChange>, bytes: usize) {
        let Cache { count_max, bytes_max } = self.unpublished_max;
        if count_max == 0 {
            self.published_digest = self.tree.digest();
            self.tree.publish(self.last);
            return;
        }
        // Each may be taken back by itself.
        self.tree.seal(self.last);
        let digest = self.tree.digest();
        self.unpublished.push_back(Unpublished { zxid: self.last, digest, session, bytes });
        self.unpublished_bytes += bytes;
        while count_max < self.unpublished.len() || bytes_max < self.unpublished_bytes {
            let first = self.unpublished.pop_front().expect("something is too much");
            self.unpublished_bytes -= first.bytes;
            self.published_digest = first.digest;
            self.tree.publish(first.zxid);
        }
    }

    /// Whether the tree before the transaction `zxid` is the one that its writer had.
    fn is_writers_tree(&self, zxid: Zxid) -> bool {
        let is_certain = match self.window {
            Window::Until(end) => end < zxid,
            Window::Unknown => false,
        };
        // Who wants a doubtful tree served has it.
        is_certain && self.on_mismatch == OnMismatch::Refuse
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
            unpublished: self.unpublished,
            published_digest: self.published_digest,
            highest_sessions,
            last: self.last,
            replayed: self.replayed,
            doubtful_digests: self.doubtful_digests,
            mismatches: self.mismatches,
            first_mismatch: self.first_mismatch,
            certain_after: match self.window {
                Window::Until(end) if self.mismatches == 0 => Some(end),
                Window::Until(_) | Window::Unknown => None,
            },
            beyond_ascii: self.beyond_ascii,
        }
    }
}

/// What a directory's records are restored with.
#[derive(Clone, Copy, Debug)]
pub struct RestoreSettings {
    pub tree: tree::Settings,
    pub on_mismatch: OnMismatch,
    /// How many of the last transactions are not published: none of a server by itself.
    pub unpublished_max: Cache,
}

/// All is published.
pub const ALL_PUBLISHED: Cache = Cache { count_max: 0, bytes_max: 0 };

impl State for Restore {
    type Settings = RestoreSettings;
    type Error = RestoreError;

    fn empty(settings: RestoreSettings) -> Restore {
        let RestoreSettings { tree, on_mismatch, unpublished_max } = settings;
        Restore::empty(tree).on_mismatch(on_mismatch).unpublished(unpublished_max)
    }

    fn from_snapshot<R: Read>(
        settings: RestoreSettings,
        zxid: Zxid,
        snapshot: &mut SnapshotReader<R>,
    ) -> Result<Restore, RestoreError> {
        let RestoreSettings { tree, on_mismatch, unpublished_max } = settings;
        let restore = Restore::from_snapshot_with(tree, on_mismatch, zxid, snapshot)?;
        Ok(restore.unpublished(unpublished_max))
    }

    fn replay(&mut self, record: &Record<'_>) -> Result<(), RestoreError> {
        Restore::replay(self, &record.header, &record.txn, record.digest.as_ref())
    }

    fn last(&self) -> Zxid {
        Restore::last(self)
    }

    fn is_settled(&self) -> bool {
        let last = self.last;
        !matches!(self.comparison, Comparison::Waiting(digest) if last < digest.zxid)
    }

    /// A znode with a TTL must not be taken for the ephemeral of a session that is over: it would
    /// be deleted, because a setting is gone.
    fn accept(&self) -> Result<(), RestoreError> {
        let types = self.tree.types();
        let over = self.tree.owning_sessions().filter(|id| !self.sessions.contains_key(id));
        let ttls = over.filter_map(|id| Some((id, missing_for_ttl(id.0, types)?)));
        let ttls: Vec<_> = ttls.collect();
        let Some((first, setting)) = ttls.first() else { return Ok(()) };
        let count = ttls.iter().map(|(id, _)| self.tree.ephemerals_of(*id).count()).sum();
        let path = self.tree.ephemerals_of(*first).next().unwrap_or_default().to_owned();
        Err(RestoreError::Ttl { path, count, setting })
    }
}

/// Stands for an ACL that is not known (yet).
fn nobody() -> [Acl; 1] {
    [Acl::new(0, "world", "anyone")]
}

/// Whether some server can have written this, on whatever tree.
pub(super) fn possible(header: &TxnHeader, txn: &Txn<'_>) -> Result<(), Impossible> {
    match txn {
        Txn::CreateSession { .. } | Txn::Error { .. } => Ok(()),
        Txn::Create { kind, path, .. } => {
            stored_path(path)?;
            let is_no_session = [0, CONTAINER_OWNER].contains(&header.client_id);
            match kind {
                _ if path::is_root(path) => Err(Impossible::Root),
                CreateKind::Ttl(ttl) if !(1..=TTL_MS_MAX).contains(ttl) => {
                    Err(Impossible::Ttl { path: path.as_ref().into(), ttl: *ttl })
                }
                CreateKind::Node { ephemeral: true, .. } if is_no_session => {
                    Err(Impossible::OfNoSession { path: path.as_ref().into() })
                }
                CreateKind::Node { .. } | CreateKind::Container | CreateKind::Ttl(_) => Ok(()),
            }
        }
        Txn::Delete { path }
        | Txn::DeleteContainer { path }
        | Txn::SetData { path, .. }
        | Txn::Reconfig { path, .. }
        | Txn::SetAcl { path, .. }
        | Txn::Check { path, .. } => stored_path(path),
        Txn::CloseSession { paths } => {
            paths.iter().flatten().try_for_each(|path| stored_path(path))
        }
        Txn::Multi(parts) => parts.iter().try_for_each(|part| match part {
            Txn::Create { .. }
            | Txn::Delete { .. }
            | Txn::SetData { .. }
            | Txn::Check { .. }
            | Txn::Error { .. } => possible(header, part),
            Txn::CreateSession { .. }
            | Txn::CloseSession { .. }
            | Txn::DeleteContainer { .. }
            | Txn::Reconfig { .. }
            | Txn::SetAcl { .. }
            | Txn::Multi(_) => Err(Impossible::Part { kind: part.kind() }),
        }),
    }
}

fn stored_path(path: &str) -> Result<(), Impossible> {
    path::validate_stored(path).map_err(|bad| Impossible::Path { path: path.to_owned(), bad })
}

pub(super) fn creates_beyond_ascii(txn: &Txn<'_>) -> bool {
    match txn {
        Txn::Create { path, .. } => !path.is_ascii(),
        Txn::Multi(txns) => txns.iter().any(creates_beyond_ascii),
        _ => false,
    }
}

/// How much data a transaction brings.
fn data_bytes(txn: &Txn<'_>) -> usize {
    match txn {
        Txn::Create { data, .. } | Txn::SetData { data, .. } | Txn::Reconfig { data, .. } => {
            data.map_or(0, <[u8]>::len)
        }
        Txn::Multi(parts) => parts.iter().map(data_bytes).sum(),
        _ => 0,
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
    use crate::tree::How;
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
        let kind = CreateKind::Node { create2: false, ephemeral: false };
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
        stamped_with(SETTINGS, zxid, digest)
    }

    fn stamped_with(
        settings: tree::Settings,
        zxid: i64,
        digest: u64,
    ) -> Result<Restore, RestoreError> {
        let mut out = SnapshotWriter::new(Vec::new());
        out.sessions([(SessionId(7), 4_000)].into_iter()).unwrap();
        out.acls(std::iter::empty()).unwrap();
        out.node("", Some(b""), OPEN_ACL_NUMBER, &Default::default()).unwrap();
        let digest = digest as i64;
        let digest = SnapshotDigest { zxid: Zxid(zxid), version: DIGEST_VERSION, digest };
        let bytes = out.finish(Trailer { digest: Some(digest), last_processed: None }).unwrap();
        let mut reader = SnapshotReader::new(Path::new("snapshot.5"), &*bytes);
        Restore::from_snapshot(settings, Zxid(5), &mut reader)
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

    fn create(kind: CreateKind, path: &str) -> Txn<'_> {
        let acl = AclBytes::OPEN;
        Txn::Create { kind, path: path.into(), data: None, acl, parent_cversion: -1 }
    }

    const NODE: CreateKind = CreateKind::Node { create2: false, ephemeral: false };
    const EPHEMERAL: CreateKind = CreateKind::Node { create2: false, ephemeral: true };

    fn node(path: &str) -> Txn<'_> {
        create(NODE, path)
    }

    fn delete(path: &str) -> Txn<'_> {
        Txn::Delete { path: path.into() }
    }

    fn set(path: &str, version: i32) -> Txn<'_> {
        Txn::SetData { path: path.into(), data: None, version }
    }

    /// Applies transactions of session 7 without digests; what the last comes to.
    fn replay(restore: &mut Restore, txns: &[Txn<'_>]) -> Result<(), RestoreError> {
        let (last, before) = txns.split_last().unwrap();
        let mut next = |txn: &Txn<'_>| {
            let zxid = restore.last().next().0;
            let header = TxnHeader { client_id: 7, cxid: 0, zxid, time: 0, kind: txn.kind() };
            restore.replay(&header, txn, None)
        };
        before.iter().for_each(|txn| next(txn).unwrap());
        next(last)
    }

    /// Such a record was taken, and no snapshot could be written of the tree any more.
    #[test]
    fn what_no_server_writes_is_refused_whatever_the_tree_is() {
        let ttl = |ttl| create(CreateKind::Ttl(ttl), "/t");
        let close = |path: &'static str| Txn::CloseSession { paths: Some(vec![path.into()]) };
        let acl =
            |path: &'static str| Txn::SetAcl { path: path.into(), acl: AclBytes::OPEN, version: 1 };
        let impossible = [
            node("/x/"),
            create(EPHEMERAL, "/x/"),
            create(CreateKind::Container, "/x//"),
            node("/x/."),
            node("/x/.."),
            node("/x\0"),
            node("/x\u{1}"),
            node("x"),
            node(""),
            node("/"),
            ttl(0),
            ttl(-1),
            ttl(i64::MIN),
            ttl(TTL_MS_MAX + 1),
            delete("/x/"),
            Txn::DeleteContainer { path: "".into() },
            set("/x/", 1),
            acl("//x"),
            Txn::Reconfig { path: "zookeeper".into(), data: None, version: 1 },
            close("/x/"),
            Txn::Multi(vec![node("/y"), node("/x/")]),
            Txn::Multi(vec![acl("/x")]),
            Txn::Multi(vec![Txn::Multi(Vec::new())]),
            Txn::Multi(vec![Txn::CloseSession { paths: None }]),
            Txn::Multi(vec![Txn::DeleteContainer { path: "/x".into() }]),
        ];
        // From the beginning, in the window of a fuzzy snapshot, and where digests may differ.
        let restores: [fn() -> Restore; 3] = [
            || Restore::empty(SETTINGS),
            || stamped(9, 1).unwrap(),
            || Restore::empty(SETTINGS).on_mismatch(OnMismatch::Count),
        ];
        for txn in &impossible {
            for restore in restores {
                let mut restore = restore();
                let next = restore.last().next().next();
                let refused = replay(&mut restore, &[node("/x"), txn.clone()]);
                let Err(RestoreError::Impossible { zxid, .. }) = refused else {
                    panic!("{txn:?}: {refused:?}")
                };
                assert_eq!(zxid, next);
            }
        }
        let mut restore = Restore::empty(SETTINGS);
        let refused = replay(&mut restore, &[node("/x"), node("/x/")]).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "transaction 0x2 is about the path \"/x/\": Path must not end with / character; no \
             server writes that"
        );
        let nobodys = TxnHeader { client_id: 0, cxid: 0, zxid: 3, time: 0, kind: 1 };
        let refused = restore.replay(&nobodys, &create(EPHEMERAL, "/e"), None);
        assert!(matches!(refused, Err(RestoreError::Impossible { .. })));
    }

    #[test]
    fn what_does_not_fit_the_writers_tree_is_refused() {
        let close = |path: &'static str| Txn::CloseSession { paths: Some(vec![path.into()]) };
        let acl = |version| Txn::SetAcl { path: "/a".into(), acl: AclBytes::OPEN, version };
        let before =
            || vec![node("/a"), node("/a/b"), create(EPHEMERAL, "/e"), set("/a", 1), node("/c")];
        let irregular = [
            (node("/a"), How::CreatedTwice),
            (node("/nope/b"), How::CreatedWithoutParent),
            (create(CreateKind::Ttl(5), "/e/x"), How::CreatedBelowEphemeral),
            (delete("/a"), How::DeletedWithChildren),
            (Txn::DeleteContainer { path: "/a".into() }, How::DeletedWithChildren),
            (delete("/nope"), How::DeletedWhereNoneIs),
            (delete("/nope/b"), How::DeletedWhereNoneIs),
            (close("/c"), How::DeletedOfAnother),
            (set("/nope", 1), How::SetWhereNoneIs),
            (set("/a", 1), How::Version { set: 1, before: 1 }),
            (set("/c", -1), How::Version { set: -1, before: 0 }),
            (acl(7), How::Version { set: 7, before: 0 }),
            (Txn::Multi(vec![node("/d"), delete("/nope")]), How::DeletedWhereNoneIs),
        ];
        for (txn, how) in irregular {
            let whole =
                |restore: &mut Restore| replay(restore, &[before(), vec![txn.clone()]].concat());
            let refused = whole(&mut Restore::empty(SETTINGS));
            let Err(RestoreError::Irregular { zxid, irregular }) = refused else {
                panic!("{txn:?}: {refused:?}")
            };
            assert_eq!((zxid, irregular.how), (Zxid(6), how), "{txn:?}");
            // A snapshot that was finished at 11 may show what comes up to then already.
            let undigested = tree::Settings { digest: false, ..SETTINGS };
            let mut fuzzy = stamped_with(undigested, 10, 1).unwrap();
            assert!(whole(&mut fuzzy).is_err(), "only up to 10: {txn:?}");
            let mut fuzzy = stamped_with(undigested, 11, 1).unwrap();
            assert!(whole(&mut fuzzy).is_ok(), "{txn:?}");
            // And it is served all the same where the operator wants that.
            let mut doubtful = Restore::empty(SETTINGS).on_mismatch(OnMismatch::Count);
            assert!(whole(&mut doubtful).is_ok(), "{txn:?}");
        }
        // What looks like it, and is not.
        for txn in [
            acl(1),
            set("/c", 1),
            close("/e"),
            close("/nope"),
            close("/nope/b"),
            close("/zookeeper"),
            node("/zookeeper/config"),
            delete("/zookeeper/config"),
            Txn::Reconfig { path: "/zookeeper/config".into(), data: None, version: 0 },
            Txn::Check { path: "/nope".into(), version: 3 },
            Txn::Multi(vec![node("/a"), Txn::Error { err: -110 }]),
            Txn::Multi(vec![delete("/a/b"), delete("/a"), node("/a"), set("/a", 1)]),
            Txn::Multi(Vec::new()),
        ] {
            let mut restore = Restore::empty(SETTINGS);
            let taken = replay(&mut restore, &[before(), vec![txn.clone()]].concat());
            assert!(taken.is_ok(), "{txn:?}: {taken:?}");
        }
    }

    /// -2, -1 and then 0, or -2 and then 0: it depends on the release.
    #[test]
    fn versions_run_over_as_any_server_has_them() {
        for (before, set_to, is_right) in [
            (i32::MAX, i32::MIN, true),
            (-2, -1, true),
            (-2, 0, true),
            (-1, 0, true),
            (0, 0, false),
            (-3, 0, false),
        ] {
            let stat = crate::record::data::StatPersisted { version: before, ..Default::default() };
            let mut restore = Restore::empty(SETTINGS);
            restore.tree.load_znode("/v", None, &LoadedAcl::OPEN, stat).unwrap();
            let taken = replay(&mut restore, &[set("/v", set_to)]);
            assert_eq!(taken.is_ok(), is_right, "{set_to} after {before}");
        }
    }

    #[test]
    fn znodes_of_a_snapshot_are_where_they_can_be() {
        let snapshot = |znodes: &[(&str, i64)]| {
            let mut out = SnapshotWriter::new(Vec::new());
            out.sessions(std::iter::empty()).unwrap();
            out.acls(std::iter::empty()).unwrap();
            out.node("", Some(b""), OPEN_ACL_NUMBER, &Default::default()).unwrap();
            for (path, ephemeral_owner) in znodes {
                let ephemeral_owner = *ephemeral_owner;
                let stat =
                    crate::record::data::StatPersisted { ephemeral_owner, ..Default::default() };
                out.node(path, None, OPEN_ACL_NUMBER, &stat).unwrap();
            }
            let bytes = out.finish(Trailer::default()).unwrap();
            let mut reader = SnapshotReader::new(Path::new("snapshot.5"), &*bytes);
            Restore::from_snapshot(SETTINGS, Zxid(5), &mut reader).map(drop)
        };
        assert!(snapshot(&[("/a", 0), ("/a/b", 7), ("/a/c", 0)]).is_ok());
        for misplaced in
            [[("/a/b", 0), ("/a", 0)], [("/a", 0), ("/a", 0)], [("/a", 7), ("/a/b", 0)]]
        {
            let refused = snapshot(&misplaced);
            assert!(matches!(refused, Err(RestoreError::Misplaced { .. })), "{misplaced:?}");
        }
        for path in ["/a/.", "/..", "/a\u{1}", "/a\0"] {
            let refused = snapshot(&[("/a", 0), (path, 0)]);
            assert!(matches!(refused, Err(RestoreError::SnapshotPath { .. })), "{path:?}");
        }
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
