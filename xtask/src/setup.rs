//! Makes everything that the notebooks need, once; what is in place already is left alone.
//!
//! Nothing is installed outside the project's `.tools` and Cargo's home, apart from rustup's component `rust-src`.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::check;
use crate::kernel::Kernel;
use crate::launcher::{self, Pool, STAMP};
use crate::notebook::Notebook;
use crate::project::{Project, cargo_home, command, output, run};
use crate::python;
use crate::ui::Spinner;

/// The series of evcxr that the notebooks are written for, and the version that is installed when there is none.
const EVCXR_SERIES: &str = "0.22.";
const EVCXR_VERSION: &str = "0.22.0";

/// Makes everything that the notebooks need.
///
/// # Errors
/// When something needed is missing and cannot be made; the message says what to install.
pub fn set_up(project: &Project) -> Result<()> {
    let (folder, lock) = (project.tools().join("jupyter"), project.tools().join("setup.lock"));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let lock = File::create(&lock).with_context(|| format!("cannot write {}", lock.display()))?;
    if lock.try_lock().is_err() {
        println!("Waiting for another `cargo xtask` to finish setting up");
        lock.lock()?;
    }
    python::set_up(project)?;
    let evcxr = evcxr()?;
    rust_src(project)?;
    kernelspec(project, &evcxr)?;
    warm_template(project)
}

