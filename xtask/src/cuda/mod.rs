//! Builds the feature `cuda`: for this machine's GPU, or for another machine with one.
//!
//! | module | what it does |
//! |---|---|
//! | [`driver`] | what NVIDIA's driver reports |
//! | [`toolkit`] | the compiler and the libraries, installed or fetched |
//! | `machine` | what bundles need to know of the machine that they run on |
//! | `bundle` | the folder for another machine |
//! | [`carried`] | a notebook and all that executes it, for another machine |
//!
//! The last two need no GPU, driver or CUDA toolkit. The driver's and CUDA's libraries, which the
//! target machine provides, are replaced for linking by stubs.

mod bundle;
pub mod carried;
pub mod driver;
mod machine;
pub mod toolkit;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use self::machine::compute_cap;
use self::toolkit::Toolkit;
use crate::process::{self, command, output};
use crate::project::Project;
use crate::script::Scripts;
use warm_evcxr::files;

/// The tests that run on any device, by folder and name.
const TESTS: [(&str, &str); 13] = [
    ("crates/images", "augment"),
    ("crates/images", "transform"),
    ("crates/inspect", "devices"),
    ("crates/linen", "devices"),
    ("crates/linen", "module"),
    ("crates/linen", "optimizer"),
    ("crates/linen", "variables"),
    ("crates/take-away", "onnx"),
    ("mnist-notebook-support", "checkpoint"),
    ("mnist-notebook-support", "devices"),
    ("mnist-notebook-support", "jit"),
    ("mnist-notebook-support", "loss"),
    ("mnist-notebook-support", "train"),
];
/// The manifest of the bundle's programs.
const MANIFEST: &str = include_str!("programs.toml");

/// Builds the tests, the benchmark and a notebook's program with the feature `cuda`, and bundles
/// them for a machine with a GPU.
///
/// # Errors
/// If something cannot be downloaded, built or written; the message says what.
pub fn build(project: &Project, notebook: &Path) -> Result<()> {
    let toolkit = Toolkit::prepare_stubs(project)?;
    check_kernels(project, &toolkit)?;
    println!("Building with the feature `cuda` (10 minutes of CPU time for the first build)");
    let programs = programs(project, &toolkit, notebook)?;
    let folder = bundle::write(project, &programs)?;
    println!(
        "\nCopy this folder to a machine with an NVIDIA GPU and run its run.sh: {}",
        folder.display()
    );
    Ok(())
}

/// Compiles the project's own kernels, which are otherwise compiled only at run time.
fn check_kernels(project: &Project, toolkit: &Toolkit) -> Result<()> {
    let source = project.root().join("crates/linen/src/cuda/kernels.cu");
    let mut nvcc = command(toolkit.nvcc());
    nvcc.arg(format!("-arch=sm_{}", compute_cap())).args(["-std=c++17", "-cubin", "-o"]);
    nvcc.arg(project.tools().join("cuda/kernels.cubin")).arg(source);
    output(&mut nvcc).map(drop).context("kernels.cu does not compile")
}

/// Builds the bundle's programs and returns their names and paths.
///
/// They form a separate package with one set of features, so that candle's kernels are compiled
/// only once. In the project's packages, development dependencies enable more features.
fn programs(
    project: &Project,
    toolkit: &Toolkit,
    notebook: &Path,
) -> Result<Vec<(String, PathBuf)>> {
    let root = project.root();
    // A separate build folder, because features and profile differ.
    let target = root.join("target/cuda");
    let script = Scripts::write(project, &[notebook.to_owned()])?;
    let folder = target.join("programs");
    let manifest = MANIFEST
        .replace("@ROOT@", root.to_str().context("the project's path is not UTF-8")?)
        .replace("@WALKTHROUGH@", &script.source(0).to_string_lossy());
    // All tests in one program, because each program contains candle's kernels.
    let tests = TESTS.map(|(package, name)| {
        let path = root.join(format!("{package}/tests/{name}.rs"));
        let module = format!("{package}_{name}").replace(['/', '-'], "_");
        format!("#[path = {path:?}]\nmod {module};\n")
    });
    fs::create_dir_all(&folder)?;
    files::write(&folder.join("Cargo.toml"), &manifest)?;
    files::write(&folder.join("tests.rs"), &tests.concat())?;
    fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock"))?;
    let mut cargo = command("cargo");
    cargo.args(["build", "--release", "--bins", "--tests", "--target-dir"]).arg(&target);
    cargo.current_dir(folder).envs(toolkit.environment(project, &compute_cap())?);
    process::build(&mut cargo).context("cannot build with the feature `cuda`")
}
