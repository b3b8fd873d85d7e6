//! The batch norm of a stage. Each pass over rows treats one example while it is in the cache.

use pulp::{Simd, WithSimd};

use crate::batch_norm::{BatchNorm, Statistics, unshifted, variance};
use crate::instruction_set::dispatch;
use crate::lanes::{Lanes, for_each_vector};
use crate::parameters::Parameters;

/// Rows that are added in f32 before the sum goes on in f64.
const ROWS: usize = 256;

/// The batch norm of a stage, `z = (y − mean) · scale / √(var + ε) + bias`, and a ReLU that may
/// follow it.
///
/// The backward pass computes z anew to see where the ReLU lets gradients pass. That is faster than
/// reading it from memory.
#[derive(Debug)]
pub(crate) struct Norm {
    /// Indices of scale and bias in the list of parameters.
    params: (usize, usize),
    /// Its place among the batch norms of the network.
    pub(crate) index: usize,
    pub(crate) relu: bool,
    /// Those of the batch, or running ones.
    pub(crate) statistics: Statistics,
    /// `scale / √(var + ε)`
    factor: Vec<f32>,
    bias: Vec<f32>,
    /// Over all rows, the mean of dz, and that of dz·(y − mean) divided by the variance.
    mean_dz: Vec<f32>,
    slope: Vec<f32>,
}

/// Two sums per channel over the rows of an example.
pub(crate) struct Sums {
    first: Vec<f64>,
    second: Vec<f64>,
}

impl Norm {
    pub(crate) fn new(channels: usize, params: (usize, usize), index: usize) -> Self {
        let zeros = || vec![0.0; channels];
        Self {
            params,
            index,
            relu: false,
            statistics: Statistics { mean: zeros(), var: zeros(), is_training: false },
            factor: zeros(),
            bias: zeros(),
            mean_dz: zeros(),
            slope: zeros(),
        }
    }

    fn channels(&self) -> usize {
        self.factor.len()
    }

    /// Takes running statistics.
    pub(crate) fn set_running(&mut self, params: &[&[f32]], statistics: &Statistics) {
        self.statistics.clone_from(statistics);
        self.set_params(params);
    }

    /// The sums of an example's values and of their squares.
    pub(crate) fn value_sums(&self, y: &[f32]) -> Sums {
        let channels = self.channels();
        let mut sums = Sums::zeros(channels);
        let (mut first, mut second) = (vec![0.0; channels], vec![0.0; channels]);
        for y in y.chunks(ROWS * channels) {
            dispatch(SumValues { y, first: &mut first, second: &mut second });
            let rows = y.len() / channels;
            sums.add(
                y.iter()
                    .zip(first.iter().zip(&second))
                    .map(|(&shift, (&sum, &square))| unshifted(shift, rows, sum, square)),
            );
        }
        sums
    }

    /// Takes the statistics of the batch, given the [`value_sums`](Self::value_sums) of all
    /// examples, `len` values altogether.
    pub(crate) fn set_batch(&mut self, params: &[&[f32]], sums: &[Sums], len: usize) {
        let rows = (len / self.channels()) as f64;
        let Sums { first, second } = Sums::total(self.channels(), sums);
        for (channel, (sum, square)) in first.iter().zip(second).enumerate() {
            let mean = sum / rows;
            self.statistics.mean[channel] = mean as f32;
            self.statistics.var[channel] = variance(mean, square / rows);
        }
        self.statistics.is_training = true;
        self.set_params(params);
    }

    fn set_params(&mut self, params: &[&[f32]]) {
        let scale = params[self.params.0].iter().zip(&self.statistics.var);
        for (factor, (scale, var)) in self.factor.iter_mut().zip(scale) {
            *factor = scale / BatchNorm::std(var);
        }
        self.bias.copy_from_slice(params[self.params.1]);
    }

    /// Normalizes rows.
    pub(crate) fn forward(&self, y: &[f32], z: &mut [f32]) {
        dispatch(Forward { norm: self, y, z });
    }

