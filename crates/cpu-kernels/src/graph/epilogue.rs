//! What follows the head of a stage, example by example: batch norm, ReLU, pooling and dropout.

use crate::activation::relu_row;
use crate::buffer::with_scratch;
use crate::pool::Pooling;

use super::norm::Norm;

/// The layers that are fused into the one before them, in this order.
#[derive(Debug, Default)]
pub(crate) struct Epilogue {
    pub(crate) norm: Option<Norm>,
    /// Whether there is a ReLU that is not part of the pooling.
    pub(crate) relu: bool,
    /// Pooling, with the ReLU that may come before it.
    pub(crate) pooling: Option<Pooling>,
    /// The place of a dropout among those of the network.
    pub(crate) dropout: Option<usize>,
}

impl Epilogue {
    /// Whether there is nothing but, possibly, a dropout.
    pub(crate) fn keeps_values(&self) -> bool {
        self.norm.is_none() && !self.relu && self.pooling.is_none()
    }

    /// Turns a ReLU on or off that is not part of the pooling.
    pub(crate) fn set_relu(&mut self, relu: bool) {
        self.relu = relu;
        if let Some(norm) = &mut self.norm {
            norm.relu = relu;
        }
    }

    /// Number of masks of an example.
    pub(crate) fn masks_len(&self) -> usize {
        match &self.pooling {
            Some(pooling) if pooling.is_masked() => pooling.pool.output_len(),
            _ => 0,
        }
    }

    /// The output for the values of a head, but for dropout, of stages that change them; saves the
    /// masks.
    pub(crate) fn forward(&self, y: &[f32], output: &mut [f32], masks: &mut [u32]) {
        match (&self.norm, &self.pooling) {
            (None, None) => relu_row(y, output),
            (Some(norm), None) => norm.forward(y, output),
            (None, Some(pooling)) => {
                for_each_band(pooling, output, masks, |row, output, masks| {
                    let band = &y[row * pooling.pool.band_len()..][..pooling.pool.band_len()];
                    pooling.forward_row(band, output, masks);
                });
            }
            (Some(norm), Some(pooling)) => {
                with_scratch([pooling.pool.band_len()], |[normalized]| {
                    for_each_band(pooling, output, masks, |row, output, masks| {
                        let band = &y[row * normalized.len()..][..normalized.len()];
                        norm.forward(band, normalized);
                        pooling.forward_row(normalized, output, masks);
                    });
                });
            }
        }
    }
}

/// Calls `work` with each row of the output and its masks.
fn for_each_band(
    pooling: &Pooling,
    output: &mut [f32],
    masks: &mut [u32],
    mut work: impl FnMut(usize, &mut [f32], Option<&mut [u32]>),
) {
    let len = pooling.pool.windows().1 * pooling.pool.channels;
    let mut masks = masks.chunks_exact_mut(len);
    for (row, output) in output.chunks_exact_mut(len).enumerate() {
        work(row, output, masks.next());
    }
}
