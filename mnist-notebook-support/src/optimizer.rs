//! The optimizer: gradient descent with momentum.

use linen::{Momentum, Optimizer, Params, Result};

/// An optimizer for a copy of these parameters, with zero momentum.
///
/// `params` itself stays unchanged, as in JAX, so training can start from it again. Another rule
/// takes [`Optimizer::new`], as in `Optimizer::new(&params, 0.001, Adam::default())?`.
///
/// # Errors
/// [`Error::Hyperparameter`](linen::Error::Hyperparameter) unless `learning_rate` is finite and not
/// negative and `0 <= beta < 1`; [`Error::NoParams`](linen::Error::NoParams) if `params` is empty.
///
/// # Source
/// `create_optimizer` of the Flax tutorial.
pub fn create_optimizer(
    params: &Params,
    learning_rate: f64,
    beta: f64,
) -> Result<Optimizer> {
    Optimizer::new(params, learning_rate, Momentum { beta, ..Momentum::default() })
}
