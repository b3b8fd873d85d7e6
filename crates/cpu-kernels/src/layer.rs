//! The layers that a plan is made of.

/// One layer of a chain. `params` are the positions of kernel and bias in the list of parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Convolution with SAME padding and stride 1, kernel `[height, width, in, features]`.
    Conv {
        /// Height and width of the kernel.
        kernel: (usize, usize),
        /// Output channels.
        features: usize,
        /// Positions of kernel and bias.
        params: (usize, usize),
    },
    /// max(x, 0), right after a convolution or a dense layer.
    Relu,
    /// Mean over windows of at most 32 pixels without overlap.
    AvgPool {
        /// Height and width of the window.
        window: (usize, usize),
    },
    /// Maximum over windows without overlap.
    MaxPool {
        /// Height and width of the window.
        window: (usize, usize),
    },
    /// `[height, width, channels]` to one row of values.
    Flatten,
    /// Dense layer, kernel `[in, features]`.
    Dense {
        /// Values of the output.
        features: usize,
        /// Positions of kernel and bias.
        params: (usize, usize),
    },
    /// Logits to log-probabilities; the end of every chain.
    LogSoftmax,
}
