//! Pooling without padding and with stride = window. Rows and columns that do not fill a window are
//! dropped.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::error::{Result, check_len, check_window};
use crate::instruction_set::dispatch;
use crate::lanes::{Lanes, for_each_vector};
use crate::shape::saturating_product;

/// A pooling layer of a given shape.
///
/// # Shapes
/// * input `[batch, height, width, channels]`
/// * output `[batch, height / window.0, width / window.1, channels]`, both divisions rounded down
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool2d {
    /// Number of images.
    pub batch: usize,
    /// Height of the input, in pixels.
    pub height: usize,
    /// Width of the input, in pixels.
    pub width: usize,
    /// Channels.
    pub channels: usize,
    /// Height and width of the window, at least 1 each.
    pub window: (usize, usize),
}

impl Pool2d {
    /// Number of values in the input.
    pub fn input_len(&self) -> usize {
        saturating_product(&[self.batch, self.image_len()])
    }

    /// Number of values in the output; 0 if the window height or width is 0.
    pub fn output_len(&self) -> usize {
        let (height, width) = self.windows();
        saturating_product(&[self.batch, height, width, self.channels])
    }

    /// Mean of each window.
    ///
    /// # Errors
    /// [`KernelError::Length`](crate::KernelError::Length) if a slice does not fit the shape;
    /// [`KernelError::EmptyWindow`](crate::KernelError::EmptyWindow) if the window height or width
    /// is 0.
    pub fn average_forward(&self, input: &[f32], output: &mut [f32]) -> Result<()> {
        self.forward(PoolKind::Average, input, output)
    }

    /// Gradient of the input: the pixels of a window share that of the output equally.
    ///
    /// # Errors
    /// [`KernelError::Length`](crate::KernelError::Length) if a slice does not fit the shape;
    /// [`KernelError::EmptyWindow`](crate::KernelError::EmptyWindow) if the window height or width
    /// is 0.
    pub fn average_backward(&self, d_output: &[f32], d_input: &mut [f32]) -> Result<()> {
        self.check(d_input.len(), d_output.len())?;
        self.backward(PoolKind::Average, |_| PoolMask::PassAll, d_output, d_input);
        Ok(())
    }

    /// Maximum of each window; NaN if the window contains one.
    ///
    /// # Errors
    /// [`KernelError::Length`](crate::KernelError::Length) if a slice does not fit the shape;
    /// [`KernelError::EmptyWindow`](crate::KernelError::EmptyWindow) if the window height or width
    /// is 0.
    pub fn max_forward(&self, input: &[f32], output: &mut [f32]) -> Result<()> {
        self.forward(PoolKind::Max, input, output)
    }

    /// Gradient of the input: that of the output goes to the first maximum of the window, in
    /// row-major order, as in XLA.
    ///
    /// # Errors
    /// [`KernelError::Length`](crate::KernelError::Length) if a slice does not fit the shape;
    /// [`KernelError::EmptyWindow`](crate::KernelError::EmptyWindow) if the window height or width
    /// is 0.
    pub fn max_backward(&self, input: &[f32], d_output: &[f32], d_input: &mut [f32]) -> Result<()> {
        self.check(input.len(), d_output.len())?;
        check_len("pooling input gradient", self.input_len(), d_input.len())?;
        let mask = |start: usize| PoolMask::Recompute(&input[start..][..self.band_len()]);
        self.backward(PoolKind::Max, mask, d_output, d_input);
        Ok(())
    }

    fn forward(&self, kind: PoolKind, input: &[f32], output: &mut [f32]) -> Result<()> {
        self.check(input.len(), output.len())?;
        if output.is_empty() {
            return Ok(());
        }
        let pooling = Pooling { pool: *self, kind, relu: false };
        let (rows, columns) = self.windows();
        let row_len = columns * self.channels;
        output.par_chunks_mut(rows * row_len).enumerate().for_each(|(image, output)| {
            let bands = input[image * self.image_len()..].chunks_exact(self.band_len());
            for (output, band) in output.chunks_exact_mut(row_len).zip(bands) {
                pooling.forward_row(band, output, None);
            }
        });
        Ok(())
    }

