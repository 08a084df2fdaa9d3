//! Versions, views, and what may be freed: with `arena.rs` the unsafe part of the tree.
//!
//! One thread writes (`Store`), any number read (`Snapshot` of one view, within `TreeReader`).
//! A znode is a `Node` that never moves, and its states are `Version`s, newest first:
//!
//! ```text
//! index slot ─► Node ── head ─► Version 0x9 ── prev ─► Version 0x5 ── prev ─► null
//!                │ family                     (a tombstone where it was deleted)
//!                ▼
//!              Family ── counted ─► Count 0x9 ── prev ─► Count 0x7 ── prev ─► null
//!                │ first_child
//!                ▼
//!               Node ── next_sibling ─► Node ─► …
//! ```
//!
//! A reader sees the first version at or below its view, and nothing where that is a tombstone.
//! How many znodes live below one is a chain of its own, which every create and delete below
//! extends on its way up to the root. Only a znode that has had children has a `Family`, so that
//! the many leaves pay nothing for it.
//! Views only move forward and only to what is published; `advance` holds them to it, and so sees
//! all that was done to the tree before that was published.
//!
//! What makes it sound, in two rules that `reclaim` keeps:
//!
//! 1. *A version (or count) is freed once no view is below its successor's zxid.* Every reader
//!    then stops at the successor or before, and none follows the successor's `prev`.
//! 2. *What is unlinked (a node, an index table, a version or count taken back) is freed once
//!    every view is above all that was published when it was unlinked.* A reader keeps references
//!    only while its view stands still (`TreeReader::advance` takes `&mut self`), so a view that
//!    has moved since says that its reader holds none of them.
//!
//! Nodes, families, versions, counts and data live in the tree's arena and go back to it exactly once: in `reclaim`,
//! or when `Shared` is dropped, which only happens when neither writer nor reader is left.

#![expect(unsafe_code, reason = "readers of other cores follow pointers that one core changes")]

use std::alloc::Layout;
use std::borrow::Borrow;
use std::cell::Cell;
use std::collections::VecDeque;
use std::hash::{BuildHasher as _, Hasher as _};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use crossbeam::utils::CachePadded;
use parking_lot::Mutex;

use super::arena::{self, Arena};
use crate::record::data::{Acl, StatPersisted};

/// `child_count` of a version that says the znode is gone.
const TOMBSTONE: i32 = -1;

/// A znode's bytes, shared between versions that differ in other things. Only the writer counts
/// references; readers are kept safe by the version that refers to it.
struct Data {
    references: Cell<u32>,
    length: u32,
    // `length` bytes follow.
}

impl Data {
    fn layout(length: usize) -> Layout {
        let bytes = Layout::array::<u8>(length).expect("a znode's data fits in memory");
        Layout::new::<Data>().extend(bytes).expect("a znode's data fits in memory").0
    }

    /// # Safety
    /// Writer only.
    unsafe fn new(arena: &Arena, bytes: &[u8]) -> *mut Data {
        let length = u32::try_from(bytes.len()).expect("a znode's data is below 4 GiB");
        // SAFETY: by the caller; the layout has a non-zero size (the header), and header and bytes
        // are written within the layout just allocated.
        unsafe {
            let data = arena.allocate(Data::layout(bytes.len())).cast::<Data>().as_ptr();
            data.write(Data { references: Cell::new(1), length });
            ptr::copy_nonoverlapping(bytes.as_ptr(), data.add(1).cast::<u8>(), bytes.len());
            data
        }
    }

    /// The bytes behind the header.
    ///
    /// # Safety
    /// `data` is one that `new` made and `release` did not free, for all of `'a`.
    unsafe fn bytes<'a>(data: *const Data) -> &'a [u8] {
        // SAFETY: by the caller; `new` wrote `length` bytes behind the header, and nobody changes
        // them.
        unsafe { std::slice::from_raw_parts(data.add(1).cast::<u8>(), (*data).length as usize) }
    }

    /// # Safety
    /// Writer only; `data` is alive, and this reference is not used again.
    unsafe fn release(data: *mut Data) {
        // SAFETY: by the caller; the last reference frees with the layout of `new`.
        unsafe {
            let references = (*data).references.get() - 1;
            (*data).references.set(references);
            if references == 0 {
                arena::free(data.cast(), Data::layout((*data).length as usize));
            }
        }
    }
}

/// An ACL with the number that snapshots give it. Kept by the writer's cache for as long as a
/// version uses it.
pub(super) struct NumberedAcl {
    pub(super) number: i64,
    pub(super) list: Arc<[Acl]>,
}

/// One state of a znode, immutable but for `prev`, which the writer cuts.
pub(super) struct Version {
    zxid: i64,
    prev: AtomicPtr<Version>,
    czxid: i64,
    mzxid: i64,
    ctime: i64,
    mtime: i64,
    pzxid: i64,
    ephemeral_owner: i64,
    version: i32,
    cversion: i32,
    aversion: i32,
    child_count: i32,
    /// Null: null data.
    data: *mut Data,
    /// The open ACL where `None`.
    acl: Option<Arc<NumberedAcl>>,
    digest: u32,
    /// CRC-32 of path and data: where the digest of a change of stat alone begins.
    digest_prefix: u32,
}

impl Version {
    pub(super) fn stat(&self) -> StatPersisted {
        StatPersisted {
            czxid: self.czxid,
            mzxid: self.mzxid,
            ctime: self.ctime,
            mtime: self.mtime,
            version: self.version,
            cversion: self.cversion,
            aversion: self.aversion,
            ephemeral_owner: self.ephemeral_owner,
            pzxid: self.pzxid,
        }
    }

    pub(super) fn is_tombstone(&self) -> bool {
        self.child_count == TOMBSTONE
    }

    pub(super) fn child_count(&self) -> i32 {
        self.child_count
    }

    pub(super) fn ephemeral_owner(&self) -> i64 {
        self.ephemeral_owner
    }

    pub(super) fn data(&self) -> Option<&[u8]> {
        if self.data.is_null() {
            return None;
        }
        // SAFETY: this version holds a reference to its data until it is freed itself, and
        // `&self` says that it is not.
        Some(unsafe { Data::bytes(self.data) })
    }

    pub(super) fn acl(&self) -> Option<&Arc<NumberedAcl>> {
        self.acl.as_ref()
    }

    pub(super) fn digest(&self) -> u32 {
        self.digest
    }

    pub(super) fn digest_prefix(&self) -> u32 {
        self.digest_prefix
    }
}

impl Version {
    /// # Safety
    /// The version came from `Store::push_version`, and nobody reads it any more; it is freed once,
    /// by the writer, or with `Shared`, when nobody else is left.
    unsafe fn free(version: *mut Version) {
        // SAFETY: by the caller; each version holds one reference to its data.
        unsafe {
            let data = (*version).data;
            if !data.is_null() {
                Data::release(data);
            }
            version.drop_in_place();
            arena::free(version.cast(), Layout::new::<Version>());
        }
    }
}

/// What the next version of a znode has for data.
pub(super) enum NextData<'a> {
    /// The same as before.
    Same,
    Bytes(Option<&'a [u8]>),
}

/// What the next version of a znode is to be.
pub(super) struct Next<'a> {
    pub(super) stat: StatPersisted,
    pub(super) child_count: i32,
    pub(super) data: NextData<'a>,
    pub(super) acl: Option<Arc<NumberedAcl>>,
    pub(super) digest: u32,
    pub(super) digest_prefix: u32,
}

