//! How fast training is: this crate, stock candle, JAX and PyTorch on the same machine, in turn.
//!
//! A machine's speed changes from minute to minute. So nobody is timed for long: in each round everybody makes steps
//! for a fraction of a second, one after the other, and only times of the same round are divided by each other.

mod clock;
mod peers;
mod report;
mod statistics;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{command, output};
use crate::process;
use crate::project::Project;
use crate::setup::FASTER;
use crate::setup::set_up;
use crate::ui::Spinner;
use clock::{Cell, Clock, Process};
use report::{Bound, Row};
use statistics::{median, ratios};
use warm_evcxr::files;

/// Threads for everybody in the table.
const THREADS: usize = 2;
/// Images per step, as in the tutorial.
const BATCH: usize = 32;
/// Rounds behind each row of the table.
const ROUNDS: usize = 15;
/// Rounds behind each entry of the times by batch size.
const SCALING_ROUNDS: usize = 7;
/// Batch sizes at which cost is followed as work grows.
const BATCHES: [usize; 5] = [1, 8, 32, 128, 512];
/// How long somebody is timed in one round, in ms.
const TURN: f64 = 300.0;
/// Before a turn, so that threads of the one before no longer spin.
const REST: Duration = Duration::from_millis(50);
/// Multiplications and additions of one step of the tutorial on one image.
const STEP_FLOP: f64 = 2.0 * 13.7e6;

/// Measures everything, prints a table and leaves it, with all single times, under `target/bench`.
///
/// With `full` the memory of all ten epochs is followed, else that of two.
///
/// # Errors
/// When something cannot be installed or built, or does not answer.
pub fn compare(project: &Project, full: bool) -> Result<()> {
    set_up(project, &project.notebook_files()?)?;
    peers::install(project)?;
    let bench = Bench::new(project)?;
    let mut times = Times::default();
    let mut rows = bench.steps(&mut times)?;
    rows.push(bench.datasets(&mut times)?);
    rows.push(bench.memory(if full { 10 } else { 2 })?);
    let mut scaling_times = Times::default();
    let scaling = bench.scaling(&mut scaling_times)?;

    let table = report::table(&machine(project)?, &rows);
    let folder = &bench.folder;
    files::write(&folder.join("table.md"), &table)?;
    files::write(&folder.join("table_times.csv"), &times.csv())?;
    files::write(&folder.join("step_times.csv"), &scaling)?;
    files::write(&folder.join("step_times_all.csv"), &scaling_times.csv())?;
    println!("\n{table}\nMilliseconds per step:\n{scaling}");
    println!("These tables and all single times: {}", folder.display());
    Ok(())
}

/// Who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Ours,
    Notebook,
    Candle,
    Jax,
    Torch,
    Gemm,
}

/// A contestant and what it is asked for.
type Turn = (Who, &'static str, usize);

/// Everybody that runs now.
type Field = BTreeMap<Who, Box<dyn Clock>>;

/// Milliseconds by threads and turn, one for each round.
#[derive(Default)]
struct Times(BTreeMap<(usize, Turn), Vec<f64>>);

impl Times {
    fn of(&self, threads: usize, turn: Turn) -> &[f64] {
        self.0.get(&(threads, turn)).map_or(&[], Vec::as_slice)
    }

    fn csv(&self) -> String {
        let mut text = String::from("threads,who,what,batch,round,ms\n");
        for ((threads, (who, what, batch)), times) in &self.0 {
            for (round, ms) in (1..).zip(times) {
                text += &format!("{threads},{who:?},{what},{batch},{round},{ms}\n");
            }
        }
        text
    }
}

/// What is needed to start the contestants.
struct Bench<'a> {
    project: &'a Project,
    /// The program that times this crate.
    ours: PathBuf,
    /// The program that times products of matrices.
    gemm: PathBuf,
    /// Where tables and messages go.
    folder: PathBuf,
    spinner: Spinner,
}

impl<'a> Bench<'a> {
    fn new(project: &'a Project) -> Result<Self> {
        println!("Building what is to be timed");
        let build = |folder: &Path, arguments: &[&str]| -> Result<PathBuf> {
            let mut cargo = command("cargo");
            cargo.args(["build", "--quiet", "--release"]).args(arguments);
            let programs = process::build(cargo.current_dir(folder))?;
            Ok(programs.into_iter().next_back().context("Cargo has built no program")?.1)
        };
        let example = ["--package", "mnist-notebook-support", "--example", "bench_steps"];
        let ours = build(project.root(), &example)?;
        let gemm = build(
            &project.root().join("xtask/gemm-rate"),
            &["--target-dir", "../../target/gemm-rate"],
        )?;
        let folder = project.root().join("target/bench");
        fs::create_dir_all(&folder)?;
        Ok(Self { project, ours, gemm, folder, spinner: Spinner::new("") })
    }

