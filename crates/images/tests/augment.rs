//! Data augmentation: what moves, and what does not.

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
fn without_shift_and_turn_every_image_stays_as_it_is() {
    let images = images();
    let same = augment(Key::new(0), &images, 0.0, 0.0).unwrap();
    assert_eq!(values(&same), values(&images));
}

/// A single white pixel is spread over four, whose mean position says how far it went.
#[test]
fn a_shift_moves_a_pixel_by_what_the_key_draws() {
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
        return; // the threads are the CPU's
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
