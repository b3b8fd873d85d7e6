//! The convolution and its gradients against plain loops in f64.

use super::*;

/// Deterministic values in [-1, 1].
fn values(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|at| ((at * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
}

/// Calls `visit(input, kernel, output)` with the indices of every multiply-add.
fn for_each_multiply_add(conv: &GeneralConv2d, mut visit: impl FnMut(usize, usize, usize)) {
    let GeneralConv2d { batch, height, width, in_channels, out_channels, .. } = *conv;
    let ((kh, kw), (rows, columns)) = (conv.kernel, conv.output_size());
    let [(above, _), (left, _)] = conv.zeros();
    let grid = |rows, columns| (0..rows).flat_map(move |y| (0..columns).map(move |x| (y, x)));
    for n in 0..batch {
        for (y, x) in grid(rows, columns) {
            for (ky, kx) in grid(kh, kw) {
                let (sy, sx) = (y * conv.strides.0 + ky, x * conv.strides.1 + kx);
                if !(above..above + height).contains(&sy) || !(left..left + width).contains(&sx) {
                    continue;
                }
                let source = (n * height + sy - above) * width + sx - left;
                let target = (n * rows + y) * columns + x;
                for (ci, co) in grid(in_channels, out_channels) {
                    let tap = (ky * kw + kx) * in_channels + ci;
                    let (input, output) = (source * in_channels + ci, target * out_channels + co);
                    visit(input, tap * out_channels + co, output);
                }
            }
        }
    }
}

fn assert_close(what: &str, found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-3, |largest: f64, value| largest.max(value.abs()));
    for (at, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(found) - expected).abs() / largest;
        assert!(error <= 1e-5, "{what}[{at}]: found {found}, expected {expected}");
    }
}

#[test]
fn every_stride_and_padding_matches_plain_loops() {
    for seed in 0..200 {
        let pick = |salt: usize, most: usize| (seed * 31 + salt * 17 + seed / 7 * salt) % most + 1;
        let kernel = (pick(1, 5), pick(2, 5));
        let conv = GeneralConv2d {
            batch: pick(3, 20),
            height: kernel.0 - 1 + pick(4, 7),
            width: kernel.1 - 1 + pick(5, 7),
            in_channels: pick(6, 19),
            out_channels: pick(7, 19),
            kernel,
            strides: (pick(8, 4), pick(9, 4)),
            padding: if seed % 2 == 0 { Padding::Same } else { Padding::Valid },
        };
        let what = format!("{conv:?}");
        let input = values(conv.input_len(), seed);
        let kernel = values(conv.kernel_len(), seed + 1);
        let bias = values(conv.out_channels, seed + 2);
        let d_output = values(conv.output_len(), seed + 3);

        let mut expected = bias.iter().map(|&value| f64::from(value)).collect::<Vec<_>>();
        expected = expected.repeat(conv.output_len() / conv.out_channels);
        let mut expected_input = vec![0.0; conv.input_len()];
        let mut expected_kernel = vec![0.0; conv.kernel_len()];
        for_each_multiply_add(&conv, |i, k, o| {
            expected[o] += f64::from(input[i]) * f64::from(kernel[k]);
            expected_input[i] += f64::from(kernel[k]) * f64::from(d_output[o]);
            expected_kernel[k] += f64::from(input[i]) * f64::from(d_output[o]);
        });
        let mut expected_bias = vec![0.0; conv.out_channels];
        for (at, d) in d_output.iter().enumerate() {
            expected_bias[at % conv.out_channels] += f64::from(*d);
        }

        let mut output = vec![f32::NAN; conv.output_len()];
        conv.forward(&input, &kernel, &bias, &mut output).unwrap();
        let mut d_input = vec![f32::NAN; conv.input_len()];
        conv.backward_input(&kernel, &d_output, &mut d_input).unwrap();
        let mut d_kernel = vec![f32::NAN; conv.kernel_len()];
        let mut d_bias = vec![f32::NAN; conv.out_channels];
        conv.backward_kernel(&input, &d_output, &mut d_kernel, &mut d_bias).unwrap();
        assert_close(&what, &output, &expected);
        assert_close(&what, &d_input, &expected_input);
        assert_close(&what, &d_kernel, &expected_kernel);
        assert_close(&what, &d_bias, &expected_bias);
    }
}

#[test]
fn nothing_in_gives_nothing_out() {
    let conv = GeneralConv2d {
        batch: 2,
        height: 2,
        width: 3,
        in_channels: 1,
        out_channels: 1,
        kernel: (3, 3),
        strides: (1, 1),
        padding: Padding::Valid,
    };
    // A kernel larger than the image.
    assert_eq!((conv.output_size(), conv.output_len()), ((0, 1), 0));
    conv.forward(&[0.0; 12], &[0.0; 9], &[0.0], &mut []).unwrap();
    let mut d_input = [1.0; 12];
    conv.backward_input(&[0.0; 9], &[], &mut d_input).unwrap();
    assert_eq!(d_input, [0.0; 12]);
    // Without channels only the bias is left.
    let conv = GeneralConv2d { in_channels: 0, padding: Padding::Same, ..conv };
    let mut output = [0.0; 12];
    conv.forward(&[], &[], &[1.5], &mut output).unwrap();
    assert_eq!(output, [1.5; 12]);
}
