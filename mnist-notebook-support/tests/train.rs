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

fn optimizer(model: &impl Module, learning_rate: f64) -> Momentum {
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
    let metrics = train_epoch(&Cnn, &mut optimizer, &train_ds, 32, 1, Key::new(1)).unwrap();
    assert!(metrics.accuracy > 0.75 && metrics.loss < 0.8, "{metrics:?}");
    let (loss, accuracy) = eval_model(&Cnn, optimizer.target(), &test_ds).unwrap();
    assert!(accuracy > 0.85 && loss < 0.5, "{loss} {accuracy}");
}

#[test]
fn evaluation_is_the_mean_over_all_examples_for_uneven_batches() {
    let (_, test_ds) = subset(1, 707);
    let optimizer = optimizer(&Cnn, 0.1);
    let whole = eval_step(&Cnn, optimizer.target(), &test_ds).unwrap().get().unwrap();
    let (loss, accuracy) = eval_model(&Cnn, optimizer.target(), &test_ds).unwrap();
    assert!((whole.loss - loss).abs() < 1e-5 && (whole.accuracy - accuracy).abs() < 1e-6);
}

#[test]
fn an_epoch_trains_on_every_full_batch_of_the_shuffle_once() {
    let (train_ds, _) = subset(100, 1);
    let mut by_epoch = optimizer(&Cnn, 0.1);
    let mean = train_epoch(&Cnn, &mut by_epoch, &train_ds, 32, 1, Key::new(3)).unwrap();

    let mut by_hand = optimizer(&Cnn, 0.1);
    let mut compiled = jit(Cnn, by_hand.target(), &[32, 28, 28, 1]).unwrap();
    let mut losses = Vec::new();
    for perm in permutation(Key::new(3), 100)[..96].chunks(32) {
        let batch = train_ds.batch(perm).unwrap();
        losses.push(compiled.train_step(&mut by_hand, &batch).unwrap().get().unwrap().loss);
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
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut optimizer = optimizer(&Cnn, 0.1);
            train_epoch(&Cnn, &mut optimizer, &train_ds, 32, 1, Key::new(5)).unwrap();
            // The uncompiled step, too.
            train_step(&Cnn, &mut optimizer, &train_ds.slice(0, 32).unwrap()).unwrap();
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
    let error = train_epoch(&Cnn, &mut optimizer, &train_ds, 32, 4, Key::new(5)).unwrap_err();
    let message = error.to_string();
    assert!(matches!(error.downcast_ref(), Some(Diverged { epoch: 4, .. })), "{message}");
    assert!(message.contains("at epoch 4, step "), "{message}");
}

/// A custom network with a branch, which cannot be compiled.
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
    let compiled = jit(Branched, optimizer.target(), &[32, 28, 28, 1]).unwrap();
    assert!(!compiled.is_compiled());
    assert!(compiled.to_string().contains("not a plain chain"), "{compiled}");
    train_epoch(&Branched, &mut optimizer, &train_ds, 32, 1, Key::new(1)).unwrap();
    let (_, accuracy) = eval_model(&Branched, optimizer.target(), &test_ds).unwrap();
    assert!(accuracy > 0.8, "{accuracy}");
}

#[test]
fn a_parameter_that_the_loss_does_not_depend_on_is_named() {
    struct Unused;
    impl Module for Unused {
        fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
            let x = flatten(x)?;
            nn.dense(3, &x)?;
            log_softmax(&nn.dense(10, &x)?)
        }
    }
    let (train_ds, _) = subset(32, 1);
    let mut optimizer = optimizer(&Unused, 0.1);
    let error = train_step(&Unused, &mut optimizer, &train_ds).unwrap_err();
    assert!(matches!(error, Error::NoGradient(path) if path == "Dense_0/bias"));
}
