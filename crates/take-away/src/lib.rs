//! Exports of networks and training logs: [`save_onnx`] for other runtimes and languages,
//! [`draw_panel`] for a web page to draw digits on, and, with the feature `tensorboard`,
//! `SummaryWriter` for TensorBoard.

mod draw_panel;
mod onnx;
#[cfg(feature = "tensorboard")]
mod tensorboard;

pub use draw_panel::{DrawPanel, draw_panel};
pub use onnx::save_onnx;
#[cfg(feature = "tensorboard")]
pub use tensorboard::SummaryWriter;

/// The source files of this crate, for [`notebook_display::Sources`].
pub static SOURCES: include_dir::Dir<'_> = include_dir::include_dir!("$CARGO_MANIFEST_DIR/src");

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
