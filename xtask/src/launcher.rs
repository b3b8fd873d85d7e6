//! Starts evcxr for Jupyter in a build folder of its own that is warm already.
//!
//! By default evcxr compiles all dependencies anew at each start. Told a lasting folder, it does not; but two kernels
//! cannot share one. So there is a pool of folders, *slots*, and the kernelspec names this launcher, which takes a free
//! slot, locks it for the life of the kernel, and becomes evcxr:
//!
//!     .tools/kernels/template     all dependencies compiled, made by set-up, never used by a kernel
//!     .tools/kernels/slots/1      a copy of it, used by one kernel at a time
//!     .tools/kernels/slots/1.lock
//!     .tools/kernels/bin/cargo    stands before the real Cargo, see `cargo-shim.sh`
//!
//! A slot is copied anew when the template has changed, or when a build in it was killed. Idle slots beyond the
//! second are removed. The lock is handed on as standard input, which evcxr does not read: it is held until
//! the kernel and every build that it started are gone, however they end.

use std::convert::Infallible;
use std::fs::{self, File, FileTimes, TryLockError};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::project::{cargo_home, command, output};

/// The file in a template, and so in its copies, that tells one state of the template from another.
pub const STAMP: &str = ".stamp";
/// The file that lies in a build folder while Cargo is at work there.
const BUILDING: &str = ".building";
/// How many idle slots are kept.
const KEPT: usize = 2;

const CARGO_SHIM: &str = include_str!("cargo-shim.sh");
const RUSTUP_SHIM: &str = include_str!("rustup-shim.sh");
const CARGO_CONFIG: &str = include_str!("cargo-config.toml");

/// The folder of build folders, `.tools/kernels`.
#[derive(Clone, Debug)]
pub struct Pool {
    folder: PathBuf,
}

/// A build folder, this process's own for as long as `lock` is open.
struct Slot {
    folder: PathBuf,
    lock: File,
}

impl Pool {
    /// The pool in the folder `.tools`.
    pub fn new(tools: &Path) -> Self {
        Self {
            folder: tools.join("kernels"),
        }
    }

    /// The build folder that slots are copied from.
    pub fn template(&self) -> PathBuf {
        self.folder.join("template")
    }

    /// Writes what surrounds the build folders: the programs before Cargo and rustup, the profile.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn furnish(&self) -> Result<()> {
        write(&self.folder.join(".cargo/config.toml"), CARGO_CONFIG)?;
        for (name, text) in [("cargo", CARGO_SHIM), ("rustup", RUSTUP_SHIM)] {
            let path = self.folder.join("bin").join(name);
            write(&path, text)?;
            make_executable(&path)?;
        }
        Ok(())
    }

    /// The lock to hold alone while the template is replaced, shared while it is copied.
    ///
    /// # Errors
    /// When the lock's file cannot be made.
    pub fn template_lock(&self) -> Result<File> {
        fs::create_dir_all(&self.folder)?;
        Ok(File::create(self.folder.join("template.lock"))?)
    }

    /// Takes a free slot and makes it ready.
    fn claim(&self) -> Result<Slot> {
        let slots = self.folder.join("slots");
        fs::create_dir_all(&slots)?;
        for number in 1.. {
            if let Some(slot) = Slot::lock(&slots, number)? {
                self.prepare(&slot.folder)
                    .context("cannot make the kernel's build folder ready")?;
                remove_idle(&slots)?;
                return Ok(slot);
            }
        }
        bail!("no free build folder in {}", slots.display())
    }

    fn prepare(&self, slot: &Path) -> Result<()> {
        let lock = self.template_lock()?;
        lock.lock_shared()?;
        let template = self.template();
        let current = !template.exists()
            || fs::read(slot.join(STAMP)).ok() == fs::read(template.join(STAMP)).ok();
        if slot.exists() && current && !slot.join(BUILDING).exists() {
            return Ok(());
        }
        remove(slot)?;
        if template.exists() {
            let unfinished = slot.with_extension("new");
            remove(&unfinished)?;
            copy(&template, &unfinished)?;
            fs::rename(&unfinished, slot)?;
        }
        fs::create_dir_all(slot)?;
        Ok(())
    }
}

impl Slot {
    /// The slot of this number, unless another kernel has it.
    fn lock(slots: &Path, number: usize) -> Result<Option<Self>> {
        let lock = File::create(slots.join(format!("{number}.lock")))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self {
                folder: slots.join(number.to_string()),
                lock,
            })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }
}

/// Becomes the kernel `evcxr` for the connection in `control_file`. `tools` is the project's folder `.tools`.
///
/// A folder that `EVCXR_TMPDIR` names already is used as it is.
///
/// # Errors
/// When no slot can be made ready, or evcxr cannot be started.
pub fn launch(tools: &Path, evcxr: &Path, control_file: &Path) -> Result<Infallible> {
    let pool = Pool::new(tools);
    let mut kernel = command(evcxr);
    kernel.arg("--control_file").arg(control_file);
    if std::env::var_os("EVCXR_TMPDIR").is_none() {
        let slot = pool.claim()?;
        kernel
            .env("EVCXR_TMPDIR", &slot.folder)
            .stdin(Stdio::from(slot.lock));
    }
    let mut outer: Vec<PathBuf> =
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    outer.push(cargo_home()?.join("bin")); // an editor may have been started without it
    let path = std::env::join_paths([pool.folder.join("bin")].iter().chain(&outer))?;
    kernel
        .env("MNIST_NOTEBOOK_CARGO", real_cargo(&outer)?)
        .envs(find("rustup", &outer).map(|rustup| ("MNIST_NOTEBOOK_RUSTUP", rustup)))
        .env("MNIST_NOTEBOOK_LOCK", tools.join("../Cargo.lock"))
        .env("PATH", &path)
        // An error that a cell returns is one line, without a backtrace of evcxr's frames.
        .env("RUST_BACKTRACE", "0")
        // evcxr updates the user's own kernelspec when it finds another version there: show it a folder without one.
        .env("JUPYTER_PATH", &pool.folder);
    Err(kernel.exec()).with_context(|| format!("cannot start {}", evcxr.display()))
}

/// The toolchain's own Cargo rather than rustup's, which decides anew on each call which one to start.
fn real_cargo(path: &[PathBuf]) -> Result<PathBuf> {
    if let Some(rustup) = find("rustup", path)
        && let Ok(cargo) = output(command(rustup).args(["which", "cargo"]))
    {
        return Ok(cargo.into());
    }
    find("cargo", path).context("there is no `cargo` in PATH: install Rust from https://rustup.rs")
}

fn find(program: &str, path: &[PathBuf]) -> Option<PathBuf> {
    path.iter()
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Removes slots beyond the first two that no kernel uses.
fn remove_idle(slots: &Path) -> Result<()> {
    for entry in fs::read_dir(slots)? {
        let path = entry?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        if let Some(number) = number.filter(|&number: &usize| number > KEPT)
            && Slot::lock(slots, number)?.is_some()
        {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Removes a folder that may not be there.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Copies a build folder with the files' times, by which Cargo knows what is fresh.
///
/// No hard links: Cargo overwrites its records in place, and one folder's would become the other's. File systems
/// that can share blocks between copies do so here.
///
/// # Errors
/// When a file cannot be read or written.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
            let times = FileTimes::new().set_modified(entry.metadata()?.modified()?);
            File::open(&target)?.set_times(times)?;
        }
    }
    Ok(())
}

/// Writes a file, making its folder if need be, unless it holds just this already.
///
/// # Errors
/// When the folder or the file cannot be written.
pub fn write(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn make_executable(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}
