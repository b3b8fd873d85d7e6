//! Bundles a notebook with all that executes it, for a machine with a GPU but with neither Rust nor
//! a network.
//!
//! Cargo and rustc note absolute paths. So everything is set up in [`ROOT`], and unpacked to the
//! same folder on the other machine, where nothing but cells is compiled:
//!
//! | folder | content |
//! |---|---|
//! | `project` | the project, with the kernel and its warm build folder in `.tools` |
//! | `toolchain` | Rust |
//! | `cargo` | Cargo's home: the kernel program, and the sources of crates |
//! | `python` | for each Python, the packages that run a kernel and make a page |

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use warm_evcxr::evcxr;
use warm_evcxr::files;
use warm_evcxr::toolchain::{LIBRARY_PATH, cargo_home, host};

use super::machine::{compute_cap, with_checks};
use super::toolkit::{CUDART, LIBRARIES, Toolkit};
use crate::device::Device;
use crate::lock;
use crate::notebook::{CodeCell, joined};
use crate::process::{command, output, run};
use crate::project::Project;
use crate::python::{Environment, NEWEST, OLDEST};
use crate::setup::{kernel_program, set_up_kernel};

/// The folder in which the bundle is set up, and to which it is unpacked.
pub const ROOT: &str = "/tmp/mnist-notebook-gpu";
/// The maximum size in bytes of a file of the bundle.
const PART: u64 = 60_000_000;
/// The script that unpacks the bundle and executes the notebook.
const RUN: &str = include_str!("run-notebook.sh");
/// The packages that run a kernel and make a page.
const PINS: &str = include_str!("../../carried/requirements.txt");
/// What only builds need.
const LEFT_OUT: [&str; 3] =
    ["project/.tools/cuda/compiler", "project/.tools/kernels/slots", "project/.tools/pip"];
/// Packs a folder. Arguments: the folder, the size of a part, the start of the parts' names, and
/// what is left out.
const PACK: &str = "set -o pipefail
root=$1 part=$2 parts=$3
shift 3
tar --create --format=posix --pax-option=delete=atime,delete=ctime --sort=name \
    --directory=\"$root\" --exclude=incremental \"${@/#/--exclude=./}\" . |
    gzip | split --bytes=\"$part\" --numeric-suffixes - \"$parts\"";
