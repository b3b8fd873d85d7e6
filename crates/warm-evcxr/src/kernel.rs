//! The launcher that Jupyter starts: it reserves a warm build folder and becomes evcxr.

use std::convert::Infallible;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};
use serde_json::json;

use crate::files;
use crate::metadata;
use crate::pool::Pool;
use crate::template;
use crate::toolchain::{
    LIBRARY_PATH, cargo_home, command, find, host, library_path, output, program_folders, tool,
};

/// The hidden commands with which the files that [`install`] writes call this program. A program
/// that calls [`install`] must accept them and pass them to [`run`].
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Call {
    /// Become a kernel (called by the kernelspec)
    #[command(hide = true)]
    Kernel {
        /// The pool of build folders
        pool: PathBuf,
        /// Jupyter's connection file
        control_file: PathBuf,
    },
    /// Print `cargo metadata` for rust-analyzer, reduced to nearby crates
    #[command(hide = true)]
    Metadata {
        /// The real Cargo and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        cargo: Vec<String>,
    },
    /// Turn the kernel's features on in the cells' Cargo.toml
    #[command(hide = true)]
    Features,
}

/// A kernelspec to write.
#[derive(Clone, Debug)]
pub struct Kernelspec {
    /// The folder to write it to; the folder's name is the kernel's name in Jupyter.
    pub folder: PathBuf,
    /// The name that Jupyter shows.
    pub display_name: String,
    /// Environment variables for cells.
    pub environment: Vec<(String, String)>,
}

/// Copies this program into the pool, so that the kernel does not depend on where it was built, and
/// writes a kernelspec that starts the copy.
///
/// # Errors
/// If a file cannot be written.
pub fn install(pool: &Pool, spec: &Kernelspec) -> Result<()> {
    let launcher = pool.folder().join("launcher");
    // Replaced by renaming: the old one may be running.
    let copy = launcher.with_extension("new");
    files::make_folder(pool.folder())?;
    fs::copy(this_program()?, &copy)
        .and_then(|_| fs::rename(&copy, &launcher))
        .with_context(|| format!("cannot copy this program to {}", launcher.display()))?;
    let environment: serde_json::Map<_, _> =
        spec.environment.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let text = json!({
        "argv": [&launcher, "kernel", pool.folder(), "{connection_file}"],
        "display_name": spec.display_name,
        "language": "rust",
        "interrupt_mode": "message",
        "env": environment,
    });
    files::write(&spec.folder.join("kernel.json"), &format!("{text:#}\n"))
}

/// This program's file; on Linux, this works even if it has been rebuilt since it started.
fn this_program() -> Result<PathBuf> {
    let running = Path::new("/proc/self/exe");
    Ok(if running.exists() { running.to_owned() } else { std::env::current_exe()? })
}

/// Jupyter's data folder of the user; `None` if the home folder is not known.
pub fn user_data() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("JUPYTER_DATA_DIR") {
        return Some(folder.into());
    }
    let home = std::env::home_dir()?;
    if cfg!(target_os = "macos") {
        return Some(home.join("Library/Jupyter"));
    }
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
    Some(data.unwrap_or_else(|| home.join(".local/share")).join("jupyter"))
}

/// Runs one of the hidden commands.
///
/// # Errors
/// If no slot can be prepared, or evcxr or Cargo cannot be started.
pub fn run(call: &Call) -> Result<()> {
    match call {
        Call::Kernel { pool, control_file } => match launch(&Pool::new(pool), control_file)? {},
        Call::Metadata { cargo } => print_near_metadata(cargo),
        Call::Features => {
            let features = std::env::var("WARM_EVCXR_FEATURES").unwrap_or_default();
            template::turn_on_in_manifest(Path::new("Cargo.toml"), &features)
        }
    }
}

