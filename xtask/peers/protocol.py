"""Shared by the peers: loads the data and answers `cargo xtask bench`, and `bench_gpu` on a GPU.

A request is a line on standard input, `what batch count`. The answer is a line `= milliseconds`,
the time per repetition, or `! reason` if that is not possible. The first request of each kind is
prepared before the clock starts.
"""

import gzip
import sys
import time
import traceback
from pathlib import Path

import numpy as np

LEARNING_RATE, BETA = 0.1, 0.9


def images(prefix):
    """[N, 28, 28], f32, 0 to 1: the byte times f32(1 / 255), as XLA computes `/ 255.0`."""
    image = read(f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    return image.astype(np.float32) * np.float32(1 / 255)


def labels(prefix):
    """[N], i32."""
    return read(f"{prefix}-labels-idx1-ubyte.gz", 8).astype(np.int32)


def read(name, header):
    data = Path(__file__).parents[2] / "data"
    return np.frombuffer(gzip.decompress((data / name).read_bytes()), np.uint8, offset=header)


def serve(prepare):
    """Answers requests. `prepare[what](batch)` returns a function that runs `count` repetitions."""
    prepared = {}

    def answer(what, batch, count):
        if (what, batch) not in prepared:
            prepared[what, batch] = prepare[what](batch)
        start = time.perf_counter()
        prepared[what, batch](count)
        return (time.perf_counter() - start) / count * 1e3

    for line in sys.stdin:
        what, batch, count = line.split()
        try:
            print("=", answer(what, int(batch), int(count)), flush=True)
        except Exception as error:
            traceback.print_exc()
            reason = str(error).strip() or "no message"
            print("!", f"{type(error).__name__}: {reason.splitlines()[0]}", flush=True)
