//! A file read piece by piece: as much of it in memory as its longest record, and no more.
//!
//! Pieces begin and end at whole blocks, and so does the memory they go to, so that they can be
//! read past the page cache.

use std::convert::Infallible;

use super::blocks::{BLOCK_BYTES, Block};

/// A file that can be read anywhere.
pub trait Source {
    type Error;

    /// How long the file is.
    fn len(&self) -> usize;

    /// Fills `target` from `offset` on, as far as the file reaches, and says how far that was.
    fn read_at(&mut self, offset: usize, target: &mut [u8]) -> Result<usize, Self::Error>;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A file that is in memory already.
impl Source for &[u8] {
    type Error = Infallible;

    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    fn read_at(&mut self, offset: usize, target: &mut [u8]) -> Result<usize, Infallible> {
        let rest = self.get(offset..).unwrap_or_default();
        let count = rest.len().min(target.len());
        target[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}

/// The piece of a file that is in memory.
#[derive(Debug)]
pub struct Window {
    blocks: Vec<Block>,
    /// Where in the file the piece begins; a multiple of `BLOCK_BYTES`.
    start: usize,
    filled: usize,
    /// How much is read at once, where no more is asked for.
    step_bytes: usize,
}

impl Window {
    #[must_use]
    pub fn new(step_bytes: usize) -> Window {
        assert!(step_bytes.is_multiple_of(BLOCK_BYTES) && 0 < step_bytes);
        Window { blocks: Vec::new(), start: 0, filled: 0, step_bytes }
    }

    /// Forgets what was read: the next file is another one.
    pub fn clear(&mut self) {
        (self.start, self.filled) = (0, 0);
    }

    /// The bytes from `offset` on: at least `wanted`, or all up to the end of the file.
    pub fn view<S: Source>(
        &mut self,
        source: &mut S,
        offset: usize,
        wanted: usize,
    ) -> Result<&[u8], S::Error> {
        let end = offset.saturating_add(wanted).min(source.len());
        if offset < self.start || self.start + self.filled < end {
            self.fill(source, offset, end)?;
        }
        let bytes: &[u8] = bytemuck::cast_slice(&self.blocks);
        Ok(bytes[..self.filled].get(offset.saturating_sub(self.start)..).unwrap_or_default())
    }

    fn fill<S: Source>(
        &mut self,
        source: &mut S,
        offset: usize,
        end: usize,
    ) -> Result<(), S::Error> {
        let start = offset - offset % BLOCK_BYTES;
        let bytes = self.step_bytes.max(end.saturating_sub(start));
        let bytes = bytes.min(source.len().saturating_sub(start)).next_multiple_of(BLOCK_BYTES);
        let blocks = bytes / BLOCK_BYTES;
        if self.blocks.len() < blocks {
            self.blocks.resize(blocks, Block::ZERO);
        }
        let piece: &mut [u8] = bytemuck::cast_slice_mut(&mut self.blocks);
        let mut kept = 0;
        if self.start <= start && start < self.start + self.filled {
            let whole = self.filled - self.filled % BLOCK_BYTES;
            let from = (start - self.start).min(whole);
            piece.copy_within(from..whole, 0);
            kept = whole - from;
        }
        (self.start, self.filled) = (start, kept);
        if kept < bytes {
            let read = source.read_at(start + kept, &mut piece[kept..bytes])?;
            self.filled = (kept + read).min(source.len().saturating_sub(start));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// A file that says whether it is only ever read in whole blocks.
    struct Picky(Vec<u8>);

    impl Source for Picky {
        type Error = Infallible;

        fn len(&self) -> usize {
            self.0.len()
        }

        fn read_at(&mut self, offset: usize, target: &mut [u8]) -> Result<usize, Infallible> {
            assert_eq!(offset % BLOCK_BYTES, 0);
            assert_eq!(target.len() % BLOCK_BYTES, 0);
            assert_eq!(target.as_ptr().addr() % BLOCK_BYTES, 0);
            (&self.0[..]).read_at(offset, target)
        }
    }

    proptest! {
        #[test]
        fn a_view_is_what_the_file_has_there(
            len in 0_usize..60_000, views in vec((0_usize..61_000, 0_usize..30_000), 1..40),
        ) {
            let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            let mut window = Window::new(2 * BLOCK_BYTES);
            for (offset, wanted) in views {
                let expected = bytes.get(offset..).unwrap_or_default();
                let view = window.view(&mut Picky(bytes.clone()), offset, wanted).unwrap();
                prop_assert!(wanted.min(expected.len()) <= view.len());
                prop_assert_eq!(view, &expected[..view.len()]);
            }
        }
    }
}
