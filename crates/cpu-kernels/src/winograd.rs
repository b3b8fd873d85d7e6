//! Convolution with fewer multiplications: Winograd's minimal filtering F(m×m, r×r) for kernels of
//! 3×3 and 5×5 (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015).
//!
//! m neighboring outputs of a filter with r taps are the product of two polynomials, and such a
//! product is determined by its values at α = m + r − 1 points. So a tile of m×m outputs needs only
//! α² products instead of m²r²: for tiles of 2×2, 16 instead of 36, or 36 instead of 100. With d
//! the α×α pixels under the tile, g the kernel and Y the tile of outputs,
//!
//! Y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A
//!
//! Only the product in brackets is summed over the input channels. So each of the α² tile elements
//! becomes an ordinary matrix product, tiles × channels times channels × channels. The transforms
//! around it are a few additions per value. The kernel gradient is the same chain in reverse:
//!
//! dg = Gᵀ [ Σ over tiles (Bᵀ d B) ⊙ (A dY Aᵀ) ] G
//!
//! Inference uses tiles of 4×4 for kernels of 3×3 where the image is large enough: 36 products for
//! 16 outputs instead of 64. They are unsuitable for training: where the image is empty the inputs
//! of the ReLU are exactly zero at first, and the larger rounding errors would make some of them
//! positive.
//!
//! The interpolation points are chosen for small rounding errors (Barabasz and others, "Error
//! Analysis and Improving the Accuracy of Winograd Convolution", 2018). Results are within these
//! parts of the largest entry:
//!
//! | tile | kernel | points | error |
//! |---|---|---|---|
//! | 2×2 | 3×3 | 0, 1, −1, ∞ | 4·10⁻⁷, as good as direct sums |
//! | 2×2 | 5×5 | 0, 1, −1, ½, −2, ∞ | 4·10⁻⁶ |
//! | 4×4 | 3×3 | 0, ±1/√2, ±√2, ∞ | 2·10⁻⁶; a third of that of 0, ±1, ±2, ∞ |

use std::f32::consts::{FRAC_1_SQRT_2, SQRT_2};
use std::ptr::NonNull;

use pulp::{MemMask, Simd, WithSimd};

use crate::buffer::{LINE_VALUES, with_scratch};
use crate::gemm::{Gemm, Init, KStrides, RowStrides, pointer, pointer_mut, read, write};
use crate::instruction_set::dispatch;
use crate::purpose::Purpose;
use crate::shape::Conv2d;

/// Rows and columns of outputs per tile, m, in training.
const TILE: usize = 2;

/// The same in inference, for kernels of 3×3 where it pays.
const LARGE_TILE: usize = 4;

/// With fewer channels than this the transforms cost more than the saved multiplications.
const MIN_CHANNELS: usize = 8;

/// Approximate number of tiles computed together: enough rows for the products, and few enough for
/// the L1 cache.
const TILES_PER_BLOCK: usize = 7;

/// The same for large tiles. They have more weights, which do not stay in the L1 cache, so it takes
/// more rows to make up for loading them.
const LARGE_TILES_PER_BLOCK: usize = 16;

/// Approximate number of tiles that one product of the kernel gradient sums over.
const TILES_PER_GRAD_BLOCK: usize = 64;

/// A convolution computed in tiles, with kernels of `taps` × `taps`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Winograd {
    conv: Conv2d,
    taps: usize,
    tile: usize,
}

impl Winograd {
    /// The tiled convolution, if the kernel has a supported size and there are enough channels.
    /// The tiles for inference are large if that saves products.
    pub(crate) fn new(conv: Conv2d, purpose: Purpose) -> Option<Self> {
        let (taps, columns) = conv.kernel;
        let is_supported = matches!(taps, 3 | 5) && taps == columns;
        let channels = conv.in_channels.min(conv.out_channels);
        if !is_supported || channels < MIN_CHANNELS {
            return None;
        }
        let small = Self { conv, taps, tile: TILE };
        let large = Self { tile: LARGE_TILE, ..small };
        let is_large = purpose == Purpose::Inference
            && taps == 3
            && large.products_per_channel() < small.products_per_channel();
        Some(if is_large { large } else { small })
    }

