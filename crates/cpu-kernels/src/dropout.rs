//! Dropout.

use rayon::prelude::*;

use crate::error::{Result, check_len};
use crate::gemm::vectorized;

/// Values per task.
const CHUNK: usize = 1 << 13;

/// `output = input · (1 / keep_prob)` where a value is kept, 0 elsewhere. `is_kept(index)` tells it
/// of the value at an index and of those after it.
///
/// Flax divides by `keep_prob`, which XLA turns into this product. The two can differ in the last
/// bit.
///
/// The backward pass is the same function, applied to the gradient of the output.
///
/// # Errors
/// [`KernelError::Length`](crate::KernelError::Length) if the slices differ in length.
pub fn dropout<const N: usize>(
    input: &[f32],
    keep_prob: f32,
    is_kept: impl Fn(usize) -> [bool; N] + Sync,
    output: &mut [f32],
) -> Result<()> {
    check_len("dropout output", input.len(), output.len())?;
    let chunks = output.par_chunks_mut(CHUNK).zip(input.par_chunks(CHUNK));
    chunks.enumerate().for_each(|(chunk, (output, input))| {
        dropout_factors(keep_prob, chunk * CHUNK, &is_kept, output);
        vectorized(
            #[inline(always)]
            || {
                for (output, input) in output.iter_mut().zip(input) {
                    *output = scaled(*input, *output);
                }
            },
        );
    });
    Ok(())
}

/// A value times its factor. A dropped value is 0 even if it was infinite.
#[inline(always)]
pub(crate) fn scaled(value: f32, factor: f32) -> f32 {
    if factor == 0.0 { 0.0 } else { value * factor }
}

/// The factors by which [`dropout`] multiplies the values from `first` on.
pub fn dropout_factors<const N: usize>(
    keep_prob: f32,
    first: usize,
    is_kept: impl Fn(usize) -> [bool; N],
    factors: &mut [f32],
) {
    let scale = 1.0 / keep_prob;
    vectorized(
        #[inline(always)]
        || {
            let mut index = first;
            for factors in factors.chunks_mut(N.max(1)) {
                for (factor, is_kept) in factors.iter_mut().zip(is_kept(index)) {
                    *factor = if is_kept { scale } else { 0.0 };
                }
                // A checked sum would not be vectorized in a notebook's build.
                index = index.wrapping_add(N);
            }
        },
    );
}
