//! Fast leader election: which server should lead.
//!
//! Every voter tells all others whom it votes for, first itself, and takes over each better vote
//! that it hears. Once a quorum has the same vote in the same round, and no better one comes for a
//! while (`finalizeWait`), the round is decided. A server that comes later hears from a quorum who
//! follows whom, and from the leader itself that it leads.
//!
//! ```text
//! LOOKING --a quorum has my vote--------------> LEADING, if the vote is for me
//!         --a quorum has my vote--------------> FOLLOWING, otherwise
//!         --a quorum follows, the leader leads-> FOLLOWING or OBSERVING
//! ```
//!
//! What an election decides is a proposal and no more: a leader still has to win a quorum for its
//! epoch, and that is what safety rests on.
//!
//! Two answers differ from `FastLeaderElection.java`. A server that takes part in an election
//! answers observers with the vote that it has in this round; Java answers with the one of its last
//! term, and two of these lead an observer to a leader that is deposed. An observer decides by
//! reports of servers that follow or lead, and never by votes. And where every voter that can be
//! reached has been heard, there is no better vote to wait for.

use std::collections::{BTreeMap, BTreeSet};

use super::vote::{NOBODY, PeerState, Round, Vote};
use super::voters::Voters;
use crate::types::{Deadline, Epoch, Now, ServerId, Zxid};

/// How often one server that does not vote is answered, at most. Java and an observer ahead of it
/// can answer each other at the speed of the network.
const STRANGER_ANSWER_MS_MIN: i64 = 5;

/// How long an election waits for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `zookeeper.fastleader.minNotificationInterval`: until the votes of a round are sent again
    /// for the first time. It doubles each time.
    pub interval_ms_min: i64,
    /// `zookeeper.fastleader.maxNotificationInterval`.
    pub interval_ms_max: i64,
    /// For a better vote, once a quorum agrees (`FastLeaderElection.finalizeWait`).
    pub finalize_wait_ms: i64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { interval_ms_min: 200, interval_ms_max: 4_000, finalize_wait_ms: 200 }
    }
}

/// What a server brings to an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The end of its log, and its currentEpoch. A server that is no voter (yet) looks for a leader
    /// with it and is not voted for.
    Participant {
        zxid: Zxid,
        epoch: Epoch,
    },
    /// A participant that lost what it had logged: it looks for a leader, and votes for nobody.
    Abstains,
    Observer,
}

/// What servers tell each other in an election. The configuration that goes with it on the wire is
/// not this module's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notification {
    pub state: PeerState,
    pub vote: Vote,
}

/// The outcome of an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// `Following`, `Leading` or `Observing`.
    pub state: PeerState,
    pub leader: ServerId,
}

/// What a step asks for.
#[derive(Debug, Default)]
pub struct Output {
    /// Servers to tell what `Election::notification` is when it is written to them. Only the newest
    /// counts: who could not be told of an older one has missed nothing.
    pub tell: BTreeSet<ServerId>,
    pub decision: Option<Decision>,
}

/// What was heard of one server.
type Heard = BTreeMap<ServerId, Notification>;

#[derive(Debug)]
pub struct Election {
    me: ServerId,
    settings: Settings,
    voters: Voters,
    /// The round that this server is in, or was in last (`logicalclock`).
    round: Round,
    /// Voters whose port refused the last call.
    refused: BTreeSet<ServerId>,
    /// Servers that asked before a leader was established: they are told of it.
    askers: BTreeSet<ServerId>,
    /// When each server without a vote was answered last.
    answered_ms: BTreeMap<ServerId, i64>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Looking(Looking),
    /// The leader is given up, and the next round has not begun: there is nothing to say.
    Suspended,
    /// The vote that decided; its epoch becomes the leader's once that is established.
    Decided {
        state: PeerState,
        vote: Vote,
        is_established: bool,
    },
}

