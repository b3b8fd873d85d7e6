//! The state of a network with batch norm: parameters and running statistics.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Var};

use crate::error::{Cause, Result};
use crate::files::{self, TensorFile};
use crate::params::{PARAMS, Params};

/// Name prefix of running statistics in a file.
const BATCH_STATS: &str = "batch_stats/";

/// The parameters of a network and the running statistics of its batch norms.
///
/// The optimizer updates the parameters; training passes the statistics from step to step.
///
/// # Source
/// The `variables` of a Flax module with its collections `params` and `batch_stats`.
#[derive(Default, Debug)]
pub struct Variables {
    /// What is learned, such as `BatchNorm_0/scale`.
    pub params: Params,
    /// Running statistics such as `BatchNorm_0/mean`; empty without batch norm.
    pub batch_stats: Params,
}

impl Variables {
    /// A deep copy: training one does not change the other.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) or [`Error::Gpu`](crate::Error::Gpu) if the device
    /// is out of memory.
    pub fn copy(&self) -> Result<Variables> {
        Ok(Variables { params: self.params.copy()?, batch_stats: self.batch_stats.copy()? })
    }

    /// Writes both collections to a safetensors file, under Flax's names `params/…` and
    /// `batch_stats/…`.
    ///
    /// The write is atomic: an existing file stays until the new one is complete.
    ///
    /// # Errors
    /// [`Error::Save`](crate::Error::Save) if the file cannot be written.
    ///
    /// # Examples
    /// ```
    /// # use candle_core::{DType, Device, Tensor};
    /// use linen::{Key, Module, Result, Scope, Variables, flatten};
    ///
    /// struct Net;
    ///
    /// impl Module for Net {
    ///     fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
    ///         let x = nn.dense(64, flatten(x))?;
    ///         nn.batch_norm(x)
    ///     }
    /// }
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("best.safetensors");
    ///
    /// let sample = Tensor::ones((1, 28, 28, 1), DType::F32, &Device::Cpu)?;
    /// let variables = Net.init_variables(Key::new(0), &sample)?;
    /// variables.save(&path)?;
    /// let same = Variables::load(&path, &Device::Cpu)?;
    /// assert_eq!(same.params.elem_count(), 784 * 64 + 64 + 2 * 64);
    /// assert_eq!(same.batch_stats.elem_count(), 2 * 64);
    /// # Ok::<(), linen::Error>(())
    /// ```
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let tensors = self.params.tensors(PARAMS).chain(self.batch_stats.tensors(BATCH_STATS));
        files::write(path.as_ref(), &files::to_bytes(BTreeMap::new(), &tensors.collect())?)
    }

    /// Reads a file written by [`save`](Variables::save), or by Flax under the same names, with
    /// slashes or dots.
    ///
    /// # Errors
    /// [`Error::Load`](crate::Error::Load) if the file is missing, is not a safetensors file, is
    /// damaged, or holds no variables.
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Variables> {
        files::load(path.as_ref(), |file| from_file(file, device))
    }
}

/// What a network is [evaluated](crate::Module::apply_eval) with: [`Params`] or, if it has batch
/// norm or dropout, [`Variables`] or a [`TrainState`](crate::TrainState).
pub trait Evaluate {
    /// The parameters.
    fn params(&self) -> &Params;

    /// The running statistics of batch norm, maybe none. `None` if nothing says that the network is
    /// in evaluation mode: it must then be one without batch norm and dropout.
    fn batch_stats(&self) -> Option<&Params>;

    /// The parameter or running statistic with this path, if there is one.
    fn variable(&self, path: &str) -> Option<&Var> {
        self.params().get(path).or_else(|| self.batch_stats()?.get(path))
    }
}

impl Evaluate for Params {
    fn params(&self) -> &Params {
        self
    }

    fn batch_stats(&self) -> Option<&Params> {
        None
    }
}

impl Evaluate for Variables {
    fn params(&self) -> &Params {
        &self.params
    }

    fn batch_stats(&self) -> Option<&Params> {
        Some(&self.batch_stats)
    }
}

fn from_file(file: &TensorFile, device: &Device) -> Result<Variables, Cause> {
    let collection = |prefix| -> Result<Params> { file.tensors(prefix, device)?.try_into() };
    let variables =
        Variables { params: collection(PARAMS)?, batch_stats: collection(BATCH_STATS)? };
    if variables.params.is_empty() {
        let nothing = format!("it has nothing under `{PARAMS}`");
        return Err(format!("{nothing}: parameters alone are read by `Params::load`").into());
    }
    Ok(variables)
}
