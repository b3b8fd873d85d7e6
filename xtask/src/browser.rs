//! Tests the notebooks in headless Chromium: runs the walkthrough in JupyterLab by keyboard
//! (`browser.py`), draws on the draw-a-digit panel (`panel.py`) and trains on the training page
//! (`train_page.py`).

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::notebook::Notebook;
use crate::process::{command, output, run};
use crate::project::Project;

const WEBDRIVER: &str = include_str!("webdriver.py");
const WALKTHROUGH: &str = include_str!("browser.py");
const PANEL: &str = include_str!("panel.py");
/// `jupyter trust`, which would end at the first file that it cannot read.
const TRUST: &str = r#"
import sys
from nbformat.sign import TrustNotebookApp

app = TrustNotebookApp()
app.initialize([])
with app.notary:
    for path in sys.argv[1:]:
        try:
            app.sign_notebook_file(path)
        except Exception as error:
            print(f"JupyterLab cannot read {path}: {error}")
"#;
const TRAIN_PAGE: &str = include_str!("train_page.py");
/// The beginnings of the titles of figures that must appear: a grid of digits and a curve.
const FIGURES: [&str; 2] = ["The first images", "Loss"];

/// Runs the cells of the notebook at `path` until the figures appear. Skipped without chromedriver.
///
/// # Errors
/// If a cell fails or a figure is missing; a screenshot shows the page.
pub fn test(project: &Project, path: &Path) -> Result<()> {
    if let Err(reason) = is_there() {
        println!("skipped the walkthrough in a browser: {reason}");
        return Ok(());
    }
    println!("\nRunning the walkthrough in a browser");
    // JupyterLab may save the notebook, so use a copy. It is beside the notebooks' folder, to keep
    // relative paths valid.
    let folder = project.root().join("target");
    let copy = folder.join("browser.ipynb");
    let text =
        std::fs::read_to_string(path)?.replace("num_epochs: usize = 10;", "num_epochs: usize = 2;");
    let mut notebook = Notebook::parse(&text)?;
    notebook.clear();
    notebook.write(&copy)?;
    let screenshot = project.output().join("browser.png");
    let mut driver = script(project, WALKTHROUGH);
    driver.arg(&copy).arg(&screenshot).args(FIGURES);
    let result = run(&mut driver)
        .with_context(|| format!("the browser test failed: see {}", screenshot.display()));
    std::fs::remove_file(copy)?;
    result
}

/// Checks that chromedriver is installed.
///
/// # Errors
/// The reason why it cannot be used.
pub fn is_there() -> Result<(), &'static str> {
    match output(command("chromedriver").arg("--version")) {
        Ok(_) => Ok(()),
        Err(_) => Err("`chromedriver` is not installed (Debian's package chromium-driver)"),
    }
}

/// The project's Python with a script appended to `webdriver.py`.
pub fn script(project: &Project, text: &str) -> Command {
    let mut python = project.jupyter();
    python.args(["-c", &format!("{WEBDRIVER}{text}")]);
    python
}

/// Marks notebooks as trusted, without which JupyterLab shows no figures or pages that it did not
/// produce. Names those that it cannot read, and why.
///
/// # Errors
/// If Jupyter fails.
pub fn trust(project: &Project, notebooks: &[PathBuf]) -> Result<()> {
    run(project.jupyter().args(["-c", TRUST]).args(notebooks))
}

/// The kind of device that shows a panel.
#[derive(Clone, Copy, Debug)]
pub enum Device {
    /// A wide window with a mouse.
    Desktop,
    /// A window 360 pixels wide with touch.
    Phone,
}

/// Draws on the panel in a page or in a notebook, which is opened in JupyterLab, and lets it
/// predict images. Returns the JSON output of `panel.py` and saves a screenshot.
///
/// # Errors
/// If the panel is missing or does not respond.
pub fn use_panel(
    project: &Project,
    place: &Path,
    screenshot: &Path,
    device: Device,
    request: &Value,
) -> Result<Value> {
    let device = match device {
        Device::Desktop => "desktop",
        Device::Phone => "phone",
    };
    let mut driver = script(project, PANEL);
    driver.arg(place).arg(screenshot).arg(device);
    let mut driver = driver.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = driver.stdin.take().context("no pipe to the script")?;
    input.write_all(request.to_string().as_bytes())?;
    drop(input);
    let answer = driver.wait_with_output()?;
    ensure!(
        answer.status.success(),
        "the panel in {} does not work: see {}",
        place.display(),
        screenshot.display()
    );
    Ok(serde_json::from_slice(&answer.stdout)?)
}

