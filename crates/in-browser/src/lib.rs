//! The MNIST tutorial's training for a web page: the same network, initial weights, order of
//! examples and kernels as natively, compiled to WebAssembly.
//!
//! [`Training`] is a run of the tutorial, [`Network`] a trained network that recognizes digits, and
//! [`Dataset`] holds images as MNIST stores them. `exports` has the functions that the page calls.
//! They are plain C functions with pointers into linear memory: there are a dozen of them, and they
//! pass numbers and arrays only, so generated bindings would add more code than they would save.

mod dataset;
mod error;
mod exports;
mod network;
mod training;

pub use dataset::{Dataset, IMAGE_LEN};
pub use error::{Error, Result};
pub use network::{CLASSES, Network, PARAM_LENS, PARAMS};
pub use training::{STATE_LEN, Training};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
