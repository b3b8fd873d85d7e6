//! Runs networks by a plan, the counterpart of the tutorial's `@jax.jit`.
//!
//! The function that a [`Jit`] runs is the reader's own and runs every time: its loss, its update,
//! whatever else it does. Only the networks in it do not: [`apply`](crate::Module::apply) replays a
//! plan there, with every buffer allocated once, and bias, batch norm, ReLU, pooling and dropout
//! fused into the layer before them. Under [`value_and_grad`](crate::value_and_grad) the result of
//! such a network is a leaf of candle's graph. Its gradient is all that the plan needs to go
//! backward, and the update of the parameters is fused into that.

use std::any::TypeId;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Tensor, TensorId, Var};
use cpu_kernels::{GraphProgram, KernelError, Mode, Program, UpdateRule, dropout_factors};
use jax_random::{Key, bernoulli_from};

use crate::custom_ops::{self, DROPOUT_LANES};
use crate::error::{Error, Result};
use crate::layers::updated_statistic;
use crate::no_grad::is_tracking;
use crate::params::Params;
use crate::plan::Plan;
use crate::scope::fold_in_path;
use crate::trace::{is_tracing, trace};

thread_local! {
    /// Whether a network is being traced for a plan.
    static IS_PLANNING: Cell<bool> = const { Cell::new(false) };
    /// The plans of the running [`Jit`], if there is one.
    static PLANS: RefCell<Option<Plans>> = const { RefCell::new(None) };
    /// The plans of [`jitted`], without a [`Jit`] of one's own.
    static OF_THREAD: RefCell<Jit> = RefCell::default();
    /// Whether [`disable_jit`] runs.
    static IS_DISABLED: Cell<bool> = const { Cell::new(false) };
    /// What is differentiated at the moment, the innermost last.
    static RECORDINGS: RefCell<Vec<Recording>> = const { RefCell::new(Vec::new()) };
}

/// Runs functions with their networks compiled, once per network, input shape, and way to evaluate.
///
/// As with `jax.jit`, a network may depend on shapes but not on values: the plan of its first
/// evaluation is replayed. To make the plan, and to see whether its fields or a new definition in a
/// notebook's cell have changed it, the network is also called with an all-zero input, of the same
/// shape or of a single example.
/// Networks that cannot be compiled run as without a `Jit`; `Display` shows the plans, and why
/// there is none.
///
/// Gradients come from [`value_and_grad`](crate::value_and_grad): to candle's own `backward`, a
/// result that was computed within it is a constant. Compiled are [`apply`](crate::Module::apply)
/// and [`apply_train`](crate::Module::apply_train) within it, and `apply` and
/// [`apply_eval`](crate::Module::apply_eval) under [`no_grad`](crate::no_grad).
///
/// # Examples
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// use linen::{
///     Jit, Key, Module, Momentum, Optimizer, Params, Result, Scope, flatten, log_softmax,
///     value_and_grad,
/// };
///
/// struct Net;
///
/// impl Module for Net {
///     fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
///         log_softmax(nn.dense(10, flatten(x)))
///     }
/// }
///
/// /// A step toward the class 0, with a penalty of one's own.
/// fn train_step(optimizer: &mut Optimizer, image: &Tensor) -> Result<f32> {
///     let loss_fn = |params: &Params| {
///         let log_probs = Net.apply(params, image)?;
///         let penalty = (log_probs.sqr()?.mean_all()? * 0.01)?;
///         Ok(((log_probs.narrow(1, 0, 1)?.mean_all()?.neg()? + penalty)?, ()))
///     };
///     let ((loss, ()), grad) = value_and_grad(loss_fn, optimizer.target())?;
///     optimizer.apply_gradient(grad)?;
///     Ok(loss.to_scalar()?)
/// }
///
/// let image = Tensor::ones((32, 28, 28, 1), DType::F32, &Device::Cpu)?;
/// let params = Net.init(Key::new(0), &image)?;
/// let mut optimizer = Optimizer::new(&params, 0.001, Momentum::default())?;
/// let mut jit = Jit::new();
/// let first = jit.call(|| train_step(&mut optimizer, &image))?;
/// let second = jit.call(|| train_step(&mut optimizer, &image))?;
/// assert!(second < first);
/// println!("{jit}"); // the plan
/// # Ok::<(), linen::Error>(())
/// ```
///
/// # Source
/// `jax.jit`.
#[derive(Default)]
pub struct Jit {
    plans: Plans,
}

