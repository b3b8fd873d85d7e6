//! The outputs of a network's layers.

use candle_core::Tensor;

use crate::error::Result;
use crate::module::Module;
use crate::trace::{layer_name, trace};
use crate::variables::Evaluate;

/// Evaluates a module; returns its output and the output of each layer, in evaluation order. Batch
/// norm and dropout are in evaluation mode.
///
/// Layers are named by path, such as `Conv_0`, or by function, such as `relu`, as in the
/// [table of layers](crate::tabulate()). Only the layers of this crate are listed, not other tensor
/// operations.
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
///         avg_pool(&relu(&nn.conv(32, (3, 3), x)?)?, (2, 2))
///     }
/// }
///
/// let image = Tensor::ones((1, 28, 28, 1), DType::F32, &Device::Cpu)?;
/// let params = Net.init(Key::new(0), &image)?;
/// let (_, layers) = capture_intermediates(&Net, &params, &image)?;
/// let names: Vec<_> = layers.iter().map(|(name, _)| name.as_str()).collect();
/// assert_eq!(names, ["Conv_0", "relu", "avg_pool"]);
/// assert_eq!(layers[2].1.dims(), [1, 14, 14, 32]);
/// # Ok::<(), linen::Error>(())
/// ```
///
/// # Source
/// `flax.linen.Module.apply(…, capture_intermediates=True)`, which omits functions.
pub fn capture_intermediates(
    module: &impl Module,
    variables: &impl Evaluate,
    x: &Tensor,
) -> Result<(Tensor, Vec<(String, Tensor)>)> {
    let (output, ops) = trace(|| module.apply_eval(variables, x))?;
    let layers = ops.into_iter().map(|op| (layer_name(&op.layer).to_owned(), op.output)).collect();
    Ok((output, layers))
}
