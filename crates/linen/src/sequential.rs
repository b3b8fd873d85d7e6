//! Sequential networks: plain chains of layers.

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};
use crate::memory;
use crate::module::Module;
use crate::no_grad::no_grad;
use crate::params::Params;
use crate::trace::{TracedOp, is_sequential, trace};

/// An all-zero input to trace a network with.
pub(crate) fn dummy_input(params: &Params, shape: &[usize]) -> Result<Tensor> {
    let dtype = params.iter().next().map_or(DType::F32, |(_, var)| var.dtype());
    memory::check("the input of a network", shape, dtype, params.device())?;
    Ok(Tensor::zeros(shape, dtype, params.device())?)
}

/// The shape of one example of a batch.
pub(crate) fn one_example(input_shape: &[usize]) -> Vec<usize> {
    let mut shape = input_shape.to_vec();
    if let Some(batch) = shape.first_mut() {
        *batch = 1;
    }
    shape
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
    if input_shape.is_empty() {
        return Err(Error::Shape {
            what: "input of the network",
            expected: "[B, …]".into(),
            found: Vec::new(),
        });
    }
    let input = dummy_input(params, &one_example(input_shape))?;
    let (output, ops) = trace(|| no_grad(|| model.apply(params, &input)))?;
    if ops.is_empty() || !is_sequential(&ops, &input, &output) {
        return Err(Error::NotSequential);
    }
    Ok(ops)
}
