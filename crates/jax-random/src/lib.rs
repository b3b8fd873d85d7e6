//! Explicit random numbers, the same as JAX's to the bit.
//!
//! A [`Key`] is a value, not a generator: whoever draws with the same key gets the same numbers,
//! and fresh numbers come from [splitting](Key::split) a key, never from using one twice.
//!
//! ```
//! use jax_random::Key;
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

mod draws;
mod erf_inv;
mod key;

pub use draws::{bernoulli_at, bits, normal, permutation, truncated_normal, uniform};
pub use key::Key;

/// The files of this crate, for a notebook that shows them.
pub static SOURCES: include_dir::Dir<'_> = include_dir::include_dir!("$CARGO_MANIFEST_DIR/src");
