//! Shared by the tests across crates.

pub mod fuzz;

use std::io::Write;
use std::path::{Path, PathBuf};

use mnist_notebook_support::prelude::*;
use mnist_notebook_support::random::uniform;

/// The folders of the crates that notebooks use.
pub const CRATES: [&str; 9] = [
    "mnist-notebook-support",
    "crates/cpu-kernels",
    "crates/images",
    "crates/inspect",
    "crates/jax-random",
    "crates/jit-macro",
    "crates/linen",
    "crates/notebook-display",
    "crates/take-away",
];

/// The code in the project's pages is compiled, and run where that is quick.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../../README.md")]
    struct Readme;
    #[doc = include_str!("../../docs/library.md")]
    struct Library;
}

/// The project's folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in a folder")
}

/// The Rust files in these folders, except what is built there.
///
/// # Panics
/// If a folder cannot be read.
pub fn rust_files(folders: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = folders.into_iter().collect();
    let mut files = Vec::new();
    while let Some(path) = paths.pop() {
        if path.is_dir() && !path.ends_with("target") {
            let entries = path.read_dir().expect("the folder can be read");
            paths.extend(entries.map(|entry| entry.expect("the entry can be read").path()));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
    files
}

/// A file in `tests/golden`.
pub fn golden_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

/// The content of the newest checkpoint in a folder, for comparison.
///
/// # Errors
/// The reason why there is none.
pub fn newest_checkpoint(folder: &Path) -> std::result::Result<Vec<u8>, String> {
    let run = Checkpoints::new(folder, 1).and_then(|checkpoints| checkpoints.resume(&Device::Cpu));
    let run = run.map_err(|error| error.to_string())?.ok_or("no checkpoint")?;
    let TrainState { optimizer, batch_stats, dropout_key } = &run.state;
    let content = format!("{:?} {dropout_key:?} {} {:?}", run.rng, run.epoch, run.history);
    let mut content = content.into_bytes();
    for params in [optimizer.target(), batch_stats].into_iter().chain(optimizer.moments().values())
    {
        for (_, var) in params.iter() {
            let values = var.flatten_all().and_then(|values| values.to_vec1::<f32>());
            let values = values.map_err(|error| error.to_string())?;
            content.extend(values.into_iter().flat_map(f32::to_le_bytes));
        }
    }
    Ok(content)
}

/// Variables of a network for inputs of this shape. Those that start as zeros or ones are varied,
/// so that none goes without effect.
///
/// # Errors
/// Those of the network.
pub fn varied_variables(model: &impl Module, input_shape: &[usize]) -> Result<Variables> {
    let sample = Tensor::zeros(input_shape, DType::F32, &Device::Cpu)?;
    let Variables { params, batch_stats } = model.init_variables(Key::new(1), &sample)?;
    Ok(Variables { params: varied(&params)?, batch_stats: varied(&batch_stats)? })
}

fn varied(params: &Params) -> Result<Params> {
    let varied = params.iter().map(|(path, var)| {
        let most = if var.rank() == 1 { 0.5 } else { 0.0 };
        let key = path.bytes().fold(Key::new(3), |key, byte| key.fold_in(byte.into()));
        let noise = uniform(key, var.shape(), -most, most, &Device::Cpu)?;
        Ok((path.to_owned(), (var.as_tensor() + noise)?))
    });
    varied.collect::<Result<Vec<_>>>()?.try_into()
}

/// Reports that a test or a part of it was skipped, even though the test passes: the test harness
/// captures only `eprintln!`.
pub fn skipped(what: &str, why: &str) {
    let mut stderr = std::io::stderr();
    let _ = writeln!(stderr, "skipped {what}: {why}");
}

/// Loss and accuracy of the first steps of the tutorial's training.
///
/// In f32 the steps are compiled, as in [`train_epoch`]; in f64 they use autograd, starting from
/// the same f32 weights and images.
///
/// # Errors
/// Those of the training.
pub fn trace_of_training(seed: i64, steps: usize, dtype: DType) -> Result<Vec<(f64, f64)>> {
    let (rng, init_rng) = Key::new(seed).split();
    let params = get_initial_params(&Cnn, init_rng, &Device::Cpu)?.to_dtype(dtype)?;
    let mut optimizer = create_optimizer(&params, 0.1, 0.9)?;
    let mut jit = Jit::new();
    let (train_ds, _) = get_datasets(&Device::Cpu)?;
    let (_, input_rng) = rng.split();
    permutation(input_rng, train_ds.len())
        .chunks_exact(32)
        .take(steps)
        .map(|perm| {
            let batch = train_ds.batch(perm)?.to_dtype(dtype)?;
            let metrics = jit.call(|| train_step(&Cnn, &mut optimizer, &batch))?;
            let number = |tensor: Tensor| tensor.to_dtype(DType::F64)?.to_scalar::<f64>();
            Ok((number(metrics.loss)?, number(metrics.accuracy)?))
        })
        .collect()
}
