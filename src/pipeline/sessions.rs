//! Sessions: they open, come back, speak, and end.
//!
//! Who leads says who lives: a session opens and ends by transactions, and the leader alone ends one
//! that is silent. A server that follows passes on what its clients want (`forward.rs`), and whom it
//! has heard from.
//!
//! A local session is its server's alone, which opens and ends it without a transaction: where
//! `localSessionsEnabled` asks for it, and wherever clients may read and there is no leader.

use super::forward::Answered;
use super::tracker::{Client, Owner, Scope};
use super::{Asker, LocalSessions, Output, Pipeline, is_password, password, prep};
use crate::exchange::{Outcome, Request, Touched, Want};
use crate::record::code::Code;
use crate::record::op::code;
use crate::record::txn::Txn;
use crate::types::{Now, SessionId, Zxid};

impl Pipeline {
    /// A client of this server wants a session.
    pub(super) fn on_open(
        &mut self,
        now: Now,
        client: Client,
        timeout_ms: i32,
        last_zxid_seen: Zxid,
        out: &mut Output,
    ) {
        if self.is_ahead(last_zxid_seen) {
            self.gathered.reply(client, self.place(), Outcome::Dropped);
            return;
        }
        let session = self.tracker.next();
        if self.zab.reads() || self.zab.local_sessions() != LocalSessions::Off {
            self.tracker.insert(now, session, timeout_ms, Scope::Local, Owner::Client(client));
            let outcome = Outcome::Connected { session, timeout_ms, password: password(session) };
            self.gathered.reply(client, self.place(), outcome);
            return;
        }
        if self.zab.forwards() {
            self.forward_open(client, session, timeout_ms, out);
            return;
        }
        let zxid = self.open_session(now, session, timeout_ms, Owner::Client(client), out);
        let outcome = Outcome::Connected { session, timeout_ms, password: password(session) };
        self.gathered.reply(client, zxid, outcome);
    }

    /// A session begins, by a transaction.
    pub(super) fn open_session(
        &mut self,
        now: Now,
        session: SessionId,
        timeout_ms: i32,
        owner: Owner,
        out: &mut Output,
    ) -> Zxid {
        self.tracker.insert(now, session, timeout_ms, Scope::Global, owner);
        let header = self.header(now, session, 0, code::CREATE_SESSION);
        let txn = Txn::CreateSession { timeout_ms };
        self.log(now, &header, true, |out| txn.write(out), out);
        let zxid = Zxid(header.zxid);
        self.gathered.session_opened(zxid, session, timeout_ms);
        zxid
    }

    #[expect(clippy::too_many_arguments, reason = "who comes back says so much")]
    pub(super) fn on_resume(
        &mut self,
        now: Now,
        client: Client,
        session: SessionId,
        timeout_ms: i32,
        last_zxid_seen: Zxid,
        claimed: &[u8; 16],
        out: &mut Output,
    ) {
        let zxid = self.place();
        if self.is_ahead(last_zxid_seen) {
            self.gathered.reply(client, zxid, Outcome::Dropped);
            return;
        }
        let is_password = is_password(session, claimed);
        #[cfg(feature = "mutants")]
        let is_password =
            is_password || self.settings.mutant == Some(super::Mutant::PasswordNotChecked);
        // The password comes first: who does not know it must not disturb the session's own
        // connection.
        if !is_password {
            self.gathered.reply(client, zxid, Outcome::Refused);
        } else if self.zab.reads() && !self.tracker.is_local(session) {
            self.turn_away(client, session);
        } else if self.zab.forwards() && !self.tracker.is_local(session) {
            self.revalidate(client, session, timeout_ms, out);
        } else {
            if let Some(member) = self.zab.member() {
                member.forward.disconnect(session);
            }
            let before = self.tracker.resume(now, session, timeout_ms, Owner::Client(client));
            self.resumed(client, session, timeout_ms, before);
        }
    }

    /// Without a leader nobody can say whether a session lives that is not this server's alone: its
    /// client looks for another server (`ReadOnlyZooKeeperServer.validateSession`). With local
    /// sessions, one that this server has never heard of is another server's, and cannot come here.
    fn turn_away(&mut self, client: Client, session: SessionId) {
        let may_be_local = self.zab.local_sessions() != LocalSessions::Off;
        let is_over = may_be_local && !self.tracker.is_alive(session);
        let outcome = if is_over { Outcome::Refused } else { Outcome::Dropped };
        self.gathered.reply(client, self.place(), outcome);
    }

