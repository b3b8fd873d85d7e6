//! JAX's random arrays, bit for bit: the numbers of [`jax_random`] as tensors.

use candle_core::{Device, Shape, Tensor, WithDType};
pub use jax_random::{Key, permutation};

use crate::check;
use crate::error::{Error, Result};
use crate::memory;

/// Uniformly distributed 32-bit integers, `jax.random.bits(key, shape)`: u32.
pub fn bits(key: Key, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    draw(shape, device, |n| jax_random::bits(key, n))
}

/// Uniform numbers in `[minval, maxval)`, `jax.random.uniform(key, shape, minval=…, maxval=…)`:
/// f32.
///
/// # Errors
/// [`Error::Hyperparameter`] unless both bounds are finite.
pub fn uniform(
    key: Key,
    shape: impl Into<Shape>,
    minval: f32,
    maxval: f32,
    device: &Device,
) -> Result<Tensor> {
    check::finite("minval", f64::from(minval))?;
    check::finite("maxval", f64::from(maxval))?;
    draw(shape, device, |n| jax_random::uniform(key, n, minval, maxval))
}

/// 1 with probability `p`, else 0, `jax.random.bernoulli(key, p, shape)`: u8.
///
/// # Errors
/// [`Error::Hyperparameter`] unless `0 <= p <= 1`.
pub fn bernoulli(key: Key, p: f32, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    if !(0.0..=1.0).contains(&p) {
        let allowed = "a probability is from 0 to 1";
        return Err(Error::Hyperparameter { name: "p", value: f64::from(p), allowed });
    }
    draw(shape, device, |n| (0..n).map(move |i| u8::from(jax_random::bernoulli_at(key, i, p))))
}

/// Standard normal numbers, `jax.random.normal(key, shape)`: f32.
pub fn normal(key: Key, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    draw(shape, device, |n| jax_random::normal(key, n))
}

/// Normal numbers truncated to the open interval `(lower, upper)`,
/// `jax.random.truncated_normal(key, lower, upper, shape)`: f32, one draw each, without rejection.
///
/// # Errors
/// [`Error::Hyperparameter`] unless there is an `f32` between `lower` and `upper`.
pub fn truncated_normal(
    key: Key,
    lower: f32,
    upper: f32,
    shape: impl Into<Shape>,
    device: &Device,
) -> Result<Tensor> {
    // Adjacent floats have none between them.
    if lower.is_nan() || upper.is_nan() || lower.next_up() > upper.next_down() {
        return Err(Error::Hyperparameter {
            name: "lower",
            value: f64::from(lower),
            allowed: "it must be a number below `upper`",
        });
    }
    draw(shape, device, |n| jax_random::truncated_normal(key, n, lower, upper))
}

pub(crate) fn draw<T: WithDType, I: Iterator<Item = T>>(
    shape: impl Into<Shape>,
    device: &Device,
    values: impl FnOnce(usize) -> I,
) -> Result<Tensor> {
    let shape = shape.into();
    // Drawn on the CPU, whatever the device.
    memory::check("drawing random numbers", shape.dims(), T::DTYPE, &Device::Cpu)?;
    let values = values(shape.elem_count()).collect::<Vec<_>>();
    Ok(Tensor::from_vec(values, shape, device)?)
}
