//! Optimizers: sequences computed by hand, and rejected arguments.

mod common;

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};
use candle_nn::Optimizer as CandleOptimizer;
use candle_nn::optim::SGD;
use linen::{Adam, AdamW, Error, Gradients, Momentum, Optimizer, Params, Rule, value_and_grad};

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

fn momentum(beta: f64) -> Momentum {
    Momentum { beta, ..Momentum::default() }
}

/// One of every kind.
fn rules() -> [Rule; 4] {
    [
        Momentum::default().into(),
        Momentum { beta: 0.7 / 0.8, nesterov: true }.into(),
        Adam::default().into(),
        AdamW { weight_decay: 0.1, ..AdamW::default() }.into(),
    ]
}

#[test]
fn momentum_follows_the_sequence_computed_by_hand() {
    let mut optimizer = Optimizer::new(&params(1.0), 0.5, momentum(0.5)).unwrap();
    // m = 0.5 m + g;  p = p - 0.5 m
    for (g, m, p) in [(2.0, 2.0, 0.0), (1.0, 2.0, -1.0), (-3.0, -2.0, 0.0), (0.0, -1.0, 0.5)] {
        optimizer.apply_gradient(gradient(g)).unwrap();
        assert_eq!(value(&optimizer.moments()["momentum"]), m);
        assert_eq!(value(optimizer.target()), p);
    }
    assert_eq!(optimizer.step_count(), 4);
}

#[test]
fn nesterov_steps_along_the_next_momentum() {
    let rule = Momentum { beta: 0.5, nesterov: true };
    let mut optimizer = Optimizer::new(&params(1.0), 0.5, rule).unwrap();
    // m = 0.5 m + g;  p = p - 0.5 (0.5 m + g)
    for (g, m, p) in [(2.0, 2.0, -0.5), (1.0, 2.0, -1.5), (-3.0, -2.0, 0.5)] {
        optimizer.apply_gradient(gradient(g)).unwrap();
        assert_eq!(value(&optimizer.moments()["momentum"]), m);
        assert_eq!(value(optimizer.target()), p);
    }
}

#[test]
fn the_first_step_of_adam_is_the_learning_rate_whatever_the_gradient() {
    for g in [1e-3, -1.0, 1e6] {
        let mut optimizer = Optimizer::new(&params(1.0), 0.25, Adam::default()).unwrap();
        optimizer.apply_gradient(gradient(g)).unwrap();
        let step = 1.0 - value(optimizer.target());
        assert!((step - 0.25 * g.signum()).abs() < 1e-5, "{g}: {step}");
    }
}

#[test]
fn weight_decay_shrinks_a_parameter_without_a_gradient() {
    let rule = AdamW { weight_decay: 0.5, ..AdamW::default() };
    let mut optimizer = Optimizer::new(&params(2.0), 0.25, rule).unwrap();
    optimizer.apply_gradient(gradient(0.0)).unwrap();
    assert_eq!(value(optimizer.target()), 2.0 - 0.25 * 0.5 * 2.0);
}

#[test]
fn the_learning_rate_can_change_between_steps() {
    let mut optimizer = Optimizer::new(&params(1.0), 0.5, momentum(0.5)).unwrap();
    optimizer.apply_gradient(gradient(2.0)).unwrap(); // m = 2, p = 0
    optimizer.set_learning_rate(0.25).unwrap();
    for bad in [f64::NAN, f64::INFINITY, -0.1] {
        assert!(matches!(optimizer.set_learning_rate(bad), Err(Error::Hyperparameter { .. })));
    }
    optimizer.apply_gradient(gradient(1.0)).unwrap(); // m = 2, p = 0 - 0.25 · 2
    assert_eq!((value(&optimizer.moments()["momentum"]), value(optimizer.target())), (2.0, -0.5));
}

#[test]
fn the_initial_parameters_stay_unchanged_and_so_does_a_copy() {
    for rule in rules() {
        let initial = params(1.0);
        let mut optimizer = Optimizer::new(&initial, 0.1, rule).unwrap();
        let copy = optimizer.copy().unwrap();
        optimizer.apply_gradient(gradient(1.0)).unwrap();
        assert_eq!((value(&initial), value(copy.target())), (1.0, 1.0));
        assert!(copy.moments().values().all(|moment| value(moment) == 0.0));
        assert_eq!((copy.rule(), copy.step_count()), (rule, 0));
        assert_ne!(value(optimizer.target()), 1.0);
    }
}

