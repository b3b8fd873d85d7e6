//! Sets up everything that the notebooks need; parts that are up to date are left alone.
//!
//! Installs only to the project's `.tools` and Cargo's home, except for rustup's component
//! `rust-src`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::slice;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use warm_evcxr::kernel::{self, Kernelspec};
use warm_evcxr::pool::{Build, Pool, Settings};
use warm_evcxr::template::{self, Dependencies, parse_dependency};
use warm_evcxr::{evcxr, files};

use crate::device::{Allowed, Choice, Device};
use crate::jupyter;
use crate::notebook::Notebook;
use crate::process::{command, output};
use crate::project::Project;
use crate::ui::Spinner;

/// The Cargo configuration of the notebooks' kernel.
const CARGO_CONFIG: &str = include_str!("kernel-profile.toml");

/// Environment variables that make training faster and must be set before the program starts.
pub(crate) const PERFORMANCE_VARIABLES: [(&str, &str); 3] = [
    // candle adds up gradients on its own threads, which spin beside Rayon's while they wait.
    ("CANDLE_NUM_THREADS", "1"),
    // Each training step needs the memory that the last one freed. glibc must keep it: getting
    // megabytes of fresh pages for every step costs nearly as much as the computation.
    ("MALLOC_MMAP_THRESHOLD_", "33554432"),
    ("MALLOC_TRIM_THRESHOLD_", "1073741824"),
];
/// Environment variables that isolate the Pythons that cells start, also from modules beside the
/// notebook.
const PYTHON_VARIABLES: [(&str, &str); 4] =
    [("PYTHONNOUSERSITE", "1"), ("PYTHONPATH", ""), ("PYTHONSAFEPATH", "1"), ("PYTHONUTF8", "1")];

/// The name and title under which the kernel is registered for the user. They differ from those of
/// evcxr's own kernel.
const USER_KERNEL: (&str, &str) = ("mnist-notebook", "Rust (MNIST notebooks)");

/// The crate whose features choose the device.
const SUPPORT: &str = "mnist-notebook-support";

/// Sets up what these notebooks need and, if that took long, prints the times. Returns the device
/// that they use.
///
/// # Errors
/// If something is missing and cannot be installed; the message says what to do.
pub fn set_up(project: &Project, notebooks: &[PathBuf], allowed: Allowed) -> Result<Device> {
    let start = Instant::now();
    let lock = project.tools().join("setup.lock");
    files::make_folder(&project.tools().join("jupyter"))?;
    let lock = File::create(&lock).with_context(|| format!("cannot write {}", lock.display()))?;
    if lock.try_lock().is_err() {
        println!("Waiting for another `cargo xtask` to finish its set-up");
        lock.lock()?;
    }
    project.claim_tools()?;
    let dependencies = dependencies(notebooks)?;
    add_rust_src(project)?;
    let device = Choice::new(project, allowed).prepare(project)?;
    let (pool, build) = furnish(project, &device)?;
    let warm = || {
        let warmed = warm(&pool, &dependencies, &build);
        if device.feature.is_none() {
            return warmed;
        }
        warmed.context("cannot build for the GPU: `--device cpu` does without it")
    };
    let parts = run_in_parallel([
        ("JupyterLab", &|| jupyter::set_up(project)),
        ("the kernel", &|| install_kernel(project, &pool, &build, &device)),
        ("the notebooks' dependencies", &warm),
    ])?;
    if start.elapsed() > Duration::from_secs(20) {
        println!("Set up in {}, in parallel:", minutes(start.elapsed()));
        for (name, took) in parts {
            println!("        {:>6}  {name}", minutes(took));
        }
    }
    Ok(device)
}

/// Sets up only the kernel for these notebooks, for a device whose toolkit is ready: nothing that
/// needs Python.
///
/// # Errors
/// If something does not compile or cannot be written.
pub fn set_up_kernel(project: &Project, notebooks: &[PathBuf], device: &Device) -> Result<()> {
    let dependencies = dependencies(notebooks)?;
    let (pool, build) = furnish(project, device)?;
    install_kernel(project, &pool, &build, device)?;
    warm(&pool, &dependencies, &build)
}

/// The furnished pool of build folders, and how to build in them for a device.
fn furnish(project: &Project, device: &Device) -> Result<(Pool, Build)> {
    let pool = project.pool();
    pool.furnish(CARGO_CONFIG)?;
    let build = Build {
        lock: Some(project.root().join("Cargo.lock")),
        features: features(project, device)?,
        environment: device.environment.clone(),
    };
    Ok((pool, build))
}

/// The device's feature of the support crate, and what any of the project's notebooks asks of a
/// crate, as `crate/feature`. All kernels have all of them: the support crate is a shared library,
/// of which there is one file, so that notebooks with other features would compile it anew in turn.
fn features(project: &Project, device: &Device) -> Result<Vec<String>> {
    let mut features: BTreeSet<String> =
        device.feature.iter().map(|feature| format!("{SUPPORT}/{feature}")).collect();
    for path in project.notebook_files()? {
        // Whoever starts a notebook that cannot be read is told so.
        for (name, spec) in dependencies(&[path]).unwrap_or_default().into_iter().flatten() {
            let asked = spec.get("features").and_then(|it| it.as_array()).cloned();
            let asked = asked.unwrap_or_default();
            features.extend(asked.iter().filter_map(|it| Some(format!("{name}/{}", it.as_str()?))));
        }
    }
    Ok(features.into_iter().collect())
}

