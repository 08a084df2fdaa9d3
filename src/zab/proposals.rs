//! Proposals that a leader has sent and not yet committed.
//!
//! Zab commits in the order it proposes: a quorum of ACKs for one zxid commits nothing until every
//! earlier proposal is committed. A learner logs and acknowledges in zxid order over one FIFO link,
//! so its last ACK stands for all before it, and one cursor per voter is enough.
//!
//! ```text
//! committed <= acknowledged by a quorum <= proposed
//! ```
//!
//! After `Leader.java` (`processAck`, `tryToCommit`), which counts ACKs per proposal instead.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::voters::Voters;
use crate::types::{ServerId, Zxid};

/// A transaction on its way: the payload of its log record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    pub zxid: Zxid,
    pub payload: Arc<[u8]>,
}

#[derive(Debug)]
struct Outstanding {
    proposal: Proposal,
    /// Whose quorum it needs: while a reconfiguration is under way, of both configurations.
    voters: Arc<Voters>,
}

#[derive(Debug, Default)]
pub struct Proposals {
    /// In zxid order, without a gap.
    outstanding: VecDeque<Outstanding>,
    /// The last ACK of each voter, this server among them.
    acked: BTreeMap<ServerId, Zxid>,
}

impl Proposals {
    pub fn propose(&mut self, proposal: Proposal, voters: &Arc<Voters>) {
        if let Some(last) = self.outstanding.back() {
            assert_eq!(last.proposal.zxid.next(), proposal.zxid, "a leader proposes without gaps");
        }
        self.outstanding.push_back(Outstanding { proposal, voters: Arc::clone(voters) });
    }

    /// A server has logged and synced all up to `zxid`. ACKs of servers that do not vote may come
    /// here; they do not count.
    pub fn on_ack(&mut self, server: ServerId, zxid: Zxid) {
        let acked = self.acked.entry(server).or_insert(zxid);
        *acked = zxid.max(*acked);
    }

    /// A server has left, and may come back without what it had not synced.
    pub fn on_gone(&mut self, server: ServerId) {
        self.acked.remove(&server);
    }

    /// The next proposal that is committed, in zxid order.
    pub fn next_committed(&mut self) -> Option<Proposal> {
        let first = self.outstanding.front()?;
        let has_it = |(server, acked): (&ServerId, &Zxid)| {
            (first.proposal.zxid <= *acked).then_some(*server)
        };
        let acked: BTreeSet<ServerId> = self.acked.iter().filter_map(has_it).collect();
        let is_committed = first.voters.is_quorum(&acked);
        is_committed.then(|| self.outstanding.pop_front().expect("there is a first one").proposal)
    }

    /// What is proposed and not committed, in zxid order.
    pub fn outstanding(&self) -> impl Iterator<Item = &Proposal> {
        self.outstanding.iter().map(|outstanding| &outstanding.proposal)
    }
}
