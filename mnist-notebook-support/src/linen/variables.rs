//! All that a network with batch norm keeps: what it learns, and what it measures.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;

use super::Params;
use crate::tensor_file::{self, DAMAGED, TensorFile};
use crate::{Error, Result, atomic};

/// How the names of parameters begin in a file.
const PARAMS: &str = "params/";
/// How the names of running statistics begin in a file.
const BATCH_STATS: &str = "batch_stats/";

/// The parameters of a network and the running statistics of its batch norms, two collections.
///
/// An optimizer changes the parameters; training passes the statistics on from step to step.
///
/// # Source
/// The `variables` of a Flax module with its collections `params` and `batch_stats`.
#[derive(Default, Debug)]
pub struct Variables {
    /// What is learnt, such as `BatchNorm_0/scale`.
    pub params: Params,
    /// What is measured, `BatchNorm_0/mean` and `BatchNorm_0/var`; empty without batch norm.
    pub batch_stats: Params,
}

impl Variables {
    /// A copy with variables of its own: training one leaves the other as it is.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the device has no room for it.
    pub fn copy(&self) -> Result<Variables> {
        Ok(Variables { params: self.params.copy()?, batch_stats: self.batch_stats.copy()? })
    }

    /// Writes both collections to a safetensors file, under `params/…` and `batch_stats/…` as Flax
    /// names them.
    ///
    /// The file appears when all of it is on the disk; what had its name before stays until then.
    ///
    /// # Errors
    /// [`Error::Save`] if the file cannot be written.
    ///
    /// # Examples
    /// ```
    /// use mnist_notebook_support::prelude::*;
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let path = folder.path().join("best.safetensors");
    ///
    /// let sample = Tensor::ones((1, 28, 28, 1), DType::F32, &Device::Cpu)?;
    /// let variables = Cnn.init_variables(Key::new(0), &sample)?;
    /// variables.save(&path)?;
    /// let same = Variables::load(&path, &Device::Cpu)?;
    /// assert_eq!(same.params.count(), 824_458);
    /// # Ok::<(), mnist_notebook_support::Error>(())
    /// ```
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut tensors = BTreeMap::new();
        for (prefix, params) in [(PARAMS, &self.params), (BATCH_STATS, &self.batch_stats)] {
            for (path, var) in params.iter() {
                tensors.insert(format!("{prefix}{path}"), var.as_detached_tensor());
            }
        }
        let content = tensor_file::to_bytes(BTreeMap::new(), &tensors)?;
        atomic::write(path.as_ref(), &content).map_err(Error::save(path.as_ref()))
    }

    /// Reads what [`save`](Variables::save) wrote, or Flax under the same names.
    ///
    /// # Errors
    /// [`Error::Load`] if the file is missing, is not a safetensors file, is damaged, or holds no
    /// variables.
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Variables> {
        let path = path.as_ref();
        read(path, device).map_err(|problem| Error::Load { path: path.to_owned(), problem })
    }
}

fn read(path: &Path, device: &Device) -> Result<Variables, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("it cannot be read ({error})"))?;
    let file = TensorFile::parse(&bytes)?;
    // A file that Flax wrote has no sum.
    if file.is_intact() == Some(false) {
        return Err(DAMAGED.into());
    }
    let collection = |prefix| file.params(prefix, device).map_err(|error| error.to_string());
    let variables =
        Variables { params: collection(PARAMS)?, batch_stats: collection(BATCH_STATS)? };
    if variables.params.is_empty() {
        return Err(format!("it has nothing under `{PARAMS}`: `Variables::save` did not write it"));
    }
    Ok(variables)
}
