//! What a step of training changes, for every network.

use candle_core::Tensor;

use crate::error::Result;
use crate::grad::Gradients;
use crate::module::Module;
use crate::optimizer::{Optimizer, check_all_like};
use crate::params::Params;
use crate::random::Key;
use crate::rule::Rule;
use crate::variables::{Evaluate, Variables};

/// What a training step trains: a [`TrainState`] or, for a network that is the same in training and
/// evaluation, an [`Optimizer`].
///
/// A step for both:
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// use linen::{
///     Adam, Key, Module, Params, Result, Scope, Train, TrainState, flatten, value_and_grad,
/// };
///
/// /// A step toward zero; returns the loss before it.
/// fn train_step(model: &impl Module, state: &mut impl Train, image: &Tensor) -> Result<f32> {
///     let loss_fn = |params: &Params| {
///         let (output, updates) = state.apply(model, params, image)?;
///         Ok((output.sqr()?.mean_all()?, updates))
///     };
///     let ((loss, updates), grad) = value_and_grad(loss_fn, state.params())?;
///     state.apply_gradient(grad, updates)?;
///     Ok(loss.to_scalar()?)
/// }
///
/// struct Net;
///
/// impl Module for Net {
///     fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
///         let x = nn.dense(64, flatten(x))?; // [B, 64]
///         let x = nn.batch_norm(x)?; //          [B, 64]
///         let x = nn.dropout(0.1, x)?; //        [B, 64]
///         nn.dense(1, x) //                      [B, 1]
///     }
/// }
///
/// let images = Tensor::arange(0f32, 784., &Device::Cpu)?.reshape((4, 14, 14, 1))?;
/// let variables = Net.init_variables(Key::new(0), &images)?;
/// let mut state = TrainState::new(&variables, 0.01, Adam::default(), Key::new(1))?;
/// let first = train_step(&Net, &mut state, &images)?;
/// for _ in 0..100 {
///     train_step(&Net, &mut state, &images)?;
/// }
/// assert!(train_step(&Net, &mut state, &images)? < first);
/// # Ok::<(), linen::Error>(())
/// ```
pub trait Train: Evaluate {
    /// Evaluates a network in training mode, with parameters that may be those of a
    /// differentiation. Returns the output and the updated running statistics of batch norm.
    ///
    /// # Errors
    /// Those of [`apply_train`](Module::apply_train); [`Error::Mode`](crate::Error::Mode) if an
    /// [`Optimizer`] trains a network with batch norm or dropout.
    fn apply(&self, model: &impl Module, params: &Params, x: &Tensor) -> Result<(Tensor, Params)>;

    /// Takes one optimization step, in place, and keeps the updated running statistics.
    ///
    /// # Errors
    /// Those of [`Optimizer::apply_gradient`]; the same if the statistics are not like those
    /// before. All leave everything unchanged.
    fn apply_gradient(&mut self, gradients: Gradients, batch_stats: Params) -> Result<()>;

    /// The optimizer, if a step changes nothing else and needs no key.
    fn as_optimizer(&mut self) -> Option<&mut Optimizer>;
}

/// An optimizer together with what batch norm and dropout need: the state of any network in
/// training.
///
/// Step `i`, counted from 0, drops values with the key `dropout_key.fold_in(i)`. The state is a
/// value: equal states take equal steps.
///
/// # Source
/// `flax.training.train_state.TrainState`, with the fields that Flax's guides *Batch normalization*
/// and *Dropout* add to it.
#[derive(Debug)]
pub struct TrainState {
    /// The parameters, the rule that updates them, what that remembers, and the number of steps.
    pub optimizer: Optimizer,
    /// Running statistics such as `BatchNorm_0/mean`; empty without batch norm.
    pub batch_stats: Params,
    /// The key of dropout in all steps. Without one, the state is that of an optimizer alone, which
    /// trains networks without batch norm and dropout.
    pub dropout_key: Option<Key>,
}

impl TrainState {
    /// The state before the first step, with a copy of these variables.
    ///
    /// # Errors
    /// Those of [`Optimizer::new`].
    pub fn new(
        variables: &Variables,
        learning_rate: f64,
        rule: impl Into<Rule>,
        dropout_key: Key,
    ) -> Result<Self> {
        let Variables { params, batch_stats } = variables;
        Ok(TrainState {
            optimizer: Optimizer::new(params, learning_rate, rule)?,
            batch_stats: batch_stats.copy()?,
            dropout_key: Some(dropout_key),
        })
    }

    /// A deep copy: steps of one do not change the other.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) or [`Error::Gpu`](crate::Error::Gpu) if the device
    /// is out of memory.
    pub fn copy(&self) -> Result<Self> {
        let (optimizer, batch_stats) = (self.optimizer.copy()?, self.batch_stats.copy()?);
        Ok(TrainState { optimizer, batch_stats, ..*self })
    }

    /// A copy of the parameters and the running statistics, such as to save the best so far.
    ///
    /// # Errors
    /// Those of [`copy`](TrainState::copy).
    pub fn variables(&self) -> Result<Variables> {
        let (params, batch_stats) = (self.optimizer.target().copy()?, self.batch_stats.copy()?);
        Ok(Variables { params, batch_stats })
    }
}

/// The state of a network without batch norm and dropout.
impl From<Optimizer> for TrainState {
    fn from(optimizer: Optimizer) -> Self {
        TrainState { optimizer, batch_stats: Params::default(), dropout_key: None }
    }
}

impl Evaluate for TrainState {
    fn params(&self) -> &Params {
        self.optimizer.target()
    }

    fn batch_stats(&self) -> Option<&Params> {
        self.dropout_key.map(|_| &self.batch_stats)
    }
}

impl Train for TrainState {
    fn apply(&self, model: &impl Module, params: &Params, x: &Tensor) -> Result<(Tensor, Params)> {
        let Some(key) = self.dropout_key else { return self.optimizer.apply(model, params, x) };
        // As in JAX, a step's number has 32 bits.
        let key = key.fold_in(self.optimizer.step_count() as u32);
        model.apply_train(params, &self.batch_stats, key, x)
    }

    fn apply_gradient(&mut self, gradients: Gradients, batch_stats: Params) -> Result<()> {
        check_all_like("updated statistics", &batch_stats, &self.batch_stats)?;
        self.optimizer.apply_gradient(gradients)?;
        self.batch_stats = batch_stats;
        Ok(())
    }

    fn as_optimizer(&mut self) -> Option<&mut Optimizer> {
        self.dropout_key.is_none().then_some(&mut self.optimizer)
    }
}

impl Evaluate for Optimizer {
    fn params(&self) -> &Params {
        self.target()
    }

    fn batch_stats(&self) -> Option<&Params> {
        None
    }
}

impl Train for Optimizer {
    fn apply(&self, model: &impl Module, params: &Params, x: &Tensor) -> Result<(Tensor, Params)> {
        Ok((model.apply(params, x)?, Params::default()))
    }

    fn apply_gradient(&mut self, gradients: Gradients, batch_stats: Params) -> Result<()> {
        check_all_like("updated statistics", &batch_stats, &Params::default())?;
        Optimizer::apply_gradient(self, gradients)
    }

    fn as_optimizer(&mut self) -> Option<&mut Optimizer> {
        Some(self)
    }
}
