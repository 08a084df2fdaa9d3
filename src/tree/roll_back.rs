//! Transactions that are applied and not published are taken back: a leader has had them cut from the
//! log, or they never were its history.
//!
//! The tree walks what was settled, from the newest on, and pops the versions: so it costs what these
//! transactions did cost, however large the tree is. Sums and indexes go back by the same account by
//! which they went forward, version by version. Nobody sees any of it, because no view is above what
//! is published.
//!
//! ```text
//! published <= zxid:    … 0x4  0x5 | 0x6  0x7  0x8        versions of one znode, the newest last
//!                              ▲     └─────┬──────┘
//!                              zxid        popped
//! ```
//!
//! **A tombstone below.** A znode that was deleted and made again has a tombstone between its lives.
//! Once every view is past the tombstone, `reclaim` frees what is behind it, and unlinks nothing,
//! because the znode lives. If its second life is then taken back, nothing is left that would unlink
//! it. So the roll back unlinks it, children before their parents.

use std::cmp::Reverse;

use super::TreeWriter;
#[cfg(feature = "mutants")]
use super::cell::NodeRef;
#[cfg(feature = "mutants")]
use super::ephemerals::Owner;
use crate::types::Zxid;

impl TreeWriter {
    /// Takes back all that was applied after `zxid`. The newest state is what it was then, and
    /// transactions may follow `zxid` anew.
    ///
    /// # Panics
    /// If something after `zxid` is published, or a transaction is open.
    pub fn roll_back_to(&mut self, zxid: Zxid) {
        assert!(self.published() <= zxid, "what was published is not taken back");
        assert!(self.open.is_empty(), "an open transaction is undone, not rolled back");
        #[cfg(feature = "mutants")]
        let (digest, mut touched) = (self.digest, Vec::new());
        let mut stranded = Vec::new();
        while let Some((node, of)) = self.store.unsettle_after(zxid.0) {
            // A transaction may have given it several, and may name it twice.
            let mut is_taken_back = false;
            while self.store.newest_zxid(&node) == Some(of) {
                self.take_back(node);
                is_taken_back = true;
            }
            if is_taken_back && self.store.is_stranded(&node) {
                stranded.push(node);
            }
            #[cfg(feature = "mutants")]
            touched.push(node);
        }
        #[cfg(feature = "mutants")]
        self.do_wrong(digest, &touched, &mut stranded);
        // A child's path is longer than its parent's.
        stranded.sort_by_key(|node| Reverse(node.path().len()));
        self.store.unlink_stranded(stranded.into_iter());
        self.store.rolled_back_to(zxid.0);
    }
}

/// Seeded bugs of a roll back, for proving the checkers. Never in a release.
#[cfg(feature = "mutants")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// The digest stays what it was.
    DigestKept,
    /// An ephemeral whose delete is taken back is nobody's.
    OwnerForgotten,
    /// What is gone for every view stays linked.
    TombstoneLeft,
}

#[cfg(feature = "mutants")]
impl TreeWriter {
    pub fn set_mutant(&mut self, mutant: Option<Mutant>) {
        self.mutant = mutant;
    }

    fn do_wrong(&mut self, digest: u64, touched: &[NodeRef], stranded: &mut Vec<NodeRef>) {
        match self.mutant {
            Some(Mutant::DigestKept) => self.digest = digest,
            Some(Mutant::OwnerForgotten) => {
                for node in touched {
                    let owner = node.live().map_or(0, |version| version.ephemeral_owner());
                    let owner = Owner::of(owner, self.settings.types);
                    if let Owner::Session(session) = owner
                        && self.owned.owns(session, node.path())
                    {
                        self.owned.remove(owner, *node);
                    }
                }
            }
            Some(Mutant::TombstoneLeft) => stranded.clear(),
            None => {}
        }
    }
}
