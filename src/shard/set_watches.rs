//! Watches that a client asks for by name, brings back after a reconnect, looks for, gives up.
//!
//! None of these looks at ACLs or at what a path is made of: a watch on a path that no znode can
//! have is never heard of again.
//!
//! After `DataTree.setWatches` and `FinalRequestProcessor`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::BuildHasher as _;

use foldhash::quality::FixedState;

use crate::jute::record::Text;
use crate::jute::{Reader, Write as _, frame};
use crate::path;
use crate::record::code::Code;
use crate::record::op::{EventType, STATE_SYNC_CONNECTED, WatcherType, xid as special};
use crate::record::proto::{AddWatchRequest, PathWatcherType};
use crate::tree::TreeReader;
use crate::types::Zxid;

use super::connection::{Traffic, put_reply_header};
use super::long::{Done, Pace};
use super::read::{decode, present};
use super::turns::Fit;
use super::watch::Modes;
use super::{Core, Mutant, Step};

/// The lists of a setWatches request, in their order.
#[derive(Clone, Copy)]
enum List {
    Data,
    Exist,
    Child,
    Persistent,
    Recursive,
}

const LISTS: [List; 3] = [List::Data, List::Exist, List::Child];
const LISTS2: [List; 5] = [List::Data, List::Exist, List::Child, List::Persistent, List::Recursive];

/// How far a setWatches request has come. First all its paths are read, then each is looked at and
/// watched, all as of one view. Where that takes several turns, a path that changes meanwhile is
/// looked at and watched before the change is told of.
pub(super) struct SetWatches {
    lists: &'static [List],
    relative: Zxid,
    /// How far it was read: a place in its body, how many lists have begun, and how many paths of
    /// the last are still to come.
    offset: usize,
    lists_begun: usize,
    paths_left: usize,
    /// What was read, whether that is all, and how much of it was watched.
    paths: Vec<ListedPath>,
    is_read: bool,
    watched: usize,
    /// The last path in `paths` with a hash.
    by_hash: HashMap<u64, u32, FixedState>,
    /// Where it looks, if that is no longer where the shard does.
    reader: Option<TreeReader>,
    /// There was no room for a watch.
    failed: Option<Code>,
}

/// One path of a setWatches request.
#[derive(Clone, Copy)]
struct ListedPath {
    /// In the request's body.
    offset: u32,
    list: List,
    is_watched: bool,
    /// The path before with the same hash.
    before: Option<u32>,
}

/// The zxid before the lists.
const RELATIVE_BYTES: usize = 8;

impl SetWatches {
    pub(super) fn new(body: &[u8], with_persistent: bool) -> Result<SetWatches, Code> {
        let relative = Reader::new(body).i64().map_err(|_| Code::MarshallingError)?;
        Ok(SetWatches {
            lists: if with_persistent { &LISTS2[..] } else { &LISTS[..] },
            relative: Zxid(relative),
            offset: RELATIVE_BYTES,
            lists_begun: 0,
            paths_left: 0,
            paths: Vec::new(),
            is_read: false,
            watched: 0,
            by_hash: HashMap::default(),
            reader: None,
            failed: None,
        })
    }

    /// The view that its paths are looked at.
    pub(super) fn view(&self) -> Option<Zxid> {
        self.reader.as_ref().map(TreeReader::view)
    }

    /// The bytes that it holds, besides the request's body.
    pub(super) fn held(&self) -> usize {
        // A place of a table has a byte more.
        let place = size_of::<(u64, u32)>() + 1;
        self.paths.capacity() * size_of::<ListedPath>() + self.by_hash.capacity() * place
    }

    /// Reads the next path; whether there was one. A null list or path is as unreadable as half a
    /// one.
    fn read_next(&mut self, body: &[u8], hasher: &FixedState) -> Result<bool, Code> {
        let mut rest = Reader::with_field_bytes_max(&body[self.offset..], usize::MAX);
        while self.paths_left == 0 {
            if self.lists_begun == self.lists.len() {
                return Ok(false);
            }
            let count = rest.count().map_err(|_| Code::MarshallingError)?;
            self.paths_left = count.ok_or(Code::MarshallingError)?;
            self.lists_begun += 1;
        }
        let offset = u32::try_from(self.offset + rest.offset());
        let path: Text<'_> = decode(&mut rest)?;
        let hash = hasher.hash_one(&*present(path)?);
        let place = u32::try_from(self.paths.len()).map_err(|_| Code::MarshallingError)?;
        self.paths.push(ListedPath {
            offset: offset.map_err(|_| Code::MarshallingError)?,
            list: self.lists[self.lists_begun - 1],
            is_watched: false,
            before: self.by_hash.insert(hash, place),
        });
        self.paths_left -= 1;
        self.offset += rest.offset();
        Ok(true)
    }
}

