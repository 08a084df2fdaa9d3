//! The audit log: who changed what, one line for each change that is committed or refused.
//!
//! ```text
//! session=0x1…  user=127.0.0.1,bob  ip=127.0.0.1  operation=create  znode=/a  znode_type=persistent  result=success
//! ```
//!
//! Between tabs, in this order, what there is none of left out. A line goes out with the commit of
//! the transaction that it tells of; a multi has a line for each of its operations, or one for all
//! that were not done. Reads, authentication and the beginnings of sessions have none. Nothing of
//! this costs anything where it is not asked for.
//!
//! After `AuditHelper` and `AuditEvent`.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;

use super::prep::{Create, decode};
use super::whole;
use crate::auth::{Providers, ip};
use crate::exchange::Request;
use crate::record::data::{AclBytes, Id, perms};
use crate::record::op::{CreateMode, code};
use crate::record::proto::{PathVersion, ReconfigRequest, SetAclRequest, SetDataRequest};
use crate::record::txn::Txn;
use crate::types::{SessionId, Zxid};

/// A line for the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audited {
    pub result: AuditResult,
    pub line: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditResult {
    Success,
    Failure,
    /// It begins, and nobody will be there to say how it ended.
    Invoked,
}

impl AuditResult {
    fn text(self) -> &'static str {
        match self {
            AuditResult::Success => "success",
            AuditResult::Failure => "failure",
            AuditResult::Invoked => "invoked",
        }
    }
}

impl Audited {
    /// What the server does as a whole.
    #[must_use]
    pub fn of_server(user: &str, operation: &'static str, result: AuditResult) -> Audited {
        let entry = Entry { operation, ..Entry::default() };
        Audited { result, line: line(None, user, None, &entry, result) }
    }
}

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) operation: &'static str,
    pub(super) znode: Option<String>,
    pub(super) znode_type: Option<&'static str>,
    pub(super) acl: Option<String>,
}

pub(super) const MULTI_FAILED: Entry =
    Entry { operation: "multiOperation", znode: None, znode_type: None, acl: None };

#[derive(Debug)]
pub(super) struct Audit {
    /// Who does what the server does by itself.
    server_user: Arc<str>,
    /// Until they are committed.
    waiting: VecDeque<(Zxid, Audited)>,
}

impl Audit {
    pub(super) fn new(server_user: Arc<str>) -> Audit {
        Audit { server_user, waiting: VecDeque::new() }
    }

    /// A client's request became, or came to nothing at, `zxid`.
    pub(super) fn request(
        &mut self,
        zxid: Zxid,
        request: &Request,
        providers: &Providers,
        entry: &Entry,
        result: AuditResult,
    ) {
        let users: Vec<&str> = request.ids.iter().map(|id| providers.user_name(id)).collect();
        let address = request.ids.iter().find(|id: &&Id| id.scheme == ip::SCHEME);
        let address = address.map(|id| id.id.as_str());
        let line = line(Some(request.session), &users.join(","), address, entry, result);
        self.waiting.push_back((zxid, Audited { result, line }));
    }

    /// The end of a session took this with it.
    pub(super) fn ephemeral(&mut self, zxid: Zxid, session: SessionId, path: &str) {
        let entry = Entry {
            operation: "ephemeralZNodeDeletionOnSessionCloseOrExpire",
            znode: Some(path.to_owned()),
            ..Entry::default()
        };
        let line = line(Some(session), &self.server_user, None, &entry, AuditResult::Success);
        let audited = Audited { result: AuditResult::Success, line };
        self.waiting.push_back((zxid, audited));
    }

    /// What comes after `zxid` is taken back.
    pub(super) fn forget_after(&mut self, zxid: Zxid) {
        while self.waiting.pop_back_if(|(waiting, _)| zxid < *waiting).is_some() {}
    }

    pub(super) fn release(&mut self, committed: Zxid, out: &mut Vec<Audited>) {
        while let Some((_, audited)) = self.waiting.pop_front_if(|(zxid, _)| *zxid <= committed) {
            out.push(audited);
        }
    }
}

