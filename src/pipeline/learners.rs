//! What learners ask their leader for, on behalf of their clients.
//!
//! After `LearnerHandler.run`, `LeaderRequestProcessor`, `PrepRequestProcessor.checkSession`.

use super::forward::identities;
use super::member::{Agreement, send};
use super::tracker::Owner;
use super::{Asker, Output, Pipeline};
use crate::exchange::{ConnectionId, Outcome, Request, Want};
use crate::jute::Reader;
use crate::record::code::Code;
use crate::record::op::code;
use crate::record::quorum::{FromLeader, FromLearner, Request as Forwarded};
use crate::types::{Now, Xid};
use crate::zab::LinkId;

impl Pipeline {
    pub(super) fn on_learner_packet(
        &mut self,
        now: Now,
        link: LinkId,
        packet: FromLearner<'_>,
        out: &mut Output,
    ) {
        if !self.zab.orders() {
            return;
        }
        match packet {
            FromLearner::Request(request) => self.on_forwarded(now, link, request, out),
            FromLearner::Revalidate { zxid, session, timeout_ms } => {
                // A session of one server cannot go to another.
                let before = match self.tracker.is_local(session) {
                    true => None,
                    false => self.tracker.resume(now, session, timeout_ms, Owner::Learner(link)),
                };
                // Its client may have been one of this server's.
                let client = before.and_then(Owner::client);
                if let Some(client) = client {
                    let zxid = self.zab.proposed();
                    self.gathered.reply(client, zxid, Outcome::Ended);
                }
                let valid = before.is_some();
                send(link, FromLeader::Revalidate { zxid, session, valid }, out);
            }
            FromLearner::Ping { touched, .. } => {
                for (session, timeout_ms) in touched.sessions() {
                    self.tracker.touch_for(session, now.monotonic_ms, timeout_ms);
                }
            }
            FromLearner::FollowerInfo { .. }
            | FromLearner::ObserverInfo { .. }
            | FromLearner::AckEpoch { .. }
            | FromLearner::Ack { .. } => {}
        }
    }

    fn on_forwarded(&mut self, now: Now, link: LinkId, forwarded: Forwarded<'_>, out: &mut Output) {
        let Forwarded { session, cxid, op, body, identities: ids } = forwarded;
        if op == code::SYNC {
            let awaits = self.awaits_syncs();
            let Agreement::Member(member) = &mut self.zab else { return };
            if awaits {
                member.sync(link);
            } else {
                send(link, FromLeader::Sync, out);
            }
            return;
        }
        if !self.has_zxid(now) {
            return;
        }
        if op == code::CREATE_SESSION {
            let is_anothers = self
                .tracker
                .owner(session)
                .is_some_and(|owner| ![Owner::Nobody, Owner::Learner(link)].contains(&owner));
            if !is_anothers && let Ok(timeout_ms) = Reader::new(body).i32() {
                self.open_session(now, session, timeout_ms, Owner::Learner(link), out);
            }
            return;
        }
        let asker = Asker::Learner(link);
        let want = if op == code::CLOSE_SESSION { Want::Close } else { Want::Write { op } };
        let request = Request {
            connection: ConnectionId { slot: 0, generation: 0 },
            session,
            xid: Xid(cxid),
            want,
            body: Default::default(),
            ids: identities(ids),
        };
        #[cfg(feature = "mutants")]
        if self.settings.mutant == Some(super::Mutant::OwnerNotChecked) {
            self.tracker.set_owner(session, Owner::Learner(link));
        }
        match self.tracker.owner(session) {
            None if want != Want::Close && self.may_be_anothers(session) => {
                self.on_session_request(now, asker, &request, body, out);
            }
            Some(_) if self.tracker.is_local(session) => {
                self.refuse(now, asker, &request, Code::SessionExpired, out);
            }
            // The end of a session that is over already: there is nothing to do, and whoever asked
            // waits for an answer.
            None => self.refuse(now, asker, &request, Code::SessionExpired, out),
            Some(Owner::Nobody) => {
                self.tracker.set_owner(session, Owner::Learner(link));
                self.on_session_request(now, asker, &request, body, out);
            }
            Some(Owner::Learner(owner)) if owner == link => {
                self.on_session_request(now, asker, &request, body, out);
            }
            Some(_) => self.refuse(now, asker, &request, Code::SessionMoved, out),
        }
    }
}
