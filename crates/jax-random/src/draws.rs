//! Random numbers from several distributions, in the order of a flattened array.

use crate::erf_inv::erf_inv;
use crate::key::Key;

/// Uniformly distributed 32-bit integers, `jax.random.bits(key, (n,))`.
pub fn bits(key: Key, n: usize) -> impl ExactSizeIterator<Item = u32> {
    (0..n).map(move |i| key.bits_at(i))
}

/// Uniform numbers in `[minval, maxval)`,
/// `jax.random.uniform(key, (n,), minval=minval, maxval=maxval)`.
///
/// ```
/// use jax_random::{Key, uniform};
///
/// let numbers: Vec<f32> = uniform(Key::new(0), 2, 0.0, 1.0).collect();
/// assert_eq!(numbers, [0.947667, 0.9785799]);
/// ```
pub fn uniform(key: Key, n: usize, minval: f32, maxval: f32) -> impl ExactSizeIterator<Item = f32> {
    bits(key, n).map(move |bits| uniform_from_bits(bits, minval, maxval))
}

/// Whether the draw at a flat index succeeds, with probability `p`:
/// `jax.random.bernoulli(key, p, shape).flatten()[index]`.
#[inline(always)]
pub fn bernoulli_at(key: Key, index: usize, p: f32) -> bool {
    unit_from_bits(key.bits_at(index)) < p
}

/// [`bernoulli_at`] for a flat index and those after it: faster for many of them.
#[inline(always)]
pub fn bernoulli_from<const N: usize>(key: Key, first: usize, p: f32) -> [bool; N] {
    key.bits_from(first).map(|bits| unit_from_bits(bits) < p)
}

/// Standard normal numbers, `jax.random.normal(key, (n,))`.
pub fn normal(key: Key, n: usize) -> impl ExactSizeIterator<Item = f32> {
    const JUST_ABOVE_MINUS_ONE: f32 = -1.0 + f32::EPSILON / 2.0;
    uniform(key, n, JUST_ABOVE_MINUS_ONE, 1.0).map(|u| std::f32::consts::SQRT_2 * erf_inv(u))
}

/// Normal numbers truncated to the open interval `(lower, upper)`,
/// `jax.random.truncated_normal(key, lower, upper, (n,))`: one draw each, without rejection. All
/// are NaN if there is no `f32` between the bounds.
pub fn truncated_normal(
    key: Key,
    n: usize,
    lower: f32,
    upper: f32,
) -> impl ExactSizeIterator<Item = f32> {
    let sqrt2 = std::f32::consts::SQRT_2;
    let (minval, maxval) = (libm::erff(lower / sqrt2), libm::erff(upper / sqrt2));
    let (min, max) = (lower.next_up(), upper.next_down());
    let clamp = move |x: f32| if min <= max { x.clamp(min, max) } else { f32::NAN };
    uniform(key, n, minval, maxval).map(move |u| clamp(sqrt2 * erf_inv(u)))
}

/// LeCun normal numbers, `n` weights of a kernel with `fan_in` inputs per output: truncated at two
/// standard deviations, with variance `1 / fan_in`.
///
/// ```
/// use jax_random::{Key, lecun_normal};
///
/// // jax.nn.initializers.lecun_normal()(jax.random.key(0), (4, 1))
/// let kernel: Vec<f32> = lecun_normal(Key::new(0), 4, 4).collect();
/// assert_eq!(kernel, [0.8276016, 0.9747037, -0.23457442, -0.042650778]);
/// ```
///
/// # Source
/// `jax.nn.initializers.lecun_normal`; Y. LeCun et al., *Efficient BackProp*, 1998.
pub fn lecun_normal(key: Key, n: usize, fan_in: usize) -> impl ExactSizeIterator<Item = f32> {
    // The standard deviation of a standard normal distribution truncated to (-2, 2).
    const TRUNCATED_STD: f32 = 0.879_625_661_034_239_8_f64 as f32;
    let stddev = (1.0 / fan_in as f32).sqrt() / TRUNCATED_STD;
    truncated_normal(key, n, -2.0, 2.0).map(move |draw| draw * stddev)
}

/// The numbers `0..n` in random order, `jax.random.permutation(key, n)`.
///
/// Sorts stably by random 32-bit keys, often enough that equal keys do not matter.
///
/// # Panics
/// If `n` has more than 32 bits, or if `n` numbers, 20 bytes each, do not fit in memory.
///
/// ```
/// use jax_random::{Key, permutation};
/// assert_eq!(permutation(Key::new(0), 7), [0, 1, 5, 6, 4, 3, 2]);
/// ```
pub fn permutation(key: Key, n: usize) -> Vec<u32> {
    assert!(u32::try_from(n).is_ok(), "{n} does not fit in 32 bits");
    let rounds = (3.0 * (n.max(1) as f64).ln() / f64::from(u32::MAX).ln()).ceil() as usize;
    let mut order: Vec<u32> = (0..n as u32).collect();
    let mut key = key;
    for _ in 0..rounds {
        let (next, sub) = key.split();
        key = next;
        // The index in the low half makes the unstable sort stable.
        let mut keyed: Vec<u64> =
            (0..n).map(|i| u64::from(sub.bits_at(i)) << 32 | i as u64).collect();
        keyed.sort_unstable();
        order = keyed.into_iter().map(|keyed| order[keyed as u32 as usize]).collect();
    }
    order
}

/// Uses 23 random bits as the mantissa of a number in `[1, 2)`, then shifts it to `[0, 1)`.
#[inline(always)]
fn unit_from_bits(bits: u32) -> f32 {
    f32::from_bits((bits >> 9) | 1.0_f32.to_bits()) - 1.0
}

/// A uniform number in `[minval, maxval)`.
///
/// XLA contracts the last multiplication and addition into an FMA, so this does too.
fn uniform_from_bits(bits: u32, minval: f32, maxval: f32) -> f32 {
    unit_from_bits(bits).mul_add(maxval - minval, minval).max(minval)
}
