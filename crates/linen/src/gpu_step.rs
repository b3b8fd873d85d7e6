//! Whole steps on an NVIDIA GPU: network, loss, gradients and update as one recording.
//!
//! Each of the many small operations of a loss costs a GPU more than the whole network. So there a
//! step with the tutorial's loss is a recording of its own, which neither allocates memory nor
//! waits for the GPU. An out-of-range label is only reported when the step's metrics are read; such
//! a step changes nothing. The first step of a batch size on a GPU measures which kernels suit it
//! there. Later ones, in other processes too, use the same and repeat results bit for bit.

use candle_core::Tensor;
#[cfg(feature = "cuda")]
use cpu_kernels::UpdateRule;

use crate::error::Result;
use crate::metrics::{BatchMetrics, Metrics};
use crate::module::Module;
use crate::optimizer::Optimizer;
use crate::params::Params;
#[cfg(feature = "cuda")]
use crate::scope::Scope;

/// A training step with the mean cross-entropy of log-probabilities, if a [`Jit`](crate::Jit) runs
/// and has compiled the network for an NVIDIA GPU; otherwise `None`.
///
/// # Shapes
/// - `image`: `[B, height, width, channels]`
/// - `label`: `[B]`
///
/// # Errors
/// Those of the network; [`Error::Gpu`](crate::Error::Gpu) if the GPU fails.
#[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
pub fn gpu_train_step(
    model: &impl Module,
    optimizer: &mut Optimizer,
    image: &Tensor,
    label: &Tensor,
) -> Result<Option<BatchMetrics>> {
    #[cfg(feature = "cuda")]
    if is_labels_of(label, image) {
        let Some((rate, beta)) = plain_momentum(optimizer)? else { return Ok(None) };
        let target = optimizer.target();
        let momentum = optimizer.moments().values().flat_map(Params::vars).collect::<Vec<_>>();
        let network = |x: &Tensor| model.call(&mut Scope::apply(target), x);
        let metrics =
            crate::jit::on_gpu(model.identity(), target, image, network, |program, target| {
                let momentum = momentum.iter().collect::<Vec<_>>();
                let batch = crate::cuda::Batch { image, label };
                program.train_step(target, &momentum, batch, rate, beta)
            })?;
        if metrics.is_some() {
            optimizer.count_step();
        }
        return Ok(metrics);
    }
    Ok(None)
}

/// Steps of [`gpu_train_step`] on batches of a dataset, without the host in between, and their
/// metrics; under the same conditions.
///
/// `order` has the indices of the examples, `batch_size` for each step.
///
/// # Shapes
/// - `image`: `[N, height, width, channels]`, the whole dataset
/// - `label`: `[N]`
///
/// # Errors
/// Those of [`gpu_train_step`]; [`Error::Label`](crate::Error::Label) for an out-of-range label,
/// after all steps: those on batches without one have been taken.
#[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
pub fn gpu_train_epoch(
    model: &impl Module,
    optimizer: &mut Optimizer,
    (image, label): (&Tensor, &Tensor),
    batch_size: usize,
    order: &[u32],
) -> Result<Option<Vec<Metrics>>> {
    #[cfg(feature = "cuda")]
    if is_labels_of(label, image)
        && image.is_contiguous()
        && image.dtype() == candle_core::DType::F32
        && image.rank() == 4
        && batch_size > 0
        && order.len() % batch_size == 0
        && order.iter().all(|&index| (index as usize) < image.dims()[0])
        && let Some((rate, beta)) = plain_momentum(optimizer)?
    {
        let target = optimizer.target();
        let momentum = optimizer.moments().values().flat_map(Params::vars).collect::<Vec<_>>();
        let network = |x: &Tensor| model.call(&mut Scope::apply(target), x);
        let batch = image.narrow(0, 0, batch_size)?;
        let metrics =
            crate::jit::on_gpu(model.identity(), target, &batch, network, |program, target| {
                let momentum = momentum.iter().collect::<Vec<_>>();
                let data = crate::cuda::Batch { image, label };
                program.train_epoch(target, &momentum, data, order, (rate, beta))
            })?;
        return metrics
            .map(|metrics| {
                metrics.iter().for_each(|_| optimizer.count_step());
                metrics.into_iter().collect()
            })
            .transpose();
    }
    Ok(None)
}

/// The metrics of a batch, under the same conditions as [`gpu_train_step`].
///
/// # Shapes
/// - `image`: `[B, height, width, channels]`
/// - `label`: `[B]`
///
/// # Errors
/// Those of [`gpu_train_step`].
#[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
pub fn gpu_eval_step(
    model: &impl Module,
    params: &Params,
    image: &Tensor,
    label: &Tensor,
) -> Result<Option<BatchMetrics>> {
    #[cfg(feature = "cuda")]
    if is_labels_of(label, image) {
        let network = |x: &Tensor| model.call(&mut Scope::apply(params), x);
        return crate::jit::on_gpu(model.identity(), params, image, network, |program, params| {
            program.eval_step(params, crate::cuda::Batch { image, label })
        });
    }
    Ok(None)
}

/// Describes each launch of a training step, with its mean time in microseconds over a hundred
/// repetitions, under the same conditions as [`gpu_train_step`].
///
/// Overwrites the optimizer's parameters.
///
/// # Errors
/// Those of [`gpu_train_step`].
#[cfg(feature = "cuda")]
pub fn gpu_launch_times(
    model: &impl Module,
    optimizer: &mut Optimizer,
    image: &Tensor,
) -> Result<Option<Vec<(String, f32)>>> {
    let Some((rate, beta)) = plain_momentum(optimizer)? else { return Ok(None) };
    let target = optimizer.target();
    let momentum = optimizer.moments().values().flat_map(Params::vars).collect::<Vec<_>>();
    let network = |x: &Tensor| model.call(&mut Scope::apply(target), x);
    crate::jit::on_gpu(model.identity(), target, image, network, |program, target| {
        program.launch_times(target, &momentum.iter().collect::<Vec<_>>(), rate, beta)
    })
}

/// Describes each way to divide a matrix product of a training step that was tried on the GPU, with
/// its time in microseconds, under the same conditions as [`gpu_train_step`].
///
/// # Errors
/// Those of [`gpu_train_step`].
#[cfg(feature = "cuda")]
pub fn gpu_tile_times(
    model: &impl Module,
    params: &Params,
    image: &Tensor,
) -> Result<Option<Vec<(String, f32)>>> {
    let network = |x: &Tensor| model.call(&mut Scope::apply(params), x);
    crate::jit::on_gpu(model.identity(), params, image, network, |program, _| program.tile_times())
}

/// Learning rate and beta of the only rule that the program knows.
#[cfg(feature = "cuda")]
fn plain_momentum(optimizer: &Optimizer) -> Result<Option<(f32, f32)>> {
    Ok(match optimizer.next_update()? {
        UpdateRule::Momentum { learning_rate, beta, nesterov: false } => {
            Some((learning_rate as f32, beta as f32))
        }
        _ => None,
    })
}

/// Whether the program can read the labels as they are.
#[cfg(feature = "cuda")]
fn is_labels_of(label: &Tensor, image: &Tensor) -> bool {
    label.dtype() == candle_core::DType::U32
        && label.is_contiguous()
        && label.device().same_device(image.device())
        && image.dims().first().is_some_and(|&batch| label.dims() == [batch])
}
