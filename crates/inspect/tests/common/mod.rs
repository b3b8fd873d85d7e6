//! Shared test helpers.

use candle_core::Device;

thread_local! {
    static DEVICE: Device = [Device::cuda_if_available(0), Device::metal_if_available(0)]
        .into_iter()
        .flatten()
        .find(|device| !device.is_cpu())
        .unwrap_or(Device::Cpu);
}

/// The test device: a GPU if candle was built for one that is present, otherwise the CPU.
pub fn device() -> Device {
    DEVICE.with(Device::clone)
}
