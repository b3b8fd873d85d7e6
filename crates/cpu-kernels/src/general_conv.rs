//! Convolution with any strides, and without padding: the matrix products of `direct` with other
//! strides.

use rayon::prelude::*;

use crate::buffer::with_scratch;
use crate::error::{Result, check_len, check_window};
use crate::gemm::{Gemm, Init, KStrides, RowStrides};
use crate::shape::{Padding, saturating_product};
use crate::sums::{MAX_PARTIALS, add, add_rows, transpose};

/// A 2D convolution of a given shape, with any strides and padding.
///
/// [`Conv2d`](crate::Conv2d) is faster for stride 1 and SAME padding.
///
/// # Shapes
/// * input `[batch, height, width, in_channels]`
/// * kernel `[kernel.0, kernel.1, in_channels, out_channels]`, bias `[out_channels]`
/// * output `[batch, output_size.0, output_size.1, out_channels]`, see
///   [`output_size`](GeneralConv2d::output_size)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralConv2d {
    /// Number of images.
    pub batch: usize,
    /// Height of the images, in pixels.
    pub height: usize,
    /// Width of the images, in pixels.
    pub width: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Height and width of the kernel, at least 1 each.
    pub kernel: (usize, usize),
    /// Steps of the kernel down and to the right, at least 1 each.
    pub strides: (usize, usize),
    /// Zeros around the images, or none.
    pub padding: Padding,
}

impl GeneralConv2d {
    /// Height and width of the output, in pixels.
    pub fn output_size(&self) -> (usize, usize) {
        (
            self.padding.output_size(self.height, self.kernel.0, self.strides.0),
            self.padding.output_size(self.width, self.kernel.1, self.strides.1),
        )
    }

    /// Number of values in the input.
    pub fn input_len(&self) -> usize {
        saturating_product(&[self.batch, self.image_len()])
    }

    /// Number of values in the kernel.
    pub fn kernel_len(&self) -> usize {
        saturating_product(&[self.kernel.0, self.kernel.1, self.in_channels, self.out_channels])
    }

    /// Number of values in the output.
    pub fn output_len(&self) -> usize {
        saturating_product(&[self.batch, self.output_image_len()])
    }

    /// `output = input ⋆ kernel + bias`.
    ///
    /// # Errors
    /// [`KernelError::Length`](crate::KernelError::Length) if a slice does not fit the shape;
    /// [`KernelError::EmptyWindow`](crate::KernelError::EmptyWindow) if a kernel size or a stride
    /// is 0.
    pub fn forward(
        &self,
        input: &[f32],
        kernel: &[f32],
        bias: &[f32],
        output: &mut [f32],
    ) -> Result<()> {
        self.check(input.len(), kernel.len(), output.len())?;
        check_len("bias", self.out_channels, bias.len())?;
        if output.is_empty() {
            return Ok(());
        }
        let outputs = output.par_chunks_mut(self.output_image_len());
        outputs.enumerate().for_each(|(index, output)| {
            let image = &input[index * self.image_len()..][..self.image_len()];
            self.forward_image(image, kernel, bias, output);
        });
        Ok(())
    }

