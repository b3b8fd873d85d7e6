//! Convolution: NHWC images, HWIO kernels, SAME padding, stride 1, cross-correlation as in XLA.

use rayon::prelude::*;

use crate::buffer::with_scratch;
use crate::direct;
use crate::error::{Result, check_len, check_window};
use crate::shape::Conv2d;
use crate::sums::{MAX_PARTIALS, add, add_rows, transpose};
use crate::winograd::Winograd;

impl Conv2d {
    /// `output = input ⋆ kernel + bias`.
    ///
    /// # Errors
    ///
    /// If a slice does not fit the shape, or the kernel has no extent.
    pub fn forward(
        &self,
        input: &[f32],
        kernel: &[f32],
        bias: &[f32],
        output: &mut [f32],
    ) -> Result<()> {
        self.check(input.len(), kernel.len(), output.len())?;
        check_len("bias", self.out_channels, bias.len())?;
        with_scratch([self.prepared_len()], |[prepared]| {
            self.prepare(kernel, prepared);
            self.correlate(input, prepared, Some(bias), self.low_padding(), output);
        });
        Ok(())
    }

    /// Derivative of the loss with respect to the input, from that with respect to the output.
    ///
    /// # Errors
    ///
    /// If a slice does not fit the shape, or the kernel has no extent.
    pub fn backward_input(
        &self,
        kernel: &[f32],
        d_output: &[f32],
        d_input: &mut [f32],
    ) -> Result<()> {
        self.check(d_input.len(), kernel.len(), d_output.len())?;
        let transposed = self.transposed();
        with_scratch([transposed.prepared_len()], |[prepared]| {
            self.prepare_flipped(kernel, prepared);
            transposed.correlate(d_output, prepared, None, self.high_padding(), d_input);
        });
        Ok(())
    }