#[test]
fn restored_parts_go_on_where_they_were() {
    for rule in rules() {
        let mut optimizer = Optimizer::new(&params(1.0), 0.1, rule).unwrap();
        optimizer.apply_gradient(gradient(1.0)).unwrap();
        let moments = optimizer.moments().iter().map(|(&name, moment)| (name, moment.copy()));
        let moments = moments.map(|(name, moment)| (name, moment.unwrap())).collect();
        let target = optimizer.target().copy().unwrap();
        let mut restored = Optimizer::from_parts(target, 0.1, rule, 1, moments).unwrap();
        for optimizer in [&mut optimizer, &mut restored] {
            optimizer.apply_gradient(gradient(-2.0)).unwrap();
        }
        assert_eq!(value(optimizer.target()), value(restored.target()));
    }
}

#[test]
fn moments_that_are_not_the_rules_or_not_like_the_parameters_are_refused() {
    let restore = |moments: Vec<(&'static str, Params)>| {
        let moments = BTreeMap::from_iter(moments);
        Optimizer::from_parts(params(1.0), 0.1, Adam::default(), 1, moments).unwrap_err()
    };
    let error = restore(vec![("momentum", params(0.0))]);
    assert!(matches!(&error, Error::Moments { .. }), "{error:?}");
    let message = "keeps the moments [first_moment, second_moment], but those given are [momentum]";
    assert!(error.to_string().contains(message), "{error}");

    let with_second =
        |second| restore(vec![("first_moment", params(0.0)), ("second_moment", second)]);
    let other = |tensor: Tensor| -> Params { vec![("p".to_owned(), tensor)].try_into().unwrap() };
    let missing = with_second(Params::default());
    assert!(matches!(&missing, Error::MissingParam { path, .. } if path == "p"), "{missing:?}");
    let shape = with_second(other(Tensor::zeros(2, DType::F32, &device()).unwrap()));
    let message = "second_moment: expected shape [], that of \"p\", found [2]";
    assert_eq!(shape.to_string(), message);
    let dtype = with_second(other(Tensor::new(0u32, &device()).unwrap()));
    let message = "second_moment: expected elements of type f32, found u32";
    assert_eq!(dtype.to_string(), message);
}

#[test]
fn a_missing_gradient_is_rejected_and_changes_nothing() {
    let mut optimizer = Optimizer::new(&params(1.0), 0.1, momentum(0.9)).unwrap();
    let error = optimizer.apply_gradient(Gradients::default()).unwrap_err();
    assert!(matches!(error, Error::NoGradient(path) if path == "p"));
    assert_eq!((value(optimizer.target()), optimizer.step_count()), (1.0, 0));
}

/// The parameter would be locked twice, and would change while it is read.
#[test]
fn a_gradient_that_is_a_parameter_is_no_deadlock() {
    let [a, b] =
        ["a", "b"].map(|path| (path.to_owned(), Tensor::new(&[1f32, 2.0], &device()).unwrap()));
    let params = Params::try_from(vec![a, b]).unwrap();
    let mut optimizer = Optimizer::new(&params, 0.5, momentum(0.0)).unwrap();
    let own = |path: &str| optimizer.target().get(path).unwrap().as_tensor().clone();
    let gradients = [("a", own("a")), ("b", own("a"))];
    let gradients = gradients.map(|(path, tensor)| (path.to_owned(), tensor)).into_iter().collect();
    optimizer.apply_gradient(gradients).unwrap();
    for (path, var) in optimizer.target().iter() {
        assert_eq!(var.to_vec1::<f32>().unwrap(), [0.5, 1.0], "{path}");
    }
}

#[test]
fn out_of_range_hyperparameters_are_rejected_by_name() {
    let rejected = |name: &str, learning_rate: f64, rule: Rule| {
        let error = Optimizer::new(&params(1.0), learning_rate, rule).unwrap_err();
        assert!(error.to_string().starts_with(&format!("{name} = ")), "{name}: {error}");
    };
    for bad in [f64::NAN, f64::INFINITY, -0.1] {
        rejected("learning_rate", bad, momentum(0.9).into());
        rejected("weight_decay", 0.1, AdamW { weight_decay: bad, ..AdamW::default() }.into());
    }
    for bad in [f64::NAN, f64::INFINITY, -0.1, 1.0] {
        rejected("beta", 0.1, momentum(bad).into());
        rejected("beta1", 0.1, Adam { beta1: bad, ..Adam::default() }.into());
        rejected("beta2", 0.1, Adam { beta2: bad, ..Adam::default() }.into());
        rejected("beta1", 0.1, AdamW { beta1: bad, ..AdamW::default() }.into());
        rejected("beta2", 0.1, AdamW { beta2: bad, ..AdamW::default() }.into());
    }
    for bad in [f64::NAN, f64::INFINITY, -0.1, 0.0, 1e-39] {
        rejected("epsilon", 0.1, Adam { epsilon: bad, ..Adam::default() }.into());
        rejected("epsilon", 0.1, AdamW { epsilon: bad, ..AdamW::default() }.into());
    }
}

