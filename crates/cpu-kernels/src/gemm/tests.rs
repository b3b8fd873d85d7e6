//! The product against plain sums. Every slice is exactly as long as needed, so that Miri and the
//! address sanitizer catch accesses past its end.

use super::*;

/// Integers small enough that f32 sums are exact.
fn integers(len: usize) -> Vec<f32> {
    (0..len).map(|at| (at * 7 % 11) as f32 - 5.0).collect()
}

/// Value of the gaps between the rows of C; the product must not overwrite it.
const UNTOUCHED: f32 = 1000.0;

fn assert_matches_plain_sums(gemm: Gemm) {
    let Gemm { m, n, k_outer, k_inner, a_rows, a: a_k, b: b_k, c_row, init } = gemm;
    let is_empty = k_outer == 0 || k_inner == 0;
    let a_len =
        if is_empty { 0 } else { a_rows.max_offset(m) + a_k.max_offset(k_outer, k_inner) + 1 };
    let b_len = if is_empty { 0 } else { b_k.max_offset(k_outer, k_inner) + n };
    let (a, b) = (integers(a_len), integers(b_len));
    let mut c = vec![UNTOUCHED; (m - 1) * c_row + n];
    for (at, value) in integers(c.len()).into_iter().enumerate() {
        if at % c_row < n {
            c[at] = value;
        }
    }
    let mut expected = c.clone();
    for i in 0..m {
        for j in 0..n {
            let mut sum = match init {
                Init::Zero => 0.0,
                Init::Accumulate => c[i * c_row + j],
                Init::Bias(bias) => bias[j],
            };
            for (o, k) in (0..k_outer).flat_map(|o| (0..k_inner).map(move |k| (o, k))) {
                sum += a[a_rows.offset(i) + o * a_k.outer + k * a_k.inner]
                    * b[o * b_k.outer + k * b_k.inner + j];
            }
            expected[i * c_row + j] = sum;
        }
    }
    gemm.run(&a, &b, &mut c);
    assert_eq!(c, expected, "{gemm:?}");
}

#[test]
fn products_of_all_tile_sizes_match_plain_sums() {
    // Registers have 1 to 16 lanes: these widths give full panels and every kind of tail.
    for n in [1, 7, 12, 14, 16, 17, 33] {
        let bias = integers(n);
        for m in 1..=8 {
            for (k_outer, k_inner, init) in
                [(1, 0, Init::Bias(&bias)), (1, 3, Init::Zero), (2, 2, Init::Accumulate)]
            {
                let dense = Gemm {
                    m,
                    n,
                    k_outer,
                    k_inner,
                    a_rows: RowStrides::uniform(k_outer * k_inner),
                    a: KStrides { outer: k_inner, inner: 1 },
                    b: KStrides { outer: k_inner * n, inner: n },
                    c_row: n,
                    init,
                };
                assert_matches_plain_sums(dense);
                // Overlapping, grouped rows, as in a convolution, with gaps everywhere.
                assert_matches_plain_sums(Gemm {
                    a_rows: RowStrides { inner: 1, group: 3, outer: 10 },
                    a: KStrides { outer: 10, inner: 2 },
                    b: KStrides { outer: k_inner * (n + 1), inner: n + 1 },
                    c_row: n + 2,
                    ..dense
                });
            }
        }
    }
}
