//! The compiled step, the counterpart of the tutorial's `@jax.jit`.
//!
//! `jax.jit` runs a function once with abstract values, notes its operations, and has XLA plan
//! buffers and fuse loops for these shapes. [`compile`] does the same on a small scale: it evaluates
//! the network once, traces the layers it goes through, and plans a [`Program`]: every buffer is
//! allocated once, bias, ReLU and pooling are fused into the convolution before them, and the
//! momentum step into the gradient. A step then replays the plan.
//!
//! As under `jax.jit`, what the network does must depend on shapes alone, not on values. There is no
//! plan for layers that this crate does not know, for branches, on the GPU of a Mac, and in f64.
//!
//! On an NVIDIA GPU every batch size gets a plan of its own when it comes, and a step neither
//! allocates memory nor waits for anything. So an out-of-range label shows when the step's metrics
//! are read; the step has then changed nothing.

use std::fmt;

use candle_core::{DType, Device, Tensor, Var};
use cpu_kernels::{Program, StepResult};

use crate::error::Result;
use crate::metrics::BatchMetrics;
use crate::module::Module;
use crate::optimizer::Momentum;
use crate::params::Params;
use crate::sequential::dummy_input;
use crate::trace::{Layer, TracedOp, is_sequential, trace};
use crate::{memory, ops};

/// A step of training, and one of evaluation, planned for inputs of one shape.
pub struct CompiledStep {
    program: Compiled,
    image_shape: Vec<usize>,
    num_classes: usize,
    description: String,
}

/// Why there is no plan for a network; `Display` says it.
#[derive(Debug, Clone)]
pub struct NotCompiled {
    reason: String,
    num_classes: usize,
}

/// The program for the processor on which the parameters are.
enum Compiled {
    Cpu(Program),
    #[cfg(feature = "cuda")]
    Cuda(Box<crate::cuda::Program>),
}

/// Plans training and evaluation of a network for inputs of one shape, or says why that cannot be
/// done.
///
/// # Shapes
/// - `input_shape`: `[B, height, width, channels]`. Smaller batches fit the same plan, and on a GPU
///   each size gets its own.
///
/// # Errors
/// Those of the network for an input of this shape; [`Error::Memory`](crate::Error::Memory) if
/// training on so large a batch does not fit the memory.
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
    let input = dummy_input(params, input_shape)?;
    let (output, ops) = trace(|| model.apply(params, &input))?;
    check_memory(input_shape, &input, &ops)?;
    let num_classes = output.dims().last().copied().unwrap_or(0);
    let step = plan(input_shape, &input, &ops, &output, params);
    Ok(step.map_err(|reason| NotCompiled { reason, num_classes }))
}

/// Checks that the activations that training on a batch must keep, compiled or not, fit in memory
/// with their gradients.
fn check_memory(input_shape: &[usize], input: &Tensor, ops: &[TracedOp]) -> Result<()> {
    let is_parametric =
        |op: &&TracedOp| matches!(op.layer, Layer::Conv { .. } | Layer::Dense { .. });
    let is_read =
        |tensor: &&Tensor| ops.iter().filter(is_parametric).any(|op| op.input == tensor.id());
    let tensors = ops.iter().map(|op| &op.output).chain([input]);
    let values = tensors.filter(is_read).map(Tensor::elem_count).sum();
    let batch = input_shape.first().copied().unwrap_or(1);
    let shape = [batch, values, 2];
    memory::check("training on so large a batch", &shape, input.dtype(), input.device())
}

impl CompiledStep {
    /// Whether a batch fits the plan.
    ///
    /// # Shapes
    /// - `image`: `[B, height, width, channels]`
    /// - `label`: `[B]`
    pub fn takes(&mut self, image: &Tensor, label: &Tensor) -> bool {
        match &mut self.program {
            Compiled::Cpu(program) => {
                image.dims().get(1..) == Some(&self.image_shape)
                    && image.device().is_cpu()
                    && image.dtype() == DType::F32
                    && image.is_contiguous()
                    && (1..=program.batch()).contains(&label.elem_count())
            }
            #[cfg(feature = "cuda")]
            Compiled::Cuda(program) => program.takes(image, label),
        }
    }

    /// Makes one step of training on a batch that fits, in place, and returns the metrics from
    /// before it.
    ///
    /// # Errors
    /// [`Error::Label`](crate::Error::Label) for an out-of-range label; on an NVIDIA GPU it comes
    /// from [`BatchMetrics::get`] instead. [`Error::Gpu`](crate::Error::Gpu) if the GPU fails.
    pub fn train_step(
        &mut self,
        optimizer: &mut Momentum,
        image: &Tensor,
        label: &Tensor,
    ) -> Result<BatchMetrics> {
        let (rate, beta) = (optimizer.learning_rate() as f32, optimizer.beta() as f32);
        let (target, momentum) = (vars(optimizer.target()), vars(optimizer.momentum()));
        match &mut self.program {
            Compiled::Cpu(program) => {
                let labels = label.to_vec1::<u32>()?;
                let (storage, layout) = image.storage_and_layout();
                let images = ops::f32_slice(&storage, layout)?;
                let result = ops::with_slices_mut(&[target, momentum].concat(), |slices| {
                    let (target, momentum) = slices.split_at_mut(slices.len() / 2);
                    program.train_step(target, momentum, images, &labels, rate, beta)
                })??;
                to_metrics(result, labels.len())
            }
            #[cfg(feature = "cuda")]
            Compiled::Cuda(program) => {
                let batch = crate::cuda::Batch { image, label };
                program.train_step(&target, &momentum, batch, rate, beta)
            }
        }
    }