/// The strokes of a seven, as points `[x, y]` from 0 (left, top) to 1.
pub fn seven() -> Value {
    json!([[[0.25, 0.2], [0.5, 0.2], [0.75, 0.2], [0.65, 0.4], [0.55, 0.6], [0.45, 0.85]]])
}

/// Draws a seven on the panel of an executed notebook: in JupyterLab and in its HTML page, there
/// also as on a phone. Skipped without chromedriver.
///
/// # Errors
/// If the bars do not move, the page is wider than the window, or the answer is wrong.
pub fn test_panel(project: &Project, notebook: &Path, page: &Path) -> Result<()> {
    if let Err(reason) = is_there() {
        println!("skipped the panel in a browser: {reason}");
        return Ok(());
    }
    trust(project, &[notebook.to_owned()])?;
    let places = [
        ("in JupyterLab", notebook, Device::Desktop),
        ("in the page", page, Device::Desktop),
        ("in the page on a phone", page, Device::Phone),
    ];
    for (name, place, device) in places {
        let screenshot = project.output().join(format!("panel {name}.png"));
        let request = json!({"images": [], "strokes": seven()});
        let answer = use_panel(project, place, &screenshot, device, &request)?;
        let states = answer["states"].as_array().map_or(0, Vec::len);
        ensure!(
            states > 2,
            "the panel {name} does not move while drawing: see {}",
            screenshot.display()
        );
        ensure!(answer["overflow"] == 0, "the panel {name} is too wide");
        let [_, light, dark] = &answer["backgrounds"].as_array().map_or(&[][..], Vec::as_slice)
        else {
            bail!("the panel {name} is not in a frame");
        };
        ensure!(light != dark, "the panel {name} does not follow the theme");
        let seen = answer["answer"].as_str().unwrap_or_default();
        println!("The panel {name}: {seen}");
        ensure!(
            seen.contains('7'),
            "the panel {name} did not recognize the seven: see {}",
            screenshot.display()
        );
    }
    Ok(())
}

/// Trains on the training page in `folder`: an epoch with threads, and some steps on one thread,
/// with and without SIMD. Skipped without chromedriver.
///
/// # Errors
/// If the losses are not Flax's, or the page does not show, keep or recognize what it should.
pub fn test_training_page(project: &Project, folder: &Path) -> Result<()> {
    if let Err(reason) = is_there() {
        println!("skipped the training page in a browser: {reason}");
        return Ok(());
    }
    println!("\nTraining in a browser");
    let trace = std::fs::read_to_string(project.root().join("tests/golden/trace_epoch_1.csv"))?;
    let losses = trace.lines().skip(1).filter_map(|line| line.split_once(',')?.1.parse().ok());
    let expected: Vec<f64> = losses.collect();
    let cases = [
        ("with threads", "?threads=2", "isolated", "epoch"),
        ("on one thread", "", "plain", "steps"),
        ("without relaxed SIMD", "?simd=simd128", "isolated", "steps"),
        ("without SIMD", "?simd=none", "plain", "steps"),
    ];
    for (name, query, isolation, extent) in cases {
        let screenshot = project.output().join(format!("training {name}.png"));
        let mut driver = script(project, TRAIN_PAGE);
        driver.arg(folder).arg(&screenshot).args([query, isolation, extent]);
        let answer = output(&mut driver).with_context(|| format!("the training page {name}"))?;
        let answer: Value = serde_json::from_str(&answer)?;
        println!("The training page {name}: {}", answer["kind"].as_str().unwrap_or_default());
        let found = answer["losses"].as_array().map_or(&[][..], Vec::as_slice);
        ensure!(found.len() == 10, "the training page {name} reports {} losses", found.len());
        for (found, expected) in found.iter().zip(&expected) {
            let difference = (found.as_f64().unwrap_or(f64::NAN) / expected - 1.0).abs();
            ensure!(difference <= 1e-3, "the training page {name}: {found} is not {expected}");
        }
        ensure!(is_seven(&answer["answer"]), "the training page {name} did not recognize a seven");
        ensure!(answer["console"] == json!([]), "the training page {name}: {}", answer["console"]);
        ensure!(answer["overflow"] == 0, "the training page {name} is too wide for a phone");
        if extent == "epoch" {
            let epoch = &answer["epoch"];
            println!("{}", epoch["shown"].as_str().unwrap_or_default());
            let accuracy = epoch["kept"][1].as_str().and_then(|text| text.split(' ').next());
            let accuracy: f64 = accuracy.unwrap_or_default().parse()?;
            ensure!(accuracy >= 97.0, "the training page {name}: {accuracy} % after an epoch");
            ensure!(epoch["kept"][3] == "Go on" && is_seven(&epoch["answer"]), "{epoch}");
        }
    }
    Ok(())
}