    /// Products per image for an input and an output channel.
    fn products_per_channel(&self) -> usize {
        let along = |len: usize| len.div_ceil(self.tile).saturating_mul(self.alpha());
        along(self.conv.height).saturating_mul(along(self.conv.width))
    }

    /// Rows and columns of an input tile, α = m + r − 1.
    fn alpha(&self) -> usize {
        self.taps + self.tile - 1
    }

    /// Elements of an input tile, α². Each has its own matrix product.
    fn tile_elements(&self) -> usize {
        self.alpha() * self.alpha()
    }

    /// Number of values in a kernel, or its gradient, in the Winograd domain.
    pub(crate) fn transformed_len(&self) -> usize {
        self.tile_elements().saturating_mul(element_stride(self.tap_len()))
    }

    /// Number of values in the `[in_channels, out_channels]` matrix of one tap or tile element.
    fn tap_len(&self) -> usize {
        self.conv.in_channels.saturating_mul(self.conv.out_channels)
    }

    /// G g Gᵀ: the kernel in the Winograd domain, `[α, α, in_channels, out_channels]`.
    pub(crate) fn transform_weights(&self, kernel: &[f32], transformed: &mut [f32]) {
        let len = self.tap_len();
        let (taps, alpha) = (self.taps, self.alpha());
        let blocks =
            |_| (Block::square(0, len, taps), Block::square(0, element_stride(len), alpha));
        match (self.tile, taps) {
            (LARGE_TILE, _) => {
                transform::<LargeKernel3, 3, 6>(1, len, blocks, kernel, None, transformed)
            }
            (_, 3) => transform::<Kernel3, 3, 4>(1, len, blocks, kernel, None, transformed),
            _ => transform::<Kernel5, 5, 6>(1, len, blocks, kernel, None, transformed),
        }
    }

    /// Gᵀ U G: the kernel gradient, from that in the Winograd domain. Only small tiles have one.
    pub(crate) fn inverse_transform_grad(&self, transformed: &[f32], d_kernel: &mut [f32]) {
        let len = self.tap_len();
        let (taps, alpha) = (self.taps, self.alpha());
        let blocks =
            |_| (Block::square(0, element_stride(len), alpha), Block::square(0, len, taps));
        match taps {
            3 => {
                transform::<Transposed<Kernel3>, 4, 3>(1, len, blocks, transformed, None, d_kernel)
            }
            _ => {
                transform::<Transposed<Kernel5>, 6, 5>(1, len, blocks, transformed, None, d_kernel)
            }
        }
    }

    /// Fills `output` with rows of pixels of the convolution, starting at row `y`.
    pub(crate) fn output_rows(
        &self,
        padded: &[f32],
        weights: &[f32],
        bias: Option<&[f32]>,
        y: usize,
        output: &mut [f32],
    ) {
        let Conv2d { width, in_channels, out_channels, .. } = self.conv;
        let row_len = width * out_channels;
        let elements = self.tile_elements();
        let rows = self.rows_per_block();
        // There may be space for larger tiles behind them.
        let weights = &weights[..self.transformed_len()];
        for (block, output) in output.chunks_mut(rows * row_len).enumerate() {
            let grid = self.grid(y + block * rows, output.len() / row_len);
            let tiles = grid.tiles();
            let lens = [in_channels, out_channels].map(|len| self.tiles_len(&grid, len));
            with_scratch(lens, |[inputs, products]| {
                self.transform_input(&grid, padded, inputs);
                let gemm = Gemm {
                    m: tiles,
                    n: out_channels,
                    k_outer: 1,
                    k_inner: in_channels,
                    a_rows: RowStrides::uniform(in_channels),
                    a: KStrides::uniform(1),
                    b: KStrides::uniform(out_channels),
                    c_row: out_channels,
                    init: Init::Zero,
                };
                gemm.run_batched(elements, inputs, weights, products);
                self.transform_output(&grid, products, bias, output);
            });
        }
    }

