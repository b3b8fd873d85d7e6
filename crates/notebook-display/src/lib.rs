//! Figures, tables, pictures, source code and progress for Jupyter notebooks on the evcxr kernel.
//!
//! Every value displays itself as the result of a cell, in a rich form and as plain text. A figure
//! is an SVG with a text alternative for readers who cannot see it:
//!
//! ```
//! use notebook_display::line_chart;
//!
//! let figure = line_chart("Loss", "epoch", "nats", &[("training", [0.13, 0.05, 0.04])])?;
//! assert!(figure.svg().starts_with("<svg"));
//! println!("{}", figure.text());
//! # Ok::<(), notebook_display::Error>(())
//! ```
//!
//! To display your own type, give it a method `evcxr_display` that calls [`display`].

mod axes;
mod bar_chart;
mod display;
mod error;
mod figure;
mod heat_map;
mod line_chart;
mod markers;
mod number;
mod pictures;
#[cfg(feature = "png")]
mod png;
mod progress;
mod scatter_chart;
mod scene;
mod source;
mod table;
#[cfg(test)]
mod tests;

pub use bar_chart::bar_chart;
pub use display::display;
pub use error::{Error, Result};
pub use figure::{Figure, side_by_side};
pub use heat_map::heat_map;
pub use line_chart::{line_chart, line_chart_over};
pub use number::{Number, grouped, short};
pub use pictures::{Picture, picture_grid};
pub use progress::Progress;
pub use scatter_chart::scatter_chart;
pub use source::{Source, Sources};
pub use table::Table;

/// The source files of this crate, for [`Sources`].
pub static SOURCES: include_dir::Dir<'_> = include_dir::include_dir!("$CARGO_MANIFEST_DIR/src");

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
