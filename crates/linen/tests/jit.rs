//! A step does the same within a [`Jit`] and without, whatever its reader writes into it.

mod common;

use candle_core::{Tensor, Var};
use linen::random::{bits, normal};
use linen::{
    AdamW, Error, Gradients, Jit, Key, Module, Momentum, Optimizer, Params, Result, Rule, Scope,
    avg_pool, flatten, gelu, log_softmax, no_grad, relu, value_and_grad,
};
use proptest::prelude::*;

use common::device;

const SHAPE: [usize; 4] = [5, 6, 6, 1];
const CLASSES: usize = 4;

struct Net;

impl Module for Net {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = avg_pool(&relu(&nn.conv(3, (3, 3), x)?)?, (2, 2))?;
        let x = relu(&nn.dense(6, &flatten(&x)?)?)?;
        log_softmax(&nn.dense(CLASSES, &x)?)
    }
}

/// Images and one-hot labels.
fn batch(seed: i64) -> (Tensor, Tensor) {
    let (image_key, label_key) = Key::new(seed).split();
    let labels = bits(label_key, SHAPE[0], &device()).unwrap().to_vec1::<u32>().unwrap();
    let onehot =
        |&bits: &u32| (0..CLASSES).map(move |class| (bits as usize % CLASSES == class) as u8);
    let onehot = labels.iter().flat_map(onehot).map(f32::from).collect::<Vec<_>>();
    let onehot = Tensor::from_vec(onehot, (SHAPE[0], CLASSES), &device()).unwrap();
    (normal(image_key, SHAPE.to_vec(), &device()).unwrap(), onehot)
}

fn params(seed: i64) -> Params {
    Net.init(Key::new(seed), &batch(0).0).unwrap()
}

fn optimizer(rule: impl Into<Rule>) -> Optimizer {
    Optimizer::new(&params(0), 0.1, rule).unwrap()
}

fn cross_entropy(log_probs: &Tensor, onehot: &Tensor) -> Result<Tensor> {
    Ok((onehot * log_probs)?.sum_all()?.neg()?.affine(1.0 / SHAPE[0] as f64, 0.0)?)
}

fn values(params: &Params) -> Vec<f32> {
    let flat = |var: &Var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    params.iter().flat_map(|(_, var)| flat(var)).collect()
}

/// What a reader changes about the step.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    Nothing,
    LabelSmoothing,
    ClassWeights,
    MeanSquaredError,
    /// The penalty uses the parameters directly.
    L2Penalty,
    /// Before the network, in the terms of the loss.
    L2PenaltyFirst,
    /// The network is evaluated twice in one loss.
    TwoViews,
    /// Another network's predictions are in the loss.
    Teacher,
    /// The loss does not use the network.
    OnlyPenalty,
    ClippedGradients,
    /// A look that changes nothing.
    GradientsLookedAt,
    /// They are used after the update, too.
    GradientsKept,
    /// Between gradient and update.
    WeightDecayByHand,
    /// Between gradient and update, another evaluation.
    EvaluatedBetween,
    /// A step within the loss.
    NestedGradient,
    /// Its loss uses what the outer one has evaluated.
    NestedGradientOfOuterResult,
    /// The outer loss uses what it has evaluated.
    NestedResult,
    SmallerRate,
    HalfTheBatch,
}

use Change::*;

const CHANGES: [Change; 19] = [
    Nothing,
    LabelSmoothing,
    ClassWeights,
    MeanSquaredError,
    L2Penalty,
    L2PenaltyFirst,
    TwoViews,
    Teacher,
    OnlyPenalty,
    ClippedGradients,
    GradientsLookedAt,
    GradientsKept,
    WeightDecayByHand,
    EvaluatedBetween,
    NestedGradient,
    NestedGradientOfOuterResult,
    NestedResult,
    SmallerRate,
    HalfTheBatch,
];

fn penalty(params: &Params) -> Result<Tensor> {
    let squares = params.iter().map(|(_, var)| Ok(var.sqr()?.sum_all()?));
    let squares = squares.collect::<Result<Vec<_>>>()?;
    Ok((Tensor::stack(&squares, 0)?.sum_all()? * 0.01)?)
}

