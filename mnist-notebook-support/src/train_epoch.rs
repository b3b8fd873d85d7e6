//! Training for an epoch and evaluation.
//!
//! Functions that run the network take it first, so your own network trains with the same lines as
//! the tutorial's.

use candle_core::Tensor;
use linen::{BatchMetrics, Key, Metrics, Module, Momentum, Params, Result, random::permutation};
use notebook_display::{Progress, println};

use crate::dataset::Dataset;
use crate::error::Diverged;
use crate::jit::{Jit, jit};

/// Enough images to keep every core busy, few enough to need little memory.
const EVAL_BATCH_SIZE: usize = 100;

/// Trains on every example once, in an order shuffled with `rng`; prints and returns the mean of
/// the metrics over the batches.
///
/// An incomplete last batch is skipped. Each step does what [`train_step`](crate::train_step) does,
/// but is [compiled](jit()).
///
/// # Errors
/// Those of [`Dataset::check_batches`], [`Dataset::check_labels`] and
/// [`train_step`](crate::train_step); [`Diverged`] if a loss is infinite or not a number. After an
/// error the optimizer keeps the steps taken so far, after [`Diverged`] NaN among them;
/// [`TrainState::train_epoch`](crate::TrainState::train_epoch) takes them back.
///
/// # Source
/// `train_epoch` of the Flax tutorial.
pub fn train_epoch(
    model: &impl Module,
    optimizer: &mut Momentum,
    train_ds: &Dataset,
    batch_size: usize,
    epoch: usize,
    rng: Key,
) -> Result<Metrics> {
    let mut step = compiled_for(train_ds, "train on", batch_size, model, optimizer.target())?;
    train_ds.check_labels(step.num_classes())?;

    let steps_per_epoch = train_ds.len() / batch_size;
    let perms = permutation(rng, train_ds.len());

    let mut progress = Progress::new(format!("epoch {epoch}"), steps_per_epoch);
    let mut batch_metrics = Vec::new();
    for perm in perms.chunks_exact(batch_size) {
        batch_metrics.push(step.train_step(optimizer, &train_ds.batch(perm)?)?);
        progress.step(batch_size, || recent_mean(&batch_metrics));
    }
    let batch_metrics = BatchMetrics::get_all(&batch_metrics)?;
    progress.finish();
    check_finite(epoch, &batch_metrics)?;
    let metrics = Metrics::mean(&batch_metrics)?;
    let (loss, accuracy) = (metrics.loss, metrics.accuracy * 100.0);
    println!("Training - epoch: {epoch}, loss: {loss:.4}, accuracy: {accuracy:.2}");
    Ok(metrics)
}

/// Loss (nats) and accuracy (0 to 1) on a whole dataset.
///
/// Evaluates in batches of 100, so memory use does not depend on the size of the dataset.
///
/// # Errors
/// [`Error::Empty`](linen::Error::Empty); those of [`Dataset::check_labels`] and
/// [`eval_step`](crate::eval_step).
///
/// # Source
/// `eval_model` of the Flax tutorial.
pub fn eval_model(model: &impl Module, params: &Params, test_ds: &Dataset) -> Result<(f32, f32)> {
    let batch_size = EVAL_BATCH_SIZE.min(test_ds.len());
    let mut step = compiled_for(test_ds, "evaluate on", batch_size, model, params)?;
    test_ds.check_labels(step.num_classes())?;

    let mut batch_metrics = Vec::new();
    let mut sizes = Vec::new();
    for batch in test_ds.batches(batch_size) {
        let batch = batch?;
        batch_metrics.push(step.eval_step(params, &batch)?);
        sizes.push(batch.len());
    }
    let batch_metrics = BatchMetrics::get_all(&batch_metrics)?;
    let mean = Metrics::weighted_mean(batch_metrics.into_iter().zip(sizes))?;
    Ok((mean.loss, mean.accuracy))
}

/// The log-probabilities of all classes for a whole dataset; `argmax(1)` gives the predictions.
///
/// # Shapes
/// - result: `[N, K]`
///
/// # Errors
/// [`Error::Empty`](linen::Error::Empty); those of the network.
pub fn predict(model: &impl Module, params: &Params, dataset: &Dataset) -> Result<Tensor> {
    let batch_size = EVAL_BATCH_SIZE.min(dataset.len());
    let mut step = compiled_for(dataset, "predict", batch_size, model, params)?;
    let log_probs = dataset.batches(batch_size).map(|batch| step.predict(params, batch?.image()));
    Ok(Tensor::cat(&log_probs.collect::<Result<Vec<_>>>()?, 0)?)
}

/// The steps for batches of a dataset, which must have some; `purpose` is for the message.
fn compiled_for<M: Module>(
    dataset: &Dataset,
    purpose: &'static str,
    batch_size: usize,
    model: M,
    params: &Params,
) -> Result<Jit<M>> {
    dataset.check_batches(purpose, batch_size)?;
    jit(model, params, &dataset.batch_shape(batch_size))
}

/// The mean over the last 100 batches, for the progress line.
fn recent_mean(batches: &[BatchMetrics]) -> Option<String> {
    let recent = &batches[batches.len().saturating_sub(100)..];
    let metrics = BatchMetrics::get_all(recent).and_then(|metrics| Metrics::mean(&metrics)).ok()?;
    Some(format!("loss {:.4}  accuracy {:.2} %", metrics.loss, metrics.accuracy * 100.0))
}

fn check_finite(epoch: usize, batch_metrics: &[Metrics]) -> Result<()> {
    for (metrics, step) in batch_metrics.iter().zip(1..) {
        if !metrics.loss.is_finite() {
            return Err(Diverged { epoch, step, loss: metrics.loss, checkpoint: None }.into());
        }
    }
    Ok(())
}
