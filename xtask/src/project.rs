//! Where things are in the project folder.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use warm_evcxr::files;
use warm_evcxr::pool::Pool;

use crate::python::python;

/// The project folder. Everything that set-up makes lies in its `.tools`, everything that commands write in its `target`.
#[derive(Clone, Debug)]
pub struct Project {
    root: PathBuf,
}

impl Project {
    /// The project whose command or test runs.
    pub fn new() -> Self {
        // Cargo says in which folder it is. What was noted when this program was built may be
        // another one: a build folder is copied, moved with its checkout, or shared by two.
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let manifest = manifest.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        Self { root: manifest.parent().unwrap_or(&manifest).to_owned() }
    }

    /// The project folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What set-up makes: the Python environment, the kernel's launcher, its build folders.
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

    /// The kernelspec that the notebooks name, where the project's Jupyter looks for it.
    pub fn kernelspec(&self) -> PathBuf {
        self.tools().join("jupyter/data/kernels/rust/kernel.json")
    }

    /// The folder of the kernels' build folders.
    pub fn pool(&self) -> Pool {
        Pool::new(self.tools().join("kernels"))
    }

    /// Takes away what names another folder, if the project was moved or copied since it was set up;
    /// what is compiled stays.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn claim_tools(&self) -> Result<()> {
        let note = self.tools().join("made-in");
        let here = self.root.to_string_lossy();
        if std::fs::read_to_string(&note).is_ok_and(|there| there == here) {
            return Ok(());
        }
        if note.exists() {
            println!("The project was moved or copied: setting it up anew");
        }
        for part in ["venv", "jupyter", "kernels/slots", "cuda"] {
            let folder = self.tools().join(part);
            files::remove(&folder)
                .with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        files::write(&note, &here)
    }

    /// The folder of the notebooks.
    pub fn notebooks(&self) -> PathBuf {
        self.root.join("notebooks")
    }

    /// The notebooks' paths, sorted.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn notebook_files(&self) -> Result<Vec<PathBuf>> {
        let folder = self.notebooks();
        let entries = std::fs::read_dir(&folder)
            .with_context(|| format!("cannot read {}", folder.display()))?;
        let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        files.retain(|path| path.extension() == Some(OsStr::new("ipynb")));
        files.sort();
        Ok(files)
    }

    /// Where executed notebooks, pages and tables are written.
    pub fn output(&self) -> PathBuf {
        self.root.join("target/notebooks")
    }

    /// The Python environment's interpreter, apart from the user's own, with Jupyter's files kept
    /// inside `.tools`.
    pub fn jupyter(&self) -> Command {
        let files = self.tools().join("jupyter");
        let mut python = python(self.python());
        // Jupyter looks for its own programs in PATH.
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
    fn the_project_is_the_one_whose_command_runs() {
        // Cargo sets the variable to where the manifest is now.
        let here = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("..");
        assert_eq!(Project::new().root(), here.canonicalize().unwrap());
    }

    #[test]
    fn a_moved_project_keeps_what_is_compiled_and_nothing_that_names_its_old_place() {
        let folder = tempfile::tempdir().unwrap();
        let project = |name: &str| Project { root: folder.path().join(name) };
        let parts = ["venv", "jupyter", "kernels/slots", "kernels/template", "cuda"];
        let there = |project: &Project| parts.map(|part| project.tools().join(part).exists());
        let old = project("old");
        for part in parts {
            fs::create_dir_all(old.tools().join(part)).unwrap();
        }
        old.claim_tools().unwrap();
        assert_eq!(there(&old), [false, false, false, true, false], "made by nobody known");
        for part in parts {
            fs::create_dir_all(old.tools().join(part)).unwrap();
        }
        old.claim_tools().unwrap();
        assert_eq!(there(&old), [true; 5], "in the same place");
        let new = project("new");
        fs::rename(old.root(), new.root()).unwrap();
        new.claim_tools().unwrap();
        assert_eq!(there(&new), [false, false, false, true, false]);
    }
}
