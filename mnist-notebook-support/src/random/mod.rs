//! Explicit random numbers, the same as JAX's to the bit.
//!
//! A [`Key`] is a value, not a generator: whoever draws with the same key gets the same numbers,
//! and fresh numbers come from [splitting](Key::split) a key, never from using one twice.
//!
//! ```
//! use mnist_notebook_support::random::Key;
//!
//! let rng = Key::new(0);
//! let (rng, init_rng) = rng.split();
//! assert_eq!(rng.words(), [1797259609, 2579123966]);
//! assert_eq!(init_rng.words(), [928981903, 3453687069]);
//! ```
//!
//! The generator is Threefry-2x32 (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*,
//! SC 2011) with 20 rounds, laid out as JAX does by default (`jax_threefry_partitionable=True`):
//! the number at flat index `i` is a function of the key and `i` alone, so draws do not depend on
//! the shape and could be made in any order.
//!
//! Keys, bits, permutations and uniform numbers are the same on every platform. Normal numbers
//! pass through a logarithm and equal those of JAX 0.10 on a CPU; another release or a GPU may
//! round the last bit or two differently.

mod xla;

use candle_core::{Device, Shape, Tensor};

use crate::{Error, Result, memory};
use xla::erf_inv;

/// A key of the explicit random number generator: two 32-bit words.
///
/// Keys are plain values that can be copied. Using one twice gives the same numbers twice, which
/// is sometimes wanted (a run repeated) and more often a mistake (two layers with equal weights):
/// [`split`](Key::split) first, use each half once.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u32; 2]);

impl Key {
    /// The key of a seed, `jax.random.PRNGKey(seed)`.
    ///
    /// As in JAX, whose integers have 32 bits unless told otherwise, only the low 32 bits of the
    /// seed count.
    pub fn new(seed: i64) -> Self {
        Key([0, seed as u32])
    }

    /// The key made of these two words, as [`words`](Key::words) returns them.
    pub fn from_words(words: [u32; 2]) -> Self {
        Key(words)
    }

    /// The two words of the key.
    pub fn words(self) -> [u32; 2] {
        self.0
    }

    /// Two new keys, `jax.random.split(key)`. The old one should not be used again.
    pub fn split(self) -> (Key, Key) {
        (self.child(0), self.child(1))
    }

    /// `n` new keys, `jax.random.split(key, n)`; a longer split begins with the shorter one.
    ///
    /// # Panics
    /// As any `Vec`, if `n` keys, 8 bytes each, do not fit the memory.
    pub fn split_n(self, n: usize) -> Vec<Key> {
        (0..n as u64).map(|i| self.child(i)).collect()
    }

    /// The key that follows from this one and a number, `jax.random.fold_in(key, data)`.
    pub fn fold_in(self, data: u32) -> Key {
        self.child(u64::from(data))
    }

    fn child(self, index: u64) -> Key {
        Key(threefry2x32(self.0, index))
    }

    /// The 32 random bits at a flat index.
    #[inline(always)]
    fn bits_at(self, index: usize) -> u32 {
        let [a, b] = threefry2x32(self.0, index as u64);
        a ^ b
    }

    /// The number of [`bernoulli`] at a flat index.
    #[inline(always)]
    pub(crate) fn bernoulli_at(self, index: usize, p: f32) -> bool {
        unit_from_bits(self.bits_at(index)) < p
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({}, {})", self.0[0], self.0[1])
    }
}

/// The Threefry-2x32 block cipher with 20 rounds: the 64-bit counter enciphered under the key.
#[inline(always)]
fn threefry2x32(key: [u32; 2], counter: u64) -> [u32; 2] {
    const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
    let schedule = [key[0], key[1], key[0] ^ key[1] ^ 0x1BD1_1BDA];
    let mut x0 = ((counter >> 32) as u32).wrapping_add(schedule[0]);
    let mut x1 = (counter as u32).wrapping_add(schedule[1]);
    for group in 0..5 {
        for rotation in ROTATIONS[group % 2] {
            x0 = x0.wrapping_add(x1);
            x1 = x1.rotate_left(rotation) ^ x0;
        }
        x0 = x0.wrapping_add(schedule[(group + 1) % 3]);
        x1 = x1.wrapping_add(schedule[(group + 2) % 3]).wrapping_add(group as u32 + 1);
    }
    [x0, x1]
}

