//! The kinds of tile that a matrix product can be divided into, and which suits it.

/// Threads per block of `run`, as in `job.cuh`.
pub(super) const THREADS: u32 = 256;
/// Threads per block of other kernels, as in `tensor.cuh`.
const WORKERS: u32 = 128;

/// What a plan depends on of a GPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct Card {
    pub(super) multiprocessors: usize,
    /// Whether tensor cores multiply TF32 values: from compute capability 8.0.
    pub(super) tensor_cores: bool,
}

/// A kind of tile, each with a kernel of its own. All but the first use tensor cores.
///
/// `KERNELS` in `emulate.cpp` has the same order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Tile {
    /// One multiplication at a time. The size of the tile depends on the job.
    #[default]
    Scalar,
    /// Of few rows: the kernel gradient of a convolution with few taps.
    T16x32,
    T32x32,
    T64x32,
    T64x64,
    T128x32,
    T128x64,
}

/// The sum of products that a tile is for: rows and columns of the result, and terms of each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) terms: usize,
}

impl Tile {
    pub(super) const ALL: [Self; 7] = [
        Self::Scalar,
        Self::T16x32,
        Self::T32x32,
        Self::T64x32,
        Self::T64x64,
        Self::T128x32,
        Self::T128x64,
    ];

    /// The kernel's name, threads per block, bytes of dynamic shared memory.
    pub(super) fn kernel(self) -> (&'static str, u32, usize) {
        let name = match self {
            Self::Scalar => return ("run", THREADS, 0),
            Self::T16x32 => "tile_16x32",
            Self::T32x32 => "tile_32x32",
            Self::T64x32 => "tile_64x32",
            Self::T64x64 => "tile_64x64",
            Self::T128x32 => "tile_128x32",
            Self::T128x64 => "tile_128x64",
        };
        (name, WORKERS, self.shared_bytes())
    }

    /// As `Tile::BYTES` in `tensor.cuh`.
    fn shared_bytes(self) -> usize {
        const STAGES: usize = 3;
        let (rows, columns) = self.size();
        let (slices, terms) = match self {
            Self::T16x32 | Self::T32x32 => (4, 32),
            Self::T64x32 => (2, 32),
            Self::T64x64 => (1, 32),
            _ => (1, 16),
        };
        let slice = |count: usize| (count * (terms + 4)).max(terms * (count + 8));
        let values = (STAGES * (slice(rows) + slice(columns))).max(slices * rows * (columns + 8));
        values * 4 + (rows + STAGES * terms) * 8
    }

    /// Rows and columns. The scalar tile's are the largest that it has.
    pub(super) fn size(self) -> (usize, usize) {
        match self {
            Self::T16x32 => (16, 32),
            Self::T32x32 => (32, 32),
            Self::T64x32 => (64, 32),
            Self::Scalar | Self::T64x64 => (64, 64),
            Self::T128x32 => (128, 32),
            Self::T128x64 => (128, 64),
        }
    }

    /// Blocks that run on a multiprocessor at a time.
    fn resident(self) -> usize {
        match self {
            Self::Scalar | Self::T128x64 => 2,
            Self::T64x32 | Self::T64x64 | Self::T128x32 => 3,
            Self::T16x32 | Self::T32x32 => 4,
        }
    }

    /// Splits a sum into parts for `tiles` tiles that together occupy the GPU; returns their number
    /// and length.
    pub(super) fn split(self, card: Card, terms: usize, tiles: usize) -> (usize, usize) {
        const LEAST_TERMS: usize = 96;
        let blocks = self.resident() * card.multiprocessors;
        let parts = (blocks / tiles.max(1)).clamp(1, terms.div_ceil(LEAST_TERMS).max(1));
        let part = terms.div_ceil(parts).next_multiple_of(32).max(32);
        (terms.div_ceil(part).max(1), part)
    }

    /// An estimate of the time that this tile takes, to compare with others: rounds over the
    /// multiprocessors, times the arithmetic of a block, at the part of the peak that it reaches.
    pub(super) fn cost(self, card: Card, extent: Extent, is_split: bool) -> f64 {
        let (height, width) = self.size();
        let reached = match self {
            Self::Scalar => 0.1,
            Self::T16x32 => 0.4,
            Self::T32x32 => 0.7,
            Self::T64x32 => 0.75,
            Self::T128x32 => 0.85,
            Self::T64x64 => 0.95,
            Self::T128x64 => 1.0,
        };
        let tiles = extent.rows.div_ceil(height) * extent.columns.div_ceil(width);
        let (parts, part) =
            if is_split { self.split(card, extent.terms, tiles) } else { (1, extent.terms) };
        let rounds = (tiles * parts).div_ceil(card.multiprocessors);
        // A single block does not hide how long memory takes.
        let hidden = if rounds == 1 { 0.6 } else { 1.0 };
        (rounds * height * width * part) as f64 / (reached * hidden)
    }
}
