//! Pooling without padding, window = stride; rows and columns that fill no window are dropped.

use rayon::prelude::*;

use super::buffer::with_scratch;
use super::error::{Result, check_len, check_window, product};
use super::gemm::vectorized;

/// The shape of a pooling layer and the kernels for it.
///
/// # Shapes
///
/// * input `[batch, height, width, channels]`
/// * output `[batch, height / window.0, width / window.1, channels]`, both divisions rounded down
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool2d {
    /// Number of images.
    pub batch: usize,
    /// Rows of pixels of the input.
    pub height: usize,
    /// Columns of pixels of the input.
    pub width: usize,
    /// Values per pixel.
    pub channels: usize,
    /// Height and width of the window, at least 1 each.
    pub window: (usize, usize),
}

impl Pool2d {
    /// Values of the input.
    pub fn input_len(&self) -> usize {
        product([self.batch, self.image_len()])
    }

    /// Values of the output; 0 if the window has no extent.
    pub fn output_len(&self) -> usize {
        let (height, width) = self.windows();
        product([self.batch, height, width, self.channels])
    }

    /// Mean of each window.
    ///
    /// # Errors
    ///
    /// If a slice does not fit the shape, or the window has no extent.
    pub fn average_forward(&self, input: &[f32], output: &mut [f32]) -> Result<()> {
        self.check(input.len(), output.len())?;
        self.for_each_strip(output, |first, output| {
            let strip = &input[first..][..self.strip_len()];
            for (x, output) in output.chunks_exact_mut(self.channels).enumerate() {
                output.fill(0.0);
                for offset in self.offsets(x) {
                    for (output, value) in output.iter_mut().zip(&strip[offset..][..self.channels])
                    {
                        *output += value;
                    }
                }
                for output in output {
                    *output *= self.average_scale();
                }
            }
        });
        Ok(())
    }

    /// Derivative with respect to the input: every position of a window gets an equal share.
    ///
    /// # Errors
    ///
    /// If a slice does not fit the shape, or the window has no extent.
    pub fn average_backward(&self, d_output: &[f32], d_input: &mut [f32]) -> Result<()> {
        self.check(d_input.len(), d_output.len())?;
        self.for_each_strip_mut(d_input, d_output, |_, d_strip, d_output| {
            for (x, d_output) in d_output.chunks_exact(self.channels).enumerate() {
                for offset in self.offsets(x) {
                    for (d_input, d_output) in
                        d_strip[offset..][..self.channels].iter_mut().zip(d_output)
                    {
                        *d_input = d_output * self.average_scale();
                    }
                }
            }
        });
        Ok(())
    }

    /// Largest value of each window; NaN if it holds one.
    ///
    /// # Errors
    ///
    /// If a slice does not fit the shape, or the window has no extent.
    pub fn max_forward(&self, input: &[f32], output: &mut [f32]) -> Result<()> {
        self.check(input.len(), output.len())?;
        self.for_each_strip(output, |first, output| {
            let strip = &input[first..][..self.strip_len()];
            for (x, output) in output.chunks_exact_mut(self.channels).enumerate() {
                output.fill(f32::NEG_INFINITY);
                for offset in self.offsets(x) {
                    for (output, &value) in output.iter_mut().zip(&strip[offset..][..self.channels])
                    {
                        *output = if exceeds(value, *output) { value } else { *output };
                    }
                }
            }
        });
        Ok(())
    }

