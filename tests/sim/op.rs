//! What a client may ask, and the bytes it is asked with.

use std::borrow::Cow;

use ringkeeper::auth::digest;
use ringkeeper::jute::frame;
use ringkeeper::jute::record::Record as _;
use ringkeeper::record::data::{Acl, AclBytes, perms};
use ringkeeper::record::op::code;
use ringkeeper::record::proto::{
    AddWatchRequest, AuthPacket, CreateRequest, CreateTtlRequest, MULTI_END, MultiHeader, PathOnly,
    PathVersion, PathWatch, PathWatcherType, RequestHeader, SetAclRequest, SetDataRequest,
    SetWatches, SetWatches2,
};

/// Who a client is to ACLs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Nobody,
    /// The one user with a password.
    Alice,
}

const ALICE: &str = "alice:wonderland";

/// The ACLs that clients give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AclKind {
    Open,
    /// All to Alice, nothing to others.
    Private,
    /// All to Alice, reading to everyone.
    ReadOnly,
    /// No entry, which is refused.
    Empty,
}

impl AclKind {
    pub(crate) fn list(self) -> Vec<Acl> {
        let alice = || {
            let id = digest::hash(digest::Algorithm::Sha1, ALICE);
            Acl::new(perms::ALL, digest::SCHEME, id)
        };
        match self {
            AclKind::Open => vec![Acl::new(perms::ALL, "world", "anyone")],
            AclKind::Private => vec![alice()],
            AclKind::ReadOnly => vec![Acl::new(perms::READ, "world", "anyone"), alice()],
            AclKind::Empty => Vec::new(),
        }
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        Some(self.list()).write(&mut bytes);
        bytes
    }
}

/// A create of any kind.
#[derive(Clone, Debug)]
pub(crate) struct Create {
    pub(crate) op: i32,
    pub(crate) path: String,
    pub(crate) data: Option<Vec<u8>>,
    pub(crate) acl: AclKind,
    /// The ACL as it travels.
    pub(crate) acl_bytes: Vec<u8>,
    pub(crate) flags: i32,
    pub(crate) ttl: i64,
}

/// The lists that a client brings back after a reconnect.
#[derive(Clone, Debug, Default)]
pub(crate) struct WatchLists {
    pub(crate) relative: i64,
    pub(crate) data: Vec<String>,
    pub(crate) exist: Vec<String>,
    pub(crate) child: Vec<String>,
    pub(crate) persistent: Vec<String>,
    pub(crate) recursive: Vec<String>,
}

impl WatchLists {
    pub(crate) fn has_persistent(&self) -> bool {
        !self.persistent.is_empty() || !self.recursive.is_empty()
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Create(Create),
    Delete {
        path: String,
        version: i32,
    },
    SetData {
        path: String,
        data: Option<Vec<u8>>,
        version: i32,
    },
    SetAcl {
        path: String,
        acl: AclKind,
        acl_bytes: Vec<u8>,
        version: i32,
    },
    /// In a multi only.
    Check {
        path: String,
        version: i32,
    },
    Multi(Vec<Op>),
    Close,
    Sync {
        path: String,
    },
    Ephemerals {
        prefix: String,
    },
    Exists {
        path: String,
        watch: bool,
    },
    GetData {
        path: String,
        watch: bool,
    },
    GetChildren {
        path: String,
        watch: bool,
    },
    GetChildren2 {
        path: String,
        watch: bool,
    },
    GetAcl {
        path: String,
    },
    AllChildren {
        path: String,
    },
    /// getData where the flag is false, getChildren where it is true.
    MultiRead(Vec<(String, bool)>),
    AddWatch {
        path: String,
        recursive: bool,
    },
    CheckWatches {
        path: String,
        kind: i32,
    },
    RemoveWatches {
        path: String,
        kind: i32,
    },
    SetWatches(WatchLists),
    Ping,
    Auth,
}

impl Op {
    pub(crate) fn code(&self) -> i32 {
        match self {
            Op::Create(create) => create.op,
            Op::Delete { .. } => code::DELETE,
            Op::SetData { .. } => code::SET_DATA,
            Op::SetAcl { .. } => code::SET_ACL,
            Op::Check { .. } => code::CHECK,
            Op::Multi(_) => code::MULTI,
            Op::Close => code::CLOSE_SESSION,
            Op::Sync { .. } => code::SYNC,
            Op::Ephemerals { .. } => code::GET_EPHEMERALS,
            Op::Exists { .. } => code::EXISTS,
            Op::GetData { .. } => code::GET_DATA,
            Op::GetChildren { .. } => code::GET_CHILDREN,
            Op::GetChildren2 { .. } => code::GET_CHILDREN2,
            Op::GetAcl { .. } => code::GET_ACL,
            Op::AllChildren { .. } => code::GET_ALL_CHILDREN_NUMBER,
            Op::MultiRead(_) => code::MULTI_READ,
            Op::AddWatch { .. } => code::ADD_WATCH,
            Op::CheckWatches { .. } => code::CHECK_WATCHES,
            Op::RemoveWatches { .. } => code::REMOVE_WATCHES,
            Op::SetWatches(lists) if lists.has_persistent() => code::SET_WATCHES2,
            Op::SetWatches(_) => code::SET_WATCHES,
            Op::Ping => code::PING,
            Op::Auth => code::AUTH,
        }
    }