/// The latest plans, the oldest first.
#[derive(Default)]
struct Plans(Vec<Planned>);

/// The most plans of a [`Jit`]: each has memory for a batch.
const MAX_PLANS: usize = 8;

/// The plan of a network for an input shape, or why there is none.
struct Planned {
    network: Identity,
    /// The addresses of the network's code that has been seen to follow the plan.
    codes: Vec<usize>,
    kind: Kind,
    input_shape: Vec<usize>,
    plan: Result<Arc<Plan>, String>,
    /// Programs that follow the plan: the first for inference, the others for networks whose
    /// gradient is still to be computed.
    programs: Vec<Arc<Running>>,
    #[cfg(feature = "cuda")]
    on_gpu: Option<crate::cuda::Program>,
}

/// A network's type and code. Two types may have the same name, such as those of two closures; and
/// one type may have several codes: in a notebook each cell is compiled on its own, with all that
/// was defined before, and a cell that defines a network anew gives the same type another code.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    pub(crate) id: TypeId,
    pub(crate) name: &'static str,
    pub(crate) size_of_fields: usize,
    /// The address of [`Module::call`](crate::Module::call).
    pub(crate) code: usize,
}

/// The kinds of an [`Evaluation`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Apply,
    Evaluate,
    Train,
}

impl Kind {
    fn suffix(self) -> &'static str {
        match self {
            Kind::Apply => "",
            Kind::Evaluate => " in evaluation",
            Kind::Train => " in training",
        }
    }
}

/// A program that follows a plan.
struct Running {
    plan: Arc<Plan>,
    state: Mutex<State>,
}

/// A program with its buffers, and how often it has run.
struct State {
    program: Compiled,
    run: u64,
}

/// A plain chain, or any network.
enum Compiled {
    Chain(Box<Program>),
    Graph(Box<GraphProgram>),
}

/// How a network is evaluated.
pub(crate) enum Evaluation<'a> {
    /// It is the same in training and in evaluation.
    Apply,
    /// Batch norm uses these running statistics.
    Evaluate { batch_stats: &'a Params },
    /// Batch norm uses the batch's statistics, and takes them into the running ones in `updates`.
    Train { batch_stats: &'a Params, dropout_key: Key, updates: &'a mut Params },
}

/// A function that is differentiated.
struct Recording {
    params: HashSet<TensorId>,
    networks: Vec<Forward>,
}

/// A network that has been evaluated and can be differentiated.
pub(crate) struct Forward {
    running: Arc<Running>,
    /// The number of this run of the program.
    run: u64,
    vars: Vec<Var>,
    /// Samples of the variables' values.
    samples: Vec<u32>,
    /// The network's result, a leaf of candle's graph.
    pub(crate) output: Var,
}

impl Jit {
    /// Without plans: each is made when it is first needed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `f`, with the networks in it compiled.
    pub fn call<T>(&mut self, f: impl FnOnce() -> T) -> T {
        // Gives the plans back when dropped, also after a panic.
        struct Return<'a>(&'a mut Plans, Option<Plans>);
        impl Drop for Return<'_> {
            fn drop(&mut self) {
                *self.0 = PLANS.replace(self.1.take()).unwrap_or_default();
            }
        }
        let outer = PLANS.replace(Some(std::mem::take(&mut self.plans)));
        let _return = Return(&mut self.plans, outer);
        f()
    }

    /// Whether all networks that have run are compiled, and at least one has.
    pub fn is_compiled(&self) -> bool {
        let Plans(plans) = &self.plans;
        !plans.is_empty() && plans.iter().all(|planned| planned.plan.is_ok())
    }
}

