//! A CUDA toolkit: an installed one, or NVIDIA's Python wheels in `.tools/cuda`, arranged like one.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::driver::Version;
use crate::process::{command, output};
use crate::project::Project;
use crate::python::{Environment, OLDEST as OLDEST_PYTHON, python};
use warm_evcxr::files::{self, link};

/// The compiler, from CUDA 13.0: later ones write PTX that the driver of CUDA 13.0 (580) rejects.
const COMPILER: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cuda-runtime==13.0.96",
];
/// The libraries of the same CUDA that programs load, besides the compiler's run-time library.
const RUNTIME: [&str; 3] =
    ["nvidia-cublas==13.1.0.3", "nvidia-curand==10.4.0.35", "nvidia-cuda-nvrtc==13.0.88"];
/// The version of these wheels.
pub const FETCHED: Version = Version(13, 0);
/// The oldest and newest CUDA that this project and candle's bindings know.
pub const OLDEST: Version = Version(12, 0);
const NEWEST: Version = Version(13, 4);

/// The libraries that candle links: name, file name at run time, and the module of the crate cudarc
/// that declares their functions. The first one is the driver's.
pub(super) const LIBRARIES: [(&str, &str, &str); 5] = [
    ("cuda", "libcuda.so.1", "driver"),
    ("cublas", "libcublas.so.13", "cublas"),
    ("cublasLt", "libcublasLt.so.13", "cublaslt"),
    ("curand", "libcurand.so.10", "curand"),
    ("nvrtc", "libnvrtc.so.13", "nvrtc"),
];
/// The compiler's run-time library.
pub(super) const CUDART: &str = "libcudart.so.13";
/// Returned by the functions of stubs: `CUDA_ERROR_NO_DEVICE`.
const NO_DEVICE: u32 = 100;
/// Variables that name the toolkit, in the order in which build scripts read them.
const HOMES: [&str; 5] =
    ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR", "CUDNN_LIB"];
/// A wrapper for `nvcc` that skips unused kernels, which would take most of the time.
const WRAPPER: &str = include_str!("nvcc.sh");
/// A kernel with which the compiler and the libraries are tried out.
const TRIAL: &str = "#include <cmath>\n\
    __global__ void halve(float *x) { *x = sqrtf(*x) / 2; }\n";

/// A CUDA toolkit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolkit {
    /// Its folder, which has `bin/nvcc`.
    pub home: PathBuf,
    /// Its version.
    pub version: Version,
    /// Whether it is made of wheels.
    is_fetched: bool,
}

impl Toolkit {
    /// The installed toolkits that are not newer than `newest`: in `CUDA_HOME`, `CUDA_PATH`,
    /// `/usr/local/cuda`, and those of the `nvcc`s in `PATH`.
    pub fn installed(newest: Version) -> Vec<Self> {
        let named = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let in_path = std::env::split_paths(&path).filter_map(|folder| {
            let nvcc = fs::canonicalize(folder.join("nvcc")).ok()?;
            Some(nvcc.parent()?.parent()?.to_owned())
        });
        // Build scripts run in other folders. There is no absolute path of an empty one.
        let named = named.filter_map(|home| std::path::absolute(home).ok());
        let mut seen = HashSet::new();
        let homes = named.chain(["/usr/local/cuda".into()]).chain(in_path);
        let homes = homes.filter(|home: &PathBuf| seen.insert(home.clone()));
        let toolkits = homes.filter_map(|home| {
            let version = version(&home.join("bin/nvcc"))?;
            let fits = (OLDEST..=newest.min(NEWEST)).contains(&version);
            fits.then_some(Self { home, version, is_fetched: false })
        });
        toolkits.collect()
    }

    /// The toolkit of wheels in `.tools/cuda`, which may not be there yet.
    pub fn fetched(project: &Project) -> Self {
        Self { home: folder(project).join("toolkit"), version: FETCHED, is_fetched: true }
    }

    /// Makes the toolkit ready for building and running: fetches what is missing, and tries it out
    /// for a GPU of this compute capability.
    ///
    /// # Errors
    /// If something cannot be fetched, or does not compile.
    pub fn prepare(&self, project: &Project, capability: Version) -> Result<()> {
        if self.is_fetched {
            self.fetch_compiler(project)?;
            self.fetch_libraries(project)?;
            self.build_stubs(project, &LIBRARIES[..1])?;
        }
        self.write_wrapper(project)?;
        self.try_out(project, capability)
    }

