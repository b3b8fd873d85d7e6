//! Dropout.

use rayon::prelude::*;

use crate::error::{Result, check_len};
use crate::gemm::vectorized;

/// Values per task.
const CHUNK: usize = 1 << 13;

/// `output = input · (1 / keep_prob)` where `is_kept(index)`, 0 elsewhere.
///
/// Flax divides by `keep_prob`, which XLA turns into this product. The two can differ in the last
/// bit.
///
/// The backward pass is the same function, applied to the gradient of the output.
///
/// # Errors
/// [`KernelError::Length`](crate::KernelError::Length) if the slices differ in length.
pub fn dropout(
    input: &[f32],
    keep_prob: f32,
    is_kept: impl Fn(usize) -> bool + Sync,
    output: &mut [f32],
) -> Result<()> {
    check_len("dropout output", input.len(), output.len())?;
    let scale = 1.0 / keep_prob;
    let chunks = output.par_chunks_mut(CHUNK).zip(input.par_chunks(CHUNK));
    chunks.enumerate().for_each(|(chunk, (output, input))| {
        vectorized(
            #[inline(always)]
            || {
                for (i, (output, input)) in output.iter_mut().zip(input).enumerate() {
                    let kept = is_kept(chunk * CHUNK + i);
                    *output = if kept { input * scale } else { 0.0 };
                }
            },
        );
    });
    Ok(())
}

/// The factors by which dropout multiplies, from the value `first` on: `1 / keep_prob` where
/// `is_kept(index)`, 0 elsewhere.
pub fn dropout_factors(
    keep_prob: f32,
    first: usize,
    is_kept: impl Fn(usize) -> bool,
    factors: &mut [f32],
) {
    let scale = 1.0 / keep_prob;
    vectorized(
        #[inline(always)]
        || {
            // A checked sum would keep the loop from being vectorized in a notebook's build.
            let mut index = first;
            for factor in factors {
                *factor = if is_kept(index) { scale } else { 0.0 };
                index = index.wrapping_add(1);
            }
        },
    );
}
