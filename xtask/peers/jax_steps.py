"""The tutorial in JAX and Flax Linen, timed for `cargo xtask bench`: see protocol.py."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from protocol import BETA, LEARNING_RATE, images, labels, serve


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.avg_pool(nn.relu(nn.Conv(32, (3, 3))(x)), (2, 2), strides=(2, 2))
        x = nn.avg_pool(nn.relu(nn.Conv(64, (3, 3))(x)), (2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(256)(x))
        return nn.log_softmax(nn.Dense(10)(x))


class OwnModule(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(20, (5, 5))(x)), (2, 2), strides=(2, 2))
        x = nn.max_pool(nn.relu(nn.Conv(40, (5, 5))(x)), (2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(80, (5, 5))(x))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(100)(x))
        return nn.log_softmax(nn.Dense(10)(x))


def dataset(prefix):
    return {"image": jnp.asarray(images(prefix)[..., None]), "label": jnp.asarray(labels(prefix))}


def compute_metrics(log_probs, label):
    onehot = (label[:, None] == jnp.arange(10)).astype(jnp.float32)
    loss = -jnp.mean(jnp.sum(onehot * log_probs, axis=-1))
    return {"loss": loss, "accuracy": jnp.mean(jnp.argmax(log_probs, -1) == label)}


def initial_params(model):
    return model.init(jax.random.PRNGKey(0), jnp.ones((1, 28, 28, 1)))["params"]


def training(model, batch_size, is_fixed=False):
    """Steps on shuffled batches, as in the tutorial, or only on the first batch."""
    optimizer = optax.sgd(LEARNING_RATE, momentum=BETA)

    @jax.jit
    def train_step(params, state, batch):
        def loss_fn(params):
            log_probs = model.apply({"params": params}, batch["image"])
            metrics = compute_metrics(log_probs, batch["label"])
            return metrics["loss"], metrics

        grads, metrics = jax.grad(loss_fn, has_aux=True)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, metrics

    train_ds = dataset("train")
    size = len(train_ds["label"])
    steps = size // batch_size
    perms = jax.random.permutation(jax.random.PRNGKey(1), size)[: steps * batch_size]
    perms = perms.reshape(steps, batch_size)
    params = initial_params(model)
    state = optimizer.init(params)
    fixed = {name: array[:batch_size] for name, array in train_ds.items()} if is_fixed else None
    done = 0

    def run(count):
        nonlocal params, state, done
        if done + count > steps:
            done = 0
        metrics = []
        for perm in perms[done : done + count]:
            batch = fixed or {name: array[perm, ...] for name, array in train_ds.items()}
            params, state, batch_metrics = train_step(params, state, batch)
            metrics.append(batch_metrics)
        done += count
        jax.device_get(metrics)

    return run


def evaluation():
    model, test_ds = Cnn(), dataset("t10k")
    params = initial_params(model)

    @jax.jit
    def eval_step(params, batch):
        return compute_metrics(model.apply({"params": params}, batch["image"]), batch["label"])

    def run(count):
        for _ in range(count):
            jax.device_get(eval_step(params, test_ds))

    return run


serve(
    {
        "train_step": lambda batch: training(Cnn(), batch),
        "fixed_step": lambda batch: training(Cnn(), batch, is_fixed=True),
        "own_module": lambda batch: training(OwnModule(), batch),
        "eval_model": lambda _: evaluation(),
    }
)
