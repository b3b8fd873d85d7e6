//! Random networks with branches, batch norm and dropout do the same within a [`Jit`] and without.

mod common;

use candle_core::{DType, Tensor, Var};
use linen::random::normal;
use linen::{
    AdamW, Conv, Gradients, Jit, Key, Module, Optimizer, Padding, Params, Result, Scope, Variables,
    add, avg_pool, concatenate, flatten, gelu, global_avg_pool, log_softmax, max_pool, no_grad,
    relu, value_and_grad,
};
use proptest::prelude::*;
use proptest::test_runner::{TestRng, TestRunner};

use common::device;

/// A layer, or several.
#[derive(Clone, Debug)]
enum Part {
    Conv(usize, (usize, usize)),
    Strided(usize, (usize, usize), (usize, usize), bool),
    Relu,
    Gelu,
    BatchNorm,
    LayerNorm,
    Dropout(f64),
    AvgPool((usize, usize)),
    MaxPool((usize, usize)),
    Doubled,
    Residual(Vec<Part>),
    Branches(Vec<Part>, Vec<Part>),
}

#[derive(Clone, Debug)]
struct Network {
    parts: Vec<Part>,
    has_global_pool: bool,
    hidden: Vec<Part>,
    has_log_softmax: bool,
}

impl Module for Part {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let fits = |(height, width): (usize, usize)| match *x.dims() {
            [_, rows, columns, _] => height <= rows && width <= columns,
            _ => false,
        };
        match self {
            Part::Conv(features, kernel_size) => nn.conv(*features, *kernel_size, x),
            &Part::Strided(features, kernel_size, strides, is_valid) => {
                let padding =
                    if is_valid && fits(kernel_size) { Padding::Valid } else { Padding::Same };
                nn.conv_with(&Conv { strides, padding, ..Conv::new(features, kernel_size) }, x)
            }
            Part::Relu => relu(x),
            Part::Gelu => gelu(x),
            Part::BatchNorm => nn.batch_norm(x),
            // Two or three close values would be blown up, with their last digits.
            Part::LayerNorm if x.dims()[x.rank() - 1] >= 4 => nn.layer_norm(x),
            Part::Dropout(rate) => nn.dropout(*rate, x),
            Part::AvgPool(window) if fits(*window) => avg_pool(x, *window),
            Part::MaxPool(window) if fits(*window) => max_pool(x, *window),
            Part::AvgPool(_) | Part::MaxPool(_) | Part::LayerNorm => relu(x),
            Part::Doubled => add(x, x),
            Part::Residual(parts) => {
                let channels = x.dims()[3];
                let y = all(parts, nn, x)?;
                let y = nn.conv(channels, (1, 1), &y)?;
                add(&y, &nn.batch_norm(x)?)
            }
            Part::Branches(a, b) => {
                let (a, b) = (all(a, nn, x)?, all(b, nn, x)?);
                concatenate(&[&a, x, &b])
            }
        }
    }
}

fn all(parts: &[Part], nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
    parts.iter().try_fold(x.clone(), |x, part| part.call(nn, &x))
}

impl Module for Network {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = all(&self.parts, nn, x)?;
        let x = if self.has_global_pool { global_avg_pool(&x)? } else { flatten(&x)? };
        let x = nn.dense(7, &x)?;
        let x = all(&self.hidden, nn, &x)?;
        let x = nn.dense(4, &x)?;
        if self.has_log_softmax { log_softmax(&x) } else { Ok(x) }
    }
}

fn size() -> impl Strategy<Value = (usize, usize)> {
    (1..4usize, 1..4usize)
}

/// A part that keeps height and width.
fn same_size() -> impl Strategy<Value = Part> {
    prop_oneof![
        (1..20usize, size()).prop_map(|(features, kernel)| Part::Conv(features, kernel)),
        Just(Part::Relu),
        Just(Part::Gelu),
        Just(Part::BatchNorm),
        Just(Part::LayerNorm),
        (0..4u8).prop_map(|quarters| Part::Dropout(f64::from(quarters) / 4.0)),
        Just(Part::Doubled),
    ]
}

fn part() -> impl Strategy<Value = Part> {
    let branch = || prop::collection::vec(same_size(), 0..4);
    prop_oneof![
        6 => same_size(),
        2 => (1..20usize, size(), size(), any::<bool>())
            .prop_map(|(features, kernel, strides, is_valid)| {
                Part::Strided(features, kernel, strides, is_valid)
            }),
        1 => size().prop_map(Part::AvgPool),
        1 => size().prop_map(Part::MaxPool),
        2 => branch().prop_map(Part::Residual),
        2 => (branch(), branch()).prop_map(|(a, b)| Part::Branches(a, b)),
    ]
}

fn network() -> impl Strategy<Value = Network> {
    let hidden = prop_oneof![
        Just(Part::Relu),
        Just(Part::Gelu),
        Just(Part::BatchNorm),
        Just(Part::LayerNorm),
        Just(Part::Dropout(0.5)),
    ];
    let parts = prop::collection::vec(part(), 1..7);
    (parts, any::<bool>(), prop::collection::vec(hidden, 0..4), any::<bool>()).prop_map(
        |(parts, has_global_pool, hidden, has_log_softmax)| Network {
            parts,
            has_global_pool,
            hidden,
            has_log_softmax,
        },
    )
}

