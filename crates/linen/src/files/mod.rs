//! Atomic file writes, and safetensors files with a checksum.

mod atomic;
mod tensors;

pub use atomic::{PARTIAL, write};
pub use tensors::{FileError, TensorFile, load, to_bytes};
