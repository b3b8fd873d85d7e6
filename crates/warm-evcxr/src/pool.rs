//! The pool of build folders, one for each running kernel.
//!
//! By default evcxr recompiles all dependencies at each start. Given a permanent folder, it does
//! not, but two kernels cannot share one. So there is a pool of folders, called *slots*: a kernel
//! takes a free slot and locks it until it exits.
//!
//! ```text
//! template      all dependencies compiled; made by set-up, never used by a kernel
//! slots/1       a copy of it, used by one kernel at a time
//! slots/1.lock
//! bin/          wrappers for Cargo, rustc and rustup, see `src/shims`
//! ```
//!
//! A slot is copied again when the template has changed, when a build in it was killed, or when it
//! has grown too large. Idle slots beyond the second are removed.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::files::{copy, link, make_folder, remove, size, write, write_program};
use crate::toolchain::{program_folders, tool};

/// The file in a template and its copies that identifies the state of the template.
pub(crate) const STAMP: &str = ".stamp";
/// The file that exists in a build folder while Cargo runs there.
const BUILDING: &str = ".building";
/// How many idle slots are kept.
const MAX_IDLE: usize = 2;
/// The size in bytes above which a slot is copied again: most of it is left over from old builds.
const MAX_SIZE: u64 = 2 << 30;

/// The default Cargo configuration of kernels.
pub const CARGO_CONFIG: &str = include_str!("cargo-config.toml");
const CARGO_SHIM: &str = include_str!("shims/cargo.sh");

/// How dependencies and cells are built.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// The project's lock file, which sets the versions that cells use.
    pub lock: Option<PathBuf>,
    /// Features of dependencies to turn on, such as `rand/serde`. They do not apply where cells do
    /// not request the dependency itself.
    pub features: Vec<String>,
    /// Environment variables, for build scripts.
    pub environment: Vec<(String, String)>,
}

/// How the pool's kernels are started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The `evcxr_jupyter` program.
    pub evcxr: PathBuf,
    /// How they build cells.
    pub build: Build,
    /// Folders of programs that cells may start, searched before `PATH`.
    pub path: Vec<PathBuf>,
    /// Folders of shared libraries that cells load, searched before [`LIBRARY_PATH`].
    ///
    /// [`LIBRARY_PATH`]: crate::toolchain::LIBRARY_PATH
    pub libraries: Vec<PathBuf>,
}

/// The pool of build folders.
#[derive(Clone, Debug)]
pub struct Pool {
    folder: PathBuf,
}

/// A build folder, reserved while `lock` is open.
pub(crate) struct Slot {
    pub(crate) folder: PathBuf,
    pub(crate) lock: File,
}

impl Pool {
    /// The pool in this folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The pool's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The build folder that slots are copied from.
    pub fn template(&self) -> PathBuf {
        self.folder.join("template")
    }

    /// The wrappers for Cargo, rustc and rustup.
    pub(crate) fn bin(&self) -> PathBuf {
        self.folder.join("bin")
    }

    /// evcxr's configuration folder, used instead of the user's.
    pub(crate) fn config(&self) -> PathBuf {
        self.folder.join("config")
    }

    /// Writes the wrappers for Cargo, rustc and rustup, and the Cargo configuration of the kernels
    /// (by default [`CARGO_CONFIG`]).
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn furnish(&self, cargo_config: &str) -> Result<()> {
        write(&self.folder.join(".cargo/config.toml"), cargo_config)?;
        write_program(&self.bin().join("cargo"), CARGO_SHIM)?;
        write_program(&self.bin().join("rustc"), include_str!("shims/rustc.sh"))?;
        write_program(&self.bin().join("rustup"), include_str!("shims/rustup.sh"))?;
        write(&self.bin().join("panic-hook.rs"), include_str!("shims/panic-hook.rs"))?;
        make_folder(&self.config())?;
        self.make_sysroot()
    }

    /// Makes the sysroot that rust-analyzer sees: the toolchain's, with our own Cargo.
    fn make_sysroot(&self) -> Result<()> {
        let rustc = tool("rustc", &program_folders()?)?;
        let real = crate::toolchain::output(
            crate::toolchain::command(&rustc).args(["--print", "sysroot"]),
        )?;
        let sysroot = self.folder.join("sysroot");
        write_program(&sysroot.join("bin/cargo"), include_str!("shims/sysroot-cargo.sh"))?;
        for (name, target) in [("lib", Path::new(&real).join("lib")), ("bin/rustc", rustc)] {
            link(&target, &sysroot.join(name))?;
        }
        Ok(())
    }