/// How many znodes live below one, from `zxid` on. One serves all transactions of a batch, between
/// whose zxids no view stands (`Store::seal`).
struct Count {
    zxid: i64,
    prev: AtomicPtr<Count>,
    /// Changes only while no view can be at or above `zxid`.
    znodes: AtomicU64,
}

/// What a znode has as long as it has children, and keeps when they are gone.
struct Family {
    first_child: AtomicPtr<Node>,
    /// How many children are linked, those that are gone and not freed yet among them; and the bytes
    /// of their names. The writer's to change.
    linked: AtomicUsize,
    name_bytes: AtomicUsize,
    /// Null: no znode has ever lived below this one.
    counted: AtomicPtr<Count>,
}

impl Family {
    /// # Safety
    /// Nobody reads the family any more, and it is freed once.
    unsafe fn free(family: *mut Family) {
        // SAFETY: by the caller; the family owns its chain, and all of it came from the arena.
        unsafe {
            let mut doomed = *(*family).counted.get_mut();
            while !doomed.is_null() {
                let before = *(*doomed).prev.get_mut();
                Count::free(std::mem::replace(&mut doomed, before));
            }
            arena::free(family.cast(), Layout::new::<Family>());
        }
    }

    /// A child was linked or unlinked. Writer only.
    fn count_linked(&self, change: isize, name_bytes: usize) {
        let count = |sum: &AtomicUsize, change| {
            let sum_now = sum.load(Ordering::Relaxed).checked_add_signed(change);
            sum.store(sum_now.expect("what is unlinked was linked"), Ordering::Relaxed);
        };
        count(&self.linked, change);
        count(&self.name_bytes, change * name_bytes.cast_signed());
    }

    /// How many znodes live below in a view.
    fn count_at(&self, view: i64) -> u64 {
        let mut count = self.counted.load(Ordering::Acquire);
        // SAFETY: as in `Node::at`.
        while let Some(seen) = unsafe { count.as_ref() } {
            if seen.zxid <= view {
                return seen.znodes.load(Ordering::Relaxed);
            }
            count = seen.prev.load(Ordering::Acquire);
        }
        0
    }
}

impl Count {
    /// # Safety
    /// The count came from `Store::count`, and nobody reads it any more; it is freed once, by the
    /// writer, or with `Shared`, when nobody else is left.
    unsafe fn free(count: *mut Count) {
        // SAFETY: by the caller.
        unsafe { arena::free(count.cast(), Layout::new::<Count>()) }
    }
}

/// A znode's place: its path, its family, and the newest of its versions. The path lies behind it
/// in the same allocation: a lookup that compares paths touches no further cache line for it. It
/// begins where the last field ends, in what would be padding.
#[repr(C)]
pub(super) struct Node {
    /// Null only while it is being made or was taken back.
    head: AtomicPtr<Version>,
    /// Null until there is a first child; then it stays.
    family: AtomicPtr<Family>,
    next_sibling: AtomicPtr<Node>,
    /// The writer's alone.
    prev_sibling: Cell<*mut Node>,
    /// Null for the root. Does not change.
    parent: *mut Node,
    path_length: u32,
    // `path_length` bytes of UTF-8 follow.
}

impl Node {
    const PATH_OFFSET: usize = std::mem::offset_of!(Node, path_length) + size_of::<u32>();

    fn layout(path_length: usize) -> Layout {
        let bytes = (Node::PATH_OFFSET + path_length).max(size_of::<Node>());
        Layout::from_size_align(bytes, align_of::<Node>()).expect("a path fits in memory")
    }

    /// # Safety
    /// Writer only.
    unsafe fn new(arena: &Arena, path: &str, parent: *mut Node) -> *mut Node {
        let path_length = u32::try_from(path.len()).expect("a path is below 4 GiB");
        // SAFETY: by the caller; the layout has a non-zero size (the node), and node and path are
        // written within the layout just allocated.
        unsafe {
            let node = arena.allocate(Node::layout(path.len())).cast::<Node>().as_ptr();
            node.write(Node {
                head: AtomicPtr::default(),
                family: AtomicPtr::default(),
                next_sibling: AtomicPtr::default(),
                prev_sibling: Cell::new(ptr::null_mut()),
                parent,
                path_length,
            });
            let behind = node.cast::<u8>().add(Node::PATH_OFFSET);
            ptr::copy_nonoverlapping(path.as_ptr(), behind, path.len());
            node
        }
    }

    /// The path behind the node.
    ///
    /// # Safety
    /// `node` is the pointer that `new` gave, or a copy of it, and is not freed for all of `'a`. A
    /// pointer made from a reference will not do: it leads to the node alone.
    unsafe fn path<'a>(node: *const Node) -> &'a str {
        // SAFETY: by the caller; `new` wrote the bytes of a `str` of that length behind the node,
        // and nobody changes them.
        unsafe {
            let length = (*node).path_length as usize;
            let behind = node.cast::<u8>().add(Node::PATH_OFFSET);
            let bytes = std::slice::from_raw_parts(behind, length);
            std::str::from_utf8_unchecked(bytes)
        }
    }

    /// How long a child's name is: its path without its parent's and the slash between them.
    ///
    /// # Safety
    /// As of `path`; the node has a parent, which is linked.
    unsafe fn name_bytes(node: *const Node) -> usize {
        // SAFETY: by the caller.
        unsafe { ((*node).path_length - (*(*node).parent).path_length) as usize - 1 }
    }

    /// # Safety
    /// `node` is the pointer that `new` gave, or a copy of it; nobody reads it any more, and it is
    /// freed once.
    unsafe fn free(node: *mut Node) {
        // SAFETY: by the caller; the layout is that of `new`.
        unsafe {
            let layout = Node::layout((*node).path_length as usize);
            node.drop_in_place();
            arena::free(node.cast(), layout);
        }
    }

    /// The state that a view shows.
    fn at(&self, view: i64) -> Option<&Version> {
        let mut version = self.head.load(Ordering::Acquire);
        loop {
            // SAFETY: `head` is null or a version that is not freed while this view stands still:
            // rule 1 for those linked, rule 2 for one that was taken back.
            let seen = unsafe { version.as_ref() }?;
            if seen.zxid <= view {
                return (!seen.is_tombstone()).then_some(seen);
            }
            version = seen.prev.load(Ordering::Acquire);
        }
    }

    fn family(&self) -> Option<&Family> {
        // SAFETY: null, or a family that is freed with its node.
        unsafe { self.family.load(Ordering::Acquire).as_ref() }
    }

    /// Null where there is none.
    fn first_child(&self) -> *mut Node {
        self.family().map_or(ptr::null_mut(), |family| family.first_child.load(Ordering::Acquire))
    }

    fn newest(&self) -> Option<&Version> {
        // SAFETY: only the writer asks, and it frees nothing while it holds `&self` of a node
        // that is linked.
        unsafe { self.head.load(Ordering::Relaxed).as_ref() }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let mut version = *self.head.get_mut();
        while !version.is_null() {
            // SAFETY: the node owns its chain, and nobody reads a node that is being dropped.
            unsafe {
                let doomed = version;
                version = *(*doomed).prev.get_mut();
                Version::free(doomed);
            }
        }
        let family = *self.family.get_mut();
        if !family.is_null() {
            // SAFETY: the node owns its family.
            unsafe { Family::free(family) };
        }
    }
}

