"""Evaluates the network that `take_it_away.ipynb` saved, with ONNX Runtime."""

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("taken_away/mnist.onnx")
(found,) = session.run(None, {"image": np.load("taken_away/images.npy")})
difference = np.abs(found - np.load("taken_away/log_probs.npy")).max()
print(f"ONNX Runtime {onnxruntime.__version__}: differ by at most {difference:.1e}")