    /// `mask` returns the mask of the row band that starts at an offset in the input.
    fn backward<'a>(
        &self,
        kind: PoolKind,
        mask: impl Fn(usize) -> PoolMask<'a> + Sync,
        d_output: &[f32],
        d_input: &mut [f32],
    ) {
        if d_input.is_empty() {
            return;
        }
        let pooling = Pooling { pool: *self, kind, relu: false };
        let (rows, columns) = self.windows();
        let row_len = columns * self.channels;
        d_input.par_chunks_mut(self.image_len()).enumerate().for_each(|(image, d_input)| {
            d_input.fill(0.0);
            let d_output = &d_output[image * rows * row_len..][..rows * row_len];
            let bands = d_input.chunks_exact_mut(self.band_len());
            for (y, d_band) in bands.take(rows).enumerate() {
                let d_row = &d_output[y * row_len..][..row_len];
                let mask = mask(image * self.image_len() + y * self.band_len());
                pooling.backward_row(d_row, mask, d_band, self.row_len());
            }
        });
    }

    fn check(&self, input: usize, output: usize) -> Result<()> {
        check_window("pooling window", self.window)?;
        check_len("pooling input", self.input_len(), input)?;
        check_len("pooling output", self.output_len(), output)
    }

    /// Rows and columns of windows; 0 if the window height or width is 0.
    pub(crate) fn windows(&self) -> (usize, usize) {
        let count = |extent: usize, window: usize| extent.checked_div(window).unwrap_or(0);
        (count(self.height, self.window.0), count(self.width, self.window.1))
    }

    /// Number of values in a row of pixels.
    fn row_len(&self) -> usize {
        saturating_product(&[self.width, self.channels])
    }

    fn image_len(&self) -> usize {
        saturating_product(&[self.height, self.row_len()])
    }

    /// Number of values in a row band: the input rows under one row of windows.
    pub(crate) fn band_len(&self) -> usize {
        saturating_product(&[self.window.0, self.row_len()])
    }
}

/// How a window is reduced to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PoolKind {
    /// The mean. Bit j of its mask is set if pixel j gets a gradient. A 1×1 mean stands for no
    /// pooling.
    Average,
    /// The maximum. Its mask is the index of the maximum in the window, or [`NO_ARGMAX`].
    Max,
}

/// Mask of a maximum that the ReLU set to zero: no pixel gets a gradient.
const NO_ARGMAX: u32 = u32::MAX;

/// The pixels of a row of windows that get a gradient, as one mask per output value.
#[derive(Clone, Copy)]
pub(crate) enum PoolMask<'a> {
    /// All pixels.
    PassAll,
    /// The masks saved by [`Pooling::forward_row`].
    Saved(&'a [u32]),
    /// The masks that [`Pooling::forward_row`] computes for this row band.
    Recompute(&'a [f32]),
}

/// An optional ReLU and pooling, one row of windows at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pooling {
    pub(crate) pool: Pool2d,
    pub(crate) kind: PoolKind,
    pub(crate) relu: bool,
}

impl Pooling {
    /// The most pixels per window that a mask can represent.
    pub(crate) fn max_window_len(kind: PoolKind) -> usize {
        match kind {
            PoolKind::Average => u32::BITS as usize,
            PoolKind::Max => NO_ARGMAX as usize,
        }
    }

    /// Pools a row band of the input into a row of the output. Saves the masks if asked to.
    pub(crate) fn forward_row(&self, band: &[f32], output: &mut [f32], masks: Option<&mut [u32]>) {
        dispatch(ForwardRow { pooling: self, band, output, masks });
    }

    /// Gradient of a row band, given that of its row of the output. `d_row` is the stride between
    /// rows of `d_band`.
    pub(crate) fn backward_row(
        &self,
        d_output: &[f32],
        mask: PoolMask,
        d_band: &mut [f32],
        d_row: usize,
    ) {
        dispatch(BackwardRow { pooling: self, d_output, mask, d_band, d_row });
    }

    /// Whether not every pixel of a window gets a gradient.
    pub(crate) fn is_masked(&self) -> bool {
        self.relu || self.kind == PoolKind::Max
    }

