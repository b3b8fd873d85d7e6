//! The device under test gives the same results as the CPU. Each crate below tests its own part.
//!
//! Without a GPU the CPU is compared with itself; `--features cuda` or `--features metal` runs
//! these tests on a GPU.

mod common;

use mnist_notebook_support::linen::{Params, avg_pool, flatten, max_pool, relu};
use mnist_notebook_support::prelude::*;
use mnist_notebook_support::random::{normal, permutation};

use common::device;

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Asserts that the entries differ by at most `tolerance` times the largest entry.
fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let (found, expected) = (values(found), values(expected));
    let largest = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
    for (index, (a, b)) in found.iter().zip(&expected).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * largest,
            "{what}, entry {index}: {a} instead of {b}"
        );
    }
}

/// Initial parameters and a batch of real digits.
fn start(device: &Device) -> (Params, Batch) {
    let (train_ds, _) = get_datasets(device).unwrap();
    (
        get_initial_params(&Cnn, Key::new(0), device).unwrap(),
        train_ds.slice(0, 32).unwrap(),
    )
}

/// A network with other layers than the tutorial's.
struct Other;

impl Module for Other {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = max_pool(&relu(&nn.conv(5, (5, 4), x)?)?, (3, 2))?;
        let x = avg_pool(&nn.conv(7, (2, 3), &x)?, (2, 3))?;
        log_softmax(&nn.dense(10, &flatten(&x)?)?)
    }
}

#[test]
fn datasets_and_their_batches_are_the_same() {
    let (expected, expected_test) = get_datasets(&Device::Cpu).unwrap();
    let device = device();
    let (train_ds, test_ds) = get_datasets(&device).unwrap();
    let (found, expected) = (
        train_ds.batch(&[59_999, 0, 7]).unwrap(),
        expected.batch(&[59_999, 0, 7]).unwrap(),
    );
    assert_eq!(values(found.image()), values(expected.image()));
    assert_eq!(values(found.label()), values(expected.label()));
    assert_eq!(values(test_ds.label()), values(expected_test.label()));
}

#[test]
fn an_out_of_range_index_is_an_error_and_the_device_keeps_working() {
    let (train_ds, _) = get_datasets(&device()).unwrap();
    for index in [60_000, u32::MAX] {
        let error = train_ds.batch(&[0, index]).unwrap_err().to_string();
        let expected =
            format!("index {index} is not below the number of examples, 60000");
        assert_eq!(error, expected);
    }
    assert_eq!(values(train_ds.batch(&[0]).unwrap().label()), [5.0]);
}

#[test]
fn loss_and_metrics_are_the_same() {
    let device = device();
    let scores = normal(Key::new(1), (9, 10), &device).unwrap();
    let logits = log_softmax(&scores).unwrap();
    let labels = Tensor::new(&[1u32, 2, 3, 4, 5, 6, 7, 8, 9], &device).unwrap();
    let on_cpu = logits.to_device(&Device::Cpu).unwrap();
    let labels_on_cpu = labels.to_device(&Device::Cpu).unwrap();
    let found = compute_metrics(&logits, &labels).unwrap().get().unwrap();
    let expected = compute_metrics(&on_cpu, &labels_on_cpu).unwrap().get().unwrap();
    assert!((found.loss - expected.loss).abs() < 1e-5);
    assert_eq!(found.accuracy, expected.accuracy);
    let rows = onehot(&labels, 10).unwrap();
    assert_eq!(values(&rows), values(&onehot(&labels_on_cpu, 10).unwrap()));
}

#[test]
fn loss_and_gradients_agree_to_a_ten_thousandth_of_the_largest_entry() {
    fn gradients<M: Module>(model: &M, device: &Device) -> (Tensor, Gradients) {
        let (_, batch) = start(device);
        let params = get_initial_params(model, Key::new(0), device).unwrap();
        let loss_fn = |params: &Params| {
            let logits = model.apply(params, batch.image())?;
            Ok((cross_entropy_loss(&logits, batch.label())?, ()))
        };
        let ((loss, ()), gradients) = value_and_grad(loss_fn, &params).unwrap();
        (loss, gradients)
    }
    fn assert_agrees<M: Module>(model: &M, device: &Device) {
        let ((loss, found), (expected_loss, expected)) =
            (gradients(model, device), gradients(model, &Device::Cpu));
        assert_close("loss", &loss, &expected_loss, 1e-4);
        for ((path, found), (_, expected)) in
            found.iter().unwrap().zip(expected.iter().unwrap())
        {
            assert_close(path, found, expected, 1e-4);
        }
    }
    let device = device();
    assert_agrees(&Cnn, &device);
    assert_agrees(&Other, &device);
}

