//! Errors, one variant per cause; messages say what to do.

use std::path::PathBuf;

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that this crate refuses or fails to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A figure or a table cannot be drawn from these data.
    #[error("{0}")]
    Figure(String),

    /// A file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Save {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// There is no item of this name to show.
    #[error("{0}")]
    UnknownItem(String),
}
