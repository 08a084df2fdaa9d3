//! What clients of a learner want and the leader decides: on its way there, and until it comes back.
//!
//! A leader answers a request by a transaction with the same session and cxid, in the order in which
//! the session asked. `sync` is answered by a SYNC, in the order of all syncs of this learner; a
//! session that comes back by a REVALIDATE. After `FollowerRequestProcessor`, `CommitProcessor`,
//! `Learner.validateSession`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::member::Agreement;
use super::tracker::{Client, Owner};
use super::{Output, Pipeline, audit, prep_multi, whole};
use crate::exchange::{Outcome, Request, Want};
use crate::jute::Write as _;
use crate::jute::record::{Record as _, Text};
use crate::record::code::Code;
use crate::record::data::Id;
use crate::record::op::code;
use crate::record::proto::PathOnly;
use crate::record::quorum::{AuthInfo, FromLeader, FromLearner, Request as Forwarded};
use crate::types::{Now, SessionId, Xid, Zxid};

/// A request that the leader has.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) client: Client,
    pub(super) xid: Xid,
    pub(super) op: i32,
    /// Of a multi: what each result is of.
    pub(super) kinds: Vec<i32>,
    /// What the audit log will say of it, and who asked.
    pub(super) audited: Option<Box<(Request, Vec<audit::Entry>)>>,
}

/// A client whose session the leader is asked about.
#[derive(Clone, Copy, Debug)]
struct Returning {
    client: Client,
    timeout_ms: i32,
}

#[derive(Debug)]
struct Sync {
    client: Client,
    xid: Xid,
    path: Option<Box<str>>,
}

#[derive(Debug, Default)]
pub(super) struct Forward {
    pending: BTreeMap<SessionId, VecDeque<Pending>>,
    opening: BTreeMap<SessionId, Client>,
    returning: BTreeMap<SessionId, VecDeque<Returning>>,
    syncs: VecDeque<Sync>,
}

impl Forward {
    /// The leader is gone: nothing will come back.
    pub(super) fn clear(&mut self) {
        *self = Forward::default();
    }

    /// How many clients wait for the leader.
    pub(super) fn count(&self) -> usize {
        self.pending.values().map(VecDeque::len).sum::<usize>()
            + self.opening.len()
            + self.returning.values().map(VecDeque::len).sum::<usize>()
            + self.syncs.len()
    }

    fn push(&mut self, session: SessionId, pending: Pending) {
        self.pending.entry(session).or_default().push_back(pending);
    }

    /// The request that has become a transaction of this session with this cxid. Those before it
    /// have not become any, and never will.
    pub(super) fn take(&mut self, session: SessionId, cxid: i32) -> Option<Pending> {
        let queue = self.pending.get_mut(&session)?;
        let place = queue.iter().position(|pending| pending.xid.0 == cxid)?;
        let mut found = None;
        for pending in queue.drain(..=place) {
            found = Some(pending);
        }
        if queue.is_empty() {
            self.pending.remove(&session);
        }
        found
    }

    /// The client that this session was opened for.
    pub(super) fn take_opening(&mut self, session: SessionId) -> Option<Client> {
        self.opening.remove(&session)
    }

    /// The session is over, or speaks over another connection: what it asked for before comes too
    /// late for whoever asked.
    pub(super) fn forget(&mut self, session: SessionId) {
        self.pending.remove(&session);
    }
}

