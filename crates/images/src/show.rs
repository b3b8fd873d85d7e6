//! Displays tensors: images as pictures, others as a one-line summary.

use std::fmt;

use candle_core::{DType, Tensor};
use linen::{Result, device_name};
use notebook_display::{Error, Figure, Picture, display, picture_grid, short};

/// Draws images in rows, with captions such as labels.
///
/// # Shapes
///
/// - `images`: `[N, H, W, 1]` with up to 144 images, from 0 (black) to 1 (white)
/// - `captions`: N, or none
///
/// # Errors
///
/// [`Error::Figure`] for other shapes and for pixels that are NaN, [`linen::Error::Tensor`] if the
/// device fails.
///
/// # Examples
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// # use images::image_grid;
/// let images = Tensor::zeros((2, 28, 28, 1), DType::F32, &Device::Cpu)?;
/// let figure = image_grid("Training images", &images, &[5, 0])?;
/// assert_eq!(figure.text(), "Training images: 2 pictures\n  5, 0");
/// # Ok::<(), linen::Error>(())
/// ```
pub fn image_grid(title: &str, images: &Tensor, captions: &[impl fmt::Display]) -> Result<Figure> {
    let pictures = named(title, pictures(images))?;
    if !captions.is_empty() {
        check_length(title, "captions", captions.len(), pictures.len())?;
    }
    let mut captions = captions.iter();
    let captioned = pictures.into_iter().map(|picture| match captions.next() {
        Some(caption) => picture.caption(caption),
        None => picture,
    });
    Ok(picture_grid(title, &captioned.collect::<Vec<_>>())?)
}

/// Draws images in rows, with their predicted labels; errors have a ✗, a thick frame, and the true
/// label in parentheses.
///
/// # Shapes
///
/// - `images`: `[N, H, W, 1]` with up to 144 images, from 0 (black) to 1 (white)
/// - `labels`, `predictions`: N
///
/// # Errors
///
/// Those of [`image_grid`].
///
/// # Examples
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// # use images::prediction_grid;
/// let images = Tensor::zeros((2, 28, 28, 1), DType::F32, &Device::Cpu)?;
/// let figure = prediction_grid("Predictions", &images, &[5, 0], &[5, 6])?;
/// assert_eq!(figure.text(), "Predictions: 2 pictures\n  5 (right), 6 (is 0) (wrong)");
/// # Ok::<(), linen::Error>(())
/// ```
pub fn prediction_grid(
    title: &str,
    images: &Tensor,
    labels: &[u32],
    predictions: &[u32],
) -> Result<Figure> {
    let pictures = named(title, pictures(images))?;
    check_length(title, "labels", labels.len(), pictures.len())?;
    check_length(title, "predictions", predictions.len(), pictures.len())?;
    let answers = labels.iter().zip(predictions);
    let judged = pictures.into_iter().zip(answers).map(|(picture, (label, prediction))| {
        if label == prediction {
            picture.caption(prediction).verdict(true)
        } else {
            picture.caption(format!("{prediction} (is {label})")).verdict(false)
        }
    });
    Ok(picture_grid(title, &judged.collect::<Vec<_>>())?)
}

fn check_length(title: &str, what: &str, found: usize, images: usize) -> Result<()> {
    if found == images {
        return Ok(());
    }
    Err(Error::Figure(format!("`{title}`: {found} {what} for {images} images")).into())
}

/// The images of a tensor, to be captioned, or drawn by
/// [`picture_rows`](notebook_display::picture_rows).
///
/// # Shapes
///
/// - `images`: `[N, H, W, 1]` with up to 144 images, from 0 (black) to 1 (white)
///
/// # Errors
///
/// Those of [`image_grid`].
///
/// # Examples
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// # use images::pictures;
/// # use notebook_display::picture_rows;
/// let image = Tensor::zeros((1, 28, 28, 1), DType::F32, &Device::Cpu)?;
/// let maps = Tensor::zeros((8, 14, 14, 1), DType::F32, &Device::Cpu)?;
/// let rows = [("input", pictures(&image)?), ("pool 1", pictures(&maps)?)];
/// let figure = picture_rows("A digit and its feature maps", &rows)?;
/// # Ok::<(), linen::Error>(())
/// ```
pub fn pictures(images: &Tensor) -> Result<Vec<Picture>> {
    convert(images, Picture::new)
}

