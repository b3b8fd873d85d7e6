//! The compiled step, the counterpart of the tutorial's `@jax.jit`.
//!
//! `jax.jit` runs a function once with abstract values, notes its operations, and has XLA plan
//! buffers and fuse loops for these shapes. [`jit`] does the same on a small scale: it evaluates
//! the network once, notes the layers it went through, and plans a [`Program`]: every buffer is
//! allocated once, bias, ReLU and pooling are fused into the convolution before them, and the
//! momentum step into the gradient. A step then replays the plan.
//!
//! As under `jax.jit`, what the network does must depend on shapes alone, not on values. Where
//! there is no plan (a layer that this crate does not know, a branch, the GPU of a Mac, f64) the step
//! is [`train_step`], which works for everything.
//!
//! On an NVIDIA GPU every batch size gets a plan of its own when it comes, and a step neither takes
//! memory nor waits for anything. So a label that is no class shows when the step's metrics are read;
//! the step has then changed nothing.

use std::fmt;

use candle_core::{DType, Device, Tensor, Var};

use crate::dataset::Batch;
use crate::kernels::{self, Outcome, Program};
use crate::linen::trace::{Layer, Step, is_chain, record, sample};
use crate::linen::{Module, Params};
use crate::metrics::BatchMetrics;
use crate::optimizer::Momentum;
use crate::train::{eval_step, train_step};
use crate::{Result, memory, ops};

/// Plans training and evaluation of a network for inputs of one shape.
///
/// # Shapes
/// - `input_shape`: `[B, height, width, channels]`. Smaller batches fit the same plan, and on a GPU
///   each size gets its own; what does not fit goes the general way.
///
/// # Errors
/// Those of the network for an input of this shape; [`Error::Memory`](crate::Error::Memory) if
/// training on so large a batch does not fit the memory.
///
/// # Examples
/// ```
/// use mnist_notebook_support::prelude::*;
///
/// let params = get_initial_params(&Cnn, Key::new(0), &Device::Cpu)?;
/// let step = jit(Cnn, &params, &[32, 28, 28, 1])?;
/// assert!(step.is_compiled());
/// println!("{step}"); // the plan, or why there is none
/// # Ok::<(), mnist_notebook_support::Error>(())
/// ```
pub fn jit<M: Module>(model: M, params: &Params, input_shape: &[usize]) -> Result<Jit<M>> {
    let sample = sample(params, input_shape)?;
    let (output, steps) = record(|| model.apply(params, &sample))?;
    check_room(input_shape, &sample, &steps)?;
    let num_classes = output.dims().last().copied().unwrap_or(0);
    let plan = plan(input_shape, &sample, &steps, &output, params);
    Ok(Jit { model, num_classes, plan })
}

/// Checks that there is room for what training on a batch keeps at least, compiled or not: what the
/// layers with parameters read, and its gradient.
fn check_room(input_shape: &[usize], sample: &Tensor, steps: &[Step]) -> Result<()> {
    let is_parametric =
        |step: &&Step| matches!(step.layer, Layer::Conv { .. } | Layer::Dense { .. });
    let is_read =
        |tensor: &&Tensor| steps.iter().filter(is_parametric).any(|step| step.input == tensor.id());
    let tensors = steps.iter().map(|step| &step.output).chain([sample]);
    let values = tensors.filter(is_read).map(Tensor::elem_count).sum();
    let batch = input_shape.first().copied().unwrap_or(1);
    let shape = [batch, values, 2];
    memory::check("training on so large a batch", &shape, sample.dtype(), sample.device())
}

/// A network with its plan, made by [`jit`].
pub struct Jit<M> {
    model: M,
    num_classes: usize,
    plan: Result<Plan, String>,
}

struct Plan {
    program: Compiled,
    image_shape: Vec<usize>,
    description: String,
}

/// The program for the processor on which the parameters are.
enum Compiled {
    Cpu(Program),
    #[cfg(feature = "cuda")]
    Cuda(Box<crate::cuda::Program>),
}

