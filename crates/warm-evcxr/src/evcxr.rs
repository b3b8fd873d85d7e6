//! The kernel's program, `evcxr_jupyter`: one that is installed, or one built now.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::files;
use crate::toolchain::{cargo, cargo_home, find, follow, program_folders};

/// The series of evcxr that the templates are made for.
const SERIES: &str = "0.22.";
/// The version that is installed when there is none of the series.
pub const VERSION: &str = "0.22.0";

/// How evcxr is built. Its own settings take ten times as long; what evcxr does for each cell is in
/// the packages below, and only their speed is felt.
const SETTINGS: [&str; 4] = [
    "profile.release.opt-level=0",
    "profile.release.debug=false",
    "profile.release.lto='off'",
    "profile.release.build-override.opt-level=0",
];
/// What reads and parses the crates that a cell knows of, and keeps what was read.
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
/// What expands macros and resolves names: larger, and optimized less.
const SEMANTIC: [&str; 2] = ["ra_ap_hir_def", "ra_ap_hir_expand"];

/// The program of the kernel: the user's own if it is of the right series, or one built into a
/// folder in Cargo's home, once for this user. `on_build` is told what is compiled.
///
/// # Errors
/// When it cannot be built.
pub fn find_or_build(on_build: &(dyn Fn(&str) + Sync)) -> Result<PathBuf> {
    if let Some(program) = installed()? {
        return Ok(program);
    }
    let root = own_root()?;
    files::make_folder(&root)?;
    // Two projects that are set up at once build one kernel.
    let lock = fs::File::create(root.join("building.lock"))?;
    lock.lock()?;
    if let Some(program) = installed()? {
        return Ok(program);
    }
    if !fetch(&root)? {
        build(&root, on_build).context("cannot build the kernel evcxr_jupyter")?;
    }
    Ok(root.join("bin/evcxr_jupyter"))
}

/// The program, if there is one of the right series already.
///
/// # Errors
/// When the user's folders are not known.
pub fn installed() -> Result<Option<PathBuf>> {
    let folders = program_folders()?;
    let roots = folders.iter().filter_map(|folder| Some(folder.parent()?.to_owned()));
    let found = [own_root()?]
        .into_iter()
        .chain(roots)
        .find(|root| version(root).is_some_and(|version| version.starts_with(SERIES)));
    Ok(found.map(|root| root.join("bin/evcxr_jupyter")))
}

/// The folder of the kernel that was built here.
///
/// # Errors
/// When Cargo's home is not known.
pub fn own_root() -> Result<PathBuf> {
    Ok(cargo_home()?.join("warm-evcxr").join(format!("evcxr_jupyter-{VERSION}")))
}

/// The version in a folder that Cargo installs programs to, from Cargo's list of them.
fn version(root: &Path) -> Option<String> {
    let list = fs::read_to_string(root.join(".crates.toml")).ok()?;
    root.join("bin/evcxr_jupyter").is_file().then_some(())?;
    let (_, rest) = list.split_once("\"evcxr_jupyter ")?;
    rest.split(' ').next().map(str::to_owned)
}

/// Fetches a program that others have built, where the user has `cargo binstall`.
fn fetch(root: &Path) -> Result<bool> {
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
        // Not in the folder for temporary files, which may be small or refuse to execute; and what
        // was begun and not finished is gone on with.
        .arg("--target-dir")
        .arg(root.join("build"))
        .args(SETTINGS.iter().flat_map(|setting| ["--config", setting]))
        // Outside the project's folder, whose build settings are not meant for it.
        .current_dir(root);
    let levels = OPTIMIZED.map(|package| (package, 2)).into_iter();
    for (package, level) in levels.chain(SEMANTIC.map(|package| (package, 1))) {
        install.args(["--config", &format!("profile.release.package.{package}.opt-level={level}")]);
    }
    follow(&mut install, on_build)?;
    // The program is there; half a gigabyte that nobody needs is no reason to fail.
    let _ = files::remove(&root.join("build"));
    Ok(())
}
