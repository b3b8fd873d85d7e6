//! A web page to draw digits on, with the network built in.

use std::path::Path;

use base64::prelude::{BASE64_STANDARD, Engine};
use candle_core::{DType, Tensor};
use linen::trace::{Layer, layer_name};
use linen::{Error, Module, Params, Result, files, sequential};
use notebook_display::display;

const PAGE: &str = include_str!("panel.html");
const SCRIPT: &str = include_str!("panel.js");
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
/// The page contains the parameters as base64, those with more than 65,536 elements in half
/// precision. The tutorial's network takes 2.3 MB, and its probabilities change by less than 0.001.
///
/// # Errors
/// [`Error::NotSequential`] unless the network is a plain chain of `linen`'s layers;
/// [`Error::UnknownLayer`] for layers that the page's script does not have: convolutions with
/// strides or `VALID` padding, GELU, layer norm, global pooling; [`Error::Shape`] unless it maps
/// `[B, 28, 28, 1]` to `[B, 10]`; [`Error::Tensor`] for a parameter that is not finite in its
/// stored precision.
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
///         log_softmax(&nn.dense(10, &flatten(x)?)?)
///     }
/// }
///
/// let images = Tensor::zeros((1, 28, 28, 1), DType::F32, &Device::Cpu)?;
/// let params = Net.init(Key::new(0), &images)?;
/// let panel = draw_panel(&Net, &params)?;
/// assert!(panel.html().starts_with("<!DOCTYPE html>"));
/// # Ok::<(), linen::Error>(())
/// ```
pub fn draw_panel(model: &impl Module, params: &Params) -> Result<DrawPanel> {
    let ops = sequential(model, params, &[1, 28, 28, 1])?;
    let classes = ops.last().map_or(&[][..], |last| last.output.dims());
    if classes != [1, 10] {
        return Err(Error::Shape {
            what: "output of a network for the draw panel",
            expected: "[B, 10], one column per digit".into(),
            found: classes.to_vec(),
        });
    }
    let stored = params.iter().map(|(path, var)| Ok((path.to_owned(), to_stored(path, var)?)));
    let stored: Params = stored.collect::<Result<Vec<_>>>()?.try_into()?;
    let layers = ops.iter().map(|op| to_json(&op.layer)).collect::<Result<Vec<_>>>()?;
    let html = PAGE
        .replace("{{layers}}", &format!("[{}]", layers.join(", ")))
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

/// A parameter as stored in the page: large ones in half precision.
fn to_stored(path: &str, param: &Tensor) -> Result<Tensor> {
    let dtype = if param.elem_count() > HALF_PRECISION_ABOVE { DType::F16 } else { DType::F32 };
    let stored = param.to_dtype(dtype)?;
    let sum = stored.to_dtype(DType::F32)?.abs()?.sum_all()?.to_scalar::<f32>()?;
    if sum.is_finite() {
        return Ok(stored);
    }
    let reason = format!("parameter {path:?} has values that are not finite in {dtype:?}");
    Err(Error::Tensor(reason))
}

/// A layer in the format of the page's script.
fn to_json(layer: &Layer<String>) -> Result<String> {
    Ok(match layer {
        Layer::Conv { params: path, .. } => format!(r#"{{"kind": "conv", "path": {path:?}}}"#),
        Layer::Dense { params: path, .. } => format!(r#"{{"kind": "dense", "path": {path:?}}}"#),
        Layer::AvgPool { window: (height, width) } | Layer::MaxPool { window: (height, width) } => {
            format!(r#"{{"kind": "{}", "window": [{height}, {width}]}}"#, layer_name(layer))
        }
        Layer::Relu | Layer::Flatten | Layer::LogSoftmax => {
            format!(r#"{{"kind": "{}"}}"#, layer_name(layer))
        }
        Layer::GeneralConv { .. }
        | Layer::Gelu
        | Layer::GlobalAvgPool
        | Layer::BatchNorm { .. }
        | Layer::LayerNorm { .. }
        | Layer::Dropout { .. }
        | Layer::Add
        | Layer::Concatenate => {
            let layer = layer_name(layer).to_owned();
            return Err(Error::UnknownLayer { place: "the draw panel", layer });
        }
    })
}
