//! Direct convolution: the zero-padded image itself is one operand of the product.

use crate::gemm::{Gemm, Init, KStrides, RowStrides};
use crate::shape::Conv2d;

/// Fills `output` with rows of pixels of the convolution, starting at row `y`.
pub(crate) fn output_rows(
    conv: &Conv2d,
    padded: &[f32],
    kernel: &[f32],
    bias: Option<&[f32]>,
    y: usize,
    output: &mut [f32],
) {
    let k_inner = conv.kernel.1 * conv.in_channels;
    let gemm = Gemm {
        m: output.len() / conv.out_channels,
        n: conv.out_channels,
        k_outer: conv.kernel.0,
        k_inner,
        a_rows: RowStrides { inner: conv.in_channels, group: conv.width, outer: conv.padded_row() },
        a: KStrides { outer: conv.padded_row(), inner: 1 },
        b: KStrides { outer: k_inner * conv.out_channels, inner: conv.out_channels },
        c_row: conv.out_channels,
        init: bias.map_or(Init::Zero, Init::Bias),
    };
    gemm.run(&padded[y * conv.padded_row()..], kernel, output);
}

/// Adds the kernel gradient of one image to `d_kernel`. `d_row` is the stride between rows of
/// pixels of `d_output`.
///
/// Row (ky, kx, ci) of A is channel ci of the image shifted by (ky, kx).
pub(crate) fn accumulate_kernel_grad(
    conv: &Conv2d,
    padded: &[f32],
    d_output: &[f32],
    d_row: usize,
    d_kernel: &mut [f32],
) {
    let group = conv.kernel.1 * conv.in_channels;
    let gemm = Gemm {
        m: conv.kernel.0 * group,
        n: conv.out_channels,
        k_outer: conv.height,
        k_inner: conv.width,
        a_rows: RowStrides { inner: 1, group, outer: conv.padded_row() },
        a: KStrides { outer: conv.padded_row(), inner: conv.in_channels },
        b: KStrides { outer: d_row, inner: conv.out_channels },
        c_row: conv.out_channels,
        init: Init::Accumulate,
    };
    gemm.run(padded, d_output, d_kernel);
}
