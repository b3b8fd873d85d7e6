//! `cargo xtask`: sets up, runs, opens and tests the notebooks.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::slice;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};

use warm_evcxr::files;
use warm_evcxr::kernel::Call;
use xtask::bench;
use xtask::browser;
use xtask::check::{self, Failure};
use xtask::cuda;
use xtask::execute::{Screen, execute};
use xtask::faults;
use xtask::kernel::Kernel;
use xtask::lock;
use xtask::notebook::{self, CodeCell, Notebook, joined};
use xtask::println;
use xtask::process::run;
use xtask::project::Project;
use xtask::script::{self, Scripts};
use xtask::setup::{self, minutes, set_up};
use xtask::speed::compare;
use xtask::tidy;

/// The walkthrough, which `run` executes and `lab` opens.
const WALKTHROUGH: &str = "annotated_mnist.ipynb";
/// The notebook with the panel to draw on.
const DRAWING: &str = "take_it_away.ipynb";
/// What nbconvert's page lacks: source code shown by a cell in the font of code.
const PAGE_STYLE: &str = "<style>
.jp-OutputArea-output .highlight pre { font-family: var(--jp-code-font-family); font-size: var(--jp-code-font-size); }
</style>
</head>";
/// How long one cell may run in a test: the first one may have to compile all dependencies.
const CELL_LIMIT: Duration = Duration::from_secs(30 * 60);

/// Tells a notebook that trains for long to train less: tests want to know that it works, not how well.
const SHORT: &[(&str, &str)] = &[("MNIST_NOTEBOOK_SHORT", "1")];

