//! A server of an ensemble: it looks for a leader, leads, follows or observes, and looks again.
//!
//! ```text
//! LOOKING --elected me-----> LEADING -----------+
//!         --elected another-> FOLLOWING --------+--(any failure)--> LOOKING
//!         --observer--------> OBSERVING --------+
//! ```
//!
//! What a role has asked the disk for, records included, is awaited before the next election: a server
//! votes with what it has. After `QuorumPeer.java`.
//!
//! What is appended and not synced is bounded: beyond the bound, a server takes nothing more that is to
//! be logged (`Peer::is_full`), be it of its leader, of its learners or of its clients.
//!
//! A server that is not vouched for has lost, or may have lost, something that it had acknowledged.
//! It votes for nobody, looks for a leader that a quorum of others follows, and joins it with nothing
//! (`NO_HISTORY`). Once it has acknowledged that leader's NEWLEADER, it has what every member has.
//!
//! A learner may have decided before its leader has, by a message that is still on its way. Its
//! connection is parked until this server decides, and is closed if it decides for another.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::election::{self, Election, Notification, Standing};
use super::history::{Cache, History};
use super::leader::{self, Leader, LiveLearner, Span, ToLearner};
use super::learner::{self, Kind, Learner, ToLeader};
use super::mutants::Mutant;
use super::proposals::Proposal;
use super::vote::PeerState;
use super::voters::Voters;
use super::{Durable, LinkId, OwnState, Settings};
use crate::record::quorum::{FromLeader, FromLearner};
use crate::types::{Deadline, Epoch, Now, ServerId, Zxid};

/// Between two calls of a leader that does not answer
/// (`zookeeper.leaderConnectDelayDuringRetryMs`).
const CALL_DELAY_MS: i64 = 100;
/// A leader that refuses so many calls is given up (`Learner.LeaderConnector`).
const CALLS_MAX: u32 = 5;
/// How often a server that does not trust its data asks for a snapshot.
const WANTED_MAX: u32 = 3;
/// Learners that wait for this server to decide, at most. The first one goes for a new one.
const PARKED_MAX: usize = 64;
/// How long they wait, as a multiple of `finalizeWait`: two servers that decide by the same votes do
/// so within one, and their messages take time. It is much less than initLimit, because a learner
/// that waits here in vain is missing in the election.
const PARKED_FINALIZE_WAITS: i64 = 5;

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
    /// The disk has all that this server ever acknowledged. `false` where recovery has found damage,
    /// or nothing where there was something; `Durable::CurrentEpoch` ends that.
    ///
    /// An epoch that was accepted and is lost with the disk is a promise that may be broken: a leader
    /// that still counts on it may be established beside the one that this server joins. It counts on
    /// it for two initLimits and a syncLimit at most, so a server whose acceptedEpoch is lost should
    /// not start sooner than that after it ended.
    pub is_vouched_for: bool,
}

/// What a step asks for.
///
/// What one step asks of the disk is done in the order `appends`, `stores`, and steps in the order
/// in which they were taken: what is stored comes after all that was appended before. `load` and
/// `drop_snapshot` have their place in the same order, and no step asks for more than one of
/// `stores`, `load` and `drop_snapshot` that concerns the log. The disk answers in that order, too:
/// an `on_synced` that comes after the answer to `Truncated`, `Snapshot` or `drop_snapshot` is about
/// what was appended after that, and one that comes before it is about what was appended before.
/// An `on_synced` may come late, in another role than the one that appended, or not at all where a
/// later one says more.
///
/// Each link gets its packets in their order. `closes` come after them. The rest has no order.
#[derive(Debug, Default)]
pub struct Output {
    /// Servers to tell what `Peer::notification` is when it is written to them.
    pub tell: BTreeSet<ServerId>,
    /// To connect to the quorum port of this server: `on_leader_reached` or `on_leader_refused`
    /// answers, with the number of the server.
    pub call: Option<ServerId>,
    pub to_learners: Vec<(LinkId, ToLearner)>,
    /// To see whether the log has all of this for a learner, and sends it sooner than a snapshot:
    /// `on_looked` answers.
    pub looks: Vec<(LinkId, Span)>,
    pub to_leader: Vec<(LinkId, ToLeader)>,
    pub closes: Vec<LinkId>,
    pub stores: Vec<Durable>,
    pub appends: Vec<Proposal>,
    /// Up to here it is the history that this server takes over from its leader, while it serves nobody:
    /// no state before it is asked for any more.
    pub history: Option<Zxid>,
    /// To replace the state by the snapshot that follows on the link to the leader:
    /// `Durable::Snapshot` says that it has come whole and is stored. `on_snapshot_lost` says that it
    /// has not.
    pub load: Option<Zxid>,
    /// The snapshot that was asked for, whether it is stored already or not, and what was appended
    /// after it are given up. The state is what a start would find, and `on_snapshot_lost` says what
    /// that is.
    pub drop_snapshot: bool,
    pub committed: Option<Zxid>,
    /// The role has changed.
    pub state: Option<PeerState>,
    /// Clients are served from now on, in this epoch.
    pub established: Option<Epoch>,
    /// Why the last role ended.
    pub ended: Option<Ended>,
    /// Why the leader is called again, in the same role.
    pub retried: Option<learner::Fault>,
}

