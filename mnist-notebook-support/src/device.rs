//! Where the tensors live: on a GPU if there is one that this build can use, else on the CPU.

use std::path::Path;

use candle_core::{Device, DeviceLocation};

/// The fastest device that this build can use: CUDA, then Metal, then the CPU.
///
/// Prints one line that says what was chosen and why.
///
/// ```
/// let device = mnist_notebook_support::best_device();
/// ```
pub fn best_device() -> Device {
    let (device, reason) = choose();
    println!("{reason}");
    device
}

/// The short name of a device: `cpu`, `cuda:0`, `metal:0`.
pub(crate) fn name(location: DeviceLocation) -> String {
    match location {
        DeviceLocation::Cpu => "cpu".into(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

fn choose() -> (Device, String) {
    let mut problem = None;
    if cfg!(feature = "cuda") {
        match Device::new_cuda(0) {
            Ok(device) => return (device, "Running on the NVIDIA GPU.".into()),
            Err(error) => problem = Some(("NVIDIA GPU", crate::Error::from(error).to_string())),
        }
    }
    if cfg!(feature = "metal") {
        match Device::new_metal(0) {
            Ok(device) => return (device, "Running on the Mac's GPU through Metal.".into()),
            Err(error) => problem = Some(("Metal GPU", crate::Error::from(error).to_string())),
        }
    }
    let reason = match (problem, unused_gpu()) {
        (Some((gpu, error)), _) => format!("Running on the CPU: no {gpu} can be used ({error})."),
        (None, Some((gpu, feature))) => format!(
            "Running on the CPU: there is {gpu}, but this build leaves it out; \
             to use it, add features = [\"{feature}\"] to the :dep line."
        ),
        (None, None) => "Running on the CPU: no GPU was found.".into(),
    };
    (Device::Cpu, reason)
}

/// A GPU that is there although this build cannot use it, and the feature that it takes.
fn unused_gpu() -> Option<(&'static str, &'static str)> {
    if !cfg!(feature = "cuda") && Path::new("/proc/driver/nvidia/version").exists() {
        Some(("an NVIDIA GPU", "cuda"))
    } else if !cfg!(feature = "metal") && cfg!(all(target_os = "macos", target_arch = "aarch64")) {
        Some(("a Mac's GPU", "metal"))
    } else {
        None
    }
}
