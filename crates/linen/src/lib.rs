//! Flax's Linen over candle's tensors: a module is code, and its parameters are stored separately.
//!
//! A [`Module`] is one function of a [`Scope`] and an input. [`init`](Module::init) runs it to
//! create its [`Params`], [`apply`](Module::apply) to evaluate it with given ones. Layers are named
//! automatically and infer their input sizes. Arrays are `[batch, height, width, channels]`;
//! parameter paths, initial values and keys are exactly those of Linen.
//!
//! Batch norm and dropout behave differently in training and evaluation. A network that has them is
//! run by [`apply_train`](Module::apply_train), with a key for dropout, or
//! [`apply_eval`](Module::apply_eval). Both take [`Variables`]: the parameters and the running
//! statistics of batch norm.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use linen::{Key, Module, Result, Scope, flatten, relu};
//!
//! struct Net;
//!
//! impl Module for Net {
//!     fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
//!         let x = nn.dense(64, &flatten(x)?)?;            // [B, 64]
//!         let x = relu(&nn.batch_norm(&x)?)?;             // [B, 64]
//!         let x = nn.dropout(0.5, &x)?;                   // [B, 64]
//!         nn.dense(10, &x)                                // [B, 10]
//!     }
//! }
//!
//! let images = Tensor::ones((2, 28, 28, 1), DType::F32, &Device::Cpu)?;
//! let mut variables = Net.init_variables(Key::new(0), &images)?;
//! let (scores, batch_stats) = Net.apply_train(&variables, Key::new(1), &images)?;
//! variables.batch_stats = batch_stats; // updated by this batch
//! let scores = Net.apply_eval(&variables, &images)?;
//! # Ok::<(), linen::Error>(())
//! ```
//!
//! | items | what they are for |
//! |---|---|
//! | [`Module`], [`Scope`], [`relu`], [`avg_pool`], … | networks and layers |
//! | [`Params`], [`Variables`], [`initializers`] | parameters and running statistics |
//! | [`random`] | JAX's random numbers as tensors |
//! | [`value_and_grad`], [`Momentum`], [`WarmupCosine`] | gradients and optimization |
//! | [`compile()`] | a training step that is planned once and replayed |
//! | [`tabulate()`], [`capture_intermediates`], [`trace`] | the structure of a network |
//! | [`BatchMetrics`], [`Metrics`] | loss and accuracy |
//! | [`files`] | atomic writes, safetensors files with a checksum |
//! | [`check`] | checks of arguments, for crates that build on this one |

pub mod check;
mod compile;
#[cfg(any(feature = "cuda", test))]
mod cuda;
mod custom_ops;
mod device;
mod error;
mod fetch;
pub mod files;
mod grad;
pub mod initializers;
mod intermediates;
mod layers;
pub mod memory;
mod metrics;
mod module;
mod no_grad;
mod optimizer;
mod params;
pub mod random;
mod schedule;
mod scope;
mod sequential;
mod tabulate;
mod tensor_ids;
pub mod trace;
mod variables;

pub use compile::{CompiledStep, NotCompiled, compile};
pub use device::select_device;
pub use error::{Cause, Error, Result, device_name};
pub use grad::{Gradients, value_and_grad};
pub use intermediates::capture_intermediates;
pub use layers::{argmax, avg_pool, flatten, log_softmax, max_pool, relu};
pub use metrics::{BatchMetrics, Metrics};
pub use module::Module;
pub use no_grad::no_grad;
pub use optimizer::Momentum;
pub use params::Params;
pub use random::Key;
pub use schedule::WarmupCosine;
pub use scope::Scope;
pub use sequential::sequential;
pub use tabulate::{LayerRow, Tabulated, tabulate};
pub use variables::Variables;

/// The source files of this crate, for notebooks that show them.
pub static SOURCES: include_dir::Dir<'_> = include_dir::include_dir!("$CARGO_MANIFEST_DIR/src");

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
