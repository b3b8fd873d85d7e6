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

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