    /// Makes the toolkit of wheels ready for building without a GPU: fetches the compiler, and
    /// replaces the libraries by stubs that export the same function names.
    ///
    /// # Errors
    /// If something cannot be fetched or written.
    pub fn prepare_stubs(project: &Project) -> Result<Self> {
        let toolkit = Self::fetched(project);
        toolkit.fetch_compiler(project)?;
        toolkit.build_stubs(project, &LIBRARIES)?;
        toolkit.write_wrapper(project)?;
        Ok(toolkit)
    }

    /// The compiler.
    pub fn nvcc(&self) -> PathBuf {
        self.home.join("bin/nvcc")
    }

    /// CUDA's run-time library of a fetched toolkit, which no stub replaces.
    pub fn runtime(&self) -> PathBuf {
        self.home.join("lib").join(CUDART)
    }

    /// The variables with which build scripts find the toolkit and build for this compute
    /// capability, such as `90`.
    ///
    /// # Errors
    /// If a path is not UTF-8.
    pub fn environment(
        &self,
        project: &Project,
        capability: &str,
    ) -> Result<Vec<(String, String)>> {
        let utf8 = |path: PathBuf| path.into_os_string().into_string().ok();
        let home = utf8(self.home.clone()).context("the toolkit's path is not UTF-8")?;
        let nvcc = utf8(self.wrapper(project)).context("the project's path is not UTF-8")?;
        let Version(major, minor) = self.version;
        let homes = HOMES.map(|name| (name, home.clone()));
        let others = [
            ("NVCC", nvcc),
            ("CUDA_COMPUTE_CAP", capability.to_owned()),
            ("CUDARC_CUDA_VERSION", format!("{major}0{minor}0")),
        ];
        let all = homes.into_iter().chain(others);
        Ok(all.map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// The folders of the libraries that programs load.
    pub fn libraries(&self) -> Vec<PathBuf> {
        let mut folders = ["lib64", "lib"].iter().map(|folder| self.home.join(folder));
        folders.find(|folder| folder.join("libcublas.so").exists()).into_iter().collect()
    }

    /// The wrapper for this toolkit's compiler. Its name differs between versions, so that Cargo
    /// compiles the kernels again when the version changes.
    fn wrapper(&self, project: &Project) -> PathBuf {
        folder(project).join(format!("nvcc-{}", self.version))
    }

    fn write_wrapper(&self, project: &Project) -> Result<()> {
        let text = WRAPPER.replace("@NVCC@", &self.nvcc().to_string_lossy());
        files::write_program(&self.wrapper(project), &text)
    }

    fn fetch_compiler(&self, project: &Project) -> Result<()> {
        let wheels = fetch(project, "compiler", "NVIDIA's compiler", 105, &COMPILER)?;
        for part in ["bin", "include", "nvvm"] {
            link(&wheels.join(part), &self.home.join(part))?;
        }
        link(Path::new("lib"), &self.home.join("lib64"))?;
        self.link_libraries(&wheels)?;
        link(Path::new(CUDART), &self.home.join("lib/libcudart.so"))
    }

    fn fetch_libraries(&self, project: &Project) -> Result<()> {
        let wheels = fetch(project, "libraries", "NVIDIA's libraries", 575, &RUNTIME)?;
        self.link_libraries(&wheels)?;
        for (name, file, _) in &LIBRARIES[1..] {
            link(Path::new(file), &self.home.join(format!("lib/lib{name}.so")))?;
        }
        Ok(())
    }

    fn link_libraries(&self, wheels: &Path) -> Result<()> {
        let folder = wheels.join("lib");
        let entries = fs::read_dir(&folder);
        for entry in entries.with_context(|| format!("cannot read {}", folder.display()))? {
            let entry = entry?;
            link(&entry.path(), &self.home.join("lib").join(entry.file_name()))?;
        }
        Ok(())
    }

    /// Builds stubs of libraries for linking.
    fn build_stubs(&self, project: &Project, libraries: &[(&str, &str, &str)]) -> Result<()> {
        let folder = self.home.join("lib/stubs");
        let bindings = source_of(project, "cudarc")?.join("src");
        for (name, file, module) in libraries {
            let path = bindings.join(module).join("sys/mod.rs");
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let mut functions = String::new();
            for name in declared_functions(&text) {
                functions += &format!("int {name}(void) {{ return {NO_DEVICE}; }}\n");
            }
            let source = folder.join(format!("{name}.c"));
            let library = folder.join(format!("lib{name}.so"));
            if library.exists() && fs::read_to_string(&source).is_ok_and(|old| old == functions) {
                continue;
            }
            files::write(&source, &functions)?;
            let mut cc = command("cc");
            cc.args(["-w", "-fno-builtin", "-shared", "-fPIC", "-nostdlib"]);
            cc.arg(format!("-Wl,-soname,{file}")).arg("-o").arg(&library).arg(&source);
            output(&mut cc).context("cannot compile a library (is a C compiler installed?)")?;
            // The name under which programs load it.
            link(Path::new(&format!("lib{name}.so")), &folder.join(file))?;
        }
        Ok(())
    }

    /// Compiles a kernel and links it with the libraries, once: the compiler may not know the GPU
    /// or the installed C++ compiler, and an installed toolkit may lack libraries.
    fn try_out(&self, project: &Project, capability: Version) -> Result<()> {
        let folder = folder(project);
        let stamp = folder.join("tried-out.txt");
        let subject = format!("{} {} for {capability}", self.home.display(), self.version);
        if fs::read_to_string(&stamp).is_ok_and(|tried| tried == subject) {
            return Ok(());
        }
        let source = folder.join("trial.cu");
        files::write(&source, TRIAL)?;
        let Version(major, minor) = capability;
        let mut nvcc = command(self.nvcc());
        nvcc.arg(format!("-arch=sm_{major}{minor}")).args(["-std=c++17", "-shared"]);
        nvcc.args(["-Xcompiler", "-fPIC", "-cudart", "shared", "-o"]).arg(folder.join("trial.so"));
        nvcc.arg(source);
        for part in ["lib", "lib/stubs", "lib64", "lib64/stubs"] {
            nvcc.arg("-L").arg(self.home.join(part));
        }
        nvcc.args(LIBRARIES.map(|(name, ..)| format!("-l{name}")));
        output(&mut nvcc).context("its compiler does not work here (is g++ installed?)")?;
        files::write(&stamp, &subject)
    }
}

/// The folder of everything that this module writes.
fn folder(project: &Project) -> PathBuf {
    project.tools().join("cuda")
}

/// The version of a compiler, if it starts.
fn version(nvcc: &Path) -> Option<Version> {
    release(&output(command(nvcc).arg("--version")).ok()?)
}

/// The version in the text that `nvcc --version` prints.
fn release(text: &str) -> Option<Version> {
    let (_, rest) = text.split_once("release ")?;
    let (major, rest) = rest.split_once('.')?;
    let (minor, _) = rest.split_once(',')?;
    Some(Version(major.parse().ok()?, minor.parse().ok()?))
}

/// Installs wheels into an environment of their own and returns the folder of their files. `name`
/// is the environment's folder, `size` the download's in MB.
fn fetch(project: &Project, name: &str, what: &str, size: u32, wheels: &[&str]) -> Result<PathBuf> {
    let environment = Environment::new(folder(project).join(name), wheels.join("\n"));
    if !environment.is_up_to_date(&["nvidia"]) {
        println!("Downloading {what} to .tools/cuda ({size} MB)");
        environment.create(OLDEST_PYTHON)?;
        let options = ["--no-deps", "--only-binary=:all:"];
        environment
            .install(options.iter().chain(wheels))
            .with_context(|| format!("cannot install {what}"))?;
        environment.finish()?;
    }
    let purelib = "import sysconfig; print(sysconfig.get_paths()['purelib'])";
    let packages = output(python(environment.python()).args(["-c", purelib]))?;
    Ok(Path::new(&packages).join("nvidia/cu13"))
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

/// The folder of the source of a package that the project uses, from `cargo metadata`.
fn source_of(project: &Project, name: &str) -> Result<PathBuf> {
    let mut cargo = command("cargo");
    cargo.args(["metadata", "--locked", "--all-features", "--format-version", "1"]);
    let metadata = output(cargo.current_dir(project.root()))?;
    let metadata: Value =
        serde_json::from_str(&metadata).context("`cargo metadata` printed invalid JSON")?;
    let packages = metadata["packages"].as_array();
    let packages = packages.context("`cargo metadata` printed no list of packages")?;
    let manifest = packages
        .iter()
        .find(|package| package["name"] == name)
        .and_then(|package| package["manifest_path"].as_str())
        .with_context(|| format!("candle no longer uses the crate {name}"))?;
    let folder = Path::new(manifest).parent().context("the manifest has no parent folder")?;
    Ok(folder.to_owned())
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

    #[test]
    fn the_release_is_the_version() {
        let text = "nvcc: NVIDIA (R) Cuda compiler driver\n\
                    Copyright (c) 2005-2025 NVIDIA Corporation\n\
                    Built on Wed_Aug_20_01:58:59_PM_PDT_2025\n\
                    Cuda compilation tools, release 12.9, V12.9.86\n\
                    Build cuda_12.9.r12.9/compiler.36424714_0\n";
        assert_eq!(release(text), Some(Version(12, 9)));
        assert_eq!(release("command not found"), None);
    }
}