/// The slices of a tensor as pictures of signed values, such as the kernels of a convolution:
/// blue is negative, white 0, and orange positive.
///
/// # Shapes
///
/// - `values`: `[N, H, W, 1]` with up to 144 pictures
///
/// # Errors
///
/// [`Error::Figure`] for other shapes and for values that are not finite,
/// [`linen::Error::Tensor`] if the device fails.
///
/// # Examples
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// # use images::signed_pictures;
/// # use notebook_display::picture_grid;
/// let kernels = Tensor::randn(0.0_f32, 0.3, (3, 3, 1, 32), &Device::Cpu)?;
/// let kernels = kernels.permute((3, 0, 1, 2))?; // [32, 3, 3, 1]
/// let figure = picture_grid("The kernels of Conv_0", &signed_pictures(&kernels)?)?;
/// # Ok::<(), linen::Error>(())
/// ```
pub fn signed_pictures(values: &Tensor) -> Result<Vec<Picture>> {
    convert(values, Picture::signed)
}

/// Makes pictures of the values of a tensor `[N, H, W, 1]`, its rows and its columns.
fn convert(
    images: &Tensor,
    picture: fn(&[f32], usize, usize) -> notebook_display::Result<Picture>,
) -> Result<Vec<Picture>> {
    let shape = images.dims();
    let &[count, height, width, 1] = shape else {
        let reason = format!("expected images of shape [N, H, W, 1], found {shape:?}");
        return Err(Error::Figure(reason).into());
    };
    if count == 0 || count > 144 || height * width == 0 {
        let reason = format!("expected 1 to 144 images, found the shape {shape:?}");
        return Err(Error::Figure(reason).into());
    }
    let pixels = images.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let pixels = pixels.chunks_exact(height * width);
    pixels.map(|pixels| Ok(picture(pixels, height, width)?)).collect()
}

/// An error in a figure's data, with the title of the figure.
fn named<T>(title: &str, result: Result<T>) -> Result<T> {
    result.map_err(|error| match error {
        linen::Error::Display(Error::Figure(reason)) => {
            Error::Figure(format!("`{title}`: {reason}")).into()
        }
        error => error,
    })
}

/// The notebook display of a tensor; made by [`show`].
#[derive(Clone, Debug)]
pub struct TensorView {
    summary: String,
    figure: Option<Figure>,
}

/// Shows a tensor: as pictures if it has the shape of images, otherwise as a line with its shape,
/// type, device, minimum, mean and maximum.
///
/// Images are `[H, W]`, `[H, W, 1]`, or up to 64 of `[N, H, W, 1]`, with sides of 2 to 256 pixels.
/// Values outside 0 to 1 are rescaled so that the minimum is black and the maximum white.
///
/// # Errors
///
/// [`linen::Error::Tensor`] if the device fails.
///
/// # Examples
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use images::show;
/// let labels = Tensor::new(&[5_u32, 0, 4], &Device::Cpu)?;
/// let text = show(&labels)?.to_string();
/// assert_eq!(text, "Tensor [3], u32, cpu, min 0, mean 3, max 5");
/// # Ok::<(), linen::Error>(())
/// ```
pub fn show(tensor: &Tensor) -> Result<TensorView> {
    let statistics = Statistics::of(tensor)?;
    let summary = summary(tensor, statistics.as_ref());
    let figure = match statistics {
        Some(statistics) => as_pictures(tensor, &statistics, &summary)?,
        None => None,
    };
    Ok(TensorView { summary, figure })
}

impl TensorView {
    /// Shows the tensor as the result of a notebook cell.
    pub fn evcxr_display(&self) {
        match &self.figure {
            Some(figure) => figure.evcxr_display(),
            None => display(&[("text/plain", &self.summary)]),
        }
    }
}

/// The one-line summary.
impl fmt::Display for TensorView {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.summary)
    }
}

/// Minimum, mean and maximum of the values.
struct Statistics {
    min: f32,
    mean: f64,
    max: f32,
}

impl Statistics {
    /// `None` for an empty tensor.
    fn of(tensor: &Tensor) -> Result<Option<Self>> {
        if tensor.elem_count() == 0 {
            return Ok(None);
        }
        let values = tensor.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let sum: f64 = values.iter().copied().map(f64::from).sum();
        Ok(Some(Self {
            min: values.iter().copied().fold(f32::INFINITY, f32::min),
            mean: sum / values.len() as f64,
            max: values.iter().copied().fold(f32::NEG_INFINITY, f32::max),
        }))
    }
}

fn summary(tensor: &Tensor, statistics: Option<&Statistics>) -> String {
    let device = device_name(tensor.device().location());
    let (shape, dtype) = (tensor.dims(), tensor.dtype().as_str());
    let values = match statistics {
        None => "no values".to_owned(),
        Some(Statistics { min, mean, max }) => {
            let [min, mean, max] = [f64::from(*min), *mean, f64::from(*max)].map(short);
            format!("min {min}, mean {mean}, max {max}")
        }
    };
    format!("Tensor {shape:?}, {dtype}, {device}, {values}")
}

