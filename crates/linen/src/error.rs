//! Errors, one variant per cause; messages say what to do.

use std::path::PathBuf;

use candle_core::{DType, DeviceLocation, Error as Candle, Tensor};
use cpu_kernels::KernelError;

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The cause of an error.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Every way in which this crate can fail.
///
/// A message is one or two lines: what was found, what was expected, and what to do. A failed
/// notebook cell shows nothing else.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor operation failed in candle.
    #[error("{0}")]
    Tensor(String),

    /// A GPU failed or cannot be used.
    #[error("{0}")]
    Gpu(String),

    /// An array does not fit in free memory.
    #[error(
        "{what} needs {} of memory, but only {} is free: make it smaller, or free memory",
        gigabytes(*needed),
        gigabytes(*free)
    )]
    Memory {
        /// What was to be allocated.
        what: &'static str,
        /// Bytes needed.
        needed: usize,
        /// Bytes free.
        free: usize,
    },

    /// A tensor has the wrong shape.
    #[error("{what}: expected shape {expected}, found {found:?}")]
    Shape {
        /// The tensor, such as `conv input`.
        what: &'static str,
        /// The expected shape in words, such as `[B, 28, 28, 1]`.
        expected: String,
        /// The actual shape.
        found: Vec<usize>,
    },

    /// A tensor has the wrong element type.
    #[error("{what}: expected elements of type {expected}, found {found}")]
    DType {
        /// The tensor, such as `labels`.
        what: &'static str,
        /// The expected element type, such as `u32` or `f32 or another float type`.
        expected: &'static str,
        /// The actual element type.
        found: String,
    },

    /// An operation got tensors on different devices.
    #[error(
        "{op}: one tensor is on {one}, another on {other}: load data and parameters onto one \
         device, or move them there with `to_device`"
    )]
    Device {
        /// The operation.
        op: &'static str,
        /// The device of one tensor, such as `cpu`.
        one: String,
        /// The device of the other, such as `cuda:0`.
        other: String,
    },

    /// An operation got tensors of different element types.
    #[error(
        "{op}: one tensor has elements of type {one}, another of type {other}: convert data or \
         parameters with `to_dtype`"
    )]
    DTypeMismatch {
        /// The operation.
        op: &'static str,
        /// The element type of one tensor, such as `f32`.
        one: &'static str,
        /// The element type of the other.
        other: &'static str,
    },

    /// A layer's input and its parameters have different element types.
    #[error(
        "{layer}: the input has elements of type {}, the parameters of type {}: {}",
        input.as_str(),
        params.as_str(),
        advice_on_types(*input, *params)
    )]
    LayerDType {
        /// The path of the layer, such as `Conv_0`.
        layer: String,
        /// The element type of its input.
        input: DType,
        /// The element type of its parameters.
        params: DType,
    },

    /// A label is out of range.
    #[error("label {label} at position {index} is not below the number of classes, {num_classes}")]
    Label {
        /// The label.
        label: u32,
        /// Its index in the label tensor.
        index: usize,
        /// The number of classes.
        num_classes: usize,
    },

    /// There are no examples.
    #[error("there are no examples: there is nothing to {0}")]
    Empty(&'static str),

    /// Values that must be log-probabilities are not.
    #[error(
        "the logits go up to {largest}, but log-probabilities are at most 0: end the network with \
         `log_softmax`"
    )]
    NotLogProbs {
        /// The largest of them.
        largest: f32,
    },

    /// A hyperparameter is out of range.
    #[error("{name} = {value} is out of range: {allowed}")]
    Hyperparameter {
        /// The hyperparameter.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The allowed range, in words.
        allowed: &'static str,
    },

    /// A module needs a parameter that the given parameters lack.
    #[error("no parameter {path:?} among [{known}]: {}", advice_on_names(path, known))]
    MissingParam {
        /// The path of the parameter, such as `Conv_0/kernel`.
        path: String,
        /// The paths of the given parameters.
        known: String,
    },

    /// A parameter does not have the shape that the module needs.
    #[error(
        "parameter {path:?} has shape {found:?} where the network needs {expected:?}: {}",
        advice_on_shapes(expected, found)
    )]
    ParamShape {
        /// The path of the parameter.
        path: String,
        /// The shape that the module needs.
        expected: Vec<usize>,
        /// The shape of the given parameter.
        found: Vec<usize>,
    },

    /// A layer that depends on the mode, training or evaluation, was run without one.
    #[error(
        "{layer} works differently in training and in evaluation: make the network's variables \
         with `init_variables`, train a `TrainState` of them instead of an `Optimizer`, and \
         evaluate that or the variables; in code of your own, `apply_train` and `apply_eval` take \
         the place of `apply`"
    )]
    Mode {
        /// The path of the layer, such as `BatchNorm_0`.
        layer: String,
    },

    /// A module used a parameter name twice.
    #[error("the parameter {0:?} is created twice in one module: give the second another name")]
    DuplicateParam(String),

    /// The network to train has no parameters.
    #[error("the network has no parameters: there is nothing to train")]
    NoParams,

    /// A network has no layer of a name.
    #[error("the network has no layer {name:?}; it has {names}")]
    NoLayer {
        /// The name asked for.
        name: String,
        /// Those of its layers.
        names: String,
    },

    /// There is no gradient for a parameter to train.
    #[error("there is no gradient for parameter {0:?}: compute those of all that are trained")]
    NoGradient(String),

    /// The gradients of a compiled network were needed too late.
    #[error(
        "the gradients cannot be computed any more, because the parameters were changed since: \
         look at gradients before you change parameters"
    )]
    StaleGradients,

    /// The moments of an optimizer are not those of its rule.
    #[error(
        "the optimizer's rule keeps the moments [{expected}], but those given are [{found}]: give \
         it the rule that they come from"
    )]
    Moments {
        /// The names of the rule's moments.
        expected: String,
        /// The names of the moments given.
        found: String,
    },

    /// A network has operations other than this crate's layers.
    #[error(
        "the network has tensor operations besides this crate's layers, and nothing else can be \
         exported: join branches with `add` or `concatenate`, and keep other operations out of it"
    )]
    ForeignOperation,

    /// A file of parameters cannot be loaded.
    #[error("cannot load parameters from {}: {source}", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Cause,
    },

    /// A file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Save {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },

    /// Something cannot be shown in a notebook.
    #[error(transparent)]
    Display(#[from] notebook_display::Error),

    /// An error of a crate that builds on this one; [`downcast_ref`](Error::downcast_ref)
    /// recovers it.
    #[error(transparent)]
    Other(Cause),
}

