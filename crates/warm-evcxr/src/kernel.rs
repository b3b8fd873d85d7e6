//! What Jupyter starts: this program, which takes a build folder that is warm and becomes evcxr.

use std::convert::Infallible;
use std::ffi::OsString;
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
use crate::toolchain::{cargo_home, command, find, host, program_folders, tool};

/// The variable that says where shared libraries are.
const LIBRARY_PATH: &str =
    if cfg!(target_os = "macos") { "DYLD_LIBRARY_PATH" } else { "LD_LIBRARY_PATH" };

/// What the files that [`install`] writes call this program with: two commands that a command line
/// which wants to be a launcher must have and hand to [`run`].
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Call {
    /// Become a kernel; a kernelspec calls this
    #[command(hide = true)]
    Kernel {
        /// The folder of build folders
        pool: PathBuf,
        /// Jupyter's connection file
        control_file: PathBuf,
    },
    /// Tell rust-analyzer of a cell's crates
    #[command(hide = true)]
    Metadata {
        /// The real Cargo, and what it is asked
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        cargo: Vec<String>,
    },
}

/// A kernelspec to write.
#[derive(Clone, Debug)]
pub struct Kernelspec {
    /// The folder that it is written to; Jupyter knows the kernel by its name.
    pub folder: PathBuf,
    /// The name that readers see.
    pub display_name: String,
    /// Variables that cells shall find set.
    pub environment: Vec<(String, String)>,
}

/// Puts a copy of this program into the pool, which outlives what it was built from, and writes a
/// kernelspec that names it.
///
/// # Errors
/// When a file cannot be written.
pub fn install(pool: &Pool, spec: &Kernelspec) -> Result<()> {
    let launcher = pool.folder().join("launcher");
    // Put in place by renaming: the old one may be running.
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

/// This program's file; on Linux also where it has been built anew since it was started.
fn this_program() -> Result<PathBuf> {
    let running = Path::new("/proc/self/exe");
    Ok(if running.exists() { running.to_owned() } else { std::env::current_exe()? })
}

/// The folder in which Jupyter looks for what the user has installed; none without a home.
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

/// Does what a file of the pool asks for.
///
/// # Errors
/// When no slot can be made ready, or evcxr or Cargo cannot be started.
pub fn run(call: &Call) -> Result<()> {
    match call {
        Call::Kernel { pool, control_file } => match launch(&Pool::new(pool), control_file)? {},
        Call::Metadata { cargo } => near_metadata(cargo),
    }
}

/// Becomes the kernel evcxr for the connection in `control_file`.
///
/// A folder that `EVCXR_TMPDIR` names already is used as it is.
fn launch(pool: &Pool, control_file: &Path) -> Result<Infallible> {
    let settings = pool.settings()?;
    let mut kernel = command(&settings.evcxr);
    kernel.arg("--control_file").arg(control_file);
    let folder = match std::env::var_os("EVCXR_TMPDIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let slot = pool.claim()?;
            // The lock is handed on as standard input, which evcxr does not read: it is held until
            // the kernel and every build that it started are gone, however they end.
            let folder = without_space(slot.folder, &[cargo_home()?, std::env::temp_dir()])?;
            kernel.env("EVCXR_TMPDIR", &folder).stdin(Stdio::from(slot.lock));
            folder
        }
    };
    let outer = program_folders()?;
    let rustc = tool("rustc", &outer)?;
    let libraries = folder.join("target").join(host(&rustc)?).join("debug/deps");
    let own = [pool.bin()];
    let path = std::env::join_paths(own.iter().chain(&settings.path).chain(&outer))?;
    kernel
        .env("WARM_EVCXR", std::env::current_exe()?)
        .env("WARM_EVCXR_CARGO", tool("cargo", &outer)?)
        .env("WARM_EVCXR_RUSTC", rustc)
        .envs(find("rustup", &outer).map(|path| ("WARM_EVCXR_RUSTUP", path)))
        .env("WARM_EVCXR_LOCK", settings.lock.unwrap_or_default())
        .env("PATH", &path)
        // Cells find the shared libraries of their own build. Cargo's own variable, set for what it
        // runs, such as tests, comes first otherwise and names those of another.
        .env(LIBRARY_PATH, with_first(libraries, LIBRARY_PATH)?)
        // An error that a cell returns is one line, without a backtrace of frames that no reader
        // knows. evcxr sets RUST_BACKTRACE for its cells; for errors this variable comes first.
        .env("RUST_LIB_BACKTRACE", "0")
        .env("EVCXR_CONFIG_DIR", pool.config())
        // evcxr updates the user's own kernelspec when it finds another version there: show it a
        // folder without one.
        .env("JUPYTER_PATH", pool.config());
    Err(kernel.exec()).with_context(|| format!("cannot start {}", settings.evcxr.display()))
}

/// The folder, or if there is a space in its path a link to it, in the first of `homes` without
/// one: what evcxr tells its child process of a cell's library ends at a space.
fn without_space(folder: PathBuf, homes: &[PathBuf]) -> Result<PathBuf> {
    let has_space = |path: &Path| path.to_string_lossy().contains(' ');
    if !has_space(&folder) {
        return Ok(folder);
    }
    let home = homes.iter().find(|home| !has_space(home)).with_context(|| {
        format!("evcxr cannot work in {}, whose path has a space: move it", folder.display())
    })?;
    let mut hasher = DefaultHasher::new();
    folder.hash(&mut hasher);
    let link = home.join("warm-evcxr").join(format!("slot-{:016x}", hasher.finish()));
    files::link(&folder, &link)?;
    Ok(link)
}

/// A list of folders in a variable, with another folder in front.
fn with_first(folder: PathBuf, variable: &str) -> Result<OsString> {
    let rest = std::env::var_os(variable).unwrap_or_default();
    Ok(std::env::join_paths([folder].into_iter().chain(std::env::split_paths(&rest)))?)
}

/// Asks Cargo and passes on what it says of the crates near the cells.
fn near_metadata(cargo: &[String]) -> Result<()> {
    let (program, arguments) = cargo.split_first().context("no Cargo is named")?;
    let said = command(program).args(arguments).stderr(Stdio::inherit()).output()?;
    let near = metadata::near(&String::from_utf8_lossy(&said.stdout));
    std::io::stdout().write_all(near.as_bytes())?;
    std::process::exit(said.status.code().unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_a_space_in_its_path_gets_a_link_without_one() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("plain");
        assert_eq!(without_space(plain.clone(), &[]).unwrap(), plain);

        let spaced = folder.path().join("Łódź notes/1");
        fs::create_dir_all(&spaced).unwrap();
        let homes = [folder.path().join("my cargo"), plain.clone()];
        let link = without_space(spaced.clone(), &homes).unwrap();
        assert!(link.starts_with(&plain) && !link.to_string_lossy().contains(' '));
        assert_eq!(link.canonicalize().unwrap(), spaced.canonicalize().unwrap());
        assert_eq!(without_space(spaced.clone(), &homes).unwrap(), link);
        let other = folder.path().join("Łódź notes/2");
        assert_ne!(without_space(other, &homes).unwrap(), link);
        assert!(without_space(spaced, &homes[..1]).unwrap_err().to_string().contains("move it"));
    }
}