    /// Adds the kernel gradient of one image, in the Winograd domain, to `d_weights`. `d_row` is
    /// the stride between rows of pixels of `d_output`.
    pub(crate) fn accumulate_kernel_grad(
        &self,
        padded: &[f32],
        d_output: &[f32],
        d_row: usize,
        d_weights: &mut [f32],
    ) {
        let Conv2d { height, in_channels, out_channels, .. } = self.conv;
        let elements = self.tile_elements();
        let rows = self.rows_for_tiles(TILES_PER_GRAD_BLOCK);
        for y in (0..height).step_by(rows) {
            let grid = self.grid(y, rows.min(height - y));
            let tiles = grid.tiles();
            let lens = [in_channels, out_channels].map(|len| self.tiles_len(&grid, len));
            with_scratch(lens, |[inputs, d_products]| {
                self.transform_input(&grid, padded, inputs);
                self.transform_d_output(&grid, &d_output[y * d_row..], d_row, d_products);
                let gemm = Gemm {
                    m: in_channels,
                    n: out_channels,
                    k_outer: 1,
                    k_inner: tiles,
                    a_rows: RowStrides::uniform(1),
                    a: KStrides::uniform(in_channels),
                    b: KStrides::uniform(out_channels),
                    c_row: out_channels,
                    init: Init::Accumulate,
                };
                gemm.run_batched(elements, inputs, d_products, d_weights);
            });
        }
    }

    /// The number of output rows that are best computed together.
    pub(crate) fn rows_per_block(&self) -> usize {
        let is_large = self.tile == LARGE_TILE;
        self.rows_for_tiles(if is_large { LARGE_TILES_PER_BLOCK } else { TILES_PER_BLOCK })
    }

    /// The number of image rows, in whole rows of tiles, that hold about `tiles` tiles.
    fn rows_for_tiles(&self, tiles: usize) -> usize {
        self.tile * (tiles / self.conv.width.div_ceil(self.tile).max(1)).max(1)
    }

    /// Number of values in all tiles in the Winograd domain.
    fn tiles_len(&self, grid: &TileGrid, channels: usize) -> usize {
        self.tile_elements() * element_stride(grid.tiles() * channels)
    }

    fn grid(&self, y: usize, rows: usize) -> TileGrid {
        TileGrid { tile: self.tile, y, rows, columns: self.conv.width }
    }

    /// Bᵀ d B of every tile: `[α, α, tiles, in_channels]`.
    fn transform_input(&self, grid: &TileGrid, padded: &[f32], inputs: &mut [f32]) {
        let (channels, alpha) = (self.conv.in_channels, self.alpha());
        let tiles = grid.tiles();
        let row_len = self.conv.padded_row();
        let (padded_height, padded_width) =
            (self.conv.height + self.taps - 1, self.conv.width + self.taps - 1);
        let blocks = |tile| {
            let (y, x) = grid.origin(tile);
            let y = y + grid.y;
            let from = Block {
                start: y * row_len + x * channels,
                row: row_len,
                column: channels,
                rows: alpha.min(padded_height - y),
                columns: alpha.min(padded_width - x),
            };
            (from, Block::square(tile * channels, element_stride(tiles * channels), alpha))
        };
        match (self.tile, self.taps) {
            (LARGE_TILE, _) => {
                transform::<LargeInput3, 6, 6>(tiles, channels, blocks, padded, None, inputs)
            }
            (_, 3) => transform::<Input3, 4, 4>(tiles, channels, blocks, padded, None, inputs),
            _ => transform::<Input5, 6, 6>(tiles, channels, blocks, padded, None, inputs),
        }
    }

    /// Aᵀ M A of every tile, plus the bias.
    fn transform_output(
        &self,
        grid: &TileGrid,
        products: &[f32],
        bias: Option<&[f32]>,
        output: &mut [f32],
    ) {
        let (channels, alpha) = (self.conv.out_channels, self.alpha());
        let tiles = grid.tiles();
        let blocks = |tile| {
            let from = Block::square(tile * channels, element_stride(tiles * channels), alpha);
            (from, grid.block(tile, self.conv.width * channels, channels))
        };
        match (self.tile, self.taps) {
            (LARGE_TILE, _) => {
                transform::<LargeOutput3, 6, 4>(tiles, channels, blocks, products, bias, output)
            }
            (_, 3) => transform::<Output3, 4, 2>(tiles, channels, blocks, products, bias, output),
            _ => transform::<Output5, 6, 2>(tiles, channels, blocks, products, bias, output),
        }
    }

