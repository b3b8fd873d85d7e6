//! The one matrix product behind every layer, and the choice of instruction set.

use pulp::{Arch, MemMask, Simd, WithSimd};

/// Compiles `work` for each instruction set and runs the best one this machine has.
///
/// What `work` calls must be inlined into it (`#[inline(always)]`) to profit.
pub(super) fn vectorized<R>(work: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(work)
}

/// Where a product starts.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start<'a> {
    /// C = A·B
    Zero,
    /// C = C + A·B
    Output,
    /// C = row + A·B, the same row for every row of C
    Row(&'a [f32]),
}

/// C[i, j] = start + Σₛ Σₖ A[i·row + s·segment + k·step] · B[s·segment + k·step + j].
///
/// An ordinary product has one segment. A convolution has one per kernel row: in an NHWC image with a zero border
/// the pixels under one kernel row are contiguous, so the image itself serves as A and no patch matrix is built.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gemm<'a> {
    /// Rows of C.
    pub m: usize,
    /// Columns of C, contiguous in B and C.
    pub n: usize,
    /// How many segments the sum has.
    pub segments: usize,
    /// How many terms a segment has.
    pub depth: usize,
    /// Strides of A.
    pub a: StridesA,
    /// Strides of B.
    pub b: StridesB,
    /// Distance between rows of C.
    pub c_row: usize,
    /// What is added to the product.
    pub start: Start<'a>,
}

/// Distances in A between rows, segments and terms.
#[derive(Clone, Copy, Debug)]
pub(super) struct StridesA {
    pub row: usize,
    pub segment: usize,
    pub step: usize,
}

/// Distances in B between segments and terms.
#[derive(Clone, Copy, Debug)]
pub(super) struct StridesB {
    pub segment: usize,
    pub step: usize,
}

impl Gemm<'_> {
    /// Computes the product on this thread. The order of the additions depends on the shape only.
    ///
    /// # Panics
    ///
    /// If a slice is too short for the strides: a mistake in this module, not in its input.
    pub(super) fn run(self, a: &[f32], b: &[f32], c: &mut [f32]) {
        if self.m == 0 || self.n == 0 {
            return;
        }
        let last = |strides: &[(usize, usize)]| {
            strides.iter().fold(0usize, |sum, &(count, stride)| {
                sum.saturating_add((count - 1).saturating_mul(stride))
            })
        };
        if self.segments > 0 && self.depth > 0 {
            let StridesA { row, segment, step } = self.a;
            let last_a = last(&[(self.m, row), (self.segments, segment), (self.depth, step)]);
            let StridesB { segment, step } = self.b;
            let last_b = last(&[(self.segments, segment), (self.depth, step), (self.n, 1)]);
            assert!(
                last_a < a.len() && last_b < b.len(),
                "operands too short: {self:?}"
            );
        }
        assert!(
            last(&[(self.m, self.c_row), (self.n, 1)]) < c.len(),
            "output too short: {self:?}"
        );
        if let Start::Row(row) = self.start {
            assert!(self.n <= row.len(), "starting row too short: {self:?}");
        }
        Arch::new().dispatch(Checked {
            gemm: self,
            a,
            b,
            c,
        });
    }
}

/// A product whose slices are long enough for its strides.
struct Checked<'a> {
    gemm: Gemm<'a>,
    a: &'a [f32],
    b: &'a [f32],
    c: &'a mut [f32],
}

impl WithSimd for Checked<'_> {
    type Output = ();

    /// Cuts C into tiles whose sums stay in registers: as tall and wide as the register file allows.
    ///
    /// On each step a tile loads `VECTORS` vectors of B and `ROWS` single values of A for `ROWS · VECTORS`
    /// multiply-adds, and the latter must be the bottleneck.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT < 32 {
            self.panels::<S, 6, 2>(simd);
        } else if S::F32_LANES < 8 {
            self.panels::<S, 6, 4>(simd);
        } else {
            self.panels::<S, 7, 2>(simd);
        }
    }
}

