//! Saliency of networks with every layer equals finite differences, in evaluation mode.

mod common;

use candle_core::{DType, Tensor};
use inspect::saliency;
use linen::random::{normal, uniform};
use linen::{
    Conv, Key, Module, Padding, Params, Result, Scope, Variables, add, avg_pool, concatenate,
    flatten, gelu, global_avg_pool, log_softmax, max_pool, relu,
};

use common::device;

/// Every layer, and branches.
struct Everything;

impl Module for Everything {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = nn.conv_with(&Conv { strides: (1, 2), ..Conv::new(4, (3, 3)) }, x)?;
        let x = relu(&nn.batch_norm(&x)?)?; //                               [B, 9, 4, 4]
        let x = nn.dropout(0.25, &x)?;
        let y = nn.conv(4, (3, 3), &x)?;
        let x = gelu(&add(&x, &nn.batch_norm(&y)?)?)?;
        let valid = Conv { padding: Padding::Valid, ..Conv::new(3, (2, 2)) };
        let narrow = nn.conv_with(&valid, &x)?; //                           [B, 8, 3, 3]
        let wide = nn.conv_with(&Conv { features: 2, ..valid }, &x)?; //     [B, 8, 3, 2]
        let x = nn.layer_norm(&concatenate(&[&narrow, &wide])?)?; //         [B, 8, 3, 5]
        let pooled = flatten(&max_pool(&avg_pool(&x, (2, 1))?, (2, 2))?)?; // [B, 10]
        let x = concatenate(&[&global_avg_pool(&x)?, &pooled])?; //          [B, 15]
        let x = nn.dropout(0.5, &x)?;
        log_softmax(&nn.dense(3, &x)?)
    }
}

/// Random values instead of zeros and ones, which would hide errors.
fn varied(params: &Params, dtype: DType) -> Params {
    let varied = params.iter().map(|(path, var)| {
        let most = if var.rank() == 1 { 0.5 } else { 0.0 };
        let key = path.bytes().fold(Key::new(3), |key, byte| key.fold_in(byte.into()));
        let noise = uniform(key, var.shape(), -most, most, &device()).unwrap();
        (path.to_owned(), (var.as_tensor() + noise).unwrap())
    });
    let varied: Params = varied.collect::<Vec<_>>().try_into().unwrap();
    varied.to_dtype(dtype).unwrap()
}

fn images(dtype: DType) -> Tensor {
    normal(Key::new(2), (2, 9, 8, 2), &device()).unwrap().to_dtype(dtype).unwrap()
}

fn classes() -> Tensor {
    Tensor::new(&[2u32, 0], &device()).unwrap()
}

fn variables(dtype: DType) -> Variables {
    let initial = Everything.init_variables(Key::new(1), &images(DType::F32)).unwrap();
    Variables {
        params: varied(&initial.params, dtype),
        batch_stats: varied(&initial.batch_stats, dtype),
    }
}

fn saliency_in(dtype: DType) -> Vec<f64> {
    let found = saliency(&Everything, &variables(dtype), &images(dtype), &classes()).unwrap();
    assert_eq!(found.dims(), [2, 9, 8, 1]);
    found.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn saliency_equals_finite_differences() {
    if device().is_metal() {
        return; // Metal has no f64
    }
    let variables = variables(DType::F64);
    let images = images(DType::F64);
    let pixels = images.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    // The sum of the chosen outputs, with one number of the images changed.
    let output = |index: usize, change: f64| {
        let mut pixels = pixels.clone();
        pixels[index] += change;
        let changed = Tensor::from_vec(pixels, images.shape(), &device()).unwrap();
        let output = Everything.apply_eval(&variables, &changed).unwrap();
        let chosen = output.gather(&classes().unsqueeze(1).unwrap(), 1).unwrap();
        chosen.sum_all().unwrap().to_scalar::<f64>().unwrap()
    };
    let step = 1e-6;
    let derivatives = (0..pixels.len())
        .map(|index| ((output(index, step) - output(index, -step)) / (2.0 * step)).abs());
    let derivatives = derivatives.collect::<Vec<_>>();
    let expected = derivatives.chunks(2).map(|channels| channels[0].max(channels[1]));
    for (found, expected) in saliency_in(DType::F64).into_iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-7, "{found} {expected}");
    }
}

/// In f32 the network uses this project's kernels, in f64 candle's operations.
#[test]
fn saliency_of_the_kernels_equals_candles_in_f64() {
    if device().is_metal() {
        return; // Metal has no f64
    }
    let expected = saliency_in(DType::F64);
    let largest = expected.iter().copied().fold(0.0, f64::max);
    assert!(largest > 0.01);
    for (found, expected) in saliency_in(DType::F32).into_iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-5 * largest, "{found} {expected}");
    }
}
