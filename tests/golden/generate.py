"""Computes the golden values of the tests with JAX, Flax, optax, SciPy and scikit-learn.

usage: python generate.py [--data DIR] [NAME ...]

NAME is one of random, initial_params, pixels, gradients, trace, trace_epoch_1, ten_epochs,
flax_params, intermediates, transform, steady, dropout, branches, convolutions, gelu, warmup_cosine,
optimizers, augment, inspect; all of them if none is given. Values that test a single crate go to
that crate, all others to this folder.
DIR has the four gzipped MNIST files.
"""

import argparse
import hashlib
import json
import multiprocessing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.scipy.ndimage import map_coordinates
from safetensors.flax import save_file
from scipy import ndimage
from sklearn.calibration import calibration_curve
from sklearn.decomposition import PCA
from sklearn.metrics import confusion_matrix

import training
from check_params import apply
from models import Branches, Cnn, Nested, OnlyConv, OnlyDropout, Steady, TinyCnn

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DATA = ROOT / "data"
IMAGES, INSPECT, JAX_RANDOM, LINEN = (
    ROOT / "crates" / crate / "tests/golden"
    for crate in ["images", "inspect", "jax-random", "linen"]
)
TRACE_STEPS = 200
TRAINING_SEEDS = [0, 42]
EPOCHS = 10


# --- Format: f32 numbers are written as their bits, so they are exact ---


def bits(values):
    return np.asarray(values, np.float32).view(np.uint32).ravel().tolist()


def words(values):
    return np.asarray(values, np.uint32).tolist()


def sha256(values, dtype):
    return hashlib.sha256(np.asarray(values).astype(dtype).tobytes()).hexdigest()


def to_json(value, indent=""):
    """JSON with one line per member of an object and per list of numbers."""
    deeper = indent + " "
    if isinstance(value, dict):
        items = [f"{json.dumps(name)}: {to_json(item, deeper)}" for name, item in value.items()]
        brackets = "{}"
    elif isinstance(value, list) and isinstance(value[0], dict):
        items = [to_json(item, deeper) for item in value]
        brackets = "[]"
    else:
        return json.dumps(value)
    body = ",\n".join(deeper + item for item in items)
    return f"{brackets[0]}\n{body}\n{indent}{brackets[1]}"


def write_json(name, value, folder=HERE):
    (folder / f"{name}.json").write_text(to_json(value) + "\n")


# --- random.json ---

SEEDS = [
    0,
    1,
    42,
    123456789,
    2**31,
    2**32 - 1,
    2**32,
    2**40 + 5,
    2**63 - 1,
    -1,
    -(2**31) - 1,
    -(2**63),
]
REFUSED_SEEDS = [2**63, 2**64 - 1]
DRAWS = 100


def seed_key(seed):
    try:
        return {"seed": seed, "key": words(jax.random.PRNGKey(seed))}
    except OverflowError as error:
        return {"seed": seed, "error": str(error)}


def draws(key):
    return {
        "key": words(key),
        "split": words(jax.random.split(key)),
        "split_5": words(jax.random.split(key, 5)),
        "fold_in": [
            {"data": data, "key": words(jax.random.fold_in(key, data))}
            for data in [0, 1, 2**31, 2**32 - 1]
        ],
        "bits": [
            {"shape": shape, "values": np.ravel(jax.random.bits(key, shape)).tolist()}
            for shape in [(), (7,), (3, 5)]
        ],
        "uniform": bits(jax.random.uniform(key, (DRAWS,))),
        "uniform_from_minus_2_5_to_3": bits(
            jax.random.uniform(key, (DRAWS,), minval=-2.5, maxval=3.0)
        ),
        "normal": bits(jax.random.normal(key, (DRAWS,))),
        "truncated_normal_from_minus_2_to_2": bits(
            jax.random.truncated_normal(key, -2, 2, (DRAWS,))
        ),
        "permutation": [
            {"n": n, "order": jax.random.permutation(key, n).tolist()}
            for n in [1, 2, 7, 1625, 1626]
        ],
        "permutation_of_60000": summary_of_order(jax.random.permutation(key, 60_000)),
    }


