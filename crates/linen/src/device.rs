//! Device selection: a GPU that this build can use, else the CPU.

use std::path::Path;

use candle_core::Device;

use crate::error::{Error, Result};

/// The fastest device that this build can use, and a sentence that gives the reason: CUDA, then
/// Metal, then the CPU.
///
/// A GPU is chosen only if `probe`, which tries it out, succeeds.
pub fn select_device(probe: impl Fn(&Device) -> Result<()>) -> (Device, String) {
    let mut problem = None;
    if cfg!(feature = "cuda") {
        match probed(Device::new_cuda(0), &probe) {
            Ok(device) => {
                let reason = format!("Running on the NVIDIA GPU{}.", model(&device));
                return (device, reason);
            }
            Err(error) => problem = Some(("NVIDIA GPU", error)),
        }
    }
    if cfg!(feature = "metal") {
        match probed(Device::new_metal(0), &probe) {
            Ok(device) => return (device, "Running on the Mac's GPU through Metal.".into()),
            Err(error) => problem = Some(("Metal GPU", error)),
        }
    }
    (Device::Cpu, why_cpu(problem, unused_gpu()))
}

/// The line that says why the CPU is used: a GPU and its error, or a GPU that this build leaves out
/// and the feature it needs.
fn why_cpu(problem: Option<(&str, Error)>, unused: Option<(&str, &str)>) -> String {
    match (problem, unused) {
        (Some((gpu, error)), _) => {
            // A compiler's log may follow.
            let error = error.to_string();
            let error = error.lines().next().unwrap_or_default();
            format!("Running on the CPU: no {gpu} can be used ({error}).")
        }
        (None, Some((gpu, feature))) => format!(
            "Running on the CPU: there is {gpu}, but this build leaves it out. `cargo xtask run` \
             builds for it or says why not; for a kernel of your own, add \
             features = [\"{feature}\"] to the :dep line."
        ),
        (None, None) => "Running on the CPU: no GPU was found.".into(),
    }
}

fn probed(
    device: candle_core::Result<Device>,
    probe: impl Fn(&Device) -> Result<()>,
) -> Result<Device> {
    let device = device?;
    announce_compilation(&device);
    probe(&device)?;
    Ok(device)
}

/// On an NVIDIA GPU the probe compiles the kernels, unless they are in the driver's cache.
#[cfg(feature = "cuda")]
fn announce_compilation(device: &Device) {
    let is_cached = crate::cuda::compute_cache().is_some_and(|folder| folder.exists());
    if device.is_cuda() && !is_cached {
        notebook_display::println!(
            "Compiling kernels for the GPU: about half a minute, once on this machine."
        );
    }
}

#[cfg(not(feature = "cuda"))]
fn announce_compilation(_: &Device) {}

/// The name of the GPU, such as `: NVIDIA H200`, if known.
#[cfg(feature = "cuda")]
fn model(device: &Device) -> String {
    let name = |cuda: &candle_core::CudaDevice| cuda.cuda_stream().context().name().ok();
    device.as_cuda_device().ok().and_then(name).map_or(String::new(), |name| format!(": {name}"))
}

#[cfg(not(feature = "cuda"))]
fn model(_: &Device) -> String {
    String::new()
}

/// A GPU that exists but that this build cannot use, and the feature it needs.
fn unused_gpu() -> Option<(&'static str, &'static str)> {
    // The second file is the driver's in Windows Subsystem for Linux.
    let of_drivers = ["/proc/driver/nvidia/version", "/usr/lib/wsl/lib/libcuda.so.1"];
    let has_driver = || of_drivers.iter().any(|file| Path::new(file).exists());
    if !cfg!(feature = "cuda") && has_driver() {
        Some(("an NVIDIA GPU", "cuda"))
    } else if !cfg!(feature = "metal") && cfg!(all(target_os = "macos", target_arch = "aarch64")) {
        Some(("a Mac's GPU", "metal"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(message: &str) -> Error {
        candle_core::Error::Msg(message.to_owned()).into()
    }

    #[test]
    fn a_device_whose_first_step_fails_is_not_used() {
        assert!(probed(Ok(Device::Cpu), |_| Ok(())).is_ok());
        let failed = probed(Ok(Device::Cpu), |_| Err(error("no kernel image"))).unwrap_err();
        assert!(failed.to_string().contains("no kernel image"), "{failed}");
    }

    #[test]
    fn the_reason_for_the_cpu_is_one_line() {
        let problem = ("NVIDIA GPU", error("no kernel image\n   0: a backtrace"));
        let reason = why_cpu(Some(problem), None);
        assert_eq!(reason, "Running on the CPU: no NVIDIA GPU can be used (no kernel image).");
        let reason = why_cpu(None, Some(("an NVIDIA GPU", "cuda")));
        assert!(reason.contains("cargo xtask run") && reason.contains("[\"cuda\"]"), "{reason}");
    }
}
