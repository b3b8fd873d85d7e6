//! The layers that start a stage.

use crate::activation::{gelu_backward_row, gelu_row, log_softmax_backward_row, log_softmax_row};
use crate::buffer::{Buffer, with_scratch};
use crate::general_conv::GeneralConv2d;
use crate::purpose::Purpose;
use crate::shape::Conv2d;
use crate::stage::DenseStage;
use crate::sums::{add, add_rows};

use super::layer_norm::LayerNorm;

/// The layer that starts a stage. A dense layer takes the whole batch at once, all others one
/// example at a time.
#[derive(Debug)]
pub(crate) enum Head {
    /// The input itself, for a stage that only has what follows a head.
    Identity,
    Conv(Box<ConvHead>),
    GeneralConv {
        conv: GeneralConv2d,
        transposed_weights: Buffer,
    },
    Dense(Box<DenseStage>),
    LayerNorm(LayerNorm),
    Gelu,
    GlobalAvgPool {
        channels: usize,
    },
    LogSoftmax {
        classes: usize,
    },
    Add,
    /// The channels of each input.
    Concatenate(Vec<usize>),
}

/// A convolution and its packed weights.
#[derive(Debug)]
pub(crate) struct ConvHead {
    pub(crate) conv: Conv2d,
    packed_weights: Buffer,
    /// Packed weights of the transposed convolution.
    rotated_weights: Buffer,
}

/// Where a head wants the gradient of its output: how much space there is, where the first row of
/// pixels starts, and how far apart rows are. All else is zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GradientLayout {
    pub(crate) len: usize,
    pub(crate) origin: usize,
    pub(crate) row: usize,
}

impl ConvHead {
    pub(crate) fn new(conv: Conv2d) -> Self {
        Self {
            conv,
            packed_weights: Buffer::zeroed(conv.packed_len(Purpose::Training)),
            rotated_weights: Buffer::zeroed(conv.transposed_conv().packed_len(Purpose::Training)),
        }
    }

    fn forward(&self, bias: &[f32], image: &[f32], output: &mut [f32]) {
        self.with_padded(image, |padded| {
            let packed = &self.packed_weights;
            self.conv.output_rows(Purpose::Training, padded, packed, Some(bias), 0, output);
        });
    }

    fn with_padded(&self, image: &[f32], f: impl FnOnce(&[f32])) {
        with_scratch([self.conv.padded_len()], |[padded]| {
            self.conv.clear_border(padded);
            self.conv.pad(image, self.conv.low_padding(), padded);
            f(padded);
        });
    }

    /// The output gradient is the padded input of the transposed convolution.
    fn gradient_layout(&self) -> GradientLayout {
        let transposed = self.conv.transposed_conv();
        GradientLayout {
            len: transposed.padded_len(),
            origin: transposed.origin(self.conv.high_padding()),
            row: transposed.padded_row(),
        }
    }

    fn backward_params(
        &self,
        image: &[f32],
        d_output: &[f32],
        d_params: &mut [f32],
        d_packed: &mut [f32],
    ) {
        let GradientLayout { origin, row, .. } = self.gradient_layout();
        let d_bias = &mut d_params[self.conv.kernel_len()..];
        let row_len = self.conv.width * self.conv.out_channels;
        for y in 0..self.conv.height {
            add_rows(&d_output[origin + y * row..][..row_len], d_bias);
        }
        self.with_padded(image, |padded| {
            self.conv.accumulate_kernel_grad(padded, &d_output[origin..], row, d_packed);
        });
    }

    fn backward_input(&self, d_output: &[f32], d_input: &mut [f32]) {
        let transposed = self.conv.transposed_conv();
        let packed = &self.rotated_weights;
        transposed.output_rows(Purpose::Training, d_output, packed, None, 0, d_input);
    }
}

impl Head {
    /// Number of values in the gradients of kernel and bias that each group of examples sums; the
    /// gradients of a dense layer come from the whole batch.
    pub(crate) fn grads_len(&self) -> usize {
        match self {
            Head::Conv(head) => head.conv.kernel_len() + head.conv.out_channels,
            Head::GeneralConv { conv, .. } => conv.kernel_len() + conv.out_channels,
            Head::LayerNorm(norm) => 2 * norm.channels(),
            _ => 0,
        }
    }

    /// Number of values in the gradient of packed weights.
    pub(crate) fn packed_grads_len(&self) -> usize {
        match self {
            Head::Conv(head) => head.conv.packed_len(Purpose::Training),
            _ => 0,
        }
    }

    /// Where the gradient of the output is wanted, for an output of `len` values in rows of `row`.
    pub(crate) fn gradient_layout(&self, len: usize, row: usize) -> GradientLayout {
        match self {
            Head::Conv(head) => head.gradient_layout(),
            _ => GradientLayout { len, origin: 0, row },
        }
    }

