//! Who of this shard watches what.
//!
//! ZooKeeper keeps two tables, *data* and *child*, each from a path and a connection to a set of
//! modes. Here they are one: a path has its watchers, and a watcher a small set of `Modes` that
//! names table and mode together. A watch belongs to its connection and goes with it, so each
//! connection's paths are kept as well.
//!
//! ```text
//! PathIndex    text -> number of an entry                     5 bytes, at a load below 3/4
//! Entry        the path, once; its watchers                   16 + 16 bytes and the text
//!   Watchers   one inline, many in a BTreeMap                 12 bytes each where many
//! Paths        the entries of one connection                  one inline, 7 bytes each where many
//! ```
//!
//! Everything is exact and ordered: a hundred thousand watchers of one path are gone through once
//! when it changes, in the same order everywhere, and one that closes costs two lookups.
//!
//! After `WatchManager` and `DataTree`.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher as _;
use std::mem;

use foldhash::quality::FixedState;

use crate::path;

/// How a connection watches a path: a set of table and mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Modes(u8);

impl Modes {
    pub(super) const NONE: Modes = Modes(0);
    /// One event of the data table.
    pub(super) const DATA: Modes = Modes(1);
    /// One event of the child table.
    pub(super) const CHILD: Modes = Modes(2);
    pub(super) const PERSISTENT_DATA: Modes = Modes(4);
    pub(super) const PERSISTENT_CHILD: Modes = Modes(8);
    /// The data table's events of this path and of all below it.
    pub(super) const RECURSIVE: Modes = Modes(16);

    pub(super) const PERSISTENT: Modes = Modes::PERSISTENT_DATA.and(Modes::PERSISTENT_CHILD);
    pub(super) const IN_DATA: Modes = Modes::DATA.and(Modes::PERSISTENT_DATA).and(Modes::RECURSIVE);
    pub(super) const IN_CHILD: Modes = Modes::CHILD.and(Modes::PERSISTENT_CHILD);
    pub(super) const ALL: Modes = Modes::IN_DATA.and(Modes::IN_CHILD);

    #[must_use]
    pub(super) const fn and(self, other: Modes) -> Modes {
        Modes(self.0 | other.0)
    }

    #[must_use]
    pub(super) const fn without(self, other: Modes) -> Modes {
        Modes(self.0 & !other.0)
    }

    #[must_use]
    pub(super) const fn has_any_of(self, other: Modes) -> bool {
        self.0 & other.0 != 0
    }

    #[must_use]
    pub(super) const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// All watches of one shard. Connections go by the numbers of their slots.
#[derive(Debug)]
pub(super) struct Watches {
    entries: Vec<Entry>,
    free: Vec<u32>,
    index: PathIndex,
    by_connection: Vec<Paths>,
    /// Connections that are gone and had many watches, which are forgotten a few at a time.
    leaving: BTreeSet<u32>,
    /// Pairs of path and connection, each once.
    pair_count: usize,
    /// Pairs of path and connection in the data table, and in the child table.
    data_count: usize,
    child_count: usize,
    /// Of the data table's, those that watch what lies below. While there are none, a change
    /// looks at no ancestors.
    recursive_count: usize,
}

#[derive(Debug)]
struct Entry {
    path: Box<str>,
    watchers: Watchers,
}

#[derive(Debug)]
enum Watchers {
    /// The entry is free.
    None,
    One(u32, Modes),
    #[expect(clippy::box_collection, reason = "16 bytes for the many paths with one watcher")]
    Many(Box<BTreeMap<u32, Modes>>),
}

/// The entries that a connection watches.
#[derive(Debug, Default)]
enum Paths {
    #[default]
    None,
    One(u32),
    #[expect(clippy::box_collection, reason = "16 bytes for the many connections with one path")]
    Many(Box<BTreeSet<u32>>),
}

/// Where a list of what is watched goes on: at a path, and with the first of those who watch it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchPlace {
    entry: usize,
    connection: u32,
}

impl WatchPlace {
    pub const FIRST: WatchPlace = WatchPlace { entry: 0, connection: 0 };
}

/// So many bytes of a path cost as much as a watcher.
const BYTES_PER_STEP: usize = 128;

