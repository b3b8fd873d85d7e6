//! Plans: what a network does with a batch of one shape, found out by tracing it.
//!
//! `jax.jit` runs a function once with abstract values, traces its operations, and has XLA plan
//! buffers and fuse loops for the given shapes. [`Plan::trace`] does this on a small scale.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use candle_core::{DType, Shape, Tensor, Var};
use cpu_kernels::{KernelError, Layer, Node, Statistics, check_chain, check_graph};

use crate::error::Result;
use crate::memory;
use crate::no_grad::with_tracking;
use crate::params::Params;
use crate::trace::{TracedOp, layer_name, trace};

/// A network for batches of one shape; `Display` has one line for each fused group of layers.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) input_shape: Vec<usize>,
    pub(crate) output_shape: Vec<usize>,
    /// The layers; their parameters are indices into `params`.
    pub(crate) nodes: Vec<Node>,
    /// The paths of the batch norms, in the order of the nodes.
    pub(crate) norms: Vec<String>,
    /// The paths and rates of the dropouts, in the order of the nodes.
    pub(crate) dropouts: Vec<(String, f64)>,
    /// Shapes of the parameters by path.
    params: BTreeMap<String, Shape>,
    /// The layers as they were traced.
    traced: Vec<Node<String>>,
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
        Ok(plan(&input, &ops, &output, params))
    }

    /// The layers if they form a plain chain of what a [`cpu_kernels::Program`] can have.
    pub(crate) fn chain(&self) -> Option<([usize; 4], Vec<Layer>)> {
        let input_shape = self.input_shape.clone().try_into().ok()?;
        let is_next = |(index, node): (usize, &Node)| node.inputs == [index];
        let layers = self.nodes.iter().map(|node| node.layer.clone()).collect::<Vec<_>>();
        let is_chain = self.nodes.iter().enumerate().all(is_next);
        (is_chain && check_chain(input_shape, &layers).is_ok()).then_some((input_shape, layers))
    }

    /// Checks that there are kernels for it.
    pub(crate) fn check(&self) -> Result<(), KernelError> {
        match self.chain() {
            Some(_) => Ok(()),
            None => check_graph(&self.input_shape, &self.nodes),
        }
    }

    /// The running statistics of the batch norms, if all are there in the right shape.
    pub(crate) fn statistics(&self, batch_stats: &Params) -> Option<Vec<Statistics>> {
        let statistics = self.norms.iter().map(|path| {
            let shape = self.params.get(&format!("{path}/scale"))?;
            let values = |name: &str| {
                let var = batch_stats.get(&format!("{path}/{name}"))?;
                if var.shape() == shape { var.to_vec1::<f32>().ok() } else { None }
            };
            Some(Statistics { mean: values("mean")?, var: values("var")?, is_training: false })
        });
        statistics.collect()
    }

    /// The variables of the plan's parameters, if all are there in the right shape.
    pub(crate) fn vars<'a>(&self, params: &'a Params) -> Option<Vec<&'a Var>> {
        let is_planned =
            |path: &str, var: &Var| self.params.get(path) == Some(var.shape()) && is_plain(var);
        let planned = params.iter().filter(|(path, var)| is_planned(path, var));
        let vars = planned.map(|(_, var)| var).collect::<Vec<_>>();
        (vars.len() == self.params.len()).then_some(vars)
    }

    /// Whether the network still has the same layers and the result of the last one, as one example
    /// shows. A network for batches of one size has no examples.
    pub(crate) fn is_still_of(
        &self,
        network: impl Fn(&Tensor) -> Result<Tensor>,
        params: &Params,
    ) -> Result<bool> {
        let example = dummy_input(params, &one_example(&self.input_shape))?;
        let Ok((output, ops)) = trace(|| with_tracking(true, || network(&example))) else {
            return Ok(false);
        };
        let is_last = ops.last().is_some_and(|last| last.output.id() == output.id());
        Ok(is_last && connect(&example, &ops).as_ref() == Some(&self.traced))
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
    let is_parametric = |op: &&TracedOp| op.layer.params().is_some();
    let is_kept = |tensor: &&Tensor| {
        ops.iter().filter(is_parametric).any(|op| op.inputs.contains(&tensor.id()))
    };
    let tensors = || ops.iter().map(|op| &op.output).chain([&input]);
    let traced: usize = tensors().map(Tensor::elem_count).sum();
    let is_chain = ops.iter().all(|op| op.inputs.len() == 1 && is_of_chain(&op.layer));
    // The activations that training keeps, and their gradients; a graph also keeps what batch norm
    // and dropout need.
    let trained = match is_chain {
        true => 2 * tensors().filter(is_kept).map(Tensor::elem_count).sum::<usize>(),
        false => 3 * traced,
    };
    let batch = input_shape.first().copied().unwrap_or(1);
    let shape = [batch, traced.max(trained)];
    memory::check("training on so large a batch", &shape, input.dtype(), input.device())
}

