//! The tree of znodes: one core writes it, every core reads it in place.
//!
//! | file | what is in it |
//! |---|---|
//! | `mod.rs` | `TreeWriter` and `TreeReader`: one writes, many read |
//! | `apply.rs` | a transaction into changes of the tree; total, deterministic |
//! | `change.rs` | what a transaction touched: the raw material of watches |
//! | `roll_back.rs` | transactions that are applied and not published are taken back |
//! | `cell.rs` | versions, views, and what may be freed |
//! | `arena.rs` | memory for them: these two are the unsafe part |
//! | `ephemerals.rs` | who owns a znode; what each session, and the server, owns |
//! | `quota.rs` | limits on subtrees and their running counts |
//! | `acl_cache.rs` | ACL lists by number |
//! | `digest.rs` | ZooKeeper's digest of a tree |
//!
//! **Views.** A transaction gives each znode that it touches a new version, stamped with its
//! zxid; nobody sees it until the writer has *published* that zxid and a reader has moved its
//! view there. So a reader sees whole transactions only, a read takes no lock and writes no
//! shared line, and a walk at one view is a true point in time while writes go on.
//!
//! **Undo.** What a transaction did can be taken back until it is settled: a multi is validated
//! by doing it, and undone when one of its operations fails. What is settled can be taken back until
//! it is published, the newest first.

mod acl_cache;
mod apply;
mod arena;
mod cell;
pub mod change;
pub mod digest;
pub mod ephemerals;
pub mod quota;
mod roll_back;

use std::collections::HashSet;
use std::sync::Arc;

use acl_cache::AclCache;
pub use acl_cache::OPEN_ACL_NUMBER;
pub use apply::{How, Irregular};
use cell::{Children, Next, NextData, NodeRef, NumberedAcl, ReaderCell, Seen, Store, Version};
pub use cell::{Look, PREFETCH_MAX};
use ephemerals::{Owned, Owner, Types};
use quota::Quotas;
#[cfg(feature = "mutants")]
pub use roll_back::Mutant;

use crate::record::data::{Acl, Stat, StatPersisted, perms};
use crate::types::{SessionId, Zxid};

pub const ZOOKEEPER_PATH: &str = "/zookeeper";
pub const QUOTA_PATH: &str = quota::QUOTA_ROOT;
pub const CONFIG_PATH: &str = "/zookeeper/config";

/// Whether a znode is there from the start and cannot be deleted.
#[must_use]
pub fn is_reserved(path: &str) -> bool {
    matches!(path, "" | "/" | ZOOKEEPER_PATH | QUOTA_PATH | CONFIG_PATH)
}

/// How the tree reads and keeps what is not in the transactions.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub types: Types,
    /// `zookeeper.digest.enabled`.
    pub digest: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { types: Types::default(), digest: true }
    }
}

/// The stat that clients see.
fn client_stat(version: &Version, types: Types) -> Stat {
    let stat = version.stat();
    let ephemeral_owner = match Owner::of(stat.ephemeral_owner, types) {
        Owner::Session(session) => session,
        Owner::Nobody | Owner::Container | Owner::Ttl(_) => 0,
    };
    Stat {
        czxid: stat.czxid,
        mzxid: stat.mzxid,
        ctime: stat.ctime,
        mtime: stat.mtime,
        version: stat.version,
        // The stored one counts creates; each delete counts too for a client (DataNode.copyStat).
        cversion: stat.cversion.wrapping_mul(2).wrapping_sub(version.child_count()),
        aversion: stat.aversion,
        ephemeral_owner,
        data_length: i32::try_from(version.data().map_or(0, <[u8]>::len))
            .expect("data is below 2 GiB"),
        num_children: version.child_count(),
        pzxid: stat.pzxid,
    }
}

// ---------------------------------------------------------------------------------------------

/// Reads the tree as of one zxid, its *view*. One per shard core, and one per snapshot under
/// way. While a reader exists, what its view shows is kept.
pub struct TreeReader {
    cell: ReaderCell,
    types: Types,
}

impl TreeReader {
    /// One that shows an empty tree, for as long as there is none to show.
    #[must_use]
    pub fn of_nothing() -> TreeReader {
        TreeWriter::without_reserved(Settings::default()).reader()
    }

    /// The zxid whose state this reader sees.
    #[must_use]
    pub fn view(&self) -> Zxid {
        Zxid(self.cell.view())
    }

