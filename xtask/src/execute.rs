//! Executes a notebook cell by cell, showing on screen what it does.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use crate::check;
use crate::kernel::Kernel;
use crate::notebook::{CodeCell, Notebook, joined, start_of_code};
use crate::ui::Spinner;

/// Told what happens while a notebook is executed.
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
/// Stops at the first cell that fails ([`check::problem`]): the cells after it would fail for its sake.
///
/// # Errors
/// When the kernel is gone before the first cell.
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
            cell.outputs.extend(late_errors(kernel)?);
        }
        executed.set_outputs(cell.index, cell.number, &cell.outputs);
        watcher.done(start.elapsed());
        if check::problem(&cell).is_some() || !kernel.is_alive() {
            break;
        }
    }
    Ok(executed)
}

/// The outputs of a cell, among them any panic that it has kept to itself.
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
    let Some(marked) = with_mark(source) else {
        return execute(kernel, source);
    };
    let mut outputs = execute(kernel, &marked)?;
    let messages = check::messages(&outputs);
    if messages.iter().any(|message| message.contains(MARK)) {
        // The compiler quotes the line with the mark, so nothing has run: let it quote the cell as it is.
        return execute(kernel, source);
    }
    if messages.is_empty() {
        outputs.extend(silent_failure(kernel)?);
    }
    Ok(outputs)
}

/// A variable that a cell defines first; evcxr keeps it only if the cell does not panic.
///
/// evcxr itself says nothing of a panic: it leaves that to the panic hook, which the notebook, or any crate, may have
/// replaced by one that says nothing, if only for a moment.
const MARK: &str = "this_cell_did_not_panic";

/// The code of a cell that defines [`MARK`], too; `None` if there is none, but only commands of evcxr and comments.
fn with_mark(source: &str) -> Option<String> {
    let is_code = |line: &&str| {
        let line = line.trim_start();
        let is_comment = line.starts_with("//") && !line.starts_with("///");
        // An attribute of the whole crate, `#![…]`, must stay in front.
        !(line.is_empty() || is_comment || line.starts_with("#!["))
    };
    let code = &source[start_of_code(source)..];
    let first = code.split_inclusive('\n').find(is_code)?;
    let start = first.as_ptr().addr() - source.as_ptr().addr();
    Some(format!("{}let {MARK}: () = (); {}", &source[..start], &source[start..]))
}

/// What there is to say of the last cell, which has said nothing of a failure: that it has panicked all the same, or
/// what it wrote to standard error and the kernel passes on only now.
fn silent_failure(kernel: &mut Kernel) -> Result<Vec<Value>> {
    let mut outputs = kernel.execute(&format!(":type {MARK}"), None, |_| {})?;
    let has_panicked = outputs.iter().any(|output| output["output_type"] == "error");
    outputs.retain(|output| output["output_type"] == "stream" && output["name"] == "stderr");
    if has_panicked && outputs.is_empty() {
        let value = "the cell panicked, and the panic hook, which the notebook or a crate has replaced, said nothing";
        outputs.push(
            json!({"output_type": "error", "ename": "Panic", "evalue": value, "traceback": []}),
        );
    }
    Ok(outputs)
}

/// What the last cell wrote to standard error and the kernel has not passed on yet.
///
/// The kernel passes on standard error line by line, in order, and not before a cell ends. So once a line of our own
/// has come, all lines before it have come, too.
fn late_errors(kernel: &mut Kernel) -> Result<Vec<Value>> {
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

/// Shows the execution in a terminal, or as plain lines elsewhere.
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
    fn the_mark_goes_before_the_first_line_of_code() {
        let marked = with_mark(":dep a = \"1\"\n\n// Text\nf(\n  \":\")").unwrap();
        let expected = format!(":dep a = \"1\"\n\n// Text\nlet {MARK}: () = (); f(\n  \":\")");
        assert_eq!(marked, expected);
        let marked = with_mark("#![allow(dead_code)]\n/// Text\nfn f() {}").unwrap();
        assert_eq!(
            marked,
            format!("#![allow(dead_code)]\nlet {MARK}: () = (); /// Text\nfn f() {{}}")
        );
        for no_code in ["", "\n", ":vars", "// Text\n!ls\n"] {
            assert_eq!(with_mark(no_code), None, "{no_code:?}");
        }
    }
}
