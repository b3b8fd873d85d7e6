//! A network with batch norm, dropout and a branch trains with the same functions as the
//! tutorial's.

mod common;

use linen::{capture_intermediates, no_grad};
use mnist_notebook_support::Diverged;
use mnist_notebook_support::linen;
use mnist_notebook_support::prelude::*;

use common::device;

struct Net;

impl Module for Net {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = nn.conv(8, (3, 3), x)?; //                       [B, 28, 28, 8]
        let x = relu(&nn.batch_norm(&x)?)?;
        let x = max_pool(&x, (4, 4))?; //                        [B, 7, 7, 8]
        let branch = nn.conv(8, (3, 3), &x)?; //                 [B, 7, 7, 8]
        let branch = nn.batch_norm(&branch)?;
        let x = relu(&add(&x, &branch)?)?; //                    [B, 7, 7, 8]
        let x = nn.dropout(0.2, &x)?;
        log_softmax(&nn.dense(10, &flatten(&x)?)?) //            [B, 10]
    }
}

/// A part of MNIST, for training in seconds.
fn subset(train: usize, test: usize) -> (Dataset, Dataset) {
    let (train_ds, test_ds) = get_datasets(&device()).unwrap();
    (train_ds.slice(0, train).unwrap(), test_ds.slice(0, test).unwrap())
}

fn state(learning_rate: f64) -> TrainState {
    let sample = Tensor::ones((1, 28, 28, 1), DType::F32, &device()).unwrap();
    let variables = Net.init_variables(Key::new(0), &sample).unwrap();
    TrainState::new(&variables, learning_rate, Adam::default(), Key::new(1)).unwrap()
}

fn bits(x: &Tensor) -> Vec<u32> {
    let values = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

/// The parameters and the statistics.
fn values(state: &TrainState) -> Vec<u32> {
    let all = state.params().iter().chain(state.batch_stats.iter());
    all.flat_map(|(_, var)| bits(var)).collect()
}

#[test]
fn it_trains_by_the_epoch_and_evaluates() {
    let (train_ds, test_ds) = subset(3_200, 1_000);
    let mut state = state(0.01);
    let before = eval_model(&Net, &state, &test_ds).unwrap().loss;
    let first = train_epoch(&Net, &mut state, &train_ds, 32, 1, Key::new(1)).unwrap();
    let second = train_epoch(&Net, &mut state, &train_ds, 32, 2, Key::new(2)).unwrap();
    assert_eq!(state.optimizer.step_count(), 200);
    assert!(second.loss < first.loss, "{first:?} {second:?}");
    let evaluated @ Metrics { loss, accuracy } =
        eval_model(&Net, &state, &test_ds).unwrap();
    assert!(accuracy > 0.75 && loss < before / 2.0, "{before} {loss} {accuracy}");

    // Variables of a file give the same.
    let variables = state.variables().unwrap();
    assert_eq!(eval_model(&Net, &variables, &test_ds).unwrap(), evaluated);
}

#[test]
fn each_step_lowers_the_loss_on_one_batch() {
    let (batch, _) = subset(64, 1);
    let mut state = state(0.01);
    let losses = (0..20)
        .map(|_| train_step(&Net, &mut state, &batch).unwrap().get().unwrap().loss)
        .collect::<Vec<_>>();
    assert!(losses[19] < losses[0] / 3.0, "{losses:?}");
}

#[test]
fn evaluation_and_predictions_use_the_running_statistics_and_change_nothing() {
    let (train_ds, test_ds) = subset(320, 230);
    let mut state = state(0.01);
    train_epoch(&Net, &mut state, &train_ds, 32, 1, Key::new(1)).unwrap();
    let before = values(&state);

    // In its batches of 100.
    let log_probs = predict(&Net, &state, &test_ds).unwrap();
    for (start, len) in [(0, 100), (100, 100), (200, 30)] {
        let batch = test_ds.slice(start, len).unwrap();
        let evaluate = || no_grad(|| Net.apply_eval(&state, batch.image()));
        let expected = Jit::new().call(evaluate).unwrap();
        let found = log_probs.narrow(0, start, len).unwrap().contiguous().unwrap();
        assert_eq!(bits(&found), bits(&expected), "from {start}");
    }

    let expected = Net.apply_eval(&state, test_ds.image()).unwrap();
    let metrics = compute_metrics(&expected, test_ds.label()).unwrap().get().unwrap();
    let evaluated = disable_jit(|| eval_step(&Net, &state, &test_ds)).unwrap();
    assert_eq!(evaluated.get().unwrap(), metrics);
    assert!(!evaluated.loss.track_op());
    let Metrics { loss, accuracy } = eval_model(&Net, &state, &test_ds).unwrap();
    assert!(
        (loss - metrics.loss).abs() < 1e-5
            && (accuracy - metrics.accuracy).abs() < 1e-6
    );

    let (output, layers) =
        capture_intermediates(&Net, &state, test_ds.image()).unwrap();
    assert_eq!(bits(&output), bits(&expected));
    let names = layers.iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names[1..4], ["BatchNorm_0", "relu_0", "max_pool_0"]);
    assert_eq!(names[5..9], ["BatchNorm_1", "add_0", "relu_1", "Dropout_0"]);
    let table = tabulate(&Net, test_ds.slice(0, 1).unwrap().image()).unwrap();
    assert!(table.rows.iter().map(|row| &row.layer).eq(&names));
    assert_eq!(table.parameters, state.params().elem_count());
    assert_eq!(values(&state), before);
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
            let mut state = state(0.01);
            train_epoch(&Net, &mut state, &train_ds, 32, 1, Key::new(5)).unwrap();
            values(&state)
        })
    };
    let expected = run(1);
    for threads in [1, 2, 5] {
        assert_eq!(run(threads), expected, "{threads} threads");
    }
}