fn is_seven(answer: &Value) -> bool {
    answer == "This looks like a 7."
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a script appended to `webdriver.py`, with an empty folder as argument. Returns its
    /// output.
    fn run_script(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let mut python = command("python3");
        output(python.args(["-c", &format!("{WEBDRIVER}{text}")]).arg(folder.path())).unwrap()
    }

    #[test]
    fn chromedriver_is_restarted_when_it_loses_its_port() {
        let script = r##"
fake = Path(sys.argv[1], "chromedriver")
fake.write_text("""#!/bin/sh
echo >> "$0.starts"
if [ "$(wc -l < "$0.starts")" -lt 3 ]; then
    echo "IPv6 port not available. Exiting..."
    exit 1
fi
echo "ChromeDriver was started successfully on port 4444."
""")
fake.chmod(0o755)
os.environ["PATH"] = f"{sys.argv[1]}:{os.environ['PATH']}"
print(start_driver(), len(Path(f"{fake}.starts").read_text()))
"##;
        assert_eq!(run_script(script), "4444 3");
    }

    #[test]
    fn a_notebook_that_cannot_be_read_does_not_keep_others_from_being_trusted() {
        let project = Project::new();
        if !project.kernelspec().is_file() {
            println!("skipped: JupyterLab is not set up");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let good = r#"{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}"#;
        let texts = [("good", good), ("bad", "{"), ("marked", &format!("\u{feff}{good}"))];
        let paths = texts.map(|(name, text)| {
            std::fs::write(folder.path().join(name), text).unwrap();
            folder.path().join(name)
        });
        let [good, bad, marked] = &paths;
        let mut trust = project.jupyter();
        trust.env("JUPYTER_DATA_DIR", folder.path()).args(["-c", TRUST]);
        let printed = output(trust.args([bad, marked, good])).unwrap();
        for line in [
            format!("JupyterLab cannot read {}: ", bad.display()),
            format!("JupyterLab cannot read {}: ", marked.display()),
            format!("Signing notebook: {}", good.display()),
        ] {
            assert!(printed.contains(&line), "{line:?} is not in: {printed}");
        }
    }

    #[test]
    fn jupyter_lab_is_restarted_when_it_loses_its_port() {
        let script = r##"
import types

folder = Path(sys.argv[1])
paths = types.SimpleNamespace(jupyter_runtime_dir=lambda: str(folder))
sys.modules.update({"jupyter_core": types.ModuleType("jupyter_core"), "jupyter_core.paths": paths})
fake = folder / "python"
fake.write_text(f"#!/bin/sh\nexec {sys.executable} {folder}/lab.py\n")
fake.chmod(0o755)
(folder / "lab.py").write_text("""
import http.server, json, os, pathlib

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

folder = pathlib.Path(__file__).parent
try:
    (folder / "starts").touch(exist_ok=False)
except FileExistsError:
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    (folder / f"jpserver-{os.getpid()}.json").write_text(json.dumps({"port": server.server_port}))
    server.serve_forever()
else:
    raise SystemExit("ERROR: … because no available port could be found.")
""")
sys.executable = str(fake)
with Lab(folder, folder / "log") as lab:
    print(lab.answers())
"##;
        assert_eq!(run_script(script), "True");
    }
}
