//! Measures how long a reader waits for kernel starts and cells of the walkthrough.

use std::fmt::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use crate::check;
use crate::kernel::Kernel;
use crate::notebook::{CodeCell, Notebook};
use crate::project::Project;
use warm_evcxr::files;

/// How often a warm start is measured.
const STARTS: usize = 5;
/// Cells that call these load data or train, so their time is not the kernel's.
const LONG: [&str; 4] = ["get_datasets(", "train_epoch(", "eval_model(", "train_step("];

/// The times of one pass through a notebook.
struct Pass {
    /// From the start of the kernel to the end of the first cell, the one with `:dep`.
    dependencies: Duration,
    /// From the start of the kernel to the end of the first cell that shows a result.
    first_result: Option<Duration>,
    /// The time of each other cell, except long ones.
    cells: Vec<Duration>,
}

/// Measures the notebook at `path` and returns a Markdown table of limits and times.
///
/// # Errors
/// If a cell fails.
pub fn measure(project: &Project, path: &Path) -> Result<String> {
    let cells = Notebook::read(path)?.code_cells();
    ensure!(!cells.is_empty(), "{} has no code", path.display());

    println!("First start, which compiles everything (takes minutes)");
    let first = first_start(project, &cells[..1])?;
    println!("Later starts, {STARTS} times");
    let later = passes(STARTS, || pass(project, &cells[..1], &[]))?;
    println!("Two starts at once, {STARTS} times");
    let both = passes(STARTS, || two_at_once(project, &cells[..1]))?;
    println!("The whole notebook");
    let whole = pass(project, &cells, &[])?;

    let starts = |passes: &[Pass]| passes.iter().map(|pass| pass.dependencies).collect();
    let first_result = whole.first_result.into_iter().collect();
    let mut table = String::from("| | at most | median | slowest |\n|---|---|---|---|\n");
    let mut add = |what: &str, at_most, times| add_row(&mut table, what, at_most, times);
    add("first start, to the end of the `:dep` cell", 240.0, vec![first.dependencies]);
    add("later start, to the end of the `:dep` cell", 8.0, starts(&later));
    add("the same, two notebooks at once (the slower one)", 15.0, starts(&both));
    add("start, to the first result shown", 30.0, first_result);
    add("any other cell without data or training", 0.8, whole.cells);
    Ok(table)
}

/// Measures a start in an empty build folder.
fn first_start(project: &Project, cells: &[CodeCell]) -> Result<Pass> {
    let folder = project.tools().join("kernels/bench");
    files::remove(&folder)?;
    std::fs::create_dir_all(&folder)?;
    let name = folder.to_str().context("the project's path is not UTF-8")?;
    let pass = pass(project, cells, &[("EVCXR_TMPDIR", name)]);
    files::remove(&folder)?;
    pass
}

fn passes(count: usize, mut pass: impl FnMut() -> Result<Pass>) -> Result<Vec<Pass>> {
    (0..count).map(|_| pass()).collect()
}

/// The slower of two passes that start together.
fn two_at_once(project: &Project, cells: &[CodeCell]) -> Result<Pass> {
    let (one, other) = thread::scope(|scope| {
        let other = scope.spawn(|| pass(project, cells, &[]));
        (pass(project, cells, &[]), other.join())
    });
    let (one, other) = (one?, other.map_err(|_| anyhow!("a measurement panicked"))??);
    Ok(if one.dependencies > other.dependencies { one } else { other })
}

/// Starts a kernel and runs the cells.
fn pass(project: &Project, cells: &[CodeCell], environment: &[(&str, &str)]) -> Result<Pass> {
    let start = Instant::now();
    let mut kernel = Kernel::start(project, &project.notebooks(), environment, Box::new(|_| {}))?;
    let mut pass = Pass { dependencies: Duration::ZERO, first_result: None, cells: Vec::new() };
    for cell in cells {
        let begin = Instant::now();
        let outputs = kernel.execute(&cell.source, None, |_| {})?;
        if let Some(problem) =
            check::problem(&CodeCell { outputs: outputs.clone(), ..cell.clone() })
        {
            return Err(anyhow!(check::Failure::new(cell, problem)));
        }
        if cell.number == 1 {
            pass.dependencies = start.elapsed();
        } else if !LONG.iter().any(|call| cell.source.contains(call)) {
            pass.cells.push(begin.elapsed());
        }
        if pass.first_result.is_none() && outputs.iter().any(is_result) {
            pass.first_result = Some(start.elapsed());
        }
    }
    Ok(pass)
}

fn is_result(output: &Value) -> bool {
    output["output_type"] == "execute_result"
}

fn add_row(table: &mut String, what: &str, at_most: f64, mut times: Vec<Duration>) {
    times.sort();
    let (Some(median), Some(slowest)) = (times.get(times.len() / 2), times.last()) else {
        return;
    };
    let (median, slowest) = (median.as_secs_f64(), slowest.as_secs_f64());
    // Writing to a string cannot fail.
    let _ = writeln!(table, "| {what} | {at_most:.1} s | {median:.2} s | {slowest:.2} s |");
}
