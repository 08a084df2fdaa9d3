//! ringkeeper: a drop-in replacement for Apache ZooKeeper, as a library.
//!
//! The modules in reading order, from the ground up; a module imports only what stands above it
//! here (`tests/floors.rs` holds that). `ARCHITECTURE.md` is the map of the whole.

pub mod path;
pub mod types;

pub mod jute;

pub mod ensemble;
pub mod metrics;
pub mod record;

pub mod auth;
pub mod config;
pub mod storage;
pub mod tree;
pub mod zab;

pub mod acl;
pub mod exchange;

pub mod pipeline;
pub mod shard;

pub mod admin;

pub mod shell;

pub mod cli;
