//! Where a module's layers get their names, keys and parameters.

use std::collections::HashMap;

use candle_core::{DType, Device, Shape, Tensor};
use sha1::{Digest, Sha1};

use crate::error::{Error, Result};
use crate::initializers::{lecun_normal, ones, zeros};
use crate::params::Params;
use crate::random::Key;
use crate::variables::Variables;
use crate::{layers, memory};

/// The place of a module in the tree of modules: it names layers and makes or finds parameters.
///
/// # Source
/// `flax.core.Scope`, as a compact Linen module uses it.
pub struct Scope<'a> {
    path: Vec<String>,
    mode: Mode<'a>,
    /// How many children of each kind have been named.
    children: HashMap<&'static str, usize>,
    /// How many parameters have been made in this scope.
    num_params: u32,
}

enum Mode<'a> {
    /// Parameters and running statistics are made.
    Init { key: Key, variables: &'a mut Variables },
    /// For networks that are the same in training and in evaluation.
    Apply { params: &'a Params },
    /// Batch norm by the batch, whose statistics go into `batch_stats`, and dropout.
    Train { variables: &'a Variables, dropout_key: Key, batch_stats: &'a mut Params },
    /// Batch norm by the running statistics, no dropout.
    Eval { variables: &'a Variables },
}

/// How much of the running statistics stays at each step, Flax's default.
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

    /// A 2-D convolution with bias: stride 1, zero padding that keeps height and width (`SAME`).
    ///
    /// # Shapes
    /// - `x`: `[B, H, W, C]`
    /// - kernel: `[kernel_size.0, kernel_size.1, C, features]`, bias: `[features]`
    /// - result: `[B, H, W, features]`
    ///
    /// # Errors
    /// [`Error::Shape`] unless `x` has four dimensions; [`Error::Hyperparameter`] for no features
    /// or an empty kernel.
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
            return Err(Error::Shape {
                what: "conv input",
                expected: "[B, height, width, channels]".into(),
                found: x.dims().to_vec(),
            });
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
    /// [`Error::Shape`] unless `x` has two dimensions ([`flatten`](crate::flatten) pictures
    /// first); [`Error::Hyperparameter`] for no features.
    ///
    /// # Source
    /// `flax.linen.Dense(features)(x)`.
    pub fn dense(&mut self, features: usize, x: &Tensor) -> Result<Tensor> {
        check_positive("features", features)?;
        let &[_, inputs] = x.dims() else {
            return Err(Error::Shape {
                what: "dense input",
                expected: "[B, features]; call `flatten` before the first dense layer".into(),
                found: x.dims().to_vec(),
            });
        };
        let mut nn = self.sub_scope("Dense");
        let kernel = nn.param("kernel", (inputs, features), x, lecun_normal)?;
        let bias = nn.param("bias", features, x, zeros)?;
        layers::dense(x, &kernel, &bias, &nn.path())
    }

    /// Batch norm: every channel with mean 0 and variance 1, then scaled and shifted as learnt.
    ///
    /// `(x - mean) / sqrt(var + 1e-5) · scale + bias`. In [training](crate::Module::apply_train) mean and
    /// (biased) variance are the batch's, over all dimensions but the last, and the running
    /// statistics become `0.99 · running + 0.01 · batch`; in [evaluation](crate::Module::apply_eval) they
    /// are the running ones.
    ///
    /// # Shapes
    /// - `x`: `[B, …, C]`
    /// - scale, bias, running mean and var: `[C]`
    /// - result: as `x`
    ///
    /// # Errors
    /// [`Error::Shape`] unless `x` has two dimensions or more and some value;
    /// [`Error::Mode`] under [`apply`](crate::Module::apply).
    ///
    /// # Source
    /// `flax.linen.BatchNorm(use_running_average=not train)(x)`; S. Ioffe, C. Szegedy, *Batch
    /// normalization*, 2015.
    pub fn batch_norm(&mut self, x: &Tensor) -> Result<Tensor> {
        let &[_, .., features] = x.dims() else {
            return Err(batch_norm_shape(x));
        };
        if x.elem_count() == 0 {
            return Err(batch_norm_shape(x));
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
            let moved = ((running * MOMENTUM)? + (batch * (1.0 - MOMENTUM))?)?;
            batch_stats.insert(format!("{path}/{name}"), &moved)?;
        }
        Ok(y)
    }

    /// Dropout: in [training](crate::Module::apply_train) each value is set to 0 with probability `rate`
    /// and divided by `1 - rate` otherwise, which keeps the mean; in
    /// [evaluation](crate::Module::apply_eval) nothing changes.
    ///
    /// # Shapes
    /// - `x`: any
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

    /// A parameter of this scope: made by `initializer` in `init`, looked up in `apply`.
    ///
    /// `like` is any tensor on the device where the parameter should live, usually the input.
    ///
    /// # Errors
    /// [`Error::DuplicateParam`] for a name used twice in `init`; [`Error::MissingParam`] and
    /// [`Error::ParamShape`] in `apply` if the parameters are another network's; [`Error::Memory`] if
    /// it does not fit the memory; those of the initializer.
    ///
    /// # Source
    /// `flax.linen.Module.param`. Its key is the init key folded with the SHA-1 of the path and
    /// the parameter's number within the scope, exactly as Linen derives it.
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
                // Drawn, scaled and copied into a variable.
                let three = [shape.dims(), &[3]].concat();
                memory::check("making a parameter", &three, DType::F32, like.device())?;
                let value = initializer(key, &shape, like.device())?;
                variables.params.insert(path, &value)?;
                return Ok(value);
            }
            Mode::Apply { params } => params,
            Mode::Train { variables, .. } | Mode::Eval { variables } => &variables.params,
        };
        lookup(params, path, shape)
    }

    /// A running statistic of this scope: made in `init`, looked up in `apply_train` and
    /// `apply_eval`. Nothing is drawn for it.
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

/// The variable of a path.
fn lookup(params: &Params, path: String, shape: Shape) -> Result<Tensor> {
    let Some(var) = params.get(&path) else {
        let known = params.paths().collect::<Vec<_>>().join(", ");
        return Err(Error::MissingParam { path, known });
    };
    if var.shape() != &shape {
        let (expected, found) = (shape.into_dims(), var.dims().to_vec());
        return Err(Error::ParamShape { path, expected, found });
    }
    Ok(var.as_tensor().clone())
}

fn batch_norm_shape(x: &Tensor) -> Error {
    Error::Shape {
        what: "batch_norm input",
        expected: "[B, …, features], none of them 0".into(),
        found: x.dims().to_vec(),
    }
}

/// The key of a scope's `count`-th parameter, as `flax.core.scope.LazyRng` derives it: the first
/// four bytes of a SHA-1 over the names on the path and the count, folded into the key.
fn fold_in_path(key: Key, path: &[String], count: u32) -> Key {
    let mut hash = Sha1::new();
    for name in path {
        hash.update(name);
    }
    // Integers enter as big-endian bytes without leading zeros.
    let bytes = count.to_be_bytes();
    hash.update(&bytes[count.leading_zeros() as usize / 8..]);
    let digest = hash.finalize();
    key.fold_in(u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]))
}

fn check_positive(name: &'static str, value: usize) -> Result<()> {
    match value {
        0 => Err(Error::Hyperparameter { name, value: 0.0, allowed: "it must be at least 1" }),
        _ => Ok(()),
    }
}
