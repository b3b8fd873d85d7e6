//! The loss: one-hot labels and cross-entropy.

use candle_core::{D, DType, Tensor};
use linen::{Result, check};

/// One-hot encoded labels: rows of zeros with a single one.
///
/// # Shapes
/// - `labels`: `[…]`, u32, each below `num_classes`
/// - result: `[…, num_classes]`, f32, on the labels' device
///
/// # Errors
/// Those of [`check::labels`].
///
/// # Examples
/// ```
/// use candle_core::{Device, Tensor};
/// use mnist_notebook_support::onehot;
///
/// let labels = Tensor::new(&[2u32, 0], &Device::Cpu)?;
/// assert_eq!(onehot(&labels, 3)?.to_vec2::<f32>()?, [[0., 0., 1.], [1., 0., 0.]]);
/// # Ok::<(), mnist_notebook_support::Error>(())
/// ```
///
/// # Source
/// `onehot` of the Flax tutorial. candle's version is `candle_nn::encoding::one_hot`.
pub fn onehot(labels: &Tensor, num_classes: usize) -> Result<Tensor> {
    check::labels(labels, num_classes)?;
    let classes = Tensor::arange(0, num_classes as u32, labels.device())?;
    Ok(labels.unsqueeze(D::Minus1)?.broadcast_eq(&classes)?.to_dtype(DType::F32)?)
}

/// The mean over the batch of the negative log-probability of the true class, in nats.
///
/// `-mean(sum(onehot(labels) * logits, axis=-1))`. As in the tutorial, `logits` are
/// log-probabilities: the network ends with a log-softmax.
///
/// # Shapes
/// - `logits`: `[B, K]`, any float type
/// - `labels`: `[B]`, u32, each below `K`
/// - result: scalar, of the type of `logits`
///
/// # Errors
/// Those of [`check::log_probs`] and [`onehot`].
///
/// # Examples
/// ```
/// use candle_core::{Device, Tensor};
/// use mnist_notebook_support::cross_entropy_loss;
///
/// // With ten equally likely classes the loss is ln 10 for any labels.
/// let logits = (Tensor::zeros((2, 10), candle_core::DType::F32, &Device::Cpu)? - 10f64.ln())?;
/// let labels = Tensor::new(&[3u32, 7], &Device::Cpu)?;
/// let loss = cross_entropy_loss(&logits, &labels)?.to_scalar::<f32>()?;
/// assert!((loss - 2.302585).abs() < 1e-6);
/// # Ok::<(), mnist_notebook_support::Error>(())
/// ```
///
/// # Source
/// `cross_entropy_loss` of the Flax tutorial. `candle_nn::loss::cross_entropy` takes
/// unnormalized scores instead and applies the log-softmax itself.
pub fn cross_entropy_loss(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let onehot = onehot(labels, check::log_probs(logits, labels)?)?;
    Ok((onehot.to_dtype(logits.dtype())? * logits)?.sum(D::Minus1)?.mean(0)?.neg()?)
}