/// A connection that had fewer watches is forgotten at once.
const FORGOTTEN_AT_ONCE: usize = 256;

impl Watches {
    /// `seed` makes collisions of paths unpredictable; nothing else depends on it.
    pub(super) fn new(seed: u64) -> Watches {
        Watches {
            entries: Vec::new(),
            free: Vec::new(),
            index: PathIndex::new(seed),
            by_connection: Vec::new(),
            leaving: BTreeSet::new(),
            pair_count: 0,
            data_count: 0,
            child_count: 0,
            recursive_count: 0,
        }
    }

    /// Adds to what `connection` watches of `path`.
    pub(super) fn add(&mut self, connection: u32, path: &str, modes: Modes) {
        let entry = self.entry_of(path);
        let watchers = &mut self.entries[entry as usize].watchers;
        let before = watchers.set(connection, |before| before.and(modes));
        self.count(before, before.and(modes));
        if before.is_empty() {
            let slot = connection as usize;
            if self.by_connection.len() <= slot {
                self.by_connection.resize_with(slot + 1, Paths::default);
            }
            self.by_connection[slot].insert(entry);
        }
    }

    /// How `connection` watches exactly `path`.
    pub(super) fn modes(&self, connection: u32, path: &str) -> Modes {
        match self.index.find(path, &self.entries) {
            Some(entry) => self.entries[entry as usize].watchers.modes(connection),
            None => Modes::NONE,
        }
    }

    /// Takes `modes` from what `connection` watches of `path`.
    pub(super) fn remove(&mut self, connection: u32, path: &str, modes: Modes) {
        if let Some(entry) = self.index.find(path, &self.entries) {
            self.reduce(connection, entry, modes);
            self.free_if_unwatched(entry);
        }
    }

    /// The connection is gone, and its watches with it: at once if they are few, else with
    /// `forget_some`. Until that has named it, its number must not be given to another.
    pub(super) fn forget(&mut self, connection: u32) {
        self.forget_up_to(connection, FORGOTTEN_AT_ONCE);
        if self.is_leaving(connection) {
            self.leaving.insert(connection);
        } else {
            self.leaving.remove(&connection);
        }
    }

    /// Whether there are watches of connections that are gone.
    pub(super) fn has_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Whether a connection that is gone still has watches here.
    pub(super) fn is_leaving(&self, connection: u32) -> bool {
        0 < self.count_of(connection)
    }

    /// Forgets so many watches of one connection that is gone; which, if these were its last.
    pub(super) fn forget_some(&mut self, count: usize) -> Option<u32> {
        let connection = *self.leaving.first()?;
        self.forget_up_to(connection, count);
        if self.is_leaving(connection) {
            return None;
        }
        self.leaving.pop_first()
    }

    /// How many watches were forgotten.
    fn forget_up_to(&mut self, connection: u32, count: usize) -> usize {
        for forgotten in 0..count {
            let paths = self.by_connection.get_mut(connection as usize);
            let Some(entry) = paths.and_then(Paths::pop_first) else { return forgotten };
            let before = self.entries[entry as usize].watchers.set(connection, |_| Modes::NONE);
            self.count(before, Modes::NONE);
            self.free_if_unwatched(entry);
        }
        count
    }

    /// How many paths a connection watches.
    pub(super) fn count_of(&self, connection: u32) -> usize {
        self.by_connection.get(connection as usize).map_or(0, Paths::len)
    }

    /// Pairs of path and connection, each once.
    pub(super) fn pairs(&self) -> usize {
        self.pair_count
    }

    /// A znode came, went or got other data. Fills `hit` with whoever watches it in the data
    /// table, or watches recursively from above: ascending, each once. One-shot watches are used
    /// up by this.
    pub(super) fn trigger_data(&mut self, path: &str, hit: &mut Vec<u32>) {
        self.trigger(path, Modes::IN_DATA, Modes::DATA, hit);
        if self.recursive_count == 0 {
            return;
        }
        for ancestor in path::ancestors(path) {
            if let Some(entry) = self.index.find(ancestor, &self.entries) {
                self.entries[entry as usize].watchers.recursive(hit);
            }
        }
        hit.sort_unstable();
        hit.dedup();
    }

