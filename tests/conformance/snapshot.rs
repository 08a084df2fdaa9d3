//! A snapshot by hand, for trees that no client could make in the time of a test.
//!
//! ```text
//! "ZKSN", i32 version 2, i64 dbid -1, i32 sessions 0, i32 acls 0,
//! (string path, buffer data, i64 acl -1, stat)*, string "/", i64 adler32 of all before, string "/"
//! ```
//!
//! This is the form of 3.5 and before, without digest, which every later server reads.

use crate::wire::Out;

/// A znode as it is stored: its children's creations are counted in `cversion`.
pub(crate) struct Stored {
    pub(crate) path: &'static str,
    pub(crate) version: i32,
    pub(crate) cversion: i32,
    pub(crate) aversion: i32,
}

impl Stored {
    pub(crate) const fn plain(path: &'static str) -> Stored {
        Stored { path, version: 0, cversion: 0, aversion: 0 }
    }
}

/// A snapshot with the reserved znodes and `znodes`, parents first.
pub(crate) fn snapshot(znodes: &[Stored]) -> Vec<u8> {
    const RESERVED: [Stored; 4] = [
        Stored::plain(""),
        Stored::plain("/zookeeper"),
        Stored::plain("/zookeeper/quota"),
        Stored { aversion: -1, ..Stored::plain("/zookeeper/config") },
    ];
    let out = Out::new().bytes(b"ZKSN").int(2).long(-1).int(0).int(0);
    let out = RESERVED.iter().chain(znodes).fold(out, |out, znode| {
        let Stored { path, version, cversion, aversion } = znode;
        let times_and_zxids = [0; 32];
        out.string(path)
            .buffer(b"")
            .long(-1)
            .bytes(&times_and_zxids)
            .int(*version)
            .int(*cversion)
            .int(*aversion)
            .long(0)
            .long(0)
    });
    let content = out.string("/").done();
    let seal = adler32(&content);
    Out::new().bytes(&content).long(seal.into()).string("/").done()
}

fn adler32(bytes: &[u8]) -> u32 {
    const MODULUS: u32 = 65_521;
    let (mut a, mut b) = (1, 0);
    for byte in bytes {
        a = (a + u32::from(*byte)) % MODULUS;
        b = (b + a) % MODULUS;
    }
    (b << 16) | a
}