impl Output {
    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Output {
            tell,
            call,
            to_learners,
            looks,
            to_leader,
            closes,
            stores,
            appends,
            history,
            load,
            drop_snapshot,
            committed,
            state,
            established,
            ended,
            retried,
        } = self;
        tell.is_empty()
            && call.is_none()
            && to_learners.is_empty()
            && looks.is_empty()
            && to_leader.is_empty()
            && closes.is_empty()
            && stores.is_empty()
            && appends.is_empty()
            && history.is_none()
            && load.is_none()
            && committed.is_none()
            && state.is_none()
            && established.is_none()
            && ended.is_none()
            && !drop_snapshot
            && retried.is_none()
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
    #[error("the leader could not be reached")]
    Unreachable,
    #[error("the leader's snapshot did not come whole")]
    SnapshotLost,
    #[error("what the leader sent does not fit what is here: all of it is wanted anew")]
    Distrusted,
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
    is_vouched_for: bool,
    /// So many times more a leader is asked for all that it has.
    wants_all: u32,
    /// Asked of the disk, and not answered.
    pending: Vec<Durable>,
    /// Appended, and not synced: each with the length of its payload.
    unsynced: VecDeque<(Zxid, usize)>,
    unsynced_bytes: usize,
    /// `drop_snapshot` is not answered.
    is_dropping: bool,
    parked: VecDeque<Parked>,
    parked_ms_max: i64,
}

