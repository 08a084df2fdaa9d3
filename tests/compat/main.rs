//! ZooKeeper's own bytes, read and reproduced bit for bit. How each file was made is told beside
//! it, in `fixtures/`.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

mod disk;
mod quorum;
