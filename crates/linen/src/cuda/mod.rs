//! The compiled step on an NVIDIA GPU: [`compile`](crate::compile()) for parameters that live there.
//!
//! A [chain of layers](cpu_kernels::Layer) becomes a short row of launches (`plan`) of one CUDA
//! kernel (`kernels.cu`), which is compiled when the program runs. Launching costs more than most of
//! this work, so the row is recorded once as a CUDA graph and replayed (`program`). A step allocates
//! nothing and waits for nothing: what it finds lies in a row of an array that many steps share, until
//! somebody reads it (`rows`).
//!
//! The tests compile `kernels.cu` with a C++ compiler and run the same plans on the CPU.

mod cache;
mod plan;
#[cfg(feature = "cuda")]
mod program;
#[cfg(feature = "cuda")]
mod rows;
#[cfg(test)]
mod tests;

#[cfg(feature = "cuda")]
pub(crate) use cache::compute_cache;
#[cfg(feature = "cuda")]
pub(crate) use program::{Batch, Program};
#[cfg(feature = "cuda")]
pub(crate) use rows::fetch;
