//! JAX and PyTorch in a separate Python environment.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::project::Project;
use crate::python::{Environment, OLDEST_WITH_JAX};

/// Installs the packages in `xtask/peers/requirements.txt`, unless they are installed.
///
/// # Errors
/// If it cannot be installed.
pub fn install(project: &Project) -> Result<()> {
    let wanted = scripts(project).join("requirements.txt");
    let text =
        fs::read_to_string(&wanted).with_context(|| format!("cannot read {}", wanted.display()))?;
    let environment = Environment::new(folder(project), text);
    if environment.is_up_to_date(&["numpy", "jax", "flax", "torch"]) {
        return Ok(());
    }
    println!(
        "Installing JAX and PyTorch for comparison in .tools/peers (3 GB to download, 5 GB on \
         disk; delete the folder to remove them)"
    );
    environment.create(OLDEST_WITH_JAX)?;
    let packages = ["--no-deps", "--requirement"].map(OsStr::new);
    environment
        .install(packages.into_iter().chain([wanted.as_os_str()]))
        .context("cannot install xtask/peers/requirements.txt")?;
    environment.finish()
}

/// The pinned versions of some packages, such as `jax 0.10.2`.
pub fn versions(project: &Project, packages: &[&str]) -> Vec<String> {
    let text = fs::read_to_string(scripts(project).join("requirements.txt")).unwrap_or_default();
    let words = text.lines().filter_map(|line| line.split_whitespace().next());
    words
        .filter_map(|pin| pin.split_once("=="))
        .filter(|(name, _)| packages.contains(name))
        .map(|(name, version)| format!("{name} {version}"))
        .collect()
}

/// The environment's interpreter.
pub fn python(project: &Project) -> PathBuf {
    folder(project).join("bin/python")
}

/// The folder of the scripts that time the peers.
pub fn scripts(project: &Project) -> PathBuf {
    project.root().join("xtask/peers")
}

fn folder(project: &Project) -> PathBuf {
    project.tools().join("peers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_the_pins() {
        let versions = versions(&Project::new(), &["jax", "torch"]);
        let [jax, torch] = &versions[..] else { panic!("{versions:?}") };
        for (version, name) in [(jax, "jax "), (torch, "torch ")] {
            let numbers = version.strip_prefix(name).unwrap().split('.');
            assert!(numbers.map(str::parse::<u32>).all(|number| number.is_ok()), "{version}");
        }
    }
}
