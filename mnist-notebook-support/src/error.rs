//! What can go wrong, one variant per cause, each with the way out.

use std::path::PathBuf;

use candle_core::Error as Candle;

use crate::device::{explain, name};
use crate::kernels::KernelError;

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything this crate refuses or fails to do.
///
/// Messages are one or two lines, name what was found and what was expected, and say what to do;
/// in a notebook they are all that a failed cell shows.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor operation failed in candle.
    #[error("{0}")]
    Tensor(String),

    /// A GPU cannot be used, or failed.
    #[error("{0}")]
    Gpu(String),

    /// An array does not fit the free memory.
    #[error(
        "{what} needs {} of memory, and {} are free: make it smaller, or free memory",
        gigabytes(*needed),
        gigabytes(*free)
    )]
    Memory {
        /// What was to be made.
        what: &'static str,
        /// Bytes that it takes.
        needed: usize,
        /// Bytes that were free.
        free: usize,
    },

    /// A tensor has another shape than the function takes.
    #[error("{what}: expected shape {expected}, found {found:?}")]
    Shape {
        /// The argument and the function it was given to.
        what: &'static str,
        /// The shape in words, such as `[B, 28, 28, 1]`.
        expected: String,
        /// The shape of the tensor that came.
        found: Vec<usize>,
    },

    /// A tensor has another element type than the function takes.
    #[error("{what}: expected elements of type {expected}, found {found}")]
    DType {
        /// The argument and the function it was given to.
        what: &'static str,
        /// The element type in words.
        expected: &'static str,
        /// The element type that came.
        found: String,
    },

    /// Tensors on different devices met in one operation.
    #[error(
        "{op}: one tensor is on {one}, another on {other}: load data and parameters onto one \
         device, or move them there with `to_device`"
    )]
    Device {
        /// The operation.
        op: &'static str,
        /// A device, such as `cpu`.
        one: String,
        /// The other device, such as `cuda:0`.
        other: String,
    },

    /// A label is not the number of a class.
    #[error("label {label} at position {index} is not below the number of classes, {num_classes}")]
    Label {
        /// The label that was found.
        label: u32,
        /// Its position in the label tensor.
        index: usize,
        /// How many classes there are.
        num_classes: usize,
    },

    /// Images and labels of different lengths were put into one dataset.
    #[error("{images} images but {labels} labels: every image needs exactly one label")]
    Lengths {
        /// How many images came.
        images: usize,
        /// How many labels came.
        labels: usize,
    },

    /// A dataset without a single example was to be used.
    #[error("the dataset is empty: there is nothing to {0}")]
    EmptyDataset(&'static str),

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

    /// A hyper-parameter lies outside its range.
    #[error("{name} = {value} is out of range: {allowed}")]
    Hyperparameter {
        /// The name of the hyper-parameter.
        name: &'static str,
        /// The value that was given.
        value: f64,
        /// The values it may have.
        allowed: &'static str,
    },

    /// A module asked for a parameter that the given parameters do not hold.
    #[error(
        "no parameter {path:?} among [{known}]: the parameters come from another network; \
         call `init` on this one"
    )]
    MissingParam {
        /// The path of the parameter, such as `Conv_0/kernel`.
        path: String,
        /// The paths that are there.
        known: String,
    },

    /// A parameter has another shape than the module needs.
    #[error(
        "parameter {path:?} has shape {found:?} where the network needs {expected:?}: \
         call `init` with a sample of the shape you train on"
    )]
    ParamShape {
        /// The path of the parameter.
        path: String,
        /// The shape that the module needs.
        expected: Vec<usize>,
        /// The shape of the stored parameter.
        found: Vec<usize>,
    },

    /// A layer that behaves differently in training was evaluated without saying which it is.
    #[error(
        "{layer} works differently in training and in evaluation: make the network's variables \
         with `init_variables`, train with `apply_train` and evaluate with `apply_eval`"
    )]
    Mode {
        /// The path of the layer, such as `BatchNorm_0`.
        layer: String,
    },

    /// A module used one parameter name twice.
    #[error("the parameter {0:?} is made twice in one module: give the second another name")]
    DuplicateParam(String),

    /// A module without parameters was to be trained.
    #[error("the network has no parameters: there is nothing to train")]
    NoParams,

    /// No gradient reached a parameter.
    #[error(
        "the loss does not depend on parameter {0:?}: does the network leave its own tensors, \
         through `detach` or a host value?"
    )]
    NoGradient(String),

    /// A network was to leave the crate that is more than layers one after the other.
    #[error(
        "the network is not a plain chain of this crate's layers, and nothing else can be exported: \
         are there branches, or tensor operations between the layers?"
    )]
    NotAChain,

    /// The loss became infinite or not a number.
    #[error(
        "the loss is {loss} at epoch {epoch}, step {step}: training has diverged; start again{} \
         with a smaller learning rate",
        checkpoint.as_ref().map_or(String::new(), |path| format!(" from {}", path.display()))
    )]
    Diverged {
        /// The epoch, counted as the caller counts it.
        epoch: usize,
        /// The step within the epoch, from 1.
        step: usize,
        /// The loss that was found.
        loss: f32,
        /// The last good checkpoint, if there is one.
        checkpoint: Option<PathBuf>,
    },

    /// A file does not hold parameters, or no longer.
    #[error("cannot load parameters from {}: {problem}", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// A file is not a checkpoint, or no longer.
    #[error(
        "cannot resume from {}: {problem}; {}",
        path.display(),
        match previous {
            Some(previous) => format!(
                "{} is good: delete the bad file to resume from there", previous.display()
            ),
            None => "no good checkpoint goes before it: delete it to start anew".into(),
        }
    )]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// The newest good checkpoint before it.
        previous: Option<PathBuf>,
    },

    /// A checkpoint was to be saved beside one of a later epoch.
    #[error(
        "epoch {epoch} cannot be saved beside {}, a later epoch, so of another training: give each \
         training its own folder, or delete that file",
        path.display()
    )]
    LaterCheckpoint {
        /// The checkpoint that is there.
        path: PathBuf,
        /// The epoch of the state to be saved.
        epoch: usize,
    },

    /// A file of the dataset is not where it should be.
    #[error(
        "{} is missing (with or without .gz): {remedy}",
        path.display()
    )]
    DataMissing {
        /// Where the file was looked for.
        path: PathBuf,
        /// What to do.
        remedy: &'static str,
    },

    /// A file of the dataset does not hold what it should.
    #[error(
        "{} is damaged: {problem}; replace it with a good copy",
        path.display()
    )]
    DataDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with its content.
        problem: String,
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

    /// A file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Save {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// A picture could not be read from a file.
    #[error("cannot read the picture {}: {problem}", path.display())]
    PictureFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// A picture in which no digit can be found.
    #[error("no digit can be found in the picture: {0}")]
    NoDigit(&'static str),

    /// A figure cannot be drawn from these data.
    #[error("{0}")]
    Figure(String),

    /// The crate has no item of this name to show.
    #[error("{0}")]
    UnknownSource(String),
}

