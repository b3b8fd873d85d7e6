//! Checks of labels and logits.

use candle_core::{DType, Tensor};

use crate::error::{Error, Result, check_float};
use crate::memory;

/// Checks that there is one row of logits per label and that every label is in range; returns the
/// number of classes.
///
/// # Shapes
/// - `logits`: `[B, K]`, any float type
/// - `labels`: `[B]`, u32, each below `K`
///
/// # Errors
/// [`Error::Shape`], [`Error::DType`] and [`Error::Label`] for anything else,
/// [`Error::EmptyDataset`] for an empty batch.
pub fn check_logits(logits: &Tensor, labels: &Tensor) -> Result<usize> {
    match (logits.dims(), labels.dims()) {
        ([rows, num_classes], [examples]) if rows == examples => {
            if *rows == 0 {
                return Err(Error::EmptyDataset("average over"));
            }
            check_float("logits", logits)?;
            check_label_type(labels)?;
            // Checked on every device: an out-of-range label would contribute 0 to the loss.
            check_label_range(labels, *num_classes)?;
            Ok(*num_classes)
        }
        (_, [examples]) => {
            Err(Error::shape("logits", format!("[{examples}, number of classes]"), logits))
        }
        _ => Err(Error::shape("labels", "[batch size]", labels)),
    }
}

/// Checks that labels can be one-hot encoded: their type, the size of the result and, on the CPU,
/// their range.
///
/// # Errors
/// [`Error::DType`] unless the labels are u32; [`Error::Label`] for an out-of-range label (checked
/// only on the CPU: reading labels from a GPU would wait for it); [`Error::Hyperparameter`] for
/// more than 2³² − 1 classes; [`Error::Memory`] if the result does not fit in memory.
pub fn check_labels(labels: &Tensor, num_classes: usize) -> Result<()> {
    check_label_type(labels)?;
    if u32::try_from(num_classes).is_err() {
        return Err(Error::Hyperparameter {
            name: "num_classes",
            value: num_classes as f64,
            allowed: "it must fit in 32 bits",
        });
    }
    let shape = [labels.dims(), &[num_classes]].concat();
    memory::check("a one-hot array", &shape, DType::F32, labels.device())?;
    if labels.device().is_cpu() { check_label_range(labels, num_classes) } else { Ok(()) }
}

fn check_label_type(labels: &Tensor) -> Result<()> {
    if labels.dtype() == DType::U32 {
        return Ok(());
    }
    Err(Error::dtype("labels", "u32", labels))
}

/// Checks on any device that every label is below the number of classes.
///
/// # Errors
/// [`Error::Label`] for the first that is not.
pub fn check_label_range(labels: &Tensor, num_classes: usize) -> Result<()> {
    let labels = labels.flatten_all()?.to_vec1::<u32>()?;
    match labels.iter().position(|&label| label as usize >= num_classes) {
        Some(index) => Err(Error::Label { label: labels[index], index, num_classes }),
        None => Ok(()),
    }
}
