//! Builds the feature `cuda` for a machine with a GPU; needs no GPU, driver or CUDA toolkit.
//!
//! candle compiles its kernels with `nvcc`, which is installed to `.tools/cuda` from NVIDIA's
//! Python wheels. The driver's and CUDA's libraries, which the target machine provides, are
//! replaced for linking by stubs that export the same function names.

mod bundle;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process::{self, command, output};
use crate::project::Project;
use crate::python::{Environment, OLDEST, python};
use crate::script::Scripts;
use warm_evcxr::files::{self, link};

/// The compiler, from CUDA 13.0: later ones write PTX that the driver of CUDA 13.0 (580) rejects.
const WHEELS: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cuda-runtime==13.0.96",
];
/// The libraries that candle links: name, file name at run time, and the module of the crate cudarc
/// that declares their functions.
const LIBRARIES: [(&str, &str, &str); 5] = [
    ("cuda", "libcuda.so.1", "driver"),
    ("cublas", "libcublas.so.13", "cublas"),
    ("cublasLt", "libcublasLt.so.13", "cublaslt"),
    ("curand", "libcurand.so.10", "curand"),
    ("nvrtc", "libnvrtc.so.13", "nvrtc"),
];
/// Returned by the functions of stubs: CUDA_ERROR_NO_DEVICE.
const NO_DEVICE: u32 = 100;
/// The default compute capability, overridden by `CUDA_COMPUTE_CAP`: that of an H100 or H200.
const COMPUTE_CAP: &str = "90";
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
/// A wrapper for `nvcc` that skips unused kernels, which would take most of the time.
const COMPILER: &str = include_str!("nvcc.sh");

/// Builds the tests, the benchmark and a notebook's program with the feature `cuda`, and bundles
/// them for a machine with a GPU.
///
/// # Errors
/// If something cannot be downloaded, built or written; the message says what.
pub fn build(project: &Project, notebook: &Path) -> Result<()> {
    let toolkit = Toolkit::new(project)?;
    toolkit.check_kernels()?;
    println!("Building with the feature `cuda` (10 minutes of CPU time for the first build)");
    let programs = toolkit.programs(notebook)?;
    let folder = bundle::write(project, &programs)?;
    println!(
        "\nCopy this folder to a machine with an NVIDIA GPU and run its run.sh: {}",
        folder.display()
    );
    Ok(())
}

/// A compiler and library stubs, arranged like an installed CUDA toolkit.
struct Toolkit {
    project: Project,
    /// `.tools/cuda`.
    folder: PathBuf,
    /// A separate build folder, because features and profile differ.
    target: PathBuf,
}

impl Toolkit {
    fn new(project: &Project) -> Result<Self> {
        let folder = project.tools().join("cuda");
        let toolkit =
            Self { project: project.clone(), folder, target: project.root().join("target/cuda") };
        let sources = Sources::new(project)?;
        toolkit.install_compiler(&sources)?;
        toolkit.build_stubs(&sources)?;
        Ok(toolkit)
    }

    /// The folder that looks like an installed toolkit.
    fn home(&self) -> PathBuf {
        self.folder.join("toolkit")
    }

