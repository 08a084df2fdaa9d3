//! A server of an ensemble: it looks for a leader, leads, follows or observes, and looks again.
//!
//! ```text
//! LOOKING --elected me-----> LEADING -----------+
//!         --elected another-> FOLLOWING --------+--(any failure)--> LOOKING
//!         --observer--------> OBSERVING --------+
//! ```
//!
//! What a role has asked the disk for is awaited before the next election: a server votes with what
//! it has. After `QuorumPeer.java`.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::election::{self, Election, Notification, Standing};
use super::history::History;
use super::leader::{self, Leader, ToLearner};
use super::learner::{self, Kind, Learner, ToLeader};
use super::proposals::Proposal;
use super::vote::PeerState;
use super::voters::Voters;
use super::{Durable, LinkId, Own, Settings};
use crate::record::quorum::{FromLeader, FromLearner};
use crate::types::{Deadline, Epoch, Now, ServerId, Zxid};

/// Between two calls of a leader that does not answer
/// (`zookeeper.leaderConnectDelayDuringRetryMs`).
const CALL_DELAY_MS: i64 = 100;

/// What a server starts with.
#[derive(Debug)]
pub struct Start {
    pub me: ServerId,
    pub settings: Settings,
    pub election: election::Settings,
    pub voters: Arc<Voters>,
    pub is_observer: bool,
    /// What is on its disk: all of it synced.
    pub accepted: Epoch,
    pub current: Epoch,
    pub history: History,
}

/// What a step asks for.
#[derive(Debug, Default)]
pub struct Output {
    /// Servers to tell what `Peer::notification` is when it is written to them.
    pub tell: BTreeSet<ServerId>,
    /// To connect to the quorum port of this server: `on_leader_reached` or `on_leader_refused`.
    pub call: Option<ServerId>,
    pub to_learners: Vec<(LinkId, ToLearner)>,
    pub to_leader: Vec<(LinkId, ToLeader)>,
    pub closes: Vec<LinkId>,
    pub stores: Vec<Durable>,
    pub appends: Vec<Proposal>,
    /// To replace the state by the snapshot that follows on the link to the leader.
    pub load: Option<Zxid>,
    pub committed: Option<Zxid>,
    /// The role has changed.
    pub state: Option<PeerState>,
    /// Clients are served from now on, in this epoch.
    pub established: Option<Epoch>,
    /// Why the last role ended.
    pub ended: Option<Ended>,
}

impl Output {
    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Output {
            tell,
            call,
            to_learners,
            to_leader,
            closes,
            stores,
            appends,
            load,
            committed,
            state,
            established,
            ended,
        } = self;
        tell.is_empty()
            && call.is_none()
            && to_learners.is_empty()
            && to_leader.is_empty()
            && closes.is_empty()
            && stores.is_empty()
            && appends.is_empty()
            && load.is_none()
            && committed.is_none()
            && state.is_none()
            && established.is_none()
            && ended.is_none()
    }
}

/// Why a server looks for a leader again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    #[error("leading ended: {0}")]
    Leader(leader::End),
    #[error("following ended: {0}")]
    Learner(learner::Fault),
    #[error("the connection to the leader is lost")]
    LinkLost,
    #[error("the leader could not be reached within initLimit")]
    Unreachable,
}

#[derive(Debug)]
pub struct Peer {
    me: ServerId,
    settings: Settings,
    voters: Arc<Voters>,
    is_observer: bool,
    election: Election,
    role: Role,
    accepted: Epoch,
    current: Epoch,
    synced: Zxid,
    /// Asked of the disk, and not answered.
    pending: Vec<Durable>,
}

#[derive(Debug)]
enum Role {
    Looking {
        history: History,
    },
    Leading(Box<Leader>),
    /// It calls its leader.
    Calling {
        history: History,
        leader: ServerId,
        until: Deadline,
        again: Option<Deadline>,
    },
    Following {
        link: LinkId,
        learner: Box<Learner>,
    },
    /// The last role is over, and what it asked the disk for is not.
    Settling {
        history: History,
    },
}

impl Peer {
    /// Starts, and looks for a leader.
    pub fn new(now: Now, start: Start, out: &mut Output) -> Peer {
        let Start { me, settings, election, voters, is_observer, accepted, current, history } =
            start;
        let mut votes = election::Output::default();
        let last = history.end();
        let standing = standing(is_observer, last, current);
        let own = Voters::clone(&voters);
        let election = Election::new(now, me, election, own, standing, &mut votes);
        let role = Role::Looking { history };
        let mut peer = Peer {
            me,
            settings,
            voters,
            is_observer,
            election,
            role,
            accepted,
            current,
            synced: last,
            pending: Vec::new(),
        };
        peer.on_votes(now, votes, out);
        peer
    }

