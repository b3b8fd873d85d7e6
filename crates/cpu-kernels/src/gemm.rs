//! The one matrix product behind every layer, and the choice of instruction set.

use std::ptr::NonNull;

use pulp::{Arch, MemMask, Simd, WithSimd};

/// Compiles `work` for each instruction set and runs the best one this machine has.
///
/// What `work` calls must be inlined into it (`#[inline(always)]`) to profit.
pub(crate) fn vectorized<R>(work: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(work)
}

/// Where a product starts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start<'a> {
    /// C = A·B
    Zero,
    /// C = C + A·B
    Output,
    /// C = row + A·B, the same row for every row of C
    Row(&'a [f32]),
}

/// C[i, j] = start + Σₛ Σₖ A[row(i) + s·segment + k·step] · B[s·segment + k·step + j].
///
/// An ordinary product has one segment. A convolution has one per kernel row: in an NHWC image with
/// a zero border the pixels under one kernel row are contiguous, so the image itself serves as A
/// and no patch matrix is built.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gemm<'a> {
    /// Rows of C.
    pub m: usize,
    /// Columns of C, contiguous in B and C.
    pub n: usize,
    /// How many segments the sum has.
    pub segments: usize,
    /// How many terms a segment has.
    pub depth: usize,
    /// Where the rows of A start.
    pub rows: Rows,
    /// Distances in A between segments and between terms.
    pub a: Strides,
    /// Distances in B between segments and between terms.
    pub b: Strides,
    /// Distance between rows of C.
    pub c_row: usize,
    /// What is added to the product.
    pub start: Start<'a>,
}

/// Rows that come in runs: row i starts at (i / run)·jump + (i % run)·step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    pub step: usize,
    pub run: usize,
    pub jump: usize,
}

impl Rows {
    /// Rows at one distance.
    pub(crate) fn even(step: usize) -> Self {
        Self { step, run: usize::MAX, jump: 0 }
    }

    fn start(&self, row: usize) -> usize {
        (row / self.run)
            .saturating_mul(self.jump)
            .saturating_add((row % self.run).saturating_mul(self.step))
    }

    /// Start of the row, among the first `rows`, that starts last.
    fn last_start(&self, rows: usize) -> usize {
        let whole_runs = rows / self.run * self.run;
        self.start(rows - 1).max(self.start(whole_runs.saturating_sub(1)))
    }
}

/// Distances between segments and between terms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strides {
    pub segment: usize,
    pub step: usize,
}

impl Strides {
    /// Position of the last term of the last segment.
    fn last(&self, segments: usize, depth: usize) -> usize {
        let segment = (segments - 1).saturating_mul(self.segment);
        segment.saturating_add((depth - 1).saturating_mul(self.step))
    }
}

impl Gemm<'_> {
    /// Computes the product on this thread. The order of the additions depends on the shape only.
    ///
    /// # Panics
    ///
    /// If a slice is too short for the strides: a mistake in this module, not in its input.
    pub(crate) fn run(self, a: &[f32], b: &[f32], c: &mut [f32]) {
        self.run_each(1, a, b, c);
    }

    /// Computes `count` products of one shape, whose operands and outputs lie one after another:
    /// each slice is cut into `count` equal parts.
    ///
    /// # Panics
    ///
    /// As [`Self::run`].
    pub(crate) fn run_each(self, count: usize, a: &[f32], b: &[f32], c: &mut [f32]) {
        let Self { m, n, depth, .. } = self;
        if m == 0 || n == 0 || count == 0 {
            return;
        }
        let [a_len, b_len, c_len] = [a.len(), b.len(), c.len()].map(|len| len / count);
        let segments = if depth == 0 { 0 } else { self.segments };
        if segments > 0 {
            let last_a = self.rows.last_start(m).saturating_add(self.a.last(segments, depth));
            let last_b = self.b.last(segments, depth).saturating_add(n - 1);
            assert!(last_a < a_len && last_b < b_len, "operands too short: {self:?}");
        }
        let last_c = (m - 1).saturating_mul(self.c_row).saturating_add(n - 1);
        assert!(last_c < c_len, "output too short: {self:?}");
        if let Start::Row(row) = self.start {
            assert!(n <= row.len(), "starting row too short: {self:?}");
        }
        let lens = [a_len, b_len, c_len];
        Arch::new().dispatch(Each { gemm: Self { segments, ..self }, count, lens, a, b, c });
    }
}

/// Products whose slices, of these lengths, are long enough for their strides.
struct Each<'a> {
    gemm: Gemm<'a>,
    count: usize,
    lens: [usize; 3],
    a: &'a [f32],
    b: &'a [f32],
    c: &'a mut [f32],
}

impl WithSimd for Each<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let [a_len, b_len, c_len] = self.lens;
        for index in 0..self.count {
            let a = &self.a[index * a_len..][..a_len];
            let b = &self.b[index * b_len..][..b_len];
            let c = &mut self.c[index * c_len..][..c_len];
            Checked { gemm: self.gemm, a, b, c }.tiles(simd);
        }
    }
}

/// A product whose slices are long enough for its strides.
struct Checked<'a> {
    gemm: Gemm<'a>,
    a: &'a [f32],
    b: &'a [f32],
    c: &'a mut [f32],
}

