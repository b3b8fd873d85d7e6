//! candle operations on top of [`cpu_kernels`]: custom operations with derivatives, and in-place
//! operations.
//!
//! All of them need f32 tensors on the CPU, except [`update`], which takes any floats.

use std::cell::Cell;

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, D, DType, Device, InplaceOp1, Layout, Shape,
    Storage, Tensor, Var,
};
use cpu_kernels::{
    BatchNorm, Conv2d, Dense, GeneralConv2d, KernelError, Padding, Pool2d, Statistics, UpdateRule,
    apply_gradient, gelu_backward, gelu_forward, log_softmax_backward, log_softmax_forward,
    relu_backward, relu_forward,
};
use jax_random::{Key, bernoulli_from};

use crate::error::{Error, Result, through_candle};
use crate::memory;

type CandleResult<T> = candle_core::Result<T>;

/// Values that dropout draws for at once.
pub(crate) const DROPOUT_LANES: usize = 16;

/// Whether the operations of this file can take the tensor.
pub(crate) fn are_for(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// The tensor with its values one after the other in memory: itself, or a copy.
///
/// # Errors
/// [`Error::Memory`] if the copy does not fit: a broadcast tensor takes less memory than its copy.
pub(crate) fn contiguous(x: &Tensor) -> Result<Tensor> {
    if !x.is_contiguous() {
        memory::check("a copy of a tensor", x.dims(), x.dtype(), x.device())?;
    }
    Ok(x.contiguous()?)
}

/// Convolution with bias, see [`Scope::conv`](crate::Scope::conv).
pub(crate) fn conv(x: &Tensor, kernel: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (batch, height, width, in_channels) = x.dims4()?;
    let (kernel_height, kernel_width, _, out_channels) = kernel.dims4()?;
    let kernel_size = (kernel_height, kernel_width);
    let conv = Conv2d { batch, height, width, in_channels, out_channels, kernel: kernel_size };
    let op = Affine {
        name: "conv",
        shape: (batch, height, width, out_channels).into(),
        forward: move |x: &[f32], kernel: &[f32], bias: &[f32], out: &mut [f32]| {
            conv.forward(x, kernel, bias, out)
        },
        backward_input: move |kernel: &[f32], grad: &[f32], out: &mut [f32]| {
            conv.backward_input(kernel, grad, out)
        },
        backward_params: move |x: &[f32], grad: &[f32], kernel: &mut [f32], bias: &mut [f32]| {
            conv.backward_kernel(x, grad, kernel, bias)
        },
    };
    Ok(contiguous(x)?.apply_op3(&contiguous(kernel)?, &contiguous(bias)?, op)?)
}

/// Convolution with any strides and padding, see [`Scope::conv_with`](crate::Scope::conv_with).
pub(crate) fn general_conv(
    x: &Tensor,
    kernel: &Tensor,
    bias: &Tensor,
    strides: (usize, usize),
    padding: Padding,
) -> Result<Tensor> {
    let (batch, height, width, in_channels) = x.dims4()?;
    let (kernel_height, kernel_width, _, out_channels) = kernel.dims4()?;
    let conv = GeneralConv2d {
        batch,
        height,
        width,
        in_channels,
        out_channels,
        kernel: (kernel_height, kernel_width),
        strides,
        padding,
    };
    let (rows, columns) = conv.output_size();
    let op = Affine {
        name: "conv",
        shape: (batch, rows, columns, out_channels).into(),
        forward: move |x: &[f32], kernel: &[f32], bias: &[f32], out: &mut [f32]| {
            conv.forward(x, kernel, bias, out)
        },
        backward_input: move |kernel: &[f32], grad: &[f32], out: &mut [f32]| {
            conv.backward_input(kernel, grad, out)
        },
        backward_params: move |x: &[f32], grad: &[f32], kernel: &mut [f32], bias: &mut [f32]| {
            conv.backward_kernel(x, grad, kernel, bias)
        },
    };
    Ok(contiguous(x)?.apply_op3(&contiguous(kernel)?, &contiguous(bias)?, op)?)
}

/// A dense layer with bias, see [`Scope::dense`](crate::Scope::dense).
pub(crate) fn dense(x: &Tensor, kernel: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (batch, inputs) = x.dims2()?;
    let (_, outputs) = kernel.dims2()?;
    let dense = Dense { batch, inputs, outputs };
    let op = Affine {
        name: "dense",
        shape: (batch, outputs).into(),
        forward: move |x: &[f32], kernel: &[f32], bias: &[f32], out: &mut [f32]| {
            dense.forward(x, kernel, bias, out)
        },
        backward_input: move |kernel: &[f32], grad: &[f32], out: &mut [f32]| {
            dense.backward_input(kernel, grad, out)
        },
        backward_params: move |x: &[f32], grad: &[f32], kernel: &mut [f32], bias: &mut [f32]| {
            dense.backward_kernel(x, grad, kernel, bias)
        },
    };
    Ok(contiguous(x)?.apply_op3(&contiguous(kernel)?, &contiguous(bias)?, op)?)
}

/// ReLU, see [`relu`](crate::relu).
pub(crate) fn relu(x: &Tensor) -> Result<Tensor> {
    let op = Unary {
        name: "relu",
        shape: x.shape().clone(),
        forward: relu_forward,
        backward: |_x: &Tensor, y: &Tensor, grad: &Tensor| {
            binary("relu_grad", y, grad, y.shape(), relu_backward)
        },
    };
    Ok(contiguous(x)?.apply_op1(op)?)
}

/// GELU, see [`gelu`](crate::gelu).
pub(crate) fn gelu(x: &Tensor) -> Result<Tensor> {
    let op = Unary {
        name: "gelu",
        shape: x.shape().clone(),
        forward: gelu_forward,
        backward: |x: &Tensor, _y: &Tensor, grad: &Tensor| {
            binary("gelu_grad", x, grad, x.shape(), gelu_backward)
        },
    };
    Ok(contiguous(x)?.apply_op1(op)?)
}

/// Log-softmax over the last dimension, see [`log_softmax`](crate::log_softmax).
pub(crate) fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let classes = x.dim(D::Minus1)?;
    let op = Unary {
        name: "log_softmax",
        shape: x.shape().clone(),
        forward: move |x: &[f32], out: &mut [f32]| log_softmax_forward(x, classes, out),
        backward: move |_x: &Tensor, y: &Tensor, grad: &Tensor| {
            binary("log_softmax_grad", y, grad, y.shape(), |y, grad, out| {
                log_softmax_backward(y, grad, classes, out)
            })
        },
    };
    Ok(contiguous(x)?.apply_op1(op)?)
}

