//! What a network says about the images of a dataset.

use candle_core::Tensor;
use linen::{Result, argmax, check};
use notebook_display::Figure;

use crate::dataset::Dataset;

/// The places in a dataset of the images that are predicted wrong, in order.
///
/// # Shapes
/// - `log_probs`: `[N, K]`, of [`predict`](crate::predict), for the `N` examples of the dataset
///
/// # Errors
/// Those of [`check::log_probs`].
///
/// # Examples
/// ```
/// use mnist_notebook_support::prelude::*;
/// # let (_, test_ds) = get_datasets(&Device::Cpu)?;
/// # let test_ds = test_ds.slice(0, 50)?;
/// # let params = get_initial_params(&Cnn, Key::new(0), &Device::Cpu)?;
///
/// let log_probs = predict(&Cnn, &params, &test_ds)?;
/// let wrong = mistakes(&test_ds, &log_probs)?;
/// let accuracy = eval_model(&Cnn, &params, &test_ds)?.accuracy;
/// assert_eq!(wrong.len(), ((1.0 - accuracy) * 50.0).round() as usize);
/// # Ok::<(), mnist_notebook_support::Error>(())
/// ```
pub fn mistakes(dataset: &Dataset, log_probs: &Tensor) -> Result<Vec<u32>> {
    check::log_probs(log_probs, dataset.label())?;
    let is_wrong = argmax(log_probs)?.ne(dataset.label())?.to_vec1::<u8>()?;
    Ok((0..)
        .zip(is_wrong)
        .filter(|(_, is_wrong)| *is_wrong != 0)
        .map(|(index, _)| index)
        .collect())
}

/// Draws the images at these places of a dataset, with the predicted digits; wrong ones have a ✗, a
/// thick frame, and the true digit in parentheses.
///
/// # Shapes
/// - `log_probs`: `[N, K]`, of [`predict`](crate::predict), for the `N` examples of the dataset
///
/// # Errors
/// Those of [`check::log_probs`], of [`Dataset::batch`] for a place that there is not, and of
/// [`images::prediction_grid`].
pub fn prediction_grid(
    title: &str,
    dataset: &Dataset,
    log_probs: &Tensor,
    places: &[u32],
) -> Result<Figure> {
    check::log_probs(log_probs, dataset.label())?;
    let shown = dataset.batch(places)?;
    let predictions = argmax(log_probs)?.to_vec1::<u32>()?;
    let predictions =
        places.iter().map(|&place| predictions[place as usize]).collect::<Vec<_>>();
    images::prediction_grid(
        title,
        shown.image(),
        &shown.label().to_vec1::<u32>()?,
        &predictions,
    )
}
