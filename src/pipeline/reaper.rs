//! Empty containers and dead TTL znodes.
//!
//! Looked for at an interval. A container goes when it has had a child and has none now, or was
//! never used for too long; a znode with a TTL when it has no children and its data is older
//! than that. What is found becomes a transaction like any other, a few per tick, so that many
//! at once do not crowd out clients. After `ContainerManager`.

use std::collections::VecDeque;

use crate::tree::TreeWriter;
use crate::tree::ephemerals::Owner;
use crate::types::{Deadline, Now};

#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// `znode.container.checkIntervalMs`.
    pub check_interval_ms: i64,
    /// `znode.container.maxPerMinute`.
    pub per_minute_max: i64,
    /// `znode.container.maxNeverUsedIntervalMs`; 0: unused containers stay.
    pub never_used_ms_max: i64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { check_interval_ms: 60_000, per_minute_max: 10_000, never_used_ms_max: 300_000 }
    }
}

#[derive(Debug)]
pub(super) struct Reaper {
    settings: Settings,
    check: Deadline,
    found: VecDeque<String>,
    /// When paths were last handed out.
    last: Now,
}

impl Reaper {
    pub(super) fn new(now: Now, settings: Settings) -> Reaper {
        Reaper {
            settings,
            check: Deadline(now.monotonic_ms.saturating_add(settings.check_interval_ms)),
            found: VecDeque::new(),
            last: now,
        }
    }

    /// What to delete now.
    pub(super) fn due(&mut self, now: Now, tree: &TreeWriter) -> Vec<String> {
        if self.check.is_due(now) {
            let next_ms = now.monotonic_ms.saturating_add(self.settings.check_interval_ms);
            self.check = Deadline(next_ms);
            self.found = tree
                .reapable()
                .filter(|znode| self.is_due(now, znode))
                .map(|znode| znode.path().to_owned())
                .collect();
        }
        let elapsed_ms = now.monotonic_ms - self.last.monotonic_ms;
        self.last = now;
        if self.found.is_empty() {
            return Vec::new();
        }
        let share = elapsed_ms.saturating_mul(self.settings.per_minute_max) / 60_000;
        let share = usize::try_from(share.max(1)).unwrap_or(usize::MAX);
        let share = share.min(self.found.len());
        let found: Vec<String> = self.found.drain(..share).collect();
        // It may be a while since they were found: a znode that was written to lives on.
        let is_due = |path: &String| tree.newest(path).is_some_and(|z| self.is_due(now, &z));
        found.into_iter().filter(is_due).collect()
    }

    fn is_due(&self, now: Now, znode: &crate::tree::Newest<'_>) -> bool {
        let stat = znode.stat_persisted();
        // The time that a znode bears is whatever its writer's clock said.
        let age_ms = now.wall_ms.saturating_sub(stat.mtime);
        znode.child_count() == 0
            && match znode.owner() {
                Owner::Container => {
                    let limit = self.settings.never_used_ms_max;
                    stat.cversion > 0 || (limit != 0 && limit < age_ms)
                }
                Owner::Ttl(ttl_ms) => ttl_ms != 0 && ttl_ms < age_ms,
                Owner::Nobody | Owner::Session(_) => false,
            }
    }
}
