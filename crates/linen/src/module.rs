//! Networks: modules are code, parameters are stored separately.

use candle_core::Tensor;

use crate::error::Result;
use crate::jit::{self, Evaluation, Identity};
use crate::no_grad::no_grad;
use crate::params::Params;
use crate::random::Key;
use crate::scope::Scope;
use crate::tensor_ids::ensure_fresh_ids;
use crate::variables::{Evaluate, Variables};

/// A network or part of one, without its parameters.
///
/// # Source
/// `flax.linen.Module` with a `@nn.compact` `__call__`.
pub trait Module {
    /// Evaluates the module. Layers with parameters are methods of `nn`, the others are functions.
    ///
    /// # Errors
    /// Those of the layers, such as for an input of the wrong rank.
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor>;

    /// The name of the module's type, such as `Block`, which names it among its siblings.
    fn name(&self) -> &'static str {
        let path = std::any::type_name::<Self>();
        let path = path.split('<').next().unwrap_or(path);
        path.rsplit("::").next().unwrap_or(path)
    }

    /// Tells networks apart within a [`Jit`](crate::Jit).
    #[doc(hidden)]
    fn identity(&self) -> Identity {
        Identity {
            id: typeid::of::<Self>(),
            name: std::any::type_name::<Self>(),
            size_of_fields: size_of_val(self),
            code: (Self::call as fn(&Self, &mut Scope, &Tensor) -> Result<Tensor>) as usize,
        }
    }

    /// Creates the parameters of the module, on the device of `sample`.
    ///
    /// The sample is an input of the right shape, with any batch size and any values.
    ///
    /// # Errors
    /// Those of [`call`](Module::call).
    ///
    /// # Source
    /// `flax.linen.Module.init`.
    fn init(&self, key: Key, sample: &Tensor) -> Result<Params> {
        Ok(self.init_variables(key, sample)?.params)
    }

    /// Evaluates the module with the given parameters; within a [`Jit`](crate::Jit), compiled.
    ///
    /// # Errors
    /// Those of [`call`](Module::call), [`MissingParam`](crate::Error::MissingParam) and
    /// [`ParamShape`](crate::Error::ParamShape) if the parameters are another network's,
    /// [`Mode`](crate::Error::Mode) for a network with batch norm or dropout.
    ///
    /// # Source
    /// `flax.linen.Module.apply`.
    fn apply(&self, params: &Params, x: &Tensor) -> Result<Tensor> {
        ensure_fresh_ids([x]);
        let network = |x: &Tensor| self.call(&mut Scope::apply(params), x);
        match jit::apply(self.identity(), params, Evaluation::Apply, x, network)? {
            Some(y) => Ok(y),
            None => jit::plain(|| network(x)),
        }
    }

    /// Creates the parameters of the module and the running statistics of its batch norms (mean 0
    /// and variance 1), on the device of `sample`.
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

    /// Evaluates the module in training mode: batch norm uses the statistics of the batch, and
    /// dropout is on; within a [`Jit`](crate::Jit), compiled. Returns the output and the updated
    /// running statistics.
    ///
    /// The parameters are an argument of their own, so that a loss can be differentiated with
    /// respect to them. The same key drops the same values, so use a new key for each step.
    ///
    /// # Errors
    /// Those of [`call`](Module::call), [`MissingParam`](crate::Error::MissingParam) and
    /// [`ParamShape`](crate::Error::ParamShape) if parameters or statistics are another network's.
    ///
    /// # Source
    /// `module.apply({"params": params, "batch_stats": batch_stats}, x, train=True,
    /// rngs={"dropout": key}, mutable=["batch_stats"])`.
    fn apply_train(
        &self,
        params: &Params,
        batch_stats: &Params,
        dropout_key: Key,
        x: &Tensor,
    ) -> Result<(Tensor, Params)> {
        ensure_fresh_ids([x]);
        let network = |updates: &mut Params, x: &Tensor| {
            self.call(&mut Scope::train(params, batch_stats, dropout_key, updates), x)
        };
        let mut updates = Params::default();
        let evaluation = Evaluation::Train { batch_stats, dropout_key, updates: &mut updates };
        let planned = |x: &Tensor| network(&mut Params::default(), x);
        let y = match jit::apply(self.identity(), params, evaluation, x, planned)? {
            Some(y) => y,
            None => jit::plain(|| network(&mut updates, x))?,
        };
        Ok((y, updates))
    }

    /// Evaluates the module in evaluation mode, within a [`Jit`](crate::Jit) compiled: batch norm
    /// uses the running statistics, and dropout is off. With [`Params`] alone it is
    /// [`apply`](Module::apply).
    ///
    /// # Errors
    /// Those of [`call`](Module::call), [`MissingParam`](crate::Error::MissingParam) and
    /// [`ParamShape`](crate::Error::ParamShape) if the variables are another network's.
    ///
    /// # Source
    /// `module.apply(variables, x, train=False)`.
    fn apply_eval(&self, variables: &dyn Evaluate, x: &Tensor) -> Result<Tensor> {
        let params = variables.params();
        let Some(batch_stats) = variables.batch_stats() else { return self.apply(params, x) };
        ensure_fresh_ids([x]);
        let network = |x: &Tensor| self.call(&mut Scope::eval(params, batch_stats), x);
        let evaluation = Evaluation::Evaluate { batch_stats };
        match jit::apply(self.identity(), params, evaluation, x, network)? {
            Some(y) => Ok(y),
            None => jit::plain(|| network(x)),
        }
    }

    /// [`apply_eval`](Module::apply_eval) under [`no_grad`]: nobody will ask for a gradient.
    ///
    /// # Errors
    /// Those of [`apply_eval`](Module::apply_eval).
    fn evaluate(&self, variables: &dyn Evaluate, x: &Tensor) -> Result<Tensor> {
        no_grad(|| self.apply_eval(variables, x))
    }
}

/// References to modules are modules, too.
impl<M: Module + ?Sized> Module for &M {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        (**self).call(nn, x)
    }

    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn identity(&self) -> Identity {
        (**self).identity()
    }
}

/// So are boxed ones, for lists of different networks.
impl<M: Module + ?Sized> Module for Box<M> {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        (**self).call(nn, x)
    }

    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn identity(&self) -> Identity {
        (**self).identity()
    }
}

// Here, because `scope` must not import this file.
impl Scope<'_> {
    /// Evaluates a submodule, named by its type and a number: `Block_0`.
    ///
    /// Each call makes its own parameters: two calls of one module do not share theirs.
    ///
    /// # Errors
    /// Those of the module.
    pub fn module(&mut self, module: &impl Module, x: &Tensor) -> Result<Tensor> {
        module.call(&mut self.sub_scope(module.name()), x)
    }
}
