//! Everything that passes between a shard core and the pipeline core.
//!
//! ```text
//! shard    -- Requests, Touched -->  pipeline      what clients want; who was heard from
//! pipeline -- Arc<Applied> ------->  every shard   what changed, and the answers, in order
//! pipeline -- Service ------------>  every shard   whether clients are served, and from which tree
//! ```
//!
//! Both directions travel in batches over FIFO channels. A batch is shared or reused, never
//! copied per shard or allocated per request: bodies and texts lie one after the other in the
//! batch's own buffers, and a `Span` says where.
//!
//! The one rule that spans cores: a shard moves its view of the tree to `Applied::zxid` only after
//! it has fired all watches of that batch, and answers reads from that view alone. So an event
//! reaches a client before any newer data, and a reply's zxid names exactly what was read.

use std::ops::Range;
use std::sync::Arc;

use crate::record::code::Code;
use crate::record::data::{Acl, Id};
use crate::tree::TreeReader;
pub use crate::tree::change::ChangeKind;
use crate::types::{SessionId, Xid, Zxid};

/// A shard core: its place among the shards, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

/// A connection of one shard. A slot is used again, with another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId {
    pub slot: u32,
    pub generation: u32,
}

/// Where something lies in a buffer of the batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub start: usize,
    pub end: usize,
}

impl Span {
    /// What was appended to a buffer since it had `start` bytes.
    #[must_use]
    pub const fn since(start: usize, end: usize) -> Span {
        Span { start, end }
    }

    #[must_use]
    pub const fn range(self) -> Range<usize> {
        self.start..self.end
    }
}

/// What a client wants of the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// A write by its opcode: create (all four), delete, setData, setACL, multi, reconfig. The
    /// body is as it came; the pipeline decodes and checks it.
    Write { op: i32 },
    /// `sync`: answered once all that was ordered before it is committed. The body is a path.
    Sync,
    /// `getEphemerals`: the pipeline knows them; ordered like a sync. The body is a prefix.
    Ephemerals,
    /// A new session. `timeout_ms` is negotiated already.
    Open { timeout_ms: i32, last_zxid_seen: Zxid },
    /// A session comes back over a new connection, with what it claims to be its password.
    Resume { timeout_ms: i32, last_zxid_seen: Zxid, password: [u8; 16] },
    /// `closeSession`.
    Close,
}

/// One request on its way.
#[derive(Clone, Debug)]
pub struct Request {
    pub connection: ConnectionId,
    /// The session that asks; for `Open` it is not known yet and 0.
    pub session: SessionId,
    pub xid: Xid,
    pub want: Want,
    /// The request's body, after its header, in `Requests::bodies`.
    pub body: Span,
    /// Who the connection was when the request came in.
    pub ids: Arc<[Id]>,
}

/// What one shard asks, in the order in which it came.
#[derive(Debug)]
pub struct Requests {
    pub shard: ShardId,
    pub requests: Vec<Request>,
    pub bodies: Vec<u8>,
}

impl Requests {
    #[must_use]
    pub fn new(shard: ShardId) -> Requests {
        Requests { shard, requests: Vec::new(), bodies: Vec::new() }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Makes the batch empty and keeps its memory.
    pub fn clear(&mut self) {
        self.requests.clear();
        self.bodies.clear();
    }

    #[must_use]
    pub fn body(&self, request: &Request) -> &[u8] {
        &self.bodies[request.body.range()]
    }
}

/// Which sessions a shard has heard from since it last said so. Sent every tick, also when there
/// are none: the pipeline expires nobody while a shard is behind with its report.
#[derive(Debug)]
pub struct Touched {
    pub shard: ShardId,
    /// All that was heard up to this moment of the monotonic clock is in here or was before.
    pub as_of_ms: i64,
    /// A session and when it was last heard from.
    pub heard: Vec<(SessionId, i64)>,
}

/// A znode that a transaction touched.
///
/// `Created` and `Deleted` are also a change of the parent's children. The ACLs are those that
/// decide who may hear of it: the znode's own (before its deletion), and the parent's. `None` is
/// the open ACL, which lets everyone.
#[derive(Clone, Debug)]
pub struct Change {
    pub kind: ChangeKind,
    pub zxid: Zxid,
    /// In `Applied::paths`.
    pub path: Span,
    pub acl: Option<Arc<[Acl]>>,
    pub parent_acl: Option<Arc<[Acl]>>,
}

/// What becomes of a request, or of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The reply: its header and its body, in `Applied::bodies`. With `close`, the connection
    /// ends once the reply is flushed.
    Answer { xid: Xid, err: Code, body: Span, close: bool },
    /// The session is open or resumed.
    Connected { session: SessionId, timeout_ms: i32, password: [u8; 16] },
    /// There is no such session (any more): a refusing ConnectResponse, then the end.
    Refused,
    /// Instead of an answer to a request, the connection ends without a word: the client has seen
    /// more than this server, or the session has come back over another connection.
    Dropped,
    /// The connection ends without a word because its session expired or came back over another
    /// connection. This answers no request: what the connection has asked is answered as well.
    Ended,
}

/// One outcome, for one connection of one shard.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    pub shard: ShardId,
    pub connection: ConnectionId,
    /// The reply's place in history: that of its own transaction where it has one.
    pub zxid: Zxid,
    pub outcome: Outcome,
}

/// One thing that a shard must act on, in this order.
#[derive(Clone, Debug)]
pub enum Item {
    Change(Change),
    Reply(Reply),
}

/// What has been committed since the batch before, for every shard.
#[derive(Debug, Default)]
pub struct Applied {
    /// The last zxid in here: the view to move to. Equal to the batch before's where only
    /// replies without a transaction are in it.
    pub zxid: Zxid,
    pub items: Vec<Item>,
    pub paths: String,
    pub bodies: Vec<u8>,
}

/// How clients are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    ReadWrite,
    /// A server without a quorum, with `readonlymode.enabled`: clients that ask for it may read.
    ReadOnly,
}

/// Whether clients are served. It has its place in the order of what a shard is told: behind every
/// `Applied` of the same step.
pub enum Serves {
    /// From here on, and from this tree: one reader for each shard, by its number. Each shows the
    /// state of the last `Applied`.
    Clients { mode: Mode, readers: Vec<TreeReader> },
    /// All connections are closed, and so is who comes.
    Nobody,
}

/// The same, as one shard is told.
pub enum Service {
    Clients { mode: Mode, reader: TreeReader },
    Nobody,
}

impl Serves {
    /// What each of so many shards is told, by its number.
    pub fn for_shards(self, shards: usize) -> impl Iterator<Item = Service> {
        let (mode, readers) = match self {
            Serves::Clients { mode, readers } => {
                assert_eq!(readers.len(), shards, "each shard has a reader of its own");
                (mode, readers)
            }
            Serves::Nobody => (Mode::ReadWrite, Vec::new()),
        };
        let mut readers = readers.into_iter();
        (0..shards).map(move |_| match readers.next() {
            Some(reader) => Service::Clients { mode, reader },
            None => Service::Nobody,
        })
    }
}

impl Applied {
    #[must_use]
    pub fn path(&self, span: Span) -> &str {
        &self.paths[span.range()]
    }

    #[must_use]
    pub fn body(&self, span: Span) -> &[u8] {
        &self.bodies[span.range()]
    }

    /// Makes the batch empty and keeps its memory.
    pub fn clear(&mut self) {
        self.items.clear();
        self.paths.clear();
        self.bodies.clear();
    }
}