/// Sets up, runs, opens, tests and measures the notebooks.
#[derive(Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
enum Arguments {
    /// Execute the walkthrough, or another notebook, in full and leave it, executed and as a page, under
    /// target/notebooks
    Run {
        /// The notebook; if none is named, notebooks/annotated_mnist.ipynb
        notebook: Option<PathBuf>,
    },
    /// Make all that the notebooks need, and say how to use it elsewhere
    Setup {
        /// Register the kernel for your own Jupyter and VS Code, too
        #[arg(long)]
        user: bool,
    },
    /// Take away all that the other commands have made, but for target
    Clean,
    /// Open the notebooks in JupyterLab
    Lab {
        /// What else JupyterLab is told, such as --no-browser --port 8889 --ip 0.0.0.0
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run all tests: `cargo test` on the workspace, the notebooks' cells compiled as programs, then every notebook
    /// executed, then the walkthrough in a browser
    Test,
    /// Run only the tests that inject faults, and count what those cost
    Faults {
        /// A hundred of a kind instead of ten, and 20,000 changed files instead of 300: takes minutes
        #[arg(long)]
        long: bool,
    },
    /// Measure training beside JAX and PyTorch, or what `bench` names, and leave tables under target
    #[command(args_conflicts_with_subcommands = true)]
    Bench {
        /// Follow memory through all ten epochs, not two
        #[arg(long)]
        full: bool,
        #[command(subcommand)]
        what: Option<Bench>,
    },
    /// Turn the cells of a notebook into a Rust program under target/script and build it
    Script {
        /// The notebook
        notebook: PathBuf,
    },
    /// Pin the Python packages anew, for every supported Python; what is pinned stays unless it no
    /// longer fits
    Lock {
        /// Take the newest versions
        #[arg(long)]
        upgrade: bool,
    },
    /// Build with the feature `cuda`, without a GPU, and bundle what runs on a machine that has one
    CudaBuild,
    #[command(flatten)]
    Call(Call),
}

#[derive(Subcommand)]
enum Bench {
    /// How long a reader waits for starts and cells
    Notebook,
}

fn main() -> ExitCode {
    let result = match Arguments::parse() {
        Arguments::Run { notebook } => run_notebook(&Project::new(), notebook),
        Arguments::Setup { user } => set_up_alone(&Project::new(), user),
        Arguments::Clean => clean(&Project::new()),
        Arguments::Lab { arguments } => lab(&Project::new(), arguments),
        Arguments::Test => test(&Project::new()),
        Arguments::Faults { long } => inject_faults(&Project::new(), long),
        Arguments::Bench { full, what: None } => compare(&Project::new(), full),
        Arguments::Bench { what: Some(Bench::Notebook), .. } => bench_notebook(&Project::new()),
        Arguments::Script { notebook } => script(&Project::new(), notebook),
        Arguments::Lock { upgrade } => lock::renew(&Project::new(), upgrade),
        Arguments::CudaBuild => cuda_build(&Project::new()),
        Arguments::Call(call) => warm_evcxr::kernel::run(&call),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where nobody can read it, the exit code has to do.
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_notebook(project: &Project, notebook: Option<PathBuf>) -> Result<()> {
    let start = Instant::now();
    let source = notebook.unwrap_or_else(|| project.notebooks().join(WALKTHROUGH));
    let shown = Notebook::read_rust(&source)?; // before minutes of setting up
    set_up(project, slice::from_ref(&source))?;
    let executed = execute_file(project, &source, &[], None)?;
    let page = page(project, &executed)?;
    println!("\nThe executed notebook: {}", executed.display());
    println!("The same as a page:    {}", page.display());
    let executed = Notebook::read(&executed)?;
    for cell in tidy::differences(&shown, &executed) {
        println!("Not the text that the notebook shows: {cell}");
    }
    if let Some(line) = last_accuracy(&executed.code_cells()) {
        println!("{line}");
    }
    println!("In all: {} minutes", minutes(start.elapsed()));
    Ok(())
}

fn lab(project: &Project, arguments: Vec<OsString>) -> Result<()> {
    set_up(project, &project.notebook_files()?)?;
    browser::trust(project, &project.notebook_files()?)?;
    let mut lab = project.jupyter();
    lab.args(["-m", "jupyterlab"]).args(lab_arguments(arguments));
    if is_root(project)? {
        lab.arg("--allow-root");
    }
    run(lab.current_dir(project.notebooks()))
}

fn set_up_alone(project: &Project, user: bool) -> Result<()> {
    set_up(project, &project.notebook_files()?)?;
    if user {
        let name = setup::register(project)?;
        println!("Registered the kernel `{name}` for your own Jupyter and VS Code.");
    }
    println!("{}", setup::elsewhere(project));
    Ok(())
}

fn clean(project: &Project) -> Result<()> {
    for folder in setup::made(project)? {
        if folder.exists() {
            files::remove(&folder)
                .with_context(|| format!("cannot remove {}", folder.display()))?;
            println!("Removed {}", folder.display());
        }
    }
    println!("The build folder `target` is left: `cargo clean` removes it.");
    Ok(())
}

/// What JupyterLab is told: the user's own arguments, and ours where they leave it open.
fn lab_arguments(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let names_address = |argument: &OsString| {
        let argument = argument.to_string_lossy();
        let name = argument.split('=').next().unwrap_or_default();
        ["--ip", "--ServerApp.ip", "--LabApp.ip"].contains(&name)
    };
    if !arguments.iter().any(names_address) {
        arguments.push("--ServerApp.ip=127.0.0.1".into());
    }
    arguments.push(WALKTHROUGH.into()); // of several notebooks JupyterLab opens the first
    arguments
}

fn test(project: &Project) -> Result<()> {
    set_up(project, &project.notebook_files()?)?;
    let faults = faults::test(project, &["--workspace"], false)?;
    println!("\n{faults}");
    script::check_all(project)?;
    let mut failed = Vec::new();
    for path in project.notebook_files()? {
        let executed = execute_file(project, &path, SHORT, Some(CELL_LIMIT));
        if let Err(error) = executed.and_then(|executed| compare_accuracy(&path, &executed)) {
            println!("{error:#}");
            failed.push(name(&path));
        }
    }
    ensure!(failed.is_empty(), "notebooks failed: {}", failed.join(", "));
    println!("All notebooks were executed without a failure.");
    browser::test(project, &project.notebooks().join(WALKTHROUGH))?;
    let drawing = project.output().join(DRAWING);
    browser::test_panel(project, &drawing, &page(project, &drawing)?)
}

fn inject_faults(project: &Project, long: bool) -> Result<()> {
    let packages = ["-p", "mnist-notebook-support", "-p", "tests"];
    let tests = ["--test", "faults", "--test", "fuzz", "--test", "checkpoint", "--test", "dataset"];
    let faults = faults::test(project, &[&packages[..], &tests[..]].concat(), long)?;
    println!("\n{faults}");
    Ok(())
}

fn bench_notebook(project: &Project) -> Result<()> {
    set_up(project, &project.notebook_files()?)?;
    let table = bench::measure(project, &project.notebooks().join(WALKTHROUGH))?;
    let path = project.output().join("bench.md");
    files::write(&path, &table)?;
    println!("\n{table}\nThis table: {}", path.display());
    Ok(())
}

fn script(project: &Project, notebook: PathBuf) -> Result<()> {
    let scripts = Scripts::write(project, &[notebook])?;
    println!("The program: {}", scripts.source(0).display());
    for program in scripts.build()? {
        println!("Built:       {} (start it in the notebook's folder)", program.display());
    }
    Ok(())
}

fn cuda_build(project: &Project) -> Result<()> {
    cuda::build(project, &project.notebooks().join(WALKTHROUGH))
}

/// Executes a notebook and writes what came of it, failed or not, to the output folder.
fn execute_file(
    project: &Project,
    path: &Path,
    environment: &[(&str, &str)],
    limit: Option<Duration>,
) -> Result<PathBuf> {
    println!("\nExecuting {}", name(path));
    let source = Notebook::read_rust(path)?;
    let folder = notebook::folder(path)?;
    let mut kernel = Kernel::start(project, &folder, environment, Box::new(|_| {}))?;
    let executed = execute(&source, &mut kernel, limit, &mut Screen::new())?;
    let target = project.output().join(name(path));
    executed.write(&target)?;
    report(path, &check::failures(&source, &executed))?;
    Ok(target)
}

/// Fails if a notebook has trained to a lower accuracy than it shows.
fn compare_accuracy(path: &Path, executed: &Path) -> Result<()> {
    report(path, &check::less_accurate(&Notebook::read(path)?, &Notebook::read(executed)?))
}

/// Fails with the first of the failures of a notebook, if there is one.
fn report(path: &Path, failures: &[Failure]) -> Result<()> {
    let Some(first) = failures.first() else {
        return Ok(());
    };
    let more = match failures.len() - 1 {
        0 => String::new(),
        more => format!("(and {more} more cells failed or were not executed)"),
    };
    bail!("{} failed in {first}{more}", name(path));
}

/// Turns an executed notebook into a page beside it.
fn page(project: &Project, notebook: &Path) -> Result<PathBuf> {
    let mut convert = project.jupyter();
    convert.args(["-m", "nbconvert", "--to", "html", "--log-level", "WARN"]).arg(notebook);
    run(&mut convert).context("cannot make a page of the notebook")?;
    let page = notebook.with_extension("html");
    let html = fs::read_to_string(&page)?.replacen("</head>", PAGE_STYLE, 1);
    fs::write(&page, html)?;
    Ok(page)
}

/// The line about the test set after the walkthrough's last epoch.
fn last_accuracy(cells: &[CodeCell]) -> Option<String> {
    let epoch = |line: &str| -> Option<u32> {
        line.strip_prefix("Testing - epoch: ")?.split(',').next()?.parse().ok()
    };
    let printed = cells.iter().flat_map(|cell| &cell.outputs).map(|output| joined(&output["text"]));
    let lines: Vec<String> =
        printed.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    let numbered = lines.into_iter().filter_map(|line| Some((epoch(&line)?, line)));
    numbered.max_by_key(|(epoch, _)| *epoch).map(|(_, line)| line)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Whether root runs this: Jupyter wants to be told so. Set-up made the folder `.tools`, so it is this user's.
fn is_root(project: &Project) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let lock = project.tools().join("setup.lock");
    let about = fs::metadata(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    Ok(about.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab(arguments: &[&str]) -> Vec<OsString> {
        match Arguments::try_parse_from([&["xtask", "lab"], arguments].concat()).unwrap() {
            Arguments::Lab { arguments } => lab_arguments(arguments),
            _ => unreachable!("`lab` was asked for"),
        }
    }

    #[test]
    fn jupyter_lab_is_told_what_the_user_adds() {
        assert_eq!(lab(&[]), ["--ServerApp.ip=127.0.0.1", WALKTHROUGH]);
        assert_eq!(
            lab(&["--no-browser", "--port", "8889", "--ip", "0.0.0.0"]),
            ["--no-browser", "--port", "8889", "--ip", "0.0.0.0", WALKTHROUGH]
        );
        for own in ["--ip=::", "--ServerApp.ip=0.0.0.0"] {
            assert_eq!(lab(&[own]), [own, WALKTHROUGH]);
        }
        assert_eq!(lab(&["look_inside.ipynb"])[0], "look_inside.ipynb");
    }
}
