//! What ZooKeeper's rules make of a history: a tree of our own, with every state it ever had.
//!
//! Written from the specification and for being read, not for speed: it shares shapes and codecs
//! with the server, and none of its rules. For each transaction it says what had to be logged and
//! answered; for each zxid, what a read had to see.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use ringkeeper::jute::Write as _;
use ringkeeper::jute::record::Record as _;
use ringkeeper::record::data::{Acl, AclBytes, Stat, StatPersisted, perms};
use ringkeeper::record::op::code;
use ringkeeper::record::proto::{Create2Response, CreateResponse, MULTI_END, MultiHeader};
use ringkeeper::record::txn::{CreateKind, Txn, TxnHeader};

use crate::op::{Create, Op, Who};

/// Error codes by their numbers.
pub(crate) mod err {
    pub(crate) const UNIMPLEMENTED: i32 = -6;
    pub(crate) const BAD_ARGUMENTS: i32 = -8;
    pub(crate) const NO_NODE: i32 = -101;
    pub(crate) const NO_AUTH: i32 = -102;
    pub(crate) const BAD_VERSION: i32 = -103;
    pub(crate) const NO_CHILDREN_FOR_EPHEMERALS: i32 = -108;
    pub(crate) const NODE_EXISTS: i32 = -110;
    pub(crate) const NOT_EMPTY: i32 = -111;
    pub(crate) const SESSION_EXPIRED: i32 = -112;
    pub(crate) const INVALID_ACL: i32 = -114;
    pub(crate) const NO_WATCHER: i32 = -121;
    /// What operations get that stand behind the one that failed their multi.
    pub(crate) const RUNTIME_INCONSISTENCY: i32 = -2;
}

const CONTAINER_OWNER: i64 = i64::MIN;
const TTL_OWNER: u64 = 0xff << 56;
const TTL_MS_MAX: i64 = (1 << 40) - 1;

/// One state of a znode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Znode {
    pub(crate) stat: StatPersisted,
    pub(crate) data: Option<Vec<u8>>,
    pub(crate) acl: Vec<Acl>,
    pub(crate) children: BTreeSet<String>,
}

/// What a transaction did to a znode, for watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    Created,
    Deleted,
    DataChanged,
}

/// A change with the ACLs that decide who hears of it.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) kind: ChangeKind,
    pub(crate) path: String,
    pub(crate) readers: Rc<Vec<Acl>>,
    pub(crate) parent_readers: Rc<Vec<Acl>>,
}

/// What a client must be told of its write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) zxid: i64,
    pub(crate) err: i32,
    pub(crate) body: Vec<u8>,
}

/// The end of a session in the log.
#[derive(Clone, Copy, Debug)]
struct SessionChange {
    zxid: i64,
    session: i64,
    /// `None`: it is over.
    timeout_ms: Option<i32>,
}

type Version = (i64, Option<Rc<Znode>>);

pub(crate) struct Model {
    /// TTLs are known, and their owners no sessions.
    pub(crate) extended_types: bool,
    pub(crate) last: i64,
    nodes: BTreeMap<String, Rc<Znode>>,
    versions: BTreeMap<String, Vec<Version>>,
    sessions: BTreeMap<i64, i32>,
    session_changes: Vec<SessionChange>,
    changes: BTreeMap<i64, Vec<Change>>,
    /// What the open transaction has replaced.
    journal: Vec<(String, Option<Rc<Znode>>)>,
    open_changes: Vec<Change>,
}

impl Model {
    pub(crate) fn new(extended_types: bool) -> Model {
        let mut model = Model {
            extended_types,
            last: 0,
            nodes: BTreeMap::new(),
            versions: BTreeMap::new(),
            sessions: BTreeMap::new(),
            session_changes: Vec::new(),
            changes: BTreeMap::new(),
            journal: Vec::new(),
            open_changes: Vec::new(),
        };
        let open = || vec![Acl::new(perms::ALL, "world", "anyone")];
        let reserved = |children: &[&str], aversion: i32, acl: Vec<Acl>| Znode {
            stat: StatPersisted { aversion, ..StatPersisted::default() },
            data: Some(Vec::new()),
            acl,
            children: children.iter().map(|name| (*name).to_owned()).collect(),
        };
        model.set("/", Some(reserved(&["zookeeper"], 0, open())));
        model.set("/zookeeper", Some(reserved(&["config", "quota"], 0, open())));
        model.set("/zookeeper/quota", Some(reserved(&[], 0, open())));
        let readable = vec![Acl::new(perms::READ, "world", "anyone")];
        model.set("/zookeeper/config", Some(reserved(&[], -1, readable)));
        model.end_txn(0);
        model
    }

