//! ACL lists by number: each list once, however many znodes have it. Snapshots store the
//! numbers; the open ACL has none and is -1 there. After `ReferenceCountedACLCache`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::record::data::Acl;

use super::cell::NumberedAcl;

/// The number of the open ACL in a snapshot.
pub const OPEN_ACL_NUMBER: i64 = -1;

#[derive(Default)]
pub(super) struct AclCache {
    by_list: BTreeMap<Arc<[Acl]>, Arc<NumberedAcl>>,
    last_number: i64,
    /// Sweep once there are this many.
    sweep_at: usize,
}

impl AclCache {
    /// `None` for the open ACL.
    pub(super) fn intern(&mut self, acls: &[Acl]) -> Option<Arc<NumberedAcl>> {
        if let [only] = acls
            && only.is_open()
        {
            return None;
        }
        if let Some(numbered) = self.by_list.get(acls) {
            return Some(Arc::clone(numbered));
        }
        self.sweep();
        self.last_number += 1;
        let list: Arc<[Acl]> = acls.into();
        let numbered = Arc::new(NumberedAcl { number: self.last_number, list: Arc::clone(&list) });
        self.by_list.insert(list, Arc::clone(&numbered));
        Some(numbered)
    }

    /// Forgets lists that no version of any znode has, now and then.
    fn sweep(&mut self) {
        if self.by_list.len() >= self.sweep_at {
            self.by_list.retain(|_, numbered| Arc::strong_count(numbered) > 1);
            self.sweep_at = (self.by_list.len() * 2).max(64);
        }
    }

    /// All lists in use, by number.
    pub(super) fn numbered(&self) -> Vec<(i64, Arc<[Acl]>)> {
        let mut lists: Vec<_> = self
            .by_list
            .values()
            .filter(|numbered| Arc::strong_count(numbered) > 1)
            .map(|numbered| (numbered.number, Arc::clone(&numbered.list)))
            .collect();
        lists.sort_by_key(|(number, _)| *number);
        lists
    }
}
