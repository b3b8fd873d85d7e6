//! The tutorial's network.

use cpu_kernels::{Layer, Program};
use jax_random::{Key, lecun_normal};

use crate::error::Result;

/// The digits.
pub const CLASSES: usize = 10;

/// The number of values in each parameter: kernel and bias of `Conv_0`, `Conv_1`, `Dense_0` and
/// `Dense_1`.
pub const PARAM_LENS: [usize; 8] = [9 * 32, 32, 9 * 32 * 64, 64, 3136 * 256, 256, 256 * 10, 10];

/// The number of values in all parameters.
pub const PARAMS: usize = {
    let [a, b, c, d, e, f, g, h] = PARAM_LENS;
    a + b + c + d + e + f + g + h
};

/// What Flax folds into the key of a network for the first parameter of each layer: the first four
/// bytes of the SHA-1 of the layer's name, such as `Conv_0`, and a byte 1.
const LAYER_KEYS: [u32; 4] = [0x5CF1_DC75, 0x61F8_2056, 0xB2B7_1315, 0x06A9_F0DC];

/// Inputs per output of each layer.
const FAN_IN: [usize; 4] = [9, 9 * 32, 3136, 256];

fn layers() -> [Layer; 11] {
    let window = (2, 2);
    let conv = |features, params| Layer::Conv { kernel_size: (3, 3), features, params };
    [
        conv(32, (0, 1)),
        Layer::Relu,
        Layer::AvgPool { window },
        conv(64, (2, 3)),
        Layer::Relu,
        Layer::AvgPool { window },
        Layer::Flatten,
        Layer::Dense { features: 256, params: (4, 5) },
        Layer::Relu,
        Layer::Dense { features: CLASSES, params: (6, 7) },
        Layer::LogSoftmax,
    ]
}

/// A network with its parameters, one after the other in the order of [`PARAM_LENS`].
#[derive(Debug)]
pub struct Network {
    pub(crate) program: Program,
    pub(crate) params: Vec<f32>,
}

impl Network {
    /// A network that takes up to `batch` images at a time, with all parameters zero.
    ///
    /// # Errors
    /// If `batch` is zero or too large.
    pub fn new(batch: usize) -> Result<Self> {
        let program = Program::new([batch, 28, 28, 1], &layers())?;
        Ok(Self { program, params: vec![0.0; PARAMS] })
    }

    /// All parameters.
    pub fn params(&self) -> &[f32] {
        &self.params
    }

    /// All parameters, to be changed.
    pub fn params_mut(&mut self) -> &mut [f32] {
        &mut self.params
    }

    /// The log-probabilities of the ten digits for each of any number of images, whose pixels are
    /// numbers from 0 (black) to 1 (white).
    ///
    /// # Errors
    /// If `log_probs` does not have ten values per image.
    pub fn log_probabilities(&mut self, images: &[f32], log_probs: &mut [f32]) -> Result<()> {
        let params = split(&self.params);
        Ok(self.program.log_probabilities(&params, images, log_probs)?)
    }
}

/// The most probable digit of each image.
pub(crate) fn most_probable(log_probs: &[f32]) -> impl Iterator<Item = u8> {
    log_probs.chunks_exact(CLASSES).map(|row| {
        let best =
            (1..CLASSES).fold(0, |best, digit| if row[digit] > row[best] { digit } else { best });
        best as u8
    })
}

/// The initial parameters of `init(key, …)` in Flax: LeCun normal kernels and zero biases.
pub(crate) fn initial_params(key: Key) -> Vec<f32> {
    let mut params = Vec::with_capacity(PARAMS);
    for (layer, lens) in PARAM_LENS.chunks_exact(2).enumerate() {
        let layer_key = key.fold_in(LAYER_KEYS[layer]);
        params.extend(lecun_normal(layer_key, lens[0], FAN_IN[layer]));
        params.resize(params.len() + lens[1], 0.0);
    }
    params
}

/// Cuts all parameters, or their moments, into the single ones.
pub(crate) fn split(mut values: &[f32]) -> [&[f32]; 8] {
    PARAM_LENS.map(|len| {
        let (first, rest) = values.split_at(len);
        values = rest;
        first
    })
}

/// [`split`] for values that change.
pub(crate) fn split_mut(mut values: &mut [f32]) -> [&mut [f32]; 8] {
    PARAM_LENS.map(|len| {
        let (first, rest) = std::mem::take(&mut values).split_at_mut(len);
        values = rest;
        first
    })
}
