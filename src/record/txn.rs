//! `org.apache.zookeeper.txn`: what a log record holds.
//!
//! ```text
//! payload   = TxnHeader body [TxnDigest]
//! TxnHeader = long clientId, int cxid, long zxid, long time, int type
//! TxnDigest = int version, long treeDigest
//! ```

use std::borrow::Cow;

use crate::jute::record::{Buffer, Record, record};
use crate::jute::{Malformed, Reader, Write as _};

use super::data::AclBytes;
use super::op::code;

record! {
    #[derive(Copy)]
    pub struct TxnHeader {
        client_id: i64,
        cxid: i32,
        zxid: i64,
        /// Milliseconds since 1970, by the leader's clock.
        time: i64,
        kind: i32,
    }

    /// The tree's digest after the transaction.
    #[derive(Copy)]
    pub struct TxnDigest { version: i32, tree_digest: i64 }
}

pub const TXN_DIGEST_BYTES: usize = 12;
pub const DIGEST_VERSION: i32 = 2;

/// Which of ZooKeeper's four ways of creating a znode a transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateKind {
    /// create (1) and create2 (15) have one body.
    Node {
        create2: bool,
        ephemeral: bool,
    },
    Container,
    /// Milliseconds.
    Ttl(i64),
}

/// The body of a transaction. Paths are never null here: a record with one is malformed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Txn<'a> {
    CreateSession {
        timeout_ms: i32,
    },
    /// The ephemerals to delete; `None` where the writer did not list them.
    CloseSession {
        paths: Option<Vec<Cow<'a, str>>>,
    },
    Error {
        err: i32,
    },
    Create {
        kind: CreateKind,
        path: Cow<'a, str>,
        data: Buffer<'a>,
        acl: AclBytes<'a>,
        /// The parent's cversion after this create; -1 where the writer did not know it.
        parent_cversion: i32,
    },
    Delete {
        path: Cow<'a, str>,
    },
    DeleteContainer {
        path: Cow<'a, str>,
    },
    /// `version` is the one that results.
    SetData {
        path: Cow<'a, str>,
        data: Buffer<'a>,
        version: i32,
    },
    Reconfig {
        path: Cow<'a, str>,
        data: Buffer<'a>,
        version: i32,
    },
    SetAcl {
        path: Cow<'a, str>,
        acl: AclBytes<'a>,
        version: i32,
    },
    /// Only inside a multi.
    Check {
        path: Cow<'a, str>,
        version: i32,
    },
    Multi(Vec<Txn<'a>>),
}

impl<'a> Txn<'a> {
    /// The number that names this transaction in a header.
    #[must_use]
    pub fn kind(&self) -> i32 {
        match self {
            Txn::CreateSession { .. } => code::CREATE_SESSION,
            Txn::CloseSession { .. } => code::CLOSE_SESSION,
            Txn::Error { .. } => code::ERROR,
            Txn::Create { kind: CreateKind::Node { create2: false, .. }, .. } => code::CREATE,
            Txn::Create { kind: CreateKind::Node { create2: true, .. }, .. } => code::CREATE2,
            Txn::Create { kind: CreateKind::Container, .. } => code::CREATE_CONTAINER,
            Txn::Create { kind: CreateKind::Ttl(_), .. } => code::CREATE_TTL,
            Txn::Delete { .. } => code::DELETE,
            Txn::DeleteContainer { .. } => code::DELETE_CONTAINER,
            Txn::SetData { .. } => code::SET_DATA,
            Txn::Reconfig { .. } => code::RECONFIG,
            Txn::SetAcl { .. } => code::SET_ACL,
            Txn::Check { .. } => code::CHECK,
            Txn::Multi(_) => code::MULTI,
        }
    }

