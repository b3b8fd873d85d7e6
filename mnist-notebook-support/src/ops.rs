//! The bridge between candle's tensors and this crate's [kernels](crate::kernels): custom
//! operations with derivatives, and operations in place.
//!
//! Everything here works on f32 tensors on the CPU, except [`scale_and_add`], which takes any.

use std::cell::Cell;

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, D, InplaceOp1, InplaceOp2, Layout, Shape, Storage,
    Tensor, Var,
};

use crate::Result;
use crate::kernels::{
    Conv2d, Dense, KernelError, Pool2d, log_softmax_backward, log_softmax_forward, relu_backward,
    relu_forward,
};

type CandleResult<T> = candle_core::Result<T>;

/// Convolution with bias, see [`Scope::conv`](crate::linen::Scope::conv).
pub(crate) fn conv(x: &Tensor, kernel: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (batch, height, width, in_channels) = x.dims4()?;
    let (kernel_height, kernel_width, _, out_channels) = kernel.dims4()?;
    let kernel_size = (kernel_height, kernel_width);
    let op =
        ConvOp(Conv2d { batch, height, width, in_channels, out_channels, kernel: kernel_size });
    Ok(x.contiguous()?.apply_op3(&kernel.contiguous()?, &bias.contiguous()?, op)?)
}

/// A dense layer with bias, see [`Scope::dense`](crate::linen::Scope::dense).
pub(crate) fn dense(x: &Tensor, kernel: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (batch, inputs) = x.dims2()?;
    let (_, outputs) = kernel.dims2()?;
    let op = DenseOp(Dense { batch, inputs, outputs });
    Ok(x.contiguous()?.apply_op3(&kernel.contiguous()?, &bias.contiguous()?, op)?)
}

/// The rectifier, see [`relu`](crate::linen::relu).
pub(crate) fn relu(x: &Tensor) -> Result<Tensor> {
    Ok(x.contiguous()?.apply_op1(ReluOp)?)
}

/// Log-softmax over the last dimension, see [`log_softmax`](crate::linen::log_softmax).
pub(crate) fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let classes = x.dim(D::Minus1)?;
    Ok(x.contiguous()?.apply_op1(LogSoftmaxOp { classes })?)
}

/// Average pooling, see [`avg_pool`](crate::linen::avg_pool).
pub(crate) fn avg_pool(x: &Tensor, window: (usize, usize)) -> Result<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    let shape = Pool2d { batch, height, width, channels, window };
    Ok(x.contiguous()?.apply_op1(AvgPoolOp(shape))?)
}

/// Max pooling, see [`max_pool`](crate::linen::max_pool).
pub(crate) fn max_pool(x: &Tensor, window: (usize, usize)) -> Result<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    let shape = Pool2d { batch, height, width, channels, window };
    Ok(x.contiguous()?.apply_op1(MaxPoolOp(shape))?)
}

/// `y ← a · y + b · x`, in place where the device allows it.
pub(crate) fn scale_and_add(y: &Var, a: f64, x: &Tensor, b: f64) -> Result<()> {
    if y.device().is_cpu() {
        Ok(y.inplace_op2(&x.contiguous()?, &ScaleAndAdd { a, b })?)
    } else {
        Ok(y.set(&((y.as_tensor() * a)? + (x * b)?)?)?)
    }
}

/// Gives a function the content of several variables at once, to change it in place.
///
/// The variables must be different ones on the CPU, f32 and contiguous.
pub(crate) fn with_slices_mut<R>(
    vars: &[&Var],
    f: impl FnOnce(&mut [&mut [f32]]) -> R,
) -> Result<R> {
    borrow_rest(vars, Vec::with_capacity(vars.len()), f)
}

