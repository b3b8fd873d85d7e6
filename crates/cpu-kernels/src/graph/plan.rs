//! Checks the nodes of a network, and fuses those that run together.

use crate::buffer::Buffer;
use crate::chain::{FusedDense, chain_error, checked_len, register_params};
use crate::dense::Dense;
use crate::error::Result;
use crate::general_conv::GeneralConv2d;
use crate::layer::Layer;
use crate::node::Node;
use crate::pool::{Pool2d, PoolKind, Pooling};
use crate::shape::Conv2d;
use crate::stage::DenseStage;

use super::epilogue::Epilogue;
use super::head::{ConvHead, Head};
use super::layer_norm::LayerNorm;
use super::norm::Norm;
use super::stage::{Stage, StageShape};

/// The stages of a network.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    batch: usize,
    pub(crate) stages: Vec<Stage>,
    /// Values per example of each array: the input of the network, then the outputs of the stages.
    pub(crate) array_lens: Vec<usize>,
    /// The array of the network's output.
    pub(crate) output: usize,
    /// Whether anything before the array has parameters.
    is_trained: Vec<bool>,
    pub(crate) param_lens: Vec<usize>,
    /// The channels of each batch norm.
    pub(crate) norms: Vec<usize>,
}

/// A value of the network: the input or the output of a node.
#[derive(Clone, Debug)]
struct Value {
    array: usize,
    /// Sizes of an example.
    dims: Vec<usize>,
}

/// A stage while layers are being fused with it.
struct Fusion {
    epilogue: Epilogue,
    /// Sizes of an example now.
    dims: Vec<usize>,
    /// How far in the order of an [`Epilogue`] it is.
    rank: u8,
}

impl Plan {
    pub(crate) fn new(input_shape: &[usize], nodes: &[Node]) -> Result<Self> {
        checked_len(0, input_shape)?;
        let [batch, dims @ ..] = input_shape else {
            return Err(chain_error(0, "the input has no batch".into()));
        };
        if dims.is_empty() {
            return Err(chain_error(0, "an example needs at least one dimension".into()));
        }
        let parametric = nodes.iter().filter(|node| node.layer.params().is_some()).count();
        let mut plan = Plan {
            batch: *batch,
            array_lens: vec![dims.iter().product()],
            is_trained: vec![false],
            param_lens: vec![0; 2 * parametric],
            ..Self::default()
        };
        let readers = readers(nodes)?;
        let mut values = vec![None; nodes.len() + 1];
        values[0] = Some(Value { array: 0, dims: dims.to_vec() });
        for (index, node) in nodes.iter().enumerate() {
            if values[index + 1].is_some() {
                continue; // fused
            }
            let inputs = node.inputs.iter().map(|&input| values[input].clone());
            let inputs = inputs.collect::<Option<Vec<Value>>>();
            let inputs =
                inputs.ok_or_else(|| chain_error(index, "an input is not known".into()))?;
            plan.add(index, nodes, &readers, &inputs, &mut values)?;
        }
        plan.output = values.last().cloned().flatten().map_or(0, |output| output.array);
        Ok(plan)
    }

    /// Adds the stage that starts with a node.
    fn add(
        &mut self,
        index: usize,
        nodes: &[Node],
        readers: &[Vec<usize>],
        inputs: &[Value],
        values: &mut [Option<Value>],
    ) -> Result<()> {
        let node = &nodes[index];
        let dims = &inputs[0].dims;
        if node.layer == Layer::Flatten {
            let dims = vec![dims.iter().product()];
            values[index + 1] = Some(Value { array: inputs[0].array, dims });
            return Ok(());
        }
        let head = self.head(index, &node.layer, inputs)?;
        let (head, head_dims) = match head {
            Some((head, dims)) => (head, dims),
            None => (Head::Identity, dims.clone()),
        };
        let head_len = checked_len(index, &[&[self.batch], &head_dims[..]].concat())? / self.batch;
        let mut fusion = Fusion { epilogue: Epilogue::default(), dims: head_dims.clone(), rank: 0 };
        if matches!(head, Head::Identity) && !self.fuse(index, nodes, &mut fusion)? {
            return Err(chain_error(index, "there is no compiled form of it".into()));
        }
        let mut fused = vec![index];
        // The backward pass of a log-softmax needs its own output.
        let is_open = !matches!(head, Head::LogSoftmax { .. });
        // A layer that alone reads the one before it.
        while let &[reader] = &readers[fused[fused.len() - 1] + 1][..]
            && is_open
            && self.fuse(reader, nodes, &mut fusion)?
        {
            fused.push(reader);
        }
        let output_len = checked_len(index, &fusion.dims)?;
        let row = match head_dims[..] {
            [_, width, channels] => width * channels,
            _ => head_len,
        };
        let params = node.layer.params().filter(|_| !matches!(head, Head::Identity)).copied();
        let needs_gradient = inputs.iter().map(|input| self.is_trained[input.array]);
        let needs_gradient = needs_gradient.collect();
        self.array_lens.push(output_len);
        let output = self.array_lens.len() - 1;
        let stage = Stage {
            head,
            params,
            epilogue: fusion.epilogue,
            inputs: inputs.iter().map(|input| input.array).collect(),
            needs_gradient,
            output,
            shape: StageShape { head: head_len, row, output: output_len },
            kept: Default::default(),
        };
        self.is_trained.push(stage.is_trained());
        self.stages.push(stage);
        for node in fused {
            values[node + 1] = Some(Value { array: output, dims: fusion.dims.clone() });
        }
        Ok(())
    }

