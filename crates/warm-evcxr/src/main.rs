//! `warm-evcxr install`: installs a Rust kernel with a project's dependencies precompiled.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use warm_evcxr::kernel::{self, Call, Kernelspec};
use warm_evcxr::pool::{Build, CARGO_CONFIG, Pool, Settings};
use warm_evcxr::{evcxr, template};

/// Rust notebooks that start in seconds.
#[derive(Parser)]
#[command(name = "warm-evcxr", disable_help_subcommand = true)]
enum Arguments {
    /// Install a Jupyter kernel in which a project's library and dependencies are already compiled
    Install {
        /// The project's manifest; a Cargo.lock beside it sets the versions
        #[arg(long, default_value = "Cargo.toml")]
        manifest: PathBuf,
        /// The kernel's name in Jupyter
        #[arg(long, default_value = "rust")]
        name: String,
        /// Install the kernel into an environment, such as a Python venv [default: for the user]
        #[arg(long)]
        prefix: Option<PathBuf>,
        /// Where to keep build folders [default: in the user's cache]
        #[arg(long)]
        folder: Option<PathBuf>,
        /// A Cargo configuration file that sets how cells are compiled
        #[arg(long)]
        cargo_config: Option<PathBuf>,
        /// Set environment variables for cells
        #[arg(long, value_name = "NAME=VALUE")]
        env: Vec<String>,
    },
    #[command(flatten)]
    Call(Call),
}

fn main() -> ExitCode {
    let result = match Arguments::parse() {
        Arguments::Install { manifest, name, prefix, folder, cargo_config, env } => {
            let environment = env.iter().map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (name.to_owned(), value.to_owned())
            });
            install(&manifest, &name, prefix, folder, cargo_config, environment.collect())
        }
        Arguments::Call(call) => kernel::run(&call),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn install(
    manifest: &Path,
    name: &str,
    prefix: Option<PathBuf>,
    folder: Option<PathBuf>,
    cargo_config: Option<PathBuf>,
    environment: Vec<(String, String)>,
) -> Result<()> {
    let manifest = std::fs::canonicalize(manifest)
        .with_context(|| format!("cannot find {}", manifest.display()))?;
    let dependencies = template::dependencies_of(&manifest)?;
    let pool = Pool::new(match folder {
        Some(folder) => std::path::absolute(folder)?,
        None => cache()?.join(format!("{name}-{:016x}", hash(&manifest))),
    });
    let cargo_config = match cargo_config {
        Some(path) => std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?,
        None => CARGO_CONFIG.to_owned(),
    };
    let show = |line: &str| println!("        {line}");
    if evcxr::installed()?.is_none() {
        println!("Building the kernel evcxr_jupyter {} (once per user)", evcxr::VERSION);
    }
    let evcxr = evcxr::find_or_build(&show)?;
    let lock = Some(manifest.with_file_name("Cargo.lock")).filter(|lock| lock.is_file());
    pool.furnish(&cargo_config)?;
    let build = Build { lock, ..Build::default() };
    pool.configure(&Settings {
        evcxr,
        build: build.clone(),
        path: Vec::new(),
        libraries: Vec::new(),
    })?;
    println!("Compiling the dependencies of {}", manifest.display());
    template::warm(&pool, &dependencies, &build, &show)?;
    let data = match prefix {
        Some(prefix) => std::path::absolute(prefix)?.join("share/jupyter"),
        None => user_data()?,
    };
    let spec = Kernelspec {
        folder: data.join("kernels").join(name),
        display_name: "Rust".to_owned(),
        environment,
    };
    kernel::install(&pool, &spec)?;
    println!("Installed the kernel `{name}` in {}", spec.folder.display());
    let mut names: Vec<&str> = dependencies.keys().map(String::as_str).collect();
    names.sort_unstable();
    println!("Warm in its cells: {}", names.join(", "));
    Ok(())
}

fn hash(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}

/// The user's cache folder.
fn cache() -> Result<PathBuf> {
    let home = || std::env::home_dir().context("no home folder: set HOME, or use --folder");
    let folder = match std::env::var_os("XDG_CACHE_HOME") {
        Some(folder) => PathBuf::from(folder),
        None if cfg!(target_os = "macos") => home()?.join("Library/Caches"),
        None => home()?.join(".cache"),
    };
    Ok(folder.join("warm-evcxr"))
}

/// Jupyter's data folder of the user.
fn user_data() -> Result<PathBuf> {
    kernel::user_data().context("no home folder: set HOME, or use --prefix")
}
