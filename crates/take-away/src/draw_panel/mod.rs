//! A web page to draw digits on, with the network built in.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use base64::prelude::{BASE64_STANDARD, Engine};
use candle_core::{DType, Tensor};
use linen::trace::{Layer, layer_name};
use linen::{
    BATCH_NORM_EPSILON, Conv, Error, Evaluate, Graph, LAYER_NORM_EPSILON, Module, Params, Result,
    files, graph,
};
use notebook_display::display;

const PAGE: &str = include_str!("panel.html");
const SCRIPT: &str = concat!(
    include_str!("parameters.js"),
    "\n",
    include_str!("prepare.js"),
    "\n",
    include_str!("drawing.js"),
    "\n",
    include_str!("panel.js"),
);
/// The shape of the image for which the network is traced.
const IMAGE: [usize; 4] = [1, 28, 28, 1];
/// Parameters with more elements than this are stored in half precision: they dominate the size of
/// the page, and their many rounding errors average out.
const HALF_PRECISION_ABOVE: usize = 1 << 16;
/// Shown by front ends that block frames; the page itself removes it.
const FALLBACK: &str = "Here is a panel to draw a digit on. It shows once this cell is run, or the \
                      notebook is trusted, or exported as HTML.";

/// A web page to draw a digit on, with ten bars that show the network's probabilities.
///
/// It is a self-contained HTML document that works offline: its script prepares the drawing as
/// `images::prepare_digit` does and evaluates the network. A cell shows it as `text/html`, in a
/// frame.
#[derive(Clone)]
pub struct DrawPanel {
    html: String,
}

/// Makes a web page to draw digits on, for a network and its parameters.
///
/// `variables` are [`Params`] or, for a network with batch norm or dropout,
/// [`Variables`](linen::Variables): the page then computes what
/// [`apply_eval`](Module::apply_eval) computes.
///
/// The page contains the parameters and running statistics as base64, those with more than 65,536
/// elements in half precision. The tutorial's network takes 2.3 MB, and its probabilities change by
/// less than 0.001.
///
/// # Errors
/// [`Error::ForeignOperation`] if the network has tensor operations besides `linen`'s layers;
/// [`Error::Shape`] unless it maps `[B, 28, 28, 1]` to `[B, 10]`; [`Error::Tensor`] for a parameter
/// or running statistic that is not finite in its stored precision; the network's own.
///
/// # Examples
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// use linen::{Key, Module, Result, Scope, flatten, log_softmax};
/// use take_away::draw_panel;
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
/// let panel = draw_panel(&Net, &params)?;
/// assert!(panel.html().starts_with("<!DOCTYPE html>"));
/// # Ok::<(), linen::Error>(())
/// ```
pub fn draw_panel(model: &impl Module, variables: &impl Evaluate) -> Result<DrawPanel> {
    let network = graph(model, variables, &IMAGE)?;
    if network.output.dims() != [1, 10] {
        return Err(Error::Shape {
            what: "output of a network for the draw panel",
            expected: "[B, 10], one column per digit".into(),
            found: network.output.dims().to_vec(),
        });
    }
    let (layers, stored) = to_page(&network, variables)?;
    let html = PAGE
        .replace("{{layers}}", &layers)
        .replace("{{script}}", SCRIPT)
        .replace("{{parameters}}", &BASE64_STANDARD.encode(stored.to_bytes()?));
    Ok(DrawPanel { html })
}

impl DrawPanel {
    /// The page as HTML.
    pub fn html(&self) -> &str {
        &self.html
    }

    /// Writes the page to a file.
    ///
    /// # Errors
    /// [`Error::Save`] if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        files::write(path.as_ref(), self.html.as_bytes())
    }

    /// Shows the page as the result of a notebook cell.
    pub fn evcxr_display(&self) {
        let page = self.html.replace('&', "&amp;").replace('"', "&quot;");
        let frame = format!(
            "<iframe title=\"Draw a digit\" srcdoc=\"{page}\" \
             style=\"width: 100%; height: 440px; border: 0\"></iframe><p>{FALLBACK}</p>"
        );
        display(&[("text/html", &frame), ("text/plain", FALLBACK)]);
    }
}

/// Shows the size of the page only.
impl std::fmt::Debug for DrawPanel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DrawPanel({} bytes of HTML)", self.html.len())
    }
}