    /// The sums of an example's gradients, and of those times the centered values, given the
    /// gradient after the ReLU.
    pub(crate) fn gradient_sums(&self, y: &[f32], d_output: &[f32]) -> Sums {
        let channels = self.channels();
        let mut sums = Sums::zeros(channels);
        let (mut first, mut second) = (vec![0.0; channels], vec![0.0; channels]);
        for (y, d_output) in y.chunks(ROWS * channels).zip(d_output.chunks(ROWS * channels)) {
            let (first, second) = (&mut first[..], &mut second[..]);
            dispatch(SumGradients { norm: self, y, d_output, first, second });
            let parts = first.iter().zip(&*second);
            sums.add(parts.map(|(&first, &second)| (first.into(), second.into())));
        }
        sums
    }

    /// Updates scale and bias, given the [`gradient_sums`](Self::gradient_sums) of all examples,
    /// `len` values altogether.
    pub(crate) fn update(&mut self, sums: &[Sums], len: usize, parameters: &mut Parameters) {
        let inv_rows = 1.0 / (len / self.channels()) as f32;
        let Sums { first, second } = Sums::total(self.channels(), sums);
        let d_bias = first.iter().map(|sum| *sum as f32).collect::<Vec<_>>();
        let stds = self.statistics.var.iter().map(BatchNorm::std).collect::<Vec<_>>();
        let d_scale = second.iter().zip(&stds).map(|(sum, std)| *sum as f32 / std);
        let d_scale = d_scale.collect::<Vec<_>>();
        for (mean_dz, d_bias) in self.mean_dz.iter_mut().zip(&d_bias) {
            *mean_dz = d_bias * inv_rows;
        }
        for (slope, (d_scale, std)) in self.slope.iter_mut().zip(d_scale.iter().zip(&stds)) {
            *slope = d_scale * inv_rows / std;
        }
        parameters.update(self.params.0).apply(&d_scale);
        parameters.update(self.params.1).apply(&d_bias);
    }

    /// The gradient of rows of y, given the one after the ReLU, after [`update`](Self::update).
    pub(crate) fn backward(&self, y: &[f32], d_output: &[f32], dy: &mut [f32]) {
        dispatch(Backward { norm: self, y, d_output, dy });
    }
}

impl Sums {
    fn zeros(channels: usize) -> Self {
        Sums { first: vec![0.0; channels], second: vec![0.0; channels] }
    }

    fn add(&mut self, parts: impl Iterator<Item = (f64, f64)>) {
        for ((first, second), part) in self.first.iter_mut().zip(&mut self.second).zip(parts) {
            *first += part.0;
            *second += part.1;
        }
    }

    /// In the order of the examples, so that the result does not depend on threads.
    fn total(channels: usize, examples: &[Sums]) -> Self {
        let mut total = Sums::zeros(channels);
        for Sums { first, second } in examples {
            total.add(first.iter().copied().zip(second.iter().copied()));
        }
        total
    }
}

/// The sums over rows of the values less those of the first row, and of their squares.
struct SumValues<'a> {
    y: &'a [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
}

impl WithSimd for SumValues<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { y, first, second } = self;
        let channels = first.len();
        for_each_vector(
            simd,
            channels,
            #[inline(always)]
            |lanes| {
                let (mut sum, mut squares) = (simd.splat_f32s(0.0), simd.splat_f32s(0.0));
                let shift = lanes.load(y);
                for y in y.chunks_exact(channels) {
                    let y = simd.sub_f32s(lanes.load(y), shift);
                    sum = simd.add_f32s(sum, y);
                    squares = simd.mul_add_f32s(y, y, squares);
                }
                lanes.store(sum, first);
                lanes.store(squares, second);
            },
        );
    }
}

/// Some channels of a batch norm.
#[derive(Clone, Copy)]
struct Channels<S: Simd> {
    lanes: Lanes<S>,
    mean: S::f32s,
    factor: S::f32s,
    bias: S::f32s,
    /// Where z is at most this, no gradient passes.
    limit: S::f32s,
}

impl<S: Simd> Channels<S> {
    #[inline(always)]
    fn new(lanes: Lanes<S>, norm: &Norm) -> Self {
        // `z <= NaN` is false: without a ReLU nothing is clipped.
        let limit = lanes.simd.splat_f32s(if norm.relu { 0.0 } else { f32::NAN });
        Self {
            lanes,
            mean: lanes.load(&norm.statistics.mean),
            factor: lanes.load(&norm.factor),
            bias: lanes.load(&norm.bias),
            limit,
        }
    }