    /// The head of a stage for a layer and the sizes of its output; `None` for layers that are
    /// fused with a head.
    fn head(
        &mut self,
        index: usize,
        layer: &Layer,
        inputs: &[Value],
    ) -> Result<Option<(Head, Vec<usize>)>> {
        let dims = &inputs[0].dims[..];
        let channels = dims.last().copied().unwrap_or(1);
        let head = match (layer, dims) {
            (&Layer::Conv { kernel_size, features, params }, &[height, width, in_channels]) => {
                let (batch, kernel) = (1, kernel_size);
                let out_channels = features;
                let conv = Conv2d { batch, height, width, in_channels, out_channels, kernel };
                let kernel_len = checked_len(index, &[kernel.0, kernel.1, in_channels, features])?;
                let padded = [self.batch, height + kernel.0, width + kernel.1];
                checked_len(index, &[&padded[..], &[in_channels.max(features)]].concat())?;
                register_params(&mut self.param_lens, index, params, [kernel_len, features])?;
                (Head::Conv(Box::new(ConvHead::new(conv))), vec![height, width, features])
            }
            (
                &Layer::GeneralConv { kernel_size, strides, padding, features, params },
                &[height, width, in_channels],
            ) => {
                checked_len(index, &[strides.0, strides.1])?;
                let conv = GeneralConv2d {
                    batch: 1,
                    height,
                    width,
                    in_channels,
                    out_channels: features,
                    kernel: kernel_size,
                    strides,
                    padding,
                };
                let (rows, columns) = conv.output_size();
                let kernel_len =
                    checked_len(index, &[kernel_size.0, kernel_size.1, in_channels, features])?;
                register_params(&mut self.param_lens, index, params, [kernel_len, features])?;
                let transposed_weights = Buffer::zeroed(kernel_len);
                (Head::GeneralConv { conv, transposed_weights }, vec![rows, columns, features])
            }
            (&Layer::Dense { features, params }, &[inputs_len]) => {
                let dense = Dense { batch: self.batch, inputs: inputs_len, outputs: features };
                checked_len(index, &[self.batch, inputs_len.max(features), 16])?;
                let kernel_len = checked_len(index, &[inputs_len, features])?;
                register_params(&mut self.param_lens, index, params, [kernel_len, features])?;
                let fused = FusedDense { dense, relu: false, params };
                let stage = DenseStage::new(fused, self.is_trained[inputs[0].array]);
                (Head::Dense(Box::new(stage)), vec![features])
            }
            (&Layer::LayerNorm { params }, _) => {
                register_params(&mut self.param_lens, index, params, [channels, channels])?;
                (Head::LayerNorm(LayerNorm::new(channels)), dims.to_vec())
            }
            (Layer::Gelu, _) => (Head::Gelu, dims.to_vec()),
            (Layer::GlobalAvgPool, &[_, _, channels]) => {
                (Head::GlobalAvgPool { channels }, vec![channels])
            }
            (Layer::LogSoftmax, _) => (Head::LogSoftmax { classes: channels }, dims.to_vec()),
            (Layer::Add, _) if inputs.iter().all(|input| input.dims == dims) => {
                (Head::Add, dims.to_vec())
            }
            (Layer::Concatenate, &[ref leading @ .., _])
                if inputs
                    .iter()
                    .all(|input| input.dims.split_last().map(|it| it.1) == Some(leading)) =>
            {
                let channels = inputs.iter().filter_map(|input| input.dims.last().copied());
                let channels = channels.collect::<Vec<_>>();
                let dims = [leading, &[channels.iter().sum()]].concat();
                (Head::Concatenate(channels), dims)
            }
            (
                Layer::BatchNorm { .. }
                | Layer::Relu
                | Layer::AvgPool { .. }
                | Layer::MaxPool { .. }
                | Layer::Dropout { .. },
                _,
            ) => return Ok(None),
            _ => {
                let reason = format!("it does not take an input of {dims:?} per example");
                return Err(chain_error(index, reason));
            }
        };
        Ok(Some(head))
    }