    /// A znode's children changed, or it went: the same for the child table, which knows nothing
    /// of recursive watches.
    pub(super) fn trigger_child(&mut self, path: &str, hit: &mut Vec<u32>) {
        self.trigger(path, Modes::IN_CHILD, Modes::CHILD, hit);
    }

    fn trigger(&mut self, path: &str, any: Modes, used_up: Modes, hit: &mut Vec<u32>) {
        hit.clear();
        let Some(entry) = self.index.find(path, &self.entries) else { return };
        self.entries[entry as usize].watchers.collect(any, hit);
        for &connection in &*hit {
            self.reduce(connection, entry, used_up);
        }
        self.free_if_unwatched(entry);
    }

    /// Pairs of path and connection, in both tables: `zk_watch_count`.
    pub(super) fn len(&self) -> usize {
        self.data_count + self.child_count
    }

    /// Takes so many steps from a place on, and shows paths of the data table with connections that
    /// watch them; one with very many comes in parts. Says where to go on, if that was not all.
    pub(super) fn data_watches(
        &self,
        from: WatchPlace,
        steps: usize,
        mut see: impl FnMut(&str, &[u32]),
    ) -> Option<WatchPlace> {
        let (mut connections, mut left) = (Vec::new(), steps);
        let mut first = from.connection;
        for (number, entry) in self.entries.iter().enumerate().skip(from.entry) {
            if left == 0 {
                return Some(WatchPlace { entry: number, connection: first });
            }
            left = left.saturating_sub(1 + entry.path.len() / BYTES_PER_STEP);
            connections.clear();
            let most = left.max(1);
            let (seen, next) = entry.watchers.some(first, most, Modes::IN_DATA, &mut connections);
            left = left.saturating_sub(seen);
            if !connections.is_empty() {
                see(&entry.path, &connections);
            }
            if let Some(connection) = next {
                return Some(WatchPlace { entry: number, connection });
            }
            first = 0;
        }
        None
    }

    /// The entry of `path`, made where there is none.
    fn entry_of(&mut self, path: &str) -> u32 {
        if let Some(entry) = self.index.find(path, &self.entries) {
            return entry;
        }
        let new = Entry { path: path.into(), watchers: Watchers::None };
        let entry = match self.free.pop() {
            Some(entry) => {
                self.entries[entry as usize] = new;
                entry
            }
            None => {
                self.entries.push(new);
                u32::try_from(self.entries.len() - 1).expect("fewer than 2^32 watched paths")
            }
        };
        self.index.insert(entry, &self.entries);
        entry
    }

    fn reduce(&mut self, connection: u32, entry: u32, modes: Modes) {
        let watchers = &mut self.entries[entry as usize].watchers;
        let before = watchers.set(connection, |before| before.without(modes));
        let after = before.without(modes);
        self.count(before, after);
        if !before.is_empty() && after.is_empty() {
            self.by_connection[connection as usize].remove(entry);
        }
    }

    fn free_if_unwatched(&mut self, entry: u32) {
        if matches!(self.entries[entry as usize].watchers, Watchers::None) {
            self.index.remove(entry, &self.entries);
            self.entries[entry as usize].path = Box::default();
            self.free.push(entry);
        }
    }

    fn count(&mut self, before: Modes, after: Modes) {
        let count = |total: &mut usize, modes| {
            *total += usize::from(after.has_any_of(modes));
            *total -= usize::from(before.has_any_of(modes));
        };
        count(&mut self.data_count, Modes::IN_DATA);
        count(&mut self.child_count, Modes::IN_CHILD);
        count(&mut self.recursive_count, Modes::RECURSIVE);
        count(&mut self.pair_count, Modes::ALL);
    }