/// Runs a function with its networks compiled, as [`Jit::call`] does, with plans that the thread
/// keeps. Within a [`Jit`], its plans are used; within [`disable_jit`], none.
///
/// # Source
/// What `@jax.jit` makes of the function below it.
pub fn jitted<T>(f: impl FnOnce() -> T) -> T {
    if IS_DISABLED.get() || PLANS.with_borrow(Option::is_some) {
        return f();
    }
    let mut jit = OF_THREAD.take();
    let result = jit.call(f);
    OF_THREAD.set(jit);
    result
}

/// Runs a function with nothing in it compiled, layer by layer, to compare or to find a fault.
///
/// # Source
/// `jax.disable_jit`.
pub fn disable_jit<T>(f: impl FnOnce() -> T) -> T {
    // Restores what was, also after a panic.
    struct Restore(bool, Option<Plans>);
    impl Drop for Restore {
        fn drop(&mut self) {
            IS_DISABLED.set(self.0);
            PLANS.set(self.1.take());
        }
    }
    let _restore = Restore(IS_DISABLED.replace(true), PLANS.take());
    f()
}

/// The plans, one fused group of layers per line, or why there is none.
impl fmt::Display for Jit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plans(plans) = &self.plans;
        if plans.is_empty() {
            return f.write_str("nothing has run yet");
        }
        for (index, Planned { network, kind, input_shape, plan, .. }) in plans.iter().enumerate() {
            let line = if index > 0 { "\n" } else { "" };
            let network = format!("{}{}", short_name(network.name), kind.suffix());
            match plan {
                Ok(plan) => write!(f, "{line}{network}, {plan}")?,
                Err(reason) => {
                    write!(f, "{line}{network}, not compiled for {input_shape:?}: {reason}")?
                }
            }
        }
        Ok(())
    }
}

