//! Where the tensors live: on a GPU if there is one that this build can use, else on the CPU.

use candle_core::{DType, Device, Tensor};
use linen::{Key, Result, select_device};

use crate::dataset::Dataset;
use crate::jit::jit;
use crate::model::{Cnn, get_initial_params};
use crate::optimizer::create_optimizer;
use crate::step::train_step;

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
    let (device, reason) = select_device(probe);
    println!("{reason}");
    device
}

/// Makes a step of training, through autograd and compiled.
fn probe(device: &Device) -> Result<()> {
    let params = get_initial_params(&Cnn, Key::new(0), device)?;
    let mut optimizer = create_optimizer(&params, 0.1, 0.9)?;
    let batch = Dataset::new(
        Tensor::zeros((1, 28, 28, 1), DType::F32, device)?,
        Tensor::zeros(1, DType::U32, device)?,
    )?;
    train_step(&Cnn, &mut optimizer, &batch)?.get()?;
    jit(Cnn, &params, batch.image.dims())?.train_step(&mut optimizer, &batch)?.get()?;
    Ok(())
}