/// A learner that is here before this server has decided.
#[derive(Debug)]
struct Parked {
    link: LinkId,
    until: Deadline,
    hello: Option<FromLearner<'static>>,
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
        /// Its history is nothing that this leader can go on from.
        wants_all: bool,
        refused: u32,
        until: Deadline,
        again: Option<Deadline>,
    },
    Following {
        leader: ServerId,
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
        let Start { me, settings, election, voters, is_observer, accepted, current, .. } = start;
        let (history, is_vouched_for) = (start.history, start.is_vouched_for);
        let mut votes = election::Output::default();
        let synced = history.end();
        let parked_ms_max = PARKED_FINALIZE_WAITS * election.finalize_wait_ms;
        let may_vote = is_vouched_for || settings.is_mutant(Mutant::LossVotes);
        let standing = standing(is_observer, may_vote, synced, current);
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
            synced,
            is_vouched_for,
            wants_all: 0,
            pending: Vec::new(),
            unsynced: VecDeque::new(),
            unsynced_bytes: 0,
            is_dropping: false,
            parked: VecDeque::new(),
            parked_ms_max,
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

    /// The learners that serve, where this server is an established leader.
    pub fn learners(&self) -> impl Iterator<Item = LiveLearner> {
        let leader = match &self.role {
            Role::Leading(leader) => Some(leader),
            _ => None,
        };
        leader.into_iter().flat_map(|leader| leader.learners())
    }

    /// Connections of learners to this server, where it leads.
    #[must_use]
    pub fn learner_count(&self) -> usize {
        match &self.role {
            Role::Leading(leader) => leader.links().count(),
            _ => 0,
        }
    }

    /// The server that this one follows or observes, once it is connected to it.
    #[must_use]
    pub fn followed(&self) -> Option<ServerId> {
        match &self.role {
            Role::Following { leader, .. } => Some(*leader),
            _ => None,
        }
    }

    #[must_use]
    pub fn voters(&self) -> &Voters {
        &self.voters
    }

    /// Whether a learner serves that is connected by this link, where this server leads.
    #[must_use]
    pub fn is_live(&self, link: LinkId) -> bool {
        matches!(&self.role, Role::Leading(leader) if leader.is_live(link))
    }

    /// Whether the disk has all that this server ever acknowledged.
    #[must_use]
    pub fn is_vouched_for(&self) -> bool {
        self.is_vouched_for
    }

    /// Whether so much is on its way to the disk that nothing should be taken that adds to it: no
    /// proposal of a leader, and where this server leads no request.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let is_behind = match &self.role {
            Role::Following { learner, .. } => learner.is_full(),
            _ => false,
        };
        is_behind || self.settings.unsynced_bytes_max <= self.unsynced_bytes
    }

    /// Whether clients may be shown what is here while there is no leader: nothing of it is lost or
    /// known to be wrong, and the disk is not about to change it.
    #[must_use]
    pub fn may_be_read(&self) -> bool {
        let is_looking = matches!(self.role, Role::Looking { .. });
        is_looking && self.is_vouched_for && self.wants_all == 0
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
        let parked = self.parked.front().map(|parked| parked.until);
        role.into_iter().chain(self.election.deadline()).chain(parked).min()
    }

    pub fn on_time(&mut self, now: Now, out: &mut Output) {
        while let Some(parked) = self.parked.pop_front_if(|parked| parked.until.is_due(now)) {
            out.closes.push(parked.link);
        }
        self.elect(now, out, |election, votes| election.on_time(now, votes));
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
        self.elect(now, out, |election, votes| {
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
        self.elect(now, out, |election, votes| match is_refused {
            true => election.on_refused(now, server, votes),
            false => election.on_reached(server),
        });
    }

    pub fn on_election_link_closed(&mut self, server: ServerId) {
        self.election.on_gone(server);
    }

    fn elect(
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
        let history = history.take();
        out.state = Some(decision.state);
        let parked = std::mem::take(&mut self.parked);
        if decision.state == PeerState::Leading {
            let mut asked = leader::Output::default();
            let (own, voters) = (self.own(history), Arc::clone(&self.voters));
            let leader = Leader::new(now, self.me, self.settings, voters, own, &mut asked);
            self.role = Role::Leading(Box::new(leader));
            self.on_leader_asks(now, asked, out);
            for Parked { link, hello, .. } in parked {
                self.lead(now, out, |leader, asked| {
                    leader.on_connected(now, link, asked);
                    if let Some(hello) = hello {
                        leader.on_packet(now, link, hello, asked);
                    }
                });
            }
        } else {
            out.closes.extend(parked.iter().map(|parked| parked.link));
            let hides = self.settings.is_mutant(Mutant::LossHidden);
            let wants_all = 0 < self.wants_all || !self.is_vouched_for;
            self.call(now, decision.leader, history, wants_all && !hides, out);
        }
    }

    fn call(
        &mut self,
        now: Now,
        leader: ServerId,
        history: History,
        wants_all: bool,
        out: &mut Output,
    ) {
        let until = Deadline(now.monotonic_ms + self.settings.init_ms());
        self.role = Role::Calling { history, leader, wants_all, refused: 0, until, again: None };
        out.call = Some(leader);
    }

    // ---- the quorum port --------------------------------------------------------------------

    /// The call of a leader was answered.
    pub fn on_leader_reached(
        &mut self,
        now: Now,
        leader: ServerId,
        link: LinkId,
        out: &mut Output,
    ) {
        let (history, wants_all) = match &mut self.role {
            Role::Calling { history, leader: called, wants_all, .. } if *called == leader => {
                (history.take(), *wants_all)
            }
            // The answer to an earlier call.
            _ => {
                out.closes.push(link);
                return;
            }
        };
        let kind = Kind::of(self.is_observer);
        let (own, mut asked) = (self.own(history), learner::Output::default());
        let learner = Learner::new(now, kind, self.settings, own, wants_all, &mut asked);
        self.role = Role::Following { leader, link, learner: Box::new(learner) };
        self.on_learner_asks(now, asked, out);
    }

    /// Nobody answered the call of a leader.
    pub fn on_leader_refused(&mut self, now: Now, leader: ServerId, out: &mut Output) {
        let Role::Calling { leader: called, refused, again, .. } = &mut self.role else { return };
        if *called != leader {
            return;
        }
        *refused += 1;
        if CALLS_MAX <= *refused {
            self.give_up(now, Ended::Unreachable, out);
        } else {
            *again = Some(Deadline(now.monotonic_ms + CALL_DELAY_MS));
        }
    }

    /// The call of a leader got no answer at all for as long as a call may take. It is not called
    /// again: it may be one that hears nobody, of which the others hear, and they would elect it and
    /// wait for it until initLimit.
    pub fn on_leader_silent(&mut self, now: Now, leader: ServerId, out: &mut Output) {
        if let Role::Calling { leader: called, .. } = &self.role
            && *called == leader
        {
            self.give_up(now, Ended::Unreachable, out);
        }
    }

    /// Somebody connected to the quorum port here.
    pub fn on_learner_connected(&mut self, now: Now, link: LinkId, out: &mut Output) {
        match &self.role {
            Role::Leading(_) => {
                self.lead(now, out, |leader, asked| leader.on_connected(now, link, asked));
            }
            Role::Looking { .. } => {
                if PARKED_MAX <= self.parked.len() {
                    out.closes.extend(self.parked.pop_front().map(|first| first.link));
                }
                let until = Deadline(now.monotonic_ms + self.parked_ms_max);
                self.parked.push_back(Parked { link, until, hello: None });
            }
            Role::Calling { .. } | Role::Following { .. } | Role::Settling { .. } => {
                out.closes.push(link);
            }
        }
    }

    pub fn on_link_closed(&mut self, now: Now, link: LinkId, out: &mut Output) {
        self.parked.retain(|parked| parked.link != link);
        match &mut self.role {
            Role::Leading(leader) => leader.on_closed(link),
            Role::Following { link: own, .. } if *own == link => {
                self.give_up(now, Ended::LinkLost, out);
            }
            _ => {}
        }
    }

    /// Bytes of a snapshot have moved on a link, to a learner or from the leader. A join that goes on
    /// takes as long as it takes.
    pub fn on_progress(&mut self, now: Now, link: LinkId) {
        match &mut self.role {
            Role::Leading(leader) => leader.on_progress(now, link),
            Role::Following { link: own, learner, .. } if *own == link => learner.on_progress(now),
            _ => {}
        }
    }

    /// Whether the log has what `Output::looks` asked for.
    pub fn on_looked(&mut self, now: Now, link: LinkId, has_all: bool, out: &mut Output) {
        self.lead(now, out, |leader, asked| leader.on_looked(now, link, has_all, asked));
    }

    /// A snapshot for a learner, or what the log has for it, is on its way as a whole.
    pub fn on_streamed(&mut self, now: Now, link: LinkId, out: &mut Output) {
        self.lead(now, out, |leader, asked| leader.on_streamed(now, link, asked));
    }

    /// A packet of a learner. REQUEST, REVALIDATE and the sessions of a PING are the caller's; here
    /// they say that the learner is alive.
    pub fn on_packet_of_learner(
        &mut self,
        now: Now,
        link: LinkId,
        packet: FromLearner<'_>,
        out: &mut Output,
    ) {
        if let Some(place) = self.parked.iter().position(|parked| parked.link == link) {
            let parked = &mut self.parked[place];
            match packet {
                FromLearner::FollowerInfo { accepted, info } if parked.hello.is_none() => {
                    parked.hello = Some(FromLearner::FollowerInfo { accepted, info });
                }
                FromLearner::ObserverInfo { accepted, info } if parked.hello.is_none() => {
                    parked.hello = Some(FromLearner::ObserverInfo { accepted, info });
                }
                // It speaks out of turn.
                _ => {
                    self.parked.remove(place);
                    out.closes.push(link);
                }
            }
            return;
        }
        self.lead(now, out, |leader, asked| leader.on_packet(now, link, packet, asked));
    }

    /// A packet of the leader. SYNC and REVALIDATE are the caller's; here they say that the leader is
    /// alive.
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
        while let Some((_, bytes)) = self.unsynced.pop_front_if(|(first, _)| *first <= zxid) {
            self.unsynced_bytes -= bytes;
        }
        match &mut self.role {
            Role::Leading(_) => {
                self.lead(now, out, |leader, asked| leader.on_synced(now, zxid, asked));
            }
            Role::Following { .. } => {
                self.learn(now, out, |learner, asked| learner.on_synced(now, zxid, asked));
            }
            Role::Looking { .. } | Role::Calling { .. } => {}
            Role::Settling { .. } => self.look_if_settled(now, out),
        }
    }

    pub fn on_stored(&mut self, now: Now, stored: Durable, out: &mut Output) {
        if self.is_dropping && matches!(stored, Durable::Snapshot(_)) {
            return;
        }
        // What recovery has derived is stored without having been asked for.
        let was_asked_for = self.pending.contains(&stored);
        self.pending.retain(|pending| *pending != stored);
        match stored {
            Durable::AcceptedEpoch(epoch) => self.accepted = epoch.max(self.accepted),
            Durable::CurrentEpoch(epoch) => {
                self.current = epoch.max(self.current);
                self.is_vouched_for |= was_asked_for;
            }
            Durable::Truncated(zxid) | Durable::Snapshot(zxid) => {
                self.synced = zxid;
                self.forget_unsynced_after(Zxid::MIN);
                self.wants_all = 0;
            }
        }
        match &mut self.role {
            Role::Leading(_) => {
                self.lead(now, out, |leader, asked| leader.on_stored(now, stored, asked));
            }
            Role::Following { .. } => {
                self.learn(now, out, |learner, asked| learner.on_stored(now, stored, asked));
            }
            Role::Settling { history } => match stored {
                Durable::Truncated(zxid) => history.truncate_after(zxid),
                Durable::Snapshot(_) | Durable::AcceptedEpoch(_) | Durable::CurrentEpoch(_) => {}
            },
            Role::Looking { .. } | Role::Calling { .. } => {}
        }
        self.look_if_settled(now, out);
    }

    /// The log does not have `to`, and nothing of it was cut. A leader that sends a snapshot makes
    /// this server whole: it is called again, at once and without an election, because it may need
    /// this server for its quorum, and counts it only for the history that it has named already.
    pub fn on_truncate_refused(&mut self, now: Now, to: Zxid, out: &mut Output) {
        self.pending.retain(|pending| *pending != Durable::Truncated(to));
        let nothing = Role::Settling { history: Peer::no_history() };
        match std::mem::replace(&mut self.role, nothing) {
            Role::Following { leader, link, learner } => {
                out.closes.push(link);
                out.retried = Some(learner::Fault::NotInLog { to });
                let (history, _) = learner.into_history();
                self.call(now, leader, history, true, out);
            }
            role => {
                self.role = role;
                self.look_if_settled(now, out);
            }
        }
    }

    /// The snapshot that was to replace the state did not come whole, or is dropped: the state is
    /// what a start would find, whose history this is.
    pub fn on_snapshot_lost(&mut self, now: Now, on_disk: History, out: &mut Output) {
        if let Role::Following { learner, .. } = &self.role
            && learner.is_replaced()
        {
            self.give_up(now, Ended::SnapshotLost, out);
            out.drop_snapshot = false;
        }
        if !std::mem::replace(&mut self.is_dropping, false) {
            return;
        }
        self.pending.retain(|pending| !matches!(pending, Durable::Snapshot(_)));
        self.synced = on_disk.end();
        self.forget_unsynced_after(Zxid::MIN);
        if let Role::Settling { history } = &mut self.role {
            *history = on_disk;
        }
        self.look_if_settled(now, out);
    }

    /// What a leader sent does not fit the state here, which is not the leader's then. The history is
    /// sound, and this server votes with it as before; but it asks the next leaders for a snapshot,
    /// a few times and not for ever: a leader that depends on this server's agreement cannot be established by one that says
    /// it has nothing, and an ensemble must not stand still for it.
    ///
    /// What was to be appended in this step and was not is forgotten: `on_disk` is what there is.
    pub fn on_distrusted(&mut self, now: Now, on_disk: History, out: &mut Output) {
        self.forget_unsynced_after(on_disk.end());
        self.give_up_with(now, Ended::Distrusted, Some(on_disk), out);
    }

    // ---- roles ------------------------------------------------------------------------------

    fn own(&self, history: History) -> OwnState {
        OwnState { accepted: self.accepted, current: self.current, history, synced: self.synced }
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
        out.looks.extend(asked.looks);
        out.closes.extend(asked.closes.iter().map(|(link, _)| *link));
        self.pending.extend(&asked.stores);
        out.stores.extend(asked.stores);
        self.append(asked.appends, out);
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
        self.append(asked.appends, out);
        out.history = asked.history.or(out.history);
        out.load = asked.load.or(out.load);
        out.committed = asked.committed.or(out.committed);
        if let Some(epoch) = asked.established {
            self.establish(now, epoch, out);
        }
        if let Some(fault) = asked.fault {
            self.give_up(now, Ended::Learner(fault), out);
        }
    }

    fn append(&mut self, appends: Vec<Proposal>, out: &mut Output) {
        let lengths = appends.iter().map(|proposal| (proposal.zxid, proposal.payload.len()));
        self.unsynced.extend(lengths);
        self.unsynced_bytes += appends.iter().map(|append| append.payload.len()).sum::<usize>();
        out.appends.extend(appends);
    }

    /// What was appended after `zxid` is not in the log, and no sync will tell of it.
    fn forget_unsynced_after(&mut self, zxid: Zxid) {
        while let Some((_, bytes)) = self.unsynced.pop_back_if(|(last, _)| zxid < *last) {
            self.unsynced_bytes -= bytes;
        }
    }

    fn establish(&mut self, now: Now, epoch: Epoch, out: &mut Output) {
        out.established = Some(epoch);
        self.elect(now, out, |election, votes| election.on_established(epoch, votes));
    }

    /// Ends the role: all that is logged is history until a leader says otherwise.
    fn give_up(&mut self, now: Now, ended: Ended, out: &mut Output) {
        self.give_up_with(now, ended, None, out);
    }

    /// With `on_disk`, that is the history; and it is not to be built on.
    fn give_up_with(&mut self, now: Now, ended: Ended, on_disk: Option<History>, out: &mut Output) {
        self.wants_all = match &on_disk {
            Some(_) => WANTED_MAX,
            None => self.wants_all.saturating_sub(1),
        };
        let nothing = Role::Settling { history: Peer::no_history() };
        let (mut history, logged) = match std::mem::replace(&mut self.role, nothing) {
            Role::Leading(leader) => {
                out.closes.extend(leader.links());
                leader.into_history()
            }
            Role::Following { link, learner, .. } => {
                out.closes.push(link);
                self.is_dropping |= learner.is_replaced();
                out.drop_snapshot = self.is_dropping;
                learner.into_history()
            }
            Role::Calling { history, .. }
            | Role::Looking { history }
            | Role::Settling { history } => (history, Vec::new()),
        };
        match on_disk {
            Some(on_disk) => history = on_disk,
            None => logged.into_iter().for_each(|proposal| history.push(proposal)),
        }
        self.role = Role::Settling { history };
        self.election.suspend();
        out.ended = Some(ended);
        out.state = Some(PeerState::Looking);
        self.look_if_settled(now, out);
    }

    fn look_if_settled(&mut self, now: Now, out: &mut Output) {
        let Role::Settling { history } = &mut self.role else { return };
        let is_hasty = self.settings.is_mutant(Mutant::ElectionNotAwaited);
        let is_awaited = !self.pending.is_empty() || !self.unsynced.is_empty();
        if (is_awaited && !is_hasty) || self.is_dropping {
            return;
        }
        let history = history.take();
        let may_vote = self.is_vouched_for || self.settings.is_mutant(Mutant::LossVotes);
        let standing = standing(self.is_observer, may_vote, history.end(), self.current);
        self.role = Role::Looking { history };
        self.elect(now, out, |election, votes| election.look(now, standing, votes));
    }

    /// Holds the place of a history that is elsewhere.
    fn no_history() -> History {
        History::new(Cache { count_max: 0, bytes_max: 0 }, Zxid::ZERO)
    }
}

fn standing(is_observer: bool, may_vote: bool, zxid: Zxid, epoch: Epoch) -> Standing {
    match (is_observer, may_vote) {
        (true, _) => Standing::Observer,
        (false, true) => Standing::Participant { zxid, epoch },
        (false, false) => Standing::Abstains,
    }
}
