"""A model and data of one's own: mpirun -n 2 python examples/own_model.py [name=value ...], as in compress=int8 zero=1."""

import sys
from typing import Any

import numpy as np

import hpcai
from hpcai import nn


def data():
    """Points in a square, and in which of three rings around its middle they lie."""
    x = np.random.default_rng(0).uniform(-1, 1, (2000, 2))
    return x, np.digitize(np.hypot(*x.T), [0.4, 0.8])


def model(data):
    """Two hidden layers of 32."""
    hidden = nn.linear("one", 2, 32), nn.relu("relu1"), nn.linear("two", 32, 32), nn.relu("relu2")
    layers = nn.flatten(data.shape), *hidden, nn.linear("scores", 32, data.outputs)
    return nn.sequential("rings", *layers, loss=nn.softmax_cross_entropy())


if __name__ == "__main__":
    options: dict[str, Any] = {"epochs": 20, "lr": 0.01, "run_dir": "runs/rings"} | dict(word.split("=") for word in sys.argv[1:])
    trained = hpcai.fit(model, data, **options)
    if hpcai.init().rank == 0:
        print(trained.predict([[0.1, 0.1], [0.5, 0.2], [0.9, 0.9]]), trained.history[-1]["test_loss"])
