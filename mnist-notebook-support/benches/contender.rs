//! Times this crate for `cargo xtask bench`, which sends the same requests to other frameworks.
//!
//! A request is a line on standard input, `what batch count`; the answer is a line
//! `= milliseconds`, the time of one of `count` repetitions. Preparation is not timed.
//!
//! | what | one repetition |
//! |---|---|
//! | `train_step` | a step of `train_epoch`: gather a batch, run the compiled step |
//! | `train_step_candle` | the same step in plain candle |
//! | `own_module` | a step of a custom network, through autograd |
//! | `own_module_jit` | the same, compiled |
//! | `my_net` | a step of the network of `make_it_yours.ipynb`, with AdamW |
//! | `resnet` | a step of a small residual network |
//! | `eval_model` | all 10,000 test images (`batch` is not used) |
//! | `get_datasets` | both datasets, from files to tensors |
//! | `processor` | nothing; the answer is the instruction set and the number of threads |
//! | `memory` | an epoch with its evaluation; the answer is memory after each and the peak, MB |

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::error::Error;
use std::hint::black_box;
use std::io::BufRead;
use std::time::{Duration, Instant};

use mnist_notebook_support::candle_core::{self, D, Var};
use mnist_notebook_support::candle_nn::{
    Conv2d, Conv2dConfig, Linear, Module as _, VarBuilder, VarMap, conv2d, linear,
    loss, ops,
};
use mnist_notebook_support::linen::Rule;
use mnist_notebook_support::prelude::*;

type Outcome<T> = std::result::Result<T, Box<dyn Error>>;

/// Runs a number of repetitions and returns their duration.
type Repeat = Box<dyn FnMut(usize) -> Outcome<Duration>>;

const LEARNING_RATE: f64 = 0.1;
const BETA: f64 = 0.9;

fn main() -> Outcome<()> {
    let mut prepared: HashMap<(String, usize), Repeat> = HashMap::new();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let [what, batch, count] = line.split(' ').collect::<Vec<_>>()[..] else {
            return Err(format!("expected `what batch count`, not `{line}`").into());
        };
        let (batch, count) = (batch.parse::<usize>()?, count.parse::<usize>()?);
        let answer = match what {
            "memory" => memory(batch, count)?,
            "processor" => processor(),
            _ => {
                let repeat = match prepared.entry((what.to_owned(), batch)) {
                    Entry::Occupied(entry) => entry.into_mut(),
                    Entry::Vacant(entry) => entry.insert(prepare(what, batch)?),
                };
                (repeat(count)?.as_secs_f64() * 1e3 / count as f64).to_string()
            }
        };
        println!("= {answer}");
    }
    Ok(())
}

fn prepare(what: &str, batch: usize) -> Outcome<Repeat> {
    match what {
        "train_step" => compiled_step(Cnn, batch),
        "train_step_candle" => candle_step(batch),
        "own_module" => autograd_step(OwnModule, batch),
        "own_module_jit" => compiled_step(OwnModule, batch),
        "my_net" => {
            let rule = AdamW { weight_decay: 0.01, ..AdamW::default() };
            stateful_step(MyNet, 468_458, 0.001, rule, batch)
        }
        "resnet" => {
            stateful_step(ResNet, 77_898, LEARNING_RATE, Momentum::default(), batch)
        }
        "eval_model" => evaluation(),
        "get_datasets" => Ok(repeat(|| Ok(get_datasets(&Device::Cpu)?))),
        _ => Err(format!("unknown request `{what}`").into()),
    }
}

/// A custom network: other widths, larger kernels, max pooling.
struct OwnModule;

impl Module for OwnModule {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = max_pool(&relu(&nn.conv(20, (5, 5), x)?)?, (2, 2))?; //  [B, 14, 14, 20]
        let x = max_pool(&relu(&nn.conv(40, (5, 5), &x)?)?, (2, 2))?; // [B, 7, 7, 40]
        let x = relu(&nn.conv(80, (5, 5), &x)?)?; //                     [B, 7, 7, 80]
        let x = relu(&nn.dense(100, &flatten(&x)?)?)?; //                [B, 100]
        log_softmax(&nn.dense(10, &x)?) //                               [B, 10]
    }
}

/// The network of `notebooks/make_it_yours.ipynb`.
struct MyNet;

