//! A record of the layers that one evaluation of a module went through.
//!
//! Evaluating a module runs ordinary Rust, so its structure cannot be read off; but it can be
//! watched. While a recording is on, every layer function of this crate notes what it did, from
//! which tensor to which. From that the [table of layers](super::tabulate) is made, the
//! [intermediate results](super::capture_intermediates) are taken, and the
//! [compiled step](mod@crate::jit) is planned, as `jax.jit` plans from traced operations.

use std::cell::RefCell;

use candle_core::{DType, Tensor, TensorId};

use super::{Module, Params};
use crate::{Error, Result, memory};

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

/// Whether the layers follow one another from `input` to `output`, with nothing beside them.
pub(crate) fn is_chain(steps: &[Step], input: &Tensor, output: &Tensor) -> bool {
    let inputs = steps.iter().map(|step| step.input);
    let outputs = steps.iter().map(|step| step.output.id());
    inputs.chain([output.id()]).eq([input.id()].into_iter().chain(outputs))
}

/// One black example for a network with these parameters: it shows all layers that there are.
pub(crate) fn sample(params: &Params, input_shape: &[usize]) -> Result<Tensor> {
    let dtype = params.iter().next().map_or(DType::F32, |(_, var)| var.dtype());
    let mut shape = input_shape.to_vec();
    shape.iter_mut().take(1).for_each(|batch| *batch = 1);
    memory::check("one example", &shape, dtype, params.device())?;
    Ok(Tensor::zeros(shape, dtype, params.device())?)
}

/// The layers of a network that is a plain chain of them, for one example.
///
/// # Errors
/// [`Error::NotAChain`] for any other network; [`Error::Shape`] for an input without dimensions;
/// those of the network.
pub(crate) fn chain(
    model: &impl Module,
    params: &Params,
    input_shape: &[usize],
) -> Result<Vec<Step>> {
    if input_shape.is_empty() {
        return Err(Error::Shape {
            what: "input of the network",
            expected: "[B, …]".into(),
            found: Vec::new(),
        });
    }
    let sample = sample(params, input_shape)?;
    let (output, steps) = record(|| model.apply(params, &sample))?;
    if steps.is_empty() || !is_chain(&steps, &sample, &output) {
        return Err(Error::NotAChain);
    }
    Ok(steps)
}

/// Notes a layer if a recording is on.
pub(crate) fn note(input: &Tensor, output: &Tensor, layer: impl FnOnce() -> Layer) {
    RECORDING.with_borrow_mut(|recording| {
        if let Some(steps) = recording {
            steps.push(Step { layer: layer(), input: input.id(), output: output.clone() });
        }
    });
}