    /// Moves the view forward, after the watches of everything up to `zxid` have been fired. `zxid`
    /// is one that was published itself.
    pub fn advance(&mut self, zxid: Zxid) {
        self.cell.advance(zxid.0);
    }

    /// The znode at `path`; `""` is the root as `"/"` is.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<Znode<'_>> {
        self.cell.find(path).map(|seen| Znode { seen, types: self.types })
    }

    /// Fetches what looking up the first [`PREFETCH_MAX`] of `paths` will wait for.
    pub fn prefetch<'p>(&self, paths: impl Iterator<Item = &'p [u8]>) {
        self.cell.prefetch(paths);
    }

    /// Another reader at the same view, which what it shows is kept for while that stands still.
    #[must_use]
    pub fn fork(&self) -> TreeReader {
        TreeReader { cell: self.cell.fork(), types: self.types }
    }

    /// The children of `path` as this reader shows them now, to be gone through piece by piece
    /// while its view moves on.
    #[must_use]
    pub fn listing(&self, path: &str) -> Option<Listing> {
        // The root has two names, and its children begin behind one slash.
        let prefix = path.trim_end_matches('/').len() + 1;
        Some(Listing { children: Children::of(path, self.cell.fork())?, prefix })
    }

    /// Every znode, parents before their children, the root (as `""`) first.
    pub fn walk(&self) -> impl Iterator<Item = Znode<'_>> {
        let mut pending = vec![self.get("").expect("there always is a root")];
        std::iter::from_fn(move || {
            let next = pending.pop()?;
            pending.extend(next.child_znodes());
            Some(next)
        })
    }
}

/// The names of a znode's children at one view, piece by piece. The tree keeps what this view shows
/// for as long as the listing is there.
pub struct Listing {
    children: Children,
    /// How much of a child's path is not its name.
    prefix: usize,
}

impl Listing {
    #[must_use]
    pub fn view(&self) -> Zxid {
        Zxid(self.children.view())
    }

    /// Looks at the next child, in the order of [`Znode::children`]: its name, where this view shows
    /// it.
    pub fn look(&mut self) -> Look<'_> {
        match self.children.look() {
            Look::Child(path) => Look::Child(&path[self.prefix..]),
            other => other,
        }
    }
}

/// The children that a znode has in the tree: those that are there, and those that are gone and are
/// kept for somebody's view. As of now, whatever the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkedChildren {
    pub count: usize,
    pub name_bytes: usize,
}

/// A znode as one view shows it.
#[derive(Clone, Copy)]
pub struct Znode<'t> {
    seen: Seen<'t>,
    types: Types,
}

impl<'t> Znode<'t> {
    /// The whole path; the root's is empty.
    #[must_use]
    pub fn path(&self) -> &'t str {
        self.seen.path()
    }

    /// `None` is null data, which is not the same as empty.
    #[must_use]
    pub fn data(&self) -> Option<&'t [u8]> {
        self.seen.version.data()
    }

    /// The stat as clients see it.
    #[must_use]
    pub fn stat(&self) -> Stat {
        client_stat(self.seen.version, self.types)
    }

    /// The stat as it is kept.
    #[must_use]
    pub fn stat_persisted(&self) -> StatPersisted {
        self.seen.version.stat()
    }

    /// `None` is the open ACL, `world:anyone` with all permissions.
    #[must_use]
    pub fn acl(&self) -> Option<&'t Arc<[Acl]>> {
        self.seen.version.acl().map(|numbered| &numbered.list)
    }

    /// What a snapshot stores for the ACL.
    #[must_use]
    pub fn acl_number(&self) -> i64 {
        self.seen.version.acl().map_or(OPEN_ACL_NUMBER, |numbered| numbered.number)
    }

    fn child_znodes(&self) -> impl Iterator<Item = Znode<'t>> + use<'t> {
        let types = self.types;
        self.seen.children().map(move |seen| Znode { seen, types })
    }

    /// The names of the children; the same order for the same unchanged znode.
    pub fn children(&self) -> impl Iterator<Item = &'t str> + use<'t> {
        let prefix = self.path().len() + 1;
        self.seen.children().map(move |child| &child.path()[prefix..])
    }

    #[must_use]
    pub fn child_count(&self) -> usize {
        usize::try_from(self.seen.version.child_count()).expect("a visible znode is no tombstone")
    }

    /// What going through the children takes, which may be far more than there are.
    #[must_use]
    pub fn linked_children(&self) -> LinkedChildren {
        let (count, name_bytes) = self.seen.linked();
        LinkedChildren { count, name_bytes }
    }

    /// How many znodes lie below this one. The tree keeps it: no walk.
    #[must_use]
    pub fn descendant_count(&self) -> u64 {
        self.seen.descendant_count()
    }
}

