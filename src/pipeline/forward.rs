//! What clients of a learner want and the leader decides: on its way there, and until it comes back.
//!
//! A leader answers a request by a transaction with the same session and cxid, in the order in which
//! the session asked. `sync` is answered by a SYNC, in the order of all syncs of this learner; a
//! session that comes back by a REVALIDATE. After `FollowerRequestProcessor`, `CommitProcessor`,
//! `Learner.validateSession`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::member::{Agreement, Member};
use super::prep::is_readable;
use super::tracker::{Client, Owner, Scope};
use super::{Output, Pipeline, audit, prep, prep_multi, whole};
use crate::exchange::{Outcome, Request, Want};
use crate::jute::Write as _;
use crate::jute::record::{Record as _, Text};
use crate::record::code::Code;
use crate::record::data::Id;
use crate::record::op::code;
use crate::record::proto::PathOnly;
use crate::record::quorum::{AuthInfo, FromLeader, FromLearner, Request as Forwarded};
use crate::types::{Now, SessionId, Xid, Zxid};

/// A request of a session, in the order in which the session asked: so it is answered.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) client: Client,
    pub(super) xid: Xid,
    pub(super) what: What,
    /// The connection that it came over is gone: its transaction may come, and answers nobody.
    is_stale: bool,
    /// It waits for those before it.
    answer: Option<Answer>,
}

#[derive(Debug)]
pub(super) enum What {
    /// The leader has it, and its transaction is the answer.
    Write {
        op: i32,
        /// Of a multi: what each result is of.
        kinds: Vec<i32>,
        /// It makes an ephemeral znode, and its session is this server's alone.
        is_local_ephemeral: bool,
        /// What the audit log will say of it, and who asked.
        audited: Option<Box<(Request, Vec<audit::Entry>)>>,
    },
    Sync {
        number: u64,
        path: Option<Box<str>>,
    },
    /// It is made here, once it is the first.
    Ephemerals(Box<Local>),
    /// It is answered, and waits for those before it.
    Answered,
}

/// A request that is answered here, and its body.
type Local = (Request, Vec<u8>);

/// What a request came to.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) zxid: Zxid,
    pub(super) what: Answered,
}

#[derive(Debug)]
pub(super) enum Answered {
    Body(Code, Vec<u8>),
    Closed,
    Dropped,
}

/// A client whose session the leader is asked about.
#[derive(Clone, Copy, Debug)]
struct Returning {
    client: Client,
    timeout_ms: i32,
}

#[derive(Debug, Default)]
pub(super) struct Forward {
    pending: BTreeMap<SessionId, VecDeque<Pending>>,
    opening: BTreeMap<SessionId, Client>,
    /// Sessions that were this server's alone, and are to be everybody's: the leader has been asked.
    upgrading: BTreeSet<SessionId>,
    returning: BTreeMap<SessionId, VecDeque<Returning>>,
    /// The syncs that the leader has, and whose they are.
    syncs: VecDeque<(SessionId, u64)>,
    sync_count: u64,
    broken: Vec<Client>,
}

impl Forward {
    /// The leader is gone: nothing will come back. Returns the sessions that were to be everybody's.
    pub(super) fn clear(&mut self) -> BTreeSet<SessionId> {
        std::mem::take(self).upgrading
    }

    /// How many clients wait for the leader.
    pub(super) fn count(&self) -> usize {
        self.pending.values().map(VecDeque::len).sum::<usize>()
            + self.opening.len()
            + self.returning.values().map(VecDeque::len).sum::<usize>()
    }

    fn push(&mut self, session: SessionId, client: Client, xid: Xid, what: What) {
        let pending = Pending { client, xid, what, is_stale: false, answer: None };
        self.pending.entry(session).or_default().push_back(pending);
    }

    /// The request that has become a transaction of this session with this cxid. A client may count
    /// anew with each connection, so those of its earlier ones come first. Where a write before it
    /// has become no transaction, it never will, and whoever waits for it would wait for ever: that
    /// connection is in `broken` then.
    pub(super) fn find(&mut self, session: SessionId, cxid: i32) -> Option<&mut Pending> {
        let queue = self.pending.get_mut(&session)?;
        let waits = |pending: &Pending| {
            pending.answer.is_none() && matches!(pending.what, What::Write { .. })
        };
        let place = queue.iter().position(|pending| waits(pending) && pending.xid.0 == cxid)?;
        let is_passed_over = |pending: &&Pending| waits(pending) && !pending.is_stale;
        let passed_over = queue.iter().take(place).find(is_passed_over);
        if let Some(client) = passed_over.map(|pending| pending.client) {
            self.broken.push(client);
            queue.clear();
            return None;
        }
        let mut place_now = place;
        for earlier in (0..place).rev() {
            if waits(&queue[earlier]) {
                queue.remove(earlier);
                place_now -= 1;
            }
        }
        queue.get_mut(place_now)
    }

