//! Names, keys and parameters of a module's layers.

use std::collections::HashMap;

use candle_core::{DType, Device, Shape, Tensor};
use sha1::{Digest, Sha1};

use crate::error::{Error, Result};
use crate::initializers::{lecun_normal, ones, zeros};
use crate::params::Params;
use crate::random::Key;
use crate::variables::Variables;
use crate::{layers, memory};

/// A module's position in the module tree: names layers, and creates or looks up parameters.
///
/// # Source
/// `flax.core.Scope`, as a compact Linen module uses it.
pub struct Scope<'a> {
    path: Vec<String>,
    mode: Mode<'a>,
    /// The number of children of each kind so far.
    children: HashMap<&'static str, usize>,
    /// The number of parameters of this scope so far.
    num_params: u32,
}

enum Mode<'a> {
    /// Creates parameters and running statistics.
    Init { key: Key, variables: &'a mut Variables },
    /// For networks that behave the same in training and evaluation.
    Apply { params: &'a Params },
    /// Batch norm uses batch statistics and adds updated ones to `batch_stats`; dropout is on.
    Train { variables: &'a Variables, dropout_key: Key, batch_stats: &'a mut Params },
    /// Batch norm uses the running statistics; dropout is off.
    Eval { variables: &'a Variables },
}

/// The share of the running statistics that each step keeps, Flax's default.
const MOMENTUM: f64 = 0.99;

impl<'a> Scope<'a> {
    pub(crate) fn init(key: Key, variables: &'a mut Variables) -> Self {
        Self::new(Vec::new(), Mode::Init { key, variables })
    }

    pub(crate) fn apply(params: &'a Params) -> Self {
        Self::new(Vec::new(), Mode::Apply { params })
    }

    pub(crate) fn train(
        variables: &'a Variables,
        dropout_key: Key,
        batch_stats: &'a mut Params,
    ) -> Self {
        Self::new(Vec::new(), Mode::Train { variables, dropout_key, batch_stats })
    }

    pub(crate) fn eval(variables: &'a Variables) -> Self {
        Self::new(Vec::new(), Mode::Eval { variables })
    }

    fn new(path: Vec<String>, mode: Mode<'a>) -> Self {
        Scope { path, mode, children: HashMap::new(), num_params: 0 }
    }

    /// A 2-D convolution with bias, stride 1 and `SAME` zero padding.
    ///
    /// # Shapes
    /// - `x`: `[B, H, W, C]`
    /// - kernel: `[kernel_size.0, kernel_size.1, C, features]`, bias: `[features]`
    /// - result: `[B, H, W, features]`
    ///
    /// # Errors
    /// [`Error::Shape`] unless `x` has four dimensions; [`Error::Hyperparameter`] for 0 features or
    /// an empty kernel.
    ///
    /// # Source
    /// `flax.linen.Conv(features, kernel_size)(x)`: a cross-correlation, as everywhere in deep
    /// learning.
    pub fn conv(
        &mut self,
        features: usize,
        kernel_size: (usize, usize),
        x: &Tensor,
    ) -> Result<Tensor> {
        check_positive("features", features)?;
        check_positive("kernel height", kernel_size.0)?;
        check_positive("kernel width", kernel_size.1)?;
        let &[_, _, _, channels] = x.dims() else {
            return Err(Error::shape("conv input", "[B, height, width, channels]", x));
        };
        let mut nn = self.sub_scope("Conv");
        let (height, width) = kernel_size;
        let kernel = nn.param("kernel", (height, width, channels, features), x, lecun_normal)?;
        let bias = nn.param("bias", features, x, zeros)?;
        layers::conv(x, &kernel, &bias, &nn.path())
    }

    /// A dense (fully connected) layer with bias: `x · kernel + bias`.
    ///
    /// # Shapes
    /// - `x`: `[B, C]`
    /// - kernel: `[C, features]`, bias: `[features]`
    /// - result: `[B, features]`
    ///
    /// # Errors
    /// [`Error::Shape`] unless `x` has two dimensions ([`flatten`](crate::flatten) images first);
    /// [`Error::Hyperparameter`] for 0 features.
    ///
    /// # Source
    /// `flax.linen.Dense(features)(x)`.
    pub fn dense(&mut self, features: usize, x: &Tensor) -> Result<Tensor> {
        check_positive("features", features)?;
        let &[_, inputs] = x.dims() else {
            let expected = "[B, features]; call `flatten` before the first dense layer";
            return Err(Error::shape("dense input", expected, x));
        };
        let mut nn = self.sub_scope("Dense");
        let kernel = nn.param("kernel", (inputs, features), x, lecun_normal)?;
        let bias = nn.param("bias", features, x, zeros)?;
        layers::dense(x, &kernel, &bias, &nn.path())
    }

    /// Batch norm: normalizes each channel to mean 0 and variance 1, then applies a learned scale
    /// and bias: `(x - mean) / sqrt(var + 1e-5) · scale + bias`.
    ///
    /// In [training](crate::Module::apply_train) the mean and (biased) variance are those of the
    /// batch, over all dimensions but the last, and the running statistics become
    /// `0.99 · running + 0.01 · batch`. In [evaluation](crate::Module::apply_eval) the running
    /// statistics are used.
    ///
    /// # Shapes
    /// - `x`: `[B, …, C]`
    /// - scale, bias, running mean and var: `[C]`
    /// - result: as `x`
    ///
    /// # Errors
    /// [`Error::Shape`] unless `x` has at least two dimensions and is not empty;
    /// [`Error::Mode`] under [`apply`](crate::Module::apply).
    ///
    /// # Source
    /// `flax.linen.BatchNorm(use_running_average=not train)(x)`; S. Ioffe, C. Szegedy, *Batch
    /// normalization*, 2015.
    pub fn batch_norm(&mut self, x: &Tensor) -> Result<Tensor> {
        let &[_, .., features] = x.dims() else {
            return Err(wrong_batch_norm_input(x));
        };
        if x.elem_count() == 0 {
            return Err(wrong_batch_norm_input(x));
        }
        let mut nn = self.sub_scope("BatchNorm");
        let scale = nn.param("scale", features, x, ones)?;
        let bias = nn.param("bias", features, x, zeros)?;
        let running_mean = nn.batch_stat("mean", features, x, zeros)?;
        let running_var = nn.batch_stat("var", features, x, ones)?;
        let path = nn.path();
        let Mode::Train { batch_stats, .. } = &mut nn.mode else {
            let statistics = (&running_mean, &running_var);
            return layers::batch_norm_eval(x, &scale, &bias, statistics, &path);
        };
        let (y, mean, var) = layers::batch_norm_train(x, &scale, &bias, &path)?;
        for (name, running, batch) in [("mean", running_mean, mean), ("var", running_var, var)] {
            let updated = ((running * MOMENTUM)? + (batch * (1.0 - MOMENTUM))?)?;
            batch_stats.insert(format!("{path}/{name}"), &updated)?;
        }
        Ok(y)
    }

    /// Dropout: in [training](crate::Module::apply_train), sets each value to 0 with probability
    /// `rate` and divides the others by `1 - rate`, which keeps the mean. In
    /// [evaluation](crate::Module::apply_eval), returns the input.
    ///
    /// # Shapes
    /// - `x`: any shape
    /// - result: as `x`
    ///
    /// # Errors
    /// [`Error::Hyperparameter`] unless `0 <= rate < 1`; [`Error::Mode`] under
    /// [`apply`](crate::Module::apply).
    ///
    /// # Source
    /// `flax.linen.Dropout(rate, deterministic=not train)(x)`, which drops the same values for the
    /// same key; N. Srivastava et al., *Dropout*, 2014.
    pub fn dropout(&mut self, rate: f64, x: &Tensor) -> Result<Tensor> {
        if !(0.0..1.0).contains(&rate) {
            let allowed = "dropout leaves something over for 0 <= rate < 1";
            return Err(Error::Hyperparameter { name: "rate", value: rate, allowed });
        }
        let nn = self.sub_scope("Dropout");
        let key = match nn.mode {
            Mode::Apply { .. } => return Err(Error::Mode { layer: nn.path() }),
            Mode::Train { dropout_key, .. } if rate > 0.0 => {
                Some(fold_in_path(dropout_key, &nn.path, 1))
            }
            _ => None,
        };
        layers::dropout(x, key, rate, &nn.path())
    }

    /// A parameter of this scope: created by `initializer` in `init`, looked up in `apply`.
    ///
    /// `like` is any tensor on the parameter's device, usually the input.
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
        shape: impl Into<Shape>,
        like: &Tensor,
        initializer: impl Fn(Key, &Shape, &Device) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let shape = shape.into();
        self.num_params += 1;
        let path = self.path_of(name);
        let params = match &mut self.mode {
            Mode::Init { key, variables } => {
                let key = fold_in_path(*key, &self.path, self.num_params);
                // Three copies: the random numbers, the scaled ones, and the variable.
                let copies = [shape.dims(), &[3]].concat();
                memory::check("making a parameter", &copies, DType::F32, like.device())?;
                let value = initializer(key, &shape, like.device())?;
                variables.params.insert(path, &value)?;
                return Ok(value);
            }
            Mode::Apply { params } => params,
            Mode::Train { variables, .. } | Mode::Eval { variables } => &variables.params,
        };
        lookup(params, path, shape)
    }

    /// A running statistic of this scope: created in `init`, looked up in `apply_train` and
    /// `apply_eval`. Unlike a parameter, it does not advance the keys.
    fn batch_stat(
        &mut self,
        name: &str,
        shape: impl Into<Shape>,
        like: &Tensor,
        initial: impl Fn(Key, &Shape, &Device) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (shape, path) = (shape.into(), self.path_of(name));
        match &mut self.mode {
            Mode::Init { key, variables } => {
                let value = initial(*key, &shape, like.device())?;
                variables.batch_stats.insert(path, &value)?;
                Ok(value)
            }
            Mode::Apply { .. } => Err(Error::Mode { layer: self.path() }),
            Mode::Train { variables, .. } | Mode::Eval { variables } => {
                Ok(lookup(&variables.batch_stats, path, shape)?.detach())
            }
        }
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
            Mode::Train { variables, dropout_key, batch_stats } => {
                Mode::Train { variables, dropout_key: *dropout_key, batch_stats }
            }
            Mode::Eval { variables } => Mode::Eval { variables },
        };
        Scope::new(path, mode)
    }

    fn path(&self) -> String {
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
    Ok(var.as_tensor().clone())
}

fn wrong_batch_norm_input(x: &Tensor) -> Error {
    Error::shape("batch_norm input", "[B, …, features], none of them 0", x)
}

/// The key of a scope's `count`-th parameter, derived as in `flax.core.scope.LazyRng`: folds in
/// the first four bytes of a SHA-1 of the path's names and the count.
fn fold_in_path(key: Key, path: &[String], count: u32) -> Key {
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

fn check_positive(name: &'static str, value: usize) -> Result<()> {
    if value > 0 {
        return Ok(());
    }
    Err(Error::Hyperparameter { name, value: 0.0, allowed: "it must be at least 1" })
}
