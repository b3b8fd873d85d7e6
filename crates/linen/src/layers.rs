//! The layers: on the CPU in f32 by the kernels of [`cpu_kernels`], elsewhere by candle's
//! own operations.

use candle_core::{D, DType, Tensor};

use cpu_kernels::Statistics;

use crate::error::{Error, Result};
use crate::random::{Key, bernoulli};
use crate::trace::{Layer, trace_op};
use crate::{memory, ops};

/// What batch norm adds to the variance, as in Flax.
const EPSILON: f64 = 1e-5;

/// Whether the kernels of this crate serve the tensor.
fn has_kernels(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

pub(crate) fn conv(x: &Tensor, kernel: &Tensor, bias: &Tensor, path: &str) -> Result<Tensor> {
    let y = if has_kernels(x) && has_kernels(kernel) {
        ops::conv(x, kernel, bias)?
    } else {
        let (height, width, _, _) = kernel.dims4()?;
        // candle lays every window of the images side by side.
        let windows = [x.dims(), &[height, width]].concat();
        memory::check("a convolution", &windows, x.dtype(), x.device())?;
        let x = to_nchw(x)?.pad_with_zeros(2, (height - 1) / 2, height / 2)?.pad_with_zeros(
            3,
            (width - 1) / 2,
            width / 2,
        )?;
        let kernel = kernel.permute((3, 2, 0, 1))?.contiguous()?;
        to_nhwc(&x.conv2d(&kernel, 0, 1, 1, 1)?)?.broadcast_add(bias)?
    };
    trace_op(x, &y, || {
        let dims = kernel.dims();
        Layer::Conv {
            path: path.to_owned(),
            kernel_size: (dims[0], dims[1]),
            channels: dims[2],
            features: dims[3],
        }
    });
    Ok(y)
}

pub(crate) fn dense(x: &Tensor, kernel: &Tensor, bias: &Tensor, path: &str) -> Result<Tensor> {
    let y = if has_kernels(x) && has_kernels(kernel) {
        ops::dense(x, kernel, bias)?
    } else {
        x.matmul(kernel)?.broadcast_add(bias)?
    };
    trace_op(x, &y, || {
        let dims = kernel.dims();
        Layer::Dense { path: path.to_owned(), inputs: dims[0], features: dims[1] }
    });
    Ok(y)
}

/// Batch norm with the batch's own statistics: the result, mean and variance.
pub(crate) fn batch_norm_train(
    x: &Tensor,
    scale: &Tensor,
    bias: &Tensor,
    path: &str,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (y, mean, var) = if has_kernels(x) && has_kernels(scale) {
        let statistics = ops::batch_statistics(x)?;
        let mean = Tensor::new(statistics.mean.as_slice(), x.device())?;
        let var = Tensor::new(statistics.var.as_slice(), x.device())?;
        (ops::batch_norm(x, scale, bias, statistics)?, mean, var)
    } else {
        let rows = x.flatten_to(x.rank() - 2)?;
        let mean = rows.mean(0)?;
        let var = (rows.sqr()?.mean(0)? - mean.sqr()?)?.maximum(0.0)?;
        (normalize(x, scale, bias, &mean, &var)?, mean, var)
    };
    trace_batch_norm(x, &y, path);
    Ok((y, mean.detach(), var.detach()))
}

/// Batch norm with given statistics.
pub(crate) fn batch_norm_eval(
    x: &Tensor,
    scale: &Tensor,
    bias: &Tensor,
    (mean, var): (&Tensor, &Tensor),
    path: &str,
) -> Result<Tensor> {
    let y = if has_kernels(x) && has_kernels(scale) {
        let (mean, var) = (mean.to_vec1()?, var.to_vec1()?);
        ops::batch_norm(x, scale, bias, Statistics { mean, var, is_training: false })?
    } else {
        normalize(x, scale, bias, mean, var)?
    };
    trace_batch_norm(x, &y, path);
    Ok(y)
}

fn normalize(
    x: &Tensor,
    scale: &Tensor,
    bias: &Tensor,
    mean: &Tensor,
    var: &Tensor,
) -> Result<Tensor> {
    let factor = ((var + EPSILON)?.sqrt()?.recip()? * scale)?;
    Ok(x.broadcast_sub(mean)?.broadcast_mul(&factor)?.broadcast_add(bias)?)
}

fn trace_batch_norm(x: &Tensor, y: &Tensor, path: &str) {
    let features = x.dims().last().copied().unwrap_or(0);
    trace_op(x, y, || Layer::BatchNorm { path: path.to_owned(), features });
}

/// Dropout; without a key, as in evaluation, the input itself.
pub(crate) fn dropout(x: &Tensor, key: Option<Key>, rate: f64, path: &str) -> Result<Tensor> {
    let keep_prob = 1.0 - rate;
    let y = match key {
        None => x.clone(),
        Some(key) if has_kernels(x) => ops::dropout(x, key, keep_prob as f32)?,
        Some(key) => {
            let is_kept = bernoulli(key, keep_prob as f32, x.shape(), x.device())?;
            is_kept.where_cond(&(x / keep_prob)?, &x.zeros_like()?)?
        }
    };
    trace_op(x, &y, || Layer::Dropout { path: path.to_owned() });
    Ok(y)
}

/// The rectifier: `max(x, 0)`, of any shape.
///
/// Its derivative at exactly 0 is 0, as in JAX. candle's own `Tensor::relu` has 1 there, and with
/// zero biases and black pixels many inputs are exactly 0 from the first step on.
///
/// # Errors
/// [`Error::Tensor`] if the device fails.
///
/// # Source
/// `flax.linen.relu`.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    let y =
        if has_kernels(x) { ops::relu(x)? } else { x.le(0.0)?.where_cond(&x.zeros_like()?, x)? };
    trace_op(x, &y, || Layer::Relu);
    Ok(y)
}