// ---------------------------------------------------------------------------------------------
// The index: path to node. Open addressing; a slot is a pointer with 16 bits of hash above it.

const EMPTY: u64 = 0;
const REMOVED: u64 = 1;
const POINTER_BITS: u32 = 48;
const POINTER_MASK: u64 = (1 << POINTER_BITS) - 1;
const TABLE_SLOTS_MIN: usize = 64;
/// How many slots of an outgrown table move with each insert: more than are filled meanwhile.
const MOVED_PER_INSERT: usize = 8;

struct Table {
    slots: Box<[AtomicU64]>,
}

impl Table {
    fn new(slots: usize) -> Table {
        assert!(slots.is_power_of_two());
        // All zero, which is `EMPTY`: a large one is the kernel's to zero, page by page, when used.
        Table { slots: bytemuck::zeroed_slice_box(slots) }
    }

    fn mask(&self) -> usize {
        self.slots.len() - 1
    }

    fn pack(hash: u64, node: *mut Node) -> u64 {
        let address = node.expose_provenance() as u64;
        assert!(address & !POINTER_MASK == 0, "user-space addresses have 48 bits");
        (hash & !POINTER_MASK) | address
    }

    fn unpack(slot: u64) -> *mut Node {
        ptr::with_exposed_provenance_mut((slot & POINTER_MASK) as usize)
    }

    /// The node of `path`, dead or alive.
    fn find(&self, hash: u64, path: &str) -> Option<NonNull<Node>> {
        let mut at = hash as usize & self.mask();
        loop {
            let slot = self.slots[at].load(Ordering::Acquire);
            if slot == EMPTY {
                return None;
            }
            if slot != REMOVED && slot & !POINTER_MASK == hash & !POINTER_MASK {
                let node = Table::unpack(slot);
                // SAFETY: a node in a table is not freed while a view stands still that could
                // have found it there (rule 2), and what is packed is the pointer of `new`.
                if unsafe { Node::path(node) } == path {
                    return NonNull::new(node);
                }
            }
            at = (at + 1) & self.mask();
        }
    }

    /// Writer only. The node is not in the table. Says whether it took a slot that was empty,
    /// rather than one that a removed node has left.
    fn insert(&self, hash: u64, node: *mut Node) -> bool {
        let mut at = hash as usize & self.mask();
        loop {
            let slot = self.slots[at].load(Ordering::Relaxed);
            if slot <= REMOVED {
                self.slots[at].store(Table::pack(hash, node), Ordering::Release);
                return slot == EMPTY;
            }
            at = (at + 1) & self.mask();
        }
    }

    /// Writer only. False where the node is not in the table.
    fn remove(&self, hash: u64, node: *mut Node) -> bool {
        let wanted = Table::pack(hash, node);
        let mut at = hash as usize & self.mask();
        loop {
            match self.slots[at].load(Ordering::Relaxed) {
                EMPTY => return false,
                slot if slot == wanted => {
                    self.slots[at].store(REMOVED, Ordering::Relaxed);
                    return true;
                }
                _ => at = (at + 1) & self.mask(),
            }
        }
    }
}

/// The tables as a reader must take them: together.
struct Tables {
    current: Arc<Table>,
    /// What `current` outgrew, while nodes still move; it stays whole until all have.
    outgrown: Option<Arc<Table>>,
}

// ---------------------------------------------------------------------------------------------

/// What writer and readers hold in common. Freed with the last of them.
struct Shared {
    tables: AtomicPtr<Tables>,
    /// The newest zxid that a view may stand at. Apart from what readers look at all the time.
    published: CachePadded<AtomicI64>,
    root: *mut Node,
    hasher: foldhash::fast::RandomState,
    arena: Arena,
    /// The views. A reader that adds one does so while its own stands still, and whoever looks for
    /// the lowest holds the lock all the while: so the lowest is never above a view that was added.
    slots: Mutex<Vec<Arc<Slot>>>,
    /// What the writer left behind when it was dropped before the readers.
    left_behind: Mutex<Vec<Garbage>>,
}

// SAFETY: what the pointers lead to is read by any thread under the two rules above and changed
// by the one thread that owns the `Store`; `Data::references`, `Node::prev_sibling` and the
// slots' bookkeeping are touched by that thread alone.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn hash(&self, path: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(path);
        hasher.finish()
    }

    fn find(&self, path: &str) -> Option<NonNull<Node>> {
        if path.is_empty() || path == "/" {
            return NonNull::new(self.root);
        }
        let hash = self.hash(path.as_bytes());
        // SAFETY: `tables` is never null, and rule 2 holds for what it pointed to.
        let tables = unsafe { &*self.tables.load(Ordering::Acquire) };
        tables
            .current
            .find(hash, path)
            .or_else(|| tables.outgrown.as_ref().and_then(|table| table.find(hash, path)))
    }
}

/// For how many paths `prefetch` looks ahead: as many lines as a processor fetches side by side.
pub const PREFETCH_MAX: usize = 16;
/// Longer ones cost more to hash than they save.
const PREFETCH_PATH_BYTES_MAX: usize = 1024;
const CACHE_LINE_BYTES: usize = 64;

impl Shared {
    /// Fetches what looking up the first `PREFETCH_MAX` of `paths` will go through. In a tree that
    /// is larger than the caches every step of a lookup waits for memory; here all lookups take
    /// each step together.
    fn prefetch<'p>(&self, paths: impl Iterator<Item = &'p [u8]>) {
        // SAFETY: as in `find`.
        let table = unsafe { &*(*self.tables.load(Ordering::Acquire)).current };
        let mut slots = [0; PREFETCH_MAX];
        let mut count = 0;
        let paths = paths.filter(|path| path.len() <= PREFETCH_PATH_BYTES_MAX);
        for (slot, path) in slots.iter_mut().zip(paths) {
            *slot = self.hash(path) as usize & table.mask();
            fetch(&raw const table.slots[*slot]);
            count += 1;
        }
        let mut nodes = [ptr::null_mut::<Node>(); PREFETCH_MAX];
        for (node, slot) in nodes.iter_mut().zip(&slots[..count]) {
            let slot = table.slots[*slot].load(Ordering::Acquire);
            if slot > REMOVED {
                *node = Table::unpack(slot);
                fetch(*node);
                fetch(node.wrapping_byte_add(CACHE_LINE_BYTES));
            }
        }
        let mut versions = [None; PREFETCH_MAX];
        for (version, node) in versions.iter_mut().zip(&nodes[..count]) {
            // SAFETY: it need not be the node of that path, but it is one in a table (rule 2), and
            // looking begins at the newest version.
            *version = unsafe {
                node.as_ref().and_then(|node| node.head.load(Ordering::Acquire).as_ref())
            };
            if let Some(version) = *version {
                fetch(ptr::from_ref(version));
                fetch(ptr::from_ref(version).wrapping_byte_add(CACHE_LINE_BYTES));
            }
        }
        for version in versions.into_iter().flatten() {
            fetch(version.data);
        }
    }
}

/// Asks for the cache line of an address, wherever that is.
fn fetch<T>(address: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: only a hint: nothing is read that anyone would see.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = address;
}

