//! A transaction into changes of the tree. Total and deterministic: the same log gives the same
//! tree everywhere.
//!
//! One way for all who apply: the leader as it makes a transaction, learners, and the replay of
//! a log over a snapshot that already shows some of it (ZooKeeper's are fuzzy). So each rule
//! here holds its effect against what is there: a create of a znode that exists, a delete of one
//! that does not, are answers, never faults (`disk-format.md` section 7 of the project's specs;
//! `DataTree.processTxn`). But what does not fit is noted (`Irregular`): over a tree that is the
//! one that the writer had, it cannot be.

use std::fmt;
use std::sync::Arc;

use super::TreeWriter;
use super::cell::{NextData, NodeRef, NumberedAcl};
use super::change::{ChangeKind, Changes};
use super::ephemerals::Owner;
use super::quota::{self, StatsTrack};
use crate::record::code::Code;
use crate::record::data::{Acl, AclBytes, StatPersisted};
use crate::record::txn::{CreateKind, Txn, TxnHeader};
use crate::types::{SessionId, Zxid};

/// A transaction that no server makes of the tree that it was applied to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Irregular {
    pub path: String,
    pub how: How,
}

/// How a transaction does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    CreatedTwice,
    CreatedWithoutParent,
    CreatedBelowEphemeral,
    DeletedWithChildren,
    DeletedWhereNoneIs,
    /// By the end of a session that does not own it.
    DeletedOfAnother,
    SetWhereNoneIs,
    /// The version of data or ACL that it sets, and the one that was there before.
    Version {
        set: i32,
        before: i32,
    },
}

impl fmt::Display for Irregular {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        match self.how {
            How::CreatedTwice => write!(f, "creates {path:?}, which exists"),
            How::CreatedWithoutParent => write!(f, "creates {path:?}, whose parent does not exist"),
            How::CreatedBelowEphemeral => write!(f, "creates {path:?} below an ephemeral znode"),
            How::DeletedWithChildren => write!(f, "deletes {path:?}, which has children"),
            How::DeletedWhereNoneIs => write!(f, "deletes {path:?}, which does not exist"),
            How::DeletedOfAnother => {
                write!(f, "ends a session and deletes {path:?}, which is not the session's")
            }
            How::SetWhereNoneIs => write!(f, "changes {path:?}, which does not exist"),
            How::Version { set, before } => {
                write!(f, "gives {path:?} the version {set}, which does not follow {before}")
            }
        }
    }
}

/// Why a znode is deleted.
#[derive(Clone, Copy, Debug)]
enum Cause {
    /// A client asked for it, or the server did for a container or a TTL.
    Request,
    /// Its session is over.
    Closed(SessionId),
    /// Its parent is deleted.
    Parent,
}

/// Whether a server may give a znode the version `set` after `before`. ZooKeeper passes over -1
/// since 3.8.
fn follows(set: i32, before: i32) -> bool {
    let next = before.wrapping_add(1);
    set == next || (next == -1 && set == 0)
}

impl TreeWriter {
    /// What did not fit, first, since this was last asked.
    pub fn take_irregular(&mut self) -> Option<Irregular> {
        self.irregular.take()
    }

    /// Reserved znodes are no rule's: what is below `/zookeeper` came with the releases, and each
    /// server of an ensemble writes its configuration itself.
    fn note(&mut self, path: &str, how: How) {
        if self.irregular.is_none() && !super::is_reserved(path) {
            self.irregular = Some(Irregular { path: path.to_owned(), how });
        }
    }

    /// Applies one transaction whole. It stays open: `settle` or `undo_to` ends it.
    pub fn apply(&mut self, header: &TxnHeader, txn: &Txn<'_>, changes: &mut dyn Changes) -> Code {
        match txn {
            Txn::Create { kind, path, data, acl, parent_cversion } => {
                let owner = match kind {
                    CreateKind::Node { ephemeral: false, .. } => Owner::Nobody,
                    CreateKind::Node { ephemeral: true, .. } => Owner::Session(header.client_id),
                    CreateKind::Container => Owner::Container,
                    CreateKind::Ttl(ttl) => Owner::Ttl(*ttl),
                };
                self.create(header, path, *data, *acl, owner, *parent_cversion, changes)
            }
            Txn::Delete { path } | Txn::DeleteContainer { path } => {
                self.delete(header.zxid, path, Cause::Request, changes)
            }
            Txn::SetData { path, data, version } | Txn::Reconfig { path, data, version } => {
                self.set_data(header, path, *data, *version, changes)
            }
            Txn::SetAcl { path, acl, version } => self.set_acl(header.zxid, path, *acl, *version),
            Txn::CloseSession { paths } => {
                self.close_session(header, paths.as_deref(), changes);
                Code::Ok
            }
            Txn::Multi(txns) => self.multi(header, txns, changes),
            Txn::CreateSession { .. } | Txn::Error { .. } | Txn::Check { .. } => Code::Ok,
        }
    }

