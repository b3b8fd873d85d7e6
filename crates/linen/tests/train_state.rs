//! The state of a network with batch norm, dropout and a branch, in training and evaluation.

mod common;

use candle_core::{Device, Tensor};
use candle_nn::loss::nll;
use linen::random::normal;
use linen::{
    Adam, AdamW, Error, Evaluate, Key, Module, Momentum, Optimizer, Params, Result, Rule, Scope,
    Train, TrainState, Variables, add, capture_intermediates, flatten, log_softmax, relu,
    value_and_grad,
};

use common::device;

struct Net;

impl Module for Net {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = nn.conv(4, (3, 3), x)?;
        let x = relu(&nn.batch_norm(&x)?)?;
        let branch = nn.conv(4, (1, 1), &x)?;
        let branch = nn.batch_norm(&branch)?;
        let x = nn.dropout(0.5, &relu(&add(&x, &branch)?)?)?;
        log_softmax(&nn.dense(3, &flatten(&x)?)?)
    }
}

/// The same in training and in evaluation.
struct Plain;

impl Module for Plain {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = relu(&nn.conv(4, (3, 3), x)?)?;
        log_softmax(&nn.dense(3, &flatten(&x)?)?)
    }
}

const LAYERS: [&str; 11] = [
    "Conv_0",
    "BatchNorm_0",
    "relu_0",
    "Conv_1",
    "BatchNorm_1",
    "add_0",
    "relu_1",
    "Dropout_0",
    "flatten_0",
    "Dense_0",
    "log_softmax_0",
];

fn images() -> Tensor {
    normal(Key::new(1), (12, 6, 5, 2), &device()).unwrap()
}

fn labels() -> Tensor {
    Tensor::new(&[0u32, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2], &device()).unwrap()
}

fn variables() -> Variables {
    Net.init_variables(Key::new(0), &images()).unwrap()
}

fn state(rule: impl Into<Rule>) -> TrainState {
    TrainState::new(&variables(), 0.05, rule, Key::new(2)).unwrap()
}

/// The loss before a step.
fn step(model: &impl Module, state: &mut impl Train) -> Result<f32> {
    let loss_fn = |params: &Params| {
        let (log_probs, updates) = state.apply(model, params, &images())?;
        Ok((nll(&log_probs, &labels())?, updates))
    };
    let ((loss, updates), grad) = value_and_grad(loss_fn, state.params())?;
    state.apply_gradient(grad, updates)?;
    Ok(loss.to_scalar()?)
}

