//! Runs the tests of `cpu-kernels` on emulated processors with other instruction sets.

use std::env::consts::ARCH;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::process::{command, output, run};
use crate::project::Project;

/// A processor that QEMU emulates.
struct Processor {
    /// The instruction set that the kernels have to select on it.
    instruction_set: &'static str,
    /// The Rust target of its programs.
    target: &'static str,
    /// The emulator.
    qemu: &'static str,
    /// QEMU's name of the processor.
    model: &'static str,
    /// The linker on other machines, with the Debian package that has it.
    linker: (&'static str, &'static str),
}

const X86_64: Processor = Processor {
    instruction_set: "AVX2",
    target: "x86_64-unknown-linux-gnu",
    qemu: "qemu-x86_64",
    model: "max",
    linker: ("x86_64-linux-gnu-gcc", "gcc-x86-64-linux-gnu"),
};

/// One for every instruction set but AVX-512, which QEMU does not emulate.
const PROCESSORS: [Processor; 3] = [
    X86_64,
    Processor { instruction_set: "scalar", model: "Nehalem", ..X86_64 },
    Processor {
        instruction_set: "NEON",
        target: "aarch64-unknown-linux-gnu",
        qemu: "qemu-aarch64",
        model: "cortex-a57",
        linker: ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
    },
];

/// Runs the tests on every emulated processor.
///
/// A test there compares the selected instruction set with the expected one.
///
/// # Errors
/// If a program that this needs is missing, with how to install it, or if a test fails.
pub fn test(project: &Project) -> Result<()> {
    for processor in &PROCESSORS {
        processor.check()?;
    }
    for processor in &PROCESSORS {
        processor.test(project)?;
    }
    Ok(())
}

impl Processor {
    /// Whether the machine has the same architecture.
    fn is_native(&self) -> bool {
        self.target.starts_with(ARCH)
    }

    /// Checks that all programs are there that the tests need.
    fn check(&self) -> Result<()> {
        let Self { target, qemu, linker: (linker, package), .. } = self;
        let starts = |program: &str| output(command(program).arg("--version")).is_ok();
        ensure!(starts(qemu), "`{qemu}` is missing; on Debian: apt install qemu-user");
        let libraries =
            output(command("rustc").args(["--print", "target-libdir", "--target", target]))?;
        ensure!(
            Path::new(&libraries).is_dir(),
            "Rust's libraries for `{target}` are missing: rustup target add {target}"
        );
        ensure!(
            self.is_native() || starts(linker),
            "`{linker}` is missing; on Debian: apt install {package}"
        );
        Ok(())
    }

    /// Runs the tests.
    fn test(&self, project: &Project) -> Result<()> {
        let Self { target, qemu, model, instruction_set, .. } = self;
        println!("\nTests with {instruction_set}, on QEMU's processor `{model}`");
        let mut cargo = command("cargo");
        cargo.args(["test", "--package", "cpu-kernels", "--tests", "--target", target]);
        let variable = |name| {
            let target = target.replace('-', "_").to_uppercase();
            format!("CARGO_TARGET_{target}_{name}")
        };
        if !self.is_native() {
            cargo.env(variable("LINKER"), self.linker.0);
        }
        cargo.env(variable("RUNNER"), format!("{qemu} -cpu {model}"));
        // The emulator would look for shared libraries where those of this machine are.
        cargo.env(variable("RUSTFLAGS"), "-C target-feature=+crt-static");
        cargo.env("EMULATED_INSTRUCTION_SET", instruction_set);
        run(cargo.current_dir(project.root()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_how_to_install_it() {
        let problem = |processor: Processor| processor.check().unwrap_err().to_string();
        let missing = Processor { qemu: "qemu-none", ..X86_64 };
        assert_eq!(problem(missing), "`qemu-none` is missing; on Debian: apt install qemu-user");
        let [qemu, target] = ["cargo", "s390x-unknown-linux-gnu"];
        let missing = problem(Processor { qemu, target, ..X86_64 });
        assert!(missing.ends_with(": rustup target add s390x-unknown-linux-gnu"), "{missing}");
    }
}
