//! Errors.

use cpu_kernels::KernelError;

/// Why something cannot be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Error {
    /// The kernels refuse their input.
    Kernel(KernelError),
    /// A file is not what MNIST stores.
    Dataset(&'static str),
    /// A saved state is not one of this program.
    State(&'static str),
    /// The learning rate is not a positive number.
    LearningRate(f64),
}

/// The result of the fallible functions of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kernel(error) => error.fmt(f),
            Self::Dataset(reason) => write!(f, "not a data set of MNIST: {reason}"),
            Self::State(reason) => write!(f, "not a saved training: {reason}"),
            Self::LearningRate(rate) => write!(f, "a learning rate must be positive, not {rate}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<KernelError> for Error {
    fn from(error: KernelError) -> Self {
        Self::Kernel(error)
    }
}
