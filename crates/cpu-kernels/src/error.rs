//! What the kernels refuse.

use thiserror::Error;

/// Why a kernel or a compiled step refused its input. Nothing has been written in that case.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KernelError {
    /// A slice does not fit the shape it comes with.
    #[error("{what} has {found} values, but its shape has {expected}")]
    Length {
        /// Which slice.
        what: &'static str,
        /// Values the shape asks for.
        expected: usize,
        /// Values the slice has.
        found: usize,
    },
    /// A window or a convolution kernel without extent.
    #[error("{what} is {height}x{width}; both must be at least 1")]
    EmptyWindow {
        /// Which window.
        what: &'static str,
        /// Its height.
        height: usize,
        /// Its width.
        width: usize,
    },
    /// A chain of layers that the compiled step does not cover.
    #[error("layer {layer} cannot be compiled: {reason}")]
    Chain {
        /// Position in the chain, from 0.
        layer: usize,
        /// What was met and what was expected.
        reason: String,
    },
    /// More images at once than planned, or none.
    #[error("{found} images given to a step planned for 1 to {planned}")]
    BatchSize {
        /// The batch size of the plan.
        planned: usize,
        /// Images given.
        found: usize,
    },
    /// A label that names no class.
    #[error("label {label} of image {image} is not below the number of classes, {classes}")]
    Label {
        /// The label.
        label: u32,
        /// Position in the batch.
        image: usize,
        /// Number of classes.
        classes: usize,
    },
}

/// A result of this module.
pub type Result<T> = std::result::Result<T, KernelError>;

pub(crate) fn check_len(what: &'static str, expected: usize, found: usize) -> Result<()> {
    if expected == found { Ok(()) } else { Err(KernelError::Length { what, expected, found }) }
}

/// Values of an array of these extents; at most `usize::MAX`, which no slice has, so that the
/// absurd is refused for its length.
#[inline(always)]
pub(crate) fn product<const N: usize>(extents: [usize; N]) -> usize {
    extents.into_iter().fold(1, usize::saturating_mul)
}

pub(crate) fn check_window(what: &'static str, (height, width): (usize, usize)) -> Result<()> {
    if height > 0 && width > 0 {
        Ok(())
    } else {
        Err(KernelError::EmptyWindow { what, height, width })
    }
}
