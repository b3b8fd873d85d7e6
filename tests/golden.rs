//! Comparison with JAX, Flax, SciPy and scikit-learn: they computed the values in `golden/`.

use std::path::{Path, PathBuf};
use std::process::Command;

use mnist_notebook_support::prelude::*;
use mnist_notebook_support::take_away::SummaryWriter;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tests::{golden_file, root, trace_of_training};

fn golden<T: DeserializeOwned>(name: &str) -> T {
    let path = golden_file(name);
    serde_json::from_slice(&std::fs::read(&path).unwrap())
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn floats(bits: &[u32]) -> Vec<f32> {
    bits.iter().copied().map(f32::from_bits).collect()
}

fn vec(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The SHA-256 sum of some bytes, in hexadecimal.
fn sha256(bytes: impl Iterator<Item = u8>) -> String {
    let digest = Sha256::digest(bytes.collect::<Vec<_>>());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn assert_close(name: &str, found: &[f32], expected: &[f32], relative: f32) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= relative * b.abs(), "{name}[{i}]: {a} instead of {b}");
    }
}

// ---------------------------------------------------------------- initial parameters

#[derive(Deserialize)]
struct InitialGolden {
    models: Vec<ModelGolden>,
}

#[derive(Deserialize)]
struct ModelGolden {
    model: String,
    seed: i64,
    input_shape: Vec<usize>,
    leaves: Vec<LeafGolden>,
}

#[derive(Deserialize)]
struct LeafGolden {
    name: String,
    shape: Vec<usize>,
    min: f64,
    max: f64,
    mean: f64,
    std: f64,
    sha256: String,
    first: Vec<u32>,
    last: Vec<u32>,
}

/// The twin of `Block` in `golden/models.py`.
struct Block {
    features: usize,
}

impl Module for Block {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = relu(&nn.conv(self.features, (3, 3), x)?)?;
        relu(&nn.conv(self.features, (3, 3), &x)?)
    }
}

/// The twin of `Nested` in `golden/models.py`.
struct Nested;

impl Module for Nested {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = nn.module(&Block { features: 4 }, x)?;
        let x = avg_pool(&x, (2, 2))?;
        let x = nn.module(&Block { features: 6 }, &x)?;
        let x = relu(&nn.dense(16, &flatten(&x)?)?)?;
        let x = relu(&nn.dense(8, &x)?)?;
        nn.dense(5, &x)
    }
}

#[test]
fn initial_parameters_are_flax_s_leaf_by_leaf() {
    for golden in golden::<InitialGolden>("initial_params.json").models {
        let (_, init_rng) = Key::new(golden.seed).split();
        let sample = Tensor::ones(golden.input_shape, DType::F32, &Device::Cpu).unwrap();
        let params = match golden.model.as_str() {
            "Cnn" => get_initial_params(&Cnn, init_rng, &Device::Cpu),
            _ => Nested.init(init_rng, &sample),
        };
        let params = params.unwrap();
        assert_eq!(params.len(), golden.leaves.len());
        for leaf in golden.leaves {
            assert_leaf(&params, &leaf);
        }
    }
}

fn assert_leaf(params: &Params, leaf: &LeafGolden) {
    let var = params.get(&leaf.name).unwrap_or_else(|| panic!("no {}", leaf.name));
    assert_eq!(var.dims(), leaf.shape, "{}", leaf.name);
    let values = vec(var);
    let (head, tail) = (leaf.first.len(), values.len() - leaf.last.len());
    assert_close(&leaf.name, &values[..head], &floats(&leaf.first), 1e-6);
    assert_close(&leaf.name, &values[tail..], &floats(&leaf.last), 1e-6);
    let sum = sha256(values.iter().flat_map(|value| value.to_le_bytes()));
    assert_eq!(sum, leaf.sha256, "{} differs from Flax's in some bit", leaf.name);

    let wide: Vec<f64> = values.iter().copied().map(f64::from).collect();
    let mean = wide.iter().sum::<f64>() / wide.len() as f64;
    let variance = wide.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / wide.len() as f64;
    let min = wide.iter().copied().fold(f64::INFINITY, f64::min);
    let max = wide.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    for (name, found, expected) in [
        ("min", min, leaf.min),
        ("max", max, leaf.max),
        ("mean", mean, leaf.mean),
        ("std", variance.sqrt(), leaf.std),
    ] {
        let scale = leaf.std.max(leaf.mean.abs());
        assert!((found - expected).abs() <= 1e-6 * scale, "{} {name}", leaf.name);
    }
}

