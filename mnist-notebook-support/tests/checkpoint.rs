//! Resumed training equals uninterrupted training, and bad files are refused.

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};

use linen::Rule;
use mnist_notebook_support::CheckpointError;
use mnist_notebook_support::prelude::*;
use mnist_notebook_support::random::{bits, uniform};
use safetensors::SafeTensors;
use tempfile::TempDir;

use common::device;

/// A network that trains quickly.
struct Small;

impl Module for Small {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = avg_pool(&relu(&nn.conv(2, (3, 3), x)?)?, (2, 2))?;
        log_softmax(&nn.dense(10, &flatten(&x)?)?)
    }
}

/// A network with batch norm, dropout and a branch.
struct Steady;

impl Module for Steady {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = nn.conv(2, (3, 3), x)?;
        let x = avg_pool(&relu(&nn.batch_norm(&x)?)?, (2, 2))?;
        let x = add(&x, &nn.dropout(0.5, &x)?)?;
        log_softmax(&nn.dense(10, &flatten(&x)?)?)
    }
}

/// Random images with random labels.
fn dataset(seed: i64, len: usize) -> Dataset {
    let (image_rng, label_rng) = Key::new(seed).split();
    let image = uniform(image_rng, (len, 8, 8, 1), 0.0, 1.0, &device()).unwrap();
    let label = bits(label_rng, len, &device()).unwrap().to_vec1::<u32>().unwrap();
    let label = label.into_iter().map(|bits| bits % 10).collect();
    Dataset::new(image, Tensor::from_vec(label, len, &device()).unwrap()).unwrap()
}

/// One of every kind, with numbers that have no short decimal representation.
fn rules() -> [Rule; 4] {
    let (beta, beta1, beta2, epsilon) = (0.7 / 0.9, 0.8 / 0.9, 0.98 / 0.99, 1e-8 / 3.0);
    [
        Momentum { beta, nesterov: false }.into(),
        Momentum { beta, nesterov: true }.into(),
        Adam { beta1, beta2, epsilon }.into(),
        AdamW { beta1, beta2, epsilon, weight_decay: 0.1 / 3.0 }.into(),
    ]
}

fn initial_run() -> TrainingRun {
    run_with(rules()[0])
}

fn run_with(rule: Rule) -> TrainingRun {
    let (rng, init_rng) = Key::new(0).split();
    let params = Small.init(init_rng, dataset(1, 1).image()).unwrap();
    TrainingRun::new(Optimizer::new(&params, 0.1 / 3.0, rule).unwrap(), rng, 8)
}

fn steady_run_with(rule: Rule) -> TrainingRun {
    let (rng, init_rng) = Key::new(0).split();
    let (init_rng, dropout_rng) = init_rng.split();
    let variables = Steady.init_variables(init_rng, dataset(1, 1).image()).unwrap();
    TrainingRun::new(
        TrainState::new(&variables, 0.1 / 3.0, rule, dropout_rng).unwrap(),
        rng,
        8,
    )
}

fn train(checkpoints: &Checkpoints, run: &mut TrainingRun, epochs: usize) {
    train_network(&Small, checkpoints, run, epochs);
}

fn train_network(
    model: &impl Module,
    checkpoints: &Checkpoints,
    run: &mut TrainingRun,
    epochs: usize,
) {
    let (train_ds, test_ds) = (dataset(2, 50), dataset(3, 20));
    while run.epoch < epochs {
        checkpoints.train_epoch(model, run, &train_ds, &test_ds).unwrap();
    }
}

/// A folder with the checkpoints of some epochs.
fn trained(epochs: usize, keep: usize) -> (TempDir, Checkpoints, TrainingRun) {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(dir.path(), keep).unwrap();
    let mut run = initial_run();
    train(&checkpoints, &mut run, epochs);
    (dir, checkpoints, run)
}

fn values(params: &Params) -> Vec<(String, Vec<u32>)> {
    let bits = |var: &Tensor| {
        let values = var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    };
    params.iter().map(|(path, var)| (path.to_owned(), bits(var))).collect()
}

