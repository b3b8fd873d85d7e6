//! Learning rate schedules.

use std::f64::consts::PI;

use crate::check;
use crate::error::{Error, Result};

/// A learning rate that rises linearly from 0 to its peak, then falls to 0 along half a cosine.
///
/// The warm-up avoids large early steps while gradients are noisy; the decay lets training
/// converge. `warmup_steps` may be 0.
///
/// # Examples
/// ```
/// use linen::WarmupCosine;
///
/// let schedule = WarmupCosine::new(0.004, 100, 1000)?; // peak, warm-up steps, total steps
/// assert_eq!(schedule.learning_rate(50), 0.002);
/// assert_eq!(schedule.learning_rate(100), 0.004);
/// assert!((schedule.learning_rate(550) - 0.002).abs() < 1e-9);
/// assert_eq!(schedule.learning_rate(1000), 0.0);
/// # Ok::<(), linen::Error>(())
/// ```
///
/// # Source
/// `optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, total_steps)`; I. Loshchilov,
/// F. Hutter, *SGDR: stochastic gradient descent with warm restarts*, 2017.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WarmupCosine {
    peak: f64,
    warmup_steps: usize,
    total_steps: usize,
}

impl WarmupCosine {
    /// A schedule that rises to `peak` in `warmup_steps` and falls to 0 by `total_steps`.
    ///
    /// # Errors
    /// [`Error::Hyperparameter`] unless `peak` is finite and not negative and
    /// `warmup_steps < total_steps`.
    pub fn new(peak: f64, warmup_steps: usize, total_steps: usize) -> Result<Self> {
        check::not_negative("peak", peak)?;
        if warmup_steps >= total_steps {
            let (name, value) = ("warmup_steps", warmup_steps as f64);
            let allowed = "it must be less than `total_steps`";
            return Err(Error::Hyperparameter { name, value, allowed });
        }
        Ok(WarmupCosine { peak, warmup_steps, total_steps })
    }

    /// The learning rate of a step, counted from 0; 0 from `total_steps` on.
    pub fn learning_rate(&self, step: usize) -> f64 {
        let WarmupCosine { peak, warmup_steps, total_steps } = *self;
        if step < warmup_steps {
            return peak * step as f64 / warmup_steps as f64;
        }
        let decay_steps = total_steps - warmup_steps;
        let progress = (step - warmup_steps) as f64 / decay_steps as f64;
        peak * 0.5 * (1.0 + (PI * progress.min(1.0)).cos())
    }
}