/// Becomes the evcxr kernel for the connection in `control_file`.
///
/// If `EVCXR_TMPDIR` is set, that folder is used instead of a slot.
fn launch(pool: &Pool, control_file: &Path) -> Result<Infallible> {
    let settings = pool.settings()?;
    let mut kernel = command(&settings.evcxr);
    kernel.arg("--control_file").arg(control_file);
    let folder = match std::env::var_os("EVCXR_TMPDIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let slot = pool.claim()?;
            // Standard input, which evcxr does not read, passes the lock on: it is held until the
            // kernel and all builds that it started have ended, however they end.
            let links = [cargo_home()?, std::env::temp_dir()];
            let folder = path_without_space(slot.folder, &links)?;
            kernel.env("EVCXR_TMPDIR", &folder).stdin(Stdio::from(slot.lock));
            folder
        }
    };
    let outer = program_folders()?;
    let rustc = tool("rustc", &outer)?;
    let own_libraries = folder.join("target").join(host(&rustc)?).join("debug/deps");
    // evcxr moves the library of a cell, whose relative path to the standard library then is wrong
    // unless it leads through the root folder.
    let standard_library = output(command(&rustc).args(["--print", "target-libdir"]))?.into();
    let libraries = [own_libraries, standard_library].into_iter().chain(settings.libraries);
    let wrappers = [pool.bin()];
    let path = std::env::join_paths(wrappers.iter().chain(&settings.path).chain(&outer))?;
    kernel
        .envs(settings.build.environment)
        .env("WARM_EVCXR_FEATURES", settings.build.features.join(" "))
        .env("WARM_EVCXR", std::env::current_exe()?)
        .env("WARM_EVCXR_CARGO", tool("cargo", &outer)?)
        .env("WARM_EVCXR_RUSTC", rustc)
        .envs(find("rustup", &outer).map(|path| ("WARM_EVCXR_RUSTUP", path)))
        .env("WARM_EVCXR_LOCK", settings.build.lock.unwrap_or_default())
        // rustup sets it for what it starts, such as `cargo xtask`. Then rust-analyzer would use
        // that toolchain's own Cargo instead of the one that lists only crates near the cells.
        .env_remove("RUSTUP_TOOLCHAIN")
        .env("PATH", &path)
        // Cells must load the shared libraries of their own build first: Cargo sets this variable
        // for programs that it runs, such as tests, to the libraries of another build.
        .env(LIBRARY_PATH, library_path(libraries)?)
        // No backtraces in errors that cells return. evcxr sets RUST_BACKTRACE for its cells, but
        // for errors this variable takes precedence.
        .env("RUST_LIB_BACKTRACE", "0")
        .env("EVCXR_CONFIG_DIR", pool.config())
        // evcxr updates an outdated kernelspec of the user: show it a folder without one.
        .env("JUPYTER_PATH", pool.config());
    Err(kernel.exec()).with_context(|| format!("cannot start {}", settings.evcxr.display()))
}

/// The folder, or, if its path has a space, a link to it in the first of `homes` without a space:
/// evcxr passes its child process the path of a cell's library only up to the first space.
fn path_without_space(folder: PathBuf, homes: &[PathBuf]) -> Result<PathBuf> {
    let has_space = |path: &Path| path.to_string_lossy().contains(' ');
    if !has_space(&folder) {
        return Ok(folder);
    }
    let home = homes.iter().find(|home| !has_space(home)).with_context(|| {
        format!("evcxr cannot use {}, because its path has a space: move it", folder.display())
    })?;
    let mut hasher = DefaultHasher::new();
    folder.hash(&mut hasher);
    let link = home.join("warm-evcxr").join(format!("slot-{:016x}", hasher.finish()));
    files::link(&folder, &link)?;
    Ok(link)
}

/// Runs `cargo metadata` and prints its output reduced to nearby crates.
fn print_near_metadata(cargo: &[String]) -> Result<()> {
    let (program, arguments) = cargo.split_first().context("the path of Cargo is missing")?;
    let output = command(program).args(arguments).stderr(Stdio::inherit()).output()?;
    let near = metadata::near(&String::from_utf8_lossy(&output.stdout));
    std::io::stdout().write_all(near.as_bytes())?;
    std::process::exit(output.status.code().unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_with_a_space_are_replaced_by_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("plain");
        assert_eq!(path_without_space(plain.clone(), &[]).unwrap(), plain);

        let spaced = folder.path().join("Łódź notes/1");
        fs::create_dir_all(&spaced).unwrap();
        let homes = [folder.path().join("my cargo"), plain.clone()];
        let link = path_without_space(spaced.clone(), &homes).unwrap();
        assert!(link.starts_with(&plain) && !link.to_string_lossy().contains(' '));
        assert_eq!(link.canonicalize().unwrap(), spaced.canonicalize().unwrap());
        assert_eq!(path_without_space(spaced.clone(), &homes).unwrap(), link);
        let other = folder.path().join("Łódź notes/2");
        assert_ne!(path_without_space(other, &homes).unwrap(), link);
        assert!(
            path_without_space(spaced, &homes[..1]).unwrap_err().to_string().contains("move it")
        );
    }
}
