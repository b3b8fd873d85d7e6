//! Starts other programs.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

pub use warm_evcxr::toolchain::output;

/// A command without the variables in which Cargo describes the running package (this one).
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    let describes_package = |name: &OsStr| {
        let name = name.to_string_lossy();
        name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
    };
    for (name, _) in std::env::vars_os().filter(|(name, _)| describes_package(name)) {
        command.env_remove(name);
    }
    command
}

/// Runs a program and lets it print to the terminal.
///
/// # Errors
/// If it cannot be started or fails.
pub fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot start `{name}`"))?;
    if !status.success() {
        bail!("`{name}` failed ({status})");
    }
    Ok(())
}

/// Becomes a program: signals reach it, not a process that only waits for it.
///
/// # Errors
/// If it cannot be started.
pub fn exec(command: &mut Command) -> Result<Infallible> {
    let name = command.get_program().to_string_lossy().into_owned();
    Err(command.exec()).with_context(|| format!("cannot start `{name}`"))
}

/// Runs `cargo build` and returns the names and paths of the programs, as reported by Cargo: the
/// user's settings may change where they are.
///
/// # Errors
/// If something does not compile; the compiler has printed why.
pub fn build(cargo: &mut Command) -> Result<Vec<(String, PathBuf)>> {
    cargo.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    let output = cargo.output().context("cannot start `cargo`")?;
    ensure!(output.status.success(), "`cargo build` failed ({})", output.status);
    let messages = String::from_utf8_lossy(&output.stdout);
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let program = |message: Value| {
        let name = message["target"]["name"].as_str()?.to_owned();
        Some((name, message["executable"].as_str()?.into()))
    };
    Ok(messages.filter_map(program).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tells the process that the test starts to become another program.
    const STEP: &str = "XTASK_TEST_EXEC";

    /// Run by the test in another process; does nothing if the variable is not set.
    #[test]
    fn exec_as_another_process() {
        if std::env::var_os(STEP).is_some() {
            let Err(error) = exec(command("sh").args(["-c", "echo process $$"]));
            panic!("{error:#}");
        }
    }

    #[test]
    fn exec_keeps_the_process() {
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process::tests::exec_as_another_process", "--nocapture"])
            .env(STEP, "")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let last = format!("process {}\n", process.id());
        let output = process.wait_with_output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(stdout.ends_with(&last), "{last:?} is not at the end of {stdout:?}");
    }
}
