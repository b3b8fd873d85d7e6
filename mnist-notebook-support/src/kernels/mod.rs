//! CPU kernels.

mod activation;
mod buffer;
mod conv;
mod dense;
mod error;
mod gemm;
mod parameters;
mod plan;
mod pool;
mod program;
mod stage;
#[cfg(test)]
mod tests;

pub use activation::{log_softmax_backward, log_softmax_forward, relu_backward, relu_forward};
pub use conv::Conv2d;
pub use dense::Dense;
pub use error::{KernelError, Result};
pub use pool::Pool2d;
pub use program::{Layer, Outcome, Program};
