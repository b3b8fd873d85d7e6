//! The project's website.

mod book;
mod chapter;
mod check;
mod training_page;

pub use check::check;
pub use training_page::add_targets;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use warm_evcxr::files;

use crate::process::{command, run};
use crate::project::Project;

/// Makes the site in `target/site`, all but [`document`]: the page that trains, and the notebooks
/// and pages as a book. Returns its folder.
///
/// Needs [`add_targets`].
///
/// # Errors
/// If a tool is missing or fails.
pub fn build(project: &Project) -> Result<PathBuf> {
    let site = project.site();
    files::remove(&site)?;
    fs::create_dir_all(&site)?;
    training_page::build(project, &site)?;
    book::build(project, &site.join("book"))?;
    Ok(site)
}

/// Adds the documentation of the crates.
///
/// # Errors
/// If `cargo doc` fails.
pub fn document(project: &Project, site: &Path) -> Result<()> {
    let target = project.root().join("target/api");
    let mut cargo = command("cargo");
    cargo.args(["doc", "--workspace", "--no-deps", "--exclude", "xtask", "--exclude", "tests"]);
    run(cargo.arg("--target-dir").arg(&target).current_dir(project.root()))?;
    fs::rename(target.join("doc"), site.join("api"))?;
    Ok(())
}