    /// History begins at `zxid`, with the same tree.
    pub(crate) fn begin_at(&mut self, zxid: i64) {
        assert_eq!(self.last, 0, "nothing has happened yet");
        self.last = zxid;
    }

    // ---- states -----------------------------------------------------------------------------

    pub(crate) fn nodes(&self) -> &BTreeMap<String, Rc<Znode>> {
        &self.nodes
    }

    pub(crate) fn node(&self, path: &str) -> Option<&Znode> {
        self.nodes.get(path).map(|node| &**node)
    }

    /// The znode as it was after `zxid`.
    pub(crate) fn at(&self, path: &str, zxid: i64) -> Option<&Znode> {
        let versions = self.versions.get(path)?;
        let later = versions.partition_point(|(of, _)| *of <= zxid);
        versions[..later].last()?.1.as_deref()
    }

    /// All znodes as they were after `zxid`.
    pub(crate) fn all_at(&self, zxid: i64) -> impl Iterator<Item = (&str, &Znode)> {
        let of = move |path| Some((path, self.at(path, zxid)?));
        self.versions.keys().filter_map(move |path| of(path.as_str()))
    }

    pub(crate) fn changes_of(&self, zxid: i64) -> &[Change] {
        self.changes.get(&zxid).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn sessions(&self) -> &BTreeMap<i64, i32> {
        &self.sessions
    }

    /// Where in history a session began and, if it did, ended.
    pub(crate) fn session_span(&self, session: i64) -> (Option<i64>, Option<i64>) {
        let mut of = self.session_changes.iter().filter(|change| change.session == session);
        let began = of.next().map(|change| change.zxid);
        (began, of.find(|change| change.timeout_ms.is_none()).map(|change| change.zxid))
    }

    pub(crate) fn stat(&self, node: &Znode) -> Stat {
        let stat = node.stat;
        let children = node.children.len() as i32;
        Stat {
            czxid: stat.czxid,
            mzxid: stat.mzxid,
            ctime: stat.ctime,
            mtime: stat.mtime,
            version: stat.version,
            cversion: stat.cversion.wrapping_mul(2).wrapping_sub(children),
            aversion: stat.aversion,
            ephemeral_owner: self.session_of(node).unwrap_or(0),
            data_length: node.data.as_ref().map_or(0, Vec::len) as i32,
            num_children: children,
            pzxid: stat.pzxid,
        }
    }

    /// The session that owns a znode.
    pub(crate) fn session_of(&self, node: &Znode) -> Option<i64> {
        let owner = node.stat.ephemeral_owner;
        let is_session = owner != 0 && owner != CONTAINER_OWNER && self.ttl_of(node).is_none();
        is_session.then_some(owner)
    }

    fn ttl_of(&self, node: &Znode) -> Option<i64> {
        let owner = node.stat.ephemeral_owner as u64;
        let is_ttl = self.extended_types && owner >> 40 == TTL_OWNER >> 40;
        is_ttl.then_some(owner as i64 & TTL_MS_MAX)
    }

    pub(crate) fn ephemerals_of(&self, session: i64) -> Vec<&str> {
        let owned = self.nodes.iter().filter(|(_, node)| self.session_of(node) == Some(session));
        owned.map(|(path, _)| path.as_str()).collect()
    }

    /// ZooKeeper's digest of the newest state, computed from nothing.
    pub(crate) fn digest(&self) -> u64 {
        let counted = self.nodes.iter().filter(|(path, _)| !path.starts_with("/zookeeper/"));
        let digests = counted.map(|(path, node)| {
            let mut crc = crc32fast::Hasher::new();
            crc.update(if path == "/" { b"" } else { path.as_bytes() });
            crc.update(node.data.as_deref().unwrap_or_default());
            let stat = node.stat;
            for long in [stat.czxid, stat.mzxid, stat.pzxid, stat.ctime, stat.mtime] {
                crc.update(&long.to_be_bytes());
            }
            for int in [stat.version, stat.cversion, stat.aversion] {
                crc.update(&int.to_be_bytes());
            }
            crc.update(&stat.ephemeral_owner.to_be_bytes());
            u64::from(crc.finalize())
        });
        digests.fold(0, u64::wrapping_add)
    }

    // ---- history ----------------------------------------------------------------------------

    fn set(&mut self, path: &str, node: Option<Znode>) {
        let before = match node {
            Some(node) => self.nodes.insert(path.to_owned(), Rc::new(node)),
            None => self.nodes.remove(path),
        };
        self.journal.push((path.to_owned(), before));
    }

    fn end_txn(&mut self, zxid: i64) {
        for (path, _) in self.journal.drain(..) {
            let newest = self.nodes.get(&path).cloned();
            let versions = self.versions.entry(path).or_default();
            versions.retain(|(of, _)| *of != zxid);
            versions.push((zxid, newest));
        }
        if !self.open_changes.is_empty() {
            self.changes.insert(zxid, std::mem::take(&mut self.open_changes));
        }
        self.last = zxid;
    }

    fn undo(&mut self, journal: usize, changes: usize) {
        self.open_changes.truncate(changes);
        while self.journal.len() > journal {
            let (path, before) = self.journal.pop().unwrap();
            match before {
                Some(node) => self.nodes.insert(path, node),
                None => self.nodes.remove(&path),
            };
        }
    }

    /// A crash has taken what came after `zxid`.
    pub(crate) fn truncate_after(&mut self, zxid: i64) {
        if self.last <= zxid {
            return;
        }
        self.nodes.clear();
        for (path, versions) in &mut self.versions {
            versions.retain(|(of, _)| *of <= zxid);
            if let Some((_, Some(node))) = versions.last() {
                self.nodes.insert(path.clone(), Rc::clone(node));
            }
        }
        self.changes.split_off(&(zxid + 1));
        self.session_changes.retain(|change| change.zxid <= zxid);
        self.sessions.clear();
        for change in &self.session_changes {
            match change.timeout_ms {
                Some(timeout_ms) => self.sessions.insert(change.session, timeout_ms),
                None => self.sessions.remove(&change.session),
            };
        }
        self.last = zxid;
    }

    pub(crate) fn open_session(&mut self, zxid: i64, session: i64, timeout_ms: i32) {
        self.sessions.insert(session, timeout_ms);
        let timeout_ms = Some(timeout_ms);
        self.session_changes.push(SessionChange { zxid, session, timeout_ms });
        self.end_txn(zxid);
    }

    /// Ends a session; the order of what is deleted is the log's, or that of the paths.
    pub(crate) fn close_session(
        &mut self,
        zxid: i64,
        session: i64,
        paths: Option<&[&str]>,
    ) -> Result<(), String> {
        let owned: Vec<String> =
            self.ephemerals_of(session).into_iter().map(str::to_owned).collect();
        if let Some(paths) = paths {
            let mut listed = paths.to_vec();
            listed.sort_unstable();
            if listed != owned {
                return Err(format!("closeSession lists {listed:?}, the session owns {owned:?}"));
            }
            for path in paths {
                self.remove(zxid, path);
            }
        }
        for path in owned {
            self.remove(zxid, &path);
        }
        self.sessions.remove(&session);
        self.session_changes.push(SessionChange { zxid, session, timeout_ms: None });
        self.end_txn(zxid);
        Ok(())
    }

    /// The server removes a container or a znode whose time is over.
    pub(crate) fn reap(&mut self, header: &TxnHeader, path: &str) -> Result<&'static str, String> {
        let node = self.node(path).ok_or_else(|| format!("{path} is not there to be reaped"))?;
        if !node.children.is_empty() {
            return Err(format!("{path} is reaped with children"));
        }
        let what = if node.stat.ephemeral_owner == CONTAINER_OWNER {
            if node.stat.cversion == 0 {
                return Err(format!("{path} is reaped without ever having been used"));
            }
            "container reaped"
        } else {
            let ttl = self.ttl_of(node).ok_or_else(|| format!("{path} may not be reaped"))?;
            let age = header.time - node.stat.mtime;
            if age <= ttl {
                return Err(format!("{path} is reaped after {age} ms, its TTL is {ttl} ms"));
            }
            "TTL znode reaped"
        };
        self.remove(header.zxid, path);
        self.end_txn(header.zxid);
        Ok(what)
    }