impl Error {
    /// An [`Error::Save`] for `path`, to hand to `map_err`.
    pub(crate) fn save(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Error::Save { path, source }
    }
}

fn gigabytes(bytes: usize) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// Refuses a number that is negative, infinite or none.
pub(crate) fn check_not_negative(name: &'static str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(Error::Hyperparameter { name, value, allowed: "it must be a finite number, 0 or more" })
}

/// An error of ours on its way through candle, out of one of its operations.
pub(crate) fn through_candle(error: impl Into<Error>) -> Candle {
    Candle::Io(std::io::Error::other(error.into()))
}

/// candle's errors may carry a backtrace of frames that no reader of a notebook knows: only the
/// message is kept. An error of ours that travelled through candle comes out as it went in.
impl From<Candle> for Error {
    fn from(error: Candle) -> Self {
        match error {
            Candle::WithBacktrace { inner, .. } => (*inner).into(),
            Candle::Context { inner, context } => {
                Error::Tensor(format!("{context}: {}", Error::from(*inner)))
            }
            Candle::DeviceMismatchBinaryOp { lhs, rhs, op } => {
                Error::Device { op, one: name(lhs), other: name(rhs) }
            }
            Candle::DTypeMismatchBinaryOp { lhs, rhs, op } => {
                Error::DType { what: op, expected: rhs.as_str(), found: lhs.as_str().into() }
            }
            Candle::Io(error) => {
                error.downcast().unwrap_or_else(|error| Error::Tensor(error.to_string()))
            }
            Candle::Cuda(error) => Error::Gpu(explain(&error.to_string())),
            other => Error::Tensor(other.to_string()),
        }
    }
}

impl From<KernelError> for Error {
    fn from(error: KernelError) -> Self {
        match error {
            KernelError::Label { label, image, classes } => {
                Error::Label { label, index: image, num_classes: classes }
            }
            other => Error::Tensor(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DeviceLocation;

    use super::*;

    #[test]
    fn an_error_of_ours_comes_out_of_candle_as_it_went_in() {
        let error = through_candle(Error::NoParams).bt();
        assert!(matches!(Error::from(error), Error::NoParams));
        let error = Candle::Io(std::io::ErrorKind::NotFound.into());
        assert!(matches!(Error::from(error), Error::Tensor(_)));
    }

    /// Without a GPU there is no second device: the error that candle returns is made by hand.
    #[test]
    fn data_on_another_device_than_the_parameters_are_named_as_such() {
        let (lhs, rhs) = (DeviceLocation::Cpu, DeviceLocation::Cuda { gpu_id: 0 });
        let mismatch = || Candle::DeviceMismatchBinaryOp { lhs, rhs, op: "conv" };
        for error in [mismatch(), mismatch().bt()] {
            let error = Error::from(error);
            assert!(matches!(error, Error::Device { .. }), "{error:?}");
            let message = error.to_string();
            assert!(message.starts_with("conv: one tensor is on cpu, another on cuda:0: "));
            assert!(message.ends_with("onto one device, or move them there with `to_device`"));
        }
    }
}
