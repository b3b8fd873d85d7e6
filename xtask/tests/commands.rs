//! Runs the commands of `cargo xtask` that need no Jupyter kernel.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

use serde_json::json;
use tempfile::TempDir;

/// Locked by tests that use `target/script`.
static SCRIPT: Mutex<()> = Mutex::new(());

fn xtask(arguments: &[&str]) -> Command {
    let mut xtask = Command::new(env!("CARGO_BIN_EXE_xtask"));
    xtask.args(arguments);
    xtask
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A folder with a notebook of one cell.
fn notebook(name: &str, language: &str, source: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let cell = json!({"cell_type": "code", "id": "a", "metadata": {}, "source": source,
                      "execution_count": null, "outputs": []});
    let kernelspec = json!({"display_name": "Any", "language": language, "name": language});
    let notebook = json!({"cells": [cell], "metadata": {"kernelspec": kernelspec},
                          "nbformat": 4, "nbformat_minor": 5});
    std::fs::write(folder.path().join(name), notebook.to_string()).unwrap();
    folder
}

/// The program that `cargo xtask script` reports to have built.
fn built_program(output: &Output) -> PathBuf {
    let stdout = text(&output.stdout);
    assert!(output.status.success(), "{stdout}\n{}", text(&output.stderr));
    let line = stdout.lines().find_map(|line| line.strip_prefix("Built:")).expect(&stdout);
    line.rsplit_once(" (").expect(line).0.trim().into()
}

fn host() -> String {
    let version = text(&Command::new("rustc").arg("-vV").output().unwrap().stdout);
    version.lines().find_map(|line| line.strip_prefix("host: ")).expect(&version).to_owned()
}

#[test]
fn script_reports_the_program_wherever_cargo_builds_it() {
    let _guard = SCRIPT.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = notebook("where_it_is.ipynb", "rust", "println!(\"here\");");
    let host = host();
    let (target, build) = (folder.path().join("target"), folder.path().join("build"));
    let settings: [(&str, &Path); 3] = [
        ("CARGO_BUILD_TARGET", Path::new(&host)),
        ("CARGO_TARGET_DIR", &target),
        ("CARGO_BUILD_BUILD_DIR", &build),
    ];
    for (variable, value) in settings {
        let mut script = xtask(&["script", "where_it_is.ipynb"]);
        let output = script.current_dir(&folder).env(variable, value).output().unwrap();
        let program = built_program(&output);
        assert!(program.is_file(), "{variable}: {} is missing", program.display());
        let printed = Command::new(&program).output().unwrap().stdout;
        assert_eq!(text(&printed), "here\n", "{variable}");
    }
}

#[test]
fn notebooks_in_other_languages_are_refused_before_set_up() {
    let folder = notebook("other.ipynb", "python", "import jax");
    let output = xtask(&["run", "other.ipynb"]).current_dir(&folder).output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("other.ipynb") && stderr.contains("is in python"), "{stderr}");
    assert_eq!((text(&output.stdout), stderr.lines().count()), (String::new(), 1), "{stderr}");
}

#[test]
fn a_file_that_is_not_a_notebook_is_named_before_set_up() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("half.ipynb"), "{\"cells\": [").unwrap();
    let output = xtask(&["run", "half.ipynb"]).current_dir(&folder).output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with("error: half.ipynb is not a notebook: "), "{stderr}");
}

#[test]
#[cfg(target_os = "linux")]
fn write_errors_do_not_stop_commands() {
    let _guard = SCRIPT.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = notebook("quiet.ipynb", "rust", "println!(\"here\");");
    let full = || Stdio::from(std::fs::File::create("/dev/full").unwrap());
    let mut script = xtask(&["script", "quiet.ipynb"]);
    let output = script.current_dir(&folder).stdout(full()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));

    let mut refused = xtask(&["run", "missing.ipynb"]);
    let status = refused.current_dir(&folder).stdout(full()).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(1));
}
