//! Makes everything that the notebooks need, once; what is in place already is left alone.
//!
//! Nothing is installed outside the project's `.tools` and Cargo's home, apart from rustup's
//! component `rust-src`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use warm_evcxr::kernel::{self, Kernelspec};
use warm_evcxr::pool::{Pool, Settings};
use warm_evcxr::template::{self, Dependencies, parse_dependency};
use warm_evcxr::{evcxr, files};

use crate::notebook::Notebook;
use crate::process::{command, output};
use crate::project::Project;
use crate::jupyter;
use crate::ui::Spinner;

/// How the notebooks' kernel compiles.
const CARGO_CONFIG: &str = include_str!("kernel-profile.toml");

/// Variables with which the crate computes faster, and which have to be set before the program
/// starts.
pub(crate) const FASTER: [(&str, &str); 3] = [
    // candle adds up gradients on threads of its own, which spin beside Rayon's while they wait.
    ("CANDLE_NUM_THREADS", "1"),
    // What a training step frees the next one needs again: glibc shall keep it, since fetching
    // megabytes of fresh pages each time costs nearly as much as computing on them.
    ("MALLOC_MMAP_THRESHOLD_", "33554432"),
    ("MALLOC_TRIM_THRESHOLD_", "1073741824"),
];
/// The same for Pythons that cells start: the project's own, apart from what is beside the
/// notebook.
const PYTHON: [(&str, &str); 4] =
    [("PYTHONNOUSERSITE", "1"), ("PYTHONPATH", ""), ("PYTHONSAFEPATH", "1"), ("PYTHONUTF8", "1")];

/// The name and the title under which the kernel is registered for the user, beside one of the
/// user's own.
const USER_KERNEL: (&str, &str) = ("mnist-notebook", "Rust (MNIST notebooks)");

/// Makes what these notebooks need, and prints how long it took if it took long.
///
/// # Errors
/// When something needed is missing and cannot be made; the message says what to install.
pub fn set_up(project: &Project, notebooks: &[PathBuf]) -> Result<()> {
    let start = Instant::now();
    let lock = project.tools().join("setup.lock");
    files::make_folder(&project.tools().join("jupyter"))?;
    let lock = File::create(&lock).with_context(|| format!("cannot write {}", lock.display()))?;
    if lock.try_lock().is_err() {
        println!("Waiting for another `cargo xtask` to finish setting up");
        lock.lock()?;
    }
    project.claim_tools()?;
    let dependencies = dependencies(notebooks)?;
    rust_src(project)?;
    let pool = project.pool();
    pool.furnish(CARGO_CONFIG)?;
    let parts = side_by_side([
        ("JupyterLab", &|| jupyter::set_up(project)),
        ("the kernel", &|| kernelspec(project, &pool)),
        ("the notebooks' dependencies", &|| warm(project, &pool, &dependencies)),
    ])?;
    if start.elapsed() > Duration::from_secs(20) {
        println!("Set up in {}, side by side:", minutes(start.elapsed()));
        for (name, took) in parts {
            println!("        {:>6}  {name}", minutes(took));
        }
    }
    Ok(())
}

/// A part of set-up: its name, and what makes it.
type Part<'a> = (&'static str, &'a (dyn Fn() -> Result<()> + Sync));