    /// Installs the compiler and its wrapper.
    fn install_compiler(&self, sources: &Sources) -> Result<()> {
        let venv = Environment::new(self.folder.join("venv"), WHEELS.join("\n"));
        if !venv.is_up_to_date(&["nvidia"]) {
            println!("Downloading NVIDIA's compiler to .tools/cuda (250 MB)");
            let packages = ["--no-deps", "--only-binary=:all:"].into_iter().chain(WHEELS);
            venv.create(OLDEST)?;
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
        let ffi = sources.of("candle-kernels")?.join("src/ffi.rs");
        let text = COMPILER
            .replace("@NVCC@", &home.join("bin/nvcc").to_string_lossy())
            .replace("@FFI@", &ffi.to_string_lossy());
        files::write_program(&self.folder.join("nvcc"), &text)
    }

    /// Builds a stub for each library.
    fn build_stubs(&self, sources: &Sources) -> Result<()> {
        let folder = self.home().join("lib/stubs");
        let bindings = sources.of("cudarc")?.join("src");
        for (name, soname, module) in LIBRARIES {
            let library = folder.join(format!("lib{name}.so"));
            if library.exists() {
                continue;
            }
            let text = fs::read_to_string(bindings.join(module).join("sys/mod.rs"))?;
            let source = folder.join(format!("{name}.c"));
            let mut functions = String::new();
            for name in declared_functions(&text) {
                functions += &format!("int {name}(void) {{ return {NO_DEVICE}; }}\n");
            }
            fs::write(&source, functions)?;
            let mut cc = command("cc");
            cc.args(["-w", "-fno-builtin", "-shared", "-fPIC", "-nostdlib"]);
            cc.arg(format!("-Wl,-soname,{soname}")).arg("-o").arg(&library).arg(&source);
            output(&mut cc).context("cannot compile a library (is a C compiler installed?)")?;
            // The name under which programs load it.
            link(Path::new(&format!("lib{name}.so")), &folder.join(soname))?;
            fs::remove_file(source)?;
        }
        Ok(())
    }

    /// Compiles the project's own kernels, which are otherwise compiled only at run time.
    fn check_kernels(&self) -> Result<()> {
        let source = self.project.root().join("crates/linen/src/cuda/kernels.cu");
        let mut nvcc = command(self.home().join("bin/nvcc"));
        nvcc.arg(format!("-arch=sm_{}", compute_cap())).args(["-std=c++17", "-cubin", "-o"]);
        nvcc.arg(self.folder.join("kernels.cubin")).arg(source);
        output(&mut nvcc).map(drop).context("kernels.cu does not compile")
    }

    /// Builds the bundle's programs.
    ///
    /// They form a separate package with one set of features, so that candle's kernels are compiled
    /// only once. In the project's packages, development dependencies enable more features.
    fn programs(&self, notebook: &Path) -> Result<Vec<(String, PathBuf)>> {
        let root = self.project.root();
        let script = Scripts::write(&self.project, &[notebook.to_owned()])?;
        let folder = self.target.join("programs");
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
        cargo.args(["build", "--bins", "--tests", "--target-dir"]).arg(&self.target);
        cargo.current_dir(folder);
        self.build(cargo)
    }

    /// Runs Cargo with the toolkit and returns the names and paths of the programs.
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

/// The compute capability to build for.
fn compute_cap() -> String {
    std::env::var("CUDA_COMPUTE_CAP").unwrap_or(COMPUTE_CAP.to_owned())
}

/// The names of the functions declared in bindings.
fn declared_functions(bindings: &str) -> Vec<&str> {
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

/// The sources of the packages that the project uses, from `cargo metadata`.
struct Sources(Value);

impl Sources {
    fn new(project: &Project) -> Result<Self> {
        let mut cargo = command("cargo");
        cargo.args(["metadata", "--locked", "--all-features", "--format-version", "1"]);
        let metadata = output(cargo.current_dir(project.root()))?;
        Ok(Self(serde_json::from_str(&metadata).context("`cargo metadata` printed invalid JSON")?))
    }

    /// The folder of a package's source.
    fn of(&self, name: &str) -> Result<PathBuf> {
        let packages = self.0["packages"].as_array();
        let packages = packages.context("`cargo metadata` printed no list of packages")?;
        let manifest = packages
            .iter()
            .find(|package| package["name"] == name)
            .and_then(|package| package["manifest_path"].as_str())
            .with_context(|| format!("candle no longer uses the crate {name}"))?;
        let folder = Path::new(manifest).parent().context("the manifest has no parent folder")?;
        Ok(folder.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_declared_function_is_found_once() {
        let text = "pub unsafe fn cuInit(a: u32) -> i32;\n fn helper()\n fn cuInit(\n \
                    pub fn nvrtcVersion()";
        assert_eq!(declared_functions(text), ["cuInit", "nvrtcVersion"]);
    }
}
