//! Training for an epoch and evaluation.
//!
//! Functions that run the network take it first, so your own network trains with the same lines as
//! the tutorial's; with a [`TrainState`](linen::TrainState) if it has batch norm or dropout.

use candle_core::Tensor;
use linen::random::permutation;
use linen::{
    BatchMetrics, Evaluate, Jit, Key, Metrics, Module, Result, Train, gpu_train_epoch, no_grad,
};
use notebook_display::{Progress, println};

use crate::dataset::{Batch, Dataset};
use crate::error::Diverged;
use crate::train_step::{eval_step, train_step};

/// Enough images to keep every core busy, few enough to need little memory.
const EVAL_BATCH_SIZE: usize = 100;
/// The same for a GPU.
const EVAL_BATCH_SIZE_ON_GPU: usize = 2000;

/// Trains on every example once, in an order shuffled with `rng`; prints and returns the mean of
/// the metrics over the batches.
///
/// An incomplete last batch is skipped. Each step is [`train_step`], with the network compiled by a
/// [`Jit`]. On an NVIDIA GPU, the whole epoch of a compiled step runs there without the host
/// ([`gpu_train_epoch`]).
///
/// # Errors
/// Those of [`Dataset::check_batches`] and [`train_step`]; if a loss is infinite or not a number,
/// [`DataError::Pixel`](crate::DataError::Pixel) if a pixel is, else [`Diverged`]. After an error
/// the state keeps the steps taken so far, after these two NaN among them;
/// [`TrainingRun::train_epoch`](crate::TrainingRun::train_epoch) takes them back.
///
/// # Source
/// `train_epoch` of the Flax tutorial.
pub fn train_epoch(
    model: &impl Module,
    state: &mut impl Train,
    train_ds: &Dataset,
    batch_size: usize,
    epoch: usize,
    rng: Key,
) -> Result<Metrics> {
    if let Some(batch_metrics) = epoch_on_gpu(model, state, train_ds, batch_size, rng)? {
        return report(epoch, &batch_metrics, train_ds);
    }
    let step = |state: &mut _, batch: &Batch| train_step(model, state, batch);
    train_epoch_with(state, train_ds, batch_size, epoch, rng, step)
}

/// [`train_epoch`] with a step of your own, which may have another loss or vary the images.
///
/// The networks in the step are compiled by a [`Jit`].
///
/// # Errors
/// Those of [`train_epoch`], with the step's instead of [`train_step`]'s.
///
/// # Examples
/// ```
/// use mnist_notebook_support::prelude::*;
/// # let (train_ds, _) = get_datasets(&Device::Cpu)?;
/// # let train_ds = train_ds.slice(0, 320)?;
///
/// let (rng, init_rng) = Key::new(0).split();
/// let params = get_initial_params(&Cnn, init_rng, &Device::Cpu)?;
/// let mut optimizer = create_optimizer(&params, 0.1, 0.9)?;
/// train_epoch_with(&mut optimizer, &train_ds, 32, 1, rng, |optimizer, batch| {
///     let inverted = (1.0 - batch.image())?; // black on white
///     train_step(&Cnn, optimizer, &Dataset::new(inverted, batch.label().clone())?)
/// })?;
/// # Ok::<(), mnist_notebook_support::Error>(())
/// ```
pub fn train_epoch_with<S>(
    state: &mut S,
    train_ds: &Dataset,
    batch_size: usize,
    epoch: usize,
    rng: Key,
    mut step: impl FnMut(&mut S, &Batch) -> Result<BatchMetrics>,
) -> Result<Metrics> {
    train_ds.check_batches("train on", batch_size)?;
    let steps_per_epoch = train_ds.len() / batch_size;
    let perms = permutation(rng, train_ds.len());

    let mut jit = Jit::new();
    let mut progress = Progress::new(format!("epoch {epoch}"), steps_per_epoch);
    let mut batch_metrics = Vec::new();
    for perm in perms.chunks_exact(batch_size) {
        let batch = train_ds.batch(perm)?;
        let metrics = jit.call(|| step(state, &batch));
        batch_metrics.push(metrics.map_err(|error| train_ds.locate(error))?);
        progress.step(batch_size, || recent_mean(&batch_metrics));
    }
    let batch_metrics =
        BatchMetrics::get_all(&batch_metrics).map_err(|error| train_ds.locate(error))?;
    progress.finish();
    report(epoch, &batch_metrics, train_ds)
}

