//! What an NVIDIA GPU does in place of the tutorial's own steps, for [`jit`](macro@crate::jit).
//!
//! There a whole step is one recording, and an epoch runs without the host. Both have the
//! tutorial's loss and metrics built in. So `#[jit]` asks for them only where the step has the
//! tutorial's text, and here the loss and the metrics in its scope are tried out on examples.

use std::any::type_name;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use candle_core::{Device, Tensor, Var};
use linen::random::permutation;
use linen::{
    BatchMetrics, Evaluate, Key, Metrics, Module, Result, Train, gpu_eval_step,
    gpu_train_epoch, gpu_train_step, jitted,
};

use crate::batch_log::BatchLog;
use crate::dataset::{Batch, Dataset};

/// A loss of log-probabilities and labels.
type Loss = fn(&Tensor, &Tensor) -> Result<Tensor>;
/// Metrics of log-probabilities and labels.
type MetricsOf = fn(&Tensor, &Tensor) -> Result<BatchMetrics>;

thread_local! {
    /// The module of the latest step of the tutorial's text, if that was a recording.
    static RECORDED: Cell<Option<&'static str>> = const { Cell::new(None) };
    /// The losses and metrics that have been tried out, by their addresses.
    static TRIED: RefCell<HashMap<usize, bool>> = RefCell::default();
}

/// The tutorial's training step, the `train_step` of a module, if the GPU takes it as a whole.
///
/// # Errors
/// Those of [`gpu_train_step`].
pub fn train_step(
    model: &impl Module,
    state: &mut impl Train,
    batch: &Batch,
    loss: Loss,
    metrics: MetricsOf,
    module: &'static str,
) -> Result<Option<BatchMetrics>> {
    RECORDED.set(None);
    if !batch.image().device().is_cuda()
        || !is_cross_entropy(loss)
        || !are_metrics(metrics)
    {
        return Ok(None);
    }
    let Some(optimizer) = state.as_optimizer() else { return Ok(None) };
    let metrics =
        jitted(|| gpu_train_step(model, optimizer, batch.image(), batch.label()))?;
    RECORDED.set(metrics.is_some().then_some(module));
    Ok(metrics)
}

/// The tutorial's evaluation step, if the GPU takes it as a whole.
///
/// # Errors
/// Those of [`gpu_eval_step`].
pub fn eval_step(
    model: &impl Module,
    variables: &impl Evaluate,
    batch: &Batch,
    metrics: MetricsOf,
) -> Result<Option<BatchMetrics>> {
    if !batch.image().device().is_cuda()
        || variables.batch_stats().is_some()
        || !are_metrics(metrics)
    {
        return Ok(None);
    }
    jitted(|| gpu_eval_step(model, variables.params(), batch.image(), batch.label()))
}

/// The tutorial's epoch on a GPU: without the host, if its first step, the one in scope, was a
/// recording, otherwise step by step.
///
/// # Errors
/// Those of [`train_epoch`](crate::train_epoch()).
pub fn train_epoch<M: Module, S: Train, F>(
    model: &M,
    state: &mut S,
    (train_ds, batch_size): (&Dataset, usize),
    epoch: usize,
    rng: Key,
    step: F,
) -> Result<Option<Metrics>>
where
    F: Fn(&M, &mut S, &Batch) -> Result<BatchMetrics>,
{
    if !train_ds.image().device().is_cuda() {
        return Ok(None);
    }
    let mut batch_metrics = BatchLog::new(epoch, train_ds, batch_size)?;
    let order = permutation(rng, train_ds.len());
    let order = &order[..train_ds.len() / batch_size * batch_size];
    let (first, rest) = order.split_at(batch_size);
    let mut is_tutorials = false;
    batch_metrics.take_steps(state, first, |state: &mut S, batch: &Batch| {
        let metrics;
        (metrics, is_tutorials) = watched(model, state, batch, &step)?;
        Ok(metrics)
    })?;
    let data = (train_ds.image(), train_ds.label());
    let recorded = match state.as_optimizer().filter(|_| is_tutorials) {
        Some(optimizer) => {
            jitted(|| gpu_train_epoch(model, optimizer, data, batch_size, rest))
        }
        None => Ok(None),
    };
    match recorded.map_err(|error| train_ds.locate(error))? {
        Some(metrics) => batch_metrics.extend(metrics),
        None => batch_metrics
            .take_steps(state, rest, |state, batch| step(model, state, batch))?,
    }
    batch_metrics.report().map(Some)
}

