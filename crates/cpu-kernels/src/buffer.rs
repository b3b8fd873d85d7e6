//! Aligned buffers, and a scratch space per thread.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Bytes per cache line. A vector load that crosses a line boundary costs two loads.
const LINE: usize = 64;

/// Values per cache line. Rounding strides up to it aligns rows to cache lines.
pub(crate) const LINE_VALUES: usize = LINE / size_of::<f32>();

/// A buffer of fixed length, initially zero and aligned to a cache line.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    storage: Vec<f32>,
    offset: usize,
    len: usize,
}

impl Buffer {
    pub(crate) fn zeroed(len: usize) -> Self {
        let storage = vec![0.0; len + LINE_VALUES];
        // A `Vec` that never grows never moves its values, so the offset stays valid.
        let offset = storage.as_ptr().align_offset(LINE).min(LINE_VALUES);
        Self { storage, offset, len }
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.storage[self.offset..][..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.storage[self.offset..][..self.len]
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) };
}

/// Calls `work` with aligned scratch slices of this thread. Their contents are unspecified.
///
/// The space never shrinks, so that in the steady state nothing is allocated. Calls may be nested,
/// also by tasks that rayon steals while it waits: each level has its own space.
pub(crate) fn with_scratch<R, const N: usize>(
    lens: [usize; N],
    work: impl FnOnce([&mut [f32]; N]) -> R,
) -> R {
    let needed = lens.iter().map(|len| len.next_multiple_of(LINE_VALUES)).sum();
    let cached = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
    let mut buffer = if cached.len() < needed {
        drop(cached);
        Buffer::zeroed(needed)
    } else {
        cached
    };
    let mut rest = &mut buffer[..];
    let result = work(lens.map(|len| {
        let (slice, tail) =
            std::mem::take(&mut rest).split_at_mut(len.next_multiple_of(LINE_VALUES));
        rest = tail;
        &mut slice[..len]
    }));
    SCRATCH.with_borrow_mut(|scratch| scratch.push(buffer));
    result
}
