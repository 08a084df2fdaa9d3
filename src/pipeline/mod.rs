//! The pipeline: what the pinned core runs. Everything that orders writes.
//!
//! (API first; the inside is being written.)

use std::sync::Arc;

use crate::exchange::{Applied, Requests, Touched};
use crate::tree::TreeReader;
use crate::types::{Now, SessionId, Zxid};

/// All that can happen to the pipeline.
pub enum Input<'a> {
    Requests(&'a Requests),
    Touched(&'a Touched),
    /// The local log is durable up to and including this zxid.
    Synced(Zxid),
    /// A snapshot that `Output::snapshot` asked for is on the disk, durable.
    SnapshotTaken(Zxid),
    /// A snapshot was asked for by an operator.
    SnapshotAsked,
    /// Often enough for session expiry: at least every half tickTime.
    Tick,
}

/// Records for the log, whole and framed, one after the other.
#[derive(Debug, Default)]
pub struct Append {
    /// The first record opens a new log file, named by its zxid; the one before is complete.
    pub new_file: bool,
    pub first: Zxid,
    pub last: Zxid,
    pub records: Vec<u8>,
}

/// What a step asks of the shell. The shell may do these in any order, as long as the log and
/// each shard get their own in order.
#[derive(Default)]
pub struct Output {
    /// To be appended, then synced; `Input::Synced` says when. One sync may cover many.
    pub appends: Vec<Append>,
    /// To be handed to every shard, in order.
    pub applied: Vec<Arc<Applied>>,
    /// To be written in the background.
    pub snapshot: Option<SnapshotJob>,
}

/// A snapshot to be written: the tree as of `zxid`, held still by a reader of its own.
pub struct SnapshotJob {
    pub zxid: Zxid,
    pub sessions: Vec<(SessionId, i32)>,
    pub reader: TreeReader,
}

pub struct Pipeline;

impl Pipeline {
    /// The only door: one input in, its consequences appended to `out`.
    pub fn step(&mut self, now: Now, input: Input<'_>, out: &mut Output) {
        let _ = (now, input, out);
    }
}
