//! Export of networks to ONNX, for other runtimes and languages.

mod proto;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use linen::trace::{Layer, TracedOp, layer_name};
use linen::{Error, Module, Params, Result, files, sequential};
use prost::Message;

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
/// # Shapes
/// - `input_shape`: `[B, height, width, channels]`; B does not matter
///
/// # Errors
/// [`Error::NotSequential`] unless the network is a plain chain of `linen`'s layers;
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
///         log_softmax(&nn.dense(10, &flatten(x)?)?)
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
    params: &Params,
    input_shape: &[usize],
    path: impl AsRef<Path>,
) -> Result<()> {
    let path = path.as_ref();
    let ops = sequential(model, params, input_shape)?;
    let file = Model {
        ir_version: IR_VERSION,
        producer_name: env!("CARGO_PKG_NAME").into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(graph(model.name(), &ops, params, input_shape)?),
        opset_import: vec![OperatorSet { version: OPSET }],
    };
    files::write(path, &file.encode_to_vec())
}

fn graph(name: &str, ops: &[TracedOp], params: &Params, input_shape: &[usize]) -> Result<Graph> {
    let mut builder = GraphBuilder {
        params,
        value: "image".into(),
        channels_first: false,
        graph: Graph::default(),
    };
    for (index, op) in ops.iter().enumerate() {
        builder.add_layer(index, &op.layer)?;
    }
    builder.set_channels_first(false);
    let mut graph = Graph { name: name.into(), ..builder.graph };
    if let Some(last) = graph.node.last_mut() {
        last.output = vec!["logits".into()];
    }
    let shapes = ops.last().map(|last| (&input_shape[1..], &last.output.dims()[1..]));
    if let Some((input, output)) = shapes {
        graph.input = vec![ValueInfo::examples("image", input)];
        graph.output = vec![ValueInfo::examples("logits", output)];
    }
    Ok(graph)
}

/// Builds a graph layer by layer.
struct GraphBuilder<'a> {
    params: &'a Params,
    /// Name of the current value, the output of the last node.
    value: String,
    /// Whether the current value is an image with its channels first.
    channels_first: bool,
    graph: Graph,
}

impl GraphBuilder<'_> {
    fn add_layer(&mut self, index: usize, layer: &Layer<String>) -> Result<()> {
        let name = match layer {
            Layer::Conv { params: path, .. } | Layer::Dense { params: path, .. } => path.clone(),
            other => format!("{}_{index}", layer_name(other)),
        };
        match layer {
            Layer::Conv { params: path, kernel_size: (height, width), .. } => {
                self.set_channels_first(true);
                let inputs = self.add_parameters(path, |kernel| kernel.permute((3, 2, 0, 1)))?;
                let pads = [(height - 1) / 2, (width - 1) / 2, height / 2, width / 2];
                // ONNX defaults to strides and dilations of 1, but some runtimes require them.
                let attributes = vec![
                    Attribute::ints("pads", &pads),
                    Attribute::ints("strides", &[1, 1]),
                    Attribute::ints("dilations", &[1, 1]),
                ];
                self.add_node("Conv", name, &inputs, attributes);
            }
            Layer::Dense { params: path, .. } => {
                let inputs = self.add_parameters(path, |kernel| Ok(kernel.clone()))?;
                self.add_node("Gemm", name, &inputs, vec![]);
            }
            Layer::Relu => self.add_node("Relu", name, &[], vec![]),
            Layer::AvgPool { window } => self.add_pool("AveragePool", name, *window),
            Layer::MaxPool { window } => self.add_pool("MaxPool", name, *window),
            Layer::Flatten => {
                self.set_channels_first(false);
                self.add_node("Flatten", name, &[], vec![Attribute::int("axis", 1)]);
            }
            Layer::LogSoftmax => {
                self.set_channels_first(false);
                self.add_node("LogSoftmax", name, &[], vec![Attribute::int("axis", -1)]);
            }
            // Unreachable: `apply` refuses networks with these layers.
            Layer::BatchNorm { .. } | Layer::Dropout { .. } => return Err(Error::NotSequential),
        }
        Ok(())
    }

    fn add_pool(&mut self, operator: &str, name: String, window: (usize, usize)) {
        self.set_channels_first(true);
        let window = [window.0, window.1];
        let attributes =
            vec![Attribute::ints("kernel_shape", &window), Attribute::ints("strides", &window)];
        self.add_node(operator, name, &[], attributes);
    }

    /// Transposes the current value if its channels are in the other place.
    fn set_channels_first(&mut self, first: bool) {
        if self.channels_first != first {
            let order: [usize; 4] = if first { [0, 3, 1, 2] } else { [0, 2, 3, 1] };
            let name = format!("channels_{}_{}", if first { "first" } else { "last" }, self.value);
            self.add_node("Transpose", name, &[], vec![Attribute::ints("perm", &order)]);
            self.channels_first = first;
        }
    }

    /// Adds a node that maps the current value to the next.
    fn add_node(
        &mut self,
        operator: &str,
        name: String,
        params: &[String],
        attribute: Vec<Attribute>,
    ) {
        let input = std::mem::replace(&mut self.value, name.clone());
        self.graph.node.push(Node {
            input: [input].into_iter().chain(params.iter().cloned()).collect(),
            output: vec![name.clone()],
            name,
            op_type: operator.into(),
            attribute,
        });
    }

    /// Stores the kernel and bias of a layer, and returns their names.
    fn add_parameters(
        &mut self,
        layer: &str,
        to_onnx: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
    ) -> Result<[String; 2]> {
        let (kernel, bias) = (format!("{layer}/kernel"), format!("{layer}/bias"));
        for (path, tensor) in self.params.iter() {
            if path == kernel {
                self.graph.initializer.push(initializer(path, &to_onnx(tensor)?)?);
            } else if path == bias {
                self.graph.initializer.push(initializer(path, tensor)?);
            }
        }
        Ok([kernel, bias])
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
