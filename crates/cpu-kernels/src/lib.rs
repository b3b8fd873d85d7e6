//! The arithmetic on the CPU: the layers of a network with their derivatives, and a whole training
//! step, compiled.
//!
//! Plain slices and shapes go in and out; no tensor type appears here. Arrays are laid out as in
//! Flax: images `[batch, height, width, channels]`, convolution kernels `[height, width, in, out]`,
//! dense kernels `[in, out]`. All values are f32. There are two ways in:
//!
//! * [`Conv2d`], [`Dense`], [`Pool2d`], [`relu_forward`] and their like are single layers, forward
//!   and backward: what automatic differentiation calls.
//! * [`Program`] is the counterpart of the tutorial's `@jit`. It plans a chain of [`Layer`]s for a
//!   batch size, allocates every buffer once, and replays the plan: forward, loss, backward and
//!   update, without allocating again.
//!
//! # One product
//!
//! Nearly all the time of a step goes into multiply-adds, and they all have one form: C = A·B with
//! small C tiles whose sums stay in registers while A and B stream past. `gemm` holds the one loop
//! that does it, written over vectors of unspecified width (the `pulp` crate) and compiled for each
//! instruction set; the machine at hand chooses when the program runs. Each step of the loop loads
//! two vectors of B and seven single values of A for fourteen vector multiply-adds, so the
//! multiply-adds are the bottleneck, and neither operand needs to be repacked first.
//!
//! That no repacking is needed is what makes convolution cheap here. The usual way builds a matrix
//! of patches ("im2col") and multiplies it; the matrix is nine times the image. But in an NHWC
//! image with a zero border, the patch under one kernel row is contiguous in memory, and the patch
//! of the next pixel starts one pixel further on. So the bordered image *is* the matrix, read with
//! overlapping rows, one segment of the sum per kernel row:
//!
//! * forward: pixels × (kernel column, channel), times the kernel;
//! * gradient of the kernel: the same image transposed by its strides, times the gradient of the
//!   output;
//! * gradient of the input: a forward convolution of the bordered output gradient with the kernel
//!   turned by 180 degrees and its channels exchanged.
//!
//! # Fewer products
//!
//! Convolutions of 3×3 and 5×5 with enough channels need not do all those multiply-adds. Four
//! neighbouring outputs share most of their pixels, and Winograd's minimal filtering computes them
//! from 16 products instead of 36, or from 36 instead of 100. `winograd` has the derivation; what is
//! left between its additions is again the one product above, once for each of the 16 or 36 points.
//! `direct` has the convolutions that are done as just described.
//!
//! # Stages that stay in the cache
//!
//! What is left is moving data, and the plan avoids that by fusing what follows one another:
//!
//! * A convolution, its ReLU and its pooling run strip by strip: the rows under one row of pooling
//!   windows are computed, clipped and pooled while they sit in the innermost cache, and the result
//!   lands inside the border of the next convolution's input. The full-size activation never
//!   exists. For the way back one mark per pooled value is kept: the signs of up to 32 averaged
//!   positions, or the position of the maximum. It is as wide as the value, so that vectors of both
//!   have the same lanes.
//! * The backward pass spreads a pooled gradient into a scratch image of the thread, uses it for
//!   all three gradients, and forgets it. Nobody needs the gradient of the images, so it is not
//!   computed.
//! * A dense kernel is by far the largest array. Its rows are taken in blocks: a block gives its
//!   part of the input gradient, then its own gradient is formed, added to the momentum and
//!   subtracted from the block, all in one visit.
//!
//! # Threads, and the same bits from any number of them
//!
//! Work is spread over images or blocks, each product on a single thread. Where a sum crosses the
//! tasks (the gradient of a convolution kernel over the batch, the product of a dense layer over
//! its inputs) it is cut into parts that depend on the shapes alone, at most sixteen, and the parts
//! are added in order. So the result has the same bits whether one thread works or sixteen. It may
//! differ between instruction sets.
//!
//! # Unsafe code
//!
//! It is in two inner loops, those of `gemm` and of `winograd`: loads and stores that nothing checks
//! on each pass, because the last position in each slice has been checked before. Both modules have
//! tests with slices that end at that position. They run under Miri, which takes vectors of a single
//! value, and with the address sanitizer, which takes the machine's:
//!
//! ```text
//! cargo +nightly miri test -p cpu-kernels -- gemm winograd
//! RUSTFLAGS=-Zsanitizer=address cargo +nightly test --target x86_64-unknown-linux-gnu \
//!     -p cpu-kernels -- gemm winograd
//! ```
//!
//! # Debug builds
//!
//! A notebook kernel compiles with debug assertions and overflow checks. The loop of `gemm` is
//! written so that nothing in it is checked on each pass, and runs there nearly as fast as in a
//! release build.

mod activation;
mod batch_norm;
mod buffer;
mod conv;
mod dense;
mod direct;
mod dropout;
mod error;
mod gemm;
mod layer;
mod parameters;
mod plan;
mod pool;
mod program;
mod shape;
mod stage;
mod sums;
#[cfg(test)]
mod tests;
mod vectors;
mod winograd;

pub use activation::{log_softmax_backward, log_softmax_forward, relu_backward, relu_forward};
pub use batch_norm::{BatchNorm, Statistics};
pub use dense::Dense;
pub use dropout::dropout;
pub use error::{KernelError, Result};
pub use layer::Layer;
pub use parameters::without_subnormal;
pub use pool::Pool2d;
pub use program::{Program, StepResult};
pub use shape::Conv2d;

/// The files of this crate, for a notebook that shows them.
pub static SOURCES: include_dir::Dir<'_> = include_dir::include_dir!("$CARGO_MANIFEST_DIR/src");
