//! Picture files become grayscale tensors, or are refused in words.

mod common;

use std::io::Cursor;

use candle_core::Tensor;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ColorType, DynamicImage, GrayImage, ImageEncoder, ImageFormat, RgbImage};
use images::{ImageError, read_image};
use linen::Result;

use common::device;

const FORMATS: [ImageFormat; 5] =
    [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp];

fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    picture.write_to(&mut file, format).unwrap();
    file.into_inner()
}

/// A gradient of 10 × 15 pixels, darker to the lower right.
fn gradient() -> DynamicImage {
    let shade = |x, y| image::Rgb([255 - 8 * (x + y) as u8; 3]);
    RgbImage::from_fn(10, 15, shade).into()
}

fn read(file: &[u8]) -> Result<Tensor> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("digit");
    std::fs::write(&path, file).unwrap();
    read_image(path, &device())
}

fn pixels(picture: &Tensor) -> Vec<f32> {
    picture.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < tolerance, "{what}: {found}, not {expected}");
    }
}

/// The error message for a file that cannot be read.
fn problem(file: &[u8]) -> String {
    match read(file).unwrap_err().downcast_ref() {
        Some(ImageError::File { source, .. }) => source.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_format_is_read_whatever_the_file_is_called() {
    let expected: Vec<f32> =
        gradient().to_luma8().pixels().map(|shade| f32::from(shade.0[0]) / 255.0).collect();
    for format in FORMATS {
        let picture = read(&encoded(&gradient(), format)).unwrap();
        assert_eq!(picture.dims(), [1, 15, 10, 1], "{format:?}");
        assert_close(&pixels(&picture), &expected, 0.03, &format!("{format:?}"));
    }
}

#[test]
fn colors_and_depths_become_shades_of_gray() {
    let red = 0.2126;
    let cases: [(ColorType, &[u8], [f32; 2]); 5] = [
        (ColorType::L8, &[0, 51], [0.0, 0.2]),
        (ColorType::L16, &[0, 0, 51, 51], [0.0, 0.2]),
        (ColorType::Rgb8, &[255, 0, 0, 255, 255, 255], [red, 1.0]),
        (ColorType::La8, &[51, 255, 0, 255], [0.2, 0.0]),
        (ColorType::Rgba8, &[255, 0, 0, 255, 255, 255, 255, 255], [red, 1.0]),
    ];
    for (color, bytes, expected) in cases {
        let mut file = Vec::new();
        PngEncoder::new(&mut file).write_image(bytes, 2, 1, color.into()).unwrap();
        assert_close(&pixels(&read(&file).unwrap()), &expected, 0.002, &format!("{color:?}"));
    }
}

/// A row of shades and their opacities, as a PNG file.
fn transparent(shades_and_alphas: &[[u8; 2]]) -> Vec<f32> {
    let mut file = Vec::new();
    let (bytes, width) = (shades_and_alphas.as_flattened(), shades_and_alphas.len() as u32);
    PngEncoder::new(&mut file).write_image(bytes, width, 1, ColorType::La8.into()).unwrap();
    pixels(&read(&file).unwrap())
}

#[test]
fn transparent_pixels_show_paper() {
    let none = [0, 0];
    // Ink alone: light ink on black paper, dark ink on white.
    assert_close(&transparent(&[none, none, [255, 255]]), &[0.0, 0.0, 1.0], 0.01, "light ink");
    assert_close(&transparent(&[none, none, [51, 255]]), &[1.0, 1.0, 0.2], 0.01, "dark ink");
    let thick = transparent(&[none, [255, 255], [240, 255]]);
    assert_close(&thick, &[0.0, 1.0, 0.94], 0.01, "thick light ink");
    assert_close(&transparent(&[none, none, [0, 51]]), &[1.0, 1.0, 0.8], 0.01, "pale ink");
    // Ink on paper that does not fill the picture, such as a window with round corners.
    let dark_paper = transparent(&[none, [51, 255], [51, 255], [255, 255]]);
    assert_close(&dark_paper, &[0.2, 0.2, 0.2, 1.0], 0.01, "dark paper");
    assert_close(&transparent(&[none, none]), &[1.0, 1.0], 0.01, "nothing");
}

/// An Exif block with this orientation.
fn exif(orientation: u8) -> Vec<u8> {
    let entry = [0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0];
    [b"MM\0\x2a\0\0\0\x08\0\x01".as_slice(), &entry, &[0; 4]].concat()
}

#[test]
fn photos_are_turned_as_their_orientation_says() {
    // Dark at the upper left, gray at the upper right, light below.
    let upright = GrayImage::from_fn(32, 48, |x, y| {
        image::Luma([if y >= 24 {
            250
        } else if x < 16 {
            0
        } else {
            120
        }])
    });
    let upright = DynamicImage::from(upright);
    // How a camera stores the picture in each orientation.
    let stored = [
        upright.clone(),
        upright.fliph(),
        upright.rotate180(),
        upright.flipv(),
        upright.rotate270().flipv(),
        upright.rotate270(),
        upright.rotate90().flipv(),
        upright.rotate90(),
    ];
    for (orientation, stored) in (1..).zip(stored) {
        let (width, height) = (stored.width(), stored.height());
        let mut png = Vec::new();
        let mut encoder = PngEncoder::new(&mut png);
        encoder.set_exif_metadata(exif(orientation)).unwrap();
        encoder.write_image(stored.as_bytes(), width, height, ColorType::L8.into()).unwrap();
        let mut jpeg = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut jpeg, 95);
        encoder.set_exif_metadata(exif(orientation)).unwrap();
        encoder.write_image(stored.as_bytes(), width, height, ColorType::L8.into()).unwrap();
        for (name, file) in [("PNG", png), ("JPEG", jpeg)] {
            let picture = read(&file).unwrap();
            assert_eq!(picture.dims(), [1, 48, 32, 1], "{name} {orientation}");
            let shades = pixels(&picture);
            let corners = [0, 31, 47 * 32, 47 * 32 + 31].map(|index| shades[index]);
            let what = format!("{name} {orientation}");
            assert_close(&corners, &[0.0, 0.47, 0.98, 0.98], 0.03, &what);
        }
    }
}

/// A file that ends early is never read as another picture.
#[test]
fn incomplete_files_are_refused() {
    for format in FORMATS {
        let file = encoded(&gradient(), format);
        let whole = pixels(&read(&file).unwrap());
        for len in 0..file.len() {
            if let Ok(picture) = read(&file[..len]) {
                assert_eq!(pixels(&picture), whole, "{format:?}, {len} of {} bytes", file.len());
            }
        }
        let found = problem(&file[..file.len() * 2 / 3]);
        assert!(found.starts_with("it is damaged") || found.starts_with("it is incomplete"));
        assert!(found.ends_with("again"), "{found}");
    }
}

#[test]
fn the_end_of_a_thumbnail_is_not_the_end_of_the_photo() {
    let mut file = Vec::new();
    let mut encoder = JpegEncoder::new(&mut file);
    let thumbnail = encoded(&gradient(), ImageFormat::Jpeg);
    encoder.set_exif_metadata([exif(1), thumbnail].concat()).unwrap();
    encoder.encode_image(&gradient()).unwrap();
    assert!(read(&file).is_ok());
    assert_eq!(problem(&file[..file.len() - 2]), "it is incomplete: copy or save it again");
}

#[test]
fn other_files_are_refused() {
    for other in [b"".as_slice(), b"%PDF-1.7", b"\0\0\0\x18ftypheic\0\0\0\0", b"II\x2a\0\x08\0\0\0"]
    {
        let found = problem(other);
        assert!(found.starts_with("it is not a PNG, JPEG, WebP, GIF or BMP file"), "{found}");
        assert!(found.ends_with("save it as one of these"), "{found}");
    }
}

#[test]
fn a_palette_that_ends_within_a_color_is_refused() {
    for palette in [vec![0; 4], vec![0; 5]] {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, 1, 1);
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_palette(palette);
        encoder.write_header().unwrap().write_image_data(&[0]).unwrap();
        let found = problem(&file);
        assert!(found.starts_with("it is damaged (its palette"), "{found}");
    }
}

#[test]
fn a_huge_picture_is_refused_before_decoding() {
    let mut jpeg = encoded(&gradient(), ImageFormat::Jpeg);
    let frame = jpeg.windows(2).position(|marker| marker == [0xFF, 0xC0]).unwrap();
    jpeg[frame + 5..frame + 9].fill(0xFF);
    let found = problem(&jpeg);
    assert!(found.starts_with("65535 × 65535 pixels are too many: scale it down"), "{found}");
}

#[test]
#[cfg(unix)]
fn an_endless_file_is_refused() {
    let error = read_image("/dev/zero", &device()).unwrap_err().to_string();
    assert!(error.contains("more than 500 MB: scale the picture down"), "{error}");
}

#[test]
fn the_error_names_a_missing_file() {
    let error = read_image("no/such.png", &device()).unwrap_err().to_string();
    assert!(error.starts_with("cannot read the picture no/such.png: "), "{error}");
}
