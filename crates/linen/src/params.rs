//! The weights of a network, apart from its code.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};

use notebook_display::grouped;

use crate::error::{Error, Result};
use crate::files;

/// The parameters of a network: paths such as `Conv_0/kernel`, in alphabetical order as in JAX,
/// to variables.
///
/// Paths, shapes and layouts are Flax's: convolution kernels are `[height, width, in, out]`, dense
/// kernels `[in, out]`, so that parameters pass to and from Flax unchanged.
///
/// There is no `Clone`, because variables are shared, not copied, by it; [`copy`](Params::copy)
/// says what happens.
#[derive(Default)]
pub struct Params {
    vars: BTreeMap<String, Var>,
}

impl Params {
    /// The variable of a path, if there is one.
    pub fn get(&self, path: &str) -> Option<&Var> {
        self.vars.get(path)
    }

    /// All paths and variables, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.vars.iter().map(|(path, var)| (path.as_str(), var))
    }

    /// All paths, in alphabetical order.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.vars.keys().map(String::as_str)
    }

    /// All variables, in the order of [`iter`](Params::iter): what every `candle_nn` optimizer
    /// takes.
    pub fn vars(&self) -> Vec<Var> {
        self.vars.values().cloned().collect()
    }

    /// How many variables there are.
    pub fn len(&self) -> usize {
        self.vars.len()
    }

    /// Whether there is no variable at all.
    pub fn is_empty(&self) -> bool {
        self.vars.is_empty()
    }

    /// How many numbers all variables hold together.
    pub fn count(&self) -> usize {
        self.vars.values().map(|var| var.elem_count()).sum()
    }

    /// The device of the parameters; the CPU if there are none.
    pub fn device(&self) -> &Device {
        self.vars.values().next().map_or(&Device::Cpu, |var| var.device())
    }

    /// A copy with variables of its own: training one leaves the other as it is.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the device has no room for it.
    pub fn copy(&self) -> Result<Params> {
        self.map(|var| var.as_tensor().copy())
    }

    /// A copy with another element type, such as `DType::F64` for checking a computation.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the device cannot convert.
    pub fn to_dtype(&self, dtype: DType) -> Result<Params> {
        self.map(|var| var.as_tensor().to_dtype(dtype)?.copy())
    }

    /// A copy on another device.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the device has no room for it.
    pub fn to_device(&self, device: &Device) -> Result<Params> {
        self.map(|var| var.as_tensor().to_device(device)?.copy())
    }

    /// Parameters of the same paths and shapes, all zero: where momentum starts.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the device has no room for it.
    pub fn zeros_like(&self) -> Result<Params> {
        self.map(|var| var.zeros_like())
    }

    /// Writes the parameters to a safetensors file under their paths.
    ///
    /// The file appears when all of it is on the disk; what had its name before stays until then.
    ///
    /// # Errors
    /// [`Error::Save`] if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        files::write(path.as_ref(), &self.to_bytes()?)
    }

    /// The content of such a file.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the device does not hand out the parameters.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let tensors =
            self.iter().map(|(path, var)| (path.to_owned(), var.as_detached_tensor())).collect();
        files::to_bytes(BTreeMap::new(), &tensors)
    }

    /// Reads parameters from a safetensors file, one written by [`save`](Params::save) or by Flax
    /// with the paths as names.
    ///
    /// # Errors
    /// [`Error::Load`] if the file is missing, is not a safetensors file, or is damaged, which
    /// every flipped bit of a file written by [`save`](Params::save) shows.
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Params> {
        files::load(path.as_ref(), |file| Ok(file.tensors("", device)?.try_into()?))
    }

    /// Adds a variable.
    ///
    /// # Errors
    /// [`Error::DuplicateParam`] if the path is taken.
    pub(crate) fn insert(&mut self, path: String, value: &Tensor) -> Result<()> {
        if self.vars.contains_key(&path) {
            return Err(Error::DuplicateParam(path));
        }
        self.vars.insert(path, Var::from_tensor(value)?);
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

impl TryFrom<Vec<(String, Tensor)>> for Params {
    type Error = Error;

    fn try_from(tensors: Vec<(String, Tensor)>) -> Result<Params> {
        let mut params = Params::default();
        for (path, tensor) in tensors {
            params.insert(path, &tensor.detach())?;
        }
        Ok(params)
    }
}

/// One line per parameter: path, shape and element type.
impl std::fmt::Debug for Params {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (path, var) in self.iter() {
            writeln!(f, "{path}: {:?} {}", var.dims(), var.dtype().as_str())?;
        }
        write!(f, "{} parameters", grouped(&self.count().to_string()))
    }
}