/// A parameter or running statistic as stored in the page: large ones in half precision.
fn to_stored(path: &str, param: &Tensor) -> Result<Tensor> {
    let dtype = if param.elem_count() > HALF_PRECISION_ABOVE { DType::F16 } else { DType::F32 };
    let stored = param.to_dtype(dtype)?;
    let sum = stored.to_dtype(DType::F32)?.abs()?.sum_all()?.to_scalar::<f32>()?;
    if sum.is_finite() {
        return Ok(stored);
    }
    Err(Error::Tensor(format!("{path:?} has values that are not finite in {dtype:?}")))
}

/// The layers of a network in the format of the page's script, and their parameters and running
/// statistics. The tensors have numbers: the image 0, the output of the first layer 1, and so on.
fn to_page(network: &Graph, variables: &impl Evaluate) -> Result<(String, Params)> {
    let mut tensors = HashMap::from([(network.input, (0, &IMAGE[..]))]);
    let mut paths = HashSet::new();
    let (mut layers, mut stored) = (Vec::new(), Vec::new());
    for (index, op) in network.ops.iter().enumerate() {
        let inputs = op.inputs.iter().map(|input| tensors.get(input).copied());
        let inputs = inputs.collect::<Option<Vec<_>>>().ok_or(Error::ForeignOperation)?;
        let (kind, options, names) = to_function(&op.layer, inputs[0].1);
        let path = layer_name(&op.layer);
        for name in names {
            let path = format!("{path}/{name}");
            let variable = variables.variable(&path).filter(|_| paths.insert(path.clone()));
            // Otherwise the layer is another network's, evaluated within this one.
            let variable = variable.ok_or(Error::ForeignOperation)?;
            stored.push((format!("{index}/{name}"), to_stored(&path, variable)?));
        }
        let inputs = inputs.iter().map(|(number, _)| *number).collect::<Vec<_>>();
        let shape = &op.output.dims()[1..];
        layers.push(format!(
            r#"{{"kind": "{kind}", "inputs": {inputs:?}, "shape": {shape:?}{options}}}"#
        ));
        tensors.insert(op.output.id(), (index + 1, op.output.dims()));
    }
    Ok((format!("[{}]", layers.join(", ")), stored.try_into()?))
}

/// The function in the page's script that evaluates a layer, its options for an input of this
/// shape, and the names of its parameters and running statistics.
fn to_function<'a>(
    layer: &'a Layer<String>,
    input: &[usize],
) -> (&'a str, String, &'static [&'static str]) {
    let epsilon = |value: f64| format!(r#", "epsilon": {value}"#);
    match *layer {
        Layer::Conv { kernel_size, features, .. } => {
            ("conv", conv_options(&Conv::new(features, kernel_size), input), &["kernel", "bias"])
        }
        Layer::GeneralConv { kernel_size, strides, padding, features, .. } => {
            let conv = Conv { features, kernel_size, strides, padding };
            ("conv", conv_options(&conv, input), &["kernel", "bias"])
        }
        Layer::Dense { .. } => ("dense", String::new(), &["kernel", "bias"]),
        Layer::BatchNorm { .. } => {
            ("batch_norm", epsilon(BATCH_NORM_EPSILON), &["scale", "bias", "mean", "var"])
        }
        Layer::LayerNorm { .. } => ("layer_norm", epsilon(LAYER_NORM_EPSILON), &["scale", "bias"]),
        Layer::Dropout { .. } => ("dropout", String::new(), &[]),
        Layer::AvgPool { window: (height, width) } | Layer::MaxPool { window: (height, width) } => {
            (layer_name(layer), format!(r#", "window": [{height}, {width}]"#), &[])
        }
        Layer::Relu
        | Layer::Gelu
        | Layer::GlobalAvgPool
        | Layer::Flatten
        | Layer::Add
        | Layer::Concatenate
        | Layer::LogSoftmax => (layer_name(layer), String::new(), &[]),
    }
}

/// The kernel's size, its steps, and the rows and columns of zeros before the image.
fn conv_options(conv: &Conv, input: &[usize]) -> String {
    let Conv { kernel_size: (height, width), strides: (down, right), padding, .. } = *conv;
    let (above, _) = padding.zeros(input[1], height, down);
    let (left, _) = padding.zeros(input[2], width, right);
    let (window, strides, padding) = ([height, width], [down, right], [above, left]);
    format!(r#", "window": {window:?}, "strides": {strides:?}, "padding": {padding:?}"#)
}
