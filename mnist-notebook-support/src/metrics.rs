//! The metrics: loss and accuracy of a batch.

use candle_core::{DType, Tensor};
use linen::{BatchMetrics, Result, argmax};

use crate::loss::cross_entropy_loss;

/// Loss and accuracy of a batch, from its log-probabilities.
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
    let logits = logits.detach();
    let loss = cross_entropy_loss(&logits, labels)?;
    let correct = argmax(&logits)?.eq(labels)?.to_dtype(DType::F32)?;
    Ok(BatchMetrics { loss, accuracy: correct.mean(0)? })
}
