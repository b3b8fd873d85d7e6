//! The project's website.

mod book;
mod chapter;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use warm_evcxr::files;

use crate::process::{command, run};
use crate::project::Project;

/// Makes the site in `target/site`: the notebooks and pages as a book, and the documentation of the
/// crates. Returns its folder.
///
/// # Errors
/// If a tool is missing or fails.
pub fn build(project: &Project) -> Result<PathBuf> {
    let site = project.root().join("target/site");
    files::remove(&site)?;
    fs::create_dir_all(&site)?;
    book::build(project, &site.join("book"))?;
    document(project, &site.join("api"))?;
    Ok(site)
}

/// The documentation of the crates.
fn document(project: &Project, folder: &Path) -> Result<()> {
    let target = project.root().join("target/api");
    let mut cargo = command("cargo");
    cargo.args(["doc", "--workspace", "--no-deps", "--exclude", "xtask", "--exclude", "tests"]);
    run(cargo.arg("--target-dir").arg(&target).current_dir(project.root()))?;
    fs::rename(target.join("doc"), folder)?;
    Ok(())
}
