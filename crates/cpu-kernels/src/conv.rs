//! Convolution: NHWC images, HWIO kernels, SAME padding, stride 1, cross-correlation as in XLA.
//!
//! Both algorithms, `direct` and `winograd`, take packed weights: the kernel itself, or the kernel
//! in the Winograd domain.

use rayon::prelude::*;

use crate::buffer::with_scratch;
use crate::direct;
use crate::error::{Result, check_len, check_window};
use crate::purpose::Purpose;
use crate::shape::Conv2d;
use crate::sums::{MAX_PARTIALS, add, add_rows, transpose};
use crate::winograd::Winograd;

impl Conv2d {
    /// `output = input ⋆ kernel + bias`.
    ///
    /// # Errors
    /// [`KernelError::Length`](crate::KernelError::Length) if a slice does not fit the shape;
    /// [`KernelError::EmptyWindow`](crate::KernelError::EmptyWindow) if the kernel height or width
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
        with_scratch([self.packed_len(Purpose::Training)], |[packed]| {
            self.transform_weights(Purpose::Training, kernel, packed);
            self.correlate(input, packed, Some(bias), self.low_padding(), output);
        });
        Ok(())
    }

    /// Gradient of the input, given that of the output.
    ///
    /// # Errors
    /// [`KernelError::Length`](crate::KernelError::Length) if a slice does not fit the shape;
    /// [`KernelError::EmptyWindow`](crate::KernelError::EmptyWindow) if the kernel height or width
    /// is 0.
    pub fn backward_input(
        &self,
        kernel: &[f32],
        d_output: &[f32],
        d_input: &mut [f32],
    ) -> Result<()> {
        self.check(d_input.len(), kernel.len(), d_output.len())?;
        let transposed = self.transposed_conv();
        with_scratch([transposed.packed_len(Purpose::Training)], |[packed]| {
            self.transform_rotated_weights(kernel, packed);
            transposed.correlate(d_output, packed, None, self.high_padding(), d_input);
        });
        Ok(())
    }

    /// Gradients of kernel and bias, given that of the output.
    ///
    /// # Errors
    /// [`KernelError::Length`](crate::KernelError::Length) if a slice does not fit the shape;
    /// [`KernelError::EmptyWindow`](crate::KernelError::EmptyWindow) if the kernel height or width
    /// is 0.
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
                .zip(d_output.par_chunks(chunk * self.output_image_len()))
                .for_each(|((partial, input), d_output)| {
                    let (d_kernel, d_bias) = partial.split_at_mut(self.kernel_len());
                    self.accumulate_grads(input, d_output, d_kernel, d_bias);
                });
            for partial in partials.chunks_exact(partial_len) {
                let (kernel, bias) = partial.split_at(self.kernel_len());
                add(kernel, d_kernel);
                add(bias, d_bias);
            }
        });
        Ok(())
    }

    /// Gradients of kernel and bias, summed over some images.
    fn accumulate_grads(
        &self,
        input: &[f32],
        d_output: &[f32],
        d_kernel: &mut [f32],
        d_bias: &mut [f32],
    ) {
        let images = input.chunks_exact(self.image_len());
        with_scratch(
            [self.padded_len(), self.packed_len(Purpose::Training)],
            |[padded, d_packed]| {
                padded.fill(0.0);
                d_packed.fill(0.0);
                d_bias.fill(0.0);
                for (image, d_image) in images.zip(d_output.chunks_exact(self.output_image_len())) {
                    self.pad(image, self.low_padding(), padded);
                    self.accumulate_kernel_grad(
                        padded,
                        d_image,
                        self.width * self.out_channels,
                        d_packed,
                    );
                    add_rows(d_image, d_bias);
                }
                self.inverse_transform_grad(d_packed, d_kernel);
            },
        );
    }

    fn check(&self, input: usize, kernel: usize, output: usize) -> Result<()> {
        check_window("convolution kernel", self.kernel)?;
        check_len("convolution input", self.input_len(), input)?;
        check_len("convolution kernel", self.kernel_len(), kernel)?;
        check_len("convolution output", self.output_len(), output)
    }

    /// Cross-correlates every image with the packed kernel, with `low` pixels of padding above and
    /// to the left.
    fn correlate(
        &self,
        input: &[f32],
        packed: &[f32],
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
                    self.output_rows(Purpose::Training, padded, packed, bias, 0, output);
                });
            },
        );
    }

    /// Copies an image into its padded form, whose border must already be zero.
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

    /// Zeroes the border of a padded image.
    pub(crate) fn clear_border(&self, padded: &mut [f32]) {
        let row_len = self.width * self.in_channels;
        let origin = self.origin(self.low_padding());
        let mut end = 0;
        for y in 0..self.height {
            let start = origin + y * self.padded_row();
            padded[end..start].fill(0.0);
            end = start + row_len;
        }
        padded[end..self.padded_len()].fill(0.0);
    }

    /// Number of values in the packed weights and in their gradient.
    pub(crate) fn packed_len(&self, purpose: Purpose) -> usize {
        Winograd::new(*self, purpose)
            .map_or(self.kernel_len(), |winograd| winograd.transformed_len())
    }

    /// Packs the kernel for [`Self::output_rows`].
    pub(crate) fn transform_weights(&self, purpose: Purpose, kernel: &[f32], packed: &mut [f32]) {
        match Winograd::new(*self, purpose) {
            Some(winograd) => winograd.transform_weights(kernel, packed),
            None => packed.copy_from_slice(kernel),
        }
    }

    /// Packs the rotated kernel for [`Self::transposed_conv`], which computes the input gradient.
    pub(crate) fn transform_rotated_weights(&self, kernel: &[f32], packed: &mut [f32]) {
        with_scratch([self.kernel_len()], |[rotated]| {
            self.rotate_kernel(kernel, rotated);
            self.transposed_conv().transform_weights(Purpose::Training, rotated, packed);
        });
    }

    /// The number of output rows that are best computed together.
    pub(crate) fn rows_per_block(&self, purpose: Purpose) -> usize {
        Winograd::new(*self, purpose).map_or(1, |winograd| winograd.rows_per_block())
    }

    /// Fills `output` with rows of pixels of the convolution, starting at row `y`.
    pub(crate) fn output_rows(
        &self,
        purpose: Purpose,
        padded: &[f32],
        packed: &[f32],
        bias: Option<&[f32]>,
        y: usize,
        output: &mut [f32],
    ) {
        match Winograd::new(*self, purpose) {
            Some(winograd) => winograd.output_rows(padded, packed, bias, y, output),
            None => direct::output_rows(self, padded, packed, bias, y, output),
        }
    }

    /// Adds the kernel gradient of one image to `d_packed`, the gradient of the packed weights.
    /// `d_row` is the stride between rows of pixels of `d_output`.
    pub(crate) fn accumulate_kernel_grad(
        &self,
        padded: &[f32],
        d_output: &[f32],
        d_row: usize,
        d_packed: &mut [f32],
    ) {
        match Winograd::new(*self, Purpose::Training) {
            Some(winograd) => winograd.accumulate_kernel_grad(padded, d_output, d_row, d_packed),
            None => direct::accumulate_kernel_grad(self, padded, d_output, d_row, d_packed),
        }
    }

    /// Computes the kernel gradient from that of the packed weights.
    pub(crate) fn inverse_transform_grad(&self, d_packed: &[f32], d_kernel: &mut [f32]) {
        match Winograd::new(*self, Purpose::Training) {
            Some(winograd) => winograd.inverse_transform_grad(d_packed, d_kernel),
            None => d_kernel.copy_from_slice(d_packed),
        }
    }

    /// Rotates the kernel by 180 degrees and swaps its channels: `[kh, kw, out_channels,
    /// in_channels]`.
    fn rotate_kernel(&self, kernel: &[f32], rotated: &mut [f32]) {
        let tap = self.in_channels * self.out_channels;
        if tap == 0 {
            return;
        }
        for (kernel, rotated) in kernel.chunks_exact(tap).zip(rotated.chunks_exact_mut(tap).rev()) {
            transpose(kernel, self.out_channels, rotated);
        }
    }
}
