//! A record of the layers that one evaluation of a module went through.
//!
//! Evaluating a module runs ordinary Rust, so its structure cannot be read off; but it can be
//! watched. While a recording is on, every layer function of this crate notes what it did, from
//! which tensor to which. From that the [table of layers](crate::tabulate()) is made, the
//! [intermediate results](crate::capture_intermediates) are taken, and the
//! [compiled step](crate::compile()) is planned, as `jax.jit` plans from traced operations.

use std::cell::RefCell;

use candle_core::{Tensor, TensorId};

use crate::error::Result;

thread_local! {
    static RECORDING: RefCell<Option<Vec<TracedOp>>> = const { RefCell::new(None) };
}

/// One layer as it was evaluated.
#[derive(Debug, Clone)]
pub struct TracedOp {
    /// What was evaluated.
    pub layer: Layer,
    /// The tensor that went in.
    pub input: TensorId,
    /// What came out.
    pub output: Tensor,
}

/// The layers this crate knows, with all that is needed to evaluate them again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layer {
    /// Convolution, SAME padding, stride 1.
    Conv {
        /// Where its parameters are.
        path: String,
        /// Height and width of the kernel.
        kernel_size: (usize, usize),
        /// Channels of the input.
        channels: usize,
        /// Channels of the output.
        features: usize,
    },
    /// Dense layer.
    Dense {
        /// Where its parameters are.
        path: String,
        /// Values of an example before it.
        inputs: usize,
        /// Values of an example after it.
        features: usize,
    },
    /// Batch norm over the last dimension.
    BatchNorm {
        /// Where its parameters and running statistics are.
        path: String,
        /// Extent of the last dimension.
        features: usize,
    },
    /// Dropout.
    Dropout {
        /// Its place in the tree of modules.
        path: String,
    },
    /// max(x, 0).
    Relu,
    /// Mean over windows without overlap.
    AvgPool {
        /// Height and width of the window.
        window: (usize, usize),
    },
    /// Maximum over windows without overlap.
    MaxPool {
        /// Height and width of the window.
        window: (usize, usize),
    },
    /// All dimensions but the first into one.
    Flatten,
    /// Log-softmax over the last dimension.
    LogSoftmax,
}

impl Layer {
    /// The layer's path, or the name of its function.
    pub fn name(&self) -> String {
        match self {
            Layer::Conv { path, .. }
            | Layer::Dense { path, .. }
            | Layer::BatchNorm { path, .. }
            | Layer::Dropout { path } => path.clone(),
            Layer::Relu => "relu".into(),
            Layer::AvgPool { .. } => "avg_pool".into(),
            Layer::MaxPool { .. } => "max_pool".into(),
            Layer::Flatten => "flatten".into(),
            Layer::LogSoftmax => "log_softmax".into(),
        }
    }

    /// How many numbers the layer learns.
    pub fn parameters(&self) -> usize {
        match *self {
            Layer::Conv { kernel_size: (height, width), channels, features, .. } => {
                height * width * channels * features + features
            }
            Layer::Dense { inputs, features, .. } => inputs * features + features,
            Layer::BatchNorm { features, .. } => 2 * features,
            _ => 0,
        }
    }
}

/// Runs `f` and returns, beside its result, the layers it went through.
pub fn trace<T>(f: impl FnOnce() -> Result<T>) -> Result<(T, Vec<TracedOp>)> {
    let outer = RECORDING.replace(Some(Vec::new()));
    let result = f();
    let steps = RECORDING.replace(outer).unwrap_or_default();
    Ok((result?, steps))
}

/// Whether the layers follow one another from `input` to `output`, with nothing beside them.
pub fn is_sequential(steps: &[TracedOp], input: &Tensor, output: &Tensor) -> bool {
    let inputs = steps.iter().map(|step| step.input);
    let outputs = steps.iter().map(|step| step.output.id());
    inputs.chain([output.id()]).eq([input.id()].into_iter().chain(outputs))
}

/// Notes a layer if a recording is on.
pub(crate) fn trace_op(input: &Tensor, output: &Tensor, layer: impl FnOnce() -> Layer) {
    RECORDING.with_borrow_mut(|recording| {
        if let Some(steps) = recording {
            steps.push(TracedOp { layer: layer(), input: input.id(), output: output.clone() });
        }
    });
}