    /// Gradient of an image, given that of its pooled output and the saved masks. The rows of
    /// `d_input` are `stride` values apart and start at `origin`; all around them becomes zero.
    pub(crate) fn unpool(
        &self,
        d_output: &[f32],
        masks: &[u32],
        d_input: &mut [f32],
        origin: usize,
        stride: usize,
    ) {
        let (rows, columns) = self.pool.windows();
        let (height, width) = self.pool.window;
        let pooled_len = columns * self.pool.channels;
        // Zero the padding, and the rows and columns that no window covers.
        let covered = pooled_len * width;
        let mut end = 0;
        for y in 0..rows * height {
            let start = origin + y * stride;
            d_input[end..start].fill(0.0);
            end = start + covered;
        }
        d_input[end..].fill(0.0);
        for (y, d_output) in d_output.chunks_exact(pooled_len).enumerate() {
            let mask = if self.is_masked() {
                PoolMask::Saved(&masks[y * pooled_len..][..pooled_len])
            } else {
                PoolMask::PassAll
            };
            self.backward_row(d_output, mask, &mut d_input[origin + y * height * stride..], stride);
        }
    }

    /// Scale of the sum or maximum of a window.
    fn scale(&self) -> f32 {
        match self.kind {
            PoolKind::Average => 1.0 / (self.pool.window.0 * self.pool.window.1) as f32,
            PoolKind::Max => 1.0,
        }
    }

    /// Calls `visit` with the index and offset of each pixel of the `x`-th window. `row` is the
    /// stride between rows.
    #[inline(always)]
    fn for_each_pixel(&self, x: usize, row: usize, visit: impl FnMut(u32, usize)) {
        let channels = self.pool.channels;
        let first = x * self.pool.window.1 * channels;
        match self.pool.window {
            // The usual window: constants let the compiler unroll the loops.
            (2, 2) => walk(2, 2, first, row, channels, visit),
            (height, width) => walk(height, width, first, row, channels, visit),
        }
    }

    /// [`Self::forward_row`] with vectors of one instruction set.
    #[inline(always)]
    fn forward_windows<S: Simd>(
        &self,
        simd: S,
        band: &[f32],
        output: &mut [f32],
        mut masks: Option<&mut [u32]>,
    ) {
        let channels = self.pool.channels;
        let scale = simd.splat_f32s(self.scale());
        for (x, output) in output.chunks_exact_mut(channels).enumerate() {
            for_each_vector(
                simd,
                channels,
                #[inline(always)]
                |lanes| {
                    let (value, mask) = self.window(lanes, band, x);
                    lanes.store(simd.mul_f32s(value, scale), output);
                    if let Some(masks) = &mut masks {
                        lanes.store_u32s(mask, &mut masks[x * channels..]);
                    }
                },
            );
        }
    }

    /// Sum or maximum of the `x`-th window of a row band, and its mask.
    #[inline(always)]
    fn window<S: Simd>(&self, lanes: Lanes<S>, band: &[f32], x: usize) -> (S::f32s, S::u32s) {
        match self.kind {
            PoolKind::Average => self.sum(lanes, band, x),
            PoolKind::Max => self.max(lanes, band, x),
        }
    }

    #[inline(always)]
    fn sum<S: Simd>(&self, lanes: Lanes<S>, band: &[f32], x: usize) -> (S::f32s, S::u32s) {
        let simd = lanes.simd;
        let (zero, none) = (simd.splat_f32s(0.0), simd.splat_u32s(0));
        // `value <= NaN` is false: without ReLU nothing is clipped.
        let limit = simd.splat_f32s(if self.relu { 0.0 } else { f32::NAN });
        let (mut sum, mut mask) = (zero, none);
        self.for_each_pixel(
            x,
            self.pool.row_len(),
            #[inline(always)]
            |pixel, start| {
                let value = lanes.load(&band[start..]);
                let clipped = simd.less_than_or_equal_f32s(value, limit);
                let bit = simd.splat_u32s(bit(pixel));
                sum = simd.add_f32s(sum, simd.select_f32s(clipped, zero, value));
                mask = simd.or_u32s(mask, simd.select_u32s(clipped, none, bit));
            },
        );
        (sum, mask)
    }

