//! The parameters of a network, stored apart from its code.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};

use notebook_display::grouped;

use crate::error::{Cause, Error, Result};
use crate::files::{self, TensorFile};
use crate::lazy;
use crate::tensor_ids::ensure_fresh_ids;

/// Name prefix of parameters in a file of several collections.
pub(crate) const PARAMS: &str = "params/";

/// The parameters of a network: a map from paths such as `Conv_0/kernel` to variables, in
/// alphabetical order as in JAX.
///
/// Paths, shapes and layouts are Flax's (convolution kernels are `[height, width, in, out]`, dense
/// kernels `[in, out]`), so parameters can be exchanged with Flax unchanged.
///
/// There is no `Clone`, because cloning a variable shares it; use [`copy`](Params::copy).
#[derive(Default)]
pub struct Params {
    vars: BTreeMap<String, Var>,
}

impl Params {
    /// The variable with this path, if there is one.
    pub fn get(&self, path: &str) -> Option<&Var> {
        self.prepare();
        self.vars.get(path)
    }

    /// All paths and variables, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.prepare();
        self.vars.iter().map(|(path, var)| (path.as_str(), var))
    }

    /// All paths, in alphabetical order.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.vars.keys().map(String::as_str)
    }

    /// All variables, in the order of [`iter`](Params::iter), for the optimizers of `candle_nn`.
    pub fn vars(&self) -> Vec<Var> {
        self.prepare();
        self.vars.values().cloned().collect()
    }

    /// Makes sure that autograd does not take a new tensor for one of the variables, which may
    /// come from another notebook cell. Every way to get at the variables does so by itself.
    pub fn ensure_fresh_ids(&self) {
        ensure_fresh_ids(self.vars.values().map(Var::as_tensor));
    }

    /// All paths and variables, for somebody who looks at shapes only: gradients go on waiting.
    pub(crate) fn shapes(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.vars.iter().map(|(path, var)| (path.as_str(), var))
    }

    /// Prepares for the variables to be looked at, and maybe changed.
    fn prepare(&self) {
        self.ensure_fresh_ids();
        lazy::settle_all();
    }

    /// The number of variables.
    pub fn len(&self) -> usize {
        self.vars.len()
    }

    /// Whether there are no variables.
    pub fn is_empty(&self) -> bool {
        self.vars.is_empty()
    }

    /// The number of scalar parameters: the elements of all variables.
    pub fn elem_count(&self) -> usize {
        self.vars.values().map(|var| var.elem_count()).sum()
    }

    /// The device of the parameters; the CPU if there are none.
    pub fn device(&self) -> &Device {
        self.vars.values().next().map_or(&Device::Cpu, |var| var.device())
    }

    /// A deep copy: training one does not change the other.
    ///
    /// # Errors
    /// [`Error::Tensor`] or [`Error::Gpu`] if the device is out of memory.
    pub fn copy(&self) -> Result<Params> {
        self.map(|var| var.as_tensor().copy())
    }

    /// A copy with another element type, such as `DType::F64` to check a computation.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the device does not support the conversion.
    pub fn to_dtype(&self, dtype: DType) -> Result<Params> {
        self.map(|var| var.as_tensor().to_dtype(dtype)?.copy())
    }

    /// A copy on another device.
    ///
    /// # Errors
    /// [`Error::Tensor`] or [`Error::Gpu`] if the device is out of memory.
    pub fn to_device(&self, device: &Device) -> Result<Params> {
        self.map(|var| var.as_tensor().to_device(device)?.copy())
    }

    /// Zeros with the same paths and shapes, as an optimizer's moments at first.
    ///
    /// # Errors
    /// [`Error::Tensor`] or [`Error::Gpu`] if the device is out of memory.
    pub fn zeros_like(&self) -> Result<Params> {
        self.map(|var| var.zeros_like())
    }

    /// Writes the parameters to a safetensors file, named by path.
    ///
    /// The write is atomic: an existing file stays until the new one is complete.
    ///
    /// # Errors
    /// [`Error::Save`] if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        files::write(path.as_ref(), &self.to_bytes()?)
    }

    /// The content of the file that [`save`](Params::save) writes.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the parameters cannot be copied from the device.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        files::to_bytes(BTreeMap::new(), &self.tensors("").collect())
    }

    /// All values, detached, with `prefix` before their paths: a part of a file's content.
    pub fn tensors(&self, prefix: &str) -> impl Iterator<Item = (String, Tensor)> {
        self.iter().map(move |(path, var)| (format!("{prefix}{path}"), var.as_detached_tensor()))
    }

    /// Reads parameters from a safetensors file written by [`save`](Params::save), or by Flax with
    /// the paths as names: `Conv_0/kernel` or `Conv_0.kernel`, all of them with `params` in front,
    /// or none.
    ///
    /// # Errors
    /// [`Error::Load`] if the file is missing, is not a safetensors file, is damaged, or holds more
    /// than parameters, as a checkpoint does. Files written by [`save`](Params::save) have a
    /// checksum, which detects every flipped bit.
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Params> {
        files::load(path.as_ref(), |file| from_file(file, device))
    }

    /// The paths in one line, for error messages.
    pub(crate) fn joined_paths(&self) -> String {
        self.paths().collect::<Vec<_>>().join(", ")
    }

    /// These variables themselves, not copies.
    pub(crate) fn from_vars(vars: impl IntoIterator<Item = (String, Var)>) -> Params {
        Params { vars: vars.into_iter().collect() }
    }

    /// Adds a variable.
    ///
    /// # Errors
    /// [`Error::DuplicateParam`] if the path is taken.
    pub(crate) fn insert(&mut self, path: String, value: &Tensor) -> Result<()> {
        if self.vars.contains_key(&path) {
            return Err(Error::DuplicateParam(path));
        }
        // Detached, because a variable would be shared with the network that it comes from.
        self.vars.insert(path, Var::from_tensor(&value.detach())?);
        Ok(())
    }

    fn map(&self, f: impl Fn(&Var) -> candle_core::Result<Tensor>) -> Result<Params> {
        let mut params = Params::default();
        for (path, var) in self.iter() {
            params.insert(path.to_owned(), &f(var)?)?;
        }
        Ok(params)
    }
}

