//! Initial values of parameters.

use candle_core::{DType, Device, Shape, Tensor};
use cpu_kernels::saturating_product;

use crate::error::{Error, Result};
use crate::memory;
use crate::random::{Key, draw};

/// LeCun normal: a normal distribution truncated at two standard deviations, with variance
/// `1 / fan_in`. Flax's default for the kernels of `Conv` and `Dense`.
///
/// `fan_in`, the number of inputs per output, is the product of all dimensions but the last.
///
/// # Errors
/// [`Error::Shape`] for fewer than two dimensions, which have no inputs;
/// [`Error::Memory`] if it does not fit in memory.
///
/// # Source
/// `jax.nn.initializers.lecun_normal`; Y. LeCun et al., *Efficient BackProp*, 1998.
pub fn lecun_normal(key: Key, shape: &Shape, device: &Device) -> Result<Tensor> {
    let (2.., [inputs @ .., _]) = (shape.rank(), shape.dims()) else {
        let (what, expected) = ("kernel to draw", "[…, inputs, outputs]".into());
        return Err(Error::Shape { what, expected, found: shape.dims().to_vec() });
    };
    let fan_in = saturating_product(inputs);
    draw(shape, device, |n| jax_random::lecun_normal(key, n, fan_in))
}

/// Ones, Flax's default for the scale of batch norm. Ignores the key.
///
/// # Errors
/// [`Error::Memory`] if it does not fit in memory.
pub fn ones(_key: Key, shape: &Shape, device: &Device) -> Result<Tensor> {
    check_memory(shape, device)?;
    Ok(Tensor::ones(shape, DType::F32, device)?)
}

/// Zeros, Flax's default for biases. Ignores the key.
///
/// # Errors
/// [`Error::Memory`] if it does not fit in memory.
pub fn zeros(_key: Key, shape: &Shape, device: &Device) -> Result<Tensor> {
    check_memory(shape, device)?;
    Ok(Tensor::zeros(shape, DType::F32, device)?)
}

fn check_memory(shape: &Shape, device: &Device) -> Result<()> {
    memory::check("a parameter", shape.dims(), DType::F32, device)
}
