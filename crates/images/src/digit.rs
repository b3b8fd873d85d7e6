//! Prepares pictures of digits as MNIST's images were prepared.

use candle_core::{DType, Device, Tensor};
#[cfg(feature = "png")]
use linen::Cause;
use linen::{Error, Result};

use crate::error::ImageError;

/// Side of an image, in pixels.
const SIDE: usize = 28;
/// Longer side of the digit in an image, in pixels.
const DIGIT_SIDE: usize = 20;
/// Larger pictures are downsampled to this longer side first, which averages out their noise.
const WORKING_SIDE: usize = 280;
/// Ink weaker than this fraction of the strongest does not extend the digit's bounding box.
const INK_THRESHOLD: f32 = 0.25;
/// Minimum contrast of ink and background; black and white have a contrast of 1.
const MIN_CONTRAST: f32 = 0.1;
/// Larger pictures are refused: decoded, they would take a gigabyte.
#[cfg(feature = "png")]
const MAX_PIXELS: u64 = 100_000_000;

/// Reads a PNG file as a grayscale picture. Needs the cargo feature `png`.
///
/// Colors become their luma (ITU-R BT.601); transparent pixels become white.
///
/// # Shapes
/// - result: `[1, H, W, 1]`, f32, 0 (black) to 1 (white), on `device`
///
/// # Errors
/// [`ImageError::File`] if the file is missing, damaged, not a PNG file, or has more than 100
/// million pixels.
#[cfg(feature = "png")]
pub fn read_png(path: impl AsRef<std::path::Path>, device: &Device) -> Result<Tensor> {
    let path = path.as_ref();
    let fail = |source: Cause| ImageError::File { path: path.into(), source };
    let file = std::fs::File::open(path).map_err(|error| fail(error.into()))?;
    let picture = decode_png(std::io::BufReader::new(file)).map_err(|error| fail(error.into()))?;
    picture.into_tensor(device)
}

#[cfg(feature = "png")]
fn decode_png(file: impl std::io::BufRead + std::io::Seek) -> Result<GrayImage, String> {
    use png::ColorType;

    let describe = |error: png::DecodingError| match error {
        png::DecodingError::Format(error) => {
            format!("it is damaged or not a PNG file ({error}); save it as PNG again")
        }
        other => other.to_string(),
    };
    let mut decoder = png::Decoder::new(file);
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(describe)?;
    let palette = reader.info().palette.as_deref().unwrap_or_default();
    // The decoder panics on such a palette.
    if !palette.len().is_multiple_of(3) {
        return Err("it is damaged (its palette ends within a color); save it as PNG again".into());
    }
    let (width, height) = reader.info().size();
    let too_large = || {
        format!(
            "{width} × {height} pixels are too many: scale it down to less than 10,000 × 10,000"
        )
    };
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(too_large());
    }
    let mut bytes = vec![0; reader.output_buffer_size().ok_or_else(too_large)?];
    let (color, depth) = reader.output_color_type();
    reader.next_frame(&mut bytes).map_err(describe)?;
    debug_assert_eq!(depth, png::BitDepth::Eight);

    let (channels, has_alpha) = match color {
        ColorType::Grayscale | ColorType::Indexed => (1, false),
        ColorType::GrayscaleAlpha => (2, true),
        ColorType::Rgb => (3, false),
        ColorType::Rgba => (4, true),
    };
    let gray = |pixel: &[u8]| {
        let value = |channel: usize| f32::from(pixel[channel]) / 255.0;
        let luma = match channels {
            1 | 2 => value(0),
            _ => 0.299 * value(0) + 0.587 * value(1) + 0.114 * value(2),
        };
        let alpha = if has_alpha { value(channels - 1) } else { 1.0 };
        luma * alpha + (1.0 - alpha)
    };
    let pixels = bytes.chunks_exact(channels).map(gray).collect();
    Ok(GrayImage { height: height as usize, width: width as usize, pixels })
}

