//! `cargo xtask`: sets up, runs, opens, tests and measures the notebooks.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::slice;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};

use warm_evcxr::files;
use warm_evcxr::kernel::Call;
use xtask::bench;
use xtask::browser;
use xtask::check::{self, Failure};
use xtask::cuda::{self, carried};
use xtask::device::{Allowed, Device};
use xtask::emulate;
use xtask::execute::{SHORT, Screen, execute};
use xtask::faults;
use xtask::jupyter;
use xtask::kernel::Kernel;
use xtask::lock;
use xtask::notebook::{self, CodeCell, Notebook, joined};
use xtask::page;
use xtask::println;
use xtask::process::exec;
use xtask::project::Project;
use xtask::script::{self, Scripts};
use xtask::setup::{self, minutes, set_up, usable_notebooks};
use xtask::site;
use xtask::speed::compare;
use xtask::tidy;

/// The notebook that `run` executes and `lab` opens by default.
const WALKTHROUGH: &str = "annotated_mnist.ipynb";
/// The notebook with the draw-a-digit panel.
const DRAWING: &str = "take_it_away.ipynb";
/// How long a cell may run in a test: the first one may have to compile all dependencies.
const CELL_LIMIT: Duration = Duration::from_secs(30 * 60);

/// Sets up, runs, opens, tests and measures the notebooks.
#[derive(Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
enum Arguments {
    /// Execute a notebook and save it under target/notebooks, also as an HTML page
    Run {
        /// The notebook [default: notebooks/annotated_mnist.ipynb]
        notebook: Option<PathBuf>,
        #[command(flatten)]
        on: On,
    },
    /// Set up everything that the notebooks need, and show how to use it elsewhere
    Setup {
        /// Also register the kernel for your own Jupyter and VS Code
        #[arg(long)]
        user: bool,
        #[command(flatten)]
        on: On,
    },
    /// Remove everything that the other commands have set up, except target
    Clean,
    /// Open the notebooks in JupyterLab
    Lab {
        #[command(flatten)]
        on: On,
        /// Arguments for JupyterLab (after our own), such as --no-browser --port 8889 --ip 0.0.0.0
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run all tests: the workspace's tests, the notebooks' cells compiled as programs, every
    /// notebook executed, and the notebooks in a browser
    Test {
        #[command(flatten)]
        on: On,
    },
    /// Run only the tests that inject faults, and count the faults that did harm
    Faults {
        /// Inject 100 faults of each kind instead of 10, and change 20,000 files instead of 300
        /// (takes minutes)
        #[arg(long)]
        long: bool,
    },
    /// Run the tests of cpu-kernels on emulated processors with AVX2, without it, and with NEON
    Emulate,
    /// Compare training with JAX and PyTorch, or run the named benchmark; saves tables under target
    #[command(args_conflicts_with_subcommands = true)]
    Bench {
        /// Measure memory over all ten epochs instead of two
        #[arg(long)]
        full: bool,
        #[command(subcommand)]
        what: Option<Bench>,
    },
    /// Convert a notebook into a Rust program under target/script and build it
    Script {
        /// The notebook
        notebook: PathBuf,
    },
    /// Make the website of the project in target/site
    Site,
    /// Renew the pins of Python packages for every supported Python; keeps versions that still fit
    Lock {
        /// Use the newest versions
        #[arg(long)]
        upgrade: bool,
    },
    /// Build with the feature `cuda` and make a bundle for a machine with a GPU; needs no GPU
    CudaBuild {
        /// Bundle the walkthrough's notebook with Rust and all that executes it, instead of
        /// programs
        #[arg(long)]
        notebook: bool,
    },
    /// Set up a notebook in the folder that is bundled (called by `cuda-build --notebook`)
    #[command(hide = true)]
    SetUpCarried {
        /// The notebook
        notebook: PathBuf,
    },
    /// Execute the walkthrough as it was bundled (called by run-notebook.sh)
    #[command(hide = true)]
    RunCarried,
    #[command(flatten)]
    Call(Call),
}

/// The option of commands that compute.
#[derive(Args)]
struct On {
    /// Where notebooks and tests compute
    #[arg(long, value_enum, default_value = "auto")]
    device: Allowed,
}

#[derive(Subcommand)]
enum Bench {
    /// Measure how long a reader waits for starts and cells
    Notebook,
}

fn main() -> ExitCode {
    let result = match Arguments::parse() {
        Arguments::Run { notebook, on } => run_notebook(&Project::new(), notebook, on.device),
        Arguments::Setup { user, on } => set_up_only(&Project::new(), user, on.device),
        Arguments::Clean => clean(&Project::new()),
        Arguments::Lab { on, arguments } => lab(&Project::new(), arguments, on.device),
        Arguments::Test { on } => test(&Project::new(), on.device),
        Arguments::Faults { long } => inject_faults(&Project::new(), long),
        Arguments::Emulate => emulate::test(&Project::new()),
        Arguments::Bench { full, what: None } => compare(&Project::new(), full),
        Arguments::Bench { what: Some(Bench::Notebook), .. } => bench_notebook(&Project::new()),
        Arguments::Script { notebook } => script(&Project::new(), notebook),
        Arguments::Site => build_site(&Project::new()),
        Arguments::Lock { upgrade } => lock::renew(&Project::new(), upgrade),
        Arguments::CudaBuild { notebook } => cuda_build(&Project::new(), notebook),
        Arguments::SetUpCarried { notebook } => carried::set_up(&Project::new(), notebook),
        Arguments::RunCarried => run_carried(&Project::new()),
        Arguments::Call(call) => warm_evcxr::kernel::run(&call),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If it cannot be written, the exit code has to do.
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_notebook(project: &Project, notebook: Option<PathBuf>, allowed: Allowed) -> Result<()> {
    let start = Instant::now();
    let source = notebook.unwrap_or_else(|| project.notebooks().join(WALKTHROUGH));
    Notebook::read_rust(&source)?; // fail before minutes of set-up
    set_up(project, slice::from_ref(&source), allowed)?;
    run_as_set_up(project, &source)?;
    println!("Total time: {} minutes", minutes(start.elapsed()));
    Ok(())
}

/// Executes a notebook, makes a page of it, and says where they are and what differs.
fn run_as_set_up(project: &Project, source: &Path) -> Result<Notebook> {
    let committed = Notebook::read_rust(source)?;
    let executed = execute_file(project, source, None, None)?;
    let page = page::convert(project, &executed)?;
    println!("\nExecuted notebook: {}", executed.display());
    println!("As a page:         {}", page.display());
    let executed = Notebook::read(&executed)?;
    for cell in tidy::differences(&committed, &executed) {
        println!("Output differs from the original notebook: {cell}");
    }
    if let Some(line) = last_accuracy(&executed.code_cells()) {
        println!("{line}");
    }
    Ok(executed)
}

fn lab(project: &Project, arguments: Vec<OsString>, allowed: Allowed) -> Result<()> {
    let notebooks = usable_notebooks(project)?;
    set_up(project, &notebooks, allowed)?;
    browser::trust(project, &notebooks)?;
    let mut lab = jupyter::lab(project);
    lab.args(lab_arguments(arguments));
    if is_root(project)? {
        lab.arg("--allow-root");
    }
    match exec(lab.current_dir(project.notebooks()))? {}
}

fn set_up_only(project: &Project, user: bool, allowed: Allowed) -> Result<()> {
    set_up(project, &usable_notebooks(project)?, allowed)?;
    if user {
        let name = setup::register(project)?;
        println!("Registered the kernel `{name}` for your own Jupyter and VS Code.");
    }
    println!("{}", setup::instructions(project));
    Ok(())
}

fn clean(project: &Project) -> Result<()> {
    for folder in setup::created_folders(project)?.into_iter().chain([carried::ROOT.into()]) {
        if folder.exists() {
            files::remove(&folder)
                .with_context(|| format!("cannot remove {}", folder.display()))?;
            println!("Removed {}", folder.display());
        }
    }
    println!("The build folder `target` is kept: `cargo clean` removes it.");
    Ok(())
}

/// JupyterLab's arguments: the user's, and our defaults where the user sets nothing.
fn lab_arguments(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let names_address = |argument: &OsString| {
        let argument = argument.to_string_lossy();
        let name = argument.split('=').next().unwrap_or_default();
        ["--ip", "--ServerApp.ip", "--LabApp.ip"].contains(&name)
    };
    if !arguments.iter().any(names_address) {
        arguments.push("--ServerApp.ip=127.0.0.1".into());
    }
    arguments.push(WALKTHROUGH.into()); // JupyterLab opens only the first notebook named
    arguments
}

fn test(project: &Project, allowed: Allowed) -> Result<()> {
    let device = set_up(project, &project.notebook_files()?, allowed)?;
    let faults = faults::test(project, &["--workspace"], &device, false)?;
    println!("\n{faults}");
    script::check_all(project)?;
    let mut failed = Vec::new();
    for path in project.notebook_files()? {
        let executed = execute_file(project, &path, Some(SHORT), Some(CELL_LIMIT));
        if let Err(error) = executed.and_then(|executed| compare_accuracy(&path, &executed)) {
            println!("{error:#}");
            failed.push(name(&path));
        }
    }
    ensure!(failed.is_empty(), "notebooks failed: {}", failed.join(", "));
    println!("All notebooks ran without failures.");
    println!("\nStarting `cargo xtask lab`");
    let mut lab = Command::new(std::env::current_exe()?);
    let device = if allowed == Allowed::Cpu { "cpu" } else { "auto" };
    jupyter::test_lab(lab.args(["lab", "--device", device, "--no-browser"]))?;
    browser::test(project, &project.notebooks().join(WALKTHROUGH))?;
    let drawing = project.output().join(DRAWING);
    browser::test_panel(project, &drawing, &page::convert(project, &drawing)?)?;
    if let Err(error) = site::add_targets() {
        println!("skipped the site: {error:#}");
        return Ok(());
    }
    let site = site::build(project)?;
    browser::test_training_page(project, &site)?;
    site::check(project, &site)
}

fn inject_faults(project: &Project, long: bool) -> Result<()> {
    let packages = ["-p", "mnist-notebook-support", "-p", "tests"];
    let tests = ["--test", "faults", "--test", "fuzz", "--test", "checkpoint", "--test", "dataset"];
    let faults =
        faults::test(project, &[&packages[..], &tests[..]].concat(), &Device::default(), long)?;
    println!("\n{faults}");
    Ok(())
}

fn bench_notebook(project: &Project) -> Result<()> {
    set_up(project, &usable_notebooks(project)?, Allowed::Auto)?;
    let table = bench::measure(project, &project.notebooks().join(WALKTHROUGH))?;
    let path = project.output().join("bench.md");
    files::write(&path, &table)?;
    println!("\n{table}\nSaved in {}", path.display());
    Ok(())
}

fn script(project: &Project, notebook: PathBuf) -> Result<()> {
    let scripts = Scripts::write(project, &[notebook])?;
    println!("Source: {}", scripts.source(0).display());
    for program in scripts.build()? {
        println!("Built:  {} (start it in the notebook's folder)", program.display());
    }
    Ok(())
}

fn build_site(project: &Project) -> Result<()> {
    site::add_targets()?;
    let site = site::build(project)?;
    site::document(project, &site)?;
    println!("\nThe site: {}", site.display());
    println!("To look at it, start a web server there and open http://localhost:8000:");
    println!("    python3 -m http.server --directory {} 8000", site.display());
    Ok(())
}

fn cuda_build(project: &Project, notebook: bool) -> Result<()> {
    let build = if notebook { carried::build } else { cuda::build };
    build(project, &project.notebooks().join(WALKTHROUGH))
}

fn run_carried(project: &Project) -> Result<()> {
    let executed = run_as_set_up(project, &project.notebooks().join(WALKTHROUGH))?;
    carried::ensure_gpu(&executed.code_cells())
}

/// Executes a notebook, with other parameters if there are any, and writes the result, even of a
/// failed run, to the output folder.
fn execute_file(
    project: &Project,
    path: &Path,
    parameters: Option<&[(&str, &str)]>,
    limit: Option<Duration>,
) -> Result<PathBuf> {
    println!("\nExecuting {}", name(path));
    let mut source = Notebook::read_rust(path)?;
    if let Some(values) = parameters {
        source.set_parameters(values).with_context(|| name(path))?;
    }
    let folder = notebook::folder(path)?;
    let mut kernel = Kernel::start(project, &folder, &[], Box::new(|_| {}))?;
    let executed = execute(&source, &mut kernel, limit, &mut Screen::new())?;
    let target = project.output().join(name(path));
    executed.write(&target)?;
    report(path, &check::failures(&source, &executed))?;
    Ok(target)
}

/// Fails if a notebook's accuracy is lower than committed.
fn compare_accuracy(path: &Path, executed: &Path) -> Result<()> {
    report(path, &check::less_accurate(&Notebook::read(path)?, &Notebook::read(executed)?))
}

/// Fails with the first of a notebook's failures, if there are any.
fn report(path: &Path, failures: &[Failure]) -> Result<()> {
    let Some(first) = failures.first() else {
        return Ok(());
    };
    let more = match failures.len() - 1 {
        0 => String::new(),
        1 => "(and 1 more cell failed or was not executed)".to_owned(),
        more => format!("(and {more} more cells failed or were not executed)"),
    };
    bail!("{} failed in {first}{more}", name(path));
}

/// The walkthrough's line about the test set after the last epoch.
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

/// Whether root runs this, which Jupyter must be told. Set-up has just created the lock file, so it
/// belongs to the current user.
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
            Arguments::Lab { arguments, .. } => lab_arguments(arguments),
            _ => unreachable!("the arguments start with `lab`"),
        }
    }

