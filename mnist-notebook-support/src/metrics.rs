//! Loss and accuracy, on the device while training, on the host when printed.

use candle_core::{D, DType, Tensor};

use crate::loss::{check_logits, cross_entropy_loss};
use crate::{Error, Result};

/// Loss and accuracy of one batch, as scalars on the device.
///
/// Reading a number from a GPU makes the CPU wait for it. Training therefore keeps these and
/// [fetches](BatchMetrics::get_all) them once per epoch, as the tutorial does with `jax.device_get`.
#[derive(Debug, Clone)]
pub struct BatchMetrics {
    /// Mean cross-entropy of the batch in nats: scalar of the network's type.
    pub loss: Tensor,
    /// Share of the batch that was classified correctly, 0 to 1: scalar, f32.
    pub accuracy: Tensor,
}

/// Loss and accuracy as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Metrics {
    /// Mean cross-entropy in nats.
    pub loss: f32,
    /// Share of correctly classified examples, 0 to 1.
    pub accuracy: f32,
}

/// Loss and accuracy of a batch from its log-probabilities.
///
/// # Shapes
/// - `logits`: `[B, K]` log-probabilities
/// - `labels`: `[B]`, u32
///
/// # Errors
/// Those of [`cross_entropy_loss`].
///
/// # Source
/// `compute_metrics` of the Flax tutorial.
pub fn compute_metrics(logits: &Tensor, labels: &Tensor) -> Result<BatchMetrics> {
    check_logits(logits, labels)?;
    let logits = logits.detach();
    let loss = cross_entropy_loss(&logits, labels)?;
    let correct = logits.argmax(D::Minus1)?.eq(labels)?.to_dtype(DType::F32)?;
    Ok(BatchMetrics { loss, accuracy: correct.mean(0)? })
}

impl BatchMetrics {
    /// Fetches the numbers of this batch from the device.
    ///
    /// # Errors
    /// Those of [`get_all`](BatchMetrics::get_all).
    pub fn get(&self) -> Result<Metrics> {
        Metrics::mean(&Self::get_all(std::slice::from_ref(self))?)
    }

    /// Fetches the numbers of many batches from the device in one go.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the device fails; [`Error::Label`] if a compiled step on an NVIDIA GPU,
    /// which nothing waited for, met a label that is no class.
    pub fn get_all(batches: &[BatchMetrics]) -> Result<Vec<Metrics>> {
        if batches.is_empty() {
            return Ok(Vec::new());
        }
        #[cfg(feature = "cuda")]
        if let Some(metrics) = crate::cuda::fetch(batches)? {
            return Ok(metrics);
        }
        let fetch = |scalar: fn(&BatchMetrics) -> &Tensor| -> Result<Vec<f32>> {
            let scalars: Vec<&Tensor> = batches.iter().map(scalar).collect();
            Ok(Tensor::stack(&scalars, 0)?.to_dtype(DType::F32)?.to_vec1()?)
        };
        let (losses, accuracies) = (fetch(|b| &b.loss)?, fetch(|b| &b.accuracy)?);
        let pairs = losses.into_iter().zip(accuracies);
        Ok(pairs.map(|(loss, accuracy)| Metrics { loss, accuracy }).collect())
    }
}

impl Metrics {
    /// The mean over batches of equal size.
    ///
    /// # Errors
    /// [`Error::EmptyDataset`] if there is no batch.
    pub fn mean(batches: &[Metrics]) -> Result<Metrics> {
        Self::weighted_mean(batches.iter().map(|&metrics| (metrics, 1)))
    }

    /// The mean over batches of the given numbers of examples.
    pub(crate) fn weighted_mean(
        batches: impl Iterator<Item = (Metrics, usize)>,
    ) -> Result<Metrics> {
        let (mut loss, mut accuracy, mut examples) = (0.0, 0.0, 0.0);
        for (metrics, size) in batches {
            let size = size as f64;
            loss += f64::from(metrics.loss) * size;
            accuracy += f64::from(metrics.accuracy) * size;
            examples += size;
        }
        if examples == 0.0 {
            return Err(Error::EmptyDataset("average over"));
        }
        Ok(Metrics { loss: (loss / examples) as f32, accuracy: (accuracy / examples) as f32 })
    }
}