// ---------------------------------------------------------------------------------------------

/// A znode in the newest state, published or not: what the next transaction builds on.
#[derive(Clone, Copy)]
pub struct Newest<'t> {
    path: &'t str,
    version: &'t Version,
    types: Types,
}

impl<'t> Newest<'t> {
    #[must_use]
    pub fn path(&self) -> &'t str {
        self.path
    }

    #[must_use]
    pub fn stat(&self) -> Stat {
        client_stat(self.version, self.types)
    }

    #[must_use]
    pub fn stat_persisted(&self) -> StatPersisted {
        self.version.stat()
    }

    #[must_use]
    pub fn owner(&self) -> Owner {
        Owner::of(self.version.ephemeral_owner(), self.types)
    }

    #[must_use]
    pub fn data(&self) -> Option<&'t [u8]> {
        self.version.data()
    }

    #[must_use]
    pub fn acl(&self) -> Option<&'t Arc<[Acl]>> {
        self.version.acl().map(|numbered| &numbered.list)
    }

    #[must_use]
    pub fn child_count(&self) -> usize {
        usize::try_from(self.version.child_count()).expect("a live znode is no tombstone")
    }
}

/// What a snapshot holds of the tree besides its znodes.
pub type AclLists = Vec<(i64, Arc<[Acl]>)>;

/// Changes the tree. One per server.
pub struct TreeWriter {
    store: Store,
    settings: Settings,
    acls: AclCache,
    owned: Owned,
    quotas: Quotas,
    /// Znodes that the open transaction gave a version, in order.
    open: Vec<NodeRef>,
    digest: u64,
    znode_count: usize,
    data_bytes: i64,
    /// What no server would have made of the tree, first.
    irregular: Option<Irregular>,
    #[cfg(feature = "mutants")]
    mutant: Option<Mutant>,
}

impl TreeWriter {
    /// A tree with the four reserved znodes, as ZooKeeper makes it.
    #[must_use]
    pub fn new(settings: Settings) -> TreeWriter {
        let mut writer = TreeWriter::without_reserved(settings);
        let read = writer.acls.intern(&[Acl::new(perms::READ, "world", "anyone")]);
        for (path, acl, aversion) in
            [(ZOOKEEPER_PATH, None, 0), (QUOTA_PATH, None, 0), (CONFIG_PATH, read, -1)]
        {
            let stat = StatPersisted { aversion, ..StatPersisted::default() };
            writer.load(path, Some(b""), acl, stat).expect("parents come first");
        }
        writer
    }