/// The reader's step; returns the loss.
fn train_step(
    change: Change,
    optimizer: &mut Optimizer,
    teacher: &Params,
    (image, onehot): &(Tensor, Tensor),
) -> Result<f32> {
    let loss_fn = |params: &Params| {
        let first = if change == L2PenaltyFirst { Some(penalty(params)?) } else { None };
        let log_probs = if change == HalfTheBatch {
            let half = Net.apply(params, &image.narrow(0, 0, 2)?.contiguous()?)?;
            Tensor::cat(&[&half, &half.detach(), &half.detach().narrow(0, 0, 1)?], 0)?
        } else {
            Net.apply(params, image)?
        };
        let loss = match change {
            LabelSmoothing => cross_entropy(&log_probs, &onehot.affine(0.8, 0.05)?)?,
            ClassWeights => {
                let weights = Tensor::new(&[1f32, 2.0, 0.5, 3.0], image.device())?;
                cross_entropy(&log_probs, &onehot.broadcast_mul(&weights)?)?
            }
            MeanSquaredError => (log_probs.exp()? - onehot)?.sqr()?.mean_all()?,
            L2Penalty => (cross_entropy(&log_probs, onehot)? + penalty(params)?)?,
            L2PenaltyFirst => (cross_entropy(&log_probs, onehot)? + first.unwrap())?,
            TwoViews => {
                let other = Net.apply(params, &image.affine(-1.0, 0.0)?)?;
                let difference = (other.exp()? - log_probs.exp()?)?.sqr()?.sum_all()?;
                (cross_entropy(&log_probs, onehot)? + difference)?
            }
            Teacher => cross_entropy(&log_probs, &Net.apply(teacher, image)?.detach().exp()?)?,
            OnlyPenalty => penalty(params)?,
            NestedGradient => {
                let inner = |params: &Params| {
                    let log_probs = Net.apply(params, image)?;
                    Ok((cross_entropy(&log_probs, onehot)?, ()))
                };
                let (_, gradients) = value_and_grad(inner, params)?;
                let bias = gradients.get("Dense_1/bias")?.detach();
                (cross_entropy(&log_probs, onehot)? + log_probs.broadcast_mul(&bias)?.sum_all()?)?
            }
            NestedGradientOfOuterResult => {
                let inner = |_: &Params| Ok((cross_entropy(&log_probs, onehot)?, ()));
                let (_, gradients) = value_and_grad(inner, params)?;
                let bias = gradients.get("Dense_1/bias")?.detach();
                (cross_entropy(&log_probs, onehot)? + log_probs.broadcast_mul(&bias)?.sum_all()?)?
            }
            NestedResult => {
                let inner = |params: &Params| {
                    let log_probs = Net.apply(params, image)?;
                    Ok((cross_entropy(&log_probs, onehot)?, log_probs))
                };
                let ((_, inner_log_probs), _) = value_and_grad(inner, params)?;
                (cross_entropy(&log_probs, onehot)? + inner_log_probs.sqr()?.mean_all()?)?
            }
            _ => cross_entropy(&log_probs, onehot)?,
        };
        Ok((loss, log_probs))
    };
    let ((loss, _), gradients) = value_and_grad(loss_fn, optimizer.target())?;
    let gradients = match change {
        ClippedGradients => {
            let clip =
                |(path, grad): (&str, &Tensor)| Ok((path.to_owned(), grad.clamp(-0.01, 0.01)?));
            gradients.iter()?.map(clip).collect::<Result<Gradients>>()?
        }
        GradientsLookedAt => {
            assert!(gradients.get("Dense_1/bias")?.sqr()?.sum_all()?.to_scalar::<f32>()? > 0.0);
            gradients
        }
        _ => gradients,
    };
    let kept = (change == GradientsKept).then(|| gradients.clone());
    if change == WeightDecayByHand {
        for (_, var) in optimizer.target().iter() {
            var.set(&(var.as_tensor() * 0.9)?)?;
        }
    }
    if change == EvaluatedBetween {
        no_grad(|| Net.apply(optimizer.target(), &image.affine(2.0, 1.0)?))?;
    }
    optimizer.set_learning_rate(if change == SmallerRate { 0.01 } else { 0.1 })?;
    optimizer.apply_gradient(gradients)?;
    if let Some(kept) = kept {
        assert!(kept.get("Dense_1/bias")?.sqr()?.sum_all()?.to_scalar::<f32>()? > 0.0);
    }
    Ok(loss.to_scalar()?)
}