/// Takes a step, and tells whether it was a recording of the tutorial's. A function that wraps that
/// one, to vary its images or to follow a schedule, is another, whatever it does at first.
fn watched<M, S, F>(
    model: &M,
    state: &mut S,
    batch: &Batch,
    step: &F,
) -> Result<(BatchMetrics, bool)>
where
    F: Fn(&M, &mut S, &Batch) -> Result<BatchMetrics>,
{
    // What an earlier step has left says nothing about this one.
    RECORDED.set(None);
    let metrics = step(model, state, batch)?;
    Ok((metrics, RECORDED.get().is_some_and(is_train_step_of::<F>)))
}

/// Whether a function is the `train_step` of a module.
fn is_train_step_of<F>(module: &str) -> bool {
    let name = type_name::<F>().strip_prefix(module);
    let parameters = name.and_then(|name| name.strip_prefix("::train_step"));
    parameters.is_some_and(|rest| rest.is_empty() || rest.starts_with('<'))
}

fn is_cross_entropy(loss: Loss) -> bool {
    tried(loss as usize, || {
        let (logits, labels) = examples()?;
        let differentiated = |loss: Loss| -> Result<Vec<f32>> {
            let logits = Var::from_tensor(&logits)?;
            let loss = loss(&logits, &labels)?;
            let slope = loss
                .backward()?
                .get(&logits)
                .map_or(logits.zeros_like(), |s| Ok(s.clone()));
            Ok([vec![loss.to_scalar()?], slope?.flatten_all()?.to_vec1()?].concat())
        };
        Ok(are_close(
            &differentiated(loss)?,
            &differentiated(crate::cross_entropy_loss)?,
        ))
    })
}

fn are_metrics(metrics: MetricsOf) -> bool {
    tried(metrics as usize, || {
        let (logits, labels) = examples()?;
        let numbers = |metrics: MetricsOf| -> Result<[f32; 2]> {
            let Metrics { loss, accuracy } = metrics(&logits, &labels)?.get()?;
            Ok([loss, accuracy])
        };
        Ok(are_close(&numbers(metrics)?, &numbers(crate::compute_metrics)?))
    })
}

/// What a trial says, made once for the function at an address. One that fails says no.
fn tried(address: usize, trial: impl FnOnce() -> Result<bool>) -> bool {
    if let Some(is_known) = TRIED.with_borrow(|tried| tried.get(&address).copied()) {
        return is_known;
    }
    let is_known = trial().unwrap_or(false);
    TRIED.with_borrow_mut(|tried| tried.insert(address, is_known));
    is_known
}

/// Log-probabilities from nearly certain to hopeless, and a label of each kind.
fn examples() -> Result<(Tensor, Tensor)> {
    let scores =
        (0..12 * 10).map(|i| ((i * 37) % 101) as f32 / 8.0 * ((i / 10) as f32 - 4.0));
    let scores = Tensor::from_iter(scores, &Device::Cpu)?.reshape((12, 10))?;
    let labels = Tensor::from_iter((0..12u32).map(|i| i * 7 % 10), &Device::Cpu)?;
    Ok((linen::log_softmax(scores)?, labels))
}

fn are_close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs().max(1e-2))
}

#[cfg(test)]
mod tests {
    use candle_core::{D, DType};
    use linen::Optimizer;

    use super::*;
    use crate::{Cnn, compute_metrics, cross_entropy_loss, onehot};