    /// The invariant that does not hold, by name. Walks everything.
    pub(super) fn broken_invariant(&self) -> Option<&'static str> {
        let (mut data, mut child, mut recursive, mut pairs) = (0, 0, 0, 0);
        for (number, entry) in self.entries.iter().enumerate() {
            let mut connections = Vec::new();
            entry.watchers.collect(Modes::ALL, &mut connections);
            let found = self.index.find(&entry.path, &self.entries);
            let number = u32::try_from(number).expect("fewer than 2^32 watched paths");
            if !connections.is_empty() && found != Some(number) {
                return Some("a watched path is found by its text");
            }
            pairs += connections.len();
            for connection in connections {
                let modes = entry.watchers.modes(connection);
                data += usize::from(modes.has_any_of(Modes::IN_DATA));
                child += usize::from(modes.has_any_of(Modes::IN_CHILD));
                recursive += usize::from(modes.has_any_of(Modes::RECURSIVE));
                match self.by_connection.get(connection as usize) {
                    Some(paths) if paths.contains(number) => {}
                    _ => return Some("a watcher knows its paths"),
                }
            }
        }
        if (data, child, recursive) != (self.data_count, self.child_count, self.recursive_count) {
            return Some("watches are counted");
        }
        if pairs != self.pair_count {
            return Some("pairs are counted");
        }
        if pairs != self.by_connection.iter().map(Paths::len).sum::<usize>() {
            return Some("a connection's paths know it");
        }
        if self.free.len() + self.index.len != self.entries.len() {
            return Some("an entry is free or found by its text");
        }
        None
    }
}

impl Watchers {
    fn modes(&self, connection: u32) -> Modes {
        match self {
            Watchers::One(only, modes) if *only == connection => *modes,
            Watchers::None | Watchers::One(..) => Modes::NONE,
            Watchers::Many(many) => many.get(&connection).copied().unwrap_or_default(),
        }
    }

    /// Changes one connection's modes; what they were.
    fn set(&mut self, connection: u32, change: impl Fn(Modes) -> Modes) -> Modes {
        let before = self.modes(connection);
        let after = change(before);
        match self {
            Watchers::None if after.is_empty() => {}
            Watchers::None => *self = Watchers::One(connection, after),
            Watchers::One(only, modes) if *only == connection => {
                *modes = after;
                if after.is_empty() {
                    *self = Watchers::None;
                }
            }
            Watchers::One(..) if after.is_empty() => {}
            Watchers::One(only, modes) => {
                let both = [(*only, *modes), (connection, after)];
                *self = Watchers::Many(Box::new(BTreeMap::from(both)));
            }
            Watchers::Many(many) if after.is_empty() => {
                many.remove(&connection);
                if many.is_empty() {
                    *self = Watchers::None;
                }
            }
            Watchers::Many(many) => {
                many.insert(connection, after);
            }
        }
        before
    }

    /// Appends every connection with any of `modes`, ascending.
    fn collect(&self, modes: Modes, hit: &mut Vec<u32>) {
        match self {
            Watchers::None => {}
            Watchers::One(connection, of) => hit.extend(of.has_any_of(modes).then_some(connection)),
            Watchers::Many(many) => {
                let matching = many.iter().filter(|(_, of)| of.has_any_of(modes));
                hit.extend(matching.map(|(connection, _)| connection));
            }
        }
    }

    /// Looks at so many connections from this one on and appends those with any of `modes`: how many
    /// it looked at, and the next.
    fn some(
        &self,
        first: u32,
        most: usize,
        modes: Modes,
        hit: &mut Vec<u32>,
    ) -> (usize, Option<u32>) {
        match self {
            Watchers::None => (0, None),
            Watchers::One(connection, of) => {
                let is_shown = first <= *connection && of.has_any_of(modes);
                hit.extend(is_shown.then_some(connection));
                (1, None)
            }
            Watchers::Many(many) => {
                let (mut rest, mut seen) = (many.range(first..), 0);
                for (connection, of) in rest.by_ref().take(most) {
                    hit.extend(of.has_any_of(modes).then_some(connection));
                    seen += 1;
                }
                (seen, rest.next().map(|(connection, _)| *connection))
            }
        }
    }

    fn recursive(&self, hit: &mut Vec<u32>) {
        self.collect(Modes::RECURSIVE, hit);
    }
}

impl Paths {
    fn insert(&mut self, entry: u32) {
        match self {
            Paths::None => *self = Paths::One(entry),
            Paths::One(only) => *self = Paths::Many(Box::new(BTreeSet::from([*only, entry]))),
            Paths::Many(many) => {
                many.insert(entry);
            }
        }
    }