    /// The rows about steps and evaluation.
    fn steps(&self, times: &mut Times) -> Result<Vec<Row>> {
        const STEP: Turn = (Who::Ours, "train_step", BATCH);
        const JAX: Turn = (Who::Jax, "train_step", BATCH);
        const TORCH: Turn = (Who::Torch, "train_step", BATCH);
        const CANDLE: Turn = (Who::Candle, "train_step_candle", BATCH);
        const PRODUCTS: Turn = (Who::Gemm, "gemm", BATCH);
        const CELL: Turn = (Who::Notebook, "train_step", BATCH);
        const OWN: Turn = (Who::Ours, "own_module", BATCH);
        const OWN_JIT: Turn = (Who::Ours, "own_module_jit", BATCH);
        const OWN_JAX: Turn = (Who::Jax, "own_module", BATCH);
        const EVAL: Turn = (Who::Ours, "eval_model", 0);
        const EVAL_JAX: Turn = (Who::Jax, "eval_model", 0);

        self.spinner.line("Starting everybody");
        let mut field =
            self.field(&[Who::Ours, Who::Candle, Who::Jax, Who::Torch, Who::Gemm], THREADS)?;
        let cell = Cell::start(self.project, BATCH, THREADS)?;
        field.insert(Who::Notebook, Box::new(cell));
        let mut race = |turns: &[Turn]| self.race(&mut field, turns, THREADS, ROUNDS, times);
        race(&[STEP, JAX, TORCH, CANDLE, PRODUCTS, CELL])?;
        race(&[OWN, OWN_JAX, OWN_JIT])?;
        race(&[EVAL, EVAL_JAX])?;

        let of = |turn| times.of(THREADS, turn);
        let faster = |what: &str, ours, theirs, bound| {
            Row::new(what, of(ours), of(theirs), &ratios(of(theirs), of(ours)), bound)
        };
        let share: Vec<f64> = ratios(of(PRODUCTS), of(STEP)).iter().map(|it| it * 100.0).collect();
        let rate = STEP_FLOP * BATCH as f64 / median(of(PRODUCTS)) / 1e6;
        let gemm = format!("train_step as a share of the gemm rate of {rate:.0} GFLOP/s");
        let own = "own module, through autograd, against JAX jit";
        let own_jit = "own module, compiled, against JAX jit";
        let cell = "train_step in a notebook cell against the release binary";
        Ok(vec![
            faster("train_step against JAX/Flax jit", STEP, JAX, Bound::AtLeast(4.0, "×")),
            faster(
                "train_step against torch.compile, channels last",
                STEP,
                TORCH,
                Bound::AtLeast(1.6, "×"),
            ),
            faster("train_step against stock candle", STEP, CANDLE, Bound::AtLeast(20.0, "×")),
            Row::new(&gemm, of(STEP), of(PRODUCTS), &share, Bound::AtLeast(45.0, "%")),
            faster(
                "eval_model, 10,000 images, against JAX",
                EVAL,
                EVAL_JAX,
                Bound::AtLeast(4.0, "×"),
            ),
            faster(own, OWN, OWN_JAX, Bound::AtLeast(2.0, "×")),
            faster(own_jit, OWN_JIT, OWN_JAX, Bound::Free("×")),
            Row::new(
                cell,
                of(CELL),
                of(STEP),
                &ratios(of(CELL), of(STEP)),
                Bound::AtMost(1.1, "×"),
            ),
        ])
    }

    /// From files to tensors, in a fresh process each time.
    fn datasets(&self, times: &mut Times) -> Result<Row> {
        const TURN: Turn = (Who::Ours, "get_datasets", 0);
        self.spinner.restart("get_datasets");
        for _ in 0..ROUNDS {
            let ms = self.process(Who::Ours, THREADS)?.time(TURN.1, TURN.2, 1)?;
            times.0.entry((THREADS, TURN)).or_default().push(ms);
        }
        let ms = times.of(THREADS, TURN);
        let seconds: Vec<f64> = ms.iter().map(|ms| ms / 1e3).collect();
        Ok(Row::new("get_datasets, to tensors ready", ms, &[], &seconds, Bound::AtMost(0.5, "s")))
    }