fn from_file(file: &TensorFile, device: &Device) -> Result<Params, Cause> {
    let is_param = |name: &&str| name.starts_with(PARAMS);
    let other = file.names().find(|name| !is_param(name));
    let prefix = match (file.names().find(is_param), other) {
        (Some(_), Some(other)) => {
            return Err(format!(
                "it holds not only parameters, but also {other:?}: `Variables::load` reads a file \
                 with batch_stats, `Checkpoints::load` a checkpoint"
            )
            .into());
        }
        (Some(_), None) => PARAMS,
        (None, _) => "",
    };
    Ok(file.tensors(prefix, device)?.try_into()?)
}

impl TryFrom<Vec<(String, Tensor)>> for Params {
    type Error = Error;

    fn try_from(tensors: Vec<(String, Tensor)>) -> Result<Params> {
        let mut params = Params::default();
        for (path, tensor) in tensors {
            params.insert(path, &tensor)?;
        }
        Ok(params)
    }
}

impl<const N: usize> TryFrom<[(&str, Tensor); N]> for Params {
    type Error = Error;

    fn try_from(tensors: [(&str, Tensor); N]) -> Result<Params> {
        Vec::from(tensors.map(|(path, tensor)| (path.to_owned(), tensor))).try_into()
    }
}

/// The same paths, shapes and values, bit for bit but for the sign of zero. NaN differs from all.
impl PartialEq for Params {
    fn eq(&self, other: &Params) -> bool {
        let is_same = |a: &Tensor, b: &Tensor| -> candle_core::Result<bool> {
            let differences = a.ne(b)?.to_dtype(DType::U32)?.flatten_all()?;
            Ok(differences.elem_count() == 0 || differences.max(0)?.to_scalar::<u32>()? == 0)
        };
        self.len() == other.len()
            && self.iter().zip(other.iter()).all(|((path, a), (other, b))| {
                path == other
                    && a.dims() == b.dims()
                    && a.dtype() == b.dtype()
                    && is_same(a, b).unwrap_or(false)
            })
    }
}

/// One line per parameter: path, shape and element type.
impl std::fmt::Debug for Params {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (path, var) in self.iter() {
            writeln!(f, "{path}: {:?} {}", var.dims(), var.dtype().as_str())?;
        }
        write!(f, "{} parameters", grouped(&self.elem_count().to_string()))
    }
}