    /// A client's write: holds what was logged against what had to be, and says what the client
    /// must be told.
    pub(crate) fn write(
        &mut self,
        header: &TxnHeader,
        who: Who,
        op: &Op,
        logged: &Txn<'_>,
    ) -> Result<Answer, String> {
        let zxid = header.zxid;
        let mut body = Vec::new();
        let (expected, err) = match op {
            Op::Multi(ops) => (self.multi(header, who, ops, &mut body), 0),
            single => match self.single(header, who, single, &mut body) {
                Ok(txn) => (txn, 0),
                Err(err) => (Txn::Error { err }, err),
            },
        };
        if expected != *logged || expected.kind() != header.kind {
            let text = format!("logged as {logged:?}, which had to be {expected:?}");
            drop(expected);
            self.undo(0, 0);
            return Err(text);
        }
        drop(expected);
        self.end_txn(zxid);
        Ok(Answer { zxid, err, body })
    }

    /// A write that changes nothing, whatever the tree is.
    pub(crate) fn refuse(&mut self, zxid: i64) {
        self.end_txn(zxid);
    }

    fn multi<'o>(
        &mut self,
        header: &TxnHeader,
        who: Who,
        ops: &'o [Op],
        body: &mut Vec<u8>,
    ) -> Txn<'o> {
        let (journal, changes) = (self.journal.len(), self.open_changes.len());
        let mut txns = Vec::new();
        for (at, op) in ops.iter().enumerate() {
            let kind = match op.code() {
                code::CREATE_CONTAINER | code::CREATE_TTL => code::CREATE2,
                kind => kind,
            };
            let start = body.len();
            MultiHeader { kind, done: false, err: 0 }.write(body);
            match self.single(header, who, op, body) {
                Ok(txn) => txns.push(as_in_multi(txn)),
                Err(err) => {
                    body.truncate(start);
                    self.undo(journal, changes);
                    body.clear();
                    for behind in 0..ops.len() {
                        let err = match behind.cmp(&at) {
                            std::cmp::Ordering::Less => 0,
                            std::cmp::Ordering::Equal => err,
                            std::cmp::Ordering::Greater => err::RUNTIME_INCONSISTENCY,
                        };
                        if at <= behind {
                            txns.push(Txn::Error { err });
                        }
                        MultiHeader { kind: code::ERROR, done: false, err }.write(body);
                        body.put_i32(err);
                    }
                    break;
                }
            }
        }
        MULTI_END.write(body);
        Txn::Multi(txns)
    }

    fn single<'o>(
        &mut self,
        header: &TxnHeader,
        who: Who,
        op: &'o Op,
        body: &mut Vec<u8>,
    ) -> Result<Txn<'o>, i32> {
        match op {
            Op::Create(create) => self.create(header, who, create, body),
            Op::Delete { path, version } => {
                let parent = parent_text(path)?;
                if is_reserved(path) {
                    return Err(err::BAD_ARGUMENTS);
                }
                let parent = self.node(&parent).ok_or(err::NO_NODE)?;
                permits(&parent.acl, perms::DELETE, who)?;
                let node = self.node(path).ok_or(err::NO_NODE)?;
                matching(node.stat.version, *version)?;
                if !node.children.is_empty() {
                    return Err(err::NOT_EMPTY);
                }
                self.remove(header.zxid, path);
                Ok(Txn::Delete { path: path.as_str().into() })
            }
            Op::SetData { path, data, version } => {
                let mut node = self.valid_node(path)?;
                permits(&node.acl, perms::WRITE, who)?;
                let version = next(node.stat.version, *version)?;
                node.stat.version = version;
                node.stat.mzxid = header.zxid;
                node.stat.mtime = header.time;
                node.data.clone_from(data);
                self.stat(&node).write(body);
                self.changed(ChangeKind::DataChanged, path, &node.acl, &[]);
                self.set(path, Some(node));
                Ok(Txn::SetData { path: path.as_str().into(), data: data.as_deref(), version })
            }
            Op::SetAcl { path, acl, acl_bytes, version } => {
                if !is_valid(path) {
                    return Err(err::BAD_ARGUMENTS);
                }
                let list = acl.list();
                if list.is_empty() {
                    return Err(err::INVALID_ACL);
                }
                let mut node = self.valid_node(path)?;
                permits(&node.acl, perms::ADMIN, who)?;
                let version = next(node.stat.aversion, *version)?;
                node.stat.aversion = version;
                node.acl = list;
                self.stat(&node).write(body);
                self.set(path, Some(node));
                let acl = AclBytes::from_bytes(acl_bytes).unwrap();
                Ok(Txn::SetAcl { path: path.as_str().into(), acl, version })
            }
            Op::Check { path, version } => {
                let node = self.valid_node(path)?;
                permits(&node.acl, perms::READ, who)?;
                let version = next(node.stat.version, *version)?;
                Ok(Txn::Check { path: path.as_str().into(), version })
            }
            _ => unreachable!("only writes are written"),
        }
    }

    fn create<'o>(
        &mut self,
        header: &TxnHeader,
        who: Who,
        create: &'o Create,
        body: &mut Vec<u8>,
    ) -> Result<Txn<'o>, i32> {
        let Create { op, path, data, acl, acl_bytes, flags, ttl } = create;
        let (ephemeral, sequential) = match flags {
            0 | 4 | 5 => (false, false),
            1 => (true, false),
            2 | 6 => (false, true),
            3 => (true, true),
            _ => return Err(err::BAD_ARGUMENTS),
        };
        if matches!(flags, 5 | 6) && !self.extended_types {
            return Err(err::UNIMPLEMENTED);
        }
        let parent_path = parent_text(path)?;
        let list = acl.list();
        if list.is_empty() {
            return Err(err::INVALID_ACL);
        }
        let mut parent = self.node(&parent_path).ok_or(err::NO_NODE)?.clone();
        permits(&parent.acl, perms::CREATE, who)?;
        let final_path = match sequential {
            true => format!("{path}{:010}", parent.stat.cversion),
            false => path.clone(),
        };
        if !is_valid(&final_path) {
            return Err(err::BAD_ARGUMENTS);
        }
        if self.node(&final_path).is_some() {
            return Err(err::NODE_EXISTS);
        }
        if self.session_of(&parent).is_some() {
            return Err(err::NO_CHILDREN_FOR_EPHEMERALS);
        }
        let (kind, owner) = match *op {
            code::CREATE_CONTAINER => (CreateKind::Container, CONTAINER_OWNER),
            code::CREATE_TTL => (CreateKind::Ttl(*ttl), (TTL_OWNER | *ttl as u64) as i64),
            op => {
                let owner = if ephemeral { header.client_id } else { 0 };
                (CreateKind::Node { create2: op == code::CREATE2, ephemeral }, owner)
            }
        };
        let node = Znode {
            stat: StatPersisted {
                czxid: header.zxid,
                mzxid: header.zxid,
                ctime: header.time,
                mtime: header.time,
                ephemeral_owner: owner,
                pzxid: header.zxid,
                ..StatPersisted::default()
            },
            data: data.clone(),
            acl: list,
            children: BTreeSet::new(),
        };
        let path = Some(final_path.as_str().into());
        match *op {
            code::CREATE => CreateResponse { path }.write(body),
            _ => Create2Response { path, stat: self.stat(&node) }.write(body),
        }
        parent.stat.cversion += 1;
        parent.stat.pzxid = header.zxid;
        parent.children.insert(name_of(&final_path).to_owned());
        let parent_cversion = parent.stat.cversion;
        self.changed(ChangeKind::Created, &final_path, &node.acl, &parent.acl);
        self.set(&final_path, Some(node));
        self.set(&parent_path, Some(parent));
        let acl = AclBytes::from_bytes(acl_bytes).unwrap();
        let data = data.as_deref();
        Ok(Txn::Create { kind, path: final_path.into(), data, acl, parent_cversion })
    }

    /// Removes a znode. Only one that was taken for an ephemeral by a server that knows no TTLs
    /// has children; they go with it.
    fn remove(&mut self, zxid: i64, path: &str) {
        let Some(node) = self.node(path) else { return };
        let (acl, children) = (node.acl.clone(), node.children.clone());
        for child in children {
            self.remove(zxid, &format!("{path}/{child}"));
        }
        let parent_path = parent_text(path).unwrap();
        let mut parent = self.node(&parent_path).unwrap().clone();
        parent.stat.pzxid = parent.stat.pzxid.max(zxid);
        parent.children.remove(name_of(path));
        self.changed(ChangeKind::Deleted, path, &acl, &parent.acl);
        self.set(path, None);
        self.set(&parent_path, Some(parent));
    }

    fn changed(&mut self, kind: ChangeKind, path: &str, acl: &[Acl], parent_acl: &[Acl]) {
        self.open_changes.push(Change {
            kind,
            path: path.to_owned(),
            readers: Rc::new(acl.to_vec()),
            parent_readers: Rc::new(parent_acl.to_vec()),
        });
    }

    fn valid_node(&self, path: &str) -> Result<Znode, i32> {
        if !is_valid(path) {
            return Err(err::BAD_ARGUMENTS);
        }
        self.node(path).cloned().ok_or(err::NO_NODE)
    }
}

