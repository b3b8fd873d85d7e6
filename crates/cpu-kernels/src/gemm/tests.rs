//! The product against plain sums. Every slice ends where the product does, so that Miri and the
//! address sanitizer see whatever reads or writes past one.

use super::*;

/// Whole numbers, small enough that f32 adds them up exactly.
fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|at| (at * 7 % 11) as f32 - 5.0).collect()
}

/// What the columns between the rows of C hold, before and after.
const UNTOUCHED: f32 = 1000.0;

fn assert_agrees_with_plain_sums(gemm: Gemm) {
    let Gemm { m, n, segments, depth, rows, a: sa, b: sb, c_row, start } = gemm;
    let empty = segments == 0 || depth == 0;
    let a_len = if empty { 0 } else { rows.last_start(m) + sa.last(segments, depth) + 1 };
    let b_len = if empty { 0 } else { sb.last(segments, depth) + n };
    let (a, b) = (numbers(a_len), numbers(b_len));
    let mut c = vec![UNTOUCHED; (m - 1) * c_row + n];
    for (at, value) in numbers(c.len()).into_iter().enumerate() {
        if at % c_row < n {
            c[at] = value;
        }
    }
    let mut expected = c.clone();
    for i in 0..m {
        for j in 0..n {
            let mut sum = match start {
                Start::Zero => 0.0,
                Start::Output => c[i * c_row + j],
                Start::Row(row) => row[j],
            };
            for (s, k) in (0..segments).flat_map(|s| (0..depth).map(move |k| (s, k))) {
                sum += a[rows.start(i) + s * sa.segment + k * sa.step]
                    * b[s * sb.segment + k * sb.step + j];
            }
            expected[i * c_row + j] = sum;
        }
    }
    gemm.run(&a, &b, &mut c);
    assert_eq!(c, expected, "{gemm:?}");
}

#[test]
fn products_of_every_height_and_width_of_a_tile_agree_with_plain_sums() {
    // Registers hold 1 to 16 values: whole panels, and tails of each number of vectors.
    for n in [1, 7, 12, 14, 16, 17, 33] {
        let row = numbers(n);
        for m in 1..=8 {
            for (segments, depth, start) in
                [(1, 0, Start::Row(&row)), (1, 3, Start::Zero), (2, 2, Start::Output)]
            {
                let dense = Gemm {
                    m,
                    n,
                    segments,
                    depth,
                    rows: Rows::even(segments * depth),
                    a: Strides { segment: depth, step: 1 },
                    b: Strides { segment: depth * n, step: n },
                    c_row: n,
                    start,
                };
                assert_agrees_with_plain_sums(dense);
                // Overlapping rows in runs, as a convolution has them, and gaps everywhere.
                assert_agrees_with_plain_sums(Gemm {
                    rows: Rows { step: 1, run: 3, jump: 10 },
                    a: Strides { segment: 10, step: 2 },
                    b: Strides { segment: depth * (n + 1), step: n + 1 },
                    c_row: n + 2,
                    ..dense
                });
            }
        }
    }
}
