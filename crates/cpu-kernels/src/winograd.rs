//! Convolution with fewer multiplications: Winograd's minimal filtering F(2×2, r×r) for kernels of
//! 3×3 and 5×5 (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015).
//!
//! Two neighbouring outputs of a filter with r taps are a product of two polynomials, and a product
//! of degree r is known from its values at r + 1 points. So a 2×2 tile of outputs needs no more
//! than (r + 1)² products instead of 4r²: 16 instead of 36, or 36 instead of 100. With d the pixels
//! under the tile, g the kernel and Y the tile,
//!
//! Y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A
//!
//! Only the products in the middle are summed over the input channels, so they become (r + 1)²
//! ordinary matrix products, tiles × channels times channels × channels, and what stands around
//! them are a few additions for each value. The gradient of the kernel is the same chain read
//! backwards:
//!
//! dg = Gᵀ [ Σ over tiles (Bᵀ d B) ⊙ (A dY Aᵀ) ] G
//!
//! F(4×4, 3×3) needs fewer products still, but does not serve training: where the image is empty the
//! sums under a ReLU are exactly zero at first, and its rounding would open the ReLU there.
//!
//! The points are 0, 1, −1 and ∞ for 3×3, with ½ and −2 as well for 5×5: of the small ones those
//! with the least rounding (Barabasz and others, "Error Analysis and Improving the Accuracy of
//! Winograd Convolution", 2018). Results are within 4·10⁻⁷ of the largest entry for 3×3, as good as
//! direct sums, and within 4·10⁻⁶ for 5×5.

use std::ptr::NonNull;

use pulp::{Arch, MemMask, Simd, WithSimd};

use crate::buffer::{LINE_VALUES, with_scratch};
use crate::gemm::{Gemm, Rows, Start, Strides, pointer, pointer_mut, read, write};
use crate::shape::Conv2d;

/// Rows and columns of outputs in a tile.
const TILE: usize = 2;

/// Fewer channels than these leave the products too little work for what stands around them.
const MIN_CHANNELS: usize = 8;

/// About so many tiles are computed together: enough rows for the products, and few enough for the
/// innermost cache.
const TILES_TOGETHER: usize = 7;

/// About so many tiles form the kernel gradient together: its products sum over them.
const TILES_SUMMED: usize = 64;

/// A convolution that is done in tiles, with kernels of `taps` × `taps`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Winograd {
    conv: Conv2d,
    taps: usize,
}

impl Winograd {
    /// The convolution in tiles, if they serve it.
    pub(crate) fn new(conv: Conv2d) -> Option<Self> {
        let (taps, columns) = conv.kernel;
        let serves = matches!(taps, 3 | 5) && taps == columns;
        let channels = conv.in_channels.min(conv.out_channels);
        (serves && channels >= MIN_CHANNELS).then_some(Self { conv, taps })
    }

    /// Points in one direction at which the polynomials are evaluated.
    fn points(&self) -> usize {
        self.taps + TILE - 1
    }

    /// Points in both directions, each with a product of its own.
    fn planes(&self) -> usize {
        self.points() * self.points()
    }

    /// Values of a kernel, or of its gradient, at all points.
    pub(crate) fn kernel_len(&self) -> usize {
        self.planes().saturating_mul(plane_len(self.weights()))
    }

    /// Values of a kernel at one point, or under one tap.
    fn weights(&self) -> usize {
        self.conv.in_channels.saturating_mul(self.conv.out_channels)
    }

    /// G g Gᵀ: the kernel at all points, `[points, points, in_channels, out_channels]`.
    pub(crate) fn transform_kernel(&self, kernel: &[f32], transformed: &mut [f32]) {
        let len = self.weights();
        let (taps, points) = (self.taps, self.points());
        let places = |_| (Block::planes(0, len, taps), Block::planes(0, plane_len(len), points));
        match taps {
            3 => transform::<Kernel3, 3, 4>(1, len, places, kernel, None, transformed),
            _ => transform::<Kernel5, 5, 6>(1, len, places, kernel, None, transformed),
        }
    }

