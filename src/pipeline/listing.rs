//! getEphemerals, in pieces: a session may own very many.
//!
//! A few are found in each step, and between two steps others' requests are acted on. The answer
//! shows the state in which it is completed: what was found and has been deleted since is taken out
//! again. Nothing can have come since: a session's ephemerals are its own to make, and its shard
//! sends nothing more of a connection that waits for this answer.

use super::tracker::Client;
use crate::jute::{Reader, Write as _};
use crate::tree::TreeWriter;
use crate::types::{SessionId, Xid};

/// An answer that is being made.
pub(super) struct Listing {
    pub(super) from: Client,
    pub(super) session: SessionId,
    pub(super) xid: Xid,
    prefix: String,
    pieces: Vec<Piece>,
    count: usize,
    bytes: usize,
}

/// What one step has found, in the order of the paths.
struct Piece {
    first: String,
    last: String,
    /// Texts, one after the other.
    texts: Vec<u8>,
}

impl Listing {
    pub(super) fn new(from: Client, session: SessionId, xid: Xid, prefix: &str) -> Listing {
        let prefix = prefix.to_owned();
        Listing { from, session, xid, prefix, pieces: Vec::new(), count: 0, bytes: 0 }
    }

    /// How long the answer is by now.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Finds so many more. Says whether there may be others.
    pub(super) fn go_on(&mut self, tree: &TreeWriter, most: usize) -> bool {
        let behind = self.pieces.last().map(|piece| piece.last.as_str());
        let (mut found, mut last, mut texts) = (0, None, Vec::new());
        let mut first = None;
        for path in tree.ephemerals_from(self.session, &self.prefix, behind).take(most) {
            first.get_or_insert(path);
            last = Some(path);
            texts.put_text(path);
            found += 1;
        }
        if let (Some(first), Some(last)) = (first, last) {
            self.count += found;
            self.bytes += texts.len();
            self.pieces.push(Piece { first: first.to_owned(), last: last.to_owned(), texts });
        }
        found == most
    }

    /// A path is the session's no more.
    pub(super) fn remove(&mut self, path: &str) {
        let at = self.pieces.partition_point(|piece| piece.first.as_str() <= path);
        let Some(piece) = at.checked_sub(1).and_then(|at| self.pieces.get_mut(at)) else { return };
        let mut rest = Reader::with_field_bytes_max(&piece.texts, piece.texts.len());
        let mut start = 0;
        while let Ok(Some(text)) = rest.text() {
            let end = piece.texts.len() - rest.rest().len();
            if text == path {
                self.bytes -= end - start;
                self.count -= 1;
                piece.texts.drain(start..end);
                return;
            }
            start = end;
        }
    }

    /// The answer's body.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.reserve(size_of::<i32>() + self.bytes);
        out.put_count(Some(self.count));
        self.pieces.iter().for_each(|piece| out.extend_from_slice(&piece.texts));
    }
}
