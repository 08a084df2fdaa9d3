//! The records of `zookeeper.jute`, in its own names and modules. Only shapes and their codecs:
//! what they mean is decided elsewhere.

pub mod code;
pub mod data;
pub mod op;
pub mod persistence;
pub mod proto;
pub mod quorum;
pub mod txn;
