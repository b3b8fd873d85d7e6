//! What a trained network does: where it errs, how sure it is, what it looks at, and how its
//! features lie.

use candle_core::{D, DType, Device, Tensor, Var};
use linen::{
    Error, Module, Params, Result, check_label_range, check_logits, ensure_fresh_ids, memory,
};
use nalgebra::{DMatrix, SymmetricEigen};

/// The files of this crate, for a notebook that shows them.
pub static SOURCES: include_dir::Dir<'_> = include_dir::include_dir!("$CARGO_MANIFEST_DIR/src");

/// How often each class was taken for each: rows are the true classes, columns the predicted ones.
///
/// # Shapes
/// - `labels`, `predictions`: `[N]`, u32, each below `num_classes`
/// - result: `num_classes` rows of `num_classes` counts
///
/// # Errors
/// [`Error::Shape`] and [`Error::DType`] for anything else, [`Error::Label`] for a number that is
/// no class, [`Error::Memory`] for more classes than there is memory for.
///
/// # Examples
/// ```
/// use candle_core::{Device, Tensor};
/// use inspect::confusion_matrix;
///
/// let labels = Tensor::new(&[0u32, 0, 1, 1, 1], &Device::Cpu)?;
/// let predictions = Tensor::new(&[0u32, 1, 1, 1, 0], &Device::Cpu)?;
/// assert_eq!(confusion_matrix(&labels, &predictions, 2)?, [[1, 1], [1, 2]]);
/// # Ok::<(), linen::Error>(())
/// ```
///
/// # Source
/// `sklearn.metrics.confusion_matrix(labels, predictions)`.
pub fn confusion_matrix(
    labels: &Tensor,
    predictions: &Tensor,
    num_classes: usize,
) -> Result<Vec<Vec<u32>>> {
    let rows = classes("labels", labels, num_classes)?;
    let columns = classes("predictions", predictions, num_classes)?;
    if rows.len() != columns.len() {
        let expected = format!("[{}], one for each label", rows.len());
        return Err(shape("predictions", expected, predictions));
    }
    let shape = [num_classes, num_classes];
    memory::check("a confusion matrix", &shape, DType::U32, &Device::Cpu)?;
    let mut counts = vec![vec![0; num_classes]; num_classes];
    for (row, column) in rows.into_iter().zip(columns) {
        counts[row as usize][column as usize] += 1;
    }
    Ok(counts)
}

/// How sure a network is, and how often it is right, where it is about equally sure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CalibrationBin {
    /// The mean probability that the network gives its prediction, 0 to 1.
    pub confidence: f32,
    /// The share of predictions that are right, 0 to 1.
    pub accuracy: f32,
    /// How many predictions there are.
    pub count: usize,
}

/// Predictions in bins of about equal confidence: `num_bins` that divide 0 to 1 evenly, those
/// without any prediction left out, from the least sure to the surest.
///
/// The predicted class is the most probable one, and its probability is the confidence. Of a
/// well-calibrated network's predictions with a confidence of 80 %, 80 % are right.
///
/// # Shapes
/// - `probabilities`: `[N, K]`, any float type, 0 to 1
/// - `labels`: `[N]`, u32, each below `K`
///
/// # Errors
/// [`Error::Shape`], [`Error::DType`] and [`Error::Label`] for anything else,
/// [`Error::EmptyDataset`] without labels, [`Error::Hyperparameter`] for no bins and for
/// probabilities that are none.
///
/// # Examples
/// ```
/// use candle_core::{Device, Tensor};
/// use inspect::{CalibrationBin, calibration_curve};
///
/// let probabilities = Tensor::new(&[[0.25f32, 0.75], [0.75, 0.25]], &Device::Cpu)?;
/// let labels = Tensor::new(&[1u32, 1], &Device::Cpu)?;
/// let bins = calibration_curve(&probabilities, &labels, 10)?;
/// assert_eq!(bins, [CalibrationBin { confidence: 0.75, accuracy: 0.5, count: 2 }]);
/// # Ok::<(), linen::Error>(())
/// ```
///
/// # Source
/// `sklearn.calibration.calibration_curve(right, confidence, n_bins=num_bins)`; Guo et al., *On
/// Calibration of Modern Neural Networks*, 2017.
pub fn calibration_curve(
    probabilities: &Tensor,
    labels: &Tensor,
    num_bins: usize,
) -> Result<Vec<CalibrationBin>> {
    let num_classes = check_logits(probabilities, labels)?;
    let labels = classes("labels", labels, num_classes)?;
    let out_of_range = |name, value, allowed| Err(Error::Hyperparameter { name, value, allowed });
    if num_bins == 0 {
        return out_of_range("num_bins", 0.0, "it must be at least 1");
    }
    // The GPU of a Mac has no f64.
    let confidences = probabilities.max(D::Minus1)?.to_device(&Device::Cpu)?;
    let confidences = confidences.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    let predictions = probabilities.argmax(D::Minus1)?.to_vec1::<u32>()?;
    // Probabilities that were rounded may exceed 1 by a little.
    if let Some(value) = confidences.iter().find(|value| !(0.0..1.001).contains(*value)) {
        let allowed = "it must be from 0 to 1; `exp` makes probabilities of log-probabilities";
        return out_of_range("probability", *value, allowed);
    }

    let mut bins = std::collections::BTreeMap::<u64, (f64, usize, usize)>::new();
    for ((confidence, prediction), label) in confidences.iter().zip(predictions).zip(labels) {
        // A bin reaches from above its lower end up to its upper end.
        let bin = (confidence * num_bins as f64).ceil() as u64;
        let (sum, right, count) = bins.entry(bin.clamp(1, num_bins as u64)).or_default();
        *sum += confidence;
        *right += usize::from(prediction == label);
        *count += 1;
    }
    let bins = bins.into_values().map(|(sum, right, count)| CalibrationBin {
        confidence: (sum / count as f64) as f32,
        accuracy: (right as f64 / count as f64) as f32,
        count,
    });
    Ok(bins.collect())
}