/// A round of election under way.
#[derive(Debug)]
struct Looking {
    standing: Standing,
    /// This server's first vote of every round.
    first: Vote,
    /// The best vote so far.
    proposal: Vote,
    /// The newest notification of this round by sender, this server among them (`recvset`).
    heard: Heard,
    /// Voters that have said something in this round.
    greeted: BTreeSet<ServerId>,
    /// The newest one of servers that follow or lead, whatever their round (`outofelection`).
    reports: Heard,
    /// Votes are sent again then, and after twice as long the next time.
    resend: Deadline,
    interval_ms: i64,
    /// A quorum agrees: the end of the wait for a better vote.
    finalize: Option<Deadline>,
}

impl Election {
    /// Begins with the first round.
    pub fn new(
        now: Now,
        me: ServerId,
        settings: Settings,
        voters: Voters,
        standing: Standing,
        out: &mut Output,
    ) -> Election {
        let mut election = Election {
            me,
            settings,
            voters,
            round: Round::default(),
            refused: BTreeSet::new(),
            askers: BTreeSet::new(),
            answered_ms: BTreeMap::new(),
            stage: Stage::Suspended,
        };
        election.look(now, standing, out);
        election
    }

    #[must_use]
    pub fn state(&self) -> PeerState {
        match &self.stage {
            Stage::Looking(_) | Stage::Suspended => PeerState::Looking,
            Stage::Decided { state, .. } => *state,
        }
    }

    /// What this server tells who asks.
    #[must_use]
    pub fn notification(&self) -> Notification {
        let (state, vote) = match &self.stage {
            Stage::Looking(looking) => {
                (PeerState::Looking, Vote { round: self.round, ..looking.proposal })
            }
            Stage::Suspended => {
                (PeerState::Looking, Vote { round: self.round, ..Vote::OF_OBSERVER })
            }
            Stage::Decided { state, vote, .. } => (*state, *vote),
        };
        Notification { state, vote }
    }

    #[must_use]
    pub fn deadline(&self) -> Option<Deadline> {
        match &self.stage {
            Stage::Looking(looking) => {
                Some(looking.finalize.map_or(looking.resend, |end| end.min(looking.resend)))
            }
            Stage::Suspended | Stage::Decided { .. } => None,
        }
    }

    /// The leader is given up. Until `look`, others hear nothing of this server: it is not known yet
    /// what it has.
    pub fn suspend(&mut self) {
        self.stage = Stage::Suspended;
    }

    /// Begins a round: there is no leader (any more).
    pub fn look(&mut self, now: Now, standing: Standing, out: &mut Output) {
        self.round.0 = self.round.0.wrapping_add(1);
        let first = match standing {
            Standing::Participant { zxid, epoch } => {
                let own = Vote::for_itself(self.me, zxid, epoch);
                let leader = if self.votes() { self.me } else { NOBODY };
                Vote { leader, ..own }
            }
            Standing::Abstains | Standing::Observer => Vote::OF_OBSERVER,
        };
        let interval_ms = self.settings.interval_ms_min;
        self.stage = Stage::Looking(Looking {
            standing,
            first,
            proposal: first,
            heard: Heard::new(),
            greeted: BTreeSet::new(),
            reports: Heard::new(),
            resend: Deadline(now.monotonic_ms + interval_ms),
            interval_ms,
            finalize: None,
        });
        self.adopt(first, out);
        self.count(now, out);
    }

    /// Another configuration decides from now on. A round that is under way begins anew.
    pub fn on_voters(&mut self, now: Now, voters: Voters, out: &mut Output) {
        self.voters = voters;
        self.refused.clear();
        if let Stage::Looking(Looking { standing, .. }) = self.stage {
            self.look(now, standing, out);
        }
    }

    /// The leader of this epoch is established, and this server serves with it. What members of one
    /// ensemble tell of it must be the same, or nobody could join (ZOOKEEPER-1732).
    pub fn on_established(&mut self, epoch: Epoch, out: &mut Output) {
        if let Stage::Decided { vote, is_established, .. } = &mut self.stage {
            vote.peer_epoch = i64::from(epoch.0);
            *is_established = true;
            out.tell.append(&mut self.askers);
        }
    }

