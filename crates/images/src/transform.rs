//! Shifts, rotations, noise and random augmentation of whole batches.
//!
//! They test how well a network recognizes digits unlike those that it was trained on.

use candle_core::{DType, Device, Tensor};
use linen::random::{normal, uniform};
use linen::{Error, Key, Result, check, memory};
use rayon::prelude::*;

/// The name of the images in error messages.
const WHAT: &str = "images to transform";

/// Shifts images right by `dx` and down by `dy` pixels, which may be negative or fractional.
///
/// Pixels from beyond the edge are black; interpolation is bilinear.
///
/// # Shapes
/// - `images`: `[N, height, width, channels]`, any float type; computed in f32
/// - result: the same
///
/// # Errors
/// [`Error::Shape`] and [`Error::DType`] for anything else, [`Error::Hyperparameter`] unless both
/// numbers are finite.
///
/// # Examples
/// ```
/// use candle_core::{Device, Tensor};
/// use images::shift;
///
/// let image = Tensor::new(&[1f32, 2., 3., 4.], &Device::Cpu)?.reshape((1, 2, 2, 1))?;
/// let right = shift(&image, 1.0, 0.0)?.flatten_all()?.to_vec1::<f32>()?;
/// assert_eq!(right, [0., 1., 0., 3.]);
/// # Ok::<(), linen::Error>(())
/// ```
///
/// # Source
/// `scipy.ndimage.shift(image, (dy, dx), order=1, mode="grid-constant")`.
pub fn shift(images: &Tensor, dx: f64, dy: f64) -> Result<Tensor> {
    move_each(images, |_| Motion { degrees: 0.0, dx, dy })
}

/// Rotates images counter-clockwise by `degrees` about their center.
///
/// Pixels from beyond the edge are black; interpolation is bilinear. Quarter turns of square images
/// are exact.
///
/// # Shapes
/// - `images`: `[N, height, width, channels]`, any float type; computed in f32
/// - result: the same
///
/// # Errors
/// [`Error::Shape`] and [`Error::DType`] for anything else, [`Error::Hyperparameter`] unless
/// `degrees` is finite.
///
/// # Examples
/// ```
/// use candle_core::{Device, Tensor};
/// use images::rotate;
///
/// let image = Tensor::new(&[1f32, 2., 3., 4.], &Device::Cpu)?.reshape((1, 2, 2, 1))?;
/// let rotated = rotate(&image, 90.0)?.flatten_all()?.to_vec1::<f32>()?;
/// assert_eq!(rotated, [2., 4., 1., 3.]);
/// # Ok::<(), linen::Error>(())
/// ```
///
/// # Source
/// `scipy.ndimage.rotate(image, degrees, reshape=False, order=1, mode="grid-constant")`.
pub fn rotate(images: &Tensor, degrees: f64) -> Result<Tensor> {
    move_each(images, |_| Motion { degrees, dx: 0.0, dy: 0.0 })
}

/// Adds Gaussian noise of this standard deviation to images, then clips them to 0 (black) to 1
/// (white).
///
/// # Shapes
/// - `images`: any shape, any float type
/// - result: the same
///
/// # Errors
/// [`Error::DType`] for another type, [`Error::Hyperparameter`] unless `stddev` is finite and not
/// negative.
///
/// # Examples
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use {images::add_noise, linen::Key};
///
/// let gray = Tensor::full(0.5f32, (10, 28, 28, 1), &Device::Cpu)?;
/// let noisy = add_noise(Key::new(0), &gray, 0.1)?;
/// let variance = (noisy - 0.5)?.sqr()?.mean_all()?.to_scalar::<f32>()?;
/// assert!((variance.sqrt() - 0.1).abs() < 0.005);
/// # Ok::<(), linen::Error>(())
/// ```
///
/// # Source
/// `jax.numpy.clip(images + stddev * jax.random.normal(key, images.shape), 0, 1)`.
pub fn add_noise(key: Key, images: &Tensor, stddev: f64) -> Result<Tensor> {
    check::float(WHAT, images)?;
    check::not_negative("stddev", stddev)?;
    let noise = normal(key, images.shape(), images.device())?.to_dtype(images.dtype())?;
    Ok((images + (noise * stddev)?)?.clamp(0.0, 1.0)?)
}

