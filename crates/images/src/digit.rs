//! Prepares pictures of digits as MNIST's images were prepared.

use std::mem::take;
use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use linen::{Error, Result, memory};

use crate::error::ImageError;
use crate::gray_image::{GrayImage, median};

/// Side of an image, in pixels.
const SIDE: usize = 28;
/// Longer side of the digit in an image, in pixels.
const DIGIT_SIDE: usize = 20;
/// Larger pictures are downsampled to this longer side first, which averages out their noise.
const WORKING_SIDE: usize = 280;
/// The shade of the paper around each pixel is estimated on a picture of this longer side.
const COARSE_SIDE: usize = 56;
/// Areas whose ink is nowhere stronger than this fraction of the strongest are no strokes.
const INK_THRESHOLD: f32 = 0.25;
/// Minimum contrast of ink and paper; black and white have a contrast of 1.
const MIN_CONTRAST: f32 = 0.1;
/// Darker paper counts as this dark: in the deepest shadows noise is not ink.
const DARKEST_PAPER: f32 = 0.1;
/// The sum over an image with less ink than any digit: MNIST's have 20 or more.
const TOO_LITTLE_INK: f32 = 10.0;

/// Turns a picture of one digit into an image like MNIST's: white on black, its longer side 20
/// pixels, its center of mass in the middle of 28 × 28 pixels.
///
/// The picture may be dark on light or light on dark, of any size, and unevenly lit; the pen may be
/// thin or thick. The digit should be the only ink in it, with a margin around it: everything that
/// contrasts with its surroundings counts as ink, except what lies along the edges, such as a
/// scanner's line or the table around the paper. Each stroke becomes white.
///
/// # Shapes
/// - `picture`: `[1, H, W, 1]`, 0 (black) to 1 (white)
/// - result: `[1, 28, 28, 1]`, f32, 0 to 1, on the picture's device
///
/// # Errors
/// [`Error::Shape`] for another shape or a picture without pixels; [`ImageError::NoDigit`] if there
/// is no ink, if it is too small, or if a pixel is not between 0 and 1.
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
    let gray = from_tensor(picture)?;
    let gray = if gray.longer_side() > WORKING_SIDE { gray.fit(WORKING_SIDE) } else { gray };
    let gray = if has_light_ink(&gray) { gray.map(|pixel| 1.0 - pixel) } else { gray };
    let digit = find_digit(&gray).ok_or(ImageError::NoDigit(
        "nothing in it stands out from the paper; the digit must be darker or lighter, not tiny, \
         and have a margin of paper around it",
    ))?;
    let digit = at_full_strength(&digit.fit(DIGIT_SIDE));
    if digit.pixels.iter().sum::<f32>() < TOO_LITTLE_INK {
        let problem = "only specks stand out from the paper; draw the digit with a thicker pen, or \
                       cut the picture more closely around it";
        return Err(ImageError::NoDigit(problem).into());
    }
    centered(&digit).into_tensor(picture.device())
}

fn from_tensor(picture: &Tensor) -> Result<GrayImage> {
    let (height, width) = match *picture.dims() {
        [1, height, width, 1] if height > 0 && width > 0 => (height, width),
        _ => return Err(Error::shape("picture of a digit", "[1, H, W, 1]", picture)),
    };
    // A broadcast tensor takes no memory until its pixels are listed.
    memory::check("a picture", &[2, height, width], DType::F32, &Device::Cpu)?;
    let pixels = picture.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    if !pixels.iter().all(|pixel| (0.0..=1.0).contains(pixel)) {
        let problem = "some of its pixels are not between 0 (black) and 1 (white)";
        return Err(ImageError::NoDigit(problem).into());
    }
    Ok(GrayImage { height, width, pixels })
}

/// Whether the ink is lighter than the paper.
///
/// The median of a wide surrounding is paper, also in a shadow. Pixels that differ much from it are
/// ink, and the third power gives them the weight.
fn has_light_ink(gray: &GrayImage) -> bool {
    let coarse = gray.fit(gray.longer_side().min(COARSE_SIDE));
    let paper = coarse.medians(coarse.longer_side() / 5);
    let cube = |(index, pixel): (usize, &f32)| {
        let y = index / gray.width * paper.height / gray.height;
        let x = index % gray.width * paper.width / gray.width;
        (pixel - paper.pixels[y * paper.width + x]).powi(3)
    };
    gray.pixels.iter().enumerate().map(cube).sum::<f32>() > 0.0
}

/// The digit in a picture with dark ink, cropped to it: 0 for paper to 1 for the strongest ink.
fn find_digit(gray: &GrayImage) -> Option<GrayImage> {
    // What lies along an edge is taken to go on beyond it, so it is too wide for a stroke.
    let margin = gray.longer_side() / 50;
    let near_edge = |area: &Area| {
        let near = |range: &Range<usize>, len| range.start <= margin || range.end + margin >= len;
        near(&area.rows, gray.height) || near(&area.columns, gray.width)
    };
    // Strokes are narrower than a third of the picture.
    let radius = gray.longer_side() / 6;
    let inner = |length: usize| radius + 1..radius + 1 + length;
    let paper = gray.padded(radius + 1).closed(radius);
    let paper = paper.cropped(inner(gray.height), inner(gray.width));
    let inside = digit_of(&ink(gray, &paper)?, |area| !near_edge(area));
    // Without a digit inside, the picture may be cropped tightly to it.
    inside.or_else(|| digit_of(&ink(gray, &gray.closed(radius))?, |_| true))
}

