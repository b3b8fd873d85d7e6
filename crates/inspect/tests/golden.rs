//! Comparison with scikit-learn and JAX, which computed the values in `golden/`.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use inspect::{calibration_curve, confusion_matrix, expected_calibration_error, pca, saliency};
use linen::{Module, Params, Result, Scope, avg_pool, flatten, log_softmax, relu};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    predictions: PredictionsGolden,
    features: FeaturesGolden,
    saliency: SaliencyGolden,
}

#[derive(Deserialize)]
struct PredictionsGolden {
    labels: Vec<u32>,
    probabilities: Vec<u32>,
    confusion_matrix: Vec<u32>,
    bins: usize,
    confidence: Vec<f32>,
    accuracy: Vec<f32>,
}

#[derive(Deserialize)]
struct FeaturesGolden {
    features: Vec<u32>,
    projection: Vec<u32>,
    components: Vec<u32>,
    explained_variance_ratio: Vec<u32>,
}

#[derive(Deserialize)]
struct SaliencyGolden {
    input_shape: Vec<usize>,
    input: Vec<u32>,
    classes: Vec<u32>,
    values: Vec<u32>,
}

fn golden_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn golden() -> Golden {
    serde_json::from_slice(&std::fs::read(golden_file("inspect.json")).unwrap()).unwrap()
}

fn floats(bits: &[u32]) -> Vec<f32> {
    bits.iter().copied().map(f32::from_bits).collect()
}

fn tensor(bits: &[u32], shape: &[usize]) -> Tensor {
    Tensor::from_vec(floats(bits), shape, &Device::Cpu).unwrap()
}

fn labels(classes: &[u32]) -> Tensor {
    Tensor::new(classes, &Device::Cpu).unwrap()
}

/// Asserts that the values differ by at most `tolerance` times the largest.
fn assert_close(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance * largest, "{name}[{i}]: {a} instead of {b}");
    }
}

fn assert_close_to_bits(name: &str, found: &Tensor, expected: &[u32]) {
    let found = found.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
    assert_close(name, &found.to_vec1::<f32>().unwrap(), &floats(expected), 1e-5);
}

#[test]
fn predictions_are_counted_as_by_scikit_learn() {
    let golden = golden().predictions;
    let (labels, count) = (labels(&golden.labels), golden.labels.len());
    let probabilities = tensor(&golden.probabilities, &[count, 5]);
    let predictions = probabilities.argmax(1).unwrap();
    let matrix = confusion_matrix(&labels, &predictions, 5).unwrap();
    assert_eq!(matrix.concat(), golden.confusion_matrix);

    let bins = calibration_curve(&probabilities, &labels, golden.bins).unwrap();
    let confidence: Vec<f32> = bins.iter().map(|bin| bin.confidence).collect();
    assert_close("confidence", &confidence, &golden.confidence, 1e-6);
    let accuracy: Vec<f32> = bins.iter().map(|bin| bin.accuracy).collect();
    assert_close("accuracy", &accuracy, &golden.accuracy, 1e-6);
    assert_eq!(bins.iter().map(|bin| bin.count).sum::<usize>(), count);
    let gaps = bins.iter().map(|bin| (bin.accuracy - bin.confidence).abs() * bin.count as f32);
    let error = gaps.sum::<f32>() / count as f32;
    assert!((expected_calibration_error(&bins) - error).abs() < 1e-6);
}

/// scikit-learn does the same with `np.searchsorted(edges, confidence)`.
#[test]
fn a_confidence_on_the_edge_of_two_bins_counts_in_the_lower() {
    let probabilities = tensor(&[0.5f32, 0.5, 0.6, 0.4].map(f32::to_bits), &[2, 2]);
    let bins = calibration_curve(&probabilities, &labels(&[0, 0]), 4).unwrap();
    assert_eq!(bins.iter().map(|bin| bin.count).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn principal_components_are_scikit_learn_s() {
    let golden = golden().features;
    let found = pca(&tensor(&golden.features, &[40, 6]), 2).unwrap();
    assert_close_to_bits("components", &found.components, &golden.components);
    assert_close_to_bits("projection", &found.projection, &golden.projection);
    let expected = floats(&golden.explained_variance_ratio);
    assert_close("variance", &found.explained_variance_ratio, &expected, 1e-5);
}

/// The network of the recorded gradient.
struct TinyCnn;

impl Module for TinyCnn {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = relu(&nn.conv(2, (3, 3), x)?)?;
        let x = avg_pool(&x, (2, 2))?;
        let x = relu(&nn.dense(4, &flatten(&x)?)?)?;
        log_softmax(&nn.dense(3, &x)?)
    }
}

/// In f32 the network uses this project's kernels, in f64 candle's operations.
#[test]
fn saliency_is_the_gradient_of_jax() {
    let golden = golden().saliency;
    let params = Params::load(golden_file("flax_params.safetensors"), &Device::Cpu).unwrap();
    let input = tensor(&golden.input, &golden.input_shape);
    for dtype in [DType::F32, DType::F64] {
        let (params, input) = (params.to_dtype(dtype).unwrap(), input.to_dtype(dtype).unwrap());
        let found = saliency(&TinyCnn, &params, &input, &labels(&golden.classes)).unwrap();
        assert_eq!(found.dims(), golden.input_shape);
        assert_close_to_bits(&format!("{dtype:?}"), &found, &golden.values);
    }
}
