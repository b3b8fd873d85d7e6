"""The tutorial in JAX and Flax Linen, timed on request: see protocol.py.

Requests for a GPU end in the precision of products: `_default` is JAX's choice, TF32 where the GPU
has it, and `_highest` is f32.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from protocol import BETA, LEARNING_RATE, images, labels, serve

MOMENTUM = optax.sgd(LEARNING_RATE, momentum=BETA)
ADAMW = optax.adamw(0.001, weight_decay=0.01)


class Cnn(nn.Module):
    precision: str = "default"

    @nn.compact
    def __call__(self, x):
        conv = partial(nn.Conv, kernel_size=(3, 3), precision=self.precision)
        dense = partial(nn.Dense, precision=self.precision)
        x = nn.avg_pool(nn.relu(conv(32)(x)), (2, 2), strides=(2, 2))
        x = nn.avg_pool(nn.relu(conv(64)(x)), (2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(dense(256)(x))
        return nn.log_softmax(dense(10)(x))


class OwnModule(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(20, (5, 5))(x)), (2, 2), strides=(2, 2))
        x = nn.max_pool(nn.relu(nn.Conv(40, (5, 5))(x)), (2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(80, (5, 5))(x))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(100)(x))
        return nn.log_softmax(nn.Dense(10)(x))


class MyNet(nn.Module):
    """The network of notebooks/make_it_yours.ipynb."""

    NUM_PARAMS = 468_458

    @nn.compact
    def __call__(self, x, train):
        for features in [32, 64]:
            for _ in range(2):
                x = nn.Conv(features, (3, 3))(x)
                x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
            x = nn.Dropout(0.1, deterministic=not train)(x)
        x = nn.Dense(128)(x.reshape((x.shape[0], -1)))
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.3, deterministic=not train)(x)
        return nn.log_softmax(nn.Dense(10)(x))


class Block(nn.Module):
    features: int
    stride: int

    @nn.compact
    def __call__(self, x, train):
        strides = (self.stride, self.stride)
        y = nn.Conv(self.features, (3, 3), strides)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not train)(y))
        y = nn.Conv(self.features, (3, 3))(y)
        y = nn.BatchNorm(use_running_average=not train)(y)
        if x.shape != y.shape:
            x = nn.Conv(self.features, (1, 1), strides)(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    NUM_PARAMS = 77_898

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(16, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        for features, stride in [(16, 1), (32, 2), (64, 2)]:
            x = Block(features, stride)(x, train)
        return nn.log_softmax(nn.Dense(10)(x.mean((1, 2))))


@cache
def dataset(prefix):
    return {"image": jnp.asarray(images(prefix)[..., None]), "label": jnp.asarray(labels(prefix))}


def compute_metrics(log_probs, label):
    onehot = (label[:, None] == jnp.arange(10)).astype(jnp.float32)
    loss = -jnp.mean(jnp.sum(onehot * log_probs, axis=-1))
    return {"loss": loss, "accuracy": jnp.mean(jnp.argmax(log_probs, -1) == label)}


def initial_params(model):
    return model.init(jax.random.PRNGKey(0), jnp.ones((1, 28, 28, 1)))["params"]


def plain_step(model):
    """The tutorial's training step, and the state before the first one."""

    def train_step(state, batch):
        params, optimizer_state = state

        def loss_fn(params):
            log_probs = model.apply({"params": params}, batch["image"])
            metrics = compute_metrics(log_probs, batch["label"])
            return metrics["loss"], metrics

        grads, metrics = jax.grad(loss_fn, has_aux=True)(params)
        updates, optimizer_state = MOMENTUM.update(grads, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), metrics

    params = initial_params(model)
    return train_step, (params, MOMENTUM.init(params))