/// The strength of dark ink on this paper, 0 for none to 1 for the strongest, if there is any.
fn ink(gray: &GrayImage, paper: &GrayImage) -> Option<GrayImage> {
    let ink = paper.zip_with(gray, |paper, pixel| paper - pixel);
    // Most pixels are paper, and its noise reaches about twice their median.
    let noise = 2.0 * median(ink.pixels.clone());
    // Light and shadow multiply the shade of paper and ink alike.
    let ink = ink.zip_with(paper, |ink, paper| (ink - noise).max(0.0) / paper.max(DARKEST_PAPER));
    let strongest = ink.max();
    (strongest > MIN_CONTRAST).then(|| ink.map(|ink| ink / strongest))
}

/// An area of connected pixels with ink.
struct Area {
    /// Positions in the picture.
    pixels: Vec<usize>,
    /// The rows with strong ink; none in a weak area, which is noise.
    rows: Range<usize>,
    /// The columns with strong ink.
    columns: Range<usize>,
}

impl Area {
    fn new(pixels: Vec<usize>, ink: &GrayImage) -> Self {
        let strong = pixels.iter().filter(|index| ink.pixels[**index] > INK_THRESHOLD);
        let rows = bounds(strong.clone().map(|index| index / ink.width));
        let columns = bounds(strong.map(|index| index % ink.width));
        Area { pixels, rows, columns }
    }

    fn longer_side(&self) -> usize {
        self.rows.len().max(self.columns.len())
    }
}

/// The smallest range with all these positions.
fn bounds(positions: impl Iterator<Item = usize> + Clone) -> Range<usize> {
    let start = positions.clone().min().unwrap_or(0);
    start..positions.max().map_or(start, |last| last + 1)
}

/// The areas of connected ink, diagonals included.
fn areas(ink: &GrayImage) -> Vec<Area> {
    let mut is_free: Vec<bool> = ink.pixels.iter().map(|ink| *ink > 0.0).collect();
    let mut areas = Vec::new();
    for start in 0..is_free.len() {
        if !take(&mut is_free[start]) {
            continue;
        }
        let mut pixels = vec![start];
        let mut next = 0;
        while let Some(index) = pixels.get(next) {
            let (y, x) = (index / ink.width, index % ink.width);
            for y in y.saturating_sub(1)..ink.height.min(y + 2) {
                for x in x.saturating_sub(1)..ink.width.min(x + 2) {
                    let neighbor = y * ink.width + x;
                    if take(&mut is_free[neighbor]) {
                        pixels.push(neighbor);
                    }
                }
            }
            next += 1;
        }
        areas.push(Area::new(pixels, ink));
    }
    areas
}

/// The ink of the areas that may belong to the digit, cropped to them, without specks; `None` if
/// there is no area of a twentieth of the picture.
fn digit_of(ink: &GrayImage, may_belong: impl Fn(&Area) -> bool) -> Option<GrayImage> {
    let mut areas = areas(ink);
    areas.retain(may_belong);
    let largest = areas.iter().map(Area::longer_side).max()?;
    if largest * 20 < ink.longer_side() {
        return None;
    }
    areas.retain(|area| area.longer_side() * 8 > largest);
    let mut digit = ink.map(|_| 0.0);
    for index in areas.iter().flat_map(|area| &area.pixels) {
        digit.pixels[*index] = ink.pixels[*index];
    }
    let rows = bounds(areas.iter().flat_map(|area| area.rows.clone()));
    let columns = bounds(areas.iter().flat_map(|area| area.columns.clone()));
    Some(digit.cropped(rows, columns))
}

/// Gives each stroke full strength: a thin or pale one has become gray.
fn at_full_strength(digit: &GrayImage) -> GrayImage {
    let weakest = INK_THRESHOLD * digit.max();
    let strokes = digit.filtered(2, f32::max);
    digit.zip_with(&strokes, |ink, stroke| ink / stroke.max(weakest))
}

/// Places a digit of at most 20 × 20 pixels on 28 × 28 by its center of mass.
fn centered(digit: &GrayImage) -> GrayImage {
    let (mut mass, mut moment_y, mut moment_x) = (0.0, 0.0, 0.0);
    for (y, row) in digit.rows().enumerate() {
        for (x, pixel) in row.iter().enumerate() {
            mass += f64::from(*pixel);
            moment_y += f64::from(*pixel) * y as f64;
            moment_x += f64::from(*pixel) * x as f64;
        }
    }
    let top = offset(moment_y / mass, digit.height);
    let left = offset(moment_x / mass, digit.width);
    let mut pixels = vec![0.0; SIDE * SIDE];
    for (y, row) in digit.rows().enumerate() {
        let start = (top + y) * SIDE + left;
        pixels[start..start + row.len()].copy_from_slice(row);
    }
    GrayImage { height: SIDE, width: SIDE, pixels }
}

/// The offset that moves a center of mass to pixel 14.
fn offset(center: f64, length: usize) -> usize {
    // 0.499 instead of 0.5: the center of symmetric strokes is halfway between two pixels, and is
    // then rounded the same way despite rounding errors.
    let start = (SIDE as f64 / 2.0 - center + 0.499).floor().max(0.0) as usize;
    start.min(SIDE - length)
}
