//! Bytes on their way to a client, in pieces.
//!
//! ```text
//! front piece                                   back piece
//! [written|to be written ......]  [....]  ...  [...... appended here]
//! ```
//!
//! Many small replies share a piece and so leave in one send. A large answer is many pieces: its
//! bytes are never moved, and the memory goes back piece by piece as the client takes them. The
//! pieces of large values go back to the shard, which uses them again (`Spare`): memory that the
//! kernel has to find, to zero and to map takes longer to write than to send.

use std::collections::VecDeque;

/// A piece of at least so many bytes is not appended to.
pub(super) const PIECE_BYTES: usize = 64 << 10;

/// What is shorter is copied rather than kept as a piece.
const SMALL_BYTES: usize = 16 << 10;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// None is empty, but where it is the only one: its memory is kept then.
    pieces: VecDeque<Piece>,
    /// How much of the front piece has been written.
    written: usize,
    /// In all pieces, without what has been written.
    len: usize,
    /// Of events, in all pieces.
    event_bytes: usize,
}

/// Empty pieces of `PIECE_BYTES`, to be used again by any connection of a shard.
#[derive(Debug, Default)]
pub(super) struct Spare {
    pieces: Vec<Vec<u8>>,
}

/// As much as a few connections have on their way that read one large value after the other.
const SPARE_BYTES_MAX: usize = 4 << 20;

impl Spare {
    fn take(&mut self) -> Vec<u8> {
        self.pieces.pop().unwrap_or_else(|| Vec::with_capacity(PIECE_BYTES))
    }

    /// Keeps a piece that is not needed any more, if it has the right size and there is room.
    fn give_back(&mut self, mut piece: Vec<u8>) {
        let has_room = self.pieces.len() < SPARE_BYTES_MAX / PIECE_BYTES;
        if piece.capacity() == PIECE_BYTES && has_room {
            piece.clear();
            self.pieces.push(piece);
        }
    }
}

#[derive(Debug, Default)]
struct Piece {
    bytes: Vec<u8>,
    /// How many of the bytes are events.
    event_bytes: usize,
}