    /// A server's election port refused a call: it does not run.
    pub fn on_refused(&mut self, now: Now, server: ServerId, out: &mut Output) {
        self.refused.insert(server);
        self.count(now, out);
    }

    /// A server's election port answered a call.
    pub fn on_reached(&mut self, server: ServerId) {
        self.refused.remove(&server);
    }

    /// A server is not connected any more.
    pub fn on_gone(&mut self, server: ServerId) {
        // A voter is called back for what there is to tell it.
        if !self.voters.contains(server) {
            self.askers.remove(&server);
        }
        self.answered_ms.remove(&server);
    }

    pub fn on_notification(
        &mut self,
        now: Now,
        from: ServerId,
        notification: Notification,
        out: &mut Output,
    ) {
        self.refused.remove(&from);
        if !self.voters.contains(from) {
            self.answer_stranger(now, from, out);
            return;
        }
        match &mut self.stage {
            Stage::Looking(looking) => {
                // What this server told it of this round may have come while it was not looking, and
                // meant nothing to it then. It is not left to wait until votes are sent again.
                let is_first = looking.greeted.insert(from);
                self.consider(now, from, notification, out);
                let is_behind = notification.vote.round < self.round;
                let takes_part = self.voters.contains(notification.vote.leader);
                if notification.state == PeerState::Looking {
                    if is_behind || (is_first && !takes_part) {
                        self.answer(from, out);
                    } else if is_first {
                        out.tell.insert(from);
                    }
                }
            }
            Stage::Decided { .. } | Stage::Suspended
                if notification.state == PeerState::Looking =>
            {
                self.answer(from, out);
            }
            Stage::Decided { .. } | Stage::Suspended => {}
        }
    }

    pub fn on_time(&mut self, now: Now, out: &mut Output) {
        let Stage::Looking(looking) = &mut self.stage else { return };
        if looking.finalize.is_some_and(|end| end.is_due(now)) {
            let vote = Vote { round: self.round, ..looking.proposal };
            self.decide(vote, out);
            return;
        }
        if looking.resend.is_due(now) {
            looking.interval_ms = (2 * looking.interval_ms).min(self.settings.interval_ms_max);
            looking.resend = Deadline(now.monotonic_ms + looking.interval_ms);
            self.tell_voters(out);
        }
    }

    /// Whether this server may be voted for and its vote counts.
    fn votes(&self) -> bool {
        self.voters.contains(self.me)
    }

    /// Observers, and servers that a reconfiguration has yet to add, learn the leader like this.
    fn answer_stranger(&mut self, now: Now, from: ServerId, out: &mut Output) {
        let last_ms = self.answered_ms.insert(from, now.monotonic_ms);
        let is_early = |last_ms| now.monotonic_ms < last_ms + STRANGER_ANSWER_MS_MIN;
        if let Some(last_ms) = last_ms.filter(|&last_ms| is_early(last_ms)) {
            self.answered_ms.insert(from, last_ms);
            return;
        }
        self.answer(from, out);
    }

    fn answer(&mut self, to: ServerId, out: &mut Output) {
        if !matches!(self.stage, Stage::Decided { is_established: true, .. }) {
            self.askers.insert(to);
        }
        if !matches!(self.stage, Stage::Suspended) {
            out.tell.insert(to);
        }
    }

    fn tell_voters(&self, out: &mut Output) {
        out.tell.extend(self.voters.all().into_iter().filter(|&voter| voter != self.me));
    }

    /// Takes a vote for its own and tells everybody.
    fn adopt(&mut self, vote: Vote, out: &mut Output) {
        let (me, votes, round) = (self.me, self.votes(), self.round);
        let Stage::Looking(looking) = &mut self.stage else { return };
        looking.proposal = vote;
        looking.finalize = None;
        if votes && vote.leader != NOBODY {
            let vote = Vote { round, ..vote };
            looking.heard.insert(me, Notification { state: PeerState::Looking, vote });
        }
        self.tell_voters(out);
    }

