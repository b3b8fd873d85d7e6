//! Failures in notebooks are detected: the real kernel executes small notebooks that fail in
//! different ways. And the committed notebooks are tidy.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use xtask::check::{Failure, failures, less_accurate};
use xtask::execute::{SHORT, Watcher, execute};
use xtask::kernel::Kernel;
use xtask::mirror;
use xtask::notebook::{CodeCell, Notebook, joined};
use xtask::process::{build, command, output};
use xtask::project::Project;
use xtask::tidy::untidy;

struct Silent;

impl Watcher for Silent {
    fn cell(&mut self, _: &CodeCell, _: usize) {}
    fn line(&mut self, _: &str) {}
    fn done(&mut self, _: Duration) {}
}

/// A kernel that runs in `folder`; reports a skipped test if it is not set up.
fn start_kernel(what: &str, folder: &Path) -> Option<Kernel> {
    let project = Project::new();
    if !project.kernelspec().is_file() {
        let why = "the Jupyter kernel is not set up (`cargo xtask test` does it)";
        tests::skipped(&format!("notebook `{what}`"), why);
        return None;
    }
    Some(Kernel::start(&project, folder, &[], Box::new(|_| {})).unwrap())
}

/// Executes a notebook of `tests/fixtures`: its outputs and failures, or `None` without a kernel.
fn execute_fixture(name: &str, limit: Duration) -> Option<(Notebook, Vec<Failure>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let source = Notebook::read(&folder.join(name).with_extension("ipynb")).unwrap();
    let mut kernel = start_kernel(name, &folder)?;
    let executed = execute(&source, &mut kernel, Some(limit), &mut Silent).unwrap();
    let failures = failures(&source, &executed);
    Some((executed, failures))
}

/// Asserts that cell `number` is the first to fail, with all of `words` in its message, and that
/// the cells after it were not executed.
fn assert_fails(name: &str, number: usize, words: &[&str]) {
    let Some((executed, failures)) = execute_fixture(name, Duration::from_secs(120)) else {
        return;
    };
    let first = &failures[0];
    assert_eq!(first.number, number, "{failures:#?}");
    let shown = first.to_string();
    let cells = executed.code_cells();
    let first_line = cells[number - 1].source.lines().next().unwrap();
    for word in words.iter().copied().chain([first_line]) {
        assert!(shown.contains(word), "`{word}` is not in:\n{shown}");
    }
    let rest = executed.code_cells().len() - number;
    assert_eq!(failures[1..].iter().filter(|f| f.problem == "was never executed").count(), rest);
    assert_eq!(failures.len(), 1 + rest, "{failures:#?}");
}

#[test]
fn committed_notebooks_are_tidy() {
    for path in Project::new().notebook_files().unwrap() {
        let untidy = untidy(&Notebook::read(&path).unwrap());
        assert!(untidy.is_empty(), "{}:\n{}", path.display(), untidy.join("\n"));
    }
}

#[test]
fn the_walkthrough_defines_what_the_crate_defines() {
    let project = Project::new();
    let path = project.root().join("notebooks/annotated_mnist.ipynb");
    let walkthrough = Notebook::read(&path).unwrap();
    let (differences, lines) = mirror::differences(&project, &walkthrough).unwrap();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(lines <= 110, "the definitions have {lines} lines");

    // A line that differs is named.
    let changed = walkthrough.text().replace(".mean(0)?.neg()?)", ".mean(0)?)");
    let changed = Notebook::parse(&changed).unwrap();
    let (differences, _) = mirror::differences(&project, &changed).unwrap();
    assert_eq!(differences.len(), 1, "{differences:#?}");
    assert!(differences[0].contains("`fn cross_entropy_loss`, line 3"), "{}", differences[0]);
}

#[test]
fn the_first_cell_of_each_notebook_compiles_nothing() {
    let project = Project::new();
    if !project.kernelspec().is_file() {
        tests::skipped("the first cells", "the Jupyter kernel is not set up");
        return;
    }
    for path in project.notebook_files().unwrap() {
        let (sender, compiled) = std::sync::mpsc::channel();
        let on_build = Box::new(move |line: &str| sender.send(line.to_owned()).unwrap());
        let folder = path.parent().unwrap();
        let mut kernel = Kernel::start(&project, folder, &[], on_build).unwrap();
        let first = &Notebook::read(&path).unwrap().code_cells()[0];
        assert!(first.source.contains(":dep "), "{}", path.display());
        let outputs = kernel.execute(&first.source, None, |_| {}).unwrap();
        assert_eq!(outputs, [] as [serde_json::Value; 0], "{}", path.display());
        drop(kernel);
        let compiled: Vec<String> = compiled.iter().collect();
        assert_eq!(compiled, [""; 0], "{}", path.display());
    }
}

