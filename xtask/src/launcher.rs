//! Starts evcxr for Jupyter in a build folder of its own that is warm already.
//!
//! By default evcxr compiles all dependencies anew at each start. Told a lasting folder, it does not; but two kernels
//! cannot share one. So there is a pool of folders, *slots*, and the kernelspec names this launcher, which takes a free
//! slot, locks it for the life of the kernel, and becomes evcxr:
//!
//! ```text
//! .tools/kernels/template     all dependencies compiled, made by set-up, never used by a kernel
//! .tools/kernels/slots/1      a copy of it, used by one kernel at a time
//! .tools/kernels/slots/1.lock
//! .tools/kernels/bin/cargo    stands before the real Cargo, see `cargo-shim.sh`
//! ```
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
use crate::python::apart;

/// Variables with which the crate computes faster, and which have to be set before the program starts.
pub(crate) const FASTER: [(&str, &str); 3] = [
    // candle adds up gradients on threads of its own, which spin beside Rayon's while they wait.
    ("CANDLE_NUM_THREADS", "1"),
    // What a training step frees the next one needs again: glibc shall keep it, since fetching megabytes of fresh pages
    // each time costs nearly as much as computing on them.
    ("MALLOC_MMAP_THRESHOLD_", "33554432"),
    ("MALLOC_TRIM_THRESHOLD_", "1073741824"),
];

/// The file in a template, and so in its copies, that tells one state of the template from another.
pub const STAMP: &str = ".stamp";
/// The file that lies in a build folder while Cargo is at work there.
const BUILDING: &str = ".building";
/// How many idle slots are kept.
const KEPT: usize = 2;
/// A larger build folder, in bytes, holds mostly what earlier versions left behind: it is made anew.
const LIMIT: u64 = 2 << 30;

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
        Self { folder: tools.join("kernels") }
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
        if slot.exists() && is_sound(slot)? && is_copy(slot, &template) {
            return Ok(());
        }
        remove(slot)?;
        if template.exists() {
            copy(&template, slot)?;
        }
        fs::create_dir_all(slot)?;
        Ok(())
    }
}

/// Whether a kernel can go on with what is in a build folder: no build was killed there, and it is not too large.
///
/// # Errors
/// When the folder cannot be read.
pub fn is_sound(folder: &Path) -> io::Result<bool> {
    Ok(!folder.join(BUILDING).exists() && size(folder)? <= LIMIT)
}

/// Whether a slot was copied from the template as it is now; true also where there is no template yet.
fn is_copy(slot: &Path, template: &Path) -> bool {
    let stamp = |folder: &Path| fs::read(folder.join(STAMP)).ok();
    !template.exists() || stamp(slot) == stamp(template)
}

fn size(folder: &Path) -> io::Result<u64> {
    fs::read_dir(folder)?.try_fold(0, |sum, entry| {
        let entry = entry?;
        let is_folder = entry.file_type()?.is_dir();
        Ok(sum + if is_folder { size(&entry.path())? } else { entry.metadata()?.len() })
    })
}

impl Slot {
    /// The slot of this number, unless another kernel has it.
    fn lock(slots: &Path, number: usize) -> Result<Option<Self>> {
        let lock = File::create(slots.join(format!("{number}.lock")))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self { folder: slots.join(number.to_string()), lock })),
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
    // A cell that asks the project's Python gets it apart from the user's own, and from modules
    // beside the notebook.
    apart(&mut kernel).env("PYTHONSAFEPATH", "1");
    if std::env::var_os("EVCXR_TMPDIR").is_none() {
        let slot = pool.claim()?;
        kernel.env("EVCXR_TMPDIR", &slot.folder).stdin(Stdio::from(slot.lock));
    }
    let mut outer: Vec<PathBuf> =
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    outer.push(cargo_home()?.join("bin")); // an editor may have been started without it
    // First our own: the programs before Cargo and rustup, and the Python that has what notebooks call.
    let own = [pool.folder.join("bin"), tools.join("venv/bin")];
    let path = std::env::join_paths(own.iter().chain(&outer))?;
    kernel
        .env("MNIST_NOTEBOOK_CARGO", real_cargo(&outer)?)
        .envs(find("rustup", &outer).map(|rustup| ("MNIST_NOTEBOOK_RUSTUP", rustup)))
        .env("MNIST_NOTEBOOK_LOCK", tools.join("../Cargo.lock"))
        .env("PATH", &path)
        // An error that a cell returns is one line, without a backtrace of frames that no reader
        // knows. evcxr sets RUST_BACKTRACE for its cells; for errors this variable comes first.
        .env("RUST_LIB_BACKTRACE", "0")
        .envs(FASTER)
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
    path.iter().map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Removes slots beyond the first two that no kernel uses.
fn remove_idle(slots: &Path) -> Result<()> {
    for entry in fs::read_dir(slots)? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
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

/// Copies a build folder, whole or not at all, with the files' times, by which Cargo knows what is fresh.
///
/// No hard links: Cargo overwrites its records in place, and one folder's would become the other's. File systems
/// that can share blocks between copies do so here.
///
/// # Errors
/// When a file cannot be read or written.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let unfinished = to.with_extension("copy");
    remove(&unfinished)?;
    copy_files(from, &unfinished)?;
    fs::rename(&unfinished, to)
}

fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_files(&entry.path(), &target)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A pool with a template of one compiled file.
    fn pool() -> (tempfile::TempDir, Pool) {
        let folder = tempfile::tempdir().unwrap();
        let pool = Pool::new(folder.path());
        renew_template(&pool, "1");
        (folder, pool)
    }

    fn renew_template(pool: &Pool, stamp: &str) {
        write(&pool.template().join("target/deps/compiled"), stamp).unwrap();
        write(&pool.template().join(STAMP), stamp).unwrap();
    }

    fn compiled(slot: &Slot) -> PathBuf {
        slot.folder.join("target/deps/compiled")
    }

    #[test]
    fn a_kernel_gets_a_copy_of_the_template_with_its_times() {
        let (_folder, pool) = pool();
        let original = File::open(pool.template().join("target/deps/compiled")).unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH
            + std::time::Duration::new(1_000_000_000, 123_456_789);
        original.set_times(FileTimes::new().set_modified(old)).unwrap();
        let slot = pool.claim().unwrap();
        assert_eq!(fs::read_to_string(compiled(&slot)).unwrap(), "1");
        assert_eq!(fs::metadata(compiled(&slot)).unwrap().modified().unwrap(), old);
    }

    #[test]
    fn two_kernels_never_share_a_folder_and_a_free_one_is_used_again() {
        let (_folder, pool) = pool();
        let (first, second) = (pool.claim().unwrap(), pool.claim().unwrap());
        assert_ne!(first.folder, second.folder);
        fs::write(compiled(&first), "and a crate of the reader's own").unwrap();
        assert_eq!(fs::read_to_string(compiled(&second)).unwrap(), "1");
        let folder = first.folder.clone();
        drop(first);
        let third = pool.claim().unwrap();
        assert_eq!(third.folder, folder);
        assert_eq!(
            fs::read_to_string(compiled(&third)).unwrap(),
            "and a crate of the reader's own"
        );
    }

    #[test]
    fn a_folder_in_which_a_build_was_killed_is_copied_anew() {
        let (_folder, pool) = pool();
        let slot = pool.claim().unwrap();
        fs::write(compiled(&slot), "half").unwrap();
        fs::write(slot.folder.join(BUILDING), "").unwrap();
        drop(slot);
        let slot = pool.claim().unwrap();
        assert_eq!(fs::read_to_string(compiled(&slot)).unwrap(), "1");
        assert!(!slot.folder.join(BUILDING).exists());
    }

    #[test]
    fn a_folder_from_an_earlier_template_is_copied_anew() {
        let (_folder, pool) = pool();
        drop(pool.claim().unwrap());
        renew_template(&pool, "2");
        assert_eq!(fs::read_to_string(compiled(&pool.claim().unwrap())).unwrap(), "2");
    }

    #[test]
    fn a_folder_that_has_grown_too_large_is_copied_anew() {
        let (_folder, pool) = pool();
        let slot = pool.claim().unwrap();
        let file = File::create(slot.folder.join("leftovers")).unwrap();
        file.set_len(LIMIT + 1).unwrap();
        drop(slot);
        assert!(!pool.claim().unwrap().folder.join("leftovers").exists());
    }

    #[test]
    fn without_a_template_a_kernel_starts_in_an_empty_folder_and_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let pool = Pool::new(folder.path());
        let slot = pool.claim().unwrap();
        fs::write(slot.folder.join("Cargo.toml"), "").unwrap();
        drop(slot);
        assert!(pool.claim().unwrap().folder.join("Cargo.toml").exists());
    }

    #[test]
    fn idle_folders_beyond_the_second_are_removed() {
        let (_folder, pool) = pool();
        let slots: Vec<Slot> = (0..4).map(|_| pool.claim().unwrap()).collect();
        let folders: Vec<PathBuf> = slots.iter().map(|slot| slot.folder.clone()).collect();
        assert!(folders.iter().all(|folder| folder.exists()));
        drop(slots);
        let _slot = pool.claim().unwrap();
        assert_eq!(folders.iter().filter(|folder| folder.exists()).count(), KEPT);
    }

    /// Runs the program before Cargo in `folder`, with a Cargo that answers 7 and shows the lock file it was given.
    fn cargo_before(folder: &Path, cargo: &str) -> std::process::Output {
        let (shim, real) = (folder.join("shim"), folder.join("real"));
        for (path, text) in [(&shim, CARGO_SHIM), (&real, cargo)] {
            write(path, text).unwrap();
            make_executable(path).unwrap();
        }
        std::process::Command::new("sh")
            .arg(shim)
            .current_dir(folder)
            .env("EVCXR_TMPDIR", folder)
            .env("MNIST_NOTEBOOK_CARGO", real)
            .env("MNIST_NOTEBOOK_LOCK", folder.join("workspace.lock"))
            .output()
            .unwrap()
    }

    #[test]
    fn cargo_sees_the_workspace_lock_whenever_the_manifest_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let cargo = "#!/bin/sh\ncat Cargo.lock\necho pruned > Cargo.lock\nexit 7\n";
        fs::write(folder.join("workspace.lock"), "workspace").unwrap();
        for (manifest, seen) in [("a", "workspace"), ("a", "pruned\n"), ("b", "workspace")] {
            fs::write(folder.join("Cargo.toml"), manifest).unwrap();
            let output = cargo_before(&folder, cargo);
            assert_eq!(String::from_utf8_lossy(&output.stdout), seen);
            assert_eq!(output.status.code(), Some(7));
        }
        assert!(is_sound(&folder).unwrap());
    }

    #[test]
    fn a_killed_build_is_known_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        fs::write(folder.join("Cargo.toml"), "").unwrap();
        fs::write(folder.join("workspace.lock"), "").unwrap();
        let kills_its_parent = "#!/bin/sh\nkill -9 $PPID\n";
        assert!(!cargo_before(&folder, kills_its_parent).status.success());
        assert!(!is_sound(&folder).unwrap());
    }
}
