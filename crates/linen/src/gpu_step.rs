//! Whole steps on an NVIDIA GPU: network, loss, gradients and update as one recording.
//!
//! Each of the many small operations of a loss costs a GPU more than the whole network. So there a
//! step with the tutorial's loss is a recording of its own, which neither allocates memory nor
//! waits for the GPU. An out-of-range label is only reported when the step's metrics are read; such
//! a step changes nothing. The first step of a batch size on a GPU measures which kernels suit it
//! there. Later ones, in other processes too, use the same and repeat results bit for bit.

use candle_core::Tensor;
#[cfg(feature = "cuda")]
use candle_core::Var;
#[cfg(feature = "cuda")]
use cpu_kernels::UpdateRule;

#[cfg(feature = "cuda")]
use crate::cuda::{Batch, MomentumRule, Program};
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
        let batch = Batch { image, label };
        let metrics = with_trained(model, optimizer, image, |program, params, momenta, rule| {
            program.train_step(params, momenta, batch, rule)
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
/// `order` has the indices of the examples, `batch_size` for each step: otherwise, without a step,
/// and if a batch is larger than the dataset, the result is `None`.
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
        && are_batches(order, batch_size, image.dims()[0])
    {
        let (first, data) = (image.narrow(0, 0, batch_size)?, Batch { image, label });
        let metrics = with_trained(model, optimizer, &first, |program, params, momenta, rule| {
            program.train_epoch(params, momenta, data, order, rule)
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
        return with_program(model, params, image, |program, params| {
            program.eval_step(params, Batch { image, label })
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
    with_trained(model, optimizer, image, |program, params, momenta, rule| {
        program.launch_times(params, momenta, rule)
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
    with_program(model, params, image, |program, _| program.tile_times())
}

/// Whether these are indices of examples, in at least one batch, none of them incomplete.
#[cfg(any(feature = "cuda", test))]
fn are_batches(order: &[u32], batch_size: usize, examples: usize) -> bool {
    (1..=examples).contains(&batch_size)
        && !order.is_empty()
        && order.len().is_multiple_of(batch_size)
        && order.iter().all(|&index| (index as usize) < examples)
}

/// Passes `run` the network's program with its parameters, their momenta and the momentum rule, the
/// only one that the program knows.
#[cfg(feature = "cuda")]
fn with_trained<T>(
    model: &impl Module,
    optimizer: &Optimizer,
    image: &Tensor,
    run: impl FnOnce(&mut Program, &[&Var], &[&Var], MomentumRule) -> Result<T>,
) -> Result<Option<T>> {
    let UpdateRule::Momentum { learning_rate, beta, nesterov: false } = optimizer.next_update()?
    else {
        return Ok(None);
    };
    let rule = MomentumRule { rate: learning_rate as f32, beta: beta as f32 };
    let momenta = optimizer.moments().values().flat_map(Params::vars).collect::<Vec<_>>();
    let momenta = momenta.iter().collect::<Vec<_>>();
    with_program(model, optimizer.target(), image, |program, params| {
        run(program, params, &momenta, rule)
    })
}

/// Passes `run` the network's program with its parameters.
#[cfg(feature = "cuda")]
fn with_program<T>(
    model: &impl Module,
    params: &Params,
    image: &Tensor,
    run: impl FnOnce(&mut Program, &[&Var]) -> Result<T>,
) -> Result<Option<T>> {
    let network = |x: &Tensor| model.call(&mut Scope::apply(params), x);
    crate::jit::on_gpu(model.identity(), params, image, network, run)
}

/// Whether the program can read the labels as they are.
#[cfg(feature = "cuda")]
fn is_labels_of(label: &Tensor, image: &Tensor) -> bool {
    label.dtype() == candle_core::DType::U32
        && label.is_contiguous()
        && label.device().same_device(image.device())
        && image.dims().first().is_some_and(|&batch| label.dims() == [batch])
}

#[cfg(test)]
mod tests {
    use super::are_batches;

    #[test]
    fn an_epoch_has_whole_batches_of_examples_that_exist() {
        assert!(are_batches(&[0, 1, 2, 3], 2, 4));
        assert!(are_batches(&[3, 3, 3, 0, 0, 3], 3, 4), "an example may come several times");
        assert!(are_batches(&[2, 0, 1], 3, 3), "a single batch");
        assert!(!are_batches(&[0, 1, 2], 2, 4), "an incomplete batch");
        assert!(!are_batches(&[0, 4], 2, 4), "no such example");
        assert!(!are_batches(&[0, 1], 0, 4));
        assert!(!are_batches(&[], 2, 4), "no step");
        assert!(!are_batches(&[0, 1, 0, 1], 4, 2), "more than the dataset has");
    }
}
