//! Chooses a device with a stand-in for NVIDIA's driver, found as the real one would be.
#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use libloading::Library;
use tempfile::TempDir;
use warm_evcxr::files::write_program;
use xtask::cuda::driver::{Gpu, Version};
use xtask::device::{Allowed, Choice};
use xtask::project::Project;

/// Tells the process that chooses a device whether to prepare it, too.
const STEP: &str = "XTASK_TEST_STEP";
/// The constants of a good driver and GPU.
const GOOD: [&str; 6] =
    ["INIT=0", "COUNT=1", "NAME=\"NVIDIA H200\"", "MAJOR=9", "MINOR=0", "VERSION=13000"];

/// A folder with a driver and a toolkit.
struct Machine(TempDir);

impl Machine {
    fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A machine whose driver has these constants instead of those of a good one.
    fn with_driver(constants: &[&str]) -> Self {
        let machine = Self::empty();
        let status = Command::new("cc")
            .args(["-w", "-shared", "-fPIC", "-o"])
            .arg(machine.path("libcuda.so.1"))
            .args(GOOD.iter().chain(constants).flat_map(|text| {
                let (name, _) = text.split_once('=').unwrap();
                [format!("-U{name}"), format!("-D{text}")]
            }))
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/driver.c"))
            .status();
        assert!(status.unwrap().success());
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Adds a toolkit of this version; its compiler fails with `error` if that is not empty.
    fn add_toolkit(&self, version: &str, error: &str) {
        self.add_toolkit_in("toolkit", version, error);
    }

    fn add_toolkit_in(&self, folder: &str, version: &str, error: &str) {
        let script = format!(
            "#!/bin/sh\n\
             [ \"$*\" = --version ] && exec echo 'release {version}, V{version}.99'\n\
             echo '{error}' >&2\n\
             [ -z '{error}' ]\n"
        );
        write_program(&self.path(folder).join("bin/nvcc"), &script).unwrap();
    }

    /// What a process on this machine prints about its choice or its device.
    fn run(&self, step: &str, variables: &[(&str, &Path)]) -> String {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "choose_as_another_process", "--nocapture"])
            .env(STEP, step)
            .env("CARGO_MANIFEST_DIR", self.path("xtask"))
            .current_dir(self.0.path())
            .env("LD_LIBRARY_PATH", self.0.path())
            .env("PATH", "/usr/bin:/bin")
            .env_remove("CUDA_HOME")
            .env_remove("CUDA_PATH")
            .env_remove("CUDA_VISIBLE_DEVICES")
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{stdout}");
        let lines = stdout.lines().skip_while(|line| *line != "start").skip(1);
        lines.take_while(|line| *line != "end").collect::<Vec<_>>().join("\n")
    }

    /// The line about the device, and the device.
    fn prepare(&self, toolkit: &str) -> String {
        self.run("prepare", &[("CUDA_HOME", &self.path(toolkit))])
    }
}

/// Run by the tests in another process; does nothing if the variable is not set.
#[test]
fn choose_as_another_process() {
    let Ok(step) = std::env::var(STEP) else { return };
    let project = Project::new();
    let allowed = if step == "cpu" { Allowed::Cpu } else { Allowed::Auto };
    println!("\nstart");
    let choice = Choice::new(&project, allowed);
    if step == "prepare" {
        println!("{:?}", choice.prepare(&project).unwrap());
    } else {
        println!("{choice:?}");
    }
    println!("end");
}

const CPU: &str = "Device { feature: None, environment: [], libraries: [] }";

#[test]
fn without_a_gpu_nothing_is_said() {
    // SAFETY: The library is NVIDIA's driver, whose initializers every CUDA program runs.
    let has_driver = unsafe { Library::new("libcuda.so.1") }.is_ok();
    let no_driver = (!has_driver).then(Machine::empty);
    let no_gpu = [Machine::with_driver(&["COUNT=0"]), Machine::with_driver(&["INIT=100"])];
    for machine in no_driver.into_iter().chain(no_gpu) {
        assert_eq!(machine.run("auto", &[]), "Cpu");
        assert_eq!(machine.prepare("none"), CPU);
    }
}

