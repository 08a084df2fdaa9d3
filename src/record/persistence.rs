//! `org.apache.zookeeper.server.persistence`: the header of a log or a snapshot.

use crate::jute::record::record;

record! {
    /// 16 bytes at the front of every log and every snapshot.
    pub struct FileHeader {
        magic: i32,
        version: i32,
        dbid: i64,
    }
}

/// `ZKLG`.
pub const LOG_MAGIC: i32 = 0x5a4b_4c47;
/// `ZKSN`.
pub const SNAPSHOT_MAGIC: i32 = 0x5a4b_534e;
pub const FORMAT_VERSION: i32 = 2;
/// What ZooKeeper writes as a log's database id.
pub const LOG_DBID: i64 = 0;
/// What ZooKeeper writes as a snapshot's database id.
pub const SNAPSHOT_DBID: i64 = -1;
