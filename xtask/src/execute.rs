//! Executes a notebook, cell by cell.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use crate::check;
use crate::kernel::Kernel;
use crate::notebook::{CodeCell, Notebook, joined, start_of_code};
use crate::ui::Spinner;

/// The values of parameters with which tests run notebooks: little training, because tests check that
/// it works, not how well.
pub const SHORT: &[(&str, &str)] = &[
    ("train_images", "6_000"),
    ("epochs", "2"),
    ("ablation_images", "640"),
    ("ablation_epochs", "1"),
    ("fashion_epochs", "1"),
];

/// Receives events while a notebook is executed.
pub trait Watcher {
    /// A cell starts; `total` is the number of code cells.
    fn cell(&mut self, cell: &CodeCell, total: usize);
    /// The running cell wrote a line.
    fn line(&mut self, line: &str);
    /// The cell ended.
    fn done(&mut self, took: Duration);
}

/// Executes all code cells in order and returns the notebook with their outputs.
///
/// Stops at the first cell that fails ([`check::problem`]), because later cells depend on it.
///
/// # Errors
/// If the kernel is not running or its driver fails.
pub fn execute(
    source: &Notebook,
    kernel: &mut Kernel,
    limit: Option<Duration>,
    watcher: &mut dyn Watcher,
) -> Result<Notebook> {
    let mut executed = source.clone();
    executed.clear();
    let cells = source.code_cells();
    for mut cell in cells.iter().cloned() {
        watcher.cell(&cell, cells.len());
        let start = Instant::now();
        cell.outputs = run(&cell.source, kernel, limit, watcher)?;
        if cell.number == cells.len() && kernel.is_alive() {
            cell.outputs.extend(pending_stderr(kernel)?);
        }
        executed.set_outputs(cell.index, cell.number, &cell.outputs);
        watcher.done(start.elapsed());
        if check::problem(&cell).is_some() || !kernel.is_alive() {
            break;
        }
    }
    Ok(executed)
}

/// Runs a cell and returns its outputs, with an error if it panicked silently.
fn run(
    source: &str,
    kernel: &mut Kernel,
    limit: Option<Duration>,
    watcher: &mut dyn Watcher,
) -> Result<Vec<Value>> {
    let mut execute = |kernel: &mut Kernel, code: &str| {
        kernel.execute(code, limit, |output| {
            if output["output_type"] == "stream" {
                joined(&output["text"]).lines().for_each(|line| watcher.line(line));
            }
        })
    };
    let Some(marked) = with_marker(source) else {
        return execute(kernel, source);
    };
    let mut outputs = execute(kernel, &marked)?;
    let messages = check::messages(&outputs);
    if messages.iter().any(|message| message.contains(MARKER)) {
        // A compile error that quotes the marker: nothing has run. Get the error for the original.
        return execute(kernel, source);
    }
    if messages.is_empty() {
        outputs.extend(silent_failure(kernel)?);
    }
    Ok(outputs)
}

/// A variable defined at the start of each cell. evcxr keeps it only if the cell does not panic.
///
/// evcxr does not report panics itself but relies on the panic hook, which the notebook or a crate
/// may have replaced, even temporarily, by a silent one.
const MARKER: &str = "this_cell_did_not_panic";

/// The cell with the definition of [`MARKER`], or `None` if it has no code.
fn with_marker(source: &str) -> Option<String> {
    let is_code = |line: &&str| {
        let line = line.trim_start();
        let is_comment = line.starts_with("//") && !line.starts_with("///");
        // Crate attributes, `#![…]`, must come first.
        !(line.is_empty() || is_comment || line.starts_with("#!["))
    };
    let code = &source[start_of_code(source)..];
    let first = code.split_inclusive('\n').find(is_code)?;
    let start = first.as_ptr().addr() - source.as_ptr().addr();
    Some(format!("{}let {MARKER}: () = (); {}", &source[..start], &source[start..]))
}

/// More outputs of the last cell, which has shown no failure: standard error that arrives only now,
/// or else an error if the cell panicked silently.
fn silent_failure(kernel: &mut Kernel) -> Result<Vec<Value>> {
    let mut outputs = kernel.execute(&format!(":type {MARKER}"), None, |_| {})?;
    let has_panicked = outputs.iter().any(|output| output["output_type"] == "error");
    outputs.retain(|output| output["output_type"] == "stream" && output["name"] == "stderr");
    if has_panicked && outputs.is_empty() {
        let value = "the cell panicked, but the panic hook, which the notebook or a crate has \
                     replaced, said nothing";
        outputs.push(
            json!({"output_type": "error", "ename": "Panic", "evalue": value, "traceback": []}),
        );
    }
    Ok(outputs)
}

/// The last cell's standard error that the kernel has not passed on yet.
///
/// The kernel passes on standard error line by line and in order, possibly after the cell has
/// ended. So this prints one more line and waits for it.
fn pending_stderr(kernel: &mut Kernel) -> Result<Vec<Value>> {
    const LAST: &str = "end of the notebook's standard error";
    const LIMIT: Duration = Duration::from_secs(60);
    let mut outputs = kernel.execute(&format!("eprintln!({LAST:?});"), Some(LIMIT), |_| {})?;
    for output in &mut outputs {
        if output["output_type"] == "stream" && output["name"] == "stderr" {
            output["text"] = joined(&output["text"]).replace(&format!("{LAST}\n"), "").into();
        }
    }
    outputs.retain(|output| output["output_type"] != "stream" || output["text"] != "");
    Ok(outputs)
}

/// Shows the execution on screen.
pub struct Screen {
    spinner: Spinner,
}

impl Screen {
    /// A screen that shows nothing yet.
    pub fn new() -> Self {
        Self { spinner: Spinner::new("") }
    }
}

impl Default for Screen {
    fn default() -> Self {
        Self::new()
    }
}

impl Watcher for Screen {
    fn cell(&mut self, cell: &CodeCell, total: usize) {
        let first = cell.source.lines().next().unwrap_or_default();
        self.spinner.line(&format!("[{:>2}/{total}] {} · {first}", cell.number, cell.title));
        self.spinner.restart("");
    }

    fn line(&mut self, line: &str) {
        self.spinner.line(&format!("        {line}"));
    }

    fn done(&mut self, took: Duration) {
        self.spinner.line(&format!("        ({:.1} s)", took.as_secs_f64()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marker_goes_before_the_first_line_of_code() {
        let marked = with_marker(":dep a = \"1\"\n\n// Text\nf(\n  \":\")").unwrap();
        let expected = format!(":dep a = \"1\"\n\n// Text\nlet {MARKER}: () = (); f(\n  \":\")");
        assert_eq!(marked, expected);
        let marked = with_marker("#![allow(dead_code)]\n/// Text\nfn f() {}").unwrap();
        assert_eq!(
            marked,
            format!("#![allow(dead_code)]\nlet {MARKER}: () = (); /// Text\nfn f() {{}}")
        );
        for no_code in ["", "\n", ":vars", "// Text\n!ls\n"] {
            assert_eq!(with_marker(no_code), None, "{no_code:?}");
        }
    }
}
