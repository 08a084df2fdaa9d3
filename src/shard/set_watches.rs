//! Watches that a client asks for by name, brings back after a reconnect, looks for, gives up.
//!
//! None of these looks at ACLs or at what a path is made of: a watch on a path that no znode can
//! have is never heard of again.
//!
//! After `DataTree.setWatches` and `FinalRequestProcessor`.

use std::borrow::Cow;

use crate::jute::record::Text;
use crate::jute::{Reader, Write as _, frame};
use crate::record::code::Code;
use crate::record::op::{EventType, STATE_SYNC_CONNECTED, WatcherType, xid as special};
use crate::record::proto::{AddWatchRequest, PathWatcherType};
use crate::types::Zxid;

use super::connection::{Traffic, put_reply_header};
use super::read::{decode, present};
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

impl Core {
    /// setWatches and setWatches2: what happened since the zxid that the client saw last is told
    /// at once, before the reply; what did not is watched for.
    pub(super) fn set_watches(
        &mut self,
        step: &mut Step<'_>,
        xid: i32,
        body: &mut Reader<'_>,
        with_persistent: bool,
    ) -> Result<(), Code> {
        let lists = if with_persistent { &LISTS2[..] } else { &LISTS[..] };
        // All of it has to be readable before any of it is acted on.
        let mut ahead = body.clone();
        for_each_path(&mut ahead, lists, |_, _, _| {})?;
        for_each_path(body, lists, |relative, list, path| {
            match self.missed(relative, list, path) {
                Ok(_) if self.is_mutant(Mutant::MissedEventForgotten) => {}
                Ok(event) => put_event_now(step.traffic, event, path),
                Err(modes) => self.watches.add(step.id.slot, path, modes),
            }
        })?;
        self.put(step, xid, |_| {});
        Ok(())
    }

    /// The event that a watch would have brought since `relative`, or the modes to watch with.
    fn missed(&self, relative: Zxid, list: List, path: &str) -> Result<EventType, Modes> {
        let znode = match list {
            List::Data | List::Exist | List::Child => self.tree.get(path),
            List::Persistent => return Err(Modes::PERSISTENT),
            List::Recursive => return Err(Modes::RECURSIVE),
        };
        let stat = znode.map(|znode| znode.stat());
        match (list, stat) {
            (List::Data | List::Child, None) => Ok(EventType::NodeDeleted),
            (List::Data, Some(stat)) if relative.0 < stat.mzxid => Ok(EventType::NodeDataChanged),
            (List::Child, Some(stat)) if relative.0 < stat.pzxid => {
                Ok(EventType::NodeChildrenChanged)
            }
            // Regardless of when it was created.
            (List::Exist, Some(_)) => Ok(EventType::NodeCreated),
            (List::Child, Some(_)) => Err(Modes::CHILD),
            (List::Data | List::Exist | List::Persistent | List::Recursive, _) => Err(Modes::DATA),
        }
    }

    pub(super) fn add_watch(
        &mut self,
        step: &mut Step<'_>,
        xid: i32,
        body: &mut Reader<'_>,
    ) -> Result<(), Code> {
        let AddWatchRequest { path, mode } = decode(body)?;
        let path = present(path)?;
        let modes = match mode {
            0 => Modes::PERSISTENT,
            1 => Modes::RECURSIVE,
            _ => return Err(Code::MarshallingError),
        };
        self.watches.add(step.id.slot, &path, modes);
        self.put(step, xid, |out| out.put_i32(Code::Ok.number()));
        Ok(())
    }

    pub(super) fn check_watches(
        &mut self,
        step: &mut Step<'_>,
        xid: i32,
        body: &mut Reader<'_>,
    ) -> Result<(), Code> {
        self.find_watches(step, body)?;
        self.put(step, xid, |_| {});
        Ok(())
    }

    pub(super) fn remove_watches(
        &mut self,
        step: &mut Step<'_>,
        xid: i32,
        body: &mut Reader<'_>,
    ) -> Result<(), Code> {
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
        Ok(())
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

/// Goes through the paths of a setWatches request. A null list or path is as unreadable as half
/// a one.
fn for_each_path(
    body: &mut Reader<'_>,
    lists: &[List],
    mut visit: impl FnMut(Zxid, List, &str),
) -> Result<(), Code> {
    let unreadable = |_| Code::MarshallingError;
    let relative = Zxid(body.i64().map_err(unreadable)?);
    for &list in lists {
        let count = body.count().map_err(unreadable)?.ok_or(Code::MarshallingError)?;
        for _ in 0..count {
            let path: Text<'_> = decode(body)?;
            visit(relative, list, &present(path)?);
        }
    }
    Ok(())
}

/// An event that no transaction of now brings: its zxid is -1.
fn put_event_now(traffic: &mut Traffic, event: EventType, path: &str) {
    put_event(traffic.output.tail(), Zxid(-1), event, path);
}

/// A whole notification, as it goes to everyone who watches.
pub(super) fn put_event(out: &mut Vec<u8>, zxid: Zxid, event: EventType, path: &str) {
    frame::write(out, |out| {
        put_reply_header(out, special::NOTIFICATION, zxid, Code::Ok);
        out.put_i32(event as i32);
        out.put_i32(STATE_SYNC_CONNECTED);
        out.put_text(path);
    });
}
