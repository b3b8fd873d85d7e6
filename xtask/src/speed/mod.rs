//! Compares the training speed of this crate, stock candle, JAX and PyTorch on the same machine.
//!
//! A machine's speed changes from minute to minute. So the contenders alternate: in each round,
//! each runs steps for a fraction of a second, and ratios are taken only within a round.

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

use crate::device::Allowed;
use crate::process::{self, command, output};
use crate::project::Project;
use crate::setup::{PERFORMANCE_VARIABLES, set_up, usable_notebooks};
use crate::ui::Spinner;
use clock::{Cell, Clock, Process};
use report::{Row, Target};
use statistics::{median, ratios};
use warm_evcxr::files;

/// Threads of every contender in the table.
const THREADS: usize = 2;
/// Images per step, as in the tutorial.
const BATCH: usize = 32;
/// Images per step of the networks with batch norm, as in `make_it_yours.ipynb`.
const LARGER_BATCH: usize = 128;
/// Rounds for each row of the table.
const ROUNDS: usize = 15;
/// Rounds for each batch size.
const SCALING_ROUNDS: usize = 7;
/// The batch sizes at which step times are measured.
const BATCHES: [usize; 5] = [1, 8, 32, 128, 512];
/// The target duration of a turn in ms.
const TURN_MS: f64 = 300.0;
/// The pause before each turn, until threads of the previous contender stop spinning.
const REST: Duration = Duration::from_millis(50);
/// Floating-point operations of one of the tutorial's training steps, per image.
const STEP_FLOP: f64 = 2.0 * 13.7e6;

