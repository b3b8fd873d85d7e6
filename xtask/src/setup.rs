//! Makes everything that the notebooks need, once; what is in place already is left alone.
//!
//! Nothing is installed outside the project's `.tools` and Cargo's home, apart from rustup's component `rust-src`.

use std::ffi::OsStr;
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
use crate::ui::Spinner;

/// The series of evcxr that the notebooks are written for, and the version that is installed when there is none.
const EVCXR_SERIES: &str = "0.22.";
const EVCXR_VERSION: &str = "0.22.0";
const OLDEST_PYTHON: (u32, u32) = (3, 10);

/// JupyterLab asks nothing of the network: no news, no updates.
const LAB_SETTINGS: &str = r#"{
  "@jupyterlab/apputils-extension:notification": { "fetchNews": "false", "checkForUpdates": false }
}
"#;

/// Makes everything that the notebooks need.
///
/// # Errors
/// When something needed is missing and cannot be made; the message says what to install.
pub fn set_up(project: &Project) -> Result<()> {
    fs::create_dir_all(project.tools().join("jupyter"))?;
    let lock = File::create(project.tools().join("setup.lock"))?;
    if lock.try_lock().is_err() {
        println!("Waiting for another `cargo xtask` to finish setting up");
        lock.lock()?;
    }
    python_environment(project)?;
    let evcxr = evcxr()?;
    rust_src(project)?;
    kernelspec(project, &evcxr)?;
    warm_template(project)
}

/// The Python environment with what `notebooks/requirements.txt` names.
fn python_environment(project: &Project) -> Result<()> {
    let wanted = project.notebooks().join("requirements.txt");
    let text =
        fs::read_to_string(&wanted).with_context(|| format!("cannot read {}", wanted.display()))?;
    let stamp = project.venv().join("requirements.txt");
    let works = || output(command(project.python()).arg("--version")).is_ok();
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == text) && works() {
        return Ok(());
    }
    println!("Installing JupyterLab in .tools/venv");
    make_environment(&find_python()?, &project.venv(), [OsStr::new("-r"), wanted.as_os_str()])
        .context("cannot install notebooks/requirements.txt")?;
    launcher::write(
        &project.venv().join("share/jupyter/lab/settings/overrides.json"),
        LAB_SETTINGS,
    )?;
    fs::write(stamp, text)?;
    Ok(())
}

/// Makes a Python environment anew, with what these arguments of `pip install` ask for.
///
/// # Errors
/// When Python cannot make one, or pip cannot install it all.
pub(crate) fn make_environment(
    python: &Path,
    folder: &Path,
    packages: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Result<()> {
    launcher::remove(folder)?;
    output(command(python).args(["-m", "venv"]).arg(folder)).context(
        "cannot make a Python environment: Python's module `venv` may be missing \
         (Debian and Ubuntu: `apt install python3-venv`)",
    )?;
    let _spinner = Spinner::new("pip install");
    let mut pip = command(folder.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(packages);
    output(&mut pip).map(drop)
}

/// A Python that is new enough.
pub(crate) fn find_python() -> Result<PathBuf> {
    let version = "import sys; print(sys.version_info[0], sys.version_info[1])";
    let mut seen = Vec::new();
    for name in ["python3", "python3.14", "python3.13", "python3.12", "python3.11", "python3.10"] {
        let Ok(answer) = output(command(name).args(["-c", version])) else {
            continue;
        };
        let numbers: Vec<u32> =
            answer.split(' ').filter_map(|number| number.parse().ok()).collect();
        if matches!(numbers[..], [major, minor] if (major, minor) >= OLDEST_PYTHON) {
            return Ok(name.into());
        }
        seen.push(answer.replace(' ', "."));
    }
    let found = if seen.is_empty() { "none".to_owned() } else { seen.join(", ") };
    bail!(
        "JupyterLab needs Python {}.{} or newer as `python3` (found: {found}): \
         install it (Debian and Ubuntu: `apt install python3 python3-venv`)",
        OLDEST_PYTHON.0,
        OLDEST_PYTHON.1
    )
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
