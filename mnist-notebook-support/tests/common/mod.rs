//! Shared by the tests.

use mnist_notebook_support::prelude::Device;

thread_local! {
    static DEVICE: Device = gpu().unwrap_or(Device::Cpu);
}

/// The device under test: with `--features cuda` or `--features metal` a GPU, if there is one; else
/// the CPU.
pub fn device() -> Device {
    DEVICE.with(Device::clone)
}

pub fn gpu() -> Option<Device> {
    let cuda = || cfg!(feature = "cuda").then(|| Device::new_cuda(0).ok()).flatten();
    let metal = || cfg!(feature = "metal").then(|| Device::new_metal(0).ok()).flatten();
    cuda().or_else(metal)
}