/// Stands in for rustup: the carried toolchain is used even where there is another one.
const RUSTUP: &str = "#!/bin/sh
[ \"$1\" = which ] && echo \"${0%/*}/$2\"
";
/// Stands in for mold, which evcxr would use: cells are linked alike on both machines.
const MOLD: &str = "#!/bin/sh
shift # -run
exec \"$@\"
";

/// Makes the bundle of a notebook of the project.
///
/// # Errors
/// If something cannot be downloaded, built or written; the message says what.
pub fn build(project: &Project, notebook: &Path) -> Result<()> {
    let root = Path::new(ROOT);
    let carried = Project::at(root.join("project"));
    copy_project(project, &carried)?;
    copy_toolchain(project, root)?;
    copy_kernel_program(root)?;
    let toolkit = Toolkit::prepare_stubs(&carried)?;
    println!("Building for the GPU in {ROOT} (20 minutes of CPU time for the first build)");
    set_up_elsewhere(root, notebook.strip_prefix(project.root())?)?;
    empty_archives(&root.join("cargo/registry/cache"))?;
    install_packages(&carried, &root.join("python"))?;
    bring_runtime(&toolkit)?;
    println!("Packing");
    let folder = project.root().join("target/cuda/notebook");
    let parts = pack(root, &folder, PART)?;
    // A kernel copies its build folder.
    let space = files::size(root)? + files::size(&carried.pool().template())?;
    write_script(root, &folder, space)?;
    println!(
        "Size of the bundle: {:.1} MB in {parts} parts\n\n\
         Copy this folder to a machine with an NVIDIA GPU and run its run-notebook.sh: {}",
        files::size(&folder)? as f64 / 1e6,
        folder.display()
    );
    Ok(())
}

/// Sets up the kernel for a notebook in the project copied to [`ROOT`], whose toolchain and Cargo's
/// home the environment names.
///
/// # Errors
/// If something cannot be downloaded or built.
pub fn set_up(project: &Project, notebook: PathBuf) -> Result<()> {
    let device = Device::cuda(project, &Toolkit::fetched(project), &compute_cap())?;
    set_up_kernel(project, &[notebook], &device)
}

/// Fails unless an executed notebook says that it ran on the GPU.
///
/// # Errors
/// If not; the message has the notebook's reason.
pub fn ensure_gpu(executed: &[CodeCell]) -> Result<()> {
    let printed = executed.iter().flat_map(|cell| &cell.outputs).map(|it| joined(&it["text"]));
    let text: String = printed.collect();
    let line = text.lines().find(|line| line.starts_with("Running on"));
    let line = line.unwrap_or("no cell says on which device it runs");
    ensure!(line.starts_with("Running on the NVIDIA GPU"), "the GPU was not used: {line}");
    Ok(())
}

/// Copies the files that Git knows, with their times, by which Cargo knows what is compiled.
fn copy_project(project: &Project, copy: &Project) -> Result<()> {
    files::make_folder(copy.root())?;
    for entry in fs::read_dir(copy.root())? {
        let path = entry?.path();
        match path.is_dir() {
            true if path == copy.tools() => {}
            true => files::remove(&path)?,
            false => fs::remove_file(&path)?,
        }
    }
    let list = output(command("git").args(["ls-files", "-z"]).current_dir(project.root()))?;
    for name in list.split('\0').filter(|name| !name.is_empty()) {
        let (from, to) = (project.root().join(name), copy.root().join(name));
        if let (true, Some(folder)) = (from.is_file(), to.parent()) {
            files::make_folder(folder)?;
            files::copy_file(&from, &to)
                .with_context(|| format!("cannot copy {}", from.display()))?;
        }
    }
    Ok(())
}

/// Copies what compiles for this system.
fn copy_toolchain(project: &Project, root: &Path) -> Result<()> {
    let rustc =
        |arguments: &[&str]| output(command("rustc").args(arguments).current_dir(project.root()));
    let (version, sysroot) = (rustc(&["-vV"])?, PathBuf::from(rustc(&["--print", "sysroot"])?));
    let host = host(&sysroot.join("bin/rustc"))?;
    let folder = root.join("toolchain");
    let stamp = folder.join("version.txt");
    if fs::read_to_string(&stamp).is_ok_and(|old| old == version) {
        return Ok(());
    }
    println!("Copying Rust to {ROOT}");
    files::remove(&folder)?;
    for name in ["bin", "lib/rustlib"] {
        files::make_folder(&folder.join(name))?;
    }
    let mut names = vec![PathBuf::from("bin/cargo"), "bin/rustc".into()];
    for entry in fs::read_dir(sysroot.join("lib"))? {
        let name = entry?.file_name();
        let text = name.to_string_lossy();
        if ["librustc_driver-", "libLLVM", "libstd-"].iter().any(|start| text.starts_with(start)) {
            names.push(Path::new("lib").join(name));
        }
    }
    for name in names {
        files::copy_file(&sysroot.join(&name), &folder.join(&name))?;
    }
    for name in [&host, "src"] {
        let name = Path::new("lib/rustlib").join(name);
        // The standard library's source may be missing: see `setup`.
        if sysroot.join(&name).exists() {
            files::copy(&sysroot.join(&name), &folder.join(&name))?;
        }
    }
    files::write_program(&folder.join("bin/rustup"), RUSTUP)?;
    files::write_program(&folder.join("bin/mold"), MOLD)?;
    files::write(&stamp, &version)
}

/// Copies the kernel program to where Cargo's home in `root` should have it.
fn copy_kernel_program(root: &Path) -> Result<()> {
    let program = kernel_program()?;
    let from = program.ancestors().nth(2).context("the kernel program has no folder")?;
    let to = root.join("cargo").join(evcxr::own_root()?.strip_prefix(cargo_home()?)?);
    files::make_folder(&to.join("bin"))?;
    for name in ["bin/evcxr_jupyter", ".crates.toml"] {
        files::copy_file(&from.join(name), &to.join(name))?;
    }
    Ok(())
}

/// Calls [`set_up`] in a process that sees only what is in `root`, as on the other machine.
fn set_up_elsewhere(root: &Path, notebook: &Path) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = [root.join("toolchain/bin")].into_iter().chain(std::env::split_paths(&path));
    let project = root.join("project");
    let mut program = command(std::env::current_exe()?);
    program
        .args(["set-up-carried".as_ref(), project.join(notebook).as_os_str()])
        .env("PATH", std::env::join_paths(folders)?)
        .env("CARGO_HOME", root.join("cargo"))
        .env("CARGO_MANIFEST_DIR", project.join("xtask"))
        // The script does not set it, so Cargo would compile the kernels again.
        .env_remove("NVCC_CCBIN")
        // rustup sets it for what it starts, to libraries with which the compiler in `root` would
        // take itself for the one that is installed here.
        .env_remove(LIBRARY_PATH);
    run(&mut program)
}

