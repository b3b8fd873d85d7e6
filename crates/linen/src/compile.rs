//! The compiled step, the counterpart of the tutorial's `@jax.jit`.
//!
//! `jax.jit` runs a function once with abstract values, traces its operations, and has XLA plan
//! buffers and fuse loops for the given shapes. [`compile`] does this on a small scale: it traces
//! one evaluation of the network and plans a [`Program`]. Every buffer is allocated once; bias,
//! ReLU and pooling are fused into the convolution before them, and the momentum update into the
//! gradient. A step then replays the plan.
//!
//! As with `jax.jit`, the network may depend on shapes but not on values, and another shape needs
//! another plan. Only plain chains of this crate's layers can be compiled, in f32, on a CPU or an
//! NVIDIA GPU.
//!
//! On an NVIDIA GPU a step neither allocates memory nor waits for the GPU. So an out-of-range label
//! is only reported when the step's metrics are read; such a step changes nothing.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use candle_core::{DType, Device, Shape, Tensor, Var};
use cpu_kernels::{Program, StepResult};

use crate::error::Result;
use crate::metrics::BatchMetrics;
use crate::module::Module;
use crate::no_grad::with_tracking;
use crate::optimizer::Momentum;
use crate::params::Params;
use crate::sequential::{dummy_input, one_example};
use crate::trace::{Layer, TracedOp, is_sequential, layer_name, trace};
use crate::{custom_ops, memory};

/// A training step and an evaluation step, compiled for one input shape.
///
/// A step returns `None` for what the plan does not fit, such as images of another shape or the
/// parameters of another network; the network itself then says what is wrong, or runs.
pub struct CompiledStep {
    program: Compiled,
    input_shape: Vec<usize>,
    /// Shapes of the parameters by path, in the order of the program's list.
    params: BTreeMap<String, Shape>,
    num_classes: usize,
    description: String,
}

/// A network that cannot be compiled; `Display` gives the reason.
#[derive(Debug, Clone)]
pub struct NotCompiled {
    reason: String,
    num_classes: usize,
}

/// The program for the device of the parameters.
enum Compiled {
    Cpu(Program),
    #[cfg(feature = "cuda")]
    Cuda(Box<crate::cuda::Program>),
}

/// Compiles training and evaluation of a network for one input shape, or says why that is not
/// possible.
///
/// # Shapes
/// - `input_shape`: `[B, height, width, channels]`
///
/// # Errors
/// Those of the network for an input of this shape; [`Error::Memory`](crate::Error::Memory) if
/// training on this batch size does not fit in memory.
///
/// # Examples
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// use linen::{Key, Module, Result, Scope, compile, flatten, log_softmax, relu};
///
/// struct Net;
///
/// impl Module for Net {
///     fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
///         let x = relu(&nn.conv(8, (3, 3), x)?)?;
///         log_softmax(&nn.dense(10, &flatten(&x)?)?)
///     }
/// }
///
/// let params = Net.init(Key::new(0), &Tensor::zeros((1, 28, 28, 1), DType::F32, &Device::Cpu)?)?;
/// let step = compile(&Net, &params, &[32, 28, 28, 1])?.unwrap();
/// println!("{step}"); // the plan
/// # Ok::<(), linen::Error>(())
/// ```
pub fn compile(
    model: &impl Module,
    params: &Params,
    input_shape: &[usize],
) -> Result<Result<CompiledStep, NotCompiled>> {
    check_memory(model, params, input_shape)?;
    let input = dummy_input(params, input_shape)?;
    // With a graph: only there `detach` makes another tensor, which ends the chain.
    let (output, ops) = trace(|| with_tracking(true, || model.apply(params, &input)))?;
    let step = plan(input_shape, &input, &ops, &output, params);
    Ok(step.map_err(|reason| NotCompiled { reason, num_classes: num_classes(&output) }))
}

