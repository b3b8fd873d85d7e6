//! `prepare_digit` turns pictures of digits into images like those of MNIST.
//!
//! A test digit that was enlarged, shifted, inverted or photographed must come back unchanged.

mod common;

use mnist_notebook_support::prelude::*;
use mnist_notebook_support::random::normal;

use common::device;

const COUNT: usize = 200;

fn picture(pixels: Vec<f32>, height: usize, width: usize) -> Tensor {
    Tensor::from_vec(pixels, (1, height, width, 1), &device()).unwrap()
}

fn pixels(image: &Tensor) -> Vec<f32> {
    image.flatten_all().unwrap().to_vec1().unwrap()
}

/// The first images of the test set.
fn digits() -> Vec<Vec<f32>> {
    let (_, test_ds) = get_datasets(&device()).unwrap();
    (0..COUNT).map(|index| pixels(&test_ds.image().get(index).unwrap())).collect()
}

/// A digit on a black sheet, enlarged by `scale`.
fn enlarged(
    digit: &[f32],
    scale: usize,
    side: usize,
    (top, left): (usize, usize),
) -> Vec<f32> {
    let mut sheet = vec![0.0; side * side];
    for y in 0..28 * scale {
        for x in 0..28 * scale {
            sheet[(top + y) * side + left + x] = digit[y / scale * 28 + x / scale];
        }
    }
    sheet
}

/// The mean absolute difference between digits and their prepared pictures.
fn mean_difference(photograph: impl Fn(&[f32]) -> Tensor) -> f32 {
    let differences = digits().into_iter().map(|digit| {
        let found = pixels(&prepare_digit(&photograph(&digit)).unwrap());
        let pairs = digit.iter().zip(&found);
        pairs.map(|(a, b)| (a - b).abs()).sum::<f32>() / digit.len() as f32
    });
    differences.sum::<f32>() / COUNT as f32
}

/// Paper lit from the right, with sensor noise.
fn photographed(digit: &[f32]) -> Tensor {
    const SIDE: usize = 400;
    let noise = pixels(&normal(Key::new(3), SIDE * SIDE, &device()).unwrap());
    let sheet = enlarged(digit, 7, SIDE, (70, 150)).into_iter().zip(noise).enumerate();
    let pixels = sheet.map(|(index, (ink, noise))| {
        let (y, x) = (index / SIDE, index % SIDE);
        let light = 0.55 + 0.35 * x as f32 / SIDE as f32
            - 0.1 * (y as f32 / SIDE as f32).powi(2);
        (light * (1.0 - 0.75 * ink) + 0.03 * noise).clamp(0.0, 1.0)
    });
    picture(pixels.collect(), SIDE, SIDE)
}

#[test]
fn a_digit_of_the_dataset_is_unchanged() {
    assert!(mean_difference(|digit| picture(digit.to_vec(), 28, 28)) < 0.003);
}

#[test]
fn an_enlarged_and_shifted_digit_is_restored() {
    let shifted =
        |digit: &[f32]| picture(enlarged(digit, 10, 560, (30, 200)), 560, 560);
    assert!(mean_difference(shifted) < 0.003);
}

#[test]
fn dust_and_lines_along_the_edges_are_ignored() {
    let dusty = |digit: &[f32]| {
        let mut sheet = enlarged(digit, 10, 400, (60, 60));
        for (y, x) in [(30, 40), (350, 370), (200, 20)] {
            for index in 0..9 {
                sheet[(y + index / 3) * 400 + x + index % 3] = 1.0;
            }
        }
        for y in 0..400 {
            sheet[y * 400 + 1] = 1.0;
            sheet[y * 400 + 399] = 1.0;
        }
        picture(sheet, 400, 400)
    };
    // Reducing 400 pixels to 280 blurs the enlarged pixels.
    assert!(mean_difference(dusty) < 0.006);
}

#[test]
fn dark_ink_on_light_paper_is_the_same_digit() {
    let inverted = |digit: &[f32]| {
        let sheet =
            enlarged(digit, 3, 100, (10, 7)).into_iter().map(|pixel| 0.9 - 0.8 * pixel);
        picture(sheet.collect(), 100, 100)
    };
    assert!(mean_difference(inverted) < 0.003);
}

#[test]
fn a_network_predicts_the_same_for_photos_as_for_their_originals() {
    let (train_ds, test_ds) = get_datasets(&device()).unwrap();
    let params = get_initial_params(&Cnn, Key::new(0), &device()).unwrap();
    let mut optimizer = create_optimizer(&params, 0.1, 0.9).unwrap();
    let few = train_ds.slice(0, 10_000).unwrap();
    train_epoch(&Cnn, &mut optimizer, &few, 32, 1, Key::new(1)).unwrap();
    let predict = |images: &Tensor| -> Vec<u32> {
        let logits = Cnn.apply(optimizer.target(), images).unwrap();
        logits.argmax(1).unwrap().to_vec1().unwrap()
    };
    let originals = predict(test_ds.slice(0, COUNT).unwrap().image());
    let photos =
        digits().into_iter().map(|digit| prepare_digit(&photographed(&digit)).unwrap());
    let photos = predict(&Tensor::cat(&photos.collect::<Vec<_>>(), 0).unwrap());
    let same = originals.iter().zip(&photos).filter(|(a, b)| a == b).count();
    assert!(same >= COUNT * 98 / 100, "{same} of {COUNT}");
}
