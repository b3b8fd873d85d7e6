//! Training and evaluation: a step, an epoch, a test.
//!
//! Every function takes the network first, so that one of the reader's own trains with the same
//! lines as the tutorial's.

use candle_core::Tensor;

use crate::dataset::{Batch, Dataset};
use crate::jit::jit;
use crate::linen::{Module, Params};
use crate::loss::{check_label_range, cross_entropy_loss};
use crate::metrics::{BatchMetrics, Metrics, compute_metrics};
use crate::notebook::Progress;
use crate::optimizer::{Gradients, Momentum};
use crate::random::{Key, permutation};
use crate::{Error, Result};

/// How many test images are evaluated at a time: enough to keep every core busy, few enough to
/// need little memory.
const EVAL_BATCH_SIZE: usize = 100;

/// Evaluates a function of the parameters and its gradient.
///
/// The function returns the scalar to differentiate and whatever else the caller wants to keep;
/// the result is `((value, extra), gradients)`.
///
/// # Errors
/// Those of the function; [`Error::NoGradient`] if the value does not depend on some parameter;
/// [`Error::Tensor`] if an operation in it has no derivative.
///
/// # Source
/// `jax.value_and_grad(loss_fn, has_aux=True)`. The derivatives are candle's.
pub fn value_and_grad<T>(
    loss_fn: impl FnOnce(&Params) -> Result<(Tensor, T)>,
    params: &Params,
) -> Result<((Tensor, T), Gradients)> {
    let (loss, extra) = loss_fn(params)?;
    let grads = loss.backward()?;
    let gradients = params.iter().map(|(path, var)| match grads.get(var) {
        Some(grad) => Ok((path.to_owned(), grad.clone())),
        None => Err(Error::NoGradient(path.to_owned())),
    });
    let gradients = gradients.collect::<Result<Gradients>>()?;
    Ok(((loss.detach(), extra), gradients))
}

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

/// Trains on every example once, in the random order that `rng` gives, and prints the epoch's
/// metrics: the mean over its batches.
///
/// What does not fill a last batch is left out. The steps are [compiled](jit()) first; they do what
/// [`train_step`] does.
///
/// # Errors
/// Those of [`Dataset::new`] if the dataset was put together otherwise; [`Error::EmptyDataset`] for
/// nothing to train on; [`Error::BatchSize`] unless `1 <= batch_size <= train_ds.len()`; [`Error::Label`] for a label
/// that is no class; [`Error::Diverged`] if the loss is no longer a finite number, naming `epoch`
/// and the step; those of [`train_step`].
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
    train_ds.check()?;
    if train_ds.is_empty() {
        return Err(Error::EmptyDataset("train on"));
    }
    let train_ds_size = train_ds.len();
    if batch_size == 0 || batch_size > train_ds_size {
        return Err(Error::BatchSize { batch_size, examples: train_ds_size });
    }
    let steps_per_epoch = train_ds_size / batch_size;
    let mut compiled = jit(model, optimizer.target(), &input_shape(train_ds, batch_size))?;
    check_label_range(&train_ds.label, compiled.num_classes())?;

    let perms = permutation(rng, train_ds_size);
    let mut progress = Progress::new(format!("epoch {epoch}"), steps_per_epoch);
    let mut batch_metrics = Vec::with_capacity(steps_per_epoch);
    for perm in perms.chunks_exact(batch_size) {
        let batch = train_ds.batch(perm)?;
        batch_metrics.push(compiled.train_step(optimizer, &batch)?);
        progress.step(batch_size, || recent(&batch_metrics));
    }

    let batch_metrics = BatchMetrics::get_all(&batch_metrics)?;
    progress.finish();
    if let Some(step) = batch_metrics.iter().position(|metrics| !metrics.loss.is_finite()) {
        return Err(Error::Diverged {
            epoch,
            step: step + 1,
            loss: batch_metrics[step].loss,
            checkpoint: None,
        });
    }
    let metrics = Metrics::mean(&batch_metrics)?;
    println!(
        "Training - epoch: {epoch}, loss: {:.4}, accuracy: {:.2}",
        metrics.loss,
        metrics.accuracy * 100.0
    );
    Ok(metrics)
}

/// Loss (nats) and accuracy (0 to 1) on a whole dataset.
///
/// The examples are evaluated a hundred at a time, so that memory does not grow with them.
///
/// # Errors
/// [`Error::EmptyDataset`] for nothing to evaluate; those of [`eval_step`].
///
/// # Source
/// `eval_model` of the Flax tutorial.
pub fn eval_model(model: &impl Module, params: &Params, test_ds: &Dataset) -> Result<(f32, f32)> {
    test_ds.check()?;
    if test_ds.is_empty() {
        return Err(Error::EmptyDataset("evaluate on"));
    }
    let batch_size = EVAL_BATCH_SIZE.min(test_ds.len());
    let mut compiled = jit(model, params, &input_shape(test_ds, batch_size))?;
    let mut batches = Vec::new();
    let mut sizes = Vec::new();
    for start in (0..test_ds.len()).step_by(batch_size) {
        let size = batch_size.min(test_ds.len() - start);
        batches.push(compiled.eval_step(params, &test_ds.slice(start, size)?)?);
        sizes.push(size);
    }
    let metrics = BatchMetrics::get_all(&batches)?;
    let mean = Metrics::weighted_mean(metrics.into_iter().zip(sizes))?;
    Ok((mean.loss, mean.accuracy))
}

/// The shape of a batch's images.
fn input_shape(dataset: &Dataset, batch_size: usize) -> Vec<usize> {
    let mut shape = dataset.image.dims().to_vec();
    shape[0] = batch_size;
    shape
}

/// The mean over the last hundred batches, for the progress line.
fn recent(batches: &[BatchMetrics]) -> Option<Metrics> {
    let last = &batches[batches.len().saturating_sub(100)..];
    BatchMetrics::get_all(last).and_then(|metrics| Metrics::mean(&metrics)).ok()
}