fn values(x: &Tensor) -> Vec<u32> {
    let values = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

/// Everything that a step changes.
fn content(state: &TrainState) -> (usize, Vec<(String, Vec<u32>)>) {
    let moments = state.optimizer.moments().values();
    let params = [state.params(), &state.batch_stats].into_iter().chain(moments);
    let named =
        params.flat_map(|params| params.iter().map(|(path, var)| (path.into(), values(var))));
    (state.optimizer.step_count(), named.collect())
}

#[test]
fn training_learns_and_is_deterministic() {
    let rules: [Rule; 3] =
        [Momentum::default().into(), Adam::default().into(), AdamW::default().into()];
    for rule in rules {
        let run = || {
            let mut state = state(rule);
            let losses = (0..30).map(|_| step(&Net, &mut state).unwrap()).collect::<Vec<_>>();
            (content(&state), losses)
        };
        let (trained, losses) = run();
        assert!(losses[29] < losses[0] / 2.0, "{rule:?}: {losses:?}");
        assert_eq!(trained.0, 30);
        assert_eq!((trained, losses), run());
    }
}

#[test]
fn each_step_has_a_dropout_key_of_its_own() {
    let mut state = state(Momentum::default());
    for number in 0..3 {
        let (found, _) = state.apply(&Net, state.params(), &images()).unwrap();
        let key = Key::new(2).fold_in(number);
        let (params, batch_stats) = (state.params(), &state.batch_stats);
        let (expected, _) = Net.apply_train(params, batch_stats, key, &images()).unwrap();
        assert_eq!(values(&found), values(&expected), "step {number}");
        step(&Net, &mut state).unwrap();
    }
}

#[test]
fn a_state_without_a_key_is_an_optimizer() {
    let params = Plain.init(Key::new(0), &images()).unwrap();
    let mut optimizer = Optimizer::new(&params, 0.05, Adam::default()).unwrap();
    let mut state = TrainState::from(optimizer.copy().unwrap());
    for _ in 0..3 {
        assert_eq!(step(&Plain, &mut state).unwrap(), step(&Plain, &mut optimizer).unwrap());
    }
    assert_eq!(content(&state), content(&optimizer.into()));
    assert!(state.batch_stats().is_none() && state.as_optimizer().is_some());
}

/// In training mode the network gives the same, as long as it has no batch norm and no dropout.
#[test]
fn a_key_and_statistics_change_nothing_for_a_network_without_use_for_them() {
    let params = Plain.init(Key::new(0), &images()).unwrap();
    let mut optimizer = Optimizer::new(&params, 0.05, Adam::default()).unwrap();
    let variables = Variables { params, ..Variables::default() };
    let mut state = TrainState::new(&variables, 0.05, Adam::default(), Key::new(2)).unwrap();
    for _ in 0..3 {
        assert_eq!(step(&Plain, &mut state).unwrap(), step(&Plain, &mut optimizer).unwrap());
    }
    assert_eq!(content(&state), content(&optimizer.into()));
    assert!(state.batch_stats().is_some_and(Params::is_empty) && state.as_optimizer().is_none());
}

#[test]
fn evaluation_uses_the_running_statistics() {
    let mut state = state(Momentum::default());
    let initial = values(&Net.apply_eval(&variables(), &images()).unwrap());
    assert_eq!(values(&Net.apply_eval(&state, &images()).unwrap()), initial);
    step(&Net, &mut state).unwrap();
    let evaluated = values(&Net.apply_eval(&state, &images()).unwrap());
    let variables = state.variables().unwrap();
    assert_eq!(values(&Net.apply_eval(&variables, &images()).unwrap()), evaluated);
    let with_old = Variables { batch_stats: self::variables().batch_stats, ..variables };
    assert_ne!(values(&Net.apply_eval(&with_old, &images()).unwrap()), evaluated);
    let first = images().narrow(0, 0, 1).unwrap();
    // An image's result does not depend on the others in the batch.
    assert_eq!(values(&Net.apply_eval(&state, &first).unwrap()), evaluated[..3]);
}

#[test]
fn the_layers_of_a_network_in_evaluation_mode_are_captured() {
    let mut state = state(Momentum::default());
    step(&Net, &mut state).unwrap();
    let (output, layers) = capture_intermediates(&Net, &state, &images()).unwrap();
    let names = layers.iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names, LAYERS);
    assert_eq!(values(&output), values(&Net.apply_eval(&state, &images()).unwrap()));
    assert_eq!(
        values(layers.get(LAYERS[7]).unwrap()),
        values(layers.get(LAYERS[6]).unwrap()),
        "dropout is off"
    );
    let variables = state.variables().unwrap();
    let (again, _) = capture_intermediates(&Net, &variables, &images()).unwrap();
    assert_eq!(values(&again), values(&output));
}

#[test]
fn copies_are_deep() {
    let variables = variables();
    let initial = content(&state(Momentum::default()));
    let mut state = TrainState::new(&variables, 0.05, Momentum::default(), Key::new(2)).unwrap();
    let (copy, copied) = (state.copy().unwrap(), state.variables().unwrap());
    step(&Net, &mut state).unwrap();
    assert_ne!(content(&state), initial);
    assert_eq!(content(&copy), initial);
    assert_eq!(copy.dropout_key, state.dropout_key);
    for variables in [variables, copied] {
        let again = TrainState::new(&variables, 0.05, Momentum::default(), Key::new(2)).unwrap();
        assert_eq!(content(&again), initial);
    }
}