/// Average pooling, see [`avg_pool`](crate::avg_pool).
pub(crate) fn avg_pool(x: &Tensor, window: (usize, usize)) -> Result<Tensor> {
    let (pool, shape) = pool(x, window)?;
    let op = Unary {
        name: "avg_pool",
        shape,
        forward: move |x: &[f32], out: &mut [f32]| pool.average_forward(x, out),
        backward: move |x: &Tensor, _y: &Tensor, grad: &Tensor| {
            binary("avg_pool_grad", x, grad, x.shape(), |_x, grad, out| {
                pool.average_backward(grad, out)
            })
        },
    };
    Ok(contiguous(x)?.apply_op1(op)?)
}

/// Max pooling, see [`max_pool`](crate::max_pool).
pub(crate) fn max_pool(x: &Tensor, window: (usize, usize)) -> Result<Tensor> {
    let (pool, shape) = pool(x, window)?;
    let op = Unary {
        name: "max_pool",
        shape,
        forward: move |x: &[f32], out: &mut [f32]| pool.max_forward(x, out),
        backward: move |x: &Tensor, _y: &Tensor, grad: &Tensor| {
            binary("max_pool_grad", x, grad, x.shape(), |x, grad, out| {
                pool.max_backward(x, grad, out)
            })
        },
    };
    Ok(contiguous(x)?.apply_op1(op)?)
}

/// Dropout, see [`Scope::dropout`](crate::Scope::dropout).
pub(crate) fn dropout(x: &Tensor, key: Key, keep_prob: f32) -> Result<Tensor> {
    let kernel = move |x: &[f32], out: &mut [f32]| {
        cpu_kernels::dropout(
            x,
            keep_prob,
            #[inline(always)]
            |index| bernoulli_from::<DROPOUT_LANES>(key, index, keep_prob),
            out,
        )
    };
    let op = Unary {
        name: "dropout",
        shape: x.shape().clone(),
        forward: kernel,
        backward: move |_x: &Tensor, _y: &Tensor, grad: &Tensor| {
            binary("dropout_grad", grad, grad, grad.shape(), |grad, _, out| kernel(grad, out))
        },
    };
    Ok(contiguous(x)?.apply_op1(op)?)
}

