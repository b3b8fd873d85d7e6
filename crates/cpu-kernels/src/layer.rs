//! The layers of a compiled network.

/// One layer of a [`Program`](crate::Program).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Convolution with SAME padding and stride 1, kernel `[height, width, in, features]`.
    Conv {
        /// Height and width of the kernel.
        kernel: (usize, usize),
        /// Output channels.
        features: usize,
        /// Indices of kernel and bias in the list of parameters.
        params: (usize, usize),
    },
    /// max(x, 0), directly after a convolution or a dense layer.
    Relu,
    /// Mean over non-overlapping windows of at most 32 pixels.
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
        /// Indices of kernel and bias in the list of parameters.
        params: (usize, usize),
    },
    /// Logits to log-probabilities. Every chain ends with it.
    LogSoftmax,
}
