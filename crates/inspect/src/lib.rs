//! Tools to inspect trained classifiers: [confusion matrix](confusion_matrix),
//! [calibration](calibration_curve), [saliency maps](saliency) and [PCA](pca).

use candle_core::{D, DType, Device, Tensor, Var};
use linen::{Error, Evaluate, Module, Result, check, memory};
use nalgebra::{DMatrix, SymmetricEigen};

// Whoever inspects a network looks at its layers, too.
pub use linen::{Intermediates, capture_intermediates};

/// Counts of true versus predicted classes: rows are true classes, columns predicted ones.
///
/// # Shapes
/// - `labels`, `predictions`: `[N]`, u32, each below `num_classes`
/// - result: `num_classes` rows of `num_classes` counts
///
/// # Errors
/// [`Error::Shape`] and [`Error::DType`] for anything else, [`Error::Label`] for an out-of-range
/// class, [`Error::Memory`] if the matrix does not fit in memory.
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
        return Err(Error::shape("predictions", expected, predictions));
    }
    let shape = [num_classes, num_classes];
    memory::check("a confusion matrix", &shape, DType::U32, &Device::Cpu)?;
    let mut counts = vec![vec![0; num_classes]; num_classes];
    for (row, column) in rows.into_iter().zip(columns) {
        counts[row as usize][column as usize] += 1;
    }
    Ok(counts)
}

/// Predictions of similar confidence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CalibrationBin {
    /// The mean probability of the predicted classes, 0 to 1.
    pub confidence: f32,
    /// The fraction of correct predictions, 0 to 1.
    pub accuracy: f32,
    /// The number of predictions.
    pub count: usize,
}

/// Groups predictions by confidence into `num_bins` bins that divide 0 to 1 evenly. Returns the
/// bins that are not empty, in order of confidence.
///
/// The predicted class is the most probable one, and its probability is the confidence. If a
/// network is well calibrated, 80 % of its predictions with a confidence of 80 % are correct.
///
/// # Shapes
/// - `probabilities`: `[N, K]`, any float type, 0 to 1
/// - `labels`: `[N]`, u32, each below `K`
///
/// # Errors
/// [`Error::Shape`], [`Error::DType`] and [`Error::Label`] for anything else,
/// [`Error::Empty`] without labels, [`Error::Hyperparameter`] for 0 bins and for
/// out-of-range probabilities.
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
/// `sklearn.calibration.calibration_curve(correct, confidence, n_bins=num_bins)`; Guo et al., *On
/// Calibration of Modern Neural Networks*, 2017.
pub fn calibration_curve(
    probabilities: &Tensor,
    labels: &Tensor,
    num_bins: usize,
) -> Result<Vec<CalibrationBin>> {
    let num_classes = check::logits(probabilities, labels)?;
    let labels = classes("labels", labels, num_classes)?;
    let out_of_range = |name, value, allowed| Err(Error::Hyperparameter { name, value, allowed });
    if num_bins == 0 {
        return out_of_range("num_bins", 0.0, "it must be at least 1");
    }
    // Converted on the CPU, because Metal has no f64.
    let confidences = probabilities.max(D::Minus1)?.to_device(&Device::Cpu)?;
    let confidences = confidences.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    let predictions = probabilities.argmax(D::Minus1)?.to_vec1::<u32>()?;
    // Rounding may push probabilities slightly above 1.
    if let Some(value) = confidences.iter().find(|value| !(0.0..1.001).contains(*value)) {
        let allowed = "it must be from 0 to 1; use `exp` to convert log-probabilities";
        return out_of_range("probability", *value, allowed);
    }

    let mut bins = std::collections::BTreeMap::<u64, (f64, usize, usize)>::new();
    for ((confidence, prediction), label) in confidences.iter().zip(predictions).zip(labels) {
        // Bins are half-open intervals (lower, upper].
        let bin = (confidence * num_bins as f64).ceil() as u64;
        let (sum, correct, count) = bins.entry(bin.clamp(1, num_bins as u64)).or_default();
        *sum += confidence;
        *correct += usize::from(prediction == label);
        *count += 1;
    }
    let bins = bins.into_values().map(|(sum, correct, count)| CalibrationBin {
        confidence: (sum / count as f64) as f32,
        accuracy: (correct as f64 / count as f64) as f32,
        count,
    });
    Ok(bins.collect())
}

/// The mean gap between confidence and accuracy, weighted by the bins' counts, 0 to 1; 0 without
/// bins.
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

