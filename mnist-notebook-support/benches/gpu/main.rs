//! Times training on a GPU, for this crate, JAX and PyTorch, and writes a Markdown page.
//!
//! `bench_gpu PAGE [PYTHON SCRIPT...]`: the scripts are `xtask/peers/jax_steps.py` and
//! `torch_steps.py`. Those that are not given are left out. Ends within four minutes.

mod clock;
mod ours;
mod page;
mod table;
mod turns;

use std::error::Error;
#[cfg(feature = "cuda")]
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use mnist_notebook_support::prelude::*;

use clock::Peer;
use ours::Ours;
use turns::{Clocks, Who};

type Outcome<T> = std::result::Result<T, Box<dyn Error>>;

/// The time for the table of steps, from the start of the program.
const STEPS: Duration = Duration::from_secs(150);
/// The time for the table of evaluation and epochs, from the start of the program.
const RUNS: Duration = Duration::from_secs(195);
/// Later no peer answers.
const ANSWER: Duration = Duration::from_secs(215);

fn main() -> Outcome<()> {
    let start = Instant::now();
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let page = arguments.next().ok_or("usage: bench_gpu PAGE [PYTHON SCRIPT...]")?;
    let python = arguments.next();
    let scripts: Vec<PathBuf> = arguments.collect();
    let device = best_device();
    if device.is_cpu() {
        return Err("there is no GPU to measure".into());
    }
    let (train_ds, test_ds) = get_datasets(&device)?;
    let mut clocks = Clocks::new();
    let ours =
        |precision| Box::new(Ours::new(precision, train_ds.clone(), test_ds.clone()));
    clocks.insert(Who::Ours, ours(Precision::F32));
    if device.is_cuda() {
        clocks.insert(Who::OursInTf32, ours(Precision::Tf32));
    }
    for (who, name) in [
        (Who::Jax, "jax_steps.py"),
        (Who::TorchGraph, "torch_steps.py"),
        (Who::TorchCompile, "torch_steps.py"),
    ] {
        let script = scripts.iter().find(|script| script.ends_with(name));
        if let (Some(python), Some(script)) = (&python, script) {
            let peer = Peer::start(Command::new(python).arg(script), start + ANSWER)?;
            clocks.insert(who, Box::new(peer));
        }
    }
    let steps = page::steps(&mut clocks, train_ds.len(), start + STEPS);
    let runs = page::runs(&mut clocks, start + RUNS);
    let mut text = format!(
        "{}\n\nTraining, ms a step by batch size; medians of alternating turns.\n\n{steps}\n\
         Evaluation and training.\n\n{runs}",
        machine()
    );
    for batch in page::BATCHES {
        text += &launches(&train_ds, batch).unwrap_or_else(|error| {
            format!("\nLaunches of a step on {batch} images: {error}\n")
        });
    }
    println!("{text}");
    std::fs::write(page, text)?;
    Ok(())
}

/// The GPUs and their drivers.
fn machine() -> String {
    let query = ["--query-gpu=name,driver_version", "--format=csv,noheader"];
    match Command::new("nvidia-smi").args(query).output() {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            let cards = text.lines().map(|line| line.replace(", ", ", driver "));
            cards.collect::<Vec<_>>().join("; ")
        }
        _ => "A GPU that nvidia-smi does not name".to_owned(),
    }
}

/// The kernel launches of a step and the tiles that were tried for it, with their times.
#[cfg(feature = "cuda")]
fn launches(train_ds: &Dataset, batch: usize) -> Outcome<String> {
    use mnist_notebook_support::linen::{gpu_launch_times, gpu_tile_times};

    let mut jit = Jit::new();
    let images = train_ds.slice(0, batch)?;
    let mut optimizer = ours::optimizer(images.image().device())?;
    let tiles =
        jit.call(|| gpu_tile_times(&Cnn, optimizer.target(), images.image()))?;
    let tiles = tiles.ok_or_else(|| jit.to_string())?;
    let launches =
        jit.call(|| gpu_launch_times(&Cnn, &mut optimizer, images.image()))?;
    let launches = launches.ok_or_else(|| jit.to_string())?;

    let mut text = format!(
        "\nA step on {batch} images in f32, one graph.\n\n| launch | µs |\n|---|---|\n"
    );
    let all = ("all".to_owned(), launches.iter().map(|(_, time)| time).sum());
    for (name, time) in launches.iter().chain([&all]) {
        writeln!(text, "| {name} | {time:.1} |")?;
    }
    text += "\nTiles that were tried for it.\n\n| product and tile | µs |\n|---|---|\n";
    for (name, time) in &tiles {
        writeln!(text, "| {name} | {time:.1} |")?;
    }
    Ok(text)
}

#[cfg(not(feature = "cuda"))]
fn launches(_: &Dataset, _: usize) -> Outcome<String> {
    Ok(String::new())
}
