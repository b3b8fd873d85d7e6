//! Every transform against plain sums. Slices end where the blocks do, so that Miri and the address
//! sanitizer see whatever reads or writes past one.

use super::*;

/// Numbers between -1 and 1.
fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|at| (at * 7 % 11) as f32 / 5.0 - 1.0).collect()
}

fn assert_close(what: &str, conv: &Conv2d, found: &[f32], expected: &[f32]) {
    let largest = expected.iter().fold(1.0, |largest: f32, value| largest.max(value.abs()));
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs() / largest;
        assert!(error < 1e-5, "{what}[{at}] of {conv:?}: {found} instead of {expected}");
    }
}

/// Calls `visit` with the positions of every product in padded image, kernel and output.
fn each_product(conv: &Conv2d, mut visit: impl FnMut(usize, usize, usize)) {
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

fn assert_agrees_with_plain_sums(conv: Conv2d) {
    let winograd = Winograd::new(conv).unwrap();
    let Conv2d { height, width, in_channels, out_channels, .. } = conv;
    let (padded, kernel, bias) =
        (numbers(conv.padded_len()), numbers(conv.kernel_len()), numbers(out_channels));
    let d_output = numbers(conv.output_len());
    let mut expected_output = bias.repeat(height * width);
    let mut expected_d_kernel = vec![0.0; conv.kernel_len()];
    each_product(&conv, |i, k, o| {
        expected_output[o] += padded[i] * kernel[k];
        expected_d_kernel[k] += padded[i] * d_output[o];
    });

    let grid = winograd.grid(0, height);
    let (planes, tiles) = (winograd.planes(), grid.tiles());
    let mut at_points = vec![f32::NAN; winograd.kernel_len()];
    winograd.transform_kernel(&kernel, &mut at_points);
    let mut inputs = vec![f32::NAN; planes * plane_len(tiles * in_channels)];
    winograd.transform_input(&grid, &padded, &mut inputs);
    let mut d_products = vec![f32::NAN; planes * plane_len(tiles * out_channels)];
    winograd.transform_d_output(&grid, &d_output, width * out_channels, &mut d_products);

    let mut products = vec![0.0; planes * plane_len(tiles * out_channels)];
    let mut d_at_points = vec![0.0; winograd.kernel_len()];
    for (plane, tile) in (0..planes).flat_map(|plane| (0..tiles).map(move |tile| (plane, tile))) {
        for (c, o) in (0..in_channels).flat_map(|c| (0..out_channels).map(move |o| (c, o))) {
            let input = inputs[plane * plane_len(tiles * in_channels) + tile * in_channels + c];
            let product = plane * plane_len(tiles * out_channels) + tile * out_channels + o;
            let point = plane * plane_len(in_channels * out_channels) + c * out_channels + o;
            products[product] += input * at_points[point];
            d_at_points[point] += input * d_products[product];
        }
    }

    let mut output = vec![f32::NAN; conv.output_len()];
    winograd.transform_output(&grid, &products, Some(&bias), &mut output);
    assert_close("output", &conv, &output, &expected_output);
    let mut d_kernel = vec![f32::NAN; conv.kernel_len()];
    winograd.finish_gradient(&d_at_points, &mut d_kernel);
    assert_close("kernel gradient", &conv, &d_kernel, &expected_d_kernel);
}

#[test]
fn transforms_of_whole_and_cut_blocks_agree_with_plain_sums() {
    for taps in [3, 5] {
        // Whole tiles and cut ones; vectors of 4, 8 and 16 values, whole and cut.
        for (height, width, in_channels, out_channels) in [(4, 4, 16, 8), (5, 3, 9, 19)] {
            assert_agrees_with_plain_sums(Conv2d {
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
