//! Plans the stages of a chain of layers: fusion and memory layout.

use crate::buffer::{Buffer, LINE_VALUES};
use crate::dense::Dense;
use crate::error::{KernelError, Result};
use crate::layer::Layer;
use crate::pool::{Pool2d, PoolKind, Pooling};
use crate::shape::Conv2d;
use crate::stage::{ConvStage, DenseStage, OutputView};

/// The most values in one array, 16 GiB: a guard against mistaken sizes.
const MAX_VALUES: u128 = 1 << 32;

/// The stages of a chain and its buffer sizes.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) convs: Vec<ConvStage>,
    pub(crate) denses: Vec<DenseStage>,
    pub(crate) param_lens: Vec<usize>,
    /// Number of values in the padded inputs of an image, which precede its features.
    pub(crate) padded_len: usize,
    /// Inputs of the first dense layer.
    pub(crate) features: usize,
    /// Number of pooling masks of an image.
    pub(crate) masks_len: usize,
    /// Number of values in the gradients of all convolutions.
    pub(crate) grads_len: usize,
    /// Number of values in the gradients of all packed weights.
    pub(crate) packed_grads_len: usize,
}

/// The shape of the data between two layers, for one image.
#[derive(Clone, Copy, Debug)]
enum TensorShape {
    Image { height: usize, width: usize, channels: usize },
    Flat { len: usize },
    LogProbabilities,
}

impl Plan {
    pub(crate) fn new(
        [batch, height, width, channels]: [usize; 4],
        layers: &[Layer],
    ) -> Result<Self> {
        let parametric = layers
            .iter()
            .filter(|layer| matches!(layer, Layer::Conv { .. } | Layer::Dense { .. }))
            .count();
        let mut plan = Self { param_lens: vec![0; 2 * parametric], ..Self::default() };
        checked_len(0, &[batch, height, width, channels])?;
        let mut shape = TensorShape::Image { height, width, channels };
        let mut index = 0;
        while let Some(layer) = layers.get(index) {
            let (next, used) = match (shape, layer) {
                (
                    TensorShape::Image { height, width, channels },
                    Layer::Conv { kernel, features, params },
                ) => {
                    let conv = Conv2d {
                        batch: 1,
                        height,
                        width,
                        in_channels: channels,
                        out_channels: *features,
                        kernel: *kernel,
                    };
                    plan.conv(batch, conv, *params, layers, index)?
                }
                (TensorShape::Image { height, width, channels }, Layer::Flatten) => {
                    let len = height * width * channels;
                    plan.features = len;
                    (TensorShape::Flat { len }, 1)
                }
                (TensorShape::Flat { len }, Layer::Dense { features, params }) => {
                    let dense = Dense { batch, inputs: len, outputs: *features };
                    plan.dense(dense, *params, layers, index)?
                }
                (TensorShape::Flat { .. }, Layer::LogSoftmax) if !plan.denses.is_empty() => {
                    (TensorShape::LogProbabilities, 1)
                }
                _ => return Err(chain_error(index, placement_rule(layer))),
            };
            shape = next;
            index += used;
        }
        match shape {
            TensorShape::LogProbabilities => {
                plan.link_outputs();
                Ok(plan)
            }
            _ => Err(chain_error(layers.len(), "the chain must end with LogSoftmax".to_owned())),
        }
    }

    /// Adds a convolution and the ReLU and pooling that follow it. Returns the shape of the output
    /// and the number of layers used.
    fn conv(
        &mut self,
        batch: usize,
        conv: Conv2d,
        params: (usize, usize),
        layers: &[Layer],
        index: usize,
    ) -> Result<(TensorShape, usize)> {
        let (kh, kw) = conv.kernel;
        let kernel_len = checked_len(index, &[kh, kw, conv.in_channels, conv.out_channels])?;
        let (height, width) = (conv.height + kh, conv.width + kw);
        checked_len(index, &[batch, height, width, conv.in_channels.max(conv.out_channels)])?;
        self.register_params(index, params, kernel_len, conv.out_channels)?;

        let relu = layers.get(index + 1) == Some(&Layer::Relu);
        let mut used = 1 + usize::from(relu);
        let (kind, window) = match layers.get(index + used) {
            Some(Layer::AvgPool { window }) => (PoolKind::Average, Some(*window)),
            Some(Layer::MaxPool { window }) => (PoolKind::Max, Some(*window)),
            _ => (PoolKind::Average, None),
        };
        let window = window.inspect(|_| used += 1).unwrap_or((1, 1));
        let pool_index = index + used - 1;
        let pixels = checked_len(pool_index, &[window.0, window.1])?;
        let most = Pooling::max_window_len(kind);
        if pixels > most {
            let reason =
                format!("the window has {pixels} pixels, but at most {most} are supported");
            return Err(chain_error(pool_index, reason));
        }
        let Conv2d { height, width, out_channels: channels, .. } = conv;
        let pool = Pool2d { batch: 1, height, width, channels, window };
        let (rows, columns) = pool.windows();
        if rows == 0 || columns == 0 {
            let reason =
                format!("the window {window:?} is larger than the image, {height}x{width}");
            return Err(chain_error(pool_index, reason));
        }
        let is_first = self.convs.is_empty();
        let rotated_len = if is_first { 0 } else { conv.transposed_conv().packed_len() };
        self.convs.push(ConvStage {
            conv,
            pooling: Pooling { pool, kind, relu },
            params,
            input: self.padded_len,
            output: OutputView { offset: 0, row_stride: 0 },
            masks: self.masks_len,
            grads: self.grads_len,
            packed_grad: self.packed_grads_len,
            packed_weights: Buffer::zeroed(conv.packed_len()),
            rotated_weights: Buffer::zeroed(rotated_len),
        });
        self.padded_len += conv.padded_len().next_multiple_of(LINE_VALUES);
        self.masks_len += pool.output_len();
        self.grads_len += (kernel_len + channels).next_multiple_of(LINE_VALUES);
        self.packed_grads_len += conv.packed_len().next_multiple_of(LINE_VALUES);
        Ok((TensorShape::Image { height: rows, width: columns, channels }, used))
    }