    /// The metrics of a batch that fits, without training on it.
    ///
    /// # Errors
    /// Those of [`train_step`](CompiledStep::train_step).
    pub fn eval_step(
        &mut self,
        params: &Params,
        image: &Tensor,
        label: &Tensor,
    ) -> Result<BatchMetrics> {
        match &mut self.program {
            Compiled::Cpu(program) => {
                let labels = label.to_vec1::<u32>()?;
                let vars =
                    params.iter().map(|(_, var)| var.storage_and_layout()).collect::<Vec<_>>();
                let slices = vars
                    .iter()
                    .map(|(storage, layout)| ops::f32_slice(storage, layout))
                    .collect::<Result<Vec<_>>>()?;
                let (storage, layout) = image.storage_and_layout();
                let images = ops::f32_slice(&storage, layout)?;
                to_metrics(program.evaluate(&slices, images, &labels)?, labels.len())
            }
            #[cfg(feature = "cuda")]
            Compiled::Cuda(program) => {
                program.eval_step(&vars(params), crate::cuda::Batch { image, label })
            }
        }
    }

    /// How many classes the network tells apart.
    pub fn num_classes(&self) -> usize {
        self.num_classes
    }

    /// What each launch of a compiled step on so many images on an NVIDIA GPU does, and the
    /// microseconds that it takes when the same launch is repeated a hundred times; empty where there
    /// is no such step.
    ///
    /// Overwrites the optimizer's parameters.
    ///
    /// # Errors
    /// [`Error::Gpu`](crate::Error::Gpu) if the GPU fails.
    #[cfg(feature = "cuda")]
    pub fn launch_times(
        &mut self,
        batch_size: usize,
        optimizer: &mut Momentum,
    ) -> Result<Vec<(String, f32)>> {
        let Compiled::Cuda(program) = &mut self.program else {
            return Ok(Vec::new());
        };
        let (rate, beta) = (optimizer.learning_rate() as f32, optimizer.beta() as f32);
        let (target, momentum) = (vars(optimizer.target()), vars(optimizer.momentum()));
        program.launch_times(batch_size, &target, &momentum, rate, beta)
    }
}

impl NotCompiled {
    /// How many classes the network tells apart.
    pub fn num_classes(&self) -> usize {
        self.num_classes
    }
}

/// The plan in words, a fused group of layers a line.
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

fn vars(params: &Params) -> Vec<&Var> {
    params.iter().map(|(_, var)| var).collect()
}

fn to_metrics(result: StepResult, examples: usize) -> Result<BatchMetrics> {
    let accuracy = result.correct as f32 / examples as f32;
    Ok(BatchMetrics {
        loss: Tensor::new(result.loss, &Device::Cpu)?,
        accuracy: Tensor::new(accuracy, &Device::Cpu)?,
    })
}

/// Plans the traced layers, or says why that cannot be done.
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
        return Err("the input is no batch of images".into());
    };
    if !is_sequential(ops, input, output) {
        return Err("the network is not a plain chain of this crate's layers".into());
    }
    let layers = ops.iter().map(|op| to_kernel_layer(&op.layer, params));
    let layers = layers.collect::<Option<Vec<_>>>().ok_or("a layer's parameters are missing")?;
    let program = program([batch, height, width, channels], &layers, input.device())?;
    let num_classes = output.dims().last().copied().unwrap_or(0);
    let image_shape = vec![height, width, channels];
    let description = describe(batch, ops);
    Ok(CompiledStep { program, image_shape, num_classes, description })
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
        _ => Err("the parameters are on a GPU for which there are no kernels here".into()),
    }
}

fn to_kernel_layer(layer: &Layer, params: &Params) -> Option<cpu_kernels::Layer> {
    let position = |path: String| params.paths().position(|known| known == path);
    let positions =
        |path: &str| Some((position(format!("{path}/kernel"))?, position(format!("{path}/bias"))?));
    Some(match layer {
        Layer::Conv { path, kernel_size, features, .. } => cpu_kernels::Layer::Conv {
            kernel: *kernel_size,
            features: *features,
            params: positions(path)?,
        },
        Layer::Dense { path, features, .. } => {
            cpu_kernels::Layer::Dense { features: *features, params: positions(path)? }
        }
        // Not in evaluation by parameters alone, which is what was recorded.
        Layer::BatchNorm { .. } | Layer::Dropout { .. } => return None,
        Layer::Relu => cpu_kernels::Layer::Relu,
        Layer::AvgPool { window } => cpu_kernels::Layer::AvgPool { window: *window },
        Layer::MaxPool { window } => cpu_kernels::Layer::MaxPool { window: *window },
        Layer::Flatten => cpu_kernels::Layer::Flatten,
        Layer::LogSoftmax => cpu_kernels::Layer::LogSoftmax,
    })
}

/// One line for each group of layers that is evaluated in one go.
fn describe(batch: usize, ops: &[TracedOp]) -> String {
    let mut text = format!("compiled for batches of {batch}:");
    for op in ops {
        let starts_group = matches!(op.layer, Layer::Conv { .. } | Layer::Dense { .. });
        text += if starts_group { "\n  " } else { " → " };
        text += &op.layer.name();
    }
    text
}
