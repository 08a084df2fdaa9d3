//! A snapshot's bytes, written and read in chunks.
//!
//! ```text
//! snapshot = header sessions acls nodes seal [digest seal] [last processed seal]
//! header   = int magic "ZKSN", int version 2, long dbid -1                       16 bytes
//! sessions = int count, count * { long session, int timeout in ms }
//! acls     = int count, count * { long id, vector<ACL> }
//! nodes    = { ustring path, buffer data, long acl id, StatPersisted }*, ustring "/"
//! seal     = long Adler-32 of all before it, ustring "/"                         13 bytes
//! digest   = long zxid, int version 2, long digest    (version < 2: ustring hex) 20 bytes
//! last processed = long zxid                                                      8 bytes
//! ```
//!
//! The root comes first and its path is empty; a parent comes before its children, which whoever
//! builds the tree sees. Which blocks there are depends on the writer's release and settings, and
//! is told by how much follows the first seal: 0, 33, 21 or 54 bytes.
//!
//! What the reader hands out is unproven until it returns `None`: only then has every seal been
//! held against what was read. A tree built from a snapshot that fails is to be dropped whole.
//!
//! After `FileSnap.java`, `SerializeUtils.java` and `DataTree.serialize`.

use std::borrow::Cow;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use simd_adler32::Adler32;

use crate::jute::record::{Buffer, Record as _};
use crate::jute::{Reader, Write as _, decode_lossy};
use crate::record::data::{AclBytes, StatPersisted};
use crate::record::persistence::{FORMAT_VERSION, FileHeader, SNAPSHOT_DBID, SNAPSHOT_MAGIC};
use crate::record::txn::DIGEST_VERSION;
use crate::types::{SessionId, Zxid};

/// The ACL number of a znode that is open to all; it is not among a snapshot's lists.
pub const OPEN_ACL_ID: i64 = -1;

/// The path that ends the nodes, and every seal.
const TERMINATOR: &[u8] = b"\0\0\0\x01/";
const SEAL_BYTES: usize = 8 + TERMINATOR.len();
const SESSION_BYTES: usize = 12;
/// What follows a node's path and data: its ACL's number and its stat.
const NODE_TAIL_BYTES: usize = 8 + 60;
/// Of a znode without path and data: their lengths, and what follows them.
pub const NODE_BYTES_MIN: usize = 4 + 4 + NODE_TAIL_BYTES;
const LAST_PROCESSED_BYTES: usize = 8;
/// Zxid, version and a text of any length that a hexadecimal long may have, sealed, with the last
/// block: no more than this follows the first seal.
const TRAILER_BYTES_MAX: usize = 256;

/// How much is read, and written, at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// The tree's digest as it was when the snapshot was finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotDigest {
    /// The last transaction applied by then; zero if none was since the tree was loaded.
    pub zxid: Zxid,
    pub version: i32,
    pub digest: i64,
}

/// The blocks after the nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trailer {
    /// Since 3.6.
    pub digest: Option<SnapshotDigest>,
    /// Since 3.9. The zxid in the file's name takes precedence.
    pub last_processed: Option<Zxid>,
}

/// Writes a snapshot: `sessions`, `acls`, `node` for each, `finish`.
pub struct SnapshotWriter<W> {
    out: W,
    /// Not yet written. Everything before is in `checksum`.
    chunk: Vec<u8>,
    checksum: Adler32,
    part: Part,
}

/// Which part of a snapshot is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Sessions,
    Acls,
    Root,
    Nodes,
}

impl<W: Write> SnapshotWriter<W> {
    pub fn new(out: W) -> SnapshotWriter<W> {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        let (magic, version, dbid) = (SNAPSHOT_MAGIC, FORMAT_VERSION, SNAPSHOT_DBID);
        FileHeader { magic, version, dbid }.write(&mut chunk);
        SnapshotWriter { out, chunk, checksum: Adler32::new(), part: Part::Sessions }
    }

