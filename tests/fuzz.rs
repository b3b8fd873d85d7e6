//! A short run of the fuzz targets on randomly mutated good files, reproducible.
//!
//! The environment variable `FUZZ_INPUTS` is the number of inputs per target: 300 by default,
//! 20,000 for `cargo xtask faults --long`. See `fuzz/` for coverage-guided fuzzing.

use std::io::Write;
use std::panic::catch_unwind;

use image::ImageFormat;
use mnist_notebook_support::candle_core;
use mnist_notebook_support::prelude::*;
use mnist_notebook_support::random::bits;
use tests::{fuzz, golden_file};

/// Reproducible random numbers.
struct Numbers {
    key: Key,
    block: Vec<u32>,
}

impl Numbers {
    fn new(seed: i64) -> Self {
        Numbers { key: Key::new(seed), block: Vec::new() }
    }

    /// A number below `bound`, which must not be 0.
    fn below(&mut self, bound: usize) -> usize {
        if self.block.is_empty() {
            let (next, now) = self.key.split();
            self.key = next;
            self.block = bits(now, 1000, &Device::Cpu).unwrap().to_vec1().unwrap();
        }
        self.block.pop().unwrap() as usize % bound
    }
}

/// A few mutations, as in damaged files or to provoke parser bugs.
fn mutated(good: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..1 + numbers.below(4) {
        // Most parsers decide on the first bytes.
        let reach = if numbers.below(2) == 0 { bytes.len() } else { bytes.len().min(600) };
        let at = numbers.below(reach.max(1));
        let rest = bytes.len().saturating_sub(at);
        match numbers.below(7) {
            0 => bytes.truncate(at),
            1 if rest > 0 => bytes[at] ^= 1 << numbers.below(8),
            2 if rest > 0 => {
                bytes[at] = [0, 1, b'0', b'9', b'"', b'-', 0x7F, 0xFF][numbers.below(8)]
            }
            3 => drop(bytes.splice(at..at, [b'9'; 20])),
            4 => drop(bytes.drain(at..at + numbers.below(rest + 1))),
            5 => {
                let piece = bytes[at..at + numbers.below(rest.min(64) + 1)].to_vec();
                drop(bytes.splice(at..at, piece));
            }
            _ if rest >= 8 => {
                let huge = [u64::MAX, 1 << 62, 1 << 32, 1 << 31][numbers.below(4)];
                bytes[at..at + 8].copy_from_slice(&huge.to_le_bytes());
            }
            _ => {}
        }
    }
    bytes
}

/// Runs a target on mutated copies of a good file and reports how many it survived.
fn run(name: &str, target: fn(&[u8]), good: &[u8]) {
    let inputs = std::env::var("FUZZ_INPUTS")
        .map_or(300, |inputs| inputs.parse().expect("FUZZ_INPUTS is a number"));
    target(good);
    target(b"");
    let mut numbers = Numbers::new(0);
    let mut lost = Vec::new();
    for input in 0..inputs {
        let bytes = mutated(good, &mut numbers);
        if catch_unwind(|| target(&bytes)).is_err() {
            lost.push(input);
        }
    }
    let survived = inputs - lost.len();
    let mut out = std::io::stdout();
    let counts = format!("faults injected: {inputs}, survived: {survived}, lost: {}", lost.len());
    writeln!(out, "mutated files, {name}: {counts}").unwrap();
    assert!(lost.is_empty(), "inputs {lost:?}");
}

struct Small;

impl Module for Small {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        log_softmax(&nn.dense(10, &flatten(x)?)?)
    }
}

/// A good checkpoint of a small network.
fn good_checkpoint() -> Vec<u8> {
    let image = Tensor::zeros((1, 4, 4, 1), DType::F32, &Device::Cpu).unwrap();
    let params = Small.init(Key::new(0), &image).unwrap();
    let mut run = TrainingRun::new(create_optimizer(&params, 0.1, 0.9).unwrap(), Key::new(1), 32);
    let metrics = Metrics { loss: 0.25, accuracy: 0.5 };
    run.history = [EpochMetrics { train: metrics, test: metrics }; 3].into_iter().collect();
    run.to_bytes().unwrap()
}

#[test]
fn mutated_checkpoints_are_read_or_refused() {
    run("checkpoint", fuzz::checkpoint, &good_checkpoint());
}

#[test]
fn mutated_parameters_are_read_or_refused() {
    // A file by another program: it has no checksum that would detect every mutation.
    let file = tempfile::NamedTempFile::new().unwrap();
    let bias = Tensor::zeros(10, DType::F32, &Device::Cpu).unwrap();
    let kernel = Tensor::zeros((3, 3, 1, 2), DType::F32, &Device::Cpu).unwrap();
    let tensors = [("Conv_0/bias", bias), ("Conv_0/kernel", kernel)].into();
    candle_core::safetensors::save(&tensors, file.path()).unwrap();
    run("params", fuzz::params, &std::fs::read(file.path()).unwrap());
}

#[test]
fn mutated_pictures_are_read_or_refused() {
    let picture = std::fs::read(golden_file("../../notebooks/five.png")).unwrap();
    run("picture", fuzz::picture, &picture);
    let small = image::load_from_memory(&picture).unwrap().thumbnail(60, 60).to_rgb8();
    for format in [ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp] {
        let mut file = std::io::Cursor::new(Vec::new());
        small.write_to(&mut file, format).unwrap();
        run(&format!("picture, {format:?}"), fuzz::picture, &file.into_inner());
    }
}

#[test]
fn mutated_data_files_are_read_or_refused() {
    let data = golden_file("../../data/t10k-labels-idx1-ubyte.gz");
    let gzipped = std::fs::read(data).unwrap();
    run("idx, gzipped", fuzz::idx, &[&[1], gzipped.as_slice()].concat());
    let mut raw = vec![0];
    raw.extend([0, 0, 8, 1, 0, 0, 0x27, 0x10].iter().chain(&[7; 10_000]));
    run("idx", fuzz::idx, &raw);
}

#[test]
fn mutated_notebooks_are_read_or_refused() {
    for name in ["good", "panic", "question_mark"] {
        let path = golden_file(&format!("../fixtures/{name}.ipynb"));
        run(&format!("notebook {name}"), fuzz::notebook, &std::fs::read(path).unwrap());
    }
}