/// Evaluates a network by a plan if a [`Jit`] runs and has one.
pub(crate) fn apply(
    identity: Identity,
    params: &Params,
    evaluation: Evaluation,
    x: &Tensor,
    network: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Option<Tensor>> {
    // A gradient with respect to the input needs candle's graph.
    let is_constant = !x.track_op();
    let is_recorded = is_tracking() && is_recorded(params);
    let is_planned = match evaluation {
        Evaluation::Apply => is_recorded || !is_tracking(),
        Evaluation::Evaluate { .. } => !is_tracking(),
        Evaluation::Train { .. } => is_recorded,
    };
    let is_compiled = PLANS.with_borrow(Option::is_some) && !is_tracing() && !IS_PLANNING.get();
    if !is_constant || !is_compiled || !is_planned {
        return Ok(None);
    }
    forward(identity, params, evaluation, x, is_recorded, network)
}

/// Runs a network without a plan.
pub(crate) fn plain<T>(network: impl FnOnce() -> Result<T>) -> Result<T> {
    if IS_PLANNING.get() {
        // A network within the network, with parameters of its own: no part of the plan.
        return trace(network).map(|(y, _)| y);
    }
    network()
}

/// Whether the parameters are differentiated at the moment. Within a differentiation within another
/// nothing is compiled: the outer one may need the graph, too.
fn is_recorded(params: &Params) -> bool {
    RECORDINGS.with_borrow(|recordings| {
        let [recording] = &recordings[..] else { return false };
        params.iter().all(|(_, var)| recording.params.contains(&var.id()))
    })
}

fn forward(
    identity: Identity,
    params: &Params,
    evaluation: Evaluation,
    x: &Tensor,
    is_training: bool,
    network: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Option<Tensor>> {
    if params.device().is_cuda() {
        return Ok(None); // only whole steps are compiled there, see `gpu_step`
    }
    // While the network is traced, no plans are in place.
    let Some(mut plans) = PLANS.take() else { return Ok(None) };
    let planned = plans.find((identity, evaluation.kind()), params, x, network);
    let program = planned.and_then(|planned| planned.program(is_training));
    PLANS.set(Some(plans));
    let running = match program {
        Ok(Some(running)) => running,
        Err(error @ Error::Memory { .. }) if is_training => return Err(error),
        // What is wrong with these parameters or this input, the network itself says.
        Ok(None) | Err(_) => return Ok(None),
    };
    let plan = &*running.plan;
    let fits = plan.fits(x) && x.device().is_cpu();
    let (Some(vars), true) = (plan.vars(params), fits) else { return Ok(None) };

    let mut state = running.lock();
    let mut output = vec![0.0; plan.output_shape.iter().product()];
    let storages = vars.iter().map(|var| var.storage_and_layout()).collect::<Vec<_>>();
    let slices = storages.iter().map(|(storage, layout)| custom_ops::f32_slice(storage, layout));
    let slices = slices.collect::<Result<Vec<_>>>()?;
    let (storage, layout) = x.storage_and_layout();
    let input = custom_ops::f32_slice(&storage, layout)?;
    state.run += 1;
    let is_done =
        state.program.forward(plan, evaluation, is_training, &slices, input, &mut output)?;
    if !is_done {
        return Ok(None);
    }
    let output = Tensor::from_vec(output, &plan.output_shape[..], x.device())?;
    if !is_training {
        return Ok(Some(output));
    }
    let samples = slices.iter().flat_map(|slice| samples(slice)).collect();
    let (run, output) = (state.run, Var::from_tensor(&output)?);
    let vars = vars.into_iter().cloned().collect();
    let result = output.as_tensor().clone();
    drop(state);
    let network = Forward { running, run, vars, samples, output };
    RECORDINGS.with_borrow_mut(|recordings| {
        if let Some(recording) = recordings.last_mut() {
            recording.networks.push(network);
        }
    });
    Ok(Some(result))
}

impl Evaluation<'_> {
    fn kind(&self) -> Kind {
        match self {
            Evaluation::Apply => Kind::Apply,
            Evaluation::Evaluate { .. } => Kind::Evaluate,
            Evaluation::Train { .. } => Kind::Train,
        }
    }
}

impl Compiled {
    fn new(plan: &Plan) -> Result<Self> {
        Ok(match plan.chain() {
            Some((shape, layers)) => Compiled::Chain(Box::new(Program::new(shape, &layers)?)),
            None => {
                let program = GraphProgram::new(&plan.input_shape, &plan.nodes)?;
                Compiled::Graph(Box::new(program))
            }
        })
    }

    /// Computes the output; false if the statistics are not those of the network.
    fn forward(
        &mut self,
        plan: &Plan,
        evaluation: Evaluation,
        is_training: bool,
        params: &[&[f32]],
        input: &[f32],
        output: &mut [f32],
    ) -> Result<bool> {
        let program = match self {
            Compiled::Chain(program) if is_training => {
                program.forward(params, input, output)?;
                return Ok(true);
            }
            Compiled::Chain(program) => {
                program.log_probabilities(params, input, output)?;
                return Ok(true);
            }
            Compiled::Graph(program) => program,
        };
        let running = match &evaluation {
            Evaluation::Apply => Vec::new(),
            Evaluation::Evaluate { batch_stats } | Evaluation::Train { batch_stats, .. } => {
                match plan.statistics(batch_stats) {
                    Some(running) => running,
                    None => return Ok(false),
                }
            }
        };
        let key = match &evaluation {
            Evaluation::Train { dropout_key, .. } => Some(*dropout_key),
            _ => None,
        };
        let dropouts = plan.dropouts.iter().filter_map(|(path, rate)| {
            let path = path.split('/').map(str::to_owned).collect::<Vec<_>>();
            Some((fold_in_path(key?, &path, 1), (1.0 - rate) as f32))
        });
        let dropouts = dropouts.collect::<Vec<_>>();
        let dropout = |index: usize, first: usize, factors: &mut [f32]| {
            let (key, keep_prob) = dropouts[index];
            dropout_factors(
                keep_prob,
                first,
                #[inline(always)]
                |index| bernoulli_from::<DROPOUT_LANES>(key, index, keep_prob),
                factors,
            );
        };
        let mode = match is_training {
            true => Mode::Train { dropout: &dropout },
            false => Mode::Evaluate { running: &running },
        };
        match program.forward(params, mode, input, output) {
            Err(KernelError::Length { .. }) => return Ok(false),
            result => result?,
        }
        if let Evaluation::Train { updates, .. } = evaluation {
            let batch = program.statistics().into_iter();
            for (path, (running, batch)) in plan.norms.iter().zip(running.iter().zip(batch)) {
                let statistics =
                    [("mean", &running.mean, &batch.mean), ("var", &running.var, &batch.var)];
                for (name, running, batch) in statistics {
                    let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu);
                    let value = updated_statistic(&tensor(running)?, &tensor(batch)?)?;
                    updates.insert(format!("{path}/{name}"), &value)?;
                }
            }
        }
        Ok(true)
    }

    fn gradients(
        &mut self,
        params: &mut [&mut [f32]],
        gradients: &mut [&mut [f32]],
        d_output: &[f32],
    ) -> Result<(), KernelError> {
        match self {
            Compiled::Chain(program) => program.gradients(params, gradients, d_output),
            Compiled::Graph(program) => program.gradients(params, gradients, d_output),
        }
    }

    fn backward_and_update(
        &mut self,
        params: &mut [&mut [f32]],
        moments: &mut [&mut [f32]],
        rule: UpdateRule,
        d_output: &[f32],
    ) -> Result<(), KernelError> {
        match self {
            Compiled::Chain(program) => {
                program.backward_and_update(params, moments, rule, d_output)
            }
            Compiled::Graph(program) => {
                program.backward_and_update(params, moments, rule, d_output)
            }
        }
    }
}