    #[must_use]
    pub fn notification(&self) -> Notification {
        self.election.notification()
    }

    #[must_use]
    pub fn state(&self) -> PeerState {
        self.election.state()
    }

    /// The leader, where this server is one and established.
    #[must_use]
    pub fn leader(&mut self) -> Option<&mut Leader> {
        match &mut self.role {
            Role::Leading(leader) if leader.epoch().is_some() => Some(leader),
            _ => None,
        }
    }

    /// Where the history ends: what is committed, once a leader is established, and all that is
    /// logged before.
    #[must_use]
    pub fn history_end(&self) -> Zxid {
        match &self.role {
            Role::Leading(leader) => leader.committed(),
            Role::Following { learner, .. } => learner.committed(),
            Role::Looking { history }
            | Role::Calling { history, .. }
            | Role::Settling { history } => history.end(),
        }
    }

    #[must_use]
    pub fn deadline(&self) -> Option<Deadline> {
        let role = match &self.role {
            Role::Looking { .. } | Role::Settling { .. } => None,
            Role::Leading(leader) => Some(leader.deadline()),
            Role::Calling { until, again, .. } => Some(again.map_or(*until, |at| at.min(*until))),
            Role::Following { learner, .. } => Some(learner.deadline()),
        };
        role.into_iter().chain(self.election.deadline()).min()
    }

    pub fn on_time(&mut self, now: Now, out: &mut Output) {
        self.vote(now, out, |election, votes| election.on_time(now, votes));
        match &mut self.role {
            Role::Looking { .. } | Role::Settling { .. } => {}
            Role::Leading(_) => self.lead(now, out, |leader, asked| leader.on_time(now, asked)),
            Role::Calling { until, .. } if until.is_due(now) => {
                self.give_up(now, Ended::Unreachable, out);
            }
            Role::Calling { leader, again, .. } => {
                if again.is_some_and(|at| at.is_due(now)) {
                    *again = None;
                    out.call = Some(*leader);
                }
            }
            Role::Following { .. } => {
                self.learn(now, out, |learner, asked| learner.on_time(now, asked))
            }
        }
    }

    // ---- election ---------------------------------------------------------------------------

    pub fn on_notification(
        &mut self,
        now: Now,
        from: ServerId,
        notification: Notification,
        out: &mut Output,
    ) {
        self.vote(now, out, |election, votes| {
            election.on_notification(now, from, notification, votes);
        });
    }

    pub fn on_election_port(
        &mut self,
        now: Now,
        server: ServerId,
        is_refused: bool,
        out: &mut Output,
    ) {
        self.vote(now, out, |election, votes| match is_refused {
            true => election.on_refused(now, server, votes),
            false => election.on_reached(server),
        });
    }

    pub fn on_election_link_closed(&mut self, server: ServerId) {
        self.election.on_gone(server);
    }

    fn vote(
        &mut self,
        now: Now,
        out: &mut Output,
        step: impl FnOnce(&mut Election, &mut election::Output),
    ) {
        let mut votes = election::Output::default();
        step(&mut self.election, &mut votes);
        self.on_votes(now, votes, out);
    }

    fn on_votes(&mut self, now: Now, mut votes: election::Output, out: &mut Output) {
        out.tell.append(&mut votes.tell);
        let Some(decision) = votes.decision else { return };
        let Role::Looking { history } = &mut self.role else {
            unreachable!("an election is held while looking");
        };
        let history = std::mem::replace(history, History::new(1, Zxid::ZERO));
        out.state = Some(decision.state);
        if decision.state == PeerState::Leading {
            let mut asked = leader::Output::default();
            let (own, voters) = (self.own(history), Arc::clone(&self.voters));
            let leader = Leader::new(now, self.me, self.settings, voters, own, &mut asked);
            self.role = Role::Leading(Box::new(leader));
            self.on_leader_asks(now, asked, out);
        } else {
            let until = Deadline(now.monotonic_ms + self.settings.init_ms());
            self.role = Role::Calling { history, leader: decision.leader, until, again: None };
            out.call = Some(decision.leader);
        }
    }

    // ---- the quorum port --------------------------------------------------------------------

    /// The leader answered.
    pub fn on_leader_reached(&mut self, now: Now, link: LinkId, out: &mut Output) {
        let Role::Calling { history, .. } = &mut self.role else {
            out.closes.push(link);
            return;
        };
        let history = std::mem::replace(history, History::new(1, Zxid::ZERO));
        let kind = Kind::of(self.is_observer);
        let (own, mut asked) = (self.own(history), learner::Output::default());
        let learner = Learner::new(now, kind, self.settings, own, &mut asked);
        self.role = Role::Following { link, learner: Box::new(learner) };
        self.on_learner_asks(now, asked, out);
    }

