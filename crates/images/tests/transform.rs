//! Properties of shifts, rotations and noise that hold for any image.

mod common;

use candle_core::{DType, Device, Tensor};
use images::{add_noise, augment, image_grid, rotate, shift, show};
use linen::random::{normal, uniform};
use linen::{Key, Result};

use common::device;

/// Three images of 6 × 6 pixels with two channels.
fn images() -> Tensor {
    uniform(Key::new(0), (3, 6, 6, 2), 0.0, 1.0, &device()).unwrap()
}

fn vec(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn zero_shift_rotation_or_noise_changes_nothing() {
    assert_eq!(vec(&shift(&images(), 0.0, 0.0).unwrap()), vec(&images()));
    assert_eq!(vec(&rotate(&images(), 0.0).unwrap()), vec(&images()));
    assert_eq!(vec(&add_noise(Key::new(1), &images(), 0.0).unwrap()), vec(&images()));
}

#[test]
fn a_shift_by_whole_pixels_moves_values_unchanged_and_fills_with_black() {
    let shifted = shift(&images(), 2.0, -1.0).unwrap();
    let kept = shifted.narrow(1, 0, 5).unwrap().narrow(2, 2, 4).unwrap();
    let source = images().narrow(1, 1, 5).unwrap().narrow(2, 0, 4).unwrap();
    assert_eq!(vec(&kept), vec(&source));
    assert!(vec(&shifted.narrow(1, 5, 1).unwrap()).iter().all(|value| *value == 0.0));
    assert!(vec(&shifted.narrow(2, 0, 2).unwrap()).iter().all(|value| *value == 0.0));
}

#[test]
fn quarter_turns_are_exact_and_four_are_the_identity() {
    let turned = rotate(&images(), 90.0).unwrap();
    // Counter-clockwise, the rightmost column becomes the top row.
    let reversed = Tensor::new(&[5u32, 4, 3, 2, 1, 0], &device()).unwrap();
    let expected = images().index_select(&reversed, 2).unwrap().transpose(1, 2).unwrap();
    assert_eq!(vec(&turned), vec(&expected));
    let full_turn = rotate(&rotate(&turned, 90.0).unwrap(), 180.0).unwrap();
    assert_eq!(vec(&full_turn), vec(&images()));
}

#[test]
fn noise_is_normal_and_clipped_to_black_and_white() {
    let noise = vec(&normal(Key::new(7), (3, 6, 6, 2), &device()).unwrap());
    let expected = vec(&images()).into_iter().zip(noise);
    let expected = expected.map(|(pixel, noise)| (pixel + 0.5 * noise).clamp(0.0, 1.0));
    assert_eq!(vec(&add_noise(Key::new(7), &images(), 0.5).unwrap()), expected.collect::<Vec<_>>());
}

#[test]
fn images_keep_their_type_and_an_empty_batch_stays_empty() {
    if device().is_metal() {
        return; // Metal has no f64
    }
    let wide = images().to_dtype(DType::F64).unwrap();
    assert_eq!(rotate(&wide, 10.0).unwrap().dtype(), DType::F64);
    assert_eq!(add_noise(Key::new(1), &wide, 0.1).unwrap().dtype(), DType::F64);
    // On the CPU, because GPUs have no empty arrays.
    let none = images().to_device(&Device::Cpu).unwrap().narrow(0, 0, 0).unwrap();
    assert_eq!(shift(&none, 1.0, 1.0).unwrap().dims(), [0, 6, 6, 2]);
}

#[test]
fn bad_input_is_refused_with_its_name() {
    let message = |result: Result<Tensor>| result.unwrap_err().to_string();
    let flat = images().flatten_from(1).unwrap();
    assert_eq!(
        message(shift(&flat, 1.0, 0.0)),
        "images to transform: expected shape [N, height, width, channels], found [3, 72]"
    );
    let labels = images().to_dtype(DType::U32).unwrap();
    let expected = "images to transform: expected elements of type f32 or another float type, \
                    found u32";
    assert_eq!(message(rotate(&labels, 1.0)), expected);
    assert_eq!(message(add_noise(Key::new(0), &labels, 1.0)), expected);
    let expected = "dy = NaN is out of range: it must be finite";
    assert_eq!(message(shift(&images(), 0.0, f64::NAN)), expected);
    let expected = "degrees = inf is out of range: it must be finite";
    assert_eq!(message(rotate(&images(), f64::INFINITY)), expected);
    let expected = "stddev = -1 is out of range: it must be a finite number, 0 or more";
    assert_eq!(message(add_noise(Key::new(0), &images(), -1.0)), expected);
}

/// Without a GPU the CPU is compared with itself.
#[test]
fn every_device_gives_the_same_images_and_shows_them() {
    let on_cpu = images().to_device(&Device::Cpu).unwrap();
    for transform in [
        |images: &Tensor| shift(images, 1.5, -2.0),
        |images: &Tensor| rotate(images, 20.0),
        |images: &Tensor| add_noise(Key::new(1), images, 0.2),
        |images: &Tensor| augment(Key::new(2), images, 2.0, 10.0),
    ] {
        let (found, expected) = (transform(&images()).unwrap(), transform(&on_cpu).unwrap());
        for (found, expected) in vec(&found).into_iter().zip(vec(&expected)) {
            assert!((found - expected).abs() <= 1e-5, "{found} {expected}");
        }
    }
    let gray = images().narrow(3, 0, 1).unwrap();
    image_grid("noise", &gray, &[5, 0, 4]).unwrap();
    show(&gray).unwrap();
}
