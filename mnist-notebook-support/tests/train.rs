//! Training learns, is deterministic, stops when it diverges, and works with any network.

mod common;

use mnist_notebook_support::Diverged;
use mnist_notebook_support::prelude::*;

use common::device;

/// A part of MNIST, for training in seconds.
fn subset(train: usize, test: usize) -> (Dataset, Dataset) {
    let (train_ds, test_ds) = get_datasets(&device()).unwrap();
    (train_ds.slice(0, train).unwrap(), test_ds.slice(0, test).unwrap())
}

fn optimizer(model: &impl Module, learning_rate: f64) -> Optimizer {
    let params = get_initial_params(model, Key::new(0), &device()).unwrap();
    create_optimizer(&params, learning_rate, 0.9).unwrap()
}

fn values(params: &Params) -> Vec<u32> {
    let flat = |var: &Tensor| var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    params.iter().flat_map(|(_, var)| flat(var)).map(f32::to_bits).collect()
}

/// Eight keys gave 90 to 94 %.
#[test]
fn one_epoch_on_a_tenth_of_the_images_reaches_85_percent() {
    let (train_ds, test_ds) = subset(6_000, 2_000);
    let mut optimizer = optimizer(&Cnn, 0.05);
    let metrics =
        train_epoch(&Cnn, &mut optimizer, &train_ds, 32, 1, Key::new(1)).unwrap();
    assert!(metrics.accuracy > 0.75 && metrics.loss < 0.8, "{metrics:?}");
    let Metrics { loss, accuracy } =
        eval_model(&Cnn, optimizer.target(), &test_ds).unwrap();
    assert!(accuracy > 0.85 && loss < 0.5, "{loss} {accuracy}");
}

#[test]
fn evaluation_is_the_mean_over_all_examples_for_uneven_batches() {
    let (_, test_ds) = subset(1, 707);
    let optimizer = optimizer(&Cnn, 0.1);
    let whole = eval_step(&Cnn, optimizer.target(), &test_ds).unwrap().get().unwrap();
    let Metrics { loss, accuracy } =
        eval_model(&Cnn, optimizer.target(), &test_ds).unwrap();
    assert!(
        (whole.loss - loss).abs() < 1e-5 && (whole.accuracy - accuracy).abs() < 1e-6
    );
}

#[test]
fn an_epoch_trains_on_every_full_batch_of_the_shuffle_once() {
    let (train_ds, _) = subset(100, 1);
    let mut by_epoch = optimizer(&Cnn, 0.1);
    let mean = train_epoch(&Cnn, &mut by_epoch, &train_ds, 32, 1, Key::new(3)).unwrap();

    let mut by_hand = optimizer(&Cnn, 0.1);
    let mut jit = Jit::new();
    let mut losses = Vec::new();
    for perm in permutation(Key::new(3), 100)[..96].chunks(32) {
        let batch = train_ds.batch(perm).unwrap();
        let metrics = jit.call(|| train_step(&Cnn, &mut by_hand, &batch));
        losses.push(metrics.unwrap().get().unwrap().loss);
    }
    assert_eq!(values(by_epoch.target()), values(by_hand.target()));
    assert!((mean.loss - losses.iter().sum::<f32>() / 3.0).abs() < 1e-6);
}

#[test]
fn training_is_deterministic_for_any_number_of_threads() {
    if !device().is_cpu() {
        return; // only the CPU uses threads
    }
    let (train_ds, _) = subset(320, 1);
    let run = |threads| {
        let pool =
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut optimizer = optimizer(&Cnn, 0.1);
            train_epoch(&Cnn, &mut optimizer, &train_ds, 32, 1, Key::new(5)).unwrap();
            // The uncompiled step, too.
            let batch = train_ds.slice(0, 32).unwrap();
            disable_jit(|| train_step(&Cnn, &mut optimizer, &batch)).unwrap();
            values(optimizer.target())
        })
    };
    let expected = run(1);
    for threads in [1, 2, 5] {
        assert_eq!(run(threads), expected, "{threads} threads");
    }
}

#[test]
fn diverging_training_stops_and_names_epoch_and_step() {
    let (train_ds, _) = subset(320, 1);
    let mut optimizer = optimizer(&Cnn, 1e30);
    let error =
        train_epoch(&Cnn, &mut optimizer, &train_ds, 32, 4, Key::new(5)).unwrap_err();
    let message = error.to_string();
    assert!(
        matches!(error.downcast_ref(), Some(Diverged { epoch: 4, .. })),
        "{message}"
    );
    assert!(message.contains("at epoch 4, step "), "{message}");
}

/// A custom network with a branch by candle's addition, which cannot be compiled.
struct Branched;

impl Module for Branched {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = max_pool(&relu(&nn.conv(8, (5, 5), x)?)?, (2, 2))?;
        let branch = relu(&nn.conv(8, (3, 3), &x)?)?;
        let x = avg_pool(&(x + branch)?, (2, 2))?;
        log_softmax(&nn.dense(10, &flatten(&x)?)?)
    }
}

