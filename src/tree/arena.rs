//! Memory for znodes: millions of pieces of a few sizes.
//!
//! ```text
//! chunk   2 MiB, later 16, of huge pages where the kernel has them
//!   page  64 KiB: a header, then pieces of one size           found from a piece by its address
//!     piece  a multiple of 8 bytes, nothing before or behind it
//! ```
//!
//! An allocator for everything keeps a header beside each piece and rounds its size: about 50 bytes
//! for each znode of 300. This one keeps neither. A page without pieces in use serves any size
//! again, and beyond a few such pages their memory goes back to the kernel. Pieces larger than
//! `PIECE_BYTES_MAX` come from the allocator for everything.
//!
//! An arena belongs to one thread at a time: the tree's writer, and after it whoever drops the tree.

#![expect(unsafe_code, reason = "an allocator")]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::{self, NonNull};

const CHUNK_BYTES: usize = if cfg!(miri) { 4 * PAGE_BYTES } else { 2 << 20 };
/// Of an arena that has many; a process may have only so many mappings.
const LARGE_CHUNK_BYTES: usize = 8 * CHUNK_BYTES;
const LARGE_FROM_CHUNK: usize = 32;
const PAGE_BYTES: usize = 64 << 10;
/// Sizes are multiples of this, and pieces begin at such.
const STEP_BYTES: usize = 8;
/// What a page has at least sixty of.
const PIECE_BYTES_MAX: usize = 1024;
/// Free pages that keep their memory.
const WARM_PAGES_MAX: usize = 64;
/// From this chunk on the kernel is asked for huge pages: a small tree is to stay small.
const HUGE_FROM_CHUNK: usize = 2;

/// A returned piece; all of them of a page hang together.
struct Piece {
    next: *mut Piece,
}

/// What a page begins with.
#[repr(C, align(64))]
struct Page {
    arena: *mut Inner,
    /// Its neighbours among the pages of its size that have room.
    next: *mut Page,
    previous: *mut Page,
    returned: *mut Piece,
    piece_bytes: usize,
    /// Where pieces begin that were never given out.
    fresh: usize,
    in_use: usize,
}

impl Page {
    fn has_room(&self) -> bool {
        !self.returned.is_null() || self.fresh + self.piece_bytes <= PAGE_BYTES
    }
}

struct Inner {
    /// The first of the pages that have room, by size in steps.
    with_room: [*mut Page; PIECE_BYTES_MAX / STEP_BYTES + 1],
    /// Pages that had pieces and have none: a few as they are, of the others the kernel has the
    /// memory back.
    warm: Vec<*mut Page>,
    cold: Vec<*mut Page>,
    /// The next page of the newest chunk that was never used, and how many there are.
    unused: (*mut Page, usize),
    chunks: Vec<(*mut u8, Layout)>,
}

/// Owns the memory of all its pieces.
pub(super) struct Arena(NonNull<Inner>);

/// Whether pieces of this layout are ours, and how many bytes they take.
fn piece_bytes(layout: Layout) -> Option<usize> {
    let bytes = layout.size().next_multiple_of(STEP_BYTES);
    (layout.align() <= STEP_BYTES && 0 < bytes && bytes <= PIECE_BYTES_MAX).then_some(bytes)
}

impl Arena {
    pub(super) fn new() -> Arena {
        let inner = Inner {
            with_room: [ptr::null_mut(); PIECE_BYTES_MAX / STEP_BYTES + 1],
            warm: Vec::new(),
            cold: Vec::new(),
            unused: (ptr::null_mut(), 0),
            chunks: Vec::new(),
        };
        Arena(NonNull::from(Box::leak(Box::new(inner))))
    }

