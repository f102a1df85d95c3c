"""Predictions from a run's parameters, with numpy alone, after examples/own_model.py: python examples/predict.py [RUN]"""

import sys

import numpy as np

import hpcai

saved = hpcai.load(sys.argv[1] if len(sys.argv) > 1 else "runs/rings")
p = saved.parameters


def ring(x):
    """The forward pass of own_model.py."""
    y = np.asarray(x, np.float32)
    for name in ("one", "two"):
        y = np.maximum(y @ p[f"{name}.weight"] + p[f"{name}.bias"], 0)
    return (y @ p["scores.weight"] + p["scores.bias"]).argmax(1)


print(f"step {saved.step}:", {name: array.shape for name, array in p.items()})
print(ring([[0.1, 0.1], [0.5, 0.2], [0.9, 0.9]]))