    /// Reads a body of `kind`. What is left in `reader` afterwards is the digest, if any.
    pub fn read(kind: i32, reader: &mut Reader<'a>) -> Result<Txn<'a>, Malformed> {
        Ok(match kind {
            code::CREATE_SESSION => Txn::CreateSession { timeout_ms: reader.i32()? },
            code::CLOSE_SESSION => Txn::CloseSession { paths: read_paths_to_delete(reader)? },
            code::ERROR => Txn::Error { err: reader.i32()? },
            code::CREATE | code::CREATE2 => {
                let (path, data, acl) = read_created(reader)?;
                let ephemeral = reader.bool()?;
                let kind = CreateKind::Node { create2: kind == code::CREATE2, ephemeral };
                // CreateTxnV0, from before 3.4, ends here.
                let parent_cversion = if reader.is_empty() { -1 } else { reader.i32()? };
                Txn::Create { kind, path, data, acl, parent_cversion }
            }
            code::CREATE_CONTAINER => {
                let (path, data, acl) = read_created(reader)?;
                let parent_cversion = reader.i32()?;
                Txn::Create { kind: CreateKind::Container, path, data, acl, parent_cversion }
            }
            code::CREATE_TTL => {
                let (path, data, acl) = read_created(reader)?;
                let parent_cversion = reader.i32()?;
                let kind = CreateKind::Ttl(reader.i64()?);
                Txn::Create { kind, path, data, acl, parent_cversion }
            }
            code::DELETE => Txn::Delete { path: read_path(reader)? },
            code::DELETE_CONTAINER => Txn::DeleteContainer { path: read_path(reader)? },
            code::SET_DATA => Txn::SetData {
                path: read_path(reader)?,
                data: reader.buffer()?,
                version: reader.i32()?,
            },
            code::RECONFIG => Txn::Reconfig {
                path: read_path(reader)?,
                data: reader.buffer()?,
                version: reader.i32()?,
            },
            code::SET_ACL => Txn::SetAcl {
                path: read_path(reader)?,
                acl: AclBytes::read(reader)?,
                version: reader.i32()?,
            },
            code::CHECK => Txn::Check { path: read_path(reader)?, version: reader.i32()? },
            code::MULTI => {
                let mut txns = Vec::new();
                for _ in 0..reader.count()?.unwrap_or(0) {
                    let kind = reader.i32()?;
                    if matches!(kind, code::MULTI | code::CREATE_SESSION | code::CLOSE_SESSION) {
                        return Err(reader.malformed("kind of transaction in a multi"));
                    }
                    let body = reader.buffer()?.unwrap_or_default();
                    // As long as the buffer that it lies in may be.
                    let mut body = Reader::with_field_bytes_max(body, body.len());
                    txns.push(Txn::read(kind, &mut body)?);
                }
                Txn::Multi(txns)
            }
            _ => return Err(reader.malformed("kind of transaction")),
        })
    }

    /// Writes the body alone.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Txn::CreateSession { timeout_ms } => out.put_i32(*timeout_ms),
            Txn::CloseSession { paths } => {
                if let Some(paths) = paths {
                    out.put_count(Some(paths.len()));
                    for path in paths {
                        out.put_text(path);
                    }
                }
            }
            Txn::Error { err } => out.put_i32(*err),
            Txn::Create { kind, path, data, acl, parent_cversion } => {
                out.put_text(path);
                out.put_buffer(*data);
                acl.write(out);
                match kind {
                    CreateKind::Node { ephemeral, .. } => {
                        out.put_bool(*ephemeral);
                        out.put_i32(*parent_cversion);
                    }
                    CreateKind::Container => out.put_i32(*parent_cversion),
                    CreateKind::Ttl(ttl) => {
                        out.put_i32(*parent_cversion);
                        out.put_i64(*ttl);
                    }
                }
            }
            Txn::Delete { path } | Txn::DeleteContainer { path } => out.put_text(path),
            Txn::SetData { path, data, version } | Txn::Reconfig { path, data, version } => {
                out.put_text(path);
                out.put_buffer(*data);
                out.put_i32(*version);
            }
            Txn::SetAcl { path, acl, version } => {
                out.put_text(path);
                acl.write(out);
                out.put_i32(*version);
            }
            Txn::Check { path, version } => {
                out.put_text(path);
                out.put_i32(*version);
            }
            Txn::Multi(txns) => {
                out.put_count(Some(txns.len()));
                for txn in txns {
                    out.put_i32(txn.kind());
                    let start = out.len();
                    out.put_i32(0);
                    txn.write(out);
                    let length = i32::try_from(out.len() - start - 4).expect("below 2 GiB");
                    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
                }
            }
        }
    }
}

fn read_path<'a>(reader: &mut Reader<'a>) -> Result<Cow<'a, str>, Malformed> {
    let offset = reader.offset();
    reader.text()?.ok_or(Malformed { offset, what: "path" })
}

type Created<'a> = (Cow<'a, str>, Buffer<'a>, AclBytes<'a>);

fn read_created<'a>(reader: &mut Reader<'a>) -> Result<Created<'a>, Malformed> {
    Ok((read_path(reader)?, reader.buffer()?, AclBytes::read(reader)?))
}

/// A closeSession may have no body, and then a digest follows at once: its twelve bytes begin
/// with version 2, and a list of two empty paths cannot be.
fn read_paths_to_delete<'a>(
    reader: &mut Reader<'a>,
) -> Result<Option<Vec<Cow<'a, str>>>, Malformed> {
    let rest = reader.rest();
    let is_digest = rest.len() == TXN_DIGEST_BYTES && rest.starts_with(&[0, 0, 0, 2]);
    if rest.is_empty() || is_digest {
        return Ok(None);
    }
    let mut paths = Vec::new();
    for _ in 0..reader.count()?.unwrap_or(0) {
        paths.push(read_path(reader)?);
    }
    Ok(Some(paths))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_without_a_list_is_told_from_one_by_its_digest() {
        let mut bytes = Vec::new();
        TxnDigest { version: DIGEST_VERSION, tree_digest: 7 }.write(&mut bytes);
        let mut reader = Reader::new(&bytes);
        let txn = Txn::read(code::CLOSE_SESSION, &mut reader);
        assert_eq!(txn, Ok(Txn::CloseSession { paths: None }));
        assert_eq!(reader.rest().len(), TXN_DIGEST_BYTES);
    }

    #[test]
    fn a_multi_round_trips() {
        let txn = Txn::Multi(vec![
            Txn::Create {
                kind: CreateKind::Ttl(60_000),
                path: "/a".into(),
                data: None,
                acl: AclBytes::OPEN,
                parent_cversion: 3,
            },
            Txn::Check { path: "/a".into(), version: 1 },
            Txn::Error { err: -101 },
        ]);
        let mut bytes = Vec::new();
        txn.write(&mut bytes);
        let mut reader = Reader::new(&bytes);
        assert_eq!(Txn::read(txn.kind(), &mut reader), Ok(txn));
        assert!(reader.is_empty());
    }
}
