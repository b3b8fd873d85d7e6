//! The layers of a network.

/// One layer, with all it takes to evaluate it but its parameters.
///
/// `P` says where those are: a [`Program`](crate::Program) knows them by the indices of kernel and
/// bias in its list of parameters, the network that it was traced from by the layer's path.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// max(x, 0). A program needs it directly after a convolution or a dense layer.
    Relu,
    /// Mean over non-overlapping windows; in a program, of at most 32 pixels.
    AvgPool {
        /// Height and width of the window.
        window: (usize, usize),
    },
    /// Maximum over non-overlapping windows.
    MaxPool {
        /// Height and width of the window.
        window: (usize, usize),
    },
    /// `[height, width, channels]` to `[height · width · channels]`.
    Flatten,
    /// Dense layer, kernel `[in, features]`.
    Dense {
        /// Number of outputs.
        features: usize,
        /// Where kernel and bias are.
        params: P,
    },
    /// Batch norm over all dimensions but the last. No program has it.
    BatchNorm {
        /// Where scale and bias are.
        params: P,
    },
    /// Dropout. No program has it.
    Dropout {
        /// What tells it from others.
        name: P,
    },
    /// Logits to log-probabilities. Every program ends with it.
    LogSoftmax,
}

impl<P> Layer<P> {
    /// The same layer with its parameters elsewhere; `None` if `f` does not find them.
    pub fn try_map<Q>(&self, f: impl FnOnce(&P) -> Option<Q>) -> Option<Layer<Q>> {
        Some(match *self {
            Layer::Conv { kernel_size, features, ref params } => {
                Layer::Conv { kernel_size, features, params: f(params)? }
            }
            Layer::Relu => Layer::Relu,
            Layer::AvgPool { window } => Layer::AvgPool { window },
            Layer::MaxPool { window } => Layer::MaxPool { window },
            Layer::Flatten => Layer::Flatten,
            Layer::Dense { features, ref params } => Layer::Dense { features, params: f(params)? },
            Layer::BatchNorm { ref params } => Layer::BatchNorm { params: f(params)? },
            Layer::Dropout { ref name } => Layer::Dropout { name: f(name)? },
            Layer::LogSoftmax => Layer::LogSoftmax,
        })
    }
}
