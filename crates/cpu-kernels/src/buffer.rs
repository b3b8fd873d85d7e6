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

/// The most values of scratch that a thread keeps, 8 MB: enough for a usual training step.
const MAX_KEPT: usize = 1 << 21;

thread_local! {
    static SCRATCH: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) };
}

/// Calls `work` with aligned scratch slices of this thread. Their contents are unspecified.
///
/// Up to [`MAX_KEPT`] values stay with the thread for later calls, so that repeated steps allocate
/// nothing. Larger space, as for a batch of thousands of images, is freed. Calls may be nested,
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
    if kept() + buffer.len() <= MAX_KEPT {
        SCRATCH.with_borrow_mut(|scratch| scratch.push(buffer));
    }
    result
}

/// The number of scratch values that this thread keeps.
fn kept() -> usize {
    SCRATCH.with_borrow(|scratch| scratch.iter().map(|buffer| buffer.len()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_its_scratch_up_to_a_limit() {
        let address = |len| with_scratch([len], |[space]| space.as_ptr());
        let first = address(1000);
        assert_eq!(kept(), 1008); // whole cache lines
        assert_eq!(address(500), first);
        with_scratch([1000], |_| with_scratch([MAX_KEPT - 1008], |_| ()));
        assert_eq!(kept(), MAX_KEPT);

        // The inner call fills the limit, so the outer call's space is freed.
        with_scratch([1008], |_| with_scratch([MAX_KEPT], |_| ()));
        assert_eq!(kept(), MAX_KEPT);
        // One call alone exceeds the limit.
        with_scratch([MAX_KEPT + 1], |_| ());
        assert_eq!(kept(), 0);
    }
}
