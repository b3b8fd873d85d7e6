//! The precision of matrix products on an NVIDIA GPU.

use std::sync::atomic::{AtomicBool, Ordering};

/// The precision of the matrix products of compiled steps; see [`set_matmul_precision`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// That of f32: about 7 decimal digits.
    #[default]
    F32,
    /// Factors cut to TF32, about 3 decimal digits, with sums in f32.
    Tf32,
}

static IS_TF32: AtomicBool = AtomicBool::new(false);

/// Sets the precision of matrix products for the whole process. The default is [`Precision::F32`].
///
/// [`Precision::Tf32`] makes a [compiled step](crate::gpu_train_step) on an NVIDIA GPU faster, from
/// compute capability 8.0. It is what JAX uses there by default. It changes nothing on a CPU, on
/// older GPUs, and where no compiled step runs. Steps compiled before follow at their next run.
///
/// # Examples
/// ```
/// use linen::{Precision, matmul_precision, set_matmul_precision};
///
/// assert_eq!(matmul_precision(), Precision::F32);
/// set_matmul_precision(Precision::Tf32);
/// assert_eq!(matmul_precision(), Precision::Tf32);
/// ```
///
/// # Source
/// `jax_default_matmul_precision` of JAX and `torch.set_float32_matmul_precision` of PyTorch.
pub fn set_matmul_precision(precision: Precision) {
    IS_TF32.store(precision == Precision::Tf32, Ordering::Relaxed);
}

/// The precision of matrix products that [`set_matmul_precision`] has set.
pub fn matmul_precision() -> Precision {
    if IS_TF32.load(Ordering::Relaxed) { Precision::Tf32 } else { Precision::F32 }
}
