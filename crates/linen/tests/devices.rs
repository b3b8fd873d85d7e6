//! The device under test gives the same results as the CPU. Without a GPU the CPU is compared with
//! itself.

mod common;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Optimizer, loss};
use linen::random::{bits, normal, truncated_normal, uniform};
use linen::{
    Adam, AdamW, Key, Module, Momentum, Result, Rule, Scope, Variables, capture_intermediates,
    flatten, log_softmax, max_pool, relu, tabulate,
};

use common::device;

/// A network that differs between training and evaluation.
struct Steady;

impl Module for Steady {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = max_pool(&relu(&nn.conv(4, (3, 3), x)?)?, (2, 2))?;
        let x = nn.batch_norm(&x)?;
        let x = nn.dropout(0.25, &x)?;
        log_softmax(&nn.dense(10, &flatten(&x)?)?)
    }
}

/// Initial variables, images and labels.
fn start(device: &Device) -> (Variables, Tensor, Tensor) {
    let images = normal(Key::new(1), (20, 12, 10, 2), device).unwrap();
    let labels = Tensor::from_iter((0..20u32).map(|index| index % 10), device).unwrap();
    (Steady.init_variables(Key::new(0), &images).unwrap(), images, labels)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Asserts that the entries differ by at most `tolerance` times the largest entry.
fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let (found, expected) = (values(found), values(expected));
    let largest = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
    for (index, (a, b)) in found.iter().zip(&expected).enumerate() {
        assert!((a - b).abs() <= tolerance * largest, "{what}, entry {index}: {a} instead of {b}");
    }
}

#[test]
fn random_tensors_hold_the_numbers_of_jax_random_in_row_major_order() {
    let (key, device) = (Key::new(3), device());
    let integers = bits(key, (5, 7), &device).unwrap();
    assert_eq!(integers.dims(), [5, 7]);
    let expected = jax_random::bits(key, 35).collect::<Vec<u32>>();
    assert_eq!(integers.flatten_all().unwrap().to_vec1::<u32>().unwrap(), expected);
    let found = uniform(key, (5, 7), -1.0, 2.0, &device).unwrap();
    assert!(jax_random::uniform(key, 35, -1.0, 2.0).eq(values(&found)));
    assert!(jax_random::normal(key, 35).eq(values(&normal(key, (5, 7), &device).unwrap())));
    let found = truncated_normal(key, -1.0, 2.0, (5, 7), &device).unwrap();
    assert!(jax_random::truncated_normal(key, 35, -1.0, 2.0).eq(values(&found)));
}

#[test]
fn saved_parameters_are_identical_files() {
    let folder = tempfile::tempdir().unwrap();
    let files = [device(), Device::Cpu].map(|device| {
        let path = folder.path().join("params.safetensors");
        start(&device).0.params.save(&path).unwrap();
        std::fs::read(path).unwrap()
    });
    assert!(files[0] == files[1]);
}

#[test]
fn training_and_evaluation_are_the_same() {
    let run = |device: &Device| -> Vec<(String, Tensor)> {
        let (mut variables, images, labels) = start(device);
        let Variables { params, batch_stats } = &variables;
        let (log_probs, updates) =
            Steady.apply_train(params, batch_stats, Key::new(1), &images).unwrap();
        let gradients = loss::nll(&log_probs, &labels).unwrap().backward().unwrap();
        variables.batch_stats = updates;
        let evaluated = Steady.apply_eval(&variables, &images).unwrap();
        let gradients = variables.params.iter().map(|(path, var)| (path, gradients.get(var)));
        let statistics = variables.batch_stats.iter().map(|(path, var)| (path, Some(&**var)));
        (gradients
            .chain(statistics)
            .chain([("training", Some(&log_probs)), ("evaluation", Some(&evaluated))]))
        .map(|(what, tensor)| (what.to_owned(), tensor.unwrap().clone()))
        .collect()
    };
    for ((what, found), (_, expected)) in run(&device()).iter().zip(&run(&Device::Cpu)) {
        assert_close(what, found, expected, 1e-4);
    }
}

#[test]
fn every_rule_makes_the_same_steps() {
    let run = |device: &Device, rule: Rule| {
        let (variables, images, labels) = start(device);
        let vars = variables.params.vars();
        let mut optimizer = <linen::Optimizer as Optimizer>::new(vars, (1e-3, rule)).unwrap();
        let loss = || {
            let log_probs = Steady.apply_eval(&variables, &images).unwrap();
            loss::nll(&log_probs, &labels).unwrap()
        };
        for _ in 0..3 {
            optimizer.backward_step(&loss()).unwrap();
        }
        loss()
    };
    let rules: [Rule; 3] = [
        Momentum { nesterov: true, ..Momentum::default() }.into(),
        Adam::default().into(),
        AdamW { weight_decay: 0.1, ..AdamW::default() }.into(),
    ];
    for rule in rules {
        assert_close("loss", &run(&device(), rule), &run(&Device::Cpu, rule), 1e-3);
    }
}

/// A network without batch norm and dropout.
struct Plain;

impl Module for Plain {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = max_pool(&relu(&nn.conv(5, (5, 4), x)?)?, (3, 2))?;
        log_softmax(&nn.dense(10, &flatten(&x)?)?)
    }
}

#[test]
fn layers_give_the_same_outputs_and_the_same_table() {
    let run = |device: &Device| {
        let (_, images, _) = start(device);
        let params = Plain.init(Key::new(0), &images).unwrap();
        let table = tabulate(&Plain, &images).unwrap();
        (capture_intermediates(&Plain, &params, &images).unwrap().1, table)
    };
    let ((found, table), (expected, expected_table)) = (run(&device()), run(&Device::Cpu));
    assert_eq!(table, expected_table);
    assert_eq!(found.iter().count(), expected.iter().count());
    for ((path, found), (_, expected)) in found.iter().zip(expected.iter()) {
        assert_close(path, found, expected, 1e-3);
    }
}