impl Error {
    /// Wraps an error of a crate that builds on this one, so that all share one [`Result`].
    pub fn other(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Error::Other(Box::new(error))
    }

    /// The error that [`other`](Error::other) wrapped, if it is of this type.
    pub fn downcast_ref<E: std::error::Error + 'static>(&self) -> Option<&E> {
        match self {
            Error::Other(error) => error.downcast_ref(),
            _ => None,
        }
    }

    /// Makes an [`Error::Save`] for `path`; for `map_err`.
    pub fn save(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Error::Save { path, source }
    }

    /// An [`Error::Shape`] for a tensor of the wrong shape.
    pub fn shape(what: &'static str, expected: impl Into<String>, tensor: &Tensor) -> Self {
        Error::Shape { what, expected: expected.into(), found: tensor.dims().to_vec() }
    }

    /// An [`Error::DType`] for a tensor of the wrong element type.
    pub fn dtype(what: &'static str, expected: &'static str, tensor: &Tensor) -> Self {
        Error::DType { what, expected, found: tensor.dtype().as_str().into() }
    }
}

fn gigabytes(bytes: usize) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// Which side of a layer to convert: the one that is not f32, else the input.
fn advice_on_types(input: DType, params: DType) -> String {
    let (side, dtype) = if input == DType::F32 { ("parameters", input) } else { ("input", params) };
    format!("convert the {side} with `to_dtype(DType::{dtype:?})?`")
}

