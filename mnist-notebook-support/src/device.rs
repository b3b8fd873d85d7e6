//! Where the tensors live: on a GPU if there is one that this build can use, else on the CPU.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, DeviceLocation, Tensor};

use crate::{
    Cnn, Dataset, Result, create_optimizer, get_initial_params, jit, random::Key, train_step,
};

/// The fastest device that this build can use: CUDA, then Metal, then the CPU.
///
/// Prints one line that says what was chosen and why. A GPU is chosen only after it has made a step
/// of training: what it lacks shows here, and its kernels are ready afterwards. On an NVIDIA GPU they
/// are compiled the first time, which takes about half a minute and is announced in a line of its own;
/// the result is kept where the driver keeps its own, in `~/.nv/ComputeCache` (or `CUDA_CACHE_PATH`).
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
        match Device::new_cuda(0).map_err(Into::into).and_then(warmed_up) {
            Ok(device) => {
                let reason = format!("Running on the NVIDIA GPU{}.", model(&device));
                return (device, reason);
            }
            Err(error) => problem = Some(("NVIDIA GPU", error.to_string())),
        }
    }
    if cfg!(feature = "metal") {
        match Device::new_metal(0).map_err(Into::into).and_then(warmed_up) {
            Ok(device) => return (device, "Running on the Mac's GPU through Metal.".into()),
            Err(error) => problem = Some(("Metal GPU", error.to_string())),
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

/// The device after a step of training on it, through autograd and compiled.
fn warmed_up(device: Device) -> Result<Device> {
    if device.is_cuda() && !compute_cache().is_some_and(|folder| folder.exists()) {
        println!("Compiling kernels for the GPU: about half a minute, once on this machine.");
    }
    let params = get_initial_params(&Cnn, Key::new(0), &device)?;
    let mut optimizer = create_optimizer(&params, 0.1, 0.9)?;
    let batch = Dataset::new(
        Tensor::zeros((1, 28, 28, 1), DType::F32, &device)?,
        Tensor::zeros(1, DType::U32, &device)?,
    )?;
    train_step(&Cnn, &mut optimizer, &batch)?.get()?;
    jit(Cnn, &params, batch.image.dims())?.train_step(&mut optimizer, &batch)?.get()?;
    Ok(device)
}

/// The folder in which NVIDIA's driver keeps the kernels that it has compiled.
pub(crate) fn compute_cache() -> Option<PathBuf> {
    let named = std::env::var_os("CUDA_CACHE_PATH").map(PathBuf::from);
    named.or_else(|| Some(std::env::home_dir()?.join(".nv/ComputeCache")))
}

/// The name of the GPU, such as `: NVIDIA H200`, where it tells it.
#[cfg(feature = "cuda")]
fn model(device: &Device) -> String {
    let name = |cuda: &candle_core::CudaDevice| cuda.cuda_stream().context().name().ok();
    device.as_cuda_device().ok().and_then(name).map_or(String::new(), |name| format!(": {name}"))
}

#[cfg(not(feature = "cuda"))]
fn model(_: &Device) -> String {
    String::new()
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

/// What a failure of CUDA means and what to do, in one line.
pub(crate) fn explain(error: &str) -> String {
    const KNOWN: [(&[&str], &str); 5] = [
        (
            &["CUDA_ERROR_NO_DEVICE", "CUDA_ERROR_INVALID_DEVICE"],
            "the NVIDIA driver shows no GPU: see what nvidia-smi lists, and whether \
             CUDA_VISIBLE_DEVICES hides it",
        ),
        (
            &["OUT_OF_MEMORY", "ALLOC_FAILED"],
            "the GPU's memory is full: take smaller batches, or end other programs on it \
             (nvidia-smi lists them)",
        ),
        (
            &["NO_BINARY_FOR_GPU", "INVALID_PTX", "INVALID_IMAGE", "UNSUPPORTED_PTX_VERSION"],
            "this program was built for another GPU or a newer driver: update the driver, or build \
             again with CUDA_COMPUTE_CAP set to what `nvidia-smi --query-gpu=compute_cap \
             --format=csv` says, without the dot",
        ),
        (
            &["STUB_LIBRARY", "DRIVER_MISMATCH", "SYSTEM_NOT_READY", "COMPAT_NOT_SUPPORTED"],
            "the NVIDIA driver does not work: install it again, and restart the machine",
        ),
        (
            &["ECC_UNCORRECTABLE", "HARDWARE_STACK_ERROR", "CUDA_ERROR_DEVICE_UNAVAILABLE"],
            "the GPU has failed or is taken: see what nvidia-smi says of it",
        ),
    ];
    let is_among = |codes: &[&str]| codes.iter().any(|code| error.contains(code));
    let first_line = error.lines().next().unwrap_or_default();
    match KNOWN.iter().find(|(codes, _)| is_among(codes)) {
        Some((_, advice)) => format!("{advice}: {first_line}"),
        None => format!("the GPU failed: {first_line}"),
    }
}

#[cfg(test)]
mod tests {
    use crate::Error;

    #[test]
    fn each_failure_of_cuda_says_in_one_line_what_to_do() {
        for (code, words) in [
            ("CUDA_ERROR_NO_DEVICE", "CUDA_VISIBLE_DEVICES"),
            ("CUDA_ERROR_OUT_OF_MEMORY", "smaller batches"),
            ("CUBLAS_STATUS_ALLOC_FAILED", "smaller batches"),
            ("CUDA_ERROR_NO_BINARY_FOR_GPU", "CUDA_COMPUTE_CAP"),
            ("CUDA_ERROR_INVALID_PTX", "CUDA_COMPUTE_CAP"),
            ("CUDA_ERROR_STUB_LIBRARY", "install it again"),
            ("CUDA_ERROR_LAUNCH_FAILED", "the GPU failed"),
        ] {
            let text = format!("DriverError({code}, \"…\")\n  frames of a backtrace");
            let error: Error = candle_core::Error::Cuda(text.into()).into();
            let message = error.to_string();
            assert!(matches!(error, Error::Gpu(_)) && message.contains(words), "{message}");
            assert!(message.contains(code) && !message.contains('\n'), "{message}");
        }
    }
}
