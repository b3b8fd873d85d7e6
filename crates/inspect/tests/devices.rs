//! The device under test gives the same results as the CPU. Without a GPU the CPU is compared with
//! itself.

mod common;

use candle_core::{Device, Tensor};
use inspect::{calibration_curve, confusion_matrix, pca, saliency};
use linen::random::normal;
use linen::{Key, Module, Result, Scope, avg_pool, flatten, log_softmax, relu};

use common::device;

struct Net;

impl Module for Net {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = avg_pool(&relu(&nn.conv(4, (3, 3), x)?)?, (2, 2))?;
        log_softmax(&nn.dense(3, &flatten(&x)?)?)
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn inspection_gives_the_same_results() {
    let run = |device: &Device| {
        let images = normal(Key::new(1), (20, 8, 6, 1), device).unwrap();
        let labels = Tensor::from_iter((0..20u32).map(|index| index % 3), device).unwrap();
        let params = Net.init(Key::new(0), &images).unwrap();
        let log_probs = Net.apply(&params, &images).unwrap();
        let predictions = log_probs.argmax(1).unwrap();
        let matrix = confusion_matrix(&labels, &predictions, 3).unwrap();
        let bins = calibration_curve(&log_probs.exp().unwrap(), &labels, 4).unwrap();
        let counts: Vec<usize> = bins.iter().map(|bin| bin.count).collect();
        let projection = pca(&log_probs, 1).unwrap().projection;
        let saliency = saliency(&Net, &params, &images, &labels).unwrap();
        (matrix, counts, [projection, saliency].map(|tensor| values(&tensor)))
    };
    let ((matrix, counts, found), expected) = (run(&device()), run(&Device::Cpu));
    assert_eq!((matrix, counts), (expected.0, expected.1));
    for (found, expected) in found.iter().zip(&expected.2) {
        let largest = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-3 * largest, "{found} {expected}");
        }
    }
}
