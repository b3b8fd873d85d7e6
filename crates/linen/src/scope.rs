//! Names, keys and parameters of a module.

use std::collections::HashMap;

use candle_core::{Device, Shape, Tensor};
use sha1::{Digest, Sha1};

use crate::error::{Error, Result};
use crate::no_grad::is_tracking;
use crate::params::Params;
use crate::random::Key;
use crate::variables::Variables;

/// A module's position in the module tree: names layers, and creates or looks up parameters.
///
/// # Source
/// `flax.core.Scope`, as a compact Linen module uses it.
pub struct Scope<'a> {
    pub(crate) path: Vec<String>,
    pub(crate) mode: Mode<'a>,
    /// The number of children of each kind so far.
    children: HashMap<&'static str, usize>,
    /// The number of parameters of this scope so far.
    num_params: u32,
}

pub(crate) enum Mode<'a> {
    /// Creates parameters and running statistics.
    Init { key: Key, variables: &'a mut Variables },
    /// For networks that behave the same in training and evaluation.
    Apply { params: &'a Params },
    /// Batch norm uses the batch's statistics; dropout is on.
    Train {
        params: &'a Params,
        batch_stats: &'a Params,
        dropout_key: Key,
        /// Where batch norm adds updated running statistics.
        updates: &'a mut Params,
    },
    /// Batch norm uses the running statistics; dropout is off.
    Eval { params: &'a Params, batch_stats: &'a Params },
}

impl<'a> Scope<'a> {
    pub(crate) fn init(key: Key, variables: &'a mut Variables) -> Self {
        Self::new(Vec::new(), Mode::Init { key, variables })
    }

    pub(crate) fn apply(params: &'a Params) -> Self {
        Self::new(Vec::new(), Mode::Apply { params })
    }

    pub(crate) fn train(
        params: &'a Params,
        batch_stats: &'a Params,
        dropout_key: Key,
        updates: &'a mut Params,
    ) -> Self {
        Self::new(Vec::new(), Mode::Train { params, batch_stats, dropout_key, updates })
    }

    pub(crate) fn eval(params: &'a Params, batch_stats: &'a Params) -> Self {
        Self::new(Vec::new(), Mode::Eval { params, batch_stats })
    }

    fn new(path: Vec<String>, mode: Mode<'a>) -> Self {
        Scope { path, mode, children: HashMap::new(), num_params: 0 }
    }

    /// A parameter of this scope: created by `initializer` in `init`, looked up in `apply`.
    ///
    /// Its device is usually that of the input.
    ///
    /// # Errors
    /// [`Error::DuplicateParam`] for a name used twice in `init`; [`Error::MissingParam`] and
    /// [`Error::ParamShape`] in `apply` if the parameters belong to another network;
    /// [`Error::Memory`] if it does not fit in memory; those of the initializer.
    ///
    /// # Source
    /// `flax.linen.Module.param`. The key is derived exactly as in Linen: the init key folded with
    /// a SHA-1 of the path and the parameter's number within the scope.
    pub fn param(
        &mut self,
        name: &str,
        initializer: impl Fn(Key, &Shape, &Device) -> Result<Tensor>,
        shape: impl Into<Shape>,
        device: &Device,
    ) -> Result<Tensor> {
        let shape = shape.into();
        self.num_params += 1;
        let path = self.path_of(name);
        let params = match &mut self.mode {
            Mode::Init { key, variables } => {
                let key = fold_in_path(*key, &self.path, self.num_params);
                let value = initializer(key, &shape, device)?;
                variables.params.insert(path, &value)?;
                return Ok(value);
            }
            Mode::Apply { params } | Mode::Train { params, .. } | Mode::Eval { params, .. } => {
                params
            }
        };
        lookup(params, path, shape)
    }

    /// A running statistic of this scope: created in `init`, looked up in `apply_train` and
    /// `apply_eval`. Unlike a parameter, it does not advance the keys.
    pub(crate) fn batch_stat(
        &mut self,
        name: &str,
        initializer: impl Fn(Key, &Shape, &Device) -> Result<Tensor>,
        shape: impl Into<Shape>,
        device: &Device,
    ) -> Result<Tensor> {
        let (shape, path) = (shape.into(), self.path_of(name));
        match &mut self.mode {
            Mode::Init { key, variables } => {
                let value = initializer(*key, &shape, device)?;
                variables.batch_stats.insert(path, &value)?;
                Ok(value)
            }
            Mode::Apply { .. } => Err(Error::Mode { layer: self.path() }),
            Mode::Train { batch_stats, .. } | Mode::Eval { batch_stats, .. } => {
                Ok(lookup(batch_stats, path, shape)?.detach())
            }
        }
    }

    /// Checks that this layer's input has the element type of one of its parameters.
    ///
    /// # Errors
    /// [`Error::LayerDType`] otherwise: candle's error would name neither layer nor side.
    pub(crate) fn check_dtype(&self, x: &Tensor, param: &Tensor) -> Result<()> {
        let (input, params) = (x.dtype(), param.dtype());
        if input == params {
            return Ok(());
        }
        Err(Error::LayerDType { layer: self.path(), input, params })
    }

    /// The scope of the next child of a kind, `Conv_0`, `Conv_1`, ….
    pub(crate) fn sub_scope(&mut self, kind: &'static str) -> Scope<'_> {
        let count = self.children.entry(kind).or_default();
        let mut path = self.path.clone();
        path.push(format!("{kind}_{count}"));
        *count += 1;
        let mode = match &mut self.mode {
            Mode::Init { key, variables } => Mode::Init { key: *key, variables },
            Mode::Apply { params } => Mode::Apply { params },
            Mode::Train { params, batch_stats, dropout_key, updates } => {
                Mode::Train { params, batch_stats, dropout_key: *dropout_key, updates }
            }
            Mode::Eval { params, batch_stats } => Mode::Eval { params, batch_stats },
        };
        Scope::new(path, mode)
    }

    pub(crate) fn path(&self) -> String {
        self.path.join("/")
    }

    fn path_of(&self, name: &str) -> String {
        self.path.iter().map(String::as_str).chain([name]).collect::<Vec<_>>().join("/")
    }
}

/// The variable with this path, if it has this shape.
fn lookup(params: &Params, path: String, shape: Shape) -> Result<Tensor> {
    let Some(var) = params.get(&path) else {
        return Err(Error::MissingParam { path, known: params.joined_paths() });
    };
    if var.shape() != &shape {
        let (expected, found) = (shape.into_dims(), var.dims().to_vec());
        return Err(Error::ParamShape { path, expected, found });
    }
    Ok(if is_tracking() { var.as_tensor().clone() } else { var.as_detached_tensor() })
}

/// The key of a scope's `count`-th parameter, derived as in `flax.core.scope.LazyRng`: folds in
/// the first four bytes of a SHA-1 of the path's names and the count.
pub(crate) fn fold_in_path(key: Key, path: &[String], count: u32) -> Key {
    let mut hash = Sha1::new();
    for name in path {
        hash.update(name);
    }
    // Flax hashes integers as big-endian bytes without leading zeros.
    let bytes = count.to_be_bytes();
    hash.update(&bytes[count.leading_zeros() as usize / 8..]);
    let digest = hash.finalize();
    key.fold_in(u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]))
}
