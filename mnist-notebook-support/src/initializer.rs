//! The parameter initializer.

use candle_core::{DType, Device, Tensor};
use linen::{Key, Module, Params, Result};

/// The initial parameters of a network for MNIST images, drawn with `key`, on `device`.
///
/// Kernels are LeCun normal, biases zero. The same key gives the same parameters as in Flax, bit
/// for bit.
///
/// # Errors
/// Those of [`Module::init`].
///
/// # Examples
/// ```
/// use candle_core::Device;
/// use mnist_notebook_support::{Cnn, get_initial_params, random::Key};
///
/// let (_rng, init_rng) = Key::new(0).split();
/// let params = get_initial_params(&Cnn, init_rng, &Device::Cpu)?;
/// assert_eq!(params.elem_count(), 824_458);
/// assert_eq!(params.get("Conv_0/kernel").unwrap().dims(), [3, 3, 1, 32]);
/// # Ok::<(), mnist_notebook_support::Error>(())
/// ```
///
/// # Source
/// `get_initial_params` of the Flax tutorial.
pub fn get_initial_params(
    model: &impl Module,
    key: Key,
    device: &Device,
) -> Result<Params> {
    let sample = Tensor::ones((1, 28, 28, 1), DType::F32, device)?;
    model.init(key, &sample)
}
