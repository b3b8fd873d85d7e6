//! What the tests share.

use candle_core::Device;

thread_local! {
    static DEVICE: Device = [Device::cuda_if_available(0), Device::metal_if_available(0)]
        .into_iter()
        .flatten()
        .find(|device| !device.is_cpu())
        .unwrap_or(Device::Cpu);
}

/// The device on which a test runs: the GPU that candle was built for, if there is one, else the
/// CPU.
pub fn device() -> Device {
    DEVICE.with(Device::clone)
}