    /// Takes the parameters of this step.
    pub(crate) fn prepare(&mut self, kernel: &[f32], bias: &[f32], is_training: bool) {
        match self {
            Head::Conv(head) => {
                let ConvHead { conv, packed_weights, rotated_weights } = &mut **head;
                rayon::join(
                    || conv.transform_weights(Purpose::Training, kernel, packed_weights),
                    || {
                        if is_training {
                            conv.transform_rotated_weights(kernel, rotated_weights);
                        }
                    },
                );
            }
            Head::GeneralConv { conv, transposed_weights } if is_training => {
                conv.transpose_kernel(kernel, transposed_weights);
            }
            Head::LayerNorm(norm) => norm.set(kernel, bias),
            _ => {}
        }
    }

    /// The output of an example. A dense layer has computed that of all before.
    pub(crate) fn forward(
        &self,
        (kernel, bias): (&[f32], &[f32]),
        example: usize,
        inputs: &[&[f32]],
        output: &mut [f32],
    ) {
        let input = inputs[0];
        match self {
            Head::Identity => output.copy_from_slice(input),
            Head::Conv(head) => head.forward(bias, input, output),
            Head::GeneralConv { conv, .. } => conv.forward_image(input, kernel, bias, output),
            Head::Dense(stage) => {
                output.copy_from_slice(&stage.output[example * output.len()..][..output.len()]);
            }
            Head::LayerNorm(norm) => norm.forward(input, output),
            Head::Gelu => gelu_row(input, output),
            Head::GlobalAvgPool { channels } => {
                output.fill(0.0);
                add_rows(input, output);
                let scale = *channels as f32 / input.len() as f32;
                output.iter_mut().for_each(|value| *value *= scale);
            }
            Head::LogSoftmax { classes } => {
                let rows = input.chunks_exact(*classes).zip(output.chunks_exact_mut(*classes));
                rows.for_each(|(input, output)| log_softmax_row(input, output));
            }
            Head::Add => {
                output.copy_from_slice(input);
                inputs[1..].iter().for_each(|input| add(input, output));
            }
            Head::Concatenate(channels) => {
                let row = channels.iter().sum();
                let mut first = 0;
                for (input, &channels) in inputs.iter().zip(channels) {
                    let rows = output.chunks_exact_mut(row).zip(input.chunks_exact(channels));
                    for (output, input) in rows {
                        output[first..][..channels].copy_from_slice(input);
                    }
                    first += channels;
                }
            }
        }
    }

    /// Adds the gradients of an example's kernel and bias to `d_params`, those of packed weights to
    /// `d_packed`.
    pub(crate) fn backward_params(
        &self,
        input: &[f32],
        d_output: &[f32],
        d_params: &mut [f32],
        d_packed: &mut [f32],
    ) {
        match self {
            Head::Conv(head) => head.backward_params(input, d_output, d_params, d_packed),
            Head::GeneralConv { conv, .. } => {
                let (d_kernel, d_bias) = d_params.split_at_mut(conv.kernel_len());
                conv.accumulate_grads(input, d_output, d_kernel, d_bias);
            }
            Head::LayerNorm(norm) => norm.accumulate_grads(input, d_output, d_params),
            _ => {}
        }
    }

    /// Computes the kernel gradient of a group from that of the packed weights.
    pub(crate) fn inverse_transform_grad(&self, d_packed: &[f32], d_params: &mut [f32]) {
        if let Head::Conv(head) = self {
            let d_kernel = &mut d_params[..head.conv.kernel_len()];
            head.conv.inverse_transform_grad(d_packed, d_kernel);
        }
    }

    /// The gradient of the `index`-th input of an example, given that of the output, in the
    /// [layout](Self::gradient_layout) of this head.
    pub(crate) fn backward_input(
        &self,
        index: usize,
        input: &[f32],
        output: &[f32],
        d_output: &[f32],
        d_input: &mut [f32],
    ) {
        match self {
            Head::Identity | Head::Add => d_input.copy_from_slice(d_output),
            Head::Conv(head) => head.backward_input(d_output, d_input),
            Head::GeneralConv { conv, transposed_weights } => {
                conv.backward_image(transposed_weights, d_output, d_input);
            }
            // From the whole batch.
            Head::Dense(_) => {}
            Head::LayerNorm(norm) => norm.backward(input, d_output, d_input),
            Head::Gelu => gelu_backward_row(input, d_output, d_input),
            Head::GlobalAvgPool { channels } => {
                let scale = *channels as f32 / input.len() as f32;
                for d_row in d_input.chunks_exact_mut(*channels) {
                    for (d_input, d_output) in d_row.iter_mut().zip(d_output) {
                        *d_input = d_output * scale;
                    }
                }
            }
            Head::LogSoftmax { classes } => {
                let rows = output.chunks_exact(*classes).zip(d_output.chunks_exact(*classes));
                for (d_input, (output, d_output)) in d_input.chunks_exact_mut(*classes).zip(rows) {
                    log_softmax_backward_row(output, d_output, d_input);
                }
            }
            Head::Concatenate(channels) => {
                let row = channels.iter().sum();
                let first = channels[..index].iter().sum::<usize>();
                let rows = d_input.chunks_exact_mut(channels[index]);
                for (d_input, d_output) in rows.zip(d_output.chunks_exact(row)) {
                    d_input.copy_from_slice(&d_output[first..][..channels[index]]);
                }
            }
        }
    }
}
