//! Makes the bundle for the machine with the GPU.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::machine::with_checks;
use crate::process::command;
use crate::project::Project;
use warm_evcxr::files;

/// The maximum size of the bundle in bytes.
const LIMIT: u64 = 60_000_000;
/// The script that runs everything in the bundle.
const RUN: &str = include_str!("run.sh");
/// Files that the programs read, with their paths in the project and in the bundle.
const FILES: [&str; 7] = [
    "docs/step_times.csv",
    "tests/golden/trace_epoch_1.csv",
    "tests/golden/ten_epochs.csv",
    "xtask/peers/protocol.py",
    "xtask/peers/jax_steps.py",
    "xtask/peers/torch_steps.py",
    "data/README.md",
];

/// Writes the bundle: programs, data, and the script that runs them.
pub(super) fn write(project: &Project, programs: &[(String, PathBuf)]) -> Result<PathBuf> {
    let folder = project.root().join("target/cuda/bundle");
    files::remove(&folder)?;
    fs::create_dir_all(folder.join("bin"))?;
    fs::create_dir_all(folder.join("notebooks"))?;
    for (name, program) in programs {
        let packed = folder.join("bin").join(format!("{name}.gz"));
        let status = command("gzip")
            .args(["-9", "--stdout"])
            .arg(program)
            .stdout(File::create(packed)?)
            .status();
        ensure!(
            status.context("cannot start `gzip`")?.success(),
            "cannot compress {}",
            program.display()
        );
    }
    for file in FILES {
        copy(&project.root().join(file), &folder.join(file))?;
    }
    for entry in fs::read_dir(project.root().join("data"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "gz") {
            let name = path.file_name().context("the file has no name")?;
            copy(&path, &folder.join("data").join(name))?;
        }
    }
    files::write_program(&folder.join("run.sh"), &with_checks(RUN))?;
    let size = files::size(&folder)?;
    println!("Size of the bundle: {:.1} MB", size as f64 / 1e6);
    ensure!(size < LIMIT, "the bundle is larger than {} MB", LIMIT / 1_000_000);
    Ok(folder)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("the file has no parent folder")?)?;
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_driver_the_script_prints_one_error_line() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("run.sh");
        fs::write(&script, with_checks(RUN)).unwrap();
        // `false` acts as a Python that cannot load libraries.
        let output = command("bash").arg(&script).arg("false").output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success());
        assert!(message.starts_with("error: no NVIDIA driver: libcuda.so.1"), "{message}");
        assert_eq!(message.lines().count(), 1);
    }
}