/// Checks that tracing a batch and training on it fit in memory, from one example.
fn check_memory(model: &impl Module, params: &Params, input_shape: &[usize]) -> Result<()> {
    let input = dummy_input(params, &one_example(input_shape))?;
    let Ok((_, ops)) = trace(|| model.apply(params, &input)) else {
        return Ok(()); // wrong, or for batches of one size: the whole batch will show
    };
    let is_parametric =
        |op: &&TracedOp| matches!(op.layer, Layer::Conv { .. } | Layer::Dense { .. });
    let is_kept =
        |tensor: &&Tensor| ops.iter().filter(is_parametric).any(|op| op.input == tensor.id());
    let tensors = || ops.iter().map(|op| &op.output).chain([&input]);
    let traced: usize = tensors().map(Tensor::elem_count).sum();
    // The activations that training keeps, and their gradients.
    let trained = 2 * tensors().filter(is_kept).map(Tensor::elem_count).sum::<usize>();
    let batch = input_shape.first().copied().unwrap_or(1);
    let shape = [batch, traced.max(trained)];
    memory::check("training on so large a batch", &shape, input.dtype(), input.device())
}

impl CompiledStep {
    /// Trains in place; returns the metrics from before the update.
    ///
    /// # Shapes
    /// - `image`: `[B, height, width, channels]`
    /// - `label`: `[B]`
    ///
    /// # Errors
    /// [`Error::Label`](crate::Error::Label) for an out-of-range label; on an NVIDIA GPU
    /// [`BatchMetrics::get`] returns it instead. [`Error::Gpu`](crate::Error::Gpu) if the GPU
    /// fails.
    pub fn train_step(
        &mut self,
        optimizer: &mut Momentum,
        image: &Tensor,
        label: &Tensor,
    ) -> Result<Option<BatchMetrics>> {
        let (rate, beta) = (optimizer.learning_rate() as f32, optimizer.beta() as f32);
        let (target, momentum) = (self.vars(optimizer.target()), self.vars(optimizer.momentum()));
        let (Some(target), Some(momentum)) = (target, momentum) else {
            return Ok(None);
        };
        // Parameters that the network does not use have a momentum, too.
        let has_others = optimizer.target().len() > target.len();
        let vars = [target, momentum].concat();
        // An image that is a parameter would be locked twice.
        let is_var = vars.iter().any(|var| is_same_storage(var, image));
        if has_others || is_var || !self.fits(image, label) {
            return Ok(None);
        }
        match &mut self.program {
            Compiled::Cpu(program) => {
                let labels = label.to_vec1::<u32>()?;
                let (storage, layout) = image.storage_and_layout();
                let images = custom_ops::f32_slice(&storage, layout)?;
                let result = custom_ops::with_slices_mut(&vars, |slices| {
                    let (target, momentum) = slices.split_at_mut(slices.len() / 2);
                    program.train_step(target, momentum, images, &labels, rate, beta)
                })??;
                to_metrics(result, labels.len()).map(Some)
            }
            #[cfg(feature = "cuda")]
            Compiled::Cuda(program) => {
                let (target, momentum) = vars.split_at(vars.len() / 2);
                let batch = crate::cuda::Batch { image, label };
                program.train_step(target, momentum, batch, rate, beta).map(Some)
            }
        }
    }

    /// The metrics of a batch, without training.
    ///
    /// # Errors
    /// Those of [`train_step`](CompiledStep::train_step).
    pub fn eval_step(
        &mut self,
        params: &Params,
        image: &Tensor,
        label: &Tensor,
    ) -> Result<Option<BatchMetrics>> {
        let Some(vars) = self.vars(params).filter(|_| self.fits(image, label)) else {
            return Ok(None);
        };
        match &mut self.program {
            Compiled::Cpu(program) => {
                let labels = label.to_vec1::<u32>()?;
                let result = with_slices(&vars, image, |params, images| {
                    program.evaluate(params, images, &labels)
                })??;
                to_metrics(result, labels.len()).map(Some)
            }
            #[cfg(feature = "cuda")]
            Compiled::Cuda(program) => {
                program.eval_step(&vars, crate::cuda::Batch { image, label }).map(Some)
            }
        }
    }