/// Turns a picture of one digit into an image like MNIST's: white on black, its longer side 20
/// pixels, its center of mass in the middle of 28 × 28 pixels.
///
/// The picture may be dark on light or light on dark, of any size, and unevenly lit. The digit
/// should be the only ink in it, with a margin around it. Everything that contrasts with its
/// surroundings counts as ink; the strongest ink becomes white.
///
/// # Shapes
/// - `picture`: `[1, H, W, 1]`, 0 (black) to 1 (white)
/// - result: `[1, 28, 28, 1]`, f32, 0 to 1, on the picture's device
///
/// # Errors
/// [`Error::Shape`] for another shape or a picture without pixels; [`ImageError::NoDigit`] if there
/// is no ink, or if a pixel is not finite.
///
/// # Examples
/// ```
/// use candle_core::{Device, Tensor};
/// use images::prepare_digit;
///
/// // An off-center black stroke on white.
/// let mut pixels = vec![1f32; 100 * 60];
/// for row in 10..70 {
///     pixels[row * 60 + 20..row * 60 + 26].fill(0.0);
/// }
/// let picture = Tensor::from_vec(pixels, (1, 100, 60, 1), &Device::Cpu)?;
/// let digit = prepare_digit(&picture)?;
/// assert_eq!(digit.dims(), [1, 28, 28, 1]);
/// assert_eq!(digit.sum_all()?.to_scalar::<f32>()?, 40.0); // 20 rows of 2 white pixels
/// # Ok::<(), linen::Error>(())
/// ```
///
/// # Source
/// Y. LeCun, C. Cortes, C. Burges, *The MNIST database of handwritten digits*, which describes how
/// the images were made from NIST's.
pub fn prepare_digit(picture: &Tensor) -> Result<Tensor> {
    let gray = GrayImage::from_tensor(picture)?;
    let longer_side = gray.height.max(gray.width);
    let gray = if longer_side > WORKING_SIDE { gray.fit(WORKING_SIDE) } else { gray };
    let digit = gray.ink()?.crop_to_ink().fit(DIGIT_SIDE).centered();
    digit.into_tensor(picture.device())
}

/// A grayscale picture, row by row.
struct GrayImage {
    height: usize,
    width: usize,
    pixels: Vec<f32>,
}

impl GrayImage {
    fn from_tensor(picture: &Tensor) -> Result<GrayImage> {
        let (height, width) = match *picture.dims() {
            [1, height, width, 1] if height > 0 && width > 0 => (height, width),
            _ => {
                return Err(Error::Shape {
                    what: "picture of a digit",
                    expected: "[1, H, W, 1]".into(),
                    found: picture.dims().to_vec(),
                });
            }
        };
        let pixels = picture.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        if !pixels.iter().all(|pixel| pixel.is_finite()) {
            return Err(ImageError::NoDigit("some of its pixels are not numbers").into());
        }
        Ok(GrayImage { height, width, pixels })
    }

