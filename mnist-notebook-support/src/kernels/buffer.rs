//! Memory: zeroed buffers planned once, and a scratch space that each thread keeps.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};

/// Bytes of a cache line. A vector load that crosses two lines costs two loads.
const LINE: usize = 64;

/// Values in a cache line; strides are rounded up to it where rows should start on a line.
pub(super) const LINE_VALUES: usize = LINE / size_of::<f32>();

/// A fixed number of values, zero at first, that start on a cache line.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    storage: Vec<f32>,
    offset: usize,
    len: usize,
}

impl Buffer {
    pub(super) fn zeroed(len: usize) -> Self {
        let storage = vec![0.0; len + LINE_VALUES];
        // A `Vec` that never grows never moves its values, so the offset stays right.
        let offset = storage.as_ptr().align_offset(LINE).min(LINE_VALUES);
        Self {
            storage,
            offset,
            len,
        }
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
    static SCRATCH: Cell<Buffer> = Cell::default();
}

/// Calls `work` with two aligned scratch slices of this thread. Their content is unspecified.
///
/// The space only ever grows, so that the steady state neither allocates nor touches fresh pages. A nested call on
/// the same thread (work stolen while waiting) is right too: it finds the space taken and allocates its own.
pub(super) fn with_scratch<R>(
    lens: [usize; 2],
    work: impl FnOnce(&mut [f32], &mut [f32]) -> R,
) -> R {
    let first = lens[0].next_multiple_of(LINE_VALUES);
    let mut buffer = SCRATCH.take();
    if buffer.len() < first + lens[1] {
        buffer = Buffer::zeroed(first + lens[1]);
    }
    let (a, b) = buffer.split_at_mut(first);
    let result = work(&mut a[..lens[0]], &mut b[..lens[1]]);
    SCRATCH.set(buffer);
    result
}
