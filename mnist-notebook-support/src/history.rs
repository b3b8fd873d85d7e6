//! The history of a training.

use std::ops::Deref;

use linen::{Metrics, Result};
use notebook_display::{Figure, line_chart, side_by_side};

/// Loss and accuracy of an epoch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EpochMetrics {
    /// On the training set: the mean over the batches, each measured before its update.
    pub train: Metrics,
    /// On the test set, after the epoch.
    pub test: Metrics,
}

/// The metrics of each epoch so far; a slice of them.
///
/// # Examples
/// ```
/// use mnist_notebook_support::{History, Metrics};
///
/// let mut history = History::new();
/// for epoch in 1..=3 {
///     let train = Metrics { loss: 1.0 / epoch as f32, accuracy: 0.9 };
///     let test = Metrics { loss: 0.5, accuracy: 0.8 };
///     history.push(train, test);
/// }
/// assert_eq!(history.len(), 3);
/// let figure = history.plot()?;
/// assert!(figure.text().contains("test"));
/// # Ok::<(), mnist_notebook_support::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History(Vec<EpochMetrics>);

impl History {
    /// Before the first epoch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an epoch.
    pub fn push(&mut self, train: Metrics, test: Metrics) {
        self.0.push(EpochMetrics { train, test });
    }

    /// Loss and accuracy (in percent) by epoch, each in training and on the test set.
    ///
    /// # Errors
    /// [`Error::Other`](linen::Error::Other) if there are no epochs or a loss is not finite.
    pub fn plot(&self) -> Result<Figure> {
        let curves = |value: fn(&Metrics) -> f32| {
            let train =
                self.iter().map(|epoch| value(&epoch.train)).collect::<Vec<_>>();
            let test = self.iter().map(|epoch| value(&epoch.test)).collect::<Vec<_>>();
            [("training", train), ("test", test)]
        };
        Ok(side_by_side(&[
            line_chart(
                "Loss",
                "epoch",
                "cross-entropy (nats)",
                &curves(|metrics| metrics.loss),
            )?,
            line_chart(
                "Accuracy",
                "epoch",
                "correct (%)",
                &curves(|metrics| metrics.accuracy * 100.0),
            )?,
        ])?)
    }
}

impl Deref for History {
    type Target = [EpochMetrics];

    fn deref(&self) -> &[EpochMetrics] {
        &self.0
    }
}

impl FromIterator<EpochMetrics> for History {
    fn from_iter<I: IntoIterator<Item = EpochMetrics>>(epochs: I) -> Self {
        History(epochs.into_iter().collect())
    }
}
