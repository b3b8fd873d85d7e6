//! Files that are there whole or not at all, and tensors in them.

mod atomic;
mod tensors;

pub use atomic::{PARTIAL, write};
pub use tensors::{DAMAGED, TensorFile, load, to_bytes};
