//! Memory: zeroed buffers planned once, and a scratch space that each thread keeps.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Bytes of a cache line. A vector load that crosses two lines costs two loads.
const LINE: usize = 64;

/// Values in a cache line; strides are rounded up to it where rows should start on a line.
pub(crate) const LINE_VALUES: usize = LINE / size_of::<f32>();

/// A fixed number of values, zero at first, that start on a cache line.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    storage: Vec<f32>,
    offset: usize,
    len: usize,
}

impl Buffer {
    pub(crate) fn zeroed(len: usize) -> Self {
        let storage = vec![0.0; len + LINE_VALUES];
        // A `Vec` that never grows never moves its values, so the offset stays right.
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

/// Calls `work` with aligned scratch slices of this thread. Their content is unspecified.
///
/// The space only ever grows, so that the steady state neither allocates nor touches fresh pages.
/// Calls may be nested, also by work that is stolen while waiting for other work: each level has
/// its own space.
pub(crate) fn with_scratch<R, const N: usize>(
    lens: [usize; N],
    work: impl FnOnce([&mut [f32]; N]) -> R,
) -> R {
    let needed = lens.iter().map(|len| len.next_multiple_of(LINE_VALUES)).sum();
    let kept = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
    let mut buffer = if kept.len() < needed {
        drop(kept);
        Buffer::zeroed(needed)
    } else {
        kept
    };
    let mut rest = &mut buffer[..];
    let result = work(lens.map(|len| {
        let (slice, behind) =
            std::mem::take(&mut rest).split_at_mut(len.next_multiple_of(LINE_VALUES));
        rest = behind;
        &mut slice[..len]
    }));
    SCRATCH.with_borrow_mut(|scratch| scratch.push(buffer));
    result
}
