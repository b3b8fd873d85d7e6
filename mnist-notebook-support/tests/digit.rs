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
    (0..COUNT).map(|index| pixels(&test_ds.image.get(index).unwrap())).collect()
}

/// A digit on a black sheet, enlarged by `scale`.
fn enlarged(digit: &[f32], scale: usize, side: usize, (top, left): (usize, usize)) -> Vec<f32> {
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
        let light = 0.55 + 0.35 * x as f32 / SIDE as f32 - 0.1 * (y as f32 / SIDE as f32).powi(2);
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
    let shifted = |digit: &[f32]| picture(enlarged(digit, 10, 560, (30, 200)), 560, 560);
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
        let sheet = enlarged(digit, 3, 100, (10, 7)).into_iter().map(|pixel| 0.9 - 0.8 * pixel);
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
    let originals = predict(&test_ds.slice(0, COUNT).unwrap().image);
    let photos = digits().into_iter().map(|digit| prepare_digit(&photographed(&digit)).unwrap());
    let photos = predict(&Tensor::cat(&photos.collect::<Vec<_>>(), 0).unwrap());
    let same = originals.iter().zip(&photos).filter(|(a, b)| a == b).count();
    assert!(same >= COUNT * 98 / 100, "{same} of {COUNT}");
}

#[test]
fn the_center_of_mass_is_moved_to_the_middle() {
    // An L, heavy at the bottom left.
    let mut sheet = vec![0.0; 100 * 100];
    for y in 20..80 {
        for x in 30..70 {
            sheet[y * 100 + x] = if x < 40 || y >= 70 { 1.0 } else { 0.0 };
        }
    }
    let digit = pixels(&prepare_digit(&picture(sheet, 100, 100)).unwrap());
    let mass: f32 = digit.iter().sum();
    let moment = |coordinate: fn(usize) -> usize| {
        let weighed = digit.iter().enumerate().map(|(index, p)| p * coordinate(index) as f32);
        weighed.sum::<f32>() / mass
    };
    assert!((moment(|index| index / 28) - 14.0).abs() <= 0.5);
    assert!((moment(|index| index % 28) - 14.0).abs() <= 0.5);
    let rows: Vec<_> = digit.chunks(28).map(|row| row.iter().any(|pixel| *pixel > 0.0)).collect();
    assert_eq!(rows.iter().filter(|has_ink| **has_ink).count(), 20);
}

fn refusal(picture: &Tensor) -> String {
    prepare_digit(picture).unwrap_err().to_string()
}

#[test]
fn pictures_without_a_digit_are_refused() {
    let nothing = "no digit can be found in the picture: nothing in it stands out from the paper: \
                   the digit must be darker or lighter, not tiny, and have a margin of paper \
                   around it";
    for gray in [0.0, 0.5, 1.0] {
        assert_eq!(refusal(&picture(vec![gray; 60 * 40], 60, 40)), nothing);
    }
    assert_eq!(refusal(&picture(vec![1.0], 1, 1)), nothing);
    let shaded = (0..100 * 100).map(|index| 0.4 + 0.4 * (index % 100) as f32 / 100.0);
    assert_eq!(refusal(&picture(shaded.collect(), 100, 100)), nothing);
    // A one that fills a picture cropped to it.
    assert_eq!(refusal(&picture(vec![0.1; 200 * 40], 200, 40)), nothing);
    let mut tiny = vec![1.0; 200 * 200];
    tiny[100 * 200 + 95..100 * 200 + 104].fill(0.0);
    assert_eq!(refusal(&picture(tiny, 200, 200)), nothing);
    for wrong in [f32::NAN, f32::INFINITY, -0.1, 255.0] {
        let found = refusal(&picture(vec![0.0, 1.0, wrong, 0.0], 2, 2));
        assert_eq!(
            found,
            "no digit can be found in the picture: some of its pixels are not between 0 (black) \
             and 1 (white)"
        );
    }
}

/// Two specks far apart would become an image that is nearly black.
#[test]
fn specks_are_refused() {
    let mut sheet = vec![1.0; 150 * 150];
    for y in 0..8 {
        for x in 0..8 {
            sheet[(20 + y) * 150 + 20 + x] = 0.0;
            sheet[(122 + y) * 150 + 122 + x] = 0.0;
        }
    }
    let found = refusal(&picture(sheet, 150, 150));
    assert!(found.contains("only specks stand out from the paper"), "{found}");
}

/// A picture cropped to the very edges of its digit has no margin of paper.
#[test]
fn a_digit_may_touch_the_edges() {
    let mut sheet = vec![0.9; 150 * 100];
    for y in 0..150_usize {
        for x in 0..100 {
            // A seven: a bar along the upper edge and a stem to the lower one.
            if y < 14 || (3 * x + y).abs_diff(270) < 20 {
                sheet[y * 100 + x] = 0.1;
            }
        }
    }
    let digit = pixels(&prepare_digit(&picture(sheet, 150, 100)).unwrap());
    let row = |y: usize| digit[y * 28..][..28].iter().filter(|pixel| **pixel > 0.5).count();
    let first = (0..28).find(|y| row(*y) > 0).unwrap();
    assert!(row(first) >= 11 && row(first + 10) <= 5, "{:?}", (0..28).map(row).collect::<Vec<_>>());
}

#[test]
fn tensors_of_other_shapes_are_refused() {
    for shape in [vec![28, 28], vec![2, 28, 28, 1], vec![1, 28, 28, 3], vec![1, 0, 28, 1]] {
        let tensor = Tensor::zeros(shape.as_slice(), DType::F32, &device()).unwrap();
        let wanted = format!("picture of a digit: expected shape [1, H, W, 1], found {shape:?}");
        assert_eq!(refusal(&tensor), wanted);
    }
}