#[test]
fn a_variable_that_hides_the_gpu_is_named() {
    for (driver, value) in [("INIT=100", ""), ("COUNT=0", "-1")] {
        let variable = ("CUDA_VISIBLE_DEVICES", Path::new(value));
        let printed = Machine::with_driver(&[driver]).run("prepare", &[variable]);
        let expected = format!(
            "Using the CPU: with CUDA_VISIBLE_DEVICES={value:?}, NVIDIA's driver shows no GPU: \
             unset the variable if it hides yours.\n{CPU}"
        );
        assert_eq!(printed, expected);
    }
    let chosen = Machine::with_driver(&[]).run("auto", &[("CUDA_VISIBLE_DEVICES", Path::new("0"))]);
    assert!(chosen.starts_with("Cuda"), "{chosen}");
}

#[test]
fn a_driver_that_cannot_be_loaded_is_the_reason_for_the_cpu() {
    let machine = Machine::empty();
    fs::write(machine.path("libcuda.so.1"), "").unwrap();
    let printed = machine.prepare("none");
    let (line, device) = printed.split_once('\n').unwrap_or_default();
    assert!(line.starts_with("Using the CPU: NVIDIA's driver fails: "), "{printed}");
    assert!(line.contains("libcuda.so.1: file too short"), "{line}");
    assert_eq!(device, CPU);
}

#[test]
fn a_gpu_is_not_used_if_only_the_cpu_is_allowed() {
    assert_eq!(Machine::with_driver(&[]).run("cpu", &[]), "Cpu");
}

#[test]
fn a_good_gpu_is_used_with_a_fetched_toolkit() {
    let machine = Machine::with_driver(&["MAJOR=12"]);
    let (capability, cuda) = (Version(12, 0), Version(13, 0));
    let gpu = Gpu { name: "NVIDIA H200".to_owned(), capability, cuda };
    let chosen = machine.run("auto", &[]);
    let expected = format!("Cuda({gpu:?}, [");
    assert!(chosen.starts_with(&expected), "{chosen}");
    let folder = machine.path(".tools/cuda/toolkit");
    assert!(chosen.contains(folder.to_str().unwrap()), "{chosen}");
    assert!(!machine.path(".tools").exists(), "a choice changes nothing");
}

#[test]
fn a_gpu_that_cannot_be_used_means_the_cpu_with_a_reason() {
    let cases: [(&[&str], &str); 3] = [
        (
            &["MAJOR=7", "MINOR=0", "NAME=\"Tesla V100\""],
            "the Tesla V100 has compute capability 7.0, and at least 7.5 is needed",
        ),
        (
            &["VERSION=11080"],
            "the driver of the NVIDIA H200 takes CUDA 11.8, not 13.0: update it to 580 or later",
        ),
        (&["INIT=802"], "NVIDIA's driver fails: system not yet initialized (cuInit returned 802)"),
    ];
    for (driver, reason) in cases {
        let printed = Machine::with_driver(driver).prepare("none");
        let expected = format!("Using the CPU: {reason}.\n{CPU}");
        assert_eq!(printed, expected);
    }
}