    /// All of it or, where it was logged as failed, nothing.
    fn multi(&mut self, header: &TxnHeader, txns: &[Txn<'_>], changes: &mut dyn Changes) -> Code {
        if txns.iter().any(|txn| matches!(txn, Txn::Error { .. })) {
            return Code::Ok;
        }
        let mut first_error = Code::Ok;
        for txn in txns {
            let code = self.apply(header, txn, changes);
            if first_error == Code::Ok {
                first_error = code;
            }
        }
        first_error
    }

    #[expect(clippy::too_many_arguments, reason = "a create has this many parts")]
    fn create(
        &mut self,
        header: &TxnHeader,
        path: &str,
        data: Option<&[u8]>,
        acl: AclBytes<'_>,
        owner: Owner,
        parent_cversion: i32,
        changes: &mut dyn Changes,
    ) -> Code {
        // Nothing has a path without a slash; a log may say what it will.
        let Some(slash) = path.rfind('/') else { return Code::NoNode };
        let Some(parent) = self.store.find(&path[..slash]) else {
            self.note(path, How::CreatedWithoutParent);
            return Code::NoNode;
        };
        // A fuzzy snapshot may show the ephemeral znode that came after one with children: the log
        // has these deleted before it.
        let above = parent.live().expect("a parent lives").ephemeral_owner();
        if Owner::is_certainly_session(above) {
            self.note(path, How::CreatedBelowEphemeral);
            return Code::NoChildrenForEphemerals;
        }
        let acl = self.intern(acl);
        let existing = self.store.find(path);
        if let Some(node) = existing {
            self.note(path, How::CreatedTwice);
            // A fuzzy snapshot shows it already, perhaps with the ACL of later (ZOOKEEPER-4846).
            let version = node.live().expect("what is found lives");
            let (stat, children) = (version.stat(), version.child_count());
            self.push(node, header.zxid, stat, children, NextData::Same, acl.clone());
        } else {
            let node = self.store.find_or_link(path, parent);
            let stat = StatPersisted {
                czxid: header.zxid,
                mzxid: header.zxid,
                ctime: header.time,
                mtime: header.time,
                ephemeral_owner: owner.number(),
                pzxid: header.zxid,
                ..StatPersisted::default()
            };
            let counted;
            let data = match quota::subtree_of_stats(path) {
                // Whatever the client supplied: the counts are the server's.
                Some(subtree) => {
                    counted = self.count(subtree).to_string();
                    Some(counted.as_bytes())
                }
                None => data,
            };
            self.push(node, header.zxid, stat, 0, NextData::Bytes(data), acl.clone());
        }
        let version = parent.live().expect("a parent lives");
        let mut stat = version.stat();
        let parent_acl = version.acl().cloned();
        let cversion =
            if parent_cversion == -1 { stat.cversion.wrapping_add(1) } else { parent_cversion };
        // The parent's count never goes back (ZOOKEEPER-3249).
        if stat.cversion < cversion {
            stat.cversion = cversion;
            stat.pzxid = header.zxid;
        }
        let children = version.child_count() + i32::from(existing.is_none());
        self.push(parent, header.zxid, stat, children, NextData::Same, parent_acl.clone());
        if existing.is_some() {
            return Code::NodeExists;
        }
        self.count_change(header.zxid, path, 1, data.map_or(0, <[u8]>::len) as i64);
        changes.change(ChangeKind::Created, path, list(&acl), list(&parent_acl));
        Code::Ok
    }

    fn delete(&mut self, zxid: i64, path: &str, cause: Cause, changes: &mut dyn Changes) -> Code {
        let Some(slash) = path.rfind('/').filter(|_| !super::is_reserved(path)) else {
            return Code::NoNode;
        };
        let Some(parent) = self.store.find(&path[..slash]) else {
            self.note_delete(path, None, cause);
            return Code::NoNode;
        };
        let node = self.store.find(path);
        self.note_delete(path, node, cause);
        let version = parent.live().expect("a parent lives");
        let mut stat = version.stat();
        let parent_acl = version.acl().cloned();
        let children = version.child_count() - i32::from(node.is_some());
        // Also where the znode is gone already (ZOOKEEPER-3125).
        if stat.pzxid < zxid {
            stat.pzxid = zxid;
        }
        let Some(node) = node else {
            if stat.pzxid != version.stat().pzxid {
                self.push(parent, zxid, stat, children, NextData::Same, parent_acl);
            }
            return Code::NoNode;
        };
        // A log whose deletes come in order leaves no children; a damaged order must not leave
        // them dangling.
        for path in below(node).into_iter().rev() {
            self.delete(zxid, &path, Cause::Parent, changes);
        }
        let gone = node.live().expect("what is found lives");
        let (acl, bytes) = (gone.acl().cloned(), gone.data().map_or(0, <[u8]>::len) as i64);
        self.push_tombstone(node, zxid);
        self.push(parent, zxid, stat, children, NextData::Same, parent_acl.clone());
        self.count_change(zxid, path, -1, -bytes);
        changes.change(ChangeKind::Deleted, path, list(&acl), list(&parent_acl));
        Code::Ok
    }

    /// Notes a delete of what is not there, or not to be deleted like this.
    fn note_delete(&mut self, path: &str, node: Option<NodeRef>, cause: Cause) {
        let version = node.as_ref().and_then(|node| node.live());
        let how = match (cause, version) {
            (Cause::Request, None) => How::DeletedWhereNoneIs,
            (Cause::Request, Some(version)) if 0 < version.child_count() => {
                How::DeletedWithChildren
            }
            // What a session owns has children where a TTL is taken for a session.
            (Cause::Closed(session), Some(version)) if version.ephemeral_owner() != session.0 => {
                How::DeletedOfAnother
            }
            (Cause::Request | Cause::Closed(_) | Cause::Parent, _) => return,
        };
        self.note(path, how);
    }

    fn set_data(
        &mut self,
        header: &TxnHeader,
        path: &str,
        data: Option<&[u8]>,
        version: i32,
        changes: &mut dyn Changes,
    ) -> Code {
        let Some(node) = self.store.find(path) else {
            self.note(path, How::SetWhereNoneIs);
            return Code::NoNode;
        };
        let before = node.live().expect("what is found lives");
        let version_before = before.stat().version;
        if !follows(version, version_before) {
            self.note(path, How::Version { set: version, before: version_before });
        }
        let bytes_before = before.data().map_or(0, <[u8]>::len) as i64;
        let (children, acl) = (before.child_count(), before.acl().cloned());
        let stat =
            StatPersisted { version, mzxid: header.zxid, mtime: header.time, ..before.stat() };
        self.push(node, header.zxid, stat, children, NextData::Bytes(data), acl.clone());
        let bytes = data.map_or(0, <[u8]>::len) as i64;
        self.count_change(header.zxid, path, 0, bytes - bytes_before);
        let path = if path.is_empty() { "/" } else { path };
        changes.change(ChangeKind::DataChanged, path, list(&acl), None);
        Code::Ok
    }

    fn set_acl(&mut self, zxid: i64, path: &str, acl: AclBytes<'_>, aversion: i32) -> Code {
        let Some(node) = self.store.find(path) else {
            self.note(path, How::SetWhereNoneIs);
            return Code::NoNode;
        };
        let acl = self.intern(acl);
        let version = node.live().expect("what is found lives");
        let before = version.stat().aversion;
        if !follows(aversion, before) {
            self.note(path, How::Version { set: aversion, before });
        }
        let (stat, children) =
            (StatPersisted { aversion, ..version.stat() }, version.child_count());
        self.push(node, zxid, stat, children, NextData::Same, acl);
        Code::Ok
    }

    /// The listed ephemerals, then whatever else the session still owns.
    fn close_session(
        &mut self,
        header: &TxnHeader,
        listed: Option<&[std::borrow::Cow<'_, str>]>,
        changes: &mut dyn Changes,
    ) {
        let session = SessionId(header.client_id);
        for path in listed.unwrap_or_default() {
            self.delete(header.zxid, path, Cause::Closed(session), changes);
        }
        let owned: Vec<String> = self.ephemerals_of(session).map(str::to_owned).collect();
        for path in owned {
            self.delete(header.zxid, &path, Cause::Closed(session), changes);
        }
    }

    fn intern(&mut self, acl: AclBytes<'_>) -> Option<Arc<NumberedAcl>> {
        if acl.is_open() {
            return None;
        }
        let acls: Vec<Acl> = acl.decode().unwrap_or_default().into_iter().map(Acl::from).collect();
        self.acls.intern(&acls)
    }

    // ---- quotas -----------------------------------------------------------------------------

    /// What the subtree holds in the newest state.
    fn count(&self, subtree: &str) -> StatsTrack {
        let (mut count, mut bytes) = (0, 0);
        let mut pending: Vec<NodeRef> = self.store.find(subtree).into_iter().collect();
        while let Some(node) = pending.pop() {
            count += 1;
            let data = node.live().and_then(|version| version.data());
            bytes += data.map_or(0, <[u8]>::len) as i64;
            pending.extend(node.children());
        }
        StatsTrack { count, bytes, count_hard_limit: -1, byte_hard_limit: -1 }
    }

    /// Counts a subtree afresh into its stats znode, if it has one.
    pub(super) fn recount(&mut self, subtree: &str, zxid: Zxid) {
        let track = self.count(subtree);
        self.write_stats(subtree, zxid.0, track);
    }

    /// Brings the counts above `path` up to date. They change nothing but their data: no
    /// version, no time, no watch.
    fn count_change(&mut self, zxid: i64, path: &str, count: i64, bytes: i64) {
        if count == 0 && bytes == 0 {
            return;
        }
        let Some(subtree) = self.quotas.deepest(path).map(str::to_owned) else { return };
        let Some(stats) = self.newest(&quota::stats_path(&subtree)) else { return };
        let track = StatsTrack::parse(stats.data().unwrap_or_default());
        let counted = |now: i64, more: i64| now.checked_add(more).filter(|_| 0 <= now);
        match (counted(track.count, count), counted(track.bytes, bytes)) {
            (Some(count), Some(bytes)) => {
                self.write_stats(&subtree, zxid, StatsTrack { count, bytes, ..track });
            }
            // Not what the server writes: a client did. Begin again from what is there.
            _ => self.recount(&subtree, Zxid(zxid)),
        }
    }

    fn write_stats(&mut self, subtree: &str, zxid: i64, track: StatsTrack) {
        let Some(node) = self.store.find(&quota::stats_path(subtree)) else { return };
        let version = node.live().expect("what is found lives");
        let (stat, children) = (version.stat(), version.child_count());
        let (acl, text) = (version.acl().cloned(), track.to_string());
        self.push(node, zxid, stat, children, NextData::Bytes(Some(text.as_bytes())), acl);
    }
}

/// The paths of all that lives below a znode, parents before their children.
fn below(node: NodeRef) -> Vec<String> {
    let mut paths = Vec::new();
    let mut pending: Vec<NodeRef> = node.children().collect();
    while let Some(node) = pending.pop() {
        paths.push(node.path().to_owned());
        pending.extend(node.children());
    }
    paths
}

fn list(acl: &Option<Arc<NumberedAcl>>) -> Option<&Arc<[Acl]>> {
    acl.as_ref().map(|numbered| &numbered.list)
}

#[cfg(feature = "mutants")]
impl TreeWriter {
    /// A seeded bug: the parent of `path` forgets one create.
    pub fn set_back_cversion(&mut self, zxid: Zxid, path: &str) {
        let Some(parent) = self.store.find(&path[..path.rfind('/').unwrap_or(0)]) else { return };
        let version = parent.live().expect("a parent lives");
        let stat = version.stat();
        let stat = StatPersisted { cversion: stat.cversion - 1, ..stat };
        let (children, acl) = (version.child_count(), version.acl().cloned());
        self.push(parent, zxid.0, stat, children, NextData::Same, acl);
    }
}
