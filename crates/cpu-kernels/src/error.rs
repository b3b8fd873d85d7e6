//! Errors of the kernels and of compiled steps.

use thiserror::Error;

/// Invalid input of a kernel or a compiled step. Nothing has been written in that case.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KernelError {
    /// A slice does not have the length that its shape requires.
    #[error("{what}: expected length {expected}, found {found}")]
    Length {
        /// The slice.
        what: &'static str,
        /// The required length.
        expected: usize,
        /// The actual length.
        found: usize,
    },
    /// The height or width of a pooling window or convolution kernel is 0.
    #[error("{what} is {height}x{width}; both must be at least 1")]
    EmptyWindow {
        /// The window or kernel.
        what: &'static str,
        /// Its height.
        height: usize,
        /// Its width.
        width: usize,
    },
    /// Batch statistics of an empty batch.
    #[error("batch norm statistics need at least one row")]
    NoRows,
    /// A chain of layers that cannot be compiled.
    #[error("layer {layer} cannot be compiled: {reason}")]
    Chain {
        /// Index in the chain, from 0.
        layer: usize,
        /// The reason.
        reason: String,
    },
    /// A backward pass without a forward pass in training before it.
    #[error("the latest forward pass has kept nothing for a backward pass")]
    NothingKept,
    /// The number of images is 0 or exceeds the planned batch size.
    #[error("expected 1 to {planned} images, found {found}")]
    BatchSize {
        /// The batch size of the plan.
        planned: usize,
        /// The number of images.
        found: usize,
    },
    /// A label is out of range.
    #[error("label {label} of image {image} is not below the number of classes, {classes}")]
    Label {
        /// The label.
        label: u32,
        /// Index of its image in the batch.
        image: usize,
        /// The number of classes.
        classes: usize,
    },
}

/// The result of the fallible functions of this crate.
pub type Result<T> = std::result::Result<T, KernelError>;

pub(crate) fn check_len(what: &'static str, expected: usize, found: usize) -> Result<()> {
    if expected == found { Ok(()) } else { Err(KernelError::Length { what, expected, found }) }
}

pub(crate) fn check_window(what: &'static str, (height, width): (usize, usize)) -> Result<()> {
    if height > 0 && width > 0 {
        Ok(())
    } else {
        Err(KernelError::EmptyWindow { what, height, width })
    }
}
