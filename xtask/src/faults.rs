//! Runs tests and adds up the faults that they inject.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::device::Device;
use crate::process::command;
use crate::project::Project;

/// The number of faults that tests injected, and of those that lost data or went unnoticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// All injected faults.
    pub injected: usize,
    /// Faults that lost data or went unnoticed.
    pub lost: usize,
}

impl Faults {
    /// Parses the counts in a line of test output.
    pub fn in_line(line: &str) -> Option<Self> {
        let (_, counts) = line.split_once("faults injected: ")?;
        let (injected, rest) = counts.split_once(',')?;
        let (_, lost) = rest.split_once("lost: ")?;
        Some(Self { injected: injected.parse().ok()?, lost: lost.trim().parse().ok()? })
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { injected, lost } = *self;
        write!(f, "faults injected: {injected}, survived: {}, lost: {lost}", injected - lost)
    }
}

/// Runs `cargo test` with these arguments for the device, passes its output on, and adds up the
/// faults. `long` injects more than ten times as many.
///
/// # Errors
/// If a test fails.
pub fn test(project: &Project, arguments: &[&str], device: &Device, long: bool) -> Result<Faults> {
    let mut cargo = command("cargo");
    cargo.arg("test").args(arguments).current_dir(project.root()).stdout(Stdio::piped());
    device.apply(&mut cargo)?;
    if long {
        cargo.env("FAULTS", "100").env("FUZZ_INPUTS", "20000");
    }
    let mut running = cargo.spawn().context("cannot start `cargo`")?;
    let mut sum = Faults::default();
    for line in running.stdout.take().map(BufReader::new).into_iter().flat_map(BufRead::lines) {
        let line = line?;
        println!("{line}");
        if let Some(Faults { injected, lost }) = Faults::in_line(&line) {
            sum.injected += injected;
            sum.lost += lost;
        }
    }
    let status = running.wait()?;
    ensure!(status.success(), "tests failed ({status}); {sum}");
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_found_anywhere_in_a_line() {
        for line in [
            "SIGKILL: faults injected: 12, survived: 11, lost: 1",
            "test killed_training_resumes ... SIGKILL: faults injected: 12, refused: 11, lost: 1",
        ] {
            assert_eq!(Faults::in_line(line), Some(Faults { injected: 12, lost: 1 }), "{line}");
        }
        for line in ["", "faults injected: many, lost: 0", "faults injected: 3", "test a ... ok"] {
            assert_eq!(Faults::in_line(line), None, "{line}");
        }
    }
}
