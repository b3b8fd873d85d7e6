//! Comparison with Flax and optax, which computed the values in `golden/`. The networks are those
//! of `tests/golden/models.py` in the project's folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::loss;
use linen::{
    Adam, AdamW, Conv, Evaluate, Key, Module, Momentum, Optimizer, Padding, Params, Result, Rule,
    Scope, Train, TrainState, Variables, WarmupCosine, add, avg_pool, capture_intermediates,
    concatenate, flatten, gelu, global_avg_pool, log_softmax, relu, value_and_grad,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;

fn golden_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn golden<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(golden_file(name)).unwrap()).unwrap()
}

fn floats(bits: &[u32]) -> Vec<f32> {
    bits.iter().copied().map(f32::from_bits).collect()
}

fn tensor(bits: &[u32], shape: &[usize]) -> Tensor {
    Tensor::from_vec(floats(bits), shape, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Asserts that the values differ by at most `tolerance` times the largest.
fn assert_close(name: &str, found: &Tensor, expected: &[u32], tolerance: f32) {
    let (found, expected) = (values(found), floats(expected));
    assert_eq!(found.len(), expected.len(), "{name}");
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
        assert!((a - b).abs() <= tolerance * largest, "{name}[{i}]: {a} instead of {b}");
    }
}

// ---------------------------------------------------------------- parameters and layers

struct TinyCnn;

impl Module for TinyCnn {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = relu(&nn.conv(2, (3, 3), x)?)?;
        let x = avg_pool(&x, (2, 2))?;
        let x = relu(&nn.dense(4, &flatten(&x)?)?)?;
        log_softmax(&nn.dense(3, &x)?)
    }
}

fn tiny_params() -> Params {
    Params::load(golden_file("flax_params.safetensors"), &Device::Cpu).unwrap()
}

#[derive(Deserialize)]
struct FlaxParamsGolden {
    input_shape: Vec<usize>,
    input: Vec<u32>,
    output: Vec<u32>,
}

#[test]
fn parameters_saved_by_flax_give_flax_s_output() {
    let golden: FlaxParamsGolden = golden("flax_params.json");
    let input = tensor(&golden.input, &golden.input_shape);
    let output = TinyCnn.apply(&tiny_params(), &input).unwrap();
    assert_close("output", &output, &golden.output, 1e-6);
}

#[derive(Deserialize)]
struct IntermediatesGolden {
    input_shape: Vec<usize>,
    input: Vec<u32>,
    layers: Vec<LayerGolden>,
}

#[derive(Deserialize)]
struct LayerGolden {
    name: String,
    shape: Vec<usize>,
    values: Vec<u32>,
}

#[test]
fn layer_outputs_are_flax_s() {
    let golden: IntermediatesGolden = golden("intermediates.json");
    let (params, input) = (tiny_params(), tensor(&golden.input, &golden.input_shape));
    let (output, layers) = capture_intermediates(&TinyCnn, &params, &input).unwrap();
    assert_eq!(values(&output), values(&TinyCnn.apply(&params, &input).unwrap()));
    assert_eq!(values(layers.iter().last().unwrap().1), values(&output));
    assert_eq!(golden.layers.len(), 3);
    for LayerGolden { name, shape, values } in golden.layers {
        let found = layers.get(&name).unwrap();
        assert_eq!(found.dims(), shape, "{name}");
        assert_close(&name, found, &values, 1e-6);
    }
}

// ---------------------------------------------------------------- batch norm and dropout

#[derive(Deserialize)]
struct SteadyGolden {
    input_shape: Vec<usize>,
    input: Vec<u32>,
    labels: Vec<u32>,
    dropout_key: [u32; 2],
    loss: f64,
    output_train: Vec<u32>,
    output_eval: Vec<u32>,
    batch_stats: BTreeMap<String, Vec<u32>>,
    gradients: BTreeMap<String, Vec<u32>>,
}

struct Unit {
    features: usize,
}

impl Module for Unit {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = nn.conv(self.features, (3, 3), x)?;
        let x = relu(&nn.batch_norm(&x)?)?;
        nn.dropout(0.25, &x)
    }
}

struct Steady;

