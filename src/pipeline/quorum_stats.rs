//! What a server of an ensemble shows of itself: its role, how far its learners are, and what metrics
//! count of its quorum.
//!
//! Log lines of role changes are ZooKeeper's, because operators search logs for them.
//!
//! After `QuorumPeer` (`getDetailedState`, `setZabState`), `Leader`, `Follower`, `BufferStats`.

use std::collections::{BTreeMap, VecDeque};

use tracing::info;

use crate::record::quorum::FromLeader;
use crate::types::{Now, ServerId, Zxid};
use crate::zab::leader::{LiveLearner, ToLearner};
use crate::zab::vote::PeerState;

/// What a server of an ensemble does, for reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuorumReport {
    pub role: QuorumRole,
    /// Participants of the configuration (`zk_quorum_size`).
    pub voter_count: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuorumRole {
    /// It has no role, or has not established it: it serves nobody.
    Looking,
    Leader(LeaderReport),
    Follower,
    /// With the server that sends it what is committed.
    Observer {
        leader: Option<ServerId>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderReport {
    /// How long this server has led.
    pub leading_ms: i64,
    /// Connections of learners, those that are still joining included.
    pub learner_count: usize,
    /// The learners that serve clients.
    pub learners: Vec<LearnerReport>,
    /// Syncs of learners that wait for a commit.
    pub pending_syncs: usize,
    /// `None` before the first proposal.
    pub proposal_sizes: Option<ProposalSizes>,
}

/// A learner, and what its leader does not know it to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LearnerReport {
    pub server: ServerId,
    pub is_observer: bool,
    pub is_voter: bool,
    /// Of a follower: transactions that are proposed and that it has not acknowledged. Of an
    /// observer: those that were committed since the last PING that it has answered.
    pub lag_txns: u64,
    /// Since when the first of these is proposed.
    pub lag_ms: i64,
}

/// Bytes of proposals: header, transaction and digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProposalSizes {
    pub last: usize,
    pub min: usize,
    pub max: usize,
}

/// What metrics count of a quorum.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuorumCounts {
    pub looking: u64,
    pub proposals: u64,
    pub commits: u64,
    /// How often a leader began to synchronize a learner by DIFF.
    pub diffs: u64,
    pub snaps: u64,
    pub proposals_received: u64,
    pub commits_received: u64,
    pub election_ms: Vec<u64>,
    pub follower_sync_ms: Vec<u64>,
    pub observer_sync_ms: Vec<u64>,
    /// From the end of one role, or the start, until the next one is established.
    pub unavailable_ms: Vec<u64>,
    /// The same, where this server came to lead.
    pub leader_unavailable_ms: Vec<u64>,
    /// From a proposal to its commit: how many took so many milliseconds.
    pub quorum_ack_ms: BTreeMap<u64, u64>,
}

/// Proposals of one millisecond.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: Zxid,
    last: Zxid,
    at_ms: i64,
}

/// How many runs are kept: 16 s of a leader that proposes all the time. A learner that lags by more
/// shows the age of the oldest.
const RUNS_MAX: usize = 1 << 14;

#[derive(Debug)]
pub(super) struct QuorumStats {
    state: PeerState,
    looking_since_ms: i64,
    /// `None` while clients are served.
    unavailable_since_ms: Option<i64>,
    /// The leader has begun to synchronize this server.
    sync_began_ms: Option<i64>,
    established_at_ms: i64,
    proposal_sizes: Option<ProposalSizes>,
    runs: VecDeque<Run>,
    counts: QuorumCounts,
}

impl QuorumStats {
    pub(super) fn new(now: Now) -> QuorumStats {
        let mut stats = QuorumStats {
            state: PeerState::Looking,
            looking_since_ms: now.monotonic_ms,
            unavailable_since_ms: Some(now.monotonic_ms),
            sync_began_ms: None,
            established_at_ms: now.monotonic_ms,
            proposal_sizes: None,
            runs: VecDeque::new(),
            counts: QuorumCounts::default(),
        };
        stats.look(now);
        stats
    }

    pub(super) fn take_counts(&mut self) -> QuorumCounts {
        std::mem::take(&mut self.counts)
    }

    pub(super) fn reset_proposal_sizes(&mut self) {
        self.proposal_sizes = None;
    }

    // ---- roles ------------------------------------------------------------------------------

    /// An election is over, or a role.
    pub(super) fn on_state(&mut self, now: Now, state: PeerState) {
        self.state = state;
        self.sync_began_ms = None;
        let took_ms = now.monotonic_ms - self.looking_since_ms;
        match state {
            PeerState::Looking => return self.look(now),
            PeerState::Observing => info!("OBSERVING"),
            PeerState::Following => {
                info!("FOLLOWING");
                info!("FOLLOWING - LEADER ELECTION TOOK - {took_ms} MS");
            }
            PeerState::Leading => {
                info!("LEADING");
                info!("LEADING - LEADER ELECTION TOOK - {took_ms} MS");
            }
        }
        if state != PeerState::Observing {
            self.counts.election_ms.push(whole(took_ms));
        }
        self.say_state(" - discovery");
    }

