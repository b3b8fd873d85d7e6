//! Runs Cargo and rustc without the environment variables that affect builds.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Prefixes of Cargo variables about its files and the network; all others affect builds.
const KEPT_PREFIXES: [&str; 5] =
    ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_"];
/// Compiler variables that affect builds.
const COMPILER_VARIABLES: [&str; 7] = [
    "RUSTC",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTDOC",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
    "RUSTC_BOOTSTRAP",
];

/// The variable with the search path for shared libraries.
pub const LIBRARY_PATH: &str =
    if cfg!(target_os = "macos") { "DYLD_LIBRARY_PATH" } else { "LD_LIBRARY_PATH" };

/// A command without the variables that affect builds.
///
/// Cells must find what set-up compiled, whatever the variables in either shell. Both read Cargo's
/// own files, such as `~/.cargo/config.toml`.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if affects_builds(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    command
}

fn affects_builds(name: &str) -> bool {
    let is_kept = || KEPT_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    COMPILER_VARIABLES.contains(&name) || (name.starts_with("CARGO") && !is_kept())
}

/// The value of [`LIBRARY_PATH`] with folders added in front.
///
/// # Errors
/// If a folder's path has a colon.
pub fn library_path(folders: impl IntoIterator<Item = PathBuf>) -> Result<OsString> {
    let rest = std::env::var_os(LIBRARY_PATH).unwrap_or_default();
    let all = folders.into_iter().chain(std::env::split_paths(&rest));
    std::env::join_paths(all).context("a folder of libraries has a colon in its path")
}

/// Runs a program to its end and returns its standard output, trimmed.
///
/// # Errors
/// If it cannot be started or fails; the message includes its standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot start `{name}`"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{name}` failed ({}): {}", output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Cargo's home, where the user's programs are installed.
///
/// # Errors
/// If neither `CARGO_HOME` nor a home folder is known.
pub fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("CARGO_HOME") {
        return Ok(home.into());
    }
    let home = std::env::home_dir().context("no home folder: set HOME or CARGO_HOME")?;
    Ok(home.join(".cargo"))
}

/// The folders to search for programs: those in `PATH`, then Cargo's, which may be missing from
/// `PATH` in an editor that was not started from a shell.
///
/// # Errors
/// Those of [`cargo_home`].
pub fn program_folders() -> Result<Vec<PathBuf>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.push(cargo_home()?.join("bin"));
    Ok(folders)
}

/// The first program with this name.
pub fn find(program: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    folders.iter().map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// The toolchain's own program. rustup's would choose a toolchain on each call.
///
/// # Errors
/// If it is not found.
pub fn tool(name: &str, folders: &[PathBuf]) -> Result<PathBuf> {
    if let Some(rustup) = find("rustup", folders)
        && let Ok(path) = output(command(rustup).args(["which", name]))
    {
        return Ok(path.into());
    }
    find(name, folders)
        .with_context(|| format!("`{name}` is not in PATH: install Rust from https://rustup.rs"))
}

/// The toolchain's own Cargo and compiler. rustup's would look for a toolchain file in the folder
/// of each crate that is compiled.
///
/// # Errors
/// If one is not found.
pub fn cargo() -> Result<Command> {
    let folders = program_folders()?;
    let mut cargo = command(tool("cargo", &folders)?);
    cargo.env("RUSTC", tool("rustc", &folders)?);
    Ok(cargo)
}

/// Runs Cargo and passes its `Compiling` lines to `on_build`. If it fails, tries once more with a
/// single job, which needs less memory.
///
/// # Errors
/// If both attempts fail; the message includes Cargo's last lines.
pub(crate) fn run_cargo(cargo: &mut Command, on_build: &(dyn Fn(&str) + Sync)) -> Result<()> {
    if run_cargo_once(cargo, on_build).is_ok() {
        return Ok(());
    }
    cargo.env("CARGO_BUILD_JOBS", "1");
    run_cargo_once(cargo, on_build)
}

fn run_cargo_once(cargo: &mut Command, on_build: &(dyn Fn(&str) + Sync)) -> Result<()> {
    const KEPT: usize = 30;
    const WIDTH: usize = 200;
    cargo.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut running = cargo.spawn().context("cannot start `cargo`")?;
    let mut last: Vec<String> = Vec::new();
    for line in running.stderr.take().map(BufReader::new).into_iter().flat_map(BufRead::lines) {
        let line = line?;
        if line.trim_start().starts_with("Compiling ") {
            on_build(line.trim());
            continue;
        }
        // Cargo quotes a failed rustc command in full: cut it off.
        last.push(line.chars().take(WIDTH).collect());
        if last.len() > KEPT {
            last.remove(0);
        }
    }
    let status = running.wait()?;
    if status.success() {
        return Ok(());
    }
    ensure!(!last.is_empty(), "`cargo` failed ({status}) without a message");
    bail!("`cargo` failed ({status}):\n{}", last.join("\n"))
}

/// The compiler's default target, such as `x86_64-unknown-linux-gnu`.
///
/// # Errors
/// If the compiler does not start.
pub fn host(rustc: &Path) -> Result<String> {
    let version = output(command(rustc).arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` does not name its host")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_variables_are_removed_and_network_variables_kept() {
        for name in ["CARGO_BUILD_TARGET", "CARGO_ENCODED_RUSTFLAGS", "CARGO_PROFILE_DEV_DEBUG"] {
            assert!(affects_builds(name), "{name}");
        }
        for name in ["RUSTFLAGS", "RUSTC_WRAPPER", "CARGO_TARGET_DIR", "CARGO", "CARGO_PKG_NAME"] {
            assert!(affects_builds(name), "{name}");
        }
        for name in ["CARGO_HOME", "CARGO_HTTP_CAINFO", "CARGO_NET_OFFLINE", "RUSTUP_HOME", "PATH"]
        {
            assert!(!affects_builds(name), "{name}");
        }
    }
}