/// Three steps; the losses and the parameters after them.
fn train(
    change: Change,
    rule: impl Into<Rule>,
    mut run: impl FnMut(&mut dyn FnMut() -> Result<f32>) -> Result<f32>,
) -> (Vec<f32>, Vec<f32>) {
    let mut optimizer = optimizer(rule);
    let teacher = params(1);
    let losses = (0..3).map(|step| {
        run(&mut || train_step(change, &mut optimizer, &teacher, &batch(step))).unwrap()
    });
    (losses.collect(), values(optimizer.target()))
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn every_change_of_the_step_changes_the_training_alike_with_and_without_a_jit() {
    let (_, unchanged) = train(Nothing, Momentum::default(), |step| step());
    for change in CHANGES {
        let (plain_losses, plain) = train(change, Momentum::default(), |step| step());
        let mut jit = Jit::new();
        let (losses, compiled) = train(change, Momentum::default(), |step| jit.call(step));
        assert!(
            difference(&losses, &plain_losses) < 1e-5,
            "{change:?}: {losses:?} {plain_losses:?}"
        );
        assert!(difference(&compiled, &plain) < 1e-5, "{change:?}");
        let same = [Nothing, GradientsLookedAt, GradientsKept, EvaluatedBetween].contains(&change);
        assert_eq!(difference(&plain, &unchanged) < 1e-5, same, "{change:?}");
        assert!(
            jit.is_compiled() || change == OnlyPenalty || !device().is_cpu(),
            "{change:?}: {jit}"
        );
    }
}

#[test]
fn gradients_that_wait_too_long_are_an_error() {
    if !device().is_cpu() {
        return; // only there gradients wait
    }
    let optimizer = optimizer(Momentum::default());
    let weights = optimizer.target().get("Dense_1/kernel").unwrap().clone();
    let (image, onehot) = batch(0);
    let gradients = |jit: &mut Jit| {
        let loss_fn =
            |params: &Params| Ok((cross_entropy(&Net.apply(params, &image)?, &onehot)?, ()));
        jit.call(|| value_and_grad(loss_fn, optimizer.target())).unwrap().1
    };
    let mut jit = Jit::new();
    let found = gradients(&mut jit);
    weights.set(&weights.zeros_like().unwrap()).unwrap();
    let error = found.get("Dense_0/bias").unwrap_err();
    assert!(matches!(error, Error::StaleGradients), "{error:?}");

    // The network runs again in another thread.
    let found = gradients(&mut jit);
    std::thread::scope(|scope| scope.spawn(|| drop(gradients(&mut jit))).join()).unwrap();
    assert!(matches!(found.get("Dense_0/bias"), Err(Error::StaleGradients)));

    // Of two that wait for one network, the first is computed before the second.
    let first = gradients(&mut jit);
    let second = gradients(&mut jit);
    for (path, grad) in first.iter().unwrap() {
        let same = second.get(path).unwrap();
        assert_eq!(
            grad.sub(same).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap(),
            0.0
        );
    }
}

#[test]
fn networks_with_other_operations_run_as_they_are() {
    struct Frozen;
    impl Module for Frozen {
        fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
            let x = nn.dense(3, &flatten(x)?)?.detach();
            log_softmax(&nn.dense(CLASSES, &x)?)
        }
    }
    let (image, onehot) = batch(0);
    let params = Frozen.init(Key::new(0), &image).unwrap();
    let loss_fn =
        |params: &Params| Ok((cross_entropy(&Frozen.apply(params, &image)?, &onehot)?, ()));
    for is_evaluated_first in [false, true] {
        let mut jit = Jit::new();
        assert_eq!(jit.to_string(), "nothing has run yet");
        if is_evaluated_first {
            jit.call(|| no_grad(|| Frozen.apply(&params, &image))).unwrap();
        }
        let (_, gradients) = jit.call(|| value_and_grad(loss_fn, &params)).unwrap();
        assert!(!jit.is_compiled());
        let reason = "Frozen, not compiled for [5, 6, 6, 1]: it has operations that are not layers";
        assert!(jit.to_string().starts_with(reason), "{jit}");
        for (path, grad) in gradients.iter().unwrap() {
            let is_zero = grad.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() == 0.0;
            assert_eq!(is_zero, path.starts_with("Dense_0"), "{path}");
        }
    }
}