    /// The most memory that a run of so many epochs holds.
    fn memory(&self, epochs: usize) -> Result<Row> {
        self.spinner.restart(&format!("memory of {epochs} epochs"));
        let held = self.process(Who::Ours, THREADS)?.ask("memory", BATCH, epochs)?;
        let (peak, after_epochs) = held.split_last().context("an answer without a number")?;
        let [first, .., last] = after_epochs else {
            bail!("expected the memory after each epoch");
        };
        let what = format!(
            "peak memory of {epochs} epochs, the whole process (after epoch 1: {first:.0} MB, \
             after epoch {epochs}: {last:.0} MB)"
        );
        Ok(Row::new(&what, &[], &[], &[*peak], Bound::AtMost(700.0, "MB")))
    }

    /// Step times as work grows, ours and JAX's, as CSV.
    fn scaling(&self, times: &mut Times) -> Result<String> {
        let mut csv = String::from("threads,batch,ours_ms,jax_ms\n");
        for threads in [1, 2] {
            let mut field = self.field(&[Who::Ours, Who::Jax], threads)?;
            for batch in BATCHES {
                let turns = [Who::Ours, Who::Jax].map(|who| (who, "train_step", batch));
                self.race(&mut field, &turns, threads, SCALING_ROUNDS, times)?;
                let [ours, jax] = turns.map(|turn| median(times.of(threads, turn)));
                csv += &format!("{threads},{batch},{ours:.3},{jax:.3}\n");
            }
        }
        Ok(csv)
    }

    /// Lets everybody take their turns, round by round, there and back: nobody always follows the same one.
    fn race(
        &self,
        field: &mut Field,
        turns: &[Turn],
        threads: usize,
        rounds: usize,
        times: &mut Times,
    ) -> Result<()> {
        let mut ask = |(who, what, batch): Turn, count| {
            let clock = field.get_mut(&who).context("nobody to ask")?;
            clock.time(what, batch, count).with_context(|| format!("{who:?} failed"))
        };
        let mut counts = Vec::new();
        for &turn in turns {
            self.spinner.restart(&format!("{turn:?}: preparing"));
            // The first repetitions compile and warm up, the next tell how many fill a turn.
            ask(turn, 3)?;
            let ms = ask(turn, 3)?;
            counts.push((TURN / ms).clamp(1.0, 100.0) as usize);
        }
        for &turn in turns {
            times.0.insert((threads, turn), Vec::new());
        }
        for round in 1..=rounds {
            let mut order: Vec<(Turn, usize)> = turns.iter().copied().zip(counts.clone()).collect();
            if round % 2 == 0 {
                order.reverse();
            }
            for (turn, count) in order {
                self.spinner.restart(&format!("round {round} of {rounds}: {turn:?}"));
                thread::sleep(REST);
                let ms = ask(turn, count)?;
                times.0.entry((threads, turn)).or_default().push(ms);
            }
        }
        for &turn in turns {
            let (who, what, batch) = turn;
            let ms = median(times.of(threads, turn));
            self.spinner
                .line(&format!("  {who:?} {what}, batch {batch}, {threads} threads: {ms:.2} ms"));
        }
        Ok(())
    }

    fn field(&self, who: &[Who], threads: usize) -> Result<Field> {
        who.iter()
            .map(|&who| Ok((who, Box::new(self.process(who, threads)?) as Box<dyn Clock>)))
            .collect()
    }

    fn process(&self, who: Who, threads: usize) -> Result<Process> {
        let python = peers::python(self.project);
        let script = |name| peers::scripts(self.project).join(name);
        let program = match who {
            Who::Jax => vec![python, script("jax_steps.py")],
            Who::Torch => vec![python, script("torch_steps.py")],
            Who::Gemm => vec![self.gemm.clone()],
            Who::Candle => vec![self.ours.clone()],
            // As in the notebook's kernel.
            Who::Ours | Who::Notebook => {
                let variables = FASTER.map(|(name, value)| format!("{name}={value}").into());
                [vec!["env".into()], variables.into(), vec![self.ours.clone()]].concat()
            }
        };
        let log = self.folder.join(format!("{who:?}.log").to_lowercase());
        Process::start(&program, threads, log)
    }
}

/// What the numbers were measured on.
fn machine(project: &Project) -> Result<String> {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named = info.lines().find_map(|line| line.strip_prefix("model name"));
    let model =
        named.and_then(|rest| rest.split_once(": ")).map_or(std::env::consts::ARCH, |it| it.1);
    let cores = thread::available_parallelism()?;
    let rust = output(command("rustc").arg("--version"))?;
    let peers = peers::versions(project, &["jax", "flax", "torch"]);
    ensure!(peers.len() == 3, "xtask/peers/requirements.txt does not pin jax, flax and torch");
    Ok(format!(
        "{model}, {cores} cores, {THREADS} threads for everybody, f32, batch {BATCH}; {}; {}",
        rust.split(" (").next().unwrap_or_default(),
        peers.join(", ")
    ))
}
