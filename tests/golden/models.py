"""The Flax modules whose values are recorded here. The Rust tests have the same modules."""

import jax.numpy as jnp
from flax import linen as nn


class Cnn(nn.Module):
    """The network of the annotated MNIST tutorial."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(features=32, kernel_size=(3, 3))(x))
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(features=64, kernel_size=(3, 3))(x))
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(features=256)(x))
        return nn.log_softmax(nn.Dense(features=10)(x))


class Block(nn.Module):
    """Two convolutions of the same width."""

    features: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(features=self.features, kernel_size=(3, 3))(x))
        return nn.relu(nn.Conv(features=self.features, kernel_size=(3, 3))(x))


class Nested(nn.Module):
    """Several layers of the same kind, some of them in submodules.

    Its parameters are `Block_0/Conv_0`, `Block_0/Conv_1`, `Block_1/Conv_0`, `Block_1/Conv_1`,
    `Dense_0`, `Dense_1` and `Dense_2`, each with a `kernel` and a `bias`.
    """

    @nn.compact
    def __call__(self, x):
        x = Block(features=4)(x)
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = Block(features=6)(x)
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(features=16)(x))
        x = nn.relu(nn.Dense(features=8)(x))
        return nn.Dense(features=5)(x)


class TinyCnn(nn.Module):
    """The tutorial's kinds of layers, with 87 parameters for inputs of shape `[_, 6, 4, 1]`."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(features=2, kernel_size=(3, 3))(x))
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(features=4)(x))
        return nn.log_softmax(nn.Dense(features=3)(x))


class Unit(nn.Module):
    """A convolution with batch norm and dropout."""

    features: int

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(features=self.features, kernel_size=(3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dropout(rate=0.25, deterministic=not train)(x)


class OnlyDropout(nn.Module):
    """Only a dropout."""

    rate: float

    @nn.compact
    def __call__(self, x):
        return nn.Dropout(rate=self.rate, deterministic=False)(x)


class Steady(nn.Module):
    """Batch norm over pixels and over rows, and dropout, also in submodules.

    Takes inputs of shape `[_, 6, 4, 2]`.
    """

    @nn.compact
    def __call__(self, x, train):
        x = Unit(features=3)(x, train)
        x = Unit(features=4)(x, train)
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nn.Dense(features=6)(x.reshape((x.shape[0], -1)))
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(rate=0.5, deterministic=not train)(x)
        return nn.log_softmax(nn.Dense(features=3)(x))


class Residual(nn.Module):
    """A residual block with layer norm and GELU."""

    @nn.compact
    def __call__(self, x):
        y = nn.gelu(nn.LayerNorm()(nn.Conv(features=x.shape[-1], kernel_size=(3, 3))(x)))
        y = nn.LayerNorm()(nn.Conv(features=x.shape[-1], kernel_size=(3, 3))(y))
        return nn.gelu(x + y)


class Branches(nn.Module):
    """Strides, both paddings, layer norm, GELU, branches, and the mean over all pixels.

    Takes inputs of shape `[_, 9, 8, 3]`.
    """

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(features=4, kernel_size=(3, 3), strides=(2, 2))(x)
        x = Residual()(x)
        x = Residual()(x)
        narrow = nn.Conv(features=2, kernel_size=(2, 3), padding="VALID")(x)
        wide = nn.Conv(features=3, kernel_size=(2, 3), padding="VALID")(x)
        x = jnp.concatenate([narrow, wide], axis=-1)
        x = nn.Conv(features=5, kernel_size=(2, 1), strides=(2, 1), padding="VALID")(x)
        x = nn.LayerNorm()(jnp.mean(x, axis=(1, 2)))
        return nn.log_softmax(nn.Dense(features=3)(x))


class OnlyConv(nn.Module):
    """Only a convolution."""

    features: int
    kernel_size: tuple
    strides: tuple
    padding: str

    @nn.compact
    def __call__(self, x):
        return nn.Conv(self.features, self.kernel_size, self.strides, self.padding)(x)
