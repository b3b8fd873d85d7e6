//! The matrix product behind every layer, and the choice of instruction set.
//!
//! The inner loops use `wrapping_*` operations because notebook kernels compile with overflow
//! checks, which would cost more than the arithmetic. Offsets that are used cannot overflow:
//! [`Gemm::run_batched`] checks the largest ones before the loops start.

use std::ptr::NonNull;

use pulp::{MemMask, Simd, WithSimd};

use crate::instruction_set::dispatch;

/// Compiles `work` for each instruction set and runs the best version that this machine supports.
///
/// Functions called by `work` must be inlined into it (`#[inline(always)]`) to benefit.
pub(crate) fn vectorized<R>(work: impl FnOnce() -> R) -> R {
    dispatch(work)
}

/// The initial value of C, to which the product is added.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Init<'a> {
    /// C = A·B
    Zero,
    /// C = C + A·B
    Accumulate,
    /// C = bias + A·B, with the same bias row for every row of C
    Bias(&'a [f32]),
}

/// C[i, j] = init + Σₒ Σₖ A[row(i) + o·outer + k·inner] · B[o·outer + k·inner + j].
///
/// The sum over K is split in two levels. An ordinary product has a single outer step. A
/// convolution has one per kernel row: in a zero-padded NHWC image the pixels under one kernel row
/// are contiguous, so the image itself serves as A and no im2col matrix is built.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gemm<'a> {
    /// Rows of C.
    pub m: usize,
    /// Columns of C, contiguous in B and C.
    pub n: usize,
    /// Outer steps of the sum.
    pub k_outer: usize,
    /// Terms per outer step.
    pub k_inner: usize,
    /// Where the rows of A start.
    pub a_rows: RowStrides,
    /// Strides of the sum in A.
    pub a: KStrides,
    /// Strides of the sum in B.
    pub b: KStrides,
    /// Stride between rows of C.
    pub c_row: usize,
    /// What the product is added to.
    pub init: Init<'a>,
}

/// Strides of rows in groups: row i starts at (i / group)·outer + (i % group)·inner.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowStrides {
    pub inner: usize,
    pub group: usize,
    pub outer: usize,
}

impl RowStrides {
    /// A single stride between all rows.
    pub(crate) fn uniform(stride: usize) -> Self {
        Self { inner: stride, group: usize::MAX, outer: 0 }
    }

    fn offset(&self, row: usize) -> usize {
        (row / self.group)
            .saturating_mul(self.outer)
            .saturating_add((row % self.group).saturating_mul(self.inner))
    }

    /// The largest offset of the first `rows` rows: that of the last row, or of the last row of
    /// the last full group.
    fn max_offset(&self, rows: usize) -> usize {
        let full_groups = rows / self.group * self.group;
        self.offset(rows - 1).max(self.offset(full_groups.saturating_sub(1)))
    }
}

/// Strides between the outer steps and between the terms of a sum.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KStrides {
    pub outer: usize,
    pub inner: usize,
}

impl KStrides {
    /// The strides of an ordinary product, which has a single outer step.
    pub(crate) fn uniform(stride: usize) -> Self {
        Self { outer: 0, inner: stride }
    }

    /// Offset of the last term of the last outer step.
    fn max_offset(&self, k_outer: usize, k_inner: usize) -> usize {
        let outer = (k_outer - 1).saturating_mul(self.outer);
        outer.saturating_add((k_inner - 1).saturating_mul(self.inner))
    }
}

impl Gemm<'_> {
    /// Computes the product on this thread. The order of additions depends on the shape only.
    ///
    /// # Panics
    /// If a slice is too short for the strides: a bug in this crate, not in its input.
    pub(crate) fn run(self, a: &[f32], b: &[f32], c: &mut [f32]) {
        self.run_batched(1, a, b, c);
    }

    /// Computes `count` products of the same shape. Each slice is cut into `count` equal parts, one
    /// per product.
    ///
    /// # Panics
    /// As [`Self::run`].
    pub(crate) fn run_batched(self, count: usize, a: &[f32], b: &[f32], c: &mut [f32]) {
        let Self { m, n, k_inner, .. } = self;
        if m == 0 || n == 0 || count == 0 {
            return;
        }
        let [a_len, b_len, c_len] = [a.len(), b.len(), c.len()].map(|len| len / count);
        let k_outer = if k_inner == 0 { 0 } else { self.k_outer };
        if k_outer > 0 {
            let max_a = self.a_rows.max_offset(m);
            let max_a = max_a.saturating_add(self.a.max_offset(k_outer, k_inner));
            let max_b = self.b.max_offset(k_outer, k_inner).saturating_add(n - 1);
            assert!(max_a < a_len && max_b < b_len, "A or B is too short: {self:?}");
        }
        let max_c = (m - 1).saturating_mul(self.c_row).saturating_add(n - 1);
        assert!(max_c < c_len, "C is too short: {self:?}");
        if let Init::Bias(bias) = self.init {
            assert!(n <= bias.len(), "bias is too short: {self:?}");
        }
        let lens = [a_len, b_len, c_len];
        dispatch(CheckedBatch { gemm: Self { k_outer, ..self }, count, lens, a, b, c });
    }
}