    fn remove(&mut self, entry: u32) {
        match self {
            Paths::One(only) if *only == entry => *self = Paths::None,
            Paths::None | Paths::One(_) => {}
            Paths::Many(many) => {
                many.remove(&entry);
                if many.is_empty() {
                    *self = Paths::None;
                }
            }
        }
    }

    fn pop_first(&mut self) -> Option<u32> {
        match self {
            Paths::None => None,
            Paths::One(only) => {
                let only = *only;
                *self = Paths::None;
                Some(only)
            }
            Paths::Many(many) => {
                let first = many.pop_first();
                if many.is_empty() {
                    *self = Paths::None;
                }
                first
            }
        }
    }

    fn contains(&self, entry: u32) -> bool {
        match self {
            Paths::None => false,
            Paths::One(only) => *only == entry,
            Paths::Many(many) => many.contains(&entry),
        }
    }

    fn len(&self) -> usize {
        match self {
            Paths::None => 0,
            Paths::One(_) => 1,
            Paths::Many(many) => many.len(),
        }
    }
}

/// From a path's text to the number of its entry: open addressing, one byte of the hash beside
/// each number so that a miss seldom looks at a text. A table that has become too small is left a
/// few places at a time: no single watch pays for all.
#[derive(Debug)]
struct PathIndex {
    hasher: FixedState,
    current: Table,
    /// What `current` outgrew, and how many of its places have moved. What has moved is still in
    /// it; what was removed from it is `GONE`.
    outgrown: Option<(Table, usize)>,
    len: usize,
}

#[derive(Debug, Default)]
struct Table {
    /// 0 where a place is free.
    tags: Vec<u8>,
    numbers: Vec<u32>,
}

/// In an outgrown table, the number of what was removed.
const GONE: u32 = u32::MAX;
/// How many places move with each path that comes: more than are filled meanwhile.
const MOVED_PER_INSERT: usize = 8;

impl PathIndex {
    fn new(seed: u64) -> PathIndex {
        let hasher = FixedState::with_seed(seed);
        PathIndex { hasher, current: Table::default(), outgrown: None, len: 0 }
    }

    fn find(&self, path: &str, entries: &[Entry]) -> Option<u32> {
        let hash = self.hasher.hash_one(path);
        if let Some(place) = self.current.place_of(hash, path, entries) {
            return Some(self.current.numbers[place]);
        }
        let (outgrown, _) = self.outgrown.as_ref()?;
        outgrown.place_of(hash, path, entries).map(|place| outgrown.numbers[place])
    }

    /// Enters a path that is not in yet.
    fn insert(&mut self, entry: u32, entries: &[Entry]) {
        self.move_some(entries);
        if self.current.tags.len() * 3 <= self.len * 4 {
            while self.outgrown.is_some() {
                self.move_some(entries);
            }
            let grown = Table::new((self.current.tags.len() * 2).max(16));
            let outgrown = mem::replace(&mut self.current, grown);
            self.outgrown = Some((outgrown, 0));
        }
        self.len += 1;
        self.current.put(self.hasher.hash_one(&*entries[entry as usize].path), entry);
    }

    fn remove(&mut self, entry: u32, entries: &[Entry]) {
        let path = &*entries[entry as usize].path;
        let hash = self.hasher.hash_one(path);
        let place = self.current.place_of(hash, path, entries);
        if let Some(place) = place {
            self.current
                .remove(place, |entry| self.hasher.hash_one(&*entries[entry as usize].path));
        }
        let mut is_known = place.is_some();
        if let Some((outgrown, _)) = &mut self.outgrown
            && let Some(place) = outgrown.place_of(hash, path, entries)
        {
            outgrown.numbers[place] = GONE;
            is_known = true;
        }
        assert!(is_known, "a watched path is found by its text");
        self.len -= 1;
    }

    fn move_some(&mut self, entries: &[Entry]) {
        let Some((outgrown, moved)) = &mut self.outgrown else { return };
        let end = (*moved + MOVED_PER_INSERT).min(outgrown.tags.len());
        for place in *moved..end {
            let number = outgrown.numbers[place];
            if outgrown.tags[place] != 0 && number != GONE {
                let path = &*entries[number as usize].path;
                self.current.put(self.hasher.hash_one(path), number);
            }
        }
        *moved = end;
        if end == outgrown.tags.len() {
            self.outgrown = None;
        }
    }
}

