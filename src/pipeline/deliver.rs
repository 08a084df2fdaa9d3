//! What a leader has ordered is applied here: unseen until it is committed, and before it is
//! acknowledged, so that a tree that differs from the leader's is found in time.
//!
//! The answer to a client of this server is made from the transaction. It is what the leader would
//! answer to a client of its own.

use super::member::Agreement;
use super::tracker::Owner;
use super::{AuditResult, Output, Pipeline, Restored, password, prep_multi, write_result};
use crate::exchange::Outcome;
use crate::record::code::Code;
use crate::record::op::code;
use crate::record::txn::{DIGEST_VERSION, Txn, TxnHeader};
use crate::storage::replay::read_payload;
use crate::types::{Now, SessionId, Zxid};
use crate::zab::proposals::Proposal;

use super::forward::Pending;
use super::restore::{Mismatch, possible};

/// Why a transaction of a leader cannot be applied here. Nothing of it is logged or acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum Undeliverable {
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
    /// From the transaction after this one on; `None`: until a digest says so.
    after: Option<Zxid>,
}

impl Certainty {
    pub(super) fn of(restored: &Restored) -> Certainty {
        Certainty { after: restored.certain_after }
    }

    pub(super) fn holds_after(self, zxid: Zxid) -> bool {
        self.after.is_some_and(|after| after <= zxid)
    }
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
        let asked = match &mut self.zab {
            Agreement::Member(member) => member.forward.take(session, header.cxid),
            Agreement::Alone(_) => None,
        };
        let mut results = Vec::new();
        match (&asked, &txn) {
            (Some(asked), Txn::Multi(parts)) => {
                self.apply_multi(&header, parts, &asked.kinds, &mut results);
            }
            _ => {
                self.tree.apply(&header, &txn, &mut self.gathered.changes(zxid));
            }
        }
        let Agreement::Member(member) = &mut self.zab else { unreachable!("a member delivers") };
        let is_certain = member.certainty.holds_after(Zxid(zxid.0 - 1));
        let irregular = self.tree.take_irregular();
        if let Some(irregular) = irregular.filter(|_| is_certain) {
            return Err(impossible(irregular.to_string()));
        }
        if let Some(digest) = digest.filter(|digest| digest.version == DIGEST_VERSION)
            && self.settings.tree.digest
        {
            let (expected, found) = (digest.tree_digest as u64, self.tree.digest());
            if expected == found {
                member.certainty.after = Some(member.certainty.after.map_or(zxid, |a| a.min(zxid)));
            } else if is_certain && !self.beyond_ascii(&txn) {
                return Err(Undeliverable::Digest(Mismatch { zxid, expected, found }));
            }
        }
        self.log_payload(&proposal.payload, zxid, out);
        if let Some(asked) = &asked {
            self.audit_pending(zxid, asked, &txn);
        }
        match &txn {
            Txn::CreateSession { timeout_ms } => self.opened(now, zxid, session, *timeout_ms),
            Txn::CloseSession { .. } => self.closed(zxid, session, asked),
            txn => {
                if let Some(asked) = asked {
                    self.answer_delivered(zxid, &asked, txn, &results);
                }
            }
        }
        self.seal_open();
        Ok(())
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
        self.tracker.insert(now, session, timeout_ms, owner);
        member.heard(std::iter::once(session), &self.tracker);
        self.gathered.session_opened(zxid, session, timeout_ms);
        if let Some(client) = client {
            let outcome = Outcome::Connected { session, timeout_ms, password: password(session) };
            self.gathered.reply(client, zxid, outcome);
        }
    }

    fn closed(&mut self, zxid: Zxid, session: SessionId, asked: Option<Pending>) {
        if let Agreement::Member(member) = &mut self.zab {
            member.forward.forget(session);
        }
        let owner = self.tracker.close(session);
        self.gathered.session_closed(zxid, session);
        let asked = asked.filter(|asked| asked.op == code::CLOSE_SESSION);
        if let Some(Pending { client, xid, .. }) = asked {
            let body = Default::default();
            let outcome = Outcome::Answer { xid, err: Code::Ok, body, close: true };
            self.gathered.reply(client, zxid, outcome);
        } else if let Some(client) = owner.and_then(Owner::client) {
            self.gathered.reply(client, zxid, Outcome::Dropped);
        }
    }

    fn answer_delivered(&mut self, zxid: Zxid, asked: &Pending, txn: &Txn<'_>, results: &[u8]) {
        let Pending { client, xid, op, .. } = *asked;
        match txn {
            Txn::Error { err } if *err == Code::SessionMoved.number() => {
                self.gathered.reply(client, zxid, Outcome::Dropped);
            }
            Txn::Error { err } => {
                let err = Code::from_number(*err).unwrap_or(Code::RuntimeInconsistency);
                self.gathered.answer(client, xid, zxid, err, |_| ());
            }
            Txn::Multi(_) => {
                self.gathered.answer(client, xid, zxid, Code::Ok, |out| {
                    out.extend_from_slice(results);
                });
            }
            txn => {
                let tree = &self.tree;
                self.gathered.answer(client, xid, zxid, Code::Ok, |out| {
                    write_result(out, op, txn, tree);
                });
            }
        }
    }

    fn audit_pending(&mut self, zxid: Zxid, asked: &Pending, txn: &Txn<'_>) {
        let (Some(audit), Some(audited)) = (&mut self.audit, &asked.audited) else { return };
        let (request, entries) = &**audited;
        let multi_failed =
            matches!(txn, Txn::Multi(parts) if parts.iter().any(|part| failed(part).is_some()));
        let result = match txn {
            Txn::Error { .. } => AuditResult::Failure,
            _ if multi_failed => AuditResult::Failure,
            _ => AuditResult::Success,
        };
        let failed_multi = [super::audit::MULTI_FAILED];
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