/// Products whose slices, of lengths `lens`, are long enough for their strides.
struct CheckedBatch<'a> {
    gemm: Gemm<'a>,
    count: usize,
    lens: [usize; 3],
    a: &'a [f32],
    b: &'a [f32],
    c: &'a mut [f32],
}

impl WithSimd for CheckedBatch<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let [a_len, b_len, c_len] = self.lens;
        for index in 0..self.count {
            let a = &self.a[index * a_len..][..a_len];
            let b = &self.b[index * b_len..][..b_len];
            let c = &mut self.c[index * c_len..][..c_len];
            CheckedGemm { gemm: self.gemm, a, b, c }.run(simd);
        }
    }
}

/// A product whose slices are long enough for its strides.
struct CheckedGemm<'a> {
    gemm: Gemm<'a>,
    a: &'a [f32],
    b: &'a [f32],
    c: &'a mut [f32],
}

impl CheckedGemm<'_> {
    /// Cuts C into register tiles, as tall and wide as the register file allows.
    ///
    /// For each k a tile loads `VECTORS` vectors of B and `ROWS` single values of A for
    /// `ROWS · VECTORS` multiply-adds, which must be the bottleneck.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        if cfg!(target_arch = "wasm32") {
            // Most processors that a browser runs on have 16 registers, and it keeps some of them.
            self.panels::<S, 4, 2>(simd);
        } else if S::REGISTER_COUNT < 32 {
            self.panels::<S, 6, 2>(simd);
        } else if S::F32_LANES < 8 {
            self.panels::<S, 6, 4>(simd);
        } else {
            self.panels::<S, 7, 2>(simd);
        }
    }

    #[inline(always)]
    fn panels<S: Simd, const ROWS: usize, const VECTORS: usize>(mut self, simd: S) {
        let width = VECTORS * S::F32_LANES;
        let mut column = 0;
        while column + width <= self.gemm.n {
            self.panel::<S, ROWS, VECTORS, false>(simd, column);
            column += width;
        }
        let remaining = self.gemm.n - column;
        match remaining.div_ceil(S::F32_LANES) {
            0 => {}
            1 => self.panel::<S, ROWS, 1, true>(simd, column),
            2 => self.panel::<S, ROWS, 2, true>(simd, column),
            // Only 4-lane registers use panels wider than two vectors.
            3 if VECTORS > 2 => self.panel::<S, ROWS, 3, true>(simd, column),
            _ => self.panel::<S, ROWS, VECTORS, true>(simd, column),
        }
    }

    /// All rows of `VECTORS` vectors of columns. Each row group is cut into tiles of nearly equal
    /// height.
    #[inline(always)]
    fn panel<S: Simd, const ROWS: usize, const VECTORS: usize, const TAIL: bool>(
        &mut self,
        simd: S,
        column: usize,
    ) {
        let mut row = 0;
        let mut group_start = 0;
        while row < self.gemm.m {
            let group_len = self.gemm.a_rows.group.min(self.gemm.m - row);
            let tiles = group_len.div_ceil(ROWS);
            let (height, taller) = (group_len / tiles, group_len % tiles);
            let mut a = group_start;
            for tile in 0..tiles {
                let rows = height + usize::from(tile < taller);
                match rows {
                    1 => self.tile::<S, 1, VECTORS, TAIL>(simd, row, a, column),
                    2 => self.tile::<S, 2, VECTORS, TAIL>(simd, row, a, column),
                    3 => self.tile::<S, 3, VECTORS, TAIL>(simd, row, a, column),
                    4 => self.tile::<S, 4, VECTORS, TAIL>(simd, row, a, column),
                    5 => self.tile::<S, 5, VECTORS, TAIL>(simd, row, a, column),
                    6 => self.tile::<S, 6, VECTORS, TAIL>(simd, row, a, column),
                    _ => self.tile::<S, ROWS, VECTORS, TAIL>(simd, row, a, column),
                }
                row += rows;
                a += rows * self.gemm.a_rows.inner;
            }
            group_start += self.gemm.a_rows.outer;
        }
    }

    /// The tile of C whose first element is at `row` and `column`. Its first row of A starts at
    /// `a`. With `TAIL` the last vector is masked to the columns of C.
    ///
    /// In WebAssembly, where every function has the same instructions, each tile is a function of
    /// its own: in a single large one, browsers keep the sums in memory.
    #[cfg_attr(not(target_arch = "wasm32"), inline(always))]
    #[cfg_attr(target_arch = "wasm32", inline(never))]
    fn tile<S: Simd, const ROWS: usize, const VECTORS: usize, const TAIL: bool>(
        &mut self,
        simd: S,
        row: usize,
        a: usize,
        column: usize,
    ) {
        let Gemm { n, k_outer, k_inner, a_rows, a: a_k, b: b_k, c_row, init, .. } = self.gemm;
        let last = column + (VECTORS - 1) * S::F32_LANES;
        let mask = MemMask::new(simd.mask_between_m32s(0, (n - last) as u32).mask());
        // SAFETY: only called below, where `run_batched` has checked that the columns below `n` lie
        // in their slice. The mask restricts the access to these columns.
        let load = |at: NonNull<f32>, j: usize| unsafe {
            let at = at.add(j * S::F32_LANES);
            if TAIL && j == VECTORS - 1 {
                simd.mask_load_ptr_f32s(mask, at.as_ptr())
            } else {
                read(at)
            }
        };
        let zero = simd.splat_f32s(0.0);

        let c = pointer_mut(&mut self.c[row * c_row + column..]);
        // SAFETY: `run_batched` has checked that all rows lie in C.
        let c_row = |i: usize| unsafe { c.add(i.wrapping_mul(c_row)) };
        let mut sums = [[zero; VECTORS]; ROWS];
        match init {
            Init::Zero => {}
            Init::Accumulate => {
                for (i, sums) in sums.iter_mut().enumerate() {
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = load(c_row(i), j);
                    }
                }
            }
            Init::Bias(bias) => {
                let bias = pointer(&bias[column..]);
                for sums in &mut sums {
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = load(bias, j);
                    }
                }
            }
        }

        // A and B may be empty if K is 0.
        let (a, b) =
            (self.a.get(a..).unwrap_or_default(), self.b.get(column..).unwrap_or_default());
        let (a, b) = (pointer(a), pointer(b));
        let (mut outer_a, mut outer_b) = (0usize, 0usize);
        let mut outer_left = k_outer;
        while outer_left > 0 {
            let (mut offset_a, mut offset_b) = (outer_a, outer_b);
            let mut inner_left = k_inner;
            loop {
                // SAFETY: `run_batched` has checked that the last row and k lie in A, and the last
                // k and column in B.
                unsafe {
                    let mut vectors = [zero; VECTORS];
                    for (j, vector) in vectors.iter_mut().enumerate() {
                        *vector = load(b.add(offset_b), j);
                    }
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let a = a.add(offset_a).add(i.wrapping_mul(a_rows.inner));
                        let value = simd.splat_f32s(read(a));
                        for (sum, vector) in sums.iter_mut().zip(vectors) {
                            *sum = simd.mul_add_e_f32s(value, vector, *sum);
                        }
                    }
                }
                offset_a = offset_a.wrapping_add(a_k.inner);
                offset_b = offset_b.wrapping_add(b_k.inner);
                inner_left = inner_left.wrapping_sub(1);
                if inner_left == 0 {
                    break;
                }
            }
            outer_a = outer_a.wrapping_add(a_k.outer);
            outer_b = outer_b.wrapping_add(b_k.outer);
            outer_left = outer_left.wrapping_sub(1);
        }

        for (i, sums) in sums.iter().enumerate() {
            for (j, &sum) in sums.iter().enumerate() {
                // SAFETY: as for `load`.
                unsafe {
                    let at = c_row(i).add(j * S::F32_LANES);
                    if TAIL && j == VECTORS - 1 {
                        simd.mask_store_ptr_f32s(mask, at.as_ptr(), sum);
                    } else {
                        write(at, sum);
                    }
                }
            }
        }
    }
}