impl Shared {
    /// The lowest view of any reader; `GONE` without readers.
    fn lowest_view(&self) -> i64 {
        let mut slots = self.slots.lock();
        let mut lowest = GONE;
        slots.retain(|slot| {
            let view = slot.load(Ordering::Acquire);
            lowest = lowest.min(view);
            view != GONE
        });
        lowest
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.left_behind.get_mut().clear();
        let mut doomed = vec![self.root];
        while let Some(node) = doomed.pop() {
            // SAFETY: nobody is left who could read; every linked node is the child of exactly
            // one, so each is freed once.
            unsafe {
                let mut child = (*node).first_child();
                while !child.is_null() {
                    doomed.push(child);
                    child = *(*child).next_sibling.get_mut();
                }
                Node::free(node);
            }
        }
        // SAFETY: made by `Box::into_raw`, replaced only together with its retirement.
        drop(unsafe { Box::from_raw(*self.tables.get_mut()) });
    }
}

/// What no new reader can reach; dropped when no old one can hold it.
enum Garbage {
    Node(*mut Node),
    Version(*mut Version),
    Count(*mut Count),
    Tables(*mut Tables),
}

// SAFETY: only moved to the thread that drops it, after both rules allow it.
unsafe impl Send for Garbage {}

impl Drop for Garbage {
    fn drop(&mut self) {
        // SAFETY: each was unlinked before it became garbage, and becomes garbage once.
        unsafe {
            match *self {
                Garbage::Node(node) => Node::free(node),
                Garbage::Version(version) => Version::free(version),
                Garbage::Count(count) => Count::free(count),
                Garbage::Tables(tables) => drop(Box::from_raw(tables)),
            }
        }
    }
}

/// Where a reader says what it looks at: its view, or `GONE`.
type Slot = CachePadded<AtomicI64>;
/// In the slot of a reader that was dropped.
const GONE: i64 = i64::MAX;

// ---------------------------------------------------------------------------------------------

/// A znode of the writer's: linked, so alive for as long as the writer does not reclaim.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NodeRef(NonNull<Node>);

// SAFETY: only a `Store` makes use of one, and it goes with the `Store` to another thread.
unsafe impl Send for NodeRef {}

impl NodeRef {
    fn node(&self) -> &Node {
        // SAFETY: a `NodeRef` is handed out for linked nodes, and kept (in the indexes of
        // `TreeWriter`) only while its znode lives, which is before it is unlinked.
        unsafe { self.0.as_ref() }
    }

    pub(super) fn path(&self) -> &str {
        // SAFETY: as for `node`, and what is wrapped is the pointer of `Node::new`.
        unsafe { Node::path(self.0.as_ptr()) }
    }

    /// The newest state, if the znode lives in it.
    pub(super) fn live(&self) -> Option<&Version> {
        self.node().newest().filter(|version| !version.is_tombstone())
    }

    /// The children that live in the newest state.
    pub(super) fn children(&self) -> impl Iterator<Item = NodeRef> + use<> {
        let mut next = self.node().first_child();
        // Behind the last of them there may be very many that are gone.
        let mut left = self.live().map_or(0, Version::child_count);
        std::iter::from_fn(move || {
            while 0 < left {
                let child = NodeRef(NonNull::new(next)?);
                next = child.node().next_sibling.load(Ordering::Relaxed);
                if child.live().is_some() {
                    left -= 1;
                    return Some(child);
                }
            }
            None
        })
    }
}

/// In the order of their paths, as `Ord` has it.
impl Borrow<str> for NodeRef {
    fn borrow(&self) -> &str {
        self.path()
    }
}

impl PartialOrd for NodeRef {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for NodeRef {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.path().cmp(other.path())
    }
}

/// A version, count or family as the writer names it for itself: alive for as long as it does.
struct Named<T>(NonNull<T>);

impl<T> Named<T> {
    /// # Safety
    /// It is alive, and only the writer asks.
    unsafe fn get<'s>(&self) -> &'s T {
        // SAFETY: by the caller.
        unsafe { self.0.as_ref() }
    }
}

// SAFETY: only a `Store` makes use of one, and it goes with the `Store` to another thread.
unsafe impl<T> Send for Named<T> {}

/// A version or count whose predecessors no reader needs once every view has reached it.
enum Superseding {
    Version(Named<Version>, NodeRef),
    /// With the family that it is of.
    Count(Named<Count>, Named<Family>),
}

impl Superseding {
    /// # Safety
    /// It is in the queue of the `Store` that asks.
    unsafe fn zxid(&self) -> i64 {
        // SAFETY: what an entry names is freed after the entry, as `free_superseded` says.
        unsafe {
            match self {
                Superseding::Version(version, _) => version.get().zxid,
                Superseding::Count(count, _) => count.get().zxid,
            }
        }
    }
}

/// The writer's half.
pub(super) struct Store {
    shared: Arc<Shared>,
    /// The newest zxid that a view may stand at.
    published: i64,
    /// Up to here no count changes any more. Views stand at or below, or will stand above all that
    /// was applied since.
    sealed: i64,
    /// The last transaction that changed a count in place.
    counted_in_place: i64,
    /// What has predecessors to be freed, by zxid. A znode's own entries are in the order of its
    /// life: what names its counts comes before what unlinks it. All that is not published is in
    /// here, since no view has reached it.
    superseding: VecDeque<Superseding>,
    /// Versions that no reader can reach any more, newest first: what is left of one transaction's.
    doomed: Option<Named<Version>>,
    /// Unlinked when this was the newest published zxid, oldest first.
    retired: VecDeque<(i64, Garbage)>,
    /// Families that got a count from the open transaction, and how many versions it had given
    /// before.
    counted: Vec<(usize, Named<Family>)>,
    /// Nodes in the index.
    linked: usize,
    /// Slots of the current table that are not empty.
    used: usize,
    /// The next slot of the outgrown table to move.
    moved: usize,
    /// How many pieces came to be freed, sooner or later, since it was asked.
    replaced: usize,
    /// How many pieces `reclaim` has looked at.
    #[cfg(test)]
    looked_at: usize,
}

/// Room that an empty queue of pieces to be freed keeps.
const QUEUE_KEPT: usize = 4096;

impl Store {
    /// A tree with nothing but a root in the given state.
    pub(super) fn new(zxid: i64, root: Next<'_>) -> Store {
        let arena = Arena::new();
        // SAFETY: the arena is this thread's alone, which becomes the writer.
        let node = unsafe { Node::new(&arena, "", ptr::null_mut()) };
        let shared = Arc::new(Shared {
            tables: AtomicPtr::new(Box::into_raw(Box::new(Tables {
                current: Arc::new(Table::new(TABLE_SLOTS_MIN)),
                outgrown: None,
            }))),
            published: CachePadded::new(AtomicI64::new(zxid)),
            root: node,
            hasher: foldhash::fast::RandomState::default(),
            arena,
            slots: Mutex::default(),
            left_behind: Mutex::default(),
        });
        let mut store = Store {
            shared,
            published: zxid,
            sealed: i64::MIN,
            counted_in_place: i64::MIN,
            superseding: VecDeque::new(),
            doomed: None,
            retired: VecDeque::new(),
            counted: Vec::new(),
            linked: 0,
            used: 0,
            moved: 0,
            replaced: 0,
            #[cfg(test)]
            looked_at: 0,
        };
        let node = store.root();
        store.push(node, zxid, root);
        store
    }

