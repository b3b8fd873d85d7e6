//! `@jax.jit`: steps that are compiled once per input shape.

use std::fmt;

use candle_core::Tensor;
use linen::{
    BatchMetrics, CompiledStep, Module, Momentum, NotCompiled, Params, Result, compile, no_grad,
};

use crate::dataset::Batch;
use crate::train_step::{eval_step, train_step};

/// [`train_step`] and [`eval_step`] of a network, compiled if possible.
pub struct Jit<M> {
    model: M,
    step: Result<CompiledStep, NotCompiled>,
}

/// Compiles training and evaluation of a network for inputs of one shape; see
/// [`compile`](linen::compile()).
///
/// # Shapes
/// - `input_shape`: `[B, height, width, channels]`. Batches of another shape run uncompiled.
///
/// # Errors
/// Those of [`compile`](linen::compile()).
///
/// # Examples
/// ```
/// use mnist_notebook_support::prelude::*;
///
/// let params = get_initial_params(&Cnn, Key::new(0), &Device::Cpu)?;
/// let step = jit(Cnn, &params, &[32, 28, 28, 1])?;
/// assert!(step.is_compiled());
/// println!("{step}"); // the plan, or why the network cannot be compiled
/// # Ok::<(), mnist_notebook_support::Error>(())
/// ```
///
/// # Source
/// `jax.jit`.
pub fn jit<M: Module>(model: M, params: &Params, input_shape: &[usize]) -> Result<Jit<M>> {
    let step = compile(&model, params, input_shape)?;
    Ok(Jit { model, step })
}

impl<M: Module> Jit<M> {
    /// [`train_step`], but faster.
    ///
    /// # Errors
    /// Those of [`train_step`]. On an NVIDIA GPU, [`BatchMetrics::get`] returns
    /// [`Error::Label`](linen::Error::Label) instead.
    pub fn train_step(&mut self, optimizer: &mut Momentum, batch: &Batch) -> Result<BatchMetrics> {
        if let Ok(step) = &mut self.step
            && let Some(metrics) = step.train_step(optimizer, batch.image(), batch.label())?
        {
            return Ok(metrics);
        }
        train_step(&self.model, optimizer, batch)
    }

    /// [`eval_step`], but faster.
    ///
    /// # Errors
    /// Those of [`eval_step`], with the same exception as [`train_step`](Jit::train_step).
    pub fn eval_step(&mut self, params: &Params, batch: &Batch) -> Result<BatchMetrics> {
        if let Ok(step) = &mut self.step
            && let Some(metrics) = step.eval_step(params, batch.image(), batch.label())?
        {
            return Ok(metrics);
        }
        eval_step(&self.model, params, batch)
    }

    /// The log-probabilities of images, without gradients: [`apply`](Module::apply), but faster.
    ///
    /// # Shapes
    /// - `image`: `[B, height, width, channels]`
    /// - result: `[B, K]`
    ///
    /// # Errors
    /// Those of the network.
    pub fn predict(&mut self, params: &Params, image: &Tensor) -> Result<Tensor> {
        if let Ok(step) = &mut self.step
            && let Some(log_probs) = step.predict(params, image)?
        {
            return Ok(log_probs);
        }
        no_grad(|| self.model.apply(params, image))
    }

    /// Whether the steps are compiled; if not, `Display` says why.
    pub fn is_compiled(&self) -> bool {
        self.step.is_ok()
    }

    /// The number of classes: the size of the network's output.
    pub fn num_classes(&self) -> usize {
        match &self.step {
            Ok(step) => step.num_classes(),
            Err(reason) => reason.num_classes(),
        }
    }
}

/// The plan, one fused group of layers per line, or why the network cannot be compiled.
impl<M> fmt::Display for Jit<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.step {
            Ok(step) => step.fmt(f),
            Err(reason) => reason.fmt(f),
        }
    }
}
