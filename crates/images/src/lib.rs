//! Images as tensors `[N, height, width, channels]`: notebook display, augmentation, noise, and
//! preparation of your own digits for a network trained on MNIST.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use images::{image_grid, rotate};
//!
//! let images = Tensor::zeros((2, 28, 28, 1), DType::F32, &Device::Cpu)?;
//! let rotated = rotate(&images, 10.0)?;
//! let figure = image_grid("Rotated by 10 degrees", &rotated, &[5, 0])?;
//! # Ok::<(), linen::Error>(())
//! ```

mod digit;
mod error;
mod gray_image;
mod read_image;
mod show;
mod transform;

pub use digit::prepare_digit;
pub use error::ImageError;
pub use read_image::read_image;
pub use show::{TensorView, image_grid, pictures, prediction_grid, show, signed_pictures};
pub use transform::{add_noise, augment, rotate, shift};

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