/// What a request asks for, if that is audited and can be read.
pub(super) fn asked(op: i32, body: &[u8]) -> Option<Entry> {
    let mut body = whole(body);
    let owned = |path: Option<std::borrow::Cow<'_, str>>| path.map(|path| path.into_owned());
    Some(match op {
        code::CREATE | code::CREATE2 | code::CREATE_CONTAINER | code::CREATE_TTL => {
            created(&Create::read(op, &mut body).ok()?)
        }
        code::DELETE => {
            let PathVersion { path, .. } = decode(&mut body).ok()?;
            Entry { operation: "delete", znode: owned(path), ..Entry::default() }
        }
        code::SET_DATA => {
            let SetDataRequest { path, .. } = decode(&mut body).ok()?;
            Entry { operation: "setData", znode: owned(path), ..Entry::default() }
        }
        code::SET_ACL => {
            let SetAclRequest { path, acl, .. } = decode(&mut body).ok()?;
            let acl = Some(acl_text(acl));
            Entry { operation: "setAcl", znode: owned(path), acl, ..Entry::default() }
        }
        code::RECONFIG => {
            let _: ReconfigRequest<'_> = decode(&mut body).ok()?;
            Entry { operation: "reconfig", ..Entry::default() }
        }
        _ => return None,
    })
}

pub(super) fn created(create: &Create<'_>) -> Entry {
    let znode_type = CreateMode::from_flags(create.flags).map(|mode| match mode {
        CreateMode::Persistent => "persistent",
        CreateMode::Ephemeral => "ephemeral",
        CreateMode::PersistentSequential => "persistent_sequential",
        CreateMode::EphemeralSequential => "ephemeral_sequential",
        CreateMode::Container => "container",
        CreateMode::PersistentWithTtl => "persistent_with_ttl",
        CreateMode::PersistentSequentialWithTtl => "persistent_sequential_with_ttl",
    });
    let znode = create.path.as_deref().map(str::to_owned);
    Entry { operation: "create", znode, znode_type, acl: None }
}

impl Entry {
    /// What came of it: a sequential znode has its number only then.
    pub(super) fn done(self, txn: &Txn<'_>) -> Entry {
        match txn {
            Txn::Create { path, .. } => Entry { znode: Some(path.to_string()), ..self },
            _ => self,
        }
    }
}

/// `scheme:id:permissions` for each (`ZKUtil.aclToString`).
fn acl_text(acl: AclBytes<'_>) -> String {
    let mut text = String::new();
    for entry in acl.decode().unwrap_or_default() {
        let separator = if text.is_empty() { "" } else { "," };
        let scheme = entry.id.scheme.as_deref().unwrap_or_default();
        let id = entry.id.id.as_deref().unwrap_or_default();
        let _ = write!(text, "{separator}{scheme}:{id}:");
        let letters = [
            (perms::CREATE, 'c'),
            (perms::DELETE, 'd'),
            (perms::READ, 'r'),
            (perms::WRITE, 'w'),
            (perms::ADMIN, 'a'),
        ];
        text.extend(letters.iter().filter(|(bit, _)| entry.perms & bit != 0).map(|(_, c)| c));
    }
    text
}

fn line(
    session: Option<SessionId>,
    user: &str,
    address: Option<&str>,
    entry: &Entry,
    result: AuditResult,
) -> String {
    let session = session.map(|session| session.to_string());
    let fields = [
        ("session", session.as_deref()),
        ("user", Some(user)),
        ("ip", address),
        ("operation", Some(entry.operation)),
        ("znode", entry.znode.as_deref()),
        ("znode_type", entry.znode_type),
        ("acl", entry.acl.as_deref()),
        ("result", Some(result.text())),
    ];
    let mut line = String::new();
    for (key, value) in fields {
        let Some(value) = value else { continue };
        if !line.is_empty() {
            line.push('\t');
        }
        line.push_str(key);
        line.push('=');
        // What a client chose must not look like a field, or a line, of its own.
        for c in value.chars() {
            if c.is_control() {
                line.extend(c.escape_default());
            } else {
                line.push(c);
            }
        }
    }
    line
}
