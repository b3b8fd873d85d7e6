//! `prepare_digit` turns pictures of digits into images like those of MNIST.
//!
//! A test digit that was enlarged, shifted, inverted or photographed must come back unchanged.

mod common;

use mnist_notebook_support::images::ImageError;
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
        light * (1.0 - 0.75 * ink) + 0.03 * noise
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
    let originals = predict(test_ds.slice(0, COUNT).unwrap().image());
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
    let nothing = "no digit can be found in the picture: nothing in it stands out from the paper";
    for gray in [0.0, 0.5, 1.0] {
        assert_eq!(refusal(&picture(vec![gray; 60 * 40], 60, 40)), nothing);
    }
    assert_eq!(refusal(&picture(vec![1.0], 1, 1)), nothing);
    let shaded = (0..100 * 100).map(|index| 0.4 + 0.4 * (index % 100) as f32 / 100.0);
    assert_eq!(refusal(&picture(shaded.collect(), 100, 100)), nothing);
    let no_number = refusal(&picture(vec![f32::NAN; 4], 2, 2));
    assert_eq!(
        no_number,
        "no digit can be found in the picture: some of its pixels are not numbers"
    );
}

#[test]
fn tensors_of_other_shapes_are_refused() {
    for shape in [vec![28, 28], vec![2, 28, 28, 1], vec![1, 28, 28, 3], vec![1, 0, 28, 1]] {
        let tensor = Tensor::zeros(shape.as_slice(), DType::F32, &device()).unwrap();
        let wanted = format!("picture of a digit: expected shape [1, H, W, 1], found {shape:?}");
        assert_eq!(refusal(&tensor), wanted);
    }
}

mod png_files {
    use super::*;
    use png::{BitDepth, ColorType, Encoder};

    fn encoded(size: (u32, u32), color: ColorType, depth: BitDepth, bytes: &[u8]) -> Vec<u8> {
        let black_red_white = &[0, 0, 0, 255, 0, 0, 255, 255, 255];
        encoded_with_palette(black_red_white, size, color, depth, bytes)
    }

    fn encoded_with_palette(
        palette: &[u8],
        size: (u32, u32),
        color: ColorType,
        depth: BitDepth,
        bytes: &[u8],
    ) -> Vec<u8> {
        let mut file = Vec::new();
        let mut encoder = Encoder::new(&mut file, size.0, size.1);
        encoder.set_color(color);
        encoder.set_depth(depth);
        encoder.set_palette(palette);
        encoder.write_header().unwrap().write_image_data(bytes).unwrap();
        file
    }

    fn read(file: &[u8]) -> Result<Tensor> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("digit.png");
        std::fs::write(&path, file).unwrap();
        read_png(path, &device())
    }

    /// The error message for a file that cannot be read.
    fn problem(file: &[u8]) -> String {
        match read(file).unwrap_err().downcast_ref() {
            Some(ImageError::File { source, .. }) => source.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_kind_of_png_is_read_as_grayscale() {
        use BitDepth::{Eight, One, Sixteen};
        let red = 0.299;
        let cases: [(ColorType, BitDepth, &[u8], [f32; 2]); 7] = [
            (ColorType::Grayscale, Eight, &[0, 51], [0.0, 0.2]),
            (ColorType::Grayscale, One, &[0b0100_0000], [0.0, 1.0]),
            (ColorType::Grayscale, Sixteen, &[0, 0, 51, 51], [0.0, 0.2]),
            (ColorType::Rgb, Eight, &[255, 0, 0, 255, 255, 255], [red, 1.0]),
            (ColorType::Indexed, Eight, &[1, 2], [red, 1.0]),
            (ColorType::GrayscaleAlpha, Eight, &[0, 255, 0, 51], [0.0, 0.8]),
            (ColorType::Rgba, Eight, &[255, 0, 0, 255, 0, 0, 0, 0], [red, 1.0]),
        ];
        for (color, depth, bytes, expected) in cases {
            let picture = read(&encoded((2, 1), color, depth, bytes)).unwrap();
            assert_eq!(picture.dims(), [1, 1, 2, 1], "{color:?} {depth:?}");
            for (found, expected) in pixels(&picture).iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6, "{color:?} {depth:?}: {found}");
            }
        }
    }

    #[test]
    fn damaged_files_and_other_formats_are_refused() {
        let good = encoded((20, 20), ColorType::Grayscale, BitDepth::Eight, &[7; 400]);
        assert!(read(&good).is_ok());
        for len in 0..good.len() - 12 {
            problem(&good[..len]); // the last 12 bytes only mark the end
        }
        let jpeg = problem(b"\xff\xd8\xff\xe0 a JPEG file");
        assert!(jpeg.starts_with("it is damaged or not a PNG file"), "{jpeg}");
        assert!(jpeg.ends_with("save it as PNG again"), "{jpeg}");
    }

    #[test]
    fn a_palette_that_ends_within_a_color_is_refused() {
        for palette in [vec![0; 4], vec![0; 5]] {
            let (indexed, depth) = (ColorType::Indexed, BitDepth::Eight);
            let found = problem(&encoded_with_palette(&palette, (1, 1), indexed, depth, &[0]));
            assert!(found.starts_with("it is damaged (its palette"), "{found}");
        }
    }

    #[test]
    fn the_error_names_a_missing_file() {
        let error = read_png("no/such.png", &device()).unwrap_err().to_string();
        assert!(error.starts_with("cannot read the picture no/such.png: "), "{error}");
    }

    #[test]
    fn a_huge_picture_is_refused_before_decoding() {
        let mut file = encoded((1, 1), ColorType::Grayscale, BitDepth::Eight, &[0]);
        file[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]); // 65,536 pixels square
        let mut sum = flate2::Crc::new();
        sum.update(&file[12..29]);
        file[29..33].copy_from_slice(&sum.sum().to_be_bytes());
        let found = problem(&file);
        assert!(found.starts_with("65536 × 65536 pixels are too many: scale it down"), "{found}");
    }
}
