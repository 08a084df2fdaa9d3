//! The cases, in the order of the table.

pub(crate) mod acl;
pub(crate) mod create;
pub(crate) mod framing;
pub(crate) mod header;
pub(crate) mod multi;
pub(crate) mod session;
pub(crate) mod tree;
pub(crate) mod watch;
