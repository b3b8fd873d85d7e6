//! Momentum: a sequence computed by hand, and rejected arguments.

mod common;

use candle_core::Tensor;
use candle_nn::optim::{Optimizer, SGD};
use linen::{Error, Gradients, Momentum, Params};

use common::device;

fn params(value: f32) -> Params {
    vec![("p".to_owned(), Tensor::new(value, &device()).unwrap())].try_into().unwrap()
}

fn gradient(value: f32) -> Gradients {
    [("p".to_owned(), Tensor::new(value, &device()).unwrap())].into_iter().collect()
}

fn value(params: &Params) -> f32 {
    params.get("p").unwrap().to_scalar().unwrap()
}

#[test]
fn momentum_follows_the_sequence_computed_by_hand() {
    let mut optimizer = Momentum::new(&params(1.0), 0.5, 0.5).unwrap();
    // m = 0.5 m + g;  p = p - 0.5 m
    for (g, m, p) in [(2.0, 2.0, 0.0), (1.0, 2.0, -1.0), (-3.0, -2.0, 0.0), (0.0, -1.0, 0.5)] {
        optimizer.apply_gradient(&gradient(g)).unwrap();
        assert_eq!(value(optimizer.momentum()), m);
        assert_eq!(value(optimizer.target()), p);
    }
}

#[test]
fn the_learning_rate_can_change_between_steps() {
    let mut optimizer = Momentum::new(&params(1.0), 0.5, 0.5).unwrap();
    optimizer.apply_gradient(&gradient(2.0)).unwrap(); // m = 2, p = 0
    optimizer.set_learning_rate(0.25).unwrap();
    for bad in [f64::NAN, f64::INFINITY, -0.1] {
        assert!(matches!(optimizer.set_learning_rate(bad), Err(Error::Hyperparameter { .. })));
    }
    optimizer.apply_gradient(&gradient(1.0)).unwrap(); // m = 2, p = 0 - 0.25 · 2
    assert_eq!((value(optimizer.momentum()), value(optimizer.target())), (2.0, -0.5));
}

#[test]
fn the_initial_parameters_stay_unchanged() {
    let initial = params(1.0);
    let mut optimizer = Momentum::new(&initial, 0.1, 0.9).unwrap();
    optimizer.apply_gradient(&gradient(1.0)).unwrap();
    assert_eq!(value(&initial), 1.0);
    assert_ne!(value(optimizer.target()), 1.0);
}

#[test]
fn a_missing_gradient_is_rejected_and_changes_nothing() {
    let mut optimizer = Momentum::new(&params(1.0), 0.1, 0.9).unwrap();
    let error = optimizer.apply_gradient(&Gradients::default()).unwrap_err();
    assert!(matches!(error, Error::NoGradient(path) if path == "p"));
    assert_eq!(value(optimizer.target()), 1.0);
}

#[test]
fn out_of_range_hyperparameters_are_rejected_by_name() {
    for learning_rate in [f64::NAN, f64::INFINITY, -0.1] {
        let error = Momentum::new(&params(1.0), learning_rate, 0.9).unwrap_err();
        assert!(error.to_string().starts_with("learning_rate = "), "{error}");
    }
    for beta in [f64::NAN, f64::INFINITY, -0.1, 1.0] {
        let error = Momentum::new(&params(1.0), 0.1, beta).unwrap_err();
        assert!(error.to_string().starts_with("beta = "), "{error}");
    }
}

#[test]
fn an_optimizer_without_parameters_is_rejected() {
    assert!(matches!(Momentum::new(&Params::default(), 0.1, 0.9), Err(Error::NoParams)));
}

#[test]
fn parameters_work_with_candle_nn_optimizers() {
    let params = params(3.0);
    let loss = params.get("p").unwrap().sqr().unwrap();
    SGD::new(params.vars(), 0.25).unwrap().backward_step(&loss).unwrap();
    assert_eq!(value(&params), 1.5);
}