impl Module for MyNet {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = relu(&conv_norm(nn, &Conv::new(32, (3, 3)), x)?)?; //  [B, 28, 28, 32]
        let x = relu(&conv_norm(nn, &Conv::new(32, (3, 3)), &x)?)?;
        let x = nn.dropout(0.1, &max_pool(&x, (2, 2))?)?; //           [B, 14, 14, 32]
        let x = relu(&conv_norm(nn, &Conv::new(64, (3, 3)), &x)?)?; // [B, 14, 14, 64]
        let x = relu(&conv_norm(nn, &Conv::new(64, (3, 3)), &x)?)?;
        let x = nn.dropout(0.1, &max_pool(&x, (2, 2))?)?; //           [B, 7, 7, 64]
        let x = nn.dense(128, &flatten(&x)?)?; //                      [B, 128]
        let x = relu(&nn.batch_norm(&x)?)?;
        let x = nn.dropout(0.3, &x)?;
        log_softmax(&nn.dense(10, &x)?) //                             [B, 10]
    }
}

/// Three residual blocks; the last two halve the image.
struct ResNet;

impl Module for ResNet {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = relu(&conv_norm(nn, &Conv::new(16, (3, 3)), x)?)?; //      [B, 28, 28, 16]
        let x = nn.module(&Block { features: 16, stride: 1 }, &x)?; //     [B, 28, 28, 16]
        let x = nn.module(&Block { features: 32, stride: 2 }, &x)?; //     [B, 14, 14, 32]
        let x = nn.module(&Block { features: 64, stride: 2 }, &x)?; //     [B, 7, 7, 64]
        log_softmax(&nn.dense(10, &global_avg_pool(&x)?)?) //              [B, 10]
    }
}

struct Block {
    features: usize,
    stride: usize,
}

impl Module for Block {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let strides = (self.stride, self.stride);
        let conv = |size| Conv::new(self.features, (size, size));
        let y = relu(&conv_norm(nn, &Conv { strides, ..conv(3) }, x)?)?;
        let y = conv_norm(nn, &conv(3), &y)?;
        if x.dims() == y.dims() {
            return relu(&add(x, &y)?);
        }
        let x = nn.conv_with(&Conv { strides, ..conv(1) }, x)?;
        relu(&add(&x, &y)?)
    }
}

fn conv_norm(nn: &mut Scope, conv: &Conv, x: &Tensor) -> Result<Tensor> {
    let x = nn.conv_with(conv, x)?;
    nn.batch_norm(&x)
}

fn compiled_step<M: Module + 'static>(model: M, batch: usize) -> Outcome<Repeat> {
    let mut optimizer = optimizer(&model)?;
    let mut jit = Jit::new();
    let mut batches = Batches::new(batch)?;
    Ok(repeat(move || {
        let batch = batches.next()?;
        Ok(jit.call(|| train_step(&model, &mut optimizer, &batch))?)
    }))
}

fn autograd_step<M: Module + 'static>(model: M, batch: usize) -> Outcome<Repeat> {
    let mut optimizer = optimizer(&model)?;
    let mut batches = Batches::new(batch)?;
    Ok(repeat(move || {
        let batch = batches.next()?;
        Ok(disable_jit(|| train_step(&model, &mut optimizer, &batch))?)
    }))
}

/// A step of a network with batch norm, or dropout. The keys are those of JAX's script, so both
/// start with the same parameters and drop the same values.
fn stateful_step<M: Module + 'static>(
    model: M,
    num_params: usize,
    learning_rate: f64,
    rule: impl Into<Rule>,
    batch: usize,
) -> Outcome<Repeat> {
    let mut batches = Batches::new(batch)?;
    let sample = batches.dataset.slice(0, 1)?;
    let variables = model.init_variables(Key::new(0), sample.image())?;
    assert_eq!(
        variables.params.elem_count(),
        num_params,
        "JAX's network is another one"
    );
    let mut state = TrainState::new(&variables, learning_rate, rule, Key::new(2))?;
    let mut jit = Jit::new();
    Ok(repeat(move || {
        let batch = batches.next()?;
        Ok(jit.call(|| train_step(&model, &mut state, &batch))?)
    }))
}

fn optimizer(model: &impl Module) -> Result<Optimizer> {
    let params = get_initial_params(model, Key::new(0), &Device::Cpu)?;
    create_optimizer(&params, LEARNING_RATE, BETA)
}

fn evaluation() -> Outcome<Repeat> {
    let (_, test_ds) = get_datasets(&Device::Cpu)?;
    let params = get_initial_params(&Cnn, Key::new(0), &Device::Cpu)?;
    Ok(repeat(move || Ok(eval_model(&Cnn, &params, &test_ds)?)))
}