    /// Memory of this layout, not initialized.
    ///
    /// # Safety
    /// No other thread allocates from or frees to this arena meanwhile; the layout is not empty.
    pub(super) unsafe fn allocate(&self, layout: Layout) -> NonNull<u8> {
        let Some(bytes) = piece_bytes(layout) else {
            // SAFETY: not empty, by the caller.
            let piece = unsafe { alloc(layout) };
            return NonNull::new(piece).unwrap_or_else(|| handle_alloc_error(layout));
        };
        // SAFETY: by the caller this thread alone has the arena. A page in a list is alive and
        // initialized, and has room: a returned piece, or fresh bytes within the page.
        unsafe {
            let inner = self.0.as_ptr();
            let mut page = (*inner).with_room[bytes / STEP_BYTES];
            if page.is_null() {
                page = Inner::page(inner, bytes);
            }
            let returned = (*page).returned;
            let piece = if returned.is_null() {
                let piece = page.cast::<u8>().add((*page).fresh);
                (*page).fresh += bytes;
                piece
            } else {
                (*page).returned = (*returned).next;
                returned.cast()
            };
            (*page).in_use += 1;
            if !(*page).has_room() {
                Inner::take_out(inner, page);
            }
            NonNull::new_unchecked(piece)
        }
    }
}

/// Gives back what an arena gave out.
///
/// # Safety
/// `piece` came from `allocate` with this layout, with the provenance it had then, and is not used
/// again; the arena is alive, and no other thread uses it meanwhile.
pub(super) unsafe fn free(piece: *mut u8, layout: Layout) {
    if piece_bytes(layout).is_none() {
        // SAFETY: such a layout comes from the global allocator.
        return unsafe { dealloc(piece, layout) };
    }
    let page = piece.map_addr(|address| address & !(PAGE_BYTES - 1)).cast::<Page>();
    // SAFETY: pages begin at multiples of their size, in the allocation that the piece is of; the
    // piece is free to hold a link, being at least as long and as aligned as one.
    unsafe {
        let had_room = (*page).has_room();
        let piece = piece.cast::<Piece>();
        piece.write(Piece { next: (*page).returned });
        (*page).returned = piece;
        (*page).in_use -= 1;
        let inner = (*page).arena;
        if !had_room {
            Inner::put_in(inner, page);
        }
        let is_only = (*page).next.is_null() && (*page).previous.is_null();
        // The last with room stays: the next piece may well be of its size.
        if (*page).in_use == 0 && !is_only {
            Inner::take_out(inner, page);
            Inner::give_back(inner, page);
        }
    }
}

impl Inner {
    /// A page with nothing but room, in its list.
    ///
    /// # Safety
    /// `inner` is alive and this thread's.
    unsafe fn page(inner: *mut Inner, piece_bytes: usize) -> *mut Page {
        // SAFETY: by the caller; a free page is memory of a page's size that nobody uses.
        unsafe {
            let free = (&mut *inner).warm.pop().or_else(|| (&mut *inner).cold.pop());
            let page = free.unwrap_or_else(|| (&mut *inner).unused_page());
            page.write(Page {
                arena: inner,
                next: ptr::null_mut(),
                previous: ptr::null_mut(),
                returned: ptr::null_mut(),
                piece_bytes,
                fresh: size_of::<Page>(),
                in_use: 0,
            });
            Inner::put_in(inner, page);
            page
        }
    }

    /// A page of the newest chunk, or of another.
    fn unused_page(&mut self) -> *mut Page {
        if self.unused.1 == 0 {
            let is_large = LARGE_FROM_CHUNK <= self.chunks.len();
            let bytes = if is_large { LARGE_CHUNK_BYTES } else { CHUNK_BYTES };
            let layout = Layout::from_size_align(bytes, CHUNK_BYTES).expect("powers of two");
            // SAFETY: the layout is not empty.
            let chunk = unsafe { alloc(layout) };
            if chunk.is_null() {
                handle_alloc_error(layout);
            }
            if cfg!(not(miri)) && HUGE_FROM_CHUNK <= self.chunks.len() {
                // SAFETY: memory of ours. It is only advice: where there are no huge pages, all is
                // the same but for speed.
                unsafe { libc::madvise(chunk.cast(), bytes, libc::MADV_HUGEPAGE) };
            }
            self.chunks.push((chunk, layout));
            self.unused = (chunk.cast(), bytes / PAGE_BYTES);
        }
        let (page, left) = self.unused;
        // SAFETY: within the chunk, or at its end where none is left.
        self.unused = (unsafe { page.byte_add(PAGE_BYTES) }, left - 1);
        page
    }