    fn into_tensor(self, device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.pixels, (1, self.height, self.width, 1), device)?)
    }

    fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.pixels.chunks_exact(self.width)
    }

    /// The strength of the ink: 0 for the background, 1 for the strongest ink.
    fn ink(mut self) -> Result<GrayImage> {
        let (min, max) = self.min_max();
        // A light border means dark ink.
        if median(self.border()) > (min + max) / 2.0 {
            self.pixels.iter_mut().for_each(|pixel| *pixel = 1.0 - *pixel);
        }
        let background = self.background();
        let pairs = self.pixels.iter_mut().zip(&background.pixels);
        pairs.for_each(|(pixel, background)| *pixel -= background);
        // Most pixels are background, and its noise reaches about twice their median.
        let noise = 2.0 * median(self.pixels.clone());
        let strongest = self.min_max().1;
        if strongest - noise < MIN_CONTRAST {
            return Err(ImageError::NoDigit("nothing in it stands out from the paper").into());
        }
        let ink = |pixel: &mut f32| *pixel = (*pixel - noise).max(0.0) / (strongest - noise);
        self.pixels.iter_mut().for_each(ink);
        Ok(self)
    }

    /// The morphological opening (erosion, then dilation), which removes structures narrower than a
    /// third of the picture.
    fn background(&self) -> GrayImage {
        let radius = self.height.max(self.width) / 6;
        let pass = |gray: &GrayImage, reduce: fn(f32, f32) -> f32| {
            gray.filter_rows(radius, reduce).transposed()
        };
        let eroded = pass(&pass(self, f32::min), f32::min);
        pass(&pass(&eroded, f32::max), f32::max)
    }

    /// Minimum or maximum filter along the rows, with edge pixels repeated beyond the edges.
    fn filter_rows(&self, radius: usize, reduce: fn(f32, f32) -> f32) -> GrayImage {
        let window = 2 * radius + 1;
        let pixels = self.rows().flat_map(|row| {
            let edge = |pixel: f32| std::iter::repeat_n(pixel, radius);
            let padded = edge(row[0]).chain(row.iter().copied()).chain(edge(row[row.len() - 1]));
            let mut padded: Vec<f32> = padded.collect();
            // Adjacent or overlapping windows of one size combine into a larger window.
            let mut combine = |shift: usize| {
                padded = padded.iter().zip(&padded[shift..]).map(|(a, b)| reduce(*a, *b)).collect();
            };
            let mut size = 1;
            while 2 * size <= window {
                combine(size);
                size *= 2;
            }
            combine(window - size);
            padded
        });
        GrayImage { pixels: pixels.collect(), ..*self }
    }

    fn transposed(&self) -> GrayImage {
        let column = |x: usize| self.rows().map(move |row| row[x]);
        let pixels = (0..self.width).flat_map(column).collect();
        GrayImage { height: self.width, width: self.height, pixels }
    }

    fn min_max(&self) -> (f32, f32) {
        let pixels = self.pixels.iter().copied();
        (pixels.clone().fold(f32::MAX, f32::min), pixels.fold(f32::MIN, f32::max))
    }

    fn border(&self) -> Vec<f32> {
        let last = (self.height - 1, self.width - 1);
        let on_border = |index: &usize| {
            let (y, x) = (index / self.width, index % self.width);
            y == 0 || x == 0 || y == last.0 || x == last.1
        };
        (0..self.pixels.len()).filter(on_border).map(|index| self.pixels[index]).collect()
    }

    /// Crops the picture to the bounding box of its ink.
    fn crop_to_ink(&self) -> GrayImage {
        let rows = extent(self.rows().map(|row| row.iter().any(|pixel| *pixel > INK_THRESHOLD)));
        let columns =
            extent((0..self.width).map(|x| self.rows().any(|row| row[x] > INK_THRESHOLD)));
        let cropped = self.rows().skip(rows.start).take(rows.len());
        GrayImage {
            height: rows.len(),
            width: columns.len(),
            pixels: cropped.flat_map(|row| &row[columns.clone()]).copied().collect(),
        }
    }

    /// Resizes the longer side; each pixel is the mean of the area it covers.
    fn fit(&self, side: usize) -> GrayImage {
        let scale = side as f64 / self.height.max(self.width) as f64;
        let scaled = |length: usize| ((length as f64 * scale).round() as usize).max(1);
        let narrowed = self.resize_rows(scaled(self.width)).transposed();
        narrowed.resize_rows(scaled(self.height)).transposed()
    }

    fn resize_rows(&self, width: usize) -> GrayImage {
        let ratio = self.width as f64 / width as f64;
        let covered = (0..width).map(|x| (x as f64 * ratio, (x + 1) as f64 * ratio));
        let pixels = self.rows().flat_map(|row| {
            covered.clone().map(|(start, end)| {
                let sources = start as usize..(end.ceil() as usize).min(row.len());
                let parts = sources.map(|x| {
                    let overlap = end.min((x + 1) as f64) - start.max(x as f64);
                    f64::from(row[x]) * overlap
                });
                (parts.sum::<f64>() / ratio) as f32
            })
        });
        GrayImage { width, pixels: pixels.collect(), ..*self }
    }

    /// Places the picture, of at most 20 × 20 pixels, on 28 × 28 pixels by its center of mass.
    fn centered(&self) -> GrayImage {
        let (mut mass, mut moment_y, mut moment_x) = (0.0, 0.0, 0.0);
        for (y, row) in self.rows().enumerate() {
            for (x, pixel) in row.iter().enumerate() {
                mass += f64::from(*pixel);
                moment_y += f64::from(*pixel) * y as f64;
                moment_x += f64::from(*pixel) * x as f64;
            }
        }
        let top = offset(moment_y / mass, self.height);
        let left = offset(moment_x / mass, self.width);
        let mut pixels = vec![0.0; SIDE * SIDE];
        for (y, row) in self.rows().enumerate() {
            let start = (top + y) * SIDE + left;
            pixels[start..start + row.len()].copy_from_slice(row);
        }
        GrayImage { height: SIDE, width: SIDE, pixels }
    }
}

/// The offset that moves a center of mass to pixel 14.
fn offset(center: f64, length: usize) -> usize {
    // 0.499 instead of 0.5: the center of symmetric strokes is halfway between two pixels, and is
    // then rounded the same way despite rounding errors.
    let start = (SIDE as f64 / 2.0 - center + 0.499).floor().max(0.0) as usize;
    start.min(SIDE - length)
}

/// From the first `true` to the last.
fn extent(flags: impl Iterator<Item = bool>) -> std::ops::Range<usize> {
    let mut indices = flags.enumerate().filter(|(_, flag)| *flag).map(|(index, _)| index);
    let first = indices.next().unwrap_or(0);
    first..indices.last().unwrap_or(first) + 1
}

fn median(mut values: Vec<f32>) -> f32 {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f32::total_cmp).1
}