/// Measures everything, prints a table, and saves it with all times under `target/bench`.
///
/// Measures memory over ten epochs if `full`, otherwise over two.
///
/// # Errors
/// If something cannot be installed or built, or does not answer.
pub fn compare(project: &Project, full: bool) -> Result<()> {
    set_up(project, &usable_notebooks(project)?, Allowed::Cpu)?;
    peers::install(project)?;
    let bench = Bench::new(project)?;
    let mut times = Times::default();
    let mut rows = bench.steps(&mut times)?;
    rows.push(bench.datasets(&mut times)?);
    rows.push(bench.memory(if full { 10 } else { 2 })?);
    let mut scaling_times = Times::default();
    let scaling = bench.scaling(&mut scaling_times)?;

    let table = report::table(&bench.machine()?, &rows);
    let folder = &bench.folder;
    files::write(&folder.join("table.md"), &table)?;
    files::write(&folder.join("table_times.csv"), &times.csv())?;
    files::write(&folder.join("step_times.csv"), &scaling)?;
    files::write(&folder.join("step_times_all.csv"), &scaling_times.csv())?;
    println!("\n{table}\nMilliseconds per step:\n{scaling}");
    println!("Saved in {}, with the times of all rounds", folder.display());
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Contender {
    Ours,
    Notebook,
    Candle,
    Jax,
    Torch,
    Gemm,
}

/// A contender, what it runs, and the batch size.
type Turn = (Contender, &'static str, usize);

/// The running contenders.
type Clocks = BTreeMap<Contender, Box<dyn Clock>>;

/// Milliseconds of each round, by number of threads and turn.
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

/// Everything needed to start the contenders.
struct Bench<'a> {
    project: &'a Project,
    /// The program that times this crate.
    ours: PathBuf,
    /// The program that times matrix products.
    gemm: PathBuf,
    /// The folder for tables and logs.
    folder: PathBuf,
    spinner: Spinner,
}

impl<'a> Bench<'a> {
    fn new(project: &'a Project) -> Result<Self> {
        println!("Building the benchmark programs");
        let build = |folder: &Path, arguments: &[&str]| -> Result<PathBuf> {
            let mut cargo = command("cargo");
            cargo.args(["build", "--quiet", "--release"]).args(arguments);
            let programs = process::build(cargo.current_dir(folder))?;
            Ok(programs.into_iter().next_back().context("Cargo built no program")?.1)
        };
        let contender = ["--package", "mnist-notebook-support", "--bench", "contender"];
        let ours = build(project.root(), &contender)?;
        let gemm = build(
            &project.root().join("xtask/gemm-rate"),
            &["--target-dir", "../../target/gemm-rate"],
        )?;
        let folder = project.root().join("target/bench");
        fs::create_dir_all(&folder)?;
        Ok(Self { project, ours, gemm, folder, spinner: Spinner::new("") })
    }

    /// Measures steps and evaluation.
    fn steps(&self, times: &mut Times) -> Result<Vec<Row>> {
        const STEP: Turn = (Contender::Ours, "train_step", BATCH);
        const JAX: Turn = (Contender::Jax, "train_step", BATCH);
        const TORCH: Turn = (Contender::Torch, "train_step", BATCH);
        const CANDLE: Turn = (Contender::Candle, "train_step_candle", BATCH);
        const PRODUCTS: Turn = (Contender::Gemm, "gemm", BATCH);
        const CELL: Turn = (Contender::Notebook, "train_step", BATCH);
        const OWN: Turn = (Contender::Ours, "own_module", BATCH);
        const OWN_JIT: Turn = (Contender::Ours, "own_module_jit", BATCH);
        const OWN_JAX: Turn = (Contender::Jax, "own_module", BATCH);
        const MY_NET: Turn = (Contender::Ours, "my_net", LARGER_BATCH);
        const MY_NET_JAX: Turn = (Contender::Jax, "my_net", LARGER_BATCH);
        const RESNET: Turn = (Contender::Ours, "resnet", LARGER_BATCH);
        const RESNET_JAX: Turn = (Contender::Jax, "resnet", LARGER_BATCH);
        const EVAL: Turn = (Contender::Ours, "eval_model", 0);
        const EVAL_JAX: Turn = (Contender::Jax, "eval_model", 0);

        use Contender::{Candle, Gemm, Jax, Notebook, Ours, Torch};

        self.spinner.line("Starting all contenders");
        let mut clocks = self.start_all(&[Ours, Candle, Jax, Torch, Gemm], THREADS)?;
        let cell = Cell::start(self.project, THREADS)?;
        clocks.insert(Notebook, Box::new(cell));
        let mut run = |turns: &[Turn]| self.run_rounds(&mut clocks, turns, THREADS, ROUNDS, times);
        run(&[STEP, JAX, TORCH, CANDLE, PRODUCTS, CELL])?;
        run(&[OWN, OWN_JAX, OWN_JIT])?;
        run(&[MY_NET, MY_NET_JAX])?;
        run(&[RESNET, RESNET_JAX])?;
        run(&[EVAL, EVAL_JAX])?;

        let of = |turn| times.of(THREADS, turn);
        let faster = |what: &str, ours, theirs, bound| {
            Row::new(what, of(ours), of(theirs), &ratios(of(theirs), of(ours)), bound)
        };
        let share: Vec<f64> = ratios(of(PRODUCTS), of(STEP)).iter().map(|it| it * 100.0).collect();
        let rate = STEP_FLOP * BATCH as f64 / median(of(PRODUCTS)) / 1e6;
        let gemm = format!("train_step as a share of the gemm rate of {rate:.0} GFLOP/s");
        let my_net =
            format!("make_it_yours' network, AdamW, batch {LARGER_BATCH}, against JAX jit");
        let resnet = format!("small ResNet, momentum, batch {LARGER_BATCH}, against JAX jit");
        let own = "own module, through autograd, against JAX jit";
        let own_jit = "own module, compiled, against JAX jit";
        let cell = "train_step in a notebook cell against the release binary";
        Ok(vec![
            faster("train_step against JAX/Flax jit", STEP, JAX, Target::AtLeast(5.0, "×")),
            faster(
                "train_step against torch.compile, channels last",
                STEP,
                TORCH,
                Target::AtLeast(1.6, "×"),
            ),
            faster("train_step against stock candle", STEP, CANDLE, Target::AtLeast(20.0, "×")),
            Row::new(&gemm, of(STEP), of(PRODUCTS), &share, Target::AtLeast(45.0, "%")),
            faster(
                "eval_model, 10,000 images, against JAX",
                EVAL,
                EVAL_JAX,
                Target::AtLeast(2.4, "×"),
            ),
            faster(own, OWN, OWN_JAX, Target::AtLeast(2.2, "×")),
            faster(own_jit, OWN_JIT, OWN_JAX, Target::None("×")),
            faster(&my_net, MY_NET, MY_NET_JAX, Target::AtLeast(3.0, "×")),
            faster(&resnet, RESNET, RESNET_JAX, Target::AtLeast(2.5, "×")),
            Row::new(
                cell,
                of(CELL),
                of(STEP),
                &ratios(of(CELL), of(STEP)),
                Target::AtMost(1.1, "×"),
            ),
        ])
    }

    /// Measures `get_datasets`, from files to tensors, in a fresh process each time.
    fn datasets(&self, times: &mut Times) -> Result<Row> {
        const TURN: Turn = (Contender::Ours, "get_datasets", 0);
        self.spinner.restart("get_datasets");
        for _ in 0..ROUNDS {
            let ms = self.start(Contender::Ours, THREADS)?.time(TURN.1, TURN.2, 1)?;
            times.0.entry((THREADS, TURN)).or_default().push(ms);
        }
        let ms = times.of(THREADS, TURN);
        let seconds: Vec<f64> = ms.iter().map(|ms| ms / 1e3).collect();
        Ok(Row::new("get_datasets, to tensors ready", ms, &[], &seconds, Target::AtMost(0.5, "s")))
    }

    /// Measures the peak memory of a run of `epochs` epochs.
    fn memory(&self, epochs: usize) -> Result<Row> {
        self.spinner.restart(&format!("memory of {epochs} epochs"));
        let answer = self.start(Contender::Ours, THREADS)?.ask("memory", BATCH, epochs)?;
        let memory = answer.split_whitespace().map(str::parse);
        let memory = memory.collect::<Result<Vec<f64>, _>>().context("expected numbers")?;
        let (peak, after_epochs) = memory.split_last().context("the answer has no number")?;
        let [first, .., last] = after_epochs else {
            bail!("the answer lacks the memory after each epoch");
        };
        let what = format!(
            "peak memory of {epochs} epochs, the whole process (after epoch 1: {first:.0} MB, \
             after epoch {epochs}: {last:.0} MB)"
        );
        Ok(Row::new(&what, &[], &[], &[*peak], Target::AtMost(700.0, "MB")))
    }

    /// Measures our and JAX's step times by batch size and returns them as CSV.
    fn scaling(&self, times: &mut Times) -> Result<String> {
        let mut csv = String::from("threads,batch,ours_ms,jax_ms\n");
        for threads in [1, 2] {
            let mut clocks = self.start_all(&[Contender::Ours, Contender::Jax], threads)?;
            for batch in BATCHES {
                let turns = [Contender::Ours, Contender::Jax].map(|who| (who, "train_step", batch));
                self.run_rounds(&mut clocks, &turns, threads, SCALING_ROUNDS, times)?;
                let [ours, jax] = turns.map(|turn| median(times.of(threads, turn)));
                csv += &format!("{threads},{batch},{ours:.3},{jax:.3}\n");
            }
        }
        Ok(csv)
    }

    /// Runs all turns, round by round. Every other round is in reverse order, so that no contender
    /// always follows the same one.
    fn run_rounds(
        &self,
        clocks: &mut Clocks,
        turns: &[Turn],
        threads: usize,
        rounds: usize,
        times: &mut Times,
    ) -> Result<()> {
        let mut ask = |(who, what, batch): Turn, count| {
            let clock = clocks.get_mut(&who).context("the contender was not started")?;
            clock.time(what, batch, count).with_context(|| format!("{who:?} failed"))
        };
        let mut counts = Vec::new();
        for &turn in turns {
            self.spinner.restart(&format!("{turn:?}: preparing"));
            // The first repetitions compile and warm up; the next show how many fit into a turn.
            ask(turn, 3)?;
            let ms = ask(turn, 3)?;
            counts.push((TURN_MS / ms).clamp(1.0, 100.0) as usize);
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

    fn start_all(&self, contenders: &[Contender], threads: usize) -> Result<Clocks> {
        let start = |&who| Ok((who, Box::new(self.start(who, threads)?) as Box<dyn Clock>));
        contenders.iter().map(start).collect()
    }

    fn start(&self, who: Contender, threads: usize) -> Result<Process> {
        let python = peers::python(self.project);
        let script = |name| peers::scripts(self.project).join(name);
        let program = match who {
            Contender::Jax => vec![python, script("jax_steps.py")],
            Contender::Torch => vec![python, script("torch_steps.py")],
            Contender::Gemm => vec![self.gemm.clone()],
            Contender::Candle => vec![self.ours.clone()],
            // With the variables of the notebooks' kernel.
            Contender::Ours | Contender::Notebook => {
                let set = |(name, value)| format!("{name}={value}").into();
                let variables = PERFORMANCE_VARIABLES.map(set);
                [vec!["env".into()], variables.into(), vec![self.ours.clone()]].concat()
            }
        };
        let log = self.folder.join(format!("{who:?}.log").to_lowercase());
        Process::start(&program, threads, log)
    }

    /// A description of the machine and the versions measured.
    fn machine(&self) -> Result<String> {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let named = info.lines().find_map(|line| line.strip_prefix("model name"));
        let model =
            named.and_then(|rest| rest.split_once(": ")).map_or(std::env::consts::ARCH, |it| it.1);
        let cores = thread::available_parallelism()?;
        let used = self.start(Contender::Ours, THREADS)?.ask("processor", 0, 0)?;
        let rust = output(command("rustc").arg("--version"))?;
        let peers = peers::versions(self.project, &["jax", "flax", "torch"]);
        ensure!(peers.len() == 3, "xtask/peers/requirements.txt does not pin jax, flax and torch");
        Ok(format!(
            "{model}, {cores} cores, {THREADS} threads each (this crate: {used}), f32, \
             batch {BATCH}; {}; {}",
            rust.split(" (").next().unwrap_or_default(),
            peers.join(", ")
        ))
    }
}
