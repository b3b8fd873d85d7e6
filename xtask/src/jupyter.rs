//! The Python environment of JupyterLab.

use std::ffi::OsStr;
use std::fs;

use anyhow::{Context, Result};
use warm_evcxr::files;

use crate::project::Project;
use crate::python::{Environment, OLDEST, names};

/// JupyterLab asks nothing of the network: no news, no updates.
const LAB_SETTINGS: &str = r#"{
  "@jupyterlab/apputils-extension:notification": { "fetchNews": "false", "checkForUpdates": false }
}
"#;

/// The environment of JupyterLab, with what `notebooks/requirements.txt` pins.
///
/// # Errors
/// When there is no Python for it, or something that the notebooks cannot do without is not to be
/// had.
pub(crate) fn set_up(project: &Project) -> Result<()> {
    let notebooks = project.notebooks();
    let [pins, jupyter, cells] =
        ["requirements.txt", "jupyter.in", "cells.in"].map(|name| notebooks.join(name));
    let texts = [&pins, &jupyter, &cells].map(|path| {
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    });
    let [pinned, wanted, called] = texts;
    let called = called?;
    let environment = Environment::new(project.venv(), [pinned?, wanted?, called.clone()].concat());
    if environment.is_made(&["zmq", "jupyter_client", "jupyterlab", "nbconvert"]) {
        return Ok(());
    }
    let python = environment.make(OLDEST)?;
    println!("Installing JupyterLab in .tools/venv, with {python}");
    let pinned = [OsStr::new("--constraint"), pins.as_os_str()];
    environment
        .install(pinned.into_iter().chain([OsStr::new("--requirement"), jupyter.as_os_str()]))
        .context("cannot install notebooks/jupyter.in")?;
    for package in names(&called) {
        // Each by itself, and only as a wheel: some platforms lack one.
        let only = [OsStr::new("--only-binary=:all:"), OsStr::new(package)];
        if environment.install(pinned.into_iter().chain(only)).is_err() {
            println!(
                "Going on without {package}, which a cell calls: pip finds no wheel of it for this \
                 machine (remove .tools/venv to try again)"
            );
        }
    }
    files::write(&project.venv().join("share/jupyter/lab/settings/overrides.json"), LAB_SETTINGS)?;
    environment.finish()
}