impl<M: Module> Jit<M> {
    /// Makes one step of training on a batch, in place: [`train_step`], faster.
    ///
    /// # Errors
    /// Those of [`train_step`]; on an NVIDIA GPU, [`Error::Label`](crate::Error::Label) comes from
    /// [`BatchMetrics::get`] instead.
    pub fn train_step(&mut self, optimizer: &mut Momentum, batch: &Batch) -> Result<BatchMetrics> {
        match self.plan_for(batch) {
            Some(plan) => plan.train_step(optimizer, batch),
            None => train_step(&self.model, optimizer, batch),
        }
    }

    /// The metrics of a batch, without training on it: [`eval_step`], faster.
    ///
    /// # Errors
    /// Those of [`eval_step`], with the exception of [`train_step`](Jit::train_step).
    pub fn eval_step(&mut self, params: &Params, batch: &Batch) -> Result<BatchMetrics> {
        match self.plan_for(batch) {
            Some(plan) => plan.eval_step(params, batch),
            None => eval_step(&self.model, params, batch),
        }
    }

    /// The plan, if there is one and the batch fits it.
    fn plan_for(&mut self, batch: &Batch) -> Option<&mut Plan> {
        let plan = self.plan.as_mut().ok()?;
        if plan.takes(batch) { Some(plan) } else { None }
    }

    /// What each launch of a compiled step on so many images on an NVIDIA GPU does, and the
    /// microseconds that it takes when the same launch is repeated a hundred times; empty where there
    /// is no such step.
    ///
    /// The optimizer's parameters are worthless afterwards.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) if the GPU fails.
    #[cfg(feature = "cuda")]
    pub fn launch_times(
        &mut self,
        batch_size: usize,
        optimizer: &mut Momentum,
    ) -> Result<Vec<(String, f32)>> {
        let Ok(Plan { program: Compiled::Cuda(program), .. }) = &mut self.plan else {
            return Ok(Vec::new());
        };
        let (rate, beta) = (optimizer.learning_rate() as f32, optimizer.beta() as f32);
        let (target, momentum) = (vars(optimizer.target()), vars(optimizer.momentum()));
        program.launch_times(batch_size, &target, &momentum, rate, beta)
    }

    /// Whether there is a plan; if not, `Display` says why.
    pub fn is_compiled(&self) -> bool {
        self.plan.is_ok()
    }

    /// How many classes the network tells apart.
    pub(crate) fn num_classes(&self) -> usize {
        self.num_classes
    }
}

/// The plan in words, a fused group of layers a line, or why there is none.
impl<M> fmt::Display for Jit<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.plan {
            Ok(plan) => f.write_str(&plan.description),
            Err(reason) => write!(f, "not compiled: {reason}"),
        }
    }
}

impl Plan {
    /// Whether the batch fits the plan.
    fn takes(&mut self, batch: &Batch) -> bool {
        let image = &batch.image;
        match &mut self.program {
            Compiled::Cpu(program) => {
                image.dims().get(1..) == Some(&self.image_shape)
                    && image.device().is_cpu()
                    && image.dtype() == DType::F32
                    && image.is_contiguous()
                    && (1..=program.batch()).contains(&batch.len())
            }
            #[cfg(feature = "cuda")]
            Compiled::Cuda(program) => program.takes(batch),
        }
    }

    fn train_step(&mut self, optimizer: &Momentum, batch: &Batch) -> Result<BatchMetrics> {
        let (rate, beta) = (optimizer.learning_rate() as f32, optimizer.beta() as f32);
        let (target, momentum) = (vars(optimizer.target()), vars(optimizer.momentum()));
        match &mut self.program {
            Compiled::Cpu(program) => {
                let labels = batch.label.to_vec1::<u32>()?;
                let (storage, layout) = batch.image.storage_and_layout();
                let images = ops::f32_slice(&storage, layout)?;
                let outcome = ops::with_slices_mut(&[target, momentum].concat(), |slices| {
                    let (target, momentum) = slices.split_at_mut(slices.len() / 2);
                    program.train_step(target, momentum, images, &labels, rate, beta)
                })??;
                to_metrics(outcome, labels.len())
            }
            #[cfg(feature = "cuda")]
            Compiled::Cuda(program) => program.train_step(&target, &momentum, batch, rate, beta),
        }
    }

