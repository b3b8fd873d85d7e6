//! Figures, tables, pictures and progress for Jupyter notebooks on the evcxr kernel.
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

#[cfg(feature = "figures")]
mod axes;
#[cfg(feature = "figures")]
mod bar_chart;
mod display;
mod error;
#[cfg(feature = "figures")]
mod figure;
#[cfg(feature = "figures")]
mod heat_map;
#[cfg(feature = "figures")]
mod legend;
#[cfg(feature = "figures")]
mod line_chart;
#[cfg(feature = "figures")]
mod markers;
mod number;
#[cfg(feature = "figures")]
mod picture;
#[cfg(feature = "figures")]
mod picture_layout;
#[cfg(feature = "figures")]
mod pictures;
#[cfg(feature = "figures")]
mod plot;
#[cfg(feature = "figures")]
mod png;
#[cfg(feature = "figures")]
mod png_encoder;
#[cfg(feature = "progress")]
mod progress;
#[cfg(feature = "figures")]
mod raster;
#[cfg(feature = "figures")]
mod scatter_chart;
#[cfg(feature = "figures")]
mod scene;
mod table;
#[cfg(all(test, feature = "figures"))]
mod tests;
#[cfg(feature = "figures")]
mod units;

pub use display::display;
pub use error::{Error, Result};
pub use number::{Number, grouped, short};
pub use table::Table;

#[cfg(feature = "figures")]
pub use {
    bar_chart::bar_chart,
    figure::{Figure, side_by_side},
    heat_map::heat_map,
    line_chart::{LineChart, line_chart},
    picture::Picture,
    pictures::{picture_grid, picture_rows},
    scatter_chart::scatter_chart,
};

#[cfg(feature = "progress")]
pub use progress::Progress;

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
