//! Training and evaluation.

use crate::batch_norm::Statistics;
use crate::purpose::Purpose;

/// What batch norm and dropout do.
#[derive(Clone, Copy)]
pub enum Mode<'a> {
    /// Batch norm takes the statistics of the batch. `dropout(index, first, factors)` gives the
    /// factors, 0 or `1 / (1 − rate)`, of the values from `first` on of the `index`-th dropout.
    /// The forward pass keeps what the backward pass needs.
    Train {
        /// Fills in the factors of a dropout.
        dropout: &'a (dyn Fn(usize, usize, &mut [f32]) + Sync),
    },
    /// Batch norm takes running statistics, one for each in the order of the nodes; dropout lets
    /// everything pass.
    Evaluate {
        /// The running statistics.
        running: &'a [Statistics],
    },
}

impl Mode<'_> {
    pub(crate) fn purpose(self) -> Purpose {
        match self {
            Mode::Train { .. } => Purpose::Training,
            Mode::Evaluate { .. } => Purpose::Inference,
        }
    }
}
