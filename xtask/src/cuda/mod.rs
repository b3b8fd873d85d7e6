//! The feature `cuda` built on a machine without a GPU, a driver or the CUDA toolkit, for one that has a GPU.
//!
//! candle compiles its kernels with `nvcc`, which comes from NVIDIA's Python wheels into `.tools/cuda`. What it links
//! besides belongs to the driver and the CUDA libraries of the machine that runs the result: here stand-ins take their
//! place, libraries that carry the names of their functions and nothing else.

mod bundle;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process::{command, output};
use crate::process;
use crate::project::Project;
use crate::python::{Environment, OLDEST, python};
use crate::script::Scripts;
use warm_evcxr::files;

/// The compiler: CUDA 13.0, as a later one writes PTX that the driver of CUDA 13.0 (580) refuses.
const WHEELS: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cuda-runtime==13.0.96",
];
/// The libraries that candle links, and the module of the crate cudarc that declares their functions.
const LIBRARIES: [(&str, &str, &str); 5] = [
    ("cuda", "libcuda.so.1", "driver"),
    ("cublas", "libcublas.so.13", "cublas"),
    ("cublasLt", "libcublasLt.so.13", "cublaslt"),
    ("curand", "libcurand.so.10", "curand"),
    ("nvrtc", "libnvrtc.so.13", "nvrtc"),
];
/// What a stand-in's functions return: CUDA_ERROR_NO_DEVICE.
const NO_DEVICE: u32 = 100;
/// The compute capability built for unless `CUDA_COMPUTE_CAP` names another: that of an H100 or H200.
const COMPUTE_CAP: &str = "90";
/// The crate's tests that run on whichever device there is.
const TESTS: [(&str, &str); 11] = [
    ("crates/images", "augment"),
    ("crates/images", "transform"),
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
/// The package of what goes into the bundle.
const MANIFEST: &str = include_str!("programs.toml");
/// In front of `nvcc`: leaves out what takes most of the time and is never called here.
const COMPILER: &str = include_str!("nvcc.sh");

/// Builds the tests, the benchmark and a notebook's program with the feature `cuda`, and puts them into a folder that
/// runs on a machine with a GPU.
///
/// # Errors
/// When something cannot be fetched, built or written; the message says what.
pub fn build(project: &Project, notebook: &Path) -> Result<()> {
    let toolkit = Toolkit::new(project)?;
    toolkit.check_kernels()?;
    println!("Building with the feature `cuda` (10 minutes of processor time at first)");
    let programs = toolkit.programs(notebook)?;
    let folder = bundle::write(project, &programs)?;
    println!(
        "\nCopy this folder to a machine with an NVIDIA GPU and start its run.sh: {}",
        folder.display()
    );
    Ok(())
}

/// A compiler and stand-ins for the libraries, in the form of an installed CUDA toolkit.
struct Toolkit {
    project: Project,
    /// `.tools/cuda`.
    folder: PathBuf,
    /// A build folder apart from others: another feature, another profile.
    target: PathBuf,
}

impl Toolkit {
    fn new(project: &Project) -> Result<Self> {
        let folder = project.tools().join("cuda");
        let toolkit =
            Self { project: project.clone(), folder, target: project.root().join("target/cuda") };
        let sources = Sources::new(project)?;
        toolkit.compiler(&sources)?;
        toolkit.stand_ins(&sources)?;
        Ok(toolkit)
    }

    /// What programs take for the folder of an installed toolkit.
    fn home(&self) -> PathBuf {
        self.folder.join("toolkit")
    }

    /// Fetches the compiler.
    fn compiler(&self, sources: &Sources) -> Result<()> {
        let venv = Environment::new(self.folder.join("venv"), WHEELS.join("\n"));
        if !venv.is_made(&["nvidia"]) {
            println!("Fetching NVIDIA's compiler into .tools/cuda (250 MB)");
            let packages = ["--no-deps", "--only-binary=:all:"].into_iter().chain(WHEELS);
            venv.make(OLDEST)?;
            venv.install(packages).context("cannot install NVIDIA's compiler")?;
            venv.finish()?;
        }
        let purelib = "import sysconfig; print(sysconfig.get_paths()['purelib'])";
        let packages = output(python(venv.python()).args(["-c", purelib]))?;
        let wheel = Path::new(&packages).join("nvidia/cu13");
        let home = self.home();
        fs::create_dir_all(home.join("lib/stubs"))?;
        for part in ["bin", "include", "nvvm"] {
            link(&wheel.join(part), &home.join(part))?;
        }
        link(Path::new("lib"), &home.join("lib64"))?;
        link(&wheel.join("lib/libcudart.so.13"), &home.join("lib/libcudart.so"))?;
        let front = self.folder.join("nvcc");
        let ffi = sources.of("candle-kernels")?.join("src/ffi.rs");
        let text = COMPILER
            .replace("@NVCC@", &home.join("bin/nvcc").to_string_lossy())
            .replace("@FFI@", &ffi.to_string_lossy());
        if !fs::read_to_string(&front).is_ok_and(|old| old == text) {
            files::write(&front, &text)?;
            output(command("chmod").arg("+x").arg(&front))?;
        }
        Ok(())
    }

    /// Makes a stand-in for each library.
    fn stand_ins(&self, sources: &Sources) -> Result<()> {
        let folder = self.home().join("lib/stubs");
        let bindings = sources.of("cudarc")?.join("src");
        for (name, soname, module) in LIBRARIES {
            let library = folder.join(format!("lib{name}.so"));
            if library.exists() {
                continue;
            }
            let text = fs::read_to_string(bindings.join(module).join("sys/mod.rs"))?;
            let source = folder.join(format!("{name}.c"));
            let functions = declared(&text).into_iter().fold(String::new(), |mut code, name| {
                writeln!(code, "int {name}(void) {{ return {NO_DEVICE}; }}")
                    .expect("a string takes all");
                code
            });
            fs::write(&source, functions)?;
            let mut cc = command("cc");
            cc.args(["-w", "-fno-builtin", "-shared", "-fPIC", "-nostdlib"]);
            cc.arg(format!("-Wl,-soname,{soname}")).arg("-o").arg(&library).arg(&source);
            output(&mut cc).context("cannot compile a library (is there a C compiler?)")?;
            // The name under which a program looks for it when it starts.
            link(Path::new(&format!("lib{name}.so")), &folder.join(soname))?;
            fs::remove_file(source)?;
        }
        Ok(())
    }

    /// Compiles the project's own kernels, which programs compile only when they run.
    fn check_kernels(&self) -> Result<()> {
        let source = self.project.root().join("crates/linen/src/cuda/kernels.cu");
        let mut nvcc = command(self.home().join("bin/nvcc"));
        nvcc.arg(format!("-arch=sm_{}", compute_cap())).args(["-std=c++17", "-cubin", "-o"]);
        nvcc.arg(self.folder.join("kernels.cubin")).arg(source);
        output(&mut nvcc).map(drop).context("kernels.cu does not compile")
    }

    /// Builds what the bundle holds.
    ///
    /// It is a package of its own, so that one set of features serves all, and candle's kernels are compiled once: the
    /// crate's own tests would ask for more, on behalf of tools for testing.
    fn programs(&self, notebook: &Path) -> Result<Vec<(String, PathBuf)>> {
        let root = self.project.root();
        let script = Scripts::write(&self.project, &[notebook.to_owned()])?;
        let folder = self.target.join("programs");
        let manifest = MANIFEST
            .replace("@ROOT@", root.to_str().context("the project's path is not UTF-8")?)
            .replace("@WALKTHROUGH@", &script.source(0).to_string_lossy());
        // All tests in one program, as each would hold candle's kernels.
        let tests = TESTS.map(|(package, name)| {
            let path = root.join(format!("{package}/tests/{name}.rs"));
            format!("#[path = {path:?}]\nmod {name};\n")
        });
        fs::create_dir_all(&folder)?;
        files::write(&folder.join("Cargo.toml"), &manifest)?;
        files::write(&folder.join("tests.rs"), &tests.concat())?;
        fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock"))?;
        let mut cargo = command("cargo");
        cargo.args(["build", "--bins", "--tests", "--target-dir"]).arg(&self.target);
        cargo.current_dir(folder);
        self.build(cargo)
    }

    /// Runs Cargo with the toolkit; the names and paths of the programs that it made.
    fn build(&self, mut cargo: Command) -> Result<Vec<(String, PathBuf)>> {
        let home = self.home();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(home.join("bin")).chain(std::env::split_paths(&path));
        for other in ["CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR", "CUDNN_LIB"] {
            cargo.env_remove(other);
        }
        cargo
            .env("CUDA_HOME", &home)
            .env("NVCC", self.folder.join("nvcc"))
            .env("PATH", std::env::join_paths(path)?)
            .env("CUDA_COMPUTE_CAP", compute_cap())
            .arg("--release");
        process::build(&mut cargo).context("cannot build with the feature `cuda`")
    }
}

/// What to build for.
fn compute_cap() -> String {
    std::env::var("CUDA_COMPUTE_CAP").unwrap_or(COMPUTE_CAP.to_owned())
}

/// The names of the functions that bindings declare.
fn declared(bindings: &str) -> Vec<&str> {
    let names = bindings.split("fn ").skip(1).map(|rest| {
        rest.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
            .next()
            .unwrap_or_default()
    });
    let mut names: Vec<&str> =
        names.filter(|name| name.starts_with("cu") || name.starts_with("nvrtc")).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Where the packages that the project uses lie, as Cargo tells.
struct Sources(Value);

impl Sources {
    fn new(project: &Project) -> Result<Self> {
        let mut cargo = command("cargo");
        cargo.args(["metadata", "--locked", "--all-features", "--format-version", "1"]);
        let metadata = output(cargo.current_dir(project.root()))?;
        Ok(Self(serde_json::from_str(&metadata).context("no JSON")?))
    }

    /// The folder of a package's source.
    fn of(&self, name: &str) -> Result<PathBuf> {
        let packages = self.0["packages"].as_array().context("no list of packages")?;
        let manifest = packages
            .iter()
            .find(|package| package["name"] == name)
            .and_then(|package| package["manifest_path"].as_str())
            .with_context(|| format!("candle no longer uses the crate {name}"))?;
        Ok(Path::new(manifest).parent().context("a manifest lies in a folder")?.to_owned())
    }
}

/// A symbolic link, made anew.
fn link(to: &Path, at: &Path) -> Result<()> {
    if at.is_symlink() {
        fs::remove_file(at)?;
    }
    std::os::unix::fs::symlink(to, at).with_context(|| format!("cannot make {}", at.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_bindings_are_found_once_each() {
        let text = "pub unsafe fn cuInit(a: u32) -> i32;\n fn helper()\n fn cuInit(\n pub fn nvrtcVersion()";
        assert_eq!(declared(text), ["cuInit", "nvrtcVersion"]);
    }
}