/// A part of set-up: its name and the function that runs it.
type Part<'a> = (&'static str, &'a (dyn Fn() -> Result<()> + Sync));

/// Runs independent parts in parallel and returns how long each took. If a part fails, the others
/// are still finished before the first error is returned.
fn run_in_parallel<const N: usize>(parts: [Part; N]) -> Result<[(&'static str, Duration); N]> {
    let results = thread::scope(|scope| {
        let running = parts.map(|(name, run)| {
            scope.spawn(move || {
                let start = Instant::now();
                run().map(|()| (name, start.elapsed()))
            })
        });
        running.map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("set-up panicked"))))
    });
    let mut times = [("", Duration::ZERO); N];
    for (time, result) in times.iter_mut().zip(results) {
        *time = result?;
    }
    Ok(times)
}

/// Formats a duration as minutes and seconds, such as `1:05`.
pub fn minutes(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().round() as u64;
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

/// Installs the standard library's source, which evcxr uses to infer the types of variables. Not
/// having it is no error.
fn add_rust_src(project: &Project) -> Result<()> {
    let sysroot = output(command("rustc").args(["--print", "sysroot"]))?;
    if Path::new(&sysroot).join("lib/rustlib/src/rust/library").is_dir() {
        return Ok(());
    }
    let unavailable = project.tools().join("rust-src-unavailable");
    if fs::read_to_string(&unavailable).is_ok_and(|tried| tried == sysroot) {
        return Ok(());
    }
    println!("Adding rust-src to the Rust toolchain");
    if let Err(error) = output(command("rustup").args(["component", "add", "rust-src"])) {
        println!(
            "Going on without rust-src: some variables in cells need explicit types ({error:#})"
        );
        fs::write(unavailable, sysroot)?;
    }
    Ok(())
}

/// The kernel program, which is built if it is missing.
///
/// # Errors
/// If it cannot be built.
pub(crate) fn kernel_program() -> Result<PathBuf> {
    if evcxr::installed()?.is_none() {
        println!("Building the kernel evcxr_jupyter {} (once per user)", evcxr::VERSION);
    }
    let spinner = Spinner::new("");
    evcxr::find_or_build(&spinner.messages())
}

/// Installs the kernel and the kernelspec that the notebooks use.
fn install_kernel(project: &Project, pool: &Pool, build: &Build, device: &Device) -> Result<()> {
    let evcxr = kernel_program()?;
    pool.configure(&Settings {
        evcxr,
        build: build.clone(),
        path: vec![project.venv().join("bin")],
        libraries: device.libraries.clone(),
    })?;
    kernel::install(pool, &spec(folder_of(&project.kernelspec())?, "Rust"))
}

fn folder_of(file: &Path) -> Result<PathBuf> {
    Ok(file.parent().context("the file has no parent folder")?.to_owned())
}

fn spec(folder: PathBuf, title: &str) -> Kernelspec {
    let environment = PERFORMANCE_VARIABLES.into_iter().chain(PYTHON_VARIABLES);
    Kernelspec {
        folder,
        display_name: title.to_owned(),
        environment: environment.map(|(name, value)| (name.into(), value.into())).collect(),
    }
}

/// Registers the kernel for the user's own Jupyter and VS Code. Returns its name.
///
/// # Errors
/// If the user's folder is not known or cannot be written.
pub fn register(project: &Project) -> Result<&'static str> {
    let (name, title) = USER_KERNEL;
    kernel::install(&project.pool(), &spec(user_kernelspec()?, title))?;
    Ok(name)
}

/// The folder in which the kernel is registered for the user.
///
/// # Errors
/// If the user's folder is not known.
pub fn user_kernelspec() -> Result<PathBuf> {
    let data = kernel::user_data().context("no home folder: set HOME")?;
    Ok(data.join("kernels").join(USER_KERNEL.0))
}

/// How to use the kernel in the project's JupyterLab and elsewhere.
pub fn instructions(project: &Project) -> String {
    let (name, title) = USER_KERNEL;
    let registered = user_kernelspec().is_ok_and(|folder| folder.exists());
    let kernel = if registered {
        format!("the kernel is registered as `{name}`")
    } else {
        "run `cargo xtask setup --user` first, to register the kernel".to_owned()
    };
    format!(
        "\nThe notebooks run in `cargo xtask lab`. Elsewhere, {kernel}:\n\
         VS Code with the Jupyter extension: open a notebook, `Select Kernel`, `Jupyter Kernel…`, \
         `{title}`.\n\
         Your own JupyterLab: start it in {} and choose `{title}` from the `Kernel` menu.\n\
         `cargo xtask clean` removes all of it.",
        project.notebooks().display()
    )
}