#[test]
fn the_default_epsilon_of_adam_is_refused_where_it_would_be_zero() {
    let half = Tensor::zeros(3, DType::F16, &device()).unwrap();
    let half = Params::try_from(vec![("p".to_owned(), half)]).unwrap();
    for rule in [Rule::from(Adam::default()), AdamW::default().into()] {
        let error = Optimizer::new(&half, 0.1, rule).unwrap_err().to_string();
        assert!(error.starts_with("epsilon = ") && error.contains("f16"), "{error}");
    }
    assert!(Optimizer::new(&half, 0.1, Adam { epsilon: 1e-4, ..Adam::default() }).is_ok());
    assert!(Optimizer::new(&half, 0.1, momentum(0.9)).is_ok());
}

#[test]
fn there_must_be_parameters_and_they_must_be_floats() {
    for rule in rules() {
        assert!(matches!(Optimizer::new(&Params::default(), 0.1, rule), Err(Error::NoParams)));
        let integer = vec![("p".to_owned(), Tensor::new(1u32, &device()).unwrap())];
        let integer = Params::try_from(integer).unwrap();
        let error = Optimizer::new(&integer, 0.1, rule).unwrap_err();
        assert!(matches!(error, Error::DType { what: "parameter", .. }), "{error:?}");
    }
}

#[test]
fn momentum_decays_to_zero_not_to_a_subnormal() {
    if !device().is_cpu() {
        return; // only the CPU is slow there
    }
    let mut optimizer = Optimizer::new(&params(1.0), 0.1, Momentum::default()).unwrap();
    for g in std::iter::once(1e-30).chain([0.0; 400]) {
        optimizer.apply_gradient(gradient(g)).unwrap();
    }
    // Not 5.6e-45, which rounds to itself when multiplied by 0.9.
    assert_eq!(value(&optimizer.moments()["momentum"]), 0.0);
}

#[test]
fn parameters_work_with_candle_nn_optimizers() {
    let params = params(3.0);
    let loss = params.get("p").unwrap().sqr().unwrap();
    SGD::new(params.vars(), 0.25).unwrap().backward_step(&loss).unwrap();
    assert_eq!(value(&params), 1.5);
}

#[test]
fn candles_training_loop_steps_as_apply_gradient_does() {
    /// A loop that takes any optimizer of candle.
    fn train<O: CandleOptimizer>(var: &Var, optimizer: &mut O) {
        for step in 0..3 {
            optimizer.set_learning_rate(0.1 / f64::from(1 + step));
            optimizer.backward_step(&var.sqr().unwrap()).unwrap();
        }
    }
    for rule in rules() {
        let var = Var::new(3f32, &device()).unwrap();
        let idle = Var::new(1f32, &device()).unwrap();
        let vars = vec![var.clone(), idle.clone()];
        let mut optimizer = <Optimizer as CandleOptimizer>::new(vars, (1.0, rule)).unwrap();
        assert!(optimizer.target().paths().eq(["0000", "0001"]));
        train(&var, &mut optimizer);

        let mut expected = Optimizer::new(&params(3.0), 1.0, rule).unwrap();
        for step in 0..3 {
            expected.set_learning_rate(0.1 / f64::from(1 + step)).unwrap();
            let loss = |params: &Params| Ok((params.get("p").unwrap().sqr()?, ()));
            let (_, gradients) = value_and_grad(loss, expected.target()).unwrap();
            expected.apply_gradient(gradients).unwrap();
        }
        // The variables themselves are trained, but not those that the loss does not use.
        assert_eq!(var.to_scalar::<f32>().unwrap(), value(expected.target()), "{rule:?}");
        assert_eq!(idle.to_scalar::<f32>().unwrap(), 1.0);
    }
}

#[test]
fn a_bad_learning_rate_that_candles_trait_sets_is_refused_at_the_step() {
    let mut optimizer = Optimizer::new(&params(3.0), 0.1, Adam::default()).unwrap();
    CandleOptimizer::set_learning_rate(&mut optimizer, f64::NAN);
    let loss = optimizer.target().get("p").unwrap().sqr().unwrap();
    let error = Error::from(optimizer.backward_step(&loss).unwrap_err());
    assert!(matches!(error, Error::Hyperparameter { name: "learning_rate", .. }), "{error:?}");
    assert_eq!((value(optimizer.target()), optimizer.step_count()), (3.0, 0));
}
