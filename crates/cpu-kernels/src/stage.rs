//! The two kinds of stages of a compiled step: convolution with ReLU and pooling, and dense with
//! ReLU.

use rayon::prelude::*;

use crate::buffer::{Buffer, with_scratch};
use crate::dense::Dense;
use crate::parameters::Parameters;
use crate::pool::{Marks, Pooling};
use crate::shape::Conv2d;
use crate::sums::{add_rows, transpose};

/// Where rows lie in a buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) origin: usize,
    pub(crate) stride: usize,
}

/// Convolution, ReLU and pooling of one image.
#[derive(Debug)]
pub(crate) struct ConvStage {
    pub(crate) conv: Conv2d,
    pub(crate) pooling: Pooling,
    /// Positions of kernel and bias among the parameters.
    pub(crate) params: (usize, usize),
    /// Where the padded input starts among an image's activations.
    pub(crate) input: usize,
    /// Where the pooled output goes among an image's activations.
    pub(crate) output: Place,
    /// Where the marks start among an image's marks.
    pub(crate) marks: usize,
    /// Where the gradient of the kernel, then of the bias, starts in a partial gradient.
    pub(crate) gradient: usize,
    /// Where the kernel gradient starts in a group's sums, as the products give it.
    pub(crate) sum: usize,
    /// The prepared kernel.
    pub(crate) kernel: Buffer,
    /// The prepared kernel of the way back; empty if nobody asks for the input gradient.
    pub(crate) flipped: Buffer,
}

impl ConvStage {
    /// Values of the pooled output.
    pub(crate) fn output_len(&self) -> usize {
        self.pooling.pool.output_len()
    }

    /// Values of the output gradient of the convolution, with a border if it is needed for the way
    /// back.
    pub(crate) fn d_output_len(&self) -> usize {
        if self.flipped.is_empty() {
            self.conv.output_len()
        } else {
            self.conv.transposed().padded_len()
        }
    }

    pub(crate) fn load_kernel(&mut self, kernel: &[f32]) {
        let Self { conv, kernel: prepared, flipped, .. } = self;
        rayon::join(
            || conv.prepare(kernel, prepared),
            || {
                if !flipped.is_empty() {
                    conv.prepare_flipped(kernel, flipped);
                }
            },
        );
    }

    /// Rows of windows that go through together.
    fn windows_together(&self) -> usize {
        self.conv.rows_together().div_ceil(self.pooling.pool.window.0)
    }

    /// Values of the convolution output that [`Self::forward`] holds at a time.
    pub(crate) fn strip_len(&self) -> usize {
        self.windows_together() * self.pooling.pool.strip_len()
    }

    /// From the padded input to the pooled output, one strip of windows after another, so that the
    /// full convolution output never leaves the innermost cache.
    pub(crate) fn forward(
        &self,
        bias: &[f32],
        activations: &mut [f32],
        marks: &mut [u32],
        strip: &mut [f32],
    ) {
        let pool = &self.pooling.pool;
        let (rows, columns) = pool.windows();
        let pooled_len = columns * self.conv.out_channels;
        let (input, output) = activations.split_at_mut(self.output.origin);
        let input = &input[self.input..];
        for y in (0..rows).step_by(self.windows_together()) {
            let end = rows.min(y + self.windows_together());
            let strip = &mut strip[..(end - y) * pool.strip_len()];
            let first = y * pool.window.0;
            self.conv.output_rows(input, &self.kernel, Some(bias), first, strip);
            for (y, strip) in (y..end).zip(strip.chunks_exact(pool.strip_len())) {
                let output = &mut output[y * self.output.stride..][..pooled_len];
                let marks = &mut marks[self.marks + y * pooled_len..][..pooled_len];
                self.pooling.forward_row(strip, output, Some(marks));
            }
        }
    }

    /// From the gradient of the pooled output, in `gradient`, to that of the kernel, added to
    /// `sums`, that of the bias, added to `partial`, and, if there is a stage before this one, to
    /// that of the input, in `gradient`.
    pub(crate) fn backward(
        &self,
        activations: &[f32],
        marks: &[u32],
        gradient: &mut [f32],
        d_output: &mut [f32],
        sums: &mut [f32],
        partial: &mut [f32],
    ) {
        let Conv2d { height, width, out_channels, .. } = self.conv;
        let transposed = self.conv.transposed();
        let has_border = !self.flipped.is_empty();
        let (origin, stride) = if has_border {
            (transposed.origin(self.conv.high_padding()), transposed.padded_row())
        } else {
            (0, width * out_channels)
        };
        let d_output = &mut d_output[..self.d_output_len()];
        let pool = &self.pooling.pool;
        let (rows, columns) = pool.windows();
        let pooled_len = columns * out_channels;
        // Zero is what no window covers: the border, and what fills no window.
        let covered = columns * pool.window.1 * out_channels;
        let mut end = 0;
        for y in 0..rows * pool.window.0 {
            let start = origin + y * stride;
            d_output[end..start].fill(0.0);
            end = start + covered;
        }
        d_output[end..].fill(0.0);
        for y in 0..rows {
            let first = origin + y * pool.window.0 * stride;
            let marks = Marks::Noted(&marks[self.marks + y * pooled_len..][..pooled_len]);
            let gradient = &gradient[y * pooled_len..][..pooled_len];
            self.pooling.backward_row(gradient, marks, &mut d_output[first..], stride);
        }

        let d_bias = &mut partial[self.gradient + self.conv.kernel_len()..][..out_channels];
        for y in 0..height {
            let row = &d_output[origin + y * stride..][..width * out_channels];
            add_rows(row, d_bias);
        }
        let input = &activations[self.input..];
        let sum = &mut sums[self.sum..][..self.conv.prepared_len()];
        self.conv.add_image_gradient(input, &d_output[origin..], stride, sum);
        if has_border {
            let d_input = &mut gradient[..self.conv.input_len()];
            transposed.output_rows(d_output, &self.flipped, None, 0, d_input);
        }
    }

