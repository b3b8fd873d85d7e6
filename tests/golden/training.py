"""The tutorial's training in JAX, in the precision of the given parameters and images."""

import gzip
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from models import Cnn

BATCH_SIZE = 32
OPTIMIZER = optax.sgd(learning_rate=0.1, momentum=0.9)


def read_idx(path, header_bytes):
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header_bytes)


def to_float(image):
    """Pixels from bytes by the tutorial's own line, in JAX: XLA multiplies by f32(1 / 255)."""
    return np.asarray(jnp.float32(image) / 255.0)


def load(data, prefix):
    """Images `[N, 28, 28, 1]` as f32 in 0..1 and labels `[N]` of `train` or `t10k`."""
    image = read_idx(Path(data) / f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28, 1)
    label = read_idx(Path(data) / f"{prefix}-labels-idx1-ubyte.gz", 8)
    return {"image": to_float(image), "label": label.astype(np.int32)}


def initial_state(seed):
    """The key that the epochs split, and the initial parameters, as in the tutorial."""
    rng, init_rng = jax.random.split(jax.random.PRNGKey(seed))
    return rng, init(Cnn(), init_rng, (1, 28, 28, 1))


def init(model, key, input_shape):
    return model.init(key, jnp.ones(input_shape, jnp.float32))["params"]


def epoch_batches(rng, examples):
    """The key after this epoch, and the indices of its batches, `[steps, BATCH_SIZE]`."""
    rng, input_rng = jax.random.split(rng)
    order = np.asarray(jax.random.permutation(input_rng, examples))
    steps = examples // BATCH_SIZE
    return rng, order[: steps * BATCH_SIZE].reshape(steps, BATCH_SIZE)


def cross_entropy_loss(log_probs, labels):
    onehot = labels[:, None] == jnp.arange(log_probs.shape[-1])[None]
    return -jnp.mean(jnp.sum(onehot * log_probs, axis=-1))


def compute_metrics(log_probs, labels):
    accuracy = jnp.mean(jnp.argmax(log_probs, -1) == labels)
    return {"loss": cross_entropy_loss(log_probs, labels), "accuracy": accuracy}


def loss_and_log_probs(params, batch):
    log_probs = Cnn().apply({"params": params}, batch["image"])
    return cross_entropy_loss(log_probs, batch["label"]), log_probs


@jax.jit
def train_step(params, opt_state, batch):
    (_, log_probs), gradients = jax.value_and_grad(loss_and_log_probs, has_aux=True)(params, batch)
    updates, opt_state = OPTIMIZER.update(gradients, opt_state, params)
    metrics = compute_metrics(log_probs, batch["label"])
    return optax.apply_updates(params, updates), opt_state, metrics


@jax.jit
def eval_step(params, batch):
    return compute_metrics(Cnn().apply({"params": params}, batch["image"]), batch["label"])


def train(params, opt_state, dataset, batches):
    """One step per row of `batches`: the new state, and each step's loss and accuracy."""
    metrics = []
    for indices in batches:
        batch = {name: values[indices] for name, values in dataset.items()}
        params, opt_state, step = train_step(params, opt_state, batch)
        metrics.append(step)
    series = {name: [float(step[name]) for step in metrics] for name in ("loss", "accuracy")}
    return params, opt_state, series