#[test]
fn an_out_of_range_label_is_the_same_error_everywhere() {
    let device = device();
    let (params, batch) = start(&device);
    let mut labels = batch.label().to_vec1::<u32>().unwrap();
    labels[3] = 10;
    let batch =
        Dataset::new(batch.image().clone(), Tensor::new(labels, &device).unwrap())
            .unwrap();
    let mut optimizer = create_optimizer(&params, 0.1, 0.9).unwrap();
    let mut jit = Jit::new();
    let fetch = |metrics: Result<BatchMetrics>| metrics?.get();
    for (what, result) in [
        ("train_step", fetch(disable_jit(|| train_step(&Cnn, &mut optimizer, &batch)))),
        ("eval_step", fetch(disable_jit(|| eval_step(&Cnn, &params, &batch)))),
        (
            "compiled train_step",
            fetch(jit.call(|| train_step(&Cnn, &mut optimizer, &batch))),
        ),
        ("compiled eval_step", fetch(jit.call(|| eval_step(&Cnn, &params, &batch)))),
        ("train_epoch", train_epoch(&Cnn, &mut optimizer, &batch, 32, 1, Key::new(0))),
    ] {
        let error = result.unwrap_err();
        let expected =
            matches!(error, Error::Label { label: 10, index: 3, num_classes: 10 });
        assert!(expected, "{what}: {error:?}");
    }
    let error = eval_model(&Cnn, &params, &batch).unwrap_err();
    assert!(
        matches!(error, Error::Label { label: 10, index: 3, num_classes: 10 }),
        "{error:?}"
    );
    for (path, var) in optimizer.target().iter() {
        assert_eq!(values(var), values(params.get(path).unwrap()), "{path}");
    }
}

#[test]
fn fetching_many_metrics_equals_fetching_each() {
    let (params, batch) = start(&device());
    let mut jit = Jit::new();
    let mut compiled =
        |image: &Batch| jit.call(|| eval_step(&Cnn, &params, image)).unwrap();
    let images: Vec<Batch> =
        (0..32).map(|index| batch.slice(index, 1).unwrap()).collect();
    let expected: Vec<Metrics> =
        (images.iter()).map(|image| compiled(image).get().unwrap()).collect();
    let many = (0..1200).map(|step| compiled(&images[step % 32]));
    let found = BatchMetrics::get_all(&many.collect::<Vec<_>>()).unwrap();
    assert_eq!(found.len(), 1200);
    for (step, found) in found.iter().enumerate() {
        assert_eq!(*found, expected[step % 32], "step {step}");
    }
}

#[test]
fn the_compiled_step_equals_autograd_on_the_cpu() {
    let device = device();
    let ((params, batch), (cpu_params, cpu_batch)) =
        (start(&device), start(&Device::Cpu));
    let mut jit = Jit::new();
    let mut optimizer = create_optimizer(&params, 0.1, 0.9).unwrap();
    let mut uncompiled = create_optimizer(&cpu_params, 0.1, 0.9).unwrap();
    for _ in 0..3 {
        let found = jit
            .call(|| train_step(&Cnn, &mut optimizer, &batch))
            .unwrap()
            .get()
            .unwrap();
        let expected = disable_jit(|| train_step(&Cnn, &mut uncompiled, &cpu_batch));
        let expected = expected.unwrap().get().unwrap();
        assert!((found.loss - expected.loss).abs() <= 1e-4 * expected.loss);
        assert_eq!(found.accuracy, expected.accuracy);
    }
    let [found, expected] =
        [&optimizer, &uncompiled].map(|from| &from.moments()["momentum"]);
    let pairs = found.iter().zip(expected.iter());
    for ((path, found), (_, expected)) in pairs {
        assert_close(path, found, expected, 1e-3);
    }
    let found = jit
        .call(|| eval_step(&Cnn, optimizer.target(), &batch))
        .unwrap()
        .get()
        .unwrap();
    // There are no kernels for Metal.
    assert!(jit.is_compiled() || device.is_metal(), "{jit}");
    let expected = disable_jit(|| eval_step(&Cnn, uncompiled.target(), &cpu_batch));
    let expected = expected.unwrap().get().unwrap();
    assert!((found.loss - expected.loss).abs() <= 1e-3 * expected.loss);
}

