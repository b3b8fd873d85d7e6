//! Programs and notebook cells that time themselves on request.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::kernel::Kernel;
use crate::notebook::joined;
use crate::process::{command, output};
use crate::project::Project;
use crate::python::isolate;

/// The prefix of answers among other lines.
const ANSWER: &str = "= ";
/// The prefix of the reason why there is no answer, which is also in the log.
const REFUSAL: &str = "! ";

/// A source of timings.
pub trait Clock {
    /// Runs `count` repetitions and returns the milliseconds per repetition.
    ///
    /// # Errors
    /// If there is no answer; the message includes other output.
    fn time(&mut self, what: &str, batch: usize, count: usize) -> Result<f64>;
}

/// A process that answers requests (lines `what batch count`) until it is dropped.
pub struct Process {
    child: Child,
    requests: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
}

impl Process {
    /// Starts a program limited to `threads` threads. Its standard error goes to the file `log`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(program: &[PathBuf], threads: usize, log: PathBuf) -> Result<Self> {
        let stderr =
            File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut child = on_threads(program, threads)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("cannot start {program:?}"))?;
        Ok(Self {
            requests: child.stdin.take(),
            answers: BufReader::new(child.stdout.take().context("no pipe")?).lines(),
            child,
            log,
        })
    }

    /// Sends a request and returns the answer.
    ///
    /// # Errors
    /// If the program ends without an answer; the message includes the end of its standard error.
    pub fn ask(&mut self, what: &str, batch: usize, count: usize) -> Result<String> {
        // If the program has ended, its answer is missing below.
        if let Some(requests) = &mut self.requests {
            let _ = writeln!(requests, "{what} {batch} {count}");
        }
        for line in &mut self.answers {
            let line = line?;
            if let Some(answer) = line.strip_prefix(ANSWER) {
                return Ok(answer.to_owned());
            }
            if line.starts_with(REFUSAL) {
                break;
            }
        }
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let last = log.lines().rev().take(12).collect::<Vec<_>>();
        let last = last.into_iter().rev().collect::<Vec<_>>().join("\n");
        bail!("no answer to `{what}`:\n{last}\n(full log: {})", self.log.display())
    }
}

impl Clock for Process {
    fn time(&mut self, what: &str, batch: usize, count: usize) -> Result<f64> {
        parse(&self.ask(what, batch, count)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The program exits at the end of its input.
        self.requests = None;
        let _ = self.child.wait();
    }
}

/// A command limited to `threads` threads: by environment variables and, where Linux's `taskset`
/// works, by the number of cores.
fn on_threads(program: &[PathBuf], threads: usize) -> Command {
    let cores = format!("0-{}", threads - 1);
    let has_more_cores = thread::available_parallelism().is_ok_and(|cores| cores.get() > threads);
    let taskset = ["taskset", "--cpu-list", &cores];
    let can_pin = || output(command(taskset[0]).args(&taskset[1..]).arg("true")).is_ok();
    let mut words = program.iter().map(|word| word.as_os_str()).collect::<Vec<_>>();
    if has_more_cores && can_pin() {
        words.splice(0..0, taskset.iter().map(|word| word.as_ref()));
    }
    let mut command = command(words[0]);
    command.args(&words[1..]);
    for variable in ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "NPROC"] {
        command.env(variable, threads.to_string());
    }
    command.env("JAX_PLATFORMS", "cpu").env("CUDA_VISIBLE_DEVICES", "");
    isolate(&mut command).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// A notebook kernel that times steps in cells.
pub struct Cell {
    kernel: Kernel,
}

impl Cell {
    /// Starts a kernel and prepares the tutorial's training steps.
    ///
    /// # Errors
    /// If the kernel does not start or a cell fails.
    pub fn start(project: &Project, threads: usize) -> Result<Self> {
        let threads = threads.to_string();
        let kernel = Kernel::start(
            project,
            &project.notebooks(),
            &[("RAYON_NUM_THREADS", &threads)],
            Box::new(|_| {}),
        )?;
        let mut cell = Self { kernel };
        cell.run(":dep mnist-notebook-support = { path = \"../mnist-notebook-support\" }")?;
        cell.run(
            "use mnist_notebook_support::prelude::*;
            let params: Params = get_initial_params(&Cnn, Key::new(0), &Device::Cpu)?;
            let mut optimizer: Optimizer = create_optimizer(&params, 0.1, 0.9)?;
            let mut jit: Jit = Jit::new();
            let (train_ds, test_ds): (Dataset, Dataset) = get_datasets(&Device::Cpu)?;
            let perms: Vec<u32> = permutation(Key::new(1), train_ds.len());",
        )?;
        Ok(cell)
    }

    /// Runs a cell and returns what it printed.
    fn run(&mut self, code: &str) -> Result<String> {
        let outputs = self.kernel.execute(code, None, |_| {})?;
        let problem = outputs
            .iter()
            .find(|output| output["output_type"] == "error" || output["name"] == "stderr");
        if let Some(problem) = problem {
            bail!("a cell failed: {problem:#}\n{code}");
        }
        Ok(outputs.iter().map(|output| joined(&output["text"])).collect())
    }
}

impl Clock for Cell {
    fn time(&mut self, what: &str, batch: usize, count: usize) -> Result<f64> {
        let printed = self.run(&format!(
            "let start = std::time::Instant::now();
            let mut metrics: Vec<BatchMetrics> = Vec::new();
            for perm in perms.chunks_exact({batch}).take({count}) {{
                let batch = train_ds.batch(perm)?;
                metrics.push(jit.call(|| {what}(&Cnn, &mut optimizer, &batch))?);
            }}
            println!(\"{ANSWER}{{}}\", start.elapsed().as_secs_f64() * 1e3 / {count} as f64);"
        ))?;
        let answer = printed.lines().find_map(|line| line.strip_prefix(ANSWER));
        let answer = answer.with_context(|| format!("no answer in a cell's output `{printed}`"))?;
        parse(answer)
    }
}

fn parse(answer: &str) -> Result<f64> {
    answer.parse().with_context(|| format!("expected a number, not `{answer}`"))
}
