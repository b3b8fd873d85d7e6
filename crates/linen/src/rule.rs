//! The rules by which optimizers update parameters.

use candle_core::DType;
use cpu_kernels::UpdateRule;

use crate::check;
use crate::error::{Error, Result};

/// Gradient descent with momentum, a decaying sum of past gradients.
///
/// A step is `m ← beta · m + gradient; parameter ← parameter − learning_rate · m`, with `m`
/// starting at zero. There is no dampening. The momentum of Nesterov looks one step ahead: it
/// steps along `beta · m + gradient`, with the new `m`.
///
/// # Source
/// `flax.optim.Momentum`, `optax.sgd(learning_rate, momentum, nesterov)`; Polyak, *Some methods of
/// speeding up the convergence of iteration methods*, 1964; Nesterov, *A method of solving a convex
/// programming problem with convergence rate O(1/k²)*, 1983.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Momentum {
    /// The share of the momentum that a step keeps: at least 0, below 1. By default 0.9.
    pub beta: f64,
    /// Whether the momentum is Nesterov's. By default it is not.
    pub nesterov: bool,
}

impl Default for Momentum {
    fn default() -> Self {
        Momentum { beta: 0.9, nesterov: false }
    }
}

/// Adam: a step of about the same size for every parameter, however large its gradients are.
///
/// It keeps decaying means of the gradient, `m`, and of its square, `v`. Both start at zero, and
/// are too small at first; in step t, counted from 1, `m̂ = m / (1 − beta1ᵗ)` and
/// `v̂ = v / (1 − beta2ᵗ)` correct that. A step is
/// `parameter ← parameter − learning_rate · m̂ / (√v̂ + epsilon)`.
///
/// # Source
/// `optax.adam`; Kingma, Ba, *Adam: a method for stochastic optimization*, 2015.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adam {
    /// The share of `m` that a step keeps: at least 0, below 1. By default 0.9.
    pub beta1: f64,
    /// The share of `v` that a step keeps: at least 0, below 1. By default 0.999.
    pub beta2: f64,
    /// Keeps the quotient finite where all gradients were zero: at least 1.2e-38, the smallest
    /// normal f32. By default 1e-8.
    pub epsilon: f64,
}

impl Default for Adam {
    fn default() -> Self {
        Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }
    }
}

/// [`Adam`] with weight decay: each step also takes a share off every parameter.
///
/// The decay is decoupled, that is, no part of the gradient: a step is
/// `parameter ← parameter − learning_rate · (m̂ / (√v̂ + epsilon) + weight_decay · parameter)`.
///
/// # Source
/// `optax.adamw`; Loshchilov, Hutter, *Decoupled weight decay regularization*, 2019.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// As in [`Adam`]. By default 0.9.
    pub beta1: f64,
    /// As in [`Adam`]. By default 0.999.
    pub beta2: f64,
    /// As in [`Adam`]. By default 1e-8.
    pub epsilon: f64,
    /// The share that a step with learning rate 1 takes off, not negative. By default 1e-4, as in
    /// optax. PyTorch and candle have 0.01.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        let Adam { beta1, beta2, epsilon } = Adam::default();
        AdamW { beta1, beta2, epsilon, weight_decay: 1e-4 }
    }
}

/// The rule of an [`Optimizer`](crate::Optimizer).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// Gradient descent with momentum.
    Momentum(Momentum),
    /// Adam.
    Adam(Adam),
    /// Adam with decoupled weight decay.
    AdamW(AdamW),
}

impl From<Momentum> for Rule {
    fn from(rule: Momentum) -> Self {
        Rule::Momentum(rule)
    }
}

impl From<Adam> for Rule {
    fn from(rule: Adam) -> Self {
        Rule::Adam(rule)
    }
}

impl From<AdamW> for Rule {
    fn from(rule: AdamW) -> Self {
        Rule::AdamW(rule)
    }
}

impl Rule {
    /// The names of the moments that the rule keeps for each parameter, in alphabetical order:
    /// `momentum`, or `first_moment` and `second_moment`, Adam's `m` and `v`.
    pub fn moment_names(&self) -> &'static [&'static str] {
        match self {
            Rule::Momentum(_) => &["momentum"],
            Rule::Adam(_) | Rule::AdamW(_) => &["first_moment", "second_moment"],
        }
    }

    /// Checks that parameters of this type can be trained.
    pub(crate) fn check_dtype(&self, dtype: DType) -> Result<()> {
        const SMALLEST_NORMAL_F16: f64 = 6.103515625e-5;
        match *self {
            Rule::Adam(Adam { epsilon, .. }) | Rule::AdamW(AdamW { epsilon, .. })
                if dtype == DType::F16 && epsilon < SMALLEST_NORMAL_F16 =>
            {
                let allowed = "it must be at least 6.2e-5 for f16 parameters, in which anything \
                               much smaller is 0";
                Err(Error::Hyperparameter { name: "epsilon", value: epsilon, allowed })
            }
            _ => Ok(()),
        }
    }

    /// Checks the hyperparameters.
    pub(crate) fn check(&self) -> Result<()> {
        match *self {
            Rule::Momentum(Momentum { beta, .. }) => check_share("beta", beta),
            Rule::Adam(Adam { beta1, beta2, epsilon }) => check_adam(beta1, beta2, epsilon),
            Rule::AdamW(AdamW { beta1, beta2, epsilon, weight_decay }) => {
                check_adam(beta1, beta2, epsilon)?;
                check::not_negative("weight_decay", weight_decay)
            }
        }
    }

    /// The update of a step, counted from 1.
    pub(crate) fn update(&self, learning_rate: f64, step: usize) -> UpdateRule {
        match *self {
            Rule::Momentum(Momentum { beta, nesterov }) => {
                UpdateRule::Momentum { learning_rate, beta, nesterov }
            }
            Rule::Adam(adam) => adam.update(learning_rate, 0.0, step),
            Rule::AdamW(AdamW { beta1, beta2, epsilon, weight_decay }) => {
                Adam { beta1, beta2, epsilon }.update(learning_rate, weight_decay, step)
            }
        }
    }
}

impl Adam {
    fn update(self, learning_rate: f64, weight_decay: f64, step: usize) -> UpdateRule {
        let Adam { beta1, beta2, epsilon } = self;
        let correction = |beta: f64| 1.0 / (1.0 - beta.powf(step as f64));
        let (correction1, correction2) = (correction(beta1), correction(beta2));
        UpdateRule::Adam {
            learning_rate,
            beta1,
            beta2,
            epsilon,
            weight_decay,
            correction1,
            correction2,
        }
    }
}

fn check_adam(beta1: f64, beta2: f64, epsilon: f64) -> Result<()> {
    check_share("beta1", beta1)?;
    check_share("beta2", beta2)?;
    if epsilon.is_finite() && epsilon >= f64::from(f32::MIN_POSITIVE) {
        return Ok(());
    }
    let allowed = "it must be finite and at least 1.2e-38, the smallest normal f32";
    Err(Error::Hyperparameter { name: "epsilon", value: epsilon, allowed })
}

fn check_share(name: &'static str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::Hyperparameter { name, value, allowed: "it must be at least 0 and below 1" })
}