    /// Gᵀ U G: from the gradient at all points to that of the kernel.
    pub(crate) fn finish_gradient(&self, transformed: &[f32], d_kernel: &mut [f32]) {
        let len = self.weights();
        let (taps, points) = (self.taps, self.points());
        let places = |_| (Block::planes(0, plane_len(len), points), Block::planes(0, len, taps));
        match taps {
            3 => {
                transform::<Transposed<Kernel3>, 4, 3>(1, len, places, transformed, None, d_kernel)
            }
            _ => {
                transform::<Transposed<Kernel5>, 6, 5>(1, len, places, transformed, None, d_kernel)
            }
        }
    }

    /// Rows of pixels of the output from row `y` on, `bias` added if there is one.
    pub(crate) fn output_rows(
        &self,
        padded: &[f32],
        kernel: &[f32],
        bias: Option<&[f32]>,
        y: usize,
        output: &mut [f32],
    ) {
        let Conv2d { width, in_channels, out_channels, .. } = self.conv;
        let row_len = width * out_channels;
        let planes = self.planes();
        let rows = self.rows_together();
        for (block, output) in output.chunks_mut(rows * row_len).enumerate() {
            let grid = self.grid(y + block * rows, output.len() / row_len);
            let tiles = grid.tiles();
            let lens = [in_channels, out_channels].map(|len| planes * plane_len(tiles * len));
            with_scratch(lens, |[inputs, products]| {
                self.transform_input(&grid, padded, inputs);
                let gemm = Gemm {
                    m: tiles,
                    n: out_channels,
                    segments: 1,
                    depth: in_channels,
                    rows: Rows::even(in_channels),
                    a: Strides { segment: 0, step: 1 },
                    b: Strides { segment: 0, step: out_channels },
                    c_row: out_channels,
                    start: Start::Zero,
                };
                gemm.run_each(planes, inputs, kernel, products);
                self.transform_output(&grid, products, bias, output);
            });
        }
    }

    /// Adds one image's share to the kernel gradient at all points. Rows of `d_output` lie `d_row`
    /// values apart.
    pub(crate) fn add_image_gradient(
        &self,
        padded: &[f32],
        d_output: &[f32],
        d_row: usize,
        d_kernel: &mut [f32],
    ) {
        let Conv2d { height, in_channels, out_channels, .. } = self.conv;
        let planes = self.planes();
        let rows = self.rows_of(TILES_SUMMED);
        for y in (0..height).step_by(rows) {
            let grid = self.grid(y, rows.min(height - y));
            let tiles = grid.tiles();
            let lens = [in_channels, out_channels].map(|len| planes * plane_len(tiles * len));
            with_scratch(lens, |[inputs, d_products]| {
                self.transform_input(&grid, padded, inputs);
                self.transform_d_output(&grid, &d_output[y * d_row..], d_row, d_products);
                let gemm = Gemm {
                    m: in_channels,
                    n: out_channels,
                    segments: 1,
                    depth: tiles,
                    rows: Rows::even(1),
                    a: Strides { segment: 0, step: in_channels },
                    b: Strides { segment: 0, step: out_channels },
                    c_row: out_channels,
                    start: Start::Output,
                };
                gemm.run_each(planes, inputs, d_products, d_kernel);
            });
        }
    }

    /// How many rows of the output are best computed together.
    pub(crate) fn rows_together(&self) -> usize {
        self.rows_of(TILES_TOGETHER)
    }

    /// The even number of image rows, at least one row of tiles, that holds about `tiles` tiles.
    fn rows_of(&self, tiles: usize) -> usize {
        TILE * (tiles / self.conv.width.div_ceil(TILE).max(1)).max(1)
    }

    fn grid(&self, y: usize, rows: usize) -> Grid {
        Grid { y, rows, columns: self.conv.width }
    }

    /// Bᵀ d B of every tile: `[points, points, tiles, in_channels]`.
    fn transform_input(&self, grid: &Grid, padded: &[f32], inputs: &mut [f32]) {
        let (channels, points) = (self.conv.in_channels, self.points());
        let tiles = grid.tiles();
        let row_len = self.conv.padded_row();
        let (last_row, last_column) =
            (self.conv.height + self.taps - 1, self.conv.width + self.taps - 1);
        let places = |tile| {
            let (y, x) = grid.position(tile);
            let y = y + grid.y;
            let from = Block {
                start: y * row_len + x * channels,
                row: row_len,
                column: channels,
                rows: points.min(last_row - y),
                columns: points.min(last_column - x),
            };
            (from, Block::planes(tile * channels, plane_len(tiles * channels), points))
        };
        match self.taps {
            3 => transform::<Input3, 4, 4>(tiles, channels, places, padded, None, inputs),
            _ => transform::<Input5, 6, 6>(tiles, channels, places, padded, None, inputs),
        }
    }

