//! Training for an epoch and evaluation.
//!
//! Functions that run the network take it first, so your own network trains with the same lines as
//! the tutorial's; with a [`TrainState`](linen::TrainState) if it has batch norm or dropout.

use candle_core::Tensor;
use jit_macro::jit;
use linen::random::permutation;
use linen::{BatchMetrics, Evaluate, Key, Metrics, Module, Result, Train, jitted};
use notebook_display::println;

use crate::batch_log::BatchLog;
use crate::dataset::{Batch, Dataset};
use crate::train_step::{eval_step, train_step};

/// Trains on every example once, in an order shuffled with `rng`; prints and returns the mean of
/// the metrics over the batches.
///
/// An incomplete last batch is skipped. Each step is [`train_step`]. On an NVIDIA GPU, the whole
/// epoch of a compiled step runs there without the host.
///
/// # Errors
/// Those of [`Dataset::check_batches`] and [`train_step`]; if a loss is infinite or not a number,
/// [`DataError::Pixel`](crate::DataError::Pixel) if a pixel is, else
/// [`Diverged`](crate::Diverged). After an error the state keeps the steps taken so far, after
/// these two NaN among them; [`TrainingRun::train_epoch`](crate::TrainingRun::train_epoch) takes
/// them back.
///
/// # Source
/// `train_epoch` of the Flax tutorial.
#[jit]
pub fn train_epoch(
    model: &impl Module,
    state: &mut impl Train,
    train_ds: &Dataset,
    batch_size: usize,
    epoch: usize,
    rng: Key,
) -> Result<Metrics> {
    let perms = permutation(rng, train_ds.len());
    let mut batch_metrics = BatchLog::new(epoch, train_ds, batch_size)?;
    for perm in perms.chunks_exact(batch_size) {
        let batch = train_ds.batch(perm)?;
        batch_metrics.push(train_step(model, state, &batch))?;
    }
    let metrics = batch_metrics.mean()?;
    println!("Training - epoch: {epoch}, {metrics}");
    Ok(metrics)
}

/// [`train_epoch`] with a step of your own, which may have another loss or vary the images.
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
///     let inverted = batch.with_image((1.0 - batch.image())?)?; // black on white
///     train_step(&Cnn, optimizer, &inverted)
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
    let order = permutation(rng, train_ds.len());
    let mut batch_metrics = BatchLog::new(epoch, train_ds, batch_size)?;
    batch_metrics
        .take_steps(state, &order, |state, batch| jitted(|| step(state, batch)))?;
    batch_metrics.report()
}

/// Loss and accuracy on a whole dataset.
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
) -> Result<Metrics> {
    test_ds.mean_over_batches(|batch| eval_step(model, variables, batch))
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
    let log_probs = dataset.eval_batches("predict")?.map(|batch| {
        let batch = batch?;
        jitted(|| model.evaluate(variables, batch.image()))
    });
    Ok(Tensor::cat(&log_probs.collect::<Result<Vec<_>>>()?, 0)?)
}
