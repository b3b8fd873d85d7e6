//! Batch normalization, with the statistics of the batch or with given ones.

use rayon::prelude::*;

use crate::error::{Result, check_len, product};
use crate::gemm::vectorized;

/// Rows per task, and per partial sum.
const ROWS: usize = 256;
/// Keeps the deviation of a constant channel from being zero, as in Flax.
const EPSILON: f32 = 1e-5;

/// The shape of a batch normalization: every channel is normalized over all rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchNorm {
    /// Rows: the images times their pixels.
    pub rows: usize,
    /// Channels, contiguous in memory.
    pub channels: usize,
}

/// Mean and variance of each channel, and whether they are the batch's own: then they depend on
/// the input, and so does its derivative on them.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// The mean of each channel.
    pub mean: Vec<f32>,
    /// The biased variance of each channel.
    pub var: Vec<f32>,
    /// Whether they were computed from the input.
    pub is_training: bool,
}

impl BatchNorm {
    /// Mean and variance of each channel of the input; the variance is E\[x²\] − E\[x\]², as in
    /// Flax.
    ///
    /// # Errors
    ///
    /// If the slice does not fit the shape, or there is no row.
    pub fn statistics(&self, input: &[f32]) -> Result<Statistics> {
        check_len("batch norm input", self.len(), input.len())?;
        check_len("batch norm input", self.len().max(self.channels), input.len())?;
        let (sum, sum_of_squares) = self.sums(
            input,
            input,
            #[inline(always)]
            |sums, squares, row, _| {
                for ((sum, square), value) in sums.iter_mut().zip(squares).zip(row) {
                    *sum += value;
                    *square += value * value;
                }
            },
        );
        let rows = self.rows as f64;
        let moments = sum.iter().zip(&sum_of_squares).map(|(sum, square)| {
            let mean = sum / rows;
            (mean as f32, (square / rows - mean * mean).max(0.0) as f32)
        });
        let (mean, var) = moments.unzip();
        Ok(Statistics { mean, var, is_training: true })
    }

    /// `output = (input − mean) · scale / √(var + ε) + bias`.
    ///
    /// # Errors
    ///
    /// If a slice does not fit the shape.
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
        let factor = self.factors(statistics, scale)?;
        let mean = &statistics.mean;
        self.for_each_row(
            output,
            input,
            input,
            #[inline(always)]
            |output, row, _| {
                let channels = factor.iter().zip(mean).zip(bias);
                for ((output, value), ((factor, mean), bias)) in
                    output.iter_mut().zip(row).zip(channels)
                {
                    *output = (value - mean) * factor + bias;
                }
            },
        );
        Ok(())
    }

    /// Derivatives with respect to scale and bias, from that with respect to the output.
    ///
    /// # Errors
    ///
    /// If a slice does not fit the shape.
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
        // Σ d·(x − mean), to be divided by the deviation at the end.
        let (bias, scale) = self.sums(
            d_output,
            input,
            #[inline(always)]
            |biases, scales, d_row, row| {
                let values = d_row.iter().zip(row).zip(mean);
                for ((bias, scale), ((d_output, value), mean)) in
                    biases.iter_mut().zip(scales).zip(values)
                {
                    *bias += d_output;
                    *scale += d_output * (value - mean);
                }
            },
        );
        for (d_bias, sum) in d_bias.iter_mut().zip(bias) {
            *d_bias = sum as f32;
        }
        for ((d_scale, sum), var) in d_scale.iter_mut().zip(scale).zip(&statistics.var) {
            *d_scale = sum as f32 / (var + EPSILON).sqrt();
        }
        Ok(())
    }

    /// Derivative with respect to the input, from that with respect to the output, and from the
    /// derivatives of scale and bias.
    ///
    /// # Errors
    ///
    /// If a slice does not fit the shape.
    #[expect(clippy::too_many_arguments, reason = "one for each array of the formula")]
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
        let factor = self.factors(statistics, scale)?;
        // What every value of a channel loses for its share in the channel's mean and variance.
        let share = if statistics.is_training { 1.0 / self.rows as f32 } else { 0.0 };
        let by_mean = d_bias.iter().map(|d_bias| d_bias * share).collect::<Vec<_>>();
        let by_var = d_scale.iter().zip(&statistics.var);
        let by_var = by_var.map(|(d_scale, var)| d_scale * share / (var + EPSILON).sqrt());
        let by_var = by_var.collect::<Vec<_>>();
        let mean = &statistics.mean;
        self.for_each_row(
            d_input,
            d_output,
            input,
            #[inline(always)]
            |d_input, d_row, row| {
                let channels = factor.iter().zip(mean).zip(by_mean.iter().zip(&by_var));
                let values = d_row.iter().zip(row).zip(channels);
                for (d_input, ((d_output, value), ((factor, mean), (by_mean, by_var)))) in
                    d_input.iter_mut().zip(values)
                {
                    *d_input = factor * (d_output - by_mean - (value - mean) * by_var);
                }
            },
        );
        Ok(())
    }

    fn len(&self) -> usize {
        product([self.rows, self.channels])
    }

    fn check(&self, statistics: &Statistics) -> Result<()> {
        check_len("batch norm mean", self.channels, statistics.mean.len())?;
        check_len("batch norm variance", self.channels, statistics.var.len())
    }

    /// What each channel is multiplied by: `scale / √(var + ε)`.
    fn factors(&self, statistics: &Statistics, scale: &[f32]) -> Result<Vec<f32>> {
        self.check(statistics)?;
        check_len("batch norm scale", self.channels, scale.len())?;
        let channels = statistics.var.iter().zip(scale);
        Ok(channels.map(|(var, scale)| scale / (var + EPSILON).sqrt()).collect())
    }

    /// Two sums per channel over all rows; `add` adds the terms of a row of `a` and of `b`.
    ///
    /// The partial sums depend on the shape alone and are added in order, so that the result does
    /// not depend on the number of threads.
    fn sums(
        &self,
        a: &[f32],
        b: &[f32],
        add: impl Fn(&mut [f32], &mut [f32], &[f32], &[f32]) + Sync,
    ) -> (Vec<f64>, Vec<f64>) {
        let channels = self.channels.max(1);
        let tasks = a.par_chunks(ROWS * channels).zip(b.par_chunks(ROWS * channels));
        let parts = tasks.map(|(a, b)| {
            let (mut first, mut second) = (vec![0.0; channels], vec![0.0; channels]);
            vectorized(
                #[inline(always)]
                || {
                    for (a, b) in a.chunks_exact(channels).zip(b.chunks_exact(channels)) {
                        add(&mut first, &mut second, a, b);
                    }
                },
            );
            (first, second)
        });
        let mut sums = (vec![0.0; self.channels], vec![0.0; self.channels]);
        for (first, second) in parts.collect::<Vec<_>>() {
            for (sum, part) in sums.0.iter_mut().zip(first) {
                *sum += f64::from(part);
            }
            for (sum, part) in sums.1.iter_mut().zip(second) {
                *sum += f64::from(part);
            }
        }
        sums
    }

    /// Calls `work` with each row of the output and of two inputs.
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
