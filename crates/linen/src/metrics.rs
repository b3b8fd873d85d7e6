//! Loss and accuracy, on the device while training, on the host when printed.

use candle_core::Tensor;

use crate::error::{Error, Result};

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

impl Metrics {
    /// The mean over batches of equal size.
    ///
    /// # Errors
    /// [`Error::EmptyDataset`] if there is no batch.
    pub fn mean(batches: &[Metrics]) -> Result<Metrics> {
        Self::weighted_mean(batches.iter().map(|&metrics| (metrics, 1)))
    }

    /// The mean over batches of the given numbers of examples.
    ///
    /// # Errors
    /// [`Error::EmptyDataset`] if there is no example.
    pub fn weighted_mean(
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
