//! The training step and the evaluation step.

use jit_macro::jit;
use linen::{BatchMetrics, Evaluate, Module, Params, Result, Train, value_and_grad};

use crate::dataset::Batch;
use crate::loss::cross_entropy_loss;
use crate::metrics::compute_metrics;

/// Trains on one batch, updating the state in place, and returns the metrics before the update.
/// Compiled; [`disable_jit`](linen::disable_jit) runs it layer by layer.
///
/// The state is an [`Optimizer`](linen::Optimizer) or, for a network with batch norm or dropout, a
/// [`TrainState`](linen::TrainState). Each step computes its own gradients, so there are none to
/// reset between steps.
///
/// # Errors
/// Those of the network, of [`cross_entropy_loss`] and of [`value_and_grad`]. The state is then
/// unchanged.
///
/// # Examples
/// ```
/// use mnist_notebook_support::prelude::*;
/// # let (train_ds, _) = get_datasets(&Device::Cpu)?;
///
/// struct Net;
///
/// impl Module for Net {
///     fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
///         let x = nn.dense(64, flatten(x))?; //                [B, 64]
///         let x = relu(nn.batch_norm(x))?; //                  [B, 64]
///         let x = nn.dropout(0.2, x)?; //                      [B, 64]
///         log_softmax(nn.dense(10, x)) //                      [B, 10]
///     }
/// }
///
/// let batch = train_ds.slice(0, 32)?;
/// let variables = Net.init_variables(Key::new(0), batch.image())?;
/// let mut state = TrainState::new(&variables, 0.001, Adam::default(), Key::new(1))?;
/// let first = train_step(&Net, &mut state, &batch)?.get()?;
/// for _ in 0..10 {
///     train_step(&Net, &mut state, &batch)?;
/// }
/// let last = eval_step(&Net, &state, &batch)?.get()?;
/// assert!(last.loss < first.loss);
/// # Ok::<(), mnist_notebook_support::Error>(())
/// ```
///
/// # Source
/// `train_step` of the Flax tutorial.
#[jit]
pub fn train_step(
    model: &impl Module,
    state: &mut impl Train,
    batch: &Batch,
) -> Result<BatchMetrics> {
    let loss_fn = |params: &Params| {
        let (logits, updates) = state.apply(model, params, batch.image())?;
        let loss = cross_entropy_loss(&logits, batch.label())?;
        Ok((loss, (logits, updates)))
    };
    let ((_, (logits, updates)), grad) = value_and_grad(loss_fn, state.params())?;
    state.apply_gradient(grad, updates)?;
    compute_metrics(&logits, batch.label())
}

/// The metrics of a batch, without training: batch norm and dropout are in evaluation mode.
///
/// # Errors
/// Those of the network and of [`compute_metrics`].
///
/// # Source
/// `eval_step` of the Flax tutorial.
#[jit]
pub fn eval_step(
    model: &impl Module,
    variables: &impl Evaluate,
    batch: &Batch,
) -> Result<BatchMetrics> {
    compute_metrics(&model.evaluate(variables, batch.image())?, batch.label())
}
