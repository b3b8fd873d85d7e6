//! Networks: a module is code, its parameters live apart.

use candle_core::Tensor;

use crate::error::Result;
use crate::params::Params;
use crate::random::Key;
use crate::scope::Scope;
use crate::tensor_ids::ensure_fresh_ids;
use crate::variables::Variables;

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
        ensure_fresh_ids([params], x)?;
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
        ensure_fresh_ids([&variables.params, &variables.batch_stats], x)?;
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
        ensure_fresh_ids([&variables.params, &variables.batch_stats], x)?;
        self.call(&mut Scope::eval(variables), x)
    }
}

/// A borrowed module is a module.
impl<M: Module> Module for &M {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        (**self).call(nn, x)
    }
}

impl Scope<'_> {
    /// Evaluates a module as a part of this one, under its type's name and a number: `Block_0`.
    ///
    /// # Errors
    /// Those of the module.
    pub fn module<M: Module>(&mut self, module: &M, x: &Tensor) -> Result<Tensor> {
        let name = std::any::type_name::<M>();
        let name = name.split('<').next().unwrap_or(name);
        module.call(&mut self.sub_scope(name.rsplit("::").next().unwrap_or(name)), x)
    }
}