    /// A tree with nothing but a root, to be filled by `load_znode`.
    #[must_use]
    pub fn without_reserved(settings: Settings) -> TreeWriter {
        let prefix = digest::prefix("", Some(b""));
        let stat = StatPersisted::default();
        let root_digest = digest::znode(prefix, &stat);
        let root = Next {
            stat,
            child_count: 0,
            data: NextData::Bytes(Some(b"")),
            acl: None,
            digest: root_digest,
            digest_prefix: prefix,
        };
        TreeWriter {
            store: Store::new(0, root),
            settings,
            acls: AclCache::default(),
            owned: Owned::default(),
            quotas: Quotas::default(),
            open: Vec::new(),
            digest: if settings.digest { u64::from(root_digest) } else { 0 },
            znode_count: 1,
            data_bytes: 0,
            irregular: None,
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }

    // ---- loading a snapshot -----------------------------------------------------------------

    /// An ACL list of a snapshot. The number that the snapshot's znodes know it by is not kept:
    /// these are each server's own, and a snapshot may have any, twice, or for the open ACL.
    pub fn load_acl(&mut self, acls: &[Acl]) -> LoadedAcl {
        LoadedAcl(self.acls.intern(acls))
    }

    /// A znode of a snapshot, parents first; the root's path is empty.
    pub fn load_znode(
        &mut self,
        path: &str,
        data: Option<&[u8]>,
        acl: &LoadedAcl,
        stat: StatPersisted,
    ) -> Result<(), Misplaced> {
        self.load(path, data, acl.0.clone(), stat)
    }

    fn load(
        &mut self,
        path: &str,
        data: Option<&[u8]>,
        acl: Option<Arc<NumberedAcl>>,
        stat: StatPersisted,
    ) -> Result<(), Misplaced> {
        if path.is_empty() {
            let children = self.store.root().live().expect("there always is a root").child_count();
            self.push(self.store.root(), 0, stat, children, NextData::Bytes(data), acl);
        } else {
            let above = path.rfind('/').map(|slash| &path[..slash]);
            let parent =
                above.and_then(|above| self.store.find(above)).ok_or(Misplaced::NoParent)?;
            if self.store.find(path).is_some() {
                return Err(Misplaced::Twice);
            }
            let version = parent.live().expect("what is found lives");
            if Owner::is_certainly_session(version.ephemeral_owner()) {
                return Err(Misplaced::BelowEphemeral);
            }
            let node = self.store.find_or_link(path, parent);
            self.push(node, 0, stat, 0, NextData::Bytes(data), acl);
            let version = parent.live().expect("what is found lives");
            let (stat, children) = (version.stat(), version.child_count() + 1);
            let acl = version.acl().cloned();
            self.push(parent, 0, stat, children, NextData::Same, acl);
        }
        self.settle();
        self.store.reclaim(usize::MAX);
        Ok(())
    }

    /// After a snapshot's znodes: what is not stored is made, and counted quotas are counted
    /// again.
    pub fn finish_loading(&mut self) {
        for path in [ZOOKEEPER_PATH, QUOTA_PATH, CONFIG_PATH] {
            if self.store.find(path).is_none() {
                let (acl, aversion) = if path == CONFIG_PATH {
                    (self.acls.intern(&[Acl::new(perms::READ, "world", "anyone")]), -1)
                } else {
                    (None, 0)
                };
                let stat = StatPersisted { aversion, ..StatPersisted::default() };
                self.load(path, Some(b""), acl, stat).expect("parents come first");
            }
        }
        let subtrees: Vec<String> = self.quotas.iter().map(str::to_owned).collect();
        for subtree in subtrees {
            self.recount(&subtree, Zxid(0));
        }
        self.settle();
        self.store.reclaim(usize::MAX);
    }

    // ---- the newest state -------------------------------------------------------------------

    /// Fetches what looking up the first [`PREFETCH_MAX`] of `paths` will wait for.
    pub fn prefetch<'p>(&self, paths: impl Iterator<Item = &'p [u8]>) {
        self.store.prefetch(paths);
    }

