//! Neural network layers on the CPU, forward and backward, and a compiled training step.
//!
//! Inputs and outputs are plain f32 slices with shapes; there is no tensor type. Arrays are laid
//! out as in Flax: images `[batch, height, width, channels]`, convolution kernels
//! `[height, width, in, out]`, dense kernels `[in, out]`. There are two levels:
//!
//! * [`Conv2d`], [`Dense`], [`Pool2d`], [`relu_forward`] and so on are single layers, forward and
//!   backward, for use by automatic differentiation.
//! * [`Program`] and [`GraphProgram`] are the counterpart of `@jax.jit`. They plan a network for a
//!   batch size. Each step (forward, backward, update) then replays the plan in the same buffers. A
//!   `Program` takes a plain chain of [`Layer`]s, a `GraphProgram` any network of
//!   [`Node`]s. [`check_chain`] and [`check_graph`] tell whether there can be one.
//!
//! The update of a step follows an [`UpdateRule`]: momentum, Nesterov's momentum, Adam or AdamW.
//! [`apply_gradient`] is the same update, bit for bit, for gradients computed elsewhere.
//!
//! # One matrix product
//!
//! Nearly all the time of a step goes into multiply-adds of the form C = A·B, where a small tile of
//! C stays in registers while A and B stream past. `gemm` holds that one loop, written for vectors
//! of any width (the `pulp` crate), compiled for each instruction set and selected at run time. For
//! each k a tile loads two vectors of B and seven single values of A for fourteen vector
//! multiply-adds. So the multiply-adds are the bottleneck, and no operand needs repacking.
//!
//! That makes convolution cheap. The usual way, im2col, builds a matrix of patches that is nine
//! times as large as the image. But in a zero-padded NHWC image the patch under one kernel row is
//! contiguous, and the patch of the next pixel starts one pixel later. So the padded image *is* the
//! matrix, read with overlapping rows (`direct`):
//!
//! * forward: pixels × (kernel column, channel), times the kernel;
//! * kernel gradient: the same image, transposed by its strides, times the output gradient;
//! * input gradient: a forward convolution of the padded output gradient with the rotated kernel.
//!
//! With strides (`general_conv`), the rows lie further apart. There the input gradient is a product
//! for each kernel tap, added to the pixels under that tap.
//!
//! For 3×3 and 5×5 kernels with enough channels, `winograd` computes 2×2 outputs from 16 products
//! instead of 36, or from 36 instead of 100. Between its transforms there is again the product
//! above, once per tile element. Inference computes 4×4 outputs of a 3×3 kernel from 36 products
//! instead of 144, with rounding errors that are five times as large and would disturb training.
//!
//! # Fused stages
//!
//! The rest is data movement, which the plan avoids by fusing layers:
//!
//! * Convolution, ReLU and pooling run in row bands: the rows under one row of pooling windows are
//!   computed, clipped and pooled in the L1 cache, and the result is written into the padded input
//!   of the next convolution. The full activation never exists. The backward pass needs one mask
//!   per pooled value: the signs of up to 32 averaged pixels, or the argmax. A mask is as wide as a
//!   value, so that vectors of both have the same lanes.
//! * The backward pass expands a pooled gradient into scratch memory and uses it for all three
//!   gradients. The gradient of the images is not computed.
//! * A dense kernel is by far the largest array, so it is processed in blocks of rows. A block
//!   contributes to the input gradient, then its own gradient is computed and applied, all in one
//!   pass over memory.
//!
//! # Inference
//!
//! [`Program::log_probabilities`] and [`Program::evaluate`] keep nothing for a backward pass. They
//! save no masks and rotate no kernel, and an image goes through all convolutions in buffers of its
//! thread, which stay in the cache. The log-probabilities of an image do not depend on the images
//! that share its batch, nor on their number, bit for bit.
//!
//! # Graphs
//!
//! A chain takes each image through all convolutions while it is in the cache. In training, a batch
//! norm cannot wait: it needs the statistics of the whole batch before the first image goes on. So
//! a [`GraphProgram`] (`graph`) runs stage by stage, each for all images. A stage is a layer with
//! what is fused into it:
//!
//! * Forward, a convolution sums each image's values for the statistics while they are in the
//!   cache. A second pass normalizes, clips, pools and drops, and writes the result.
//! * Backward, one pass sums the gradients of scale and bias. A second computes the gradient of the
//!   convolution's output for one image and at once multiplies it with the image and the kernel.
//! * An array that several stages read collects its gradient from each of them.
//!
//! # Threads and reproducibility
//!
//! Tasks are images or blocks; each product runs on a single thread. A sum across tasks (the
//! gradient of a convolution kernel over the batch, the product of a dense layer over its inputs)
//! is cut into at most sixteen parts that depend only on the shapes, and the parts are added in
//! order. So results are bit-identical for any number of threads. They may differ between
//! instruction sets.
//!
//! # WebAssembly
//!
//! A browser refuses a program with instructions that it does not know, so there the instruction
//! set is that of the build: `relaxed-simd`, `simd128` or neither among its target features.
//! Without threads in the target, everything runs on the calling one.
//!
//! # Unsafe code
//!
//! The inner loops of `gemm` and `winograd` load and store without bounds checks, because the last
//! offset in each slice has been checked before. The tests of both use slices that end at that
//! offset. They run under Miri, with one-lane vectors, and with the address sanitizer, with the
//! vectors of the machine; see the README.
//!
//! # Debug builds
//!
//! Notebook kernels compile with debug assertions and overflow checks. The loop of `gemm` avoids
//! per-iteration checks and runs there nearly as fast as in a release build.

mod activation;
mod batch_norm;
mod buffer;
mod chain;
mod conv;
mod dense;
mod direct;
mod dropout;
mod error;
mod gemm;
mod general_conv;
mod graph;
mod instruction_set;
mod lanes;
mod layer;
mod node;
mod parameters;
mod plan;
mod pool;
mod program;
mod purpose;
mod shape;
mod stage;
mod sums;
#[cfg(test)]
mod tests;
mod threads;
mod update_rule;
mod winograd;

pub use activation::{
    gelu_backward, gelu_forward, log_softmax_backward, log_softmax_forward, relu_backward,
    relu_forward,
};
pub use batch_norm::{BatchNorm, Statistics};
pub use chain::check_chain;
pub use dense::Dense;
pub use dropout::{dropout, dropout_factors};
pub use error::{KernelError, Result};
pub use general_conv::GeneralConv2d;
pub use graph::{GraphProgram, LAYER_NORM_EPSILON, Mode, check_graph};
pub use instruction_set::instruction_set;
pub use layer::Layer;
pub use node::Node;
pub use parameters::apply_gradient;
pub use pool::Pool2d;
pub use program::{Program, StepResult};
pub use shape::{Conv2d, Padding, saturating_product};
pub use update_rule::UpdateRule;

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
