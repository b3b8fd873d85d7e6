//! What times itself on request: this crate, and programs that answer lines.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// The time for an answer. The first one includes loading the framework and compiling the step.
const BUDGET: Duration = Duration::from_secs(45);

/// Milliseconds per repetition.
pub type Answer = Result<f64, Failure>;

/// Times itself on request.
pub trait Clock {
    /// Runs `count` repetitions.
    fn time(&mut self, what: &str, batch: usize, count: usize) -> Answer;
}

/// Why there is no time.
#[derive(Debug)]
pub enum Failure {
    /// This request cannot be answered, but others can.
    Request(String),
    /// There will be no more answers.
    Gone(String),
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Request(error.to_string())
    }
}

/// A program that answers lines `what batch count` with `= milliseconds` or `! reason`.
pub struct Peer {
    child: Child,
    requests: ChildStdin,
    answers: Receiver<String>,
    deadline: Instant,
}

impl Peer {
    /// Starts a program, which gives no more answers after `deadline`.
    pub fn start(program: &mut Command, deadline: Instant) -> std::io::Result<Self> {
        let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(requests), Some(output)) = (child.stdin.take(), child.stdout.take())
        else {
            unreachable!("both are pipes");
        };
        let (sender, answers) = mpsc::channel();
        // A pipe cannot be read with a time limit, a channel can.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, requests, answers, deadline })
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Clock for Peer {
    fn time(&mut self, what: &str, batch: usize, count: usize) -> Answer {
        // If the program has ended, its answer is missing below.
        let _ = writeln!(self.requests, "{what} {batch} {count}");
        let until = self.deadline.min(Instant::now() + BUDGET);
        loop {
            let line = match self.answers.recv_timeout(until - Instant::now()) {
                Ok(line) => line,
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(Failure::Gone("it has ended".to_owned()));
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    self.stop();
                    return Err(Failure::Gone("no answer in time".to_owned()));
                }
            };
            if let Some(ms) = line.strip_prefix("= ") {
                return Ok(ms.parse()?);
            }
            if let Some(reason) = line.strip_prefix("! ") {
                return Err(Failure::Request(reason.to_owned()));
            }
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop();
    }
}