    /// Answers a client whose session is back; it spoke through `before`, or is no session.
    pub(super) fn resumed(
        &mut self,
        client: Client,
        session: SessionId,
        timeout_ms: i32,
        before: Option<Owner>,
    ) {
        let zxid = self.place();
        let Some(before) = before else {
            self.gathered.reply(client, zxid, Outcome::Refused);
            return;
        };
        if let Some(before) = before.client().filter(|before| *before != client) {
            self.gathered.reply(before, zxid, Outcome::Ended);
        }
        let outcome = Outcome::Connected { session, timeout_ms, password: password(session) };
        self.gathered.reply(client, zxid, outcome);
    }

    /// Whether a client has seen what this server has not: it must find another.
    pub(super) fn is_ahead(&self, last_zxid_seen: Zxid) -> bool {
        #[cfg(feature = "mutants")]
        if self.settings.mutant == Some(super::Mutant::FutureClientAccepted) {
            return false;
        }
        self.shown() < last_zxid_seen
    }

    /// A session that only this server knows wants an ephemeral: it becomes everybody's first, by a
    /// transaction, if that is allowed. Whether it did.
    /// After `QuorumZooKeeperServer.checkUpgradeSession`.
    pub(super) fn upgrade_for(
        &mut self,
        now: Now,
        client: Client,
        request: &Request,
        body: &[u8],
        out: &mut Output,
    ) -> bool {
        let Want::Write { op } = request.want else { return false };
        let session = request.session;
        let may_be = self.zab.local_sessions() == LocalSessions::Upgraded;
        if !may_be || !self.tracker.is_local(session) || !prep::makes_ephemeral(op, body) {
            return false;
        }
        let timeout_ms = self.tracker.timeout_ms(session).expect("it was just found");
        tracing::info!(%session, "upgrading");
        if self.zab.forwards() {
            self.tracker.set_scope(session, Scope::Global);
            self.forward_upgrade(session, timeout_ms, out);
        } else {
            self.open_session(now, session, timeout_ms, Owner::Client(client), out);
        }
        true
    }

    /// What a session is told about ephemerals that cannot own any.
    /// After `PrepRequestProcessor.validateCreateRequest`.
    pub(super) fn refuses_ephemerals(&self, asker: Asker, session: SessionId) -> Option<Code> {
        if self.zab.local_sessions() == LocalSessions::Off {
            return None;
        }
        match (self.tracker.scope(session), asker) {
            (Some(Scope::Global), _) => None,
            (Some(Scope::Local), Asker::Client(_)) => Some(Code::EphemeralOnLocalSession),
            (Some(Scope::Local), Asker::Learner(_)) | (None, _) => Some(Code::SessionExpired),
        }
    }

    /// Whether a session that is not known here may be a local one of another server, which is in the
    /// top byte of its id. After `LeaderSessionTracker.checkSession`.
    pub(super) fn may_be_anothers(&self, session: SessionId) -> bool {
        const SERVER_SHIFT: u32 = 56;
        let server = session.0 as u64 >> SERVER_SHIFT;
        let is_own = server == self.settings.server.0 as u64 & 0xff;
        self.zab.local_sessions() != LocalSessions::Off && !is_own
    }

    /// Whether a request ends a session that only this server knows.
    pub(super) fn closes_here(&self, request: &Request) -> bool {
        request.want == Want::Close && self.tracker.is_local(request.session)
    }

    pub(super) fn close_local(&mut self, client: Client, request: &Request) {
        self.tracker.close(request.session);
        if self.zab.forwards() {
            self.answer_here(client, request, Answered::Closed);
        } else {
            let (xid, body) = (request.xid, Default::default());
            let outcome = Outcome::Answer { xid, err: Code::Ok, body, close: true };
            self.gathered.reply(client, self.place(), outcome);
        }
    }

    pub(super) fn on_close(&mut self, now: Now, asker: Asker, request: &Request, out: &mut Output) {
        let (zxid, owner) = self.close_session(now, request.session, request.xid.0, out);
        let outcome = Outcome::Answer {
            xid: request.xid,
            err: Code::Ok,
            body: Default::default(),
            close: true,
        };
        match asker {
            Asker::Client(client) => self.gathered.reply(client, zxid, outcome),
            // It may have been a client of this server that came back over the learner.
            Asker::Learner(_) => self.drop_client(zxid, owner),
        }
    }

    fn drop_client(&mut self, zxid: Zxid, owner: Option<Owner>) {
        if let Some(client) = owner.and_then(Owner::client) {
            self.gathered.reply(client, zxid, Outcome::Ended);
        }
    }

