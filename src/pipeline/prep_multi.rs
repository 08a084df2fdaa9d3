//! A multi: all or nothing.
//!
//! Each operation is checked and done in its turn, so that it sees what those before it did. If
//! one fails, what was done is undone, and the record in the log says which one and why: those
//! before it as they were, an error for it, and -2 for those after it. Nothing of such a record
//! is applied.

use std::cmp::Ordering;

use super::prep::{Create, FIXED_BYTES_MAX, Prep, Scratch, decode};
use super::{Asker, AuditResult, Pipeline, audit, whole, write_result};
use crate::exchange::Request;
use crate::jute::Reader;
use crate::jute::Write as _;
use crate::jute::record::Record as _;
use crate::record::code::Code;
use crate::record::op::{CreateMode, code};
use crate::record::proto::{MULTI_END, MultiHeader, PathVersion, SetDataRequest};
use crate::record::txn::{CreateKind, Txn, TxnHeader};
use crate::tree::TreeWriter;
use crate::types::{Now, Zxid};

use super::Output;
use crate::exchange::Outcome;

/// An operation that failed, in the record.
const ERROR_BYTES: usize = 12;

/// One operation of a multi, as it was asked for.
#[derive(Clone, Debug)]
enum Operation<'a> {
    Create(Create<'a>),
    Delete(PathVersion<'a>),
    SetData(SetDataRequest<'a>),
    Check(PathVersion<'a>),
}

impl<'a> Operation<'a> {
    fn read(kind: i32, body: &mut Reader<'a>) -> Result<Operation<'a>, Code> {
        Ok(match kind {
            code::CREATE | code::CREATE2 | code::CREATE_CONTAINER | code::CREATE_TTL => {
                let create = Create::read(kind, body)?;
                if create.path.is_none() {
                    return Err(Code::MarshallingError);
                }
                Operation::Create(normalized(create)?)
            }
            code::DELETE => {
                let delete: PathVersion<'a> = decode(body)?;
                if delete.path.is_none() {
                    return Err(Code::MarshallingError);
                }
                Operation::Delete(delete)
            }
            code::SET_DATA => Operation::SetData(decode(body)?),
            code::CHECK => Operation::Check(decode(body)?),
            _ => return Err(Code::MarshallingError),
        })
    }

    fn path(&self) -> &str {
        match self {
            Operation::Create(create) => create.path.as_deref(),
            Operation::Delete(of) | Operation::Check(of) => of.path.as_deref(),
            Operation::SetData(set) => set.path.as_deref(),
        }
        .unwrap_or_default()
    }

    fn audited(&self) -> Option<audit::Entry> {
        let operation = match self {
            Operation::Create(create) => return Some(audit::created(create)),
            Operation::Delete(_) => "delete",
            Operation::SetData(_) => "setData",
            Operation::Check(_) => return None,
        };
        let znode = Some(self.path().to_owned());
        Some(audit::Entry { operation, znode, ..audit::Entry::default() })
    }

    fn is_ttl(&self) -> bool {
        matches!(self, Operation::Create(create) if create.op == code::CREATE_TTL)
    }

    /// The type of the result: what asks for a stat is answered as create2.
    fn result_kind(&self) -> i32 {
        match self {
            Operation::Create(create) => match create.op {
                code::CREATE => code::CREATE,
                _ => code::CREATE2,
            },
            Operation::Delete(_) => code::DELETE,
            Operation::SetData(_) => code::SET_DATA,
            Operation::Check(_) => code::CHECK,
        }
    }
}

/// In a multi the flags can change which operation a create is (`MultiOperationRecord`, `Op`).
fn normalized(create: Create<'_>) -> Result<Create<'_>, Code> {
    let mode = CreateMode::from_flags(create.flags);
    let op = match (create.op, mode) {
        // Answered for this operation alone.
        (code::CREATE_TTL, None) => code::CREATE_TTL,
        (code::CREATE_TTL, Some(mode)) if mode.is_ttl() => code::CREATE_TTL,
        (code::CREATE_TTL, Some(CreateMode::Container)) => code::CREATE_CONTAINER,
        (code::CREATE_TTL, Some(_)) => code::CREATE,
        (_, None) => return Err(Code::MarshallingError),
        (_, Some(mode)) if mode.is_ttl() => return Err(Code::MarshallingError),
        (_, Some(CreateMode::Container)) => code::CREATE_CONTAINER,
        (op, Some(_)) => op,
    };
    let ttl = if op == code::CREATE_TTL { create.ttl } else { -1 };
    Ok(Create { op, ttl, ..create })
}

/// Whether all operations of a multi can be read.
pub(super) fn is_readable(body: &[u8]) -> bool {
    read_operations(&mut whole(body)).is_ok()
}

fn read_operations<'a>(body: &mut Reader<'a>) -> Result<Vec<Operation<'a>>, Code> {
    let mut operations = Vec::new();
    loop {
        let header: MultiHeader = decode(body)?;
        if header.done {
            return Ok(operations);
        }
        operations.push(Operation::read(header.kind, body)?);
    }
}

impl Prep<'_> {
    fn operation<'s>(
        &self,
        operation: Operation<'s>,
        scratch: &'s mut Scratch,
    ) -> Result<Txn<'s>, Code> {
        match operation {
            Operation::Create(create) => self.create(create, scratch),
            Operation::Delete(delete) => self.delete(delete),
            Operation::SetData(set) => self.set_data(set),
            Operation::Check(check) => self.check(check),
        }
    }
}

