//! The compiled step on an NVIDIA GPU, which [`gpu_train_step`](crate::gpu_train_step) replays.
//!
//! A [chain of layers](cpu_kernels::Layer) becomes a short sequence of launches (`plan`) of a few
//! CUDA kernels (`kernels.cu`), compiled at run time. A launch costs more than most of this work,
//! so the sequence is captured once as a CUDA graph and replayed (`program`). A step neither
//! allocates memory nor waits for the GPU: its metrics stay in a row of a shared array until they
//! are read (`rows`).
//!
//! A whole epoch needs no host at all: the dataset and the order of its examples are on the GPU,
//! the last launch of each step fetches the next batch, and many steps are one graph.
//!
//! Matrix products run on tensor cores from compute capability 8.0. Which tile suits a product
//! (`tile`) depends on the GPU, the layer and the batch: each is timed there once, and the choice
//! is kept in the driver's cache folder (`cache`). A choice repeats its results bit for bit.
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
mod tile;

#[cfg(feature = "cuda")]
pub(crate) use cache::compute_cache;
#[cfg(feature = "cuda")]
pub(crate) use plan::MomentumRule;
#[cfg(feature = "cuda")]
pub(crate) use program::{Batch, Program};
#[cfg(feature = "cuda")]
pub(crate) use rows::fetch;
