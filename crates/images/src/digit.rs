//! Digits from outside the dataset, prepared as the dataset's own were.

use candle_core::{DType, Device, Tensor};
#[cfg(feature = "png")]
use linen::Cause;
use linen::{Error, Result};

use crate::error::ImageError;

/// The side of an image, in pixels.
const SIDE: usize = 28;
/// The longer side of a digit within it.
const BOX: usize = 20;
/// Pictures are reduced to this side first, which averages their noise away.
const WORKING_SIDE: usize = 280;
/// Ink below this share of the blackest does not widen the digit's box.
const EDGE: f32 = 0.25;
/// Ink must stand out from the paper by this share of the way from black to white.
const CONTRAST: f32 = 0.1;
/// More pixels are refused: decoded they would take a gigabyte.
#[cfg(feature = "png")]
const MOST_PIXELS: u64 = 100_000_000;

/// A picture from a PNG file, in grey. Needs the cargo feature `png`.
///
/// Colours become the grey of their brightness; what is transparent becomes white.
///
/// # Shapes
/// - result: `[1, H, W, 1]`, f32, 0 (black) to 1 (white), on `device`
///
/// # Errors
/// [`ImageError::File`] if the file is missing, damaged, not a PNG file, or larger than 100
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
fn decode_png(file: impl std::io::BufRead + std::io::Seek) -> Result<Grey, String> {
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
    // The decoder would panic.
    if !palette.len().is_multiple_of(3) {
        return Err("it is damaged (its palette ends within a colour); save it as PNG again".into());
    }
    let (width, height) = reader.info().size();
    let size = reader.output_buffer_size();
    let size = size.filter(|_| u64::from(width) * u64::from(height) <= MOST_PIXELS);
    let mut bytes = vec![
        0;
        size.ok_or_else(|| {
            format!(
                "{width} × {height} pixels are too many: scale it down to less than 10,000 × 10,000"
            )
        })?
    ];
    let (color, depth) = reader.output_color_type();
    reader.next_frame(&mut bytes).map_err(describe)?;
    debug_assert_eq!(depth, png::BitDepth::Eight);

    let (channels, has_alpha) = match color {
        ColorType::Grayscale | ColorType::Indexed => (1, false),
        ColorType::GrayscaleAlpha => (2, true),
        ColorType::Rgb => (3, false),
        ColorType::Rgba => (4, true),
    };
    let grey = |pixel: &[u8]| {
        let value = |channel: usize| f32::from(pixel[channel]) / 255.0;
        let brightness = match channels {
            1 | 2 => value(0),
            _ => 0.299 * value(0) + 0.587 * value(1) + 0.114 * value(2), // ITU-R BT.601
        };
        let alpha = if has_alpha { value(channels - 1) } else { 1.0 };
        brightness * alpha + (1.0 - alpha)
    };
    let pixels = bytes.chunks_exact(channels).map(grey).collect();
    Ok(Grey { height: height as usize, width: width as usize, pixels })
}

/// One digit out of a picture, as the images of MNIST are: white on black, its longer side 20
/// pixels, its centre of mass in the middle of 28 × 28.
///
/// The picture may be dark on light or light on dark, of any size, and lit unevenly; the digit
/// should be the only ink in it, with some paper around it. Ink is what stands out from its
/// surroundings; the darkest of it becomes white.
///
/// # Shapes
/// - `picture`: `[1, H, W, 1]`, 0 (black) to 1 (white)
/// - result: `[1, 28, 28, 1]`, f32, 0 to 1, on the picture's device
///
/// # Errors
/// [`Error::Shape`] for another shape or a picture without pixels; [`ImageError::NoDigit`] if nothing
/// stands out, or if a pixel is not a number.
///
/// # Examples
/// ```
/// use candle_core::{Device, Tensor};
/// use images::prepare_digit;
///
/// // A black stroke on white paper, off the middle.
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
/// Y. LeCun, C. Cortes, C. Burges, *The MNIST database of handwritten digits*, on how the images
/// were made from NIST's.
pub fn prepare_digit(picture: &Tensor) -> Result<Tensor> {
    let grey = Grey::from_tensor(picture)?;
    let longer = grey.height.max(grey.width);
    let grey = if longer > WORKING_SIDE { grey.fit(WORKING_SIDE) } else { grey };
    let digit = grey.ink()?.crop_to_ink().fit(BOX).centred();
    digit.into_tensor(picture.device())
}

/// A grey picture, row by row.
struct Grey {
    height: usize,
    width: usize,
    pixels: Vec<f32>,
}

impl Grey {
    fn from_tensor(picture: &Tensor) -> Result<Grey> {
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
        Ok(Grey { height, width, pixels })
    }