#[test]
fn a_custom_network_trains_with_the_same_functions() {
    let (train_ds, test_ds) = subset(3_200, 1_000);
    let mut optimizer = optimizer(&Branched, 0.05);
    let mut jit = Jit::new();
    jit.call(|| eval_step(&Branched, optimizer.target(), &test_ds)).unwrap();
    assert!(!jit.is_compiled());
    assert!(jit.to_string().contains("not layers of this crate"), "{jit}");
    train_epoch(&Branched, &mut optimizer, &train_ds, 32, 1, Key::new(1)).unwrap();
    let accuracy =
        eval_model(&Branched, optimizer.target(), &test_ds).unwrap().accuracy;
    assert!(accuracy > 0.8, "{accuracy}");
}

#[test]
fn a_layer_that_the_network_detaches_stays_as_it_is() {
    struct Frozen;
    impl Module for Frozen {
        fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
            let features = relu(&nn.dense(30, &flatten(x)?)?)?.detach();
            log_softmax(&nn.dense(10, &features)?)
        }
    }
    let (train_ds, test_ds) = subset(320, 1);
    let mut optimizer = optimizer(&Frozen, 0.1);
    let before = optimizer.target().copy().unwrap();
    train_epoch(&Frozen, &mut optimizer, &train_ds, 32, 1, Key::new(1)).unwrap();
    eval_model(&Frozen, optimizer.target(), &test_ds).unwrap();
    for (path, var) in optimizer.target().iter() {
        let values =
            |var: &Tensor| var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let is_unchanged = values(var) == values(before.get(path).unwrap());
        assert_eq!(is_unchanged, path.starts_with("Dense_0"), "{path}");
    }
}

#[test]
fn networks_of_different_types_train_in_one_loop() {
    struct Linear;
    impl Module for Linear {
        fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
            log_softmax(&nn.dense(10, &flatten(x)?)?)
        }
    }
    struct Pair(Vec<Box<dyn Module>>);
    impl Module for Pair {
        fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
            Ok((nn.module(&self.0[0], x)? + nn.module(&self.0[1], x)?)?)
        }
    }
    let (train_ds, test_ds) = subset(64, 20);
    let boxed: Box<dyn Module> = Box::new(Linear);
    for model in [&Linear as &dyn Module, &Branched, &boxed] {
        let mut optimizer = optimizer(&model, 0.1);
        train_step(&model, &mut optimizer, &train_ds).unwrap();
        train_epoch(&model, &mut optimizer, &train_ds, 32, 1, Key::new(1)).unwrap();
        eval_model(&model, optimizer.target(), &test_ds).unwrap();
        predict(&model, optimizer.target(), &test_ds).unwrap();
    }
    let params = optimizer(&Pair(vec![boxed, Box::new(&Linear)]), 0.1);
    let paths = params
        .target()
        .paths()
        .filter(|path| path.ends_with("bias"))
        .collect::<Vec<_>>();
    assert_eq!(paths, ["Linear_0/Dense_0/bias", "Linear_1/Dense_0/bias"]);
}

#[test]
fn a_network_for_batches_of_one_size_trains_by_the_epoch() {
    struct Fixed32;
    impl Module for Fixed32 {
        fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
            log_softmax(&nn.dense(10, &x.reshape((32, 784))?)?)
        }
    }
    let (train_ds, _) = subset(64, 1);
    let mut optimizer = create_optimizer(
        &Fixed32.init(Key::new(0), train_ds.slice(0, 32).unwrap().image()).unwrap(),
        0.1,
        0.9,
    )
    .unwrap();
    train_epoch(&Fixed32, &mut optimizer, &train_ds, 32, 1, Key::new(1)).unwrap();
}

#[test]
fn evaluation_names_the_place_of_a_bad_label_in_the_dataset() {
    let (train_ds, _) = subset(300, 1);
    let mut labels = train_ds.label().to_vec1::<u32>().unwrap();
    labels[250] = 10;
    let labels = Tensor::from_vec(labels, 300, train_ds.label().device()).unwrap();
    let dataset = Dataset::new(train_ds.image().clone(), labels).unwrap();
    let optimizer = optimizer(&Branched, 0.1);
    for model in [&Cnn as &dyn Module, &Branched] {
        let params =
            get_initial_params(&model, Key::new(0), dataset.label().device()).unwrap();
        let error = eval_model(&model, &params, &dataset).unwrap_err();
        assert!(matches!(error, Error::Label { label: 10, index: 250, .. }), "{error}");
    }
    // Its good part is evaluated.
    eval_model(&Branched, optimizer.target(), &dataset.slice(0, 250).unwrap()).unwrap();
}

#[test]
fn evaluation_keeps_nothing_for_a_backward_pass() {
    let (_, test_ds) = subset(1, 20);
    let optimizer = optimizer(&Branched, 0.1);
    let metrics = eval_step(&Branched, optimizer.target(), &test_ds).unwrap();
    assert!(!metrics.loss.track_op());
    assert!(!predict(&Branched, optimizer.target(), &test_ds).unwrap().track_op());
}
