//! Atomic file writes, and safetensors files with a checksum.

mod atomic;
mod tensors;

#[cfg(any(feature = "cuda", test))]
pub(crate) use atomic::write_first;
pub use atomic::{PARTIAL, write};
pub use tensors::{FileError, TensorFile, load, to_bytes};