    /// Derivative with respect to the input: it goes to the first position, in row order, that
    /// holds the maximum, as in XLA.
    ///
    /// # Errors
    ///
    /// If a slice does not fit the shape, or the window has no extent.
    pub fn max_backward(&self, input: &[f32], d_output: &[f32], d_input: &mut [f32]) -> Result<()> {
        self.check(input.len(), d_output.len())?;
        check_len("pooling input gradient", self.input_len(), d_input.len())?;
        self.for_each_strip_mut(d_input, d_output, |first, d_strip, d_output| {
            let strip = &input[first..][..self.strip_len()];
            with_scratch([self.channels, self.channels], |best, winner| {
                for (x, d_output) in d_output.chunks_exact(self.channels).enumerate() {
                    best.fill(f32::NEG_INFINITY);
                    // Positions are exact in f32, and all lanes are then of one width.
                    winner.fill(0.0);
                    for (position, offset) in self.offsets(x).enumerate() {
                        let values = strip[offset..][..self.channels].iter().zip(best.iter_mut());
                        for ((&value, best), winner) in values.zip(winner.iter_mut()) {
                            let wins = exceeds(value, *best);
                            *best = if wins { value } else { *best };
                            *winner = if wins { position as f32 } else { *winner };
                        }
                    }
                    for (position, offset) in self.offsets(x).enumerate() {
                        let d_values = d_strip[offset..][..self.channels].iter_mut().zip(d_output);
                        for ((d_input, &d_output), &winner) in d_values.zip(winner.iter()) {
                            *d_input = if winner == position as f32 { d_output } else { 0.0 };
                        }
                    }
                }
            });
        });
        Ok(())
    }

    fn check(&self, input: usize, output: usize) -> Result<()> {
        check_window("pooling window", self.window)?;
        check_len("pooling input", self.input_len(), input)?;
        check_len("pooling output", self.output_len(), output)
    }

    /// Rows and columns of windows; 0 if the window has no extent.
    pub(super) fn windows(&self) -> (usize, usize) {
        let count = |extent: usize, window: usize| extent.checked_div(window).unwrap_or(0);
        (count(self.height, self.window.0), count(self.width, self.window.1))
    }

    pub(super) fn average_scale(&self) -> f32 {
        1.0 / (self.window.0 * self.window.1) as f32
    }

    fn image_len(&self) -> usize {
        product([self.height, self.width, self.channels])
    }

    /// Values of a strip: the input rows under one row of windows.
    pub(super) fn strip_len(&self) -> usize {
        product([self.window.0, self.width, self.channels])
    }

    /// Where the pixels of the `x`-th window start in its strip, in row order.
    #[inline(always)]
    pub(super) fn offsets(&self, x: usize) -> impl Iterator<Item = usize> + use<> {
        let Self { width, channels, window, .. } = *self;
        (0..window.0).flat_map(move |wy| {
            (0..window.1).map(move |wx| (wy * width + x * window.1 + wx) * channels)
        })
    }

    /// Calls `work` with the position of each strip in the input and its row of the output.
    fn for_each_strip(&self, output: &mut [f32], work: impl Fn(usize, &mut [f32]) + Sync) {
        let (rows, columns) = self.windows();
        if output.is_empty() {
            return;
        }
        let row_len = columns * self.channels;
        output.par_chunks_mut(rows * row_len).enumerate().for_each(|(image, output)| {
            vectorized(
                #[inline(always)]
                || {
                    for (y, output) in output.chunks_exact_mut(row_len).enumerate() {
                        work(image * self.image_len() + y * self.strip_len(), output);
                    }
                },
            );
        });
    }

    /// Calls `work` with the position of each strip in the input, the strip's derivatives, zero so
    /// far, and those of its row of the output.
    fn for_each_strip_mut(
        &self,
        d_input: &mut [f32],
        d_output: &[f32],
        work: impl Fn(usize, &mut [f32], &[f32]) + Sync,
    ) {
        if d_input.is_empty() {
            return;
        }
        let (rows, columns) = self.windows();
        let row_len = columns * self.channels;
        d_input.par_chunks_mut(self.image_len()).enumerate().for_each(|(image, d_input)| {
            vectorized(
                #[inline(always)]
                || {
                    d_input.fill(0.0);
                    let d_output = &d_output[image * rows * row_len..][..rows * row_len];
                    let strips = d_input.chunks_exact_mut(self.strip_len());
                    for (y, d_strip) in strips.take(rows).enumerate() {
                        let d_row = &d_output[y * row_len..][..row_len];
                        work(image * self.image_len() + y * self.strip_len(), d_strip, d_row);
                    }
                },
            );
        });
    }
}

/// Whether `value` replaces `best` as the maximum. A NaN does, and stays.
#[inline(always)]
pub(super) fn exceeds(value: f32, best: f32) -> bool {
    // Without short circuits, so that the loops around it stay free of branches.
    (value > best) | (value.is_nan() & !best.is_nan())
}
