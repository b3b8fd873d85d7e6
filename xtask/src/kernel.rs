//! A running Jupyter kernel, controlled through `driver.py`.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::check::{KERNEL_DIED, OPEN_LINE, TIME_LIMIT};
use crate::notebook::joined;
use crate::project::Project;

const DRIVER: &str = include_str!("driver.py");

/// The line with which the process that runs the cells tells evcxr that a cell has ended.
const END_MARKER: &str = "EVCXR_EXECUTION_COMPLETE";

/// Called with the lines of the kernel's builds, such as `Compiling candle-core v0.11.1`.
pub type OnBuild = Box<dyn Fn(&str) + Send>;

/// A kernel of the project's kernelspec. Dropping it stops the kernel.
pub struct Kernel {
    driver: Child,
    requests: Option<ChildStdin>,
    events: Lines<BufReader<ChildStdout>>,
    messages: Option<JoinHandle<()>>,
    last_messages: Arc<Mutex<Vec<String>>>,
}

impl Kernel {
    /// Starts a kernel with `folder` as its current folder and waits until it is ready.
    ///
    /// # Errors
    /// If the kernel does not start; the message includes its last lines.
    pub fn start(
        project: &Project,
        folder: &Path,
        environment: &[(&str, &str)],
        on_build: OnBuild,
    ) -> Result<Self> {
        let mut driver = project
            .jupyter()
            .args(["-c", DRIVER, "rust"])
            .arg(folder)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start the project's Python: run `cargo xtask setup` first")?;
        let last_messages = Arc::default();
        let messages =
            driver.stderr.take().map(|stderr| follow(stderr, Arc::clone(&last_messages), on_build));
        let mut kernel = Self {
            requests: driver.stdin.take(),
            events: BufReader::new(driver.stdout.take().context("no pipe from the driver")?)
                .lines(),
            driver,
            messages,
            last_messages,
        };
        kernel.event()?;
        Ok(kernel)
    }

    /// Runs `code`, passes each output (an nbformat object) to `on_output` as it arrives, and
    /// returns all of them.
    ///
    /// If the kernel dies, the cell exceeds `limit`, or evcxr would wait for it forever, the last
    /// output is an `error`, and the kernel is stopped.
    ///
    /// # Errors
    /// If the kernel is not running.
    pub fn execute(
        &mut self,
        code: &str,
        limit: Option<Duration>,
        mut on_output: impl FnMut(&Value),
    ) -> Result<Vec<Value>> {
        let request = json!({"code": code, "limit": limit.map(|limit| limit.as_secs_f64())});
        let pipe = self.requests.as_mut().context("the kernel is not running")?;
        writeln!(pipe, "{request}").context("the kernel is not running")?;
        let mut outputs = Vec::new();
        let outcome = loop {
            let mut event = self.event()?;
            if let Some(outcome) = event["done"].as_str() {
                break outcome.to_owned();
            }
            let mut output = event["output"].take();
            let is_open = strip_end_marker(&mut output);
            on_output(&output);
            outputs.push(output);
            if is_open {
                break "open line".to_owned();
            }
        };
        let limit = limit.unwrap_or_default().as_secs();
        let fatal = match outcome.as_str() {
            "idle" => None,
            "time limit" => {
                Some((TIME_LIMIT, format!("the cell was ended: it ran longer than {limit} s")))
            }
            "open line" => Some((
                OPEN_LINE,
                "the last line that the cell printed has no end, so evcxr waits forever: end it \
                 with `println!()`"
                    .to_owned(),
            )),
            _ => {
                self.end();
                Some((KERNEL_DIED, self.cause_of_death()))
            }
        };
        if let Some((name, value)) = fatal {
            self.requests = None;
            let error =
                json!({"output_type": "error", "ename": name, "evalue": value, "traceback": []});
            on_output(&error);
            outputs.push(error);
        }
        Ok(outputs)
    }

    /// Whether the kernel can run another cell.
    pub fn is_alive(&self) -> bool {
        self.requests.is_some()
    }

    fn event(&mut self) -> Result<Value> {
        if let Some(line) = self.events.next() {
            let line = line?;
            return serde_json::from_str(&line)
                .with_context(|| format!("unexpected line from the driver: {line}"));
        }
        self.end();
        let messages = self.last_messages.lock().map(|lines| lines.join("\n")).unwrap_or_default();
        bail!("the kernel did not start or has ended:\n{messages}")
    }

