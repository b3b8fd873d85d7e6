//! Reads pictures from files.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use candle_core::{Device, Tensor};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, LumaA};
use linen::{Cause, Result};

use crate::error::ImageError;
use crate::gray_image::{GrayImage, median};

/// Larger files are refused: a picture of the greatest size is smaller.
const MAX_BYTES: u64 = 500_000_000;
/// Larger pictures are refused: decoded, they would take a gigabyte.
const MAX_PIXELS: u64 = 100_000_000;
/// Pixels that cover less than this part of the ground are invisible.
const MIN_ALPHA: f32 = 0.1;
/// Visible pixels whose shades lie closer together are all ink.
const MIN_CONTRAST: f32 = 0.1;

/// Reads a picture file as a grayscale picture: PNG, JPEG, WebP, GIF (the first image) or BMP.
///
/// A picture is turned as its Exif orientation says, as image viewers do. Colors become their luma
/// (ITU-R BT.709). Transparent pixels take the shade of the paper. Where only ink is visible, so
/// that transparency carries the drawing, the paper is white for dark ink and black for light ink.
///
/// # Shapes
/// - result: `[1, H, W, 1]`, f32, 0 (black) to 1 (white), on `device`
///
/// # Errors
/// [`ImageError::File`] if the file is missing, damaged, incomplete, of another format, or has more
/// than 100 million pixels or 500 MB.
///
/// # Examples
/// ```no_run
/// use candle_core::Device;
/// use images::{prepare_digit, read_image};
///
/// let digit = prepare_digit(&read_image("digit.jpg", &Device::Cpu)?)?; // [1, 28, 28, 1]
/// # Ok::<(), linen::Error>(())
/// ```
pub fn read_image(path: impl AsRef<Path>, device: &Device) -> Result<Tensor> {
    let path = path.as_ref();
    let picture = decode(path).map_err(|source| ImageError::File { path: path.into(), source })?;
    picture.into_tensor(device)
}

fn decode(path: &Path) -> Result<GrayImage, Cause> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err("it has more than 500 MB: scale the picture down".into());
    }
    let reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format()?;
    let format = reader.format();
    if format == Some(ImageFormat::Png) && has_broken_palette(&bytes) {
        return Err("it is damaged (its palette ends within a color): save it again".into());
    }
    let mut decoder = reader.into_decoder().map_err(describe)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(format!(
            "{width} × {height} pixels are too many: scale it down to less than 10,000 × 10,000"
        )
        .into());
    }
    // The decoder fills what is missing with gray.
    if format == Some(ImageFormat::Jpeg) && !is_complete_jpeg(&bytes) {
        return Err("it is incomplete: copy or save it again".into());
    }
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(describe)?;
    picture.apply_orientation(orientation);
    Ok(on_paper(picture))
}

fn describe(error: image::ImageError) -> Cause {
    match error {
        image::ImageError::Unsupported(_) => format!(
            "it is not a PNG, JPEG, WebP, GIF or BMP file ({error}): save it as one of these"
        ),
        error => format!("it is damaged ({error}): save it again"),
    }
    .into()
}

/// Whether a PNG file has a palette that ends within a color, on which the decoder panics.
fn has_broken_palette(bytes: &[u8]) -> bool {
    // After the signature come chunks: a length, a type, the data, a checksum.
    let mut rest = bytes.get(8..).unwrap_or_default();
    while let Some((length, chunk)) = rest.split_first_chunk() {
        let length = u32::from_be_bytes(*length) as usize;
        if chunk.starts_with(b"PLTE") && !length.is_multiple_of(3) {
            return true;
        }
        rest = chunk.get(length.saturating_add(8)..).unwrap_or_default();
    }
    false
}

/// Whether a JPEG file has its end marker (0xFFD9).
fn is_complete_jpeg(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(2..).unwrap_or_default();
    loop {
        // In compressed data, 0xFF comes before 0 or a restart marker.
        let is_marker = |pair: &[u8]| pair[0] == 0xFF && !matches!(pair[1], 0 | 0xD0..=0xD7 | 0xFF);
        let Some(at) = rest.windows(2).position(is_marker) else {
            return false;
        };
        if rest[at + 1] == 0xD9 {
            return true;
        }
        // Skips the marker's segment, which may contain a thumbnail with an end of its own.
        let Some(&[high, low]) = rest.get(at + 2..at + 4) else {
            return false;
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        rest = rest.get(at + 2 + length..).unwrap_or_default();
    }
}

/// The picture in shades of gray on an opaque ground.
fn on_paper(picture: DynamicImage) -> GrayImage {
    let picture = picture.into_luma_alpha8();
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let shade = |pixel: &LumaA<u8>| pixel.0.map(|value| f32::from(value) / 255.0);
    let visible = picture.pixels().map(shade).filter(|[_, alpha]| *alpha >= MIN_ALPHA);
    let paper = paper_shade(visible.map(|[luma, _]| luma).collect(), width * height);
    let gray =
        picture.pixels().map(shade).map(|[luma, alpha]| luma * alpha + paper * (1.0 - alpha));
    GrayImage { height, width, pixels: gray.collect() }
}

/// The shade of the paper, from the visible pixels of a picture with `count` pixels.
fn paper_shade(visible: Vec<f32>, count: usize) -> f32 {
    if visible.is_empty() {
        return 1.0;
    }
    let (min, max) = visible
        .iter()
        .fold((1.0_f32, 0.0_f32), |(min, max), shade| (min.min(*shade), max.max(*shade)));
    let is_ink = 2 * visible.len() < count || max - min < MIN_CONTRAST;
    match (is_ink, median(visible)) {
        (false, paper) => paper,
        (true, ink) => f32::from(ink < 0.5),
    }
}
