//! The compiled step gives the same results as autograd.

mod common;

use mnist_notebook_support::prelude::*;
use mnist_notebook_support::random::normal;

use common::device;

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference, relative to the largest entry.
fn relative_difference(found: &Tensor, expected: &Tensor) -> f32 {
    let (found, expected) = (values(found), values(expected));
    let largest = expected.iter().fold(0f32, |max, value| max.max(value.abs()));
    let pairs = found.iter().zip(&expected);
    let difference = pairs.fold(0f32, |max, (a, b)| max.max((a - b).abs()));
    if largest == 0.0 { difference } else { difference / largest }
}

/// Compares a compiled step with one through autograd, from the same state on the same batch.
///
/// With beta 0, the momentum after the step is the gradient.
fn assert_same_step(model: &impl Module, params: &Params, batch: &Batch) {
    let mut fast = create_optimizer(params, 0.1, 0.0).unwrap();
    let mut uncompiled = create_optimizer(params, 0.1, 0.0).unwrap();
    let mut jit = Jit::new();
    // On a GPU the two sum in different orders.
    let tolerance = if device().is_cpu() { 1e-5 } else { 1e-4 };
    let found =
        jit.call(|| train_step(model, &mut fast, batch)).unwrap().get().unwrap();
    // There are no kernels for Metal.
    assert!(jit.is_compiled() || device().is_metal(), "{jit}");
    let expected = disable_jit(|| train_step(model, &mut uncompiled, batch));
    let expected = expected.unwrap().get().unwrap();
    assert!((found.loss - expected.loss).abs() <= 1e-5 * expected.loss.abs().max(1e-3));
    assert_eq!(found.accuracy, expected.accuracy);
    let [momentum, same] =
        [&fast, &uncompiled].map(|optimizer| &optimizer.moments()["momentum"]);
    for ((path, found), (_, expected)) in momentum.iter().zip(same.iter()) {
        let difference = relative_difference(found, expected);
        assert!(difference <= tolerance, "{path}: {difference}");
    }
    let evaluated =
        jit.call(|| eval_step(model, params, batch)).unwrap().get().unwrap();
    assert!(
        (evaluated.loss - expected.loss).abs() <= 1e-5 * expected.loss.abs().max(1e-3)
    );
}

/// A network with random sizes.
#[derive(Clone, Copy, Debug)]
struct Random {
    convs: [(usize, (usize, usize), bool); 2],
    has_max_pool: bool,
    window: (usize, usize),
    hidden: usize,
    classes: usize,
}

impl Module for Random {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for (features, kernel_size, has_relu) in self.convs {
            x = nn.conv(features, kernel_size, &x)?;
            if has_relu {
                x = relu(&x)?;
            }
            x = if self.has_max_pool {
                max_pool(&x, self.window)?
            } else {
                avg_pool(&x, self.window)?
            };
        }
        let x = relu(&nn.dense(self.hidden, &flatten(&x)?)?)?;
        log_softmax(&nn.dense(self.classes, &x)?)
    }
}

/// A random number from `min` to `max`.
fn pick(key: Key, index: u32, min: usize, max: usize) -> usize {
    let [word, _] = key.fold_in(index).words();
    min + word as usize % (max - min + 1)
}

#[test]
fn compiled_gradients_equal_autograd_for_random_networks() {
    for case in 0..24 {
        let key = Key::new(1000 + case);
        let conv = |i| {
            let kernel_size = (pick(key, i, 1, 5), pick(key, i + 1, 1, 5));
            (pick(key, i + 2, 1, 70), kernel_size, pick(key, i + 3, 0, 2) > 0)
        };
        let model = Random {
            convs: [conv(0), conv(10)],
            has_max_pool: pick(key, 20, 0, 1) == 1,
            window: (pick(key, 21, 1, 3), pick(key, 22, 1, 2)),
            hidden: pick(key, 23, 1, 40),
            classes: pick(key, 24, 2, 11),
        };
        let batch = pick(key, 25, 1, 9);
        let shape =
            (batch, pick(key, 26, 9, 17), pick(key, 27, 4, 15), pick(key, 28, 1, 70));
        let image = normal(key, shape, &device()).unwrap();
        let labels: Vec<u32> = (0..batch)
            .map(|i| pick(key, 30 + i as u32, 0, model.classes - 1) as u32)
            .collect();
        let label = Tensor::from_vec(labels, batch, &device()).unwrap();
        let params = model.init(key, &image).unwrap();
        println!("{model:?} on {shape:?}");
        assert_same_step(&model, &params, &Dataset::new(image, label).unwrap());
    }
}