impl Plans {
    /// The plan of a network for inputs like `x`, made now if there is none for these parameters
    /// and the values of its fields.
    fn find(
        &mut self,
        (identity, kind): (Identity, Kind),
        params: &Params,
        x: &Tensor,
        network: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<&mut Planned> {
        let is_alike = |planned: &Planned| {
            let Identity { id, size_of_fields, .. } = planned.network;
            (id, size_of_fields, planned.kind) == (identity.id, identity.size_of_fields, kind)
                && planned.input_shape == x.dims()
        };
        for index in 0..self.0.len() {
            let planned = &mut self.0[index];
            if is_alike(planned) && planned.is_for(identity.code, &network, params)? {
                return Ok(&mut self.0[index]);
            }
        }
        // What only other code has followed is of a network that has been defined anew.
        self.0.retain(|planned| !is_alike(planned) || planned.codes.contains(&identity.code));
        let planned = Planned::new((identity, kind), params, x, network)?;
        if self.0.len() == MAX_PLANS {
            self.0.remove(0);
        }
        self.0.push(planned);
        let last = self.0.len() - 1;
        Ok(&mut self.0[last])
    }
}

impl Planned {
    fn new(
        (network_type, kind): (Identity, Kind),
        params: &Params,
        x: &Tensor,
        network: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Self> {
        let input_shape = x.dims().to_vec();
        let plan = planning(|| Plan::trace(network, params, &input_shape))?;
        #[cfg(feature = "cuda")]
        let mut on_gpu = None;
        let plan = plan.and_then(|plan| {
            match params.device() {
                Device::Cpu => plan.check().map_err(|error| error.to_string())?,
                #[cfg(feature = "cuda")]
                Device::Cuda(device) => {
                    let (shape, layers) = plan.chain().ok_or(
                        "on a GPU only chains of convolutions, pooling and dense layers are",
                    )?;
                    let program = crate::cuda::Program::new(shape, &layers, device)?;
                    on_gpu = Some(program);
                }
                _ => {
                    return Err("there are no kernels for the GPU that holds the parameters".into());
                }
            }
            Ok(Arc::new(plan))
        });
        Ok(Planned {
            network: network_type,
            codes: vec![network_type.code],
            kind,
            input_shape,
            plan,
            programs: Vec::new(),
            #[cfg(feature = "cuda")]
            on_gpu,
        })
    }

    /// Whether the plan is for these parameters, and neither the network's code nor its fields have
    /// changed it. Where nothing could be planned, nothing is tried again with the same code.
    fn is_for(
        &mut self,
        code: usize,
        network: impl Fn(&Tensor) -> Result<Tensor>,
        params: &Params,
    ) -> Result<bool> {
        let is_known = self.codes.contains(&code);
        let Ok(plan) = &self.plan else { return Ok(is_known) };
        if plan.vars(params).is_none() {
            return Ok(false);
        }
        if is_known && self.network.size_of_fields == 0 {
            return Ok(true);
        }
        let is_same = planning(|| plan.is_still_of(network, params))?;
        if is_same && !is_known {
            self.codes.push(code);
        }
        Ok(is_same)
    }

    /// A program that follows the plan, and whose latest result is not needed any more.
    fn program(&mut self, is_training: bool) -> Result<Option<Arc<Running>>> {
        let Ok(plan) = &self.plan else { return Ok(None) };
        let in_use = RECORDINGS.with_borrow(|recordings| {
            let networks = recordings.iter().flat_map(|recording| &recording.networks);
            networks.filter(|network| Arc::ptr_eq(&network.running.plan, plan)).count()
        });
        let index = if is_training { 1 + in_use } else { 0 };
        while self.programs.len() <= index {
            let program = Compiled::new(plan)?;
            let state = Mutex::new(State { program, run: 0 });
            self.programs.push(Arc::new(Running { plan: plan.clone(), state }));
        }
        Ok(Some(self.programs[index].clone()))
    }
}

/// Runs `f`, which traces a network.
fn planning<T>(f: impl FnOnce() -> T) -> T {
    // Also after a panic.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            IS_PLANNING.set(false);
        }
    }
    IS_PLANNING.set(true);
    let _end = End;
    f()
}