    /// Fuses a layer with the stage before it, if it can follow what is there.
    fn fuse(&mut self, index: usize, nodes: &[Node], fusion: &mut Fusion) -> Result<bool> {
        let Fusion { epilogue, dims, rank } = fusion;
        let channels = dims.last().copied().unwrap_or(1);
        let (height, width) = match dims[..] {
            [height, width, _] => (height, width),
            _ => (1, 1), // nothing to pool
        };
        // Its place among those of its kind, in the order of the nodes.
        let place = |is_alike: fn(&Layer) -> bool| {
            nodes[..index].iter().filter(|node| is_alike(&node.layer)).count()
        };
        let next = match nodes[index].layer {
            Layer::BatchNorm { params } if *rank < 1 => {
                register_params(&mut self.param_lens, index, params, [channels, channels])?;
                let place = place(|layer| matches!(layer, Layer::BatchNorm { .. }));
                epilogue.norm = Some(Norm::new(channels, params, place));
                self.norms.resize(self.norms.len().max(place + 1), 0);
                self.norms[place] = channels;
                1
            }
            Layer::Relu if *rank < 2 => {
                epilogue.set_relu(true);
                2
            }
            Layer::AvgPool { window } if *rank < 3 && dims.len() == 3 => {
                let relu = epilogue.relu;
                let pixels = checked_len(index, &[window.0, window.1])?;
                if relu && pixels > Pooling::max_window_len(PoolKind::Average) {
                    return Ok(false);
                }
                let pool = Pool2d { batch: 1, height, width, channels, window };
                epilogue.pooling = Some(Pooling { pool, kind: PoolKind::Average, relu });
                3
            }
            Layer::MaxPool { window } if *rank < 3 && dims.len() == 3 => {
                checked_len(index, &[window.0, window.1])?;
                let relu = epilogue.relu;
                let pool = Pool2d { batch: 1, height, width, channels, window };
                epilogue.pooling = Some(Pooling { pool, kind: PoolKind::Max, relu });
                3
            }
            Layer::Dropout { .. } if *rank < 4 => {
                epilogue.dropout = Some(place(|layer| matches!(layer, Layer::Dropout { .. })));
                4
            }
            _ => return Ok(false),
        };
        if let (3, Some(pooling)) = (next, epilogue.pooling) {
            epilogue.set_relu(false); // the pooling has taken it
            let (rows, columns) = pooling.pool.windows();
            checked_len(index, &[rows, columns, channels])?;
            *dims = vec![rows, columns, channels];
        }
        *rank = next;
        Ok(true)
    }
}

/// The nodes that read each value: the input, and the outputs of the nodes.
fn readers(nodes: &[Node]) -> Result<Vec<Vec<usize>>> {
    let mut readers = vec![Vec::new(); nodes.len() + 1];
    for (index, node) in nodes.iter().enumerate() {
        let is_joint = matches!(node.layer, Layer::Add | Layer::Concatenate);
        if node.inputs.is_empty() || !is_joint && node.inputs.len() > 1 {
            let count = node.inputs.len();
            return Err(chain_error(index, format!("it does not take {count} inputs")));
        }
        for &input in &node.inputs {
            if input > index {
                return Err(chain_error(index, "it comes before one of its inputs".into()));
            }
            readers[input].push(index);
        }
    }
    let outputs = readers.iter().skip(1).take(nodes.len().saturating_sub(1));
    match outputs.clone().position(Vec::is_empty) {
        Some(index) => Err(chain_error(index, "nothing uses its output".into())),
        None if nodes.is_empty() => Err(chain_error(0, "there are no layers".into())),
        None => Ok(readers),
    }
}
