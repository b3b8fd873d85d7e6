//! Optimizers: parameters, and the rule by which gradients update them.

use std::collections::{BTreeMap, HashSet};

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use cpu_kernels::UpdateRule;

use crate::error::{Error, Result, device_name, through_candle};
use crate::grad::Gradients;
use crate::params::Params;
use crate::rule::Rule;
use crate::{check, custom_ops};

/// The parameters to train, its target, with the rule that updates them and what that remembers.
///
/// One type serves every rule: [`Momentum`](crate::Momentum), [`Adam`](crate::Adam) and
/// [`AdamW`](crate::AdamW). A step of f32 parameters is computed in f32: there a learning rate or
/// weight decay above 3.4e38 is infinite, and a beta within 3e-8 of 1 is 1.
///
/// # Examples
/// ```
/// use linen::{Adam, AdamW, Momentum, Optimizer};
/// # use candle_core::{Device, Tensor};
/// # let one = vec![("p".to_owned(), Tensor::new(1f32, &Device::Cpu)?)];
/// # let params = linen::Params::try_from(one)?;
///
/// let optimizer = Optimizer::new(&params, 0.1, Momentum { beta: 0.9, nesterov: true })?;
/// let optimizer = Optimizer::new(&params, 0.001, Adam::default())?;
/// let rule = AdamW { weight_decay: 0.01, ..AdamW::default() };
/// let optimizer = Optimizer::new(&params, 0.001, rule)?;
/// # Ok::<(), linen::Error>(())
/// ```
///
/// It also serves training loops that are written for the optimizers of `candle_nn`: their
/// [`backward_step`](candle_nn::Optimizer::backward_step) computes gradients and takes a step.
///
/// ```
/// use candle_nn::Optimizer as _; // the trait, for its methods
/// use linen::{Adam, Optimizer};
/// # use candle_core::{Device, Tensor};
/// # let one = vec![("p".to_owned(), Tensor::new(1f32, &Device::Cpu)?)];
/// # let params = linen::Params::try_from(one)?;
///
/// let mut optimizer = Optimizer::new(&params, 0.1, Adam::default())?;
/// for _ in 0..50 {
///     let loss = optimizer.target().get("p").unwrap().sqr()?;
///     optimizer.backward_step(&loss)?;
/// }
/// assert!(optimizer.target().get("p").unwrap().to_scalar::<f32>()?.abs() < 0.1);
/// # Ok::<(), linen::Error>(())
/// ```
///
/// # Source
/// `flax.optim.Optimizer`, and as there `optim.Momentum(learning_rate, beta).create(params)`.
#[derive(Debug)]
pub struct Optimizer {
    target: Params,
    learning_rate: f64,
    rule: Rule,
    step_count: usize,
    moments: BTreeMap<&'static str, Params>,
}

impl Optimizer {
    /// An optimizer for a copy of these parameters, at its first step.
    ///
    /// The originals stay unchanged, as in JAX.
    ///
    /// # Errors
    /// [`Error::Hyperparameter`] unless `learning_rate` is finite and not negative, and the fields
    /// of the rule are in their ranges; [`Error::NoParams`] if there is nothing to train;
    /// [`Error::DType`] unless the parameters are floats.
    pub fn new(params: &Params, learning_rate: f64, rule: impl Into<Rule>) -> Result<Self> {
        Self::starting(params.copy()?, learning_rate, rule.into())
    }

    /// An optimizer at its first step, without a copy.
    fn starting(target: Params, learning_rate: f64, rule: Rule) -> Result<Self> {
        let zeros = |&name| Ok((name, target.zeros_like()?));
        let moments = rule.moment_names().iter().map(zeros).collect::<Result<_>>()?;
        Self::from_parts(target, learning_rate, rule, 0, moments)
    }

    /// Restores an optimizer, as from a checkpoint.
    ///
    /// # Errors
    /// Those of [`new`](Optimizer::new); [`Error::Moments`] unless the moments have the rule's
    /// [names](Rule::moment_names); [`Error::MissingParam`], [`Error::Shape`], [`Error::DType`] and
    /// [`Error::Device`] unless each has the parameters' paths, and is like the parameters.
    pub fn from_parts(
        target: Params,
        learning_rate: f64,
        rule: impl Into<Rule>,
        step_count: usize,
        moments: BTreeMap<&'static str, Params>,
    ) -> Result<Self> {
        let rule = rule.into();
        check::not_negative("learning_rate", learning_rate)?;
        rule.check()?;
        if target.is_empty() {
            return Err(Error::NoParams);
        }
        for (_, var) in target.iter() {
            check::float("parameter", var)?;
            rule.check_dtype(var.dtype())?;
        }
        if !moments.keys().eq(rule.moment_names()) {
            return Err(Error::Moments {
                expected: rule.moment_names().join(", "),
                found: moments.into_keys().collect::<Vec<_>>().join(", "),
            });
        }
        for (name, moment) in &moments {
            check_all_like(name, moment, &target)?;
        }
        Ok(Optimizer { target, learning_rate, rule, step_count, moments })
    }

