//! Training is Flax's: its initial weights to the bit, its order of examples, and its losses within
//! rounding. The golden values are described in `tests/golden/README.md`.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use in_browser::{CLASSES, Dataset, Error, Network, PARAM_LENS, STATE_LEN, Training};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn golden(name: &str) -> Value {
    let text = fs::read(root().join("tests/golden").join(name)).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn file(name: &str) -> Box<[u8]> {
    let mut content = Vec::new();
    let file = fs::File::open(root().join("data").join(name)).unwrap();
    GzDecoder::new(file).read_to_end(&mut content).unwrap();
    content.into_boxed_slice()
}

fn train_ds() -> Dataset {
    let [images, labels] = ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"].map(file);
    Dataset::new(images, labels).unwrap()
}

fn test_ds() -> Dataset {
    let [images, labels] = ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"].map(file);
    Dataset::new(images, labels).unwrap()
}

#[test]
fn initial_weights_are_flax_s_to_the_bit() {
    let golden = golden("initial_params.json");
    for seed in [0, 42] {
        let mut models = golden["models"].as_array().unwrap().iter();
        let model = models.find(|model| model["model"] == "Cnn" && model["seed"] == seed).unwrap();
        let training = Training::new(seed, 0.1, 32).unwrap();
        let mut rest = training.network().params();
        for (leaf, len) in model["leaves"].as_array().unwrap().iter().zip(PARAM_LENS) {
            let (param, next) = rest.split_at(len);
            rest = next;
            let bytes: Vec<u8> = param.iter().flat_map(|value| value.to_le_bytes()).collect();
            let hash = Sha256::digest(bytes);
            let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(leaf["sha256"], hash, "{} of seed {seed}", leaf["name"]);
        }
    }
}

/// Correct f32 runs diverge after some ten steps, so only the first five are compared one by one.
#[test]
fn the_first_losses_are_flax_s() {
    let data = train_ds();
    for run in golden("trace.json")["runs"].as_array().unwrap() {
        let seed = run["seed"].as_u64().unwrap() as u32;
        let mut training = Training::new(seed, 0.1, 32).unwrap();
        assert_eq!(training.start_epoch(&data), 1875);
        for (step, expected) in run["f32"]["loss"].as_array().unwrap()[..5].iter().enumerate() {
            let found = f64::from(training.step(&data).unwrap().unwrap().loss);
            let expected = expected.as_f64().unwrap();
            let difference = (found - expected).abs() / expected;
            assert!(difference < 1e-5, "seed {seed}, step {}: {difference}", step + 1);
        }
    }
}

#[test]
fn a_restored_run_goes_on_to_the_bit() {
    let data = test_ds(); // smaller
    let mut training = Training::new(1, 0.1, 100).unwrap();
    assert_eq!(training.start_epoch(&data), 100);
    let mut losses = Vec::new();
    while let Some(result) = training.step(&data).unwrap() {
        losses.push(result.loss);
    }
    assert_eq!(losses.len(), 100);
    let state = training.save();
    assert_eq!(state.len(), STATE_LEN);
    let mut restored = Training::restore(&state).unwrap();
    assert_eq!(restored.epoch(), 1);
    for run in [&mut training, &mut restored] {
        run.start_epoch(&data);
        run.step(&data).unwrap();
    }
    assert!(training.save() == restored.save());
    assert_ne!(training.save(), state);
}

#[test]
fn evaluation_in_pieces_is_evaluation_at_once() {
    let data = test_ds();
    let mut training = Training::new(0, 0.1, 32).unwrap();
    let mut all = [0; 300];
    let result = training.evaluate(&data, 100, &mut all).unwrap();
    let mut pieces = [0; 300];
    for (piece, predictions) in pieces.chunks_mut(70).enumerate() {
        training.evaluate(&data, 100 + 70 * piece, predictions).unwrap();
    }
    assert_eq!(all, pieces);
    let correct = all.iter().zip(&data.labels()[100..]).filter(|(a, b)| a == b).count();
    assert_eq!(result.correct, correct as u32);

    let mut network = Network::new(1).unwrap();
    network.params_mut().copy_from_slice(training.network().params());
    let image: Vec<f32> = data.image(100).iter().map(|pixel| f32::from(*pixel) / 255.0).collect();
    let mut log_probs = [0.0; CLASSES];
    network.log_probabilities(&image, &mut log_probs).unwrap();
    assert!(log_probs.iter().all(|log_prob| *log_prob <= log_probs[usize::from(all[0])]));
}

#[test]
fn bad_input_is_refused() {
    for rate in [0.0, -0.1, f64::NAN, f64::INFINITY] {
        assert!(matches!(Training::new(0, rate, 32), Err(Error::LearningRate(_))));
    }
    assert!(matches!(Training::new(0, 0.1, 0), Err(Error::Kernel(_))));
    assert!(matches!(Training::restore(b"something else"), Err(Error::State(_))));
    let state = Training::new(0, 0.1, 1).unwrap().save();
    assert!(matches!(Training::restore(&state[..100]), Err(Error::State(_))));

    let [images, labels] = ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"].map(file);
    assert!(Dataset::new(labels.clone(), labels.clone()).is_err());
    assert!(Dataset::new(images.clone(), images.clone()).is_err());
    assert!(Dataset::new(Box::default(), Box::default()).is_err());
    assert!(Dataset::new(images[..5000].into(), labels.clone()).is_err());
    let mut wrong = labels.clone();
    wrong[8] = 10;
    assert!(Dataset::new(images, wrong).is_err());

    let data = test_ds();
    let mut training = Training::new(0, 0.1, 32).unwrap();
    assert!(training.evaluate(&data, 9_999, &mut [0; 2]).is_err());
    assert!(training.step(&data).unwrap().is_none(), "no epoch has begun");
    training.start_epoch(&train_ds());
    assert!((0..1875).any(|_| training.step(&data).is_err()));
}
