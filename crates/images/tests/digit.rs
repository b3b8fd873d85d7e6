//! Digits in pictures: centered, or refused with the reason.

mod common;

use candle_core::{DType, Tensor};
use images::prepare_digit;

use common::device;

fn picture(pixels: Vec<f32>, height: usize, width: usize) -> Tensor {
    Tensor::from_vec(pixels, (1, height, width, 1), &device()).unwrap()
}

fn pixels(image: &Tensor) -> Vec<f32> {
    image.flatten_all().unwrap().to_vec1().unwrap()
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
    let nothing = "no digit can be found in the picture: nothing in it stands out from the paper; \
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
fn a_broadcast_picture_that_does_not_fit_the_memory_is_refused() {
    let dot = Tensor::ones((1, 1, 1, 1), DType::F32, &device()).unwrap();
    let found = refusal(&dot.broadcast_as((1, 1 << 20, 1 << 20, 1)).unwrap());
    assert!(found.starts_with("a picture needs 8796.1 GB of memory"), "{found}");
}

#[test]
fn tensors_of_other_shapes_are_refused() {
    for shape in [vec![28, 28], vec![2, 28, 28, 1], vec![1, 28, 28, 3], vec![1, 0, 28, 1]] {
        let tensor = Tensor::zeros(shape.as_slice(), DType::F32, &device()).unwrap();
        let wanted = format!("picture of a digit: expected shape [1, H, W, 1], found {shape:?}");
        assert_eq!(refusal(&tensor), wanted);
    }
}
