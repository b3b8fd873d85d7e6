//! Networks as in Flax's Linen: a module is code, its parameters live apart.
//!
//! A [`Module`] is one function over a [`Scope`]. Running it with [`init`](Module::init) makes the
//! [`Params`] it asks for; running it with [`apply`](Module::apply) looks them up. Layers number
//! themselves and infer their input sizes, so a network of one's own takes ten lines:
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use mnist_notebook_support::linen::{Module, Scope, flatten, log_softmax, relu};
//! use mnist_notebook_support::{Result, random::Key};
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
//! # Ok::<(), mnist_notebook_support::Error>(())
//! ```
//!
//! Batch norm and dropout are not the same in training and in evaluation, so a network that has them
//! is told which it is: [`apply_train`](Module::apply_train) with a key for dropout, or
//! [`apply_eval`](Module::apply_eval). Both take [`Variables`]: parameters, and the running
//! statistics of batch norm beside them.
//!
//! ```
//! # use candle_core::{DType, Device, Tensor};
//! # use mnist_notebook_support::linen::{Module, Scope, flatten, relu};
//! # use mnist_notebook_support::{Result, random::Key};
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
//! # Ok::<(), mnist_notebook_support::Error>(())
//! ```
//!
//! Arrays are `[batch, height, width, channels]`. Parameter paths, initial values and the keys
//! they are drawn from are Linen's own.

mod initializers;
mod intermediates;
mod layers;
mod numbers;
mod params;
mod scope;
mod tabulate;
pub(crate) mod trace;
mod variables;

use candle_core::Tensor;

pub(crate) use numbers::keep_apart;

pub use initializers::{lecun_normal, ones, zeros};
pub use intermediates::capture_intermediates;
pub use layers::{avg_pool, flatten, log_softmax, max_pool, relu};
pub use params::Params;
pub use scope::Scope;
pub use tabulate::{LayerRow, Tabulated, tabulate};
pub use variables::Variables;

use crate::Result;
use crate::random::Key;

/// A network, or a part of one, without its parameters.
///
/// # Source
/// `flax.linen.Module` with a `@nn.compact` `__call__`.
pub trait Module {
    /// Evaluates the module: layers with parameters come from `nn`, the rest are functions.
    ///
    /// # Errors
    /// Whatever the layers refuse, such as an input of the wrong rank.
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor>;

    /// Makes the parameters of the module, on the device of `sample`.
    ///
    /// The sample is an input of the shape that will come, with any batch size and any values.
    ///
    /// # Errors
    /// Those of [`call`](Module::call).
    ///
    /// # Source
    /// `flax.linen.Module.init`.
    fn init(&self, key: Key, sample: &Tensor) -> Result<Params> {
        Ok(self.init_variables(key, sample)?.params)
    }

    /// Evaluates the module with the given parameters.
    ///
    /// # Errors
    /// Those of [`call`](Module::call), [`MissingParam`](crate::Error::MissingParam) and
    /// [`ParamShape`](crate::Error::ParamShape) if the parameters are another network's,
    /// [`Mode`](crate::Error::Mode) for a network with batch norm or dropout.
    ///
    /// # Source
    /// `flax.linen.Module.apply`.
    fn apply(&self, params: &Params, x: &Tensor) -> Result<Tensor> {
        keep_apart([params], x)?;
        self.call(&mut Scope::apply(params), x)
    }

    /// Makes the parameters of the module and the running statistics of its batch norms, mean 0
    /// and variance 1, on the device of `sample`.
    ///
    /// # Errors
    /// Those of [`call`](Module::call).
    ///
    /// # Source
    /// `flax.linen.Module.init`, with `train=False`.
    fn init_variables(&self, key: Key, sample: &Tensor) -> Result<Variables> {
        let mut variables = Variables::default();
        self.call(&mut Scope::init(key, &mut variables), sample)?;
        Ok(variables)
    }

    /// Evaluates the module as in training: batch norms normalize by the batch, dropouts draw with
    /// the key. Returns, beside the result, the statistics that have moved towards the batch's.
    ///
    /// The same key drops the same values: give each step its own.
    ///
    /// # Errors
    /// Those of [`call`](Module::call), [`MissingParam`](crate::Error::MissingParam) and
    /// [`ParamShape`](crate::Error::ParamShape) if the variables are another network's.
    ///
    /// # Source
    /// `module.apply(variables, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"])`.
    fn apply_train(
        &self,
        variables: &Variables,
        dropout_key: Key,
        x: &Tensor,
    ) -> Result<(Tensor, Params)> {
        keep_apart([&variables.params, &variables.batch_stats], x)?;
        let mut batch_stats = Params::default();
        let y = self.call(&mut Scope::train(variables, dropout_key, &mut batch_stats), x)?;
        Ok((y, batch_stats))
    }

    /// Evaluates the module as after training: batch norms normalize by the running statistics,
    /// dropouts let everything pass.
    ///
    /// # Errors
    /// Those of [`call`](Module::call), [`MissingParam`](crate::Error::MissingParam) and
    /// [`ParamShape`](crate::Error::ParamShape) if the variables are another network's.
    ///
    /// # Source
    /// `module.apply(variables, x, train=False)`.
    fn apply_eval(&self, variables: &Variables, x: &Tensor) -> Result<Tensor> {
        keep_apart([&variables.params, &variables.batch_stats], x)?;
        self.call(&mut Scope::eval(variables), x)
    }
}

/// A borrowed module is a module.
impl<M: Module> Module for &M {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        (**self).call(nn, x)
    }
}
