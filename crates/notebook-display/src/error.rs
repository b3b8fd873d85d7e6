//! Errors, one variant per cause; messages say what to do.

use std::path::PathBuf;

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Invalid data for a figure or a table.
    #[error("{0}")]
    Figure(String),

    /// A file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Save {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },

    /// The sources contain no item of this name.
    #[error("{0}")]
    UnknownItem(String),
}
