//! Convolution by its definition: the bordered image itself is one operand of the product.

use crate::shape::Conv2d;
use crate::gemm::{Gemm, Rows, Start, Strides};

/// Rows of pixels of the output from row `y` on, `bias` added if there is one.
pub(crate) fn output_rows(
    conv: &Conv2d,
    padded: &[f32],
    kernel: &[f32],
    bias: Option<&[f32]>,
    y: usize,
    output: &mut [f32],
) {
    let depth = conv.kernel.1 * conv.in_channels;
    let gemm = Gemm {
        m: output.len() / conv.out_channels,
        n: conv.out_channels,
        segments: conv.kernel.0,
        depth,
        rows: Rows { step: conv.in_channels, run: conv.width, jump: conv.padded_row() },
        a: Strides { segment: conv.padded_row(), step: 1 },
        b: Strides { segment: depth * conv.out_channels, step: conv.out_channels },
        c_row: conv.out_channels,
        start: bias.map_or(Start::Zero, Start::Row),
    };
    gemm.run(&padded[y * conv.padded_row()..], kernel, output);
}

/// Adds one image's share to the kernel gradient. Rows of `d_output` lie `d_row` values apart.
///
/// Row (ky, kx, ci) of the product is the image shifted by (ky, kx), read in channel ci.
pub(crate) fn add_image_gradient(
    conv: &Conv2d,
    padded: &[f32],
    d_output: &[f32],
    d_row: usize,
    d_kernel: &mut [f32],
) {
    let run = conv.kernel.1 * conv.in_channels;
    let gemm = Gemm {
        m: conv.kernel.0 * run,
        n: conv.out_channels,
        segments: conv.height,
        depth: conv.width,
        rows: Rows { step: 1, run, jump: conv.padded_row() },
        a: Strides { segment: conv.padded_row(), step: conv.in_channels },
        b: Strides { segment: d_row, step: conv.out_channels },
        c_row: conv.out_channels,
        start: Start::Output,
    };
    gemm.run(padded, d_output, d_kernel);
}