    pub(super) fn root(&self) -> NodeRef {
        NodeRef(NonNull::new(self.shared.root).expect("there always is a root"))
    }

    /// A reader at the newest published zxid.
    pub(super) fn reader(&mut self) -> ReaderCell {
        assert!(
            self.published <= self.sealed || self.counted_in_place <= self.published,
            "no count shows what is not published"
        );
        self.sealed = self.sealed.max(self.published);
        ReaderCell::at(&self.shared, self.published)
    }

    /// The node of `path` if its znode lives in the newest state.
    pub(super) fn find(&self, path: &str) -> Option<NodeRef> {
        self.shared.find(path).map(NodeRef).filter(|node| node.live().is_some())
    }

    /// See [`Shared::prefetch`].
    pub(super) fn prefetch<'p>(&self, paths: impl Iterator<Item = &'p [u8]>) {
        self.shared.prefetch(paths);
    }

    /// A linked node's path and newest state, if it lives.
    pub(super) fn borrow(&self, node: NodeRef) -> Option<(&str, &Version)> {
        // SAFETY: the node is linked, and is freed by nothing but `&mut self`.
        let (path, node) = unsafe { (Node::path(node.0.as_ptr()), &*node.0.as_ptr()) };
        Some((path, node.newest().filter(|version| !version.is_tombstone())?))
    }

    /// The node of `path`, made if need be; it has no version then, and is seen by nobody.
    pub(super) fn find_or_link(&mut self, path: &str, parent: NodeRef) -> NodeRef {
        if let Some(node) = self.shared.find(path) {
            return NodeRef(node);
        }
        // SAFETY: this is the writer.
        let node = unsafe { Node::new(&self.shared.arena, path, parent.0.as_ptr()) };
        let node = NonNull::new(node).expect("made, so not null");
        self.link_to_parent(node);
        self.insert(node.as_ptr());
        NodeRef(node)
    }

    fn link_to_parent(&mut self, node: NonNull<Node>) {
        // What is linked is the pointer that `Node::new` gave, by which its path is read and it
        // will be freed: one from a reference would not be good for that.
        let pointer = node.as_ptr();
        // SAFETY: both are linked or just made, and this is the writer.
        let (node, parent) = unsafe { (node.as_ref(), &*node.as_ref().parent) };
        let family = self.family_of(parent);
        let first = family.first_child.load(Ordering::Relaxed);
        node.next_sibling.store(first, Ordering::Relaxed);
        // SAFETY: null or linked.
        if let Some(first) = unsafe { first.as_ref() } {
            first.prev_sibling.set(pointer);
        }
        // SAFETY: `pointer` and the parent's are those that `Node::new` gave.
        family.count_linked(1, unsafe { Node::name_bytes(pointer) });
        family.first_child.store(pointer, Ordering::Release);
    }

    /// A parent's family, made if need be.
    fn family_of<'n>(&self, parent: &'n Node) -> &'n Family {
        if let Some(family) = parent.family() {
            return family;
        }
        // SAFETY: this is the writer; the family is written into memory of its layout, and lives as
        // long as its node.
        unsafe {
            let memory = self.shared.arena.allocate(Layout::new::<Family>());
            let family = memory.cast::<Family>().as_ptr();
            family.write(Family {
                first_child: AtomicPtr::default(),
                linked: AtomicUsize::new(0),
                name_bytes: AtomicUsize::new(0),
                counted: AtomicPtr::default(),
            });
            parent.family.store(family, Ordering::Release);
            &*family
        }
    }

    /// Takes the node out of its family and the index. Readers that stand on it go on by its
    /// own links, which stay.
    fn unlink(&mut self, node: NodeRef) {
        let node_pointer = node.0.as_ptr();
        let (next, previous) =
            (node.node().next_sibling.load(Ordering::Relaxed), node.node().prev_sibling.get());
        // SAFETY: siblings and parent of a linked node are linked; this is the writer.
        unsafe {
            let family = (*node.node().parent).family().expect("a parent has a family");
            match previous.as_ref() {
                Some(previous) => previous.next_sibling.store(next, Ordering::Release),
                None => family.first_child.store(next, Ordering::Release),
            }
            family.count_linked(-1, Node::name_bytes(node_pointer));
            if let Some(next) = next.as_ref() {
                next.prev_sibling.set(previous);
            }
        }
        let hash = self.shared.hash(node.path().as_bytes());
        let tables = self.tables();
        let in_current = tables.current.remove(hash, node_pointer);
        let in_outgrown =
            tables.outgrown.as_ref().is_some_and(|table| table.remove(hash, node_pointer));
        assert!(in_current || in_outgrown, "a linked node is in the index");
        self.linked -= 1;
        self.retired.push_back((self.published, Garbage::Node(node_pointer)));
    }

    fn tables(&self) -> &Tables {
        // SAFETY: never null, and replaced only by this writer.
        unsafe { &*self.shared.tables.load(Ordering::Relaxed) }
    }

    fn replace_tables(&mut self, tables: Tables) {
        let new = Box::into_raw(Box::new(tables));
        let old = self.shared.tables.swap(new, Ordering::Release);
        self.retired.push_back((self.published, Garbage::Tables(old)));
    }

    fn insert(&mut self, node: *mut Node) {
        self.move_some();
        let slots = self.tables().current.slots.len();
        if (self.used + 1) * 4 > slots * 3 {
            while self.tables().outgrown.is_some() {
                self.move_some();
            }
            let outgrown = Arc::clone(&self.tables().current);
            self.replace_tables(Tables {
                current: Arc::new(Table::new(slots_for(self.linked + 1, slots))),
                outgrown: Some(outgrown),
            });
            (self.used, self.moved) = (0, 0);
        }
        // SAFETY: just made, or linked.
        let hash = self.shared.hash(unsafe { Node::path(node) }.as_bytes());
        self.used += usize::from(self.tables().current.insert(hash, node));
        self.linked += 1;
    }

    fn move_some(&mut self) {
        let tables = self.tables();
        let Some(outgrown) = &tables.outgrown else { return };
        let end = (self.moved + MOVED_PER_INSERT).min(outgrown.slots.len());
        let mut used = 0;
        for slot in &outgrown.slots[self.moved..end] {
            let slot = slot.load(Ordering::Relaxed);
            if slot > REMOVED {
                let node = Table::unpack(slot);
                // SAFETY: a node in the table is linked.
                let hash = self.shared.hash(unsafe { Node::path(node) }.as_bytes());
                used += usize::from(tables.current.insert(hash, node));
            }
        }
        let (done, current) = (end == outgrown.slots.len(), Arc::clone(&tables.current));
        self.used += used;
        self.moved = end;
        if done {
            self.replace_tables(Tables { current, outgrown: None });
        }
    }

    /// Gives a znode its next state. Nobody sees it before `zxid` is published.
    pub(super) fn push(&mut self, node: NodeRef, zxid: i64, next: Next<'_>) {
        let head = node.node().newest();
        assert!(head.is_none_or(|head| head.zxid <= zxid), "versions ascend");
        let data = match next.data {
            NextData::Bytes(None) => ptr::null_mut(),
            // SAFETY: this is the writer.
            NextData::Bytes(Some(bytes)) => unsafe { Data::new(&self.shared.arena, bytes) },
            NextData::Same => match head {
                Some(head) if !head.data.is_null() => {
                    // SAFETY: `head` holds a reference, so the data is alive.
                    let references = unsafe { &(*head.data).references };
                    references.set(references.get() + 1);
                    head.data
                }
                _ => ptr::null_mut(),
            },
        };
        self.push_version(node, zxid, next.stat, next.child_count, data, |version| {
            version.acl = next.acl;
            version.digest = next.digest;
            version.digest_prefix = next.digest_prefix;
        });
    }

    /// Says that a znode is gone from `zxid` on.
    pub(super) fn push_tombstone(&mut self, node: NodeRef, zxid: i64) {
        let stat = StatPersisted::default();
        self.push_version(node, zxid, stat, TOMBSTONE, ptr::null_mut(), |_| ());
    }

    fn push_version(
        &mut self,
        node: NodeRef,
        zxid: i64,
        stat: StatPersisted,
        child_count: i32,
        data: *mut Data,
        finish: impl FnOnce(&mut Version),
    ) {
        let mut version = Version {
            zxid,
            prev: AtomicPtr::new(node.node().head.load(Ordering::Relaxed)),
            czxid: stat.czxid,
            mzxid: stat.mzxid,
            ctime: stat.ctime,
            mtime: stat.mtime,
            pzxid: stat.pzxid,
            ephemeral_owner: stat.ephemeral_owner,
            version: stat.version,
            cversion: stat.cversion,
            aversion: stat.aversion,
            child_count,
            data,
            acl: None,
            digest: 0,
            digest_prefix: 0,
        };
        finish(&mut version);
        // SAFETY: this is the writer, and a version is written into memory of its layout.
        let pushed = unsafe {
            let memory = self.shared.arena.allocate(Layout::new::<Version>());
            let pushed = memory.cast::<Version>().as_ptr();
            pushed.write(version);
            pushed
        };
        node.node().head.store(pushed, Ordering::Release);
        self.replaced += 1;
    }

    /// One znode more or less lives below all that are above `node`, by the open transaction
    /// `zxid`, after it gave out so many versions.
    pub(super) fn count(&mut self, node: NodeRef, zxid: i64, change: i64, versions: usize) {
        let mut above = node.node().parent;
        // SAFETY: null, or linked as its child is; this is the writer.
        while let Some(parent) = unsafe { above.as_ref() } {
            above = parent.parent;
            let family = self.family_of(parent);
            let head = family.counted.load(Ordering::Relaxed);
            // SAFETY: null or this family's, which only this writer frees.
            let before = unsafe { head.as_ref() };
            let znodes = before.map_or(0, |before| before.znodes.load(Ordering::Relaxed));
            let znodes = znodes.checked_add_signed(change).expect("what is counted was there");
            assert!(before.is_none_or(|before| before.zxid <= zxid), "counts ascend");
            if let Some(same) = before.filter(|before| self.sealed < before.zxid) {
                same.znodes.store(znodes, Ordering::Relaxed);
                self.counted_in_place = zxid;
                continue;
            }
            let count = Count { zxid, prev: AtomicPtr::new(head), znodes: AtomicU64::new(znodes) };
            // SAFETY: this is the writer, and a count is written into memory of its layout.
            unsafe {
                let pushed = self.shared.arena.allocate(Layout::new::<Count>()).cast::<Count>();
                pushed.write(count);
                family.counted.store(pushed.as_ptr(), Ordering::Release);
            }
            self.counted.push((versions, Named(NonNull::from(family))));
            self.replaced += 1;
        }
    }

    /// Takes back the last `count` of `node`, before its version is.
    pub(super) fn uncount(&mut self, node: NodeRef, change: i64) {
        let mut above = node.node().parent;
        // SAFETY: as in `count`.
        while let Some(parent) = unsafe { above.as_ref() } {
            above = parent.parent;
            let family = parent.family().expect("counted, so a family");
            // SAFETY: as in `count`.
            let head = unsafe { family.counted.load(Ordering::Relaxed).as_ref() };
            let head = head.expect("what was counted is there");
            assert!(self.published < head.zxid, "what was published is not taken back");
            let znodes = head.znodes.load(Ordering::Relaxed).checked_add_signed(-change);
            head.znodes.store(znodes.expect("as before"), Ordering::Relaxed);
        }
    }

    /// Takes back the counts that the open transaction has made since it gave out so many versions.
    pub(super) fn pop_open_counts(&mut self, versions: usize) {
        while let Some((_, family)) = self.counted.pop_if(|(before, _)| *before == versions) {
            // SAFETY: a family whose count is still named is there: the version by which its node
            // came, if this transaction made it, is taken back later.
            let family = unsafe { family.get() };
            self.pop_count(family);
        }
    }

    /// Takes the newest, never published count of a family back.
    fn pop_count(&mut self, family: &Family) {
        let popped = family.counted.load(Ordering::Relaxed);
        // SAFETY: as in `count`; the caller names a family that has one.
        let count = unsafe { &*popped };
        assert!(self.published < count.zxid, "what was published is not taken back");
        family.counted.store(count.prev.load(Ordering::Relaxed), Ordering::Release);
        self.retired.push_back((self.published, Garbage::Count(popped)));
    }

    /// What was settled last, if that is after `zxid`: a znode, and the zxid of the transaction that
    /// gave it its newest versions. The caller takes these back. Counts that were settled on the way
    /// are taken back here: all that they have counted is gone by then.
    pub(super) fn unsettle_after(&mut self, zxid: i64) -> Option<(NodeRef, i64)> {
        loop {
            // SAFETY: it is in the queue.
            let newest = unsafe { self.superseding.back()?.zxid() };
            if newest <= zxid {
                return None;
            }
            match self.superseding.pop_back()? {
                Superseding::Version(_, node) => return Some((node, newest)),
                Superseding::Count(count, family) => {
                    // SAFETY: its node is linked, or was unlinked since the last `reclaim`.
                    let family = unsafe { family.get() };
                    let head = family.counted.load(Ordering::Relaxed);
                    assert!(ptr::eq(head, count.0.as_ptr()), "the newest is taken back first");
                    self.pop_count(family);
                }
            }
        }
    }

    /// All that was settled after `zxid` has been taken back.
    pub(super) fn rolled_back_to(&mut self, zxid: i64) {
        assert!(self.published <= zxid, "what was published is not taken back");
        self.sealed = self.sealed.min(zxid);
        self.counted_in_place = self.counted_in_place.min(zxid);
    }

    /// The zxid of the newest version, also of a znode that is gone; `None` where there is none.
    pub(super) fn newest_zxid(&self, node: &NodeRef) -> Option<i64> {
        Some(node.node().newest()?.zxid)
    }

    /// Whether a znode is gone for every view, and nothing is left that would unlink it: the entry of
    /// its tombstone found a newer version above it, which has been taken back.
    pub(super) fn is_stranded(&self, node: &NodeRef) -> bool {
        let newest = node.node().newest();
        // A tombstone is pushed onto a version. Its entry alone cuts it off.
        newest.is_some_and(|v| v.is_tombstone() && v.prev.load(Ordering::Relaxed).is_null())
    }

    /// Unlinks znodes that are stranded, children before their parents.
    pub(super) fn unlink_stranded(&mut self, nodes: impl Iterator<Item = NodeRef>) {
        for node in nodes {
            assert!(self.is_stranded(&node));
            self.unlink_childless(node);
        }
    }

    fn unlink_childless(&mut self, node: NodeRef) {
        assert!(node.node().first_child().is_null(), "a znode is unlinked after its children");
        self.unlink(node);
    }

    /// Takes the newest, never published version back. A node that is left without any is
    /// unlinked, and must not be used again.
    pub(super) fn pop(&mut self, node: NodeRef) {
        let head = node.node().newest().expect("what was pushed is there");
        assert!(self.published < head.zxid, "what was published is not taken back");
        let previous = head.prev.load(Ordering::Relaxed);
        let popped = node.node().head.swap(previous, Ordering::Release);
        self.retired.push_back((self.published, Garbage::Version(popped)));
        if previous.is_null() {
            self.unlink(node);
        }
    }

    /// The state below the newest.
    pub(super) fn below_newest<'n>(&self, node: &'n NodeRef) -> Option<&'n Version> {
        let head = node.node().newest()?;
        // SAFETY: null or a version of this node, which only this writer frees.
        unsafe { head.prev.load(Ordering::Relaxed).as_ref() }
    }

    /// The open transaction stands: what its versions of `nodes` and its counts replaced may be
    /// freed once no view is below its zxid. Each of its znodes once, children that it deleted
    /// before their parents.
    pub(super) fn settle(&mut self, nodes: impl Iterator<Item = NodeRef>) {
        let before = self.superseding.len();
        for (_, family) in self.counted.drain(..) {
            // SAFETY: no node is freed before what it is named by here is done with.
            let head = unsafe { family.get() }.counted.load(Ordering::Relaxed);
            let head = NonNull::new(head).expect("what was counted is there");
            self.superseding.push_back(Superseding::Count(Named(head), family));
        }
        for node in nodes {
            let head = NonNull::new(node.node().head.load(Ordering::Relaxed));
            let head = head.expect("a znode of a transaction has a version");
            self.superseding.push_back(Superseding::Version(Named(head), node));
        }
        self.replaced += self.superseding.len() - before;
    }

    /// The same of one version that is published already, though others before it are not.
    pub(super) fn settle_published(&mut self, node: NodeRef) {
        let head = NonNull::new(node.node().head.load(Ordering::Relaxed));
        let head = head.expect("a znode that was given a version has one");
        let published = self.published;
        // SAFETY: they are in the queue.
        let place = self.superseding.partition_point(|entry| unsafe { entry.zxid() } <= published);
        self.superseding.insert(place, Superseding::Version(Named(head), node));
        self.replaced += 1;
    }

    /// How many pieces came to be freed, sooner or later, since this was last asked: `reclaim`
    /// charges for each.
    pub(super) fn take_replaced(&mut self) -> usize {
        std::mem::take(&mut self.replaced)
    }

    /// All up to `zxid` was applied together: views will stand there, and at none that was applied
    /// since the last time.
    pub(super) fn seal(&mut self, zxid: i64) {
        assert!(self.sealed <= zxid, "zxids ascend");
        self.sealed = zxid;
    }

    /// From now on views may stand at `zxid`.
    pub(super) fn publish(&mut self, zxid: i64) {
        assert!(self.published <= zxid && zxid < GONE, "zxids ascend");
        // While nobody reads, the next view begins at what is published last.
        if !self.shared.slots.lock().is_empty() {
            self.sealed = self.sealed.max(zxid);
        }
        self.published = zxid;
        self.shared.published.store(zxid, Ordering::Release);
    }

    pub(super) fn published(&self) -> i64 {
        self.published
    }

    /// Frees what no view can reach, at most `budget` pieces.
    pub(super) fn reclaim(&mut self, mut budget: usize) {
        if self.waiting() == 0 {
            return;
        }
        let lowest = self.shared.lowest_view();
        // Without readers all that was published may go, but not what is still only logged:
        // the next reader begins at `published`.
        let lowest_view = lowest.min(self.published);
        // Each gets half of it, and what the other leaves.
        let reserved = budget / 2;
        budget = reserved + self.free_retired(budget - reserved, lowest);
        while budget > 0 && self.free_superseded(lowest_view) {
            budget -= 1;
            #[cfg(test)]
            {
                self.looked_at += 1;
            }
        }
        self.free_retired(budget, lowest);
        // What a slow view let gather is not needed again soon.
        if self.superseding.is_empty() {
            self.superseding.shrink_to(QUEUE_KEPT);
        }
        if self.retired.is_empty() {
            self.retired.shrink_to(QUEUE_KEPT);
        }
    }

    /// Frees what was unlinked before the lowest view came; says what is left of the budget.
    fn free_retired(&mut self, mut budget: usize, lowest: i64) -> usize {
        while budget > 0
            && let Some(&(published, _)) = self.retired.front()
            && published < lowest
        {
            self.retired.pop_front();
            budget -= 1;
        }
        budget
    }

    /// Does one step of freeing what no view at or above `lowest_view` can see, in a time that
    /// does not depend on how much there is. False where there is nothing to do.
    fn free_superseded(&mut self, lowest_view: i64) -> bool {
        if let Some(Named(doomed)) = self.doomed.take() {
            // SAFETY: what is doomed was cut off, so that this is the only way to it.
            unsafe {
                let before = *(*doomed.as_ptr()).prev.get_mut();
                Version::free(doomed.as_ptr());
                self.doomed = NonNull::new(before).map(Named);
            }
            return true;
        }
        match self.superseding.front() {
            Some(Superseding::Version(version, node)) => {
                // SAFETY: a version is freed by the entry of a later one, or with its node, which
                // the entry of its last version unlinks.
                let version = unsafe { version.get() };
                if lowest_view < version.zxid {
                    return false;
                }
                let node = *node;
                self.superseding.pop_front();
                // Every view is at or above `version.zxid`, so no reader follows its `prev`
                // (rule 1); the chain behind it is this writer's to free.
                let cut = version.prev.swap(ptr::null_mut(), Ordering::Relaxed);
                self.doomed = NonNull::new(cut).map(Named);
                let is_newest = || ptr::eq(version, node.node().head.load(Ordering::Relaxed));
                // Above it there may be one that is taken back later: see `is_stranded`.
                if version.is_tombstone() && is_newest() {
                    self.unlink_childless(node);
                }
            }
            Some(Superseding::Count(count, _)) => {
                // SAFETY: as for a version; a node's counts come before what unlinks it.
                let count = unsafe { count.get() };
                if lowest_view < count.zxid {
                    return false;
                }
                self.superseding.pop_front();
                let cut = count.prev.swap(ptr::null_mut(), Ordering::Relaxed);
                if !cut.is_null() {
                    // SAFETY: as for a version. It has no predecessor itself: its own entry came
                    // before.
                    unsafe { Count::free(cut) };
                }
            }
            None => return false,
        }
        true
    }

    /// Pieces that wait for views to move on.
    pub(super) fn waiting(&self) -> usize {
        self.superseding.len() + usize::from(self.doomed.is_some()) + self.retired.len()
    }

    /// Nodes in the index: all but the root.
    #[cfg(test)]
    pub(super) fn linked(&self) -> usize {
        self.linked
    }

    /// How many pieces `reclaim` has looked at so far.
    #[cfg(test)]
    pub(super) fn looked_at(&self) -> usize {
        self.looked_at
    }

    /// Slots of the index, used or not.
    #[cfg(test)]
    pub(super) fn index_slots(&self) -> usize {
        self.tables().current.slots.len()
    }
}