/// candle lends the storage of one tensor at a time, to an operation in place; so the next is
/// borrowed within the operation on the one before.
fn borrow_rest<R, F: FnOnce(&mut [&mut [f32]]) -> R>(
    vars: &[&Var],
    mut borrowed: Vec<&mut [f32]>,
    f: F,
) -> Result<R> {
    let Some((first, rest)) = vars.split_first() else {
        return Ok(f(&mut borrowed));
    };
    let op = Borrow { rest, state: Cell::new(Some((borrowed, f))), result: Cell::new(None) };
    first.inplace_op1(&op)?;
    op.result.take().unwrap_or_else(|| Err(crate::Error::Tensor("nothing was borrowed".into())))
}

/// What has been borrowed so far, and the function that waits for all of it.
type Pending<'b, F> = (Vec<&'b mut [f32]>, F);

struct Borrow<'a, 'b, R, F> {
    rest: &'a [&'a Var],
    state: Cell<Option<Pending<'b, F>>>,
    result: Cell<Option<Result<R>>>,
}

impl<R, F: FnOnce(&mut [&mut [f32]]) -> R> InplaceOp1 for Borrow<'_, '_, R, F> {
    fn name(&self) -> &'static str {
        "borrow"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> CandleResult<()> {
        if let Some((mut borrowed, f)) = self.state.take() {
            borrowed.push(as_slice_mut(storage, layout)?);
            self.result.set(Some(borrow_rest(self.rest, borrowed, f)));
        }
        Ok(())
    }
}

struct ScaleAndAdd {
    a: f64,
    b: f64,
}

impl InplaceOp2 for ScaleAndAdd {
    fn name(&self) -> &'static str {
        "scale_and_add"
    }

    fn cpu_fwd(
        &self,
        y: &mut CpuStorage,
        y_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
    ) -> CandleResult<()> {
        let (y_range, x_range) = (range(y_layout)?, range(x_layout)?);
        match (y, x) {
            (CpuStorage::F32(y), CpuStorage::F32(x)) => {
                let (a, b) = (self.a as f32, self.b as f32);
                y[y_range].iter_mut().zip(&x[x_range]).for_each(|(y, x)| *y = a * *y + b * x);
            }
            (CpuStorage::F64(y), CpuStorage::F64(x)) => {
                let (a, b) = (self.a, self.b);
                y[y_range].iter_mut().zip(&x[x_range]).for_each(|(y, x)| *y = a * *y + b * x);
            }
            _ => candle_core::bail!("parameters and gradients must both be f32 or both f64"),
        }
        Ok(())
    }
}

/// A convolution; its derivatives are two more operations on the same shape.
struct ConvOp(Conv2d);

impl CustomOp3 for ConvOp {
    fn name(&self) -> &'static str {
        "conv"
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
        let ConvOp(conv) = self;
        let (x, kernel) = (as_slice(x, x_layout)?, as_slice(kernel, kernel_layout)?);
        let bias = as_slice(bias, bias_layout)?;
        let shape = (conv.batch, conv.height, conv.width, conv.out_channels);
        output(shape, |out| conv.forward(x, kernel, bias, out))
    }

    fn bwd(
        &self,
        x: &Tensor,
        kernel: &Tensor,
        bias: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let ConvOp(conv) = *self;
        let grad = grad.contiguous()?;
        let grad_x = wanted(x, || kernel.apply_op2_no_bwd(&grad, &ConvGradInput(conv)))?;
        let grads = x.apply_op2_no_bwd(&grad, &ConvGradParams(conv))?;
        let (grad_kernel, grad_bias) = split_params(&grads, kernel, bias)?;
        Ok((grad_x, Some(grad_kernel), Some(grad_bias)))
    }
}

struct ConvGradInput(Conv2d);

impl CustomOp2 for ConvGradInput {
    fn name(&self) -> &'static str {
        "conv_grad_input"
    }

    fn cpu_fwd(
        &self,
        kernel: &CpuStorage,
        kernel_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let ConvGradInput(conv) = self;
        let (kernel, grad) = (as_slice(kernel, kernel_layout)?, as_slice(grad, grad_layout)?);
        let shape = (conv.batch, conv.height, conv.width, conv.in_channels);
        output(shape, |out| conv.backward_input(kernel, grad, out))
    }
}

