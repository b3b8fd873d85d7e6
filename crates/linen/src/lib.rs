//! Networks as in Flax's Linen, over candle's tensors: a module is code, its parameters live apart.
//!
//! A [`Module`] is one function over a [`Scope`]. Running it with [`init`](Module::init) makes the
//! [`Params`] it asks for; running it with [`apply`](Module::apply) looks them up. Layers number
//! themselves and infer their input sizes, so a network of one's own takes ten lines:
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use linen::{Key, Module, Result, Scope, flatten, log_softmax, relu};
//!
//! struct Perceptron;
//!
//! impl Module for Perceptron {
//!     fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
//!         let x = flatten(x)?;                            // [B, 784]
//!         let x = relu(&nn.dense(64, &x)?)?;              // [B, 64]
//!         log_softmax(&nn.dense(10, &x)?)                 // [B, 10]
//!     }
//! }
//!
//! let images = Tensor::ones((2, 28, 28, 1), candle_core::DType::F32, &Device::Cpu)?;
//! let params = Perceptron.init(Key::new(0), &images)?;
//! assert_eq!(params.count(), 784 * 64 + 64 + 64 * 10 + 10);
//! assert_eq!(Perceptron.apply(&params, &images)?.dims(), [2, 10]);
//! # Ok::<(), linen::Error>(())
//! ```
//!
//! Batch norm and dropout are not the same in training and in evaluation, so a network that has them
//! is told which it is: [`apply_train`](Module::apply_train) with a key for dropout, or
//! [`apply_eval`](Module::apply_eval). Both take [`Variables`]: parameters, and the running
//! statistics of batch norm beside them.
//!
//! ```
//! # use candle_core::{DType, Device, Tensor};
//! # use linen::{Key, Module, Result, Scope, flatten, relu};
//! struct Steady;
//!
//! impl Module for Steady {
//!     fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
//!         let x = nn.dense(64, &flatten(x)?)?;            // [B, 64]
//!         let x = relu(&nn.batch_norm(&x)?)?;             // [B, 64]
//!         let x = nn.dropout(0.5, &x)?;                   // [B, 64]
//!         nn.dense(10, &x)                                // [B, 10]
//!     }
//! }
//!
//! let images = Tensor::ones((2, 28, 28, 1), DType::F32, &Device::Cpu)?;
//! let mut variables = Steady.init_variables(Key::new(0), &images)?;
//! let (scores, batch_stats) = Steady.apply_train(&variables, Key::new(1), &images)?;
//! variables.batch_stats = batch_stats; // moved towards those of this batch
//! let scores = Steady.apply_eval(&variables, &images)?;
//! # Ok::<(), linen::Error>(())
//! ```
//!
//! Arrays are `[batch, height, width, channels]`. Parameter paths, initial values and the keys
//! they are drawn from are Linen's own.
//!
//! | module | what is in it |
//! |---|---|
//! | [`Module`], [`Scope`] | networks, and the layers that they are made of |
//! | [`Params`], [`Variables`], [`initializers`] | what networks learn and measure |
//! | [`random`] | JAX's random numbers as tensors |
//! | [`value_and_grad`], [`Momentum`], [`WarmupCosine`] | gradients, and steps along them |
//! | [`compile()`] | a whole step of training, planned once and replayed |
//! | [`tabulate()`], [`capture_intermediates`], [`trace`] | what a network is made of |
//! | [`BatchMetrics`], [`Metrics`] | loss and accuracy, on the device and on the host |
//! | [`files`] | files of tensors, whole or not at all |

mod compile;
#[cfg(any(feature = "cuda", test))]
mod cuda;
mod device;
mod error;
mod fetch;
pub mod files;
mod grad;
pub mod initializers;
mod intermediates;
mod labels;
mod layers;
pub mod memory;
mod metrics;
mod module;
mod ops;
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
pub use error::{Cause, Error, Result, check_not_negative, device_name};
pub use grad::{Gradients, value_and_grad};
pub use intermediates::capture_intermediates;
pub use labels::{check_label_range, check_labels, check_logits};
pub use layers::{avg_pool, flatten, log_softmax, max_pool, relu};
pub use metrics::{BatchMetrics, Metrics};
pub use module::Module;
pub use optimizer::Momentum;
pub use params::Params;
pub use random::Key;
pub use schedule::WarmupCosine;
pub use scope::Scope;
pub use sequential::sequential;
pub use tabulate::{LayerRow, Tabulated, tabulate};
pub use tensor_ids::ensure_fresh_ids;
pub use variables::Variables;

/// The files of this crate, for a notebook that shows them.
pub static SOURCES: include_dir::Dir<'_> = include_dir::include_dir!("$CARGO_MANIFEST_DIR/src");