def stateful_step(model, optimizer):
    """The same for a network with batch norm, or dropout."""

    def train_step(state, batch):
        params, batch_stats, optimizer_state, key = state
        key, dropout_key = jax.random.split(key)

        def loss_fn(params):
            log_probs, updated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                batch["image"],
                train=True,
                rngs={"dropout": dropout_key},
                mutable=["batch_stats"],
            )
            metrics = compute_metrics(log_probs, batch["label"])
            return metrics["loss"], (metrics, updated["batch_stats"])

        grads, (metrics, new_stats) = jax.grad(loss_fn, has_aux=True)(params)
        updates, optimizer_state = optimizer.update(grads, optimizer_state, params)
        params = optax.apply_updates(params, updates)
        return (params, new_stats, optimizer_state, key), metrics

    variables = model.init(jax.random.PRNGKey(0), jnp.ones((1, 28, 28, 1)), train=False)
    params, batch_stats = variables["params"], variables["batch_stats"]
    num_params = sum(param.size for param in jax.tree.leaves(params))
    assert num_params == model.NUM_PARAMS, num_params
    return train_step, (params, batch_stats, optimizer.init(params), jax.random.PRNGKey(2))


def training(step, batch_size):
    """Steps on shuffled batches, as in the tutorial."""
    train_step, state = step
    train_step = jax.jit(train_step)
    train_ds = dataset("train")
    size = len(train_ds["label"])
    steps = size // batch_size
    perms = jax.random.permutation(jax.random.PRNGKey(1), size)[: steps * batch_size]
    perms = perms.reshape(steps, batch_size)
    done = 0

    def run(count):
        nonlocal state, done
        assert count <= steps, "more steps than an epoch has"
        if done + count > steps:
            done = 0
        metrics = []
        for perm in perms[done : done + count]:
            batch = {name: array[perm, ...] for name, array in train_ds.items()}
            state, batch_metrics = train_step(state, batch)
            metrics.append(batch_metrics)
        done += count
        jax.device_get(metrics)

    return run


def fixed_step(precision, batch_size):
    """Steps on one batch, each of which reuses the memory of the state before it."""
    train_step, state = plain_step(Cnn(precision))
    train_step = jax.jit(train_step, donate_argnums=0)
    batch = {name: array[:batch_size] for name, array in dataset("train").items()}

    def run(count):
        nonlocal state
        for _ in range(count):
            state, metrics = train_step(state, batch)
        jax.device_get(metrics)

    return run


def scan(precision, batch_size, is_evaluated=False):
    """Epochs, each shuffled and run on the device in one call; with an evaluation if asked."""
    train_step, state = plain_step(Cnn(precision))
    train_ds = dataset("train")
    size = len(train_ds["label"])
    steps = size // batch_size
    evaluate = evaluate_all(precision) if is_evaluated else lambda params: None
    rng = jax.random.PRNGKey(1)

    @partial(jax.jit, donate_argnums=0)
    def train_epoch(state, train_ds, rng):
        perms = jax.random.permutation(rng, size)[: steps * batch_size]

        def step(state, perm):
            return train_step(state, {name: array[perm] for name, array in train_ds.items()})

        return jax.lax.scan(step, state, perms.reshape(steps, batch_size))

    def run(count):
        nonlocal state, rng
        for _ in range(count):
            rng, epoch_rng = jax.random.split(rng)
            state, metrics = train_epoch(state, train_ds, epoch_rng)
            params, _ = state
            jax.device_get((metrics, evaluate(params)))

    return run


def evaluate_all(precision):
    """A function from parameters to the metrics of all test images, in one call."""
    model, test_ds = Cnn(precision), dataset("t10k")

    @jax.jit
    def eval_step(params, batch):
        return compute_metrics(model.apply({"params": params}, batch["image"]), batch["label"])

    return lambda params: eval_step(params, test_ds)


def evaluation(precision, _):
    evaluate, params = evaluate_all(precision), initial_params(Cnn())

    def run(count):
        for _ in range(count):
            jax.device_get(evaluate(params))

    return run


requests = {
    "train_step": lambda batch: training(plain_step(Cnn()), batch),
    "own_module": lambda batch: training(plain_step(OwnModule()), batch),
    "my_net": lambda batch: training(stateful_step(MyNet(), ADAMW), batch),
    "resnet": lambda batch: training(stateful_step(ResNet(), MOMENTUM), batch),
    "eval_model": partial(evaluation, "default"),
}
for precision in ["default", "highest"]:
    requests |= {
        f"fixed_{precision}": partial(fixed_step, precision),
        f"scan_{precision}": partial(scan, precision),
        f"epochs_{precision}": partial(scan, precision, is_evaluated=True),
        f"eval_{precision}": partial(evaluation, precision),
    }
serve(requests)
