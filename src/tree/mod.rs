//! The tree of znodes: one core writes it, every core reads it in place.
//!
//! (API first; the inside is being written.)

use std::sync::Arc;

use crate::record::data::{Acl, Stat};
use crate::types::Zxid;

/// Reads the tree as of one zxid, its *view*. `Send`, one per shard core (and one per snapshot
/// under way). While a reader exists, what its view shows is kept.
pub struct TreeReader {
    view: Zxid,
}

impl TreeReader {
    /// The zxid whose state this reader sees.
    #[must_use]
    pub fn view(&self) -> Zxid {
        self.view
    }

    /// Moves the view forward, after the watches of everything up to `zxid` have been fired.
    pub fn advance(&mut self, zxid: Zxid) {
        assert!(self.view <= zxid);
        self.view = zxid;
    }

    /// The znode at `path`; `""` is the root as `"/"` is.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<Znode<'_>> {
        let _ = path;
        None
    }
}

/// A znode as one view shows it.
#[derive(Clone, Copy)]
pub struct Znode<'t> {
    tree: &'t TreeReader,
}

impl<'t> Znode<'t> {
    /// `None` is null data, which is not the same as empty.
    #[must_use]
    pub fn data(&self) -> Option<&'t [u8]> {
        let _ = self.tree;
        None
    }

    /// The stat as clients see it.
    #[must_use]
    pub fn stat(&self) -> Stat {
        unreachable!("the tree's inside is being written")
    }

    /// `None` is the open ACL, `world:anyone` with all permissions.
    #[must_use]
    pub fn acl(&self) -> Option<&'t Arc<[Acl]>> {
        None
    }

    /// The names of the children; the same order for the same unchanged znode.
    pub fn children(&self) -> impl Iterator<Item = &'t str> + use<'t> {
        std::iter::empty()
    }

    #[must_use]
    pub fn child_count(&self) -> usize {
        0
    }

    /// How many znodes lie below this one.
    #[must_use]
    pub fn descendant_count(&self) -> usize {
        0
    }
}
