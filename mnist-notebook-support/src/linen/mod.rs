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
//! Arrays are `[batch, height, width, channels]`. Parameter paths, initial values and the keys
//! they are drawn from are Linen's own.

mod initializers;
mod layers;
mod params;
mod scope;
mod tabulate;
pub(crate) mod trace;

use candle_core::Tensor;

pub use initializers::{lecun_normal, zeros};
pub use layers::{avg_pool, flatten, log_softmax, max_pool, relu};
pub use params::Params;
pub use scope::Scope;
pub use tabulate::{LayerRow, Tabulated, tabulate};

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
        let mut params = Params::default();
        self.call(&mut Scope::init(key, &mut params), sample)?;
        Ok(params)
    }

    /// Evaluates the module with the given parameters.
    ///
    /// # Errors
    /// Those of [`call`](Module::call), [`MissingParam`](crate::Error::MissingParam) and
    /// [`ParamShape`](crate::Error::ParamShape) if the parameters are another network's.
    ///
    /// # Source
    /// `flax.linen.Module.apply`.
    fn apply(&self, params: &Params, x: &Tensor) -> Result<Tensor> {
        self.call(&mut Scope::apply(params), x)
    }
}

/// A borrowed module is a module.
impl<M: Module> Module for &M {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        (**self).call(nn, x)
    }
}
