//! Random tensors, the same as JAX's to the bit: [`jax_random`]'s numbers in the shape of an array.

use candle_core::{Device, Shape, Tensor, WithDType};
pub use jax_random::{Key, permutation};

use crate::memory;
use crate::error::{Error, Result};

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
    check_finite("minval", minval)?;
    check_finite("maxval", maxval)?;
    draw(shape, device, |n| jax_random::uniform(key, n, minval, maxval))
}

/// Ones with probability `p` and zeros, `jax.random.bernoulli(key, p, shape)`: u8.
///
/// # Errors
/// [`Error::Hyperparameter`] unless `0 <= p <= 1`.
pub fn bernoulli(key: Key, p: f32, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    if !(0.0..=1.0).contains(&p) {
        let allowed = "a probability is from 0 to 1";
        return Err(Error::Hyperparameter { name: "p", value: f64::from(p), allowed });
    }
    let success = move |i| u8::from(jax_random::bernoulli_at(key, i, p));
    draw(shape, device, |n| (0..n).map(success))
}

/// Standard normal numbers, `jax.random.normal(key, shape)`: f32.
pub fn normal(key: Key, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    draw(shape, device, |n| jax_random::normal(key, n))
}

/// Normal numbers cut off to the open interval `(lower, upper)`,
/// `jax.random.truncated_normal(key, lower, upper, shape)`: f32, one draw each, no rejection.
///
/// # Errors
/// [`Error::Hyperparameter`] unless some number lies between `lower` and `upper`.
pub fn truncated_normal(
    key: Key,
    lower: f32,
    upper: f32,
    shape: impl Into<Shape>,
    device: &Device,
) -> Result<Tensor> {
    // Bounds next to each other have no number between them.
    if lower.is_nan() || upper.is_nan() || lower.next_up() > upper.next_down() {
        return Err(Error::Hyperparameter {
            name: "lower",
            value: f64::from(lower),
            allowed: "it must be a number below `upper`",
        });
    }
    draw(shape, device, |n| jax_random::truncated_normal(key, n, lower, upper))
}

fn check_finite(name: &'static str, value: f32) -> Result<()> {
    if value.is_finite() {
        Ok(())
    } else {
        let value = f64::from(value);
        Err(Error::Hyperparameter { name, value, allowed: "it must be finite" })
    }
}

fn draw<T: WithDType, I: Iterator<Item = T>>(
    shape: impl Into<Shape>,
    device: &Device,
    values: impl FnOnce(usize) -> I,
) -> Result<Tensor> {
    let shape = shape.into();
    // They are drawn on the CPU.
    memory::check("drawing random numbers", shape.dims(), T::DTYPE, &Device::Cpu)?;
    let values = values(shape.elem_count()).collect::<Vec<_>>();
    Ok(Tensor::from_vec(values, shape, device)?)
}