def summary_of_order(order):
    return {
        "first": order[:20].tolist(),
        "last": order[-20:].tolist(),
        "sha256": sha256(order, "<u4"),
    }


def random(_data):
    keys = [jax.random.PRNGKey(seed) for seed in [0, 1, 42, 123456789, 2**32 - 1]]
    keys.append(jax.random.split(keys[2])[1])  # a key whose first word is not zero
    seeds = [seed_key(seed) for seed in SEEDS + REFUSED_SEEDS]
    write_json("random", {"seeds": seeds, "draws": [draws(key) for key in keys]}, JAX_RANDOM)


# --- initial_params.json ---


def leaf_statistics(name, leaf):
    values = np.asarray(leaf).ravel()
    return {
        "name": name,
        "shape": list(leaf.shape),
        "min": float(values.min()),
        "max": float(values.max()),
        "mean": float(values.mean(dtype=np.float64)),
        "std": float(values.std(dtype=np.float64)),
        "sha256": sha256(values, "<f4"),
        "first": bits(values[:8]),
        "last": bits(values[-8:]),
    }


def initial_statistics(model, seed, input_shape):
    init_rng = jax.random.split(jax.random.PRNGKey(seed))[1]
    leaves = flatten_dict(training.init(model, init_rng, input_shape), sep="/")
    return {
        "model": type(model).__name__,
        "seed": seed,
        "input_shape": input_shape,
        "leaves": [leaf_statistics(name, leaf) for name, leaf in leaves.items()],
    }


def initial_params(_data):
    cases = [(Cnn(), (1, 28, 28, 1)), (Nested(), (1, 12, 10, 3))]
    models = [
        initial_statistics(model, seed, input_shape)
        for model, input_shape in cases
        for seed in TRAINING_SEEDS
    ]
    write_json("initial_params", {"models": models})


# --- pixels.json ---


def pixels(_data):
    write_json("pixels", {"values": bits(training.to_float(np.arange(256, dtype=np.uint8)))})


# --- gradients.json ---


def gradient_sample(name, leaf):
    values = np.asarray(leaf).ravel()
    indices = np.unique(np.linspace(0, values.size - 1, 32).astype(int))
    return {
        "name": name,
        "shape": list(leaf.shape),
        "max_abs": float(np.abs(values).max()),
        "sum": float(values.sum(dtype=np.float64)),
        "indices": indices.tolist(),
        "values": bits(values[indices]),
    }


def gradients(data):
    seed = 0
    train_ds = training.load(data, "train")
    rng, params = training.initial_state(seed)
    _, batches = training.epoch_batches(rng, len(train_ds["label"]))
    batch = {name: values[batches[0]] for name, values in train_ds.items()}
    value_and_grad = jax.jit(jax.value_and_grad(training.loss_and_log_probs, has_aux=True))
    (loss, _), gradient = value_and_grad(params, batch)
    leaves = flatten_dict(gradient, sep="/")
    write_json(
        "gradients",
        {
            "seed": seed,
            "batch": batches[0].tolist(),
            "loss": float(loss),
            "leaves": [
                gradient_sample(name, leaves[name]) for name in flatten_dict(params, sep="/")
            ],
        },
    )


# --- trace.json ---


def first_epoch(params, dataset, batches):
    return training.train(params, training.OPTIMIZER.init(params), dataset, batches)[2]


def first_epoch_f64(params, dataset, batches):
    """`first_epoch` in f64. Run it in its own process: JAX's switch to f64 is global."""
    jax.config.update("jax_enable_x64", True)
    params = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, np.float64), params)
    dataset = dataset | {"image": dataset["image"].astype(np.float64)}
    return first_epoch(params, dataset, batches)


