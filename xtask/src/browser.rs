//! The walkthrough in a real browser: JupyterLab in a headless Chromium, used by keyboard (`browser.py`).

use std::path::Path;

use anyhow::{Context, Result};

use crate::notebook::Notebook;
use crate::project::{Project, command, output, run};

const DRIVER: &str = include_str!("browser.py");
/// How the titles of the figures begin that must come to be on the page: a grid of digits and a curve.
const FIGURES: [&str; 2] = ["The first images", "Loss"];

/// Runs the cells of the notebook at `path` until the figures are on the page. Without chromedriver, says that it does not.
///
/// # Errors
/// When a cell fails or a figure is not there in the end; a screenshot shows the page.
pub fn test(project: &Project, path: &Path) -> Result<()> {
    if output(command("chromedriver").arg("--version")).is_err() {
        println!(
            "skipped the walkthrough in a browser: there is no `chromedriver` (Debian's package chromium-driver)"
        );
        return Ok(());
    }
    println!("\nThe walkthrough in a browser");
    // A copy, which JupyterLab may save; beside the notebooks' folder, so that relative paths hold.
    let folder = project.root().join("target");
    let copy = folder.join("browser.ipynb");
    let text =
        std::fs::read_to_string(path)?.replace("num_epochs: usize = 10;", "num_epochs: usize = 2;");
    let mut notebook = Notebook::parse(&text)?;
    notebook.clear();
    notebook.write(&copy)?;
    let screenshot = project.output().join("browser.png");
    let mut driver = project.jupyter();
    driver.args(["-c", DRIVER]).arg(&copy).arg(&screenshot).args(FIGURES);
    let result = run(&mut driver)
        .with_context(|| format!("the browser test failed, see {}", screenshot.display()));
    std::fs::remove_file(copy)?;
    result
}
