//! Finds failures in an executed notebook.
//!
//! evcxr answers `ok` even if a cell panics or returns an error through `?`: only standard error
//! shows it. So any output on standard error counts as a failure, and so do `error` outputs and
//! cells that never ran. Panics without output are detected during execution, which adds an `error`
//! output ([`crate::execute`]).

use std::fmt;

use serde_json::Value;

use crate::notebook::{CodeCell, Notebook, joined};

/// The name of the error if the kernel died.
pub const KERNEL_DIED: &str = "KernelDied";
/// The name of the error if the cell exceeded its time limit.
pub const TIME_LIMIT: &str = "TimeLimit";
/// The name of the error if the cell's last line has no end, for which evcxr would wait forever.
pub const OPEN_LINE: &str = "OpenLine";

/// A failed cell and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Position among the code cells, from 1.
    pub number: usize,
    /// The last heading above the cell.
    pub title: String,
    /// The cell's code.
    pub source: String,
    /// The reason, usually in the kernel's words.
    pub problem: String,
}

impl Failure {
    /// A failure of `cell`.
    pub fn new(cell: &CodeCell, problem: impl Into<String>) -> Self {
        Self {
            number: cell.number,
            title: cell.title.clone(),
            source: cell.source.clone(),
            problem: problem.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "cell {} ({})",
            self.number,
            if self.title.is_empty() { "no title" } else { &self.title }
        )?;
        for line in self.source.lines() {
            writeln!(f, "  | {line}")?;
        }
        for line in self.problem.lines() {
            writeln!(f, "  {line}")?;
        }
        Ok(())
    }
}

/// All failures in `executed`, which must contain every code cell of `source` in the same order.
pub fn failures(source: &Notebook, executed: &Notebook) -> Vec<Failure> {
    let executed = executed.code_cells();
    let mut rest = executed.iter();
    let mut failures = Vec::new();
    let mut last_count = 0;
    for cell in source.code_cells() {
        let Some(ran) = rest.clone().find(|ran| ran.source == cell.source && ran.id == cell.id)
        else {
            failures.push(Failure::new(&cell, "is missing in the executed notebook"));
            continue;
        };
        while rest.next().is_some_and(|passed| passed.index != ran.index) {}
        match ran.count {
            None => failures.push(Failure::new(&cell, "was never executed")),
            Some(count) if count <= last_count => {
                failures.push(Failure::new(&cell, "was executed out of order"));
            }
            Some(count) => {
                last_count = count;
                failures.extend(problem(ran).map(|problem| Failure::new(&cell, problem)));
            }
        }
    }
    failures
}

/// The problem of an executed cell, if any, judged by its outputs.
///
/// A cell tagged `raises-exception` must fail, but not kill the kernel or exceed its time limit.
pub fn problem(cell: &CodeCell) -> Option<String> {
    let messages = messages(&cell.outputs);
    let is_fatal = |output: &&Value| {
        [KERNEL_DIED, TIME_LIMIT, OPEN_LINE].iter().any(|it| output["ename"] == *it)
    };
    match (cell.raises, messages.is_empty()) {
        (true, true) => Some("is tagged `raises-exception`, but nothing failed".to_owned()),
        (true, false) => cell.outputs.iter().find(is_fatal).and_then(message),
        (false, true) => None,
        (false, false) => Some(messages.join("\n")),
    }
}

/// How far an accuracy may fall, in percentage points: processors round differently, so runs
/// diverge.
const TOLERANCE: f64 = 2.0;

/// All cells that reach a lower accuracy than the outputs in `source` show, after as many epochs:
/// the short training of tests is not compared with a long one.
pub fn less_accurate(source: &Notebook, executed: &Notebook) -> Vec<Failure> {
    let executed = executed.code_cells();
    let lower = |cell: &CodeCell| {
        let (epochs, shown) = last_accuracy(cell)?;
        let ran = executed.iter().find(|ran| ran.id == cell.id).and_then(last_accuracy);
        let (_, found) = ran.filter(|(last, _)| *last == epochs)?;
        // Written so that NaN counts as too low.
        let is_enough = found >= shown - TOLERANCE;
        let problem = format!(
            "the accuracy on the test set is {found} % in the end, where the notebook shows \
             {shown} %"
        );
        (!is_enough).then(|| Failure::new(cell, problem))
    };
    source.code_cells().iter().filter_map(lower).collect()
}

/// The last epoch that a cell printed, and the test accuracy after it in percent.
fn last_accuracy(cell: &CodeCell) -> Option<(usize, f64)> {
    let texts = cell.outputs.iter().map(|output| joined(&output["text"])).collect::<String>();
    let last = texts.lines().rfind(|line| line.starts_with("Testing - epoch: "))?;
    let (epoch, accuracy) = last.rsplit_once("accuracy: ")?;
    let (epoch, _) = epoch.strip_prefix("Testing - epoch: ")?.split_once(',')?;
    Some((epoch.parse().ok()?, accuracy.trim().parse().ok()?))
}

/// The messages of all outputs that report failures.
pub fn messages(outputs: &[Value]) -> Vec<String> {
    outputs.iter().filter_map(message).collect()
}

