//! Errors of the tutorial, one variant per cause; messages say what to do.
//!
//! Functions return them as a [`linen::Error`]; its
//! [`downcast_ref`](linen::Error::downcast_ref) gets them back.

use std::path::PathBuf;

use linen::Cause;

/// A problem with a dataset.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A dataset with different numbers of images and labels.
    #[error("{images} images but {labels} labels: every image needs exactly one label")]
    Lengths {
        /// The number of images.
        images: usize,
        /// The number of labels.
        labels: usize,
    },

    /// An image with a pixel that is infinite or not a number.
    #[error(
        "image {index} of the dataset has a pixel that is infinite or not a number: leave it out, \
         or find out where the pixel comes from"
    )]
    Pixel {
        /// The image's place in the dataset.
        index: usize,
    },

    /// A batch size that is 0 or larger than the dataset.
    #[error(
        "batch size {batch_size} does not fit a dataset of {examples} examples: \
         choose one from 1 to {examples}"
    )]
    BatchSize {
        /// The requested batch size.
        batch_size: usize,
        /// The number of examples in the dataset.
        examples: usize,
    },

    /// A text file with columns of numbers cannot be used.
    #[error("cannot use {}: {problem}", path.display())]
    Csv {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// A file of the dataset is missing.
    #[error(
        "{} is missing, with or without .gz, there and in the folders below: {remedy}",
        path.display()
    )]
    Missing {
        /// Where the file was looked for.
        path: PathBuf,
        /// What to do.
        remedy: &'static str,
    },

    /// The content of a dataset file is wrong.
    #[error(
        "{} is damaged: {source}; replace it with a good copy",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The problem with its content.
        source: Cause,
    },

    /// A dataset file is a good file of another dataset, or under the wrong name.
    #[error(
        "{} is not {dataset}'s file of that name: it is {found}; set {variable} to a folder with \
         the four files of {dataset}, or make a dataset of other images with `Dataset::new`",
        path.display()
    )]
    OtherDataset {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: String,
        /// The dataset that was to be read.
        dataset: &'static str,
        /// The environment variable that names a folder with the files.
        variable: &'static str,
    },

    /// There is no folder for temporary copies of the dataset files.
    #[error(
        "cannot write temporary copies of the dataset files: {attempts}; set TMPDIR to a folder \
         with 55 MB of free space"
    )]
    Copies {
        /// Each folder and what went wrong there.
        attempts: String,
    },

    /// No mirror delivered a file of the dataset.
    #[error(
        "cannot download {file}: {attempts}; check the network, or download the four files \
         yourself and set {variable} to their folder"
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

/// A problem with a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The folder of the checkpoints cannot be read.
    #[error("cannot read the checkpoints in {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },

    /// A file is not a valid checkpoint.
    #[error(
        "cannot resume from {}: {source}; {}",
        path.display(),
        match previous {
            Some(previous) => format!(
                "{} is good: delete the bad file to resume from there", previous.display()
            ),
            None => "there is no earlier good checkpoint: delete it to start over".into(),
        }
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The problem with it.
        source: Cause,
        /// The newest good checkpoint before it.
        previous: Option<PathBuf>,
    },

    /// The folder already holds a checkpoint of a later epoch.
    #[error(
        "the training is at epoch {epoch}, and {} is of a later one, so it is from another run; \
         give each run its own folder, or delete that file",
        path.display()
    )]
    Later {
        /// The existing checkpoint.
        path: PathBuf,
        /// The epoch of the state that was to be trained or saved.
        epoch: usize,
    },
}

/// The loss became infinite or not a number.
#[derive(Debug, thiserror::Error)]
#[error(
    "the loss is {loss} at epoch {epoch}, step {step}: training has diverged; {} with a smaller \
     learning rate",
    checkpoint.as_ref().map_or("start over".into(), |path| {
        format!("resume from the last good checkpoint, {},", path.display())
    })
)]
pub struct Diverged {
    /// The epoch, as numbered by the caller.
    pub epoch: usize,
    /// The step within the epoch, starting at 1.
    pub step: usize,
    /// The loss at that step.
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