    /// What a voter says, while there is no leader here.
    fn consider(&mut self, now: Now, from: ServerId, said: Notification, out: &mut Output) {
        if !self.voters.contains(said.vote.leader) {
            return;
        }
        match said.state {
            PeerState::Looking => self.on_vote(now, from, said, out),
            PeerState::Following | PeerState::Leading => self.on_report(from, said, out),
            PeerState::Observing => {}
        }
    }

    fn on_vote(&mut self, now: Now, from: ServerId, said: Notification, out: &mut Output) {
        let Stage::Looking(looking) = &mut self.stage else { return };
        // An empty database that is not meant to be empty neither votes nor is voted for
        // (ZOOKEEPER-261).
        let nothing = Zxid(-1);
        let first = looking.first;
        if first.leader == NOBODY || first.zxid == nothing || said.vote.zxid == nothing {
            return;
        }
        let may_lead = self.voters.may_lead(said.vote.leader);
        if self.round < said.vote.round {
            self.round = said.vote.round;
            looking.heard.clear();
            looking.greeted = BTreeSet::from([from]);
            let vote = if may_lead && said.vote.beats(&first) { said.vote } else { first };
            self.adopt(vote, out);
        } else if said.vote.round < self.round {
            return;
        } else if may_lead && said.vote.beats(&looking.proposal) {
            self.adopt(said.vote, out);
        }
        if let Stage::Looking(looking) = &mut self.stage {
            looking.heard.insert(from, said);
        }
        self.count(now, out);
    }

    /// Decides if the votes of this round allow it, or begins to wait for a better one.
    fn count(&mut self, now: Now, out: &mut Output) {
        let (me, round) = (self.me, self.round);
        let Stage::Looking(looking) = &mut self.stage else { return };
        let vote = Vote { round, ..looking.proposal };
        let agrees = |said: &Notification| same_vote(said, vote);
        let agreed = senders(&looking.heard, agrees);
        if !self.voters.is_quorum(&agreed) {
            looking.finalize = None;
            return;
        }
        let is_final =
            self.voters.all().iter().all(|voter| {
                *voter == me || agreed.contains(voter) || self.refused.contains(voter)
            });
        if is_final {
            self.decide(vote, out);
        } else if looking.finalize.is_none() {
            looking.finalize = Some(Deadline(now.monotonic_ms + self.settings.finalize_wait_ms));
        }
    }

    /// A voter follows or leads already.
    fn on_report(&mut self, from: ServerId, said: Notification, out: &mut Output) {
        let (me, round) = (self.me, self.round);
        let Stage::Looking(looking) = &mut self.stage else { return };
        let leader = said.vote.leader;
        // Who votes for nobody does not lead, not even where others have yet to notice that it has
        // begun anew.
        if leader == me && looking.first.leader == NOBODY {
            return;
        }
        let is_decided = |heard: &Heard, agrees: &dyn Fn(&Notification) -> bool| {
            self.voters.is_quorum(&senders(heard, agrees))
                && leads_itself(heard, leader, me, round == said.vote.round)
        };
        let mut is_over = false;
        if said.vote.round == round {
            looking.heard.insert(from, said);
            // Java compares reports of one round by their leader alone.
            let agrees = |other: &Notification| match other.state {
                PeerState::Looking => same_vote(other, said.vote),
                _ => other.vote.leader == leader,
            };
            is_over = is_decided(&looking.heard, &agrees);
        }
        looking.reports.insert(from, said);
        if !is_over {
            // zxid and round differ between members of one ensemble (ZOOKEEPER-1805).
            let agrees = |other: &Notification| {
                (other.vote.leader, other.vote.peer_epoch) == (leader, said.vote.peer_epoch)
            };
            is_over = is_decided(&looking.reports, &agrees);
        }
        if is_over {
            self.round = said.vote.round;
            self.decide(said.vote, out);
        }
    }

    fn decide(&mut self, vote: Vote, out: &mut Output) {
        let Stage::Looking(looking) = &self.stage else { return };
        let state = match looking.standing {
            _ if vote.leader == self.me => PeerState::Leading,
            Standing::Observer => PeerState::Observing,
            Standing::Participant { .. } | Standing::Abstains => PeerState::Following,
        };
        self.stage = Stage::Decided { state, vote, is_established: false };
        out.decision = Some(Decision { state, leader: vote.leader });
    }
}

