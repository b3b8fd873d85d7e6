//! Other programs: how they are started, and what is made of their ends.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

pub use warm_evcxr::toolchain::output;

/// A program to start, without the variables by which Cargo describes the package that it is running (this one).
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    let describes = |name: &OsStr| {
        let name = name.to_string_lossy();
        name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
    };
    for (name, _) in std::env::vars_os().filter(|(name, _)| describes(name)) {
        command.env_remove(name);
    }
    command
}

/// Runs a program whose own output the user shall see.
///
/// # Errors
/// When it cannot be started or fails.
pub fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot start `{name}`"))?;
    if !status.success() {
        bail!("`{name}` failed ({status})");
    }
    Ok(())
}

/// Has Cargo build, and returns the names and paths of the programs that it made: settings of the
/// user's own decide where they lie.
///
/// # Errors
/// When something does not compile; the compiler has said why.
pub fn build(cargo: &mut Command) -> Result<Vec<(String, PathBuf)>> {
    cargo.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    let made = cargo.output().context("cannot start `cargo`")?;
    ensure!(made.status.success(), "`cargo build` failed ({})", made.status);
    let messages = String::from_utf8_lossy(&made.stdout);
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let program = |message: Value| {
        let name = message["target"]["name"].as_str()?.to_owned();
        Some((name, message["executable"].as_str()?.into()))
    };
    Ok(messages.filter_map(program).collect())
}