    /// # Safety
    /// As of `page`; the page is in no list.
    unsafe fn put_in(inner: *mut Inner, page: *mut Page) {
        // SAFETY: by the caller; what is in the list is alive.
        unsafe {
            let first = &mut (*inner).with_room[(*page).piece_bytes / STEP_BYTES];
            (*page).previous = ptr::null_mut();
            (*page).next = *first;
            if let Some(next) = first.as_mut() {
                next.previous = page;
            }
            *first = page;
        }
    }

    /// # Safety
    /// As of `page`; the page is in the list of its size.
    unsafe fn take_out(inner: *mut Inner, page: *mut Page) {
        // SAFETY: by the caller; its neighbours are alive.
        unsafe {
            let (previous, next) = ((*page).previous, (*page).next);
            match previous.as_mut() {
                Some(previous) => previous.next = next,
                None => (*inner).with_room[(*page).piece_bytes / STEP_BYTES] = next,
            }
            if let Some(next) = next.as_mut() {
                next.previous = previous;
            }
            ((*page).previous, (*page).next) = (ptr::null_mut(), ptr::null_mut());
        }
    }

    /// # Safety
    /// As of `page`; nobody uses the page, and it is in no list.
    unsafe fn give_back(inner: *mut Inner, page: *mut Page) {
        // SAFETY: by the caller. The page is anonymous memory of ours, which reads as zero once it is
        // given back, and is written before it is read.
        unsafe {
            let Inner { warm, cold, .. } = &mut *inner;
            if warm.len() < WARM_PAGES_MAX {
                warm.push(page);
            } else {
                if cfg!(not(miri)) {
                    libc::madvise(page.cast(), PAGE_BYTES, libc::MADV_DONTNEED);
                }
                cold.push(page);
            }
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: made by `Box::leak`; whoever drops the arena uses none of its pieces again.
        unsafe {
            let inner = Box::from_raw(self.0.as_ptr());
            for &(chunk, layout) in &inner.chunks {
                dealloc(chunk, layout);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, 8).unwrap()
    }

    impl Arena {
        fn chunks(&self) -> usize {
            // SAFETY: the test's own arena.
            unsafe { (*self.0.as_ptr()).chunks.len() }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 64 }))]

        /// Pieces keep what was written to them, whatever comes and goes beside them.
        #[test]
        fn pieces_are_their_own(
            steps in vec((any::<bool>(), 1_usize..1400, any::<prop::sample::Index>()), 1..600),
        ) {
            let arena = Arena::new();
            let mut pieces: Vec<(NonNull<u8>, usize, u8)> = Vec::new();
            let release = |(piece, bytes, mark): (NonNull<u8>, usize, u8)| {
                // SAFETY: allocated below with this layout and filled; given back once.
                unsafe {
                    let written = std::slice::from_raw_parts(piece.as_ptr(), bytes);
                    assert!(written == vec![mark; bytes], "overwritten");
                    free(piece.as_ptr(), layout(bytes));
                }
            };
            for (number, (gives_back, bytes, index)) in steps.into_iter().enumerate() {
                if gives_back && !pieces.is_empty() {
                    release(pieces.swap_remove(index.index(pieces.len())));
                } else {
                    let mark = u8::try_from(number % 251).unwrap();
                    // SAFETY: one thread, and a layout that is not empty.
                    let piece = unsafe { arena.allocate(layout(bytes)) };
                    prop_assert_eq!(piece.addr().get() % 8, 0);
                    // SAFETY: allocated with as many bytes.
                    unsafe { piece.as_ptr().write_bytes(mark, bytes) };
                    pieces.push((piece, bytes, mark));
                }
            }
            pieces.into_iter().for_each(release);
        }
    }

    #[test]
    fn memory_of_one_size_serves_another() {
        let arena = Arena::new();
        let count = if cfg!(miri) { 2000 } else { 100_000 };
        let mut chunks = None;
        for bytes in [80, 104, 112] {
            // SAFETY: one thread; each is given back once.
            unsafe {
                let pieces = Vec::from_iter((0..count).map(|_| arena.allocate(layout(bytes))));
                pieces.iter().for_each(|piece| free(piece.as_ptr(), layout(bytes)));
            }
            let before = *chunks.get_or_insert(arena.chunks());
            assert!(arena.chunks() <= before * 2, "{bytes}: {} of {before}", arena.chunks());
        }
    }
}
