//! Convolutions. f32 tensors on the CPU use [`cpu_kernels`], all others candle's operations.

use candle_core::Tensor;
pub use cpu_kernels::Padding;

use crate::error::{Error, Result};
use crate::initializers::{lecun_normal, zeros};
use crate::input::Input;
use crate::scope::Scope;
use crate::trace::{Layer, trace_op};
use crate::{check, custom_ops, memory};

/// A 2-D convolution with bias, for [`Scope::conv_with`].
///
/// # Examples
/// ```
/// use linen::{Conv, Padding};
///
/// // Every other pixel in both directions.
/// let halving = Conv { strides: (2, 2), ..Conv::new(64, (3, 3)) };
/// assert_eq!(halving.padding, Padding::Same);
/// ```
///
/// # Source
/// `flax.linen.Conv(features, kernel_size, strides, padding)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv {
    /// The number of output channels, at least 1.
    pub features: usize,
    /// Height and width of the kernel, at least 1 each.
    pub kernel_size: (usize, usize),
    /// The steps of the kernel down and to the right, at least 1 each.
    pub strides: (usize, usize),
    /// Zeros around the image, or none.
    pub padding: Padding,
}

impl Conv {
    /// A convolution with stride 1 and `SAME` padding, Flax's defaults.
    pub fn new(features: usize, kernel_size: (usize, usize)) -> Self {
        Conv { features, kernel_size, strides: (1, 1), padding: Padding::Same }
    }

    /// Whether stride and padding are the defaults, for which there are faster kernels.
    fn is_plain(&self) -> bool {
        *self == Conv::new(self.features, self.kernel_size)
    }

    fn check(&self, x: &Tensor) -> Result<()> {
        check::positive("features", self.features)?;
        check::positive("kernel height", self.kernel_size.0)?;
        check::positive("kernel width", self.kernel_size.1)?;
        for (name, stride) in
            [("stride down", self.strides.0), ("stride to the right", self.strides.1)]
        {
            check::positive(name, stride)?;
            if i32::try_from(stride).is_err() {
                let allowed = "it must be below 2³¹";
                return Err(Error::Hyperparameter { name, value: stride as f64, allowed });
            }
        }
        let &[_, height, width, _] = x.dims() else {
            return Err(Error::shape("conv input", "[B, height, width, channels]", x));
        };
        let (least_height, least_width) = self.kernel_size;
        if self.padding == Padding::Valid && (height < least_height || width < least_width) {
            let expected =
                format!("[B, at least {least_height}, at least {least_width}, C] without padding");
            return Err(Error::shape("conv input", expected, x));
        }
        Ok(())
    }
}

