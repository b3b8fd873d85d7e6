//! Random augmentation.

mod common;

use candle_core::Tensor;
use images::augment;
use linen::Key;
use linen::random::uniform;

use common::device;

fn images() -> Tensor {
    uniform(Key::new(1), (40, 28, 28, 1), 0.0, 1.0, &device()).unwrap()
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn bounds_of_zero_leave_images_unchanged() {
    let images = images();
    let same = augment(Key::new(0), &images, 0.0, 0.0).unwrap();
    assert_eq!(values(&same), values(&images));
}

/// A single white pixel is spread over four; their center of mass gives the shift.
#[test]
fn shifts_are_those_drawn_from_the_key() {
    let mut image = vec![0f32; 28 * 28];
    image[10 * 28 + 20] = 1.0;
    let image = Tensor::from_vec(image, (1, 28, 28, 1), &device()).unwrap();
    let key = Key::new(5);
    let shift = uniform(key.split().1, (1, 2), -2.0, 2.0, &device()).unwrap();
    let moved = values(&augment(key, &image, 2.0, 0.0).unwrap());
    let mean = |position: fn(usize) -> usize| {
        moved.iter().enumerate().map(|(i, value)| position(i) as f32 * value).sum::<f32>()
    };
    let found = [mean(|i| i / 28) - 10.0, mean(|i| i % 28) - 20.0];
    for (found, expected) in found.into_iter().zip(values(&shift)) {
        assert!((found - expected).abs() < 1e-4, "{found} {expected}");
    }
}

#[test]
fn the_same_key_gives_the_same_images_with_any_number_of_threads() {
    if !device().is_cpu() {
        return; // only the CPU uses threads
    }
    let images = images();
    let run = |key, threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| values(&augment(key, &images, 2.0, 10.0).unwrap()))
    };
    let expected = run(Key::new(0), 1);
    assert_eq!(run(Key::new(0), 3), expected);
    assert_ne!(run(Key::new(1), 1), expected);
}