    /// A dY Aᵀ of every tile: `[α, α, tiles, out_channels]`.
    fn transform_d_output(
        &self,
        grid: &TileGrid,
        d_output: &[f32],
        d_row: usize,
        d_products: &mut [f32],
    ) {
        let (channels, alpha) = (self.conv.out_channels, self.alpha());
        let tiles = grid.tiles();
        let blocks = |tile| {
            let to = Block::square(tile * channels, element_stride(tiles * channels), alpha);
            (grid.block(tile, d_row, channels), to)
        };
        match self.taps {
            3 => transform::<Transposed<Output3>, 2, 4>(
                tiles, channels, blocks, d_output, None, d_products,
            ),
            _ => transform::<Transposed<Output5>, 2, 6>(
                tiles, channels, blocks, d_output, None, d_products,
            ),
        }
    }
}

/// Stride between the matrices of two tile elements that hold `len` values each: an odd number of
/// cache lines, so that the same position in all matrices does not map to the same cache sets.
fn element_stride(len: usize) -> usize {
    (len.div_ceil(LINE_VALUES) | 1).saturating_mul(LINE_VALUES)
}

/// Tiles that cover some rows of an image, in row-major order.
struct TileGrid {
    /// Rows and columns of pixels per tile.
    tile: usize,
    /// The first row of the image.
    y: usize,
    rows: usize,
    columns: usize,
}

impl TileGrid {
    fn tiles(&self) -> usize {
        self.rows.div_ceil(self.tile) * self.columns.div_ceil(self.tile)
    }

    /// Row, relative to the first one, and column of the first pixel of a tile.
    #[inline(always)]
    fn origin(&self, tile: usize) -> (usize, usize) {
        let tiles_per_row = self.columns.div_ceil(self.tile);
        (tile / tiles_per_row * self.tile, tile % tiles_per_row * self.tile)
    }

    /// The pixels of a tile that lie in the image.
    #[inline(always)]
    fn block(&self, tile: usize, row: usize, column: usize) -> Block {
        let (y, x) = self.origin(tile);
        Block {
            start: y * row + x * column,
            row,
            column,
            rows: self.tile.min(self.rows - y),
            columns: self.tile.min(self.columns - x),
        }
    }
}

/// Layout of a block of elements, each with its channels, in a slice.
#[derive(Clone, Copy)]
struct Block {
    start: usize,
    /// Strides between rows and between columns.
    row: usize,
    column: usize,
    /// Rows and columns that exist. The others read as zero and are not written.
    rows: usize,
    columns: usize,
}

impl Block {
    /// A complete block of `extent` × `extent` elements, `stride` values apart.
    #[inline(always)]
    fn square(start: usize, stride: usize, extent: usize) -> Self {
        Self { start, row: extent * stride, column: stride, rows: extent, columns: extent }
    }

    /// Offset of an element from the first one.
    #[inline(always)]
    fn offset(&self, row: usize, column: usize) -> usize {
        row.wrapping_mul(self.row).wrapping_add(column.wrapping_mul(self.column))
    }

    /// The end of the last element.
    #[inline(always)]
    fn end(&self, channels: usize) -> usize {
        self.start + (self.rows - 1) * self.row + (self.columns - 1) * self.column + channels
    }
}

/// Interpolation points p and −p make pairs of rows or columns that agree in every other value and
/// differ in the sign of the others. The pair costs half as much as the sum and the difference of
/// its two parts. Pairs start at the second row or column.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pairs {
    /// For the small tiles, whose single pair would save little.
    None,
    /// Each pair of products is replaced by its sum and difference.
    OfRows,
    /// Each pair of factors is replaced by its sum and difference.
    OfColumns,
}

/// A matrix known at compile time.
trait Matrix<const ROWS: usize, const COLUMNS: usize> {
    const VALUES: [[f32; COLUMNS]; ROWS];
    const PAIRS: Pairs;
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
    const PAIRS: Pairs = match M::PAIRS {
        Pairs::None => Pairs::None,
        Pairs::OfRows => Pairs::OfColumns,
        Pairs::OfColumns => Pairs::OfRows,
    };
}