/// Runs a function that is to be differentiated with respect to `params`; also returns the networks
/// in it that were evaluated by a plan.
pub(crate) fn record<T>(
    params: &Params,
    f: impl FnOnce() -> Result<T>,
) -> Result<(T, Vec<Forward>)> {
    // Ends the recording when dropped, also after a panic.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            RECORDINGS.with_borrow_mut(|recordings| recordings.pop());
        }
    }
    let params = params.iter().map(|(_, var)| var.id()).collect();
    let recording = Recording { params, networks: Vec::new() };
    RECORDINGS.with_borrow_mut(|recordings| recordings.push(recording));
    let _end = End;
    let result = f()?;
    let networks = RECORDINGS.with_borrow_mut(|recordings| {
        recordings.last_mut().map(|recording| std::mem::take(&mut recording.networks))
    });
    Ok((result, networks.unwrap_or_default()))
}

/// Calls `f` with the networks of the differentiations around, in this thread.
pub(crate) fn outer_networks<T>(f: impl FnOnce(&mut dyn Iterator<Item = &Forward>) -> T) -> T {
    RECORDINGS.with_borrow(|recordings| {
        f(&mut recordings.iter().flat_map(|recording| &recording.networks))
    })
}

impl Forward {
    /// Whether these are the parameters of the network, under their names, and no others.
    pub(crate) fn is_of(&self, params: &Params) -> bool {
        let own = self.running.plan.paths().zip(&self.vars);
        let own = own.map(|(path, var)| (path.as_str(), var.id()));
        params.iter().map(|(path, var)| (path, var.id())).eq(own)
    }