fn assert_same(a: &TrainingRun, b: &TrainingRun) {
    assert_eq!((a.rng, a.epoch, a.batch_size), (b.rng, b.epoch, b.batch_size));
    assert_eq!(a.history, b.history);
    let (a, b) = (&a.state, &b.state);
    assert_eq!(values(&a.batch_stats), values(&b.batch_stats));
    assert_eq!(a.dropout_key, b.dropout_key);
    let (a, b) = (&a.optimizer, &b.optimizer);
    assert_eq!(values(a.target()), values(b.target()));
    assert!(a.moments().keys().eq(b.moments().keys()));
    for (name, moment) in a.moments() {
        assert_eq!(values(moment), values(&b.moments()[name]), "{name}");
    }
    assert_eq!(a.learning_rate().to_bits(), b.learning_rate().to_bits());
    assert_eq!((a.rule(), a.step_count()), (b.rule(), b.step_count()));
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn file(dir: &TempDir, epoch: usize) -> PathBuf {
    dir.path().join(format!("epoch-{epoch:04}.safetensors"))
}

fn resume_error(checkpoints: &Checkpoints) -> String {
    let error = checkpoints.resume(&device()).unwrap_err();
    assert!(
        matches!(error.downcast_ref(), Some(CheckpointError::Damaged { .. })),
        "{error:?}"
    );
    error.to_string()
}

/// Reproducible random numbers below a bound.
fn random_below(bound: usize, count: usize) -> Vec<usize> {
    let numbers =
        bits(Key::new(9), count, &device()).unwrap().to_vec1::<u32>().unwrap();
    numbers.into_iter().map(|number| number as usize % bound).collect()
}

/// Prints a line even if the test passes: the test harness captures only `println!`.
fn report(kind: &str, refused: usize) {
    let mut out = std::io::stdout();
    writeln!(out, "{kind}: faults injected: {refused}, refused: {refused}, lost: 0")
        .unwrap();
}

#[test]
fn a_saved_run_is_restored_bit_for_bit() {
    let (_dir, checkpoints, run) = trained(2, 1);
    assert_eq!(run.history.len(), 2);
    let resumed = checkpoints.resume(&device()).unwrap().unwrap();
    assert_same(&run, &resumed);
}

#[test]
fn resumed_training_equals_uninterrupted_training() {
    for rule in rules() {
        assert_resumes(&Small, || run_with(rule));
        assert_resumes(&Steady, || steady_run_with(rule));
    }
}

/// Asserts that training goes on after two epochs as if nothing had interrupted it, also with
/// another learning rate.
fn assert_resumes(model: &impl Module, start: impl Fn() -> TrainingRun) {
    let [dir, other_dir] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let checkpoints = Checkpoints::new(dir.path(), 1).unwrap();
    let mut uninterrupted = start();
    train_network(model, &checkpoints, &mut uninterrupted, 2);
    let mut resumed = checkpoints.resume(&device()).unwrap().unwrap();
    assert_same(&uninterrupted, &resumed);
    let other = Checkpoints::new(other_dir.path(), 1).unwrap();
    for (checkpoints, run) in
        [(&other, &mut uninterrupted), (&checkpoints, &mut resumed)]
    {
        train_network(model, checkpoints, run, 3);
        run.state.optimizer.set_learning_rate(0.01).unwrap();
        train_network(model, checkpoints, run, 4);
    }
    assert_eq!(resumed.state.optimizer.step_count(), 4 * (50 / 8));
    assert_same(&uninterrupted, &resumed);
}

#[test]
fn the_tutorials_network_resumes_bit_for_bit() {
    let (train_ds, test_ds) = get_datasets(&device()).unwrap();
    let (train_ds, test_ds) =
        (train_ds.slice(0, 96).unwrap(), test_ds.slice(0, 50).unwrap());
    let (rng, init_rng) = Key::new(0).split();
    let params = get_initial_params(&Cnn, init_rng, &device()).unwrap();
    let mut run =
        TrainingRun::new(create_optimizer(&params, 0.1, 0.9).unwrap(), rng, 32);
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(dir.path(), 1).unwrap();
    checkpoints.train_epoch(&Cnn, &mut run, &train_ds, &test_ds).unwrap();
    let mut resumed = checkpoints.resume(&device()).unwrap().unwrap();
    run.train_epoch(&Cnn, &train_ds, &test_ds).unwrap();
    resumed.train_epoch(&Cnn, &train_ds, &test_ds).unwrap();
    assert_same(&run, &resumed);
}

#[test]
fn a_run_trains_the_tutorials_epoch() {
    let (train_ds, test_ds) = (dataset(2, 50), dataset(3, 20));
    let mut run = initial_run();
    run.train_epoch(&Small, &train_ds, &test_ds).unwrap();

    let other = initial_run();
    let (mut optimizer, (rng, input_rng)) = (other.state.optimizer, other.rng.split());
    let train =
        train_epoch(&Small, &mut optimizer, &train_ds, 8, 1, input_rng).unwrap();
    let test = eval_model(&Small, optimizer.target(), &test_ds).unwrap();
    assert_eq!(*run.history, [EpochMetrics { train, test }]);
    assert_eq!((run.rng, run.epoch), (rng, 1));
    assert_eq!(values(run.state.optimizer.target()), values(optimizer.target()));
}

#[test]
fn there_is_nothing_to_resume_before_the_first_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("created/on/demand");
    let checkpoints = Checkpoints::new(&folder, 3).unwrap();
    assert!(checkpoints.resume(&device()).unwrap().is_none());
    assert!(folder.is_dir());
}

