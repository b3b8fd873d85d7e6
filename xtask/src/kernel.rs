//! A running Jupyter kernel, spoken to through `driver.py`.

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

/// The line by which the process that runs the cells tells evcxr that one has ended.
const END_OF_CELL: &str = "EVCXR_EXECUTION_COMPLETE";

/// Called with what the kernel reports of its builds, such as `Compiling candle-core v0.11.1`.
pub type OnBuild = Box<dyn Fn(&str) + Send>;

/// A kernel of the project's own kernelspec. Dropping it ends the kernel.
pub struct Kernel {
    driver: Child,
    requests: Option<ChildStdin>,
    events: Lines<BufReader<ChildStdout>>,
    messages: Option<JoinHandle<()>>,
    last_messages: Arc<Mutex<Vec<String>>>,
}

impl Kernel {
    /// Starts a kernel in `folder`, against which relative paths in cells resolve, and waits until it is ready.
    ///
    /// # Errors
    /// When the kernel does not start; the message carries what it wrote.
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
            .context("cannot start the project's Python: run `cargo xtask run` to set it up")?;
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

    /// Runs `code` and hands each output (an nbformat object) to `on_output` as it comes. Returns all of them.
    ///
    /// A kernel that dies, a cell that outlasts `limit`, and one that evcxr would never end show as
    /// an `error` output; the kernel is gone then.
    ///
    /// # Errors
    /// When the kernel is gone.
    pub fn execute(
        &mut self,
        code: &str,
        limit: Option<Duration>,
        mut on_output: impl FnMut(&Value),
    ) -> Result<Vec<Value>> {
        let request = json!({"code": code, "limit": limit.map(|limit| limit.as_secs_f64())});
        let pipe = self.requests.as_mut().context("the kernel is gone")?;
        writeln!(pipe, "{request}").context("the kernel is gone")?;
        let mut outputs = Vec::new();
        let outcome = loop {
            let mut event = self.event()?;
            if let Some(outcome) = event["done"].as_str() {
                break outcome.to_owned();
            }
            let mut output = event["output"].take();
            let is_open = take_end_of_cell(&mut output);
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
                "the last line that the cell printed has no end, for which evcxr waits for ever: \
                 end it with `println!()`"
                    .to_owned(),
            )),
            _ => {
                self.end();
                Some((KERNEL_DIED, self.why_it_died()))
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
        bail!("the kernel did not start or is gone:\n{messages}")
    }

    fn why_it_died(&self) -> String {
        let died = "the kernel died while it ran the cell";
        match self.last_messages.lock() {
            Ok(lines) if lines.iter().any(|line| is_of_memory(line)) => {
                format!(
                    "{died}: it got no more memory (`ulimit -v` shows whether there is a limit)"
                )
            }
            _ => died.to_owned(),
        }
    }

    fn end(&mut self) {
        self.requests = None;
        // Nothing can be done about a driver that cannot be waited for.
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

/// Whether a message of the kernel says that memory has run out.
fn is_of_memory(message: &str) -> bool {
    let message = message.to_lowercase();
    ["memory allocation", "out of memory", "cannot allocate memory"]
        .iter()
        .any(|words| message.contains(words))
}

/// Takes evcxr's mark from a line that the cell has left open; whether there was one.
///
/// evcxr looks for its mark alone on a line. After text without an end it takes it for more of the
/// text, and waits.
fn take_end_of_cell(output: &mut Value) -> bool {
    let text = joined(&output["text"]);
    let Some(printed) = text.trim_end_matches('\n').strip_suffix(END_OF_CELL) else {
        return false;
    };
    output["text"] = printed.into();
    true
}

/// Reads what driver and kernel write to standard error, keeping the last lines for an error message.
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

    #[test]
    fn memory_that_has_run_out_is_known_by_what_the_kernel_says() {
        assert!(is_of_memory("memory allocation of 152 bytes failed"));
        assert!(is_of_memory("error: Cannot allocate memory (os error 12)"));
        assert!(!is_of_memory("Subprocess terminated with status: exit status: 99"));
    }

    #[test]
    fn the_mark_at_the_end_of_an_open_line_is_found_and_not_shown() {
        let stream = |text: &str| json!({"output_type": "stream", "name": "stdout", "text": text});
        let mut open = stream("0 1 2 EVCXR_EXECUTION_COMPLETE\n");
        assert!(take_end_of_cell(&mut open));
        assert_eq!(open, stream("0 1 2 "));
        for mut other in [
            stream("0 1 2 \n"),
            stream("EVCXR_EXECUTION_COMPLETE is evcxr's mark\n"),
            json!({"output_type": "execute_result", "data": {"text/plain": END_OF_CELL}}),
        ] {
            let before = other.clone();
            assert!(!take_end_of_cell(&mut other));
            assert_eq!(other, before);
        }
    }
}
