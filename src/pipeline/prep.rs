//! A request into a transaction, or an error.
//!
//! The checks run against the newest state of the tree, committed or not, in ZooKeeper's order:
//! the first that fails is the answer (`PrepRequestProcessor.pRequest2Txn`). What passes is
//! applied at once. So the next request, or the next operation of the same multi, is checked
//! against what this one did; nobody else sees it before it is committed.

use std::borrow::Cow;

use super::{Settings, prep_multi, whole};
use crate::acl;
use crate::jute::Reader;
use crate::jute::record::{Record, Text};
use crate::path;
use crate::record::code::Code;
use crate::record::data::{Acl, AclBytes, Id, perms};
use crate::record::op::{CreateMode, code};
use crate::record::proto::{
    CreateRequest, CreateTtlRequest, PathVersion, ReconfigRequest, SetAclRequest, SetDataRequest,
};
use crate::record::txn::{CreateKind, Txn};
use crate::tree::ephemerals::{Owner, TTL_MS_MAX};
use crate::tree::quota::{self, StatsTrack};
use crate::tree::{self, Newest, TreeWriter};

/// More than a record has around its operations, and than an operation in it has besides path,
/// data and ACL.
pub(super) const FIXED_BYTES_MAX: usize = 64;

/// Whether a request makes an ephemeral znode.
pub(super) fn makes_ephemeral(op: i32, body: &[u8]) -> bool {
    match op {
        code::CREATE | code::CREATE2 => {
            Create::read(op, &mut whole(body)).is_ok_and(|create| create.is_ephemeral())
        }
        code::MULTI => prep_multi::makes_ephemeral(body),
        _ => false,
    }
}

/// What checks are made with: what the server was told, the tree, and who asks.
pub(super) struct Prep<'p> {
    pub(super) settings: &'p Settings,
    pub(super) tree: &'p TreeWriter,
    pub(super) ids: &'p [Id],
    /// What whoever asks is told about ephemerals, if its session cannot own any.
    pub(super) refuses_ephemerals: Option<Code>,
}

/// Buffers that a transaction borrows from, reused from one to the next.
#[derive(Default)]
pub(super) struct Scratch {
    /// A path with its sequence number.
    pub(super) path: String,
    /// An ACL as it is kept, where it is not the one that came.
    pub(super) acl: Vec<u8>,
}

/// A create of any of the four kinds, as it is asked for.
#[derive(Clone, Debug)]
pub(super) struct Create<'a> {
    /// Which operation asked; decides what is made.
    pub(super) op: i32,
    pub(super) path: Text<'a>,
    pub(super) data: Option<&'a [u8]>,
    pub(super) acl: AclBytes<'a>,
    pub(super) flags: i32,
    /// -1 where the request has none.
    pub(super) ttl: i64,
}

impl<'a> Create<'a> {
    pub(super) fn read(op: i32, body: &mut Reader<'a>) -> Result<Create<'a>, Code> {
        Ok(if op == code::CREATE_TTL {
            let CreateTtlRequest { path, data, acl, flags, ttl } = decode(body)?;
            Create { op, path, data, acl, flags, ttl }
        } else {
            let CreateRequest { path, data, acl, flags } = decode(body)?;
            Create { op, path, data, acl, flags, ttl: -1 }
        })
    }
}

pub(super) fn decode<'a, R: Record<'a>>(body: &mut Reader<'a>) -> Result<R, Code> {
    R::read(body).map_err(|_| Code::MarshallingError)
}

/// Whether what is asked for can be read at all.
pub(super) fn is_readable(op: i32, body: &[u8]) -> bool {
    fn is_a<'a, R: Record<'a>>(body: &'a [u8]) -> bool {
        decode::<R>(&mut whole(body)).is_ok()
    }
    match op {
        code::CREATE | code::CREATE2 | code::CREATE_CONTAINER | code::CREATE_TTL => {
            Create::read(op, &mut whole(body)).is_ok()
        }
        code::DELETE => is_a::<PathVersion<'_>>(body),
        code::SET_DATA => is_a::<SetDataRequest<'_>>(body),
        code::SET_ACL => is_a::<SetAclRequest<'_>>(body),
        code::RECONFIG => is_a::<ReconfigRequest<'_>>(body),
        code::MULTI => prep_multi::is_readable(body),
        _ => true,
    }
}

impl Create<'_> {
    /// Whether it makes an ephemeral znode.
    pub(super) fn is_ephemeral(&self) -> bool {
        let has_mode = matches!(self.op, code::CREATE | code::CREATE2);
        has_mode && CreateMode::from_flags(self.flags).is_some_and(CreateMode::is_ephemeral)
    }
}

impl<'p> Prep<'p> {
    fn permits(&self, znode: &Newest<'_>, perm: i32) -> Result<(), Code> {
        let Some(acl) = znode.acl() else { return Ok(()) };
        let allowed =
            self.settings.skip_acl || acl::permits(acl, perm, self.ids, &self.settings.providers);
        if allowed { Ok(()) } else { Err(Code::NoAuth) }
    }