#[test]
fn an_installed_toolkit_that_the_driver_takes_is_used() {
    let machine = Machine::with_driver(&["MAJOR=8", "MINOR=6", "VERSION=12000"]);
    fs::create_dir_all(machine.path("toolkit/lib64")).unwrap();
    fs::write(machine.path("toolkit/lib64/libcublas.so"), "").unwrap();
    for (version, is_used) in [("11.8", false), ("12.0", true), ("12.1", false)] {
        machine.add_toolkit(version, "");
        let chosen = machine.run("auto", &[("CUDA_PATH", &machine.path("toolkit"))]);
        assert_eq!(chosen.starts_with("Cuda"), is_used, "{version}: {chosen}");
    }
    machine.add_toolkit("12.0", "");
    let home = machine.path("toolkit").display().to_string();
    let printed = machine.prepare("toolkit");
    let line = "Using the NVIDIA H200 (compute capability 8.6) with CUDA 12.0 in toolkit \
                (`--device cpu`: the CPU).\n";
    let nvcc = machine.path(".tools/cuda/nvcc-12.0").display().to_string();
    for part in [
        line,
        "feature: Some(\"cuda\")",
        &format!("(\"CUDA_HOME\", {home:?})"),
        &format!("(\"CUDA_PATH\", {home:?})"),
        &format!("(\"NVCC\", {nvcc:?})"),
        "(\"CUDA_COMPUTE_CAP\", \"86\")",
        "(\"CUDARC_CUDA_VERSION\", \"12000\")",
        &format!("libraries: [{:?}]", machine.path("toolkit/lib64")),
    ] {
        assert!(printed.contains(part), "{part:?} is not in: {printed}");
    }
    let version = Command::new(nvcc).arg("--version").output().unwrap().stdout;
    assert_eq!(String::from_utf8(version).unwrap(), "release 12.0, V12.0.99\n");
}

#[test]
fn a_relative_home_of_the_toolkit_is_made_absolute_and_an_empty_one_is_none() {
    let machine = Machine::with_driver(&["VERSION=12000"]);
    machine.add_toolkit("12.0", "");
    let chosen = machine.run("auto", &[("CUDA_HOME", Path::new("toolkit"))]);
    let home = machine.path("toolkit");
    assert!(chosen.contains(&format!("home: {home:?}")), "{chosen}");
    symlink(machine.path("toolkit/bin"), machine.path("bin")).unwrap();
    let chosen = machine.run("auto", &[("CUDA_HOME", Path::new(""))]);
    assert!(chosen.starts_with("CpuBecause"), "{chosen}");
}

#[test]
fn the_toolkit_of_the_compiler_in_path_is_found() {
    let machine = Machine::with_driver(&["VERSION=12000"]);
    machine.add_toolkit("12.0", "");
    let bin = machine.path("bin");
    fs::create_dir(&bin).unwrap();
    symlink(machine.path("toolkit/bin/nvcc"), bin.join("nvcc")).unwrap();
    let path = std::env::join_paths([bin, "/usr/bin".into(), "/bin".into()]).unwrap();
    let chosen = machine.run("auto", &[("PATH", Path::new(&path))]);
    let home = machine.path("toolkit").canonicalize().unwrap();
    assert!(chosen.contains(&format!("home: {home:?}")), "{chosen}");
}

#[test]
fn a_compiler_that_is_too_old_for_the_gpu_gives_way_to_the_next() {
    let machine = Machine::with_driver(&["MAJOR=12", "VERSION=12080"]);
    machine.add_toolkit("12.4", "nvcc fatal: Unsupported gpu architecture");
    machine.add_toolkit_in("newer", "12.8", "");
    fs::create_dir_all(machine.path("newer/lib64")).unwrap();
    fs::write(machine.path("newer/lib64/libcublas.so"), "").unwrap();
    let folders = [machine.path("newer/bin"), "/usr/bin".into(), "/bin".into()];
    let path = std::env::join_paths(folders).unwrap();
    let home = machine.path("toolkit");
    let printed = machine.run("prepare", &[("CUDA_HOME", &home), ("PATH", Path::new(&path))]);
    assert!(printed.contains("with CUDA 12.8 in newer"), "{printed}");
}

#[test]
fn a_compiler_that_fails_means_the_cpu_with_its_reason() {
    let machine = Machine::with_driver(&["VERSION=12090"]);
    machine.add_toolkit("12.9", "nvcc fatal: Unsupported gpu architecture");
    let printed = machine.prepare("toolkit");
    let (line, device) = printed.split_once('\n').unwrap();
    assert!(line.starts_with("Using the CPU, not the NVIDIA H200: CUDA 12.9 in toolkit: "));
    assert!(line.contains("nvcc fatal: Unsupported gpu architecture"), "{line}");
    assert_eq!(device, CPU);
}