    /// Writes what a leader sends of a snapshot: `finish_body` ends it.
    pub fn body(out: W) -> SnapshotWriter<W> {
        let chunk = Vec::with_capacity(CHUNK_BYTES);
        SnapshotWriter { out, chunk, checksum: Adler32::new(), part: Part::Sessions }
    }

    /// The end of the nodes, and nothing behind it.
    pub fn finish_body(mut self) -> io::Result<()> {
        assert_eq!(self.part, Part::Nodes, "a tree has a root");
        self.chunk.extend_from_slice(TERMINATOR);
        self.write_chunk()?;
        self.out.flush()
    }

    /// What has been written to: to take bytes out of a `Vec` between chunks.
    pub fn out(&mut self) -> &mut W {
        &mut self.out
    }

    /// All sessions with their timeouts in milliseconds.
    ///
    /// # Panics
    /// If called twice or late, as every method here that is called out of order.
    pub fn sessions(
        &mut self,
        sessions: impl ExactSizeIterator<Item = (SessionId, i32)>,
    ) -> io::Result<()> {
        self.enter(Part::Sessions, Part::Acls);
        self.chunk.put_count(Some(sessions.len()));
        for (id, timeout_ms) in sessions {
            self.chunk.put_i64(id.0);
            self.chunk.put_i32(timeout_ms);
            self.write_full_chunk()?;
        }
        Ok(())
    }

    /// All ACL lists that a node may name, but for the open one.
    pub fn acls<'a>(
        &mut self,
        acls: impl ExactSizeIterator<Item = (i64, AclBytes<'a>)>,
    ) -> io::Result<()> {
        self.enter(Part::Acls, Part::Root);
        self.chunk.put_count(Some(acls.len()));
        for (id, acl) in acls {
            self.chunk.put_i64(id);
            acl.write(&mut self.chunk);
            self.write_full_chunk()?;
        }
        Ok(())
    }

    /// One znode. The first is the root, whose path is empty here; a parent precedes its children.
    pub fn node(
        &mut self,
        path: &str,
        data: Buffer<'_>,
        acl_id: i64,
        stat: &StatPersisted,
    ) -> io::Result<()> {
        if path.is_empty() {
            self.enter(Part::Root, Part::Nodes);
        } else {
            assert_eq!(self.part, Part::Nodes, "the root comes before {path}");
            assert!(is_node_path(path.as_bytes()), "{path} is a znode below the root");
        }
        self.chunk.put_text(path);
        self.chunk.put_buffer(data);
        self.chunk.put_i64(acl_id);
        stat.write(&mut self.chunk);
        self.write_full_chunk()
    }

    /// The end of the nodes, the seals and what is wanted between them. Nothing is synced.
    pub fn finish(mut self, trailer: Trailer) -> io::Result<W> {
        assert_eq!(self.part, Part::Nodes, "a tree has a root");
        self.chunk.extend_from_slice(TERMINATOR);
        self.seal()?;
        if let Some(SnapshotDigest { zxid, version, digest }) = trailer.digest {
            self.chunk.put_i64(zxid.0);
            self.chunk.put_i32(version);
            if version < DIGEST_VERSION {
                self.chunk.put_text(&format!("{digest:x}"));
            } else {
                self.chunk.put_i64(digest);
            }
            self.seal()?;
        }
        if let Some(zxid) = trailer.last_processed {
            self.chunk.put_i64(zxid.0);
            self.seal()?;
        }
        self.write_chunk()?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn enter(&mut self, part: Part, next: Part) {
        assert_eq!(self.part, part, "a snapshot's parts come in order");
        self.part = next;
    }

    fn seal(&mut self) -> io::Result<()> {
        self.write_chunk()?;
        self.chunk.put_i64(i64::from(self.checksum.finish()));
        self.chunk.extend_from_slice(TERMINATOR);
        Ok(())
    }

    fn write_full_chunk(&mut self) -> io::Result<()> {
        if self.chunk.len() < CHUNK_BYTES { Ok(()) } else { self.write_chunk() }
    }

    fn write_chunk(&mut self) -> io::Result<()> {
        self.checksum.write(&self.chunk);
        self.out.write_all(&self.chunk)?;
        self.chunk.clear();
        Ok(())
    }
}

/// Writes a snapshot from a body as another server sends it: all between the header and the first seal.
/// No digest and no zxid follow, since nobody knows them.
pub struct BodyWriter<W> {
    out: W,
    checksum: Adler32,
}

impl<W: Write> BodyWriter<W> {
    pub fn new(out: W) -> io::Result<BodyWriter<W>> {
        let mut writer = BodyWriter { out, checksum: Adler32::new() };
        let mut header = Vec::new();
        let (magic, version, dbid) = (SNAPSHOT_MAGIC, FORMAT_VERSION, SNAPSHOT_DBID);
        FileHeader { magic, version, dbid }.write(&mut header);
        writer.write(&header)?;
        Ok(writer)
    }

