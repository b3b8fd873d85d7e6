//! The metrics of an epoch's batches, as they come.

use linen::{BatchMetrics, Metrics, Result};
use notebook_display::{Progress, println};

use crate::dataset::{Batch, Dataset};
use crate::error::Diverged;

/// The metrics of an epoch's batches, with a progress line: the tutorial's list `batch_metrics`.
///
/// # Examples
/// ```
/// use mnist_notebook_support::prelude::*;
/// # let (train_ds, _) = get_datasets(&Device::Cpu)?;
/// # let train_ds = train_ds.slice(0, 64)?;
/// # let params = get_initial_params(&Cnn, Key::new(0), &Device::Cpu)?;
///
/// let mut batch_metrics = BatchLog::new(1, &train_ds, 32)?;
/// for perm in permutation(Key::new(1), train_ds.len()).chunks_exact(32) {
///     batch_metrics.push(eval_step(&Cnn, &params, &train_ds.batch(perm)?))?;
/// }
/// println!("{}", batch_metrics.mean()?);
/// # Ok::<(), mnist_notebook_support::Error>(())
/// ```
pub struct BatchLog<'a> {
    epoch: usize,
    dataset: &'a Dataset,
    batch_size: usize,
    progress: Progress,
    /// Those still on the device, then those that came to the host by themselves.
    batches: Vec<BatchMetrics>,
    fetched: Vec<Metrics>,
}

impl<'a> BatchLog<'a> {
    /// For an epoch in batches of `batch_size`.
    ///
    /// # Errors
    /// Those of [`Dataset::check_batches`].
    pub fn new(epoch: usize, dataset: &'a Dataset, batch_size: usize) -> Result<Self> {
        dataset.check_batches("train on", batch_size)?;
        let progress =
            Progress::new(format!("epoch {epoch}"), dataset.len() / batch_size);
        let (batches, fetched) = (Vec::new(), Vec::new());
        Ok(Self { epoch, dataset, batch_size, progress, batches, fetched })
    }

    /// Adds what a step has returned.
    ///
    /// # Errors
    /// The step's. A bad label is named by its place in the whole dataset.
    pub fn push(&mut self, step: Result<BatchMetrics>) -> Result<()> {
        self.batches.push(step.map_err(|error| self.dataset.locate(error))?);
        let Self { progress, batches, batch_size, .. } = self;
        progress.step(*batch_size, || recent_mean(batches));
        Ok(())
    }

    /// Takes a step on each batch of `order`, the indices of examples.
    ///
    /// # Errors
    /// Those of [`Dataset::batch`] and [`push`](BatchLog::push).
    pub(crate) fn take_steps<S>(
        &mut self,
        state: &mut S,
        order: &[u32],
        mut step: impl FnMut(&mut S, &Batch) -> Result<BatchMetrics>,
    ) -> Result<()> {
        for perm in order.chunks_exact(self.batch_size) {
            let batch = self.dataset.batch(perm)?;
            self.push(step(state, &batch))?;
        }
        Ok(())
    }

    /// Adds steps whose metrics are on the host.
    pub(crate) fn extend(&mut self, metrics: Vec<Metrics>) {
        self.fetched.extend(metrics);
    }

    /// The mean over the batches, read from the device.
    ///
    /// # Errors
    /// [`Error::Empty`](linen::Error::Empty) without a batch. If a loss is infinite or not a
    /// number, [`DataError::Pixel`](crate::DataError::Pixel) if a pixel is, else [`Diverged`].
    pub fn mean(self) -> Result<Metrics> {
        let batches = BatchMetrics::get_all(&self.batches);
        let batches = batches.map_err(|error| self.dataset.locate(error))?;
        self.progress.finish();
        let metrics = [batches, self.fetched].concat();
        for (Metrics { loss, .. }, step) in metrics.iter().zip(1..) {
            if !loss.is_finite() {
                self.dataset.check_pixels()?;
                let (epoch, loss) = (self.epoch, *loss);
                return Err(Diverged { epoch, step, loss, checkpoint: None }.into());
            }
        }
        Metrics::mean(&metrics)
    }

    /// Prints and returns the [`mean`](BatchLog::mean).
    ///
    /// # Errors
    /// Those of [`mean`](BatchLog::mean).
    pub(crate) fn report(self) -> Result<Metrics> {
        let epoch = self.epoch;
        let metrics = self.mean()?;
        println!("Training - epoch: {epoch}, {metrics}");
        Ok(metrics)
    }
}

/// The mean over the last 100 batches, for the progress line.
fn recent_mean(batches: &[BatchMetrics]) -> Option<String> {
    let recent = &batches[batches.len().saturating_sub(100)..];
    let metrics = BatchMetrics::get_all(recent)
        .and_then(|metrics| Metrics::mean(&metrics))
        .ok()?;
    Some(format!(
        "loss {:.4}  accuracy {:.2} %",
        metrics.loss,
        metrics.accuracy * 100.0
    ))
}
