//! A page to draw digits on, with the network inside.

use std::path::Path;

use base64::prelude::{BASE64_STANDARD, Engine};
use candle_core::{DType, Tensor};
use linen::trace::Layer;
use linen::{Error, Module, Params, Result, files, sequential};
use notebook_display::display;

const PAGE: &str = include_str!("panel.html");
const SCRIPT: &str = include_str!("panel.js");
/// Parameters of more numbers than this are stored in half precision: they make the page large, and
/// their many rounding errors cancel out.
const LARGE: usize = 1 << 16;
/// Shown where a front end leaves out pages within pages; the page itself removes it.
const ABSENT: &str = "Here is a panel to draw a digit on. It shows once this cell is run, or the \
                      notebook is trusted, or exported as HTML.";

/// A page to draw a digit on while ten bars show what the network takes it for.
///
/// It is one HTML document with everything inside, and needs no server and no network: the drawing
/// is prepared as by `images::prepare_digit`, and the network evaluated, by the
/// page's own script. In a cell it is shown as `text/html`, in a frame.
#[derive(Clone)]
pub struct DrawPanel {
    html: String,
}

/// Makes a page to draw digits on, for a network and its parameters.
///
/// The page holds the parameters as base64, those of more than 65,536 numbers in half precision: the
/// tutorial's network takes 2.3 MB, and its probabilities change by less than 0.001.
///
/// # Errors
/// [`Error::NotSequential`] unless the network is a plain chain of this crate's layers;
/// [`Error::Shape`] unless it takes `[B, 28, 28, 1]` to `[B, 10]`; [`notebook_display::Error::Figure`] for a
/// parameter that is not finite as it is stored.
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
            expected: "[B, 10], one for each digit".into(),
            found: classes.to_vec(),
        });
    }
    let stored = params.iter().map(|(path, var)| Ok((path.to_owned(), stored(path, var)?)));
    let stored: Params = stored.collect::<Result<Vec<_>>>()?.try_into()?;
    let layers = ops.iter().map(|op| to_json(&op.layer)).collect::<Result<Vec<_>>>()?;
    let html = PAGE
        .replace("{{layers}}", &format!("[{}]", layers.join(", ")))
        .replace("{{script}}", SCRIPT)
        .replace("{{parameters}}", &BASE64_STANDARD.encode(stored.to_bytes()?));
    Ok(DrawPanel { html })
}

impl DrawPanel {
    /// The page.
    pub fn html(&self) -> &str {
        &self.html
    }

    /// Writes the page to a file, for a browser.
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
             style=\"width: 100%; height: 440px; border: 0\"></iframe><p>{ABSENT}</p>"
        );
        display(&[("text/html", &frame), ("text/plain", ABSENT)]);
    }
}

/// The size of the page, not the page.
impl std::fmt::Debug for DrawPanel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DrawPanel({} bytes of HTML)", self.html.len())
    }
}

/// A parameter as it is stored in the page: large ones with two bytes a number.
fn stored(path: &str, param: &Tensor) -> Result<Tensor> {
    let dtype = if param.elem_count() > LARGE { DType::F16 } else { DType::F32 };
    let stored = param.to_dtype(dtype)?;
    let sum = stored.to_dtype(DType::F32)?.abs()?.sum_all()?.to_scalar::<f32>()?;
    if sum.is_finite() {
        return Ok(stored);
    }
    let reason = format!("parameter {path:?} has values that are not finite in {dtype:?}");
    Err(notebook_display::Error::Figure(reason).into())
}

/// A layer as the page's script reads it.
fn to_json(layer: &Layer) -> Result<String> {
    Ok(match layer {
        Layer::Conv { path, .. } => format!(r#"{{"kind": "conv", "path": {path:?}}}"#),
        Layer::Dense { path, .. } => format!(r#"{{"kind": "dense", "path": {path:?}}}"#),
        Layer::AvgPool { window: (height, width) } | Layer::MaxPool { window: (height, width) } => {
            format!(r#"{{"kind": "{}", "window": [{height}, {width}]}}"#, layer.name())
        }
        Layer::Relu | Layer::Flatten | Layer::LogSoftmax => {
            format!(r#"{{"kind": "{}"}}"#, layer.name())
        }
        // Networks that have them do not get here: `apply` refuses them.
        Layer::BatchNorm { .. } | Layer::Dropout { .. } => return Err(Error::NotSequential),
    })
}
