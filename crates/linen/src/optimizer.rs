//! Gradient descent with momentum.

use crate::error::{Error, Result, device_name};
use crate::grad::Gradients;
use crate::params::Params;
use crate::{check, custom_ops};

/// The momentum optimizer together with the parameters it updates, its target.
///
/// A step is `m ← beta · m + gradient; parameter ← parameter - learning_rate · m`, with `m`
/// starting at zero. There is no dampening. A step of f32 parameters is computed in f32: there a
/// learning rate above 3.4e38 is infinite, and a beta within 3e-8 of 1 is 1.
///
/// # Source
/// `flax.optim.Momentum`; Polyak, *Some methods of speeding up the convergence of iteration
/// methods*, 1964. candle's `SGD` has no momentum.
#[derive(Debug)]
pub struct Momentum {
    target: Params,
    momentum: Params,
    learning_rate: f64,
    beta: f64,
}

impl Momentum {
    /// An optimizer for a copy of these parameters, with zero momentum.
    ///
    /// The originals stay unchanged, as in JAX.
    ///
    /// # Errors
    /// [`Error::Hyperparameter`] unless `learning_rate` is finite and not negative and
    /// `0 <= beta < 1`; [`Error::NoParams`] if there is nothing to train.
    pub fn new(params: &Params, learning_rate: f64, beta: f64) -> Result<Self> {
        check(params, learning_rate, beta)?;
        let (target, momentum) = (params.copy()?, params.zeros_like()?);
        Ok(Momentum { target, momentum, learning_rate, beta })
    }

    /// Restores an optimizer, as from a checkpoint.
    ///
    /// # Errors
    /// Those of [`new`](Momentum::new); [`Error::MissingParam`] and [`Error::ParamShape`] unless
    /// the momentum has the parameters' paths and shapes.
    pub fn from_parts(
        target: Params,
        momentum: Params,
        learning_rate: f64,
        beta: f64,
    ) -> Result<Self> {
        check(&target, learning_rate, beta)?;
        for (path, var) in target.iter() {
            let found = momentum.get(path).ok_or_else(|| missing(path, &momentum))?;
            if found.shape() != var.shape() {
                return Err(Error::ParamShape {
                    path: path.to_owned(),
                    expected: var.dims().to_vec(),
                    found: found.dims().to_vec(),
                });
            }
        }
        if let Some(extra) = momentum.paths().find(|path| target.get(path).is_none()) {
            return Err(missing(extra, &target));
        }
        Ok(Momentum { target, momentum, learning_rate, beta })
    }

    /// A deep copy: steps of one do not change the other.
    ///
    /// # Errors
    /// [`Error::Tensor`] or [`Error::Gpu`] if the device is out of memory.
    pub fn copy(&self) -> Result<Self> {
        let (target, momentum) = (self.target.copy()?, self.momentum.copy()?);
        Ok(Momentum { target, momentum, ..*self })
    }

    /// The current parameters.
    pub fn target(&self) -> &Params {
        &self.target
    }

    /// The decaying sum of past gradients, with the parameters' paths and shapes.
    pub fn momentum(&self) -> &Params {
        &self.momentum
    }

    /// The step size.
    pub fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    /// Changes the step size from the next step on, as for a schedule, or after training diverged.
    ///
    /// # Errors
    /// [`Error::Hyperparameter`] unless it is finite and not negative; it stays as it was.
    pub fn set_learning_rate(&mut self, learning_rate: f64) -> Result<()> {
        check::not_negative("learning_rate", learning_rate)?;
        self.learning_rate = learning_rate;
        Ok(())
    }

    /// The momentum coefficient: the share of the momentum that a step keeps.
    pub fn beta(&self) -> f64 {
        self.beta
    }

    /// Takes one optimization step, in place.
    ///
    /// # Errors
    /// [`Error::NoGradient`] if a parameter's gradient is missing; [`Error::Shape`],
    /// [`Error::DType`] and [`Error::Device`] unless it is like the parameter. All leave everything
    /// unchanged.
    ///
    /// # Examples
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use linen::{Gradients, Momentum, Params};
    ///
    /// let one = |value: f32| vec![("p".to_owned(), Tensor::new(value, &Device::Cpu).unwrap())];
    /// let mut optimizer = Momentum::new(&Params::try_from(one(1.0))?, 0.1, 0.2)?;
    /// optimizer.apply_gradient(&one(3.0).into_iter().collect::<Gradients>())?;
    /// // m = 0.2 · 0 + 3, p = 1 - 0.1 · 3
    /// assert_eq!(optimizer.target().get("p").unwrap().to_scalar::<f32>()?, 0.7);
    /// # Ok::<(), linen::Error>(())
    /// ```
    pub fn apply_gradient(&mut self, gradients: &Gradients) -> Result<()> {
        for (path, var) in self.target.iter() {
            let gradient = gradients.get(path).ok_or_else(|| Error::NoGradient(path.to_owned()))?;
            if gradient.shape() != var.shape() {
                let expected = format!("{:?}, that of {path:?}", var.dims());
                return Err(Error::shape("gradient", expected, gradient));
            }
            if gradient.dtype() != var.dtype() {
                return Err(Error::dtype("gradient", var.dtype().as_str(), gradient));
            }
            if !gradient.device().same_device(var.device()) {
                return Err(Error::Device {
                    op: "gradient",
                    one: device_name(gradient.device().location()),
                    other: device_name(var.device().location()),
                });
            }
        }
        for (path, gradient) in gradients.iter() {
            if let (Some(target), Some(momentum)) = (self.target.get(path), self.momentum.get(path))
            {
                custom_ops::scale_and_add(momentum, self.beta, gradient, 1.0)?;
                custom_ops::scale_and_add(target, 1.0, momentum, -self.learning_rate)?;
            }
        }
        Ok(())
    }
}

fn missing(path: &str, params: &Params) -> Error {
    Error::MissingParam { path: path.to_owned(), known: params.joined_paths() }
}

fn check(params: &Params, learning_rate: f64, beta: f64) -> Result<()> {
    check::not_negative("learning_rate", learning_rate)?;
    if !(0.0..1.0).contains(&beta) {
        return Err(Error::Hyperparameter {
            name: "beta",
            value: beta,
            allowed: "it must be at least 0 and below 1",
        });
    }
    if params.is_empty() {
        return Err(Error::NoParams);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn momentum_decays_to_zero_not_to_a_subnormal() {
        let one = |value: f32| ("p".to_owned(), Tensor::new(value, &Device::Cpu).unwrap());
        let params = vec![one(1.0)].try_into().unwrap();
        let mut optimizer = Momentum::new(&params, 0.1, 0.9).unwrap();
        for gradient in std::iter::once(1e-30).chain([0.0; 400]) {
            optimizer.apply_gradient(&[one(gradient)].into_iter().collect()).unwrap();
        }
        let momentum = optimizer.momentum().get("p").unwrap().to_scalar::<f32>().unwrap();
        // Not 5.6e-45, which rounds to itself when multiplied by 0.9.
        assert_eq!(momentum, 0.0);
    }
}
