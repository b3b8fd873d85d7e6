//! What displays itself in a notebook: figures, tables, source code, tensors, progress, and a panel
//! to draw on.
//!
//! Every value here shows itself as the result of a cell, in a rich form and as plain text.

mod axes;
mod bar_chart;
mod display;
mod draw_panel;
mod figure;
mod heat_map;
mod line_chart;
mod marks;
mod number;
mod pictures;
#[cfg(feature = "png")]
mod png;
mod progress;
mod scatter_chart;
mod scene;
mod source;
mod table;
mod tensor;
#[cfg(test)]
mod tests;

pub use bar_chart::bar_chart;
pub use draw_panel::{DrawPanel, draw_panel};
pub use figure::{Figure, side_by_side};
pub use heat_map::heat_map;
pub use line_chart::{line_chart, line_chart_over};
pub use number::Number;
pub(crate) use number::grouped;
pub use pictures::{Picture, picture_grid};
pub use progress::Progress;
pub use scatter_chart::scatter_chart;
pub use source::{Source, source};
pub use table::Table;
pub use tensor::{TensorView, image_grid, prediction_grid, show};