impl Outbox {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The next bytes to write: those of the front piece.
    pub(super) fn front(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| &piece.bytes[self.written..])
    }

    /// How many bytes of events are not written yet: all of the front piece may be.
    pub(super) fn event_bytes(&self) -> usize {
        let front = self.pieces.front().map_or(0, |piece| piece.event_bytes);
        self.event_bytes - front + front.min(self.front().len())
    }

    /// Appends: `write` adds to the end of what it is given, and takes nothing away.
    pub(super) fn append<R>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        let piece = self.back();
        let before = piece.bytes.len();
        let result = write(&mut piece.bytes);
        let count = piece.bytes.len() - before;
        self.len += count;
        result
    }

    /// Appends what is long, in pieces of `PIECE_BYTES` that none of it makes grow.
    pub(super) fn append_long(&mut self, bytes: &[u8], spare: &mut Spare) {
        let is_small = |piece: &Piece| piece.bytes.capacity() < PIECE_BYTES;
        if self.is_empty() && self.pieces.back().is_some_and(is_small) {
            self.pieces.clear();
            self.written = 0;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = |piece: &Piece| {
                piece.bytes.capacity().min(PIECE_BYTES).saturating_sub(piece.bytes.len())
            };
            if self.pieces.back().is_none_or(|piece| room(piece) == 0) {
                self.pieces.push_back(Piece { bytes: spare.take(), event_bytes: 0 });
            }
            let back = self.pieces.back_mut().expect("one was pushed if there was none");
            let (some, behind) = rest.split_at(rest.len().min(room(back)));
            back.bytes.extend_from_slice(some);
            rest = behind;
        }
        self.len += bytes.len();
    }

    /// Appends an event, and counts it as one.
    pub(super) fn append_event(&mut self, event: &[u8]) {
        let piece = self.back();
        piece.bytes.extend_from_slice(event);
        piece.event_bytes += event.len();
        self.event_bytes += event.len();
        self.len += event.len();
    }

    /// The piece to append to.
    fn back(&mut self) -> &mut Piece {
        if self.pieces.back().is_none_or(|piece| PIECE_BYTES <= piece.bytes.len()) {
            self.pieces.push_back(Piece::default());
        }
        self.pieces.back_mut().expect("one was pushed if there was none")
    }

    /// Appends all pieces of another.
    pub(super) fn append_all(&mut self, other: Outbox) {
        debug_assert_eq!(other.written, 0, "nothing of it has been written");
        debug_assert_eq!(other.event_bytes, 0, "events are counted where they wait for the client");
        if other.len < SMALL_BYTES {
            // It shares a piece, and a send, with others.
            let pieces = other.pieces.iter();
            return self.append(|out| pieces.for_each(|p| out.extend_from_slice(&p.bytes)));
        }
        if self.is_empty() {
            self.pieces.clear();
            self.written = 0;
        }
        self.len += other.len;
        self.pieces.extend(other.pieces);
    }

    /// Appends a text in pieces.
    pub(super) fn append_pieces(&mut self, pieces: Vec<Vec<u8>>) {
        let len = pieces.iter().map(Vec::len).sum();
        let pieces = pieces.into_iter().filter(|piece| !piece.is_empty());
        let pieces = pieces.map(|bytes| Piece { bytes, event_bytes: 0 }).collect();
        self.append_all(Outbox { pieces, written: 0, len, event_bytes: 0 });
    }

    /// The first bytes, to be filled in.
    pub(super) fn first_bytes(&mut self) -> Option<&mut [u8]> {
        self.pieces.front_mut().map(|piece| &mut piece.bytes[..])
    }

    /// The first `count` bytes have been written.
    pub(super) fn use_up(&mut self, count: usize, spare: &mut Spare) {
        assert!(count <= self.len, "only what is there can be used up");
        self.len -= count;
        self.written += count;
        while let Some(front) = self.pieces.front()
            && front.bytes.len() <= self.written
        {
            self.written -= front.bytes.len();
            if self.is_empty() {
                return self.clear();
            }
            self.event_bytes -= front.event_bytes;
            if let Some(piece) = self.pieces.pop_front() {
                spare.give_back(piece.bytes);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        // The last, which is the one to append to.
        self.pieces.drain(..self.pieces.len().saturating_sub(1));
        for piece in &mut self.pieces {
            piece.bytes.clear();
            piece.event_bytes = 0;
        }
        (self.written, self.len, self.event_bytes) = (0, 0, 0);
    }

    pub(super) fn into_pieces(self) -> impl Iterator<Item = Vec<u8>> {
        self.pieces.into_iter().map(|piece| piece.bytes)
    }

    /// The memory that it keeps.
    pub(super) fn capacity(&self) -> usize {
        self.pieces.iter().map(|piece| piece.bytes.capacity()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_the_order_in_which_they_came() {
        let mut outbox = Outbox::default();
        let mut spare = Spare::default();
        let (mut sent, mut received) = (Vec::new(), Vec::new());
        for round in 0..400_usize {
            let count = if round % 37 == 0 { PIECE_BYTES + round } else { round % 17 };
            let bytes: Vec<u8> = (0..count).map(|at| (round * 7 + at) as u8).collect();
            sent.extend_from_slice(&bytes);
            if round % 3 == 0 {
                outbox.append_long(&bytes, &mut spare);
            } else if round % 5 == 0 {
                outbox.append_pieces(bytes.chunks(9_999).map(<[u8]>::to_vec).collect());
            } else {
                outbox.append(|out| out.extend_from_slice(&bytes));
            }
            let count = outbox.front().len().min(round * 31 % 20_011);
            received.extend_from_slice(&outbox.front()[..count]);
            outbox.use_up(count, &mut spare);
            assert_eq!(outbox.len(), sent.len() - received.len());
        }
        while !outbox.is_empty() {
            let count = outbox.front().len();
            assert!(0 < count, "what is not written yet is in front");
            received.extend_from_slice(outbox.front());
            outbox.use_up(count, &mut spare);
        }
        assert!(sent == received);
        assert!(outbox.front().is_empty());
    }

    #[test]
    fn events_are_counted_until_they_are_written() {
        let mut outbox = Outbox::default();
        let use_up = |outbox: &mut Outbox, count| outbox.use_up(count, &mut Spare::default());
        for round in 1..=100 {
            outbox.append_event(&[1; 100]);
            outbox.append(|out| out.resize(out.len() + PIECE_BYTES, 2));
            assert_eq!(outbox.event_bytes(), round * 100);
        }
        // Whatever is behind them.
        use_up(&mut outbox, 99 * (PIECE_BYTES + 100));
        outbox.append_event(&[1; 7]);
        assert_eq!(outbox.event_bytes(), 107);
        use_up(&mut outbox, PIECE_BYTES + 100);
        assert_eq!(outbox.event_bytes(), 7);
        outbox.append_event(&[1; 100]);
        use_up(&mut outbox, 57);
        assert_eq!(outbox.event_bytes(), 50);
        use_up(&mut outbox, 50);
        assert_eq!(outbox.event_bytes(), 0);
    }

    #[test]
    fn memory_goes_back_as_it_is_written() {
        let mut outbox = Outbox::default();
        for _ in 0..100 {
            outbox.append(|out| out.resize(out.len() + PIECE_BYTES, 1));
        }
        let whole = outbox.capacity();
        let mut spare = Spare::default();
        outbox.use_up(99 * PIECE_BYTES, &mut spare);
        assert!(outbox.capacity() <= whole / 50);
        outbox.use_up(PIECE_BYTES, &mut spare);
        assert!(outbox.is_empty() && outbox.capacity() < 2 * PIECE_BYTES);
    }

    #[test]
    fn large_values_one_after_the_other_use_the_same_memory() {
        let (mut outbox, mut spare) = (Outbox::default(), Spare::default());
        let value = vec![7; 1_000_000];
        let mut at = Vec::new();
        for round in 0..100 {
            outbox.append(|out| out.extend_from_slice(b"small"));
            outbox.append_long(&value, &mut spare);
            assert!(outbox.pieces.iter().all(|piece| piece.bytes.len() <= PIECE_BYTES));
            let mut pieces: Vec<*const u8> =
                outbox.pieces.iter().map(|piece| piece.bytes.as_ptr()).collect();
            pieces.sort_unstable();
            if round == 1 {
                at = pieces;
            } else if 1 < round {
                assert_eq!(pieces, at, "the same pieces, in any order");
            }
            while !outbox.is_empty() {
                outbox.use_up(outbox.front().len(), &mut spare);
            }
        }
        // No more is kept than may be, and nothing of another size.
        let many = SPARE_BYTES_MAX / PIECE_BYTES;
        (0..2 * many).for_each(|_| spare.give_back(Vec::with_capacity(PIECE_BYTES)));
        assert_eq!(spare.pieces.len(), many);
        spare.pieces.clear();
        spare.give_back(Vec::with_capacity(2 * PIECE_BYTES));
        assert!(spare.pieces.is_empty());
    }
}
