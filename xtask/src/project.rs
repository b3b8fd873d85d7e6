//! Paths in the project folder.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use warm_evcxr::files;
use warm_evcxr::pool::Pool;

use crate::python::python;

/// The project folder. Set-up writes to its `.tools`, other commands to its `target`.
#[derive(Clone, Debug)]
pub struct Project {
    root: PathBuf,
}

impl Project {
    /// The project that this command or test belongs to.
    pub fn new() -> Self {
        // Cargo sets the variable at run time. The compile-time value may be outdated: build
        // folders are copied, moved, or shared by two checkouts.
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let manifest = manifest.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        Self { root: manifest.parent().unwrap_or(&manifest).to_owned() }
    }

    /// The project in this folder.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The project folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The files of set-up: the Python environment, the kernel's launcher and its build folders.
    pub fn tools(&self) -> PathBuf {
        self.root.join(".tools")
    }

    /// The Python environment.
    pub fn venv(&self) -> PathBuf {
        self.tools().join("venv")
    }

    /// The Python environment's interpreter.
    pub fn python(&self) -> PathBuf {
        self.venv().join("bin/python")
    }

    /// The kernelspec that the notebooks use, in the data folder of the project's Jupyter.
    pub fn kernelspec(&self) -> PathBuf {
        self.tools().join("jupyter/data/kernels/rust/kernel.json")
    }

    /// The pool of the kernels' build folders.
    pub fn pool(&self) -> Pool {
        Pool::new(self.tools().join("kernels"))
    }

    /// If the project was moved or copied since set-up, removes files that refer to the old folder.
    /// Compiled dependencies stay.
    ///
    /// # Errors
    /// If something cannot be removed.
    pub fn claim_tools(&self) -> Result<()> {
        let stamp = self.tools().join("made-in");
        let here = self.root.to_string_lossy();
        if std::fs::read_to_string(&stamp).is_ok_and(|there| there == here) {
            return Ok(());
        }
        if stamp.exists() {
            println!("The project was moved or copied: setting it up again");
        }
        for part in ["venv", "jupyter", "kernels/slots", "cuda"] {
            let folder = self.tools().join(part);
            files::remove(&folder)
                .with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        // It requests the crates of the old folder, which a copy must not compile again.
        let manifest = self.pool().template().join("Cargo.toml");
        if manifest.exists() {
            std::fs::remove_file(&manifest)
                .with_context(|| format!("cannot remove {}", manifest.display()))?;
        }
        files::write(&stamp, &here)
    }

    /// The folder of the notebooks.
    pub fn notebooks(&self) -> PathBuf {
        self.root.join("notebooks")
    }

    /// The notebooks' paths, sorted.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn notebook_files(&self) -> Result<Vec<PathBuf>> {
        let folder = self.notebooks();
        let entries = std::fs::read_dir(&folder)
            .with_context(|| format!("cannot read {}", folder.display()))?;
        let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        files.retain(|path| path.extension() == Some(OsStr::new("ipynb")));
        files.sort();
        Ok(files)
    }

    /// The folder for executed notebooks, pages and tables.
    pub fn output(&self) -> PathBuf {
        self.root.join("target/notebooks")
    }

    /// The folder for the website.
    pub fn site(&self) -> PathBuf {
        self.root.join("target/site")
    }

    /// The Python environment's interpreter, isolated from the user's, with Jupyter's files in
    /// `.tools`.
    pub fn jupyter(&self) -> Command {
        let files = self.tools().join("jupyter");
        let mut python = python(self.python());
        // Jupyter finds its own programs in PATH.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(self.venv().join("bin")).chain(std::env::split_paths(&path));
        if let Ok(path) = std::env::join_paths(path) {
            python.env("PATH", path);
        }
        python
            .env("JUPYTER_PREFER_ENV_PATH", "1")
            .env("JUPYTER_PLATFORM_DIRS", "1")
            .env("JUPYTER_CONFIG_DIR", files.join("config"))
            .env("JUPYTER_DATA_DIR", files.join("data"))
            .env("JUPYTER_RUNTIME_DIR", files.join("runtime"))
            .env("IPYTHONDIR", files.join("ipython"));
        python
    }
}

impl Default for Project {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_project_is_found_at_run_time() {
        let here = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("..");
        assert_eq!(Project::new().root(), here.canonicalize().unwrap());
    }

    #[test]
    fn a_moved_project_keeps_only_compiled_dependencies() {
        let folder = tempfile::tempdir().unwrap();
        let project = |name: &str| Project::at(folder.path().join(name));
        let parts = ["venv", "jupyter", "kernels/slots", "kernels/template", "cuda"];
        let exist = |project: &Project| parts.map(|part| project.tools().join(part).exists());
        let old = project("old");
        for part in parts {
            fs::create_dir_all(old.tools().join(part)).unwrap();
        }
        old.claim_tools().unwrap();
        assert_eq!(exist(&old), [false, false, false, true, false], "of unknown origin");
        for part in parts {
            fs::create_dir_all(old.tools().join(part)).unwrap();
        }
        old.claim_tools().unwrap();
        assert_eq!(exist(&old), [true; 5], "in the same place");
        let new = project("new");
        fs::rename(old.root(), new.root()).unwrap();
        new.claim_tools().unwrap();
        assert_eq!(exist(&new), [false, false, false, true, false]);
    }

    #[test]
    fn a_copied_project_does_not_compile_the_crates_of_the_original() {
        let folder = tempfile::tempdir().unwrap();
        let [original, copy] = ["original", "copy"].map(|it| Project::at(folder.path().join(it)));
        let template = |project: &Project| {
            let parts = ["Cargo.toml", "target/compiled"];
            parts.map(|part| project.pool().template().join(part))
        };
        original.claim_tools().unwrap();
        for file in template(&original) {
            files::write(&file, "").unwrap();
        }
        original.claim_tools().unwrap();
        assert!(template(&original).iter().all(|file| file.exists()), "in the same place");
        files::copy(original.root(), copy.root()).unwrap();
        copy.claim_tools().unwrap();
        assert_eq!(template(&copy).map(|file| file.exists()), [false, true]);
    }
}