    /// A deep copy: steps of one do not change the other.
    ///
    /// # Errors
    /// [`Error::Tensor`] or [`Error::Gpu`] if the device is out of memory.
    pub fn copy(&self) -> Result<Self> {
        let copied = self.moments.iter().map(|(&name, moment)| Ok((name, moment.copy()?)));
        Ok(Optimizer {
            target: self.target.copy()?,
            moments: copied.collect::<Result<_>>()?,
            ..*self
        })
    }

    /// The current parameters.
    pub fn target(&self) -> &Params {
        &self.target
    }

    /// The step size.
    pub fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    /// Changes the step size from the next step on, as for a schedule, or after training diverged.
    ///
    /// # Errors
    /// [`Error::Hyperparameter`] unless it is finite and not negative; it stays as it was.
    ///
    /// # Examples
    /// Before each step, a schedule gives the learning rate:
    ///
    /// ```
    /// use linen::{Adam, Optimizer, WarmupCosine};
    /// # use candle_core::{Device, Tensor};
    /// # let one = vec![("p".to_owned(), Tensor::new(1f32, &Device::Cpu)?)];
    /// # let params = linen::Params::try_from(one)?;
    ///
    /// let schedule = WarmupCosine::new(0.004, 100, 1000)?; // peak, warm-up steps, total steps
    /// let mut optimizer = Optimizer::new(&params, 0.0, Adam::default())?;
    /// optimizer.set_learning_rate(schedule.learning_rate(optimizer.step_count()))?;
    /// # Ok::<(), linen::Error>(())
    /// ```
    pub fn set_learning_rate(&mut self, learning_rate: f64) -> Result<()> {
        check::not_negative("learning_rate", learning_rate)?;
        self.learning_rate = learning_rate;
        Ok(())
    }

    /// The rule with its hyperparameters.
    pub fn rule(&self) -> Rule {
        self.rule
    }

    /// The number of steps taken.
    pub fn step_count(&self) -> usize {
        self.step_count
    }

    /// What the rule remembers of past gradients, by the rule's [names](Rule::moment_names): each
    /// has the parameters' paths and shapes.
    pub fn moments(&self) -> &BTreeMap<&'static str, Params> {
        &self.moments
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
    /// use linen::{Gradients, Momentum, Optimizer, Params};
    ///
    /// let one = |value: f32| vec![("p".to_owned(), Tensor::new(value, &Device::Cpu).unwrap())];
    /// let rule = Momentum { beta: 0.2, ..Momentum::default() };
    /// let mut optimizer = Optimizer::new(&Params::try_from(one(1.0))?, 0.1, rule)?;
    /// optimizer.apply_gradient(one(3.0).into_iter().collect::<Gradients>())?;
    /// // m = 0.2 · 0 + 3, p = 1 - 0.1 · 3
    /// assert_eq!(optimizer.target().get("p").unwrap().to_scalar::<f32>()?, 0.7);
    /// # Ok::<(), linen::Error>(())
    /// ```
    pub fn apply_gradient(&mut self, gradients: Gradients) -> Result<()> {
        let rule = self.next_update()?;
        let Some(gradients) = gradients.fuse(&self.target, |network, d_output| {
            let moments = self.moments.values().flat_map(Params::vars).collect::<Vec<_>>();
            network.update(rule, &moments.iter().collect::<Vec<_>>(), d_output)
        })?
        else {
            self.count_step();
            return Ok(());
        };
        self.target.paths().try_for_each(|path| gradients.get(path).map(drop))?;
        self.update(|path, _| gradients.get(path).ok())
    }