/// Makes parts that do not need each other at the same time, and returns how long each took. All
/// are brought to an end before the first error is returned, so that nothing is left half done.
fn side_by_side<const N: usize>(parts: [Part; N]) -> Result<[(&'static str, Duration); N]> {
    let results = thread::scope(|scope| {
        let running = parts.map(|(name, make)| {
            scope.spawn(move || {
                let start = Instant::now();
                make().map(|()| (name, start.elapsed()))
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

/// A duration as minutes and seconds.
pub fn minutes(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().round() as u64;
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

/// The standard library's source, by which evcxr infers the types of variables. Does without it
/// where it cannot be had.
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

/// The kernel, and the kernelspec that the notebooks name.
fn kernelspec(project: &Project, pool: &Pool) -> Result<()> {
    if evcxr::installed()?.is_none() {
        println!("Building the kernel evcxr_jupyter {}, once for this user", evcxr::VERSION);
    }
    let spinner = Spinner::new("");
    let evcxr = evcxr::find_or_build(&spinner.messages())?;
    let lock = Some(project.root().join("Cargo.lock"));
    pool.configure(&Settings { evcxr, lock, path: vec![project.venv().join("bin")] })?;
    kernel::install(pool, &spec(folder_of(&project.kernelspec())?, "Rust"))
}

fn folder_of(file: &Path) -> Result<PathBuf> {
    Ok(file.parent().context("a file lies in a folder")?.to_owned())
}

fn spec(folder: PathBuf, title: &str) -> Kernelspec {
    let environment = FASTER.into_iter().chain(PYTHON);
    Kernelspec {
        folder,
        display_name: title.to_owned(),
        environment: environment.map(|(name, value)| (name.into(), value.into())).collect(),
    }
}

/// Registers the kernel for the user's own Jupyter and VS Code, under a name that leaves a kernel
/// of the user's own alone. Returns the name.
///
/// # Errors
/// When the user's folder is not known or cannot be written.
pub fn register(project: &Project) -> Result<&'static str> {
    let (name, title) = USER_KERNEL;
    kernel::install(&project.pool(), &spec(user_kernelspec()?, title))?;
    Ok(name)
}

/// Where the kernel is registered for the user.
///
/// # Errors
/// When the user's folder is not known.
pub fn user_kernelspec() -> Result<PathBuf> {
    let data = kernel::user_data().context("no home folder: set HOME")?;
    Ok(data.join("kernels").join(USER_KERNEL.0))
}

/// How the kernel is used outside the project's own JupyterLab.
pub fn elsewhere(project: &Project) -> String {
    let (name, title) = USER_KERNEL;
    let registered = user_kernelspec().is_ok_and(|folder| folder.exists());
    let kernel = if registered {
        format!("the kernel is registered as `{name}`")
    } else {
        "first `cargo xtask setup --user`, which registers the kernel for you".to_owned()
    };
    format!(
        "\nThe notebooks run in `cargo xtask lab`. Elsewhere, {kernel}:\n\
         VS Code, with its extension Jupyter: open a notebook, `Select Kernel`, `Jupyter Kernel…`, \
         `{title}`.\n\
         A JupyterLab of your own: start it in {}, and choose `{title}` from the menu `Kernel`.\n\
         `cargo xtask clean` takes all of it away.",
        project.notebooks().display()
    )
}

/// All folders that set-up makes: the project's, the user's kernelspec, and the kernel's program.
///
/// # Errors
/// When the user's folders are not known.
pub fn made(project: &Project) -> Result<Vec<PathBuf>> {
    let mut folders = vec![project.tools(), evcxr::own_root()?];
    // One that another checkout has registered is its own.
    let spec = user_kernelspec()?;
    let text = fs::read_to_string(spec.join("kernel.json")).unwrap_or_default();
    if text.contains(&*project.tools().to_string_lossy()) {
        folders.push(spec);
    }
    Ok(folders)
}

/// The build folder with all dependencies of the notebooks compiled.
fn warm(project: &Project, pool: &Pool, dependencies: &Dependencies) -> Result<()> {
    let spinner = Spinner::new("");
    let lock = project.root().join("Cargo.lock");
    template::warm(pool, dependencies, Some(&lock), &spinner.messages()).map(drop)
}

/// What the `:dep` lines of notebooks ask for.
fn dependencies(notebooks: &[PathBuf]) -> Result<Dependencies> {
    let mut dependencies = Dependencies::new();
    for path in notebooks {
        let folder = path.parent().context("a notebook lies in a folder")?;
        for cell in Notebook::read(path)?.code_cells() {
            for wanted in cell.source.lines().filter_map(|line| line.strip_prefix(":dep ")) {
                dependencies.extend([parse_dependency(wanted, folder)
                    .with_context(|| format!("in {}", path.display()))?]);
            }
        }
    }
    Ok(dependencies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parts_end_before_an_error_is_told() {
        let last = std::sync::atomic::AtomicBool::new(false);
        let done = || {
            last.store(true, std::sync::atomic::Ordering::Relaxed);
            Ok(())
        };
        let error = side_by_side([("one", &|| Err(anyhow!("no disk"))), ("two", &done)]);
        assert_eq!(error.unwrap_err().to_string(), "no disk");
        assert!(last.into_inner());
    }

    #[test]
    fn the_profile_says_everything_that_the_general_one_says() {
        let keys = |text: &str| -> Vec<String> {
            let table: toml::Table = text.parse().unwrap();
            let profile = table["profile"]["dev"].as_table().unwrap();
            let plain = profile.iter().filter(|(_, value)| !value.is_table());
            plain.map(|(key, _)| key.clone()).collect()
        };
        assert_eq!(keys(CARGO_CONFIG), keys(warm_evcxr::pool::CARGO_CONFIG));
    }

    #[test]
    fn durations_read_as_clocks_do() {
        assert_eq!(minutes(Duration::from_millis(61_400)), "1:01");
        assert_eq!(minutes(Duration::from_millis(59_600)), "1:00");
    }
}