/// All folders that set-up creates: the project's, the kernel program and the user's kernelspec.
///
/// # Errors
/// If the user's folders are not known.
pub fn created_folders(project: &Project) -> Result<Vec<PathBuf>> {
    let mut folders = vec![project.tools(), evcxr::own_root()?];
    // Leave a kernelspec that another checkout has registered.
    let spec = user_kernelspec()?;
    let text = fs::read_to_string(spec.join("kernel.json")).unwrap_or_default();
    if text.contains(&*project.tools().to_string_lossy()) {
        folders.push(spec);
    }
    Ok(folders)
}

/// The project's notebooks, without those that cannot be used: a line has the reason, and a bad
/// file keeps nobody from the others.
///
/// # Errors
/// If the folder cannot be read.
pub fn usable_notebooks(project: &Project) -> Result<Vec<PathBuf>> {
    let mut notebooks = project.notebook_files()?;
    notebooks.retain(|path| {
        let read = dependencies(slice::from_ref(path));
        if let Err(error) = &read {
            println!("Going on without a notebook: {error:#}");
        }
        read.is_ok()
    });
    Ok(notebooks)
}

/// Compiles all dependencies of the notebooks, also those that differ only in their features.
fn warm(pool: &Pool, dependencies: &[Dependencies], build: &Build) -> Result<()> {
    let spinner = Spinner::new("");
    for of_notebook in dependencies {
        template::warm(pool, of_notebook, build, &spinner.messages())?;
    }
    Ok(())
}

/// The dependencies in the `:dep` lines of each notebook, equal ones once.
fn dependencies(notebooks: &[PathBuf]) -> Result<Vec<Dependencies>> {
    let mut all = Vec::new();
    for path in notebooks {
        let mut dependencies = Dependencies::new();
        let folder = path.parent().context("the notebook has no parent folder")?;
        for cell in Notebook::read(path)?.code_cells() {
            for line in cell.source.lines().filter_map(|line| line.strip_prefix(":dep ")) {
                dependencies.extend([parse_dependency(line, folder)
                    .with_context(|| format!("in {}", path.display()))?]);
            }
        }
        if !all.contains(&dependencies) {
            all.push(dependencies);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parts_finish_before_an_error_is_returned() {
        let last = std::sync::atomic::AtomicBool::new(false);
        let done = || {
            last.store(true, std::sync::atomic::Ordering::Relaxed);
            Ok(())
        };
        let error = run_in_parallel([("one", &|| Err(anyhow!("no disk"))), ("two", &done)]);
        assert_eq!(error.unwrap_err().to_string(), "no disk");
        assert!(last.into_inner());
    }

    #[test]
    fn the_profile_sets_every_option_of_the_default_one() {
        let keys = |text: &str| -> Vec<String> {
            let table: toml::Table = text.parse().unwrap();
            let profile = table["profile"]["dev"].as_table().unwrap();
            let plain = profile.iter().filter(|(_, value)| !value.is_table());
            plain.map(|(key, _)| key.clone()).collect()
        };
        assert_eq!(keys(CARGO_CONFIG), keys(warm_evcxr::pool::CARGO_CONFIG));
    }

    #[test]
    fn bad_notebooks_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let project = Project::at(folder.path());
        let good = r#"{"cells": [{"cell_type": "code", "source": ":dep rand"}]}"#;
        let bad_dep = good.replace("rand", "mine = { path = 'gone' }");
        for (name, text) in [
            ("good", good),
            ("marked", &format!("\u{feff}{good}")),
            ("half", &good[..30]),
            ("empty", ""),
            ("list", "[1]"),
            ("bad_dep", &bad_dep),
        ] {
            files::write(&project.notebooks().join(name).with_extension("ipynb"), text).unwrap();
        }
        fs::write(project.notebooks().join("binary.ipynb"), [0xff, 0xfe]).unwrap();
        let found = usable_notebooks(&project).unwrap();
        let expected = ["good.ipynb", "marked.ipynb"].map(|it| project.notebooks().join(it));
        assert_eq!(found, expected);
    }

    #[test]
    fn all_kernels_have_the_features_that_a_notebook_asks_for() {
        let folder = tempfile::tempdir().unwrap();
        let project = Project::at(folder.path());
        for (name, dep) in [
            ("plain", "rand"),
            ("more", "rand = { version = '1', features = ['serde', 'log'] }"),
            ("bad", "mine = { path = 'gone', features = ['no'] }"),
        ] {
            let text = format!(r#"{{"cells": [{{"cell_type": "code", "source": ":dep {dep}"}}]}}"#);
            files::write(&project.notebooks().join(name).with_extension("ipynb"), &text).unwrap();
        }
        let device = Device { feature: Some("cuda"), ..Device::default() };
        let expected = ["mnist-notebook-support/cuda", "rand/log", "rand/serde"];
        assert_eq!(features(&project, &device).unwrap(), expected);
    }

    #[test]
    fn durations_are_minutes_and_seconds() {
        assert_eq!(minutes(Duration::from_millis(61_400)), "1:01");
        assert_eq!(minutes(Duration::from_millis(59_600)), "1:00");
    }
}