impl Scope<'_> {
    /// A 2-D convolution with bias, stride 1 and `SAME` zero padding.
    ///
    /// On the CPU, f32 kernels of 3 × 3 and 5 × 5 with enough channels compute tiles of 2 × 2
    /// outputs ([`Conv2d`](cpu_kernels::Conv2d)): a NaN or an infinity reaches all of its tile.
    ///
    /// # Shapes
    /// - `x`: `[B, H, W, C]`
    /// - kernel: `[kernel_size.0, kernel_size.1, C, features]`, bias: `[features]`
    /// - result: `[B, H, W, features]`
    ///
    /// # Errors
    /// [`Error::Shape`] unless `x` has four dimensions; [`Error::LayerDType`] unless its element
    /// type is that of the parameters; [`Error::Hyperparameter`] for 0 features or an empty kernel.
    ///
    /// # Source
    /// `flax.linen.Conv(features, kernel_size)(x)`: a cross-correlation, as everywhere in deep
    /// learning.
    pub fn conv(
        &mut self,
        features: usize,
        kernel_size: (usize, usize),
        x: impl Input,
    ) -> Result<Tensor> {
        self.conv_with(&Conv::new(features, kernel_size), x)
    }

    /// A 2-D convolution with bias, any strides and padding.
    ///
    /// # Shapes
    /// - `x`: `[B, H, W, C]`
    /// - kernel: `[kernel_size.0, kernel_size.1, C, features]`, bias: `[features]`
    /// - result: `[B, rows, columns, features]`. With `SAME` padding, `rows` is `H / strides.0`,
    ///   rounded up; with `VALID`, `(H - kernel_size.0) / strides.0 + 1`, rounded down.
    ///   Columns likewise.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `x` has four dimensions and, with `VALID` padding, the kernel fits
    /// into it; [`Error::LayerDType`] unless its element type is that of the parameters;
    /// [`Error::Hyperparameter`] for 0 features, an empty kernel or a stride of 0.
    ///
    /// # Examples
    /// ```
    /// # use candle_core::{DType, Device, Tensor};
    /// use linen::{Conv, Key, Module, Padding, Result, Scope};
    ///
    /// struct Patches;
    ///
    /// impl Module for Patches {
    ///     fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
    ///         let strides = (4, 4);
    ///         let conv = Conv { strides, padding: Padding::Valid, ..Conv::new(16, (4, 4)) };
    ///         nn.conv_with(&conv, x)
    ///     }
    /// }
    ///
    /// let images = Tensor::ones((2, 28, 28, 1), DType::F32, &Device::Cpu)?;
    /// let params = Patches.init(Key::new(0), &images)?;
    /// assert_eq!(Patches.apply(&params, &images)?.dims(), [2, 7, 7, 16]);
    /// # Ok::<(), linen::Error>(())
    /// ```
    ///
    /// # Source
    /// `flax.linen.Conv(features, kernel_size, strides=strides, padding="SAME")(x)`, or `"VALID"`.
    pub fn conv_with(&mut self, conv: &Conv, x: impl Input) -> Result<Tensor> {
        let x = &x.tensor()?;
        conv.check(x)?;
        let mut nn = self.sub_scope("Conv");
        let (height, width) = conv.kernel_size;
        let shape = (height, width, x.dims()[3], conv.features);
        let kernel = nn.param("kernel", lecun_normal, shape, x.device())?;
        let bias = nn.param("bias", zeros, conv.features, x.device())?;
        nn.check_dtype(x, &kernel)?;
        let y = if !custom_ops::are_for(x) || !custom_ops::are_for(&kernel) {
            of_candle(x, &kernel, &bias, conv)?
        } else if conv.is_plain() {
            custom_ops::conv(x, &kernel, &bias)?
        } else {
            custom_ops::general_conv(x, &kernel, &bias, conv.strides, conv.padding)?
        };
        trace_op(&[x], &y, || {
            let Conv { features, kernel_size, strides, padding } = *conv;
            let params = nn.path();
            if conv.is_plain() {
                Layer::Conv { kernel_size, features, params }
            } else {
                Layer::GeneralConv { kernel_size, strides, padding, features, params }
            }
        });
        Ok(y)
    }
}

/// The convolution with candle's operations.
fn of_candle(x: &Tensor, kernel: &Tensor, bias: &Tensor, conv: &Conv) -> Result<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    let Conv { features, kernel_size: (kernel_height, kernel_width), strides, padding } = *conv;
    let rows = padding.output_size(height, kernel_height, strides.0);
    let columns = padding.output_size(width, kernel_width, strides.1);
    if [batch, rows, columns].contains(&0) {
        return Ok(Tensor::zeros((batch, rows, columns, features), x.dtype(), x.device())?);
    }
    // candle has the same stride in both directions.
    let stride = if strides.0 == strides.1 { strides.0 } else { 1 };
    // candle's im2col copies every window of the images.
    let starts = |outputs: usize, step: usize| (outputs - 1) * step / stride + 1;
    let (down, right) = (starts(rows, strides.0), starts(columns, strides.1));
    let windows = [batch, down, right, channels, kernel_height, kernel_width];
    memory::check("a convolution", &windows, x.dtype(), x.device())?;

    // Pads, and crops what no window reaches: candle's derivative needs windows up to the end.
    let fit = |x: Tensor, dim: usize, kernel: usize, step: usize, outputs: usize| {
        let (before, after) = padding.zeros(x.dim(dim)?, kernel, step);
        let used = (outputs - 1) * step + kernel;
        x.pad_with_zeros(dim, before, after)?.narrow(dim, 0, used)
    };
    let x = fit(x.permute((0, 3, 1, 2))?, 2, kernel_height, strides.0, rows)?;
    let x = fit(x, 3, kernel_width, strides.1, columns)?.contiguous()?;
    let kernel = kernel.permute((3, 2, 0, 1))?.contiguous()?;
    let y = x.conv2d(&kernel, 0, stride, 1, 1)?.permute((0, 2, 3, 1))?.contiguous()?;
    let y = every(y, 1, strides.0 / stride)?;
    let y = every(y, 2, strides.1 / stride)?;
    Ok(y.broadcast_add(bias)?)
}

/// Every `step`-th entry of a dimension, from the first.
fn every(x: Tensor, dim: usize, step: usize) -> Result<Tensor> {
    if step == 1 {
        return Ok(x);
    }
    let len = u32::try_from(x.dim(dim)?).unwrap_or(u32::MAX);
    let step = u32::try_from(step).unwrap_or(u32::MAX);
    Ok(x.index_select(&Tensor::arange_step(0, len, step, x.device())?, dim)?)
}
