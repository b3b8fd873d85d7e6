//! Batch normalization, with batch statistics or given ones.

use rayon::prelude::*;

use crate::error::{KernelError, Result, check_len};
use crate::gemm::vectorized;
use crate::shape::saturating_product;

/// Rows per task and per partial sum.
const ROWS: usize = 256;

/// A batch normalization of a given shape. Each channel is normalized over all rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchNorm {
    /// Number of rows: images times pixels.
    pub rows: usize,
    /// Number of channels, contiguous in memory.
    pub channels: usize,
}

/// Mean and variance of each channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// The mean of each channel.
    pub mean: Vec<f32>,
    /// The biased variance of each channel.
    pub var: Vec<f32>,
    /// Whether they were computed from the input, so that its gradient flows through them, too.
    pub is_training: bool,
}

/// Sums of values and of their squares over `rows` rows, given those of the values less a `shift`.
///
/// The variance is a difference of squares. Where it is small beside the mean, squares summed in
/// f32 lose the digits that count. Values less one of them are as small as their deviations.
pub(crate) fn unshifted(shift: f32, rows: usize, sum: f32, square: f32) -> (f64, f64) {
    let [shift, sum, square] = [shift, sum, square].map(f64::from);
    let rows = rows as f64;
    (rows * shift + sum, square + shift * (2.0 * sum + rows * shift))
}

/// The variance of values, from their mean and the mean of their squares. Rounding can make the
/// difference negative; a NaN stays one.
pub(crate) fn variance(mean: f64, mean_square: f64) -> f32 {
    let variance = mean_square - mean * mean;
    if variance < 0.0 { 0.0 } else { variance as f32 }
}

impl BatchNorm {
    /// Added to the variance before the square root. The default of Flax.
    pub const EPSILON: f64 = 1e-5;

    /// Mean and variance of each channel of the input. The variance is E\[x²\] − E\[x\]², as in
    /// Flax.
    ///
    /// # Errors
    /// [`KernelError::Length`] if the slice does not fit the shape; [`KernelError::NoRows`] if
    /// there are no rows.
    pub fn statistics(&self, input: &[f32]) -> Result<Statistics> {
        check_len("batch norm input", self.len(), input.len())?;
        if self.rows == 0 && self.channels > 0 {
            return Err(KernelError::NoRows);
        }
        let (sum, sum_of_squares) = self.channel_sums(
            input,
            input,
            #[inline(always)]
            |sums, squares, row, _, shift| {
                for ((sum, square), (value, shift)) in
                    sums.iter_mut().zip(squares).zip(row.iter().zip(shift))
                {
                    let value = value - shift;
                    *sum += value;
                    *square += value * value;
                }
            },
            unshifted,
        );
        let rows = self.rows as f64;
        let moments = sum.iter().zip(&sum_of_squares).map(|(sum, square)| {
            let mean = sum / rows;
            (mean as f32, variance(mean, square / rows))
        });
        let (mean, var) = moments.unzip();
        Ok(Statistics { mean, var, is_training: true })
    }

    /// `output = (input − mean) · scale / √(var + ε) + bias`.
    ///
    /// # Errors
    /// [`KernelError::Length`] if a slice does not fit the shape.
    pub fn forward(
        &self,
        input: &[f32],
        statistics: &Statistics,
        scale: &[f32],
        bias: &[f32],
        output: &mut [f32],
    ) -> Result<()> {
        check_len("batch norm input", self.len(), input.len())?;
        check_len("batch norm output", self.len(), output.len())?;
        check_len("batch norm bias", self.channels, bias.len())?;
        let scale_over_std = self.scale_over_std(statistics, scale)?;
        let mean = &statistics.mean;
        self.for_each_row(
            output,
            input,
            input,
            #[inline(always)]
            |output, row, _| {
                let channels = scale_over_std.iter().zip(mean).zip(bias);
                for ((output, value), ((scale_over_std, mean), bias)) in
                    output.iter_mut().zip(row).zip(channels)
                {
                    *output = (value - mean) * scale_over_std + bias;
                }
            },
        );
        Ok(())
    }

    /// Gradients of scale and bias, given that of the output.
    ///
    /// # Errors
    /// [`KernelError::Length`] if a slice does not fit the shape.
    pub fn backward_params(
        &self,
        input: &[f32],
        statistics: &Statistics,
        d_output: &[f32],
        d_scale: &mut [f32],
        d_bias: &mut [f32],
    ) -> Result<()> {
        check_len("batch norm input", self.len(), input.len())?;
        check_len("batch norm output gradient", self.len(), d_output.len())?;
        check_len("batch norm scale gradient", self.channels, d_scale.len())?;
        check_len("batch norm bias gradient", self.channels, d_bias.len())?;
        self.check(statistics)?;
        let mean = &statistics.mean;
        // The scale gradient is Σ dy·(x − mean) / √(var + ε): the division comes last.
        let (bias, scale) = self.channel_sums(
            d_output,
            input,
            #[inline(always)]
            |biases, scales, d_row, row, _| {
                let values = d_row.iter().zip(row).zip(mean);
                for ((bias, scale), ((d_output, value), mean)) in
                    biases.iter_mut().zip(scales).zip(values)
                {
                    *bias += d_output;
                    *scale += d_output * (value - mean);
                }
            },
            |_, _, bias, scale| (bias.into(), scale.into()),
        );
        for (d_bias, sum) in d_bias.iter_mut().zip(bias) {
            *d_bias = sum as f32;
        }
        for ((d_scale, sum), var) in d_scale.iter_mut().zip(scale).zip(&statistics.var) {
            *d_scale = sum as f32 / Self::std(var);
        }
        Ok(())
    }