// ---------------------------------------------------------------- gradients

#[derive(Deserialize)]
struct GradientsGolden {
    seed: i64,
    batch: Vec<u32>,
    loss: f64,
    leaves: Vec<GradientGolden>,
}

#[derive(Deserialize)]
struct GradientGolden {
    name: String,
    shape: Vec<usize>,
    max_abs: f64,
    sum: f64,
    indices: Vec<usize>,
    values: Vec<u32>,
}

#[test]
fn the_first_gradients_are_flax_s() {
    let golden: GradientsGolden = golden("gradients.json");
    let (rng, init_rng) = Key::new(golden.seed).split();
    let params = get_initial_params(&Cnn, init_rng, &Device::Cpu).unwrap();
    let (train_ds, _) = get_datasets(&Device::Cpu).unwrap();
    let (_, input_rng) = rng.split();
    assert_eq!(permutation(input_rng, 60_000)[..32], golden.batch);

    let batch = train_ds.batch(&golden.batch).unwrap();
    let loss_fn = |params: &Params| {
        let logits = Cnn.apply(params, batch.image())?;
        Ok((cross_entropy_loss(&logits, batch.label())?, ()))
    };
    let ((loss, ()), gradients) = value_and_grad(loss_fn, &params).unwrap();
    let loss = f64::from(loss.to_scalar::<f32>().unwrap());
    assert!((loss - golden.loss).abs() < 1e-5 * golden.loss);

    for leaf in golden.leaves {
        let gradient = gradients.get(&leaf.name).unwrap();
        assert_eq!(gradient.dims(), leaf.shape);
        let values = vec(gradient);
        let bound = 1e-5 * leaf.max_abs;
        for (index, expected) in leaf.indices.iter().zip(floats(&leaf.values)) {
            let difference = f64::from(values[*index] - expected).abs();
            assert!(difference <= bound, "{}[{index}]: {difference}", leaf.name);
        }
        let sum = values.iter().copied().map(f64::from).sum::<f64>();
        assert!((sum - leaf.sum).abs() <= bound * values.len() as f64, "{} sum", leaf.name);
        let max_abs = values.iter().fold(0f32, |max, value| max.max(value.abs()));
        assert!((f64::from(max_abs) - leaf.max_abs).abs() <= bound, "{} max", leaf.name);
    }
}

// ---------------------------------------------------------------- training traces

#[derive(Deserialize)]
struct TraceGolden {
    runs: Vec<RunGolden>,
}

#[derive(Deserialize)]
struct RunGolden {
    seed: i64,
    f32: SeriesGolden,
    f64: SeriesGolden,
}

#[derive(Deserialize)]
struct SeriesGolden {
    loss: Vec<f64>,
    accuracy: Vec<f64>,
}

fn relative_difference(found: f64, expected: f64) -> f64 {
    (found - expected).abs() / expected.abs()
}

/// Correct f32 runs diverge after some ten steps, so only the first five are compared one by one.
/// The mean loss of the last hundred may differ by a tenth: in Flax it varies by 7 % if only the
/// order of the examples in each batch changes.
#[test]
fn training_in_f32_follows_flax_for_five_steps() {
    for golden in golden::<TraceGolden>("trace.json").runs {
        let found = trace_of_training(golden.seed, 200, DType::F32).unwrap();
        let expected = golden.f32.loss.iter().zip(&golden.f32.accuracy);
        for (step, (found, (loss, accuracy))) in found.iter().zip(expected).take(5).enumerate() {
            let difference = relative_difference(found.0, *loss);
            assert!(difference < 1e-5, "seed {}, step {}: {difference}", golden.seed, step + 1);
            assert!((found.1 - accuracy).abs() < 1e-6);
        }
        let mean = |losses: &mut dyn Iterator<Item = f64>| losses.sum::<f64>() / 100.0;
        let found = mean(&mut found[100..].iter().map(|step| step.0));
        let expected = mean(&mut golden.f32.loss[100..].iter().copied());
        assert!(relative_difference(found, expected) < 0.1, "{found} {expected}");
    }
}