/// Loss (nats) and accuracy (0 to 1) on a whole dataset.
///
/// The variables are the network's [`Params`](linen::Params) or, if it has batch norm or dropout,
/// its [`Variables`](linen::Variables) or [`TrainState`](linen::TrainState). Evaluates in batches
/// of 100, or 2,000 on a GPU, so memory use does not depend on the size of the dataset.
///
/// # Errors
/// [`Error::Empty`](linen::Error::Empty); those of [`eval_step`].
///
/// # Source
/// `eval_model` of the Flax tutorial.
pub fn eval_model(
    model: &impl Module,
    variables: &impl Evaluate,
    test_ds: &Dataset,
) -> Result<(f32, f32)> {
    let batch_size = eval_batch_size(test_ds);
    test_ds.check_batches("evaluate on", batch_size)?;
    let mut jit = Jit::new();
    let mut batch_metrics = Vec::new();
    let mut sizes = Vec::new();
    for batch in test_ds.batches(batch_size) {
        let batch = batch?;
        let metrics = jit.call(|| eval_step(model, variables, &batch));
        batch_metrics.push(metrics.map_err(|error| test_ds.locate(error))?);
        sizes.push(batch.len());
    }
    let batch_metrics =
        BatchMetrics::get_all(&batch_metrics).map_err(|error| test_ds.locate(error))?;
    let mean = Metrics::weighted_mean(batch_metrics.into_iter().zip(sizes))?;
    Ok((mean.loss, mean.accuracy))
}

/// The log-probabilities of all classes for a whole dataset; `argmax(1)` gives the predictions.
///
/// The variables are those of [`eval_model`].
///
/// # Shapes
/// - result: `[N, K]`
///
/// # Errors
/// [`Error::Empty`](linen::Error::Empty); those of the network.
pub fn predict(
    model: &impl Module,
    variables: &impl Evaluate,
    dataset: &Dataset,
) -> Result<Tensor> {
    let batch_size = eval_batch_size(dataset);
    dataset.check_batches("predict", batch_size)?;
    let mut jit = Jit::new();
    let predict = |image: &Tensor| no_grad(|| model.apply_eval(variables, image));
    let log_probs = dataset.batches(batch_size).map(|batch| {
        let batch = batch?;
        jit.call(|| predict(batch.image()))
    });
    Ok(Tensor::cat(&log_probs.collect::<Result<Vec<_>>>()?, 0)?)
}

fn eval_batch_size(dataset: &Dataset) -> usize {
    let is_on_cpu = dataset.image().device().is_cpu();
    let size = if is_on_cpu { EVAL_BATCH_SIZE } else { EVAL_BATCH_SIZE_ON_GPU };
    size.min(dataset.len())
}

/// The mean over the last 100 batches, for the progress line.
fn recent_mean(batches: &[BatchMetrics]) -> Option<String> {
    let recent = &batches[batches.len().saturating_sub(100)..];
    let metrics = BatchMetrics::get_all(recent).and_then(|metrics| Metrics::mean(&metrics)).ok()?;
    Some(format!("loss {:.4}  accuracy {:.2} %", metrics.loss, metrics.accuracy * 100.0))
}

/// The steps of an epoch, if an NVIDIA GPU can take them without the host; their metrics.
fn epoch_on_gpu(
    model: &impl Module,
    state: &mut impl Train,
    train_ds: &Dataset,
    batch_size: usize,
    rng: Key,
) -> Result<Option<Vec<Metrics>>> {
    let Some(optimizer) = state.as_optimizer() else { return Ok(None) };
    if !train_ds.image().device().is_cuda() {
        return Ok(None);
    }
    train_ds.check_batches("train on", batch_size)?;
    let mut order = permutation(rng, train_ds.len());
    order.truncate(train_ds.len() / batch_size * batch_size);
    let data = (train_ds.image(), train_ds.label());
    let metrics = Jit::new().call(|| gpu_train_epoch(model, optimizer, data, batch_size, &order));
    metrics.map_err(|error| train_ds.locate(error))
}

/// Prints and returns the mean over the batches, if every loss is finite.
fn report(epoch: usize, batch_metrics: &[Metrics], train_ds: &Dataset) -> Result<Metrics> {
    check_finite(epoch, batch_metrics, train_ds)?;
    let metrics = Metrics::mean(batch_metrics)?;
    let (loss, accuracy) = (metrics.loss, metrics.accuracy * 100.0);
    println!("Training - epoch: {epoch}, loss: {loss:.4}, accuracy: {accuracy:.2}");
    Ok(metrics)
}

fn check_finite(epoch: usize, batch_metrics: &[Metrics], train_ds: &Dataset) -> Result<()> {
    for (metrics, step) in batch_metrics.iter().zip(1..) {
        if !metrics.loss.is_finite() {
            train_ds.check_pixels()?;
            return Err(Diverged { epoch, step, loss: metrics.loss, checkpoint: None }.into());
        }
    }
    Ok(())
}
