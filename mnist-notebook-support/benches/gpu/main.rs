//! Times training on the best device, for this crate and for JAX, and writes a Markdown page.
//!
//! `bench_gpu PAGE [PYTHON SCRIPT]`: the script is `xtask/peers/jax_steps.py`, which answers lines
//! `what batch count` with `= milliseconds`, the time of one of `count` repetitions. Without it, or
//! if JAX cannot be started, only this crate is timed. The two take turns, so that changes in the
//! machine's speed affect both.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Lines, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

#[cfg(feature = "cuda")]
use mnist_notebook_support::linen;
use mnist_notebook_support::prelude::*;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Measurements per side; the median is reported.
const ROUNDS: usize = 7;
/// Batch sizes, and the steps per measurement: at most an epoch.
const BATCHES: [(usize, usize); 4] = [(32, 400), (256, 200), (2048, 29), (16384, 3)];

fn main() -> Outcome<()> {
    let mut arguments = std::env::args_os().skip(1);
    let page = arguments.next().ok_or("usage: bench_gpu PAGE [PYTHON SCRIPT]")?;
    let device = best_device();
    let mut jax = match (arguments.next(), arguments.next()) {
        (Some(python), Some(script)) => Peer::start(Command::new(python).arg(script)),
        _ => None,
    };
    let bench = Bench::new(device)?;
    let mut text = "| | this crate | JAX | ratio |\n|---|---|---|---|\n".to_owned();
    let loops = BATCHES.map(|(batch, count)| (batch, "train_step", count));
    for (batch, what, count) in
        loops.into_iter().chain([(32, "fixed_step", 1000), (32, "train_step", 1875)])
    {
        let title = match (what, count) {
            ("fixed_step", _) => format!("compiled step on a fixed batch of {batch}, ms"),
            (_, 1875) => "an epoch of batches of 32, ms a step".to_owned(),
            _ => format!("step of the tutorial's loop, batches of {batch}, ms"),
        };
        let mut steps = bench.steps(what, batch)?;
        let mut times = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            times.0.push(steps(count)?);
            times.1.extend(jax.as_mut().and_then(|jax| jax.time(what, batch, count)));
        }
        let (ours, theirs) = (median(times.0), median(times.1));
        println!("{title}: {ours:.3}, JAX {theirs:.3}");
        writeln!(text, "| {title} | {ours:.3} | {theirs:.3} | {:.2} |", theirs / ours)?;
        let per_second = |ms: f64| batch as f64 / ms * 1e3;
        let (ours, theirs) = (per_second(ours), per_second(theirs));
        writeln!(text, "| … images per second | {ours:.0} | {theirs:.0} | |")?;
    }
    text += &bench.launches()?;
    std::fs::write(&page, text)?;
    Ok(())
}

struct Bench {
    device: Device,
    train_ds: Dataset,
}

/// Runs a number of steps and returns the milliseconds per step.
type Steps<'a> = Box<dyn FnMut(usize) -> Outcome<f64> + 'a>;

impl Bench {
    fn new(device: Device) -> Outcome<Self> {
        let (train_ds, _) = get_datasets(&device)?;
        Ok(Self { device, train_ds })
    }

    fn optimizer(&self) -> Result<Optimizer> {
        create_optimizer(&get_initial_params(&Cnn, Key::new(0), &self.device)?, 0.1, 0.9)
    }

    /// Steps on shuffled batches as in the tutorial's loop, or on a fixed batch.
    fn steps(&self, what: &str, batch: usize) -> Outcome<Steps<'_>> {
        let (mut optimizer, mut jit) = (self.optimizer()?, Jit::new());
        let fixed = (what == "fixed_step").then(|| self.train_ds.slice(0, batch)).transpose()?;
        let perms = permutation(Key::new(1), self.train_ds.len());
        let mut perms: Vec<Vec<u32>> = perms.chunks_exact(batch).map(<[u32]>::to_vec).collect();
        let mut run = move |count: usize| -> Outcome<f64> {
            let start = Instant::now();
            let mut metrics = Vec::with_capacity(count);
            for _ in 0..count {
                let batch = match &fixed {
                    Some(batch) => batch.clone(),
                    None => self.train_ds.batch(&perms[0])?,
                };
                metrics.push(jit.call(|| train_step(&Cnn, &mut optimizer, &batch))?);
                perms.rotate_left(1);
            }
            // Waits for the device to finish all steps.
            BatchMetrics::get_all(&metrics)?;
            Ok(start.elapsed().as_secs_f64() * 1e3 / count as f64)
        };
        run(3)?; // records the step
        Ok(Box::new(run))
    }

    /// The kernel launches of a step and their times.
    #[cfg(feature = "cuda")]
    fn launches(&self) -> Outcome<String> {
        let mut text = String::new();
        for (batch, _) in BATCHES {
            let (mut optimizer, mut jit) = (self.optimizer()?, Jit::new());
            let images = self.train_ds.slice(0, batch)?;
            let Some(launches) =
                jit.call(|| linen::gpu_launch_times(&Cnn, &mut optimizer, images.image()))?
            else {
                return Ok(format!("{jit}\n"));
            };
            writeln!(
                text,
                "\nA step on {batch} images: {} launches, recorded as one graph.\n",
                launches.len()
            )?;
            text += "| launch | µs |\n|---|---|\n";
            for (name, time) in &launches {
                writeln!(text, "| {name} | {time:.1} |")?;
            }
            writeln!(text, "| all | {:.1} |", launches.iter().map(|(_, time)| time).sum::<f32>())?;
        }
        Ok(text)
    }

    #[cfg(not(feature = "cuda"))]
    fn launches(&self) -> Outcome<String> {
        Ok(String::new())
    }
}

/// A program that times itself on request.
struct Peer {
    child: Child,
    requests: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    fn start(program: &mut Command) -> Option<Self> {
        let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
        let requests = child.stdin.take()?;
        let answers = BufReader::new(child.stdout.take()?).lines();
        Some(Self { child, requests, answers })
    }

    /// The milliseconds per repetition; `None` if it does not answer.
    fn time(&mut self, what: &str, batch: usize, count: usize) -> Option<f64> {
        let mut ask = |count: usize| {
            writeln!(self.requests, "{what} {batch} {count}").ok()?;
            self.answers.by_ref().find_map(|line| line.ok()?.strip_prefix("= ")?.parse().ok())
        };
        ask(3)?; // compiles
        ask(count)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The median; NaN if `times` is empty.
fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}
