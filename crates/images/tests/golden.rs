//! Comparison with SciPy and JAX, which computed the values in `golden/`.

use std::path::Path;

use candle_core::{Device, Tensor};
use images::{augment, rotate, shift};
use linen::Key;
use serde::Deserialize;
use serde::de::DeserializeOwned;

fn golden<T: DeserializeOwned>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Images from the bits of their pixels.
fn images(bits: &[u32], shape: &[usize]) -> Tensor {
    Tensor::from_vec(floats(bits).collect(), shape, &Device::Cpu).unwrap()
}

fn floats(bits: &[u32]) -> impl Iterator<Item = f32> {
    bits.iter().copied().map(f32::from_bits)
}

fn assert_close(name: &str, found: &Tensor, expected: &[u32], tolerance: f32) {
    let found = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(found.len(), expected.len(), "{name}");
    for (found, expected) in found.into_iter().zip(floats(expected)) {
        assert!((found - expected).abs() < tolerance, "{name}: {found} instead of {expected}");
    }
}

#[derive(Deserialize)]
struct TransformGolden {
    shape: [usize; 2],
    image: Vec<u32>,
    shift: Vec<ShiftGolden>,
    rotate: Vec<RotateGolden>,
}

#[derive(Deserialize)]
struct ShiftGolden {
    dx: f64,
    dy: f64,
    values: Vec<u32>,
}

#[derive(Deserialize)]
struct RotateGolden {
    degrees: f64,
    values: Vec<u32>,
}

#[test]
fn images_are_shifted_and_rotated_as_by_scipy() {
    let golden: TransformGolden = golden("transform.json");
    let [height, width] = golden.shape;
    let image = images(&golden.image, &[1, height, width, 1]);
    for ShiftGolden { dx, dy, values } in golden.shift {
        let found = shift(&image, dx, dy).unwrap();
        assert_close(&format!("shift {dx}, {dy}"), &found, &values, 1e-6);
    }
    for RotateGolden { degrees, values } in golden.rotate {
        let found = rotate(&image, degrees).unwrap();
        assert_close(&format!("{degrees} degrees"), &found, &values, 1e-6);
    }
}

#[derive(Deserialize)]
struct AugmentGolden {
    key: [u32; 2],
    max_shift: f64,
    max_degrees: f64,
    shape: Vec<usize>,
    input: Vec<u32>,
    output: Vec<u32>,
}

#[test]
fn augmented_images_are_jax_s() {
    let golden: AugmentGolden = golden("augment.json");
    let images = images(&golden.input, &golden.shape);
    let key = Key::from_words(golden.key);
    let augmented = augment(key, &images, golden.max_shift, golden.max_degrees).unwrap();
    assert_close("augmented", &augmented, &golden.output, 1e-5);
}
