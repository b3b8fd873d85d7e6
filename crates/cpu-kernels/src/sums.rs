//! Sums and transposes shared by several layers.

use pulp::{Simd, WithSimd};

use crate::gemm::vectorized;
use crate::instruction_set::dispatch;
use crate::lanes::for_each_vector;

/// The most partial gradients that are computed in parallel and then added in order. It does not
/// depend on the number of threads.
pub(crate) const MAX_PARTIALS: usize = 16;

/// Transposes `[rows, columns]` to `[columns, rows]`.
pub(crate) fn transpose(from: &[f32], columns: usize, to: &mut [f32]) {
    let rows = from.len() / columns;
    for (row, from) in from.chunks_exact(columns).enumerate() {
        for (value, to) in from.iter().zip(to[row..].iter_mut().step_by(rows)) {
            *to = *value;
        }
    }
}

/// Adds `from` to `to`, value by value.
pub(crate) fn add(from: &[f32], to: &mut [f32]) {
    vectorized(
        #[inline(always)]
        || {
            for (to, from) in to.iter_mut().zip(from) {
                *to += from;
            }
        },
    );
}

/// Adds every row of `rows` to `sum`.
pub(crate) fn add_rows(rows: &[f32], sum: &mut [f32]) {
    if !sum.is_empty() {
        dispatch(AddRows { rows, sum });
    }
}

struct AddRows<'a> {
    rows: &'a [f32],
    sum: &'a mut [f32],
}

impl WithSimd for AddRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { rows, sum } = self;
        for_each_vector(
            simd,
            sum.len(),
            #[inline(always)]
            |lanes| {
                let mut total = lanes.load(sum);
                for row in rows.chunks_exact(sum.len()) {
                    total = simd.add_f32s(total, lanes.load(row));
                }
                lanes.store(total, sum);
            },
        );
    }
}
