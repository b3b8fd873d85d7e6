//! Plans: what a network does with a batch of one shape, found out by tracing it.
//!
//! `jax.jit` runs a function once with abstract values, traces its operations, and has XLA plan
//! buffers and fuse loops for the given shapes. [`Plan::trace`] does this on a small scale.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use candle_core::{DType, Shape, Tensor, Var};
use cpu_kernels::Layer;

use crate::error::Result;
use crate::memory;
use crate::no_grad::with_tracking;
use crate::params::Params;
use crate::trace::{TracedOp, is_sequential, layer_name, trace};

/// A plain chain of layers for batches of one shape; `Display` has one line for each fused group.
#[derive(Debug)]
pub(crate) struct Plan {
    /// `[batch, height, width, channels]`.
    pub(crate) input_shape: [usize; 4],
    /// The size of the network's output.
    pub(crate) num_classes: usize,
    /// The layers; their parameters are indices into `params`.
    pub(crate) layers: Vec<Layer>,
    /// Shapes of the parameters by path.
    params: BTreeMap<String, Shape>,
    /// The layers as they were traced.
    traced: Vec<Layer<String>>,
    groups: String,
}

impl Plan {
    /// Traces one evaluation of `network` with these parameters, or says why there is no plan.
    ///
    /// # Errors
    /// Those of the network for an input of this shape; [`Error::Memory`](crate::Error::Memory) if
    /// training on this batch size does not fit in memory.
    pub(crate) fn trace(
        network: impl Fn(&Tensor) -> Result<Tensor>,
        params: &Params,
        input_shape: &[usize],
    ) -> Result<Result<Plan, String>> {
        check_memory(&network, params, input_shape)?;
        let input = dummy_input(params, input_shape)?;
        // With a graph: only there `detach` makes another tensor, which ends the chain.
        let (output, ops) = trace(|| with_tracking(true, || network(&input)))?;
        Ok(plan(input_shape, &input, &ops, &output, params))
    }

    /// The variables of the plan's parameters, if all are there in the right shape.
    pub(crate) fn vars<'a>(&self, params: &'a Params) -> Option<Vec<&'a Var>> {
        let is_planned =
            |path: &str, var: &Var| self.params.get(path) == Some(var.shape()) && is_plain(var);
        let planned = params.iter().filter(|(path, var)| is_planned(path, var));
        let vars = planned.map(|(_, var)| var).collect::<Vec<_>>();
        (vars.len() == self.params.len()).then_some(vars)
    }

    /// Whether the network still has the same layers, as one example shows. A network for batches
    /// of one size has no examples.
    pub(crate) fn is_still_of(
        &self,
        network: impl Fn(&Tensor) -> Result<Tensor>,
        params: &Params,
    ) -> Result<bool> {
        let example = dummy_input(params, &one_example(&self.input_shape))?;
        let Ok((_, ops)) = trace(|| with_tracking(false, || network(&example))) else {
            return Ok(false);
        };
        Ok(ops.iter().map(|op| &op.layer).eq(&self.traced))
    }

    /// The paths of the parameters, in the order of [`vars`](Plan::vars).
    pub(crate) fn paths(&self) -> impl Iterator<Item = &String> {
        self.params.keys()
    }

    /// Whether the plan is for batches like this one.
    pub(crate) fn fits(&self, image: &Tensor) -> bool {
        image.dims() == self.input_shape && is_plain(image)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "compiled for batches of {}:{}", self.input_shape[0], self.groups)
    }
}

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

/// Checks that tracing a batch and training on it fit in memory, from one example.
fn check_memory(
    network: impl Fn(&Tensor) -> Result<Tensor>,
    params: &Params,
    input_shape: &[usize],
) -> Result<()> {
    let input = dummy_input(params, &one_example(input_shape))?;
    let Ok((_, ops)) = trace(|| network(&input)) else {
        return Ok(()); // wrong, or for batches of one size: the whole batch will show
    };
    let is_parametric =
        |op: &&TracedOp| matches!(op.layer, Layer::Conv { .. } | Layer::Dense { .. });
    let is_kept = |tensor: &&Tensor| {
        ops.iter().filter(is_parametric).any(|op| op.inputs.contains(&tensor.id()))
    };
    let tensors = || ops.iter().map(|op| &op.output).chain([&input]);
    let traced: usize = tensors().map(Tensor::elem_count).sum();
    // The activations that training keeps, and their gradients.
    let trained = 2 * tensors().filter(is_kept).map(Tensor::elem_count).sum::<usize>();
    let batch = input_shape.first().copied().unwrap_or(1);
    let shape = [batch, traced.max(trained)];
    memory::check("training on so large a batch", &shape, input.dtype(), input.device())
}

/// Plans the traced layers, or says why that is not possible.
fn plan(
    input_shape: &[usize],
    input: &Tensor,
    ops: &[TracedOp],
    output: &Tensor,
    params: &Params,
) -> Result<Plan, String> {
    if params.iter().any(|(_, var)| !is_plain(var)) {
        return Err("the parameters are not contiguous f32 arrays".into());
    }
    let &[batch, height, width, channels] = input_shape else {
        return Err("the input is not a batch of images".into());
    };
    if let Some(op) = ops.iter().find(|op| !op.layer.is_compilable()) {
        return Err(not_compilable(&op.layer));
    }
    if !is_sequential(ops, input, output) {
        return Err("the network is not a plain chain of this crate's layers".into());
    }
    let params = used_by(ops, params);
    let index = |path: String| params.keys().position(|known| *known == path);
    let indices =
        |path: &String| Some((index(format!("{path}/kernel"))?, index(format!("{path}/bias"))?));
    let layers = ops.iter().map(|op| op.layer.try_map(indices));
    let layers = layers.collect::<Option<Vec<_>>>().ok_or("a layer has no kernel and bias")?;
    Ok(Plan {
        input_shape: [batch, height, width, channels],
        num_classes: output.dims().last().copied().unwrap_or(0),
        layers,
        params,
        traced: ops.iter().map(|op| op.layer.clone()).collect(),
        groups: groups(ops),
    })
}

fn not_compilable(layer: &Layer<String>) -> String {
    let name = layer_name(layer);
    match layer {
        Layer::GeneralConv { .. } => format!(
            "there is no compiled form of a convolution with strides or VALID padding, as {name}"
        ),
        _ => format!("there is no compiled form of {name}"),
    }
}

/// Whether kernels can read a tensor as it is.
fn is_plain(tensor: &Tensor) -> bool {
    tensor.dtype() == DType::F32 && tensor.is_contiguous()
}

/// Shapes of the parameters that the layers use, by path.
fn used_by(ops: &[TracedOp], params: &Params) -> BTreeMap<String, Shape> {
    let names = ops.iter().map(|op| layer_name(&op.layer)).collect::<HashSet<_>>();
    let is_used =
        |path: &str| path.rsplit_once('/').is_some_and(|(layer, _)| names.contains(layer));
    let used = params.iter().filter(|(path, _)| is_used(path));
    used.map(|(path, var)| (path.to_owned(), var.shape().clone())).collect()
}

/// One line for each fused group of layers.
fn groups(ops: &[TracedOp]) -> String {
    let mut text = String::new();
    for op in ops {
        let starts_group = matches!(op.layer, Layer::Conv { .. } | Layer::Dense { .. });
        text += if starts_group { "\n  " } else { " → " };
        text += layer_name(&op.layer);
    }
    text
}
