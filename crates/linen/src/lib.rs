//! Flax's Linen over candle's tensors: a module is code, and its parameters are stored separately.
//!
//! A [`Module`] is one function of a [`Scope`] and an input. [`init`](Module::init) runs it to
//! create its [`Params`], [`apply`](Module::apply) to evaluate it with given ones. Layers are named
//! automatically and infer their input sizes. Arrays are `[batch, height, width, channels]`;
//! parameter paths, initial values and keys are exactly those of Linen.
//!
//! Batch norm and dropout behave differently in training and evaluation. A network that has them is
//! run by [`apply_train`](Module::apply_train), with a key for dropout, or
//! [`apply_eval`](Module::apply_eval), and has [`Variables`]: the parameters and the running
//! statistics of batch norm. A [`TrainState`] holds all that training changes.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use linen::{Key, Module, Result, Scope, Variables, flatten, relu};
//!
//! struct Net;
//!
//! impl Module for Net {
//!     fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
//!         let x = nn.dense(64, flatten(x))?; //              [B, 64]
//!         let x = relu(nn.batch_norm(x))?; //                [B, 64]
//!         let x = nn.dropout(0.5, x)?; //                    [B, 64]
//!         nn.dense(10, x) //                                 [B, 10]
//!     }
//! }
//!
//! let images = Tensor::ones((2, 28, 28, 1), DType::F32, &Device::Cpu)?;
//! let mut variables = Net.init_variables(Key::new(0), &images)?;
//! let Variables { params, batch_stats } = &variables;
//! let (scores, updates) = Net.apply_train(params, batch_stats, Key::new(1), &images)?;
//! variables.batch_stats = updates; // updated by this batch
//! let scores = Net.apply_eval(&variables, &images)?;
//! # Ok::<(), linen::Error>(())
//! ```
//!
//! The layers, with the names of Flax:
//!
//! | layer | with parameters | without |
//! |---|---|---|
//! | convolution | [`Scope::conv`], with strides [`Scope::conv_with`] | |
//! | dense | [`Scope::dense`] | |
//! | normalization | [`Scope::batch_norm`], [`Scope::layer_norm`] | |
//! | regularization | | [`Scope::dropout`] |
//! | activation | | [`relu`], [`gelu`], [`log_softmax`] |
//! | pooling | | [`avg_pool`], [`max_pool`], [`global_avg_pool`] |
//! | shape | | [`flatten`] |
//! | join branches | | [`add`], [`concatenate`] |
//!
//! | items | what they are for |
//! |---|---|
//! | [`Module`], [`Scope`], and the layers above | networks |
//! | [`Params`], [`Variables`], [`initializers`] | parameters and running statistics |
//! | [`random`] | JAX's random numbers as tensors |
//! | [`value_and_grad`] | gradients |
//! | [`Optimizer`] with [`Momentum`], [`Adam`] or [`AdamW`], [`WarmupCosine`] | optimization |
//! | [`TrainState`], [`Train`] | training of networks with batch norm and dropout |
//! | [`Jit`], [`jitted`], [`disable_jit`] | networks that are planned once and replayed |
//! | [`set_matmul_precision`] | TF32 on an NVIDIA GPU |
//! | [`tabulate()`], [`capture_intermediates`], [`graph()`], [`trace`] | a network's structure |
//! | [`BatchMetrics`], [`Metrics`] | loss and accuracy |
//! | [`files`] | atomic writes, safetensors files with a checksum |
//! | [`check`] | checks of arguments, for crates that build on this one |

mod branches;
pub mod check;
mod conv;
#[cfg(any(feature = "cuda", test))]
mod cuda;
mod custom_ops;
mod device;
mod error;
mod fetch;
pub mod files;
mod gpu_step;
mod grad;
mod graph;
pub mod initializers;
mod input;
mod intermediates;
mod jit;
mod layers;
mod lazy;
pub mod memory;
mod metrics;
mod module;
mod no_grad;
mod optimizer;
mod params;
mod plan;
mod precision;
pub mod random;
mod rule;
mod schedule;
mod scope;
mod tabulate;
mod tensor_ids;
pub mod trace;
mod train_state;
mod variables;

pub use branches::{add, concatenate};
pub use conv::{Conv, Padding};
pub use device::select_device;
pub use error::{Cause, Error, Result, device_name};
pub use gpu_step::{gpu_eval_step, gpu_train_epoch, gpu_train_step};
#[cfg(feature = "cuda")]
pub use gpu_step::{gpu_launch_times, gpu_tile_times};
pub use grad::{Gradients, value_and_grad};
pub use graph::{Graph, graph};
pub use input::Input;
pub use intermediates::{Intermediates, capture_intermediates};
pub use jit::{Jit, disable_jit, jitted};
pub use layers::{
    BATCH_NORM_EPSILON, LAYER_NORM_EPSILON, argmax, avg_pool, flatten, gelu, global_avg_pool,
    log_softmax, max_pool, relu,
};
pub use metrics::{BatchMetrics, Metrics};
pub use module::Module;
pub use no_grad::no_grad;
pub use optimizer::Optimizer;
pub use params::Params;
pub use precision::{Precision, matmul_precision, set_matmul_precision};
pub use random::Key;
pub use rule::{Adam, AdamW, Momentum, Rule};
pub use schedule::WarmupCosine;
pub use scope::Scope;
pub use tabulate::{LayerRow, Tabulated, tabulate};
pub use train_state::{Train, TrainState};
pub use variables::{Evaluate, Variables};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