/// How many slots an index of `linked` nodes has after one of `slots` has filled up, with what is
/// there and what was removed: never more than half of them are taken at first, so that much has
/// to happen before it fills up again, and at least an eighth, so that memory follows the nodes.
fn slots_for(linked: usize, slots: usize) -> usize {
    if linked * 2 > slots {
        slots * 2
    } else if linked * 8 < slots {
        (slots / 2).max(TABLE_SLOTS_MIN)
    } else {
        slots
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        while self.doomed.is_some() {
            self.free_superseded(i64::MIN);
        }
        // Readers may be left; they keep `Shared`, and with it what they could still hold.
        let garbage = self.retired.drain(..).map(|(_, garbage)| garbage);
        self.shared.left_behind.lock().extend(garbage);
    }
}

// ---------------------------------------------------------------------------------------------

/// A reader's half: the tree as of one view.
pub(super) struct ReaderCell {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    view: i64,
}

impl ReaderCell {
    /// A reader at `view`, where the writer or another reader stands.
    fn at(shared: &Arc<Shared>, view: i64) -> ReaderCell {
        let slot = Arc::new(CachePadded::new(AtomicI64::new(view)));
        let mut slots = shared.slots.lock();
        // Where nothing is written nobody looks for the lowest view: those that have gone go here.
        if slots.len() == slots.capacity() {
            slots.retain(|slot| slot.load(Ordering::Acquire) != GONE);
        }
        slots.push(Arc::clone(&slot));
        drop(slots);
        ReaderCell { shared: Arc::clone(shared), slot, view }
    }