impl Table {
    fn new(places: usize) -> Table {
        Table { tags: vec![0; places], numbers: vec![0; places] }
    }

    /// Where a path would lie if no other did, and its tag.
    fn home_of(&self, hash: u64) -> (usize, u8) {
        (hash as usize & (self.tags.len() - 1), ((hash >> 56) as u8).max(1))
    }

    fn place_of(&self, hash: u64, path: &str, entries: &[Entry]) -> Option<usize> {
        if self.tags.is_empty() {
            return None;
        }
        let (mut place, tag) = self.home_of(hash);
        while self.tags[place] != 0 {
            let number = self.numbers[place];
            if self.tags[place] == tag && number != GONE && &*entries[number as usize].path == path
            {
                return Some(place);
            }
            place = (place + 1) & (self.tags.len() - 1);
        }
        None
    }

    fn put(&mut self, hash: u64, entry: u32) {
        let (mut place, tag) = self.home_of(hash);
        while self.tags[place] != 0 {
            place = (place + 1) & (self.tags.len() - 1);
        }
        self.tags[place] = tag;
        self.numbers[place] = entry;
    }

    /// Frees a place. What was pushed beyond it moves back, so that no search ends too early.
    fn remove(&mut self, place: usize, hash_of: impl Fn(u32) -> u64) {
        let mask = self.tags.len() - 1;
        let (mut gap, mut next) = (place, (place + 1) & mask);
        while self.tags[next] != 0 {
            let (home, _) = self.home_of(hash_of(self.numbers[next]));
            if (next.wrapping_sub(home) & mask) >= (next.wrapping_sub(gap) & mask) {
                self.tags[gap] = self.tags[next];
                self.numbers[gap] = self.numbers[next];
                gap = next;
            }
            next = (next + 1) & mask;
        }
        self.tags[gap] = 0;
    }
}

