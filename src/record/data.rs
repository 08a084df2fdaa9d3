//! `org.apache.zookeeper.data`: who, what they may, and a znode's stat.

use std::borrow::Cow;

use crate::jute::record::{Record, Text, record};
use crate::jute::{Malformed, Reader, Write as _};

/// Permission bits of an ACL entry.
pub mod perms {
    pub const READ: i32 = 1;
    pub const WRITE: i32 = 2;
    pub const CREATE: i32 = 4;
    pub const DELETE: i32 = 8;
    pub const ADMIN: i32 = 16;
    pub const ALL: i32 = 31;
}

record! {
    /// An identity as it arrives: either text may be null.
    pub struct IdText<'a> { scheme: Text<'a>, id: Text<'a> }

    /// An ACL entry as it arrives.
    pub struct AclText<'a> { perms: i32, id: IdText<'a> }

    /// What a client sees of a znode: 68 bytes.
    pub struct Stat {
        czxid: i64,
        mzxid: i64,
        ctime: i64,
        mtime: i64,
        version: i32,
        /// Twice the stored cversion less the number of children.
        cversion: i32,
        aversion: i32,
        ephemeral_owner: i64,
        data_length: i32,
        num_children: i32,
        pzxid: i64,
    }

    /// What is kept of a znode: 60 bytes.
    #[derive(Copy, Default)]
    pub struct StatPersisted {
        czxid: i64,
        mzxid: i64,
        ctime: i64,
        mtime: i64,
        version: i32,
        /// Counts the creates below this znode, and never goes back.
        cversion: i32,
        aversion: i32,
        ephemeral_owner: i64,
        pzxid: i64,
    }
}

/// An identity: a scheme and a name within it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    pub scheme: String,
    pub id: String,
}

impl Id {
    #[must_use]
    pub fn new(scheme: impl Into<String>, id: impl Into<String>) -> Id {
        Id { scheme: scheme.into(), id: id.into() }
    }
}

/// An ACL entry as it is kept: what an identity may do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Acl {
    pub perms: i32,
    pub id: Id,
}

impl Acl {
    #[must_use]
    pub fn new(perms: i32, scheme: impl Into<String>, id: impl Into<String>) -> Acl {
        Acl { perms, id: Id::new(scheme, id) }
    }

    /// `world:anyone` with all permissions, which is by far the most usual.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.perms == perms::ALL && self.id.scheme == "world" && self.id.id == "anyone"
    }
}

impl From<AclText<'_>> for Acl {
    /// Null texts become empty: a kept ACL has none.
    fn from(AclText { perms, id }: AclText<'_>) -> Acl {
        let text = |text: Text<'_>| text.map(Cow::into_owned).unwrap_or_default();
        Acl { perms, id: Id { scheme: text(id.scheme), id: text(id.id) } }
    }
}

impl Record<'_> for Acl {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        AclText::read(reader).map(Acl::from)
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.put_i32(self.perms);
        out.put_text(&self.id.scheme);
        out.put_text(&self.id.id);
    }
}

/// The bytes of a vector with the one entry `world:anyone`, all permissions.
pub const OPEN_ACL_BYTES: &[u8] =
    b"\x00\x00\x00\x01\x00\x00\x00\x1f\x00\x00\x00\x05world\x00\x00\x00\x06anyone";

/// A vector of ACL entries left in its bytes: most are `OPEN_ACL_BYTES` and need no decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AclBytes<'a>(&'a [u8]);

impl<'a> AclBytes<'a> {
    /// The open ACL's bytes.
    pub const OPEN: AclBytes<'static> = AclBytes(OPEN_ACL_BYTES);

    /// Bytes that hold a vector of entries and nothing else, as `read` would accept them.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<AclBytes<'a>, Malformed> {
        AclBytes::read(&mut Reader::with_field_bytes_max(bytes, bytes.len()))
    }

    #[must_use]
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    #[must_use]
    pub fn is_open(self) -> bool {
        self.0 == OPEN_ACL_BYTES
    }

    /// The entries; `None` is a null vector.
    #[must_use]
    pub fn decode(self) -> Option<Vec<AclText<'a>>> {
        let mut reader = Reader::with_field_bytes_max(self.0, self.0.len());
        Record::read(&mut reader).expect("read once already")
    }
}

impl<'a> Record<'a> for AclBytes<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let start = reader.offset();
        for _ in 0..reader.count()?.unwrap_or(0) {
            reader.i32()?;
            reader.buffer()?;
            reader.buffer()?;
        }
        Ok(AclBytes(reader.between(start, reader.offset())))
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.0);
    }
}
