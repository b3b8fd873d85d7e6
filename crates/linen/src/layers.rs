//! The layers with one input; convolutions are in `conv`, those that join branches in `branches`.
//! f32 tensors on the CPU use [`cpu_kernels`], all others candle's operations.
//!
//! A new layer goes into one of these files: with parameters as a method of [`Scope`], without as a
//! function. Written with candle's operations it trains on every device. To make it faster, add a
//! kernel to `cpu-kernels` and an operation to `custom_ops`. Its variant of [`Layer`] lets a trace
//! see it; the compiler then lists the places that must know it.

use candle_core::{D, Tensor};

use cpu_kernels::{BatchNorm, Statistics};

use crate::error::{Error, Result};
use crate::initializers::{lecun_normal, ones, zeros};
use crate::input::Input;
use crate::random::{Key, bernoulli};
use crate::scope::{Mode, Scope, fold_in_path};
use crate::trace::{Layer, trace_op};
use crate::{check, custom_ops};

/// The share of the running statistics that each step keeps, Flax's default.
const MOMENTUM: f64 = 0.99;

/// What [batch norm](Scope::batch_norm) adds to the variance, Flax's default.
pub const BATCH_NORM_EPSILON: f64 = BatchNorm::EPSILON;

/// What [layer norm](Scope::layer_norm) adds to the variance, Flax's default.
pub const LAYER_NORM_EPSILON: f64 = cpu_kernels::LAYER_NORM_EPSILON;

