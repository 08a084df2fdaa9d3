//! How a learner gets to where its leader is: by what it lacks, by cutting what it should not have,
//! or by a snapshot.
//!
//! `P` is the last transaction of the learner's log; the leader has in memory what comes after
//! `base`, up to `end`. The first case that matches holds (`LearnerHandler.syncFollower`,
//! `queueCommittedProposals`):
//!
//! ```text
//! P < 0                                          SNAP: it has nothing to go on from
//! P = end                                        DIFF, and nothing else
//! P > end, both are transactions                 TRUNC to end
//! P > end, one begins an epoch                   SNAP
//! P < base                                       from the log on the disk, or SNAP
//! P in memory, P = base, or P begins an epoch    DIFF, what follows P
//! P is of the epoch of what is next in memory    TRUNC to what is before it, and what follows
//! otherwise                                      SNAP
//! ```
//!
//! In the last two cases, the learner has what no leader knows. A zxid whose counter is zero begins
//! an epoch and is no transaction: a learner of Java that is to cut there keeps one transaction more.
//! Java has no base: where its memory begins at the first transaction of all, it sends a new learner
//! SNAP.

use super::history::History;
use crate::types::Zxid;

/// What a learner is sent before the history that it lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// All that it lacks is what follows `after`.
    Diff {
        after: Zxid,
    },
    /// What it has behind `to` is cut; what follows that is sent.
    Trunc {
        to: Zxid,
    },
    /// What it lacks is not in memory. The log on the disk may have it, from `after` on; otherwise, a
    /// snapshot has.
    Log {
        after: Zxid,
    },
    Snap,
}

/// The way for a learner whose log ends at `peer_last`.
#[must_use]
pub fn plan(peer_last: Zxid, history: &History) -> Plan {
    let (base, end) = (history.base(), history.end());
    if peer_last < Zxid::ZERO {
        return Plan::Snap;
    }
    let begins_epoch = peer_last.counter() == 0;
    if peer_last == end {
        return Plan::Diff { after: peer_last };
    }
    if end < peer_last {
        return if begins_epoch { Plan::Snap } else { truncated(end) };
    }
    if peer_last < base {
        return Plan::Log { after: peer_last };
    }
    let before = history.iter().rev().find(|proposal| proposal.zxid <= peer_last);
    let before = before.map_or(base, |proposal| proposal.zxid);
    if before == peer_last || begins_epoch {
        return Plan::Diff { after: peer_last };
    }
    match history.iter().find(|proposal| peer_last < proposal.zxid) {
        Some(next) if next.zxid.epoch() == peer_last.epoch() => truncated(before),
        _ => Plan::Snap,
    }
}

fn truncated(to: Zxid) -> Plan {
    if to.counter() == 0 { Plan::Snap } else { Plan::Trunc { to } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zab::history::Cache;
    use crate::zab::proposals::Proposal;

    #[test]
    fn every_end_of_a_log_has_javas_operation() {
        let mut history = History::new(Cache { count_max: 99, bytes_max: 99 }, Zxid(0x1_0000_0005));
        for zxid in (0x1_0000_0006..=0x1_0000_000b).chain(0x2_0000_0001..=0x2_0000_0006) {
            history.push(Proposal { zxid: Zxid(zxid), payload: [].into() });
        }
        let end = Zxid(0x2_0000_0006);
        for (last, expected) in [
            (-1, Plan::Snap),
            (0, Plan::Log { after: Zxid(0) }),
            (0x1_0000_0004, Plan::Log { after: Zxid(0x1_0000_0004) }),
            (0x1_0000_0005, Plan::Diff { after: Zxid(0x1_0000_0005) }),
            (0x1_0000_000b, Plan::Diff { after: Zxid(0x1_0000_000b) }),
            (0x1_0000_000c, Plan::Snap),
            (0x2_0000_0000, Plan::Diff { after: Zxid(0x2_0000_0000) }),
            (0x2_0000_0003, Plan::Diff { after: Zxid(0x2_0000_0003) }),
            (0x2_0000_0006, Plan::Diff { after: end }),
            (0x2_0000_0007, Plan::Trunc { to: end }),
            (0x3_0000_0000, Plan::Snap),
            (0x3_0000_0001, Plan::Trunc { to: end }),
        ] {
            assert_eq!(plan(Zxid(last), &history), expected, "{last:#x}");
        }
        history.truncate_after(Zxid(0x1_0000_000b));
        let to = Zxid(0x1_0000_000b);
        assert_eq!(plan(Zxid(0x2_0000_0001), &history), Plan::Trunc { to });
    }
}
