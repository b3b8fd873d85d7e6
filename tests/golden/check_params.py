"""Loads parameters of a `TinyCnn` into Flax and compares its output with the recorded one.

usage: python check_params.py FILE.safetensors

Fails unless the file has exactly Flax's parameters for that module and gives its output.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.flax import load_file

from models import TinyCnn

GOLDEN = Path(__file__).parents[2] / "crates/linen/tests/golden/flax_params.json"


def apply(path, x, **options):
    """The output of `TinyCnn` for `x` with the parameters in the file at `path`."""
    params = unflatten_dict(load_file(path), sep="/")
    return TinyCnn().apply({"params": params}, x, **options)


def shapes(params):
    return {name: (leaf.shape, leaf.dtype.name) for name, leaf in params.items()}


def flax_shapes(x):
    params = jax.eval_shape(TinyCnn().init, jax.random.PRNGKey(0), x)["params"]
    return shapes(flatten_dict(params, sep="/"))


def main():
    path = sys.argv[1]
    golden = json.loads(GOLDEN.read_text())
    x = np.array(golden["input"], np.uint32).view(np.float32).reshape(golden["input_shape"])
    found, expected = shapes(load_file(path)), flax_shapes(x)
    assert found == expected, f"{path} holds {found}, but TinyCnn has {expected}"
    output = np.ravel(apply(path, x))
    recorded = np.array(golden["output"], np.uint32).view(np.float32)
    np.testing.assert_allclose(output, recorded, rtol=1e-6, atol=1e-6)
    print(f"{path}: {len(found)} parameters load in Flax and give the recorded output")


if __name__ == "__main__":
    main()