    /// Aᵀ M A of every tile, and the bias.
    fn transform_output(
        &self,
        grid: &Grid,
        products: &[f32],
        bias: Option<&[f32]>,
        output: &mut [f32],
    ) {
        let (channels, points) = (self.conv.out_channels, self.points());
        let tiles = grid.tiles();
        let places = |tile| {
            let from = Block::planes(tile * channels, plane_len(tiles * channels), points);
            (from, grid.block(tile, self.conv.width * channels, channels))
        };
        match self.taps {
            3 => transform::<Output3, 4, 2>(tiles, channels, places, products, bias, output),
            _ => transform::<Output5, 6, 2>(tiles, channels, places, products, bias, output),
        }
    }

    /// A dY Aᵀ of every tile: `[points, points, tiles, out_channels]`.
    fn transform_d_output(
        &self,
        grid: &Grid,
        d_output: &[f32],
        d_row: usize,
        d_products: &mut [f32],
    ) {
        let (channels, points) = (self.conv.out_channels, self.points());
        let tiles = grid.tiles();
        let places = |tile| {
            let to = Block::planes(tile * channels, plane_len(tiles * channels), points);
            (grid.block(tile, d_row, channels), to)
        };
        match self.taps {
            3 => transform::<Transposed<Output3>, 2, 4>(
                tiles, channels, places, d_output, None, d_products,
            ),
            _ => transform::<Transposed<Output5>, 2, 6>(
                tiles, channels, places, d_output, None, d_products,
            ),
        }
    }
}

/// Values from one plane to the next if each holds `len`: an odd number of cache lines, so that the
/// same place of all planes does not fall into the same few sets of the cache.
fn plane_len(len: usize) -> usize {
    (len.div_ceil(LINE_VALUES) | 1).saturating_mul(LINE_VALUES)
}

/// Tiles that cover some rows of an image, row by row.
struct Grid {
    /// The first row of the image.
    y: usize,
    rows: usize,
    columns: usize,
}

impl Grid {
    fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE) * self.columns.div_ceil(TILE)
    }

    /// Row, counted from the first one, and column where a tile starts.
    #[inline(always)]
    fn position(&self, tile: usize) -> (usize, usize) {
        let across = self.columns.div_ceil(TILE);
        (tile / across * TILE, tile % across * TILE)
    }

    /// A tile's pixels, as far as they lie in the image.
    #[inline(always)]
    fn block(&self, tile: usize, row: usize, column: usize) -> Block {
        let (y, x) = self.position(tile);
        Block {
            start: y * row + x * column,
            row,
            column,
            rows: TILE.min(self.rows - y),
            columns: TILE.min(self.columns - x),
        }
    }
}

/// Where the pixels of a square block start in a slice.
#[derive(Clone, Copy)]
struct Block {
    start: usize,
    /// Distances between rows and columns.
    row: usize,
    column: usize,
    /// What exists of the block; the rest reads as zero and is not written.
    rows: usize,
    columns: usize,
}

impl Block {
    /// One pixel from each of `extent` × `extent` planes of `len` values.
    #[inline(always)]
    fn planes(start: usize, len: usize, extent: usize) -> Self {
        Self { start, row: extent * len, column: len, rows: extent, columns: extent }
    }

    /// Where a pixel lies behind the first one.
    #[inline(always)]
    fn offset(&self, row: usize, column: usize) -> usize {
        row.wrapping_mul(self.row).wrapping_add(column.wrapping_mul(self.column))
    }

    /// The end of its last pixel.
    #[inline(always)]
    fn end(&self, channels: usize) -> usize {
        self.start + (self.rows - 1) * self.row + (self.columns - 1) * self.column + channels
    }
}

/// A matrix known when the program is compiled.
trait Matrix<const ROWS: usize, const COLUMNS: usize> {
    const VALUES: [[f32; COLUMNS]; ROWS];
}

struct Transposed<M>(M);