impl Scope<'_> {
    /// A dense (fully connected) layer with bias: `x · kernel + bias`.
    ///
    /// # Shapes
    /// - `x`: `[B, C]`
    /// - kernel: `[C, features]`, bias: `[features]`
    /// - result: `[B, features]`
    ///
    /// # Errors
    /// [`Error::Shape`] unless `x` has two dimensions ([`flatten`](crate::flatten) images first);
    /// [`Error::LayerDType`] unless its element type is that of the parameters;
    /// [`Error::Hyperparameter`] for 0 features.
    ///
    /// # Source
    /// `flax.linen.Dense(features)(x)`.
    pub fn dense(&mut self, features: usize, x: impl Input) -> Result<Tensor> {
        let x = &x.tensor()?;
        check::positive("features", features)?;
        let &[_, inputs] = x.dims() else {
            let expected = "[B, features]; call `flatten` before the first dense layer";
            return Err(Error::shape("dense input", expected, x));
        };
        let mut nn = self.sub_scope("Dense");
        let kernel = nn.param("kernel", lecun_normal, (inputs, features), x.device())?;
        let bias = nn.param("bias", zeros, features, x.device())?;
        nn.check_dtype(x, &kernel)?;
        dense(x, &kernel, &bias, &nn.path())
    }

    /// Batch norm: normalizes each channel to mean 0 and variance 1, then applies a learned scale
    /// and bias: `(x - mean) / sqrt(var + 1e-5) · scale + bias`.
    ///
    /// In [training](crate::Module::apply_train) the mean and (biased) variance are those of the
    /// batch, over all dimensions but the last, and the running statistics become
    /// `0.99 · running + 0.01 · batch`. In [evaluation](crate::Module::apply_eval) the running
    /// statistics are used.
    ///
    /// # Shapes
    /// - `x`: `[B, …, C]`
    /// - scale, bias, running mean and var: `[C]`
    /// - result: as `x`
    ///
    /// # Errors
    /// [`Error::Shape`] unless `x` has at least two dimensions and is not empty;
    /// [`Error::LayerDType`] unless its element type is that of the parameters;
    /// [`Error::Mode`] under [`apply`](crate::Module::apply).
    ///
    /// # Source
    /// `flax.linen.BatchNorm(use_running_average=not train)(x)`; S. Ioffe, C. Szegedy, *Batch
    /// normalization*, 2015.
    pub fn batch_norm(&mut self, x: impl Input) -> Result<Tensor> {
        let x = &x.tensor()?;
        let &[_, .., features] = x.dims() else {
            return Err(wrong_batch_norm_input(x));
        };
        if x.elem_count() == 0 {
            return Err(wrong_batch_norm_input(x));
        }
        let mut nn = self.sub_scope("BatchNorm");
        let scale = nn.param("scale", ones, features, x.device())?;
        let bias = nn.param("bias", zeros, features, x.device())?;
        nn.check_dtype(x, &scale)?;
        let running_mean = nn.batch_stat("mean", zeros, features, x.device())?;
        let running_var = nn.batch_stat("var", ones, features, x.device())?;
        let path = nn.path();
        let Mode::Train { updates, .. } = &mut nn.mode else {
            let statistics = (&running_mean, &running_var);
            return batch_norm_eval(x, &scale, &bias, statistics, &path);
        };
        let (y, mean, var) = batch_norm_train(x, &scale, &bias, &path)?;
        for (name, running, batch) in [("mean", running_mean, mean), ("var", running_var, var)] {
            let value = updated_statistic(&running, &batch)?;
            updates.insert(format!("{path}/{name}"), &value)?;
        }
        Ok(y)
    }

    /// Layer norm: normalizes the last dimension of each example to mean 0 and variance 1, then
    /// applies a learned scale and bias: `(x - mean) / sqrt(var + 1e-6) · scale + bias`.
    ///
    /// It is the same in training and in evaluation.
    ///
    /// # Shapes
    /// - `x`: `[…, C]`
    /// - scale, bias: `[C]`
    /// - result: as `x`
    ///
    /// # Errors
    /// [`Error::Shape`] for a scalar or a `C` of 0; [`Error::DType`] unless `x` is of a float type;
    /// [`Error::LayerDType`] unless that is the type of the parameters.
    ///
    /// # Source
    /// `flax.linen.LayerNorm()(x)`; J. L. Ba et al., *Layer Normalization*, 2016. Flax computes the
    /// variance as `mean(x²) - mean²`, which differs by rounding.
    pub fn layer_norm(&mut self, x: impl Input) -> Result<Tensor> {
        let x = &x.tensor()?;
        let &[.., features @ (1..)] = x.dims() else {
            return Err(Error::shape("layer_norm input", "[…, features], at least 1 of them", x));
        };
        check::float("layer_norm input", x)?;
        let mut nn = self.sub_scope("LayerNorm");
        let scale = nn.param("scale", ones, features, x.device())?;
        let bias = nn.param("bias", zeros, features, x.device())?;
        nn.check_dtype(x, &scale)?;
        let contiguous = custom_ops::contiguous(x)?;
        let centered = contiguous.broadcast_sub(&contiguous.mean_keepdim(D::Minus1)?)?;
        let var = centered.sqr()?.mean_keepdim(D::Minus1)?;
        let factor = (var + LAYER_NORM_EPSILON)?.sqrt()?.recip()?;
        let normalized = centered.broadcast_mul(&factor)?;
        let y = normalized.broadcast_mul(&scale)?.broadcast_add(&bias)?;
        trace_op(&[x], &y, || Layer::LayerNorm { params: nn.path() });
        Ok(y)
    }

    /// Dropout: in [training](crate::Module::apply_train), sets each value to 0 with probability
    /// `rate` and divides the others by `1 - rate`, which keeps the mean. In
    /// [evaluation](crate::Module::apply_eval), returns the input.
    ///
    /// # Shapes
    /// - `x`: any shape
    /// - result: as `x`
    ///
    /// # Errors
    /// [`Error::Hyperparameter`] unless `0 <= rate < 1`; [`Error::Mode`] under
    /// [`apply`](crate::Module::apply).
    ///
    /// # Source
    /// `flax.linen.Dropout(rate, deterministic=not train)(x)`, which drops the same values for the
    /// same key; N. Srivastava et al., *Dropout*, 2014.
    pub fn dropout(&mut self, rate: f64, x: impl Input) -> Result<Tensor> {
        let x = &x.tensor()?;
        if !(0.0..1.0).contains(&rate) {
            let allowed = "it must be at least 0 and below 1";
            return Err(Error::Hyperparameter { name: "rate", value: rate, allowed });
        }
        let nn = self.sub_scope("Dropout");
        let key = match nn.mode {
            Mode::Apply { .. } => return Err(Error::Mode { layer: nn.path() }),
            Mode::Train { dropout_key, .. } if rate > 0.0 => {
                Some(fold_in_path(dropout_key, &nn.path, 1))
            }
            _ => None,
        };
        dropout(x, key, rate, &nn.path())
    }
}

fn dense(x: &Tensor, kernel: &Tensor, bias: &Tensor, path: &str) -> Result<Tensor> {
    let y = if custom_ops::are_for(x) && custom_ops::are_for(kernel) {
        custom_ops::dense(x, kernel, bias)?
    } else {
        x.matmul(kernel)?.broadcast_add(bias)?
    };
    trace_op(&[x], &y, || Layer::Dense { features: kernel.dims()[1], params: path.to_owned() });
    Ok(y)
}