impl Pipeline {
    /// A client's request goes to the leader.
    pub(super) fn forward(
        &mut self,
        client: Client,
        request: &Request,
        body: &[u8],
        out: &mut Output,
    ) {
        let op = match request.want {
            Want::Write { op } => op,
            Want::Close => code::CLOSE_SESSION,
            Want::Sync => code::SYNC,
            Want::Open { .. } | Want::Resume { .. } | Want::Ephemerals => {
                unreachable!("these are not forwarded as they are")
            }
        };
        let audited = self.audit.as_ref().map(|_| {
            let entries = match op {
                code::MULTI => prep_multi::audited(body),
                op => audit::asked(op, body).into_iter().collect(),
            };
            Box::new((request.clone(), entries))
        });
        let path = match request.want {
            Want::Sync => match PathOnly::read(&mut whole(body)) {
                Ok(path) => Some(path.path.map(|path| Box::from(path.as_ref()))),
                Err(_) => {
                    self.malformed(client, request);
                    return;
                }
            },
            _ => None,
        };
        let Agreement::Member(member) = &mut self.zab else { return };
        let (session, xid) = (request.session, request.xid);
        let mut identities = Vec::new();
        AuthInfo::write_ids(request.ids.iter(), &mut identities);
        let identities = AuthInfo::from_bytes(&identities).expect("just written");
        let body = if request.want == Want::Close { &[] } else { body };
        let forwarded = Forwarded { session, cxid: xid.0, op, body, identities };
        member.send_to_leader(FromLearner::Request(forwarded), out);
        match path {
            Some(path) => member.forward.syncs.push_back(Sync { client, xid, path }),
            None => {
                let kinds =
                    if op == code::MULTI { prep_multi::result_kinds(body) } else { Vec::new() };
                let pending = Pending { client, xid, op, kinds, audited };
                member.forward.push(session, pending);
            }
        }
    }

    /// A client without a session gets one from the leader.
    pub(super) fn forward_open(
        &mut self,
        client: Client,
        timeout_ms: i32,
        last_zxid_seen: Zxid,
        out: &mut Output,
    ) {
        if self.is_ahead(last_zxid_seen) {
            self.gathered.reply(client, self.zab.proposed(), Outcome::Dropped);
            return;
        }
        let session = self.tracker.next();
        let Agreement::Member(member) = &mut self.zab else { return };
        member.forward.opening.insert(session, client);
        let mut body = Vec::new();
        body.put_i32(timeout_ms);
        let (op, identities) = (code::CREATE_SESSION, AuthInfo::NULL);
        let forwarded = Forwarded { session, cxid: 0, op, body: &body, identities };
        member.send_to_leader(FromLearner::Request(forwarded), out);
    }

    /// The leader is asked whether a session may go on here.
    pub(super) fn revalidate(
        &mut self,
        client: Client,
        session: SessionId,
        timeout_ms: i32,
        out: &mut Output,
    ) {
        let Agreement::Member(member) = &mut self.zab else { return };
        let returning = Returning { client, timeout_ms };
        member.forward.returning.entry(session).or_default().push_back(returning);
        let packet = FromLearner::Revalidate { zxid: Zxid(-1), session, timeout_ms };
        member.send_to_leader(packet, out);
    }

    /// What of a leader's packets is about this server's clients.
    pub(super) fn on_leader_packet(&mut self, now: Now, packet: FromLeader<'_>, _out: &mut Output) {
        let Agreement::Member(member) = &mut self.zab else { return };
        match packet {
            FromLeader::Sync => {
                if let Some(Sync { client, xid, path }) = member.forward.syncs.pop_front() {
                    let zxid = self.zab.proposed();
                    let path = PathOnly { path: path.as_deref().map(Into::into) };
                    self.gathered.answer(client, xid, zxid, Code::Ok, |out| path.write(out));
                }
            }
            FromLeader::Revalidate { session, valid, .. } => {
                let Some(queue) = member.forward.returning.get_mut(&session) else { return };
                let returning = queue.pop_front();
                if queue.is_empty() {
                    member.forward.returning.remove(&session);
                }
                let Some(Returning { client, timeout_ms }) = returning else { return };
                if valid {
                    member.forward.forget(session);
                    let before = self.tracker.owner(session).unwrap_or(Owner::Nobody);
                    self.tracker.insert(now, session, timeout_ms, Owner::Client(client));
                    self.resumed(client, session, timeout_ms, Some(before));
                } else {
                    self.resumed(client, session, timeout_ms, None);
                }
            }
            _ => {}
        }
    }
}

/// Who asked, as requests carry it.
pub(super) fn identities(authinfo: AuthInfo<'_>) -> Arc<[Id]> {
    let text = |text: &Text<'_>| text.as_deref().unwrap_or_default().to_owned();
    let ids = authinfo.decode().unwrap_or_default();
    ids.iter().map(|id| Id { scheme: text(&id.scheme), id: text(&id.id) }).collect()
}