    /// Another reader, at the same view. `&self`: this one stands still until the other is known to
    /// whoever looks for the lowest view.
    pub(super) fn fork(&self) -> ReaderCell {
        ReaderCell::at(&self.shared, self.view)
    }

    pub(super) fn view(&self) -> i64 {
        self.view
    }

    /// Moves the view on. `&mut`: nothing read before is held any more.
    pub(super) fn advance(&mut self, zxid: i64) {
        assert!(self.view <= zxid, "views do not go back");
        let published = self.shared.published.load(Ordering::Acquire);
        assert!(zxid <= published, "no view shows what may still be undone");
        self.view = zxid;
        self.slot.store(zxid, Ordering::Release);
    }

    /// See [`Shared::prefetch`].
    pub(super) fn prefetch<'p>(&self, paths: impl Iterator<Item = &'p [u8]>) {
        self.shared.prefetch(paths);
    }

    pub(super) fn find(&self, path: &str) -> Option<Seen<'_>> {
        let pointer = self.shared.find(path)?;
        // SAFETY: a node that was found is not freed while this view stands still (rule 2), and
        // it does for as long as `&self` is borrowed.
        let node = unsafe { &*pointer.as_ptr() };
        Some(Seen { node, pointer, version: node.at(self.view)?, view: self.view })
    }
}