    /// Adds a dense layer and the ReLU that follows it. Returns the shape of the output and the
    /// number of layers used.
    fn dense(
        &mut self,
        dense: Dense,
        params: (usize, usize),
        layers: &[Layer],
        index: usize,
    ) -> Result<(TensorShape, usize)> {
        let kernel_len = checked_len(index, &[dense.inputs, dense.outputs])?;
        checked_len(index, &[dense.batch, dense.inputs.max(dense.outputs), 16])?;
        self.register_params(index, params, kernel_len, dense.outputs)?;
        let relu = layers.get(index + 1) == Some(&Layer::Relu);
        let needs_input_gradient = !self.convs.is_empty() || !self.denses.is_empty();
        self.denses.push(DenseStage::new(dense, relu, params, needs_input_gradient));
        Ok((TensorShape::Flat { len: dense.outputs }, 1 + usize::from(relu)))
    }

    /// Records the lengths of a layer's kernel and bias. Every parameter may be used only once.
    fn register_params(
        &mut self,
        index: usize,
        params: (usize, usize),
        kernel_len: usize,
        bias_len: usize,
    ) -> Result<()> {
        let count = self.param_lens.len();
        for (param, len) in [(params.0, kernel_len), (params.1, bias_len)] {
            match self.param_lens.get_mut(param) {
                Some(slot @ 0) => *slot = len,
                Some(_) => {
                    return Err(chain_error(index, format!("parameter {param} is used twice")));
                }
                None => {
                    let reason =
                        format!("parameter {param} is out of range: the chain has {count}");
                    return Err(chain_error(index, reason));
                }
            }
        }
        Ok(())
    }

    /// Makes each convolution write directly into the padded input of the next, and the last one
    /// into the features.
    fn link_outputs(&mut self) {
        for index in 0..self.convs.len() {
            let output = match self.convs.get(index + 1) {
                Some(next) => OutputView {
                    offset: next.input + next.conv.origin(next.conv.low_padding()),
                    row_stride: next.conv.padded_row(),
                },
                None => {
                    let pool = &self.convs[index].pooling.pool;
                    OutputView {
                        offset: self.padded_len,
                        row_stride: pool.windows().1 * pool.channels,
                    }
                }
            };
            self.convs[index].output = output;
        }
    }
}

fn chain_error(layer: usize, reason: String) -> KernelError {
    KernelError::Chain { layer, reason }
}

/// The number of values in an array of these sizes, if it is neither empty nor too large.
fn checked_len(layer: usize, sizes: &[usize]) -> Result<usize> {
    if sizes.contains(&0) {
        return Err(chain_error(layer, format!("the sizes {sizes:?} contain a 0")));
    }
    let len = sizes.iter().fold(1u128, |len, &size| len.saturating_mul(size as u128));
    if len > MAX_VALUES {
        return Err(chain_error(layer, format!("an array of {sizes:?} values is too large")));
    }
    Ok(len as usize)
}

fn placement_rule(layer: &Layer) -> String {
    let rule = match layer {
        Layer::Conv { .. } => "a convolution needs images and cannot follow Flatten",
        Layer::Relu => "ReLU must directly follow a convolution or a dense layer",
        Layer::AvgPool { .. } | Layer::MaxPool { .. } => {
            "pooling must directly follow a convolution or its ReLU"
        }
        Layer::Flatten => "the values are already flat",
        Layer::Dense { .. } => "a dense layer needs flat values: Flatten must come first",
        Layer::LogSoftmax => "LogSoftmax must follow a dense layer and end the chain",
    };
    rule.to_owned()
}