    /// Gradient of the input, given those of the output, the scale and the bias.
    ///
    /// # Errors
    /// [`KernelError::Length`] if a slice does not fit the shape.
    #[expect(clippy::too_many_arguments, reason = "one argument per array of the formula")]
    pub fn backward_input(
        &self,
        input: &[f32],
        statistics: &Statistics,
        scale: &[f32],
        d_output: &[f32],
        d_scale: &[f32],
        d_bias: &[f32],
        d_input: &mut [f32],
    ) -> Result<()> {
        check_len("batch norm input", self.len(), input.len())?;
        check_len("batch norm output gradient", self.len(), d_output.len())?;
        check_len("batch norm input gradient", self.len(), d_input.len())?;
        check_len("batch norm scale gradient", self.channels, d_scale.len())?;
        check_len("batch norm bias gradient", self.channels, d_bias.len())?;
        let scale_over_std = self.scale_over_std(statistics, scale)?;
        // Gradients through the batch mean and variance: the means over the rows of dy, and of
        // dy·(x − mean) divided by the variance. Given statistics have no gradient.
        let inv_n = if statistics.is_training { 1.0 / self.rows as f32 } else { 0.0 };
        let mean_dy = d_bias.iter().map(|d_bias| d_bias * inv_n).collect::<Vec<_>>();
        let mean_dy_xmu = d_scale
            .iter()
            .zip(&statistics.var)
            .map(|(d_scale, var)| d_scale * inv_n / Self::std(var))
            .collect::<Vec<_>>();
        let mean = &statistics.mean;
        self.for_each_row(
            d_input,
            d_output,
            input,
            #[inline(always)]
            |d_input, d_row, row| {
                let channels =
                    scale_over_std.iter().zip(mean).zip(mean_dy.iter().zip(&mean_dy_xmu));
                let values = d_row.iter().zip(row).zip(channels);
                for (
                    d_input,
                    ((d_output, value), ((scale_over_std, mean), (mean_dy, mean_dy_xmu))),
                ) in d_input.iter_mut().zip(values)
                {
                    *d_input = scale_over_std * (d_output - mean_dy - (value - mean) * mean_dy_xmu);
                }
            },
        );
        Ok(())
    }

    fn len(&self) -> usize {
        saturating_product(&[self.rows, self.channels])
    }

    fn check(&self, statistics: &Statistics) -> Result<()> {
        check_len("batch norm mean", self.channels, statistics.mean.len())?;
        check_len("batch norm variance", self.channels, statistics.var.len())
    }

    /// √(var + ε).
    pub(crate) fn std(var: &f32) -> f32 {
        (var + Self::EPSILON as f32).sqrt()
    }

    /// `scale / √(var + ε)` of each channel.
    fn scale_over_std(&self, statistics: &Statistics, scale: &[f32]) -> Result<Vec<f32>> {
        self.check(statistics)?;
        check_len("batch norm scale", self.channels, scale.len())?;
        let channels = statistics.var.iter().zip(scale);
        Ok(channels.map(|(var, scale)| scale / Self::std(var)).collect())
    }

    /// Two sums per channel over all rows. `add` adds the terms of one row of `a` and `b`, given
    /// the first row of `a` among those that are added in f32; `finish` makes f64 of such sums,
    /// given a value of that first row and the number of rows.
    ///
    /// The partial sums depend only on the shape and are added in order, so that the result does
    /// not depend on the number of threads.
    fn channel_sums(
        &self,
        a: &[f32],
        b: &[f32],
        add: impl Fn(&mut [f32], &mut [f32], &[f32], &[f32], &[f32]) + Sync,
        finish: impl Fn(f32, usize, f32, f32) -> (f64, f64) + Sync,
    ) -> (Vec<f64>, Vec<f64>) {
        let channels = self.channels.max(1);
        let tasks = a.par_chunks(ROWS * channels).zip(b.par_chunks(ROWS * channels));
        let parts = tasks.map(|(a, b)| {
            let (mut first, mut second) = (vec![0.0; channels], vec![0.0; channels]);
            let shift = &a[..channels];
            vectorized(
                #[inline(always)]
                || {
                    for (a, b) in a.chunks_exact(channels).zip(b.chunks_exact(channels)) {
                        add(&mut first, &mut second, a, b, shift);
                    }
                },
            );
            let rows = a.len() / channels;
            let sums = shift.iter().zip(first.into_iter().zip(second));
            sums.map(|(&shift, (first, second))| finish(shift, rows, first, second))
                .collect::<Vec<_>>()
        });
        let mut sums = (vec![0.0; self.channels], vec![0.0; self.channels]);
        for part in parts.collect::<Vec<_>>() {
            for ((first, second), part) in sums.0.iter_mut().zip(&mut sums.1).zip(part) {
                *first += part.0;
                *second += part.1;
            }
        }
        sums
    }

    /// Calls `work` with each row of the output and the matching rows of `a` and `b`.
    fn for_each_row(
        &self,
        output: &mut [f32],
        a: &[f32],
        b: &[f32],
        work: impl Fn(&mut [f32], &[f32], &[f32]) + Sync,
    ) {
        let channels = self.channels.max(1);
        output
            .par_chunks_mut(ROWS * channels)
            .zip(a.par_chunks(ROWS * channels).zip(b.par_chunks(ROWS * channels)))
            .for_each(|(output, (a, b))| {
                vectorized(
                    #[inline(always)]
                    || {
                        let rows = a.chunks_exact(channels).zip(b.chunks_exact(channels));
                        for (output, (a, b)) in output.chunks_exact_mut(channels).zip(rows) {
                            work(output, a, b);
                        }
                    },
                );
            });
    }
}
