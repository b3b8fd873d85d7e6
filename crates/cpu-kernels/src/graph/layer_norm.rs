//! Layer norm: each row of an example is normalized by itself.

use crate::gemm::vectorized;

/// What a layer norm adds to the variance before the square root. The default of Flax.
pub const LAYER_NORM_EPSILON: f64 = 1e-6;

/// A layer norm with its parameters.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    scale: Vec<f32>,
    bias: Vec<f32>,
}

impl LayerNorm {
    pub(crate) fn new(channels: usize) -> Self {
        Self { scale: vec![0.0; channels], bias: vec![0.0; channels] }
    }

    pub(crate) fn channels(&self) -> usize {
        self.scale.len()
    }

    pub(crate) fn set(&mut self, scale: &[f32], bias: &[f32]) {
        self.scale.copy_from_slice(scale);
        self.bias.copy_from_slice(bias);
    }

    /// `(x − mean) · scale / √(var + ε) + bias` of each row.
    pub(crate) fn forward(&self, input: &[f32], output: &mut [f32]) {
        let channels = self.channels();
        vectorized(
            #[inline(always)]
            || {
                let rows = input.chunks_exact(channels).zip(output.chunks_exact_mut(channels));
                for (input, output) in rows {
                    let (mean, factor) = moments(input);
                    let values = input.iter().zip(self.scale.iter().zip(&self.bias));
                    for (output, (input, (scale, bias))) in output.iter_mut().zip(values) {
                        *output = (input - mean) * factor * scale + bias;
                    }
                }
            },
        );
    }

    /// Adds the gradients of scale and bias, one after the other in `d_params`.
    pub(crate) fn accumulate_grads(&self, input: &[f32], d_output: &[f32], d_params: &mut [f32]) {
        let channels = self.channels();
        let (d_scale, d_bias) = d_params.split_at_mut(channels);
        for (input, d_output) in input.chunks_exact(channels).zip(d_output.chunks_exact(channels)) {
            let (mean, factor) = moments(input);
            let values = input.iter().zip(d_output);
            for ((d_scale, d_bias), (input, d_output)) in
                d_scale.iter_mut().zip(&mut *d_bias).zip(values)
            {
                *d_scale += d_output * (input - mean) * factor;
                *d_bias += d_output;
            }
        }
    }

    /// The gradient of the input.
    pub(crate) fn backward(&self, input: &[f32], d_output: &[f32], d_input: &mut [f32]) {
        let channels = self.channels();
        let rows = input.chunks_exact(channels).zip(d_output.chunks_exact(channels));
        for (d_input, (input, d_output)) in d_input.chunks_exact_mut(channels).zip(rows) {
            let (mean, factor) = moments(input);
            let (mut sum, mut slope) = (0.0, 0.0);
            for ((input, d_output), scale) in input.iter().zip(d_output).zip(&self.scale) {
                sum += d_output * scale;
                slope += d_output * scale * (input - mean) * factor;
            }
            let (sum, slope) = (sum / channels as f32, slope / channels as f32);
            let values = input.iter().zip(d_output).zip(&self.scale);
            for (d_input, ((input, d_output), scale)) in d_input.iter_mut().zip(values) {
                let normalized = (input - mean) * factor;
                *d_input = factor * (d_output * scale - sum - normalized * slope);
            }
        }
    }
}

/// The mean of a row, and `1 / √(var + ε)`.
fn moments(row: &[f32]) -> (f32, f32) {
    let count = row.len() as f32;
    let mean = row.iter().sum::<f32>() / count;
    let var = row.iter().map(|value| (value - mean) * (value - mean)).sum::<f32>() / count;
    (mean, 1.0 / (var + LAYER_NORM_EPSILON as f32).sqrt())
}
