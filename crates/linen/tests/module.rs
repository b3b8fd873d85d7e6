//! Modules: parameters, names, shapes, and the derivatives of all layers.

mod common;

use candle_core::{DType, Tensor, Var};
use linen::random::{normal, uniform};
use linen::{
    Error, Key, Module, Params, Result, Scope, avg_pool, flatten, log_softmax, max_pool, relu,
    tabulate, value_and_grad,
};

use common::device;

/// The tutorial's network.
struct Cnn;

impl Module for Cnn {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = avg_pool(&relu(&nn.conv(32, (3, 3), x)?)?, (2, 2))?;
        let x = avg_pool(&relu(&nn.conv(64, (3, 3), &x)?)?, (2, 2))?;
        let x = relu(&nn.dense(256, &flatten(&x)?)?)?;
        log_softmax(&nn.dense(10, &x)?)
    }
}

fn images(batch: usize) -> Tensor {
    uniform(Key::new(1), (batch, 28, 28, 1), 0.0, 1.0, &device()).unwrap()
}

#[test]
fn the_tutorial_network_has_824458_parameters_under_flax_names() {
    let params = Cnn.init(Key::new(0), &images(1)).unwrap();
    let shapes: Vec<_> = params.iter().map(|(path, var)| (path, var.dims().to_vec())).collect();
    assert_eq!(
        shapes,
        [
            ("Conv_0/bias", vec![32]),
            ("Conv_0/kernel", vec![3, 3, 1, 32]),
            ("Conv_1/bias", vec![64]),
            ("Conv_1/kernel", vec![3, 3, 32, 64]),
            ("Dense_0/bias", vec![256]),
            ("Dense_0/kernel", vec![3136, 256]),
            ("Dense_1/bias", vec![10]),
            ("Dense_1/kernel", vec![256, 10]),
        ]
    );
    assert_eq!(params.elem_count(), 824_458);
}

#[test]
fn the_table_lists_layers_in_evaluation_order() {
    let table = tabulate(&Cnn, &images(1)).unwrap();
    let rows: Vec<_> = table
        .rows
        .iter()
        .map(|row| (row.layer.as_str(), row.output_shape.clone(), row.parameters))
        .collect();
    assert_eq!(
        rows,
        [
            ("Conv_0", vec![1, 28, 28, 32], 320),
            ("relu_0", vec![1, 28, 28, 32], 0),
            ("avg_pool_0", vec![1, 14, 14, 32], 0),
            ("Conv_1", vec![1, 14, 14, 64], 18_496),
            ("relu_1", vec![1, 14, 14, 64], 0),
            ("avg_pool_1", vec![1, 7, 7, 64], 0),
            ("flatten_0", vec![1, 3136], 0),
            ("Dense_0", vec![1, 256], 803_072),
            ("relu_2", vec![1, 256], 0),
            ("Dense_1", vec![1, 10], 2_570),
            ("log_softmax_0", vec![1, 10], 0),
        ]
    );
}

#[test]
fn the_network_outputs_log_probabilities() {
    let params = Cnn.init(Key::new(0), &images(1)).unwrap();
    let logits = Cnn.apply(&params, &images(3)).unwrap();
    assert_eq!(logits.dims(), [3, 10]);
    for total in logits.exp().unwrap().sum(1).unwrap().to_vec1::<f32>().unwrap() {
        assert!((total - 1.0).abs() < 1e-5);
    }
}

#[test]
fn parameters_depend_on_the_key() {
    let kernel = |seed| {
        let params = Cnn.init(Key::new(seed), &images(1)).unwrap();
        let kernel = params.get("Conv_1/kernel").unwrap().flatten_all().unwrap();
        kernel.to_vec1::<f32>().unwrap()
    };
    assert_eq!(kernel(7), kernel(7));
    assert_ne!(kernel(7), kernel(8));
}

#[test]
fn results_do_not_depend_on_the_batch_size() {
    let params = Cnn.init(Key::new(0), &images(1)).unwrap();
    let images = images(5);
    let together = Cnn.apply(&params, &images).unwrap().to_vec2::<f32>().unwrap();
    for (i, row) in together.iter().enumerate() {
        let alone = Cnn.apply(&params, &images.narrow(0, i, 1).unwrap()).unwrap();
        for (a, b) in alone.to_vec2::<f32>().unwrap()[0].iter().zip(row) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }
}

/// All layers, with odd sizes, an even kernel, and images of three channels.
struct Odd;

impl Module for Odd {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = relu(&nn.conv(5, (5, 3), x)?)?;
        let x = max_pool(&x, (2, 3))?;
        let x = relu(&nn.conv(4, (2, 4), &x)?)?;
        let x = avg_pool(&x, (3, 2))?;
        let x = relu(&nn.dense(7, &flatten(&x)?)?)?;
        log_softmax(&nn.dense(3, &x)?)
    }
}

fn odd_batch() -> (Tensor, Tensor) {
    let image = normal(Key::new(2), (4, 13, 11, 3), &device()).unwrap();
    (image, Tensor::new(&[0u32, 1, 2, 1], &device()).unwrap())
}

fn loss_of(params: &Params, dtype: DType) -> Result<(Tensor, ())> {
    let (image, label) = odd_batch();
    let logits = Odd.apply(params, &image.to_dtype(dtype)?)?;
    let of_label = logits.gather(&label.unsqueeze(1)?, 1)?;
    Ok((of_label.mean_all()?.neg()?, ()))
}

/// Parameters with non-zero biases, so that errors in using them show.
fn odd_params() -> Params {
    let params = Odd.init(Key::new(3), &odd_batch().0).unwrap();
    let noisy = params.iter().enumerate().map(|(i, (path, var))| {
        let noise = normal(Key::new(i as i64), var.shape(), &device()).unwrap();
        (path.to_owned(), (var.as_tensor() + noise * 0.1).unwrap())
    });
    noisy.collect::<Vec<_>>().try_into().unwrap()
}