/// A step with the tutorial's loss, written out.
#[test]
fn the_functions_take_the_steps_of_the_tutorial() {
    let (train_ds, _) = subset(96, 1);
    let mut by_epoch = state(0.01);
    let mut by_hand = by_epoch.copy().unwrap();
    let mut jit = Jit::new();
    train_epoch(&Net, &mut by_epoch, &train_ds, 32, 1, Key::new(3)).unwrap();
    for perm in permutation(Key::new(3), 96).chunks(32) {
        let batch = train_ds.batch(perm).unwrap();
        let key = Key::new(1).fold_in(by_hand.optimizer.step_count() as u32);
        let loss_fn = |params: &Params| {
            let statistics = &by_hand.batch_stats;
            let (logits, updates) =
                Net.apply_train(params, statistics, key, batch.image())?;
            Ok((cross_entropy_loss(&logits, batch.label())?, updates))
        };
        let differentiate = || value_and_grad(loss_fn, by_hand.params()).unwrap();
        let ((_, updates), grad) = jit.call(differentiate);
        by_hand.optimizer.apply_gradient(grad).unwrap();
        by_hand.batch_stats = updates;
    }
    assert_eq!(values(&by_epoch), values(&by_hand));
}

#[test]
fn a_run_that_diverges_starts_again_with_a_smaller_learning_rate() {
    let (train_ds, test_ds) = subset(320, 100);
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(folder.path(), 3).unwrap();
    let mut run = TrainingRun::new(state(0.01), Key::new(4), 32);
    checkpoints.train_epoch(&Net, &mut run, &train_ds, &test_ds).unwrap();
    let before = values(&run.state);
    run.state.optimizer.set_learning_rate(1e38).unwrap();
    let error =
        checkpoints.train_epoch(&Net, &mut run, &train_ds, &test_ds).unwrap_err();
    let diverged = error.downcast_ref::<Diverged>().unwrap();
    let good = diverged.checkpoint.as_ref().unwrap();
    assert_eq!(values(&run.state), before);

    let mut resumed = checkpoints.load(good, &device()).unwrap();
    for run in [&mut run, &mut resumed] {
        run.state.optimizer.set_learning_rate(0.001).unwrap();
        run.train_epoch(&Net, &train_ds, &test_ds).unwrap();
    }
    assert_eq!(values(&run.state), values(&resumed.state));
    assert_eq!(run.history, resumed.history);
}

#[test]
fn an_optimizer_refuses_it_and_says_what_to_do() {
    let (batch, _) = subset(8, 1);
    let mut optimizer = state(0.01).optimizer;
    let train = disable_jit(|| train_step(&Net, &mut optimizer, &batch)).map(drop);
    let in_epoch =
        train_epoch(&Net, &mut optimizer, &batch, 4, 1, Key::new(0)).map(drop);
    let compiled =
        Jit::new().call(|| train_step(&Net, &mut optimizer, &batch)).map(drop);
    let in_run = TrainingRun::new(optimizer.copy().unwrap(), Key::new(0), 4)
        .train_epoch(&Net, &batch, &batch)
        .map(drop);
    let evaluated = eval_model(&Net, optimizer.target(), &batch).map(drop);
    let predicted = predict(&Net, optimizer.target(), &batch).map(drop);
    for result in [train, in_epoch, compiled, in_run, evaluated, predicted] {
        let message = result.unwrap_err().to_string();
        assert!(message.contains("BatchNorm_0 works differently"), "{message}");
        assert!(message.contains("train a `TrainState` of them"), "{message}");
    }
    assert_eq!(optimizer.step_count(), 0);
}

#[test]
fn statistics_that_are_missing_are_named() {
    let (batch, _) = subset(8, 1);
    let mut state = state(0.01);
    state.batch_stats = Params::default();
    let missing = "no parameter \"BatchNorm_0/mean\"";
    let trained = train_step(&Net, &mut state, &batch).unwrap_err().to_string();
    assert!(trained.contains(missing), "{trained}");
    let evaluated = eval_model(&Net, &state, &batch).unwrap_err().to_string();
    assert!(evaluated.contains(missing), "{evaluated}");
}

#[test]
fn a_step_of_ones_own_trains_an_epoch() {
    let (train_ds, test_ds) = subset(96, 50);
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(folder.path(), 1).unwrap();
    let mut run = TrainingRun::new(state(0.01), Key::new(4), 32);
    let mut rates = Vec::new();
    let step = |state: &mut TrainState, batch: &Batch| {
        state.optimizer.set_learning_rate(0.01 / (1.0 + rates.len() as f64))?;
        rates.push(state.optimizer.learning_rate());
        train_step(&Net, state, batch)
    };
    checkpoints.train_epoch_with(&Net, &mut run, &train_ds, &test_ds, step).unwrap();
    assert_eq!(rates, [0.01, 0.005, 0.01 / 3.0]);
    assert_eq!((run.epoch, run.history.len()), (1, 1));
    let saved = checkpoints.resume(&device()).unwrap().unwrap();
    assert_eq!(values(&saved.state), values(&run.state));
    assert_eq!(saved.state.optimizer.learning_rate(), 0.01 / 3.0);

    // After an error of the step, nothing has changed.
    let before = values(&run.state);
    let mut count = 0;
    let fails = |state: &mut TrainState, batch: &Batch| {
        count += 1;
        let wrong =
            Dataset::new(batch.image().narrow(1, 0, 9)?, batch.label().clone())?;
        train_step(&Net, state, if count < 3 { batch } else { &wrong })
    };
    assert!(run.train_epoch_with(&Net, &train_ds, &test_ds, fails).is_err());
    assert_eq!(count, 3);
    assert_eq!(values(&run.state), before);
}