#[test]
fn steps_are_equal_from_twenty_states_of_a_training_run() {
    let (train_ds, _) = get_datasets(&device()).unwrap();
    let params = get_initial_params(&Cnn, Key::new(0), &device()).unwrap();
    let mut optimizer = create_optimizer(&params, 0.1, 0.9).unwrap();
    let mut jit = Jit::new();
    for (step, perm) in
        permutation(Key::new(1), 60_000).chunks(32).take(200).enumerate()
    {
        let batch = train_ds.batch(perm).unwrap();
        if step % 10 == 0 {
            assert_same_step(&Cnn, optimizer.target(), &batch);
        }
        jit.call(|| train_step(&Cnn, &mut optimizer, &batch)).unwrap();
    }
}

#[test]
fn two_hundred_steps_have_the_same_mean_loss() {
    let (train_ds, _) = get_datasets(&device()).unwrap();
    let params = get_initial_params(&Cnn, Key::new(2), &device()).unwrap();
    let mut fast = create_optimizer(&params, 0.1, 0.9).unwrap();
    let mut uncompiled = create_optimizer(&params, 0.1, 0.9).unwrap();
    let mut jit = Jit::new();
    let (mut fast_sum, mut uncompiled_sum) = (0.0, 0.0);
    for perm in permutation(Key::new(3), 60_000).chunks(32).take(200) {
        let batch = train_ds.batch(perm).unwrap();
        let metrics = jit.call(|| train_step(&Cnn, &mut fast, &batch)).unwrap();
        fast_sum += metrics.get().unwrap().loss;
        let metrics =
            disable_jit(|| train_step(&Cnn, &mut uncompiled, &batch)).unwrap();
        uncompiled_sum += metrics.get().unwrap().loss;
    }
    let difference = (fast_sum - uncompiled_sum).abs() / uncompiled_sum;
    assert!(difference < 0.05, "{difference}");
}

#[test]
fn batches_of_other_sizes_than_compiled_for_train_too() {
    let (train_ds, _) = get_datasets(&device()).unwrap();
    let params = get_initial_params(&Cnn, Key::new(0), &device()).unwrap();
    let mut optimizer = create_optimizer(&params, 0.1, 0.9).unwrap();
    let mut jit = Jit::new();
    for size in [1, 31, 40] {
        let batch = train_ds.slice(0, size).unwrap();
        let metrics = jit
            .call(|| train_step(&Cnn, &mut optimizer, &batch))
            .unwrap()
            .get()
            .unwrap();
        assert!(metrics.loss.is_finite());
    }
}

#[test]
fn the_plan_is_shown_layer_by_layer() {
    if device().is_metal() {
        return; // nothing is compiled for Metal
    }
    let params = get_initial_params(&Cnn, Key::new(0), &device()).unwrap();
    let images = Tensor::zeros((32, 28, 28, 1), DType::F32, &device()).unwrap();
    let mut jit = Jit::new();
    jit.call(|| linen::no_grad(|| Cnn.apply(&params, &images))).unwrap();
    assert_eq!(
        jit.to_string(),
        "Cnn, compiled for batches of 32:\n  \
         Conv_0 → relu → avg_pool\n  \
         Conv_1 → relu → avg_pool → flatten\n  \
         Dense_0 → relu\n  \
         Dense_1 → log_softmax"
    );
}

#[test]
fn an_out_of_range_label_is_an_error_and_changes_nothing() {
    let (train_ds, _) = get_datasets(&device()).unwrap();
    let params = get_initial_params(&Cnn, Key::new(0), &device()).unwrap();
    let mut optimizer = create_optimizer(&params, 0.1, 0.9).unwrap();
    let mut jit = Jit::new();
    let image = train_ds.image().narrow(0, 0, 2).unwrap();
    let batch =
        Dataset::new(image, Tensor::new(&[3u32, 10], &device()).unwrap()).unwrap();
    // On a GPU the error is returned when the metrics are fetched.
    let metrics = jit.call(|| train_step(&Cnn, &mut optimizer, &batch));
    let error = metrics.and_then(|metrics| metrics.get()).unwrap_err();
    assert!(matches!(error, Error::Label { label: 10, index: 1, num_classes: 10 }));
    for ((_, before), (_, after)) in params.iter().zip(optimizer.target().iter()) {
        assert_eq!(values(before), values(after));
    }
}

/// Two branches by candle's addition, which are not compiled.
#[derive(Clone, Copy)]
struct Branches;

impl Module for Branches {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = flatten(x)?;
        log_softmax(&(nn.dense(10, &x)? + nn.dense(10, &x)?)?)
    }
}

#[test]
fn predictions_are_the_networks_compiled_or_not() {
    fn check(model: &impl Module) {
        let (_, test_ds) = get_datasets(&device()).unwrap();
        let some = test_ds.slice(0, 250).unwrap(); // the last batch is not full
        let params = get_initial_params(model, Key::new(0), &device()).unwrap();
        let found = predict(model, &params, &some).unwrap();
        assert_eq!(found.dims(), [250, 10]);
        let expected = model.apply(&params, some.image()).unwrap();
        assert!(relative_difference(&found, &expected) < 1e-5);
    }
    check(&Cnn);
    check(&Branches);
}