    /// Gradients with respect to the parameters, by path, given the gradient with respect to the
    /// result.
    pub(crate) fn gradients(&self, d_output: &[f32]) -> Result<BTreeMap<String, Tensor>> {
        let gradients = self.gradients_of_vars(d_output)?;
        let paths = self.running.plan.paths().cloned();
        Ok(paths.zip(gradients).map(|(path, (_, gradient))| (path, gradient)).collect())
    }

    /// The same by variable, for a loss in which other networks have parameters of the same paths.
    pub(crate) fn gradients_of_vars(&self, d_output: &[f32]) -> Result<Vec<(TensorId, Tensor)>> {
        // Copies, because the kernels want to change them, and others may be reading.
        let params = self.vars.iter().map(|var| var.flatten_all()?.to_vec1());
        let mut params = params.collect::<candle_core::Result<Vec<Vec<f32>>>>()?;
        let mut gradients = params.iter().map(|param| vec![0.0; param.len()]).collect::<Vec<_>>();
        let mut params = params.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>();
        let mut slices = gradients.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>();
        let mut state = self.state(&params)?;
        state.program.gradients(&mut params, &mut slices, d_output)?;
        drop(state);
        let gradients = self.vars.iter().zip(gradients).map(|(var, gradient)| {
            Ok((var.id(), Tensor::from_vec(gradient, var.shape(), var.device())?))
        });
        gradients.collect()
    }

    /// Backpropagates, and updates the parameters and their moments.
    pub(crate) fn update(
        &self,
        rule: UpdateRule,
        moments: &[&Var],
        d_output: &[f32],
    ) -> Result<()> {
        let vars = self.vars.iter().chain(moments.iter().copied()).collect::<Vec<_>>();
        custom_ops::with_slices_mut(&vars, |slices| {
            let (params, moments) = slices.split_at_mut(self.vars.len());
            let mut state = self.state(params)?;
            Ok(state.program.backward_and_update(params, moments, rule, d_output)?)
        })?
    }

    /// The program, if neither it nor the parameters have been used otherwise since this run.
    fn state(&self, params: &[&mut [f32]]) -> Result<MutexGuard<'_, State>> {
        let state = self.running.lock();
        let now = params.iter().flat_map(|param| samples(param));
        if state.run == self.run && now.eq(self.samples.iter().copied()) {
            Ok(state)
        } else {
            Err(Error::StaleGradients)
        }
    }
}

/// Runs a network by its program on an NVIDIA GPU, if a [`Jit`] runs and has one.
#[cfg(feature = "cuda")]
pub(crate) fn on_gpu<T>(
    identity: Identity,
    params: &Params,
    x: &Tensor,
    network: impl Fn(&Tensor) -> Result<Tensor>,
    run: impl FnOnce(&mut crate::cuda::Program, &[&Var]) -> Result<T>,
) -> Result<Option<T>> {
    if !params.device().is_cuda() {
        return Ok(None);
    }
    let Some(mut plans) = PLANS.take() else { return Ok(None) };
    let result = plans.find((identity, Kind::Apply), params, x, network).and_then(|planned| {
        let (Ok(plan), Some(program)) = (&planned.plan, &mut planned.on_gpu) else {
            return Ok(None);
        };
        match plan.vars(params) {
            // The program has a momentum for each of its own parameters.
            Some(vars) if vars.len() == params.len() && plan.fits(x) && program.is_on_gpu(x) => {
                run(program, &vars).map(Some)
            }
            _ => Ok(None),
        }
    });
    PLANS.set(Some(plans));
    match result {
        // What is wrong with these parameters or this input, the network itself says.
        Err(error) if !matches!(error, Error::Memory { .. } | Error::Gpu(_)) => Ok(None),
        result => result,
    }
}