impl Pipeline {
    pub(super) fn on_multi(
        &mut self,
        now: Now,
        asker: Asker,
        request: &Request,
        body: &[u8],
        out: &mut Output,
    ) {
        let Ok(operations) = read_operations(&mut whole(body)) else {
            self.malformed_of(now, asker, request, out);
            return;
        };
        let header = self.header(now, request.session, request.xid.0, code::MULTI);
        let zxid = Zxid(header.zxid);
        let mark = (self.tree.mark(), self.gathered.mark());
        let (mut record, mut results) = (Vec::new(), Vec::new());
        record.put_count(Some(operations.len()));
        let mut failed = None;
        let mut audited = Vec::new();
        let refuses_ephemerals = self.refuses_ephemerals(asker, request.session);
        for (at, operation) in operations.iter().enumerate() {
            let done = self.operation(
                &header,
                request,
                refuses_ephemerals,
                operation.clone(),
                &mut record,
                &mut results,
                &mut audited,
            );
            match done {
                Ok(()) => {}
                Err(err) => {
                    failed = Some((at, err));
                    break;
                }
            }
        }
        match failed {
            None => {
                let ttls = operations.iter().filter(|operation| operation.is_ttl()).count();
                self.counts.ttl_created += ttls as u64;
                MULTI_END.write(&mut results);
            }
            Some((failing, err)) => {
                #[cfg(feature = "mutants")]
                let keeps = self.settings.mutant == Some(super::Mutant::MultiAppliedPartly);
                #[cfg(not(feature = "mutants"))]
                let keeps = false;
                if !keeps {
                    self.tree.undo_to(mark.0);
                    self.gathered.truncate(mark.1);
                }
                if err == Code::QuotaExceeded {
                    self.counts.exceeded(operations[failing].path());
                }
                results.clear();
                let errors = (operations.len() - failing) * ERROR_BYTES;
                let mut failing_in_record = failing;
                if self.settings.record_bytes_max < FIXED_BYTES_MAX + record.len() + errors {
                    // Too long to say what those before would have done: none of it is applied.
                    record.clear();
                    record.put_count(Some(operations.len()));
                    failing_in_record = 0;
                }
                for at in failing_in_record..operations.len() {
                    let err = err_at(at, failing, err).number();
                    put_operation(&mut record, &Txn::Error { err });
                }
                put_failures(&mut results, operations.len(), failing, err);
            }
        }
        let is_done = failed.is_none();
        if !is_done {
            audited = vec![audit::MULTI_FAILED];
        }
        let result = if is_done { AuditResult::Success } else { AuditResult::Failure };
        if let Asker::Client(_) = asker {
            self.audit(zxid, request, audited, result);
        }
        self.log(now, &header, true, |out| out.extend_from_slice(&record), out);
        if let Asker::Client(client) = asker {
            let body = self.gathered.body(|out| out.extend_from_slice(&results));
            let outcome = Outcome::Answer { xid: request.xid, err: Code::Ok, body, close: false };
            self.gathered.reply(client, zxid, outcome);
        }
    }

    /// Checks one operation and does it; its record and its result are appended.
    #[expect(clippy::too_many_arguments, reason = "what one operation shares with the others")]
    fn operation(
        &mut self,
        header: &TxnHeader,
        request: &Request,
        refuses_ephemerals: Option<Code>,
        operation: Operation<'_>,
        record: &mut Vec<u8>,
        results: &mut Vec<u8>,
        audited: &mut Vec<audit::Entry>,
    ) -> Result<(), Code> {
        let entry = self.audit.as_ref().and_then(|_| operation.audited());
        let mut scratch = std::mem::take(&mut self.scratch);
        let kind = operation.result_kind();
        let prep = self.prep(&request.ids, refuses_ephemerals);
        let txn = prep.operation(operation, &mut scratch);
        let done = txn.and_then(|txn| prep.fits(record.len(), txn)).map(|txn| {
            self.tree.apply(header, &txn, &mut self.gathered.changes(Zxid(header.zxid)));
            put_operation(record, &logged(&txn));
            audited.extend(entry.map(|entry| entry.done(&txn)));
            MultiHeader { kind, done: false, err: 0 }.write(results);
            write_result(results, kind, &txn, &self.tree);
        });
        self.scratch = scratch;
        done
    }
}