impl Checked<'_> {
    /// Cuts C into tiles whose sums stay in registers: as tall and wide as the register file
    /// allows.
    ///
    /// On each step a tile loads `VECTORS` vectors of B and `ROWS` single values of A for `ROWS ·
    /// VECTORS` multiply-adds, and the latter must be the bottleneck.
    #[inline(always)]
    fn tiles<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT < 32 {
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
        let rest = self.gemm.n - column;
        match rest.div_ceil(S::F32_LANES) {
            0 => {}
            1 => self.panel::<S, ROWS, 1, true>(simd, column),
            2 => self.panel::<S, ROWS, 2, true>(simd, column),
            // Only registers of four values make panels of more than two vectors.
            3 if VECTORS > 2 => self.panel::<S, ROWS, 3, true>(simd, column),
            _ => self.panel::<S, ROWS, VECTORS, true>(simd, column),
        }
    }

    /// All rows of `VECTORS` vectors of columns: each run in tiles of nearly equal height.
    #[inline(always)]
    fn panel<S: Simd, const ROWS: usize, const VECTORS: usize, const TAIL: bool>(
        &mut self,
        simd: S,
        column: usize,
    ) {
        let mut row = 0;
        let mut run_start = 0;
        while row < self.gemm.m {
            let run_len = self.gemm.rows.run.min(self.gemm.m - row);
            let tiles = run_len.div_ceil(ROWS);
            let (height, taller) = (run_len / tiles, run_len % tiles);
            let mut a = run_start;
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
                a += rows * self.gemm.rows.step;
            }
            run_start += self.gemm.rows.jump;
        }
    }

    /// The tile of C from `row` and `column` on; its first row of A starts at `a`. With `TAIL` its
    /// last vector holds only the columns that C still has.
    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize, const VECTORS: usize, const TAIL: bool>(
        &mut self,
        simd: S,
        row: usize,
        a: usize,
        column: usize,
    ) {
        let Gemm { n, segments, depth, rows, a: sa, b: sb, c_row, start, .. } = self.gemm;
        let last = column + (VECTORS - 1) * S::F32_LANES;
        let mask = MemMask::new(simd.mask_between_m32s(0, (n - last) as u32).mask());
        // SAFETY: called below only where `run` has checked that the columns below `n` lie in their
        // slice. The mask keeps the access to them.
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
        // SAFETY: `run` has checked that all rows lie in C.
        let c_row = |i: usize| unsafe { c.add(i.wrapping_mul(c_row)) };
        let mut sums = [[zero; VECTORS]; ROWS];
        match start {
            Start::Zero => {}
            Start::Output => {
                for (i, sums) in sums.iter_mut().enumerate() {
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = load(c_row(i), j);
                    }
                }
            }
            Start::Row(row) => {
                let row = pointer(&row[column..]);
                for sums in &mut sums {
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = load(row, j);
                    }
                }
            }
        }

        // Where there is nothing to add up, A and B may be empty.
        let (a, b) =
            (self.a.get(a..).unwrap_or_default(), self.b.get(column..).unwrap_or_default());
        let (a, b) = (pointer(a), pointer(b));
        let (mut segment_a, mut segment_b) = (0usize, 0usize);
        let mut segments = segments;
        while segments > 0 {
            let (mut to_a, mut to_b) = (segment_a, segment_b);
            let mut terms = depth;
            loop {
                // SAFETY: `run` has checked that the last row, segment and term lie in A, and the
                // last segment, term and column in B.
                unsafe {
                    let mut vectors = [zero; VECTORS];
                    for (j, vector) in vectors.iter_mut().enumerate() {
                        *vector = load(b.add(to_b), j);
                    }
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let value =
                            simd.splat_f32s(read(a.add(to_a).add(i.wrapping_mul(rows.step))));
                        for (sum, vector) in sums.iter_mut().zip(vectors) {
                            *sum = simd.mul_add_e_f32s(value, vector, *sum);
                        }
                    }
                }
                to_a = to_a.wrapping_add(sa.step);
                to_b = to_b.wrapping_add(sb.step);
                terms = terms.wrapping_sub(1);
                if terms == 0 {
                    break;
                }
            }
            segment_a = segment_a.wrapping_add(sa.segment);
            segment_b = segment_b.wrapping_add(sb.segment);
            segments = segments.wrapping_sub(1);
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

/// A value of any alignment.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned<T>(T);

/// Reads a value or a vector. Unlike the methods of plain pointers this is not checked on every
/// call in builds with debug assertions, such as those of a notebook kernel, where it would cost
/// more than the arithmetic.
///
/// # Safety
///
/// `at` must point to initialized memory of the size of `T`, aligned for `f32`.
#[inline(always)]
pub(crate) unsafe fn read<T: Copy>(at: NonNull<f32>) -> T {
    // SAFETY: the caller's promise; `Unaligned` asks for no alignment.
    unsafe { at.cast::<Unaligned<T>>().as_ref().0 }
}

/// Writes a value or a vector; the counterpart of [`read`].
///
/// # Safety
///
/// `at` must point to initialized memory of the size of `T`, aligned for `f32`, that nothing else
/// refers to.
#[inline(always)]
pub(crate) unsafe fn write<T: Copy>(at: NonNull<f32>, value: T) {
    // SAFETY: the caller's promise; `Unaligned` asks for no alignment.
    unsafe { *at.cast::<Unaligned<T>>().as_mut() = Unaligned(value) }
}

#[cfg(test)]
mod tests;
