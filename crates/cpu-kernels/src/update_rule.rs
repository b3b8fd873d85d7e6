//! How a training step changes parameters, whichever rule it follows.

use crate::gemm::vectorized;

/// How one step changes a parameter p and its moments by the gradient g.
///
/// All numbers are those of this step. They are given in f64, and rounded to f32 for the update. A
/// moment below the smallest normal f32 becomes zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum UpdateRule {
    /// Gradient descent with momentum, one moment: m ← βm + g; p ← p − learning_rate·m, or
    /// p − learning_rate·(βm + g) with the momentum of Nesterov.
    Momentum {
        /// The step size.
        learning_rate: f64,
        /// β, the share of the momentum that a step keeps.
        beta: f64,
        /// Whether to step along the momentum that the next step would have by the same gradient.
        nesterov: bool,
    },
    /// Adam, two moments: m ← β₁m + (1 − β₁)g; v ← β₂v + (1 − β₂)g²; p ← p − learning_rate ·
    /// (m·correction1 / (√(v·correction2) + ε) + weight_decay·p).
    Adam {
        /// The step size.
        learning_rate: f64,
        /// β₁, the share of the first moment that a step keeps.
        beta1: f64,
        /// β₂, the share of the second moment that a step keeps.
        beta2: f64,
        /// ε, which keeps the quotient finite.
        epsilon: f64,
        /// The share of the parameter that is taken off it, times the learning rate; 0 for plain
        /// Adam.
        weight_decay: f64,
        /// 1 / (1 − β₁ᵗ) in step t, counted from 1: the first moment starts at zero, and this
        /// corrects its bias.
        correction1: f64,
        /// 1 / (1 − β₂ᵗ).
        correction2: f64,
    },
}

impl UpdateRule {
    /// The number of moments of each parameter.
    pub fn moments(&self) -> usize {
        match self {
            Self::Momentum { .. } => 1,
            Self::Adam { .. } => 2,
        }
    }

    /// Updates a parameter, or a block of one, and its moments; `second` is empty if there is only
    /// one.
    pub(crate) fn update(
        &self,
        param: &mut [f32],
        first: &mut [f32],
        second: &mut [f32],
        grad: &[f32],
    ) {
        match *self {
            Self::Momentum { learning_rate, beta, nesterov } => {
                let [rate, beta] = [learning_rate, beta].map(|number| number as f32);
                vectorized(
                    #[inline(always)]
                    || {
                        for ((p, m), g) in param.iter_mut().zip(first).zip(grad) {
                            *m = without_subnormal(beta * *m + g);
                            *p -= rate * if nesterov { beta * *m + g } else { *m };
                        }
                    },
                );
            }
            Self::Adam {
                learning_rate,
                beta1,
                beta2,
                epsilon,
                weight_decay,
                correction1,
                correction2,
            } => {
                let [rate, epsilon, decay] =
                    [learning_rate, epsilon, weight_decay].map(|number| number as f32);
                let [keep1, take1] = [beta1, 1.0 - beta1].map(|share| share as f32);
                let [keep2, take2] = [beta2, 1.0 - beta2].map(|share| share as f32);
                let [correct1, correct2] = [correction1, correction2].map(|number| number as f32);
                vectorized(
                    #[inline(always)]
                    || {
                        let moments = first.iter_mut().zip(second);
                        for ((p, (m, v)), g) in param.iter_mut().zip(moments).zip(grad) {
                            *m = without_subnormal(keep1 * *m + take1 * g);
                            *v = without_subnormal(keep2 * *v + take2 * (g * g));
                            let step = correct1 * *m / ((correct2 * *v).sqrt() + epsilon);
                            *p -= rate * (step + decay * *p);
                        }
                    },
                );
            }
        }
    }
}

/// Flushes subnormal numbers to zero, as XLA does on a CPU.
///
/// The momentum of a weight whose input is always zero halves every seven steps. Without the flush
/// it would end among the subnormal numbers, which slow many processors down a hundredfold.
#[inline(always)]
fn without_subnormal(value: f32) -> f32 {
    if value.abs() < f32::MIN_POSITIVE { 0.0 } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_subnormal_numbers_are_flushed() {
        let kept = [0.0, 1.0, -f32::MIN_POSITIVE, f32::INFINITY];
        assert_eq!(kept.map(without_subnormal), kept);
        assert_eq!(without_subnormal(f32::from_bits(1)), 0.0);
        assert!(without_subnormal(f32::NAN).is_nan());
    }
}