    #[inline(always)]
    fn max<S: Simd>(&self, lanes: Lanes<S>, band: &[f32], x: usize) -> (S::f32s, S::u32s) {
        let simd = lanes.simd;
        let (mut best, mut argmax) = (simd.splat_f32s(f32::NEG_INFINITY), simd.splat_u32s(0));
        self.for_each_pixel(
            x,
            self.pool.row_len(),
            #[inline(always)]
            |pixel, start| {
                let value = lanes.load(&band[start..]);
                // Comparisons with NaN are false: a NaN never loses, so it replaces the best value.
                // After that `is_number` is false, so it stays.
                let loses = simd.less_than_or_equal_f32s(value, best);
                let is_number = simd.equal_f32s(best, best);
                let better = simd.select_f32s(loses, best, value);
                let better_argmax = simd.select_u32s(loses, argmax, simd.splat_u32s(pixel));
                best = simd.select_f32s(is_number, better, best);
                argmax = simd.select_u32s(is_number, better_argmax, argmax);
            },
        );
        if self.relu {
            let zero = simd.splat_f32s(0.0);
            let clipped = simd.less_than_or_equal_f32s(best, zero);
            best = simd.select_f32s(clipped, zero, best);
            argmax = simd.select_u32s(clipped, simd.splat_u32s(NO_ARGMAX), argmax);
        }
        (best, argmax)
    }
}

#[inline(always)]
fn walk(
    height: usize,
    width: usize,
    first: usize,
    row: usize,
    column: usize,
    mut visit: impl FnMut(u32, usize),
) {
    let mut pixel = 0;
    for y in 0..height {
        for x in 0..width {
            visit(pixel, first + y * row + x * column);
            pixel += 1;
        }
    }
}

/// The bit of a pixel in the mask of a mean.
#[inline(always)]
fn bit(pixel: u32) -> u32 {
    1u32.checked_shl(pixel).unwrap_or(0)
}

struct ForwardRow<'a> {
    pooling: &'a Pooling,
    band: &'a [f32],
    output: &'a mut [f32],
    masks: Option<&'a mut [u32]>,
}

impl WithSimd for ForwardRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { pooling, band, output, masks } = self;
        // The usual cases as constants: then nothing is decided in their inner loop.
        let pool = Pool2d { window: (2, 2), ..pooling.pool };
        let usual = Pooling { pool, kind: PoolKind::Average, ..*pooling };
        match masks {
            None if *pooling == usual => usual.forward_windows(simd, band, output, None),
            masks if *pooling == usual => usual.forward_windows(simd, band, output, masks),
            masks => pooling.forward_windows(simd, band, output, masks),
        }
    }
}

struct BackwardRow<'a> {
    pooling: &'a Pooling,
    d_output: &'a [f32],
    mask: PoolMask<'a>,
    d_band: &'a mut [f32],
    d_row: usize,
}

impl WithSimd for BackwardRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { pooling, d_output, mask: row_mask, d_band, d_row } = self;
        let channels = pooling.pool.channels;
        let zero = simd.splat_f32s(0.0);
        let scale = simd.splat_f32s(pooling.scale());
        for (x, d_output) in d_output.chunks_exact(channels).enumerate() {
            for_each_vector(
                simd,
                channels,
                #[inline(always)]
                |lanes| {
                    let gradient = simd.mul_f32s(lanes.load(d_output), scale);
                    let mask = match row_mask {
                        PoolMask::PassAll => simd.splat_u32s(0),
                        PoolMask::Saved(masks) => lanes.load_u32s(&masks[x * channels..]),
                        PoolMask::Recompute(band) => pooling.window(lanes, band, x).1,
                    };
                    pooling.for_each_pixel(
                        x,
                        d_row,
                        #[inline(always)]
                        |pixel, start| {
                            let value = match (pooling.kind, row_mask) {
                                (PoolKind::Average, PoolMask::PassAll) => gradient,
                                (PoolKind::Average, _) => {
                                    let bit = simd.and_u32s(mask, simd.splat_u32s(bit(pixel)));
                                    let passes = simd.greater_than_u32s(bit, simd.splat_u32s(0));
                                    simd.select_f32s(passes, gradient, zero)
                                }
                                (PoolKind::Max, _) => {
                                    let is_max = simd.equal_u32s(mask, simd.splat_u32s(pixel));
                                    simd.select_f32s(is_max, gradient, zero)
                                }
                            };
                            lanes.store(value, &mut d_band[start..]);
                        },
                    );
                },
            );
        }
    }
}
