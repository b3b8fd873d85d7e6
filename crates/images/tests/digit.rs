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
    use images::{ImageError, read_png};
    use linen::Result;
    use png::{BitDepth, ColorType, Encoder};

    use super::*;

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
        let mut file = Vec::new();
        let header = Encoder::new(&mut file, 65_536, 65_536).write_header();
        header.unwrap().write_chunk(png::chunk::IDAT, b"its pixels are not read").unwrap();
        let found = problem(&file);
        assert!(found.starts_with("65536 × 65536 pixels are too many: scale it down"), "{found}");
    }
}