/// The mean over all predictions of how far confidence and accuracy are apart in their bin, 0 to 1;
/// 0 for no bins.
///
/// # Examples
/// ```
/// use inspect::{CalibrationBin, expected_calibration_error};
///
/// let unsure = CalibrationBin { confidence: 0.5, accuracy: 0.75, count: 10 };
/// let sure = CalibrationBin { confidence: 1.0, accuracy: 1.0, count: 90 };
/// assert_eq!(expected_calibration_error(&[unsure, sure]), 0.025);
/// ```
///
/// # Source
/// Guo et al., *On Calibration of Modern Neural Networks*, 2017, equation 3.
pub fn expected_calibration_error(bins: &[CalibrationBin]) -> f32 {
    let count: f64 = bins.iter().map(|bin| bin.count as f64).sum();
    let gap = |bin: &CalibrationBin| (bin.confidence - bin.accuracy).abs() * bin.count as f32;
    bins.iter().map(gap).sum::<f32>() / count.max(1.0) as f32
}

/// How strongly each pixel moves what the network says of a class: the absolute value of the
/// gradient of that output with respect to the image, the largest over the channels.
///
/// # Shapes
/// - `images`: `[N, height, width, channels]`, of the parameters' type
/// - `classes`: `[N]`, u32: for each image, the class that is asked about
/// - result: `[N, height, width, 1]`, 0 or more
///
/// # Errors
/// [`Error::Shape`] and [`Error::DType`] for anything else, [`Error::Label`] for a number that is
/// no class; those of the network.
///
/// # Examples
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use inspect::saliency;
/// use linen::{Key, Module, Result, Scope, flatten, log_softmax};
///
/// struct Net;
///
/// impl Module for Net {
///     fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
///         log_softmax(&nn.dense(10, &flatten(x)?)?)
///     }
/// }
///
/// let images = Tensor::full(0.5f32, (2, 28, 28, 1), &Device::Cpu)?;
/// let params = Net.init(Key::new(0), &images)?;
/// let classes = Tensor::new(&[3u32, 8], &Device::Cpu)?;
/// let saliency = saliency(&Net, &params, &images, &classes)?;
/// assert_eq!(saliency.dims(), [2, 28, 28, 1]);
/// # Ok::<(), linen::Error>(())
/// ```
///
/// # Source
/// Simonyan, Vedaldi, Zisserman, *Deep Inside Convolutional Networks*, 2013. The gradient is that
/// of `jax.grad` with respect to the image; the derivatives are candle's.
pub fn saliency(
    model: &impl Module,
    params: &Params,
    images: &Tensor,
    classes: &Tensor,
) -> Result<Tensor> {
    if images.rank() != 4 {
        return Err(shape("saliency images", "[N, height, width, channels]".into(), images));
    }
    // Also where parameters and images come from other cells of a notebook.
    ensure_fresh_ids([params], images)?;
    let images = Var::from_tensor(&images.detach())?;
    let output = model.apply(params, &images)?;
    check_logits(&output, classes)?;
    let chosen = output.gather(&classes.unsqueeze(1)?, 1)?;
    // No image's output depends on another image, so that one sum serves them all.
    let gradients = chosen.sum_all()?.backward()?;
    match gradients.get(&images) {
        Some(gradient) => Ok(gradient.abs()?.max_keepdim(D::Minus1)?),
        None => Ok(images.zeros_like()?.max_keepdim(D::Minus1)?),
    }
}

