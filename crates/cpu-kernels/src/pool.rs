//! Pooling without padding, window = stride; rows and columns that fill no window are dropped.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::error::{Result, check_len, check_window, product};
use crate::vectors::{Lanes, for_each_vector};

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
        self.forward(Kind::Average, input, output)
    }

    /// Derivative with respect to the input: every position of a window gets an equal share.
    ///
    /// # Errors
    ///
    /// If a slice does not fit the shape, or the window has no extent.
    pub fn average_backward(&self, d_output: &[f32], d_input: &mut [f32]) -> Result<()> {
        self.check(d_input.len(), d_output.len())?;
        self.backward(Kind::Average, |_| Marks::All, d_output, d_input);
        Ok(())
    }

    /// Largest value of each window; NaN if it holds one.
    ///
    /// # Errors
    ///
    /// If a slice does not fit the shape, or the window has no extent.
    pub fn max_forward(&self, input: &[f32], output: &mut [f32]) -> Result<()> {
        self.forward(Kind::Max, input, output)
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
        let marks = |start: usize| Marks::Of(&input[start..][..self.strip_len()]);
        self.backward(Kind::Max, marks, d_output, d_input);
        Ok(())
    }

    fn forward(&self, kind: Kind, input: &[f32], output: &mut [f32]) -> Result<()> {
        self.check(input.len(), output.len())?;
        if output.is_empty() {
            return Ok(());
        }
        let pooling = Pooling { pool: *self, kind, relu: false };
        let (rows, columns) = self.windows();
        let row_len = columns * self.channels;
        output.par_chunks_mut(rows * row_len).enumerate().for_each(|(image, output)| {
            let strips = input[image * self.image_len()..].chunks_exact(self.strip_len());
            for (output, strip) in output.chunks_exact_mut(row_len).zip(strips) {
                pooling.forward_row(strip, output, None);
            }
        });
        Ok(())
    }

    /// `marks` gives those of the strip that starts at a position of the input.
    fn backward<'a>(
        &self,
        kind: Kind,
        marks: impl Fn(usize) -> Marks<'a> + Sync,
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
            let strips = d_input.chunks_exact_mut(self.strip_len());
            for (y, d_strip) in strips.take(rows).enumerate() {
                let d_row = &d_output[y * row_len..][..row_len];
                let marks = marks(image * self.image_len() + y * self.strip_len());
                pooling.backward_row(d_row, marks, d_strip, self.row_len());
            }
        });
    }

    fn check(&self, input: usize, output: usize) -> Result<()> {
        check_window("pooling window", self.window)?;
        check_len("pooling input", self.input_len(), input)?;
        check_len("pooling output", self.output_len(), output)
    }

    /// Rows and columns of windows; 0 if the window has no extent.
    pub(crate) fn windows(&self) -> (usize, usize) {
        let count = |extent: usize, window: usize| extent.checked_div(window).unwrap_or(0);
        (count(self.height, self.window.0), count(self.width, self.window.1))
    }

    /// Values of a row of pixels.
    fn row_len(&self) -> usize {
        product([self.width, self.channels])
    }

    fn image_len(&self) -> usize {
        product([self.height, self.row_len()])
    }

    /// Values of a strip: the input rows under one row of windows.
    pub(crate) fn strip_len(&self) -> usize {
        product([self.window.0, self.row_len()])
    }
}

/// How a window becomes one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The mean. One mark per output: bit j says whether position j passes its derivative. No
    /// pooling at all is this with a window of one.
    Average,
    /// The maximum. One mark per output: the winner's position, or [`NO_WINNER`].
    Max,
}

/// Mark of a window without a positive value: its derivative is zero.
const NO_WINNER: u32 = u32::MAX;

/// What the way back must know about a row of windows.
#[derive(Clone, Copy)]
pub(crate) enum Marks<'a> {
    /// Every position passes its derivative.
    All,
    /// What [`Pooling::forward_row`] noted.
    Noted(&'a [u32]),
    /// What it would note of this strip.
    Of(&'a [f32]),
}

/// Pooling, with or without a ReLU before it, one row of windows at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pooling {
    pub(crate) pool: Pool2d,
    pub(crate) kind: Kind,
    pub(crate) relu: bool,
}

impl Pooling {
    /// Pixels that a window may have: as many as a mark tells apart.
    pub(crate) fn most_positions(kind: Kind) -> usize {
        match kind {
            Kind::Average => u32::BITS as usize,
            Kind::Max => NO_WINNER as usize,
        }
    }

    /// From a strip of the input to its row of the output, and the marks, if they are wanted.
    pub(crate) fn forward_row(&self, strip: &[f32], output: &mut [f32], marks: Option<&mut [u32]>) {
        Arch::new().dispatch(ForwardRow { pooling: self, strip, output, marks });
    }

    /// From the gradient of a row of the output to that of its strip, whose rows lie `d_row` values
    /// apart.
    pub(crate) fn backward_row(
        &self,
        d_output: &[f32],
        marks: Marks,
        d_strip: &mut [f32],
        d_row: usize,
    ) {
        Arch::new().dispatch(BackwardRow { pooling: self, d_output, marks, d_strip, d_row });
    }

    /// What the sum over a window is multiplied by.
    fn scale(&self) -> f32 {
        match self.kind {
            Kind::Average => 1.0 / (self.pool.window.0 * self.pool.window.1) as f32,
            Kind::Max => 1.0,
        }
    }

    /// Where the pixels of the `x`-th window start, row by row, if rows lie `row` values apart.
    #[inline(always)]
    fn for_each_pixel(&self, x: usize, row: usize, visit: impl FnMut(u32, usize)) {
        let channels = self.pool.channels;
        let first = x * self.pool.window.1 * channels;
        match self.pool.window {
            // Unrolled: it is nearly always this one.
            (2, 2) => walk(2, 2, first, row, channels, visit),
            (height, width) => walk(height, width, first, row, channels, visit),
        }
    }