/// Batch norm with the batch's statistics; returns output, mean and variance.
fn batch_norm_train(
    x: &Tensor,
    scale: &Tensor,
    bias: &Tensor,
    path: &str,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (y, mean, var) = if custom_ops::are_for(x) && custom_ops::are_for(scale) {
        let statistics = custom_ops::batch_statistics(x)?;
        let mean = Tensor::new(statistics.mean.as_slice(), x.device())?;
        let var = Tensor::new(statistics.var.as_slice(), x.device())?;
        (custom_ops::batch_norm(x, scale, bias, statistics)?, mean, var)
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
fn batch_norm_eval(
    x: &Tensor,
    scale: &Tensor,
    bias: &Tensor,
    (mean, var): (&Tensor, &Tensor),
    path: &str,
) -> Result<Tensor> {
    let y = if custom_ops::are_for(x) && custom_ops::are_for(scale) {
        let (mean, var) = (mean.to_vec1()?, var.to_vec1()?);
        custom_ops::batch_norm(x, scale, bias, Statistics { mean, var, is_training: false })?
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
    let factor = ((var + BATCH_NORM_EPSILON)?.sqrt()?.recip()? * scale)?;
    Ok(x.broadcast_sub(mean)?.broadcast_mul(&factor)?.broadcast_add(bias)?)
}

/// A running statistic after a batch.
pub(crate) fn updated_statistic(running: &Tensor, batch: &Tensor) -> Result<Tensor> {
    Ok(((running * MOMENTUM)? + (batch * (1.0 - MOMENTUM))?)?)
}

fn trace_batch_norm(x: &Tensor, y: &Tensor, path: &str) {
    trace_op(&[x], y, || Layer::BatchNorm { params: path.to_owned() });
}

/// Dropout; without a key, as in evaluation, returns the input.
fn dropout(x: &Tensor, key: Option<Key>, rate: f64, path: &str) -> Result<Tensor> {
    let keep_prob = 1.0 - rate;
    let y = match key {
        None => x.clone(),
        Some(key) if custom_ops::are_for(x) => custom_ops::dropout(x, key, keep_prob as f32)?,
        Some(key) => {
            let is_kept = bernoulli(key, keep_prob as f32, x.shape(), x.device())?;
            is_kept.where_cond(&(x / keep_prob)?, &x.zeros_like()?)?
        }
    };
    trace_op(&[x], &y, || Layer::Dropout { rate, name: path.to_owned() });
    Ok(y)
}

/// ReLU: `max(x, 0)`, for any shape.
///
/// Its derivative at exactly 0 is 0, as in JAX. candle's `Tensor::relu` has 1 there, and with zero
/// biases and black pixels many inputs are exactly 0.
///
/// # Errors
/// [`Error::Tensor`] if the device fails.
///
/// # Source
/// `flax.linen.relu`.
pub fn relu(x: impl Input) -> Result<Tensor> {
    let x = &x.tensor()?;
    let y = if custom_ops::are_for(x) {
        custom_ops::relu(x)?
    } else {
        x.le(0.0)?.where_cond(&x.zeros_like()?, x)?
    };
    trace_op(&[x], &y, || Layer::Relu);
    Ok(y)
}

/// GELU, a smooth ReLU: `x` times the probability that a standard normal number is below `x`, by
/// its approximation `x/2 · (1 + tanh(√(2/π) · (x + 0.044715·x³)))`. For any shape.
///
/// # Errors
/// [`Error::DType`] unless `x` is of a float type; [`Error::Tensor`] if the device fails.
///
/// # Source
/// `flax.linen.gelu`, with its default `approximate=True`; D. Hendrycks, K. Gimpel, *Gaussian
/// Error Linear Units*, 2016. The derivative of candle's own `gelu` has only six digits.
pub fn gelu(x: impl Input) -> Result<Tensor> {
    let x = &x.tensor()?;
    check::float("gelu input", x)?;
    let y = if custom_ops::are_for(x) {
        custom_ops::gelu(x)?
    } else {
        let x = custom_ops::contiguous(x)?;
        let cubic = ((x.sqr()? * 0.044715)? + 1.0)? * &x;
        let tanh = (cubic? * (2.0 / std::f64::consts::PI).sqrt())?.tanh()?;
        (((tanh + 1.0)? * &x)? * 0.5)?
    };
    trace_op(&[x], &y, || Layer::Gelu);
    Ok(y)
}

/// The mean over non-overlapping windows; pixels that do not fill a window are dropped.
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
pub fn avg_pool(x: impl Input, window: (usize, usize)) -> Result<Tensor> {
    let x = &x.tensor()?;
    check_window("avg_pool input", x, window)?;
    let y = if custom_ops::are_for(x) {
        custom_ops::avg_pool(x, window)?
    } else {
        windows(x, window)?.mean(D::Minus1)?
    };
    trace_op(&[x], &y, || Layer::AvgPool { window });
    Ok(y)
}

/// The maximum over non-overlapping windows; pixels that do not fill a window are dropped.
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
pub fn max_pool(x: impl Input, window: (usize, usize)) -> Result<Tensor> {
    let x = &x.tensor()?;
    check_window("max_pool input", x, window)?;
    let y = if custom_ops::are_for(x) {
        custom_ops::max_pool(x, window)?
    } else {
        let windows = windows(x, window)?;
        let first_largest = argmax(&windows)?.unsqueeze(D::Minus1)?;
        windows.gather(&first_largest, D::Minus1)?.squeeze(D::Minus1)?
    };
    trace_op(&[x], &y, || Layer::MaxPool { window });
    Ok(y)
}

/// The mean over all pixels of each channel: `[B, H, W, C]` to `[B, C]`.
///
/// # Errors
/// [`Error::Shape`] unless `x` has four dimensions and at least one pixel.
///
/// # Source
/// `jax.numpy.mean(x, axis=(1, 2))`; M. Lin et al., *Network In Network*, 2013.
pub fn global_avg_pool(x: impl Input) -> Result<Tensor> {
    let x = &x.tensor()?;
    let &[batch, height @ (1..), width @ (1..), channels] = x.dims() else {
        let expected = "[B, at least 1, at least 1, C]";
        return Err(Error::shape("global_avg_pool input", expected, x));
    };
    let y = if custom_ops::are_for(x) {
        custom_ops::avg_pool(x, (height, width))?.reshape((batch, channels))?
    } else {
        x.mean((1, 2))?
    };
    trace_op(&[x], &y, || Layer::GlobalAvgPool);
    Ok(y)
}

/// Flattens each example to one row: `[B, …]` to `[B, product of the rest]`.
///
/// Rows keep the order height, width, channels, like the tutorial's
/// `x.reshape((x.shape[0], -1))`.
///
/// # Errors
/// [`Error::Shape`] for fewer than two dimensions; [`Error::Memory`] if a broadcast `x` does not
/// fit in memory.
pub fn flatten(x: impl Input) -> Result<Tensor> {
    let x = &x.tensor()?;
    if x.rank() < 2 {
        return Err(Error::shape("flatten input", "[B, …]", x));
    }
    let y = custom_ops::contiguous(x)?.flatten_from(1)?;
    trace_op(&[x], &y, || Layer::Flatten);
    Ok(y)
}

/// Converts scores to log-probabilities over the last dimension: `x - ln(sum(exp(x)))`.
///
/// # Errors
/// [`Error::DType`] unless `x` is of a float type; [`Error::Tensor`] if the device fails.
///
/// # Source
/// `flax.linen.log_softmax`.
pub fn log_softmax(x: impl Input) -> Result<Tensor> {
    let x = &x.tensor()?;
    check::float("log_softmax input", x)?;
    let y = if custom_ops::are_for(x) {
        custom_ops::log_softmax(x)?
    } else {
        candle_nn::ops::log_softmax(x, D::Minus1)?
    };
    trace_op(&[x], &y, || Layer::LogSoftmax);
    Ok(y)
}

/// The index of the first largest value along the last dimension; the first NaN counts as the
/// largest.
///
/// # Shapes
/// - `x`: `[…, N]`
/// - result: `[…]`, u32
///
/// # Errors
/// [`Error::Tensor`] for a scalar or an `N` of 0.
///
/// # Source
/// `jax.numpy.argmax(x, axis=-1)`. candle's skips a NaN that is not the first value.
pub fn argmax(x: &Tensor) -> Result<Tensor> {
    let is_nan = x.ne(x)?;
    let first_nan = is_nan.argmax(D::Minus1)?;
    Ok(is_nan.max(D::Minus1)?.where_cond(&first_nan, &x.argmax(D::Minus1)?)?)
}

fn check_window(what: &'static str, x: &Tensor, window: (usize, usize)) -> Result<()> {
    if let &[_, height, width, _] = x.dims()
        && (1..=height).contains(&window.0)
        && (1..=width).contains(&window.1)
    {
        return Ok(());
    }
    let (height, width) = (window.0.max(1), window.1.max(1));
    Err(Error::shape(what, format!("[B, at least {height}, at least {width}, C]"), x))
}

/// Gathers the values of each window: `[B, H / window.0, W / window.1, C, values]`.
///
/// candle's own pooling is not used: its max pooling divides the gradient by the window's size, and
/// both poolings need windows that fill the image.
fn windows(x: &Tensor, window: (usize, usize)) -> Result<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    let (rows, columns) = (height / window.0, width / window.1);
    let cropped = x.narrow(1, 0, rows * window.0)?.narrow(2, 0, columns * window.1)?;
    let split = cropped.reshape(&[batch, rows, window.0, columns, window.1, channels])?;
    let windows = split.permute([0, 1, 3, 5, 2, 4])?.contiguous()?;
    Ok(windows.reshape((batch, rows, columns, channels, window.0 * window.1))?)
}

fn wrong_batch_norm_input(x: &Tensor) -> Error {
    Error::shape("batch_norm input", "[B, …, features], none of them 0", x)
}