    /// The next bytes of the body.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.checksum.write(bytes);
        self.out.write_all(bytes)
    }

    /// The body has ended. Nothing is synced.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&i64::from(self.checksum.finish()).to_be_bytes())?;
        self.out.write_all(TERMINATOR)?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// One thing that a snapshot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    Session { id: SessionId, timeout_ms: i32 },
    Acl { id: i64, acl: AclBytes<'a> },
    Node { path: Cow<'a, str>, data: Buffer<'a>, acl_id: i64, stat: StatPersisted },
}

/// A snapshot that cannot be used. Offsets count what comes out of the compression.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("{}: not a snapshot (magic {magic:#010x})", path.display())]
    Magic { path: PathBuf, magic: u32 },
    #[error("{}: cannot be read at byte {offset}: {source}", path.display())]
    Read { path: PathBuf, offset: u64, source: io::Error },
    #[error("{}: ends at byte {offset}, within its {within}", path.display())]
    Cut { path: PathBuf, offset: u64, within: &'static str },
    #[error("{}: damaged at byte {offset}: {what}", path.display())]
    Malformed { path: PathBuf, offset: u64, what: &'static str },
    #[error(
        "{}: damaged before byte {offset}: checksum {stored:#x} is stored, {computed:#x} was found",
        path.display()
    )]
    Checksum { path: PathBuf, offset: u64, stored: u64, computed: u64 },
}

/// Reads a snapshot. Memory grows with what has arrived of one field, never by what is announced.
pub struct SnapshotReader<R> {
    path: PathBuf,
    source: R,
    /// Bytes `unread..filled` are to be read, those before `hashed` are in `checksum`.
    chunk: Vec<u8>,
    hashed: usize,
    unread: usize,
    filled: usize,
    /// How much came before the chunk.
    offset: u64,
    checksum: Adler32,
    stage: Stage,
}

/// What is to be read next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Header,
    Sessions {
        left: usize,
    },
    Acls {
        left: usize,
    },
    Root,
    Nodes,
    Done(Trailer),
    /// An error was returned; it stays one.
    Failed,
}

/// Where the parts of a node are in the chunk.
struct NodeSpan {
    path_end: usize,
    data_end: usize,
    end: usize,
}

/// Why an item cannot be cut from the chunk yet, or ever.
enum Uncut {
    /// It goes on beyond what has arrived.
    Short,
    Malformed {
        at: usize,
        what: &'static str,
    },
}

impl<R: Read> SnapshotReader<R> {
    /// `source` gives what is left after decompression; `path` is for messages. No field is too
    /// long: what was written is read, whatever clients may send.
    pub fn new(path: &Path, source: R) -> SnapshotReader<R> {
        SnapshotReader {
            path: path.to_path_buf(),
            source,
            chunk: vec![0; CHUNK_BYTES],
            hashed: 0,
            unread: 0,
            filled: 0,
            offset: 0,
            checksum: Adler32::new(),
            stage: Stage::Header,
        }
    }

