//! The optimizer: gradient descent with momentum.

use linen::{Momentum, Params, Result};

/// An optimizer for a copy of these parameters, with zero momentum.
///
/// The parameters themselves stay as they are, as in JAX: training can start from them again.
///
/// # Errors
/// [`Error::Hyperparameter`] unless `learning_rate` is finite and not negative and
/// `0 <= beta < 1`; [`Error::NoParams`] if there is nothing to train.
///
/// # Source
/// `create_optimizer` of the Flax tutorial.
pub fn create_optimizer(params: &Params, learning_rate: f64, beta: f64) -> Result<Momentum> {
    Momentum::new(params, learning_rate, beta)
}