    /// Gradient of the input, given that of the output.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    pub fn backward_input(
        &self,
        kernel: &[f32],
        d_output: &[f32],
        d_input: &mut [f32],
    ) -> Result<()> {
        self.check(d_input.len(), kernel.len(), d_output.len())?;
        d_input.fill(0.0);
        if d_input.is_empty() || d_output.is_empty() {
            return Ok(());
        }
        with_scratch([self.kernel_len()], |[transposed]| {
            self.transpose_kernel(kernel, transposed);
            let transposed = &*transposed;
            let images = d_input.par_chunks_mut(self.image_len());
            images
                .zip(d_output.par_chunks(self.output_image_len()))
                .for_each(|(d_image, d)| self.backward_image(transposed, d, d_image));
        });
        Ok(())
    }

    /// Gradients of kernel and bias, given that of the output.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    pub fn backward_kernel(
        &self,
        input: &[f32],
        d_output: &[f32],
        d_kernel: &mut [f32],
        d_bias: &mut [f32],
    ) -> Result<()> {
        self.check(input.len(), d_kernel.len(), d_output.len())?;
        check_len("bias gradient", self.out_channels, d_bias.len())?;
        d_kernel.fill(0.0);
        d_bias.fill(0.0);
        if input.is_empty() || d_output.is_empty() {
            return Ok(());
        }
        let chunk = self.batch.div_ceil(MAX_PARTIALS);
        let partial_len = self.kernel_len() + self.out_channels;
        with_scratch([self.batch.div_ceil(chunk) * partial_len], |[partials]| {
            partials.fill(0.0);
            partials
                .par_chunks_mut(partial_len)
                .zip(input.par_chunks(chunk * self.image_len()))
                .zip(d_output.par_chunks(chunk * self.output_image_len()))
                .for_each(|((partial, input), d_output)| {
                    let (d_kernel, d_bias) = partial.split_at_mut(self.kernel_len());
                    let images = input.chunks_exact(self.image_len());
                    for (image, d) in images.zip(d_output.chunks_exact(self.output_image_len())) {
                        self.accumulate_grads(image, d, d_kernel, d_bias);
                    }
                });
            for partial in partials.chunks_exact(partial_len) {
                let (kernel, bias) = partial.split_at(self.kernel_len());
                add(kernel, d_kernel);
                add(bias, d_bias);
            }
        });
        Ok(())
    }

    /// The output of one image.
    pub(crate) fn forward_image(
        &self,
        image: &[f32],
        kernel: &[f32],
        bias: &[f32],
        output: &mut [f32],
    ) {
        let (rows, columns) = self.output_size();
        let k_inner = self.kernel.1 * self.in_channels;
        let gemm = Gemm {
            m: rows * columns,
            n: self.out_channels,
            k_outer: self.kernel.0,
            k_inner,
            a_rows: RowStrides {
                inner: self.strides.1 * self.in_channels,
                group: columns,
                outer: self.strides.0 * self.padded_row(),
            },
            a: KStrides { outer: self.padded_row(), inner: 1 },
            b: KStrides { outer: k_inner * self.out_channels, inner: self.out_channels },
            c_row: self.out_channels,
            init: Init::Bias(bias),
        };
        self.with_padded(image, |padded| gemm.run(padded, kernel, output));
    }

    /// Transposes the kernel of each tap, for [`Self::backward_image`].
    pub(crate) fn transpose_kernel(&self, kernel: &[f32], transposed: &mut [f32]) {
        let tap = self.in_channels * self.out_channels;
        for (kernel, transposed) in kernel.chunks_exact(tap).zip(transposed.chunks_mut(tap)) {
            transpose(kernel, self.out_channels, transposed);
        }
    }

    /// Gradient of one image.
    pub(crate) fn backward_image(&self, transposed: &[f32], d_output: &[f32], d_image: &mut [f32]) {
        if self.padded_len() == self.image_len() {
            d_image.fill(0.0);
            self.scatter(transposed, d_output, d_image);
            return;
        }
        with_scratch([self.padded_len()], |[d_padded]| {
            d_padded.fill(0.0);
            self.scatter(transposed, d_output, d_padded);
            let row_len = self.width * self.in_channels;
            let rows = d_padded[self.origin()..].chunks(self.padded_row());
            for (d_row, padded) in d_image.chunks_exact_mut(row_len).zip(rows) {
                d_row.copy_from_slice(&padded[..row_len]);
            }
        });
    }

    /// Adds the gradients of one image.
    pub(crate) fn accumulate_grads(
        &self,
        image: &[f32],
        d_output: &[f32],
        d_kernel: &mut [f32],
        d_bias: &mut [f32],
    ) {
        self.with_padded(image, |padded| {
            self.accumulate_kernel_grad(padded, d_output, d_kernel);
        });
        add_rows(d_output, d_bias);
    }

    /// Adds the gradient of a padded image to `d_padded`: each output's gradient times the kernel,
    /// at the pixels under the kernel. `transposed` is `[taps, out_channels, in_channels]`.
    fn scatter(&self, transposed: &[f32], d_output: &[f32], d_padded: &mut [f32]) {
        let (_, columns) = self.output_size();
        let (inputs, outputs) = (self.in_channels, self.out_channels);
        let gemm = Gemm {
            m: columns,
            n: inputs,
            k_outer: 1,
            k_inner: outputs,
            a_rows: RowStrides::uniform(outputs),
            a: KStrides::uniform(1),
            b: KStrides::uniform(inputs),
            c_row: self.strides.1 * inputs,
            init: Init::Accumulate,
        };
        for (y, d_row) in d_output.chunks_exact(columns * outputs).enumerate() {
            for (index, tap) in transposed.chunks_exact(inputs * outputs).enumerate() {
                let (ky, kx) = (index / self.kernel.1, index % self.kernel.1);
                let start = (y * self.strides.0 + ky) * self.padded_row() + kx * inputs;
                gemm.run(d_row, tap, &mut d_padded[start..]);
            }
        }
    }

    /// Adds the kernel gradient of one image to `d_kernel`.
    ///
    /// Row (ky, kx, ci) of A is channel ci of the image shifted by (ky, kx).
    fn accumulate_kernel_grad(&self, padded: &[f32], d_output: &[f32], d_kernel: &mut [f32]) {
        let (rows, columns) = self.output_size();
        let group = self.kernel.1 * self.in_channels;
        let gemm = Gemm {
            m: self.kernel.0 * group,
            n: self.out_channels,
            k_outer: rows,
            k_inner: columns,
            a_rows: RowStrides { inner: 1, group, outer: self.padded_row() },
            a: KStrides {
                outer: self.strides.0 * self.padded_row(),
                inner: self.strides.1 * self.in_channels,
            },
            b: KStrides { outer: columns * self.out_channels, inner: self.out_channels },
            c_row: self.out_channels,
            init: Init::Accumulate,
        };
        gemm.run(padded, d_output, d_kernel);
    }

    /// Calls a function with the padded image: a copy, or the image itself.
    fn with_padded(&self, image: &[f32], f: impl FnOnce(&[f32])) {
        if self.padded_len() == self.image_len() {
            return f(image);
        }
        with_scratch([self.padded_len()], |[padded]| {
            padded.fill(0.0);
            let row_len = self.width * self.in_channels;
            if row_len > 0 {
                let rows = padded[self.origin()..].chunks_mut(self.padded_row());
                for (row, padded) in image.chunks_exact(row_len).zip(rows) {
                    padded[..row_len].copy_from_slice(row);
                }
            }
            f(padded);
        });
    }

    fn check(&self, input: usize, kernel: usize, output: usize) -> Result<()> {
        check_window("convolution kernel", self.kernel)?;
        check_window("convolution stride", self.strides)?;
        check_len("convolution input", self.input_len(), input)?;
        check_len("convolution kernel", self.kernel_len(), kernel)?;
        check_len("convolution output", self.output_len(), output)
    }

    /// Number of values in one input image.
    pub(crate) fn image_len(&self) -> usize {
        saturating_product(&[self.height, self.width, self.in_channels])
    }

    /// Number of values in one output image.
    pub(crate) fn output_image_len(&self) -> usize {
        let (rows, columns) = self.output_size();
        saturating_product(&[rows, columns, self.out_channels])
    }

    /// Zeros above and below, and to the left and right of the image.
    fn zeros(&self) -> [(usize, usize); 2] {
        [
            self.padding.zeros(self.height, self.kernel.0, self.strides.0),
            self.padding.zeros(self.width, self.kernel.1, self.strides.1),
        ]
    }

    /// Number of values in one row of a padded image.
    fn padded_row(&self) -> usize {
        let [_, (left, right)] = self.zeros();
        let width = self.width.saturating_add(left).saturating_add(right);
        saturating_product(&[width, self.in_channels])
    }

    /// Number of values in one padded image.
    fn padded_len(&self) -> usize {
        let [(above, below), _] = self.zeros();
        let height = self.height.saturating_add(above).saturating_add(below);
        saturating_product(&[height, self.padded_row()])
    }

    /// Offset of the image within its padded form.
    fn origin(&self) -> usize {
        let [(above, _), (left, _)] = self.zeros();
        above * self.padded_row() + left * self.in_channels
    }
}

#[cfg(test)]
mod tests;