/// Replaces the archives of crates, which are unpacked beside them, by files of one byte: Cargo
/// needs them only to exist.
fn empty_archives(cache: &Path) -> Result<()> {
    for registry in fs::read_dir(cache)? {
        for archive in fs::read_dir(registry?.path())? {
            fs::write(archive?.path(), "\n")?;
        }
    }
    Ok(())
}

/// Installs the packages for each Python. The same file in several of them is stored once.
fn install_packages(project: &Project, folder: &Path) -> Result<()> {
    let environment = Environment::new(project.tools().join("pip"), PINS.to_owned());
    if environment.is_up_to_date(&["pip"]) {
        return Ok(());
    }
    println!("Downloading the Python packages that execute notebooks");
    environment.create(OLDEST)?;
    files::remove(folder)?;
    let mut previous: Option<PathBuf> = None;
    for minor in OLDEST.1..=NEWEST.1 {
        let series = format!("{}.{minor}", OLDEST.0);
        let target = folder.join(&series);
        let mut pip: Vec<String> =
            ["--no-deps", "--no-compile", "--only-binary=:all:"].map(str::to_owned).into();
        pip.extend(["--python-version".to_owned(), series]);
        pip.extend(["--target".to_owned(), target.to_string_lossy().into_owned()]);
        pip.extend(lock::pinned(PINS, (OLDEST.0, minor))?);
        environment.install(pip)?;
        if let Some(previous) = previous {
            link_same_files(&previous, &target)?;
        }
        previous = Some(target);
    }
    environment.finish()
}

/// Replaces files that are the same in another folder by hard links to those.
fn link_same_files(other: &Path, folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let twin = other.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            link_same_files(&twin, &path)?;
        } else if fs::read(&twin).is_ok_and(|text| fs::read(&path).is_ok_and(|it| it == text)) {
            fs::remove_file(&path)?;
            fs::hard_link(&twin, &path)?;
        }
    }
    Ok(())
}

/// Replaces the link to CUDA's run-time library, which cells link, by the library itself: the
/// compiler's folder is not packed.
fn bring_runtime(toolkit: &Toolkit) -> Result<()> {
    let library = toolkit.runtime();
    let real = fs::canonicalize(&library)?;
    if real != library {
        fs::remove_file(&library)?;
        fs::copy(real, library)?;
    }
    Ok(())
}

/// Packs `root` into a new folder of files of at most `part` bytes, and returns their number.
fn pack(root: &Path, folder: &Path, part: u64) -> Result<usize> {
    ensure_no_way_out(root, root)?;
    files::remove(folder)?;
    files::make_folder(folder)?;
    let mut bash = command("bash");
    bash.args(["-c", PACK, "bash"]).arg(root).arg(part.to_string()).arg(folder.join("part-"));
    run(bash.args(LEFT_OUT)).context("cannot pack the bundle")?;
    Ok(fs::read_dir(folder)?.count())
}

