//! Networks with batch norm and dropout. Other tests compare their values with Flax's; these check
//! general properties.

mod common;

use candle_core::Tensor;
use linen::random::normal;
use linen::{Key, Module, Params, Result, Scope, Variables, relu, tabulate};

use common::device;

/// Batch norm and dropout on rows.
struct Steady;

impl Module for Steady {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = nn.dense(8, x)?;
        let x = relu(&nn.batch_norm(&x)?)?;
        let x = nn.dropout(0.5, &x)?;
        nn.dense(3, &x)
    }
}

fn rows() -> Tensor {
    normal(Key::new(1), (600, 4), &device()).unwrap()
}

fn variables() -> Variables {
    Steady.init_variables(Key::new(0), &rows()).unwrap()
}

/// The output in training mode, and the updated statistics.
fn train(Variables { params, batch_stats }: &Variables, key: Key) -> (Tensor, Params) {
    Steady.apply_train(params, batch_stats, key, &rows()).unwrap()
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn statistics_are_separate_from_parameters() {
    let Variables { params, batch_stats } = variables();
    let paths: Vec<_> = params.paths().collect();
    let batch_norm = ["BatchNorm_0/bias", "BatchNorm_0/scale"];
    let dense = ["Dense_0/bias", "Dense_0/kernel", "Dense_1/bias", "Dense_1/kernel"];
    assert_eq!(paths, [&batch_norm[..], &dense[..]].concat());
    let stats: Vec<_> = batch_stats.iter().map(|(path, var)| (path, values(var))).collect();
    let initial = [("BatchNorm_0/mean", vec![0.0; 8]), ("BatchNorm_0/var", vec![1.0; 8])];
    assert_eq!(stats, initial);
}

#[test]
fn the_table_of_layers_shows_batch_norm_and_dropout() {
    let table = tabulate(&Steady, &rows()).unwrap();
    let rows: Vec<_> = table.rows.iter().map(|row| (row.layer.as_str(), row.parameters)).collect();
    let expected =
        [("Dense_0", 40), ("BatchNorm_0", 16), ("relu_0", 0), ("Dropout_0", 0), ("Dense_1", 27)];
    assert_eq!(rows, expected);
    assert_eq!(table.parameters, 83);
}

#[test]
fn running_statistics_converge_to_those_of_the_data() {
    let mut variables = variables();
    for step in 0..1000 {
        variables.batch_stats = train(&variables, Key::new(step)).1;
    }
    let hidden = rows().matmul(variables.params.get("Dense_0/kernel").unwrap()).unwrap();
    let mean = hidden.mean(0).unwrap();
    let found = values(variables.batch_stats.get("BatchNorm_0/mean").unwrap());
    for (found, expected) in found.iter().zip(values(&mean)) {
        assert!((found - expected).abs() < 1e-3, "{found} {expected}");
    }
}

#[test]
fn training_depends_on_the_key_and_evaluation_does_not() {
    let variables = variables();
    let train = |seed| values(&train(&variables, Key::new(seed)).0);
    assert_eq!(train(1), train(1));
    assert_ne!(train(1), train(2));
    let evaluate = || values(&Steady.apply_eval(&variables, &rows()).unwrap());
    assert_eq!(evaluate(), evaluate());
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    if !device().is_cpu() {
        return; // threads only matter on the CPU
    }
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let variables = variables();
            let (y, batch_stats) = train(&variables, Key::new(1));
            let gradients = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let gradients = variables.params.iter().map(|(_, var)| gradients.get(var).unwrap());
            let stats = batch_stats.iter().map(|(_, var)| var.as_tensor());
            gradients.chain(stats).map(values).collect::<Vec<_>>()
        })
    };
    assert_eq!(run(3), run(1));
}

#[test]
fn variables_survive_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("steady.safetensors");
    let mut variables = variables();
    variables.batch_stats = train(&variables, Key::new(1)).1;
    variables.save(&path).unwrap();
    let loaded = Variables::load(&path, &device()).unwrap();
    for (saved, loaded) in
        [(&variables.params, &loaded.params), (&variables.batch_stats, &loaded.batch_stats)]
    {
        assert!(saved.paths().eq(loaded.paths()));
        for ((_, saved), (_, loaded)) in saved.iter().zip(loaded.iter()) {
            assert_eq!(values(saved), values(loaded));
        }
    }
}
