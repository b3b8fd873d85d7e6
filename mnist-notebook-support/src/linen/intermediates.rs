//! What a network computes on its way from input to output.

use candle_core::Tensor;

use super::trace::record;
use super::{Module, Params};
use crate::Result;

/// Evaluates a module, and returns beside its output what each of its layers gave, in the order in
/// which they were evaluated.
///
/// A layer goes by its path, such as `Conv_0`, or by its function's name, such as `relu`, as in
/// the [table of layers](super::tabulate). Listed are the layers of this crate; other tensor
/// operations of the module do not show.
///
/// # Errors
/// Those of [`apply`](Module::apply).
///
/// # Examples
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use mnist_notebook_support::linen::capture_intermediates;
/// use mnist_notebook_support::{Cnn, get_initial_params, random::Key};
///
/// let params = get_initial_params(&Cnn, Key::new(0), &Device::Cpu)?;
/// let image = Tensor::ones((1, 28, 28, 1), DType::F32, &Device::Cpu)?;
/// let (_, layers) = capture_intermediates(&Cnn, &params, &image)?;
/// let names: Vec<_> = layers.iter().map(|(name, _)| name.as_str()).collect();
/// assert_eq!(names[..4], ["Conv_0", "relu", "avg_pool", "Conv_1"]);
/// assert_eq!(layers[2].1.dims(), [1, 14, 14, 32]);
/// # Ok::<(), mnist_notebook_support::Error>(())
/// ```
///
/// # Source
/// `flax.linen.Module.apply(…, capture_intermediates=True)`, which leaves out the functions.
pub fn capture_intermediates(
    module: &impl Module,
    params: &Params,
    x: &Tensor,
) -> Result<(Tensor, Vec<(String, Tensor)>)> {
    let (output, steps) = record(|| module.apply(params, x))?;
    let layers = steps.into_iter().map(|step| (step.layer.name(), step.output)).collect();
    Ok((output, layers))
}