    /// The checks of a create, and the transaction that does it.
    pub(super) fn create<'s>(
        &self,
        create: Create<'s>,
        scratch: &'s mut Scratch,
    ) -> Result<Txn<'s>, Code> {
        let mode = CreateMode::from_flags(create.flags).ok_or(Code::BadArguments)?;
        self.ttl(&create, mode)?;
        if let Some(code) = self.refuses_ephemerals.filter(|_| create.is_ephemeral()) {
            return Err(code);
        }
        let requested = create.path.ok_or(Code::MarshallingError)?;
        let parent_path = parent_of(&requested)
            .filter(|_| !path::has_nul(&requested))
            .ok_or(Code::BadArguments)?;
        let acl = self.acl(create.acl, &mut scratch.acl)?;
        let parent = self.tree.newest(parent_path).ok_or(Code::NoNode)?;
        self.permits(&parent, perms::CREATE)?;
        let cversion = parent.stat_persisted().cversion;
        let path = if mode.is_sequential() {
            scratch.path.clear();
            scratch.path.push_str(&requested);
            path::push_sequence(&mut scratch.path, cversion);
            Cow::Borrowed(scratch.path.as_str())
        } else {
            requested
        };
        path::validate(&path).map_err(|_| Code::BadArguments)?;
        if self.tree.newest(&path).is_some() {
            return Err(Code::NodeExists);
        }
        if let Owner::Session(_) = parent.owner() {
            return Err(Code::NoChildrenForEphemerals);
        }
        self.quota(&path, 1, create.data.map_or(0, <[u8]>::len) as i64)?;
        let kind = match create.op {
            code::CREATE_CONTAINER => CreateKind::Container,
            code::CREATE_TTL => CreateKind::Ttl(create.ttl),
            op => CreateKind::Node { create2: op == code::CREATE2, ephemeral: mode.is_ephemeral() },
        };
        let parent_cversion = cversion.wrapping_add(1);
        Ok(Txn::Create { kind, path, data: create.data, acl, parent_cversion })
    }

    /// A request can ask for more than it says: each `auth` in an ACL stands for all ids of the
    /// connection. What would not fit into a record, behind `before` bytes of it, is refused.
    pub(super) fn fits<'s>(&self, before: usize, txn: Txn<'s>) -> Result<Txn<'s>, Code> {
        let (path, data, acl) = match &txn {
            Txn::Create { path, data, acl, .. } => (path, *data, Some(acl)),
            Txn::SetData { path, data, .. } => (path, *data, None),
            Txn::SetAcl { path, acl, .. } => (path, None, Some(acl)),
            Txn::Delete { path } | Txn::Check { path, .. } => (path, None, None),
            Txn::CreateSession { .. }
            | Txn::CloseSession { .. }
            | Txn::Error { .. }
            | Txn::DeleteContainer { .. }
            | Txn::Reconfig { .. }
            | Txn::Multi(_) => return Ok(txn),
        };
        let bytes = path.len()
            + data.map_or(0, <[u8]>::len)
            + acl.map_or(0, |acl| acl.as_bytes().len())
            + FIXED_BYTES_MAX;
        let fits = FIXED_BYTES_MAX + before + bytes <= self.settings.record_bytes_max;
        if fits { Ok(txn) } else { Err(Code::BadArguments) }
    }

    fn ttl(&self, create: &Create<'_>, mode: CreateMode) -> Result<(), Code> {
        let is_valid = if mode.is_ttl() {
            if !self.settings.tree.types.extended {
                return Err(Code::Unimplemented);
            }
            1 <= create.ttl && create.ttl <= TTL_MS_MAX
        } else {
            // A TTL operation without a TTL mode has nothing valid to say.
            create.ttl < 0 && create.op != code::CREATE_TTL
        };
        if is_valid { Ok(()) } else { Err(Code::BadArguments) }
    }

    /// The ACL to keep: the bytes that came where they can stay as they are.
    fn acl<'s>(&self, acl: AclBytes<'s>, kept: &'s mut Vec<u8>) -> Result<AclBytes<'s>, Code> {
        if acl.is_open() {
            return Ok(acl);
        }
        let bytes_max = self.settings.record_bytes_max;
        let fixed: Vec<Acl> =
            acl::fixup(acl.decode(), self.ids, &self.settings.providers, bytes_max)?;
        kept.clear();
        Some(fixed).write(kept);
        Ok(AclBytes::from_bytes(kept).expect("just written"))
    }

    pub(super) fn delete<'s>(&self, request: PathVersion<'s>) -> Result<Txn<'s>, Code> {
        let path = request.path.ok_or(Code::MarshallingError)?;
        let parent_path = parent_of(&path)
            .filter(|_| !path::has_nul(&path) && !tree::is_reserved(&path))
            .ok_or(Code::BadArguments)?;
        let parent = self.tree.newest(parent_path).ok_or(Code::NoNode)?;
        self.permits(&parent, perms::DELETE)?;
        let znode = self.tree.newest(&path).ok_or(Code::NoNode)?;
        expect_version(znode.stat_persisted().version, request.version)?;
        if znode.child_count() > 0 {
            return Err(Code::NotEmpty);
        }
        Ok(Txn::Delete { path })
    }

    /// The server's own delete of a container or of a znode whose time is over.
    pub(super) fn delete_container<'s>(&self, path: &'s str) -> Result<Txn<'s>, Code> {
        let znode = self.tree.newest(path).ok_or(Code::NoNode)?;
        if znode.child_count() > 0 {
            return Err(Code::NotEmpty);
        }
        match znode.owner() {
            Owner::Container | Owner::Ttl(_) => Ok(Txn::DeleteContainer { path: path.into() }),
            Owner::Nobody | Owner::Session(_) => Err(Code::BadVersion),
        }
    }

    pub(super) fn set_data<'s>(&self, request: SetDataRequest<'s>) -> Result<Txn<'s>, Code> {
        let path = valid(request.path)?;
        let znode = self.tree.newest(&path).ok_or(Code::NoNode)?;
        self.permits(&znode, perms::WRITE)?;
        let bytes = |data: Option<&[u8]>| data.map_or(0, <[u8]>::len) as i64;
        self.quota(&path, 0, bytes(request.data) - bytes(znode.data()))?;
        let version = next_version(znode.stat_persisted().version, request.version)?;
        Ok(Txn::SetData { path, data: request.data, version })
    }

    pub(super) fn set_acl<'s>(
        &self,
        request: SetAclRequest<'s>,
        scratch: &'s mut Scratch,
    ) -> Result<Txn<'s>, Code> {
        let path = valid(request.path)?;
        let acl = self.acl(request.acl, &mut scratch.acl)?;
        let znode = self.tree.newest(&path).ok_or(Code::NoNode)?;
        self.permits(&znode, perms::ADMIN)?;
        let version = next_version(znode.stat_persisted().aversion, request.version)?;
        Ok(Txn::SetAcl { path, acl, version })
    }

    pub(super) fn check<'s>(&self, request: PathVersion<'s>) -> Result<Txn<'s>, Code> {
        let path = valid(request.path)?;
        let znode = self.tree.newest(&path).ok_or(Code::NoNode)?;
        self.permits(&znode, perms::READ)?;
        let version = next_version(znode.stat_persisted().version, request.version)?;
        Ok(Txn::Check { path, version })
    }

    /// Whether the deepest quota above `path` lets so much be added. The counts are the newest;
    /// a soft limit refuses nothing.
    fn quota(&self, path: &str, count: i64, bytes: i64) -> Result<(), Code> {
        if !self.settings.enforce_quota || (count == 0 && bytes == 0) {
            return Ok(());
        }
        let Some(subtree) = self.tree.quota_of(path) else { return Ok(()) };
        let track = |path: String| {
            self.tree.newest(&path).map(|znode| StatsTrack::parse(znode.data().unwrap_or_default()))
        };
        let (Some(limits), Some(stats)) =
            (track(quota::limits_path(subtree)), track(quota::stats_path(subtree)))
        else {
            return Ok(());
        };
        // Also what takes away is refused while it leaves too much (ZooKeeperServer.checkQuota).
        let is_over = |added: i64, now: i64, hard_limit: i64| {
            added != 0 && hard_limit > -1 && now.saturating_add(added) > hard_limit
        };
        if is_over(count, stats.count, limits.count_hard_limit)
            || is_over(bytes, stats.bytes, limits.byte_hard_limit)
        {
            return Err(Code::QuotaExceeded);
        }
        Ok(())
    }
}

/// The text before the last slash; none without a slash.
fn parent_of(path: &str) -> Option<&str> {
    path.rfind('/').map(|slash| &path[..slash])
}

fn valid(path: Text<'_>) -> Result<Cow<'_, str>, Code> {
    path.filter(|path| path::validate(path).is_ok()).ok_or(Code::BadArguments)
}

fn expect_version(current: i32, expected: i32) -> Result<(), Code> {
    if expected == -1 || expected == current { Ok(()) } else { Err(Code::BadVersion) }
}

/// The version after `current`, if that is what was expected. -1 is passed over: it stands for
/// any version and could not be matched.
fn next_version(current: i32, expected: i32) -> Result<i32, Code> {
    expect_version(current, expected)?;
    Ok(match current.wrapping_add(1) {
        -1 => 0,
        next => next,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_wrap_and_pass_over_minus_one() {
        assert_eq!(next_version(i32::MAX, i32::MAX), Ok(i32::MIN));
        assert_eq!(next_version(-2, -1), Ok(0));
        assert_eq!(next_version(1, -2), Err(Code::BadVersion));
    }
}
