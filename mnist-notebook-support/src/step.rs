//! A step of training and one of evaluation.

use linen::{BatchMetrics, Module, Momentum, Params, Result, value_and_grad};

use crate::dataset::Batch;
use crate::loss::cross_entropy_loss;
use crate::metrics::compute_metrics;

/// Makes one step of training on a batch, in place, and returns the metrics from before it.
///
/// There are no gradients to reset between steps: each step computes its own.
///
/// # Errors
/// Those of the network, of [`cross_entropy_loss`] and of [`value_and_grad`]. After an error the
/// optimizer is as it was.
///
/// # Source
/// `train_step` of the Flax tutorial.
pub fn train_step(
    model: &impl Module,
    optimizer: &mut Momentum,
    batch: &Batch,
) -> Result<BatchMetrics> {
    let loss_fn = |params: &Params| {
        let logits = model.apply(params, &batch.image)?;
        let loss = cross_entropy_loss(&logits, &batch.label)?;
        Ok((loss, logits))
    };
    let ((_, logits), grad) = value_and_grad(loss_fn, optimizer.target())?;
    optimizer.apply_gradient(&grad)?;
    compute_metrics(&logits, &batch.label)
}

/// The metrics of a batch, without training on it.
///
/// # Errors
/// Those of the network and of [`compute_metrics`].
///
/// # Source
/// `eval_step` of the Flax tutorial.
pub fn eval_step(model: &impl Module, params: &Params, batch: &Batch) -> Result<BatchMetrics> {
    let logits = model.apply(params, &batch.image)?;
    compute_metrics(&logits, &batch.label)
}
