//! What a network computes on its way from input to output.

use candle_core::Tensor;

use crate::error::Result;
use crate::module::Module;
use crate::params::Params;
use crate::trace::trace;

/// Evaluates a module, and returns beside its output what each of its layers gave, in the order in
/// which they were evaluated.
///
/// A layer goes by its path, such as `Conv_0`, or by its function's name, such as `relu`, as in
/// the [table of layers](crate::tabulate()). Listed are the layers of this crate; other tensor
/// operations of the module do not show.
///
/// # Errors
/// Those of [`apply`](Module::apply).
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
/// `flax.linen.Module.apply(…, capture_intermediates=True)`, which leaves out the functions.
pub fn capture_intermediates(
    module: &impl Module,
    params: &Params,
    x: &Tensor,
) -> Result<(Tensor, Vec<(String, Tensor)>)> {
    let (output, steps) = trace(|| module.apply(params, x))?;
    let layers = steps.into_iter().map(|step| (step.layer.name(), step.output)).collect();
    Ok((output, layers))
}