/// A state that nothing starts with: random biases, scales and statistics.
fn variables(network: &Network, image: &Tensor) -> Variables {
    let variables = network.init_variables(Key::new(1), image).unwrap();
    for (index, var) in variables.params.vars().iter().enumerate() {
        let noise = normal(Key::new(100 + index as i64), var.shape(), &device()).unwrap();
        var.set(&(var.as_tensor() + (noise * 0.2).unwrap()).unwrap()).unwrap();
    }
    for (index, (path, var)) in variables.batch_stats.iter().enumerate() {
        let noise = normal(Key::new(200 + index as i64), var.shape(), &device()).unwrap();
        let noise =
            if path.ends_with("var") { (noise.sqr().unwrap() + 0.5).unwrap() } else { noise };
        var.set(&noise).unwrap();
    }
    variables
}

struct Step {
    output: Tensor,
    updates: Params,
    gradients: Gradients,
}

fn step(network: &Network, variables: &Variables, params: &Params, image: &Tensor) -> Step {
    let loss_fn = |params: &Params| {
        let (output, updates) =
            network.apply_train(params, &variables.batch_stats, Key::new(3), image)?;
        let weights = normal(Key::new(4), output.shape(), output.device())?;
        let weights = weights.to_dtype(output.dtype())?;
        Ok(((&output * weights)?.sum_all()?, (output, updates)))
    };
    let ((_, (output, updates)), gradients) = value_and_grad(loss_fn, params).unwrap();
    Step { output: output.detach(), updates, gradients }
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn all_values(params: &Params) -> Vec<f64> {
    params.iter().flat_map(|(_, var): (&str, &Var)| values(var)).collect()
}

impl Step {
    /// All that a step results in.
    fn results(&self) -> [(&'static str, Vec<f64>); 3] {
        let gradients = self.gradients.iter().unwrap();
        [
            ("output", values(&self.output)),
            ("statistics", all_values(&self.updates)),
            ("gradients", gradients.flat_map(|(_, gradient)| values(gradient)).collect()),
        ]
    }
}

/// The largest difference, relative to the largest entry.
fn difference(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(1e-3f64, |largest, value| largest.max(value.abs()));
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, f64::max) / largest
}

/// The same step in double precision.
fn exact_step(network: &Network, variables: &Variables, image: &Tensor) -> Step {
    let to_f64 = |params: &Params| params.to_dtype(DType::F64).unwrap();
    let exact = Variables {
        params: to_f64(&variables.params),
        batch_stats: to_f64(&variables.batch_stats),
    };
    step(network, &exact, &exact.params, &image.to_dtype(DType::F64).unwrap())
}

fn is_alike(network: &Network, batch: usize) -> Result<(), TestCaseError> {
    let image = normal(Key::new(2), (batch, 6, 5, 4), &device()).unwrap();
    let variables = variables(network, &image);
    let mut jit = Jit::new();
    let expected = step(network, &variables, &variables.params, &image).results();
    // Twice: the second replays the plan in the same memory.
    for _ in 0..2 {
        let found = jit.call(|| step(network, &variables, &variables.params, &image));
        prop_assert!(jit.is_compiled(), "{jit}");
        for ((what, found), (_, expected)) in found.results().iter().zip(&expected) {
            let difference = difference(found, expected);
            if difference >= 1e-5 {
                // Normalized over few values, even a good step loses digits. Then neither may be
                // far from the truth where the other is not.
                let exact = exact_step(network, &variables, &image).results();
                let (_, exact) = exact.iter().find(|(name, _)| name == what).unwrap();
                let [compiled, plain] =
                    [found, expected].map(|step| crate::difference(step, exact));
                prop_assert!(
                    compiled < 2.0 * plain,
                    "{what}: {difference}; from f64 {compiled}, without a Jit {plain}\n{jit}"
                );
            }
        }
    }

    // An update that is fused with the backward pass is the same, bit for bit.
    let optimizer = || Optimizer::new(&variables.params, 0.01, AdamW::default()).unwrap();
    let (mut fused, mut separate) = (optimizer(), optimizer());
    for _ in 0..2 {
        jit.call(|| {
            let Step { gradients, .. } = step(network, &variables, fused.target(), &image);
            fused.apply_gradient(gradients).unwrap();
            let Step { gradients, .. } = step(network, &variables, separate.target(), &image);
            gradients.iter().unwrap().for_each(drop);
            separate.apply_gradient(gradients).unwrap();
        });
    }
    prop_assert_eq!(all_values(fused.target()), all_values(separate.target()));

    let evaluate = || no_grad(|| network.apply_eval(&variables, &image)).unwrap();
    let (found, expected) = (jit.call(evaluate), evaluate());
    let difference = difference(&values(&found), &values(&expected));
    prop_assert!(jit.is_compiled(), "{jit}");
    prop_assert!(difference < 1e-5, "evaluation: {difference}");
    Ok(())
}

#[test]
fn random_networks_are_alike_compiled_and_not() {
    if !device().is_cpu() {
        return; // there are no compiled branches
    }
    // The same networks each time: a value at the edge of a ReLU may fall on either side.
    let config = ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() };
    let rng = TestRng::deterministic_rng(config.rng_algorithm);
    let mut runner = TestRunner::new_with_rng(config, rng);
    runner.run(&(network(), 4..20usize), |(network, batch)| is_alike(&network, batch)).unwrap();
}