/// Mean and variance of each channel, the last dimension.
pub(crate) fn batch_statistics(x: &Tensor) -> Result<Statistics> {
    let x = contiguous(x)?;
    let (storage, layout) = x.storage_and_layout();
    Ok(batch_norm_shape(&x)?.statistics(f32_slice(&storage, layout)?)?)
}

/// Batch normalization, see [`Scope::batch_norm`](crate::Scope::batch_norm).
pub(crate) fn batch_norm(
    x: &Tensor,
    scale: &Tensor,
    bias: &Tensor,
    statistics: Statistics,
) -> Result<Tensor> {
    let op = Normalize { norm: batch_norm_shape(x)?, shape: x.shape().clone(), statistics };
    Ok(contiguous(x)?.apply_op3(&contiguous(scale)?, &contiguous(bias)?, op)?)
}

fn batch_norm_shape(x: &Tensor) -> Result<BatchNorm> {
    let channels = x.dim(D::Minus1)?;
    Ok(BatchNorm { rows: x.elem_count() / channels.max(1), channels })
}

/// The pooling kernel and its output shape.
fn pool(x: &Tensor, window: (usize, usize)) -> Result<(Pool2d, Shape)> {
    let (batch, height, width, channels) = x.dims4()?;
    let shape = (batch, height / window.0, width / window.1, channels);
    Ok((Pool2d { batch, height, width, channels, window }, shape.into()))
}

/// Updates a parameter and its moments by a gradient, which must be like the parameter, contiguous,
/// and in other memory than all of them.
pub(crate) fn update(
    rule: UpdateRule,
    param: &Var,
    moments: &[&Var],
    gradient: &Tensor,
) -> Result<()> {
    if !param.device().is_cpu() || param.dtype() != DType::F32 {
        return update_by_tensors(rule, param, moments, gradient);
    }
    let vars = [&[param], moments].concat();
    let (storage, layout) = gradient.storage_and_layout();
    let gradient = f32_slice(&storage, layout)?;
    with_slices_mut(&vars, |slices| match slices {
        [param, moments @ ..] => Ok(apply_gradient(rule, param, moments, gradient)?),
        [] => Ok(()),
    })?
}

/// [`update`] on other devices and for other types.
fn update_by_tensors(
    rule: UpdateRule,
    param: &Var,
    moments: &[&Var],
    gradient: &Tensor,
) -> Result<()> {
    let p = param.as_detached_tensor();
    let moment = |index: usize| moments[index].as_detached_tensor();
    match rule {
        UpdateRule::Momentum { learning_rate, beta, nesterov } => {
            let m = ((moment(0) * beta)? + gradient)?;
            let step = if nesterov { ((&m * beta)? + gradient)? } else { m.clone() };
            moments[0].set(&m)?;
            param.set(&(p - (step * learning_rate)?)?)?;
        }
        UpdateRule::Adam {
            learning_rate,
            beta1,
            beta2,
            epsilon,
            weight_decay,
            correction1,
            correction2,
        } => {
            let m = ((moment(0) * beta1)? + (gradient * (1.0 - beta1))?)?;
            let v = ((moment(1) * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
            let step = ((&m * correction1)? / ((&v * correction2)?.sqrt()? + epsilon)?)?;
            let step = (step + (&p * weight_decay)?)?;
            moments[0].set(&m)?;
            moments[1].set(&v)?;
            param.set(&(p - (step * learning_rate)?)?)?;
        }
    }
    Ok(())
}

/// Where in memory the values of a tensor are; tensors that share them have the same address.
pub(crate) fn storage_address(tensor: &Tensor) -> usize {
    let (storage, _) = tensor.storage_and_layout();
    std::ptr::from_ref(&*storage).addr()
}

/// Calls `f` with the values of several variables, to change them in place.
///
/// The variables must be distinct, on the CPU, f32 and contiguous. candle locks each of them
/// meanwhile: passing one twice, or while a read guard on its storage is alive, deadlocks.
pub(crate) fn with_slices_mut<R>(
    vars: &[&Var],
    f: impl FnOnce(&mut [&mut [f32]]) -> R,
) -> Result<R> {
    borrow_all(vars, Vec::with_capacity(vars.len()), f)
}

/// Adds the values of `vars` to `borrowed`, then calls `f`.
///
/// candle gives mutable access to a variable's values only within an in-place operation on it. So
/// [`Borrow`] is such an operation: it borrows the values of the first variable, and then, still
/// inside, calls this function for the others. The innermost call runs `f`.
fn borrow_all<R, F: FnOnce(&mut [&mut [f32]]) -> R>(
    vars: &[&Var],
    mut borrowed: Vec<&mut [f32]>,
    f: F,
) -> Result<R> {
    let Some((first, others)) = vars.split_first() else {
        return Ok(f(&mut borrowed));
    };
    let op = Borrow { others, pending: Cell::new(Some((borrowed, f))), result: Cell::new(None) };
    first.inplace_op1(&op)?;
    op.result.take().unwrap_or_else(|| Err(Error::Tensor("nothing was borrowed".into())))
}

/// The slices borrowed so far, and the function to call with all of them.
type Pending<'b, F> = (Vec<&'b mut [f32]>, F);

/// Operations run by shared reference, hence the cells.
struct Borrow<'a, 'b, R, F> {
    others: &'a [&'a Var],
    pending: Cell<Option<Pending<'b, F>>>,
    result: Cell<Option<Result<R>>>,
}