impl<M: Matrix<COLUMNS, ROWS>, const ROWS: usize, const COLUMNS: usize> Matrix<ROWS, COLUMNS>
    for Transposed<M>
{
    const VALUES: [[f32; COLUMNS]; ROWS] = {
        let mut values = [[0.0; COLUMNS]; ROWS];
        let mut i = 0;
        while i < ROWS {
            let mut j = 0;
            while j < COLUMNS {
                values[i][j] = M::VALUES[j][i];
                j += 1;
            }
            i += 1;
        }
        values
    };
}

macro_rules! matrices {
    ($($(#[$doc:meta])* $name:ident: [$columns:literal; $rows:literal] = $values:expr;)*) => {$(
        $(#[$doc])*
        struct $name;

        impl Matrix<$rows, $columns> for $name {
            const VALUES: [[f32; $columns]; $rows] = $values;
        }
    )*};
}

matrices! {
    /// Bᵀ for 3×3.
    Input3: [4; 4] = [
        [-1.0, 0.0, 1.0, 0.0],
        [0.0, 1.0, 1.0, 0.0],
        [0.0, -1.0, 1.0, 0.0],
        [0.0, -1.0, 0.0, 1.0],
    ];
    /// G for 3×3.
    Kernel3: [3; 4] = [
        [-1.0, 0.0, 0.0],
        [0.5, 0.5, 0.5],
        [0.5, -0.5, 0.5],
        [0.0, 0.0, 1.0],
    ];
    /// Aᵀ for 3×3.
    Output3: [4; 2] = [
        [1.0, 1.0, 1.0, 0.0],
        [0.0, 1.0, -1.0, 1.0],
    ];
    /// Bᵀ for 5×5.
    Input5: [6; 6] = [
        [1.0, -1.5, -2.0, 1.5, 1.0, 0.0],
        [0.0, -1.0, 0.5, 2.5, 1.0, 0.0],
        [0.0, 1.0, -2.5, 0.5, 1.0, 0.0],
        [0.0, -2.0, -1.0, 2.0, 1.0, 0.0],
        [0.0, 0.5, -1.0, -0.5, 1.0, 0.0],
        [0.0, 1.0, -1.5, -2.0, 1.5, 1.0],
    ];
    /// G for 5×5.
    Kernel5: [5; 6] = [
        [1.0, 0.0, 0.0, 0.0, 0.0],
        [1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0],
        [-1.0 / 3.0, 1.0 / 3.0, -1.0 / 3.0, 1.0 / 3.0, -1.0 / 3.0],
        [-16.0 / 15.0, -8.0 / 15.0, -4.0 / 15.0, -2.0 / 15.0, -1.0 / 15.0],
        [1.0 / 15.0, -2.0 / 15.0, 4.0 / 15.0, -8.0 / 15.0, 16.0 / 15.0],
        [0.0, 0.0, 0.0, 0.0, 1.0],
    ];
    /// Aᵀ for 5×5.
    Output5: [6; 2] = [
        [1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
        [0.0, 1.0, -1.0, 0.5, -2.0, 1.0],
    ];
}

/// M X Mᵀ for the block X of every site, channel by channel, plus `bias`. `places` says where a
/// site's block lies in the source and where its result goes.
fn transform<M: Matrix<TO, FROM>, const FROM: usize, const TO: usize>(
    sites: usize,
    channels: usize,
    places: impl Fn(usize) -> (Block, Block),
    source: &[f32],
    bias: Option<&[f32]>,
    target: &mut [f32],
) {
    Arch::new().dispatch(Transform {
        matrix: std::marker::PhantomData::<M>,
        sites,
        channels,
        places,
        source,
        bias,
        target,
    });
}

struct Transform<'a, M, P, const FROM: usize, const TO: usize> {
    matrix: std::marker::PhantomData<M>,
    sites: usize,
    channels: usize,
    places: P,
    source: &'a [f32],
    bias: Option<&'a [f32]>,
    target: &'a mut [f32],
}

impl<M, P, const FROM: usize, const TO: usize> WithSimd for Transform<'_, M, P, FROM, TO>
where
    M: Matrix<TO, FROM>,
    P: Fn(usize) -> (Block, Block),
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        for site in 0..self.sites {
            let (from, to) = (self.places)(site);
            assert!(from.rows <= FROM && from.columns <= FROM && to.rows <= TO && to.columns <= TO);
            assert!(from.end(self.channels) <= self.source.len(), "source too short");
            assert!(to.end(self.channels) <= self.target.len(), "target too short");
            assert!(self.bias.is_none_or(|bias| self.channels <= bias.len()), "bias too short");
            let is_edge =
                (from.rows, from.columns) != (FROM, FROM) || (to.rows, to.columns) != (TO, TO);
            for channel in (0..self.channels).step_by(S::F32_LANES) {
                let is_tail = channel + S::F32_LANES > self.channels;
                match (is_edge, is_tail) {
                    (false, false) => self.block::<S, false, false>(simd, from, to, channel),
                    (false, true) => self.block::<S, false, true>(simd, from, to, channel),
                    (true, _) => self.block::<S, true, true>(simd, from, to, channel),
                }
            }
        }
    }
}

