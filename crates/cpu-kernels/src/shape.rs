//! The shape of a convolution, with the lengths and offsets derived from it.

/// The product of the sizes, or `usize::MAX` on overflow. So an array that is too large to exist
/// fails the checks of its length, and no small length passes for it.
///
/// ```
/// assert_eq!(cpu_kernels::saturating_product(&[2, 28, 28, 1]), 1568);
/// assert_eq!(cpu_kernels::saturating_product(&[usize::MAX, 2]), usize::MAX);
/// ```
#[inline(always)]
pub fn saturating_product(sizes: &[usize]) -> usize {
    sizes.iter().fold(1, |product, &size| product.saturating_mul(size))
}

/// A 2D convolution of a given shape: SAME padding, stride 1.
///
/// # Shapes
/// * input `[batch, height, width, in_channels]`
/// * kernel `[kernel.0, kernel.1, in_channels, out_channels]`, bias `[out_channels]`
/// * output `[batch, height, width, out_channels]`
///
/// # Precision
/// Kernels of 3×3 and 5×5 with at least eight input and output channels use Winograd's algorithm,
/// which computes tiles of 2×2 outputs: a NaN or an infinity reaches all outputs of its tile, and
/// values far smaller than the largest one beside them lose digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2d {
    /// Number of images.
    pub batch: usize,
    /// Height of the images, in pixels.
    pub height: usize,
    /// Width of the images, in pixels.
    pub width: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Height and width of the kernel, at least 1 each.
    pub kernel: (usize, usize),
}

impl Conv2d {
    /// Number of values in the input.
    pub fn input_len(&self) -> usize {
        saturating_product(&[self.batch, self.image_len()])
    }

    /// Number of values in the kernel.
    pub fn kernel_len(&self) -> usize {
        saturating_product(&[self.kernel.0, self.kernel.1, self.in_channels, self.out_channels])
    }

    /// Number of values in the output.
    pub fn output_len(&self) -> usize {
        saturating_product(&[self.batch, self.height, self.width, self.out_channels])
    }

    /// The convolution of the backward pass, from output gradient to input gradient. It swaps the
    /// channels and uses the rotated kernel.
    pub(crate) fn transposed_conv(&self) -> Self {
        Self { in_channels: self.out_channels, out_channels: self.in_channels, ..*self }
    }

    /// SAME padding: rows above and columns to the left of the image.
    pub(crate) fn low_padding(&self) -> (usize, usize) {
        ((self.kernel.0 - 1) / 2, (self.kernel.1 - 1) / 2)
    }

    /// SAME padding: rows below and columns to the right of the image.
    pub(crate) fn high_padding(&self) -> (usize, usize) {
        (self.kernel.0 / 2, self.kernel.1 / 2)
    }

    /// Number of values in one input image.
    pub(crate) fn image_len(&self) -> usize {
        saturating_product(&[self.height, self.width, self.in_channels])
    }

    /// Number of values in one output image.
    pub(crate) fn output_image_len(&self) -> usize {
        self.height * self.width * self.out_channels
    }

    /// Number of values in one row of a padded image.
    pub(crate) fn padded_row(&self) -> usize {
        saturating_product(&[self.width.saturating_add(self.kernel.1 - 1), self.in_channels])
    }

    /// Number of values in one padded image.
    pub(crate) fn padded_len(&self) -> usize {
        saturating_product(&[self.height.saturating_add(self.kernel.0 - 1), self.padded_row()])
    }

    /// Offset of the image within its padded form, with `low` rows above and columns to the left.
    pub(crate) fn origin(&self, low: (usize, usize)) -> usize {
        low.0 * self.padded_row() + low.1 * self.in_channels
    }
}