#[test]
fn a_network_within_a_network_keeps_its_own_parameters() {
    struct Pretrained(Params);
    impl Module for Pretrained {
        fn call(&self, _: &mut Scope, x: &Tensor) -> Result<Tensor> {
            Net.apply(&self.0, x)
        }
    }
    let (image, _) = batch(0);
    let expected = Net.apply(&params(0), &image).unwrap().to_vec2::<f32>().unwrap().concat();
    let others = params(1); // of the same names and shapes
    let found = Jit::new().call(|| no_grad(|| Pretrained(params(0)).apply(&others, &image)));
    let found = found.unwrap().to_vec2::<f32>().unwrap().concat();
    assert!(difference(&found, &expected) < 1e-6);
}

#[test]
fn layers_are_traced_within_a_jit_too() {
    let (image, _) = batch(0);
    let params = params(0);
    let trace = || linen::trace::trace(|| no_grad(|| Net.apply(&params, &image))).unwrap().1.len();
    assert_eq!((trace(), Jit::new().call(trace)), (8, 8));
}

#[test]
fn a_gradient_with_respect_to_the_images_is_candles() {
    let (image, onehot) = batch(0);
    let params = params(0);
    let image = Var::from_tensor(&image).unwrap();
    let saliency = || -> Result<Tensor> {
        let loss = cross_entropy(&Net.apply(&params, &image)?, &onehot)?;
        Ok(loss.backward()?.get(&image).unwrap().clone())
    };
    let plain = saliency().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let jitted =
        Jit::new().call(saliency).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(plain, jitted); // bit for bit
}

/// candle skips a parameter without a gradient, so nothing would be trained, without a word.
#[test]
fn candles_own_backward_reaches_the_parameters_within_a_jit() {
    use candle_nn::Optimizer as _;
    let (image, onehot) = batch(0);
    let mut optimizer = optimizer(AdamW::default());
    let before = values(optimizer.target());
    Jit::new().call(|| {
        let loss = cross_entropy(&Net.apply(optimizer.target(), &image).unwrap(), &onehot).unwrap();
        optimizer.backward_step(&loss).unwrap();
    });
    assert!(difference(&values(optimizer.target()), &before) > 1e-3);
}

#[test]
fn a_panic_keeps_the_plans_and_ends_the_jit() {
    let (image, _) = batch(0);
    let params = params(0);
    let mut jit = Jit::new();
    let panicking = std::panic::AssertUnwindSafe(|| {
        jit.call(|| {
            no_grad(|| Net.apply(&params, &image)).unwrap();
            panic!("as in a cell");
        })
    });
    assert!(std::panic::catch_unwind(panicking).is_err());
    assert!(jit.is_compiled() || !device().is_cpu());
    // Outside, networks run as they are again.
    assert!(Net.apply(&params, &image).unwrap().track_op());
}

#[test]
fn another_network_of_the_same_type_gets_a_plan_of_its_own() {
    struct Wide(usize);
    impl Module for Wide {
        fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
            log_softmax(&nn.dense(self.0, &flatten(x)?)?)
        }
    }
    let (image, _) = batch(0);
    let mut jit = Jit::new();
    for width in [3, 7, 3] {
        let params = Wide(width).init(Key::new(0), &image).unwrap();
        let expected = Wide(width).apply(&params, &image).unwrap().to_vec2::<f32>().unwrap();
        let found = jit.call(|| no_grad(|| Wide(width).apply(&params, &image))).unwrap();
        assert!(difference(&found.to_vec2::<f32>().unwrap().concat(), &expected.concat()) < 1e-6);
    }
}

#[test]
fn networks_that_only_look_alike_are_told_apart() {
    mod one {
        pub struct Same;
    }
    mod two {
        pub struct Same;
    }
    impl Module for one::Same {
        fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
            let x = relu(&nn.conv(2, (3, 3), x)?)?;
            log_softmax(&nn.dense(CLASSES, &flatten(&x)?)?)
        }
    }
    impl Module for two::Same {
        fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
            let x = nn.conv(2, (3, 3), x)?;
            log_softmax(&nn.dense(CLASSES, &flatten(&x)?)?)
        }
    }
    struct Optional {
        has_relu: bool,
    }
    impl Module for Optional {
        fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
            if self.has_relu { one::Same.call(nn, x) } else { two::Same.call(nn, x) }
        }
    }
    let (image, _) = batch(0);
    let params = one::Same.init(Key::new(0), &image).unwrap();
    let mut jit = Jit::new();
    let boxed: Box<dyn Module> = Box::new(two::Same);
    let mut model = Optional { has_relu: true };
    let mut check = |model: &dyn Module| {
        let expected = model.apply(&params, &image).unwrap().to_vec2::<f32>().unwrap().concat();
        let found = jit.call(|| no_grad(|| model.apply(&params, &image))).unwrap();
        let difference = difference(&found.to_vec2::<f32>().unwrap().concat(), &expected);
        assert!(difference < 1e-6, "{difference}");
    };
    for model in [&one::Same as &dyn Module, &two::Same, &boxed, &&one::Same, &model] {
        check(model);
    }
    model.has_relu = false;
    check(&model);
}

