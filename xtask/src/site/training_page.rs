//! Builds the page that trains in the browser: `crates/in-browser`, its programs, MNIST and trained
//! weights, as plain files for any web server.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::Value;
use warm_evcxr::files;

use crate::notebook::{Notebook, joined};
use crate::process::{command, output, run};
use crate::project::Project;

/// A WebAssembly program for some browsers. They refuse instructions that they do not know, so each
/// set of instructions is a program of its own.
struct Program {
    /// Its name on the page.
    name: &'static str,
    target: &'static str,
    features: &'static str,
    link_arguments: &'static [&'static str],
}

/// For a page that its server does not isolate: that has no shared memory, so there is one thread.
const SINGLE: Program = Program {
    name: "program-none.wasm",
    target: "wasm32-unknown-unknown",
    features: "",
    link_arguments: &[],
};

/// With threads. The standard library of this target has them, and needs a few functions of WASI,
/// which the page provides.
const THREADS: Program = Program {
    name: "threads-simd128.wasm",
    target: "wasm32-wasip1-threads",
    features: "+simd128",
    link_arguments: &[
        // The library starts up in `_initialize`, which is in this file of wasi-libc.
        "-l:crt1-reactor.o",
        "--export=_initialize",
        // As in `program.js`. Shared memory cannot move, so browsers reserve all of it.
        "--initial-memory=134217728",
        "--max-memory=268435456",
    ],
};

const PROGRAMS: [Program; 5] = [
    SINGLE,
    Program { name: "program-simd128.wasm", features: "+simd128", ..SINGLE },
    Program { name: "program-relaxed.wasm", features: "+simd128,+relaxed-simd", ..SINGLE },
    THREADS,
    Program { name: "threads-relaxed.wasm", features: "+simd128,+relaxed-simd", ..THREADS },
];

/// What the page has in common with the notebooks' draw-a-digit panel.
const SHARED_SCRIPTS: [&str; 3] = ["parameters.js", "prepare.js", "drawing.js"];

/// The notebook whose draw-a-digit panel holds trained weights.
const DRAWING: &str = "take_it_away.ipynb";

/// Checks that Rust's libraries for WebAssembly are installed.
///
/// # Errors
/// If Rust's libraries for WebAssembly are missing, with how to install them; if something does not
/// compile or cannot be written.
pub fn build(project: &Project, folder: &Path) -> Result<()> {
    files::make_folder(&folder.join("data"))?;
    for program in &PROGRAMS {
        program.build(project, folder)?;
    }
    let copy = |from: &Path, to: &Path| {
        files::copy_file(from, to).with_context(|| format!("cannot copy {}", from.display()))
    };
    for (source, target) in [("crates/in-browser/page", ""), ("data", "data")] {
        for file in fs::read_dir(project.root().join(source))? {
            let file = file?;
            copy(&file.path(), &folder.join(target).join(file.file_name()))?;
        }
    }
    let panel = project.root().join("crates/take-away/src/draw_panel");
    for script in SHARED_SCRIPTS {
        copy(&panel.join(script), &folder.join(script))?;
    }
    fs::write(folder.join("weights.safetensors"), trained_weights(project)?)?;
    Ok(())
}

/// Adds Rust's libraries for WebAssembly where they are missing.
///
/// # Errors
/// If rustup is missing or fails, as it does without a network.
pub fn add_targets() -> Result<()> {
    let targets = [SINGLE.target, THREADS.target];
    let is_there = |target: &&str| {
        let folder =
            output(command("rustc").args(["--print", "target-libdir", "--target", target]));
        folder.is_ok_and(|folder| Path::new(&folder).is_dir())
    };
    if targets.iter().all(is_there) {
        return Ok(());
    }
    println!("Adding {} to the Rust toolchain", targets.join(" and "));
    output(command("rustup").args(["target", "add"]).args(targets))
        .context("Rust's libraries for WebAssembly are missing, and `rustup` cannot add them")?;
    Ok(())
}

impl Program {
    fn build(&self, project: &Project, folder: &Path) -> Result<()> {
        let Self { name, target, features, link_arguments } = self;
        let builds = project.root().join("target/site-builds");
        let mut cargo = command("cargo");
        cargo.args(["rustc", "--quiet", "--package", "in-browser", "--crate-type", "cdylib"]);
        cargo.args(["--profile", "page", "--target", target]).arg("--target-dir").arg(&builds);
        cargo
            .arg("--")
            .args(link_arguments.iter().map(|argument| format!("-Clink-arg={argument}")));
        cargo.env("RUSTFLAGS", format!("-Ctarget-feature={features}"));
        run(cargo.current_dir(project.root()))?;
        let built = builds.join(target).join("page/in_browser.wasm");
        let to = folder.join(name);
        files::copy_file(&built, &to).with_context(|| format!("cannot write {}", to.display()))
    }
}

/// The weights in the draw-a-digit panel of the committed notebook, a safetensors file.
fn trained_weights(project: &Project) -> Result<Vec<u8>> {
    let path = project.notebooks().join(DRAWING);
    let cells = Notebook::read(&path)?.code_cells();
    let pages = cells
        .iter()
        .flat_map(|cell| &cell.outputs)
        .filter(|output| output["data"]["text/html"] != Value::Null)
        .map(|output| joined(&output["data"]["text/html"]));
    let mut weights = pages.filter_map(|page| {
        let (_, rest) = page.split_once("id=&quot;parameters&quot;>")?;
        Some(rest.split_once('<')?.0.to_owned())
    });
    let weights = weights.next().with_context(|| format!("{} has no panel", path.display()))?;
    Ok(BASE64_STANDARD.decode(weights)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_panel_s_weights_are_those_of_the_tutorial_s_network() {
        let weights = trained_weights(&Project::new()).unwrap();
        let header_len = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&weights[8..][..header_len]).unwrap();
        assert_eq!(header["0/kernel"]["shape"], serde_json::json!([3, 3, 1, 32]));
        assert_eq!(header["7/kernel"]["dtype"], "F16");
        assert!(weights.len() < 2_000_000);
    }
}
