//! Loss and accuracy: on the device during training, on the host for printing.

use std::fmt;

use candle_core::Tensor;

use crate::error::{Error, Result};

/// Loss and accuracy of one batch, as scalars on the device.
///
/// Reading a number from a GPU makes the CPU wait for it. So training collects these and
/// [fetches](BatchMetrics::get_all) them once per epoch, as the tutorial does with
/// `jax.device_get`.
#[derive(Debug, Clone)]
pub struct BatchMetrics {
    /// Mean cross-entropy of the batch in nats: a scalar of the network's type.
    pub loss: Tensor,
    /// Fraction of the batch that was classified correctly, 0 to 1: a scalar, f32.
    pub accuracy: Tensor,
}

/// Loss and accuracy as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Metrics {
    /// Mean cross-entropy in nats.
    pub loss: f32,
    /// Fraction of correctly classified examples, 0 to 1.
    pub accuracy: f32,
}

/// `loss: 0.0312, accuracy: 99.05`, the accuracy in percent. A precision is that of the loss.
impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(4);
        write!(f, "loss: {:.digits$}, accuracy: {:.2}", self.loss, self.accuracy * 100.0)
    }
}

impl Metrics {
    /// The mean over batches of equal size.
    ///
    /// # Errors
    /// [`Error::Empty`] if there are no batches.
    pub fn mean(batches: &[Metrics]) -> Result<Metrics> {
        Self::weighted_mean(batches.iter().map(|&metrics| (metrics, 1)))
    }

    /// The mean over batches, each given with its number of examples.
    ///
    /// # Errors
    /// [`Error::Empty`] if there are no examples.
    pub fn weighted_mean(batches: impl Iterator<Item = (Metrics, usize)>) -> Result<Metrics> {
        let (mut loss, mut accuracy, mut examples) = (0.0, 0.0, 0.0);
        for (metrics, size) in batches {
            let size = size as f64;
            loss += f64::from(metrics.loss) * size;
            accuracy += f64::from(metrics.accuracy) * size;
            examples += size;
        }
        if examples == 0.0 {
            return Err(Error::Empty("average over"));
        }
        Ok(Metrics { loss: (loss / examples) as f32, accuracy: (accuracy / examples) as f32 })
    }
}
