//! The shape of a convolution, and what lengths and offsets follow from it.

use crate::error::product;

/// The shape of a convolution and the kernels for it.
///
/// # Shapes
///
/// * input `[batch, height, width, in_channels]`
/// * kernel `[kernel.0, kernel.1, in_channels, out_channels]`, bias `[out_channels]`
/// * output `[batch, height, width, out_channels]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// Number of images.
    pub batch: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// Values per pixel of the input.
    pub in_channels: usize,
    /// Values per pixel of the output.
    pub out_channels: usize,
    /// Height and width of the kernel, at least 1 each.
    pub kernel: (usize, usize),
}

impl Conv2d {
    /// Values of the input.
    pub fn input_len(&self) -> usize {
        product([self.batch, self.image_len()])
    }

    /// Values of the kernel.
    pub fn kernel_len(&self) -> usize {
        product([self.kernel.0, self.kernel.1, self.in_channels, self.out_channels])
    }

    /// Values of the output.
    pub fn output_len(&self) -> usize {
        product([self.batch, self.height, self.width, self.out_channels])
    }

    /// The convolution that carries gradients back: channels exchanged, kernel flipped.
    pub(crate) fn transposed(&self) -> Self {
        Self { in_channels: self.out_channels, out_channels: self.in_channels, ..*self }
    }

    /// Rows above and columns to the left of the image that SAME padding adds.
    pub(crate) fn low_padding(&self) -> (usize, usize) {
        ((self.kernel.0 - 1) / 2, (self.kernel.1 - 1) / 2)
    }

    /// Rows below and columns to the right of the image that SAME padding adds.
    pub(crate) fn high_padding(&self) -> (usize, usize) {
        (self.kernel.0 / 2, self.kernel.1 / 2)
    }

    /// Values of one image.
    pub(crate) fn image_len(&self) -> usize {
        product([self.height, self.width, self.in_channels])
    }

    /// Values of one image of the output.
    pub(crate) fn d_image_len(&self) -> usize {
        self.height * self.width * self.out_channels
    }

    /// Values of one row of a padded image.
    pub(crate) fn padded_row(&self) -> usize {
        product([self.width.saturating_add(self.kernel.1 - 1), self.in_channels])
    }

    /// Values of one padded image.
    pub(crate) fn padded_len(&self) -> usize {
        product([self.height.saturating_add(self.kernel.0 - 1), self.padded_row()])
    }

    /// Where the image starts in its padded form, `low` pixels from the top left corner.
    pub(crate) fn origin(&self, low: (usize, usize)) -> usize {
        low.0 * self.padded_row() + low.1 * self.in_channels
    }
}