/// The message of an output that reports a failure.
fn message(output: &Value) -> Option<String> {
    if output["output_type"] == "stream" && output["name"] == "stderr" {
        return Some(format!("standard error: {}", joined(&output["text"]).trim_end()));
    }
    if output["output_type"] != "error" {
        return None;
    }
    let traceback: Vec<&str> =
        output["traceback"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let value = output["evalue"].as_str().unwrap_or_default();
    Some(if traceback.is_empty() {
        format!("{}: {value}", output["ename"].as_str().unwrap_or("error"))
    } else {
        strip_color_codes(&traceback.join("\n"))
    })
}

/// The text without terminal color codes (`ESC [ … m`).
fn strip_color_codes(text: &str) -> String {
    let mut pieces = text.split("\u{1b}[");
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        plain += piece.split_once('m').map_or(piece, |(_, rest)| rest);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cell(id: &str, count: Value, outputs: Value) -> Value {
        json!({"cell_type": "code", "id": id, "metadata": {}, "source": format!("code of {id}"),
               "execution_count": count, "outputs": outputs})
    }

    fn notebook(cells: &[Value]) -> Notebook {
        Notebook::parse(&json!({"cells": cells}).to_string()).unwrap()
    }

    fn problems(cells: &[Value]) -> Vec<(usize, String)> {
        let notebook = notebook(cells);
        failures(&notebook, &notebook).into_iter().map(|f| (f.number, f.problem)).collect()
    }

    fn stderr(text: &str) -> Value {
        json!([{"output_type": "stream", "name": "stderr", "text": [text]}])
    }

    #[test]
    fn a_good_notebook_has_no_failures() {
        let good = [
            cell(
                "a",
                json!(2),
                json!([{"output_type": "stream", "name": "stdout", "text": "panicked at\n"}]),
            ),
            cell(
                "b",
                json!(3),
                json!([{"output_type": "execute_result", "data": {"text/plain": "error"}}]),
            ),
            cell("c", json!(4), json!([])),
        ];
        assert_eq!(problems(&good), []);
    }

    #[test]
    fn standard_error_is_a_failure_with_its_text() {
        let found =
            problems(&[cell("a", json!(1), stderr("thread panicked at src/lib.rs:1:1:\nboom\n"))]);
        assert_eq!(
            found,
            [(1, "standard error: thread panicked at src/lib.rs:1:1:\nboom".to_owned())]
        );
    }

    #[test]
    fn an_error_output_is_a_failure_with_a_plain_traceback() {
        let error = json!([{"output_type": "error", "ename": "Error", "evalue": "mismatched types",
                            "traceback": ["\u{1b}[31m[E0308] Error:\u{1b}[0m mismatched types",
                                          "line 2"]}]);
        let found = problems(&[cell("a", json!(1), error)]);
        assert_eq!(found, [(1, "[E0308] Error: mismatched types\nline 2".to_owned())]);
    }

    #[test]
    fn a_cell_that_never_ran_is_a_failure() {
        let found = problems(&[cell("a", json!(1), json!([])), cell("b", Value::Null, json!([]))]);
        assert_eq!(found, [(2, "was never executed".to_owned())]);
    }

    #[test]
    fn a_cell_executed_out_of_order_is_a_failure() {
        let found = problems(&[cell("a", json!(5), json!([])), cell("b", json!(3), json!([]))]);
        assert_eq!(found, [(2, "was executed out of order".to_owned())]);
    }

    #[test]
    fn an_accuracy_far_below_the_one_shown_is_a_failure() {
        let trained = |accuracies: &[&str]| {
            let line = |(epoch, accuracy): (usize, &&str)| {
                format!("Training\nTesting - epoch: {epoch}, loss: 0.10, accuracy: {accuracy}\n")
            };
            let text: Vec<String> = (1..).zip(accuracies).map(line).collect();
            let output = json!([{"output_type": "stream", "name": "stdout", "text": text}]);
            notebook(&[cell("a", json!(1), json!([])), cell("b", json!(2), output)])
        };
        let found = |accuracies: &[&str]| {
            less_accurate(&trained(&["98.00", "99.25"]), &trained(accuracies))
        };
        for good in [&["10.00", "99.25"], &["98.00", "97.25"], &["98.00", "100.00"]] {
            assert_eq!(found(good), []);
        }
        assert_eq!(found(&["10.00"]), []); // a shorter training
        for bad in [["99.25", "97.24"], ["99.25", "NaN"]] {
            let found = found(&bad);
            assert_eq!((found.len(), found[0].number), (1, 2));
            assert!(found[0].problem.ends_with("where the notebook shows 99.25 %"));
        }
    }

    #[test]
    fn a_removed_or_changed_cell_is_a_failure() {
        let (a, b, c) = (
            cell("a", json!(1), json!([])),
            cell("b", json!(2), json!([])),
            cell("c", json!(3), json!([])),
        );
        let source = notebook(&[a.clone(), b.clone(), c.clone()]);
        let found = failures(&source, &notebook(&[a.clone(), c.clone()]));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].number, &*found[0].source), (2, "code of b"));
        let mut changed = b;
        changed["source"] = json!("other");
        assert_eq!(failures(&source, &notebook(&[a, changed, c])).len(), 1);
    }

    #[test]
    fn cells_tagged_as_raising_must_fail_without_killing_the_kernel() {
        let tagged = |outputs: Value| {
            let mut cell = cell("a", json!(1), outputs);
            cell["metadata"]["tags"] = json!(["raises-exception"]);
            problems(&[cell])
        };
        let died = json!([{"output_type": "error", "ename": KERNEL_DIED, "evalue": "gone",
                           "traceback": []}]);
        assert_eq!(tagged(stderr("wrong shape")), []);
        assert_eq!(
            tagged(json!([])),
            [(1, "is tagged `raises-exception`, but nothing failed".to_owned())]
        );
        assert_eq!(tagged(died), [(1, "KernelDied: gone".to_owned())]);
    }
}