impl Module for Steady {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = nn.module(&Unit { features: 3 }, x)?;
        let x = nn.module(&Unit { features: 4 }, &x)?;
        let x = avg_pool(&x, (2, 2))?;
        let x = nn.dense(6, &flatten(&x)?)?;
        let x = relu(&nn.batch_norm(&x)?)?;
        let x = nn.dropout(0.5, &x)?;
        log_softmax(&nn.dense(3, &x)?)
    }
}

/// In f32 the network uses this project's kernels, in f64 candle's operations.
#[test]
fn batch_norm_and_dropout_are_flax_s_in_training_and_evaluation() {
    let golden: SteadyGolden = golden("steady.json");
    let labels = Tensor::new(golden.labels, &Device::Cpu).unwrap();
    for dtype in [DType::F32, DType::F64] {
        let file = golden_file("steady.safetensors");
        let Variables { params, batch_stats } = Variables::load(file, &Device::Cpu).unwrap();
        let variables = Variables {
            params: params.to_dtype(dtype).unwrap(),
            batch_stats: batch_stats.to_dtype(dtype).unwrap(),
        };
        let input = tensor(&golden.input, &golden.input_shape).to_dtype(dtype).unwrap();
        let close = |name: &str, found: &Tensor, expected: &[u32]| {
            assert_close(&format!("{name}, {dtype:?}"), found, expected, 1e-5);
        };
        let output = Steady.apply_eval(&variables, &input).unwrap();
        close("evaluation", &output, &golden.output_eval);
        let key = Key::from_words(golden.dropout_key);
        let mut state = TrainState::new(&variables, 1.0, Momentum::default(), key).unwrap();
        let loss_fn = |params: &Params| {
            let (output, updates) = Steady.apply_train(params, &state.batch_stats, key, &input)?;
            Ok((loss::nll(&output, &labels)?, (output, updates)))
        };
        let ((loss, (output, updates)), grad) = value_and_grad(loss_fn, state.params()).unwrap();
        close("training", &output, &golden.output_train);
        let value: f64 = loss.to_dtype(DType::F64).unwrap().to_scalar().unwrap();
        assert!((value - golden.loss).abs() < 1e-6 * golden.loss, "{value}");

        // The first step of momentum is one along the gradient.
        state.apply_gradient(grad.clone(), updates).unwrap();
        assert!(state.batch_stats.paths().eq(golden.batch_stats.keys()));
        for (path, var) in state.batch_stats.iter() {
            close(path, var, &golden.batch_stats[path]);
        }
        assert!(state.params().paths().eq(golden.gradients.keys()));
        for (path, var) in state.params().iter() {
            // A bias before a batch norm has no effect: its gradient is zero except for rounding.
            let is_bias_before_norm = path.ends_with("Conv_0/bias") || path == "Dense_0/bias";
            if !is_bias_before_norm {
                close(path, grad.get(path).unwrap(), &golden.gradients[path]);
                let before = variables.params.get(path).unwrap();
                let step = (before.as_tensor() - var.as_tensor()).unwrap();
                close(path, &step, &golden.gradients[path]);
            }
        }
    }
}

#[derive(Deserialize)]
struct DropoutGolden {
    key: [u32; 2],
    shape: Vec<usize>,
    cases: Vec<DropoutCase>,
}

#[derive(Deserialize)]
struct DropoutCase {
    rate: f64,
    output: Vec<u32>,
}

struct OnlyDropout(f64);

impl Module for OnlyDropout {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        nn.dropout(self.0, x)
    }
}

#[test]
fn dropout_keeps_exactly_what_flax_keeps() {
    let golden: DropoutGolden = golden("dropout.json");
    let count = golden.shape.iter().product::<usize>();
    let input = Tensor::arange(1f32, 1.0 + count as f32, &Device::Cpu).unwrap();
    let input = input.reshape(golden.shape).unwrap();
    for case in golden.cases {
        let model = OnlyDropout(case.rate);
        let nothing = Params::default();
        let key = Key::from_words(golden.key);
        let (output, _) = model.apply_train(&nothing, &nothing, key, &input).unwrap();
        assert_eq!(values(&output), floats(&case.output), "rate {}", case.rate);
        let evaluated = model.apply_eval(&Variables::default(), &input).unwrap();
        assert_eq!(values(&evaluated), values(&input));
    }
}

// ---------------------------------------------------------------- strides, branches, layer norm

struct Residual;