    fn into_tensor(self, device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.pixels, (1, self.height, self.width, 1), device)?)
    }

    fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.pixels.chunks_exact(self.width)
    }

    /// The ink alone, 0 where there is paper, 1 where the ink is strongest.
    fn ink(mut self) -> Result<Grey> {
        let (least, most) = self.range();
        if median(self.border()) > (least + most) / 2.0 {
            self.pixels.iter_mut().for_each(|pixel| *pixel = 1.0 - *pixel);
        }
        let paper = self.paper();
        self.pixels.iter_mut().zip(&paper.pixels).for_each(|(pixel, paper)| *pixel -= paper);
        // Half of the paper lies below the median; its grain reaches about twice as high.
        let grain = 2.0 * median(self.pixels.clone());
        let strongest = self.range().1;
        if strongest - grain < CONTRAST {
            return Err(ImageError::NoDigit("nothing in it stands out from the paper").into());
        }
        let ink = |pixel: &mut f32| *pixel = (*pixel - grain).max(0.0) / (strongest - grain);
        self.pixels.iter_mut().for_each(ink);
        Ok(self)
    }

    /// The picture without what is narrower than a third of it: a morphological opening.
    fn paper(&self) -> Grey {
        let reach = self.height.max(self.width) / 6;
        let lines = |grey: &Grey, pick: fn(f32, f32) -> f32| grey.filter(reach, pick).transposed();
        let eroded = lines(&lines(self, f32::min), f32::min);
        lines(&lines(&eroded, f32::max), f32::max)
    }

    /// What `pick` leaves of the pixels up to `reach` to the left and right of each.
    fn filter(&self, reach: usize, pick: fn(f32, f32) -> f32) -> Grey {
        let window = 2 * reach + 1;
        let pixels = self.rows().flat_map(|row| {
            let edge = |pixel: f32| std::iter::repeat_n(pixel, reach);
            let line = edge(row[0]).chain(row.iter().copied()).chain(edge(row[row.len() - 1]));
            let mut line: Vec<f32> = line.collect();
            // Two windows side by side, or one over the other, make a larger one.
            let mut merge = |shift: usize| {
                line = line.iter().zip(&line[shift..]).map(|(a, b)| pick(*a, *b)).collect();
            };
            let mut merged = 1;
            while 2 * merged <= window {
                merge(merged);
                merged *= 2;
            }
            merge(window - merged);
            line
        });
        Grey { pixels: pixels.collect(), ..*self }
    }

    fn transposed(&self) -> Grey {
        let column = |x: usize| self.rows().map(move |row| row[x]);
        let pixels = (0..self.width).flat_map(column).collect();
        Grey { height: self.width, width: self.height, pixels }
    }

    fn range(&self) -> (f32, f32) {
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

    /// The smallest part of the picture that holds all ink.
    fn crop_to_ink(&self) -> Grey {
        let rows = extent(self.rows().map(|row| row.iter().any(|pixel| *pixel > EDGE)));
        let columns = extent((0..self.width).map(|x| self.rows().any(|row| row[x] > EDGE)));
        let cut = self.rows().skip(rows.start).take(rows.len());
        Grey {
            height: rows.len(),
            width: columns.len(),
            pixels: cut.flat_map(|row| &row[columns.clone()]).copied().collect(),
        }
    }

    /// The picture with another longer side; each pixel is the mean of what it covers.
    fn fit(&self, side: usize) -> Grey {
        let scale = side as f64 / self.height.max(self.width) as f64;
        let scaled = |length: usize| ((length as f64 * scale).round() as usize).max(1);
        let narrowed = self.resize_rows(scaled(self.width)).transposed();
        narrowed.resize_rows(scaled(self.height)).transposed()
    }

    fn resize_rows(&self, width: usize) -> Grey {
        let ratio = self.width as f64 / width as f64;
        let covered = (0..width).map(|x| (x as f64 * ratio, (x + 1) as f64 * ratio));
        let pixels = self.rows().flat_map(|row| {
            covered.clone().map(|(start, end)| {
                let reached = start as usize..(end.ceil() as usize).min(row.len());
                let parts = reached.map(|x| {
                    let share = end.min((x + 1) as f64) - start.max(x as f64);
                    f64::from(row[x]) * share
                });
                (parts.sum::<f64>() / ratio) as f32
            })
        });
        Grey { width, pixels: pixels.collect(), ..*self }
    }

    /// The picture, no larger than 20 × 20, within 28 × 28, its centre of mass in the middle.
    fn centred(&self) -> Grey {
        let (mut mass, mut moment_y, mut moment_x) = (0.0, 0.0, 0.0);
        for (y, row) in self.rows().enumerate() {
            for (x, pixel) in row.iter().enumerate() {
                mass += f64::from(*pixel);
                moment_y += f64::from(*pixel) * y as f64;
                moment_x += f64::from(*pixel) * x as f64;
            }
        }
        let top = place(moment_y / mass, self.height);
        let left = place(moment_x / mass, self.width);
        let mut pixels = vec![0.0; SIDE * SIDE];
        for (y, row) in self.rows().enumerate() {
            let start = (top + y) * SIDE + left;
            pixels[start..start + row.len()].copy_from_slice(row);
        }
        Grey { height: SIDE, width: SIDE, pixels }
    }
}

/// Where a digit of this length begins so that its centre of mass comes to lie on pixel 14.
fn place(centre: f64, length: usize) -> usize {
    // Symmetric strokes have their centre between two pixels: they go the same way in spite of
    // rounding errors.
    let start = (SIDE as f64 / 2.0 - centre + 0.499).floor().max(0.0) as usize;
    start.min(SIDE - length)
}

/// From the first to the last that is true.
fn extent(marks: impl Iterator<Item = bool>) -> std::ops::Range<usize> {
    let mut marked = marks.enumerate().filter(|(_, mark)| *mark).map(|(index, _)| index);
    let first = marked.next().unwrap_or(0);
    first..marked.last().unwrap_or(first) + 1
}

fn median(mut values: Vec<f32>) -> f32 {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f32::total_cmp).1
}