def trace_of_seed(seed, train_ds):
    rng, params = training.initial_state(seed)
    batches = training.epoch_batches(rng, len(train_ds["label"]))[1][:TRACE_STEPS]
    used = np.unique(batches)
    subset = {name: values[used] for name, values in train_ds.items()}
    arguments = (params, subset, np.searchsorted(used, batches))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        f64 = pool.apply(first_epoch_f64, arguments)
    return {"seed": seed, "f32": first_epoch(*arguments), "f64": f64}


def trace(data):
    train_ds = training.load(data, "train")
    write_json("trace", {"runs": [trace_of_seed(seed, train_ds) for seed in TRAINING_SEEDS]})


# --- trace_epoch_1.csv ---


def trace_epoch_1(data):
    train_ds = training.load(data, "train")
    rng, params = training.initial_state(0)
    _, batches = training.epoch_batches(rng, len(train_ds["label"]))
    losses = first_epoch(params, train_ds, batches)["loss"]
    rows = [f"{step},{loss:.6g}\n" for step, loss in enumerate(losses, start=1)]
    (HERE / "trace_epoch_1.csv").write_text("step,loss\n" + "".join(rows))


# --- ten_epochs.csv ---


def ten_epochs_of_seed(seed, train_ds, test_ds):
    """Rows of seed, epoch, training loss and accuracy, test loss and accuracy."""
    rng, params = training.initial_state(seed)
    opt_state = training.OPTIMIZER.init(params)
    for epoch in range(1, EPOCHS + 1):
        rng, batches = training.epoch_batches(rng, len(train_ds["label"]))
        params, opt_state, series = training.train(params, opt_state, train_ds, batches)
        test = training.eval_step(params, test_ds)
        train_loss, train_accuracy = np.mean(series["loss"]), np.mean(series["accuracy"])
        row = [train_loss, train_accuracy, test["loss"], test["accuracy"]]
        yield ",".join([str(seed), str(epoch)] + [f"{value:.6f}" for value in row])


def ten_epochs(data):
    train_ds, test_ds = training.load(data, "train"), training.load(data, "t10k")
    lines = ["seed,epoch,train_loss,train_accuracy,test_loss,test_accuracy"]
    for seed in TRAINING_SEEDS:
        lines += ten_epochs_of_seed(seed, train_ds, test_ds)
    (HERE / "ten_epochs.csv").write_text("\n".join(lines) + "\n")


# --- flax_params.safetensors and flax_params.json ---

FLAX_PARAMS = LINEN / "flax_params.safetensors"
TINY_INPUT = np.arange(48, dtype=np.float32).reshape(2, 6, 4, 1) / 64


def flax_params(_data):
    x = TINY_INPUT
    params = flatten_dict(training.init(TinyCnn(), jax.random.PRNGKey(0), x.shape), sep="/")
    for name, leaf in params.items():
        if name.endswith("bias"):  # not zero: a swapped bias must be detected
            params[name] = (1 + jax.numpy.arange(leaf.size, dtype=leaf.dtype)) / 8
    save_file(params, FLAX_PARAMS)
    write_json(
        "flax_params",
        {
            "model": "TinyCnn",
            "input_shape": list(x.shape),
            "input": bits(x),
            "output": bits(apply(FLAX_PARAMS, x)),
        },
        LINEN,
    )


# --- intermediates.json ---


def intermediates(_data):
    """The outputs of `TinyCnn`'s layers."""
    x = TINY_INPUT
    _, state = apply(FLAX_PARAMS, x, capture_intermediates=True)
    layers = flatten_dict(state["intermediates"], sep="/")
    write_json(
        "intermediates",
        {
            "input_shape": list(x.shape),
            "input": bits(x),
            "layers": [
                {
                    "name": name.removesuffix("/__call__"),
                    "shape": list(value.shape),
                    "values": bits(value),
                }
                for name, (value,) in layers.items()
                if "/" in name
            ],
        },
        LINEN,
    )


# --- transform.json ---

SHIFTS = [(1, 0), (0, -2), (0.5, 0.25), (-1.75, 2.5), (9, 0)]
ANGLES = [0, 30, -45, 90, 180, 270, 200.5, 720]