    /// After a group's last image: from the gradient of the prepared kernel, in `sums`, to that of
    /// the kernel, in `partial`.
    pub(crate) fn finish_gradient(&self, sums: &[f32], partial: &mut [f32]) {
        let sum = &sums[self.sum..][..self.conv.prepared_len()];
        let d_kernel = &mut partial[self.gradient..][..self.conv.kernel_len()];
        self.conv.finish_gradient(sum, d_kernel);
    }
}

/// Dense layer and ReLU of a whole batch.
#[derive(Debug)]
pub(crate) struct DenseStage {
    pub(crate) dense: Dense,
    pub(crate) relu: bool,
    /// Positions of kernel and bias among the parameters.
    pub(crate) params: (usize, usize),
    /// Whether anybody asks for the input gradient.
    pub(crate) needs_input_gradient: bool,
    partials: Buffer,
    pub(crate) output: Buffer,
    pub(crate) d_output: Buffer,
    d_output_t: Buffer,
    d_bias: Buffer,
    d_input_blocks: Buffer,
}

impl DenseStage {
    pub(crate) fn new(
        dense: Dense,
        relu: bool,
        params: (usize, usize),
        needs_input_gradient: bool,
    ) -> Self {
        Self {
            dense,
            relu,
            params,
            needs_input_gradient,
            // A smaller batch may be cut into more partial sums, but never into more values.
            partials: Buffer::zeroed(
                (1..=dense.batch)
                    .map(|batch| Dense { batch, ..dense }.partials_len())
                    .max()
                    .unwrap_or(0),
            ),
            output: Buffer::zeroed(dense.output_len()),
            d_output: Buffer::zeroed(dense.output_len()),
            d_output_t: Buffer::zeroed(dense.output_len()),
            d_bias: Buffer::zeroed(dense.outputs),
            d_input_blocks: Buffer::zeroed(dense.input_len()),
        }
    }

    /// `batch` rows of the input, `input_row` values apart, to the output.
    pub(crate) fn forward(
        &mut self,
        batch: usize,
        input: &[f32],
        input_row: usize,
        kernel: &[f32],
        bias: &[f32],
    ) {
        let dense = Dense { batch, ..self.dense };
        let partials = &mut self.partials[..dense.partials_len()];
        dense.multiply(input, input_row, kernel, partials);
        dense.sum_partials(partials, bias, self.relu, &mut self.output[..dense.output_len()]);
    }

    /// From `d_output` to the gradients of input, kernel and bias. Block by block: the kernel's
    /// rows give the input gradient, then their own gradient is formed and used while they are
    /// still in the cache.
    pub(crate) fn backward(
        &mut self,
        batch: usize,
        input: &[f32],
        input_row: usize,
        parameters: &mut Parameters,
    ) {
        let dense = Dense { batch, ..self.dense };
        let d_output = &self.d_output[..dense.output_len()];
        let d_output_t = &mut self.d_output_t[..dense.output_len()];
        transpose(d_output, dense.outputs, d_output_t);
        let d_output_t = &*d_output_t;
        let rows = dense.block_rows();
        parameters
            .target(self.params.0)
            .par_blocks(rows * dense.outputs)
            .zip(self.d_input_blocks[..dense.input_len()].par_chunks_mut(rows * batch))
            .enumerate()
            .for_each(|(block, (target, d_input))| {
                if self.needs_input_gradient {
                    dense.input_gradient_block(target.param(), d_output_t, d_input);
                }
                with_scratch([target.param().len()], |[gradient]| {
                    let input = &input[block * rows..];
                    dense.kernel_gradient_block(input, input_row, d_output, gradient);
                    target.apply(gradient);
                });
            });
        self.d_bias.fill(0.0);
        add_rows(d_output, &mut self.d_bias);
        parameters.target(self.params.1).apply(&self.d_bias);
    }

    /// One image's input gradient, after [`Self::backward`] with the same batch.
    pub(crate) fn input_gradient(&self, batch: usize, image: usize, gradient: &mut [f32]) {
        let dense = Dense { batch, ..self.dense };
        dense.gather_input_gradient(&self.d_input_blocks[..dense.input_len()], image, gradient);
    }

    /// Takes the input gradient of the layer above as this stage's output gradient, back through
    /// the ReLU.
    pub(crate) fn take_gradient(&mut self, batch: usize, above: &Self) {
        let outputs = self.dense.outputs;
        self.d_output
            .par_chunks_exact_mut(outputs)
            .take(batch)
            .enumerate()
            .for_each(|(image, d_output)| above.input_gradient(batch, image, d_output));
        self.mask_gradient(batch);
    }

    /// Takes the output gradient back through the ReLU, in place.
    pub(crate) fn mask_gradient(&mut self, batch: usize) {
        if !self.relu {
            return;
        }
        let len = batch * self.dense.outputs;
        for (d_output, output) in self.d_output[..len].iter_mut().zip(&self.output[..len]) {
            *d_output = if *output > 0.0 { *d_output } else { 0.0 };
        }
    }
}
