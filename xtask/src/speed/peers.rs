//! JAX and PyTorch in a Python environment of their own.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::project::Project;
use crate::setup::make_environment;

/// Installs what `xtask/peers/requirements.txt` names, unless that was done before.
///
/// # Errors
/// When it cannot be installed.
pub fn install(project: &Project) -> Result<()> {
    let wanted = scripts(project).join("requirements.txt");
    let text =
        fs::read_to_string(&wanted).with_context(|| format!("cannot read {}", wanted.display()))?;
    let stamp = environment(project).join("requirements.txt");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == text) {
        return Ok(());
    }
    println!(
        "Installing JAX and PyTorch in .tools/peers, to compare with (a download of 3 GB, 5 GB on disk; \
         remove the folder to be rid of them)"
    );
    let packages = [OsStr::new("--no-deps"), OsStr::new("-r"), wanted.as_os_str()];
    make_environment(&project.python(), &environment(project), packages).context(
        "cannot install xtask/peers/requirements.txt (these versions need Python 3.11 to 3.14)",
    )?;
    fs::write(stamp, text)?;
    Ok(())
}

/// The versions installed, such as `jax 0.10.2`, of the packages named.
pub fn versions(project: &Project, packages: &[&str]) -> Vec<String> {
    let text = fs::read_to_string(scripts(project).join("requirements.txt")).unwrap_or_default();
    let pinned = text.lines().filter_map(|line| line.split_once("=="));
    pinned
        .filter(|(name, _)| packages.contains(name))
        .map(|(name, version)| format!("{name} {version}"))
        .collect()
}

/// The environment's interpreter.
pub fn python(project: &Project) -> PathBuf {
    environment(project).join("bin/python")
}

/// The folder of the scripts that time the peers.
pub fn scripts(project: &Project) -> PathBuf {
    project.root().join("xtask/peers")
}

fn environment(project: &Project) -> PathBuf {
    project.tools().join("peers")
}
