//! Export of networks to ONNX, for other runtimes and languages.

mod proto;

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, TensorId};
use linen::trace::{Layer, TracedOp, layer_name};
use linen::{
    BATCH_NORM_EPSILON, Conv, Error, Evaluate, Graph as Network, LAYER_NORM_EPSILON, Module,
    Result, files,
};
use prost::Message;

use self::Layout::{ChannelsFirst, ChannelsLast};
use self::proto::{Attribute, Graph, Model, Node, OperatorSet, ValueInfo};

/// Version of the ONNX operator set.
const OPSET: i64 = 17;
/// Version of the file format that was released with it.
const IR_VERSION: i64 = 8;

/// Writes a network with its parameters to an ONNX file.
///
/// The file has one input, `image`, and one output, `logits`, both f32 and for any batch size; it
/// computes what [`apply`](Module::apply) computes. Images keep their channels last; the graph
/// transposes them to ONNX's channels first and back. The file is written atomically.
///
/// `params` are [`Params`](linen::Params) or, for a network with batch norm or dropout,
/// [`Variables`](linen::Variables): the file then computes what
/// [`apply_eval`](Module::apply_eval) computes.
///
/// # Shapes
/// - `input_shape`: `[B, height, width, channels]`; B does not matter
///
/// # Errors
/// [`Error::ForeignOperation`] if the network has tensor operations besides `linen`'s layers;
/// [`Error::Save`] if the file cannot be written; the network's own for an input of this shape.
///
/// # Examples
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// use linen::{Key, Module, Result, Scope, flatten, log_softmax};
/// use take_away::save_onnx;
///
/// struct Net;
///
/// impl Module for Net {
///     fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
///         log_softmax(nn.dense(10, flatten(x)))
///     }
/// }
///
/// let images = Tensor::zeros((1, 28, 28, 1), DType::F32, &Device::Cpu)?;
/// let params = Net.init(Key::new(0), &images)?;
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("mnist.onnx");
/// save_onnx(&Net, &params, &[1, 28, 28, 1], &path)?;
/// assert!(std::fs::metadata(&path).unwrap().len() > 4 * params.elem_count() as u64);
/// # Ok::<(), linen::Error>(())
/// ```
///
/// # Source
/// The [ONNX operators](https://onnx.ai/onnx/operators/), version 17.
pub fn save_onnx(
    model: &impl Module,
    params: &impl Evaluate,
    input_shape: &[usize],
    path: impl AsRef<Path>,
) -> Result<()> {
    let path = path.as_ref();
    let network = linen::graph(model, params, input_shape)?;
    let file = Model {
        ir_version: IR_VERSION,
        producer_name: env!("CARGO_PKG_NAME").into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(to_onnx(model.name(), &network, params, input_shape)?),
        opset_import: vec![OperatorSet { version: OPSET }],
    };
    files::write(path, &file.encode_to_vec())
}

fn to_onnx(
    name: &str,
    network: &Network,
    variables: &impl Evaluate,
    input_shape: &[usize],
) -> Result<Graph> {
    let mut builder = GraphBuilder { variables, values: HashMap::new(), graph: Graph::default() };
    let batch = [&[1], &input_shape[1..]].concat();
    builder.add_value(network.input, &batch, ChannelsLast, "image");
    for (index, op) in network.ops.iter().enumerate() {
        builder.add_layer(index, op)?;
    }
    let logits = builder.value(network.output.id(), ChannelsLast)?;
    if builder.graph.node.last().is_none_or(|last| last.name != logits) {
        builder.add_node("Identity", "logits", &[&logits], vec![]);
    }
    let mut graph = Graph { name: name.into(), ..builder.graph };
    if let Some(last) = graph.node.last_mut() {
        last.output = vec!["logits".into()];
    }
    graph.input = vec![ValueInfo::examples("image", &input_shape[1..])];
    graph.output = vec![ValueInfo::examples("logits", &network.output.dims()[1..])];
    Ok(graph)
}

/// Where the channels of a batch of images are: `[B, height, width, channels]`, or
/// `[B, channels, height, width]`. For all other arrays this makes no difference.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Layout {
    ChannelsLast,
    ChannelsFirst,
}

/// A tensor of the network in the graph.
struct Value {
    /// Its shape in the network, where channels are last.
    shape: Vec<usize>,
    /// The names under which the graph has it.
    names: HashMap<Layout, String>,
}

/// Builds a graph layer by layer.
struct GraphBuilder<'a, V> {
    variables: &'a V,
    values: HashMap<TensorId, Value>,
    graph: Graph,
}

