//! Where a module's layers get their names, keys and parameters.

use std::collections::HashMap;

use candle_core::{Device, Shape, Tensor};
use sha1::{Digest, Sha1};

use super::initializers::{lecun_normal, zeros};
use super::{Module, Params, layers};
use crate::random::Key;
use crate::{Error, Result};

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
    made: u32,
}

enum Mode<'a> {
    Init { key: Key, params: &'a mut Params },
    Apply { params: &'a Params },
}

impl<'a> Scope<'a> {
    pub(super) fn init(key: Key, params: &'a mut Params) -> Self {
        Self::new(Vec::new(), Mode::Init { key, params })
    }

    pub(super) fn apply(params: &'a Params) -> Self {
        Self::new(Vec::new(), Mode::Apply { params })
    }

    fn new(path: Vec<String>, mode: Mode<'a>) -> Self {
        Scope { path, mode, children: HashMap::new(), made: 0 }
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
        let mut nn = self.child("Conv");
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
    /// [`Error::Shape`] unless `x` has two dimensions ([`flatten`](super::flatten) pictures
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
        let mut nn = self.child("Dense");
        let kernel = nn.param("kernel", (inputs, features), x, lecun_normal)?;
        let bias = nn.param("bias", features, x, zeros)?;
        layers::dense(x, &kernel, &bias, &nn.path())
    }

    /// Evaluates a module as a part of this one, under its type's name and a number: `Block_0`.
    ///
    /// # Errors
    /// Those of the module.
    pub fn module<M: Module>(&mut self, module: &M, x: &Tensor) -> Result<Tensor> {
        let name = std::any::type_name::<M>();
        let name = name.split('<').next().unwrap_or(name);
        module.call(&mut self.child(name.rsplit("::").next().unwrap_or(name)), x)
    }

    /// A parameter of this scope: made by `initializer` in `init`, looked up in `apply`.
    ///
    /// `like` is any tensor on the device where the parameter should live, usually the input.
    ///
    /// # Errors
    /// [`Error::DuplicateParam`] for a name used twice in `init`; [`Error::MissingParam`] and
    /// [`Error::ParamShape`] in `apply` if the parameters are another network's; those of the
    /// initializer.
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
        self.made += 1;
        let path = self.path.iter().map(String::as_str).chain([name]).collect::<Vec<_>>().join("/");
        match &mut self.mode {
            Mode::Init { key, params } => {
                let key = fold_in_path(*key, &self.path, self.made);
                let value = initializer(key, &shape, like.device())?;
                params.insert(path, &value)?;
                Ok(value)
            }
            Mode::Apply { params } => {
                let Some(var) = params.get(&path) else {
                    let known = params.paths().collect::<Vec<_>>().join(", ");
                    return Err(Error::MissingParam { path, known });
                };
                if var.shape() != &shape {
                    return Err(Error::ParamShape {
                        path,
                        expected: shape.into_dims(),
                        found: var.dims().to_vec(),
                    });
                }
                Ok(var.as_tensor().clone())
            }
        }
    }

    /// The scope of the next child of a kind, `Conv_0`, `Conv_1`, ….
    fn child(&mut self, kind: &'static str) -> Scope<'_> {
        let count = self.children.entry(kind).or_default();
        let mut path = self.path.clone();
        path.push(format!("{kind}_{count}"));
        *count += 1;
        let mode = match &mut self.mode {
            Mode::Init { key, params } => Mode::Init { key: *key, params },
            Mode::Apply { params } => Mode::Apply { params },
        };
        Scope::new(path, mode)
    }

    fn path(&self) -> String {
        self.path.join("/")
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