    /// The log-probabilities `[B, classes]` of a batch of images, without gradients; `None` on a
    /// GPU.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if a kernel fails.
    pub fn predict(&mut self, params: &Params, image: &Tensor) -> Result<Option<Tensor>> {
        let Some(vars) = self.vars(params).filter(|_| self.fits_image(image)) else {
            return Ok(None);
        };
        match &mut self.program {
            Compiled::Cpu(program) => {
                let shape = (image.dims()[0], self.num_classes);
                let mut log_probs = vec![0.0; shape.0 * shape.1];
                with_slices(&vars, image, |params, images| {
                    program.log_probabilities(params, images, &mut log_probs)
                })??;
                Ok(Some(Tensor::from_vec(log_probs, shape, &Device::Cpu)?))
            }
            #[cfg(feature = "cuda")]
            Compiled::Cuda(_) => Ok(None),
        }
    }

    /// The variables of the plan's parameters, if all are there in the right shape.
    fn vars<'a>(&self, params: &'a Params) -> Option<Vec<&'a Var>> {
        let is_planned = |path: &str, var: &Var| {
            self.params.get(path) == Some(var.shape()) && self.takes(var, DType::F32)
        };
        let planned = params.iter().filter(|(path, var)| is_planned(path, var));
        let vars = planned.map(|(_, var)| var).collect::<Vec<_>>();
        (vars.len() == self.params.len()).then_some(vars)
    }

    fn fits(&self, image: &Tensor, label: &Tensor) -> bool {
        self.fits_image(image)
            && label.dims() == &self.input_shape[..1]
            && self.takes(label, DType::U32)
    }

    fn fits_image(&self, image: &Tensor) -> bool {
        image.dims() == self.input_shape && self.takes(image, DType::F32)
    }

    /// Whether the program can read a tensor as it is.
    fn takes(&self, tensor: &Tensor, dtype: DType) -> bool {
        let is_here = match &self.program {
            Compiled::Cpu(_) => tensor.device().is_cpu(),
            #[cfg(feature = "cuda")]
            Compiled::Cuda(program) => program.is_on_gpu(tensor),
        };
        is_here && tensor.dtype() == dtype && tensor.is_contiguous()
    }

    /// The number of classes.
    pub fn num_classes(&self) -> usize {
        self.num_classes
    }

    /// Describes each launch of a training step on an NVIDIA GPU, with its mean time in
    /// microseconds over a hundred repetitions. Empty on other devices.
    ///
    /// Overwrites the optimizer's parameters.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) if the GPU fails.
    #[cfg(feature = "cuda")]
    pub fn launch_times(&mut self, optimizer: &mut Momentum) -> Result<Vec<(String, f32)>> {
        let (rate, beta) = (optimizer.learning_rate() as f32, optimizer.beta() as f32);
        let (target, momentum) = (self.vars(optimizer.target()), self.vars(optimizer.momentum()));
        match (&mut self.program, target, momentum) {
            (Compiled::Cuda(program), Some(target), Some(momentum)) => {
                program.launch_times(&target, &momentum, rate, beta)
            }
            _ => Ok(Vec::new()),
        }
    }
}

impl NotCompiled {
    /// The number of classes.
    pub fn num_classes(&self) -> usize {
        self.num_classes
    }
}

/// The plan, with one line per fused group of layers.
impl fmt::Display for CompiledStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)
    }
}

impl fmt::Display for NotCompiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not compiled: {}", self.reason)
    }
}

