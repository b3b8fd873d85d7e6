//! Exported ONNX files give the same results in ONNX Runtime and in rten, which is pure Rust.

use std::path::Path;

use mnist_notebook_support::linen::Evaluate;
use mnist_notebook_support::prelude::*;
use mnist_notebook_support::random::uniform;
use tests::varied_variables;
use xtask::process::output;
use xtask::project::Project;

/// Everything whose shape is easy to get wrong: even kernel sizes, windows that do not divide the
/// input, both poolings, the channel order through `flatten`, and a submodule.
struct Odd;

impl Module for Odd {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = max_pool(&relu(&nn.conv(5, (2, 4), x)?)?, (2, 3))?; // [B, 4, 4, 5]
        let x = nn.module(&Block, &x)?; //                              [B, 4, 4, 7]
        let x = avg_pool(&x, (3, 2))?; //                               [B, 1, 2, 7]
        log_softmax(&nn.dense(6, &flatten(&x)?)?)
    }
}

struct Block;

impl Module for Block {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = relu(&nn.conv(4, (1, 3), x)?)?;
        nn.conv(7, (3, 1), &x)
    }
}

/// Image in, image out, with the softmax over the channels.
struct Segmenter;

impl Module for Segmenter {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        log_softmax(&nn.conv(3, (3, 3), x)?)
    }
}

/// A network without convolutions or pooling.
struct Perceptron;

impl Module for Perceptron {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = relu(&nn.dense(32, &flatten(x)?)?)?;
        nn.dense(10, &x)
    }
}

/// Residual blocks and strides, as in a ResNet: both inputs of the sums come from convolutions.
struct Residual;

impl Module for Residual {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let strides = |strides, kernel_size| Conv { strides, ..Conv::new(4, kernel_size) };
        let x = nn.conv_with(&strides((2, 3), (3, 4)), x)?; //             [B, 5, 4, 4]
        let y = nn.conv_with(&strides((2, 2), (3, 3)), &gelu(&x)?)?; //    [B, 3, 2, 4]
        let shortcut = nn.conv_with(&strides((2, 2), (1, 1)), &x)?; //     [B, 3, 2, 4]
        let x = relu(&add(&y, &shortcut)?)?;
        let x = add(&x, &gelu(&nn.layer_norm(&x)?)?)?; // one input with channels last
        let x = add(&x, &nn.conv(4, (2, 2), &x)?)?; //    the other way around
        log_softmax(&nn.dense(6, &global_avg_pool(&x)?)?)
    }
}

/// Branches side by side: images, then rows. Also layers whose output is not used, or used twice.
struct Inception;

impl Module for Inception {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        nn.conv(9, (1, 1), x)?;
        let valid = |features, strides| Conv {
            strides,
            padding: Padding::Valid,
            ..Conv::new(features, (3, 2))
        };
        let narrow = nn.conv_with(&valid(3, (2, 1)), x)?; //               [B, 3, 5, 3]
        let wide = nn.conv_with(&valid(2, (2, 1)), x)?; //                 [B, 3, 5, 2]
        let images = concatenate(&[&narrow, &wide, &gelu(&narrow)?])?; //  [B, 3, 5, 8]
        let rows = flatten(&images)?; //                                   [B, 120]
        let normalized = nn.layer_norm(&rows)?;
        let rows = concatenate(&[&rows, &gelu(&normalized)?, &rows])?; //  [B, 360]
        let pooled = global_avg_pool(&nn.layer_norm(&images)?)?; //        [B, 8]
        concatenate(&[&nn.dense(5, &rows)?, &pooled])
    }
}

/// Batch norm over images and over rows, and dropout, also as the last layer.
struct Steady;

impl Module for Steady {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = nn.conv(4, (3, 3), x)?;
        let x = relu(&nn.batch_norm(&x)?)?;
        let x = nn.dropout(0.25, &x)?;
        let y = nn.batch_norm(&x)?;
        let x = nn.dropout(0.25, &add(&x, &y)?)?;
        let x = nn.dense(5, &flatten(&x)?)?;
        let x = nn.batch_norm(&x)?;
        nn.dropout(0.5, &x)
    }
}

/// Returns its input.
struct Nothing;

impl Module for Nothing {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        nn.dropout(0.5, x)
    }
}

