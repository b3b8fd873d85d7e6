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

/// How a convolution treats the border of an image.
///
/// ```
/// use cpu_kernels::Padding;
///
/// // A kernel of 3 moves over 8 pixels in steps of 2.
/// assert_eq!(Padding::Same.output_size(8, 3, 2), 4);
/// assert_eq!(Padding::Same.zeros(8, 3, 2), (0, 1));
/// assert_eq!(Padding::Valid.output_size(8, 3, 2), 3);
/// ```
///
/// # Source
/// The strings `"SAME"` and `"VALID"` of XLA and of `flax.linen.Conv`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// Zeros around the image, so that there is an output for every `stride` pixels, rounded up.
    Same,
    /// No padding: the kernel stays within the image.
    Valid,
}

impl Padding {
    /// The number of outputs along a dimension of `size` pixels; 0 if the kernel is larger than an
    /// image without padding. A stride of 0 counts as 1.
    pub fn output_size(self, size: usize, kernel: usize, stride: usize) -> usize {
        let stride = stride.max(1);
        match self {
            Padding::Same => size.div_ceil(stride),
            Padding::Valid => {
                size.checked_sub(kernel).map_or(0, |rest| (rest / stride).saturating_add(1))
            }
        }
    }

    /// The number of zeros before and after the pixels of a dimension. Of an odd number, the larger
    /// half comes after them. A stride of 0 counts as 1.
    pub fn zeros(self, size: usize, kernel: usize, stride: usize) -> (usize, usize) {
        let total = match self {
            Padding::Same => {
                let outputs = self.output_size(size, kernel, stride);
                let last_start = outputs.saturating_sub(1) * stride.max(1);
                last_start.saturating_add(kernel).saturating_sub(size)
            }
            Padding::Valid => 0,
        };
        (total / 2, total.div_ceil(2))
    }
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
/// which computes tiles of 2×2 outputs, or of 4×4 for the inference of a
/// [`Program`](crate::Program): a NaN or an infinity reaches all outputs of its tile, and values
/// far smaller than the largest one beside them lose digits.
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