impl Core {
    /// Does some of a setWatches request.
    pub(super) fn set_some_watches(
        &mut self,
        step: &mut Step<'_>,
        body: &[u8],
        work: &mut SetWatches,
        has_place: bool,
    ) -> Result<Pace, Code> {
        let steps = self.turns.steps_at_once();
        let hasher = FixedState::with_seed(self.settings.hash_seed);
        while !work.is_read {
            let before = work.paths.len();
            while !work.is_read && work.paths.len() < before + steps {
                work.is_read = !work.read_next(body, &hasher)?;
            }
            self.turns.charge(&mut step.traffic.spent, 0, work.paths.len() - before);
            if !work.is_read && self.turns.is_over(&step.traffic.spent) {
                return Ok(Pace::Pauses);
            }
        }
        if !has_place {
            match self.turns.fit(&step.traffic.spent, 0, work.paths.len()) {
                Fit::Now => {}
                Fit::Once => return Ok(Pace::Pauses),
                Fit::Long => return Ok(Pace::NeedsPlace),
            }
        }
        loop {
            let before = step.traffic.output.len();
            let watched = work.watched;
            for _ in 0..steps {
                if let Some(code) = work.failed {
                    return Err(code);
                }
                if work.watched == work.paths.len() {
                    return Ok(Pace::Done);
                }
                self.set_watch(step, body, work, work.watched);
                work.watched += 1;
            }
            let bytes = step.traffic.output.len().saturating_sub(before);
            self.turns.charge(&mut step.traffic.spent, bytes, work.watched - watched);
            if has_place && self.turns.is_over(&step.traffic.spent) {
                if work.reader.is_none() {
                    work.reader = Some(self.tree.fork());
                    self.setting.push(step.id);
                }
                return Ok(Pace::Pauses);
            }
        }
    }

    /// Looks at a path and watches it, unless that was done already.
    fn set_watch(&mut self, step: &mut Step<'_>, body: &[u8], work: &mut SetWatches, at: usize) {
        let listed = work.paths[at];
        if std::mem::replace(&mut work.paths[at].is_watched, true) {
            return;
        }
        let path = path_at(body, listed.offset);
        let tree = work.reader.as_ref().unwrap_or(&self.tree);
        match missed(tree, work.relative, listed.list, &path) {
            Ok(_) if self.is_mutant(Mutant::MissedEventForgotten) => {}
            Ok(event) => put_event_now(step.traffic, event, &path),
            Err(modes) => match self.room_to_watch(step.id.slot, &path) {
                Ok(()) => self.watches.add(step.id.slot, &path, modes),
                Err(code) => work.failed = Some(code),
            },
        }
    }

    /// Something is about to be told of a change at `path`: watches what a setWatches request says
    /// of it and of what is above, as of before the change.
    pub(super) fn set_watches_at(
        &mut self,
        step: &mut Step<'_>,
        body: &[u8],
        work: &mut SetWatches,
        path: &str,
    ) {
        let hasher = FixedState::with_seed(self.settings.hash_seed);
        for path in std::iter::once(path).chain(path::ancestors(path)) {
            // Each once: however often a path is listed, the next change does not find it here. One
            // with the same hash is watched early as well, as of the same view.
            let mut next = work.by_hash.remove(&hasher.hash_one(path));
            while let Some(at) = next {
                let at = at as usize;
                next = work.paths[at].before;
                self.set_watch(step, body, work, at);
            }
        }
    }

    pub(super) fn add_watch(
        &mut self,
        step: &mut Step<'_>,
        xid: i32,
        body: &mut Reader<'_>,
    ) -> Result<Done, Code> {
        let AddWatchRequest { path, mode } = decode(body)?;
        let path = present(path)?;
        let modes = match mode {
            0 => Modes::PERSISTENT,
            1 => Modes::RECURSIVE,
            _ => return Err(Code::MarshallingError),
        };
        self.room_to_watch(step.id.slot, &path)?;
        self.watches.add(step.id.slot, &path, modes);
        self.put(step, xid, |out| out.put_i32(Code::Ok.number()));
        Ok(Done::Now)
    }