/// The likely reason why a parameter is missing, and what to do.
fn advice_on_names(path: &str, known: &str) -> String {
    let dotted = path.replace('/', ".");
    let has = |last| known.split(", ").any(|name| name.rsplit(['/', '.']).next() == Some(last));
    match known.split(", ").find(|name| *name == dotted || name.ends_with(&format!(".{dotted}"))) {
        Some(name) => format!(
            "here {name:?} may be the one: its parts are separated by dots, and those of Flax by \
             slashes; rename it to {path:?}, and the others alike"
        ),
        None if has("weight") && !has("kernel") => format!(
            "these look like PyTorch's names, and Flax's are expected, such as {path:?}; kernels \
             are [height, width, in, out] instead of [out, in, height, width], and [in, out] \
             instead of [out, in], with a `flatten` of [height, width, channels] before them"
        ),
        None => "the parameters come from another network; call `init` on this one, \
                 `init_variables` if it has batch norm"
            .into(),
    }
}

/// The likely reason why a parameter does not have the expected shape, and what to do.
fn advice_on_shapes(expected: &[usize], found: &[usize]) -> String {
    let sample = "call `init` with a sample of the shape you train on";
    match (expected, found) {
        (&[height, width, inputs, outputs], _) if found == [outputs, inputs, height, width] => {
            "it looks like PyTorch's layout, [out, in, height, width]: use `permute((2, 3, 1, 0))`"
                .into()
        }
        (&[inputs, outputs], _) if found == [outputs, inputs] => {
            "it looks like PyTorch's layout, [out, in]: transpose it, and, after a `flatten`, \
             reorder its inputs from [channels, height, width] to [height, width, channels]"
                .into()
        }
        (&[height, width, inputs, outputs], &[_, _, known, _])
            if found == [height, width, known, outputs] =>
        {
            format!(
                "the input has {inputs} channels where the parameter has {known}: images are \
                 [B, height, width, channels], and `permute` moves the channels to the end"
            )
        }
        _ => sample.into(),
    }
}

/// The short name of a device: `cpu`, `cuda:0`, `metal:0`.
pub fn device_name(location: DeviceLocation) -> String {
    match location {
        DeviceLocation::Cpu => "cpu".into(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// What a CUDA error means and what to do, in one line.
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

/// Wraps an error of ours, to return it from a candle operation.
pub(crate) fn through_candle(error: impl Into<Error>) -> Candle {
    Candle::Io(std::io::Error::other(error.into()))
}

/// Keeps only the message of candle's errors: a backtrace means nothing to the reader of a
/// notebook. Unwraps errors of ours that candle passed on.
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
                Error::DTypeMismatch { op, one: lhs.as_str(), other: rhs.as_str() }
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
    fn cuda_errors_become_one_line_of_advice() {
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
    fn the_source_of_an_error_is_its_cause() {
        let cause = || std::io::Error::other("no disk");
        let file = || crate::files::FileError::from(cause());
        let sources = |error: Error| {
            let first = std::error::Error::source(&error);
            let causes = std::iter::successors(first, |error| error.source());
            causes.map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(sources(Error::save("a")(cause())), ["no disk"]);
        let unreadable = "it cannot be read (no disk)";
        let load = Error::Load { path: "a".into(), source: file().into() };
        assert_eq!(sources(load), [unreadable, "no disk"]);
        // The error of another crate stands for itself.
        assert_eq!(sources(Error::other(file())), ["no disk"]);
        assert_eq!(Error::other(file()).to_string(), unreadable);
    }

    #[test]
    fn our_errors_pass_through_candle_unchanged() {
        let error = through_candle(Error::NoParams).bt();
        assert!(matches!(Error::from(error), Error::NoParams));
        let error = Candle::Io(std::io::ErrorKind::NotFound.into());
        assert!(matches!(Error::from(error), Error::Tensor(_)));
    }

    /// Made by hand, because without a GPU there is only one device.
    #[test]
    fn a_device_mismatch_names_both_devices() {
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
