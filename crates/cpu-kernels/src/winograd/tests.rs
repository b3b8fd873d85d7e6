//! The transforms against plain sums. Slices end where the blocks do, so that Miri and the address
//! sanitizer catch accesses past their end.

use super::*;

/// Values between -1 and 1.
fn values(len: usize) -> Vec<f32> {
    (0..len).map(|at| (at * 7 % 11) as f32 / 5.0 - 1.0).collect()
}

fn assert_close(what: &str, conv: &Conv2d, found: &[f32], expected: &[f32]) {
    let largest = expected.iter().fold(1.0, |largest: f32, value| largest.max(value.abs()));
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs() / largest;
        assert!(error < 1e-5, "{what}[{at}] of {conv:?}: found {found}, expected {expected}");
    }
}

/// Calls `visit` with the indices into padded image, kernel and output of every multiply-add.
fn for_each_multiply_add(conv: &Conv2d, mut visit: impl FnMut(usize, usize, usize)) {
    let Conv2d { height, width, in_channels, out_channels, kernel: (kh, kw), .. } = *conv;
    for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
        for (ky, kx) in (0..kh).flat_map(|ky| (0..kw).map(move |kx| (ky, kx))) {
            for (c, o) in (0..in_channels).flat_map(|c| (0..out_channels).map(move |o| (c, o))) {
                visit(
                    (y + ky) * conv.padded_row() + (x + kx) * in_channels + c,
                    ((ky * kw + kx) * in_channels + c) * out_channels + o,
                    (y * width + x) * out_channels + o,
                );
            }
        }
    }
}

fn assert_output_matches_plain_sums(conv: Conv2d, purpose: Purpose) {
    let winograd = Winograd::new(conv, purpose).unwrap();
    let Conv2d { height, width, in_channels, out_channels, .. } = conv;
    let (padded, kernel, bias) =
        (values(conv.padded_len()), values(conv.kernel_len()), values(out_channels));
    let mut expected = bias.repeat(height * width);
    for_each_multiply_add(&conv, |i, k, o| expected[o] += padded[i] * kernel[k]);

    let mut weights = vec![f32::NAN; winograd.transformed_len()];
    winograd.transform_weights(&kernel, &mut weights);
    let grid = winograd.grid(0, height);
    let mut inputs = vec![f32::NAN; winograd.tiles_len(&grid, in_channels)];
    winograd.transform_input(&grid, &padded, &mut inputs);
    let mut products = vec![0.0; winograd.tiles_len(&grid, out_channels)];
    for_each_product(&winograd, &grid, |i, k, o| products[o] += inputs[i] * weights[k]);
    let mut output = vec![f32::NAN; conv.output_len()];
    winograd.transform_output(&grid, &products, Some(&bias), &mut output);
    assert_close("output", &conv, &output, &expected);
}

fn assert_kernel_gradient_matches_plain_sums(conv: Conv2d) {
    let winograd = Winograd::new(conv, Purpose::Training).unwrap();
    let Conv2d { height, width, in_channels, out_channels, .. } = conv;
    let (padded, d_output) = (values(conv.padded_len()), values(conv.output_len()));
    let mut expected = vec![0.0; conv.kernel_len()];
    for_each_multiply_add(&conv, |i, k, o| expected[k] += padded[i] * d_output[o]);

    let grid = winograd.grid(0, height);
    let mut inputs = vec![f32::NAN; winograd.tiles_len(&grid, in_channels)];
    winograd.transform_input(&grid, &padded, &mut inputs);
    let mut d_products = vec![f32::NAN; winograd.tiles_len(&grid, out_channels)];
    winograd.transform_d_output(&grid, &d_output, width * out_channels, &mut d_products);
    let mut d_weights = vec![0.0; winograd.transformed_len()];
    for_each_product(&winograd, &grid, |i, k, o| d_weights[k] += inputs[i] * d_products[o]);
    let mut d_kernel = vec![f32::NAN; conv.kernel_len()];
    winograd.inverse_transform_grad(&d_weights, &mut d_kernel);
    assert_close("kernel gradient", &conv, &d_kernel, &expected);
}

/// Calls `visit` with the indices of every multiply-add in the Winograd domain.
fn for_each_product(
    winograd: &Winograd,
    grid: &TileGrid,
    mut visit: impl FnMut(usize, usize, usize),
) {
    let Conv2d { in_channels, out_channels, .. } = winograd.conv;
    let (elements, tiles) = (winograd.tile_elements(), grid.tiles());
    for (element, tile) in (0..elements).flat_map(|at| (0..tiles).map(move |tile| (at, tile))) {
        for (c, o) in (0..in_channels).flat_map(|c| (0..out_channels).map(move |o| (c, o))) {
            visit(
                element * element_stride(tiles * in_channels) + tile * in_channels + c,
                element * element_stride(in_channels * out_channels) + c * out_channels + o,
                element * element_stride(tiles * out_channels) + tile * out_channels + o,
            );
        }
    }
}

#[test]
fn transforms_of_complete_and_edge_tiles_match_plain_sums() {
    // Complete and edge tiles; full and partial vectors of 4, 8 and 16 lanes.
    for (height, width, in_channels, out_channels) in [(4, 4, 16, 8), (5, 3, 9, 19)] {
        for taps in [3, 5] {
            let kernel = (taps, taps);
            let conv = Conv2d { batch: 1, height, width, in_channels, out_channels, kernel };
            for purpose in [Purpose::Training, Purpose::Inference] {
                assert_output_matches_plain_sums(conv, purpose);
            }
            assert_kernel_gradient_matches_plain_sums(conv);
        }
    }
}