impl Module for Residual {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let channels = x.dims()[3];
        let y = nn.conv(channels, (3, 3), x)?;
        let y = gelu(&nn.layer_norm(&y)?)?;
        let y = nn.conv(channels, (3, 3), &y)?;
        gelu(&add(x, &nn.layer_norm(&y)?)?)
    }
}

struct Branches;

impl Module for Branches {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = nn.conv_with(&Conv { strides: (2, 2), ..Conv::new(4, (3, 3)) }, x)?;
        let x = nn.module(&Residual, &x)?;
        let x = nn.module(&Residual, &x)?;
        let valid = |features, kernel_size| Conv {
            padding: Padding::Valid,
            ..Conv::new(features, kernel_size)
        };
        let narrow = nn.conv_with(&valid(2, (2, 3)), &x)?;
        let wide = nn.conv_with(&valid(3, (2, 3)), &x)?;
        let x = concatenate(&[&narrow, &wide])?;
        let x = nn.conv_with(&Conv { strides: (2, 1), ..valid(5, (2, 1)) }, &x)?;
        let x = nn.layer_norm(&global_avg_pool(&x)?)?;
        log_softmax(&nn.dense(3, &x)?)
    }
}

#[derive(Deserialize)]
struct BranchesGolden {
    input_shape: Vec<usize>,
    input: Vec<u32>,
    labels: Vec<u32>,
    initial: BTreeMap<String, Vec<u32>>,
    loss: f64,
    output: Vec<u32>,
    gradients: BTreeMap<String, Vec<u32>>,
}

#[test]
fn a_network_with_branches_starts_and_trains_as_in_flax() {
    let golden: BranchesGolden = golden("branches.json");
    let input = tensor(&golden.input, &golden.input_shape);
    let initial = Branches.init(Key::new(0), &input).unwrap();
    assert!(initial.paths().eq(golden.initial.keys()), "{initial:?}");
    for (path, var) in initial.iter() {
        assert_eq!(values(var), floats(&golden.initial[path]), "{path}");
    }
    let labels = Tensor::new(golden.labels, &Device::Cpu).unwrap();
    let params = Params::load(golden_file("branches.safetensors"), &Device::Cpu).unwrap();
    // In f32 the network uses this project's kernels, in f64 candle's operations.
    for dtype in [DType::F32, DType::F64] {
        let params = params.to_dtype(dtype).unwrap();
        let output = Branches.apply(&params, &input.to_dtype(dtype).unwrap()).unwrap();
        assert_close("output", &output, &golden.output, 1e-5);
        let loss = loss::nll(&output, &labels).unwrap();
        let value: f64 = loss.to_dtype(DType::F64).unwrap().to_scalar().unwrap();
        assert!((value - golden.loss).abs() < 1e-5 * golden.loss, "{value}");
        let gradients = loss.backward().unwrap();
        for (path, var) in params.iter() {
            let found = gradients.get(var).unwrap();
            // Layer norm over few channels enlarges the rounding errors, Flax's too.
            assert_close(&format!("{path}, {dtype:?}"), found, &golden.gradients[path], 5e-5);
        }
    }
}

#[derive(Deserialize)]
struct ConvolutionsGolden {
    shape: Vec<usize>,
    input: Vec<u32>,
    cases: Vec<ConvolutionCase>,
}

#[derive(Deserialize)]
struct ConvolutionCase {
    kernel_size: (usize, usize),
    strides: (usize, usize),
    padding: String,
    shape: Vec<usize>,
    output: Vec<u32>,
}

struct OnlyConv(Conv);

impl Module for OnlyConv {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        nn.conv_with(&self.0, x)
    }
}

#[test]
fn convolutions_are_flax_s_for_every_stride_and_padding() {
    let golden: ConvolutionsGolden = golden("convolutions.json");
    let input = tensor(&golden.input, &golden.shape);
    assert_eq!(golden.cases.len(), 32);
    for case in golden.cases {
        let ConvolutionCase { kernel_size, strides, .. } = case;
        let padding = if case.padding == "SAME" { Padding::Same } else { Padding::Valid };
        let model = OnlyConv(Conv { features: 3, kernel_size, strides, padding });
        let params = model.init(Key::new(2), &input).unwrap();
        let bias = Tensor::new(&[1f32, 2.0, 3.0], &Device::Cpu).unwrap();
        params.get("Conv_0/bias").unwrap().set(&bias).unwrap();
        for dtype in [DType::F32, DType::F64] {
            let params = params.to_dtype(dtype).unwrap();
            let output = model.apply(&params, &input.to_dtype(dtype).unwrap()).unwrap();
            let what = format!("{:?} {dtype:?}", model.0);
            assert_eq!(output.dims(), case.shape, "{what}");
            assert_close(&what, &output, &case.output, 1e-6);
        }
    }
}