/// Rotates and shifts each image at random, for data augmentation.
///
/// Angles are uniform in ±`max_degrees`; shifts are uniform in ±`max_shift` pixels along both axes.
/// The same key gives the same images, so use a new key for each batch.
///
/// # Shapes
/// - `images`: `[N, height, width, channels]`, any float type; computed in f32
/// - result: the same
///
/// # Errors
/// [`Error::Shape`] and [`Error::DType`] for anything else, [`Error::Hyperparameter`] unless both
/// bounds are finite and not negative.
///
/// # Examples
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use images::augment;
/// use linen::Key;
///
/// let images = Tensor::ones((2, 28, 28, 1), DType::F32, &Device::Cpu)?;
/// let augmented = augment(Key::new(0), &images, 2.0, 10.0)?; // up to 2 pixels, up to 10 degrees
/// assert_eq!(augmented.dims(), [2, 28, 28, 1]);
/// assert_eq!(augmented.min_all()?.to_scalar::<f32>()?, 0.0); // black from beyond the edges
/// # Ok::<(), linen::Error>(())
/// ```
///
/// # Source
/// P. Simard et al., *Best practices for convolutional neural networks applied to visual document
/// analysis*, 2003. Images equal those of `jax.scipy.ndimage.map_coordinates(…, order=1)`.
pub fn augment(key: Key, images: &Tensor, max_shift: f64, max_degrees: f64) -> Result<Tensor> {
    let count = images.dims().first().copied().unwrap_or(0);
    let draw = |key, numbers, name, bound: f64| -> Result<Vec<Vec<f32>>> {
        let bound = bound as f32;
        check::not_negative(name, f64::from(bound))?;
        Ok(uniform(key, (count, numbers), -bound, bound, &Device::Cpu)?.to_vec2()?)
    };
    let (rotation_key, shift_key) = key.split();
    let degrees = draw(rotation_key, 1, "max_degrees", max_degrees)?;
    let shifts = draw(shift_key, 2, "max_shift", max_shift)?;
    move_each(images, |i| Motion {
        degrees: degrees[i][0].into(),
        dx: shifts[i][1].into(),
        dy: shifts[i][0].into(),
    })
}

/// A rigid motion: a rotation about the center of the image, then a shift.
#[derive(Debug, Clone, Copy)]
struct Motion {
    /// Counter-clockwise.
    degrees: f64,
    /// Pixels to the right.
    dx: f64,
    /// Pixels down.
    dy: f64,
}

/// Applies `motion(index)` to each image, in parallel.
///
/// # Errors
/// Those of [`shift`] and [`rotate`].
fn move_each(images: &Tensor, motion: impl Fn(usize) -> Motion) -> Result<Tensor> {
    check::float(WHAT, images)?;
    let &[count, height, width, channels] = images.dims() else {
        return Err(Error::shape(WHAT, "[N, height, width, channels]", images));
    };
    // The pixels before and after.
    let both = [2, count, height, width, channels];
    memory::check("moving images", &both, DType::F32, &Device::Cpu)?;
    let size = Size { height, width, channels };
    let motions = (0..count).map(|index| motion(index).check()).collect::<Result<Vec<_>>>()?;
    let pixels = images.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let mut moved = vec![0.0; pixels.len()];
    let len = (height * width * channels).max(1);
    (moved.par_chunks_exact_mut(len).zip(pixels.par_chunks_exact(len)).zip(&motions))
        .for_each(|((out, image), motion)| move_image(image, size, *motion, out));
    let moved = Tensor::from_vec(moved, images.shape(), images.device())?;
    Ok(moved.to_dtype(images.dtype())?)
}

impl Motion {
    fn check(self) -> Result<Self> {
        check::finite("degrees", self.degrees)?;
        check::finite("dx", self.dx)?;
        check::finite("dy", self.dy)?;
        Ok(self)
    }
}

#[derive(Clone, Copy)]
struct Size {
    height: usize,
    width: usize,
    channels: usize,
}

/// Samples the image at the source position of each output pixel.
fn move_image(image: &[f32], size: Size, motion: Motion, out: &mut [f32]) {
    let (sin, cos) = sin_cos(motion.degrees);
    let (center_x, center_y) = ((size.width as f64 - 1.0) / 2.0, (size.height as f64 - 1.0) / 2.0);
    for (index, pixel) in out.chunks_exact_mut(size.channels).enumerate() {
        let x = (index % size.width) as f64 - motion.dx - center_x;
        let y = (index / size.width) as f64 - motion.dy - center_y;
        let (x, y) = (cos * x - sin * y + center_x, sin * x + cos * y + center_y);
        interpolate(image, size, (x, y), pixel);
    }
}

/// Adds the bilinear interpolation of the image at a point; pixels beyond the edge are black.
fn interpolate(image: &[f32], size: Size, (x, y): (f64, f64), pixel: &mut [f32]) {
    let (left, top) = (x.floor(), y.floor());
    let (right_weight, bottom_weight) = (x - left, y - top);
    for (row, row_weight) in [(top, 1.0 - bottom_weight), (top + 1.0, bottom_weight)] {
        for (column, column_weight) in [(left, 1.0 - right_weight), (left + 1.0, right_weight)] {
            let inside = (0.0..size.height as f64).contains(&row)
                && (0.0..size.width as f64).contains(&column);
            let weight = (row_weight * column_weight) as f32;
            if inside && weight > 0.0 {
                let start = (row as usize * size.width + column as usize) * size.channels;
                let source = &image[start..][..size.channels];
                pixel.iter_mut().zip(source).for_each(|(out, value)| *out += weight * value);
            }
        }
    }
}

/// Sine and cosine of an angle in degrees, exact for quarter turns.
fn sin_cos(degrees: f64) -> (f64, f64) {
    let quarter_turns = (degrees / 90.0).round();
    let (sin, cos) = libm::sincos((degrees - 90.0 * quarter_turns).to_radians());
    match quarter_turns.rem_euclid(4.0) as u8 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}
