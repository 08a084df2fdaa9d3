//! What may happen on a link of the quorum port, by name: a batch of seeds must have reached all of it.

use std::collections::BTreeMap;

use ringkeeper::record::quorum::{FromLeader, FromLearner};
use ringkeeper::types::Epoch;
use ringkeeper::zab::LinkId;
use ringkeeper::zab::leader::NO_HISTORY;

/// Where there are leaders of ours, and no leaders as Java's beside them.
pub(crate) const ON_LINKS: &[&str] = &[
    "DIFF",
    "DIFF of nothing",
    "TRUNC",
    "TRUNC and what follows",
    "SNAP",
    "INFORM",
    "PROPOSAL between NEWLEADER and UPTODATE",
    "COMMIT between NEWLEADER and UPTODATE",
    "the epoch was accepted before",
    "no history is named",
];

#[derive(Debug, Default)]
struct Join {
    accepted: Epoch,
    operation: Option<&'static str>,
    has_history: bool,
    is_new_leader: bool,
    serves: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Joins(BTreeMap<LinkId, Join>);

impl Joins {
    pub(crate) fn on_packet_of_leader(
        &mut self,
        link: LinkId,
        packet: &FromLeader<'_>,
    ) -> Option<&'static str> {
        let join = self.0.entry(link).or_default();
        match packet {
            FromLeader::LeaderInfo { epoch, .. } if *epoch < join.accepted => {
                Some("the epoch is below the accepted one")
            }
            FromLeader::Diff { .. } => join.begin("DIFF"),
            FromLeader::Trunc { .. } => join.begin("TRUNC"),
            FromLeader::Snap { .. } => join.begin("SNAP"),
            FromLeader::NewLeader { .. } => {
                join.is_new_leader = true;
                match (join.operation, join.has_history) {
                    (Some("DIFF"), false) => Some("DIFF of nothing"),
                    (Some("TRUNC"), true) => Some("TRUNC and what follows"),
                    (operation, _) => operation,
                }
            }
            FromLeader::UpToDate => {
                join.serves = true;
                None
            }
            FromLeader::Proposal { .. } if !join.is_new_leader => {
                join.has_history = true;
                None
            }
            FromLeader::Proposal { .. } if !join.serves => {
                Some("PROPOSAL between NEWLEADER and UPTODATE")
            }
            FromLeader::Commit { .. } if join.is_new_leader && !join.serves => {
                Some("COMMIT between NEWLEADER and UPTODATE")
            }
            FromLeader::Inform { .. } => Some("INFORM"),
            _ => None,
        }
    }

    pub(crate) fn on_packet_of_learner(
        &mut self,
        link: LinkId,
        packet: &FromLearner<'_>,
    ) -> Option<&'static str> {
        match packet {
            FromLearner::FollowerInfo { accepted, .. } => {
                self.0.entry(link).or_default().accepted = *accepted;
                None
            }
            FromLearner::AckEpoch { last, .. } if *last == NO_HISTORY => {
                Some("no history is named")
            }
            FromLearner::AckEpoch { current: None, .. } => Some("the epoch was accepted before"),
            _ => None,
        }
    }
}

impl Join {
    fn begin(&mut self, operation: &'static str) -> Option<&'static str> {
        self.operation = Some(operation);
        Some(operation)
    }
}