    pub(super) fn check_watches(
        &mut self,
        step: &mut Step<'_>,
        xid: i32,
        body: &mut Reader<'_>,
    ) -> Result<Done, Code> {
        self.find_watches(step, body)?;
        self.put(step, xid, |_| {});
        Ok(Done::Now)
    }

    pub(super) fn remove_watches(
        &mut self,
        step: &mut Step<'_>,
        xid: i32,
        body: &mut Reader<'_>,
    ) -> Result<Done, Code> {
        let (path, kind) = self.find_watches(step, body)?;
        let modes = match kind {
            WatcherType::Children => Modes::CHILD,
            WatcherType::Data => Modes::DATA,
            WatcherType::Any => Modes::ALL,
            WatcherType::Persistent => Modes::PERSISTENT,
            WatcherType::PersistentRecursive => Modes::RECURSIVE,
        };
        self.watches.remove(step.id.slot, &path, modes);
        self.put(step, xid, |_| {});
        Ok(Done::Now)
    }

    /// Whether there is a watch of this kind.
    fn find_watches<'a>(
        &self,
        step: &Step<'_>,
        body: &mut Reader<'a>,
    ) -> Result<(Cow<'a, str>, WatcherType), Code> {
        let PathWatcherType { path, kind } = decode(body)?;
        let kind = WatcherType::from_number(kind).ok_or(Code::MarshallingError)?;
        let path = path.ok_or(Code::NoWatcher)?;
        let wanted = match kind {
            WatcherType::Children => Modes::CHILD,
            WatcherType::Data => Modes::DATA,
            WatcherType::Any => Modes::ALL,
            WatcherType::Persistent => Modes::PERSISTENT_DATA,
            WatcherType::PersistentRecursive => Modes::RECURSIVE,
        };
        if self.watches.modes(step.id.slot, &path).has_any_of(wanted) {
            Ok((path, kind))
        } else {
            Err(Code::NoWatcher)
        }
    }
}

/// The event that a watch would have brought since `relative`, or the modes to watch with.
fn missed(tree: &TreeReader, relative: Zxid, list: List, path: &str) -> Result<EventType, Modes> {
    let znode = match list {
        List::Data | List::Exist | List::Child => tree.get(path),
        List::Persistent => return Err(Modes::PERSISTENT),
        List::Recursive => return Err(Modes::RECURSIVE),
    };
    let stat = znode.map(|znode| znode.stat());
    match (list, stat) {
        (List::Data | List::Child, None) => Ok(EventType::NodeDeleted),
        (List::Data, Some(stat)) if relative.0 < stat.mzxid => Ok(EventType::NodeDataChanged),
        (List::Child, Some(stat)) if relative.0 < stat.pzxid => Ok(EventType::NodeChildrenChanged),
        // Regardless of when it was created.
        (List::Exist, Some(_)) => Ok(EventType::NodeCreated),
        (List::Child, Some(_)) => Err(Modes::CHILD),
        (List::Data | List::Exist | List::Persistent | List::Recursive, _) => Err(Modes::DATA),
    }
}

/// A path that was read before.
fn path_at(body: &[u8], offset: u32) -> Cow<'_, str> {
    let rest = body.get(offset as usize..).unwrap_or_default();
    let path = Reader::with_field_bytes_max(rest, usize::MAX).text();
    path.ok().flatten().unwrap_or_default()
}

/// An event that no transaction of now brings: its zxid is -1.
fn put_event_now(traffic: &mut Traffic, event: EventType, path: &str) {
    traffic.output.append(|out| put_event(out, Zxid(-1), event, path));
}

/// A whole notification, as it goes to everyone who watches.
pub(super) fn put_event(out: &mut Vec<u8>, zxid: Zxid, event: EventType, path: &str) {
    let written = frame::try_write(out, |out| {
        put_reply_header(out, special::NOTIFICATION, zxid, Code::Ok);
        out.put_i32(event as i32);
        out.put_i32(STATE_SYNC_CONNECTED);
        out.put_text(path);
    });
    debug_assert!(written.is_ok(), "a path is shorter than a frame may be");
}