    #[test]
    fn the_tutorials_loss_is_told_from_others() {
        fn written_anew(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
            let picked = logits.gather(&labels.unsqueeze(1)?, 1)?;
            Ok(picked.mean_all()?.neg()?)
        }
        fn smoothed(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
            let target = ((onehot(labels, 10)? * 0.999)? + 0.0001)?;
            Ok((target * logits)?.sum(D::Minus1)?.mean(0)?.neg()?)
        }
        fn clamped(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
            cross_entropy_loss(&logits.maximum(-30.0)?, labels)
        }
        fn summed(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
            Ok((cross_entropy_loss(logits, labels)? * labels.elem_count() as f64)?)
        }
        fn without_slope(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
            cross_entropy_loss(&logits.detach(), labels)
        }
        fn ones(_: &Tensor, labels: &Tensor) -> Result<Tensor> {
            Ok(labels.to_dtype(DType::F32)?.mean(0)?.ones_like()?)
        }
        assert!(is_cross_entropy(cross_entropy_loss) && is_cross_entropy(written_anew));
        for other in [smoothed, clamped, summed, without_slope, ones] {
            assert!(!is_cross_entropy(other));
        }
    }

    /// Stands in for a step that a GPU has recorded.
    mod recorded {
        use super::*;

        pub fn train_step(
            model: &impl Module,
            state: &mut impl Train,
            batch: &Batch,
        ) -> Result<BatchMetrics> {
            let metrics = crate::train_step(model, state, batch)?;
            RECORDED.set(Some(module_path!()));
            Ok(metrics)
        }

        pub fn train_step_in_turn(
            model: &impl Module,
            state: &mut impl Train,
            batch: &Batch,
        ) -> Result<BatchMetrics> {
            train_step(model, state, batch)
        }

        pub mod train_step {
            use super::*;

            pub fn train_step(
                model: &impl Module,
                state: &mut impl Train,
                batch: &Batch,
            ) -> Result<BatchMetrics> {
                super::train_step(model, state, batch)
            }
        }
    }

    #[test]
    fn only_the_tutorials_step_and_nothing_more_stands_for_a_whole_epoch() {
        let image = Tensor::zeros((2, 28, 28, 1), DType::F32, &Device::Cpu).unwrap();
        let label = Tensor::new(&[1u32, 2], &Device::Cpu).unwrap();
        let batch = Batch::new(image, label).unwrap();
        let params =
            crate::get_initial_params(&Cnn, Key::new(0), &Device::Cpu).unwrap();
        let mut state = crate::create_optimizer(&params, 0.1, 0.9).unwrap();
        fn is_tutorials<F>(state: &mut Optimizer, batch: &Batch, step: F) -> bool
        where
            F: Fn(&Cnn, &mut Optimizer, &Batch) -> Result<BatchMetrics>,
        {
            watched(&Cnn, state, batch, &step).unwrap().1
        }
        assert!(is_tutorials(&mut state, &batch, recorded::train_step));
        // Not recorded, after one that was.
        assert!(!is_tutorials(&mut state, &batch, crate::train_step));
        // Those that call it.
        assert!(!is_tutorials(&mut state, &batch, recorded::train_step_in_turn));
        assert!(!is_tutorials(&mut state, &batch, recorded::train_step::train_step));
        assert!(!is_tutorials(&mut state, &batch, |model, state, batch| {
            recorded::train_step(model, state, batch)
        }));
        assert!(is_tutorials(&mut state, &batch, recorded::train_step));
    }

    #[test]
    fn the_tutorials_metrics_are_told_from_others() {
        fn other_loss(logits: &Tensor, labels: &Tensor) -> Result<BatchMetrics> {
            let metrics = compute_metrics(logits, labels)?;
            Ok(BatchMetrics { loss: (metrics.loss * 2.0)?, ..metrics })
        }
        fn errors(logits: &Tensor, labels: &Tensor) -> Result<BatchMetrics> {
            let metrics = compute_metrics(logits, labels)?;
            Ok(BatchMetrics { accuracy: (1.0 - metrics.accuracy)?, ..metrics })
        }
        assert!(are_metrics(compute_metrics));
        assert!(!are_metrics(other_loss) && !are_metrics(errors));
    }
}
