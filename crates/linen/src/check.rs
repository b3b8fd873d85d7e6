//! Checks of arguments, for functions that build on this crate: each returns the error to pass on.

use std::cell::RefCell;
use std::collections::VecDeque;

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};
use crate::memory;

/// Checks that a tensor has a float type.
///
/// # Errors
/// [`Error::DType`] otherwise.
pub fn float(what: &'static str, tensor: &Tensor) -> Result<()> {
    if tensor.dtype().is_float() {
        Ok(())
    } else {
        Err(Error::dtype(what, "f32 or another float type", tensor))
    }
}

/// Checks that a count is at least 1.
///
/// # Errors
/// [`Error::Hyperparameter`] otherwise.
pub fn positive(name: &'static str, count: usize) -> Result<()> {
    if count > 0 {
        return Ok(());
    }
    Err(Error::Hyperparameter { name, value: 0.0, allowed: "it must be at least 1" })
}

/// Checks that a hyperparameter is finite.
///
/// # Errors
/// [`Error::Hyperparameter`] otherwise.
pub fn finite(name: &'static str, value: f64) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    Err(Error::Hyperparameter { name, value, allowed: "it must be finite" })
}

/// Checks that a hyperparameter is finite and not negative.
///
/// # Errors
/// [`Error::Hyperparameter`] otherwise.
pub fn not_negative(name: &'static str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(Error::Hyperparameter { name, value, allowed: "it must be a finite number, 0 or more" })
}

/// Checks that there is one row of logits per label; returns the number of classes.
///
/// # Shapes
/// - `logits`: `[B, K]`, any float type
/// - `labels`: `[B]`
///
/// # Errors
/// [`Error::Shape`] and [`Error::DType`] for anything else, [`Error::Empty`] for an empty batch.
pub fn logits(logits: &Tensor, labels: &Tensor) -> Result<usize> {
    let (&[examples], logits_shape) = (labels.dims(), logits.dims()) else {
        return Err(Error::shape("labels", "[batch size]", labels));
    };
    let &[rows, num_classes] = logits_shape else {
        return Err(wrong_logits(logits, examples));
    };
    if rows != examples {
        return Err(wrong_logits(logits, examples));
    }
    if rows == 0 {
        return Err(Error::Empty("average over"));
    }
    float("logits", logits)?;
    Ok(num_classes)
}

fn wrong_logits(logits: &Tensor, examples: usize) -> Error {
    Error::shape("logits", format!("[{examples}, number of classes]"), logits)
}

/// [`logits`], and that they are log-probabilities, the output of
/// [`log_softmax`](crate::log_softmax).
///
/// # Errors
/// Those of [`logits`]; [`Error::NotLogProbs`] if one is above 0. This is checked only on the CPU:
/// reading them from a GPU would wait for it.
pub fn log_probs(log_probs: &Tensor, labels: &Tensor) -> Result<usize> {
    // Rounding can lift the logarithm of a probability of 1 a little above 0.
    const ROUNDING: f32 = 1e-3;
    let num_classes = logits(log_probs, labels)?;
    if log_probs.device().is_cpu() && num_classes > 0 {
        let values = log_probs.detach().to_dtype(DType::F32)?.flatten_all()?;
        let largest = values.max(0)?.to_scalar()?;
        if largest > ROUNDING {
            return Err(Error::NotLogProbs { largest });
        }
    }
    Ok(num_classes)
}

/// Checks that labels can be one-hot encoded.
///
/// # Errors
/// [`Error::DType`] unless the labels are u32; [`Error::Label`] for the first out-of-range label;
/// [`Error::Hyperparameter`] for more than 2³² − 1 classes; [`Error::Memory`] if the result does
/// not fit in memory.
pub fn labels(labels: &Tensor, num_classes: usize) -> Result<()> {
    if labels.dtype() != DType::U32 {
        return Err(Error::dtype("labels", "u32", labels));
    }
    if u32::try_from(num_classes).is_err() {
        return Err(Error::Hyperparameter {
            name: "num_classes",
            value: num_classes as f64,
            allowed: "it must fit in 32 bits",
        });
    }
    let shape = [labels.dims(), &[num_classes]].concat();
    memory::check("a one-hot array", &shape, DType::F32, labels.device())?;
    // On every device: an out-of-range label would contribute 0 to the loss.
    label_range(labels, num_classes)
}

/// Checks that every label is below the number of classes.
///
/// Labels on a GPU are read only once, because reading them waits for the GPU, and not at all if
/// [`assume_labels_up_to`] has said how large they are.
///
/// # Errors
/// [`Error::Label`] for the first that is not.
pub fn label_range(labels: &Tensor, num_classes: usize) -> Result<()> {
    let known = LARGEST.with_borrow(|known| known.get(labels));
    if known.is_some_and(|largest| (largest as usize) < num_classes) {
        return Ok(());
    }
    let values = labels.flatten_all()?.to_vec1::<u32>()?;
    if let Some(index) = values.iter().position(|&label| label as usize >= num_classes) {
        return Err(Error::Label { label: values[index], index, num_classes });
    }
    assume_labels_up_to(values.into_iter().max().unwrap_or(0), labels);
    Ok(())
}

/// Says that none of these labels is above `largest`, so that [`label_range`] need not read them
/// from a GPU. Only the latest few arrays are remembered, and none on the CPU.
pub fn assume_labels_up_to(largest: u32, labels: &Tensor) {
    if !labels.device().is_cpu() {
        LARGEST.with_borrow_mut(|known| known.insert(labels, largest));
    }
}

thread_local! {
    static LARGEST: RefCell<LargestLabels> = const { RefCell::new(LargestLabels(VecDeque::new())) };
}

/// Arrays of labels, the latest last, with an upper bound of each. Kept alive, so that no other
/// array can have the same place in memory.
struct LargestLabels(VecDeque<(Tensor, u32)>);

impl LargestLabels {
    const REMEMBERED: usize = 8;

    fn get(&self, labels: &Tensor) -> Option<u32> {
        self.0.iter().rev().find(|(known, _)| is_same_memory(known, labels)).map(|known| known.1)
    }

    fn insert(&mut self, labels: &Tensor, largest: u32) {
        if self.0.len() == Self::REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((labels.clone(), largest));
    }
}

/// Whether two tensors are the same values in the same memory.
fn is_same_memory(a: &Tensor, b: &Tensor) -> bool {
    let ((a, a_layout), (b, b_layout)) = (a.storage_and_layout(), b.storage_and_layout());
    std::ptr::eq(&raw const *a, &raw const *b) && a_layout == b_layout
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_latest_labels_are_remembered_by_their_memory() {
        let labels = |values: &[u32]| Tensor::new(values, &Device::Cpu).unwrap();
        let mut known = LargestLabels(VecDeque::new());
        let first = labels(&[1, 2, 3, 4]);
        known.insert(&first, 4);
        assert_eq!(known.get(&first.clone()), Some(4));
        assert_eq!(known.get(&labels(&[1, 2, 3, 4])), None);
        assert_eq!(known.get(&first.narrow(0, 0, 2).unwrap()), None);
        known.insert(&first, 5);
        assert_eq!(known.get(&first), Some(5));
        for _ in 0..LargestLabels::REMEMBERED {
            known.insert(&labels(&[9]), 9);
        }
        assert_eq!(known.get(&first), None);
    }
}