fn assert_close(what: &str, found: &Gradients, expected: &Gradients) {
    for (path, expected) in expected.iter().unwrap() {
        let flat = |grad: &Tensor| grad.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let difference = difference(&flat(found.get(path).unwrap()), &flat(expected));
        assert!(difference < 1e-5, "{what}, {path}: {difference}");
    }
}

/// Losses and gradients with a network of each kind in turn, each within one [`Jit`] and without.
fn assert_same_gradients<M: Module>(networks: impl Fn(usize) -> M) {
    let (image, onehot) = batch(0);
    let params = networks(0).init(Key::new(0), &image).unwrap();
    let mut jit = Jit::new();
    for index in [0, 0, 1, 1, 0, 2, 1] {
        let network = networks(index);
        let loss_fn = |params: &Params| {
            let output = network.apply(params, &image)?;
            Ok((cross_entropy(&output, &onehot)?, ()))
        };
        let (_, expected) = value_and_grad(loss_fn, &params).unwrap();
        let (_, found) = jit.call(|| value_and_grad(loss_fn, &params)).unwrap();
        assert_close(&format!("network {index}"), &found, &expected);
    }
}

#[test]
fn a_field_that_changes_only_the_graph_or_the_result_is_seen() {
    struct Freezing(bool);
    impl Module for Freezing {
        fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
            let x = relu(&nn.dense(6, &flatten(x)?)?)?;
            let x = if self.0 { x.detach() } else { x };
            log_softmax(&nn.dense(CLASSES, &x)?)
        }
    }
    assert_same_gradients(|index| Freezing(index == 1));

    struct Temperature(f64);
    impl Module for Temperature {
        fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
            let y = log_softmax(&nn.dense(CLASSES, &flatten(x)?)?)?;
            if self.0 == 1.0 { Ok(y) } else { Ok((y * self.0)?) }
        }
    }
    assert_same_gradients(|index| Temperature(1.0 + index as f64));

    struct Early(bool);
    impl Module for Early {
        fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
            let x = nn.dense(CLASSES, &flatten(x)?)?;
            let y = log_softmax(&x)?;
            Ok(if self.0 { x } else { y })
        }
    }
    assert_same_gradients(|index| Early(index == 1));
}

#[test]
fn closures_of_one_name_are_told_apart() {
    struct With<F>(F);
    impl<F: Fn(&Tensor) -> Result<Tensor>> Module for With<F> {
        fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
            let x = (self.0)(&nn.dense(6, &flatten(x)?)?)?;
            log_softmax(&nn.dense(CLASSES, &x)?)
        }
    }
    let networks: [Box<dyn Module>; 2] =
        [Box::new(With(|x: &Tensor| relu(x))), Box::new(With(|x: &Tensor| gelu(x)))];
    let name = |network: &dyn Module| network.name();
    assert_eq!(name(&*networks[0]), name(&*networks[1]));
    assert_same_gradients(|index| &networks[index % 2]);
}

#[test]
fn a_network_with_other_parameters_of_the_same_paths_adds_nothing() {
    let (image, onehot) = batch(0);
    let (outer, inner) = (params(1), params(2));
    let run = || {
        value_and_grad(
            |outer: &Params| {
                let teacher = Net.apply(outer, &image)?;
                let inner_loss = |inner: &Params| {
                    let student = Net.apply(inner, &image)?;
                    let difference = (student - &teacher)?.sqr()?.mean_all()?;
                    Ok((difference, ()))
                };
                let (_, gradients) = value_and_grad(inner_loss, &inner)?;
                Ok((cross_entropy(&teacher, &onehot)?, gradients))
            },
            &outer,
        )
    };
    let ((_, expected), expected_outer) = run().unwrap();
    let ((_, found), found_outer) = Jit::new().call(run).unwrap();
    assert_close("inner", &found, &expected);
    assert_close("outer", &found_outer, &expected_outer);
}

