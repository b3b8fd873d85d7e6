//! Checks a chain of layers, and fuses layers that run together.

use crate::dense::Dense;
use crate::error::{KernelError, Result};
use crate::layer::Layer;
use crate::pool::{Pool2d, PoolKind, Pooling};
use crate::shape::Conv2d;

/// The most values in one array, 16 GiB: a guard against mistaken sizes.
const MAX_VALUES: u128 = 1 << 32;

/// Checks that [`Program::new`](crate::Program::new) would accept the chain for images
/// `[batch, height, width, channels]`, without the memory that a program takes.
///
/// ```
/// use cpu_kernels::{Layer, check_chain};
///
/// let layers = [Layer::Flatten, Layer::Dense { features: 10, params: (0, 1) }, Layer::LogSoftmax];
/// assert!(check_chain([32, 28, 28, 1], &layers).is_ok());
/// let error = check_chain([32, 28, 28, 1], &layers[1..]).unwrap_err();
/// assert!(error.to_string().contains("Flatten must come first"));
/// ```
///
/// # Errors
/// [`KernelError::Chain`] if the chain is not supported or its sizes do not fit; the message names
/// the layer.
pub fn check_chain(input_shape: [usize; 4], layers: &[Layer]) -> Result<()> {
    Chain::new(input_shape, layers).map(drop)
}

/// A supported chain of layers. Convolutions come before dense layers, of which there is at least
/// one.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    pub(crate) convs: Vec<FusedConv>,
    pub(crate) denses: Vec<FusedDense>,
    pub(crate) param_lens: Vec<usize>,
}

/// A convolution of one image, with the ReLU and pooling that follow it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FusedConv {
    pub(crate) conv: Conv2d,
    pub(crate) pooling: Pooling,
    /// Indices of kernel and bias in the list of parameters.
    pub(crate) params: (usize, usize),
}

/// A dense layer of the batch, with the ReLU that follows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FusedDense {
    pub(crate) dense: Dense,
    pub(crate) relu: bool,
    /// Indices of kernel and bias in the list of parameters.
    pub(crate) params: (usize, usize),
}

/// The shape of the data between two layers, for one image.
#[derive(Clone, Copy, Debug)]
enum TensorShape {
    Image { height: usize, width: usize, channels: usize },
    Flat { len: usize },
    LogProbabilities,
}

impl Chain {
    pub(crate) fn new(
        [batch, height, width, channels]: [usize; 4],
        layers: &[Layer],
    ) -> Result<Self> {
        let parametric = layers
            .iter()
            .filter(|layer| matches!(layer, Layer::Conv { .. } | Layer::Dense { .. }))
            .count();
        let mut chain = Self { param_lens: vec![0; 2 * parametric], ..Self::default() };
        checked_len(0, &[batch, height, width, channels])?;
        let mut shape = TensorShape::Image { height, width, channels };
        let mut index = 0;
        while let Some(layer) = layers.get(index) {
            let (next, used) = match (shape, layer) {
                (
                    TensorShape::Image { height, width, channels },
                    Layer::Conv { kernel_size: kernel, features, params },
                ) => {
                    let conv = Conv2d {
                        batch: 1,
                        height,
                        width,
                        in_channels: channels,
                        out_channels: *features,
                        kernel: *kernel,
                    };
                    chain.conv(batch, conv, *params, layers, index)?
                }
                (TensorShape::Image { height, width, channels }, Layer::Flatten) => {
                    (TensorShape::Flat { len: height * width * channels }, 1)
                }
                (TensorShape::Flat { len }, Layer::Dense { features, params }) => {
                    let dense = Dense { batch, inputs: len, outputs: *features };
                    chain.dense(dense, *params, layers, index)?
                }
                (TensorShape::Flat { .. }, Layer::LogSoftmax) if !chain.denses.is_empty() => {
                    (TensorShape::LogProbabilities, 1)
                }
                _ => return Err(chain_error(index, placement_rule(layer))),
            };
            shape = next;
            index += used;
        }
        match shape {
            TensorShape::LogProbabilities => Ok(chain),
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
        let lens = [kernel_len, conv.out_channels];
        register_params(&mut self.param_lens, index, params, lens)?;

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
        self.convs.push(FusedConv { conv, pooling: Pooling { pool, kind, relu }, params });
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
        let lens = [kernel_len, dense.outputs];
        register_params(&mut self.param_lens, index, params, lens)?;
        let relu = layers.get(index + 1) == Some(&Layer::Relu);
        self.denses.push(FusedDense { dense, relu, params });
        Ok((TensorShape::Flat { len: dense.outputs }, 1 + usize::from(relu)))
    }
}

/// Records the lengths of a layer's two parameters. Every parameter may be used only once.
pub(crate) fn register_params(
    param_lens: &mut [usize],
    index: usize,
    params: (usize, usize),
    lens: [usize; 2],
) -> Result<()> {
    let count = param_lens.len();
    for (param, len) in [params.0, params.1].into_iter().zip(lens) {
        match param_lens.get_mut(param) {
            Some(slot @ 0) => *slot = len,
            Some(_) => {
                return Err(chain_error(index, format!("parameter {param} is used twice")));
            }
            None => {
                let reason = format!("parameter {param} is out of range: there are {count}");
                return Err(chain_error(index, reason));
            }
        }
    }
    Ok(())
}

pub(crate) fn chain_error(layer: usize, reason: String) -> KernelError {
    KernelError::Chain { layer, reason }
}

/// The number of values in an array of these sizes, if it is neither empty nor too large.
pub(crate) fn checked_len(layer: usize, sizes: &[usize]) -> Result<usize> {
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
        Layer::BatchNorm { .. } | Layer::Dropout { .. } => {
            "a `Program` has no training or evaluation mode: use a `GraphProgram`"
        }
        Layer::GeneralConv { .. }
        | Layer::Gelu
        | Layer::GlobalAvgPool
        | Layer::LayerNorm { .. }
        | Layer::Add
        | Layer::Concatenate => "a `Program` does not have this layer: use a `GraphProgram`",
        Layer::LogSoftmax => "LogSoftmax must follow a dense layer and end the chain",
    };
    rule.to_owned()
}