#[test]
fn all_cells_and_a_custom_crate_share_one_candle() {
    if let Some((_, failures)) = execute_fixture("one_candle", Duration::from_secs(600)) {
        assert_eq!(failures, []);
    }
}

#[test]
fn any_project_gets_a_kernel_whose_first_cell_compiles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mine = folder.path().join("my project");
    fs::create_dir_all(mine.join("src")).unwrap();
    let manifest = "[package]\nname = \"mine\"\nedition = \"2024\"\n[workspace]\n";
    fs::write(mine.join("Cargo.toml"), manifest).unwrap();
    fs::write(mine.join("src/lib.rs"), "pub fn answer() -> i32 { 42 }").unwrap();
    if !Project::new().kernelspec().is_file() {
        tests::skipped("warm-evcxr", "the Jupyter kernel is not set up");
        return;
    }
    let mut cargo = command(env!("CARGO"));
    cargo.args(["build", "--quiet", "--profile", "xtask", "--package", "warm-evcxr"]);
    let programs = build(&mut cargo).unwrap();
    let (_, warm_evcxr) = programs.iter().find(|(name, _)| name == "warm-evcxr").unwrap();
    let mut install = command(warm_evcxr);
    install.args(["install", "--manifest"]).arg(mine.join("Cargo.toml"));
    install.arg("--prefix").arg(folder.path().join("prefix"));
    install.arg("--folder").arg(folder.path().join("kernels"));
    let message = output(&mut install).unwrap();
    assert!(message.ends_with("Warm in its cells: mine"), "{message}");

    let (sender, compiled) = std::sync::mpsc::channel();
    let on_build = Box::new(move |line: &str| sender.send(line.to_owned()).unwrap());
    let data = folder.path().join("prefix/share/jupyter");
    let environment = [("JUPYTER_DATA_DIR", data.to_str().unwrap())];
    let mut kernel = Kernel::start(&Project::new(), &mine, &environment, on_build).unwrap();
    let cell = ":dep mine = { path = \".\" }\nmine::answer()";
    let outputs = kernel.execute(cell, Some(Duration::from_secs(120)), |_| {}).unwrap();
    assert_eq!(outputs[0]["data"]["text/plain"], "42", "{outputs:?}");
    drop(kernel);
    assert_eq!(compiled.iter().collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn a_panic_is_reported_in_two_lines_in_each_process() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut kernel) = start_kernel("panic", folder.path()) else { return };
    let limit = Some(Duration::from_secs(120));
    let mut output_of = |cell: &str| -> String {
        let outputs = kernel.execute(cell, limit, |_| {}).unwrap();
        outputs.iter().map(|output| joined(&output["text"])).collect()
    };
    for _ in 0..2 {
        let text = output_of("let empty: Vec<i32> = vec![];\nlet one = empty[42];");
        let lines: Vec<&str> = text.lines().collect();
        let message = "panicked: index out of bounds: the len is 0 but the index is 42";
        assert_eq!(lines, [message, "in the line: let one = empty[42];"], "{text}");
        // evcxr starts another process, as after an interrupt.
        output_of("std::process::exit(0)");
    }
}

#[test]
fn cells_that_train_work_when_they_are_run_again() {
    const CELLS: &[&str] = &[
        "setup-dep",
        "setup-use",
        "parameters-code",
        "split-code",
        "network-code",
        "augment-figure",
        "augment-code",
        "state-code",
        "step-code",
        "step-run-code",
        "range-code",
        "range-plot",
        "schedule-code",
        "fit-new",
        "fit-code",
        "train-code",
        "train-code",
        "again-code",
        "curves-fn",
        "best-code",
        "resume-whole",
        "resume-code",
        "resume-code",
        "damaged-code",
        "resume-whole",
    ];
    // Any small network will do.
    const NETWORK: &str = "struct MyNet;
impl Module for MyNet {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        log_softmax(nn.dense(10, flatten(x)))
    }
}";
    let project = Project::new();
    let committed = Notebook::read(&project.notebooks().join("make_it_yours.ipynb")).unwrap();
    let support = format!("{:?}", project.root().join("mnist-notebook-support"));
    let cells = CELLS.iter().map(|id| {
        let mut cell = committed.cells().iter().find(|cell| cell["id"] == *id).unwrap().clone();
        let source = joined(&cell["source"]).replace("\"../mnist-notebook-support\"", &support);
        cell["source"] = if *id == "network-code" { NETWORK.into() } else { source.into() };
        cell
    });
    let text = json!({"cells": cells.collect::<Vec<_>>()}).to_string();
    let mut source = Notebook::parse(&text).unwrap();
    source.set_parameters(SHORT).unwrap();
    let folder = tempfile::tempdir().unwrap(); // where the cells save their files
    let Some(mut kernel) = start_kernel("make_it_yours", folder.path()) else { return };
    let limit = Some(Duration::from_secs(600)); // the first cell may compile
    let executed = execute(&source, &mut kernel, limit, &mut Silent).unwrap();
    assert_eq!(failures(&source, &executed), []);
}

