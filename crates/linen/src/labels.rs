//! Labels and logits that fit each other.

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};
use crate::memory;

/// Checks that there is one row of logits per label, and that each label is a class; returns the
/// number of classes.
///
/// # Shapes
/// - `logits`: `[B, K]`, any float type
/// - `labels`: `[B]`, u32, each below `K`
///
/// # Errors
/// [`Error::Shape`], [`Error::DType`] and [`Error::Label`] for anything else,
/// [`Error::EmptyDataset`] for a batch of nothing.
pub fn check_logits(logits: &Tensor, labels: &Tensor) -> Result<usize> {
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
            // Checked on every device: an out-of-range label would contribute 0 to the loss.
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

/// Checks that a one-hot array can be made of labels: their type, its size and, where it costs
/// nothing to look, their range.
///
/// # Errors
/// [`Error::DType`] unless the labels are u32, [`Error::Label`] for an out-of-range label (checked
/// on the CPU alone: elsewhere it would make the device wait), [`Error::Hyperparameter`] for more
/// than 2³² − 1 classes, [`Error::Memory`] if the array does not fit the memory.
pub fn check_labels(labels: &Tensor, num_classes: usize) -> Result<()> {
    check_label_type(labels)?;
    if u32::try_from(num_classes).is_err() {
        return Err(Error::Hyperparameter {
            name: "num_classes",
            value: num_classes as f64,
            allowed: "classes are numbered with 32 bits",
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
    let found = labels.dtype().as_str().into();
    Err(Error::DType { what: "labels", expected: "u32", found })
}

/// Checks that every label is below the number of classes, wherever the labels are.
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
