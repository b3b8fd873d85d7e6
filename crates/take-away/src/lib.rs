//! Networks and their training leave the notebook: [`save_onnx`] for other runtimes and languages,
//! [`draw_panel`] as a page to draw digits on, [`SummaryWriter`] for TensorBoard.

mod draw_panel;
mod onnx;
#[cfg(feature = "tensorboard")]
mod tensorboard;

pub use draw_panel::{DrawPanel, draw_panel};
pub use onnx::save_onnx;
#[cfg(feature = "tensorboard")]
pub use tensorboard::SummaryWriter;

/// The files of this crate, for a notebook that shows them.
pub static SOURCES: include_dir::Dir<'_> = include_dir::include_dir!("$CARGO_MANIFEST_DIR/src");