impl Drop for ReaderCell {
    fn drop(&mut self) {
        self.slot.store(GONE, Ordering::Release);
    }
}

/// The children of one znode, gone through in as many steps as one likes: a reader of its own, whose
/// view stands still for as long as this lives, and the child to look at next.
pub(super) struct Children {
    reader: ReaderCell,
    next: Option<NodeRef>,
    /// How many are still to come that this view shows.
    left: i32,
}

/// What there is at the next of a znode's children.
#[derive(Debug, PartialEq, Eq)]
pub enum Look<'l> {
    /// A child: its name, or within the tree its path.
    Child(&'l str),
    /// One that this view does not show.
    Passed,
    /// No more.
    End,
}

impl Children {
    /// The children of `path` as `reader` shows them; `None` where there is no such znode.
    pub(super) fn of(path: &str, reader: ReaderCell) -> Option<Children> {
        let seen = reader.find(path)?;
        let (first, left) = (seen.node.first_child(), seen.version.child_count);
        Some(Children { reader, next: NonNull::new(first).map(NodeRef), left })
    }

    pub(super) fn view(&self) -> i64 {
        self.reader.view
    }

    /// Looks at the next child, whether this view shows it or not: there may be very many of those
    /// that are gone and that somebody's view still shows.
    pub(super) fn look(&mut self) -> Look<'_> {
        let Some(NodeRef(pointer)) = self.next.filter(|_| 0 < self.left) else { return Look::End };
        // SAFETY: children and their links stay readable while the view stands still, also
        // those unlinked meanwhile (rule 2); the view of `reader` does, for nobody advances it.
        let node = unsafe { pointer.as_ref() };
        self.next = NonNull::new(node.next_sibling.load(Ordering::Acquire)).map(NodeRef);
        if node.at(self.reader.view).is_none() {
            return Look::Passed;
        }
        self.left -= 1;
        // SAFETY: as above, and what is linked is the pointer of `Node::new`.
        Look::Child(unsafe { Node::path(pointer.as_ptr()) })
    }
}

/// A znode and the state of it that a view shows.
#[derive(Clone, Copy)]
pub(super) struct Seen<'t> {
    node: &'t Node,
    /// The same, as `Node::new` gave it.
    pointer: NonNull<Node>,
    pub(super) version: &'t Version,
    view: i64,
}

impl<'t> Seen<'t> {
    /// How many znodes live below this one.
    pub(super) fn descendant_count(&self) -> u64 {
        self.node.family().map_or(0, |family| family.count_at(self.view))
    }

    pub(super) fn path(&self) -> &'t str {
        // SAFETY: the node is not freed for all of `'t`.
        unsafe { Node::path(self.pointer.as_ptr()) }
    }

    /// How many children are linked, and the bytes of their names: about what `children` goes
    /// through, whatever it shows.
    pub(super) fn linked(&self) -> (usize, usize) {
        // Without any there is nothing to go through.
        let family = self.node.family().filter(|_| 0 < self.version.child_count);
        family.map_or((0, 0), |family| {
            (family.linked.load(Ordering::Relaxed), family.name_bytes.load(Ordering::Relaxed))
        })
    }

    pub(super) fn children(&self) -> impl Iterator<Item = Seen<'t>> + use<'t> {
        let view = self.view;
        let mut next = self.node.first_child();
        // Behind the last of them there may be very many that are gone.
        let mut left = self.version.child_count;
        std::iter::from_fn(move || {
            while 0 < left {
                let pointer = NonNull::new(next)?;
                // SAFETY: children and their links stay readable while the view stands still,
                // also those unlinked meanwhile (rule 2).
                let node: &'t Node = unsafe { &*pointer.as_ptr() };
                next = node.next_sibling.load(Ordering::Acquire);
                if let Some(version) = node.at(view) {
                    left -= 1;
                    return Some(Seen { node, pointer, version, view });
                }
            }
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_of_readers_that_have_gone_are_let_go_though_nothing_is_written() {
        let root = Next {
            stat: StatPersisted::default(),
            child_count: 0,
            data: NextData::Bytes(None),
            acl: None,
            digest: 0,
            digest_prefix: 0,
        };
        let mut store = Store::new(0, root);
        let reader = store.reader();
        for _ in 0..10_000 {
            drop(reader.fork());
        }
        assert!(reader.shared.slots.lock().len() < 100);
        let forks: Vec<ReaderCell> = (0..300).map(|_| reader.fork()).collect();
        assert!(forks.len() < reader.shared.slots.lock().len());
    }
}