/// The kernel's program: one that Cargo installed for this user, or one built now into a folder of its own.
fn evcxr() -> Result<PathBuf> {
    let home = cargo_home()?;
    let own = home.join("mnist-notebook").join(format!("evcxr_jupyter-{EVCXR_VERSION}"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let roots = std::env::split_paths(&path).filter_map(|bin| Some(bin.parent()?.to_owned()));
    for root in [own.clone(), home].into_iter().chain(roots) {
        if installed_evcxr(&root).is_some_and(|version| version.starts_with(EVCXR_SERIES)) {
            return Ok(root.join("bin/evcxr_jupyter"));
        }
    }
    println!(
        "Building the kernel evcxr_jupyter {EVCXR_VERSION}, once for this user (about 10 minutes on 2 cores)"
    );
    let mut install = command("cargo");
    install
        .args(["install", "--locked", "--version", EVCXR_VERSION, "evcxr_jupyter", "--root"])
        .arg(&own);
    // Outside the project folder, whose build settings are not meant for it.
    run(install.current_dir(cargo_home()?)).context("cannot build the kernel evcxr_jupyter")?;
    Ok(own.join("bin/evcxr_jupyter"))
}

/// The version of `evcxr_jupyter` in a folder that Cargo installs programs to, from Cargo's list of them.
fn installed_evcxr(root: &Path) -> Option<String> {
    let list = fs::read_to_string(root.join(".crates.toml")).ok()?;
    root.join("bin/evcxr_jupyter").is_file().then_some(())?;
    let (_, rest) = list.split_once("\"evcxr_jupyter ")?;
    rest.split(' ').next().map(str::to_owned)
}

/// The standard library's source, by which evcxr infers the types of variables. Does without it where it cannot be had.
fn rust_src(project: &Project) -> Result<()> {
    let sysroot = output(command("rustc").args(["--print", "sysroot"]))?;
    if Path::new(&sysroot).join("lib/rustlib/src/rust/library").is_dir() {
        return Ok(());
    }
    let unavailable = project.tools().join("rust-src-unavailable");
    if fs::read_to_string(&unavailable).is_ok_and(|without| without == sysroot) {
        return Ok(());
    }
    println!("Adding rust-src to the Rust toolchain");
    if let Err(error) = output(command("rustup").args(["component", "add", "rust-src"])) {
        println!(
            "Going on without rust-src: some variables in cells need their type written out ({error:#})"
        );
        fs::write(unavailable, sysroot)?;
    }
    Ok(())
}

/// The kernel's launcher, and the kernelspec that names it.
fn kernelspec(project: &Project, evcxr: &Path) -> Result<()> {
    let tools = project.tools();
    let launcher = tools.join("bin/xtask");
    // A copy: it outlives `cargo clean`. Put in place by renaming: the old one may be running.
    let copy = tools.join("bin/xtask.new");
    fs::create_dir_all(tools.join("bin"))?;
    fs::copy(std::env::current_exe()?, &copy)?;
    fs::rename(copy, &launcher)?;
    Pool::new(&tools).furnish()?;
    let spec = json!({
        "argv": [&launcher, "kernel", "--evcxr", evcxr, "--control-file", "{connection_file}"],
        "display_name": "Rust",
        "language": "rust",
        "interrupt_mode": "message",
    });
    launcher::write(&project.kernelspec(), &format!("{spec:#}\n"))
}

/// The build folder with all dependencies of the notebooks compiled, from which kernels get their copies.
///
/// It is made by a kernel itself, by running the notebooks' `:dep` lines: so the flags are the kernel's own.
fn warm_template(project: &Project) -> Result<()> {
    let dependencies = dependencies(project)?;
    let pool = Pool::new(&project.tools());
    let (template, building) = (pool.template(), pool.template().with_extension("new"));
    let stamp = stamp(project, &dependencies)?;
    if dependencies.is_empty()
        || fs::read_to_string(template.join(STAMP)).is_ok_and(|old| old == stamp)
    {
        return Ok(());
    }
    println!("Compiling the notebooks' dependencies (a few minutes the first time)");
    // What was begun and not finished is gone on with: Cargo itself knows what a killed build has left to do.
    if !building.exists() && template.exists() && launcher::is_sound(&template)? {
        launcher::copy(&template, &building)?;
    }
    fs::create_dir_all(&building)?;
    let spinner = Spinner::new("");
    let folder = building.to_str().context("the project's path is not UTF-8")?;
    let mut kernel = Kernel::start(
        project,
        &project.notebooks(),
        &[("EVCXR_TMPDIR", folder)],
        Box::new(spinner.messages()),
    )?;
    let outputs = kernel.execute(&dependencies, None, |_| {})?;
    drop(kernel);
    if let Some(problem) = check::messages(&outputs).first() {
        bail!(
            "cannot compile the notebooks' dependencies:\n{problem}\n\
             (if this is no error in the code, remove .tools/kernels and try again)"
        );
    }
    fs::write(building.join(STAMP), stamp)?;
    let lock = pool.template_lock()?;
    lock.lock()?;
    launcher::remove(&template)?;
    fs::rename(&building, &template)?;
    Ok(())
}

/// The `:dep` lines of all notebooks, each once.
fn dependencies(project: &Project) -> Result<String> {
    let mut lines: Vec<String> = Vec::new();
    for path in project.notebook_files()? {
        for cell in Notebook::read(&path)?.code_cells() {
            let found = cell.source.lines().filter(|line| line.starts_with(":dep "));
            lines.extend(found.map(str::to_owned));
        }
    }
    lines.sort();
    lines.dedup();
    Ok(lines.join("\n"))
}

/// A text that changes with all that a compiled dependency depends on.
fn stamp(project: &Project, dependencies: &str) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    output(command("rustc").arg("-vV"))?.hash(&mut hasher);
    dependencies.hash(&mut hasher);
    hash_files(
        project.root(),
        &["Cargo.lock", "Cargo.toml", ".tools/kernels/.cargo/config.toml"],
        &mut hasher,
    )?;
    hash_sources(&project.root().join("mnist-notebook-support"), &mut hasher)?;
    Ok(format!("{:016x}\n", hasher.finish()))
}

fn hash_files(folder: &Path, names: &[&str], hasher: &mut impl Hasher) -> Result<()> {
    for name in names {
        let path = folder.join(name);
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?.hash(hasher);
    }
    Ok(())
}

fn hash_sources(folder: &Path, hasher: &mut impl Hasher) -> Result<()> {
    let mut paths =
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        if path.is_dir() {
            hash_sources(&path, hasher)?;
        } else {
            path.hash(hasher);
            fs::read(&path)?.hash(hasher);
        }
    }
    Ok(())
}