#[derive(Deserialize)]
struct GeluGolden {
    input: Vec<u32>,
    output: Vec<u32>,
    slope: Vec<u32>,
}

#[test]
fn gelu_and_its_derivative_are_flax_s() {
    let golden: GeluGolden = golden("gelu.json");
    for dtype in [DType::F32, DType::F64] {
        let input = tensor(&golden.input, &[golden.input.len()]).to_dtype(dtype).unwrap();
        let input = Var::from_tensor(&input).unwrap();
        let output = gelu(&input).unwrap();
        assert_close("gelu", &output, &golden.output, 1e-6);
        let gradients = output.sum_all().unwrap().backward().unwrap();
        // Flax's derivative loses digits where GELU is nearly zero.
        assert_close("slope", gradients.get(&input).unwrap(), &golden.slope, 1e-5);
    }
}

// ---------------------------------------------------------------- schedules and optimizers

#[derive(Deserialize)]
struct WarmupCosineGolden {
    cases: Vec<WarmupCosineCase>,
}

#[derive(Deserialize)]
struct WarmupCosineCase {
    peak: f64,
    warmup_steps: usize,
    total_steps: usize,
    steps: Vec<usize>,
    rates: Vec<f64>,
}

#[test]
fn learning_rates_are_optax_s() {
    for case in golden::<WarmupCosineGolden>("warmup_cosine.json").cases {
        let schedule = WarmupCosine::new(case.peak, case.warmup_steps, case.total_steps).unwrap();
        for (step, expected) in case.steps.into_iter().zip(case.rates) {
            // optax computes in f32.
            let difference = (schedule.learning_rate(step) - expected).abs();
            assert!(difference < 1e-6 * case.peak, "step {step}: {difference}");
        }
    }
}

#[derive(Deserialize)]
struct OptimizersGolden {
    start: Vec<f64>,
    rates: Vec<f64>,
    gradients: Vec<f64>,
    /// The parameters after each step, by the name of the rule.
    #[serde(flatten)]
    after: BTreeMap<String, Vec<f64>>,
}

/// In f32 the update is a kernel of this project, in f64 it is made of candle's operations.
#[test]
fn optimizers_step_as_optax_s_do() {
    let golden: OptimizersGolden = golden("optimizers.json");
    let (beta1, beta2, epsilon) = (0.7, 0.95, 0.01);
    let rules: [(&str, Rule); 6] = [
        ("momentum", Momentum::default().into()),
        ("nesterov", Momentum { nesterov: true, ..Momentum::default() }.into()),
        ("adam", Adam::default().into()),
        ("adam_other", Adam { beta1, beta2, epsilon }.into()),
        ("adamw", AdamW::default().into()),
        ("adamw_other", AdamW { beta1, beta2, epsilon, weight_decay: 0.1 }.into()),
    ];
    assert!(golden.after.keys().eq(rules.iter().map(|(name, _)| name).collect::<BTreeSet<_>>()));
    for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F64, 1e-13)] {
        let named = |values: &[f64]| {
            let tensor = Tensor::new(values, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            ("x".to_owned(), tensor)
        };
        for (name, rule) in rules {
            let start = Params::try_from(vec![named(&golden.start)]).unwrap();
            let mut optimizer = Optimizer::new(&start, 0.0, rule).unwrap();
            let steps = golden.rates.iter().zip(golden.gradients.chunks(4));
            for ((&rate, gradient), expected) in steps.zip(golden.after[name].chunks(4)) {
                optimizer.set_learning_rate(rate).unwrap();
                optimizer.apply_gradient([named(gradient)].into_iter().collect()).unwrap();
                let found = optimizer.target().get("x").unwrap().to_dtype(DType::F64).unwrap();
                let found = found.to_vec1::<f64>().unwrap();
                for (found, expected) in found.iter().zip(expected) {
                    let difference = (found - expected).abs() / expected.abs().max(1.0);
                    assert!(difference < tolerance, "{name}: {found} instead of {expected}");
                }
            }
        }
    }
}