impl<M, P, const FROM: usize, const TO: usize> Transform<'_, M, P, FROM, TO>
where
    M: Matrix<TO, FROM>,
{
    /// One vector of channels of one site, whose blocks have been checked. Only with `EDGE` the
    /// blocks may lack pixels, only with `TAIL` the vector may lack channels.
    ///
    /// The loops are counted by hand so that they are unrolled in debug builds, too: then the
    /// coefficients are constants, and their zeros and ones cost nothing.
    #[inline(always)]
    fn block<S: Simd, const EDGE: bool, const TAIL: bool>(
        &mut self,
        simd: S,
        from: Block,
        to: Block,
        channel: usize,
    ) {
        let mask = MemMask::new(simd.mask_between_m32s(0, (self.channels - channel) as u32).mask());
        // SAFETY: called below only for pixels of which the caller has checked that their channels
        // lie in the slice. The mask keeps the access to them.
        let load = |at: NonNull<f32>| unsafe {
            if TAIL { simd.mask_load_ptr_f32s(mask, at.as_ptr()) } else { read(at) }
        };
        let zero = simd.splat_f32s(0.0);

        let source = pointer(&self.source[from.start + channel..]);
        let mut block = [[zero; FROM]; FROM];
        let mut i = 0;
        while i < FROM {
            let mut j = 0;
            while j < FROM {
                if !EDGE || (i < from.rows && j < from.columns) {
                    // SAFETY: as for `load`.
                    block[i][j] = load(unsafe { source.add(from.offset(i, j)) });
                }
                j += 1;
            }
            i += 1;
        }

        // M X, then (M X) Mᵀ.
        let mut half = [[zero; FROM]; TO];
        let mut j = 0;
        while j < FROM {
            let mut column = [zero; FROM];
            let mut i = 0;
            while i < FROM {
                column[i] = block[i][j];
                i += 1;
            }
            let mut i = 0;
            while i < TO {
                half[i][j] = combine(simd, &M::VALUES[i], column);
                i += 1;
            }
            j += 1;
        }
        let bias = self.bias.map_or(zero, |bias| load(pointer(&bias[channel..])));
        let target = pointer_mut(&mut self.target[to.start + channel..]);
        let mut i = 0;
        while i < TO {
            let mut j = 0;
            while j < TO {
                if !EDGE || (i < to.rows && j < to.columns) {
                    let value = simd.add_f32s(combine(simd, &M::VALUES[j], half[i]), bias);
                    // SAFETY: as for `load`.
                    unsafe {
                        let at = target.add(to.offset(i, j));
                        if TAIL {
                            simd.mask_store_ptr_f32s(mask, at.as_ptr(), value);
                        } else {
                            write(at, value);
                        }
                    }
                }
                j += 1;
            }
            i += 1;
        }
    }
}

/// The sum of the values, each times its coefficient.
#[inline(always)]
fn combine<S: Simd, const LEN: usize>(
    simd: S,
    coefficients: &[f32; LEN],
    values: [S::f32s; LEN],
) -> S::f32s {
    let mut sum = simd.splat_f32s(0.0);
    let mut is_first = true;
    let mut k = 0;
    while k < LEN {
        let (coefficient, value) = (coefficients[k], values[k]);
        sum = if coefficient == 0.0 {
            sum
        } else if coefficient == 1.0 && is_first {
            value
        } else if coefficient == 1.0 {
            simd.add_f32s(sum, value)
        } else if coefficient == -1.0 {
            simd.sub_f32s(sum, value)
        } else {
            simd.mul_add_e_f32s(simd.splat_f32s(coefficient), value, sum)
        };
        is_first &= coefficient == 0.0;
        k += 1;
    }
    sum
}

#[cfg(test)]
mod tests;