impl<R, F: FnOnce(&mut [&mut [f32]]) -> R> InplaceOp1 for Borrow<'_, '_, R, F> {
    fn name(&self) -> &'static str {
        "borrow"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> CandleResult<()> {
        if let Some((mut borrowed, f)) = self.pending.take() {
            borrowed.push(as_slice_mut(storage, layout)?);
            self.result.set(Some(borrow_all(self.others, borrowed, f)));
        }
        Ok(())
    }
}

/// The result of a kernel that writes its output to a slice.
type KernelResult = Result<(), KernelError>;

/// An operation on one tensor. The derivative takes input, output and output gradient.
struct Unary<F, B> {
    name: &'static str,
    shape: Shape,
    forward: F,
    backward: B,
}

impl<F, B> CustomOp1 for Unary<F, B>
where
    F: Fn(&[f32], &mut [f32]) -> KernelResult,
    B: Fn(&Tensor, &Tensor, &Tensor) -> CandleResult<Tensor>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let x = as_slice(x, layout)?;
        output(&self.shape, |out| (self.forward)(x, out))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        (self.backward)(x, y, &contiguous(grad).map_err(through_candle)?).map(Some)
    }
}

/// A layer with kernel and bias, and its derivatives.
struct Affine<F, I, P> {
    name: &'static str,
    shape: Shape,
    /// Input, kernel and bias to output.
    forward: F,
    /// Kernel and output gradient to input gradient.
    backward_input: I,
    /// Input and output gradient to the gradients of kernel and bias.
    backward_params: P,
}

impl<F, I, P> CustomOp3 for Affine<F, I, P>
where
    F: Fn(&[f32], &[f32], &[f32], &mut [f32]) -> KernelResult,
    I: Fn(&[f32], &[f32], &mut [f32]) -> KernelResult,
    P: Fn(&[f32], &[f32], &mut [f32], &mut [f32]) -> KernelResult,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        kernel: &CpuStorage,
        kernel_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let (x, kernel) = (as_slice(x, x_layout)?, as_slice(kernel, kernel_layout)?);
        let bias = as_slice(bias, bias_layout)?;
        output(&self.shape, |out| (self.forward)(x, kernel, bias, out))
    }

    fn bwd(
        &self,
        x: &Tensor,
        kernel: &Tensor,
        bias: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = contiguous(grad).map_err(through_candle)?;
        // Skip the input gradient of the first layer.
        let grad_x = if x.track_op() {
            Some(binary("grad_input", kernel, &grad, x.shape(), &self.backward_input)?)
        } else {
            None
        };
        // One operation has one output, so both gradients are concatenated.
        let (kernel_len, bias_len) = (kernel.elem_count(), bias.elem_count());
        let both = Shape::from(kernel_len + bias_len);
        let grads = binary("grad_params", x, &grad, &both, |x, grad, out| {
            let (kernel, bias) = out.split_at_mut(kernel_len);
            (self.backward_params)(x, grad, kernel, bias)
        })?;
        let grad_kernel = grads.narrow(0, 0, kernel_len)?.reshape(kernel.shape())?;
        let grad_bias = grads.narrow(0, kernel_len, bias_len)?.reshape(bias.shape())?;
        Ok((grad_x, Some(grad_kernel), Some(grad_bias)))
    }
}