/// Some of the values, to notice that a variable was changed through a handle from before.
fn samples(values: &[f32]) -> impl Iterator<Item = u32> {
    const COUNT: usize = 64;
    values.iter().step_by(values.len().div_ceil(COUNT).max(1)).map(|value| value.to_bits())
}

/// The last part of a type's path, without its parameters.
fn short_name(type_name: &str) -> &str {
    let path = type_name.split('<').next().unwrap_or(type_name);
    path.rsplit("::").next().unwrap_or(path)
}

impl Running {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::layers::{avg_pool, flatten, max_pool};
    use crate::module::Module;
    use crate::scope::Scope;

    thread_local! {
        /// The address of the network's code, which decides on its pooling.
        static CODE: Cell<usize> = const { Cell::new(0) };
        /// The network's field, if its code has one.
        static FIELD: Cell<Option<bool>> = const { Cell::new(None) };
    }

    /// A network that seems to be defined anew, as one cannot within a program.
    struct Net;

    impl Module for Net {
        fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
            let is_mean = FIELD.get().unwrap_or(CODE.get() < 2);
            let pool = if is_mean { avg_pool } else { max_pool };
            let x = nn.conv(4, (3, 3), x);
            nn.dense(10, flatten(pool(x, (2, 2))))
        }

        fn identity(&self) -> Identity {
            let (id, code) = (TypeId::of::<Self>(), CODE.get());
            let size_of_fields = usize::from(FIELD.get().is_some());
            Identity { id, name: "Net", size_of_fields, code }
        }
    }

    #[test]
    fn a_network_that_is_defined_anew_is_planned_anew() {
        let x = Tensor::randn(0.0, 1.0, (2, 8, 8, 1), &Device::Cpu).unwrap();
        let x = x.to_dtype(DType::F32).unwrap();
        let params = Net.init(Key::new(0), &x).unwrap();
        let mut jit = Jit::new();
        let mut results = Vec::new();
        for (code, codes) in [(0, vec![0]), (1, vec![0, 1]), (2, vec![2]), (0, vec![0])] {
            CODE.set(code);
            let values = |y: Result<Tensor>| y.unwrap().to_vec2::<f32>().unwrap().concat();
            let compiled = values(jit.call(|| Net.evaluate(&params, &x)));
            let plain = values(disable_jit(|| Net.evaluate(&params, &x)));
            assert!(jit.is_compiled(), "{jit}");
            assert!(compiled.iter().zip(&plain).all(|(a, b)| (a - b).abs() < 1e-5), "{code}");
            let Plans(plans) = &jit.plans;
            assert_eq!(plans.iter().map(|plan| plan.codes.clone()).collect::<Vec<_>>(), [codes]);
            results.push(plain);
        }
        assert_ne!(results[1], results[2]);
    }

    #[test]
    fn a_network_that_is_given_a_field_is_planned_for_each_value() {
        let x = Tensor::ones((2, 8, 8, 1), DType::F32, &Device::Cpu).unwrap();
        let params = Net.init(Key::new(0), &x).unwrap();
        let mut jit = Jit::new();
        for (code, field) in [(0, None), (1, Some(true)), (1, Some(false))] {
            CODE.set(code);
            FIELD.set(field);
            let values = |y: Result<Tensor>| y.unwrap().to_vec2::<f32>().unwrap().concat();
            let compiled = values(jit.call(|| Net.evaluate(&params, &x)));
            let plain = values(disable_jit(|| Net.evaluate(&params, &x)));
            assert!(compiled.iter().zip(&plain).all(|(a, b)| (a - b).abs() < 1e-5), "{field:?}");
        }
    }
}
