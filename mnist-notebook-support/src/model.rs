//! The tutorial's network and its initial parameters.

use candle_core::{DType, Device, Tensor};
use linen::{Key, Module, Params, Result, Scope, avg_pool, flatten, log_softmax, relu};

/// The tutorial's convolutional network: 824,458 parameters.
///
/// # Shapes
/// - input: `[B, 28, 28, 1]`, 0 (black) to 1 (white)
/// - output: `[B, 10]`, log-probabilities of the ten digits
///
/// # Source
/// `CNN` of the Flax tutorial.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cnn;

impl Module for Cnn {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = relu(&nn.conv(32, (3, 3), x)?)?; //  [B, 28, 28, 32]
        let x = avg_pool(&x, (2, 2))?; //            [B, 14, 14, 32]
        let x = relu(&nn.conv(64, (3, 3), &x)?)?; // [B, 14, 14, 64]
        let x = avg_pool(&x, (2, 2))?; //            [B, 7, 7, 64]
        let x = flatten(&x)?; //                     [B, 3136]
        let x = relu(&nn.dense(256, &x)?)?; //       [B, 256]
        let x = nn.dense(10, &x)?; //                [B, 10], one per digit
        log_softmax(&x)
    }
}

/// The initial parameters of a network for MNIST images, drawn with `key`, on `device`.
///
/// Kernels are LeCun normal, biases zero. The same key gives the same parameters as in Flax, bit
/// for bit.
///
/// # Errors
/// Those of [`Module::init`].
///
/// # Examples
/// ```
/// use candle_core::Device;
/// use mnist_notebook_support::{Cnn, get_initial_params, random::Key};
///
/// let (_rng, init_rng) = Key::new(0).split();
/// let params = get_initial_params(&Cnn, init_rng, &Device::Cpu)?;
/// assert_eq!(params.count(), 824_458);
/// assert_eq!(params.get("Conv_0/kernel").unwrap().dims(), [3, 3, 1, 32]);
/// # Ok::<(), mnist_notebook_support::Error>(())
/// ```
///
/// # Source
/// `get_initial_params` of the Flax tutorial.
pub fn get_initial_params(model: &impl Module, key: Key, device: &Device) -> Result<Params> {
    let sample = Tensor::ones((1, 28, 28, 1), DType::F32, device)?;
    model.init(key, &sample)
}