/// The derivatives for kernel and bias, one behind the other.
struct ConvGradParams(Conv2d);

impl CustomOp2 for ConvGradParams {
    fn name(&self) -> &'static str {
        "conv_grad_params"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let ConvGradParams(conv) = self;
        let (x, grad) = (as_slice(x, x_layout)?, as_slice(grad, grad_layout)?);
        output(conv.kernel_len() + conv.out_channels, |out| {
            let (grad_kernel, grad_bias) = out.split_at_mut(conv.kernel_len());
            conv.backward_kernel(x, grad, grad_kernel, grad_bias)
        })
    }
}

/// A dense layer; its derivatives are two more operations on the same shape.
struct DenseOp(Dense);

impl CustomOp3 for DenseOp {
    fn name(&self) -> &'static str {
        "dense"
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
        let DenseOp(dense) = self;
        let (x, kernel) = (as_slice(x, x_layout)?, as_slice(kernel, kernel_layout)?);
        let bias = as_slice(bias, bias_layout)?;
        output((dense.batch, dense.outputs), |out| dense.forward(x, kernel, bias, out))
    }

    fn bwd(
        &self,
        x: &Tensor,
        kernel: &Tensor,
        bias: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let DenseOp(dense) = *self;
        let grad = grad.contiguous()?;
        let grad_x = wanted(x, || kernel.apply_op2_no_bwd(&grad, &DenseGradInput(dense)))?;
        let grads = x.apply_op2_no_bwd(&grad, &DenseGradParams(dense))?;
        let (grad_kernel, grad_bias) = split_params(&grads, kernel, bias)?;
        Ok((grad_x, Some(grad_kernel), Some(grad_bias)))
    }
}

struct DenseGradInput(Dense);

impl CustomOp2 for DenseGradInput {
    fn name(&self) -> &'static str {
        "dense_grad_input"
    }

    fn cpu_fwd(
        &self,
        kernel: &CpuStorage,
        kernel_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let DenseGradInput(dense) = self;
        let (kernel, grad) = (as_slice(kernel, kernel_layout)?, as_slice(grad, grad_layout)?);
        output((dense.batch, dense.inputs), |out| dense.backward_input(kernel, grad, out))
    }
}

/// The derivatives for kernel and bias, one behind the other.
struct DenseGradParams(Dense);

impl CustomOp2 for DenseGradParams {
    fn name(&self) -> &'static str {
        "dense_grad_params"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let DenseGradParams(dense) = self;
        let (x, grad) = (as_slice(x, x_layout)?, as_slice(grad, grad_layout)?);
        let kernel_len = dense.inputs * dense.outputs;
        output(kernel_len + dense.outputs, |out| {
            let (grad_kernel, grad_bias) = out.split_at_mut(kernel_len);
            dense.backward_kernel(x, grad, grad_kernel, grad_bias)
        })
    }
}

struct ReluOp;

impl CustomOp1 for ReluOp {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let x = as_slice(x, layout)?;
        output(layout.shape().clone(), |out| relu_forward(x, out))
    }

    fn bwd(&self, _x: &Tensor, out: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        Ok(Some(out.apply_op2_no_bwd(&grad.contiguous()?, &ReluGrad)?))
    }
}

struct ReluGrad;

impl CustomOp2 for ReluGrad {
    fn name(&self) -> &'static str {
        "relu_grad"
    }

    fn cpu_fwd(
        &self,
        y: &CpuStorage,
        y_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let (y, grad) = (as_slice(y, y_layout)?, as_slice(grad, grad_layout)?);
        output(y_layout.shape().clone(), |out| relu_backward(y, grad, out))
    }
}

struct LogSoftmaxOp {
    classes: usize,
}

impl CustomOp1 for LogSoftmaxOp {
    fn name(&self) -> &'static str {
        "log_softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let x = as_slice(x, layout)?;
        output(layout.shape().clone(), |out| log_softmax_forward(x, self.classes, out))
    }

    fn bwd(&self, _x: &Tensor, out: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        let op = LogSoftmaxGrad { classes: self.classes };
        Ok(Some(out.apply_op2_no_bwd(&grad.contiguous()?, &op)?))
    }
}