    /// The session is back over another connection. What it asked for before is answered to nobody,
    /// but its transactions may still come.
    pub(super) fn disconnect(&mut self, session: SessionId) {
        let Some(queue) = self.pending.get_mut(&session) else { return };
        queue.retain(|pending| matches!(pending.what, What::Write { .. } | What::Sync { .. }));
        queue.iter_mut().for_each(|pending| pending.is_stale = true);
        if queue.is_empty() {
            self.pending.remove(&session);
        }
    }

    /// Connections that wait for an answer that will not come.
    pub(super) fn take_broken(&mut self) -> Vec<Client> {
        std::mem::take(&mut self.broken)
    }

    /// A seeded bug: what is answered goes before what waits.
    #[cfg(feature = "mutants")]
    fn bring_forward(&mut self, session: SessionId, cxid: i32) {
        let Some(queue) = self.pending.get_mut(&session) else { return };
        let is_it = |pending: &Pending| pending.xid.0 == cxid && pending.answer.is_some();
        if let Some(place) = queue.iter().position(is_it)
            && let Some(pending) = queue.remove(place)
        {
            queue.push_front(pending);
        }
    }

    /// The first request of a session, if it is answered.
    fn next_answered(&mut self, session: SessionId) -> Option<(Pending, Answer)> {
        let queue = self.pending.get_mut(&session)?;
        let answer = queue.front_mut()?.answer.take()?;
        let pending = queue.pop_front().expect("there is a first one");
        if queue.is_empty() {
            self.pending.remove(&session);
        }
        Some((pending, answer))
    }

    /// The first request of a session, if it is to be answered here.
    fn next_local(&mut self, session: SessionId) -> Option<(Client, Box<Local>)> {
        let queue = self.pending.get_mut(&session)?;
        queue.front().filter(|first| matches!(first.what, What::Ephemerals(_)))?;
        let first = queue.pop_front().expect("there is a first one");
        if queue.is_empty() {
            self.pending.remove(&session);
        }
        match first.what {
            What::Ephemerals(request) => Some((first.client, request)),
            What::Write { .. } | What::Sync { .. } | What::Answered => {
                unreachable!("it was just looked at")
            }
        }
    }

    /// The client that this session was opened for; `None` also where it was opened before, by its
    /// server alone.
    pub(super) fn take_opening(&mut self, session: SessionId) -> Option<Client> {
        self.upgrading.remove(&session);
        self.opening.remove(&session)
    }

    /// The session is over.
    pub(super) fn forget(&mut self, session: SessionId) {
        self.pending.remove(&session);
    }
}

impl Member {
    fn ask_to_open(&mut self, session: SessionId, timeout_ms: i32, out: &mut Output) {
        let mut body = Vec::new();
        body.put_i32(timeout_ms);
        let (op, identities) = (code::CREATE_SESSION, AuthInfo::NULL);
        let forwarded = Forwarded { session, cxid: 0, op, body: &body, identities };
        self.send_to_leader(FromLearner::Request(forwarded), out);
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
        if request.want == Want::Ephemerals {
            let what = What::Ephemerals(Box::new((request.clone(), body.to_vec())));
            let Agreement::Member(member) = &mut self.zab else { return };
            member.forward.push(request.session, client, request.xid, what);
            self.answer_in_order(request.session);
            return;
        }
        // A leader of ZooKeeper 3.9 that is sent what it cannot read commits nothing from then on.
        if let Want::Write { op } = request.want
            && !is_readable(op, body)
        {
            let what = Answered::Body(Code::MarshallingError, Vec::new());
            self.answer_here(client, request, what);
            return;
        }
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
                    let what = Answered::Body(Code::MarshallingError, Vec::new());
                    self.answer_here(client, request, what);
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
        let what = match path {
            Some(path) => {
                member.forward.sync_count += 1;
                let number = member.forward.sync_count;
                member.forward.syncs.push_back((session, number));
                What::Sync { number, path }
            }
            None => {
                let kinds =
                    if op == code::MULTI { prep_multi::result_kinds(body) } else { Vec::new() };
                let is_local_ephemeral =
                    self.tracker.is_local(session) && prep::makes_ephemeral(op, body);
                What::Write { op, kinds, is_local_ephemeral, audited }
            }
        };
        member.forward.push(session, client, xid, what);
    }

    /// Answers a request that the leader need not see, behind those before it.
    pub(super) fn answer_here(&mut self, client: Client, request: &Request, what: Answered) {
        let Agreement::Member(member) = &mut self.zab else { return };
        let zxid = member.proposed;
        member.forward.push(request.session, client, request.xid, What::Answered);
        let queue = member.forward.pending.get_mut(&request.session);
        if let Some(last) = queue.and_then(VecDeque::back_mut) {
            last.answer = Some(Answer { zxid, what });
        }
        self.answer_in_order(request.session);
    }

