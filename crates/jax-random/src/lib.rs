//! JAX's random numbers, bit for bit.
//!
//! A [`Key`] is a value, not a generator: the same key always gives the same numbers. For fresh
//! numbers, [split](Key::split) a key instead of using it twice.
//!
//! The generator is Threefry-2x32 (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*,
//! SC 2011) with 20 rounds, in JAX's default layout (`jax_threefry_partitionable=True`): the number
//! at flat index `i` depends on the key and `i` alone, not on the shape or the order of the draws.
//!
//! Keys, bits, permutations and uniform numbers are the same on every platform. Normal numbers
//! go through a logarithm: they equal those of JAX 0.10 on a CPU, but another release or a GPU may
//! round the last bit or two differently.

mod draws;
mod erf_inv;
mod key;

pub use draws::{
    bernoulli_at, bernoulli_from, bits, lecun_normal, normal, permutation, truncated_normal,
    uniform,
};
pub use key::Key;

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
