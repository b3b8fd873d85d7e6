//! An epoch on a GPU can tell the tutorial's step from one that wraps it.
//!
//! This file stands in for the crate that the attribute names, with types that only look like it,
//! and for its GPU, which here only says who was called.

#![allow(missing_docs)]

extern crate self as mnist_notebook_support;

use std::cell::Cell;

use jit_macro::jit;

pub mod linen {
    pub fn jitted<T>(f: impl FnOnce() -> T) -> T {
        f()
    }
}

pub mod on_gpu {
    use super::{Batch, Dataset, Key, MODULE, Module, Result, Train};

    pub fn train_step(
        _: &impl Module,
        _: &mut impl Train,
        _: &Batch,
        _: fn(&f32, f32) -> Result<f32>,
        _: fn(&f32, f32) -> Result<f32>,
        module: &'static str,
    ) -> Result<Option<f32>> {
        MODULE.set(module);
        Ok(Some(0.0))
    }

    /// Takes a step; returns its name, and where the tutorial's step that it was or called stands.
    pub fn train_epoch<M: Module, S: Train, F>(
        model: &M,
        state: &mut S,
        _: (&Dataset, usize),
        _: usize,
        _: Key,
        step: F,
    ) -> Result<Option<String>>
    where
        F: Fn(&M, &mut S, &Batch) -> Result<f32>,
    {
        step(model, state, &Batch)?;
        Ok(Some(format!("{}, recorded in {}", std::any::type_name::<F>(), MODULE.get())))
    }
}

thread_local! {
    static MODULE: Cell<&'static str> = const { Cell::new("") };
}

type Result<T> = std::result::Result<T, String>;
type BatchMetrics = f32;
type Metrics = String;
type Params = f32;

pub struct Batch;

impl Batch {
    fn image(&self) -> f32 {
        3.0
    }

    fn label(&self) -> f32 {
        1.0
    }
}

pub struct Dataset;

impl Dataset {
    fn len(&self) -> usize {
        1
    }

    fn batch(&self, _: &[usize]) -> Result<Batch> {
        Ok(Batch)
    }
}

#[derive(Clone, Copy)]
pub struct Key;

fn permutation(_: Key, len: usize) -> Vec<usize> {
    (0..len).collect()
}

struct BatchLog;

impl BatchLog {
    fn new(_: usize, _: &Dataset, _: usize) -> Result<Self> {
        Ok(Self)
    }

    fn push(&mut self, _: Result<f32>) -> Result<()> {
        Ok(())
    }

    fn mean(&self) -> Result<Metrics> {
        Ok(String::new())
    }
}

pub trait Train {
    fn params(&self) -> &Params;

    fn apply(&self, _: &impl Module, params: &Params, image: f32) -> Result<(f32, ())> {
        Ok((params * image, ()))
    }

    fn apply_gradient(&mut self, _: f32, _updates: ()) -> Result<()> {
        Ok(())
    }
}

struct State(Params);

impl Train for State {
    fn params(&self) -> &Params {
        &self.0
    }
}

pub trait Module {}

struct Net;

impl Module for Net {}

fn cross_entropy_loss(logits: &f32, label: f32) -> Result<f32> {
    Ok(logits - label)
}

fn compute_metrics(logits: &f32, label: f32) -> Result<f32> {
    Ok(logits - label)
}

type Loss = (f32, (f32, ()));

fn value_and_grad(loss: impl Fn(&Params) -> Result<Loss>, params: &Params) -> Result<(Loss, f32)> {
    Ok((loss(params)?, 0.0))
}

/// The text of `mnist-notebook-support/src/train_step.rs`.
#[jit]
pub fn train_step(
    model: &impl Module,
    state: &mut impl Train,
    batch: &Batch,
) -> Result<BatchMetrics> {
    let loss_fn = |params: &Params| {
        let (logits, updates) = state.apply(model, params, batch.image())?;
        let loss = cross_entropy_loss(&logits, batch.label())?;
        Ok((loss, (logits, updates)))
    };
    let ((_, (logits, updates)), grad) = value_and_grad(loss_fn, state.params())?;
    state.apply_gradient(grad, updates)?;
    compute_metrics(&logits, batch.label())
}

/// The text of `mnist-notebook-support/src/train_epoch.rs`, with the `train_step` in scope.
macro_rules! train_epoch {
    () => {
        #[jit]
        pub fn train_epoch(
            model: &impl Module,
            state: &mut impl Train,
            train_ds: &Dataset,
            batch_size: usize,
            epoch: usize,
            rng: Key,
        ) -> Result<Metrics> {
            let perms = permutation(rng, train_ds.len());
            let mut batch_metrics = BatchLog::new(epoch, train_ds, batch_size)?;
            for perm in perms.chunks_exact(batch_size) {
                let batch = train_ds.batch(perm)?;
                batch_metrics.push(train_step(model, state, &batch))?;
            }
            let metrics = batch_metrics.mean()?;
            println!("Training - epoch: {epoch}, {metrics}");
            Ok(metrics)
        }
    };
}

train_epoch!();

#[test]
fn the_tutorials_step_has_the_name_of_its_module() {
    let called = train_epoch(&Net, &mut State(1.0), &Dataset, 1, 1, Key);
    let step = "wrappers::train_step<wrappers::Net, wrappers::State>";
    assert_eq!(called, Ok(format!("{step}, recorded in wrappers")));
}

mod wrapped {
    use super::{
        Batch, BatchLog, BatchMetrics, Dataset, Key, Metrics, Module, Net, Result, State, Train,
        jit, permutation,
    };

    fn train_step(
        model: &impl Module,
        state: &mut impl Train,
        batch: &Batch,
    ) -> Result<BatchMetrics> {
        super::train_step(model, state, batch)
    }

    train_epoch!();

    #[test]
    fn a_step_that_wraps_the_tutorials_has_another() {
        let called = train_epoch(&Net, &mut State(1.0), &Dataset, 1, 1, Key);
        let step = "wrappers::wrapped::train_step<wrappers::Net, wrappers::State>";
        assert_eq!(called, Ok(format!("{step}, recorded in wrappers")));
    }
}