impl<V: Evaluate> GraphBuilder<'_, V> {
    fn add_layer(&mut self, index: usize, op: &TracedOp) -> Result<()> {
        let name = match &op.layer {
            Layer::Conv { params: path, .. }
            | Layer::GeneralConv { params: path, .. }
            | Layer::Dense { params: path, .. }
            | Layer::BatchNorm { params: path }
            | Layer::LayerNorm { params: path } => path,
            function => &format!("{}_{index}", layer_name(function)),
        };
        let first = op.inputs[0];
        let layout = match op.layer {
            Layer::Conv { .. }
            | Layer::GeneralConv { .. }
            | Layer::AvgPool { .. }
            | Layer::MaxPool { .. }
            | Layer::BatchNorm { .. } => ChannelsFirst,
            Layer::Flatten | Layer::Dense { .. } | Layer::LayerNorm { .. } | Layer::LogSoftmax => {
                ChannelsLast
            }
            // Wherever they are.
            Layer::Relu
            | Layer::Gelu
            | Layer::GlobalAvgPool
            | Layer::Dropout { .. }
            | Layer::Add
            | Layer::Concatenate => self.layout(first),
        };
        let inputs = op.inputs.iter().map(|input| self.value(*input, layout));
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        let x = inputs[0].as_str();
        match op.layer {
            Layer::Conv { kernel_size, features, .. } => {
                self.add_conv(name, &Conv::new(features, kernel_size), first, x)?;
            }
            Layer::GeneralConv { kernel_size, strides, padding, features, .. } => {
                let conv = Conv { features, kernel_size, strides, padding };
                self.add_conv(name, &conv, first, x)?;
            }
            Layer::Dense { .. } => {
                let kernel = self.add_parameter(name, "kernel")?;
                let bias = self.add_parameter(name, "bias")?;
                self.add_node("Gemm", name, &[x, &kernel, &bias], vec![]);
            }
            Layer::Relu => self.add_node("Relu", name, &[x], vec![]),
            Layer::Gelu => self.add_gelu(name, x),
            Layer::AvgPool { window } => self.add_pool("AveragePool", name, x, window),
            Layer::MaxPool { window } => self.add_pool("MaxPool", name, x, window),
            Layer::GlobalAvgPool => {
                let axes = if layout == ChannelsFirst { [2, 3] } else { [1, 2] };
                let attributes =
                    vec![Attribute::ints("axes", &axes), Attribute::int("keepdims", 0)];
                self.add_node("ReduceMean", name, &[x], attributes);
            }
            Layer::Flatten => {
                self.add_node("Flatten", name, &[x], vec![Attribute::int("axis", 1)]);
            }
            Layer::BatchNorm { .. } => {
                let variables = ["scale", "bias", "mean", "var"];
                let variables = variables.map(|variable| self.add_parameter(name, variable));
                let [scale, bias, mean, var] = variables;
                let inputs = [x, &scale?, &bias?, &mean?, &var?];
                let attributes = vec![Attribute::float("epsilon", BATCH_NORM_EPSILON)];
                self.add_node("BatchNormalization", name, &inputs, attributes);
            }
            Layer::LayerNorm { .. } => {
                let scale = self.add_parameter(name, "scale")?;
                let bias = self.add_parameter(name, "bias")?;
                let attributes = vec![
                    Attribute::int("axis", -1),
                    Attribute::float("epsilon", LAYER_NORM_EPSILON),
                ];
                self.add_node("LayerNormalization", name, &[x, &scale, &bias], attributes);
            }
            // In evaluation it returns its input.
            Layer::Dropout { .. } => {}
            Layer::Add => self.add_node("Add", name, &[x, &inputs[1]], vec![]),
            Layer::Concatenate => {
                let axis = if layout == ChannelsFirst { 1 } else { -1 };
                let inputs = inputs.iter().map(String::as_str).collect::<Vec<_>>();
                self.add_node("Concat", name, &inputs, vec![Attribute::int("axis", axis)]);
            }
            Layer::LogSoftmax => {
                self.add_node("LogSoftmax", name, &[x], vec![Attribute::int("axis", -1)]);
            }
        }
        let output = if matches!(op.layer, Layer::Dropout { .. }) { x } else { name };
        self.add_value(op.output.id(), op.output.dims(), layout, output);
        Ok(())
    }

    /// Adds a convolution of a tensor of the network, whose name is `x`.
    fn add_conv(&mut self, path: &str, conv: &Conv, image: TensorId, x: &str) -> Result<()> {
        let &[_, rows, columns, _] = self.values[&image].shape.as_slice() else {
            return Err(Error::ForeignOperation); // every convolution has checked its input
        };
        let kernel = self.add_parameter(path, "kernel")?;
        let bias = self.add_parameter(path, "bias")?;
        let Conv { kernel_size: (height, width), strides, padding, .. } = *conv;
        let (above, below) = padding.zeros(rows, height, strides.0);
        let (left, right) = padding.zeros(columns, width, strides.1);
        // ONNX defaults to strides and dilations of 1, but some runtimes require them.
        let attributes = vec![
            Attribute::ints("pads", &[above, left, below, right]),
            Attribute::ints("strides", &[strides.0, strides.1]),
            Attribute::ints("dilations", &[1, 1]),
        ];
        self.add_node("Conv", path, &[x, &kernel, &bias], attributes);
        Ok(())
    }

    fn add_pool(&mut self, operator: &str, name: &str, x: &str, window: (usize, usize)) {
        let window = [window.0, window.1];
        let attributes =
            vec![Attribute::ints("kernel_shape", &window), Attribute::ints("strides", &window)];
        self.add_node(operator, name, &[x], attributes);
    }

    /// `x · sigmoid(x · (scale + scale · 0.044715 · x²))`, because the operator set has no GELU.
    fn add_gelu(&mut self, name: &str, x: &str) {
        let scale = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
        let [linear, cubic] = [scale, scale * 0.044715].map(|value| self.add_scalar(value));
        let step = |what: &str| format!("{name}/{what}");
        let (square, scaled, slope) = (&step("square"), &step("scaled"), &step("slope"));
        let (product, gate) = (&step("product"), &step("gate"));
        self.add_node("Mul", square, &[x, x], vec![]);
        self.add_node("Mul", scaled, &[square, &cubic], vec![]);
        self.add_node("Add", slope, &[scaled, &linear], vec![]);
        self.add_node("Mul", product, &[x, slope], vec![]);
        self.add_node("Sigmoid", gate, &[product], vec![]);
        self.add_node("Mul", name, &[x, gate], vec![]);
    }

    /// The name of a tensor of the network in this layout; transposes it if it is in the other.
    fn value(&mut self, id: TensorId, layout: Layout) -> Result<String> {
        let value = self.values.get(&id).ok_or(Error::ForeignOperation)?;
        if let Some(name) = value.names.get(&layout) {
            return Ok(name.clone());
        }
        let rank = value.shape.len();
        let (prefix, order) = match layout {
            ChannelsFirst => ("channels_first", [vec![0, rank - 1], (1..rank - 1).collect()]),
            ChannelsLast => ("channels_last", [vec![0], (2..rank).chain([1]).collect()]),
        };
        let other = value.names.values().next().ok_or(Error::ForeignOperation)?.clone();
        let name = format!("{prefix}_{other}");
        let order = Attribute::ints("perm", &order.concat());
        self.add_node("Transpose", &name, &[&other], vec![order]);
        self.add_value(id, &[], layout, &name);
        Ok(name)
    }

    /// The layout in which the graph has a tensor.
    fn layout(&self, id: TensorId) -> Layout {
        let is_first =
            self.values.get(&id).is_some_and(|value| value.names.contains_key(&ChannelsFirst));
        if is_first { ChannelsFirst } else { ChannelsLast }
    }

    /// Notes under which name the graph has a tensor of the network.
    fn add_value(&mut self, id: TensorId, shape: &[usize], layout: Layout, name: &str) {
        let new = || Value { shape: shape.to_vec(), names: HashMap::new() };
        let value = self.values.entry(id).or_insert_with(new);
        value.names.insert(layout, name.into());
        if value.shape.len() < 3 {
            value.names.insert(ChannelsFirst, name.into());
            value.names.insert(ChannelsLast, name.into());
        }
    }

    /// Adds a node with one output, which has its name.
    fn add_node(&mut self, operator: &str, name: &str, inputs: &[&str], attribute: Vec<Attribute>) {
        self.graph.node.push(Node {
            input: inputs.iter().map(|input| (*input).to_owned()).collect(),
            output: vec![name.into()],
            name: name.into(),
            op_type: operator.into(),
            attribute,
        });
    }

    /// Stores a parameter or a running statistic of a layer, and returns its name.
    fn add_parameter(&mut self, layer: &str, variable: &str) -> Result<String> {
        let path = format!("{layer}/{variable}");
        let is_known = self.graph.initializer.iter().any(|known| known.name == path);
        let (Some(tensor), false) = (self.variables.variable(&path), is_known) else {
            // The layer is another network's, evaluated within this one.
            return Err(Error::ForeignOperation);
        };
        let tensor = match tensor.rank() {
            4 => tensor.permute((3, 2, 0, 1))?, // a kernel, with ONNX's channels first
            _ => tensor.as_tensor().clone(),
        };
        self.graph.initializer.push(initializer(&path, &tensor)?);
        Ok(path)
    }

    /// Stores a number, and returns its name.
    fn add_scalar(&mut self, value: f64) -> String {
        let name = format!("{value}");
        if self.graph.initializer.iter().all(|known| known.name != name) {
            self.graph.initializer.push(proto::Tensor {
                dims: vec![],
                data_type: proto::FLOAT,
                name: name.clone(),
                raw_data: (value as f32).to_le_bytes().to_vec(),
            });
        }
        name
    }
}

fn initializer(name: &str, tensor: &Tensor) -> Result<proto::Tensor> {
    let values = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?;
    Ok(proto::Tensor {
        dims: tensor.dims().iter().map(|size| *size as i64).collect(),
        data_type: proto::FLOAT,
        name: name.into(),
        raw_data: values.to_vec1::<f32>()?.iter().flat_map(|value| value.to_le_bytes()).collect(),
    })
}
