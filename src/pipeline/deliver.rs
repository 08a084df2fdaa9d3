//! What a leader has ordered is applied here: unseen until it is committed, and before it is
//! acknowledged, so that a tree that differs from the leader's is found in time.
//!
//! The answer to a client of this server is made from the transaction. It is what the leader would
//! answer to a client of its own.

use super::member::Agreement;
use super::tracker::{Owner, Scope};
use super::{AuditResult, Output, Pipeline, Restored, password, prep_multi, write_result};
use crate::exchange::{Outcome, Request};
use crate::record::code::Code;
use crate::record::op::code;
use crate::record::txn::{DIGEST_VERSION, Txn, TxnDigest, TxnHeader};
use crate::storage::replay::read_payload;
use crate::types::{Now, SessionId, Zxid};
use crate::zab::proposals::Proposal;

#[cfg(feature = "mutants")]
use super::Mutant;
use super::audit;
use super::forward::{Answer, Answered, What};
use super::restore::{Mismatch, possible};

/// Why a transaction of a leader cannot be applied here. Nothing of it is logged or acknowledged.
#[derive(Debug, thiserror::Error)]
pub(super) enum Undeliverable {
    #[error("transaction {zxid} of the leader cannot be read: {cause}")]
    Unreadable { zxid: Zxid, cause: String },
    #[error("transaction {zxid} of the leader {what}")]
    Impossible { zxid: Zxid, what: String },
    #[error("{0}")]
    Digest(Mismatch),
}

/// Whether this server's tree is certainly the one that its leader had. A fuzzy snapshot shows some
/// of what comes after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Certainty {
    /// From the transaction after this one on; `None`: until a digest or a leader says so.
    after: Option<Zxid>,
    /// It has differed: a digest alone can say that it is right again.
    is_lost: bool,
}

impl Certainty {
    pub(super) fn of(restored: &Restored) -> Certainty {
        Certainty { after: restored.certain_after, is_lost: false }
    }

    /// The leader has proposed nothing beyond this yet. A snapshot that has come from a server cannot
    /// show more than was proposed when it came, so that the tree is certain from there on, also
    /// where no digest ever comes.
    pub(super) fn on_proposed_by_leader(&mut self, zxid: Zxid) {
        if !self.is_lost && self.after.is_none() {
            self.after = Some(zxid);
        }
    }

    pub(super) fn holds_after(self, zxid: Zxid) -> bool {
        self.after.is_some_and(|after| after <= zxid)
    }
}

/// For so long, a tree that differs once more is counted and no more, as ZooKeeper does.
const DISTRUST_AGAIN_MS: i64 = 600_000;

/// What is left of a request of this server's client once its transaction has come.
struct Asked {
    op: i32,
    kinds: Vec<i32>,
    is_local_ephemeral: bool,
    audited: Option<Box<(Request, Vec<audit::Entry>)>>,
}

impl Pipeline {
    /// Applies and logs the next transaction of the history.
    pub(super) fn deliver(
        &mut self,
        now: Now,
        proposal: &Proposal,
        out: &mut Output,
    ) -> Result<(), Undeliverable> {
        let zxid = proposal.zxid;
        let read = read_payload(&proposal.payload);
        let (header, txn, digest) =
            read.map_err(|cause| Undeliverable::Unreadable { zxid, cause: cause.to_string() })?;
        let impossible = |what: String| Undeliverable::Impossible { zxid, what };
        possible(&header, &txn).map_err(|what| impossible(what.to_string()))?;
        let session = SessionId(header.client_id);
        // The opening of a session is the answer to no request of the session's, whatever its cxid.
        let asked = match txn {
            Txn::CreateSession { .. } => None,
            _ => self.take_asked_of(session, header.cxid),
        };
        self.end_broken(zxid);
        let mark = (self.tree.mark(), self.gathered.mark());
        let mut results = Vec::new();
        match (&asked, &txn) {
            (Some(asked), Txn::Multi(parts)) => {
                self.apply_multi(&header, parts, &asked.kinds, &mut results);
            }
            _ => {
                self.tree.apply(&header, &txn, &mut self.gathered.changes(zxid));
            }
        }
        if let Err(fault) = self.compare(zxid, &txn, digest) {
            self.counts.digest_mismatches += 1;
            if !self.goes_on_all_the_same(now) {
                self.tree.undo_to(mark.0);
                self.gathered.truncate(mark.1);
                return Err(fault);
            }
            tracing::error!(%fault, "this server's data is not the leader's, again");
        }
        self.log_payload(&proposal.payload, zxid, out);
        if let Some(asked) = &asked {
            self.audit_pending(zxid, asked, &txn);
        }
        match &txn {
            Txn::CreateSession { timeout_ms } => self.opened(now, zxid, session, *timeout_ms),
            Txn::CloseSession { .. } => self.closed(zxid, session, header.cxid, asked),
            txn => {
                if let Some(asked) = asked {
                    let what = self.answered(&asked, txn, results);
                    self.answer_pending(session, header.cxid, Answer { zxid, what });
                }
            }
        }
        self.seal_open();
        Ok(())
    }

