//! Images as tensors `[N, height, width, channels]`: shown in a notebook, moved, turned and made
//! noisy, and digits of one's own made into what a network for MNIST takes.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use images::{image_grid, rotate};
//!
//! let images = Tensor::zeros((2, 28, 28, 1), DType::F32, &Device::Cpu)?;
//! let turned = rotate(&images, 10.0)?;
//! let figure = image_grid("Turned by 10 degrees", &turned, &[5, 0])?;
//! # Ok::<(), linen::Error>(())
//! ```

mod digit;
mod error;
mod pictures;
mod transform;

pub use digit::prepare_digit;
#[cfg(feature = "png")]
pub use digit::read_png;
pub use error::ImageError;
pub use pictures::{TensorView, image_grid, prediction_grid, show};
pub use transform::{add_noise, augment, rotate, shift};

/// The files of this crate, for a notebook that shows them.
pub static SOURCES: include_dir::Dir<'_> = include_dir::include_dir!("$CARGO_MANIFEST_DIR/src");