    /// The znode at `path` as the transactions so far leave it.
    #[must_use]
    pub fn newest(&self, path: &str) -> Option<Newest<'_>> {
        let node = self.store.find(path)?;
        self.newest_of(node)
    }

    fn newest_of(&self, node: NodeRef) -> Option<Newest<'_>> {
        // The node outlives `&self`: only `&mut self` reclaims.
        let (path, version) = self.store.borrow(node)?;
        Some(Newest { path, version, types: self.settings.types })
    }

    /// The paths of a session's ephemerals, in their order.
    pub fn ephemerals_of(&self, session: SessionId) -> impl Iterator<Item = &str> {
        self.owned.of_session(session.0).filter_map(|node| Some(self.newest_of(node)?.path))
    }

    /// Those that begin with `prefix`; with `behind`, only those that come after it.
    pub fn ephemerals_from<'t>(
        &'t self,
        session: SessionId,
        prefix: &'t str,
        behind: Option<&'t str>,
    ) -> impl Iterator<Item = &'t str> {
        let owned = self.owned.of_session_from(session.0, prefix, behind);
        let paths = owned.filter_map(|node| Some(self.newest_of(node)?.path));
        paths.take_while(move |path| path.starts_with(prefix))
    }

    /// Whether an ephemeral is this session's.
    #[must_use]
    pub fn owns(&self, session: SessionId, path: &str) -> bool {
        self.owned.owns(session.0, path)
    }

    /// From now on it is noted what of a session's ephemerals goes.
    pub fn note_disowned_by(&mut self, session: SessionId) {
        self.owned.disowned.entry(session.0).or_default();
    }

    /// What has gone since this was last asked, where it is noted.
    pub fn take_disowned_by(&mut self, session: SessionId) -> Vec<String> {
        self.owned.disowned.get_mut(&session.0).map(std::mem::take).unwrap_or_default()
    }

    /// It is noted no more.
    pub fn forget_disowned_by(&mut self, session: SessionId) {
        self.owned.disowned.remove(&session.0);
    }

    /// All ephemerals, by session and path, that come after a place in this order.
    pub fn ephemerals_after<'t>(
        &'t self,
        session: SessionId,
        path: &'t str,
    ) -> impl Iterator<Item = (SessionId, &'t str)> {
        let owned = self.owned.after(session.0, path);
        owned.filter_map(|(session, node)| Some((SessionId(session), self.newest_of(node)?.path)))
    }

    /// The sessions that own a znode.
    pub fn owning_sessions(&self) -> impl Iterator<Item = SessionId> + '_ {
        self.owned.sessions().map(SessionId)
    }

    /// How owner numbers are read.
    #[must_use]
    pub fn types(&self) -> Types {
        self.settings.types
    }

    /// Containers, and znodes with a TTL.
    pub fn reapable(&self) -> impl Iterator<Item = Newest<'_>> {
        self.owned.containers().chain(self.owned.ttls()).filter_map(|node| self.newest_of(node))
    }

    /// The deepest subtree with a quota that `path` is in.
    #[must_use]
    pub fn quota_of(&self, path: &str) -> Option<&str> {
        self.quotas.deepest(path)
    }

    /// ZooKeeper's digest of the newest state.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest
    }

    #[must_use]
    pub fn znode_count(&self) -> usize {
        self.znode_count
    }

    #[must_use]
    pub fn ephemeral_count(&self) -> usize {
        self.owned.ephemeral_count()
    }

    /// Bytes of data and paths.
    #[must_use]
    pub fn data_bytes(&self) -> i64 {
        self.data_bytes
    }

    #[must_use]
    pub fn acl_lists(&self) -> AclLists {
        self.acls.numbered()
    }

    /// Versions and other pieces that wait for readers to move on.
    #[must_use]
    pub fn waiting_to_be_freed(&self) -> usize {
        self.store.waiting()
    }

    // ---- transactions -----------------------------------------------------------------------

    /// How far the open transaction has come, for `undo_to`.
    #[must_use]
    pub fn mark(&self) -> usize {
        self.open.len()
    }

    /// Takes back what the open transaction did since `mark`.
    pub fn undo_to(&mut self, mark: usize) {
        while self.open.len() > mark {
            let node = self.open.pop().expect("longer than the mark");
            self.take_back(node);
        }
    }

    /// Takes back a znode's newest version, and what came of it.
    fn take_back(&mut self, node: NodeRef) {
        let undone = node.live().map(Account::of);
        let restored = self.store.below_newest(&node).filter(|v| !v.is_tombstone());
        let restored = restored.map(Account::of);
        self.account(node, undone, restored);
        if undone.is_some() != restored.is_some() {
            self.store.uncount(node, if undone.is_some() { 1 } else { -1 });
        }
        self.store.pop_open_counts(self.open.len());
        self.store.pop(node);
    }

    /// What `/zookeeper/config` says: each server of an ensemble writes it at its start, without a
    /// transaction, and its digest is nobody's (`ZKDatabase.initConfigInZKDatabase`). `version` is that
    /// of the configuration. Nobody reads the tree yet. No later roll back takes it back: a
    /// transaction about it that is not published yet is published here, with all before it.
    pub fn set_config(&mut self, config: &str, version: i64, time: i64) {
        let node = self.store.find(CONFIG_PATH).expect("it is there from the start");
        let newest = self.store.newest_zxid(&node).expect("what is found has a version");
        self.store.publish(newest.max(self.store.published()));
        let before = node.live().expect("what is found lives");
        let stat = StatPersisted { mzxid: version, mtime: time, version: -1, ..before.stat() };
        let (children, acl) = (before.child_count(), before.acl().cloned());
        let data = NextData::Bytes(Some(config.as_bytes()));
        self.push(node, self.store.published(), stat, children, data, acl);
        self.open.clear();
        self.store.settle_published(node);
    }

    /// The open transaction stands.
    pub fn settle(&mut self) {
        if self.open.len() > 2 {
            // Each znode once, where it was touched last.
            let mut seen = HashSet::with_hasher(foldhash::fast::FixedState::default());
            self.open.reverse();
            self.open.retain(|node| seen.insert(*node));
            self.open.reverse();
        }
        self.store.settle(self.open.drain(..));
    }

    /// All up to `zxid` was applied together: it will be published whole, so that no view stands
    /// between. Without this each transaction that is published is for itself.
    pub fn seal(&mut self, zxid: Zxid) {
        self.store.seal(zxid.0);
    }

    /// From now on views may stand at `zxid`: it is committed.
    pub fn publish(&mut self, zxid: Zxid) {
        self.store.publish(zxid.0);
    }

    #[must_use]
    pub fn published(&self) -> Zxid {
        Zxid(self.store.published())
    }

    /// How many pieces came to be freed, sooner or later, since this was last asked.
    pub fn take_replaced(&mut self) -> usize {
        self.store.take_replaced()
    }

    /// Frees what no view can reach, at most `budget` pieces.
    pub fn reclaim(&mut self, budget: usize) {
        assert!(self.open.is_empty(), "nothing is freed inside a transaction");
        self.store.reclaim(budget);
    }

    /// A reader at the newest published zxid.
    pub fn reader(&mut self) -> TreeReader {
        TreeReader { cell: self.store.reader(), types: self.settings.types }
    }

    /// The one way by which a znode gets its next state.
    fn push(
        &mut self,
        node: NodeRef,
        zxid: i64,
        stat: StatPersisted,
        child_count: i32,
        data: NextData<'_>,
        acl: Option<Arc<NumberedAcl>>,
    ) {
        let before = node.live();
        let digest_prefix = match (&data, before) {
            _ if !self.settings.digest => 0,
            (NextData::Same, Some(before)) => before.digest_prefix(),
            (NextData::Same, None) => digest::prefix(node.path(), None),
            (NextData::Bytes(bytes), _) => digest::prefix(node.path(), *bytes),
        };
        let digest = if self.settings.digest { digest::znode(digest_prefix, &stat) } else { 0 };
        let before = before.map(Account::of);
        self.store.push(node, zxid, Next { stat, child_count, data, acl, digest, digest_prefix });
        let after = node.live().map(Account::of);
        self.account(node, before, after);
        if before.is_none() {
            self.store.count(node, zxid, 1, self.open.len());
        }
        self.open.push(node);
    }

    fn push_tombstone(&mut self, node: NodeRef, zxid: i64) {
        let before = node.live().map(Account::of);
        self.store.push_tombstone(node, zxid);
        self.account(node, before, None);
        if before.is_some() {
            self.store.count(node, zxid, -1, self.open.len());
        }
        self.open.push(node);
    }

    /// Keeps the sums and indexes in step with one znode's change of state.
    fn account(&mut self, node: NodeRef, before: Option<Account>, after: Option<Account>) {
        let path = node.path();
        if digest::counts(path) {
            let part = |account: Option<Account>| account.map_or(0, |a| u64::from(a.digest));
            self.digest = self.digest.wrapping_sub(part(before)).wrapping_add(part(after));
        }
        let bytes = |account: Option<Account>| account.map_or(0, |a| a.data_bytes);
        self.data_bytes += bytes(after) - bytes(before);
        let owner = |account: Option<Account>| account.map_or(0, |a| a.owner);
        if owner(before) != owner(after) {
            self.owned.remove(Owner::of(owner(before), self.settings.types), node);
            self.owned.insert(Owner::of(owner(after), self.settings.types), node);
        }
        if before.is_some() == after.is_some() {
            return;
        }
        let path_bytes = i64::try_from(path.len()).expect("a path is below 2^63 bytes");
        if after.is_some() {
            self.znode_count += 1;
            self.data_bytes += path_bytes;
            if let Some(subtree) = quota::subtree_of_limits(path) {
                self.quotas.insert(subtree);
            }
        } else {
            self.znode_count -= 1;
            self.data_bytes -= path_bytes;
            if let Some(subtree) = quota::subtree_of_limits(path) {
                self.quotas.remove(subtree);
            }
        }
    }
}

/// What one state of a znode adds to the sums.
#[derive(Clone, Copy)]
struct Account {
    digest: u32,
    owner: i64,
    data_bytes: i64,
}

impl Account {
    fn of(version: &Version) -> Account {
        Account {
            digest: version.digest(),
            owner: version.ephemeral_owner(),
            data_bytes: version.data().map_or(0, |data| data.len() as i64),
        }
    }
}

/// Why a znode of a snapshot cannot be where it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misplaced {
    #[error("comes before its parent")]
    NoParent,
    #[error("comes twice")]
    Twice,
    #[error("is below an ephemeral znode")]
    BelowEphemeral,
}

/// An ACL list of a snapshot that is being loaded.
#[derive(Clone, Default)]
pub struct LoadedAcl(Option<Arc<NumberedAcl>>);

impl LoadedAcl {
    /// What -1 stands for.
    pub const OPEN: LoadedAcl = LoadedAcl(None);
}

#[cfg(test)]
mod roll_back_tests;
#[cfg(test)]
mod tests;