/// Uniformly distributed 32-bit integers, `jax.random.bits(key, shape)`: u32.
pub fn bits(key: Key, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    draw(key, shape, device, |bits| bits)
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
    draw(key, shape, device, |bits| uniform_from_bits(bits, minval, maxval))
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
    draw(key, shape, device, |bits| u8::from(unit_from_bits(bits) < p))
}

/// Standard normal numbers, `jax.random.normal(key, shape)`: f32.
pub fn normal(key: Key, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    const JUST_ABOVE_MINUS_ONE: f32 = -1.0 + f32::EPSILON / 2.0;
    draw(key, shape, device, |bits| {
        std::f32::consts::SQRT_2 * erf_inv(uniform_from_bits(bits, JUST_ABOVE_MINUS_ONE, 1.0))
    })
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
    let (least, most) = (lower.next_up(), upper.next_down());
    if least.is_nan() || most.is_nan() || least > most {
        return Err(Error::Hyperparameter {
            name: "lower",
            value: f64::from(lower),
            allowed: "it must be a number below `upper`",
        });
    }
    let sqrt2 = std::f32::consts::SQRT_2;
    let (minval, maxval) = (libm::erff(lower / sqrt2), libm::erff(upper / sqrt2));
    draw(key, shape, device, |bits| {
        (sqrt2 * erf_inv(uniform_from_bits(bits, minval, maxval))).clamp(least, most)
    })
}

/// The numbers `0..n` in random order, `jax.random.permutation(key, n)`.
///
/// A stable sort by random 32-bit keys, repeated often enough that equal keys do not matter.
///
/// # Panics
/// If `n` has more than 32 bits; or, as any `Vec`, if `n` numbers, 20 bytes each, do not fit the
/// memory.
///
/// ```
/// use mnist_notebook_support::random::{Key, permutation};
/// assert_eq!(permutation(Key::new(0), 7), [0, 1, 5, 6, 4, 3, 2]);
/// ```
pub fn permutation(key: Key, n: usize) -> Vec<u32> {
    assert!(u32::try_from(n).is_ok(), "{n} numbers cannot be counted with 32 bits");
    let rounds = (3.0 * (n.max(1) as f64).ln() / f64::from(u32::MAX).ln()).ceil() as usize;
    let mut order: Vec<u32> = (0..n as u32).collect();
    let mut key = key;
    for _ in 0..rounds {
        let (next, sub) = key.split();
        key = next;
        // The position in the low half keeps an unstable sort stable.
        let mut keyed: Vec<u64> =
            (0..n).map(|i| u64::from(sub.bits_at(i)) << 32 | i as u64).collect();
        keyed.sort_unstable();
        order = keyed.into_iter().map(|pair| order[pair as u32 as usize]).collect();
    }
    order
}

fn check_finite(name: &'static str, value: f32) -> Result<()> {
    if value.is_finite() {
        Ok(())
    } else {
        let value = f64::from(value);
        Err(Error::Hyperparameter { name, value, allowed: "it must be finite" })
    }
}

fn draw<T: candle_core::WithDType>(
    key: Key,
    shape: impl Into<Shape>,
    device: &Device,
    value: impl Fn(u32) -> T,
) -> Result<Tensor> {
    let shape = shape.into();
    // They are drawn on the CPU.
    memory::check("drawing random numbers", shape.dims(), T::DTYPE, &Device::Cpu)?;
    let values = (0..shape.elem_count()).map(|i| value(key.bits_at(i))).collect::<Vec<_>>();
    Ok(Tensor::from_vec(values, shape, device)?)
}

/// 23 random bits as the mantissa of a number in `[1, 2)`, moved to `[0, 1)`.
#[inline(always)]
fn unit_from_bits(bits: u32) -> f32 {
    f32::from_bits((bits >> 9) | 1.0_f32.to_bits()) - 1.0
}

/// A number of `[0, 1)` moved to `[minval, maxval)`.
///
/// XLA contracts the last multiplication and addition into one rounding; so does this.
fn uniform_from_bits(bits: u32, minval: f32, maxval: f32) -> f32 {
    unit_from_bits(bits).mul_add(maxval - minval, minval).max(minval)
}