/// How strongly each pixel influences the network's output for a class: the absolute gradient of
/// that output with respect to the image, maximum over the channels.
///
/// `variables` are [`Params`](linen::Params) or, for a network with batch norm or dropout,
/// [`Variables`](linen::Variables): the network is then in
/// [evaluation mode](Module::apply_eval).
///
/// # Shapes
/// - `images`: `[N, height, width, channels]`, of the parameters' type
/// - `classes`: `[N]`, u32: the class of interest for each image
/// - result: `[N, height, width, 1]`, 0 or more
///
/// # Errors
/// [`Error::Shape`] and [`Error::DType`] for anything else, [`Error::Label`] for an out-of-range
/// class; those of the network.
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
///         log_softmax(nn.dense(10, flatten(x)))
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
    variables: &impl Evaluate,
    images: &Tensor,
    classes: &Tensor,
) -> Result<Tensor> {
    if images.rank() != 4 {
        return Err(Error::shape("saliency images", "[N, height, width, channels]", images));
    }
    // Before the variable is created: the parameters may come from another notebook cell.
    variables.params().ensure_fresh_ids();
    let images = Var::from_tensor(&images.detach())?;
    let output = model.apply_eval(variables, &images)?;
    check::logits(&output, classes)?;
    let chosen = output.gather(&classes.unsqueeze(1)?, 1)?;
    // An output depends only on its own image, so one sum yields all gradients.
    let gradients = chosen.sum_all()?.backward()?;
    match gradients.get(&images) {
        Some(gradient) => Ok(gradient.abs()?.max_keepdim(D::Minus1)?),
        None => Ok(images.zeros_like()?.max_keepdim(D::Minus1)?),
    }
}

/// The principal components of features, computed by [`pca`].
#[derive(Debug, Clone)]
pub struct Pca {
    /// The coordinates of each example: `[N, num_components]`, f32, mean 0.
    pub projection: Tensor,
    /// The orthonormal directions, by decreasing variance: `[num_components, D]`, f32.
    pub components: Tensor,
    /// The fraction of the total variance along each direction, 0 to 1.
    pub explained_variance_ratio: Vec<f32>,
}

/// More dimensions would take hours: the eigendecomposition is cubic.
const MOST_DIMENSIONS: usize = 4096;

/// Principal component analysis: projects features onto the few directions that keep most of their
/// variance.
///
/// The sign of a direction is arbitrary; here its largest entry is positive.
///
/// # Shapes
/// - `features`: `[N, D]`, any float type; computed in f64 on the CPU
///
/// # Errors
/// [`Error::Shape`] and [`Error::DType`] for anything else, for fewer than two examples, and for
/// more than 4096 dimensions; [`Error::Hyperparameter`] unless `1 <= num_components <= D`;
/// [`Error::Tensor`] for features that are not finite.
///
/// # Examples
/// ```
/// use candle_core::{Device, Tensor};
/// use inspect::pca;
///
/// // Points near a line: it explains nearly all of the variance.
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
            return Err(Error::shape("pca features", expected, features));
        }
    };
    check::float("pca features", features)?;
    if !(1..=dimensions).contains(&num_components) {
        return Err(Error::Hyperparameter {
            name: "num_components",
            value: num_components as f64,
            allowed: "it must be from 1 to the number of features",
        });
    }
    let features = features.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    let centered = features.broadcast_sub(&features.mean_keepdim(0)?)?;
    let covariance = (centered.t()?.matmul(&centered)? / (examples as f64 - 1.0))?;
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
    // nalgebra is column-major, so each direction becomes a row.
    let components = Tensor::from_slice(components.as_slice(), components.len(), &Device::Cpu)?;
    let components = components.reshape((num_components, dimensions))?;
    let variance = eigen.eigenvalues.sum();
    let explained = |index: &usize| {
        if variance > 0.0 { (eigen.eigenvalues[*index] / variance) as f32 } else { 0.0 }
    };
    Ok(Pca {
        projection: centered.matmul(&components.t()?)?.to_dtype(DType::F32)?,
        components: components.to_dtype(DType::F32)?,
        explained_variance_ratio: order.iter().map(explained).collect(),
    })
}

/// The classes in a tensor `[N]`, checked.
fn classes(what: &'static str, tensor: &Tensor, num_classes: usize) -> Result<Vec<u32>> {
    if tensor.rank() != 1 {
        return Err(Error::shape(what, "[N]", tensor));
    }
    if tensor.dtype() != DType::U32 {
        return Err(Error::dtype(what, "u32", tensor));
    }
    check::label_range(tensor, num_classes)?;
    Ok(tensor.to_vec1()?)
}

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