fn largest(tensor: &Tensor) -> f64 {
    let values = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
    values.to_vec1::<f64>().unwrap().into_iter().fold(0.0, |max, value| max.max(value.abs()))
}

#[test]
fn gradients_of_the_kernels_equal_candles_in_f64() {
    if device().is_metal() {
        return; // Metal has no f64
    }
    let params = odd_params();
    let ((loss, ()), fast) = value_and_grad(|p| loss_of(p, DType::F32), &params).unwrap();
    let params = params.to_dtype(DType::F64).unwrap();
    let ((expected, ()), exact) = value_and_grad(|p| loss_of(p, DType::F64), &params).unwrap();
    let expected = expected.to_scalar::<f64>().unwrap();
    assert!((f64::from(loss.to_scalar::<f32>().unwrap()) - expected).abs() < 1e-5);
    for (path, exact) in exact.iter().unwrap() {
        let fast = fast.get(path).unwrap().to_dtype(DType::F64).unwrap();
        let difference = largest(&(fast - exact).unwrap());
        assert!(difference <= 1e-5 * largest(exact), "{path}: {difference}");
    }
}

#[test]
fn gradients_in_f64_equal_finite_differences() {
    if device().is_metal() {
        return; // Metal has no f64
    }
    let params = odd_params().to_dtype(DType::F64).unwrap();
    let ((_, ()), gradients) = value_and_grad(|p| loss_of(p, DType::F64), &params).unwrap();
    let loss = || loss_of(&params, DType::F64).unwrap().0.to_scalar::<f64>().unwrap();
    let step = 1e-6;
    for (path, var) in params.iter() {
        let value = var.as_tensor().copy().unwrap();
        // The directional derivative along random signs involves every entry.
        let signs = normal(Key::new(9), var.shape(), &device()).unwrap();
        let signs = signs.sign().unwrap().to_dtype(DType::F64).unwrap();
        let shifted_loss = |shift: f64| {
            var.set(&(&value + (&signs * shift).unwrap()).unwrap()).unwrap();
            loss()
        };
        let numeric = (shifted_loss(step) - shifted_loss(-step)) / (2.0 * step);
        var.set(&value).unwrap();
        let exact = (gradients.get(path).unwrap() * &signs).unwrap().sum_all().unwrap();
        let exact = exact.to_scalar::<f64>().unwrap();
        assert!(
            (numeric - exact).abs() <= 1e-6 * exact.abs().max(1e-2),
            "{path} {numeric} {exact}"
        );
    }
}

#[test]
fn the_derivative_of_relu_at_zero_is_zero() {
    if device().is_metal() {
        return; // Metal has no f64
    }
    for dtype in [DType::F32, DType::F64] {
        let x = Var::from_tensor(
            &Tensor::new(&[-1f32, 0.0, 2.0], &device()).unwrap().to_dtype(dtype).unwrap(),
        )
        .unwrap();
        let y = relu(&x).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        let floats = |t: &Tensor| t.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(floats(&y), [0.0, 0.0, 2.0]);
        assert_eq!(floats(grads.get(&x).unwrap()), [0.0, 0.0, 1.0]);
    }
}

#[test]
fn parameters_of_another_network_are_rejected_by_path() {
    let images = images(1);
    let params = Cnn.init(Key::new(0), &images).unwrap();
    let error = Odd.apply(&params, &images).unwrap_err().to_string();
    assert!(error.starts_with("parameter \"Conv_0/kernel\" has shape [3, 3, 1, 32]"), "{error}");
    let error = Cnn.apply(&Params::default(), &images).unwrap_err().to_string();
    assert!(error.starts_with("no parameter \"Conv_0/kernel\" among []"), "{error}");
}

#[test]
fn inputs_of_the_wrong_rank_are_rejected_with_both_shapes() {
    let flat = images(2).reshape((2, 784)).unwrap();
    let error = Cnn.init(Key::new(0), &flat).unwrap_err();
    assert_eq!(
        error.to_string(),
        "conv input: expected shape [B, height, width, channels], found [2, 784]"
    );
    let error = avg_pool(images(1), (29, 1)).unwrap_err().to_string();
    assert!(error.contains("expected shape [B, at least 29, at least 1, C]"), "{error}");
}

#[test]
fn parameters_survive_a_file() {
    let params = odd_params();
    let file = tempfile::NamedTempFile::new().unwrap();
    params.save(file.path()).unwrap();
    let loaded = Params::load(file.path(), &device()).unwrap();
    assert_eq!(loaded.len(), params.len());
    for ((path, a), (other_path, b)) in params.iter().zip(loaded.iter()) {
        assert_eq!(path, other_path);
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(a.dims(), b.dims());
        assert_eq!(values(a), values(b));
    }
}

#[test]
fn a_flipped_bit_in_a_file_is_detected() {
    let file = tempfile::NamedTempFile::new().unwrap();
    odd_params().save(file.path()).unwrap();
    let good = std::fs::read(file.path()).unwrap();
    // Without its name the sum is not found, and the file counts as written by other programs.
    let name = good.windows(6).position(|bytes| bytes == b"sha256").unwrap();
    for position in (0..good.len()).filter(|position| !(name..name + 6).contains(position)) {
        let mut bytes = good.clone();
        bytes[position] ^= 1 << (position % 8);
        std::fs::write(file.path(), bytes).unwrap();
        let error = Params::load(file.path(), &device()).unwrap_err();
        assert!(matches!(error, Error::Load { .. }), "{position}: {error:?}");
        assert!(error.to_string().contains("it is damaged"), "{position}: {error}");
    }
}