/// The mean over windows that lie side by side; what does not fill a window is dropped.
///
/// # Shapes
/// - `x`: `[B, H, W, C]`
/// - result: `[B, H / window.0, W / window.1, C]`
///
/// # Errors
/// [`Error::Shape`] unless `x` has four dimensions and the window fits into it.
///
/// # Source
/// `flax.linen.avg_pool(x, window_shape=window, strides=window)`.
pub fn avg_pool(x: &Tensor, window: (usize, usize)) -> Result<Tensor> {
    check_window("avg_pool input", x, window)?;
    let y = if has_kernels(x) {
        ops::avg_pool(x, window)?
    } else {
        windows(x, window)?.mean(D::Minus1)?
    };
    trace_op(x, &y, || Layer::AvgPool { window });
    Ok(y)
}

/// The largest value of windows that lie side by side; what does not fill a window is dropped.
///
/// # Shapes
/// - `x`: `[B, H, W, C]`
/// - result: `[B, H / window.0, W / window.1, C]`
///
/// # Errors
/// [`Error::Shape`] unless `x` has four dimensions and the window fits into it.
///
/// # Source
/// `flax.linen.max_pool(x, window_shape=window, strides=window)`.
pub fn max_pool(x: &Tensor, window: (usize, usize)) -> Result<Tensor> {
    check_window("max_pool input", x, window)?;
    let y = if has_kernels(x) {
        ops::max_pool(x, window)?
    } else {
        let windows = windows(x, window)?;
        let first_largest = windows.argmax_keepdim(D::Minus1)?;
        windows.gather(&first_largest, D::Minus1)?.squeeze(D::Minus1)?
    };
    trace_op(x, &y, || Layer::MaxPool { window });
    Ok(y)
}

/// Every example as one row: `[B, …]` to `[B, product of the rest]`.
///
/// Rows run over height, then width, then channels, as `x.reshape((x.shape[0], -1))` does in the
/// tutorial.
///
/// # Errors
/// [`Error::Shape`] for a scalar.
pub fn flatten(x: &Tensor) -> Result<Tensor> {
    if x.rank() < 2 {
        return Err(Error::Shape {
            what: "flatten input",
            expected: "[B, …]".into(),
            found: x.dims().to_vec(),
        });
    }
    let y = x.flatten_from(1)?;
    trace_op(x, &y, || Layer::Flatten);
    Ok(y)
}

/// Scores to log-probabilities over the last dimension: `x - ln(sum(exp(x)))`.
///
/// # Errors
/// [`Error::DType`] unless `x` is of a float type; [`Error::Tensor`] if the device fails.
///
/// # Source
/// `flax.linen.log_softmax`.
pub fn log_softmax(x: &Tensor) -> Result<Tensor> {
    if !x.dtype().is_float() {
        return Err(Error::DType {
            what: "log_softmax input",
            expected: "f32",
            found: x.dtype().as_str().into(),
        });
    }
    let y = if has_kernels(x) {
        ops::log_softmax(x)?
    } else {
        candle_nn::ops::log_softmax(x, D::Minus1)?
    };
    trace_op(x, &y, || Layer::LogSoftmax);
    Ok(y)
}

fn check_window(what: &'static str, x: &Tensor, window: (usize, usize)) -> Result<()> {
    match *x.dims() {
        [_, height, width, _]
            if (1..=height).contains(&window.0) && (1..=width).contains(&window.1) =>
        {
            Ok(())
        }
        _ => Err(Error::Shape {
            what,
            expected: format!("[B, at least {}, at least {}, C]", window.0.max(1), window.1.max(1)),
            found: x.dims().to_vec(),
        }),
    }
}

/// The values of each window side by side: `[B, H / window.0, W / window.1, C, values]`.
///
/// candle has pooling of its own, but its max pooling loses a part of the gradient (it divides by
/// the window's size), and both want windows that fill the picture.
fn windows(x: &Tensor, window: (usize, usize)) -> Result<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    let (rows, columns) = (height / window.0, width / window.1);
    let filled = x.narrow(1, 0, rows * window.0)?.narrow(2, 0, columns * window.1)?;
    let cut = filled.reshape(&[batch, rows, window.0, columns, window.1, channels])?;
    let windows = cut.permute([0, 1, 3, 5, 2, 4])?.contiguous()?;
    Ok(windows.reshape((batch, rows, columns, channels, window.0 * window.1))?)
}

fn to_nchw(x: &Tensor) -> Result<Tensor> {
    Ok(x.permute((0, 3, 1, 2))?.contiguous()?)
}

fn to_nhwc(x: &Tensor) -> Result<Tensor> {
    Ok(x.permute((0, 2, 3, 1))?.contiguous()?)
}
