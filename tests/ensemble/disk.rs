//! What one server's disk has: epochs, a snapshot, and the records behind it. What is being written
//! is a queue of jobs, of which a crash leaves some of the first.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use ringkeeper::pipeline::{OnMismatch, Restore, Restored};
use ringkeeper::storage::replay::read_payload;
use ringkeeper::storage::snapshot::SnapshotReader;
use ringkeeper::tree;
use ringkeeper::types::{Epoch, Zxid};
use ringkeeper::zab::Durable;
use ringkeeper::zab::history::Cache;
use ringkeeper::zab::proposals::Proposal;

#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) accepted: Epoch,
    pub(crate) current: Epoch,
    /// A snapshot as a file, and the zxid in its name.
    pub(crate) snapshot: Option<(Zxid, Arc<[u8]>)>,
    pub(crate) log: Vec<Proposal>,
}

/// What is asked of a disk, in order.
#[derive(Clone, Debug)]
pub(crate) enum Job {
    Append(Proposal),
    Store(Durable),
    /// A snapshot of a leader's takes the place of all there is.
    Replace(Zxid, Arc<[u8]>),
}

impl Disk {
    pub(crate) fn end(&self) -> Zxid {
        let snapshot = self.snapshot.as_ref().map_or(Zxid::ZERO, |(zxid, _)| *zxid);
        self.log.last().map_or(snapshot, |last| last.zxid)
    }

    fn has(&self, zxid: Zxid) -> bool {
        let base = self.snapshot.as_ref().map_or(Zxid::ZERO, |(zxid, _)| *zxid);
        base == zxid || self.log.iter().any(|proposal| proposal.zxid == zxid)
    }

    pub(crate) fn take(&mut self, job: Job) {
        match job {
            Job::Append(proposal) => self.log.push(proposal),
            Job::Store(Durable::AcceptedEpoch(epoch)) => self.accepted = epoch,
            Job::Store(Durable::CurrentEpoch(epoch)) => self.current = epoch,
            // Where a log has no such transaction, nothing is cut.
            Job::Store(Durable::Truncated(to)) if self.has(to) => {
                self.log.retain(|proposal| proposal.zxid <= to);
            }
            Job::Store(Durable::Truncated(_)) => {}
            Job::Store(Durable::Snapshot(_)) => unreachable!("a snapshot comes with its bytes"),
            Job::Replace(zxid, file) => {
                self.snapshot = Some((zxid, file));
                self.log.clear();
            }
        }
    }

    /// What a crash leaves: some of what was on its way.
    pub(crate) fn take_some(&mut self, jobs: VecDeque<Job>, count: usize) {
        jobs.into_iter().take(count).for_each(|job| self.take(job));
    }

    /// The state as a start finds it; so much at its end is not published.
    pub(crate) fn restore(&self, on_mismatch: OnMismatch, unpublished: Cache) -> Restored {
        let settings = tree::Settings::default();
        let mut restore = match &self.snapshot {
            None => Restore::empty(settings).on_mismatch(on_mismatch),
            Some((zxid, file)) => {
                let mut reader = SnapshotReader::new(Path::new("snapshot"), &file[..]);
                Restore::from_snapshot_with(settings, on_mismatch, *zxid, &mut reader).unwrap()
            }
        };
        restore = restore.unpublished(unpublished);
        for proposal in &self.log {
            let (header, txn, digest) = read_payload(&proposal.payload).unwrap();
            restore.replay(&header, &txn, digest.as_ref()).unwrap();
        }
        restore.finish()
    }
}
