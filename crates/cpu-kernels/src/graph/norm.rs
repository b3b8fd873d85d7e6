//! The batch norm of a stage. Each pass over rows treats one example while it is in the cache.

use pulp::{Arch, Simd, WithSimd};

use crate::batch_norm::{BatchNorm, Statistics};
use crate::lanes::for_each_vector;
use crate::parameters::Parameters;

/// Rows that are added in f32 before the sum goes on in f64.
const ROWS: usize = 256;

/// The batch norm of a stage, `z = (y − mean) · scale / √(var + ε) + bias`.
#[derive(Debug)]
pub(crate) struct Norm {
    /// Indices of scale and bias in the list of parameters.
    params: (usize, usize),
    /// Its place among the batch norms of the network.
    pub(crate) index: usize,
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
            statistics: Statistics { mean: zeros(), var: zeros(), is_training: false },
            factor: zeros(),
            bias: zeros(),
            mean_dz: zeros(),
            slope: zeros(),
        }
    }

    /// The sums of an example's values and of their squares.
    pub(crate) fn value_sums(&self, y: &[f32]) -> Sums {
        let zero = vec![0.0; self.factor.len()];
        Sums::of(y, y, &zero)
    }

    /// Takes running statistics.
    pub(crate) fn set_running(&mut self, params: &[&[f32]], statistics: &Statistics) {
        self.statistics.clone_from(statistics);
        self.set_params(params);
    }

    /// Takes the statistics of the batch, given the [`value_sums`](Self::value_sums) of all
    /// examples, `len` values altogether.
    pub(crate) fn set_batch(&mut self, params: &[&[f32]], sums: &[Sums], len: usize) {
        let Sums { first, second } = Sums::total(sums);
        let rows = (len / self.factor.len()) as f64;
        for (channel, (sum, square)) in first.iter().zip(second).enumerate() {
            let mean = sum / rows;
            self.statistics.mean[channel] = mean as f32;
            self.statistics.var[channel] = (square / rows - mean * mean).max(0.0) as f32;
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
        Arch::new().dispatch(Forward { norm: self, y, z });
    }

    /// The sums of an example's gradients, and of those times the centered values.
    pub(crate) fn gradient_sums(&self, y: &[f32], dz: &[f32]) -> Sums {
        Sums::of(dz, y, &self.statistics.mean)
    }

    /// Updates scale and bias, given the [`gradient_sums`](Self::gradient_sums) of all examples,
    /// `len` values altogether.
    pub(crate) fn update(&mut self, sums: &[Sums], len: usize, parameters: &mut Parameters) {
        let Sums { first, second } = Sums::total(sums);
        let inv_rows = 1.0 / (len / self.factor.len()) as f32;
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

    /// The gradient of rows of y, given that of z, after [`update`](Self::update).
    pub(crate) fn backward(&self, y: &[f32], dz: &[f32], dy: &mut [f32]) {
        Arch::new().dispatch(Backward { norm: self, y, dz, dy });
    }
}

impl Sums {
    /// `a` and `a · (b − center)`, summed over the rows.
    fn of(a: &[f32], b: &[f32], center: &[f32]) -> Self {
        let channels = center.len();
        let mut sums = Sums::zeros(channels);
        let (mut first, mut second) = (vec![0.0; channels], vec![0.0; channels]);
        for (a, b) in a.chunks(ROWS * channels).zip(b.chunks(ROWS * channels)) {
            let (first, second) = (&mut first, &mut second);
            Arch::new().dispatch(SumRows { a, b, center, first, second });
            sums.first.iter_mut().zip(&*first).for_each(|(sum, part)| *sum += f64::from(*part));
            sums.second.iter_mut().zip(&*second).for_each(|(sum, part)| *sum += f64::from(*part));
        }
        sums
    }

    fn zeros(channels: usize) -> Self {
        Sums { first: vec![0.0; channels], second: vec![0.0; channels] }
    }

    /// In the order of the examples, so that the result does not depend on threads.
    fn total(sums: &[Sums]) -> Self {
        let channels = sums.first().map_or(0, |sums| sums.first.len());
        let mut total = Sums::zeros(channels);
        for Sums { first, second } in sums {
            total.first.iter_mut().zip(first).for_each(|(total, sum)| *total += sum);
            total.second.iter_mut().zip(second).for_each(|(total, sum)| *total += sum);
        }
        total
    }
}

struct SumRows<'a> {
    a: &'a [f32],
    b: &'a [f32],
    center: &'a [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
}

impl WithSimd for SumRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { a, b, center, first: firsts, second: seconds } = self;
        let channels = center.len();
        for_each_vector(
            simd,
            channels,
            #[inline(always)]
            |lanes| {
                let middle = lanes.load(center);
                let zero = simd.splat_f32s(0.0);
                let (mut first, mut second) = (zero, zero);
                for (a, b) in a.chunks_exact(channels).zip(b.chunks_exact(channels)) {
                    let a = lanes.load(a);
                    let b = simd.sub_f32s(lanes.load(b), middle);
                    first = simd.add_f32s(first, a);
                    second = simd.mul_add_f32s(a, b, second);
                }
                lanes.store(first, firsts);
                lanes.store(second, seconds);
            },
        );
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
        let channels = norm.factor.len();
        for_each_vector(
            simd,
            channels,
            #[inline(always)]
            |lanes| {
                let mean = lanes.load(&norm.statistics.mean);
                let (factor, bias) = (lanes.load(&norm.factor), lanes.load(&norm.bias));
                for (y, z) in y.chunks_exact(channels).zip(z.chunks_exact_mut(channels)) {
                    let centered = simd.sub_f32s(lanes.load(y), mean);
                    lanes.store(simd.mul_add_f32s(centered, factor, bias), z);
                }
            },
        );
    }
}

struct Backward<'a> {
    norm: &'a Norm,
    y: &'a [f32],
    dz: &'a [f32],
    dy: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { norm, y, dz, dy } = self;
        let channels = norm.factor.len();
        for_each_vector(
            simd,
            channels,
            #[inline(always)]
            |lanes| {
                let mean = lanes.load(&norm.statistics.mean);
                let factor = lanes.load(&norm.factor);
                let mean_dz = lanes.load(&norm.mean_dz);
                let slope = lanes.load(&norm.slope);
                let rows = y.chunks_exact(channels).zip(dz.chunks_exact(channels));
                for ((y, dz), dy) in rows.zip(dy.chunks_exact_mut(channels)) {
                    let centered = simd.sub_f32s(lanes.load(y), mean);
                    let through_mean = simd.sub_f32s(lanes.load(dz), mean_dz);
                    let rest = simd.mul_f32s(centered, slope);
                    lanes.store(simd.mul_f32s(factor, simd.sub_f32s(through_mean, rest)), dy);
                }
            },
        );
    }
}
