//! The loss: one-hot labels and cross-entropy.

use candle_core::{D, DType, Tensor};

use crate::{Error, Result, memory};

/// Labels as rows of zeros with a single one.
///
/// # Shapes
/// - `labels`: `[…]`, u32, each below `num_classes`
/// - result: `[…, num_classes]`, f32, on the labels' device
///
/// # Errors
/// [`Error::DType`] unless the labels are u32, [`Error::Label`] for a label that is no class
/// (checked on the CPU alone: elsewhere it would make the device wait),
/// [`Error::Hyperparameter`] for more than 2³² − 1 classes.
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
/// `onehot` of the Flax tutorial; candle's own is `candle_nn::encoding::one_hot`.
pub fn onehot(labels: &Tensor, num_classes: usize) -> Result<Tensor> {
    check_labels(labels, num_classes)?;
    let num_classes = u32::try_from(num_classes).map_err(|_| Error::Hyperparameter {
        name: "num_classes",
        value: num_classes as f64,
        allowed: "classes are numbered with 32 bits",
    })?;
    let classes = Tensor::arange(0, num_classes, labels.device())?;
    Ok(labels.unsqueeze(D::Minus1)?.broadcast_eq(&classes)?.to_dtype(DType::F32)?)
}

/// The mean over the batch of the negative log-probability of the true class, in nats.
///
/// `-mean(sum(onehot(labels) * logits, axis=-1))`, where `logits` are log-probabilities: the
/// network ends with a log-softmax.
///
/// # Shapes
/// - `logits`: `[B, K]`, any float type
/// - `labels`: `[B]`, u32, each below `K`
/// - result: scalar of the type of `logits`
///
/// # Errors
/// [`Error::Shape`] for other shapes, [`Error::DType`] for other types, [`Error::Label`] for a label that is no class,
/// [`Error::EmptyDataset`] for a batch of nothing.
///
/// # Examples
/// ```
/// use candle_core::{Device, Tensor};
/// use mnist_notebook_support::cross_entropy_loss;
///
/// // Ten equally likely classes: whatever the labels, the loss is ln 10.
/// let logits = (Tensor::zeros((2, 10), candle_core::DType::F32, &Device::Cpu)? - 10f64.ln())?;
/// let labels = Tensor::new(&[3u32, 7], &Device::Cpu)?;
/// let loss = cross_entropy_loss(&logits, &labels)?.to_scalar::<f32>()?;
/// assert!((loss - 2.302585).abs() < 1e-6);
/// # Ok::<(), mnist_notebook_support::Error>(())
/// ```
///
/// # Source
/// `cross_entropy_loss` of the Flax tutorial. `candle_nn::loss::cross_entropy` takes
/// unnormalised scores instead and applies the log-softmax itself.
pub fn cross_entropy_loss(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let num_classes = check_logits(logits, labels)?;
    let onehot = onehot(labels, num_classes)?.to_dtype(logits.dtype())?;
    Ok((onehot * logits)?.sum(D::Minus1)?.mean(0)?.neg()?)
}

/// Checks that there is one row of logits per label, and that each label is a class; returns the
/// number of classes.
pub(crate) fn check_logits(logits: &Tensor, labels: &Tensor) -> Result<usize> {
    match (logits.dims(), labels.dims()) {
        ([rows, num_classes], [examples]) if rows == examples => {
            if *rows == 0 {
                return Err(Error::EmptyDataset("average over"));
            }
            if !logits.dtype().is_float() {
                return Err(Error::DType {
                    what: "logits",
                    expected: "f32",
                    found: logits.dtype().as_str().into(),
                });
            }
            check_label_type(labels)?;
            // Whatever the device: a label that is no class would else count as a loss of 0.
            check_label_range(labels, *num_classes)?;
            Ok(*num_classes)
        }
        (_, [examples]) => Err(Error::Shape {
            what: "logits",
            expected: format!("[{examples}, number of classes]"),
            found: logits.dims().to_vec(),
        }),
        (_, found) => Err(Error::Shape {
            what: "labels",
            expected: "[batch size]".into(),
            found: found.to_vec(),
        }),
    }
}

/// Checks type, room for one-hot labels and, where it costs nothing to look, range of the labels.
fn check_labels(labels: &Tensor, num_classes: usize) -> Result<()> {
    check_label_type(labels)?;
    let shape = [labels.dims(), &[num_classes]].concat();
    memory::check("a one-hot array", &shape, DType::F32, labels.device())?;
    if labels.device().is_cpu() { check_label_range(labels, num_classes) } else { Ok(()) }
}

fn check_label_type(labels: &Tensor) -> Result<()> {
    if labels.dtype() == DType::U32 {
        return Ok(());
    }
    let found = labels.dtype().as_str().into();
    Err(Error::DType { what: "labels", expected: "u32", found })
}

/// Checks that every label is below the number of classes, wherever the labels are.
pub(crate) fn check_label_range(labels: &Tensor, num_classes: usize) -> Result<()> {
    let labels = labels.flatten_all()?.to_vec1::<u32>()?;
    match labels.iter().position(|&label| label as usize >= num_classes) {
        Some(index) => Err(Error::Label { label: labels[index], index, num_classes }),
        None => Ok(()),
    }
}