/// Calls a function with the values of contiguous f32 parameters and images on the CPU.
fn with_slices<R>(
    vars: &[&Var],
    image: &Tensor,
    f: impl FnOnce(&[&[f32]], &[f32]) -> R,
) -> Result<R> {
    let vars = vars.iter().map(|var| var.storage_and_layout()).collect::<Vec<_>>();
    let slices = vars.iter().map(|(storage, layout)| custom_ops::f32_slice(storage, layout));
    let (storage, layout) = image.storage_and_layout();
    Ok(f(&slices.collect::<Result<Vec<_>>>()?, custom_ops::f32_slice(&storage, layout)?))
}

fn is_same_storage(a: &Tensor, b: &Tensor) -> bool {
    let ((a, _), (b, _)) = (a.storage_and_layout(), b.storage_and_layout());
    std::ptr::eq(&*a, &*b)
}

fn to_metrics(result: StepResult, examples: usize) -> Result<BatchMetrics> {
    let accuracy = result.correct as f32 / examples as f32;
    Ok(BatchMetrics {
        loss: Tensor::new(result.loss, &Device::Cpu)?,
        accuracy: Tensor::new(accuracy, &Device::Cpu)?,
    })
}

/// Plans the traced layers, or says why that is not possible.
fn plan(
    input_shape: &[usize],
    input: &Tensor,
    ops: &[TracedOp],
    output: &Tensor,
    params: &Params,
) -> Result<CompiledStep, String> {
    if params.iter().any(|(_, var)| var.dtype() != DType::F32 || !var.is_contiguous()) {
        return Err("the parameters are not contiguous f32 arrays".into());
    }
    let &[batch, height, width, channels] = input_shape else {
        return Err("the input is not a batch of images".into());
    };
    if !is_sequential(ops, input, output) {
        return Err("the network is not a plain chain of this crate's layers".into());
    }
    let params = used_by(ops, params);
    let index = |path: String| params.keys().position(|known| *known == path);
    let indices =
        |path: &String| Some((index(format!("{path}/kernel"))?, index(format!("{path}/bias"))?));
    let layers = ops.iter().map(|op| op.layer.try_map(indices));
    let layers = layers.collect::<Option<Vec<_>>>().ok_or("a layer has no kernel and bias")?;
    let program = program([batch, height, width, channels], &layers, input.device())?;
    Ok(CompiledStep {
        program,
        input_shape: input_shape.to_vec(),
        params,
        num_classes: num_classes(output),
        description: describe(batch, ops),
    })
}

fn num_classes(output: &Tensor) -> usize {
    output.dims().last().copied().unwrap_or(0)
}

fn program(
    shape: [usize; 4],
    layers: &[cpu_kernels::Layer],
    device: &Device,
) -> Result<Compiled, String> {
    match device {
        Device::Cpu => {
            Program::new(shape, layers).map(Compiled::Cpu).map_err(|error| error.to_string())
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            let program = crate::cuda::Program::new(shape, layers, device)?;
            Ok(Compiled::Cuda(Box::new(program)))
        }
        _ => Err("there are no kernels for the GPU that holds the parameters".into()),
    }
}

/// Shapes of the parameters that the layers use, by path.
fn used_by(ops: &[TracedOp], params: &Params) -> BTreeMap<String, Shape> {
    let names = ops.iter().map(|op| layer_name(&op.layer)).collect::<HashSet<_>>();
    let is_used =
        |path: &str| path.rsplit_once('/').is_some_and(|(layer, _)| names.contains(layer));
    let used = params.iter().filter(|(path, _)| is_used(path));
    used.map(|(path, var)| (path.to_owned(), var.shape().clone())).collect()
}

/// One line for each fused group of layers.
fn describe(batch: usize, ops: &[TracedOp]) -> String {
    let mut text = format!("compiled for batches of {batch}:");
    for op in ops {
        let starts_group = matches!(op.layer, Layer::Conv { .. } | Layer::Dense { .. });
        text += if starts_group { "\n  " } else { " → " };
        text += layer_name(&op.layer);
    }
    text
}