    fn look(&mut self, now: Now) {
        self.looking_since_ms = now.monotonic_ms;
        self.unavailable_since_ms.get_or_insert(now.monotonic_ms);
        self.counts.looking += 1;
        self.say_state("");
        info!("LOOKING");
    }

    /// Clients are served from now on.
    pub(super) fn on_established(&mut self, now: Now) {
        self.established_at_ms = now.monotonic_ms;
        self.proposal_sizes = None;
        self.runs.clear();
        if let Some(since_ms) = self.unavailable_since_ms.take() {
            let took_ms = whole(now.monotonic_ms - since_ms);
            self.counts.unavailable_ms.push(took_ms);
            if self.state == PeerState::Leading {
                self.counts.leader_unavailable_ms.push(took_ms);
            }
        }
        if let Some(began_ms) = self.sync_began_ms.take() {
            let took_ms = whole(now.monotonic_ms - began_ms);
            match self.state {
                PeerState::Following => self.counts.follower_sync_ms.push(took_ms),
                PeerState::Observing => self.counts.observer_sync_ms.push(took_ms),
                PeerState::Looking | PeerState::Leading => {}
            }
        }
        self.say_state(" - broadcast");
    }

    fn say_state(&self, stage: &str) {
        let state = match self.state {
            PeerState::Looking => "looking",
            PeerState::Following => "following",
            PeerState::Leading => "leading",
            PeerState::Observing => "observing",
        };
        info!("Peer state changed: {state}{stage}");
    }

    // ---- of a learner -----------------------------------------------------------------------

    /// The leader has sent this.
    pub(super) fn on_packet_of_leader(&mut self, now: Now, packet: &FromLeader<'_>, serves: bool) {
        match packet {
            FromLeader::Proposal { .. } if serves => self.counts.proposals_received += 1,
            FromLeader::Commit { .. } | FromLeader::Inform { .. } if serves => {
                self.counts.commits_received += 1;
            }
            FromLeader::Diff { zxid } if !serves => {
                info!("Getting a diff from the leader {zxid}");
                self.begin_sync(now, "diff");
            }
            FromLeader::Snap { zxid } if !serves => {
                info!("Getting a snapshot from leader {zxid}");
                self.begin_sync(now, "snap");
            }
            FromLeader::Trunc { zxid } if !serves => {
                info!("Truncating log to get in sync with the leader {zxid}");
                self.begin_sync(now, "trunc");
            }
            _ => {}
        }
    }

    fn begin_sync(&mut self, now: Now, mode: &str) {
        self.sync_began_ms.get_or_insert(now.monotonic_ms);
        self.say_state(&format!(" - synchronization - {mode}"));
    }

    // ---- of a leader ------------------------------------------------------------------------

    pub(super) fn on_sent_to_learner(&mut self, packet: &ToLearner) {
        match packet {
            ToLearner::Diff { .. } => self.counts.diffs += 1,
            ToLearner::Snap { .. } => self.counts.snaps += 1,
            _ => {}
        }
    }

    pub(super) fn on_proposed(&mut self, now: Now, zxid: Zxid, bytes: usize) {
        self.counts.proposals += 1;
        let sizes = self.proposal_sizes.unwrap_or(ProposalSizes { last: 0, min: bytes, max: 0 });
        self.proposal_sizes = Some(ProposalSizes {
            last: bytes,
            min: bytes.min(sizes.min),
            max: bytes.max(sizes.max),
        });
        match self.runs.back_mut() {
            Some(run) if run.at_ms == now.monotonic_ms => run.last = zxid,
            _ => {
                if self.runs.len() == RUNS_MAX {
                    self.runs.pop_front();
                }
                self.runs.push_back(Run { first: zxid, last: zxid, at_ms: now.monotonic_ms });
            }
        }
    }

    /// What comes after `before` is committed up to `committed`.
    pub(super) fn on_committed(&mut self, now: Now, before: Zxid, committed: Zxid) {
        let start = self.runs.partition_point(|run| run.last <= before);
        for run in self.runs.range(start..).take_while(|run| run.first <= committed) {
            let (first, last) = (run.first.max(Zxid(before.0 + 1)), run.last.min(committed));
            let count = whole(last.0 - first.0 + 1);
            self.counts.commits += count;
            let took_ms = whole(now.monotonic_ms - run.at_ms);
            *self.counts.quorum_ack_ms.entry(took_ms).or_default() += count;
        }
    }

