//! Where tensors live: on a GPU if this build can use one, else on the CPU.

use candle_core::{DType, Device, Tensor};
use linen::{Key, Result, disable_jit, select_device};
use notebook_display::println;

use crate::dataset::Dataset;
use crate::initializer::get_initial_params;
use crate::model::Cnn;
use crate::optimizer::create_optimizer;
use crate::train_step::train_step;

/// The fastest device that this build can use: CUDA, then Metal, then the CPU.
///
/// Prints one line with the choice and its reason. A GPU is chosen only after a training step has
/// succeeded on it; its kernels are then ready. On an NVIDIA GPU they are compiled the first time,
/// which takes about half a minute and is announced in another line. The result is cached in
/// the driver's cache folder, `~/.nv/ComputeCache` (or `CUDA_CACHE_PATH`).
///
/// ```
/// let device = mnist_notebook_support::best_device();
/// ```
pub fn best_device() -> Device {
    let (device, reason) = select_device(probe);
    println!("{reason}");
    device
}

/// Runs one training step through autograd and one compiled.
fn probe(device: &Device) -> Result<()> {
    let params = get_initial_params(&Cnn, Key::new(0), device)?;
    let mut optimizer = create_optimizer(&params, 0.1, 0.9)?;
    let batch = Dataset::new(
        Tensor::zeros((1, 28, 28, 1), DType::F32, device)?,
        Tensor::zeros(1, DType::U32, device)?,
    )?;
    disable_jit(|| train_step(&Cnn, &mut optimizer, &batch))?.get()?;
    train_step(&Cnn, &mut optimizer, &batch)?.get()?;
    Ok(())
}