#[test]
fn an_optimizer_refuses_a_network_with_batch_norm_and_says_what_to_do() {
    let mut optimizer = Optimizer::new(&variables().params, 0.05, Momentum::default()).unwrap();
    let before = optimizer.copy().unwrap();
    let error = step(&Net, &mut optimizer).unwrap_err();
    assert!(matches!(error, Error::Mode { .. }), "{error:?}");
    let message = error.to_string();
    assert!(message.contains("BatchNorm_0 works differently in training"), "{message}");
    assert!(
        message.contains("train a `TrainState` of them instead of an `Optimizer`"),
        "{message}"
    );
    assert_eq!(content(&optimizer.into()), content(&before.into()));
}

#[test]
fn statistics_of_another_network_are_refused_by_their_path() {
    let named = |path: &str, len| {
        let zeros = Tensor::zeros(len, candle_core::DType::F32, &device()).unwrap();
        (path.to_owned(), zeros)
    };
    let (mean, var) = ("BatchNorm_1/mean", "BatchNorm_1/var");
    let first = [named("BatchNorm_0/mean", 4), named("BatchNorm_0/var", 4)];
    let more = [named(mean, 4), named(var, 4), named("BatchNorm_2/mean", 4)];
    let cases: [(&[_], &str); 3] = [
        (&[], "no parameter \"BatchNorm_1/mean\""),
        (&[named(mean, 4), named(var, 5)], "[4], that of \"BatchNorm_1/var\""),
        (&more, "no parameter \"BatchNorm_2/mean\""),
    ];
    for (others, expected) in cases {
        let others = || Params::try_from([&first, others].concat()).unwrap();
        // As the result of a step.
        let mut state = state(Momentum::default());
        let before = content(&state);
        let loss_fn = |params: &Params| {
            let (log_probs, _) = state.apply(&Net, params, &images())?;
            Ok((nll(&log_probs, &labels())?, ()))
        };
        let (_, grad) = value_and_grad(loss_fn, state.params()).unwrap();
        let message = state.apply_gradient(grad, others()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert_eq!(content(&state), before);
        // From the start.
        state.batch_stats = others();
        let message = step(&Net, &mut state).unwrap_err().to_string();
        assert!(message.contains("BatchNorm_"), "{message}");
        assert_eq!(state.optimizer.step_count(), 0);
    }
    // Statistics of none.
    let params = Plain.init(Key::new(0), &images()).unwrap();
    let mut optimizer = Optimizer::new(&params, 0.05, Momentum::default()).unwrap();
    let grad = params.iter().map(|(path, var)| (path.to_owned(), var.as_tensor().clone()));
    let updates = variables().batch_stats;
    let error = Train::apply_gradient(&mut optimizer, grad.collect(), updates).unwrap_err();
    assert!(matches!(error, Error::MissingParam { path, .. } if path == "BatchNorm_0/mean"));
    assert_eq!(optimizer.step_count(), 0);
}

#[test]
fn statistics_of_another_type_or_device_are_refused() {
    let mut state = state(Momentum::default());
    let before = content(&state);
    let doubles = state.batch_stats.to_dtype(candle_core::DType::F64).unwrap();
    let grad = |state: &TrainState| {
        let grad = state.params().iter().map(|(path, var)| (path.to_owned(), var.copy().unwrap()));
        grad.collect()
    };
    let error = state.apply_gradient(grad(&state), doubles).unwrap_err();
    assert!(matches!(error, Error::DType { .. }), "{error:?}");
    if !device().is_cpu() {
        let elsewhere = state.batch_stats.to_device(&Device::Cpu).unwrap();
        let error = state.apply_gradient(grad(&state), elsewhere).unwrap_err();
        assert!(matches!(error, Error::Device { .. }), "{error:?}");
    }
    assert_eq!(content(&state), before);
}