    /// Whether a tree that differs is served, because it has differed shortly before: to take
    /// everything anew did not help then, or no leader could send it. Nothing is certain from here on.
    fn goes_on_all_the_same(&mut self, now: Now) -> bool {
        let Agreement::Member(member) = &mut self.zab else { return false };
        let is_again = member
            .distrusted_ms
            .is_some_and(|before_ms| now.monotonic_ms < before_ms + DISTRUST_AGAIN_MS);
        if is_again {
            member.certainty = Certainty { after: None, is_lost: true };
        }
        is_again
    }

    /// Holds what the tree has become against what the leader's became.
    fn compare(
        &mut self,
        zxid: Zxid,
        txn: &Txn<'_>,
        digest: Option<TxnDigest>,
    ) -> Result<(), Undeliverable> {
        let Agreement::Member(member) = &mut self.zab else { unreachable!("a member delivers") };
        let is_certain = member.certainty.holds_after(Zxid(zxid.0 - 1));
        let irregular = self.tree.take_irregular();
        if let Some(irregular) = irregular.filter(|_| is_certain) {
            return Err(Undeliverable::Impossible { zxid, what: irregular.to_string() });
        }
        let digest = digest.filter(|digest| digest.version == DIGEST_VERSION);
        #[cfg(feature = "mutants")]
        let digest = digest.filter(|_| self.settings.mutant != Some(Mutant::DigestNotCompared));
        let Some(digest) = digest.filter(|_| self.settings.tree.digest) else { return Ok(()) };
        let (expected, found) = (digest.tree_digest as u64, self.tree.digest());
        if expected == found {
            let certain = member.certainty.after.map_or(zxid, |after| after.min(zxid));
            member.certainty.after = Some(certain);
        } else if is_certain && !self.beyond_ascii(txn) {
            return Err(Undeliverable::Digest(Mismatch { zxid, expected, found }));
        }
        Ok(())
    }

    /// Ends the connections that would wait for ever.
    fn end_broken(&mut self, zxid: Zxid) {
        let Agreement::Member(member) = &mut self.zab else { return };
        for client in member.forward.take_broken() {
            self.gathered.reply(client, zxid, Outcome::Ended);
        }
    }

    /// What a client of this server asked for, if this transaction is the answer to it.
    fn take_asked_of(&mut self, session: SessionId, cxid: i32) -> Option<Asked> {
        let Agreement::Member(member) = &mut self.zab else { return None };
        match &mut member.forward.find(session, cxid)?.what {
            What::Write { op, kinds, is_local_ephemeral, audited } => Some(Asked {
                op: *op,
                kinds: std::mem::take(kinds),
                is_local_ephemeral: *is_local_ephemeral,
                audited: audited.take(),
            }),
            What::Sync { .. } | What::Ephemerals(_) | What::Answered => None,
        }
    }

