//! Sequential networks: plain chains of layers.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::module::Module;
use crate::no_grad::no_grad;
use crate::params::Params;
use crate::plan::{dummy_input, one_example};
use crate::trace::{TracedOp, is_sequential, trace};

/// Traces the evaluation of a network for one example; returns its input, its output and its
/// layers.
pub(crate) fn trace_example(
    params: &Params,
    input_shape: &[usize],
    evaluate: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<(Tensor, Tensor, Vec<TracedOp>)> {
    if input_shape.is_empty() {
        return Err(Error::Shape {
            what: "input of the network",
            expected: "[B, …]".into(),
            found: Vec::new(),
        });
    }
    let input = dummy_input(params, &one_example(input_shape))?;
    let (output, ops) = trace(|| no_grad(|| evaluate(&input)))?;
    Ok((input, output, ops))
}

/// The layers of a sequential network, traced with one example.
///
/// # Errors
/// [`Error::NotSequential`] for any other network; [`Error::Shape`] for a scalar input; those of
/// the network.
pub fn sequential(
    model: &impl Module,
    params: &Params,
    input_shape: &[usize],
) -> Result<Vec<TracedOp>> {
    let (input, output, ops) =
        trace_example(params, input_shape, |input| model.apply(params, input))?;
    if ops.is_empty() || !is_sequential(&ops, &input, &output) {
        return Err(Error::NotSequential);
    }
    Ok(ops)
}
