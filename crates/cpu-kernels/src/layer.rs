//! The layers of a network.

use crate::shape::Padding;

/// One layer, with all it takes to evaluate it but its parameters.
///
/// `P` says where those are: a program knows them by the indices of kernel (or scale) and bias in
/// its list of parameters, the network that it was traced from by the layer's path.
#[derive(Clone, Debug, PartialEq)]
pub enum Layer<P = (usize, usize)> {
    /// Convolution with SAME padding and stride 1, kernel `[height, width, in, features]`.
    Conv {
        /// Height and width of the kernel.
        kernel_size: (usize, usize),
        /// Output channels.
        features: usize,
        /// Where kernel and bias are.
        params: P,
    },
    /// Convolution with VALID padding or other strides, kernel `[height, width, in, features]`.
    GeneralConv {
        /// Height and width of the kernel.
        kernel_size: (usize, usize),
        /// Steps of the kernel down and to the right.
        strides: (usize, usize),
        /// Zeros around the image, or none.
        padding: Padding,
        /// Output channels.
        features: usize,
        /// Where kernel and bias are.
        params: P,
    },
    /// max(x, 0). A chain has it directly after a convolution or a dense layer.
    Relu,
    /// GELU, by its approximation with tanh.
    Gelu,
    /// Mean over non-overlapping windows; in a chain, of at most 32 pixels.
    AvgPool {
        /// Height and width of the window.
        window: (usize, usize),
    },
    /// Maximum over non-overlapping windows.
    MaxPool {
        /// Height and width of the window.
        window: (usize, usize),
    },
    /// Mean over height and width.
    GlobalAvgPool,
    /// `[height, width, channels]` to `[height · width · channels]`.
    Flatten,
    /// Dense layer, kernel `[in, features]`.
    Dense {
        /// Number of outputs.
        features: usize,
        /// Where kernel and bias are.
        params: P,
    },
    /// Batch norm over all dimensions but the last.
    BatchNorm {
        /// Where scale and bias are.
        params: P,
    },
    /// Layer norm over the last dimension.
    LayerNorm {
        /// Where scale and bias are.
        params: P,
    },
    /// Dropout.
    Dropout {
        /// The probability of setting a value to 0.
        rate: f64,
        /// What tells it from others.
        name: P,
    },
    /// The sum of its inputs.
    Add,
    /// Several inputs side by side in the last dimension.
    Concatenate,
    /// Logits to log-probabilities. Every chain ends with it.
    LogSoftmax,
}

impl<P> Layer<P> {
    /// Where its parameters are, if it has any.
    pub fn params(&self) -> Option<&P> {
        match self {
            Layer::Conv { params, .. }
            | Layer::GeneralConv { params, .. }
            | Layer::Dense { params, .. }
            | Layer::BatchNorm { params }
            | Layer::LayerNorm { params } => Some(params),
            _ => None,
        }
    }

    /// The same layer with its parameters elsewhere; `None` if `f` does not find them.
    pub fn try_map<Q>(&self, f: impl FnOnce(&P) -> Option<Q>) -> Option<Layer<Q>> {
        Some(match *self {
            Layer::Conv { kernel_size, features, ref params } => {
                Layer::Conv { kernel_size, features, params: f(params)? }
            }
            Layer::GeneralConv { kernel_size, strides, padding, features, ref params } => {
                let params = f(params)?;
                Layer::GeneralConv { kernel_size, strides, padding, features, params }
            }
            Layer::Relu => Layer::Relu,
            Layer::Gelu => Layer::Gelu,
            Layer::AvgPool { window } => Layer::AvgPool { window },
            Layer::MaxPool { window } => Layer::MaxPool { window },
            Layer::GlobalAvgPool => Layer::GlobalAvgPool,
            Layer::Flatten => Layer::Flatten,
            Layer::Dense { features, ref params } => Layer::Dense { features, params: f(params)? },
            Layer::BatchNorm { ref params } => Layer::BatchNorm { params: f(params)? },
            Layer::LayerNorm { ref params } => Layer::LayerNorm { params: f(params)? },
            Layer::Dropout { rate, ref name } => Layer::Dropout { rate, name: f(name)? },
            Layer::Add => Layer::Add,
            Layer::Concatenate => Layer::Concatenate,
            Layer::LogSoftmax => Layer::LogSoftmax,
        })
    }
}