    #[inline(always)]
    fn centered(self, y: &[f32]) -> S::f32s {
        self.lanes.simd.sub_f32s(self.lanes.load(y), self.mean)
    }

    /// `value`, or zero where the ReLU clips.
    #[inline(always)]
    fn clip(self, centered: S::f32s, value: impl FnOnce(S::f32s) -> S::f32s) -> S::f32s {
        let simd = self.lanes.simd;
        let z = simd.mul_add_f32s(centered, self.factor, self.bias);
        let is_clipped = simd.less_than_or_equal_f32s(z, self.limit);
        simd.select_f32s(is_clipped, simd.splat_f32s(0.0), value(z))
    }
}

struct Forward<'a> {
    norm: &'a Norm,
    y: &'a [f32],
    z: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { norm, y, z } = self;
        let count = norm.channels();
        for_each_vector(
            simd,
            count,
            #[inline(always)]
            |lanes| {
                let channels = Channels::new(lanes, norm);
                for (y, z) in y.chunks_exact(count).zip(z.chunks_exact_mut(count)) {
                    lanes.store(channels.clip(channels.centered(y), |z| z), z);
                }
            },
        );
    }
}

struct SumGradients<'a> {
    norm: &'a Norm,
    y: &'a [f32],
    d_output: &'a [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
}

impl WithSimd for SumGradients<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { norm, y, d_output, first, second } = self;
        let count = norm.channels();
        for_each_vector(
            simd,
            count,
            #[inline(always)]
            |lanes| {
                let channels = Channels::new(lanes, norm);
                let (mut sum, mut product) = (simd.splat_f32s(0.0), simd.splat_f32s(0.0));
                for (y, d_output) in y.chunks_exact(count).zip(d_output.chunks_exact(count)) {
                    let centered = channels.centered(y);
                    let dz = channels.clip(centered, |_| lanes.load(d_output));
                    sum = simd.add_f32s(sum, dz);
                    product = simd.mul_add_f32s(dz, centered, product);
                }
                lanes.store(sum, first);
                lanes.store(product, second);
            },
        );
    }
}

struct Backward<'a> {
    norm: &'a Norm,
    y: &'a [f32],
    d_output: &'a [f32],
    dy: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { norm, y, d_output, dy } = self;
        let count = norm.channels();
        for_each_vector(
            simd,
            count,
            #[inline(always)]
            |lanes| {
                let channels = Channels::new(lanes, norm);
                let (mean_dz, slope) = (lanes.load(&norm.mean_dz), lanes.load(&norm.slope));
                let rows = y.chunks_exact(count).zip(d_output.chunks_exact(count));
                for ((y, d_output), dy) in rows.zip(dy.chunks_exact_mut(count)) {
                    let centered = channels.centered(y);
                    let dz = channels.clip(centered, |_| lanes.load(d_output));
                    let direct = simd.sub_f32s(dz, mean_dz);
                    let rest = simd.mul_f32s(centered, slope);
                    lanes.store(simd.mul_f32s(channels.factor, simd.sub_f32s(direct, rest)), dy);
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variance_of_values_far_from_zero_keeps_its_digits() {
        let norm = BatchNorm { rows: 1000, channels: 3 };
        let len = norm.rows * norm.channels;
        let values = (0..len).map(|i| 300.0 + (i * 7919 % 1009) as f32 / 504.0 - 1.0);
        let values = values.collect::<Vec<_>>();
        let plain = norm.statistics(&values).unwrap();
        let mut staged = Norm::new(norm.channels, (0, 1), 0);
        let sums = staged.value_sums(&values);
        staged.set_batch(&[&[1.0; 3], &[0.0; 3]], &[sums], len);
        for channel in 0..norm.channels {
            let values = values.iter().skip(channel).step_by(norm.channels);
            let values = values.map(|value| f64::from(*value)).collect::<Vec<_>>();
            let mean = values.iter().sum::<f64>() / norm.rows as f64;
            let square = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
            let var = square / norm.rows as f64;
            for found in [&plain, &staged.statistics] {
                let found = f64::from(found.var[channel]);
                assert!((found - var).abs() < 1e-6 * var, "{found}, not {var}");
            }
        }
    }
}
