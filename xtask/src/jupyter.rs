//! Installs JupyterLab's Python environment, and starts JupyterLab.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use warm_evcxr::files;

use crate::process::run;
use crate::project::Project;
use crate::python::{Environment, OLDEST, package_names};

const LAB: &str = include_str!("lab.py");

/// What shows that the environment is complete; the first one has native code.
const MODULES: [&str; 4] = ["zmq", "jupyter_client", "jupyterlab", "nbconvert"];

/// How long JupyterLab may take to listen; long enough for a busy machine.
const START_LIMIT: Duration = Duration::from_secs(300);

/// Keeps JupyterLab off the network: no news, no update checks.
const LAB_SETTINGS: &str = r#"{
  "@jupyterlab/apputils-extension:notification": { "fetchNews": "false", "checkForUpdates": false }
}
"#;

/// Installs JupyterLab at the versions pinned in `notebooks/requirements.txt`.
///
/// # Errors
/// If there is no suitable Python, or a required package cannot be installed.
pub(crate) fn set_up(project: &Project) -> Result<()> {
    let notebooks = project.notebooks();
    let [pins, jupyter, cells] =
        ["requirements.txt", "jupyter.in", "cells.in"].map(|name| notebooks.join(name));
    let texts = [&pins, &jupyter, &cells].map(|path| {
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    });
    let [pins_text, jupyter_text, cells_text] = texts;
    let cells_text = cells_text?;
    let description = [pins_text?, jupyter_text?, cells_text.clone()].concat();
    let environment = Environment::new(project.venv(), description);
    if environment.is_up_to_date(&MODULES) {
        return Ok(());
    }
    let python = environment.create(OLDEST)?;
    println!("Installing JupyterLab in .tools/venv, with {python}");
    let constraint = [OsStr::new("--constraint"), pins.as_os_str()];
    environment
        .install(constraint.into_iter().chain([OsStr::new("--requirement"), jupyter.as_os_str()]))
        .context("cannot install notebooks/jupyter.in")?;
    ensure!(
        environment.has(&MODULES),
        "pip has not installed JupyterLab into .tools/venv: `pip config list` shows where else \
         (`target`, `prefix` or `root`); remove that, or set PIP_CONFIG_FILE=/dev/null"
    );
    for package in package_names(&cells_text) {
        // One at a time and only as wheels: some platforms lack one.
        let wheel = [OsStr::new("--only-binary=:all:"), OsStr::new(package)];
        if environment.install(constraint.into_iter().chain(wheel)).is_err() {
            println!(
                "Going on without {package}, which some cells need: pip cannot install a wheel on \
                 this machine (remove .tools/venv to try again)"
            );
        }
    }
    files::write(&project.venv().join("share/jupyter/lab/settings/overrides.json"), LAB_SETTINGS)?;
    environment.finish()
}

/// JupyterLab, to be given its arguments.
pub fn lab(project: &Project) -> Command {
    let mut lab = project.jupyter();
    lab.args(["-c", LAB]);
    lab
}

/// Starts JupyterLab by a command, as a reader does, looks whether it answers, and ends it.
///
/// # Errors
/// If it does not start, answer or end.
pub fn test_lab(command: &mut Command) -> Result<()> {
    let mut lab = command.stderr(Stdio::piped()).spawn()?;
    let tested = test_server(&mut lab);
    if tested.is_err() {
        lab.kill()?;
        lab.wait()?;
    }
    tested
}

fn test_server(lab: &mut Child) -> Result<()> {
    let mut log = BufReader::new(lab.stderr.take().context("no pipe from JupyterLab")?).lines();
    let mut before = String::new();
    let address = loop {
        let line = log.next().with_context(|| format!("JupyterLab ended:\n{before}"))??;
        match line.split_once("http://").filter(|_| line.contains("/lab?token=")) {
            Some((_, address)) => break address.trim().to_owned(),
            None => before += &format!("{line}\n"),
        }
    };
    let (host, path) = address.split_once('/').context("an address without a path")?;
    let mut connection = connect(host, lab)?;
    write!(connection, "GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    let mut answer = String::new();
    BufReader::new(connection).read_line(&mut answer)?;
    ensure!(answer.contains(" 200 "), "JupyterLab answers {answer}");
    run(crate::process::command("kill").arg(lab.id().to_string()))?;
    log.for_each(drop); // it would wait for a reader of its last words
    lab.wait()?;
    ensure!(TcpStream::connect(host).is_err(), "JupyterLab has not ended");
    Ok(())
}

/// Connects to a server that has printed its address: JupyterLab does so before it listens.
fn connect(host: &str, server: &mut Child) -> Result<TcpStream> {
    let start = Instant::now();
    loop {
        match TcpStream::connect(host) {
            Ok(connection) => return Ok(connection),
            Err(error) => {
                let ended = server.try_wait()?;
                let waits = ended.is_none() && start.elapsed() < START_LIMIT;
                ensure!(waits, "JupyterLab does not listen ({error}); it has ended: {ended:?}");
            }
        }
        thread::sleep(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{command, output};

    /// Prints an address, as JupyterLab does, and goes on with the script.
    fn stand_in(after_address: &str) -> Command {
        const PRINT_ADDRESS: &str = r#"
import http.server, socket, sys, time

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = free.getsockname()
print(f"http://127.0.0.1:{address[1]}/lab?token=0", file=sys.stderr, flush=True)
"#;
        let mut python = command("python3");
        python.args(["-c", &format!("{PRINT_ADDRESS}{after_address}")]);
        python
    }

    #[test]
    fn jupyter_lab_may_listen_after_it_has_printed_its_address() {
        let late = r#"
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

time.sleep(0.5)  # longer than it takes to connect
http.server.HTTPServer(address, Handler).serve_forever()
"#;
        test_lab(&mut stand_in(late)).unwrap();
    }

    #[test]
    fn jupyter_lab_that_ends_before_it_listens_is_an_error() {
        let error = test_lab(&mut stand_in("raise SystemExit(1)")).unwrap_err();
        assert!(error.to_string().starts_with("JupyterLab does not listen"), "{error}");
    }

    #[test]
    fn the_end_of_the_terminal_stops_jupyter_lab_unless_it_is_ignored() {
        const STAND_IN: &str = r#"
import os, signal, sys, types

def main():
    signal.signal(signal.SIGTERM, lambda *_: print("stopping"))
    os.kill(os.getpid(), signal.SIGHUP)
    print("end")

sys.modules["jupyterlab"] = types.ModuleType("jupyterlab")
sys.modules["jupyterlab.labapp"] = types.SimpleNamespace(main=main)
"#;
        let printed = |before: &str| {
            let script = format!("{STAND_IN}{before}{LAB}");
            output(command("python3").args(["-c", &script])).unwrap()
        };
        assert_eq!(printed("signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"), "stopping\nend");
        assert_eq!(printed("signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"), "end");
    }
}