const _: () = assert!(size_of::<Entry>() == 32);
const _: () = assert!(size_of::<Paths>() == 16);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn hit_by(trigger: impl FnOnce(&mut Vec<u32>)) -> Vec<u32> {
        let mut hit = vec![99];
        trigger(&mut hit);
        hit
    }

    #[test]
    fn a_standard_watch_is_used_up_and_a_persistent_one_stays() {
        let mut watches = Watches::new(1);
        watches.add(3, "/a", Modes::DATA);
        watches.add(3, "/a", Modes::PERSISTENT);
        watches.add(2, "/a", Modes::DATA);
        assert_eq!(hit_by(|hit| watches.trigger_data("/a", hit)), [2, 3]);
        assert_eq!(hit_by(|hit| watches.trigger_data("/a", hit)), [3]);
        assert_eq!(watches.modes(3, "/a"), Modes::PERSISTENT);
        assert_eq!(watches.broken_invariant(), None);
    }

    #[test]
    fn a_recursive_watch_sees_below_but_no_children_and_only_once() {
        let mut watches = Watches::new(1);
        watches.add(1, "/", Modes::RECURSIVE);
        watches.add(1, "/a", Modes::RECURSIVE);
        watches.add(1, "/a/b", Modes::DATA);
        assert_eq!(hit_by(|hit| watches.trigger_data("/a/b", hit)), [1]);
        assert_eq!(hit_by(|hit| watches.trigger_data("/", hit)), [1]);
        assert_eq!(hit_by(|hit| watches.trigger_child("/a", hit)), [0; 0]);
        assert_eq!(watches.modes(1, "/a/b"), Modes::NONE);
    }

    /// All that is watched, in parts of so many steps: who watches what, and how much the largest
    /// part has.
    fn listed(watches: &Watches, steps: usize) -> (BTreeMap<String, Vec<u32>>, usize) {
        let (mut all, mut most) = (BTreeMap::<String, Vec<u32>>::new(), 0);
        let mut place = Some(WatchPlace::FIRST);
        while let Some(from) = place {
            let mut part = 0;
            place = watches.data_watches(from, steps, |path, connections| {
                part += connections.len() + path.len() / BYTES_PER_STEP;
                all.entry(path.to_owned()).or_default().extend(connections);
            });
            assert_ne!(place, Some(from), "it goes on");
            most = most.max(part);
        }
        (all, most)
    }

    #[test]
    fn what_is_watched_is_listed_in_small_parts_whoever_watches_it() {
        let mut watches = Watches::new(1);
        for connection in 0..10_000 {
            watches.add(connection, "/crowded", Modes::DATA);
            watches.add(connection, &format!("/of-{connection}"), Modes::PERSISTENT_DATA);
            // These are in no list.
            watches.add(connection, "/crowded-too", Modes::CHILD);
        }
        for number in 0..100 {
            watches.add(number, &format!("/{number}{}", "x".repeat(100_000)), Modes::DATA);
        }
        let (whole, _) = listed(&watches, usize::MAX);
        assert_eq!(whole.len(), 1 + 10_000 + 100);
        assert_eq!(whole["/crowded"], (0..10_000).collect::<Vec<u32>>());
        for steps in [1, 100, 512] {
            let (parts, most) = listed(&watches, steps);
            assert!(parts == whole, "parts of {steps}");
            assert!(most <= steps + 100_000 / BYTES_PER_STEP + 1, "{most} of {steps}");
        }
    }

    #[test]
    fn a_hundred_thousand_watchers_come_and_go() {
        let mut watches = Watches::new(1);
        for connection in 0..100_000 {
            watches.add(connection, "/hot", Modes::DATA);
        }
        assert_eq!(watches.len(), 100_000);
        assert_eq!(hit_by(|hit| watches.trigger_data("/hot", hit)).len(), 100_000);
        assert_eq!(watches.len(), 0);
        for path in 0..100_000 {
            watches.add(7, &format!("/p/{path}"), Modes::CHILD);
        }
        watches.forget(7);
        let mut rounds = 0;
        while watches.forget_some(1000).is_none() {
            rounds += 1;
            assert!(watches.has_leaving() && watches.is_leaving(7));
        }
        assert_eq!((rounds, watches.has_leaving()), (99, false));
        assert_eq!((watches.len(), watches.pairs(), watches.broken_invariant()), (0, 0, None));
    }

    proptest! {
        /// The tables against the obvious ones.
        #[test]
        fn watches_are_what_a_plain_map_says(
            steps in prop::collection::vec((0u8..5, 0u32..4, 0usize..24, 1u8..32), 0..200),
        ) {
            let mut watches = Watches::new(7);
            let mut model: BTreeMap<(String, u32), Modes> = BTreeMap::new();
            for (step, connection, path, modes) in steps {
                let path = ["/", "/a", "/a/b", "/a/b/c"].get(path).map_or_else(
                    || format!("/p{path}"), |path| (*path).to_owned());
                let modes = Modes(modes);
                let key = (path.clone(), connection);
                let mut hit = Vec::new();
                match step {
                    0 | 1 => {
                        watches.add(connection, &path, modes);
                        let known = model.entry(key).or_default();
                        *known = known.and(modes);
                    }
                    2 => {
                        watches.remove(connection, &path, modes);
                        if let Some(known) = model.get_mut(&key) {
                            *known = known.without(modes);
                        }
                    }
                    3 => {
                        watches.forget(connection);
                        model.retain(|(_, of), _| *of != connection);
                    }
                    _ => {
                        watches.trigger_data(&path, &mut hit);
                        let mut expected: Vec<u32> = model.iter()
                            .filter(|((at, _), modes)| {
                                (*at == path && modes.has_any_of(Modes::IN_DATA))
                                    || (path::is_below(at, &path)
                                        && modes.has_any_of(Modes::RECURSIVE))
                            })
                            .map(|((_, of), _)| *of)
                            .collect();
                        expected.sort_unstable();
                        expected.dedup();
                        prop_assert_eq!(&hit, &expected);
                        for ((at, _), modes) in &mut model {
                            if *at == path {
                                *modes = modes.without(Modes::DATA);
                            }
                        }
                    }
                }
                model.retain(|_, modes| !modes.is_empty());
                for ((path, connection), modes) in &model {
                    prop_assert_eq!(watches.modes(*connection, path), *modes);
                }
                prop_assert_eq!(watches.broken_invariant(), None);
            }
        }
    }
}