    /// The `x`-th window of a strip: its sum or maximum, and its mark.
    #[inline(always)]
    fn window<S: Simd>(&self, lanes: Lanes<S>, strip: &[f32], x: usize) -> (S::f32s, S::u32s) {
        match self.kind {
            Kind::Average => self.sum(lanes, strip, x),
            Kind::Max => self.max(lanes, strip, x),
        }
    }

    #[inline(always)]
    fn sum<S: Simd>(&self, lanes: Lanes<S>, strip: &[f32], x: usize) -> (S::f32s, S::u32s) {
        let simd = lanes.simd;
        let (zero, none) = (simd.splat_f32s(0.0), simd.splat_u32s(0));
        // No value is at most NaN.
        let limit = simd.splat_f32s(if self.relu { 0.0 } else { f32::NAN });
        let (mut sum, mut marks) = (zero, none);
        self.for_each_pixel(
            x,
            self.pool.row_len(),
            #[inline(always)]
            |position, start| {
                let value = lanes.load(&strip[start..]);
                let clipped = simd.less_than_or_equal_f32s(value, limit);
                let bit = simd.splat_u32s(bit(position));
                sum = simd.add_f32s(sum, simd.select_f32s(clipped, zero, value));
                marks = simd.or_u32s(marks, simd.select_u32s(clipped, none, bit));
            },
        );
        (sum, marks)
    }

    #[inline(always)]
    fn max<S: Simd>(&self, lanes: Lanes<S>, strip: &[f32], x: usize) -> (S::f32s, S::u32s) {
        let simd = lanes.simd;
        let (mut best, mut winner) = (simd.splat_f32s(f32::NEG_INFINITY), simd.splat_u32s(0));
        self.for_each_pixel(
            x,
            self.pool.row_len(),
            #[inline(always)]
            |position, start| {
                let value = lanes.load(&strip[start..]);
                // A NaN is at most nothing, so it replaces the best, and stays because it is not equal
                // to itself.
                let loses = simd.less_than_or_equal_f32s(value, best);
                let is_number = simd.equal_f32s(best, best);
                let better = simd.select_f32s(loses, best, value);
                let better_mark = simd.select_u32s(loses, winner, simd.splat_u32s(position));
                best = simd.select_f32s(is_number, better, best);
                winner = simd.select_u32s(is_number, better_mark, winner);
            },
        );
        if self.relu {
            let zero = simd.splat_f32s(0.0);
            let clipped = simd.less_than_or_equal_f32s(best, zero);
            best = simd.select_f32s(clipped, zero, best);
            winner = simd.select_u32s(clipped, simd.splat_u32s(NO_WINNER), winner);
        }
        (best, winner)
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
    let mut position = 0;
    for y in 0..height {
        for x in 0..width {
            visit(position, first + y * row + x * column);
            position += 1;
        }
    }
}

/// The bit of a position in the mark of an average.
#[inline(always)]
fn bit(position: u32) -> u32 {
    1u32.checked_shl(position).unwrap_or(0)
}

struct ForwardRow<'a> {
    pooling: &'a Pooling,
    strip: &'a [f32],
    output: &'a mut [f32],
    marks: Option<&'a mut [u32]>,
}

impl WithSimd for ForwardRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { pooling, strip, output, mut marks } = self;
        let channels = pooling.pool.channels;
        let scale = simd.splat_f32s(pooling.scale());
        for (x, output) in output.chunks_exact_mut(channels).enumerate() {
            for_each_vector(
                simd,
                channels,
                #[inline(always)]
                |lanes| {
                    let (value, mark) = pooling.window(lanes, strip, x);
                    lanes.store(simd.mul_f32s(value, scale), output);
                    if let Some(marks) = &mut marks {
                        lanes.store_marks(mark, &mut marks[x * channels..]);
                    }
                },
            );
        }
    }
}

struct BackwardRow<'a> {
    pooling: &'a Pooling,
    d_output: &'a [f32],
    marks: Marks<'a>,
    d_strip: &'a mut [f32],
    d_row: usize,
}

impl WithSimd for BackwardRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { pooling, d_output, marks, d_strip, d_row } = self;
        let channels = pooling.pool.channels;
        let zero = simd.splat_f32s(0.0);
        let scale = simd.splat_f32s(pooling.scale());
        for (x, d_output) in d_output.chunks_exact(channels).enumerate() {
            for_each_vector(
                simd,
                channels,
                #[inline(always)]
                |lanes| {
                    let share = simd.mul_f32s(lanes.load(d_output), scale);
                    let mark = match marks {
                        Marks::All => simd.splat_u32s(0),
                        Marks::Noted(marks) => lanes.load_marks(&marks[x * channels..]),
                        Marks::Of(strip) => pooling.window(lanes, strip, x).1,
                    };
                    pooling.for_each_pixel(
                        x,
                        d_row,
                        #[inline(always)]
                        |position, start| {
                            let value = match (pooling.kind, marks) {
                                (Kind::Average, Marks::All) => share,
                                (Kind::Average, _) => {
                                    let bit = simd.and_u32s(mark, simd.splat_u32s(bit(position)));
                                    let passes = simd.greater_than_u32s(bit, simd.splat_u32s(0));
                                    simd.select_f32s(passes, share, zero)
                                }
                                (Kind::Max, _) => {
                                    let wins = simd.equal_u32s(mark, simd.splat_u32s(position));
                                    simd.select_f32s(wins, share, zero)
                                }
                            };
                            lanes.store(value, &mut d_strip[start..]);
                        },
                    );
                },
            );
        }
    }
}
