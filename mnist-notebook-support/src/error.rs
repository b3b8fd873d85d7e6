//! Errors of the tutorial, one variant per cause; messages say what to do.
//!
//! Functions return them as a [`linen::Error`]; its
//! [`downcast_ref`](linen::Error::downcast_ref) gets them back.

use std::path::PathBuf;

use linen::Cause;

/// What is wrong with a dataset.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// Images and labels of different lengths were put into one dataset.
    #[error("{images} images but {labels} labels: every image needs exactly one label")]
    Lengths {
        /// How many images came.
        images: usize,
        /// How many labels came.
        labels: usize,
    },

    /// No batch of this size can be taken from the dataset.
    #[error(
        "batch size {batch_size} does not fit a dataset of {examples} examples: \
         choose one from 1 to {examples}"
    )]
    BatchSize {
        /// The batch size that was asked for.
        batch_size: usize,
        /// How many examples the dataset has.
        examples: usize,
    },

    /// A file of the dataset is not where it should be.
    #[error(
        "{} is missing (with or without .gz): {remedy}",
        path.display()
    )]
    Missing {
        /// Where the file was looked for.
        path: PathBuf,
        /// What to do.
        remedy: &'static str,
    },

    /// A file of the dataset does not hold what it should.
    #[error(
        "{} is damaged: {source}; replace it with a good copy",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with its content.
        source: Cause,
    },

    /// No mirror handed out a file of the dataset.
    #[error(
        "cannot fetch {file}: {attempts}; check the network, or get the four files some other way \
         and set {variable} to their folder"
    )]
    Download {
        /// The name of the file.
        file: String,
        /// Each mirror and what went wrong there.
        attempts: String,
        /// The environment variable that names a folder with the files.
        variable: &'static str,
    },
}

/// What is wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file is not a checkpoint, or no longer.
    #[error(
        "cannot resume from {}: {source}; {}",
        path.display(),
        match previous {
            Some(previous) => format!(
                "{} is good: delete the bad file to resume from there", previous.display()
            ),
            None => "no good checkpoint goes before it: delete it to start anew".into(),
        }
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Cause,
        /// The newest good checkpoint before it.
        previous: Option<PathBuf>,
    },

    /// A checkpoint was to be saved beside one of a later epoch.
    #[error(
        "epoch {epoch} cannot be saved beside {}, a later epoch, so of another training: give each \
         training its own folder, or delete that file",
        path.display()
    )]
    Later {
        /// The checkpoint that is there.
        path: PathBuf,
        /// The epoch of the state to be saved.
        epoch: usize,
    },
}

/// The loss became infinite or not a number.
#[derive(Debug, thiserror::Error)]
#[error(
    "the loss is {loss} at epoch {epoch}, step {step}: training has diverged; start again{} \
     with a smaller learning rate",
    checkpoint.as_ref().map_or(String::new(), |path| format!(" from {}", path.display()))
)]
pub struct Diverged {
    /// The epoch, counted as the caller counts it.
    pub epoch: usize,
    /// The step within the epoch, from 1.
    pub step: usize,
    /// The loss that was found.
    pub loss: f32,
    /// The last good checkpoint, if there is one.
    pub checkpoint: Option<PathBuf>,
}

macro_rules! into_linen {
    ($($name:ty)*) => {
        $(impl From<$name> for linen::Error {
            fn from(error: $name) -> Self {
                linen::Error::other(error)
            }
        })*
    };
}

into_linen!(DataError CheckpointError Diverged);