    /// Nobody answered there.
    pub fn on_leader_refused(&mut self, now: Now) {
        if let Role::Calling { again, .. } = &mut self.role {
            *again = Some(Deadline(now.monotonic_ms + CALL_DELAY_MS));
        }
    }

    /// Somebody connected to the quorum port here.
    pub fn on_learner_connected(&mut self, now: Now, link: LinkId, out: &mut Output) {
        match &mut self.role {
            Role::Leading(leader) => leader.on_connected(now, link),
            _ => out.closes.push(link),
        }
    }

    pub fn on_link_closed(&mut self, now: Now, link: LinkId, out: &mut Output) {
        match &mut self.role {
            Role::Leading(leader) => leader.on_closed(link),
            Role::Following { link: own, .. } if *own == link => {
                self.give_up(now, Ended::LinkLost, out);
            }
            _ => {}
        }
    }

    pub fn on_packet_of_learner(
        &mut self,
        now: Now,
        link: LinkId,
        packet: FromLearner<'_>,
        out: &mut Output,
    ) {
        self.lead(now, out, |leader, asked| leader.on_packet(now, link, packet, asked));
    }

    pub fn on_packet_of_leader(
        &mut self,
        now: Now,
        link: LinkId,
        packet: FromLeader<'_>,
        out: &mut Output,
    ) {
        if let Role::Following { link: own, .. } = &self.role
            && *own == link
        {
            self.learn(now, out, |learner, asked| learner.on_packet(now, packet, asked));
        }
    }

    /// Proposes a transaction: the caller is an established leader and has the next zxid.
    pub fn propose(&mut self, now: Now, proposal: Proposal, out: &mut Output) {
        self.lead(now, out, |leader, asked| leader.propose(now, proposal, asked));
    }

    /// The next zxid, where this server leads and the epoch has one left.
    pub fn next_zxid(&mut self, now: Now, out: &mut Output) -> Option<Zxid> {
        self.leader()?;
        let mut next = None;
        self.lead(now, out, |leader, asked| next = leader.next_zxid(asked));
        next
    }

    // ---- the disk ---------------------------------------------------------------------------

    pub fn on_synced(&mut self, now: Now, zxid: Zxid, out: &mut Output) {
        self.synced = zxid.max(self.synced);
        match &mut self.role {
            Role::Leading(_) => self.lead(now, out, |leader, asked| leader.on_synced(zxid, asked)),
            Role::Following { .. } => {
                self.learn(now, out, |learner, asked| learner.on_synced(zxid, asked));
            }
            Role::Looking { .. } | Role::Calling { .. } | Role::Settling { .. } => {}
        }
    }

    pub fn on_stored(&mut self, now: Now, stored: Durable, out: &mut Output) {
        self.pending.retain(|pending| *pending != stored);
        match stored {
            Durable::AcceptedEpoch(epoch) => self.accepted = epoch.max(self.accepted),
            Durable::CurrentEpoch(epoch) => self.current = epoch.max(self.current),
            Durable::Truncated(_) => unreachable!("on_truncated says that"),
            Durable::Snapshot(zxid) => self.synced = zxid,
        }
        match &mut self.role {
            Role::Leading(_) => {
                self.lead(now, out, |leader, asked| leader.on_stored(now, stored, asked));
            }
            Role::Following { .. } => {
                self.learn(now, out, |learner, asked| learner.on_stored(now, stored, asked));
            }
            Role::Settling { history } => match stored {
                Durable::Snapshot(zxid) => history.replace(zxid),
                Durable::Truncated(_) | Durable::AcceptedEpoch(_) | Durable::CurrentEpoch(_) => {}
            },
            Role::Looking { .. } | Role::Calling { .. } => {}
        }
        self.look_if_settled(now, out);
    }

    /// The log was cut behind `to`, and ends at `end`: before `to` where that was not in it.
    pub fn on_truncated(&mut self, now: Now, to: Zxid, end: Zxid, out: &mut Output) {
        self.pending.retain(|pending| *pending != Durable::Truncated(to));
        self.synced = end;
        match &mut self.role {
            Role::Following { .. } => {
                self.learn(now, out, |learner, asked| learner.on_truncated(now, to, end, asked));
            }
            Role::Settling { history } => history.truncate_after(end),
            Role::Leading(_) | Role::Looking { .. } | Role::Calling { .. } => {
                unreachable!("nobody else has the log cut")
            }
        }
        self.look_if_settled(now, out);
    }