    /// Ends a session: one transaction deletes all it owns. Says through whom it spoke.
    pub(super) fn close_session(
        &mut self,
        now: Now,
        session: SessionId,
        cxid: i32,
        out: &mut Output,
    ) -> (Zxid, Option<Owner>) {
        let is_orphaned = !self.tracker.is_alive(session);
        let owner = self.tracker.close(session);
        let header = self.header(now, session, cxid, code::CLOSE_SESSION);
        let zxid = Zxid(header.zxid);
        let paths: Vec<String> = self.tree.ephemerals_of(session).map(str::to_owned).collect();
        #[cfg(feature = "mutants")]
        let paths = match self.settings.mutant {
            Some(super::Mutant::EphemeralsSurviveClose) => Vec::new(),
            _ => paths,
        };
        if let Some(audit) = &mut self.audit {
            paths.iter().for_each(|path| audit.ephemeral(zxid, session, path));
        }
        // A list that is too long is left out: whoever applies this knows what the session owns.
        // What no session owns may be TTL znodes, to a server with other settings: they are listed.
        let bytes: usize = paths.iter().map(|path| prep::FIXED_BYTES_MAX + path.len()).sum();
        let listed = (self.settings.close_session_lists_paths || is_orphaned)
            && prep::FIXED_BYTES_MAX + bytes <= self.settings.record_bytes_max;
        let paths =
            listed.then(|| paths.iter().map(|path| path.as_str().into()).collect::<Vec<_>>());
        let txn = Txn::CloseSession { paths };
        #[cfg(feature = "mutants")]
        if self.settings.mutant == Some(super::Mutant::EphemeralsSurviveClose) {
            self.log(now, &header, true, |out| txn.write(out), out);
            self.gathered.session_closed(zxid, session);
            return (zxid, owner);
        }
        self.tree.apply(&header, &txn, &mut self.gathered.changes(zxid));
        self.log(now, &header, true, |out| txn.write(out), out);
        self.gathered.session_closed(zxid, session);
        (zxid, owner)
    }

    pub(super) fn on_touched(&mut self, now: Now, touched: &Touched, out: &mut Output) {
        #[cfg(not(feature = "mutants"))]
        let (early_ms, ahead_ms) = (0, 0);
        #[cfg(feature = "mutants")]
        let (early_ms, ahead_ms) = match self.settings.mutant {
            Some(super::Mutant::ExpiresEarly) => (2 * self.settings.tick_ms, 0),
            Some(super::Mutant::ReportNotAwaited) => (0, self.settings.tick_ms),
            _ => (0, 0),
        };
        for &(session, heard_ms) in &touched.heard {
            self.tracker.touch(session, heard_ms - early_ms);
        }
        if let Some(member) = self.zab.member() {
            let sessions = touched.heard.iter().map(|(session, _)| *session);
            member.heard(sessions, &self.tracker);
        }
        self.tracker.on_report(touched.shard, touched.as_of_ms + ahead_ms);
        // It may have been this report that the end of a session waited for.
        self.expire(now, out);
        self.seal(out);
    }

    /// Ends the sessions whose time is over, where this server says so. A leader that has stood still
    /// has yet to hear whom its learners have heard meanwhile; one that says nothing is let go after
    /// syncLimit.
    pub(super) fn expire(&mut self, now: Now, out: &mut Output) {
        #[cfg(feature = "mutants")]
        let now = match self.settings.mutant {
            Some(super::Mutant::ExpiresLate) => {
                Now { monotonic_ms: now.monotonic_ms - 10_000, ..now }
            }
            _ => now,
        };
        if !(self.zab.serves() || self.zab.reads()) {
            return;
        }
        for session in self.tracker.due(now, Scope::Local, i64::MAX) {
            let owner = self.tracker.close(session);
            if let Some(member) = self.zab.member() {
                member.forward.forget(session);
            }
            tracing::info!(%session, "expired");
            self.drop_client(self.place(), owner);
        }
        if !self.zab.orders() {
            return;
        }
        let told_until_ms = self.zab.told_until_ms();
        for session in self.tracker.due(now, Scope::Global, told_until_ms) {
            if !self.has_zxid(now) {
                return;
            }
            let (zxid, owner) = self.close_session(now, session, 0, out);
            tracing::info!(%session, "expired");
            self.drop_client(zxid, owner);
        }
    }

    /// Sessions that are gone but still own znodes are closed, by transactions like any other, so
    /// that every copy of the history agrees.
    pub(super) fn close_orphans(&mut self, now: Now, out: &mut Output) {
        let orphaned: Vec<SessionId> = self
            .tree
            .owning_sessions()
            .filter(|session| !self.tracker.is_alive(*session))
            .collect();
        for session in orphaned {
            if self.has_zxid(now) {
                self.close_session(now, session, 0, out);
            }
        }
    }
}