def transform(_data):
    """An image that is not square, transformed by SciPy; it is 0 outside."""
    image = np.asarray(jax.random.uniform(jax.random.PRNGKey(0), (6, 5)))
    options = {"order": 1, "mode": "grid-constant"}
    write_json(
        "transform",
        {
            "shape": list(image.shape),
            "image": bits(image),
            "shift": [
                {"dx": dx, "dy": dy, "values": bits(ndimage.shift(image, (dy, dx), **options))}
                for dx, dy in SHIFTS
            ],
            "rotate": [
                {
                    "degrees": degrees,
                    "values": bits(ndimage.rotate(image, degrees, reshape=False, **options)),
                }
                for degrees in ANGLES
            ],
        },
        IMAGES,
    )


# --- steady.safetensors and steady.json ---


def leaves(tree):
    return {name: bits(leaf) for name, leaf in flatten_dict(tree, sep="/").items()}


def steady(_data):
    """A training pass of `Steady` with gradients and new statistics, and an evaluation pass."""
    x = jax.random.normal(jax.random.PRNGKey(1), (5, 6, 4, 2))
    labels = jnp.array([0, 2, 1, 1, 0])
    dropout_key = jax.random.PRNGKey(2)
    variables = Steady().init(jax.random.PRNGKey(0), x, train=False)
    flat = flatten_dict(variables, sep="/")
    for name, leaf in flat.items():  # not zero or one: a swap must be detected
        if not name.endswith("kernel"):
            flat[name] = leaf + (1 + jnp.arange(leaf.size, dtype=leaf.dtype)) / 8
    variables = unflatten_dict(flat, sep="/")
    save_file(flat, LINEN / "steady.safetensors")

    def loss(params):
        output, updates = Steady().apply(
            {"params": params, "batch_stats": variables["batch_stats"]},
            x,
            train=True,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats"],
        )
        return training.cross_entropy_loss(output, labels), (output, updates["batch_stats"])

    value_and_grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, (output, batch_stats)), gradient = value_and_grad(variables["params"])
    write_json(
        "steady",
        {
            "input_shape": list(x.shape),
            "input": bits(x),
            "labels": labels.tolist(),
            "dropout_key": words(dropout_key),
            "loss": float(value),
            "output_train": bits(output),
            "output_eval": bits(Steady().apply(variables, x, train=False)),
            "batch_stats": leaves(batch_stats),
            "gradients": leaves(gradient),
        },
        LINEN,
    )


# --- dropout.json ---


def dropout(_data):
    """Dropout of the numbers 1, 2, 3, … at several rates."""
    x = 1 + jnp.arange(2 * 3 * 4 * 5, dtype=jnp.float32).reshape(2, 3, 4, 5)
    key = jax.random.PRNGKey(42)
    cases = [
        {
            "rate": rate,
            "output": bits(OnlyDropout(rate).apply({}, x, rngs={"dropout": key})),
        }
        for rate in [0.0, 0.1, 0.25, 0.5, 0.9]
    ]
    write_json("dropout", {"key": words(key), "shape": list(x.shape), "cases": cases}, LINEN)


# --- branches.safetensors and branches.json ---


def branches(_data):
    """The initial parameters of `Branches`, and the output and gradients for others."""
    x = jax.random.normal(jax.random.PRNGKey(1), (3, 9, 8, 3))
    labels = jnp.array([0, 2, 1])
    initial = Branches().init(jax.random.PRNGKey(0), x)["params"]
    flat = flatten_dict(initial, sep="/")
    for name, leaf in flat.items():  # not zero or one: a swap must be detected
        if not name.endswith("kernel"):
            flat[name] = leaf + (1 + jnp.arange(leaf.size, dtype=leaf.dtype)) / 8
    save_file(flat, LINEN / "branches.safetensors")

    def loss(params):
        output = Branches().apply({"params": params}, x)
        return training.cross_entropy_loss(output, labels), output

    value_and_grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, output), gradient = value_and_grad(unflatten_dict(flat, sep="/"))
    write_json(
        "branches",
        {
            "input_shape": list(x.shape),
            "input": bits(x),
            "labels": labels.tolist(),
            "initial": leaves(initial),
            "loss": float(value),
            "output": bits(output),
            "gradients": leaves(gradient),
        },
        LINEN,
    )