    /// The next item; `None` once all of the snapshot has been read and every seal holds. An error
    /// is final.
    #[expect(clippy::should_implement_trait, reason = "an item borrows from the reader")]
    pub fn next(&mut self) -> Result<Option<Item<'_>>, SnapshotError> {
        let stage = std::mem::replace(&mut self.stage, Stage::Failed);
        self.read(stage)
    }

    /// What follows the nodes, once `next` has returned `None`.
    #[must_use]
    pub fn trailer(&self) -> Option<Trailer> {
        match self.stage {
            Stage::Done(trailer) => Some(trailer),
            _ => None,
        }
    }

    fn read(&mut self, stage: Stage) -> Result<Option<Item<'_>>, SnapshotError> {
        let mut stage = stage;
        loop {
            stage = match stage {
                Stage::Header => self.read_header()?,
                Stage::Sessions { left: 0 } => {
                    Stage::Acls { left: self.read_count("count of ACLs")? }
                }
                Stage::Sessions { left } => {
                    let span = self.take(SESSION_BYTES, "sessions")?;
                    let id = SessionId(self.i64_at(span));
                    let timeout_ms = self.i32_at(span + 8);
                    self.stage = Stage::Sessions { left: left - 1 };
                    return Ok(Some(Item::Session { id, timeout_ms }));
                }
                Stage::Acls { left: 0 } => Stage::Root,
                Stage::Acls { left } => {
                    let (start, end) = self.cut("ACLs", acl_span)?;
                    self.stage = Stage::Acls { left: left - 1 };
                    let id = self.i64_at(start);
                    let acl = AclBytes::from_bytes(&self.chunk[start + 8..end]);
                    let acl = acl.map_err(|_| self.malformed(start, "an ACL list"))?;
                    return Ok(Some(Item::Acl { id, acl }));
                }
                Stage::Root | Stage::Nodes => {
                    let (start, span) = self.cut("nodes", node_span)?;
                    let path = &self.chunk[start + 4..span.path_end];
                    let is_expected = match stage {
                        Stage::Root => path.is_empty(),
                        _ => path == b"/" || is_node_path(path),
                    };
                    if !is_expected {
                        return Err(self.malformed(start, "a path"));
                    }
                    if path == b"/" {
                        Stage::Done(self.read_trailer()?)
                    } else {
                        self.stage = Stage::Nodes;
                        return Ok(Some(self.node(start, &span)));
                    }
                }
                Stage::Done(trailer) => {
                    self.stage = Stage::Done(trailer);
                    return Ok(None);
                }
                Stage::Failed => return Err(self.malformed(self.unread, "an error, told before")),
            };
        }
    }

    fn read_header(&mut self) -> Result<Stage, SnapshotError> {
        let start = self.take(16, "header")?;
        let magic = self.i32_at(start);
        if magic != SNAPSHOT_MAGIC {
            return Err(SnapshotError::Magic { path: self.path.clone(), magic: magic as u32 });
        }
        Ok(Stage::Sessions { left: self.read_count("count of sessions")? })
    }

    fn read_count(&mut self, what: &'static str) -> Result<usize, SnapshotError> {
        let start = self.take(4, what)?;
        // ZooKeeper counts down to zero, so a negative count is none.
        Ok(usize::try_from(self.i32_at(start)).unwrap_or(0))
    }

    fn node(&self, start: usize, span: &NodeSpan) -> Item<'_> {
        let path = decode_lossy(&self.chunk[start + 4..span.path_end]);
        let data = &self.chunk[span.path_end..span.data_end];
        let data = (self.i32_at(span.path_end) != -1).then(|| &data[4..]);
        let tail = &self.chunk[span.data_end..span.end];
        let mut tail = Reader::new(tail);
        let acl_id = tail.i64().expect("a node's tail is whole");
        let stat = StatPersisted::read(&mut tail).expect("a node's tail is whole");
        Item::Node { path, data, acl_id, stat }
    }

    /// Reads from the first seal to the end of the file.
    fn read_trailer(&mut self) -> Result<Trailer, SnapshotError> {
        self.check_seal()?;
        while self.filled - self.unread <= TRAILER_BYTES_MAX && self.fill()? {}
        let mut trailer = Trailer::default();
        let sealed_last = LAST_PROCESSED_BYTES + SEAL_BYTES;
        if !matches!(self.filled - self.unread, 0) && self.filled - self.unread != sealed_last {
            trailer.digest = Some(self.read_digest()?);
            self.check_seal()?;
        }
        if self.filled - self.unread == sealed_last {
            let start = self.take(LAST_PROCESSED_BYTES, "last processed zxid")?;
            trailer.last_processed = Some(Zxid(self.i64_at(start)));
            self.check_seal()?;
        }
        if self.unread < self.filled {
            return Err(self.malformed(self.unread, "bytes after the last seal"));
        }
        Ok(trailer)
    }

    fn read_digest(&mut self) -> Result<SnapshotDigest, SnapshotError> {
        let start = self.take(12, "digest")?;
        let (zxid, version) = (Zxid(self.i64_at(start)), self.i32_at(start + 8));
        let digest = if version < DIGEST_VERSION {
            let (start, end) = self.cut("digest", field_end)?;
            let text = std::str::from_utf8(&self.chunk[start + 4..end]);
            let digest = text.ok().and_then(|text| u64::from_str_radix(text, 16).ok());
            digest.ok_or_else(|| self.malformed(start, "a digest in hex"))? as i64
        } else {
            let start = self.take(8, "digest")?;
            self.i64_at(start)
        };
        Ok(SnapshotDigest { zxid, version, digest })
    }

    /// Holds the seal that comes next against everything before it.
    fn check_seal(&mut self) -> Result<(), SnapshotError> {
        self.hash();
        let computed = u64::from(self.checksum.finish());
        let start = self.take(SEAL_BYTES, "seal")?;
        let stored = self.i64_at(start) as u64;
        if stored != computed {
            let (path, offset) = (self.path.clone(), self.offset + start as u64);
            return Err(SnapshotError::Checksum { path, offset, stored, computed });
        }
        if !self.chunk[start..self.unread].ends_with(TERMINATOR) {
            return Err(self.malformed(start, "a seal without its end"));
        }
        Ok(())
    }

    /// Takes `bytes` bytes; where they begin in the chunk.
    fn take(&mut self, bytes: usize, within: &'static str) -> Result<usize, SnapshotError> {
        while self.filled - self.unread < bytes {
            self.fill_or_cut(within)?;
        }
        let start = self.unread;
        self.unread += bytes;
        Ok(start)
    }

    /// Takes one item, whose extent `measure` finds in the chunk, filling it until it does.
    fn cut<S: Span>(
        &mut self,
        within: &'static str,
        measure: impl Fn(&[u8], usize) -> Result<S, Uncut>,
    ) -> Result<(usize, S), SnapshotError> {
        loop {
            match measure(&self.chunk[..self.filled], self.unread) {
                Ok(span) => {
                    let start = self.unread;
                    self.unread = span.end();
                    return Ok((start, span));
                }
                Err(Uncut::Short) => self.fill_or_cut(within)?,
                Err(Uncut::Malformed { at, what }) => return Err(self.malformed(at, what)),
            }
        }
    }

    fn fill_or_cut(&mut self, within: &'static str) -> Result<(), SnapshotError> {
        if self.fill()? {
            return Ok(());
        }
        let (path, offset) = (self.path.clone(), self.offset + self.filled as u64);
        Err(SnapshotError::Cut { path, offset, within })
    }

    /// Brings more into the chunk; false at the end of the source.
    fn fill(&mut self) -> Result<bool, SnapshotError> {
        if self.filled == self.chunk.len() {
            self.hash();
            self.chunk.copy_within(self.unread.., 0);
            self.offset += self.unread as u64;
            self.filled -= self.unread;
            (self.hashed, self.unread) = (0, 0);
            if self.chunk.len() / 2 < self.filled {
                self.chunk.resize(2 * self.chunk.len(), 0);
            }
        }
        loop {
            match self.source.read(&mut self.chunk[self.filled..]) {
                Ok(bytes) => {
                    self.filled += bytes;
                    return Ok(bytes != 0);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    let (path, offset) = (self.path.clone(), self.offset + self.filled as u64);
                    return Err(SnapshotError::Read { path, offset, source });
                }
            }
        }
    }

    /// Brings the checksum up to what has been read.
    fn hash(&mut self) {
        self.checksum.write(&self.chunk[self.hashed..self.unread]);
        self.hashed = self.unread;
    }

    fn i32_at(&self, start: usize) -> i32 {
        i32::from_be_bytes(self.chunk[start..start + 4].try_into().expect("four bytes"))
    }

    fn i64_at(&self, start: usize) -> i64 {
        i64::from_be_bytes(self.chunk[start..start + 8].try_into().expect("eight bytes"))
    }

    fn malformed(&self, at: usize, what: &'static str) -> SnapshotError {
        SnapshotError::Malformed { path: self.path.clone(), offset: self.offset + at as u64, what }
    }
}

