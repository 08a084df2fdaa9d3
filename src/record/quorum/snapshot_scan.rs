//! Where a snapshot's body ends on the wire, found without keeping any of it.
//!
//! ```text
//! body     = sessions acls nodes
//! sessions = int count, count * { long session, int timeout in ms }
//! acls     = int count, count * { long id, vector<ACL> }
//! ACL      = int perms, ustring scheme, ustring id
//! nodes    = { ustring path, buffer data, long acl id, StatPersisted }*, ustring "/"
//! ```
//!
//! The bytes are those of a snapshot file (`storage/snapshot.rs`) without its header and seals.
//! Only lengths are followed here. Paths, lists and stats are checked where the tree is built.
//!
//! After `SerializeUtils.deserializeSnapshot`, `ReferenceCountedACLCache.deserialize` and
//! `DataTree.deserialize`.

use crate::jute::Malformed;

/// Follows a body in pieces of any size. The bytes are the same in 3.8, 3.9 and 3.10: the blocks that
/// newer releases append to a snapshot file (digest, last processed zxid) are not sent.
#[derive(Clone, Debug, Default)]
pub struct SnapshotScan {
    stage: Stage,
    /// What has come of the field that `stage` waits for.
    held: [u8; HELD_BYTES_MAX],
    held_bytes: usize,
    /// How many bytes come before that field, of no interest here.
    skip: u64,
    /// How many bytes of the body have been followed.
    followed: u64,
}

const SESSION_BYTES: u64 = 12;
/// What follows a node's path and data: its ACL's number and its stat.
const NODE_TAIL_BYTES: u64 = 8 + 60;
const HELD_BYTES_MAX: usize = 4;

/// The field that is next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    SessionCount,
    AclListCount,
    /// How many entries the next list has. Its number is skipped.
    AclCount {
        lists: u32,
    },
    /// The length of an entry's scheme, or of its id. What precedes it is skipped.
    AclText {
        lists: u32,
        texts: u64,
    },
    PathLength,
    /// The one byte of a path of one byte.
    Path,
    DataLength,
    Done,
}

impl SnapshotScan {
    /// Whether the body has ended.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.stage == Stage::Done && self.skip == 0
    }

    /// Follows more of the body. How many of `bytes` belong to it: all, unless it ends among them.
    /// An error counts from the start of the body; the scan is of no use after it.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut at = 0;
        while !self.is_done() {
            let left = &bytes[at..];
            let skipped = left.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
            self.skip -= skipped as u64;
            at += skipped;
            let left = &left[skipped..];
            if left.is_empty() {
                break;
            }
            let wanted = if self.stage == Stage::Path { 1 } else { 4 };
            let count = left.len().min(wanted - self.held_bytes);
            self.held[self.held_bytes..][..count].copy_from_slice(&left[..count]);
            self.held_bytes += count;
            at += count;
            if self.held_bytes == wanted {
                self.held_bytes = 0;
                let start = self.followed + at as u64 - wanted as u64;
                self.stage = self
                    .after_field()
                    .map_err(|what| Malformed { offset: start as usize, what })?;
            }
        }
        self.followed += at as u64;
        Ok(at)
    }

    /// The stage that follows, now that the field of this one is in `held`.
    fn after_field(&mut self) -> Result<Stage, &'static str> {
        let int = i32::from_be_bytes(self.held);
        // ZooKeeper counts down to zero, so a negative count is none.
        let count = u32::try_from(int).unwrap_or(0);
        let length = |what| match int {
            -1 => Ok(0),
            length => u64::try_from(length).map_err(|_| what),
        };
        Ok(match self.stage {
            Stage::SessionCount => {
                self.skip = SESSION_BYTES * u64::from(count);
                Stage::AclListCount
            }
            Stage::AclListCount => self.next_acl_list(count),
            Stage::AclCount { .. } if int == -1 => return Err("ACL list of a snapshot"),
            Stage::AclCount { lists } => self.next_acl_text(lists, 2 * u64::from(count)),
            Stage::AclText { lists, texts } => {
                let text_bytes = length("length of an identity in a snapshot")?;
                let stage = self.next_acl_text(lists, texts - 1);
                self.skip += text_bytes;
                stage
            }
            Stage::PathLength => match int {
                -1 => return Err("path of a snapshot's node"),
                1 => Stage::Path,
                _ => {
                    self.skip = length("length of a path in a snapshot")?;
                    Stage::DataLength
                }
            },
            Stage::Path if self.held[0] == b'/' => Stage::Done,
            Stage::Path => Stage::DataLength,
            Stage::DataLength => {
                self.skip = length("length of data in a snapshot")? + NODE_TAIL_BYTES;
                Stage::PathLength
            }
            Stage::Done => unreachable!("a body that has ended has no next field"),
        })
    }

    fn next_acl_list(&mut self, lists: u32) -> Stage {
        match lists.checked_sub(1) {
            None => Stage::PathLength,
            Some(lists) => {
                self.skip = 8;
                Stage::AclCount { lists }
            }
        }
    }

    /// `texts` are left in this list; each entry's two have its permissions before them.
    fn next_acl_text(&mut self, lists: u32, texts: u64) -> Stage {
        match texts {
            0 => self.next_acl_list(lists),
            _ => {
                self.skip = if texts.is_multiple_of(2) { 4 } else { 0 };
                Stage::AclText { lists, texts }
            }
        }
    }
}