#[test]
fn other_batch_sizes_and_parameters_than_compiled_for_train_too() {
    let device = device();
    let (params, batch) = start(&device);
    let mut jit = Jit::new();
    for (size, rate) in [(8, 0.1), (8, 0.05), (5, 0.1), (32, 0.1), (1, 0.05), (8, 0.1)]
    {
        let mut optimizer = create_optimizer(&params, rate, 0.9).unwrap();
        let batch = batch.slice(0, size).unwrap();
        let before = jit
            .call(|| train_step(&Cnn, &mut optimizer, &batch))
            .unwrap()
            .get()
            .unwrap();
        let after = jit
            .call(|| eval_step(&Cnn, optimizer.target(), &batch))
            .unwrap()
            .get()
            .unwrap();
        assert!(after.loss < before.loss, "{size}: {before:?}, {after:?}");
    }
}

#[test]
fn an_epoch_and_its_evaluation_give_similar_results() {
    let run = |device: &Device| {
        let (train_ds, test_ds) = get_datasets(device).unwrap();
        let (params, _) = start(device);
        let mut optimizer = create_optimizer(&params, 0.1, 0.9).unwrap();
        let train_ds = train_ds.slice(0, 1600).unwrap();
        let trained =
            train_epoch(&Cnn, &mut optimizer, &train_ds, 32, 1, Key::new(1)).unwrap();
        let test_ds = test_ds.slice(0, 450).unwrap(); // the last batch is half full
        (trained.loss, eval_model(&Cnn, optimizer.target(), &test_ds).unwrap())
    };
    let (expected, Metrics { accuracy: expected_accuracy, .. }) = run(&Device::Cpu);
    let device = device();
    let (loss, Metrics { accuracy, .. }) = run(&device);
    assert!((loss - expected).abs() < 0.05 * expected, "{loss}, {expected}");
    assert!(
        (accuracy - expected_accuracy).abs() < 0.04,
        "{accuracy}, {expected_accuracy}"
    );
}

#[test]
fn an_epoch_takes_the_steps_of_a_loop() {
    let device = device();
    let (train_ds, _) = get_datasets(&device).unwrap();
    let train_ds = train_ds.slice(100, 330).unwrap(); // ten batches, and some images more
    let params = get_initial_params(&Cnn, Key::new(0), &device).unwrap();

    let mut in_a_loop = create_optimizer(&params, 0.1, 0.9).unwrap();
    let mut jit = Jit::new();
    for indices in permutation(Key::new(1), 330).chunks_exact(32) {
        let batch = train_ds.batch(indices).unwrap();
        jit.call(|| train_step(&Cnn, &mut in_a_loop, &batch)).unwrap();
    }

    let mut by_epoch = create_optimizer(&params, 0.1, 0.9).unwrap();
    train_epoch(&Cnn, &mut by_epoch, &train_ds, 32, 1, Key::new(1)).unwrap();
    assert_eq!(by_epoch.step_count(), 10);
    for (path, expected) in in_a_loop.target().iter() {
        let found = by_epoch.target().get(path).unwrap();
        assert_close(path, found, expected, 1e-5);
    }
}

#[test]
fn a_checkpoint_restores_the_parameters() {
    let device = device();
    let (params, _) = start(&device);
    let (train_ds, test_ds) = get_datasets(&device).unwrap();
    let (few, test) = (train_ds.slice(0, 64).unwrap(), test_ds.slice(0, 50).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(folder.path(), 2).unwrap();
    let optimizer = create_optimizer(&params, 0.1, 0.9).unwrap();
    let mut run = TrainingRun::new(optimizer, Key::new(1), 32);
    checkpoints.train_epoch(&Cnn, &mut run, &few, &test).unwrap();
    let resumed = checkpoints.resume(&device).unwrap().expect("one was saved");
    let pairs = resumed
        .state
        .optimizer
        .target()
        .iter()
        .zip(run.state.optimizer.target().iter());
    for ((path, found), (_, expected)) in pairs {
        assert_eq!(values(found), values(expected), "{path}");
    }
}

#[test]
fn a_gpu_reaches_the_tutorials_accuracy_in_ten_epochs() {
    let device = device();
    if device.is_cpu() {
        return;
    }
    let (train_ds, test_ds) = get_datasets(&device).unwrap();
    let (mut rng, init_rng) = Key::new(0).split();
    let params = get_initial_params(&Cnn, init_rng, &device).unwrap();
    let mut optimizer = create_optimizer(&params, 0.1, 0.9).unwrap();
    let accuracies: Vec<f32> = (1..=10)
        .map(|epoch| {
            let (next_rng, input_rng) = rng.split();
            rng = next_rng;
            train_epoch(&Cnn, &mut optimizer, &train_ds, 32, epoch, input_rng).unwrap();
            eval_model(&Cnn, optimizer.target(), &test_ds).unwrap().accuracy
        })
        .collect();
    let mean = accuracies[5..].iter().sum::<f32>() / 5.0;
    assert!(mean >= 0.987, "{accuracies:?}");
}