    /// The same as the tree does with a multi, and what a client is told of each operation.
    fn apply_multi(
        &mut self,
        header: &TxnHeader,
        parts: &[Txn<'_>],
        kinds: &[i32],
        results: &mut Vec<u8>,
    ) {
        let zxid = Zxid(header.zxid);
        if let Some(place) = parts.iter().position(|part| failed(part).is_some()) {
            let err = failed(&parts[place]).expect("it was just found");
            prep_multi::put_failures_of(results, parts.len(), place, err);
            return;
        }
        for (at, part) in parts.iter().enumerate() {
            self.tree.apply(header, part, &mut self.gathered.changes(zxid));
            let kind = kinds.get(at).copied().unwrap_or(part.kind());
            prep_multi::put_result(results, kind, part, &self.tree);
        }
        prep_multi::put_end(results);
    }

    fn opened(&mut self, now: Now, zxid: Zxid, session: SessionId, timeout_ms: i32) {
        let Agreement::Member(member) = &mut self.zab else { return };
        let client = member.forward.take_opening(session);
        // A client may have moved here before this server knew of its session.
        let owner = client
            .map_or_else(|| self.tracker.owner(session).unwrap_or(Owner::Nobody), Owner::Client);
        self.tracker.insert(now, session, timeout_ms, Scope::Global, owner);
        member.heard(std::iter::once(session), &self.tracker);
        self.gathered.session_opened(zxid, session, timeout_ms);
        if let Some(client) = client {
            let outcome = Outcome::Connected { session, timeout_ms, password: password(session) };
            self.gathered.reply(client, zxid, outcome);
        }
    }

    fn closed(&mut self, zxid: Zxid, session: SessionId, cxid: i32, asked: Option<Asked>) {
        let owner = self.tracker.close(session);
        self.gathered.session_closed(zxid, session);
        if asked.is_some_and(|asked| asked.op == code::CLOSE_SESSION) {
            self.answer_pending(session, cxid, Answer { zxid, what: Answered::Closed });
            return;
        }
        if let Agreement::Member(member) = &mut self.zab {
            member.forward.forget(session);
        }
        if let Some(client) = owner.and_then(Owner::client) {
            self.gathered.reply(client, zxid, Outcome::Ended);
        }
    }

    fn answered(&self, asked: &Asked, txn: &Txn<'_>, results: Vec<u8>) -> Answered {
        match txn {
            // The leader does not know the session, and this server does.
            Txn::Error { err }
                if *err == Code::SessionExpired.number() && asked.is_local_ephemeral =>
            {
                Answered::Body(Code::EphemeralOnLocalSession, Vec::new())
            }
            Txn::Error { err } if *err == Code::SessionMoved.number() => Answered::Dropped,
            Txn::Error { err } => {
                let err = Code::from_number(*err).unwrap_or(Code::RuntimeInconsistency);
                Answered::Body(err, Vec::new())
            }
            Txn::Multi(_) => Answered::Body(Code::Ok, results),
            txn => {
                let mut body = Vec::new();
                write_result(&mut body, asked.op, txn, &self.tree);
                Answered::Body(Code::Ok, body)
            }
        }
    }

    fn audit_pending(&mut self, zxid: Zxid, asked: &Asked, txn: &Txn<'_>) {
        let (Some(audit), Some(audited)) = (&mut self.audit, &asked.audited) else { return };
        let (request, entries) = &**audited;
        let multi_failed =
            matches!(txn, Txn::Multi(parts) if parts.iter().any(|part| failed(part).is_some()));
        let result = match txn {
            Txn::Error { .. } => AuditResult::Failure,
            _ if multi_failed => AuditResult::Failure,
            _ => AuditResult::Success,
        };
        let failed_multi = [audit::MULTI_FAILED];
        let entries = if multi_failed { &failed_multi[..] } else { &entries[..] };
        for entry in entries {
            let entry = match txn {
                Txn::Create { .. } => entry.clone().done(txn),
                _ => entry.clone(),
            };
            audit.request(zxid, request, &self.settings.providers, &entry, result);
        }
    }

    /// Whether digests prove nothing: Java digests such paths by the character set of its process.
    fn beyond_ascii(&mut self, txn: &Txn<'_>) -> bool {
        self.has_paths_beyond_ascii |= super::restore::creates_beyond_ascii(txn);
        self.has_paths_beyond_ascii
    }
}

/// What an operation of a multi that failed failed with.
fn failed(part: &Txn<'_>) -> Option<i32> {
    match part {
        Txn::Error { err } if *err != Code::Ok.number() => Some(*err),
        _ => None,
    }
}
