//! The training step and the evaluation step.

use linen::{
    BatchMetrics, Module, Optimizer, Params, Result, gpu_eval_step, gpu_train_step, no_grad,
    value_and_grad,
};

use crate::dataset::Batch;
use crate::loss::cross_entropy_loss;
use crate::metrics::compute_metrics;

/// Trains on one batch, updating the optimizer in place, and returns the metrics before the update.
///
/// Each step computes its own gradients, so there are none to reset between steps.
///
/// # Errors
/// Those of the network, of [`cross_entropy_loss`] and of [`value_and_grad`]. The optimizer is then
/// unchanged.
///
/// # Source
/// `train_step` of the Flax tutorial.
pub fn train_step(
    model: &impl Module,
    optimizer: &mut Optimizer,
    batch: &Batch,
) -> Result<BatchMetrics> {
    if let Some(metrics) = gpu_train_step(model, optimizer, batch.image(), batch.label())? {
        return Ok(metrics);
    }
    let loss_fn = |params: &Params| {
        let logits = model.apply(params, batch.image())?;
        let loss = cross_entropy_loss(&logits, batch.label())?;
        Ok((loss, logits))
    };
    let ((_, logits), grad) = value_and_grad(loss_fn, optimizer.target())?;
    optimizer.apply_gradient(grad)?;
    compute_metrics(&logits, batch.label())
}

/// The metrics of a batch, without training.
///
/// # Errors
/// Those of the network and of [`compute_metrics`].
///
/// # Source
/// `eval_step` of the Flax tutorial.
pub fn eval_step(model: &impl Module, params: &Params, batch: &Batch) -> Result<BatchMetrics> {
    if let Some(metrics) = gpu_eval_step(model, params, batch.image(), batch.label())? {
        return Ok(metrics);
    }
    let logits = no_grad(|| model.apply(params, batch.image()))?;
    compute_metrics(&logits, batch.label())
}
