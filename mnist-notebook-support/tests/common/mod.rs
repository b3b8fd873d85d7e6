//! What the tests share.

use mnist_notebook_support::prelude::Device;

thread_local! {
    static DEVICE: Device = gpu().unwrap_or(Device::Cpu);
}

/// The device on which a test runs: the GPU that this build can use, if there is one, else the CPU.
///
/// So the same tests run on the CPU and, with `--features cuda` or `--features metal`, on a GPU.
pub fn device() -> Device {
    DEVICE.with(Device::clone)
}

/// A GPU that this build can use.
pub fn gpu() -> Option<Device> {
    let cuda = || cfg!(feature = "cuda").then(|| Device::new_cuda(0).ok()).flatten();
    let metal = || cfg!(feature = "metal").then(|| Device::new_metal(0).ok()).flatten();
    cuda().or_else(metal)
}
