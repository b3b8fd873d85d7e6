//! Learning rates that change from step to step.

use std::f64::consts::PI;

use crate::error::{Error, Result};

/// A learning rate that rises linearly from 0 to its peak, then falls to 0 along half a cosine.
///
/// The rise, the warm-up, spares a fresh network large steps in directions that it has not settled
/// yet; the long fall lets it settle at the end. Without warm-up the cosine is all there is.
///
/// # Examples
/// ```
/// use linen::WarmupCosine;
///
/// let schedule = WarmupCosine::new(0.004, 100, 1000)?; // peak, warm-up steps, steps in all
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
    /// A schedule over `total_steps`, of which the first `warmup_steps` rise to `peak`.
    ///
    /// # Errors
    /// [`Error::Hyperparameter`] unless `peak` is finite and not negative and
    /// `warmup_steps < total_steps`.
    pub fn new(peak: f64, warmup_steps: usize, total_steps: usize) -> Result<Self> {
        if !peak.is_finite() || peak < 0.0 {
            let allowed = "a learning rate is finite and not negative";
            return Err(Error::Hyperparameter { name: "peak", value: peak, allowed });
        }
        if warmup_steps >= total_steps {
            let (name, value) = ("warmup_steps", warmup_steps as f64);
            let allowed = "it must be less than `total_steps`";
            return Err(Error::Hyperparameter { name, value, allowed });
        }
        Ok(WarmupCosine { peak, warmup_steps, total_steps })
    }

    /// The learning rate of a step, counted from 0; 0 after the last.
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
