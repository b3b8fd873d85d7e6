//! Gradients with respect to parameters.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use crate::error::{Error, Result};
use crate::jit::{Forward, outer_networks, record};
use crate::lazy::{self, Lazy};
use crate::no_grad::with_tracking;
use crate::params::Params;

/// The gradients of a scalar with respect to parameters, by the parameters' paths.
///
/// Those of a network that a [`Jit`](crate::Jit) has compiled wait until something looks at them.
/// If nothing does before [`apply_gradient`](crate::Optimizer::apply_gradient) takes them, they
/// are never stored: the update is fused into the backward pass.
#[derive(Clone)]
pub struct Gradients(State);

#[derive(Clone)]
enum State {
    Computed(BTreeMap<String, Tensor>),
    Waiting(Arc<Waiting>),
}

/// The gradients of a compiled network with respect to its parameters.
struct Waiting {
    network: Forward,
    /// The gradient with respect to its result.
    d_output: Vec<f32>,
    /// `None` if it was too late.
    computed: OnceLock<Option<BTreeMap<String, Tensor>>>,
}

impl Gradients {
    /// The gradient for a parameter, of that parameter's shape.
    ///
    /// # Errors
    /// [`Error::NoGradient`] if there is none; [`Error::StaleGradients`] if it is too late to
    /// compute it.
    pub fn get(&self, path: &str) -> Result<&Tensor> {
        self.computed()?.get(path).ok_or_else(|| Error::NoGradient(path.to_owned()))
    }

    /// All paths and gradients, in alphabetical order.
    ///
    /// # Errors
    /// [`Error::StaleGradients`] if it is too late to compute them.
    pub fn iter(&self) -> Result<impl Iterator<Item = (&str, &Tensor)>> {
        Ok(self.computed()?.iter().map(|(path, grad)| (path.as_str(), grad)))
    }

    fn computed(&self) -> Result<&BTreeMap<String, Tensor>> {
        match &self.0 {
            State::Computed(gradients) => Ok(gradients),
            State::Waiting(waiting) => waiting.computed().ok_or(Error::StaleGradients),
        }
    }

    /// Has `update` take the gradients where they come about, given the compiled network and the
    /// gradient with respect to its result. Returns the gradients if that cannot be: they have been
    /// computed, somebody else has them as well, or they are not those of `params`.
    pub(crate) fn fuse(
        self,
        params: &Params,
        update: impl FnOnce(&Forward, &[f32]) -> Result<()>,
    ) -> Result<Option<Self>> {
        let State::Waiting(waiting) = self.0 else { return Ok(Some(self)) };
        // From here on nothing settles them when the parameters are looked at.
        match Arc::try_unwrap(waiting) {
            Ok(Waiting { network, d_output, computed })
                if computed.get().is_none() && network.is_of(params) =>
            {
                update(&network, &d_output).map(|()| None)
            }
            Ok(waiting) => Ok(Some(Self::waiting(waiting))),
            Err(waiting) => Ok(Some(Gradients(State::Waiting(waiting)))),
        }
    }

    fn waiting(waiting: Waiting) -> Self {
        let waiting = Arc::new(waiting);
        lazy::register(&waiting);
        Gradients(State::Waiting(waiting))
    }
}

impl Waiting {
    fn computed(&self) -> Option<&BTreeMap<String, Tensor>> {
        let compute = || self.network.gradients(&self.d_output).ok();
        self.computed.get_or_init(compute).as_ref()
    }
}

impl Lazy for Waiting {
    fn settle(&self) {
        self.computed();
    }
}

impl Default for Gradients {
    fn default() -> Self {
        Gradients(State::Computed(BTreeMap::new()))
    }
}

impl FromIterator<(String, Tensor)> for Gradients {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(iter: I) -> Self {
        Gradients(State::Computed(iter.into_iter().collect()))
    }
}

impl<const N: usize> From<[(&str, Tensor); N]> for Gradients {
    fn from(gradients: [(&str, Tensor); N]) -> Self {
        gradients.map(|(path, gradient)| (path.to_owned(), gradient)).into_iter().collect()
    }
}

/// One line per gradient: path and shape.
impl fmt::Debug for Gradients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shapes = |(path, grad): (&String, &Tensor)| (path.clone(), grad.dims().to_vec());
        match self.computed() {
            Ok(gradients) => f.debug_map().entries(gradients.iter().map(shapes)).finish(),
            Err(error) => error.fmt(f),
        }
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
    let ((loss, aux), networks) = record(params, || with_tracking(true, || loss_fn(params)))?;
    if loss.rank() > 0 {
        let scalar = "[], a scalar: take the mean over the batch";
        return Err(Error::shape("loss to differentiate", scalar, &loss));
    }
    let grads = loss.backward()?;
    let gradients = gradients(params, networks, &grads)?;
    Ok(((loss.detach(), aux), gradients))
}

/// The gradients, given candle's with respect to the parameters themselves and to the results of
/// compiled networks.
fn gradients(params: &Params, networks: Vec<Forward>, grads: &GradStore) -> Result<Gradients> {
    let mut waiting = Vec::new();
    for network in networks {
        if let Some(d_output) = grads.get(&network.output) {
            let d_output = d_output.flatten_all()?.to_vec1()?;
            waiting.push(Waiting { network, d_output, computed: OnceLock::new() });
        }
    }
    let is_direct = params.iter().any(|(_, var)| grads.get(var).is_some());
    if waiting.len() == 1
        && !is_direct
        && let Some(waiting) = waiting.pop_if(|waiting| waiting.network.is_of(params))
    {
        return Ok(Gradients::waiting(waiting));
    }
    let mut of_networks = waiting
        .iter()
        .map(|Waiting { network, d_output, .. }| network.gradients_of_vars(d_output))
        .collect::<Result<Vec<_>>>()?;
    // The loss of a differentiation within another may use what the outer one has evaluated.
    outer_networks(|networks| {
        for network in networks {
            if let Some(d_output) = grads.get(&network.output) {
                let d_output = d_output.flatten_all()?.to_vec1::<f32>()?;
                of_networks.push(network.gradients_of_vars(&d_output)?);
            }
        }
        Ok::<(), Error>(())
    })?;
    let total = |(path, var): (&str, &Var)| {
        let direct = grads.get(var).into_iter();
        let of_networks = of_networks.iter().flatten().filter(|(id, _)| *id == var.id());
        let mut parts = direct.chain(of_networks.map(|(_, grad)| grad));
        let first = parts.next().map_or_else(|| var.zeros_like(), |grad| Ok(grad.clone()))?;
        Ok((path.to_owned(), parts.try_fold(first, |sum, grad| sum + grad)?))
    };
    params.iter().map(total).collect()
}