/// The directions in which features vary most, made by [`pca`].
#[derive(Debug, Clone)]
pub struct Pca {
    /// Where each example lies along the directions: `[N, num_components]`, f32, mean 0.
    pub projection: Tensor,
    /// The directions, the one of the largest variance first: `[num_components, D]`, f32, of
    /// length 1 and at right angles.
    pub components: Tensor,
    /// The share of the whole variance along each direction, 0 to 1.
    pub explained_variance_ratio: Vec<f32>,
}

/// The covariance of more would take hours to take apart.
const MOST_DIMENSIONS: usize = 4096;

/// Principal component analysis: features of many dimensions as points in a few, with as much of
/// their variance as so few can hold.
///
/// Directions are known up to their sign: the largest entry of each is positive here.
///
/// # Shapes
/// - `features`: `[N, D]`, any float type; computed in f64 on the CPU
///
/// # Errors
/// [`Error::Shape`] and [`Error::DType`] for anything else, for fewer than two examples, and for
/// more than 4096 dimensions; [`Error::Hyperparameter`] unless `1 <= num_components <= D`; [`Error::Tensor`] for features that
/// are not finite.
///
/// # Examples
/// ```
/// use candle_core::{Device, Tensor};
/// use inspect::pca;
///
/// // Points near a line: nearly all of their variance is along it.
/// let points = Tensor::new(&[[0f32, 0.1], [1., 1.], [2., 2.1], [3., 2.9]], &Device::Cpu)?;
/// let line = pca(&points, 1)?;
/// assert_eq!(line.projection.dims(), [4, 1]);
/// assert!(line.explained_variance_ratio[0] > 0.99);
/// # Ok::<(), linen::Error>(())
/// ```
///
/// # Source
/// `sklearn.decomposition.PCA(num_components).fit_transform(features)`; Pearson, *On lines and
/// planes of closest fit to systems of points in space*, 1901. The eigenvectors are nalgebra's.
pub fn pca(features: &Tensor, num_components: usize) -> Result<Pca> {
    let (examples, dimensions) = match *features.dims() {
        [examples, dimensions] if examples >= 2 && (1..=MOST_DIMENSIONS).contains(&dimensions) => {
            (examples, dimensions)
        }
        _ => {
            let expected = format!("[at least 2, 1 to {MOST_DIMENSIONS}]");
            return Err(shape("pca features", expected, features));
        }
    };
    check_float("pca features", features)?;
    if !(1..=dimensions).contains(&num_components) {
        return Err(Error::Hyperparameter {
            name: "num_components",
            value: num_components as f64,
            allowed: "it must be from 1 to the number of features",
        });
    }
    let features = features.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    let centred = features.broadcast_sub(&features.mean_keepdim(0)?)?;
    let covariance = (centred.t()?.matmul(&centred)? / (examples as f64 - 1.0))?;
    let covariance = covariance.flatten_all()?.to_vec1::<f64>()?;
    if covariance.iter().any(|value| !value.is_finite()) {
        return Err(Error::Tensor("pca features must be finite numbers, and not too large".into()));
    }

    let eigen = SymmetricEigen::new(DMatrix::from_vec(dimensions, dimensions, covariance));
    let mut order: Vec<usize> = (0..dimensions).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
    order.truncate(num_components);
    let mut components = eigen.eigenvectors.select_columns(&order);
    for mut direction in components.column_iter_mut() {
        let sign = direction[direction.icamax()].signum();
        direction *= sign;
    }
    // A column after the other: as rows, each a direction.
    let components = Tensor::from_slice(components.as_slice(), components.len(), &Device::Cpu)?;
    let components = components.reshape((num_components, dimensions))?;
    let variance = eigen.eigenvalues.sum();
    let share = |index: &usize| match variance > 0.0 {
        true => (eigen.eigenvalues[*index] / variance) as f32,
        false => 0.0,
    };
    Ok(Pca {
        projection: centred.matmul(&components.t()?)?.to_dtype(DType::F32)?,
        components: components.to_dtype(DType::F32)?,
        explained_variance_ratio: order.iter().map(share).collect(),
    })
}

/// The numbers of classes in a tensor `[N]`.
fn classes(what: &'static str, tensor: &Tensor, num_classes: usize) -> Result<Vec<u32>> {
    if tensor.rank() != 1 {
        return Err(shape(what, "[N]".into(), tensor));
    }
    if tensor.dtype() != DType::U32 {
        let found = tensor.dtype().as_str().into();
        return Err(Error::DType { what, expected: "u32", found });
    }
    check_label_range(tensor, num_classes)?;
    Ok(tensor.to_vec1()?)
}

fn check_float(what: &'static str, tensor: &Tensor) -> Result<()> {
    match tensor.dtype().is_float() {
        true => Ok(()),
        false => Err(Error::DType { what, expected: "f32", found: tensor.dtype().as_str().into() }),
    }
}

fn shape(what: &'static str, expected: String, tensor: &Tensor) -> Error {
    Error::Shape { what, expected, found: tensor.dims().to_vec() }
}
