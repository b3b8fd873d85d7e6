//! Gradients with respect to parameters.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::no_grad::with_tracking;
use crate::params::Params;

/// The gradients of a scalar with respect to parameters, by the parameters' paths.
#[derive(Debug, Clone, Default)]
pub struct Gradients(BTreeMap<String, Tensor>);

impl Gradients {
    /// The gradient for a parameter, of that parameter's shape.
    pub fn get(&self, path: &str) -> Option<&Tensor> {
        self.0.get(path)
    }

    /// All paths and gradients, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(path, grad)| (path.as_str(), grad))
    }
}

impl FromIterator<(String, Tensor)> for Gradients {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(iter: I) -> Self {
        Gradients(iter.into_iter().collect())
    }
}

/// Evaluates a function of the parameters and its gradient.
///
/// The function returns the scalar to differentiate and auxiliary data; the result is
/// `((value, aux), gradients)`.
///
/// # Errors
/// Those of the function; [`Error::Shape`] unless the value is a scalar; [`Error::Tensor`] if an
/// operation in it has no derivative. The gradient of a parameter on which the value does not
/// depend is zero.
///
/// # Source
/// `jax.value_and_grad(loss_fn, has_aux=True)`. The derivatives are candle's.
pub fn value_and_grad<T>(
    loss_fn: impl FnOnce(&Params) -> Result<(Tensor, T)>,
    params: &Params,
) -> Result<((Tensor, T), Gradients)> {
    let (loss, aux) = with_tracking(true, || loss_fn(params))?;
    if loss.rank() > 0 {
        let scalar = "[], a scalar: take the mean over the batch";
        return Err(Error::shape("loss to differentiate", scalar, &loss));
    }
    let grads = loss.backward()?;
    let gradients = params.iter().map(|(path, var)| {
        let grad = grads.get(var).cloned().map_or_else(|| var.zeros_like(), Ok)?;
        Ok((path.to_owned(), grad))
    });
    let gradients = gradients.collect::<Result<Gradients>>()?;
    Ok(((loss.detach(), aux), gradients))
}
