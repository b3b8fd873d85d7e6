//! The device that the notebooks and the tests use, and what building for it and running on it
//! need.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use clap::ValueEnum;
use warm_evcxr::toolchain::{LIBRARY_PATH, library_path};

use crate::cuda::driver::{self, Gpu, Version};
use crate::cuda::toolkit::{FETCHED, OLDEST, Toolkit};
use crate::project::Project;

/// The oldest compute capability that CUDA 13 and the project's kernels support.
const OLDEST_CAPABILITY: Version = Version(7, 5);
/// The driver that takes [`FETCHED`].
const DRIVER: u32 = 580;

/// Which devices may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Allowed {
    /// The GPU if there is one that can be used, else the CPU
    Auto,
    /// Only the CPU
    Cpu,
}

/// The device to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The CPU, because there is no GPU or it is not allowed.
    Cpu,
    /// The CPU, although there is an NVIDIA GPU or its driver, for this reason.
    CpuBecause(String),
    /// An NVIDIA GPU, with the first of these toolkits that works.
    Cuda(Gpu, Vec<Toolkit>),
    /// The GPU of a Mac with Apple's processor.
    Metal,
}

impl Choice {
    /// Looks for a GPU and what it needs. Changes nothing.
    pub fn new(project: &Project, allowed: Allowed) -> Self {
        if allowed == Allowed::Cpu {
            return Self::Cpu;
        }
        if cfg!(all(target_os = "macos", target_arch = "aarch64")) {
            return Self::Metal;
        }
        match driver::find_gpu() {
            Ok(Some(gpu)) => Self::for_gpu(project, gpu),
            Ok(None) => Self::Cpu,
            Err(error) => Self::CpuBecause(format!("{error:#}")),
        }
    }

    fn for_gpu(project: &Project, gpu: Gpu) -> Self {
        let Gpu { name, capability, cuda } = &gpu;
        if *capability < OLDEST_CAPABILITY {
            return Self::CpuBecause(format!(
                "the {name} has compute capability {capability}, and at least \
                 {OLDEST_CAPABILITY} is needed"
            ));
        }
        let fetched = (*cuda >= FETCHED).then(|| Toolkit::fetched(project));
        let toolkits: Vec<Toolkit> = Toolkit::installed(*cuda).into_iter().chain(fetched).collect();
        if toolkits.is_empty() {
            let mut reason = format!(
                "the driver of the {name} takes CUDA {cuda}, not {FETCHED}: update it to {DRIVER} \
                 or later"
            );
            if *cuda >= OLDEST {
                reason += &format!(", or install a CUDA toolkit from {OLDEST} to {cuda}");
            }
            return Self::CpuBecause(reason);
        }
        Self::Cuda(gpu, toolkits)
    }

    /// Fetches what the device needs, prints a line about it if there is a GPU, and returns how to
    /// build for it. If that is not possible, the line has the reason, and the device is the CPU.
    ///
    /// # Errors
    /// If a path is not UTF-8.
    pub fn prepare(self, project: &Project) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::default()),
            Self::CpuBecause(reason) => {
                println!("Using the CPU: {reason}.");
                Ok(Device::default())
            }
            Self::Cuda(gpu, toolkits) => prepare_cuda(project, &gpu, &toolkits),
            Self::Metal => {
                println!("Using the Mac's GPU (`--device cpu`: the CPU).");
                Ok(Device { feature: Some("metal"), ..Device::default() })
            }
        }
    }
}

fn prepare_cuda(project: &Project, gpu: &Gpu, toolkits: &[Toolkit]) -> Result<Device> {
    let Gpu { name, capability, .. } = gpu;
    let mut reasons = Vec::new();
    for toolkit in toolkits {
        let home = toolkit.home.strip_prefix(project.root()).unwrap_or(&toolkit.home).display();
        let version = toolkit.version;
        if let Err(error) = toolkit.prepare(project, *capability) {
            let error = format!("{error:#}");
            let line = error.lines().next().unwrap_or_default();
            reasons.push(format!("CUDA {version} in {home}: {line}"));
            continue;
        }
        println!(
            "Using the {name} (compute capability {capability}) with CUDA {version} in {home} \
             (`--device cpu`: the CPU)."
        );
        let Version(major, minor) = capability;
        return Device::cuda(project, toolkit, &format!("{major}{minor}"));
    }
    println!("Using the CPU, not the {name}: {}.", reasons.join("; "));
    Ok(Device::default())
}

/// How to build for a device and run on it; by default for the CPU, which needs nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// The feature of the project's crates.
    pub feature: Option<&'static str>,
    /// Environment variables for build scripts.
    pub environment: Vec<(String, String)>,
    /// Folders of shared libraries that programs load.
    pub libraries: Vec<PathBuf>,
}

impl Device {
    /// A GPU of this compute capability, such as `90`, with this toolkit, which is ready.
    ///
    /// # Errors
    /// If a path is not UTF-8.
    pub fn cuda(project: &Project, toolkit: &Toolkit, capability: &str) -> Result<Self> {
        Ok(Self {
            feature: Some("cuda"),
            environment: toolkit.environment(project, capability)?,
            libraries: toolkit.libraries(),
        })
    }

    /// Has a Cargo command build for the device and run its programs there.
    ///
    /// # Errors
    /// If the path of a library has a colon.
    pub fn apply(&self, cargo: &mut Command) -> Result<()> {
        if let Some(feature) = self.feature {
            cargo.args(["--features", feature]);
        }
        cargo.envs(self.environment.iter().cloned());
        if !self.libraries.is_empty() {
            cargo.env(LIBRARY_PATH, library_path(self.libraries.iter().cloned())?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn cargo_builds_for_the_device_and_runs_programs_on_it() {
        let device = Device {
            feature: Some("cuda"),
            environment: vec![("NVCC".to_owned(), "/cuda/bin/nvcc".to_owned())],
            libraries: vec!["/cuda/lib".into()],
        };
        let mut cargo = Command::new("cargo");
        device.apply(&mut cargo).unwrap();
        assert_eq!(cargo.get_args().collect::<Vec<_>>(), ["--features", "cuda"]);
        let value = |name: &str| {
            let mut all = cargo.get_envs();
            all.find_map(|(key, value)| (key == OsStr::new(name)).then_some(value?.to_str()?))
        };
        assert_eq!(value("NVCC"), Some("/cuda/bin/nvcc"));
        assert!(value(LIBRARY_PATH).unwrap().starts_with("/cuda/lib"));
    }

    #[test]
    fn cargo_is_left_alone_for_the_cpu() {
        let mut cargo = Command::new("cargo");
        Device::default().apply(&mut cargo).unwrap();
        assert_eq!((cargo.get_args().count(), cargo.get_envs().count()), (0, 0));
    }
}
