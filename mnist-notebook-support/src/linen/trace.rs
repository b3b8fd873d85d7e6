//! A record of the layers that one evaluation of a module went through.
//!
//! Evaluating a module runs ordinary Rust, so its structure cannot be read off; but it can be
//! watched. While a recording is on, every layer function of this crate notes what it did, from
//! which tensor to which. From that the [table of layers](super::tabulate) is made, the
//! [intermediate results](super::capture_intermediates) are taken, and the
//! [compiled step](mod@crate::jit) is planned, as `jax.jit` plans from traced operations.

use std::cell::RefCell;

use candle_core::{Tensor, TensorId};

use crate::Result;

thread_local! {
    static RECORDING: RefCell<Option<Vec<Step>>> = const { RefCell::new(None) };
}

/// One layer as it was evaluated.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub layer: Layer,
    pub input: TensorId,
    pub output: Tensor,
}

/// The layers this crate knows, with all that is needed to evaluate them again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Layer {
    Conv { path: String, kernel_size: (usize, usize), channels: usize, features: usize },
    Dense { path: String, inputs: usize, features: usize },
    BatchNorm { path: String, features: usize },
    Dropout { path: String },
    Relu,
    AvgPool { window: (usize, usize) },
    MaxPool { window: (usize, usize) },
    Flatten,
    LogSoftmax,
}

/// Runs `f` and returns, beside its result, the layers it went through.
pub(crate) fn record<T>(f: impl FnOnce() -> Result<T>) -> Result<(T, Vec<Step>)> {
    let outer = RECORDING.replace(Some(Vec::new()));
    let result = f();
    let steps = RECORDING.replace(outer).unwrap_or_default();
    Ok((result?, steps))
}

/// Notes a layer if a recording is on.
pub(crate) fn note(input: &Tensor, output: &Tensor, layer: impl FnOnce() -> Layer) {
    RECORDING.with_borrow_mut(|recording| {
        if let Some(steps) = recording {
            steps.push(Step { layer: layer(), input: input.id(), output: output.clone() });
        }
    });
}
