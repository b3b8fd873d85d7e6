//! Looks at the site in a browser.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::browser;
use crate::process::{command, run};
use crate::project::Project;

const CHECK: &str = include_str!("check.py");
/// The Python package that holds axe, https://github.com/dequelabs/axe-core.
const AXE: &str = "axe-playwright-python==0.1.8";
/// The pages that axe looks at, one of each kind.
const PAGES: [&str; 5] = [
    "index.html",
    "book/index.html",
    "book/notebooks/annotated_mnist.html",
    "book/notebooks/take_it_away.html",
    "book/docs/speed.html",
];

/// Checks links, what pages load, their width on a phone, and, with axe, whether they are
/// accessible. Skipped without chromedriver.
///
/// # Errors
/// If something is wrong; it is printed, a line each.
pub fn check(project: &Project, site: &Path) -> Result<()> {
    if let Err(reason) = browser::is_there() {
        println!("skipped the site in a browser: {reason}");
        return Ok(());
    }
    println!("\nLooking at the site");
    let axe = project.tools().join("axe");
    let script = axe.join("axe_playwright_python/axe.min.js");
    if !script.exists() {
        let mut pip = command(project.python());
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", AXE, "--target"]).arg(&axe);
        run(&mut pip).context("cannot install axe")?;
    }
    let mut check = browser::script(project, CHECK);
    check.arg(site).arg(script).arg(project.output()).args(PAGES);
    let status = check.stdin(Stdio::null()).status()?;
    ensure!(status.success(), "there is something wrong with the site: see above");
    Ok(())
}