#[test]
fn gradients_can_be_looked_at_while_a_parameter_is_read() {
    let optimizer = optimizer(Momentum::default());
    let (image, onehot) = batch(0);
    let loss_fn = |params: &Params| Ok((cross_entropy(&Net.apply(params, &image)?, &onehot)?, ()));
    let (_, gradients) = Jit::new().call(|| value_and_grad(loss_fn, optimizer.target())).unwrap();
    let weights = optimizer.target().get("Dense_1/kernel").unwrap().clone();
    let reading = weights.storage_and_layout();
    assert_eq!(gradients.get("Dense_1/kernel").unwrap().dims(), [6, CLASSES]);
    drop(reading);
}

#[test]
fn a_jit_keeps_the_latest_plans_only() {
    let params = params(0);
    let mut jit = Jit::new();
    for batch in 1..=30 {
        let image = Tensor::zeros((batch, 6, 6, 1), candle_core::DType::F32, &device()).unwrap();
        jit.call(|| no_grad(|| Net.apply(&params, &image))).unwrap();
    }
    let plans = jit.to_string().matches("compiled for").count();
    assert!(plans <= 8, "{jit}");
    assert!(jit.to_string().contains("batches of 30") || !device().is_cpu(), "{jit}");
}

/// candle's trait has no names for the parameters.
#[test]
fn gradients_under_other_names_are_refused() {
    let params = params(0);
    let rule = (0.1, Momentum::default().into());
    let mut unnamed = <Optimizer as candle_nn::Optimizer>::new(params.vars(), rule).unwrap();
    let (image, onehot) = batch(0);
    let loss_fn = |params: &Params| Ok((cross_entropy(&Net.apply(params, &image)?, &onehot)?, ()));
    let (_, gradients) = Jit::new().call(|| value_and_grad(loss_fn, &params)).unwrap();
    let error = unnamed.apply_gradient(gradients).unwrap_err();
    assert!(matches!(error, Error::NoGradient(_)), "{error:?}");
    assert_eq!(unnamed.learning_rate(), 0.1);
}

fn rule() -> impl Strategy<Value = Rule> {
    let share = || prop_oneof![Just(0.0), 0.0..1.0, Just(1.0 - 1e-9)];
    let adam = || (share(), share(), prop_oneof![Just(f64::from(f32::MIN_POSITIVE)), 1e-9..1.0]);
    prop_oneof![
        (share(), any::<bool>()).prop_map(|(beta, nesterov)| Momentum { beta, nesterov }.into()),
        adam().prop_map(|(beta1, beta2, epsilon)| { linen::Adam { beta1, beta2, epsilon }.into() }),
        (adam(), 0.0..1.0).prop_map(|((beta1, beta2, epsilon), weight_decay)| {
            AdamW { beta1, beta2, epsilon, weight_decay }.into()
        }),
    ]
}

fn all_bits(params: &Params) -> Vec<u32> {
    values(params).into_iter().map(f32::to_bits).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// An update that is fused into the backward pass, and one by gradients that were looked at.
    #[test]
    fn fused_updates_are_those_of_apply_gradient_bit_for_bit(
        rule in rule(),
        rates in prop::collection::vec(0.0..0.5, 3),
        seed in 0..1000i64,
    ) {
        let params = params(seed);
        let mut optimizers = [(); 2].map(|()| Optimizer::new(&params, 0.0, rule).unwrap());
        let mut jit = Jit::new();
        for (step, rate) in rates.into_iter().enumerate() {
            let (image, onehot) = batch(seed + step as i64);
            for (optimizer, is_looked_at) in optimizers.iter_mut().zip([false, true]) {
                optimizer.set_learning_rate(rate).unwrap();
                jit.call(|| {
                    let loss_fn = |params: &Params| {
                        Ok((cross_entropy(&Net.apply(params, &image)?, &onehot)?, ()))
                    };
                    let (_, gradients) = value_and_grad(loss_fn, optimizer.target())?;
                    if is_looked_at {
                        gradients.iter()?.for_each(drop);
                    }
                    optimizer.apply_gradient(gradients)
                })
                .unwrap();
            }
            let [fused, by_gradients] = &optimizers;
            prop_assert_eq!(all_bits(fused.target()), all_bits(by_gradients.target()));
            for (name, moment) in fused.moments() {
                let expected = all_bits(&by_gradients.moments()[name]);
                prop_assert_eq!(all_bits(moment), expected, "{}", name);
            }
            prop_assert_eq!(fused.step_count(), by_gradients.step_count());
        }
    }
}