/// Exports a network with random weights and asserts that the runtimes agree with the crate.
fn assert_same_everywhere(model: &impl Module, image_shape: [usize; 3]) {
    let shape = [1, image_shape[0], image_shape[1], image_shape[2]];
    let params = varied_variables(model, &shape).unwrap().params;
    assert_evaluated_everywhere(model, &params, image_shape);
}

fn assert_evaluated_everywhere(
    model: &impl Module,
    params: &impl Evaluate,
    image_shape: [usize; 3],
) {
    let shape = [1, image_shape[0], image_shape[1], image_shape[2]];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("network.onnx");
    save_onnx(model, params, &shape, &path).unwrap();
    for batch in [1, 7] {
        let shape = [batch, image_shape[0], image_shape[1], image_shape[2]];
        let images = uniform(Key::new(2), &shape, 0.0, 1.0, &Device::Cpu).unwrap();
        let expected = model.apply_eval(params, &images).unwrap();
        assert_close("rten", &rten(&path, &images, expected.rank()), &expected);
        if let Some(found) = onnx_runtime(&path, &images) {
            assert_close("ONNX Runtime", &found, &expected);
        }
    }
}

fn assert_close(runtime: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.dims(), expected.dims(), "{runtime}");
    let difference = (found - expected).unwrap().abs().unwrap().max_all().unwrap();
    let difference: f32 = difference.to_scalar().unwrap();
    assert!(difference <= 1e-4, "{runtime}: the logits differ by {difference}");
}

/// The output of rten, a tensor of this rank.
fn rten(path: &Path, images: &Tensor, rank: usize) -> Tensor {
    let model = rten::Model::load_file(path).unwrap();
    let pixels = images.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let input = rten::Value::from_shape(images.dims(), pixels).unwrap();
    let output = model.run_one(input.into(), None).unwrap();
    match rank {
        2 => to_tensor::<2>(output),
        _ => to_tensor::<4>(output),
    }
}

fn to_tensor<const RANK: usize>(value: rten::Value) -> Tensor {
    let (shape, values) = value.into_shape_vec::<f32, RANK>().unwrap();
    Tensor::from_vec(values, &shape[..], &Device::Cpu).unwrap()
}

/// The output of ONNX Runtime; `None` if it is not installed.
fn onnx_runtime(path: &Path, images: &Tensor) -> Option<Tensor> {
    let project = Project::new();
    if !project.python().is_file() {
        tests::skipped("ONNX Runtime", "it is not set up (`cargo xtask test` does it)");
        return None;
    }
    if output(project.jupyter().args(["-c", "import onnxruntime"])).is_err() {
        tests::skipped("ONNX Runtime", "not available for this machine");
        return None;
    }
    let script = "import sys, numpy, onnxruntime\n\
                  path, images, logits = sys.argv[1:]\n\
                  session = onnxruntime.InferenceSession(path)\n\
                  numpy.save(logits, session.run(['logits'], {'image': numpy.load(images)})[0])";
    let (input, result) = (path.with_file_name("images.npy"), path.with_file_name("logits.npy"));
    images.write_npy(&input).unwrap();
    output(project.jupyter().args(["-c", script]).args([path, &input, &result])).unwrap();
    Some(Tensor::read_npy(&result).unwrap())
}

#[test]
fn the_tutorials_network_computes_the_same_in_every_runtime() {
    assert_same_everywhere(&Cnn, [28, 28, 1]);
}

#[test]
fn a_network_with_odd_sizes_computes_the_same_in_every_runtime() {
    assert_same_everywhere(&Odd, [8, 13, 3]);
}

#[test]
fn a_network_that_outputs_images_keeps_channels_last() {
    assert_same_everywhere(&Segmenter, [5, 9, 2]);
}

#[test]
fn a_network_without_convolutions_computes_the_same_in_every_runtime() {
    assert_same_everywhere(&Perceptron, [28, 28, 1]);
}

#[test]
fn residual_blocks_compute_the_same_in_every_runtime() {
    assert_same_everywhere(&Residual, [10, 11, 3]);
}

#[test]
fn branches_side_by_side_compute_the_same_in_every_runtime() {
    assert_same_everywhere(&Inception, [8, 6, 3]);
}

#[test]
fn batch_norm_and_dropout_are_exported_in_evaluation_mode() {
    let variables = varied_variables(&Steady, &[1, 6, 5, 2]).unwrap();
    assert_evaluated_everywhere(&Steady, &variables, [6, 5, 2]);
    assert_evaluated_everywhere(&Nothing, &Variables::default(), [6, 5, 2]);
}