/// The tensor as pictures, if it has the shape of images and all values are finite.
fn as_pictures(tensor: &Tensor, statistics: &Statistics, title: &str) -> Result<Option<Figure>> {
    let (count, height, width) = match *tensor.dims() {
        [height, width] | [height, width, 1] => (1, height, width),
        [count, height, width, 1] => (count, height, width),
        _ => return Ok(None),
    };
    let sides = 2..=256;
    let Statistics { min, mean, max } = *statistics;
    if count > 64 || !sides.contains(&height) || !sides.contains(&width) || !mean.is_finite() {
        return Ok(None);
    }
    let images = tensor.detach().to_dtype(DType::F32)?.reshape((count, height, width, 1))?;
    let is_unit = min >= 0.0 && max <= 1.0;
    let scale = if is_unit || max == min { 1.0 } else { 1.0 / f64::from(max - min) };
    let shift = if is_unit { 0.0 } else { -f64::from(min) * scale };
    let pictures = pictures(&images.affine(scale, shift)?)?;
    Ok(Some(picture_grid(title, &pictures)?))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn zeros(shape: &[usize]) -> Tensor {
        Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn only_tensors_of_image_shape_become_pictures() {
        let is_picture = |shape: &[usize]| show(&zeros(shape)).unwrap().figure.is_some();
        let pictured: [&[usize]; 4] = [&[28, 28], &[28, 28, 1], &[64, 28, 28, 1], &[1, 2, 256, 1]];
        for shape in pictured {
            assert!(is_picture(shape), "{shape:?}");
        }
        let summarized: [&[usize]; 8] = [
            &[],
            &[10],
            &[65, 28, 28, 1],
            &[3, 3, 1, 32],
            &[28, 28, 3],
            &[1, 10],
            &[0, 5],
            &[60_000, 10],
        ];
        for shape in summarized {
            assert!(!is_picture(shape), "{shape:?}");
        }
    }

    #[test]
    fn a_summary_has_shape_type_device_and_range() {
        let tensor = Tensor::new(&[[[-1_f32, 2.5], [0.0, 0.5]]], &Device::Cpu).unwrap();
        let text = show(&tensor).unwrap().to_string();
        assert_eq!(text, "Tensor [1, 2, 2], f32, cpu, min -1, mean 0.5, max 2.5");
        assert_eq!(
            show(&zeros(&[0, 5])).unwrap().to_string(),
            "Tensor [0, 5], f32, cpu, no values"
        );
    }

    #[test]
    fn values_that_are_not_finite_are_summarized_not_drawn() {
        let tensor = Tensor::new(&[[f32::NAN, 1.0], [0.0, 0.0]], &Device::Cpu).unwrap();
        let view = show(&tensor).unwrap();
        assert!(view.figure.is_none() && view.to_string().contains("mean NaN"), "{view}");
    }

    #[test]
    fn the_mean_of_many_values_keeps_its_digits() {
        let tensor = Tensor::full(0.1_f32, (20_000, 1_000), &Device::Cpu).unwrap();
        assert!(show(&tensor).unwrap().to_string().contains("mean 0.1,"));
    }

    #[test]
    fn values_outside_0_to_1_are_rescaled() {
        let tensor = Tensor::new(&[[-3_f32, 5.0], [1.0, 1.0]], &Device::Cpu).unwrap();
        let figure = show(&tensor).unwrap().figure.unwrap();
        assert!(
            figure.svg().contains("<path stroke=\"#fff\" d=\"M1 0.5h1\"/>"),
            "{}",
            figure.svg()
        );
        assert!(
            figure.svg().contains("<path stroke=\"#888\" d=\"M0 1.5h2\"/>"),
            "{}",
            figure.svg()
        );
    }

    #[test]
    fn images_and_labels_of_different_numbers_are_refused() {
        let images = zeros(&[2, 28, 28, 1]);
        let message = prediction_grid("Test", &images, &[1], &[1, 2]).unwrap_err().to_string();
        assert_eq!(message, "`Test`: 1 labels for 2 images");
        let message = image_grid("Test", &images, &[1, 2, 3]).unwrap_err().to_string();
        assert_eq!(message, "`Test`: 3 captions for 2 images");
        assert!(image_grid("Test", &images, &[] as &[u32]).is_ok());
    }

    #[test]
    fn images_of_another_shape_are_refused_with_the_shape() {
        let message = image_grid("Test", &zeros(&[2, 28, 28]), &[1, 2]).unwrap_err().to_string();
        assert_eq!(message, "`Test`: expected images of shape [N, H, W, 1], found [2, 28, 28]");
    }
}