/// Who said what agrees.
fn senders(heard: &Heard, agrees: impl Fn(&Notification) -> bool) -> BTreeSet<ServerId> {
    heard.iter().filter(|(_, said)| agrees(said)).map(|(from, _)| *from).collect()
}

/// Whether a voter has this very vote, in the same round.
fn same_vote(said: &Notification, vote: Vote) -> bool {
    said.vote == vote
}

/// Whether the leader says so itself: it may have died since others heard of it
/// (`FastLeaderElection.checkLeader`).
fn leads_itself(heard: &Heard, leader: ServerId, me: ServerId, is_my_round: bool) -> bool {
    if leader == me {
        return is_my_round;
    }
    heard.get(&leader).is_some_and(|said| said.state == PeerState::Leading)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ensemble::Ensemble;
    use std::sync::Arc;

    const ME: ServerId = ServerId(2);

    fn voters(lines: &[(&str, &str)]) -> Voters {
        Voters::new(Arc::new(Ensemble::parse(lines.iter().copied(), false).unwrap()), None)
    }

    fn five() -> Voters {
        let lines = ["server.1", "server.2", "server.3", "server.4", "server.5"];
        voters(&lines.map(|key| (key, "h:1:2")))
    }

    fn at(ms: i64) -> Now {
        Now { monotonic_ms: ms, wall_ms: 0 }
    }

    fn vote(leader: i64, zxid: i64, peer_epoch: i64, round: i64) -> Vote {
        Vote { leader: ServerId(leader), zxid: Zxid(zxid), peer_epoch, round: Round(round) }
    }

    const MINE: Standing = Standing::Participant { zxid: Zxid(7), epoch: Epoch(1) };

    /// An election among five, begun at zero.
    struct Bench {
        election: Election,
        out: Output,
        ms: i64,
    }

    impl Bench {
        fn new(standing: Standing) -> Bench {
            Bench::among(five(), standing)
        }

        fn among(voters: Voters, standing: Standing) -> Bench {
            let mut out = Output::default();
            let settings = Settings::default();
            let election = Election::new(at(0), ME, settings, voters, standing, &mut out);
            Bench { election, out, ms: 0 }
        }

        fn says(&mut self, from: i64, state: PeerState, vote: Vote) {
            let said = Notification { state, vote };
            self.election.on_notification(at(self.ms), ServerId(from), said, &mut self.out);
        }

        fn passes(&mut self, ms: i64) {
            self.ms += ms;
            self.election.on_time(at(self.ms), &mut self.out);
        }

        fn told(&mut self) -> Vec<i64> {
            std::mem::take(&mut self.out.tell).into_iter().map(|server| server.0).collect()
        }

        fn decision(&mut self) -> Option<(PeerState, i64)> {
            self.out.decision.take().map(|decision| (decision.state, decision.leader.0))
        }

        fn vote(&self) -> Vote {
            self.election.notification().vote
        }
    }

    use PeerState::{Following, Leading, Looking, Observing};

    #[test]
    fn a_server_votes_for_itself_and_takes_over_what_is_better() {
        let mut bench = Bench::new(MINE);
        assert_eq!((bench.told(), bench.vote()), (vec![1, 3, 4, 5], vote(2, 7, 1, 1)));
        bench.says(1, Looking, vote(1, 7, 1, 1));
        assert_eq!((bench.told(), bench.vote()), (vec![1], vote(2, 7, 1, 1)));
        bench.says(4, Looking, vote(4, 7, 1, 1));
        assert_eq!((bench.told(), bench.vote()), (vec![1, 3, 4, 5], vote(4, 7, 1, 1)));
        bench.says(5, Looking, vote(5, 9, 0, 1));
        assert_eq!((bench.told(), bench.vote()), (vec![5], vote(4, 7, 1, 1)));
        // What nobody may vote for is not listened to.
        bench.says(5, Looking, vote(9, 9, 9, 1));
        assert_eq!((bench.told(), bench.vote()), (vec![], vote(4, 7, 1, 1)));
    }

    #[test]
    fn a_quorum_decides_once_no_better_vote_comes() {
        let mut bench = Bench::new(MINE);
        bench.says(1, Looking, vote(2, 7, 1, 1));
        bench.passes(150);
        bench.says(3, Looking, vote(2, 7, 1, 1));
        bench.passes(199);
        assert_eq!(bench.decision(), None);
        // A better one ends the wait, and the quorum.
        bench.says(4, Looking, vote(4, 8, 1, 1));
        bench.passes(200);
        assert_eq!(bench.decision(), None);
        bench.says(1, Looking, vote(4, 8, 1, 1));
        bench.passes(200);
        assert_eq!(bench.decision(), Some((Following, 4)));
        assert_eq!(bench.election.deadline(), None);
    }

    #[test]
    fn nothing_is_waited_for_once_every_voter_that_runs_was_heard() {
        let mut bench = Bench::new(MINE);
        bench.election.on_refused(at(0), ServerId(5), &mut bench.out);
        for from in [1, 3] {
            bench.says(from, Looking, vote(2, 7, 1, 1));
        }
        assert_eq!(bench.decision(), None);
        bench.election.on_refused(at(0), ServerId(4), &mut bench.out);
        assert_eq!(bench.decision(), Some((Leading, 2)));
        let mut bench = Bench::new(MINE);
        // It runs after all.
        bench.election.on_refused(at(0), ServerId(4), &mut bench.out);
        bench.election.on_reached(ServerId(4));
        bench.election.on_refused(at(0), ServerId(5), &mut bench.out);
        bench.says(1, Looking, vote(2, 7, 1, 1));
        bench.says(3, Looking, vote(2, 7, 1, 1));
        assert_eq!(bench.decision(), None);
        // Alone in its ensemble, a server leads at once.
        let alone = voters(&[("server.2", "h:1:2")]);
        assert_eq!(Bench::among(alone, MINE).decision(), Some((Leading, 2)));
    }

    #[test]
    fn a_later_round_begins_with_ones_own_vote_and_an_earlier_one_is_answered() {
        let mut bench = Bench::new(MINE);
        bench.says(4, Looking, vote(4, 9, 1, 1));
        assert_eq!(bench.vote(), vote(4, 9, 1, 1));
        bench.told();
        bench.says(1, Looking, vote(1, 3, 1, 6));
        assert_eq!((bench.told(), bench.vote()), (vec![1, 3, 4, 5], vote(2, 7, 1, 6)));
        bench.says(4, Looking, vote(4, 9, 1, 1));
        assert_eq!((bench.told(), bench.vote()), (vec![4], vote(2, 7, 1, 6)));
        // Votes of an earlier round count for nothing in this one.
        for from in [3, 5] {
            bench.says(from, Looking, vote(2, 7, 1, 5));
        }
        bench.passes(200);
        assert_eq!(bench.decision(), None);
    }

    #[test]
    fn who_comes_later_follows_the_leader_that_a_quorum_follows_and_that_leads() {
        let mut bench = Bench::new(MINE);
        // The members of an ensemble differ in rounds and zxids, and agree on the epoch.
        bench.says(1, Following, vote(4, 3, 8, 6));
        bench.says(3, Following, vote(4, 5, 8, 2));
        bench.says(5, Following, vote(4, 5, 8, 2));
        assert_eq!(bench.decision(), None, "the leader may be dead");
        bench.says(4, Leading, vote(4, 5, 7, 2));
        assert_eq!(bench.decision(), None, "of an earlier term");
        bench.says(4, Leading, vote(4, 5, 8, 2));
        assert_eq!(bench.decision(), Some((Following, 4)));
        assert_eq!(bench.vote(), vote(4, 5, 8, 2));
        assert_eq!(bench.told(), vec![1, 3, 4, 5], "its first vote, and no more");
    }

    #[test]
    fn nobody_leads_by_what_others_remember_of_an_earlier_round() {
        let mut bench = Bench::new(MINE);
        for from in [1, 3, 4] {
            bench.says(from, Following, vote(2, 7, 1, 9));
        }
        assert_eq!(bench.decision(), None);
        // In its own round, what others decided holds.
        for from in [1, 3] {
            bench.says(from, Following, vote(2, 7, 1, 1));
        }
        assert_eq!(bench.decision(), Some((Leading, 2)));
    }

    #[test]
    fn who_lost_its_history_does_not_lead_those_who_followed_it() {
        let mut bench = Bench::new(Standing::Abstains);
        for from in [1, 3, 4, 5] {
            bench.says(from, Following, vote(2, 7, 1, 1));
        }
        assert_eq!(bench.decision(), None);
    }

    #[test]
    fn an_observer_is_not_led_by_votes() {
        for standing in [Standing::Observer, Standing::Abstains] {
            let mut bench = Bench::new(standing);
            assert_eq!(bench.vote().leader, NOBODY);
            for from in [1, 3, 4, 5] {
                bench.says(from, Looking, vote(5, 9, 1, 3));
            }
            bench.passes(200);
            assert_eq!((bench.decision(), bench.vote().leader), (None, NOBODY));
            for from in [1, 3, 4] {
                bench.says(from, Following, vote(5, 9, 2, 3));
            }
            bench.says(5, Leading, vote(5, 9, 2, 3));
            let state = if standing == Standing::Observer { Observing } else { Following };
            assert_eq!(bench.decision(), Some((state, 5)));
        }
    }

    #[test]
    fn a_server_outside_the_configuration_brings_its_history_and_no_candidate() {
        let lines = ["server.1", "server.3", "server.4"].map(|key| (key, "h:1:2"));
        let mut bench = Bench::among(voters(&lines), MINE);
        assert_eq!(bench.vote(), Vote { leader: NOBODY, ..vote(0, 7, 1, 1) });
        bench.says(1, Looking, vote(3, 1, 1, 1));
        bench.says(3, Looking, vote(3, 1, 1, 1));
        bench.passes(200);
        assert_eq!(bench.decision(), None);
    }

    #[test]
    fn a_database_that_should_not_be_empty_votes_for_nobody_and_gets_no_vote() {
        let mut bench = Bench::new(MINE);
        bench.says(5, Looking, vote(5, -1, 9, 1));
        assert_eq!(bench.vote().leader, ME);
        let mut bench = Bench::new(Standing::Participant { zxid: Zxid(-1), epoch: Epoch(0) });
        for from in [1, 3, 4, 5] {
            bench.says(from, Looking, vote(2, -1, 0, 1));
            bench.says(from, Looking, vote(5, 3, 0, 1));
        }
        bench.passes(200);
        assert_eq!((bench.decision(), bench.vote().leader), (None, ME));
    }

    #[test]
    fn who_weighs_nothing_is_not_elected() {
        let mut lines = ["server.1", "server.2", "server.3"].map(|key| (key, "h:1:2")).to_vec();
        lines.extend([("group.1", "1:2:3"), ("weight.3", "0")]);
        let mut bench = Bench::among(voters(&lines), MINE);
        for round in [1, 2] {
            bench.says(3, Looking, vote(3, 9, 1, round));
            assert_eq!(bench.vote(), vote(2, 7, 1, round));
        }
    }

    #[test]
    fn votes_are_sent_again_after_ever_longer_waits() {
        let mut bench = Bench::new(MINE);
        let mut waits = Vec::new();
        while waits.len() < 11 {
            bench.told();
            let Deadline(end_ms) = bench.election.deadline().unwrap();
            waits.push(end_ms - bench.ms);
            bench.passes(end_ms - bench.ms);
            assert_eq!(bench.told(), vec![1, 3, 4, 5]);
        }
        assert_eq!(waits[..4], [200, 400, 800, 1600]);
        assert_eq!(waits[4..], [3_200, 4_000, 4_000, 4_000, 4_000, 4_000, 4_000]);
    }

    #[test]
    fn who_asked_too_early_is_told_of_the_leader() {
        let mut bench = Bench::new(MINE);
        bench.told();
        bench.says(9, Looking, Vote::OF_OBSERVER);
        assert_eq!(bench.told(), vec![9]);
        // Not as fast as it can ask.
        bench.says(9, Looking, Vote::OF_OBSERVER);
        assert!(bench.told().is_empty());
        bench.passes(STRANGER_ANSWER_MS_MIN);
        bench.says(9, Looking, Vote::OF_OBSERVER);
        assert_eq!(bench.told(), vec![9]);
        bench.election.on_gone(ServerId(8));
        for from in [1, 3, 4, 5] {
            bench.says(from, Looking, vote(2, 7, 1, 1));
        }
        assert_eq!(bench.decision(), Some((Leading, 2)));
        bench.told();
        bench.says(1, Looking, vote(1, 7, 1, 1));
        assert_eq!(bench.told(), vec![1]);
        bench.election.on_established(Epoch(2), &mut bench.out);
        assert_eq!((bench.told(), bench.vote()), (vec![1, 9], vote(2, 7, 2, 1)));
        // Later ones have heard it all in the answer.
        bench.says(5, Looking, vote(5, 7, 1, 1));
        assert_eq!(bench.told(), vec![5]);
        bench.election.on_established(Epoch(2), &mut bench.out);
        assert!(bench.told().is_empty());
        bench.says(5, Following, vote(2, 7, 2, 1));
        assert!(bench.told().is_empty());
    }

    #[test]
    fn who_looks_second_in_a_round_hears_at_once_what_the_first_says() {
        let mut bench = Bench::new(MINE);
        bench.told();
        // Worse than this server's own vote, which the other may have been told when it meant nothing
        // to it.
        bench.says(1, Looking, vote(1, 3, 1, 1));
        assert_eq!(bench.told(), vec![1]);
        bench.says(1, Looking, vote(1, 3, 1, 1));
        assert!(bench.told().is_empty(), "two that answer each other do not go on for ever");
        // Another round, another answer.
        bench.says(3, Looking, vote(3, 3, 1, 2));
        assert_eq!((bench.told(), bench.vote()), (vec![1, 3, 4, 5], vote(2, 7, 1, 2)));
        bench.says(1, Looking, vote(1, 3, 1, 2));
        assert_eq!(bench.told(), vec![1]);
        // One that votes for nobody is answered once a round, and told who leads.
        bench.says(5, Looking, Vote { round: Round(2), ..Vote::OF_OBSERVER });
        assert_eq!(bench.told(), vec![5]);
        bench.says(5, Looking, Vote { round: Round(2), ..Vote::OF_OBSERVER });
        assert!(bench.told().is_empty());
    }

    #[test]
    fn a_voter_that_asked_is_told_of_the_leader_although_its_connection_ended() {
        let mut bench = Bench::new(MINE);
        bench.says(9, Looking, Vote::OF_OBSERVER);
        for from in [1, 3, 4, 5] {
            bench.says(from, Looking, vote(2, 7, 1, 1));
        }
        bench.says(1, Looking, vote(1, 7, 1, 1));
        for server in [1, 9] {
            bench.election.on_gone(ServerId(server));
        }
        bench.told();
        bench.election.on_established(Epoch(2), &mut bench.out);
        assert_eq!(bench.told(), vec![1]);
    }

    #[test]
    fn another_configuration_begins_the_round_anew() {
        let mut bench = Bench::new(MINE);
        for from in [1, 3] {
            bench.says(from, Looking, vote(2, 7, 1, 1));
        }
        let lines = ["server.2", "server.6", "server.7"].map(|key| (key, "h:1:2"));
        bench.told();
        bench.election.on_voters(at(0), voters(&lines), &mut bench.out);
        assert_eq!((bench.told(), bench.vote()), (vec![6, 7], vote(2, 7, 1, 2)));
        bench.passes(200);
        assert_eq!(bench.decision(), None);
        bench.says(6, Looking, vote(2, 7, 1, 2));
        bench.passes(200);
        assert_eq!(bench.decision(), Some((Leading, 2)));
    }
}