/// Fails if a link in `folder` leads out of `root`: the other machine has nothing there.
fn ensure_no_way_out(root: &Path, folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let (entry_type, path) = entry.and_then(|it| Ok((it.file_type()?, it.path())))?;
        if LEFT_OUT.iter().any(|left_out| path == root.join(left_out)) {
            continue;
        }
        if entry_type.is_dir() {
            ensure_no_way_out(root, &path)?;
        } else if entry_type.is_symlink() {
            let target = folder.join(fs::read_link(&path)?);
            let (path, target_name) = (path.display(), target.display());
            ensure!(target.starts_with(root), "{path} leads out of the bundle, to {target_name}");
        }
    }
    Ok(())
}

/// Writes the script for the parts in `folder`, which needs `space` bytes to unpack and run them.
fn write_script(root: &Path, folder: &Path, space: u64) -> Result<()> {
    let mut sha256sum = command("bash");
    let sums = output(sha256sum.args(["-c", "sha256sum part-*"]).current_dir(folder))?;
    let mut libraries = vec![CUDART];
    libraries.extend(LIBRARIES[1..].iter().map(|(_, file, _)| file));
    let script = with_checks(RUN)
        .replace("@ROOT@", root.to_str().context("the path is not UTF-8")?)
        .replace("@LIBRARIES@", &libraries.join(" "))
        .replace("@SUMS@", &sums)
        .replace("@KILOBYTES@", &(space / 1000).to_string());
    files::write_program(&folder.join("run-notebook.sh"), &script)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::process::Output;

    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    /// Stands in for the launcher: saves a notebook and prints variables.
    const LAUNCHER: &str = "#!/bin/sh
[ \"$1\" = --help ] && exit
mkdir -p ${0%/*}/../../target/notebooks
echo executed > ${0%/*}/../../target/notebooks/walkthrough.ipynb
env
\"${0%/*}/../venv/bin/python\" -c 'import carried_package' || exit
exit ${LANG#C.}
";

    /// A bundle of a small folder, and a machine to run it on.
    struct Machine {
        folder: TempDir,
        space: u64,
    }

    impl Machine {
        /// A machine that has everything, and unpacked parts of 1,000 bytes.
        fn new() -> Self {
            let machine = Self { folder: tempfile::tempdir().unwrap(), space: 1000 };
            let root = machine.path("root");
            let launcher = root.join("project/.tools/kernels/launcher");
            files::write_program(&launcher, LAUNCHER).unwrap();
            for minor in OLDEST.1..=NEWEST.1 {
                let name = format!("python/3.{minor}/carried_package.py");
                files::write(&root.join(name), "").unwrap();
            }
            // Text that does not get smaller.
            let noise: String = (0..3000_u64)
                .map(|i| {
                    char::from(
                        b'!' + (i.wrapping_mul(i).wrapping_mul(0x9E37_79B9) >> 13) as u8 % 90,
                    )
                })
                .collect();
            files::write(&root.join("toolchain/noise"), &noise).unwrap();
            files::write(&root.join("project/.tools/kernels/slots/1/left-out"), "").unwrap();
            machine.make_bundle();
            fs::rename(root, machine.path("moved-away")).unwrap();
            for library in [CUDART].into_iter().chain(LIBRARIES.map(|(_, file, _)| file)) {
                machine.compile_library(library, 1);
            }
            machine
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn make_bundle(&self) {
            pack(&self.path("root"), &self.path("bundle"), 1000).unwrap();
            write_script(&self.path("root"), &self.path("bundle"), self.space).unwrap();
        }

        /// Compiles a library that has the functions of a driver with this number of GPUs.
        fn compile_library(&self, name: &str, gpus: u32) {
            let text = format!(
                "int cuInit(unsigned flags) {{ return 0; }}\n\
                 int cuDeviceGetCount(int *count) {{ *count = {gpus}; return 0; }}\n"
            );
            let source = self.path("library.c");
            files::write(&source, &text).unwrap();
            files::make_folder(&self.path("lib")).unwrap();
            let mut cc = command("cc");
            cc.args(["-shared", "-o"]).arg(self.path("lib").join(name)).arg(source);
            output(&mut cc).unwrap();
        }

        /// Runs the script with these variables.
        fn run(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
            let mut script = command(self.path("bundle/run-notebook.sh"));
            script.args(arguments).env("LD_LIBRARY_PATH", self.path("lib")).env("LANG", "C.0");
            script.env("NVCC_CCBIN", "other").envs(variables.iter().copied()).output().unwrap()
        }

        /// The error with which the script ends: one line.
        fn error(&self, arguments: &[&str], variables: &[(&str, &str)]) -> String {
            let output = self.run(arguments, variables);
            let message = String::from_utf8(output.stderr).unwrap();
            assert!(!output.status.success());
            let line = message.strip_prefix("error: ").expect(&message).trim_end();
            assert_eq!(line.lines().count(), 1, "{line}");
            line.to_owned()
        }
    }

    #[test]
    fn a_bundle_with_a_link_to_this_machine_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (root, bundle) = (folder.path().join("root"), folder.path().join("bundle"));
        files::link(Path::new("/usr/bin/cc"), &root.join(LEFT_OUT[0]).join("bin/cc")).unwrap();
        files::link(&root.join("toolchain/lib"), &root.join("project/lib")).unwrap();
        files::link(Path::new("lib"), &root.join("project/lib64")).unwrap();
        pack(&root, &bundle, PART).unwrap();
        files::link(Path::new("/usr/lib"), &root.join("project/sysroot/lib")).unwrap();
        let message = pack(&root, &bundle, PART).unwrap_err().to_string();
        assert!(message.ends_with("sysroot/lib leads out of the bundle, to /usr/lib"), "{message}");
    }

    #[test]
    fn the_script_unpacks_once_and_brings_the_results_back() {
        let machine = Machine::new();
        assert!(fs::read_dir(machine.path("bundle")).unwrap().count() > 3);
        let sizes = fs::read_dir(machine.path("bundle")).unwrap().map(|entry| entry.unwrap());
        let parts = sizes.filter(|entry| entry.file_name().to_string_lossy().starts_with("part-"));
        assert!(parts.into_iter().all(|part| part.metadata().unwrap().len() <= 1000));

        let output = machine.run(&[], &[]);
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{output:?}");
        assert!(printed.starts_with("Unpacking to "), "{printed}");
        let root = machine.path("root");
        for variable in [
            format!("CARGO_HOME={}", root.join("cargo").display()),
            format!("CARGO_MANIFEST_DIR={}", root.join("project/xtask").display()),
            "CARGO_NET_OFFLINE=true".to_owned(),
        ] {
            assert!(printed.lines().any(|line| line == variable), "{variable}: {printed}");
        }
        assert!(!printed.contains("NVCC_CCBIN"), "{printed}");
        let saved = machine.path("bundle/results/walkthrough.ipynb");
        assert_eq!(fs::read_to_string(&saved).unwrap(), "executed\n");
        assert!(!root.join("project/.tools/kernels/slots").exists());
        let modified = |root: &str| {
            let about = fs::metadata(machine.path(root).join("toolchain/noise")).unwrap();
            (about.mtime(), about.mtime_nsec())
        };
        assert_eq!(modified("root"), modified("moved-away"), "Cargo compares times");

        fs::remove_file(&saved).unwrap();
        let output = machine.run(&[], &[("LANG", "C.3")]);
        assert_eq!(output.status.code(), Some(3), "the launcher failed");
        assert!(!String::from_utf8_lossy(&output.stdout).contains("Unpacking"));
        assert!(saved.exists(), "also of a failed run");
    }

    #[test]
    fn what_the_machine_lacks_is_one_line() {
        let machine = Machine::new();
        let bin = machine.path("bin");
        // `false` acts as a Python that cannot load libraries.
        let error = machine.error(&["false"], &[]);
        assert!(error.starts_with("no NVIDIA driver: libcuda.so.1 cannot"), "{error}");
        let error = machine.error(&["python-of-mine"], &[]);
        assert!(error.starts_with("cannot find python-of-mine"), "{error}");

        let old = "#!/bin/sh\ncase \"$*\" in *version_info*) echo 3.9;; esac\n";
        files::write_program(&bin.join("python3.9"), old).unwrap();
        let error = machine.error(&[bin.join("python3.9").to_str().unwrap()], &[]);
        assert!(error.contains("python3.9 is Python 3.9, not 3.10 to 3.14"), "{error}");

        files::write_program(&bin.join("cc"), "#!/bin/sh\nexit 1\n").unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let error = machine.error(&[], &[("PATH", &path)]);
        assert!(error.starts_with("cc cannot link a program"), "{error}");

        fs::remove_file(machine.path("lib/libnvrtc.so.13")).unwrap();
        let error = machine.error(&[], &[]);
        assert!(error.starts_with("not found: libnvrtc.so.13. Install CUDA 13's"), "{error}");

        machine.compile_library("libcuda.so.1", 0);
        let error = machine.error(&[], &[]);
        assert!(error.starts_with("NVIDIA's driver shows no GPU"), "{error}");
        assert!(!machine.path("root").exists());
    }

    #[test]
    fn parts_that_cannot_be_unpacked_are_one_line() {
        let mut machine = Machine::new();
        let part = machine.path("bundle/part-01");
        let whole = fs::read(&part).unwrap();
        fs::write(&part, &whole[1..]).unwrap();
        fs::remove_file(machine.path("bundle/part-02")).unwrap();
        let error = machine.error(&[], &[]);
        assert_eq!(error, "missing or damaged, copy again: part-01 part-02");

        fs::rename(machine.path("moved-away"), machine.path("root")).unwrap();
        machine.space = 1 << 60;
        machine.make_bundle();
        let error = machine.error(&[], &[]);
        assert!(error.ends_with("root does not come from these parts: remove it, and start again"));
        fs::rename(machine.path("root"), machine.path("moved-away")).unwrap();
        let error = machine.error(&[], &[]);
        assert!(error.contains(" MB free, but 1152921504606 MB are needed"), "{error}");
        assert!(!machine.path("root").exists() && !machine.path("root.unpacking").exists());
    }

    #[test]
    fn a_notebook_that_did_not_use_the_gpu_is_an_error() {
        let cell = |text: &str| {
            let output = json!({"output_type": "stream", "name": "stdout", "text": text});
            let cell = json!({"cell_type": "code", "source": "f()", "outputs": [output]});
            crate::notebook::Notebook::parse(&json!({"cells": [cell]}).to_string()).unwrap()
        };
        let result = |text: &str| ensure_gpu(&cell(text).code_cells());
        result("Hello\nRunning on the NVIDIA GPU: NVIDIA H200.\n").unwrap();
        let error = result("Running on the CPU: no GPU was found.\n").unwrap_err().to_string();
        assert_eq!(error, "the GPU was not used: Running on the CPU: no GPU was found.");
        assert!(result("").is_err());
    }

    #[test]
    fn the_same_file_for_several_pythons_is_stored_once() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (name, text) in
            [("a/p/same", "1"), ("b/p/same", "1"), ("a/p/own", "2"), ("b/p/own", "3")]
        {
            files::write(&at(name), text).unwrap();
        }
        files::write(&at("b/new/file"), "").unwrap();
        link_same_files(&at("a"), &at("b")).unwrap();
        let number = |name: &str| fs::metadata(at(name)).unwrap().ino();
        assert_eq!(number("a/p/same"), number("b/p/same"));
        assert_ne!(number("a/p/own"), number("b/p/own"));
        assert_eq!(fs::read_to_string(at("b/p/own")).unwrap(), "3");
    }
}