/// The extent of an item within a chunk.
trait Span {
    fn end(&self) -> usize;
}

impl Span for usize {
    fn end(&self) -> usize {
        *self
    }
}

impl Span for NodeSpan {
    fn end(&self) -> usize {
        self.end
    }
}

/// A path a znode can have, below the root. (More is checked where a client asks for it.)
fn is_node_path(path: &[u8]) -> bool {
    2 <= path.len() && path[0] == b'/' && path[path.len() - 1] != b'/'
}

/// Where the buffer or string that begins at `start` ends.
fn field_end(chunk: &[u8], start: usize) -> Result<usize, Uncut> {
    let Some(length) = chunk.get(start..).and_then(<[u8]>::first_chunk) else {
        return Err(Uncut::Short);
    };
    let end = match i32::from_be_bytes(*length) {
        -1 => start + 4,
        length => match usize::try_from(length) {
            Ok(length) => start + 4 + length,
            Err(_) => return Err(Uncut::Malformed { at: start, what: "a length" }),
        },
    };
    if end <= chunk.len() { Ok(end) } else { Err(Uncut::Short) }
}

/// The extent of a node, or of the terminator, which is a path alone.
fn node_span(chunk: &[u8], start: usize) -> Result<NodeSpan, Uncut> {
    let path_end = field_end(chunk, start)?;
    match &chunk[start..path_end] {
        TERMINATOR => return Ok(NodeSpan { path_end, data_end: path_end, end: path_end }),
        [0xff, ..] => return Err(Uncut::Malformed { at: start, what: "a node without a path" }),
        _ => {}
    }
    let data_end = field_end(chunk, path_end)?;
    let end = data_end + NODE_TAIL_BYTES;
    if end <= chunk.len() { Ok(NodeSpan { path_end, data_end, end }) } else { Err(Uncut::Short) }
}