macro_rules! matrices {
    ($(
        $(#[$doc:meta])*
        $name:ident: [$columns:literal; $rows:literal] = $values:expr, $pairs:expr;
    )*) => {$(
        $(#[$doc])*
        struct $name;

        impl Matrix<$rows, $columns> for $name {
            const VALUES: [[f32; $columns]; $rows] = $values;
            const PAIRS: Pairs = $pairs;
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
    ], Pairs::None;
    /// G for 3×3.
    Kernel3: [3; 4] = [
        [-1.0, 0.0, 0.0],
        [0.5, 0.5, 0.5],
        [0.5, -0.5, 0.5],
        [0.0, 0.0, 1.0],
    ], Pairs::None;
    /// Aᵀ for 3×3.
    Output3: [4; 2] = [
        [1.0, 1.0, 1.0, 0.0],
        [0.0, 1.0, -1.0, 1.0],
    ], Pairs::None;
    /// Bᵀ for 3×3 in tiles of 4×4, after whose products pairs of rows are added and subtracted.
    LargeInput3: [6; 6] = [
        [1.0, 0.0, -2.5, 0.0, 1.0, 0.0],
        [0.0, 0.0, 1.0, 0.0, -0.5, 0.0],
        [0.0, FRAC_1_SQRT_2, 0.0, -0.5 * FRAC_1_SQRT_2, 0.0, 0.0],
        [0.0, 0.0, 1.0, 0.0, -2.0, 0.0],
        [0.0, SQRT_2, 0.0, -2.0 * SQRT_2, 0.0, 0.0],
        [0.0, 1.0, 0.0, -2.5, 0.0, 1.0],
    ], Pairs::OfRows;
    /// G for 3×3 in tiles of 4×4, likewise.
    LargeKernel3: [3; 6] = [
        [1.0, 0.0, 0.0],
        [4.0 / 3.0, 0.0, 2.0 / 3.0],
        [0.0, 4.0 / 3.0 * FRAC_1_SQRT_2, 0.0],
        [-1.0 / 12.0, 0.0, -1.0 / 6.0],
        [0.0, -1.0 / 12.0 * SQRT_2, 0.0],
        [0.0, 0.0, 1.0],
    ], Pairs::OfRows;
    /// Aᵀ for 3×3 in tiles of 4×4, before whose products pairs of values are added and subtracted.
    LargeOutput3: [6; 4] = [
        [1.0, 1.0, 0.0, 1.0, 0.0, 0.0],
        [0.0, 0.0, FRAC_1_SQRT_2, 0.0, SQRT_2, 0.0],
        [0.0, 0.5, 0.0, 2.0, 0.0, 0.0],
        [0.0, 0.0, 0.5 * FRAC_1_SQRT_2, 0.0, 2.0 * SQRT_2, 1.0],
    ], Pairs::OfColumns;
    /// Bᵀ for 5×5.
    Input5: [6; 6] = [
        [1.0, -1.5, -2.0, 1.5, 1.0, 0.0],
        [0.0, -1.0, 0.5, 2.5, 1.0, 0.0],
        [0.0, 1.0, -2.5, 0.5, 1.0, 0.0],
        [0.0, -2.0, -1.0, 2.0, 1.0, 0.0],
        [0.0, 0.5, -1.0, -0.5, 1.0, 0.0],
        [0.0, 1.0, -1.5, -2.0, 1.5, 1.0],
    ], Pairs::None;
    /// G for 5×5.
    Kernel5: [5; 6] = [
        [1.0, 0.0, 0.0, 0.0, 0.0],
        [1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0],
        [-1.0 / 3.0, 1.0 / 3.0, -1.0 / 3.0, 1.0 / 3.0, -1.0 / 3.0],
        [-16.0 / 15.0, -8.0 / 15.0, -4.0 / 15.0, -2.0 / 15.0, -1.0 / 15.0],
        [1.0 / 15.0, -2.0 / 15.0, 4.0 / 15.0, -8.0 / 15.0, 16.0 / 15.0],
        [0.0, 0.0, 0.0, 0.0, 1.0],
    ], Pairs::None;
    /// Aᵀ for 5×5.
    Output5: [6; 2] = [
        [1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
        [0.0, 1.0, -1.0, 0.5, -2.0, 1.0],
    ], Pairs::None;
}

/// M X Mᵀ for the block X of every tile, channel by channel, plus `bias`. `blocks` returns the
/// layout of a tile's block in the source and in the target.
fn transform<M: Matrix<TO, FROM>, const FROM: usize, const TO: usize>(
    tiles: usize,
    channels: usize,
    blocks: impl Fn(usize) -> (Block, Block),
    source: &[f32],
    bias: Option<&[f32]>,
    target: &mut [f32],
) {
    dispatch(Transform {
        matrix: std::marker::PhantomData::<M>,
        tiles,
        channels,
        blocks,
        source,
        bias,
        target,
    });
}

struct Transform<'a, M, B, const FROM: usize, const TO: usize> {
    matrix: std::marker::PhantomData<M>,
    tiles: usize,
    channels: usize,
    blocks: B,
    source: &'a [f32],
    bias: Option<&'a [f32]>,
    target: &'a mut [f32],
}

impl<M, B, const FROM: usize, const TO: usize> WithSimd for Transform<'_, M, B, FROM, TO>
where
    M: Matrix<TO, FROM>,
    B: Fn(usize) -> (Block, Block),
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        for tile in 0..self.tiles {
            let (from, to) = (self.blocks)(tile);
            assert!(from.rows <= FROM && from.columns <= FROM && to.rows <= TO && to.columns <= TO);
            assert!(from.end(self.channels) <= self.source.len(), "source is too short");
            assert!(to.end(self.channels) <= self.target.len(), "target is too short");
            assert!(self.bias.is_none_or(|bias| self.channels <= bias.len()), "bias is too short");
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

impl<M, B, const FROM: usize, const TO: usize> Transform<'_, M, B, FROM, TO>
where
    M: Matrix<TO, FROM>,
{
    /// Transforms one vector of channels of one tile, whose blocks have been checked. Blocks may be
    /// incomplete only with `EDGE`, and the vector only with `TAIL`.
    ///
    /// `while` loops are unrolled in debug builds, too. Then the coefficients are constants, and
    /// zeros and ones cost nothing.
    #[inline(always)]
    fn block<S: Simd, const EDGE: bool, const TAIL: bool>(
        &mut self,
        simd: S,
        from: Block,
        to: Block,
        channel: usize,
    ) {
        let mask = MemMask::new(simd.mask_between_m32s(0, (self.channels - channel) as u32).mask());
        // SAFETY: only called below, for elements whose channels lie in the slice: the caller has
        // checked the blocks. The mask restricts the access to these channels.
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
            let products = multiply::<M, S, FROM, TO>(simd, column);
            let mut i = 0;
            while i < TO {
                half[i][j] = products[i];
                i += 1;
            }
            j += 1;
        }
        let bias = self.bias.map_or(zero, |bias| load(pointer(&bias[channel..])));
        let target = pointer_mut(&mut self.target[to.start + channel..]);
        let mut i = 0;
        while i < TO {
            let products = multiply::<M, S, FROM, TO>(simd, half[i]);
            let mut j = 0;
            while j < TO {
                if !EDGE || (i < to.rows && j < to.columns) {
                    let value = simd.add_f32s(products[j], bias);
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

/// The product of a matrix and a vector.
#[inline(always)]
fn multiply<M: Matrix<TO, FROM>, S: Simd, const FROM: usize, const TO: usize>(
    simd: S,
    mut values: [S::f32s; FROM],
) -> [S::f32s; TO] {
    if M::PAIRS == Pairs::OfColumns {
        add_and_subtract_pairs(simd, &mut values);
    }
    let mut products = [simd.splat_f32s(0.0); TO];
    let mut i = 0;
    while i < TO {
        products[i] = combine(simd, &M::VALUES[i], values);
        i += 1;
    }
    if M::PAIRS == Pairs::OfRows {
        add_and_subtract_pairs(simd, &mut products);
    }
    products
}

/// Replaces each pair of values between the first and the last by its sum and difference.
#[inline(always)]
fn add_and_subtract_pairs<S: Simd, const LEN: usize>(simd: S, values: &mut [S::f32s; LEN]) {
    let mut k = 1;
    while k + 2 < LEN {
        let (a, b) = (values[k], values[k + 1]);
        values[k] = simd.add_f32s(a, b);
        values[k + 1] = simd.sub_f32s(a, b);
        k += 2;
    }
}

/// The linear combination of the values with constant coefficients.
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