#[test]
fn a_network_that_a_cell_changes_is_the_one_that_trains() {
    let limit = Duration::from_secs(120);
    let Some((_, failures)) = execute_fixture("changed_cells", limit) else { return };
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn a_good_notebook_is_never_reported() {
    let Some((executed, failures)) = execute_fixture("good", Duration::from_secs(120)) else {
        return;
    };
    assert_eq!(failures, []);
    let cells = executed.code_cells();
    assert_eq!(cells[0].outputs[0]["text"], serde_json::json!(["answer: 42\n"]));
    assert_eq!(cells[3].outputs[0]["data"]["text/plain"], serde_json::json!(["42"]));
    assert_eq!(
        cells.iter().map(|cell| cell.count).collect::<Vec<_>>(),
        [Some(1), Some(2), Some(3), Some(4)]
    );
}

#[test]
fn a_panic_is_a_failure() {
    assert_fails(
        "panic",
        2,
        &["cell 2 (Panic)", "panicked", "index out of bounds: the len is 0 but the index is 42"],
    );
}

#[test]
fn a_panic_that_a_silent_hook_hides_is_a_failure() {
    assert_fails("silent_panic", 4, &["the cell panicked", "said nothing"]);
}

#[test]
fn a_panic_that_a_crate_hides_is_a_failure() {
    assert_fails("silent_crate", 4, &["cell 4 (Panic)", "the cell panicked", "said nothing"]);
}

#[test]
fn a_silent_hook_alone_is_never_reported() {
    let Some((executed, failures)) = execute_fixture("silent_hook", Duration::from_secs(120))
    else {
        return;
    };
    assert_eq!(failures, []);
    let cells = executed.code_cells();
    assert_eq!(cells[2].outputs[0]["data"]["text/plain"], serde_json::json!(["\"caught: true\""]));
}

#[test]
fn an_error_returned_by_a_question_mark_is_a_failure() {
    assert_fails("question_mark", 2, &["invalid digit found in string"]);
}

#[test]
fn a_process_that_exits_is_a_failure() {
    assert_fails("exit", 2, &["Subprocess terminated"]);
}

#[test]
fn a_process_that_aborts_is_a_failure() {
    assert_fails("abort", 2, &["SIGABRT"]);
}

#[test]
fn a_stack_overflow_is_a_failure() {
    assert_fails("stack_overflow", 2, &["Subprocess terminated with status: signal"]);
}

#[test]
fn a_compile_error_is_a_failure() {
    assert_fails("compile_error", 2, &["cannot add `&str` to `i32`"]);
}

#[test]
fn a_failed_assertion_in_the_last_cell_is_a_failure() {
    assert_fails("assert_in_last_cell", 2, &["the answer is off", "left: 42", "right: 43"]);
}

#[test]
fn output_to_standard_error_alone_is_a_failure() {
    assert_fails("stderr_only", 2, &["standard error: a warning"]);
}

#[test]
fn a_cell_that_should_fail_but_does_not_is_a_failure() {
    assert_fails("nothing_raised", 2, &["nothing failed"]);
}

#[test]
fn a_cell_whose_output_does_not_end_with_a_newline_is_a_failure() {
    assert_fails("open_line", 2, &["OpenLine", "has no end", "println!()"]);
}

#[test]
fn a_kernel_that_dies_is_a_failure() {
    assert_fails("kernel_dies", 2, &["KernelDied"]);
}

#[test]
fn a_lower_accuracy_than_the_notebook_shows_is_a_failure() {
    let Some((executed, failures)) = execute_fixture("wrong_accuracy", Duration::from_secs(120))
    else {
        return;
    };
    assert_eq!(failures, []);
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/wrong_accuracy.ipynb");
    let found = less_accurate(&Notebook::read(&fixture).unwrap(), &executed);
    let shown = found[0].to_string();
    assert!(shown.starts_with("cell 2 (Train)\n"), "{shown}");
    assert!(shown.contains("is 90 % in the end, where the notebook shows 99.26 %"), "{shown}");
}

#[test]
fn a_cell_that_never_ends_is_a_failure_after_the_time_limit() {
    let Some((_, failures)) = execute_fixture("endless_loop", Duration::from_secs(30)) else {
        return;
    };
    assert_eq!(failures[0].number, 2);
    assert_eq!(failures[0].problem, "TimeLimit: the cell was ended: it ran longer than 30 s");
    assert_eq!(failures[1].problem, "was never executed");
}
