//! The tutorial's own step is recognized, and others are not.
//!
//! This file stands in for the crate that the attribute names, with types that only look like it.

#![allow(missing_docs)]

extern crate self as mnist_notebook_support;

use std::cell::RefCell;

use jit_macro::jit;

pub mod linen {
    /// Says that it was called.
    pub fn jitted<T>(f: impl FnOnce() -> T) -> T {
        crate::ASKED.with_borrow_mut(|asked| asked.push("jitted"));
        f()
    }
}

pub mod on_gpu {
    /// Says that it was asked, and leaves the step to the function.
    pub fn eval_step(
        _: &impl crate::Module,
        _: &impl crate::Evaluate,
        _: &crate::Batch,
        _: fn(&f32, f32) -> crate::Result<f32>,
    ) -> crate::Result<Option<f32>> {
        crate::ASKED.with_borrow_mut(|asked| asked.push("GPU"));
        Ok(None)
    }
}

thread_local! {
    static ASKED: RefCell<Vec<&'static str>> = RefCell::default();
}

type Result<T> = std::result::Result<T, String>;
type BatchMetrics = f32;

pub struct Batch;

impl Batch {
    fn image(&self) -> f32 {
        3.0
    }

    fn label(&self) -> f32 {
        1.0
    }
}

pub trait Evaluate {}

pub trait Module {
    fn evaluate(&self, _variables: &impl Evaluate, image: f32) -> Result<f32> {
        Ok(image * 2.0)
    }
}

struct Net;

impl Module for Net {}

struct Variables;

impl Evaluate for Variables {}

fn compute_metrics(logits: &f32, label: f32) -> Result<f32> {
    Ok(logits - label)
}

/// What a step returns, and who was asked for it.
fn run(step: impl FnOnce() -> Result<f32>) -> (Result<f32>, Vec<&'static str>) {
    ASKED.take();
    (step(), ASKED.take())
}

#[test]
fn the_tutorials_own_step_may_run_on_a_gpu_as_a_whole() {
    // The text of `mnist-notebook-support/src/train_step.rs`, on other lines.
    /// Its own words, such as fn step, change nothing.
    #[jit]
    pub fn eval_step(
        model: &impl Module,
        variables: &impl Evaluate,
        batch: &Batch,
    ) -> Result<BatchMetrics> {
        // A comment changes nothing.
        compute_metrics(&model.evaluate(variables, batch.image())?, batch.label())
    }
    assert_eq!(run(|| eval_step(&Net, &Variables, &Batch)), (Ok(5.0), vec!["GPU", "jitted"]));
}

#[test]
fn a_changed_step_runs_as_written() {
    #[jit]
    fn eval_step(
        model: &impl Module,
        variables: &impl Evaluate,
        batch: &Batch,
    ) -> Result<BatchMetrics> {
        compute_metrics(&(model.evaluate(variables, batch.image())? + 1.0), batch.label())
    }
    assert_eq!(run(|| eval_step(&Net, &Variables, &Batch)), (Ok(6.0), vec!["jitted"]));
}

#[test]
fn any_function_can_return_early() {
    #[jit]
    fn halved(x: f32) -> Result<f32> {
        if x < 0.0 {
            return Err("negative".into());
        }
        let half: f32 = "0.5".parse().map_err(|_| "no number")?;
        Ok(x * half)
    }
    assert_eq!(run(|| halved(3.0)), (Ok(1.5), vec!["jitted"]));
    assert_eq!(run(|| halved(-3.0)), (Err("negative".into()), vec!["jitted"]));
}
