//! From a chain of layers to stages: what is fused with what, and where everything lies in memory.

use crate::buffer::{Buffer, LINE_VALUES};
use crate::dense::Dense;
use crate::error::{KernelError, Result};
use crate::layer::Layer;
use crate::pool::{Kind, Pool2d, Pooling};
use crate::shape::Conv2d;
use crate::stage::{ConvStage, DenseStage, Place};

/// The largest array of a plan: a guard against sizes that cannot be meant, 16 GiB.
const MAX_VALUES: u128 = 1 << 32;

/// The stages of a chain and the sizes that belong to it.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) convs: Vec<ConvStage>,
    pub(crate) denses: Vec<DenseStage>,
    pub(crate) param_lens: Vec<usize>,
    /// Values that an image's padded inputs take, in front of its features.
    pub(crate) padded_len: usize,
    /// Values that enter the first dense layer.
    pub(crate) features: usize,
    pub(crate) marks_len: usize,
    pub(crate) gradient_len: usize,
    /// Values that the kernel gradients take as the products give them.
    pub(crate) sums_len: usize,
}

/// What flows between two layers, for one image.
#[derive(Clone, Copy, Debug)]
enum Flow {
    Image { height: usize, width: usize, channels: usize },
    Row { len: usize },
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
        let mut flow = Flow::Image { height, width, channels };
        let mut at = 0;
        while let Some(layer) = layers.get(at) {
            let (next, used) = match (flow, layer) {
                (
                    Flow::Image { height, width, channels },
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
                    plan.conv(batch, conv, *params, layers, at)?
                }
                (Flow::Image { height, width, channels }, Layer::Flatten) => {
                    let len = height * width * channels;
                    plan.features = len;
                    (Flow::Row { len }, 1)
                }
                (Flow::Row { len }, Layer::Dense { features, params }) => {
                    let dense = Dense { batch, inputs: len, outputs: *features };
                    plan.dense(dense, *params, layers, at)?
                }
                (Flow::Row { .. }, Layer::LogSoftmax) if !plan.denses.is_empty() => {
                    (Flow::LogProbabilities, 1)
                }
                _ => return Err(refusal(at, misplaced(layer))),
            };
            flow = next;
            at += used;
        }
        match flow {
            Flow::LogProbabilities => {
                plan.place();
                Ok(plan)
            }
            _ => Err(refusal(layers.len(), "the chain must end with LogSoftmax".to_owned())),
        }
    }

    /// Adds a convolution with the ReLU and the pooling that follow it; returns what flows on and
    /// the layers used.
    fn conv(
        &mut self,
        batch: usize,
        conv: Conv2d,
        params: (usize, usize),
        layers: &[Layer],
        at: usize,
    ) -> Result<(Flow, usize)> {
        let (kh, kw) = conv.kernel;
        let kernel_len = checked_len(at, &[kh, kw, conv.in_channels, conv.out_channels])?;
        let (height, width) = (conv.height + kh, conv.width + kw);
        checked_len(at, &[batch, height, width, conv.in_channels.max(conv.out_channels)])?;
        self.take_params(at, params, kernel_len, conv.out_channels)?;

        let relu = layers.get(at + 1) == Some(&Layer::Relu);
        let mut used = 1 + usize::from(relu);
        let (kind, window) = match layers.get(at + used) {
            Some(Layer::AvgPool { window }) => (Kind::Average, Some(*window)),
            Some(Layer::MaxPool { window }) => (Kind::Max, Some(*window)),
            _ => (Kind::Average, None),
        };
        let window = window.inspect(|_| used += 1).unwrap_or((1, 1));
        let pool_at = at + used - 1;
        let positions = checked_len(pool_at, &[window.0, window.1])?;
        let most = Pooling::most_positions(kind);
        if positions > most {
            let reason =
                format!("the window has {positions} pixels, and at most {most} are supported");
            return Err(refusal(pool_at, reason));
        }
        let Conv2d { height, width, out_channels: channels, .. } = conv;
        let pool = Pool2d { batch: 1, height, width, channels, window };
        let (rows, columns) = pool.windows();
        if rows == 0 || columns == 0 {
            let reason =
                format!("the window {window:?} is larger than the image, {height}x{width}");
            return Err(refusal(pool_at, reason));
        }
        let first = self.convs.is_empty();
        self.convs.push(ConvStage {
            conv,
            pooling: Pooling { pool, kind, relu },
            params,
            input: self.padded_len,
            output: Place { origin: 0, stride: 0 },
            marks: self.marks_len,
            gradient: self.gradient_len,
            sum: self.sums_len,
            kernel: Buffer::zeroed(conv.prepared_len()),
            flipped: Buffer::zeroed(if first { 0 } else { conv.transposed().prepared_len() }),
        });
        self.padded_len += conv.padded_len().next_multiple_of(LINE_VALUES);
        self.marks_len += pool.output_len();
        self.gradient_len += (kernel_len + channels).next_multiple_of(LINE_VALUES);
        self.sums_len += conv.prepared_len().next_multiple_of(LINE_VALUES);
        Ok((Flow::Image { height: rows, width: columns, channels }, used))
    }

    /// Adds a dense layer with the ReLU that follows it; returns what flows on and the layers used.
    fn dense(
        &mut self,
        dense: Dense,
        params: (usize, usize),
        layers: &[Layer],
        at: usize,
    ) -> Result<(Flow, usize)> {
        let kernel_len = checked_len(at, &[dense.inputs, dense.outputs])?;
        checked_len(at, &[dense.batch, dense.inputs.max(dense.outputs), 16])?;
        self.take_params(at, params, kernel_len, dense.outputs)?;
        let relu = layers.get(at + 1) == Some(&Layer::Relu);
        let needs_input_gradient = !self.convs.is_empty() || !self.denses.is_empty();
        self.denses.push(DenseStage::new(dense, relu, params, needs_input_gradient));
        Ok((Flow::Row { len: dense.outputs }, 1 + usize::from(relu)))
    }

    /// Notes the lengths of a layer's kernel and bias at their positions, each to be used once.
    fn take_params(
        &mut self,
        at: usize,
        params: (usize, usize),
        kernel_len: usize,
        bias_len: usize,
    ) -> Result<()> {
        let count = self.param_lens.len();
        for (index, len) in [(params.0, kernel_len), (params.1, bias_len)] {
            match self.param_lens.get_mut(index) {
                Some(slot @ 0) => *slot = len,
                Some(_) => return Err(refusal(at, format!("parameter {index} is used twice"))),
                None => {
                    let reason = format!("parameter {index} is not among the chain's {count}");
                    return Err(refusal(at, reason));
                }
            }
        }
        Ok(())
    }

    /// Lets each convolution write straight into the padded input of the next, the last into the
    /// features.
    fn place(&mut self) {
        for index in 0..self.convs.len() {
            let output = match self.convs.get(index + 1) {
                Some(next) => Place {
                    origin: next.input + next.conv.origin(next.conv.low_padding()),
                    stride: next.conv.padded_row(),
                },
                None => {
                    let pool = &self.convs[index].pooling.pool;
                    Place { origin: self.padded_len, stride: pool.windows().1 * pool.channels }
                }
            };
            self.convs[index].output = output;
        }
    }
}

fn refusal(layer: usize, reason: String) -> KernelError {
    KernelError::Chain { layer, reason }
}

/// The product of the extents, if none is 0 and the product is sane.
fn checked_len(layer: usize, extents: &[usize]) -> Result<usize> {
    if extents.contains(&0) {
        return Err(refusal(layer, format!("the extents {extents:?} contain a 0")));
    }
    let len = extents.iter().fold(1u128, |product, &extent| product.saturating_mul(extent as u128));
    if len > MAX_VALUES {
        return Err(refusal(layer, format!("an array of {extents:?} values is too large")));
    }
    Ok(len as usize)
}

fn misplaced(layer: &Layer) -> String {
    let rule = match layer {
        Layer::Conv { .. } => "a convolution needs images: it cannot follow Flatten",
        Layer::Relu => "ReLU must follow a convolution or a dense layer directly",
        Layer::AvgPool { .. } | Layer::MaxPool { .. } => {
            "pooling must follow a convolution, or its ReLU, directly"
        }
        Layer::Flatten => "the values are flat already",
        Layer::Dense { .. } => "a dense layer needs flat values: Flatten must come first",
        Layer::LogSoftmax => "LogSoftmax must follow a dense layer and end the chain",
    };
    rule.to_owned()
}
