//! What a layer takes as its input.

use candle_core::{Tensor, Var};

use crate::error::{Error, Result};

/// The input of a layer: a tensor, a reference to one, or the result of the layer before it.
///
/// So layers can be written one in the other, with one `?` for all of them.
///
/// # Examples
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// use linen::{Result, Scope, log_softmax, relu};
///
/// fn head(nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
///     let x = relu(nn.dense(256, x))?;
///     log_softmax(nn.dense(10, x))
/// }
/// # struct Net;
/// # impl linen::Module for Net {
/// #     fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
/// #         head(nn, x)
/// #     }
/// # }
/// # let x = Tensor::ones((1, 4), DType::F32, &Device::Cpu)?;
/// # assert_eq!(linen::tabulate(&Net, &x)?.rows.len(), 4);
/// # Ok::<(), linen::Error>(())
/// ```
pub trait Input {
    /// The tensor.
    ///
    /// # Errors
    /// The error of the layer before.
    fn tensor(self) -> Result<Tensor>;
}

impl Input for Tensor {
    fn tensor(self) -> Result<Tensor> {
        Ok(self)
    }
}

impl Input for &Tensor {
    fn tensor(self) -> Result<Tensor> {
        Ok(self.clone())
    }
}

impl Input for &Var {
    fn tensor(self) -> Result<Tensor> {
        Ok(self.as_tensor().clone())
    }
}

/// Of a layer, or of an operation of candle.
impl<E: Into<Error>> Input for Result<Tensor, E> {
    fn tensor(self) -> Result<Tensor> {
        self.map_err(Into::into)
    }
}
