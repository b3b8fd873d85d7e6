//! Errors, one variant per cause; messages say what to do.

use std::path::PathBuf;

use candle_core::Error as Candle;

use candle_core::DeviceLocation;
use cpu_kernels::KernelError;

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error, as the cause of another.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

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

    /// A dataset without a single example was to be used.
    #[error("the dataset is empty: there is nothing to {0}")]
    EmptyDataset(&'static str),

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

    /// Only sequential networks can be exported.
    #[error(
        "the network is not a plain chain of this crate's layers, and nothing else can be exported: \
         are there branches, or tensor operations between the layers?"
    )]
    NotSequential,

    /// A file does not hold parameters, or no longer.
    #[error("cannot load parameters from {}: {source}", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Cause,
    },

    /// A file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Save {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// Something cannot be shown in a notebook.
    #[error(transparent)]
    Display(#[from] notebook_display::Error),

    /// An error of a crate that stands on this one; [`downcast_ref`](Error::downcast_ref) gets it
    /// back.
    #[error(transparent)]
    Other(Cause),
}

impl Error {
    /// An error of a crate that stands on this one, so that all of them fit into one [`Result`].
    pub fn other(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Error::Other(Box::new(error))
    }

    /// The error of this type that [`other`](Error::other) was given.
    pub fn downcast_ref<E: std::error::Error + 'static>(&self) -> Option<&E> {
        match self {
            Error::Other(error) => error.downcast_ref(),
            _ => None,
        }
    }

    /// An [`Error::Save`] for `path`, to hand to `map_err`.
    pub fn save(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Error::Save { path, source }
    }
}

fn gigabytes(bytes: usize) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// The short name of a device: `cpu`, `cuda:0`, `metal:0`.
pub fn device_name(location: DeviceLocation) -> String {
    match location {
        DeviceLocation::Cpu => "cpu".into(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// What a failure of CUDA means and what to do, in one line.
fn describe_cuda_error(error: &str) -> String {
    const KNOWN: [(&[&str], &str); 5] = [
        (
            &["CUDA_ERROR_NO_DEVICE", "CUDA_ERROR_INVALID_DEVICE"],
            "the NVIDIA driver shows no GPU: see what nvidia-smi lists, and whether \
             CUDA_VISIBLE_DEVICES hides it",
        ),
        (
            &["OUT_OF_MEMORY", "ALLOC_FAILED"],
            "the GPU's memory is full: take smaller batches, or end other programs on it \
             (nvidia-smi lists them)",
        ),
        (
            &["NO_BINARY_FOR_GPU", "INVALID_PTX", "INVALID_IMAGE", "UNSUPPORTED_PTX_VERSION"],
            "this program was built for another GPU or a newer driver: update the driver, or build \
             again with CUDA_COMPUTE_CAP set to what `nvidia-smi --query-gpu=compute_cap \
             --format=csv` says, without the dot",
        ),
        (
            &["STUB_LIBRARY", "DRIVER_MISMATCH", "SYSTEM_NOT_READY", "COMPAT_NOT_SUPPORTED"],
            "the NVIDIA driver does not work: install it again, and restart the machine",
        ),
        (
            &["ECC_UNCORRECTABLE", "HARDWARE_STACK_ERROR", "CUDA_ERROR_DEVICE_UNAVAILABLE"],
            "the GPU has failed or is taken: see what nvidia-smi says of it",
        ),
    ];
    let is_among = |codes: &[&str]| codes.iter().any(|code| error.contains(code));
    let first_line = error.lines().next().unwrap_or_default();
    match KNOWN.iter().find(|(codes, _)| is_among(codes)) {
        Some((_, advice)) => format!("{advice}: {first_line}"),
        None => format!("the GPU failed: {first_line}"),
    }
}

/// Refuses a number that is negative, infinite or none.
pub fn check_not_negative(name: &'static str, value: f64) -> Result<()> {
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
                Error::Device { op, one: device_name(lhs), other: device_name(rhs) }
            }
            Candle::DTypeMismatchBinaryOp { lhs, rhs, op } => {
                Error::DType { what: op, expected: rhs.as_str(), found: lhs.as_str().into() }
            }
            Candle::Io(error) => {
                error.downcast().unwrap_or_else(|error| Error::Tensor(error.to_string()))
            }
            Candle::Cuda(error) => Error::Gpu(describe_cuda_error(&error.to_string())),
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
    fn each_failure_of_cuda_says_in_one_line_what_to_do() {
        for (code, words) in [
            ("CUDA_ERROR_NO_DEVICE", "CUDA_VISIBLE_DEVICES"),
            ("CUDA_ERROR_OUT_OF_MEMORY", "smaller batches"),
            ("CUBLAS_STATUS_ALLOC_FAILED", "smaller batches"),
            ("CUDA_ERROR_NO_BINARY_FOR_GPU", "CUDA_COMPUTE_CAP"),
            ("CUDA_ERROR_INVALID_PTX", "CUDA_COMPUTE_CAP"),
            ("CUDA_ERROR_STUB_LIBRARY", "install it again"),
            ("CUDA_ERROR_LAUNCH_FAILED", "the GPU failed"),
        ] {
            let text = format!("DriverError({code}, \"…\")\n  frames of a backtrace");
            let error: Error = Candle::Cuda(text.into()).into();
            let message = error.to_string();
            assert!(matches!(error, Error::Gpu(_)) && message.contains(words), "{message}");
            assert!(message.contains(code) && !message.contains('\n'), "{message}");
        }
    }

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