struct LogSoftmaxGrad {
    classes: usize,
}

impl CustomOp2 for LogSoftmaxGrad {
    fn name(&self) -> &'static str {
        "log_softmax_grad"
    }

    fn cpu_fwd(
        &self,
        y: &CpuStorage,
        y_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let (y, grad) = (as_slice(y, y_layout)?, as_slice(grad, grad_layout)?);
        let shape = y_layout.shape().clone();
        output(shape, |out| log_softmax_backward(y, grad, self.classes, out))
    }
}

struct AvgPoolOp(Pool2d);

impl CustomOp1 for AvgPoolOp {
    fn name(&self) -> &'static str {
        "avg_pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let x = as_slice(x, layout)?;
        output(pooled_shape(&self.0), |out| self.0.average_forward(x, out))
    }

    fn bwd(&self, _x: &Tensor, _out: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&AvgPoolGrad(self.0))?))
    }
}

struct AvgPoolGrad(Pool2d);

impl CustomOp1 for AvgPoolGrad {
    fn name(&self) -> &'static str {
        "avg_pool_grad"
    }

    fn cpu_fwd(&self, grad: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let grad = as_slice(grad, layout)?;
        output(input_shape(&self.0), |out| self.0.average_backward(grad, out))
    }
}

struct MaxPoolOp(Pool2d);

impl CustomOp1 for MaxPoolOp {
    fn name(&self) -> &'static str {
        "max_pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let x = as_slice(x, layout)?;
        output(pooled_shape(&self.0), |out| self.0.max_forward(x, out))
    }

    fn bwd(&self, x: &Tensor, _out: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        Ok(Some(x.apply_op2_no_bwd(&grad.contiguous()?, &MaxPoolGrad(self.0))?))
    }
}

struct MaxPoolGrad(Pool2d);

impl CustomOp2 for MaxPoolGrad {
    fn name(&self) -> &'static str {
        "max_pool_grad"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let (x, grad) = (as_slice(x, x_layout)?, as_slice(grad, grad_layout)?);
        output(input_shape(&self.0), |out| self.0.max_backward(x, grad, out))
    }
}

/// A gradient, if anybody asks for it: the first layer's input, for one, is data.
fn wanted(x: &Tensor, grad: impl FnOnce() -> CandleResult<Tensor>) -> CandleResult<Option<Tensor>> {
    x.track_op().then(grad).transpose()
}

/// Takes apart the derivatives for kernel and bias.
fn split_params(grads: &Tensor, kernel: &Tensor, bias: &Tensor) -> CandleResult<(Tensor, Tensor)> {
    let (kernel_len, bias_len) = (kernel.elem_count(), bias.elem_count());
    Ok((
        grads.narrow(0, 0, kernel_len)?.reshape(kernel.shape())?,
        grads.narrow(0, kernel_len, bias_len)?.reshape(bias.shape())?,
    ))
}

/// A new tensor's storage, filled by a kernel.
fn output(
    shape: impl Into<Shape>,
    kernel: impl FnOnce(&mut [f32]) -> Result<(), KernelError>,
) -> CandleResult<(CpuStorage, Shape)> {
    let shape = shape.into();
    let mut out = vec![0.0; shape.elem_count()];
    kernel(&mut out).map_err(candle_core::Error::wrap)?;
    Ok((CpuStorage::F32(out), shape))
}

fn pooled_shape(pool: &Pool2d) -> (usize, usize, usize, usize) {
    let Pool2d { batch, height, width, channels, window } = *pool;
    (batch, height / window.0, width / window.1, channels)
}

fn input_shape(pool: &Pool2d) -> (usize, usize, usize, usize) {
    (pool.batch, pool.height, pool.width, pool.channels)
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
        _ => Err(crate::Error::Tensor("expected a tensor on the CPU".into())),
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
