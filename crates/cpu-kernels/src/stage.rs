//! The fused stages of a compiled step: convolution + ReLU + pooling, and dense + ReLU.

use rayon::prelude::*;

use crate::buffer::{Buffer, with_scratch};
use crate::chain::FusedDense;
use crate::dense::Dense;
use crate::parameters::Parameters;
use crate::pool::Pooling;
use crate::purpose::Purpose;
use crate::shape::Conv2d;
use crate::sums::{add_rows, transpose};

/// The rows of an output within a larger buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutputView {
    pub(crate) offset: usize,
    pub(crate) row_stride: usize,
}

/// Convolution, ReLU and pooling of one image.
#[derive(Debug)]
pub(crate) struct ConvStage {
    pub(crate) conv: Conv2d,
    pub(crate) pooling: Pooling,
    /// Indices of kernel and bias in the list of parameters.
    pub(crate) params: (usize, usize),
    /// Offset of the padded input in the activations of an image.
    pub(crate) input: usize,
    /// The pooled output in the activations of an image.
    pub(crate) output: OutputView,
    /// Offset of the pooling masks in those of an image.
    pub(crate) masks: usize,
    /// Offset of the kernel gradient, followed by that of the bias, in the gradients of a group.
    pub(crate) grads: usize,
    /// Offset of the gradient of the packed weights in those of a group.
    pub(crate) packed_grad: usize,
    /// Packed weights for the latest purpose.
    pub(crate) packed_weights: Buffer,
    /// Packed weights of the transposed convolution; empty in the first stage, which needs no input
    /// gradient.
    pub(crate) rotated_weights: Buffer,
}

impl ConvStage {
    /// Number of values in the pooled output.
    pub(crate) fn output_len(&self) -> usize {
        self.pooling.pool.output_len()
    }

    /// Number of values in the gradient of the convolution output, padded if the input gradient is
    /// needed.
    pub(crate) fn d_output_len(&self) -> usize {
        if self.rotated_weights.is_empty() {
            self.conv.output_len()
        } else {
            self.conv.transposed_conv().padded_len()
        }
    }

    /// Packs the kernel. For training also packs the rotated kernel for the backward pass.
    pub(crate) fn transform_weights(&mut self, purpose: Purpose, kernel: &[f32]) {
        let Self { conv, packed_weights, rotated_weights, .. } = self;
        rayon::join(
            || conv.transform_weights(purpose, kernel, packed_weights),
            || {
                if purpose == Purpose::Training && !rotated_weights.is_empty() {
                    conv.transform_rotated_weights(kernel, rotated_weights);
                }
            },
        );
    }

    /// Rows of windows that are computed together.
    fn window_rows_per_block(&self, purpose: Purpose) -> usize {
        self.conv.rows_per_block(purpose).div_ceil(self.pooling.pool.window.0)
    }

    /// Number of values of the convolution output that [`Self::forward`] holds at a time.
    pub(crate) fn block_len(&self, purpose: Purpose) -> usize {
        self.window_rows_per_block(purpose) * self.pooling.pool.band_len()
    }

    /// Computes the pooled output from the activations of an image.
    pub(crate) fn forward(
        &self,
        bias: &[f32],
        activations: &mut [f32],
        masks: &mut [u32],
        block: &mut [f32],
    ) {
        let (input, output) = activations.split_at_mut(self.output.offset);
        let masks = Some(&mut masks[self.masks..]);
        self.pooled_output(Purpose::Training, bias, &input[self.input..], output, masks, block);
    }

    /// The same without masks. `features` is the output of the last stage; the others write into
    /// the padded input of the next.
    pub(crate) fn infer(
        &self,
        bias: &[f32],
        padded: &mut [f32],
        features: Option<&mut [f32]>,
        block: &mut [f32],
    ) {
        let (input, next_input) = padded.split_at_mut(self.output.offset);
        let output = features.unwrap_or(next_input);
        self.pooled_output(Purpose::Inference, bias, &input[self.input..], output, None, block);
    }

    /// Computes the pooled output from the padded input, one block of row bands at a time, so that
    /// the convolution output stays in the L1 cache.
    fn pooled_output(
        &self,
        purpose: Purpose,
        bias: &[f32],
        input: &[f32],
        output: &mut [f32],
        mut masks: Option<&mut [u32]>,
        block: &mut [f32],
    ) {
        let pool = &self.pooling.pool;
        let (rows, columns) = pool.windows();
        let pooled_len = columns * self.conv.out_channels;
        let rows_per_block = self.window_rows_per_block(purpose);
        for y in (0..rows).step_by(rows_per_block) {
            let end = rows.min(y + rows_per_block);
            let block = &mut block[..(end - y) * pool.band_len()];
            let first = y * pool.window.0;
            self.conv.output_rows(purpose, input, &self.packed_weights, Some(bias), first, block);
            for (y, band) in (y..end).zip(block.chunks_exact(pool.band_len())) {
                let output = &mut output[y * self.output.row_stride..][..pooled_len];
                let masks =
                    masks.as_deref_mut().map(|masks| &mut masks[y * pooled_len..][..pooled_len]);
                self.pooling.forward_row(band, output, masks);
            }
        }
    }