    /// Takes what a request came to, and answers it if it is its turn.
    pub(super) fn answer_pending(&mut self, session: SessionId, cxid: i32, answer: Answer) {
        let Agreement::Member(member) = &mut self.zab else { return };
        #[cfg(feature = "mutants")]
        let at_once = self.settings.mutant == Some(super::Mutant::AnsweredOutOfOrder);
        if let Some(pending) = member.forward.find(session, cxid) {
            pending.answer = Some(answer);
            #[cfg(feature = "mutants")]
            if at_once {
                member.forward.bring_forward(session, cxid);
            }
            self.answer_in_order(session);
        }
    }

    /// Answers what a session has asked for, up to the first request that waits.
    fn answer_in_order(&mut self, session: SessionId) {
        // What was answered here behind a write that was on its way is no older than that write.
        let mut last = Zxid::ZERO;
        loop {
            let Agreement::Member(member) = &mut self.zab else { return };
            if let Some((pending, Answer { zxid, what })) = member.forward.next_answered(session) {
                let Pending { client, xid, .. } = pending;
                let zxid = zxid.max(last);
                last = zxid;
                match what {
                    Answered::Body(err, body) => {
                        self.gathered.answer(client, xid, zxid, err, |out| {
                            out.extend_from_slice(&body);
                        });
                    }
                    Answered::Closed => {
                        let body = Default::default();
                        let outcome = Outcome::Answer { xid, err: Code::Ok, body, close: true };
                        self.gathered.reply(client, zxid, outcome);
                    }
                    Answered::Dropped => self.gathered.reply(client, zxid, Outcome::Dropped),
                }
            } else if let Some((client, request)) = member.forward.next_local(session) {
                let (request, body) = *request;
                self.on_ephemerals(client, &request, &body);
            } else {
                return;
            }
        }
    }

    /// A client without a session gets one from the leader.
    pub(super) fn forward_open(
        &mut self,
        client: Client,
        session: SessionId,
        timeout_ms: i32,
        out: &mut Output,
    ) {
        let Agreement::Member(member) = &mut self.zab else { return };
        member.forward.opening.insert(session, client);
        member.ask_to_open(session, timeout_ms, out);
    }

    /// A session that only this server knew is to be everybody's. What it asks for goes to the leader
    /// right behind.
    pub(super) fn forward_upgrade(
        &mut self,
        session: SessionId,
        timeout_ms: i32,
        out: &mut Output,
    ) {
        let Agreement::Member(member) = &mut self.zab else { return };
        member.forward.upgrading.insert(session);
        member.ask_to_open(session, timeout_ms, out);
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
    pub(super) fn on_leader_packet(&mut self, now: Now, packet: FromLeader<'_>) {
        let Agreement::Member(member) = &mut self.zab else { return };
        match packet {
            FromLeader::Sync => {
                let Some((session, number)) = member.forward.syncs.pop_front() else { return };
                let proposed = member.proposed;
                if let Some(queue) = member.forward.pending.get_mut(&session) {
                    resolve_sync(queue, number, proposed);
                }
                self.answer_in_order(session);
            }
            FromLeader::Revalidate { session, valid, .. } => {
                let Some(queue) = member.forward.returning.get_mut(&session) else { return };
                let returning = queue.pop_front();
                if queue.is_empty() {
                    member.forward.returning.remove(&session);
                }
                let Some(Returning { client, timeout_ms }) = returning else { return };
                if valid {
                    member.forward.disconnect(session);
                    let before = self.tracker.owner(session).unwrap_or(Owner::Nobody);
                    let owner = Owner::Client(client);
                    self.tracker.insert(now, session, timeout_ms, Scope::Global, owner);
                    self.resumed(client, session, timeout_ms, Some(before));
                } else {
                    self.resumed(client, session, timeout_ms, None);
                }
            }
            _ => {}
        }
    }
}

/// The leader has answered a sync. Its place in history is before that of the requests behind it,
/// some of which may have become transactions already.
fn resolve_sync(queue: &mut VecDeque<Pending>, number: u64, proposed: Zxid) {
    let is_it =
        |pending: &Pending| matches!(pending.what, What::Sync { number: its, .. } if its == number);
    let Some(place) = queue.iter().position(is_it) else { return };
    // What is answered here is no transaction, and has no place of its own.
    let mut writes =
        queue.iter().skip(place + 1).filter(|pending| matches!(pending.what, What::Write { .. }));
    let later = writes.find_map(|pending| pending.answer.as_ref());
    let zxid = later.map_or(proposed, |answer| Zxid(answer.zxid.0 - 1));
    let What::Sync { path, .. } = &queue[place].what else { return };
    let mut body = Vec::new();
    PathOnly { path: path.as_deref().map(Into::into) }.write(&mut body);
    queue[place].answer = Some(Answer { zxid, what: Answered::Body(Code::Ok, body) });
}

/// Who asked, as requests carry it.
pub(super) fn identities(authinfo: AuthInfo<'_>) -> Arc<[Id]> {
    let text = |text: &Text<'_>| text.as_deref().unwrap_or_default().to_owned();
    let ids = authinfo.decode().unwrap_or_default();
    ids.iter().map(|id| Id { scheme: text(&id.scheme), id: text(&id.id) }).collect()
}
