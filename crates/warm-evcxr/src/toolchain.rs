//! Programs that are started: Cargo and rustc, without what surrounds this process.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Cargo's variables that say where its files and the network are; all others say how to build.
const KEPT: [&str; 5] =
    ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_"];
/// How to build, said to rustc or by it.
const FLAGS: [&str; 7] = [
    "RUSTC",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTDOC",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
    "RUSTC_BOOTSTRAP",
];

/// A program to start that builds as if the variables which change a build were not there.
///
/// Cells are to find what set-up has compiled, whatever the shell says that one or the other came
/// from. Cargo's own files, `~/.cargo/config.toml` among them, are read by both.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if changes_builds(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    command
}

fn changes_builds(name: &str) -> bool {
    let is_kept = || KEPT.iter().any(|kept| name.starts_with(kept));
    FLAGS.contains(&name) || (name.starts_with("CARGO") && !is_kept())
}

/// Runs a program that takes but a moment and returns its standard output, trimmed.
///
/// # Errors
/// When it cannot be started or fails; the message carries what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot start `{name}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{name}` failed ({}): {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Cargo's home, where programs of the user's own are installed.
///
/// # Errors
/// When neither `CARGO_HOME` nor a home folder is known.
pub fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("CARGO_HOME") {
        return Ok(home.into());
    }
    let home = std::env::home_dir().context("no home folder: set HOME or CARGO_HOME")?;
    Ok(home.join(".cargo"))
}

/// The folders in which programs are looked for: those of `PATH`, and Cargo's, which an editor that
/// was not started from a shell may lack.
///
/// # Errors
/// Those of [`cargo_home`].
pub fn program_folders() -> Result<Vec<PathBuf>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.push(cargo_home()?.join("bin"));
    Ok(folders)
}

/// The first program of this name.
pub fn find(program: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    folders.iter().map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// The toolchain's own program rather than rustup's, which decides anew on each call which to
/// start.
///
/// # Errors
/// When there is none.
pub fn tool(name: &str, folders: &[PathBuf]) -> Result<PathBuf> {
    if let Some(rustup) = find("rustup", folders)
        && let Ok(path) = output(command(rustup).args(["which", name]))
    {
        return Ok(path.into());
    }
    find(name, folders).with_context(|| {
        format!("there is no `{name}` in PATH: install Rust from https://rustup.rs")
    })
}

/// The toolchain's own Cargo, with the toolchain's own compiler: rustup's would look for a
/// toolchain file in the folder of each crate that is compiled.
///
/// # Errors
/// When there is none.
pub fn cargo() -> Result<Command> {
    let folders = program_folders()?;
    let mut cargo = command(tool("cargo", &folders)?);
    cargo.env("RUSTC", tool("rustc", &folders)?);
    Ok(cargo)
}

/// Runs Cargo and passes its lines on. What fails is tried once more, one thing at a time: memory
/// that two compilers do not have may do for one.
///
/// # Errors
/// When both fail; the message carries Cargo's last lines.
pub(crate) fn follow(command: &mut Command, on_build: &(dyn Fn(&str) + Sync)) -> Result<()> {
    if lines_of(command, on_build).is_ok() {
        return Ok(());
    }
    command.env("CARGO_BUILD_JOBS", "1");
    lines_of(command, on_build)
}

fn lines_of(command: &mut Command, on_build: &(dyn Fn(&str) + Sync)) -> Result<()> {
    const KEPT: usize = 30;
    const WIDTH: usize = 200;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut running = command.spawn().context("cannot start `cargo`")?;
    let mut last: Vec<String> = Vec::new();
    for line in running.stderr.take().map(BufReader::new).into_iter().flat_map(BufRead::lines) {
        let line = line?;
        if line.trim_start().starts_with("Compiling ") {
            on_build(line.trim());
            continue;
        }
        // A call of rustc that has failed is quoted whole.
        last.push(line.chars().take(WIDTH).collect());
        if last.len() > KEPT {
            last.remove(0);
        }
    }
    let status = running.wait()?;
    if status.success() {
        return Ok(());
    }
    ensure!(!last.is_empty(), "`cargo` failed ({status}) without a word");
    bail!("`cargo` failed ({status}):\n{}", last.join("\n"))
}

/// The platform that a compiler compiles for by default, as `x86_64-unknown-linux-gnu`.
///
/// # Errors
/// When the compiler does not start.
pub fn host(rustc: &Path) -> Result<String> {
    let version = output(command(rustc).arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` names no host")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_a_build_goes_and_what_reaches_the_network_stays() {
        for name in ["CARGO_BUILD_TARGET", "CARGO_ENCODED_RUSTFLAGS", "CARGO_PROFILE_DEV_DEBUG"] {
            assert!(changes_builds(name), "{name}");
        }
        for name in ["RUSTFLAGS", "RUSTC_WRAPPER", "CARGO_TARGET_DIR", "CARGO", "CARGO_PKG_NAME"] {
            assert!(changes_builds(name), "{name}");
        }
        for name in ["CARGO_HOME", "CARGO_HTTP_CAINFO", "CARGO_NET_OFFLINE", "RUSTUP_HOME", "PATH"]
        {
            assert!(!changes_builds(name), "{name}");
        }
    }
}
