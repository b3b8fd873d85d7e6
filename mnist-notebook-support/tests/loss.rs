//! One-hot labels, cross-entropy and metrics against values computed by hand.

mod common;

use mnist_notebook_support::prelude::*;

use common::device;

fn labels(values: &[u32]) -> Tensor {
    Tensor::new(values, &device()).unwrap()
}

#[test]
fn onehot_has_a_single_one_in_the_column_of_the_label() {
    let onehot = onehot(&labels(&[3, 0]), 4).unwrap();
    assert_eq!(onehot.to_vec2::<f32>().unwrap(), [[0., 0., 0., 1.], [1., 0., 0., 0.]]);
}

#[test]
fn onehot_keeps_leading_dimensions() {
    let onehot = onehot(&labels(&[1, 0, 1, 1]).reshape((2, 2)).unwrap(), 2).unwrap();
    assert_eq!(onehot.dims(), [2, 2, 2]);
    let rows = onehot.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(rows, [0., 1., 1., 0., 0., 1., 0., 1.]);
}

#[test]
fn cross_entropy_of_a_uniform_prediction_is_ln_10() {
    if device().is_metal() {
        return; // Metal has no f64
    }
    let logits =
        (Tensor::zeros((3, 10), DType::F64, &device()).unwrap() - 10f64.ln()).unwrap();
    let loss = cross_entropy_loss(&logits, &labels(&[0, 5, 9])).unwrap();
    assert!((loss.to_scalar::<f64>().unwrap() - 10f64.ln()).abs() < 1e-12);
}

#[test]
fn cross_entropy_is_the_mean_negative_log_probability_of_the_true_classes() {
    if device().is_metal() {
        return; // Metal has no f64
    }
    let probabilities: [[f64; 2]; 2] = [[0.25, 0.75], [0.5, 0.5]];
    let logits = Tensor::new(&probabilities, &device()).unwrap().log().unwrap();
    let loss = cross_entropy_loss(&logits, &labels(&[0, 1]))
        .unwrap()
        .to_scalar::<f64>()
        .unwrap();
    assert!((loss - (4f64.ln() + 2f64.ln()) / 2.0).abs() < 1e-12);
}

#[test]
fn an_out_of_range_label_is_named_with_its_position() {
    let logits = Tensor::zeros((2, 10), DType::F32, &device()).unwrap();
    let labels = labels(&[1, 10]);
    // On a GPU `onehot` does not check the labels, to avoid a wait.
    let on_cpu = labels.to_device(&Device::Cpu).unwrap();
    for error in [
        cross_entropy_loss(&logits, &labels).unwrap_err(),
        compute_metrics(&logits, &labels).unwrap_err(),
        onehot(&on_cpu, 10).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Label { label: 10, index: 1, num_classes: 10 }));
        let message = "label 10 at position 1 is not below the number of classes, 10";
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn labels_must_be_u32() {
    let labels = Tensor::new(&[1f32], &device()).unwrap();
    let error = onehot(&labels, 10).unwrap_err();
    assert_eq!(error.to_string(), "labels: expected elements of type u32, found f32");
}

#[test]
fn logits_and_labels_must_match() {
    let logits = Tensor::zeros((3, 10), DType::F32, &device()).unwrap();
    let error = cross_entropy_loss(&logits, &labels(&[1, 2])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "logits: expected shape [2, number of classes], found [3, 10]"
    );
}

#[test]
fn scores_are_not_log_probabilities() {
    let scores = Tensor::new(&[[1f32, -2.0], [5.5, -1.0]], &Device::Cpu).unwrap();
    let labels = Tensor::new(&[0u32, 0], &Device::Cpu).unwrap();
    let error = cross_entropy_loss(&scores, &labels).unwrap_err();
    let message = "the logits go up to 5.5, but log-probabilities are at most 0: end the network \
                   with `log_softmax`";
    assert_eq!(error.to_string(), message);
    // The loss of sure and right predictions, which rounding can put a little above 0.
    let sure = Tensor::new(&[[6e-8f32, -1e9], [0.0, -30.0]], &Device::Cpu).unwrap();
    assert!(
        cross_entropy_loss(&sure, &labels).unwrap().to_scalar::<f32>().unwrap() <= 0.0
    );
    // A loss that is no longer a number must show itself as such.
    let lost = Tensor::new(&[[f32::NAN, 0.0], [0.0, 0.0]], &Device::Cpu).unwrap();
    assert!(
        cross_entropy_loss(&lost, &labels)
            .unwrap()
            .to_scalar::<f32>()
            .unwrap()
            .is_nan()
    );
}

#[test]
fn metrics_count_the_correct_predictions() {
    let probabilities: [[f32; 2]; 4] = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]];
    let logits = Tensor::new(&probabilities, &device()).unwrap().log().unwrap();
    let metrics =
        compute_metrics(&logits, &labels(&[0, 1, 1, 1])).unwrap().get().unwrap();
    assert_eq!(metrics.accuracy, 0.75);
    let expected = -(0.9f32.ln() + 0.8f32.ln() + 0.4f32.ln() + 0.7f32.ln()) / 4.0;
    assert!((metrics.loss - expected).abs() < 1e-6);
}

#[test]
fn the_mean_of_no_metrics_is_an_error() {
    assert!(matches!(Metrics::mean(&[]), Err(Error::Empty(_))));
}
