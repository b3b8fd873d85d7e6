//! The outputs of a network's layers.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::module::Module;
use crate::trace::{layer_names, trace};
use crate::variables::Evaluate;

/// The outputs of a network's layers, in evaluation order.
#[derive(Debug, Clone)]
pub struct Intermediates(Vec<(String, Tensor)>);

impl Intermediates {
    /// The output of the layer with this name, such as `Conv_0` or, for a function, `relu_1`.
    ///
    /// # Errors
    /// [`Error::NoLayer`] names all layers if there is no such one.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        let found = self.iter().find(|(layer, _)| *layer == name);
        found.map(|(_, output)| output).ok_or_else(|| Error::NoLayer {
            name: name.to_owned(),
            names: self.iter().map(|(layer, _)| layer).collect::<Vec<_>>().join(", "),
        })
    }

    /// Names and outputs.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, output)| (name.as_str(), output))
    }
}

/// Evaluates a module; returns its output and the output of each layer, in evaluation order. Batch
/// norm and dropout are in evaluation mode.
///
/// Layers are named by path, such as `Conv_0`, or by function and number, such as `relu_1`, as in
/// the [table of layers](crate::tabulate()). Only the layers of this crate are listed, not other
/// tensor operations.
///
/// # Errors
/// Those of [`apply_eval`](Module::apply_eval).
///
/// # Examples
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use linen::{Key, Module, Result, Scope, avg_pool, capture_intermediates, relu};
///
/// struct Net;
///
/// impl Module for Net {
///     fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
///         avg_pool(relu(nn.conv(32, (3, 3), x)), (2, 2))
///     }
/// }
///
/// let image = Tensor::ones((1, 28, 28, 1), DType::F32, &Device::Cpu)?;
/// let params = Net.init(Key::new(0), &image)?;
/// let (_, layers) = capture_intermediates(&Net, &params, &image)?;
/// let names: Vec<_> = layers.iter().map(|(name, _)| name).collect();
/// assert_eq!(names, ["Conv_0", "relu_0", "avg_pool_0"]);
/// assert_eq!(layers.get("avg_pool_0")?.dims(), [1, 14, 14, 32]);
/// # Ok::<(), linen::Error>(())
/// ```
///
/// # Source
/// `flax.linen.Module.apply(…, capture_intermediates=True)`, which omits functions.
pub fn capture_intermediates(
    module: &impl Module,
    variables: &impl Evaluate,
    x: &Tensor,
) -> Result<(Tensor, Intermediates)> {
    let (output, ops) = trace(|| module.apply_eval(variables, x))?;
    let names = layer_names(&ops);
    Ok((
        output,
        Intermediates(names.into_iter().zip(ops.into_iter().map(|op| op.output)).collect()),
    ))
}