    /// Saves how kernels are started.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn configure(&self, settings: &Settings) -> Result<()> {
        write(&self.folder.join("settings.json"), &serde_json::to_string_pretty(settings)?)
    }

    /// How kernels are started.
    ///
    /// # Errors
    /// If [`Pool::configure`] has not been called.
    pub fn settings(&self) -> Result<Settings> {
        let path = self.folder.join("settings.json");
        let text = fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}: set the kernel up again", path.display()))?;
        Ok(serde_json::from_str(&text)?)
    }

    /// The template's lock: exclusive to change the template, shared to copy it.
    ///
    /// # Errors
    /// If the lock file cannot be created.
    pub(crate) fn template_lock(&self) -> Result<File> {
        make_folder(&self.folder)?;
        Ok(File::create(self.folder.join("template.lock"))?)
    }

    /// Reserves a free slot and prepares it.
    pub(crate) fn claim(&self) -> Result<Slot> {
        let slots = self.folder.join("slots");
        make_folder(&slots)?;
        for number in 1.. {
            if let Some(slot) = Slot::lock(&slots, number)? {
                self.prepare(&slot.folder).context("cannot prepare the kernel's build folder")?;
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
        if slot.exists() && is_usable(slot)? && is_current(slot, &template) {
            return Ok(());
        }
        remove(slot)?;
        if template.join(STAMP).exists() {
            copy(&template, slot)?;
        }
        fs::create_dir_all(slot)?;
        Ok(())
    }
}

/// Whether a kernel can reuse a build folder: no build was killed there, and it is not too large.
fn is_usable(folder: &Path) -> io::Result<bool> {
    Ok(!folder.join(BUILDING).exists() && size(folder)? <= MAX_SIZE)
}

/// Whether a slot is a copy of the current template, or there is no template yet.
fn is_current(slot: &Path, template: &Path) -> bool {
    let stamp = |folder: &Path| fs::read(folder.join(STAMP)).ok();
    stamp(template).is_none() || stamp(slot) == stamp(template)
}

impl Slot {
    /// The slot with this number, unless another kernel holds it.
    fn lock(slots: &Path, number: usize) -> Result<Option<Self>> {
        let lock = File::create(slots.join(format!("{number}.lock")))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self { folder: slots.join(number.to_string()), lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }
}

/// Removes unused slots, except the first [`MAX_IDLE`].
fn remove_idle(slots: &Path) -> Result<()> {
    for entry in fs::read_dir(slots)? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        if let Some(number) = number.filter(|&number: &usize| number > MAX_IDLE)
            && Slot::lock(slots, number)?.is_some()
        {
            remove(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::FileTimes;

    use super::*;

    /// A pool whose template holds one compiled file.
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
    fn slots_are_copies_of_the_template_with_its_times() {
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
    fn kernels_never_share_a_slot_and_free_slots_are_reused() {
        let (_folder, pool) = pool();
        let (first, second) = (pool.claim().unwrap(), pool.claim().unwrap());
        assert_ne!(first.folder, second.folder);
        fs::write(compiled(&first), "and another crate").unwrap();
        assert_eq!(fs::read_to_string(compiled(&second)).unwrap(), "1");
        let folder = first.folder.clone();
        drop(first);
        let third = pool.claim().unwrap();
        assert_eq!(third.folder, folder);
        assert_eq!(fs::read_to_string(compiled(&third)).unwrap(), "and another crate");
    }

    #[test]
    fn a_slot_with_a_killed_build_is_copied_again() {
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
    fn a_slot_from_an_earlier_template_is_copied_again() {
        let (_folder, pool) = pool();
        drop(pool.claim().unwrap());
        renew_template(&pool, "2");
        assert_eq!(fs::read_to_string(compiled(&pool.claim().unwrap())).unwrap(), "2");
    }

    #[test]
    fn a_slot_that_has_grown_too_large_is_copied_again() {
        let (_folder, pool) = pool();
        let slot = pool.claim().unwrap();
        let file = File::create(slot.folder.join("leftovers")).unwrap();
        file.set_len(MAX_SIZE + 1).unwrap();
        drop(slot);
        assert!(!pool.claim().unwrap().folder.join("leftovers").exists());
    }

    #[test]
    fn without_a_template_a_slot_starts_empty_and_is_reused() {
        let folder = tempfile::tempdir().unwrap();
        let pool = Pool::new(folder.path());
        let slot = pool.claim().unwrap();
        fs::write(slot.folder.join("Cargo.toml"), "").unwrap();
        drop(slot);
        assert!(pool.claim().unwrap().folder.join("Cargo.toml").exists());
    }

    #[test]
    fn idle_slots_beyond_the_second_are_removed() {
        let (_folder, pool) = pool();
        let slots: Vec<Slot> = (0..4).map(|_| pool.claim().unwrap()).collect();
        let folders: Vec<PathBuf> = slots.iter().map(|slot| slot.folder.clone()).collect();
        assert!(folders.iter().all(|folder| folder.exists()));
        drop(slots);
        let _slot = pool.claim().unwrap();
        assert_eq!(folders.iter().filter(|folder| folder.exists()).count(), MAX_IDLE);
    }

    /// Runs the Cargo wrapper in `folder` with the script `cargo` as the real Cargo.
    fn run_cargo_shim(folder: &Path, cargo: &str, subcommand: &str) -> std::process::Output {
        let (shim, real) = (folder.join("shim"), folder.join("real"));
        for (path, text) in [(&shim, CARGO_SHIM), (&real, cargo)] {
            write_program(path, text).unwrap();
        }
        let has_launcher = folder.join("launcher").exists();
        let features = if has_launcher { "image/png" } else { "" };
        std::process::Command::new("sh")
            .args([shim.as_os_str(), subcommand.as_ref()])
            .current_dir(folder)
            .env("EVCXR_TMPDIR", folder)
            .env("WARM_EVCXR_CARGO", real)
            .env("WARM_EVCXR", folder.join("launcher"))
            .env("WARM_EVCXR_LOCK", folder.join("workspace.lock"))
            .env("WARM_EVCXR_FEATURES", features)
            .output()
            .unwrap()
    }

    #[test]
    fn a_changed_manifest_restores_the_project_lock() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let cargo = "#!/bin/sh\ncat Cargo.lock\necho pruned > Cargo.lock\nexit 7\n";
        fs::write(folder.join("workspace.lock"), "workspace").unwrap();
        for (manifest, seen) in [("a", "workspace"), ("a", "pruned\n"), ("b", "workspace")] {
            fs::write(folder.join("Cargo.toml"), manifest).unwrap();
            let output = run_cargo_shim(&folder, cargo, "build");
            assert_eq!(String::from_utf8_lossy(&output.stdout), seen);
            assert_eq!(output.status.code(), Some(7));
        }
        assert!(is_usable(&folder).unwrap());
    }

    #[test]
    fn a_killed_build_makes_the_folder_unusable() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        fs::write(folder.join("Cargo.toml"), "").unwrap();
        fs::write(folder.join("workspace.lock"), "").unwrap();
        let kills_its_parent = "#!/bin/sh\nkill -9 $PPID\n";
        assert!(!run_cargo_shim(&folder, kills_its_parent, "build").status.success());
        assert!(!is_usable(&folder).unwrap());
    }

    #[test]
    fn check_becomes_build() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        fs::write(folder.join("Cargo.toml"), "").unwrap();
        fs::write(folder.join("workspace.lock"), "").unwrap();
        let output = run_cargo_shim(&folder, "#!/bin/sh\necho $1\n", "check");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "build\n");
    }

    #[test]
    fn features_are_turned_on_before_the_lock_file_is_chosen() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        fs::write(folder.join("Cargo.toml"), "plain").unwrap();
        fs::write(folder.join("workspace.lock"), "").unwrap();
        write_program(&folder.join("launcher"), "#!/bin/sh\necho \"$1\" > Cargo.toml\n").unwrap();
        run_cargo_shim(&folder, "#!/bin/sh\ntrue\n", "build");
        for manifest in ["Cargo.toml", ".locked-manifest"] {
            assert_eq!(fs::read_to_string(folder.join(manifest)).unwrap(), "features\n");
        }
    }

    #[test]
    fn both_cargo_wrappers_filter_metadata() {
        let folder = tempfile::tempdir().unwrap();
        let pool = Pool::new(folder.path().canonicalize().unwrap());
        pool.furnish(CARGO_CONFIG).unwrap();
        let launcher = pool.folder().join("launcher");
        write_program(&launcher, "#!/bin/sh\necho \"$1\"\n").unwrap();
        for cargo in [pool.bin().join("cargo"), pool.folder().join("sysroot/bin/cargo")] {
            let output = std::process::Command::new(cargo)
                .args(["metadata", "--format-version", "1", "--manifest-path", "Cargo.toml"])
                .env("EVCXR_TMPDIR", folder.path())
                .env("WARM_EVCXR", &launcher)
                .env("WARM_EVCXR_CARGO", "false")
                .output()
                .unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), "metadata\n");
        }
    }

    #[test]
    fn settings_round_trip() {
        let (_folder, pool) = pool();
        assert!(pool.settings().is_err());
        let build = Build {
            lock: Some("Cargo.lock".into()),
            features: vec!["rand/serde".into()],
            environment: vec![("CC".into(), "clang".into())],
        };
        let settings = Settings {
            evcxr: "evcxr".into(),
            build,
            path: vec!["bin".into()],
            libraries: vec!["lib".into()],
        };
        pool.configure(&settings).unwrap();
        assert_eq!(pool.settings().unwrap(), settings);
    }
}