    /// Derivatives of the loss with respect to kernel and bias, from that with respect to the
    /// output.
    ///
    /// # Errors
    ///
    /// If a slice does not fit the shape, or the kernel has no extent.
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
            partials
                .par_chunks_mut(partial_len)
                .zip(input.par_chunks(chunk * self.image_len()))
                .zip(d_output.par_chunks(chunk * self.d_image_len()))
                .for_each(|((partial, input), d_output)| {
                    let (d_kernel, d_bias) = partial.split_at_mut(self.kernel_len());
                    self.sum_gradients(input, d_output, d_kernel, d_bias);
                });
            for partial in partials.chunks_exact(partial_len) {
                let (kernel, bias) = partial.split_at(self.kernel_len());
                add(kernel, d_kernel);
                add(bias, d_bias);
            }
        });
        Ok(())
    }

    /// Sums the shares of some images in the gradients of kernel and bias.
    fn sum_gradients(
        &self,
        input: &[f32],
        d_output: &[f32],
        d_kernel: &mut [f32],
        d_bias: &mut [f32],
    ) {
        let images = input.chunks_exact(self.image_len());
        with_scratch([self.padded_len(), self.prepared_len()], |[padded, sum]| {
            padded.fill(0.0);
            sum.fill(0.0);
            d_bias.fill(0.0);
            for (image, d_image) in images.zip(d_output.chunks_exact(self.d_image_len())) {
                self.pad(image, self.low_padding(), padded);
                self.add_image_gradient(padded, d_image, self.width * self.out_channels, sum);
                add_rows(d_image, d_bias);
            }
            self.finish_gradient(sum, d_kernel);
        });
    }

    fn check(&self, input: usize, kernel: usize, output: usize) -> Result<()> {
        check_window("convolution kernel", self.kernel)?;
        check_len("convolution input", self.input_len(), input)?;
        check_len("convolution kernel", self.kernel_len(), kernel)?;
        check_len("convolution output", self.output_len(), output)
    }

    /// Correlates every padded image with the prepared kernel, `low` pixels of padding above and to
    /// the left.
    fn correlate(
        &self,
        input: &[f32],
        prepared: &[f32],
        bias: Option<&[f32]>,
        low: (usize, usize),
        output: &mut [f32],
    ) {
        if output.is_empty() {
            return;
        }
        output.par_chunks_mut(self.height * self.width * self.out_channels).enumerate().for_each(
            |(index, output)| {
                let image = &input[index * self.image_len()..][..self.image_len()];
                with_scratch([self.padded_len()], |[padded]| {
                    padded.fill(0.0);
                    self.pad(image, low, padded);
                    self.output_rows(padded, prepared, bias, 0, output);
                });
            },
        );
    }

    /// Copies an image into its padded form, whose border is zero already.
    pub(crate) fn pad(&self, image: &[f32], low: (usize, usize), padded: &mut [f32]) {
        let row_len = self.width * self.in_channels;
        if row_len == 0 {
            return;
        }
        let rows = padded[self.origin(low)..].chunks_mut(self.padded_row());
        for (row, padded) in image.chunks_exact(row_len).zip(rows) {
            padded[..row_len].copy_from_slice(row);
        }
    }

    /// Values of the kernel, and of its gradient, in the form that the products take.
    pub(crate) fn prepared_len(&self) -> usize {
        Winograd::new(*self).map_or(self.kernel_len(), |winograd| winograd.kernel_len())
    }

    /// Brings the kernel into the form that the products take.
    pub(crate) fn prepare(&self, kernel: &[f32], prepared: &mut [f32]) {
        match Winograd::new(*self) {
            Some(winograd) => winograd.transform_kernel(kernel, prepared),
            None => prepared.copy_from_slice(kernel),
        }
    }

    /// Brings the kernel into the form that [`Self::transposed`] takes on the way back.
    pub(crate) fn prepare_flipped(&self, kernel: &[f32], prepared: &mut [f32]) {
        with_scratch([self.kernel_len()], |[flipped]| {
            self.flip(kernel, flipped);
            self.transposed().prepare(flipped, prepared);
        });
    }

    /// How many rows of the output are best computed together.
    pub(crate) fn rows_together(&self) -> usize {
        Winograd::new(*self).map_or(1, |winograd| winograd.rows_together())
    }

    /// Rows of pixels of the output from row `y` on, `bias` added if there is one.
    pub(crate) fn output_rows(
        &self,
        padded: &[f32],
        prepared: &[f32],
        bias: Option<&[f32]>,
        y: usize,
        output: &mut [f32],
    ) {
        match Winograd::new(*self) {
            Some(winograd) => winograd.output_rows(padded, prepared, bias, y, output),
            None => direct::output_rows(self, padded, prepared, bias, y, output),
        }
    }

    /// Adds one image's share to the kernel gradient, in the form that the products give. Rows of
    /// `d_output` lie `d_row` values apart.
    pub(crate) fn add_image_gradient(
        &self,
        padded: &[f32],
        d_output: &[f32],
        d_row: usize,
        sum: &mut [f32],
    ) {
        match Winograd::new(*self) {
            Some(winograd) => winograd.add_image_gradient(padded, d_output, d_row, sum),
            None => direct::add_image_gradient(self, padded, d_output, d_row, sum),
        }
    }

    /// From the kernel gradient in the form that the products give to the gradient itself.
    pub(crate) fn finish_gradient(&self, sum: &[f32], d_kernel: &mut [f32]) {
        match Winograd::new(*self) {
            Some(winograd) => winograd.finish_gradient(sum, d_kernel),
            None => d_kernel.copy_from_slice(sum),
        }
    }

    /// Turns the kernel by 180 degrees and exchanges its channels: `[kh, kw, out_channels,
    /// in_channels]`.
    fn flip(&self, kernel: &[f32], flipped: &mut [f32]) {
        let tap = self.in_channels * self.out_channels;
        if tap == 0 {
            return;
        }
        for (kernel, flipped) in kernel.chunks_exact(tap).zip(flipped.chunks_exact_mut(tap).rev()) {
            transpose(kernel, self.out_channels, flipped);
        }
    }
}