/// Whether a [`cpu_kernels::Program`] may have this layer.
fn is_of_chain(layer: &Layer<String>) -> bool {
    matches!(
        layer,
        Layer::Conv { .. }
            | Layer::Dense { .. }
            | Layer::AvgPool { .. }
            | Layer::MaxPool { .. }
            | Layer::Relu
            | Layer::Flatten
            | Layer::LogSoftmax
    )
}

/// Plans the traced layers, or says why that is not possible.
fn plan(
    input: &Tensor,
    ops: &[TracedOp],
    output: &Tensor,
    params: &Params,
) -> Result<Plan, String> {
    if params.iter().any(|(_, var)| !is_plain(var)) {
        return Err("the parameters are not contiguous f32 arrays".into());
    }
    let params = used_by(ops, params);
    let index = |path: String| params.keys().position(|known| *known == path);
    let indices = |layer: &Layer<String>| {
        let path = layer_name(layer);
        let first = match layer {
            Layer::BatchNorm { .. } | Layer::LayerNorm { .. } => "scale",
            Layer::Dropout { .. } => return Some((0, 0)), // it has no parameters
            _ => "kernel",
        };
        Some((index(format!("{path}/{first}"))?, index(format!("{path}/bias"))?))
    };
    let traced = connect(input, ops);
    let traced = traced.ok_or("it has operations that are not layers of this crate")?;
    if ops.last().is_none_or(|last| last.output.id() != output.id()) {
        return Err("its result is not that of its last layer".into());
    }
    let nodes = traced.iter().map(|Node { layer, inputs }| {
        let layer = layer.try_map(|_| indices(layer))?;
        Some(Node { layer, inputs: inputs.clone() })
    });
    let nodes = nodes.collect::<Option<Vec<Node>>>().ok_or("a layer has no kernel and bias")?;
    let layers = || traced.iter().map(|node| &node.layer);
    let norms = layers().filter(|layer| matches!(layer, Layer::BatchNorm { .. }));
    let dropouts = layers().filter_map(|layer| match layer {
        Layer::Dropout { name, rate } => Some((name.clone(), *rate)),
        _ => None,
    });
    Ok(Plan {
        input_shape: input.dims().to_vec(),
        output_shape: output.dims().to_vec(),
        nodes,
        norms: norms.map(|norm| layer_name(norm).to_owned()).collect(),
        dropouts: dropouts.collect(),
        params,
        traced,
        groups: groups(ops),
    })
}

/// The layers with what each reads; `None` if it is not the input or the output of another.
fn connect(input: &Tensor, ops: &[TracedOp]) -> Option<Vec<Node<String>>> {
    let mut values = HashMap::from([(input.id(), 0)]);
    let mut nodes = Vec::new();
    for op in ops {
        let inputs = op.inputs.iter().map(|input| values.get(input).copied());
        let inputs = inputs.collect::<Option<Vec<usize>>>()?;
        nodes.push(Node { layer: op.layer.clone(), inputs });
        values.insert(op.output.id(), nodes.len());
    }
    Some(nodes)
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
        let is_head = matches!(
            op.layer,
            Layer::Conv { .. }
                | Layer::GeneralConv { .. }
                | Layer::Dense { .. }
                | Layer::Add
                | Layer::Concatenate
        );
        let starts_group = text.is_empty() || is_head;
        text += if starts_group { "\n  " } else { " → " };
        text += layer_name(&op.layer);
    }
    text
}
