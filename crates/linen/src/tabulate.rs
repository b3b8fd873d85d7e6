//! The table of a network's layers.

use std::fmt;

use candle_core::Tensor;

use jax_random::Key;
use notebook_display::{Table, grouped};

use crate::error::Result;
use crate::module::Module;
use crate::params::Params;
use crate::scope::Scope;
use crate::trace::{layer_names, trace};
use crate::variables::Variables;

/// One row of the table of layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerRow {
    /// The layer's path, such as `Conv_0`, or the function's name, such as `relu`.
    pub layer: String,
    /// The shape of the layer's output for the sample.
    pub output_shape: Vec<usize>,
    /// The number of scalar parameters: kernel and bias, or scale and bias.
    pub parameters: usize,
}

/// The layers of a network, in evaluation order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tabulated {
    /// The layers.
    pub rows: Vec<LayerRow>,
    /// The number of scalar parameters of the network.
    pub parameters: usize,
}

impl Tabulated {
    /// Shows the table as the result of a notebook cell.
    pub fn evcxr_display(&self) {
        if let Ok(table) = self.table() {
            table.evcxr_display();
        }
    }

    /// The rows as text, then a row for the total.
    fn table(&self) -> Result<Table, notebook_display::Error> {
        let row = |layer: &str, shape: String, parameters: usize| {
            [layer.to_owned(), shape, grouped(&parameters.to_string())]
        };
        let layers = self
            .rows
            .iter()
            .map(|layer| row(&layer.layer, format!("{:?}", layer.output_shape), layer.parameters));
        let total = row("total", String::new(), self.parameters);
        Table::new(
            &["layer", "output shape", "parameters"],
            &layers.chain([total]).collect::<Vec<_>>(),
        )
    }
}

/// The table as plain text.
impl fmt::Display for Tabulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.table().map_err(|_| fmt::Error)?.fmt(f)
    }
}

/// The layers of a module with output shapes and parameter counts, for an input like `sample`.
///
/// Only the layers of this crate are listed, not other tensor operations.
///
/// # Errors
/// Those of the module.
///
/// # Examples
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use linen::{Module, Result, Scope, relu, tabulate};
///
/// struct Net;
///
/// impl Module for Net {
///     fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
///         relu(nn.conv(32, (3, 3), x))
///     }
/// }
///
/// let sample = Tensor::ones((1, 28, 28, 1), DType::F32, &Device::Cpu)?;
/// let table = tabulate(&Net, &sample)?;
/// assert_eq!(table.rows[0].layer, "Conv_0");
/// assert_eq!(table.rows[0].output_shape, [1, 28, 28, 32]);
/// assert_eq!(table.parameters, 3 * 3 * 32 + 32);
/// # Ok::<(), linen::Error>(())
/// ```
///
/// # Source
/// `flax.linen.Module.tabulate`.
pub fn tabulate(module: &impl Module, sample: &Tensor) -> Result<Tabulated> {
    let mut variables = Variables::default();
    let scope = &mut Scope::init(Key::new(0), &mut variables);
    let (_, ops) = trace(|| module.call(scope, sample))?;
    let rows = ops.iter().zip(layer_names(&ops)).map(|(op, layer)| LayerRow {
        output_shape: op.output.dims().to_vec(),
        parameters: count_below(&layer, &variables.params),
        layer,
    });
    Ok(Tabulated { rows: rows.collect(), parameters: variables.params.elem_count() })
}

/// The number of scalar parameters below a layer's path.
fn count_below(layer: &str, params: &Params) -> usize {
    let is_below = |path: &str| path.rsplit_once('/').is_some_and(|(parent, _)| parent == layer);
    params.iter().filter(|(path, _)| is_below(path)).map(|(_, var)| var.elem_count()).sum()
}
