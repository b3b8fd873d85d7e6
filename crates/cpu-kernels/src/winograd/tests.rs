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

fn assert_matches_plain_sums(conv: Conv2d) {
    let winograd = Winograd::new(conv).unwrap();
    let Conv2d { height, width, in_channels, out_channels, .. } = conv;
    let (padded, kernel, bias) =
        (values(conv.padded_len()), values(conv.kernel_len()), values(out_channels));
    let d_output = values(conv.output_len());
    let mut expected_output = bias.repeat(height * width);
    let mut expected_d_kernel = vec![0.0; conv.kernel_len()];
    for_each_multiply_add(&conv, |i, k, o| {
        expected_output[o] += padded[i] * kernel[k];
        expected_d_kernel[k] += padded[i] * d_output[o];
    });

    let grid = winograd.grid(0, height);
    let (elements, tiles) = (winograd.tile_elements(), grid.tiles());
    let mut weights = vec![f32::NAN; winograd.transformed_len()];
    winograd.transform_weights(&kernel, &mut weights);
    let mut inputs = vec![f32::NAN; elements * element_stride(tiles * in_channels)];
    winograd.transform_input(&grid, &padded, &mut inputs);
    let mut d_products = vec![f32::NAN; elements * element_stride(tiles * out_channels)];
    winograd.transform_d_output(&grid, &d_output, width * out_channels, &mut d_products);

    let mut products = vec![0.0; elements * element_stride(tiles * out_channels)];
    let mut d_weights = vec![0.0; winograd.transformed_len()];
    for (element, tile) in
        (0..elements).flat_map(|element| (0..tiles).map(move |tile| (element, tile)))
    {
        for (c, o) in (0..in_channels).flat_map(|c| (0..out_channels).map(move |o| (c, o))) {
            let input =
                inputs[element * element_stride(tiles * in_channels) + tile * in_channels + c];
            let product = element * element_stride(tiles * out_channels) + tile * out_channels + o;
            let weight =
                element * element_stride(in_channels * out_channels) + c * out_channels + o;
            products[product] += input * weights[weight];
            d_weights[weight] += input * d_products[product];
        }
    }

    let mut output = vec![f32::NAN; conv.output_len()];
    winograd.transform_output(&grid, &products, Some(&bias), &mut output);
    assert_close("output", &conv, &output, &expected_output);
    let mut d_kernel = vec![f32::NAN; conv.kernel_len()];
    winograd.inverse_transform_grad(&d_weights, &mut d_kernel);
    assert_close("kernel gradient", &conv, &d_kernel, &expected_d_kernel);
}

#[test]
fn transforms_of_complete_and_edge_tiles_match_plain_sums() {
    for taps in [3, 5] {
        // Complete and edge tiles; full and partial vectors of 4, 8 and 16 lanes.
        for (height, width, in_channels, out_channels) in [(4, 4, 16, 8), (5, 3, 9, 19)] {
            assert_matches_plain_sums(Conv2d {
                batch: 1,
                height,
                width,
                in_channels,
                out_channels,
                kernel: (taps, taps),
            });
        }
    }
}