#[test]
fn the_newest_checkpoints_are_kept() {
    let (dir, _, _) = trained(5, 2);
    assert_eq!(names(dir.path()), ["epoch-0004.safetensors", "epoch-0005.safetensors"]);
}

#[test]
fn other_files_stay_and_partial_files_of_a_killed_process_are_removed() {
    let (dir, checkpoints, mut run) = trained(1, 1);
    std::fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    let killed = ".partial-epoch-0002.safetensorsx3Fd";
    std::fs::write(dir.path().join(killed), "half a checkp").unwrap();
    // What something else is writing beside the checkpoints, and a folder of an unlucky name.
    std::fs::write(dir.path().join(".partial-best.safetensors9aBc"), "half").unwrap();
    std::fs::create_dir(dir.path().join(".partial-epoch-0007")).unwrap();
    train(&checkpoints, &mut run, 2);
    let others = [".partial-best.safetensors9aBc", ".partial-epoch-0007"];
    assert_eq!(
        names(dir.path()),
        [&others[..], &["epoch-0002.safetensors", "notes.txt"]].concat()
    );
}

#[test]
fn a_checkpoint_is_a_safetensors_file_with_readable_names() {
    let (dir, _, run) = trained(1, 1);
    let bytes = std::fs::read(file(&dir, 1)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = file.names();
    names.sort();
    let paths = ["Conv_0/bias", "Conv_0/kernel", "Dense_0/bias", "Dense_0/kernel"];
    let expected =
        ["momentum", "params"].map(|group| paths.map(|path| format!("{group}/{path}")));
    assert_eq!(names, expected.concat());
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let header = metadata.metadata().as_ref().unwrap();
    assert_eq!(header["epoch"], "1");
    assert_eq!(header["batch_size"], "8");
    assert_eq!(
        header["learning_rate"].parse(),
        Ok(run.state.optimizer.learning_rate())
    );
}

#[test]
fn a_checkpoint_holds_statistics_and_the_dropout_key() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(dir.path(), 1).unwrap();
    let mut run = steady_run_with(rules()[0]);
    train_network(&Steady, &checkpoints, &mut run, 1);
    let bytes = std::fs::read(file(&dir, 1)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mean = file.tensor("batch_stats/BatchNorm_0/mean").unwrap();
    let values = run
        .state
        .batch_stats
        .get("BatchNorm_0/mean")
        .unwrap()
        .to_vec1::<f32>()
        .unwrap();
    assert!(values.iter().all(|value| *value != 0.0), "{values:?}");
    assert_eq!(
        mean.data(),
        values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<_>>()
    );
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let [high, low] = run.state.dropout_key.unwrap().words();
    let header = metadata.metadata().as_ref().unwrap();
    assert_eq!(header["dropout_key"], format!("{high} {low}"));
}

#[test]
fn a_failed_epoch_leaves_the_statistics_as_they_were() {
    let mut run = steady_run_with(rules()[2]);
    let before = values(&run.state.batch_stats);
    let color = Tensor::zeros((1, 8, 8, 3), DType::F32, &device()).unwrap();
    let wrong = Dataset::new(color, Tensor::new(&[0u32], &device()).unwrap()).unwrap();
    run.train_epoch(&Steady, &dataset(2, 50), &wrong).unwrap_err();
    assert_eq!(values(&run.state.batch_stats), before);
    assert_eq!((run.state.optimizer.step_count(), run.epoch), (0, 0));
}

#[test]
fn saving_an_epoch_again_replaces_its_checkpoint() {
    let (dir, checkpoints, run) = trained(1, 1);
    let again = TrainingRun { batch_size: 16, ..run };
    checkpoints.save(&again).unwrap();
    assert_eq!(names(dir.path()), ["epoch-0001.safetensors"]);
    assert_eq!(checkpoints.resume(&device()).unwrap().unwrap().batch_size, 16);
}

#[test]
fn another_run_in_the_same_folder_is_refused() {
    let (dir, checkpoints, _) = trained(3, 3);
    let error = checkpoints.save(&initial_run()).unwrap_err();
    let is_later =
        matches!(error.downcast_ref(), Some(CheckpointError::Later { epoch: 0, .. }));
    assert!(is_later, "{error:?}");
    let message = error.to_string();
    assert!(message.contains("epoch-0003.safetensors"), "{message}");
    assert!(message.contains("its own folder"), "{message}");
    // Before it trains: the run is as it was. Even the first epoch of the other run stays.
    for epoch in [2, 3] {
        std::fs::remove_file(file(&dir, epoch)).unwrap();
    }
    let other = std::fs::read(file(&dir, 1)).unwrap();
    let mut run = initial_run();
    let before = values(run.state.optimizer.target());
    let data = dataset(2, 50);
    let error = checkpoints.train_epoch(&Small, &mut run, &data, &data).unwrap_err();
    let is_later =
        matches!(error.downcast_ref(), Some(CheckpointError::Later { epoch: 0, .. }));
    assert!(is_later, "{error:?}");
    assert_eq!((run.epoch, values(run.state.optimizer.target())), (0, before));
    assert!(std::fs::read(file(&dir, 1)).unwrap() == other);
}

#[test]
fn truncated_checkpoints_are_refused() {
    let (_dir, _, run) = trained(1, 1);
    let bytes = run.to_bytes().unwrap();
    assert!(TrainingRun::from_bytes(&bytes, &device()).is_ok());
    let mut refused = 0;
    for len in (0..32).chain(random_below(bytes.len(), 50)).chain([bytes.len() - 1]) {
        let result = TrainingRun::from_bytes(&bytes[..len], &device());
        assert!(result.is_err(), "cut to {len} bytes");
        refused += 1;
    }
    report("checkpoints truncated", refused);
}

#[test]
fn checkpoints_with_flipped_bits_are_refused() {
    let (_dir, _, run) = trained(1, 1);
    let mut bytes = run.to_bytes().unwrap();
    // Every bit of the header and some bits of the tensors.
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let some = random_below((bytes.len() - header) * 8, 400);
    let mut refused = 0;
    for bit in (0..header * 8).chain(some.into_iter().map(|bit| header * 8 + bit)) {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let result = TrainingRun::from_bytes(&bytes, &device());
        assert!(result.is_err(), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
        refused += 1;
    }
    report("checkpoints with a flipped bit", refused);
}

#[test]
fn the_error_for_a_damaged_checkpoint_names_the_last_good_one() {
    let (dir, checkpoints, _) = trained(3, 3);
    let damage = |epoch| {
        let mut bytes = std::fs::read(file(&dir, epoch)).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(file(&dir, epoch), bytes).unwrap();
    };
    damage(3);
    let message = resume_error(&checkpoints);
    assert!(message.contains("epoch-0003.safetensors: it is damaged"), "{message}");
    assert!(message.contains("SHA-256"), "{message}");
    assert!(
        message.contains("epoch-0002.safetensors is good: delete the bad file"),
        "{message}"
    );

    // The checkpoint it names was verified.
    damage(2);
    let message = resume_error(&checkpoints);
    assert!(message.contains("epoch-0001.safetensors is good"), "{message}");
    damage(1);
    let message = resume_error(&checkpoints);
    assert!(message.contains("there is no earlier good checkpoint"), "{message}");
}

#[test]
fn training_resumes_from_the_last_good_checkpoint() {
    let (_dir, _, uninterrupted) = trained(3, 1);
    let (dir, checkpoints, _) = trained(3, 3);
    std::fs::write(file(&dir, 3), "").unwrap();
    assert!(resume_error(&checkpoints).contains("epoch-0002.safetensors is good"));
    std::fs::remove_file(file(&dir, 3)).unwrap();
    let mut resumed = checkpoints.resume(&device()).unwrap().unwrap();
    train(&checkpoints, &mut resumed, 3);
    assert_same(&uninterrupted, &resumed);
}

#[test]
fn other_kinds_of_files_are_refused() {
    let (dir, checkpoints, run) = trained(1, 1);
    std::fs::write(file(&dir, 1), "<!DOCTYPE html>").unwrap();
    assert!(resume_error(&checkpoints).contains("damaged or no safetensors file"));
    run.state.optimizer.target().save(file(&dir, 1)).unwrap();
    assert!(resume_error(&checkpoints).contains("not a checkpoint of this crate"));
    std::fs::remove_file(file(&dir, 1)).unwrap();
    std::fs::create_dir(file(&dir, 1)).unwrap();
    assert!(resume_error(&checkpoints).contains("cannot be read"));
}

#[test]
fn an_older_or_newer_format_is_refused_as_such() {
    let (dir, checkpoints, run) = trained(1, 1);
    let bytes = run.to_bytes().unwrap();
    let own = br#""version":"3""#;
    let at = bytes.windows(own.len()).position(|window| window == own).unwrap();
    for version in ['1', '4'] {
        let mut other = bytes.clone();
        other[at + own.len() - 2] = version as u8;
        std::fs::write(file(&dir, 1), other).unwrap();
        let message = resume_error(&checkpoints);
        let expected =
            format!("format version {version} and this crate reads versions 2 and 3");
        assert!(message.contains(&expected), "{message}");
    }
}

#[test]
fn the_checkpoint_of_another_network_is_refused_by_the_network() {
    let (_dir, checkpoints, mut run) = trained(1, 1);
    let (train_ds, test_ds) = (dataset(2, 50), dataset(3, 20));
    struct Other;
    impl Module for Other {
        fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
            log_softmax(&nn.dense(10, &flatten(x)?)?)
        }
    }
    let error =
        checkpoints.train_epoch(&Other, &mut run, &train_ds, &test_ds).unwrap_err();
    assert!(matches!(error, Error::ParamShape { .. }), "{error:?}");
    assert_eq!(run.epoch, 1);
}

#[test]
fn an_epoch_whose_evaluation_fails_can_be_repeated() {
    let (train_ds, test_ds) = (dataset(2, 50), dataset(3, 20));
    let (_dir, checkpoints, mut run) = trained(1, 1);
    let (_other_dir, other_checkpoints, mut uninterrupted) = trained(1, 1);
    let color = Tensor::zeros((1, 8, 8, 3), DType::F32, &device()).unwrap();
    let wrong = Dataset::new(color, Tensor::new(&[0u32], &device()).unwrap()).unwrap();
    checkpoints.train_epoch(&Small, &mut run, &train_ds, &wrong).unwrap_err();
    checkpoints.train_epoch(&Small, &mut run, &train_ds, &test_ds).unwrap();
    other_checkpoints
        .train_epoch(&Small, &mut uninterrupted, &train_ds, &test_ds)
        .unwrap();
    assert_same(&run, &uninterrupted);
}

#[test]
fn the_error_names_a_folder_that_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a file");
    std::fs::write(&path, "").unwrap();
    let error = Checkpoints::new(&path, 1).unwrap_err();
    assert!(
        matches!(&error, Error::Save { path: named, .. } if *named == path),
        "{error:?}"
    );

    let folder = dir.path().join("removed");
    let checkpoints = Checkpoints::new(&folder, 1).unwrap();
    std::fs::remove_dir(&folder).unwrap();
    let error = checkpoints.save(&initial_run()).unwrap_err().to_string();
    assert!(error.contains(folder.to_str().unwrap()), "{error}");
}
