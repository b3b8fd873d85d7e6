//! JAX and PyTorch in a Python environment of their own.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::project::Project;
use crate::python::{Environment, OLDEST_WITH_JAX};

/// Installs what `xtask/peers/requirements.txt` names, unless that was done before.
///
/// # Errors
/// When it cannot be installed.
pub fn install(project: &Project) -> Result<()> {
    let wanted = scripts(project).join("requirements.txt");
    let text =
        fs::read_to_string(&wanted).with_context(|| format!("cannot read {}", wanted.display()))?;
    let environment = Environment::new(folder(project), text);
    if environment.is_made(&["numpy", "jax", "flax", "torch"]) {
        return Ok(());
    }
    println!(
        "Installing JAX and PyTorch in .tools/peers, to compare with (a download of 3 GB, 5 GB on \
         disk; remove the folder to be rid of them)"
    );
    environment.make(OLDEST_WITH_JAX)?;
    let packages = ["--no-deps", "--requirement"].map(OsStr::new);
    environment
        .install(packages.into_iter().chain([wanted.as_os_str()]))
        .context("cannot install xtask/peers/requirements.txt")?;
    environment.finish()
}

/// The versions installed, such as `jax 0.10.2`, of the packages named.
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
    fn versions_are_those_of_the_pins() {
        let versions = versions(&Project::new(), &["jax", "torch"]);
        let [jax, torch] = &versions[..] else { panic!("{versions:?}") };
        for (version, name) in [(jax, "jax "), (torch, "torch ")] {
            let numbers = version.strip_prefix(name).unwrap().split('.');
            assert!(numbers.map(str::parse::<u32>).all(|number| number.is_ok()), "{version}");
        }
    }
}