    /// How long this server has served.
    pub(super) fn established_ms(&self, now: Now) -> i64 {
        now.monotonic_ms - self.established_at_ms
    }

    pub(super) fn proposal_sizes(&self) -> Option<ProposalSizes> {
        self.proposal_sizes
    }

    /// How far a learner is, where all up to `proposed` is proposed and up to `committed` committed.
    pub(super) fn learner_report(
        &self,
        now: Now,
        learner: LiveLearner,
        is_voter: bool,
        (proposed, committed): (Zxid, Zxid),
    ) -> LearnerReport {
        let LiveLearner { server, is_observer, acked, .. } = learner;
        let owed = if is_observer { committed } else { proposed };
        // Zxids of two epochs have no distance. The epoch begins with what all have.
        let lag_txns = if acked.epoch() == owed.epoch() { whole(owed.0 - acked.0) } else { 0 };
        let first = self.runs.get(self.runs.partition_point(|run| run.last <= acked));
        let lag_ms = first.filter(|_| 0 < lag_txns).map_or(0, |run| now.monotonic_ms - run.at_ms);
        LearnerReport { server, is_observer, is_voter, lag_txns, lag_ms }
    }
}

fn whole(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zab::LinkId;

    fn at(monotonic_ms: i64) -> Now {
        Now { monotonic_ms, wall_ms: 0 }
    }

    fn leading() -> QuorumStats {
        let mut stats = QuorumStats::new(at(100));
        stats.on_state(at(350), PeerState::Leading);
        stats.on_established(at(400));
        stats
    }

    #[test]
    fn roles_and_their_times_are_counted() {
        let mut stats = leading();
        let counts = stats.take_counts();
        assert_eq!((counts.looking, &counts.election_ms[..]), (1, &[250][..]));
        assert_eq!((counts.unavailable_ms, counts.leader_unavailable_ms), (vec![300], vec![300]));
        stats.on_state(at(1000), PeerState::Looking);
        stats.on_state(at(1100), PeerState::Following);
        // The join fails, and nobody has been served meanwhile.
        stats.on_state(at(1200), PeerState::Looking);
        stats.on_state(at(1250), PeerState::Following);
        stats.on_packet_of_leader(at(1300), &FromLeader::Diff { zxid: Zxid(7) }, false);
        stats.on_established(at(1320));
        stats.on_packet_of_leader(at(1330), &FromLeader::Commit { zxid: Zxid(8) }, true);
        let counts = stats.take_counts();
        assert_eq!((counts.looking, &counts.election_ms[..]), (2, &[100, 50][..]));
        assert_eq!((counts.unavailable_ms, counts.leader_unavailable_ms), (vec![320], vec![]));
        assert_eq!((counts.follower_sync_ms, counts.commits_received), (vec![20], 1));
    }

    #[test]
    fn commits_are_counted_with_what_they_took() {
        let mut stats = leading();
        for (number, at_ms) in [(1, 500), (2, 500), (3, 502), (4, 510)] {
            stats.on_proposed(at(at_ms), Zxid(number), 40 + number as usize);
        }
        stats.on_committed(at(505), Zxid(0), Zxid(1));
        stats.on_committed(at(512), Zxid(1), Zxid(3));
        let counts = stats.take_counts();
        assert_eq!((counts.proposals, counts.commits), (4, 3));
        assert_eq!(counts.quorum_ack_ms, BTreeMap::from([(5, 1), (10, 1), (12, 1)]));
        let sizes = |last, min, max| Some(ProposalSizes { last, min, max });
        assert_eq!(stats.proposal_sizes(), sizes(44, 41, 44));
        stats.reset_proposal_sizes();
        stats.on_proposed(at(600), Zxid(5), 7);
        assert_eq!(stats.proposal_sizes(), sizes(7, 7, 7));
    }

    #[test]
    fn a_learner_lags_by_what_it_has_not_acknowledged() {
        let mut stats = leading();
        for (number, at_ms) in [(1, 500), (2, 500), (3, 502), (4, 510)] {
            stats.on_proposed(at(at_ms), Zxid(number), 40);
        }
        let learner = |server: i64, is_observer, acked| LiveLearner {
            link: LinkId(server as u64),
            server: ServerId(server),
            is_observer,
            acked: Zxid(acked),
            told_ms: 0,
        };
        let learners = [learner(2, false, 2), learner(9, false, 4), learner(3, true, 0)];
        let bounds = (Zxid(4), Zxid(3));
        let reports = learners.map(|of| stats.learner_report(at(520), of, true, bounds));
        assert_eq!(reports.map(|of| (of.lag_txns, of.lag_ms)), [(2, 18), (0, 0), (3, 20)]);
        assert_eq!(stats.established_ms(at(520)), 120);
    }
}