    fn eval_step(&mut self, params: &Params, batch: &Batch) -> Result<BatchMetrics> {
        match &mut self.program {
            Compiled::Cpu(program) => {
                let labels = batch.label.to_vec1::<u32>()?;
                let vars =
                    params.iter().map(|(_, var)| var.storage_and_layout()).collect::<Vec<_>>();
                let slices = vars
                    .iter()
                    .map(|(storage, layout)| ops::f32_slice(storage, layout))
                    .collect::<Result<Vec<_>>>()?;
                let (storage, layout) = batch.image.storage_and_layout();
                let images = ops::f32_slice(&storage, layout)?;
                to_metrics(program.evaluate(&slices, images, &labels)?, labels.len())
            }
            #[cfg(feature = "cuda")]
            Compiled::Cuda(program) => program.eval_step(&vars(params), batch),
        }
    }
}

fn vars(params: &Params) -> Vec<&Var> {
    params.iter().map(|(_, var)| var).collect()
}

fn to_metrics(outcome: Outcome, examples: usize) -> Result<BatchMetrics> {
    let accuracy = outcome.correct as f32 / examples as f32;
    Ok(BatchMetrics {
        loss: Tensor::new(outcome.loss, &Device::Cpu)?,
        accuracy: Tensor::new(accuracy, &Device::Cpu)?,
    })
}

/// Plans the recorded layers, or says why that cannot be done.
fn plan(
    input_shape: &[usize],
    sample: &Tensor,
    steps: &[Step],
    output: &Tensor,
    params: &Params,
) -> Result<Plan, String> {
    if params.iter().any(|(_, var)| var.dtype() != DType::F32 || !var.is_contiguous()) {
        return Err("the parameters are not contiguous f32 arrays".into());
    }
    let &[batch, height, width, channels] = input_shape else {
        return Err("the input is no batch of images".into());
    };
    if !is_chain(steps, sample, output) {
        return Err("the network is not a plain chain of this crate's layers".into());
    }
    let layers = steps.iter().map(|step| to_kernel_layer(&step.layer, params));
    let layers = layers.collect::<Option<Vec<_>>>().ok_or("a layer's parameters are missing")?;
    let program = compile([batch, height, width, channels], &layers, sample.device())?;
    let image_shape = vec![height, width, channels];
    Ok(Plan { program, image_shape, description: describe(batch, steps) })
}

fn compile(
    shape: [usize; 4],
    layers: &[kernels::Layer],
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
        _ => Err("the parameters are on a GPU for which there are no kernels here".into()),
    }
}

fn to_kernel_layer(layer: &Layer, params: &Params) -> Option<kernels::Layer> {
    let position = |path: String| params.paths().position(|known| known == path);
    let positions =
        |path: &str| Some((position(format!("{path}/kernel"))?, position(format!("{path}/bias"))?));
    Some(match layer {
        Layer::Conv { path, kernel_size, features, .. } => kernels::Layer::Conv {
            kernel: *kernel_size,
            features: *features,
            params: positions(path)?,
        },
        Layer::Dense { path, features, .. } => {
            kernels::Layer::Dense { features: *features, params: positions(path)? }
        }
        // Not in evaluation by parameters alone, which is what was recorded.
        Layer::BatchNorm { .. } | Layer::Dropout { .. } => return None,
        Layer::Relu => kernels::Layer::Relu,
        Layer::AvgPool { window } => kernels::Layer::AvgPool { window: *window },
        Layer::MaxPool { window } => kernels::Layer::MaxPool { window: *window },
        Layer::Flatten => kernels::Layer::Flatten,
        Layer::LogSoftmax => kernels::Layer::LogSoftmax,
    })
}

/// One line for each group of layers that is evaluated in one go.
fn describe(batch: usize, steps: &[Step]) -> String {
    let mut text = format!("compiled for batches of {batch}:");
    for step in steps {
        let starts_group = matches!(step.layer, Layer::Conv { .. } | Layer::Dense { .. });
        text += if starts_group { "\n  " } else { " → " };
        text += &step.layer.name();
    }
    text
}
