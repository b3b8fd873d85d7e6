//! Errors, one variant per cause; messages say what to do.

use std::path::PathBuf;

use linen::Cause;

/// Errors of this crate; functions return them as [`linen::Error`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A picture could not be read from a file.
    #[error("cannot read the picture {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Cause,
    },

    /// The picture contains no digit.
    #[error("no digit can be found in the picture: {0}")]
    NoDigit(&'static str),
}

impl From<ImageError> for linen::Error {
    fn from(error: ImageError) -> Self {
        linen::Error::other(error)
    }
}