pub(crate) fn pointer(slice: &[f32]) -> NonNull<f32> {
    NonNull::from(slice).cast()
}

pub(crate) fn pointer_mut(slice: &mut [f32]) -> NonNull<f32> {
    NonNull::from(slice).cast()
}

/// A value with no alignment requirement.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned<T>(T);

/// Reads a value or a vector.
///
/// With debug assertions, as in a notebook kernel, the methods of raw pointers check every call,
/// which would cost more than the arithmetic. This does not.
///
/// # Safety
/// `at` must point to initialized memory of the size of `T`, aligned for `f32`.
#[inline(always)]
pub(crate) unsafe fn read<T: Copy>(at: NonNull<f32>) -> T {
    // SAFETY: guaranteed by the caller; `Unaligned` needs no alignment.
    unsafe { at.cast::<Unaligned<T>>().as_ref().0 }
}

/// Writes a value or a vector; the counterpart of [`read`].
///
/// # Safety
/// `at` must point to initialized memory of the size of `T`, aligned for `f32`, without other
/// references to it.
#[inline(always)]
pub(crate) unsafe fn write<T: Copy>(at: NonNull<f32>, value: T) {
    // SAFETY: guaranteed by the caller; `Unaligned` needs no alignment.
    unsafe { *at.cast::<Unaligned<T>>().as_mut() = Unaligned(value) }
}

#[cfg(test)]
mod tests;