    fn cause_of_death(&self) -> String {
        let died = "the kernel died while it ran the cell";
        match self.last_messages.lock() {
            Ok(lines) if lines.iter().any(|line| is_out_of_memory(line)) => {
                format!("{died}: it ran out of memory (`ulimit -v` shows whether there is a limit)")
            }
            _ => died.to_owned(),
        }
    }

    fn end(&mut self) {
        self.requests = None;
        // Errors are ignored: nothing more can be done about the driver.
        let _ = self.driver.wait();
        if let Some(messages) = self.messages.take() {
            let _ = messages.join();
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether a message of the kernel reports a failed allocation.
fn is_out_of_memory(message: &str) -> bool {
    let message = message.to_lowercase();
    ["memory allocation", "out of memory", "cannot allocate memory"]
        .iter()
        .any(|words| message.contains(words))
}

/// Removes evcxr's end marker from an unfinished line. Returns whether there was one.
///
/// evcxr expects the marker alone on a line. After an unfinished line, it takes the marker for
/// output and keeps waiting.
fn strip_end_marker(output: &mut Value) -> bool {
    let text = joined(&output["text"]);
    let Some(printed) = text.trim_end_matches('\n').strip_suffix(END_MARKER) else {
        return false;
    };
    output["text"] = printed.into();
    true
}

/// Reads standard error of the driver and the kernel, and keeps the last lines for error messages.
fn follow(stderr: ChildStderr, last: Arc<Mutex<Vec<String>>>, on_build: OnBuild) -> JoinHandle<()> {
    const KEPT: usize = 30;
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if line.trim_start().starts_with("Compiling ") {
                on_build(line.trim());
            }
            if let Ok(mut last) = last.lock() {
                if last.len() == KEPT {
                    last.remove(0);
                }
                last.push(line);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{command, output};

    #[test]
    fn out_of_memory_messages_are_recognized() {
        assert!(is_out_of_memory("memory allocation of 152 bytes failed"));
        assert!(is_out_of_memory("error: Cannot allocate memory (os error 12)"));
        assert!(!is_out_of_memory("Subprocess terminated with status: exit status: 99"));
    }

    #[test]
    fn the_end_marker_is_stripped_from_unfinished_lines() {
        let stream = |text: &str| json!({"output_type": "stream", "name": "stdout", "text": text});
        let mut open = stream("0 1 2 EVCXR_EXECUTION_COMPLETE\n");
        assert!(strip_end_marker(&mut open));
        assert_eq!(open, stream("0 1 2 "));
        for mut other in [
            stream("0 1 2 \n"),
            stream("EVCXR_EXECUTION_COMPLETE is evcxr's end marker\n"),
            json!({"output_type": "execute_result", "data": {"text/plain": END_MARKER}}),
        ] {
            let before = other.clone();
            assert!(!strip_end_marker(&mut other));
            assert_eq!(other, before);
        }
    }

    #[test]
    fn signals_to_the_process_group_do_not_keep_the_driver_from_stopping_the_kernel() {
        const STAND_INS: &str = r#"
import sys, types

class Kernel:
    def __getattr__(self, name):
        return lambda *_, **__: self

class KernelManager(Kernel):
    def __init__(self, kernel_name):
        pass

    def shutdown_kernel(self, now):
        print("stopped", flush=True)

for name, items in [("jupyter_client", {}), ("jupyter_client.manager", vars()),
                    ("nbformat", {}), ("nbformat.v4", {"output_from_msg": None})]:
    sys.modules[name] = types.SimpleNamespace(**items)
"#;
        for signal in ["INT", "TERM", "HUP"] {
            let mut driver = command("python3")
                .args(["-c", &format!("{STAND_INS}{DRIVER}"), "rust", "."])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
            assert_eq!(lines.next().unwrap().unwrap(), "{\"ready\": true}");
            output(command("kill").args(["-s", signal, &driver.id().to_string()])).unwrap();
            drop(driver.stdin.take());
            assert_eq!(lines.next().map(Result::unwrap).as_deref(), Some("stopped"), "{signal}");
            assert!(driver.wait().unwrap().success(), "{signal}");
        }
    }
}