fn repeat<T>(mut once: impl FnMut() -> Outcome<T> + 'static) -> Repeat {
    Box::new(move |count| {
        let start = Instant::now();
        let results = (0..count).map(|_| once()).collect::<Outcome<Vec<T>>>()?;
        let duration = start.elapsed();
        black_box(results);
        Ok(duration)
    })
}

/// Shuffled batches of the training set, starting over after the last one.
struct Batches {
    dataset: Dataset,
    indices: Vec<u32>,
    batch: usize,
    next: usize,
}

impl Batches {
    fn new(batch: usize) -> Result<Self> {
        let (dataset, _) = get_datasets(&Device::Cpu)?;
        let indices = permutation(Key::new(1), dataset.len());
        Ok(Self { dataset, indices, batch, next: 0 })
    }

    fn next(&mut self) -> Result<Batch> {
        if self.next + self.batch > self.indices.len() {
            self.next = 0;
        }
        let indices = &self.indices[self.next..][..self.batch];
        self.next += self.batch;
        self.dataset.batch(indices)
    }
}

/// The tutorial's network in plain candle: its layers, NCHW, autograd.
struct CandleCnn {
    conv1: Conv2d,
    conv2: Conv2d,
    dense1: Linear,
    dense2: Linear,
}

impl CandleCnn {
    fn new(vb: &VarBuilder) -> candle_core::Result<Self> {
        let same = Conv2dConfig { padding: 1, ..Default::default() };
        Ok(Self {
            conv1: conv2d(1, 32, 3, same, vb.pp("conv1"))?,
            conv2: conv2d(32, 64, 3, same, vb.pp("conv2"))?,
            dense1: linear(3136, 256, vb.pp("dense1"))?,
            dense2: linear(256, 10, vb.pp("dense2"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let x = self.conv1.forward(x)?.relu()?.avg_pool2d(2)?;
        let x = self.conv2.forward(&x)?.relu()?.avg_pool2d(2)?;
        let x = self.dense1.forward(&x.flatten_from(1)?)?.relu()?;
        ops::log_softmax(&self.dense2.forward(&x)?, D::Minus1)
    }
}

fn candle_step(batch: usize) -> Outcome<Repeat> {
    let vars = VarMap::new();
    let model =
        CandleCnn::new(&VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
    let vars = vars.all_vars();
    let zeros = |var: &Var| Var::from_tensor(&var.zeros_like()?);
    let velocities =
        vars.iter().map(zeros).collect::<candle_core::Result<Vec<Var>>>()?;
    let mut batches = Batches::new(batch)?;
    Ok(repeat(move || {
        let next = batches.next()?;
        let log_probs = model.forward(&next.image().reshape((batch, 1, 28, 28))?)?;
        let loss = loss::nll(&log_probs, next.label())?;
        let grads = loss.backward()?;
        for (var, velocity) in vars.iter().zip(&velocities) {
            let grad = grads.get(var).ok_or("no gradient")?;
            velocity.set(&((velocity.as_tensor() * BETA)? + grad)?)?;
            var.set(&(var.as_tensor() - (velocity.as_tensor() * LEARNING_RATE)?)?)?;
        }
        Ok(compute_metrics(&log_probs, next.label())?)
    }))
}

/// What the kernels use of the processor, such as `AVX-512, 2 threads`.
fn processor() -> String {
    format!(
        "{}, {} threads",
        cpu_kernels::instruction_set(),
        rayon::current_num_threads()
    )
}

/// Trains for some epochs; the memory in use after each epoch and the peak, in MB.
fn memory(batch: usize, epochs: usize) -> Outcome<String> {
    let (train_ds, test_ds) = get_datasets(&Device::Cpu)?;
    let mut optimizer = optimizer(&Cnn)?;
    let mut answer = String::new();
    for epoch in 1..=epochs {
        let rng = Key::new(epoch as i64);
        train_epoch(&Cnn, &mut optimizer, &train_ds, batch, epoch, rng)?;
        eval_model(&Cnn, optimizer.target(), &test_ds)?;
        answer += &format!("{} ", megabytes("VmRSS:")?);
    }
    Ok(answer + &megabytes("VmHWM:")?.to_string())
}

/// A memory entry of Linux's `/proc/self/status`, in MB.
fn megabytes(entry: &str) -> Outcome<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(entry));
    let kibibytes =
        line.and_then(|line| line.trim().strip_suffix(" kB")).ok_or("no such entry")?;
    Ok(kibibytes.parse::<f64>()? * 1024.0 / 1e6)
}