    #[test]
    fn lab_arguments_keep_those_of_the_user() {
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

    /// The commands of this program in a file, without those in which `…` stands for something.
    fn commands(text: &str) -> impl Iterator<Item = &str> {
        let starts = text.match_indices("cargo xtask ").map(|(at, _)| &text[at..]);
        let command = |it: &str| it.find(['`', '"', '\n', '\\', '#']).unwrap_or(it.len());
        starts.map(move |it| it[..command(it)].trim()).filter(|it| !it.contains('…'))
    }

    #[test]
    fn every_command_in_the_pages_is_one() {
        let root = Project::new().root().to_owned();
        let others = ["README.md", ".devcontainer/devcontainer.json", "binder/postBuild"];
        let docs = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
        let pages = docs.filter(|it| it.extension().is_some_and(|it| it == "md" || it == "ipynb"));
        for page in pages.chain(others.map(|name| root.join(name))) {
            let text = fs::read_to_string(&page).unwrap();
            for command in commands(&text) {
                let words = command.split_whitespace().skip(1); // without `cargo`
                let parsed = Arguments::try_parse_from(words);
                assert!(parsed.is_ok(), "{}: {command}: {:?}", page.display(), parsed.err());
            }
            let has_commands = commands(&text).next().is_some();
            let is_how_to = others.iter().any(|name| page.ends_with(name));
            assert!(has_commands || !is_how_to, "{} has no command", page.display());
        }
    }

    #[test]
    fn commands_that_compute_take_a_device() {
        let device = |arguments: &[&str]| {
            let arguments = [&["xtask"], arguments].concat();
            match Arguments::try_parse_from(arguments).unwrap() {
                Arguments::Run { on, .. }
                | Arguments::Setup { on, .. }
                | Arguments::Lab { on, .. }
                | Arguments::Test { on } => on.device,
                _ => unreachable!("only these four are parsed"),
            }
        };
        for command in ["run", "setup", "lab", "test"] {
            assert_eq!(device(&[command]), Allowed::Auto);
            assert_eq!(device(&[command, "--device", "cpu"]), Allowed::Cpu);
        }
        assert_eq!(device(&["lab", "--device", "cpu", "--no-browser"]), Allowed::Cpu);
        assert_eq!(lab(&["--device", "cpu", "--no-browser"])[0], "--no-browser");
    }
}