/// A create2 in a multi is logged as a create.
fn as_in_multi(txn: Txn<'_>) -> Txn<'_> {
    match txn {
        Txn::Create {
            kind: CreateKind::Node { ephemeral, .. },
            path,
            data,
            acl,
            parent_cversion,
        } => {
            let kind = CreateKind::Node { create2: false, ephemeral };
            Txn::Create { kind, path, data, acl, parent_cversion }
        }
        txn => txn,
    }
}

/// Whether one of `perm` is given to `who`.
pub(crate) fn permits(acl: &[Acl], perm: i32, who: Who) -> Result<(), i32> {
    let is_given =
        |entry: &Acl| entry.perms & perm != 0 && (entry.id.scheme == "world" || who == Who::Alice);
    if acl.is_empty() || acl.iter().any(is_given) { Ok(()) } else { Err(err::NO_AUTH) }
}

fn parent_text(path: &str) -> Result<String, i32> {
    match path.rfind('/') {
        None => Err(err::BAD_ARGUMENTS),
        Some(0) => Ok("/".to_owned()),
        Some(slash) => Ok(path[..slash].to_owned()),
    }
}

pub(crate) fn name_of(path: &str) -> &str {
    &path[path.rfind('/').map_or(0, |slash| slash + 1)..]
}

/// The paths that clients here come up with have no odd characters.
fn is_valid(path: &str) -> bool {
    path == "/"
        || path
            .strip_prefix('/')
            .is_some_and(|names| names.split('/').all(|name| !matches!(name, "" | "." | "..")))
}

fn is_reserved(path: &str) -> bool {
    matches!(path, "/" | "/zookeeper" | "/zookeeper/quota" | "/zookeeper/config")
}

fn matching(current: i32, expected: i32) -> Result<(), i32> {
    if expected == -1 || expected == current { Ok(()) } else { Err(err::BAD_VERSION) }
}

fn next(current: i32, expected: i32) -> Result<i32, i32> {
    matching(current, expected)?;
    Ok(if current == -2 { 0 } else { current.wrapping_add(1) })
}
