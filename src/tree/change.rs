//! What a transaction touched: the raw material of watches.

use std::sync::Arc;

use crate::record::data::Acl;

/// What happened to a znode, as far as watches care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    Created,
    Deleted,
    DataChanged,
}

/// Takes changes in the order in which they happen.
///
/// `Created` and `Deleted` are also a change of the parent's children. The ACLs decide who may
/// hear of it: the znode's own (before its deletion) and its parent's; `None` is the open ACL.
pub trait Changes {
    fn change(
        &mut self,
        kind: ChangeKind,
        path: &str,
        acl: Option<&Arc<[Acl]>>,
        parent_acl: Option<&Arc<[Acl]>>,
    );
}

/// For replay, where nobody watches.
pub struct Unwatched;

impl Changes for Unwatched {
    fn change(&mut self, _: ChangeKind, _: &str, _: Option<&Arc<[Acl]>>, _: Option<&Arc<[Acl]>>) {}
}