# --- convolutions.json ---


def convolutions(_data):
    """Convolutions of an image of 7 × 6 pixels and two channels, with a bias of 1, 2, …."""
    x = jax.random.normal(jax.random.PRNGKey(1), (1, 7, 6, 2))
    cases = []
    for kernel_size in [(1, 1), (2, 3), (3, 2), (4, 5)]:
        for strides in [(1, 1), (2, 2), (3, 1), (2, 4)]:
            for padding in ["SAME", "VALID"]:
                model = OnlyConv(3, kernel_size, strides, padding)
                params = model.init(jax.random.PRNGKey(2), x)["params"]
                params["Conv_0"]["bias"] = 1 + jnp.arange(3.0)
                y = model.apply({"params": params}, x)
                settings = {"kernel_size": kernel_size, "strides": strides, "padding": padding}
                cases.append(settings | {"shape": list(y.shape), "output": bits(y)})
    write_json("convolutions", {"shape": list(x.shape), "input": bits(x), "cases": cases}, LINEN)


# --- gelu.json ---


def gelu(_data):
    x = jnp.linspace(-6, 6, 97)
    slope = jax.vmap(jax.grad(nn.gelu))(x)
    write_json("gelu", {"input": bits(x), "output": bits(nn.gelu(x)), "slope": bits(slope)}, LINEN)


# --- warmup_cosine.json ---