    /// Backward pass of one image. `gradient` holds the gradient of the pooled output. Adds that of
    /// the packed weights to `packed_grads` and that of the bias to `grads`. If another stage
    /// precedes this one, replaces `gradient` with that of the input.
    pub(crate) fn backward(
        &self,
        activations: &[f32],
        masks: &[u32],
        gradient: &mut [f32],
        d_output: &mut [f32],
        packed_grads: &mut [f32],
        grads: &mut [f32],
    ) {
        let Conv2d { height, width, out_channels, .. } = self.conv;
        let transposed = self.conv.transposed_conv();
        let needs_input_gradient = !self.rotated_weights.is_empty();
        let (origin, stride) = if needs_input_gradient {
            (transposed.origin(self.conv.high_padding()), transposed.padded_row())
        } else {
            (0, width * out_channels)
        };
        let d_output = &mut d_output[..self.d_output_len()];
        let (gradient_len, masks) = (self.output_len(), &masks[self.masks..]);
        self.pooling.unpool(&gradient[..gradient_len], masks, d_output, origin, stride);

        let d_bias = &mut grads[self.grads + self.conv.kernel_len()..][..out_channels];
        for y in 0..height {
            let row = &d_output[origin + y * stride..][..width * out_channels];
            add_rows(row, d_bias);
        }
        let input = &activations[self.input..];
        let d_packed =
            &mut packed_grads[self.packed_grad..][..self.conv.packed_len(Purpose::Training)];
        self.conv.accumulate_kernel_grad(input, &d_output[origin..], stride, d_packed);
        if needs_input_gradient {
            let d_input = &mut gradient[..self.conv.input_len()];
            transposed.output_rows(
                Purpose::Training,
                d_output,
                &self.rotated_weights,
                None,
                0,
                d_input,
            );
        }
    }

    /// Computes the kernel gradient of a group from that of the packed weights.
    pub(crate) fn inverse_transform_grad(&self, packed_grads: &[f32], grads: &mut [f32]) {
        let d_packed = &packed_grads[self.packed_grad..][..self.conv.packed_len(Purpose::Training)];
        let d_kernel = &mut grads[self.grads..][..self.conv.kernel_len()];
        self.conv.inverse_transform_grad(d_packed, d_kernel);
    }
}

/// Dense layer and ReLU of a batch.
#[derive(Debug)]
pub(crate) struct DenseStage {
    pub(crate) dense: Dense,
    pub(crate) relu: bool,
    /// Indices of kernel and bias in the list of parameters.
    pub(crate) params: (usize, usize),
    /// False in the first stage of the network.
    pub(crate) needs_input_gradient: bool,
    partials: Buffer,
    pub(crate) output: Buffer,
    pub(crate) d_output: Buffer,
    d_output_t: Buffer,
    d_bias: Buffer,
    d_input_blocks: Buffer,
}

impl DenseStage {
    pub(crate) fn new(layer: FusedDense, needs_input_gradient: bool) -> Self {
        let FusedDense { dense, relu, params } = layer;
        Self {
            dense,
            relu,
            params,
            needs_input_gradient,
            // A smaller batch may need more space, because it has more partial sums.
            partials: Buffer::zeroed(
                (1..=dense.batch)
                    .map(|batch| Dense { batch, ..dense }.partials_len(Purpose::Training))
                    .chain([dense.partials_len(Purpose::Inference)])
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

    /// Computes the output of the first `batch` rows. `input_row` is the stride between rows of the
    /// input.
    pub(crate) fn forward(
        &mut self,
        purpose: Purpose,
        batch: usize,
        input: &[f32],
        input_row: usize,
        kernel: &[f32],
        bias: &[f32],
    ) {
        let dense = Dense { batch, ..self.dense };
        let partials = &mut self.partials[..dense.partials_len(purpose)];
        dense.multiply(purpose, input, input_row, kernel, partials);
        dense.sum_partials(partials, bias, self.relu, &mut self.output[..dense.output_len()]);
    }

    /// Computes the gradients of input, kernel and bias from `d_output`, and applies the last two.
    /// The kernel is processed in blocks of rows: each block first contributes to the input
    /// gradient and is then updated while it is still in the cache.
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
            .update(self.params.0)
            .par_blocks(rows * dense.outputs)
            .zip(self.d_input_blocks[..dense.input_len()].par_chunks_mut(rows * batch))
            .enumerate()
            .for_each(|(block, (update, d_input))| {
                if self.needs_input_gradient {
                    dense.input_gradient_block(update.param, d_output_t, d_input);
                }
                with_scratch([update.param.len()], |[gradient]| {
                    let input = &input[block * rows..];
                    dense.kernel_gradient_block(input, input_row, d_output, gradient);
                    update.apply(gradient);
                });
            });
        self.d_bias.fill(0.0);
        add_rows(d_output, &mut self.d_bias);
        parameters.update(self.params.1).apply(&self.d_bias);
    }

    /// Copies the input gradient of one image, after [`Self::backward`] with the same batch.
    pub(crate) fn input_gradient(&self, batch: usize, image: usize, gradient: &mut [f32]) {
        let dense = Dense { batch, ..self.dense };
        dense.gather_input_gradient(&self.d_input_blocks[..dense.input_len()], image, gradient);
    }

    /// Takes the input gradient of the next stage as the output gradient of this one, and
    /// backpropagates it through the ReLU.
    pub(crate) fn backprop_from(&mut self, batch: usize, next: &Self) {
        let outputs = self.dense.outputs;
        self.d_output
            .par_chunks_exact_mut(outputs)
            .take(batch)
            .enumerate()
            .for_each(|(image, d_output)| next.input_gradient(batch, image, d_output));
        self.relu_backward_in_place(batch);
    }

    /// Backpropagates the output gradient through the ReLU, if there is one, in place.
    pub(crate) fn relu_backward_in_place(&mut self, batch: usize) {
        if !self.relu {
            return;
        }
        let len = batch * self.dense.outputs;
        for (d_output, output) in self.d_output[..len].iter_mut().zip(&self.output[..len]) {
            *d_output = if *output > 0.0 { *d_output } else { 0.0 };
        }
    }
}