impl Checked<'_> {
    #[inline(always)]
    fn panels<S: Simd, const ROWS: usize, const VECTORS: usize>(mut self, simd: S) {
        let width = VECTORS * S::F32_LANES;
        let mut column = 0;
        while column + width <= self.gemm.n {
            self.panel::<S, ROWS, VECTORS, false>(simd, column);
            column += width;
        }
        while column < self.gemm.n {
            if column + S::F32_LANES <= self.gemm.n {
                self.panel::<S, ROWS, 1, false>(simd, column);
            } else {
                self.panel::<S, ROWS, 1, true>(simd, column);
            }
            column += S::F32_LANES;
        }
    }

    /// All rows of the columns from `column` on, in tiles of nearly equal height.
    #[inline(always)]
    fn panel<S: Simd, const ROWS: usize, const VECTORS: usize, const TAIL: bool>(
        &mut self,
        simd: S,
        column: usize,
    ) {
        let tiles = self.gemm.m.div_ceil(ROWS);
        let mut row = 0;
        for tile in 0..tiles {
            let rows = (self.gemm.m - row).div_ceil(tiles - tile);
            match rows {
                1 => self.tile::<S, 1, VECTORS, TAIL>(simd, row, column),
                2 => self.tile::<S, 2, VECTORS, TAIL>(simd, row, column),
                3 => self.tile::<S, 3, VECTORS, TAIL>(simd, row, column),
                4 => self.tile::<S, 4, VECTORS, TAIL>(simd, row, column),
                5 => self.tile::<S, 5, VECTORS, TAIL>(simd, row, column),
                6 => self.tile::<S, 6, VECTORS, TAIL>(simd, row, column),
                _ => self.tile::<S, ROWS, VECTORS, TAIL>(simd, row, column),
            }
            row += rows;
        }
    }

    /// One tile of C. With `TAIL` the last vector holds only the columns that C still has.
    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize, const VECTORS: usize, const TAIL: bool>(
        &mut self,
        simd: S,
        row: usize,
        column: usize,
    ) {
        let Gemm {
            n,
            segments,
            depth,
            a: sa,
            b: sb,
            c_row,
            start,
            ..
        } = self.gemm;
        let tail = MemMask::new(simd.mask_between_m32s(0, (n - column) as u32).mask());
        // SAFETY: called below only for vectors that `run` has checked to lie in their slice; with `TAIL`
        // the mask keeps the access to the columns below `n`.
        let load = |p: *const f32| unsafe {
            if TAIL {
                simd.mask_load_ptr_f32s(tail, p)
            } else {
                p.cast::<S::f32s>().read_unaligned()
            }
        };
        // Plain `wrapping_add`, here and below: the dev profile checks every other pointer addition.
        let a = self.a.as_ptr().wrapping_add(row * sa.row);
        let b = self.b.as_ptr().wrapping_add(column);
        let c = self.c.as_mut_ptr().wrapping_add(row * c_row + column);

        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
        for segment in 0..segments {
            let mut a = a.wrapping_add(segment * sa.segment);
            let mut b = b.wrapping_add(segment * sb.segment);
            for _ in 0..depth {
                let mut vectors = [simd.splat_f32s(0.0); VECTORS];
                for (j, vector) in vectors.iter_mut().enumerate() {
                    *vector = load(b.wrapping_add(j * S::F32_LANES));
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: `run` has checked that the last row, segment and step lie in A.
                    let value = unsafe { a.wrapping_add(i * sa.row).read_unaligned() };
                    let value = simd.splat_f32s(value);
                    for (sum, vector) in sums.iter_mut().zip(vectors) {
                        *sum = simd.mul_add_e_f32s(value, vector, *sum);
                    }
                }
                a = a.wrapping_add(sa.step);
                b = b.wrapping_add(sb.step);
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, &sum) in sums.iter().enumerate() {
                let c = c.wrapping_add(i * c_row + j * S::F32_LANES);
                let sum = match start {
                    Start::Zero => sum,
                    Start::Output => simd.add_f32s(load(c), sum),
                    Start::Row(row) => simd.add_f32s(
                        load(row.as_ptr().wrapping_add(column + j * S::F32_LANES)),
                        sum,
                    ),
                };
                // SAFETY: as for `load`; `self.c` is borrowed mutably.
                unsafe {
                    if TAIL {
                        simd.mask_store_ptr_f32s(tail, c, sum);
                    } else {
                        c.cast::<S::f32s>().write_unaligned(sum);
                    }
                }
            }
        }
    }
}