def warmup_cosine(_data):
    cases = []
    for peak, warmup, total in [(0.004, 100, 1000), (1.0, 0, 7)]:
        schedule = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, total)
        steps = sorted({0, 1, warmup // 2, warmup, warmup + 1, total // 2, total, total + 5})
        rates = [float(schedule(step)) for step in steps]
        case = {"peak": peak, "warmup_steps": warmup, "total_steps": total}
        cases.append(case | {"steps": steps, "rates": rates})
    write_json("warmup_cosine", {"cases": cases}, LINEN)


# --- optimizers.json ---


def optimizers(_data):
    """Steps of optax's optimizers with changing learning rates, in f64."""
    rates = [0.1, 0.05, 0.2, 0.0, 0.1, 0.01]
    start = [1.0, -2.0, 0.5, 3.0]
    gradients = np.random.default_rng(0).normal(size=(len(rates), len(start)))
    gradients[:, 0] = 0.0
    gradients[1] *= 1000.0
    with jax.enable_x64(True):
        rate = lambda count: jnp.array(rates)[count]
        cases = {
            "momentum": optax.sgd(rate, momentum=0.9),
            "nesterov": optax.sgd(rate, momentum=0.9, nesterov=True),
            "adam": optax.adam(rate),
            "adam_other": optax.adam(rate, b1=0.7, b2=0.95, eps=0.01),
            "adamw": optax.adamw(rate),
            "adamw_other": optax.adamw(rate, b1=0.7, b2=0.95, eps=0.01, weight_decay=0.1),
        }
        golden = {"start": start, "rates": rates, "gradients": gradients.ravel().tolist()}
        for name, optimizer in cases.items():
            params = jnp.array(start)
            state, after = optimizer.init(params), []
            for gradient in gradients:
                updates, state = optimizer.update(jnp.array(gradient), state, params)
                params = optax.apply_updates(params, updates)
                after.extend(params.tolist())
            golden[name] = after
    write_json("optimizers", golden, LINEN)


# --- augment.json ---


def rotated_and_shifted(image, degrees, shift):
    """The image rotated counterclockwise about its center, then shifted down and right."""
    height, width, channels = image.shape
    y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    center_y, center_x = (height - 1) / 2, (width - 1) / 2
    y, x = y - center_y - shift[0], x - center_x - shift[1]
    sin, cos = jnp.sin(jnp.deg2rad(degrees)), jnp.cos(jnp.deg2rad(degrees))
    at = [sin * x + cos * y + center_y, cos * x - sin * y + center_x]
    return jnp.stack([map_coordinates(image[..., c], at, order=1) for c in range(channels)], -1)


def augment(_data):
    shape = (4, 9, 8, 2)
    images = jax.random.uniform(jax.random.PRNGKey(3), shape)
    key, max_shift, max_degrees = jax.random.PRNGKey(4), 2.0, 40.0
    rotate_key, shift_key = jax.random.split(key)
    degrees = jax.random.uniform(rotate_key, (4,), minval=-max_degrees, maxval=max_degrees)
    shifts = jax.random.uniform(shift_key, (4, 2), minval=-max_shift, maxval=max_shift)
    output = jnp.stack([rotated_and_shifted(*case) for case in zip(images, degrees, shifts)])
    write_json(
        "augment",
        {
            "key": words(key),
            "max_shift": max_shift,
            "max_degrees": max_degrees,
            "shape": list(shape),
            "input": bits(images),
            "output": bits(output),
        },
        IMAGES,
    )


# --- inspect.json ---

CLASSES = 5
BINS = 10


def predictions():
    """Labels, and probabilities that are mostly right."""
    label_key, score_key = jax.random.split(jax.random.PRNGKey(0))
    labels = np.asarray(jax.random.randint(label_key, (200,), 0, CLASSES))
    scores = jax.random.normal(score_key, (200, CLASSES)) + 2 * jax.nn.one_hot(labels, CLASSES)
    return labels, np.asarray(jax.nn.softmax(scores))


def of_predictions():
    labels, probabilities = predictions()
    predicted, confidence = probabilities.argmax(-1), probabilities.max(-1)
    right = labels == predicted
    accuracy, mean_confidence = calibration_curve(right, confidence, n_bins=BINS)
    return {
        "labels": labels.tolist(),
        "probabilities": bits(probabilities),
        "confusion_matrix": confusion_matrix(labels, predicted).ravel().tolist(),
        "bins": BINS,
        "confidence": mean_confidence.tolist(),
        "accuracy": accuracy.tolist(),
    }


def of_features():
    key = jax.random.PRNGKey(1)
    mix = jax.random.normal(key, (6, 6))
    features = np.asarray(jax.random.normal(jax.random.split(key)[1], (40, 6)) @ mix)
    pca = PCA(2, svd_solver="full")
    projection = pca.fit_transform(features.astype(np.float64))
    return {
        "features": bits(features),
        "projection": bits(projection),
        "components": bits(pca.components_),
        "explained_variance_ratio": bits(pca.explained_variance_ratio_),
    }


def of_network():
    """The gradient of `TinyCnn`'s log-probabilities."""
    x, classes = TINY_INPUT, np.array([2, 0])

    def score(x):
        return apply(FLAX_PARAMS, x)[np.arange(len(classes)), classes].sum()

    return {
        "input_shape": list(x.shape),
        "input": bits(x),
        "classes": classes.tolist(),
        "values": bits(abs(jax.grad(score)(x))),
    }


def inspect(_data):
    golden = {"predictions": of_predictions(), "features": of_features(), "saliency": of_network()}
    write_json("inspect", golden, INSPECT)


GENERATORS = {
    generator.__name__: generator
    for generator in [
        random,
        initial_params,
        pixels,
        gradients,
        trace,
        trace_epoch_1,
        ten_epochs,
        flax_params,
        intermediates,
        transform,
        steady,
        dropout,
        branches,
        convolutions,
        gelu,
        warmup_cosine,
        optimizers,
        augment,
        inspect,
    ]
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(GENERATORS))
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(GENERATORS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(GENERATORS)}")
    for name in arguments.names or GENERATORS:
        GENERATORS[name](arguments.data)


if __name__ == "__main__":
    main()