/// In f64 only a wrong formula could make the runs diverge.
#[test]
fn training_in_f64_is_flax_s_for_200_steps() {
    for golden in golden::<TraceGolden>("trace.json").runs {
        let found = trace_of_training(golden.seed, 200, DType::F64).unwrap();
        let steps = found.iter().zip(golden.f64.loss.iter().zip(&golden.f64.accuracy));
        for (step, ((loss, accuracy), (flax_loss, flax_accuracy))) in steps.enumerate() {
            let difference = relative_difference(*loss, *flax_loss);
            assert!(difference < 1e-11, "seed {}, step {}: {difference}", golden.seed, step + 1);
            assert!((accuracy - flax_accuracy).abs() < 1e-6);
        }
    }
}

// ---------------------------------------------------------------- files

/// The Python with Flax and the other libraries, if it is installed.
fn python() -> Option<PathBuf> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/golden/bin/python");
    if !python.exists() {
        println!("skipped: no {}, see tests/golden/README.md", python.display());
        return None;
    }
    Some(python)
}

/// Needs Flax, installed as in `golden/README.md`.
#[test]
fn parameters_saved_here_are_read_by_flax() {
    let Some(python) = python() else { return };
    let file = root().join("crates/linen/tests/golden/flax_params.safetensors");
    let params = Params::load(file, &Device::Cpu).unwrap();
    let file = tempfile::Builder::new().suffix(".safetensors").tempfile().unwrap();
    params.save(file.path()).unwrap();
    let check = Command::new(python).arg(golden_file("check_params.py")).arg(file.path()).output();
    let check = check.unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
}

/// Needs TensorBoard, installed as in `golden/README.md`.
#[test]
fn events_written_here_are_read_by_tensorboard() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut log = SummaryWriter::new(folder.path()).unwrap();
    log.scalar("loss/train", 0.125, 3).unwrap();
    log.scalar("accuracy", f64::NAN, 4).unwrap();
    let gray = Tensor::new(&[0f32, 0.2, 0.4, 0.6, 1.0, 9.0], &Device::Cpu).unwrap();
    log.image("gray", &gray.reshape((2, 3, 1)).unwrap(), 5).unwrap();
    log.image("red", &Tensor::new(&[[[1f64, 0.0, 0.0]]], &Device::Cpu).unwrap(), 6).unwrap();

    let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let reader = golden_file("tensorboard_events.py");
    let read = Command::new(python).arg(reader).arg(file).output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let found = String::from_utf8(read.stdout).unwrap();
    let expected = [
        "version brain.Event:2",
        "3 loss/train 0.125",
        "4 accuracy nan",
        "5 gray L (3, 2) 00336699ffff",
        "6 red RGB (1, 1) ff0000",
    ];
    assert_eq!(found.lines().collect::<Vec<_>>(), expected);
}

// ---------------------------------------------------------------- ten epochs

/// Single epochs vary by some tenths of a percent, also in Flax; mean and best vary less.
#[test]
fn ten_epochs_end_where_flax_s_end() {
    let table = std::fs::read_to_string(golden_file("ten_epochs.csv")).unwrap();
    let rows = table.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let of_key_0 = rows.filter(|row| row[0] == "0");
    let flax: Vec<f32> = of_key_0.map(|row| row[5].parse().unwrap()).collect();
    let found = test_accuracies(0, 10).unwrap();
    assert_eq!(found.len(), flax.len());

    let mean_of_last_five = |values: &[f32]| values[5..].iter().sum::<f32>() / 5.0;
    let best = |values: &[f32]| values.iter().copied().fold(0.0, f32::max);
    println!("here {found:?}\nFlax {flax:?}");
    assert!((mean_of_last_five(&found) - mean_of_last_five(&flax)).abs() < 0.003);
    assert!((best(&found) - best(&flax)).abs() < 0.002);
}

/// The test accuracy after each epoch of the tutorial, 0 to 1.
fn test_accuracies(seed: i64, epochs: usize) -> Result<Vec<f32>> {
    let (train_ds, test_ds) = get_datasets(&Device::Cpu)?;
    let (mut rng, init_rng) = Key::new(seed).split();
    let params = get_initial_params(&Cnn, init_rng, &Device::Cpu)?;
    let mut optimizer = create_optimizer(&params, 0.1, 0.9)?;
    (1..=epochs)
        .map(|epoch| {
            let (next_rng, input_rng) = rng.split();
            rng = next_rng;
            train_epoch(&Cnn, &mut optimizer, &train_ds, 32, epoch, input_rng)?;
            Ok(eval_model(&Cnn, optimizer.target(), &test_ds)?.accuracy)
        })
        .collect()
}