/// The extent of an ACL's number and list.
fn acl_span(chunk: &[u8], start: usize) -> Result<usize, Uncut> {
    let mut end = start + 8;
    let Some(count) = chunk.get(end..).and_then(<[u8]>::first_chunk) else {
        return Err(Uncut::Short);
    };
    let count = i32::from_be_bytes(*count);
    end += 4;
    if count == -1 {
        return Err(Uncut::Malformed { at: start, what: "a number without an ACL list" });
    }
    for _ in 0..count.max(0) {
        end = field_end(chunk, end + 4)?;
        end = field_end(chunk, end)?;
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jute::FIELD_BYTES_MAX;

    /// Gives one byte at a time, as a slow source may.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
            let bytes = target.len().min(self.0.len()).min(1);
            self.0.read(&mut target[..bytes])
        }
    }

    fn root_only(out: Vec<u8>) -> SnapshotWriter<Vec<u8>> {
        let mut writer = SnapshotWriter::new(out);
        writer.sessions([].into_iter()).unwrap();
        writer.acls([].into_iter()).unwrap();
        writer.node("", None, OPEN_ACL_ID, &StatPersisted::default()).unwrap();
        writer
    }

    #[test]
    fn a_slow_source_makes_no_difference() {
        let bytes = root_only(Vec::new()).finish(Trailer::default()).unwrap();
        let mut reader = SnapshotReader::new(Path::new("snapshot.0"), Trickle(&bytes));
        assert!(matches!(reader.next(), Ok(Some(Item::Node { .. }))));
        assert!(matches!(reader.next(), Ok(None)));
        assert_eq!(reader.trailer(), Some(Trailer::default()));
    }

    #[test]
    fn nothing_is_allocated_by_an_announced_length() {
        let mut writer = root_only(Vec::new());
        writer.write_chunk().unwrap();
        let mut bytes = writer.out().clone();
        bytes.put_text("/a");
        bytes.put_i32(FIELD_BYTES_MAX as i32);
        bytes.extend_from_slice(b"less than announced");
        // And counts: two billion sessions, or ACLs, of which none is there.
        for (at, read) in [(bytes.len(), 1), (16, 0), (20, 0)] {
            let mut image = bytes.clone();
            if at < image.len() {
                image.truncate(at);
                image.put_i32(i32::MAX);
            }
            let mut reader = SnapshotReader::new(Path::new("snapshot.0"), &*image);
            for _ in 0..read {
                assert!(reader.next().unwrap().is_some());
            }
            let error = reader.next().unwrap_err();
            assert!(matches!(error, SnapshotError::Cut { .. }), "{error}");
            assert_eq!(reader.chunk.len(), CHUNK_BYTES);
            assert!(reader.next().is_err(), "an error is final");
            assert_eq!(reader.trailer(), None);
        }
    }

    #[test]
    fn no_field_is_too_long_and_a_negative_length_is_none() {
        let data = vec![7; 3 * FIELD_BYTES_MAX];
        let mut writer = root_only(Vec::new());
        writer.node("/a", Some(&data), OPEN_ACL_ID, &StatPersisted::default()).unwrap();
        let mut bytes = writer.finish(Trailer::default()).unwrap();
        let read = |bytes: &[u8]| {
            let mut reader = SnapshotReader::new(Path::new("snapshot.0"), bytes);
            reader.next().unwrap();
            reader.next().map(
                |item| matches!(item, Some(Item::Node { data: Some(found), .. }) if found == data),
            )
        };
        assert!(read(&bytes).unwrap());
        bytes[106..110].copy_from_slice(&(-2_i32).to_be_bytes());
        let error = read(&bytes).unwrap_err().to_string();
        assert_eq!(error, "snapshot.0: damaged at byte 106: a length");
    }

    #[test]
    fn the_root_comes_first_and_every_other_path_is_below_it() {
        let stat = StatPersisted::default();
        for paths in [&["/a"][..], &["", ""], &["", "a"], &["", "/a/"], &["", "/"]] {
            let mut bytes = SnapshotWriter::new(Vec::new()).chunk;
            bytes.put_i32(0);
            bytes.put_i32(0);
            for path in paths {
                bytes.put_text(path);
                bytes.put_buffer(None);
                bytes.put_i64(OPEN_ACL_ID);
                stat.write(&mut bytes);
            }
            let mut reader = SnapshotReader::new(Path::new("snapshot.0"), &*bytes);
            for _ in 1..paths.len() {
                assert!(reader.next().unwrap().is_some());
            }
            assert!(reader.next().is_err(), "{paths:?}");
        }
    }

    #[test]
    fn what_is_behind_the_last_seal_is_refused() {
        let whole = root_only(Vec::new()).finish(Trailer::default()).unwrap();
        for more in [1, 13, 20, 22, 32, 34, 53, 55, 1000] {
            let mut bytes = whole.clone();
            bytes.resize(whole.len() + more, 0);
            let mut reader = SnapshotReader::new(Path::new("snapshot.0"), &*bytes);
            reader.next().unwrap();
            assert!(reader.next().is_err(), "{more} more bytes");
        }
    }

    #[test]
    fn another_file_is_not_a_snapshot() {
        let error =
            SnapshotReader::new(Path::new("snapshot.0"), &b"ZKLG\0\0\0\x02\0\0\0\0\0\0\0\0"[..])
                .next()
                .map(|_| ())
                .unwrap_err();
        assert_eq!(error.to_string(), "snapshot.0: not a snapshot (magic 0x5a4b4c47)");
    }
}
