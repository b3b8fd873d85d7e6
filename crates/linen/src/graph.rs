//! Networks with branches: how their layers are connected.

use std::collections::HashSet;

use candle_core::{Tensor, TensorId};

use crate::error::{Error, Result};
use crate::module::Module;
use crate::no_grad::no_grad;
use crate::plan::{dummy_input, one_example};
use crate::trace::{TracedOp, trace};
use crate::variables::Evaluate;

/// The layers of a network, and the tensors by which they are connected.
#[derive(Debug, Clone)]
pub struct Graph {
    /// The input of the network.
    pub input: TensorId,
    /// The layers in the order of their evaluation. Each input of one is the input of the network
    /// or the output of a layer before it.
    pub ops: Vec<TracedOp>,
    /// The output of the network: that of a layer, or its input.
    pub output: Tensor,
}

/// The layers of a network whose output depends on them, traced with one example. Batch norm and
/// dropout are in evaluation mode.
///
/// # Errors
/// [`Error::ForeignOperation`] if the output depends on anything else, such as candle's own
/// operations between the layers; [`Error::Shape`] for a scalar input; those of the network.
///
/// # Examples
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// use linen::{Key, Module, Result, Scope, add, graph, relu};
///
/// struct Residual;
///
/// impl Module for Residual {
///     fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
///         add(x, &relu(x)?)
///     }
/// }
///
/// let images = Tensor::ones((1, 4, 4, 1), DType::F32, &Device::Cpu)?;
/// let params = Residual.init(Key::new(0), &images)?;
/// let graph = graph(&Residual, &params, images.dims())?;
/// assert_eq!(graph.ops[1].inputs, [graph.input, graph.ops[0].output.id()]);
/// # Ok::<(), linen::Error>(())
/// ```
pub fn graph(
    model: &impl Module,
    variables: &impl Evaluate,
    input_shape: &[usize],
) -> Result<Graph> {
    if input_shape.is_empty() {
        return Err(Error::Shape {
            what: "input of the network",
            expected: "[B, …]".into(),
            found: Vec::new(),
        });
    }
    let input = dummy_input(variables.params(), &one_example(input_shape))?;
    let (output, mut ops) = trace(|| no_grad(|| model.apply_eval(variables, &input)))?;
    let mut needed = HashSet::from([output.id()]);
    let mut used = Vec::new();
    while let Some(op) = ops.pop() {
        if needed.contains(&op.output.id()) {
            needed.extend(&op.inputs);
            used.push(op);
        }
    }
    used.reverse();
    let known = used.iter().map(|op| op.output.id()).chain([input.id()]).collect::<HashSet<_>>();
    if !needed.is_subset(&known) {
        return Err(Error::ForeignOperation);
    }
    Ok(Graph { input: input.id(), ops: used, output })
}