    /// Whether it becomes a transaction, or an error with a place in history.
    pub(crate) fn is_write(&self) -> bool {
        matches!(
            self,
            Op::Create(_)
                | Op::Delete { .. }
                | Op::SetData { .. }
                | Op::SetAcl { .. }
                | Op::Multi(_)
                | Op::Close
        )
    }

    /// The whole frame.
    pub(crate) fn frame(&self, xid: i32, out: &mut Vec<u8>) {
        frame::write(out, |out| {
            RequestHeader { xid, op: self.code() }.write(out);
            self.body(out);
        });
    }

    pub(crate) fn body(&self, out: &mut Vec<u8>) {
        match self {
            Op::Create(create) => create.body(out),
            Op::Delete { path, version } | Op::Check { path, version } => {
                PathVersion { path: text(path), version: *version }.write(out);
            }
            Op::SetData { path, data, version } => {
                let (path, data) = (text(path), data.as_deref());
                SetDataRequest { path, data, version: *version }.write(out);
            }
            Op::SetAcl { path, acl_bytes, version, .. } => {
                let acl = AclBytes::from_bytes(acl_bytes).unwrap();
                SetAclRequest { path: text(path), acl, version: *version }.write(out);
            }
            Op::Multi(ops) => {
                for op in ops {
                    MultiHeader { kind: op.code(), done: false, err: -1 }.write(out);
                    op.body(out);
                }
                MULTI_END.write(out);
            }
            Op::MultiRead(reads) => {
                for (path, children) in reads {
                    let kind = if *children { code::GET_CHILDREN } else { code::GET_DATA };
                    MultiHeader { kind, done: false, err: -1 }.write(out);
                    PathWatch { path: text(path), watch: false }.write(out);
                }
                MULTI_END.write(out);
            }
            Op::Sync { path }
            | Op::Ephemerals { prefix: path }
            | Op::GetAcl { path }
            | Op::AllChildren { path } => PathOnly { path: text(path) }.write(out),
            Op::Exists { path, watch }
            | Op::GetData { path, watch }
            | Op::GetChildren { path, watch }
            | Op::GetChildren2 { path, watch } => {
                PathWatch { path: text(path), watch: *watch }.write(out);
            }
            Op::AddWatch { path, recursive } => {
                AddWatchRequest { path: text(path), mode: i32::from(*recursive) }.write(out);
            }
            Op::CheckWatches { path, kind } | Op::RemoveWatches { path, kind } => {
                PathWatcherType { path: text(path), kind: *kind }.write(out);
            }
            Op::SetWatches(lists) => {
                let texts = |paths: &Vec<String>| Some(paths.iter().map(|p| owned(p)).collect());
                let (data_watches, exist_watches) = (texts(&lists.data), texts(&lists.exist));
                let (child_watches, relative_zxid) = (texts(&lists.child), lists.relative);
                if lists.has_persistent() {
                    SetWatches2 {
                        relative_zxid,
                        data_watches,
                        exist_watches,
                        child_watches,
                        persistent_watches: texts(&lists.persistent),
                        persistent_recursive_watches: texts(&lists.recursive),
                    }
                    .write(out);
                } else {
                    SetWatches { relative_zxid, data_watches, exist_watches, child_watches }
                        .write(out);
                }
            }
            Op::Auth => {
                let (scheme, auth) = (text(digest::SCHEME), Some(ALICE.as_bytes()));
                AuthPacket { kind: 0, scheme, auth }.write(out);
            }
            Op::Close | Op::Ping => {}
        }
    }
}

impl Create {
    fn body(&self, out: &mut Vec<u8>) {
        let (path, data, flags) = (text(&self.path), self.data.as_deref(), self.flags);
        let acl = AclBytes::from_bytes(&self.acl_bytes).unwrap();
        if self.op == code::CREATE_TTL {
            CreateTtlRequest { path, data, acl, flags, ttl: self.ttl }.write(out);
        } else {
            CreateRequest { path, data, acl, flags }.write(out);
        }
    }
}

fn text(path: &str) -> Option<Cow<'_, str>> {
    Some(path.into())
}

fn owned(path: &str) -> Option<Cow<'static, str>> {
    Some(path.to_owned().into())
}