    /// The snapshot that was to replace the state did not come whole, or its link is gone: the state
    /// is the one on the disk again, whose history this is. Each `Output::load` is answered once, by
    /// this or by `Durable::Snapshot`.
    pub fn on_snapshot_lost(&mut self, now: Now, on_disk: History, out: &mut Output) {
        if let Role::Following { .. } = &self.role {
            self.give_up(now, Ended::LinkLost, out);
        }
        self.pending.retain(|pending| !matches!(pending, Durable::Snapshot(_)));
        self.synced = on_disk.end();
        if let Role::Settling { history } = &mut self.role {
            *history = on_disk;
        }
        self.look_if_settled(now, out);
    }

    // ---- roles ------------------------------------------------------------------------------

    fn own(&self, history: History) -> Own {
        Own { accepted: self.accepted, current: self.current, history, synced: self.synced }
    }

    fn lead(
        &mut self,
        now: Now,
        out: &mut Output,
        step: impl FnOnce(&mut Leader, &mut leader::Output),
    ) {
        let Role::Leading(leader) = &mut self.role else { return };
        let mut asked = leader::Output::default();
        step(leader, &mut asked);
        self.on_leader_asks(now, asked, out);
    }

    fn on_leader_asks(&mut self, now: Now, asked: leader::Output, out: &mut Output) {
        out.to_learners.extend(asked.sends);
        out.closes.extend(asked.closes.iter().map(|(link, _)| *link));
        self.pending.extend(&asked.stores);
        out.stores.extend(asked.stores);
        out.appends.extend(asked.appends);
        out.committed = asked.committed.or(out.committed);
        if let Some(epoch) = asked.established {
            self.establish(now, epoch, out);
        }
        if let Some(end) = asked.ended {
            self.give_up(now, Ended::Leader(end), out);
        }
    }

    fn learn(
        &mut self,
        now: Now,
        out: &mut Output,
        step: impl FnOnce(&mut Learner, &mut learner::Output),
    ) {
        let Role::Following { learner, .. } = &mut self.role else { return };
        let mut asked = learner::Output::default();
        step(learner, &mut asked);
        self.on_learner_asks(now, asked, out);
    }

    fn on_learner_asks(&mut self, now: Now, asked: learner::Output, out: &mut Output) {
        let Role::Following { link, .. } = &self.role else { return };
        out.to_leader.extend(asked.sends.into_iter().map(|packet| (*link, packet)));
        self.pending.extend(&asked.stores);
        self.pending.extend(asked.load.map(Durable::Snapshot));
        out.stores.extend(asked.stores);
        out.appends.extend(asked.appends);
        out.load = asked.load.or(out.load);
        out.committed = asked.committed.or(out.committed);
        if let Some(epoch) = asked.established {
            self.establish(now, epoch, out);
        }
        if let Some(fault) = asked.fault {
            self.give_up(now, Ended::Learner(fault), out);
        }
    }

    fn establish(&mut self, now: Now, epoch: Epoch, out: &mut Output) {
        out.established = Some(epoch);
        self.vote(now, out, |election, votes| election.on_established(epoch, votes));
    }

    /// Ends the role: all that is logged is history until a leader says otherwise.
    fn give_up(&mut self, now: Now, ended: Ended, out: &mut Output) {
        let nothing = Role::Settling { history: History::new(1, Zxid::ZERO) };
        let (mut history, logged) = match std::mem::replace(&mut self.role, nothing) {
            Role::Leading(leader) => {
                out.closes.extend(leader.links());
                leader.into_history()
            }
            Role::Following { link, learner } => {
                out.closes.push(link);
                learner.into_history()
            }
            Role::Calling { history, .. }
            | Role::Looking { history }
            | Role::Settling { history } => (history, Vec::new()),
        };
        logged.into_iter().for_each(|proposal| history.push(proposal));
        self.role = Role::Settling { history };
        self.election.suspend();
        out.ended = Some(ended);
        out.state = Some(PeerState::Looking);
        self.look_if_settled(now, out);
    }

    fn look_if_settled(&mut self, now: Now, out: &mut Output) {
        let Role::Settling { history } = &mut self.role else { return };
        if !self.pending.is_empty() {
            return;
        }
        let history = std::mem::replace(history, History::new(1, Zxid::ZERO));
        let standing = standing(self.is_observer, history.end(), self.current);
        self.role = Role::Looking { history };
        self.vote(now, out, |election, votes| election.look(now, standing, votes));
    }
}

fn standing(is_observer: bool, zxid: Zxid, epoch: Epoch) -> Standing {
    match is_observer {
        true => Standing::Observer,
        false => Standing::Participant { zxid, epoch },
    }
}
