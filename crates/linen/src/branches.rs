//! Layers that join branches of a network.
//!
//! candle's `+` and `Tensor::cat` compute the same, but a [trace](crate::trace) does not see them:
//! a network that uses those can be trained, but neither compiled nor exported.

use candle_core::{D, Tensor};

use crate::error::{Error, Result};
use crate::input::Input;
use crate::trace::{Layer, trace_op};
use crate::{check, custom_ops, memory};

/// The sum of two tensors of the same shape, such as the input and the output of a residual block.
///
/// # Errors
/// [`Error::Shape`] for different shapes; nothing is broadcast.
///
/// # Examples
/// ```
/// # use candle_core::Tensor;
/// use linen::{Result, Scope, add, relu};
///
/// fn residual_block(nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
///     let channels = x.dims()[3];
///     let y = relu(nn.conv(channels, (3, 3), x))?;
///     add(x, nn.conv(channels, (3, 3), y))
/// }
/// # let images = Tensor::ones((1, 4, 4, 2), candle_core::DType::F32, &candle_core::Device::Cpu)?;
/// # struct Net;
/// # impl linen::Module for Net {
/// #     fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
/// #         residual_block(nn, x)
/// #     }
/// # }
/// # assert_eq!(linen::tabulate(&Net, &images)?.rows[3].layer, "add_0");
/// # Ok::<(), linen::Error>(())
/// ```
///
/// # Source
/// `x + y` of a residual block; K. He et al., *Deep Residual Learning*, 2015.
pub fn add(a: impl Input, b: impl Input) -> Result<Tensor> {
    let (a, b) = (&a.tensor()?, &b.tensor()?);
    if a.dims() != b.dims() {
        return Err(Error::shape("second input of add", format!("{:?}", a.dims()), b));
    }
    let y = (custom_ops::contiguous(a)? + custom_ops::contiguous(b)?)?;
    trace_op(&[a, b], &y, || Layer::Add);
    Ok(y)
}

/// Tensors side by side in the last dimension, such as the channels of several branches.
///
/// # Shapes
/// - `tensors`: `[…, C₁]`, `[…, C₂]`, …: the same but for the last dimension
/// - result: `[…, C₁ + C₂ + …]`
///
/// # Errors
/// [`Error::Shape`] for scalars and for shapes that do not fit together;
/// [`Error::Hyperparameter`] for an empty list.
///
/// # Source
/// `jax.numpy.concatenate(tensors, axis=-1)`.
pub fn concatenate(tensors: &[&Tensor]) -> Result<Tensor> {
    check::positive("number of tensors", tensors.len())?;
    let Some((_, leading)) = tensors[0].dims().split_last() else {
        return Err(Error::shape("concatenate input", "[…, channels]", tensors[0]));
    };
    let does_not_fit = |x: &&&Tensor| x.dims().split_last().map(|(_, dims)| dims) != Some(leading);
    if let Some(other) = tensors.iter().find(does_not_fit) {
        let expected = leading.iter().map(|size| format!("{size}, ")).collect::<String>();
        return Err(Error::shape("concatenate input", format!("[{expected}channels]"), other));
    }
    let channels = tensors.iter().map(|x| x.dims()[leading.len()]);
    let shape = [leading, &[channels.fold(0, usize::saturating_add)]].concat();
    memory::check("the result of a layer", &shape, tensors[0].dtype(), tensors[0].device())?;
    let y = Tensor::cat(tensors, D::Minus1)?;
    trace_op(tensors, &y, || Layer::Concatenate);
    Ok(y)
}
