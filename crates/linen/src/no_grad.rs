//! Evaluation without a graph for the backward pass.

use std::cell::Cell;

thread_local! {
    static IS_TRACKING: Cell<bool> = const { Cell::new(true) };
}

/// Whether operations on parameters are recorded for the backward pass.
pub(crate) fn is_tracking() -> bool {
    IS_TRACKING.get()
}

/// Runs `f`; networks evaluated in it do not keep what a backward pass would need.
///
/// Without it, the outputs of all layers stay in memory until the result is dropped.
///
/// # Examples
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use linen::{Key, Module, Result, Scope, no_grad};
///
/// struct Net;
///
/// impl Module for Net {
///     fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
///         nn.dense(10, x)
///     }
/// }
///
/// let x = Tensor::ones((1, 4), DType::F32, &Device::Cpu)?;
/// let params = Net.init(Key::new(0), &x)?;
/// assert!(Net.apply(&params, &x)?.track_op());
/// assert!(!no_grad(|| Net.apply(&params, &x))?.track_op());
/// # Ok::<(), linen::Error>(())
/// ```
///
/// # Source
/// `torch.no_grad`. JAX needs none: it differentiates only what `jax.grad` runs. So does
/// [`value_and_grad`](crate::value_and_grad), which computes gradients also within `no_grad`.
pub fn no_grad<T>(f: impl FnOnce() -> T) -> T {
    with_tracking(false, f)
}

/// Runs `f` with operations recorded or not, whatever is set around it.
pub(crate) fn with_tracking<T>(is_tracking: bool, f: impl FnOnce() -> T) -> T {
    // Restores the state when dropped, also after a panic.
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            IS_TRACKING.set(self.0);
        }
    }
    let _restore = Restore(IS_TRACKING.replace(is_tracking));
    f()
}
