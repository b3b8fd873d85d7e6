//! The tutorial's network.

use candle_core::Tensor;
use linen::{Module, Result, Scope, avg_pool, flatten, log_softmax, relu};

/// The tutorial's convolutional network: 824,458 parameters.
///
/// # Shapes
/// - input: `[B, 28, 28, 1]`, 0 (black) to 1 (white)
/// - output: `[B, 10]`, log-probabilities of the ten digits
///
/// # Source
/// `CNN` of the Flax tutorial.
pub struct Cnn;

impl Module for Cnn {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = relu(nn.conv(32, (3, 3), x))?; // [B, 28, 28, 32]
        let x = avg_pool(x, (2, 2))?; //          [B, 14, 14, 32]
        let x = relu(nn.conv(64, (3, 3), x))?; // [B, 14, 14, 64]
        let x = avg_pool(x, (2, 2))?; //          [B, 7, 7, 64]
        let x = flatten(x)?; //                   [B, 3136]
        let x = relu(nn.dense(256, x))?; //       [B, 256]
        log_softmax(nn.dense(10, x)) //           [B, 10], one for each digit
    }
}
