//! Shared by the tests.

use candle_core::Device;

thread_local! {
    static DEVICE: Device = [Device::cuda_if_available(0), Device::metal_if_available(0)]
        .into_iter()
        .flatten()
        .find(|device| !device.is_cpu())
        .unwrap_or(Device::Cpu);
}

/// The device of the tests: a GPU that candle was built for, if there is one, else the CPU.
pub fn device() -> Device {
    DEVICE.with(Device::clone)
}
