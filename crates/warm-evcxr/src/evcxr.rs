//! Finds or builds the kernel program, `evcxr_jupyter`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::files;
use crate::toolchain::{cargo, cargo_home, find, program_folders, run_cargo};

/// The series of evcxr that the templates are made for.
const SERIES: &str = "0.22.";
/// The version to install if none of this series is installed.
pub const VERSION: &str = "0.22.0";

/// How evcxr is built. Its default profile takes several times as long, and only the packages
/// below, which run for each cell, need to be fast.
const BUILD_SETTINGS: [&str; 4] = [
    "profile.release.opt-level=0",
    "profile.release.debug=false",
    "profile.release.lto='off'",
    "profile.release.build-override.opt-level=0",
];
/// Packages that read, parse and cache the crates visible to a cell.
const OPTIMIZED: [&str; 38] = [
    "boxcar",
    "countme",
    "crossbeam-channel",
    "dashmap",
    "drop_bomb",
    "hashbrown",
    "indexmap",
    "itertools",
    "la-arena",
    "libmimalloc-sys",
    "memchr",
    "mimalloc",
    "nohash-hasher",
    "parking_lot",
    "ra_ap_base_db",
    "ra_ap_cfg",
    "ra_ap_edition",
    "ra_ap_intern",
    "ra_ap_mbe",
    "ra_ap_parser",
    "ra_ap_paths",
    "ra_ap_span",
    "ra_ap_stdx",
    "ra_ap_syntax",
    "ra_ap_syntax-bridge",
    "ra_ap_tt",
    "ra_ap_vfs",
    "ra_ap_vfs-notify",
    "ra-ap-rustc_lexer",
    "rowan",
    "rustc-hash",
    "salsa",
    "serde_json",
    "smallvec",
    "text-size",
    "thin-vec",
    "triomphe",
    "walkdir",
];
/// Packages that expand macros and resolve names: larger, so optimized less.
const LESS_OPTIMIZED: [&str; 2] = ["ra_ap_hir_def", "ra_ap_hir_expand"];

/// The kernel program: an installed one of the right series, or one that is downloaded or built
/// into Cargo's home, once per user. `on_build` gets Cargo's `Compiling` lines.
///
/// # Errors
/// If it cannot be built.
pub fn find_or_build(on_build: &(dyn Fn(&str) + Sync)) -> Result<PathBuf> {
    if let Some(program) = installed()? {
        return Ok(program);
    }
    let root = own_root()?;
    files::make_folder(&root)?;
    // Only one build if two projects are set up at the same time.
    let lock = fs::File::create(root.join("building.lock"))?;
    lock.lock()?;
    if let Some(program) = installed()? {
        return Ok(program);
    }
    if !install_prebuilt(&root)? {
        build(&root, on_build).context("cannot build the kernel evcxr_jupyter")?;
    }
    Ok(root.join("bin/evcxr_jupyter"))
}

/// The installed kernel program, if it is of the right series.
///
/// # Errors
/// If Cargo's home is not known.
pub fn installed() -> Result<Option<PathBuf>> {
    let folders = program_folders()?;
    let roots = folders.iter().filter_map(|folder| Some(folder.parent()?.to_owned()));
    let found = [own_root()?]
        .into_iter()
        .chain(roots)
        .find(|root| version(root).is_some_and(|version| version.starts_with(SERIES)));
    Ok(found.map(|root| root.join("bin/evcxr_jupyter")))
}

/// The folder that [`find_or_build`] installs the kernel program to.
///
/// # Errors
/// If Cargo's home is not known.
pub fn own_root() -> Result<PathBuf> {
    Ok(cargo_home()?.join("warm-evcxr").join(format!("evcxr_jupyter-{VERSION}")))
}

/// The version installed in a folder, from Cargo's list of installed programs.
fn version(root: &Path) -> Option<String> {
    let list = fs::read_to_string(root.join(".crates.toml")).ok()?;
    root.join("bin/evcxr_jupyter").is_file().then_some(())?;
    let (_, rest) = list.split_once("\"evcxr_jupyter ")?;
    rest.split(' ').next().map(str::to_owned)
}

/// Downloads a prebuilt program if the user has `cargo binstall`. Returns whether that worked.
fn install_prebuilt(root: &Path) -> Result<bool> {
    if find("cargo-binstall", &program_folders()?).is_none() {
        return Ok(false);
    }
    let mut binstall = cargo()?;
    binstall
        .args(["binstall", "--no-confirm", "--disable-strategies", "compile", "--version", VERSION])
        .args(["evcxr_jupyter", "--root"])
        .arg(root)
        .stdin(Stdio::null());
    Ok(binstall.output().is_ok_and(|output| output.status.success()) && version(root).is_some())
}

fn build(root: &Path, on_build: &(dyn Fn(&str) + Sync)) -> Result<()> {
    let mut install = cargo()?;
    install
        .args(["install", "--locked", "--version", VERSION, "evcxr_jupyter", "--root"])
        .arg(root)
        // Temporary folders may be small or mounted noexec, and here an interrupted build resumes.
        .arg("--target-dir")
        .arg(root.join("build"))
        .args(BUILD_SETTINGS.iter().flat_map(|setting| ["--config", setting]))
        // Outside the project, whose Cargo configuration must not apply.
        .current_dir(root);
    let levels = OPTIMIZED.map(|package| (package, 2)).into_iter();
    for (package, level) in levels.chain(LESS_OPTIMIZED.map(|package| (package, 1))) {
        install.args(["--config", &format!("profile.release.package.{package}.opt-level={level}")]);
    }
    run_cargo(&mut install, on_build)?;
    // The program is installed: leftover build files are not worth failing for.
    let _ = files::remove(&root.join("build"));
    Ok(())
}
