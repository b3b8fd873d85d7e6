//! How long a reader waits: starts and cells of the walkthrough, measured through the real kernel.

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
/// Cells that call these are about data or training, whose time is not the notebook's.
const LONG: [&str; 4] = ["get_datasets(", "train_epoch(", "eval_model(", "train_step("];

/// Times of one pass through a notebook, from the moment its kernel is asked for.
struct Pass {
    /// To the end of the first cell, the one with `:dep`.
    dependencies: Duration,
    /// To the end of the first cell that shows a result; none where no cell does.
    first_result: Option<Duration>,
    /// Each of the other cells alone, long ones left out.
    cells: Vec<Duration>,
}

/// Measures the notebook at `path` and returns a table (Markdown) of what was wanted and what was found.
///
/// # Errors
/// When a cell fails.
pub fn measure(project: &Project, path: &Path) -> Result<String> {
    let cells = Notebook::read(path)?.code_cells();
    ensure!(!cells.is_empty(), "{} has no code", path.display());

    println!("First start, everything compiled: some minutes");
    let first = first_start(project, &cells[..1])?;
    println!("Later starts, {STARTS} times");
    let later = passes(STARTS, || pass(project, &cells[..1], &[]))?;
    println!("Two starts at once, {STARTS} times");
    let both = passes(STARTS, || two_at_once(project, &cells[..1]))?;
    println!("The whole notebook, its training cut short");
    let whole = pass(project, &cells, &[])?;

    let starts = |passes: &[Pass]| passes.iter().map(|pass| pass.dependencies).collect();
    let mut table = String::from("| | at most | median | slowest |\n|---|---|---|---|\n");
    row(
        &mut table,
        "first start ever, to the end of the `:dep` cell",
        240.0,
        vec![first.dependencies],
    );
    row(&mut table, "later start, to the end of the `:dep` cell", 8.0, starts(&later));
    row(&mut table, "the same, two notebooks at once (the slower one)", 15.0, starts(&both));
    row(
        &mut table,
        "start to the first result shown",
        30.0,
        whole.first_result.into_iter().collect(),
    );
    row(&mut table, "another cell, data and training left out", 0.8, whole.cells);
    Ok(table)
}

/// A start in an empty build folder.
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

fn row(table: &mut String, what: &str, at_most: f64, mut times: Vec<Duration>) {
    times.sort();
    let (Some(median), Some(slowest)) = (times.get(times.len() / 2), times.last()) else {
        return;
    };
    let (median, slowest) = (median.as_secs_f64(), slowest.as_secs_f64());
    // Writing to a string does not fail.
    let _ = writeln!(table, "| {what} | {at_most:.1} s | {median:.2} s | {slowest:.2} s |");
}