/// Batch normalization and its derivatives.
struct Normalize {
    norm: BatchNorm,
    shape: Shape,
    statistics: Statistics,
}

impl CustomOp3 for Normalize {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let (x, scale) = (as_slice(x, x_layout)?, as_slice(scale, scale_layout)?);
        let bias = as_slice(bias, bias_layout)?;
        output(&self.shape, |out| self.norm.forward(x, &self.statistics, scale, bias, out))
    }

    fn bwd(
        &self,
        x: &Tensor,
        scale: &Tensor,
        _bias: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = contiguous(grad).map_err(through_candle)?;
        let channels = self.norm.channels;
        // One operation has one output, so both gradients are concatenated.
        let both = Shape::from((2, channels));
        let grads = binary("batch_norm_grad_params", x, &grad, &both, |x, grad, out| {
            let (scale, bias) = out.split_at_mut(channels);
            self.norm.backward_params(x, &self.statistics, grad, scale, bias)
        })?;
        let grad_x = if x.track_op() {
            let scale = scale.to_vec1::<f32>()?;
            let both = grads.flatten_all()?.to_vec1::<f32>()?;
            let (grad_scale, grad_bias) = both.split_at(channels);
            Some(binary("batch_norm_grad_input", x, &grad, x.shape(), |x, grad, out| {
                let (norm, statistics) = (&self.norm, &self.statistics);
                norm.backward_input(x, statistics, &scale, grad, grad_scale, grad_bias, out)
            })?)
        } else {
            None
        };
        Ok((grad_x, Some(grads.get(0)?), Some(grads.get(1)?)))
    }
}

/// Runs a kernel on two tensors, without a derivative.
fn binary(
    name: &'static str,
    a: &Tensor,
    b: &Tensor,
    shape: &Shape,
    kernel: impl Fn(&[f32], &[f32], &mut [f32]) -> KernelResult,
) -> CandleResult<Tensor> {
    a.apply_op2_no_bwd(b, &Binary { name, shape, kernel })
}

struct Binary<'a, F> {
    name: &'static str,
    shape: &'a Shape,
    kernel: F,
}

impl<F: Fn(&[f32], &[f32], &mut [f32]) -> KernelResult> CustomOp2 for Binary<'_, F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let (a, b) = (as_slice(a, a_layout)?, as_slice(b, b_layout)?);
        output(self.shape, |out| (self.kernel)(a, b, out))
    }
}

/// Storage of a new tensor, filled by a kernel.
fn output(
    shape: &Shape,
    kernel: impl FnOnce(&mut [f32]) -> KernelResult,
) -> CandleResult<(CpuStorage, Shape)> {
    memory::check("the result of a layer", shape.dims(), DType::F32, &Device::Cpu)
        .map_err(through_candle)?;
    let mut out = vec![0.0; shape.elem_count()];
    kernel(&mut out).map_err(through_candle)?;
    Ok((CpuStorage::F32(out), shape.clone()))
}

fn range(layout: &Layout) -> CandleResult<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => candle_core::bail!("the tensor is not contiguous: call `contiguous` first"),
    }
}

/// The values of a contiguous f32 tensor on the CPU.
pub(crate) fn f32_slice<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    match storage {
        Storage::Cpu(storage) => Ok(as_slice(storage, layout)?),
        _ => Err(Error::Tensor("expected a tensor on the CPU".into())),
    }
}

fn as_slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> CandleResult<&'a [f32]> {
    Ok(&storage.as_slice::<f32>()?[range(layout)?])
}

fn as_slice_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> CandleResult<&'a mut [f32]> {
    match storage {
        CpuStorage::F32(values) => Ok(&mut values[range(layout)?]),
        _ => candle_core::bail!("expected f32 parameters"),
    }
}