    /// Takes a step for the parameters that have a gradient.
    fn update<'a>(&mut self, gradient: impl Fn(&str, &Var) -> Option<&'a Tensor>) -> Result<()> {
        let rule = self.next_update()?;
        let moments = self.moments.values().map(Params::vars).collect::<Vec<_>>();
        let own = self.target.vars().into_iter().chain(moments.iter().flatten().cloned());
        let own = own.map(|var| custom_ops::storage_address(&var)).collect::<HashSet<_>>();
        // All that can fail comes before the first change.
        let mut steps = Vec::new();
        for (index, (path, var)) in self.target.iter().enumerate() {
            let Some(gradient) = gradient(path, var) else { continue };
            check_like("gradient", path, gradient, var)?;
            // A gradient that shares the memory of a parameter would change with it.
            let is_own = own.contains(&custom_ops::storage_address(gradient));
            let gradient = if is_own { &gradient.copy()? } else { gradient };
            steps.push((index, var, custom_ops::contiguous(gradient)?));
        }
        for (index, var, gradient) in steps {
            let moments = moments.iter().map(|moment| &moment[index]).collect::<Vec<_>>();
            custom_ops::update(rule, var, &moments, &gradient)?;
        }
        self.count_step();
        Ok(())
    }

    /// The update of the next step.
    ///
    /// # Errors
    /// [`Error::Hyperparameter`] for a learning rate that only candle's trait can set.
    pub(crate) fn next_update(&self) -> Result<UpdateRule> {
        check::not_negative("learning_rate", self.learning_rate)?;
        Ok(self.rule.update(self.learning_rate, self.step_count.saturating_add(1)))
    }

    /// Counts a step that has been taken.
    pub(crate) fn count_step(&mut self) {
        self.step_count = self.step_count.saturating_add(1);
    }
}

/// For the training loops of candle.
///
/// The trait's `new` has variables without names, so they are named by position: `0000`, `0001`
/// and so on. Unlike [`Optimizer::new`] it trains the given variables themselves, not a copy. As
/// with candle's optimizers, a step leaves a variable without a gradient as it is. The trait's
/// `set_learning_rate` cannot fail: a step by a learning rate that is negative or not finite is
/// refused instead.
impl candle_nn::Optimizer for Optimizer {
    type Config = (f64, Rule);

    fn new(vars: Vec<Var>, (learning_rate, rule): Self::Config) -> candle_core::Result<Self> {
        let named = vars.into_iter().enumerate().map(|(index, var)| (format!("{index:04}"), var));
        Self::starting(Params::from_vars(named), learning_rate, rule).map_err(through_candle)
    }

    fn step(&mut self, grads: &GradStore) -> candle_core::Result<()> {
        self.update(|_, var| grads.get(var)).map_err(through_candle)
    }

    fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    fn set_learning_rate(&mut self, learning_rate: f64) {
        self.learning_rate = learning_rate;
    }
}

/// Checks that a collection has the same paths as another, and tensors like its.
pub(crate) fn check_all_like(what: &'static str, found: &Params, expected: &Params) -> Result<()> {
    for (params, others) in [(expected, found), (found, expected)] {
        let known = others.paths().collect::<HashSet<_>>();
        if let Some(path) = params.paths().find(|path| !known.contains(path)) {
            return Err(Error::MissingParam {
                path: path.to_owned(),
                known: others.joined_paths(),
            });
        }
    }
    let mut pairs = found.shapes().zip(expected.shapes());
    pairs.try_for_each(|((path, tensor), (_, var))| check_like(what, path, tensor, var))
}

/// Checks that a tensor has the shape, the element type and the device of a parameter.
fn check_like(what: &'static str, path: &str, tensor: &Tensor, var: &Var) -> Result<()> {
    if tensor.shape() != var.shape() {
        let expected = format!("{:?}, that of {path:?}", var.dims());
        return Err(Error::shape(what, expected, tensor));
    }
    if tensor.dtype() != var.dtype() {
        return Err(Error::dtype(what, var.dtype().as_str(), tensor));
    }
    if !tensor.device().same_device(var.device()) {
        return Err(Error::Device {
            op: what,
            one: device_name(tensor.device().location()),
            other: device_name(var.device().location()),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use candle_core::Device;

    use super::*;
    use crate::lazy::{self, Lazy};

    struct Waiting(AtomicBool);

    impl Lazy for Waiting {
        fn settle(&self) {
            self.0.store(false, Ordering::Relaxed);
        }
    }

    /// Otherwise no update would be fused with the backward pass.
    #[test]
    fn gradients_go_on_waiting_while_parameters_are_compared() {
        let one = vec![("p".to_owned(), Tensor::new(1f32, &Device::Cpu).unwrap())];
        let params = Params::try_from(one).unwrap();
        let waiting = Arc::new(Waiting(true.into()));
        lazy::register(&waiting);
        check_all_like("parameter", &params, &params).unwrap();
        assert!(waiting.0.load(Ordering::Relaxed));
        assert_eq!(params.iter().count(), 1); // now somebody may look at the values
        assert!(!waiting.0.load(Ordering::Relaxed));
    }
}
