//! Bytes that came and are not used yet, and a pool of what is empty.

use super::connection::Traffic;
use super::turns::Spent;

/// A queue of bytes in one piece.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    used_up: usize,
}

impl Buffer {
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.used_up
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.used_up..]
    }

    /// To append to.
    pub(super) fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    pub(super) fn use_up(&mut self, count: usize) {
        self.used_up += count;
        assert!(self.used_up <= self.bytes.len(), "only what is there can be used up");
        if self.used_up == self.bytes.len() {
            self.clear();
        } else if self.used_up > self.bytes.len() / 2 {
            // More is dropped than is moved, so each byte is moved less than once on average.
            self.bytes.copy_within(self.used_up.., 0);
            self.bytes.truncate(self.bytes.len() - self.used_up);
            self.used_up = 0;
        }
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.used_up = 0;
    }

    fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}

/// Empty `Traffic` of connections that fell idle, for the next ones that do not. Bounded, in
/// number and in bytes, so that a busy hour does not stay in memory for ever.
#[derive(Debug, Default)]
pub(super) struct Pool {
    #[expect(clippy::vec_box, reason = "the boxes themselves are what is reused")]
    empty: Vec<Box<Traffic>>,
    bytes: usize,
}

/// As many connections as one round of the core may find busy.
const POOLED_MAX: usize = 4096;
const POOLED_BYTES_MAX: usize = 4 << 20;
/// One with more is not kept.
const TRAFFIC_BYTES_MAX: usize = 128 << 10;

impl Pool {
    pub(super) fn take(&mut self) -> Box<Traffic> {
        let traffic = self.empty.pop().unwrap_or_default();
        self.bytes -= bytes(&traffic);
        traffic
    }

    pub(super) fn give_back(&mut self, mut traffic: Box<Traffic>) {
        let bytes = bytes(&traffic);
        if self.empty.len() < POOLED_MAX
            && bytes <= TRAFFIC_BYTES_MAX
            && self.bytes + bytes <= POOLED_BYTES_MAX
        {
            traffic.input.clear();
            traffic.output.clear();
            traffic.unanswered.clear();
            traffic.is_waiting = false;
            traffic.is_queued = false;
            traffic.spent = Spent::default();
            traffic.arrived = None;
            debug_assert!(traffic.long.is_none(), "what is under way is not given back");
            debug_assert!(traffic.wait.is_none(), "who waits has something to do");
            self.bytes += bytes;
            self.empty.push(traffic);
        }
    }
}

/// The memory that its buffers keep.
fn bytes(traffic: &Traffic) -> usize {
    traffic.input.capacity() + traffic.output.capacity()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_keeps_no_more_bytes_than_it_may() {
        let mut pool = Pool::default();
        let busy = |bytes: usize| {
            let mut traffic = Box::<Traffic>::default();
            traffic.output.append(|out| out.reserve_exact(bytes));
            traffic
        };
        for _ in 0..100 {
            pool.give_back(busy(TRAFFIC_BYTES_MAX));
            pool.give_back(busy(TRAFFIC_BYTES_MAX + 1));
        }
        assert_eq!(pool.bytes, POOLED_BYTES_MAX);
        assert_eq!(pool.empty.len(), POOLED_BYTES_MAX / TRAFFIC_BYTES_MAX);
        while !pool.empty.is_empty() {
            assert_eq!(bytes(&pool.take()), TRAFFIC_BYTES_MAX);
        }
        assert_eq!((pool.bytes, bytes(&pool.take())), (0, 0));
    }

    #[test]
    fn bytes_leave_in_the_order_in_which_they_came() {
        let mut buffer = Buffer::default();
        let (mut sent, mut received) = (Vec::new(), Vec::new());
        for round in 0..200usize {
            let piece: Vec<u8> = (0..round % 17).map(|at| (round * 7 + at) as u8).collect();
            buffer.tail().extend_from_slice(&piece);
            sent.extend_from_slice(&piece);
            let count = buffer.len().min(round % 13);
            received.extend_from_slice(&buffer.bytes()[..count]);
            buffer.use_up(count);
        }
        received.extend_from_slice(buffer.bytes());
        assert_eq!(sent, received);
        buffer.use_up(buffer.len());
        assert!(buffer.is_empty());
    }
}