/// What an operation of a multi comes to, of which the one at `failing` fails with `err`.
fn err_at(at: usize, failing: usize, err: Code) -> Code {
    match at.cmp(&failing) {
        Ordering::Less => Code::Ok,
        Ordering::Equal => err,
        Ordering::Greater => Code::RuntimeInconsistency,
    }
}

/// What a multi of a session that is over comes to: it is the first operation that fails by that
/// (`PrepRequestProcessor.pRequest2Txn`), so that one without any succeeds.
pub(super) fn of_nobody(body: &[u8]) -> (Code, Vec<u8>) {
    let Ok(operations) = read_operations(&mut whole(body)) else {
        return (Code::MarshallingError, Vec::new());
    };
    let mut results = Vec::new();
    put_failures(&mut results, operations.len(), 0, Code::SessionExpired);
    (Code::Ok, results)
}

/// The results of a multi of `count` operations that fails.
fn put_failures(results: &mut Vec<u8>, count: usize, failing: usize, err: Code) {
    put_failures_of(results, count, failing, err.number());
}

/// The same, where a leader has told the error.
pub(super) fn put_failures_of(results: &mut Vec<u8>, count: usize, failing: usize, err: i32) {
    for at in 0..count {
        let err = match at.cmp(&failing) {
            Ordering::Less => Code::Ok.number(),
            Ordering::Equal => err,
            Ordering::Greater => Code::RuntimeInconsistency.number(),
        };
        MultiHeader { kind: code::ERROR, done: false, err }.write(results);
        results.put_i32(err);
    }
    MULTI_END.write(results);
}

/// What is told of an operation that a leader has ordered, now that it is applied. A create2 is
/// logged as a create by some leaders, and the request is what tells them apart.
pub(super) fn put_result(results: &mut Vec<u8>, kind: i32, txn: &Txn<'_>, tree: &TreeWriter) {
    MultiHeader { kind, done: false, err: 0 }.write(results);
    write_result(results, kind, txn, tree);
}

pub(super) fn put_end(results: &mut Vec<u8>) {
    MULTI_END.write(results);
}

/// The kinds of the results that a multi asks for.
pub(super) fn result_kinds(body: &[u8]) -> Vec<i32> {
    let operations = read_operations(&mut whole(body)).unwrap_or_default();
    operations.iter().map(Operation::result_kind).collect()
}

/// Whether a multi makes an ephemeral znode.
pub(super) fn makes_ephemeral(body: &[u8]) -> bool {
    let operations = read_operations(&mut whole(body)).unwrap_or_default();
    let mut creates = operations.iter().filter_map(|operation| match operation {
        Operation::Create(create) => Some(create),
        Operation::Delete(_) | Operation::SetData(_) | Operation::Check(_) => None,
    });
    creates.any(Create::is_ephemeral)
}

/// What a multi would have the audit log say, if all of it is done.
pub(super) fn audited(body: &[u8]) -> Vec<audit::Entry> {
    let operations = read_operations(&mut whole(body)).unwrap_or_default();
    operations.iter().filter_map(Operation::audited).collect()
}

/// A create2 in a multi is logged as a create: ZooKeeper 3.8 would pass over what follows it.
fn logged<'a>(txn: &Txn<'a>) -> Txn<'a> {
    match txn.clone() {
        Txn::Create {
            kind: CreateKind::Node { create2: true, ephemeral },
            path,
            data,
            acl,
            parent_cversion,
        } => Txn::Create {
            kind: CreateKind::Node { create2: false, ephemeral },
            path,
            data,
            acl,
            parent_cversion,
        },
        txn => txn,
    }
}

fn put_operation(record: &mut Vec<u8>, txn: &Txn<'_>) {
    record.put_i32(txn.kind());
    let start = record.len();
    record.put_i32(0);
    txn.write(record);
    let length = i32::try_from(record.len() - start - 4).expect("below 2 GiB");
    record[start..start + 4].copy_from_slice(&length.to_be_bytes());
}
